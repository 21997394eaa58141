//! Putting the definitions of composites in their place.

use crate::graph::{Graph, Node, ValueId};
use crate::op::Op;

/// The graph with every composite, nested ones too, replaced by its definition. Regions stay as they are.
pub fn inline_composites(graph: &Graph) -> Graph {
    inline_where(graph, &|_| true)
}

/// The graph with the composites that `open` picks replaced by their definitions, and in those again.
/// Values keep their names; nodes of a definition without an origin take that of the composite.
pub fn inline_where(graph: &Graph, open: &dyn Fn(&Node) -> bool) -> Graph {
    let mut out = Graph { name: graph.name.clone(), state: graph.state.clone(), ..Graph::default() };
    let mut map = vec![None; graph.values.len()];
    for &v in &graph.inputs {
        let value = &graph.values[v.index()];
        map[v.index()] = Some(out.add_input(value.ty.clone(), value.name.clone()));
    }
    add_nodes(graph, &mut map, &mut out, open, None);
    out.outputs = graph.outputs.iter().filter_map(|v| map[v.index()]).collect();
    out
}

fn add_nodes(
    graph: &Graph,
    map: &mut [Option<ValueId>],
    out: &mut Graph,
    open: &dyn Fn(&Node) -> bool,
    outer: Option<&Node>,
) {
    for node in &graph.nodes {
        let inputs: Vec<ValueId> = node.inputs.iter().filter_map(|v| map[v.index()]).collect();
        if let Op::Composite { body, .. } = &node.op
            && open(node)
        {
            let mut inner = vec![None; body.values.len()];
            for (&v, &x) in body.inputs.iter().zip(&inputs) {
                inner[v.index()] = Some(x);
            }
            add_nodes(body, &mut inner, out, open, Some(node));
            for (&v, &o) in node.outputs.iter().zip(&body.outputs) {
                map[v.index()] = inner[o.index()];
                // The composite's result is named, not the value inside.
                if let (Some(id), Some(name)) = (inner[o.index()], &graph.values[v.index()].name) {
                    let value = &mut out.values[id.index()];
                    if value.name.is_none() {
                        value.name = Some(name.clone());
                    }
                }
            }
            continue;
        }
        let mut loc = node.loc.clone();
        if let (None, Some(outer)) = (&loc.0, outer) {
            loc = outer.loc.clone();
        }
        let outputs = node.outputs.iter().map(|v| {
            let value = &graph.values[v.index()];
            let id = out.add_value(value.ty.clone(), value.name.clone());
            map[v.index()] = Some(id);
            id
        });
        let outputs = outputs.collect();
        out.nodes.push(Node { op: node.op.clone(), inputs, outputs, loc });
    }
}
