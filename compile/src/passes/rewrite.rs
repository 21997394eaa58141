//! The engine: a graph is rebuilt node by node, each node by the first rule that applies.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use tongtu_graph::{Graph, GraphError, Loc, Node, Op, Type, ValueId, infer};
use tongtu_tensor::dim::{Dim, Sym, Symbols};
use tongtu_tensor::scalar::{Binary, Unary};
use tongtu_tensor::{DType, Num, Tensor};

use super::{Options, cse, layout};

/// What takes the place of a node's results, or `None` where the rule does not apply.
pub(super) type Rewritten = Result<Option<Vec<ValueId>>, GraphError>;

/// Looks at an operation about to be added, whose operands are values of the new graph.
pub(super) type Rule = fn(&mut Rewriter<'_>, &Op, &[ValueId]) -> Rewritten;

/// The rules of a round.
#[derive(Clone, Copy)]
pub(super) struct Rules {
    /// Tried in this order.
    pub list: &'static [Rule],
    /// Whether permutations go past reshapes that join dims, by leaving them apart in between.
    pub apart: bool,
}

/// One value, or an error.
pub(super) type One = Result<ValueId, GraphError>;

/// Rules applied inside rules.
const MAX_DEPTH: usize = 48;

/// The graph being built, with what rules need to know of it.
pub(super) struct Rewriter<'a> {
    /// What is built so far.
    pub graph: Graph,
    /// The module's symbols.
    pub symbols: &'a mut Symbols,
    /// What the passes may do.
    pub options: &'a Options,
    /// Whether this is the module's graph, not a region of it.
    pub outermost: bool,
    /// Symbols known to equal an expression from here on.
    pub bound: BTreeMap<Sym, Dim>,
    /// Symbols that have a meaning before the next node.
    pub known: BTreeSet<Sym>,
    rules: Rules,
    loc: Loc,
    /// For each value the node that defines it.
    defs: Vec<Option<usize>>,
    /// For each value the uses of the old values that became it, and those of values that rules made.
    uses: Vec<(u32, u32)>,
    /// For each value whether an old value that became it is used where the order of dims is given.
    fixed: Vec<bool>,
    /// The same for shapes.
    shaped: Vec<bool>,
    seen: HashMap<u64, Vec<usize>>,
    fired: usize,
    depth: usize,
}

/// Number of uses of every value, as operand or as result of the graph.
pub(super) fn count_uses(graph: &Graph) -> Vec<u32> {
    let mut uses = vec![0u32; graph.values.len()];
    for v in graph.nodes.iter().flat_map(|n| &n.inputs).chain(&graph.outputs) {
        uses[v.index()] += 1;
    }
    uses
}

/// Rebuilds a graph once. Gives the new graph and how often a rule applied.
pub(super) fn sweep(
    graph: &Graph,
    symbols: &mut Symbols,
    options: &Options,
    rules: Rules,
) -> Result<(Graph, usize), GraphError> {
    sweep_within(graph, symbols, options, rules, None)
}

fn sweep_within(
    graph: &Graph,
    symbols: &mut Symbols,
    options: &Options,
    rules: Rules,
    outer: Option<(&BTreeMap<Sym, Dim>, &BTreeSet<Sym>)>,
) -> Result<(Graph, usize), GraphError> {
    let mut rw = Rewriter {
        graph: Graph { name: graph.name.clone(), state: graph.state.clone(), ..Graph::default() },
        symbols,
        options,
        outermost: outer.is_none(),
        bound: outer.map(|o| o.0.clone()).unwrap_or_default(),
        known: outer.map(|o| o.1.clone()).unwrap_or_default(),
        rules,
        loc: Loc::default(),
        defs: Vec::new(),
        uses: Vec::new(),
        fixed: Vec::new(),
        shaped: Vec::new(),
        seen: HashMap::new(),
        fired: 0,
        depth: 0,
    };
    let uses = count_uses(graph);
    let mut fixed = vec![false; graph.values.len()];
    let mut shaped = fixed.clone();
    for n in &graph.nodes {
        for v in &n.inputs {
            fixed[v.index()] |= !layout::takes_any_order(&n.op);
            shaped[v.index()] |= !layout::takes_any_shape(&n.op);
        }
    }
    graph.outputs.iter().for_each(|v| shaped[v.index()] = true);
    let mut map: Vec<Option<ValueId>> = vec![None; graph.values.len()];
    for &v in &graph.inputs {
        let ty = rw.substitute_type(graph.ty(v));
        rw.known.extend(type_symbols(&ty));
        let new = rw.graph.add_input(ty, graph.values[v.index()].name.clone());
        rw.defs.push(None);
        rw.uses.push((uses[v.index()], 0));
        rw.fixed.push(fixed[v.index()]);
        rw.shaped.push(shaped[v.index()]);
        map[v.index()] = Some(new);
    }
    for node in &graph.nodes {
        rw.loc = node.loc.clone();
        let inputs = node
            .inputs
            .iter()
            .map(|v| map[v.index()].ok_or_else(|| undefined(node)))
            .collect::<Result<Vec<_>, _>>()?;
        let op = rw.with_regions(&node.op)?;
        let new = rw.emit(op, &inputs)?;
        if new.len() != node.outputs.len() {
            return Err(undefined(node));
        }
        for (&old, &new) in node.outputs.iter().zip(&new) {
            debug_assert!(
                same_kind(graph.ty(old), rw.graph.ty(new)),
                "{:?} became {:?}",
                graph.ty(old),
                rw.graph.ty(new)
            );
            map[old.index()] = Some(new);
            rw.uses[new.index()].0 += uses[old.index()];
            rw.fixed[new.index()] |= fixed[old.index()];
            rw.shaped[new.index()] |= shaped[old.index()];
            if let (Some(name), slot @ None) =
                (&graph.values[old.index()].name, &mut rw.graph.values[new.index()].name)
            {
                *slot = Some(name.clone());
            }
        }
    }
    for &v in &graph.outputs {
        let new = map[v.index()].ok_or_else(|| GraphError::Structure {
            op: "output".into(),
            loc: Loc::default(),
            detail: format!("result {} is never defined", graph.value_name(v)),
        })?;
        // A result is called as it was, unless that would rename a parameter or another result.
        if rw.defs[new.index()].is_some() && !rw.graph.outputs.contains(&new) {
            rw.graph.values[new.index()].name = graph.values[v.index()].name.clone();
        }
        rw.graph.outputs.push(new);
    }
    Ok((rw.graph, rw.fired))
}

fn undefined(node: &Node) -> GraphError {
    GraphError::Structure {
        op: node.op.name().into(),
        loc: node.loc.clone(),
        detail: "an operand is used before it is defined".into(),
    }
}

/// Whether a value may take another's place: same kind, element type and rank.
fn same_kind(a: &Type, b: &Type) -> bool {
    match (a.as_tensor(), b.as_tensor()) {
        (Some((d, x)), Some((e, y))) => d == e && x.len() == y.len(),
        (None, None) => true,
        _ => false,
    }
}

/// The symbols in the dims of a type.
pub(super) fn type_symbols(ty: &Type) -> BTreeSet<Sym> {
    match ty {
        Type::Tensor { dims, .. } | Type::Strings { dims } => dims.iter().flat_map(Dim::symbols).collect(),
        Type::Sequence(inner) | Type::Optional(inner) => type_symbols(inner),
        Type::Any => BTreeSet::new(),
    }
}

impl Rewriter<'_> {
    // Looking.

    /// The node that defines a value; `None` for parameters.
    pub fn node(&self, v: ValueId) -> Option<&Node> {
        self.defs[v.index()].map(|i| &self.graph.nodes[i])
    }
    /// The operation that defines a value.
    pub fn op(&self, v: ValueId) -> Option<&Op> {
        self.node(v).map(|n| &n.op)
    }
    /// The operation that defines a value, and its first operand.
    pub fn def(&self, v: ValueId) -> Option<(&Op, ValueId)> {
        self.node(v).and_then(|n| Some((&n.op, *n.inputs.first()?)))
    }
    /// The dims of a value.
    pub fn dims(&self, v: ValueId) -> Vec<Dim> {
        self.graph.dims(v).to_vec()
    }
    /// The number of dims of a value.
    pub fn rank(&self, v: ValueId) -> usize {
        self.graph.dims(v).len()
    }
    /// The element type of a value.
    pub fn dtype(&self, v: ValueId) -> DType {
        self.graph.dtype(v)
    }
    /// The elements of a constant.
    pub fn constant(&self, v: ValueId) -> Option<&Tensor> {
        match self.op(v)? {
            Op::Constant { value } => Some(value),
            _ => None,
        }
    }
    /// The operand and axes of a broadcast.
    pub fn broadcast_of(&self, v: ValueId) -> Option<(ValueId, &[usize])> {
        match self.def(v)? {
            (Op::Broadcast { axes, .. }, x) => Some((x, axes)),
            _ => None,
        }
    }
    /// The operand and order of a permutation.
    pub fn permute_of(&self, v: ValueId) -> Option<(ValueId, &[usize])> {
        match self.def(v)? {
            (Op::Permute { perm }, x) => Some((x, perm)),
            _ => None,
        }
    }
    /// The number that all elements of a constant are.
    pub fn splat(&self, v: ValueId) -> Option<Num> {
        match self.def(v) {
            Some((Op::Broadcast { .. } | Op::Reshape { .. }, x)) => self.splat(x),
            _ => self.constant(v).filter(|t| t.len() == 1 && !t.is_absent()).map(|t| t.get_linear(0)),
        }
    }
    /// Whether a value is a constant or repeats one.
    pub fn is_const(&self, v: ValueId) -> bool {
        self.constant(v).is_some() || self.broadcast_of(v).is_some_and(|(x, _)| self.is_const(x))
    }
    /// Whether nothing but the node being looked at uses a value.
    pub fn single_use(&self, v: ValueId) -> bool {
        let (old, made) = self.uses[v.index()];
        if old > 0 { old == 1 } else { made == 0 }
    }
    /// Whether all uses of a value, as far as they are known, may take it in another order of dims.
    pub fn movable_uses(&self, v: ValueId) -> bool {
        !self.fixed[v.index()]
    }
    /// See [`Rules::apart`].
    pub fn apart(&self) -> bool {
        self.rules.apart
    }
    /// Whether all uses of a value, as far as they are known, may take it before a reshape.
    pub fn pointwise_uses(&self, v: ValueId) -> bool {
        !self.shaped[v.index()]
    }
    /// Whether a dim is never negative.
    pub fn non_negative(&self, d: &Dim) -> bool {
        d.as_const().map_or_else(|| Dim::from(0).provably_le(d, self.symbols), |c| c >= 0)
    }
    /// Whether two dims are always equal.
    pub fn same_dim(&self, a: &Dim, b: &Dim) -> bool {
        a == b || (a.as_const().is_none() || b.as_const().is_none()) && a.provably_eq(b, self.symbols)
    }
    /// Whether two lists of dims are always equal.
    pub fn same_dims(&self, a: &[Dim], b: &[Dim]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(x, y)| self.same_dim(x, y))
    }
    /// The result types an operation would have.
    pub fn infer(&self, op: &Op, inputs: &[ValueId]) -> Result<Vec<Type>, GraphError> {
        let types: Vec<Type> = inputs.iter().map(|&v| self.graph.ty(v).clone()).collect();
        infer::infer(op, &types, self.symbols, &self.loc)
    }
    /// The result of an equal node that is there already.
    pub fn existing(&self, op: &Op, inputs: &[ValueId]) -> Option<ValueId> {
        let key = cse::key(op, inputs)?;
        let found = self.seen.get(&key)?.iter().map(|&i| &self.graph.nodes[i]);
        found
            .clone()
            .find(|n| n.inputs == inputs && cse::same(&n.op, op))
            .and_then(|n| n.outputs.first().copied())
    }

    // Building.

    /// Adds an operation, or what the rules make of it.
    pub fn emit(&mut self, op: Op, inputs: &[ValueId]) -> Result<Vec<ValueId>, GraphError> {
        if self.depth < MAX_DEPTH {
            let rules = self.rules;
            self.depth += 1;
            for rule in rules.list {
                if let Some(new) = rule(self, &op, inputs)? {
                    self.fired += 1;
                    self.depth -= 1;
                    return Ok(new);
                }
            }
            self.depth -= 1;
        }
        self.append(op, inputs)
    }
    /// [`Rewriter::emit`] of an operation with one result.
    pub fn one(&mut self, op: Op, inputs: &[ValueId]) -> One {
        let name = op.name();
        match self.emit(op, inputs)?.as_slice() {
            [v] => Ok(*v),
            other => Err(GraphError::Structure {
                op: name.into(),
                loc: self.loc.clone(),
                detail: format!("has {} results where one is used", other.len()),
            }),
        }
    }
    fn append(&mut self, op: Op, inputs: &[ValueId]) -> Result<Vec<ValueId>, GraphError> {
        let key = cse::key(&op, inputs);
        if let Some(key) = key {
            let found = self.seen.get(&key).into_iter().flatten().map(|&i| &self.graph.nodes[i]);
            if let Some(n) = found.clone().find(|n| n.inputs == inputs && cse::same(&n.op, &op)) {
                return Ok(n.outputs.clone());
            }
        }
        let types = self.infer(&op, inputs)?;
        if let Op::Bind { sym } = &op {
            self.known.insert(*sym);
        }
        let at = self.graph.nodes.len();
        let mut outputs = Vec::with_capacity(types.len());
        for ty in types {
            self.known.extend(type_symbols(&ty));
            outputs.push(self.graph.add_value(ty, None));
            self.defs.push(Some(at));
            self.uses.push((0, 0));
            self.fixed.push(false);
            self.shaped.push(false);
        }
        for v in inputs {
            self.uses[v.index()].1 += 1;
        }
        if let Some(key) = key {
            self.seen.entry(key).or_default().push(at);
        }
        self.graph.nodes.push(Node {
            op,
            inputs: inputs.to_vec(),
            outputs: outputs.clone(),
            loc: self.loc.clone(),
        });
        Ok(outputs)
    }
    /// A constant.
    pub fn tensor(&mut self, value: Tensor) -> One {
        self.one(Op::Constant { value }, &[])
    }
    /// A number in every element of some dims.
    pub fn full(&mut self, dtype: DType, value: Num, dims: &[Dim]) -> One {
        let s = self.tensor(Tensor::scalar(dtype, value))?;
        self.broadcast(s, dims, &[])
    }
    /// A number in every element, with type and dims of another value.
    pub fn full_like(&mut self, like: ValueId, value: Num) -> One {
        let (dtype, dims) = (self.dtype(like), self.dims(like));
        self.full(dtype, value, &dims)
    }
    /// The same elements under other dims.
    pub fn reshape(&mut self, x: ValueId, dims: &[Dim]) -> One {
        if self.graph.dims(x) == dims { Ok(x) } else { self.one(Op::Reshape { dims: dims.to_vec() }, &[x]) }
    }
    /// Dims in another order.
    pub fn permute(&mut self, x: ValueId, perm: &[usize]) -> One {
        if perm.iter().enumerate().all(|(i, &p)| i == p) {
            return Ok(x);
        }
        self.one(Op::Permute { perm: perm.to_vec() }, &[x])
    }
    /// Operand dim `i` becomes result dim `axes[i]`.
    pub fn broadcast(&mut self, x: ValueId, dims: &[Dim], axes: &[usize]) -> One {
        if self.graph.dims(x) == dims {
            return Ok(x);
        }
        self.one(Op::Broadcast { dims: dims.to_vec(), axes: axes.to_vec() }, &[x])
    }
    /// A scalar operation of one operand.
    pub fn unary(&mut self, op: Unary, x: ValueId) -> One {
        self.one(Op::Unary(op), &[x])
    }
    /// A scalar operation of two operands of equal dims.
    pub fn binary(&mut self, op: Binary, a: ValueId, b: ValueId) -> One {
        self.one(Op::Binary(op), &[a, b])
    }
    /// Conversion in the default mode.
    pub fn convert(&mut self, x: ValueId, to: DType) -> One {
        if self.dtype(x) == to { Ok(x) } else { self.one(Op::Cast { to, mode: Default::default() }, &[x]) }
    }
    /// `len` elements from `start` along one dim.
    pub fn slice_axis(&mut self, x: ValueId, axis: usize, start: Dim, len: Dim) -> One {
        let mut lens = self.dims(x);
        let mut starts = vec![Dim::from(0); lens.len()];
        let step = vec![1; lens.len()];
        starts[axis] = start;
        lens[axis] = len;
        self.one(Op::Slice { start: starts, len: lens, step }, &[x])
    }
    /// Adds the nodes of a closed graph, its parameters being some values; gives its results.
    pub fn splice(&mut self, graph: &Graph, arguments: &[ValueId]) -> Result<Vec<ValueId>, GraphError> {
        let mut map: Vec<Option<ValueId>> = vec![None; graph.values.len()];
        for (p, a) in graph.inputs.iter().zip(arguments) {
            map[p.index()] = Some(*a);
        }
        let outer = self.loc.clone();
        for node in &graph.nodes {
            let inputs = node.inputs.iter().map(|v| map[v.index()].ok_or_else(|| undefined(node)));
            let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
            self.loc = if node.loc.0.is_some() { node.loc.clone() } else { outer.clone() };
            let op = self.substitute_op(&node.op);
            let new = self.emit(op, &inputs)?;
            for (old, new) in node.outputs.iter().zip(new) {
                map[old.index()] = Some(new);
            }
        }
        self.loc = outer;
        graph
            .outputs
            .iter()
            .map(|v| {
                map[v.index()].ok_or_else(|| GraphError::Structure {
                    op: "output".into(),
                    loc: self.loc.clone(),
                    detail: format!("result {} of a region is never defined", graph.value_name(*v)),
                })
            })
            .collect()
    }

    // Symbols.

    /// States that declared result types, in which new symbols stand for what they are found to be, are these types.
    pub fn bind_types(&mut self, declared: &[Type], actual: &[ValueId]) {
        for (ty, &v) in declared.iter().zip(actual) {
            let Some((_, dims)) = ty.as_tensor() else { continue };
            for (d, a) in dims.iter().zip(self.dims(v)) {
                if let Some(sym) = d.as_sym()
                    && !self.known.contains(&sym)
                    && !self.bound.contains_key(&sym)
                    && !a.symbols().contains(&sym)
                {
                    self.bound.insert(sym, a);
                }
            }
        }
    }
    fn substitute_dim(&self, d: &Dim) -> Dim {
        d.substitute(&|s| self.bound.get(&s).cloned())
    }
    fn substitute_type(&self, ty: &Type) -> Type {
        if self.bound.is_empty() { ty.clone() } else { map_type(ty, &|d| self.substitute_dim(d)) }
    }
    fn substitute_op(&self, op: &Op) -> Op {
        if self.bound.is_empty() { op.clone() } else { map_op(op, &|d| self.substitute_dim(d)) }
    }
    /// The operation with known symbols replaced and its regions rebuilt.
    fn with_regions(&mut self, op: &Op) -> Result<Op, GraphError> {
        Ok(match op {
            Op::If { then_branch, else_branch, results } => Op::If {
                then_branch: self.region(then_branch)?,
                else_branch: self.region(else_branch)?,
                results: results.iter().map(|t| self.substitute_type(t)).collect(),
            },
            Op::While { body, results } => Op::While {
                body: self.region(body)?,
                results: results.iter().map(|t| self.substitute_type(t)).collect(),
            },
            Op::Composite { name, attributes, body } => {
                let Op::Composite { attributes, .. } = self.substitute_op(&Op::Composite {
                    name: String::new(),
                    attributes: attributes.clone(),
                    body: Arc::default(),
                }) else {
                    return Ok(op.clone());
                };
                Op::Composite { name: name.clone(), attributes, body: self.region(body)? }
            }
            op => self.substitute_op(op),
        })
    }
    fn region(&mut self, graph: &Arc<Graph>) -> Result<Arc<Graph>, GraphError> {
        let (new, fired) =
            sweep_within(graph, self.symbols, self.options, self.rules, Some((&self.bound, &self.known)))?;
        if fired == 0 && self.bound.is_empty() && new.nodes.len() == graph.nodes.len() {
            return Ok(graph.clone());
        }
        self.fired += fired;
        Ok(Arc::new(super::dce(&new, self.symbols)))
    }
}

fn map_type(ty: &Type, f: &impl Fn(&Dim) -> Dim) -> Type {
    match ty {
        Type::Tensor { dtype, dims } => Type::Tensor { dtype: *dtype, dims: dims.iter().map(f).collect() },
        Type::Strings { dims } => Type::Strings { dims: dims.iter().map(f).collect() },
        Type::Sequence(inner) => Type::Sequence(Box::new(map_type(inner, f))),
        Type::Optional(inner) => Type::Optional(Box::new(map_type(inner, f))),
        Type::Any => Type::Any,
    }
}

fn map_attr(value: &tongtu_graph::AttrValue, f: &impl Fn(&Dim) -> Dim) -> tongtu_graph::AttrValue {
    use tongtu_graph::AttrValue;
    match value {
        AttrValue::Dim(d) => AttrValue::Dim(f(d)),
        AttrValue::Type(t) => AttrValue::Type(map_type(t, f)),
        AttrValue::Graph(g) => AttrValue::Graph(map_graph(g, f)),
        AttrValue::List(items) => AttrValue::List(items.iter().map(|v| map_attr(v, f)).collect()),
        other => other.clone(),
    }
}

fn map_graph(graph: &Arc<Graph>, f: &impl Fn(&Dim) -> Dim) -> Arc<Graph> {
    let mut new = Graph::clone(graph);
    for v in &mut new.values {
        v.ty = map_type(&v.ty, f);
    }
    for n in &mut new.nodes {
        n.op = map_op(&n.op, f);
    }
    Arc::new(new)
}

/// The operation with every dim in its attributes and regions mapped.
fn map_op(op: &Op, f: &impl Fn(&Dim) -> Dim) -> Op {
    let all = |dims: &[Dim]| dims.iter().map(f).collect::<Vec<_>>();
    let pairs = |pads: &[(Dim, Dim)]| pads.iter().map(|(l, h)| (f(l), f(h))).collect::<Vec<_>>();
    let types = |types: &[Type]| types.iter().map(|t| map_type(t, f)).collect::<Vec<_>>();
    let named = |list: &[(String, tongtu_graph::AttrValue)]| {
        list.iter().map(|(n, v)| (n.clone(), map_attr(v, f))).collect::<Vec<_>>()
    };
    match op {
        Op::Iota { dtype, dims, axis } => Op::Iota { dtype: *dtype, dims: all(dims), axis: *axis },
        Op::DimValue { dim } => Op::DimValue { dim: f(dim) },
        Op::Reshape { dims } => Op::Reshape { dims: all(dims) },
        Op::Broadcast { dims, axes } => Op::Broadcast { dims: all(dims), axes: axes.clone() },
        Op::Slice { start, len, step } => Op::Slice { start: all(start), len: all(len), step: step.clone() },
        Op::Pad { low, high } => Op::Pad { low: all(low), high: all(high) },
        Op::Conv { spec, acc } => {
            let mut spec = spec.clone();
            spec.pads = pairs(&spec.pads);
            Op::Conv { spec, acc: *acc }
        }
        Op::WindowReduce { combiner, spec } => {
            let mut spec = spec.clone();
            spec.pads = pairs(&spec.pads);
            Op::WindowReduce { combiner: *combiner, spec }
        }
        Op::RandomBits { dims } => Op::RandomBits { dims: all(dims) },
        Op::If { then_branch, else_branch, results } => Op::If {
            then_branch: map_graph(then_branch, f),
            else_branch: map_graph(else_branch, f),
            results: types(results),
        },
        Op::While { body, results } => Op::While { body: map_graph(body, f), results: types(results) },
        Op::Composite { name, attributes, body } => {
            Op::Composite { name: name.clone(), attributes: named(attributes), body: map_graph(body, f) }
        }
        Op::Kernel { code, grid, scalars, in_place, results } => Op::Kernel {
            code: code.clone(),
            grid: all(grid),
            scalars: all(scalars),
            in_place: in_place.clone(),
            results: types(results),
        },
        Op::Host { name, attributes, results } => {
            Op::Host { name: name.clone(), attributes: named(attributes), results: types(results) }
        }
        op => op.clone(),
    }
}
