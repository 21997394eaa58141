//! Contractions, convolutions and reductions.

use tongtu_graph::op::ConvRole;
use tongtu_graph::{Combiner, ConvSpec, GraphError, Op, ValueId, WindowSpec};
use tongtu_tensor::DType;
use tongtu_tensor::dim::Dim;
use tongtu_tensor::scalar::Binary;

use super::movement::{groups, is_identity, wide_dims};
use super::rewrite::{Rewriter, Rewritten};

/// Movements taken up by the roles of dims, and sums over nothing much.
pub(super) fn rule(rw: &mut Rewriter<'_>, op: &Op, inputs: &[ValueId]) -> Rewritten {
    match (op, inputs) {
        (Op::Contract { batch, over, acc }, &[x, y]) => contract(rw, batch, over, *acc, x, y),
        (Op::Conv { spec, acc }, &[x, k]) => conv(rw, spec, *acc, x, k),
        (Op::Reduce { combiner, axes }, xs) => reduce(rw, *combiner, axes, xs),
        (Op::WindowReduce { combiner, spec }, &[x]) => window(rw, *combiner, spec, x),
        (Op::Scan { combiner, axis, exclusive: false, .. }, &[x])
            if combiner.arity() == 1 && rw.graph.dims(x)[*axis] == 1 =>
        {
            Ok(Some(vec![x]))
        }
        _ => Ok(None),
    }
}

/// Weights of more bytes stay as they are, possibly mapped from a file: a factor costs less than a copy of them.
const MAX_SCALED: usize = 64 << 20;

type Pairs = Vec<(usize, usize)>;

/// The dims of one side that are neither batch nor summed.
fn free(rank: usize, named: impl Fn(usize) -> bool) -> Vec<usize> {
    (0..rank).filter(|&i| !named(i)).collect()
}

fn contract(
    rw: &mut Rewriter<'_>,
    batch: &[(usize, usize)],
    over: &[(usize, usize)],
    acc: DType,
    x: ValueId,
    y: ValueId,
) -> Rewritten {
    let lhs_free = free(rw.rank(x), |i| batch.iter().chain(over).any(|p| p.0 == i));
    let rhs_free = free(rw.rank(y), |i| batch.iter().chain(over).any(|p| p.1 == i));
    let emit = |rw: &mut Rewriter<'_>, x, y, batch: Pairs, over: Pairs| {
        Ok::<_, GraphError>(Some(rw.emit(Op::Contract { batch, over, acc }, &[x, y])?))
    };
    // A permuted operand, unless its free dims change places.
    if let Some((z, perm)) = rw.permute_of(x)
        && lhs_free.iter().map(|&i| perm[i]).is_sorted()
    {
        let perm = perm.to_vec();
        let map = |p: &[(usize, usize)]| p.iter().map(|&(a, b)| (perm[a], b)).collect();
        return emit(rw, z, y, map(batch), map(over));
    }
    if let Some((z, perm)) = rw.permute_of(y)
        && rhs_free.iter().map(|&i| perm[i]).is_sorted()
    {
        let perm = perm.to_vec();
        let map = |p: &[(usize, usize)]| p.iter().map(|&(a, b)| (a, perm[b])).collect();
        return emit(rw, x, z, map(batch), map(over));
    }
    // Dims of 1.
    let (dx, dy) = (rw.dims(x), rw.dims(y));
    let one = |p: &(usize, usize)| dx[p.0] == 1 && dy[p.1] == 1;
    let drop = (
        |i: usize| {
            dx[i] == 1 && (lhs_free.contains(&i) || batch.iter().chain(over).any(|p| p.0 == i && one(p)))
        },
        |i: usize| {
            dy[i] == 1 && (rhs_free.contains(&i) || batch.iter().chain(over).any(|p| p.1 == i && one(p)))
        },
    );
    if (0..dx.len()).any(drop.0) || (0..dy.len()).any(drop.1) {
        let keep = (free(dx.len(), drop.0), free(dy.len(), drop.1));
        let pick = |dims: &[Dim], keep: &[usize]| keep.iter().map(|&i| dims[i].clone()).collect::<Vec<_>>();
        let (xr, yr) = (pick(&dx, &keep.0), pick(&dy, &keep.1));
        let map = |p: &[(usize, usize)]| -> Pairs {
            p.iter()
                .filter(|p| !one(p))
                .map(|&(a, b)| (keep.0.partition_point(|&k| k < a), keep.1.partition_point(|&k| k < b)))
                .collect()
        };
        let (batch2, over2) = (map(batch), map(over));
        let op = Op::Contract { batch: batch.to_vec(), over: over.to_vec(), acc };
        let types = rw.infer(&op, &[x, y])?;
        let dims = types.first().and_then(|t| t.as_tensor()).map(|(_, d)| d.to_vec()).unwrap_or_default();
        let (x, y) = (rw.reshape(x, &xr)?, rw.reshape(y, &yr)?);
        let out = rw.one(Op::Contract { batch: batch2, over: over2, acc }, &[x, y])?;
        return Ok(Some(vec![rw.reshape(out, &dims)?]));
    }
    // A reshape of free dims alone comes after.
    for side in 0..2 {
        if let Some((op, z, dims)) = unreshaped(rw, batch, over, acc, [x, y], side)? {
            let operands = if side == 0 { [z, y] } else { [x, z] };
            let out = rw.one(op, &operands)?;
            return Ok(Some(vec![rw.reshape(out, &dims)?]));
        }
    }
    // Nothing is summed: products.
    if over.is_empty() && (rw.dtype(x) == acc || acc.is_float()) && (rw.dtype(y) == acc || acc.is_float()) {
        let op = Op::Contract { batch: batch.to_vec(), over: Vec::new(), acc };
        let types = rw.infer(&op, &[x, y])?;
        let Some((_, dims)) = types.first().and_then(|t| t.as_tensor()) else { return Ok(None) };
        let dims = dims.to_vec();
        let n = batch.len();
        let order = |pairs: Vec<usize>, free: &[usize]| [pairs, free.to_vec()].concat();
        let px = order(batch.iter().map(|p| p.0).collect(), &lhs_free);
        let py = order(batch.iter().map(|p| p.1).collect(), &rhs_free);
        let (x, y) = (rw.convert(x, acc)?, rw.convert(y, acc)?);
        let (x, y) = (rw.permute(x, &px)?, rw.permute(y, &py)?);
        let x = rw.broadcast(x, &dims, &(0..n + lhs_free.len()).collect::<Vec<_>>())?;
        let ya: Vec<usize> = (0..n).chain(n + lhs_free.len()..dims.len()).collect();
        let y = rw.broadcast(y, &dims, &ya)?;
        return Ok(Some(vec![rw.binary(Binary::Mul, x, y)?]));
    }
    // A right operand repeated along the innermost batch dim needs no such dim, if the left one keeps its order.
    if let (Some(&(a, b)), Some((z, axes))) = (batch.last(), rw.broadcast_of(y))
        && !axes.contains(&b)
        && lhs_free.first().is_none_or(|&f| a < f)
        && rw.same_dim(&dx[a], &dy[b])
    {
        let axes = axes.to_vec();
        let dims: Vec<Dim> = (0..dy.len()).filter(|&i| i != b).map(|i| dy[i].clone()).collect();
        let less = |i: usize| if i > b { i - 1 } else { i };
        let axes: Vec<usize> = axes.iter().map(|&i| less(i)).collect();
        let z = rw.broadcast(z, &dims, &axes)?;
        let map = |p: &[(usize, usize)]| -> Pairs { p.iter().map(|&(i, j)| (i, less(j))).collect() };
        return emit(rw, x, z, map(&batch[..batch.len() - 1]), map(over));
    }
    Ok(None)
}

/// The contraction of an operand before its reshape, if that keeps the batch dims and those summed over, and the dims of the
/// contraction after it.
fn unreshaped(
    rw: &Rewriter<'_>,
    batch: &[(usize, usize)],
    over: &[(usize, usize)],
    acc: DType,
    operands: [ValueId; 2],
    side: usize,
) -> Result<Option<(Op, ValueId, Vec<Dim>)>, GraphError> {
    let v = operands[side];
    let Some((Op::Reshape { dims }, z)) = rw.def(v) else { return Ok(None) };
    // Dims of 1 are better left out.
    if rw.graph.dims(z).iter().any(|d| *d == 1) {
        return Ok(None);
    }
    let Some(groups) = groups(rw.graph.dims(z), dims) else { return Ok(None) };
    // The operand dim of a dim that is a group of its own.
    let whole = |i: usize| {
        let (from, to) = groups.iter().find(|(_, to)| to.contains(&i))?;
        (from.len() == 1 && to.len() == 1).then_some(from.start)
    };
    let map = |pairs: &[(usize, usize)]| -> Option<Pairs> {
        pairs.iter().map(|&(a, b)| Some(if side == 0 { (whole(a)?, b) } else { (a, whole(b)?) })).collect()
    };
    let (Some(batch2), Some(over2)) = (map(batch), map(over)) else { return Ok(None) };
    let types = rw.infer(&Op::Contract { batch: batch.to_vec(), over: over.to_vec(), acc }, &operands)?;
    let Some((_, dims)) = types.first().and_then(|t| t.as_tensor()) else { return Ok(None) };
    Ok(Some((Op::Contract { batch: batch2, over: over2, acc }, z, dims.to_vec())))
}

/// The position of a role.
pub(super) fn role(roles: &[ConvRole], r: ConvRole) -> Option<usize> {
    roles.iter().position(|x| *x == r)
}

fn conv(rw: &mut Rewriter<'_>, spec: &ConvSpec, acc: DType, x: ValueId, k: ValueId) -> Rewritten {
    if let Some((z, perm)) = rw.permute_of(k) {
        let mut spec = spec.clone();
        let roles = spec.kernel.clone();
        for (i, &p) in perm.iter().enumerate() {
            spec.kernel[p] = roles[i];
        }
        return Ok(Some(rw.emit(Op::Conv { spec, acc }, &[x, z])?));
    }
    // Zeros put around the operand before.
    if let Some((Op::Pad { low, high }, z)) = rw.def(x) {
        let (low, high) = (low.clone(), high.clone());
        let value = rw.node(x).and_then(|n| n.inputs.get(1).copied());
        let zero = value.and_then(|v| rw.splat(v)).is_some_and(|n| n.to_f64() == 0.0);
        let mut spec = spec.clone();
        let mut fits = zero;
        for (i, r) in spec.input.iter().enumerate() {
            match r {
                ConvRole::S(s) if spec.input_dilation[*s] == 1 => {
                    fits &= rw.non_negative(&low[i]) && rw.non_negative(&high[i]);
                    let (l, h) = spec.pads[*s].clone();
                    spec.pads[*s] = (l + &low[i], h + &high[i]);
                }
                _ => fits &= low[i] == 0 && high[i] == 0,
            }
        }
        if fits {
            return Ok(Some(rw.emit(Op::Conv { spec, acc }, &[z, k])?));
        }
    }
    Ok(None)
}

/// The operand (1: the right one) of a convolution or contraction that is a constant which factors on its result could
/// be multiplied into, with the result dim of each of the operand's dims.
fn weight(rw: &Rewriter<'_>, v: ValueId) -> Option<(usize, Vec<Option<usize>>)> {
    let n = rw.node(v)?;
    if !rw.single_use(v) || !rw.dtype(v).is_float() {
        return None;
    }
    let fits = |i: usize| {
        n.inputs.get(i).is_some_and(|&w| {
            let cheap = rw
                .constant(w)
                .is_some_and(|t| t.nbytes() <= MAX_SCALED && (rw.single_use(w) || t.nbytes() <= 4096));
            cheap && rw.dtype(w) == rw.dtype(v)
        })
    };
    match &n.op {
        Op::Conv { spec, .. } if fits(1) => {
            let out = role(&spec.output, ConvRole::C);
            Some((1, spec.kernel.iter().map(|r| if *r == ConvRole::N { out } else { None }).collect()))
        }
        Op::Contract { batch, over, .. } => {
            let side = if fits(1) {
                1
            } else if fits(0) {
                0
            } else {
                return None;
            };
            let pick = |p: &(usize, usize)| if side == 0 { p.0 } else { p.1 };
            let ranks = [rw.rank(n.inputs[0]), rw.rank(n.inputs[1])];
            let lhs_free = ranks[0] - batch.len() - over.len();
            let mut next = batch.len() + if side == 1 { lhs_free } else { 0 };
            let places = (0..ranks[side]).map(|i| {
                if let Some(b) = batch.iter().position(|p| pick(p) == i) {
                    return Some(b);
                }
                if over.iter().any(|p| pick(p) == i) {
                    return None;
                }
                next += 1;
                Some(next - 1)
            });
            Some((side, places.collect()))
        }
        _ => None,
    }
}

/// For a factor (a constant or one repeated), its own dims as dims of the weight.
fn factor_axes(rw: &Rewriter<'_>, places: &[Option<usize>], c: ValueId) -> Option<(ValueId, Vec<usize>)> {
    let (z, axes) = rw.broadcast_of(c)?;
    rw.constant(z)?;
    let mapped: Option<Vec<usize>> =
        axes.iter().map(|a| places.iter().position(|p| *p == Some(*a))).collect();
    mapped.filter(|m| m.is_sorted()).map(|m| (z, m))
}

/// Whether [`scale`] would move a factor into a kernel.
pub(super) fn takes_factor(rw: &Rewriter<'_>, v: ValueId, c: ValueId) -> bool {
    weight(rw, v).is_some_and(|(_, places)| factor_axes(rw, &places, c).is_some())
}

/// `conv(x, k) * c` to `conv(x, k * c)` for constants `k` and `c`, `c` along output channels; contractions likewise.
pub(super) fn scale(
    rw: &mut Rewriter<'_>,
    op: Binary,
    x: ValueId,
    c: ValueId,
) -> Result<Option<ValueId>, GraphError> {
    if !matches!(op, Binary::Mul | Binary::Div) {
        return Ok(None);
    }
    let Some((side, places)) = weight(rw, x) else { return Ok(None) };
    let Some((z, axes)) = factor_axes(rw, &places, c) else { return Ok(None) };
    let Some((op_of, mut operands)) = rw.node(x).map(|n| (n.op.clone(), n.inputs.clone())) else {
        return Ok(None);
    };
    let dims = rw.dims(operands[side]);
    let spread = rw.broadcast(z, &dims, &axes)?;
    operands[side] = rw.binary(op, operands[side], spread)?;
    Ok(Some(rw.one(op_of, &operands)?))
}

fn reduce(rw: &mut Rewriter<'_>, combiner: Combiner, axes: &[usize], xs: &[ValueId]) -> Rewritten {
    if axes.is_empty() {
        return Ok(Some(xs.to_vec()));
    }
    let &[x] = xs else { return Ok(None) };
    let have = rw.dims(x);
    // Dims of 1 hold one element each.
    let (ones, rest): (Vec<usize>, Vec<usize>) = axes.iter().partition(|&&a| have[a] == 1);
    if !ones.is_empty() {
        let kept: Vec<usize> = (0..have.len()).filter(|i| !ones.contains(i)).collect();
        let dims: Vec<Dim> = kept.iter().map(|&i| have[i].clone()).collect();
        let rest: Vec<usize> = rest.iter().map(|&a| kept.partition_point(|&k| k < a)).collect();
        let y = rw.reshape(x, &dims)?;
        return Ok(Some(rw.emit(Op::Reduce { combiner, axes: rest }, &[y])?));
    }
    match rw.node(x).map(|n| (n.op.clone(), n.inputs.clone())) {
        Some((Op::Reduce { combiner: c, axes: inner }, y))
            if c == combiner && y.len() == 1 && rw.single_use(x) =>
        {
            let left = free(rw.rank(y[0]), |i| inner.contains(&i));
            let mut all: Vec<usize> = axes.iter().map(|&a| left[a]).chain(inner.iter().copied()).collect();
            all.sort_unstable();
            Ok(Some(rw.emit(Op::Reduce { combiner, axes: all }, &y)?))
        }
        // Dims of 1 that only a reshape put in or took out.
        Some((Op::Reshape { .. }, y)) => {
            let inner = rw.dims(y[0]);
            let wide = wide_dims(&have);
            if inner.len() <= have.len()
                || !super::movement::same_but_ones(&inner, &have)
                || wide.len() < have.len()
            {
                return Ok(None);
            }
            let from = wide_dims(&inner);
            let all: Vec<usize> = axes.iter().map(|&a| from[a]).collect();
            let types = rw.infer(&Op::Reduce { combiner, axes: axes.to_vec() }, xs)?;
            let Some((_, dims)) = types.first().and_then(|t| t.as_tensor()) else { return Ok(None) };
            let dims = dims.to_vec();
            let out = rw.one(Op::Reduce { combiner, axes: all }, &y)?;
            Ok(Some(vec![rw.reshape(out, &dims)?]))
        }
        // Choosing among equal elements chooses that element.
        Some((Op::Broadcast { axes: own, dims }, y))
            if matches!(combiner, Combiner::Max | Combiner::Min | Combiner::And | Combiner::Or) =>
        {
            let operand = rw.dims(y[0]);
            let filled = |a: &usize| rw.non_negative(&(&dims[*a] - 1));
            if own.iter().zip(&operand).any(|(&a, d)| !rw.same_dim(d, &dims[a]))
                || !axes.iter().all(|a| own.contains(a) || filled(a))
                || axes.iter().all(|a| own.contains(a))
            {
                return Ok(None);
            }
            let inner: Vec<usize> = (0..own.len()).filter(|&i| axes.contains(&own[i])).collect();
            let kept = free(dims.len(), |i| axes.contains(&i));
            let out: Vec<Dim> = kept.iter().map(|&i| dims[i].clone()).collect();
            let places: Vec<usize> =
                own.iter().filter(|a| !axes.contains(a)).map(|&a| kept.partition_point(|&k| k < a)).collect();
            let r = rw.one(Op::Reduce { combiner, axes: inner }, &y)?;
            Ok(Some(vec![rw.broadcast(r, &out, &places)?]))
        }
        _ => Ok(None),
    }
}

fn window(rw: &mut Rewriter<'_>, combiner: Combiner, spec: &WindowSpec, x: ValueId) -> Rewritten {
    let have = rw.dims(x);
    let still =
        |i: usize| spec.window[i] == 1 && spec.strides[i] == 1 && spec.pads[i].0 == 0 && spec.pads[i].1 == 0;
    let whole = |i: usize| {
        have[i] == spec.window[i] && spec.dilation[i] == 1 && spec.pads[i].0 == 0 && spec.pads[i].1 == 0
    };
    if (0..have.len()).all(still) {
        return Ok(Some(vec![x]));
    }
    // One window over whole dims.
    if (0..have.len()).all(|i| still(i) || whole(i)) {
        let axes: Vec<usize> = (0..have.len()).filter(|&i| !still(i)).collect();
        let mut dims = have;
        axes.iter().for_each(|&a| dims[a] = Dim::from(1));
        let r = rw.one(Op::Reduce { combiner, axes }, &[x])?;
        return Ok(Some(vec![rw.reshape(r, &dims)?]));
    }
    // Padding with what leaves results as they are.
    if let Some((Op::Pad { low, high }, z)) = rw.def(x) {
        let (low, high) = (low.clone(), high.clone());
        let value = rw.node(x).and_then(|n| n.inputs.get(1).copied());
        let neutral = value.and_then(|v| rw.splat(v)).is_some_and(|n| is_identity(combiner, rw.dtype(x), n));
        if neutral && low.iter().chain(&high).all(|d| rw.non_negative(d)) {
            let mut spec = spec.clone();
            for (p, (l, h)) in spec.pads.iter_mut().zip(low.iter().zip(&high)) {
                *p = (&p.0 + l, &p.1 + h);
            }
            return Ok(Some(rw.emit(Op::WindowReduce { combiner, spec }, &[z])?));
        }
    }
    Ok(None)
}
