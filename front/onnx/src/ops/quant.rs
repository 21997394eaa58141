//! Quantisation.

use tongtu_graph::ValueId;
use tongtu_graph::composite::Granularity;
use tongtu_tensor::dim::Dim;
use tongtu_tensor::{Binary, DType, Unary};

use crate::ctx::{Ctx, NodeCtx};
use crate::error::Result;
use crate::ops::nn::{add_bias, conv_spec, less_zero, mat_mul_values};
use crate::ops::{Entry, op};
use crate::val::Val;

/// The family's operators.
pub const OPS: &[Entry] = &[
    op("QuantizeLinear", quantize),
    op("DequantizeLinear", dequantize),
    op("DynamicQuantizeLinear", |cx, n| {
        let x = cx.tensor(n, 0)?;
        let all = cx.b.dynamic_quantize(x)?;
        Ok(all.into_iter().map(|v| cx.out(v)).collect())
    }),
    op("QLinearMatMul", qlinear_mat_mul),
    op("QLinearConv", qlinear_conv),
];

/// Which elements share a scale.
fn granularity(n: &NodeCtx<'_>) -> Result<Granularity> {
    let (x, s) = (n.dims(0)?, n.dims(1)?);
    let block = n.int("block_size", 0)?;
    match s {
        [] => Ok(Granularity::Tensor),
        [one] if one.as_const() == Some(1) && block == 0 => Ok(Granularity::Tensor),
        _ => {
            let axis = n.int("axis", 1)?;
            let axis = n.axis(axis, x.len())?;
            match (s.len(), block) {
                (1, 0) => Ok(Granularity::Axis(axis)),
                (_, 1..) if s.len() == x.len() => Ok(Granularity::Block { axis, size: block }),
                _ => Err(n.bad(format!("scales {s:?} with block size {block} for {x:?}"))),
            }
        }
    }
}

pub(crate) fn quantize<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let g = granularity(n)?;
    let (x, s, z) = (cx.tensor(n, 0)?, cx.tensor(n, 1)?, cx.opt(n, 2)?);
    let to = match (z, n.int("output_dtype", 0)?) {
        (Some(z), _) => cx.b.dtype(z),
        (None, 0) => DType::U8,
        (None, _) => n.dtype_attr("output_dtype")?.unwrap_or(DType::U8),
    };
    // Zero points of floating-point types are zero.
    let z = z.filter(|_| !to.is_float());
    let y = cx.b.quantize(x, s, z, to, g, n.flag("saturate", true)?)?;
    cx.one(y)
}

pub(crate) fn dequantize<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let g = granularity(n)?;
    let (x, s, z) = (cx.tensor(n, 0)?, cx.tensor(n, 1)?, cx.opt(n, 2)?);
    let to = match n.int("output_dtype", 0)? {
        0 if cx.b.dtype(s) == DType::F8E8M0 => DType::F32,
        0 => cx.b.dtype(s),
        _ => n.dtype_attr("output_dtype")?.unwrap_or(DType::F32),
    };
    let y = cx.b.dequantize(x, s, z, to, g)?;
    cx.one(y)
}

/// A scale in `f32`: a scalar, or a vector laid along `axis` of `rank` dims.
pub(crate) fn scale_of<'m>(
    cx: &mut Ctx<'_, 'm>,
    n: &NodeCtx<'m>,
    i: usize,
    rank: usize,
    axis: usize,
) -> Result<ValueId> {
    let s = cx.tensor(n, i)?;
    let s = cx.b.convert(s, DType::F32)?;
    lay(cx, s, rank, axis)
}

/// A scalar, or a vector laid along `axis` of `rank` dims; what has more dims stays as it is.
fn lay(cx: &mut Ctx<'_, '_>, v: ValueId, rank: usize, axis: usize) -> Result<ValueId> {
    Ok(match cx.b.dims(v).as_slice() {
        [d] if d.as_const() == Some(1) => cx.b.reshape(v, &[])?,
        [d] if axis < rank => {
            let mut dims = vec![Dim::from(1); rank];
            dims[axis] = d.clone();
            cx.b.reshape(v, &dims)?
        }
        _ => v,
    })
}

/// `saturate(round(x) + zero)` of an `f32` value; the zero point, an operand, gives the type, else it is `to`.
pub(crate) fn round_to<'m>(
    cx: &mut Ctx<'_, 'm>,
    n: &NodeCtx<'m>,
    x: ValueId,
    zero: usize,
    to: DType,
) -> Result<ValueId> {
    let mut y = cx.b.unary(Unary::RoundEven, x)?;
    let mut to = to;
    if let Some(z) = cx.opt(n, zero)? {
        to = cx.b.dtype(z);
        let z = cx.b.convert(z, DType::F32)?;
        let rank = cx.b.rank(y);
        let z = lay(cx, z, rank, rank.saturating_sub(2))?;
        y = cx.b.add2(y, z)?;
    }
    Ok(cx.b.saturate(y, to)?)
}

/// `sum * (a * b / c)`, all in `f32`.
fn rescale(cx: &mut Ctx<'_, '_>, sum: ValueId, a: ValueId, b: ValueId, c: ValueId) -> Result<ValueId> {
    let factor = cx.b.mul(a, b)?;
    let factor = cx.b.div(factor, c)?;
    let sum = cx.b.convert(sum, DType::F32)?;
    Ok(cx.b.binary(Binary::Mul, sum, factor)?)
}

fn qlinear_mat_mul<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let (ra, rb) = (n.rank(0)?, n.rank(3)?);
    let a = less_zero(cx, n, 0, 2, ra.saturating_sub(2))?;
    let b = less_zero(cx, n, 3, 5, rb.saturating_sub(1))?;
    let y = mat_mul_values(cx, n, a, b, DType::I32)?;
    let rank = cx.b.rank(y);
    let sa = scale_of(cx, n, 1, rank, rank.saturating_sub(2))?;
    let sb = scale_of(cx, n, 4, rank, rank.saturating_sub(1))?;
    let sy = scale_of(cx, n, 6, rank, rank.saturating_sub(2))?;
    let y = rescale(cx, y, sa, sb, sy)?;
    let y = round_to(cx, n, y, 7, n.dtype(0)?)?;
    cx.one(y)
}

fn qlinear_conv<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let spec = conv_spec(n, n.dims(0)?, 3)?;
    let x = less_zero(cx, n, 0, 2, 1)?;
    let w = less_zero(cx, n, 3, 5, 0)?;
    let mut y = cx.b.conv(x, w, spec, DType::I32)?;
    if let Some(bias) = cx.opt(n, 8)? {
        y = add_bias(cx, y, bias)?;
    }
    let rank = cx.b.rank(y);
    let sx = scale_of(cx, n, 1, rank, 1)?;
    let sw = scale_of(cx, n, 4, rank, 1)?;
    let sy = scale_of(cx, n, 6, rank, 1)?;
    let y = rescale(cx, y, sx, sw, sy)?;
    let y = round_to(cx, n, y, 7, n.dtype(0)?)?;
    cx.one(y)
}
