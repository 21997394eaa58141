//! Channels-last layouts, and permutations moved towards results until they meet their inverse.

use tongtu_graph::op::ConvRole;
use tongtu_graph::{ConvSpec, Op, ValueId, WindowSpec};
use tongtu_tensor::DType;
use tongtu_tensor::dim::Dim;

use super::linear::role;
use super::movement::{between, groups, inverse, regrouped, same_but_ones, wide_dims};
use super::rewrite::{Rewriter, Rewritten};

/// Convolutions on batch, spatial, channels; permutations and reshapes by dims of 1 after the operations they feed.
pub(super) fn rule(rw: &mut Rewriter<'_>, op: &Op, inputs: &[ValueId]) -> Rewritten {
    match (op, inputs) {
        (Op::Conv { spec, acc }, &[x, k]) => {
            if let Some(new) = channels_last(rw, spec, *acc, x, k)? {
                return Ok(Some(new));
            }
            pointwise(rw, spec, *acc, x, k)
        }
        (op, xs) if op.is_elementwise() => {
            if let Some(new) = sink_elementwise(rw, op, xs)? {
                return Ok(Some(new));
            }
            sink_reshaped(rw, op, xs)
        }
        (Op::Concat { .. } | Op::Sort { .. } | Op::Scan { .. } | Op::Reduce { .. }, xs) => {
            if let Some(new) = sink_along(rw, op, xs)? {
                return Ok(Some(new));
            }
            reduce_parts(rw, op, xs)
        }
        (Op::WindowReduce { .. } | Op::Slice { .. } | Op::Pad { .. }, &[x, ..]) => {
            sink_each(rw, op, x, inputs)
        }
        (Op::Take { axis }, &[x, i]) if rw.rank(i) <= 1 => sink_take(rw, *axis, x, i),
        (Op::Reshape { dims }, &[x]) => sink_reshape(rw, dims, x),
        _ => Ok(None),
    }
}

/// Whether an operation may take its operands in another order.
pub(super) fn takes_any_order(op: &Op) -> bool {
    op.is_elementwise()
        || matches!(
            op,
            Op::Conv { .. }
                | Op::Contract { .. }
                | Op::Concat { .. }
                | Op::Sort { .. }
                | Op::Scan { .. }
                | Op::Reduce { .. }
                | Op::WindowReduce { .. }
                | Op::Slice { .. }
                | Op::Pad { .. }
                | Op::Take { .. }
                | Op::Reshape { .. }
                | Op::Permute { .. }
                | Op::Broadcast { .. }
        )
}

/// Whether an operation may take its operand before a reshape.
pub(super) fn takes_any_shape(op: &Op) -> bool {
    op.is_elementwise() || matches!(op, Op::Reduce { .. } | Op::Reshape { .. })
}

/// Batch, spatial dims, channels.
fn last(rank: usize) -> Vec<ConvRole> {
    let spatial = (0..rank).map(ConvRole::S);
    [ConvRole::N].into_iter().chain(spatial).chain([ConvRole::C]).collect()
}

/// Whether a convolution takes its operand with columns last, as it is: so few channels would lie in short runs, and moving them
/// costs more than it saves.
fn few_channels(rw: &Rewriter<'_>, spec: &ConvSpec, x: ValueId, k: ValueId) -> bool {
    let Some(s) = spec.rank().checked_sub(1).map(ConvRole::S) else { return false };
    let taps = role(&spec.kernel, s).and_then(|p| rw.graph.dims(k)[p].as_const());
    let channels = role(&spec.input, ConvRole::C).and_then(|p| rw.graph.dims(x)[p].as_const());
    spec.groups == 1
        && spec.input_dilation.iter().all(|&d| d == 1)
        && spec.input.last() == Some(&s)
        && channels.is_some_and(|c| c <= 4)
        && taps.is_some_and(|t| (2..=16).contains(&t))
        && permute_of(rw, x).is_none()
}

fn channels_last(rw: &mut Rewriter<'_>, spec: &ConvSpec, acc: DType, x: ValueId, k: ValueId) -> Rewritten {
    let want = last(spec.rank());
    let have = if few_channels(rw, spec, x, k) { &spec.input } else { &want };
    if spec.rank() == 0 || spec.input == *have && spec.output == want {
        return Ok(None);
    }
    let order =
        |from: &[ConvRole], to: &[ConvRole]| to.iter().map(|r| role(from, *r)).collect::<Option<Vec<_>>>();
    let (Some(there), Some(back)) = (order(&spec.input, have), order(&want, &spec.output)) else {
        return Ok(None);
    };
    let spec = ConvSpec { input: have.clone(), output: want, ..spec.clone() };
    let x = rw.permute(x, &there)?;
    let y = rw.one(Op::Conv { spec, acc }, &[x, k])?;
    Ok(Some(vec![rw.permute(y, &back)?]))
}

/// A convolution whose kernel has one tap is a contraction.
fn pointwise(rw: &mut Rewriter<'_>, spec: &ConvSpec, acc: DType, x: ValueId, k: ValueId) -> Rewritten {
    let kernel = rw.dims(k);
    let still = (0..spec.rank()).all(|s| {
        spec.strides[s] == 1
            && spec.input_dilation[s] == 1
            && spec.pads[s].0 == 0
            && spec.pads[s].1 == 0
            && role(&spec.kernel, ConvRole::S(s)).is_some_and(|p| kernel[p] == 1)
    });
    let want = last(spec.rank());
    if !still || spec.groups != 1 || spec.input != want || spec.output != want {
        return Ok(None);
    }
    let kept: Vec<usize> =
        (0..kernel.len()).filter(|&i| matches!(spec.kernel[i], ConvRole::N | ConvRole::C)).collect();
    let dims: Vec<Dim> = kept.iter().map(|&i| kernel[i].clone()).collect();
    let Some(c) = kept.iter().position(|&i| spec.kernel[i] == ConvRole::C) else { return Ok(None) };
    let k = rw.reshape(k, &dims)?;
    let op = Op::Contract { batch: Vec::new(), over: vec![(want.len() - 1, c)], acc };
    Ok(Some(rw.emit(op, &[x, k])?))
}

/// The operand and order of a permutation of something that is not a constant.
fn permute_of(rw: &Rewriter<'_>, v: ValueId) -> Option<(ValueId, Vec<usize>)> {
    rw.permute_of(v).filter(|(x, _)| rw.constant(*x).is_none()).map(|(x, p)| (x, p.to_vec()))
}

/// Whether a value can be had in another order without moving it: constants, what is repeated, dims of 1, what is there already.
fn moves_freely(rw: &Rewriter<'_>, v: ValueId, perm: &[usize]) -> bool {
    let dims = rw.graph.dims(v);
    rw.constant(v).is_some()
        || rw.permute_of(v).is_some_and(|(x, _)| rw.constant(x).is_some())
        || rw.broadcast_of(v).is_some()
        || perm.iter().filter(|&&p| dims[p] != 1).is_sorted()
        || rw.existing(&Op::Permute { perm: perm.to_vec() }, &[v]).is_some()
}

/// The permutation that all operands have or can be given, if any has one.
fn common(rw: &Rewriter<'_>, xs: &[ValueId]) -> Option<Vec<usize>> {
    let perm = xs.iter().find_map(|&v| permute_of(rw, v).filter(|_| rw.movable_uses(v)).map(|(_, p)| p))?;
    let inv = inverse(&perm);
    let fits = |&v: &ValueId| match permute_of(rw, v) {
        Some((_, p)) if p == perm => true,
        _ => moves_freely(rw, v, &inv),
    };
    xs.iter().all(fits).then_some(perm)
}

fn moved(
    rw: &mut Rewriter<'_>,
    xs: &[ValueId],
    perm: &[usize],
) -> Result<Vec<ValueId>, tongtu_graph::GraphError> {
    let inv = inverse(perm);
    xs.iter().map(|&v| rw.permute(v, &inv)).collect()
}

fn sink_elementwise(rw: &mut Rewriter<'_>, op: &Op, xs: &[ValueId]) -> Rewritten {
    let Some(perm) = common(rw, xs) else { return Ok(None) };
    let xs = moved(rw, xs, &perm)?;
    let y = rw.one(op.clone(), &xs)?;
    Ok(Some(vec![rw.permute(y, &perm)?]))
}

/// `f(reshape(x))` to `reshape(f(x))`.
fn sink_reshaped(rw: &mut Rewriter<'_>, op: &Op, xs: &[ValueId]) -> Rewritten {
    // A reshape by more than dims of 1 has to stay where others need it too.
    let plain = |rw: &Rewriter<'_>, v: ValueId| match rw.def(v) {
        Some((Op::Reshape { dims }, x)) => {
            let alone = same_but_ones(dims, rw.graph.dims(x))
                || rw.single_use(v)
                || rw.apart() && rw.pointwise_uses(v);
            Some(x).filter(|_| alone && rw.constant(x).is_none())
        }
        _ => None,
    };
    let Some((first, to)) = xs.iter().find_map(|&v| Some((plain(rw, v)?, rw.dims(v)))) else {
        return Ok(None);
    };
    let fits = |rw: &Rewriter<'_>, inner: &[Dim]| {
        xs.iter().all(|&v| {
            plain(rw, v).is_some_and(|x| rw.graph.dims(x) == inner)
                || regrouped(rw, v, inner).is_some()
                || rw.constant(v).is_some() && same_but_ones(rw.graph.dims(v), inner)
        })
    };
    let mut inner = rw.dims(first);
    if !fits(rw, &inner) {
        // What splits dims stays before, what joins them comes after.
        let Some((split, _)) = joins(rw, first, &to) else { return Ok(None) };
        let others = |v: ValueId| plain(rw, v) == Some(first) || regrouped(rw, v, &split).is_some();
        if !xs.iter().all(|&v| others(v)) {
            return Ok(None);
        }
        inner = split;
    }
    let types = rw.infer(op, xs)?;
    let Some((_, dims)) = types.first().and_then(|t| t.as_tensor()) else { return Ok(None) };
    let dims = dims.to_vec();
    let xs = xs.iter().map(|&v| rw.reshape(v, &inner)).collect::<Result<Vec<_>, _>>()?;
    let y = rw.one(op.clone(), &xs)?;
    Ok(Some(vec![rw.reshape(y, &dims)?]))
}

/// For a reshape of a permutation that splits and joins dims: the dims between, and the result dim of each.
fn joins(rw: &Rewriter<'_>, x: ValueId, to: &[Dim]) -> Option<(Vec<Dim>, Vec<usize>)> {
    permute_of(rw, x).filter(|_| rw.apart())?;
    between(rw.graph.dims(x), to).filter(|(split, _)| split != to)
}

/// A reduction over all parts of joined dims needs them not to be joined.
fn reduce_parts(rw: &mut Rewriter<'_>, op: &Op, xs: &[ValueId]) -> Rewritten {
    let (Op::Reduce { combiner, axes }, &[x]) = (op, xs) else { return Ok(None) };
    let Some((Op::Reshape { dims }, z)) = rw.def(x) else { return Ok(None) };
    let Some((split, of)) = joins(rw, z, dims) else { return Ok(None) };
    let types = rw.infer(op, xs)?;
    let Some((_, out)) = types.first().and_then(|t| t.as_tensor()) else { return Ok(None) };
    let out = out.to_vec();
    let inner: Vec<usize> = (0..of.len()).filter(|&i| axes.contains(&of[i])).collect();
    let y = rw.reshape(z, &split)?;
    let r = rw.one(Op::Reduce { combiner: *combiner, axes: inner }, &[y])?;
    Ok(Some(vec![rw.reshape(r, &out)?]))
}

/// Operations along one or several dims of operands in the same order.
fn sink_along(rw: &mut Rewriter<'_>, op: &Op, xs: &[ValueId]) -> Rewritten {
    let Some(perm) = common(rw, xs) else { return Ok(None) };
    let mut result = perm.clone();
    let new = match op {
        Op::Concat { axis } => Op::Concat { axis: perm[*axis] },
        Op::Sort { axis, descending } => Op::Sort { axis: perm[*axis], descending: *descending },
        Op::Scan { combiner, axis, exclusive, reverse } => {
            Op::Scan { combiner: *combiner, axis: perm[*axis], exclusive: *exclusive, reverse: *reverse }
        }
        Op::Reduce { combiner, axes } => {
            let mut inner: Vec<usize> = axes.iter().map(|&a| perm[a]).collect();
            inner.sort_unstable();
            // The dims left, numbered anew.
            result = (0..perm.len()).filter(|i| !axes.contains(i)).map(|i| perm[i]).collect();
            for r in &mut result {
                *r -= inner.partition_point(|a| a < r);
            }
            Op::Reduce { combiner: *combiner, axes: inner }
        }
        _ => return Ok(None),
    };
    let xs = moved(rw, xs, &perm)?;
    let out = rw.emit(new, &xs)?;
    Ok(Some(out.into_iter().map(|v| rw.permute(v, &result)).collect::<Result<_, _>>()?))
}

/// Operations with one attribute for every dim.
fn sink_each(rw: &mut Rewriter<'_>, op: &Op, x: ValueId, inputs: &[ValueId]) -> Rewritten {
    let Some((z, perm)) = permute_of(rw, x) else { return Ok(None) };
    if inputs.len() > 1 && !matches!(op, Op::Pad { .. }) {
        return Ok(None);
    }
    let inv = inverse(&perm);
    fn pick<T: Clone>(list: &[T], inv: &[usize]) -> Vec<T> {
        inv.iter().map(|&i| list[i].clone()).collect()
    }
    let new = match op {
        Op::Slice { start, len, step } => {
            Op::Slice { start: pick(start, &inv), len: pick(len, &inv), step: pick(step, &inv) }
        }
        Op::Pad { low, high } => Op::Pad { low: pick(low, &inv), high: pick(high, &inv) },
        Op::WindowReduce { combiner, spec } => Op::WindowReduce {
            combiner: *combiner,
            spec: WindowSpec {
                window: pick(&spec.window, &inv),
                strides: pick(&spec.strides, &inv),
                pads: pick(&spec.pads, &inv),
                dilation: pick(&spec.dilation, &inv),
            },
        },
        _ => return Ok(None),
    };
    let mut operands = inputs.to_vec();
    operands[0] = z;
    let y = rw.one(new, &operands)?;
    Ok(Some(vec![rw.permute(y, &perm)?]))
}

fn sink_take(rw: &mut Rewriter<'_>, axis: usize, x: ValueId, i: ValueId) -> Rewritten {
    let Some((z, perm)) = permute_of(rw, x) else { return Ok(None) };
    let mut result = perm.to_vec();
    let inner = perm[axis];
    if rw.rank(i) == 0 {
        result.remove(axis);
        result.iter_mut().filter(|r| **r > inner).for_each(|r| *r -= 1);
    }
    let y = rw.one(Op::Take { axis: inner }, &[z, i])?;
    Ok(Some(vec![rw.permute(y, &result)?]))
}

/// A reshape that splits dims, or merges dims that lie together before the permutation too.
fn sink_reshape(rw: &mut Rewriter<'_>, dims: &[Dim], x: ValueId) -> Rewritten {
    let Some((z, perm)) = permute_of(rw, x) else { return Ok(None) };
    let have = rw.dims(z);
    let wide = wide_dims(&have);
    if wide.len() < have.len() {
        // Dims of 1 need no permutation.
        let kept: Vec<Dim> = wide.iter().map(|&i| have[i].clone()).collect();
        let order: Vec<usize> = perm.iter().filter_map(|p| wide.iter().position(|w| w == p)).collect();
        let v = rw.reshape(z, &kept)?;
        let v = rw.permute(v, &order)?;
        return Ok(Some(vec![rw.reshape(v, dims)?]));
    }
    let Some(groups) = groups(rw.graph.dims(x), dims) else { return Ok(None) };
    if groups.iter().any(|(from, _)| perm[from.clone()].windows(2).any(|w| w[1] != w[0] + 1)) {
        return apart(rw, dims, z, &perm, &groups);
    }
    // Groups in the operand's own order; those without operand dims (new dims of 1) come last.
    let mut order: Vec<usize> = (0..groups.len()).collect();
    order.sort_by_key(|&g| groups[g].0.clone().next().map_or(usize::MAX, |i| perm[i]));
    let mut inner = Vec::new();
    let mut result = vec![0; dims.len()];
    for g in order {
        for i in groups[g].1.clone() {
            result[i] = inner.len();
            inner.push(dims[i].clone());
        }
    }
    let y = rw.reshape(z, &inner)?;
    Ok(Some(vec![rw.permute(y, &result)?]))
}

type Groups = [(std::ops::Range<usize>, std::ops::Range<usize>)];

/// `reshape(permute(z))` where joined dims do not lie together in `z`: they are brought together first, with the groups in the
/// order of `z`, and the rest of the permutation comes after.
fn apart(rw: &mut Rewriter<'_>, dims: &[Dim], z: ValueId, perm: &[usize], groups: &Groups) -> Rewritten {
    let mut order: Vec<usize> = (0..groups.len()).collect();
    order.sort_by_key(|&g| groups[g].0.clone().map(|i| perm[i]).max().unwrap_or(usize::MAX));
    // Groups that are split as well would only be moved twice.
    let joined = |(from, to): &(std::ops::Range<usize>, std::ops::Range<usize>)| {
        to.len() == 1 || perm[from.clone()].windows(2).all(|w| w[1] == w[0] + 1)
    };
    if order.is_sorted() || !rw.apart() || !groups.iter().all(joined) {
        return Ok(None);
    }
    let first: Vec<usize> = order.iter().flat_map(|&g| groups[g].0.clone()).map(|i| perm[i]).collect();
    let (mut inner, mut result) = (Vec::new(), vec![0; dims.len()]);
    for g in order {
        for i in groups[g].1.clone() {
            result[i] = inner.len();
            inner.push(dims[i].clone());
        }
    }
    let y = rw.permute(z, &first)?;
    let y = rw.reshape(y, &inner)?;
    Ok(Some(vec![rw.permute(y, &result)?]))
}

/// What is left once permutations have met: `permute(reshape(permute(z)))` moves elements once, not twice.
pub(super) fn finish(rw: &mut Rewriter<'_>, op: &Op, inputs: &[ValueId]) -> Rewritten {
    match (op, inputs) {
        (Op::Permute { perm }, &[x]) => {
            let Some((Op::Reshape { dims }, y)) = rw.def(x) else { return Ok(None) };
            if permute_of(rw, y).is_none() || !rw.single_use(x) {
                return Ok(None);
            }
            let have = rw.dims(y);
            let Some(groups) = groups(&have, dims) else { return Ok(None) };
            // For each result dim of the reshape its group; every group is moved whole.
            if groups.iter().any(|(_, to)| to.len() != 1) {
                return Ok(None);
            }
            let dims: Vec<Dim> = perm.iter().map(|&p| dims[p].clone()).collect();
            let order: Vec<usize> = perm.iter().flat_map(|&p| groups[p].0.clone()).collect();
            let y = rw.permute(y, &order)?;
            Ok(Some(vec![rw.reshape(y, &dims)?]))
        }
        (Op::Reshape { .. }, _) => Ok(None),
        _ => rule(rw, op, inputs),
    }
}
