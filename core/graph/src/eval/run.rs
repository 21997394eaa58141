//! Whole values, node by node.

use tongtu_tensor::dim::Symbols;
use tongtu_tensor::{DType, Num, Tensor};

use crate::error::GraphError;
use crate::eval::bindings::Bindings;
use crate::eval::elem::{Bits, Elem};
use crate::eval::element::{Operands, by_element, element};
use crate::eval::host::{self, HostValue};
use crate::eval::prepare::{check_size, failed, prepare};
use crate::eval::whole::whole;
use crate::graph::{Graph, Loc, Module, Node, Type};
use crate::kernel;
use crate::op::Op;

/// Turns that a `while` may take before it is taken to be endless.
const MAX_TURNS: u64 = 100_000_000;
/// Nesting of regions and composites.
const MAX_DEPTH: usize = 64;

/// Evaluates a module's graph on inputs.
///
/// # Errors
/// [`GraphError::Eval`] if inputs do not fit the graph's types, a symbol's value is outside its bounds, or a value would be too large.
pub fn run(module: &Module, inputs: &[HostValue]) -> Result<Vec<HostValue>, GraphError> {
    Evaluator::new(&module.symbols).run(&module.graph, inputs)
}

/// [`run`] for a graph whose inputs and results are all tensors of numbers.
///
/// # Errors
/// As [`run`]; also if a result is no tensor.
pub fn run_tensors(module: &Module, inputs: &[Tensor]) -> Result<Vec<Tensor>, GraphError> {
    let inputs: Vec<HostValue> = inputs.iter().cloned().map(HostValue::Tensor).collect();
    let outputs = run(module, &inputs)?;
    outputs.into_iter().map(|v| v.into_tensor().ok_or_else(|| broken("a result is not a tensor"))).collect()
}

fn broken(detail: impl Into<String>) -> GraphError {
    GraphError::Eval { op: "graph".into(), loc: Loc::default(), detail: detail.into() }
}

/// Evaluates graphs whose dims are written in the symbols of one table.
#[derive(Clone, Debug)]
pub struct Evaluator<'a> {
    symbols: &'a Symbols,
    /// Values of symbols: those given before, and those bound by inputs and operations so far.
    pub bindings: Bindings,
    depth: usize,
}

impl<'a> Evaluator<'a> {
    /// An evaluator with no symbol bound.
    pub fn new(symbols: &'a Symbols) -> Evaluator<'a> {
        Evaluator { symbols, bindings: Bindings::new(), depth: 0 }
    }

    /// Evaluates a graph. Inputs bind the symbols that have no value yet.
    ///
    /// # Errors
    /// As [`run`](fn@run).
    pub fn run(&mut self, graph: &Graph, inputs: &[HostValue]) -> Result<Vec<HostValue>, GraphError> {
        check_ids(graph)?;
        bind_inputs(graph, inputs, &mut self.bindings, self.symbols)?;
        let mut values: Vec<Option<HostValue>> = vec![None; graph.values.len()];
        for (&v, x) in graph.inputs.iter().zip(inputs) {
            values[v.index()] = Some(x.clone());
        }
        // The last node that reads each value; it is dropped after that.
        let mut last = vec![usize::MAX; graph.values.len()];
        for (i, node) in graph.nodes.iter().enumerate() {
            node.inputs.iter().for_each(|v| last[v.index()] = i);
        }
        graph.outputs.iter().for_each(|v| last[v.index()] = usize::MAX);
        for (i, node) in graph.nodes.iter().enumerate() {
            let operands = node.inputs.iter().map(|v| values.get(v.index()).cloned().flatten());
            let operands: Option<Vec<HostValue>> = operands.collect();
            let operands = operands
                .ok_or_else(|| failed(&node.op, &node.loc, "an operand is used before its definition"))?;
            for (&v, x) in node.outputs.iter().zip(self.node(graph, node, operands)?) {
                values[v.index()] = Some(x);
            }
            for v in node.inputs.iter().filter(|v| last[v.index()] == i) {
                values[v.index()] = None;
            }
        }
        let outputs = graph.outputs.iter().map(|v| values.get(v.index()).cloned().flatten());
        outputs.map(|v| v.ok_or_else(|| broken("a result of the graph has no definition"))).collect()
    }

    fn node(
        &mut self,
        graph: &Graph,
        node: &Node,
        operands: Vec<HostValue>,
    ) -> Result<Vec<HostValue>, GraphError> {
        let fail = |detail: String| failed(&node.op, &node.loc, detail);
        match &node.op {
            Op::Bind { sym } => {
                let n = scalar(&operands, 0).ok_or_else(|| fail("no integer scalar".into()))?;
                let n = i64::try_from(n.to_i128()).map_err(|_| fail("the size does not fit".into()))?;
                self.bindings.bind(self.symbols, *sym, n).map_err(fail)?;
                Ok(vec![])
            }
            Op::Composite { body, .. } => self.region(body, &operands, false).map_err(|e| e.at(&node.loc)),
            Op::Kernel { .. } => {
                let tensors: Option<Vec<Tensor>> = operands.into_iter().map(HostValue::into_tensor).collect();
                let tensors = tensors.ok_or_else(|| fail("an operand is not a tensor of numbers".into()))?;
                let out = kernel::evaluate(&node.op, &tensors, &self.bindings, self.symbols);
                Ok(out.map_err(fail)?.into_iter().map(HostValue::Tensor).collect())
            }
            Op::Host { name, attributes, results } => {
                let out =
                    host::call(name, attributes, results, &operands).map_err(|e| fail(e.to_string()))?;
                self.bind_results(results, &out).map_err(fail)?;
                Ok(out)
            }
            Op::If { then_branch, else_branch, results } => {
                let p = scalar(&operands, 0).ok_or_else(|| fail("no condition".into()))?;
                let branch = if p.is_true() { then_branch } else { else_branch };
                let out = self.region(branch, &operands[1..], true)?;
                self.bind_results(results, &out).map_err(fail)?;
                Ok(out)
            }
            Op::While { body, results } => {
                let n = results.len();
                let mut more = scalar(&operands, 0).ok_or_else(|| fail("no condition".into()))?.is_true();
                let mut carried = operands[1..].to_vec();
                let mut turns = 0;
                while more {
                    turns += 1;
                    if turns > MAX_TURNS {
                        return Err(fail(format!("did not end in {MAX_TURNS} turns")));
                    }
                    let mut out = self.region(body, &carried, true)?;
                    let next = out.split_off(1.min(out.len()));
                    more = scalar(&out, 0).ok_or_else(|| fail("no condition".into()))?.is_true();
                    for (old, new) in carried.iter_mut().take(n).zip(next) {
                        *old = new;
                    }
                }
                carried.truncate(n);
                self.bind_results(results, &carried).map_err(fail)?;
                Ok(carried)
            }
            _ => {
                let tensors: Option<Vec<Tensor>> = operands.into_iter().map(HostValue::into_tensor).collect();
                let tensors = tensors.ok_or_else(|| fail("an operand is not a tensor of numbers".into()))?;
                self.tensors(graph, node, &tensors)
            }
        }
    }

    /// Runs a graph inside this one; a `scoped` one leaves no symbols bound.
    fn region(
        &mut self,
        graph: &Graph,
        inputs: &[HostValue],
        scoped: bool,
    ) -> Result<Vec<HostValue>, GraphError> {
        if self.depth >= MAX_DEPTH {
            return Err(broken(format!("graphs are nested more than {MAX_DEPTH} deep")));
        }
        let mut inner = Evaluator { depth: self.depth + 1, ..self.clone() };
        let out = inner.run(graph, inputs)?;
        if !scoped {
            self.bindings = inner.bindings;
        }
        Ok(out)
    }

    fn bind_results(&mut self, types: &[Type], values: &[HostValue]) -> Result<(), String> {
        if types.len() != values.len() {
            return Err(format!("gives {} results, {} are declared", values.len(), types.len()));
        }
        bind_values(types, values, &mut self.bindings, self.symbols)
    }

    fn tensors(&self, graph: &Graph, node: &Node, x: &[Tensor]) -> Result<Vec<HostValue>, GraphError> {
        let ins = x.iter().map(|t| (t.dtype(), t.shape().to_vec())).collect();
        let p = prepare(graph, node, ins, &self.bindings, self.symbols)?;
        let fail = |e: tongtu_tensor::TensorError| failed(&node.op, &node.loc, e.to_string());
        match &p.op {
            Op::Constant { value } => return Ok(vec![HostValue::Tensor(value.clone())]),
            Op::Reshape { .. } => {
                return Ok(vec![HostValue::Tensor(x[0].reshape(&p.outs[0].1).map_err(fail)?)]);
            }
            _ => {}
        }
        let mut out = Vec::new();
        if by_element(&p.op) {
            let mut operands = Read(x);
            for (o, (dtype, shape)) in p.outs.iter().enumerate() {
                let mut t = Tensor::zeros(*dtype, shape).map_err(fail)?;
                let elements = (0..t.len()).map(|i| element::<Bits>(&p, &mut operands, o, i));
                let codes = elements.collect::<Result<Vec<Bits>, _>>()?;
                write(&mut t, &codes);
                out.push(HostValue::Tensor(t));
            }
        } else {
            let x: Vec<Vec<Bits>> = x.iter().map(|t| t.codes().map(Bits).collect()).collect();
            for ((dtype, shape), codes) in p.outs.iter().zip(whole(&p, &x)?) {
                let mut t = Tensor::zeros(*dtype, shape).map_err(fail)?;
                write(&mut t, &codes);
                out.push(HostValue::Tensor(t));
            }
        }
        Ok(out)
    }
}

/// Refuses graphs that name values they do not have.
pub(crate) fn check_ids(graph: &Graph) -> Result<(), GraphError> {
    let of_nodes = graph.nodes.iter().flat_map(|n| n.inputs.iter().chain(&n.outputs));
    match graph.inputs.iter().chain(&graph.outputs).chain(of_nodes).find(|v| v.index() >= graph.values.len())
    {
        Some(v) => Err(broken(format!("value {} is no value of the graph", v.0))),
        None => Ok(()),
    }
}

fn write(t: &mut Tensor, codes: &[Bits]) {
    for (i, c) in codes.iter().enumerate().take(t.len()) {
        t.set_code(i, c.0);
    }
}

struct Read<'t>(&'t [Tensor]);

impl Operands<Bits> for Read<'_> {
    fn get(&mut self, operand: usize, linear: usize) -> Result<Bits, GraphError> {
        Ok(Bits::read(&self.0[operand], linear))
    }
}

/// The only element of an operand.
fn scalar(operands: &[HostValue], i: usize) -> Option<Num> {
    let t = operands.get(i)?.as_tensor()?;
    if t.len() == 1 { Some(t.get_linear(0)) } else { None }
}

/// Binds the symbols of a graph's inputs to the shapes of values and checks the values against the inputs' types.
pub(crate) fn bind_inputs(
    graph: &Graph,
    inputs: &[HostValue],
    bindings: &mut Bindings,
    symbols: &Symbols,
) -> Result<(), GraphError> {
    if inputs.len() != graph.inputs.len() {
        return Err(broken(format!("takes {} inputs, got {}", graph.inputs.len(), inputs.len())));
    }
    let types: Vec<Type> = graph.inputs.iter().map(|&v| graph.ty(v).clone()).collect();
    bind_values(&types, inputs, bindings, symbols).map_err(broken)
}

fn bind_values(
    types: &[Type],
    values: &[HostValue],
    bindings: &mut Bindings,
    symbols: &Symbols,
) -> Result<(), String> {
    let place = |i: usize, e: String| format!("value {i}: {e}");
    for (i, (ty, v)) in types.iter().zip(values).enumerate() {
        match (ty, v) {
            (Type::Tensor { dtype, dims }, HostValue::Tensor(t)) => {
                if t.dtype() != *dtype {
                    return Err(place(i, format!("is of {}, {dtype} is declared", t.dtype())));
                }
                check_size(t.shape()).map_err(|e| place(i, e))?;
                bindings.bind_shape(dims, t.shape(), symbols).map_err(|e| place(i, e))?;
            }
            (Type::Strings { dims }, HostValue::Strings { shape, .. }) => {
                bindings.bind_shape(dims, shape, symbols).map_err(|e| place(i, e))?;
            }
            (Type::Sequence(_), HostValue::Sequence(_)) | (Type::Optional(_), _) | (Type::Any, _) => {}
            _ => return Err(place(i, format!("is no {ty:?}"))),
        }
    }
    for (i, (ty, v)) in types.iter().zip(values).enumerate() {
        match (ty, v) {
            (Type::Tensor { dims, .. }, HostValue::Tensor(t)) => {
                bindings.check_shape(dims, t.shape(), symbols)
            }
            (Type::Strings { dims }, HostValue::Strings { shape, .. }) => {
                bindings.check_shape(dims, shape, symbols)
            }
            _ => Ok(()),
        }
        .map_err(|e| place(i, e))?;
    }
    Ok(())
}

/// The element type and shape of a tensor value.
pub(crate) fn shape_of(t: &Tensor) -> (DType, Vec<usize>) {
    (t.dtype(), t.shape().to_vec())
}
