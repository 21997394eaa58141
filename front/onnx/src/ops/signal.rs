//! Fourier transforms, windows and mel weights, and random numbers.

use tongtu_graph::composite::wide;
use tongtu_graph::{ConvSpec, Op, ValueId};
use tongtu_tensor::dim::Dim;
use tongtu_tensor::{Binary, Compare, DType, Num, Tensor, Unary};

use crate::ctx::{Ctx, NodeCtx};
use crate::error::Result;
use crate::ops::calc::Calc;
use crate::ops::{Entry, op};
use crate::val::Val;

/// The family's operators.
pub const OPS: &[Entry] = &[
    op("DFT", dft),
    op("STFT", stft),
    op("HannWindow", |cx, n| window(cx, n, [0.5, -0.5, 0.0])),
    op("HammingWindow", |cx, n| window(cx, n, [25.0 / 46.0, -21.0 / 46.0, 0.0])),
    op("BlackmanWindow", |cx, n| window(cx, n, [0.42, -0.5, 0.08])),
    op("MelWeightMatrix", mel_weights),
    op("RandomUniform", random),
    op("RandomUniformLike", random),
    op("RandomNormal", random),
    op("RandomNormalLike", random),
    op("Bernoulli", bernoulli),
];

/// Most elements of a matrix of a transform.
const MAX_MATRIX: i64 = 1 << 28;

/// `factor(k) * f(2 pi i k / n)` for `rows` values of `i` and `columns` of `k`.
fn matrix(
    n: &NodeCtx<'_>,
    dtype: DType,
    length: i64,
    rows: i64,
    columns: i64,
    f: impl Fn(f64) -> f64,
    factor: impl Fn(i64, i64) -> f64,
) -> Result<Tensor> {
    if rows.saturating_mul(columns) > MAX_MATRIX {
        return Err(n.unsupported(format!("a transform of length {length}")));
    }
    let step = std::f64::consts::TAU / length as f64;
    Ok(Tensor::from_fn(dtype, &[rows as usize, columns as usize], |at| {
        let (i, k) = (at as i64 / columns, at as i64 % columns);
        let turn = (i128::from(i) * i128::from(k) % i128::from(length)) as f64;
        (factor(i, k) * f(turn * step)).into()
    })?)
}

/// Cosines and sines `[i, k]` of `2 pi i k / length` for a length that is known when the model runs, with the factors of an inverse
/// transform. Computed in f64: angles of long transforms need its digits.
fn turns(
    cx: &mut Ctx<'_, '_>,
    dtype: DType,
    length: &Dim,
    dims: &[Dim; 2],
    inverse: bool,
    half: bool,
) -> Result<(ValueId, ValueId)> {
    let wide = DType::F64;
    let (i, k) = (cx.b.iota(DType::I64, dims, 0)?, cx.b.iota(DType::I64, dims, 1)?);
    let count = cx.b.dim_value(length.clone())?;
    let turn = cx.b.mul(i, k)?;
    let turn = cx.b.binary(Binary::Rem, turn, count)?;
    let (turn, n) = (cx.b.convert(turn, wide)?, cx.b.convert(count, wide)?);
    let turn = cx.b.div(turn, n)?;
    let angle = cx.b.binary_const(Binary::Mul, turn, std::f64::consts::TAU)?;
    let (mut c, mut s) = (cx.b.unary(Unary::Cos, angle)?, cx.b.unary(Unary::Sin, angle)?);
    if inverse {
        let one = cx.b.float(wide, 1.0)?;
        let mut factor = cx.b.div(one, n)?;
        if half {
            // The spectrum of real numbers holds each frequency but the first and the middle one for two.
            let first = cx.b.compare_const(Compare::Eq, i, 0.0)?;
            let twice = cx.b.binary_const(Binary::Mul, i, 2.0)?;
            let middle = cx.b.compare(Compare::Eq, twice, count)?;
            let alone = cx.b.binary(Binary::Or, first, middle)?;
            let double = cx.b.binary_const(Binary::Mul, factor, 2.0)?;
            factor = cx.b.select(alone, factor, double)?;
        }
        c = cx.b.mul(c, factor)?;
        s = cx.b.mul(s, factor)?;
        s = cx.b.unary(Unary::Neg, s)?;
    }
    Ok((cx.b.convert(c, dtype)?, cx.b.convert(s, dtype)?))
}

/// Lengths that a transform may have.
fn check_length(n: &NodeCtx<'_>, length: i64) -> Result<i64> {
    if (1..1 << 24).contains(&length) { Ok(length) } else { Err(n.bad(format!("a length of {length}"))) }
}

/// A scalar operand that must be known.
fn known_scalar<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>, i: usize, what: &str) -> Result<Option<i64>> {
    if !n.has(i) {
        return Ok(None);
    }
    let c = cx.contents(n, i)?;
    let v = c.first().filter(|_| c.len() == 1).and_then(Dim::as_const);
    v.map(Some).ok_or_else(|| n.unsupported(format!("{what} that is not known")))
}

fn dft<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let x = cx.tensor(n, 0)?;
    let dims = cx.b.dims(x);
    let Some(last) = dims.len().checked_sub(1).filter(|&l| l > 0) else {
        return Err(n.bad("the operand has fewer than two dims"));
    };
    let axis =
        if n.opset >= 20 { known_scalar(cx, n, 2, "an axis")?.unwrap_or(-2) } else { n.int("axis", 1)? };
    let axis = n.axis(axis, dims.len())?;
    let parts = match dims[last].as_const() {
        Some(p @ (1 | 2)) if axis != last => p,
        _ => return Err(n.bad("the last dim holds one or two parts of a number")),
    };
    let (inverse, half) = (n.flag("inverse", false)?, n.flag("onesided", false)?);
    let length = match n.has(1) {
        true => match cx.contents(n, 1)?.as_slice() {
            [l] => l.clone(),
            other => return Err(n.bad(format!("a transform length of {} elements", other.len()))),
        },
        false if inverse && half => (&dims[axis] - 1) * 2,
        false => dims[axis].clone(),
    };
    if let Some(l) = length.as_const() {
        check_length(n, l)?;
    }
    let bins = length.floordiv(&Dim::from(2)) + 1;
    let (from, to) = match (inverse, half) {
        (true, true) => (bins, length.clone()),
        (false, true) => (length.clone(), bins),
        _ => (length.clone(), length.clone()),
    };
    let d = cx.b.dtype(x);
    let acc = wide(d);
    let mut x = cx.b.convert(x, acc)?;
    if dims[axis] != from {
        let zero = cx.b.float(acc, 0.0)?;
        let low = vec![Dim::from(0); dims.len()];
        let mut high = low.clone();
        high[axis] = &from - &dims[axis];
        x = cx.b.pad(x, zero, &low, &high)?;
    }
    let (c, s) = match (length.as_const(), from.as_const(), to.as_const()) {
        (Some(length), Some(from), Some(to)) => {
            // The spectrum of real numbers holds each frequency but the first and the middle one for two.
            let factor = |i: i64, _: i64| match (inverse, half) {
                (false, _) => 1.0,
                (true, false) => 1.0 / length as f64,
                (true, true) if i == 0 || 2 * i == length => 1.0 / length as f64,
                (true, true) => 2.0 / length as f64,
            };
            let sign = if inverse { -1.0 } else { 1.0 };
            let c = matrix(n, acc, length, from, to, f64::cos, factor)?;
            let s = matrix(n, acc, length, from, to, |t| sign * t.sin(), factor)?;
            (cx.b.constant(c)?, cx.b.constant(s)?)
        }
        _ => turns(cx, acc, &length, &[from, to], inverse, half)?,
    };
    // The transformed dim comes last and goes back to its place.
    let mut back: Vec<usize> = (0..last - 1).collect();
    back.insert(axis, last - 1);
    let apply = |cx: &mut Ctx<'_, 'm>, x: ValueId, m: ValueId| -> Result<ValueId> {
        let y = cx.b.contract(x, m, &[], &[(axis, 0)], acc)?;
        Ok(cx.b.permute(y, &back)?)
    };
    let re = cx.b.index(x, last, 0)?;
    let im = if parts == 2 { Some(cx.b.index(x, last, 1)?) } else { None };
    let mut real = apply(cx, re, c)?;
    let rotated = apply(cx, re, s)?;
    let mut imaginary = cx.b.unary(Unary::Neg, rotated)?;
    if let Some(im) = im {
        let (p, q) = (apply(cx, im, s)?, apply(cx, im, c)?);
        real = cx.b.add2(real, p)?;
        imaginary = cx.b.add2(imaginary, q)?;
    }
    let real = cx.b.unsqueeze(real, last)?;
    let y = if inverse && half {
        real
    } else {
        let imaginary = cx.b.unsqueeze(imaginary, last)?;
        cx.b.concat(&[real, imaginary], last)?
    };
    let y = cx.b.convert(y, d)?;
    cx.one(y)
}

fn stft<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let x = cx.tensor(n, 0)?;
    let dims = cx.b.dims(x);
    let step = known_scalar(cx, n, 1, "a step")?.ok_or_else(|| n.bad("no step is given"))?;
    let window = cx.opt(n, 2)?;
    let parts = match dims.as_slice() {
        [_, _] => 1,
        [_, _, p] if matches!(p.as_const(), Some(1 | 2)) => p.as_const().unwrap_or(1),
        _ => return Err(n.bad(format!("a signal of dims {dims:?}"))),
    };
    let length = match (known_scalar(cx, n, 3, "a frame length")?, window) {
        (Some(l), _) => Some(l),
        (None, Some(w)) => cx.b.dims(w).first().and_then(Dim::as_const),
        (None, None) => dims[1].as_const(),
    };
    let length = check_length(n, length.ok_or_else(|| n.unsupported("a frame length that is not known"))?)?;
    if !(1..1 << 24).contains(&step) {
        return Err(n.bad(format!("a step of {step}")));
    }
    let bins = if n.flag("onesided", true)? { length / 2 + 1 } else { length };
    let d = cx.b.dtype(x);
    let acc = wide(d);
    let x = cx.b.convert(x, acc)?;
    // Each frequency is a filter of the signal.
    let one = Dim::from(1);
    let filter_dims = [Dim::from(bins), one.clone(), Dim::from(length)];
    let mut filters = Vec::new();
    for f in [f64::cos, f64::sin] {
        let m = matrix(n, acc, length, bins, length, f, |_, _| 1.0)?;
        let mut m = cx.b.constant(m)?;
        if let Some(w) = window {
            let w = cx.b.convert(w, acc)?;
            m = cx.b.mul(m, w)?;
        }
        filters.push(cx.b.reshape(m, &filter_dims)?);
    }
    let both = cx.b.concat(&filters, 0)?;
    let spec = ConvSpec { strides: vec![step], ..ConvSpec::nchw(1) };
    // Cosine and sine parts, each [b, frames, bins].
    let apply = |cx: &mut Ctx<'_, 'm>, part: i64| -> Result<(ValueId, ValueId)> {
        let v = if dims.len() == 3 { cx.b.index(x, 2, part)? } else { x };
        let v = cx.b.unsqueeze(v, 1)?;
        let y = cx.b.conv(v, both, spec.clone(), acc)?;
        let y = cx.b.permute(y, &[0, 2, 1])?;
        let c = cx.b.slice_axis(y, 2, Dim::from(0), Dim::from(bins))?;
        Ok((c, cx.b.slice_axis(y, 2, Dim::from(bins), Dim::from(bins))?))
    };
    let (mut real, s) = apply(cx, 0)?;
    let mut imaginary = cx.b.unary(Unary::Neg, s)?;
    if parts == 2 {
        let (c, s) = apply(cx, 1)?;
        real = cx.b.add2(real, s)?;
        imaginary = cx.b.add2(imaginary, c)?;
    }
    let (real, imaginary) = (cx.b.unsqueeze(real, 3)?, cx.b.unsqueeze(imaginary, 3)?);
    let y = cx.b.concat(&[real, imaginary], 3)?;
    let y = cx.b.convert(y, d)?;
    cx.one(y)
}

/// A sum of cosines: `c[0] + c[1] cos t + c[2] cos 2t` for `t` from 0 to a full turn.
fn window<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>, c: [f64; 3]) -> Result<Vec<Val>> {
    let size = cx.contents(n, 0)?;
    let [size] = size.as_slice() else { return Err(n.bad("the size is no single number")) };
    let d = n.dtype_attr("output_datatype")?.unwrap_or(DType::F32);
    let last = if n.flag("periodic", true)? { 0 } else { 1 };
    if let Some(len) = size.as_const() {
        let len = check_length(n, len)?;
        let turn = std::f64::consts::TAU / (len - last).max(1) as f64;
        let value = |i: usize| {
            let t = turn * i as f64;
            (c[0] + c[1] * t.cos() + c[2] * (2.0 * t).cos()).into()
        };
        if d.is_float() {
            return Ok(vec![Val::constant(Tensor::from_fn(d, &[len as usize], value)?)]);
        }
    }
    let b = &mut cx.b;
    let acc = DType::F64;
    let i = b.iota(acc, std::slice::from_ref(size), 0)?;
    let steps = b.dim_as(&(size - last), acc)?;
    let steps = b.at_least(steps, 1.0)?;
    let t = b.div(i, steps)?;
    let t = b.times(t, std::f64::consts::TAU)?;
    let mut y = b.full_like(t, c[0])?;
    for (k, factor) in [(1.0, c[1]), (2.0, c[2])] {
        let v = b.times(t, k)?;
        let v = b.unary(Unary::Cos, v)?;
        let v = b.times(v, factor)?;
        y = b.add2(y, v)?;
    }
    let y = b.convert(y, d)?;
    cx.one(y)
}

/// Triangles of equal width in mels, as columns.
fn mel_weights<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let bands = cx.contents(n, 0)?;
    let [bands] = bands.as_slice() else { return Err(n.bad("the number of bands is no single number")) };
    let length = cx.contents(n, 1)?;
    let [length] = length.as_slice() else { return Err(n.bad("the length is no single number")) };
    let bins = length.floordiv(&Dim::from(2)) + 1;
    let f = DType::F64;
    let mut scalars = Vec::new();
    for i in 2..5 {
        let v = cx.tensor(n, i)?;
        let v = cx.b.reshape(v, &[])?;
        scalars.push(cx.b.convert(v, f)?);
    }
    let b = &mut cx.b;
    let mel = |b: &mut tongtu_graph::Builder<'_>, hertz: ValueId| {
        let v = b.times(hertz, 1.0 / 700.0)?;
        let v = b.unary(Unary::Log1p, v)?;
        b.times(v, 2595.0 / std::f64::consts::LN_10)
    };
    let (low, high) = (mel(b, scalars[1])?, mel(b, scalars[2])?);
    let edges = bands + 2;
    let count = b.dim_as(&edges, f)?;
    let span = b.sub(high, low)?;
    let step = b.div(span, count)?;
    let i = b.iota(f, std::slice::from_ref(&edges), 0)?;
    let at = b.mul(i, step)?;
    let at = b.add2(at, low)?;
    let at = b.times(at, std::f64::consts::LN_10 / 2595.0)?;
    let hertz = b.unary(Unary::Expm1, at)?;
    let hertz = b.times(hertz, 700.0)?;
    let scale = b.dim_as(&(length + 1), f)?;
    let at = b.mul(hertz, scale)?;
    let at = b.div(at, scalars[0])?;
    let at = b.floor(at)?;
    let mut edge = Vec::new();
    for k in 0..3 {
        edge.push(b.slice_axis(at, 0, Dim::from(k), bands.clone())?);
    }
    let (left, center, right) = (edge[0], edge[1], edge[2]);
    let j = b.count_along(f, 2, 0, &bins)?;
    let slope = |b: &mut tongtu_graph::Builder<'_>, from: ValueId, to: ValueId, x: ValueId| {
        let width = b.sub(to, from)?;
        let flat = b.compare_const(Compare::Eq, width, 0.0)?;
        let one = b.full_like(width, 1.0)?;
        let width = b.select(flat, one, width)?;
        b.div(x, width)
    };
    let up = b.sub(j, left)?;
    let up = slope(b, left, center, up)?;
    let down = b.sub(right, j)?;
    let down = slope(b, center, right, down)?;
    let peak = b.compare(Compare::Eq, j, center)?;
    let before = b.compare(Compare::Le, j, center)?;
    let started = b.compare(Compare::Ge, j, left)?;
    let ended = b.compare(Compare::Ge, j, right)?;
    let y = b.select(before, up, down)?;
    let y = b.or_const(started, y, 0.0)?;
    let zero = b.full_like(y, 0.0)?;
    let y = b.select(ended, zero, y)?;
    let one = b.full_like(y, 1.0)?;
    let y = b.select(peak, one, y)?;
    let to = n.dtype_attr("output_datatype")?.unwrap_or(DType::F32);
    let y = b.convert(y, to)?;
    cx.one(y)
}

/// Uniform numbers in `[0, 1)` in `f32`, multiples of 2^-24, from the node's seed or else its place.
fn unit(cx: &mut Ctx<'_, '_>, n: &NodeCtx<'_>, dims: &[Dim], stream: u64) -> Result<ValueId> {
    let place = n
        .loc
        .to_string()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let seed = n.opt_float("seed")?.map_or(place, f64::to_bits);
    let key = seed.wrapping_add(stream.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let key = cx.b.scalar(DType::U64, Num::Int(key.into()))?;
    let counter = cx.b.int(DType::U64, 0)?;
    let bits = cx.b.one(Op::RandomBits { dims: dims.to_vec() }, &[key, counter])?;
    let high = cx.b.binary_const(Binary::Div, bits, 256.0)?;
    let y = cx.b.convert(high, DType::F32)?;
    Ok(cx.b.times(y, 2f64.powi(-24))?)
}

fn random<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let like = n.op().ends_with("Like");
    let given = n.dtype_attr("dtype")?;
    let (dims, d) = if like {
        (n.dims(0)?.to_vec(), given.unwrap_or(n.dtype(0)?))
    } else {
        let shape = n.ints("shape")?.ok_or_else(|| n.bad("no shape is given"))?;
        if shape.iter().any(|&d| d < 0) {
            return Err(n.bad(format!("shape {shape:?}")));
        }
        (shape.iter().map(|&d| Dim::from(d)).collect(), given.unwrap_or(DType::F32))
    };
    if !d.is_float() {
        return Err(n.bad(format!("random numbers of type {d}")));
    }
    let u = unit(cx, n, &dims, 0)?;
    let y = if n.op().starts_with("RandomUniform") {
        let (low, high) = (n.float("low", 0.0)?, n.float("high", 1.0)?);
        let y = cx.b.times(u, high - low)?;
        cx.b.plus(y, low)?
    } else {
        // Box and Muller's method.
        let v = unit(cx, n, &dims, 1)?;
        let b = &mut cx.b;
        let minus = b.unary(Unary::Neg, u)?;
        let left = b.plus(minus, 1.0)?;
        let log = b.unary(Unary::Log, left)?;
        let square = b.times(log, -2.0)?;
        let radius = b.unary(Unary::Sqrt, square)?;
        let turn = b.times(v, std::f64::consts::TAU)?;
        let side = b.unary(Unary::Cos, turn)?;
        let y = b.mul(radius, side)?;
        let y = b.times(y, n.float("scale", 1.0)?)?;
        b.plus(y, n.float("mean", 0.0)?)?
    };
    let y = cx.b.convert(y, d)?;
    cx.one(y)
}

fn bernoulli<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let x = cx.tensor(n, 0)?;
    let dims = cx.b.dims(x);
    let to = n.dtype_attr("dtype")?.unwrap_or(cx.b.dtype(x));
    let x = cx.b.convert(x, DType::F32)?;
    let u = unit(cx, n, &dims, 0)?;
    let y = cx.b.compare(Compare::Lt, u, x)?;
    let y = cx.b.convert(y, to)?;
    cx.one(y)
}
