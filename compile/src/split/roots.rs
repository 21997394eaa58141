//! The walk over the old kernel: what is computed at once, where, and into what.

use std::rc::Rc;

use tongtu_tensor::{Combiner, DType, Num};
use tongtu_tile::{Block, Inst, Op, Val};

use super::access::{fitting, is_plain};
use super::piece::is_trivial;
use super::{Def, Done, Lazy, Part, Split, Stored};

/// Register tiles of rows that may read a product's right operand where it lies; more of them read it from panels.
const DIRECT: usize = 3;

/// The element that changes nothing, the sign of a zero included.
fn identity(combiner: Combiner, d: DType) -> Num {
    match combiner {
        Combiner::Add if d.is_float() => Num::Float(-0.0),
        _ => combiner.identity(d),
    }
}

/// The index that loses against every other, for an arg-combiner.
fn losing_index(combiner: Combiner, d: DType) -> Num {
    match combiner {
        Combiner::ArgMaxLast | Combiner::ArgMinLast => d.min_value(),
        _ => d.max_value(),
    }
}

impl Split<'_> {
    pub(super) fn block(&mut self, block: &Block) -> Done<()> {
        block.insts.iter().try_for_each(|i| {
            (self.b.flags, self.b.loc) = (i.flags, i.loc.clone());
            self.inst(i)
        })
    }

    fn inst(&mut self, inst: &Inst) -> Done<()> {
        match &inst.op {
            Op::For {} | Op::While {} => return self.repeat(inst),
            Op::If {} => return self.choice(inst),
            Op::Store { .. } => return self.write(inst),
            Op::Prefetch {} => {
                let operands = self.wholes(&inst.operands)?;
                self.b.add_inst(inst.op.clone(), &operands)?;
                return Ok(());
            }
            Op::Scatter { .. } | Op::AtomicReduce { .. } | Op::AtomicRmw { .. } | Op::AtomicCas { .. } => {
                return self.indexed_write(inst);
            }
            Op::Reduce { combiner, dims } => return self.reduce(inst, *combiner, dims),
            Op::Scan { combiner, dim, reverse } => return self.scan(inst, *combiner, *dim, *reverse),
            Op::Concat { dim } => return self.concat(inst, *dim),
            _ => {}
        }
        let Some(&result) = inst.results.first() else {
            return self.broken("an instruction without a result");
        };
        let tiles = self.is_tile(result) || inst.operands.iter().any(|&o| self.is_tile(o));
        if !tiles {
            let operands = self.wholes(&inst.operands)?;
            let r = self.b.add_inst(inst.op.clone(), &operands)?;
            self.defs.insert(result, Def::Whole(r[0]));
            if matches!(inst.op, Op::View { .. })
                && operands.last().and_then(|&s| self.b.as_int(s)) == Some(1)
            {
                self.dense.insert(result);
            }
            return Ok(());
        }
        let shape = self.shape(result);
        if let Op::Reshape { .. } = inst.op {
            let from = self.shape(inst.operands[0]);
            if !is_trivial(&from, &shape) {
                let s = self.stored(inst.operands[0])?;
                self.defs.insert(result, Def::Stored(Stored { shape, ..s }));
                return Ok(());
            }
        }
        if let Op::TakeAlong { .. } = inst.op {
            let s = self.stored(inst.operands[0])?;
            self.defs.insert(inst.operands[0], Def::Stored(s));
        }
        self.settle_products(inst)?;
        if let Op::Mma {} = inst.op {
            // Operands are read many times: the left one element by element, the right one panel by panel.
            let (a, b) = (inst.operands[1], inst.operands[2]);
            if !self.is_inside(a) {
                let s = self.stored(a)?;
                self.defs.insert(a, Def::Stored(s));
            }
            let (rows, width) = self.product_tile(inst);
            if !(self.is_inside(b) && self.is_dense(b) && shape[0].div_ceil(rows) <= DIRECT) {
                let s = self.panels(b, width)?;
                self.panels.insert(result, s);
            }
        }
        let lazy = Rc::new(Lazy { inst: inst.clone(), shape });
        self.defs.insert(result, Def::Lazy(lazy));
        if !self.is_tile(result) {
            let r = self.piece(result, &Part { at: vec![], shape: vec![] })?;
            self.defs.insert(result, Def::Whole(r));
            return Ok(());
        }
        let reads_written = match inst.op {
            Op::Load { .. } | Op::Gather { .. } => self.uses.is_written(inst.operands[0]),
            _ => false,
        };
        let irregular = matches!(&inst.op, Op::Load { map, .. } if !is_plain(map));
        let postponed = self.is_cheap(result) || self.uses.is_private(result);
        if !self.uses.is_dead(result) && (reads_written || irregular || !postponed) {
            let s = self.stored(result)?;
            self.defs.insert(result, Def::Stored(s));
        } else if reads_written && self.uses.is_dead(result) {
            self.defs.remove(&result);
        }
        Ok(())
    }

    /// A tile in scratch, computed now if it is not there already.
    fn stored(&mut self, v: Val) -> Done<Stored> {
        if let Some(Def::Stored(s)) = self.defs.get(&v) {
            return Ok(s.clone());
        }
        let shape = self.shape(v);
        let s = self.scratch(v, &shape)?;
        self.compute_into(v, &s)?;
        Ok(s)
    }

    /// The right operand of a product in panels of `width` columns.
    fn panels(&mut self, v: Val, width: usize) -> Done<Stored> {
        let shape = self.shape(v);
        let padded = [shape[0], shape[1].next_multiple_of(width)];
        let s = self.scratch(v, &padded)?;
        let s = Stored { shape: shape.clone(), panel: Some(width), ..s };
        self.parts(&shape, &[1, width], &mut |m, part| {
            let x = m.piece(v, part)?;
            m.put(&s, part, x)
        })?;
        Ok(s)
    }

    /// Parts of a product are whole register tiles at multiples of their size, so that panels are read whole: what would ask for
    /// others gets the product from scratch.
    fn settle_products(&mut self, inst: &Inst) -> Done<()> {
        let moves = matches!(
            inst.op,
            Op::Permute { .. }
                | Op::Extract { .. }
                | Op::Reshape { .. }
                | Op::Broadcast { .. }
                | Op::TakeAlong { .. }
                | Op::Mma {}
                | Op::Gather { .. }
                | Op::Load { .. }
        );
        let mut pending = false;
        for &o in &inst.operands {
            if self.pending_product(o).is_none() {
                continue;
            }
            if moves || pending {
                let s = self.stored(o)?;
                self.defs.insert(o, Def::Stored(s));
            }
            pending = true;
        }
        Ok(())
    }

    /// Computes a tile into scratch.
    fn compute_into(&mut self, v: Val, to: &Stored) -> Done<()> {
        let shape = self.shape(v);
        let mut piece = self.choose(v, &shape);
        if let Some(Def::Lazy(l)) = self.defs.get(&v)
            && let Op::Load { map, .. } = &l.inst.op
        {
            piece.iter_mut().zip(&map.0).for_each(|(p, f)| *p = fitting(f, *p));
        }
        self.parts(&shape, &piece, &mut |s, part| {
            let x = s.piece(v, part)?;
            s.put(to, part, x)
        })
    }

    fn write(&mut self, inst: &Inst) -> Done<()> {
        let Op::Store { map, inside, masked } = &inst.op else { return self.broken("no store") };
        let ops = &inst.operands;
        let rank = inside.len();
        let shape = map.shape();
        if self.pending_product(ops[1]).is_some() && !is_plain(map) {
            let s = self.stored(ops[1])?;
            self.defs.insert(ops[1], Def::Stored(s));
        }
        let mut piece = self.choose(ops[1], &shape);
        piece.iter_mut().zip(&map.0).for_each(|(p, f)| *p = fitting(f, *p));
        let view = self.whole(ops[0])?;
        let index = self.wholes(&ops[2..2 + rank])?;
        self.parts(&shape, &piece, &mut |s, part| {
            let x = s.piece(ops[1], part)?;
            let (map, index) = s.part_access(map, &index, part)?;
            let mut operands = vec![view, x];
            operands.extend(index);
            if *masked {
                operands.push(s.piece(ops[2 + rank], part)?);
            }
            s.b.add_inst(Op::Store { map, inside: inside.clone(), masked: *masked }, &operands).map(|_| ())
        })
    }

    /// Scatters and atomics, in row-major order.
    fn indexed_write(&mut self, inst: &Inst) -> Done<()> {
        for &o in &inst.operands {
            if self.pending_product(o).is_some() {
                let s = self.stored(o)?;
                self.defs.insert(o, Def::Stored(s));
            }
        }
        let ops = &inst.operands;
        let shape = self.shape(ops[1]);
        let buffer = self.whole(ops[0])?;
        let result = inst.results.first().copied();
        let to = match result {
            Some(r) if self.is_tile(r) => Some(self.scratch(r, &shape)?),
            _ => None,
        };
        let mut piece = vec![1; shape.len()];
        if let Some(last) = piece.last_mut() {
            *last = self.registers.lanes(DType::F32);
        }
        self.parts(&shape, &piece, &mut |s, part| {
            let mut operands = vec![buffer];
            for &o in &ops[1..] {
                operands.push(s.piece(o, part)?);
            }
            let r = s.b.add_inst(inst.op.clone(), &operands)?;
            match (&to, result, r.first()) {
                (Some(to), _, Some(&r)) => s.put(to, part, r),
                (None, Some(result), Some(&r)) => {
                    s.defs.insert(result, Def::Whole(r));
                    Ok(())
                }
                _ => Ok(()),
            }
        })?;
        if let (Some(r), Some(to)) = (result, to) {
            self.defs.insert(r, Def::Stored(to));
        }
        Ok(())
    }

    fn concat(&mut self, inst: &Inst, dim: usize) -> Done<()> {
        let result = inst.results[0];
        let shape = self.shape(result);
        let to = self.scratch(result, &shape)?;
        let mut base = 0;
        for &o in &inst.operands {
            let from = self.shape(o);
            let piece = self.choose(o, &from);
            self.parts(&from, &piece, &mut |s, part| {
                let x = s.piece(o, part)?;
                let mut there = part.clone();
                there.at[dim] = s.b.add_int(there.at[dim], base)?;
                s.put(&to, &there, x)
            })?;
            base += from[dim] as i64;
        }
        self.defs.insert(result, Def::Stored(to));
        Ok(())
    }

    fn reduce(&mut self, inst: &Inst, combiner: Combiner, dims: &[usize]) -> Done<()> {
        let xs = inst.operands.clone();
        let shape = self.shape(xs[0]);
        if xs.len() > 1 {
            // Several operands are read together.
            for &x in &xs {
                if self.pending_product(x).is_some() || !self.is_cheap(x) && !self.uses.is_private(x) {
                    let s = self.stored(x)?;
                    self.defs.insert(x, Def::Stored(s));
                }
            }
        }
        let Some(&inner) = dims.last() else {
            // Nothing is reduced.
            for (&x, &r) in xs.iter().zip(&inst.results) {
                let d = self.defs.get(&x).cloned();
                d.map(|d| self.defs.insert(r, d));
            }
            return Ok(());
        };
        let mut piece = self.choose(xs[0], &shape);
        for &d in &dims[..dims.len() - 1] {
            piece[d] = 1;
        }
        let kept: Vec<usize> = (0..shape.len()).filter(|d| !dims.contains(d)).collect();
        let pick = |s: &[usize]| kept.iter().map(|&d| s[d]).collect::<Vec<usize>>();
        let (kept_shape, kept_piece) = (pick(&shape), pick(&piece));
        let to: Vec<Option<Stored>> = inst
            .results
            .iter()
            .map(|&r| if self.is_tile(r) { self.scratch(r, &kept_shape).map(Some) } else { Ok(None) })
            .collect::<Done<_>>()?;
        let flags = inst.flags;
        self.parts(&kept_shape, &kept_piece, &mut |s, part| {
            let full: Vec<usize> = {
                let mut it = part.shape.iter();
                (0..shape.len())
                    .map(|d| {
                        if dims.contains(&d) {
                            piece[d].min(shape[d])
                        } else {
                            it.next().copied().unwrap_or(1)
                        }
                    })
                    .collect()
            };
            let r = s.reduce_part(&xs, combiner, dims, inner, &shape, &full, part, flags)?;
            for ((to, &result), r) in to.iter().zip(&inst.results).zip(r) {
                match to {
                    Some(to) => s.put(to, part, r)?,
                    None => {
                        s.defs.insert(result, Def::Whole(r));
                    }
                }
            }
            Ok(())
        })?;
        for (&r, to) in inst.results.iter().zip(to) {
            if let Some(to) = to {
                self.defs.insert(r, Def::Stored(to));
            }
        }
        Ok(())
    }

    /// One part of a reduction's results: partial accumulators over whole pieces, then what is left of the inner dim.
    #[allow(clippy::too_many_arguments)]
    fn reduce_part(
        &mut self,
        xs: &[Val],
        combiner: Combiner,
        dims: &[usize],
        inner: usize,
        shape: &[usize],
        piece: &[usize],
        part: &Part,
        flags: tongtu_tile::Flags,
    ) -> Done<Vec<Val>> {
        let op = Op::Reduce { combiner, dims: dims.to_vec() };
        let ds: Vec<DType> = xs.iter().map(|&x| self.kernel.ty(x).dtype()).collect();
        // One operand keeps a whole piece of partial results; a pair is reduced piece by piece.
        let single = xs.len() == 1;
        let acc_shape = if single { piece.to_vec() } else { part.shape.clone() };
        let mut init = Vec::new();
        for (i, &d) in ds.iter().enumerate() {
            let value = if i == 0 { identity(combiner, d) } else { losing_index(combiner, d) };
            init.push(self.b.full(d, &acc_shape, value)?);
        }
        let tail = shape[inner] % piece[inner];
        if single && tail > 0 {
            init.push(self.b.full(ds[0], &part.shape, identity(combiner, ds[0]))?);
        }
        let mut at = vec![None; shape.len()];
        let mut kept = part.at.iter();
        for (d, slot) in at.iter_mut().enumerate() {
            if !dims.contains(&d) {
                *slot = kept.next().copied();
            }
        }
        let job = Job { xs, combiner, op: &op, shape, piece, kept: &part.shape, inner, tail, flags };
        let out = self.reduce_over(&job, dims, &mut at, &init)?;
        if !single {
            return Ok(out);
        }
        self.b.flags = flags;
        let r = self.b.add_inst(op.clone(), &out[..1])?[0];
        match out.get(1) {
            Some(&rest) => Ok(vec![self.combined(combiner, r, rest)?]),
            None => Ok(vec![r]),
        }
    }

    fn combined(&mut self, combiner: Combiner, a: Val, b: Val) -> Done<Val> {
        match combiner.binary() {
            Some(op) => self.b.binary(op, a, b),
            None => self.broken("a combiner of other than one operand"),
        }
    }

    /// Loops over the reduced dims, outermost first, carrying the accumulators.
    fn reduce_over(
        &mut self,
        job: &Job<'_>,
        dims: &[usize],
        at: &mut Vec<Option<Val>>,
        acc: &[Val],
    ) -> Done<Vec<Val>> {
        let Some((&d, rest)) = dims.split_first() else { return self.reduce_step(job, at, job.piece, acc) };
        let (n, p) = (job.shape[d], job.piece[d]);
        let whole = n / p * p;
        let mut acc = acc.to_vec();
        if whole == p {
            at[d] = Some(self.b.int(0));
            acc = self.reduce_over(job, rest, at, &acc)?;
        } else {
            let bounds = (self.b.int(0), self.b.int(whole as i64), self.b.int(p as i64));
            let mut inner_at = at.clone();
            acc = self.for_loop(bounds, &acc, |s, i, carried| {
                inner_at[d] = Some(i);
                s.reduce_over(job, rest, &mut inner_at, carried)
            })?;
        }
        if d == job.inner && job.tail > 0 {
            at[d] = Some(self.b.int(whole as i64));
            let mut piece = job.piece.to_vec();
            piece[d] = job.tail;
            acc = self.reduce_step(job, at, &piece, &acc)?;
        }
        Ok(acc)
    }

    /// Combines one piece into the accumulators.
    fn reduce_step(
        &mut self,
        job: &Job<'_>,
        at: &[Option<Val>],
        piece: &[usize],
        acc: &[Val],
    ) -> Done<Vec<Val>> {
        let zero = self.b.int(0);
        let part = Part { at: at.iter().map(|a| a.unwrap_or(zero)).collect(), shape: piece.to_vec() };
        let parts = job.xs.iter().map(|&x| self.piece(x, &part)).collect::<Done<Vec<_>>>()?;
        self.b.flags = job.flags;
        if let [x] = parts[..] {
            let mut out = acc.to_vec();
            if piece == job.piece {
                out[0] = self.combined(job.combiner, acc[0], x)?;
            } else {
                let r = self.b.add_inst(job.op.clone(), &[x])?[0];
                out[1] = self.combined(job.combiner, acc[1], r)?;
            }
            return Ok(out);
        }
        let r = self.b.add_inst(job.op.clone(), &parts)?;
        // Old and new side by side, reduced to one.
        let mut wide = job.kept.to_vec();
        wide.push(1);
        let mut both = Vec::new();
        for (&a, &r) in acc.iter().zip(&r) {
            let (a, r) = (self.b.reshape(a, &wide)?, self.b.reshape(r, &wide)?);
            both.push(self.b.concat(&[a, r], wide.len() - 1)?);
        }
        self.b.add_inst(Op::Reduce { combiner: job.combiner, dims: vec![wide.len() - 1] }, &both)
    }

    fn scan(&mut self, inst: &Inst, combiner: Combiner, dim: usize, reverse: bool) -> Done<()> {
        for &o in &inst.operands {
            if self.pending_product(o).is_some() {
                let s = self.stored(o)?;
                self.defs.insert(o, Def::Stored(s));
            }
        }
        let shape = self.shape(inst.results[0]);
        let to = inst.results.iter().map(|&r| self.scratch(r, &shape)).collect::<Done<Vec<_>>>()?;
        let flags = inst.flags;
        let mut kept = self.choose(inst.operands[0], &shape);
        let width = if inst.operands.len() == 1 { kept[dim].max(1) } else { shape[dim] };
        kept[dim] = shape[dim];
        if dim + 1 < shape.len() {
            // The scanned dim is walked one by one, the others lie along vectors.
            kept[dim] = shape[dim];
        }
        let op = inst.op.clone();
        self.parts(&shape, &kept, &mut |s, part| {
            if inst.operands.len() > 1 || shape[dim] <= width {
                let xs = inst.operands.iter().map(|&x| s.piece(x, part)).collect::<Done<Vec<_>>>()?;
                s.b.flags = flags;
                let r = s.b.add_inst(op.clone(), &xs)?;
                for (to, r) in to.iter().zip(r) {
                    s.put(to, part, r)?;
                }
                return Ok(());
            }
            let d = s.kernel.ty(inst.operands[0]).dtype();
            let mut edge = part.shape.clone();
            edge[dim] = 1;
            let init = s.b.full(d, &edge, identity(combiner, d))?;
            let (n, tail) = (shape[dim] / width, shape[dim] % width);
            let step = |s: &mut Self, at: Val, size: usize, carry: Val| -> Done<Val> {
                let mut here = part.clone();
                here.at[dim] = at;
                here.shape[dim] = size;
                let x = s.piece(inst.operands[0], &here)?;
                s.b.flags = flags;
                let y = s.b.add_inst(op.clone(), &[x])?[0];
                let c = s.b.broadcast(carry, &here.shape)?;
                let y = s.combined(combiner, c, y)?;
                s.put(&to[0], &here, y)?;
                let mut offset = vec![0; edge.len()];
                offset[dim] = if reverse { 0 } else { size - 1 };
                s.b.extract(y, &offset, &edge)
            };
            let rest = s.b.int((n * width) as i64);
            let mut carry = init;
            if reverse && tail > 0 {
                carry = step(s, rest, tail, carry)?;
            }
            let bounds = (s.b.int(0), s.b.int((n * width) as i64), s.b.int(width as i64));
            let out = s.for_loop(bounds, &[carry], |s, i, carried| {
                let at = if reverse {
                    let last = s.b.int(((n - 1) * width) as i64);
                    s.b.sub(last, i)?
                } else {
                    i
                };
                Ok(vec![step(s, at, width, carried[0])?])
            })?;
            carry = out[0];
            if !reverse && tail > 0 {
                step(s, rest, tail, carry)?;
            }
            Ok(())
        })?;
        for (&r, to) in inst.results.iter().zip(to) {
            self.defs.insert(r, Def::Stored(to));
        }
        Ok(())
    }

    /// Counted and conditional loops: carried tiles live in scratch, carried scalars as they are.
    fn repeat(&mut self, inst: &Inst) -> Done<()> {
        let counted = matches!(inst.op, Op::For {});
        let first = if counted { 3 } else { 1 };
        let block = &inst.blocks[0];
        let head = self.wholes(&inst.operands[..first])?;
        let (mut scalars, mut homes) = (Vec::new(), Vec::new());
        for &v in &inst.operands[first..] {
            if self.is_tile(v) {
                let home = self.scratch(v, &self.shape(v))?;
                self.compute_into(v, &home)?;
                homes.push(Some(home));
            } else {
                scalars.push(self.whole(v)?);
                homes.push(None);
            }
        }
        let skip = usize::from(counted);
        let body = |s: &mut Self, i: Option<Val>, carried: &[Val]| -> Done<(Vec<Val>, Option<Val>)> {
            if let (Some(i), Some(&p)) = (i, block.params.first()) {
                s.defs.insert(p, Def::Whole(i));
            }
            let mut next = carried.iter();
            for (&p, home) in block.params[skip..].iter().zip(&homes) {
                let def = match (home, next.as_slice().first()) {
                    (Some(home), _) => Def::Stored(home.clone()),
                    (None, Some(&c)) => {
                        next.next();
                        Def::Whole(c)
                    }
                    (None, None) => return s.broken("a carried scalar is missing"),
                };
                s.defs.insert(p, def);
            }
            s.block(block)?;
            let results = if counted { &block.results[..] } else { &block.results[1..] };
            s.carry(results, &homes)?;
            let mut out = Vec::new();
            for (&r, home) in results.iter().zip(&homes) {
                if home.is_none() {
                    out.push(s.whole(r)?);
                }
            }
            let go = if counted { None } else { Some(s.whole(block.results[0])?) };
            Ok((out, go))
        };
        let out = if counted {
            self.for_loop((head[0], head[1], head[2]), &scalars, |s, i, carried| {
                Ok(body(s, Some(i), carried)?.0)
            })?
        } else {
            self.while_loop(head[0], &scalars, |s, carried| {
                let (out, go) = body(s, None, carried)?;
                match go {
                    Some(go) => Ok((go, out)),
                    None => s.broken("a loop without a condition"),
                }
            })?
        };
        let mut out = out.into_iter();
        for (&r, home) in inst.results.iter().zip(homes) {
            let def = match home {
                Some(home) => Def::Stored(home),
                None => match out.next() {
                    Some(v) => Def::Whole(v),
                    None => return self.broken("a carried scalar is missing"),
                },
            };
            self.defs.insert(r, def);
        }
        Ok(())
    }

    /// Moves a turn's results into the homes of the carried tiles. A result goes there directly if it reads its own home only
    /// element by element and no other result reads that home; the others go through further scratch.
    fn carry(&mut self, results: &[Val], homes: &[Option<Stored>]) -> Done<()> {
        let reads: Vec<Vec<(Val, bool)>> = results
            .iter()
            .map(|&r| {
                let mut out = Vec::new();
                self.scratch_reads(r, true, &mut out);
                out
            })
            .collect();
        let direct = |i: usize, home: &Stored| {
            reads
                .iter()
                .enumerate()
                .all(|(j, r)| r.iter().all(|&(b, aligned)| b != home.buffer || j == i && aligned))
        };
        let mut later = Vec::new();
        for (i, (&r, home)) in results.iter().zip(homes).enumerate() {
            let Some(home) = home else { continue };
            if matches!(self.defs.get(&r), Some(Def::Stored(s)) if s == home) || direct(i, home) {
                continue;
            }
            let shape = self.shape(r);
            let aside = self.scratch(r, &shape)?;
            self.compute_into(r, &aside)?;
            later.push((i, aside));
        }
        for (i, (&r, home)) in results.iter().zip(homes).enumerate() {
            let Some(home) = home else { continue };
            if matches!(self.defs.get(&r), Some(Def::Stored(s)) if s == home) {
                continue;
            }
            if direct(i, home) {
                self.compute_into(r, home)?;
            }
        }
        for (i, aside) in later {
            if let Some(home) = &homes[i] {
                let piece = self.choose(results[i], &home.shape);
                self.parts(&home.shape.clone(), &piece, &mut |s, part| {
                    let x = s.fetch(&aside, part)?;
                    s.put(home, part, x)
                })?;
            }
        }
        Ok(())
    }

    /// Scratch that computing a tile reads, and whether only at the element computed.
    fn scratch_reads(&self, v: Val, aligned: bool, out: &mut Vec<(Val, bool)>) {
        match self.defs.get(&v) {
            Some(Def::Stored(s)) => out.push((s.buffer, aligned)),
            Some(Def::Lazy(l)) => {
                for (i, &o) in l.inst.operands.iter().enumerate() {
                    let in_place = match l.inst.op {
                        Op::Unary(_) | Op::Binary(_) | Op::Compare(_) | Op::Fma {} | Op::Cast { .. } => true,
                        Op::Select {} | Op::Bitcast { .. } => true,
                        Op::Mma {} => i == 0,
                        _ => false,
                    };
                    self.scratch_reads(o, aligned && in_place, out);
                }
            }
            _ => {}
        }
    }

    fn choice(&mut self, inst: &Inst) -> Done<()> {
        let condition = self.whole(inst.operands[0])?;
        let mut homes = Vec::new();
        for &r in &inst.results {
            homes.push(if self.is_tile(r) { Some(self.scratch(r, &self.shape(r))?) } else { None });
        }
        let out = self.branch(condition, |s, side| {
            let block = &inst.blocks[side];
            s.block(block)?;
            let mut out = Vec::new();
            for (&r, home) in block.results.iter().zip(&homes) {
                match home {
                    Some(home) => s.compute_into(r, home)?,
                    None => out.push(s.whole(r)?),
                }
            }
            Ok(out)
        })?;
        let mut out = out.into_iter();
        for (&r, home) in inst.results.iter().zip(homes) {
            match (home, &mut out) {
                (Some(home), _) => self.defs.insert(r, Def::Stored(home)),
                (None, out) => out.next().and_then(|v| self.defs.insert(r, Def::Whole(v))),
            };
        }
        Ok(())
    }
}

/// What the steps of one reduction share.
struct Job<'a> {
    xs: &'a [Val],
    combiner: Combiner,
    op: &'a Op,
    shape: &'a [usize],
    piece: &'a [usize],
    /// Shape of the results' part.
    kept: &'a [usize],
    inner: usize,
    tail: usize,
    flags: tongtu_tile::Flags,
}
