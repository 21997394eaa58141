//! What the lowering of one node has at hand.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;

use tongtu_graph::{Builder, Loc, Type, ValueId};
use tongtu_tensor::dim::Dim;
use tongtu_tensor::{DType, Tensor};

use crate::data::{self, Contents, Source};
use crate::error::{Issue, OnnxError, Result};
use crate::lower::Shared;
use crate::proto::{AttributeProto, GraphProto, NodeProto, TensorProto, kind};
use crate::val::{Known, OptionalVal, SequenceVal, StringsVal, TensorVal, Val};

/// Versions of the operator sets by domain.
pub type Opsets = BTreeMap<String, i64>;

/// Attributes of the call whose function is being lowered.
pub type CallAttrs<'m> = HashMap<&'m str, &'m AttributeProto>;

/// The state of lowering one graph of the model to one graph of the module.
pub struct Ctx<'c, 'm> {
    /// Adds nodes to the graph being built.
    pub b: Builder<'c>,
    /// What all graphs of the model share.
    pub(crate) shared: &'c Shared<'m>,
    /// Values by their names in the model.
    pub(crate) scope: HashMap<String, Val>,
    /// Operator sets in force.
    pub(crate) opsets: Rc<Opsets>,
    /// Attributes of the call, inside a function.
    pub(crate) call: Rc<CallAttrs<'m>>,
    /// Names of the enclosing nodes, each followed by a slash.
    pub(crate) path: String,
    /// Functions being lowered, outermost first.
    pub(crate) calls: Vec<(&'m str, &'m str, &'m str)>,
    /// Parameters of the function that the call leaves out.
    pub(crate) absent: HashSet<String>,
    /// Symbols already bound to the elements of values.
    pub(crate) bound: HashMap<ValueId, Vec<Dim>>,
    /// Symbols bound to dims whose expressions are very long.
    pub(crate) short: HashMap<Dim, Dim>,
}

/// One node with its operands.
pub struct NodeCtx<'m> {
    /// The node.
    pub node: &'m NodeProto,
    /// Version of its operator set.
    pub opset: i64,
    /// Operands; `None` where left out.
    pub inputs: Vec<Option<Val>>,
    /// Attributes by name, references to those of the call resolved.
    pub(crate) attrs: Vec<(&'m str, &'m AttributeProto)>,
    /// Where it is.
    pub loc: Loc,
}

impl<'m> NodeCtx<'m> {
    /// The operator's name.
    pub fn op(&self) -> &'m str {
        &self.node.op_type
    }
    /// Number of results named, used or not.
    pub fn n_outputs(&self) -> usize {
        self.node.output.len()
    }
    /// Whether a result is used.
    pub fn wants(&self, i: usize) -> bool {
        self.node.output.get(i).is_some_and(|o| !o.is_empty())
    }
    fn issue(&self, why: impl Into<String>) -> Issue {
        let domain =
            if self.node.domain.is_empty() { String::new() } else { format!("{}.", self.node.domain) };
        Issue {
            op: format!("{domain}{} (opset {})", self.node.op_type, self.opset),
            node: self.loc.to_string(),
            why: why.into(),
        }
    }
    /// An error: the node breaks a rule of its operator.
    pub fn bad(&self, why: impl Into<String>) -> OnnxError {
        OnnxError::Node(self.issue(why))
    }
    /// An error: the node is right, but this is not supported.
    pub fn unsupported(&self, why: impl Into<String>) -> OnnxError {
        OnnxError::Unsupported(vec![self.issue(why)])
    }

    /// An operand, if given.
    pub fn opt(&self, i: usize) -> Option<&Val> {
        self.inputs.get(i).and_then(Option::as_ref)
    }
    /// Whether an operand is given.
    pub fn has(&self, i: usize) -> bool {
        self.opt(i).is_some()
    }
    /// An operand that must be there.
    pub fn val(&self, i: usize) -> Result<&Val> {
        self.opt(i).ok_or_else(|| self.bad(format!("operand {i} is missing")))
    }
    /// An operand that must be a tensor of numbers.
    pub fn tensor(&self, i: usize) -> Result<&TensorVal> {
        self.val(i)?.tensor().ok_or_else(|| self.bad(format!("operand {i} is no tensor of numbers")))
    }
    /// Element type of a tensor operand.
    pub fn dtype(&self, i: usize) -> Result<DType> {
        Ok(self.tensor(i)?.dtype)
    }
    /// Dims of a tensor operand.
    pub fn dims(&self, i: usize) -> Result<&[Dim]> {
        Ok(&self.tensor(i)?.dims)
    }
    /// Number of dims of a tensor operand.
    pub fn rank(&self, i: usize) -> Result<usize> {
        Ok(self.tensor(i)?.dims.len())
    }
    /// The elements of an operand, if it is a constant of numbers.
    pub fn constant(&self, i: usize) -> Option<&Tensor> {
        self.opt(i)?.tensor()?.constant()
    }
    /// The integers of an operand, if constant.
    pub fn const_ints(&self, i: usize) -> Option<Vec<i64>> {
        self.constant(i)?.to_i64_vec().ok()
    }
    /// The single number of an operand, if constant.
    pub fn const_scalar(&self, i: usize) -> Option<f64> {
        let t = self.constant(i)?;
        (t.len() == 1).then(|| t.get_linear(0).to_f64())
    }

    /// An attribute, if given.
    pub fn attr(&self, name: &str) -> Option<&'m AttributeProto> {
        self.attrs.iter().find(|(n, _)| *n == name).map(|(_, a)| *a)
    }
    fn attr_of(&self, name: &str, want: i32) -> Result<Option<&'m AttributeProto>> {
        match self.attr(name) {
            Some(a) if a.kind != want && a.kind != 0 => {
                Err(self.bad(format!("attribute '{name}' has the wrong kind")))
            }
            other => Ok(other),
        }
    }
    /// An integer attribute, if given.
    pub fn opt_int(&self, name: &str) -> Result<Option<i64>> {
        Ok(self.attr_of(name, kind::INT)?.map(|a| a.i))
    }
    /// An integer attribute or its default.
    pub fn int(&self, name: &str, default: i64) -> Result<i64> {
        Ok(self.opt_int(name)?.unwrap_or(default))
    }
    /// An integer attribute taken as a truth value.
    pub fn flag(&self, name: &str, default: bool) -> Result<bool> {
        Ok(self.opt_int(name)?.map_or(default, |v| v != 0))
    }
    /// A number attribute, if given.
    pub fn opt_float(&self, name: &str) -> Result<Option<f64>> {
        Ok(self.attr_of(name, kind::FLOAT)?.map(|a| f64::from(a.f)))
    }
    /// A number attribute or its default.
    pub fn float(&self, name: &str, default: f64) -> Result<f64> {
        Ok(self.opt_float(name)?.unwrap_or(default))
    }
    /// A string attribute, if given.
    pub fn opt_str(&self, name: &str) -> Result<Option<&'m str>> {
        match self.attr_of(name, kind::STRING)? {
            Some(a) => std::str::from_utf8(&a.s)
                .map(Some)
                .map_err(|_| self.bad(format!("attribute '{name}' is not UTF-8"))),
            None => Ok(None),
        }
    }
    /// A string attribute or its default.
    pub fn str(&self, name: &str, default: &'m str) -> Result<&'m str> {
        Ok(self.opt_str(name)?.unwrap_or(default))
    }
    /// A list of integers, if given.
    pub fn ints(&self, name: &str) -> Result<Option<&'m [i64]>> {
        Ok(self.attr_of(name, kind::INTS)?.map(|a| a.ints.as_slice()))
    }
    /// A list of numbers, if given.
    pub fn floats(&self, name: &str) -> Result<Option<&'m [f32]>> {
        Ok(self.attr_of(name, kind::FLOATS)?.map(|a| a.floats.as_slice()))
    }
    /// A list of strings, if given.
    pub fn strings(&self, name: &str) -> Result<Option<Vec<String>>> {
        let Some(a) = self.attr_of(name, kind::STRINGS)? else { return Ok(None) };
        let list =
            a.strings.iter().map(|s| String::from_utf8(s.clone())).collect::<std::result::Result<_, _>>();
        list.map(Some).map_err(|_| self.bad(format!("attribute '{name}' is not UTF-8")))
    }
    /// A tensor attribute, if given.
    pub fn tensor_attr(&self, name: &str) -> Result<Option<&'m TensorProto>> {
        Ok(self.attr_of(name, kind::TENSOR)?.and_then(|a| a.t.as_deref()))
    }
    /// A graph attribute that must be there.
    pub fn graph(&self, name: &str) -> Result<&'m GraphProto> {
        let g = self.attr_of(name, kind::GRAPH)?.and_then(|a| a.g.as_deref());
        g.ok_or_else(|| self.bad(format!("attribute '{name}' is missing")))
    }
    /// An element type given by number in an attribute.
    pub fn dtype_attr(&self, name: &str) -> Result<Option<DType>> {
        match self.opt_int(name)? {
            None => Ok(None),
            Some(v) => match i32::try_from(v).ok().and_then(data::dtype) {
                Some(d) => Ok(Some(d)),
                None => Err(self.unsupported(format!("element type {v}"))),
            },
        }
    }
    /// A given axis, negative ones counted from the end, of a value of this rank.
    pub fn axis(&self, axis: i64, rank: usize) -> Result<usize> {
        let at = if axis < 0 { axis + rank as i64 } else { axis };
        usize::try_from(at)
            .ok()
            .filter(|&a| a < rank)
            .ok_or_else(|| self.bad(format!("axis {axis} of a value of rank {rank}")))
    }
    /// Given axes in ascending order, each once.
    pub fn axes(&self, axes: &[i64], rank: usize) -> Result<Vec<usize>> {
        let mut out = axes.iter().map(|&a| self.axis(a, rank)).collect::<Result<Vec<_>>>()?;
        out.sort_unstable();
        if out.windows(2).any(|w| w[0] == w[1]) {
            return Err(self.bad(format!("axes {axes:?} name one twice")));
        }
        Ok(out)
    }
}

impl<'c, 'm> Ctx<'c, 'm> {
    /// The file that tensors are read from.
    pub fn source(&self) -> &'c Source {
        self.shared.source
    }
    /// The version of an operator set, 0 where the model does not import it.
    pub fn opset(&self, domain: &str) -> i64 {
        self.opsets.get(domain).copied().unwrap_or(0)
    }

    /// The value in the graph; constants and known contents are added to it the first time.
    pub fn id(&mut self, v: &Val) -> Result<ValueId> {
        match v {
            Val::Tensor(t) => {
                if let Some(id) = t.id.get() {
                    return Ok(id);
                }
                let id = match &t.known {
                    Known::Const(c) => self.b.constant(c.clone())?,
                    Known::Dims(d) => self.stack_dims(t.dtype, &t.dims, d)?,
                    Known::No => return Err(OnnxError::Invalid("a value without definition".into())),
                };
                t.id.set(Some(id));
                Ok(id)
            }
            Val::Strings(s) => {
                if let Some(id) = s.id.get() {
                    return Ok(id);
                }
                let Some(known) = &s.known else {
                    return Err(OnnxError::Invalid("a value without definition".into()));
                };
                let elements = known.iter().map(|s| tongtu_graph::AttrValue::Str(s.clone())).collect();
                let attributes = vec![("value".to_string(), tongtu_graph::AttrValue::List(elements))];
                let id = self.host("strings_constant", attributes, &[], vec![v.ty()])?[0];
                s.id.set(Some(id));
                Ok(id)
            }
            Val::Sequence(SequenceVal::Host(id, _)) | Val::Optional(OptionalVal::Host(id, _)) => Ok(*id),
            Val::Sequence(SequenceVal::Known { items, .. }) => {
                let ids = items.iter().map(|i| self.id(i)).collect::<Result<Vec<_>>>()?;
                Ok(self.host("sequence_construct", Vec::new(), &ids, vec![v.ty()])?[0])
            }
            Val::Optional(OptionalVal::Known { item, .. }) => {
                let ids = item.iter().map(|i| self.id(i)).collect::<Result<Vec<_>>>()?;
                Ok(self.host("optional_construct", Vec::new(), &ids, vec![v.ty()])?[0])
            }
            Val::Poison => Err(OnnxError::Nodes(Vec::new())),
        }
    }

    /// Adds an operation of the host library.
    pub fn host(
        &mut self,
        name: &str,
        attributes: Vec<(String, tongtu_graph::AttrValue)>,
        inputs: &[ValueId],
        results: Vec<Type>,
    ) -> Result<Vec<ValueId>> {
        Ok(self.b.add(tongtu_graph::Op::Host { name: name.into(), attributes, results }, inputs)?)
    }

    /// Dims as a tensor of the given type and (constant) dims.
    fn stack_dims(&mut self, dtype: DType, dims: &[Dim], elements: &[Dim]) -> Result<ValueId> {
        let one = [Dim::from(1)];
        let mut parts = Vec::new();
        for d in elements {
            let s = self.b.dim_as(d, dtype)?;
            parts.push(self.b.reshape(s, &one)?);
        }
        let flat = match parts.as_slice() {
            [] => {
                let shape: Vec<usize> =
                    dims.iter().map(|d| d.as_const().unwrap_or(0).max(0) as usize).collect();
                return Ok(self.b.constant(Tensor::zeros(dtype, &shape)?)?);
            }
            [x] => *x,
            many => self.b.concat(many, 0)?,
        };
        Ok(self.b.reshape(flat, dims)?)
    }

    /// A result of the graph as a value.
    pub fn out(&self, id: ValueId) -> Val {
        match self.b.graph.ty(id) {
            Type::Tensor { dtype, dims } => Val::Tensor(TensorVal {
                dtype: *dtype,
                dims: dims.clone(),
                known: Known::No,
                id: Rc::new(std::cell::Cell::new(Some(id))),
            }),
            Type::Strings { dims } => Val::Strings(StringsVal {
                dims: dims.clone(),
                known: None,
                id: Rc::new(std::cell::Cell::new(Some(id))),
            }),
            t @ Type::Optional(_) => Val::Optional(OptionalVal::Host(id, t.clone())),
            t => Val::Sequence(SequenceVal::Host(id, t.clone())),
        }
    }
    /// The only result of a node.
    pub fn one(&self, id: ValueId) -> Result<Vec<Val>> {
        Ok(vec![self.out(id)])
    }

    /// An operand that must be there.
    pub fn arg(&mut self, n: &NodeCtx<'_>, i: usize) -> Result<ValueId> {
        self.id(n.val(i)?)
    }
    /// An operand, if given.
    pub fn opt(&mut self, n: &NodeCtx<'_>, i: usize) -> Result<Option<ValueId>> {
        n.opt(i).map(|v| self.id(v)).transpose()
    }
    /// An operand that must be a tensor of numbers.
    pub fn tensor(&mut self, n: &NodeCtx<'_>, i: usize) -> Result<ValueId> {
        n.tensor(i)?;
        self.arg(n, i)
    }

    /// A tensor of the file as a value.
    pub fn read(&self, p: &TensorProto) -> Result<Val> {
        Ok(match data::tensor(p, self.shared.source)? {
            Contents::Tensor(t) => Val::constant(t),
            Contents::Strings { shape, elements } => Val::strings(&shape, elements),
        })
    }
    /// A vector of integers as a value.
    pub fn ints(&self, v: &[i64]) -> Result<Val> {
        Ok(Val::constant(Tensor::from_slice(&[v.len()], v)?))
    }

    /// The elements of an integer operand as dims: what is known of them, else symbols bound at run time.
    /// The operand's own dims must be constants.
    pub fn contents(&mut self, n: &NodeCtx<'_>, i: usize) -> Result<Vec<Dim>> {
        let t = n.tensor(i)?.clone();
        if let Some(d) = t.contents() {
            return Ok(d);
        }
        let len = t.dims.iter().try_fold(1i64, |a, d| a.checked_mul(d.as_const()?));
        let Some(len) = len.filter(|&l| l <= 64) else {
            return Err(n.unsupported(format!("operand {i} gives sizes, but their number is not known")));
        };
        let id = self.arg(n, i)?;
        if let Some(d) = self.bound.get(&id) {
            return Ok(d.clone());
        }
        let mut out = Vec::new();
        for s in self.elements(id, len)? {
            out.push(self.bind(s)?);
        }
        self.bound.insert(id, out.clone());
        Ok(out)
    }
    /// The elements of an integer value with `len` elements, each as an `i64` scalar.
    pub fn elements(&mut self, id: ValueId, len: i64) -> Result<Vec<ValueId>> {
        let wide = self.b.convert(id, DType::I64)?;
        let flat = self.b.reshape(wide, &[Dim::from(len)])?;
        let mut out = Vec::new();
        for k in 0..len {
            let e = self.b.slice(flat, &[Dim::from(k)], &[Dim::from(1)], &[1])?;
            out.push(self.b.reshape(e, &[])?);
        }
        Ok(out)
    }
    /// A fresh symbol bound at run time to an `i64` scalar.
    pub fn bind(&mut self, scalar: ValueId) -> Result<Dim> {
        let sym = self.b.bind(scalar, "n")?;
        Ok(Dim::from(sym))
    }
}
