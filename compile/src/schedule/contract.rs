//! Contractions: blocked, packed, register-tiled matrix products, with the elementwise operations that follow.
//!
//! The left operand's rows are copied block by block into scratch with a fixed row length; the right operand is read in panels
//! of as many columns as the accumulators hold, packed beforehand unless its columns are next to each other in memory
//! already. Accumulators stay in registers over a block of the summed dim (Goto and van de Geijn, "Anatomy of
//! High-Performance Matrix Multiplication", 2008).

use tongtu_graph::{Graph, Node, Op, ValueId};
use tongtu_tensor::dim::Dim;
use tongtu_tensor::scalar::{Binary, Compare, Unary};
use tongtu_tensor::{DType, Num};
use tongtu_tile::{Access, Factor, TileMap, Val};

use super::{Pack, Request, Scheduled, blocks, delinear, multiple, product};
use crate::emit::{CAST, Coord, Emitter, KernelArg, zero_of};
use crate::error::Error;
use crate::fuse::result_dims;

/// Most steps of the summed dim in a block: a panel of them stays in the nearest cache.
const KC: i64 = 256;
/// As many elements of few rows are in a block instead.
const FEW: i64 = 8192;
/// Most bytes of a row of a matrix unit's operand in a block.
const UNIT_BYTES: i64 = 2048;
/// Most register tiles of rows in a block.
const MC_TILES: i64 = 12;
/// Bytes that a prefetch brings.
pub const CACHE_LINE: usize = 64;
/// Panels that one row is multiplied by at once.
const WIDE: usize = 4;
/// Most panels of the right operand in a block.
const NC_PANELS: i64 = 16;

/// The register tile of a machine for an accumulator type: rows, vectors a row.
pub fn register_tile(r: &Request<'_>) -> (usize, usize) {
    if r.machine.registers >= 32 { (14, 2) } else { (6, 2) }
}

/// The type that products and sums are computed in.
pub fn compute_type(acc: DType) -> DType {
    match acc {
        DType::F64 => DType::F64,
        d if d.is_float() => DType::F32,
        d => d,
    }
}

/// One operand's dims by role.
pub struct Side {
    /// The operand.
    pub value: ValueId,
    /// Its batch dims.
    pub batch: Vec<usize>,
    /// Its dims that are in the result.
    pub free: Vec<usize>,
    /// Its dims that are summed over.
    pub over: Vec<usize>,
    /// Position of its first free dim in the result.
    pub first: usize,
}

impl Side {
    /// Operand `k` of a contraction.
    pub fn new(g: &Graph, node: &Node, k: usize, first: usize) -> Side {
        let value = node.inputs[k];
        let pick = |p: &(usize, usize)| if k == 0 { p.0 } else { p.1 };
        let (batch, over): (Vec<usize>, Vec<usize>) = match &node.op {
            Op::Contract { batch, over, .. } => {
                (batch.iter().map(pick).collect(), over.iter().map(pick).collect())
            }
            _ => Default::default(),
        };
        let free = (0..g.dims(value).len()).filter(|d| !batch.contains(d) && !over.contains(d)).collect();
        Side { value, batch, free, over, first }
    }

    /// The dim that register tiles step along.
    pub fn free_last(&self) -> Option<usize> {
        self.free.last().copied()
    }

    /// Whether the operand is a constant.
    fn is_constant(&self, r: &Request<'_>) -> bool {
        let input = r.graph.inputs.iter().position(|&v| v == self.value);
        input.is_some_and(|p| matches!(r.constants.get(p), Some(Some(_))))
    }

    /// As the right operand: its panels of `width` columns, with the summed dims in the given order, and their dims. Nothing where its
    /// columns are next to each other in memory already.
    pub fn place(
        &self,
        r: &Request<'_>,
        s: &mut Scheduled,
        over: &[usize],
        width: usize,
        group: (usize, usize),
    ) -> Result<Option<(KernelArg, Vec<Dim>)>, Error> {
        let dims = r.graph.dims(self.value);
        let input = r.graph.inputs.iter().position(|&v| v == self.value);
        let columns_last = self.free_last().is_some_and(|d| d + 1 == dims.len());
        let (Some(last), Some(input)) = (self.free_last(), input) else { return Ok(None) };
        if columns_last && !self.is_constant(r) {
            return Ok(None);
        }
        let mut perm: Vec<usize> = self.batch.clone();
        perm.extend(&self.free[..self.free.len() - 1]);
        let columns = perm.len();
        perm.push(last);
        perm.extend(over);
        let pack = Pack { input, perm, columns, width, group };
        let dims = pack.dims(dims);
        Ok(Some((pack.place(r, s)?, dims)))
    }
}

/// Runs `tile(e, row, size)` over `lo..hi` with the largest tiles first.
pub fn cover_rows(
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
    padded: bool,
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
    fn padded(rows: &Dim, height: usize, most: i64, least: i64) -> Tiles {
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
    fn several(&self) -> bool {
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
    fn alone(&self, e: &mut Emitter<'_>, lo: Val, hi: Val) -> Result<Val, Error> {
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

/// Coordinates of a group's results from those of the anchor's result.
pub fn result_coords(e: &mut Emitter<'_>, dims: &[Option<usize>], anchor: &[Coord]) -> Vec<Coord> {
    let zero = e.b.int(0);
    dims.iter().map(|d| d.map_or(Coord::at(zero), |d| anchor[d])).collect()
}

/// The schedule of a contraction and what follows it.
pub fn schedule(r: &Request<'_>, n: usize) -> Result<Scheduled, Error> {
    let g = r.graph;
    let node = &g.nodes[n];
    let Op::Contract { batch, over, acc } = &node.op else {
        return Err(Error::unsupported("contract", r.loc, "the anchor is another operation"));
    };
    let (batch, over, acc) = (batch.clone(), over.clone(), *acc);
    let lhs = Side::new(g, node, 0, batch.len());
    let rhs = Side::new(g, node, 1, batch.len() + lhs.free.len());
    let extent = |s: &Side| s.free_last().map_or(Dim::from(1), |d| g.dims(s.value)[d].clone());
    let ct = compute_type(acc);
    let lanes = r.machine.lanes(ct);
    // Columns go along vectors: the operand with few columns gives the rows.
    let narrow = |d: &Dim| d.as_const().is_some_and(|c| c < lanes as i64 / 2);
    let swap = narrow(&extent(&rhs)) && !narrow(&extent(&lhs));
    let (a, b) = if swap { (rhs, lhs) } else { (lhs, rhs) };
    let (m, nn) = (extent(&a), extent(&b));
    let (mut mr, vectors) = register_tile(r);
    let vectors = if nn.as_const().is_some_and(|c| c <= lanes as i64) { 1 } else { vectors };
    if vectors == 1 {
        mr = if r.machine.registers >= 32 { 24 } else { 10 };
    }
    let mut s = Scheduled::default();
    // The summed dim that is walked innermost: the one along which the rows lie in memory, else the last.
    let a_last = g.dims(a.value).len().saturating_sub(1);
    let ki = a.over.iter().position(|&d| d == a_last).unwrap_or(over.len().saturating_sub(1));
    let k_outer: Vec<usize> = (0..over.len()).filter(|&i| i != ki).collect();
    let k_dim = |i: usize| g.dims(a.value)[a.over[i]].clone();
    let k = if over.is_empty() { Dim::from(1) } else { k_dim(ki) };
    let k_outer_dims: Vec<Dim> = k_outer.iter().map(|&i| k_dim(i)).collect();

    let (a_type, b_type) = (g.dtype(a.value), g.dtype(b.value));
    let b_bytes = (b_type.bits() as usize / 8).max(1);
    let a_by_rows = a.free_last() != Some(a_last);
    // Two by two squares of a matrix unit, operands as they are.
    let unit = r
        .machine
        .unit(a_type, b_type, acc)
        .filter(|_| a_by_rows && k_outer.is_empty() && !over.is_empty() && vectors == 2 && b.is_constant(r));
    let (depth, side) = unit.map_or((1, 1), |u| (u.shape[2], 4 / b_bytes));
    let mut nr = lanes * vectors;
    if let Some(u) = &unit {
        (mr, nr) = (2 * u.shape[0], 2 * u.shape[1]);
    }
    // Few panels are a block, and rows are cut for the cores instead.
    let panels = nn.ceildiv(&Dim::from(nr as i64));
    let least = if panels.as_const().is_some_and(|p| p > NC_PANELS) { 1 } else { 2 };
    // A matrix unit's squares have one size in a kernel.
    let tiles = match &unit {
        Some(_) => Tiles::padded(&m, mr, MC_TILES / 2, least),
        None => Tiles::new(&m, mr, MC_TILES, least),
    };
    let st = if unit.is_some() { a_type } else { ct };
    let order: Vec<usize> =
        k_outer.iter().map(|&i| b.over[i]).chain((!over.is_empty()).then(|| b.over[ki])).collect();
    let packed = b.place(r, &mut s, &order, nr, (side, depth))?;

    let mut e = Emitter::new(r.name, g);
    let out = node.outputs[0];
    e.leaves_of(&g.outputs, &[out])?;
    e.leaves_of(&[a.value], &[])?;
    let panel_view = match packed {
        Some((arg, dims)) => {
            let buffer = e.buffer(arg, g.dtype(b.value), Access::Read);
            Some((buffer, e.view(buffer, &dims)?, dims))
        }
        None => {
            e.leaves_of(&[b.value], &[])?;
            None
        }
    };
    let outs = (0..g.outputs.len()).map(|i| e.output(i)).collect::<Result<Vec<_>, _>>()?;

    // Few rows read the right operand once: in long runs.
    let few = if unit.is_some() {
        UNIT_BYTES / b_bytes as i64
    } else {
        m.as_const().filter(|&m| m <= mr as i64).map_or(KC, |m| (FEW / m.max(1)).max(KC))
    };
    let single = k_outer.is_empty() && k.as_const().is_some_and(|c| c <= few);
    let row_len = (few as usize).next_multiple_of(4 * lanes) + CACHE_LINE * 8 / st.bits() as usize;
    let mc = tiles.block_rows(MC_TILES);
    let a_scratch = e.b.alloc(st, if a_by_rows { mc * row_len } else { mc * few as usize })?;
    let (zero, one) = (e.b.int(0), e.b.int(1));
    let a_view = {
        let (rows, cols) = (e.b.int(mc as i64), e.b.int(row_len as i64));
        e.b.view(a_scratch, zero, &[rows, cols], &[cols, one])?
    };
    let c_view = if single {
        None
    } else {
        let c_scratch = e.b.alloc(ct, mc * NC_PANELS as usize * nr)?;
        let (rows, cols) = (e.b.int(mc as i64 * NC_PANELS), e.b.int(nr as i64));
        Some(e.b.view(c_scratch, zero, &[rows, cols], &[cols, one])?)
    };

    // The grid: blocks of rows, blocks of panels, everything else.
    let one_dim = Dim::from(1);
    let n_least = Dim::from(3) - m.ceildiv(&Dim::from(mr as i64)).max(&one_dim).min(&Dim::from(2));
    let n_block = panels.ceildiv(&panels.ceildiv(&Dim::from(NC_PANELS)).max(&n_least)).max(&one_dim);
    let out_dims = g.dims(out).to_vec();
    let inner_of = |s: &Side| s.free_last().map(|_| s.first + s.free.len() - 1);
    let (m_at, n_at) = (inner_of(&a), inner_of(&b));
    let outer_at: Vec<usize> = (0..out_dims.len()).filter(|&i| Some(i) != m_at && Some(i) != n_at).collect();
    let outer_dims: Vec<Dim> = outer_at.iter().map(|&i| out_dims[i].clone()).collect();
    let results = result_dims(g, n)
        .ok_or_else(|| Error::unsupported("contract", r.loc, "the results have other dims"))?;

    let (k_v, panels_v, nb_v) = (e.dim_param(&k), e.dim_param(&panels), e.dim_param(&n_block));
    let pid_m = e.b.program_id(0)?;
    let (m_lo, m_hi) = tiles.block(&mut e, pid_m)?;
    let pid_n = e.b.program_id(1)?;
    let p_lo = e.b.mul(pid_n, nb_v)?;
    let p_end = e.b.add(p_lo, nb_v)?;
    let p_hi = e.b.min(p_end, panels_v)?;
    let pid_o = e.b.program_id(2)?;
    let outer = delinear(&mut e, pid_o, &outer_dims)?;
    let mut base_coords = vec![Coord::at(zero); out_dims.len()];
    for (&i, c) in outer_at.iter().zip(outer) {
        base_coords[i] = c;
    }
    let n_exact = multiple(&nn, nr);
    let heavy = heavy_epilogue(g) || unit.is_some();
    let finish_view = if heavy { Some(epilogue_view(&mut e, ct, tiles.sizes[0], nr)?) } else { None };

    // A single row streams several panels at once.
    let wide_view = match (&panel_view, &unit) {
        (Some(_), None) if tiles.sizes.contains(&1) => Some(epilogue_view(&mut e, ct, WIDE, nr)?),
        _ => None,
    };

    // Coordinates of an operand's dims.
    let operand = |side: &Side, free: Coord, ko: &[Coord], kc: Coord, base: &[Coord]| -> Vec<Coord> {
        (0..g.dims(side.value).len())
            .map(|d| {
                if let Some(i) = side.batch.iter().position(|&x| x == d) {
                    base[i]
                } else if let Some(i) = side.over.iter().position(|&x| x == d) {
                    if i == ki { kc } else { k_outer.iter().position(|&o| o == i).map_or(kc, |p| ko[p]) }
                } else if Some(d) == side.free_last() {
                    free
                } else {
                    let i = side.free.iter().position(|&x| x == d).unwrap_or(0);
                    base[side.first + i]
                }
            })
            .collect()
    };

    // One block of the summed dim: the left operand's rows to scratch, then every panel with every row tile.
    let k_block = |e: &mut Emitter<'_>,
                   ko: &[Coord],
                   k0: Val,
                   kn: Val,
                   first: Option<Val>,
                   last: Option<Val>|
     -> Result<(), Error> {
        // Where a tile's rows are when they lie side by side.
        let tile_view = |e: &mut Emitter<'_>, m0: Val, size: usize| -> Result<Val, Error> {
            let row = e.b.sub(m0, m_lo)?;
            let at = e.b.mul_int(row, few)?;
            let (rows, cols) = (e.b.int(few), e.b.int(size as i64));
            Ok(e.b.view(a_scratch, at, &[rows, cols], &[cols, one])?)
        };
        if a_by_rows {
            let at = |row: Coord, k: Coord| operand(&a, row, ko, k, &base_coords);
            copy_rows(e, a.value, a_view, st, lanes, (m_lo, m_hi), (k0, kn), &at)?;
        } else {
            let shape = std::mem::take(&mut e.shape);
            tiles.cover(e, m_lo, m_hi, &mut |e, m0, size| {
                let view = tile_view(e, m0, size)?;
                e.for_loop(zero, kn, 1, &[], |e, i, _| {
                    e.shape = vec![size];
                    let ki = e.b.add(k0, i)?;
                    let c = operand(&a, Coord::along(m0, 0, true), ko, Coord::at(ki), &base_coords);
                    let t = e.emit(a.value, &c)?;
                    let t = e.b.cast(t, ct, CAST)?;
                    e.store_view(view, t, &[Coord::at(i), Coord::along(zero, 0, true)])?;
                    Ok(vec![])
                })?;
                Ok(())
            })?;
            e.shape = shape;
        }
        // One register tile of rows times neighbouring panels.
        let tile = |e: &mut Emitter<'_>, m0: Val, size: usize, p: Val, count: usize| -> Result<(), Error> {
            e.shape = vec![size, nr];
            let row = e.b.sub(m0, m_lo)?;
            let c_map = TileMap::along(&[size, nr], &[0, 1]);
            let c_row = |e: &mut Emitter<'_>, p: Val| -> Result<Val, Error> {
                let pl = e.b.sub(p, p_lo)?;
                let at = e.b.mul_int(pl, mc as i64)?;
                Ok(e.b.add(at, row)?)
            };
            let zeros = |e: &mut Emitter<'_>| -> Result<Vec<Val>, Error> {
                Ok(vec![e.b.full(ct, &[size, nr], zero_of(ct))?; count])
            };
            let mut init = Vec::new();
            if let (Some(cv), Some(first)) = (c_view, first) {
                init = e.if_else(first, zeros, |e| {
                    let mut sums = Vec::new();
                    for j in 0..count {
                        let panel = e.b.add_int(p, j as i64)?;
                        let at = c_row(e, panel)?;
                        sums.push(e.b.load(cv, &[at, zero], c_map.clone(), &[true, true], zero_of(ct))?);
                    }
                    Ok(sums)
                })?;
            }
            if init.is_empty() {
                init = zeros(e)?;
            }
            let av = if a_by_rows { a_view } else { tile_view(e, m0, size)? };
            // Where a matrix unit's panel begins, groups of steps in rows.
            let group_view = match (&unit, &panel_view) {
                (Some(_), Some((buffer, (_, strides), dims))) => {
                    let mut base = zero;
                    let place = b.batch.iter().enumerate().map(|(i, _)| base_coords[i]);
                    let place = place.chain((0..b.free.len() - 1).map(|i| base_coords[b.first + i]));
                    for (c, stride) in place.chain([Coord::at(p)]).zip(strides) {
                        if let Coord::Affine { base: at, .. } = c {
                            let far = e.b.mul(at, *stride)?;
                            base = e.b.add(base, far)?;
                        }
                    }
                    let rows = e.dim_param(&dims[dims.len() - 3]);
                    let (columns, steps) = (e.b.int(nr as i64), e.b.int(side as i64));
                    let row = e.b.int((nr * side) as i64);
                    Some(e.b.view(*buffer, base, &[rows, columns, steps], &[row, steps, one])?)
                }
                _ => None,
            };
            // The panel after this one, in this block of the summed dim or the next.
            let after = e.b.add_int(p, 1)?;
            let more = e.b.compare(Compare::Lt, after, p_hi)?;
            let next_k = e.b.add(k0, kn)?;
            let (next_p, next_k) = (e.b.select(more, after, p_lo)?, e.b.select(more, k0, next_k)?);
            let sums = e.for_loop(zero, kn, depth as i64, &init, |e, i, c| {
                let ki = e.b.add(k0, i)?;
                if let Some(view) = group_view {
                    let map = TileMap::along(&[size, depth], &[0, 1]);
                    let at = e.b.load(av, &[row, i], map, &[true, true], zero_of(st))?;
                    let factor = |size: usize, dim: usize| Factor { size, dim: Some(dim), step: 1 };
                    let map =
                        TileMap(vec![vec![factor(depth / side, 0), factor(side, 2)], vec![factor(nr, 1)]]);
                    let steps = e.b.int(side as i64);
                    let q = e.b.div(ki, steps)?;
                    let bt = e.b.load(view, &[q, zero, zero], map, &[true; 3], zero_of(b_type))?;
                    return Ok(vec![e.b.mma(c[0], at, bt)?]);
                }
                let (map, index) = if a_by_rows {
                    (TileMap::along(&[size, 1], &[0, 1]), [row, i])
                } else {
                    (TileMap::along(&[size, 1], &[1, 0]), [i, zero])
                };
                let mut sums = Vec::new();
                for (j, &sum) in c.iter().enumerate() {
                    let panel = e.b.add_int(p, j as i64)?;
                    let bt = match &panel_view {
                        Some((buffer, (view, strides), dims)) => {
                            let lead = b.batch.iter().enumerate().map(|(i, _)| base_coords[i]);
                            let lead = lead.chain((0..b.free.len() - 1).map(|i| base_coords[b.first + i]));
                            let place = |panel: Val, ki: Val| -> Vec<Coord> {
                                let summed =
                                    ko.iter().copied().chain((!over.is_empty()).then_some(Coord::at(ki)));
                                lead.clone().chain([Coord::at(panel)]).chain(summed).collect()
                            };
                            if size > 1 && tiles.several() {
                                let next = e.b.add(next_k, i)?;
                                let next = place(next_p, next);
                                prefetch(e, *view, &next, nr, b_bytes)?;
                            }
                            let mut c = place(panel, ki);
                            c.push(Coord::along(zero, 1, true));
                            e.load_view(*buffer, *view, strides, dims, &c, zero_of(b_type))?
                        }
                        None => {
                            let n0 = e.b.mul_int(panel, nr as i64)?;
                            let columns = Coord::along(n0, 1, n_exact);
                            let t =
                                e.emit(b.value, &operand(&b, columns, ko, Coord::at(ki), &base_coords))?;
                            e.b.broadcast(t, &[1, nr])?
                        }
                    };
                    let bt = e.b.cast(bt, ct, CAST)?;
                    let at = e.b.load(av, &index, map.clone(), &[true, true], zero_of(ct))?;
                    sums.push(e.b.mma(sum, at, bt)?);
                }
                Ok(sums)
            })?;
            let finish = |e: &mut Emitter<'_>, acc: Val, p: Val| -> Result<Vec<Val>, Error> {
                let n0 = e.b.mul_int(p, nr as i64)?;
                let rows = if tiles.padded { Some(e.b.sub(m_hi, m0)?) } else { None };
                epilogue_of(e, out, acc, finish_view, rows, &outs, &mut |e, row| {
                    let mut c = base_coords.clone();
                    if let Some(i) = m_at {
                        c[i] = match row {
                            None => Coord::along(m0, 0, true),
                            Some(row) => Coord::at(e.b.add(m0, row)?),
                        };
                    }
                    if let Some(i) = n_at {
                        c[i] = Coord::along(n0, 1, n_exact);
                    }
                    Ok(result_coords(e, &results, &c))
                })?;
                Ok(vec![])
            };
            let settle = |e: &mut Emitter<'_>, acc: Val, p: Val| -> Result<(), Error> {
                let (Some(cv), Some(last)) = (c_view, last) else { return finish(e, acc, p).map(|_| ()) };
                let at = c_row(e, p)?;
                e.if_else(
                    last,
                    |e| finish(e, acc, p),
                    |e| {
                        e.b.store(cv, acc, &[at, zero], c_map.clone(), &[true, true])?;
                        Ok(vec![])
                    },
                )?;
                Ok(())
            };
            let (Some(wide), true) = (wide_view, count > 1) else { return settle(e, sums[0], p) };
            for (j, &sum) in sums.iter().enumerate() {
                let j = e.b.int(j as i64);
                e.b.store(wide, sum, &[j, zero], c_map.clone(), &[true, true])?;
            }
            let count = e.b.int(count as i64);
            e.for_loop(zero, count, 1, &[], |e, j, _| {
                let acc = e.b.load(wide, &[j, zero], c_map.clone(), &[true, true], zero_of(ct))?;
                let p = e.b.add(p, j)?;
                settle(e, acc, p)?;
                Ok(vec![])
            })?;
            Ok(())
        };
        let alone = if wide_view.is_some() { tiles.alone(e, m_lo, m_hi)? } else { m_hi };
        e.for_loop(p_lo, p_hi, 1, &[], |e, p, _| {
            tiles.cover(e, m_lo, alone, &mut |e, m0, size| match size {
                1 if wide_view.is_some() => Ok(()),
                _ => tile(e, m0, size, p, 1),
            })?;
            Ok(vec![])
        })?;
        if wide_view.is_some() {
            e.for_loop(alone, m_hi, 1, &[], |e, m0, _| {
                let span = e.b.sub(p_hi, p_lo)?;
                let wide = e.b.int(WIDE as i64);
                let rest = e.b.binary(Binary::Rem, span, wide)?;
                let whole = e.b.sub(p_hi, rest)?;
                e.for_loop(p_lo, whole, WIDE as i64, &[], |e, p, _| {
                    tile(e, m0, 1, p, WIDE)?;
                    Ok(vec![])
                })?;
                e.for_loop(whole, p_hi, 1, &[], |e, p, _| {
                    tile(e, m0, 1, p, 1)?;
                    Ok(vec![])
                })?;
                Ok(vec![])
            })?;
        }
        Ok(())
    };
    if single {
        k_block(&mut e, &[], zero, k_v, None, None)?;
    } else {
        let k_blocks = k.ceildiv(&Dim::from(few)).max(&one_dim);
        let whole = Dim::from(depth as i64);
        let kc = k.ceildiv(&(&k_blocks * depth as i64)) * &whole;
        let k_blocks = k.ceildiv(&kc.max(&one_dim)).max(&one_dim);
        let total = product(&k_outer_dims).max(&one_dim) * &k_blocks;
        let (total_v, kc_v) = (e.dim_param(&total), e.dim_param(&kc));
        e.for_loop(zero, total_v, 1, &[], |e, t, _| {
            let mut dims = k_outer_dims.clone();
            dims.push(k_blocks.clone());
            let mut at = delinear(e, t, &dims)?;
            let k0 = match at.pop() {
                Some(Coord::Affine { base, .. }) => e.b.mul(base, kc_v)?,
                _ => zero,
            };
            let rest = e.b.sub(k_v, k0)?;
            let mut kn = e.b.min(kc_v, rest)?;
            if !k_outer_dims.is_empty() {
                // With an outer summed dim of length 0 nothing is summed.
                let po = product(&k_outer_dims);
                let any = e.dim_param(&po.min(&one_dim));
                kn = e.b.mul(kn, any)?;
            }
            let first = e.b.compare(Compare::Eq, t, zero)?;
            let end = e.b.sub(total_v, one)?;
            let last = e.b.compare(Compare::Eq, t, end)?;
            k_block(e, &at, k0, kn, Some(first), Some(last))?;
            Ok(vec![])
        })?;
    }
    let grid = [tiles.blocks.clone(), panels.ceildiv(&n_block), product(&outer_dims)];
    s.launches.push(e.launch(grid));
    Ok(s)
}

/// Zero for subnormal numbers of `f32`, which many machines multiply slowly.
pub fn flush(e: &mut Emitter<'_>, t: Val) -> Result<Val, Error> {
    if e.b.dtype(t) != DType::F32 {
        return Ok(t);
    }
    let shape = e.b.shape(t);
    let size = e.b.unary(Unary::Abs, t)?;
    let least = e.b.full(DType::F32, &shape, Num::Float(f32::MIN_POSITIVE.into()))?;
    let zero = e.b.full(DType::F32, &shape, Num::Float(0.0))?;
    let tiny = e.b.compare(Compare::Lt, size, least)?;
    Ok(e.b.select(tiny, zero, t)?)
}

/// Says that a row of a panel will be read soon.
fn prefetch(e: &mut Emitter<'_>, view: Val, at: &[Coord], width: usize, bytes: usize) -> Result<(), Error> {
    let mut index: Vec<Val> = Vec::new();
    for c in at {
        let Coord::Affine { base, .. } = *c else { return Ok(()) };
        index.push(base);
    }
    for column in (0..width).step_by((CACHE_LINE / bytes).max(1)) {
        let column = e.b.int(column as i64);
        let whole: Vec<Val> = index.iter().copied().chain([column]).collect();
        e.b.prefetch(view, &whole)?;
    }
    Ok(())
}

/// Copies rows `rows.0..rows.1` of an operand, steps `k.0..k.0 + k.1` of its summed dim, to the first rows and columns of a
/// view in type `ct`. `at` gives the operand's coordinates from those of the row and the summed dim.
#[allow(clippy::too_many_arguments)]
pub fn copy_rows(
    e: &mut Emitter<'_>,
    value: ValueId,
    to: Val,
    ct: DType,
    lanes: usize,
    rows: (Val, Val),
    k: (Val, Val),
    at: &dyn Fn(Coord, Coord) -> Vec<Coord>,
) -> Result<(), Error> {
    let width = 4 * lanes;
    let shape = std::mem::replace(&mut e.shape, vec![width]);
    let zero = e.b.int(0);
    e.for_loop(rows.0, rows.1, 1, &[], |e, row, _| {
        let down = e.b.sub(row, rows.0)?;
        blocks(e, zero, k.1, width, false, &[], |e, i, inside, _| {
            let ki = e.b.add(k.0, i)?;
            let t = e.emit(value, &at(Coord::at(row), Coord::along(ki, 0, inside)))?;
            let t = e.b.cast(t, ct, CAST)?;
            let t = flush(e, t)?;
            e.store_view(to, t, &[Coord::at(down), Coord::along(i, 0, true)])?;
            Ok(vec![])
        })
    })?;
    e.shape = shape;
    Ok(())
}

/// Whether what follows a contraction is better computed row by row than on the whole register tile at once.
pub fn heavy_epilogue(g: &Graph) -> bool {
    g.nodes.iter().filter(|n| crate::fuse::expensive(&n.op)).count() > 0 || g.nodes.len() > 24
}

/// Scratch for one register tile of results.
pub fn epilogue_view(e: &mut Emitter<'_>, ct: DType, rows: usize, columns: usize) -> Result<Val, Error> {
    let scratch = e.b.alloc(ct, rows * columns)?;
    let (zero, one) = (e.b.int(0), e.b.int(1));
    let (r, c) = (e.b.int(rows as i64), e.b.int(columns as i64));
    Ok(e.b.view(scratch, zero, &[r, c], &[c, one])?)
}

/// The place of a register tile of results, or of one of its rows.
pub type Place<'b> = dyn FnMut(&mut Emitter<'_>, Option<Val>) -> Result<Vec<Coord>, Error> + 'b;

/// Computes what follows `anchor` from its accumulators and stores the results. `coords` gives the place of the whole tile, or of
/// one of its rows; with scratch the work is done row by row.
pub fn epilogue(
    e: &mut Emitter<'_>,
    anchor: ValueId,
    acc: Val,
    scratch: Option<Val>,
    outs: &[Val],
    coords: &mut Place<'_>,
) -> Result<(), Error> {
    epilogue_of(e, anchor, acc, scratch, None, outs, coords)
}

/// As [`epilogue`], for no more than a number of rows where there is scratch.
fn epilogue_of(
    e: &mut Emitter<'_>,
    anchor: ValueId,
    acc: Val,
    scratch: Option<Val>,
    most: Option<Val>,
    outs: &[Val],
    coords: &mut Place<'_>,
) -> Result<(), Error> {
    let g = e.graph;
    let finish = |e: &mut Emitter<'_>, acc: Val, c: &[Coord]| -> Result<(), Error> {
        let t = e.b.cast(acc, g.dtype(anchor), CAST)?;
        e.bind(anchor, t);
        for (&v, &view) in g.outputs.iter().zip(outs) {
            let t = e.emit(v, c)?;
            e.store_view(view, t, c)?;
        }
        Ok(())
    };
    let Some(view) = scratch else {
        let c = coords(e, None)?;
        return finish(e, acc, &c);
    };
    let shape = e.shape.clone();
    let (zero, mut rows) = (e.b.int(0), e.b.int(shape[0] as i64));
    if let Some(most) = most {
        rows = e.b.min(rows, most)?;
    }
    e.b.store(view, acc, &[zero, zero], TileMap::along(&shape, &[0, 1]), &[true, true])?;
    let ct = e.b.dtype(acc);
    e.for_loop(zero, rows, 1, &[], |e, row, _| {
        let line = [1, shape[1]];
        e.shape = line.to_vec();
        let map = TileMap::along(&line, &[0, 1]);
        let acc = e.b.load(view, &[row, zero], map, &[true, true], zero_of(ct))?;
        let c = coords(e, Some(row))?;
        finish(e, acc, &c)?;
        Ok(vec![])
    })?;
    e.shape = shape;
    Ok(())
}
