//! Resampling: resize, grids, regions, and sums of overlapping blocks.

use tongtu_graph::composite::{Coordinates, Interpolation, NearestMode, ResizeAxis, ResizeMode, wide};
use tongtu_graph::infer::numel;
use tongtu_graph::{Combiner, ValueId};
use tongtu_tensor::dim::Dim;
use tongtu_tensor::{Compare, DType, Unary};

use crate::ctx::{Ctx, NodeCtx};
use crate::error::Result;
use crate::ops::calc::Calc;
use crate::ops::{Entry, op};
use crate::val::Val;

/// The family's operators.
pub const OPS: &[Entry] = &[
    op("Resize", resize),
    op("Upsample", resize),
    op("GridSample", grid_sample),
    op("AffineGrid", affine_grid),
    op("RoiAlign", roi_align),
    op("CenterCropPad", center_crop_pad),
    op("Col2Im", col2im),
];

/// Largest denominator of a scale that is followed exactly in dims.
const MAX_DENOMINATOR: i64 = 64;

fn mode(n: &NodeCtx<'_>) -> Result<ResizeMode> {
    let old = n.op() == "Upsample" || n.opset < 11;
    let coordinates =
        match n.str("coordinate_transformation_mode", if old { "asymmetric" } else { "half_pixel" })? {
            "half_pixel" => Coordinates::HalfPixel,
            "half_pixel_symmetric" => Coordinates::HalfPixelSymmetric,
            "pytorch_half_pixel" => Coordinates::PytorchHalfPixel,
            "align_corners" => Coordinates::AlignCorners,
            "asymmetric" => Coordinates::Asymmetric,
            "tf_crop_and_resize" => Coordinates::CropAndResize,
            other => return Err(n.unsupported(format!("coordinate_transformation_mode '{other}'"))),
        };
    let nearest = match n.str("nearest_mode", if old { "floor" } else { "round_prefer_floor" })? {
        "round_prefer_floor" | "" => NearestMode::RoundPreferFloor,
        "round_prefer_ceil" => NearestMode::RoundPreferCeil,
        "floor" => NearestMode::Floor,
        "ceil" => NearestMode::Ceil,
        other => return Err(n.bad(format!("nearest_mode '{other}'"))),
    };
    let interpolation = match n.str("mode", "nearest")? {
        "nearest" => Interpolation::Nearest(nearest),
        "linear" | "bilinear" => Interpolation::Linear,
        "cubic" => Interpolation::Cubic(n.float("cubic_coeff_a", -0.75)?),
        other => return Err(n.bad(format!("mode '{other}'"))),
    };
    let crop = coordinates == Coordinates::CropAndResize;
    Ok(ResizeMode {
        antialias: n.flag("antialias", false)?,
        exclude_outside: n.flag("exclude_outside", false)?,
        extrapolation: if crop { Some(n.float("extrapolation_value", 0.0)?) } else { None },
        ..ResizeMode::new(coordinates, interpolation)
    })
}

/// An operand, unless it is left out or empty.
fn nonempty(n: &NodeCtx<'_>, i: usize) -> Option<usize> {
    let dims = n.dims(i).ok()?;
    (n.has(i) && numel(dims).as_const() != Some(0)).then_some(i)
}

/// `floor(len * scale)`, the product in `f32`, for a scale that is a fraction with a small denominator, or a constant length.
fn scaled(len: &Dim, scale: f64) -> Option<Dim> {
    if let Some(l) = len.as_const() {
        return Some(Dim::from((l as f32 * scale as f32).floor() as i64));
    }
    let q = (1..=MAX_DENOMINATOR).find(|&q| (scale * q as f64).fract() == 0.0)?;
    let p = (scale * q as f64) as i64;
    let long = if p == 1 { len.clone() } else { len * p };
    Some(if q == 1 { long } else { long.floordiv(&Dim::from(q)) })
}

/// The same, found when it runs, for a scale in `f32`.
fn scaled_at_run<'m>(cx: &mut Ctx<'_, 'm>, len: &Dim, scale: ValueId) -> Result<Dim> {
    let len = cx.b.dim_as(len, DType::F32)?;
    let y = cx.b.mul(len, scale)?;
    let y = cx.b.floor(y)?;
    let y = cx.b.convert(y, DType::I64)?;
    cx.bind(y)
}

fn resize<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let mode = mode(n)?;
    let x = cx.tensor(n, 0)?;
    let dims = cx.b.dims(x);
    let upsample = n.op() == "Upsample";
    let on: Vec<usize> = match n.ints("axes")? {
        Some(a) => a.iter().map(|&a| n.axis(a, dims.len())).collect::<Result<_>>()?,
        None => (0..dims.len()).collect(),
    };
    let (scales_at, sizes_at) =
        if upsample || n.opset < 11 { (nonempty(n, 1), None) } else { (nonempty(n, 2), nonempty(n, 3)) };
    let mut known: Option<Vec<f64>> = match scales_at {
        Some(i) => n.constant(i).map(|t| t.iter().map(|v| v.to_f64()).collect()),
        None => n.floats("scales")?.map(|s| s.iter().map(|&v| f64::from(v)).collect()),
    };
    let mut lens = Vec::new();
    let mut scales = None;
    if let Some(i) = sizes_at {
        lens = cx.contents(n, i)?;
        let policy = n.str("keep_aspect_ratio_policy", "stretch")?;
        if policy != "stretch" {
            let ratio = |(a, len): (&usize, &Dim)| Some(len.as_const()? as f64 / dims[*a].as_const()? as f64);
            let ratios: Option<Vec<f64>> = on.iter().zip(&lens).map(ratio).collect();
            let ratios = ratios.ok_or_else(|| n.unsupported("keeping the ratio of sizes not known yet"))?;
            let scale = match policy {
                "not_larger" => ratios.iter().copied().fold(f64::INFINITY, f64::min),
                "not_smaller" => ratios.iter().copied().fold(0.0, f64::max),
                other => return Err(n.bad(format!("keep_aspect_ratio_policy '{other}'"))),
            };
            let len = |a: &usize| Dim::from((dims[*a].as_const().unwrap_or(0) as f64 * scale + 0.5) as i64);
            lens = on.iter().map(len).collect();
            known = Some(vec![scale; on.len()]);
        } else {
            known = None;
        }
    } else if let Some(k) = &known {
        if k.len() != on.len() || k.iter().any(|s| !s.is_finite() || *s <= 0.0) {
            return Err(n.bad(format!("scales {k:?} for {} axes", on.len())));
        }
        for (&a, &s) in on.iter().zip(k) {
            lens.push(match scaled(&dims[a], s) {
                Some(l) => l,
                None => {
                    let s = cx.b.float(DType::F32, s)?;
                    scaled_at_run(cx, &dims[a], s)?
                }
            });
        }
    } else {
        let i = scales_at.ok_or_else(|| n.bad("neither scales nor sizes are given"))?;
        let s = cx.tensor(n, i)?;
        let s = cx.b.convert(s, DType::F32)?;
        for (k, &a) in on.iter().enumerate() {
            let one = cx.b.index(s, 0, k as i64)?;
            lens.push(scaled_at_run(cx, &dims[a], one)?);
        }
        scales = Some(s);
    }
    if lens.len() != on.len() {
        return Err(n.bad(format!("{} sizes for {} axes", lens.len(), on.len())));
    }
    let crops_at = match mode.coordinates {
        Coordinates::CropAndResize => {
            Some(nonempty(n, 1).ok_or_else(|| n.bad("the region to crop is not given"))?)
        }
        _ => None,
    };
    let mut parts = vec![(0.0, 1.0); on.len()];
    let mut crops = None;
    if let Some(i) = crops_at {
        match n.constant(i) {
            Some(t) if t.len() == 2 * on.len() => {
                let all: Vec<f64> = t.iter().map(|v| v.to_f64()).collect();
                parts = (0..on.len()).map(|k| (all[k], all[k + on.len()])).collect();
            }
            Some(t) => return Err(n.bad(format!("{} numbers for a region of {} axes", t.len(), on.len()))),
            None => {
                let c = cx.tensor(n, i)?;
                let c = cx.b.convert(c, DType::F32)?;
                crops = Some(cx.b.reshape(c, &[Dim::from(2), Dim::from(on.len() as i64)])?);
            }
        }
    }
    let mut axes = Vec::new();
    for (k, &a) in on.iter().enumerate() {
        let scale = known.as_ref().map(|s| s[k]);
        let same = lens[k] == dims[a] && scale.is_none_or(|s| s == 1.0) && parts[k] == (0.0, 1.0);
        if !same || scales.is_some() || crops.is_some() {
            axes.push(ResizeAxis { axis: a, len: lens[k].clone(), scale, crop: parts[k] });
        }
    }
    if axes.is_empty() {
        return Ok(vec![n.val(0)?.clone()]);
    }
    let y = cx.b.resize_at(x, &axes, mode, scales, crops)?;
    cx.one(y)
}

/// Positions beyond the edges `low` and `high` reflected until they are inside.
fn reflect(cx: &mut Ctx<'_, '_>, x: ValueId, low: ValueId, high: ValueId) -> Result<ValueId> {
    let b = &mut cx.b;
    let span = b.sub(high, low)?;
    let wide = b.compare_const(Compare::Gt, span, 0.0)?;
    let span = b.or_const(wide, span, 1.0)?;
    let below = b.compare(Compare::Lt, x, low)?;
    let above = b.compare(Compare::Gt, x, high)?;
    let (down, up) = (b.sub(low, x)?, b.sub(x, high)?);
    let beyond = b.select(below, down, up)?;
    let turns = b.div(beyond, span)?;
    let turns = b.unary(Unary::Trunc, turns)?;
    let whole = b.mul(turns, span)?;
    let rest = b.sub(beyond, whole)?;
    let half = b.times(turns, 0.5)?;
    let floor = b.floor(half)?;
    let even = b.compare(Compare::Eq, half, floor)?;
    let from_low = b.compare(Compare::Eq, below, even)?;
    let (p, q) = (b.add2(low, rest)?, b.sub(high, rest)?);
    let inside = b.select(from_low, p, q)?;
    let outside = b.binary(tongtu_tensor::Binary::Or, below, above)?;
    Ok(b.select(outside, inside, x)?)
}

/// Keys' cubic at distance `t`, with coefficient -0.75.
fn cubic(cx: &mut Ctx<'_, '_>, t: ValueId, near: bool) -> Result<ValueId> {
    const A: f64 = -0.75;
    let c = if near { [A + 2.0, -(A + 3.0), 0.0, 1.0] } else { [A, -5.0 * A, 8.0 * A, -4.0 * A] };
    let b = &mut cx.b;
    let mut p = b.full_like(t, c[0])?;
    for v in &c[1..] {
        p = b.mul(p, t)?;
        p = b.plus(p, *v)?;
    }
    Ok(p)
}

fn grid_sample<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let (x, grid) = (cx.tensor(n, 0)?, cx.tensor(n, 1)?);
    let (xd, gd) = (cx.b.dims(x), cx.b.dims(grid));
    let r = xd.len().saturating_sub(2);
    if r == 0 || gd.len() != xd.len() || gd[r + 1].as_const() != Some(r as i64) {
        return Err(n.bad(format!("a grid of dims {gd:?} over {xd:?}")));
    }
    let mode = n.str("mode", if n.opset >= 20 { "linear" } else { "bilinear" })?;
    let padding = n.str("padding_mode", "zeros")?;
    if !matches!(padding, "zeros" | "border" | "reflection") {
        return Err(n.bad(format!("padding_mode '{padding}'")));
    }
    let align = n.flag("align_corners", false)?;
    let acc = wide(cx.b.dtype(grid));
    let grid = cx.b.convert(grid, acc)?;
    // For each dim the taps: an index and a weight.
    let mut taps: Vec<Vec<(ValueId, Option<ValueId>)>> = Vec::new();
    for i in 0..r {
        let len = cx.b.dim_as(&xd[2 + i], acc)?;
        let b = &mut cx.b;
        let g = b.index(grid, r + 1, (r - 1 - i) as i64)?;
        let g = b.plus(g, 1.0)?;
        let last = b.plus(len, -1.0)?;
        let (low, high, mut at) = if align {
            let p = b.mul(g, last)?;
            (b.float(acc, 0.0)?, last, b.times(p, 0.5)?)
        } else {
            let p = b.mul(g, len)?;
            let p = b.plus(p, -1.0)?;
            (b.float(acc, -0.5)?, b.plus(len, -0.5)?, b.times(p, 0.5)?)
        };
        if mode == "nearest" {
            at = b.unary(Unary::RoundEven, at)?;
        }
        match padding {
            "border" => {
                let p = b.at_least(at, 0.0)?;
                at = b.min2(p, last)?;
            }
            "reflection" => at = reflect(cx, at, low, high)?,
            _ => {}
        }
        let place = |cx: &mut Ctx<'_, '_>, p: ValueId| -> Result<ValueId> {
            let p = match padding {
                "border" => {
                    let p = cx.b.at_least(p, 0.0)?;
                    cx.b.min2(p, last)?
                }
                "reflection" => {
                    let p = reflect(cx, p, low, high)?;
                    let p = cx.b.unary(Unary::Trunc, p)?;
                    let p = cx.b.at_least(p, 0.0)?;
                    cx.b.min2(p, last)?
                }
                _ => p,
            };
            Ok(cx.b.convert(p, DType::I64)?)
        };
        let mut list = Vec::new();
        match mode {
            "nearest" => {
                let at = cx.b.unary(Unary::Trunc, at)?;
                list.push((place(cx, at)?, None));
            }
            "linear" | "bilinear" => {
                let base = cx.b.floor(at)?;
                let t = cx.b.sub(at, base)?;
                let minus = cx.b.unary(Unary::Neg, t)?;
                let near = cx.b.plus(minus, 1.0)?;
                let next = cx.b.plus(base, 1.0)?;
                list.push((place(cx, base)?, Some(near)));
                list.push((place(cx, next)?, Some(t)));
            }
            "cubic" | "bicubic" => {
                let base = cx.b.floor(at)?;
                let t = cx.b.sub(at, base)?;
                let minus = cx.b.unary(Unary::Neg, t)?;
                for (k, d) in [(-1.0, (t, 1.0)), (0.0, (t, 0.0)), (1.0, (minus, 1.0)), (2.0, (minus, 2.0))] {
                    let p = cx.b.plus(base, k)?;
                    let distance = cx.b.plus(d.0, d.1)?;
                    let w = cubic(cx, distance, k == 0.0 || k == 1.0)?;
                    list.push((place(cx, p)?, Some(w)));
                }
            }
            other => return Err(n.bad(format!("mode '{other}'"))),
        }
        taps.push(list);
    }
    // The channels last, so that a point is read in one piece.
    let d = cx.b.dtype(x);
    let value = cx.b.convert(x, if mode == "nearest" { d } else { wide(d) })?;
    let perm: Vec<usize> = [0].into_iter().chain(2..r + 2).chain([1]).collect();
    let value = cx.b.permute(value, &perm)?;
    let mut parts = Vec::new();
    for k in 0..taps.iter().map(Vec::len).product() {
        let mut rest: usize = k;
        let mut weight: Option<ValueId> = None;
        let mut at = Vec::new();
        for list in &taps {
            let (i, w) = list[rest % list.len()];
            rest /= list.len();
            at.push(cx.b.unsqueeze(i, r + 1)?);
            weight = match (weight, w) {
                (Some(a), Some(b)) => Some(cx.b.mul(a, b)?),
                (a, b) => a.or(b),
            };
        }
        let at = cx.b.concat(&at, r + 1)?;
        let mut v = cx.b.gather_nd(value, at, 1)?;
        if let Some(w) = weight {
            let w = cx.b.convert(w, cx.b.dtype(v))?;
            let w = cx.b.unsqueeze(w, r + 1)?;
            v = cx.b.mul(v, w)?;
        }
        parts.push(v);
    }
    let y = cx.b.total(&parts)?;
    let back: Vec<usize> = [0, r + 1].into_iter().chain(1..r + 1).collect();
    let y = cx.b.permute(y, &back)?;
    let y = cx.b.convert(y, d)?;
    cx.one(y)
}

fn affine_grid<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let theta = cx.tensor(n, 0)?;
    let size = cx.contents(n, 1)?;
    let align = n.flag("align_corners", false)?;
    let r = size.len().saturating_sub(2);
    let td = cx.b.dims(theta);
    if !(r == 2 || r == 3) || td.len() != 3 {
        return Err(n.bad(format!("transformations {td:?} for size {size:?}")));
    }
    let d = cx.b.dtype(theta);
    let acc = wide(d);
    let theta = cx.b.convert(theta, acc)?;
    let mut dims = size[2..].to_vec();
    dims.push(Dim::from(1));
    let mut parts = Vec::new();
    for i in (0..r).rev() {
        let b = &mut cx.b;
        let p = b.count_along(acc, r + 1, i, &size[2 + i])?;
        let len = b.dim_as(&size[2 + i], acc)?;
        let p = if align {
            let steps = b.plus(len, -1.0)?;
            let steps = b.at_least(steps, 1.0)?;
            let p = b.times(p, 2.0)?;
            b.div(p, steps)?
        } else {
            let p = b.times(p, 2.0)?;
            let p = b.plus(p, 1.0)?;
            b.div(p, len)?
        };
        let p = b.plus(p, -1.0)?;
        parts.push(b.broadcast_to(p, &dims)?);
    }
    parts.push(cx.b.full(acc, 1.0, &dims)?);
    let points = cx.b.concat(&parts, r)?;
    let y = cx.b.contract(theta, points, &[], &[(2, r)], acc)?;
    let perm: Vec<usize> = [0].into_iter().chain(2..r + 2).chain([1]).collect();
    let y = cx.b.permute(y, &perm)?;
    let y = cx.b.convert(y, d)?;
    cx.one(y)
}

/// Along one dim of regions: `[regions, bins, samples]` of lower index, upper index, weight of the lower, weight of the upper.
fn region_taps(
    cx: &mut Ctx<'_, '_>,
    start: ValueId,
    length: ValueId,
    bins: i64,
    samples: i64,
    n: &Dim,
) -> Result<[ValueId; 4]> {
    let b = &mut cx.b;
    let acc = b.dtype(start);
    let bin = b.times(length, 1.0 / bins as f64)?;
    let place = |b: &mut tongtu_graph::Builder<'_>, v: ValueId| {
        let d = b.dims(v)[0].clone();
        b.reshape(v, &[d, Dim::from(1), Dim::from(1)])
    };
    let (start, bin) = (place(b, start)?, place(b, bin)?);
    let p = b.count_along(acc, 3, 1, &Dim::from(bins))?;
    let s = b.count_along(acc, 3, 2, &Dim::from(samples))?;
    let s = b.plus(s, 0.5)?;
    let s = b.times(s, 1.0 / samples as f64)?;
    let p = b.add2(p, s)?;
    let p = b.mul(bin, p)?;
    let at = b.add2(start, p)?;
    let len = b.dim_as(n, acc)?;
    let low = b.compare_const(Compare::Ge, at, -1.0)?;
    let high = b.compare(Compare::Le, at, len)?;
    let seen = b.both(low, high)?;
    let seen = b.convert(seen, acc)?;
    let last = b.plus(len, -1.0)?;
    let at = b.at_least(at, 0.0)?;
    let at = b.min2(at, last)?;
    let lower = b.floor(at)?;
    let upper = b.plus(lower, 1.0)?;
    let upper = b.min2(upper, last)?;
    let t = b.sub(at, lower)?;
    let far = b.mul(t, seen)?;
    let near = b.sub(seen, far)?;
    Ok([b.convert(lower, DType::I64)?, b.convert(upper, DType::I64)?, near, far])
}

fn roi_align<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let (x, rois, batch) = (cx.tensor(n, 0)?, cx.tensor(n, 1)?, cx.tensor(n, 2)?);
    let xd = cx.b.dims(x);
    let rd = cx.b.dims(rois);
    if xd.len() != 4 || rd.len() != 2 || cx.b.rank(batch) != 1 {
        return Err(n.bad("wanted images [n, c, h, w], regions [r, 4] and their images [r]"));
    }
    let size = |name: &str, default: i64| -> Result<i64> {
        let v = n.int(name, default)?;
        if (0..=1 << 16).contains(&v) { Ok(v) } else { Err(n.bad(format!("{name} {v}"))) }
    };
    let (ph, pw) = (size("output_height", 1)?, size("output_width", 1)?);
    let samples = size("sampling_ratio", 0)?;
    if samples == 0 {
        return Err(n.unsupported("a number of samples that depends on each region (sampling_ratio = 0)"));
    }
    let default = if n.opset >= 16 { "half_pixel" } else { "output_half_pixel" };
    let half = n.str("coordinate_transformation_mode", default)? == "half_pixel";
    let max = match n.str("mode", "avg")? {
        "avg" => false,
        "max" => true,
        other => return Err(n.bad(format!("mode '{other}'"))),
    };
    let d = cx.b.dtype(x);
    let acc = wide(d);
    let rois = cx.b.convert(rois, acc)?;
    let rois = cx.b.times(rois, n.float("spatial_scale", 1.0)?)?;
    let rois = cx.b.plus(rois, if half { -0.5 } else { 0.0 })?;
    let mut edges = Vec::new();
    for i in 0..4 {
        edges.push(cx.b.index(rois, 1, i)?);
    }
    let mut taps = Vec::new();
    for (k, bins) in [(1, ph), (0, pw)] {
        let mut length = cx.b.sub(edges[k + 2], edges[k])?;
        if !half {
            length = cx.b.at_least(length, 1.0)?;
        }
        taps.push(region_taps(cx, edges[k], length, bins, samples, &xd[3 - k])?);
    }
    let b = &mut cx.b;
    let image = b.permute(x, &[0, 2, 3, 1])?;
    let image = b.convert(image, acc)?;
    let one = Dim::from(1);
    let r = rd[0].clone();
    let (s, h, w) = (Dim::from(samples), Dim::from(ph), Dim::from(pw));
    let full = [r.clone(), h.clone(), s.clone(), w.clone(), s.clone(), one.clone()];
    let tall = [r.clone(), h, s.clone(), one.clone(), one.clone(), one.clone()];
    let flat = [r.clone(), one.clone(), one.clone(), w, s, one.clone()];
    let batch = b.convert(batch, DType::I64)?;
    let batch = b.reshape(batch, &[r, one.clone(), one.clone(), one.clone(), one.clone(), one])?;
    let batch = b.broadcast_to(batch, &full)?;
    let mut parts = Vec::new();
    for k in 0..4 {
        let (i, j) = (k / 2, k % 2);
        let y = b.reshape(taps[0][i], &tall)?;
        let x = b.reshape(taps[1][j], &flat)?;
        let (y, x) = (b.broadcast_to(y, &full)?, b.broadcast_to(x, &full)?);
        let at = b.concat(&[batch, y, x], 5)?;
        let v = b.gather_nd(image, at, 0)?;
        let wy = b.reshape(taps[0][2 + i], &tall)?;
        let wx = b.reshape(taps[1][2 + j], &flat)?;
        let weight = b.mul(wy, wx)?;
        parts.push(b.mul(v, weight)?);
    }
    let y = if max {
        let mut y = parts[0];
        for &p in &parts[1..] {
            y = b.max2(y, p)?;
        }
        b.greatest(y, &[2, 4])?
    } else {
        let y = b.total(&parts)?;
        b.mean(y, &[2, 4], false)?
    };
    let y = b.permute(y, &[0, 3, 1, 2])?;
    let y = b.convert(y, d)?;
    cx.one(y)
}

fn center_crop_pad<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let x = cx.tensor(n, 0)?;
    let want = cx.contents(n, 1)?;
    let dims = cx.b.dims(x);
    let axes: Vec<usize> = match n.ints("axes")? {
        Some(a) => a.iter().map(|&a| n.axis(a, dims.len())).collect::<Result<_>>()?,
        None => (0..dims.len()).collect(),
    };
    if axes.len() != want.len() {
        return Err(n.bad(format!("{} sizes for {} axes", want.len(), axes.len())));
    }
    let (zero, two) = (Dim::from(0), Dim::from(2));
    let mut low = vec![zero.clone(); dims.len()];
    let mut high = low.clone();
    for (&a, w) in axes.iter().zip(&want) {
        let more = w - &dims[a];
        let half = |d: &Dim| match d.as_const() {
            Some(v) => Dim::from(v.max(0) / 2),
            None => Dim::max(d, &zero).floordiv(&two),
        };
        low[a] = half(&more) - half(&-&more);
        high[a] = more - &low[a];
    }
    let fill = cx.b.full(cx.b.dtype(x), 0.0, &[])?;
    let y = cx.b.pad(x, fill, &low, &high)?;
    cx.one(y)
}

fn col2im<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let x = cx.tensor(n, 0)?;
    let (image, block) = (cx.contents(n, 1)?, cx.contents(n, 2)?);
    let r = image.len();
    let list = |name: &str, default: i64, len: usize| -> Result<Vec<i64>> {
        let v = n.ints(name)?.map_or(vec![default; len], <[i64]>::to_vec);
        let fits = v.len() == len && v.iter().all(|v| (default.min(1)..1 << 24).contains(v));
        if fits { Ok(v) } else { Err(n.bad(format!("{name} {v:?}"))) }
    };
    let (dilations, strides) = (list("dilations", 1, r)?, list("strides", 1, r)?);
    let pads = list("pads", 0, 2 * r)?;
    let xd = cx.b.dims(x);
    if xd.len() != 3 || block.len() != r || r == 0 {
        return Err(n.bad("wanted blocks [n, c * block, l] and as many block sizes as image sizes"));
    }
    let mut at: Option<ValueId> = None;
    let mut seen: Option<ValueId> = None;
    for i in 0..r {
        let taps = (&block[i] - 1) * dilations[i] + 1;
        let places = (&image[i] + pads[i] + pads[i + r] - taps).floordiv(&Dim::from(strides[i])) + 1;
        let b = &mut cx.b;
        let k = b.count_along(DType::I64, 2 * r, i, &block[i])?;
        let k = b.times(k, dilations[i] as f64)?;
        let p = b.count_along(DType::I64, 2 * r, r + i, &places)?;
        let p = b.times(p, strides[i] as f64)?;
        let p = b.plus(p, -pads[i] as f64)?;
        let p = b.add2(k, p)?;
        let ok = b.inside(p, &image[i])?;
        seen = Some(match seen {
            Some(s) => b.both(s, ok)?,
            None => ok,
        });
        at = Some(match at {
            Some(a) => {
                let len = b.dim_as(&image[i], DType::I64)?;
                let a = b.mul(a, len)?;
                b.add2(a, p)?
            }
            None => p,
        });
    }
    let (Some(at), Some(seen)) = (at, seen) else { return Err(n.bad("an image without dims")) };
    let b = &mut cx.b;
    let at = b.or_const(seen, at, -1.0)?;
    let area = numel(&block);
    let channels = match area.as_const() {
        Some(a) if a > 0 => xd[1].floordiv(&Dim::from(a)),
        _ => xd[1].floordiv(&area),
    };
    let planes = &xd[0] * &channels;
    let flat = [planes.clone(), &area * &xd[2]];
    let at = b.reshape(at, std::slice::from_ref(&flat[1]))?;
    let at = b.broadcast_to(at, &flat)?;
    let x = b.reshape(x, &flat)?;
    let d = b.dtype(x);
    let zeros = b.full(d, 0.0, &[planes, numel(&image)])?;
    let y = b.scatter_along(Combiner::Add, zeros, at, x, 1)?;
    let dims: Vec<Dim> = [xd[0].clone(), channels].into_iter().chain(image).collect();
    let y = b.reshape(y, &dims)?;
    cx.one(y)
}
