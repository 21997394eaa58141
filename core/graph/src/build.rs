//! Building graphs: each call adds one node, with its result types inferred.

use std::sync::Arc;

use tongtu_tensor::dim::{Dim, Sym, Symbols};
use tongtu_tensor::scalar::{Binary, Compare, Unary};
use tongtu_tensor::{CastMode, Combiner, DType, Num, Tensor};

use crate::error::GraphError;
use crate::graph::{Graph, Loc, Node, Type, ValueId};
use crate::infer;
use crate::op::{ConvSpec, Op, WindowSpec};

/// Result of adding a node with one result.
pub type One = Result<ValueId, GraphError>;

/// Adds nodes to a graph. The symbols are those of the module that the graph belongs to.
pub struct Builder<'a> {
    /// The graph being built.
    pub graph: &'a mut Graph,
    /// The module's symbols.
    pub symbols: &'a mut Symbols,
    /// The location given to nodes added from here on.
    pub loc: Loc,
}

impl<'a> Builder<'a> {
    /// A builder at the end of a graph.
    pub fn new(graph: &'a mut Graph, symbols: &'a mut Symbols) -> Builder<'a> {
        Builder { graph, symbols, loc: Loc::default() }
    }

    /// The dims of a value.
    pub fn dims(&self, v: ValueId) -> Vec<Dim> {
        self.graph.dims(v).to_vec()
    }
    /// The number of dims of a value.
    pub fn rank(&self, v: ValueId) -> usize {
        self.graph.dims(v).len()
    }
    /// The element type of a value.
    pub fn dtype(&self, v: ValueId) -> DType {
        self.graph.dtype(v)
    }

    /// Adds an operation and gives its results.
    pub fn add(&mut self, op: Op, inputs: &[ValueId]) -> Result<Vec<ValueId>, GraphError> {
        let types: Vec<Type> = inputs.iter().map(|&v| self.graph.ty(v).clone()).collect();
        let results = infer::infer(&op, &types, self.symbols, &self.loc)?;
        let outputs: Vec<ValueId> = results.into_iter().map(|t| self.graph.add_value(t, None)).collect();
        self.graph.nodes.push(Node {
            op,
            inputs: inputs.to_vec(),
            outputs: outputs.clone(),
            loc: self.loc.clone(),
        });
        Ok(outputs)
    }
    /// Adds an operation with one result.
    pub fn one(&mut self, op: Op, inputs: &[ValueId]) -> One {
        let name = op.name();
        match self.add(op, inputs)?.as_slice() {
            [v] => Ok(*v),
            other => Err(GraphError::Structure {
                op: name.into(),
                loc: self.loc.clone(),
                detail: format!("has {} results where one is used", other.len()),
            }),
        }
    }

    /// A constant tensor.
    pub fn constant(&mut self, value: Tensor) -> One {
        self.one(Op::Constant { value }, &[])
    }
    /// A constant scalar.
    pub fn scalar(&mut self, dtype: DType, value: Num) -> One {
        self.constant(Tensor::scalar(dtype, value))
    }
    /// A constant floating-point scalar, rounded to the type.
    pub fn float(&mut self, dtype: DType, value: f64) -> One {
        self.scalar(dtype, Num::Float(value))
    }
    /// A constant integer (or bool) scalar.
    pub fn int(&mut self, dtype: DType, value: i64) -> One {
        self.scalar(dtype, Num::Int(value.into()))
    }
    /// One number, of a type's own kind, in every element of the given dims.
    pub fn full(&mut self, dtype: DType, value: f64, dims: &[Dim]) -> One {
        let s = if dtype.is_float() { self.float(dtype, value)? } else { self.int(dtype, value as i64)? };
        self.broadcast_to(s, dims)
    }
    /// The constant with the dims and type of another value.
    pub fn full_like(&mut self, like: ValueId, value: f64) -> One {
        let (dtype, dims) = (self.dtype(like), self.dims(like));
        self.full(dtype, value, &dims)
    }
    /// A dim expression as an `i64` scalar.
    pub fn dim_value(&mut self, dim: Dim) -> One {
        self.one(Op::DimValue { dim }, &[])
    }
    /// Binds a fresh symbol, named after `name`, to an `i64` scalar, and gives the symbol.
    pub fn bind(&mut self, scalar: ValueId, name: &str) -> Result<Sym, GraphError> {
        let sym = self.symbols.fresh(name);
        self.add(Op::Bind { sym }, &[scalar])?;
        Ok(sym)
    }
    /// Counts along a dim.
    pub fn iota(&mut self, dtype: DType, dims: &[Dim], axis: usize) -> One {
        self.one(Op::Iota { dtype, dims: dims.to_vec(), axis }, &[])
    }

    /// A scalar operation of one operand.
    pub fn unary(&mut self, op: Unary, x: ValueId) -> One {
        self.one(Op::Unary(op), &[x])
    }
    /// Broadcasts both operands to common dims, numpy's way (aligned at the last dim). Symbolic dims of which
    /// neither is known to be 1 are taken to be equal.
    pub fn align(&mut self, a: ValueId, b: ValueId) -> Result<(ValueId, ValueId), GraphError> {
        let dims = self.broadcast_dims(&[a, b])?;
        Ok((self.broadcast_to(a, &dims)?, self.broadcast_to(b, &dims)?))
    }
    /// The common dims of several values under numpy's broadcasting.
    pub fn broadcast_dims(&self, values: &[ValueId]) -> Result<Vec<Dim>, GraphError> {
        let rank = values.iter().map(|&v| self.rank(v)).max().unwrap_or(0);
        let mut out: Vec<Dim> = vec![Dim::from(1); rank];
        for &v in values {
            let dims = self.graph.dims(v);
            let skip = rank - dims.len();
            for (i, d) in dims.iter().enumerate() {
                let o = &mut out[skip + i];
                let (flat, known) = (self.at_most_one(o), o.as_const() == Some(1));
                if known || flat && d.as_const() != Some(1) && !self.at_most_one(d) {
                    *o = d.clone();
                } else if d.as_const() != Some(1) && (flat || !self.at_most_one(d)) {
                    if !infer::may_equal(o, d) {
                        return Err(GraphError::Shape {
                            op: "broadcast".into(),
                            loc: self.loc.clone(),
                            detail: format!(
                                "dims {} and {} do not broadcast",
                                o.display(self.symbols),
                                d.display(self.symbols)
                            ),
                        });
                    }
                    *o = infer::simpler(o, d);
                }
            }
        }
        Ok(out)
    }
    /// Whether a dim that is not known is 0 or 1.
    fn at_most_one(&self, d: &Dim) -> bool {
        d.as_const().is_none() && d.bounds(self.symbols).1.is_some_and(|most| most <= 1)
    }
    /// Broadcasts to dims, aligned at the last dim; nothing is added where the value has them already. A dim `h` that is 0 or 1, which
    /// only the run tells, becomes `h` times the wanted one: that is none where there is nothing to repeat.
    pub fn broadcast_to(&mut self, x: ValueId, dims: &[Dim]) -> One {
        let have = self.graph.dims(x);
        if have == dims {
            return Ok(x);
        }
        let Some(skip) = dims.len().checked_sub(have.len()) else {
            return Err(GraphError::Shape {
                op: "broadcast".into(),
                loc: self.loc.clone(),
                detail: format!("rank {} does not broadcast to rank {}", have.len(), dims.len()),
            });
        };
        let axes = (skip..dims.len()).collect();
        let mut dims = dims.to_vec();
        let mut missing = vec![Dim::from(0); have.len()];
        for (i, h) in have.iter().enumerate() {
            if *h != dims[skip + i] && self.at_most_one(h) {
                missing[i] = Dim::from(1) - h;
                dims[skip + i] = &dims[skip + i] * h;
            }
        }
        let mut x = x;
        if missing.iter().any(|m| m.as_const() != Some(0)) {
            let zero = self.full(self.dtype(x), 0.0, &[])?;
            let low = vec![Dim::from(0); missing.len()];
            x = self.pad(x, zero, &low, &missing)?;
        }
        self.one(Op::Broadcast { dims, axes }, &[x])
    }
    /// Broadcasts operand dim `i` to result dim `axes[i]`.
    pub fn broadcast(&mut self, x: ValueId, dims: &[Dim], axes: &[usize]) -> One {
        self.one(Op::Broadcast { dims: dims.to_vec(), axes: axes.to_vec() }, &[x])
    }
    /// A scalar operation of two operands, broadcast to common dims first.
    pub fn binary(&mut self, op: Binary, a: ValueId, b: ValueId) -> One {
        let (a, b) = self.align(a, b)?;
        self.one(Op::Binary(op), &[a, b])
    }
    /// Sum, broadcasting.
    pub fn add2(&mut self, a: ValueId, b: ValueId) -> One {
        self.binary(Binary::Add, a, b)
    }
    /// Difference, broadcasting.
    pub fn sub(&mut self, a: ValueId, b: ValueId) -> One {
        self.binary(Binary::Sub, a, b)
    }
    /// Product, broadcasting.
    pub fn mul(&mut self, a: ValueId, b: ValueId) -> One {
        self.binary(Binary::Mul, a, b)
    }
    /// Quotient, broadcasting.
    pub fn div(&mut self, a: ValueId, b: ValueId) -> One {
        self.binary(Binary::Div, a, b)
    }
    /// With a constant of the operand's type as the second operand.
    pub fn binary_const(&mut self, op: Binary, a: ValueId, b: f64) -> One {
        let c = self.full_like(a, b)?;
        self.one(Op::Binary(op), &[a, c])
    }
    /// Comparison, broadcasting.
    pub fn compare(&mut self, op: Compare, a: ValueId, b: ValueId) -> One {
        let (a, b) = self.align(a, b)?;
        self.one(Op::Compare(op), &[a, b])
    }
    /// Comparison with a constant of the operand's type.
    pub fn compare_const(&mut self, op: Compare, a: ValueId, b: f64) -> One {
        let c = self.full_like(a, b)?;
        self.one(Op::Compare(op), &[a, c])
    }
    /// Choice by condition, broadcasting all three.
    pub fn select(&mut self, p: ValueId, a: ValueId, b: ValueId) -> One {
        let dims = self.broadcast_dims(&[p, a, b])?;
        let p = self.broadcast_to(p, &dims)?;
        let a = self.broadcast_to(a, &dims)?;
        let b = self.broadcast_to(b, &dims)?;
        self.one(Op::Select {}, &[p, a, b])
    }
    /// Conversion of type; nothing is added where the value has it already.
    pub fn cast(&mut self, x: ValueId, to: DType, mode: CastMode) -> One {
        if self.dtype(x) == to { Ok(x) } else { self.one(Op::Cast { to, mode }, &[x]) }
    }
    /// The same bits as another type.
    pub fn bitcast(&mut self, x: ValueId, to: DType) -> One {
        self.one(Op::Bitcast { to }, &[x])
    }

    /// The same elements under other dims.
    pub fn reshape(&mut self, x: ValueId, dims: &[Dim]) -> One {
        if self.graph.dims(x) == dims { Ok(x) } else { self.one(Op::Reshape { dims: dims.to_vec() }, &[x]) }
    }
    /// Reorders dims.
    pub fn permute(&mut self, x: ValueId, perm: &[usize]) -> One {
        if perm.iter().enumerate().all(|(i, &p)| i == p) {
            return Ok(x);
        }
        self.one(Op::Permute { perm: perm.to_vec() }, &[x])
    }
    /// Adds a dim of length 1 before `axis`.
    pub fn unsqueeze(&mut self, x: ValueId, axis: usize) -> One {
        let mut dims = self.dims(x);
        dims.insert(axis.min(dims.len()), Dim::from(1));
        self.reshape(x, &dims)
    }
    /// Elements at `start + i * step` in every dim.
    pub fn slice(&mut self, x: ValueId, start: &[Dim], len: &[Dim], step: &[i64]) -> One {
        self.one(Op::Slice { start: start.to_vec(), len: len.to_vec(), step: step.to_vec() }, &[x])
    }
    /// `len` elements from `start` along one dim.
    pub fn slice_axis(&mut self, x: ValueId, axis: usize, start: Dim, len: Dim) -> One {
        let mut lens = self.dims(x);
        let mut starts = vec![Dim::from(0); lens.len()];
        let step = vec![1; lens.len()];
        if axis >= lens.len() {
            return Err(GraphError::Shape {
                op: "slice".into(),
                loc: self.loc.clone(),
                detail: format!("axis {axis} of a value of rank {}", lens.len()),
            });
        }
        starts[axis] = start;
        lens[axis] = len;
        self.slice(x, &starts, &lens, &step)
    }
    /// Adds elements equal to `value` around the operand.
    pub fn pad(&mut self, x: ValueId, value: ValueId, low: &[Dim], high: &[Dim]) -> One {
        self.one(Op::Pad { low: low.to_vec(), high: high.to_vec() }, &[x, value])
    }
    /// Operands one after another.
    pub fn concat(&mut self, xs: &[ValueId], axis: usize) -> One {
        if let [x] = xs { Ok(*x) } else { self.one(Op::Concat { axis }, xs) }
    }
    /// Slices at indices along a dim.
    pub fn take(&mut self, data: ValueId, indices: ValueId, axis: usize) -> One {
        self.one(Op::Take { axis }, &[data, indices])
    }
    /// Reduction of one operand; the axes disappear.
    pub fn reduce(&mut self, combiner: Combiner, x: ValueId, axes: &[usize]) -> One {
        self.one(Op::Reduce { combiner, axes: axes.to_vec() }, &[x])
    }
    /// Reduction of one operand that leaves the axes with length 1.
    pub fn reduce_keep(&mut self, combiner: Combiner, x: ValueId, axes: &[usize]) -> One {
        let mut dims = self.dims(x);
        let r = self.reduce(combiner, x, axes)?;
        for &a in axes {
            dims[a] = Dim::from(1);
        }
        self.reshape(r, &dims)
    }
    /// Sum of products over pairs of dims.
    pub fn contract(
        &mut self,
        lhs: ValueId,
        rhs: ValueId,
        batch: &[(usize, usize)],
        over: &[(usize, usize)],
        acc: DType,
    ) -> One {
        self.one(Op::Contract { batch: batch.to_vec(), over: over.to_vec(), acc }, &[lhs, rhs])
    }
    /// Convolution.
    pub fn conv(&mut self, x: ValueId, kernel: ValueId, spec: ConvSpec, acc: DType) -> One {
        self.one(Op::Conv { spec, acc }, &[x, kernel])
    }
    /// Sliding-window reduction of one operand.
    pub fn window_reduce(&mut self, combiner: Combiner, x: ValueId, spec: WindowSpec) -> One {
        self.one(Op::WindowReduce { combiner, spec }, &[x])
    }

    /// Elements at an index in one dim for every other position (see [`Op::TakeAlong`]).
    pub fn take_along(&mut self, data: ValueId, indices: ValueId, axis: usize) -> One {
        self.one(Op::TakeAlong { axis }, &[data, indices])
    }
    /// Slices at rows of indices (see [`Op::GatherNd`]).
    pub fn gather_nd(&mut self, data: ValueId, indices: ValueId, batch: usize) -> One {
        self.one(Op::GatherNd { batch }, &[data, indices])
    }
    /// Updates at rows of indices (see [`Op::ScatterNd`]).
    pub fn scatter_nd(
        &mut self,
        combiner: Combiner,
        data: ValueId,
        indices: ValueId,
        updates: ValueId,
    ) -> One {
        self.one(Op::ScatterNd { combiner }, &[data, indices, updates])
    }
    /// Updates at an index in one dim for every other position (see [`Op::ScatterAlong`]).
    pub fn scatter_along(
        &mut self,
        combiner: Combiner,
        data: ValueId,
        indices: ValueId,
        updates: ValueId,
        axis: usize,
    ) -> One {
        self.one(Op::ScatterAlong { axis, combiner }, &[data, indices, updates])
    }
    /// Running combination of one operand along a dim.
    pub fn scan(
        &mut self,
        combiner: Combiner,
        x: ValueId,
        axis: usize,
        exclusive: bool,
        reverse: bool,
    ) -> One {
        self.one(Op::Scan { combiner, axis, exclusive, reverse }, &[x])
    }
    /// Stable sort of several operands by the first.
    pub fn sort(
        &mut self,
        xs: &[ValueId],
        axis: usize,
        descending: bool,
    ) -> Result<Vec<ValueId>, GraphError> {
        self.add(Op::Sort { axis, descending }, xs)
    }
    /// An operation of the host library on strings, sequences or optionals.
    pub fn host(
        &mut self,
        name: &str,
        attributes: Vec<(String, crate::op::AttrValue)>,
        operands: &[ValueId],
        results: Vec<Type>,
    ) -> Result<Vec<ValueId>, GraphError> {
        self.add(Op::Host { name: name.to_string(), attributes, results }, operands)
    }

    /// A closed graph with parameters of the given types: a region of an `if` or `while`.
    pub fn region(
        &mut self,
        name: &str,
        params: &[Type],
        define: impl FnOnce(&mut Builder<'_>, &[ValueId]) -> Result<Vec<ValueId>, GraphError>,
    ) -> Result<Arc<Graph>, GraphError> {
        let mut body = Graph { name: name.to_string(), ..Graph::default() };
        for ty in params {
            body.add_input(ty.clone(), None);
        }
        let params = body.inputs.clone();
        let mut inner = Builder { graph: &mut body, symbols: self.symbols, loc: self.loc.clone() };
        let outputs = define(&mut inner, &params)?;
        body.outputs = outputs;
        Ok(Arc::new(body))
    }

    /// A composite whose definition is built by `define` from parameters with the operands' types.
    pub fn composite(
        &mut self,
        name: &str,
        attributes: Vec<(String, crate::op::AttrValue)>,
        operands: &[ValueId],
        define: impl FnOnce(&mut Builder<'_>, &[ValueId]) -> Result<Vec<ValueId>, GraphError>,
    ) -> Result<Vec<ValueId>, GraphError> {
        let types: Vec<Type> = operands.iter().map(|&v| self.graph.ty(v).clone()).collect();
        let body = self.region(name, &types, define)?;
        self.add(Op::Composite { name: name.to_string(), attributes, body }, operands)
    }
}
