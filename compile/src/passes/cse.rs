//! Equality of operations, by which equal nodes are shared.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use tongtu_graph::{AttrValue, Op, ValueId};
use tongtu_tensor::Tensor;

/// Constants of up to this many bytes are compared by content, larger ones by where they lie.
const BY_CONTENT: usize = 4096;

/// A hash of an operation with its operands; `None` for those that are never shared.
pub(super) fn key(op: &Op, inputs: &[ValueId]) -> Option<u64> {
    if matches!(op, Op::Bind { .. } | Op::If { .. } | Op::While { .. } | Op::Host { .. }) {
        return None;
    }
    let mut h = DefaultHasher::new();
    op.name().hash(&mut h);
    inputs.hash(&mut h);
    for (_, v) in op.attrs() {
        hash_attr(&v, &mut h);
    }
    Some(h.finish())
}

fn hash_attr(value: &AttrValue, h: &mut DefaultHasher) {
    std::mem::discriminant(value).hash(h);
    match value {
        AttrValue::Int(v) => v.hash(h),
        AttrValue::Bool(v) => v.hash(h),
        AttrValue::Float(v) => v.to_bits().hash(h),
        AttrValue::Str(v) => v.hash(h),
        AttrValue::DType(v) => v.hash(h),
        AttrValue::Dim(v) => v.hash(h),
        AttrValue::Sym(v) => v.hash(h),
        AttrValue::Tensor(t) => {
            t.dtype().hash(h);
            t.shape().hash(h);
            if t.nbytes() <= BY_CONTENT && !t.is_absent() {
                t.bytes().hash(h);
            }
        }
        // Equal types and graphs are found by comparison alone.
        AttrValue::Type(_) | AttrValue::Graph(_) => {}
        AttrValue::List(items) => {
            items.len().hash(h);
            items.iter().for_each(|v| hash_attr(v, h));
        }
    }
}

/// Whether two operations do the same to the same operands. False may also mean that telling would cost too much.
pub(super) fn same(a: &Op, b: &Op) -> bool {
    a.name() == b.name() && a.attrs().iter().zip(&b.attrs()).all(|((_, x), (_, y))| same_attr(x, y))
}

fn same_attr(a: &AttrValue, b: &AttrValue) -> bool {
    match (a, b) {
        (AttrValue::Int(x), AttrValue::Int(y)) => x == y,
        (AttrValue::Bool(x), AttrValue::Bool(y)) => x == y,
        (AttrValue::Float(x), AttrValue::Float(y)) => x.to_bits() == y.to_bits(),
        (AttrValue::Str(x), AttrValue::Str(y)) => x == y,
        (AttrValue::DType(x), AttrValue::DType(y)) => x == y,
        (AttrValue::Dim(x), AttrValue::Dim(y)) => x == y,
        (AttrValue::Sym(x), AttrValue::Sym(y)) => x == y,
        (AttrValue::Tensor(x), AttrValue::Tensor(y)) => same_tensor(x, y),
        (AttrValue::Type(x), AttrValue::Type(y)) => x == y,
        (AttrValue::Graph(x), AttrValue::Graph(y)) => Arc::ptr_eq(x, y),
        (AttrValue::List(x), AttrValue::List(y)) => {
            x.len() == y.len() && x.iter().zip(y).all(|(x, y)| same_attr(x, y))
        }
        _ => false,
    }
}

fn same_tensor(a: &Tensor, b: &Tensor) -> bool {
    if a.dtype() != b.dtype() || a.shape() != b.shape() {
        return false;
    }
    if a.is_absent() || b.is_absent() {
        return a.address() == b.address();
    }
    if a.nbytes() <= BY_CONTENT {
        return a.same_bits(b);
    }
    a.is_contiguous() && b.is_contiguous() && std::ptr::eq(a.bytes().as_ptr(), b.bytes().as_ptr())
}
