//! Attention: rows of scores made, reduced and multiplied while they are near.
//!
//! For each register tile of queries the products with all keys go to rows in memory of the instance's own, the operations
//! between the contractions run along these rows in place, and the products with the values follow. Nothing is assumed
//! of what lies between but that it goes along rows: softmax with or without masks, caps and biases is one case,
//! in which what the terms add up to divides the results.

use tongtu_graph::{Graph, Op, ValueId};
use tongtu_tensor::dim::Dim;
use tongtu_tensor::scalar::{Binary, Compare};
use tongtu_tensor::{DType, Num};
use tongtu_tile::{Access, TileMap, Val};

use super::contract::{CACHE_LINE, Panels, Side, copy_rows, flush, unit_panel, unit_product};
use super::epilogue::{divided_epilogue, epilogue_view, heavy_epilogue, result_coords};
use super::reduce::{accumulate, bind, coords, initial, levels};
use super::tiles::{Tiles, tallest};
use super::{Request, Scheduled, blocks, delinear, multiple, product};
use crate::emit::{CAST, Coord, Emitter, KernelArg, zero_of};
use crate::error::Error;
use crate::fuse::{Attention, expensive, result_dims};
use crate::softmax::softmax;

/// Most register tiles of queries that an instance takes.
const TILES: i64 = 8;
/// Least queries that are worth a matrix unit.
const LEAST: i64 = 8;

/// The schedule of two contractions and what is between and after them.
pub fn schedule(r: &Request<'_>, at: &Attention) -> Result<Scheduled, Error> {
    let g = r.graph;
    let wrong = |what: &str| Error::unsupported("attention", r.loc, what);
    let (first, second) = (&g.nodes[at.scores], &g.nodes[at.product]);
    let pairs = |op: &Op| if let Op::Contract { batch, .. } = op { batch.len() } else { 0 };
    let side = |node: &tongtu_graph::Node| {
        let left = Side::new(g, node, 0, pairs(&node.op));
        let right = Side::new(g, node, 1, left.first + left.free.len());
        (left, right)
    };
    let ((q, k), (p, v)) = (side(first), side(second));
    let (scores, out) = (first.outputs[0], second.outputs[0]);
    let rows = &at.rows;
    let (Some(score_loops), Some(row_loops)) = (rows.maps.get(&scores), rows.maps.get(&p.value)) else {
        return Err(wrong("the rows have other loops"));
    };
    let (Some(value_dim), Some(&head)) = (v.free_last(), q.over.first()) else {
        return Err(wrong("an operand lacks a dim"));
    };
    let Some(along) = rows.extents.len().checked_sub(1) else { return Err(wrong("there are no rows")) };
    // The loop of each dim of the left operands.
    let query_loop = |d: usize| match q.batch.iter().position(|&b| b == d) {
        Some(i) => score_loops[i],
        None => q.free.iter().position(|&f| f == d).and_then(|i| score_loops[q.first + i]),
    };
    let tall =
        q.free_last().and_then(query_loop).filter(|l| p.free_last().and_then(|d| row_loops[d]) == Some(*l));
    let one = Dim::from(1);
    let m = tall.map_or(one.clone(), |l| rows.extents[l].clone());
    let (keys, head) = (rows.extents[along].clone(), g.dims(q.value)[head].clone());
    let columns = g.dims(v.value)[value_dim].clone();
    let ct = DType::F32;
    let lanes = r.machine.lanes(ct);
    let vectors = 2;
    let types = [q.value, k.value, p.value, v.value].map(|v| g.dtype(v));
    let known = m.as_const().is_none_or(|m| m >= LEAST) && tall.is_some();
    let unit = r.machine.unit(types[0], types[1], ct).filter(|u| {
        let depth = u.shape[2];
        known && types == [DType::BF16; 4] && multiple(&head, depth) && k.for_unit(r) && v.for_unit(r)
    });
    let (mut mr, mut nr) = (tallest(r, vectors), lanes * vectors);
    let (depth, side) = unit.map_or((1, 1), |u| (u.shape[2], 2));
    if let Some(u) = &unit {
        (mr, nr) = (2 * u.shape[0], 2 * u.shape[1]);
    }
    let tiles = match &unit {
        Some(_) => Tiles::padded(&m, mr, TILES, 1),
        None => Tiles::new(&m, mr, TILES, 1),
    };
    // The type of the operands of products in scratch.
    let st = if unit.is_some() { DType::BF16 } else { ct };
    // Several rows at a time hide what one waits for.
    let lines = tiles.sizes[0].min(4);
    let height = tiles.sizes[0].next_multiple_of(lines);
    let width = if lines > 1 { 2 * lanes } else { 4 * lanes };

    let mut s = Scheduled::default();
    let k_packed = k.place(r, &mut s, &k.over, nr, (side, depth))?;
    let v_packed = v.place(r, &mut s, &v.over, nr, (side, depth))?;
    let outer: Vec<usize> = (0..along).filter(|&l| Some(l) != tall).collect();
    let outer_dims: Vec<Dim> = outer.iter().map(|&l| rows.extents[l].clone()).collect();
    let count = product(&outer_dims);
    // Some more than whole blocks, so that rows do not fall on one another in caches.
    let row_len = keys.ceildiv(&Dim::from(4 * lanes as i64)) * (4 * lanes as i64) + lanes as i64;
    let room = Dim::from(height as i64) * &row_len;
    let instances = &count * &tiles.blocks;
    s.temps.push((ct, vec![instances.clone(), room.clone()]));
    let temp = KernelArg::Temp(s.temps.len() - 1);
    // The rows as a matrix unit reads them.
    let narrow_len =
        keys.ceildiv(&Dim::from(CACHE_LINE as i64)) * CACHE_LINE as i64 + (CACHE_LINE / 2) as i64;
    let narrow_room = Dim::from(height as i64) * &narrow_len;
    let narrow_temp = unit.map(|_| {
        s.temps.push((st, vec![instances, narrow_room.clone()]));
        KernelArg::Temp(s.temps.len() - 1)
    });

    let mut e = Emitter::new(r.name, g);
    e.leaves_of(&g.outputs, &[out])?;
    e.leaves_of(&[p.value], &[scores])?;
    e.leaves_of(&[q.value], &[])?;
    let k_view = k.panels(r, &mut e, k_packed)?;
    let v_view = v.panels(r, &mut e, v_packed)?;
    let outs = (0..g.outputs.len()).map(|i| e.output(i)).collect::<Result<Vec<_>, _>>()?;
    let results = result_dims(g, at.product).ok_or_else(|| wrong("the results have other dims"))?;
    let head_room = (head.as_const().unwrap_or(0) as usize).next_multiple_of(4 * lanes) + lanes;
    let q_scratch = e.b.alloc(st, height * head_room)?;
    let by_line = heavy_epilogue(&after(g, at)) || unit.is_some();
    let finish_view = if by_line { Some(epilogue_view(&mut e, ct, height, nr)?) } else { None };
    let s_buffer = e.buffer(temp, ct, Access::ReadWrite);
    let (zero, one_v) = (e.b.int(0), e.b.int(1));
    let q_view = {
        let (rows, cols) = (e.b.int(height as i64), e.b.int(head_room as i64));
        e.b.view(q_scratch, zero, &[rows, cols], &[cols, one_v])?
    };
    let (blocks_v, len_v) = (e.dim_param(&tiles.blocks), e.dim_param(&row_len));
    let (pid_m, pid_o) = (e.b.program_id(0)?, e.b.program_id(2)?);
    let instance = {
        let base = e.b.mul(pid_o, blocks_v)?;
        e.b.add(base, pid_m)?
    };
    let rows_of = |e: &mut Emitter<'_>, buffer: Val, room: &Dim, len: &Dim| -> Result<Val, Error> {
        let (room, len) = (e.dim_param(room), e.dim_param(len));
        let base = e.b.mul(instance, room)?;
        let rows = e.b.int(height as i64);
        Ok(e.b.view(buffer, base, &[rows, len], &[len, one_v])?)
    };
    let s_view = rows_of(&mut e, s_buffer, &room, &row_len)?;
    let p_view = match narrow_temp {
        Some(temp) => {
            let buffer = e.buffer(temp, st, Access::ReadWrite);
            rows_of(&mut e, buffer, &narrow_room, &narrow_len)?
        }
        None => s_view,
    };
    let (m_lo, m_hi) = tiles.block(&mut e, pid_m)?;
    let mut loops: Vec<Option<Coord>> = vec![None; rows.extents.len()];
    for (&l, c) in outer.iter().zip(delinear(&mut e, pid_o, &outer_dims)?) {
        loops[l] = Some(c);
    }
    let of = |l: Option<usize>| l.and_then(|l| loops[l]).unwrap_or(Coord::at(zero));
    let panels = |d: &Dim| d.ceildiv(&Dim::from(nr as i64));
    let (keys_v, head_v) = (e.dim_param(&keys), e.dim(&head));
    let (key_panels, value_panels) = (e.dim_param(&panels(&keys)), e.dim(&panels(&columns)));
    let (keys_exact, columns_exact) = (multiple(&keys, nr), multiple(&columns, nr));
    let levels = levels(g);
    let defs = g.definitions();
    // What divides all terms of a row may as well divide what they are multiplied and added up to.
    let node = |v: ValueId| defs[v.index()].map(|n| &g.nodes[n]);
    let quotient = match node(p.value) {
        Some(n) if unit.is_some() && matches!(n.op, Op::Cast { .. }) => n.inputs[0],
        _ => p.value,
    };
    let softmax = softmax(node, quotient).filter(|_| g.dtype(quotient) == DType::F32);
    let divisor_at = e.b.sub(len_v, one_v)?;

    // A register tile times a panel of one side's columns.
    let multiply = |e: &mut Emitter<'_>,
                    side: &Side,
                    packed: &Option<Panels>,
                    left: Val,
                    size: usize,
                    column: Val,
                    exact: bool,
                    steps: Val,
                    batch: &dyn Fn(usize) -> Coord|
     -> Result<Val, Error> {
        let init = e.b.full(ct, &[size, nr], zero_of(ct))?;
        if let (Some(_), Some(panels)) = (&unit, packed) {
            let lead: Vec<Coord> = (0..side.batch.len()).map(batch).chain([Coord::at(column)]).collect();
            let panel = unit_panel(e, panels, lead.into_iter())?;
            let acc = e.for_loop(zero, steps, depth as i64, &[init], |e, i, c| {
                let two = e.b.int(2);
                let group = e.b.div(i, two)?;
                Ok(vec![unit_product(
                    e,
                    [size, nr, depth, 2],
                    [st; 2],
                    (left, [zero, i]),
                    (panel, group),
                    c[0],
                )?])
            })?;
            return Ok(acc[0]);
        }
        let acc = e.for_loop(zero, steps, 1, &[init], |e, i, c| {
            let map = TileMap::along(&[size, 1], &[0, 1]);
            let a = e.b.load(left, &[zero, i], map, &[true, true], zero_of(ct))?;
            let b = match packed {
                Some((buffer, (view, strides), dims)) => {
                    let mut c: Vec<Coord> = (0..side.batch.len()).map(batch).collect();
                    c.extend([Coord::at(column), Coord::at(i), Coord::along(zero, 1, true)]);
                    e.load_view(*buffer, *view, strides, dims, &c, zero_of(g.dtype(side.value)))?
                }
                None => {
                    let n0 = e.b.mul_int(column, nr as i64)?;
                    let c: Vec<Coord> = (0..g.dims(side.value).len())
                        .map(|d| match side.batch.iter().position(|&x| x == d) {
                            Some(j) => batch(j),
                            None if side.over.contains(&d) => Coord::at(i),
                            None => Coord::along(n0, 1, exact),
                        })
                        .collect();
                    let t = e.emit(side.value, &c)?;
                    e.b.broadcast(t, &[1, nr])?
                }
            };
            let b = e.b.cast(b, ct, CAST)?;
            Ok(vec![e.b.mma(c[0], a, b)?])
        })?;
        Ok(acc[0])
    };

    tiles.cover(&mut e, m_lo, m_hi, &mut |e, m0, size| {
        let m1 = e.b.add_int(m0, size as i64)?;
        let m1 = if tiles.padded { e.b.min(m1, m_hi)? } else { m1 };
        copy_rows(e, q.value, q_view, st, lanes, (m0, m1), (zero, head_v), head.as_const(), &|row, kc| {
            (0..g.dims(q.value).len())
                .map(|d| match query_loop(d) {
                    _ if q.over.contains(&d) => kc,
                    Some(l) if Some(l) == tall => row,
                    l => of(l),
                })
                .collect()
        })?;
        e.for_loop(zero, key_panels, 1, &[], |e, column, _| {
            e.shape = vec![size, nr];
            let batch = |j: usize| of(score_loops[j]);
            let acc = multiply(e, &k, &k_view, q_view, size, column, keys_exact, head_v, &batch)?;
            let at = e.b.mul_int(column, nr as i64)?;
            e.b.store(s_view, acc, &[zero, at], TileMap::along(&[size, nr], &[0, 1]), &[true, true])?;
            Ok(vec![])
        })?;
        // Along the rows, in place, a few at a time.
        let block = vec![lines, width];
        e.shape = block.clone();
        let map = TileMap::along(&block, &[0, 1]);
        let size_v = e.b.sub(m1, m0)?;
        let whole = size.is_multiple_of(lines) && (!tiles.padded || multiple(&m, size));
        let mut divided = false;
        e.for_loop(zero, size_v, lines as i64, &[], |e, row, _| {
            let mut loops = loops.clone();
            if let Some(l) = tall {
                loops[l] = Some(Coord::along(e.b.add(m0, row)?, 0, whole));
            }
            let load = |e: &mut Emitter<'_>, held: ValueId, i: Val| -> Result<(), Error> {
                let t = e.b.load(s_view, &[row, i], map.clone(), &[true, true], zero_of(ct))?;
                let t = e.b.cast(t, g.dtype(held), CAST)?;
                e.bind(held, t);
                Ok(())
            };
            let store =
                |e: &mut Emitter<'_>, v: ValueId, i: Val, loops: &[Option<Coord>], mask: Option<Val>| {
                    let c = coords(e, rows, v, loops)?;
                    let t = e.emit(v, &c)?;
                    let factor = v == p.value || softmax.is_some_and(|s| v == s.terms);
                    let mut t = e.b.cast(t, if factor { st } else { ct }, CAST)?;
                    let mut to = s_view;
                    if factor {
                        t = flush(e, t)?;
                        to = p_view;
                    }
                    // What a matrix unit reads past the end is zero.
                    if let (Some(mask), true) = (mask, factor && unit.is_some()) {
                        t = e.full(t)?;
                        let none = e.b.full(st, &e.shape.clone(), zero_of(st))?;
                        t = e.b.select(mask, t, none)?;
                    }
                    e.store_view(to, t, &[Coord::along(row, 0, true), Coord::along(i, 1, true)])
                };
            let within = |e: &mut Emitter<'_>, i: Val, inside: bool| -> Result<Option<Val>, Error> {
                if inside {
                    return Ok(None);
                }
                let index = e.index_tile(Coord::along(i, 1, true))?;
                let end = e.unit(keys_v)?;
                let mask = e.compare(Compare::Lt, index, end)?;
                Ok(Some(e.full(mask)?))
            };
            let exact = multiple(&keys, width);
            let mut held = scores;
            for (i, nodes) in levels.iter().enumerate() {
                let later = levels[i + 1..].iter().flatten().map(|&n| g.nodes[n].inputs[0]);
                let later: Vec<ValueId> = later.chain([p.value]).collect();
                let kept = replaces(g, nodes, &later, held);
                let init = initial(e, r, nodes, &block)?;
                let sums = blocks(e, zero, keys_v, width, exact, &init, |e, i, inside, c| {
                    load(e, held, i)?;
                    let mut at = loops.clone();
                    at[along] = Some(Coord::along(i, 1, inside));
                    let mask = within(e, i, inside)?;
                    let sums = accumulate(e, r, rows, nodes, &at, c, mask)?;
                    if let Some(v) = kept {
                        store(e, v, i, &at, mask)?;
                    }
                    Ok(sums)
                })?;
                held = kept.unwrap_or(held);
                bind(e, r, nodes, &sums, true)?;
            }
            if let Some(s) = softmax.filter(|s| s.terms == held) {
                let c = coords(e, rows, s.sum, &loops)?;
                let t = e.emit(s.sum, &c)?;
                // There is no sum without keys.
                let none = e.b.full(ct, &[lines, 1], zero_of(ct))?;
                let one = e.b.full(ct, &[lines, 1], Num::Float(1.0))?;
                let empty = e.b.compare(Compare::Eq, t, none)?;
                let t = e.b.select(empty, one, t)?;
                let map = TileMap::along(&[lines, 1], &[0, 1]);
                e.b.store(s_view, t, &[row, divisor_at], map, &[true, true])?;
                divided = true;
                return Ok(vec![]);
            }
            blocks(e, zero, keys_v, width, exact, &[], |e, i, inside, _| {
                load(e, held, i)?;
                let mut at = loops.clone();
                at[along] = Some(Coord::along(i, 1, inside));
                let mask = within(e, i, inside)?;
                store(e, p.value, i, &at, mask)?;
                Ok(vec![])
            })?;
            Ok(vec![])
        })?;
        e.for_loop(zero, value_panels, 1, &[], |e, column, _| {
            e.shape = vec![size, nr];
            let batch = |j: usize| of(row_loops[p.batch[j]]);
            let mut acc = multiply(e, &v, &v_view, p_view, size, column, columns_exact, keys_v, &batch)?;
            if divided && unit.is_none() {
                let map = TileMap::along(&[size, 1], &[0, 1]);
                let t = e.b.load(s_view, &[zero, divisor_at], map, &[true, true], zero_of(ct))?;
                let t = e.b.broadcast(t, &[size, nr])?;
                acc = e.b.binary(Binary::Div, acc, t)?;
            }
            let n0 = e.b.mul_int(column, nr as i64)?;
            let most = unit.map(|_| size_v);
            let divisor = unit.filter(|_| divided).map(|_| (s_view, divisor_at));
            divided_epilogue(e, out, acc, finish_view, (most, divisor), &outs, &mut |e, row| {
                let place = |e: &mut Emitter<'_>, l: Option<usize>| -> Result<Coord, Error> {
                    Ok(match row {
                        _ if l.is_none() || l != tall => of(l),
                        None => Coord::along(m0, 0, true),
                        Some(row) => Coord::at(e.b.add(m0, row)?),
                    })
                };
                let mut c = Vec::new();
                for &d in p.batch.iter().chain(&p.free) {
                    c.push(place(e, row_loops[d])?);
                }
                c.push(Coord::along(n0, 1, columns_exact));
                Ok(result_coords(e, &results, &c))
            })?;
            Ok(vec![])
        })?;
        Ok(())
    })?;
    s.launches.push(e.launch([tiles.blocks.clone(), one, count]));
    Ok(s)
}

/// What follows the second contraction.
fn after(g: &Graph, at: &Attention) -> Graph {
    Graph { nodes: g.nodes[at.product..].to_vec(), ..Graph::default() }
}

/// The operand of a level's reduction, if it is dear to compute and all that is computed later reaches `held` through it
/// only, so that it can take its place.
fn replaces(g: &Graph, nodes: &[usize], later: &[ValueId], held: ValueId) -> Option<ValueId> {
    let [n] = nodes[..] else { return None };
    let v = g.nodes[n].inputs[0];
    let defs = g.definitions();
    let reaches = |from: &[ValueId], stop: &[ValueId]| -> (bool, bool) {
        let (mut seen, mut stack) = (vec![false; g.values.len()], from.to_vec());
        let (mut found, mut dear) = (false, false);
        while let Some(x) = stack.pop() {
            found |= x == held;
            if x == held || stop.contains(&x) || std::mem::replace(&mut seen[x.index()], true) {
                continue;
            }
            let Some(n) = defs[x.index()] else { continue };
            // Reductions are computed by then.
            if !matches!(g.nodes[n].op, Op::Reduce { .. }) {
                dear |= expensive(&g.nodes[n].op);
                stack.extend(&g.nodes[n].inputs);
            }
        }
        (found, dear)
    };
    let (_, dear) = reaches(&[v], &[]);
    let (found, _) = reaches(later, &[v]);
    (v != held && dear && !found).then_some(v)
}
