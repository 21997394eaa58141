//! Operations whose elements depend on an order: running combinations, sorts, scatters.

use tongtu_graph::Op;
use tongtu_tensor::dim::Dim;
use tongtu_tensor::scalar::{Binary, Compare, Unary};
use tongtu_tensor::{Combiner, DType, Num};
use tongtu_tile::{Access, Val};

use super::{Request, Scheduled, accumulator, blocks, combine, delinear, multiple, product};
use crate::emit::{CAST, Coord, Emitter, KernelArg};
use crate::error::Error;

fn one() -> Dim {
    Dim::from(1)
}

/// A running combination: vectors along the last dim where it is not the one scanned, else one element at a time.
pub fn schedule_scan(r: &Request<'_>) -> Result<Scheduled, Error> {
    let g = r.graph;
    let node = &g.nodes[g.nodes.len() - 1];
    let Op::Scan { combiner, axis, exclusive, reverse } = node.op else {
        return Err(Error::unsupported("scan", r.loc, "the root is another operation"));
    };
    let dims = g.dims(node.outputs[0]).to_vec();
    let d = dims.len() - 1;
    let mut e = Emitter::new(r.name, g);
    e.leaves_of(&node.inputs, &[])?;
    let outs = (0..g.outputs.len()).map(|i| e.output(i)).collect::<Result<Vec<_>, _>>()?;
    let width = if axis == d { 1 } else { 2 * r.machine.lanes(DType::F32) };
    let mut grid_dims: Vec<Dim> = (0..d).map(|i| if i == axis { one() } else { dims[i].clone() }).collect();
    grid_dims.push(if axis == d { one() } else { dims[d].ceildiv(&Dim::from(width as i64)) });
    let pid = e.b.program_id(0)?;
    let mut at = delinear(&mut e, pid, &grid_dims)?;
    if axis != d
        && let Coord::Affine { base, .. } = at[d]
    {
        let base = e.b.mul_int(base, width as i64)?;
        at[d] = Coord::along(base, 0, multiple(&dims[d], width));
    }
    e.shape = vec![width];
    let n = e.dim(&dims[axis]);
    let zero = e.b.int(0);
    let mut init = Vec::new();
    for (k, &v) in node.inputs.iter().enumerate() {
        let acc = accumulator(combiner, g.dtype(v));
        init.push(e.b.full(acc, &[width], super::initial(combiner, k, acc))?);
    }
    e.for_loop(zero, n, 1, &init, |e, i, carried| {
        let i = if reverse {
            let end = e.b.add_int(n, -1)?;
            e.b.sub(end, i)?
        } else {
            i
        };
        let mut c = at.clone();
        c[axis] = Coord::at(i);
        let mut new = Vec::new();
        for (k, &v) in node.inputs.iter().enumerate() {
            let t = e.emit(v, &c)?;
            let t = e.full(t)?;
            new.push(e.b.cast(t, e.b.dtype(carried[k]), CAST)?);
        }
        let next = combine(e, combiner, carried, &new)?;
        let shown = if exclusive { carried.to_vec() } else { next.clone() };
        for (k, ((v, &o), &view)) in shown.iter().zip(&node.outputs).zip(&outs).enumerate() {
            let t = super::settle(e, combiner, k, *v)?;
            let t = e.b.cast(t, g.dtype(o), CAST)?;
            e.store_view(view, t, &c)?;
        }
        Ok(next)
    })?;
    let grid = [product(&grid_dims), one(), one()];
    Ok(Scheduled { launches: vec![e.launch(grid)], ..Scheduled::default() })
}

/// Stable merge sort of a permutation, one line an instance; then the operands gathered by it.
pub fn schedule_sort(r: &Request<'_>) -> Result<Scheduled, Error> {
    let g = r.graph;
    let node = &g.nodes[g.nodes.len() - 1];
    let Op::Sort { axis, descending } = node.op else {
        return Err(Error::unsupported("sort", r.loc, "the root is another operation"));
    };
    let dims = g.dims(node.outputs[0]).to_vec();
    let mut s = Scheduled::default();
    let outer_dims: Vec<Dim> =
        dims.iter().enumerate().map(|(i, d)| if i == axis { one() } else { d.clone() }).collect();
    let lines = product(&outer_dims);
    let length = dims[axis].clone();
    let temp_dims = vec![lines.clone(), length.clone()];
    s.temps.push((DType::I64, temp_dims.clone()));
    s.temps.push((DType::I64, temp_dims.clone()));

    let mut e = Emitter::new(r.name, g);
    e.leaves_of(&node.inputs, &[])?;
    let outs = (0..g.outputs.len()).map(|i| e.output(i)).collect::<Result<Vec<_>, _>>()?;
    let (ta, tb) = (
        e.buffer(KernelArg::Temp(0), DType::I64, Access::ReadWrite),
        e.buffer(KernelArg::Temp(1), DType::I64, Access::ReadWrite),
    );
    let line = e.b.program_id(0)?;
    let n = e.dim_param(&length);
    let base = e.b.mul(line, n)?;
    let (zero, unit) = (e.b.int(0), e.b.int(1));
    let va = e.b.view(ta, base, &[n], &[unit])?;
    let vb = e.b.view(tb, base, &[n], &[unit])?;
    let at = delinear(&mut e, line, &outer_dims)?;
    e.shape = vec![1];
    let put = |e: &mut Emitter<'_>, view: Val, i: Val, v: Val| -> Result<(), Error> {
        let t = e.unit(v)?;
        e.store_view(view, t, &[Coord::at(i)])
    };
    let get = |e: &mut Emitter<'_>, view: Val, i: Val| -> Result<Val, Error> {
        let map = tongtu_tile::TileMap(vec![]);
        Ok(e.b.load(view, &[i], map, &[true], Num::Int(0))?)
    };
    let key = |e: &mut Emitter<'_>, i: Val| -> Result<Val, Error> {
        let mut c = at.clone();
        c[axis] = Coord::at(i);
        let t = e.emit(node.inputs[0], &c)?;
        e.only(t)
    };
    // Whether the right element goes before the left one (strictly: equal ones keep their order).
    let before = |e: &mut Emitter<'_>, right: Val, left: Val| -> Result<Val, Error> {
        let (x, y) = if descending { (left, right) } else { (right, left) };
        let less = e.b.compare(Compare::Lt, x, y)?;
        if !e.b.dtype(x).is_float() {
            return Ok(less);
        }
        // NaN is greatest.
        let (nx, ny) = (e.b.unary(Unary::IsNan, x)?, e.b.unary(Unary::IsNan, y)?);
        let not = e.b.unary(Unary::Not, nx)?;
        let below_nan = e.b.binary(Binary::And, ny, not)?;
        Ok(e.b.binary(Binary::Or, less, below_nan)?)
    };
    e.for_loop(zero, n, 1, &[], |e, i, _| {
        put(e, va, i, i)?;
        Ok(vec![])
    })?;
    // Runs of length w in `from` are merged pairwise into `to`.
    let merge = |e: &mut Emitter<'_>, from: Val, to: Val, w: Val| -> Result<(), Error> {
        let pair = e.b.add(w, w)?;
        let more = e.b.compare(Compare::Lt, zero, n)?;
        e.while_loop(more, &[zero], |e, c| {
            let start = c[0];
            let mid = e.b.add(start, w)?;
            let mid = e.b.min(mid, n)?;
            let stop = e.b.add(start, pair)?;
            let stop = e.b.min(stop, n)?;
            let span = e.b.sub(stop, start)?;
            e.for_loop(zero, span, 1, &[start, mid], |e, k, c| {
                let (l, rr) = (c[0], c[1]);
                let has_left = e.b.compare(Compare::Lt, l, mid)?;
                let has_right = e.b.compare(Compare::Lt, rr, stop)?;
                let last = e.b.add_int(n, -1)?;
                let li = e.b.min(l, last)?;
                let ri = e.b.min(rr, last)?;
                let (lv, rv) = (get(e, from, li)?, get(e, from, ri)?);
                let (lk, rk) = (key(e, lv)?, key(e, rv)?);
                let right_first = before(e, rk, lk)?;
                let no_left = e.b.unary(Unary::Not, has_left)?;
                let take = e.b.binary(Binary::Or, no_left, right_first)?;
                let take = e.b.binary(Binary::And, has_right, take)?;
                let chosen = e.b.select(take, rv, lv)?;
                let place = e.b.add(start, k)?;
                put(e, to, place, chosen)?;
                let (l1, r1) = (e.b.add(l, unit)?, e.b.add(rr, unit)?);
                Ok(vec![e.b.select(take, l, l1)?, e.b.select(take, r1, rr)?])
            })?;
            let next = e.b.add(start, pair)?;
            let more = e.b.compare(Compare::Lt, next, n)?;
            Ok((more, vec![next]))
        })?;
        Ok(())
    };
    let four = e.b.int(4);
    let more = e.b.compare(Compare::Lt, unit, n)?;
    e.while_loop(more, &[unit], |e, c| {
        let w = c[0];
        merge(e, va, vb, w)?;
        let w2 = e.b.add(w, w)?;
        merge(e, vb, va, w2)?;
        let next = e.b.mul(w, four)?;
        let more = e.b.compare(Compare::Lt, next, n)?;
        Ok((more, vec![next]))
    })?;
    e.for_loop(zero, n, 1, &[], |e, i, _| {
        let from = get(e, va, i)?;
        let mut c = at.clone();
        c[axis] = Coord::at(from);
        let mut o = at.clone();
        o[axis] = Coord::at(i);
        for (k, &v) in node.inputs.iter().enumerate() {
            let t = e.emit(v, &c)?;
            e.store_view(outs[k], t, &o)?;
        }
        Ok(vec![])
    })?;
    s.launches.push(e.launch([lines, one(), one()]));
    Ok(s)
}

/// A copy of the data, then the updates one after another.
pub fn schedule_scatter(r: &Request<'_>) -> Result<Scheduled, Error> {
    let g = r.graph;
    let node = &g.nodes[g.nodes.len() - 1];
    let (data, indices, updates) = (node.inputs[0], node.inputs[1], node.inputs[2]);
    let mut e = Emitter::new(r.name, g);
    e.leaves_of(&node.inputs, &[])?;
    let buffer = e.buffer(KernelArg::Output(0), g.dtype(data), Access::ReadWrite);
    let dims = g.dims(data).to_vec();
    let (out, _) = e.view(buffer, &dims)?;
    let (zero, unit) = (e.b.int(0), e.b.int(1));
    let total = product(&dims);
    let width = 4 * r.machine.lanes(DType::F32);
    e.shape = vec![width];
    let total_v = e.dim_param(&total);
    let flat = e.b.view(buffer, zero, &[total_v], &[unit])?;
    let source = e.buffer_of(data).ok_or_else(|| Error::unsupported("scatter", r.loc, "computed data"))?;
    let source = e.b.view(source, zero, &[total_v], &[unit])?;
    // In place there is nothing to copy.
    let copied = if r.in_place { zero } else { total_v };
    blocks(&mut e, zero, copied, width, false, &[], |e, i, inside, _| {
        let c = [Coord::along(i, 0, inside)];
        let map = tongtu_tile::TileMap::along(&[width], &[0]);
        let t = e.b.load(source, &[i], map, &[inside], crate::emit::zero_of(g.dtype(data)))?;
        e.store_view(flat, t, &c)?;
        Ok(vec![])
    })?;
    let udims = g.dims(updates).to_vec();
    let combiner = match node.op {
        Op::ScatterAlong { combiner, .. } | Op::ScatterNd { combiner } => combiner,
        _ => return Err(Error::unsupported("scatter", r.loc, "the root is another operation")),
    };
    let write = |e: &mut Emitter<'_>, at: &[Coord], new: Val| -> Result<(), Error> {
        let new = e.full(new)?;
        let t = if combiner == Combiner::Replace {
            new
        } else {
            let (view, shape) = (out, e.shape.clone());
            let mut map = tongtu_tile::TileMap(
                shape.iter().map(|&size| vec![tongtu_tile::Factor { size, dim: None, step: 0 }]).collect(),
            );
            let mut index = Vec::new();
            let mut inside = Vec::new();
            for (d, c) in at.iter().enumerate() {
                if let Coord::Affine { base, lane, inside: i } = c {
                    index.push(*base);
                    inside.push(*i);
                    if let Some((t, step)) = lane {
                        map.0[*t] = vec![tongtu_tile::Factor { size: shape[*t], dim: Some(d), step: *step }];
                    }
                }
            }
            let old = e.b.load(view, &index, map, &inside, crate::emit::zero_of(g.dtype(data)))?;
            combine(e, combiner, &[old], &[new])?[0]
        };
        e.store_view(out, t, at)
    };
    let index_at = |e: &mut Emitter<'_>, c: &[Coord]| -> Result<Coord, Error> {
        let saved = std::mem::replace(&mut e.shape, vec![1]);
        let t = e.emit(indices, c)?;
        let t = e.b.cast(t, DType::I64, CAST)?;
        let base = e.only(t)?;
        e.shape = saved;
        Ok(Coord::Affine { base, lane: None, inside: false })
    };
    match node.op {
        Op::ScatterAlong { axis, .. } => {
            e.shape = vec![1];
            let count = e.dim_param(&product(&udims));
            e.for_loop(zero, count, 1, &[], |e, i, _| {
                let c = delinear(e, i, &udims)?;
                let mut at = c.clone();
                at[axis] = index_at(e, &c)?;
                let new = e.emit(updates, &c)?;
                write(e, &at, new)?;
                Ok(vec![])
            })?;
        }
        _ => {
            let idims = g.dims(indices).to_vec();
            let outer = idims.len() - 1;
            let k = idims[outer].as_const().unwrap_or(0);
            let slice_dims = udims[outer..].to_vec();
            let (lane_dim, slice_outer) = match slice_dims.split_last() {
                Some((l, o)) => (Some(l.clone()), o.to_vec()),
                None => (None, Vec::new()),
            };
            let count = e.dim_param(&product(&udims[..outer]));
            let inner_count = e.dim(&product(&slice_outer));
            e.for_loop(zero, count, 1, &[], |e, i, _| {
                let c = delinear(e, i, &udims[..outer])?;
                let mut lead = Vec::new();
                for j in 0..k {
                    let j = e.b.int(j);
                    let mut ic = c.clone();
                    ic.push(Coord::at(j));
                    lead.push(index_at(e, &ic)?);
                }
                e.for_loop(zero, inner_count, 1, &[], |e, row, _| {
                    let inner = delinear(e, row, &slice_outer)?;
                    let mut at = lead.clone();
                    at.extend_from_slice(&inner);
                    let mut from = c.clone();
                    from.extend_from_slice(&inner);
                    match &lane_dim {
                        None => {
                            e.shape = vec![1];
                            let new = e.emit(updates, &from)?;
                            write(e, &at, new)?;
                        }
                        Some(l) => {
                            e.shape = vec![width];
                            let n = e.dim_param(l);
                            blocks(e, zero, n, width, multiple(l, width), &[], |e, i, inside, _| {
                                let (mut at, mut from) = (at.clone(), from.clone());
                                at.push(Coord::along(i, 0, inside));
                                from.push(Coord::along(i, 0, inside));
                                let new = e.emit(updates, &from)?;
                                write(e, &at, new)?;
                                Ok(vec![])
                            })?;
                        }
                    }
                    Ok(vec![])
                })?;
                Ok(vec![])
            })?;
        }
    }
    Ok(Scheduled { launches: vec![e.launch([one(), one(), one()])], ..Scheduled::default() })
}
