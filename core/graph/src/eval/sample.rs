//! Chosen elements, each with the error that its operations' contracts allow.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;

use tongtu_tensor::dim::Symbols;
use tongtu_tensor::scalar::Approx;
use tongtu_tensor::{DType, Num, Tensor};

use crate::error::GraphError;
use crate::eval::bindings::Bindings;
use crate::eval::elem::Elem;
use crate::eval::element::{Operands, element};
use crate::eval::host::{self, HostValue};
use crate::eval::prepare::{Prepared, count, failed, prepare};
use crate::eval::run::{bind_inputs, check_ids, shape_of};
use crate::eval::whole::{Targets, line, line_axis};
use crate::graph::{Graph, Loc, Type, ValueId};
use crate::inline::inline_composites;
use crate::kernel;
use crate::op::Op;

/// Nesting of operations that an element may depend on.
const MAX_DEPTH: usize = 12_000;
/// Stack for that nesting; only what is used is ever backed by memory.
const STACK_BYTES: usize = 1 << 29;
/// Turns that a `while` may take.
const MAX_TURNS: u64 = 1_000_000;

/// Elements of one result of a graph, each with its error bound: `indices` are linear positions.
///
/// # Errors
/// As [`Sampler::elements`].
pub fn sample(
    symbols: &Symbols,
    graph: &Graph,
    inputs: &[Tensor],
    output: usize,
    indices: &[usize],
) -> Result<Vec<Approx>, GraphError> {
    Sampler::new(symbols, graph, inputs.to_vec()).elements(output, indices)
}

/// Evaluates chosen elements of a graph's results.
#[derive(Clone, Debug)]
pub struct Sampler<'a> {
    symbols: &'a Symbols,
    graph: Graph,
    inputs: Vec<Tensor>,
    bindings: Bindings,
}

impl<'a> Sampler<'a> {
    /// A sampler of a graph on inputs.
    pub fn new(symbols: &'a Symbols, graph: &Graph, inputs: Vec<Tensor>) -> Sampler<'a> {
        Sampler { symbols, graph: inline_composites(graph), inputs, bindings: Bindings::new() }
    }
    /// With values of symbols that the inputs do not bind.
    pub fn with_bindings(mut self, bindings: Bindings) -> Sampler<'a> {
        self.bindings = bindings;
        self
    }
    /// Elements of one result at linear positions.
    ///
    /// # Errors
    /// [`GraphError::Eval`] if inputs do not fit, a size or a branch depends on an inexact value, an index is outside, or
    /// the graph is too deep.
    pub fn elements(&self, output: usize, indices: &[usize]) -> Result<Vec<Approx>, GraphError> {
        self.on_big_stack(|frame| {
            let v = *self
                .graph
                .outputs
                .get(output)
                .ok_or_else(|| broken(format!("there is no result {output}")))?;
            let (_, shape) = frame.shape(v)?;
            let n = count(&shape);
            if let Some(i) = indices.iter().find(|&&i| i >= n) {
                return Err(broken(format!("element {i} of a result of {n}")));
            }
            indices.iter().map(|&i| frame.get(v, i, 0)).collect()
        })
    }
    /// All elements of every result.
    ///
    /// # Errors
    /// As [`Sampler::elements`].
    pub fn all(&self) -> Result<Vec<Vec<Approx>>, GraphError> {
        self.on_big_stack(|frame| {
            let all = self.graph.outputs.iter().map(|&v| {
                let n = count(&frame.shape(v)?.1);
                (0..n).map(|i| frame.get(v, i, 0)).collect()
            });
            all.collect()
        })
    }
    fn on_big_stack<T: Send>(
        &self,
        work: impl FnOnce(&Frame<'_>) -> Result<T, GraphError> + Send,
    ) -> Result<T, GraphError> {
        std::thread::scope(|scope| {
            let job = move || {
                let inputs = self.inputs.iter().cloned().map(Source::Tensor).collect();
                let frame = Frame::new(self.symbols, &self.graph, inputs, self.bindings.clone(), 0)?;
                work(&frame)
            };
            let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, job);
            let thread = thread.map_err(|e| broken(format!("no thread to work in: {e}")))?;
            thread.join().unwrap_or_else(|_| Err(broken("the evaluator failed")))
        })
    }
}

fn broken(detail: impl Into<String>) -> GraphError {
    GraphError::Eval { op: "graph".into(), loc: Loc::default(), detail: detail.into() }
}

/// A value that is there.
#[derive(Clone)]
enum Source {
    Tensor(Tensor),
    Dense { dtype: DType, shape: Vec<usize>, elements: Rc<Vec<Approx>> },
    Host(HostValue),
}

impl Source {
    fn shape(&self) -> Option<(DType, Vec<usize>)> {
        match self {
            Source::Tensor(t) => Some(shape_of(t)),
            Source::Dense { dtype, shape, .. } => Some((*dtype, shape.clone())),
            Source::Host(_) => None,
        }
    }
    fn get(&self, i: usize) -> Approx {
        match self {
            Source::Tensor(t) => Approx::exact(t.get_linear(i)),
            Source::Dense { elements, .. } => elements[i],
            Source::Host(_) => Approx::exact(Num::Int(0)),
        }
    }
    /// The value as a tensor if all of it is exact.
    fn exact(&self) -> Option<HostValue> {
        match self {
            Source::Tensor(t) => Some(HostValue::Tensor(t.clone())),
            Source::Host(v) => Some(v.clone()),
            Source::Dense { dtype, shape, elements } => {
                if elements.iter().any(|e| e.err != 0.0) {
                    return None;
                }
                Some(HostValue::Tensor(Tensor::from_fn(*dtype, shape, |i| elements[i].value).ok()?))
            }
        }
    }
}

/// Whether all results of an operation come at once.
fn is_region(op: &Op) -> bool {
    matches!(op, Op::If { .. } | Op::While { .. } | Op::Kernel { .. } | Op::Host { .. })
}

/// A hash for small numbers, by multiplication.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&b| self.write_u64(b.into()));
    }
    fn write_u32(&mut self, n: u32) {
        self.write_u64(n.into());
    }
    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }
    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0.rotate_left(23) ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }
}

/// One graph being sampled. Values are computed element by element when they are asked for, and remembered.
struct Frame<'g> {
    symbols: &'g Symbols,
    graph: &'g Graph,
    definitions: Vec<Option<usize>>,
    bindings: RefCell<Bindings>,
    /// Whole values: inputs, and results that can't be had element by element.
    sources: RefCell<Vec<Option<Source>>>,
    memo: RefCell<HashMap<(u32, usize), Approx, BuildHasherDefault<Spread>>>,
    prepared: RefCell<Vec<Option<Rc<Prepared>>>>,
    /// Where the updates of scatters go, by node.
    targets: RefCell<HashMap<usize, Rc<Targets>>>,
    /// Regions this one is nested in.
    nesting: usize,
}

struct Node<'f, 'g> {
    frame: &'f Frame<'g>,
    inputs: &'f [ValueId],
    depth: usize,
}

impl Operands<Approx> for Node<'_, '_> {
    fn get(&mut self, operand: usize, linear: usize) -> Result<Approx, GraphError> {
        self.frame.get(self.inputs[operand], linear, self.depth + 1)
    }
}

impl<'g> Frame<'g> {
    fn new(
        symbols: &'g Symbols,
        graph: &'g Graph,
        inputs: Vec<Source>,
        mut bindings: Bindings,
        nesting: usize,
    ) -> Result<Frame<'g>, GraphError> {
        if nesting > 64 {
            return Err(broken("graphs are nested too deep"));
        }
        let shapes: Vec<HostValue> = inputs
            .iter()
            .map(|s| match s {
                Source::Tensor(t) => Ok(HostValue::Tensor(t.clone())),
                Source::Host(v) => Ok(v.clone()),
                // Only type and shape count here.
                Source::Dense { dtype, shape, .. } => {
                    let t = Tensor::zeros(*dtype, &[]).and_then(|t| t.broadcast_to(shape));
                    t.or_else(|_| Tensor::zeros(*dtype, shape))
                        .map(HostValue::Tensor)
                        .map_err(|e| broken(e.to_string()))
                }
            })
            .collect::<Result<_, _>>()?;
        check_ids(graph)?;
        bind_inputs(graph, &shapes, &mut bindings, symbols)?;
        let mut sources = vec![None; graph.values.len()];
        for (&v, s) in graph.inputs.iter().zip(inputs) {
            sources[v.index()] = Some(s);
        }
        let frame = Frame {
            symbols,
            graph,
            definitions: graph.definitions(),
            bindings: RefCell::new(bindings),
            sources: RefCell::new(sources),
            memo: RefCell::default(),
            prepared: RefCell::new(vec![None; graph.nodes.len()]),
            targets: RefCell::default(),
            nesting,
        };
        frame.bind_symbols()?;
        Ok(frame)
    }

    /// Runs what later dims depend on: binds, and regions whose results bind symbols.
    fn bind_symbols(&self) -> Result<(), GraphError> {
        for (n, node) in self.graph.nodes.iter().enumerate() {
            match &node.op {
                Op::Bind { sym } => {
                    let fail = |detail: &str| failed(&node.op, &node.loc, detail);
                    let a = self.get(node.inputs[0], 0, 0)?;
                    let size = a
                        .certain_int(DType::I64)
                        .ok_or_else(|| fail("the size depends on an inexact value"))?;
                    let size = i64::try_from(size).map_err(|_| fail("the size does not fit"))?;
                    let bound = self.bindings.borrow_mut().bind(self.symbols, *sym, size);
                    bound.map_err(|e| fail(&e))?;
                }
                Op::If { results, .. } | Op::While { results, .. } | Op::Host { results, .. } => {
                    let open = |ty: &Type| match ty {
                        Type::Tensor { dims, .. } => dims
                            .iter()
                            .any(|d| d.as_sym().is_some_and(|s| self.bindings.borrow().get(s).is_none())),
                        _ => true,
                    };
                    if results.iter().any(open) {
                        self.materialise_node(n)?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Element type and shape of a value.
    fn shape(&self, v: ValueId) -> Result<(DType, Vec<usize>), GraphError> {
        if let Some(s) = self.sources.borrow()[v.index()].as_ref() {
            return s.shape().ok_or_else(|| broken("a value on the host has no elements"));
        }
        let Some((dtype, dims)) = self.graph.ty(v).as_tensor() else {
            return Err(broken("a value on the host has no elements"));
        };
        let shape = self.bindings.borrow().shape(dims, self.symbols).map_err(broken)?;
        Ok((dtype, shape))
    }

    fn prepared(&self, n: usize) -> Result<Rc<Prepared>, GraphError> {
        if let Some(p) = &self.prepared.borrow()[n] {
            return Ok(p.clone());
        }
        let node = &self.graph.nodes[n];
        let ins = node.inputs.iter().map(|&v| self.shape(v)).collect::<Result<_, _>>()?;
        let p = Rc::new(prepare(self.graph, node, ins, &self.bindings.borrow(), self.symbols)?);
        self.prepared.borrow_mut()[n] = Some(p.clone());
        Ok(p)
    }

    fn get(&self, v: ValueId, i: usize, depth: usize) -> Result<Approx, GraphError> {
        if let Some(s) = self.sources.borrow()[v.index()].as_ref() {
            return Ok(s.get(i));
        }
        let n = self.definitions[v.index()].ok_or_else(|| broken("a value has no definition"))?;
        let node = &self.graph.nodes[n];
        if is_region(&node.op) {
            self.materialise_node(n)?;
            return self.sources.borrow()[v.index()]
                .as_ref()
                .map(|s| s.get(i))
                .ok_or_else(|| failed(&node.op, &node.loc, "gives fewer results than declared"));
        }
        // Moving an element costs less than remembering it.
        let moves = matches!(
            node.op,
            Op::Constant { .. }
                | Op::Iota { .. }
                | Op::DimValue { .. }
                | Op::Reshape { .. }
                | Op::Permute { .. }
                | Op::Broadcast { .. }
                | Op::Slice { .. }
                | Op::Concat { .. }
                | Op::Pad { .. }
        );
        if !moves && let Some(a) = self.memo.borrow().get(&(v.0, i)) {
            return Ok(*a);
        }
        if depth > MAX_DEPTH {
            return Err(failed(
                &node.op,
                &node.loc,
                format!("an element depends on more than {MAX_DEPTH} steps"),
            ));
        }
        let p = self.prepared(n)?;
        let output = node.outputs.iter().position(|o| *o == v).unwrap_or(0);
        let mut operands = Node { frame: self, inputs: &node.inputs, depth };
        let a = match &p.op {
            op if line_axis(op).is_some() => return self.line(&p, node, output, i, depth),
            Op::ScatterAlong { .. } | Op::ScatterNd { .. } => {
                let known = self.targets.borrow().get(&n).cloned();
                let targets = match known {
                    Some(t) => t,
                    None => {
                        let t = Rc::new(Targets::new(&p, |k| operands.get(1, k))?);
                        self.targets.borrow_mut().insert(n, t.clone());
                        t
                    }
                };
                let old = operands.get(0, i)?;
                targets.element(&p, i, old, |k| operands.get(2, k))?
            }
            _ => element(&p, &mut operands, output, i)?,
        };
        if !moves {
            self.memo.borrow_mut().insert((v.0, i), a);
        }
        Ok(a)
    }

    /// An element of a scan or sort; all of its line are remembered.
    fn line(
        &self,
        p: &Prepared,
        node: &crate::graph::Node,
        output: usize,
        i: usize,
        depth: usize,
    ) -> Result<Approx, GraphError> {
        let shape = &p.ins[0].1;
        let axis = line_axis(&p.op).unwrap_or(0);
        let inner = count(&shape[axis + 1..]);
        let first = i / (shape[axis] * inner) * shape[axis] * inner + i % inner;
        let places: Vec<usize> = (0..shape[axis]).map(|k| first + k * inner).collect();
        let mut operands = Vec::new();
        for &v in &node.inputs {
            operands.push(places.iter().map(|&i| self.get(v, i, depth + 1)).collect::<Result<Vec<_>, _>>()?);
        }
        let lines = line(p, &operands);
        let mut memo = self.memo.borrow_mut();
        for (v, line) in node.outputs.iter().zip(&lines) {
            memo.extend(places.iter().zip(line).map(|(&i, &a)| ((v.0, i), a)));
        }
        let at = i / inner % shape[axis];
        lines.get(output).and_then(|l| l.get(at)).copied().ok_or_else(|| broken("a line without elements"))
    }

    /// All of a value.
    fn materialise(&self, v: ValueId) -> Result<Source, GraphError> {
        if let Some(s) = self.sources.borrow()[v.index()].as_ref() {
            return Ok(s.clone());
        }
        let node = self.definitions[v.index()];
        if let Some(n) = node.filter(|&n| is_region(&self.graph.nodes[n].op)) {
            self.materialise_node(n)?;
        } else {
            let (dtype, shape) = self.shape(v)?;
            let elements = (0..count(&shape)).map(|i| self.get(v, i, 0)).collect::<Result<Vec<_>, _>>()?;
            self.store(v, dtype, shape, elements)?;
            self.memo.borrow_mut().retain(|k, _| k.0 != v.0);
        }
        self.sources.borrow()[v.index()].clone().ok_or_else(|| broken("a value has no definition"))
    }

    fn store(
        &self,
        v: ValueId,
        dtype: DType,
        shape: Vec<usize>,
        elements: Vec<Approx>,
    ) -> Result<(), GraphError> {
        let source = if elements.iter().all(|a| a.err == 0.0) {
            let t = Tensor::from_fn(dtype, &shape, |i| elements[i].value);
            Source::Tensor(t.map_err(|e| broken(e.to_string()))?)
        } else {
            Source::Dense { dtype, shape, elements: Rc::new(elements) }
        };
        self.sources.borrow_mut()[v.index()] = Some(source);
        Ok(())
    }

    /// All results of a region or host operation.
    fn materialise_node(&self, n: usize) -> Result<(), GraphError> {
        let node = &self.graph.nodes[n];
        let fail = |detail: String| failed(&node.op, &node.loc, detail);
        let operands: Vec<Source> =
            node.inputs.iter().map(|&v| self.materialise(v)).collect::<Result<_, _>>()?;
        let condition = |values: &[Source]| {
            let p = values.first().filter(|s| s.shape().is_some_and(|(_, d)| count(&d) == 1));
            let p = p.ok_or_else(|| fail("no condition".into()))?.get(0);
            let p = p.certain_int(DType::Bool).map(|p| p != 0);
            p.ok_or_else(|| fail("the way taken depends on an inexact value".into()))
        };
        let results = match &node.op {
            Op::If { then_branch, else_branch, .. } => {
                let branch = if condition(&operands)? { then_branch } else { else_branch };
                self.region(branch, operands[1..].to_vec())?
            }
            Op::While { body, results } => {
                let mut more = condition(&operands)?;
                let mut carried = operands[1..].to_vec();
                let mut turns = 0;
                while more {
                    turns += 1;
                    if turns > MAX_TURNS {
                        return Err(fail(format!("did not end in {MAX_TURNS} turns")));
                    }
                    let out = self.region(body, carried.clone())?;
                    more = condition(&out)?;
                    carried.iter_mut().zip(out.into_iter().skip(1)).for_each(|(old, new)| *old = new);
                }
                carried.truncate(results.len());
                carried
            }
            Op::Kernel { .. } => {
                let tensor = |s: &Source| s.exact().and_then(HostValue::into_tensor);
                let tensors: Option<Vec<Tensor>> = operands.iter().map(tensor).collect();
                let tensors = tensors.ok_or_else(|| fail("an operand of a kernel is inexact".into()))?;
                let out = kernel::evaluate(&node.op, &tensors, &self.bindings.borrow(), self.symbols);
                out.map_err(fail)?.into_iter().map(Source::Tensor).collect()
            }
            Op::Host { name, attributes, results } => {
                let operands: Option<Vec<HostValue>> = operands.iter().map(Source::exact).collect();
                let operands = operands.ok_or_else(|| fail("an operand on the host is inexact".into()))?;
                let out =
                    host::call(name, attributes, results, &operands).map_err(|e| fail(e.to_string()))?;
                out.into_iter()
                    .map(|v| match v {
                        HostValue::Tensor(t) => Source::Tensor(t),
                        v => Source::Host(v),
                    })
                    .collect()
            }
            _ => return Err(fail("has no whole results".into())),
        };
        let mut bindings = self.bindings.borrow_mut();
        for (&v, s) in node.outputs.iter().zip(&results) {
            if let (Some((_, dims)), Some((_, shape))) = (self.graph.ty(v).as_tensor(), s.shape()) {
                bindings.bind_shape(dims, &shape, self.symbols).map_err(fail)?;
            }
        }
        for (&v, s) in node.outputs.iter().zip(&results) {
            if let (Some((_, dims)), Some((_, shape))) = (self.graph.ty(v).as_tensor(), s.shape()) {
                bindings.check_shape(dims, &shape, self.symbols).map_err(fail)?;
            }
        }
        let mut sources = self.sources.borrow_mut();
        for (&v, s) in node.outputs.iter().zip(results) {
            sources[v.index()] = Some(s);
        }
        Ok(())
    }

    /// All results of a region.
    fn region(&self, graph: &Graph, inputs: Vec<Source>) -> Result<Vec<Source>, GraphError> {
        let graph = inline_composites(graph);
        let frame =
            Frame::new(self.symbols, &graph, inputs, self.bindings.borrow().clone(), self.nesting + 1)?;
        graph.outputs.iter().map(|&v| frame.materialise(v)).collect()
    }
}

/// What [`compare`] finds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// Elements compared.
    pub checked: usize,
    /// Elements outside their bounds.
    pub failed: usize,
    /// Elements of which the reference excludes nothing.
    pub unbounded: usize,
    /// Greatest absolute error over its bound: at most 1 where all pass. An error of an exact element counts as infinite.
    pub worst_ratio: f64,
    /// Greatest absolute error.
    pub worst_error: f64,
    /// Position in the list, reference and actual value of the element of the worst ratio.
    pub worst: Option<(usize, Approx, Num)>,
}

impl Comparison {
    /// Whether every element is within its bound.
    pub fn passes(&self) -> bool {
        self.failed == 0
    }
}

/// Holds actual elements against reference elements, pair by pair.
pub fn compare(reference: &[Approx], actual: &[Num]) -> Comparison {
    let mut c =
        Comparison { checked: 0, failed: 0, unbounded: 0, worst_ratio: 0.0, worst_error: 0.0, worst: None };
    for (i, (r, &a)) in reference.iter().zip(actual).enumerate() {
        c.checked += 1;
        if r.err == f64::INFINITY {
            c.unbounded += 1;
            continue;
        }
        let error = match (r.value, a) {
            (Num::Int(x), Num::Int(y)) => x.abs_diff(y) as f64,
            (x, y) if x == y || x.is_nan() && y.is_nan() => 0.0,
            (x, y) => {
                let d = (x.to_f64() - y.to_f64()).abs();
                if d.is_nan() { f64::INFINITY } else { d }
            }
        };
        let ratio = if error == 0.0 { 0.0 } else { error / r.err };
        if !r.admits(a) {
            c.failed += 1;
        }
        c.worst_error = c.worst_error.max(error);
        if ratio > c.worst_ratio || c.worst.is_none() {
            c.worst_ratio = ratio;
            c.worst = Some((i, *r, a));
        }
    }
    c.failed += reference.len().abs_diff(actual.len());
    c
}
