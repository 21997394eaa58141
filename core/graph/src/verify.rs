//! What must hold of a module before it is evaluated or compiled.

use std::collections::HashSet;

use tongtu_tensor::dim::{Dim, Sym, Symbols};

use crate::error::GraphError;
use crate::graph::{Graph, Loc, Module, Node, Type, ValueId};
use crate::infer;
use crate::op::{AttrValue, Op};

/// Nesting of regions and composites.
const MAX_DEPTH: usize = 64;

/// Checks a module: single assignment in order, operand counts and types, declared result types against those that follow from the
/// operation, symbols bound before use, regions, state. All errors are listed, each with the operation and its origin.
///
/// # Errors
/// Everything that is wrong.
pub fn verify(module: &Module) -> Result<(), Vec<GraphError>> {
    let mut v = Verifier { symbols: &module.symbols, errors: Vec::new(), bound: HashSet::new() };
    v.graph(&module.graph, 0, &Loc::default());
    if v.errors.is_empty() { Ok(()) } else { Err(v.errors) }
}

struct Verifier<'a> {
    symbols: &'a Symbols,
    errors: Vec<GraphError>,
    bound: HashSet<Sym>,
}

/// Calls `f` with every dim of a type.
fn each_dim<'t>(ty: &'t Type, f: &mut dyn FnMut(&'t Dim)) {
    match ty {
        Type::Tensor { dims, .. } | Type::Strings { dims } => dims.iter().for_each(f),
        // Elements of sequences and optionals may have any dims.
        Type::Sequence(_) | Type::Optional(_) | Type::Any => {}
    }
}

/// Calls `f` with every dim of an attribute, those of graphs left out.
fn each_attribute_dim(value: &AttrValue, f: &mut dyn FnMut(&Dim)) {
    match value {
        AttrValue::Dim(d) => f(d),
        AttrValue::List(items) => items.iter().for_each(|v| each_attribute_dim(v, f)),
        _ => {}
    }
}

impl Verifier<'_> {
    fn structure(&mut self, op: &str, loc: &Loc, detail: impl Into<String>) {
        self.errors.push(GraphError::Structure { op: op.into(), loc: loc.clone(), detail: detail.into() });
    }

    /// Reports symbols of a dim that have no value yet.
    fn check_dim(&mut self, op: &str, loc: &Loc, d: &Dim) {
        for s in d.symbols() {
            match self.symbols.name(s) {
                None => self.structure(op, loc, format!("symbol {} is not declared", s.0)),
                Some(name) if !self.bound.contains(&s) => {
                    let name = name.to_string();
                    self.structure(op, loc, format!("symbol '{name}' is used before it is bound"));
                }
                Some(_) => {}
            }
        }
    }

    /// Binds the symbols that are dims by themselves, then checks all dims.
    fn bind_types(&mut self, op: &str, loc: &Loc, types: &[Type]) {
        for ty in types {
            each_dim(ty, &mut |d| self.bound.extend(d.as_sym()));
        }
        for ty in types {
            let mut dims = Vec::new();
            each_dim(ty, &mut |d| dims.push(d));
            dims.into_iter().for_each(|d| self.check_dim(op, loc, d));
        }
    }

    fn graph(&mut self, graph: &Graph, depth: usize, origin: &Loc) {
        let what = if graph.name.is_empty() { "graph" } else { &graph.name };
        if depth > MAX_DEPTH {
            return self.structure(what, origin, format!("graphs are nested more than {MAX_DEPTH} deep"));
        }
        let mut defined = vec![false; graph.values.len()];
        let exists = |v: ValueId| v.index() < graph.values.len();
        for &v in &graph.inputs {
            match defined.get_mut(v.index()) {
                None => self.structure(what, origin, format!("input {} is no value of the graph", v.0)),
                Some(true) => {
                    self.structure(what, origin, format!("input {} is listed twice", graph.value_name(v)));
                }
                Some(d) => *d = true,
            }
        }
        let types: Vec<Type> =
            graph.inputs.iter().filter(|v| exists(**v)).map(|&v| graph.ty(v).clone()).collect();
        self.bind_types(what, origin, &types);

        for node in &graph.nodes {
            let mut known = true;
            for &v in &node.inputs {
                if !defined.get(v.index()).copied().unwrap_or(false) {
                    let name = if exists(v) { graph.value_name(v) } else { v.0.to_string() };
                    self.structure(
                        node.op.name(),
                        &node.loc,
                        format!("operand {name} is used before its definition"),
                    );
                    known &= exists(v);
                }
            }
            for &v in &node.outputs {
                match defined.get_mut(v.index()) {
                    None => {
                        self.structure(
                            node.op.name(),
                            &node.loc,
                            format!("result {} is no value of the graph", v.0),
                        );
                        known = false;
                    }
                    Some(true) => {
                        self.structure(
                            node.op.name(),
                            &node.loc,
                            format!("{} is defined twice", graph.value_name(v)),
                        );
                    }
                    Some(d) => *d = true,
                }
            }
            if known {
                self.node(graph, node, depth);
            }
        }
        for &v in &graph.outputs {
            if !defined.get(v.index()).copied().unwrap_or(false) {
                self.structure(what, origin, format!("result {} has no definition", v.0));
            }
        }
        self.state(graph, what, origin);
    }

    fn state(&mut self, graph: &Graph, what: &str, origin: &Loc) {
        let (mut inputs, mut outputs) = (HashSet::new(), HashSet::new());
        for &(i, o) in &graph.state {
            match (graph.inputs.get(i), graph.outputs.get(o)) {
                (Some(a), Some(b)) if a.index() < graph.values.len() && b.index() < graph.values.len() => {
                    let (x, y) = (graph.ty(*a), graph.ty(*b));
                    if x.as_tensor().map(|t| t.0) != y.as_tensor().map(|t| t.0) || x.as_tensor().is_none() {
                        self.structure(what, origin, format!("state ({i}, {o}): the types differ"));
                    }
                }
                (Some(_), Some(_)) => {}
                _ => self.structure(
                    what,
                    origin,
                    format!("state ({i}, {o}): there is no such input or result"),
                ),
            }
            if !inputs.insert(i) || !outputs.insert(o) {
                self.structure(
                    what,
                    origin,
                    format!("state ({i}, {o}): the input or result has another state"),
                );
            }
        }
    }

    fn node(&mut self, graph: &Graph, node: &Node, depth: usize) {
        let (op, loc) = (node.op.name(), &node.loc);
        // Attributes of composites and host operations are the schedules' and the library's business, but for their symbols.
        for (_, value) in node.op.attrs() {
            let mut dims = Vec::new();
            each_attribute_dim(&value, &mut |d| dims.push(d.clone()));
            dims.iter().for_each(|d| self.check_dim(op, loc, d));
        }
        match &node.op {
            Op::Bind { sym } if !self.bound.insert(*sym) => {
                let name = self.symbols.name(*sym).unwrap_or_default().to_string();
                self.structure(op, loc, format!("symbol '{name}' is bound already"));
            }
            Op::If { then_branch, else_branch, .. } => {
                for g in [then_branch, else_branch] {
                    self.region(g, depth, loc);
                }
            }
            Op::While { body, .. } => self.region(body, depth, loc),
            // A definition shares the symbols of the graph around it: what it binds, the results may use.
            Op::Composite { body, .. } => self.graph(body, depth + 1, loc),
            _ => {}
        }
        let types: Vec<Type> = node.inputs.iter().map(|&v| graph.ty(v).clone()).collect();
        let results = match infer::infer(&node.op, &types, self.symbols, loc) {
            Ok(results) => results,
            Err(e) => return self.errors.push(e),
        };
        let declared: Vec<Type> = node.outputs.iter().map(|&v| graph.ty(v).clone()).collect();
        if results.len() != declared.len() {
            let detail = format!("has {} results, {} are declared", results.len(), declared.len());
            return self.errors.push(GraphError::Type { op: op.into(), loc: loc.clone(), detail });
        }
        for (i, (r, d)) in results.iter().zip(&declared).enumerate() {
            if !agrees(r, d) {
                let detail = format!("result {i} is {r:?}, {d:?} is declared");
                self.errors.push(GraphError::Type { op: op.into(), loc: loc.clone(), detail });
            }
        }
        match &node.op {
            Op::If { .. } | Op::While { .. } | Op::Host { .. } => self.bind_types(op, loc, &declared),
            _ => {
                for ty in &declared {
                    let mut dims = Vec::new();
                    each_dim(ty, &mut |d| dims.push(d));
                    dims.into_iter().for_each(|d| self.check_dim(op, loc, d));
                }
            }
        }
    }

    /// A region binds its inputs' symbols, and others, for itself only.
    fn region(&mut self, graph: &Graph, depth: usize, loc: &Loc) {
        let outside = self.bound.clone();
        self.graph(graph, depth + 1, loc);
        self.bound = outside;
    }
}

/// Whether a declared type is one that the inferred one may be.
fn agrees(inferred: &Type, declared: &Type) -> bool {
    match (inferred, declared) {
        (Type::Tensor { dtype: a, dims: x }, Type::Tensor { dtype: b, dims: y }) => {
            a == b && x.len() == y.len() && x.iter().zip(y).all(|(m, n)| infer::may_equal(m, n))
        }
        (Type::Strings { dims: x }, Type::Strings { dims: y }) => {
            x.len() == y.len() && x.iter().zip(y).all(|(m, n)| infer::may_equal(m, n))
        }
        (a, b) => a == b,
    }
}
