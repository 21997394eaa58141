//! The check: no device, no weights.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tongtu_chip::Chip;
use tongtu_compile::{Error, Options};
use tongtu_graph::{Graph, Module, Op};
use tongtu_plan::backend::{CompileError, Compiler};
use tongtu_plan::plan::{Block, Plan, StepKind};
use tongtu_tensor::dim::{Dim, Sym, Symbols};

use crate::report::{
    Bound, ChipReport, Finding, KernelReport, Limits, MemoryReport, OpReport, Placement, Size, Support,
    Total, Verdict, Weight,
};
use crate::survey::{self, Special, Survey, Surveyor};
use crate::{cost, memory, placement};

/// What a check is told.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Sizes of named dims; others are taken to be as small as they may be, at least 1.
    pub sizes: Vec<(String, i64)>,
    /// Whether what the chip cannot do may run on the host.
    pub allow_host: bool,
    /// Settings of the compiler.
    pub compile: Options,
}

/// A part of a model that its front end cannot take.
#[derive(Clone, Debug)]
pub struct Gap {
    /// The operator.
    pub op: String,
    /// Where it is.
    pub at: String,
    /// Why.
    pub why: String,
}

impl Settings {
    /// What a symbol is taken to be, and whether that was given.
    fn size(&self, symbols: &Symbols, sym: Sym) -> (i64, bool) {
        let plain = |n: &str| -> String {
            n.chars().map(|c| if c.is_ascii_alphanumeric() || "_.".contains(c) { c } else { '_' }).collect()
        };
        let name = symbols.name(sym).unwrap_or_default();
        match self.sizes.iter().find(|(n, _)| n == name || plain(n) == name) {
            Some((_, size)) => (*size, true),
            None => {
                let lower = symbols.get(sym).map_or(1, |s| s.lower.max(1));
                (lower, false)
            }
        }
    }

    /// The first size given that no dim of the model's inputs has.
    pub fn unknown(&self, module: &Module) -> Option<&str> {
        let known = |n: &str| {
            let one = Settings { sizes: vec![(n.to_string(), 1)], ..Settings::default() };
            one.open(module).iter().any(|s| s.given)
        };
        self.sizes.iter().map(|(n, _)| n.as_str()).find(|n| !known(n))
    }

    /// The sizes that a model's inputs leave open.
    pub fn open(&self, module: &Module) -> Vec<Size> {
        let g = &module.graph;
        let syms: BTreeSet<Sym> =
            g.inputs.iter().flat_map(|&v| g.dims(v)).flat_map(|d| d.symbols()).collect();
        let size = |s: Sym| {
            let (size, given) = self.size(&module.symbols, s);
            Size { name: module.symbols.name(s).unwrap_or_default().to_string(), size, given }
        };
        syms.into_iter().map(size).collect()
    }
}

pub(crate) fn finding(code: &str, weight: Weight, what: impl Into<String>, at: impl Into<String>) -> Finding {
    let fix = crate::codes::find(code).map_or("", |c| c.fix).to_string();
    Finding { code: code.to_string(), weight, what: what.into(), at: at.into(), fix }
}

/// The report on a model of which its front end can take nothing.
pub fn gaps(chip: &Chip, gaps: &[Gap]) -> ChipReport {
    with_gaps(empty(chip), gaps, 0)
}

/// Adds to the report on what a front end can take of a model the parts that it cannot, and how many operations nothing is known of, as
/// they need results of these.
pub fn with_gaps(mut report: ChipReport, gaps: &[Gap], behind: usize) -> ChipReport {
    let lacking = |g: &Gap| finding("M002", Weight::Failure, format!("{}: {}", g.op, g.why), &g.at);
    report.findings.splice(0..0, gaps.iter().map(lacking));
    for g in gaps {
        report.ops.retain(|row| row.at != g.at);
        report.ops.push(OpReport {
            op: g.op.clone(),
            at: g.at.clone(),
            support: Support::Unsupported,
            how: vec![g.why.clone()],
            kernels: Vec::new(),
        });
    }
    if behind > 0 {
        let what =
            format!("{behind} operations need results of these, whose types the file does not declare");
        report.findings.push(finding("M015", Weight::Note, what, ""));
    }
    report.settle()
}

fn empty(chip: &Chip) -> ChipReport {
    ChipReport {
        chip: chip.name.clone(),
        title: chip.title.clone(),
        verdict: Verdict::Works,
        findings: Vec::new(),
        ops: Vec::new(),
        kernels: Vec::new(),
        placement: Vec::new(),
        memory: MemoryReport::default(),
        limits: Limits::default(),
        total: Total::default(),
        proof: None,
    }
}

/// Holds a model against a chip. Weights may be absent.
///
/// # Errors
/// A broken graph.
pub fn check(
    module: &Module,
    chip: &Chip,
    compiler: &dyn Compiler,
    settings: &Settings,
) -> Result<ChipReport, Error> {
    let mut report = empty(chip);
    let mut ops = user_ops(module);
    let surveyor = Surveyor::new(compiler);
    let (plan, errors) = tongtu_compile::outline(module.clone(), &surveyor, chip, &settings.compile)?;
    let size = |d: &Dim| {
        let given = |s: Sym| Some(settings.size(&plan.symbols, s).0);
        d.eval(&given).unwrap_or(1)
    };
    report.memory = memory::report(&plan, chip, &size);
    report.limits = cost::limits(chip, memory::working_set(&report.memory));
    let uses = Uses::of(&plan);
    kernels(&mut report, &mut ops, &plan, chip, &uses, &size);
    for error in errors {
        refuse(&mut report, &mut ops, error);
    }
    report.placement = placement::of(&plan, &size);
    report.placement.iter().for_each(|p| ops.note(&p.at, Support::Host, None));
    report.ops = ops.rows;
    unsupported(&mut report, &plan, settings, &size);
    remarks(&mut report, chip);
    let assumed: Vec<String> =
        settings.open(module).iter().filter(|s| !s.given).map(|s| format!("{}={}", s.name, s.size)).collect();
    if !assumed.is_empty() {
        let what = format!("figures are for sizes that were not given: {}", assumed.join(", "));
        report.findings.push(finding("M014", Weight::Note, what, ""));
    }
    total(&mut report);
    Ok(report.settle())
}

/// The operations of the user's model by their place.
struct Ops {
    rows: Vec<OpReport>,
    by_place: HashMap<String, usize>,
}

impl Ops {
    fn at(&mut self, place: &str) -> Option<&mut OpReport> {
        self.by_place.get(place).map(|&i| &mut self.rows[i])
    }
    /// Notes how one gets to the chip; the worst stays.
    fn note(&mut self, place: &str, support: Support, how: Option<String>) {
        if let Some(row) = self.at(place) {
            row.support = row.support.max(support);
            row.how.extend(how.filter(|h| !row.how.contains(h)));
        }
    }
}

fn user_ops(module: &Module) -> Ops {
    let mut ops = Ops { rows: Vec::new(), by_place: HashMap::new() };
    collect(&module.graph, &mut ops);
    ops
}

fn collect(graph: &Graph, ops: &mut Ops) {
    for n in &graph.nodes {
        if let (Some(place), false) = (&n.loc.0, matches!(n.op, Op::Constant { .. } | Op::DimValue { .. }))
            && !ops.by_place.contains_key(&**place)
        {
            ops.by_place.insert(place.to_string(), ops.rows.len());
            ops.rows.push(OpReport {
                op: placement::operator(n),
                at: place.to_string(),
                support: Support::Folded,
                how: Vec::new(),
                kernels: Vec::new(),
            });
        }
        match &n.op {
            Op::If { then_branch, else_branch, .. } => {
                collect(then_branch, ops);
                collect(else_branch, ops);
            }
            Op::While { body, .. } => collect(body, ops),
            _ => {}
        }
    }
}

/// The launches of each group, and whether they are in a loop or branch.
struct Uses {
    launches: BTreeMap<usize, Vec<usize>>,
    inside: BTreeSet<usize>,
}

impl Uses {
    fn of(plan: &Plan) -> Uses {
        let mut uses = Uses { launches: BTreeMap::new(), inside: BTreeSet::new() };
        uses.block(&plan.body, false);
        uses
    }
    fn block(&mut self, block: &Block, inside: bool) {
        for s in &block.steps {
            if let StepKind::Launch { artifact, group, .. } = s.kind {
                self.launches.entry(group).or_default().push(artifact);
                if inside {
                    self.inside.insert(group);
                }
            }
            s.blocks().for_each(|b| self.block(b, true));
        }
    }
}

/// Which operation of a graph an instruction is the work of.
fn stems_from(op: &Op, instruction: &str) -> bool {
    match instruction {
        "mma" | "mma_scaled" | "fma" => matches!(op, Op::Contract { .. } | Op::Conv { .. } | Op::Fma {}),
        "reduce" => matches!(op, Op::Reduce { .. } | Op::WindowReduce { .. }),
        name => op.name() == name,
    }
}

fn kernels(
    report: &mut ChipReport,
    ops: &mut Ops,
    plan: &Plan,
    chip: &Chip,
    uses: &Uses,
    size: &dyn Fn(&Dim) -> i64,
) {
    let surveys: Vec<Option<Survey>> = plan.artifacts.iter().map(Survey::of).collect();
    for (i, group) in plan.groups.iter().enumerate() {
        let launches = uses.launches.get(&i).map_or(&[][..], Vec::as_slice);
        let mut all = Survey::default();
        for s in launches.iter().filter_map(|&a| surveys[a].as_ref()) {
            all.special.extend(s.special.iter().cloned());
            all.products.extend(s.products.iter().cloned());
            all.dtype.clone_from(&s.dtype);
            if s.scratch.as_ref().map(|s| s.need) > all.scratch.as_ref().map(|s| s.need) {
                all.scratch.clone_from(&s.scratch);
            }
        }
        let mut support = Support::Native;
        for node in group.graph.nodes.iter().filter(|n| !matches!(n.op, Op::Constant { .. })) {
            let place = node.loc.0.as_deref().unwrap_or_default();
            ops.note(place, Support::Native, None);
            if let Some(row) = ops.at(place)
                && row.kernels.last() != Some(&i)
            {
                row.kernels.push(i);
            }
        }
        for s in &all.special {
            support = support.max(s.support);
            blame(ops, &group.graph, s);
        }
        let (flops, bytes) = (size(&group.flops).max(0) as f64, size(&group.bytes).max(0) as f64);
        let (unit, rate) = cost::unit(chip, &report.limits, &all);
        let (limit_us, bound) = cost::least(flops, bytes, rate, report.limits.bandwidth);
        report.kernels.push(KernelReport {
            name: group.name.clone(),
            at: group.loc.0.as_deref().unwrap_or_default().to_string(),
            support,
            launches: launches.len(),
            inside: uses.inside.contains(&i),
            flops,
            bytes,
            unit,
            bound,
            limit_us,
            measured_us: None,
            scratch: all.scratch,
            verified: None,
        });
    }
}

/// Notes an instruction at the operations that it is the work of, or at all of the kernel's.
fn blame(ops: &mut Ops, graph: &Graph, s: &Special) {
    let how = format!("{} of {}: {}", s.name, s.dtype, s.how);
    let nodes = || graph.nodes.iter().filter(|n| !matches!(n.op, Op::Constant { .. }));
    let own = nodes().any(|n| stems_from(&n.op, &s.name));
    for n in nodes().filter(|n| !own || stems_from(&n.op, &s.name)) {
        ops.note(n.loc.0.as_deref().unwrap_or_default(), s.support, Some(how.clone()));
    }
}

/// What does not compile.
fn refuse(report: &mut ChipReport, ops: &mut Ops, error: Error) {
    let text = error.to_string();
    match error {
        Error::Backend { group, loc, error } if matches!(*error, CompileError::TooLarge { .. }) => {
            let what = format!("{group}: by an estimate, {error}");
            let at = loc.0.as_deref().unwrap_or_default();
            report.findings.push(finding("M004", Weight::Reservation, what, at));
        }
        Error::Unsupported { op, loc, detail } => {
            ops.note(
                loc.0.as_deref().unwrap_or_default(),
                Support::Unsupported,
                Some(format!("{op}: {detail}")),
            );
        }
        _ => report.findings.push(finding("M001", Weight::Failure, text, "")),
    }
}

/// Why not, among what is said of instructions (`NAME of TYPE: REASON`): each reason once, with the instructions.
fn reasons<'a>(how: impl IntoIterator<Item = &'a String>) -> String {
    let mut all: Vec<(&str, Vec<&str>)> = Vec::new();
    for (what, why) in how.into_iter().map(|h| h.split_once(": ").unwrap_or(("", h))) {
        if why == survey::COMPOSED || why.ends_with(survey::HELD) {
            continue;
        }
        match all.iter_mut().find(|a| a.0 == why) {
            Some((_, names)) if !names.contains(&what) => names.push(what),
            Some(_) => {}
            None => all.push((why, vec![what])),
        }
    }
    let one = |(why, names): (&str, Vec<&str>)| format!("{why} ({})", names.join(", "));
    all.into_iter().map(one).collect::<Vec<_>>().join("; ")
}

/// What the chip cannot do: failures, or places on the host.
fn unsupported(report: &mut ChipReport, plan: &Plan, settings: &Settings, size: &dyn Fn(&Dim) -> i64) {
    let hosted = |k: &usize| settings.allow_host && report.kernels[*k].support == Support::Unsupported;
    let mut refused: BTreeMap<usize, (Vec<&str>, Vec<&String>)> = BTreeMap::new();
    for row in report.ops.iter().filter(|r| r.support == Support::Unsupported) {
        match row.kernels.iter().find(|k| hosted(k)) {
            Some(&k) => {
                let (ops, why) = refused.entry(k).or_default();
                ops.push(&row.op);
                why.extend(&row.how);
            }
            None => {
                let what = format!("{}: {}", row.op, reasons(&row.how));
                report.findings.push(finding("M001", Weight::Failure, what, &row.at));
            }
        }
    }
    let mut kernels = Vec::new();
    let all: BTreeSet<usize> = refused.keys().copied().collect();
    for (k, (ops, why)) in refused {
        let why = reasons(why);
        report.placement.push(Placement {
            op: ops.join(", "),
            at: report.kernels[k].at.clone(),
            place: "host".to_string(),
            why: why.clone(),
            bytes: placement::copied(plan, k, &all, size),
        });
        kernels.push((k, why));
    }
    placement::host(report, &kernels);
}

fn remarks(report: &mut ChipReport, chip: &Chip) {
    let mut types: BTreeMap<String, usize> = BTreeMap::new();
    for row in report.ops.iter().filter(|r| r.support == Support::Emulated) {
        let dtype =
            row.how.iter().filter_map(|h| h.split_once(": ")?.1.split_once(" is held")).map(|(d, _)| d);
        dtype
            .collect::<BTreeSet<_>>()
            .into_iter()
            .for_each(|d| *types.entry(d.to_string()).or_default() += 1);
    }
    for (d, n) in types {
        let what = format!("{} computes nothing in {d}: {n} operations convert around it", chip.name);
        report.findings.push(finding("M003", Weight::Reservation, what, ""));
    }
    let m = &report.memory;
    if let Some(l) = m.levels.iter().find(|l| l.kind == "memory" && l.fits == Some(false)) {
        let what = format!("{} holds {} bytes, {} are needed", l.level, l.capacity.unwrap_or(0), l.need);
        report.findings.push(finding("M005", Weight::Failure, what, ""));
    }
    if m.levels.iter().any(|l| l.kind == "memory" && l.fits.is_none()) {
        let what = format!("the chip file does not say how much memory {} has", chip.name);
        report.findings.push(finding("M006", Weight::Note, what, ""));
    }
    let lacking =
        report.kernels.iter().filter(|k| k.bound == Bound::Unknown && k.support != Support::Host).count();
    if lacking > 0 {
        let what = format!("{lacking} of {} kernels have no predicted time", report.kernels.len());
        report.findings.push(finding("M007", Weight::Note, what, ""));
    }
}

fn total(report: &mut ChipReport) {
    let k = &report.kernels;
    let on_chip = k.iter().filter(|k| k.support != Support::Host);
    let limit: Option<f64> = on_chip.map(|k| k.limit_us).sum();
    let bound = k.iter().filter(|k| k.bound == Bound::Compute).filter_map(|k| k.limit_us);
    let compute = bound.fold(0.0, |a, b| a + b);
    report.total = Total {
        flops: k.iter().map(|k| k.flops).sum(),
        bytes: k.iter().map(|k| k.bytes).sum(),
        limit_us: limit,
        compute_share: limit.filter(|l| *l > 0.0).map(|l| compute / l),
        measured_us: None,
    };
}
