//! Scalar operations against mpmath, NumPy and Python (scripts/gen-scalar-golden.py), and the error model.

use proptest::prelude::*;
use tongtu_tensor::scalar::{self, Approx};
use tongtu_tensor::{Binary, CastMode, Compare, DType, Num, NumericClass, Overflow, Unary};

const GOLDEN: &str = include_str!("golden/scalars.txt");

fn golden(kind: &str) -> impl Iterator<Item = Vec<&'static str>> {
    GOLDEN.lines().filter_map(move |line| {
        let (first, rest) = line.split_once(' ').unwrap();
        (first == kind).then(|| rest.split(' ').collect())
    })
}

fn float(hex: &str) -> f64 {
    f64::from_bits(u64::from_str_radix(hex, 16).unwrap())
}

fn agree(have: f64, want: f64, ulps: f64) -> bool {
    if want.is_nan() || want.is_infinite() || want == 0.0 {
        return have.to_bits() == want.to_bits() || have.is_nan() && want.is_nan();
    }
    (have - want).abs() <= ulps * scalar::ulp(DType::F64, want)
}

#[test]
fn unary_agrees() {
    let mut count = 0;
    for fields in golden("unary") {
        let op = Unary::from_name(fields[0]).unwrap();
        let (x, want) = (float(fields[1]), float(fields[2]));
        let have = scalar::eval_unary(op, DType::F64, Num::Float(x)).to_f64();
        let ulps = match op.class() {
            // Two more for the reference itself.
            NumericClass::Ulp(n) => f64::from(n) + 2.0,
            _ => 0.0,
        };
        assert!(agree(have, want, ulps), "{op}({x:e}) = {have:e}, not {want:e}");
        // Narrow types: the same value rounded once, where the operand is one of theirs.
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let round = |x: f64| dtype.decode(dtype.encode(Num::Float(x), Overflow::Format)).to_f64();
            if round(x) == x {
                let have = scalar::eval_unary(op, dtype, Num::Float(x)).to_f64();
                assert!(have == round(want) || want.is_nan(), "{op}({x:e}) as {dtype} = {have:e}");
            }
        }
        count += 1;
    }
    assert!(count > 700, "{count}");
}

#[test]
fn binary_agrees() {
    for fields in golden("binary") {
        let op = Binary::from_name(fields[0]).unwrap();
        let (x, y, want) = (float(fields[1]), float(fields[2]), float(fields[3]));
        let have = scalar::eval_binary(op, DType::F64, Num::Float(x), Num::Float(y)).to_f64();
        let ulps = if matches!(op, Binary::Pow | Binary::Atan2) { 2.0 } else { 0.0 };
        assert!(agree(have, want, ulps), "{op}({x:e}, {y:e}) = {have:e}, not {want:e}");
    }
    let zeros = |op, x: f64, y: f64| {
        scalar::eval_binary(op, DType::F32, x.into(), y.into()).to_f64().is_sign_negative()
    };
    for (x, y) in [(0.0, -0.0), (-0.0, 0.0)] {
        assert!(!zeros(Binary::Max, x, y) && !zeros(Binary::MaxNum, x, y));
        assert!(zeros(Binary::Min, x, y) && zeros(Binary::MinNum, x, y));
    }
}

#[test]
fn fma_rounds_once() {
    for (kind, dtype) in [("fma", DType::F64), ("f32fma", DType::F32)] {
        for fields in golden(kind) {
            let [a, b, c, want] = [0, 1, 2, 3].map(|i| float(fields[i]));
            let have = scalar::eval_fma(dtype, a.into(), b.into(), c.into()).to_f64();
            assert_eq!(have.to_bits(), want.to_bits(), "{a:e} * {b:e} + {c:e} = {have:e}, not {want:e}");
        }
    }
}

#[test]
fn integers_agree() {
    for fields in golden("int") {
        let op = Binary::from_name(fields[0]).unwrap();
        let dtype: DType = fields[1].parse().unwrap();
        let [a, b, want] = [2, 3, 4].map(|i| fields[i].parse::<i128>().unwrap());
        let have = scalar::eval_binary(op, dtype, Num::Int(a), Num::Int(b));
        assert_eq!(have, Num::Int(want), "{op} {dtype} {a} {b}");
    }
}

/// Rust's own operators as the second opinion, on random f32.
mod against_rust {
    use super::*;

    proptest! {
        #[test]
        fn f32_arithmetic(a in any::<f32>(), b in any::<f32>(), c in any::<f32>()) {
            let num = |x: f32| Num::Float(x.into());
            let same = |have: Num, want: f32| {
                let have = have.to_f64() as f32;
                have.to_bits() == want.to_bits() || have.is_nan() && want.is_nan()
            };
            let eval = |op| scalar::eval_binary(op, DType::F32, num(a), num(b));
            prop_assert!(same(eval(Binary::Add), a + b));
            prop_assert!(same(eval(Binary::Sub), a - b));
            prop_assert!(same(eval(Binary::Mul), a * b));
            prop_assert!(same(eval(Binary::Div), a / b));
            prop_assert!(same(eval(Binary::Rem), a % b));
            prop_assert!(same(scalar::eval_unary(Unary::Sqrt, DType::F32, num(a)), a.sqrt()));
            prop_assert!(same(scalar::eval_fma(DType::F32, num(a), num(b), num(c)), a.mul_add(b, c)));
            let compare = |op| scalar::eval_compare(op, DType::F32, num(a), num(b));
            prop_assert_eq!(compare(Compare::Lt), a < b);
            prop_assert_eq!(compare(Compare::Ge), a >= b);
            prop_assert_eq!(compare(Compare::Ne), a != b);
        }

        #[test]
        fn i16_bits(a in any::<i16>()) {
            let eval = |op| scalar::eval_unary(op, DType::I16, Num::Int(a.into()));
            prop_assert_eq!(eval(Unary::Neg), Num::Int(a.wrapping_neg().into()));
            prop_assert_eq!(eval(Unary::Abs), Num::Int(a.wrapping_abs().into()));
            prop_assert_eq!(eval(Unary::Not), Num::Int((!a).into()));
            prop_assert_eq!(eval(Unary::Sign), Num::Int(a.signum().into()));
            prop_assert_eq!(eval(Unary::Popcount), Num::Int(a.count_ones().into()));
            prop_assert_eq!(eval(Unary::Clz), Num::Int(a.leading_zeros().into()));
        }
    }
}

#[test]
fn everything_is_total() {
    let floats =
        [0.0, -0.0, 1.0, -2.5, f64::MAX, f64::MIN_POSITIVE, f64::INFINITY, f64::NEG_INFINITY, f64::NAN];
    for &dtype in DType::ALL {
        let elements: Vec<Num> = match dtype.is_float() {
            true => floats.iter().map(|&x| dtype.decode(dtype.encode(x.into(), Overflow::Format))).collect(),
            false => {
                [0, 1, -1, 3].map(|n| dtype.decode(dtype.encode(Num::Int(n), Overflow::Format))).to_vec()
            }
        };
        let elements: Vec<Num> = elements.into_iter().chain([dtype.min_value(), dtype.max_value()]).collect();
        let is_element = |result: DType, value: Num| {
            let back = result.decode(result.encode(value, Overflow::Format));
            back == value || back.is_nan() && value.is_nan()
        };
        for &a in &elements {
            for &op in Unary::ALL {
                let value = scalar::eval_unary(op, dtype, a);
                assert!(is_element(op.result(dtype), value), "{op} {dtype} {a} = {value}");
                let approx = scalar::approx_unary(op, dtype, Approx { value: a, err: 0.5 });
                assert!(approx.err >= 0.0, "{op} {dtype} {a}: {approx:?}");
            }
            for &b in &elements {
                for &op in Binary::ALL {
                    let value = scalar::eval_binary(op, dtype, a, b);
                    assert!(is_element(dtype, value), "{op} {dtype} {a} {b} = {value}");
                    let approx = |err| Approx { value: a, err };
                    let result = scalar::approx_binary(op, dtype, approx(0.5), Approx::exact(b));
                    assert!(result.err >= 0.0, "{op} {dtype} {a} {b}: {result:?}");
                }
            }
        }
    }
}

/// An operand and another one within its error.
fn nearby() -> impl Strategy<Value = (f64, f64, f64)> {
    let size =
        prop_oneof![-3.0f64..3.0, -60.0f64..60.0, Just(0.0), (-8i32..8).prop_map(|n| f64::from(n) / 2.0)];
    (size, prop_oneof![Just(0.0), (-30i32..1).prop_map(|n| 2f64.powi(n))], -1.0f64..1.0)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever operands within the errors come out, computed as the reference does, lies within the result's error.
    #[test]
    fn error_bounds_hold(a in nearby(), b in nearby(), c in nearby(), unary in 0..Unary::ALL.len(), binary in 0..Binary::ALL.len()) {
        for dtype in [DType::F32, DType::BF16, DType::F64, DType::F8E4M3FN, DType::I8, DType::U8, DType::Bool] {
            let element = |x: f64| dtype.decode(dtype.encode(Num::Float(x), Overflow::Saturate));
            let operand = |(x, e, t): (f64, f64, f64)| {
                let value = element(x);
                let other = element(value.to_f64() + e * t);
                let err = (other.to_f64() - value.to_f64()).abs() * 1.25;
                // No error means the very value, the sign of a zero included.
                (Approx { value, err }, if err == 0.0 { value } else { other })
            };
            let ((a, a2), (b, b2), (c, c2)) = (operand(a), operand(b), operand(c));
            let op = Unary::ALL[unary];
            if op.accepts(dtype) {
                let bound = scalar::approx_unary(op, dtype, a);
                let other = scalar::eval_unary(op, dtype, a2);
                prop_assert!(bound.admits(other), "{} {} of {:?} and {}: {:?}, {}", op, dtype, a, a2, bound, other);
            }
            let op = Binary::ALL[binary];
            if op.accepts(dtype) {
                let bound = scalar::approx_binary(op, dtype, a, b);
                let other = scalar::eval_binary(op, dtype, a2, b2);
                prop_assert!(bound.admits(other), "{} {} of {:?}, {:?} and {}, {}: {:?}, {}", op, dtype, a, b, a2, b2, bound, other);
            }
            let bound = scalar::approx_fma(dtype, a, b, c);
            let other = scalar::eval_fma(dtype, a2, b2, c2);
            prop_assert!(bound.admits(other), "fma {} of {:?} {:?} {:?}: {:?}, {}", dtype, a, b, c, bound, other);
            for &op in Compare::ALL {
                let bound = scalar::approx_compare(op, dtype, a, b);
                let other = scalar::eval_compare(op, dtype, a2, b2);
                prop_assert!(bound.admits(other.into()), "{} {} of {:?}, {:?}", op, dtype, a, b);
            }
            for to in [DType::F16, DType::I4, DType::U8, DType::Bool, DType::F8E4M3FN] {
                for overflow in [Overflow::Format, Overflow::Saturate] {
                    let mode = CastMode { overflow, ..CastMode::default() };
                    let bound = scalar::approx_cast(a, dtype, to, mode);
                    let other = tongtu_tensor::cast(a2, dtype, to, mode);
                    prop_assert!(bound.admits(other), "{} to {}, {:?}: {:?} and {}: {:?}, {}", dtype, to, mode, a, a2, bound, other);
                }
            }
        }
    }
}

#[test]
fn bounds_are_useful() {
    let exact = |x: f64| Approx::exact(Num::Float(x));
    let near = |x: f64, err: f64| Approx { value: Num::Float(x), err };
    // Exact operands: what the class allows and no more.
    assert_eq!(scalar::approx_binary(Binary::Add, DType::F32, exact(1.0), exact(2.0)).err, 0.0);
    assert_eq!(scalar::approx_unary(Unary::Floor, DType::F32, exact(1.5)).err, 0.0);
    let exp = scalar::approx_unary(Unary::Exp, DType::F32, exact(0.5)).err;
    assert_eq!(exp, 2.5 * 2f64.powi(-23));
    // Errors grow by the derivative.
    let square = scalar::approx_binary(Binary::Mul, DType::F64, near(3.0, 1e-6), near(3.0, 1e-6)).err;
    assert!((square - 6e-6).abs() < 1e-10, "{square}");
    let sqrt = scalar::approx_unary(Unary::Sqrt, DType::F64, near(4.0, 1e-6)).err;
    assert!((sqrt - 2.5e-7).abs() < 1e-12, "{sqrt}");
    // A step nearby widens the bound to the jump, a pole to anything.
    assert_eq!(scalar::approx_unary(Unary::Floor, DType::F64, near(0.99, 0.02)).err.round(), 1.0);
    assert!(scalar::approx_binary(Binary::Div, DType::F32, exact(1.0), near(0.1, 0.2)).err.is_infinite());
    assert!(scalar::approx_unary(Unary::Tan, DType::F32, near(1.57, 0.01)).err.is_infinite());
    let undecided = scalar::approx_compare(Compare::Lt, DType::F32, near(1.0, 0.1), near(1.05, 0.0));
    assert_eq!(undecided.err, 1.0);
}

#[test]
fn units_in_the_last_place() {
    let cases = [
        (DType::F32, 1.0, 2f64.powi(-23)),
        (DType::F32, 1.999, 2f64.powi(-23)),
        (DType::F32, -2.0, 2f64.powi(-22)),
        (DType::F32, 0.0, 2f64.powi(-149)),
        (DType::F32, f64::INFINITY, 2f64.powi(104)),
        (DType::F16, 60000.0, 32.0),
        (DType::BF16, 1.0, 2f64.powi(-7)),
        (DType::F8E4M3FN, 448.0, 32.0),
        (DType::F64, 1.0, f64::EPSILON),
        (DType::HiF8, 1.0, 0.125),
        (DType::HiF8, -5.0, 0.5),
        (DType::HiF8, 20.0, 4.0),
        (DType::HiF8, 0.0, 2f64.powi(-22)),
        (DType::I32, 5.0, 1.0),
    ];
    for (dtype, x, want) in cases {
        assert_eq!(scalar::ulp(dtype, x), want, "{dtype} {x}");
    }
}
