//! Operators of the domain `com.microsoft`, which ONNX Runtime's optimiser and quantiser write.

use tongtu_graph::ValueId;
use tongtu_graph::composite::{AttentionSpec, Granularity, wide};
use tongtu_tensor::dim::Dim;
use tongtu_tensor::{Binary, Combiner, Compare, DType, Tensor, Unary};

use crate::ctx::{Ctx, NodeCtx};
use crate::error::Result;
use crate::ops::attention::{combine_masks, join_heads, rotary_rows, split_heads, usual_scale};
use crate::ops::calc::Calc;
use crate::ops::nn::{accumulator, add_bias, conv_spec, less_zero, mat_mul_values, pool_spec, rms_norm};
use crate::ops::quant::{dequantize, quantize, round_to, scale_of};
use crate::ops::{Entry, op, op_in};
use crate::val::Val;

const MS: &str = "com.microsoft";

/// The family's operators.
pub const OPS: &[Entry] = &[
    op_in(MS, "Attention", attention),
    op_in(MS, "MultiHeadAttention", multi_head_attention),
    op_in(MS, "GroupQueryAttention", group_query_attention),
    op_in(MS, "RotaryEmbedding", rotary_embedding),
    op_in(MS, "SkipLayerNormalization", skip_layer_norm),
    op_in(MS, "SkipSimplifiedLayerNormalization", skip_rms_norm),
    op_in(MS, "SimplifiedLayerNormalization", rms_norm),
    op("SimplifiedLayerNormalization", rms_norm),
    op_in(MS, "EmbedLayerNormalization", embed_layer_norm),
    op_in(MS, "FastGelu", |cx, n| biased(cx, n, |cx, _, x| Ok(cx.b.gelu_tanh(x)?))),
    op_in(MS, "BiasGelu", |cx, n| biased(cx, n, |cx, _, x| Ok(cx.b.gelu(x)?))),
    op_in(MS, "Gelu", |cx, n| biased(cx, n, |cx, _, x| Ok(cx.b.gelu(x)?))),
    op_in(MS, "QuickGelu", |cx, n| {
        biased(cx, n, |cx, n, x| Ok(cx.b.swish(x, n.float("alpha", f64::from(1.702f32))?)?))
    }),
    op_in(MS, "FusedMatMul", fused_mat_mul),
    op_in(MS, "FusedGemm", fused_gemm),
    op_in(MS, "FusedConv", fused_conv),
    op_in(MS, "MatMulNBits", mat_mul_bits),
    op_in(MS, "MatMulIntegerToFloat", mat_mul_integer_to_float),
    op_in(MS, "DynamicQuantizeMatMul", dynamic_mat_mul),
    op_in(MS, "QuantizeLinear", quantize),
    op_in(MS, "DequantizeLinear", dequantize),
    op_in(MS, "QLinearAdd", qlinear_binary),
    op_in(MS, "QLinearMul", qlinear_binary),
    op_in(MS, "QLinearConcat", qlinear_concat),
    op_in(MS, "QLinearLeakyRelu", |cx, n| {
        qlinear_unary(cx, n, |cx, n, x| Ok(cx.b.leaky_relu(x, n.float("alpha", f64::from(0.01f32))?)?))
    }),
    op_in(MS, "QLinearSigmoid", |cx, n| qlinear_unary(cx, n, |cx, _, x| Ok(cx.b.sigmoid(x)?))),
    op_in(MS, "QLinearSoftmax", |cx, n| {
        qlinear_unary(cx, n, |cx, n, x| {
            let rank = cx.b.rank(x);
            let axis = n.axis(n.int("axis", -1)?, rank)?;
            if n.int("opset", 13)? < 13 && axis + 1 != rank {
                return Err(n.unsupported("softmax over several dims at once"));
            }
            Ok(cx.b.softmax(x, axis)?)
        })
    }),
    op_in(MS, "QLinearAveragePool", |cx, n| {
        if n.flag("channels_last", false)? {
            return Err(n.unsupported("channels that come last"));
        }
        qlinear_unary(cx, n, |cx, n, x| {
            let spec = pool_spec(n, &cx.b.dims(x))?;
            Ok(cx.b.avg_pool(x, &spec, n.flag("count_include_pad", false)?)?)
        })
    }),
    op_in(MS, "QLinearGlobalAveragePool", |cx, n| {
        qlinear_unary(cx, n, |cx, n, x| {
            let rank = cx.b.rank(x);
            if rank < 3 {
                return Err(n.bad("the operand has no spatial dims"));
            }
            let axes: Vec<usize> =
                if n.flag("channels_last", false)? { (1..rank - 1).collect() } else { (2..rank).collect() };
            Ok(cx.b.mean(x, &axes, true)?)
        })
    }),
];

/// The operand plus, if given, the second one, then a function.
fn biased<'m>(
    cx: &mut Ctx<'_, 'm>,
    n: &NodeCtx<'m>,
    f: impl FnOnce(&mut Ctx<'_, 'm>, &NodeCtx<'m>, ValueId) -> Result<ValueId>,
) -> Result<Vec<Val>> {
    let mut x = cx.tensor(n, 0)?;
    if let Some(b) = cx.opt(n, 1)? {
        x = cx.b.add2(x, b)?;
    }
    let y = f(cx, n, x)?;
    cx.one(y)
}

/// A product with a matrix from the right, plus a vector, in the operand's type.
fn project(cx: &mut Ctx<'_, '_>, x: ValueId, w: ValueId, bias: Option<ValueId>) -> Result<ValueId> {
    let d = cx.b.dtype(x);
    let last = cx.b.rank(x).saturating_sub(1);
    let mut y = cx.b.contract(x, w, &[], &[(last, 0)], wide(d))?;
    if let Some(b) = bias {
        let b = cx.b.convert(b, wide(d))?;
        y = cx.b.add2(y, b)?;
    }
    Ok(cx.b.convert(y, d)?)
}

/// A padding mask over keys of `[b, s]` queries, to be added to scores: of rank 2 `[b, t]` or 3 `[b, s, t]`, one where a key counts; of
/// rank 1 the number of keys that count in each batch element.
fn padding_mask<'m>(
    cx: &mut Ctx<'_, 'm>,
    n: &NodeCtx<'m>,
    operand: usize,
    batch: &Dim,
    t: &Dim,
) -> Result<Option<ValueId>> {
    let Some(mask) = cx.opt(n, operand)? else { return Ok(None) };
    let hidden = n.float("mask_filter_value", -10000.0)?;
    let d = cx.b.dims(mask);
    let one = Dim::from(1);
    let b = &mut cx.b;
    let seen = match d.as_slice() {
        [k] if k == batch => {
            let length = b.convert(mask, DType::I64)?;
            let length = b.reshape(length, &[k.clone(), one.clone(), one.clone(), one])?;
            let j = b.count_along(DType::I64, 4, 3, t)?;
            b.compare(Compare::Lt, j, length)?
        }
        [x, y] => {
            let m = b.reshape(mask, &[x.clone(), one.clone(), one, y.clone()])?;
            if b.dtype(m).is_bool() { m } else { b.compare_const(Compare::Ne, m, 0.0)? }
        }
        [x, s, y] => {
            let m = b.reshape(mask, &[x.clone(), one, s.clone(), y.clone()])?;
            if b.dtype(m).is_bool() { m } else { b.compare_const(Compare::Ne, m, 0.0)? }
        }
        _ => return Err(n.unsupported(format!("a mask of dims {d:?}"))),
    };
    let dims = b.dims(seen);
    let (zero, low) = (b.full(DType::F32, 0.0, &dims)?, b.full(DType::F32, hidden, &dims)?);
    Ok(Some(b.select(seen, zero, low)?))
}

/// A mask to be added with a bias to be added.
fn add_masks(cx: &mut Ctx<'_, '_>, mask: Option<ValueId>, bias: Option<ValueId>) -> Result<Option<ValueId>> {
    Ok(match (mask, bias) {
        (Some(m), Some(b)) => {
            let b = cx.b.convert(b, cx.b.dtype(m))?;
            Some(cx.b.add2(m, b)?)
        }
        (m, b) => m.or(b),
    })
}

/// The scale of an attribute, 0 and left out meaning the usual one.
fn scale(cx: &Ctx<'_, '_>, n: &NodeCtx<'_>, q: ValueId) -> Result<f64> {
    match n.opt_float("scale")? {
        Some(s) if s != 0.0 => Ok(s),
        _ => usual_scale(cx, n, q),
    }
}

fn heads(n: &NodeCtx<'_>, name: &str) -> Result<i64> {
    match n.int(name, 0)? {
        h if h > 0 => Ok(h),
        h => Err(n.bad(format!("{name} {h}"))),
    }
}

/// Attention of queries that come after `offset` earlier ones, heads joined: with the padding mask that is operand `padding`, the bias
/// that is operand 5, and the node's scale.
fn attend<'m>(
    cx: &mut Ctx<'_, 'm>,
    n: &NodeCtx<'m>,
    [q, k, v]: [ValueId; 3],
    offset: Dim,
    padding: usize,
) -> Result<ValueId> {
    let (batch, t) = (cx.b.dims(q)[0].clone(), cx.b.dims(k)[2].clone());
    let mask = padding_mask(cx, n, padding, &batch, &t)?;
    let bias = cx.opt(n, 5)?;
    let mask = add_masks(cx, mask, bias)?;
    let s = scale(cx, n, q)?;
    let spec = match n.flag("unidirectional", false)? {
        true => AttentionSpec::causal(s, offset),
        false => AttentionSpec::new(s),
    };
    let y = cx.b.attention(&spec, q, k, v, mask)?;
    join_heads(cx, y)
}

fn attention<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let (x, w, bias) = (cx.tensor(n, 0)?, cx.tensor(n, 1)?, cx.opt(n, 2)?);
    let heads = heads(n, "num_heads")?;
    let (xd, wd) = (cx.b.dims(x), cx.b.dims(w));
    let columns = wd.get(1).and_then(Dim::as_const).filter(|_| wd.len() == 2 && xd.len() == 3);
    let columns = columns.ok_or_else(|| n.bad("wanted input [b, s, h] and weights of known dims"))?;
    if n.flag("do_rotary", false)? || n.flag("past_present_share_buffer", false)? || n.has(6) {
        return Err(n.unsupported("rotary embedding or a shared buffer of earlier keys"));
    }
    let sizes = match n.ints("qkv_hidden_sizes")? {
        Some(s) if s.len() == 3 && s.iter().all(|&s| s > 0) && s.iter().sum::<i64>() == columns => s.to_vec(),
        None if columns % 3 == 0 => vec![columns / 3; 3],
        other => return Err(n.bad(format!("qkv_hidden_sizes {other:?} of {columns}"))),
    };
    let all = project(cx, x, w, bias)?;
    let mut parts = Vec::new();
    let mut at = 0;
    for s in sizes {
        let p = cx.b.slice_axis(all, 2, Dim::from(at), Dim::from(s))?;
        parts.push(split_heads(cx, n, p, heads)?);
        at += s;
    }
    let (q, mut k, mut v) = (parts[0], parts[1], parts[2]);
    let mut offset = Dim::from(0);
    if let Some(past) = cx.opt(n, 4)? {
        offset = cx.b.dims(past).get(3).cloned().ok_or_else(|| n.bad("past has five dims"))?;
        let (pk, pv) = (cx.b.index(past, 0, 0)?, cx.b.index(past, 0, 1)?);
        (k, v) = (cx.b.concat(&[pk, k], 2)?, cx.b.concat(&[pv, v], 2)?);
    }
    let y = attend(cx, n, [q, k, v], offset, 3)?;
    let mut out = vec![cx.out(y)];
    if n.wants(1) {
        let (k, v) = (cx.b.unsqueeze(k, 0)?, cx.b.unsqueeze(v, 0)?);
        let present = cx.b.concat(&[k, v], 0)?;
        out.push(cx.out(present));
    }
    Ok(out)
}

fn multi_head_attention<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let heads = heads(n, "num_heads")?;
    let q = cx.tensor(n, 0)?;
    if cx.b.rank(q) != 3 || !n.has(1) || !n.has(2) {
        return Err(n.unsupported("queries, keys and values packed in one operand"));
    }
    let (k, v) = (cx.tensor(n, 1)?, cx.tensor(n, 2)?);
    if n.inputs.len() > 8 && (8..n.inputs.len()).any(|i| n.has(i)) {
        return Err(n.unsupported("a shared buffer of earlier keys"));
    }
    let bias = cx.opt(n, 3)?;
    let mut at = Dim::from(0);
    let mut parts = Vec::new();
    for x in [q, k, v] {
        let mut x = x;
        let hidden = match cx.b.dims(x).as_slice() {
            [_, _, h] => h.clone(),
            [_, h, _, d] => h * d,
            _ => return Err(n.bad("keys and values have three or four dims")),
        };
        let part = match bias {
            Some(b) => Some(cx.b.slice_axis(b, 0, at.clone(), hidden.clone())?),
            None => None,
        };
        at = &at + &hidden;
        if cx.b.rank(x) == 3 {
            if let Some(p) = part {
                x = cx.b.add2(x, p)?;
            }
            x = split_heads(cx, n, x, heads)?;
        } else if part.is_some() {
            return Err(n.unsupported("a bias for keys that are split into heads"));
        }
        parts.push(x);
    }
    let (q, mut k, mut v) = (parts[0], parts[1], parts[2]);
    let mut offset = Dim::from(0);
    if let Some(past) = cx.opt(n, 6)? {
        offset = cx.b.dims(past).get(2).cloned().ok_or_else(|| n.bad("past keys have four dims"))?;
        let past_v = cx.tensor(n, 7)?;
        (k, v) = (cx.b.concat(&[past, k], 2)?, cx.b.concat(&[past_v, v], 2)?);
    }
    let y = attend(cx, n, [q, k, v], offset, 4)?;
    Ok(vec![cx.out(y), cx.out(k), cx.out(v)])
}

/// Rows of a cache `[b, n, t, d]`: in each batch element the first `before[b]` rows of the old one, then the new rows, then zeros.
fn append_rows(
    cx: &mut Ctx<'_, '_>,
    old: ValueId,
    new: ValueId,
    before: ValueId,
    total: &Dim,
) -> Result<ValueId> {
    let b = &mut cx.b;
    let (have, rows) = (b.dims(old)[2].clone(), b.dims(new)[2].clone());
    let dims = [b.dims(new)[0].clone(), total.clone()];
    let before = b.unsqueeze(before, 1)?;
    let j = b.iota(DType::I64, &dims, 1)?;
    let at = b.sub(j, before)?;
    let (zero, last) = (b.int(DType::I64, 0)?, b.dim_as(&(&rows - 1), DType::I64)?);
    let row = b.clip(at, Some(zero), Some(last))?;
    let row = b.unsqueeze(row, 2)?;
    let new = b.permute(new, &[0, 2, 1, 3])?;
    let new = b.gather_nd(new, row, 1)?;
    let new = b.permute(new, &[0, 2, 1, 3])?;
    let d = b.dtype(old);
    let nothing = b.float(d, 0.0)?;
    let none = vec![Dim::from(0); 4];
    let mut high = none.clone();
    high[2] = total - have;
    let old = b.pad(old, nothing, &none, &high)?;
    let [earlier, later] = [(Compare::Lt, zero), (Compare::Gt, last)].map(|(c, edge)| b.compare(c, at, edge));
    let each = [dims[0].clone(), Dim::from(1), total.clone(), Dim::from(1)];
    let (earlier, later) = (b.reshape(earlier?, &each)?, b.reshape(later?, &each)?);
    let new = b.select(later, nothing, new)?;
    Ok(b.select(earlier, old, new)?)
}

/// Attention whose batch elements have each their own number of keys. The cache may be longer than what it holds: the new keys go
/// behind the earlier ones of their batch element.
fn group_query_attention<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let (heads, groups) = (heads(n, "num_heads")?, heads(n, "kv_num_heads")?);
    if n.int("smooth_softmax", 0)? > 0 || n.has(11) || n.int("qk_output", 0)? != 0 {
        return Err(n.unsupported("a sink, smooth softmax or scores as a result"));
    }
    if n.has(12) || n.has(13) || n.int("kv_cache_bit_width", 0)? != 0 {
        return Err(n.unsupported("a quantised cache"));
    }
    let x = cx.tensor(n, 0)?;
    let (mut q, mut k, mut v) = if n.has(1) && n.has(2) {
        let (k, v) = (cx.tensor(n, 1)?, cx.tensor(n, 2)?);
        (split_heads(cx, n, x, heads)?, split_heads(cx, n, k, groups)?, split_heads(cx, n, v, groups)?)
    } else {
        // One operand with the heads of queries, keys and values one after another.
        let all = split_heads(cx, n, x, heads + 2 * groups)?;
        let part = |cx: &mut Ctx<'_, 'm>, at: i64, len: i64| cx.b.slice_axis(all, 1, at.into(), len.into());
        (part(cx, 0, heads)?, part(cx, heads, groups)?, part(cx, heads + groups, groups)?)
    };
    let qd = cx.b.dims(q);
    let (batch, s) = (qd[0].clone(), qd[2].clone());
    // Positions of the last keys, and the numbers of earlier ones; a prompt may be padded behind.
    let last = cx.tensor(n, 5)?;
    let last = cx.b.convert(last, DType::I64)?;
    let last = cx.b.reshape(last, std::slice::from_ref(&batch))?;
    let queries = cx.b.dim_as(&(&s - 1), DType::I64)?;
    let before = cx.b.sub(last, queries)?;
    let before = cx.b.at_least(before, 0.0)?;
    let places = {
        let i = cx.b.iota(DType::I64, &[batch.clone(), s.clone()], 1)?;
        let first = cx.b.unsqueeze(before, 1)?;
        cx.b.add2(i, first)?
    };
    if n.flag("do_rotary", false)? {
        let (cos, sin) = (cx.tensor(n, 7)?, cx.tensor(n, 8)?);
        let positions = cx.opt(n, 9)?.unwrap_or(places);
        let cos = rotary_rows(cx, cos, Some(positions), false)?;
        let sin = rotary_rows(cx, sin, Some(positions), false)?;
        let interleaved = n.flag("rotary_interleaved", false)?;
        q = cx.b.rotary_embedding(q, cos, sin, interleaved)?;
        k = cx.b.rotary_embedding(k, cos, sin, interleaved)?;
    }
    if let (Some(pk), Some(pv)) = (cx.opt(n, 3)?, cx.opt(n, 4)?) {
        if [pk, pv].iter().any(|&p| cx.b.rank(p) != 4) {
            return Err(n.bad("past keys and values have four dims"));
        }
        let all = cx.contents(n, 6)?;
        let [all] = all.as_slice() else { return Err(n.bad("the total length is one number")) };
        let total = cx.b.dims(pk)[2].max(all);
        k = append_rows(cx, pk, k, before, &total)?;
        v = append_rows(cx, pv, v, before, &total)?;
    }
    let t = cx.b.dims(k)[2].clone();
    // Query `i` sees keys up to its own place, none after the last.
    let one = Dim::from(1);
    let last = cx.b.reshape(last, &[batch.clone(), one.clone(), one.clone(), one.clone()])?;
    let place = cx.b.reshape(places, &[batch, one.clone(), s, one])?;
    let j = cx.b.count_along(DType::I64, 4, 3, &t)?;
    let edge = cx.b.binary(Binary::Min, place, last)?;
    let mut seen = cx.b.compare(Compare::Le, j, edge)?;
    let window = n.int("local_window_size", -1)?;
    if window > 0 {
        let first = cx.b.plus(place, 1.0 - window as f64)?;
        let inside = cx.b.compare(Compare::Ge, j, first)?;
        seen = cx.b.both(seen, inside)?;
    }
    let mask = cx.opt(n, 10)?;
    let mask = combine_masks(cx, mask, seen)?;
    let mut spec = AttentionSpec::new(scale(cx, n, q)?);
    spec.softcap = n.opt_float("softcap")?.filter(|c| *c > 0.0);
    let y = cx.b.attention(&spec, q, k, v, Some(mask))?;
    let y = join_heads(cx, y)?;
    Ok(vec![cx.out(y), cx.out(k), cx.out(v)])
}

fn rotary_embedding<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let (x, positions) = (cx.tensor(n, 0)?, cx.tensor(n, 1)?);
    let (cos, sin) = (cx.tensor(n, 2)?, cx.tensor(n, 3)?);
    if n.flag("is_packed_batching", false)? || n.float("scale", 1.0)? != 1.0 {
        return Err(n.unsupported("packed batches or a scale"));
    }
    let dims = cx.b.dims(x);
    let heads = n.int("num_heads", 0)?;
    let half = cx.b.dims(cos).last().cloned().ok_or_else(|| n.bad("the cache is a scalar"))?;
    let x = match dims.len() {
        4 => x,
        3 if heads > 0 => split_heads(cx, n, x, heads)?,
        3 => {
            let size = half.as_const().zip(dims[2].as_const()).filter(|(h, _)| *h > 0);
            let (h, all) = size.ok_or_else(|| n.unsupported("a head size that is not known"))?;
            split_heads(cx, n, x, all / (2 * h))?
        }
        _ => return Err(n.bad("the operand has three or four dims")),
    };
    let (batch, s) = (cx.b.dims(x)[0].clone(), cx.b.dims(x)[2].clone());
    let positions = if cx.b.rank(positions) == 1 {
        // The position of the first element.
        let i = cx.b.iota(DType::I64, &[batch, s], 1)?;
        let first = cx.b.convert(positions, DType::I64)?;
        let first = cx.b.reshape(first, &[])?;
        cx.b.add2(i, first)?
    } else {
        positions
    };
    let cos = rotary_rows(cx, cos, Some(positions), false)?;
    let sin = rotary_rows(cx, sin, Some(positions), false)?;
    let mut y = cx.b.rotary_embedding(x, cos, sin, n.flag("interleaved", false)?)?;
    if dims.len() == 3 {
        y = join_heads(cx, y)?;
        y = cx.b.reshape(y, &dims)?;
    }
    cx.one(y)
}

const EPSILON: f64 = 1e-12;

fn skip_layer_norm<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let (x, skip) = (cx.tensor(n, 0)?, cx.tensor(n, 1)?);
    let mut x = cx.b.add2(x, skip)?;
    if let Some(bias) = cx.opt(n, 4)? {
        x = cx.b.add2(x, bias)?;
    }
    let (gamma, beta) = (cx.tensor(n, 2)?, cx.opt(n, 3)?);
    let axis = cx.b.rank(x).saturating_sub(1);
    let epsilon = n.float("epsilon", EPSILON)?;
    let mut out = if n.wants(1) || n.wants(2) {
        let all = cx.b.layer_norm_stats(x, Some(gamma), beta, axis, epsilon)?;
        all.into_iter().map(|v| cx.out(v)).collect()
    } else {
        let y = cx.b.layer_norm(x, Some(gamma), beta, axis, epsilon)?;
        vec![cx.out(y)]
    };
    if n.wants(3) {
        // Results that nobody uses still have their place.
        while out.len() < 3 {
            out.push(cx.out(x));
        }
        out.push(cx.out(x));
    }
    Ok(out)
}

fn skip_rms_norm<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    if n.wants(1) || n.wants(2) {
        return Err(n.unsupported("the mean or the deviation as a result"));
    }
    let (x, skip) = (cx.tensor(n, 0)?, cx.tensor(n, 1)?);
    let mut x = cx.b.add2(x, skip)?;
    if let Some(bias) = cx.opt(n, 3)? {
        x = cx.b.add2(x, bias)?;
    }
    let gamma = cx.tensor(n, 2)?;
    let axis = cx.b.rank(x).saturating_sub(1);
    let y = cx.b.rms_norm(x, Some(gamma), axis, n.float("epsilon", EPSILON)?)?;
    Ok(vec![cx.out(y), cx.out(x), cx.out(x), cx.out(x)])
}

fn embed_layer_norm<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let (ids, words, places) = (cx.tensor(n, 0)?, cx.tensor(n, 2)?, cx.tensor(n, 3)?);
    let dims = cx.b.dims(ids);
    let [batch, s] = dims.as_slice() else { return Err(n.bad("ids have two dims")) };
    let mut x = cx.b.take(words, ids, 0)?;
    let at = match cx.opt(n, 8)? {
        Some(p) => p,
        None => cx.b.iota(DType::I64, std::slice::from_ref(s), 0)?,
    };
    let place = cx.b.take(places, at, 0)?;
    x = cx.b.add2(x, place)?;
    if let (Some(segments), Some(table)) = (cx.opt(n, 1)?, cx.opt(n, 4)?) {
        let v = cx.b.take(table, segments, 0)?;
        x = cx.b.add2(x, v)?;
    }
    let (gamma, beta) = (cx.tensor(n, 5)?, cx.opt(n, 6)?);
    let y = cx.b.layer_norm(x, Some(gamma), beta, 2, n.float("epsilon", EPSILON)?)?;
    let lengths = match cx.opt(n, 7)? {
        Some(mask) => {
            let m = cx.b.convert(mask, DType::I32)?;
            cx.b.sum(m, &[1])?
        }
        None => cx.b.full(DType::I32, 0.0, std::slice::from_ref(batch))?,
    };
    Ok(vec![cx.out(y), cx.out(lengths), cx.out(x)])
}

/// An activation given by name, with its parameters.
fn activation(
    cx: &mut Ctx<'_, '_>,
    n: &NodeCtx<'_>,
    x: ValueId,
    name: &str,
    parameters: &[f64],
) -> Result<ValueId> {
    let p = |i: usize, default: f64| parameters.get(i).copied().unwrap_or(default);
    let b = &mut cx.b;
    Ok(match name {
        "" => x,
        "Relu" => b.relu(x)?,
        "Tanh" => b.unary(Unary::Tanh, x)?,
        "Sigmoid" => b.sigmoid(x)?,
        "LeakyRelu" => b.leaky_relu(x, p(0, f64::from(0.01f32)))?,
        "HardSigmoid" => b.hard_sigmoid(x, p(0, f64::from(0.2f32)), p(1, 0.5))?,
        "HardSwish" => b.hard_swish(x)?,
        "Elu" => b.elu(x, p(0, 1.0))?,
        "Clip" => {
            let x = b.at_least(x, p(0, f64::NEG_INFINITY))?;
            b.at_most(x, p(1, f64::INFINITY))?
        }
        other => return Err(n.unsupported(format!("activation '{other}'"))),
    })
}

fn fused_mat_mul<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    if n.flag("transBatchA", false)? || n.flag("transBatchB", false)? {
        return Err(n.unsupported("batch dims that are transposed"));
    }
    let turned = |cx: &mut Ctx<'_, 'm>, i: usize, name: &str| -> Result<ValueId> {
        let x = cx.tensor(n, i)?;
        let rank = cx.b.rank(x);
        if !n.flag(name, false)? || rank < 2 {
            return Ok(x);
        }
        let mut perm: Vec<usize> = (0..rank).collect();
        perm.swap(rank - 1, rank - 2);
        Ok(cx.b.permute(x, &perm)?)
    };
    let (a, b) = (turned(cx, 0, "transA")?, turned(cx, 1, "transB")?);
    let d = cx.b.dtype(a);
    let y = mat_mul_values(cx, n, a, b, accumulator(d))?;
    let y = cx.b.times(y, n.float("alpha", 1.0)?)?;
    let y = cx.b.convert(y, d)?;
    cx.one(y)
}

fn fused_gemm<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let (a, b) = (cx.tensor(n, 0)?, cx.tensor(n, 1)?);
    if cx.b.rank(a) != 2 || cx.b.rank(b) != 2 {
        return Err(n.bad("the operands are not matrices"));
    }
    let d = cx.b.dtype(a);
    let acc = wide(d);
    let over = (usize::from(!n.flag("transA", false)?), usize::from(n.flag("transB", false)?));
    let y = cx.b.contract(a, b, &[], &[over], acc)?;
    let mut y = cx.b.times(y, n.float("alpha", 1.0)?)?;
    if let Some(c) = cx.opt(n, 2)? {
        let c = cx.b.convert(c, acc)?;
        let c = cx.b.times(c, n.float("beta", 1.0)?)?;
        y = cx.b.add2(y, c)?;
    }
    let y = cx.b.convert(y, d)?;
    let parameters: Vec<f64> = ["activation_alpha", "activation_beta"]
        .into_iter()
        .map_while(|p| n.opt_float(p).ok().flatten())
        .collect();
    let y = activation(cx, n, y, n.str("activation", "")?, &parameters)?;
    cx.one(y)
}

fn fused_conv<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let (x, w) = (cx.tensor(n, 0)?, cx.tensor(n, 1)?);
    if cx.b.rank(x) < 3 {
        return Err(n.bad("the operand has no spatial dims"));
    }
    let d = cx.b.dtype(x);
    let spec = conv_spec(n, &cx.b.dims(x), 1)?;
    let mut y = cx.b.conv(x, w, spec, accumulator(d))?;
    if let Some(bias) = cx.opt(n, 2)? {
        y = add_bias(cx, y, bias)?;
    }
    if let Some(z) = cx.opt(n, 3)? {
        let z = cx.b.convert(z, cx.b.dtype(y))?;
        y = cx.b.add2(y, z)?;
    }
    let y = cx.b.convert(y, d)?;
    let parameters: Vec<f64> =
        n.floats("activation_params")?.unwrap_or_default().iter().map(|&p| f64::from(p)).collect();
    let y = activation(cx, n, y, n.str("activation", "")?, &parameters)?;
    cx.one(y)
}

/// Element `i` of numbers of `bits` bits packed from the low end of each byte.
fn packed(bytes: &[u8], bits: usize, i: usize) -> i64 {
    let per = 8 / bits;
    let byte = bytes.get(i / per).copied().unwrap_or(0);
    i64::from((byte >> (bits * (i % per))) & (0xff >> (8 - bits)))
}

/// The accuracy level at which activations may be bytes.
const LEVEL_BYTES: i64 = 4;

/// A value's rows quantised to `i8` in runs of `block`, by the largest magnitude of each, and dequantised again.
fn in_bytes(cx: &mut Ctx<'_, '_>, x: ValueId, block: usize) -> Result<ValueId> {
    let dims = cx.b.dims(x);
    let last = dims.len().saturating_sub(1);
    let mut runs = dims.clone();
    runs[last] = dims[last].floordiv(&Dim::from(block as i64));
    runs.push(Dim::from(block as i64));
    let v = cx.b.reshape(x, &runs)?;
    let size = cx.b.unary(Unary::Abs, v)?;
    let most = cx.b.reduce(Combiner::Max, size, &[last + 1])?;
    let scale = cx.b.binary_const(Binary::Div, most, 127.0)?;
    let g = Granularity::Block { axis: last, size: block as i64 };
    let q = cx.b.quantize(x, scale, None, DType::I8, g, true)?;
    Ok(cx.b.dequantize(q, scale, None, DType::F32, g)?)
}

/// A product with a matrix of 2, 4 or 8 bit numbers in blocks along the contracted dim, each with its scale and zero point.
fn mat_mul_bits<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let a = cx.tensor(n, 0)?;
    let (k, columns) = (n.int("K", 0)?, n.int("N", 0)?);
    let (bits, block) = (n.int("bits", 4)?, n.int("block_size", 0)?);
    let narrow = match bits {
        2 => DType::U2,
        4 => DType::U4,
        8 => DType::U8,
        other => return Err(n.unsupported(format!("{other} bits"))),
    };
    if !(1..1 << 31).contains(&k) || !(1..1 << 31).contains(&columns) || !(1..1 << 24).contains(&block) {
        return Err(n.bad(format!("a matrix of {k} by {columns} in blocks of {block}")));
    }
    if n.has(4) {
        return Err(n.unsupported("an order of the blocks (g_idx)"));
    }
    let bits = bits as usize;
    let (k, columns, block) = (k as usize, columns as usize, block as usize);
    let blocks = k.div_ceil(block);
    let blob = (block * bits).div_ceil(8);
    let known = |i: usize| -> Result<Option<Vec<u8>>> {
        if !n.has(i) {
            return Ok(None);
        }
        let t = n.constant(i).ok_or_else(|| n.unsupported("weights that are not constants"))?;
        if t.dtype() != DType::U8 {
            return Err(n.unsupported("zero points that are not packed"));
        }
        Ok(Some(t.bytes().into_owned()))
    };
    let weights = known(1)?.ok_or_else(|| n.bad("no weights are given"))?;
    if weights.len() != columns * blocks * blob {
        return Err(n.bad(format!("{} bytes of weights", weights.len())));
    }
    let w = if k == blocks * block && block * bits == 8 * blob {
        // Rows without gaps.
        Tensor::from_bytes(narrow, &[columns, k], weights)?
    } else {
        Tensor::from_fn(narrow, &[columns, k], |i| {
            let (row, at) = (i / k, i % k);
            let start = (row * blocks + at / block) * blob;
            packed(&weights[start..start + blob], bits, at % block).into()
        })?
    };
    let row = (blocks * bits).div_ceil(8);
    let middle = 1i64 << (bits - 1);
    let zeros = known(3)?;
    let zeros = Tensor::from_fn(narrow, &[columns, blocks], |i| match &zeros {
        Some(z) => packed(z.get(i / blocks * row..).unwrap_or_default(), bits, i % blocks).into(),
        None => middle.into(),
    })?;
    let (w, zeros) = (cx.b.constant(w)?, cx.b.constant(zeros)?);
    let scales = cx.tensor(n, 2)?;
    let scales = cx.b.reshape(scales, &[Dim::from(columns as i64), Dim::from(blocks as i64)])?;
    let d = cx.b.dtype(a);
    let g = Granularity::Block { axis: 1, size: block as i64 };
    let w = cx.b.dequantize(w, scales, Some(zeros), d, g)?;
    let last = cx.b.rank(a).saturating_sub(1);
    let a = match n.int("accuracy_level", 0)? {
        LEVEL_BYTES if d == DType::F32 && k % block == 0 => in_bytes(cx, a, block)?,
        _ => a,
    };
    let mut y = cx.b.contract(a, w, &[], &[(last, 1)], wide(d))?;
    if let Some(bias) = cx.opt(n, 5)? {
        let bias = cx.b.convert(bias, wide(d))?;
        y = cx.b.add2(y, bias)?;
    }
    let y = cx.b.convert(y, d)?;
    cx.one(y)
}

/// `i32` sums scaled to `f32`, plus a bias.
fn to_float(
    cx: &mut Ctx<'_, '_>,
    sum: ValueId,
    a: ValueId,
    b: ValueId,
    bias: Option<ValueId>,
) -> Result<ValueId> {
    let factor = cx.b.mul(a, b)?;
    let y = cx.b.convert(sum, DType::F32)?;
    let y = cx.b.mul(y, factor)?;
    match bias {
        Some(v) => Ok(cx.b.add2(y, v)?),
        None => Ok(y),
    }
}

fn mat_mul_integer_to_float<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let (ra, rb) = (n.rank(0)?, n.rank(1)?);
    let a = less_zero(cx, n, 0, 4, ra.saturating_sub(2))?;
    let b = less_zero(cx, n, 1, 5, rb.saturating_sub(1))?;
    let y = mat_mul_values(cx, n, a, b, DType::I32)?;
    let rank = cx.b.rank(y);
    let sa = scale_of(cx, n, 2, rank, rank.saturating_sub(2))?;
    let sb = scale_of(cx, n, 3, rank, rank.saturating_sub(1))?;
    let bias = cx.opt(n, 6)?;
    let y = to_float(cx, y, sa, sb, bias)?;
    cx.one(y)
}

fn dynamic_mat_mul<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let x = cx.tensor(n, 0)?;
    let [q, scale, zero] = cx.b.dynamic_quantize(x)?;
    let (q, zero) = (cx.b.convert(q, DType::I32)?, cx.b.convert(zero, DType::I32)?);
    let a = cx.b.sub(q, zero)?;
    let b = less_zero(cx, n, 1, 3, n.rank(1)?.saturating_sub(1))?;
    let y = mat_mul_values(cx, n, a, b, DType::I32)?;
    let rank = cx.b.rank(y);
    let sb = scale_of(cx, n, 2, rank, rank.saturating_sub(1))?;
    let bias = cx.opt(n, 4)?;
    let y = to_float(cx, y, scale, sb, bias)?;
    cx.one(y)
}

/// The numbers that a quantised operand stands for; its scale and zero point are the next two operands.
fn real<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>, i: usize) -> Result<ValueId> {
    let x = less_zero(cx, n, i, i + 2, 0)?;
    let x = cx.b.convert(x, DType::F32)?;
    let s = scale_of(cx, n, i + 1, 0, 0)?;
    Ok(cx.b.mul(x, s)?)
}

/// Quantises by the scale and zero point at two operands.
fn quantized<'m>(
    cx: &mut Ctx<'_, 'm>,
    n: &NodeCtx<'m>,
    y: ValueId,
    scale: usize,
    to: DType,
) -> Result<Vec<Val>> {
    let s = scale_of(cx, n, scale, 0, 0)?;
    let y = cx.b.div(y, s)?;
    let y = round_to(cx, n, y, scale + 1, to)?;
    cx.one(y)
}

fn qlinear_binary<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let (a, b) = (real(cx, n, 0)?, real(cx, n, 3)?);
    let y = if n.op() == "QLinearAdd" { cx.b.add2(a, b)? } else { cx.b.mul(a, b)? };
    quantized(cx, n, y, 6, n.dtype(0)?)
}

fn qlinear_unary<'m>(
    cx: &mut Ctx<'_, 'm>,
    n: &NodeCtx<'m>,
    f: impl FnOnce(&mut Ctx<'_, 'm>, &NodeCtx<'m>, ValueId) -> Result<ValueId>,
) -> Result<Vec<Val>> {
    let x = real(cx, n, 0)?;
    let y = f(cx, n, x)?;
    quantized(cx, n, y, 3, n.dtype(0)?)
}

fn qlinear_concat<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    if n.inputs.len() < 5 || n.inputs.len() % 3 != 2 {
        return Err(n.bad(format!("{} operands", n.inputs.len())));
    }
    let axis = n.axis(n.int("axis", 0)?, n.rank(2)?)?;
    let mut parts = Vec::new();
    for i in (2..n.inputs.len()).step_by(3) {
        parts.push(real(cx, n, i)?);
    }
    let y = cx.b.concat(&parts, axis)?;
    quantized(cx, n, y, 0, n.dtype(2)?)
}
