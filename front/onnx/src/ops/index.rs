//! Operators that pick and place elements: slices, gathers, scatters, padding, selection, order.

use tongtu_graph::{Combiner, Op, ValueId};
use tongtu_tensor::dim::{Dim, Symbols};
use tongtu_tensor::{Binary, Compare, DType, Tensor};

use crate::ctx::{Ctx, NodeCtx};
use crate::error::Result;
use crate::fold::clamp_slice;
use crate::ops::{Entry, op};
use crate::val::Val;

/// The family's operators.
pub const OPS: &[Entry] = &[
    op("Slice", slice),
    op("Gather", gather),
    op("GatherElements", gather_elements),
    op("GatherND", gather_nd),
    op("Scatter", scatter_elements),
    op("ScatterElements", scatter_elements),
    op("ScatterND", scatter_nd),
    op("TensorScatter", tensor_scatter),
    op("Pad", pad),
    op("OneHot", one_hot),
    op("Compress", compress),
    op("NonZero", non_zero),
    op("Unique", unique),
    op("TopK", top_k),
    op("ReverseSequence", reverse_sequence),
    op("Trilu", trilu),
    op("CumSum", cumulative),
    op("CumProd", cumulative),
];

/// Larger than any dim: as an end of a slice it means the end.
const FAR: i64 = 1 << 31;

/// Start and length of a slice of a dim.
fn slice_dim(len: &Dim, start: &Dim, end: &Dim, step: i64, symbols: &Symbols) -> Option<(Dim, Dim)> {
    if let (Some(n), Some(s), Some(e)) = (len.as_const(), start.as_const(), end.as_const()) {
        let (s, e, step) = clamp_slice(s, e, step, n)?;
        let count = if step > 0 { (e - s).max(0) } else { (s - e).max(0) };
        let by = step.checked_abs()?;
        return Some((Dim::from(s.max(0)), Dim::from(count.checked_add(by - 1)? / by)));
    }
    let (zero, last) = (Dim::from(0), len - 1);
    // One element from either end is taken to be there; that the slice stays inside is checked when it runs.
    let place = |v: &Dim| -> Dim {
        match v.as_const() {
            Some(c) if c >= FAR - 1 => len.clone(),
            Some(c) if c <= -FAR => Dim::from(-1),
            Some(-1) => last.clone(),
            Some(c @ (0 | 1)) => Dim::from(c),
            Some(c) if c < 0 => Dim::max(&(len + c), &zero),
            _ if v.provably_le(len, symbols) => v.clone(),
            _ => Dim::min(v, len),
        }
    };
    match step {
        1.. => {
            let floor = |v: Dim| if v.as_const() == Some(-1) { Dim::from(0) } else { v };
            let (s, e) = (floor(place(start)), floor(place(end)));
            let span = &e - &s;
            let near = start.as_const().is_some_and(|c| (-1..=1).contains(&c));
            let span = match span.as_const() {
                Some(c) => Dim::from(c.max(0)),
                None if near || s.provably_le(&e, symbols) => span,
                None => Dim::max(&span, &zero),
            };
            Some((s, span.ceildiv(&Dim::from(step))))
        }
        0 => None,
        _ => {
            let s = match start.as_const() {
                Some(c) if c >= FAR - 1 => last.clone(),
                _ => Dim::min(&place(start), &(len - 1)),
            };
            let e = place(end);
            let span = &s - &e;
            let span =
                if span.bounds(symbols).0.is_some_and(|l| l >= -1) { span } else { Dim::max(&span, &zero) };
            Some((s, span.ceildiv(&Dim::from(step.checked_neg()?))))
        }
    }
}

/// Start and length computed at run time, for a positive or negative step.
fn slice_at_run<'m>(
    cx: &mut Ctx<'_, 'm>,
    len: &Dim,
    start: ValueId,
    end: ValueId,
    step: i64,
) -> Result<(Dim, Dim)> {
    let n = cx.b.dim_as(len, DType::I64)?;
    let (low, high) = if step > 0 { (0, 0) } else { (-1, -1) };
    let low = cx.int64(low)?;
    let high = cx.b.binary_const(Binary::Add, n, high as f64)?;
    let mut place = |v: ValueId| -> Result<ValueId> {
        let up = cx.b.add2(v, n)?;
        let neg = cx.b.compare_const(Compare::Lt, v, 0.0)?;
        let v = cx.b.select(neg, up, v)?;
        let v = cx.b.binary(Binary::Max, v, low)?;
        Ok(cx.b.binary(Binary::Min, v, high)?)
    };
    let (s, e) = (place(start)?, place(end)?);
    let span = if step > 0 { cx.b.sub(e, s)? } else { cx.b.sub(s, e)? };
    let by = step.saturating_abs();
    let up = cx.b.binary_const(Binary::Add, span, (by - 1) as f64)?;
    let count = cx.b.binary_const(Binary::Div, up, by as f64)?;
    let count = cx.b.binary_const(Binary::Max, count, 0.0)?;
    let s = cx.b.binary_const(Binary::Max, s, 0.0)?;
    Ok((cx.bind(s)?, cx.bind(count)?))
}

fn slice<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let have = n.dims(0)?.to_vec();
    let rank = have.len();
    let known = |name: &str, i: usize| -> Result<Option<Vec<Dim>>> {
        if let Some(v) = n.ints(name)? {
            return Ok(Some(v.iter().map(|&d| Dim::from(d)).collect()));
        }
        Ok(n.opt(i).and_then(Val::tensor).and_then(|t| t.contents()))
    };
    let (starts, ends) = (known("starts", 1)?, known("ends", 2)?);
    let count = match (&starts, &ends) {
        (Some(s), _) => s.len(),
        (None, Some(e)) => e.len(),
        _ => n
            .dims(1)?
            .first()
            .and_then(Dim::as_const)
            .and_then(|c| usize::try_from(c).ok())
            .unwrap_or(usize::MAX),
    };
    if count > 64 {
        return Err(n.unsupported("the number of axes sliced is not known"));
    }
    let axes = match (n.ints("axes")?, n.has(3)) {
        (Some(a), _) => a.to_vec(),
        (None, true) => n.const_ints(3).ok_or_else(|| n.unsupported("the axes are not constants"))?,
        _ => (0..count as i64).collect(),
    };
    let steps = match n.has(4) {
        true => n.const_ints(4).ok_or_else(|| n.unsupported("the steps are not constants"))?,
        false => vec![1; count],
    };
    let short = |v: &Option<Vec<Dim>>| v.as_ref().is_some_and(|v| v.len() != count);
    if axes.len() != count || steps.len() != count || short(&starts) || short(&ends) {
        return Err(n.bad("starts, ends, axes and steps have different lengths"));
    }
    let x = cx.tensor(n, 0)?;
    let (mut start, mut len, mut step) = (vec![Dim::from(0); rank], have.clone(), vec![1; rank]);
    if let (Some(s), Some(e)) = (&starts, &ends) {
        for k in 0..count {
            let a = n.axis(axes[k], rank)?;
            let (from, many) = slice_dim(&have[a], &s[k], &e[k], steps[k], cx.b.symbols)
                .ok_or_else(|| n.bad(format!("a step of {}", steps[k])))?;
            (start[a], len[a], step[a]) = (from, many, steps[k]);
        }
    } else {
        let (s, e) = (cx.tensor(n, 1)?, cx.tensor(n, 2)?);
        let (s, e) = (cx.elements(s, count as i64)?, cx.elements(e, count as i64)?);
        for k in 0..count {
            let a = n.axis(axes[k], rank)?;
            if steps[k] == 0 {
                return Err(n.bad("a step of 0"));
            }
            let (from, many) = slice_at_run(cx, &have[a], s[k], e[k], steps[k])?;
            (start[a], len[a], step[a]) = (from, many, steps[k]);
        }
    }
    if len.iter().zip(&have).zip(&start).zip(&step).all(|(((l, h), s), st)| l == h && *s == 0 && *st == 1) {
        return Ok(vec![n.val(0)?.clone()]);
    }
    let y = cx.b.slice(x, &start, &len, &step)?;
    cx.one(y)
}

/// Indices as a value of `i32` or `i64`, those counted from the end brought into range.
fn indices<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>, i: usize, len: &Dim) -> Result<ValueId> {
    if let Some(all) = n.const_ints(i) {
        if let Some(len) = len.as_const()
            && let Some(v) = all.iter().find(|&&v| v < -len || v >= len)
        {
            return Err(n.bad(format!("index {v} of a dim of {len}")));
        }
        if all.iter().all(|&v| v >= 0) {
            return cx.tensor(n, i);
        }
        if let Some(len) = len.as_const() {
            let shape: Vec<usize> = n.constant(i).map(|t| t.shape().to_vec()).unwrap_or_default();
            let fixed: Vec<i64> =
                all.iter().map(|&v| if v < 0 { v.saturating_add(len) } else { v }).collect();
            return Ok(cx.b.constant(Tensor::from_slice(&shape, &fixed)?)?);
        }
    }
    let v = cx.tensor(n, i)?;
    Ok(match cx.b.dtype(v) {
        DType::U32 | DType::U64 => v,
        DType::I32 | DType::I64 => cx.b.normalize_indices(v, len)?,
        _ => {
            let v = cx.b.convert(v, DType::I64)?;
            cx.b.normalize_indices(v, len)?
        }
    })
}

fn gather<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let axis = n.axis(n.int("axis", 0)?, n.rank(0)?)?;
    let x = cx.tensor(n, 0)?;
    let dims = cx.b.dims(x);
    if let (Some(&[i]), 0) = (n.const_ints(1).as_deref(), n.rank(1)?) {
        let at = if i < 0 { &dims[axis] + i } else { Dim::from(i) };
        if at.as_const().is_some_and(|a| a < 0)
            || dims[axis].as_const().is_some_and(|d| at.as_const() >= Some(d))
        {
            return Err(n.bad(format!("index {i} of a dim of {:?}", dims[axis])));
        }
        let y = cx.b.slice_axis(x, axis, at, Dim::from(1))?;
        let mut rest = dims;
        rest.remove(axis);
        let y = cx.b.reshape(y, &rest)?;
        return cx.one(y);
    }
    let i = indices(cx, n, 1, &dims[axis])?;
    let y = cx.b.take(x, i, axis)?;
    cx.one(y)
}

fn gather_elements<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let axis = n.axis(n.int("axis", 0)?, n.rank(0)?)?;
    let x = cx.tensor(n, 0)?;
    let len = cx.b.dims(x)[axis].clone();
    let i = indices(cx, n, 1, &len)?;
    let y = cx.b.take_along(x, i, axis)?;
    cx.one(y)
}

/// Rows of indices into the given dims, those counted from the end brought into range.
fn coordinates<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>, i: usize, dims: &[Dim]) -> Result<ValueId> {
    let v = cx.tensor(n, i)?;
    let k = cx.b.dims(v).last().and_then(Dim::as_const).and_then(|k| usize::try_from(k).ok());
    let Some(k) = k.filter(|&k| k <= dims.len()) else {
        return Err(n.bad(format!("indices of {:?} coordinates into {dims:?}", cx.b.dims(v).last())));
    };
    if let Some(all) = n.const_ints(i) {
        for (j, &at) in all.iter().enumerate() {
            if let Some(len) = dims[j % k.max(1)].as_const()
                && !(-len..len).contains(&at)
            {
                return Err(n.bad(format!("index {at} of a dim of {len}")));
            }
        }
        if all.iter().all(|&v| v >= 0) {
            return Ok(v);
        }
    }
    let lens = Val::symbolic(cx.b.dtype(v), &[k], dims[..k].to_vec());
    let lens = cx.id(&lens)?;
    let up = cx.b.add2(v, lens)?;
    let neg = cx.b.compare_const(Compare::Lt, v, 0.0)?;
    Ok(cx.b.select(neg, up, v)?)
}

fn gather_nd<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let batch = usize::try_from(n.int("batch_dims", 0)?).map_err(|_| n.bad("batch_dims is negative"))?;
    let x = cx.tensor(n, 0)?;
    let dims = cx.b.dims(x);
    let inner = dims.get(batch..).ok_or_else(|| n.bad("batch_dims is past the rank"))?;
    let i = coordinates(cx, n, 1, inner)?;
    let y = cx.b.one(Op::GatherNd { batch }, &[x, i])?;
    cx.one(y)
}

fn combiner(n: &NodeCtx<'_>) -> Result<Combiner> {
    Ok(match n.str("reduction", "none")? {
        "none" => Combiner::Replace,
        "add" => Combiner::Add,
        "mul" => Combiner::Mul,
        "max" => Combiner::Max,
        "min" => Combiner::Min,
        other => return Err(n.bad(format!("reduction '{other}'"))),
    })
}

fn scatter_elements<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let axis = n.axis(n.int("axis", 0)?, n.rank(0)?)?;
    let combiner = combiner(n)?;
    let x = cx.tensor(n, 0)?;
    let len = cx.b.dims(x)[axis].clone();
    let i = indices(cx, n, 1, &len)?;
    let u = cx.tensor(n, 2)?;
    let y = cx.b.one(Op::ScatterAlong { axis, combiner }, &[x, i, u])?;
    cx.one(y)
}

fn scatter_nd<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let combiner = combiner(n)?;
    let x = cx.tensor(n, 0)?;
    let dims = cx.b.dims(x);
    let i = coordinates(cx, n, 1, &dims)?;
    let u = cx.tensor(n, 2)?;
    let y = cx.b.one(Op::ScatterNd { combiner }, &[x, i, u])?;
    cx.one(y)
}

/// Writes along an axis of a cache, each batch element from its own index on.
fn tensor_scatter<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let (x, u) = (cx.tensor(n, 0)?, cx.tensor(n, 1)?);
    let (have, dims) = (cx.b.dims(x), cx.b.dims(u));
    let axis = n.axis(n.int("axis", -2)?, have.len())?;
    if dims.len() != have.len() {
        return Err(n.bad("cache and update have different ranks"));
    }
    let mut i = cx.b.iota(DType::I64, &dims, axis)?;
    if let Some(first) = cx.opt(n, 2)? {
        let first = cx.b.convert(first, DType::I64)?;
        let first = cx.b.broadcast(first, &dims, &[0])?;
        i = cx.b.add2(i, first)?;
    }
    match n.str("mode", "linear")? {
        "linear" => {}
        "circular" => {
            let len = cx.b.dim_as(&have[axis], DType::I64)?;
            i = cx.b.binary(Binary::Mod, i, len)?;
        }
        other => return Err(n.bad(format!("mode '{other}'"))),
    }
    let y = cx.b.one(Op::ScatterAlong { axis, combiner: Combiner::Replace }, &[x, i, u])?;
    cx.one(y)
}

fn pad<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let x = cx.tensor(n, 0)?;
    let rank = cx.b.rank(x);
    let amounts = match n.ints(if n.opset < 2 { "paddings" } else { "pads" })? {
        Some(p) => p.iter().map(|&d| Dim::from(d)).collect(),
        None => cx.contents(n, 1)?,
    };
    let axes: Vec<usize> = match n.const_ints(3) {
        Some(a) => a.iter().map(|&a| n.axis(a, rank)).collect::<Result<_>>()?,
        None if n.has(3) => return Err(n.unsupported("the axes are not constants")),
        None => (0..rank).collect(),
    };
    if amounts.len() != 2 * axes.len() {
        return Err(n.bad(format!("{} amounts for {} axes", amounts.len(), axes.len())));
    }
    let (mut low, mut high) = (vec![Dim::from(0); rank], vec![Dim::from(0); rank]);
    for (k, &a) in axes.iter().enumerate() {
        (low[a], high[a]) = (amounts[k].clone(), amounts[axes.len() + k].clone());
    }
    let mode = n.str("mode", "constant")?;
    let mut y = x;
    if mode == "constant" {
        let d = cx.b.dtype(x);
        let value = match cx.opt(n, 2)? {
            Some(v) if n.opset >= 11 => cx.b.reshape(v, &[])?,
            _ => cx.b.full(d, n.float("value", 0.0)?, &[])?,
        };
        let y = cx.b.pad(x, value, &low, &high)?;
        return cx.one(y);
    }
    for a in 0..rank {
        if low[a] == 0 && high[a] == 0 {
            continue;
        }
        let len = cx.b.dims(y)[a].clone();
        let total = &len + &low[a] + &high[a];
        let i = cx.b.iota(DType::I64, &[total], 0)?;
        let from = cx.b.dim_as(&low[a], DType::I64)?;
        let i = cx.b.sub(i, from)?;
        let last = cx.b.dim_as(&(&len - 1), DType::I64)?;
        let i = match mode {
            "edge" => {
                let i = cx.b.binary_const(Binary::Max, i, 0.0)?;
                cx.b.binary(Binary::Min, i, last)?
            }
            "reflect" => {
                let period = cx.b.add2(last, last)?;
                let i = cx.b.binary(Binary::Mod, i, period)?;
                let back = cx.b.sub(period, i)?;
                cx.b.binary(Binary::Min, i, back)?
            }
            "wrap" => {
                let len = cx.b.dim_as(&len, DType::I64)?;
                cx.b.binary(Binary::Mod, i, len)?
            }
            other => return Err(n.bad(format!("mode '{other}'"))),
        };
        y = cx.b.take(y, i, a)?;
    }
    cx.one(y)
}

fn one_hot<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let rank = n.rank(0)?;
    let axis = n.axis(n.int("axis", -1)?, rank + 1)?;
    let depth = match n.const_scalar(1) {
        Some(d) => Dim::from(d as i64),
        None => cx.contents(n, 1)?.into_iter().next().ok_or_else(|| n.bad("depth is empty"))?,
    };
    let i = cx.tensor(n, 0)?;
    let values = cx.tensor(n, 2)?;
    let pick = |cx: &mut Ctx<'_, 'm>, k: i64| -> Result<ValueId> {
        let v = cx.b.slice(values, &[Dim::from(k)], &[Dim::from(1)], &[1])?;
        Ok(cx.b.reshape(v, &[])?)
    };
    let (off, on) = (pick(cx, 0)?, pick(cx, 1)?);
    let y = cx.b.one_hot(i, &depth, on, off, axis)?;
    cx.one(y)
}

fn flat<'m>(cx: &mut Ctx<'_, 'm>, x: ValueId) -> Result<ValueId> {
    let count = tongtu_graph::infer::numel(&cx.b.dims(x));
    Ok(cx.b.reshape(x, &[count])?)
}

fn compress<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let (mut x, p) = (cx.tensor(n, 0)?, cx.tensor(n, 1)?);
    let axis = match n.opt_int("axis")? {
        Some(a) => n.axis(a, cx.b.rank(x))?,
        None => {
            x = flat(cx, x)?;
            0
        }
    };
    let y = cx.b.compress(x, p, axis)?;
    cx.one(y)
}

fn non_zero<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let x = cx.tensor(n, 0)?;
    // The one element of a scalar has no coordinates; ONNX counts it as a vector of one.
    let x = if cx.b.rank(x) == 0 { cx.b.reshape(x, &[Dim::from(1)])? } else { x };
    let (rows, _) = cx.b.nonzero(x)?;
    let y = cx.b.permute(rows, &[1, 0])?;
    cx.one(y)
}

fn unique<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let x = cx.tensor(n, 0)?;
    let sorted = n.flag("sorted", true)?;
    // Rows to compare: one for each position along the axis.
    let (data, axis) = match n.opt_int("axis")? {
        Some(a) => (x, n.axis(a, cx.b.rank(x))?),
        None => (flat(cx, x)?, 0),
    };
    let dims = cx.b.dims(data);
    let len = dims[axis].clone();
    let perm: Vec<usize> = std::iter::once(axis).chain((0..dims.len()).filter(|&i| i != axis)).collect();
    let rows = cx.b.permute(data, &perm)?;
    let width: Dim = dims.iter().enumerate().filter(|(i, _)| *i != axis).map(|(_, d)| d.clone()).product();
    let rows = cx.b.reshape(rows, &[len.clone(), width.clone()])?;
    let Some(columns) = width.as_const().filter(|c| (1..=256).contains(c)) else {
        return Err(n.unsupported(format!("slices of {width:?} elements")));
    };
    let b = &mut cx.b;
    let column = |b: &mut tongtu_graph::Builder<'_>, c: i64| {
        let v = b.slice_axis(rows, 1, Dim::from(c), Dim::from(1))?;
        b.reshape(v, std::slice::from_ref(&len))
    };
    // Stable sorts by the last column first leave the rows in lexicographic order.
    let mut order = b.iota(DType::I64, std::slice::from_ref(&len), 0)?;
    for c in (0..columns).rev() {
        let key = column(b, c)?;
        let key = b.take(key, order, 0)?;
        order = b.add(Op::Sort { axis: 0, descending: false }, &[key, order])?[1];
    }
    let at = b.iota(DType::I64, std::slice::from_ref(&len), 0)?;
    let before = b.binary_const(Binary::Sub, at, 1.0)?;
    let before = b.binary_const(Binary::Max, before, 0.0)?;
    let before = b.take(order, before, 0)?;
    let mut fresh = b.compare_const(Compare::Eq, at, 0.0)?;
    for c in 0..columns {
        let key = column(b, c)?;
        let (this, last) = (b.take(key, order, 0)?, b.take(key, before, 0)?);
        let differs = b.compare(Compare::Ne, this, last)?;
        fresh = b.binary(Binary::Or, fresh, differs)?;
    }
    let ones = b.convert(fresh, DType::I64)?;
    let group = b.scan(Combiner::Add, ones, 0, false, false)?;
    let group = b.binary_const(Binary::Sub, group, 1.0)?;
    let firsts = b.compress(order, fresh, 0)?;
    let count = b.dims(firsts);
    let zeros = b.full(DType::I64, 0.0, std::slice::from_ref(&len))?;
    let along = |combiner| Op::ScatterAlong { axis: 0, combiner };
    let mut inverse = b.one(along(Combiner::Replace), &[zeros, order, group])?;
    let none = b.full(DType::I64, 0.0, &count)?;
    let one = b.full(DType::I64, 1.0, std::slice::from_ref(&len))?;
    let mut counts = b.one(along(Combiner::Add), &[none, group, one])?;
    let mut firsts = firsts;
    if !sorted {
        let i = b.iota(DType::I64, &count, 0)?;
        let moved = b.add(Op::Sort { axis: 0, descending: false }, &[firsts, counts, i])?;
        (firsts, counts) = (moved[0], moved[1]);
        let rank = b.one(along(Combiner::Replace), &[none, moved[2], i])?;
        inverse = b.take(rank, inverse, 0)?;
    }
    let y = b.take(data, firsts, axis)?;
    Ok(vec![cx.out(y), cx.out(firsts), cx.out(inverse), cx.out(counts)])
}

fn top_k<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let x = cx.tensor(n, 0)?;
    let axis = n.axis(n.int("axis", -1)?, cx.b.rank(x))?;
    let k = match n.opt_int("k")? {
        Some(k) => Dim::from(k),
        None => cx.contents(n, 1)?.into_iter().next().ok_or_else(|| n.bad("k is empty"))?,
    };
    let (v, i) = cx.b.top_k(x, &k, axis, n.flag("largest", true)?)?;
    Ok(vec![cx.out(v), cx.out(i)])
}

fn reverse_sequence<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let (x, lens) = (cx.tensor(n, 0)?, cx.tensor(n, 1)?);
    let rank = cx.b.rank(x);
    let (batch, time) = (n.axis(n.int("batch_axis", 1)?, rank)?, n.axis(n.int("time_axis", 0)?, rank)?);
    let y = cx.b.reverse_sequence(x, lens, batch, time)?;
    cx.one(y)
}

fn trilu<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let x = cx.tensor(n, 0)?;
    let k = match cx.opt(n, 1)? {
        Some(k) => cx.b.reshape(k, &[])?,
        None => cx.int64(0)?,
    };
    let y = cx.b.triangle(x, k, n.flag("upper", true)?)?;
    cx.one(y)
}

fn cumulative<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let x = cx.tensor(n, 0)?;
    let axis = n.const_scalar(1).ok_or_else(|| n.unsupported("the axis is not a constant"))?;
    let axis = n.axis(axis as i64, cx.b.rank(x))?;
    let combiner = if n.op() == "CumSum" { Combiner::Add } else { Combiner::Mul };
    let y = cx.b.scan(combiner, x, axis, n.flag("exclusive", false)?, n.flag("reverse", false)?)?;
    cx.one(y)
}
