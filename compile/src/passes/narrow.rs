//! Integer contractions of values that fit a byte.
//!
//! Quantised models multiply bytes less a zero point, as 32-bit integers. `(x - z) w` is `x w - z Σ w`, whose operands are
//! bytes in memory and for matrix units; in integers that wrap both are the same.

use tongtu_graph::{Combiner, ConvRole, ConvSpec, GraphError, Op, ValueId};
use tongtu_tensor::dim::Dim;
use tongtu_tensor::scalar::Binary;
use tongtu_tensor::{DType, Num, Tensor};

use super::rewrite::{Rewriter, Rewritten};

/// Contractions of 8-bit values with a constant, on 8-bit operands.
pub(super) fn rule(rw: &mut Rewriter<'_>, op: &Op, inputs: &[ValueId]) -> Rewritten {
    if let (Op::Conv { spec, acc: DType::I32 }, &[x, k]) = (op, inputs) {
        return conv(rw, spec, x, k);
    }
    let (Op::Contract { acc: DType::I32, .. }, &[x, y]) = (op, inputs) else { return Ok(None) };
    for (side, v, w) in [(0, x, y), (1, y, x)] {
        if rw.dtype(v) == DType::I32
            && let Some((byte, zero)) = less_zero(rw, v)?
            && let Some(to) = byte_type(rw, w)
        {
            return narrow(rw, op, side, [byte, w], zero, to).map(Some);
        }
    }
    Ok(None)
}

/// The sums of a constant of integers over some dims, or how they are computed.
fn sums(rw: &mut Rewriter<'_>, w: ValueId, axes: Vec<usize>) -> Result<ValueId, GraphError> {
    if let Some(t) = rw.constant(w).and_then(|t| known_sums(t, &axes)) {
        return rw.tensor(t);
    }
    let wide = rw.convert(w, DType::I32)?;
    rw.one(Op::Reduce { combiner: Combiner::Add, axes }, &[wide])
}

fn known_sums(t: &Tensor, axes: &[usize]) -> Option<Tensor> {
    let elements: Vec<i32> = match t.dtype() {
        _ if t.is_absent() => return None,
        DType::I32 => t.to_vec().ok()?,
        DType::I8 => t.to_vec::<i8>().ok()?.into_iter().map(i32::from).collect(),
        DType::U8 => t.to_vec::<u8>().ok()?.into_iter().map(i32::from).collect(),
        _ => return None,
    };
    let shape = t.shape();
    let kept: Vec<usize> = (0..shape.len()).filter(|d| !axes.contains(d)).map(|d| shape[d]).collect();
    // From one element to the next along each dim, in the result.
    let mut steps = vec![0usize; shape.len()];
    let mut step = 1;
    for d in (0..shape.len()).rev().filter(|d| !axes.contains(d)) {
        steps[d] = step;
        step *= shape[d];
    }
    let mut sums = vec![0i32; step];
    let (&last, &along) = (shape.last()?, steps.last()?);
    let mut index = vec![0usize; shape.len()];
    for row in elements.chunks(last.max(1)) {
        let at: usize = index.iter().zip(&steps).map(|(i, s)| i * s).sum();
        for (i, &x) in row.iter().enumerate() {
            sums[at + i * along] = sums[at + i * along].wrapping_add(x);
        }
        for d in (0..shape.len() - 1).rev() {
            index[d] += 1;
            if index[d] < shape[d] {
                break;
            }
            index[d] = 0;
        }
    }
    Tensor::from_slice(&kept, &sums).ok()
}

/// A convolution of 8-bit values with a constant: what is put around them is their zero point.
fn conv(rw: &mut Rewriter<'_>, spec: &ConvSpec, x: ValueId, k: ValueId) -> Rewritten {
    if rw.dtype(x) != DType::I32 || spec.input_dilation.iter().any(|&d| d != 1) {
        return Ok(None);
    }
    let Some(to) = byte_type(rw, k) else { return Ok(None) };
    let Some((byte, zero)) = less_zero(rw, x)? else { return Ok(None) };
    let small = rw.convert(k, to)?;
    let zero = zero.filter(|&z| rw.splat(z).is_none_or(|n| n.to_f64() != 0.0));
    let Some(z) = zero else {
        return Ok(Some(vec![rw.one(Op::Conv { spec: spec.clone(), acc: DType::I32 }, &[byte, small])?]));
    };
    let mut spec = spec.clone();
    let mut around = vec![(Dim::from(0), Dim::from(0)); rw.rank(byte)];
    for (i, r) in spec.input.iter().enumerate() {
        if let ConvRole::S(s) = r {
            around[i] = std::mem::replace(&mut spec.pads[*s], (Dim::from(0), Dim::from(0)));
        }
    }
    let mut padded = byte;
    if around.iter().any(|(l, h)| *l != 0 || *h != 0) {
        let value = rw.convert(z, rw.dtype(byte))?;
        let (low, high) = around.into_iter().unzip();
        padded = rw.one(Op::Pad { low, high }, &[byte, value])?;
    }
    let axes = (0..spec.kernel.len()).filter(|&i| spec.kernel[i] != ConvRole::N).collect();
    let out = spec.output.iter().position(|r| *r == ConvRole::C).unwrap_or(1);
    let product = rw.one(Op::Conv { spec, acc: DType::I32 }, &[padded, small])?;
    let sums = sums(rw, k, axes)?;
    let own = rw.dims(sums);
    let z = rw.broadcast(z, &own, &[])?;
    let shift = rw.binary(Binary::Mul, sums, z)?;
    let dims = rw.dims(product);
    let shift = rw.broadcast(shift, &dims, &[out])?;
    Ok(Some(vec![rw.binary(Binary::Sub, product, shift)?]))
}

/// For an 8-bit value as 32-bit integers, or such a value less one number, the 8-bit value and the number.
fn less_zero(rw: &mut Rewriter<'_>, v: ValueId) -> Result<Option<(ValueId, Option<ValueId>)>, GraphError> {
    let byte = |rw: &Rewriter<'_>, v: ValueId| match rw.def(v) {
        Some((Op::Cast { .. }, x)) => (rw.dtype(x).is_int() && rw.dtype(x).bits() == 8).then_some(x),
        _ => None,
    };
    if let Some(x) = byte(rw, v) {
        return Ok(Some((x, None)));
    }
    let (x, z, less) = match rw.node(v).map(|n| (&n.op, &n.inputs[..])) {
        Some((Op::Binary(Binary::Sub), &[x, z])) => (x, z, true),
        Some((Op::Binary(Binary::Add), &[x, z])) => (x, z, false),
        _ => return Ok(None),
    };
    let Some(x) = byte(rw, x) else { return Ok(None) };
    if less {
        let z = rw.broadcast_of(z).map(|b| b.0).filter(|&z| rw.rank(z) == 0);
        return Ok(z.map(|z| (x, Some(z))));
    }
    // A known number less is its negative more.
    let Some(Num::Int(z)) = rw.splat(z) else { return Ok(None) };
    let z = rw.tensor(Tensor::scalar(DType::I32, Num::Int(-z)))?;
    Ok(Some((x, Some(z))))
}

/// The 8-bit type that holds all elements of a constant of 8- or 32-bit integers.
fn byte_type(rw: &Rewriter<'_>, w: ValueId) -> Option<DType> {
    let t = rw.constant(w).filter(|t| !t.is_absent())?;
    if t.dtype().bits() == 8 && t.dtype().is_int() {
        return Some(t.dtype());
    }
    let all = t.to_vec::<i32>().ok()?;
    let (low, high) = all.iter().fold((i32::MAX, i32::MIN), |(low, high), &i| (low.min(i), high.max(i)));
    match (low, high) {
        (-128.., ..=127) => Some(DType::I8),
        (0.., ..=255) => Some(DType::U8),
        _ => None,
    }
}

fn narrow(
    rw: &mut Rewriter<'_>,
    op: &Op,
    side: usize,
    [byte, w]: [ValueId; 2],
    zero: Option<ValueId>,
    to: DType,
) -> Result<Vec<ValueId>, GraphError> {
    let Op::Contract { batch, over, .. } = op else { return Ok(Vec::new()) };
    let small = rw.convert(w, to)?;
    let operands = if side == 0 { [byte, small] } else { [small, byte] };
    let product = rw.one(op.clone(), &operands)?;
    let Some(z) = zero else { return Ok(vec![product]) };
    // The constant's sums, in the order of its dims in the result.
    let of = |p: &(usize, usize)| if side == 0 { p.1 } else { p.0 };
    let (pairs, summed): (Vec<usize>, Vec<usize>) =
        (batch.iter().map(of).collect(), over.iter().map(of).collect());
    let free: Vec<usize> = (0..rw.rank(w)).filter(|d| !pairs.contains(d) && !summed.contains(d)).collect();
    let kept: Vec<usize> = (0..rw.rank(w)).filter(|d| !summed.contains(d)).collect();
    let mut axes = summed;
    axes.sort_unstable();
    let sums = sums(rw, w, axes)?;
    let order: Vec<usize> =
        pairs.iter().chain(&free).map(|d| kept.iter().position(|k| k == d).unwrap_or(0)).collect();
    let sums = rw.permute(sums, &order)?;
    let dims = rw.dims(product);
    let start = if side == 0 { dims.len() - free.len() } else { pairs.len() };
    let places: Vec<usize> = (0..pairs.len()).chain(start..start + free.len()).collect();
    let own = rw.dims(sums);
    let z = rw.broadcast(z, &own, &[])?;
    let shift = rw.binary(Binary::Mul, sums, z)?;
    let shift = rw.broadcast(shift, &dims, &places)?;
    Ok(vec![rw.binary(Binary::Sub, product, shift)?])
}
