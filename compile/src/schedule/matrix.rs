//! Convolutions over many channels on a matrix unit.
//!
//! An instance copies the input rows that a block of output rows needs into scratch, padding written out, channels last. In scratch one
//! output position after another lies a fixed number of elements apart, across the ends of rows too: rows that are a vertical step apart
//! lie next to each other. So each tap is a product of a matrix of positions and channels, which begins at the tap's place, with the
//! tap's part of the kernel; positions past the end of a row are computed and dropped.

use tongtu_graph::ConvRole;
use tongtu_tensor::dim::Dim;
use tongtu_tensor::scalar::{Binary, Compare};
use tongtu_tile::{Access, Factor, TileMap, Val};

use super::contract::CACHE_LINE;
use super::conv::Conv;
use super::epilogue::{epilogue_of, epilogue_rows, epilogue_view};
use super::taps::Window;
use super::tiles::compute_type;
use super::{Pack, Request, Scheduled, Unit, blocks, delinear, product};
use crate::emit::{CAST, Coord, Emitter, zero_of};
use crate::error::Error;

/// Bytes of input rows an instance keeps in scratch.
const ROWS_BYTES: i64 = 256 * 1024;
/// Most output columns of an instance.
const MAX_COLUMNS: i64 = 512;
/// Rows that are a multiple of this many bytes apart share few sets of the nearest cache.
const APART: i64 = 512;
/// Bytes of a part of the kernel that are read again for each square of positions.
const NEAR_BYTES: i64 = 512 * 1024;
/// Least panels of a part of the kernel, and most parts.
const PART: i64 = 4;

/// The matrix unit that a convolution runs on: it takes the operands' types, and the channels fill at least half its steps.
pub fn unit(r: &Request<'_>, c: &Conv<'_>) -> Option<Unit> {
    let g = r.graph;
    let spec = c.spec;
    let u = r.machine.unit(g.dtype(c.input), g.dtype(c.kernel), c.acc)?;
    let last = spec.rank().checked_sub(1)?;
    let in_order = |roles: &[ConvRole]| {
        roles.iter().enumerate().all(|(i, role)| match *role {
            ConvRole::N => i == 0,
            ConvRole::S(s) => i == s + 1,
            ConvRole::C => i == last + 2,
        })
    };
    let ic = c.kernel_dim(r, ConvRole::C).as_const()?;
    let oc = c.kernel_dim(r, ConvRole::N).as_const()?;
    let constant = g.inputs.iter().position(|&v| v == c.kernel);
    let constant = constant.is_some_and(|p| matches!(r.constants.get(p), Some(Some(_))));
    let fits = spec.groups == 1
        && spec.rank() <= 2
        && in_order(&spec.input)
        && in_order(&spec.output)
        && constant
        && 2 * ic >= u.shape[2] as i64
        && oc > u.shape[1] as i64;
    fits.then_some(u)
}

/// The schedule of a convolution and what follows it.
pub fn schedule(r: &Request<'_>, c: &Conv<'_>, u: Unit) -> Result<Scheduled, Error> {
    let g = r.graph;
    let spec = c.spec;
    let last = spec.rank() - 1;
    let input = g.inputs.iter().position(|&v| v == c.kernel);
    let input = input.ok_or_else(|| Error::unsupported("conv", r.loc, "a computed kernel"))?;
    let known = |role: ConvRole, what: &str| {
        c.kernel_dim(r, role).as_const().ok_or_else(|| Error::unsupported("conv", r.loc, what))
    };
    let ic = known(ConvRole::C, "unknown input channels")?;
    let oc = known(ConvRole::N, "unknown output channels")?;
    let (st, ct, depth) = (g.dtype(c.input), compute_type(c.acc), u.shape[2]);
    let bytes = (st.bits() as usize / 8).max(1);
    let side = 4 / bytes;
    let (height, width) = (2 * u.shape[0], 2 * u.shape[1]);
    let channels = (ic as usize).next_multiple_of(depth);
    let one_dim = Window::new(1, 1, 1);
    let window = |s: usize| Window::new(c.taps[s], spec.strides[s], spec.dilation[s]);
    let (down, along) = if last == 0 { (one_dim, window(0)) } else { (window(0), window(1)) };
    // Elements from one position to the next.
    let apart = (along.step * (channels * bytes) as i64) % APART == 0;
    let pitch = channels as i64 + if apart { (CACHE_LINE / bytes) as i64 } else { 0 };

    // Output columns and rows of an instance; outputs of a line, past the row's end too.
    let one = Dim::from(1);
    let out_width = c.output_dim(r, ConvRole::S(last)).clone();
    let out_height = if last == 0 { one.clone() } else { c.output_dim(r, ConvRole::S(0)).clone() };
    let position = along.step * pitch * bytes as i64;
    let planes = down.step;
    // Outputs beyond the last whose steps cover what the last reads.
    let more = |w: Window| (w.rest().max(0) + w.step - 1) / w.step;
    let (more_lines, more_columns) = (more(down), more(along));
    let budget = ROWS_BYTES / position;
    let most_columns = (budget / (planes * (more_lines + 1)) - more_columns).clamp(1, MAX_COLUMNS);
    let columns = out_width.min(&Dim::from(most_columns)).max(&one);
    let line = &columns + more_columns;
    let lines = Dim::from(budget / planes).floordiv(&line).max(&Dim::from(more_lines + 1));
    let rows = (&lines - &Dim::from(more_lines)).max(&one);
    let col_blocks = out_width.ceildiv(&columns);
    // As even as can be, and work for several threads.
    let row_blocks = out_height.ceildiv(&rows).max(&out_height.min(&Dim::from(2)));
    let rows = out_height.ceildiv(&row_blocks.max(&one)).max(&one);
    let row_blocks = out_height.ceildiv(&rows);
    let most_positions = budget.max(planes * (more_lines + 1) * (most_columns + more_columns));
    let panels = (oc + width as i64 - 1) / width as i64;
    let parts = (panels / PART).clamp(1, PART);
    let per_part = (panels + parts - 1) / parts;
    let parts = (panels + per_part - 1) / per_part;

    let mut s = Scheduled::default();
    let mut perm = vec![Conv::at(&spec.kernel, ConvRole::N)];
    perm.extend((0..=last).map(|i| Conv::at(&spec.kernel, ConvRole::S(i))));
    perm.push(Conv::at(&spec.kernel, ConvRole::C));
    let arg = Pack { input, perm, columns: 0, width, group: (side, depth) }.place(r, &mut s)?;
    let taps = down.taps * along.taps;
    let groups = taps * (channels / side) as i64;
    let panel_dims = [panels * groups, width as i64, side as i64].map(Dim::from);

    let mut e = Emitter::new(r.name, g);
    e.write_dims();
    e.leaves_of(&g.outputs, &[c.out])?;
    e.leaves_of(&[c.input], &[])?;
    let packed = e.buffer(arg, g.dtype(c.kernel), Access::Read);
    let (packed_view, _) = e.view(packed, &panel_dims)?;
    let outs = (0..g.outputs.len()).map(|i| e.output(i)).collect::<Result<Vec<_>, _>>()?;
    let zero = e.b.int(0);
    let one_v = e.b.int(1);

    // The grid: columns × rows × (batch, parts of the kernel).
    let outer_dims = [c.output_dim(r, ConvRole::N).clone(), Dim::from(parts)];
    let pid = e.b.program_id(2)?;
    let outer = delinear(&mut e, pid, &outer_dims)?;
    let part = match outer[1] {
        Coord::Affine { base, .. } => base,
        Coord::Tile { index, .. } => index,
    };
    let (pid_row, pid_col) = (e.b.program_id(1)?, e.b.program_id(0)?);
    let (rows_v, columns_v, line_v) = (e.dim_param(&rows), e.dim_param(&columns), e.dim_param(&line));
    let (out_h, out_w) = (e.dim_param(&out_height), e.dim_param(&out_width));
    let row0 = e.b.mul(pid_row, rows_v)?;
    let col0 = e.b.mul(pid_col, columns_v)?;
    let left = e.b.sub(out_h, row0)?;
    let count_rows = e.b.min(rows_v, left)?;
    let left = e.b.sub(out_w, col0)?;
    let count_columns = e.b.min(columns_v, left)?;

    // Scratch: planes of lines a vertical step apart, lines of positions.
    let slack = (height as i64 + more_columns + 1) * along.step * pitch + 4 * depth as i64;
    let len = (most_positions + height as i64) * along.step * pitch + slack;
    let scratch = e.b.alloc(st, len as usize)?;
    let len_v = e.b.int(len);
    let flat = e.b.view(scratch, zero, &[len_v], &[one_v])?;
    let line_len = e.b.mul_int(line_v, along.step * pitch)?;
    let plane_lines = e.b.add_int(count_rows, more_lines)?;
    let plane_len = e.b.mul(plane_lines, line_len)?;
    let used = e.b.mul_int(plane_len, planes)?;
    let vector = (4 * r.machine.lanes(ct)) as i64;
    e.shape = vec![vector as usize];
    let end = e.b.add_int(used, slack - vector)?;
    e.for_loop(zero, end, vector, &[], |e, i, _| {
        let t = e.b.full(st, &[vector as usize], zero_of(st))?;
        e.store_view(flat, t, &[Coord::along(i, 0, true)])?;
        Ok(vec![])
    })?;
    let copied = (ic as usize).next_power_of_two().min(vector as usize).min(depth);
    let exact = ic % copied as i64 == 0;
    let (in_h, in_w) = match last {
        0 => (one_v, e.dim_param(c.input_dim(r, ConvRole::S(0)))),
        _ => (e.dim_param(c.input_dim(r, ConvRole::S(0))), e.dim_param(c.input_dim(r, ConvRole::S(1)))),
    };
    let origin = |e: &mut Emitter<'_>, first: Val, s: Option<usize>| -> Result<Val, Error> {
        let Some(s) = s else { return Ok(zero) };
        let at = e.b.mul_int(first, spec.strides[s])?;
        let low = e.dim_param(&spec.pads[s].0);
        Ok(e.b.sub(at, low)?)
    };
    let first_row = origin(&mut e, row0, (last > 0).then_some(0))?;
    let first_column = origin(&mut e, col0, Some(last))?;
    let need_lines = down.span_of(&mut e, count_rows)?;
    let need_columns = along.span_of(&mut e, count_columns)?;
    // Copied columns that are inside the input.
    let below = e.b.sub(zero, first_column)?;
    let below = e.b.max(below, zero)?;
    let below = e.b.ceil_div_int(below, along.jump)?;
    let lo = e.b.min(below, need_columns)?;
    let room = e.b.sub(in_w, first_column)?;
    let room = e.b.max(room, zero)?;
    let room = e.b.ceil_div_int(room, along.jump)?;
    let hi = e.b.min(room, need_columns)?;
    e.for_loop(zero, need_lines, 1, &[], |e, i, _| {
        let far = e.b.mul_int(i, down.jump)?;
        let y = e.b.add(first_row, far)?;
        let above = e.b.compare(Compare::Ge, y, zero)?;
        let under = e.b.compare(Compare::Lt, y, in_h)?;
        let inside = e.b.binary(Binary::And, above, under)?;
        let n = e.b.int(planes);
        let (plane, at) = (e.b.binary(Binary::Rem, i, n)?, e.b.div(i, n)?);
        let (plane, at) = (e.b.mul(plane, plane_len)?, e.b.mul(at, line_len)?);
        let base = e.b.add(plane, at)?;
        let hi = e.b.select(inside, hi, lo)?;
        e.for_loop(lo, hi, 1, &[], |e, x, _| {
            let far = e.b.mul_int(x, along.jump)?;
            let column = e.b.add(first_column, far)?;
            let far = e.b.mul_int(x, pitch)?;
            let to = e.b.add(base, far)?;
            let ic_v = e.b.int(ic);
            e.shape = vec![copied];
            blocks(e, zero, ic_v, copied, exact, &[], |e, ch, inside, _| {
                let of = |role: &ConvRole| match *role {
                    ConvRole::N => outer[0],
                    ConvRole::C => Coord::along(ch, 0, inside),
                    ConvRole::S(s) if s == last => Coord::at(column),
                    ConvRole::S(_) => Coord::at(y),
                };
                let coords: Vec<Coord> = spec.input.iter().map(of).collect();
                let t = e.emit(c.input, &coords)?;
                let t = e.b.cast(t, st, CAST)?;
                let t = e.full(t)?;
                let to = e.b.add(to, ch)?;
                e.store_view(flat, t, &[Coord::along(to, 0, true)])?;
                Ok(vec![])
            })
        })?;
        Ok(vec![])
    })?;

    // Panels of output channels, then squares of positions, then taps.
    let step_v = e.b.int(along.step * pitch);
    let most = e.b.int(most_positions + height as i64);
    let positions = e.b.view(scratch, zero, &[most, len_v], &[step_v, one_v])?;
    // Neighbouring channels one after another, whose results share lines of memory, where the kernel stays near.
    let near = per_part * groups * (width * side * bytes) as i64 <= NEAR_BYTES;
    let strip = if near { per_part as usize * width + CACHE_LINE / 4 } else { width };
    let finish = epilogue_view(&mut e, ct, height, strip)?;
    let first_panel = e.b.mul_int(part, per_part)?;
    let end_panel = e.b.add_int(first_panel, per_part)?;
    let all_panels = e.b.int(panels);
    let end_panel = e.b.min(end_panel, all_panels)?;
    let total = e.b.mul(count_rows, line_v)?;
    let sums_of = |e: &mut Emitter<'_>, panel: Val, p: Val| -> Result<Val, Error> {
        let panel_base = e.b.mul_int(panel, groups)?;
        e.shape = vec![height, width];
        let init = e.b.full(ct, &[height, width], zero_of(ct))?;
        let taps_v = e.b.int(taps);
        let sums = e.for_loop(zero, taps_v, 1, &[init], |e, t, sums| {
            let n = e.b.int(along.taps);
            let (ty, tx) = (e.b.div(t, n)?, e.b.binary(Binary::Rem, t, n)?);
            let ty = e.b.mul_int(ty, down.dilation)?;
            let n = e.b.int(planes);
            let (plane, at) = (e.b.binary(Binary::Rem, ty, n)?, e.b.div(ty, n)?);
            let (plane, at) = (e.b.mul(plane, plane_len)?, e.b.mul(at, line_len)?);
            let tx = e.b.mul_int(tx, along.dilation * pitch)?;
            let start = e.b.add(plane, at)?;
            let start = e.b.add(start, tx)?;
            let tap = e.b.mul_int(t, (channels / side) as i64)?;
            let tap = e.b.add(panel_base, tap)?;
            let deep = e.b.int(channels as i64);
            e.for_loop(zero, deep, depth as i64, sums, |e, k, sums| {
                let at = e.b.add(start, k)?;
                let map = TileMap::along(&[height, depth], &[0, 1]);
                let left = e.b.load(positions, &[p, at], map, &[true, true], zero_of(st))?;
                let factor = |size: usize, dim: usize| Factor { size, dim: Some(dim), step: 1 };
                let map =
                    TileMap(vec![vec![factor(depth / side, 0), factor(side, 2)], vec![factor(width, 1)]]);
                let n = e.b.int(side as i64);
                let group = e.b.div(k, n)?;
                let group = e.b.add(tap, group)?;
                let kt = g.dtype(c.kernel);
                let right = e.b.load(packed_view, &[group, zero, zero], map, &[true; 3], zero_of(kt))?;
                Ok(vec![e.b.mma(sums[0], left, right)?])
            })
        })?;
        Ok(sums[0])
    };
    // The place of a position in the result; past the end of the row nothing is stored.
    let place = |e: &mut Emitter<'_>, at: Val, panel: Val| -> Result<Vec<Coord>, Error> {
        let (row, x) = (e.b.div(at, line_v)?, e.b.binary(Binary::Rem, at, line_v)?);
        let row = e.b.add(row0, row)?;
        let inside = e.b.compare(Compare::Lt, x, count_columns)?;
        let column = e.b.add(col0, x)?;
        let column = e.b.select(inside, column, out_w)?;
        let first_channel = e.b.mul_int(panel, width as i64)?;
        let of = |role: &ConvRole| match *role {
            ConvRole::N => outer[0],
            ConvRole::C => Coord::along(first_channel, 1, oc % width as i64 == 0),
            ConvRole::S(s) if s == last => Coord::Affine { base: column, lane: None, inside: false },
            ConvRole::S(_) => Coord::at(row),
        };
        Ok(spec.output.iter().map(of).collect())
    };
    if near {
        let count = e.b.sub(end_panel, first_panel)?;
        e.for_loop(zero, total, height as i64, &[], |e, p, _| {
            e.for_loop(zero, count, 1, &[], |e, panel, _| {
                let at = e.b.mul_int(panel, width as i64)?;
                let panel = e.b.add(first_panel, panel)?;
                let sums = sums_of(e, panel, p)?;
                let map = TileMap::along(&[height, width], &[0, 1]);
                e.b.store(finish, sums, &[zero, at], map, &[true, true])?;
                Ok(vec![])
            })?;
            let left = e.b.sub(total, p)?;
            let rows = e.b.int(height as i64);
            let rows = e.b.min(rows, left)?;
            epilogue_rows(e, c.out, finish, (rows, count, width), &outs, &mut |e, line, panel| {
                let (at, panel) = (e.b.add(p, line)?, e.b.add(first_panel, panel)?);
                place(e, at, panel)
            })?;
            Ok(vec![])
        })?;
    } else {
        e.for_loop(first_panel, end_panel, 1, &[], |e, panel, _| {
            e.for_loop(zero, total, height as i64, &[], |e, p, _| {
                let sums = sums_of(e, panel, p)?;
                let left = e.b.sub(total, p)?;
                epilogue_of(e, c.out, sums, Some(finish), Some(left), &outs, &mut |e, line| {
                    let at = match line {
                        Some(i) => e.b.add(p, i)?,
                        None => p,
                    };
                    place(e, at, panel)
                })?;
                Ok(vec![])
            })
        })?;
    }
    s.launches.push(e.launch([col_blocks, row_blocks, product(&outer_dims)]));
    Ok(s)
}
