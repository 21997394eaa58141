//! Elementwise operations on repeated elements: computed once, then repeated.

use tongtu_graph::{Op, ValueId};

use super::rewrite::{Rewriter, Rewritten};

/// `f(broadcast(x), broadcast(y))` to `broadcast(f(x, y))` where some dim has no elements of its own.
pub(super) fn rule(rw: &mut Rewriter<'_>, op: &Op, inputs: &[ValueId]) -> Rewritten {
    if !op.is_elementwise() {
        return Ok(None);
    }
    let mut own = Vec::new();
    for &v in inputs {
        let Some((_, axes)) = rw.broadcast_of(v) else { return Ok(None) };
        own.extend_from_slice(axes);
    }
    own.sort_unstable();
    own.dedup();
    let types = rw.infer(op, inputs)?;
    let Some((_, dims)) = types.first().and_then(|t| t.as_tensor()) else { return Ok(None) };
    if (0..dims.len()).all(|i| own.contains(&i) || dims[i] == 1) {
        return Ok(None);
    }
    let narrow: Vec<_> = own.iter().map(|&a| dims[a].clone()).collect();
    let mut operands = Vec::new();
    for &v in inputs {
        let Some((x, axes)) = rw.broadcast_of(v) else { return Ok(None) };
        let axes: Vec<usize> = axes.iter().map(|a| own.partition_point(|o| o < a)).collect();
        operands.push(rw.broadcast(x, &narrow, &axes)?);
    }
    let y = rw.one(op.clone(), &operands)?;
    let dims = dims.to_vec();
    Ok(Some(vec![rw.broadcast(y, &dims, &own)?]))
}
