//! Elements as the chip can hold them: narrow floats that it lacks as their codes, and truth values that are moved as bytes.

use std::collections::{HashMap, HashSet};

use tongtu_chip::Chip;
use tongtu_tensor::{CastMode, DType, Num, Overflow};
use tongtu_tile::{Block, Inst, Kernel, Op, ParamKind, Ty, Val};

use crate::legal::has_type;

/// Whether a type of one byte is held as codes.
fn is_code(d: DType, chip: &Chip) -> bool {
    d.is_float() && d.bits() == 8 && !has_type(d, chip)
}

/// The kernel with narrow floats that the chip lacks as `u8`, for what is left of them after the shared rewrites moves and chooses only;
/// and with tiles of truth values as `u8` where they are moved or carried, for the vendor's compiler keeps them as bits. Those `u8` tiles of 0 and
/// 1 come with it.
pub(crate) fn as_codes(kernel: &Kernel, chip: &Chip) -> (Kernel, HashSet<Val>) {
    let mut k = kernel.clone();
    for p in &mut k.params {
        match &mut p.kind {
            ParamKind::Buffer(d, _) | ParamKind::Scalar(d) => plain(d, chip),
        }
    }
    codes(&mut k.body, &kernel.types, chip);
    for t in &mut k.types {
        match t {
            Ty::Tile { dtype, .. } | Ty::Buffer { dtype } | Ty::View { dtype, .. } => plain(dtype, chip),
        }
    }
    let body = std::mem::take(&mut k.body);
    let mut bytes = Bytes { types: &mut k.types, of: HashMap::new(), twins: HashSet::new() };
    k.body = bytes.block(body);
    let twins = bytes.twins;
    (k, twins)
}

fn plain(d: &mut DType, chip: &Chip) {
    if is_code(*d, chip) {
        *d = DType::U8;
    }
}

fn codes(b: &mut Block, types: &[Ty], chip: &Chip) {
    let coded = |d: DType, n: &mut Num| {
        if is_code(d, chip) {
            *n = Num::Int(d.encode(*n, Overflow::Format).into());
        }
    };
    for inst in &mut b.insts {
        let memory = inst.operands.first().map(|v| types[v.index()].dtype());
        match &mut inst.op {
            Op::Full { dtype, value, .. } => {
                coded(*dtype, value);
                plain(dtype, chip);
            }
            Op::Load { pad, .. } | Op::Gather { pad, .. } => {
                if let Some(d) = memory {
                    coded(d, pad);
                }
            }
            Op::Alloc { dtype, .. } | Op::Bitcast { to: dtype } => plain(dtype, chip),
            _ => {}
        }
        inst.blocks.iter_mut().for_each(|inner| codes(inner, types, chip));
    }
}

struct Bytes<'a> {
    types: &'a mut Vec<Ty>,
    /// The bytes that truth values were made of.
    of: HashMap<Val, Val>,
    /// All such bytes.
    twins: HashSet<Val>,
}

impl Bytes<'_> {
    fn is_truth(&self, v: Val) -> bool {
        matches!(&self.types[v.index()], Ty::Tile { dtype: DType::Bool, shape } if !shape.is_empty())
    }

    /// A new value of a truth tile's shape.
    fn twin(&mut self, v: Val) -> Val {
        let mut ty = self.types[v.index()].clone();
        if let Ty::Tile { dtype, .. } = &mut ty {
            *dtype = DType::U8;
        }
        self.types.push(ty);
        let twin = Val(self.types.len() as u32 - 1);
        self.twins.insert(twin);
        twin
    }

    fn cast(from: Val, to: Val, d: DType, like: &Inst) -> Inst {
        Inst {
            op: Op::Cast { to: d, mode: CastMode::default() },
            operands: vec![from],
            results: vec![to],
            blocks: Vec::new(),
            flags: like.flags,
            loc: like.loc.clone(),
        }
    }

    /// Truth tiles among values as bytes.
    fn make_bytes(&mut self, vals: &mut [Val], like: &Inst, out: &mut Vec<Inst>) {
        for v in vals {
            if !self.is_truth(*v) {
                continue;
            }
            let byte = match self.of.get(v) {
                Some(&b) => b,
                None => {
                    let b = self.twin(*v);
                    out.push(Self::cast(*v, b, DType::U8, like));
                    self.of.insert(*v, b);
                    b
                }
            };
            *v = byte;
        }
    }

    /// Values that come as bytes; gives what makes truth values of them.
    fn make_truths(&mut self, vals: &mut [Val], like: &Inst) -> Vec<Inst> {
        let mut out = Vec::new();
        for v in vals {
            if self.is_truth(*v) {
                let b = self.twin(*v);
                out.push(Self::cast(b, *v, DType::Bool, like));
                self.of.insert(*v, b);
                *v = b;
            }
        }
        out
    }

    fn block(&mut self, b: Block) -> Block {
        let mut out = Vec::new();
        for mut inst in b.insts {
            let like = Inst { operands: vec![], results: vec![], blocks: vec![], ..inst.clone() };
            let moves = matches!(
                inst.op,
                Op::Broadcast { .. }
                    | Op::Reshape { .. }
                    | Op::Permute { .. }
                    | Op::Extract { .. }
                    | Op::Concat { .. }
                    | Op::TakeAlong { .. }
            );
            let scalar = |v: &Val| matches!(&self.types[v.index()], Ty::Tile { dtype: DType::Bool, shape } if shape.is_empty());
            let moves = moves && !inst.operands.iter().chain(&inst.results).any(scalar);
            let carries = matches!(inst.op, Op::For {} | Op::While {} | Op::If {});
            if !moves && !carries {
                inst.blocks = std::mem::take(&mut inst.blocks).into_iter().map(|b| self.block(b)).collect();
                out.push(inst);
                continue;
            }
            self.make_bytes(&mut inst.operands, &like, &mut out);
            let mut blocks = std::mem::take(&mut inst.blocks);
            for inner in &mut blocks {
                let head = self.make_truths(&mut inner.params, &like);
                let own = self.block(std::mem::take(inner));
                *inner = Block { insts: head, ..own };
                inner.insts.extend(own.insts);
                let mut tail = Vec::new();
                self.make_bytes(&mut inner.results, &like, &mut tail);
                inner.insts.extend(tail);
            }
            inst.blocks = blocks;
            let after = self.make_truths(&mut inst.results, &like);
            out.push(inst);
            out.extend(after);
        }
        Block { params: b.params, insts: out, results: b.results }
    }
}
