//! From a model file to a module.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use tongtu_graph::{Builder, Graph, Loc, Module, Type, ValueId};
use tongtu_tensor::dim::{Dim, Sym, Symbols};
use tongtu_tensor::{DType, Tensor};

use crate::ctx::{CallAttrs, Ctx, NodeCtx, Opsets};
use crate::data::{self, Source};
use crate::error::{Issue, OnnxError, Result};
use crate::fold;
use crate::ops::{Registry, strings};
use crate::proto::{
    AttributeProto, DimProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetId,
    SparseTensorProto, TypeProto, ValueInfo,
};
use crate::val::{Known, OptionalVal, SequenceVal, StringsVal, TensorVal, Val};
use crate::wire;

/// Most nodes lowered in one model, functions and unrolled bodies counted each time.
const MAX_NODES: usize = 200_000;

/// The newest version of the standard operator set whose meaning is known here.
pub const NEWEST_OPSET: i64 = 28;

/// Most problems reported at once.
const MAX_ISSUES: usize = 200;

/// Longest expression of a dim that is taken further; a longer one gets a name, bound when it runs.
const MAX_DIM: u32 = 64;

/// Deepest nesting of function calls.
const MAX_CALLS: usize = 64;

/// Deepest nesting of graphs.
const MAX_GRAPHS: usize = 24;

/// How to load a model.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Sizes for dims of the inputs, by their names in the model or, for unnamed ones, `INPUT_dimN`.
    pub dims: Vec<(String, i64)>,
    /// Contents for inputs, by name: such an input becomes a constant. One for which the file has a default takes these instead.
    pub constants: Vec<(String, Tensor)>,
    /// Whether weights in files that are not there are taken as [absent](Tensor::absent): enough for questions about sizes, not to run.
    pub without_weights: bool,
    /// Whether what can be taken of a model is loaded, for questions about it, where some of it can't be: results of the
    /// [nodes that can't](Loaded::gaps) become inputs where the file declares their types, and what these nodes need outputs.
    pub partial: bool,
}

/// An input or output of a loaded model.
#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    /// Its name in the model.
    pub name: String,
    /// Its type.
    pub ty: Type,
}

/// A loaded model.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The graph.
    pub module: Module,
    /// The model's inputs, in the order of the graph's.
    pub inputs: Vec<Port>,
    /// The model's outputs, in the order of the graph's.
    pub outputs: Vec<Port>,
    /// Free metadata of the model.
    pub metadata: Vec<(String, String)>,
    /// Operator sets by domain.
    pub opsets: Opsets,
    /// The tool that wrote the file, with its version.
    pub producer: String,
    /// Version of the file format.
    pub ir_version: i64,
    /// Number of nodes of each operator in the model's graphs and functions, by name.
    pub operators: Vec<(String, usize)>,
    /// The files it was read from: its own, then those of external data.
    pub files: Vec<PathBuf>,
    /// The nodes that can't be taken; none unless asked for a part of a model.
    pub gaps: Vec<Issue>,
    /// Number of nodes that need results of these of which no types are declared, or of one another: left out too.
    pub behind: usize,
}

/// What all graphs of one model share.
pub(crate) struct Shared<'m> {
    pub(crate) source: &'m Source,
    registry: Registry,
    functions: HashMap<(&'m str, &'m str, &'m str), &'m FunctionProto>,
    types: HashMap<&'m str, &'m TypeProto>,
    /// Of branches that differ in rank, the squeezing one is taken to run.
    pub(crate) squeezed: bool,
    /// Set where there are such branches.
    pub(crate) ambiguous: &'m Cell<bool>,
    issues: RefCell<Vec<Issue>>,
    nodes: Cell<usize>,
    graphs: Cell<usize>,
    /// What takes the place of nodes that can't be taken, where a part of a model is asked for.
    lost: Option<RefCell<Lost>>,
}

/// Nodes that can't be taken.
#[derive(Default)]
struct Lost {
    /// Dims of the model's inputs by name.
    dims: HashMap<String, Dim>,
    /// Their results, as inputs.
    inputs: Vec<Port>,
    /// What they need, with names.
    needed: Vec<(String, ValueId)>,
    /// Nodes that need results of theirs.
    behind: usize,
}

/// Loads a model file.
///
/// # Errors
/// A typed error with a code; everything unsupported in the model is listed at once.
pub fn load(path: impl AsRef<Path>, options: &Options) -> Result<Loaded> {
    let mut source = Source::open(path.as_ref())?;
    source.without = options.without_weights;
    let mut loaded = load_source(&source, options)?;
    loaded.files = std::iter::once(path.as_ref().to_path_buf()).chain(source.external()).collect();
    Ok(loaded)
}

/// Loads a model from memory; external data can't be read.
///
/// # Errors
/// As [`load`].
pub fn load_bytes(bytes: Vec<u8>, options: &Options) -> Result<Loaded> {
    load_source(&Source::memory(bytes), options)
}

/// The names of a model's inputs that a caller gives, in order: those that are not constants of the file.
///
/// # Errors
/// If the file can't be read.
pub fn input_names(path: impl AsRef<Path>) -> Result<Vec<String>> {
    let source = Source::open(path.as_ref())?;
    let model: ModelProto = wire::read(source.bytes.bytes())?;
    let Some(graph) = model.graph.as_deref() else {
        return Err(OnnxError::Invalid("the file has no graph".into()));
    };
    let constant: HashSet<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
    Ok(graph.input.iter().map(|i| i.name.clone()).filter(|n| !constant.contains(n.as_str())).collect())
}

fn domain_name(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}

fn opsets(imports: &[OperatorSetId]) -> Opsets {
    imports.iter().map(|o| (domain_name(&o.domain).to_string(), o.version)).collect()
}

fn load_source(source: &Source, options: &Options) -> Result<Loaded> {
    let ambiguous = Cell::new(false);
    match load_assuming(source, options, false, &ambiguous) {
        // Only one of the branches may fit what follows.
        Err(e) if ambiguous.get() => load_assuming(source, options, true, &ambiguous).map_err(|_| e),
        other => other,
    }
}

/// Loads a model; of branches that differ in rank, where one squeezes a dim if it is 1, `squeezed` tells which is taken to run.
/// Sets `ambiguous` where there are such.
fn load_assuming(
    source: &Source,
    options: &Options,
    squeezed: bool,
    ambiguous: &Cell<bool>,
) -> Result<Loaded> {
    let model: ModelProto = wire::read(source.bytes.bytes())?;
    let Some(graph) = model.graph.as_deref() else {
        return Err(OnnxError::Invalid("the file has no graph".into()));
    };
    if model.opset_import.is_empty() && model.ir_version >= 3 {
        return Err(OnnxError::Invalid("the file imports no operator set".into()));
    }
    let mut sets = opsets(&model.opset_import);
    sets.entry(String::new()).or_insert(1);
    if let Some(version) = sets.get("").filter(|&&v| v > NEWEST_OPSET) {
        return Err(OnnxError::Limit {
            what: format!(
                "operator set {version} is newer than {NEWEST_OPSET}, the newest that is supported"
            ),
        });
    }
    let functions = model
        .functions
        .iter()
        .map(|f| ((domain_name(&f.domain), f.name.as_str(), f.overload.as_str()), f))
        .collect();
    let shared = Shared {
        source,
        registry: Registry::new(),
        functions,
        types: declared_types(graph),
        squeezed,
        ambiguous,
        issues: RefCell::default(),
        nodes: Cell::new(0),
        graphs: Cell::new(0),
        lost: options.partial.then(RefCell::default),
    };
    match shared.check(graph, &sets) {
        Err(OnnxError::Unsupported(_)) if options.partial => {}
        checked => checked?,
    }

    let mut module = Module::default();
    let Module { symbols, graph: target } = &mut module;
    target.name = graph.name.clone();
    let mut cx = Ctx {
        b: Builder::new(target, symbols),
        shared: &shared,
        scope: HashMap::new(),
        opsets: Rc::new(sets.clone()),
        call: Rc::default(),
        path: String::new(),
        calls: Vec::new(),
        absent: HashSet::new(),
        bound: HashMap::new(),
        short: HashMap::new(),
    };
    cx.initializers(graph)?;
    let mut dims = InputDims::new(options);
    let mut inputs = Vec::new();
    for i in &graph.input {
        let given = options.constants.iter().find(|(n, _)| *n == i.name);
        if given.is_none() && cx.scope.contains_key(&i.name) {
            continue;
        }
        if let Some((_, t)) = given {
            let ty = i.ty.as_deref().and_then(|t| t.tensor.as_deref());
            let rank = ty.and_then(|t| t.shape.as_ref()).map(|s| s.dim.len());
            if ty.is_none_or(|ty| data::dtype(ty.elem_type) != Some(t.dtype()))
                || rank.is_some_and(|r| r != t.rank())
            {
                let given = format!("{}{:?}", t.dtype(), t.shape());
                return Err(OnnxError::Invalid(format!(
                    "input '{}' can't be {given}: the model declares another type",
                    i.name
                )));
            }
            cx.scope.insert(i.name.clone(), Val::constant(t.clone()));
            continue;
        }
        let ty = dims.ty(i.ty.as_deref(), &i.name, cx.b.symbols)?;
        let id = cx.b.graph.add_input(ty.clone(), Some(Arc::from(i.name.as_str())));
        let v = cx.out(id);
        cx.scope.insert(i.name.clone(), v);
        inputs.push(Port { name: i.name.clone(), ty });
    }
    if let Some(lost) = &shared.lost {
        lost.borrow_mut().dims = dims.by_param.clone();
    }
    dims.finish()?;
    cx.nodes(&graph.node)?;
    let mut outputs = Vec::new();
    for o in &graph.output {
        let Some(v) = cx.scope.get(&o.name).cloned() else {
            return Err(OnnxError::Invalid(format!("output '{}' is never defined", o.name)));
        };
        if matches!(v, Val::Poison) {
            continue;
        }
        let id = cx.id(&v)?;
        cx.b.graph.outputs.push(id);
        outputs.push(Port { name: o.name.clone(), ty: cx.b.graph.ty(id).clone() });
    }
    let issues = shared.issues.take();
    let lost = shared.lost.as_ref().map(RefCell::take).unwrap_or_default();
    inputs.extend(lost.inputs);
    for (name, id) in lost.needed {
        if !cx.b.graph.outputs.contains(&id) {
            cx.b.graph.outputs.push(id);
            outputs.push(Port { name, ty: cx.b.graph.ty(id).clone() });
        }
    }
    if !issues.is_empty() && (!options.partial || outputs.is_empty()) {
        return Err(match issues.as_slice() {
            [one] => OnnxError::Node(one.clone()),
            _ => OnnxError::Nodes(issues),
        });
    }
    Ok(Loaded {
        inputs,
        outputs,
        metadata: model.metadata_props.iter().map(|e| (e.key.clone(), e.value.clone())).collect(),
        opsets: sets,
        producer: format!("{} {}", model.producer_name, model.producer_version).trim().to_string(),
        ir_version: model.ir_version,
        operators: count_operators(&model, graph),
        files: Vec::new(),
        gaps: issues,
        behind: lost.behind,
        module,
    })
}

fn count_operators(model: &ModelProto, graph: &GraphProto) -> Vec<(String, usize)> {
    let mut counts = std::collections::BTreeMap::new();
    let mut lists: Vec<&[NodeProto]> = model.functions.iter().map(|f| f.node.as_slice()).collect();
    lists.push(&graph.node);
    while let Some(nodes) = lists.pop() {
        for n in nodes {
            let name = match domain_name(&n.domain) {
                "" => n.op_type.clone(),
                d => format!("{d}.{}", n.op_type),
            };
            *counts.entry(name).or_insert(0) += 1;
            lists.extend(subgraphs(n).map(|g| g.node.as_slice()));
        }
    }
    counts.into_iter().collect()
}

/// What a model says of the types of its values, subgraphs included.
fn declared_types(graph: &GraphProto) -> HashMap<&str, &TypeProto> {
    let mut types = HashMap::new();
    let mut graphs = vec![graph];
    while let Some(g) = graphs.pop() {
        for v in g.value_info.iter().chain(&g.output) {
            if let Some(t) = &v.ty {
                types.insert(v.name.as_str(), &**t);
            }
        }
        graphs.extend(g.node.iter().flat_map(subgraphs));
    }
    types
}

fn too_many_nodes() -> OnnxError {
    OnnxError::Limit {
        what: format!("the model has more than {MAX_NODES} nodes, functions put in place of their calls"),
    }
}

/// The graphs in a node's attributes.
pub(crate) fn subgraphs(n: &NodeProto) -> impl Iterator<Item = &GraphProto> {
    n.attribute.iter().flat_map(|a| a.g.as_deref().into_iter().chain(&a.graphs))
}

/// The types of the model's inputs, with dims by name.
struct InputDims<'o> {
    options: &'o Options,
    used: HashSet<&'o str>,
    names: BTreeSet<String>,
    by_param: HashMap<String, Dim>,
}

impl<'o> InputDims<'o> {
    fn new(options: &'o Options) -> Self {
        InputDims { options, used: HashSet::new(), names: BTreeSet::new(), by_param: HashMap::new() }
    }
    fn symbol(&mut self, name: &str, symbols: &mut Symbols) -> Dim {
        self.names.insert(name.to_string());
        if let Some((n, v)) = self.options.dims.iter().find(|(n, _)| n == name) {
            self.used.insert(n);
            return Dim::from(*v);
        }
        Dim::from(symbols.fresh(name))
    }
    fn dims(&mut self, p: &crate::proto::ShapeProto, name: &str, symbols: &mut Symbols) -> Vec<Dim> {
        let mut out = Vec::new();
        for (i, d) in p.dim.iter().enumerate() {
            out.push(match d.value {
                Some(v) if v > 0 || (v == 0 && d.param.is_empty() && p.dim.len() == 1) => Dim::from(v),
                // Some exporters give different unknown dims one placeholder that is no name.
                _ if d.param.chars().any(char::is_alphanumeric) => match self.by_param.get(&d.param) {
                    Some(known) => known.clone(),
                    None => {
                        let dim = self.symbol(&d.param, symbols);
                        self.by_param.insert(d.param.clone(), dim.clone());
                        dim
                    }
                },
                _ => self.symbol(&format!("{name}_dim{i}"), symbols),
            });
        }
        out
    }
    fn ty(&mut self, ty: Option<&TypeProto>, name: &str, symbols: &mut Symbols) -> Result<Type> {
        let bad = |what: &str| OnnxError::Invalid(format!("input '{name}' {what}"));
        let ty = ty.ok_or_else(|| bad("has no type"))?;
        if let Some(t) = &ty.tensor {
            let Some(shape) = &t.shape else { return Err(bad("has no shape; its rank must be known")) };
            let dims = self.dims(shape, name, symbols);
            if t.elem_type == data::STRING {
                return Ok(Type::Strings { dims });
            }
            let dtype = data::dtype(t.elem_type)
                .ok_or_else(|| bad(&format!("has element type {}, which is not supported", t.elem_type)))?;
            return Ok(Type::Tensor { dtype, dims });
        }
        element_type(ty, name, 0, symbols)
    }
    fn finish(self) -> Result<()> {
        match self.options.dims.iter().find(|(n, _)| !self.used.contains(n.as_str())) {
            None => Ok(()),
            Some((name, _)) => Err(OnnxError::UnknownDim {
                name: name.clone(),
                have: if self.names.is_empty() {
                    "none that may vary".into()
                } else {
                    self.names.into_iter().collect::<Vec<_>>().join(", ")
                },
            }),
        }
    }
}

/// The type of a value or of an element of one. Dims that are not numbers are fresh symbols; a tensor of unknown rank inside a
/// sequence or optional is [`Type::Any`].
pub(crate) fn element_type(ty: &TypeProto, name: &str, depth: usize, symbols: &mut Symbols) -> Result<Type> {
    let bad = || OnnxError::Invalid(format!("value '{name}' has a type that is not supported"));
    if depth > 8 {
        return Err(bad());
    }
    if let Some(s) = ty.sequence.as_ref().and_then(|s| s.elem_type.as_deref()) {
        return Ok(Type::Sequence(Box::new(element_type(s, name, depth + 1, symbols)?)));
    }
    if let Some(o) = ty.optional.as_ref().and_then(|s| s.elem_type.as_deref()) {
        return Ok(Type::Optional(Box::new(element_type(o, name, depth + 1, symbols)?)));
    }
    let t = ty.tensor.as_deref().ok_or_else(bad)?;
    let Some(shape) = &t.shape else { return if depth > 0 { Ok(Type::Any) } else { Err(bad()) } };
    let mut dims = Vec::new();
    for d in &shape.dim {
        dims.push(match d.value {
            Some(v) if v > 0 => Dim::from(v),
            _ => Dim::from(symbols.fresh(if d.param.is_empty() { "n" } else { &d.param })),
        });
    }
    if t.elem_type == data::STRING {
        return Ok(Type::Strings { dims });
    }
    Ok(Type::Tensor { dtype: data::dtype(t.elem_type).ok_or_else(bad)?, dims })
}

impl<'m> Shared<'m> {
    /// Looks up every node of the model, and lists what is not supported.
    fn check(&self, graph: &'m GraphProto, sets: &Opsets) -> Result<()> {
        let mut issues = Vec::new();
        let mut seen = HashSet::new();
        let mut lists: Vec<(&'m [NodeProto], Rc<Opsets>, String)> =
            vec![(&graph.node, Rc::new(sets.clone()), String::new())];
        while let Some((nodes, sets, path)) = lists.pop() {
            for (i, n) in nodes.iter().enumerate() {
                let domain = domain_name(&n.domain);
                let label = label(&path, n, i);
                if let Some(f) = self.function(n) {
                    if seen.insert(std::ptr::from_ref(f)) {
                        let mut own = opsets(&f.opset_import);
                        for (d, v) in sets.iter() {
                            own.entry(d.clone()).or_insert(*v);
                        }
                        lists.push((&f.node, Rc::new(own), format!("{}/", f.name)));
                    }
                } else {
                    let version = sets.get(domain).copied().unwrap_or(1);
                    if self.registry.find(domain, &n.op_type, version).is_none() && issues.len() < MAX_ISSUES
                    {
                        let prefix = if domain.is_empty() { String::new() } else { format!("{domain}.") };
                        issues.push(Issue {
                            op: format!("{prefix}{} (opset {version})", n.op_type),
                            node: label.clone(),
                            why: "this operator is not supported".into(),
                        });
                    }
                }
                for g in subgraphs(n) {
                    lists.push((&g.node, sets.clone(), format!("{label}/")));
                }
            }
        }
        if !issues.is_empty() {
            return Err(OnnxError::Unsupported(issues));
        }
        if self.expanded(&graph.node, 0, &mut HashMap::new()) > MAX_NODES {
            return Err(too_many_nodes());
        }
        Ok(())
    }
    /// Number of nodes with functions put in place of their calls. Functions nested too deep count as too many; those that call
    /// themselves are found when they are lowered.
    fn expanded(
        &self,
        nodes: &'m [NodeProto],
        depth: usize,
        known: &mut HashMap<*const FunctionProto, usize>,
    ) -> usize {
        if depth > 2 * MAX_CALLS {
            return usize::MAX;
        }
        let mut count = nodes.len();
        for n in nodes {
            if let Some(f) = self.function(n) {
                let key = std::ptr::from_ref(f);
                let inner = match known.get(&key) {
                    Some(&c) => c,
                    None => {
                        known.insert(key, 0);
                        let c = self.expanded(&f.node, depth + 1, known);
                        known.insert(key, c);
                        c
                    }
                };
                count = count.saturating_add(inner);
            }
            for g in subgraphs(n) {
                count = count.saturating_add(self.expanded(&g.node, depth + 1, known));
            }
        }
        count
    }
    /// Whether there is something that takes a node.
    fn known(&self, n: &'m NodeProto, opsets: &Opsets) -> bool {
        let domain = domain_name(&n.domain);
        let version = opsets.get(domain).copied().unwrap_or(1);
        self.function(n).is_some() || self.registry.find(domain, &n.op_type, version).is_some()
    }
    fn function(&self, n: &'m NodeProto) -> Option<&'m FunctionProto> {
        self.functions.get(&(domain_name(&n.domain), n.op_type.as_str(), n.overload.as_str())).copied()
    }
}

/// `path/name (Op)`; nodes without a name are called after their first result or position.
fn label(path: &str, n: &NodeProto, i: usize) -> String {
    match (n.name.as_str(), n.output.iter().find(|o| !o.is_empty())) {
        ("", Some(out)) => format!("{path}{out} ({})", n.op_type),
        ("", None) => format!("{path}#{i} ({})", n.op_type),
        (name, _) => format!("{path}{name} ({})", n.op_type),
    }
}

/// Names that a graph uses and does not define: what it captures.
pub(crate) fn free_names(g: &GraphProto) -> BTreeSet<&str> {
    let mut defined: HashSet<&str> = g.input.iter().map(|i| i.name.as_str()).collect();
    defined.extend(g.initializer.iter().map(|t| t.name.as_str()));
    defined.extend(g.node.iter().flat_map(|n| n.output.iter().map(String::as_str)));
    let mut free = BTreeSet::new();
    for n in &g.node {
        free.extend(n.input.iter().map(String::as_str).filter(|i| !i.is_empty() && !defined.contains(i)));
        for s in subgraphs(n) {
            free.extend(free_names(s).into_iter().filter(|i| !defined.contains(i)));
        }
    }
    free.extend(g.output.iter().map(|o| o.name.as_str()).filter(|o| !defined.contains(o)));
    free
}

/// The order in which to lower nodes: as they stand where that is right, else by what they need.
fn order(nodes: &[NodeProto]) -> Result<Vec<usize>> {
    let mut definer: HashMap<&str, usize> = HashMap::new();
    for (i, n) in nodes.iter().enumerate() {
        for o in n.output.iter().filter(|o| !o.is_empty()) {
            if definer.insert(o, i).is_some() {
                return Err(OnnxError::Invalid(format!("value '{o}' is defined twice")));
            }
        }
    }
    let needs: Vec<Vec<usize>> = nodes
        .iter()
        .map(|n| {
            let mut names: Vec<&str> = n.input.iter().map(String::as_str).collect();
            for g in subgraphs(n) {
                names.extend(free_names(g));
            }
            names.iter().filter_map(|x| definer.get(x).copied()).collect()
        })
        .collect();
    if needs.iter().enumerate().all(|(i, n)| n.iter().all(|&d| d < i)) {
        return Ok((0..nodes.len()).collect());
    }
    let mut missing: Vec<usize> = needs.iter().map(Vec::len).collect();
    let mut users: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
    for (i, n) in needs.iter().enumerate() {
        for &d in n {
            users[d].push(i);
        }
    }
    let mut ready: std::collections::BinaryHeap<std::cmp::Reverse<usize>> =
        (0..nodes.len()).filter(|&i| missing[i] == 0).map(std::cmp::Reverse).collect();
    let mut out = Vec::new();
    while let Some(std::cmp::Reverse(i)) = ready.pop() {
        out.push(i);
        for &u in &users[i] {
            missing[u] -= 1;
            if missing[u] == 0 {
                ready.push(std::cmp::Reverse(u));
            }
        }
    }
    if out.len() == nodes.len() {
        return Ok(out);
    }
    let stuck = (0..nodes.len()).find(|&i| missing[i] > 0).unwrap_or(0);
    Err(OnnxError::Invalid(format!("{} is part of a cycle", label("", &nodes[stuck], stuck))))
}

impl<'c, 'm> Ctx<'c, 'm> {
    /// Adds the constants of a graph to the scope.
    pub(crate) fn initializers(&mut self, g: &'m GraphProto) -> Result<()> {
        for t in &g.initializer {
            let v = self.read(t)?;
            self.scope.insert(t.name.clone(), v);
        }
        for s in &g.sparse_initializer {
            let name = s.values.as_ref().map_or("", |v| v.name.as_str());
            let v = Val::constant(self.dense(s, name)?);
            self.scope.insert(name.to_string(), v);
        }
        Ok(())
    }

    /// A sparse tensor with all its elements.
    pub(crate) fn dense(&self, s: &SparseTensorProto, name: &str) -> Result<Tensor> {
        let bad = |detail: &str| OnnxError::Tensor { name: name.into(), detail: detail.into() };
        let read = |p: Option<&crate::proto::TensorProto>| match p.map(|p| self.read(p)).transpose()? {
            Some(Val::Tensor(TensorVal { known: Known::Const(t), .. })) => Ok(t),
            _ => Err(bad("a sparse tensor needs values and indices of numbers")),
        };
        let (values, indices) = (read(s.values.as_deref())?, read(s.indices.as_deref())?);
        let shape: Vec<usize> = s
            .dims
            .iter()
            .map(|&d| usize::try_from(d).map_err(|_| bad("a dim is negative")))
            .collect::<Result<_>>()?;
        let n = shape.iter().try_fold(1usize, |a, &d| a.checked_mul(d)).filter(|&n| n <= 1 << 28);
        let n = n.ok_or_else(|| bad("a sparse tensor of this size is not supported"))?;
        if values.dtype().bits() < 8 {
            return Err(bad("sparse elements of less than a byte are not supported"));
        }
        let at = indices.to_i64_vec().map_err(|e| bad(&e.to_string()))?;
        let width = if indices.rank() == 2 { shape.len() } else { 1 };
        if at.len() != values.len().saturating_mul(width) {
            return Err(bad("the numbers of values and indices differ"));
        }
        let mut out = Tensor::zeros(values.dtype(), &shape)?;
        for k in 0..values.len() {
            let row = &at[k * width..(k + 1) * width];
            let linear = if indices.rank() == 2 {
                row.iter()
                    .zip(&shape)
                    .try_fold(0i64, |a, (&i, &d)| (0..d as i64).contains(&i).then(|| a * d as i64 + i))
            } else {
                Some(row[0])
            };
            let linear = linear.and_then(|l| usize::try_from(l).ok()).filter(|&l| l < n);
            let linear = linear.ok_or_else(|| bad("an index is outside"))?;
            out.set_code(linear, values.code(k));
        }
        Ok(out)
    }

    /// A named value of this graph or, inside a region, one captured before.
    fn lookup(&self, name: &str) -> Result<Val> {
        self.scope
            .get(name)
            .cloned()
            .ok_or_else(|| OnnxError::Invalid(format!("value '{name}' is never defined")))
    }

    /// Lowers nodes. Nodes that fail are noted, and their results are taken no further.
    pub(crate) fn nodes(&mut self, nodes: &'m [NodeProto]) -> Result<()> {
        for i in order(nodes)? {
            self.node(&nodes[i], i)?;
        }
        Ok(())
    }

    fn node(&mut self, node: &'m NodeProto, i: usize) -> Result<()> {
        let count = self.shared.nodes.get() + 1;
        self.shared.nodes.set(count);
        if count > MAX_NODES {
            return Err(too_many_nodes());
        }
        let label = label(&self.path, node, i);
        let mut inputs = Vec::new();
        for name in &node.input {
            let absent = name.is_empty() || (self.absent.contains(name) && !self.scope.contains_key(name));
            inputs.push(if absent { None } else { Some(self.lookup(name)?) });
        }
        let captured_poison = subgraphs(node)
            .any(|g| free_names(g).into_iter().any(|n| matches!(self.scope.get(n), Some(Val::Poison))));
        let poisoned = captured_poison || inputs.iter().any(|v| matches!(v, Some(Val::Poison)));
        let mut results = Vec::new();
        if !poisoned {
            let mut attrs = Vec::new();
            for a in &node.attribute {
                if a.ref_attr_name.is_empty() {
                    attrs.push((a.name.as_str(), a));
                } else if let Some(given) = self.call.get(a.ref_attr_name.as_str()) {
                    attrs.push((a.name.as_str(), *given));
                }
            }
            let domain = domain_name(&node.domain);
            let opset = self.opsets.get(domain).copied().unwrap_or(1);
            let loc = Loc::new(&label);
            let n = NodeCtx { node, opset, inputs, attrs, loc: loc.clone() };
            let outer = std::mem::replace(&mut self.b.loc, loc);
            let lowered = match self.shared.function(node) {
                Some(f) => self.call(f, &n),
                None => match self.shared.registry.find(domain, &node.op_type, opset) {
                    Some(lower) if domain.is_empty() && strings::moves(&n) => strings::moved(self, &n, lower),
                    Some(lower) => fold::node(self, &n, lower),
                    None => Err(n.unsupported("this operator is not supported")),
                },
            };
            self.b.loc = outer;
            match lowered {
                Ok(values) => results = values,
                Err(e) => {
                    self.note(e, &n)?;
                    results = self.in_place_of(&n)?;
                }
            }
        } else if let Some(lost) = &self.shared.lost
            && self.shared.known(node, &self.opsets)
        {
            lost.borrow_mut().behind += 1;
        }
        for (k, name) in node.output.iter().enumerate().filter(|(_, o)| !o.is_empty()) {
            let v = match results.get(k) {
                Some(v) => self.with_short_dims(v)?,
                None => Val::Poison,
            };
            self.name(&v, name);
            self.scope.insert(name.clone(), v);
        }
        Ok(())
    }

    /// The value, with symbols bound at run time for dims whose expressions are very long, as where many roundings of sizes
    /// follow one another.
    fn with_short_dims(&mut self, v: &Val) -> Result<Val> {
        let Val::Tensor(t) = v else { return Ok(v.clone()) };
        if t.dims.iter().all(|d| d.size() <= MAX_DIM) || !matches!(t.known, Known::No) {
            return Ok(v.clone());
        }
        let mut dims = Vec::new();
        for d in &t.dims {
            dims.push(match self.short.get(d) {
                _ if d.size() <= MAX_DIM => d.clone(),
                Some(s) => s.clone(),
                None => {
                    let value = self.b.dim_value(d.clone())?;
                    let s = self.bind(value)?;
                    self.short.insert(d.clone(), s.clone());
                    s
                }
            });
        }
        let id = self.id(v)?;
        let id = self.b.reshape(id, &dims)?;
        Ok(self.out(id))
    }

    /// Gives the graph's value the model's name, if it has none yet.
    fn name(&mut self, v: &Val, name: &str) {
        let id = match v {
            Val::Tensor(t) => t.id.get(),
            Val::Strings(s) => s.id.get(),
            Val::Sequence(SequenceVal::Host(id, _)) | Val::Optional(OptionalVal::Host(id, _)) => Some(*id),
            _ => None,
        };
        if let Some(id) = id {
            let slot = &mut self.b.graph.values[id.index()].name;
            if slot.is_none() {
                *slot = Some(Arc::from(name));
            }
        }
    }

    /// What takes the place of a node that can't be taken, where a part of the model is asked for: results as inputs of the graph, as
    /// far as the file declares their types.
    fn in_place_of(&mut self, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
        let shared = self.shared;
        let Some(lost) = shared.lost.as_ref().filter(|_| shared.graphs.get() == 0 && self.calls.is_empty())
        else {
            return Ok(Vec::new());
        };
        for (name, v) in n.node.input.iter().zip(&n.inputs) {
            if let Some(v @ Val::Tensor(TensorVal { known: Known::No, .. })) = v {
                let id = self.id(v)?;
                lost.borrow_mut().needed.push((name.clone(), id));
            }
        }
        let none = Options::default();
        let mut results = Vec::new();
        for name in &n.node.output {
            let declared = shared.types.get(name.as_str()).filter(|t| t.tensor.is_some());
            let mut dims = InputDims::new(&none);
            dims.by_param = std::mem::take(&mut lost.borrow_mut().dims);
            let ty = dims.ty(declared.copied(), name, self.b.symbols);
            lost.borrow_mut().dims = dims.by_param;
            let v = match ty {
                Ok(ty @ Type::Tensor { .. }) => {
                    let id = self.b.graph.add_input(ty.clone(), Some(Arc::from(name.as_str())));
                    lost.borrow_mut().inputs.push(Port { name: name.clone(), ty });
                    self.out(id)
                }
                _ => Val::Poison,
            };
            results.push(v);
        }
        Ok(results)
    }

    /// Notes an error of a node; errors that are not of one node are passed on.
    fn note(&mut self, e: OnnxError, n: &NodeCtx<'_>) -> Result<()> {
        let mut issues = self.shared.issues.borrow_mut();
        match e {
            OnnxError::Node(i) => issues.push(i),
            OnnxError::Nodes(more) | OnnxError::Unsupported(more) => issues.extend(more),
            e @ (OnnxError::Graph(_) | OnnxError::Host(_) | OnnxError::Invalid(_)) => {
                let OnnxError::Node(i) = n.bad(e.to_string()) else { return Ok(()) };
                issues.push(i);
            }
            other => return Err(other),
        }
        if issues.len() > MAX_ISSUES {
            return Err(OnnxError::Nodes(issues.drain(..).collect()));
        }
        Ok(())
    }

    /// Lowers a call of a function in place.
    fn call(&mut self, f: &'m FunctionProto, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
        let key = (domain_name(&f.domain), f.name.as_str(), f.overload.as_str());
        if self.calls.contains(&key) {
            return Err(n.bad(format!("function '{}' calls itself", f.name)));
        }
        if self.calls.len() >= MAX_CALLS {
            return Err(OnnxError::Limit { what: format!("functions are nested deeper than {MAX_CALLS}") });
        }
        if n.inputs.len() > f.input.len() {
            return Err(n.bad(format!("function '{}' takes {} operands", f.name, f.input.len())));
        }
        let mut call: CallAttrs<'m> =
            f.attribute_proto.iter().map(|a: &AttributeProto| (a.name.as_str(), a)).collect();
        for (name, a) in &n.attrs {
            call.insert(name, a);
        }
        let mut own = opsets(&f.opset_import);
        own.entry(String::new()).or_insert_with(|| self.opset(""));
        let mut scope = HashMap::new();
        for (i, name) in f.input.iter().enumerate() {
            if let Some(v) = n.opt(i) {
                scope.insert(name.clone(), v.clone());
            }
        }
        let scope = std::mem::replace(&mut self.scope, scope);
        let opsets = std::mem::replace(&mut self.opsets, Rc::new(own));
        let call = std::mem::replace(&mut self.call, Rc::new(call));
        let path = self.path.clone();
        self.path = format!("{}/", n.loc);
        self.calls.push(key);
        let absent =
            f.input.iter().enumerate().filter(|(i, _)| !n.has(*i)).map(|(_, name)| name.clone()).collect();
        let absent = std::mem::replace(&mut self.absent, absent);
        let done = self.nodes(&f.node);
        self.absent = absent;
        self.calls.pop();
        self.path = path;
        self.call = call;
        self.opsets = opsets;
        let inner = std::mem::replace(&mut self.scope, scope);
        done?;
        f.output
            .iter()
            .map(|o| {
                inner
                    .get(o)
                    .cloned()
                    .ok_or_else(|| n.bad(format!("function '{}' does not define '{o}'", f.name)))
            })
            .collect()
    }

    /// Lowers a graph of the model in place, with the given values for its inputs.
    pub(crate) fn inline(&mut self, g: &'m GraphProto, args: Vec<Val>) -> Result<Vec<Val>> {
        self.check_inputs(g, args.len())?;
        let names: BTreeSet<&str> = (g.input.iter().map(|i| &i.name))
            .chain(g.initializer.iter().map(|t| &t.name))
            .chain(g.node.iter().flat_map(|n| &n.output))
            .map(String::as_str)
            .collect();
        let hidden: Vec<(&str, Option<Val>)> = names.iter().map(|&n| (n, self.scope.remove(n))).collect();
        for (i, v) in g.input.iter().zip(args) {
            self.scope.insert(i.name.clone(), v);
        }
        let path = std::mem::replace(&mut self.path, format!("{}/", self.b.loc));
        let depth = self.enter()?;
        self.initializers(g)?;
        self.nodes(&g.node)?;
        self.shared.graphs.set(depth);
        self.path = path;
        let results = g.output.iter().map(|o| self.lookup(&o.name)).collect();
        for (name, v) in hidden {
            match v {
                Some(v) => self.scope.insert(name.to_string(), v),
                None => self.scope.remove(name),
            };
        }
        results
    }

    fn check_inputs(&self, g: &GraphProto, given: usize) -> Result<()> {
        if g.input.len() == given {
            return Ok(());
        }
        let have = g.input.len();
        Err(OnnxError::Invalid(format!("graph '{}' has {have} inputs where {given} are given", g.name)))
    }

    fn enter(&self) -> Result<usize> {
        let depth = self.shared.graphs.get();
        if depth >= MAX_GRAPHS {
            return Err(OnnxError::Limit { what: format!("graphs are nested deeper than {MAX_GRAPHS}") });
        }
        self.shared.graphs.set(depth + 1);
        Ok(depth)
    }

    /// Names of this scope that graphs capture.
    pub(crate) fn captures(&self, graphs: &[&'m GraphProto]) -> BTreeSet<&'m str> {
        graphs.iter().flat_map(|g| free_names(g)).filter(|n| self.scope.contains_key(*n)).collect()
    }

    /// Lowers a graph of the model as a region: a closed graph whose parameters have the given types, followed by one for
    /// each value that it captures by one of the `names`. `begin` gives the values of the model graph's inputs from the
    /// parameters, `finish` the region's results from the model graph's. Gives the region and the captured values of this graph.
    pub(crate) fn region(
        &mut self,
        g: &'m GraphProto,
        names: &BTreeSet<&'m str>,
        params: &[Type],
        begin: impl FnOnce(&mut Ctx<'_, 'm>, &[ValueId]) -> Result<Vec<Val>>,
        finish: impl FnOnce(&mut Ctx<'_, 'm>, &[ValueId], Vec<Val>) -> Result<Vec<ValueId>>,
    ) -> Result<(Arc<Graph>, Vec<ValueId>)> {
        let inside = self.b.symbols.len();
        let mut graph = Graph { name: g.name.clone(), ..Graph::default() };
        let params: Vec<ValueId> = params.iter().map(|t| graph.add_input(t.clone(), None)).collect();
        let mut captured = Vec::new();
        let mut scope = HashMap::new();
        for &name in names {
            if let Some(v) = self.scope.get(name).cloned() {
                let v = self.translate(&v, &mut graph, &mut captured, Some(name))?;
                scope.insert(name.to_string(), v);
            }
        }
        let mut inner = Ctx {
            b: Builder::new(&mut graph, self.b.symbols),
            shared: self.shared,
            scope,
            opsets: self.opsets.clone(),
            call: self.call.clone(),
            path: format!("{}/", self.b.loc),
            calls: self.calls.clone(),
            absent: self.absent.clone(),
            bound: HashMap::new(),
            short: HashMap::new(),
        };
        inner.b.loc = self.b.loc.clone();
        let depth = inner.enter()?;
        let args = begin(&mut inner, &params)?;
        inner.check_inputs(g, args.len())?;
        for (i, v) in g.input.iter().zip(args) {
            inner.scope.insert(i.name.clone(), v);
        }
        inner.initializers(g)?;
        inner.nodes(&g.node)?;
        let mut results = Vec::new();
        for o in &g.output {
            let v = inner.lookup(&o.name)?;
            if matches!(v, Val::Poison) {
                return Err(OnnxError::Nodes(Vec::new()));
            }
            results.push(inner.declared(v, o, inside)?);
        }
        let outputs = finish(&mut inner, &params, results)?;
        graph.outputs = outputs;
        self.shared.graphs.set(depth);
        Ok((Arc::new(graph), captured))
    }

    /// A value of this graph as one of a region: what is known is known there too, the rest becomes a parameter of
    /// the region, and the value to pass is added to `captured`.
    fn translate(
        &mut self,
        v: &Val,
        region: &mut Graph,
        captured: &mut Vec<ValueId>,
        name: Option<&str>,
    ) -> Result<Val> {
        let name: Option<Arc<str>> = name.map(Arc::from);
        let mut pass = |id: Option<ValueId>, ty: Type| {
            captured.extend(id);
            region.add_input(ty, name.clone())
        };
        let cell = |id| Rc::new(Cell::new(Some(id)));
        Ok(match v {
            Val::Tensor(t) => {
                let id = match &t.known {
                    Known::No => cell(pass(t.id.get(), v.ty())),
                    // A large constant that is a value already is passed rather than repeated.
                    Known::Const(c) if c.len() > 64 && t.id.get().is_some() => cell(pass(t.id.get(), v.ty())),
                    _ => Rc::default(),
                };
                Val::Tensor(TensorVal { dtype: t.dtype, dims: t.dims.clone(), known: t.known.clone(), id })
            }
            Val::Strings(s) => {
                let id = if s.known.is_some() { Rc::default() } else { cell(pass(s.id.get(), v.ty())) };
                Val::Strings(StringsVal { dims: s.dims.clone(), known: s.known.clone(), id })
            }
            Val::Sequence(SequenceVal::Host(id, t)) => {
                Val::Sequence(SequenceVal::Host(pass(Some(*id), t.clone()), t.clone()))
            }
            Val::Optional(OptionalVal::Host(id, t)) => {
                Val::Optional(OptionalVal::Host(pass(Some(*id), t.clone()), t.clone()))
            }
            Val::Sequence(SequenceVal::Known { element, items }) => {
                let items = items
                    .iter()
                    .map(|i| self.translate(i, region, captured, None))
                    .collect::<Result<Vec<_>>>()?;
                Val::Sequence(SequenceVal::Known { element: element.clone(), items: Rc::new(items) })
            }
            Val::Optional(OptionalVal::Known { element, item }) => {
                let item = match item {
                    Some(i) => Some(Box::new(self.translate(i, region, captured, None)?)),
                    None => None,
                };
                Val::Optional(OptionalVal::Known { element: element.clone(), item })
            }
            Val::Poison => Val::Poison,
        })
    }

    /// The same state for a graph of its own, without values.
    pub(crate) fn alone<'g>(&'g mut self, graph: &'g mut Graph) -> Ctx<'g, 'm> {
        let mut inner = Ctx {
            b: Builder::new(graph, self.b.symbols),
            shared: self.shared,
            scope: HashMap::new(),
            opsets: self.opsets.clone(),
            call: self.call.clone(),
            path: self.path.clone(),
            calls: Vec::new(),
            absent: HashSet::new(),
            bound: HashMap::new(),
            short: HashMap::new(),
        };
        inner.b.loc = self.b.loc.clone();
        inner
    }

    /// A result of a region with what the model declares of its dims, where the dims only show inside the region.
    fn declared(&mut self, v: Val, o: &ValueInfo, inside: usize) -> Result<Val> {
        let shape = o.ty.as_ref().and_then(|t| t.tensor.as_ref()).and_then(|t| t.shape.as_ref());
        let (Some(shape), Val::Tensor(t)) = (shape, &v) else { return Ok(v) };
        let fresh = |d: &Dim| d.symbols().iter().any(|s| s.0 as usize >= inside);
        if shape.dim.len() != t.dims.len() || !t.dims.iter().any(fresh) {
            return Ok(v);
        }
        let pick = |(d, p): (&Dim, &DimProto)| match p.value {
            Some(n) if n > 0 && fresh(d) => Dim::from(n),
            _ => d.clone(),
        };
        let dims: Vec<Dim> = t.dims.iter().zip(&shape.dim).map(pick).collect();
        let id = self.id(&v)?;
        let id = self.b.reshape(id, &dims)?;
        Ok(self.out(id))
    }

    /// What the model declares of the type of a node's result; an error where it says nothing useful.
    pub(crate) fn declared_type(&mut self, n: &NodeCtx<'_>, i: usize) -> Result<Type> {
        let declared = n.node.output.get(i).and_then(|o| self.shared.types.get(o.as_str()).copied());
        let known = declared.and_then(|t| element_type(t, &n.node.name, 0, self.b.symbols).ok());
        known.ok_or_else(|| n.unsupported("the rank of the result is not known"))
    }

    /// A fresh symbol.
    pub fn fresh(&mut self, name: &str) -> Sym {
        self.b.symbols.fresh(name)
    }
    /// An integer scalar constant.
    pub fn int64(&mut self, v: i64) -> Result<ValueId> {
        Ok(self.b.int(DType::I64, v)?)
    }
}
