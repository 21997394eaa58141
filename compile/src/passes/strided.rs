//! Moving elements of constants: permuted, sliced, repeated, padded and joined at memory speed.

use std::borrow::Cow;

use tongtu_tensor::{Tensor, TensorError};

/// Elements per side of a block where a copy transposes.
const BLOCK: usize = 32;

/// One dim of a copy: its length, and its steps in source and target, in elements.
#[derive(Clone, Copy, Debug)]
struct Axis {
    len: usize,
    from: isize,
    to: isize,
}

/// Steps of a dense row-major array.
fn dense_strides(shape: &[usize]) -> Vec<isize> {
    let mut strides = vec![0; shape.len()];
    let mut step = 1isize;
    for (s, &n) in strides.iter_mut().zip(shape).rev() {
        *s = step;
        step = step.wrapping_mul(n.max(1) as isize);
    }
    strides
}

/// A dense tensor of the given dims whose element at `i…` is the source's element number `first + Σ i * steps`; the
/// caller makes sure that all of them exist. `None` for elements of less than a byte.
fn gather(t: &Tensor, shape: &[usize], steps: &[isize], first: isize) -> Option<Result<Tensor, TensorError>> {
    let size = t.dtype().byte_size()?;
    let mut out = match Tensor::zeros(t.dtype(), shape) {
        Ok(out) => out,
        Err(e) => return Some(Err(e)),
    };
    let to = dense_strides(shape);
    let axes = (0..shape.len()).map(|i| Axis { len: shape[i], from: steps[i], to: to[i] }).collect();
    if !out.is_empty() {
        copy(&t.bytes(), first, out.bytes_mut(), 0, size, axes);
    }
    Some(Ok(out))
}

/// The dims in another order.
pub(super) fn permute(t: &Tensor, perm: &[usize]) -> Result<Tensor, TensorError> {
    let from = dense_strides(t.shape());
    let shape: Vec<usize> = perm.iter().map(|&p| t.shape()[p]).collect();
    let steps: Vec<isize> = perm.iter().map(|&p| from[p]).collect();
    gather(t, &shape, &steps, 0).unwrap_or_else(|| t.permute(perm))
}

/// The elements of a view in row-major order.
pub(crate) fn dense(t: &Tensor) -> Result<Tensor, TensorError> {
    let mut order: Vec<usize> = (0..t.rank()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(t.strides()[i]), i));
    let base = t.permute(&order)?;
    if !base.is_contiguous() {
        return t.to_contiguous();
    }
    let mut back = vec![0; order.len()];
    order.iter().enumerate().for_each(|(i, &o)| back[o] = i);
    permute(&base, &back)
}

/// `len` elements from `start` by `step` in every dim, all inside; `None` for elements of less than a byte.
pub(super) fn slice(
    t: &Tensor,
    start: &[usize],
    len: &[usize],
    step: &[i64],
) -> Option<Result<Tensor, TensorError>> {
    let from = dense_strides(t.shape());
    let first = start.iter().zip(&from).map(|(&s, &f)| s as isize * f).sum();
    let steps: Vec<isize> = from.iter().zip(step).map(|(&f, &s)| f.wrapping_mul(s as isize)).collect();
    gather(t, len, &steps, first)
}

/// Operand dim `i` becomes dim `axes[i]` of `shape`, or repeats along it if its length is 1; `None` for elements of less than a byte.
pub(super) fn expand(t: &Tensor, shape: &[usize], axes: &[usize]) -> Option<Result<Tensor, TensorError>> {
    let from = dense_strides(t.shape());
    let mut steps = vec![0; shape.len()];
    for (i, &a) in axes.iter().enumerate() {
        steps[a] = if t.shape()[i] == 1 { 0 } else { from[i] };
    }
    gather(t, shape, &steps, 0)
}

/// Copies a whole tensor into a target of the same element type, at an offset in every dim.
pub(super) fn place(t: &Tensor, target: &mut Tensor, at: &[usize]) -> Option<()> {
    let size = t.dtype().byte_size()?;
    if t.is_empty() {
        return Some(());
    }
    let (from, to) = (dense_strides(t.shape()), dense_strides(target.shape()));
    let first = at.iter().zip(&to).map(|(&a, &s)| a as isize * s).sum();
    let axes = (0..t.rank()).map(|i| Axis { len: t.shape()[i], from: from[i], to: to[i] }).collect();
    copy(&t.bytes(), 0, target.bytes_mut(), first, size, axes);
    Some(())
}

/// Copies elements; `from` and `to` are the numbers of the first one.
fn copy(source: &[u8], from: isize, target: &mut [u8], to: isize, size: usize, axes: Vec<Axis>) {
    let mut merged: Vec<Axis> = Vec::new();
    for a in axes.into_iter().filter(|a| a.len != 1) {
        match merged.last_mut() {
            Some(m) if m.from == a.from * a.len as isize && m.to == a.to * a.len as isize => {
                *m = Axis { len: m.len * a.len, ..a };
            }
            _ => merged.push(a),
        }
    }
    match size {
        1 => nest::<1>(source, from, target, to, &merged),
        2 => nest::<2>(source, from, target, to, &merged),
        4 => nest::<4>(source, from, target, to, &merged),
        _ => nest::<8>(source, from, target, to, &merged),
    }
}

fn nest<const S: usize>(source: &[u8], from: isize, target: &mut [u8], to: isize, axes: &[Axis]) {
    match axes {
        [] => element::<S>(source, from, target, to),
        [a] if a.from == 1 && a.to == 1 => {
            let (f, t, n) = (from as usize * S, to as usize * S, a.len * S);
            target[t..t + n].copy_from_slice(&source[f..f + n]);
        }
        [a] => {
            for i in 0..a.len as isize {
                element::<S>(source, from + i * a.from, target, to + i * a.to);
            }
        }
        [a, b] if a.from == 1 && b.to == 1 => {
            for i0 in (0..a.len).step_by(BLOCK) {
                for j0 in (0..b.len).step_by(BLOCK) {
                    for i in i0..(i0 + BLOCK).min(a.len) {
                        for j in j0..(j0 + BLOCK).min(b.len) {
                            let f = from + i as isize + j as isize * b.from;
                            element::<S>(source, f, target, to + i as isize * a.to + j as isize);
                        }
                    }
                }
            }
        }
        [a, rest @ ..] => {
            // The dim that is dense in the source comes next to the one that is dense in the target.
            let dense = axes.iter().position(|x| x.from == 1).filter(|&p| p + 2 < axes.len());
            if let Some(p) = dense.filter(|_| axes.last().is_some_and(|x| x.from != 1)) {
                let mut order = axes.to_vec();
                let moved = order.remove(p);
                order.insert(axes.len() - 2, moved);
                return nest::<S>(source, from, target, to, &order);
            }
            for i in 0..a.len as isize {
                nest::<S>(source, from + i * a.from, target, to + i * a.to, rest);
            }
        }
    }
}

fn element<const S: usize>(source: &[u8], from: isize, target: &mut [u8], to: isize) {
    let (f, t) = (from as usize * S, to as usize * S);
    target[t..t + S].copy_from_slice(&source[f..f + S]);
}

/// The elements as a slice of a Rust type, borrowed where that is possible.
pub(super) fn elements<T: tongtu_tensor::Element>(t: &Tensor) -> Result<Cow<'_, [T]>, TensorError> {
    match t.as_slice::<T>() {
        Ok(s) => Ok(Cow::Borrowed(s)),
        Err(_) => t.to_vec::<T>().map(Cow::Owned),
    }
}
