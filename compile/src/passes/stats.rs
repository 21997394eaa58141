//! What a graph consists of.

use std::collections::BTreeMap;

use tongtu_graph::{Graph, Module, Op};

/// Counts of a module's graph, regions and kept composites included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Nodes by operation; composites by their own name.
    pub operations: BTreeMap<String, usize>,
    /// Nodes in all.
    pub nodes: usize,
    /// Elements of constants in all.
    pub elements: usize,
    /// Bytes of constants in all.
    pub bytes: usize,
}

/// Counts what a module consists of.
pub fn stats(module: &Module) -> Stats {
    let mut s = Stats::default();
    add(&module.graph, &mut s);
    s
}

fn add(graph: &Graph, s: &mut Stats) {
    for n in &graph.nodes {
        s.nodes += 1;
        let name = match &n.op {
            Op::Composite { name, .. } if !name.is_empty() => name.clone(),
            op => op.name().to_string(),
        };
        *s.operations.entry(name).or_insert(0) += 1;
        match &n.op {
            Op::Constant { value } => {
                s.elements = s.elements.saturating_add(value.len());
                s.bytes = s.bytes.saturating_add(value.nbytes());
            }
            Op::If { then_branch, else_branch, .. } => {
                add(then_branch, s);
                add(else_branch, s);
            }
            Op::While { body, .. } | Op::Composite { body, .. } => add(body, s),
            _ => {}
        }
    }
}
