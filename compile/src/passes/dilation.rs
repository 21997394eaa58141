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
    let mut parts: BTreeMap<Vec<i64>, ValueId> = BTreeMap::new();
    let mut at = vec![0i64; rank];
    loop {
        let part = one_phase(rw, spec, acc, x, k, &of, &at, &each)?;
        parts.insert(at.clone(), part);
        let Some(s) = (0..rank).rev().find(|&s| at[s] + 1 < spec.input_dilation[s]) else { break };
        at[s] += 1;
        at[s + 1..].fill(0);
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
    let step = vec![1; out.len()];
    let start = vec![Dim::from(0); out.len()];
    Ok(Some(rw.one(Op::Slice { start, len: out, step }, &[whole])?))
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
    let rank = spec.rank();
    let (dims, kernel) = (rw.dims(x), rw.dims(k));
    let mut plain = spec.clone();
    plain.input_dilation = vec![1; rank];
    let mut start = vec![Dim::from(0); kernel.len()];
    let mut len = kernel.clone();
    let mut step = vec![1; kernel.len()];
    let mut nothing = false;
    for s in 0..rank {
        let Some(p) = of[s].get(at[s] as usize) else { continue };
        let Some(place) = role(&spec.kernel, ConvRole::S(s)) else { continue };
        nothing |= p.taps == 0;
        start[place] = Dim::from(p.tap);
        len[place] = Dim::from(p.taps);
        step[place] = spec.input_dilation[s];
        let high = &each[s] + (p.taps - 1 - p.low) - &dims[s + 1];
        plain.pads[s] = (Dim::from(p.low), high);
    }
    if nothing {
        let mut out = vec![dims[0].clone()];
        out.extend(each.iter().cloned());
        out.extend(role(&spec.kernel, ConvRole::N).map(|p| kernel[p].clone()));
        return rw.full(acc, acc.decode(acc.encode(Num::Int(0), Default::default())), &out);
    }
    let taps = rw.one(Op::Slice { start, len, step }, &[k])?;
    rw.one(Op::Conv { spec: plain, acc }, &[x, taps])
}
