//! State: inputs of a model that outputs replace, such as the keys and values that a decoder keeps.

use tongtu_graph::{Graph, Module, Node, Op, Type, ValueId};
use tongtu_tensor::dim::Dim;

/// Ties an input of a module to the output that is its new contents, by their positions, and gives the dim along which it grows
/// (0 where that is the first, or nothing grows).
///
/// The output has the type of the input, or is the input with something appended along one dim. A dim along which it grows becomes
/// the first of both, so that what is appended comes last in memory: the dims before it move back by one.
///
/// # Errors
/// Why the two cannot be tied, in words.
pub fn tie(module: &mut Module, input: usize, output: usize) -> Result<usize, String> {
    let g = &mut module.graph;
    let (Some(&x), Some(&y)) = (g.inputs.get(input), g.outputs.get(output)) else {
        return Err("there is no such input or output".to_string());
    };
    if g.state.iter().any(|&(i, o)| i == input || o == output) {
        return Err("one of them is tied already".to_string());
    }
    let text = |v: ValueId| match g.ty(v) {
        Type::Tensor { dtype, dims } => {
            let dims: Vec<String> = dims.iter().map(|d| d.display(&module.symbols).to_string()).collect();
            format!("{dtype}[{}]", dims.join(", "))
        }
        other => format!("{other:?}"),
    };
    let same_kind = match (g.ty(x).as_tensor(), g.ty(y).as_tensor()) {
        (Some((a, from)), Some((b, to))) => a == b && from.len() == to.len(),
        _ => false,
    };
    if !same_kind {
        return Err(format!("the input is {}, the output {}: types and ranks must agree", text(x), text(y)));
    }
    if g.dims(x) == g.dims(y) {
        g.state.push((input, output));
        return Ok(0);
    }
    let maker = g.nodes.iter().position(|n| n.outputs.contains(&y));
    let joined = maker.and_then(|n| match &g.nodes[n].op {
        Op::Concat { axis } if g.nodes[n].inputs.first() == Some(&x) => Some((n, *axis)),
        _ => None,
    });
    let Some((maker, axis)) = joined else {
        return Err(format!(
            "the input is {}, the output {}: their sizes differ, and the output is not the input with something appended",
            text(x),
            text(y)
        ));
    };
    g.state.push((input, output));
    if g.dims(x)[..axis].iter().all(|d| d.as_const() == Some(1)) {
        return Ok(0);
    }
    let rank = g.dims(x).len();
    let forward = moved(rank, axis);
    let mut back = vec![0; rank];
    forward.iter().enumerate().for_each(|(to, &from)| back[from] = to);
    let loc = g.nodes[maker].loc.clone();
    let permute = |g: &mut Graph, v: ValueId, perm: &[usize]| -> (Node, ValueId) {
        let (dtype, dims) = (g.dtype(v), g.dims(v).to_vec());
        let dims: Vec<Dim> = perm.iter().map(|&p| dims[p].clone()).collect();
        let out = g.add_value(Type::tensor(dtype, dims), None);
        let node = Node {
            op: Op::Permute { perm: perm.to_vec() },
            inputs: vec![v],
            outputs: vec![out],
            loc: loc.clone(),
        };
        (node, out)
    };
    // The state itself, and the old value made from it.
    let (mut from_state, state) = permute(g, x, &forward);
    from_state =
        Node { op: Op::Permute { perm: back.clone() }, inputs: vec![state], outputs: vec![x], ..from_state };
    let mut nodes = Vec::new();
    let mut parts = vec![state];
    let appended: Vec<ValueId> = g.nodes[maker].inputs[1..].to_vec();
    for v in appended {
        let (node, out) = permute(g, v, &forward);
        nodes.push(node);
        parts.push(out);
    }
    let (mut to_model, whole) = permute(g, y, &forward);
    nodes.push(Node { op: Op::Concat { axis: 0 }, inputs: parts, outputs: vec![whole], loc: loc.clone() });
    to_model = Node { op: Op::Permute { perm: back }, inputs: vec![whole], outputs: vec![y], ..to_model };
    nodes.push(to_model);
    g.nodes.splice(maker..=maker, nodes);
    g.nodes.insert(0, from_state);
    let name = g.values[x.index()].name.take();
    g.values[state.index()].name = name;
    let name = g.values[y.index()].name.take();
    g.values[whole.index()].name = name;
    g.inputs[input] = state;
    g.outputs[output] = whole;
    Ok(axis)
}

/// The order of dims in which one of them comes first.
fn moved(rank: usize, first: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rank).collect();
    order[..=first.min(rank.saturating_sub(1))].rotate_right(1);
    order
}
