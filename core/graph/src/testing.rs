//! Random graphs and values, for tests of everything that reads graphs.
//!
//! All of it is a pure function of a seed, so that a failing case is named by a number.

use tongtu_tensor::dim::Dim;
use tongtu_tensor::scalar::{Binary, Compare, Unary};
use tongtu_tensor::{CastMode, Combiner, DType, Num, Overflow, Rounding, Tensor};

use crate::build::Builder;
use crate::error::GraphError;
use crate::eval::Bindings;
use crate::graph::{Loc, Module, Type, ValueId};
use crate::op::{ConvRole, ConvSpec, Op, WindowSpec};

/// A small generator of random numbers (SplitMix64 of Steele, Lea and Flood).
#[derive(Clone, Debug)]
pub struct Rng(pub u64);

impl Rng {
    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
    /// A number below `n` (0 for 0).
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n.max(1) as u64) as usize
    }
    /// True once in `n` times.
    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
    /// A number in 0..1.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 * libm::ldexp(1.0, -53)
    }
    /// One of a list that is not empty.
    pub fn pick<T: Clone>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())].clone()
    }
}

/// A kind of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Unary, binary, compare, select, fma.
    Elementwise,
    /// Cast and bitcast.
    Cast,
    /// Reshape, permute, broadcast, slice, pad, concat.
    Move,
    /// Constant, iota, dim, random bits.
    Source,
    /// Take, take along, gather.
    Gather,
    /// Scatters.
    Scatter,
    /// Reduce and window reduce.
    Reduce,
    /// Scan.
    Scan,
    /// Sort.
    Sort,
    /// Contract.
    Contract,
    /// Conv.
    Conv,
    /// Activations, softmax, normalisation.
    Composite,
    /// If and while.
    Control,
    /// Nonzero: sizes that depend on data.
    Dynamic,
}

impl Family {
    /// Every kind.
    pub const ALL: &'static [Family] = &[
        Family::Elementwise,
        Family::Cast,
        Family::Move,
        Family::Source,
        Family::Gather,
        Family::Scatter,
        Family::Reduce,
        Family::Scan,
        Family::Sort,
        Family::Contract,
        Family::Conv,
        Family::Composite,
        Family::Control,
        Family::Dynamic,
    ];
}

/// What random graphs are made of.
#[derive(Clone, Debug)]
pub struct Options {
    /// Operations tried.
    pub nodes: usize,
    /// Element types of inputs and casts.
    pub dtypes: Vec<DType>,
    /// Kinds of operations.
    pub families: Vec<Family>,
    /// Lengths that input dims may have.
    pub lengths: Vec<usize>,
    /// Make some input dims symbols.
    pub symbols: bool,
    /// Infinities, NaN, zeros of both signs, subnormals and extremes among the elements.
    pub specials: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            nodes: 8,
            dtypes: DType::ALL.to_vec(),
            families: Family::ALL.to_vec(),
            lengths: vec![0, 1, 2, 3, 4, 5, 7],
            symbols: true,
            specials: true,
        }
    }
}

/// Most elements of a value in a random graph.
const MAX_ELEMENTS: usize = 2000;

/// A random element: mostly of moderate size, now and then a special one.
pub fn random_element(rng: &mut Rng, dtype: DType, specials: bool) -> Num {
    if specials && rng.once_in(12) {
        return dtype.decode(rng.bits() & (u64::MAX >> (64 - dtype.bits())));
    }
    let value = match dtype {
        DType::Bool => Num::from(rng.once_in(2)),
        d if d.is_float() => {
            let scale = rng.pick(&[0.01, 1.0, 1.0, 4.0]);
            Num::Float((rng.unit() * 2.0 - if d.is_signed() { 1.0 } else { 0.0 }) * scale)
        }
        d => Num::Int(rng.below(9) as i128 - if d.is_signed() { 4 } else { 0 }),
    };
    dtype.decode(dtype.encode(value, Overflow::Saturate))
}

/// A tensor of random elements; `None` if it would be too large.
pub fn random_tensor(rng: &mut Rng, dtype: DType, shape: &[usize], specials: bool) -> Option<Tensor> {
    Tensor::from_fn(dtype, shape, |_| random_element(rng, dtype, specials)).ok()
}

/// A random module, correct by construction, with inputs for it.
pub fn random_module(seed: u64, options: &Options) -> (Module, Vec<Tensor>) {
    let mut rng = Rng(seed);
    let mut module = Module::default();
    module.graph.name = format!("random {seed}");
    let mut bindings = Bindings::new();
    let mut inputs = Vec::new();
    for i in 0..1 + rng.below(3) {
        let dtype = rng.pick(&options.dtypes);
        let rank = rng.pick(&[0, 1, 1, 2, 2, 2, 3, 3, 4]);
        let shape: Vec<usize> = (0..rank).map(|_| rng.pick(&options.lengths)).collect();
        let dims: Vec<Dim> = shape
            .iter()
            .map(|&n| {
                if !options.symbols || !rng.once_in(3) {
                    return Dim::from(n as i64);
                }
                let known =
                    module.symbols.iter().map(|(s, _)| s).find(|&s| bindings.get(s) == Some(n as i64));
                let sym = known.unwrap_or_else(|| module.symbols.fresh("n"));
                let bound = bindings.bind(&module.symbols, sym, n as i64);
                debug_assert!(bound.is_ok());
                Dim::from(sym)
            })
            .collect();
        let name = rng.pick(&[None, Some("x"), Some("a name/with.dots:0")]);
        module.graph.add_input(Type::tensor(dtype, dims), name.map(|n| format!("{n}{i}").into()));
        inputs.extend(random_tensor(&mut rng, dtype, &shape, options.specials));
    }
    let values = module.graph.inputs.clone();
    let builder = Builder::new(&mut module.graph, &mut module.symbols);
    let mut g = Generator { b: builder, rng, options, bindings, values, dynamic: Vec::new() };
    for n in 0..options.nodes {
        g.b.loc = if n % 3 == 0 { Loc::default() } else { Loc::new(format!("layer.{n}/\"op\"")) };
        let family = g.rng.pick(&options.families);
        // What does not fit is left out.
        let (values, nodes, made) = (g.values.len(), g.b.graph.nodes.len(), g.b.graph.values.len());
        if g.add(family).is_err() {
            g.values.truncate(values);
            g.b.graph.nodes.truncate(nodes);
            g.b.graph.values.truncate(made);
        }
    }
    let (values, dynamic) = (g.values, g.dynamic);
    let mut outputs: Vec<ValueId> = values.iter().rev().take(3).copied().collect();
    outputs.extend(dynamic);
    module.graph.outputs = outputs;
    (module, inputs)
}

struct Generator<'g> {
    b: Builder<'g>,
    rng: Rng,
    options: &'g Options,
    bindings: Bindings,
    values: Vec<ValueId>,
    /// Values of which some dim is known only when it runs; nothing is built on them.
    dynamic: Vec<ValueId>,
}

type Made = Result<(), GraphError>;

impl Generator<'_> {
    fn nothing(&self) -> GraphError {
        self.b.shape_error("random graph", "nothing fits")
    }
    fn value(&mut self) -> ValueId {
        self.rng.pick(&self.values)
    }
    /// A value that passes a test.
    fn value_where(&mut self, test: impl Fn(&Builder<'_>, ValueId) -> bool) -> Result<ValueId, GraphError> {
        let list: Vec<ValueId> = self.values.iter().copied().filter(|&v| test(&self.b, v)).collect();
        if list.is_empty() { Err(self.nothing()) } else { Ok(self.rng.pick(&list)) }
    }
    fn lengths(&self, v: ValueId) -> Result<Vec<usize>, GraphError> {
        self.bindings
            .shape(self.b.graph.dims(v), self.b.symbols)
            .map_err(|e| self.b.shape_error("random graph", e))
    }
    /// Keeps results that are not too large.
    fn keep(&mut self, made: Vec<ValueId>) -> Made {
        for v in made {
            let n = self.lengths(v)?.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
            if n.is_none_or(|n| n > MAX_ELEMENTS) {
                return Err(self.nothing());
            }
            self.values.push(v);
        }
        Ok(())
    }
    fn op(&mut self, op: Op, inputs: &[ValueId]) -> Made {
        let made = self.b.add(op, inputs)?;
        self.keep(made)
    }
    /// A value of the type and dims of another: itself, another one, or a constant spread out.
    fn like(&mut self, v: ValueId) -> Result<ValueId, GraphError> {
        let ty = self.b.graph.ty(v).clone();
        if let (false, Ok(w)) = (self.rng.once_in(3), self.value_where(|b, w| *b.graph.ty(w) == ty)) {
            return Ok(w);
        }
        let d = self.b.dtype(v);
        let value = random_element(&mut self.rng, d, self.options.specials);
        let s = self.b.scalar(d, value)?;
        let dims = self.b.dims(v);
        self.b.broadcast_to(s, &dims)
    }
    fn constant(&mut self, dtype: DType, shape: &[usize]) -> Result<ValueId, GraphError> {
        let t = random_tensor(&mut self.rng, dtype, shape, self.options.specials)
            .ok_or_else(|| self.nothing())?;
        self.b.constant(t)
    }
    /// Constant indices, mostly inside `0..n`.
    fn indices(&mut self, shape: &[usize], n: usize) -> Result<ValueId, GraphError> {
        let dtype = self.rng.pick(&[DType::I64, DType::I32]);
        let rng = &mut self.rng;
        let t = Tensor::from_fn(dtype, shape, |_| {
            Num::Int(rng.below(n + 1) as i128 - i128::from(rng.once_in(9)))
        });
        let t = t.map_err(|e| self.b.shape_error("random graph", e.to_string()))?;
        self.b.constant(t)
    }
    fn axis(&mut self, v: ValueId) -> Result<usize, GraphError> {
        let rank = self.b.rank(v);
        if rank == 0 { Err(self.nothing()) } else { Ok(self.rng.below(rank)) }
    }
    fn combiner(&mut self, d: DType) -> Combiner {
        let list: Vec<Combiner> = Combiner::ALL
            .iter()
            .copied()
            .filter(|c| *c != Combiner::Replace && c.binary().is_none_or(|b| b.accepts(d)))
            .collect();
        self.rng.pick(&list)
    }
    /// Operands of a reduction: the value, and indices for the arg-combiners.
    fn combined(&mut self, combiner: Combiner, v: ValueId) -> Result<Vec<ValueId>, GraphError> {
        if combiner.arity() == 1 {
            return Ok(vec![v]);
        }
        let dims = self.b.dims(v);
        let axis = self.axis(v)?;
        Ok(vec![v, self.b.iota(DType::I64, &dims, axis)?])
    }

    fn add(&mut self, family: Family) -> Made {
        match family {
            Family::Elementwise => self.elementwise(),
            Family::Cast => {
                let v = self.value();
                if self.rng.once_in(3) {
                    let bits = self.b.dtype(v).bits();
                    let to: Vec<DType> =
                        self.options.dtypes.iter().copied().filter(|d| d.bits() == bits).collect();
                    // Bytes other than 0 and 1 are no bools.
                    let to: Vec<DType> = to.into_iter().filter(|d| !d.is_bool()).collect();
                    if to.is_empty() {
                        return Err(self.nothing());
                    }
                    let to = self.rng.pick(&to);
                    return self.op(Op::Bitcast { to }, &[v]);
                }
                let overflow = self.rng.pick(&[Overflow::Saturate, Overflow::Format]);
                let all = [Rounding::NearestEven, Rounding::TowardZero, Rounding::Down, Rounding::Up];
                let mode = CastMode { overflow, rounding: self.rng.pick(&all) };
                let to = self.rng.pick(&self.options.dtypes);
                self.op(Op::Cast { to, mode }, &[v])
            }
            Family::Move => self.movement(),
            Family::Source => self.source(),
            Family::Gather => self.gather(),
            Family::Scatter => self.scatter(),
            Family::Reduce => self.reduce(),
            Family::Scan => {
                let v = self.value();
                let axis = self.axis(v)?;
                let combiner = self.combiner(self.b.dtype(v));
                let x = self.combined(combiner, v)?;
                let (exclusive, reverse) = (self.rng.once_in(2), self.rng.once_in(2));
                self.op(Op::Scan { combiner, axis, exclusive, reverse }, &x)
            }
            Family::Sort => {
                let v = self.value();
                let axis = self.axis(v)?;
                let dims = self.b.dims(v);
                let i = self.b.iota(DType::I32, &dims, axis)?;
                let descending = self.rng.once_in(2);
                self.op(Op::Sort { axis, descending }, &[v, i])
            }
            Family::Contract => self.contract(),
            Family::Conv => self.conv(),
            Family::Composite => self.composite(),
            Family::Control => self.control(),
            Family::Dynamic => {
                let v = self.value();
                let (y, _) = self.b.nonzero(v)?;
                self.dynamic.push(y);
                Ok(())
            }
        }
    }

    fn elementwise(&mut self) -> Made {
        let v = self.value();
        let d = self.b.dtype(v);
        match self.rng.below(6) {
            0 | 1 => {
                let list: Vec<Unary> = Unary::ALL.iter().copied().filter(|o| o.accepts(d)).collect();
                if list.is_empty() {
                    return Err(self.nothing());
                }
                let op = Op::Unary(self.rng.pick(&list));
                self.op(op, &[v])
            }
            2 | 3 => {
                let list: Vec<Binary> = Binary::ALL.iter().copied().filter(|o| o.accepts(d)).collect();
                let op = Op::Binary(self.rng.pick(&list));
                let w = self.like(v)?;
                self.op(op, &[v, w])
            }
            4 => {
                let w = self.like(v)?;
                let op = Op::Compare(self.rng.pick(Compare::ALL));
                self.op(op, &[v, w])
            }
            _ => {
                let (w, u) = (self.like(v)?, self.like(v)?);
                if d.is_float() && self.rng.once_in(2) {
                    return self.op(Op::Fma {}, &[v, w, u]);
                }
                let p = self.b.one(Op::Compare(Compare::Lt), &[v, w])?;
                self.op(Op::Select {}, &[p, w, u])
            }
        }
    }

    fn movement(&mut self) -> Made {
        let v = self.value();
        let dims = self.b.dims(v);
        let lengths = self.lengths(v)?;
        let rank = dims.len();
        match self.rng.below(6) {
            0 => {
                let mut flat = vec![crate::infer::numel(&dims)];
                if self.rng.once_in(2) {
                    flat.insert(self.rng.below(2), Dim::from(1));
                }
                self.op(Op::Reshape { dims: flat }, &[v])
            }
            1 => {
                let mut perm: Vec<usize> = (0..rank).collect();
                for i in 1..rank {
                    perm.swap(i, self.rng.below(i + 1));
                }
                self.op(Op::Permute { perm }, &[v])
            }
            2 => {
                let new = Dim::from(1 + self.rng.below(3) as i64);
                let at = self.rng.below(rank + 1);
                let mut wide = dims;
                // Dims of length 1 spread now and then.
                for d in &mut wide {
                    if *d == 1 && self.rng.once_in(2) {
                        *d = Dim::from(3);
                    }
                }
                wide.insert(at, new);
                let axes = (0..=rank).filter(|&i| i != at).collect();
                self.op(Op::Broadcast { dims: wide, axes }, &[v])
            }
            3 => {
                let (mut start, mut len, mut step) = (Vec::new(), Vec::new(), Vec::new());
                for &n in &lengths {
                    let s = self.rng.pick(&[1i64, 1, 2, -1, -2]);
                    let most = (n as u64).div_ceil(s.unsigned_abs()) as usize;
                    let count = self.rng.below(most + 1);
                    let span = count.saturating_sub(1) * s.unsigned_abs() as usize;
                    let room = n.saturating_sub(span).max(1);
                    let low = self.rng.below(room);
                    start.push(Dim::from(if s > 0 { low } else { low + span } as i64));
                    len.push(Dim::from(count as i64));
                    step.push(s);
                }
                self.op(Op::Slice { start, len, step }, &[v])
            }
            4 => {
                let d = self.b.dtype(v);
                let fill = self.constant(d, &[])?;
                let (mut low, mut high) = (Vec::new(), Vec::new());
                for &n in &lengths {
                    low.push(Dim::from(self.rng.below(4) as i64 - 1));
                    high.push(Dim::from(if n > 2 { self.rng.below(3) as i64 - 1 } else { 1 }));
                }
                self.op(Op::Pad { low, high }, &[v, fill])
            }
            _ => {
                let axis = self.axis(v)?;
                let w = self.like(v)?;
                self.op(Op::Concat { axis }, &[v, w, v])
            }
        }
    }

    fn source(&mut self) -> Made {
        let shape: Vec<usize> = (0..self.rng.below(3)).map(|_| 1 + self.rng.below(4)).collect();
        let dims: Vec<Dim> = shape.iter().map(|&n| Dim::from(n as i64)).collect();
        match self.rng.below(4) {
            0 => {
                let d = self.rng.pick(&self.options.dtypes);
                let v = self.constant(d, &shape)?;
                self.keep(vec![v])
            }
            1 if !dims.is_empty() => {
                let dtype = self.rng.pick(&self.options.dtypes);
                self.op(Op::Iota { dtype, axis: self.rng.clone().below(dims.len()), dims }, &[])
            }
            2 => {
                let v = self.value();
                let dim = self.b.dims(v).first().cloned().unwrap_or_default() * 2 + 1;
                self.op(Op::DimValue { dim }, &[])
            }
            _ => {
                let (key, counter) = (self.constant(DType::U64, &[])?, self.constant(DType::U64, &[])?);
                self.op(Op::RandomBits { dims }, &[key, counter])
            }
        }
    }

    fn gather(&mut self) -> Made {
        let v = self.value_where(|b, v| b.rank(v) > 0)?;
        let lengths = self.lengths(v)?;
        let axis = self.axis(v)?;
        match self.rng.below(3) {
            0 => {
                let shape = self.rng.pick(&[vec![], vec![3], vec![2, 2]]);
                let i = self.indices(&shape, lengths[axis])?;
                self.op(Op::Take { axis }, &[v, i])
            }
            1 => {
                let mut shape = lengths.clone();
                shape[axis] = 2;
                let i = self.indices(&shape, lengths[axis])?;
                self.op(Op::TakeAlong { axis }, &[v, i])
            }
            _ => {
                let k = 1 + self.rng.below(lengths.len());
                let most = lengths[..k].iter().copied().max().unwrap_or(1);
                let i = self.indices(&[3, k], most)?;
                self.op(Op::GatherNd { batch: 0 }, &[v, i])
            }
        }
    }

    fn scatter(&mut self) -> Made {
        let v = self.value_where(|b, v| b.rank(v) > 0)?;
        let lengths = self.lengths(v)?;
        let d = self.b.dtype(v);
        let list: Vec<Combiner> = Combiner::ALL
            .iter()
            .copied()
            .filter(|c| c.arity() == 1 && c.binary().is_none_or(|b| b.accepts(d)))
            .collect();
        let combiner = self.rng.pick(&list);
        if self.rng.once_in(2) {
            let axis = self.axis(v)?;
            let mut shape = lengths.clone();
            shape[axis] = 3;
            let i = self.indices(&shape, lengths[axis])?;
            let u = self.constant(d, &shape)?;
            return self.op(Op::ScatterAlong { axis, combiner }, &[v, i, u]);
        }
        let k = 1 + self.rng.below(lengths.len());
        let most = lengths[..k].iter().copied().max().unwrap_or(1);
        let i = self.indices(&[3, k], most)?;
        let shape: Vec<usize> = [3].into_iter().chain(lengths[k..].iter().copied()).collect();
        let u = self.constant(d, &shape)?;
        self.op(Op::ScatterNd { combiner }, &[v, i, u])
    }

    fn reduce(&mut self) -> Made {
        let v = self.value();
        let rank = self.b.rank(v);
        let combiner = self.combiner(self.b.dtype(v));
        let x = self.combined(combiner, v)?;
        if self.rng.once_in(2) {
            let axes = (0..rank).filter(|_| self.rng.once_in(2)).collect();
            return self.op(Op::Reduce { combiner, axes }, &x);
        }
        let pad = |n: usize| Dim::from(n as i64);
        let rng = &mut self.rng;
        let mut spec = WindowSpec { window: vec![], strides: vec![], pads: vec![], dilation: vec![] };
        for n in self.bindings.shape(self.b.graph.dims(v), self.b.symbols).unwrap_or_default() {
            let slides = n > 1 && rng.once_in(2);
            spec.window.push(if slides { 1 + rng.below(n.min(3)) as i64 } else { 1 });
            spec.strides.push(if slides { 1 + rng.below(2) as i64 } else { 1 });
            spec.pads.push(if slides { (pad(rng.below(2)), pad(rng.below(2))) } else { (pad(0), pad(0)) });
            spec.dilation.push(1);
        }
        self.op(Op::WindowReduce { combiner, spec }, &x)
    }

    fn accumulator(&mut self, d: DType) -> DType {
        match d {
            DType::F64 => DType::F64,
            d if d.is_float() => DType::F32,
            DType::I64 | DType::U64 => d,
            _ => self.rng.pick(&[DType::I32, DType::F32]),
        }
    }

    fn contract(&mut self) -> Made {
        let v = self.value_where(|b, v| b.rank(v) > 0)?;
        let (d, lengths) = (self.b.dtype(v), self.lengths(v)?);
        let over = self.rng.below(lengths.len());
        let batch = (0..lengths.len()).find(|&i| i != over).filter(|_| self.rng.once_in(2));
        let free = 1 + self.rng.below(3);
        let (shape, pairs) = match batch {
            Some(b) => (vec![lengths[b], free, lengths[over]], (vec![(b, 0)], vec![(over, 2)])),
            None => (vec![lengths[over], free], (vec![], vec![(over, 0)])),
        };
        let w = self.constant(d, &shape)?;
        let acc = self.accumulator(d);
        self.op(Op::Contract { batch: pairs.0, over: pairs.1, acc }, &[v, w])
    }

    fn conv(&mut self) -> Made {
        let v = self.value_where(|b, v| matches!(b.rank(v), 3 | 4))?;
        let (d, lengths) = (self.b.dtype(v), self.lengths(v)?);
        let rank = lengths.len() - 2;
        let last = self.rng.once_in(2);
        let mut spec = ConvSpec::nchw(rank);
        let channels = if last { lengths[rank + 1] } else { lengths[1] };
        if last {
            let roles: Vec<ConvRole> =
                [ConvRole::N].into_iter().chain((0..rank).map(ConvRole::S)).chain([ConvRole::C]).collect();
            (spec.input, spec.output) = (roles.clone(), roles);
        }
        if channels > 1 && self.rng.once_in(3) {
            spec.groups = channels as i64;
        }
        for s in 0..rank {
            spec.strides[s] = 1 + self.rng.below(2) as i64;
            spec.dilation[s] = 1 + self.rng.below(2) as i64;
            spec.input_dilation[s] = self.rng.pick(&[1, 1, 2]);
            spec.pads[s] = (Dim::from(self.rng.below(3) as i64), Dim::from(2));
        }
        let mut shape = vec![spec.groups as usize * (1 + self.rng.below(2)), channels / spec.groups as usize];
        shape.extend((0..rank).map(|_| 1 + self.rng.below(2)));
        let w = self.constant(d, &shape)?;
        let acc = self.accumulator(d);
        self.op(Op::Conv { spec, acc }, &[v, w])
    }

    fn composite(&mut self) -> Made {
        let v = self.value_where(|b, v| b.dtype(v).is_float() && b.rank(v) > 0)?;
        let axis = self.axis(v)?;
        let y = match self.rng.below(8) {
            0 => self.b.softmax(v, axis)?,
            1 => self.b.layer_norm(v, None, None, axis, 1e-5)?,
            2 => self.b.gelu(v)?,
            3 => self.b.sigmoid(v)?,
            4 => self.b.mean(v, &[axis], true)?,
            5 => self.b.arg_max(v, axis, false, false)?,
            6 => self.b.hard_swish(v)?,
            _ => self.b.log_sum_exp(v, &[axis], false)?,
        };
        self.keep(vec![y])
    }

    fn control(&mut self) -> Made {
        let v = self.value();
        let ty = self.b.graph.ty(v).clone();
        if self.rng.once_in(2) {
            let p = self.constant(DType::Bool, &[])?;
            let same = self.b.region("then", std::slice::from_ref(&ty), |_, x| Ok(vec![x[0]]))?;
            let other = self.b.region("else", std::slice::from_ref(&ty), |b, x| {
                Ok(vec![b.binary(Binary::Max, x[0], x[0])?])
            })?;
            return self.op(Op::If { then_branch: same, else_branch: other, results: vec![ty] }, &[p, v]);
        }
        // Doubles the value a few times.
        let turns = self.rng.below(4) as i64;
        let count = self.b.int(DType::I64, 0)?;
        let params = [Type::scalar(DType::I64), ty.clone()];
        let body = self.b.region("turn", &params, |b, x| {
            let n = b.binary_const(Binary::Add, x[0], 1.0)?;
            let y = b.binary(Binary::Add, x[1], x[1])?;
            let more = b.compare_const(Compare::Lt, n, turns as f64)?;
            Ok(vec![more, n, y])
        })?;
        let more = self.b.scalar(DType::Bool, Num::from(turns > 0))?;
        let made = self.b.add(Op::While { body, results: params.to_vec() }, &[more, count, v])?;
        self.keep(made)
    }
}
