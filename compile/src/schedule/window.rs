//! Sliding-window reductions (pooling) with the elementwise operations that follow: vectors along the last dim.

use tongtu_graph::Op;
use tongtu_tensor::DType;
use tongtu_tensor::dim::Dim;
use tongtu_tensor::scalar::Binary;
use tongtu_tile::Val;

use super::{
    Request, Scheduled, accumulator, blocks, combine, delinear, identity, product, rows_per_instance,
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
                        e.load(v, &coords, identity(combiner, g.dtype(v)))?
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
