//! Softmax along rows, recognised among elementary operations.

use tongtu_graph::{Node, Op, ValueId};
use tongtu_tensor::Combiner;
use tongtu_tensor::scalar::{Binary, Unary};

/// The values of a softmax along the last dim: `exp(x - max(x)) / sum(exp(x - max(x)))`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Softmax {
    /// What it is of.
    pub x: ValueId,
    /// `exp(x - max(x))`: at most 1, and 1 somewhere in each row, or NaN.
    pub terms: ValueId,
    /// Their sums: at least 1, or NaN, or 0 for rows of no elements.
    pub sum: ValueId,
}

/// The softmax that makes `v`, if one does; `node` gives the operation that makes a value.
pub fn softmax<'g>(node: impl Fn(ValueId) -> Option<&'g Node>, v: ValueId) -> Option<Softmax> {
    let Node { op: Op::Binary(Binary::Div), inputs, .. } = node(v)? else { return None };
    quotient(node, inputs[0], inputs[1])
}

/// The softmax that a quotient is, if it is one.
pub fn quotient<'g>(
    node: impl Fn(ValueId) -> Option<&'g Node>,
    terms: ValueId,
    divisor: ValueId,
) -> Option<Softmax> {
    // A reduction of the rows of `of`, spread along them.
    let spread = |v: ValueId, of: ValueId, by: Combiner| -> Option<ValueId> {
        let Node { op: Op::Broadcast { dims, axes }, inputs: reduced, .. } = node(v)? else { return None };
        let last = dims.len().checked_sub(1)?;
        let Node { op: Op::Reduce { combiner, axes: along }, inputs, .. } = node(reduced[0])? else {
            return None;
        };
        let rows = axes.iter().copied().eq(0..last) && along[..] == [last];
        (rows && *combiner == by && inputs[..] == [of]).then_some(reduced[0])
    };
    let Node { op: Op::Unary(Unary::Exp), inputs, .. } = node(terms)? else { return None };
    let Node { op: Op::Binary(Binary::Sub), inputs, .. } = node(inputs[0])? else { return None };
    let (x, top) = (inputs[0], inputs[1]);
    spread(top, x, Combiner::Max)?;
    Some(Softmax { x, terms, sum: spread(divisor, terms, Combiner::Add)? })
}
