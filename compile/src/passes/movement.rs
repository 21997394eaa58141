//! Operations that only move elements.

use tongtu_graph::{Combiner, Op, ValueId};
use tongtu_tensor::dim::Dim;
use tongtu_tensor::{DType, Num};

use super::rewrite::{Rewriter, Rewritten};

/// Identities and canonical forms of reshape, permute, broadcast, slice, pad, concat, take and iota.
pub(super) fn rule(rw: &mut Rewriter<'_>, op: &Op, inputs: &[ValueId]) -> Rewritten {
    match (op, inputs) {
        (Op::Reshape { dims }, &[x]) => reshape(rw, dims, x),
        (Op::Permute { perm }, &[x]) => permute(rw, perm, x),
        (Op::Broadcast { dims, axes }, &[x]) => broadcast(rw, dims, axes, x),
        (Op::Slice { start, len, step }, &[x]) => slice(rw, start, len, step, x),
        (Op::Pad { low, high }, &[x, value]) => pad(rw, low, high, x, value),
        (Op::Concat { axis }, xs) => concat(rw, *axis, xs),
        (Op::Take { axis }, &[data, indices]) => take(rw, *axis, data, indices),
        (Op::Iota { dtype, dims, axis }, []) => {
            if dims.get(*axis).is_some_and(|d| *d == 1) {
                let zero = if dtype.is_float() { Num::Float(0.0) } else { Num::Int(0) };
                return Ok(Some(vec![rw.full(*dtype, zero, dims)?]));
            }
            if dims.len() == 1 {
                return Ok(None);
            }
            let line = rw.one(Op::Iota { dtype: *dtype, dims: vec![dims[*axis].clone()], axis: 0 }, &[])?;
            Ok(Some(vec![rw.broadcast(line, dims, &[*axis])?]))
        }
        _ => Ok(None),
    }
}

/// Positions of the dims that are not the constant 1.
pub(super) fn wide_dims(dims: &[Dim]) -> Vec<usize> {
    (0..dims.len()).filter(|&i| dims[i] != 1).collect()
}

/// Whether two lists of dims differ in constant ones only.
pub(super) fn same_but_ones(a: &[Dim], b: &[Dim]) -> bool {
    a.iter().filter(|d| **d != 1).eq(b.iter().filter(|d| **d != 1))
}

/// Whether two numbers have the same bits.
fn same_number(a: Num, b: Num) -> bool {
    match (a, b) {
        (Num::Float(x), Num::Float(y)) => x.to_bits() == y.to_bits(),
        (a, b) => a == b,
    }
}

/// The order of the inverse permutation.
pub(super) fn inverse(perm: &[usize]) -> Vec<usize> {
    let mut inv = vec![0; perm.len()];
    for (i, &p) in perm.iter().enumerate() {
        inv[p] = i;
    }
    inv
}

fn reshape(rw: &mut Rewriter<'_>, dims: &[Dim], x: ValueId) -> Rewritten {
    let have = rw.dims(x);
    if rw.same_dims(&have, dims) {
        return Ok(Some(vec![x]));
    }
    match rw.def(x) {
        Some((Op::Reshape { .. }, y)) => Ok(Some(vec![rw.reshape(y, dims)?])),
        Some((Op::Broadcast { .. }, y)) => {
            let Some(axes) = regrouped(rw, x, dims) else { return Ok(None) };
            Ok(Some(vec![rw.broadcast(y, dims, &axes)?]))
        }
        _ => Ok(None),
    }
}

/// For a broadcast about to be reshaped to some dims: the axes that its operand's dims would then have, if they are kept whole.
pub(super) fn regrouped(rw: &Rewriter<'_>, v: ValueId, dims: &[Dim]) -> Option<Vec<usize>> {
    let (_, axes) = rw.broadcast_of(v)?;
    if axes.is_empty() {
        return Some(Vec::new());
    }
    let have = rw.graph.dims(v);
    let groups = groups(have, dims)?;
    let place = |&a: &usize| {
        let (from, to) = groups.iter().find(|(from, _)| from.contains(&a))?;
        let rest = |range: &std::ops::Range<usize>, list: &[Dim]| {
            let wide: Vec<usize> = range.clone().filter(|&i| list[i] != 1).collect();
            (wide.len() == 1).then(|| wide[0])
        };
        let (i, j) = (rest(from, have)?, rest(to, dims)?);
        (i == a && have[i] == dims[j]).then_some(j)
    };
    axes.iter().map(place).collect()
}

fn permute(rw: &mut Rewriter<'_>, perm: &[usize], x: ValueId) -> Rewritten {
    if perm.iter().enumerate().all(|(i, &p)| i == p) {
        return Ok(Some(vec![x]));
    }
    let have = rw.dims(x);
    if perm.iter().filter(|&&p| have[p] != 1).is_sorted() {
        let dims: Vec<Dim> = perm.iter().map(|&p| have[p].clone()).collect();
        return Ok(Some(vec![rw.reshape(x, &dims)?]));
    }
    match rw.def(x) {
        Some((Op::Permute { perm: first }, y)) => {
            let both: Vec<usize> = perm.iter().map(|&p| first[p]).collect();
            Ok(Some(vec![rw.permute(y, &both)?]))
        }
        Some((Op::Broadcast { dims, axes }, y)) => {
            let dims: Vec<Dim> = perm.iter().map(|&p| dims[p].clone()).collect();
            // (result dim, operand dim), by result dim.
            let mut placed: Vec<(usize, usize)> = perm
                .iter()
                .enumerate()
                .filter_map(|(i, p)| Some((i, axes.iter().position(|a| a == p)?)))
                .collect();
            placed.sort_unstable();
            let (axes, inner): (Vec<usize>, Vec<usize>) = placed.into_iter().unzip();
            let y = rw.permute(y, &inner)?;
            Ok(Some(vec![rw.broadcast(y, &dims, &axes)?]))
        }
        _ => Ok(None),
    }
}

fn broadcast(rw: &mut Rewriter<'_>, dims: &[Dim], axes: &[usize], x: ValueId) -> Rewritten {
    let have = rw.dims(x);
    if have.iter().zip(axes).all(|(d, &a)| rw.same_dim(d, &dims[a])) {
        if axes.len() == dims.len() {
            return Ok(Some(vec![x]));
        }
        if (0..dims.len()).all(|i| dims[i] == 1 || axes.contains(&i)) && rw.splat(x).is_none() {
            return Ok(Some(vec![rw.reshape(x, dims)?]));
        }
    }
    let wide = wide_dims(&have);
    if wide.len() < have.len() {
        let kept: Vec<Dim> = wide.iter().map(|&i| have[i].clone()).collect();
        let axes: Vec<usize> = wide.iter().map(|&i| axes[i]).collect();
        let y = rw.reshape(x, &kept)?;
        return Ok(Some(vec![rw.broadcast(y, dims, &axes)?]));
    }
    match rw.broadcast_of(x) {
        Some((y, inner)) => {
            let axes: Vec<usize> = inner.iter().map(|&a| axes[a]).collect();
            Ok(Some(vec![rw.broadcast(y, dims, &axes)?]))
        }
        None => Ok(None),
    }
}

fn slice(rw: &mut Rewriter<'_>, start: &[Dim], len: &[Dim], step: &[i64], x: ValueId) -> Rewritten {
    let have = rw.dims(x);
    let whole = |rw: &Rewriter<'_>, i: usize| {
        start[i] == 0 && (step[i] == 1 || len[i] == 1) && rw.same_dim(&len[i], &have[i])
    };
    if (0..have.len()).all(|i| whole(rw, i)) {
        return Ok(Some(vec![x]));
    }
    match rw.node(x).map(|n| (n.op.clone(), n.inputs.clone())) {
        Some((Op::Slice { start: s, step: t, .. }, y)) => {
            let start: Vec<Dim> = (0..have.len()).map(|i| &s[i] + &start[i] * t[i]).collect();
            let product: Option<Vec<i64>> = t.iter().zip(step).map(|(a, b)| a.checked_mul(*b)).collect();
            let Some(step) = product else { return Ok(None) };
            Ok(Some(vec![rw.one(Op::Slice { start, len: len.to_vec(), step }, &y)?]))
        }
        Some((Op::Broadcast { axes, .. }, y)) => {
            let inner: Vec<usize> = axes;
            let operand = rw.dims(y[0]);
            if (0..inner.len()).any(|i| !rw.same_dim(&operand[i], &have[inner[i]])) {
                return Ok(None);
            }
            let pick = |list: &[Dim]| inner.iter().map(|&a| list[a].clone()).collect::<Vec<_>>();
            let op = Op::Slice {
                start: pick(start),
                len: pick(len),
                step: inner.iter().map(|&a| step[a]).collect(),
            };
            let z = rw.one(op, &y)?;
            Ok(Some(vec![rw.broadcast(z, len, &inner)?]))
        }
        Some((Op::Concat { axis }, parts)) if step[axis] == 1 => {
            let mut offset = Dim::from(0);
            for p in parts {
                let n = rw.graph.dims(p)[axis].clone();
                let first = &start[axis] - &offset;
                let rest = &n - &first - &len[axis];
                if rw.non_negative(&first) && rw.non_negative(&rest) {
                    let mut start = start.to_vec();
                    start[axis] = first;
                    let op = Op::Slice { start, len: len.to_vec(), step: step.to_vec() };
                    return Ok(Some(vec![rw.one(op, &[p])?]));
                }
                offset = offset + n;
            }
            Ok(None)
        }
        Some((Op::Pad { low, high }, y)) => {
            // All inside the operand of the padding, which adds and does not crop.
            let inside = |rw: &Rewriter<'_>, i: usize| {
                let first = &start[i] - &low[i];
                let n = &have[i] - &low[i] - &high[i];
                step[i] == 1
                    && rw.non_negative(&low[i])
                    && rw.non_negative(&high[i])
                    && rw.non_negative(&first)
                    && rw.non_negative(&(&n - &first - &len[i]))
            };
            if !(0..have.len()).all(|i| inside(rw, i)) {
                return Ok(None);
            }
            let start = start.iter().zip(&low).map(|(s, l)| s - l).collect();
            let op = Op::Slice { start, len: len.to_vec(), step: step.to_vec() };
            Ok(Some(vec![rw.one(op, &y[..1])?]))
        }
        _ => Ok(None),
    }
}

fn pad(rw: &mut Rewriter<'_>, low: &[Dim], high: &[Dim], x: ValueId, value: ValueId) -> Rewritten {
    if low.iter().chain(high).all(|d| *d == 0) {
        return Ok(Some(vec![x]));
    }
    let adds = |rw: &Rewriter<'_>, l: &[Dim], h: &[Dim]| l.iter().chain(h).all(|d| rw.non_negative(d));
    if let (Some(n), Some(m)) = (rw.splat(value), rw.splat(x))
        && same_number(n, m)
    {
        let (dtype, dims) = (rw.dtype(x), rw.dims(x));
        let dims: Vec<Dim> = dims.iter().zip(low.iter().zip(high)).map(|(d, (l, h))| d + l + h).collect();
        return Ok(Some(vec![rw.full(dtype, n, &dims)?]));
    }
    let inner = match rw.node(x).map(|n| (n.op.clone(), n.inputs.clone())) {
        Some((Op::Pad { low: l, high: h }, y)) if y[1] == value && adds(rw, &l, &h) => Some((l, h, y[0])),
        _ => None,
    };
    if let Some((l, h, y)) = inner {
        let low = low.iter().zip(&l).map(|(a, b)| a + b).collect();
        let high = high.iter().zip(&h).map(|(a, b)| a + b).collect();
        return Ok(Some(vec![rw.one(Op::Pad { low, high }, &[y, value])?]));
    }
    // Only cropping is a slice.
    if low.iter().chain(high).all(|d| d.as_const().is_some_and(|c| c <= 0)) {
        let len = rw.dims(x).iter().zip(low.iter().zip(high)).map(|(n, (l, h))| n + l + h).collect();
        let op = Op::Slice { start: low.iter().map(|d| -d).collect(), len, step: vec![1; low.len()] };
        return Ok(Some(vec![rw.one(op, &[x])?]));
    }
    Ok(None)
}

fn concat(rw: &mut Rewriter<'_>, axis: usize, xs: &[ValueId]) -> Rewritten {
    if let [x] = xs {
        return Ok(Some(vec![*x]));
    }
    let empty = |rw: &Rewriter<'_>, v: ValueId| rw.graph.dims(v)[axis] == 0;
    if xs.iter().any(|&v| empty(rw, v)) {
        let rest: Vec<ValueId> = xs.iter().copied().filter(|&v| !empty(rw, v)).collect();
        let rest = if rest.is_empty() { vec![xs[0]] } else { rest };
        return Ok(Some(rw.emit(Op::Concat { axis }, &rest)?));
    }
    let nested = |rw: &Rewriter<'_>, v: ValueId| {
        matches!(rw.op(v), Some(Op::Concat { axis: a }) if *a == axis) && rw.single_use(v)
    };
    if xs.iter().any(|&v| nested(rw, v)) {
        let mut all = Vec::new();
        for &v in xs {
            match rw.node(v) {
                Some(n) if nested(rw, v) => all.extend_from_slice(&n.inputs),
                _ => all.push(v),
            }
        }
        return Ok(Some(rw.emit(Op::Concat { axis }, &all)?));
    }
    // Neighbours that are neighbouring slices of one value.
    for i in 1..xs.len() {
        if let Some(joined) = joined_slice(rw, axis, xs[i - 1], xs[i]) {
            let (op, x) = joined;
            let v = rw.one(op, &[x])?;
            let mut all = xs.to_vec();
            all.splice(i - 1..=i, [v]);
            return Ok(Some(rw.emit(Op::Concat { axis }, &all)?));
        }
    }
    // Equal numbers everywhere.
    if let Some(n) = rw.splat(xs[0])
        && xs.iter().all(|&v| rw.splat(v).is_some_and(|m| same_number(n, m)))
    {
        let types = rw.infer(&Op::Concat { axis }, xs)?;
        if let Some((dtype, dims)) = types.first().and_then(|t| t.as_tensor()) {
            let dims = dims.to_vec();
            return Ok(Some(vec![rw.full(dtype, n, &dims)?]));
        }
    }
    Ok(None)
}

fn joined_slice(rw: &Rewriter<'_>, axis: usize, a: ValueId, b: ValueId) -> Option<(Op, ValueId)> {
    let (
        Some((Op::Slice { start: s, len: l, step: t }, x)),
        Some((Op::Slice { start: s2, len: l2, step: t2 }, y)),
    ) = (rw.def(a), rw.def(b))
    else {
        return None;
    };
    let others = (0..s.len()).all(|i| i == axis || s[i] == s2[i] && l[i] == l2[i]);
    if x != y || t != t2 || !others || s2[axis] != &s[axis] + &l[axis] * t[axis] {
        return None;
    }
    let mut len = l.clone();
    len[axis] = &l[axis] + &l2[axis];
    Some((Op::Slice { start: s.clone(), len, step: t.clone() }, x))
}

fn take(rw: &mut Rewriter<'_>, axis: usize, data: ValueId, indices: ValueId) -> Rewritten {
    let dims = rw.dims(data);
    let Some(n) = dims[axis].as_const() else { return Ok(None) };
    let at = rw.dims(indices);
    let result = |rw: &Rewriter<'_>| -> Vec<Dim> {
        dims[..axis].iter().chain(rw.graph.dims(indices)).chain(&dims[axis + 1..]).cloned().collect()
    };
    // One index for all.
    if let Some(i) = rw.splat(indices) {
        let i = i.to_i128();
        let out = result(rw);
        if i < 0 || i >= n.into() {
            let dtype = rw.dtype(data);
            let zero = dtype.decode(dtype.encode(Num::Int(0), Default::default()));
            return Ok(Some(vec![rw.full(dtype, zero, &out)?]));
        }
        let one = rw.slice_axis(data, axis, Dim::from(i as i64), Dim::from(1))?;
        let mut kept = dims.clone();
        kept.remove(axis);
        let row = rw.reshape(one, &kept)?;
        let axes: Vec<usize> = (0..kept.len()).map(|k| if k < axis { k } else { k + at.len() }).collect();
        return Ok(Some(vec![rw.broadcast(row, &out, &axes)?]));
    }
    // Evenly spaced indices, counted or given.
    let line = match rw.op(indices) {
        Some(Op::Iota { dims: d, .. }) if at.len() == 1 => d[0].as_const().map(|len| (0, len, 1)),
        Some(Op::Constant { value }) if value.len() > 1 && !value.is_empty() => {
            let all = value.to_i64_vec().unwrap_or_default();
            let step = all.get(1).zip(all.first()).and_then(|(b, a)| b.checked_sub(*a));
            let even = |step: i64| all.windows(2).all(|w| w[1].checked_sub(w[0]) == Some(step));
            step.filter(|&s| s != 0 && even(s)).map(|s| (all[0], all.len() as i64, s))
        }
        _ => None,
    };
    let Some((first, len, step)) = line else { return Ok(None) };
    let last = first + (len - 1) * step;
    if !(0..n).contains(&first) || !(0..n).contains(&last) {
        return Ok(None);
    }
    let mut start = vec![Dim::from(0); dims.len()];
    let mut lens = dims.clone();
    let mut steps = vec![1; dims.len()];
    start[axis] = Dim::from(first);
    lens[axis] = Dim::from(len);
    steps[axis] = step;
    let v = rw.one(Op::Slice { start, len: lens, step: steps }, &[data])?;
    let out = result(rw);
    Ok(Some(vec![rw.reshape(v, &out)?]))
}

/// The combiner's identity for a type, if padding with it leaves results as they are.
pub(super) fn is_identity(combiner: Combiner, dtype: DType, n: Num) -> bool {
    let identity = combiner.identity(dtype);
    let zeros = identity.to_f64() == 0.0 && n.to_f64() == 0.0;
    combiner.binary().is_some() && combiner != Combiner::And && (zeros || n == identity)
}

/// Groups of operand dims and result dims of a reshape with equal products, in order; `None` where that can't be told.
pub(super) fn groups(
    from: &[Dim],
    to: &[Dim],
) -> Option<Vec<(std::ops::Range<usize>, std::ops::Range<usize>)>> {
    let mut out = Vec::new();
    let (mut i, mut j) = (0, 0);
    while i < from.len() || j < to.len() {
        let (i0, j0) = (i, j);
        let (mut a, mut b) = (Dim::from(1), Dim::from(1));
        if i < from.len() {
            a = from[i].clone();
            i += 1;
        }
        if j < to.len() {
            b = to[j].clone();
            j += 1;
        }
        while a != b {
            // The side whose product is a part of the other's takes the next dim.
            let shorter = match (a.as_const(), b.as_const()) {
                (Some(x), Some(y)) => x < y,
                _ if divides(&a, &b) => true,
                _ if divides(&b, &a) => false,
                _ => return None,
            };
            if shorter {
                a = a * from.get(i)?;
                i += 1;
            } else {
                b = b * to.get(j)?;
                j += 1;
            }
        }
        // Ones at the end belong to the last group.
        if i == from.len() {
            while j < to.len() && to[j] == 1 {
                j += 1;
            }
        }
        if j == to.len() {
            while i < from.len() && from[i] == 1 {
                i += 1;
            }
        }
        out.push((i0..i, j0..j));
    }
    Some(out)
}

/// The dims between those that a reshape splits and those that it joins, with the result dim that each becomes a part of;
/// `None` where that can't be told. An operand reshaped to them, then reshaped to the result's dims, is the same.
pub(super) fn between(from: &[Dim], to: &[Dim]) -> Option<(Vec<Dim>, Vec<usize>)> {
    let (mut dims, mut of) = (Vec::new(), Vec::new());
    let mut left = from.iter().filter(|d| **d != 1).cloned();
    let mut a: Option<Dim> = None;
    for (j, d) in to.iter().enumerate() {
        let mut b = d.clone();
        if b == 1 {
            dims.push(b);
            of.push(j);
            continue;
        }
        while b != 1 {
            let part = match a.take() {
                Some(part) => part,
                None => left.next()?,
            };
            let taken = if divides(&part, &b) {
                part
            } else if divides(&b, &part) {
                a = Some(part.floordiv(&b));
                b.clone()
            } else {
                return None;
            };
            b = if b == taken { Dim::from(1) } else { b.floordiv(&taken) };
            dims.push(taken);
            of.push(j);
        }
    }
    (a.is_none() && left.next().is_none()).then_some((dims, of))
}

fn divides(a: &Dim, b: &Dim) -> bool {
    a.as_const() != Some(0) && b.modulo(a) == 0
}

/// The value of an `i64` scalar that only depends on dims.
pub(super) fn scalar_dim(rw: &Rewriter<'_>, v: ValueId) -> Option<Dim> {
    if rw.dtype(v) != DType::I64 || rw.rank(v) != 0 {
        return None;
    }
    match rw.op(v)? {
        Op::DimValue { dim } => Some(dim.clone()),
        Op::Constant { value } => i64::try_from(value.get_linear(0).to_i128()).ok().map(Dim::from),
        Op::Reshape { .. } => {
            let (_, x) = rw.def(v)?;
            scalar_dim(rw, x)
        }
        _ => None,
    }
}
