//! What no result needs.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tongtu_graph::{AttrValue, Graph, Node, Op, ValueId};
use tongtu_tensor::dim::{Sym, Symbols};

use super::rewrite::{count_uses, type_symbols};

/// The graph without the nodes that no result needs, and without unused values. A node that gives a symbol its value
/// is needed where a needed node or value has the symbol in its dims; one whose symbol may have one value only is a
/// condition that must hold, and always needed.
pub fn dce(graph: &Graph, symbols: &Symbols) -> Graph {
    let mut first: BTreeMap<Sym, usize> = BTreeMap::new();
    let mut known: BTreeSet<Sym> = graph.inputs.iter().flat_map(|&v| type_symbols(graph.ty(v))).collect();
    let nodes: Vec<Cow<'_, Node>> =
        graph.nodes.iter().map(|n| trim(n).map_or(Cow::Borrowed(n), Cow::Owned)).collect();
    for (i, n) in nodes.iter().enumerate() {
        if let Op::Bind { sym } = &n.op {
            first.entry(*sym).or_insert(i);
            known.insert(*sym);
        }
        for &o in &n.outputs {
            for s in type_symbols(graph.ty(o)) {
                if known.insert(s) {
                    first.insert(s, i);
                }
            }
        }
    }
    let mut live = vec![false; graph.values.len()];
    let mut wanted = vec![false; graph.nodes.len()];
    let want = |symbols: BTreeSet<Sym>, wanted: &mut [bool]| {
        for s in symbols {
            if let Some(&i) = first.get(&s) {
                wanted[i] = true;
            }
        }
    };
    for &v in &graph.outputs {
        live[v.index()] = true;
        want(type_symbols(graph.ty(v)), &mut wanted);
    }
    for (i, n) in nodes.iter().enumerate().rev() {
        let condition = matches!(&n.op, Op::Bind { sym } if is_condition(*sym, symbols));
        if !wanted[i] && !condition && !n.outputs.iter().any(|o| live[o.index()]) {
            continue;
        }
        wanted[i] = true;
        n.inputs.iter().for_each(|v| live[v.index()] = true);
        for v in n.inputs.iter().chain(&n.outputs) {
            want(type_symbols(graph.ty(*v)), &mut wanted);
        }
        want(op_symbols(&n.op), &mut wanted);
    }
    compact(graph, &nodes, &wanted)
}

/// Whether a symbol may have one value only.
pub(super) fn is_condition(sym: Sym, symbols: &Symbols) -> bool {
    symbols.get(sym).is_some_and(|info| info.upper == Some(info.lower))
}

/// Every symbol in an operation's attributes and regions.
fn op_symbols(op: &Op) -> BTreeSet<Sym> {
    let mut found = BTreeSet::new();
    match op {
        Op::Constant { .. } | Op::Unary(_) | Op::Binary(_) | Op::Compare(_) => {}
        // The symbol it gives a value is no use of it.
        Op::Bind { .. } => {}
        op => op.attrs().iter().for_each(|(_, v)| attr_symbols(v, &mut found)),
    }
    found
}

fn attr_symbols(value: &AttrValue, found: &mut BTreeSet<Sym>) {
    match value {
        AttrValue::Dim(d) => found.extend(d.symbols()),
        AttrValue::Sym(s) => _ = found.insert(*s),
        AttrValue::Type(t) => found.extend(type_symbols(t)),
        AttrValue::Graph(g) => {
            found.extend(g.values.iter().flat_map(|v| type_symbols(&v.ty)));
            g.nodes.iter().for_each(|n| found.extend(op_symbols(&n.op)));
        }
        AttrValue::List(items) => items.iter().for_each(|v| attr_symbols(v, found)),
        _ => {}
    }
}

fn compact(graph: &Graph, nodes: &[Cow<'_, Node>], wanted: &[bool]) -> Graph {
    let mut out = Graph { name: graph.name.clone(), state: graph.state.clone(), ..Graph::default() };
    let mut map: Vec<Option<ValueId>> = vec![None; graph.values.len()];
    let mut place = |out: &mut Graph, v: ValueId| match map[v.index()] {
        Some(new) => new,
        None => {
            let old = &graph.values[v.index()];
            let new = out.add_value(old.ty.clone(), old.name.clone());
            map[v.index()] = Some(new);
            new
        }
    };
    for &v in &graph.inputs {
        let new = place(&mut out, v);
        out.inputs.push(new);
    }
    for (n, _) in nodes.iter().zip(wanted).filter(|(_, w)| **w) {
        let inputs = n.inputs.iter().map(|&v| place(&mut out, v)).collect();
        let outputs = n.outputs.iter().map(|&v| place(&mut out, v)).collect();
        out.nodes.push(Node { op: n.op.clone(), inputs, outputs, loc: n.loc.clone() });
    }
    out.outputs = graph.outputs.iter().map(|&v| place(&mut out, v)).collect();
    out
}

/// A node without the captured operands that its regions do not use; `None` if there are none.
fn trim(n: &Node) -> Option<Node> {
    let (regions, carried): (Vec<&Arc<Graph>>, usize) = match &n.op {
        Op::If { then_branch, else_branch, .. } => (vec![then_branch, else_branch], 0),
        Op::While { body, results } => (vec![body], results.len()),
        _ => return None,
    };
    let used: Vec<Vec<u32>> = regions.iter().map(|g| count_uses(g)).collect();
    let keep: Vec<bool> = (0..n.inputs.len().saturating_sub(1))
        .map(|i| {
            let needed =
                |(g, uses): (&&Arc<Graph>, &Vec<u32>)| g.inputs.get(i).is_none_or(|v| uses[v.index()] > 0);
            i < carried || regions.iter().zip(&used).any(needed)
        })
        .collect();
    if keep.iter().all(|k| *k) {
        return None;
    }
    let kept = |list: &[ValueId]| -> Vec<ValueId> {
        list.iter().zip(&keep).filter(|(_, k)| **k).map(|(v, _)| *v).collect()
    };
    let region = |g: &Arc<Graph>| {
        let mut new = Graph::clone(g);
        new.inputs = kept(&g.inputs);
        Arc::new(new)
    };
    let op = match &n.op {
        Op::If { then_branch, else_branch, results } => Op::If {
            then_branch: region(then_branch),
            else_branch: region(else_branch),
            results: results.clone(),
        },
        Op::While { body, results } => Op::While { body: region(body), results: results.clone() },
        op => op.clone(),
    };
    let mut inputs = vec![n.inputs[0]];
    inputs.extend(kept(&n.inputs[1..]));
    Some(Node { op, inputs, outputs: n.outputs.clone(), loc: n.loc.clone() })
}
