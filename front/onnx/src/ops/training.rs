//! Optimiser steps.

use tongtu_graph::ValueId;
use tongtu_tensor::{Binary, Compare, DType, Unary};

use crate::ctx::{Ctx, NodeCtx};
use crate::error::Result;
use crate::ops::{Entry, op_in};
use crate::val::Val;

/// The family's operators.
pub const OPS: &[Entry] = &[
    op_in("ai.onnx.preview.training", "Adagrad", adagrad),
    op_in("ai.onnx.preview.training", "Adam", adam),
    op_in("ai.onnx.preview.training", "Momentum", momentum),
];

/// The operands after rate and count: for each tensor that is optimised its value, gradient and states, which lie side by side
/// for all of them.
fn columns<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>, width: usize) -> Result<Vec<Vec<ValueId>>> {
    let rest = n.inputs.len().saturating_sub(2);
    if rest == 0 || !rest.is_multiple_of(width) {
        return Err(n.bad(format!("{rest} operands in groups of {width}")));
    }
    let count = rest / width;
    (0..count).map(|i| (0..width).map(|w| cx.tensor(n, 2 + w * count + i)).collect()).collect()
}

/// Results side by side, as the operands lie.
fn side_by_side(cx: &Ctx<'_, '_>, rows: &[Vec<ValueId>]) -> Vec<Val> {
    let width = rows.first().map_or(0, Vec::len);
    (0..width).flat_map(|w| rows.iter().map(move |r| r[w])).map(|v| cx.out(v)).collect()
}

/// `norm_coefficient * x + g`.
fn regularised(cx: &mut Ctx<'_, '_>, n: &NodeCtx<'_>, x: ValueId, g: ValueId) -> Result<ValueId> {
    let decay = cx.b.binary_const(Binary::Mul, x, n.float("norm_coefficient", 0.0)?)?;
    Ok(cx.b.add2(decay, g)?)
}

/// `a * x + b * y`.
fn blend(cx: &mut Ctx<'_, '_>, a: f64, x: ValueId, b: f64, y: ValueId) -> Result<ValueId> {
    let x = cx.b.binary_const(Binary::Mul, x, a)?;
    let y = cx.b.binary_const(Binary::Mul, y, b)?;
    Ok(cx.b.add2(x, y)?)
}

/// A step against a direction: `x - rate * direction`.
fn step(cx: &mut Ctx<'_, '_>, x: ValueId, rate: ValueId, direction: ValueId) -> Result<ValueId> {
    let rate = cx.b.convert(rate, cx.b.dtype(x))?;
    let by = cx.b.mul(rate, direction)?;
    Ok(cx.b.sub(x, by)?)
}

fn scalar<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>, i: usize) -> Result<ValueId> {
    let v = cx.tensor(n, i)?;
    let v = cx.b.reshape(v, &[])?;
    Ok(cx.b.convert(v, DType::F64)?)
}

fn adagrad<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let (rate, count) = (scalar(cx, n, 0)?, scalar(cx, n, 1)?);
    let by = cx.b.binary_const(Binary::Mul, count, n.float("decay_factor", 0.0)?)?;
    let by = cx.b.binary_const(Binary::Add, by, 1.0)?;
    let rate = cx.b.div(rate, by)?;
    let mut rows = Vec::new();
    for c in columns(cx, n, 3)? {
        let g = regularised(cx, n, c[0], c[1])?;
        let square = cx.b.mul(g, g)?;
        let h = cx.b.add2(c[2], square)?;
        let root = cx.b.unary(Unary::Sqrt, h)?;
        let root = cx.b.binary_const(Binary::Add, root, n.float("epsilon", 1e-6)?)?;
        let direction = cx.b.div(g, root)?;
        rows.push(vec![step(cx, c[0], rate, direction)?, h]);
    }
    Ok(side_by_side(cx, &rows))
}

fn adam<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let (alpha, beta) = (n.float("alpha", f64::from(0.9f32))?, n.float("beta", f64::from(0.999f32))?);
    let (rate, count) = (scalar(cx, n, 0)?, scalar(cx, n, 1)?);
    let mut rest = |base: f64| -> Result<ValueId> {
        let base = cx.b.float(DType::F64, base)?;
        let power = cx.b.binary(Binary::Pow, base, count)?;
        let one = cx.b.float(DType::F64, 1.0)?;
        Ok(cx.b.sub(one, power)?)
    };
    let (first, second) = (rest(alpha)?, rest(beta)?);
    let root = cx.b.unary(Unary::Sqrt, second)?;
    let adjusted = cx.b.mul(rate, root)?;
    let adjusted = cx.b.div(adjusted, first)?;
    let later = cx.b.compare_const(Compare::Gt, count, 0.0)?;
    let rate = cx.b.select(later, adjusted, rate)?;
    let mut rows = Vec::new();
    for c in columns(cx, n, 4)? {
        let g = regularised(cx, n, c[0], c[1])?;
        let v = blend(cx, alpha, c[2], 1.0 - alpha, g)?;
        let square = cx.b.mul(g, g)?;
        let h = blend(cx, beta, c[3], 1.0 - beta, square)?;
        let root = cx.b.unary(Unary::Sqrt, h)?;
        let root = cx.b.binary_const(Binary::Add, root, n.float("epsilon", 1e-6)?)?;
        let direction = cx.b.div(v, root)?;
        let x = step(cx, c[0], rate, direction)?;
        let x = cx.b.binary_const(Binary::Mul, x, 1.0 - n.float("norm_coefficient_post", 0.0)?)?;
        rows.push(vec![x, v, h]);
    }
    Ok(side_by_side(cx, &rows))
}

fn momentum<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let required =
        |name: &str| n.opt_float(name)?.ok_or_else(|| n.bad(format!("attribute '{name}' is missing")));
    let (alpha, beta) = (required("alpha")?, required("beta")?);
    let nesterov = match n.str("mode", "")? {
        "standard" => false,
        "nesterov" => true,
        other => return Err(n.bad(format!("mode '{other}'"))),
    };
    let (rate, count) = (scalar(cx, n, 0)?, scalar(cx, n, 1)?);
    let later = cx.b.compare_const(Compare::Gt, count, 0.0)?;
    let (b, one) = (cx.b.float(DType::F64, beta)?, cx.b.float(DType::F64, 1.0)?);
    let beta = cx.b.select(later, b, one)?;
    let mut rows = Vec::new();
    for c in columns(cx, n, 3)? {
        let g = regularised(cx, n, c[0], c[1])?;
        let old = cx.b.binary_const(Binary::Mul, c[2], alpha)?;
        let beta = cx.b.convert(beta, cx.b.dtype(g))?;
        let new = cx.b.mul(g, beta)?;
        let v = cx.b.add2(old, new)?;
        let direction = if nesterov {
            let ahead = cx.b.binary_const(Binary::Mul, v, alpha)?;
            cx.b.add2(g, ahead)?
        } else {
            v
        };
        rows.push(vec![step(cx, c[0], rate, direction)?, v]);
    }
    Ok(side_by_side(cx, &rows))
}
