//! Contractions: blocked, packed, register-tiled matrix products, with the elementwise operations that follow.
//!
//! The left operand's rows are copied block by block into scratch with a fixed row length; the right operand is read in panels
//! of as many columns as the accumulators hold, packed beforehand unless its columns are next to each other in memory
//! already. Accumulators stay in registers over a block of the summed dim (Goto and van de Geijn, "Anatomy of
//! High-Performance Matrix Multiplication", 2008).

use tongtu_graph::{Op, ValueId};
use tongtu_tensor::DType;
use tongtu_tensor::dim::Dim;
use tongtu_tensor::scalar::{Binary, Compare};
use tongtu_tile::{Access, TileMap, Val};

use super::{Pack, Request, Scheduled, blocks, delinear, multiple, product};
use crate::emit::{CAST, Coord, Emitter, zero_of};
use crate::error::Error;

/// Length of a block of the summed dim.
const KC: i64 = 512;
/// Rows of the left operand in a block, in register tiles.
const MC_TILES: i64 = 8;
/// Panels of the right operand in a block.
const NC_PANELS: i64 = 16;

/// The register tile of a machine for an accumulator type: rows, vectors a row.
pub fn register_tile(r: &Request<'_>) -> (usize, usize) {
    if r.machine.registers >= 32 { (14, 2) } else { (6, 2) }
}

/// The type that products and sums are computed in.
pub fn compute_type(acc: DType) -> DType {
    match acc {
        DType::F64 => DType::F64,
        d if d.is_float() => DType::F32,
        d => d,
    }
}

/// One operand's dims by role.
struct Side {
    value: ValueId,
    batch: Vec<usize>,
    free: Vec<usize>,
    over: Vec<usize>,
    /// Position of its first free dim in the result.
    first: usize,
}

impl Side {
    fn free_last(&self) -> Option<usize> {
        self.free.last().copied()
    }
}

/// The sizes of register tiles that cover a number of rows: any number, or `total` of them in blocks of a multiple of
/// the first size.
pub fn row_tiles(rows: usize, total: Option<i64>) -> Vec<usize> {
    let mut sizes = vec![rows];
    for s in [rows / 3, 1] {
        if s >= 1 && sizes.last() != Some(&s) {
            sizes.push(s);
        }
    }
    let Some(mut rest) = total else { return sizes };
    let mut needed = Vec::new();
    for s in sizes {
        if rest >= s as i64 || s == 1 && rest > 0 {
            needed.push(s);
        }
        rest %= s as i64;
    }
    if needed.is_empty() { vec![1] } else { needed }
}

/// Runs `tile(e, row, size)` over `lo..hi` with the largest tiles first.
pub fn cover_rows(
    e: &mut Emitter<'_>,
    lo: Val,
    hi: Val,
    sizes: &[usize],
    tile: &mut dyn FnMut(&mut Emitter<'_>, Val, usize) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut lo = lo;
    for &size in sizes {
        let hi_tiles = if size == 1 {
            hi
        } else {
            let span = e.b.sub(hi, lo)?;
            let s = e.b.int(size as i64);
            let rest = e.b.binary(Binary::Rem, span, s)?;
            e.b.sub(hi, rest)?
        };
        e.for_loop(lo, hi_tiles, size as i64, &[], |e, m, _| {
            tile(e, m, size)?;
            Ok(vec![])
        })?;
        lo = hi_tiles;
    }
    Ok(())
}

/// The schedule of a contraction and what follows it.
pub fn schedule(r: &Request<'_>, n: usize) -> Result<Scheduled, Error> {
    let g = r.graph;
    let node = &g.nodes[n];
    let Op::Contract { batch, over, acc } = &node.op else {
        return Err(Error::unsupported("contract", r.loc, "the anchor is another operation"));
    };
    let (batch, over, acc) = (batch.clone(), over.clone(), *acc);
    let side = |k: usize, first: usize| {
        let value = node.inputs[k];
        let pick = |p: &(usize, usize)| if k == 0 { p.0 } else { p.1 };
        let batch: Vec<usize> = batch.iter().map(pick).collect();
        let over: Vec<usize> = over.iter().map(pick).collect();
        let free: Vec<usize> =
            (0..g.dims(value).len()).filter(|d| !batch.contains(d) && !over.contains(d)).collect();
        Side { value, batch, free, over, first }
    };
    let lhs = side(0, batch.len());
    let rhs = side(1, batch.len() + lhs.free.len());
    let extent = |s: &Side| s.free_last().map_or(Dim::from(1), |d| g.dims(s.value)[d].clone());
    let ct = compute_type(acc);
    let lanes = r.machine.lanes(ct);
    // Columns go along vectors: the operand with few columns gives the rows.
    let narrow = |d: &Dim| d.as_const().is_some_and(|c| c < lanes as i64 / 2);
    let swap = narrow(&extent(&rhs)) && !narrow(&extent(&lhs));
    let (a, b) = if swap { (rhs, lhs) } else { (lhs, rhs) };
    let (m, nn) = (extent(&a), extent(&b));
    let (mut mr, vectors) = register_tile(r);
    let vectors = if nn.as_const().is_some_and(|c| c <= lanes as i64) { 1 } else { vectors };
    if vectors == 1 {
        mr = if r.machine.registers >= 32 { 24 } else { 10 };
    }
    let nr = lanes * vectors;

    let mut s = Scheduled::default();
    // The summed dim that is walked innermost: the one along which the rows lie in memory, else the last.
    let a_last = g.dims(a.value).len().saturating_sub(1);
    let ki = a.over.iter().position(|&d| d == a_last).unwrap_or(over.len().saturating_sub(1));
    let k_outer: Vec<usize> = (0..over.len()).filter(|&i| i != ki).collect();
    let k_dim = |i: usize| g.dims(a.value)[a.over[i]].clone();
    let k = if over.is_empty() { Dim::from(1) } else { k_dim(ki) };
    let k_outer_dims: Vec<Dim> = k_outer.iter().map(|&i| k_dim(i)).collect();

    let b_dims = g.dims(b.value).to_vec();
    let b_position = g.inputs.iter().position(|&v| v == b.value);
    let b_columns_last = b.free_last().is_some_and(|d| d + 1 == b_dims.len());
    let b_constant = b_position.is_some_and(|p| matches!(r.constants.get(p), Some(Some(_))));
    let pack = match (b.free_last(), b_position) {
        (Some(last), Some(input)) if b_constant || !b_columns_last => {
            let mut perm: Vec<usize> = b.batch.clone();
            perm.extend(&b.free[..b.free.len() - 1]);
            let columns = perm.len();
            perm.push(last);
            perm.extend(k_outer.iter().map(|&i| b.over[i]));
            if !over.is_empty() {
                perm.push(b.over[ki]);
            }
            Some(Pack { input, perm, columns, width: nr })
        }
        _ => None,
    };
    let packed = match pack {
        Some(p) => {
            let dims = p.dims(&b_dims);
            Some((p.place(r, &mut s)?, dims))
        }
        None => None,
    };

    let mut e = Emitter::new(r.name, g);
    let out = node.outputs[0];
    e.leaves_of(&g.outputs, &[out])?;
    e.leaves_of(&[a.value], &[])?;
    let panel_view = match packed {
        Some((arg, dims)) => {
            let buffer = e.buffer(arg, g.dtype(b.value), Access::Read);
            Some((buffer, e.view(buffer, &dims)?, dims))
        }
        None => {
            e.leaves_of(&[b.value], &[])?;
            None
        }
    };
    let outs = (0..g.outputs.len()).map(|i| e.output(i)).collect::<Result<Vec<_>, _>>()?;

    let single = k_outer.is_empty() && k.as_const().is_some_and(|c| c <= 2 * KC);
    let kc = if single { k.as_const().unwrap_or(KC).max(1) } else { KC };
    let row_len = (kc as usize).next_multiple_of(4 * lanes) + lanes;
    let a_by_rows = a.free_last() != Some(a_last);
    let scratch_len = if a_by_rows { mr * row_len } else { mr * kc as usize };
    let a_scratch = e.b.alloc(ct, scratch_len)?;
    let (zero, one) = (e.b.int(0), e.b.int(1));
    let sv = {
        let (rows, cols) = if a_by_rows { (mr as i64, row_len as i64) } else { (kc, mr as i64) };
        let (rows, cols) = (e.b.int(rows), e.b.int(cols));
        e.b.view(a_scratch, zero, &[rows, cols], &[cols, one])?
    };
    let mc_max = MC_TILES * mr as i64;
    let c_view = if single {
        None
    } else {
        let c_scratch = e.b.alloc(ct, (mc_max * NC_PANELS) as usize * nr)?;
        let (rows, cols) = (e.b.int(mc_max), e.b.int(NC_PANELS * nr as i64));
        Some(e.b.view(c_scratch, zero, &[rows, cols], &[cols, one])?)
    };

    // The grid: blocks of rows, blocks of panels, everything else.
    let one_dim = Dim::from(1);
    let m_blocks = m.ceildiv(&Dim::from(mc_max)).max(&one_dim);
    let mc = m.ceildiv(&(&m_blocks * mr as i64)) * mr as i64;
    let panels = nn.ceildiv(&Dim::from(nr as i64));
    let n_block = panels.ceildiv(&Dim::from(2)).min(&Dim::from(NC_PANELS)).max(&one_dim);
    let out_dims = g.dims(out).to_vec();
    let inner_of = |s: &Side| s.free_last().map(|_| s.first + s.free.len() - 1);
    let (m_at, n_at) = (inner_of(&a), inner_of(&b));
    let outer_at: Vec<usize> = (0..out_dims.len()).filter(|&i| Some(i) != m_at && Some(i) != n_at).collect();
    let outer_dims: Vec<Dim> = outer_at.iter().map(|&i| out_dims[i].clone()).collect();

    let (m_v, k_v, panels_v) = (e.dim_param(&m), e.dim(&k), e.dim_param(&panels));
    let (mc_v, nb_v) = (e.dim_param(&mc), e.dim_param(&n_block));
    let pid_m = e.b.program_id(0)?;
    let m_lo = e.b.mul(pid_m, mc_v)?;
    let m_end = e.b.add(m_lo, mc_v)?;
    let m_hi = e.b.min(m_end, m_v)?;
    let pid_n = e.b.program_id(1)?;
    let p_lo = e.b.mul(pid_n, nb_v)?;
    let p_end = e.b.add(p_lo, nb_v)?;
    let p_hi = e.b.min(p_end, panels_v)?;
    let pid_o = e.b.program_id(2)?;
    let outer = delinear(&mut e, pid_o, &outer_dims)?;
    let mut base_coords = vec![Coord::at(zero); out_dims.len()];
    for (&i, c) in outer_at.iter().zip(outer) {
        base_coords[i] = c;
    }
    let n_exact = multiple(&nn, nr);
    let sizes = row_tiles(mr, m.as_const());
    let heavy = heavy_epilogue(g);
    let finish_view = if heavy { Some(epilogue_view(&mut e, ct, sizes[0], nr)?) } else { None };

    // Coordinates of an operand's dims.
    let operand = |side: &Side, free: Coord, ko: &[Coord], kc: Coord, base: &[Coord]| -> Vec<Coord> {
        (0..g.dims(side.value).len())
            .map(|d| {
                if let Some(i) = side.batch.iter().position(|&x| x == d) {
                    base[i]
                } else if let Some(i) = side.over.iter().position(|&x| x == d) {
                    if i == ki { kc } else { k_outer.iter().position(|&o| o == i).map_or(kc, |p| ko[p]) }
                } else if Some(d) == side.free_last() {
                    free
                } else {
                    let i = side.free.iter().position(|&x| x == d).unwrap_or(0);
                    base[side.first + i]
                }
            })
            .collect()
    };

    // One block of the summed dim: rows to scratch, then every panel.
    let k_block = |e: &mut Emitter<'_>,
                   ko: &[Coord],
                   k0: Val,
                   kn: Val,
                   first: Option<Val>,
                   last: Option<Val>|
     -> Result<(), Error> {
        cover_rows(e, m_lo, m_hi, &sizes, &mut |e, m0, size| {
            // Copy the rows.
            let shape = std::mem::take(&mut e.shape);
            if a_by_rows {
                let count = e.b.int(size as i64);
                e.for_loop(zero, count, 1, &[], |e, row, _| {
                    let width = 4 * lanes;
                    e.shape = vec![width];
                    let at = e.b.add(m0, row)?;
                    blocks(e, zero, kn, width, false, &[], |e, i, inside, _| {
                        let ki = e.b.add(k0, i)?;
                        let c = operand(&a, Coord::at(at), ko, Coord::along(ki, 0, inside), &base_coords);
                        let t = e.emit(a.value, &c)?;
                        let t = e.b.cast(t, ct, CAST)?;
                        e.store_view(sv, t, &[Coord::at(row), Coord::along(i, 0, true)])?;
                        Ok(vec![])
                    })
                })?;
            } else {
                e.for_loop(zero, kn, 1, &[], |e, i, _| {
                    e.shape = vec![size];
                    let ki = e.b.add(k0, i)?;
                    let c = operand(&a, Coord::along(m0, 0, true), ko, Coord::at(ki), &base_coords);
                    let t = e.emit(a.value, &c)?;
                    let t = e.b.cast(t, ct, CAST)?;
                    e.store_view(sv, t, &[Coord::at(i), Coord::along(zero, 0, true)])?;
                    Ok(vec![])
                })?;
            }
            e.shape = shape;
            // Every panel.
            e.for_loop(p_lo, p_hi, 1, &[], |e, p, _| {
                e.shape = vec![size, nr];
                let n0 = e.b.mul_int(p, nr as i64)?;
                let (row, pl) = (e.b.sub(m0, m_lo)?, e.b.sub(p, p_lo)?);
                let col = e.b.mul_int(pl, nr as i64)?;
                let c_map = TileMap::along(&[size, nr], &[0, 1]);
                let zeros = |e: &mut Emitter<'_>| -> Result<Vec<Val>, Error> {
                    Ok(vec![e.b.full(ct, &[size, nr], zero_of(ct))?])
                };
                let init = match (c_view, first) {
                    (Some(cv), Some(first)) => e.if_else(first, zeros, |e| {
                        Ok(vec![e.b.load(cv, &[row, col], c_map.clone(), &[true, true], zero_of(ct))?])
                    })?,
                    _ => zeros(e)?,
                };
                let acc = e.for_loop(zero, kn, 1, &init, |e, i, c| {
                    let (map, index) = if a_by_rows {
                        (TileMap::along(&[size, 1], &[0, 1]), [zero, i])
                    } else {
                        (TileMap::along(&[size, 1], &[1, 0]), [i, zero])
                    };
                    let at = e.b.load(sv, &index, map, &[true, true], zero_of(ct))?;
                    let ki = e.b.add(k0, i)?;
                    let bt = match &panel_view {
                        Some((buffer, (view, strides), dims)) => {
                            let mut c: Vec<Coord> =
                                b.batch.iter().enumerate().map(|(i, _)| base_coords[i]).collect();
                            c.extend((0..b.free.len() - 1).map(|i| base_coords[b.first + i]));
                            c.push(Coord::at(p));
                            c.extend_from_slice(ko);
                            if !over.is_empty() {
                                c.push(Coord::at(ki));
                            }
                            c.push(Coord::along(zero, 1, true));
                            e.load_view(*buffer, *view, strides, dims, &c, zero_of(g.dtype(b.value)))?
                        }
                        None => {
                            let c =
                                operand(&b, Coord::along(n0, 1, n_exact), ko, Coord::at(ki), &base_coords);
                            let t = e.emit(b.value, &c)?;
                            e.b.broadcast(t, &[1, nr])?
                        }
                    };
                    let bt = e.b.cast(bt, ct, CAST)?;
                    Ok(vec![e.b.mma(c[0], at, bt)?])
                })?[0];
                let finish = |e: &mut Emitter<'_>| -> Result<Vec<Val>, Error> {
                    epilogue(e, out, acc, finish_view, &outs, &mut |e, row| {
                        let mut c = base_coords.clone();
                        if let Some(i) = m_at {
                            c[i] = match row {
                                None => Coord::along(m0, 0, true),
                                Some(row) => Coord::at(e.b.add(m0, row)?),
                            };
                        }
                        if let Some(i) = n_at {
                            c[i] = Coord::along(n0, 1, n_exact);
                        }
                        Ok(c)
                    })?;
                    Ok(vec![])
                };
                match (c_view, last) {
                    (Some(cv), Some(last)) => {
                        e.if_else(last, finish, |e| {
                            e.b.store(cv, acc, &[row, col], c_map.clone(), &[true, true])?;
                            Ok(vec![])
                        })?;
                    }
                    _ => {
                        finish(e)?;
                    }
                }
                Ok(vec![])
            })?;
            Ok(())
        })
    };
    if single {
        k_block(&mut e, &[], zero, k_v, None, None)?;
    } else {
        let k_blocks = k.ceildiv(&Dim::from(kc)).max(&one_dim);
        let total = product(&k_outer_dims).max(&one_dim) * &k_blocks;
        let total_v = e.dim_param(&total);
        e.for_loop(zero, total_v, 1, &[], |e, t, _| {
            let mut dims = k_outer_dims.clone();
            dims.push(k_blocks.clone());
            let mut at = delinear(e, t, &dims)?;
            let k0 = match at.pop() {
                Some(Coord::Affine { base, .. }) => e.b.mul_int(base, kc)?,
                _ => zero,
            };
            let rest = e.b.sub(k_v, k0)?;
            let kc_v = e.b.int(kc);
            let mut kn = e.b.min(kc_v, rest)?;
            if !k_outer_dims.is_empty() {
                // With an outer summed dim of length 0 nothing is summed.
                let po = product(&k_outer_dims);
                let any = e.dim_param(&po.min(&one_dim));
                kn = e.b.mul(kn, any)?;
            }
            let first = e.b.compare(Compare::Eq, t, zero)?;
            let end = e.b.sub(total_v, one)?;
            let last = e.b.compare(Compare::Eq, t, end)?;
            k_block(e, &at, k0, kn, Some(first), Some(last))?;
            Ok(vec![])
        })?;
    }
    let grid = [m.ceildiv(&mc.max(&one_dim)), panels.ceildiv(&n_block), product(&outer_dims)];
    s.launches.push(e.launch(grid));
    Ok(s)
}

/// Whether what follows a contraction is better computed row by row than on the whole register tile at once.
pub fn heavy_epilogue(g: &tongtu_graph::Graph) -> bool {
    g.nodes.iter().filter(|n| crate::fuse::expensive(&n.op)).count() > 0 || g.nodes.len() > 24
}

/// Scratch for one register tile of results.
pub fn epilogue_view(e: &mut Emitter<'_>, ct: DType, rows: usize, columns: usize) -> Result<Val, Error> {
    let scratch = e.b.alloc(ct, rows * columns)?;
    let (zero, one) = (e.b.int(0), e.b.int(1));
    let (r, c) = (e.b.int(rows as i64), e.b.int(columns as i64));
    Ok(e.b.view(scratch, zero, &[r, c], &[c, one])?)
}

/// The place of a register tile of results, or of one of its rows.
pub type Place<'b> = dyn FnMut(&mut Emitter<'_>, Option<Val>) -> Result<Vec<Coord>, Error> + 'b;

/// Computes what follows `anchor` from its accumulators and stores the results. `coords` gives the place of the whole tile, or of
/// one of its rows; with scratch the work is done row by row.
pub fn epilogue(
    e: &mut Emitter<'_>,
    anchor: ValueId,
    acc: Val,
    scratch: Option<Val>,
    outs: &[Val],
    coords: &mut Place<'_>,
) -> Result<(), Error> {
    let g = e.graph;
    let finish = |e: &mut Emitter<'_>, acc: Val, c: &[Coord]| -> Result<(), Error> {
        let t = e.b.cast(acc, g.dtype(anchor), CAST)?;
        e.bind(anchor, t);
        for (&v, &view) in g.outputs.iter().zip(outs) {
            let t = e.emit(v, c)?;
            e.store_view(view, t, c)?;
        }
        Ok(())
    };
    let Some(view) = scratch else {
        let c = coords(e, None)?;
        return finish(e, acc, &c);
    };
    let shape = e.shape.clone();
    let (zero, rows) = (e.b.int(0), e.b.int(shape[0] as i64));
    e.b.store(view, acc, &[zero, zero], TileMap::along(&shape, &[0, 1]), &[true, true])?;
    let ct = e.b.dtype(acc);
    e.for_loop(zero, rows, 1, &[], |e, row, _| {
        let line = [1, shape[1]];
        e.shape = line.to_vec();
        let map = TileMap::along(&line, &[0, 1]);
        let acc = e.b.load(view, &[row, zero], map, &[true, true], zero_of(ct))?;
        let c = coords(e, Some(row))?;
        finish(e, acc, &c)?;
        Ok(vec![])
    })?;
    e.shape = shape;
    Ok(())
}
