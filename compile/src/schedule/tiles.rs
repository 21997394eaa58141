//! Register tiles: their size on a machine, and how rows are cut into them.

use tongtu_tensor::DType;
use tongtu_tensor::dim::Dim;
use tongtu_tensor::scalar::Binary;
use tongtu_tile::Val;

use super::Request;
use crate::emit::Emitter;
use crate::error::Error;

/// Register tiles of a machine: vectors a row, and the most rows whose sums stay in registers beside a row of the right operand and one
/// element of the left, or beside the four rows and one vector that a row of the left takes where elements are picked out of it.
const fn register_tiles(registers: usize, picked: bool) -> &'static [(usize, usize)] {
    match (registers >= 32, picked) {
        (true, false) => &[(1, 24), (2, 14), (3, 9), (4, 6), (5, 5)],
        (true, true) => &[(1, 24), (2, 9), (3, 5)],
        (false, _) => &[(1, 10), (2, 6)],
    }
}

/// The tallest register tile of some vectors a row.
pub fn tallest(r: &Request<'_>, vectors: usize) -> usize {
    let tiles = register_tiles(r.machine.registers, false);
    tiles.iter().find(|t| t.0 == vectors).map_or(1, |t| t.1)
}

/// The register tile for results of some columns, as far as they are known: most rows, vectors a row. It is the one with the fewest
/// instructions: multiply-adds, loads of the right operand, loads of the left operand and steps of the loop, `steps` of which are one
/// turn. `height` gives the rows of a tile on average where at most so many fit.
pub fn register_tile(
    r: &Request<'_>,
    ct: DType,
    columns: Option<i64>,
    steps: usize,
    height: impl Fn(usize) -> f64,
) -> (usize, usize) {
    let lanes = r.machine.lanes(ct) as i64;
    let cost = |&(vectors, most): &(usize, usize)| {
        let v = vectors as f64;
        let panels = match columns {
            Some(c) => ((c + lanes * vectors as i64 - 1) / (lanes * vectors as i64)).max(1) as f64,
            None => 1.0 / v,
        };
        let each = 1.0 / steps as f64;
        panels * (v + each + (v + 0.5 * each) / height(most).max(1.0))
    };
    let mut best = (f64::INFINITY, (1, 1));
    for tile in register_tiles(r.machine.registers, steps > 1) {
        let cost = cost(tile);
        if cost < best.0 {
            best = (cost, (tile.1, tile.0));
        }
    }
    best.1
}

/// The type that products and sums are computed in.
pub fn compute_type(acc: DType) -> DType {
    match acc {
        DType::F64 => DType::F64,
        d if d.is_float() => DType::F32,
        d => d,
    }
}

/// Runs `tile(e, row, size)` over `lo..hi` with the largest tiles first.
fn cover_rows(
    e: &mut Emitter<'_>,
    lo: Val,
    hi: Val,
    sizes: &[usize],
    tile: &mut dyn FnMut(&mut Emitter<'_>, Val, usize) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut lo = lo;
    for &size in sizes {
        let hi_tiles = if size == 1 {
            hi
        } else {
            let span = e.b.sub(hi, lo)?;
            let s = e.b.int(size as i64);
            let rest = e.b.binary(Binary::Rem, span, s)?;
            e.b.sub(hi, rest)?
        };
        e.for_loop(lo, hi_tiles, size as i64, &[], |e, m, _| {
            tile(e, m, size)?;
            Ok(vec![])
        })?;
        lo = hi_tiles;
    }
    Ok(())
}

/// How rows are cut into register tiles.
pub struct Tiles {
    /// Rows of the tiles, the greatest first.
    pub sizes: Vec<usize>,
    /// Where the number of rows is known, the number of tiles and how many of them have the greater of two sizes.
    even: Option<(i64, i64)>,
    /// Whether the last tile may reach past the rows.
    pub padded: bool,
    /// Tiles of a block.
    per: Dim,
    /// Number of blocks.
    pub blocks: Dim,
    rows: Dim,
}

impl Tiles {
    /// Tiles of at most `height` for `rows`, in blocks of at most `most` tiles, at least `least` blocks where there are as many
    /// tiles: of nearly equal size where the number of rows is known, else as many of the greatest size as fit.
    pub fn new(rows: &Dim, height: usize, most: i64, least: i64) -> Tiles {
        let one = Dim::from(1);
        if let Some(m) = rows.as_const().filter(|&m| m > 0) {
            let count = (m + height as i64 - 1) / height as i64;
            let (size, tall) = ((m / count) as usize, m % count);
            let sizes = if tall > 0 { vec![size + 1, size] } else { vec![size] };
            let blocks = ((count + most - 1) / most).max(least.min(count));
            let per = (count + blocks - 1) / blocks;
            let blocks = Dim::from((count + per - 1) / per);
            return Tiles {
                sizes,
                even: Some((count, tall)),
                padded: false,
                per: Dim::from(per),
                blocks,
                rows: rows.clone(),
            };
        }
        let mut sizes = vec![height];
        for size in [height / 3, 2, 1] {
            if size > 0 && sizes.last().is_some_and(|&s| size < s) {
                sizes.push(size);
            }
        }
        let height = height as i64;
        let count = rows.ceildiv(&Dim::from(height));
        let blocks = count.ceildiv(&Dim::from(most)).max(&count.min(&Dim::from(least))).max(&one);
        let per = count.ceildiv(&blocks).max(&one);
        let blocks = count.ceildiv(&per);
        Tiles { sizes, even: None, padded: false, per, blocks, rows: rows.clone() }
    }

    /// Tiles of one size, the last one of which may reach past the rows.
    pub fn padded(rows: &Dim, height: usize, most: i64, least: i64) -> Tiles {
        let known = rows.as_const().filter(|&m| m > 0);
        let height = known.map_or(height as i64, |m| {
            let count = (m + height as i64 - 1) / height as i64;
            (m + count - 1) / count
        });
        let count = rows.ceildiv(&Dim::from(height));
        let one = Dim::from(1);
        let blocks = count.ceildiv(&Dim::from(most)).max(&count.min(&Dim::from(least))).max(&one);
        let per = count.ceildiv(&blocks).max(&one);
        let blocks = count.ceildiv(&per);
        Tiles { sizes: vec![height as usize], even: None, padded: true, per, blocks, rows: rows.clone() }
    }

    /// Whether there may be more than one tile.
    pub fn several(&self) -> bool {
        self.even.is_none_or(|(count, _)| count > 1)
    }

    /// Most rows of a block of at most `most` tiles.
    pub fn block_rows(&self, most: i64) -> usize {
        self.per.as_const().unwrap_or(most) as usize * self.sizes[0]
    }

    /// First row of a block and the one after its last.
    pub fn block(&self, e: &mut Emitter<'_>, block: Val) -> Result<(Val, Val), Error> {
        let per = e.dim_param(&self.per);
        let first = e.b.mul(block, per)?;
        let end = e.b.add(first, per)?;
        let Some((count, tall)) = self.even else {
            let (lo, hi) =
                (e.b.mul_int(first, self.sizes[0] as i64)?, e.b.mul_int(end, self.sizes[0] as i64)?);
            let rows = e.dim_param(&self.rows);
            return Ok((lo, e.b.min(hi, rows)?));
        };
        let count = e.dim_param(&Dim::from(count));
        let end = e.b.min(end, count)?;
        let tall = e.dim_param(&Dim::from(tall));
        let size = self.sizes[self.sizes.len() - 1] as i64;
        let row = |e: &mut Emitter<'_>, tile: Val| -> Result<Val, Error> {
            let (more, base) = (e.b.min(tile, tall)?, e.b.mul_int(tile, size)?);
            Ok(e.b.add(base, more)?)
        };
        Ok((row(e, first)?, row(e, end)?))
    }

    /// The first of the rows `lo..hi` of a block that are tiles by themselves.
    pub fn alone(&self, e: &mut Emitter<'_>, lo: Val, hi: Val) -> Result<Val, Error> {
        if self.even.is_some() {
            return Ok(if self.sizes == [1] { lo } else { hi });
        }
        let mut rest = e.b.sub(hi, lo)?;
        for &size in self.sizes.iter().filter(|&&s| s > 1) {
            let size = e.b.int(size as i64);
            rest = e.b.binary(Binary::Rem, rest, size)?;
        }
        Ok(e.b.sub(hi, rest)?)
    }

    /// Runs `tile(e, row, size)` for the tiles of rows `lo..hi` of a block.
    pub fn cover(
        &self,
        e: &mut Emitter<'_>,
        lo: Val,
        hi: Val,
        tile: &mut dyn FnMut(&mut Emitter<'_>, Val, usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let tall = match self.even {
            Some((_, tall)) => tall,
            None if self.padded => 0,
            None => return cover_rows(e, lo, hi, &self.sizes, tile),
        };
        let mut run = |e: &mut Emitter<'_>, lo: Val, hi: Val, size: usize| -> Result<(), Error> {
            e.for_loop(lo, hi, size as i64, &[], |e, m, _| {
                tile(e, m, size)?;
                Ok(vec![])
            })?;
            Ok(())
        };
        match self.sizes[..] {
            [size] => run(e, lo, hi, size),
            [great, small, ..] => {
                let turn = e.dim_param(&Dim::from(tall * great as i64));
                let (first, second) = (e.b.min(hi, turn)?, e.b.max(lo, turn)?);
                run(e, lo, first, great)?;
                run(e, second, hi, small)
            }
            [] => Ok(()),
        }
    }
}
