//! Elements as the chip can hold them: types that it lacks as their codes, and truth values that are moved as bytes.

use std::collections::{HashMap, HashSet};

use tongtu_chip::Chip;
use tongtu_tensor::scalar::{Binary, Compare};
use tongtu_tensor::{CastMode, DType, Num, Overflow};
use tongtu_tile::{Block, Inst, Kernel, Op, ParamKind, Ty, Val};

use crate::emit::Emit;
use crate::legal::{has_type, is_950};

/// Steps along a product's summed dim that a matrix unit takes at a time.
const STEP: usize = 16;

/// Whether elements of a type are held as codes in a byte each, from the low bits up: narrow floats that the chip lacks, and whatever is
/// less than a byte.
fn is_code(d: DType, chip: &Chip) -> bool {
    (d.is_float() && d.bits() <= 8 || d.bits() < 8) && !has_type(d, chip)
}

/// The kernel with tiles of types that the chip lacks as `u8`, for what is left of them after the shared rewrites moves, chooses and
/// widens only; and with tiles of truth values as `u8` where they are moved or carried, for the vendor's compiler keeps them as
/// bits. Those `u8` tiles of 0 and 1 come with it. Buffers of elements of less than a byte keep their type, for accesses to unpack.
pub(crate) fn as_codes(kernel: &Kernel, chip: &Chip) -> (Kernel, HashSet<Val>) {
    let mut k = kernel.clone();
    for p in &mut k.params {
        match &mut p.kind {
            ParamKind::Buffer(d, _) => in_memory(d, chip),
            ParamKind::Scalar(d) => plain(d, chip),
        }
    }
    for t in &mut k.types {
        match t {
            Ty::Tile { dtype, .. } => plain(dtype, chip),
            Ty::Buffer { dtype } | Ty::View { dtype, .. } => in_memory(dtype, chip),
        }
    }
    let body = std::mem::take(&mut k.body);
    let (loose, loaded) = (HashSet::new(), HashSet::new());
    let mut held = Held { was: &kernel.types, types: &mut k.types, chip, loose, loaded, out: Vec::new() };
    let body = held.block(body);
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

fn in_memory(d: &mut DType, chip: &Chip) {
    if d.bits() >= 8 {
        plain(d, chip);
    }
}

/// Instructions on what is held as codes.
struct Held<'a> {
    /// The types that values had.
    was: &'a [Ty],
    types: &'a mut Vec<Ty>,
    chip: &'a Chip,
    /// What is made of elements that were read one by one.
    loose: HashSet<Val>,
    /// Blocks as they lie in memory, turned or of another type at most.
    loaded: HashSet<Val>,
    out: Vec<Inst>,
}

impl Held<'_> {
    fn block(&mut self, b: Block) -> Block {
        let outer = std::mem::take(&mut self.out);
        for mut inst in b.insts {
            let first = inst.operands.first().map(|&v| self.was(v));
            let read = match &inst.op {
                Op::Load { map, inside, .. } if Emit::is_window(map, inside) => {
                    first.is_some_and(|d| d.bits() < 8)
                }
                Op::Load { .. } => true,
                _ => false,
            };
            if read || inst.operands.iter().any(|v| self.loose.contains(v)) {
                self.loose.extend(&inst.results);
                inst.blocks.iter().for_each(|b| self.loose.extend(&b.params));
            }
            let as_before = match inst.op {
                Op::Load { .. } => true,
                Op::Permute { .. } | Op::Reshape { .. } | Op::Cast { .. } | Op::Bitcast { .. } => {
                    inst.operands.iter().all(|v| self.loaded.contains(v))
                }
                _ => false,
            };
            if as_before {
                self.loaded.extend(&inst.results);
            }
            inst.blocks = std::mem::take(&mut inst.blocks).into_iter().map(|b| self.block(b)).collect();
            self.inst(inst);
        }
        Block { params: b.params, insts: std::mem::replace(&mut self.out, outer), results: b.results }
    }

    fn was(&self, v: Val) -> DType {
        self.was[v.index()].dtype()
    }

    fn inst(&mut self, mut inst: Inst) {
        let chip = self.chip;
        let coded = |d: DType, n: &mut Num| {
            if is_code(d, chip) {
                *n = Num::Int(d.encode(*n, Overflow::Format).into());
            }
        };
        let first = inst.operands.first().map(|&v| self.was(v));
        match &mut inst.op {
            Op::Full { dtype, value, .. } => {
                coded(*dtype, value);
                plain(dtype, chip);
            }
            Op::Iota { dtype, .. } if dtype.bits() < 8 => {
                let most = (1 << dtype.bits()) - 1;
                *dtype = DType::U8;
                let result = inst.results[0];
                let all = self.like(result, DType::U8);
                inst.results = vec![all];
                let mut m = Make::new(self, &inst, result);
                m.and_result(all, most, result);
                let made = m.end();
                self.out.push(inst);
                self.out.extend(made);
                return;
            }
            Op::Alloc { dtype, .. } | Op::Bitcast { to: dtype } => plain(dtype, chip),
            _ => {}
        }
        let is_product = matches!(inst.op, Op::Mma {});
        let thin = is_product && self.is_thin(&inst);
        if thin && self.loaded.contains(&inst.operands[2]) {
            let mut m = Make::new(self, &inst, inst.results[0]);
            m.widen_product(&mut inst);
            let made = m.end();
            self.out.extend(made);
        } else if is_product && (thin || inst.operands[1..].iter().any(|v| self.loose.contains(v))) {
            // The vendor's compiler fails on a matrix unit's operands that scalars have written.
            let mut m = Make::new(self, &inst, inst.results[0]);
            m.product(&inst);
            let made = m.end();
            self.out.extend(made);
            return;
        }
        if let (Op::Load { pad, .. } | Op::Gather { pad, .. }, Some(d)) = (&mut inst.op, first) {
            coded(d, pad);
        }
        if let Op::Gather { .. } | Op::Scatter { .. } | Op::TakeAlong { .. } = inst.op {
            let index = inst.operands[1];
            let d = self.was(index);
            if d.bits() < 8 {
                let mut m = Make::new(self, &inst, index);
                inst.operands[1] = m.widened(index, d);
                let made = m.end();
                self.out.extend(made);
            }
        }
        if let (Op::Cast { to, mode }, Some(from)) = (&inst.op, first) {
            let (to, mode) = (*to, *mode);
            return self.cast(inst, from, to, mode);
        }
        self.out.push(inst);
    }

    /// Whether one chip's compiler fails on a product: of a computed left operand that is no multiple of a matrix unit's step wide.
    fn is_thin(&self, product: &Inst) -> bool {
        let a = product.operands[1];
        let width = self.types[a.index()].as_tile().and_then(|t| t.1.last().copied()).unwrap_or(STEP);
        is_950(self.chip) && !self.loaded.contains(&a) && !width.is_multiple_of(STEP)
    }

    /// A conversion from or to what is held as codes.
    fn cast(&mut self, mut inst: Inst, from: DType, to: DType, mode: CastMode) {
        let (x, result) = (inst.operands[0], inst.results[0]);
        let is_small = |d: DType| d.is_int() && d.bits() < 8;
        let mut m = Make::new(self, &inst, x);
        if from == to || to.is_bool() {
            // The code itself.
        } else if is_small(from) || is_small(to) {
            let x = if is_small(from) { m.widened(x, from) } else { x };
            if is_small(to) {
                let byte = m.cast(x, DType::U8);
                m.and_result(byte, (1 << to.bits()) - 1, result);
            } else {
                m.push(Op::Cast { to, mode }, &[x], result);
            }
        } else if from.bits() == 6 {
            m.decode(x, from, result);
        } else if to.bits() == 6 {
            m.encode(x, to, result);
        }
        let made = m.end();
        if made.is_empty() {
            let (mut own, same) = (to, from == to);
            plain(&mut own, self.chip);
            // Saturating changes no finite type's own values, and of the others only what has been rewritten.
            let mode = if same { CastMode::default() } else { mode };
            inst.op = Op::Cast { to: own, mode };
            self.out.push(inst);
        }
        self.out.extend(made);
    }

    /// A new value of another's shape.
    fn like(&mut self, v: Val, d: DType) -> Val {
        let mut ty = self.types[v.index()].clone();
        if let Ty::Tile { dtype, .. } = &mut ty {
            *dtype = d;
        }
        self.value(ty)
    }

    fn value(&mut self, ty: Ty) -> Val {
        self.types.push(ty);
        Val(self.types.len() as u32 - 1)
    }
}

/// Instructions in place of one.
struct Make<'h, 'a> {
    held: &'h mut Held<'a>,
    like: Inst,
    /// A value of the shape at work.
    shape: Val,
    out: Vec<Inst>,
}

impl<'h, 'a> Make<'h, 'a> {
    fn new(held: &'h mut Held<'a>, like: &Inst, shape: Val) -> Make<'h, 'a> {
        let like = Inst { operands: vec![], results: vec![], blocks: vec![], ..like.clone() };
        Make { held, like, shape, out: Vec::new() }
    }

    fn end(self) -> Vec<Inst> {
        self.out
    }

    fn push(&mut self, op: Op, operands: &[Val], result: Val) {
        self.out.push(Inst { op, operands: operands.to_vec(), results: vec![result], ..self.like.clone() });
    }

    fn op(&mut self, op: Op, operands: &[Val], d: DType) -> Val {
        let r = self.held.like(self.shape, d);
        self.push(op, operands, r);
        r
    }

    fn k(&mut self, d: DType, value: Num) -> Val {
        let shape = self.held.types[self.shape.index()].as_tile().map(|t| t.1.to_vec()).unwrap_or_default();
        self.op(Op::Full { dtype: d, shape, value }, &[], d)
    }

    fn cast(&mut self, x: Val, to: DType) -> Val {
        self.op(Op::Cast { to, mode: CastMode::default() }, &[x], to)
    }

    /// An operation on 32-bit integers with a constant.
    fn int(&mut self, b: Binary, x: Val, k: i64) -> Val {
        let k = self.k(DType::I32, Num::Int(k.into()));
        self.op(Op::Binary(b), &[x, k], DType::I32)
    }

    fn and_result(&mut self, byte: Val, mask: i128, result: Val) {
        let mask = self.k(DType::U8, Num::Int(mask));
        self.push(Op::Binary(Binary::And), &[byte, mask], result);
    }

    /// The integer that a code stands for, in 32 bits.
    fn widened(&mut self, code: Val, d: DType) -> Val {
        let x = self.cast(code, DType::I32);
        if !d.is_signed() {
            return x;
        }
        let rest = 32 - i64::from(d.bits());
        let x = self.int(Binary::Shl, x, rest);
        self.int(Binary::Shr, x, rest)
    }

    fn scaled(&mut self, x: Val, power: i32) -> Val {
        let k = self.k(DType::F32, Num::Float(2f64.powi(power)));
        self.op(Op::Binary(Binary::Mul), &[x, k], DType::F32)
    }

    fn below(&mut self, x: Val, k: i64) -> Val {
        let k = self.k(DType::I32, Num::Int(k.into()));
        self.op(Op::Compare(Compare::Lt), &[x, k], DType::Bool)
    }

    /// A product of matrices in the accumulator's type, one column times one row after another.
    fn product(&mut self, inst: &Inst) {
        let &[mut acc, a, b] = &inst.operands[..] else { return };
        let shape_of =
            |m: &Self, v: Val| m.held.types[v.index()].as_tile().map(|t| t.1.to_vec()).unwrap_or_default();
        let (d, shape, left) = (self.held.types[acc.index()].dtype(), shape_of(self, acc), shape_of(self, a));
        let &[m, n] = &shape[..] else { return };
        let depth = left.last().copied().unwrap_or(1);
        for k in 0..depth {
            let part = |s: &mut Self, v: Val, offset: [usize; 2], size: [usize; 2]| {
                let own = s.held.types[v.index()].dtype();
                let mut r = s.held.value(Ty::tile(own, &size));
                s.push(Op::Extract { offset: offset.to_vec(), shape: size.to_vec() }, &[v], r);
                if own != d {
                    let wide = s.held.value(Ty::tile(d, &size));
                    s.push(Op::Cast { to: d, mode: CastMode::default() }, &[r], wide);
                    r = wide;
                }
                s.op(Op::Broadcast { shape: shape.clone() }, &[r], d)
            };
            let (column, row) = (part(self, a, [0, k], [m, 1]), part(self, b, [k, 0], [1, n]));
            let product = self.op(Op::Binary(Binary::Mul), &[column, row], d);
            let last = k + 1 == depth;
            let sum = if last { inst.results[0] } else { self.held.like(self.shape, d) };
            self.push(Op::Binary(Binary::Add), &[acc, product], sum);
            acc = sum;
        }
    }

    /// Zeros after a product's operands along the summed dim, up to a step of the matrix unit.
    fn widen_product(&mut self, inst: &mut Inst) {
        for (operand, dim) in [(1, 1), (2, 0)] {
            let v = inst.operands[operand];
            let Ty::Tile { dtype, shape } = self.held.types[v.index()].clone() else { continue };
            let (mut rest, mut whole) = (shape.clone(), shape);
            whole[dim] = whole[dim].next_multiple_of(STEP);
            rest[dim] = whole[dim] - rest[dim];
            let [zeros, wide] = [&rest, &whole].map(|s| self.held.value(Ty::tile(dtype, s)));
            self.push(Op::Full { dtype, shape: rest, value: Num::Int(0) }, &[], zeros);
            self.push(Op::Concat { dim }, &[v, zeros], wide);
            inst.operands[operand] = wide;
        }
    }

    /// A finite float of 6 bits as f32.
    fn decode(&mut self, code: Val, d: DType, result: Val) {
        let Some(f) = d.float_format() else { return };
        let (i, places) = (DType::I32, i64::from(f.mantissa_bits));
        let code = self.cast(code, i);
        let size = self.int(Binary::And, code, 31);
        let normal = self.int(Binary::Shl, size, 23 - places);
        let normal = self.int(Binary::Add, normal, i64::from(126 + f.min_exponent) << 23);
        let small = self.cast(size, DType::F32);
        let small = self.scaled(small, f.min_exponent - f.mantissa_bits as i32);
        let small = self.op(Op::Bitcast { to: i }, &[small], i);
        let is_small = self.below(size, 1 << places);
        let size = self.op(Op::Select {}, &[is_small, small, normal], i);
        let sign = self.int(Binary::Shl, code, 26);
        let sign = self.int(Binary::And, sign, i32::MIN.into());
        let bits = self.op(Op::Binary(Binary::Or), &[size, sign], i);
        self.push(Op::Bitcast { to: DType::F32 }, &[bits], result);
    }

    /// An f32 as a finite float of 6 bits, rounded towards zero; what is too large becomes the greatest, NaN negative zero.
    fn encode(&mut self, x: Val, d: DType, result: Val) {
        let Some(f) = d.float_format() else { return };
        let (i, places) = (DType::I32, i64::from(f.mantissa_bits));
        let bits = |x: f64| i64::from((x as f32).to_bits());
        let code = self.op(Op::Bitcast { to: i }, &[x], i);
        let sign = self.int(Binary::Shr, code, 26);
        let sign = self.int(Binary::And, sign, 32);
        let size = self.int(Binary::And, code, i32::MAX.into());
        let number = self.below(size, 0x7f80_0001);
        let size = self.int(Binary::Min, size, bits(d.max_value().to_f64()));
        let normal = self.int(Binary::Shr, size, 23 - places);
        let normal = self.int(Binary::Sub, normal, i64::from(126 + f.min_exponent) << places);
        let small = self.op(Op::Bitcast { to: DType::F32 }, &[size], DType::F32);
        let small = self.scaled(small, f.mantissa_bits as i32 - f.min_exponent);
        let whole = CastMode { overflow: Overflow::Saturate, ..CastMode::default() };
        let small = self.op(Op::Cast { to: i, mode: whole }, &[small], i);
        let is_small = self.below(size, bits(2f64.powi(f.min_exponent)));
        let size = self.op(Op::Select {}, &[is_small, small, normal], i);
        let code = self.op(Op::Binary(Binary::Or), &[size, sign], i);
        let none = self.k(i, Num::Int(32));
        let code = self.op(Op::Select {}, &[number, code, none], i);
        self.push(Op::Cast { to: DType::U8, mode: CastMode::default() }, &[code], result);
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
