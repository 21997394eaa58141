//! Transposed convolutions as plain ones.

use std::collections::BTreeMap;

use tongtu_graph::op::ConvRole;
use tongtu_graph::{ConvSpec, GraphError, Op, ValueId};
use tongtu_tensor::dim::Dim;
use tongtu_tensor::{DType, Num};

use super::linear::role;
use super::rewrite::{Rewriter, Rewritten};

/// Most phases that become kernels of their own.
const MAX_PHASES: i64 = 16;

/// One residue of output positions along a dim: its taps form a plain convolution.
#[derive(Clone, Debug)]
struct Phase {
    /// First tap; the others follow at the input dilation.
    tap: i64,
    /// Number of taps.
    taps: i64,
    /// Padding before.
    low: i64,
}

/// A convolution over a dilated operand, its dims in the order batch, spatial, channels. Output positions that differ by a
/// multiple of the dilation use the same taps, so that each residue is a plain convolution; their results are interleaved.
/// Where there are too many residues, or steps and dilations meet, zeros are put between the elements.
pub(super) fn rule(rw: &mut Rewriter<'_>, op: &Op, inputs: &[ValueId]) -> Rewritten {
    let (Op::Conv { spec, acc }, &[x, k]) = (op, inputs) else { return Ok(None) };
    let rank = spec.rank();
    let in_order = |roles: &[ConvRole]| {
        roles.first() == Some(&ConvRole::N)
            && roles.last() == Some(&ConvRole::C)
            && (0..rank).all(|s| roles.get(s + 1) == Some(&ConvRole::S(s)))
    };
    if spec.input_dilation.iter().all(|&d| d == 1) || !in_order(&spec.input) || !in_order(&spec.output) {
        return Ok(None);
    }
    let count: i64 = spec.input_dilation.iter().fold(1i64, |n, &d| n.saturating_mul(d));
    let simple = (0..rank).all(|s| {
        spec.input_dilation[s] == 1
            || spec.strides[s] == 1 && spec.dilation[s] == 1 && spec.pads[s].0.as_const().is_some()
    });
    let new = if simple && count <= MAX_PHASES { phases(rw, spec, *acc, x, k)? } else { None };
    match new {
        Some(v) => Ok(Some(vec![v])),
        None => Ok(Some(vec![with_zeros(rw, spec, *acc, x, k)?])),
    }
}

/// Puts the zeros between elements, and convolves without input dilation.
fn with_zeros(
    rw: &mut Rewriter<'_>,
    spec: &ConvSpec,
    acc: DType,
    x: ValueId,
    k: ValueId,
) -> Result<ValueId, GraphError> {
    let dims = rw.dims(x);
    let (mut split, mut joined) = (vec![dims[0].clone()], vec![dims[0].clone()]);
    let mut high = vec![Dim::from(0)];
    let mut plain = spec.clone();
    for s in 0..spec.rank() {
        let (n, d) = (&dims[s + 1], spec.input_dilation[s]);
        split.push(n.clone());
        high.push(Dim::from(0));
        if d > 1 {
            split.push(Dim::from(1));
            high.push(Dim::from(d - 1));
        }
        joined.push(n * d);
        plain.input_dilation[s] = 1;
        // The zeros after the last element are not part of the operand.
        let (l, h) = spec.pads[s].clone();
        plain.pads[s] = (l, h - (d - 1));
    }
    split.push(dims[spec.rank() + 1].clone());
    high.push(Dim::from(0));
    joined.push(dims[spec.rank() + 1].clone());
    let low = vec![Dim::from(0); high.len()];
    let dtype = rw.dtype(x);
    let zero = rw.full(dtype, dtype.decode(dtype.encode(Num::Int(0), Default::default())), &[])?;
    let v = rw.reshape(x, &split)?;
    let v = rw.one(Op::Pad { low, high }, &[v, zero])?;
    let v = rw.reshape(v, &joined)?;
    rw.one(Op::Conv { spec: plain, acc }, &[v, k])
}

fn phases(
    rw: &mut Rewriter<'_>,
    spec: &ConvSpec,
    acc: DType,
    x: ValueId,
    k: ValueId,
) -> Result<Option<ValueId>, GraphError> {
    let rank = spec.rank();
    let kernel = rw.dims(k);
    let op = Op::Conv { spec: spec.clone(), acc };
    let types = rw.infer(&op, &[x, k])?;
    let Some((_, out)) = types.first().and_then(|t| t.as_tensor()) else { return Ok(None) };
    let out = out.to_vec();
    let mut of: Vec<Vec<Phase>> = Vec::new();
    for s in 0..rank {
        let d = spec.input_dilation[s];
        let taps = role(&spec.kernel, ConvRole::S(s)).and_then(|p| kernel[p].as_const());
        let (Some(taps), Some(low)) = (taps, spec.pads[s].0.as_const()) else {
            // Nothing is dilated here; the dim is carried along as it is.
            if d == 1 {
                of.push(Vec::new());
                continue;
            }
            return Ok(None);
        };
        if d == 1 {
            of.push(Vec::new());
            continue;
        }
        let phase = |r: i64| {
            let tap = (low - r).rem_euclid(d);
            Phase { tap, taps: (taps - tap + d - 1).max(0) / d, low: (low - r - tap).div_euclid(d) }
        };
        of.push((0..d).map(phase).collect());
    }
    // Positions in each residue, the same for all of them; what is too much is cut off at the end.
    let each: Vec<Dim> = (0..rank).map(|s| out[s + 1].ceildiv(&Dim::from(spec.input_dilation[s]))).collect();
    let mut residues = vec![vec![0i64; rank]];
    loop {
        let mut at = residues[residues.len() - 1].clone();
        let Some(s) = (0..rank).rev().find(|&s| at[s] + 1 < spec.input_dilation[s]) else { break };
        at[s] += 1;
        at[s + 1..].fill(0);
        residues.push(at);
    }
    let alike = of.iter().all(|p| p.windows(2).all(|w| (w[0].taps, w[0].low) == (w[1].taps, w[1].low)));
    if alike && spec.groups == 1 && of.iter().flatten().all(|p| p.taps > 0) {
        return together(rw, spec, acc, x, k, &of, &residues, &each, &out).map(Some);
    }
    let mut parts: BTreeMap<Vec<i64>, ValueId> = BTreeMap::new();
    for at in residues {
        let part = one_phase(rw, spec, acc, x, k, &of, &at, &each)?;
        parts.insert(at, part);
    }
    // Joined from the last dim on: [n, q…, c] to [n, q…, d, …, c] along the dim after each q.
    let channels = out[rank + 1].clone();
    for s in (0..rank).rev().filter(|&s| spec.input_dilation[s] > 1) {
        let mut dims = vec![out[0].clone()];
        dims.extend(
            (0..rank).map(|t| if t > s { &each[t] * spec.input_dilation[t] } else { each[t].clone() }),
        );
        dims.push(channels.clone());
        let mut stacked = dims.clone();
        stacked.insert(s + 2, Dim::from(1));
        let mut joined = dims.clone();
        joined[s + 1] = &each[s] * spec.input_dilation[s];
        let mut next = BTreeMap::new();
        let mut keys: Vec<Vec<i64>> = parts.keys().cloned().collect();
        keys.retain(|key| key[s] == 0);
        for key in keys {
            let mut pieces = Vec::new();
            for r in 0..spec.input_dilation[s] {
                let mut key = key.clone();
                key[s] = r;
                let Some(&v) = parts.get(&key) else { return Ok(None) };
                pieces.push(rw.reshape(v, &stacked)?);
            }
            let v = rw.one(Op::Concat { axis: s + 2 }, &pieces)?;
            next.insert(key, rw.reshape(v, &joined)?);
        }
        parts = next;
    }
    let Some(&whole) = parts.values().next() else { return Ok(None) };
    Ok(Some(first(rw, whole, &out)?))
}

/// All residues as the channels of one convolution, where they read the same elements.
#[allow(clippy::too_many_arguments)]
fn together(
    rw: &mut Rewriter<'_>,
    spec: &ConvSpec,
    acc: DType,
    x: ValueId,
    k: ValueId,
    of: &[Vec<Phase>],
    residues: &[Vec<i64>],
    each: &[Dim],
    out: &[Dim],
) -> Result<ValueId, GraphError> {
    let rank = spec.rank();
    let (dims, kernel) = (rw.dims(x), rw.dims(k));
    let mut pieces = Vec::new();
    for at in residues {
        pieces.push(taps(rw, spec, k, of, at)?);
    }
    let axis = role(&spec.kernel, ConvRole::N).unwrap_or(0);
    let kernels = rw.one(Op::Concat { axis }, &pieces)?;
    let plain = plain(spec, of, &residues[0], each, &dims);
    let y = rw.one(Op::Conv { spec: plain, acc }, &[x, kernels])?;
    // [n, q…, d… × c] to [n, (q, d)…, c].
    let wide: Vec<usize> = (0..rank).filter(|&s| spec.input_dilation[s] > 1).collect();
    let mut split = vec![out[0].clone()];
    split.extend(each.iter().cloned());
    split.extend(wide.iter().map(|&s| Dim::from(spec.input_dilation[s])));
    split.push(kernel[axis].clone());
    let mut order = vec![0];
    let mut joined = vec![out[0].clone()];
    for (s, n) in each.iter().enumerate() {
        order.push(1 + s);
        order.extend(wide.iter().position(|&w| w == s).map(|i| 1 + rank + i));
        joined.push(n * spec.input_dilation[s]);
    }
    order.push(split.len() - 1);
    joined.push(kernel[axis].clone());
    let y = rw.reshape(y, &split)?;
    let y = rw.permute(y, &order)?;
    let y = rw.reshape(y, &joined)?;
    first(rw, y, out)
}

/// The first elements along every dim.
fn first(rw: &mut Rewriter<'_>, v: ValueId, len: &[Dim]) -> Result<ValueId, GraphError> {
    let (start, step) = (vec![Dim::from(0); len.len()], vec![1; len.len()]);
    rw.one(Op::Slice { start, len: len.to_vec(), step }, &[v])
}

/// The taps of a residue.
fn taps(
    rw: &mut Rewriter<'_>,
    spec: &ConvSpec,
    k: ValueId,
    of: &[Vec<Phase>],
    at: &[i64],
) -> Result<ValueId, GraphError> {
    let kernel = rw.dims(k);
    let mut start = vec![Dim::from(0); kernel.len()];
    let mut len = kernel.clone();
    let mut step = vec![1; kernel.len()];
    for s in 0..spec.rank() {
        let Some(p) = of[s].get(at[s] as usize) else { continue };
        let Some(place) = role(&spec.kernel, ConvRole::S(s)) else { continue };
        start[place] = Dim::from(p.tap);
        len[place] = Dim::from(p.taps);
        step[place] = spec.input_dilation[s];
    }
    rw.one(Op::Slice { start, len, step }, &[k])
}

/// The convolution of a residue over an operand of these dims.
fn plain(spec: &ConvSpec, of: &[Vec<Phase>], at: &[i64], each: &[Dim], dims: &[Dim]) -> ConvSpec {
    let mut plain = spec.clone();
    plain.input_dilation = vec![1; spec.rank()];
    for s in 0..spec.rank() {
        let Some(p) = of[s].get(at[s] as usize) else { continue };
        let high = &each[s] + (p.taps - 1 - p.low) - &dims[s + 1];
        plain.pads[s] = (Dim::from(p.low), high);
    }
    plain
}

/// The results at positions `q * d + at`, for `each` values of q.
#[allow(clippy::too_many_arguments)]
fn one_phase(
    rw: &mut Rewriter<'_>,
    spec: &ConvSpec,
    acc: DType,
    x: ValueId,
    k: ValueId,
    of: &[Vec<Phase>],
    at: &[i64],
    each: &[Dim],
) -> Result<ValueId, GraphError> {
    let (dims, kernel) = (rw.dims(x), rw.dims(k));
    let nothing = of.iter().zip(at).any(|(p, &r)| p.get(r as usize).is_some_and(|p| p.taps == 0));
    if nothing {
        let mut out = vec![dims[0].clone()];
        out.extend(each.iter().cloned());
        out.extend(role(&spec.kernel, ConvRole::N).map(|p| kernel[p].clone()));
        return rw.full(acc, acc.decode(acc.encode(Num::Int(0), Default::default())), &out);
    }
    let taps = taps(rw, spec, k, of, at)?;
    rw.one(Op::Conv { spec: plain(spec, of, at, each, &dims), acc }, &[x, taps])
}
