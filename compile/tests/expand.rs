//! The expansions against other implementations: f32 against the system's f64 functions over the whole range, f64
//! against values computed in 400 digits by mpmath, conversions and narrow types against the scalar table.

use std::collections::BTreeMap;

use tongtu_compile::expand::expand;
use tongtu_tensor::scalar::{Binary, Unary, eval_binary, eval_compare, eval_fma, eval_unary};
use tongtu_tensor::{CastMode, Compare, DType, Num, NumericClass, Overflow, Rounding};
use tongtu_tile::interp::{BufferData, Options, run};
use tongtu_tile::{Access, Kernel, KernelBuilder, Op, TileMap, Ty, verify};

/// The least a chip must have: the four operations, square root and fused multiply-add of f32 and f64, 32- and 64-bit integers.
fn least(op: &Op, tys: &[Ty]) -> bool {
    let d = tys.first().map_or(DType::I64, Ty::dtype);
    let wide = |d: DType| d.bits() >= 32;
    match op {
        Op::Unary(u) => {
            wide(d) && d.is_float() && matches!(u, Unary::Sqrt) || d.is_bool() && *u == Unary::Not
        }
        Op::Binary(b) if d.is_float() => {
            wide(d) && matches!(b, Binary::Add | Binary::Sub | Binary::Mul | Binary::Div)
        }
        Op::Binary(b) => {
            (wide(d) || d.is_bool())
                && !matches!(
                    b,
                    Binary::Rem
                        | Binary::Mod
                        | Binary::Pow
                        | Binary::Max
                        | Binary::Min
                        | Binary::MaxNum
                        | Binary::MinNum
                )
        }
        Op::Compare(_) | Op::Fma {} => wide(d),
        Op::Cast { to, mode } => {
            let simple = |d: DType| wide(d) || d.is_int();
            let int =
                !d.is_float() || mode.overflow == Overflow::Saturate && matches!(to, DType::I32 | DType::I64);
            simple(d)
                && (to.is_float() && wide(*to) && (d.is_float() || wide(d))
                    || to.is_int() && int && mode.overflow == Overflow::Format
                    || to.is_int() && d.is_float() && int)
                || d.is_bool() && *to == DType::I32
        }
        Op::Mma {} | Op::Reduce { .. } => wide(d) || d.is_bool(),
        _ => true,
    }
}

/// Without fused multiply-add.
fn no_fma(op: &Op, tys: &[Ty]) -> bool {
    !matches!(op, Op::Fma {}) && least(op, tys)
}

/// Without f64.
fn no_f64(op: &Op, tys: &[Ty]) -> bool {
    let wide = |t: &Ty| t.dtype() == DType::F64;
    least(op, tys) && !tys.iter().any(wide) && !matches!(op, Op::Cast { to: DType::F64, .. })
}

fn kernel(op: &Op, types: &[DType], n: usize) -> Kernel {
    let mut b = KernelBuilder::new("k");
    let inputs: Vec<_> =
        types.iter().enumerate().map(|(i, &d)| b.buffer(&format!("x{i}"), d, Access::Read)).collect();
    let probe: Vec<Ty> = types.iter().map(|&d| Ty::tile(d, &[n])).collect();
    let result = tongtu_tile::infer::infer(op, &probe.iter().collect::<Vec<_>>()).unwrap()[0].dtype();
    let out = b.buffer("y", result, Access::Write);
    let (zero, len, one) = (b.int(0), b.int(n as i64), b.int(1));
    let tiles: Vec<_> = inputs
        .iter()
        .map(|&x| {
            let v = b.view(x, zero, &[len], &[one]).unwrap();
            b.load(v, &[zero], TileMap::along(&[n], &[0]), &[true], Num::Int(0)).unwrap()
        })
        .collect();
    let y = b.add_inst(op.clone(), &tiles).unwrap()[0];
    let v = b.view(out, zero, &[len], &[one]).unwrap();
    b.store(v, y, &[zero], TileMap::along(&[n], &[0]), &[true]).unwrap();
    b.finish()
}

fn compute(op: Op, inputs: &[BufferData], native: &dyn Fn(&Op, &[Ty]) -> bool) -> BufferData {
    let types: Vec<DType> = inputs.iter().map(|b| b.dtype).collect();
    let n = inputs[0].codes.len();
    let mut k = kernel(&op, &types, n);
    let result = k.params.last().map(|p| k.ty(p.value).dtype()).unwrap();
    expand(&mut k, native);
    if let Err(e) = verify(&k) {
        panic!("{}: {}", op.name(), e[0]);
    }
    let mut left = BTreeMap::new();
    leftovers(&k, &k.body, native, &mut left);
    assert!(left.is_empty(), "{} of {types:?} leaves {left:?}", op.name());
    let mut buffers = inputs.to_vec();
    buffers.push(BufferData::full(result, n, Num::Int(0)));
    run(&k, [1, 1, 1], &mut buffers, &[], &Options::default()).unwrap();
    buffers.pop().unwrap()
}

fn leftovers(
    k: &Kernel,
    b: &tongtu_tile::Block,
    native: &dyn Fn(&Op, &[Ty]) -> bool,
    out: &mut BTreeMap<String, usize>,
) {
    for i in &b.insts {
        let tys: Vec<Ty> = i.operands.iter().map(|&v| k.ty(v).clone()).collect();
        if !native(&i.op, &tys) {
            *out.entry(format!("{} {:?} {:?}", i.op.name(), i.op.attributes(), tys)).or_default() += 1;
        }
        i.blocks.iter().for_each(|b| leftovers(k, b, native, out));
    }
}

/// Units in the last place between a result and the exact value.
fn ulps(d: DType, got: f64, want: f64) -> f64 {
    if got == want || got.is_nan() && want.is_nan() {
        return 0.0;
    }
    if got.is_nan() || want.is_nan() {
        return f64::INFINITY;
    }
    let (digits, least, most) =
        if d == DType::F32 { (23, -126, f64::from(f32::MAX)) } else { (52, -1022, f64::MAX) };
    if want.abs() > most && got.is_infinite() && got.signum() == want.signum() {
        return 0.0;
    }
    let exponent =
        if want == 0.0 || want.is_infinite() { least } else { (want.abs().log2().floor() as i32).max(least) };
    if got.is_infinite() || want.is_infinite() {
        // Rounding to infinity just below the limit is one unit.
        let finite = if got.is_infinite() { want } else { got };
        return (most - finite.abs()).max(0.0) / 2f64.powi(if d == DType::F32 { 104 } else { 971 }) + 1.0;
    }
    (got - want).abs() / 2f64.powi(exponent - digits)
}

fn bound(class: NumericClass) -> f64 {
    match class {
        NumericClass::Exact => 0.0,
        NumericClass::CorrectlyRounded => 0.5,
        NumericClass::Ulp(n) => n.into(),
    }
}

/// The system's functions.
fn system(op: Unary, x: f64) -> f64 {
    match op {
        Unary::Rsqrt => 1.0 / x.sqrt(),
        Unary::Exp => x.exp(),
        Unary::Exp2 => x.exp2(),
        Unary::Expm1 => x.exp_m1(),
        Unary::Log => x.ln(),
        Unary::Log2 => x.log2(),
        Unary::Log1p => x.ln_1p(),
        Unary::Sin => x.sin(),
        Unary::Cos => x.cos(),
        Unary::Tan => x.tan(),
        Unary::Asin => x.asin(),
        Unary::Acos => x.acos(),
        Unary::Atan => x.atan(),
        Unary::Sinh => x.sinh(),
        Unary::Cosh => x.cosh(),
        Unary::Tanh => x.tanh(),
        Unary::Asinh => x.asinh(),
        Unary::Acosh => x.acosh(),
        Unary::Atanh => x.atanh(),
        Unary::Floor => x.floor(),
        Unary::Ceil => x.ceil(),
        Unary::Trunc => x.trunc(),
        Unary::RoundEven => x.round_ties_even(),
        Unary::Neg => -x,
        Unary::Abs => x.abs(),
        _ => eval_unary(op, DType::F64, Num::Float(x)).to_f64(),
    }
}

fn samples() -> Vec<f64> {
    let step = 217_645_177u32;
    let mut out: Vec<f64> = (0..12_000u32).map(|i| f32::from_bits(i.wrapping_mul(step)).into()).collect();
    // Where functions bend: around the small numbers.
    out.extend((0..8000).map(|i| f64::from((i as f32 - 4000.0) * 0.0123)));
    out.extend((0..1000).map(|i| f64::from(1.0 + (i as f32 - 500.0) * f32::EPSILON)));
    for x in [
        0.0,
        1.0,
        0.5,
        2.0,
        88.72,
        89.0,
        103.9,
        104.1,
        1e-40,
        1e-45,
        3.4e38,
        131071.9,
        131072.5,
        f64::INFINITY,
    ] {
        out.extend([f64::from(x as f32), f64::from(-x as f32)]);
    }
    out.push(f64::NAN);
    out
}

fn worst_f32(op: Unary, native: &dyn Fn(&Op, &[Ty]) -> bool) {
    let xs = samples();
    let got = compute(Op::Unary(op), &[BufferData::from_f64(DType::F32, &xs)], native).to_f64();
    let mut worst = (0.0, 0.0, 0.0, 0.0);
    for (&x, &y) in xs.iter().zip(&got) {
        let want = system(op, x);
        let error = ulps(DType::F32, y, want);
        if error > worst.0 {
            worst = (error, x, y, want);
        }
    }
    let (error, x, y, want) = worst;
    println!("{op:>10} f32 {error:6.2} ulp at {x:e}: {y:e}, exactly {want:e}");
    assert!(error <= bound(op.class()), "{op} of {x:e} gives {y:e}, exactly {want:e}: {error} ulp");
}

#[test]
fn unary_f32_within_class() {
    for &op in Unary::ALL {
        if op.accepts(DType::F32) && !matches!(op, Unary::IsNan | Unary::IsInf | Unary::Sqrt) {
            worst_f32(op, &least);
        }
    }
}

#[test]
fn unary_f32_within_class_without_fma() {
    for op in
        [Unary::Exp, Unary::Log, Unary::Log2, Unary::Sin, Unary::Tan, Unary::Tanh, Unary::Erf, Unary::Atan]
    {
        worst_f32(op, &no_fma);
    }
}

#[test]
fn turns_within_class_without_f64() {
    for op in [Unary::Sin, Unary::Cos, Unary::Tan] {
        worst_f32(op, &no_f64);
        worst_f32(op, &|op, tys| no_f64(op, tys) && no_fma(op, tys));
    }
}

#[test]
fn signs_of_zero_are_kept() {
    use Unary::*;
    for op in [
        Floor, Ceil, Trunc, RoundEven, Expm1, Log1p, Sin, Tan, Asin, Atan, Sinh, Tanh, Asinh, Atanh, Erf,
        Sign,
    ] {
        for d in [DType::F32, DType::F64] {
            let got = compute(Op::Unary(op), &[BufferData::from_f64(d, &[0.0, -0.0])], &least).to_f64();
            assert_eq!(
                got.iter().map(|x| x.is_sign_negative()).collect::<Vec<_>>(),
                [false, true],
                "{op} of {d}"
            );
            assert!(got.iter().all(|&x| x == 0.0), "{op} of {d}");
        }
    }
}

#[test]
fn f64_against_golden_values() {
    let mut cases: BTreeMap<&str, Vec<Vec<u64>>> = BTreeMap::new();
    for line in include_str!("golden/math_f64.txt").lines() {
        let mut words = line.split(' ');
        let name = words.next().unwrap();
        cases.entry(name).or_default().push(words.map(|w| u64::from_str_radix(w, 16).unwrap()).collect());
    }
    assert_eq!(cases.len(), 23);
    for (name, rows) in cases {
        let column = |i: usize| BufferData { dtype: DType::F64, codes: rows.iter().map(|r| r[i]).collect() };
        let (got, class) = match Unary::from_name(name) {
            Some(u) => (compute(Op::Unary(u), &[column(0)], &least), u.class()),
            None => {
                let b = Binary::from_name(name).unwrap();
                (compute(Op::Binary(b), &[column(0), column(1)], &least), b.class())
            }
        };
        let mut worst = (0.0, 0);
        for (i, row) in rows.iter().enumerate() {
            let error = ulps(DType::F64, got.get(i).to_f64(), f64::from_bits(row[row.len() - 1]));
            if error > worst.0 {
                worst = (error, i);
            }
        }
        let operands: Vec<f64> = rows[worst.1].iter().map(|&c| f64::from_bits(c)).collect();
        println!("{name:>10} f64 {:6.2} ulp at {operands:?}, got {:e}", worst.0, got.get(worst.1).to_f64());
        assert!(worst.0 <= bound(class) + 0.5, "{name} of {operands:?}: {} ulp", worst.0);
    }
}

fn pairs(d: DType) -> (Vec<f64>, Vec<f64>) {
    let special = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.5,
        -2.0,
        3.0,
        7.5,
        -1e30,
        1e-30,
        1e-40,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
    ];
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for x in special {
        for y in special {
            a.push(x);
            b.push(y);
        }
    }
    let mut state = 12345u32;
    let mut next = || {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        f64::from(f32::from_bits(state))
    };
    for i in 0..3000 {
        let (x, y) = (next(), next());
        a.push(if i % 2 == 0 { x } else { x.abs().clamp(1e-3, 1e3) });
        b.push(if i % 2 == 0 { y } else { y.clamp(-20.0, 20.0) });
    }
    let round = |v: Vec<f64>| {
        v.into_iter().map(|x| d.decode(d.encode(Num::Float(x), Overflow::Format)).to_f64()).collect()
    };
    (round(a), round(b))
}

#[test]
fn binary_floats_within_class() {
    use Binary::*;
    for d in [DType::F32, DType::F64, DType::F16, DType::BF16] {
        let (a, b) = pairs(d);
        let inputs = [BufferData::from_f64(d, &a), BufferData::from_f64(d, &b)];
        for op in [Add, Mul, Div, Max, Min, MaxNum, MinNum, CopySign, Rem, Mod, Pow, Atan2] {
            let got = compute(Op::Binary(op), &inputs, &least);
            let mut worst = 0.0;
            for i in 0..a.len() {
                let exact = match op {
                    Pow => a[i].powf(b[i]),
                    Atan2 => a[i].atan2(b[i]),
                    Rem => a[i] % b[i],
                    _ => eval_binary(op, d, Num::Float(a[i]), Num::Float(b[i])).to_f64(),
                };
                let g = got.get(i).to_f64();
                if d.bits() < 32 {
                    // Rounded to the type from a result in f32.
                    let want = d.decode(d.encode(Num::Float(exact), Overflow::Format)).to_f64();
                    let near = got.codes[i].abs_diff(d.encode(Num::Float(exact), Overflow::Format)) <= 1;
                    assert!(
                        g == want || g.is_nan() && want.is_nan() || near && matches!(op, Pow | Atan2),
                        "{op} of {d} {} {}: {g} {want}",
                        a[i],
                        b[i]
                    );
                    continue;
                }
                let error = ulps(d, g, exact);
                assert!(
                    error <= bound(op.class()).max(0.5),
                    "{op} of {d} {:e} {:e}: {g:e}, exactly {exact:e}: {error}",
                    a[i],
                    b[i]
                );
                if exact == 0.0 && !matches!(op, Pow) {
                    assert_eq!(
                        g.is_sign_negative(),
                        exact.is_sign_negative(),
                        "{op} of {d} {:e} {:e}",
                        a[i],
                        b[i]
                    );
                }
                worst = f64::max(worst, error);
            }
            println!("{op:>10} {d} {worst:6.2} ulp");
        }
    }
}

#[test]
fn narrow_floats_follow_the_table() {
    for d in [DType::F8E4M3FN, DType::F8E5M2, DType::F8E4M3FNUZ, DType::F8E5M2FNUZ, DType::F4E2M1] {
        let n = 1u64 << d.bits();
        let codes: Vec<u64> = (0..n).collect();
        let x = BufferData { dtype: d, codes: codes.clone() };
        let reversed = BufferData { dtype: d, codes: codes.iter().map(|c| (c * 37 + 11) % n).collect() };
        let same = |got: &BufferData, i: usize, want: Num| {
            let (g, w) = (got.get(i), want);
            assert!(g == w || g.is_nan() && w.is_nan(), "{d}: element {i} is {g}, {w} is wanted");
        };
        for op in [Unary::Abs, Unary::Neg, Unary::Exp, Unary::Floor] {
            let got = compute(Op::Unary(op), std::slice::from_ref(&x), &least);
            (0..n as usize).for_each(|i| same(&got, i, eval_unary(op, d, x.get(i))));
        }
        for op in [Binary::Add, Binary::Mul, Binary::Div, Binary::Max] {
            let got = compute(Op::Binary(op), &[x.clone(), reversed.clone()], &least);
            (0..n as usize).for_each(|i| same(&got, i, eval_binary(op, d, x.get(i), reversed.get(i))));
        }
        let got = compute(Op::Compare(Compare::Lt), &[x.clone(), reversed.clone()], &least);
        for i in 0..n as usize {
            assert_eq!(got.get(i).is_true(), eval_compare(Compare::Lt, d, x.get(i), reversed.get(i)));
        }
    }
}

#[test]
fn fma_of_half_rounds_once() {
    for d in [DType::F16, DType::BF16, DType::F32] {
        let (a, b) = pairs(d);
        let c: Vec<f64> = a.iter().rev().copied().collect();
        let inputs = [&a, &b, &c].map(|v| BufferData::from_f64(d, v));
        let got = compute(Op::Fma {}, &inputs, &no_fma);
        for i in 0..a.len() {
            let want = eval_fma(d, inputs[0].get(i), inputs[1].get(i), inputs[2].get(i));
            let g = got.get(i);
            assert!(g == want || g.is_nan() && want.is_nan(), "{d} {} {} {}: {g} {want}", a[i], b[i], c[i]);
        }
    }
}

#[test]
fn casts_follow_the_table() {
    let floats = [
        DType::F16,
        DType::BF16,
        DType::F32,
        DType::F64,
        DType::F8E4M3FN,
        DType::F8E5M2,
        DType::F8E4M3FNUZ,
        DType::F8E5M2FNUZ,
        DType::F8E8M0,
        DType::F4E2M1,
    ];
    let ints = [
        DType::Bool,
        DType::I8,
        DType::U8,
        DType::I16,
        DType::U16,
        DType::I32,
        DType::U32,
        DType::I64,
        DType::U64,
        DType::I4,
        DType::U4,
    ];
    let all: Vec<DType> = floats.into_iter().chain(ints).chain([DType::HiF8]).collect();
    for &from in &all {
        let mask = if from.is_bool() { 1 } else { u64::MAX >> (64 - from.bits()) };
        let mut state = 1u64;
        let mut codes: Vec<u64> = (0..300)
            .map(|i| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                if i < 256 && from.bits() <= 8 { i & mask } else { (state >> 13 ^ state << 31) & mask }
            })
            .collect();
        let values = [
            0.0,
            1.0,
            -1.0,
            0.5,
            1.5,
            240.0,
            448.0,
            464.0,
            480.0,
            57344.0,
            61440.0,
            65504.0,
            65520.0,
            3e9,
            -3e9,
            1e20,
            2f64.powi(-127),
            2f64.powi(-128),
            2f64.powi(-129) * 1.1,
            3e38,
            f64::INFINITY,
            f64::NAN,
        ];
        codes.extend(values.map(|v| from.encode(Num::Float(v), Overflow::Saturate)));
        let x = BufferData { dtype: from, codes };
        for &to in &all {
            if to == from {
                continue;
            }
            let narrow = to.is_float() && to.bits() < 32;
            let roundings = if narrow { &Rounding::ALL[..] } else { &Rounding::ALL[..1] };
            for (overflow, &rounding) in [Overflow::Format, Overflow::Saturate]
                .iter()
                .flat_map(|o| roundings.iter().map(move |r| (*o, r)))
            {
                let mode = CastMode { overflow, rounding };
                if least(&Op::Cast { to, mode }, &[Ty::scalar(from)]) {
                    continue;
                }
                let wide = to.is_int() && to.bits() >= 32;
                if overflow == Overflow::Saturate
                    && wide
                    && to != DType::I32
                    && to != DType::U32
                    && to != DType::I64
                {
                    continue;
                }
                let native = |op: &Op, tys: &[Ty]| {
                    least(op, tys)
                        || matches!(op, Op::Cast { to: DType::U64 | DType::I64 | DType::I32, mode } if mode.overflow == Overflow::Saturate && tys[0].dtype().is_float() && tys[0].dtype().bits() >= 32)
                };
                let got = compute(Op::Cast { to, mode }, std::slice::from_ref(&x), &native);
                for i in 0..x.codes.len() {
                    let (g, w) = (got.get(i), tongtu_tensor::cast(x.get(i), from, to, mode));
                    let zero = |n: Num| n.to_f64() == 0.0;
                    assert!(
                        g == w || g.is_nan() && w.is_nan() || zero(g) && zero(w),
                        "{from} {} to {to} ({mode:?}): {g}, {w} is wanted",
                        x.get(i)
                    );
                }
            }
        }
    }
}

#[test]
fn integers_follow_the_table() {
    for d in [
        DType::I4,
        DType::U4,
        DType::I8,
        DType::U8,
        DType::I16,
        DType::U16,
        DType::I32,
        DType::U32,
        DType::I64,
        DType::U64,
    ] {
        let mask = u64::MAX >> (64 - d.bits());
        let base = [
            0u64,
            1,
            2,
            3,
            5,
            7,
            8,
            100,
            255,
            1 << 15,
            mask,
            mask - 1,
            mask >> 1,
            (mask >> 1) + 1,
            0x5a5a_5a5a_1234_5678,
        ];
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for x in base {
            for y in base {
                a.push(x & mask);
                b.push(y & mask);
            }
        }
        let inputs = [BufferData { dtype: d, codes: a }, BufferData { dtype: d, codes: b }];
        for op in [Unary::Neg, Unary::Abs, Unary::Not, Unary::Sign, Unary::Popcount, Unary::Clz] {
            let got = compute(Op::Unary(op), &inputs[..1], &least);
            for i in 0..got.codes.len() {
                assert_eq!(
                    got.get(i),
                    eval_unary(op, d, inputs[0].get(i)),
                    "{op} of {d} {}",
                    inputs[0].get(i)
                );
            }
        }
        for &op in Binary::ALL {
            if matches!(op, Binary::Atan2 | Binary::CopySign) {
                continue;
            }
            let got = compute(Op::Binary(op), &inputs, &least);
            for i in 0..got.codes.len() {
                let want = eval_binary(op, d, inputs[0].get(i), inputs[1].get(i));
                assert_eq!(got.get(i), want, "{op} of {d} {} {}", inputs[0].get(i), inputs[1].get(i));
            }
        }
    }
}

#[test]
fn exp_is_short() {
    let mut k = kernel(&Op::Unary(Unary::Exp), &[DType::F32], 16);
    let before = k.body.insts.len();
    let fma = |op: &Op, tys: &[Ty]| least(op, tys) || matches!(op, Op::Binary(Binary::Max | Binary::Min));
    expand(&mut k, &fma);
    let constants =
        k.body.insts.iter().filter(|i| matches!(i.op, Op::Full { .. } | Op::Bitcast { .. })).count();
    let work = k.body.insts.len() - constants - before;
    assert!(work <= 22, "{work} instructions");
}
