//! Attention with functions of the scores.

use tongtu_graph::ValueId;
use tongtu_tensor::dim::Dim;
use tongtu_tensor::{Binary, DType};

use crate::ctx::{Ctx, NodeCtx};
use crate::error::Result;
use crate::ops::{Entry, op_in};
use crate::val::Val;

/// The family's operators.
pub const OPS: &[Entry] = &[op_in("ai.onnx.preview", "FlexAttention", flex_attention)];

fn flex_attention<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let (q, k, v) = (cx.tensor(n, 0)?, cx.tensor(n, 1)?, cx.tensor(n, 2)?);
    let (qd, kd, vd) = (cx.b.dims(q), cx.b.dims(k), cx.b.dims(v));
    if qd.len() != 4 || kd.len() != 4 || vd.len() != 4 {
        return Err(n.bad("the operands do not have rank 4"));
    }
    let d = cx.b.dtype(q);
    let precision = match n.dtype_attr("softmax_precision")? {
        Some(p) => p,
        None if d == DType::F64 => d,
        None => DType::F32,
    };
    // Query heads in groups that share a key head: [batch, key heads, group, …].
    let group = qd[1].floordiv(&kd[1]);
    let split = [qd[0].clone(), kd[1].clone(), group, qd[2].clone(), qd[3].clone()];
    let q = cx.b.reshape(q, &split)?;
    let (q, k) = (cx.b.convert(q, precision)?, cx.b.convert(k, precision)?);
    let scores = cx.b.contract(q, k, &[(0, 0), (1, 1)], &[(4, 3)], precision)?;
    let flat = [qd[0].clone(), qd[1].clone(), qd[2].clone(), kd[2].clone()];
    let scores = cx.b.reshape(scores, &flat)?;
    let scores = match n.opt_float("scale")? {
        Some(s) => cx.b.binary_const(Binary::Mul, scores, s)?,
        None => {
            let size = cx.b.dim_as(&qd[3], precision)?;
            let root = cx.b.unary(tongtu_tensor::Unary::Sqrt, size)?;
            cx.b.div(scores, root)?
        }
    };
    let scores = modify(cx, n, "score_mod", scores)?;
    let probabilities = cx.b.softmax(scores, 3)?;
    let probabilities = modify(cx, n, "prob_mod", probabilities)?;
    let mut grouped: Vec<Dim> = split[..4].to_vec();
    grouped.push(kd[2].clone());
    let p = cx.b.reshape(probabilities, &grouped)?;
    let v = cx.b.convert(v, precision)?;
    let y = cx.b.contract(p, v, &[(0, 0), (1, 1)], &[(4, 2)], precision)?;
    let y = cx.b.reshape(y, &[qd[0].clone(), qd[1].clone(), qd[2].clone(), vd[3].clone()])?;
    let y = cx.b.convert(y, d)?;
    cx.one(y)
}

/// Applies a graph of the model that keeps type and dims.
fn modify<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>, name: &str, x: ValueId) -> Result<ValueId> {
    if n.attr(name).is_none() {
        return Ok(x);
    }
    let arg = cx.out(x);
    let results = cx.inline(n.graph(name)?, vec![arg])?;
    let y = results.first().ok_or_else(|| n.bad(format!("'{name}' gives nothing")))?;
    cx.id(y)
}
