//! Identities of scalar operations.

use tongtu_graph::{Combiner, Op, ValueId};
use tongtu_tensor::scalar::{Binary, Compare, Unary};
use tongtu_tensor::{DType, Num, Overflow};

use super::linear;
use super::rewrite::{Rewriter, Rewritten};

/// Depth to which operands are looked through for what is known of their values.
const DEPTH: usize = 12;

/// Identities of elementwise operations.
pub(super) fn rule(rw: &mut Rewriter<'_>, op: &Op, inputs: &[ValueId]) -> Rewritten {
    match (op, inputs) {
        (Op::Unary(u), &[x]) => unary(rw, *u, x),
        (Op::Binary(b), &[x, y]) => binary(rw, *b, x, y),
        (Op::Compare(c), &[x, y]) if rw.is_const(x) && !rw.is_const(y) => {
            let flipped = match c {
                Compare::Lt => Compare::Gt,
                Compare::Gt => Compare::Lt,
                Compare::Le => Compare::Ge,
                Compare::Ge => Compare::Le,
                same => *same,
            };
            Ok(Some(rw.emit(Op::Compare(flipped), &[y, x])?))
        }
        (Op::Select {}, &[p, x, y]) => select(rw, p, x, y),
        (Op::Cast { to, mode }, &[x]) => {
            let from = rw.dtype(x);
            if from == *to && (mode.overflow == Overflow::Format || !from.is_float()) {
                return Ok(Some(vec![x]));
            }
            match rw.def(x) {
                // Saturation makes infinities finite.
                Some((Op::Cast { mode: first, .. }, y))
                    if widens(rw.dtype(y), from)
                        && (first.overflow == Overflow::Format || !rw.dtype(y).is_float()) =>
                {
                    Ok(Some(rw.emit(op.clone(), &[y])?))
                }
                _ => Ok(None),
            }
        }
        (Op::Bitcast { to }, &[x]) if rw.dtype(x) == *to => Ok(Some(vec![x])),
        (Op::Bitcast { .. }, &[x]) => match rw.def(x) {
            Some((Op::Bitcast { .. }, y)) => Ok(Some(rw.emit(op.clone(), &[y])?)),
            _ => Ok(None),
        },
        _ => Ok(None),
    }
}

/// Whether every value of a type is one of another.
fn widens(from: DType, to: DType) -> bool {
    match (from.float_format(), to.float_format()) {
        _ if from == to => true,
        (Some(f), Some(t)) => {
            let least = |x: tongtu_tensor::FloatFormat| x.min_exponent - x.mantissa_bits as i32;
            matches!(to, DType::F16 | DType::BF16 | DType::F32 | DType::F64)
                && f.mantissa_bits <= t.mantissa_bits
                && f.max_exponent <= t.max_exponent
                && least(f) >= least(t)
        }
        // The greatest magnitude is 2^bits for unsigned types, 2^(bits - 1) for signed ones.
        (None, Some(t)) => {
            let bits = if from.is_bool() { 1 } else { from.bits() - u32::from(from.is_signed()) };
            matches!(to, DType::F16 | DType::BF16 | DType::F32 | DType::F64)
                && bits <= t.mantissa_bits + 1
                && (bits as i32) < t.max_exponent
        }
        (Some(_), None) => false,
        (None, None) if from.is_bool() => to.bits() > 2,
        (None, None) if to.is_bool() => false,
        (None, None) if from.is_signed() => to.is_signed() && from.bits() <= to.bits(),
        (None, None) => from.bits() + u32::from(to.is_signed()) <= to.bits(),
    }
}

fn unary(rw: &mut Rewriter<'_>, u: Unary, x: ValueId) -> Rewritten {
    let inner = match rw.def(x) {
        Some((Op::Unary(i), y)) => Some((*i, y)),
        _ => None,
    };
    let integer = !rw.dtype(x).is_float();
    Ok(match (u, inner) {
        (Unary::Neg, Some((Unary::Neg, y))) | (Unary::Not, Some((Unary::Not, y))) => Some(vec![y]),
        (Unary::Abs, Some((Unary::Neg, y))) => Some(vec![rw.unary(Unary::Abs, y)?]),
        (Unary::Abs, Some((Unary::Abs, _))) => Some(vec![x]),
        (Unary::Abs, _) if !integer && non_negative(rw, x, DEPTH) => Some(vec![x]),
        (u, _) if rounds(u) && integer => Some(vec![x]),
        (u, Some((i, _))) if rounds(u) && rounds(i) => Some(vec![x]),
        (Unary::Not, None) if rw.dtype(x).is_bool() => match rw.node(x) {
            Some(n) if matches!(n.op, Op::Compare(Compare::Eq | Compare::Ne)) => {
                let (op, operands) = (n.op.clone(), n.inputs.clone());
                let flipped = if matches!(op, Op::Compare(Compare::Eq)) { Compare::Ne } else { Compare::Eq };
                Some(rw.emit(Op::Compare(flipped), &operands)?)
            }
            _ => None,
        },
        _ => None,
    })
}

/// Whether an operation gives integral numbers, and leaves those as they are.
fn rounds(op: Unary) -> bool {
    matches!(op, Unary::Floor | Unary::Ceil | Unary::Trunc | Unary::RoundEven)
}

/// Whether no element is negative, or a negative zero; NaN may be.
fn non_negative(rw: &Rewriter<'_>, v: ValueId, depth: usize) -> bool {
    let Some(n) = rw.node(v).filter(|_| depth > 0) else { return false };
    let at = |i: usize| n.inputs.get(i).is_some_and(|&x| non_negative(rw, x, depth - 1));
    match &n.op {
        Op::Constant { value } => {
            value.len() <= 4096
                && !value.is_absent()
                && value.iter().all(|x| matches!(x, Num::Float(x) if !x.is_sign_negative()))
        }
        Op::Unary(Unary::Abs | Unary::Exp | Unary::Exp2 | Unary::Cosh) => true,
        Op::Unary(Unary::Sqrt | Unary::Rsqrt) => at(0),
        Op::Binary(Binary::Mul) if n.inputs[0] == n.inputs[1] => true,
        Op::Binary(Binary::Add | Binary::Mul | Binary::Div | Binary::Min) => at(0) && at(1),
        Op::Binary(Binary::Max) => at(0) || at(1),
        // The greatest of no elements is minus infinity.
        Op::Reduce { combiner: Combiner::Add | Combiner::Mul | Combiner::Min, .. } => at(0),
        Op::Reshape { .. } | Op::Permute { .. } | Op::Broadcast { .. } | Op::Slice { .. } => at(0),
        Op::Cast { to, .. } => to.is_float() && rw.dtype(n.inputs[0]).is_float() && at(0),
        _ => false,
    }
}

/// Whether the sign of a zero is left open by how a value is computed: sums in any order.
fn sum(rw: &Rewriter<'_>, v: ValueId, depth: usize) -> bool {
    let Some(n) = rw.node(v).filter(|_| depth > 0) else { return false };
    match &n.op {
        Op::Conv { .. } | Op::Contract { .. } | Op::Reduce { combiner: Combiner::Add, .. } => true,
        Op::Reshape { .. }
        | Op::Permute { .. }
        | Op::Slice { .. }
        | Op::Unary(Unary::Neg)
        | Op::Binary(Binary::Mul | Binary::Div) => sum(rw, n.inputs[0], depth - 1),
        _ => false,
    }
}

/// The exact reciprocal of a power of two.
fn reciprocal(dtype: DType, n: Num) -> Option<f64> {
    let x = n.to_f64();
    let power = x.is_normal() && x.to_bits() & ((1 << 52) - 1) == 0;
    let r = 1.0 / x;
    let exact = |v: f64| dtype.decode(dtype.encode(Num::Float(v), Overflow::Format)) == Num::Float(v);
    // Both normal, so that neither form loses bits that the other keeps.
    let limit = dtype.float_format()?.min_exponent;
    (power && exact(x) && exact(r) && r.abs() >= 2f64.powi(limit) && x.abs() >= 2f64.powi(limit)).then_some(r)
}

fn commutes(op: Binary) -> bool {
    matches!(
        op,
        Binary::Add
            | Binary::Mul
            | Binary::Max
            | Binary::Min
            | Binary::MaxNum
            | Binary::MinNum
            | Binary::And
            | Binary::Or
            | Binary::Xor
    )
}

/// What `x ∘ value` is for every x.
enum With {
    Operand,
    Value,
}

fn identity(rw: &Rewriter<'_>, op: Binary, x: ValueId, value: Num) -> Option<With> {
    let dtype = rw.dtype(x);
    let is = |n: f64| value.to_f64() == n;
    let all_ones = || matches!(value, Num::Int(n) if n == if dtype.is_bool() { 1 } else if dtype.is_signed() { -1 } else { dtype.max_value().to_i128() });
    if dtype.is_float() {
        let zero_negative = value.to_f64().is_sign_negative();
        return match op {
            Binary::Add if is(0.0) && (zero_negative || sum(rw, x, DEPTH)) => Some(With::Operand),
            Binary::Sub if is(0.0) && (!zero_negative || sum(rw, x, DEPTH)) => Some(With::Operand),
            Binary::Mul | Binary::Div | Binary::Pow if is(1.0) => Some(With::Operand),
            Binary::Max if is(f64::NEG_INFINITY) => Some(With::Operand),
            Binary::Min if is(f64::INFINITY) => Some(With::Operand),
            Binary::Max if is(0.0) && !zero_negative && non_negative(rw, x, DEPTH) => Some(With::Operand),
            _ => None,
        };
    }
    match op {
        Binary::Add | Binary::Sub | Binary::Or | Binary::Xor | Binary::Shl | Binary::Shr if is(0.0) => {
            Some(With::Operand)
        }
        Binary::Mul | Binary::Div | Binary::Pow if is(1.0) && !dtype.is_bool() => Some(With::Operand),
        Binary::And | Binary::Mul if all_ones() && (dtype.is_bool() || op == Binary::And) => {
            Some(With::Operand)
        }
        Binary::Or if all_ones() => Some(With::Value),
        Binary::Mul | Binary::And if is(0.0) => Some(With::Value),
        Binary::Max | Binary::MaxNum if value == dtype.min_value() => Some(With::Operand),
        Binary::Min | Binary::MinNum if value == dtype.max_value() => Some(With::Operand),
        _ => None,
    }
}

fn binary(rw: &mut Rewriter<'_>, op: Binary, x: ValueId, y: ValueId) -> Rewritten {
    if commutes(op) && rw.is_const(x) && !rw.is_const(y) {
        return Ok(Some(vec![rw.binary(op, y, x)?]));
    }
    if x == y && matches!(op, Binary::Max | Binary::Min | Binary::And | Binary::Or) {
        return Ok(Some(vec![x]));
    }
    let dtype = rw.dtype(x);
    if let Some(n) = rw.splat(y) {
        match identity(rw, op, x, n) {
            Some(With::Operand) => return same_dims(rw, x, y),
            Some(With::Value) => return same_dims(rw, y, x),
            None => {}
        }
        if let Some(new) = power(rw, op, x, n)? {
            return Ok(Some(vec![new]));
        }
        if op == Binary::Div
            && dtype.is_float()
            && let Some(r) = reciprocal(dtype, n)
        {
            let r = rw.full_like(y, Num::Float(r))?;
            return Ok(Some(vec![rw.binary(Binary::Mul, x, r)?]));
        }
    }
    if rw.is_const(y) {
        if op == Binary::Sub {
            let n = rw.unary(Unary::Neg, y)?;
            return Ok(Some(vec![rw.binary(Binary::Add, x, n)?]));
        }
        if let Some(new) = linear::scale(rw, op, x, y)? {
            return Ok(Some(vec![new]));
        }
        if let Some(new) = merge(rw, op, x, y)? {
            return Ok(Some(vec![new]));
        }
    }
    let negated = |rw: &Rewriter<'_>, v: ValueId| match rw.def(v) {
        Some((Op::Unary(Unary::Neg), z)) => Some(z),
        _ => None,
    };
    match op {
        Binary::Add => {
            if let Some(z) = negated(rw, y) {
                return Ok(Some(vec![rw.binary(Binary::Sub, x, z)?]));
            }
            if let Some(z) = negated(rw, x).filter(|_| !rw.is_const(y)) {
                return Ok(Some(vec![rw.binary(Binary::Sub, y, z)?]));
            }
        }
        Binary::Sub => {
            if let Some(z) = negated(rw, y) {
                return Ok(Some(vec![rw.binary(Binary::Add, x, z)?]));
            }
        }
        _ => {}
    }
    Ok(None)
}

/// `x`, if its dims are surely those of the result of an operation on `x` and `other`.
fn same_dims(rw: &Rewriter<'_>, x: ValueId, other: ValueId) -> Rewritten {
    let same = rw.same_dims(rw.graph.dims(x), rw.graph.dims(other));
    Ok(same.then(|| vec![x]))
}

/// Powers that are products, roots or quotients.
fn power(
    rw: &mut Rewriter<'_>,
    op: Binary,
    x: ValueId,
    n: Num,
) -> Result<Option<ValueId>, tongtu_graph::GraphError> {
    if op != Binary::Pow {
        return Ok(None);
    }
    let e = n.to_f64();
    Ok(if e == 2.0 {
        Some(rw.binary(Binary::Mul, x, x)?)
    } else if e == 3.0 {
        let q = rw.binary(Binary::Mul, x, x)?;
        Some(rw.binary(Binary::Mul, q, x)?)
    } else if e == 0.0 {
        Some(rw.full_like(x, if rw.dtype(x).is_float() { Num::Float(1.0) } else { Num::Int(1) })?)
    } else if e == -1.0 && rw.dtype(x).is_float() {
        let one = rw.full_like(x, Num::Float(1.0))?;
        Some(rw.binary(Binary::Div, one, x)?)
    } else if e == 0.5 && non_negative(rw, x, DEPTH) {
        Some(rw.unary(Unary::Sqrt, x)?)
    } else {
        None
    })
}

/// `(x ∘ c) ∘ d` to `x ∘ (c ∘ d)`, and `(x + c) * d` likewise where a kernel takes up the factor.
fn merge(
    rw: &mut Rewriter<'_>,
    op: Binary,
    x: ValueId,
    d: ValueId,
) -> Result<Option<ValueId>, tongtu_graph::GraphError> {
    let Some((Op::Binary(inner), _)) = rw.def(x) else { return Ok(None) };
    let inner = *inner;
    let Some([z, c]) = rw.node(x).and_then(|n| <[ValueId; 2]>::try_from(n.inputs.as_slice()).ok()) else {
        return Ok(None);
    };
    if !rw.is_const(c) || !rw.single_use(x) {
        return Ok(None);
    }
    let dtype = rw.dtype(x);
    let associative = matches!(
        op,
        Binary::Add | Binary::Mul | Binary::Max | Binary::Min | Binary::And | Binary::Or | Binary::Xor
    );
    if op == inner && associative {
        let both = rw.binary(op, c, d)?;
        // A product of constants must not leave the range that the steps stayed in.
        if dtype.is_float() && matches!(op, Binary::Mul | Binary::Add) && !tame(rw, both, op == Binary::Mul) {
            return Ok(None);
        }
        return Ok(Some(rw.binary(op, z, both)?));
    }
    if inner == Binary::Add
        && matches!(op, Binary::Mul | Binary::Div)
        && dtype.is_float()
        && linear::takes_factor(rw, z, d)
    {
        let scaled = rw.binary(op, z, d)?;
        let shift = rw.binary(op, c, d)?;
        return Ok(Some(rw.binary(Binary::Add, scaled, shift)?));
    }
    Ok(None)
}

/// Whether all elements of a constant are finite and, for a factor, not near the ends of the range.
fn tame(rw: &Rewriter<'_>, v: ValueId, factor: bool) -> bool {
    let fine = |x: f64| x.is_finite() && (!factor || x.abs() > 1e-30 && x.abs() < 1e30);
    match (rw.constant(v), rw.broadcast_of(v)) {
        (Some(t), _) => t.len() <= 1 << 20 && (t.is_absent() || t.iter().all(|x| fine(x.to_f64()))),
        (None, Some((x, _))) => tame(rw, x, factor),
        _ => false,
    }
}

fn select(rw: &mut Rewriter<'_>, p: ValueId, x: ValueId, y: ValueId) -> Rewritten {
    let fits = |rw: &Rewriter<'_>, v: ValueId| {
        let dims = rw.graph.dims(p);
        rw.same_dims(rw.graph.dims(x), rw.graph.dims(y)) && rw.same_dims(rw.graph.dims(v), dims)
    };
    if x == y && fits(rw, x) {
        return Ok(Some(vec![x]));
    }
    if let Some(n) = rw.splat(p) {
        let taken = if n.is_true() { x } else { y };
        return Ok(fits(rw, taken).then(|| vec![taken]));
    }
    if let Some((Op::Unary(Unary::Not), q)) = rw.def(p) {
        return Ok(Some(rw.emit(Op::Select {}, &[q, y, x])?));
    }
    if rw.dtype(x).is_bool()
        && let (Some(a), Some(b)) = (rw.splat(x), rw.splat(y))
        && fits(rw, p)
    {
        match (a.is_true(), b.is_true()) {
            (true, false) => return Ok(Some(vec![p])),
            (false, true) => return Ok(Some(vec![rw.unary(Unary::Not, p)?])),
            _ => {}
        }
    }
    Ok(None)
}
