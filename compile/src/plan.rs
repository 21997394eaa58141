//! The host program: groups, branches and loops of a graph as steps, and the memory of their values.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use rayon::prelude::*;
use tongtu_graph::infer::numel;
use tongtu_graph::{Graph, Loc, Module, Node, Op, Type, ValueId};
use tongtu_plan::plan::{
    Arg, Block, Group, Hosted, Plan, PlanValue, Port, State, Step, StepKind, Storage, ValueRef,
};
use tongtu_plan::{Artifact, CompileError, Packing, Support};
use tongtu_tensor::dim::{Dim, Sym};
use tongtu_tensor::{DType, Num, Tensor};
use tongtu_tile::Kernel;

use crate::Target;
use crate::emit::KernelArg;
use crate::error::Error;
use crate::fuse::{self, Item, Kind};
use crate::schedule::{self, Machine};
use crate::split::{Registers, split};

/// Tiles are split to this many registers at least.
const LEAST_REGISTERS: usize = 4;
/// How often a schedule's tiles are halved where they do not fit.
const MOST_HALVINGS: u32 = 6;

/// The device of what the chip does not take.
const HOST: usize = 1;

/// A kernel that several launches may share.
struct Shared {
    kernel: Kernel,
    group: String,
    loc: Loc,
    /// The device that it is for.
    device: usize,
    /// The groups that it serves.
    serves: Vec<usize>,
}

/// What another attempt does otherwise.
#[derive(Clone, Default)]
struct Choices {
    /// How often the tiles of a group are halved.
    halved: BTreeMap<usize, u32>,
    /// The groups that the host takes over, and why.
    hosted: BTreeMap<usize, String>,
}

impl Choices {
    /// Takes over what an attempt ran into; whether there was something.
    fn learn(&mut self, too_large: BTreeSet<usize>, refused: BTreeMap<usize, String>) -> bool {
        let more = !too_large.is_empty() || !refused.is_empty();
        too_large.into_iter().for_each(|g| *self.halved.entry(g).or_insert(0) += 1);
        for (g, why) in refused {
            self.halved.remove(&g);
            self.hosted.insert(g, why);
        }
        more
    }
}

/// What tells a constant from others: where it lies, and how.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Identity(usize, DType, Vec<usize>, Vec<isize>);

impl Identity {
    fn of(t: &Tensor) -> Identity {
        Identity(t.address(), t.dtype(), t.shape().to_vec(), t.strides().to_vec())
    }
}

struct Lowerer<'a> {
    plan: Plan,
    /// The chip and, where it may take over what the chip refuses, the host: devices by position.
    targets: &'a [Target<'a>],
    machines: Vec<Machine>,
    choices: Choices,
    errors: Vec<Error>,
    /// The groups that the chip refused and the host may take over, and why.
    refused: BTreeMap<usize, String>,
    kernels: Vec<Shared>,
    by_text: HashMap<(usize, String), usize>,
    packed: HashMap<(usize, Identity, Packing), ValueRef>,
    constants: HashMap<Identity, ValueRef>,
    /// Values of the chip as the host has them: constants, and what the host made.
    on_host: HashMap<ValueRef, ValueRef>,
    /// Constants to pack: the position in the plan, what is packed, and how.
    pending: Vec<(usize, ValueRef, Tensor, Packing)>,
    bound: BTreeSet<Sym>,
    fixed: BTreeSet<Sym>,
    guards: BTreeSet<String>,
    depth: usize,
}

type Map = Vec<Option<ValueRef>>;

/// Lowers a prepared module to a plan with compiled kernels.
///
/// Constants that kernels want packed are packed last, one by one, when nothing but the plan holds what they are made from, so
/// that a model's weights are in memory once.
///
/// Where a back end says that a tile does not fit, the group's schedule is made anew with smaller tiles. What the first target does
/// not take goes to the second, if there is one.
///
/// # Errors
/// Everything that is not supported, in one error.
pub fn lower(module: Module, targets: &[Target<'_>]) -> Result<Plan, Error> {
    let mut choices = Choices::default();
    let mut l = loop {
        let mut l = attempt(&module, targets, &choices)?;
        let too_large = l.compile_kernels();
        if !l.errors.is_empty() {
            return Err(Error::several(l.errors));
        }
        if !choices.learn(too_large, std::mem::take(&mut l.refused)) {
            break l;
        }
    };
    l.plan.hosted = choices.hosted.into_iter().map(|(group, why)| Hosted { group, why }).collect();
    l.drop_raw();
    let (mut plan, pending) = (l.plan, l.pending);
    drop(module);
    pack(&mut plan, pending)?;
    Ok(plan)
}

/// Lowers a prepared module without reading its constants, which may be absent: the plan is as [`lower`] makes it, but its
/// constants are absent, and what does not compile is listed beside it. An artifact that was refused is empty.
///
/// # Errors
/// What leaves no plan at all.
pub fn outline(module: &Module, target: Target<'_>) -> Result<(Plan, Vec<Error>), Error> {
    let targets = [target];
    let mut choices = Choices::default();
    let mut l = loop {
        let mut l = attempt(module, &targets, &choices)?;
        let too_large = l.compile_kernels();
        if !choices.learn(too_large, BTreeMap::new()) {
            break l;
        }
    };
    l.drop_raw();
    let too_large = |_| Error::unsupported("constant", &Loc::default(), "the constant is too large");
    for (k, _, value, packing) in &l.pending {
        let shape = packing.shape(value.shape()).ok_or_else(|| too_large(()))?;
        l.plan.constants[*k] = Tensor::absent(value.dtype(), &shape).map_err(|_| too_large(()))?;
    }
    Ok((l.plan, l.errors))
}

/// The plan without its kernels, and the kernels.
fn attempt<'a>(module: &Module, targets: &'a [Target<'a>], choices: &Choices) -> Result<Lowerer<'a>, Error> {
    let g = &module.graph;
    let mut l = Lowerer {
        plan: Plan { symbols: module.symbols.clone(), ..Plan::default() },
        targets,
        machines: targets.iter().map(|t| Machine::of(t.chip)).collect(),
        choices: choices.clone(),
        errors: Vec::new(),
        refused: BTreeMap::new(),
        kernels: Vec::new(),
        by_text: HashMap::new(),
        packed: HashMap::new(),
        constants: HashMap::new(),
        on_host: HashMap::new(),
        pending: Vec::new(),
        bound: BTreeSet::new(),
        fixed: BTreeSet::new(),
        guards: BTreeSet::new(),
        depth: 0,
    };
    let mut map: Map = vec![None; g.values.len()];
    for &v in &g.inputs {
        let ty = g.ty(v).clone();
        l.bound.extend(g.dims(v).iter().filter_map(Dim::as_sym));
        let storage = if ty.as_tensor().is_some() { Storage::Input } else { Storage::Host };
        let r = l.value(ty, storage, g.values[v.index()].name.clone());
        map[v.index()] = Some(r);
        l.plan.inputs.push(Port { name: g.value_name(v), value: r });
    }
    l.fixed = l.bound.clone();
    let mut steps = Vec::new();
    l.graph(g, &mut map, &mut steps)?;
    for &v in &g.outputs {
        let value = l.get(g, &map, v)?;
        let taken = |name: &str| l.plan.outputs.iter().any(|p| p.name == name);
        let own = g.value_name(v);
        let name = std::iter::once(own.clone())
            .chain((1..).map(|i| format!("{own}.{i}")))
            .find(|n| !taken(n))
            .unwrap_or(own);
        l.plan.outputs.push(Port { name, value });
    }
    let tied = |&(input, output): &(usize, usize)| State { input, output, axis: 0 };
    l.plan.state = g.state.iter().map(tied).collect();
    l.plan.body = Block { steps };
    if targets.len() > 1 {
        l.drop_copies();
    }
    l.lifetimes();
    Ok(l)
}

impl Lowerer<'_> {
    fn value(&mut self, ty: Type, storage: Storage, name: Option<Arc<str>>) -> ValueRef {
        self.value_on(0, ty, storage, name)
    }

    fn value_on(&mut self, device: usize, ty: Type, storage: Storage, name: Option<Arc<str>>) -> ValueRef {
        let r = ValueRef(self.plan.values.len() as u32);
        self.plan.values.push(PlanValue { ty, storage, device, name });
        r
    }

    /// A value computed by the plan: in the arena where its size follows from the inputs' sizes.
    fn computed(&mut self, ty: Type, name: Option<Arc<str>>) -> ValueRef {
        self.computed_on(0, ty, name)
    }

    fn computed_on(&mut self, device: usize, ty: Type, name: Option<Arc<str>>) -> ValueRef {
        let in_arena = self.depth == 0
            && match &ty {
                Type::Tensor { dims, .. } => {
                    dims.iter().all(|d| d.symbols().iter().all(|s| self.fixed.contains(s)))
                }
                _ => false,
            };
        let storage = match &ty {
            Type::Tensor { .. } if in_arena => Storage::Arena { first: 0, last: 0 },
            Type::Tensor { .. } => Storage::Pool,
            _ => Storage::Host,
        };
        self.value_on(device, ty, storage, name)
    }

    /// A value of the chip as the host has it: constants are there too, as is what it made, and others are copied.
    fn copy_to_host(&mut self, v: ValueRef, loc: &Loc, steps: &mut Vec<Step>) -> ValueRef {
        let PlanValue { ty, name, .. } = self.plan.values[v.index()].clone();
        let root = self.plan.root(v);
        if let Some(&made) = self.on_host.get(&root) {
            return match root == v {
                true => made,
                false => self.value_on(HOST, ty, Storage::Alias(made), name),
            };
        }
        let Storage::Constant(k) = self.plan.values[root.index()].storage else {
            let copy = self.computed_on(HOST, ty, name);
            Self::step_on(HOST, steps, StepKind::Copy { src: v, dst: copy }, loc);
            return copy;
        };
        if let Some(&there) = self.on_host.get(&v) {
            return there;
        }
        let there = match root == v {
            true => self.value_on(HOST, ty, Storage::Constant(k), name),
            false => {
                let root = self.copy_to_host(root, loc, steps);
                self.value_on(HOST, ty, Storage::Alias(root), name)
            }
        };
        self.on_host.insert(v, there);
        there
    }

    fn constant(&mut self, value: &Tensor, name: Option<Arc<str>>) -> ValueRef {
        // What is small is not worth sharing.
        let key = Some(Identity::of(value)).filter(|_| value.nbytes() >= 64);
        if let Some(&r) = key.as_ref().and_then(|k| self.constants.get(k)) {
            return r;
        }
        let ty = Type::tensor(
            value.dtype(),
            value.shape().iter().map(|&n| Dim::from(n as i64)).collect::<Vec<_>>(),
        );
        self.plan.constants.push(value.clone());
        let r = self.value(ty, Storage::Constant(self.plan.constants.len() - 1), name);
        self.constants.extend(key.map(|k| (k, r)));
        r
    }

    fn get(&mut self, g: &Graph, map: &Map, v: ValueId) -> Result<ValueRef, Error> {
        map[v.index()].ok_or_else(|| {
            Error::unsupported(
                "value",
                &Loc::default(),
                format!("value {} is not in memory", g.value_name(v)),
            )
        })
    }

    fn step(steps: &mut Vec<Step>, kind: StepKind, loc: &Loc) {
        Self::step_on(0, steps, kind, loc);
    }

    fn step_on(device: usize, steps: &mut Vec<Step>, kind: StepKind, loc: &Loc) {
        steps.push(Step { kind, device, wait: Vec::new(), loc: loc.clone() });
    }

    fn graph(&mut self, g: &Graph, map: &mut Map, steps: &mut Vec<Step>) -> Result<(), Error> {
        let defs = g.definitions();
        for item in fuse::fuse(g, self.machines[0].scratch.is_none()) {
            match item {
                Item::Alias { from, to } => {
                    let loc = defs[to.index()].map(|n| g.nodes[n].loc.clone()).unwrap_or_default();
                    self.guard(&numel(g.dims(from)), &numel(g.dims(to)), &loc, "a reshape", steps);
                    let from = self.get(g, map, from)?;
                    let ty = g.ty(to).clone();
                    let r = self.value(ty, Storage::Alias(from), g.values[to.index()].name.clone());
                    map[to.index()] = Some(r);
                }
                Item::Group(group) => self.group(g, &defs, &group, map, steps)?,
                Item::Host(n) => self.host(g, &g.nodes[n], map, steps)?,
            }
        }
        Ok(())
    }

    fn guard(&mut self, a: &Dim, b: &Dim, loc: &Loc, what: &str, steps: &mut Vec<Step>) {
        if a == b || (a - b).as_const() == Some(0) {
            return;
        }
        let key = format!("{a:?}={b:?}@{}", self.depth);
        if !self.guards.insert(key) {
            return;
        }
        let message = format!(
            "{what} at {loc} needs {} = {}",
            a.display(&self.plan.symbols),
            b.display(&self.plan.symbols)
        );
        Self::step(steps, StepKind::Guard { lhs: a.clone(), rhs: b.clone(), message }, loc);
    }

    /// What a node assumes of sizes that are not known yet.
    fn guards(&mut self, g: &Graph, node: &Node, steps: &mut Vec<Step>) {
        let dims = |v: ValueId| g.dims(v).to_vec();
        let op = node.op.name();
        let loc = node.loc.clone();
        let mut pairs: Vec<(Dim, Dim)> = Vec::new();
        let zip =
            |a: &[Dim], b: &[Dim]| -> Vec<(Dim, Dim)> { a.iter().cloned().zip(b.iter().cloned()).collect() };
        match &node.op {
            Op::Binary(_) | Op::Compare(_) | Op::Select {} | Op::Fma {} => {
                for v in &node.inputs[1..] {
                    pairs.extend(zip(&dims(node.inputs[0]), &dims(*v)));
                }
            }
            Op::Broadcast { dims: to, axes } => {
                for (d, &a) in dims(node.inputs[0]).iter().zip(axes) {
                    if d.as_const() != Some(1) {
                        pairs.push((d.clone(), to[a].clone()));
                    }
                }
            }
            Op::Reshape { dims: to } => pairs.push((numel(&dims(node.inputs[0])), numel(to))),
            Op::Concat { axis } => {
                for v in &node.inputs[1..] {
                    let mut p = zip(&dims(node.inputs[0]), &dims(*v));
                    p.remove(*axis);
                    pairs.extend(p);
                }
            }
            Op::Contract { batch, over, .. } => {
                let (a, b) = (dims(node.inputs[0]), dims(node.inputs[1]));
                pairs.extend(batch.iter().chain(over).map(|&(i, j)| (a[i].clone(), b[j].clone())));
            }
            Op::Conv { spec, .. } => {
                let at = |roles: &[tongtu_graph::ConvRole], d: &[Dim]| {
                    roles.iter().position(|r| *r == tongtu_graph::ConvRole::C).map(|p| d[p].clone())
                };
                if let (Some(x), Some(k)) =
                    (at(&spec.input, &dims(node.inputs[0])), at(&spec.kernel, &dims(node.inputs[1])))
                {
                    pairs.push((x, k * spec.groups));
                }
            }
            Op::ScatterAlong { .. } => pairs.extend(zip(&dims(node.inputs[1]), &dims(node.inputs[2]))),
            Op::ScatterNd { .. } => {
                let (x, i, u) = (dims(node.inputs[0]), dims(node.inputs[1]), dims(node.inputs[2]));
                if let Some(k) = i.last().and_then(Dim::as_const) {
                    let want: Vec<Dim> = i[..i.len() - 1].iter().chain(&x[k as usize..]).cloned().collect();
                    pairs.extend(zip(&want, &u));
                }
            }
            Op::TakeAlong { axis } => {
                let (x, i) = (dims(node.inputs[0]), dims(node.inputs[1]));
                for d in (0..x.len()).filter(|d| d != axis) {
                    self.at_most(&i[d], &x[d], &loc, op, steps);
                }
            }
            Op::GatherNd { batch } => {
                pairs.extend(zip(&dims(node.inputs[0])[..*batch], &dims(node.inputs[1])[..*batch]))
            }
            Op::Slice { start, len, step } => {
                let x = dims(node.inputs[0]);
                for d in 0..x.len() {
                    let last = &start[d] + &(&(&len[d] - 1) * step[d]);
                    let (low, high) =
                        if step[d] > 0 { (start[d].clone(), last) } else { (last, start[d].clone()) };
                    let any = len[d].min(&Dim::from(1));
                    self.at_most(&(&(&high + 1) * &any), &x[d], &loc, op, steps);
                    self.at_most(&Dim::from(0), &low, &loc, op, steps);
                }
            }
            Op::Kernel { in_place, .. } => {
                for &(operand, result) in in_place {
                    pairs.extend(zip(&dims(node.inputs[operand]), &dims(node.outputs[result])));
                }
            }
            Op::Reduce { .. } | Op::Sort { .. } => {
                for v in node.inputs.iter().skip(1) {
                    pairs.extend(zip(&dims(node.inputs[0]), &dims(*v)));
                }
            }
            _ => {}
        }
        for (a, b) in pairs {
            self.guard(&a, &b, &loc, op, steps);
        }
        for &o in &node.outputs {
            for d in g.dims(o) {
                self.at_most(&Dim::from(0), d, &loc, op, steps);
            }
        }
    }

    /// `a <= b`, written as an equality.
    fn at_most(&mut self, a: &Dim, b: &Dim, loc: &Loc, what: &str, steps: &mut Vec<Step>) {
        if !a.provably_le(b, &self.plan.symbols) {
            self.guard(&(a - b).max(&Dim::from(0)), &Dim::from(0), loc, what, steps);
        }
    }

    fn group(
        &mut self,
        g: &Graph,
        defs: &[Option<usize>],
        group: &fuse::Group,
        map: &mut Map,
        steps: &mut Vec<Step>,
    ) -> Result<(), Error> {
        for node in &group.graph.nodes {
            self.guards(&group.graph, node, steps);
        }
        let constants: Vec<Option<Tensor>> = group
            .inputs
            .iter()
            .map(|v| match &g.nodes[defs[v.index()]?].op {
                Op::Constant { value } => Some(value.clone()),
                _ => None,
            })
            .collect();
        let index = self.plan.groups.len();
        let device = if self.choices.hosted.contains_key(&index) { HOST } else { 0 };
        let in_place = self.in_place(g, group).filter(|_| device == 0);
        let machine = match self.choices.halved.get(&index) {
            Some(&times) => Machine::reduced(self.targets[device].chip, times),
            None => self.machines[device],
        };
        let scheduled =
            schedule::schedule(group, &constants, machine, in_place.is_some()).unwrap_or_else(|e| {
                self.errors.push(match e {
                    Error::Tile { error, .. } => {
                        Error::Tile { group: format!("{} at {}", group.name, group.loc), error }
                    }
                    e => e,
                });
                schedule::Scheduled::default()
            });
        let mut inputs = Vec::new();
        for &v in &group.inputs {
            inputs.push(self.get(g, map, v)?);
        }
        if device == HOST {
            let read = scheduled.reads();
            for (_, v) in inputs.iter_mut().enumerate().filter(|(i, _)| read.contains(i)) {
                *v = self.copy_to_host(*v, &group.loc, steps);
            }
        }
        let mut outputs = Vec::new();
        for &v in &group.outputs {
            let (ty, name) = (g.ty(v).clone(), g.values[v.index()].name.clone());
            let r = match in_place {
                Some(state) => {
                    let of = self.get(g, map, state)?;
                    self.value(ty, Storage::Alias(of), name)
                }
                None => self.computed_on(device, ty, name),
            };
            map[v.index()] = Some(r);
            outputs.push(r);
        }
        let temps: Vec<ValueRef> = scheduled
            .temps
            .iter()
            .map(|(d, dims)| self.computed_on(device, Type::tensor(*d, dims.clone()), None))
            .collect();
        let mut packed = Vec::new();
        for (i, packing) in &scheduled.packed {
            packed.push(self.packed(device, packing, inputs[*i], constants[*i].as_ref(), &group.loc)?);
        }
        let (flops, bytes) = cost(&group.graph);
        self.plan.groups.push(Group {
            name: group.name.clone(),
            graph: Arc::new(group.graph.clone()),
            inputs: inputs.clone(),
            outputs: outputs.clone(),
            loc: group.loc.clone(),
            flops,
            bytes,
        });
        for (input, output) in scheduled.copies {
            let kind = StepKind::Copy { src: inputs[input], dst: outputs[output] };
            Self::step_on(device, steps, kind, &group.loc);
        }
        for launch in scheduled.launches {
            let args = launch
                .args
                .iter()
                .map(|a| match a {
                    KernelArg::Input(i) => Arg::Buffer(inputs[*i]),
                    KernelArg::Output(i) => Arg::Buffer(outputs[*i]),
                    KernelArg::Temp(i) => Arg::Buffer(temps[*i]),
                    KernelArg::Packed(i) => Arg::Buffer(packed[*i]),
                    KernelArg::Dim(d) => Arg::Dim(d.clone()),
                })
                .collect();
            let artifact = self.kernel(device, launch.kernel, group, index);
            let kind = StepKind::Launch { artifact, entry: 0, grid: launch.grid, args, group: index };
            Self::step_on(device, steps, kind, &group.loc);
        }
        if device == HOST {
            for (&v, src) in group.outputs.iter().zip(outputs) {
                let dst = self.computed(g.ty(v).clone(), g.values[v.index()].name.clone());
                self.on_host.insert(dst, src);
                Self::step(steps, StepKind::Copy { src, dst }, &group.loc);
                map[v.index()] = Some(dst);
            }
        }
        Ok(())
    }

    /// The state input whose memory the result of a group takes over: the group appends to it, or writes some of its elements
    /// when nothing else reads the old ones.
    fn in_place(&self, g: &Graph, group: &fuse::Group) -> Option<ValueId> {
        if self.depth > 0 || group.outputs.len() != 1 {
            return None;
        }
        let root = group.graph.nodes.last()?;
        let first = *root.inputs.first()?;
        let position = group.graph.inputs.iter().position(|&v| v == first)?;
        let state = group.inputs[position];
        let result = group.outputs[0];
        let known = g.dims(result).iter().all(|d| d.symbols().iter().all(|s| self.fixed.contains(s)));
        let tied = known && g.state.iter().any(|&(i, o)| g.inputs[i] == state && g.outputs[o] == result);
        let uses = || {
            let nodes = g.nodes.iter().flat_map(|n| &n.inputs).chain(&g.outputs);
            nodes.filter(|&&v| v == state).count()
        };
        match group.kind {
            Kind::Concat => Some(state).filter(|_| tied && leads(&root.op, g.dims(state))),
            Kind::Scatter => Some(state).filter(|_| tied && uses() == 1),
            _ => None,
        }
    }

    /// A constant in packed form, which is filled in later.
    fn packed(
        &mut self,
        device: usize,
        packing: &Packing,
        raw: ValueRef,
        value: Option<&Tensor>,
        loc: &Loc,
    ) -> Result<ValueRef, Error> {
        let fail = |why: &str| Error::unsupported("pack", loc, why);
        let value = value.ok_or_else(|| fail("not a constant"))?;
        let key = (device, Identity::of(value), packing.clone());
        if let Some(&r) = self.packed.get(&key) {
            return Ok(r);
        }
        let shape = packing.shape(value.shape()).ok_or_else(|| fail("the constant is too large"))?;
        let dims: Vec<Dim> = shape.iter().map(|&n| Dim::from(n as i64)).collect();
        let k = self.plan.constants.len();
        // Its place is taken by nothing until then.
        self.plan.constants.push(Tensor::scalar(value.dtype(), Num::Int(0)));
        let r = self.value_on(device, Type::tensor(value.dtype(), dims), Storage::Constant(k), None);
        self.pending.push((k, raw, value.clone(), packing.clone()));
        self.packed.insert(key, r);
        Ok(r)
    }

    /// Drops copies to the chip of what only the host reads.
    fn drop_copies(&mut self) {
        fn from_host(plan: &Plan, kind: &StepKind) -> Option<ValueRef> {
            let StepKind::Copy { src, dst } = *kind else { return None };
            let on = |v: ValueRef| plan.values[v.index()].device;
            Some(plan.root(dst)).filter(|_| on(src) == HOST && on(dst) != HOST)
        }
        fn retain(plan: &Plan, block: &mut Block, used: &BTreeSet<ValueRef>) {
            block.steps.retain(|s| from_host(plan, &s.kind).is_none_or(|dst| used.contains(&dst)));
            for s in &mut block.steps {
                match &mut s.kind {
                    StepKind::If { then_block, else_block, .. } => {
                        retain(plan, then_block, used);
                        retain(plan, else_block, used);
                    }
                    StepKind::While { body, .. } => retain(plan, body, used),
                    _ => {}
                }
            }
        }
        let mut body = std::mem::take(&mut self.plan.body);
        let plan = &self.plan;
        let mut used: BTreeSet<ValueRef> = plan.outputs.iter().map(|p| plan.root(p.value)).collect();
        let mut blocks = vec![&body];
        while let Some(block) = blocks.pop() {
            for s in &block.steps {
                if from_host(plan, &s.kind).is_none() {
                    used.extend(s.values().into_iter().map(|v| plan.root(v)));
                }
                blocks.extend(s.blocks());
            }
        }
        retain(plan, &mut body, &used);
        self.plan.body = body;
    }

    /// Forgets constants that no step uses, now that the kernels have them packed.
    fn drop_raw(&mut self) {
        let mut used = BTreeSet::new();
        let mut blocks = vec![&self.plan.body];
        while let Some(block) = blocks.pop() {
            for step in &block.steps {
                used.extend(step.values().into_iter().map(|v| self.plan.root(v)));
                blocks.extend(step.blocks());
            }
        }
        used.extend(self.plan.outputs.iter().map(|p| self.plan.root(p.value)));
        for (constant, raw, _, packing) in &self.pending {
            if !used.contains(raw) {
                let packing = packing.clone();
                self.plan.values[raw.index()].storage = Storage::Packed { constant: *constant, packing };
            }
        }
        let kept: BTreeSet<usize> = self
            .plan
            .values
            .iter()
            .filter_map(|v| if let Storage::Constant(k) = v.storage { Some(k) } else { None })
            .collect();
        let places: HashMap<usize, usize> = kept.iter().enumerate().map(|(new, &old)| (old, new)).collect();
        let mut old = 0;
        self.plan.constants.retain(|_| {
            old += 1;
            kept.contains(&(old - 1))
        });
        for v in &mut self.plan.values {
            if let Storage::Constant(k) | Storage::Packed { constant: k, .. } = &mut v.storage {
                *k = places.get(k).copied().unwrap_or(*k);
            }
        }
        for p in &mut self.pending {
            p.0 = places.get(&p.0).copied().unwrap_or(p.0);
        }
    }

    /// The position of a kernel.
    fn kernel(&mut self, device: usize, mut kernel: Kernel, group: &fuse::Group, index: usize) -> usize {
        let name = std::mem::replace(&mut kernel.name, "kernel".into());
        let text = (device, kernel.to_string());
        if let Some(&i) = self.by_text.get(&text) {
            self.kernels[i].serves.push(index);
            return i;
        }
        kernel.name = name;
        let i = self.kernels.len();
        self.by_text.insert(text, i);
        let (group, loc) = (group.name.clone(), group.loc.clone());
        self.kernels.push(Shared { kernel, group, loc, device, serves: vec![index] });
        i
    }

    /// Compiles every kernel; gives the groups whose tiles must be smaller.
    fn compile_kernels(&mut self) -> BTreeSet<usize> {
        let targets = self.targets;
        let kernels = std::mem::take(&mut self.kernels);
        // On machines with scratchpads the schedules choose other tiles first.
        let last = |s: &Shared| {
            let halved = |g: &usize| self.choices.halved.get(g).copied().unwrap_or(0);
            self.machines[s.device].scratch.is_none() || s.serves.iter().any(|g| halved(g) >= MOST_HALVINGS)
        };
        let answers: Vec<Result<Artifact, Error>> =
            kernels.par_iter().map(|s| compile_kernel(s, targets[s.device], last(s))).collect();
        let mut too_large = BTreeSet::new();
        for (s, answer) in kernels.iter().zip(answers) {
            match answer {
                Ok(a) => self.plan.artifacts.push(a),
                Err(Error::Backend { error, .. })
                    if matches!(*error, CompileError::TooLarge { .. }) && !last(s) =>
                {
                    too_large.extend(&s.serves)
                }
                Err(e) => {
                    self.plan.artifacts.push(Artifact {
                        backend: targets[s.device].compiler.name().to_string(),
                        entries: Vec::new(),
                        bytes: Arc::from(&[][..]),
                    });
                    match &e {
                        Error::Backend { error, .. }
                            if s.device < HOST
                                && targets.len() > HOST
                                && !matches!(**error, CompileError::Toolchain { .. }) =>
                        {
                            self.refused.extend(s.serves.iter().map(|&g| (g, reason(error))))
                        }
                        _ => self.errors.push(e),
                    }
                }
            }
        }
        too_large
    }

    fn host(&mut self, g: &Graph, node: &Node, map: &mut Map, steps: &mut Vec<Step>) -> Result<(), Error> {
        match &node.op {
            Op::Constant { value } => {
                let name = g.values[node.outputs[0].index()].name.clone();
                map[node.outputs[0].index()] = Some(self.constant(value, name));
            }
            Op::DimValue { dim } => {
                let dst = self.computed(Type::scalar(DType::I64), None);
                map[node.outputs[0].index()] = Some(dst);
                Self::step(steps, StepKind::WriteDim { dst, dim: dim.clone() }, &node.loc);
            }
            Op::Bind { sym } => {
                let src = self.get(g, map, node.inputs[0])?;
                self.bound.insert(*sym);
                Self::step(steps, StepKind::Bind { sym: *sym, src }, &node.loc);
            }
            Op::Host { name, attributes, .. } => {
                let inputs =
                    node.inputs.iter().map(|&v| self.get(g, map, v)).collect::<Result<Vec<_>, _>>()?;
                let mut outputs = Vec::new();
                for &o in &node.outputs {
                    let ty = g.ty(o).clone();
                    let storage = if ty.as_tensor().is_some() { Storage::Pool } else { Storage::Host };
                    let r = self.value(ty, storage, g.values[o.index()].name.clone());
                    map[o.index()] = Some(r);
                    outputs.push(r);
                }
                let kind = StepKind::Host {
                    name: name.clone(),
                    attributes: attributes.clone(),
                    inputs,
                    outputs: outputs.clone(),
                };
                Self::step(steps, kind, &node.loc);
                for r in outputs {
                    self.bind_dims(r, &node.loc, steps);
                }
            }
            Op::If { then_branch, else_branch, results } => {
                let condition = self.get(g, map, node.inputs[0])?;
                let captured =
                    node.inputs[1..].iter().map(|&v| self.get(g, map, v)).collect::<Result<Vec<_>, _>>()?;
                let outs: Vec<ValueRef> = results.iter().map(|t| self.handle(t)).collect();
                let mut blocks = Vec::new();
                for branch in [then_branch, else_branch] {
                    let saved = (self.bound.clone(), self.guards.clone());
                    let mut inner: Map = vec![None; branch.values.len()];
                    for (&v, &r) in branch.inputs.iter().zip(&captured) {
                        inner[v.index()] = Some(r);
                    }
                    let mut body = Vec::new();
                    self.depth += 1;
                    self.graph(branch, &mut inner, &mut body)?;
                    for (&v, &dst) in branch.outputs.iter().zip(&outs) {
                        let src = self.get(branch, &inner, v)?;
                        self.assign(src, dst, &node.loc, &mut body);
                    }
                    self.depth -= 1;
                    (self.bound, self.guards) = saved;
                    blocks.push(Block { steps: body });
                }
                let else_block = blocks.pop().unwrap_or_default();
                let then_block = blocks.pop().unwrap_or_default();
                Self::step(steps, StepKind::If { condition, then_block, else_block }, &node.loc);
                for (&o, &r) in node.outputs.iter().zip(&outs) {
                    map[o.index()] = Some(r);
                    self.bind_dims(r, &node.loc, steps);
                }
            }
            Op::While { body, results } => {
                let n = results.len();
                let first = self.get(g, map, node.inputs[0])?;
                let init =
                    node.inputs[1..].iter().map(|&v| self.get(g, map, v)).collect::<Result<Vec<_>, _>>()?;
                let condition = self.handle(&Type::scalar(DType::Bool));
                self.assign(first, condition, &node.loc, steps);
                let mut inner: Map = vec![None; body.values.len()];
                let mut carried = Vec::new();
                for (&v, &src) in body.inputs[..n].iter().zip(&init) {
                    let r = self.handle(body.ty(v));
                    self.assign(src, r, &node.loc, steps);
                    inner[v.index()] = Some(r);
                    carried.push(r);
                }
                for (&v, &r) in body.inputs[n..].iter().zip(&init[n..]) {
                    inner[v.index()] = Some(r);
                }
                let saved = (self.bound.clone(), self.guards.clone());
                let mut block = Vec::new();
                self.depth += 1;
                for &r in &carried {
                    self.bind_dims(r, &node.loc, &mut block);
                }
                self.graph(body, &mut inner, &mut block)?;
                // All new values are taken before any carried one is replaced.
                let mut next = Vec::new();
                for (k, &v) in body.outputs.iter().enumerate() {
                    let src = self.get(body, &inner, v)?;
                    let dst = if k == 0 { condition } else { carried[k - 1] };
                    let t = self.handle(body.ty(v));
                    self.assign(src, t, &node.loc, &mut block);
                    next.push((t, dst));
                }
                for (src, dst) in next {
                    Self::step(&mut block, StepKind::Assign { src, dst }, &node.loc);
                }
                self.depth -= 1;
                (self.bound, self.guards) = saved;
                Self::step(steps, StepKind::While { condition, body: Block { steps: block } }, &node.loc);
                for ((&o, t), &c) in node.outputs.iter().zip(results).zip(&carried) {
                    let r = self.handle(t);
                    Self::step(steps, StepKind::Assign { src: c, dst: r }, &node.loc);
                    map[o.index()] = Some(r);
                    self.bind_dims(r, &node.loc, steps);
                }
            }
            op => return Err(Error::unsupported(op.name(), &node.loc, "is not a step of the host program")),
        }
        Ok(())
    }

    /// A value that takes over others' contents.
    fn handle(&mut self, ty: &Type) -> ValueRef {
        let storage = if ty.as_tensor().is_some() { Storage::Pool } else { Storage::Host };
        self.value(ty.clone(), storage, None)
    }

    /// Gives `dst` the contents of `src`: by name where `src` has its own counted memory, else by a copy.
    fn assign(&mut self, src: ValueRef, dst: ValueRef, loc: &Loc, steps: &mut Vec<Step>) {
        let from = &self.plan.values[src.index()];
        let src = match from.storage {
            Storage::Pool | Storage::Host => src,
            _ => {
                let ty = from.ty.clone();
                let copy = self.handle(&ty);
                Self::step(steps, StepKind::Copy { src, dst: copy }, loc);
                copy
            }
        };
        Self::step(steps, StepKind::Assign { src, dst }, loc);
    }

    fn bind_dims(&mut self, value: ValueRef, loc: &Loc, steps: &mut Vec<Step>) {
        let fresh: Vec<Sym> = self
            .plan
            .dims(value)
            .iter()
            .filter_map(Dim::as_sym)
            .filter(|s| !self.bound.contains(s))
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        self.bound.extend(&fresh);
        if !self.plan.dims(value).is_empty() {
            Self::step(steps, StepKind::BindDims { value, fresh }, loc);
        }
    }

    /// First and last use of every value in the arena.
    fn lifetimes(&mut self) {
        let mut first: BTreeMap<usize, usize> = BTreeMap::new();
        let mut last: BTreeMap<usize, usize> = BTreeMap::new();
        let steps = std::mem::take(&mut self.plan.body.steps);
        for (i, s) in steps.iter().enumerate() {
            let mut used = Vec::new();
            uses(s, &mut used);
            for v in used {
                let root = self.root(v);
                first.entry(root).or_insert(i);
                last.insert(root, i);
            }
        }
        let end = steps.len();
        let kept: Vec<ValueRef> = self.plan.outputs.iter().map(|p| p.value).collect();
        for v in kept {
            let root = self.root(v);
            last.insert(root, end);
        }
        self.plan.body.steps = steps;
        for (i, v) in self.plan.values.iter_mut().enumerate() {
            if let Storage::Arena { first: f, last: l } = &mut v.storage {
                *f = first.get(&i).copied().unwrap_or(0);
                *l = last.get(&i).copied().unwrap_or(*f);
            }
        }
    }

    fn root(&self, v: ValueRef) -> usize {
        self.plan.root(v).index()
    }
}

/// Whether what is joined to a value of these dims comes after all of it in memory.
fn leads(op: &Op, dims: &[Dim]) -> bool {
    matches!(op, Op::Concat { axis } if dims[..*axis].iter().all(|d| d.as_const() == Some(1)))
}

/// All values that a step uses, blocks inside it included.
fn uses(step: &Step, out: &mut Vec<ValueRef>) {
    out.extend(step.values());
    step.blocks().flat_map(|b| &b.steps).for_each(|s| uses(s, out));
}

/// Packs constants, letting go of what they are made from.
fn pack(plan: &mut Plan, pending: Vec<(usize, ValueRef, Tensor, Packing)>) -> Result<(), Error> {
    let packed: Vec<(usize, Option<Tensor>)> = pending
        .into_par_iter()
        .map(|(k, _, value, packing)| {
            let packed = packing.pack(&value);
            value.release();
            (k, packed)
        })
        .collect();
    for (k, tensor) in packed {
        plan.constants[k] =
            tensor.ok_or_else(|| Error::unsupported("pack", &Loc::default(), "the constant is too large"))?;
    }
    // What is left of views is copied, once.
    for t in plan.constants.iter_mut().filter(|t| !t.is_contiguous()) {
        let dense = crate::passes::dense(t);
        t.release();
        *t = dense.map_err(|e| Error::unsupported("constant", &Loc::default(), e.to_string()))?;
    }
    Ok(())
}

/// Why a chip does not take a kernel, for people who look at it beside its group.
fn reason(error: &CompileError) -> String {
    match error {
        CompileError::Unsupported { instruction, reason, .. } => format!("{instruction}: {reason}"),
        e => e.to_string(),
    }
}

fn compile_kernel(s: &Shared, target: Target<'_>, cut: bool) -> Result<Artifact, Error> {
    let Target { chip, compiler } = target;
    let mut kernel = s.kernel.clone();
    crate::expand::expand(&mut kernel, &|op, operands| {
        matches!(compiler.supports(op, operands, &[], chip), Support::Native)
    });
    if let Err(errors) = tongtu_tile::verify::verify(&kernel)
        && let Some(error) = errors.into_iter().next()
    {
        return Err(Error::Tile { group: format!("{} at {}", s.group, s.loc), error });
    }
    let refused =
        |error| Error::Backend { group: s.group.clone(), loc: s.loc.clone(), error: Box::new(error) };
    let attempt =
        |kernel: &Kernel| compiler.compile(&tongtu_tile::Module { kernels: vec![kernel.clone()] }, chip);
    let mut answer = attempt(&kernel);
    // Smaller tiles, until the back end takes them or they are a few registers' worth.
    let mut registers = Registers::of(chip);
    while cut
        && let Err(CompileError::TooLarge { .. }) = answer
        && registers.count >= LEAST_REGISTERS
    {
        let smaller = split(&kernel, registers)
            .map_err(|error| Error::Tile { group: format!("{} at {}", s.group, s.loc), error })?;
        answer = attempt(&smaller);
        registers.count /= 2;
    }
    answer.map_err(refused)
}

/// What is read of a value that is only gathered from: the results of gathering.
fn gathered(g: &Graph, v: ValueId) -> Option<Vec<ValueId>> {
    let mut parts = Vec::new();
    for n in g.nodes.iter().filter(|n| n.inputs.contains(&v)) {
        let only = n.inputs.iter().filter(|&&x| x == v).count() == 1 && n.inputs.first() == Some(&v);
        match n.op {
            Op::Take { .. } | Op::TakeAlong { .. } | Op::GatherNd { .. } if only => parts.push(n.outputs[0]),
            _ => return None,
        }
    }
    Some(parts).filter(|p| !p.is_empty())
}

/// Operations (a fused multiply-add is 2) and bytes moved at least.
fn cost(g: &Graph) -> (Dim, Dim) {
    let mut flops = Dim::from(0);
    for n in &g.nodes {
        let Some(&o) = n.outputs.first() else { continue };
        let out = numel(g.dims(o));
        let each = match &n.op {
            Op::Contract { over, .. } => {
                let x = g.dims(n.inputs[0]);
                numel(&over.iter().map(|&(a, _)| x[a].clone()).collect::<Vec<_>>()) * 2
            }
            Op::Conv { spec, .. } => {
                let k = g.dims(n.inputs[1]);
                let per: Vec<Dim> = spec
                    .kernel
                    .iter()
                    .zip(k)
                    .filter(|(r, _)| **r != tongtu_graph::ConvRole::N)
                    .map(|(_, d)| d.clone())
                    .collect();
                numel(&per) * 2
            }
            Op::Reduce { .. } => {
                flops = &flops + &numel(g.dims(n.inputs[0]));
                continue;
            }
            Op::WindowReduce { spec, .. } => Dim::from(spec.window.iter().product::<i64>()),
            Op::Unary(_) | Op::Binary(_) | Op::Compare(_) | Op::Select {} | Op::Fma {} | Op::Cast { .. } => {
                Dim::from(1)
            }
            _ => continue,
        };
        flops = &flops + &(&out * &each);
    }
    let size = |v: &ValueId| {
        let bits = g.dtype(*v).bits() as i64;
        (numel(g.dims(*v)) * bits).ceildiv(&Dim::from(8))
    };
    let moved = |v: &ValueId| gathered(g, *v).map_or_else(|| size(v), |parts| parts.iter().map(&size).sum());
    let bytes = g.inputs.iter().map(moved).chain(g.outputs.iter().map(&size)).sum();
    (flops, bytes)
}
