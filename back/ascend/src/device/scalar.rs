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

/// The float result of an operation by name, before rounding.
pub fn float(name: &str, a: &[f64]) -> Option<f64> {
    let (x, y) = (a[0], a.get(1).copied().unwrap_or(0.0));
    Some(match name {
        "add" => x + y,
        "sub" => x - y,
        "mul" => x * y,
        "div" => x / y,
        "rem" | "mod" => x % y,
        "max" | "maximum" => {
            if x.is_nan() || y.is_nan() {
                f64::NAN
            } else {
                greater(x, y)
            }
        }
        "min" | "minimum" => {
            if x.is_nan() || y.is_nan() {
                f64::NAN
            } else {
                lesser(x, y)
            }
        }
        "maxnum" => {
            if x.is_nan() {
                y
            } else if y.is_nan() {
                x
            } else {
                greater(x, y)
            }
        }
        "minnum" => {
            if x.is_nan() {
                y
            } else if y.is_nan() {
                x
            } else {
                lesser(x, y)
            }
        }
        "neg" => -x,
        "abs" => x.abs(),
        "exp" => x.exp(),
        "exp2" => x.exp2(),
        "expm1" => x.exp_m1(),
        "log" | "ln" => x.ln(),
        "log2" => x.log2(),
        "log1p" => x.ln_1p(),
        "sqrt" => x.sqrt(),
        "rsqrt" => 1.0 / x.sqrt(),
        "rec" => 1.0 / x,
        "relu" => {
            if x > 0.0 {
                x
            } else {
                x * 0.0
            }
        }
        "sin" => x.sin(),
        "cos" => x.cos(),
        "tan" => x.tan(),
        "atan" => x.atan(),
        "atan2" => x.atan2(y),
        "tanh" => x.tanh(),
        "floor" => x.floor(),
        "ceil" => x.ceil(),
        "trunc" => x.trunc(),
        "round" => x.round(),
        "rint" | "roundeven" => x.round_ties_even(),
        "pow" => x.powf(y),
        "fma" => x.mul_add(y, *a.get(2)?),
        _ => return None,
    })
}

/// The integer result of an operation by name; `u` operations see the operands without sign.
pub fn integer(name: &str, e: Elem, a: &[i64]) -> Option<i64> {
    let (x, y) = (a[0], a.get(1).copied().unwrap_or(0));
    let (ux, uy) = (unsigned(e, x), unsigned(e, y));
    let r = match name {
        "add" => x.wrapping_add(y),
        "sub" => x.wrapping_sub(y),
        "mul" => x.wrapping_mul(y),
        "divs" => {
            if y == 0 {
                0
            } else {
                x.wrapping_div(y)
            }
        }
        "rems" => {
            if y == 0 {
                0
            } else {
                x.wrapping_rem(y)
            }
        }
        "divu" => ux.checked_div(uy).unwrap_or(0) as i64,
        "remu" => ux.checked_rem(uy).unwrap_or(0) as i64,
        "ceildivs" => {
            if y == 0 {
                0
            } else {
                x.wrapping_div(y) + i64::from(x % y != 0 && (x < 0) == (y < 0))
            }
        }
        "floordivs" => {
            if y == 0 {
                0
            } else {
                x.wrapping_div(y) - i64::from(x % y != 0 && (x < 0) != (y < 0))
            }
        }
        "max" => x.max(y),
        "min" => x.min(y),
        "maxu" => {
            if ux > uy {
                x
            } else {
                y
            }
        }
        "minu" => {
            if ux < uy {
                x
            } else {
                y
            }
        }
        "and" => x & y,
        "or" => x | y,
        "xor" => x ^ y,
        "not" => !x,
        "shl" => x.checked_shl(y as u32).unwrap_or(0),
        "shrs" => x >> y.clamp(0, 63),
        "shru" => ux.checked_shr(y as u32).unwrap_or(0) as i64,
        "abs" => x.wrapping_abs(),
        "neg" => x.wrapping_neg(),
        "relu" => x.max(0),
        _ => return None,
    };
    Some(wrap(e, r))
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

/// An `arith` or `math` operation on one element of each operand: floats in `f`, integers in `i`.
pub fn apply(op: &Op, name: &str, from: Elem, to: Elem, f: &[f64], i: &[i64]) -> Run<V> {
    let none = || "an operation that is not known".to_string();
    Ok(match name {
        "cmpi" => V::I(compare_int(op.int("predicate").unwrap_or(0), from, i[0], i[1]).into()),
        "cmpf" => V::I(compare_float(op.int("predicate").unwrap_or(0), f[0], f[1]).into()),
        "select" => {
            let k = if i[0] & 1 != 0 { 1 } else { 2 };
            if to.is_float() { V::F(f[k]) } else { V::I(i[k]) }
        }
        "index_cast" | "extsi" | "trunci" => {
            let x = if from == Elem::Int(1) && name == "extsi" { -(i[0] & 1) } else { i[0] };
            V::I(wrap(to, x))
        }
        "extui" | "index_castui" => V::I(wrap(to, unsigned(from, i[0]) as i64)),
        "extf" | "truncf" => {
            let mode = op.word("round_mode").or(op.word("roundingmode")).unwrap_or("rint");
            let exact =
                if mode == "rint" || to.bits() > from.bits() { f[0] } else { directed(mode, to, f[0]) };
            V::F(round_to(to, exact))
        }
        "sitofp" => V::F(round_to(to, if from == Elem::Int(1) { -((i[0] & 1) as f64) } else { i[0] as f64 })),
        "uitofp" => V::F(round_to(to, unsigned(from, i[0]) as f64)),
        "fptosi" | "fptoui" => {
            let x = match op.word("round_mode").unwrap_or("trunc") {
                "rint" => f[0].round_ties_even(),
                "round" => f[0].round(),
                "floor" => f[0].floor(),
                "ceil" => f[0].ceil(),
                _ => f[0],
            };
            V::I(to_int(x, to, name == "fptosi"))
        }
        "bitcast" => bitcast(from, to, f[0], i[0]),
        // Rounded once.
        "fma" if to == Elem::F32 => V::F(f64::from((f[0] as f32).mul_add(f[1] as f32, f[2] as f32))),
        "fma" => V::F(round_to(to, f[0].mul_add(f[1], f[2]))),
        "divfhp" => V::F(round_to(to, f[0] / f[1])),
        "round" => V::F(match op.word("round_mode").unwrap_or("round") {
            "rint" => f[0].round_ties_even(),
            "floor" => f[0].floor(),
            "ceil" => f[0].ceil(),
            "trunc" => f[0].trunc(),
            _ => f[0].round(),
        }),
        "isnan" => V::I(f[0].is_nan().into()),
        n if to.is_float() => {
            let base = match n {
                "maximumf" => "maximum",
                "minimumf" => "minimum",
                "maxnumf" => "maxnum",
                "minnumf" => "minnum",
                "absf" => "abs",
                "powf" => "pow",
                "erf" => return Ok(V::F(round_to(to, erf(f[0])))),
                n => n.strip_suffix('f').unwrap_or(n),
            };
            V::F(round_to(to, float(base, f).ok_or_else(none)?))
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
            V::I(integer(base, to, i).ok_or_else(none)?)
        }
    })
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
