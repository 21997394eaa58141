//! How far a conforming implementation may be from the reference, so that tolerances are computed.
//!
//! An [`Approx`] is the reference value of an element together with a bound on its error. The functions here take
//! operands with errors and give the result with its error: how much the operation changes over the operands' ranges,
//! plus what its [numeric class](NumericClass) allows. The bound is infinite where the range holds a pole, the edge of
//! the domain, or anything else after which no value can be excluded (NaN included).

use super::eval::{eval_binary, eval_compare, eval_fma, eval_unary, unary_real};
use super::{Binary, Compare, FMA_CLASS, NumericClass, Unary};
use crate::{CastMode, DType, Num, Overflow, cast};

/// A reference value and how far a conforming implementation may be from it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Approx {
    /// The reference value.
    pub value: Num,
    /// Bound on the absolute error, not negative; infinite if anything may come out. Of bool: 1 if either may.
    pub err: f64,
}

impl Approx {
    /// A value without error.
    pub fn exact(value: Num) -> Approx {
        Approx { value, err: 0.0 }
    }

    /// Whether another value is within the bound. NaN agrees with NaN, and an infinity with itself; an infinite
    /// bound admits everything.
    pub fn admits(&self, other: Num) -> bool {
        if self.err == f64::INFINITY {
            return true;
        }
        match (self.value, other) {
            (Num::Int(a), Num::Int(b)) => a == b || a.abs_diff(b) as f64 <= self.err,
            (a, b) if a.is_nan() || b.is_nan() => a.is_nan() && b.is_nan(),
            (a, b) => a == b || (a.to_f64() - b.to_f64()).abs() <= self.err,
        }
    }
}

/// The distance between neighbouring values of a type around a value: of floats in the value's binade (in the subnormal
/// range the least value, beyond the finite range that of the greatest binade), of other types 1.
pub fn ulp(dtype: DType, value: f64) -> f64 {
    let Some(format) = dtype.float_format() else { return 1.0 };
    let size = value.abs();
    let exponent = match size {
        size if size.is_nan() || size.is_infinite() => format.max_exponent,
        0.0 => return least_spacing(dtype),
        _ => libm::ilogb(size).min(format.max_exponent),
    };
    match dtype {
        DType::HiF8 => crate::hif8::spacing(size),
        _ => {
            let unit = exponent.max(format.min_exponent) - format.mantissa_bits as i32;
            libm::ldexp(1.0, unit)
        }
    }
}

fn least_spacing(dtype: DType) -> f64 {
    ulp(dtype, f64::MIN_POSITIVE)
}

/// The result of an operation: the change over the operands' ranges, plus what rounding allows.
fn finish(dtype: DType, class: NumericClass, value: Num, change: f64) -> Approx {
    if !dtype.is_float() {
        return Approx { value, err: change };
    }
    if change.is_nan() || change == f64::INFINITY {
        return Approx { value, err: f64::INFINITY };
    }
    let size = value.to_f64();
    if !size.is_finite() {
        // An implementation may come out finite where the reference just overflowed, or the other way round.
        let err = if change == 0.0 { 0.0 } else { f64::INFINITY };
        return Approx { value, err };
    }
    let unit = ulp(dtype, size.abs() + change);
    // Where operands differ, both results are rounded: half a unit each.
    let rounding = match class {
        NumericClass::Exact if change == 0.0 => 0.0,
        NumericClass::CorrectlyRounded if change == 0.0 => 0.0,
        NumericClass::Exact | NumericClass::CorrectlyRounded => unit,
        NumericClass::Ulp(n) => (f64::from(n) + 0.5) * unit,
    };
    // The reference of f64 is itself within an ulp or so, as are the bounds computed here.
    let slack = match (dtype, class) {
        (DType::F64, NumericClass::Ulp(_)) => 2.0 * unit,
        _ if change > 0.0 => change * 1e-12 + 2.0 * ulp(DType::F64, size),
        _ => 0.0,
    };
    let err = change + rounding + slack;
    let greatest = dtype.max_value().to_f64();
    let err = if size.abs() + err > greatest + unit { f64::INFINITY } else { err };
    Approx { value, err }
}

/// [`eval_unary`] with errors.
pub fn approx_unary(op: Unary, dtype: DType, a: Approx) -> Approx {
    let value = eval_unary(op, dtype, a.value);
    let result = op.result(dtype);
    let class = if dtype.is_float() { op.class() } else { NumericClass::Exact };
    let change = match a.value {
        _ if a.err == 0.0 => 0.0,
        _ if a.err == f64::INFINITY => unbounded(result),
        Num::Int(n) => int_change(op, dtype, n, a.err),
        Num::Float(x) => real_change(op, x, a.err),
    };
    finish(result, class, value, change)
}

/// The bound that excludes nothing.
fn unbounded(dtype: DType) -> f64 {
    if dtype.is_bool() { 1.0 } else { f64::INFINITY }
}

fn int_change(op: Unary, dtype: DType, n: i128, err: f64) -> f64 {
    if dtype.is_bool() {
        return 1.0;
    }
    match op {
        Unary::Neg | Unary::Abs | Unary::Not => wrapping_change(dtype, -(n as f64), err),
        Unary::Sign => {
            let sign = |x: f64| if x == 0.0 { 0.0 } else { x.signum() };
            endpoints(n as f64, err, sign)
        }
        Unary::Popcount | Unary::Clz => dtype.bits().into(),
        _ => err,
    }
}

/// The error of an integer result, infinite if it might wrap.
fn wrapping_change(dtype: DType, value: f64, err: f64) -> f64 {
    let (low, high) = (dtype.min_value().to_f64(), dtype.max_value().to_f64());
    if value - err < low || value + err > high { f64::INFINITY } else { err }
}

/// The greatest change of a function that is monotone or convex over [x - err, x + err].
fn endpoints(x: f64, err: f64, f: impl Fn(f64) -> f64) -> f64 {
    let here = f(x);
    let change = (f(x - err) - here).abs().max((f(x + err) - here).abs());
    match here.is_nan() || f(x - err).is_nan() || f(x + err).is_nan() {
        true => f64::INFINITY,
        false => change,
    }
}

fn real_change(op: Unary, x: f64, err: f64) -> f64 {
    let (low, high) = (x - err, x + err);
    let f = |x: f64| unary_real(op, x);
    if !x.is_finite() {
        return unbounded(op.result(DType::F64));
    }
    match op {
        Unary::Neg | Unary::Abs => err,
        Unary::IsNan | Unary::IsInf => 0.0,
        Unary::Sin | Unary::Cos => err.min(2.0),
        // tan has a pole where cos changes sign; over half a period it is sure to have one.
        Unary::Tan if err >= 1.5 || libm::cos(low) * libm::cos(high) <= 0.0 => f64::INFINITY,
        Unary::Rsqrt | Unary::Log | Unary::Log2 if low <= 0.0 => f64::INFINITY,
        Unary::Log1p if low <= -1.0 => f64::INFINITY,
        Unary::Atanh if low <= -1.0 || high >= 1.0 => f64::INFINITY,
        Unary::LogGamma if low <= 0.0 && low.ceil() <= high.min(0.0) => f64::INFINITY,
        // The others are monotone, or convex (cosh, lgamma between poles).
        _ => endpoints(x, err, f),
    }
}

/// [`eval_binary`] with errors.
pub fn approx_binary(op: Binary, dtype: DType, a: Approx, b: Approx) -> Approx {
    let value = eval_binary(op, dtype, a.value, b.value);
    let class = if dtype.is_float() { op.class() } else { NumericClass::Exact };
    let change = match (a.value, b.value) {
        _ if a.err == 0.0 && b.err == 0.0 => 0.0,
        _ if dtype.is_bool() => bool_change(op, a, b),
        _ if a.err == f64::INFINITY || b.err == f64::INFINITY => f64::INFINITY,
        (Num::Int(x), Num::Int(y)) => int_change2(op, dtype, (x, a.err), (y, b.err)),
        (x, y) => real_change2(op, (x.to_f64(), a.err), (y.to_f64(), b.err)),
    };
    finish(dtype, class, value, change)
}

/// 1 if the uncertain operands can change the result.
fn bool_change(op: Binary, a: Approx, b: Approx) -> f64 {
    let choices = |x: Approx| match x.err == 0.0 {
        true => vec![x.value],
        false => vec![Num::Int(0), Num::Int(1)],
    };
    let value = eval_binary(op, DType::Bool, a.value, b.value);
    let (left, right) = (choices(a), choices(b));
    let differs = left.iter().any(|&x| right.iter().any(|&y| eval_binary(op, DType::Bool, x, y) != value));
    f64::from(u8::from(differs))
}

fn int_change2(op: Binary, dtype: DType, (a, ea): (i128, f64), (b, eb): (i128, f64)) -> f64 {
    let (x, y) = (a as f64, b as f64);
    match op {
        Binary::Add => wrapping_change(dtype, x + y, ea + eb),
        Binary::Sub => wrapping_change(dtype, x - y, ea + eb),
        Binary::Mul => wrapping_change(dtype, x * y, x.abs() * eb + y.abs() * ea + ea * eb),
        Binary::Max | Binary::Min | Binary::MaxNum | Binary::MinNum => ea.max(eb),
        // Truncation moves either result by less than one.
        Binary::Div if y.abs() > eb => corners((x, ea), (y, eb), |x, y| (x / y).trunc()),
        Binary::Rem | Binary::Mod => remainder_change(op, (x, ea), (y, eb)),
        Binary::CopySign if y.abs() > eb || y == eb => ea,
        Binary::CopySign => 2.0 * x.abs() + ea,
        _ => f64::INFINITY,
    }
}

/// The greatest change of a function that is monotone in each operand over a box.
fn corners((x, ex): (f64, f64), (y, ey): (f64, f64), f: impl Fn(f64, f64) -> f64) -> f64 {
    let here = f(x, y);
    let mut change = 0f64;
    for (dx, dy) in [(-ex, -ey), (-ex, ey), (ex, -ey), (ex, ey)] {
        let there = f(x + dx, y + dy);
        if there.is_nan() || here.is_nan() {
            return f64::INFINITY;
        }
        change = change.max((there - here).abs());
    }
    change
}

/// Remainders are a - q·b while the quotient rounds to the same q, and else anything up to b.
fn remainder_change(op: Binary, (x, ex): (f64, f64), (y, ey): (f64, f64)) -> f64 {
    if y.abs() <= ey {
        return f64::INFINITY;
    }
    let quotient = |x: f64, y: f64| match op {
        Binary::Mod => (x / y).floor(),
        _ => (x / y).trunc(),
    };
    let q = quotient(x, y);
    // Near a step the computed quotient is not to be trusted either.
    let margin = (x / y).abs() * 1e-12;
    let stays = corners((x, ex), (y, ey), quotient) == 0.0
        && quotient(x + margin * y, y) == q
        && quotient(x - margin * y, y) == q;
    if stays { ex + q.abs() * ey } else { ex + 2.0 * (y.abs() + ey) }
}

/// The change where one operand is an infinity or NaN: none if that alone decides the result.
fn special_change(op: Binary, (x, ex): (f64, f64), (y, ey): (f64, f64)) -> f64 {
    if !x.is_finite() && ex != 0.0 || !y.is_finite() && ey != 0.0 {
        return f64::INFINITY;
    }
    let nan = x.is_nan() || y.is_nan();
    let infinite = if x.is_finite() { y } else { x };
    let (other, err) = if x.is_finite() { (x, ex) } else { (y, ey) };
    match op {
        Binary::Add | Binary::Sub => 0.0,
        Binary::Mul | Binary::Div | Binary::Max | Binary::Min if nan => 0.0,
        Binary::Mul if other.abs() > err => 0.0,
        Binary::Div if x.is_finite() || other.abs() > err => 0.0,
        Binary::Max if infinite > 0.0 => 0.0,
        Binary::Min if infinite < 0.0 => 0.0,
        Binary::Max | Binary::Min => err,
        _ => f64::INFINITY,
    }
}

/// The greatest change of the greater of two numbers.
fn greater_change((x, ex): (f64, f64), (y, ey): (f64, f64)) -> f64 {
    let here = x.max(y);
    (here - (x - ex).max(y - ey)).max((x + ex).max(y + ey) - here)
}

fn real_change2(op: Binary, (x, ex): (f64, f64), (y, ey): (f64, f64)) -> f64 {
    if !x.is_finite() || !y.is_finite() {
        return special_change(op, (x, ex), (y, ey));
    }
    match op {
        Binary::Add | Binary::Sub => ex + ey,
        Binary::Mul => x.abs() * ey + y.abs() * ex + ex * ey,
        Binary::Div if y.abs() > ey => corners((x, ex), (y, ey), |x, y| x / y),
        Binary::Div => f64::INFINITY,
        Binary::Max | Binary::MaxNum => greater_change((x, ex), (y, ey)),
        Binary::Min | Binary::MinNum => greater_change((-x, ex), (-y, ey)),
        Binary::Rem | Binary::Mod => remainder_change(op, (x, ex), (y, ey)),
        Binary::CopySign if y.abs() > ey || ey == 0.0 => ex,
        Binary::CopySign => 2.0 * x.abs() + ex,
        Binary::Pow if x - ex > 0.0 => corners((x, ex), (y, ey), libm::pow),
        // A fixed integer power is monotone or convex, off zero if negative.
        Binary::Pow if ey == 0.0 && y.fract() == 0.0 && (y >= 0.0 || x.abs() > ex) => {
            endpoints(x, ex, |x| libm::pow(x, y))
        }
        Binary::Pow => f64::INFINITY,
        Binary::Atan2 => {
            let (radius, err) = (x.hypot(y), ex.hypot(ey));
            let on_cut = y - ey <= 0.0 && x.abs() <= ex;
            if radius <= err || on_cut { 2.0 * std::f64::consts::PI } else { libm::asin(err / radius) }
        }
        Binary::And | Binary::Or | Binary::Xor | Binary::Shl | Binary::Shr => f64::INFINITY,
    }
}

/// [`eval_compare`] with errors; the value is bool.
pub fn approx_compare(op: Compare, dtype: DType, a: Approx, b: Approx) -> Approx {
    let value = Num::from(eval_compare(op, dtype, a.value, b.value));
    let (x, y, err) = (a.value.to_f64(), b.value.to_f64(), a.err + b.err);
    let decided = err == 0.0 || (x - y).abs() > err && err != f64::INFINITY;
    Approx { value, err: if decided { 0.0 } else { 1.0 } }
}

/// [`eval_fma`] with errors.
pub fn approx_fma(dtype: DType, a: Approx, b: Approx, c: Approx) -> Approx {
    let value = eval_fma(dtype, a.value, b.value, c.value);
    let (x, y) = (a.value.to_f64(), b.value.to_f64());
    let change = match a.err == 0.0 && b.err == 0.0 && c.err == 0.0 {
        true => 0.0,
        false => x.abs() * b.err + y.abs() * a.err + a.err * b.err + c.err,
    };
    match dtype {
        DType::Bool => Approx { value, err: change.min(1.0) },
        _ if dtype.is_int() => {
            let exact = x * y + c.value.to_f64();
            let err = if change == 0.0 { 0.0 } else { wrapping_change(dtype, exact, change) };
            Approx { value, err }
        }
        _ => finish(dtype, FMA_CLASS, value, change),
    }
}

/// [`cast`] with errors.
pub fn approx_cast(a: Approx, from: DType, to: DType, mode: CastMode) -> Approx {
    let value = cast(a.value, from, to, mode);
    if a.err == 0.0 {
        return Approx::exact(value);
    }
    let x = a.value.to_f64();
    if to.is_bool() {
        return Approx { value, err: f64::from(u8::from(x.abs() <= a.err || x.is_nan())) };
    }
    if to.is_int() {
        let (low, high) = (to.min_value().to_f64(), to.max_value().to_f64());
        let saturated = |x: f64| x.trunc().clamp(low, high);
        let err = match mode.overflow {
            _ if !(x.is_finite() && a.err.is_finite()) => f64::INFINITY,
            Overflow::Format if x - a.err <= low - 1.0 || x + a.err >= high + 1.0 => f64::INFINITY,
            _ => endpoints(x, a.err, saturated),
        };
        return Approx { value, err };
    }
    // Without a sign and a zero, what is not positive is NaN.
    if to == DType::F8E8M0 && x <= a.err {
        return Approx { value, err: f64::INFINITY };
    }
    match mode.overflow {
        Overflow::Saturate if x.is_finite() => {
            let err = a.err + ulp(to, x.abs() + a.err);
            Approx { value, err }
        }
        _ => finish(to, NumericClass::CorrectlyRounded, value, a.err),
    }
}
