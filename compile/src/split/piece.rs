//! Computing a part of a lazy tile.

use std::rc::Rc;

use tongtu_tensor::scalar::{Binary, Compare};
use tongtu_tensor::{CastMode, DType, Num};
use tongtu_tile::{Factor, Inst, Op, TileMap, Val};

use super::access::is_plain;
use super::{Def, Done, Lazy, Part, Split};

/// Bytes of the right operand's panel that stay near over a product.
const NEAREST: usize = 32 << 10;

/// Dims other than 1.
fn core(shape: &[usize]) -> Vec<usize> {
    shape.iter().copied().filter(|&n| n != 1).collect()
}

/// Whether a reshape only adds or drops dims of 1.
pub(super) fn is_trivial(from: &[usize], to: &[usize]) -> bool {
    core(from) == core(to)
}

impl Split<'_> {
    /// A part of a tile, or a scalar, in the new kernel.
    pub(super) fn piece(&mut self, v: Val, part: &Part) -> Done<Val> {
        match self.defs.get(&v).cloned() {
            Some(Def::Whole(w)) => Ok(w),
            Some(Def::Stored(s)) => self.fetch(&s, part),
            Some(Def::Lazy(l)) => {
                let key = (v, part.clone());
                if let Some(&known) = self.memo.get(&key) {
                    return Ok(known);
                }
                let (flags, loc) = (self.b.flags, self.b.loc.clone());
                (self.b.flags, self.b.loc) = (l.inst.flags, l.inst.loc.clone());
                let r = self.compute(&l, part);
                (self.b.flags, self.b.loc) = (flags, loc);
                let r = r?;
                self.memo.insert(key, r);
                Ok(r)
            }
            None => self.broken("a value is not defined"),
        }
    }

    fn compute(&mut self, l: &Rc<Lazy>, part: &Part) -> Done<Val> {
        let ops = &l.inst.operands;
        match &l.inst.op {
            Op::Full { dtype, value, .. } => self.b.full(*dtype, &part.shape, *value),
            Op::Iota { dtype, dim, .. } => {
                let i = self.b.iota(*dtype, &part.shape, *dim)?;
                if self.b.as_int(part.at[*dim]) == Some(0) {
                    return Ok(i);
                }
                let at = self.b.cast(part.at[*dim], *dtype, CastMode::default())?;
                let at = self.b.broadcast(at, &part.shape)?;
                self.b.add(i, at)
            }
            Op::Broadcast { .. } => {
                let from = self.shape(ops[0]);
                let skip = part.shape.len() - from.len();
                let inner = Part {
                    at: (0..from.len())
                        .map(|i| if from[i] == 1 { self.b.int(0) } else { part.at[skip + i] })
                        .collect(),
                    shape: (0..from.len())
                        .map(|i| if from[i] == 1 { 1 } else { part.shape[skip + i] })
                        .collect(),
                };
                let x = self.piece(ops[0], &inner)?;
                self.b.broadcast(x, &part.shape)
            }
            Op::Reshape { .. } => {
                // Dims of 1 come and go; the others keep their order.
                let from = self.shape(ops[0]);
                let mut theirs = (0..l.shape.len()).filter(|&i| l.shape[i] != 1);
                let mut inner = Part { at: Vec::new(), shape: Vec::new() };
                for &n in &from {
                    let pair = if n == 1 { None } else { theirs.next() };
                    inner.at.push(pair.map_or_else(|| self.b.int(0), |i| part.at[i]));
                    inner.shape.push(pair.map_or(1, |i| part.shape[i]));
                }
                let x = self.piece(ops[0], &inner)?;
                self.b.reshape(x, &part.shape)
            }
            Op::Permute { perm } => {
                let mut inner = part.clone();
                for (i, &p) in perm.iter().enumerate() {
                    inner.at[p] = part.at[i];
                    inner.shape[p] = part.shape[i];
                }
                let x = self.piece(ops[0], &inner)?;
                self.b.permute(x, perm)
            }
            Op::Extract { offset, .. } => {
                let mut inner = part.clone();
                for (at, &o) in inner.at.iter_mut().zip(offset) {
                    *at = self.b.add_int(*at, o as i64)?;
                }
                self.piece(ops[0], &inner)
            }
            Op::Load { map, inside, pad, masked } => {
                let view = self.whole(ops[0])?;
                let rank = inside.len();
                let index = self.wholes(&ops[1..=rank])?;
                let (map, index) = self.part_access(map, &index, part)?;
                let mut operands = vec![view];
                operands.extend(index);
                if *masked {
                    operands.push(self.piece(ops[1 + rank], part)?);
                }
                let op = Op::Load { map, inside: inside.clone(), pad: *pad, masked: *masked };
                Ok(self.b.add_inst(op, &operands)?[0])
            }
            Op::Gather { .. } => {
                let mut operands = vec![self.whole(ops[0])?];
                for &o in &ops[1..] {
                    operands.push(self.piece(o, part)?);
                }
                Ok(self.b.add_inst(l.inst.op.clone(), &operands)?[0])
            }
            Op::TakeAlong { dim } => self.take(ops[0], ops[1], *dim, part),
            Op::Mma {} => self.product(l, part),
            op => {
                let operands = ops.iter().map(|&o| self.piece(o, part)).collect::<Done<Vec<_>>>()?;
                Ok(self.b.add_inst(op.clone(), &operands)?[0])
            }
        }
    }

    /// Elements of a stored tile at indices along a dim.
    fn take(&mut self, x: Val, index: Val, dim: usize, part: &Part) -> Done<Val> {
        let Some(Def::Stored(s)) = self.defs.get(&x).cloned() else {
            return self.broken("an indexed tile is not stored");
        };
        let i = self.piece(index, part)?;
        let i = self.b.cast(i, DType::I64, CastMode::default())?;
        let zero = self.b.splat(DType::I64, &part.shape, 0.0)?;
        let n = self.b.splat(DType::I64, &part.shape, s.shape[dim] as f64)?;
        let (above, below) = (self.b.compare(Compare::Ge, i, zero)?, self.b.compare(Compare::Lt, i, n)?);
        let mask = self.b.binary(Binary::And, above, below)?;
        let (mut at, mut stride) = (zero, 1);
        for d in (0..s.shape.len()).rev() {
            let c = if d == dim {
                i
            } else {
                let c = self.b.iota(DType::I64, &part.shape, d)?;
                let base = self.b.broadcast(part.at[d], &part.shape)?;
                self.b.add(c, base)?
            };
            let step = self.b.splat(DType::I64, &part.shape, stride as f64)?;
            let c = self.b.mul(c, step)?;
            at = self.b.add(at, c)?;
            stride *= s.shape[d];
        }
        let pad = if self.b.dtype(s.buffer).is_float() { Num::Float(0.0) } else { Num::Int(0) };
        self.b.gather(s.buffer, at, Some(mask), pad)
    }

    /// A register tile of a matrix product: outer products over the summed dim.
    fn product(&mut self, l: &Lazy, part: &Part) -> Done<Val> {
        let [acc, a, b] = l.inst.operands[..] else {
            return self.broken("a product of other than 3 operands");
        };
        let (k, result) = (self.shape(a)[1], l.inst.results[0]);
        let init = self.piece(acc, part)?;
        let bounds = (self.b.int(0), self.b.int(k as i64), self.b.int(1));
        let (m, n) = (part.clone(), part.clone());
        let flags = l.inst.flags;
        let r = self.for_loop(bounds, &[init], |s, i, carried| {
            let left = Part { at: vec![m.at[0], i], shape: vec![m.shape[0], 1] };
            let right = Part { at: vec![i, n.at[1]], shape: vec![1, n.shape[1]] };
            let x = s.piece(a, &left)?;
            let y = match s.panels.get(&result).cloned() {
                Some(panels) => s.fetch(&panels, &right)?,
                None => s.piece(b, &right)?,
            };
            s.b.flags = flags;
            Ok(vec![s.b.mma(carried[0], x, y)?])
        })?;
        Ok(r[0])
    }

    /// Whether computing a tile again costs little: constants, loads, and copies of them or of scratch.
    pub(super) fn is_cheap(&self, v: Val) -> bool {
        match self.defs.get(&v) {
            Some(Def::Lazy(l)) => match &l.inst.op {
                Op::Full { .. } | Op::Iota { .. } => true,
                Op::Load { map, masked, .. } => is_plain(map) && !masked,
                Op::Broadcast { .. } | Op::Reshape { .. } | Op::Extract { .. } => {
                    l.inst.operands.iter().all(|&o| self.is_cheap(o))
                }
                _ => false,
            },
            Some(_) => true,
            None => false,
        }
    }

    /// The load that a lazy tile is, if any part of it can be read with nothing to check.
    fn inside_load(&self, v: Val) -> Option<(&Inst, &TileMap)> {
        let Some(Def::Lazy(l)) = self.defs.get(&v) else { return None };
        match &l.inst.op {
            Op::Load { map, masked, inside, .. } if is_plain(map) && !masked && inside.iter().all(|i| *i) => {
                Some((&l.inst, map))
            }
            _ => None,
        }
    }

    /// Whether a tile is a load with nothing to check.
    pub(super) fn is_inside(&self, v: Val) -> bool {
        self.inside_load(v).is_some()
    }

    /// Whether the rows of a tile that is such a load lie element by element in memory.
    pub(super) fn is_dense(&self, v: Val) -> bool {
        self.inside_load(v).is_some_and(|(inst, map)| {
            let last = inst.operands.len() - 2;
            let along = |f: &Factor| f.dim == Some(last) && f.step == 1;
            self.dense.contains(&inst.operands[0])
                && matches!(map.0.last().map(Vec::as_slice), Some([f]) if along(f))
        })
    }

    /// The register tile of the matrix product that a lazy tile still has to compute; `None` if there is none.
    pub(super) fn pending_product(&self, v: Val) -> Option<(usize, usize)> {
        match self.defs.get(&v) {
            Some(Def::Lazy(l)) if matches!(l.inst.op, Op::Mma {}) => Some(self.product_tile(&l.inst)),
            Some(Def::Lazy(l)) => l.inst.operands.iter().find_map(|&o| self.pending_product(o)),
            _ => None,
        }
    }

    /// The size of parts for a tile, given what it takes to compute it.
    pub(super) fn choose(&self, v: Val, shape: &[usize]) -> Vec<usize> {
        let lanes = self.registers.lanes(self.widest(v));
        let rank = shape.len();
        let mut piece = vec![1; rank];
        if let (Some((m, n)), 2) = (self.pending_product(v), rank) {
            return vec![m, n];
        }
        let mut room = 4 * lanes;
        for d in (0..rank).rev() {
            piece[d] = shape[d].min(room);
            room /= piece[d].max(1);
            if piece[d] < shape[d] || room <= 1 {
                break;
            }
        }
        piece
    }

    /// The widest element type that computing a tile meets, as far as lazy tiles go.
    fn widest(&self, v: Val) -> DType {
        let own = self.kernel.ty(v).dtype();
        let mut best = if own.bits() < 32 { DType::F32 } else { own };
        if let Some(Def::Lazy(l)) = self.defs.get(&v) {
            for &o in l.inst.operands.iter().filter(|&&o| self.is_tile(o)) {
                let d = self.widest(o);
                if d.bits() > best.bits() {
                    best = d;
                }
            }
        }
        best
    }

    /// Rows and columns of the accumulators of a product: those with the fewest loads for each multiply-add that leave
    /// registers for the operands, counting what the edges waste and keeping a panel of the right operand in the nearest cache.
    pub(super) fn product_tile(&self, product: &Inst) -> (usize, usize) {
        let (shape, d) = (self.shape(product.operands[0]), self.kernel.ty(product.operands[0]).dtype());
        let k = self.shape(product.operands[1]).get(1).copied().unwrap_or(1);
        let (m, n, lanes) = (shape[0], shape[1], self.registers.lanes(d));
        let mut best = (f64::INFINITY, (1, lanes.min(n)));
        for vectors in 1..=4usize {
            let columns = (vectors * lanes).min(n);
            if vectors > 1 && (vectors - 1) * lanes >= n {
                break;
            }
            let spill = if vectors > 1 && k * columns * d.bits() as usize / 8 > NEAREST { 1.5 } else { 1.0 };
            for rows in 1..=m {
                let accumulators = rows * vectors;
                if accumulators + vectors + 1 > self.registers.count {
                    break;
                }
                let loads = (rows + vectors) as f64 / accumulators as f64;
                let latency = 8.0 / accumulators.min(8) as f64;
                let waste = |n: usize, p: usize| (n.div_ceil(p) * p) as f64 / n as f64;
                let cost = (1.0 + loads) * latency * spill * waste(m, rows) * waste(n, columns);
                if cost < best.0 {
                    best = (cost, (rows, columns));
                }
            }
        }
        best.1
    }
}
