//! What runs on the host in place of the chip.

use std::collections::BTreeSet;

use tongtu_graph::{Graph, Node, Op};
use tongtu_plan::plan::{Plan, StepKind, Storage, ValueRef};
use tongtu_tensor::dim::Dim;

use crate::check::finding;
use crate::memory;
use crate::report::{ChipReport, Placement, Support, Weight};

/// The user's operator that a node comes from: front ends write `path (Operator)` as its place.
pub(crate) fn operator(n: &Node) -> String {
    let name = match &n.op {
        Op::Composite { name, .. } if !name.is_empty() => name.as_str(),
        op => op.name(),
    };
    let place = n.loc.0.as_deref().unwrap_or_default();
    place.rsplit_once('(').and_then(|(_, t)| t.strip_suffix(')')).unwrap_or(name).to_string()
}

/// The user's operators in a graph, each once.
fn operators(graph: &Graph) -> String {
    let nodes = graph.nodes.iter().filter(|n| !matches!(n.op, Op::Constant { .. }));
    let mut all: Vec<String> = Vec::new();
    for op in nodes.map(operator) {
        if !all.contains(&op) {
            all.push(op);
        }
    }
    all.join(", ")
}

/// Everything of a plan that runs on the host: what is there by definition, and what the chip does not take. What is in a loop counts once.
pub fn of(plan: &Plan, size: &dyn Fn(&Dim) -> i64) -> Vec<Placement> {
    let mut out = Vec::new();
    let mut blocks = vec![&plan.body];
    while let Some(block) = blocks.pop() {
        for s in &block.steps {
            if let StepKind::Host { name, inputs, outputs, .. } = &s.kind {
                out.push(Placement {
                    op: name.clone(),
                    at: s.loc.0.as_deref().unwrap_or_default().to_string(),
                    place: "host".to_string(),
                    why: "strings and sequences are values of the host".to_string(),
                    bytes: inputs.iter().chain(outputs).map(|&v| memory::bytes(plan, v, size) as f64).sum(),
                });
            }
            blocks.extend(s.blocks());
        }
    }
    let hosted: BTreeSet<usize> = plan.hosted.iter().map(|h| h.group).collect();
    for h in &plan.hosted {
        let g = &plan.groups[h.group];
        out.push(Placement {
            op: operators(&g.graph),
            at: g.loc.0.as_deref().unwrap_or_default().to_string(),
            place: "host".to_string(),
            why: h.why.clone(),
            bytes: copied(plan, h.group, &hosted, size),
        });
    }
    out
}

/// Bytes that are copied for a group on the host, where all these groups are: its operands but for constants and what another of
/// them makes, and its results but for those that only others of them read.
pub(crate) fn copied(plan: &Plan, group: usize, hosted: &BTreeSet<usize>, size: &dyn Fn(&Dim) -> i64) -> f64 {
    let roots = |values: &[ValueRef]| values.iter().map(|&v| plan.root(v)).collect::<Vec<_>>();
    let made: BTreeSet<ValueRef> = hosted.iter().flat_map(|&h| roots(&plan.groups[h].outputs)).collect();
    let others = plan.groups.iter().enumerate().filter(|(i, _)| !hosted.contains(i));
    let mut needed: BTreeSet<ValueRef> = others.flat_map(|(_, g)| roots(&g.inputs)).collect();
    needed.extend(plan.outputs.iter().map(|p| plan.root(p.value)));
    let mut blocks = vec![&plan.body];
    while let Some(block) = blocks.pop() {
        for s in block.steps.iter() {
            if !matches!(s.kind, StepKind::Launch { .. }) {
                needed.extend(roots(&s.values()));
            }
            blocks.extend(s.blocks());
        }
    }
    let constant = |v: &ValueRef| {
        matches!(plan.values[plan.root(*v).index()].storage, Storage::Constant(_) | Storage::Packed { .. })
    };
    let g = &plan.groups[group];
    let inputs = g.inputs.iter().filter(|v| !constant(v) && !made.contains(&plan.root(**v)));
    let outputs = g.outputs.iter().filter(|v| needed.contains(&plan.root(**v)));
    let values: BTreeSet<ValueRef> = inputs.chain(outputs).copied().collect();
    values.into_iter().map(|v| memory::bytes(plan, v, size) as f64).sum()
}

/// Says of kernels, by their position, that they run on the host, and why.
pub(crate) fn host(report: &mut ChipReport, kernels: &[(usize, String)]) {
    report.findings.retain(|f| f.code != "M009");
    for (i, why) in kernels {
        let Some(k) = report.kernels.get_mut(*i) else { continue };
        (k.support, k.limit_us) = (Support::Host, None);
        let what = format!("{} runs on the host: {why}", k.name);
        report.findings.push(finding("M009", Weight::Reservation, what, &k.at));
    }
    let hosted = |k: &usize| kernels.iter().any(|(i, _)| i == k);
    for row in &mut report.ops {
        let all = !row.kernels.is_empty() && row.kernels.iter().all(hosted);
        if all || row.support == Support::Unsupported && row.kernels.iter().any(hosted) {
            if row.support != Support::Unsupported && row.support != Support::Host {
                row.how.push("in one kernel with what the chip does not take".to_string());
            }
            row.support = Support::Host;
        }
    }
}
