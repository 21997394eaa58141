//! Positions: nonzero, top-k, one-hot, argmax and their kin.

use tongtu_tensor::dim::{Dim, Sym};
use tongtu_tensor::scalar::{Binary, Compare};
use tongtu_tensor::{Combiner, DType};

use crate::build::{Builder, One};
use crate::composite::{attr, attributes};
use crate::error::GraphError;
use crate::graph::ValueId;
use crate::infer::numel;
use crate::op::Op;

impl Builder<'_> {
    /// Coordinates of the elements that are not zero (NaN is not), in row-major order: `i64 [s, rank]`, with a fresh symbol `s` bound to
    /// their number when it runs.
    pub fn nonzero(&mut self, x: ValueId) -> Result<(ValueId, Sym), GraphError> {
        let total = numel(&self.dims(x));
        let most = total.as_const();
        let count = self.symbols.fresh("nonzero");
        if let Some(n) = most {
            self.symbols.set_bounds(count, 0, Some(n));
        }
        let y = self.composite_one("nonzero", vec![], &[x], |b, x| {
            let dims = b.dims(x[0]);
            let n = numel(&dims);
            let mask = if b.dtype(x[0]).is_bool() { x[0] } else { b.compare_const(Compare::Ne, x[0], 0.0)? };
            let mask = b.reshape(mask, std::slice::from_ref(&n))?;
            let ones = b.convert(mask, DType::I64)?;
            let total = b.sum(ones, &[0])?;
            b.add(Op::Bind { sym: count }, &[total])?;
            let order = b.scan(Combiner::Add, ones, 0, false, false)?;
            let order = b.add_const(order, -1.0)?;
            let nowhere = b.full_like(order, -1.0)?;
            let row = b.select(mask, order, nowhere)?;
            let row = b.unsqueeze(row, 1)?;
            let parts = (0..dims.len())
                .map(|axis| {
                    let i = b.iota(DType::I64, &dims, axis)?;
                    b.reshape(i, &[n.clone(), Dim::from(1)])
                })
                .collect::<Result<Vec<_>, _>>()?;
            let rank = Dim::from(dims.len() as i64);
            let coordinates = if parts.is_empty() {
                b.full(DType::I64, 0.0, &[n, rank.clone()])?
            } else {
                b.concat(&parts, 1)?
            };
            let empty = b.full(DType::I64, 0.0, &[Dim::from(count), rank])?;
            b.scatter_nd(Combiner::Replace, empty, row, coordinates)
        })?;
        Ok((y, count))
    }
    /// The slices of `x` along a dim at which a vector of bools is true; the new dim is a symbol bound when it runs. A condition shorter than
    /// the dim selects from its beginning.
    pub fn compress(&mut self, x: ValueId, condition: ValueId, axis: usize) -> One {
        self.check_axis("compress", x, axis)?;
        let (rows, count) = self.nonzero(condition)?;
        let rows = self.reshape(rows, &[Dim::from(count)])?;
        self.take(x, rows, axis)
    }
    /// The `k` greatest (or least) elements along a dim in order, of equals those of lower index first, and their indices (`i64`).
    pub fn top_k(
        &mut self,
        x: ValueId,
        k: &Dim,
        axis: usize,
        largest: bool,
    ) -> Result<(ValueId, ValueId), GraphError> {
        self.check_axis("top_k", x, axis)?;
        let a = attributes(&[("k", attr(k.clone())), ("axis", attr(axis)), ("largest", attr(largest))]);
        let out = self.composite("top_k", a, &[x], |b, x| {
            let dims = b.dims(x[0]);
            let i = b.iota(DType::I64, &dims, axis)?;
            let sorted = b.sort(&[x[0], i], axis, largest)?;
            let v = b.slice_axis(sorted[0], axis, Dim::from(0), k.clone())?;
            Ok(vec![v, b.slice_axis(sorted[1], axis, Dim::from(0), k.clone())?])
        })?;
        Ok((out[0], out[1]))
    }
    /// `on` where a new dim of length `depth`, put before `axis`, counts to the element of `indices`, else `off`. Negative indices count
    /// from the end; those outside give `off` everywhere.
    pub fn one_hot(&mut self, indices: ValueId, depth: &Dim, on: ValueId, off: ValueId, axis: usize) -> One {
        if axis > self.rank(indices) {
            return Err(self.shape_error("one_hot", format!("axis {axis} past the rank")));
        }
        let a = attributes(&[("depth", attr(depth.clone())), ("axis", attr(axis))]);
        self.composite_one("one_hot", a, &[indices, on, off], |b, x| {
            let i = b.convert(x[0], DType::I64)?;
            let n = b.dim_as(depth, DType::I64)?;
            let i = b.wrap_negative(i, n)?;
            let i = b.unsqueeze(i, axis)?;
            let mut dims = b.dims(i);
            dims[axis] = depth.clone();
            let i = b.broadcast_to(i, &dims)?;
            let at = b.iota(DType::I64, &dims, axis)?;
            let p = b.compare(Compare::Eq, i, at)?;
            b.select(p, x[1], x[2])
        })
    }
    fn wrap_negative(&mut self, i: ValueId, n: ValueId) -> One {
        let up = self.add2(i, n)?;
        let p = self.compare_const(Compare::Lt, i, 0.0)?;
        self.select(p, up, i)
    }
    /// Indices with the negative ones counted from the end of a dim of length `n`; of a signed integer type.
    pub fn normalize_indices(&mut self, indices: ValueId, n: &Dim) -> One {
        let n = self.dim_as(n, self.dtype(indices))?;
        self.wrap_negative(indices, n)
    }
    /// Running sum along a dim.
    pub fn cum_sum(&mut self, x: ValueId, axis: usize, exclusive: bool, reverse: bool) -> One {
        self.scan(Combiner::Add, x, axis, exclusive, reverse)
    }
    /// Index (`i64`) of the greatest (or least) element along a dim, of equals the first or the last; NaN wins.
    pub fn arg_extreme(&mut self, x: ValueId, axis: usize, greatest: bool, keep: bool, last: bool) -> One {
        let name = if greatest { "arg_max" } else { "arg_min" };
        self.check_axis(name, x, axis)?;
        let a = attributes(&[("axis", attr(axis)), ("keep", attr(keep)), ("last", attr(last))]);
        self.composite_one(name, a, &[x], |b, x| {
            let combiner = match (greatest, last) {
                (true, false) => Combiner::ArgMax,
                (true, true) => Combiner::ArgMaxLast,
                (false, false) => Combiner::ArgMin,
                (false, true) => Combiner::ArgMinLast,
            };
            let dims = b.dims(x[0]);
            let i = b.iota(DType::I64, &dims, axis)?;
            let out = b.add(Op::Reduce { combiner, axes: vec![axis] }, &[x[0], i])?;
            b.keep_axes(out[1], x[0], &[axis], keep)
        })
    }
    /// [`Builder::arg_extreme`] for the greatest.
    pub fn arg_max(&mut self, x: ValueId, axis: usize, keep: bool, last: bool) -> One {
        self.arg_extreme(x, axis, true, keep, last)
    }
    /// [`Builder::arg_extreme`] for the least.
    pub fn arg_min(&mut self, x: ValueId, axis: usize, keep: bool, last: bool) -> One {
        self.arg_extreme(x, axis, false, keep, last)
    }
    /// The upper (or lower) triangle of the last two dims, counted from the diagonal `k` (an `i64` scalar; 0 is the main one, positive above it),
    /// and zeros elsewhere.
    pub fn triangle(&mut self, x: ValueId, k: ValueId, upper: bool) -> One {
        let Some(row) = self.rank(x).checked_sub(2) else {
            return Err(self.shape_error("triangle", "fewer than two dims"));
        };
        self.composite_one("triangle", attributes(&[("upper", attr(upper))]), &[x, k], |b, x| {
            let plane = b.dims(x[0])[row..].to_vec();
            let i = b.iota(DType::I64, &plane, 0)?;
            let j = b.iota(DType::I64, &plane, 1)?;
            let edge = b.add2(i, x[1])?;
            let p = b.compare(if upper { Compare::Ge } else { Compare::Le }, j, edge)?;
            let zero = b.full_like(x[0], 0.0)?;
            b.select(p, x[0], zero)
        })
    }
    /// Reverses the first `lengths[b]` elements of the dim `time` in each batch element `b`; the rest stays.
    pub fn reverse_sequence(&mut self, x: ValueId, lengths: ValueId, batch: usize, time: usize) -> One {
        self.check_axis("reverse_sequence", x, batch)?;
        self.check_axis("reverse_sequence", x, time)?;
        let a = attributes(&[("batch", attr(batch)), ("time", attr(time))]);
        self.composite_one("reverse_sequence", a, &[x, lengths], |b, x| {
            let dims = b.dims(x[0]);
            let n = b.convert(x[1], DType::I64)?;
            let n = b.along(n, &dims, batch)?;
            let t = b.iota(DType::I64, &dims, time)?;
            let back = b.sub(n, t)?;
            let back = b.add_const(back, -1.0)?;
            let p = b.compare(Compare::Lt, t, n)?;
            let i = b.select(p, back, t)?;
            b.take_along(x[0], i, time)
        })
    }
    /// Index `((0 * n0 + i0) * n1 + i1) …` of coordinates `i64 [.., k]` in dims of lengths `n`: a step towards flat gathers.
    pub fn flatten_coordinates(&mut self, coordinates: ValueId, dims: &[Dim]) -> One {
        let Some(last) = self.rank(coordinates).checked_sub(1) else {
            return Err(self.shape_error("flatten_coordinates", "a scalar"));
        };
        let mut outer = self.dims(coordinates);
        outer.truncate(last);
        let mut flat = self.full(DType::I64, 0.0, &outer)?;
        for (k, n) in dims.iter().enumerate() {
            let i = self.slice_axis(coordinates, last, Dim::from(k as i64), Dim::from(1))?;
            let i = self.reshape(i, &outer)?;
            let n = self.dim_as(n, DType::I64)?;
            flat = self.binary(Binary::Mul, flat, n)?;
            flat = self.add2(flat, i)?;
        }
        Ok(flat)
    }
}
