//! Resampling along chosen dims.

use tongtu_tensor::DType;
use tongtu_tensor::dim::Dim;
use tongtu_tensor::scalar::{Binary, Compare, Unary};

use crate::build::{Builder, One};
use crate::composite::{attr, attributes, wide};
use crate::graph::ValueId;

/// How an output position maps to a position in the operand; `n` and `m` are the lengths, `s` the scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Coordinates {
    /// `(o + 0.5) / s - 0.5`.
    HalfPixel,
    /// As `HalfPixel`, shifted so that the centres of both stay together where `n * s` is no integer.
    HalfPixelSymmetric,
    /// As `HalfPixel`, 0 for an output of length 1.
    PytorchHalfPixel,
    /// `o * (n - 1) / (m - 1)`, 0 for an output of length 1.
    AlignCorners,
    /// `o / s`.
    Asymmetric,
    /// From `start * (n - 1)` to `end * (n - 1)`; their middle for an output of length 1. Each axis has its own.
    CropAndResize,
}

/// Which neighbour is nearest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NearestMode {
    /// Half-way positions go down.
    RoundPreferFloor,
    /// Half-way positions go up.
    RoundPreferCeil,
    /// The one before.
    Floor,
    /// The one after.
    Ceil,
}

/// How neighbours combine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Interpolation {
    /// One neighbour.
    Nearest(NearestMode),
    /// Two neighbours, by distance.
    Linear,
    /// Four neighbours, by Keys' cubic with this coefficient (-0.75 or -0.5).
    Cubic(f64),
}

/// One dim to resample.
#[derive(Clone, Debug)]
pub struct ResizeAxis {
    /// The dim.
    pub axis: usize,
    /// Its new length.
    pub len: Dim,
    /// Output over input length; taken from the lengths where it is `None`.
    pub scale: Option<f64>,
    /// Part of the operand read by `CropAndResize`, as shares of its length.
    pub crop: (f64, f64),
}

/// Everything else about a resampling.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ResizeMode {
    /// Mapping of positions.
    pub coordinates: Coordinates,
    /// Combination of neighbours.
    pub interpolation: Interpolation,
    /// Widen the support when shrinking.
    pub antialias: bool,
    /// Give neighbours outside the operand no weight (else they repeat the edge).
    pub exclude_outside: bool,
    /// The value where `CropAndResize` leaves the operand (else the edge repeats).
    pub extrapolation: Option<f64>,
}

impl ResizeMode {
    /// Without antialiasing, edges repeated.
    pub fn new(coordinates: Coordinates, interpolation: Interpolation) -> ResizeMode {
        ResizeMode {
            coordinates,
            interpolation,
            antialias: false,
            exclude_outside: false,
            extrapolation: None,
        }
    }
}

/// What is known of an axis only when it runs.
struct Given {
    scale: Option<ValueId>,
    crop: Option<(ValueId, ValueId)>,
}

/// Greatest number of neighbours that antialiasing may combine.
const MAX_TAPS: i64 = 4096;

impl Builder<'_> {
    /// Resamples dims, one after another. Positions and weights are in `f32`; the result has the operand's type, integers
    /// truncating and saturating.
    pub fn resize(&mut self, x: ValueId, axes: &[ResizeAxis], mode: ResizeMode) -> One {
        self.resize_at(x, axes, mode, None, None)
    }
    /// [`Builder::resize`] with scales `f32 [axes]` or crops `f32 [2, axes]` (starts, ends) known only when it runs, which go before
    /// those of the axes.
    pub fn resize_at(
        &mut self,
        x: ValueId,
        axes: &[ResizeAxis],
        mode: ResizeMode,
        scales: Option<ValueId>,
        crops: Option<ValueId>,
    ) -> One {
        for a in axes {
            self.check_axis("resize", x, a.axis)?;
        }
        let operands: Vec<ValueId> = [Some(x), scales, crops].into_iter().flatten().collect();
        let a = attributes(&[
            ("axes", attr(axes.iter().map(|a| a.axis).collect::<Vec<_>>())),
            ("lengths", attr(axes.iter().map(|a| a.len.clone()).collect::<Vec<_>>())),
            ("interpolation", attr(interpolation_name(mode.interpolation).to_string())),
        ]);
        let d = self.dtype(x);
        self.composite_one("resize", a, &operands, |b, x| {
            let mut given = Vec::new();
            for i in 0..axes.len() as i64 {
                let scale = match scales {
                    Some(_) => Some(b.element(x[1], &[i])?),
                    None => None,
                };
                let crop = match (crops, x.last()) {
                    (Some(_), Some(&c)) => Some((b.element(c, &[0, i])?, b.element(c, &[1, i])?)),
                    _ => None,
                };
                given.push(Given { scale, crop });
            }
            if let Interpolation::Nearest(nearest) = mode.interpolation {
                return b.resize_nearest(x[0], axes, &given, mode, nearest);
            }
            let acc = wide(d);
            let mut y = b.convert(x[0], acc)?;
            let mut outside = None;
            for (axis, given) in axes.iter().zip(&given) {
                let n = b.dims(y)[axis.axis].clone();
                let at = b.source_positions(axis, given, &n, mode.coordinates)?;
                if mode.extrapolation.is_some() && mode.coordinates == Coordinates::CropAndResize {
                    outside = Some(b.mark_outside(outside, at, &n, axis.axis, x[0], axes)?);
                }
                y = match known_shrink(axis, given, &n, mode) {
                    Some(shrink) => b.resample(y, at, axis, &n, mode, shrink)?,
                    None => b.resample_all(y, at, axis, given, &n, mode)?,
                };
            }
            if let (Some(p), Some(v)) = (outside, mode.extrapolation) {
                let v = b.full_like(y, v)?;
                y = b.select(p, v, y)?;
            }
            if d.is_float() { b.convert(y, d) } else { b.saturate(y, d) }
        })
    }
    fn resize_nearest(
        &mut self,
        x: ValueId,
        axes: &[ResizeAxis],
        given: &[Given],
        mode: ResizeMode,
        nearest: NearestMode,
    ) -> One {
        let mut y = x;
        let mut outside = None;
        for (axis, given) in axes.iter().zip(given) {
            let n = self.dims(y)[axis.axis].clone();
            let at = self.source_positions(axis, given, &n, mode.coordinates)?;
            if mode.extrapolation.is_some() && mode.coordinates == Coordinates::CropAndResize {
                outside = Some(self.mark_outside(outside, at, &n, axis.axis, x, axes)?);
            }
            let i = match nearest {
                NearestMode::Floor => self.unary(Unary::Floor, at)?,
                NearestMode::Ceil => self.unary(Unary::Ceil, at)?,
                NearestMode::RoundPreferFloor => {
                    let v = self.add_const(at, -0.5)?;
                    self.unary(Unary::Ceil, v)?
                }
                NearestMode::RoundPreferCeil => {
                    let v = self.add_const(at, 0.5)?;
                    self.unary(Unary::Floor, v)?
                }
            };
            let i = self.clamp_index(i, &n)?;
            y = self.take(y, i, axis.axis)?;
        }
        if let (Some(p), Some(v)) = (outside, mode.extrapolation) {
            let v = self.full_like(y, v)?;
            y = self.select(p, v, y)?;
        }
        Ok(y)
    }
    /// Where the position along one axis is outside the operand, over the dims of the result, or-ed with `so_far`.
    fn mark_outside(
        &mut self,
        so_far: Option<ValueId>,
        at: ValueId,
        n: &Dim,
        axis: usize,
        x: ValueId,
        axes: &[ResizeAxis],
    ) -> One {
        let mut dims = self.dims(x);
        for a in axes {
            dims[a.axis] = a.len.clone();
        }
        let low = self.compare_const(Compare::Lt, at, 0.0)?;
        let last = self.dim_as(&(n - 1), DType::F32)?;
        let high = self.compare(Compare::Gt, at, last)?;
        let p = self.binary(Binary::Or, low, high)?;
        let p = self.along(p, &dims, axis)?;
        match so_far {
            Some(q) => self.binary(Binary::Or, p, q),
            None => Ok(p),
        }
    }
    /// Positions rounded to integers before, as `i32` indices inside `0..n`.
    fn clamp_index(&mut self, i: ValueId, n: &Dim) -> One {
        let i = self.saturate(i, DType::I32)?;
        let last = self.dim_as(&(n - 1), DType::I64)?;
        let last = self.saturate(last, DType::I32)?;
        let i = self.binary(Binary::Min, i, last)?;
        self.binary_const(Binary::Max, i, 0.0)
    }
    /// The position in the operand of each output element along a dim: `f32 [len]`.
    fn source_positions(&mut self, a: &ResizeAxis, given: &Given, n: &Dim, coordinates: Coordinates) -> One {
        let o = self.iota(DType::F32, std::slice::from_ref(&a.len), 0)?;
        let input = self.dim_as(n, DType::F32)?;
        let output = self.dim_as(&a.len, DType::F32)?;
        let scale = self.scale_of(a, given, n)?;
        // The length before it is rounded to an integer.
        let exact = match given.scale.is_some() || a.scale.is_some() {
            true => self.mul(scale, input)?,
            false => output,
        };
        let half_pixel = |b: &mut Self| {
            let p = b.add_const(o, 0.5)?;
            let p = b.div(p, scale)?;
            b.add_const(p, -0.5)
        };
        match coordinates {
            Coordinates::HalfPixel => half_pixel(self),
            Coordinates::Asymmetric => self.div(o, scale),
            Coordinates::HalfPixelSymmetric => {
                let p = half_pixel(self)?;
                let adjustment = self.div(output, exact)?;
                let center = self.scale_by(input, 0.5)?;
                let one = self.full_like(adjustment, 1.0)?;
                let rest = self.sub(one, adjustment)?;
                let offset = self.mul(center, rest)?;
                self.add2(p, offset)
            }
            Coordinates::PytorchHalfPixel => {
                let p = half_pixel(self)?;
                let long = self.compare_const(Compare::Gt, output, 1.0)?;
                let zero = self.full_like(p, 0.0)?;
                self.select(long, p, zero)
            }
            Coordinates::AlignCorners => {
                let span = self.add_const(input, -1.0)?;
                let steps = self.steps(exact)?;
                let p = self.mul(o, span)?;
                self.div(p, steps)
            }
            Coordinates::CropAndResize => {
                let (start, end) = match given.crop {
                    Some(c) => c,
                    None => (self.float(DType::F32, a.crop.0)?, self.float(DType::F32, a.crop.1)?),
                };
                let span = self.add_const(input, -1.0)?;
                let steps = self.steps(exact)?;
                let first = self.mul(span, start)?;
                let share = self.sub(end, start)?;
                let p = self.mul(span, share)?;
                let p = self.mul(o, p)?;
                let p = self.div(p, steps)?;
                let p = self.add2(p, first)?;
                let long = self.compare_const(Compare::Gt, output, 1.0)?;
                let ends = self.add2(start, end)?;
                let middle = self.mul(span, ends)?;
                let middle = self.scale_by(middle, 0.5)?;
                self.select(long, p, middle)
            }
        }
    }
    /// Steps between the first and the last of `len` positions, for a length of at most 1 a number that does no harm.
    fn steps(&mut self, len: ValueId) -> One {
        let steps = self.add_const(len, -1.0)?;
        let one = self.full_like(steps, 1.0)?;
        let p = self.compare_const(Compare::Gt, steps, 0.0)?;
        self.select(p, steps, one)
    }
    /// One element as a scalar.
    fn element(&mut self, x: ValueId, at: &[i64]) -> One {
        let start: Vec<Dim> = at.iter().map(|&i| Dim::from(i)).collect();
        let y = self.slice(x, &start, &vec![Dim::from(1); at.len()], &vec![1; at.len()])?;
        self.reshape(y, &[])
    }
    /// Output over input length along a dim, an `f32` scalar.
    fn scale_of(&mut self, a: &ResizeAxis, given: &Given, n: &Dim) -> One {
        match (given.scale, a.scale) {
            (Some(s), _) => Ok(s),
            (None, Some(s)) => self.float(DType::F32, s),
            (None, None) => {
                let (output, input) = (self.dim_as(&a.len, DType::F32)?, self.dim_as(n, DType::F32)?);
                self.div(output, input)
            }
        }
    }
    /// The weight of a neighbour at a distance, already shrunk.
    fn weight(&mut self, t: ValueId, interpolation: Interpolation) -> One {
        if let Interpolation::Cubic(c) = interpolation {
            return self.cubic_weight(t, c);
        }
        let t = self.unary(Unary::Abs, t)?;
        let one = self.full_like(t, 1.0)?;
        let t = self.sub(one, t)?;
        self.binary_const(Binary::Max, t, 0.0)
    }
    /// Weights with those of places outside `0..n` set to zero.
    fn inside_only(&mut self, w: ValueId, at: ValueId, n: &Dim) -> One {
        let low = self.compare_const(Compare::Ge, at, 0.0)?;
        let end = self.dim_as(n, DType::F32)?;
        let high = self.compare(Compare::Lt, at, end)?;
        let inside = self.binary(Binary::And, low, high)?;
        let zero = self.full_like(w, 0.0)?;
        self.select(inside, w, zero)
    }
    /// Weighted sum along a dim over every element, with the edges repeated as far as the support reaches: for a scale that is
    /// known only when it runs.
    fn resample_all(
        &mut self,
        x: ValueId,
        at: ValueId,
        a: &ResizeAxis,
        given: &Given,
        n: &Dim,
        mode: ResizeMode,
    ) -> One {
        // The output is no longer than the operand times the scale.
        let margin = (n * reach(mode.interpolation)).ceildiv(&a.len.max(&Dim::from(1))) + 1;
        let all = n + &margin * 2;
        let j = self.iota(DType::F32, std::slice::from_ref(&all), 0)?;
        let before = self.dim_as(&margin, DType::F32)?;
        let j = self.sub(j, before)?;
        let i = self.clamp_index(j, n)?;
        let x = self.take(x, i, a.axis)?;
        let scale = self.scale_of(a, given, n)?;
        let shrink = self.binary_const(Binary::Min, scale, 1.0)?;
        let at = self.unsqueeze(at, 1)?;
        let j = self.unsqueeze(j, 0)?;
        let t = self.sub(j, at)?;
        let t = self.mul(t, shrink)?;
        let mut w = self.weight(t, mode.interpolation)?;
        if mode.exclude_outside {
            w = self.inside_only(w, j, n)?;
        }
        let total = self.sum(w, &[1])?;
        let total = self.unsqueeze(total, 1)?;
        let w = self.div(w, total)?;
        let acc = self.dtype(x);
        let w = self.convert(w, acc)?;
        let y = self.contract(x, w, &[], &[(a.axis, 1)], acc)?;
        let last = self.rank(y) - 1;
        let mut perm: Vec<usize> = (0..last).collect();
        perm.insert(a.axis, last);
        self.permute(y, &perm)
    }
    /// Weighted sum of neighbours along a dim; the support is wider by `1 / shrink`.
    fn resample(
        &mut self,
        x: ValueId,
        at: ValueId,
        a: &ResizeAxis,
        n: &Dim,
        mode: ResizeMode,
        shrink: f64,
    ) -> One {
        let first = (-(reach(mode.interpolation) as f64) / shrink).floor() as i64 + 1;
        let last = 1 - first;
        if last - first > MAX_TAPS {
            return Err(self
                .shape_error("resize", format!("antialiasing at scale {shrink} takes too many neighbours")));
        }
        let base = self.unary(Unary::Floor, at)?;
        let ratio = self.sub(at, base)?;
        let mut taps = Vec::new();
        let mut total = None;
        for i in first..=last {
            let t = self.full_like(ratio, i as f64)?;
            let t = self.sub(t, ratio)?;
            let t = self.scale_by(t, shrink)?;
            let mut w = self.weight(t, mode.interpolation)?;
            let at = self.add_const(base, i as f64)?;
            if mode.exclude_outside {
                w = self.inside_only(w, at, n)?;
            }
            total = Some(match total {
                Some(t) => self.add2(t, w)?,
                None => w,
            });
            taps.push((w, self.clamp_index(at, n)?));
        }
        let normalise = mode.antialias || mode.exclude_outside;
        let mut sum = None;
        for (mut w, i) in taps {
            if let (true, Some(t)) = (normalise, total) {
                w = self.div(w, t)?;
            }
            let v = self.take(x, i, a.axis)?;
            let w = self.convert(w, self.dtype(v))?;
            let dims = self.dims(v);
            let w = self.along(w, &dims, a.axis)?;
            let v = self.mul(v, w)?;
            sum = Some(match sum {
                Some(s) => self.add2(s, v)?,
                None => v,
            });
        }
        sum.ok_or_else(|| self.shape_error("resize", "no neighbours"))
    }
    /// Keys' cubic at distance `t`.
    fn cubic_weight(&mut self, t: ValueId, a: f64) -> One {
        let t = self.unary(Unary::Abs, t)?;
        let poly = |b: &mut Self, c: [f64; 4]| {
            let mut p = b.full_like(t, c[0])?;
            for v in &c[1..] {
                p = b.mul(p, t)?;
                p = b.add_const(p, *v)?;
            }
            Ok(p)
        };
        let near = poly(self, [a + 2.0, -(a + 3.0), 0.0, 1.0])?;
        let far = poly(self, [a, -5.0 * a, 8.0 * a, -4.0 * a])?;
        let zero = self.full_like(t, 0.0)?;
        let p = self.compare_const(Compare::Lt, t, 2.0)?;
        let far = self.select(p, far, zero)?;
        let p = self.compare_const(Compare::Le, t, 1.0)?;
        self.select(p, near, far)
    }
}

/// How many elements away a neighbour may be at scale 1.
fn reach(i: Interpolation) -> i64 {
    if matches!(i, Interpolation::Cubic(_)) { 2 } else { 1 }
}

/// By how much the support is wider than at scale 1, inverted, if that is known.
fn known_shrink(a: &ResizeAxis, given: &Given, n: &Dim, mode: ResizeMode) -> Option<f64> {
    if !mode.antialias {
        return Some(1.0);
    }
    if given.scale.is_some() {
        return None;
    }
    let known = a.scale.or_else(|| Some(a.len.as_const()? as f64 / n.as_const()? as f64));
    known.filter(|s| *s > 0.0).map(|s| s.min(1.0))
}

fn interpolation_name(i: Interpolation) -> &'static str {
    match i {
        Interpolation::Nearest(_) => "nearest",
        Interpolation::Linear => "linear",
        Interpolation::Cubic(_) => "cubic",
    }
}
