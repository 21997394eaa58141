//! Merging of loops: a group over many dims as an equal one over few.
//!
//! Memory is row-major, so two neighbouring dims of a value are one dim of their product wherever every value of the group has
//! both, next to each other, or neither. The rewritten graph computes the same bytes from the same bytes; schedules
//! see it, verification sees the original.

use std::collections::BTreeMap;

use tongtu_graph::{Graph, Node, Op, Type, ValueId};
use tongtu_tensor::dim::Dim;

use crate::fuse::{Group, Kind, RowLoops, operand_map, result_dims, without_units};

/// A group over merged loops.
#[derive(Clone, Debug)]
pub struct Collapsed {
    /// The equal graph; inputs and outputs are those of the group, in order.
    pub graph: Graph,
    /// What it is built around, in terms of the new graph.
    pub kind: Kind,
}

type Map = Vec<Option<usize>>;

/// Merges the loops of a group, where all its operations allow it.
pub fn collapse(group: &Group) -> Option<Collapsed> {
    let graph = &group.graph;
    let out = *graph.outputs.first()?;
    let mut extents = graph.dims(out).to_vec();
    let mut category = vec![0u32; extents.len()];
    let mut maps: BTreeMap<ValueId, Map> = BTreeMap::new();
    let mut pinned: Vec<usize> = Vec::new();
    let mut anchor = None;
    match &group.kind {
        Kind::Map => {}
        Kind::Reduce(rows) => {
            extents = rows.extents.clone();
            category = (0..extents.len()).map(|l| u32::from(rows.reduced.contains(&l))).collect();
        }
        Kind::Contract(n) => anchor = Some(*n),
        _ => return None,
    }
    if let Some(n) = anchor {
        let Op::Contract { batch, over, .. } = &graph.nodes[n].op else { return None };
        let (lhs, rhs) = (graph.nodes[n].inputs[0], graph.nodes[n].inputs[1]);
        let differ = |&(x, y): &(usize, usize)| graph.dims(lhs)[x] != graph.dims(rhs)[y];
        if lhs == rhs || batch.iter().chain(over).any(differ) {
            return None;
        }
        let m = graph.dims(lhs).len() - batch.len() - over.len();
        // The result's dims in the order of the anchor's.
        let order = result_dims(graph, n)?;
        let place = |i: usize| order.iter().position(|d| *d == Some(i));
        for (l, c) in category.iter_mut().enumerate() {
            *c = match order[l] {
                Some(i) if i < batch.len() => 0,
                Some(i) if i < batch.len() + m => 1,
                _ => 2,
            };
        }
        let first = extents.len();
        extents.extend(over.iter().map(|&(a, _)| graph.dims(lhs)[a].clone()));
        category.extend(over.iter().map(|_| 3));
        let mut next = [batch.len(), batch.len() + m];
        for (side, v) in [(0, lhs), (1, rhs)] {
            let pick = |p: &(usize, usize)| if side == 0 { p.0 } else { p.1 };
            let map = (0..graph.dims(v).len())
                .map(|d| {
                    if let Some(b) = batch.iter().position(|p| pick(p) == d) {
                        return place(b);
                    }
                    if let Some(k) = over.iter().position(|p| pick(p) == d) {
                        return Some(first + k);
                    }
                    next[side] += 1;
                    place(next[side] - 1)
                })
                .collect();
            maps.insert(v, without_units(map, graph.dims(v)));
        }
    }
    let identity = without_units((0..graph.dims(out).len()).map(Some).collect(), graph.dims(out));
    match &group.kind {
        Kind::Reduce(rows) => maps.extend(rows.maps.iter().map(|(v, m)| (*v, m.clone()))),
        _ => graph.outputs.iter().for_each(|&o| {
            maps.insert(o, identity.clone());
        }),
    }
    for (i, node) in graph.nodes.iter().enumerate().rev() {
        let own = maps.get(&node.outputs[0])?.clone();
        if node.outputs.iter().any(|o| maps.get(o).is_some_and(|m| *m != own)) {
            return None;
        }
        match &node.op {
            Op::Constant { value } if value.len() == 1 => {}
            Op::DimValue { .. } => {}
            Op::Iota { axis, .. } => pinned.extend(own[*axis]),
            Op::Contract { .. } if anchor == Some(i) => {}
            Op::Reduce { .. } => {
                if !node.inputs.iter().all(|v| maps.contains_key(v)) {
                    return None;
                }
            }
            _ => {
                for (k, v) in node.inputs.iter().enumerate() {
                    let m = without_units(operand_map(graph, node, k, &own)?, graph.dims(*v));
                    if maps.entry(*v).or_insert_with(|| m.clone()) != &m {
                        return None;
                    }
                }
            }
        }
    }
    // Every value's dims must be those of its loops, so that products agree.
    for (v, m) in &maps {
        let dims = graph.dims(*v);
        if m.len() != dims.len() {
            return None;
        }
        for (d, l) in dims.iter().zip(m) {
            match l {
                Some(l) if *d != extents[*l] => return None,
                None if d.as_const() != Some(1) => return None,
                _ => {}
            }
        }
    }
    let one = |l: usize| extents[l].as_const() == Some(1);
    let of_anchor = anchor.map(|n| &graph.nodes[n].outputs[0]);
    let in_memory: Vec<&Map> =
        graph.inputs.iter().chain(&graph.outputs).chain(of_anchor).filter_map(|v| maps.get(v)).collect();
    let live: Vec<usize> = (0..extents.len()).filter(|&l| !one(l)).collect();
    let mergeable = |a: usize, b: usize| {
        category[a] == category[b]
            && !pinned.contains(&a)
            && !pinned.contains(&b)
            && in_memory.iter().all(|m| {
                let present: Vec<usize> = m.iter().flatten().copied().filter(|&l| !one(l)).collect();
                match (present.iter().position(|&l| l == a), present.iter().position(|&l| l == b)) {
                    (None, None) => true,
                    (Some(i), Some(j)) => j == i + 1,
                    _ => false,
                }
            })
    };
    let mut run_of: Vec<Option<usize>> = vec![None; extents.len()];
    let mut runs: Vec<Dim> = Vec::new();
    let mut run_category = Vec::new();
    for (i, &l) in live.iter().enumerate() {
        if i > 0 && mergeable(live[i - 1], l) {
            run_of[l] = Some(runs.len() - 1);
            if let Some(r) = runs.last_mut() {
                *r = &*r * &extents[l];
            }
        } else {
            run_of[l] = Some(runs.len());
            runs.push(extents[l].clone());
            run_category.push(category[l]);
        }
    }
    let runs_of = |m: &Map| -> Vec<usize> {
        let mut r: Vec<usize> = m.iter().flatten().filter_map(|&l| run_of[l]).collect();
        r.dedup();
        r
    };
    let dims_of = |m: &Map| -> Vec<Dim> { runs_of(m).iter().map(|&r| runs[r].clone()).collect() };

    let mut new = Graph { name: graph.name.clone(), ..Graph::default() };
    let mut values: BTreeMap<ValueId, ValueId> = BTreeMap::new();
    let ty = |v: ValueId, m: &Map| Type::tensor(graph.dtype(v), dims_of(m));
    for &v in &graph.inputs {
        let m = maps.get(&v)?;
        values.insert(v, new.add_input(ty(v, m), graph.values[v.index()].name.clone()));
    }
    let mut new_anchor = None;
    for node in &graph.nodes {
        let own = maps.get(&node.outputs[0])?;
        let own_runs = runs_of(own);
        let operand_runs = |k: usize| maps.get(&node.inputs[k]).map(&runs_of);
        let op = match &node.op {
            Op::Broadcast { .. } => {
                let from = operand_runs(0)?;
                if from == own_runs {
                    values.insert(node.outputs[0], values[&node.inputs[0]]);
                    continue;
                }
                let axes: Option<Vec<usize>> =
                    from.iter().map(|r| own_runs.iter().position(|x| x == r)).collect();
                let axes = axes?;
                if axes.windows(2).any(|w| w[0] >= w[1]) {
                    return None;
                }
                Op::Broadcast { dims: dims_of(own), axes }
            }
            Op::Permute { .. } => {
                let from = operand_runs(0)?;
                if from == own_runs {
                    values.insert(node.outputs[0], values[&node.inputs[0]]);
                    continue;
                }
                let perm: Option<Vec<usize>> =
                    own_runs.iter().map(|r| from.iter().position(|x| x == r)).collect();
                Op::Permute { perm: perm? }
            }
            Op::Reshape { .. } => {
                values.insert(node.outputs[0], values[&node.inputs[0]]);
                continue;
            }
            Op::Reduce { combiner, .. } => {
                let from = operand_runs(0)?;
                let axes = (0..from.len()).filter(|&p| run_category[from[p]] == 1).collect();
                Op::Reduce { combiner: *combiner, axes }
            }
            Op::Iota { dtype, axis, .. } => {
                let run = own[*axis].and_then(|l| run_of[l]);
                match run.and_then(|r| own_runs.iter().position(|x| *x == r)) {
                    Some(axis) => Op::Iota { dtype: *dtype, dims: dims_of(own), axis },
                    None => return None,
                }
            }
            Op::Constant { value } => {
                let scalar = value.reshape(&[]).ok()?;
                let mut v = new.add_value(Type::scalar(value.dtype()), None);
                new.nodes.push(Node {
                    op: Op::Constant { value: scalar },
                    inputs: vec![],
                    outputs: vec![v],
                    loc: node.loc.clone(),
                });
                if !own_runs.is_empty() {
                    let b = new.add_value(ty(node.outputs[0], own), None);
                    new.nodes.push(Node {
                        op: Op::Broadcast { dims: dims_of(own), axes: vec![] },
                        inputs: vec![v],
                        outputs: vec![b],
                        loc: node.loc.clone(),
                    });
                    v = b;
                }
                values.insert(node.outputs[0], v);
                continue;
            }
            Op::Contract { acc, .. } => {
                new_anchor = Some(new.nodes.len());
                let (l, r) = (operand_runs(0)?, operand_runs(1)?);
                let pairs = |c: u32| -> Vec<(usize, usize)> {
                    (0..l.len())
                        .filter(|&i| run_category[l[i]] == c)
                        .filter_map(|i| r.iter().position(|x| *x == l[i]).map(|j| (i, j)))
                        .collect()
                };
                let mut batch = pairs(0);
                batch.sort_by_key(|p| own_runs.iter().position(|r| *r == l[p.0]));
                Op::Contract { batch, over: pairs(3), acc: *acc }
            }
            op => op.clone(),
        };
        let inputs = node.inputs.iter().map(|v| values[v]).collect();
        let outputs: Vec<ValueId> = node
            .outputs
            .iter()
            .map(|v| {
                let n = new.add_value(ty(*v, own), graph.values[v.index()].name.clone());
                values.insert(*v, n);
                n
            })
            .collect();
        new.nodes.push(Node { op, inputs, outputs, loc: node.loc.clone() });
    }
    new.outputs = graph.outputs.iter().map(|v| values[v]).collect();
    let kind = match &group.kind {
        Kind::Reduce(_) => Kind::Reduce(RowLoops {
            extents: runs.clone(),
            reduced: (0..runs.len()).filter(|&r| run_category[r] == 1).collect(),
            maps: maps
                .iter()
                .filter_map(|(v, m)| Some((*values.get(v)?, runs_of(m).into_iter().map(Some).collect())))
                .collect(),
        }),
        Kind::Contract(_) => Kind::Contract(new_anchor?),
        k => k.clone(),
    };
    Some(Collapsed { graph: new, kind })
}
