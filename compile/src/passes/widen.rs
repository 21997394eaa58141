//! Products of elements of a type that has no zero: what a kernel reads past the end of an operand must be zero, so such
//! operands become `f32` first, which holds all their values.

use tongtu_graph::{Op, ValueId};
use tongtu_tensor::DType;

use super::rewrite::{Rewriter, Rewritten};

pub(super) fn rule(rw: &mut Rewriter<'_>, op: &Op, inputs: &[ValueId]) -> Rewritten {
    let product = matches!(op, Op::Contract { .. } | Op::Conv { .. });
    if !product || inputs.iter().all(|&v| rw.dtype(v) != DType::F8E8M0) {
        return Ok(None);
    }
    let mut wide = Vec::new();
    for &v in inputs {
        wide.push(if rw.dtype(v) == DType::F8E8M0 { rw.convert(v, DType::F32)? } else { v });
    }
    rw.emit(op.clone(), &wide).map(Some)
}
