//! Small tensors that are known while lowering: sizes, and what is computed from them.
//!
//! The elements of such a tensor are dim expressions. A node all of whose operands are known that way, and whose
//! operator is one of those that sizes are computed with, adds nothing to the graph.

use tongtu_graph::{Graph, Op};
use tongtu_tensor::dim::{Dim, Symbols};
use tongtu_tensor::{DType, Tensor};

use crate::ctx::{Ctx, NodeCtx};
use crate::error::Result;
use crate::ops::Lower;
use crate::val::{Known, MAX_CONTENTS, Val};

/// A known tensor.
#[derive(Clone, Debug)]
struct Contents {
    dtype: DType,
    shape: Vec<usize>,
    elements: Vec<Dim>,
}

/// Lowers a node, or computes its results now.
pub(crate) fn node<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>, lower: Lower) -> Result<Vec<Val>> {
    let mut assumed = Vec::new();
    if n.node.domain.is_empty()
        && let Some(v) = symbolic(cx, n, &mut assumed)
    {
        for d in assumed {
            assume_not_negative(cx, &d)?;
        }
        return Ok(vec![v]);
    }
    if let Some(v) = constant(cx, n, lower) {
        return Ok(v);
    }
    lower(cx, n)
}

/// Most elements of operands and results that are computed while lowering.
const MAX_CONSTANT: usize = 4096;

/// The results of a node whose operands are all small constants: lowered to a graph of its own, which the reference
/// interpreter runs. `None` where that is not so or does not work out.
fn constant<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>, lower: Lower) -> Option<Vec<Val>> {
    if n.inputs.is_empty() || n.node.attribute.iter().any(|a| a.g.is_some() || !a.graphs.is_empty()) {
        return None;
    }
    let mut inputs = Vec::new();
    let mut total = 0;
    for v in &n.inputs {
        inputs.push(match v {
            None => None,
            Some(v) => {
                let t = v.tensor()?.constant()?;
                total += t.len();
                Some(Val::constant(t.clone()))
            }
        });
    }
    if total > MAX_CONSTANT {
        return None;
    }
    let mut graph = Graph::default();
    let alone = NodeCtx { node: n.node, opset: n.opset, inputs, attrs: n.attrs.clone(), loc: n.loc.clone() };
    let mut inner = cx.alone(&mut graph);
    let results = lower(&mut inner, &alone).ok()?;
    let ids = results.iter().map(|v| inner.id(v)).collect::<Result<Vec<_>>>().ok()?;
    drop(inner);
    let small = |dims: &[Dim]| {
        let count = dims.iter().try_fold(1i64, |a, d| a.checked_mul(d.as_const()?));
        count.is_some_and(|c| (0..=MAX_CONSTANT as i64).contains(&c))
    };
    // Whatever the graph computes on the way must be small too.
    let fits = |v: &tongtu_graph::Value| v.ty.as_tensor().is_some_and(|(_, dims)| small(dims));
    if !graph.values.iter().all(fits)
        || graph.nodes.iter().any(|n| matches!(n.op, Op::RandomBits { .. } | Op::Bind { .. }))
    {
        return None;
    }
    graph.outputs = ids;
    let out = tongtu_graph::eval::Evaluator::new(cx.b.symbols).run(&graph, &[]).ok()?;
    out.into_iter().map(|v| v.into_tensor().map(Val::constant)).collect()
}

fn contents(v: &Val) -> Option<Contents> {
    let t = v.tensor()?;
    let shape: Vec<usize> =
        t.dims.iter().map(|d| usize::try_from(d.as_const()?).ok()).collect::<Option<_>>()?;
    let elements = match &t.known {
        Known::Const(c) if c.dtype().is_float() && c.len() <= 64 => {
            let whole = |x: f64| (x.fract() == 0.0 && x.abs() < 2f64.powi(53)).then(|| Dim::from(x as i64));
            c.iter().map(|n| whole(n.to_f64())).collect::<Option<_>>()?
        }
        _ => t.contents()?,
    };
    Some(Contents { dtype: t.dtype, shape, elements })
}

impl Contents {
    fn val(self) -> Option<Val> {
        let count = self.shape.iter().try_fold(1usize, |a, &d| a.checked_mul(d))?;
        (count == self.elements.len() && count <= MAX_CONTENTS)
            .then(|| Val::symbolic(self.dtype, &self.shape, self.elements))
    }
    fn with(&self, shape: Vec<usize>, elements: Vec<Dim>) -> Contents {
        Contents { dtype: self.dtype, shape, elements }
    }
    /// The positions of the elements, as a tensor to apply movements to.
    fn places(&self) -> Option<Tensor> {
        let all: Vec<i64> = (0..self.elements.len() as i64).collect();
        Tensor::from_slice(&self.shape, &all).ok()
    }
    /// The elements at places that were moved.
    fn at(&self, places: &Tensor) -> Option<Contents> {
        let at = places.to_i64_vec().ok()?;
        let elements = at.iter().map(|&i| self.elements.get(usize::try_from(i).ok()?).cloned());
        Some(self.with(places.shape().to_vec(), elements.collect::<Option<_>>()?))
    }
    fn constants(&self) -> Option<Vec<i64>> {
        self.elements.iter().map(Dim::as_const).collect()
    }
}

/// Operands broadcast to a common shape.
fn aligned(items: &[&Contents]) -> Option<(Vec<usize>, Vec<Vec<Dim>>)> {
    let rank = items.iter().map(|c| c.shape.len()).max()?;
    let mut shape = vec![1usize; rank];
    for c in items {
        for (o, &d) in shape[rank - c.shape.len()..].iter_mut().zip(&c.shape) {
            if *o == 1 {
                *o = d;
            } else if d != 1 && d != *o {
                return None;
            }
        }
    }
    if shape.iter().product::<usize>() > MAX_CONTENTS {
        return None;
    }
    let spread = |c: &&Contents| Some(c.at(&c.places()?.broadcast_to(&shape).ok()?)?.elements);
    let all = items.iter().map(spread).collect::<Option<Vec<_>>>()?;
    Some((shape, all))
}

/// Whether a comparison holds, where that can be told for all sizes.
fn decide(op: &str, a: &Dim, b: &Dim, symbols: &Symbols) -> Option<bool> {
    let le = |x: &Dim, y: &Dim| x.provably_le(y, symbols);
    let lt = |x: &Dim, y: &Dim| (x + 1).provably_le(y, symbols);
    let tell = |yes: bool, no: bool| if yes { Some(true) } else { no.then_some(false) };
    match op {
        "Equal" => tell(a.provably_eq(b, symbols), lt(a, b) || lt(b, a)),
        "Less" => tell(lt(a, b), le(b, a)),
        "Greater" => tell(lt(b, a), le(a, b)),
        "LessOrEqual" => tell(le(a, b), lt(b, a)),
        "GreaterOrEqual" => tell(le(b, a), lt(a, b)),
        _ => None,
    }
}

/// Makes it an error, when the model runs, that a dim is negative.
fn assume_not_negative(cx: &mut Ctx<'_, '_>, d: &Dim) -> Result<()> {
    if d.bounds(cx.b.symbols).0.is_some_and(|l| l >= 0) {
        return Ok(());
    }
    // A symbol less a number: the symbol is at least that.
    for sym in d.symbols() {
        if let (Some(c), Some(info)) = ((Dim::from(sym) - d).as_const(), cx.b.symbols.get(sym)) {
            let (lower, upper) = (info.lower.max(c), info.upper);
            cx.b.symbols.set_bounds(sym, lower, upper);
            return Ok(());
        }
    }
    let value = cx.b.dim_value(d.clone())?;
    cx.bind(value)?;
    Ok(())
}

/// A quotient that ONNX truncates for integers and leaves exact for floats. What is taken not to be negative is added to `assumed`.
fn divide(dtype: DType, a: &Dim, b: &Dim, symbols: &Symbols, assumed: &mut Vec<Dim>) -> Option<Dim> {
    if b.as_const() == Some(0) {
        return None;
    }
    if dtype.is_float() {
        return a.provably_divisible_by(b, symbols).then(|| a.floordiv(b));
    }
    match (a.as_const(), b.as_const()) {
        (Some(x), Some(y)) => x.checked_div(y).map(Dim::from),
        _ => {
            if b.bounds(symbols).0? < 0 {
                return None;
            }
            // A size less one, rounded down as exporters of PyTorch write it: sizes of zero are refused. What may be less is rounded
            // towards zero.
            if a.bounds(symbols).0.is_none_or(|l| l < -1) {
                let up = Dim::min(&a.ceildiv(b), &Dim::from(0));
                return Some(Dim::max(&a.floordiv(b), &up));
            }
            assumed.push(a.clone());
            Some(a.floordiv(b))
        }
    }
}

fn elementwise(
    n: &NodeCtx<'_>,
    inputs: &[Contents],
    symbols: &Symbols,
    assumed: &mut Vec<Dim>,
) -> Option<Contents> {
    let refs: Vec<&Contents> = inputs.iter().collect();
    let first = inputs.first()?;
    if n.op() != "Where" && inputs.iter().any(|i| i.dtype != first.dtype) {
        return None;
    }
    let (shape, all) = aligned(&refs)?;
    let len = all[0].len();
    let mut out = Vec::with_capacity(len);
    let mut dtype = first.dtype;
    for i in 0..len {
        let x = &all[0][i];
        let y = all.get(1).map(|v| &v[i]);
        out.push(match n.op() {
            "Add" => x + y?,
            "Sub" => x - y?,
            "Mul" => x * y?,
            "Div" => divide(dtype, x, y?, symbols, assumed)?,
            "Mod" => {
                let (a, b) = (x.bounds(symbols).0?, y?.bounds(symbols).0?);
                if a < 0 || b < 1 || dtype.is_float() {
                    return None;
                }
                x.modulo(y?)
            }
            "Min" => all.iter().skip(1).fold(x.clone(), |a, v| Dim::min(&a, &v[i])),
            "Max" => all.iter().skip(1).fold(x.clone(), |a, v| Dim::max(&a, &v[i])),
            "Neg" => -x,
            "Abs" => {
                if x.bounds(symbols).0? >= 0 {
                    x.clone()
                } else {
                    Dim::from(x.as_const()?.checked_abs()?)
                }
            }
            "Identity" | "Floor" | "Ceil" | "Round" => x.clone(),
            "Not" => Dim::from(i64::from(x.as_const()? == 0)),
            "And" => Dim::from(i64::from(x.as_const()? != 0 && y?.as_const()? != 0)),
            "Or" => Dim::from(i64::from(x.as_const()? != 0 || y?.as_const()? != 0)),
            "Where" => {
                dtype = inputs.get(1)?.dtype;
                if x.as_const()? != 0 { y?.clone() } else { all.get(2)?[i].clone() }
            }
            op => {
                dtype = DType::Bool;
                Dim::from(i64::from(decide(op, x, y?, symbols)?))
            }
        });
    }
    Some(Contents { dtype, shape, elements: out })
}

fn axis(a: i64, rank: usize) -> Option<usize> {
    let at = if a < 0 { a + rank as i64 } else { a };
    usize::try_from(at).ok().filter(|&a| a < rank)
}

/// The axes of an operator that has them as an attribute up to version 12 and as an operand since.
fn axes(n: &NodeCtx<'_>, inputs: &[Contents], operand: usize) -> Option<Option<Vec<i64>>> {
    if let Some(a) = n.ints("axes").ok()? {
        return Some(Some(a.to_vec()));
    }
    Some(match inputs.get(operand) {
        Some(c) => Some(c.constants()?),
        None => None,
    })
}

fn symbolic(cx: &Ctx<'_, '_>, n: &NodeCtx<'_>, assumed: &mut Vec<Dim>) -> Option<Val> {
    const OPS: &[&str] = &[
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Mod",
        "Min",
        "Max",
        "Neg",
        "Abs",
        "Identity",
        "Floor",
        "Ceil",
        "Round",
        "Not",
        "And",
        "Or",
        "Where",
        "Equal",
        "Less",
        "Greater",
        "LessOrEqual",
        "GreaterOrEqual",
        "Cast",
        "Gather",
        "Concat",
        "Slice",
        "Unsqueeze",
        "Squeeze",
        "Reshape",
        "Flatten",
        "Transpose",
        "Expand",
        "Tile",
        "ReduceProd",
        "ReduceSum",
        "ReduceMax",
        "ReduceMin",
        "Range",
    ];
    if !OPS.contains(&n.op()) || n.inputs.is_empty() || n.inputs.iter().any(Option::is_none) {
        return None;
    }
    let inputs: Vec<Contents> = n.inputs.iter().flatten().map(contents).collect::<Option<_>>()?;
    let symbols: &Symbols = cx.b.symbols;
    let x = inputs.first()?;
    let rank = x.shape.len();
    let legacy = n.opset < 7 && n.attr("broadcast").is_some();
    let out = match n.op() {
        "Cast" => {
            let to = n.dtype_attr("to").ok()??;
            let wide =
                matches!(to, DType::I64 | DType::I32 | DType::F32 | DType::F64 | DType::U64 | DType::U32);
            if x.dtype == to || wide && !x.dtype.is_bool() {
                Contents { dtype: to, ..x.clone() }
            } else {
                let all = x.constants()?;
                if to.is_bool() {
                    let elements = all.iter().map(|&v| Dim::from(i64::from(v != 0))).collect();
                    Contents { dtype: to, shape: x.shape.clone(), elements }
                } else if wide {
                    Contents { dtype: to, ..x.clone() }
                } else {
                    return None;
                }
            }
        }
        "Gather" => {
            let a = axis(n.int("axis", 0).ok()?, rank)?;
            let indices = inputs.get(1)?;
            let places = x.places()?;
            let mut moved = Vec::new();
            for i in indices.constants()? {
                let len = x.shape[a] as i64;
                let i = if i < 0 { i + len } else { i };
                if !(0..len).contains(&i) {
                    return None;
                }
                moved.push(x.at(&places.slice(a, i, i + 1, 1).ok()?)?);
            }
            let shape = [&x.shape[..a], &indices.shape[..], &x.shape[a + 1..]].concat();
            let rest: usize = x.shape[a + 1..].iter().product();
            let outer: usize = x.shape[..a].iter().product();
            let mut elements = Vec::new();
            for o in 0..outer {
                for m in &moved {
                    elements.extend_from_slice(&m.elements[o * rest..(o + 1) * rest]);
                }
            }
            x.with(shape, elements)
        }
        "Concat" => {
            let a = axis(n.int("axis", 1).ok()?, rank)?;
            let outer: usize = x.shape[..a].iter().product();
            let mut shape = x.shape.clone();
            shape[a] = 0;
            for c in &inputs {
                if c.shape.len() != rank {
                    return None;
                }
                shape[a] += c.shape[a];
            }
            let mut elements = Vec::new();
            for o in 0..outer {
                for c in &inputs {
                    let inner: usize = c.shape[a..].iter().product();
                    elements.extend_from_slice(c.elements.get(o * inner..(o + 1) * inner)?);
                }
            }
            if elements.len() != shape.iter().product::<usize>() {
                return None;
            }
            x.with(shape, elements)
        }
        "Slice" => {
            let get = |name: &str, k: usize| -> Option<Option<Vec<i64>>> {
                match inputs.get(k) {
                    Some(c) => Some(Some(c.constants()?)),
                    None => Some(n.ints(name).ok()?.map(<[i64]>::to_vec)),
                }
            };
            let (starts, ends) = (get("starts", 1)??, get("ends", 2)??);
            let on = get("axes", 3)?.unwrap_or_else(|| (0..starts.len() as i64).collect());
            let steps = get("steps", 4)?.unwrap_or_else(|| vec![1; starts.len()]);
            let mut places = x.places()?;
            for (k, &start) in starts.iter().enumerate() {
                let a = axis(*on.get(k)?, rank)?;
                let (start, stop, step) =
                    clamp_slice(start, *ends.get(k)?, *steps.get(k)?, x.shape[a] as i64)?;
                places = places.slice(a, start, stop, step).ok()?;
            }
            x.at(&places)?
        }
        "Unsqueeze" => {
            let given = axes(n, &inputs, 1)??;
            let rank = rank + given.len();
            let at: Vec<usize> = given.iter().map(|&a| axis(a, rank)).collect::<Option<_>>()?;
            let mut old = x.shape.iter();
            let shape: Vec<usize> = (0..rank)
                .map(|i| if at.contains(&i) { Some(1) } else { old.next().copied() })
                .collect::<Option<_>>()?;
            x.with(shape, x.elements.clone())
        }
        "Squeeze" => {
            let shape = match axes(n, &inputs, 1)? {
                Some(given) => {
                    let at: Vec<usize> = given.iter().map(|&a| axis(a, rank)).collect::<Option<_>>()?;
                    (0..rank).filter(|i| !at.contains(i)).map(|i| x.shape[i]).collect()
                }
                None => x.shape.iter().copied().filter(|&d| d != 1).collect::<Vec<_>>(),
            };
            x.with(shape, x.elements.clone())
        }
        "Reshape" => {
            let given = match inputs.get(1) {
                Some(c) => c.constants()?,
                None => n.ints("shape").ok()??.to_vec(),
            };
            let keep_zero = n.flag("allowzero", false).ok()?;
            let mut shape = Vec::new();
            for (i, &d) in given.iter().enumerate() {
                shape.push(match d {
                    0 if !keep_zero => *x.shape.get(i)? as i64,
                    d => d,
                });
            }
            let rest = shape.iter().filter(|&&d| d >= 0).try_fold(1i64, |a, &d| a.checked_mul(d))?;
            let count = x.elements.len() as i64;
            let shape = shape.iter().map(|&d| match d {
                -1 if rest > 0 => Some((count / rest) as usize),
                d => usize::try_from(d).ok(),
            });
            x.with(shape.collect::<Option<_>>()?, x.elements.clone())
        }
        "Flatten" => {
            let a = n.int("axis", 1).ok()?;
            let a = usize::try_from(if a < 0 { a + rank as i64 } else { a }).ok().filter(|&a| a <= rank)?;
            let outer = x.shape[..a].iter().product();
            x.with(vec![outer, x.shape[a..].iter().product()], x.elements.clone())
        }
        "Transpose" => {
            let perm: Vec<usize> = match n.ints("perm").ok()? {
                Some(p) => p.iter().map(|&a| usize::try_from(a).ok()).collect::<Option<_>>()?,
                None => (0..rank).rev().collect(),
            };
            x.at(&x.places()?.permute(&perm).ok()?)?
        }
        "Expand" => {
            let want = inputs.get(1)?.constants()?;
            let mut shape: Vec<usize> =
                want.iter().map(|&d| usize::try_from(d).ok()).collect::<Option<_>>()?;
            while shape.len() < rank {
                shape.insert(0, 1);
            }
            let skip = shape.len() - rank;
            for (o, &d) in shape[skip..].iter_mut().zip(&x.shape) {
                if *o == 1 {
                    *o = d;
                }
            }
            if shape.iter().try_fold(1usize, |a, &d| a.checked_mul(d))? > MAX_CONTENTS {
                return None;
            }
            x.at(&x.places()?.broadcast_to(&shape).ok()?)?
        }
        "Tile" if rank == 1 && n.opset >= 6 => {
            let times = usize::try_from(*inputs.get(1)?.constants()?.first()?).ok()?;
            if x.elements.len().checked_mul(times)? > MAX_CONTENTS {
                return None;
            }
            let elements: Vec<Dim> = (0..times).flat_map(|_| x.elements.clone()).collect();
            x.with(vec![elements.len()], elements)
        }
        "ReduceProd" | "ReduceSum" | "ReduceMax" | "ReduceMin" if rank == 1 && !x.elements.is_empty() => {
            match axes(n, &inputs, 1)? {
                Some(a) if a.is_empty() && n.flag("noop_with_empty_axes", false).ok()? => return None,
                Some(a) if a.iter().any(|&a| a != 0 && a != -1) => return None,
                _ => {}
            }
            let all = x.elements.iter().cloned();
            let value = match n.op() {
                "ReduceProd" => all.product(),
                "ReduceSum" => all.sum(),
                "ReduceMax" => Dim::max_of(all.collect()),
                _ => Dim::min_of(all.collect()),
            };
            let shape = if n.flag("keepdims", true).ok()? { vec![1] } else { vec![] };
            x.with(shape, vec![value])
        }
        "Range" => {
            let (start, limit, step) = (x, inputs.get(1)?, inputs.get(2)?);
            let step_by = step.elements.first()?.as_const().filter(|&s| s != 0)?;
            let span = (limit.elements.first()? - start.elements.first()?).as_const()?;
            let len = if step_by > 0 {
                span.max(0).div_ceil_by(step_by)?
            } else {
                span.checked_neg()?.max(0).div_ceil_by(step_by.checked_neg()?)?
            };
            let len = usize::try_from(len).ok().filter(|&l| l <= 1024)?;
            let first = start.elements.first()?;
            x.with(vec![len], (0..len as i64).map(|i| first + i * step_by).collect())
        }
        "Tile" | "ReduceProd" | "ReduceSum" | "ReduceMax" | "ReduceMin" => return None,
        _ if legacy => return None,
        _ => elementwise(n, &inputs, symbols, assumed)?,
    };
    out.val()
}

trait DivCeil: Sized {
    fn div_ceil_by(self, d: Self) -> Option<Self>;
}
impl DivCeil for i64 {
    fn div_ceil_by(self, d: i64) -> Option<i64> {
        Some(self.checked_add(d - 1)? / d)
    }
}

/// Start, stop and step of ONNX's slice of a dim of known length, in range; the step is not 0. A backward slice that
/// includes element 0 stops at -1.
pub(crate) fn clamp_slice(start: i64, end: i64, step: i64, len: i64) -> Option<(i64, i64, i64)> {
    let wrap = |v: i64| if v < 0 { v.saturating_add(len) } else { v };
    match step {
        0 => None,
        1.. => {
            let (s, e) = (wrap(start).clamp(0, len), wrap(end).clamp(0, len));
            Some((s, e.max(s), step))
        }
        _ => {
            let (s, e) = (wrap(start).clamp(-1, len - 1), wrap(end).clamp(-1, len - 1));
            Some((s, e.min(s), step))
        }
    }
}
