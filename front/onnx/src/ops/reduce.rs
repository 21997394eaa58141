//! Reductions and arg-reductions.

use tongtu_graph::{Combiner, Op, ValueId};
use tongtu_tensor::DType;

use crate::ctx::{Ctx, NodeCtx};
use crate::error::Result;
use crate::ops::{Entry, op};
use crate::val::Val;

/// The family's operators.
pub const OPS: &[Entry] = &[
    op("ReduceSum", reduce),
    op("ReduceMean", reduce),
    op("ReduceMax", reduce),
    op("ReduceMin", reduce),
    op("ReduceProd", reduce),
    op("ReduceL1", reduce),
    op("ReduceL2", reduce),
    op("ReduceLogSum", reduce),
    op("ReduceLogSumExp", reduce),
    op("ReduceSumSquare", reduce),
    op("ArgMax", arg_extreme),
    op("ArgMin", arg_extreme),
    op("Hardmax", hardmax),
];

/// Axes from the attribute or, in newer sets, the second operand; `None` stands for all.
fn axes<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>, rank: usize) -> Result<Option<Vec<usize>>> {
    let given = match n.ints("axes")? {
        Some(a) => a.to_vec(),
        None if n.has(1) => cx
            .contents(n, 1)?
            .iter()
            .map(|d| d.as_const().ok_or_else(|| n.unsupported("axes that are known only at run time")))
            .collect::<Result<_>>()?,
        None => Vec::new(),
    };
    if given.is_empty() { Ok(None) } else { n.axes(&given, rank).map(Some) }
}

fn reduce<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let x = cx.tensor(n, 0)?;
    let rank = cx.b.rank(x);
    let keep = n.flag("keepdims", true)?;
    let axes = match axes(cx, n, rank)? {
        Some(a) => a,
        // Nothing is reduced, but the elementwise part of the operation still applies.
        None if n.flag("noop_with_empty_axes", false)? => Vec::new(),
        None => (0..rank).collect(),
    };
    let b = &mut cx.b;
    let y = match n.op() {
        "ReduceSum" => plain(cx, Combiner::Add, x, &axes, keep)?,
        "ReduceProd" => plain(cx, Combiner::Mul, x, &axes, keep)?,
        "ReduceMax" => plain(cx, Combiner::Max, x, &axes, keep)?,
        "ReduceMin" => plain(cx, Combiner::Min, x, &axes, keep)?,
        "ReduceMean" => b.mean(x, &axes, keep)?,
        "ReduceL1" => b.reduce_l1(x, &axes, keep)?,
        "ReduceL2" => b.reduce_l2(x, &axes, keep)?,
        "ReduceLogSum" => b.reduce_log_sum(x, &axes, keep)?,
        "ReduceSumSquare" => b.reduce_sum_square(x, &axes, keep)?,
        _ if b.dtype(x).is_float() => b.log_sum_exp(x, &axes, keep)?,
        _ => {
            let d = b.dtype(x);
            let wide = b.convert(x, DType::F64)?;
            let y = b.log_sum_exp(wide, &axes, keep)?;
            b.convert(y, d)?
        }
    };
    cx.one(y)
}

fn plain(
    cx: &mut Ctx<'_, '_>,
    combiner: Combiner,
    x: ValueId,
    axes: &[usize],
    keep: bool,
) -> Result<ValueId> {
    Ok(if keep { cx.b.reduce_keep(combiner, x, axes)? } else { cx.b.reduce(combiner, x, axes)? })
}

fn arg_extreme<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let x = cx.tensor(n, 0)?;
    let axis = n.axis(n.int("axis", 0)?, cx.b.rank(x))?;
    let (keep, last) = (n.flag("keepdims", true)?, n.flag("select_last_index", false)?);
    let y = cx.b.arg_extreme(x, axis, n.op() == "ArgMax", keep, last)?;
    cx.one(y)
}

/// One where the first greatest element of each line is. Before version 13 the operand is seen as a matrix.
fn hardmax<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let x = cx.tensor(n, 0)?;
    let dims = cx.b.dims(x);
    let old = cx.opset("") < 13;
    let axis = n.axis(n.int("axis", if old { 1 } else { -1 })?, dims.len())?;
    let (lines, axis) = if old {
        let rows = tongtu_graph::infer::numel(&dims[..axis]);
        let columns = tongtu_graph::infer::numel(&dims[axis..]);
        (cx.b.reshape(x, &[rows, columns])?, 1)
    } else {
        (x, axis)
    };
    let shape = cx.b.dims(lines);
    let best = cx.b.arg_max(lines, axis, true, false)?;
    let index = cx.b.one(Op::Iota { dtype: DType::I64, dims: shape, axis }, &[])?;
    let hit = cx.b.compare(tongtu_tensor::Compare::Eq, index, best)?;
    let y = cx.b.convert(hit, cx.b.dtype(x))?;
    let y = cx.b.reshape(y, &dims)?;
    cx.one(y)
}
