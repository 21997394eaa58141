//! Integer contractions of values that fit a byte.
//!
//! Quantised models multiply bytes less a zero point, as 32-bit integers. `(x - z) w` is `x w - z Σ w`, whose operands are
//! bytes in memory and for matrix units; in integers that wrap both are the same.

use tongtu_graph::{Combiner, GraphError, Op, ValueId};
use tongtu_tensor::scalar::Binary;
use tongtu_tensor::{DType, Num};

use super::rewrite::{Rewriter, Rewritten};

/// Contractions of 8-bit values with a constant, on 8-bit operands.
pub(super) fn rule(rw: &mut Rewriter<'_>, op: &Op, inputs: &[ValueId]) -> Rewritten {
    let (Op::Contract { acc: DType::I32, .. }, &[x, y]) = (op, inputs) else { return Ok(None) };
    for (side, v, w) in [(0, x, y), (1, y, x)] {
        if rw.dtype(v) == DType::I32
            && let Some((byte, zero)) = less_zero(rw, v)
            && let Some(to) = byte_type(rw, w)
        {
            return narrow(rw, op, side, [byte, w], zero, to).map(Some);
        }
    }
    Ok(None)
}

/// For an 8-bit value as 32-bit integers, or such a value less one number, the 8-bit value and the number.
fn less_zero(rw: &Rewriter<'_>, v: ValueId) -> Option<(ValueId, Option<ValueId>)> {
    let byte = |rw: &Rewriter<'_>, v: ValueId| match rw.def(v) {
        Some((Op::Cast { .. }, x)) => (rw.dtype(x).is_int() && rw.dtype(x).bits() == 8).then_some(x),
        _ => None,
    };
    if let Some(x) = byte(rw, v) {
        return Some((x, None));
    }
    let node = rw.node(v)?;
    let (Op::Binary(Binary::Sub), &[x, z]) = (&node.op, &node.inputs[..]) else { return None };
    let (z, _) = rw.broadcast_of(z).filter(|(z, _)| rw.rank(*z) == 0)?;
    Some((byte(rw, x)?, Some(z)))
}

/// The 8-bit type that holds all elements of a constant of 8- or 32-bit integers.
fn byte_type(rw: &Rewriter<'_>, w: ValueId) -> Option<DType> {
    let t = rw.constant(w).filter(|t| !t.is_absent())?;
    if t.dtype().bits() == 8 && t.dtype().is_int() {
        return Some(t.dtype());
    }
    let fits =
        |low: i128, high: i128| t.iter().all(|n| matches!(n, Num::Int(i) if (low..=high).contains(&i)));
    match t.dtype() {
        DType::I32 if fits(-128, 127) => Some(DType::I8),
        DType::I32 if fits(0, 255) => Some(DType::U8),
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
    let wide = rw.convert(w, DType::I32)?;
    let sums = rw.one(Op::Reduce { combiner: Combiner::Add, axes }, &[wide])?;
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
