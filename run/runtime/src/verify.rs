//! Every kernel against the subgraph it implements, on its real inputs.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Serialize;
use tongtu_graph::eval::{Bindings, Comparison, Sampler, compare};
use tongtu_graph::{Graph, Loc, Module, Node, Op, ValueId};
use tongtu_plan::Plan;
use tongtu_tensor::{Num, Tensor};

use crate::context::{Mode, Result, Run};
use crate::session::Session;
use crate::value::Value;

/// Compiles a module of its own to a plan for the devices of the session under test.
pub type Recompile<'a> = &'a dyn Fn(&Module) -> std::result::Result<Plan, String>;

/// How much is verified.
#[derive(Clone)]
pub struct VerifyOptions<'a> {
    /// Elements compared of each result of each group; all if it has no more.
    pub elements: usize,
    /// Seed of the choice of elements.
    pub seed: u64,
    /// Times that a group is verified where it runs in a loop.
    pub calls: usize,
    /// Compiles single operations of a group that differs, to name the one at fault.
    pub recompile: Option<Recompile<'a>>,
}

impl Default for VerifyOptions<'_> {
    fn default() -> Self {
        VerifyOptions { elements: 256, seed: 1, calls: 2, recompile: None }
    }
}

/// An element that is furthest from the reference.
#[derive(Clone, Debug, Serialize)]
pub struct Worst {
    /// Which result.
    pub output: usize,
    /// Where in it.
    pub index: Vec<usize>,
    /// The reference's value.
    pub expected: f64,
    /// The error that the contract allows.
    pub bound: f64,
    /// What was computed.
    pub actual: f64,
}

/// An operation in a report.
#[derive(Clone, Debug, Serialize)]
pub struct OpReport {
    /// Its name.
    pub op: String,
    /// Where in the user's model.
    pub loc: String,
}

/// What was found out about a group that differs by compiling its operations one by one.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Culprit {
    /// This operation, compiled alone, differs too.
    Op {
        /// The operation.
        op: OpReport,
        /// Its worst element.
        worst: Option<Worst>,
    },
    /// Each operation alone is right: fusing them is at fault.
    Fusion,
    /// It could not be found out.
    Unknown(String),
}

/// One group.
#[derive(Clone, Debug, Serialize)]
pub struct GroupReport {
    /// Position in the plan's groups.
    pub group: usize,
    /// Its name.
    pub name: String,
    /// Where in the user's model.
    pub loc: String,
    /// Its operations.
    pub ops: Vec<OpReport>,
    /// Times it ran and was verified.
    pub verified_calls: usize,
    /// Times it ran.
    pub calls: usize,
    /// Elements compared.
    pub checked: usize,
    /// Elements its results have.
    pub elements: usize,
    /// Elements outside their bounds.
    pub failed: usize,
    /// Elements of which the reference excludes nothing.
    pub unbounded: usize,
    /// Greatest error over its bound; at most 1 where all is right.
    pub worst_ratio: f64,
    /// Greatest absolute error.
    pub worst_error: f64,
    /// The element of the worst ratio.
    pub worst: Option<Worst>,
    /// Why it could not be verified.
    pub error: Option<String>,
    /// What is at fault, where it differs.
    pub culprit: Option<Culprit>,
}

impl GroupReport {
    /// Whether it was verified and no element is outside its bound.
    pub fn passes(&self) -> bool {
        self.failed == 0 && self.error.is_none()
    }
}

/// All groups of a plan that ran.
#[derive(Clone, Debug, Serialize)]
pub struct VerifyReport {
    /// One entry for each group that ran.
    pub groups: Vec<GroupReport>,
}

impl VerifyReport {
    /// Whether every group passes.
    pub fn passes(&self) -> bool {
        self.groups.iter().all(GroupReport::passes)
    }
    /// Elements compared.
    pub fn checked(&self) -> usize {
        self.groups.iter().map(|g| g.checked).sum()
    }
    /// Greatest error over its bound.
    pub fn worst_ratio(&self) -> f64 {
        self.groups.iter().map(|g| g.worst_ratio).fold(0.0, f64::max)
    }
}

/// What a failing group was given.
struct Failure {
    inputs: Vec<Tensor>,
    bindings: Bindings,
}

/// Compares groups during a run.
pub(crate) struct Verifier {
    elements: usize,
    seed: u64,
    calls: usize,
    reports: HashMap<usize, GroupReport>,
    order: Vec<usize>,
    /// Inputs of the groups begun.
    open: HashMap<usize, Vec<Tensor>>,
    /// Contents of values when their group was done: by root value, bytes and their hash.
    written: HashMap<usize, (usize, u64)>,
    failures: HashMap<usize, Failure>,
}

/// Size and hash of a tensor's bytes (FNV-1a by words).
fn contents(t: &Tensor) -> (usize, u64) {
    let bytes = t.bytes();
    let word = |w: &[u8]| w.iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b));
    let hash =
        bytes.chunks(8).fold(0xcbf2_9ce4_8422_2325, |h: u64, w| (h ^ word(w)).wrapping_mul(0x0100_0000_01b3));
    (bytes.len(), hash)
}

/// A number from a seed and a position (SplitMix64).
fn mix(seed: u64, i: u64) -> u64 {
    let mut z = seed.wrapping_add((i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Positions to compare: all, or the first, the last and a random choice of the others.
fn choose(len: usize, most: usize, seed: u64) -> Vec<usize> {
    if len <= most {
        return (0..len).collect();
    }
    let mut chosen: Vec<usize> =
        (0..most.saturating_sub(2)).map(|i| (mix(seed, i as u64) % len as u64) as usize).collect();
    chosen.extend([0, len - 1]);
    chosen.sort_unstable();
    chosen.dedup();
    chosen
}

fn coordinates(mut i: usize, shape: &[usize]) -> Vec<usize> {
    let mut out = vec![0; shape.len()];
    for (o, &n) in out.iter_mut().zip(shape).rev() {
        *o = i % n.max(1);
        i /= n.max(1);
    }
    out
}

/// Compares one result; gives the comparison and its worst element.
fn check(
    sampler: &Sampler<'_>,
    output: usize,
    actual: &Tensor,
    most: usize,
    seed: u64,
) -> std::result::Result<(Comparison, Option<Worst>), String> {
    let chosen = choose(actual.len(), most, seed);
    let reference = sampler.elements(output, &chosen).map_err(|e| e.to_string())?;
    let values: Vec<Num> = chosen.iter().map(|&i| actual.get_linear(i)).collect();
    let c = compare(&reference, &values);
    let worst = c.worst.map(|(i, r, a)| Worst {
        output,
        index: coordinates(chosen[i], actual.shape()),
        expected: r.value.to_f64(),
        bound: r.err,
        actual: a.to_f64(),
    });
    Ok((c, worst))
}

fn op_name(op: &Op) -> String {
    match op {
        Op::Composite { name, .. } if !name.is_empty() => name.clone(),
        op => op.name().to_string(),
    }
}

fn op_report(node: &Node) -> OpReport {
    OpReport { op: op_name(&node.op), loc: node.loc.to_string() }
}

impl Verifier {
    fn new(options: &VerifyOptions<'_>) -> Verifier {
        Verifier {
            elements: options.elements,
            seed: options.seed,
            calls: options.calls,
            reports: HashMap::new(),
            order: Vec::new(),
            open: HashMap::new(),
            written: HashMap::new(),
            failures: HashMap::new(),
        }
    }

    /// The last launch of a group had nothing to do: then its results have no elements, unless earlier launches made them.
    pub(crate) fn skipped(&mut self, run: &mut Run<'_>, group: usize, loc: &Loc) -> Result<()> {
        if self.open.contains_key(&group) {
            return self.after(run, group, loc);
        }
        let outputs = &run.inner.program.plan.groups[group].outputs;
        let sizes = outputs.iter().map(|v| run.count(v.index(), loc)).collect::<Result<Vec<u64>>>()?;
        if sizes.iter().any(|&n| n > 0) {
            self.before(run, group, loc)?;
            if let Some(report) = self.reports.get_mut(&group) {
                report.error = Some("[R018] nothing was launched, but its results have elements".to_string());
            }
            self.open.remove(&group);
        }
        Ok(())
    }

    /// A step that is no launch has written to a value.
    pub(crate) fn touched(&mut self, root: usize) {
        self.written.remove(&root);
    }

    /// Before the first launch of a group: keeps its inputs, whose memory may be used again.
    pub(crate) fn before(&mut self, run: &mut Run<'_>, group: usize, loc: &Loc) -> Result<()> {
        let g = &run.inner.program.plan.groups[group];
        let order = &mut self.order;
        let report = self.reports.entry(group).or_insert_with(|| {
            order.push(group);
            let ops = g.graph.nodes.iter().filter(|n| !matches!(n.op, Op::Constant { .. }));
            GroupReport {
                group,
                name: g.name.clone(),
                loc: g.loc.to_string(),
                ops: ops.map(op_report).collect(),
                verified_calls: 0,
                calls: 0,
                checked: 0,
                elements: 0,
                failed: 0,
                unbounded: 0,
                worst_ratio: 0.0,
                worst_error: 0.0,
                worst: None,
                error: None,
                culprit: None,
            }
        });
        report.calls += 1;
        if report.verified_calls < self.calls {
            let inputs: Vec<Tensor> =
                g.inputs.iter().map(|v| run.read(v.index(), loc)).collect::<Result<_>>()?;
            for (v, t) in g.inputs.iter().zip(&inputs) {
                let root = run.inner.program.values[v.index()].root;
                let now = contents(t);
                let overwritten = self.written.get(&root).filter(|w| w.0 == now.0 && w.1 != now.1).is_some();
                if overwritten {
                    let name = run.name(v.index());
                    report.error =
                        Some(format!("[R017] its operand '{name}' was overwritten before it was read"));
                }
            }
            self.open.insert(group, inputs);
        }
        Ok(())
    }

    /// After its last launch: compares its results.
    pub(crate) fn after(&mut self, run: &mut Run<'_>, group: usize, loc: &Loc) -> Result<()> {
        let plan = run.inner.program.plan.clone();
        let g = &plan.groups[group];
        let Some(inputs) = self.open.remove(&group) else {
            for v in &g.outputs {
                self.touched(run.inner.program.values[v.index()].root);
            }
            return Ok(());
        };
        let mut bindings = Bindings::new();
        for (sym, _) in plan.symbols.iter() {
            if let Some(v) = run.s.syms[sym.0 as usize] {
                // Values were checked when they were bound.
                let _ = bindings.bind(&plan.symbols, sym, v);
            }
        }
        let actual: Vec<Tensor> =
            g.outputs.iter().map(|v| run.read(v.index(), loc)).collect::<Result<_>>()?;
        for (v, t) in g.outputs.iter().zip(&actual) {
            self.written.insert(run.inner.program.values[v.index()].root, contents(t));
        }
        let Some(report) = self.reports.get_mut(&group) else { return Ok(()) };
        report.verified_calls += 1;
        let sampler = Sampler::new(&plan.symbols, &g.graph, inputs.clone()).with_bindings(bindings.clone());
        for (output, actual) in actual.iter().enumerate() {
            let seed = mix(self.seed, (group * 8 + output) as u64);
            match check(&sampler, output, actual, self.elements, seed) {
                Ok((c, worst)) => {
                    report.elements += actual.len();
                    report.checked += c.checked;
                    report.failed += c.failed;
                    report.unbounded += c.unbounded;
                    report.worst_error = report.worst_error.max(c.worst_error);
                    if c.worst_ratio >= report.worst_ratio {
                        report.worst_ratio = c.worst_ratio;
                        report.worst = worst;
                    }
                    if c.failed > 0 && !self.failures.contains_key(&group) {
                        let (inputs, bindings) = (inputs.clone(), bindings.clone());
                        self.failures.insert(group, Failure { inputs, bindings });
                    }
                }
                Err(e) => report.error = Some(e),
            }
        }
        Ok(())
    }
}

impl Session {
    /// Runs the model, comparing every group of kernels with the reference interpreter on the inputs the group really had.
    ///
    /// A group that differs is taken apart where [`VerifyOptions::recompile`] allows: its operations are compiled and run one by
    /// one, and the first that differs alone is named. An operand that is not what its group left, because other steps wrote over
    /// it, is an error of the group that reads it.
    pub fn verify(
        &self,
        inputs: &[Value],
        options: &VerifyOptions<'_>,
    ) -> Result<(Vec<Value>, VerifyReport)> {
        let mut verifier = Verifier::new(options);
        let outputs = self.run_mode(inputs, &mut Mode::Verify(&mut verifier))?;
        let mut groups = Vec::new();
        for i in std::mem::take(&mut verifier.order) {
            let Some(mut report) = verifier.reports.remove(&i) else { continue };
            if let Some(failure) = verifier.failures.remove(&i) {
                report.culprit = options.recompile.map(|recompile| {
                    let graph = &self.plan().groups[i].graph;
                    self.take_apart(graph, failure, options, recompile).unwrap_or_else(Culprit::Unknown)
                });
            }
            groups.push(report);
        }
        Ok((outputs, VerifyReport { groups }))
    }

    /// Runs the operations of a graph one by one, each compiled alone, and finds the first that differs.
    fn take_apart(
        &self,
        graph: &Graph,
        failure: Failure,
        options: &VerifyOptions<'_>,
        recompile: Recompile<'_>,
    ) -> std::result::Result<Culprit, String> {
        let graph = tongtu_graph::inline_composites(graph);
        let plan = self.plan().clone();
        let mut bindings = failure.bindings;
        let mut values: HashMap<ValueId, Tensor> = graph.inputs.iter().copied().zip(failure.inputs).collect();
        for node in &graph.nodes {
            if let Op::Bind { sym } = node.op {
                let value = values.get(&node.inputs[0]).ok_or("an operand is missing")?;
                let n = value.to_i64_vec().map_err(|e| e.to_string())?;
                bindings.bind(&plan.symbols, sym, *n.first().ok_or("a size is empty")?)?;
                continue;
            }
            if let Op::Constant { value } = &node.op {
                values.insert(node.outputs[0], value.clone());
                continue;
            }
            let operands: Vec<Tensor> = node
                .inputs
                .iter()
                .map(|v| values.get(v).cloned().ok_or("an operand is missing"))
                .collect::<std::result::Result<_, _>>()?;
            let alone = alone(&graph, node, &operands, &plan, &bindings);
            let single = recompile(&alone).map_err(|e| format!("{} alone: {e}", op_name(&node.op)))?;
            let session =
                Session::new(Arc::new(single), self.devices().to_vec()).map_err(|e| e.to_string())?;
            let inputs: Vec<Value> = operands.iter().cloned().map(Value::Tensor).collect();
            let results = session.run(&inputs).map_err(|e| e.to_string())?;
            let sampler = Sampler::new(&alone.symbols, &alone.graph, operands);
            for (output, (v, result)) in node.outputs.iter().zip(results).enumerate() {
                let Value::Tensor(t) = result else { return Err("a result is no tensor".to_string()) };
                let (c, worst) = check(&sampler, output, &t, options.elements, options.seed)?;
                if c.failed > 0 {
                    return Ok(Culprit::Op { op: op_report(node), worst });
                }
                values.insert(*v, t);
            }
        }
        Ok(Culprit::Fusion)
    }
}

/// A module of one operation whose symbols have the values they had: all dims are numbers.
fn alone(graph: &Graph, node: &Node, operands: &[Tensor], plan: &Plan, bindings: &Bindings) -> Module {
    let mut out = Graph { name: op_name(&node.op), ..Graph::default() };
    for t in operands {
        let dims: Vec<tongtu_tensor::Dim> =
            t.shape().iter().map(|&n| tongtu_tensor::Dim::from(n as i64)).collect();
        out.add_input(tongtu_graph::Type::tensor(t.dtype(), dims), None);
    }
    let replace = |s: tongtu_tensor::Sym| bindings.get(s).map(tongtu_tensor::Dim::from);
    let fix = |ty: &tongtu_graph::Type| match ty {
        tongtu_graph::Type::Tensor { dtype, dims } => tongtu_graph::Type::Tensor {
            dtype: *dtype,
            dims: dims.iter().map(|d| d.substitute(&replace)).collect(),
        },
        other => other.clone(),
    };
    let outputs: Vec<ValueId> = node.outputs.iter().map(|v| out.add_value(fix(graph.ty(*v)), None)).collect();
    let attrs: Vec<(String, tongtu_graph::AttrValue)> =
        node.op.attrs().into_iter().map(|(n, v)| (n.to_string(), substitute(v, &replace))).collect();
    let op = Op::from_parts(node.op.name(), &attrs).unwrap_or_else(|_| node.op.clone());
    out.nodes.push(Node { op, inputs: out.inputs.clone(), outputs: outputs.clone(), loc: node.loc.clone() });
    out.outputs = outputs;
    Module { symbols: plan.symbols.clone(), graph: out }
}

/// An attribute with the symbols of its own dims replaced (those inside regions stay).
fn substitute(
    value: tongtu_graph::AttrValue,
    replace: &impl Fn(tongtu_tensor::Sym) -> Option<tongtu_tensor::Dim>,
) -> tongtu_graph::AttrValue {
    use tongtu_graph::AttrValue::*;
    match value {
        Dim(d) => Dim(d.substitute(replace)),
        List(items) => List(items.into_iter().map(|v| substitute(v, replace)).collect()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_distinct_and_inside() {
        assert_eq!(choose(5, 10, 1), [0, 1, 2, 3, 4]);
        let c = choose(100_000, 64, 7);
        assert!(c.len() > 50 && c.len() <= 64);
        assert!(c.windows(2).all(|w| w[0] < w[1]) && c[0] == 0 && c.last() == Some(&99_999));
        assert_eq!(c, choose(100_000, 64, 7));
        assert_ne!(c, choose(100_000, 64, 8));
    }

    #[test]
    fn coordinates_are_row_major() {
        assert_eq!(coordinates(23, &[2, 3, 4]), [1, 2, 3]);
        assert_eq!(coordinates(0, &[]), Vec::<usize>::new());
    }
}
