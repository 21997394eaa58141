//! Elementwise groups: one loop over the result, vectors along its last dim.

use tongtu_tensor::DType;
use tongtu_tensor::dim::Dim;
use tongtu_tile::Val;

use super::{Launch, Request, Scheduled, blocks, delinear, multiple, product, rows_per_instance};
use crate::emit::{Coord, Emitter};
use crate::error::Error;

/// Elements an instance handles at least, so that starting it costs little beside its work.
pub const GRAIN: i64 = 16 * 1024;

/// Lanes of a block along a dim: a few vectors, fewer where the dim is short or the group is long.
pub fn lanes(r: &Request<'_>, last: &Dim) -> usize {
    let vectors = if r.graph.nodes.len() > 16 { 2 } else { 4 };
    let wide = r.machine.lanes(DType::F32) * vectors;
    match last.as_const() {
        Some(n) if (n as usize) < wide => (n.max(1) as usize).next_power_of_two(),
        _ => wide,
    }
}

/// The schedule of an elementwise group.
pub fn schedule(r: &Request<'_>) -> Result<Scheduled, Error> {
    let mut s = Scheduled::default();
    s.launches.push(kernel(r, 0, r.graph.outputs[0], None)?);
    Ok(s)
}

/// One kernel for each operand, each writing its part of the result.
pub fn schedule_concat(r: &Request<'_>) -> Result<Scheduled, Error> {
    let node = r.graph.nodes.last().ok_or_else(|| Error::unsupported("concat", r.loc, "an empty group"))?;
    let tongtu_graph::Op::Concat { axis } = node.op else {
        return Err(Error::unsupported("concat", r.loc, "the root is another operation"));
    };
    let mut s = Scheduled::default();
    let mut start = Dim::from(0);
    for (i, &x) in node.inputs.iter().enumerate() {
        let next = &start + &r.graph.dims(x)[axis];
        if i > 0 || !r.in_place {
            s.launches.push(kernel(r, 0, x, Some((axis, start)))?);
        }
        start = next;
    }
    Ok(s)
}

/// A kernel that computes `value` and stores it into an output, from a position along one dim on.
fn kernel(
    r: &Request<'_>,
    output: usize,
    value: tongtu_graph::ValueId,
    at: Option<(usize, Dim)>,
) -> Result<Launch, Error> {
    let mut e = Emitter::new(r.name, r.graph);
    let dims = r.graph.dims(value).to_vec();
    e.leaves_of(&[value], &[])?;
    let out = e.output(output)?;
    let out = if let Some((axis, start)) = &at { part(&mut e, output, *axis, start, &dims)? } else { out };
    let Some((last, outer)) = dims.split_last() else {
        let t = e.emit(value, &[])?;
        e.store_view(out, t, &[])?;
        return Ok(e.launch([Dim::from(1), Dim::from(1), Dim::from(1)]));
    };
    let width = lanes(r, last);
    e.shape = vec![width];
    let exact = multiple(last, width);
    let pid = e.b.program_id(0)?;
    let rows = product(outer);
    if rows.as_const() == Some(1) {
        let per = (GRAIN / width as i64).max(1) * width as i64;
        let lo = e.b.mul_int(pid, per)?;
        let end = e.b.add_int(lo, per)?;
        let n = e.dim_param(last);
        let hi = e.b.min(end, n)?;
        let zero = e.b.int(0);
        let lead: Vec<Coord> = outer.iter().map(|_| Coord::at(zero)).collect();
        blocks(&mut e, lo, hi, width, exact, &[], |e, i, inside, _| {
            let mut coords = lead.clone();
            coords.push(Coord::along(i, 0, inside));
            let t = e.emit(value, &coords)?;
            e.store_view(out, t, &coords)?;
            Ok(vec![])
        })?;
        return Ok(e.launch([last.ceildiv(&Dim::from(per)), Dim::from(1), Dim::from(1)]));
    }
    if let [outer @ .., across, _] = &dims[..]
        && (short_rows(r, &dims).is_some() || product(outer).as_const() != Some(1))
    {
        return nested(r, e, value, out, outer, across, last);
    }
    let per = rows_per_instance(last, GRAIN);
    let per_v = e.dim_param(&per);
    let lo = e.b.mul(pid, per_v)?;
    let end = e.b.add(lo, per_v)?;
    let rows_v = e.dim_param(&rows);
    let hi = e.b.min(end, rows_v)?;
    e.for_loop(lo, hi, 1, &[], |e, row, _| {
        let lead = delinear(e, row, outer)?;
        let zero = e.b.int(0);
        let n = e.dim_param(last);
        blocks(e, zero, n, width, exact, &[], |e, i, inside, _| {
            let mut coords = lead.clone();
            coords.push(Coord::along(i, 0, inside));
            let t = e.emit(value, &coords)?;
            e.store_view(out, t, &coords)?;
            Ok(vec![])
        })?;
        Ok(vec![])
    })?;
    Ok(e.launch([rows.ceildiv(&per), Dim::from(1), Dim::from(1)]))
}

/// Loops over the last two dims inside one over the others: an instance takes a run of `across` of some outer positions. Several short
/// rows are one tile.
fn nested(
    r: &Request<'_>,
    mut e: Emitter<'_>,
    value: tongtu_graph::ValueId,
    out: Val,
    outer: &[Dim],
    across: &Dim,
    last: &Dim,
) -> Result<Launch, Error> {
    let count = short_rows(r, r.graph.dims(value));
    let run = rows_per_instance(last, GRAIN).ceildiv(&Dim::from(count.unwrap_or(1) as i64))
        * count.unwrap_or(1) as i64;
    let run = run.min(&across.max(&Dim::from(1)));
    let per = rows_per_instance(&(across * last), GRAIN);
    let (lo, hi) = part_of(&mut e, 0, &per, &product(outer))?;
    let (from, to) = part_of(&mut e, 1, &run, across)?;
    let width = count.map_or_else(|| lanes(r, last), |_| last.as_const().unwrap_or(1) as usize);
    e.shape = count.into_iter().chain([width]).collect();
    e.for_loop(lo, hi, 1, &[], |e, row, _| {
        let lead = delinear(e, row, outer)?;
        let (zero, n) = (e.b.int(0), e.dim_param(last));
        let put = |e: &mut Emitter<'_>, across: Coord, last: Coord| -> Result<Vec<Val>, Error> {
            let mut coords = lead.clone();
            coords.extend([across, last]);
            let t = e.emit(value, &coords)?;
            e.store_view(out, t, &coords)?;
            Ok(vec![])
        };
        match count {
            Some(count) => blocks(e, from, to, count, false, &[], |e, i, inside, _| {
                put(e, Coord::along(i, 0, inside), Coord::along(zero, 1, true))
            }),
            None => e.for_loop(from, to, 1, &[], |e, i, _| {
                blocks(e, zero, n, width, multiple(last, width), &[], |e, j, inside, _| {
                    put(e, Coord::at(i), Coord::along(j, 0, inside))
                })
            }),
        }
    })?;
    let grid = [product(outer).ceildiv(&per), across.ceildiv(&run.max(&Dim::from(1))), Dim::from(1)];
    Ok(e.launch(grid))
}

/// What the instance takes of `0..total` along a grid axis, `per` each.
fn part_of(e: &mut Emitter<'_>, axis: usize, per: &Dim, total: &Dim) -> Result<(Val, Val), Error> {
    let pid = e.b.program_id(axis)?;
    let (per_v, total_v) = (e.dim_param(per), e.dim_param(total));
    let lo = e.b.mul(pid, per_v)?;
    let end = e.b.add(lo, per_v)?;
    Ok((lo, e.b.min(end, total_v)?))
}

/// How many rows to take at once, where the last dim is much shorter than a vector and the group is small.
fn short_rows(r: &Request<'_>, dims: &[Dim]) -> Option<usize> {
    let [.., across, last] = dims else { return None };
    let lanes = r.machine.lanes(DType::F32);
    let n = last.as_const().filter(|&n| n >= 1 && n <= lanes as i64 / 2)? as usize;
    let count = (2 * lanes / n).min(16);
    let long = across.as_const().is_none_or(|a| a >= count as i64);
    (long && r.graph.nodes.len() <= 8).then_some(count)
}

/// A view of the part of an output from a position along one dim on, with the part's own dims.
fn part(e: &mut Emitter<'_>, output: usize, axis: usize, start: &Dim, dims: &[Dim]) -> Result<Val, Error> {
    let whole = e.graph.dims(e.graph.outputs[output]).to_vec();
    let buffer = e.output_buffer(output);
    let strides: Vec<Dim> = (0..whole.len()).map(|i| product(&whole[i + 1..])).collect();
    let offset = e.dim(&(start * &strides[axis]));
    let dims: Vec<Val> = dims.iter().map(|d| e.dim(d)).collect();
    let strides: Vec<Val> = strides.iter().map(|d| e.dim(d)).collect();
    Ok(e.b.view(buffer, offset, &dims, &strides)?)
}
