//! Building kernels: each call adds one instruction with its result types inferred. Arithmetic on constant
//! scalars folds, so that index computations stay short.

use std::collections::HashMap;

use tongtu_tensor::scalar::{Binary, Compare, Unary};
use tongtu_tensor::{CastMode, Combiner, DType, Num};

use crate::error::TileError;
use crate::infer;
use crate::kernel::{Access, Block, Flags, Inst, Kernel, Param, ParamKind, Val};
use crate::op::{Op, TileMap};
use crate::types::Ty;

/// Result of adding an instruction with one result.
pub type One = Result<Val, TileError>;

/// Builds one kernel.
#[derive(Debug)]
pub struct KernelBuilder {
    kernel: Kernel,
    stack: Vec<Block>,
    ints: HashMap<Val, i64>,
    known: HashMap<i64, (usize, Val)>,
    /// Flags given to instructions added from here on.
    pub flags: Flags,
    /// Origin given to instructions added from here on.
    pub loc: Option<std::sync::Arc<str>>,
}

impl KernelBuilder {
    /// A kernel without parameters and instructions.
    pub fn new(name: &str) -> KernelBuilder {
        KernelBuilder {
            kernel: Kernel { name: name.to_string(), ..Kernel::default() },
            stack: vec![Block::default()],
            ints: HashMap::new(),
            known: HashMap::new(),
            flags: Flags::default(),
            loc: None,
        }
    }

    /// The finished kernel.
    pub fn finish(mut self) -> Kernel {
        self.kernel.body = self.stack.pop().unwrap_or_default();
        self.kernel
    }

    /// The type of a value.
    pub fn ty(&self, v: Val) -> &Ty {
        self.kernel.ty(v)
    }
    /// The shape of a tile (empty for others).
    pub fn shape(&self, v: Val) -> Vec<usize> {
        self.ty(v).as_tile().map(|(_, s)| s.to_vec()).unwrap_or_default()
    }
    /// The element type of a value.
    pub fn dtype(&self, v: Val) -> DType {
        self.ty(v).dtype()
    }
    /// The value of a constant `i64` scalar.
    pub fn as_int(&self, v: Val) -> Option<i64> {
        self.ints.get(&v).copied()
    }

    /// Adds a buffer parameter.
    pub fn buffer(&mut self, name: &str, dtype: DType, access: Access) -> Val {
        self.param(name, ParamKind::Buffer(dtype, access), Ty::Buffer { dtype })
    }
    /// Adds a scalar parameter.
    pub fn scalar(&mut self, name: &str, dtype: DType) -> Val {
        self.param(name, ParamKind::Scalar(dtype), Ty::scalar(dtype))
    }
    fn param(&mut self, name: &str, kind: ParamKind, ty: Ty) -> Val {
        let value = self.kernel.new_value(ty);
        self.kernel.params.push(Param { name: name.to_string(), kind, value });
        value
    }

    fn error(&self, op: &Op, detail: String) -> TileError {
        TileError::Rule { kernel: self.kernel.name.clone(), op: op.name().to_string(), detail }
    }

    fn push(&mut self, op: Op, operands: Vec<Val>, tys: Vec<Ty>, blocks: Vec<Block>) -> Vec<Val> {
        let results: Vec<Val> = tys.into_iter().map(|t| self.kernel.new_value(t)).collect();
        let inst =
            Inst { op, operands, results: results.clone(), blocks, flags: self.flags, loc: self.loc.clone() };
        if let Some(b) = self.stack.last_mut() {
            b.insts.push(inst);
        }
        results
    }

    /// Adds an instruction without regions and gives its results.
    pub fn add_inst(&mut self, op: Op, operands: &[Val]) -> Result<Vec<Val>, TileError> {
        let tys: Vec<&Ty> = operands.iter().map(|&v| self.kernel.ty(v)).collect();
        let results = infer::infer(&op, &tys).map_err(|e| self.error(&op, e))?;
        Ok(self.push(op, operands.to_vec(), results, Vec::new()))
    }
    fn one(&mut self, op: Op, operands: &[Val]) -> One {
        let r = self.add_inst(op, operands)?;
        r.first().copied().ok_or_else(|| TileError::Structure {
            kernel: self.kernel.name.clone(),
            detail: "an instruction without a result is used as a value".into(),
        })
    }

    /// An `i64` constant.
    pub fn int(&mut self, value: i64) -> Val {
        if let Some(&(depth, v)) = self.known.get(&value)
            && depth <= self.stack.len()
        {
            return v;
        }
        let op = Op::Full { dtype: DType::I64, shape: vec![], value: Num::Int(value.into()) };
        let v = self.push(op, vec![], vec![Ty::scalar(DType::I64)], vec![])[0];
        self.ints.insert(v, value);
        self.known.insert(value, (self.stack.len(), v));
        v
    }
    /// A tile of one number.
    pub fn full(&mut self, dtype: DType, shape: &[usize], value: Num) -> One {
        self.one(Op::Full { dtype, shape: shape.to_vec(), value }, &[])
    }
    /// A tile of one number of the type's own kind.
    pub fn splat(&mut self, dtype: DType, shape: &[usize], value: f64) -> One {
        let value = if dtype.is_float() { Num::Float(value) } else { Num::Int(value as i128) };
        self.full(dtype, shape, value)
    }
    /// Counts along a dim.
    pub fn iota(&mut self, dtype: DType, shape: &[usize], dim: usize) -> One {
        self.one(Op::Iota { dtype, shape: shape.to_vec(), dim }, &[])
    }
    /// This instance's coordinate.
    pub fn program_id(&mut self, axis: usize) -> One {
        self.one(Op::ProgramId { axis }, &[])
    }
    /// The grid's extent.
    pub fn num_programs(&mut self, axis: usize) -> One {
        self.one(Op::NumPrograms { axis }, &[])
    }
    /// Number of elements of a buffer.
    pub fn buffer_len(&mut self, buffer: Val) -> One {
        self.one(Op::BufferLen {}, &[buffer])
    }
    /// A scalar operation of one operand.
    pub fn unary(&mut self, op: Unary, x: Val) -> One {
        self.one(Op::Unary(op), &[x])
    }
    /// A scalar operation of two operands; folds on constant `i64` scalars.
    pub fn binary(&mut self, op: Binary, a: Val, b: Val) -> One {
        match (op, self.as_int(a), self.as_int(b)) {
            (Binary::Add, Some(x), Some(y)) => return Ok(self.int(x.wrapping_add(y))),
            (Binary::Sub, Some(x), Some(y)) => return Ok(self.int(x.wrapping_sub(y))),
            (Binary::Mul, Some(x), Some(y)) => return Ok(self.int(x.wrapping_mul(y))),
            (Binary::Min, Some(x), Some(y)) => return Ok(self.int(x.min(y))),
            (Binary::Max, Some(x), Some(y)) => return Ok(self.int(x.max(y))),
            (Binary::Div, Some(x), Some(y)) if y > 0 => return Ok(self.int(x / y)),
            (Binary::Rem, Some(x), Some(y)) if y > 0 => return Ok(self.int(x % y)),
            (Binary::Add, Some(0), None) | (Binary::Mul, Some(1), None) => return Ok(b),
            (Binary::Add | Binary::Sub, None, Some(0)) | (Binary::Mul | Binary::Div, None, Some(1)) => {
                return Ok(a);
            }
            (Binary::Mul, Some(0), None) | (Binary::Mul, None, Some(0)) | (Binary::Rem, None, Some(1)) => {
                return Ok(self.int(0));
            }
            _ => {}
        }
        self.one(Op::Binary(op), &[a, b])
    }
    /// Sum.
    pub fn add(&mut self, a: Val, b: Val) -> One {
        self.binary(Binary::Add, a, b)
    }
    /// Difference.
    pub fn sub(&mut self, a: Val, b: Val) -> One {
        self.binary(Binary::Sub, a, b)
    }
    /// Product.
    pub fn mul(&mut self, a: Val, b: Val) -> One {
        self.binary(Binary::Mul, a, b)
    }
    /// Quotient.
    pub fn div(&mut self, a: Val, b: Val) -> One {
        self.binary(Binary::Div, a, b)
    }
    /// Lesser.
    pub fn min(&mut self, a: Val, b: Val) -> One {
        self.binary(Binary::Min, a, b)
    }
    /// Greater.
    pub fn max(&mut self, a: Val, b: Val) -> One {
        self.binary(Binary::Max, a, b)
    }
    /// Sum of an `i64` scalar and a constant.
    pub fn add_int(&mut self, a: Val, b: i64) -> One {
        let b = self.int(b);
        self.add(a, b)
    }
    /// Product of an `i64` scalar and a constant.
    pub fn mul_int(&mut self, a: Val, b: i64) -> One {
        let b = self.int(b);
        self.mul(a, b)
    }
    /// `ceil(a / b)` of an `i64` scalar that is not negative and a positive constant.
    pub fn ceil_div_int(&mut self, a: Val, b: i64) -> One {
        let a = self.add_int(a, b - 1)?;
        let b = self.int(b);
        self.div(a, b)
    }
    /// Comparison.
    pub fn compare(&mut self, op: Compare, a: Val, b: Val) -> One {
        self.one(Op::Compare(op), &[a, b])
    }
    /// Choice.
    pub fn select(&mut self, p: Val, a: Val, b: Val) -> One {
        self.one(Op::Select {}, &[p, a, b])
    }
    /// `a * b + c`, rounded once.
    pub fn fma(&mut self, a: Val, b: Val, c: Val) -> One {
        self.one(Op::Fma {}, &[a, b, c])
    }
    /// Conversion; nothing is added where the type is right already.
    pub fn cast(&mut self, x: Val, to: DType, mode: CastMode) -> One {
        if self.dtype(x) == to { Ok(x) } else { self.one(Op::Cast { to, mode }, &[x]) }
    }
    /// The same bits as another type.
    pub fn bitcast(&mut self, x: Val, to: DType) -> One {
        if self.dtype(x) == to { Ok(x) } else { self.one(Op::Bitcast { to }, &[x]) }
    }
    /// Repeats to a shape; nothing is added where the tile has it already.
    pub fn broadcast(&mut self, x: Val, shape: &[usize]) -> One {
        if self.shape(x) == shape { Ok(x) } else { self.one(Op::Broadcast { shape: shape.to_vec() }, &[x]) }
    }
    /// The same elements under other dims.
    pub fn reshape(&mut self, x: Val, shape: &[usize]) -> One {
        if self.shape(x) == shape { Ok(x) } else { self.one(Op::Reshape { shape: shape.to_vec() }, &[x]) }
    }
    /// Reorders dims.
    pub fn permute(&mut self, x: Val, perm: &[usize]) -> One {
        if perm.iter().enumerate().all(|(i, &p)| i == p) {
            return Ok(x);
        }
        self.one(Op::Permute { perm: perm.to_vec() }, &[x])
    }
    /// The part at a static offset.
    pub fn extract(&mut self, x: Val, offset: &[usize], shape: &[usize]) -> One {
        if self.shape(x) == shape {
            return Ok(x);
        }
        self.one(Op::Extract { offset: offset.to_vec(), shape: shape.to_vec() }, &[x])
    }
    /// Operands one after another.
    pub fn concat(&mut self, xs: &[Val], dim: usize) -> One {
        if let [x] = xs { Ok(*x) } else { self.one(Op::Concat { dim }, xs) }
    }
    /// Reduction of one operand.
    pub fn reduce(&mut self, combiner: Combiner, x: Val, dims: &[usize]) -> One {
        if dims.is_empty() { Ok(x) } else { self.one(Op::Reduce { combiner, dims: dims.to_vec() }, &[x]) }
    }
    /// `acc + a × b`.
    pub fn mma(&mut self, acc: Val, a: Val, b: Val) -> One {
        self.one(Op::Mma {}, &[acc, a, b])
    }
    /// A window on a buffer.
    pub fn view(&mut self, buffer: Val, offset: Val, dims: &[Val], strides: &[Val]) -> One {
        let operands: Vec<Val> =
            [buffer, offset].into_iter().chain(dims.iter().copied()).chain(strides.iter().copied()).collect();
        self.one(Op::View { rank: dims.len() }, &operands)
    }
    /// Reads a block; `inside` says which view dims are proven inside, `pad` is read outside.
    pub fn load(&mut self, view: Val, index: &[Val], map: TileMap, inside: &[bool], pad: Num) -> One {
        let operands: Vec<Val> = std::iter::once(view).chain(index.iter().copied()).collect();
        self.one(Op::Load { map, inside: inside.to_vec(), pad, masked: false }, &operands)
    }
    /// Says that the element at an index will be read soon.
    pub fn prefetch(&mut self, view: Val, index: &[Val]) -> Result<(), TileError> {
        let operands: Vec<Val> = std::iter::once(view).chain(index.iter().copied()).collect();
        self.add_inst(Op::Prefetch {}, &operands).map(|_| ())
    }
    /// Writes a block.
    pub fn store(
        &mut self,
        view: Val,
        value: Val,
        index: &[Val],
        map: TileMap,
        inside: &[bool],
    ) -> Result<(), TileError> {
        let operands: Vec<Val> = [view, value].into_iter().chain(index.iter().copied()).collect();
        self.add_inst(Op::Store { map, inside: inside.to_vec(), masked: false }, &operands).map(|_| ())
    }
    /// Reads elements at indices; outside the buffer or where the mask is false gives `pad`.
    pub fn gather(&mut self, buffer: Val, index: Val, mask: Option<Val>, pad: Num) -> One {
        let operands: Vec<Val> = [buffer, index].into_iter().chain(mask).collect();
        self.one(Op::Gather { pad, masked: mask.is_some() }, &operands)
    }
    /// Writes elements at indices.
    pub fn scatter(
        &mut self,
        buffer: Val,
        index: Val,
        value: Val,
        mask: Option<Val>,
    ) -> Result<(), TileError> {
        let operands: Vec<Val> = [buffer, index, value].into_iter().chain(mask).collect();
        self.add_inst(Op::Scatter { masked: mask.is_some() }, &operands).map(|_| ())
    }
    /// Block-local memory.
    pub fn alloc(&mut self, dtype: DType, len: usize) -> One {
        self.one(Op::Alloc { dtype, len }, &[])
    }

    fn enter(&mut self, params: Vec<Val>) {
        self.stack.push(Block { params, ..Block::default() });
    }
    fn leave(&mut self, results: Vec<Val>) -> Block {
        let mut block = self.stack.pop().unwrap_or_default();
        block.results = results;
        let depth = self.stack.len();
        self.known.retain(|_, (d, _)| *d <= depth);
        block
    }
    fn check_carried(&self, op: &Op, have: &[Val], want: &[Ty]) -> Result<(), TileError> {
        let fits = have.len() == want.len() && have.iter().zip(want).all(|(v, t)| self.ty(*v) == t);
        if fits {
            return Ok(());
        }
        let show = |tys: Vec<String>| tys.join(", ");
        Err(self.error(
            op,
            format!(
                "a region gives ({}), ({}) is wanted",
                show(have.iter().map(|v| self.ty(*v).to_string()).collect()),
                show(want.iter().map(Ty::to_string).collect())
            ),
        ))
    }

    /// A counted loop: `body(builder, i, carried)` gives the next carried values.
    pub fn for_loop(
        &mut self,
        lo: Val,
        hi: Val,
        step: Val,
        init: &[Val],
        body: impl FnOnce(&mut KernelBuilder, Val, &[Val]) -> Result<Vec<Val>, TileError>,
    ) -> Result<Vec<Val>, TileError> {
        let tys: Vec<Ty> = init.iter().map(|&v| self.ty(v).clone()).collect();
        let i = self.kernel.new_value(Ty::scalar(DType::I64));
        let carried: Vec<Val> = tys.iter().map(|t| self.kernel.new_value(t.clone())).collect();
        self.enter(std::iter::once(i).chain(carried.iter().copied()).collect());
        let results = body(self, i, &carried)?;
        self.check_carried(&Op::For {}, &results, &tys)?;
        let block = self.leave(results);
        let operands: Vec<Val> = [lo, hi, step].into_iter().chain(init.iter().copied()).collect();
        Ok(self.push(Op::For {}, operands, tys, vec![block]))
    }
    /// A conditional loop: `body(builder, carried)` gives the next condition and carried values.
    pub fn while_loop(
        &mut self,
        condition: Val,
        init: &[Val],
        body: impl FnOnce(&mut KernelBuilder, &[Val]) -> Result<(Val, Vec<Val>), TileError>,
    ) -> Result<Vec<Val>, TileError> {
        let tys: Vec<Ty> = init.iter().map(|&v| self.ty(v).clone()).collect();
        let carried: Vec<Val> = tys.iter().map(|t| self.kernel.new_value(t.clone())).collect();
        self.enter(carried.clone());
        let (next, results) = body(self, &carried)?;
        self.check_carried(&Op::While {}, &results, &tys)?;
        self.check_carried(
            &Op::While {},
            &[condition, next],
            &[Ty::scalar(DType::Bool), Ty::scalar(DType::Bool)],
        )?;
        let block = self.leave(std::iter::once(next).chain(results).collect());
        let operands: Vec<Val> = std::iter::once(condition).chain(init.iter().copied()).collect();
        Ok(self.push(Op::While {}, operands, tys, vec![block]))
    }
    /// A branch: both sides give values of the same types.
    pub fn if_else(
        &mut self,
        condition: Val,
        on_true: impl FnOnce(&mut KernelBuilder) -> Result<Vec<Val>, TileError>,
        on_false: impl FnOnce(&mut KernelBuilder) -> Result<Vec<Val>, TileError>,
    ) -> Result<Vec<Val>, TileError> {
        self.check_carried(&Op::If {}, &[condition], &[Ty::scalar(DType::Bool)])?;
        self.enter(vec![]);
        let a = on_true(self)?;
        let tys: Vec<Ty> = a.iter().map(|&v| self.ty(v).clone()).collect();
        let first = self.leave(a);
        self.enter(vec![]);
        let b = on_false(self)?;
        self.check_carried(&Op::If {}, &b, &tys)?;
        let second = self.leave(b);
        Ok(self.push(Op::If {}, vec![condition], tys, vec![first, second]))
    }
}
