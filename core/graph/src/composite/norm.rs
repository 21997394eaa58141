//! Means, norms, normalisations and softmax.

use tongtu_tensor::Combiner;
use tongtu_tensor::dim::Dim;
use tongtu_tensor::scalar::{Binary, Unary};

use crate::build::{Builder, One};
use crate::composite::{attr, attributes, wide};
use crate::error::GraphError;
use crate::graph::ValueId;
use crate::op::WindowSpec;

impl Builder<'_> {
    /// `exp(x - max) / sum(exp(x - max))` along a dim.
    pub fn softmax(&mut self, x: ValueId, axis: usize) -> One {
        self.check_axis("softmax", x, axis)?;
        self.widened("softmax", attributes(&[("axis", attr(axis))]), &[x], |b, x| b.softmax_of(x[0], axis))
    }
    pub(crate) fn softmax_of(&mut self, x: ValueId, axis: usize) -> One {
        let (e, s) = self.shifted_exp(x, axis)?;
        let s = self.spread(s, x, &[axis])?;
        self.div(e, s)
    }
    /// `exp(x - max)` and its sum.
    fn shifted_exp(&mut self, x: ValueId, axis: usize) -> Result<(ValueId, ValueId), GraphError> {
        let m = self.reduce(Combiner::Max, x, &[axis])?;
        let m = self.spread(m, x, &[axis])?;
        let d = self.sub(x, m)?;
        let e = self.exp(d)?;
        let s = self.sum(e, &[axis])?;
        Ok((e, s))
    }
    /// `x - max - log(sum(exp(x - max)))` along a dim.
    pub fn log_softmax(&mut self, x: ValueId, axis: usize) -> One {
        self.check_axis("log_softmax", x, axis)?;
        self.widened("log_softmax", attributes(&[("axis", attr(axis))]), &[x], |b, x| {
            let m = b.reduce(Combiner::Max, x[0], &[axis])?;
            let m = b.spread(m, x[0], &[axis])?;
            let d = b.sub(x[0], m)?;
            let e = b.exp(d)?;
            let s = b.sum(e, &[axis])?;
            let l = b.unary(Unary::Log, s)?;
            let l = b.spread(l, x[0], &[axis])?;
            b.sub(d, l)
        })
    }
    /// `log(sum(exp(x)))` over axes, without overflow; over nothing `-inf`.
    pub fn log_sum_exp(&mut self, x: ValueId, axes: &[usize], keep: bool) -> One {
        self.reduction("log_sum_exp", x, axes, keep, |b, x| {
            let m = b.reduce(Combiner::Max, x, axes)?;
            // An infinite maximum would make inf - inf; zero in its place gives the right infinity.
            let inf = b.unary(Unary::IsInf, m)?;
            let zero = b.full_like(m, 0.0)?;
            let m = b.select(inf, zero, m)?;
            let s = b.spread(m, x, axes)?;
            let d = b.sub(x, s)?;
            let e = b.exp(d)?;
            let e = b.sum(e, axes)?;
            let l = b.unary(Unary::Log, e)?;
            b.add2(l, m)
        })
    }
    /// A composite that reduces axes; floats are widened, integers stay.
    fn reduction(
        &mut self,
        name: &str,
        x: ValueId,
        axes: &[usize],
        keep: bool,
        define: impl FnOnce(&mut Builder<'_>, ValueId) -> One,
    ) -> One {
        for &a in axes {
            self.check_axis(name, x, a)?;
        }
        let d = self.dtype(x);
        let a = attributes(&[("axes", attr(axes.to_vec())), ("keep", attr(keep))]);
        self.composite_one(name, a, &[x], |b, x| {
            let v = b.widen_all(x, wide(d))?[0];
            let y = define(b, v)?;
            let y = b.convert(y, d)?;
            b.keep_axes(y, x[0], axes, keep)
        })
    }
    /// Mean over axes: the sum divided by the count (integers truncate).
    pub fn mean(&mut self, x: ValueId, axes: &[usize], keep: bool) -> One {
        self.reduction("mean", x, axes, keep, |b, x| b.mean_of(x, axes))
    }
    pub(crate) fn mean_of(&mut self, x: ValueId, axes: &[usize]) -> One {
        let s = self.sum(x, axes)?;
        let n = self.count(x, axes, self.dtype(x))?;
        self.div(s, n)
    }
    /// `sum((x - mean)²) / (count - correction)` over axes.
    pub fn variance(&mut self, x: ValueId, axes: &[usize], keep: bool, correction: i64) -> One {
        self.reduction("variance", x, axes, keep, |b, x| {
            let (d, _) = b.centred(x, axes)?;
            let q = b.square(d)?;
            let s = b.sum(q, axes)?;
            let n = axes.iter().fold(Dim::from(1), |acc, &a| &acc * &b.graph.dims(x)[a]);
            let n = b.dim_as(&(n - correction), b.dtype(x))?;
            b.div(s, n)
        })
    }
    /// `x - mean` and the mean, not spread.
    fn centred(&mut self, x: ValueId, axes: &[usize]) -> Result<(ValueId, ValueId), GraphError> {
        let m = self.mean_of(x, axes)?;
        let s = self.spread(m, x, axes)?;
        Ok((self.sub(x, s)?, m))
    }
    /// `sum(|x|)` over axes.
    pub fn reduce_l1(&mut self, x: ValueId, axes: &[usize], keep: bool) -> One {
        self.reduction("reduce_l1", x, axes, keep, |b, x| {
            let a = b.unary(Unary::Abs, x)?;
            b.sum(a, axes)
        })
    }
    /// `sqrt(sum(x²))` over axes; integers go by way of `f64`.
    pub fn reduce_l2(&mut self, x: ValueId, axes: &[usize], keep: bool) -> One {
        self.reduction("reduce_l2", x, axes, keep, |b, x| {
            let v = if b.dtype(x).is_float() { x } else { b.convert(x, tongtu_tensor::DType::F64)? };
            let q = b.square(v)?;
            let s = b.sum(q, axes)?;
            b.unary(Unary::Sqrt, s)
        })
    }
    /// `log(sum(x))` over axes; integers go by way of `f64`.
    pub fn reduce_log_sum(&mut self, x: ValueId, axes: &[usize], keep: bool) -> One {
        self.reduction("reduce_log_sum", x, axes, keep, |b, x| {
            let v = if b.dtype(x).is_float() { x } else { b.convert(x, tongtu_tensor::DType::F64)? };
            let s = b.sum(v, axes)?;
            b.unary(Unary::Log, s)
        })
    }
    /// `sum(x²)` over axes.
    pub fn reduce_sum_square(&mut self, x: ValueId, axes: &[usize], keep: bool) -> One {
        self.reduction("reduce_sum_square", x, axes, keep, |b, x| {
            let q = b.square(x)?;
            b.sum(q, axes)
        })
    }

    /// Layer normalisation over the dims from `axis` on: `(x - mean) / sqrt(variance + epsilon) * scale + bias`. Scale and
    /// bias have the dims from `axis` on, or broadcast to them.
    pub fn layer_norm(
        &mut self,
        x: ValueId,
        scale: Option<ValueId>,
        bias: Option<ValueId>,
        axis: usize,
        epsilon: f64,
    ) -> One {
        let d = self.float_only("layer_norm", x)?;
        let (operands, a) = norm_operands(x, scale, bias, axis, epsilon);
        self.composite_one("layer_norm", a, &operands, |b, x| {
            let x = b.widen_all(x, wide(d))?;
            let axes: Vec<usize> = (axis..b.rank(x[0])).collect();
            let (y, ..) = b.normalised(x[0], &axes, epsilon)?;
            let y = b.affine(
                y,
                x[1..].first().copied().filter(|_| scale.is_some()),
                bias.map(|_| x[x.len() - 1]),
            )?;
            b.convert(y, d)
        })
    }
    /// [`Builder::layer_norm`] with the mean and `1 / sqrt(variance + epsilon)` (reduced dims of length 1, `f32` or `f64`) as further results.
    pub fn layer_norm_stats(
        &mut self,
        x: ValueId,
        scale: Option<ValueId>,
        bias: Option<ValueId>,
        axis: usize,
        epsilon: f64,
    ) -> Result<[ValueId; 3], GraphError> {
        let d = self.float_only("layer_norm", x)?;
        let (operands, a) = norm_operands(x, scale, bias, axis, epsilon);
        let out = self.composite("layer_norm_stats", a, &operands, |b, x| {
            let x = b.widen_all(x, wide(d))?;
            let axes: Vec<usize> = (axis..b.rank(x[0])).collect();
            let (y, mean, inv) = b.normalised(x[0], &axes, epsilon)?;
            let y = b.affine(
                y,
                x[1..].first().copied().filter(|_| scale.is_some()),
                bias.map(|_| x[x.len() - 1]),
            )?;
            let y = b.convert(y, d)?;
            let mean = b.keep_axes(mean, x[0], &axes, true)?;
            Ok(vec![y, mean, b.keep_axes(inv, x[0], &axes, true)?])
        })?;
        Ok([out[0], out[1], out[2]])
    }
    /// `(x - mean) * inv`, the mean and `inv = 1 / sqrt(variance + epsilon)`.
    fn normalised(
        &mut self,
        x: ValueId,
        axes: &[usize],
        epsilon: f64,
    ) -> Result<(ValueId, ValueId, ValueId), GraphError> {
        let (d, mean) = self.centred(x, axes)?;
        let q = self.square(d)?;
        let v = self.mean_of(q, axes)?;
        let v = self.add_const(v, epsilon)?;
        let inv = self.unary(Unary::Rsqrt, v)?;
        let s = self.spread(inv, x, axes)?;
        Ok((self.mul(d, s)?, mean, inv))
    }
    /// `y * scale + bias`, broadcast to `y`.
    fn affine(&mut self, y: ValueId, scale: Option<ValueId>, bias: Option<ValueId>) -> One {
        let mut y = y;
        if let Some(s) = scale {
            y = self.mul(y, s)?;
        }
        if let Some(s) = bias {
            y = self.add2(y, s)?;
        }
        Ok(y)
    }
    /// `x / sqrt(mean(x²) + epsilon) * scale`, the mean over the dims from `axis` on.
    pub fn rms_norm(&mut self, x: ValueId, scale: Option<ValueId>, axis: usize, epsilon: f64) -> One {
        let (operands, a) = norm_operands(x, scale, None, axis, epsilon);
        self.widened("rms_norm", a, &operands, |b, x| {
            let axes: Vec<usize> = (axis..b.rank(x[0])).collect();
            let q = b.square(x[0])?;
            let m = b.mean_of(q, &axes)?;
            let m = b.add_const(m, epsilon)?;
            let r = b.unary(Unary::Rsqrt, m)?;
            let r = b.spread(r, x[0], &axes)?;
            let y = b.mul(x[0], r)?;
            b.affine(y, x.get(1).copied(), None)
        })
    }
    /// Normalises every channel (dim 1) of every batch element (dim 0) over the other dims; scale and bias are vectors
    /// over the channels.
    pub fn instance_norm(&mut self, x: ValueId, scale: ValueId, bias: ValueId, epsilon: f64) -> One {
        self.check_axis("instance_norm", x, 1)?;
        self.widened("instance_norm", attributes(&[("epsilon", attr(epsilon))]), &[x, scale, bias], |b, x| {
            let dims = b.dims(x[0]);
            let axes: Vec<usize> = (2..dims.len()).collect();
            let (y, ..) = b.normalised(x[0], &axes, epsilon)?;
            let s = b.along(x[1], &dims, 1)?;
            let o = b.along(x[2], &dims, 1)?;
            b.affine(y, Some(s), Some(o))
        })
    }
    /// Normalises groups of consecutive channels (dim 1) of every batch element (dim 0); scale and bias are vectors over the channels.
    pub fn group_norm(
        &mut self,
        x: ValueId,
        scale: ValueId,
        bias: ValueId,
        groups: i64,
        epsilon: f64,
    ) -> One {
        self.check_axis("group_norm", x, 1)?;
        if groups < 1 {
            return Err(self.shape_error("group_norm", format!("{groups} groups")));
        }
        let a = attributes(&[("groups", attr(groups)), ("epsilon", attr(epsilon))]);
        self.widened("group_norm", a, &[x, scale, bias], |b, x| {
            let dims = b.dims(x[0]);
            let mut split = vec![dims[0].clone(), Dim::from(groups), dims[1].floordiv(&Dim::from(groups))];
            split.extend_from_slice(&dims[2..]);
            let v = b.reshape(x[0], &split)?;
            let axes: Vec<usize> = (2..split.len()).collect();
            let (y, ..) = b.normalised(v, &axes, epsilon)?;
            let y = b.reshape(y, &dims)?;
            let s = b.along(x[1], &dims, 1)?;
            let o = b.along(x[2], &dims, 1)?;
            b.affine(y, Some(s), Some(o))
        })
    }
    /// `(x - mean) / sqrt(variance + epsilon) * scale + bias`, all vectors over the channels (dim 1): batch
    /// normalisation with given statistics.
    pub fn batch_norm(
        &mut self,
        x: ValueId,
        scale: ValueId,
        bias: ValueId,
        mean: ValueId,
        variance: ValueId,
        epsilon: f64,
    ) -> One {
        let axis = usize::from(self.rank(x) > 1);
        self.check_axis("batch_norm", x, axis)?;
        let a = attributes(&[("epsilon", attr(epsilon))]);
        self.widened("batch_norm", a, &[x, scale, bias, mean, variance], |b, x| {
            let dims = b.dims(x[0]);
            let v = b.add_const(x[4], epsilon)?;
            let r = b.unary(Unary::Rsqrt, v)?;
            let k = b.mul(r, x[1])?;
            let m = b.along(x[3], &dims, axis)?;
            let d = b.sub(x[0], m)?;
            let k = b.along(k, &dims, axis)?;
            let o = b.along(x[2], &dims, axis)?;
            b.affine(d, Some(k), Some(o))
        })
    }
    /// `x / norm` along a dim, the norm of order 1 or 2; zero where the norm is zero.
    pub fn lp_normalize(&mut self, x: ValueId, axis: usize, p: i64) -> One {
        self.check_axis("lp_normalize", x, axis)?;
        if !matches!(p, 1 | 2) {
            return Err(self.shape_error("lp_normalize", format!("order {p}; 1 or 2 wanted")));
        }
        let a = attributes(&[("axis", attr(axis)), ("p", attr(p))]);
        self.widened("lp_normalize", a, &[x], |b, x| {
            let n = if p == 1 {
                let a = b.unary(Unary::Abs, x[0])?;
                b.sum(a, &[axis])?
            } else {
                let q = b.square(x[0])?;
                let s = b.sum(q, &[axis])?;
                b.unary(Unary::Sqrt, s)?
            };
            let zero = b.compare_const(tongtu_tensor::scalar::Compare::Eq, n, 0.0)?;
            let one = b.full_like(n, 1.0)?;
            let n = b.select(zero, one, n)?;
            let n = b.spread(n, x[0], &[axis])?;
            b.div(x[0], n)
        })
    }
    /// `x / sqrt(sum(x²))` along a dim; zero where all are zero.
    pub fn l2_normalize(&mut self, x: ValueId, axis: usize) -> One {
        self.lp_normalize(x, axis, 2)
    }
    /// `(x - mean) / sqrt(variance + epsilon)` over axes, as ONNX's MeanVarianceNormalization (which adds 1e-9 to the deviation).
    pub fn mean_variance_normalization(&mut self, x: ValueId, axes: &[usize]) -> One {
        for &a in axes {
            self.check_axis("mean_variance_normalization", x, a)?;
        }
        let a = attributes(&[("axes", attr(axes.to_vec()))]);
        self.widened("mean_variance_normalization", a, &[x], |b, x| {
            let (d, _) = b.centred(x[0], axes)?;
            let q = b.square(d)?;
            let v = b.mean_of(q, axes)?;
            let s = b.unary(Unary::Sqrt, v)?;
            let s = b.add_const(s, 1e-9)?;
            let s = b.spread(s, x[0], axes)?;
            b.div(d, s)
        })
    }
    /// Local response normalisation across `size` neighbouring channels (dim 1):
    /// `x / (bias + alpha / size * sum(x²))^beta`.
    pub fn local_response_norm(&mut self, x: ValueId, size: i64, alpha: f64, beta: f64, bias: f64) -> One {
        self.check_axis("local_response_norm", x, 1)?;
        if size < 1 {
            return Err(self.shape_error("local_response_norm", format!("size {size}")));
        }
        let a = attributes(&[
            ("size", attr(size)),
            ("alpha", attr(alpha)),
            ("beta", attr(beta)),
            ("bias", attr(bias)),
        ]);
        self.widened("local_response_norm", a, &[x], |b, x| {
            let rank = b.rank(x[0]);
            let q = b.square(x[0])?;
            let mut spec = WindowSpec {
                window: vec![1; rank],
                strides: vec![1; rank],
                pads: vec![(Dim::from(0), Dim::from(0)); rank],
                dilation: vec![1; rank],
            };
            spec.window[1] = size;
            spec.pads[1] = (Dim::from((size - 1) / 2), Dim::from(size / 2));
            let s = b.window_reduce(Combiner::Add, q, spec)?;
            let s = b.scale_by(s, alpha / size as f64)?;
            let s = b.add_const(s, bias)?;
            let p = b.binary_const(Binary::Pow, s, beta)?;
            b.div(x[0], p)
        })
    }
}

type Parameters = Vec<(String, crate::op::AttrValue)>;

fn norm_operands(
    x: ValueId,
    scale: Option<ValueId>,
    bias: Option<ValueId>,
    axis: usize,
    epsilon: f64,
) -> (Vec<ValueId>, Parameters) {
    let a = attributes(&[
        ("axis", attr(axis)),
        ("epsilon", attr(epsilon)),
        ("scale", attr(scale.is_some())),
        ("bias", attr(bias.is_some())),
    ]);
    ([Some(x), scale, bias].into_iter().flatten().collect(), a)
}
