//! Operations with every dim known.

use tongtu_tensor::DType;
use tongtu_tensor::dim::{Dim, Symbols};

use crate::error::GraphError;
use crate::eval::bindings::Bindings;
use crate::graph::{Graph, Loc, Node, Type};
use crate::infer;
use crate::op::{AttrValue, Op};

/// An operation whose dims are constants, with the shapes of its operands and results.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub op: Op,
    pub ins: Vec<(DType, Vec<usize>)>,
    pub outs: Vec<(DType, Vec<usize>)>,
}

/// An error of evaluating a node.
pub(crate) fn failed(op: &Op, loc: &Loc, detail: impl Into<String>) -> GraphError {
    let op = match op {
        Op::Composite { name, .. } | Op::Host { name, .. } if !name.is_empty() => name.clone(),
        op => op.name().to_string(),
    };
    GraphError::Eval { op, loc: loc.clone(), detail: detail.into() }
}

/// Greatest number of elements of a value. Anything above is refused.
pub(crate) const MAX_ELEMENTS: usize = 1 << 31;

fn concrete(value: AttrValue, bindings: &Bindings, symbols: &Symbols) -> Result<AttrValue, String> {
    Ok(match value {
        AttrValue::Dim(d) => AttrValue::Dim(Dim::from(bindings.eval(&d, symbols)?)),
        AttrValue::List(items) => {
            let items = items.into_iter().map(|v| concrete(v, bindings, symbols));
            AttrValue::List(items.collect::<Result<_, _>>()?)
        }
        other => other,
    })
}

/// The operation with its dims evaluated.
fn concrete_op(op: &Op, bindings: &Bindings, symbols: &Symbols) -> Result<Op, String> {
    let symbolic = matches!(
        op,
        Op::Iota { .. }
            | Op::DimValue { .. }
            | Op::Reshape { .. }
            | Op::Broadcast { .. }
            | Op::Slice { .. }
            | Op::Pad { .. }
            | Op::Conv { .. }
            | Op::WindowReduce { .. }
            | Op::RandomBits { .. }
    );
    if !symbolic {
        return Ok(op.clone());
    }
    let mut attrs = Vec::new();
    for (name, value) in op.attrs() {
        attrs.push((name.to_string(), concrete(value, bindings, symbols)?));
    }
    Op::from_parts(op.name(), &attrs)
}

/// Prepares a node for operands of known shapes: checks them by the operation's own type rule.
pub(crate) fn prepare(
    graph: &Graph,
    node: &Node,
    ins: Vec<(DType, Vec<usize>)>,
    bindings: &Bindings,
    symbols: &Symbols,
) -> Result<Prepared, GraphError> {
    let fail = |detail: String| failed(&node.op, &node.loc, detail);
    let op = concrete_op(&node.op, bindings, symbols).map_err(fail)?;
    let types: Vec<Type> = ins
        .iter()
        .map(|(d, shape)| Type::tensor(*d, shape.iter().map(|&n| Dim::from(n as i64)).collect::<Vec<_>>()))
        .collect();
    let results = infer::infer(&op, &types, symbols, &node.loc)?;
    let mut outs = Vec::new();
    for (ty, &v) in results.iter().zip(&node.outputs) {
        let Some((dtype, dims)) = ty.as_tensor() else {
            return Err(fail("a result is not a tensor of numbers".into()));
        };
        let shape = bindings.shape(dims, symbols).map_err(fail)?;
        bindings
            .check_shape(graph.dims(v), &shape, symbols)
            .map_err(|e| fail(format!("result {}: {e}", graph.value_name(v))))?;
        check_size(&shape).map_err(fail)?;
        outs.push((dtype, shape));
    }
    Ok(Prepared { op, ins, outs })
}

/// Refuses shapes of too many elements.
pub(crate) fn check_size(shape: &[usize]) -> Result<usize, String> {
    let count = match shape.contains(&0) {
        true => Some(0),
        false => shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)),
    };
    count
        .filter(|&n| n <= MAX_ELEMENTS)
        .ok_or_else(|| format!("a value of shape {shape:?} is more than {MAX_ELEMENTS} elements"))
}

/// The index of a linear position.
pub(crate) fn unravel(mut linear: usize, shape: &[usize]) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for (i, &n) in index.iter_mut().zip(shape).rev() {
        let n = n.max(1);
        *i = linear % n;
        linear /= n;
    }
    index
}

/// The linear position of an index.
pub(crate) fn ravel(index: &[usize], shape: &[usize]) -> usize {
    index.iter().zip(shape).fold(0, |n, (&i, &d)| n * d + i)
}

/// Number of elements of a shape.
pub(crate) fn count(shape: &[usize]) -> usize {
    shape.iter().product()
}
