//! Composites replaced by their definitions.

use std::sync::Arc;

use tongtu_graph::{Graph, Node, Op, ValueId};

/// The graph with composites, also those inside regions and definitions, replaced by their definitions, except the
/// names in `keep`. A node without an origin of its own gets that of the composite.
pub fn inline(graph: &Graph, keep: &[String]) -> Graph {
    let mut out = Graph {
        name: graph.name.clone(),
        values: graph.values.clone(),
        inputs: graph.inputs.clone(),
        outputs: Vec::new(),
        nodes: Vec::with_capacity(graph.nodes.len()),
        state: graph.state.clone(),
    };
    // What a composite's result became; all other values keep their number.
    let mut renamed: Vec<Option<ValueId>> = vec![None; graph.values.len()];
    for node in &graph.nodes {
        let inputs: Vec<ValueId> = node.inputs.iter().map(|v| renamed[v.index()].unwrap_or(*v)).collect();
        if let Op::Composite { name, body, .. } = &node.op
            && !keep.contains(name)
        {
            let results = splice(&mut out, body, &inputs, &node.loc, keep);
            for (o, r) in node.outputs.iter().zip(results) {
                if out.values[r.index()].name.is_none() {
                    out.values[r.index()].name = graph.values[o.index()].name.clone();
                }
                renamed[o.index()] = Some(r);
            }
        } else {
            let op = inline_regions(&node.op, keep);
            out.nodes.push(Node { op, inputs, outputs: node.outputs.clone(), loc: node.loc.clone() });
        }
    }
    out.outputs = graph.outputs.iter().map(|v| renamed[v.index()].unwrap_or(*v)).collect();
    out
}

fn inline_regions(op: &Op, keep: &[String]) -> Op {
    let region = |g: &Arc<Graph>| Arc::new(inline(g, keep));
    match op {
        Op::If { then_branch, else_branch, results } => Op::If {
            then_branch: region(then_branch),
            else_branch: region(else_branch),
            results: results.clone(),
        },
        Op::While { body, results } => Op::While { body: region(body), results: results.clone() },
        Op::Composite { name, attributes, body } => {
            Op::Composite { name: name.clone(), attributes: attributes.clone(), body: region(body) }
        }
        op => op.clone(),
    }
}

fn splice(
    out: &mut Graph,
    body: &Graph,
    arguments: &[ValueId],
    loc: &tongtu_graph::Loc,
    keep: &[String],
) -> Vec<ValueId> {
    let mut map: Vec<Option<ValueId>> = vec![None; body.values.len()];
    for (p, a) in body.inputs.iter().zip(arguments) {
        map[p.index()] = Some(*a);
    }
    for node in &body.nodes {
        // A broken definition leaves an operand undefined, which the rebuild that follows reports.
        let inputs: Vec<ValueId> = node.inputs.iter().map(|v| resolve(out, &mut map, body, *v)).collect();
        let loc = if node.loc.0.is_some() { &node.loc } else { loc };
        if let Op::Composite { name, body: inner, .. } = &node.op
            && !keep.contains(name)
        {
            let results = splice(out, inner, &inputs, loc, keep);
            for (o, r) in node.outputs.iter().zip(results) {
                map[o.index()] = Some(r);
            }
        } else {
            let op = inline_regions(&node.op, keep);
            let outputs = node.outputs.iter().map(|v| resolve(out, &mut map, body, *v)).collect();
            out.nodes.push(Node { op, inputs, outputs, loc: loc.clone() });
        }
    }
    body.outputs.iter().map(|v| resolve(out, &mut map, body, *v)).collect()
}

fn resolve(out: &mut Graph, map: &mut [Option<ValueId>], body: &Graph, v: ValueId) -> ValueId {
    match map[v.index()] {
        Some(known) => known,
        None => {
            let new = out.add_value(body.ty(v).clone(), None);
            map[v.index()] = Some(new);
            new
        }
    }
}
