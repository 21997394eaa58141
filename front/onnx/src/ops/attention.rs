//! Attention and what goes with it: rotary embedding, linear attention, causal convolution with a state.

use tongtu_graph::composite::{AttentionSpec, Scores, wide};
use tongtu_graph::{Combiner, ConvSpec, Op, Type, ValueId};
use tongtu_tensor::dim::Dim;
use tongtu_tensor::{Compare, DType, Unary};

use crate::ctx::{Ctx, NodeCtx};
use crate::error::Result;
use crate::ops::calc::Calc;
use crate::ops::{Entry, op};
use crate::val::Val;

/// The family's operators.
pub const OPS: &[Entry] = &[
    op("Attention", attention),
    op("RotaryEmbedding", rotary_embedding),
    op("LinearAttention", linear_attention),
    op("CausalConvWithState", causal_conv),
];

/// `[b, s, heads * d]` as `[b, heads, s, d]`.
pub(crate) fn split_heads(cx: &mut Ctx<'_, '_>, n: &NodeCtx<'_>, x: ValueId, heads: i64) -> Result<ValueId> {
    let d = cx.b.dims(x);
    if d.len() != 3 || heads < 1 || d[2].as_const().is_some_and(|h| h % heads != 0) {
        return Err(n.bad(format!("{d:?} does not split into {heads} heads")));
    }
    let h = Dim::from(heads);
    let each = match d[2].as_const() {
        Some(all) => Dim::from(all / heads),
        None => d[2].floordiv(&h),
    };
    let x = cx.b.reshape(x, &[d[0].clone(), d[1].clone(), h, each])?;
    Ok(cx.b.permute(x, &[0, 2, 1, 3])?)
}

/// `[b, heads, s, d]` as `[b, s, heads * d]`.
pub(crate) fn join_heads(cx: &mut Ctx<'_, '_>, x: ValueId) -> Result<ValueId> {
    let d = cx.b.dims(x);
    let x = cx.b.permute(x, &[0, 2, 1, 3])?;
    Ok(cx.b.reshape(x, &[d[0].clone(), d[2].clone(), &d[1] * &d[3]])?)
}

/// The usual scale, `1 / sqrt(head size)`.
pub(crate) fn usual_scale(cx: &Ctx<'_, '_>, n: &NodeCtx<'_>, q: ValueId) -> Result<f64> {
    match cx.b.dims(q).last().and_then(Dim::as_const) {
        Some(d) if d > 0 => Ok(1.0 / (d as f64).sqrt()),
        _ => Err(n.unsupported("a head size that is not known")),
    }
}

/// Keys of one batch element in `[b, 1, s, t]` that a query may see: before `length[b]`, and from `left` before to `right` after the
/// query's place, which counts from `length[b] - s`.
fn seen_keys(
    cx: &mut Ctx<'_, '_>,
    length: ValueId,
    s: &Dim,
    t: &Dim,
    left: Option<i64>,
    right: Option<i64>,
) -> Result<ValueId> {
    let b = &mut cx.b;
    let batch = b.dims(length)[0].clone();
    let one = Dim::from(1);
    let length = b.convert(length, DType::I64)?;
    let length = b.reshape(length, &[batch, one.clone(), one.clone(), one])?;
    let j = b.count_along(DType::I64, 4, 3, t)?;
    let mut seen = b.compare(Compare::Lt, j, length)?;
    if left.is_some() || right.is_some() {
        let i = b.count_along(DType::I64, 4, 2, s)?;
        let queries = b.dim_as(s, DType::I64)?;
        let offset = b.sub(length, queries)?;
        let at = b.add2(i, offset)?;
        for (window, compare, sign) in [(right, Compare::Le, 1.0), (left, Compare::Ge, -1.0)] {
            if let Some(w) = window {
                let edge = b.plus(at, sign * w as f64)?;
                let p = b.compare(compare, j, edge)?;
                seen = b.both(seen, p)?;
            }
        }
    }
    Ok(seen)
}

/// A mask (bool, or added) with the keys that another bool mask hides hidden too.
pub(crate) fn combine_masks(cx: &mut Ctx<'_, '_>, mask: Option<ValueId>, seen: ValueId) -> Result<ValueId> {
    let b = &mut cx.b;
    match mask {
        None => Ok(seen),
        Some(m) if b.dtype(m).is_bool() => Ok(b.both(m, seen)?),
        Some(m) => Ok(b.or_const(seen, m, f64::NEG_INFINITY)?),
    }
}

fn attention<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let (mut q, mut k, mut v) = (cx.tensor(n, 0)?, cx.tensor(n, 1)?, cx.tensor(n, 2)?);
    let flat = cx.b.rank(q) == 3;
    if flat {
        q = split_heads(cx, n, q, n.int("q_num_heads", 0)?)?;
        k = split_heads(cx, n, k, n.int("kv_num_heads", 0)?)?;
        v = split_heads(cx, n, v, n.int("kv_num_heads", 0)?)?;
    }
    if [q, k, v].iter().any(|&x| cx.b.rank(x) != 4) {
        return Err(n.bad("queries, keys and values have three or four dims"));
    }
    let mut offset = Dim::from(0);
    if let Some(past) = cx.opt(n, 4)? {
        offset = cx.b.dims(past).get(2).cloned().ok_or_else(|| n.bad("past keys have four dims"))?;
        k = cx.b.concat(&[past, k], 2)?;
        let past = cx.tensor(n, 5)?;
        v = cx.b.concat(&[past, v], 2)?;
    }
    let (present_k, present_v) = (k, v);
    let scale = match n.opt_float("scale")? {
        Some(s) => s,
        None => usual_scale(cx, n, q)?,
    };
    let (s, t) = (cx.b.dims(q)[2].clone(), cx.b.dims(k)[2].clone());
    let side = |name: &str| -> Result<Option<i64>> {
        match n.int(name, -1)? {
            -1 => Ok(None),
            w if w >= 0 => Ok(Some(w)),
            w => Err(n.bad(format!("{name} {w}"))),
        }
    };
    let left = side("left_window_size")?;
    let mut right = side("right_window_size")?;
    if n.flag("is_causal", false)? {
        right = Some(0);
    }
    let mut mask = cx.opt(n, 3)?;
    if let Some(m) = mask {
        mask = Some(widen_mask(cx, n, m, &t)?);
    }
    let mut spec = AttentionSpec { offset, left, right, ..AttentionSpec::new(scale) };
    if let Some(length) = cx.opt(n, 6)? {
        let seen = seen_keys(cx, length, &s, &t, left, right)?;
        mask = Some(combine_masks(cx, mask, seen)?);
        (spec.left, spec.right) = (None, None);
    }
    spec.softcap = n.opt_float("softcap")?.filter(|c| *c > 0.0);
    let d = cx.b.dtype(q);
    if n.dtype_attr("softmax_precision")? == Some(DType::F64) && d != DType::F64 {
        q = cx.b.convert(q, DType::F64)?;
        k = cx.b.convert(k, DType::F64)?;
        v = cx.b.convert(v, DType::F64)?;
    }
    let mut out = Vec::new();
    if n.wants(3) {
        let stage = match n.int("qk_matmul_output_mode", 0)? {
            0 => Scores::Raw,
            1 => Scores::Capped,
            2 => Scores::Masked,
            3 => Scores::Probabilities,
            other => return Err(n.bad(format!("qk_matmul_output_mode {other}"))),
        };
        let (y, scores) = cx.b.attention_scores(&spec, q, k, v, mask, stage)?;
        out.extend([y, present_k, present_v, scores]);
    } else {
        let y = cx.b.attention(&spec, q, k, v, mask)?;
        out.extend([y, present_k, present_v]);
    }
    out[0] = cx.b.convert(out[0], d)?;
    if let Some(scores) = out.get_mut(3) {
        *scores = cx.b.convert(*scores, d)?;
    }
    if flat {
        out[0] = join_heads(cx, out[0])?;
    }
    Ok(out.into_iter().map(|v| cx.out(v)).collect())
}

/// A mask whose last dim is shorter than the number of keys hides the rest.
fn widen_mask(cx: &mut Ctx<'_, '_>, n: &NodeCtx<'_>, mask: ValueId, t: &Dim) -> Result<ValueId> {
    let dims = cx.b.dims(mask);
    let Some(last) = dims.last() else { return Err(n.bad("the mask is a scalar")) };
    if last == t || last.as_const() == Some(1) && t.as_const() == Some(1) {
        return Ok(mask);
    }
    let (Some(have), Some(want)) = (last.as_const(), t.as_const()) else { return Ok(mask) };
    if have > want {
        return Err(n.bad(format!("a mask over {have} keys of {want}")));
    }
    let d = cx.b.dtype(mask);
    let hide = if d.is_bool() { cx.b.int(d, 0)? } else { cx.b.float(d, f64::NEG_INFINITY)? };
    let low = vec![Dim::from(0); dims.len()];
    let mut high = low.clone();
    high[dims.len() - 1] = Dim::from(want - have);
    Ok(cx.b.pad(mask, hide, &low, &high)?)
}

/// Rows of a cache at positions, shaped to broadcast over `[b, heads, s, d]`, or over `[b, s, heads, d]` when heads come last.
pub(crate) fn rotary_rows(
    cx: &mut Ctx<'_, '_>,
    cache: ValueId,
    positions: Option<ValueId>,
    heads_last: bool,
) -> Result<ValueId> {
    let rows = match positions {
        Some(p) => cx.b.take(cache, p, 0)?,
        None => cache,
    };
    Ok(cx.b.unsqueeze(rows, if heads_last { 2 } else { 1 })?)
}

fn rotary_embedding<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let (mut x, cos, sin) = (cx.tensor(n, 0)?, cx.tensor(n, 1)?, cx.tensor(n, 2)?);
    let positions = cx.opt(n, 3)?;
    let dims = cx.b.dims(x);
    let flat = dims.len() == 3;
    if flat {
        let heads = n.int("num_heads", 0)?;
        if heads < 1 {
            return Err(n.bad("num_heads is missing"));
        }
        let h = Dim::from(heads);
        let each = match dims[2].as_const() {
            Some(all) => Dim::from(all / heads),
            None => dims[2].floordiv(&h),
        };
        x = cx.b.reshape(x, &[dims[0].clone(), dims[1].clone(), h, each])?;
    } else if dims.len() != 4 {
        return Err(n.bad("the operand has three or four dims"));
    }
    if cx.b.rank(cos) != if positions.is_some() { 2 } else { 3 } {
        return Err(n.bad("caches have two dims with positions, three without"));
    }
    let cos = rotary_rows(cx, cos, positions, flat)?;
    let sin = rotary_rows(cx, sin, positions, flat)?;
    let y = cx.b.rotary_embedding(x, cos, sin, n.flag("interleaved", false)?)?;
    let y = cx.b.reshape(y, &dims)?;
    cx.one(y)
}

fn causal_conv<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let (x, w) = (cx.tensor(n, 0)?, cx.tensor(n, 1)?);
    let (xd, wd) = (cx.b.dims(x), cx.b.dims(w));
    let (Some(channels), Some(taps)) =
        (wd.first().and_then(Dim::as_const), wd.get(2).and_then(Dim::as_const))
    else {
        return Err(n.unsupported("weights whose dims are not known"));
    };
    if xd.len() != 3 || wd.len() != 3 || taps < 1 {
        return Err(n.bad("wanted input [b, c, l] and weights [c, 1, k]"));
    }
    let d = cx.b.dtype(x);
    let before = Dim::from(taps - 1);
    let past = match cx.opt(n, 3)? {
        Some(p) => p,
        None => cx.b.full(d, 0.0, &[xd[0].clone(), xd[1].clone(), before.clone()])?,
    };
    let all = cx.b.concat(&[past, x], 2)?;
    let spec = ConvSpec { groups: channels, ..ConvSpec::nchw(1) };
    let mut y = cx.b.conv(all, w, spec, wide(d))?;
    if let Some(bias) = cx.opt(n, 2)? {
        y = super::nn::add_bias(cx, y, bias)?;
    }
    let y = cx.b.convert(y, d)?;
    let y = match n.str("activation", "none")? {
        "none" => y,
        "silu" | "swish" => cx.b.silu(y)?,
        other => return Err(n.bad(format!("activation '{other}'"))),
    };
    let present = cx.b.slice_axis(all, 2, xd[2].clone(), before)?;
    Ok(vec![cx.out(y), cx.out(present)])
}

fn linear_attention<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let (heads, groups) = (n.int("q_num_heads", 0)?, n.int("kv_num_heads", 0)?);
    if heads < 1 || groups < 1 || heads % groups != 0 {
        return Err(n.bad(format!("{heads} query heads and {groups} key heads")));
    }
    let (gating, delta) = match n.str("update_rule", "gated_delta")? {
        "linear" => (false, false),
        "gated" => (true, false),
        "delta" => (false, true),
        "gated_delta" => (true, true),
        other => return Err(n.bad(format!("update_rule '{other}'"))),
    };
    if gating != n.has(4) || delta != n.has(5) {
        return Err(n.bad("decay or beta does not go with the update rule"));
    }
    let d = n.dtype(0)?;
    let f = DType::F32;
    let mut qkv = Vec::new();
    for (i, h) in [(0, heads), (1, groups), (2, groups)] {
        let x = cx.tensor(n, i)?;
        let x = split_heads(cx, n, x, h)?;
        // The sequence first: [s, b, h, d].
        let x = cx.b.permute(x, &[2, 0, 1, 3])?;
        qkv.push(cx.b.convert(x, f)?);
    }
    let (qd, vd) = (cx.b.dims(qkv[0]), cx.b.dims(qkv[2]));
    let (steps, batch, dk, dv) = (qd[0].clone(), qd[1].clone(), qd[3].clone(), vd[3].clone());
    let scale = match n.float("scale", 0.0)? {
        s if s != 0.0 => s,
        _ => usual_scale(cx, n, qkv[0])?,
    };
    let g = Dim::from(groups);
    let mut captured = qkv;
    for (i, wanted) in [(4, gating), (5, delta)] {
        if !wanted {
            continue;
        }
        let x = cx.tensor(n, i)?;
        let x = cx.b.convert(x, f)?;
        let xd = cx.b.dims(x);
        let last = xd.last().cloned().ok_or_else(|| n.bad("decay or beta is a scalar"))?;
        // Per head, or per head and key element; one beta may be for all heads.
        let (h, each) = match last.as_const() {
            Some(1) => (Dim::from(1), Dim::from(1)),
            Some(l) if l == groups => (g.clone(), Dim::from(1)),
            _ => (g.clone(), dk.clone()),
        };
        let x = cx.b.reshape(x, &[batch.clone(), steps.clone(), h, each.clone()])?;
        let x = cx.b.broadcast_to(x, &[batch.clone(), steps.clone(), g.clone(), each])?;
        captured.push(cx.b.permute(x, &[1, 0, 2, 3])?);
    }
    let state_dims = [batch.clone(), g.clone(), dk.clone(), dv.clone()];
    let (state, state_type) = match cx.opt(n, 3)? {
        Some(s) => (cx.b.convert(s, f)?, cx.b.dtype(s)),
        None => (cx.b.full(f, 0.0, &state_dims)?, d),
    };
    let rows = [steps.clone(), batch.clone(), Dim::from(heads), dv.clone()];
    let first = cx.b.int(DType::I64, 0)?;
    let empty = cx.b.full(f, 0.0, &rows)?;
    let carried = [first, empty, state];
    let types: Vec<Type> = carried.iter().chain(&captured).map(|&v| cx.b.graph.ty(v).clone()).collect();
    let body = cx.b.region("linear_attention", &types, |b, p| {
        let (t, y, mut state) = (p[0], p[1], p[2]);
        let mut now = Vec::new();
        for &x in &p[3..] {
            now.push(b.take(x, t, 0)?);
        }
        let (q, k, mut v) = (now[0], now[1], now[2]);
        if gating {
            let keep = b.unary(Unary::Exp, now[3])?;
            let keep = b.unsqueeze(keep, 3)?;
            state = b.mul(state, keep)?;
        }
        if delta {
            let found = b.contract(k, state, &[(0, 0), (1, 1)], &[(2, 2)], f)?;
            let rest = b.sub(v, found)?;
            v = b.mul(now[3 + usize::from(gating)], rest)?;
        }
        let (column, row) = (b.unsqueeze(k, 3)?, b.unsqueeze(v, 2)?);
        let new = b.mul(column, row)?;
        state = b.add2(state, new)?;
        let q = b.reshape(q, &[batch.clone(), g.clone(), Dim::from(heads / groups), dk.clone()])?;
        let o = b.contract(q, state, &[(0, 0), (1, 1)], &[(3, 2)], f)?;
        let o = b.times(o, scale)?;
        let o = b.reshape(o, &rows[1..])?;
        let at = b.reshape(t, &[Dim::from(1)])?;
        let y = b.scatter_nd(Combiner::Replace, y, at, o)?;
        let t = b.plus(t, 1.0)?;
        let end = b.dim_as(&steps, DType::I64)?;
        let more = b.compare(Compare::Lt, t, end)?;
        Ok(vec![more, t, y, state])
    })?;
    let end = cx.b.dim_as(&steps, DType::I64)?;
    let more = cx.b.compare_const(Compare::Gt, end, 0.0)?;
    let operands: Vec<ValueId> = [more].into_iter().chain(carried).chain(captured).collect();
    let out = cx.b.add(Op::While { body, results: types[..3].to_vec() }, &operands)?;
    let y = cx.b.permute(out[1], &[1, 0, 2, 3])?;
    let y = cx.b.reshape(y, &[batch, steps, Dim::from(heads) * &dv])?;
    let y = cx.b.convert(y, d)?;
    let state = cx.b.convert(out[2], state_type)?;
    Ok(vec![cx.out(y), cx.out(state)])
}
