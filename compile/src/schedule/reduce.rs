//! Groups with reductions: softmax, normalisations, means, arg-reductions, and what is fused with them.
//!
//! For each position of the kept loops the reductions are computed level by level, each level in one pass over the
//! reduced loops that evaluates the elementwise operations again; the last pass stores the result.

use std::collections::HashMap;

use tongtu_graph::{Graph, Op, ValueId};
use tongtu_tensor::DType;
use tongtu_tensor::dim::Dim;
use tongtu_tensor::scalar::Compare;
use tongtu_tile::Val;

use super::{
    Request, Scheduled, accumulator, blocks, combine, delinear, multiple, product, rows_per_instance,
};
use crate::emit::{CAST, Coord, Emitter};
use crate::error::Error;
use crate::fuse::RowLoops;

struct Plan<'a> {
    rows: &'a RowLoops,
    /// Reduce nodes, level by level.
    levels: Vec<Vec<usize>>,
    /// Whether the results vary along the reduced loops.
    full: bool,
}

/// The reductions of a graph, level by level: each depends on those of earlier levels only.
pub(super) fn levels(g: &Graph) -> Vec<Vec<usize>> {
    let mut level_of: HashMap<ValueId, usize> = HashMap::new();
    let mut levels: Vec<Vec<usize>> = Vec::new();
    for (n, node) in g.nodes.iter().enumerate() {
        let below = node.inputs.iter().filter_map(|v| level_of.get(v)).copied().max().unwrap_or(0);
        let level = if matches!(node.op, Op::Reduce { .. }) {
            if levels.len() == below {
                levels.push(Vec::new());
            }
            levels[below].push(n);
            below + 1
        } else {
            below
        };
        node.outputs.iter().for_each(|&o| {
            level_of.insert(o, level);
        });
    }
    levels
}

/// The schedule of a group with reductions.
pub fn schedule(r: &Request<'_>, rows: &RowLoops) -> Result<Scheduled, Error> {
    let g = r.graph;
    let levels = levels(g);
    let out_map =
        rows.maps.get(&g.outputs[0]).ok_or_else(|| Error::unsupported("reduce", r.loc, "no loops"))?;
    let full = out_map.iter().flatten().any(|l| rows.reduced.contains(l));
    let first = levels.first().and_then(|l| l.first()).copied();
    let Some(first) = first else { return Err(Error::unsupported("reduce", r.loc, "no reduction")) };
    let operand = g.nodes[first].inputs[0];
    let inner = rows
        .maps
        .get(&operand)
        .and_then(|m| m.iter().rev().flatten().find(|&&l| rows.extents[l].as_const() != Some(1)).copied());
    let plan = Plan { rows, levels, full };
    match inner {
        Some(l) if !rows.reduced.contains(&l) => across(r, &plan, l),
        _ => along(r, &plan),
    }
}

/// The coordinates of a value's dims from those of the loops.
pub(super) fn coords(
    e: &mut Emitter<'_>,
    rows: &RowLoops,
    v: ValueId,
    loops: &[Option<Coord>],
) -> Result<Vec<Coord>, Error> {
    let zero = e.b.int(0);
    match rows.maps.get(&v) {
        Some(m) => Ok(m.iter().map(|l| l.and_then(|l| loops[l]).unwrap_or(Coord::at(zero))).collect()),
        None => Err(Error::unsupported("reduce", &Default::default(), "a value without loops")),
    }
}

/// Accumulators of the reductions of a level, before anything is combined.
pub(super) fn initial(
    e: &mut Emitter<'_>,
    r: &Request<'_>,
    nodes: &[usize],
    shape: &[usize],
) -> Result<Vec<Val>, Error> {
    let mut init = Vec::new();
    for &n in nodes {
        let node = &r.graph.nodes[n];
        let Op::Reduce { combiner, .. } = node.op else { continue };
        for (k, &v) in node.inputs.iter().enumerate() {
            let d = r.graph.dtype(v);
            let acc = accumulator(combiner, d);
            init.push(e.b.full(acc, shape, super::initial(combiner, k, acc))?);
        }
    }
    Ok(init)
}

/// One block of every reduction of a level into its accumulators.
pub(super) fn accumulate(
    e: &mut Emitter<'_>,
    r: &Request<'_>,
    rows: &RowLoops,
    nodes: &[usize],
    loops: &[Option<Coord>],
    carried: &[Val],
    mask: Option<Val>,
) -> Result<Vec<Val>, Error> {
    let mut out = Vec::new();
    let mut at = 0;
    for &n in nodes {
        let node = &r.graph.nodes[n];
        let Op::Reduce { combiner, .. } = node.op else { continue };
        let k = node.inputs.len();
        let old = &carried[at..at + k];
        at += k;
        let mut new = Vec::new();
        for (i, &v) in node.inputs.iter().enumerate() {
            let c = coords(e, rows, v, loops)?;
            let t = e.emit(v, &c)?;
            let t = e.full(t)?;
            let t = if i == 0 { e.b.cast(t, e.b.dtype(old[0]), CAST)? } else { t };
            new.push(t);
        }
        if let Some(m) = mask {
            // Lanes past the end keep what they have.
            let kept = combine(e, combiner, old, &new)?;
            for (o, k) in old.iter().zip(kept) {
                out.push(e.b.select(m, k, *o)?);
            }
        } else {
            out.extend(combine(e, combiner, old, &new)?);
        }
    }
    Ok(out)
}

/// Binds finished accumulators to the reductions' results, one block of dims that are all kept.
pub(super) fn bind(
    e: &mut Emitter<'_>,
    r: &Request<'_>,
    nodes: &[usize],
    carried: &[Val],
    across_lanes: bool,
) -> Result<(), Error> {
    let mut at = 0;
    for &n in nodes {
        let node = &r.graph.nodes[n];
        let Op::Reduce { combiner, .. } = node.op else { continue };
        let k = node.inputs.len();
        let mut vals = carried[at..at + k].to_vec();
        at += k;
        if across_lanes {
            let dims = vec![e.shape.len() - 1];
            vals = e.b.add_inst(tongtu_tile::Op::Reduce { combiner, dims }, &vals)?;
        }
        for (k, (v, &o)) in vals.iter().zip(&node.outputs).enumerate() {
            let v = super::settle(e, combiner, k, *v)?;
            let v = e.b.cast(v, r.graph.dtype(o), CAST)?;
            let v = match e.shape.split_last() {
                Some((_, lines)) if across_lanes => e.b.reshape(v, &[lines, &[1]].concat())?,
                _ => v,
            };
            e.bind(o, v);
        }
    }
    Ok(())
}

type Body<'b> = dyn FnMut(&mut Emitter<'_>, &[Option<Coord>], &[Val]) -> Result<Vec<Val>, Error> + 'b;

/// Nested loops over the given loops, outermost first; the body gets their coordinates.
fn nest(
    e: &mut Emitter<'_>,
    rows: &RowLoops,
    over: &[usize],
    loops: &[Option<Coord>],
    init: &[Val],
    body: &mut Body<'_>,
) -> Result<Vec<Val>, Error> {
    let Some((&l, rest)) = over.split_first() else { return body(e, loops, init) };
    let (zero, n) = (e.b.int(0), e.dim(&rows.extents[l]));
    e.for_loop(zero, n, 1, init, |e, i, c| {
        let mut inner = loops.to_vec();
        inner[l] = Some(Coord::at(i));
        nest(e, rows, rest, &inner, c, body)
    })
}

/// Vectors along the innermost reduced loop; one row of results at a time.
fn along(r: &Request<'_>, p: &Plan<'_>) -> Result<Scheduled, Error> {
    let (g, rows) = (r.graph, p.rows);
    let kept: Vec<usize> = (0..rows.extents.len()).filter(|l| !rows.reduced.contains(l)).collect();
    let kept_dims: Vec<Dim> = kept.iter().map(|&l| rows.extents[l].clone()).collect();
    let Some((&inner, outer)) = rows.reduced.split_last() else {
        return across(r, p, usize::MAX);
    };
    let mut e = Emitter::new(r.name, g);
    e.leaves_of(&g.outputs, &[])?;
    let outs = (0..g.outputs.len()).map(|i| e.output(i)).collect::<Result<Vec<_>, _>>()?;
    let last = rows.extents[inner].clone();
    let width = match last.as_const() {
        Some(n) if (n as usize) < 4 * r.machine.lanes(DType::F32) => (n.max(1) as usize).next_power_of_two(),
        _ => 4 * r.machine.lanes(DType::F32),
    };
    let exact = multiple(&last, width);
    e.shape = vec![width];
    let reduced_dims: Vec<Dim> = rows.reduced.iter().map(|&l| rows.extents[l].clone()).collect();
    let per = rows_per_instance(&product(&reduced_dims), super::map::GRAIN);
    let count = product(&kept_dims);
    let (pid, per_v, count_v) = (e.b.program_id(0)?, e.dim_param(&per), e.dim_param(&count));
    let lo = e.b.mul(pid, per_v)?;
    let end = e.b.add(lo, per_v)?;
    let hi = e.b.min(end, count_v)?;
    e.for_loop(lo, hi, 1, &[], |e, row, _| {
        let at = delinear(e, row, &kept_dims)?;
        let mut loops: Vec<Option<Coord>> = vec![None; rows.extents.len()];
        for (&l, c) in kept.iter().zip(at) {
            loops[l] = Some(c);
        }
        let (zero, n) = (e.b.int(0), e.dim_param(&last));
        for nodes in &p.levels {
            let init = initial(e, r, nodes, &[width])?;
            let sums = nest(e, rows, outer, &loops, &init, &mut |e, loops, c| {
                blocks(e, zero, n, width, exact, c, |e, i, inside, c| {
                    let mut at = loops.to_vec();
                    at[inner] = Some(Coord::along(i, 0, inside));
                    let mask = if inside {
                        None
                    } else {
                        let index = e.index_tile(Coord::along(i, 0, true))?;
                        let end = e.b.broadcast(n, &[width])?;
                        Some(e.b.compare(Compare::Lt, index, end)?)
                    };
                    accumulate(e, r, rows, nodes, &at, c, mask)
                })
            })?;
            bind(e, r, nodes, &sums, true)?;
        }
        if p.full {
            nest(e, rows, outer, &loops, &[], &mut |e, loops, _| {
                blocks(e, zero, n, width, exact, &[], |e, i, inside, _| {
                    let mut at = loops.to_vec();
                    at[inner] = Some(Coord::along(i, 0, inside));
                    store(e, r, rows, &outs, &at)?;
                    Ok(vec![])
                })
            })?;
        } else {
            let whole = std::mem::replace(&mut e.shape, vec![1]);
            store(e, r, rows, &outs, &loops)?;
            e.shape = whole;
        }
        Ok(vec![])
    })?;
    let grid = [count.ceildiv(&per), Dim::from(1), Dim::from(1)];
    Ok(Scheduled { launches: vec![e.launch(grid)], ..Scheduled::default() })
}

fn store(
    e: &mut Emitter<'_>,
    r: &Request<'_>,
    rows: &RowLoops,
    outs: &[Val],
    loops: &[Option<Coord>],
) -> Result<(), Error> {
    for (&v, &view) in r.graph.outputs.iter().zip(outs) {
        let c = coords(e, rows, v, loops)?;
        let t = e.emit(v, &c)?;
        e.store_view(view, t, &c)?;
    }
    Ok(())
}

/// Vectors along a kept loop (the innermost in memory); a block of results at a time.
fn across(r: &Request<'_>, p: &Plan<'_>, lane: usize) -> Result<Scheduled, Error> {
    let (g, rows) = (r.graph, p.rows);
    let kept: Vec<usize> =
        (0..rows.extents.len()).filter(|l| !rows.reduced.contains(l) && *l != lane).collect();
    let kept_dims: Vec<Dim> = kept.iter().map(|&l| rows.extents[l].clone()).collect();
    let mut e = Emitter::new(r.name, g);
    e.leaves_of(&g.outputs, &[])?;
    let outs = (0..g.outputs.len()).map(|i| e.output(i)).collect::<Result<Vec<_>, _>>()?;
    let last = rows.extents.get(lane).cloned().unwrap_or(Dim::from(1));
    let wide = 2 * r.machine.lanes(DType::F32);
    let width = match last.as_const() {
        Some(n) if (n as usize) < wide => (n.max(1) as usize).next_power_of_two(),
        _ => wide,
    };
    let inside = multiple(&last, width);
    e.shape = vec![width];
    let reduced_dims: Vec<Dim> = rows.reduced.iter().map(|&l| rows.extents[l].clone()).collect();
    let block_count = last.ceildiv(&Dim::from(width as i64));
    let per = rows_per_instance(&(product(&reduced_dims) * width as i64), super::map::GRAIN);
    let count = product(&kept_dims) * &block_count;
    let (pid, per_v, count_v) = (e.b.program_id(0)?, e.dim_param(&per), e.dim_param(&count));
    let lo = e.b.mul(pid, per_v)?;
    let end = e.b.add(lo, per_v)?;
    let hi = e.b.min(end, count_v)?;
    e.for_loop(lo, hi, 1, &[], |e, row, _| {
        let mut dims = kept_dims.clone();
        dims.push(block_count.clone());
        let at = delinear(e, row, &dims)?;
        let mut loops: Vec<Option<Coord>> = vec![None; rows.extents.len()];
        for (&l, c) in kept.iter().zip(&at) {
            loops[l] = Some(*c);
        }
        if let (Some(Coord::Affine { base, .. }), true) = (at.last(), lane < rows.extents.len()) {
            let base = e.b.mul_int(*base, width as i64)?;
            loops[lane] = Some(Coord::along(base, 0, inside));
        }
        for nodes in &p.levels {
            let init = initial(e, r, nodes, &[width])?;
            let sums = nest(e, rows, &rows.reduced, &loops, &init, &mut |e, loops, c| {
                accumulate(e, r, rows, nodes, loops, c, None)
            })?;
            bind(e, r, nodes, &sums, false)?;
        }
        if p.full {
            nest(e, rows, &rows.reduced, &loops, &[], &mut |e, loops, _| {
                store(e, r, rows, &outs, loops)?;
                Ok(vec![])
            })?;
        } else {
            store(e, r, rows, &outs, &loops)?;
        }
        Ok(vec![])
    })?;
    let grid = [count.ceildiv(&per), Dim::from(1), Dim::from(1)];
    Ok(Scheduled { launches: vec![e.launch(grid)], ..Scheduled::default() })
}
