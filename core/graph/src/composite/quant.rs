//! Quantisation.

use tongtu_tensor::dim::Dim;
use tongtu_tensor::scalar::{Binary, Compare, Unary};
use tongtu_tensor::{CastMode, Combiner, DType, Overflow, Rounding};

use crate::build::{Builder, One};
use crate::composite::{attr, attributes, wide};
use crate::error::GraphError;
use crate::graph::ValueId;
use crate::op::AttrValue;

/// Which elements share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granularity {
    /// All: scale and zero point are scalars (or have one element).
    Tensor,
    /// Those at one index of a dim: scale and zero point are vectors.
    Axis(usize),
    /// Runs of `size` elements along a dim: scale and zero point have the operand's dims, with that one divided by `size`, rounded up.
    Block {
        /// The dim.
        axis: usize,
        /// Elements of a run.
        size: i64,
    },
}

impl Granularity {
    fn attributes(self) -> Vec<(String, AttrValue)> {
        match self {
            Granularity::Tensor => vec![],
            Granularity::Axis(a) => attributes(&[("axis", attr(a))]),
            Granularity::Block { axis, size } => attributes(&[("axis", attr(axis)), ("block", attr(size))]),
        }
    }
}

impl Builder<'_> {
    /// Scales or zero points, repeated to the dims of the operand.
    fn per_element(&mut self, name: &str, v: ValueId, dims: &[Dim], granularity: Granularity) -> One {
        match granularity {
            Granularity::Tensor => {
                let s = self.reshape(v, &[])?;
                self.broadcast_to(s, dims)
            }
            Granularity::Axis(a) if self.rank(v) == 0 && a < dims.len() => self.broadcast_to(v, dims),
            Granularity::Axis(a) if self.rank(v) == 1 && a < dims.len() => self.along(v, dims, a),
            Granularity::Block { axis, size }
                if axis < dims.len() && self.rank(v) == dims.len() && size > 0 =>
            {
                let mut long = self.dims(v);
                let runs = long[axis].clone();
                let wide = self.unsqueeze(v, axis + 1)?;
                let mut spread = self.dims(wide);
                spread[axis + 1] = Dim::from(size);
                let wide = self.broadcast_to(wide, &spread)?;
                long[axis] = &runs * &Dim::from(size);
                let y = self.reshape(wide, &long)?;
                if long[axis] == dims[axis] {
                    return self.broadcast_to(y, dims);
                }
                self.slice_axis(y, axis, Dim::from(0), dims[axis].clone())
            }
            _ => Err(self.shape_error(name, "scales do not fit the operand's dims")),
        }
    }
    /// `saturate(round(x / scale) + zero_point)` in type `to`, ties to even; to floating-point types
    /// `x / scale` converted, saturating or not. The quotient is in `f32` (`f64` for `f64`).
    pub fn quantize(
        &mut self,
        x: ValueId,
        scale: ValueId,
        zero_point: Option<ValueId>,
        to: DType,
        granularity: Granularity,
        saturate: bool,
    ) -> One {
        let mut a = granularity.attributes();
        a.extend(attributes(&[("to", attr(to)), ("saturate", attr(saturate))]));
        let operands: Vec<ValueId> = [Some(x), Some(scale), zero_point].into_iter().flatten().collect();
        let acc = wide(self.dtype(x));
        self.composite_one("quantize", a, &operands, |b, x| {
            let dims = b.dims(x[0]);
            let s = b.per_element("quantize", x[1], &dims, granularity)?;
            let s = b.convert(s, acc)?;
            let v = b.convert(x[0], acc)?;
            let mut q = b.div(v, s)?;
            if !to.is_float() {
                q = b.unary(Unary::RoundEven, q)?;
                if let Some(&z) = x.get(2) {
                    let z = b.per_element("quantize", z, &dims, granularity)?;
                    let z = b.convert(z, acc)?;
                    q = b.add2(q, z)?;
                }
            }
            let overflow = if saturate || !to.is_float() { Overflow::Saturate } else { Overflow::Format };
            b.cast(q, to, CastMode { overflow, rounding: Rounding::NearestEven })
        })
    }
    /// `(x - zero_point) * scale` in type `to`; the difference of integers is exact, the product in `f32` (`f64` for `f64`).
    pub fn dequantize(
        &mut self,
        x: ValueId,
        scale: ValueId,
        zero_point: Option<ValueId>,
        to: DType,
        granularity: Granularity,
    ) -> One {
        let mut a = granularity.attributes();
        a.extend(attributes(&[("to", attr(to))]));
        let operands: Vec<ValueId> = [Some(x), Some(scale), zero_point].into_iter().flatten().collect();
        let acc = wide(to);
        self.composite_one("dequantize", a, &operands, |b, x| {
            let dims = b.dims(x[0]);
            let narrow = if b.dtype(x[0]).is_float() { acc } else { DType::I32 };
            let mut v = b.convert(x[0], narrow)?;
            if let Some(&z) = x.get(2) {
                let z = b.per_element("dequantize", z, &dims, granularity)?;
                let z = b.convert(z, narrow)?;
                v = b.sub(v, z)?;
            }
            let s = b.per_element("dequantize", x[1], &dims, granularity)?;
            let s = b.convert(s, acc)?;
            let v = b.convert(v, acc)?;
            let y = b.mul(v, s)?;
            b.convert(y, to)
        })
    }
    /// Quantises to `u8` by the range of the operand, zero included: the quantised elements, the scale (`range / 255`; 1 for
    /// a range of zero) and the zero point.
    pub fn dynamic_quantize(&mut self, x: ValueId) -> Result<[ValueId; 3], GraphError> {
        self.float_only("dynamic_quantize", x)?;
        let out = self.composite("dynamic_quantize", vec![], &[x], |b, x| {
            let axes: Vec<usize> = (0..b.rank(x[0])).collect();
            let high = b.reduce(Combiner::Max, x[0], &axes)?;
            let high = b.binary_const(Binary::Max, high, 0.0)?;
            let low = b.reduce(Combiner::Min, x[0], &axes)?;
            let low = b.binary_const(Binary::Min, low, 0.0)?;
            let range = b.sub(high, low)?;
            let scale = b.binary_const(Binary::Div, range, 255.0)?;
            let flat = b.compare_const(Compare::Eq, range, 0.0)?;
            let one = b.full_like(scale, 1.0)?;
            let scale = b.select(flat, one, scale)?;
            let z = b.div(low, scale)?;
            let z = b.unary(Unary::Neg, z)?;
            let z = b.unary(Unary::RoundEven, z)?;
            let zero = b.saturate(z, DType::U8)?;
            let q = b.div(x[0], scale)?;
            let q = b.unary(Unary::RoundEven, q)?;
            let z = b.convert(zero, b.dtype(q))?;
            let q = b.add2(q, z)?;
            Ok(vec![b.saturate(q, DType::U8)?, scale, zero])
        })?;
        Ok([out[0], out[1], out[2]])
    }
}
