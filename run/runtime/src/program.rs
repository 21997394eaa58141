//! A plan made ready to run: expressions numbered, lifetimes of values found, launches listed.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use tongtu_graph::{Loc, Type};
use tongtu_plan::{Arg, Block, Plan, Step, StepKind, Storage, ValueRef};
use tongtu_tensor::DType;
use tongtu_tensor::dim::{Dim, Sym};

use crate::dims::{DimId, Dims};
use crate::error::RuntimeError;

/// What the executor keeps of a value.
#[derive(Debug)]
pub(crate) struct Value {
    /// The value whose memory it is: itself, or what it is an alias of.
    pub(crate) root: usize,
    pub(crate) kind: Kind,
    pub(crate) device: usize,
    /// `None` for values on the host.
    pub(crate) dtype: Option<DType>,
    pub(crate) dims: Vec<DimId>,
    /// Whether inputs' dims decide its dims and its address never changes within a binding.
    pub(crate) fixed: bool,
    /// Whether a step uses it, or a result is it.
    pub(crate) used: bool,
}

/// Where the memory of a root comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Input,
    Constant(usize),
    /// A constant that is kept in packed form only.
    Packed,
    Arena,
    /// A value of the arena that is given back, and so lies in the memory of the tensor given back.
    Output,
    Pool,
    Host,
}

/// A value of the arena with its lifetime.
#[derive(Debug)]
pub(crate) struct ArenaValue {
    pub(crate) value: usize,
    pub(crate) first: usize,
    pub(crate) last: usize,
}

/// An argument of a launch.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LArg {
    Buffer(usize),
    Dim(DimId),
}

#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) artifact: usize,
    pub(crate) entry: usize,
    pub(crate) grid: [DimId; 3],
    pub(crate) args: Vec<LArg>,
    /// Positions of the arguments that may change from run to run.
    pub(crate) varying: Vec<u32>,
    pub(crate) fixed_grid: bool,
    pub(crate) group: usize,
    /// Whether it is the first, and the last, of its group in its block.
    pub(crate) ends: (bool, bool),
}

#[derive(Debug)]
pub(crate) enum LKind {
    /// Position in [`Program::launches`].
    Launch(usize),
    Copy(usize, usize),
    Assign(usize, usize),
    WriteDim(usize, DimId),
    Bind(Sym, usize),
    BindDims(usize, Vec<Sym>),
    Guard(DimId, DimId, String),
    If(usize, LBlock, LBlock),
    While(usize, LBlock),
    Host(HostStep),
}

#[derive(Debug)]
pub(crate) struct HostStep {
    pub(crate) name: String,
    pub(crate) attributes: Vec<(String, tongtu_graph::AttrValue)>,
    pub(crate) inputs: Vec<usize>,
    pub(crate) outputs: Vec<usize>,
    /// Declared types of the results.
    pub(crate) results: Vec<Type>,
}

#[derive(Debug)]
pub(crate) struct LStep {
    pub(crate) kind: LKind,
    pub(crate) device: usize,
    pub(crate) wait: Vec<usize>,
    pub(crate) loc: Loc,
    /// Pool values that get memory before the step.
    pub(crate) defines: Vec<usize>,
    /// Pool and host values that are given back after it.
    pub(crate) drops: Vec<usize>,
}

#[derive(Debug, Default)]
pub(crate) struct LBlock {
    pub(crate) steps: Vec<LStep>,
    /// Whether a step waits for one of another device.
    pub(crate) crosses: bool,
}

/// How an input's dim is used.
#[derive(Debug)]
pub(crate) enum DimUse {
    /// It gives the symbol its value.
    Solve { input: usize, axis: usize, sym: Sym, dim: Dim },
    /// It must have the expression's value.
    Check { input: usize, axis: usize, dim: DimId },
}

#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) plan: Arc<Plan>,
    pub(crate) dims: Dims,
    pub(crate) values: Vec<Value>,
    pub(crate) arena: Vec<ArenaValue>,
    pub(crate) launches: Vec<Launch>,
    pub(crate) body: LBlock,
    /// In the order in which symbols can be solved.
    pub(crate) input_dims: Vec<DimUse>,
    /// The symbols that inputs bind: the key of a binding.
    pub(crate) key: Vec<Sym>,
    pub(crate) devices: usize,
    /// For each input that is state, the output that is its new contents.
    pub(crate) state: Vec<Option<usize>>,
    /// For each (artifact, device) that a launch uses.
    pub(crate) loads: BTreeSet<(usize, usize)>,
}

/// Where a value is mentioned: the path of (block, step) from the body down.
type Path = Vec<(usize, usize)>;

struct Lower<'a> {
    plan: &'a Plan,
    values: Vec<Value>,
    dims: Dims,
    launches: Vec<Launch>,
    bound: BTreeSet<Sym>,
    mentions: Vec<Mentions>,
    /// Numbers given to blocks in the order they are entered; the same in every walk.
    blocks: usize,
    /// For each (block, step) the pool and host values whose last mention it is.
    ends: HashMap<(usize, usize), Vec<usize>>,
}

/// The innermost block that holds all mentions of a value, and its last step there.
#[derive(Clone, Debug, Default)]
struct Mentions {
    /// The common path prefix; the last element is (block, last step).
    path: Option<Path>,
    /// The first step of the body that mentions it.
    first: Option<usize>,
}

impl Mentions {
    fn add(&mut self, path: &Path) {
        self.first = self.first.or(path.first().map(|p| p.1));
        let Some(old) = &mut self.path else {
            self.path = Some(path.clone());
            return;
        };
        // Keep the levels at which both are in the same block; the last of these gets the later step.
        let same = old.iter().zip(path).take_while(|(a, b)| a == b).count();
        match (old.get(same).copied(), path.get(same)) {
            // Two steps of one block.
            (Some(a), Some(b)) if a.0 == b.0 => {
                old.truncate(same + 1);
                old[same].1 = a.1.max(b.1);
            }
            // Two branches of one step, or a step and something inside it.
            _ => old.truncate(same),
        }
    }
}

impl<'a> Lower<'a> {
    fn root(&self, v: ValueRef) -> usize {
        self.plan.root(v).index()
    }

    /// Values of the arena that are all of one output, on devices that work on host memory as it is.
    fn given_back(&self, shares: impl Fn(usize) -> bool) -> Vec<usize> {
        let plan = self.plan;
        let count = |v: ValueRef| -> Dim { plan.dims(v).iter().cloned().product() };
        let mut roots = Vec::new();
        for (o, port) in plan.outputs.iter().enumerate() {
            let (v, root) = (port.value.index(), self.root(port.value));
            let alone = plan.outputs.iter().filter(|p| self.root(p.value) == root).count() == 1
                && plan.state.iter().all(|s| s.output != o);
            let value = &self.values[root];
            let whole =
                value.dtype == self.values[v].dtype && count(port.value) == count(ValueRef(root as u32));
            if value.kind == Kind::Arena && value.fixed && alone && whole && shares(value.device) {
                roots.push(root);
            }
        }
        roots
    }

    fn intern(&mut self, dim: &Dim) -> DimId {
        self.dims.intern(dim, &|s| self.bound.contains(&s))
    }

    fn mention_all(&mut self, block: &Block, path: &mut Path) {
        let number = self.blocks;
        self.blocks += 1;
        for (i, step) in block.steps.iter().enumerate() {
            path.push((number, i));
            for v in step.values() {
                let root = self.root(v);
                self.mentions[root].add(path);
            }
            for inner in step.blocks() {
                self.mention_all(inner, path);
            }
            path.pop();
        }
    }

    /// Lowers a block; `defined` tells which pool values have memory when it starts, and after it.
    fn block(&mut self, block: &Block, defined: &mut [bool]) -> Result<LBlock, RuntimeError> {
        let number = self.blocks;
        self.blocks += 1;
        let mut out = LBlock::default();
        let mut last_of_group = HashMap::new();
        for (i, step) in block.steps.iter().enumerate() {
            if let StepKind::Launch { group, .. } = step.kind {
                last_of_group.insert(group, i);
            }
        }
        let mut started = BTreeSet::new();
        for (i, step) in block.steps.iter().enumerate() {
            let lost = |v: usize| RuntimeError::Defect {
                loc: step.loc.clone(),
                detail: format!("value {v} is used before anything is written to it"),
            };
            let is_pool = |l: &Self, v: usize| matches!(l.values[v].kind, Kind::Pool | Kind::Host);
            let mut defines = Vec::new();
            let mut writes = |l: &Self, v: ValueRef, defined: &mut [bool]| {
                let root = l.root(v);
                if is_pool(l, root) && !std::mem::replace(&mut defined[root], true) {
                    defines.push(root);
                }
            };
            let reads = |l: &Self, v: ValueRef, defined: &[bool]| {
                let root = l.root(v);
                if is_pool(l, root) && !defined[root] { Err(lost(root)) } else { Ok(root) }
            };
            let kind = match &step.kind {
                StepKind::Launch { artifact, entry, grid, args, group } => {
                    for v in step.values() {
                        writes(self, v, defined);
                    }
                    let grid = grid.each_ref().map(|d| self.intern(d));
                    let args: Vec<LArg> = args
                        .iter()
                        .map(|a| match a {
                            Arg::Buffer(v) => LArg::Buffer(v.index()),
                            Arg::Dim(d) => LArg::Dim(self.intern(d)),
                        })
                        .collect();
                    let varies = |a: &LArg| match a {
                        LArg::Buffer(v) => !self.values[*v].fixed,
                        LArg::Dim(d) => !self.dims.is_fixed(*d),
                    };
                    let varying = (0..args.len()).filter(|&i| varies(&args[i])).map(|i| i as u32).collect();
                    let fixed_grid = grid.iter().all(|&d| self.dims.is_fixed(d));
                    let ends = (started.insert(*group), last_of_group.get(group) == Some(&i));
                    self.launches.push(Launch {
                        artifact: *artifact,
                        entry: *entry,
                        grid,
                        args,
                        varying,
                        fixed_grid,
                        group: *group,
                        ends,
                    });
                    LKind::Launch(self.launches.len() - 1)
                }
                StepKind::Copy { src, dst } => {
                    reads(self, *src, defined)?;
                    writes(self, *dst, defined);
                    LKind::Copy(src.index(), dst.index())
                }
                StepKind::Assign { src, dst } => {
                    reads(self, *src, defined)?;
                    let root = self.root(*dst);
                    if root != dst.index() || !is_pool(self, root) {
                        return Err(RuntimeError::Defect {
                            loc: step.loc.clone(),
                            detail: format!(
                                "value {} cannot be assigned: it has no memory of its own",
                                dst.0
                            ),
                        });
                    }
                    defined[root] = true;
                    LKind::Assign(src.index(), root)
                }
                StepKind::WriteDim { dst, dim } => {
                    writes(self, *dst, defined);
                    LKind::WriteDim(dst.index(), self.intern(dim))
                }
                StepKind::Bind { sym, src } => {
                    reads(self, *src, defined)?;
                    LKind::Bind(*sym, src.index())
                }
                StepKind::BindDims { value, fresh } => {
                    reads(self, *value, defined)?;
                    LKind::BindDims(value.index(), fresh.clone())
                }
                StepKind::Guard { lhs, rhs, message } => {
                    LKind::Guard(self.intern(lhs), self.intern(rhs), message.clone())
                }
                StepKind::If { condition, then_block, else_block } => {
                    reads(self, *condition, defined)?;
                    let mut other = defined.to_vec();
                    let then_block = self.block(then_block, defined)?;
                    let else_block = self.block(else_block, &mut other)?;
                    defined.iter_mut().zip(other).for_each(|(d, o)| *d |= o);
                    LKind::If(condition.index(), then_block, else_block)
                }
                StepKind::While { condition, body } => {
                    reads(self, *condition, defined)?;
                    LKind::While(condition.index(), self.block(body, defined)?)
                }
                StepKind::Host { name, attributes, inputs, outputs } => {
                    for v in inputs {
                        reads(self, *v, defined)?;
                    }
                    for v in outputs {
                        let root = self.root(*v);
                        if root != v.index() {
                            return Err(RuntimeError::Defect {
                                loc: step.loc.clone(),
                                detail: "a host operation writes to an alias".to_string(),
                            });
                        }
                        if is_pool(self, root) {
                            defined[root] = true;
                        }
                    }
                    LKind::Host(HostStep {
                        name: name.clone(),
                        attributes: attributes.clone(),
                        inputs: inputs.iter().map(|v| v.index()).collect(),
                        outputs: outputs.iter().map(|v| v.index()).collect(),
                        results: outputs.iter().map(|v| self.plan.values[v.index()].ty.clone()).collect(),
                    })
                }
            };
            // Values of which nothing but this step's results remain are given back here.
            let drops = self.ends.remove(&(number, i)).unwrap_or_default();
            out.crosses |= step.wait.iter().any(|&w| block.steps[w].device != step.device);
            out.steps.push(LStep {
                kind,
                device: step.device,
                wait: step.wait.clone(),
                loc: step.loc.clone(),
                defines,
                drops,
            });
        }
        Ok(out)
    }
}

/// Symbols that steps bind.
fn bound_by_steps(block: &Block, out: &mut BTreeSet<Sym>) {
    for step in &block.steps {
        match &step.kind {
            StepKind::Bind { sym, .. } => {
                out.insert(*sym);
            }
            StepKind::BindDims { fresh, .. } => out.extend(fresh),
            _ => {}
        }
        for inner in step.blocks() {
            bound_by_steps(inner, out);
        }
    }
}

/// An input and one of its dims.
type InputDim = (usize, usize);

/// How the inputs' dims bind symbols: bare symbols first, then those that affine dims decide. And the dims left over.
fn input_dims(plan: &Plan) -> (Vec<(usize, usize, Sym)>, Vec<InputDim>) {
    let mut solve = Vec::new();
    let mut known = BTreeSet::new();
    let mut rest: Vec<InputDim> = Vec::new();
    for (i, port) in plan.inputs.iter().enumerate() {
        for (axis, dim) in plan.dims(port.value).iter().enumerate() {
            match dim.as_sym() {
                Some(s) if known.insert(s) => solve.push((i, axis, s)),
                _ => rest.push((i, axis)),
            }
        }
    }
    loop {
        let found = rest.iter().position(|&(i, axis)| {
            let syms = plan.dims(plan.inputs[i].value)[axis].symbols();
            syms.iter().filter(|s| !known.contains(s)).count() == 1
        });
        let Some(at) = found else { return (solve, rest) };
        let (i, axis) = rest.remove(at);
        let syms = plan.dims(plan.inputs[i].value)[axis].symbols();
        for s in syms.into_iter().filter(|s| !known.contains(s)).collect::<Vec<_>>() {
            known.insert(s);
            solve.push((i, axis, s));
        }
    }
}

impl Program {
    /// Prepares a plan, which is checked first. `shares` says whether a device works on host memory as it is.
    pub(crate) fn new(plan: Arc<Plan>, shares: impl Fn(usize) -> bool) -> Result<Program, RuntimeError> {
        plan.check()?;
        let (solve, rest) = input_dims(&plan);
        let mut by_steps = BTreeSet::new();
        bound_by_steps(&plan.body, &mut by_steps);
        let key: Vec<Sym> = solve.iter().map(|(_, _, s)| *s).collect();
        let bound = key.iter().copied().filter(|s| !by_steps.contains(s)).collect();
        let mut l = Lower {
            plan: &plan,
            values: Vec::new(),
            dims: Dims::default(),
            launches: Vec::new(),
            bound,
            mentions: vec![Mentions::default(); plan.values.len()],
            blocks: 0,
            ends: HashMap::new(),
        };
        for (i, v) in plan.values.iter().enumerate() {
            let root = l.root(ValueRef(i as u32));
            let kind = match plan.values[root].storage {
                Storage::Input => Kind::Input,
                Storage::Constant(k) => Kind::Constant(k),
                Storage::Packed { .. } => Kind::Packed,
                Storage::Arena { .. } => Kind::Arena,
                Storage::Host => Kind::Host,
                Storage::Pool | Storage::Alias(_) => Kind::Pool,
            };
            let dims: Vec<DimId> = plan.dims(ValueRef(i as u32)).iter().map(|d| l.intern(d)).collect();
            let dtype = if let Type::Tensor { dtype, .. } = &v.ty { Some(*dtype) } else { None };
            let fixed =
                matches!(kind, Kind::Constant(_) | Kind::Arena) && dims.iter().all(|&d| l.dims.is_fixed(d));
            l.values.push(Value { root, kind, device: v.device, dtype, dims, fixed, used: false });
        }
        for root in l.given_back(&shares) {
            for i in 0..l.values.len() {
                if l.values[i].root == root {
                    (l.values[i].kind, l.values[i].fixed) = (Kind::Output, false);
                }
            }
        }
        // Inputs are there before the first step: what only a loop mentions is needed in its every turn.
        for port in &plan.inputs {
            let root = l.root(port.value);
            l.mentions[root].add(&vec![(0, 0)]);
        }
        l.mention_all(&plan.body, &mut Vec::new());
        // Outputs live past the end.
        for port in &plan.outputs {
            let root = l.root(port.value);
            l.mentions[root].add(&vec![(0, usize::MAX)]);
        }
        for (v, m) in l.mentions.iter().enumerate() {
            l.values[v].used = m.path.is_some();
            if let (Kind::Pool | Kind::Host, Some(&end)) =
                (l.values[v].kind, m.path.as_ref().and_then(|p| p.last()))
            {
                l.ends.entry(end).or_default().push(v);
            }
        }
        let mut defined = vec![false; plan.values.len()];
        for port in &plan.inputs {
            defined[l.root(port.value)] = true;
        }
        l.blocks = 0;
        let body = l.block(&plan.body, &mut defined)?;
        for port in &plan.outputs {
            let root = l.root(port.value);
            if matches!(l.values[root].kind, Kind::Pool | Kind::Host) && !defined[root] {
                return Err(RuntimeError::Defect {
                    loc: Loc::default(),
                    detail: format!("nothing is written to output '{}'", port.name),
                });
            }
        }

        let mut arena = Vec::new();
        for (i, v) in plan.values.iter().enumerate() {
            let Storage::Arena { first, last } = v.storage else { continue };
            if l.values[i].kind == Kind::Output {
                continue;
            }
            if !l.values[i].fixed {
                return Err(RuntimeError::Defect {
                    loc: Loc::default(),
                    detail: format!("value {i} lies in the arena, but its size depends on data"),
                });
            }
            // A lifetime that is too short would give wrong results: trust the steps more than the plan.
            let used = &l.mentions[i];
            let first = used.first.map_or(first, |f| f.min(first));
            let last = used.path.as_ref().map_or(last, |p| p[0].1.max(last));
            arena.push(ArenaValue { value: i, first, last });
        }

        let mut uses = Vec::new();
        for (input, axis, sym) in solve {
            let dim = plan.dims(plan.inputs[input].value)[axis].clone();
            uses.push(DimUse::Solve { input, axis, sym, dim });
        }
        for (input, axis) in rest {
            let dim = l.intern(&plan.dims(plan.inputs[input].value)[axis]);
            uses.push(DimUse::Check { input, axis, dim });
        }
        let mut state = vec![None; plan.inputs.len()];
        for s in &plan.state {
            state[s.input] = Some(s.output);
        }
        let mut loads = BTreeSet::new();
        collect_loads(&body, &l.launches, &mut loads);
        let devices =
            plan.values.iter().map(|v| v.device).chain(max_device(&plan.body)).max().map_or(0, |d| d + 1);
        let Lower { values, dims, launches, .. } = l;
        Ok(Program {
            dims,
            values,
            arena,
            launches,
            body,
            input_dims: uses,
            key,
            devices,
            state,
            loads,
            plan,
        })
    }
}

fn max_device(block: &Block) -> Option<usize> {
    let deeper = |s: &Step| s.blocks().filter_map(max_device).max();
    block.steps.iter().flat_map(|s| [Some(s.device), deeper(s)]).flatten().max()
}

fn collect_loads(block: &LBlock, launches: &[Launch], out: &mut BTreeSet<(usize, usize)>) {
    for step in &block.steps {
        match &step.kind {
            LKind::Launch(i) => {
                out.insert((launches[*i].artifact, step.device));
            }
            LKind::If(_, a, b) => {
                collect_loads(a, launches, out);
                collect_loads(b, launches, out);
            }
            LKind::While(_, b) => collect_loads(b, launches, out),
            _ => {}
        }
    }
}
