//! Element types against ml_dtypes, en_dtypes and NumPy (scripts/gen-dtype-golden.py) and the `half` crate.

use tongtu_tensor::{CastMode, DType, Num, Overflow, Rounding, bf16, cast, f16};

const GOLDEN: &str = include_str!("golden/dtypes.txt");

fn float(value: Num) -> f64 {
    match value {
        Num::Float(x) => x,
        Num::Int(n) => panic!("{n} is no float"),
    }
}

fn same(a: f64, b: f64) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

/// Lines of the golden file of one kind: the type and the fields.
fn golden(kind: &str) -> impl Iterator<Item = (DType, impl Iterator<Item = &'static str>)> {
    GOLDEN.lines().filter_map(move |line| {
        let mut words = line.split(' ');
        (words.next() == Some(kind)).then(|| (words.next().unwrap().parse().unwrap(), words))
    })
}

#[test]
fn decodes_every_code_of_narrow_types() {
    let mut count = 0;
    for (dtype, values) in golden("decode") {
        for (code, value) in values.enumerate() {
            let want = f64::from(f32::from_bits(u32::from_str_radix(value, 16).unwrap()));
            let have = float(dtype.decode(code as u64));
            assert!(same(have, want), "{dtype} {code:#x}: {have} is not {want}");
            count += 1;
        }
    }
    assert_eq!(count, 6 * 256 + 2 * 64 + 16);
}

#[test]
fn encodes_hard_values() {
    let mut count = 0;
    for (dtype, pairs) in golden("encode") {
        for pair in pairs {
            let (x, code) = pair.split_once(':').unwrap();
            let x = f64::from_bits(u64::from_str_radix(x, 16).unwrap());
            let want = u64::from_str_radix(code, 16).unwrap();
            let have = dtype.encode(Num::Float(x), Overflow::Format);
            assert_eq!(have, want, "{dtype} {x:e}: {have:#x} is not {want:#x}");
            count += 1;
        }
    }
    assert!(count > 3000, "only {count} values");
}

#[test]
fn small_scales() {
    let code = |x: f64| DType::F8E8M0.encode(Num::Float(x), Overflow::Format);
    let least = 2f64.powi(-127);
    assert_eq!(code(least * 1.5), 1);
    assert_eq!(code((least * 1.5).next_down()), 0);
    assert_eq!(code(least / 2.0), 0);
    assert_eq!(code((least / 2.0).next_down()), 255);
    assert_eq!(DType::F8E8M0.encode(Num::Float(1e-300), Overflow::Saturate), 0);
}

#[test]
fn f16_and_bf16_agree_with_half() {
    for code in 0..=u16::MAX {
        let (f, b) = (f16::from_bits(code).to_f64(), bf16::from_bits(code).to_f64());
        assert!(same(float(DType::F16.decode(code.into())), f), "{code:#x}");
        assert!(same(float(DType::BF16.decode(code.into())), b), "{code:#x}");
        for (dtype, value) in [(DType::F16, f), (DType::BF16, b)] {
            if !value.is_nan() {
                assert_eq!(
                    dtype.encode(Num::Float(value), Overflow::Format),
                    u64::from(code),
                    "{dtype} {code:#x}"
                );
            }
        }
    }
}

#[test]
fn every_code_survives_a_round_trip() {
    for &dtype in DType::ALL.iter().filter(|d| d.bits() <= 16) {
        let codes = if dtype.is_bool() { 2 } else { 1u64 << dtype.bits() };
        for code in 0..codes {
            let value = dtype.decode(code);
            for overflow in [Overflow::Format, Overflow::Saturate] {
                let infinite = matches!(value, Num::Float(x) if x.is_infinite());
                if value.is_nan() || infinite && overflow == Overflow::Saturate {
                    continue;
                }
                assert_eq!(dtype.encode(value, overflow), code, "{dtype} {code:#x}");
            }
        }
    }
}

#[test]
fn limits_are_the_greatest_and_least_values() {
    for &dtype in DType::ALL.iter().filter(|d| d.bits() <= 16) {
        let codes = if dtype.is_bool() { 2 } else { 1u64 << dtype.bits() };
        let values = (0..codes).map(|c| dtype.decode(c).to_f64()).filter(|x| x.is_finite());
        let (low, high) = values.fold((f64::MAX, f64::MIN), |(l, h), x| (l.min(x), h.max(x)));
        assert_eq!((dtype.min_value().to_f64(), dtype.max_value().to_f64()), (low, high), "{dtype}");
    }
    assert_eq!(DType::U64.max_value(), Num::Int(u64::MAX.into()));
    assert_eq!(DType::I64.min_value(), Num::Int(i64::MIN.into()));
    assert_eq!(DType::F32.max_value(), Num::Float(f32::MAX.into()));
    assert_eq!(DType::F64.min_value(), Num::Float(f64::MIN));
}

#[test]
fn saturation_clamps_to_finite_values() {
    for &dtype in DType::ALL.iter().filter(|d| d.is_float()) {
        let (low, high) = (dtype.min_value().to_f64(), dtype.max_value().to_f64());
        let saturated = |x: f64| float(dtype.decode(dtype.encode(Num::Float(x), Overflow::Saturate)));
        for x in [high * 1.5, f64::MAX, f64::INFINITY] {
            assert_eq!(saturated(x), high, "{dtype} {x}");
        }
        if dtype == DType::F8E8M0 {
            assert!(saturated(-1.0).is_nan());
            assert_eq!(saturated(0.0), low);
        } else {
            assert_eq!(saturated(f64::NEG_INFINITY), low, "{dtype}");
        }
    }
}

#[test]
fn directed_rounding_brackets_the_value() {
    let mode = |rounding| CastMode { overflow: Overflow::Format, rounding };
    for &dtype in DType::ALL.iter().filter(|d| d.is_float() && d.bits() <= 16) {
        let greatest = dtype.max_value().to_f64();
        for i in 0..4000 {
            // A spread of magnitudes over the range of the type, and both signs where it has them.
            let x = greatest * (0.97f64).powi(i % 997) * (1.0 + f64::from(i) / 4001.0) / 2.0;
            let x = if dtype.is_signed() && i % 2 == 1 { -x } else { x };
            let to = |rounding| float(cast(Num::Float(x), DType::F64, dtype, mode(rounding)));
            let (down, up) = (to(Rounding::Down), to(Rounding::Up));
            let (near, zero) = (to(Rounding::NearestEven), to(Rounding::TowardZero));
            if dtype == DType::F8E8M0 && x < dtype.min_value().to_f64() {
                continue;
            }
            assert!(down <= x && x <= up, "{dtype} {x:e}: {down:e} {up:e}");
            assert_eq!(zero, if x < 0.0 { up } else { down }, "{dtype} {x:e}");
            assert!((near - x).abs() == (down - x).abs().min((up - x).abs()), "{dtype} {x:e}");
            // Nothing lies between the two.
            let middle = (0..1u64 << dtype.bits()).map(|c| float(dtype.decode(c)));
            if dtype.bits() <= 8 && i % 37 == 0 {
                assert!(middle.filter(|v| down < *v && *v < up).count() == 0, "{dtype} {x:e}");
            }
        }
    }
}

#[test]
fn directed_overflow_follows_ieee() {
    let to = |x: f64, rounding| {
        let mode = CastMode { overflow: Overflow::Format, rounding };
        float(cast(Num::Float(x), DType::F64, DType::F16, mode))
    };
    assert_eq!(to(1e6, Rounding::TowardZero), 65504.0);
    assert_eq!(to(1e6, Rounding::Down), 65504.0);
    assert_eq!(to(1e6, Rounding::Up), f64::INFINITY);
    assert_eq!(to(-1e6, Rounding::Up), -65504.0);
    assert_eq!(to(-1e6, Rounding::Down), f64::NEG_INFINITY);
    assert_eq!(to(f64::INFINITY, Rounding::TowardZero), f64::INFINITY);
}

#[test]
fn floats_to_integers() {
    let to = |x: f64, dtype, overflow| {
        let mode = CastMode { overflow, ..CastMode::default() };
        match cast(Num::Float(x), DType::F64, dtype, mode) {
            Num::Int(n) => n,
            Num::Float(x) => panic!("{x}"),
        }
    };
    use Overflow::{Format, Saturate};
    for overflow in [Format, Saturate] {
        assert_eq!(to(2.9, DType::I8, overflow), 2);
        assert_eq!(to(-2.9, DType::I8, overflow), -2);
        assert_eq!(to(f64::NAN, DType::I32, overflow), 0);
        assert_eq!(to(-0.9, DType::U8, overflow), 0);
        assert_eq!(to(0.5, DType::Bool, overflow), 1);
        assert_eq!(to(f64::NAN, DType::Bool, overflow), 1);
    }
    assert_eq!(to(300.0, DType::I8, Saturate), 127);
    assert_eq!(to(300.0, DType::I8, Format), 44);
    assert_eq!(to(-1.0, DType::U8, Saturate), 0);
    assert_eq!(to(-1.0, DType::U8, Format), 255);
    assert_eq!(to(-129.0, DType::I8, Format), 127);
    assert_eq!(to(f64::INFINITY, DType::I64, Saturate), i64::MAX.into());
    assert_eq!(to(f64::INFINITY, DType::I64, Format), 0);
    assert_eq!(to(9.0, DType::I4, Format), -7);
    assert_eq!(to(9.0, DType::I4, Saturate), 7);
    assert_eq!(to(-3.0, DType::I2, Format), 1);
    assert_eq!(to(1e300, DType::I64, Format), 0);
    assert_eq!(to(2f64.powi(64) + 4096.0, DType::U64, Format), 4096);
    assert_eq!(to(-(2f64.powi(64) + 4096.0), DType::U64, Format), -4096i64 as u64 as i128);
}

#[test]
fn integers_to_floats_round_once() {
    let to = |n: i128, dtype: DType| float(dtype.decode(dtype.encode(Num::Int(n), Overflow::Format)));
    for n in [i64::MAX, i64::MIN, (1 << 53) + 1, (1 << 54) + 3, 0x7fff_ffbf_ffff_ffff, -0x7fff_ffbf_ffff_ffff]
    {
        assert_eq!(to(n.into(), DType::F64), n as f64);
        assert_eq!(to(n.into(), DType::F32), f64::from(n as f32), "{n}");
    }
    // 2^24 + 1 + 2^-30 of the unit: through f64 this would tie to even and round down.
    let hard = (1i128 << 62) + (1 << 38) + 1;
    assert_eq!(to(hard, DType::F32), f64::from(hard as f32));
    assert_eq!(to(u64::MAX.into(), DType::F16), f64::INFINITY);
    assert_eq!(to(2049, DType::F16), 2048.0);
    assert_eq!(to(2051, DType::F16), 2052.0);
}

#[test]
fn integers_wrap_or_clamp() {
    for &dtype in DType::ALL.iter().filter(|d| d.is_int()) {
        let (Num::Int(low), Num::Int(high)) = (dtype.min_value(), dtype.max_value()) else { panic!() };
        let to = |n, overflow| match dtype.decode(dtype.encode(Num::Int(n), overflow)) {
            Num::Int(n) => n,
            Num::Float(x) => panic!("{x}"),
        };
        assert_eq!(to(high + 1, Overflow::Format), low, "{dtype}");
        assert_eq!(to(low - 1, Overflow::Format), high, "{dtype}");
        assert_eq!(to(high + 1, Overflow::Saturate), high, "{dtype}");
        assert_eq!(to(low - 1, Overflow::Saturate), low, "{dtype}");
    }
}

#[test]
fn names_and_sizes() {
    for &dtype in DType::ALL {
        assert_eq!(dtype.name().parse::<DType>(), Ok(dtype));
        assert_eq!(serde_json::to_string(&dtype).unwrap(), format!("\"{dtype}\""));
        assert_eq!(serde_json::from_str::<DType>(&format!("\"{dtype}\"")).unwrap(), dtype);
        let kinds = [dtype.is_bool(), dtype.is_int(), dtype.is_float()];
        assert_eq!(kinds.iter().filter(|&&k| k).count(), 1, "{dtype}");
        assert_eq!(dtype.bytes_for(8), Some(dtype.bits() as usize));
        assert_eq!(dtype.bytes_for(3), Some((3 * dtype.bits() as usize).div_ceil(8)));
        assert_eq!(dtype.bytes_for(usize::MAX).is_none(), dtype.bits() > 8, "{dtype}");
    }
    assert_eq!(DType::ALL.len(), 26);
    assert!("f31".parse::<DType>().is_err());
}
