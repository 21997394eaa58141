//! Elementwise expressions to tiles.
//!
//! The emitter computes the block of a graph value that lies at given coordinates, recursively through its operands:
//! permutes, slices, broadcasts, pads, reshapes and gathers become arithmetic on coordinates, so that they cost no
//! memory. Values that a schedule has computed already (accumulators, reductions) are bound first.

use std::collections::HashMap;

use tongtu_graph::{Graph, Op, ValueId};
use tongtu_tensor::dim::Dim;
use tongtu_tensor::scalar::{Binary, Compare};
use tongtu_tensor::{CastMode, DType, Num, Overflow, Rounding};
use tongtu_tile::{Access, Factor, KernelBuilder, TileMap, Val};

use crate::error::Error;

/// Position of a block in one dim of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Coord {
    /// `base + lane × step` along one tile dim, or just `base` (an `i64` scalar).
    Affine {
        /// Index of the first element.
        base: Val,
        /// Tile dim and step, where the index varies over the tile.
        lane: Option<(usize, i64)>,
        /// Whether every index is known to be inside the dim.
        inside: bool,
    },
    /// An `i64` tile of indices (dims of the block's rank, 1 or full).
    Tile {
        /// The indices.
        index: Val,
        /// Whether every index is known to be inside the dim.
        inside: bool,
    },
}

impl Coord {
    /// One index for the whole block, known to be inside.
    pub fn at(base: Val) -> Coord {
        Coord::Affine { base, lane: None, inside: true }
    }
    /// Consecutive indices along a tile dim.
    pub fn along(base: Val, tile_dim: usize, inside: bool) -> Coord {
        Coord::Affine { base, lane: Some((tile_dim, 1)), inside }
    }
}

/// What a kernel parameter stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum KernelArg {
    /// An input of the group, by position.
    Input(usize),
    /// A result of the group, by position.
    Output(usize),
    /// Temporary memory of the group, by position.
    Temp(usize),
    /// A constant laid out by the schedule, by position.
    Packed(usize),
    /// A dim expression, as an `i64` scalar.
    Dim(Dim),
}

struct Leaf {
    buffer: Val,
    view: Val,
    strides: Vec<Val>,
    rank: usize,
}

/// The plain cast: round to nearest even, saturate nothing.
pub const CAST: CastMode = CastMode { overflow: Overflow::Format, rounding: Rounding::NearestEven };

/// Emits the blocks of one kernel.
pub struct Emitter<'g> {
    /// The kernel.
    pub b: KernelBuilder,
    /// The group's graph.
    pub graph: &'g Graph,
    /// Tile dims of the block being computed.
    pub shape: Vec<usize>,
    /// What each kernel parameter stands for, in order.
    pub args: Vec<KernelArg>,
    defs: Vec<Option<usize>>,
    dims: HashMap<Dim, Val>,
    leaves: HashMap<ValueId, Leaf>,
    outputs: HashMap<usize, Val>,
    bound: HashMap<ValueId, Val>,
    cache: HashMap<(ValueId, Vec<Coord>), Val>,
    size_limit: i64,
}

type R<T> = Result<T, Error>;

impl<'g> Emitter<'g> {
    /// A kernel for a group. Every input of the group that the kernel reads, and every output it writes, must be
    /// declared with [`Emitter::leaf`] before loops begin.
    pub fn new(name: &str, graph: &'g Graph) -> Emitter<'g> {
        Emitter {
            b: KernelBuilder::new(name),
            graph,
            shape: Vec::new(),
            args: Vec::new(),
            defs: graph.definitions(),
            dims: HashMap::new(),
            leaves: HashMap::new(),
            outputs: HashMap::new(),
            bound: HashMap::new(),
            cache: HashMap::new(),
            size_limit: 1,
        }
    }

    /// Writes constant dims into the kernel from now on, where the distance of rows in memory counts.
    pub fn write_dims(&mut self) {
        self.size_limit = i64::MAX;
    }

    /// A dim as an `i64` scalar: small constants are written into the kernel, everything else is a parameter, so that
    /// one kernel serves every size.
    pub fn dim(&mut self, d: &Dim) -> Val {
        if let Some(c) = d.as_const()
            && c <= self.size_limit
        {
            return self.b.int(c);
        }
        self.dim_param(d)
    }
    /// A dim as a parameter.
    pub fn dim_param(&mut self, d: &Dim) -> Val {
        if let Some(&v) = self.dims.get(d) {
            return v;
        }
        let v = self.b.scalar(&format!("n{}", self.dims.len()), DType::I64);
        self.args.push(KernelArg::Dim(d.clone()));
        self.dims.insert(d.clone(), v);
        v
    }

    /// Adds a buffer parameter.
    pub fn buffer(&mut self, arg: KernelArg, dtype: DType, access: Access) -> Val {
        let v = self.b.buffer(&format!("b{}", self.args.len()), dtype, access);
        self.args.push(arg);
        v
    }

    /// A row-major view of a buffer.
    pub fn view(&mut self, buffer: Val, dims: &[Dim]) -> R<(Val, Vec<Val>)> {
        let zero = self.b.int(0);
        self.view_at(buffer, zero, dims)
    }
    /// A row-major view of a buffer from an element on.
    pub fn view_at(&mut self, buffer: Val, offset: Val, dims: &[Dim]) -> R<(Val, Vec<Val>)> {
        let mut stride = Dim::from(1);
        let mut strides = Vec::new();
        for d in dims.iter().rev() {
            strides.push(stride.clone());
            stride = &stride * d;
        }
        strides.reverse();
        let dim_vals: Vec<Val> = dims.iter().map(|d| self.dim(d)).collect();
        let stride_vals: Vec<Val> = strides.iter().map(|d| self.dim(d)).collect();
        let view = self.b.view(buffer, offset, &dim_vals, &stride_vals)?;
        Ok((view, stride_vals))
    }

    /// Declares an input of the group. Must come before loops.
    pub fn leaf(&mut self, v: ValueId) -> R<Val> {
        if let Some(l) = self.leaves.get(&v) {
            return Ok(l.view);
        }
        let Some(position) = self.graph.inputs.iter().position(|&i| i == v) else {
            return Err(Error::unsupported(
                "load",
                &Default::default(),
                format!("value {} is not in memory", v.0),
            ));
        };
        let buffer = self.buffer(KernelArg::Input(position), self.graph.dtype(v), Access::Read);
        let dims = self.graph.dims(v).to_vec();
        let (view, strides) = self.view(buffer, &dims)?;
        self.leaves.insert(v, Leaf { buffer, view, strides, rank: dims.len() });
        Ok(view)
    }
    /// The buffer of a declared input.
    pub fn buffer_of(&self, v: ValueId) -> Option<Val> {
        self.leaves.get(&v).map(|l| l.buffer)
    }
    /// Declares a result of the group and gives its row-major view. Must come before loops.
    pub fn output(&mut self, position: usize) -> R<Val> {
        let buffer = self.output_buffer(position);
        let dims = self.graph.dims(self.graph.outputs[position]).to_vec();
        Ok(self.view(buffer, &dims)?.0)
    }
    /// The buffer of a result, declared if it is not yet.
    pub fn output_buffer(&mut self, position: usize) -> Val {
        if let Some(&b) = self.outputs.get(&position) {
            return b;
        }
        let dtype = self.graph.dtype(self.graph.outputs[position]);
        let buffer = self.buffer(KernelArg::Output(position), dtype, Access::Write);
        self.outputs.insert(position, buffer);
        buffer
    }
    /// Declares every group input that the values depend on without passing through a bound or stopped value.
    pub fn leaves_of(&mut self, values: &[ValueId], stop: &[ValueId]) -> R<()> {
        let mut seen = vec![false; self.graph.values.len()];
        for v in stop {
            seen[v.index()] = true;
        }
        let mut leaves = Vec::new();
        let mut stack: Vec<ValueId> = values.iter().rev().copied().collect();
        while let Some(v) = stack.pop() {
            if std::mem::replace(&mut seen[v.index()], true) {
                continue;
            }
            match self.defs[v.index()] {
                None => leaves.push(v),
                Some(n) => stack.extend(self.graph.nodes[n].inputs.iter().rev()),
            }
        }
        leaves.into_iter().try_for_each(|v| self.leaf(v).map(|_| ()))
    }
    /// Gives the block of a value that a schedule has computed; it stands for the value at any coordinates.
    pub fn bind(&mut self, v: ValueId, tile: Val) {
        self.bound.insert(v, tile);
        self.cache.clear();
    }
    /// The tile bound to a value.
    pub fn bound(&self, v: ValueId) -> Option<Val> {
        self.bound.get(&v).copied()
    }
    /// Runs `f` in an inner block: what it computes is forgotten afterwards.
    pub fn scoped<T>(&mut self, f: impl FnOnce(&mut Self) -> R<T>) -> R<T> {
        let (cache, bound) = (self.cache.clone(), self.bound.clone());
        let r = f(self);
        self.cache = cache;
        self.bound = bound;
        r
    }

    /// A counted loop whose body may emit.
    pub fn for_loop(
        &mut self,
        lo: Val,
        hi: Val,
        step: i64,
        init: &[Val],
        body: impl FnOnce(&mut Self, Val, &[Val]) -> R<Vec<Val>>,
    ) -> R<Vec<Val>> {
        let step = self.b.int(step);
        self.region(|this, b| b.for_loop(lo, hi, step, init, |b, i, c| this.inner(b, |e| body(e, i, c))))
    }
    /// A branch whose sides may emit.
    pub fn if_else(
        &mut self,
        condition: Val,
        on_true: impl FnOnce(&mut Self) -> R<Vec<Val>>,
        on_false: impl FnOnce(&mut Self) -> R<Vec<Val>>,
    ) -> R<Vec<Val>> {
        self.region(|this, b| {
            let cell = std::cell::RefCell::new(this);
            b.if_else(
                condition,
                |b| cell.borrow_mut().inner(b, on_true),
                |b| cell.borrow_mut().inner(b, on_false),
            )
        })
    }
    /// A conditional loop whose body may emit.
    pub fn while_loop(
        &mut self,
        condition: Val,
        init: &[Val],
        body: impl FnOnce(&mut Self, &[Val]) -> R<(Val, Vec<Val>)>,
    ) -> R<Vec<Val>> {
        self.region(|this, b| b.while_loop(condition, init, |b, c| this.inner(b, |e| body(e, c))))
    }
    fn region<T>(
        &mut self,
        f: impl FnOnce(&mut Inner<'_, 'g>, &mut KernelBuilder) -> Result<T, tongtu_tile::TileError>,
    ) -> R<T> {
        let mut b = std::mem::replace(&mut self.b, KernelBuilder::new(""));
        let mut inner = Inner { e: self, error: None };
        let r = f(&mut inner, &mut b);
        let error = inner.error.take();
        self.b = b;
        match (r, error) {
            (_, Some(e)) => Err(e),
            (r, None) => r.map_err(Error::from),
        }
    }

    fn tile_shape(&self, v: Val) -> Vec<usize> {
        self.b.shape(v)
    }
    /// A scalar as a tile with every dim 1.
    pub fn unit(&mut self, scalar: Val) -> R<Val> {
        Ok(self.b.reshape(scalar, &vec![1; self.shape.len()])?)
    }
    /// The only element of a tile whose dims are all 1, as a scalar.
    pub fn only(&mut self, tile: Val) -> R<Val> {
        Ok(self.b.reshape(tile, &[])?)
    }
    /// Broadcasts to the block's full shape.
    pub fn full(&mut self, tile: Val) -> R<Val> {
        let shape = self.shape.clone();
        Ok(self.b.broadcast(tile, &shape)?)
    }
    /// Broadcasts tiles to their common shape.
    pub fn common(&mut self, tiles: &[Val]) -> R<Vec<Val>> {
        let shapes: Vec<Vec<usize>> = tiles.iter().map(|&t| self.tile_shape(t)).collect();
        let rank = self.shape.len();
        let shape: Vec<usize> = (0..rank).map(|i| shapes.iter().map(|s| s[i]).max().unwrap_or(1)).collect();
        tiles.iter().map(|&t| Ok(self.b.broadcast(t, &shape)?)).collect()
    }
    /// A scalar operation on tiles that are broadcast to a common shape.
    pub fn binary(&mut self, op: Binary, x: Val, y: Val) -> R<Val> {
        let t = self.common(&[x, y])?;
        Ok(self.b.binary(op, t[0], t[1])?)
    }
    /// A comparison of tiles that are broadcast to a common shape.
    pub fn compare(&mut self, op: Compare, x: Val, y: Val) -> R<Val> {
        let t = self.common(&[x, y])?;
        Ok(self.b.compare(op, t[0], t[1])?)
    }

    /// The indices of a coordinate as an `i64` tile (dims 1 or full).
    pub fn index_tile(&mut self, c: Coord) -> R<Val> {
        match c {
            Coord::Tile { index, .. } => Ok(index),
            Coord::Affine { base, lane: None, .. } => self.unit(base),
            Coord::Affine { base, lane: Some((t, step)), .. } => {
                let mut shape = vec![1; self.shape.len()];
                shape[t] = self.shape[t];
                let iota = self.b.iota(DType::I64, &shape, t)?;
                let step = self.b.splat(DType::I64, &shape, step as f64)?;
                let scaled = self.b.mul(iota, step)?;
                let base = self.unit(base)?;
                self.binary(Binary::Add, scaled, base)
            }
        }
    }
    fn scale(&mut self, c: Coord, factor: i64, offset: Val) -> R<Coord> {
        match c {
            Coord::Affine { base, lane, inside } => {
                let m = self.b.mul_int(base, factor)?;
                let base = self.b.add(m, offset)?;
                Ok(Coord::Affine { base, lane: lane.map(|(t, s)| (t, s * factor)), inside })
            }
            Coord::Tile { index, inside } => {
                let f = self.b.int(factor);
                let f = self.unit(f)?;
                let m = self.binary(Binary::Mul, index, f)?;
                let o = self.unit(offset)?;
                Ok(Coord::Tile { index: self.binary(Binary::Add, m, o)?, inside })
            }
        }
    }

    /// Loads a block of a value in memory. Dims of the block along which the value does not vary are 1.
    pub fn load(&mut self, v: ValueId, coords: &[Coord], pad: Num) -> R<Val> {
        let graph = self.graph;
        let (buffer, view, strides, rank) = match self.leaves.get(&v) {
            Some(l) => (l.buffer, l.view, l.strides.clone(), l.rank),
            None => {
                return Err(Error::unsupported(
                    "load",
                    &Default::default(),
                    format!("value {} is not in memory", v.0),
                ));
            }
        };
        self.load_view(buffer, view, &strides, &graph.dims(v)[..rank], coords, pad)
    }

    /// Loads a block through a view of a buffer.
    pub fn load_view(
        &mut self,
        buffer: Val,
        view: Val,
        strides: &[Val],
        dims: &[Dim],
        coords: &[Coord],
        pad: Num,
    ) -> R<Val> {
        let mut lanes: Vec<Option<(usize, i64)>> = vec![None; self.shape.len()];
        let mut affine = true;
        for (d, c) in coords.iter().enumerate() {
            match c {
                Coord::Affine { lane: Some((t, step)), .. } => {
                    affine &= lanes[*t].replace((d, *step)).is_none();
                }
                Coord::Affine { .. } => {}
                Coord::Tile { .. } => affine = false,
            }
        }
        if affine {
            let map = TileMap(
                lanes
                    .iter()
                    .enumerate()
                    .map(|(t, l)| match l {
                        Some((d, step)) => vec![Factor { size: self.shape[t], dim: Some(*d), step: *step }],
                        None => vec![Factor { size: 1, dim: None, step: 0 }],
                    })
                    .collect(),
            );
            let mut index = Vec::new();
            let mut inside = Vec::new();
            for c in coords {
                if let Coord::Affine { base, inside: i, .. } = c {
                    index.push(*base);
                    inside.push(*i);
                }
            }
            return Ok(self.b.load(view, &index, map, &inside, pad)?);
        }
        let mut linear: Option<Val> = None;
        let mut mask: Option<Val> = None;
        for (d, &c) in coords.iter().enumerate() {
            let index = self.index_tile(c)?;
            let stride = self.unit(strides[d])?;
            let part = self.binary(Binary::Mul, index, stride)?;
            linear = Some(match linear {
                Some(l) => self.binary(Binary::Add, l, part)?,
                None => part,
            });
            if let Some(ok) = self.inside_mask(c, &dims[d])? {
                mask = Some(match mask {
                    Some(m) => self.binary(Binary::And, m, ok)?,
                    None => ok,
                });
            }
        }
        let linear = match linear {
            Some(l) => l,
            None => {
                let zero = self.b.int(0);
                self.unit(zero)?
            }
        };
        match mask {
            None => Ok(self.b.gather(buffer, linear, None, pad)?),
            Some(m) => {
                let t = self.common(&[linear, m])?;
                Ok(self.b.gather(buffer, t[0], Some(t[1]), pad)?)
            }
        }
    }

    /// Where a coordinate is inside `0..n`, unless that is known.
    pub fn inside_mask(&mut self, c: Coord, n: &Dim) -> R<Option<Val>> {
        if matches!(c, Coord::Affine { inside: true, .. } | Coord::Tile { inside: true, .. }) {
            return Ok(None);
        }
        let index = self.index_tile(c)?;
        let n = self.dim(n);
        let n = self.unit(n)?;
        let zero = self.b.int(0);
        let zero = self.unit(zero)?;
        let lo = self.compare(Compare::Ge, index, zero)?;
        let hi = self.compare(Compare::Lt, index, n)?;
        Ok(Some(self.binary(Binary::And, lo, hi)?))
    }

    /// Stores a block through a view, at coordinates without index tiles; elements outside are dropped.
    pub fn store_view(&mut self, view: Val, tile: Val, coords: &[Coord]) -> R<()> {
        let tile = self.full(tile)?;
        let mut factors: Vec<Vec<Factor>> =
            self.shape.iter().map(|&size| vec![Factor { size, dim: None, step: 0 }]).collect();
        let mut index = Vec::new();
        let mut inside = Vec::new();
        for (d, c) in coords.iter().enumerate() {
            match c {
                Coord::Affine { base, lane, inside: i } => {
                    if let Some((t, step)) = lane {
                        factors[*t] = vec![Factor { size: self.shape[*t], dim: Some(d), step: *step }];
                    }
                    index.push(*base);
                    inside.push(*i);
                }
                Coord::Tile { .. } => {
                    return Err(Error::unsupported("store", &Default::default(), "a store at index tiles"));
                }
            }
        }
        Ok(self.b.store(view, tile, &index, TileMap(factors), &inside)?)
    }

    /// The block of a value at coordinates, one for each of its dims. Tile dims along which it does not vary are 1.
    pub fn emit(&mut self, v: ValueId, coords: &[Coord]) -> R<Val> {
        if let Some(&t) = self.bound.get(&v) {
            return Ok(t);
        }
        let key = (v, coords.to_vec());
        if let Some(&t) = self.cache.get(&key) {
            return Ok(t);
        }
        let t = match self.defs[v.index()] {
            None => self.load(v, coords, zero_of(self.graph.dtype(v)))?,
            Some(n) => self.emit_node(n, v, coords)?,
        };
        self.cache.insert(key, t);
        Ok(t)
    }

    fn emit_node(&mut self, n: usize, v: ValueId, coords: &[Coord]) -> R<Val> {
        let graph = self.graph;
        let node = &graph.nodes[n];
        let dtype = graph.dtype(v);
        let ins = &node.inputs;
        match &node.op {
            Op::Unary(op) => {
                let x = self.emit(ins[0], coords)?;
                Ok(self.b.unary(*op, x)?)
            }
            Op::Binary(op) => {
                let (x, y) = (self.emit(ins[0], coords)?, self.emit(ins[1], coords)?);
                self.binary(*op, x, y)
            }
            Op::Compare(op) => {
                let (x, y) = (self.emit(ins[0], coords)?, self.emit(ins[1], coords)?);
                self.compare(*op, x, y)
            }
            Op::Select {} => {
                let p = self.emit(ins[0], coords)?;
                let x = self.emit(ins[1], coords)?;
                let y = self.emit(ins[2], coords)?;
                let t = self.common(&[p, x, y])?;
                Ok(self.b.select(t[0], t[1], t[2])?)
            }
            Op::Fma {} => {
                let x = self.emit(ins[0], coords)?;
                let y = self.emit(ins[1], coords)?;
                let z = self.emit(ins[2], coords)?;
                let t = self.common(&[x, y, z])?;
                Ok(self.b.fma(t[0], t[1], t[2])?)
            }
            Op::Cast { to, mode } => {
                let x = self.emit(ins[0], coords)?;
                Ok(self.b.cast(x, *to, *mode)?)
            }
            Op::Bitcast { to } => {
                let x = self.emit(ins[0], coords)?;
                Ok(self.b.bitcast(x, *to)?)
            }
            Op::Constant { value } => {
                if value.len() != 1 {
                    return Err(Error::unsupported("constant", &node.loc, "is not one number"));
                }
                let shape = vec![1; self.shape.len()];
                Ok(self.b.full(dtype, &shape, value.get_linear(0))?)
            }
            Op::DimValue { dim } => {
                let d = self.dim(dim);
                self.unit(d)
            }
            Op::Iota { axis, .. } => {
                let index = self.index_tile(coords[*axis])?;
                Ok(self.b.cast(index, dtype, CAST)?)
            }
            Op::Broadcast { dims, axes } => {
                let x = graph.dims(ins[0]);
                let zero = self.b.int(0);
                let inner: Vec<Coord> = x
                    .iter()
                    .zip(axes)
                    .map(|(d, &a)| {
                        if d.as_const() == Some(1) && dims[a].as_const() != Some(1) {
                            Coord::at(zero)
                        } else {
                            coords[a]
                        }
                    })
                    .collect();
                self.emit(ins[0], &inner)
            }
            Op::Permute { perm } => {
                let mut inner = coords.to_vec();
                for (i, &p) in perm.iter().enumerate() {
                    inner[p] = coords[i];
                }
                self.emit(ins[0], &inner)
            }
            Op::Slice { start, step, .. } => {
                let mut inner = Vec::new();
                for (i, c) in coords.iter().enumerate() {
                    if start[i].as_const() == Some(0) && step[i] == 1 {
                        inner.push(*c);
                    } else {
                        let s = self.dim(&start[i]);
                        inner.push(self.scale(*c, step[i], s)?);
                    }
                }
                self.emit(ins[0], &inner)
            }
            Op::Reshape { .. } => {
                let inner = self.reshape_coords(graph.dims(ins[0]), graph.dims(v), coords)?;
                self.emit(ins[0], &inner)
            }
            Op::Pad { low, high } => {
                let mut inner = Vec::new();
                let mut mask: Option<Val> = None;
                for (i, c) in coords.iter().enumerate() {
                    let same = low[i].as_const() == Some(0) && high[i].as_const().is_some_and(|h| h <= 0);
                    if same {
                        inner.push(*c);
                        continue;
                    }
                    let neg = self.dim(&low[i]);
                    let zero = self.b.int(0);
                    let neg = self.b.sub(zero, neg)?;
                    let shifted = match self.scale(*c, 1, neg)? {
                        Coord::Affine { base, lane, .. } => Coord::Affine { base, lane, inside: false },
                        Coord::Tile { index, .. } => Coord::Tile { index, inside: false },
                    };
                    inner.push(shifted);
                    if let Some(ok) = self.inside_mask(shifted, &graph.dims(ins[0])[i])? {
                        mask = Some(match mask {
                            Some(m) => self.binary(Binary::And, m, ok)?,
                            None => ok,
                        });
                    }
                }
                if let (Some(pad), true) = (self.constant_scalar(ins[1]), self.leaves.contains_key(&ins[0])) {
                    return self.load(ins[0], &inner, pad);
                }
                let x = self.emit(ins[0], &inner)?;
                let Some(mask) = mask else { return Ok(x) };
                let value = self.emit(ins[1], &[])?;
                let t = self.common(&[mask, x, value])?;
                Ok(self.b.select(t[0], t[1], t[2])?)
            }
            Op::Concat { axis } => {
                let mut start = Dim::from(0);
                let mut result: Option<Val> = None;
                for &x in ins {
                    let d = graph.dims(x)[*axis].clone();
                    let s = self.dim(&start);
                    let zero = self.b.int(0);
                    let neg = self.b.sub(zero, s)?;
                    let shifted = match self.scale(coords[*axis], 1, neg)? {
                        Coord::Affine { base, lane, .. } => Coord::Affine { base, lane, inside: false },
                        Coord::Tile { index, .. } => Coord::Tile { index, inside: false },
                    };
                    let mut inner = coords.to_vec();
                    inner[*axis] = shifted;
                    let part = self.emit(x, &inner)?;
                    result = Some(match (result, self.inside_mask(shifted, &d)?) {
                        (Some(r), Some(m)) => {
                            let t = self.common(&[m, part, r])?;
                            self.b.select(t[0], t[1], t[2])?
                        }
                        _ => part,
                    });
                    start = &start + &d;
                }
                result.ok_or_else(|| Error::unsupported("concat", &node.loc, "no operands"))
            }
            Op::Take { axis } => {
                let k = graph.dims(ins[1]).len();
                let index = self.index_coord(ins[1], &coords[*axis..axis + k])?;
                let mut inner = coords[..*axis].to_vec();
                inner.push(index);
                inner.extend_from_slice(&coords[axis + k..]);
                self.emit(ins[0], &inner)
            }
            Op::TakeAlong { axis } => {
                let index = self.index_coord(ins[1], coords)?;
                let mut inner = coords.to_vec();
                inner[*axis] = index;
                self.emit(ins[0], &inner)
            }
            Op::GatherNd { batch } => {
                let idims = graph.dims(ins[1]);
                let outer = idims.len() - 1;
                let k = idims[outer].as_const().unwrap_or(0);
                let mut inner = coords[..*batch].to_vec();
                for j in 0..k {
                    let j = self.b.int(j);
                    let mut at = coords[..outer].to_vec();
                    at.push(Coord::at(j));
                    inner.push(self.index_coord(ins[1], &at)?);
                }
                inner.extend_from_slice(&coords[outer..]);
                self.emit(ins[0], &inner)
            }
            Op::RandomBits { .. } => self.random_bits(ins[0], ins[1], graph.dims(v), coords),
            op => Err(Error::unsupported(op.name(), &node.loc, "is not an elementwise operation")),
        }
    }

    /// The value of a constant scalar of the group.
    pub fn constant_scalar(&self, v: ValueId) -> Option<Num> {
        match &self.graph.nodes[self.defs[v.index()]?].op {
            Op::Constant { value } if value.len() == 1 => Some(value.get_linear(0)),
            Op::Broadcast { .. } => self.constant_scalar(self.graph.nodes[self.defs[v.index()]?].inputs[0]),
            _ => None,
        }
    }

    fn index_coord(&mut self, indices: ValueId, coords: &[Coord]) -> R<Coord> {
        let t = self.emit(indices, coords)?;
        let t = self.b.cast(t, DType::I64, CAST)?;
        if self.tile_shape(t).iter().all(|&n| n == 1) {
            return Ok(Coord::Affine { base: self.only(t)?, lane: None, inside: false });
        }
        Ok(Coord::Tile { index: t, inside: false })
    }

    /// Coordinates of a reshape's operand from those of its result.
    fn reshape_coords(&mut self, from: &[Dim], to: &[Dim], coords: &[Coord]) -> R<Vec<Coord>> {
        let zero = self.b.int(0);
        let is_one = |d: &Dim| d.as_const() == Some(1);
        let mut out = vec![Coord::at(zero); from.len()];
        let f: Vec<usize> = (0..from.len()).filter(|&i| !is_one(&from[i])).collect();
        let t: Vec<usize> = (0..to.len()).filter(|&i| !is_one(&to[i])).collect();
        let (mut i, mut j) = (0, 0);
        while i < f.len() || j < t.len() {
            // The shortest run of operand dims with as many elements as a run of result dims.
            let (i0, j0) = (i, j);
            let (mut a, mut b) = (Dim::from(1), Dim::from(1));
            if i < f.len() {
                a = from[f[i]].clone();
                i += 1;
            }
            if j < t.len() {
                b = to[t[j]].clone();
                j += 1;
            }
            while a != b {
                let grow_to = match (a.as_const(), b.as_const()) {
                    (Some(x), Some(y)) => y < x,
                    _ => j - j0 <= i - i0,
                };
                if (grow_to || i == f.len()) && j < t.len() {
                    b = &b * &to[t[j]];
                    j += 1;
                } else if i < f.len() {
                    a = &a * &from[f[i]];
                    i += 1;
                } else {
                    break;
                }
            }
            if a != b {
                (i, j) = (f.len(), t.len());
            }
            let (fs, ts) = (&f[i0..i], &t[j0..j]);
            if let ([x], [y]) = (fs, ts) {
                out[*x] = coords[*y];
                continue;
            }
            let linear = self.linear(&ts.iter().map(|&y| (coords[y], to[y].clone())).collect::<Vec<_>>())?;
            self.delinear(linear, &fs.iter().map(|&x| from[x].clone()).collect::<Vec<_>>())?
                .into_iter()
                .zip(fs)
                .for_each(|(c, &x)| out[x] = c);
        }
        Ok(out)
    }

    /// One row-major index from the coordinates of several dims.
    fn linear(&mut self, parts: &[(Coord, Dim)]) -> R<Coord> {
        let zero = self.b.int(0);
        let mut stride = Dim::from(1);
        let mut strides = Vec::new();
        for (_, d) in parts.iter().rev() {
            strides.push(stride.clone());
            stride = &stride * d;
        }
        strides.reverse();
        let mut lanes = 0;
        let mut affine = true;
        for ((c, _), s) in parts.iter().zip(&strides) {
            match c {
                Coord::Affine { lane: Some(_), .. } => {
                    lanes += 1;
                    affine &= s.as_const().is_some();
                }
                Coord::Affine { .. } => {}
                Coord::Tile { .. } => affine = false,
            }
        }
        if affine && lanes <= 1 {
            let (mut base, mut lane, mut all) = (zero, None, true);
            for ((c, _), s) in parts.iter().zip(&strides) {
                if let Coord::Affine { base: b0, lane: l, inside } = c {
                    let sv = self.dim(s);
                    let part = self.b.mul(*b0, sv)?;
                    base = self.b.add(base, part)?;
                    if let (Some((t, step)), Some(k)) = (l, s.as_const()) {
                        lane = Some((*t, step * k));
                    }
                    all &= inside;
                }
            }
            return Ok(Coord::Affine { base, lane, inside: all });
        }
        let mut sum = self.unit(zero)?;
        let mut all = true;
        for ((c, _), s) in parts.iter().zip(&strides) {
            let index = self.index_tile(*c)?;
            let sv = self.dim(s);
            let sv = self.unit(sv)?;
            let part = self.binary(Binary::Mul, index, sv)?;
            sum = self.binary(Binary::Add, sum, part)?;
            all &= matches!(c, Coord::Affine { inside: true, .. } | Coord::Tile { inside: true, .. });
        }
        Ok(Coord::Tile { index: sum, inside: all })
    }

    /// The coordinates of several dims from one row-major index.
    fn delinear(&mut self, c: Coord, dims: &[Dim]) -> R<Vec<Coord>> {
        let mut out = Vec::new();
        match c {
            _ if dims.len() <= 1 => out.push(c),
            Coord::Affine { base, lane: None, inside } => {
                let mut rest = base;
                for d in dims[1..].iter().rev() {
                    let n = self.dim(d);
                    out.push(Coord::Affine {
                        base: self.b.binary(Binary::Rem, rest, n)?,
                        lane: None,
                        inside,
                    });
                    rest = self.b.div(rest, n)?;
                }
                out.push(Coord::Affine { base: rest, lane: None, inside });
            }
            _ => {
                let inside =
                    matches!(c, Coord::Affine { inside: true, .. } | Coord::Tile { inside: true, .. });
                let mut rest = self.index_tile(c)?;
                for d in dims[1..].iter().rev() {
                    let n = self.dim(d);
                    let n = self.unit(n)?;
                    out.push(Coord::Tile { index: self.binary(Binary::Rem, rest, n)?, inside });
                    rest = self.binary(Binary::Div, rest, n)?;
                }
                out.push(Coord::Tile { index: rest, inside });
            }
        }
        out.reverse();
        out.truncate(dims.len());
        Ok(out)
    }

    /// Word 0 of Philox 4x32-10 at each element's number.
    fn random_bits(&mut self, key: ValueId, counter: ValueId, dims: &[Dim], coords: &[Coord]) -> R<Val> {
        let parts: Vec<(Coord, Dim)> = coords.iter().copied().zip(dims.iter().cloned()).collect();
        let linear = self.linear(&parts)?;
        let linear = self.index_tile(linear)?;
        let key = self.emit(key, &[])?;
        let counter = self.emit(counter, &[])?;
        let number = self.b.bitcast(linear, DType::U64)?;
        let number = self.binary(Binary::Add, number, counter)?;
        let word = |e: &mut Self, x: Val, high: bool| -> R<Val> {
            let x = if high {
                let s = e.b.full(DType::U64, &vec![1; e.shape.len()], Num::Int(32))?;
                e.binary(Binary::Shr, x, s)?
            } else {
                x
            };
            Ok(e.b.cast(x, DType::U32, CAST)?)
        };
        let constant = |e: &mut Self, d: DType, x: u64| -> R<Val> {
            let ones = vec![1; e.shape.len()];
            Ok(e.b.full(d, &ones, Num::Int(x.into()))?)
        };
        let zero = constant(self, DType::U32, 0)?;
        let mut ctr = [word(self, number, false)?, word(self, number, true)?, zero, zero];
        let mut k = [word(self, key, false)?, word(self, key, true)?];
        let (m0, m1) = (constant(self, DType::U64, 0xD251_1F53)?, constant(self, DType::U64, 0xCD9E_8D57)?);
        let (w0, w1) = (constant(self, DType::U32, 0x9E37_79B9)?, constant(self, DType::U32, 0xBB67_AE85)?);
        for round in 0..10 {
            if round > 0 {
                k = [self.binary(Binary::Add, k[0], w0)?, self.binary(Binary::Add, k[1], w1)?];
            }
            let a = self.b.cast(ctr[0], DType::U64, CAST)?;
            let b = self.b.cast(ctr[2], DType::U64, CAST)?;
            let p0 = self.binary(Binary::Mul, a, m0)?;
            let p1 = self.binary(Binary::Mul, b, m1)?;
            let (hi0, lo0) = (word(self, p0, true)?, word(self, p0, false)?);
            let (hi1, lo1) = (word(self, p1, true)?, word(self, p1, false)?);
            let x = self.binary(Binary::Xor, hi1, ctr[1])?;
            let y = self.binary(Binary::Xor, hi0, ctr[3])?;
            ctr = [self.binary(Binary::Xor, x, k[0])?, lo1, self.binary(Binary::Xor, y, k[1])?, lo0];
        }
        Ok(ctr[0])
    }
}

/// The emitter inside a region of the kernel being built.
struct Inner<'e, 'g> {
    e: &'e mut Emitter<'g>,
    error: Option<Error>,
}

impl<'g> Inner<'_, 'g> {
    fn inner<T>(
        &mut self,
        b: &mut KernelBuilder,
        f: impl FnOnce(&mut Emitter<'g>) -> R<T>,
    ) -> Result<T, tongtu_tile::TileError> {
        std::mem::swap(b, &mut self.e.b);
        let r = self.e.scoped(f);
        std::mem::swap(b, &mut self.e.b);
        r.map_err(|e| {
            let text = e.to_string();
            self.error.get_or_insert(e);
            tongtu_tile::TileError::Structure { kernel: String::new(), detail: text }
        })
    }
}

/// Zero of a type's own kind.
pub fn zero_of(dtype: DType) -> Num {
    if dtype.is_float() { Num::Float(0.0) } else { Num::Int(0) }
}
