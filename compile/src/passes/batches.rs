//! Reshapes of batch dims around contractions, so that nothing stands between two contractions of an attention.
//!
//! Windows of a picture, or heads of a batch, are often one dim for the contractions and several for a mask between them. What
//! splits a batch dim comes before the first contraction and what is between, what joins batch dims after the softmax and the second one.

use tongtu_graph::{GraphError, Op, ValueId};
use tongtu_tensor::dim::Dim;
use tongtu_tensor::scalar::{Binary, Unary};
use tongtu_tensor::{Combiner, DType};

use super::movement::{groups, regrouped, wide_dims};
use super::rewrite::{Rewriter, Rewritten};
use crate::softmax::quotient;

/// Splits of batch dims before contractions, joins of batch dims after them.
pub(super) fn rule(rw: &mut Rewriter<'_>, op: &Op, inputs: &[ValueId]) -> Rewritten {
    match (op, inputs) {
        (Op::Reshape { dims }, &[x]) => split(rw, dims, x),
        (Op::Contract { batch, over, acc }, &[x, y]) => joined(rw, batch, over, *acc, x, y),
        (Op::Binary(Binary::Div), &[terms, divisor]) => softmax_before(rw, terms, divisor),
        _ => Ok(None),
    }
}

/// For each dim of `one` the dims of `many` that it is the product of; `None` where a dim is anything else. At least one is
/// the product of several that are not 1, and `fits` all that are.
fn parts(many: &[Dim], one: &[Dim], fits: impl Fn(usize) -> bool) -> Option<Vec<Vec<Dim>>> {
    let mut out = Vec::new();
    for (from, to) in groups(many, one)? {
        let list = many[from].to_vec();
        let several = wide_dims(&list).len() > 1;
        if to.len() != 1 || list.is_empty() || list.len() > 1 && !(several && fits(to.start)) {
            return None;
        }
        out.push(list);
    }
    out.iter().any(|p| p.len() > 1).then_some(out)
}

/// Where the first part of each dim is, once dims have these parts.
fn starts(parts: &[Vec<Dim>]) -> Vec<usize> {
    parts.iter().scan(0, |at, p| Some(std::mem::replace(at, *at + p.len()))).collect()
}

/// The pairs of batch dims, once those of the two sides have parts.
fn pairs(batch: &[(usize, usize)], parts: [&[Vec<Dim>]; 2]) -> Vec<(usize, usize)> {
    let (left, right) = (starts(parts[0]), starts(parts[1]));
    let each = |&(a, b): &(usize, usize)| (0..parts[0][a].len()).map(move |i| (a, b, i));
    batch.iter().flat_map(each).map(|(a, b, i)| (left[a] + i, right[b] + i)).collect()
}

/// A side's dims as parts: batch dims as given, others whole.
fn with_parts(dims: &[Dim], mut batch: impl FnMut(usize) -> Option<Vec<Dim>>) -> Vec<Vec<Dim>> {
    dims.iter().enumerate().map(|(i, d)| batch(i).unwrap_or_else(|| vec![d.clone()])).collect()
}

/// `reshape(f(contract(x, y)))` that splits batch dims to `f(contract(reshape(x), reshape(y)))`, where `f` is elementwise or nothing.
fn split(rw: &mut Rewriter<'_>, dims: &[Dim], v: ValueId) -> Rewritten {
    if splits(rw, dims, v) { Ok(Some(vec![with_split(rw, dims, v)?])) } else { Ok(None) }
}

/// Whether a value is a contraction, or elementwise operations after one, that may have these dims, which split its batch dims.
fn splits(rw: &Rewriter<'_>, dims: &[Dim], v: ValueId) -> bool {
    let Some(node) = rw.node(v).filter(|_| rw.single_use(v)) else { return false };
    match &node.op {
        Op::Contract { batch, .. } => parts(dims, rw.graph.dims(v), |i| i < batch.len()).is_some(),
        op if op.is_elementwise() && node.outputs.len() == 1 => {
            let mut operands = node.inputs.iter().filter(|&&x| regrouped(rw, x, dims).is_none());
            operands.next().is_some_and(|&x| splits(rw, dims, x)) && operands.next().is_none()
        }
        _ => false,
    }
}

/// A value for which [`splits`] holds, with these dims.
fn with_split(rw: &mut Rewriter<'_>, dims: &[Dim], v: ValueId) -> Result<ValueId, GraphError> {
    let Some(node) = rw.node(v) else { return rw.reshape(v, dims) };
    let (op, inputs) = (node.op.clone(), node.inputs.clone());
    let (Op::Contract { batch, over, acc }, &[x, y]) = (&op, &inputs[..]) else {
        let split = |rw: &mut Rewriter<'_>, &x: &ValueId| match regrouped(rw, x, dims) {
            Some(_) => rw.reshape(x, dims),
            None => with_split(rw, dims, x),
        };
        let inputs = inputs.iter().map(|x| split(rw, x)).collect::<Result<Vec<_>, _>>()?;
        return rw.one(op, &inputs);
    };
    let Some(result) = parts(dims, rw.graph.dims(v), |i| i < batch.len()) else { return rw.reshape(v, dims) };
    let of = |dims: &[Dim], at: &dyn Fn(usize) -> Option<usize>| {
        with_parts(dims, |i| at(i).map(|b| result[b].clone()))
    };
    let left = of(rw.graph.dims(x), &|i| batch.iter().position(|p| p.0 == i));
    let right = of(rw.graph.dims(y), &|i| batch.iter().position(|p| p.1 == i));
    let (x, y) = (rw.reshape(x, &left.concat())?, rw.reshape(y, &right.concat())?);
    let op =
        Op::Contract { batch: pairs(batch, [&left, &right]), over: pairs(over, [&left, &right]), acc: *acc };
    rw.one(op, &[x, y])
}

/// `contract(reshape(z), y)` whose reshape joins batch dims to `reshape(contract(z, reshape(y)))`.
fn joined(
    rw: &mut Rewriter<'_>,
    batch: &[(usize, usize)],
    over: &[(usize, usize)],
    acc: DType,
    x: ValueId,
    y: ValueId,
) -> Rewritten {
    let Some((Op::Reshape { dims }, z)) = rw.def(x) else { return Ok(None) };
    let is_batch = |i: usize| batch.iter().any(|p| p.0 == i);
    let Some(left) = parts(rw.graph.dims(z), dims, is_batch) else { return Ok(None) };
    let right = with_parts(rw.graph.dims(y), |i| batch.iter().find(|p| p.1 == i).map(|p| left[p.0].clone()));
    let types = rw.infer(&Op::Contract { batch: batch.to_vec(), over: over.to_vec(), acc }, &[x, y])?;
    let Some((_, dims)) = types.first().and_then(|t| t.as_tensor()) else { return Ok(None) };
    let dims = dims.to_vec();
    let y = rw.reshape(y, &right.concat())?;
    let op = Op::Contract { batch: pairs(batch, [&left, &right]), over: pairs(over, [&left, &right]), acc };
    let out = rw.one(op, &[z, y])?;
    Ok(Some(vec![rw.reshape(out, &dims)?]))
}

/// `softmax(reshape(z))` along a last dim that the reshape keeps to `reshape(softmax(z))`.
fn softmax_before(rw: &mut Rewriter<'_>, terms: ValueId, divisor: ValueId) -> Rewritten {
    let Some(found) = quotient(|v| rw.node(v), terms, divisor) else { return Ok(None) };
    let Some((Op::Reshape { dims }, z)) = rw.def(found.x) else { return Ok(None) };
    let (dims, inner) = (dims.clone(), rw.dims(z));
    let last = inner.len().saturating_sub(1);
    if last == 0 || inner.last() != dims.last() || inner.len() == dims.len() {
        return Ok(None);
    }
    let rows: Vec<usize> = (0..last).collect();
    let top = rw.one(Op::Reduce { combiner: Combiner::Max, axes: vec![last] }, &[z])?;
    let top = rw.broadcast(top, &inner, &rows)?;
    let d = rw.binary(Binary::Sub, z, top)?;
    let terms = rw.unary(Unary::Exp, d)?;
    let sum = rw.one(Op::Reduce { combiner: Combiner::Add, axes: vec![last] }, &[terms])?;
    let sum = rw.broadcast(sum, &inner, &rows)?;
    let p = rw.binary(Binary::Div, terms, sum)?;
    Ok(Some(vec![rw.reshape(p, &dims)?]))
}
