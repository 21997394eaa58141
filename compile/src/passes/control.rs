//! Dims as values, and control flow whose course is known.

use std::sync::Arc;

use tongtu_graph::{Graph, Node, Op, ValueId};
use tongtu_tensor::dim::Dim;
use tongtu_tensor::scalar::{Binary, Compare};
use tongtu_tensor::{DType, Num, Tensor};

use super::dce::is_condition;
use super::movement::scalar_dim;
use super::rewrite::{Rewriter, Rewritten};

/// Longest expression that takes a symbol's place; a longer one keeps its name, so that sizes made of it stay short.
const MAX_BOUND: u32 = 64;

/// Arithmetic of dims, binding of symbols to known values, branches that are always or never taken.
pub(super) fn rule(rw: &mut Rewriter<'_>, op: &Op, inputs: &[ValueId]) -> Rewritten {
    match (op, inputs) {
        (Op::DimValue { dim }, []) => match dim.as_const() {
            Some(n) => Ok(Some(vec![rw.tensor(Tensor::scalar(DType::I64, Num::from(n)))?])),
            None => Ok(None),
        },
        (Op::Bind { sym }, &[x]) => {
            let short = |d: &Dim| d.size() <= MAX_BOUND && !d.symbols().contains(sym);
            let Some(dim) = scalar_dim(rw, x).filter(short) else { return Ok(None) };
            if rw.known.contains(sym) || is_condition(*sym, rw.symbols) && dim.as_const().is_none() {
                return Ok(None);
            }
            rw.bound.insert(*sym, dim);
            Ok(Some(vec![]))
        }
        (Op::Binary(b), &[x, y]) => dims(rw, *b, x, y),
        (Op::Compare(c), &[x, y]) => {
            let (Some(a), Some(b)) = (scalar_dim(rw, x), scalar_dim(rw, y)) else { return Ok(None) };
            let Some(known) = decide(rw, *c, &a, &b) else { return Ok(None) };
            Ok(Some(vec![rw.full(DType::Bool, known.into(), &[])?]))
        }
        // A dim that fits the narrower type comes back from it unchanged.
        (Op::Cast { to: DType::I64, .. }, &[x]) => match rw.def(x) {
            Some((Op::Cast { to: DType::I32, .. }, y)) if fits_i32(rw, y) => Ok(Some(vec![y])),
            _ => Ok(None),
        },
        (Op::Cast { to, .. }, &[x]) => {
            // Counting in the type that is wanted.
            let Some(Op::Iota { dtype, dims, axis }) = rw.op(x) else { return Ok(None) };
            let most = dims.get(*axis).and_then(|d| d.bounds(rw.symbols).1);
            let limit = match to {
                DType::I32 | DType::I64 | DType::U32 | DType::F64 => i64::from(i32::MAX),
                DType::F32 => 1 << 24,
                _ => return Ok(None),
            };
            if !dtype.is_int() || dtype.bits() < 32 || most.is_none_or(|m| m > limit) {
                return Ok(None);
            }
            let op = Op::Iota { dtype: *to, dims: dims.clone(), axis: *axis };
            Ok(Some(rw.emit(op, &[])?))
        }
        (Op::If { then_branch, else_branch, results }, [condition, captured @ ..]) => {
            let Some(n) = rw.splat(*condition) else { return with_constants(rw, op, inputs) };
            let branch = if n.is_true() { then_branch } else { else_branch };
            let out = rw.splice(branch, captured)?;
            rw.bind_types(results, &out);
            Ok(Some(out))
        }
        (Op::While { results, .. }, [condition, rest @ ..]) => {
            if rw.splat(*condition).is_none_or(|n| n.is_true()) {
                return with_constants(rw, op, inputs);
            }
            let out: Vec<ValueId> = rest.iter().copied().take(results.len()).collect();
            rw.bind_types(results, &out);
            Ok(Some(out))
        }
        _ => Ok(None),
    }
}

/// Captured constants in the regions themselves; those that are repeated stay outside.
fn with_constants(rw: &mut Rewriter<'_>, op: &Op, inputs: &[ValueId]) -> Rewritten {
    let carried = if let Op::While { results, .. } = op { results.len() } else { 0 };
    let regions: Vec<&Arc<Graph>> = match op {
        Op::If { then_branch, else_branch, .. } => vec![then_branch, else_branch],
        Op::While { body, .. } => vec![body],
        _ => return Ok(None),
    };
    // A parameter may not be what gives a symbol its value.
    let fits = |rw: &Rewriter<'_>, i: usize, v: ValueId| {
        regions.iter().all(|g| g.inputs.get(i).is_some_and(|&p| g.ty(p) == rw.graph.ty(v)))
    };
    let captured: Vec<Option<Tensor>> = inputs[1..]
        .iter()
        .enumerate()
        .map(|(i, &v)| rw.constant(v).filter(|_| i >= carried && fits(rw, i, v)).cloned())
        .collect();
    if captured.iter().all(Option::is_none) {
        return Ok(None);
    }
    let region = |g: &Arc<Graph>| {
        let mut new = Graph::clone(g);
        let (mut kept, mut constants) = (Vec::new(), Vec::new());
        for (&v, constant) in g.inputs.iter().zip(&captured) {
            match constant {
                None => kept.push(v),
                Some(value) => constants.push(Node {
                    op: Op::Constant { value: value.clone() },
                    inputs: Vec::new(),
                    outputs: vec![v],
                    loc: Default::default(),
                }),
            }
        }
        new.inputs = kept;
        new.nodes.splice(0..0, constants);
        Arc::new(new)
    };
    let new = match op {
        Op::If { then_branch, else_branch, results } => Op::If {
            then_branch: region(then_branch),
            else_branch: region(else_branch),
            results: results.clone(),
        },
        Op::While { body, results } => Op::While { body: region(body), results: results.clone() },
        _ => return Ok(None),
    };
    let mut operands = vec![inputs[0]];
    operands.extend(inputs[1..].iter().zip(&captured).filter(|(_, c)| c.is_none()).map(|(v, _)| *v));
    Ok(Some(rw.emit(new, &operands)?))
}

fn fits_i32(rw: &Rewriter<'_>, v: ValueId) -> bool {
    let Some(Op::DimValue { dim }) = rw.op(v) else { return false };
    let (low, high) = dim.bounds(rw.symbols);
    low.is_some_and(|l| l >= i64::from(i32::MIN)) && high.is_some_and(|h| h <= i64::from(i32::MAX))
}

/// Arithmetic of two dims as a dim.
fn dims(rw: &mut Rewriter<'_>, op: Binary, x: ValueId, y: ValueId) -> Rewritten {
    let (Some(a), Some(b)) = (scalar_dim(rw, x), scalar_dim(rw, y)) else { return Ok(None) };
    if a.as_const().is_some() && b.as_const().is_some() {
        return Ok(None);
    }
    if matches!(op, Binary::Div | Binary::Rem) {
        assume_not_negative(rw, &a);
    }
    let positive = |d: &Dim| rw.non_negative(&(d - 1));
    let dim = match op {
        Binary::Add => &a + &b,
        Binary::Sub => &a - &b,
        Binary::Mul => &a * &b,
        // These round towards zero, or give 0 for a divisor of 0.
        Binary::Div if rw.non_negative(&a) && positive(&b) => a.floordiv(&b),
        Binary::Rem if rw.non_negative(&a) && positive(&b) => a.modulo(&b),
        Binary::Mod if positive(&b) => a.modulo(&b),
        Binary::Max => a.max(&b),
        Binary::Min => a.min(&b),
        _ => return Ok(None),
    };
    Ok(Some(rw.emit(Op::DimValue { dim }, &[])?))
}

/// Exporters write the length of a strided result as `(n - 1) / stride + 1`, which is meant for lengths of at least 1. That
/// `n` is not 0 becomes part of what is declared of it, and is checked where it gets its value.
fn assume_not_negative(rw: &mut Rewriter<'_>, dim: &Dim) {
    let symbols = dim.symbols();
    let (Some(&sym), 1) = (symbols.first(), symbols.len()) else { return };
    let Some(info) = rw.symbols.get(sym).filter(|i| i.lower == 0).cloned() else { return };
    if *dim != Dim::from(sym) - 1 || !rw.outermost || info.upper.is_some_and(|u| u < 1) {
        return;
    }
    rw.symbols.set_bounds(sym, 1, info.upper);
}

/// Whether a comparison holds, where that is so for all sizes.
fn decide(rw: &Rewriter<'_>, op: Compare, a: &Dim, b: &Dim) -> Option<bool> {
    let le = |x: &Dim, y: &Dim| x.provably_le(y, rw.symbols);
    let lt = |x: &Dim, y: &Dim| (x + 1).provably_le(y, rw.symbols);
    let tell = |yes: bool, no: bool| if yes { Some(true) } else { no.then_some(false) };
    let equal = || tell(a.provably_eq(b, rw.symbols), lt(a, b) || lt(b, a));
    match op {
        Compare::Eq => equal(),
        Compare::Ne => equal().map(|e| !e),
        Compare::Lt => tell(lt(a, b), le(b, a)),
        Compare::Le => tell(le(a, b), lt(b, a)),
        Compare::Gt => tell(lt(b, a), le(a, b)),
        Compare::Ge => tell(le(b, a), lt(a, b)),
    }
}
