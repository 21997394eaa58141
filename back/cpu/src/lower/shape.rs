//! Constants and instructions that only move elements.

use super::emit::{self, Reg, V};
use super::layout::steps;
use super::{Fun, Result, broken};
use tongtu_tensor::{DType, Num};
use tongtu_tile::Inst;

/// The coordinates of a row-major position.
fn coordinates(mut position: usize, shape: &[usize]) -> Vec<usize> {
    let mut out = vec![0; shape.len()];
    for i in (0..shape.len()).rev() {
        out[i] = position % shape[i];
        position /= shape[i];
    }
    out
}

impl Fun<'_> {
    pub(super) fn full(&mut self, inst: &Inst, dtype: DType, shape: &[usize], value: Num) -> Result<()> {
        let geo = self.geometry(shape);
        let parts = (0..geo.parts()).map(|p| emit::constant(dtype, value, geo.chunk(p).width)).collect();
        self.set(inst.results[0], parts)
    }

    pub(super) fn iota(&mut self, inst: &Inst, dtype: DType, shape: &[usize], dim: usize) -> Result<()> {
        let (geo, reg, steps) = (self.geometry(shape), Reg::of(dtype), steps(shape));
        let wrapped = |i: usize| match dtype.decode(i as u64) {
            Num::Int(x) => x as i64,
            Num::Float(_) => 0,
        };
        let mut parts = Vec::with_capacity(geo.parts());
        for part in 0..geo.parts() {
            let chunk = geo.chunk(part);
            let at = part / geo.chunks.len() * geo.n + chunk.start;
            let index = |i: usize| wrapped((at + i) / steps[dim] % shape[dim]);
            if dim + 1 < shape.len() || chunk.width == 1 {
                parts.push(emit::int(reg, index(0), chunk.width));
            } else {
                let one = reg.ty(1);
                let lanes: Vec<String> = (0..chunk.width)
                    .map(|i| format!("{one} {}", emit::int(reg, index(i.min(chunk.valid - 1)), 1)))
                    .collect();
                parts.push(format!("<{}>", lanes.join(", ")).into());
            }
        }
        self.set(inst.results[0], parts)
    }

    fn source(&mut self, inst: &Inst, i: usize) -> Result<(Reg, Vec<usize>, Vec<V>)> {
        let v = *inst.operands.get(i).ok_or_else(|| broken("an operand is missing"))?;
        let parts = self.operand(v)?;
        let tile = self.tile(v)?;
        Ok((Reg::of(tile.dtype), tile.shape.clone(), parts))
    }

    pub(super) fn broadcast(&mut self, inst: &Inst, shape: &[usize]) -> Result<()> {
        let x = self.source(inst, 0)?;
        let pad = shape.len() - x.1.len();
        let from = steps(&x.1);
        let old = x.1.clone();
        if old.last().is_none_or(|n| *n == 1) && shape.last().is_some_and(|n| *n > 1) {
            // One element a row: spread it once for all chunks of the row.
            let geo = self.geometry(shape);
            let outer = &shape[..shape.len() - 1];
            let mut parts = Vec::with_capacity(geo.parts());
            let mut spread: std::collections::HashMap<(V, usize), V> = std::collections::HashMap::new();
            for row in 0..geo.rows {
                let at = coordinates(row, outer);
                let position: usize = (0..old.len().saturating_sub(1))
                    .map(|d| if old[d] == 1 { 0 } else { at[d + pad] * from[d] })
                    .sum();
                for chunk in &geo.chunks {
                    let key = (x.2[position].clone(), chunk.width);
                    let v = match spread.get(&key) {
                        Some(v) => v.clone(),
                        None => self.spread(x.0, &key.0, chunk.width),
                    };
                    spread.insert(key, v.clone());
                    parts.push(v);
                }
            }
            return self.set(inst.results[0], parts);
        }
        let parts = self.rearrange(&[x], shape, |p| {
            let at = coordinates(p, shape);
            (0, (0..old.len()).map(|d| if old[d] == 1 { 0 } else { at[d + pad] * from[d] }).sum())
        });
        self.set(inst.results[0], parts)
    }

    pub(super) fn reshape(&mut self, inst: &Inst) -> Result<()> {
        let x = self.source(inst, 0)?;
        let (_, shape) = self.tile_ty(inst.results[0])?;
        let parts = self.rearrange(&[x], shape, |p| (0, p));
        self.set(inst.results[0], parts)
    }

    pub(super) fn extract(&mut self, inst: &Inst, offset: &[usize]) -> Result<()> {
        let x = self.source(inst, 0)?;
        let (_, shape) = self.tile_ty(inst.results[0])?;
        let from = steps(&x.1);
        let parts = self.rearrange(&[x], shape, |p| {
            let at = coordinates(p, shape);
            (0, (0..at.len()).map(|d| (at[d] + offset[d]) * from[d]).sum())
        });
        self.set(inst.results[0], parts)
    }

    pub(super) fn concat(&mut self, inst: &Inst, dim: usize) -> Result<()> {
        let tiles = (0..inst.operands.len()).map(|i| self.source(inst, i)).collect::<Result<Vec<_>>>()?;
        let (_, shape) = self.tile_ty(inst.results[0])?;
        let sizes: Vec<usize> = tiles.iter().map(|t| t.1[dim]).collect();
        let from: Vec<Vec<usize>> = tiles.iter().map(|t| steps(&t.1)).collect();
        let parts = self.rearrange(&tiles, shape, |p| {
            let mut at = coordinates(p, shape);
            let mut tile = 0;
            while at[dim] >= sizes[tile] {
                at[dim] -= sizes[tile];
                tile += 1;
            }
            (tile, (0..at.len()).map(|d| at[d] * from[tile][d]).sum())
        });
        self.set(inst.results[0], parts)
    }

    pub(super) fn permute(&mut self, inst: &Inst, perm: &[usize]) -> Result<()> {
        let x = self.source(inst, 0)?;
        let (_, shape) = self.tile_ty(inst.results[0])?;
        let from = steps(&x.1);
        if let Some(parts) = self.transpose(&x, shape, perm) {
            return self.set(inst.results[0], parts);
        }
        let parts = self.rearrange(&[x], shape, |p| {
            let at = coordinates(p, shape);
            (0, (0..at.len()).map(|d| at[d] * from[perm[d]]).sum())
        });
        self.set(inst.results[0], parts)
    }

    /// A swap of the last two dims whose sizes are powers of two of at least 4: blocks of equal sides are
    /// transposed by rounds of two-vector interleaves, n log n shuffles in place of n².
    fn transpose(
        &mut self,
        x: &(Reg, Vec<usize>, Vec<V>),
        shape: &[usize],
        perm: &[usize],
    ) -> Option<Vec<V>> {
        let rank = shape.len();
        if rank < 2 || (0..rank - 2).any(|d| perm[d] != d) || perm[rank - 1] != rank - 2 {
            return None;
        }
        let (m, n) = (x.1[rank - 2], x.1[rank - 1]);
        let side = m.min(n).min(self.lanes);
        if side < 4 || m % side != 0 || n % side != 0 || !side.is_power_of_two() {
            return None;
        }
        // Chunks of the operand and of the result must be made of whole sides.
        let (old, new) = (self.geometry(&x.1), self.geometry(shape));
        if old.chunks.iter().chain(&new.chunks).any(|c| c.width % side != 0 || c.valid != c.width) {
            return None;
        }
        let outer: usize = shape[..rank - 2].iter().product();
        let mut out: Vec<V> = Vec::with_capacity(new.parts());
        for o in 0..outer {
            // blocks[bi][bj][r]: row r of the transposed block at block row bj, block column bi of the result.
            let mut blocks: Vec<Vec<Vec<V>>> = Vec::new();
            for bi in 0..m / side {
                let mut row = Vec::new();
                for bj in 0..n / side {
                    let rows: Vec<V> = (0..side)
                        .map(|r| {
                            let position = (o * m + bi * side + r) * n + bj * side;
                            let (part, lane) = old.find(position, self.lanes);
                            let width = old.chunk(part).width;
                            let from: Vec<(usize, usize)> = (0..side).map(|i| (0, lane + i)).collect();
                            self.assemble(x.0, &[(x.2[part].clone(), width)], &from, side)
                        })
                        .collect();
                    row.push(self.transpose_block(x.0, rows));
                }
                blocks.push(row);
            }
            for j in 0..n {
                for chunk in &new.chunks {
                    let parts: Vec<(V, usize)> = (0..chunk.width / side)
                        .map(|b| (blocks[chunk.start / side + b][j / side][j % side].clone(), side))
                        .collect();
                    let from: Vec<(usize, usize)> = (0..chunk.width).map(|i| (i / side, i % side)).collect();
                    out.push(self.assemble(x.0, &parts, &from, chunk.width));
                }
            }
        }
        Some(out)
    }

    /// Transposes a square of `rows.len()` vectors of as many lanes, a power of two.
    fn transpose_block(&mut self, reg: Reg, mut rows: Vec<V>) -> Vec<V> {
        let n = rows.len();
        let mut step = 1;
        while step < n {
            // Swap the off-diagonal halves of every 2*step square.
            for r in (0..n).filter(|r| r & step == 0) {
                let (a, b) = (rows[r].clone(), rows[r + step].clone());
                let low: Vec<Option<usize>> =
                    (0..n).map(|c| Some(if c & step == 0 { c } else { n + c - step })).collect();
                let high: Vec<Option<usize>> =
                    (0..n).map(|c| Some(if c & step == 0 { c + step } else { n + c })).collect();
                rows[r] = self.shuffle(reg, &a, &b, n, &low);
                rows[r + step] = self.shuffle(reg, &a, &b, n, &high);
            }
            step *= 2;
        }
        rows
    }
}
