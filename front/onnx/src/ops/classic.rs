//! Determinants, n-gram counts, and the operators of `ai.onnx.ml` for encoded labels, features and trees.

use tongtu_graph::{AttrValue, Builder, Combiner, Type, ValueId};
use tongtu_tensor::dim::Dim;
use tongtu_tensor::{Binary, Compare, DType, Tensor, Unary};

use crate::ctx::{Ctx, NodeCtx};
use crate::error::Result;
use crate::ops::calc::Calc;
use crate::ops::{Entry, op, op_in};
use crate::val::Val;

const ML: &str = "ai.onnx.ml";

/// The family's operators.
pub const OPS: &[Entry] = &[
    op("Det", determinant),
    op("TfIdfVectorizer", ngrams),
    op_in(ML, "LabelEncoder", label_encoder),
    op_in(ML, "ArrayFeatureExtractor", |cx, n| {
        let (x, at) = (cx.tensor(n, 0)?, cx.tensor(n, 1)?);
        let x = if cx.b.rank(x) == 1 { cx.b.unsqueeze(x, 0)? } else { x };
        let Some(last) = cx.b.rank(x).checked_sub(1) else { return Err(n.bad("a scalar has no features")) };
        let count = tongtu_graph::infer::numel(&cx.b.dims(at));
        let at = cx.b.reshape(at, &[count])?;
        let y = cx.b.take(x, at, last)?;
        cx.one(y)
    }),
    op_in(ML, "Binarizer", |cx, n| {
        let x = cx.tensor(n, 0)?;
        let p = cx.b.compare_const(Compare::Gt, x, n.float("threshold", 0.0)?)?;
        let y = cx.b.convert(p, cx.b.dtype(x))?;
        cx.one(y)
    }),
    op_in(ML, "Scaler", |cx, n| {
        let x = cx.tensor(n, 0)?;
        let mut y = cx.b.convert(x, DType::F32)?;
        if let Some(v) = n.floats("offset")? {
            let v = cx.b.constant(Tensor::from_slice(&[v.len()], v)?)?;
            y = cx.b.sub(y, v)?;
        }
        if let Some(v) = n.floats("scale")? {
            let v = cx.b.constant(Tensor::from_slice(&[v.len()], v)?)?;
            y = cx.b.mul(y, v)?;
        }
        cx.one(y)
    }),
    op_in(ML, "TreeEnsemble", tree_ensemble),
];

/// Largest matrix that elimination is written out for.
const MAX_MATRIX: i64 = 32;

/// By elimination with row pivots.
fn determinant<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let x = cx.tensor(n, 0)?;
    let d = cx.b.dtype(x);
    let dims = cx.b.dims(x);
    let Some(outer) = dims.len().checked_sub(2) else { return Err(n.bad("no matrix is given")) };
    let size = match (dims[outer].as_const(), dims[outer + 1].as_const()) {
        (Some(r), Some(c)) if r == c && (0..=MAX_MATRIX).contains(&r) => r,
        (Some(r), Some(c)) if r != c => return Err(n.bad(format!("a matrix of {r} by {c}"))),
        _ => return Err(n.unsupported(format!("matrices not known to be at most {MAX_MATRIX} wide"))),
    };
    let b = &mut cx.b;
    let acc = tongtu_graph::composite::wide(d);
    let batch = tongtu_graph::infer::numel(&dims[..outer]);
    let x = b.convert(x, acc)?;
    let mut a = b.reshape(x, &[batch.clone(), Dim::from(size), Dim::from(size)])?;
    let mut product = b.full(acc, 1.0, std::slice::from_ref(&batch))?;
    for left in (1..=size).rev() {
        let column = b.index(a, 2, 0)?;
        let column = b.unary(Unary::Abs, column)?;
        let at = b.arg_max(column, 1, true, false)?;
        let first = b.slice_axis(a, 1, Dim::from(0), Dim::from(1))?;
        let rows = b.unsqueeze(at, 2)?;
        let rows = b.broadcast_to(rows, &[batch.clone(), Dim::from(1), Dim::from(left)])?;
        let pivot_row = b.take_along(a, rows, 1)?;
        let pivot = b.slice_axis(pivot_row, 2, Dim::from(0), Dim::from(1))?;
        let flat = b.reshape(pivot, std::slice::from_ref(&batch))?;
        let at = b.reshape(at, std::slice::from_ref(&batch))?;
        let stays = b.compare_const(Compare::Eq, at, 0.0)?;
        let turned = b.unary(Unary::Neg, flat)?;
        let signed = b.select(stays, flat, turned)?;
        product = b.mul(product, signed)?;
        if left == 1 {
            break;
        }
        // The first row takes the pivot row's place.
        let i = b.count_along(DType::I64, 3, 1, &Dim::from(left))?;
        let at = b.reshape(at, &[batch.clone(), Dim::from(1), Dim::from(1)])?;
        let here = b.compare(Compare::Eq, i, at)?;
        a = b.select(here, first, a)?;
        let lower = b.slice_axis(a, 1, Dim::from(1), Dim::from(left - 1))?;
        let heads = b.slice_axis(lower, 2, Dim::from(0), Dim::from(1))?;
        let rest = b.slice_axis(lower, 2, Dim::from(1), Dim::from(left - 1))?;
        let tail = b.slice_axis(pivot_row, 2, Dim::from(1), Dim::from(left - 1))?;
        let singular = b.compare_const(Compare::Eq, pivot, 0.0)?;
        let one = b.full_like(pivot, 1.0)?;
        let pivot = b.select(singular, one, pivot)?;
        let factor = b.div(heads, pivot)?;
        let part = b.mul(factor, tail)?;
        a = b.sub(rest, part)?;
    }
    let y = b.reshape(product, &dims[..outer])?;
    let y = b.convert(y, d)?;
    cx.one(y)
}

/// Places of strings in a list, `i64`; `default` for those not in it.
fn places(cx: &mut Ctx<'_, '_>, x: ValueId, dims: &[Dim], keys: &[String], default: i64) -> Result<ValueId> {
    let list = AttrValue::List(keys.iter().map(|k| AttrValue::Str(k.clone())).collect());
    let attributes = vec![("keys".to_string(), list), ("default".to_string(), AttrValue::Int(default))];
    let ty = Type::tensor(DType::I64, dims.to_vec());
    Ok(cx.host("strings_lookup", attributes, &[x], vec![ty])?[0])
}

fn ngrams<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let list = |name: &str| -> Result<Vec<i64>> {
        Ok(n.ints(name)?.ok_or_else(|| n.bad(format!("{name} is missing")))?.to_vec())
    };
    let (counts, columns) = (list("ngram_counts")?, list("ngram_indexes")?);
    let (shortest, longest) = (n.int("min_gram_length", 1)?, n.int("max_gram_length", 1)?);
    let skips = n.int("max_skip_count", 0)?;
    if !(1..=64).contains(&shortest) || !(shortest..=64).contains(&longest) || !(0..=64).contains(&skips) {
        return Err(n.bad("lengths or skips out of range"));
    }
    let x = cx.arg(n, 0)?;
    let (x, dims, pool) = match n.val(0)? {
        Val::Strings(s) => {
            let pool = n.strings("pool_strings")?.ok_or_else(|| n.bad("pool_strings is missing"))?;
            let mut words = pool.clone();
            words.sort_unstable();
            words.dedup();
            let ids = pool.iter().map(|p| words.binary_search(p).map_or(-1, |i| i as i64)).collect();
            let dims = s.dims.clone();
            (places(cx, x, &dims, &words, -1)?, dims, ids)
        }
        _ => (cx.b.convert(x, DType::I64)?, n.dims(0)?.to_vec(), list("pool_int64s")?),
    };
    let (rows, len) = match dims.as_slice() {
        [l] => (Dim::from(1), l.clone()),
        [r, l] => (r.clone(), l.clone()),
        _ => return Err(n.bad(format!("an operand of dims {dims:?}"))),
    };
    let len = len.as_const().ok_or_else(|| n.unsupported("a length that is not known"))?;
    let x = cx.b.reshape(x, &[rows.clone(), Dim::from(len)])?;
    // Counts of the n-grams of the pool, in its order.
    let mut parts = Vec::new();
    for (i, &start) in counts.iter().enumerate() {
        let size = i as i64 + 1;
        let end = counts.get(i + 1).copied().unwrap_or(pool.len() as i64);
        let grams = usize::try_from(start).ok().zip(usize::try_from(end).ok());
        let grams = grams.and_then(|(s, e)| pool.get(s..e)).filter(|g| g.len() % (i + 1) == 0);
        let grams = grams.ok_or_else(|| n.bad(format!("ngram_counts {counts:?} of {}", pool.len())))?;
        let count = (grams.len() / (i + 1)) as i64;
        if count == 0 {
            continue;
        }
        let mut total = cx.b.full(DType::I32, 0.0, &[rows.clone(), Dim::from(count)])?;
        let wanted = (shortest..=longest).contains(&size);
        for step in 1..=if size == 1 { 1 } else { skips + 1 } {
            let at = len - (size - 1) * step;
            if at <= 0 || !wanted {
                break;
            }
            let b = &mut cx.b;
            let mut hit: Option<ValueId> = None;
            for k in 0..size {
                let part = b.slice_axis(x, 1, Dim::from(k * step), Dim::from(at))?;
                let part = b.unsqueeze(part, 2)?;
                let keys: Vec<i64> = grams.iter().skip(k as usize).step_by(i + 1).copied().collect();
                let keys = b.constant(Tensor::from_slice(&[keys.len()], &keys)?)?;
                let p = b.compare(Compare::Eq, part, keys)?;
                hit = Some(match hit {
                    Some(h) => b.both(h, p)?,
                    None => p,
                });
            }
            if let Some(h) = hit {
                let h = b.convert(h, DType::I32)?;
                let h = b.sum(h, &[1])?;
                total = b.add2(total, h)?;
            }
        }
        parts.push(total);
    }
    if parts.is_empty() {
        return Err(n.bad("the pool is empty"));
    }
    let counted = cx.b.concat(&parts, 1)?;
    let have = cx.b.dims(counted)[1].as_const().unwrap_or(0);
    let width = columns.iter().copied().max().unwrap_or(-1) + 1;
    if columns.len() as i64 != have || columns.iter().any(|&c| c < 0) || width > 1 << 24 {
        return Err(n.bad(format!("{} columns for {have} n-grams", columns.len())));
    }
    let mut y = cx.b.convert(counted, DType::F32)?;
    let weights = match n.floats("weights")? {
        Some(w) if w.len() as i64 == have => Some(cx.b.constant(Tensor::from_slice(&[w.len()], w)?)?),
        Some(w) => return Err(n.bad(format!("{} weights for {have} n-grams", w.len()))),
        None => None,
    };
    let mode = n.str("mode", "TF")?;
    if mode == "IDF" {
        y = cx.b.at_most(y, 1.0)?;
    }
    match (mode, weights) {
        ("TF", _) | ("IDF" | "TFIDF", None) => {}
        ("IDF" | "TFIDF", Some(w)) => y = cx.b.mul(y, w)?,
        (other, _) => return Err(n.bad(format!("mode '{other}'"))),
    }
    // A column that no n-gram has reads outside and is zero.
    let mut source = vec![-1i64; width as usize];
    for (i, &c) in columns.iter().enumerate() {
        source[c as usize] = i as i64;
    }
    let source = cx.b.constant(Tensor::from_slice(&[source.len()], &source)?)?;
    let mut y = cx.b.take(y, source, 1)?;
    if dims.len() == 1 {
        y = cx.b.reshape(y, &[Dim::from(width)])?;
    }
    cx.one(y)
}

/// A list attribute of any kind, as a value.
fn labels<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>, stem: &str) -> Result<Val> {
    if let Some(t) = n.tensor_attr(&format!("{stem}_tensor"))? {
        return cx.read(t);
    }
    if let Some(v) = n.strings(&format!("{stem}_strings"))? {
        return Ok(Val::strings(&[v.len()], v));
    }
    if let Some(v) = n.ints(&format!("{stem}_int64s"))? {
        return cx.ints(v);
    }
    if let Some(v) = n.floats(&format!("{stem}_floats"))? {
        return Ok(Val::constant(Tensor::from_slice(&[v.len()], v)?));
    }
    if let (true, Some(v)) = (stem == "keys", n.strings("classes_strings")?) {
        return Ok(Val::strings(&[v.len()], v));
    }
    Err(n.bad(format!("the {stem} are missing")))
}

fn label_encoder<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    if n.opset < 2 {
        return Err(n.unsupported("the first version, which has one list of classes"));
    }
    let (keys, values) = (labels(cx, n, "keys")?, labels(cx, n, "values")?);
    let x = cx.arg(n, 0)?;
    let (dims, at, count) = match (n.val(0)?, &keys) {
        (Val::Strings(s), Val::Strings(k)) => {
            let k = k.known.as_deref().unwrap_or_default();
            let dims = s.dims.clone();
            (dims.clone(), places(cx, x, &dims, k, k.len() as i64)?, k.len())
        }
        (Val::Tensor(t), Val::Tensor(k)) => {
            let k = k.constant().ok_or_else(|| n.bad("the keys are not constants"))?;
            let count = k.len();
            let b = &mut cx.b;
            let x = b.unsqueeze(x, t.dims.len())?;
            let all = b.constant(k.reshape(&[count])?)?;
            let all = b.convert(all, b.dtype(x))?;
            let mut hit = b.compare(Compare::Eq, x, all)?;
            if b.dtype(x).is_float() {
                let (p, q) = (b.unary(Unary::IsNan, x)?, b.unary(Unary::IsNan, all)?);
                let nan = b.both(p, q)?;
                hit = b.binary(Binary::Or, hit, nan)?;
            }
            let wide = b.dims(hit);
            let i = b.iota(DType::I64, &wide, t.dims.len())?;
            let i = b.or_const(hit, i, count as f64)?;
            (t.dims.clone(), b.reduce(Combiner::Min, i, &[t.dims.len()])?, count)
        }
        _ => return Err(n.bad("the keys are of another kind than the operand")),
    };
    match values {
        Val::Strings(v) => {
            let mut v = v.known.as_deref().unwrap_or_default().to_vec();
            v.truncate(count);
            v.push(match n.tensor_attr("default_tensor")? {
                Some(t) => match cx.read(t)? {
                    Val::Strings(s) => s.known.and_then(|k| k.first().cloned()).unwrap_or_default(),
                    _ => return Err(n.bad("the default is no string")),
                },
                None => n.str("default_string", "_Unused")?.to_string(),
            });
            let all = cx.id(&Val::strings(&[v.len()], v))?;
            let y = cx.host("strings_take", Vec::new(), &[all, at], vec![Type::Strings { dims }])?;
            cx.one(y[0])
        }
        Val::Tensor(v) => {
            let v = v.constant().ok_or_else(|| n.bad("the values are not constants"))?;
            let default = match n.tensor_attr("default_tensor")? {
                Some(t) => match cx.read(t)? {
                    Val::Tensor(t) => t.constant().filter(|t| t.len() == 1).map(|t| t.get_linear(0)),
                    _ => None,
                },
                None if v.dtype().is_float() => Some(n.float("default_float", -0.0)?.into()),
                None => Some(n.int("default_int64", -1)?.into()),
            };
            let default = default.ok_or_else(|| n.bad("the default is no number"))?;
            if v.len() < count {
                return Err(n.bad(format!("{count} keys, {} values", v.len())));
            }
            let all =
                Tensor::from_fn(
                    v.dtype(),
                    &[count + 1],
                    |i| {
                        if i < count { v.get_linear(i) } else { default }
                    },
                )?;
            let all = cx.b.constant(all)?;
            let y = cx.b.take(all, at, 0)?;
            cx.one(y)
        }
        _ => Err(n.bad("the values are no list")),
    }
}

/// The tables of a forest: nodes first, then leaves, which lead to themselves.
struct Forest {
    feature: Vec<i64>,
    mode: Vec<i64>,
    split: Vec<f64>,
    members: Vec<Vec<f64>>,
    missing: Vec<bool>,
    next: [Vec<i64>; 2],
    depth: usize,
}

fn numbers(cx: &Ctx<'_, '_>, n: &NodeCtx<'_>, name: &str) -> Result<Option<Vec<f64>>> {
    let Some(t) = n.tensor_attr(name)? else { return Ok(None) };
    match cx.read(t)? {
        Val::Tensor(t) => Ok(t.constant().map(|t| t.iter().map(|v| v.to_f64()).collect())),
        _ => Err(n.bad(format!("{name} are no numbers"))),
    }
}

fn forest(cx: &Ctx<'_, '_>, n: &NodeCtx<'_>, roots: &[i64], leaves: usize) -> Result<Forest> {
    let list = |name: &str| -> Result<Vec<i64>> {
        Ok(n.ints(name)?.ok_or_else(|| n.bad(format!("{name} is missing")))?.to_vec())
    };
    let feature = list("nodes_featureids")?;
    let count = feature.len();
    let modes = numbers(cx, n, "nodes_modes")?.ok_or_else(|| n.bad("nodes_modes is missing"))?;
    let split = numbers(cx, n, "nodes_splits")?.ok_or_else(|| n.bad("nodes_splits is missing"))?;
    let mut next = [Vec::new(), Vec::new()];
    for (side, (ids, leaf)) in
        [("nodes_falsenodeids", "nodes_falseleafs"), ("nodes_truenodeids", "nodes_trueleafs")]
            .into_iter()
            .enumerate()
    {
        let (ids, leaf) = (list(ids)?, list(leaf)?);
        if ids.len() != count || leaf.len() != count {
            return Err(n.bad("the lists of nodes have different lengths"));
        }
        for (&id, &leaf) in ids.iter().zip(&leaf) {
            let limit = if leaf != 0 { leaves } else { count };
            if !(0..limit as i64).contains(&id) {
                return Err(n.bad(format!("there is no node or leaf {id}")));
            }
            next[side].push(if leaf != 0 { id + count as i64 } else { id });
        }
    }
    let fits = modes.len() == count && split.len() == count && feature.iter().all(|&f| f >= 0);
    if !fits || roots.iter().any(|r| !(0..count as i64).contains(r)) {
        return Err(n.bad("the lists of nodes have different lengths, or a root is no node"));
    }
    let mut members = vec![Vec::new(); count];
    if let Some(all) = numbers(cx, n, "membership_values")? {
        let mut sets = all.split(|v| v.is_nan());
        for (i, &m) in modes.iter().enumerate() {
            if m == 6.0 {
                members[i] = sets.next().unwrap_or_default().to_vec();
            }
        }
    }
    let missing = match n.ints("nodes_missing_value_tracks_true")? {
        Some(m) if m.len() == count => m.iter().map(|&m| m != 0).collect(),
        _ => vec![false; count],
    };
    // Steps until every path has come to a leaf.
    let mut depth = 0;
    let mut front: Vec<i64> = roots.to_vec();
    while !front.is_empty() {
        depth += 1;
        if depth > count {
            return Err(n.bad("a tree has a cycle"));
        }
        let mut below: Vec<i64> =
            front.iter().flat_map(|&i| [next[0][i as usize], next[1][i as usize]]).collect();
        below.retain(|&i| i < count as i64);
        below.sort_unstable();
        below.dedup();
        front = below;
    }
    Ok(Forest {
        feature,
        mode: modes.iter().map(|&m| m as i64).collect(),
        split,
        members,
        missing,
        next,
        depth,
    })
}

fn tree_ensemble<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let x = cx.tensor(n, 0)?;
    let xd = cx.b.dims(x);
    let [rows, _] = xd.as_slice() else { return Err(n.bad("the operand is no matrix")) };
    let roots = n.ints("tree_roots")?.ok_or_else(|| n.bad("tree_roots is missing"))?.to_vec();
    let targets = n.int("n_targets", 0)?;
    let target = n.ints("leaf_targetids")?.ok_or_else(|| n.bad("leaf_targetids is missing"))?.to_vec();
    let weight = numbers(cx, n, "leaf_weights")?.ok_or_else(|| n.bad("leaf_weights is missing"))?;
    if weight.len() != target.len() || target.iter().any(|t| !(0..targets).contains(t)) {
        return Err(n.bad("leaves without targets"));
    }
    let f = forest(cx, n, &roots, weight.len())?;
    let d = cx.b.dtype(x);
    let count = f.feature.len();
    let total = count + weight.len();
    let b = &mut cx.b;
    let table = |b: &mut Builder<'_>, v: &dyn Fn(usize) -> f64, d: DType| {
        let t =
            Tensor::from_fn(d, &[total], |i| if d.is_float() { v(i).into() } else { (v(i) as i64).into() });
        t.map(|t| b.constant(t))
    };
    let get = |v: &[i64], i: usize| v.get(i).copied().unwrap_or(0) as f64;
    let features = table(b, &|i| get(&f.feature, i), DType::I64)??;
    let modes = table(b, &|i| get(&f.mode, i), DType::I64)??;
    let splits = table(b, &|i| f.split.get(i).copied().unwrap_or(0.0), d)??;
    let tracks = table(b, &|i| f64::from(u8::from(f.missing.get(i) == Some(&true))), DType::I64)??;
    let no = table(b, &|i| f.next[0].get(i).copied().unwrap_or(i as i64) as f64, DType::I64)??;
    let yes = table(b, &|i| f.next[1].get(i).copied().unwrap_or(i as i64) as f64, DType::I64)??;
    let most = f.members.iter().map(Vec::len).max().unwrap_or(0);
    let members = match most {
        0 => None,
        _ => Some(b.constant(Tensor::from_fn(d, &[total, most], |i| {
            let set = f.members.get(i / most);
            set.and_then(|s| s.get(i % most)).copied().unwrap_or(f64::NAN).into()
        })?)?),
    };
    let trees = Dim::from(roots.len() as i64);
    let place = b.constant(Tensor::from_slice(&[roots.len()], &roots)?)?;
    let mut place = b.broadcast_to(place, &[rows.clone(), trees])?;
    for _ in 0..f.depth {
        let feature = b.take(features, place, 0)?;
        let at = b.unsqueeze(feature, 2)?;
        let v = b.gather_nd(x, at, 1)?;
        let split = b.take(splits, place, 0)?;
        let mode = b.take(modes, place, 0)?;
        let mut go = b.compare(Compare::Le, v, split)?;
        let others = [Compare::Lt, Compare::Ge, Compare::Gt, Compare::Eq, Compare::Ne];
        for (k, c) in others.into_iter().enumerate() {
            if f.mode.contains(&(k as i64 + 1)) {
                let p = b.compare(c, v, split)?;
                let this = b.compare_const(Compare::Eq, mode, k as f64 + 1.0)?;
                go = b.select(this, p, go)?;
            }
        }
        if let Some(m) = members {
            let set = b.take(m, place, 0)?;
            let v = b.unsqueeze(v, 2)?;
            let p = b.compare(Compare::Eq, v, set)?;
            let p = b.reduce(Combiner::Or, p, &[2])?;
            let this = b.compare_const(Compare::Eq, mode, 6.0)?;
            go = b.select(this, p, go)?;
        }
        let nan = b.unary(Unary::IsNan, v)?;
        let track = b.take(tracks, place, 0)?;
        let track = b.compare_const(Compare::Ne, track, 0.0)?;
        let missing = b.both(nan, track)?;
        go = b.binary(Binary::Or, go, missing)?;
        let (p, q) = (b.take(yes, place, 0)?, b.take(no, place, 0)?);
        place = b.select(go, p, q)?;
    }
    let leaf = b.plus(place, -(count as f64))?;
    let weights = b.constant(Tensor::from_fn(d, &[weight.len()], |i| weight[i].into())?)?;
    let targets_of = b.constant(Tensor::from_slice(&[target.len()], &target)?)?;
    let w = b.take(weights, leaf, 0)?;
    let t = b.take(targets_of, leaf, 0)?;
    let (w, t) = (b.unsqueeze(w, 2)?, b.unsqueeze(t, 2)?);
    let i = b.count_along(DType::I64, 3, 2, &Dim::from(targets))?;
    let mine = b.compare(Compare::Eq, i, t)?;
    let y = match n.int("aggregate_function", 1)? {
        0 | 1 => {
            let y = b.or_const(mine, w, 0.0)?;
            let y = b.sum(y, &[1])?;
            let parts = if n.int("aggregate_function", 1)? == 0 { roots.len().max(1) } else { 1 };
            b.times(y, 1.0 / parts as f64)?
        }
        2 => {
            let y = b.or_const(mine, w, f64::INFINITY)?;
            b.reduce(Combiner::Min, y, &[1])?
        }
        3 => {
            let y = b.or_const(mine, w, f64::NEG_INFINITY)?;
            b.greatest(y, &[1])?
        }
        other => return Err(n.bad(format!("aggregate_function {other}"))),
    };
    let y = match n.int("post_transform", 0)? {
        0 => y,
        1 => cx.b.softmax(y, 1)?,
        2 => cx.b.sigmoid(y)?,
        other => return Err(n.unsupported(format!("post_transform {other}"))),
    };
    cx.one(y)
}
