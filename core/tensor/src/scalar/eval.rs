//! Reference evaluation: each result computed in `f64` (or exactly) and rounded once to the type.
//!
//! The functions of `libm` are used rather than those of the system, so that results do not depend on the host.

use crate::{Binary, Compare, DType, Num, Overflow, Unary};

/// The value rounded to an element of the type.
fn rounded(dtype: DType, value: f64) -> Num {
    match dtype {
        DType::F64 => Num::Float(value),
        DType::F32 => Num::Float((value as f32).into()),
        _ => dtype.decode(dtype.encode(Num::Float(value), Overflow::Format)),
    }
}

/// The integer modulo 2^bits.
fn wrapped(dtype: DType, value: i128) -> Num {
    dtype.decode(dtype.encode(Num::Int(value), Overflow::Format))
}

/// The result of an operation that is not defined for the type.
fn undefined(dtype: DType) -> Num {
    rounded(dtype, f64::NAN)
}

/// Applies a unary operation to an element of type `dtype`. Total: where the operation does not
/// [accept](Unary::accepts) the type, the result is NaN (0 for integers).
pub fn eval_unary(op: Unary, dtype: DType, a: Num) -> Num {
    if !op.accepts(dtype) {
        return undefined(op.result(dtype));
    }
    match a {
        Num::Int(n) => unary_int(op, dtype, n),
        Num::Float(x) => match op {
            Unary::IsNan => Num::from(x.is_nan()),
            Unary::IsInf => Num::from(x.is_infinite()),
            _ => rounded(dtype, unary_real(op, x)),
        },
    }
}

fn unary_int(op: Unary, dtype: DType, n: i128) -> Num {
    // The bits of the element, the rest zero.
    let bits = n as u128 & (u128::MAX >> (128 - dtype.bits()));
    let value = match op {
        Unary::Neg => -n,
        Unary::Abs => n.abs(),
        Unary::Not if dtype.is_bool() => n ^ 1,
        Unary::Not => !n,
        Unary::Sign => n.signum(),
        Unary::Popcount => bits.count_ones().into(),
        Unary::Clz => i128::from(bits.leading_zeros()) - i128::from(128 - dtype.bits()),
        _ => n,
    };
    wrapped(dtype, value)
}

/// A unary operation on a real number, in `f64`.
pub(super) fn unary_real(op: Unary, x: f64) -> f64 {
    match op {
        Unary::Neg => -x,
        Unary::Abs => x.abs(),
        Unary::Sign if x == 0.0 || x.is_nan() => x,
        Unary::Sign => 1f64.copysign(x),
        Unary::Floor => x.floor(),
        Unary::Ceil => x.ceil(),
        Unary::Trunc => x.trunc(),
        Unary::RoundEven => x.round_ties_even(),
        Unary::Sqrt => x.sqrt(),
        Unary::Rsqrt => 1.0 / x.sqrt(),
        Unary::Exp => libm::exp(x),
        Unary::Exp2 => libm::exp2(x),
        Unary::Expm1 => libm::expm1(x),
        Unary::Log => libm::log(x),
        Unary::Log2 => libm::log2(x),
        Unary::Log1p => libm::log1p(x),
        Unary::Sin => libm::sin(x),
        Unary::Cos => libm::cos(x),
        Unary::Tan => libm::tan(x),
        Unary::Asin => libm::asin(x),
        Unary::Acos => libm::acos(x),
        Unary::Atan => libm::atan(x),
        Unary::Sinh => libm::sinh(x),
        Unary::Cosh => libm::cosh(x),
        Unary::Tanh => libm::tanh(x),
        Unary::Asinh => libm::asinh(x),
        // libm takes acosh(-x) for acosh(x) of negative numbers.
        Unary::Acosh => {
            if x < 1.0 {
                f64::NAN
            } else {
                libm::acosh(x)
            }
        }
        Unary::Atanh => libm::atanh(x),
        Unary::Erf => libm::erf(x),
        Unary::LogGamma => libm::lgamma(x),
        Unary::IsNan => f64::from(u8::from(x.is_nan())),
        Unary::IsInf => f64::from(u8::from(x.is_infinite())),
        Unary::Not | Unary::Popcount | Unary::Clz => f64::NAN,
    }
}

/// Applies a binary operation to elements of type `dtype`. Total: where the operation does not
/// [accept](Binary::accepts) the type, the result is NaN (0 for integers).
pub fn eval_binary(op: Binary, dtype: DType, a: Num, b: Num) -> Num {
    if !op.accepts(dtype) {
        return undefined(dtype);
    }
    match (a, b) {
        (Num::Int(a), Num::Int(b)) if dtype.is_bool() => Num::Int(match op {
            Binary::Add | Binary::Or | Binary::Max | Binary::MaxNum => a | b,
            Binary::Xor => a ^ b,
            _ => a & b,
        }),
        (Num::Int(a), Num::Int(b)) => wrapped(dtype, binary_int(op, dtype, a, b)),
        _ => rounded(dtype, binary_real(op, a.to_f64(), b.to_f64())),
    }
}

fn binary_int(op: Binary, dtype: DType, a: i128, b: i128) -> i128 {
    let width = i128::from(dtype.bits());
    match op {
        Binary::Add => a + b,
        Binary::Sub => a - b,
        // Wraps only the bits above 128, which do not count.
        Binary::Mul => a.wrapping_mul(b),
        Binary::Div | Binary::Rem | Binary::Mod if b == 0 => 0,
        Binary::Div => a / b,
        Binary::Rem => a % b,
        Binary::Mod => match a % b {
            rest if rest != 0 && (rest < 0) != (b < 0) => rest + b,
            rest => rest,
        },
        Binary::Max | Binary::MaxNum => a.max(b),
        Binary::Min | Binary::MinNum => a.min(b),
        Binary::And => a & b,
        Binary::Or => a | b,
        Binary::Xor => a ^ b,
        Binary::Shl if (0..width).contains(&b) => a << b,
        Binary::Shl => 0,
        Binary::Shr if (0..width).contains(&b) => a >> b,
        Binary::Shr => a >> 127,
        Binary::Pow => power(a, b),
        Binary::CopySign if b < 0 => -a.abs(),
        Binary::CopySign => a.abs(),
        Binary::Atan2 => 0,
    }
}

/// a^b modulo 2^128; a negative exponent gives the quotient 1 / a^-b truncated, 0 for a = 0.
fn power(a: i128, b: i128) -> i128 {
    if b < 0 {
        return match a {
            1 => 1,
            -1 if b % 2 == 0 => 1,
            -1 => -1,
            _ => 0,
        };
    }
    let (mut result, mut base, mut left) = (1i128, a, b);
    while left > 0 {
        if left & 1 == 1 {
            result = result.wrapping_mul(base);
        }
        base = base.wrapping_mul(base);
        left >>= 1;
    }
    result
}

/// A binary operation on real numbers, in `f64`.
pub(super) fn binary_real(op: Binary, a: f64, b: f64) -> f64 {
    match op {
        Binary::Add => a + b,
        Binary::Sub => a - b,
        Binary::Mul => a * b,
        Binary::Div => a / b,
        Binary::Rem => a % b,
        Binary::Mod => match a % b {
            0.0 => 0f64.copysign(b),
            rest if (rest < 0.0) != (b < 0.0) => rest + b,
            rest => rest,
        },
        Binary::Max | Binary::Min if a.is_nan() || b.is_nan() => f64::NAN,
        Binary::Max | Binary::MaxNum => extreme(a, b, a > b, a.is_sign_positive()),
        Binary::Min | Binary::MinNum => extreme(a, b, a < b, a.is_sign_negative()),
        Binary::Pow => libm::pow(a, b),
        Binary::Atan2 => libm::atan2(a, b),
        Binary::CopySign => a.copysign(b),
        Binary::And | Binary::Or | Binary::Xor | Binary::Shl | Binary::Shr => f64::NAN,
    }
}

/// One of two numbers: the other one if one is NaN, the first if it `wins` or, the two being equal, is `preferred`.
fn extreme(a: f64, b: f64, wins: bool, preferred: bool) -> f64 {
    if b.is_nan() || wins || a == b && preferred { a } else { b }
}

/// Compares elements of type `dtype`. With a NaN all comparisons are false but `ne`.
pub fn eval_compare(op: Compare, dtype: DType, a: Num, b: Num) -> bool {
    let order = match (a, b) {
        (Num::Int(a), Num::Int(b)) if !dtype.is_float() => Some(a.cmp(&b)),
        _ => a.to_f64().partial_cmp(&b.to_f64()),
    };
    match op {
        Compare::Eq => order.is_some_and(|o| o.is_eq()),
        Compare::Ne => !order.is_some_and(|o| o.is_eq()),
        Compare::Lt => order.is_some_and(|o| o.is_lt()),
        Compare::Le => order.is_some_and(|o| o.is_le()),
        Compare::Gt => order.is_some_and(|o| o.is_gt()),
        Compare::Ge => order.is_some_and(|o| o.is_ge()),
    }
}

/// `a * b + c` rounded once; integers wrap, bool is (a and b) or c.
pub fn eval_fma(dtype: DType, a: Num, b: Num, c: Num) -> Num {
    match (a, b, c) {
        (Num::Int(a), Num::Int(b), Num::Int(c)) if dtype.is_bool() => Num::Int(a & b | c),
        (Num::Int(a), Num::Int(b), Num::Int(c)) => wrapped(dtype, a.wrapping_mul(b).wrapping_add(c)),
        _ => {
            let (a, b, c) = (a.to_f64(), b.to_f64(), c.to_f64());
            match dtype {
                DType::F64 => Num::Float(libm::fma(a, b, c)),
                // Products of all narrower types are exact in f64.
                _ => rounded(dtype, add_to_odd(a * b, c)),
            }
        }
    }
}

/// a + b rounded to odd: what is inexact gets a last bit of one, so that rounding once more to half the precision or
/// less is as good as rounding the exact sum.
fn add_to_odd(a: f64, b: f64) -> f64 {
    let sum = a + b;
    // Knuth's two-sum; exact, since nothing here comes near the range of f64.
    let b_part = sum - a;
    let error = (a - (sum - b_part)) + (b - b_part);
    if !sum.is_finite() || error == 0.0 || sum.to_bits() & 1 == 1 {
        return sum;
    }
    // The exact sum lies between this value and the next one in the error's direction, which is odd.
    let outwards = (error > 0.0) == (sum > 0.0);
    f64::from_bits(if outwards { sum.to_bits() + 1 } else { sum.to_bits() - 1 })
}
