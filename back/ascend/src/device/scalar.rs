//! Arithmetic on elements: what `arith` and `math` operations, and the chip's vector operations of the same meaning, give.

use super::exec::{Run, V};
use super::ir::{Elem, Op};
use super::mem::{round_to, wrap};

fn unsigned(e: Elem, x: i64) -> u64 {
    match e {
        Elem::Int(n) if n < 64 => x as u64 & ((1 << n) - 1),
        _ => x as u64,
    }
}

fn lesser(x: f64, y: f64) -> f64 {
    if x == y {
        if x.is_sign_negative() { x } else { y }
    } else if x < y {
        x
    } else {
        y
    }
}

fn greater(x: f64, y: f64) -> f64 {
    if x == y {
        if x.is_sign_negative() { y } else { x }
    } else if x > y {
        x
    } else {
        y
    }
}

/// What an operation gives for floats, before rounding.
pub type OnFloats = fn(&[f64]) -> f64;
/// What an operation gives for integers of a type, before wrapping.
pub type OnIntegers = fn(Elem, &[i64]) -> i64;

/// An operation on floats by name.
pub fn float(name: &str) -> Option<OnFloats> {
    Some(match name {
        "add" => |a| a[0] + a[1],
        "sub" => |a| a[0] - a[1],
        "mul" => |a| a[0] * a[1],
        "div" => |a| a[0] / a[1],
        "rem" | "mod" => |a| a[0] % a[1],
        "max" | "maximum" => |a| if a[0].is_nan() || a[1].is_nan() { f64::NAN } else { greater(a[0], a[1]) },
        "min" | "minimum" => |a| if a[0].is_nan() || a[1].is_nan() { f64::NAN } else { lesser(a[0], a[1]) },
        "maxnum" => |a| {
            if a[0].is_nan() {
                a[1]
            } else if a[1].is_nan() {
                a[0]
            } else {
                greater(a[0], a[1])
            }
        },
        "minnum" => |a| {
            if a[0].is_nan() {
                a[1]
            } else if a[1].is_nan() {
                a[0]
            } else {
                lesser(a[0], a[1])
            }
        },
        "neg" => |a| -a[0],
        "abs" => |a| a[0].abs(),
        "exp" => |a| a[0].exp(),
        "exp2" => |a| a[0].exp2(),
        "expm1" => |a| a[0].exp_m1(),
        "log" | "ln" => |a| a[0].ln(),
        "log2" => |a| a[0].log2(),
        "log1p" => |a| a[0].ln_1p(),
        "sqrt" => |a| a[0].sqrt(),
        "rsqrt" => |a| 1.0 / a[0].sqrt(),
        "rec" => |a| 1.0 / a[0],
        "relu" => |a| if a[0] > 0.0 { a[0] } else { a[0] * 0.0 },
        "sin" => |a| a[0].sin(),
        "cos" => |a| a[0].cos(),
        "tan" => |a| a[0].tan(),
        "atan" => |a| a[0].atan(),
        "atan2" => |a| a[0].atan2(a[1]),
        "tanh" => |a| a[0].tanh(),
        "erf" => |a| erf(a[0]),
        "floor" => |a| a[0].floor(),
        "ceil" => |a| a[0].ceil(),
        "trunc" => |a| a[0].trunc(),
        "round" => |a| a[0].round(),
        "rint" | "roundeven" => |a| a[0].round_ties_even(),
        "pow" => |a| a[0].powf(a[1]),
        "fma" => |a| a[0].mul_add(a[1], a[2]),
        _ => return None,
    })
}

/// An operation on integers by name; `u` operations see the operands without sign.
pub fn integer(name: &str) -> Option<OnIntegers> {
    Some(match name {
        "add" => |_, a| a[0].wrapping_add(a[1]),
        "sub" => |_, a| a[0].wrapping_sub(a[1]),
        "mul" => |_, a| a[0].wrapping_mul(a[1]),
        "divs" => |_, a| if a[1] == 0 { 0 } else { a[0].wrapping_div(a[1]) },
        "rems" => |_, a| if a[1] == 0 { 0 } else { a[0].wrapping_rem(a[1]) },
        "divu" => |e, a| unsigned(e, a[0]).checked_div(unsigned(e, a[1])).unwrap_or(0) as i64,
        "remu" => |e, a| unsigned(e, a[0]).checked_rem(unsigned(e, a[1])).unwrap_or(0) as i64,
        "ceildivs" => |_, a| {
            let (x, y) = (a[0], a[1]);
            let more = |x: i64, y: i64| i64::from(x.wrapping_rem(y) != 0 && (x < 0) == (y < 0));
            if y == 0 { 0 } else { x.wrapping_div(y) + more(x, y) }
        },
        "floordivs" => |_, a| {
            let (x, y) = (a[0], a[1]);
            let less = |x: i64, y: i64| i64::from(x.wrapping_rem(y) != 0 && (x < 0) != (y < 0));
            if y == 0 { 0 } else { x.wrapping_div(y) - less(x, y) }
        },
        "max" => |_, a| a[0].max(a[1]),
        "min" => |_, a| a[0].min(a[1]),
        "maxu" => |e, a| if unsigned(e, a[0]) > unsigned(e, a[1]) { a[0] } else { a[1] },
        "minu" => |e, a| if unsigned(e, a[0]) < unsigned(e, a[1]) { a[0] } else { a[1] },
        "and" => |_, a| a[0] & a[1],
        "or" => |_, a| a[0] | a[1],
        "xor" => |_, a| a[0] ^ a[1],
        "not" => |_, a| !a[0],
        "shl" => |_, a| a[0].checked_shl(a[1] as u32).unwrap_or(0),
        "shrs" => |_, a| a[0] >> a[1].clamp(0, 63),
        "shru" => |e, a| unsigned(e, a[0]).checked_shr(a[1] as u32).unwrap_or(0) as i64,
        "abs" => |_, a| a[0].wrapping_abs(),
        "neg" => |_, a| a[0].wrapping_neg(),
        "relu" => |_, a| a[0].max(0),
        _ => return None,
    })
}

/// A float to an integer: towards zero, to the nearest value there is; NaN gives 0.
pub fn to_int(x: f64, e: Elem, signed: bool) -> i64 {
    let n = e.bits() as u32;
    let x = x.trunc();
    if x.is_nan() {
        return 0;
    }
    if signed {
        let top = if n >= 64 { i64::MAX } else { (1i64 << (n - 1)) - 1 };
        let low = -top - 1;
        return (x as i64).clamp(low, top);
    }
    let top = if n >= 64 { u64::MAX } else { (1u64 << n) - 1 };
    wrap(e, (x as u64).min(top) as i64)
}

/// The comparison of a predicate number.
pub fn compare_int(p: i64, e: Elem, x: i64, y: i64) -> bool {
    let (ux, uy) = (unsigned(e, x), unsigned(e, y));
    match p {
        0 => x == y,
        1 => x != y,
        2 => x < y,
        3 => x <= y,
        4 => x > y,
        5 => x >= y,
        6 => ux < uy,
        7 => ux <= uy,
        8 => ux > uy,
        _ => ux >= uy,
    }
}

/// The comparison of a predicate number.
pub fn compare_float(p: i64, x: f64, y: f64) -> bool {
    let un = x.is_nan() || y.is_nan();
    match p {
        0 => false,
        1 => x == y,
        2 => x > y,
        3 => x >= y,
        4 => x < y,
        5 => x <= y,
        6 => !un && x != y,
        7 => !un,
        8 => un || x == y,
        9 => un || x > y,
        10 => un || x >= y,
        11 => un || x < y,
        12 => un || x <= y,
        13 => un || x != y,
        14 => un,
        _ => true,
    }
}

/// How a float becomes an integral one.
pub type Rounds = fn(f64) -> f64;

/// A rounding by its name, `other` for names that are not known.
pub fn rounding(name: &str, other: Rounds) -> Rounds {
    match name {
        "rint" => f64::round_ties_even,
        "round" => f64::round,
        "floor" => f64::floor,
        "ceil" => f64::ceil,
        "trunc" => f64::trunc,
        _ => other,
    }
}

/// What an `arith` or `math` operation does with one element of each operand.
#[derive(Clone, Debug)]
pub enum Fun {
    CompareInt(i64, Elem),
    CompareFloat(i64),
    Select(bool),
    /// Sign extended, or cut off.
    Signed(Elem, Elem),
    Unsigned(Elem, Elem),
    Floats(Elem),
    Directed(Elem, String),
    FromSigned(Elem, Elem),
    FromUnsigned(Elem, Elem),
    ToInt(Rounds, Elem, bool),
    Bitcast(Elem, Elem),
    /// `a * b + c` rounded once.
    Fused(Elem),
    Round(Rounds),
    IsNan,
    OnFloats(OnFloats, Elem),
    OnIntegers(OnIntegers, Elem),
}

impl Fun {
    /// The operation of a name, from elements of one type to those of another.
    pub fn of(op: &Op, name: &str, from: Elem, to: Elem) -> Run<Fun> {
        let none = || "an operation that is not known".to_string();
        Ok(match name {
            "cmpi" => Fun::CompareInt(op.int("predicate").unwrap_or(0), from),
            "cmpf" => Fun::CompareFloat(op.int("predicate").unwrap_or(0)),
            "select" => Fun::Select(to.is_float()),
            "extsi" => Fun::Signed(from, to),
            "index_cast" | "trunci" => Fun::Signed(Elem::Index, to),
            "extui" | "index_castui" => Fun::Unsigned(from, to),
            "extf" | "truncf" => match op.word("round_mode").or(op.word("roundingmode")).unwrap_or("rint") {
                mode if mode != "rint" && to.bits() <= from.bits() => Fun::Directed(to, mode.to_string()),
                _ => Fun::Floats(to),
            },
            "sitofp" => Fun::FromSigned(from, to),
            "uitofp" => Fun::FromUnsigned(from, to),
            "fptosi" | "fptoui" => {
                let mode = op.word("round_mode").unwrap_or("trunc");
                Fun::ToInt(rounding(mode, |x| x), to, name == "fptosi")
            }
            "bitcast" => Fun::Bitcast(from, to),
            "fma" => Fun::Fused(to),
            "divfhp" => Fun::OnFloats(|a| a[0] / a[1], to),
            "round" => Fun::Round(rounding(op.word("round_mode").unwrap_or("round"), f64::round)),
            "isnan" => Fun::IsNan,
            n if to.is_float() => {
                let base = match n {
                    "maximumf" => "maximum",
                    "minimumf" => "minimum",
                    "maxnumf" => "maxnum",
                    "minnumf" => "minnum",
                    "absf" => "abs",
                    "powf" => "pow",
                    "erf" => n,
                    n => n.strip_suffix('f').unwrap_or(n),
                };
                Fun::OnFloats(float(base).ok_or_else(none)?, to)
            }
            n => {
                let base = match n {
                    "maxsi" => "max",
                    "minsi" => "min",
                    "maxui" => "maxu",
                    "minui" => "minu",
                    "absi" => "abs",
                    "shli" => "shl",
                    n => n.strip_suffix('i').unwrap_or(n),
                };
                Fun::OnIntegers(integer(base).ok_or_else(none)?, to)
            }
        })
    }

    /// Its result: floats in `f`, integers in `i`.
    pub fn apply(&self, f: &[f64], i: &[i64]) -> V {
        match self {
            Fun::CompareInt(p, e) => V::I(compare_int(*p, *e, i[0], i[1]).into()),
            Fun::CompareFloat(p) => V::I(compare_float(*p, f[0], f[1]).into()),
            Fun::Select(float) => {
                let k = if i[0] & 1 != 0 { 1 } else { 2 };
                if *float { V::F(f[k]) } else { V::I(i[k]) }
            }
            Fun::Signed(Elem::Int(1), to) => V::I(wrap(*to, -(i[0] & 1))),
            Fun::Signed(_, to) => V::I(wrap(*to, i[0])),
            Fun::Unsigned(from, to) => V::I(wrap(*to, unsigned(*from, i[0]) as i64)),
            Fun::Floats(to) => V::F(round_to(*to, f[0])),
            Fun::Directed(to, mode) => V::F(round_to(*to, directed(mode, *to, f[0]))),
            Fun::FromSigned(Elem::Int(1), to) => V::F(round_to(*to, -((i[0] & 1) as f64))),
            Fun::FromSigned(_, to) => V::F(round_to(*to, i[0] as f64)),
            Fun::FromUnsigned(from, to) => V::F(round_to(*to, unsigned(*from, i[0]) as f64)),
            Fun::ToInt(round, to, signed) => V::I(to_int(round(f[0]), *to, *signed)),
            Fun::Bitcast(from, to) => bitcast(*from, *to, f[0], i[0]),
            Fun::Fused(Elem::F32) => V::F(f64::from((f[0] as f32).mul_add(f[1] as f32, f[2] as f32))),
            Fun::Fused(to) => V::F(round_to(*to, f[0].mul_add(f[1], f[2]))),
            Fun::Round(round) => V::F(round(f[0])),
            Fun::IsNan => V::I(f[0].is_nan().into()),
            Fun::OnFloats(g, to) => V::F(round_to(*to, g(f))),
            Fun::OnIntegers(g, to) => V::I(wrap(*to, g(*to, i))),
        }
    }
}

/// A float as the nearest of a type in a direction.
fn directed(mode: &str, to: Elem, x: f64) -> f64 {
    let near = round_to(to, x);
    let up = match mode {
        "floor" => false,
        "ceil" => true,
        _ => x < 0.0,
    };
    if near == x || (near > x) == up {
        return near;
    }
    // One step back towards x's other side.
    let ulp = (near.abs().max(f64::MIN_POSITIVE)) * 2f64.powi(-30);
    let step = round_to(to, if up { near + ulp } else { near - ulp });
    if step == near { near } else { step }
}

/// The same bits as another type.
pub fn bitcast(from: Elem, to: Elem, f: f64, i: i64) -> V {
    use super::mem::{code, decode};
    let bits = if from.is_float() { code(from, f) } else { unsigned(from, i) };
    if to.is_float() { V::F(decode(to, bits)) } else { V::I(wrap(to, bits as i64)) }
}

/// The error function, to about 1e-16 relative to the result's size.
pub fn erf(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    let a = x.abs();
    let r = if a < 3.0 {
        // The series of Maclaurin's type with positive terms: 2/sqrt(pi) e^(-x²) Σ 2^n x^(2n+1) / (2n+1)!!.
        let (mut term, mut sum, mut n) = (a, a, 0.0);
        while term > sum * 1e-17 {
            n += 1.0;
            term *= 2.0 * a * a / (2.0 * n + 1.0);
            sum += term;
        }
        2.0 / std::f64::consts::PI.sqrt() * (-a * a).exp() * sum
    } else if a < 6.0 {
        // The continued fraction of the complement.
        let mut c = 0.0;
        for k in (1..60).rev() {
            c = f64::from(k) / 2.0 / (a + c);
        }
        1.0 - (-a * a).exp() / ((a + c) * std::f64::consts::PI.sqrt())
    } else {
        1.0
    };
    r.copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_is_known() {
        for (x, y) in
            [(0.5, 0.520_499_877_813_046_5), (2.0, 0.995_322_265_018_952_7), (3.5, 0.999_999_256_901_627_7)]
        {
            assert!((erf(x) - y).abs() < 1e-14, "{x}: {}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
    }
}
