//! The reference interpreter: it defines what a kernel computes. Simple rather than fast.
//!
//! Elements are kept as bit patterns and every scalar operation goes through the evaluation of the scalar table. Where the
//! instruction set leaves an order open (reductions, matrix products, scans) this takes row-major order, one rounding a step.

use std::rc::Rc;

use tongtu_tensor::scalar::{Binary, Compare, Unary, eval_binary, eval_compare, eval_fma, eval_unary};
use tongtu_tensor::{CastMode, Combiner, DType, Num, Overflow, Tensor, TensorError};

use crate::check::{self, How, Kind, Monitor};
use crate::error::TileError;
use crate::kernel::{Block, Inst, Kernel, ParamKind, Val};
use crate::op::{Op, Ordering, TileMap};
use crate::types::Ty;

/// The contents of a buffer.
#[derive(Clone, Debug, PartialEq)]
pub struct BufferData {
    /// Element type.
    pub dtype: DType,
    /// The elements' bit patterns.
    pub codes: Vec<u64>,
}

impl BufferData {
    /// Elements of one value.
    pub fn full(dtype: DType, len: usize, value: Num) -> BufferData {
        BufferData { dtype, codes: vec![dtype.encode(value, Overflow::Format); len] }
    }
    /// Elements from numbers, each rounded to the type.
    pub fn from_nums(dtype: DType, values: impl IntoIterator<Item = Num>) -> BufferData {
        let codes = values.into_iter().map(|v| dtype.encode(v, Overflow::Format)).collect();
        BufferData { dtype, codes }
    }
    /// Elements from reals, each rounded to the type.
    pub fn from_f64(dtype: DType, values: &[f64]) -> BufferData {
        BufferData::from_nums(dtype, values.iter().map(|&v| Num::Float(v)))
    }
    /// The elements of a tensor in row-major order.
    pub fn from_tensor(tensor: &Tensor) -> BufferData {
        BufferData { dtype: tensor.dtype(), codes: tensor.codes().collect() }
    }
    /// A tensor of a shape.
    ///
    /// # Errors
    /// The shape holds another number of elements.
    pub fn to_tensor(&self, shape: &[usize]) -> Result<Tensor, TensorError> {
        let mut t = Tensor::zeros(self.dtype, shape)?;
        if t.len() != self.codes.len() {
            return Err(TensorError::BadShape { from: vec![self.codes.len()], to: shape.to_vec() });
        }
        self.codes.iter().enumerate().for_each(|(i, &c)| t.set_code(i, c));
        Ok(t)
    }
    /// One element.
    pub fn get(&self, i: usize) -> Num {
        self.codes.get(i).map_or(Num::Int(0), |&c| self.dtype.decode(c))
    }
    /// All elements as `f64`.
    pub fn to_f64(&self) -> Vec<f64> {
        self.codes.iter().map(|&c| self.dtype.decode(c).to_f64()).collect()
    }
}

/// How to run. [`check`](mod@check) finds more.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Reading scratch that was never written, and a view dim wrongly declared inside, are errors.
    pub checked: bool,
    /// Most element operations before it gives up.
    pub max_steps: u64,
    /// Instances run in descending order.
    pub reverse: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { checked: true, max_steps: 1 << 32, reverse: false }
    }
}

/// Runs every instance of a grid. `buffers` and `scalars` are the kernel's parameters of either kind in their order.
///
/// The kernel must have passed [`verify`](crate::verify()).
///
/// # Errors
/// Arguments that do not fit the parameters, an access past a buffer's end that no view dim catches, a `for` whose step is not
/// positive, the step limit, and in checked mode what [`Options::checked`] says.
pub fn run(
    kernel: &Kernel,
    grid: [i64; 3],
    buffers: &mut [BufferData],
    scalars: &[Num],
    options: &Options,
) -> Result<(), TileError> {
    run_monitored(kernel, grid, buffers, scalars, options, None)
}

/// [`run`] that tells a monitor what happens; beside it, which buffers hold nothing at the start.
pub(crate) fn run_monitored(
    kernel: &Kernel,
    grid: [i64; 3],
    buffers: &mut [BufferData],
    scalars: &[Num],
    options: &Options,
    monitor: Option<(&Monitor, &[bool])>,
) -> Result<(), TileError> {
    let mut m = Machine {
        monitor: monitor.map(|(m, _)| m),
        kernel,
        options,
        grid,
        id: [0; 3],
        values: vec![Slot::None; kernel.types.len()],
        buffers: Vec::new(),
        steps: 0,
    };
    let (mut next_buffer, mut next_scalar) = (0, 0);
    for p in &kernel.params {
        match p.kind {
            ParamKind::Buffer(d, _) => {
                match buffers.get(next_buffer) {
                    Some(b) if b.dtype == d => {}
                    Some(b) => return m.fail(format!("parameter '{}' holds {d}, given {}", p.name, b.dtype)),
                    None => return m.fail(format!("no buffer for parameter '{}'", p.name)),
                }
                m.values[p.value.index()] = Slot::Buffer(next_buffer);
                next_buffer += 1;
            }
            ParamKind::Scalar(d) => {
                let Some(&n) = scalars.get(next_scalar) else {
                    return m.fail(format!("no scalar for parameter '{}'", p.name));
                };
                m.values[p.value.index()] = Slot::Tile(Rc::new(vec![d.encode(n, Overflow::Format)]));
                next_scalar += 1;
            }
        }
    }
    if next_buffer != buffers.len() || next_scalar != scalars.len() {
        return m.fail(format!("{} buffers and {} scalars are too many", buffers.len(), scalars.len()));
    }
    let empty = monitor.map_or(&[][..], |(_, empty)| empty);
    let memory = |(i, b): (usize, &mut BufferData)| {
        let written = empty.get(i).is_some_and(|e| *e).then(|| vec![false; b.codes.len()]);
        Memory { dtype: b.dtype, codes: std::mem::take(&mut b.codes), written }
    };
    m.buffers = buffers.iter_mut().enumerate().map(memory).collect();
    let outcome = m.all();
    for (b, memory) in buffers.iter_mut().zip(m.buffers) {
        b.codes = memory.codes;
    }
    outcome
}

type Run<T> = Result<T, TileError>;
type Codes = Rc<Vec<u64>>;

#[derive(Clone)]
enum Slot {
    None,
    Tile(Codes),
    Buffer(usize),
    View(Rc<ViewData>),
}

struct ViewData {
    buffer: usize,
    offset: i64,
    dims: Vec<i64>,
    strides: Vec<i64>,
}

struct Memory {
    dtype: DType,
    codes: Vec<u64>,
    /// For scratch, and what is given as uninitialised: which elements have been written.
    written: Option<Vec<bool>>,
}

struct Machine<'a> {
    monitor: Option<&'a Monitor>,
    kernel: &'a Kernel,
    options: &'a Options,
    grid: [i64; 3],
    id: [i64; 3],
    values: Vec<Slot>,
    buffers: Vec<Memory>,
    steps: u64,
}

/// Row-major strides.
fn strides(shape: &[usize]) -> Vec<usize> {
    let mut out = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        out[i - 1] = out[i] * shape[i];
    }
    out
}

/// The coordinate of a row-major position.
fn coordinate(mut at: usize, shape: &[usize], out: &mut [usize]) {
    for i in (0..shape.len()).rev() {
        out[i] = at % shape[i];
        at /= shape[i];
    }
}

/// For every element of a tile of `shape` in row-major order: `base + Σ coordinate × step`.
fn walk(shape: &[usize], steps: &[usize], base: usize) -> Vec<usize> {
    let n = shape.iter().product();
    let mut out = Vec::with_capacity(n);
    let mut c = vec![0; shape.len()];
    for i in 0..n {
        coordinate(i, shape, &mut c);
        out.push(base + c.iter().zip(steps).map(|(a, b)| a * b).sum::<usize>());
    }
    out
}

fn unary(op: Unary, d: DType, x: &[u64]) -> Vec<u64> {
    let to = if matches!(op, Unary::IsNan | Unary::IsInf) { DType::Bool } else { d };
    x.iter().map(|&a| to.encode(eval_unary(op, d, d.decode(a)), Overflow::Format)).collect()
}

fn binary_one(op: Binary, d: DType, a: u64, b: u64) -> u64 {
    if d == DType::F32 {
        let (x, y) = (f32::from_bits(a as u32), f32::from_bits(b as u32));
        let r = match op {
            Binary::Add => x + y,
            Binary::Sub => x - y,
            Binary::Mul => x * y,
            Binary::Div => x / y,
            _ => return d.encode(eval_binary(op, d, d.decode(a), d.decode(b)), Overflow::Format),
        };
        return r.to_bits().into();
    }
    d.encode(eval_binary(op, d, d.decode(a), d.decode(b)), Overflow::Format)
}

fn compare_one(op: Compare, d: DType, a: u64, b: u64) -> u64 {
    eval_compare(op, d, d.decode(a), d.decode(b)).into()
}

fn fma_one(d: DType, a: u64, b: u64, c: u64) -> u64 {
    match d {
        DType::F32 => {
            let f = |c: u64| f32::from_bits(c as u32);
            f(a).mul_add(f(b), f(c)).to_bits().into()
        }
        DType::F64 => {
            let f = f64::from_bits;
            f(a).mul_add(f(b), f(c)).to_bits()
        }
        _ => d.encode(eval_fma(d, d.decode(a), d.decode(b), d.decode(c)), Overflow::Format),
    }
}

/// Whether the pair `(v, i)` replaces `(w, j)` for an arg-combiner.
fn wins(combiner: Combiner, d: DType, id: DType, v: u64, i: u64, w: u64, j: u64) -> bool {
    let (v, w) = (d.decode(v), d.decode(w));
    let (i, j) = (id.decode(i).to_i128(), id.decode(j).to_i128());
    let last = matches!(combiner, Combiner::ArgMaxLast | Combiner::ArgMinLast);
    let by_index = if last { i > j } else { i < j };
    match (v.is_nan(), w.is_nan()) {
        (true, true) => by_index,
        (true, false) => true,
        (false, true) => false,
        _ if eval_compare(Compare::Eq, d, v, w) => by_index,
        _ if matches!(combiner, Combiner::ArgMax | Combiner::ArgMaxLast) => {
            eval_compare(Compare::Gt, d, v, w)
        }
        _ => eval_compare(Compare::Lt, d, v, w),
    }
}

/// Combines element `at` of `from` into element `to` of `into`, for one or two operands.
fn combine(combiner: Combiner, tys: &[DType], into: &mut [Vec<u64>], to: usize, from: &[u64]) {
    match combiner.binary() {
        Some(b) => into[0][to] = binary_one(b, tys[0], into[0][to], from[0]),
        None if combiner.arity() == 2 => {
            if wins(combiner, tys[0], tys[1], from[0], from[1], into[0][to], into[1][to]) {
                into[0][to] = from[0];
                into[1][to] = from[1];
            }
        }
        None => into[0][to] = from[0],
    }
}

impl Machine<'_> {
    fn fail<T>(&self, detail: String) -> Run<T> {
        Err(TileError::Run { kernel: self.kernel.name.clone(), detail })
    }

    fn all(&mut self) -> Run<()> {
        let [x, y, z] = self.grid;
        let count = [x, y, z].iter().try_fold(1i64, |n, &g| n.checked_mul(g.max(0)));
        let Some(count) = count else { return self.fail(format!("a grid of {:?}", self.grid)) };
        let params = self.buffers.len();
        for i in 0..count {
            let i = if self.options.reverse { count - 1 - i } else { i };
            self.id = [i % x, i / x % y, i / x / y];
            if let Some(monitor) = self.monitor {
                monitor.start(i);
            }
            self.block(&self.kernel.body)?;
            self.buffers.truncate(params);
        }
        Ok(())
    }

    fn ty(&self, v: Val) -> &Ty {
        self.kernel.ty(v)
    }
    fn dtype(&self, v: Val) -> DType {
        self.ty(v).dtype()
    }
    fn shape(&self, v: Val) -> &[usize] {
        self.ty(v).as_tile().map_or(&[], |(_, s)| s)
    }
    fn get(&self, v: Val) -> Run<Codes> {
        match &self.values[v.index()] {
            Slot::Tile(c) => Ok(c.clone()),
            _ => self.fail(format!("value {} is no tile", v.0)),
        }
    }
    fn buffer(&self, v: Val) -> Run<usize> {
        match &self.values[v.index()] {
            Slot::Buffer(b) => Ok(*b),
            _ => self.fail(format!("value {} is no buffer", v.0)),
        }
    }
    fn int(&self, v: Val) -> Run<i64> {
        Ok(self.get(v)?.first().map_or(0, |&c| c as i64))
    }
    fn flag(&self, v: Val) -> Run<bool> {
        Ok(self.get(v)?.first().is_some_and(|&c| c != 0))
    }
    fn set(&mut self, v: Val, codes: Vec<u64>) {
        self.values[v.index()] = Slot::Tile(Rc::new(codes));
    }

    fn block(&mut self, block: &Block) -> Run<()> {
        block.insts.iter().try_for_each(|i| self.inst(i))
    }

    /// Runs a region with these parameters and gives its results.
    fn region(&mut self, block: &Block, params: Vec<Codes>) -> Run<Vec<Codes>> {
        for (&p, c) in block.params.iter().zip(params) {
            self.values[p.index()] = Slot::Tile(c);
        }
        self.block(block)?;
        block.results.iter().map(|&r| self.get(r)).collect()
    }

    fn inst(&mut self, inst: &Inst) -> Run<()> {
        let work =
            inst.results.iter().chain(inst.operands.iter()).map(|&v| self.shape(v).iter().product::<usize>());
        self.steps += work.max().unwrap_or(1) as u64;
        if self.steps > self.options.max_steps {
            return self.fail(format!("more than {} steps", self.options.max_steps));
        }
        if let Some(monitor) = self.monitor {
            monitor.enter(inst);
        }
        match inst.op {
            Op::For {} | Op::While {} | Op::If {} => {
                let results = self.control(inst)?;
                for (&r, c) in inst.results.iter().zip(results) {
                    self.values[r.index()] = Slot::Tile(c);
                }
                Ok(())
            }
            _ => {
                self.plain(inst)?;
                match self.monitor {
                    Some(monitor) if monitor.nan && check::computes(&inst.op) => self.find_nan(inst, monitor),
                    _ => Ok(()),
                }
            }
        }
    }

    /// Reports NaN in a result where no operand has any: of elementwise instructions at the same element.
    fn find_nan(&self, inst: &Inst, monitor: &Monitor) -> Run<()> {
        let nans = |v: Val| -> Run<Vec<bool>> {
            let d = self.dtype(v);
            match (self.ty(v).as_tile(), d.is_float()) {
                (Some(_), true) => Ok(self.get(v)?.iter().map(|&c| d.decode(c).is_nan()).collect()),
                _ => Ok(Vec::new()),
            }
        };
        let operands = inst.operands.iter().map(|&v| nans(v)).collect::<Run<Vec<_>>>()?;
        for &r in &inst.results {
            let result = nans(r)?;
            let excused = |i: usize| {
                operands.iter().any(|o| match o.len() == result.len() && o.len() > 1 {
                    true => {
                        o[i] || matches!(inst.op, Op::Scan { .. } | Op::Mma {} | Op::Permute { .. })
                            && o.contains(&true)
                    }
                    false => o.contains(&true),
                })
            };
            if let Some(i) = (0..result.len()).find(|&i| result[i] && !excused(i)) {
                monitor
                    .report(Kind::Nan, || format!("element {i} of the result is NaN, and no operand's is"));
            }
        }
        Ok(())
    }

    fn control(&mut self, inst: &Inst) -> Run<Vec<Codes>> {
        let ops = &inst.operands;
        let carried = |m: &Self, from: usize| ops[from..].iter().map(|&v| m.get(v)).collect::<Run<Vec<_>>>();
        match inst.op {
            Op::For {} => {
                let (lo, hi, step) = (self.int(ops[0])?, self.int(ops[1])?, self.int(ops[2])?);
                if step <= 0 {
                    return self.fail(format!("a loop of step {step}"));
                }
                let mut carried = carried(self, 3)?;
                let mut i = lo;
                while i < hi {
                    self.steps += 1;
                    let params = std::iter::once(Rc::new(vec![i as u64])).chain(carried).collect();
                    carried = self.region(&inst.blocks[0], params)?;
                    match i.checked_add(step) {
                        Some(next) => i = next,
                        None => break,
                    }
                }
                Ok(carried)
            }
            Op::While {} => {
                let mut go = self.flag(ops[0])?;
                let mut carried = carried(self, 1)?;
                while go {
                    self.steps += 1;
                    if self.steps > self.options.max_steps {
                        return self.fail(format!("more than {} steps", self.options.max_steps));
                    }
                    let mut next = self.region(&inst.blocks[0], carried)?;
                    go = next.first().and_then(|c| c.first()).is_some_and(|&c| c != 0);
                    carried = next.split_off(1.min(next.len()));
                }
                Ok(carried)
            }
            _ => {
                let side = usize::from(!self.flag(ops[0])?);
                self.region(&inst.blocks[side], Vec::new())
            }
        }
    }

    fn plain(&mut self, inst: &Inst) -> Run<()> {
        let ops = &inst.operands;
        let d0 = ops.first().map_or(DType::Bool, |&v| self.dtype(v));
        let result = match &inst.op {
            Op::Unary(u) => unary(*u, d0, &self.get(ops[0])?),
            Op::Binary(b) => {
                let (x, y) = (self.get(ops[0])?, self.get(ops[1])?);
                x.iter().zip(y.iter()).map(|(&a, &c)| binary_one(*b, d0, a, c)).collect()
            }
            Op::Compare(c) => {
                let (x, y) = (self.get(ops[0])?, self.get(ops[1])?);
                x.iter().zip(y.iter()).map(|(&a, &b)| compare_one(*c, d0, a, b)).collect()
            }
            Op::Full { dtype, shape, value } => {
                vec![dtype.encode(*value, Overflow::Format); shape.iter().product()]
            }
            Op::Iota { dtype, shape, dim } => {
                let (mut c, n) = (vec![0; shape.len()], shape.iter().product());
                let one = |i| {
                    coordinate(i, shape, &mut c);
                    dtype.encode(Num::Int(c[*dim] as i128), Overflow::Format)
                };
                (0..n).map(one).collect()
            }
            Op::ProgramId { axis } => vec![self.id[*axis] as u64],
            Op::NumPrograms { axis } => vec![self.grid[*axis] as u64],
            Op::BufferLen {} => vec![self.buffers[self.buffer(ops[0])?].codes.len() as u64],
            Op::Select {} => {
                let (p, a, b) = (self.get(ops[0])?, self.get(ops[1])?, self.get(ops[2])?);
                let at = |i: usize| if p.len() == 1 { p[0] != 0 } else { p[i] != 0 };
                (0..a.len()).map(|i| if at(i) { a[i] } else { b[i] }).collect()
            }
            Op::Fma {} => {
                let (a, b, c) = (self.get(ops[0])?, self.get(ops[1])?, self.get(ops[2])?);
                (0..a.len()).map(|i| fma_one(d0, a[i], b[i], c[i])).collect()
            }
            Op::Cast { to, mode } => self.get(ops[0])?.iter().map(|&c| cast_one(d0, *to, *mode, c)).collect(),
            Op::Bitcast { .. } if self.dtype(inst.results[0]).is_bool() => {
                self.get(ops[0])?.iter().map(|&c| u64::from(c & 0xff != 0)).collect()
            }
            Op::Bitcast { .. } | Op::Reshape { .. } => self.get(ops[0])?.to_vec(),
            Op::Broadcast { shape } => {
                let (x, from) = (self.get(ops[0])?, self.shape(ops[0]));
                let mut steps = vec![0; shape.len() - from.len()];
                steps.extend(strides(from).iter().zip(from).map(|(&s, &n)| if n == 1 { 0 } else { s }));
                walk(shape, &steps, 0).iter().map(|&i| x[i]).collect()
            }
            Op::Permute { perm } => {
                let (x, s) = (self.get(ops[0])?, strides(self.shape(ops[0])));
                let steps: Vec<usize> = perm.iter().map(|&p| s[p]).collect();
                walk(self.shape(inst.results[0]), &steps, 0).iter().map(|&i| x[i]).collect()
            }
            Op::Extract { offset, shape } => {
                let (x, s) = (self.get(ops[0])?, strides(self.shape(ops[0])));
                let base = offset.iter().zip(&s).map(|(a, b)| a * b).sum();
                walk(shape, &s, base).iter().map(|&i| x[i]).collect()
            }
            Op::Concat { dim } => self.concat(inst, *dim)?,
            Op::TakeAlong { dim } => {
                let (x, index) = (self.get(ops[0])?, self.get(ops[1])?);
                let (shape, id) = (self.shape(ops[0]), self.dtype(ops[1]));
                let s = strides(shape);
                let mut steps = s.clone();
                steps[*dim] = 0;
                let base = walk(self.shape(ops[1]), &steps, 0);
                let one = |(at, &i): (usize, &u64)| {
                    let i = id.decode(i).to_i128();
                    if (0..shape[*dim] as i128).contains(&i) { x[base[at] + i as usize * s[*dim]] } else { 0 }
                };
                index.iter().enumerate().map(one).collect()
            }
            Op::Reduce { combiner, dims } => return self.reduce(inst, *combiner, dims),
            Op::Scan { combiner, dim, reverse } => return self.scan(inst, *combiner, *dim, *reverse),
            Op::Mma {} | Op::MmaScaled {} => self.mma(inst)?,
            Op::View { rank } => {
                let ints = |m: &Self, vals: &[Val]| vals.iter().map(|&v| m.int(v)).collect::<Run<Vec<_>>>();
                let view = ViewData {
                    buffer: self.buffer(ops[0])?,
                    offset: self.int(ops[1])?,
                    dims: ints(self, &ops[2..2 + rank])?,
                    strides: ints(self, &ops[2 + rank..])?,
                };
                self.values[inst.results[0].index()] = Slot::View(Rc::new(view));
                return Ok(());
            }
            Op::Load { map, inside, pad, masked } => {
                let mask = if *masked { ops.last().map(|&m| self.get(m)).transpose()? } else { None };
                let (buffer, places) = self.places(ops[0], &ops[1..], map, inside, mask.as_deref())?;
                let pad = d0.encode(*pad, Overflow::Format);
                places.into_iter().map(|p| p.map_or(Ok(pad), |p| self.read(buffer, p))).collect::<Run<_>>()?
            }
            Op::Store { map, inside, masked } => {
                let mask = if *masked { ops.last().map(|&m| self.get(m)).transpose()? } else { None };
                let (buffer, places) = self.places(ops[0], &ops[2..], map, inside, mask.as_deref())?;
                let value = self.get(ops[1])?;
                for (p, &c) in places.into_iter().zip(value.iter()) {
                    if let Some(p) = p {
                        self.write(buffer, p, c);
                    }
                }
                return Ok(());
            }
            Op::Prefetch {} => return Ok(()),
            Op::Alloc { dtype, len } => {
                let garbage = u64::MAX >> (64 - dtype.bits());
                let garbage = if dtype.is_bool() { 1 } else { garbage };
                let written = Some(vec![false; *len]);
                self.values[inst.results[0].index()] = Slot::Buffer(self.buffers.len());
                self.buffers.push(Memory { dtype: *dtype, codes: vec![garbage; *len], written });
                return Ok(());
            }
            Op::Gather { pad, masked } => {
                let pad = d0.encode(*pad, Overflow::Format);
                let (b, at) = self.indexed(inst, if *masked { Some(2) } else { None })?;
                at.into_iter().map(|p| p.map_or(Ok(pad), |p| self.read(b, p))).collect::<Run<_>>()?
            }
            Op::Scatter { masked } => {
                let (b, at) = self.indexed(inst, if *masked { Some(3) } else { None })?;
                let value = self.get(ops[2])?;
                for (p, &c) in at.into_iter().zip(value.iter()) {
                    if let Some(p) = p {
                        self.write(b, p, c);
                    }
                }
                return Ok(());
            }
            Op::AtomicReduce { combiner, masked, .. } | Op::AtomicRmw { combiner, masked, .. } => {
                let ordering = match &inst.op {
                    Op::AtomicRmw { ordering, .. } => *ordering,
                    _ => Ordering::Relaxed,
                };
                let (b, at) = self.indexed(inst, if *masked { Some(3) } else { None })?;
                let value = self.get(ops[2])?;
                let mut old = Vec::with_capacity(value.len());
                for (p, &c) in at.into_iter().zip(value.iter()) {
                    let Some(p) = p else {
                        old.push(0);
                        continue;
                    };
                    let was = self.atomic(b, p, ordering)?;
                    old.push(was);
                    let new = combiner.binary().map_or(c, |op| binary_one(op, d0, was, c));
                    self.put(b, p, new);
                }
                if inst.results.is_empty() {
                    return Ok(());
                }
                old
            }
            Op::AtomicCas { ordering, .. } => {
                let (b, at) = self.indexed(inst, None)?;
                let (expected, desired) = (self.get(ops[2])?, self.get(ops[3])?);
                let mut old = Vec::with_capacity(expected.len());
                for (i, p) in at.into_iter().enumerate() {
                    let Some(p) = p else {
                        old.push(0);
                        continue;
                    };
                    let was = self.atomic(b, p, *ordering)?;
                    if was == expected[i] {
                        self.put(b, p, desired[i]);
                    }
                    old.push(was);
                }
                old
            }
            Op::For {} | Op::While {} | Op::If {} => return Ok(()),
        };
        if let Some(&r) = inst.results.first() {
            self.set(r, result);
        }
        Ok(())
    }

    fn concat(&self, inst: &Inst, dim: usize) -> Run<Vec<u64>> {
        let shape = self.shape(inst.results[0]);
        let outer: usize = shape[..dim].iter().product();
        let inner: usize = shape[dim + 1..].iter().product();
        let parts: Vec<(Codes, usize)> = inst
            .operands
            .iter()
            .map(|&v| Ok((self.get(v)?, self.shape(v)[dim] * inner)))
            .collect::<Run<_>>()?;
        let mut out = Vec::with_capacity(shape.iter().product());
        for o in 0..outer {
            for (c, run) in &parts {
                out.extend_from_slice(&c[o * run..(o + 1) * run]);
            }
        }
        Ok(out)
    }

    fn reduce(&mut self, inst: &Inst, combiner: Combiner, dims: &[usize]) -> Run<()> {
        let shape = self.shape(inst.operands[0]).to_vec();
        let inputs: Vec<Codes> = inst.operands.iter().map(|&v| self.get(v)).collect::<Run<_>>()?;
        let tys: Vec<DType> = inst.operands.iter().map(|&v| self.dtype(v)).collect();
        let kept = strides(self.shape(inst.results[0]));
        let mut kept = kept.into_iter();
        let steps: Vec<usize> =
            (0..shape.len()).map(|i| if dims.contains(&i) { 0 } else { kept.next().unwrap_or(0) }).collect();
        let n: usize = self.shape(inst.results[0]).iter().product();
        let mut out: Vec<Vec<u64>> = vec![vec![0; n]; inputs.len()];
        let mut seen = vec![false; n];
        for (i, to) in walk(&shape, &steps, 0).into_iter().enumerate() {
            let from: Vec<u64> = inputs.iter().map(|c| c[i]).collect();
            if seen[to] {
                combine(combiner, &tys, &mut out, to, &from);
            } else {
                seen[to] = true;
                out.iter_mut().zip(from).for_each(|(o, f)| o[to] = f);
            }
        }
        for (&r, codes) in inst.results.iter().zip(out) {
            self.set(r, codes);
        }
        Ok(())
    }

    fn scan(&mut self, inst: &Inst, combiner: Combiner, dim: usize, reverse: bool) -> Run<()> {
        let shape = self.shape(inst.operands[0]).to_vec();
        let tys: Vec<DType> = inst.operands.iter().map(|&v| self.dtype(v)).collect();
        let mut out: Vec<Vec<u64>> =
            inst.operands.iter().map(|&v| Ok(self.get(v)?.to_vec())).collect::<Run<_>>()?;
        let (n, step) = (shape[dim], strides(&shape)[dim]);
        let total: usize = shape.iter().product();
        for base in (0..total).filter(|i| i / step % n == 0) {
            for k in 1..n {
                let (k, before) = if reverse { (n - 1 - k, n - k) } else { (k, k - 1) };
                let (at, prev) = (base + k * step, base + before * step);
                let here: Vec<u64> = out.iter().map(|o| o[at]).collect();
                for o in &mut out {
                    o[at] = o[prev];
                }
                combine(combiner, &tys, &mut out, at, &here);
            }
        }
        for (&r, codes) in inst.results.iter().zip(out) {
            self.set(r, codes);
        }
        Ok(())
    }

    fn mma(&mut self, inst: &Inst) -> Run<Vec<u64>> {
        let (acc, a, b, scales) = match inst.operands[..] {
            [acc, a, b] => (acc, a, b, None),
            [acc, a, s, b, u] => (acc, a, b, Some((s, u))),
            _ => return self.fail("mma takes 3 operands, or 5".into()),
        };
        let (t, ta, tb) = (self.dtype(acc), self.dtype(a), self.dtype(b));
        let (m, k, n) = (self.shape(a)[0], self.shape(a)[1], self.shape(b)[1]);
        self.steps += (m * n * k) as u64;
        let decode = |c: &[u64], d: DType| c.iter().map(|&c| d.decode(c)).collect::<Vec<_>>();
        let (mut x, mut y) = (decode(&self.get(a)?, ta), decode(&self.get(b)?, tb));
        if let Some((s, u)) = scales {
            let (groups, others) = (self.shape(s)[1], self.shape(u)[0]);
            let (s, u) = (decode(&self.get(s)?, self.dtype(s)), decode(&self.get(u)?, self.dtype(u)));
            let scaled = |x: Num, s: Num| eval_binary(Binary::Mul, t, x, s);
            for (i, x) in x.iter_mut().enumerate() {
                *x = scaled(*x, s[i / k * groups + i % k / (k / groups)]);
            }
            for (i, y) in y.iter_mut().enumerate() {
                *y = scaled(*y, u[i / n / (k / others) * n + i % n]);
            }
        }
        let mut out = self.get(acc)?.to_vec();
        for i in 0..m {
            for j in 0..n {
                let mut sum = t.decode(out[i * n + j]);
                for l in 0..k {
                    sum = eval_fma(t, x[i * k + l], y[l * n + j], sum);
                }
                out[i * n + j] = t.encode(sum, Overflow::Format);
            }
        }
        Ok(out)
    }

    /// For each element of a block access its place in the buffer, or `None` where it is outside or masked.
    fn places(
        &self,
        view: Val,
        index: &[Val],
        map: &TileMap,
        inside: &[bool],
        mask: Option<&Vec<u64>>,
    ) -> Run<(usize, Vec<Option<usize>>)> {
        let Slot::View(view) = &self.values[view.index()] else { return self.fail("no view".into()) };
        let rank = view.dims.len();
        let base: Vec<i64> = index[..rank].iter().map(|&v| self.int(v)).collect::<Run<_>>()?;
        let shape = map.shape();
        // What each coordinate of each tile dim adds to the view index.
        let tables: Vec<Vec<Vec<i64>>> = map
            .0
            .iter()
            .zip(&shape)
            .map(|(factors, &n)| {
                let sizes: Vec<usize> = factors.iter().map(|f| f.size).collect();
                let mut c = vec![0; sizes.len()];
                let one = |t| {
                    coordinate(t, &sizes, &mut c);
                    let mut add = vec![0i64; rank];
                    for (f, &x) in factors.iter().zip(&c) {
                        if let Some(d) = f.dim {
                            add[d] += x as i64 * f.step;
                        }
                    }
                    add
                };
                (0..n).map(one).collect()
            })
            .collect();
        let len = self.buffers[view.buffer].codes.len() as i128;
        let (mut c, n) = (vec![0; shape.len()], shape.iter().product());
        let mut out = Vec::with_capacity(n);
        for i in 0..n {
            coordinate(i, &shape, &mut c);
            let mut address = i128::from(view.offset);
            let mut present = mask.is_none_or(|m| m[i] != 0);
            for d in 0..rank {
                let at = tables.iter().zip(&c).fold(base[d], |s, (t, &x)| s.wrapping_add(t[x][d]));
                if !(0..view.dims[d]).contains(&at) {
                    if inside[d] && present && self.options.checked {
                        let detail = format!(
                            "index {at} of view dim {d} is declared inside but the dim is {}",
                            view.dims[d]
                        );
                        match self.monitor {
                            Some(monitor) => monitor.report(Kind::Outside, || detail),
                            None => return self.fail(detail),
                        }
                        present = false;
                    }
                    present &= inside[d];
                }
                address += i128::from(at) * i128::from(view.strides[d]);
            }
            if present && !(0..len).contains(&address) {
                let detail = format!("a view reaches element {address} of a buffer of {len}");
                match self.monitor {
                    Some(monitor) => monitor.report(Kind::Outside, || detail),
                    None => return self.fail(detail),
                }
                present = false;
            }
            out.push(present.then_some(address as usize));
        }
        Ok((view.buffer, out))
    }

    /// The places of an access by indices; `mask` is the mask's operand position.
    fn indexed(&self, inst: &Inst, mask: Option<usize>) -> Run<(usize, Vec<Option<usize>>)> {
        let buffer = self.buffer(inst.operands[0])?;
        let (index, d) = (self.get(inst.operands[1])?, self.dtype(inst.operands[1]));
        let mask = mask.map(|m| self.get(inst.operands[m])).transpose()?;
        let len = self.buffers[buffer].codes.len() as i128;
        let one = |(i, &c): (usize, &u64)| {
            let at = d.decode(c).to_i128();
            let present = mask.as_ref().is_none_or(|m| m[i] != 0) && (0..len).contains(&at);
            present.then_some(at as usize)
        };
        Ok((buffer, index.iter().enumerate().map(one).collect()))
    }

    fn read(&self, buffer: usize, at: usize) -> Run<u64> {
        if let Some(monitor) = self.monitor {
            monitor.touch(buffer, self.buffers[buffer].dtype, at, How::Read);
        }
        self.value(buffer, at)
    }

    /// An element's value, which has to have been written.
    fn value(&self, buffer: usize, at: usize) -> Run<u64> {
        let m = &self.buffers[buffer];
        match &m.written {
            Some(w) if self.options.checked && !w[at] => {
                let scratch =
                    self.kernel.params.iter().filter(|p| matches!(p.kind, ParamKind::Buffer(..))).count();
                let what = if buffer < scratch { "buffer" } else { "scratch buffer" };
                let detail = format!(
                    "element {at} of a {what} of {} {} is read before it is written",
                    w.len(),
                    m.dtype
                );
                match self.monitor {
                    Some(monitor) => {
                        monitor.report(Kind::Uninitialised, || detail);
                        Ok(m.codes[at])
                    }
                    None => self.fail(detail),
                }
            }
            _ => Ok(m.codes[at]),
        }
    }

    /// An atomic access begins: what memory holds.
    fn atomic(&self, buffer: usize, at: usize, ordering: Ordering) -> Run<u64> {
        if let Some(monitor) = self.monitor {
            monitor.order(buffer, at, ordering);
            monitor.touch(buffer, self.buffers[buffer].dtype, at, How::Atomic);
        }
        self.value(buffer, at)
    }

    fn write(&mut self, buffer: usize, at: usize, code: u64) {
        if let Some(monitor) = self.monitor {
            monitor.touch(buffer, self.buffers[buffer].dtype, at, How::Write);
        }
        self.put(buffer, at, code);
    }

    fn put(&mut self, buffer: usize, at: usize, code: u64) {
        let m = &mut self.buffers[buffer];
        m.codes[at] = code;
        if let Some(w) = &mut m.written {
            w[at] = true;
        }
    }
}

fn cast_one(from: DType, to: DType, mode: CastMode, code: u64) -> u64 {
    to.encode_rounded(from.decode(code), mode)
}
