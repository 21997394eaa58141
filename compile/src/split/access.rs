//! Parts of block accesses.

use tongtu_tensor::Num;
use tongtu_tensor::scalar::Binary;
use tongtu_tile::{Factor, Op, TileMap, Val};

use super::{Done, Part, Split, Stored};

/// The part size along a tile dim of these factors nearest to what is wished: it must divide the innermost factor.
pub(super) fn fitting(factors: &[Factor], wish: usize) -> usize {
    match factors {
        [] | [_] => wish,
        [.., inner] => (1..=wish.min(inner.size)).rev().find(|p| inner.size % p == 0).unwrap_or(1),
    }
}

/// Whether any part of the tile can be accessed: no tile dim has several factors.
pub(super) fn is_plain(map: &TileMap) -> bool {
    map.0.iter().all(|f| f.len() <= 1)
}

impl Split<'_> {
    /// The map and view index of a part of a block access.
    pub(super) fn part_access(
        &mut self,
        map: &TileMap,
        index: &[Val],
        part: &Part,
    ) -> Done<(TileMap, Vec<Val>)> {
        let mut index = index.to_vec();
        let mut out = Vec::with_capacity(map.0.len());
        for (i, factors) in map.0.iter().enumerate() {
            let (at, size) = (part.at[i], part.shape[i]);
            let full: usize = factors.iter().map(|f| f.size).product();
            if size == full {
                out.push(factors.clone());
                continue;
            }
            // Coordinates of the first element, innermost factor first.
            let mut rest = at;
            for (j, f) in factors.iter().enumerate().rev() {
                let n = self.b.int(f.size as i64);
                let c = if j == 0 { rest } else { self.b.binary(Binary::Rem, rest, n)? };
                rest = if j == 0 { rest } else { self.b.binary(Binary::Div, rest, n)? };
                if let Some(d) = f.dim {
                    let moved = self.b.mul_int(c, f.step)?;
                    index[d] = self.b.add(index[d], moved)?;
                }
            }
            out.push(factors.last().map(|f| vec![Factor { size, ..*f }]).unwrap_or_default());
        }
        Ok((TileMap(out), index))
    }

    fn stored_view(&mut self, s: &Stored, part: &Part) -> Done<(Val, Vec<Val>, TileMap)> {
        let zero = self.b.int(0);
        if s.shape.is_empty() {
            let one = self.b.int(1);
            let view = self.b.view(s.buffer, zero, &[one], &[one])?;
            return Ok((view, vec![zero], TileMap(Vec::new())));
        }
        if let (Some(width), [rows, columns]) = (s.panel, &s.shape[..]) {
            let panels = self.b.int(columns.div_ceil(width) as i64);
            let (rows_v, width_v) = (self.b.int(*rows as i64), self.b.int(width as i64));
            let (step, one) = (self.b.int((rows * width) as i64), self.b.int(1));
            let view = self.b.view(s.buffer, zero, &[panels, rows_v, width_v], &[step, width_v, one])?;
            let index = vec![self.b.div(part.at[1], width_v)?, part.at[0], zero];
            return Ok((view, index, TileMap::along(&part.shape, &[1, 2])));
        }
        let mut stride = 1;
        let (mut dims, mut strides) = (Vec::new(), Vec::new());
        for &n in s.shape.iter().rev() {
            dims.push(self.b.int(n as i64));
            strides.push(self.b.int(stride as i64));
            stride *= n;
        }
        dims.reverse();
        strides.reverse();
        let view = self.b.view(s.buffer, zero, &dims, &strides)?;
        let all: Vec<usize> = (0..s.shape.len()).collect();
        Ok((view, part.at.clone(), TileMap::along(&part.shape, &all)))
    }

    /// Reads a part of a stored tile.
    pub(super) fn fetch(&mut self, s: &Stored, part: &Part) -> Done<Val> {
        let (view, index, map) = self.stored_view(s, part)?;
        let pad = if self.b.dtype(s.buffer).is_float() { Num::Float(0.0) } else { Num::Int(0) };
        self.b.load(view, &index, map, &vec![true; index.len()], pad)
    }

    /// Writes a part of a stored tile.
    pub(super) fn put(&mut self, s: &Stored, part: &Part, value: Val) -> Done<()> {
        let (view, index, map) = self.stored_view(s, part)?;
        self.b.store(view, value, &index, map, &vec![true; index.len()])
    }

    /// New scratch for a tile.
    pub(super) fn scratch(&mut self, v: Val, shape: &[usize]) -> Done<Stored> {
        let d = self.kernel.ty(v).dtype();
        let len = shape.iter().product::<usize>().max(1);
        let buffer = self.b.add_inst(Op::Alloc { dtype: d, len }, &[])?[0];
        Ok(Stored { buffer, shape: shape.to_vec(), panel: None })
    }
}
