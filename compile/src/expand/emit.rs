//! Writing the instructions of an expansion.

use std::collections::HashMap;
use std::sync::Arc;

use tongtu_tensor::scalar::{Binary, Compare, Unary};
use tongtu_tensor::{CastMode, Combiner, DType, Num, Overflow};
use tongtu_tile::infer::infer;
use tongtu_tile::{Block, Flags, Inst, Op, Ordering, Ty, Val};

use super::Native;

/// Greatest nesting of rules.
const MAX_DEPTH: usize = 12;

/// Appends instructions; those that are not native are expanded in their turn.
pub(super) struct Emit<'a> {
    types: &'a mut Vec<Ty>,
    native: Native<'a>,
    out: Vec<Inst>,
    constants: HashMap<(DType, u64, Vec<usize>), Val>,
    depth: usize,
    /// The shape of the tiles at work.
    pub shape: Vec<usize>,
    /// Flags of the instruction being expanded.
    pub flags: Flags,
    /// Origin of the instruction being expanded.
    pub loc: Option<Arc<str>>,
}

/// What [`Emit::enter`] sets aside.
pub(super) struct Outer {
    out: Vec<Inst>,
    constants: HashMap<(DType, u64, Vec<usize>), Val>,
}

impl<'a> Emit<'a> {
    pub fn new(types: &'a mut Vec<Ty>, native: Native<'a>) -> Emit<'a> {
        Emit {
            types,
            native,
            out: Vec::new(),
            constants: HashMap::new(),
            depth: 0,
            shape: Vec::new(),
            flags: Flags::default(),
            loc: None,
        }
    }

    /// Begins an inner block.
    pub fn enter(&mut self) -> Outer {
        Outer { out: std::mem::take(&mut self.out), constants: self.constants.clone() }
    }

    /// Ends an inner block and gives its instructions.
    pub fn leave(&mut self, outer: Outer) -> Vec<Inst> {
        self.constants = outer.constants;
        std::mem::replace(&mut self.out, outer.out)
    }

    /// Appends an instruction as it is.
    pub fn keep(&mut self, inst: Inst) {
        self.out.push(inst);
    }

    pub fn ty(&self, v: Val) -> &Ty {
        &self.types[v.index()]
    }

    pub fn dtype(&self, v: Val) -> DType {
        self.ty(v).dtype()
    }

    fn is_native(&self, op: &Op, operands: &[Val]) -> bool {
        let tys: Vec<Ty> = operands.iter().map(|&v| self.ty(v).clone()).collect();
        (self.native)(op, &tys)
    }

    /// Whether an operation on tiles of these element types is native.
    pub fn takes(&self, op: &Op, types: &[DType]) -> bool {
        let tys: Vec<Ty> = types.iter().map(|&d| Ty::tile(d, &self.shape)).collect();
        (self.native)(op, &tys)
    }

    /// Whether an operation on tiles of one element type is native.
    pub fn has(&self, op: &Op, d: DType, operands: usize) -> bool {
        (self.native)(op, &vec![Ty::tile(d, &self.shape); operands])
    }

    /// The values an expansion puts in an instruction's place; `None` if it is native or has no rule.
    pub fn rule(&mut self, op: &Op, operands: &[Val]) -> Option<Vec<Val>> {
        if self.is_native(op, operands) || self.depth >= MAX_DEPTH {
            return None;
        }
        let shape = match operands.first().map(|&v| self.ty(v)) {
            Some(Ty::Tile { shape, .. }) => shape.clone(),
            Some(Ty::Buffer { .. }) => match operands.get(1).map(|&v| self.ty(v)) {
                Some(Ty::Tile { shape, .. }) => shape.clone(),
                _ => return None,
            },
            _ => return None,
        };
        let outer = std::mem::replace(&mut self.shape, shape);
        self.depth += 1;
        let results = self.rewrite(op, operands);
        self.depth -= 1;
        self.shape = outer;
        results
    }

    fn rewrite(&mut self, op: &Op, operands: &[Val]) -> Option<Vec<Val>> {
        let one = |v: Option<Val>| v.map(|v| vec![v]);
        match (op, operands) {
            (Op::Unary(u), [x]) => one(self.unary(*u, *x)),
            (Op::Binary(b), [x, y]) => one(self.binary(*b, *x, *y)),
            (Op::Compare(c), [x, y]) => one(self.compare(*c, *x, *y)),
            (Op::Fma {}, [a, b, c]) => one(self.fused(*a, *b, *c)),
            (Op::Cast { to, mode }, [x]) => one(self.convert(*x, *to, *mode)),
            (Op::Mma {}, [acc, a, b]) => {
                one(self.mma_in_f32(*acc, *a, *b).or_else(|| self.mma_in_parts(*acc, *a, *b)))
            }
            (Op::MmaScaled {}, [acc, a, s, b, u]) => one(self.mma_scaled(*acc, [*a, *s], [*b, *u])),
            (Op::Reduce { .. } | Op::Scan { .. }, [x]) => one(self.combine_in_f32(op, *x)),
            (Op::Reduce { .. } | Op::Scan { .. }, [x, i]) => self.pair_in_f32(op, *x, *i),
            (Op::AtomicReduce { combiner, scope, .. }, [buffer, at, x, mask @ ..]) => {
                let (c, mask) = (combiner.binary()?, mask.first().copied());
                self.swap_until_alone([*buffer, *at, *x], mask, c, (Ordering::Relaxed, *scope))
                    .map(|_| vec![])
            }
            (Op::AtomicRmw { combiner, ordering, scope, .. }, [buffer, at, x, mask @ ..]) => {
                let (c, mask) = (combiner.binary()?, mask.first().copied());
                one(self.swap_until_alone([*buffer, *at, *x], mask, c, (*ordering, *scope)))
            }
            _ => None,
        }
    }

    /// Each scale spread over its neighbours, then a product in the accumulator's type.
    fn mma_scaled(&mut self, acc: Val, [a, s]: [Val; 2], [b, u]: [Val; 2]) -> Option<Val> {
        let t = self.ty(acc).dtype();
        let (x, y) = (self.scaled(a, s, 1, t)?, self.scaled(b, u, 0, t)?);
        // Not every matrix unit takes what was computed just now.
        match self.has_wide() {
            true => Some(self.op(Op::Mma {}, &[acc, x, y])),
            false => self.mma_in_parts(acc, x, y),
        }
    }

    fn scaled(&mut self, x: Val, scale: Val, dim: usize, t: DType) -> Option<Val> {
        let (_, whole) = self.ty(x).as_tile()?;
        let (_, few) = self.ty(scale).as_tile()?;
        let (whole, mut apart) = (whole.to_vec(), few.to_vec());
        let group = whole[dim] / apart[dim];
        let to = |e: &mut Self, v: Val| match e.ty(v).dtype() == t {
            true => v,
            false => e.op(Op::Cast { to: t, mode: CastMode::default() }, &[v]),
        };
        let (x, s) = (to(self, x), to(self, scale));
        apart.insert(dim + 1, 1);
        let s = self.op(Op::Reshape { shape: apart.clone() }, &[s]);
        apart[dim + 1] = group;
        let s = self.op(Op::Broadcast { shape: apart }, &[s]);
        let s = self.op(Op::Reshape { shape: whole }, &[s]);
        Some(self.op(Op::Binary(Binary::Mul), &[x, s]))
    }

    /// One instruction with one result, expanded if it is not native.
    pub fn op(&mut self, op: Op, operands: &[Val]) -> Val {
        if let Some(results) = self.rule(&op, operands)
            && let Some(&r) = results.first()
        {
            return r;
        }
        let tys: Vec<&Ty> = operands.iter().map(|&v| &self.types[v.index()]).collect();
        let ty = infer(&op, &tys).ok().and_then(|t| t.into_iter().next());
        let result = self.value(ty.unwrap_or_else(|| Ty::scalar(DType::Bool)));
        self.push(op, operands.to_vec(), vec![result], Vec::new());
        result
    }

    /// One instruction as it is, with all its results.
    pub fn plain(&mut self, op: Op, operands: &[Val]) -> Option<Vec<Val>> {
        let tys: Vec<&Ty> = operands.iter().map(|&v| &self.types[v.index()]).collect();
        let results: Vec<Val> = infer(&op, &tys).ok()?.into_iter().map(|t| self.value(t)).collect();
        self.push(op, operands.to_vec(), results.clone(), Vec::new());
        Some(results)
    }

    fn value(&mut self, ty: Ty) -> Val {
        self.types.push(ty);
        Val(self.types.len() as u32 - 1)
    }

    fn push(&mut self, op: Op, operands: Vec<Val>, results: Vec<Val>, blocks: Vec<Block>) {
        let loc = self.loc.clone();
        self.out.push(Inst { op, operands, results, blocks, flags: Flags::default(), loc });
    }

    fn constant(&mut self, d: DType, value: Num) -> Val {
        let key = (d, d.encode(value, Overflow::Format), self.shape.clone());
        if let Some(&v) = self.constants.get(&key) {
            return v;
        }
        let v = self.op(Op::Full { dtype: d, shape: self.shape.clone(), value }, &[]);
        self.constants.insert(key, v);
        v
    }
    /// A real constant.
    pub fn k(&mut self, d: DType, value: f64) -> Val {
        self.constant(d, Num::Float(value))
    }
    /// An integer constant.
    pub fn i(&mut self, d: DType, value: i128) -> Val {
        self.constant(d, Num::Int(value))
    }

    pub fn un(&mut self, op: Unary, x: Val) -> Val {
        self.op(Op::Unary(op), &[x])
    }
    pub fn bin(&mut self, op: Binary, a: Val, b: Val) -> Val {
        self.op(Op::Binary(op), &[a, b])
    }
    pub fn cmp(&mut self, op: Compare, a: Val, b: Val) -> Val {
        self.op(Op::Compare(op), &[a, b])
    }
    pub fn sel(&mut self, p: Val, a: Val, b: Val) -> Val {
        self.op(Op::Select {}, &[p, a, b])
    }
    pub fn add(&mut self, a: Val, b: Val) -> Val {
        self.bin(Binary::Add, a, b)
    }
    pub fn sub(&mut self, a: Val, b: Val) -> Val {
        self.bin(Binary::Sub, a, b)
    }
    pub fn mul(&mut self, a: Val, b: Val) -> Val {
        self.bin(Binary::Mul, a, b)
    }
    pub fn div(&mut self, a: Val, b: Val) -> Val {
        self.bin(Binary::Div, a, b)
    }
    pub fn and(&mut self, a: Val, b: Val) -> Val {
        self.bin(Binary::And, a, b)
    }
    pub fn or(&mut self, a: Val, b: Val) -> Val {
        self.bin(Binary::Or, a, b)
    }
    pub fn shl(&mut self, a: Val, bits: u32) -> Val {
        let n = self.i(self.dtype(a), bits.into());
        self.bin(Binary::Shl, a, n)
    }
    pub fn shr(&mut self, a: Val, bits: u32) -> Val {
        let n = self.i(self.dtype(a), bits.into());
        self.bin(Binary::Shr, a, n)
    }
    pub fn mul_k(&mut self, a: Val, k: f64) -> Val {
        let k = self.k(self.dtype(a), k);
        self.mul(a, k)
    }
    pub fn add_k(&mut self, a: Val, k: f64) -> Val {
        let k = self.k(self.dtype(a), k);
        self.add(a, k)
    }
    pub fn add_i(&mut self, a: Val, k: i128) -> Val {
        let k = self.i(self.dtype(a), k);
        self.add(a, k)
    }
    pub fn and_i(&mut self, a: Val, k: i128) -> Val {
        let k = self.i(self.dtype(a), k);
        self.and(a, k)
    }
    pub fn cmp_k(&mut self, op: Compare, a: Val, k: f64) -> Val {
        let k = self.k(self.dtype(a), k);
        self.cmp(op, a, k)
    }
    pub fn cmp_i(&mut self, op: Compare, a: Val, k: i128) -> Val {
        let k = self.i(self.dtype(a), k);
        self.cmp(op, a, k)
    }
    pub fn cast(&mut self, x: Val, to: DType) -> Val {
        if self.dtype(x) == to { x } else { self.op(Op::Cast { to, mode: CastMode::default() }, &[x]) }
    }
    pub fn bits(&mut self, x: Val, to: DType) -> Val {
        if self.dtype(x) == to { x } else { self.op(Op::Bitcast { to }, &[x]) }
    }
    /// `a * b + c` rounded once.
    pub fn fma_exact(&mut self, a: Val, b: Val, c: Val) -> Val {
        self.op(Op::Fma {}, &[a, b, c])
    }
    /// `a * b + c`, rounded once or twice, whichever is quick.
    pub fn fma(&mut self, a: Val, b: Val, c: Val) -> Val {
        if self.has(&Op::Fma {}, self.dtype(a), 3) {
            return self.fma_exact(a, b, c);
        }
        let p = self.mul(a, b);
        self.add(p, c)
    }
    /// A polynomial, coefficients lowest power first.
    pub fn poly(&mut self, x: Val, coefficients: &[f64]) -> Val {
        let d = self.dtype(x);
        let mut rest = coefficients.iter().rev();
        let mut acc = match rest.next() {
            Some(&c) => self.k(d, c),
            None => self.k(d, 0.0),
        };
        for &c in rest {
            let c = self.k(d, c);
            acc = self.fma(acc, x, c);
        }
        acc
    }

    /// Whether any element of a bool tile is true.
    pub fn any(&mut self, p: Val) -> Val {
        let dims: Vec<usize> = (0..self.shape.len()).collect();
        if dims.is_empty() { p } else { self.op(Op::Reduce { combiner: Combiner::Or, dims }, &[p]) }
    }

    /// If the scalar is true what `then` gives, else `otherwise`.
    pub fn when(
        &mut self,
        condition: Val,
        otherwise: &[Val],
        then: impl FnOnce(&mut Self) -> Vec<Val>,
    ) -> Vec<Val> {
        let outer = self.enter();
        let results = then(self);
        let insts = self.leave(outer);
        let first = Block { params: Vec::new(), insts, results };
        let second = Block { params: Vec::new(), insts: Vec::new(), results: otherwise.to_vec() };
        let out: Vec<Val> = otherwise.iter().map(|&v| self.value(self.ty(v).clone())).collect();
        self.push(Op::If {}, vec![condition], out.clone(), vec![first, second]);
        out
    }

    /// While the scalar is true; `body` gives the next condition and carried values.
    pub fn repeat(
        &mut self,
        condition: Val,
        init: &[Val],
        body: impl FnOnce(&mut Self, &[Val]) -> (Val, Vec<Val>),
    ) -> Vec<Val> {
        let params: Vec<Val> = init.iter().map(|&v| self.value(self.ty(v).clone())).collect();
        let outer = self.enter();
        let (next, carried) = body(self, &params);
        let insts = self.leave(outer);
        let results = std::iter::once(next).chain(carried).collect();
        let out: Vec<Val> = init.iter().map(|&v| self.value(self.ty(v).clone())).collect();
        let operands = std::iter::once(condition).chain(init.iter().copied()).collect();
        self.push(Op::While {}, operands, out.clone(), vec![Block { params, insts, results }]);
        out
    }
}
