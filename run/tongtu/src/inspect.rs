//! What a model is made of.

use serde::Serialize;
use tongtu_graph::infer::numel;
use tongtu_graph::{Graph, Node, Op, Type};
use tongtu_tensor::dim::{Dim, Symbols};

use crate::model::Model;

/// An input or output.
#[derive(Clone, Debug, Serialize)]
pub struct PortInfo {
    /// Its name.
    pub name: String,
    /// Its type, such as `f32[batch, 3, 224, 224]`.
    pub ty: String,
}

/// A symbolic size.
#[derive(Clone, Debug, Serialize)]
pub struct SymbolInfo {
    /// Its name.
    pub name: String,
    /// Least value.
    pub lower: i64,
    /// Greatest value.
    pub upper: Option<i64>,
}

/// What `tongtu inspect` tells.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// The model's name.
    pub model: String,
    /// The tool that wrote it.
    pub producer: String,
    /// Operator sets: domain and version.
    pub opsets: Vec<(String, i64)>,
    /// Inputs.
    pub inputs: Vec<PortInfo>,
    /// Outputs.
    pub outputs: Vec<PortInfo>,
    /// Symbolic sizes of the inputs.
    pub symbols: Vec<SymbolInfo>,
    /// The model's operators with their numbers.
    pub operators: Vec<(String, usize)>,
    /// Operations of the graph it becomes, composites counting as one, by name.
    pub operations: Vec<(String, usize)>,
    /// Elements of all weights.
    pub parameters: u64,
    /// Bytes of all weights.
    pub parameter_bytes: u64,
    /// Operations a run takes, a multiply-add counting as two: an expression of the symbols. Bodies of loops count once.
    pub flops: String,
    /// The same for given sizes, where all are known.
    pub flops_value: Option<i64>,
    /// Bytes of weights, inputs and outputs: what a run must move at least.
    pub bytes: String,
    /// The same for given sizes.
    pub bytes_value: Option<i64>,
}

/// A type for people: `f32[n, 4]`.
pub fn type_text(ty: &Type, symbols: &Symbols) -> String {
    let list = |dims: &[Dim]| {
        let dims: Vec<String> = dims.iter().map(|d| d.display(symbols).to_string()).collect();
        format!("[{}]", dims.join(", "))
    };
    match ty {
        Type::Tensor { dtype, dims } => format!("{dtype}{}", list(dims)),
        Type::Strings { dims } => format!("string{}", list(dims)),
        Type::Sequence(t) => format!("sequence({})", type_text(t, symbols)),
        Type::Optional(t) => format!("optional({})", type_text(t, symbols)),
        Type::Any => "any".to_string(),
    }
}

fn operands<'a>(graph: &'a Graph, node: &Node, i: usize) -> &'a [Dim] {
    node.inputs.get(i).map_or(&[], |&v| graph.dims(v))
}

/// Operations that a node takes.
fn node_flops(graph: &Graph, node: &Node) -> Dim {
    let out = node.outputs.first().map_or(Dim::from(0), |&v| numel(graph.dims(v)));
    match &node.op {
        Op::Contract { over, .. } => {
            let lhs = operands(graph, node, 0);
            let depth = over.iter().fold(Dim::from(1), |n, &(l, _)| &n * &lhs[l]);
            out * depth * 2
        }
        Op::Conv { spec, .. } => {
            let kernel = operands(graph, node, 1);
            let taps = spec.kernel.iter().zip(kernel).filter(|(r, _)| **r != tongtu_graph::ConvRole::N);
            out * taps.fold(Dim::from(1), |n, (_, d)| &n * d) * 2
        }
        Op::Unary(_) | Op::Binary(_) | Op::Compare(_) | Op::Select {} => out,
        Op::Fma {} => out * 2,
        Op::Reduce { .. } | Op::Scan { .. } => numel(operands(graph, node, 0)),
        Op::WindowReduce { spec, .. } => out * spec.window.iter().product::<i64>(),
        Op::If { then_branch, else_branch, .. } => flops(then_branch).max(&flops(else_branch)),
        Op::While { body, .. } | Op::Composite { body, .. } => flops(body),
        _ => Dim::from(0),
    }
}

/// Operations that a graph takes, loops counting one turn.
pub fn flops(graph: &Graph) -> Dim {
    graph.nodes.iter().map(|n| node_flops(graph, n)).sum()
}

fn bytes(graph: &Graph) -> Dim {
    let ports = graph.inputs.iter().chain(&graph.outputs);
    let size = |ty: &Type| match ty {
        Type::Tensor { dtype, dims } => (numel(dims) * i64::from(dtype.bits())).ceildiv(&8.into()),
        _ => Dim::from(0),
    };
    ports.map(|&v| size(graph.ty(v))).sum()
}

fn visit<'a>(graph: &'a Graph, f: &mut dyn FnMut(&'a Node)) {
    for node in &graph.nodes {
        f(node);
        match &node.op {
            Op::If { then_branch, else_branch, .. } => {
                visit(then_branch, f);
                visit(else_branch, f);
            }
            Op::While { body, .. } => visit(body, f),
            Op::Composite { body, .. } => {
                // A composite counts as one operation; only its weights are looked for.
                let mut constants = |n: &'a Node| {
                    if matches!(n.op, Op::Constant { .. }) {
                        f(n)
                    }
                };
                visit(body, &mut constants);
            }
            _ => {}
        }
    }
}

impl Model {
    /// What the model is made of.
    pub fn inspect(&self) -> Inspection {
        let module = self.module();
        let (graph, symbols) = (&module.graph, &module.symbols);
        let ports = |list: &[tongtu_onnx::Port]| {
            list.iter().map(|p| PortInfo { name: p.name.clone(), ty: type_text(&p.ty, symbols) }).collect()
        };
        let mut counts = std::collections::BTreeMap::new();
        let (mut parameters, mut parameter_bytes) = (0u64, 0u64);
        let mut seen = std::collections::HashSet::new();
        visit(graph, &mut |n| match &n.op {
            Op::Constant { value } => {
                if value.len() > 1 && seen.insert((value.bytes().as_ptr() as usize, value.nbytes())) {
                    parameters += value.len() as u64;
                    parameter_bytes += value.nbytes() as u64;
                }
            }
            Op::Composite { name, .. } if !name.is_empty() => *counts.entry(name.clone()).or_insert(0) += 1,
            op => *counts.entry(op.name().to_string()).or_insert(0) += 1,
        });
        let mut operations: Vec<(String, usize)> = counts.into_iter().collect();
        operations.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        let used: std::collections::BTreeSet<_> = graph
            .inputs
            .iter()
            .flat_map(|&v| graph.dims(v).iter().flat_map(|d| d.symbols()).collect::<Vec<_>>())
            .collect();
        let flops = flops(graph);
        let bytes = bytes(graph) + parameter_bytes as i64;
        Inspection {
            model: self.name().to_string(),
            producer: self.loaded().producer.clone(),
            opsets: self.opsets(),
            inputs: ports(&self.loaded().inputs),
            outputs: ports(&self.loaded().outputs),
            symbols: symbols
                .iter()
                .filter(|(s, _)| used.contains(s))
                .map(|(_, i)| SymbolInfo { name: i.name.clone(), lower: i.lower, upper: i.upper })
                .collect(),
            operators: self.loaded().operators.clone(),
            operations,
            parameters,
            parameter_bytes,
            flops_value: flops.as_const(),
            flops: flops.display(symbols).to_string(),
            bytes_value: bytes.as_const(),
            bytes: bytes.display(symbols).to_string(),
        }
    }
}
