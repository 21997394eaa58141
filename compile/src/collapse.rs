//! Merging of loops: a group over many dims as an equal one over few.
//!
//! Memory is row-major, so two neighbouring dims of a value are one dim of their product wherever every value of the group has
//! both, next to each other, or neither. The rewritten graph computes the same bytes from the same bytes; schedules
//! see it, verification sees the original.

use std::collections::BTreeMap;

use tongtu_graph::{Graph, Node, Op, Type, ValueId};
use tongtu_tensor::Tensor;
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

/// The loops of a group before they are merged.
struct Loops {
    extents: Vec<Dim>,
    /// What each loop is for; only loops for the same are merged.
    category: Vec<Category>,
    /// For each dim of a value the loop that walks it.
    maps: BTreeMap<ValueId, Map>,
    /// Loops whose index is itself a value.
    pinned: Vec<usize>,
}

/// What a loop is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Category {
    /// Elements, or a contraction's batch.
    Free,
    /// Reduced over, or a contraction's rows.
    Rows,
    /// A contraction's columns.
    Columns,
    /// A contraction's sum.
    Summed,
}

impl Loops {
    /// The loops of the group's results and anchor; `None` where its kind has none that can be merged.
    fn new(group: &Group) -> Option<Loops> {
        let graph = &group.graph;
        let out = *graph.outputs.first()?;
        let extents = graph.dims(out).to_vec();
        let category = vec![Category::Free; extents.len()];
        let mut loops = Loops { extents, category, maps: BTreeMap::new(), pinned: Vec::new() };
        match &group.kind {
            Kind::Map => {}
            Kind::Reduce(rows) => {
                let of = |l| if rows.reduced.contains(&l) { Category::Rows } else { Category::Free };
                loops.category = (0..rows.extents.len()).map(of).collect();
                loops.extents = rows.extents.clone();
                loops.maps.extend(rows.maps.iter().map(|(v, m)| (*v, m.clone())));
                return Some(loops);
            }
            Kind::Contract(n) => loops.contract(graph, *n)?,
            _ => return None,
        }
        let identity = without_units((0..graph.dims(out).len()).map(Some).collect(), graph.dims(out));
        loops.maps.extend(graph.outputs.iter().map(|&o| (o, identity.clone())));
        Some(loops)
    }

    /// Adds the loops of contraction `n` to those of what follows it.
    fn contract(&mut self, graph: &Graph, n: usize) -> Option<()> {
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
        for (category, dim) in self.category.iter_mut().zip(&order) {
            *category = match *dim {
                Some(i) if i < batch.len() => Category::Free,
                Some(i) if i < batch.len() + m => Category::Rows,
                _ => Category::Columns,
            };
        }
        let first = self.extents.len();
        self.extents.extend(over.iter().map(|&(a, _)| graph.dims(lhs)[a].clone()));
        self.category.extend(over.iter().map(|_| Category::Summed));
        let mut next = [batch.len(), batch.len() + m];
        for (side, v) in [(0, lhs), (1, rhs)] {
            let pick = |p: &(usize, usize)| if side == 0 { p.0 } else { p.1 };
            let of = |d| {
                if let Some(b) = batch.iter().position(|p| pick(p) == d) {
                    return place(b);
                }
                if let Some(k) = over.iter().position(|p| pick(p) == d) {
                    return Some(first + k);
                }
                next[side] += 1;
                place(next[side] - 1)
            };
            let map = (0..graph.dims(v).len()).map(of).collect();
            self.maps.insert(v, without_units(map, graph.dims(v)));
        }
        Some(())
    }

    /// Follows the loops from the results to all operands; `None` where a value is walked in two ways.
    fn follow(&mut self, graph: &Graph, anchor: Option<usize>) -> Option<()> {
        for (i, node) in graph.nodes.iter().enumerate().rev() {
            let own = self.maps.get(&node.outputs[0])?.clone();
            if node.outputs.iter().any(|o| self.maps.get(o).is_some_and(|m| *m != own)) {
                return None;
            }
            match &node.op {
                Op::Constant { value } if value.len() == 1 => {}
                Op::DimValue { .. } => {}
                Op::Iota { axis, .. } => self.pinned.extend(own[*axis]),
                Op::Contract { .. } if anchor == Some(i) => {}
                Op::Reduce { .. } => {
                    if !node.inputs.iter().all(|v| self.maps.contains_key(v)) {
                        return None;
                    }
                }
                _ => {
                    for (k, v) in node.inputs.iter().enumerate() {
                        let m = without_units(operand_map(graph, node, k, &own)?, graph.dims(*v));
                        if self.maps.entry(*v).or_insert_with(|| m.clone()) != &m {
                            return None;
                        }
                    }
                }
            }
        }
        Some(())
    }

    /// Whether every value's dims are those of its loops, so that products agree.
    fn agree(&self, graph: &Graph) -> bool {
        self.maps.iter().all(|(v, m)| {
            let dims = graph.dims(*v);
            let same = |(d, l): (&Dim, &Option<usize>)| match l {
                Some(l) => *d == self.extents[*l],
                None => d.as_const() == Some(1),
            };
            m.len() == dims.len() && dims.iter().zip(m).all(same)
        })
    }

    /// Merges neighbours that every value in memory has next to each other, or not at all.
    fn merge(self, in_memory: &[ValueId]) -> Merged {
        let one = |l: usize| self.extents[l].as_const() == Some(1);
        let live: Vec<usize> = (0..self.extents.len()).filter(|&l| !one(l)).collect();
        let in_memory: Vec<Vec<usize>> = in_memory
            .iter()
            .filter_map(|v| self.maps.get(v))
            .map(|m| m.iter().flatten().copied().filter(|&l| !one(l)).collect())
            .collect();
        let mergeable = |a: usize, b: usize| {
            self.category[a] == self.category[b]
                && !self.pinned.contains(&a)
                && !self.pinned.contains(&b)
                && in_memory.iter().all(|present| {
                    let place = |l: usize| present.iter().position(|&p| p == l);
                    match (place(a), place(b)) {
                        (None, None) => true,
                        (Some(i), Some(j)) => j == i + 1,
                        _ => false,
                    }
                })
        };
        let mut run_of = vec![None; self.extents.len()];
        let (mut runs, mut category): (Vec<Dim>, Vec<Category>) = Default::default();
        for (i, &l) in live.iter().enumerate() {
            match runs.last_mut() {
                Some(r) if mergeable(live[i - 1], l) => *r = &*r * &self.extents[l],
                _ => {
                    runs.push(self.extents[l].clone());
                    category.push(self.category[l]);
                }
            }
            run_of[l] = Some(runs.len() - 1);
        }
        Merged { maps: self.maps, run_of, runs, category }
    }
}

/// The loops of a group after they were merged to runs.
struct Merged {
    maps: BTreeMap<ValueId, Map>,
    /// For each loop of more than one turn its run.
    run_of: Vec<Option<usize>>,
    runs: Vec<Dim>,
    category: Vec<Category>,
}

impl Merged {
    /// The runs that walk a value.
    fn of(&self, v: ValueId) -> Option<Vec<usize>> {
        let mut runs: Vec<usize> =
            self.maps.get(&v)?.iter().flatten().filter_map(|&l| self.run_of[l]).collect();
        runs.dedup();
        Some(runs)
    }

    /// The lengths of the runs that walk a value.
    fn dims(&self, v: ValueId) -> Option<Vec<Dim>> {
        Some(self.of(v)?.into_iter().map(|r| self.runs[r].clone()).collect())
    }

    /// The operation over merged loops; `None` inside where it does nothing any more.
    fn op(&self, node: &Node) -> Option<Option<Op>> {
        let own = self.of(node.outputs[0])?;
        let operand = |k: usize| self.of(node.inputs[k]);
        let dims = || self.dims(node.outputs[0]);
        Some(Some(match &node.op {
            Op::Broadcast { .. } => {
                let from = operand(0)?;
                if from == own {
                    return Some(None);
                }
                let axes: Option<Vec<usize>> = from.iter().map(|r| own.iter().position(|x| x == r)).collect();
                let axes = axes.filter(|a| a.is_sorted_by(|x, y| x < y))?;
                Op::Broadcast { dims: dims()?, axes }
            }
            Op::Permute { .. } => {
                let from = operand(0)?;
                if from == own {
                    return Some(None);
                }
                let perm: Option<Vec<usize>> = own.iter().map(|r| from.iter().position(|x| x == r)).collect();
                Op::Permute { perm: perm? }
            }
            Op::Reshape { .. } => return Some(None),
            Op::Reduce { combiner, .. } => {
                let from = operand(0)?;
                let axes = (0..from.len()).filter(|&p| self.category[from[p]] == Category::Rows).collect();
                Op::Reduce { combiner: *combiner, axes }
            }
            Op::Iota { dtype, axis, .. } => {
                let run = self.maps.get(&node.outputs[0])?[*axis].and_then(|l| self.run_of[l])?;
                Op::Iota { dtype: *dtype, dims: dims()?, axis: own.iter().position(|x| *x == run)? }
            }
            Op::Contract { acc, .. } => {
                let (l, r) = (operand(0)?, operand(1)?);
                let pairs = |c: Category| -> Vec<(usize, usize)> {
                    (0..l.len())
                        .filter(|&i| self.category[l[i]] == c)
                        .filter_map(|i| r.iter().position(|x| *x == l[i]).map(|j| (i, j)))
                        .collect()
                };
                let mut batch = pairs(Category::Free);
                batch.sort_by_key(|p| own.iter().position(|r| *r == l[p.0]));
                Op::Contract { batch, over: pairs(Category::Summed), acc: *acc }
            }
            op => op.clone(),
        }))
    }
}

/// Merges the loops of a group, where all its operations allow it.
pub fn collapse(group: &Group) -> Option<Collapsed> {
    let graph = &group.graph;
    let anchor = match &group.kind {
        Kind::Contract(n) => Some(*n),
        _ => None,
    };
    let mut loops = Loops::new(group)?;
    loops.follow(graph, anchor)?;
    if !loops.agree(graph) {
        return None;
    }
    let of_anchor = anchor.map(|n| graph.nodes[n].outputs[0]);
    let in_memory: Vec<ValueId> =
        graph.inputs.iter().chain(&graph.outputs).copied().chain(of_anchor).collect();
    let merged = loops.merge(&in_memory);

    let mut new = Graph { name: graph.name.clone(), ..Graph::default() };
    let mut values: BTreeMap<ValueId, ValueId> = BTreeMap::new();
    for &v in &graph.inputs {
        let ty = Type::tensor(graph.dtype(v), merged.dims(v)?);
        values.insert(v, new.add_input(ty, graph.values[v.index()].name.clone()));
    }
    let mut new_anchor = None;
    for (i, node) in graph.nodes.iter().enumerate() {
        if let Op::Constant { value } = &node.op {
            let v = constant(&mut new, value, merged.dims(node.outputs[0])?, node)?;
            values.insert(node.outputs[0], v);
            continue;
        }
        let Some(op) = merged.op(node)? else {
            values.insert(node.outputs[0], values[&node.inputs[0]]);
            continue;
        };
        if anchor == Some(i) {
            new_anchor = Some(new.nodes.len());
        }
        let inputs = node.inputs.iter().map(|v| values[v]).collect();
        let mut outputs = Vec::new();
        for &v in &node.outputs {
            // The results of an operation are walked alike.
            let ty = Type::tensor(graph.dtype(v), merged.dims(node.outputs[0])?);
            outputs.push(new.add_value(ty, graph.values[v.index()].name.clone()));
            values.insert(v, outputs[outputs.len() - 1]);
        }
        new.nodes.push(Node { op, inputs, outputs, loc: node.loc.clone() });
    }
    new.outputs = graph.outputs.iter().map(|v| values[v]).collect();
    let kind = match &group.kind {
        Kind::Reduce(_) => {
            let loops = |v: &ValueId| Some(merged.of(*v)?.into_iter().map(Some).collect());
            Kind::Reduce(RowLoops {
                reduced: (0..merged.runs.len()).filter(|&r| merged.category[r] == Category::Rows).collect(),
                maps: values.iter().filter_map(|(old, new)| Some((*new, loops(old)?))).collect(),
                extents: merged.runs.clone(),
            })
        }
        Kind::Contract(_) => Kind::Contract(new_anchor?),
        k => k.clone(),
    };
    Some(Collapsed { graph: new, kind })
}

/// A constant of one element, repeated to dims.
fn constant(new: &mut Graph, value: &Tensor, dims: Vec<Dim>, node: &Node) -> Option<ValueId> {
    let scalar = value.reshape(&[]).ok()?;
    let dtype = value.dtype();
    let mut push = |op: Op, inputs: Vec<ValueId>, ty: Type| {
        let v = new.add_value(ty, None);
        new.nodes.push(Node { op, inputs, outputs: vec![v], loc: node.loc.clone() });
        v
    };
    let v = push(Op::Constant { value: scalar }, vec![], Type::scalar(dtype));
    if dims.is_empty() {
        return Some(v);
    }
    let ty = Type::tensor(dtype, dims.clone());
    Some(push(Op::Broadcast { dims, axes: vec![] }, vec![v], ty))
}
