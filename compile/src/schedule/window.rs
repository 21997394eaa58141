//! Sliding-window reductions (pooling) with the elementwise operations that follow: vectors along the last dim. Where no window
//! slides along it, a tile takes several results along the last dim that one does.

use tongtu_graph::{Op, WindowSpec};
use tongtu_tensor::dim::Dim;
use tongtu_tensor::scalar::Binary;
use tongtu_tensor::{Combiner, DType};
use tongtu_tile::Val;

use super::epilogue::epilogue;
use super::taps::{TapLine, cut, tap_loops};
use super::{
    Request, Scheduled, accumulator, blocks, combine, delinear, multiple, product, rows_per_instance,
};
use crate::emit::{CAST, Coord, Emitter};
use crate::error::Error;

/// The schedule of a window reduction.
pub fn schedule(r: &Request<'_>, n: usize) -> Result<Scheduled, Error> {
    let g = r.graph;
    let node = &g.nodes[n];
    let Op::WindowReduce { combiner, spec } = &node.op else {
        return Err(Error::unsupported("window_reduce", r.loc, "the anchor is another operation"));
    };
    let combiner = *combiner;
    if let Some(along) = slides(spec)
        && node.inputs.len() == 1
        && combiner.binary().is_some()
    {
        return rows(r, n, combiner, spec, along);
    }
    let out = node.outputs[0];
    let dims = g.dims(out).to_vec();
    let Some((last, outer_dims)) = dims.split_last() else {
        return Err(Error::unsupported("window_reduce", r.loc, "a scalar"));
    };
    let mut e = Emitter::new(r.name, g);
    e.leaves_of(&g.outputs, &node.outputs)?;
    e.leaves_of(&node.inputs, &[])?;
    let outs = (0..g.outputs.len()).map(|i| e.output(i)).collect::<Result<Vec<_>, _>>()?;
    let wide = 2 * r.machine.lanes(DType::F32);
    let width = match last.as_const() {
        Some(n) if (n as usize) < wide => (n.max(1) as usize).next_power_of_two(),
        _ => wide,
    };
    let d = dims.len() - 1;
    let exact = super::multiple(last, width);
    e.shape = vec![width];
    let window: i64 = spec.window.iter().product();
    let per = rows_per_instance(&(last * window), super::map::GRAIN);
    let rows = product(outer_dims);
    let (pid, per_v, rows_v) = (e.b.program_id(0)?, e.dim_param(&per), e.dim_param(&rows));
    let lo = e.b.mul(pid, per_v)?;
    let end = e.b.add(lo, per_v)?;
    let hi = e.b.min(end, rows_v)?;
    let slides: Vec<usize> = (0..=d).filter(|&i| spec.window[i] > 1).collect();
    e.for_loop(lo, hi, 1, &[], |e, row, _| {
        let lead = delinear(e, row, outer_dims)?;
        let (zero, n) = (e.b.int(0), e.dim_param(last));
        blocks(e, zero, n, width, exact, &[], |e, i, inside, _| {
            let mut at = lead.clone();
            at.push(Coord::along(i, 0, inside));
            let mut init: Vec<Val> = Vec::new();
            for (k, &v) in node.inputs.iter().enumerate() {
                let acc = accumulator(combiner, g.dtype(v));
                init.push(e.b.full(acc, &[width], super::initial(combiner, k, acc))?);
            }
            let count = e.b.int(window);
            let sums = e.for_loop(zero, count, 1, &init, |e, t, carried| {
                let mut rest = t;
                let mut taps = vec![zero; d + 1];
                for (j, &s) in slides.iter().enumerate().rev() {
                    if j == 0 {
                        taps[s] = rest;
                    } else {
                        let n = e.b.int(spec.window[s]);
                        taps[s] = e.b.binary(Binary::Rem, rest, n)?;
                        rest = e.b.div(rest, n)?;
                    }
                }
                let mut coords = Vec::new();
                for s in 0..=d {
                    let padded = spec.pads[s].0.as_const() != Some(0) || spec.pads[s].1.as_const() != Some(0);
                    let Coord::Affine { base, lane, inside } = at[s] else { continue };
                    let base = e.b.mul_int(base, spec.strides[s])?;
                    let tap = e.b.mul_int(taps[s], spec.dilation[s])?;
                    let base = e.b.add(base, tap)?;
                    let low = e.dim(&spec.pads[s].0);
                    let base = e.b.sub(base, low)?;
                    coords.push(Coord::Affine {
                        base,
                        lane: lane.map(|(t, step)| (t, step * spec.strides[s])),
                        inside: inside && !padded,
                    });
                }
                // Outside the operand is the identity.
                let mut mask: Option<Val> = None;
                for (s, &c) in coords.iter().enumerate() {
                    if let Some(m) = e.inside_mask(c, &g.dims(node.inputs[0])[s])? {
                        mask = Some(match mask {
                            Some(o) => e.binary(Binary::And, o, m)?,
                            None => m,
                        });
                    }
                }
                let mut new = Vec::new();
                for (k, &v) in node.inputs.iter().enumerate() {
                    let acc_type = e.b.dtype(carried[k]);
                    let leaf = g.inputs.contains(&v) && mask.is_some() && k == 0;
                    let x = if leaf {
                        e.load(v, &coords, combiner.identity(g.dtype(v)))?
                    } else {
                        e.emit(v, &coords)?
                    };
                    let mut x = e.b.cast(x, acc_type, CAST)?;
                    if let (Some(m), false) = (mask, leaf) {
                        let id = e.b.full(acc_type, &[1], super::initial(combiner, k, acc_type))?;
                        let t = e.common(&[m, x, id])?;
                        x = e.b.select(t[0], t[1], t[2])?;
                    }
                    new.push(e.full(x)?);
                }
                combine(e, combiner, carried, &new)
            })?;
            for (k, (v, &o)) in sums.iter().zip(&node.outputs).enumerate() {
                let t = super::settle(e, combiner, k, *v)?;
                let t = e.b.cast(t, g.dtype(o), CAST)?;
                e.bind(o, t);
            }
            for (&v, &view) in g.outputs.iter().zip(&outs) {
                let t = e.emit(v, &at)?;
                e.store_view(view, t, &at)?;
            }
            Ok(vec![])
        })?;
        Ok(vec![])
    })?;
    let grid = [rows.ceildiv(&per), Dim::from(1), Dim::from(1)];
    Ok(Scheduled { launches: vec![e.launch(grid)], ..Scheduled::default() })
}

/// The last dim along which windows slide, if it is not the very last dim.
fn slides(spec: &WindowSpec) -> Option<usize> {
    let still =
        |i: usize| spec.window[i] == 1 && spec.strides[i] == 1 && spec.pads[i].0 == 0 && spec.pads[i].1 == 0;
    let last = spec.window.len().checked_sub(1).filter(|&d| still(d))?;
    (0..last).rev().find(|&d| !still(d))
}

/// Windows that do not slide along the last dim: tiles of results along dim `along`, vectors along the last.
fn rows(
    r: &Request<'_>,
    n: usize,
    combiner: Combiner,
    spec: &WindowSpec,
    along: usize,
) -> Result<Scheduled, Error> {
    /// Results of a tile.
    const RESULTS: usize = 6;
    let g = r.graph;
    let node = &g.nodes[n];
    let (x, out) = (node.inputs[0], node.outputs[0]);
    let (dims, from) = (g.dims(out).to_vec(), g.dims(x).to_vec());
    let last = dims.len() - 1;
    let acc_type = accumulator(combiner, g.dtype(x));
    let lanes = r.machine.lanes(acc_type);
    let cl = if dims[last].as_const().is_some_and(|c| c <= lanes as i64) { lanes } else { 2 * lanes };
    let mut e = Emitter::new(r.name, g);
    e.write_dims();
    e.leaves_of(&g.outputs, &[out])?;
    e.leaves_of(&[x], &[])?;
    let outs = (0..g.outputs.len()).map(|i| e.output(i)).collect::<Result<Vec<_>, _>>()?;
    let zero = e.b.int(0);
    let outer: Vec<usize> = (0..last).filter(|&d| d != along).collect();
    let outer_dims: Vec<Dim> = outer.iter().map(|&d| dims[d].clone()).collect();
    let pid = e.b.program_id(0)?;
    let mut lead = vec![Coord::at(zero); dims.len()];
    for (c, &d) in delinear(&mut e, pid, &outer_dims)?.into_iter().zip(&outer) {
        lead[d] = c;
    }
    let slid: Vec<usize> = outer.iter().copied().filter(|&d| spec.window[d] > 1).collect();
    let mut places = lead.clone();
    let mut ranges = Vec::new();
    for &d in &outer {
        let Coord::Affine { base, .. } = lead[d] else { continue };
        let line = TapLine {
            taps: spec.window[d],
            stride: spec.strides[d],
            dilation: spec.dilation[d],
            low: &spec.pads[d].0,
            len: &from[d],
        };
        if spec.window[d] > 1 {
            ranges.push(line.range(&mut e, base)?);
        } else {
            let at = e.b.mul_int(base, spec.strides[d])?;
            let low = e.dim(&spec.pads[d].0);
            let inside = spec.pads[d].0 == 0 && spec.pads[d].1 == 0;
            places[d] = Coord::Affine { base: e.b.sub(at, low)?, lane: None, inside };
        }
    }
    let known = dims[along].as_const();
    let width_v = e.dim_param(&dims[along]);
    let tiles = cut(&mut e, zero, width_v, known, RESULTS)?;
    let panels = e.dim_param(&dims[last].ceildiv(&Dim::from(cl as i64)));
    let exact = multiple(&dims[last], cl);
    let padded = spec.pads[along].0 != 0 || spec.pads[along].1 != 0 || known.is_none();
    let low = e.dim(&spec.pads[along].0);
    let none = combiner.identity(g.dtype(x));
    let leaf = g.inputs.contains(&x);
    e.for_loop(zero, panels, 1, &[], |e, p, _| {
        let c0 = e.b.mul_int(p, cl as i64)?;
        for &(size, lo, hi) in &tiles {
            e.for_loop(lo, hi, size as i64, &[], |e, w0, _| {
                e.shape = vec![size, cl];
                let start = e.b.full(acc_type, &[size, cl], combiner.identity(acc_type))?;
                let first = e.b.mul_int(w0, spec.strides[along])?;
                let first = e.b.sub(first, low)?;
                let sum = tap_loops(e, &ranges, start, &mut |e, at, _, mut sum| {
                    let mut coords = places.clone();
                    for (&d, &v) in slid.iter().zip(at) {
                        coords[d] = Coord::at(v);
                    }
                    coords[last] = Coord::along(c0, 1, exact);
                    for k in 0..spec.window[along] {
                        coords[along] = Coord::Affine {
                            base: e.b.add_int(first, k * spec.dilation[along])?,
                            lane: Some((0, spec.strides[along])),
                            inside: !padded,
                        };
                        let t = if leaf {
                            e.load(x, &coords, none)?
                        } else {
                            let t = e.emit(x, &coords)?;
                            let mut mask = None;
                            for (d, &c) in coords.iter().enumerate() {
                                if let Some(m) = e.inside_mask(c, &from[d])? {
                                    mask = Some(match mask {
                                        Some(o) => e.binary(Binary::And, o, m)?,
                                        None => m,
                                    });
                                }
                            }
                            match mask {
                                Some(m) => {
                                    let id = e.b.full(g.dtype(x), &[1, 1], none)?;
                                    let t = e.common(&[m, t, id])?;
                                    e.b.select(t[0], t[1], t[2])?
                                }
                                None => t,
                            }
                        };
                        let t = e.b.cast(t, acc_type, CAST)?;
                        let t = e.full(t)?;
                        sum = combine(e, combiner, &[sum], &[t])?[0];
                    }
                    Ok(sum)
                })?;
                let inside = known.is_some();
                epilogue(e, out, sum, None, &outs, &mut |_, _| {
                    let mut coords = lead.clone();
                    coords[along] = Coord::along(w0, 0, inside);
                    coords[last] = Coord::along(c0, 1, exact);
                    Ok(coords)
                })?;
                Ok(vec![])
            })?;
        }
        Ok(vec![])
    })?;
    let grid = [product(&outer_dims), Dim::from(1), Dim::from(1)];
    Ok(Scheduled { launches: vec![e.launch(grid)], ..Scheduled::default() })
}
