//! Deformable convolution.

use tongtu_graph::ValueId;
use tongtu_tensor::dim::Dim;
use tongtu_tensor::{Binary, Compare, DType, Unary};

use crate::ctx::{Ctx, NodeCtx};
use crate::error::Result;
use crate::ops::nn::{accumulator, add_bias, conv_spec};
use crate::ops::{Entry, op};
use crate::val::Val;

/// The family's operators.
pub const OPS: &[Entry] = &[op("DeformConv", deform_conv)];

/// Each tap of each output reads the input at a place moved by an offset, linearly interpolated, zero outside; then a
/// contraction with the kernel. Two spatial dims.
fn deform_conv<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let (x, w, offset) = (cx.tensor(n, 0)?, cx.tensor(n, 1)?, cx.tensor(n, 2)?);
    let d = cx.b.dtype(x);
    let acc = accumulator(d);
    let (xd, wd, od) = (cx.b.dims(x), cx.b.dims(w), cx.b.dims(offset));
    if xd.len() != 4 || wd.len() != 4 || od.len() != 4 {
        return Err(n.unsupported("deformable convolution over other than two spatial dims"));
    }
    let spec = conv_spec(n, &xd, 1)?;
    let groups = n.int("offset_group", 1)?;
    let (Some(kh), Some(kw)) = (wd[2].as_const(), wd[3].as_const()) else {
        return Err(n.unsupported("the kernel's dims are not known"));
    };
    if !(1..=1 << 16).contains(&groups) || kh.saturating_mul(kw) > 1 << 12 {
        return Err(n.bad(format!("{groups} offset groups and a kernel of {kh} by {kw}")));
    }
    let (x, w, offset) = (cx.b.convert(x, acc)?, cx.b.convert(w, acc)?, cx.b.convert(offset, acc)?);
    let (batch, channels) = (xd[0].clone(), xd[1].clone());
    let (oh, ow) = (od[2].clone(), od[3].clone());
    let g = Dim::from(groups);
    let taps = Dim::from(kh * kw);
    // Places to read: [batch, offset group, tap, rows, columns] for each spatial dim.
    let full = [batch.clone(), g.clone(), taps.clone(), oh.clone(), ow.clone()];
    let moved = cx
        .b
        .reshape(offset, &[batch.clone(), g.clone(), taps.clone(), Dim::from(2), oh.clone(), ow.clone()])?;
    let mut places = Vec::new();
    for s in 0..2usize {
        let by = cx.b.slice_axis(moved, 3, Dim::from(s as i64), Dim::from(1))?;
        let by = cx.b.reshape(by, &full)?;
        let out = cx.b.iota(DType::I64, &full, 3 + s)?;
        let out = cx.b.binary_const(Binary::Mul, out, spec.strides[s] as f64)?;
        let low = cx.b.dim_as(&spec.pads[s].0, DType::I64)?;
        let out = cx.b.sub(out, low)?;
        let tap = cx.b.iota(DType::I64, &full, 2)?;
        let op = if s == 0 { Binary::Div } else { Binary::Mod };
        let tap = cx.b.binary_const(op, tap, kw as f64)?;
        let tap = cx.b.binary_const(Binary::Mul, tap, spec.dilation[s] as f64)?;
        let at = cx.b.add2(out, tap)?;
        let at = cx.b.convert(at, acc)?;
        places.push(cx.b.add2(at, by)?);
    }
    // The input as [batch, offset group, channels of the group, rows * columns], to gather along the last dim.
    let per_group = channels.floordiv(&g);
    let plane = &xd[2] * &xd[3];
    let flat = cx.b.reshape(x, &[batch.clone(), g.clone(), per_group.clone(), plane])?;
    let points = [batch.clone(), g.clone(), &(&taps * &oh) * &ow];
    let wide = [batch.clone(), g.clone(), per_group.clone(), points[2].clone()];
    let floors = [cx.b.unary(Unary::Floor, places[0])?, cx.b.unary(Unary::Floor, places[1])?];
    let mut sum: Option<ValueId> = None;
    for corner in 0..4usize {
        let mut weight: Option<ValueId> = None;
        let mut inside: Option<ValueId> = None;
        let mut index: Option<ValueId> = None;
        for s in 0..2usize {
            let far = (corner >> s) & 1 == 1;
            let at = if far { cx.b.binary_const(Binary::Add, floors[s], 1.0)? } else { floors[s] };
            let gap = cx.b.sub(places[s], at)?;
            let gap = cx.b.unary(Unary::Abs, gap)?;
            let one = cx.b.full_like(gap, 1.0)?;
            let part = cx.b.sub(one, gap)?;
            weight = Some(match weight {
                Some(w) => cx.b.mul(w, part)?,
                None => part,
            });
            let at = cx.b.saturate(at, DType::I64)?;
            let len = cx.b.dim_as(&xd[2 + s], DType::I64)?;
            let (low, high) =
                (cx.b.compare_const(Compare::Ge, at, 0.0)?, cx.b.compare(Compare::Lt, at, len)?);
            let here = cx.b.binary(Binary::And, low, high)?;
            inside = Some(match inside {
                Some(p) => cx.b.binary(Binary::And, p, here)?,
                None => here,
            });
            index = Some(match index {
                Some(i) => {
                    let i = cx.b.mul(i, len)?;
                    cx.b.add2(i, at)?
                }
                None => at,
            });
        }
        let (Some(weight), Some(inside), Some(index)) = (weight, inside, index) else { continue };
        let zero = cx.b.full_like(index, 0.0)?;
        let index = cx.b.select(inside, index, zero)?;
        let none = cx.b.full_like(weight, 0.0)?;
        let weight = cx.b.select(inside, weight, none)?;
        let index = cx.b.reshape(index, &points)?;
        let index = cx.b.broadcast(index, &wide, &[0, 1, 3])?;
        let weight = cx.b.reshape(weight, &points)?;
        let weight = cx.b.broadcast(weight, &wide, &[0, 1, 3])?;
        let read = cx.b.take_along(flat, index, 3)?;
        let read = cx.b.mul(read, weight)?;
        sum = Some(match sum {
            Some(s) => cx.b.add2(s, read)?,
            None => read,
        });
    }
    let Some(mut read) = sum else { return Err(n.bad("nothing to read")) };
    if let Some(mask) = cx.opt(n, 4)? {
        let mask = cx.b.convert(mask, acc)?;
        let mask = cx.b.reshape(mask, &points)?;
        let mask = cx.b.broadcast(mask, &wide, &[0, 1, 3])?;
        read = cx.b.mul(read, mask)?;
    }
    // [batch, group, channels of the group, taps, rows * columns] against the kernel [group, channels out, channels, taps].
    let groups = Dim::from(spec.groups);
    let (inner, outer) = (channels.floordiv(&groups), wd[0].floordiv(&groups));
    let read =
        cx.b.reshape(read, &[batch.clone(), groups.clone(), inner.clone(), taps.clone(), &oh * &ow])?;
    let w = cx.b.reshape(w, &[groups, outer, inner, taps])?;
    let y = cx.b.contract(w, read, &[(0, 1)], &[(2, 2), (3, 3)], acc)?;
    // [group, channels out, batch, rows * columns]
    let y = cx.b.permute(y, &[2, 0, 1, 3])?;
    let mut y = cx.b.reshape(y, &[batch, wd[0].clone(), oh, ow])?;
    if let Some(bias) = cx.opt(n, 3)? {
        y = add_bias(cx, y, bias)?;
    }
    let y = cx.b.convert(y, d)?;
    cx.one(y)
}
