//! Operators on shapes, and those that give the elements another shape: reshape, transpose, concatenate, expand, tile.

use tongtu_graph::infer::{may_equal, numel, simpler};
use tongtu_graph::{Op, ValueId};
use tongtu_tensor::dim::Dim;
use tongtu_tensor::{Binary, Compare, DType, Tensor, Unary};

use crate::ctx::{Ctx, NodeCtx};
use crate::error::Result;
use crate::ops::{Entry, op};
use crate::proto::kind;
use crate::val::{MAX_CONTENTS, Val};

/// The family's operators.
pub const OPS: &[Entry] = &[
    op("Constant", constant),
    op("ConstantOfShape", constant_of_shape),
    op("Shape", shape),
    op("Size", size),
    op("Reshape", reshape),
    op("Flatten", flatten),
    op("Squeeze", squeeze),
    op("Unsqueeze", unsqueeze),
    op("Transpose", transpose),
    op("Concat", concat),
    op("Split", split),
    op("Expand", expand),
    op("Tile", tile),
    op("Range", range),
    op("EyeLike", eye_like),
    op("DepthToSpace", depth_to_space),
    op("SpaceToDepth", space_to_depth),
];

fn constant<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    for (name, a) in &n.attrs {
        let v = match *name {
            "value" => match &a.t {
                Some(t) => cx.read(t)?,
                None => continue,
            },
            "sparse_value" => match &a.sparse_tensor {
                Some(s) => Val::constant(cx.dense(s, &n.node.name)?),
                None => continue,
            },
            "value_int" if a.kind == kind::INT => Val::constant(Tensor::scalar(DType::I64, a.i.into())),
            "value_ints" => cx.ints(&a.ints)?,
            "value_float" if a.kind == kind::FLOAT => {
                Val::constant(Tensor::scalar(DType::F32, f64::from(a.f).into()))
            }
            "value_floats" => Val::constant(Tensor::from_slice(&[a.floats.len()], &a.floats)?),
            "value_string" => {
                let s = String::from_utf8(a.s.clone()).map_err(|_| n.bad("the string is not UTF-8"))?;
                Val::strings(&[], vec![s])
            }
            "value_strings" => {
                let list = n.strings("value_strings")?.unwrap_or_default();
                Val::strings(&[list.len()], list)
            }
            _ => continue,
        };
        return Ok(vec![v]);
    }
    Err(n.bad("no value is given"))
}

fn constant_of_shape<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let dims = cx.contents(n, 0)?;
    let value = match n.tensor_attr("value")? {
        Some(t) => match cx.read(t)? {
            Val::Tensor(t) => t.constant().cloned(),
            _ => None,
        },
        None => Some(Tensor::scalar(DType::F32, 0.0.into())),
    };
    let value = value.filter(|v| v.len() == 1).ok_or_else(|| n.bad("value is no single number"))?;
    if let Some(shape) =
        dims.iter().map(|d| d.as_const().and_then(|d| usize::try_from(d).ok())).collect::<Option<Vec<_>>>()
        && shape.iter().try_fold(1usize, |a, &d| a.checked_mul(d)).is_some_and(|l| l <= MAX_CONTENTS)
    {
        return Ok(vec![Val::constant(value.reshape(&[])?.broadcast_to(&shape)?.to_contiguous()?)]);
    }
    if dims.iter().any(|d| d.as_const().is_some_and(|d| d < 0)) {
        return Err(n.bad("a dim is negative"));
    }
    let s = cx.b.constant(value.reshape(&[])?)?;
    let y = cx.b.broadcast_to(s, &dims)?;
    cx.one(y)
}

/// The dims of a tensor of numbers or strings.
fn dims_of(n: &NodeCtx<'_>, i: usize) -> Result<Vec<Dim>> {
    match n.val(i)? {
        Val::Strings(s) => Ok(s.dims.clone()),
        _ => Ok(n.dims(i)?.to_vec()),
    }
}

fn shape<'m>(_: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let dims = dims_of(n, 0)?;
    let rank = dims.len() as i64;
    let at = |v: i64| (if v < 0 { v.saturating_add(rank) } else { v }).clamp(0, rank) as usize;
    let (start, end) = (at(n.int("start", 0)?), at(n.int("end", rank)?));
    let part = dims.get(start..end.max(start)).unwrap_or_default().to_vec();
    Ok(vec![Val::symbolic(DType::I64, &[part.len()], part)])
}

fn size<'m>(_: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    Ok(vec![Val::symbolic(DType::I64, &[], vec![numel(&dims_of(n, 0)?)])])
}

/// A quotient known to be exact.
fn exact(a: &Dim, b: &Dim) -> Dim {
    if b.as_const() == Some(1) { a.clone() } else { a.floordiv(b) }
}

fn reshape<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let keep_zero = n.flag("allowzero", false)?;
    let have = n.dims(0)?.to_vec();
    let wanted = match (n.opset < 5, n.opt(1)) {
        (_, Some(Val::Tensor(t))) => t.contents(),
        _ => n.ints("shape")?.map(|s| s.iter().map(|&d| Dim::from(d)).collect()),
    };
    let dims = match wanted {
        Some(d) => reshape_dims(n, &have, &d, keep_zero)?,
        None => reshape_unknown(cx, n, &have, keep_zero)?,
    };
    let x = cx.tensor(n, 0)?;
    let y = cx.b.reshape(x, &dims)?;
    cx.one(y)
}

fn reshape_dims(n: &NodeCtx<'_>, have: &[Dim], wanted: &[Dim], keep_zero: bool) -> Result<Vec<Dim>> {
    let mut dims = Vec::with_capacity(wanted.len());
    let mut open = None;
    let mut kept = vec![false; have.len()];
    for (i, d) in wanted.iter().enumerate() {
        dims.push(match d.as_const() {
            Some(0) if !keep_zero => match have.get(i) {
                Some(h) => {
                    kept[i] = true;
                    h.clone()
                }
                None => {
                    return Err(n.bad(format!(
                        "dim {i} of the new shape is 0, but the operand has rank {}",
                        have.len()
                    )));
                }
            },
            Some(-1) if open.replace(i).is_none() => Dim::from(1),
            Some(v) if v < 0 => {
                return Err(n.bad(format!("the new shape {wanted:?} has more than one open dim")));
            }
            _ => d.clone(),
        });
    }
    if let Some(at) = open {
        // Dims that are kept cancel, which also holds where they are zero.
        let rest = |d: &[Dim], skip: Option<usize>| -> Dim {
            d.iter()
                .enumerate()
                .filter(|(i, _)| Some(*i) != skip && !kept.get(*i).copied().unwrap_or(false))
                .map(|(_, d)| d.clone())
                .product()
        };
        let (total, given) = (rest(have, None), rest(&dims, Some(at)));
        if given.as_const() == Some(0) {
            return Err(n.bad(format!("the open dim of the new shape {wanted:?} is not determined")));
        }
        if let (Some(t), Some(g)) = (total.as_const(), given.as_const())
            && t % g != 0
        {
            return Err(n.bad(format!("{t} elements can't be divided into {g}")));
        }
        dims[at] = exact(&total, &given);
    }
    if !may_equal(&numel(have), &numel(&dims)) {
        return Err(n.bad(format!("{have:?} can't become {dims:?}")));
    }
    Ok(dims)
}

/// The new shape is computed at run time.
fn reshape_unknown<'m>(
    cx: &mut Ctx<'_, 'm>,
    n: &NodeCtx<'m>,
    have: &[Dim],
    keep_zero: bool,
) -> Result<Vec<Dim>> {
    let len = n.dims(1)?.first().and_then(Dim::as_const);
    let Some(len) = len.filter(|&l| (0..=64).contains(&l)) else {
        return Err(n.unsupported("the number of dims of the new shape is not known"));
    };
    let id = cx.tensor(n, 1)?;
    let one = cx.int64(1)?;
    let mut items = Vec::new();
    for (i, mut v) in cx.elements(id, len)?.into_iter().enumerate() {
        if let Some(h) = have.get(i).filter(|_| !keep_zero) {
            let h = cx.b.dim_as(h, DType::I64)?;
            let zero = cx.b.compare_const(Compare::Eq, v, 0.0)?;
            v = cx.b.select(zero, h, v)?;
        }
        let open = cx.b.compare_const(Compare::Eq, v, -1.0)?;
        items.push((v, open));
    }
    let mut given = one;
    for &(v, open) in &items {
        let v = cx.b.select(open, one, v)?;
        given = cx.b.mul(given, v)?;
    }
    let total = cx.b.dim_as(&numel(have), DType::I64)?;
    let rest = cx.b.div(total, given)?;
    let mut dims = Vec::new();
    for (v, open) in items {
        let v = cx.b.select(open, rest, v)?;
        dims.push(cx.bind(v)?);
    }
    Ok(dims)
}

fn flatten<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let x = cx.tensor(n, 0)?;
    let dims = cx.b.dims(x);
    let axis = n.int("axis", 1)?;
    let axis = if axis == dims.len() as i64 { dims.len() } else { n.axis(axis, dims.len())? };
    let y = cx.b.reshape(x, &[numel(&dims[..axis]), numel(&dims[axis..])])?;
    cx.one(y)
}

/// Axes given as an attribute or, in newer versions, as an operand; `None` where left out.
pub(crate) fn axes_of(n: &NodeCtx<'_>, operand: usize) -> Result<Option<Vec<i64>>> {
    if let Some(a) = n.ints("axes")? {
        return Ok(Some(a.to_vec()));
    }
    match n.opt(operand) {
        None => Ok(None),
        Some(_) => n.const_ints(operand).map(Some).ok_or_else(|| n.unsupported("the axes are not constants")),
    }
}

fn squeeze<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let given = axes_of(n, 1)?;
    let x = cx.tensor(n, 0)?;
    let dims = cx.b.dims(x);
    let axes = match given {
        Some(a) => n.axes(&a, dims.len())?,
        None => (0..dims.len()).filter(|&i| dims[i].as_const() == Some(1)).collect(),
    };
    if let Some(&a) = axes.iter().find(|&&a| dims[a].as_const().is_some_and(|d| d != 1)) {
        return Err(n.bad(format!("dim {a} is {:?}, not 1", dims[a])));
    }
    let dims: Vec<Dim> =
        dims.into_iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|(_, d)| d).collect();
    let y = cx.b.reshape(x, &dims)?;
    cx.one(y)
}

fn unsqueeze<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let given = axes_of(n, 1)?.ok_or_else(|| n.bad("no axes are given"))?;
    let x = cx.tensor(n, 0)?;
    let mut dims = cx.b.dims(x);
    for a in n.axes(&given, dims.len() + given.len())? {
        dims.insert(a, Dim::from(1));
    }
    let y = cx.b.reshape(x, &dims)?;
    cx.one(y)
}

fn transpose<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let x = cx.tensor(n, 0)?;
    let rank = cx.b.rank(x);
    let perm: Vec<usize> = match n.ints("perm")? {
        Some(p) => p.iter().map(|&a| n.axis(a, rank)).collect::<Result<_>>()?,
        None => (0..rank).rev().collect(),
    };
    if perm.len() != rank {
        return Err(n.bad(format!("{perm:?} is no permutation of {rank} dims")));
    }
    let y = cx.b.permute(x, &perm)?;
    cx.one(y)
}

fn concat<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let axis = n.axis(n.int("axis", 1)?, n.rank(0)?)?;
    let xs = (0..n.inputs.len()).map(|i| cx.tensor(n, i)).collect::<Result<Vec<_>>>()?;
    let y = cx.b.concat(&xs, axis)?;
    cx.one(y)
}

fn split<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let x = cx.tensor(n, 0)?;
    let dims = cx.b.dims(x);
    let axis = n.axis(n.int("axis", 0)?, dims.len())?;
    let parts = match (n.ints("split")?, n.has(1)) {
        (Some(s), _) => Some(s.iter().map(|&d| Dim::from(d)).collect()),
        (None, true) => Some(cx.contents(n, 1)?),
        (None, false) => None,
    };
    let parts = match parts {
        Some(p) => p,
        None => {
            let k = n.int("num_outputs", n.n_outputs() as i64)?;
            if !(1..=1 << 16).contains(&k) {
                return Err(n.bad(format!("{k} results")));
            }
            let part = dims[axis].ceildiv(&Dim::from(k));
            let mut parts = vec![part.clone(); k as usize - 1];
            parts.push(&dims[axis] - &part * (k - 1));
            parts
        }
    };
    if parts.len() < n.n_outputs() {
        return Err(n.bad(format!("{} parts for {} results", parts.len(), n.n_outputs())));
    }
    if !may_equal(&parts.iter().cloned().sum::<Dim>(), &dims[axis]) {
        return Err(n.bad(format!("parts {parts:?} of a dim of {:?}", dims[axis])));
    }
    let mut at = Dim::from(0);
    let mut out = Vec::new();
    for p in parts {
        let y = cx.b.slice_axis(x, axis, at.clone(), p.clone())?;
        at = &at + &p;
        out.push(cx.out(y));
    }
    Ok(out)
}

fn expand<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let want = cx.contents(n, 1)?;
    let x = cx.tensor(n, 0)?;
    let y = expand_to(cx, n, x, &want)?;
    cx.one(y)
}

/// Broadcasts both ways: dims of 1 in either give way.
pub(crate) fn expand_to<'m>(
    cx: &mut Ctx<'_, 'm>,
    n: &NodeCtx<'m>,
    x: ValueId,
    want: &[Dim],
) -> Result<ValueId> {
    let have = cx.b.dims(x);
    let rank = have.len().max(want.len());
    let one = Dim::from(1);
    let mut dims = Vec::with_capacity(rank);
    let mut x = x;
    for i in 0..rank {
        let at = |v: &[Dim]| (i + v.len()).checked_sub(rank).map_or(one.clone(), |k| v[k].clone());
        let (h, w) = (at(&have), at(want));
        dims.push(match (h.as_const(), w.as_const()) {
            (Some(1), _) => w,
            (_, Some(1)) => h,
            (Some(_), None) => h,
            _ if h.provably_eq(&w, cx.b.symbols) => simpler(&h, &w),
            (None, _) => {
                let len = either(cx, &h, &w)?;
                x = repeat(cx, x, i + have.len() - rank, &h, &len)?;
                len
            }
            _ => return Err(n.bad(format!("{have:?} does not expand to {want:?}"))),
        });
    }
    Ok(cx.b.broadcast_to(x, &dims)?)
}

/// The length of two that are equal, or of which one is 1; which it is shows when it runs, and is checked then.
fn either(cx: &mut Ctx<'_, '_>, h: &Dim, w: &Dim) -> Result<Dim> {
    let one = Dim::from(1);
    let wrong = &(&(h - w) * &(h - 1)) * &(w - 1);
    let value = cx.b.dim_value(wrong)?;
    let sym = cx.fresh("differs");
    cx.b.symbols.set_bounds(sym, 0, Some(0));
    cx.b.add(Op::Bind { sym }, &[value])?;
    Ok(&(&h.max(w) * &h.min(&one)) * &w.min(&one))
}

/// A value whose dim along an axis, `have`, is 1 or `len`, with that dim `len`.
fn repeat(cx: &mut Ctx<'_, '_>, x: ValueId, axis: usize, have: &Dim, len: &Dim) -> Result<ValueId> {
    let i = cx.b.iota(DType::I64, std::slice::from_ref(len), 0)?;
    let last = cx.b.dim_as(&(have - 1), DType::I64)?;
    let i = cx.b.binary(Binary::Min, i, last)?;
    Ok(cx.b.take(x, i, axis)?)
}

fn tile<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let x = cx.tensor(n, 0)?;
    let dims = cx.b.dims(x);
    let repeats = if n.opset < 6 {
        let (times, axis) = (cx.contents(n, 1)?, n.const_ints(2).unwrap_or_default());
        let axis = n.axis(axis.first().copied().unwrap_or(0), dims.len())?;
        let times = times.first().cloned().ok_or_else(|| n.bad("the number of repeats is missing"))?;
        (0..dims.len()).map(|i| if i == axis { times.clone() } else { Dim::from(1) }).collect()
    } else {
        cx.contents(n, 1)?
    };
    if repeats.len() != dims.len() {
        return Err(n.bad(format!("{} repeats for rank {}", repeats.len(), dims.len())));
    }
    let mut wide = Vec::new();
    let mut axes = Vec::new();
    for (d, r) in dims.iter().zip(&repeats) {
        if r.as_const() != Some(1) {
            wide.push(r.clone());
        }
        axes.push(wide.len());
        wide.push(d.clone());
    }
    let y = cx.b.broadcast(x, &wide, &axes)?;
    let full: Vec<Dim> = dims.iter().zip(&repeats).map(|(d, r)| d * r).collect();
    let y = cx.b.reshape(y, &full)?;
    cx.one(y)
}

fn range<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let dtype = n.dtype(0)?;
    let one = |v: &Val| v.tensor().and_then(|t| t.contents()).filter(|c| c.len() == 1).map(|c| c[0].clone());
    let known = (one(n.val(0)?), one(n.val(1)?), one(n.val(2)?));
    if n.const_scalar(2) == Some(0.0) {
        return Err(n.bad("a step of 0"));
    }
    let len = match known {
        (Some(start), Some(limit), Some(step)) if step.as_const().is_some_and(|s| s != 0) => {
            let step = step.as_const().unwrap_or(1);
            let span = if step > 0 { &limit - &start } else { &start - &limit };
            let len = span.ceildiv(&Dim::from(step.saturating_abs()));
            if len.bounds(cx.b.symbols).0.is_some_and(|l| l >= 0) {
                len
            } else {
                Dim::max(&len, &Dim::from(0))
            }
        }
        _ => match (n.const_scalar(0), n.const_scalar(1), n.const_scalar(2)) {
            (Some(start), Some(limit), Some(step)) if step != 0.0 => {
                Dim::from((((limit - start) / step).ceil().clamp(0.0, 1e15)) as i64)
            }
            _ => range_len(cx, n)?,
        },
    };
    let (start, step) = (cx.tensor(n, 0)?, cx.tensor(n, 2)?);
    let (start, step) = (cx.b.reshape(start, &[])?, cx.b.reshape(step, &[])?);
    let i = cx.b.iota(dtype, &[len], 0)?;
    let i = cx.b.mul(i, step)?;
    let y = cx.b.add2(i, start)?;
    cx.one(y)
}

/// The number of steps, computed at run time.
fn range_len<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Dim> {
    let wide = if n.dtype(0)?.is_float() { DType::F64 } else { DType::I64 };
    let mut scalar = |i: usize| -> Result<ValueId> {
        let v = cx.tensor(n, i)?;
        let v = cx.b.reshape(v, &[])?;
        Ok(cx.b.convert(v, wide)?)
    };
    let (start, limit, step) = (scalar(0)?, scalar(1)?, scalar(2)?);
    let b = &mut cx.b;
    let span = b.sub(limit, start)?;
    let len = if wide == DType::F64 {
        let q = b.div(span, step)?;
        let q = b.unary(Unary::Ceil, q)?;
        b.convert(q, DType::I64)?
    } else {
        let q = b.div(span, step)?;
        let back = b.mul(q, step)?;
        let rest = b.sub(span, back)?;
        let some = b.compare_const(Compare::Ne, rest, 0.0)?;
        let (a, c) = (b.compare_const(Compare::Lt, span, 0.0)?, b.compare_const(Compare::Lt, step, 0.0)?);
        let same = b.compare(Compare::Eq, a, c)?;
        let more = b.binary(Binary::And, some, same)?;
        let more = b.convert(more, DType::I64)?;
        b.add2(q, more)?
    };
    let len = b.binary_const(Binary::Max, len, 0.0)?;
    cx.bind(len)
}

fn eye_like<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let dtype = match n.dtype_attr("dtype")? {
        Some(d) => d,
        None => n.dtype(0)?,
    };
    let dims = n.dims(0)?.to_vec();
    if dims.len() != 2 {
        return Err(n.bad(format!("the operand has rank {}, not 2", dims.len())));
    }
    let (i, j) = (cx.b.iota(DType::I64, &dims, 0)?, cx.b.iota(DType::I64, &dims, 1)?);
    let i = cx.b.binary_const(Binary::Add, i, n.int("k", 0)? as f64)?;
    let p = cx.b.compare(Compare::Eq, i, j)?;
    let y = cx.b.convert(p, dtype)?;
    cx.one(y)
}

fn depth_to_space<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    use tongtu_graph::composite::DepthToSpace;
    let order = match n.str("mode", "DCR")? {
        "DCR" => DepthToSpace::DepthColumnRow,
        "CRD" => DepthToSpace::ColumnRowDepth,
        other => return Err(n.bad(format!("mode '{other}'"))),
    };
    let x = cx.tensor(n, 0)?;
    let y = cx.b.depth_to_space(x, block_size(n)?, order)?;
    cx.one(y)
}

fn block_size(n: &NodeCtx<'_>) -> Result<i64> {
    match n.int("blocksize", 0)? {
        b if (1..1 << 20).contains(&b) => Ok(b),
        b => Err(n.bad(format!("blocksize {b}"))),
    }
}

fn space_to_depth<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let x = cx.tensor(n, 0)?;
    let block = block_size(n)?;
    let y = match n.str("mode", "DCR")? {
        "DCR" => cx.b.space_to_depth(x, block)?,
        "CRD" => {
            let d = cx.b.dims(x);
            if d.len() != 4 {
                return Err(n.bad("four dims are wanted"));
            }
            let k = Dim::from(block);
            let (h, w) = (d[2].floordiv(&k), d[3].floordiv(&k));
            let split = [d[0].clone(), d[1].clone(), h.clone(), k.clone(), w.clone(), k.clone()];
            let v = cx.b.reshape(x, &split)?;
            let v = cx.b.permute(v, &[0, 1, 3, 5, 2, 4])?;
            cx.b.reshape(v, &[d[0].clone(), &d[1] * (block * block), h, w])?
        }
        other => return Err(n.bad(format!("mode '{other}'"))),
    };
    cx.one(y)
}
