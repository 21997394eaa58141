//! Fusion: which operations become one kernel.
//!
//! The graph is walked from its results backwards. Each value that must be in memory is the root of a group; the group takes
//! in producers whose every use is inside it, along elementwise operations and changes of coordinates, up to one
//! *anchor* (contraction, convolution, window …) or a set of reductions over the same dims. What is cheap to compute
//! again (constants, counting, broadcasts) goes into every group that uses it.

use std::collections::BTreeMap;

use tongtu_graph::{Graph, Loc, Node, Op, ValueId};
use tongtu_tensor::DType;
use tongtu_tensor::dim::Dim;
use tongtu_tensor::scalar::{Binary, Unary};

/// What a group is built around.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// Elementwise operations and changes of coordinates.
    Map,
    /// Reductions over the same dims, with elementwise operations before, between and after them.
    Reduce(RowLoops),
    /// A contraction (its node in the group's graph) and what follows it elementwise.
    Contract(usize),
    /// Attention: a contraction whose left operand is made row by row from another contraction.
    Attention(Attention),
    /// A convolution and what follows it elementwise.
    Conv(usize),
    /// A sliding-window reduction and what follows it elementwise.
    Window(usize),
    /// One running combination.
    Scan,
    /// One sort.
    Sort,
    /// One scatter.
    Scatter,
    /// One kernel that the model brings with it.
    Kernel,
    /// Operands one after another, each with the elementwise operations that make it.
    Concat,
}

/// The loops of a reduction group, and which value dim each one is.
#[derive(Clone, Debug, PartialEq)]
pub struct RowLoops {
    /// Extents of all loops.
    pub extents: Vec<Dim>,
    /// Loops that are reduced over.
    pub reduced: Vec<usize>,
    /// For every value of the group's graph the loop of each of its dims (`None`: a dim of length 1).
    pub maps: BTreeMap<ValueId, Vec<Option<usize>>>,
}

/// Two contractions with reductions along rows between them.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// The contraction that makes the rows (its node in the group's graph).
    pub scores: usize,
    /// The contraction that takes them, with what follows it elementwise.
    pub product: usize,
    /// The loops of what is between: those of the second contraction's left operand.
    pub rows: RowLoops,
}

/// Operations that become one kernel (or a few).
#[derive(Clone, Debug)]
pub struct Group {
    /// What it is built around.
    pub kind: Kind,
    /// Its operations; inputs and outputs in the order of the lists below.
    pub graph: Graph,
    /// Values of the outer graph that it reads.
    pub inputs: Vec<ValueId>,
    /// Values of the outer graph that it computes.
    pub outputs: Vec<ValueId>,
    /// Origin of its root.
    pub loc: Loc,
    /// Name for people.
    pub name: String,
}

/// One thing the plan does, in order.
#[derive(Clone, Debug)]
pub enum Item {
    /// Kernels.
    Group(Box<Group>),
    /// A reshape of a value in memory: another name for it.
    Alias {
        /// The value in memory.
        from: ValueId,
        /// The same bytes under other dims.
        to: ValueId,
    },
    /// A node the host program handles itself (its position in the graph): constants, binds, branches, loops, host operations.
    Host(usize),
}

const MAX_NODES: usize = 96;
const MAX_INPUTS: usize = 24;
const MAX_REDUCES: usize = 8;

/// Whether an operation computes each element from elements at coordinates that the emitter can work out.
fn is_map(op: &Op) -> bool {
    op.is_elementwise()
        || matches!(
            op,
            Op::Constant { .. }
                | Op::Iota { .. }
                | Op::DimValue { .. }
                | Op::Broadcast { .. }
                | Op::Permute { .. }
                | Op::Slice { .. }
                | Op::Pad { .. }
                | Op::Take { .. }
                | Op::TakeAlong { .. }
                | Op::GatherNd { .. }
                | Op::RandomBits { .. }
        )
}

fn is_host(op: &Op) -> bool {
    matches!(op, Op::Bind { .. } | Op::If { .. } | Op::While { .. } | Op::Host { .. })
}

pub(crate) fn expensive(op: &Op) -> bool {
    match op {
        Op::Unary(u) => !matches!(
            u,
            Unary::Neg
                | Unary::Abs
                | Unary::Not
                | Unary::Sign
                | Unary::Floor
                | Unary::Ceil
                | Unary::Trunc
                | Unary::RoundEven
                | Unary::IsNan
                | Unary::IsInf
        ),
        Op::Binary(b) => {
            matches!(b, Binary::Div | Binary::Rem | Binary::Mod | Binary::Pow | Binary::Atan2)
        }
        Op::RandomBits { .. } | Op::Take { .. } | Op::TakeAlong { .. } | Op::GatherNd { .. } => true,
        _ => false,
    }
}

/// Whether a reshape only adds or drops dims of length 1.
pub fn unit_reshape(from: &[Dim], to: &[Dim]) -> bool {
    let strip = |d: &[Dim]| -> Vec<Dim> { d.iter().filter(|x| x.as_const() != Some(1)).cloned().collect() };
    strip(from) == strip(to)
}

pub(crate) type Map = Vec<Option<usize>>;

/// A map in which dims of length 1 have no loop, so that all ways to reach a value give the same.
pub(crate) fn without_units(map: Map, dims: &[Dim]) -> Map {
    map.into_iter().zip(dims).map(|(l, d)| l.filter(|_| d.as_const() != Some(1))).collect()
}

/// The loop of each operand dim, for operand `k` of a node whose result dims have the loops `map`.
pub(crate) fn operand_map(graph: &Graph, node: &Node, k: usize, map: &Map) -> Option<Map> {
    let from = graph.dims(node.inputs[k]);
    match &node.op {
        op if op.is_elementwise() => Some(map.clone()),
        Op::Broadcast { dims, axes } => Some(
            from.iter()
                .zip(axes)
                .map(
                    |(d, &a)| {
                        if d.as_const() == Some(1) && dims[a].as_const() != Some(1) { None } else { map[a] }
                    },
                )
                .collect(),
        ),
        Op::Permute { perm } => {
            let mut m = vec![None; perm.len()];
            for (i, &p) in perm.iter().enumerate() {
                m[p] = map[i];
            }
            Some(m)
        }
        Op::Reshape { dims } if unit_reshape(from, dims) => {
            let mut rest = dims.iter().zip(map).filter(|(d, _)| d.as_const() != Some(1)).map(|(_, m)| *m);
            from.iter().map(|d| if d.as_const() == Some(1) { Some(None) } else { rest.next() }).collect()
        }
        _ => None,
    }
}

/// For each dim of the first result of a group the dim of the anchor's result that it is; `None` where it has length 1.
pub fn result_dims(g: &Graph, anchor: usize) -> Option<Vec<Option<usize>>> {
    let out = *g.outputs.first()?;
    let rank = g.dims(out).len();
    let mut maps: BTreeMap<ValueId, Map> = BTreeMap::new();
    maps.insert(out, without_units((0..rank).map(Some).collect(), g.dims(out)));
    for node in g.nodes[anchor + 1..].iter().rev() {
        let Some(own) = maps.get(&node.outputs[0]).cloned() else { continue };
        for (k, &v) in node.inputs.iter().enumerate() {
            if let Some(m) = operand_map(g, node, k, &own) {
                maps.insert(v, without_units(m, g.dims(v)));
            }
        }
    }
    let own = maps.get(&g.nodes[anchor].outputs[0])?;
    Some((0..rank).map(|l| own.iter().position(|m| *m == Some(l))).collect())
}

struct Grower<'a> {
    graph: &'a Graph,
    defs: &'a [Option<usize>],
    uses: &'a [Vec<usize>],
    needed: &'a [bool],
    members: Vec<bool>,
    count: usize,
    loops: Vec<Dim>,
    /// `None` where the coordinates are not those of the loops one to one.
    maps: BTreeMap<ValueId, Option<Map>>,
    anchor: Option<usize>,
    reduces: usize,
    row: Option<(Vec<usize>, Vec<usize>)>,
    /// Whether a contraction may come before the reductions.
    scores: bool,
}

impl<'a> Grower<'a> {
    fn new(
        graph: &'a Graph,
        defs: &'a [Option<usize>],
        uses: &'a [Vec<usize>],
        needed: &'a [bool],
        root: usize,
    ) -> Grower<'a> {
        let node = &graph.nodes[root];
        let loops = graph.dims(node.outputs[0]).to_vec();
        let identity = without_units((0..loops.len()).map(Some).collect(), &loops);
        Grower {
            graph,
            defs,
            uses,
            needed,
            members: vec![false; graph.nodes.len()],
            count: 0,
            loops,
            maps: node.outputs.iter().map(|&o| (o, Some(identity.clone()))).collect(),
            anchor: None,
            reduces: 0,
            row: None,
            scores: false,
        }
    }

    /// Takes in the producers of members until none fits. Operands of anchors stay in memory.
    fn spread(&mut self, root: usize) {
        let mut changed = true;
        while changed {
            changed = false;
            for n in (0..=root).rev() {
                if !self.members[n] {
                    continue;
                }
                let node = &self.graph.nodes[n];
                let gathers = matches!(node.op, Op::Take { .. } | Op::TakeAlong { .. } | Op::GatherNd { .. });
                for (k, &v) in node.inputs.iter().enumerate() {
                    let closed = self.anchor == Some(n);
                    let read = closed || (gathers && k == 0);
                    let copied = closed && (k == 0 && self.narrows(v) || k == 1 && self.decodes(v));
                    if read && !self.is_splat(v) && !copied {
                        continue;
                    }
                    if inputs_of(self).len() < MAX_INPUTS && self.absorbs(v) {
                        self.add(self.defs[v.index()].unwrap_or(0));
                        changed = true;
                    }
                }
            }
        }
    }

    fn row_loops(&self, values: &BTreeMap<ValueId, ValueId>) -> RowLoops {
        let maps = self.maps.iter().filter_map(|(v, m)| Some((*values.get(v)?, m.clone()?))).collect();
        let reduced = self.row.as_ref().map(|r| r.1.clone()).unwrap_or_default();
        RowLoops { extents: self.loops.clone(), reduced, maps }
    }

    fn is_splat(&self, v: ValueId) -> bool {
        match self.defs[v.index()].map(|n| &self.graph.nodes[n]) {
            Some(Node { op: Op::Constant { value }, .. }) => value.len() == 1,
            Some(Node { op: Op::DimValue { .. } | Op::Iota { .. }, .. }) => true,
            Some(Node {
                op: Op::Broadcast { .. } | Op::Cast { .. } | Op::Reshape { .. }, inputs, ..
            }) => self.is_splat(inputs[0]),
            _ => false,
        }
    }

    /// Whether a value is the left operand of a contraction or convolution rounded to bf16, which the kernel does as it copies rows of
    /// what is in memory anyway; anything else is rounded by the kernel that makes it.
    fn narrows(&self, v: ValueId) -> bool {
        let Some(node) = self.defs[v.index()].map(|n| &self.graph.nodes[n]) else { return false };
        let from = node.inputs.first().copied().unwrap_or(v);
        let made = self.defs[from.index()].is_some_and(|n| {
            let op = &self.graph.nodes[n].op;
            is_map(op) || matches!(op, Op::Contract { .. } | Op::Conv { .. } | Op::WindowReduce { .. })
        });
        if made && !self.needed[from.index()] && self.uses[from.index()].len() == 1 {
            return false;
        }
        let contract = |n: usize| matches!(&self.graph.nodes[n].op, Op::Contract { .. } | Op::Conv { .. } if self.graph.nodes[n].inputs[0] == v);
        matches!(node.op, Op::Cast { to: DType::BF16, .. })
            && self.graph.dtype(node.inputs[0]) == DType::F32
            && self.uses[v.index()].iter().all(|&u| contract(u))
    }

    /// Whether a value is the right operand of a contraction made from numbers of few bits in bytes, elementwise: it takes many times
    /// their memory.
    fn decodes(&self, v: ValueId) -> bool {
        let alone = |v: ValueId| !self.needed[v.index()] && self.uses[v.index()].len() == 1;
        let user = |v: ValueId| self.uses[v.index()].first().map(|&u| &self.graph.nodes[u]);
        let right =
            user(v).is_some_and(|n| matches!(n.op, Op::Contract { .. }) && n.inputs.get(1) == Some(&v));
        let mut at = v;
        while right && self.in_memory_last(v) && alone(at) {
            let Some(node) = self.defs[at.index()].map(|n| &self.graph.nodes[n]) else { return false };
            match &node.op {
                Op::Binary(Binary::Shr) => return self.graph.dtype(at).bits() == 8,
                Op::Binary(_) | Op::Cast { .. } if !expensive(&node.op) => at = node.inputs[0],
                _ => return false,
            }
        }
        false
    }

    /// Whether a value is bytes made elementwise from the sums of a contraction or convolution: with it that group stores a quarter of
    /// their memory.
    fn ends_product(&self, v: ValueId) -> bool {
        let def = |v: ValueId| self.defs[v.index()].map(|n| &self.graph.nodes[n]);
        let bytes = |n: &&Node| {
            let d = self.graph.dtype(v);
            matches!(&n.op, Op::Cast { .. }) && d.is_int() && d.bits() == 8
        };
        let mut at = def(v).filter(bytes);
        for _ in 0..MAX_NODES {
            match at {
                Some(Node { op: Op::Contract { .. } | Op::Conv { .. }, .. }) => return true,
                Some(n) if n.op.is_elementwise() => at = n.inputs.first().and_then(|&v| def(v)),
                _ => return false,
            }
        }
        false
    }

    /// Whether the last dim of the right operand of a contraction is a dim of the result.
    fn in_memory_last(&self, v: ValueId) -> bool {
        let last = self.graph.dims(v).len().wrapping_sub(1);
        self.uses[v.index()].iter().all(|&u| match &self.graph.nodes[u].op {
            Op::Contract { batch, over, .. } => !batch.iter().chain(over).any(|p| p.1 == last),
            _ => false,
        })
    }

    /// Cheap enough to be computed again in every group that uses it.
    fn duplicable(&self, n: usize) -> bool {
        let node = &self.graph.nodes[n];
        match &node.op {
            Op::Constant { value } => value.len() == 1,
            Op::DimValue { .. } | Op::Iota { .. } => true,
            Op::Broadcast { .. } => true,
            Op::Reshape { dims } => {
                self.is_splat(node.inputs[0]) && unit_reshape(self.graph.dims(node.inputs[0]), dims)
            }
            Op::Cast { .. } | Op::Binary(_) | Op::Compare(_) | Op::Unary(_) | Op::Select {} => {
                self.graph.dims(node.outputs[0]).len() <= 1
                    && !expensive(&node.op)
                    && node.inputs.iter().all(|&v| self.is_splat(v))
            }
            _ => false,
        }
    }

    fn note_map(&mut self, v: ValueId, map: Option<Map>) {
        let map = map.map(|m| without_units(m, self.graph.dims(v)));
        self.maps
            .entry(v)
            .and_modify(|m| {
                if *m != map {
                    *m = None;
                }
            })
            .or_insert(map);
    }

    fn add(&mut self, n: usize) {
        self.members[n] = true;
        self.count += 1;
        let node = &self.graph.nodes[n];
        let own = self.maps.get(&node.outputs[0]).cloned().flatten();
        for k in 0..node.inputs.len() {
            let m = own.as_ref().and_then(|m| match &node.op {
                Op::Reduce { axes, .. } => {
                    self.reduce_operand_map(axes, m, self.graph.dims(node.inputs[k]).len())
                }
                _ => operand_map(self.graph, node, k, m),
            });
            self.note_map(node.inputs[k], m);
        }
    }

    fn reduce_operand_map(&self, axes: &[usize], out: &Map, rank: usize) -> Option<Map> {
        let (_, reduced) = self.row.as_ref()?;
        let (mut kept, mut red) = (out.iter(), reduced.iter());
        (0..rank)
            .map(|i| if axes.contains(&i) { red.next().map(|&l| Some(l)) } else { kept.next().copied() })
            .collect()
    }

    /// Whether a reduction fits the group's row loops (or sets them).
    fn fit_reduce(&mut self, n: usize) -> bool {
        let node = &self.graph.nodes[n];
        let Op::Reduce { axes, .. } = &node.op else { return false };
        let Some(Some(out)) = self.maps.get(&node.outputs[0]).cloned() else { return false };
        if node.outputs[1..].iter().any(|o| self.maps.get(o).is_some_and(|m| m.as_ref() != Some(&out))) {
            return false;
        }
        let kept: Vec<usize> = out.iter().flatten().copied().collect();
        if kept.windows(2).any(|w| w[0] >= w[1]) || self.reduces >= MAX_REDUCES {
            return false;
        }
        let operand = self.graph.dims(node.inputs[0]).to_vec();
        let extents: Vec<Dim> = axes.iter().map(|&a| operand[a].clone()).collect();
        let non_unit = |v: &[usize], loops: &[Dim]| -> Vec<usize> {
            v.iter().copied().filter(|&l| loops[l].as_const() != Some(1)).collect()
        };
        match &self.row {
            Some((k, r)) => {
                non_unit(k, &self.loops) == non_unit(&kept, &self.loops)
                    && r.len() == extents.len()
                    && r.iter().zip(&extents).all(|(&l, e)| self.loops[l] == *e)
            }
            None => {
                let rest: Vec<usize> = (0..self.loops.len())
                    .filter(|l| !kept.contains(l) && self.loops[*l].as_const() != Some(1))
                    .collect();
                if rest.is_empty() {
                    let first = self.loops.len();
                    self.loops.extend(extents);
                    self.row = Some((kept, (first..self.loops.len()).collect()));
                    return true;
                }
                let fits = rest.len() == extents.len()
                    && rest.iter().zip(&extents).all(|(&l, e)| self.loops[l] == *e);
                if fits {
                    self.row = Some((kept, rest));
                }
                fits
            }
        }
    }

    /// Whether the dims of `v` are the loops, in any order but for the innermost.
    fn placed(&self, v: ValueId) -> bool {
        let dims = self.graph.dims(v);
        let Some(Some(m)) = self.maps.get(&v) else { return false };
        let own: Vec<usize> = m.iter().flatten().copied().collect();
        let live: Vec<usize> =
            (0..self.loops.len()).filter(|&l| self.loops[l].as_const() != Some(1)).collect();
        own.len() == live.len()
            && live.iter().all(|l| own.contains(l))
            && own.last() == live.last()
            && m.iter().zip(dims).all(|(l, d)| match l {
                Some(l) => self.loops[*l] == *d,
                None => d.as_const() == Some(1),
            })
    }

    fn identity(&self, v: ValueId) -> bool {
        let dims = self.graph.dims(v);
        dims.len() == self.loops.len()
            && matches!(self.maps.get(&v), Some(Some(m))
                if m.iter().enumerate().all(|(i, l)| *l == Some(i) || dims[i].as_const() == Some(1)))
            && dims == self.loops.as_slice()
    }

    /// Whether a value varies along the innermost loop, but not along all others.
    fn shared_by_rows(&self, v: ValueId) -> bool {
        let Some(Some(m)) = self.maps.get(&v) else { return false };
        let mut live = (0..self.loops.len()).filter(|&l| self.loops[l].as_const() != Some(1));
        let last = live.clone().next_back();
        last.is_some_and(|l| m.contains(&Some(l))) && live.any(|l| !m.contains(&Some(l)))
    }

    /// Whether the producer of `v` may be taken in.
    fn absorbs(&mut self, v: ValueId) -> bool {
        let Some(n) = self.defs[v.index()] else { return false };
        let node = &self.graph.nodes[n];
        if self.members[n] || self.count >= MAX_NODES || is_host(&node.op) {
            return false;
        }
        // Anchors read their operands from memory; a convolution's padding is zero, whatever computes its input.
        let read = |a: usize| self.graph.nodes[a].inputs.contains(&v);
        if self.anchor.is_some_and(|a| read(a) && matches!(self.graph.nodes[a].op, Op::Conv { .. }))
            && !self.narrows(v)
        {
            return false;
        }
        if self.duplicable(n) || self.anchor.is_some_and(read) && (self.narrows(v) || self.decodes(v)) {
            return true;
        }
        let alone =
            |o: &ValueId| !self.needed[o.index()] && self.uses[o.index()].iter().all(|&u| self.members[u]);
        if self.anchor.is_some_and(read) {
            return false;
        }
        if !node.outputs.iter().all(alone) {
            return false;
        }
        if self.anchor.is_some() && self.ends_product(v) {
            return false;
        }
        // What many rows share is better computed once.
        if self.scores && !matches!(node.op, Op::Broadcast { .. }) && self.shared_by_rows(v) {
            return false;
        }
        match &node.op {
            Op::Constant { .. } => false,
            Op::Reshape { dims } => unit_reshape(self.graph.dims(node.inputs[0]), dims),
            op if is_map(op) => {
                if !expensive(op) {
                    return true;
                }
                // Computed again along loops it lacks: fine where the innermost loop is among them, so that it can be hoisted.
                match self.maps.get(&v) {
                    Some(Some(m)) => {
                        let own: Vec<usize> = m.iter().flatten().copied().collect();
                        let lacks = (0..self.loops.len())
                            .any(|l| self.loops[l].as_const() != Some(1) && !own.contains(&l));
                        let inner =
                            (0..self.loops.len()).rev().find(|&l| self.loops[l].as_const() != Some(1));
                        !lacks || inner.is_none_or(|l| !own.contains(&l))
                    }
                    _ => true,
                }
            }
            Op::Reduce { .. } if self.anchor.is_none() || self.scores => {
                let ok = self.fit_reduce(n);
                self.reduces += usize::from(ok);
                ok
            }
            Op::Contract { .. } if self.scores => {
                let fits = self.anchor.is_none() && self.row.is_some() && self.placed(v);
                if fits {
                    self.anchor = Some(n);
                }
                fits
            }
            Op::Contract { .. } | Op::Conv { .. } | Op::WindowReduce { .. }
                if self.anchor.is_none() && self.row.is_none() =>
            {
                let computed = |x: &ValueId| self.defs[x.index()].is_some_and(|p| self.members[p]);
                let fits = match node.op {
                    Op::Contract { .. } => self.placed(v),
                    _ => self.identity(v),
                };
                if node.outputs.len() != 1 || !fits || node.inputs.iter().any(computed) {
                    return false;
                }
                self.anchor = Some(n);
                true
            }
            _ => false,
        }
    }
}

/// Groups the operations of a graph. The items are in an order in which every value is computed before its uses. `rows` tells whether what
/// goes from one contraction to another along rows is one group with both.
pub fn fuse(graph: &Graph, rows: bool) -> Vec<Item> {
    let defs = graph.definitions();
    let mut uses: Vec<Vec<usize>> = vec![Vec::new(); graph.values.len()];
    for (i, n) in graph.nodes.iter().enumerate() {
        for v in &n.inputs {
            uses[v.index()].push(i);
        }
    }
    let mut needed = vec![false; graph.values.len()];
    for v in &graph.outputs {
        needed[v.index()] = true;
    }
    let mut items: Vec<Item> = Vec::new();
    for (i, node) in graph.nodes.iter().enumerate().rev() {
        if is_host(&node.op) {
            items.push(Item::Host(i));
            node.inputs.iter().for_each(|v| needed[v.index()] = true);
            continue;
        }
        if !node.outputs.iter().any(|o| needed[o.index()]) {
            continue;
        }
        match &node.op {
            Op::Constant { .. } | Op::DimValue { .. } => items.push(Item::Host(i)),
            Op::Reshape { .. } => {
                needed[node.inputs[0].index()] = true;
                items.push(Item::Alias { from: node.inputs[0], to: node.outputs[0] });
            }
            _ => {
                let group = grow(graph, &defs, &uses, &needed, i, rows);
                group.inputs.iter().for_each(|v| needed[v.index()] = true);
                items.push(Item::Group(Box::new(group)));
            }
        }
    }
    items.reverse();
    items
}

fn grow(
    graph: &Graph,
    defs: &[Option<usize>],
    uses: &[Vec<usize>],
    needed: &[bool],
    root: usize,
    rows: bool,
) -> Group {
    let node = &graph.nodes[root];
    let mut g = Grower::new(graph, defs, uses, needed, root);
    let mut kind = match &node.op {
        Op::Scan { .. } => Kind::Scan,
        Op::Sort { .. } => Kind::Sort,
        Op::ScatterAlong { .. } | Op::ScatterNd { .. } => Kind::Scatter,
        Op::Concat { .. } => Kind::Concat,
        Op::Kernel { .. } => Kind::Kernel,
        _ => Kind::Map,
    };
    match &node.op {
        Op::Contract { .. } | Op::Conv { .. } | Op::WindowReduce { .. } => g.anchor = Some(root),
        Op::Reduce { .. } => {
            g.fit_reduce(root);
            g.reduces = 1;
        }
        _ => {}
    }
    g.add(root);
    if matches!(kind, Kind::Map | Kind::Concat) {
        g.spread(root);
    }
    let rows = g.anchor.filter(|_| rows).and_then(|a| rows_before(&g, a));
    if let Some(rows) = &rows {
        g.members.iter_mut().zip(&rows.members).for_each(|(m, r)| *m |= r);
    }
    let inputs: Vec<ValueId> = inputs_of(&g);
    let (body, values, positions) = extract(&g, &inputs, &node.outputs);
    if let Some(a) = g.anchor {
        let at = positions[&a];
        kind = match (&graph.nodes[a].op, rows) {
            (_, Some(rows)) => match rows.anchor {
                Some(s) => Kind::Attention(Attention {
                    scores: positions[&s],
                    product: at,
                    rows: rows.row_loops(&values),
                }),
                None => Kind::Contract(at),
            },
            (Op::Contract { .. }, _) => Kind::Contract(at),
            (Op::Conv { .. }, _) => Kind::Conv(at),
            _ => Kind::Window(at),
        };
    } else if g.row.is_some() {
        kind = Kind::Reduce(g.row_loops(&values));
    }
    let name = describe(&body);
    Group { kind, graph: body, inputs, outputs: node.outputs.clone(), loc: node.loc.clone(), name }
}

/// Most steps of the sum that makes an element of attention's rows, and most columns that rows are multiplied by: a block of queries is
/// kept near, and every register tile of it reads all of the right operands.
const MAX_HEAD: i64 = 512;

/// The operations that make the left operand of a contraction row by row from another contraction, if they are a group
/// that a kernel for both can take in.
fn rows_before<'a>(outer: &Grower<'a>, product: usize) -> Option<Grower<'a>> {
    let graph = outer.graph;
    let node = &graph.nodes[product];
    let Op::Contract { batch, over: sums, acc } = &node.op else { return None };
    let (p, v) = (node.inputs[0], node.inputs[1]);
    let root = outer.defs[p.index()]?;
    let rank = graph.dims(p).len();
    let near = |acc: &DType| acc.is_float() && *acc != DType::F64;
    let alone = !outer.needed[p.index()] && outer.uses[p.index()].iter().all(|&u| u == product);
    let one_column = graph.dims(v).len() == batch.len() + sums.len() + 1;
    if !alone || p == v || !near(acc) || !one_column || sums.len() != 1 || sums[0].0 + 1 != rank {
        return None;
    }
    if !is_map(&graph.nodes[root].op) && !matches!(graph.nodes[root].op, Op::Reshape { .. }) {
        return None;
    }
    let mut g = Grower::new(graph, outer.defs, outer.uses, outer.needed, root);
    g.scores = true;
    g.add(root);
    g.spread(root);
    let scores = g.anchor?;
    let (_, reduced) = g.row.as_ref()?;
    let first = &graph.nodes[scores];
    let Op::Contract { batch: pairs, over, acc } = &first.op else { return None };
    let (q, k) = (first.inputs[0], first.inputs[1]);
    let one_column = graph.dims(k).len() == pairs.len() + over.len() + 1;
    if *reduced != [rank - 1] || !near(acc) || !one_column || over.len() != 1 || q == k {
        return None;
    }
    let head = graph.dims(q)[over[0].0].as_const()?;
    let shared = |d: &usize| batch.iter().chain(sums).any(|p| p.1 == *d);
    let columns = (0..graph.dims(v).len()).find(|d| !shared(d)).map(|d| &graph.dims(v)[d])?.as_const()?;
    let in_memory = |v: ValueId| outer.defs[v.index()].is_none_or(|n| !g.members[n] && !outer.members[n]);
    let fits = head.max(columns) <= MAX_HEAD
        && (in_memory(q) || g.narrows(q))
        && [k, v].into_iter().all(in_memory)
        && outer.count + g.count <= MAX_NODES;
    fits.then_some(g)
}

fn inputs_of(g: &Grower<'_>) -> Vec<ValueId> {
    let mut inputs = Vec::new();
    for (n, node) in g.graph.nodes.iter().enumerate() {
        if !g.members[n] {
            continue;
        }
        for &v in &node.inputs {
            if g.defs[v.index()].is_none_or(|p| !g.members[p]) && !inputs.contains(&v) {
                inputs.push(v);
            }
        }
    }
    inputs.sort();
    inputs
}

fn extract(
    g: &Grower<'_>,
    inputs: &[ValueId],
    outputs: &[ValueId],
) -> (Graph, BTreeMap<ValueId, ValueId>, BTreeMap<usize, usize>) {
    let mut body = Graph::default();
    let mut values = BTreeMap::new();
    let mut positions = BTreeMap::new();
    for &v in inputs {
        let new = body.add_input(g.graph.ty(v).clone(), g.graph.values[v.index()].name.clone());
        values.insert(v, new);
    }
    for (n, node) in g.graph.nodes.iter().enumerate() {
        if !g.members[n] {
            continue;
        }
        let ins = node.inputs.iter().map(|v| values[v]).collect();
        let outs: Vec<ValueId> = node
            .outputs
            .iter()
            .map(|v| {
                let new = body.add_value(g.graph.ty(*v).clone(), g.graph.values[v.index()].name.clone());
                values.insert(*v, new);
                new
            })
            .collect();
        positions.insert(n, body.nodes.len());
        body.nodes.push(Node { op: node.op.clone(), inputs: ins, outputs: outs, loc: node.loc.clone() });
    }
    body.outputs = outputs.iter().map(|v| values[v]).collect();
    (body, values, positions)
}

/// A short name: the operations inside, the plain moves left out.
fn describe(graph: &Graph) -> String {
    let mut names: Vec<&str> = Vec::new();
    for n in &graph.nodes {
        let name = n.op.name();
        let plain = matches!(
            n.op,
            Op::Constant { .. }
                | Op::Broadcast { .. }
                | Op::Reshape { .. }
                | Op::DimValue { .. }
                | Op::Iota { .. }
        );
        if !plain && names.last() != Some(&name) {
            names.push(name);
        }
    }
    if names.is_empty() {
        names.extend(graph.nodes.last().map(|n| n.op.name()));
    }
    if names.len() > 6 {
        let more = names.len() - 5;
        names.truncate(5);
        return format!("{}_and_{more}_more", names.join("_"));
    }
    names.join("_")
}
