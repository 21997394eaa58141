//! Matrix products, convolutions, pooling and normalisation.

use tongtu_graph::composite::{PoolSpec, wide};
use tongtu_graph::op::ConvRole;
use tongtu_graph::{Combiner, ConvSpec, Op, ValueId};
use tongtu_tensor::dim::Dim;
use tongtu_tensor::{Binary, DType};

use crate::ctx::{Ctx, NodeCtx};
use crate::error::Result;
use crate::ops::{Entry, op};
use crate::val::Val;

/// The family's operators.
pub const OPS: &[Entry] = &[
    op("MatMul", mat_mul),
    op("MatMulInteger", mat_mul_integer),
    op("Gemm", gemm),
    op("Conv", conv),
    op("ConvInteger", conv_integer),
    op("ConvTranspose", conv_transpose),
    op("MaxPool", pool),
    op("AveragePool", pool),
    op("LpPool", pool),
    op("GlobalAveragePool", global_pool),
    op("GlobalMaxPool", global_pool),
    op("GlobalLpPool", global_pool),
    op("MaxUnpool", max_unpool),
    op("BatchNormalization", batch_norm),
    op("InstanceNormalization", |cx, n| {
        let (x, s, b) = (cx.tensor(n, 0)?, cx.tensor(n, 1)?, cx.tensor(n, 2)?);
        let y = cx.b.instance_norm(x, s, b, n.float("epsilon", EPSILON)?)?;
        cx.one(y)
    }),
    op("LayerNormalization", layer_norm),
    op("GroupNormalization", group_norm),
    op("RMSNormalization", rms_norm),
    op("LRN", |cx, n| {
        let x = cx.tensor(n, 0)?;
        let (alpha, beta, bias) = (n.float("alpha", 1e-4)?, n.float("beta", 0.75)?, n.float("bias", 1.0)?);
        let size = n.int("size", 0)?;
        if !(1..=MAX_SIZE).contains(&size) {
            return Err(n.bad(format!("size {size}")));
        }
        let y = cx.b.local_response_norm(x, size, alpha, beta, bias)?;
        cx.one(y)
    }),
    op("LpNormalization", |cx, n| {
        let x = cx.tensor(n, 0)?;
        let axis = n.axis(n.int("axis", -1)?, cx.b.rank(x))?;
        let y = cx.b.lp_normalize(x, axis, n.int("p", 2)?)?;
        cx.one(y)
    }),
    op("MeanVarianceNormalization", |cx, n| {
        let x = cx.tensor(n, 0)?;
        let axes = n.axes(n.ints("axes")?.unwrap_or(&[0, 2, 3]), cx.b.rank(x))?;
        let y = cx.b.mean_variance_normalization(x, &axes)?;
        cx.one(y)
    }),
];

const EPSILON: f64 = 1e-5;

/// Largest value of an attribute that gives sizes.
const MAX_SIZE: i64 = 1 << 24;

/// The type in which products of these are added up.
pub(crate) fn accumulator(d: DType) -> DType {
    if d.is_float() { wide(d) } else { d }
}

/// NumPy's `matmul`: the last two dims are multiplied, those before broadcast. Sums are in `acc`, which is the result's type.
pub(crate) fn mat_mul_values(
    cx: &mut Ctx<'_, '_>,
    n: &NodeCtx<'_>,
    a: ValueId,
    b: ValueId,
    acc: DType,
) -> Result<ValueId> {
    let one = Dim::from(1);
    let (da, db) = (cx.b.dims(a), cx.b.dims(b));
    if da.is_empty() || db.is_empty() {
        return Err(n.bad("an operand is a scalar"));
    }
    let (va, vb) = (da.len() == 1, db.len() == 1);
    let (batch_a, batch_b) =
        (&da[..da.len() - if va { 1 } else { 2 }], &db[..db.len() - if vb { 1 } else { 2 }]);
    let rank = batch_a.len().max(batch_b.len());
    // For each result dim: the operand dims it comes from; dims of 1 against others are left out and put back at the end.
    let (mut keep_a, mut keep_b, mut pairs) = (Vec::new(), Vec::new(), Vec::new());
    let mut dims = Vec::new();
    let mut source = Vec::new();
    for i in 0..rank {
        let x = (i + batch_a.len()).checked_sub(rank);
        let y = (i + batch_b.len()).checked_sub(rank);
        let wide = |d: Option<usize>, all: &[Dim]| d.filter(|&k| all[k] != one);
        match (wide(x, batch_a), wide(y, batch_b)) {
            (Some(p), Some(q)) => {
                pairs.push((keep_a.len(), keep_b.len()));
                source.push((Some(keep_a.len()), Some(keep_b.len())));
                keep_a.push(p);
                keep_b.push(q);
                dims.push(tongtu_graph::infer::simpler(&batch_a[p], &batch_b[q]));
            }
            (Some(p), None) => {
                source.push((Some(keep_a.len()), None));
                keep_a.push(p);
                dims.push(batch_a[p].clone());
            }
            (None, Some(q)) => {
                source.push((None, Some(keep_b.len())));
                keep_b.push(q);
                dims.push(batch_b[q].clone());
            }
            (None, None) => {
                source.push((None, None));
                dims.push(one.clone());
            }
        }
    }
    let shrink = |keep: &[usize], all: &[Dim], tail: usize| -> Vec<Dim> {
        keep.iter().map(|&k| all[k].clone()).chain(all[all.len() - tail..].iter().cloned()).collect()
    };
    let a = cx.b.reshape(a, &shrink(&keep_a, &da, if va { 1 } else { 2 }))?;
    let b = cx.b.reshape(b, &shrink(&keep_b, &db, if vb { 1 } else { 2 }))?;
    let over = (keep_a.len() + usize::from(!va), keep_b.len());
    let y = cx.b.contract(a, b, &pairs, &[over], acc)?;
    // Result dims so far: pairs, free dims of a (batch, then rows), free dims of b (batch, then columns).
    let free_a: Vec<usize> = (0..keep_a.len()).filter(|i| !pairs.iter().any(|p| p.0 == *i)).collect();
    let free_b: Vec<usize> = (0..keep_b.len()).filter(|i| !pairs.iter().any(|p| p.1 == *i)).collect();
    let rows = pairs.len() + free_a.len();
    let after_rows = rows + usize::from(!va);
    let mut perm = Vec::new();
    for s in &source {
        match s {
            (Some(p), Some(_)) => perm.extend(pairs.iter().position(|x| x.0 == *p)),
            (Some(p), None) => perm.extend(free_a.iter().position(|x| x == p).map(|i| pairs.len() + i)),
            (None, Some(q)) => perm.extend(free_b.iter().position(|x| x == q).map(|i| after_rows + i)),
            (None, None) => {}
        }
    }
    if !va {
        perm.push(rows);
        dims.push(da[da.len() - 2].clone());
    }
    if !vb {
        perm.push(after_rows + free_b.len());
        dims.push(db[db.len() - 1].clone());
    }
    let y = cx.b.permute(y, &perm)?;
    Ok(cx.b.reshape(y, &dims)?)
}

fn mat_mul<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let (a, b) = (cx.tensor(n, 0)?, cx.tensor(n, 1)?);
    let d = cx.b.dtype(a);
    let y = mat_mul_values(cx, n, a, b, accumulator(d))?;
    let y = cx.b.convert(y, d)?;
    cx.one(y)
}

/// An integer operand less its zero point, in `i32`. A vector of zero points lies along `axis`.
pub(crate) fn less_zero<'m>(
    cx: &mut Ctx<'_, 'm>,
    n: &NodeCtx<'m>,
    x: usize,
    zero: usize,
    axis: usize,
) -> Result<ValueId> {
    let v = cx.tensor(n, x)?;
    let v = cx.b.convert(v, DType::I32)?;
    let Some(z) = cx.opt(n, zero)? else { return Ok(v) };
    let z = cx.b.convert(z, DType::I32)?;
    let dims = cx.b.dims(v);
    let z = match cx.b.dims(z).as_slice() {
        [] => z,
        [d] if d.as_const() == Some(1) => cx.b.reshape(z, &[])?,
        [_] => cx.b.broadcast(z, &dims, &[axis.min(dims.len().saturating_sub(1))])?,
        _ => z,
    };
    Ok(cx.b.sub(v, z)?)
}

fn mat_mul_integer<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let rank = n.rank(0)?;
    let a = less_zero(cx, n, 0, 2, rank.saturating_sub(2))?;
    let b = less_zero(cx, n, 1, 3, n.rank(1)?.saturating_sub(1))?;
    let y = mat_mul_values(cx, n, a, b, DType::I32)?;
    cx.one(y)
}

fn gemm<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let (a, b) = (cx.tensor(n, 0)?, cx.tensor(n, 1)?);
    if cx.b.rank(a) != 2 || cx.b.rank(b) != 2 {
        return Err(n.bad("the operands are not matrices"));
    }
    let d = cx.b.dtype(a);
    let acc = accumulator(d);
    let over = (usize::from(!n.flag("transA", false)?), usize::from(n.flag("transB", false)?));
    let mut y = cx.b.contract(a, b, &[], &[over], acc)?;
    let scale = |cx: &mut Ctx<'_, 'm>, v: ValueId, by: f64| -> Result<ValueId> {
        if by == 1.0 {
            return Ok(v);
        }
        if acc.is_float() || by.fract() == 0.0 {
            return Ok(cx.b.binary_const(Binary::Mul, v, by)?);
        }
        let f = cx.b.convert(v, DType::F64)?;
        let f = cx.b.binary_const(Binary::Mul, f, by)?;
        Ok(cx.b.convert(f, acc)?)
    };
    y = scale(cx, y, n.float("alpha", 1.0)?)?;
    let beta = n.float("beta", 1.0)?;
    if let Some(c) = cx.opt(n, 2)?
        && beta != 0.0
    {
        let c = cx.b.convert(c, acc)?;
        let c = scale(cx, c, beta)?;
        y = cx.b.add2(y, c)?;
    }
    let y = cx.b.convert(y, d)?;
    cx.one(y)
}

/// Sizes of windows over spatial dims.
struct Windows {
    kernel: Vec<i64>,
    strides: Vec<i64>,
    dilations: Vec<i64>,
    pads: Option<Vec<i64>>,
    auto: &'static str,
}

fn positive(n: &NodeCtx<'_>, name: &str, spatial: usize) -> Result<Vec<i64>> {
    let v = match n.ints(name)? {
        Some(v) => v.to_vec(),
        None => vec![1; spatial],
    };
    if v.len() != spatial || !v.iter().all(|v| (1..=MAX_SIZE).contains(v)) {
        return Err(n.bad(format!("{name} {v:?} for {spatial} spatial dims")));
    }
    Ok(v)
}

fn windows(n: &NodeCtx<'_>, spatial: usize, kernel: Option<Vec<i64>>) -> Result<Windows> {
    let kernel = match (kernel, n.ints("kernel_shape")?) {
        (Some(k), Some(given)) if given != k.as_slice() => {
            return Err(n.bad(format!("kernel_shape {given:?}, but the kernel is {k:?}")));
        }
        (Some(k), _) => k,
        (None, Some(k)) => k.to_vec(),
        (None, None) => return Err(n.bad("no kernel_shape is given")),
    };
    if kernel.len() != spatial || !kernel.iter().all(|k| (1..=MAX_SIZE).contains(k)) {
        return Err(n.bad(format!("kernel {kernel:?} for {spatial} spatial dims")));
    }
    let pads = n.ints("pads")?.map(<[i64]>::to_vec);
    if let Some(p) = &pads
        && (p.len() != 2 * spatial || !p.iter().all(|p| (-MAX_SIZE..=MAX_SIZE).contains(p)))
    {
        return Err(n.bad(format!("pads {p:?} for {spatial} spatial dims")));
    }
    let auto = match n.str("auto_pad", "NOTSET")? {
        "NOTSET" | "" => "NOTSET",
        "SAME_UPPER" => "SAME_UPPER",
        "SAME_LOWER" => "SAME_LOWER",
        "VALID" => "VALID",
        other => return Err(n.bad(format!("auto_pad '{other}'"))),
    };
    Ok(Windows {
        kernel,
        strides: positive(n, "strides", spatial)?,
        dilations: positive(n, "dilations", spatial)?,
        pads,
        auto,
    })
}

impl Windows {
    /// Elements from the first to the last tap.
    fn span(&self, i: usize) -> i64 {
        (self.kernel[i] - 1) * self.dilations[i] + 1
    }
    /// Padding of a dim of length `len`.
    fn pad(&self, i: usize, len: &Dim) -> (Dim, Dim) {
        match self.auto {
            "VALID" => (Dim::from(0), Dim::from(0)),
            "NOTSET" => match &self.pads {
                Some(p) => (Dim::from(p[i]), Dim::from(p[i + self.kernel.len()])),
                None => (Dim::from(0), Dim::from(0)),
            },
            auto => {
                let s = Dim::from(self.strides[i]);
                let total = (len.ceildiv(&s) - 1) * &s + self.span(i) - len;
                let total = match total.as_const() {
                    Some(t) => Dim::from(t.max(0)),
                    None if self.strides[i] == 1 => total,
                    None => Dim::max(&total, &Dim::from(0)),
                };
                let less = total.floordiv(&Dim::from(2));
                let more = &total - &less;
                if auto == "SAME_UPPER" { (less, more) } else { (more, less) }
            }
        }
    }
}

/// The spatial rank of an operand with batch and channels in front.
fn spatial(n: &NodeCtx<'_>, i: usize) -> Result<usize> {
    match n.rank(i)? {
        r @ 3.. => Ok(r - 2),
        r => Err(
            n.bad(format!("operand {i} has rank {r}; batch, channels and at least one more dim are wanted"))
        ),
    }
}

/// The lengths of a kernel's spatial dims.
fn kernel_dims(n: &NodeCtx<'_>, i: usize) -> Result<Vec<i64>> {
    let dims = n.dims(i)?.get(2..).unwrap_or_default();
    dims.iter()
        .map(Dim::as_const)
        .collect::<Option<_>>()
        .ok_or_else(|| n.unsupported("the kernel's dims are not known"))
}

pub(crate) fn conv_spec(n: &NodeCtx<'_>, x: &[Dim], weights: usize) -> Result<ConvSpec> {
    let rank = x.len().saturating_sub(2);
    let w = windows(n, rank, Some(kernel_dims(n, weights)?))?;
    let groups = n.int("group", 1)?;
    Ok(ConvSpec {
        strides: w.strides.clone(),
        dilation: w.dilations.clone(),
        pads: (0..rank).map(|i| w.pad(i, &x[2 + i])).collect(),
        groups,
        ..ConvSpec::nchw(rank)
    })
}

/// Adds a vector along the channels.
pub(crate) fn add_bias(cx: &mut Ctx<'_, '_>, y: ValueId, bias: ValueId) -> Result<ValueId> {
    let bias = cx.b.convert(bias, cx.b.dtype(y))?;
    let dims = cx.b.dims(y);
    let bias = cx.b.broadcast(bias, &dims, &[1])?;
    Ok(cx.b.add2(y, bias)?)
}

fn conv<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    spatial(n, 0)?;
    let (x, w) = (cx.tensor(n, 0)?, cx.tensor(n, 1)?);
    let d = cx.b.dtype(x);
    let spec = conv_spec(n, &cx.b.dims(x), 1)?;
    let mut y = cx.b.conv(x, w, spec, accumulator(d))?;
    if let Some(bias) = cx.opt(n, 2)? {
        y = add_bias(cx, y, bias)?;
    }
    let y = cx.b.convert(y, d)?;
    cx.one(y)
}

fn conv_integer<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    spatial(n, 0)?;
    let spec = conv_spec(n, n.dims(0)?, 1)?;
    let x = less_zero(cx, n, 0, 2, 1)?;
    let w = less_zero(cx, n, 1, 3, 0)?;
    let y = cx.b.conv(x, w, spec, DType::I32)?;
    cx.one(y)
}

fn conv_transpose<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let rank = spatial(n, 0)?;
    let w = windows(n, rank, Some(kernel_dims(n, 1)?))?;
    let (x, kernel) = (cx.tensor(n, 0)?, cx.tensor(n, 1)?);
    let (xd, kd) = (cx.b.dims(x), cx.b.dims(kernel));
    let groups = n.int("group", 1)?;
    if !(1..=MAX_SIZE).contains(&groups) {
        return Err(n.bad(format!("{groups} groups")));
    }
    let extra = match n.ints("output_padding")? {
        Some(p) if p.len() == rank && p.iter().all(|p| (0..=MAX_SIZE).contains(p)) => p.to_vec(),
        Some(p) => return Err(n.bad(format!("output_padding {p:?}"))),
        None => vec![0; rank],
    };
    let wanted = match n.ints("output_shape")? {
        Some(s) if s.len() == rank => Some(s.to_vec()),
        Some(s) if s.len() == rank + 2 => Some(s[2..].to_vec()),
        Some(s) => return Err(n.bad(format!("output_shape {s:?}"))),
        None => None,
    };
    let mut pads = Vec::new();
    for i in 0..rank {
        let span = w.span(i);
        let full = (&xd[2 + i] - 1) * w.strides[i] + span + extra[i];
        let given = match (&wanted, w.auto) {
            (Some(s), _) => Some(Dim::from(s[i])),
            (None, "SAME_UPPER" | "SAME_LOWER") => Some(&xd[2 + i] * w.strides[i]),
            _ => None,
        };
        let (low, high) = match given {
            Some(out) => {
                let total = full - out;
                let less = total.floordiv(&Dim::from(2));
                let more = &total - &less;
                if w.auto == "SAME_UPPER" { (less, more) } else { (more, less) }
            }
            None => w.pad(i, &xd[2 + i]),
        };
        pads.push((Dim::from(span - 1) - low, Dim::from(span - 1 + extra[i]) - high));
    }
    // The kernel turned around, input and output channels exchanged within each group.
    let mut start = vec![Dim::from(0); rank + 2];
    let mut step = vec![1; rank + 2];
    for i in 0..rank {
        if w.kernel[i] > 1 {
            (start[2 + i], step[2 + i]) = (Dim::from(w.kernel[i] - 1), -1);
        }
    }
    let mut kernel = if step.contains(&-1) { cx.b.slice(kernel, &start, &kd, &step)? } else { kernel };
    let mut spec = ConvSpec::nchw(rank);
    if groups == 1 {
        spec.kernel[0] = ConvRole::C;
        spec.kernel[1] = ConvRole::N;
    } else {
        let g = Dim::from(groups);
        let mut dims = vec![g.clone(), kd[0].floordiv(&g)];
        dims.extend_from_slice(&kd[1..]);
        kernel = cx.b.reshape(kernel, &dims)?;
        let perm: Vec<usize> = [0, 2, 1].into_iter().chain(3..rank + 3).collect();
        kernel = cx.b.permute(kernel, &perm)?;
        let mut dims = vec![&g * &kd[1], kd[0].floordiv(&g)];
        dims.extend_from_slice(&kd[2..]);
        kernel = cx.b.reshape(kernel, &dims)?;
    }
    spec.pads = pads;
    spec.input_dilation = w.strides.clone();
    spec.dilation = w.dilations.clone();
    spec.groups = groups;
    let d = cx.b.dtype(x);
    let mut y = cx.b.conv(x, kernel, spec, accumulator(d))?;
    if let Some(bias) = cx.opt(n, 2)? {
        y = add_bias(cx, y, bias)?;
    }
    let y = cx.b.convert(y, d)?;
    cx.one(y)
}

/// Windows over the spatial dims of a pooling.
pub(crate) fn pool_spec(n: &NodeCtx<'_>, dims: &[Dim]) -> Result<PoolSpec> {
    let rank = spatial(n, 0)?;
    let w = windows(n, rank, None)?;
    let ceil = n.flag("ceil_mode", false)?;
    let mut spec = PoolSpec::new(&w.kernel);
    spec.strides = w.strides.clone();
    spec.dilation = w.dilations.clone();
    for i in 0..rank {
        let len = &dims[2 + i];
        let (low, high) = w.pad(i, len);
        if ceil && w.auto == "NOTSET" {
            // As many windows as begin inside the operand or its first padding; the last one may reach past the end.
            let s = Dim::from(w.strides[i]);
            let room = len + &low + &high - w.span(i);
            let fitting = room.ceildiv(&s) + 1;
            // A window longer than a step and the padding after it never begins past the operand's end.
            let count = match high.as_const() {
                Some(h) if w.span(i) >= h.saturating_add(w.strides[i]) => fitting,
                _ => Dim::min(&fitting, &(len + &low).ceildiv(&s)),
            };
            let extra = (count - 1) * &s - room;
            spec.extra[i] = match extra.as_const() {
                Some(e) => Dim::from(e.max(0)),
                None => extra,
            };
        }
        spec.pads[i] = (low, high);
    }
    Ok(spec)
}

fn pool<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let x = cx.tensor(n, 0)?;
    let spec = pool_spec(n, &cx.b.dims(x))?;
    match n.op() {
        "MaxPool" if n.wants(1) => {
            let (y, i) = cx.b.max_pool_indices(x, &spec, n.int("storage_order", 0)? == 1)?;
            Ok(vec![cx.out(y), cx.out(i)])
        }
        "MaxPool" => {
            let y = cx.b.max_pool(x, &spec)?;
            cx.one(y)
        }
        "AveragePool" => {
            let y = cx.b.avg_pool(x, &spec, n.flag("count_include_pad", false)?)?;
            cx.one(y)
        }
        _ => {
            let y = cx.b.lp_pool(x, &spec, n.int("p", 2)?)?;
            cx.one(y)
        }
    }
}

fn global_pool<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let x = cx.tensor(n, 0)?;
    let axes: Vec<usize> = (2..cx.b.rank(x)).collect();
    let y = match n.op() {
        "GlobalAveragePool" => cx.b.mean(x, &axes, true)?,
        "GlobalMaxPool" => cx.b.reduce_keep(Combiner::Max, x, &axes)?,
        _ => cx.b.lp_norm(x, &axes, n.int("p", 2)?, true)?,
    };
    cx.one(y)
}

fn max_unpool<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let rank = spatial(n, 0)?;
    let w = windows(n, rank, None)?;
    let (x, at) = (cx.tensor(n, 0)?, cx.tensor(n, 1)?);
    let have = cx.b.dims(x);
    let mut dims = have[..2].to_vec();
    for i in 0..rank {
        let (low, high) = w.pad(i, &have[2 + i]);
        dims.push((&have[2 + i] - 1) * w.strides[i] + w.kernel[i] - low - high);
    }
    // Indices count in the operand of the pooling; with a larger result they are taken apart and put together anew.
    let total = tongtu_graph::infer::numel(&have);
    let x = cx.b.reshape(x, std::slice::from_ref(&total))?;
    let mut at = cx.b.reshape(at, &[total])?;
    if n.has(2) {
        let want = cx.contents(n, 2)?;
        if want.len() != dims.len() {
            return Err(n.bad(format!("output_shape of {} dims", want.len())));
        }
        if want != dims {
            let mut rest = at;
            let mut scale = Dim::from(1);
            let mut moved = cx.b.full_like(at, 0.0)?;
            for i in (0..dims.len()).rev() {
                let len = cx.b.dim_as(&dims[i], DType::I64)?;
                let k = cx.b.binary(Binary::Mod, rest, len)?;
                rest = cx.b.div(rest, len)?;
                let by = cx.b.dim_as(&scale, DType::I64)?;
                let k = cx.b.mul(k, by)?;
                moved = cx.b.add2(moved, k)?;
                scale = &scale * &want[i];
            }
            at = moved;
            dims = want;
        }
    }
    let d = cx.b.dtype(x);
    let zeros = cx.b.full(d, 0.0, &[tongtu_graph::infer::numel(&dims)])?;
    let y = cx.b.one(Op::ScatterAlong { axis: 0, combiner: Combiner::Replace }, &[zeros, at, x])?;
    let y = cx.b.reshape(y, &dims)?;
    cx.one(y)
}

fn batch_norm<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let x = cx.tensor(n, 0)?;
    let mut v = [x; 4];
    for (i, v) in v.iter_mut().enumerate() {
        *v = cx.tensor(n, i + 1)?;
    }
    let [scale, bias, mean, variance] = v;
    let epsilon = n.float("epsilon", EPSILON)?;
    let training = if n.opset >= 14 {
        n.flag("training_mode", false)?
    } else {
        n.opset < 7 && !n.flag("is_test", false)?
    };
    if n.opset < 9 && !n.flag("spatial", true)? {
        return Err(n.unsupported("spatial = 0"));
    }
    if !training {
        let y = cx.b.batch_norm(x, scale, bias, mean, variance, epsilon)?;
        return cx.one(y);
    }
    if n.opset < 14 {
        return Err(n.unsupported("training mode"));
    }
    let axes: Vec<usize> = (0..cx.b.rank(x)).filter(|&i| i != 1).collect();
    let d = cx.b.dtype(x);
    let wide_x = cx.b.convert(x, accumulator(d))?;
    let m = cx.b.mean(wide_x, &axes, false)?;
    let s = cx.b.variance(wide_x, &axes, false, 0)?;
    let y = {
        let (m, s) = (cx.b.convert(m, d)?, cx.b.convert(s, d)?);
        let (scale, bias) = (cx.b.convert(scale, d)?, cx.b.convert(bias, d)?);
        cx.b.batch_norm(x, scale, bias, m, s, epsilon)?
    };
    let momentum = n.float("momentum", f64::from(0.9f32))?;
    let mut out = vec![cx.out(y)];
    for (old, new) in [(mean, m), (variance, s)] {
        let to = cx.b.dtype(old);
        let new = cx.b.convert(new, to)?;
        let (a, b) = (
            cx.b.binary_const(Binary::Mul, old, momentum)?,
            cx.b.binary_const(Binary::Mul, new, 1.0 - momentum)?,
        );
        let v = cx.b.add2(a, b)?;
        out.push(cx.out(v));
    }
    Ok(out)
}

fn layer_norm<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let (x, s, b) = (cx.tensor(n, 0)?, cx.opt(n, 1)?, cx.opt(n, 2)?);
    let axis = n.axis(n.int("axis", -1)?, cx.b.rank(x))?;
    let epsilon = n.float("epsilon", EPSILON)?;
    if n.wants(1) || n.wants(2) {
        let all = cx.b.layer_norm_stats(x, s, b, axis, epsilon)?;
        return Ok(all.into_iter().map(|v| cx.out(v)).collect());
    }
    let y = cx.b.layer_norm(x, s, b, axis, epsilon)?;
    cx.one(y)
}

pub(crate) fn rms_norm<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    if n.wants(1) {
        return Err(n.unsupported("the deviation as a result"));
    }
    let (x, scale) = (cx.tensor(n, 0)?, cx.opt(n, 1)?);
    let axis = n.axis(n.int("axis", -1)?, cx.b.rank(x))?;
    let y = cx.b.rms_norm(x, scale, axis, n.float("epsilon", EPSILON)?)?;
    cx.one(y)
}

fn group_norm<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let (x, mut s, mut b) = (cx.tensor(n, 0)?, cx.tensor(n, 1)?, cx.tensor(n, 2)?);
    let groups = n.int("num_groups", 0)?;
    if n.opset < 21 {
        // One scale and bias for each group.
        let dims = cx.b.dims(x);
        let channels = dims.get(1).cloned().ok_or_else(|| n.bad("the operand has no channels"))?;
        let each = channels.floordiv(&Dim::from(groups.max(1)));
        let mut spread = |v: ValueId| -> Result<ValueId> {
            let v = cx.b.broadcast(v, &[Dim::from(groups), each.clone()], &[0])?;
            Ok(cx.b.reshape(v, std::slice::from_ref(&channels))?)
        };
        (s, b) = (spread(s)?, spread(b)?);
    }
    let y = cx.b.group_norm(x, s, b, groups, n.float("epsilon", EPSILON)?)?;
    cx.one(y)
}
