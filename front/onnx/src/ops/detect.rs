//! Boxes: suppression of overlapping ones.

use tongtu_graph::{Builder, Combiner, GraphError, Op, Type, ValueId};
use tongtu_tensor::dim::Dim;
use tongtu_tensor::{Binary, Compare, DType};

use crate::ctx::{Ctx, NodeCtx};
use crate::error::Result;
use crate::ops::{Entry, op};
use crate::val::Val;

/// The family's operators.
pub const OPS: &[Entry] = &[op("NonMaxSuppression", non_max_suppression)];

/// A scalar operand or a constant in its place.
fn scalar<'m>(
    cx: &mut Ctx<'_, 'm>,
    n: &NodeCtx<'m>,
    i: usize,
    dtype: DType,
    default: f64,
) -> Result<ValueId> {
    Ok(match cx.opt(n, i)? {
        Some(v) => {
            let v = cx.b.reshape(v, &[])?;
            cx.b.convert(v, dtype)?
        }
        None => cx.b.full(dtype, default, &[])?,
    })
}

/// Coordinate `k` of boxes `[…, 4]`.
fn coordinate(b: &mut Builder<'_>, boxes: ValueId, k: i64) -> std::result::Result<ValueId, GraphError> {
    let mut dims = b.dims(boxes);
    let axis = dims.len() - 1;
    let v = b.slice_axis(boxes, axis, Dim::from(k), Dim::from(1))?;
    dims.pop();
    b.reshape(v, &dims)
}

fn non_max_suppression<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let (boxes, scores) = (cx.tensor(n, 0)?, cx.tensor(n, 1)?);
    let (bd, sd) = (cx.b.dims(boxes), cx.b.dims(scores));
    if bd.len() != 3 || sd.len() != 3 || bd[2].as_const().is_some_and(|d| d != 4) {
        return Err(n.bad("boxes [batch, boxes, 4] and scores [batch, classes, boxes] are wanted"));
    }
    let most = scalar(cx, n, 2, DType::I64, 0.0)?;
    let overlap = scalar(cx, n, 3, DType::F32, 0.0)?;
    let threshold = match n.has(4) {
        true => Some(scalar(cx, n, 4, DType::F32, 0.0)?),
        false => None,
    };
    let centred = n.int("center_point_box", 0)? == 1;
    let b = &mut cx.b;
    let boxes = b.convert(boxes, DType::F32)?;
    let scores = b.convert(scores, DType::F32)?;

    // Corners, the lesser first.
    let mut c = Vec::new();
    for k in 0..4 {
        c.push(coordinate(b, boxes, k)?);
    }
    let (low_x, low_y, high_x, high_y) = if centred {
        let (w, h) = (b.binary_const(Binary::Mul, c[2], 0.5)?, b.binary_const(Binary::Mul, c[3], 0.5)?);
        (b.sub(c[0], w)?, b.sub(c[1], h)?, b.add2(c[0], w)?, b.add2(c[1], h)?)
    } else {
        (
            b.binary(Binary::Min, c[1], c[3])?,
            b.binary(Binary::Min, c[0], c[2])?,
            b.binary(Binary::Max, c[1], c[3])?,
            b.binary(Binary::Max, c[0], c[2])?,
        )
    };

    // Everything in order of falling score: [batch, classes, boxes].
    let place = b.iota(DType::I64, &sd, 2)?;
    let sorted = b.add(Op::Sort { axis: 2, descending: true }, &[scores, place])?;
    let (score, order) = (sorted[0], sorted[1]);
    let mut arranged = Vec::new();
    for v in [low_x, low_y, high_x, high_y] {
        let v = b.broadcast(v, &sd, &[0, 2])?;
        arranged.push(b.take_along(v, order, 2)?);
    }
    let (w, h) = (b.sub(arranged[2], arranged[0])?, b.sub(arranged[3], arranged[1])?);
    arranged.push(b.mul(w, h)?);
    let alive = match threshold {
        Some(t) => b.compare(Compare::Gt, score, t)?,
        None => b.full(DType::Bool, 1.0, &sd)?,
    };

    // One box after another takes out those after it that overlap it too much.
    let count = sd[2].clone();
    let plane = Type::tensor(DType::F32, sd.clone());
    let mask = Type::tensor(DType::Bool, sd.clone());
    let mut params = vec![Type::scalar(DType::I64), mask.clone()];
    params.extend(vec![plane; 5]);
    params.push(Type::scalar(DType::F32));
    let body = b.region("suppress", &params, |b, p| {
        let (i, alive) = (p[0], p[1]);
        let pick = |b: &mut Builder<'_>, v: ValueId| -> std::result::Result<ValueId, GraphError> {
            let v = b.take(v, i, 2)?;
            b.broadcast(v, &sd, &[0, 1])
        };
        let mut own = Vec::new();
        for &v in &p[2..7] {
            own.push(pick(b, v)?);
        }
        let extent =
            |b: &mut Builder<'_>, low: usize, high: usize| -> std::result::Result<ValueId, GraphError> {
                let from = b.binary(Binary::Max, p[2 + low], own[low])?;
                let to = b.binary(Binary::Min, p[2 + high], own[high])?;
                let len = b.sub(to, from)?;
                b.binary_const(Binary::Max, len, 0.0)
            };
        let (w, h) = (extent(b, 0, 2)?, extent(b, 1, 3)?);
        let shared = b.mul(w, h)?;
        let both = b.add2(p[6], own[4])?;
        let union = b.sub(both, shared)?;
        let ratio = b.div(shared, union)?;
        let much = b.compare(Compare::Gt, ratio, p[7])?;
        let place = b.iota(DType::I64, &sd, 2)?;
        let after = b.compare(Compare::Gt, place, i)?;
        let picked = pick(b, alive)?;
        let out = b.binary(Binary::And, much, after)?;
        let out = b.binary(Binary::And, out, picked)?;
        let stays = b.unary(tongtu_tensor::Unary::Not, out)?;
        let alive = b.binary(Binary::And, alive, stays)?;
        let next = b.binary_const(Binary::Add, i, 1.0)?;
        let len = b.dim_as(&count, DType::I64)?;
        let more = b.compare(Compare::Lt, next, len)?;
        Ok(vec![more, next, alive])
    })?;
    let zero = b.int(DType::I64, 0)?;
    let len = b.dim_as(&count, DType::I64)?;
    let some = b.compare(Compare::Lt, zero, len)?;
    let mut operands = vec![some, zero, alive];
    operands.extend(arranged);
    operands.push(overlap);
    let results = vec![Type::scalar(DType::I64), mask];
    let alive = b.add(Op::While { body, results }, &operands)?[1];

    // The first ones of each class, as many as wanted.
    let ones = b.convert(alive, DType::I64)?;
    let rank = b.scan(Combiner::Add, ones, 2, false, false)?;
    let few = b.compare(Compare::Le, rank, most)?;
    let alive = b.binary(Binary::And, alive, few)?;
    let (rows, found) = b.nonzero(alive)?;
    let found = Dim::from(found);
    let index = b.gather_nd(order, rows, 0)?;
    let index = b.reshape(index, &[found, Dim::from(1)])?;
    let head = b.slice_axis(rows, 1, Dim::from(0), Dim::from(2))?;
    let y = b.concat(&[head, index], 1)?;
    cx.one(y)
}
