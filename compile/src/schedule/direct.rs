//! Convolutions over several channels.
//!
//! An instance computes a block of output rows. It copies the input rows it needs into scratch, padding written out, and then runs
//! the register-tiled product of contractions over taps and channels: for one row of taps the taps and channels of a window lie
//! next to each other in scratch, so they are one summed dim.

use tongtu_graph::ConvRole;
use tongtu_tensor::dim::Dim;
use tongtu_tensor::scalar::{Binary, Compare};
use tongtu_tile::{Access, Factor, TileMap, Val};

use super::contract::{CACHE_LINE, compute_type, epilogue, epilogue_view, heavy_epilogue, register_tile};
use super::conv::Conv;
use super::taps::cut;
use super::{Pack, Request, Scheduled, blocks, delinear, product};
use crate::emit::{CAST, Coord, Emitter, zero_of};
use crate::error::Error;

/// Bytes of input rows an instance keeps in scratch.
const ROWS_BYTES: i64 = 384 * 1024;
/// Most output columns of an instance.
const MAX_COLUMNS: i64 = 4096;
/// Steps of the summed dim in a block, about.
const BLOCK: i64 = 192;
/// Columns in scratch that are a multiple of this many bytes apart share few sets of the nearest cache.
const APART: i64 = 2048;
/// Bytes by which such columns are set further apart.
const PUSH: i64 = 64;
/// Most register tiles of an instance for which a block is brought nearer ahead of its use.
const PREFETCHED: i64 = 32;
/// Instances that there should be at least, so that several threads have work.
const INSTANCES: i64 = 8;

/// Cuts of one spatial dim of the input as it lies in scratch.
#[derive(Clone, Copy)]
struct Window {
    /// Kernel length.
    taps: i64,
    /// Scratch positions from one tap to the next.
    dilation: i64,
    /// Scratch positions from one output to the next.
    step: i64,
    /// Input positions from one scratch position to the next: with one tap, only what it meets is copied.
    jump: i64,
}

impl Window {
    fn new(taps: i64, stride: i64, dilation: i64) -> Window {
        let (step, jump) = if taps == 1 { (1, stride) } else { (stride, 1) };
        Window { taps, dilation, step, jump }
    }
    /// Scratch positions beyond `n` steps that the last output reads.
    fn rest(&self) -> i64 {
        (self.taps - 1) * self.dilation + 1 - self.step
    }
    /// Scratch positions that `n` outputs read.
    fn span(&self, n: i64) -> i64 {
        n * self.step + self.rest()
    }
    fn span_of(&self, e: &mut Emitter<'_>, n: Val) -> Result<Val, Error> {
        let far = e.b.mul_int(n, self.step)?;
        Ok(e.b.add_int(far, self.rest())?)
    }
}

/// Runs `body` for all positions of nested loops of these lengths.
fn nest(e: &mut Emitter<'_>, lens: &[Val], at: &mut Vec<Val>, body: &mut Nested<'_>) -> Result<(), Error> {
    let Some((&n, rest)) = lens.split_first() else {
        return body(e, at);
    };
    let zero = e.b.int(0);
    e.for_loop(zero, n, 1, &[], |e, i, _| {
        at.push(i);
        nest(e, rest, at, body)?;
        at.pop();
        Ok(vec![])
    })?;
    Ok(())
}

type Nested<'b> = dyn FnMut(&mut Emitter<'_>, &[Val]) -> Result<(), Error> + 'b;

/// The input rows of an instance, and where they go.
struct Copy<'a> {
    windows: &'a [Window],
    /// First output along each spatial dim.
    start: &'a [Val],
    /// Scratch positions along each spatial dim.
    lens: &'a [Val],
    /// Length of each dim but the last two in scratch: rows and columns.
    outer: &'a [i64],
    batch: Coord,
    first_channel: Val,
    channels: i64,
    /// Elements from one column to the next in scratch.
    pitch: i64,
    /// All of scratch, one element after another.
    scratch: Val,
    /// Columns of a row in scratch.
    columns: Val,
    /// Elements of a row in scratch.
    line: Val,
    /// Whether a row holds one channel after another, not one column after another.
    planar: bool,
    width: usize,
}

/// Copies input rows to scratch, padding written out. A block may write past the end of its row: what comes there is written later.
fn copy_rows(r: &Request<'_>, e: &mut Emitter<'_>, c: &Conv<'_>, p: &Copy<'_>) -> Result<(), Error> {
    let g = r.graph;
    let spec = c.spec;
    let last = spec.rank() - 1;
    let ct = compute_type(c.acc);
    let zero = e.b.int(0);
    let dims = g.dims(c.input).to_vec();
    let in_order = spec.input.iter().enumerate().all(|(i, role)| match *role {
        ConvRole::N => i == 0,
        ConvRole::S(s) => i == s + 1,
        ConvRole::C => i == last + 2,
    });
    let unit = if p.planar { 1 } else { p.pitch };
    // Whole rows lie together in memory, columns and channels.
    let whole = in_order && p.windows[last].jump == 1 && spec.groups == 1 && p.pitch == p.channels;
    let rows = match e.buffer_of(c.input) {
        Some(buffer) if whole => {
            let dims = [product(&dims[..=last]), product(&dims[last + 1..])];
            Some((buffer, e.view(buffer, &dims)?, dims))
        }
        _ => None,
    };
    let spread = |e: &mut Emitter<'_>, n: Val| e.b.mul_int(n, unit);
    let origin = |e: &mut Emitter<'_>, s: usize| -> Result<Val, Error> {
        let at = e.b.mul_int(p.start[s], spec.strides[s])?;
        let low = e.dim(&spec.pads[s].0);
        Ok(e.b.sub(at, low)?)
    };
    // Columns of a row that are inside the input.
    let first = origin(e, last)?;
    let (need, in_width) = (p.lens[last], e.dim(c.input_dim(r, ConvRole::S(last))));
    let jump = p.windows[last].jump;
    let below = e.b.sub(zero, first)?;
    let below = e.b.max(below, zero)?;
    let below = e.b.ceil_div_int(below, jump)?;
    let lo = e.b.min(below, need)?;
    let room = e.b.sub(in_width, first)?;
    let room = e.b.max(room, zero)?;
    let room = e.b.ceil_div_int(room, jump)?;
    let hi = e.b.min(room, need)?;
    let hi = e.b.max(hi, lo)?;
    let end = spread(e, need)?;
    let mut origins = Vec::new();
    for s in 0..last {
        let n = e.dim(c.input_dim(r, ConvRole::S(s)));
        origins.push((origin(e, s)?, n));
    }
    e.shape = vec![p.width];
    let put = |e: &mut Emitter<'_>, base: Val, tile: Val, i: Val| -> Result<(), Error> {
        let to = e.b.add(base, i)?;
        e.store_view(p.scratch, tile, &[Coord::along(to, 0, true)])
    };
    let pad = |e: &mut Emitter<'_>, base: Val, lo: Val, hi: Val| {
        e.for_loop(lo, hi, p.width as i64, &[], |e, i, _| {
            let t = e.b.full(ct, &[p.width], zero_of(ct))?;
            put(e, base, t, i)?;
            Ok(vec![])
        })
    };
    nest(e, &p.lens[..last], &mut Vec::new(), &mut |e, at| {
        let mut line = zero;
        let mut inside: Option<Val> = None;
        let mut places = Vec::new();
        for (s, &i) in at.iter().enumerate() {
            let len = e.b.int(p.outer[s]);
            let scaled = e.b.mul(line, len)?;
            line = e.b.add(scaled, i)?;
            let far = e.b.mul_int(i, p.windows[s].jump)?;
            let place = e.b.add(origins[s].0, far)?;
            places.push(place);
            let above = e.b.compare(Compare::Ge, place, zero)?;
            let below = e.b.compare(Compare::Lt, place, origins[s].1)?;
            let both = e.b.binary(Binary::And, above, below)?;
            inside = Some(match inside {
                Some(x) => e.b.binary(Binary::And, x, both)?,
                None => both,
            });
        }
        // A row outside is all padding.
        let (lo, hi) = match inside {
            Some(x) => (e.b.select(x, lo, need)?, e.b.select(x, hi, need)?),
            None => (lo, hi),
        };
        let base = e.b.mul(line, p.line)?;
        let coords = |channel: Coord, column: Coord| -> Vec<Coord> {
            let of = |role: &ConvRole| match *role {
                ConvRole::N => p.batch,
                ConvRole::C => channel,
                ConvRole::S(s) if s == last => column,
                ConvRole::S(s) => Coord::at(places[s]),
            };
            spec.input.iter().map(of).collect()
        };
        if p.planar {
            let count = e.b.int(p.channels);
            e.for_loop(zero, count, 1, &[], |e, ch, _| {
                let skip = e.b.mul(ch, p.columns)?;
                let base = e.b.add(base, skip)?;
                pad(e, base, zero, lo)?;
                blocks(e, lo, hi, p.width, false, &[], |e, i, inside, _| {
                    let column = e.b.add(first, i)?;
                    let t = e.emit(c.input, &coords(Coord::at(ch), Coord::along(column, 0, inside)))?;
                    let t = e.b.cast(t, ct, CAST)?;
                    let t = e.full(t)?;
                    put(e, base, t, i)?;
                    Ok(vec![])
                })?;
                pad(e, base, hi, need)?;
                Ok(vec![])
            })?;
            return Ok(());
        }
        let (from, to) = (spread(e, lo)?, spread(e, hi)?);
        pad(e, base, zero, from)?;
        if let Some((buffer, (view, strides), dims)) = &rows {
            let mut row = match p.batch {
                Coord::Affine { base, .. } => base,
                Coord::Tile { index, .. } => index,
            };
            for (s, &place) in places.iter().enumerate() {
                let scaled = e.b.mul(row, origins[s].1)?;
                row = e.b.add(scaled, place)?;
            }
            let offset = spread(e, first)?;
            blocks(e, from, to, p.width, false, &[], |e, i, inside, _| {
                let at = e.b.add(offset, i)?;
                let coords = [Coord::at(row), Coord::along(at, 0, inside)];
                let t = e.load_view(*buffer, *view, strides, dims, &coords, zero_of(g.dtype(c.input)))?;
                let t = e.b.cast(t, ct, CAST)?;
                put(e, base, t, i)?;
                Ok(vec![])
            })?;
        } else {
            let count = e.b.int(p.channels);
            e.for_loop(lo, hi, 1, &[], |e, i, _| {
                let column = e.b.mul_int(i, jump)?;
                let column = e.b.add(first, column)?;
                let i = spread(e, i)?;
                let exact = p.channels % p.width as i64 == 0;
                blocks(e, zero, count, p.width, exact, &[], |e, ch, inside, _| {
                    let channel = e.b.add(p.first_channel, ch)?;
                    let t = e.emit(c.input, &coords(Coord::along(channel, 0, inside), Coord::at(column)))?;
                    let t = e.b.cast(t, ct, CAST)?;
                    let t = e.full(t)?;
                    let i = e.b.add(i, ch)?;
                    put(e, base, t, i)?;
                    Ok(vec![])
                })
            })?;
        }
        pad(e, base, to, end)?;
        Ok(())
    })
}

/// The schedule of a convolution whose windows read several channels.
pub fn schedule(r: &Request<'_>, c: &Conv<'_>) -> Result<Scheduled, Error> {
    let g = r.graph;
    let spec = c.spec;
    let rank = spec.rank();
    let ct = compute_type(c.acc);
    let lanes = r.machine.lanes(ct);
    let unsupported = |what: &str| Error::unsupported("conv", r.loc, what);
    let ic = c.kernel_dim(r, ConvRole::C).as_const().ok_or_else(|| unsupported("unknown input channels"))?;
    let oc = c.kernel_dim(r, ConvRole::N).as_const().ok_or_else(|| unsupported("unknown output channels"))?;
    let (groups, ocg) = (spec.groups, oc / spec.groups);
    let input =
        g.inputs.iter().position(|&v| v == c.kernel).ok_or_else(|| unsupported("a computed kernel"))?;
    let last = rank - 1;
    let width = c.output_dim(r, ConvRole::S(last)).clone();
    let height = if rank >= 2 { c.output_dim(r, ConvRole::S(last - 1)).clone() } else { Dim::from(1) };
    let windows: Vec<Window> =
        (0..rank).map(|s| Window::new(c.taps[s], spec.strides[s], spec.dilation[s])).collect();
    let (mut mr, mut vectors) = register_tile(r);
    if (ocg as usize).next_multiple_of(lanes) < (ocg as usize).next_multiple_of(lanes * vectors) {
        vectors = 1;
        mr = if r.machine.registers >= 32 { 24 } else { 10 };
    }
    let nr = lanes * vectors;
    // Columns next to each other in memory stay so in scratch.
    let planar = spec.input.last() == Some(&ConvRole::S(last)) && windows[last].jump == 1 && groups == 1;

    let mut s = Scheduled::default();
    // Kernel: for a grouped convolution the group's output channels must start a panel.
    let whole_panels = groups == 1 || ocg % nr as i64 == 0;
    let nr = if whole_panels { nr } else { divisor(ocg, nr) };
    let mut perm = vec![Conv::at(&spec.kernel, ConvRole::N)];
    perm.extend((0..rank).map(|i| Conv::at(&spec.kernel, ConvRole::S(i))));
    perm.insert(if planar { rank } else { rank + 1 }, Conv::at(&spec.kernel, ConvRole::C));
    let pack = Pack { input, perm, columns: 0, width: nr, group: (1, 1) };
    // A panel's taps and channels as one dim.
    let taps: i64 = c.taps.iter().product();
    let panel_dims = [pack.dims(g.dims(c.kernel))[0].clone(), Dim::from(taps * ic), Dim::from(nr as i64)];
    let arg = pack.place(r, &mut s)?;
    let group_panels = (ocg + nr as i64 - 1) / nr as i64;

    // An instance: some rows and columns of outputs, whose input rows fit in scratch. Columns that are whole pages apart
    // would push each other out of the nearest cache.
    let bytes = ct.bits() as i64 / 8;
    let apart = windows[last].step * ic * bytes % APART == 0;
    let pitch = if apart && !planar { ic + PUSH / bytes } else { ic };
    let others: i64 = windows[..last.saturating_sub(1)].iter().map(|w| w.span(1)).product();
    let fits = |rows: i64, columns: i64| {
        let lines = if rank >= 2 { windows[last - 1].span(rows) } else { 1 };
        others * lines * windows[last].span(columns) * pitch * bytes <= ROWS_BYTES
    };
    let known = height.as_const();
    let mut rows = if known.is_some() || rank < 2 { 1 } else { 4 };
    let mut columns = width.as_const().unwrap_or(MAX_COLUMNS).clamp(1, MAX_COLUMNS);
    while columns > mr as i64 && !fits(rows, columns) {
        columns = (columns / 2).max(mr as i64);
    }
    if let Some(h) = known.map(|h| h.max(1)) {
        while rows < h.min(8) && fits(rows + 1, columns) {
            rows += 1;
        }
        // As even as can be.
        let blocks = (h + rows - 1) / rows;
        rows = (h + blocks - 1) / blocks;
    }
    let single = width.as_const().filter(|&w| w <= columns);
    if single.is_none() {
        columns = (columns / mr as i64).max(1) * mr as i64;
    }
    // Short rows: one register tile takes several.
    let lines = match single {
        Some(w) if rank >= 2 && w > 0 => (mr as i64 / w).clamp(1, rows.max(1)) as usize,
        _ => 1,
    };
    let slack = 4 * lanes + mr * (windows[last].step * pitch) as usize;
    let cols = windows[last].span(columns);
    let mut outer_len: Vec<i64> = windows[..last].iter().map(|w| w.span(1)).collect();
    if rank >= 2 {
        outer_len[last - 1] = windows[last - 1].span(rows);
    }
    let flat_rows: i64 = outer_len.iter().product();

    let mut e = Emitter::new(r.name, g);
    e.write_dims();
    e.leaves_of(&g.outputs, &[c.out])?;
    e.leaves_of(&[c.input], &[])?;
    let kb = e.buffer(arg, g.dtype(c.kernel), Access::Read);
    let (kv, kstrides) = e.view(kb, &panel_dims)?;
    let outs = (0..g.outputs.len()).map(|i| e.output(i)).collect::<Result<Vec<_>, _>>()?;
    let (zero, one) = (e.b.int(0), e.b.int(1));

    // The grid: columns × rows × (batch, groups, outer positions, parts of the panels).
    let row_blocks = height.ceildiv(&Dim::from(rows.max(1)));
    let col_blocks = width.ceildiv(&Dim::from(columns));
    let block = width.ceildiv(&(col_blocks.max(&Dim::from(1)) * mr as i64)) * mr as i64;
    let mut outer_dims = vec![c.output_dim(r, ConvRole::N).clone(), Dim::from(groups)];
    outer_dims.extend((0..last.saturating_sub(1)).map(|i| c.output_dim(r, ConvRole::S(i)).clone()));
    let instances = product(&[product(&outer_dims), row_blocks.clone(), col_blocks.clone()]);
    // Parts of the panels, where there are few instances and copying the rows again costs little.
    let per_panel = taps / windows.iter().map(|w| w.step).product::<i64>().max(1);
    let least = (8 / per_panel.max(1)).max(1);
    let parts = match instances.as_const() {
        Some(n) if n > 0 => ((INSTANCES + n - 1) / n).min(group_panels / least).max(1),
        _ => 1,
    };
    let part_panels = (group_panels + parts - 1) / parts;
    let parts = (group_panels + part_panels - 1) / part_panels.max(1);
    outer_dims.push(Dim::from(parts));
    let pid_outer = e.b.program_id(2)?;
    let outer = delinear(&mut e, pid_outer, &outer_dims)?;
    let scalar = |c: &Coord| match c {
        Coord::Affine { base, .. } => *base,
        Coord::Tile { index, .. } => *index,
    };
    let group = scalar(&outer[1]);
    let (pid_row, pid_col) = (e.b.program_id(1)?, e.b.program_id(0)?);
    let row0 = e.b.mul_int(pid_row, rows)?;
    let block_v = match single {
        Some(w) => e.b.int(w),
        None => e.dim_param(&block),
    };
    let col0 = e.b.mul(pid_col, block_v)?;
    let (rows_v, width_v) = (e.dim_param(&height), e.dim_param(&width));
    let row_end = e.b.add_int(row0, rows)?;
    let row_hi = e.b.min(row_end, rows_v)?;
    let col_end = e.b.add(col0, block_v)?;
    let col_hi = if single.is_some() { col_end } else { e.b.min(col_end, width_v)? };

    // Scratch: rows of columns × channels, one after another.
    let columns_v = windows[last].span_of(&mut e, block_v)?;
    let line_v = e.b.mul_int(columns_v, pitch)?;
    let len = (flat_rows * cols * pitch) as usize + slack;
    let scratch = e.b.alloc(ct, len)?;
    let len_v = e.b.int(len as i64);
    let all = e.b.view(scratch, zero, &[len_v], &[one])?;
    let (fr, reach) = (e.b.int(flat_rows), e.b.add_int(line_v, slack as i64)?);
    let flat = e.b.view(scratch, zero, &[fr, reach], &[line_v, one])?;
    let by_line = lines > 1 || heavy_epilogue(g);
    let tile_rows = single.map_or(mr, |w| mr.min(w.max(1) as usize * lines));
    let finish_view = if by_line { Some(epilogue_view(&mut e, ct, tile_rows, nr)?) } else { None };

    let mut start = vec![zero; rank];
    let mut lens = Vec::new();
    for i in 0..rank {
        let count = if i == last {
            start[i] = col0;
            e.b.sub(col_hi, col0)?
        } else if i + 1 == last {
            start[i] = row0;
            e.b.sub(row_hi, row0)?
        } else {
            start[i] = scalar(&outer[2 + i]);
            one
        };
        lens.push(windows[i].span_of(&mut e, count)?);
    }
    let copied = if planar {
        cols
    } else if groups == 1 {
        cols * ic
    } else {
        ic
    };
    let copy = Copy {
        windows: &windows,
        start: &start,
        lens: &lens,
        outer: &outer_len,
        batch: outer[0],
        first_channel: e.b.mul_int(group, ic)?,
        channels: ic,
        pitch,
        scratch: all,
        columns: columns_v,
        line: line_v,
        planar,
        width: (copied as usize).next_power_of_two().min(4 * lanes),
    };
    copy_rows(r, &mut e, c, &copy)?;

    // Panels of output channels; rows; tiles along a row.
    let dense = spec.dilation[last] == 1 && pitch == ic;
    let exact = ocg % nr as i64 == 0;
    let step = windows[last].step * if planar { 1 } else { pitch };
    // A run of the summed elements that lie evenly in scratch, and how many runs there are for one row of taps.
    let (k_len, k_count) = match (planar, dense) {
        (true, _) => (c.taps[last], ic),
        (_, true) => (c.taps[last] * ic, 1),
        _ => (ic, c.taps[last]),
    };
    let outer_taps: Vec<i64> = c.taps[..last].to_vec();
    let part = outer.last().map_or(zero, scalar);
    let first_panel = e.b.mul_int(part, part_panels)?;
    let end_panel = e.b.add_int(first_panel, part_panels)?;
    let gp = e.b.int(group_panels);
    let end_panel = if parts > 1 { e.b.min(end_panel, gp)? } else { gp };
    // Blocks of the summed dim: some runs, or parts of one. A panel's block stays in the nearest cache while all tiles read it.
    let runs: i64 = outer_taps.iter().product::<i64>() * k_count;
    let (per, cuts) = if planar || runs * k_len <= 2 * BLOCK {
        (runs, 1)
    } else if 2 * k_len > BLOCK {
        (1, (k_len + BLOCK - 1) / BLOCK)
    } else {
        (BLOCK / k_len, 1)
    };
    let (len, count) = ((k_len + cuts - 1) / cuts, (runs + per - 1) / per.max(1) * cuts);
    // Few tiles read a block before the next one is needed: it comes nearer while they do.
    let ahead = single.map(|w| (w, w * rows)).filter(|a| !planar && a.1 > 0 && a.1 <= PREFETCHED * mr as i64);
    let brought = (CACHE_LINE as i64 * 8 / g.dtype(c.kernel).bits() as i64).max(1);
    let (packed, _) = e.view(kb, &[product(&panel_dims)])?;
    let sums_row = columns + mr as i64;
    let sums = if count > 1 {
        Some(epilogue_view(&mut e, ct, (rows.max(1) * sums_row) as usize, nr)?)
    } else {
        None
    };
    let tiles = cut(&mut e, col0, col_hi, single, mr)?;
    let row_tiles = match known {
        Some(h) if lines > 1 && h % rows == 0 => cut(&mut e, row0, row_hi, Some(rows), lines)?,
        _ => {
            let span = e.b.sub(row_hi, row0)?;
            let n = e.b.int(lines as i64);
            let rest = e.b.binary(Binary::Rem, span, n)?;
            let mid = e.b.sub(row_hi, rest)?;
            let cuts = [(lines, row0, mid), (1, mid, row_hi)];
            if lines == 1 { vec![(1, row0, row_hi)] } else { cuts.to_vec() }
        }
    };
    e.for_loop(first_panel, end_panel, 1, &[], |e, p, _| {
        let base_panel = e.b.mul_int(group, group_panels)?;
        let panel = e.b.add(base_panel, p)?;
        let n_in_group = e.b.mul_int(p, nr as i64)?;
        let group_first = e.b.mul_int(group, ocg)?;
        let n0 = e.b.add(group_first, n_in_group)?;
        let tile =
            |e: &mut Emitter<'_>, block: Option<Val>, row: Val, w0: Val, lines: usize, width: usize| {
                let row_in_block = e.b.sub(row, row0)?;
                let size = width * lines;
                e.shape = vec![size, nr];
                let col = e.b.sub(w0, col0)?;
                let first = e.b.mul_int(col, step)?;
                let place = {
                    let row = e.b.mul_int(row_in_block, sums_row)?;
                    [e.b.add(row, col)?, zero]
                };
                let all = TileMap::along(&[size, nr], &[0, 1]);
                let zeros = |e: &mut Emitter<'_>| -> Result<Vec<Val>, Error> {
                    Ok(vec![e.b.full(ct, &[size, nr], zero_of(ct))?])
                };
                let init = match (sums, block) {
                    (Some(view), Some(block)) => {
                        let first = e.b.compare(Compare::Eq, block, zero)?;
                        e.if_else(first, zeros, |e| {
                            Ok(vec![e.b.load(view, &place, all.clone(), &[true, true], zero_of(ct))?])
                        })?
                    }
                    _ => zeros(e)?,
                };
                // The block's runs, and what it takes of each.
                let (runs_v, k_len_v) = (e.b.int(runs), e.b.int(k_len));
                let ((from, to), (k_lo, k_hi)) = if let (Some(block), true) = (block, cuts > 1) {
                    let n = e.b.int(cuts);
                    let (run, cut) = (e.b.div(block, n)?, e.b.binary(Binary::Rem, block, n)?);
                    let lo = e.b.mul_int(cut, len)?;
                    let hi = e.b.add_int(lo, len)?;
                    ((run, e.b.add_int(run, 1)?), (lo, e.b.min(hi, k_len_v)?))
                } else if let Some(block) = block {
                    let lo = e.b.mul_int(block, per)?;
                    let hi = e.b.add_int(lo, per)?;
                    ((lo, e.b.min(hi, runs_v)?), (zero, k_len_v))
                } else {
                    ((zero, runs_v), (zero, k_len_v))
                };
                // Where in the next block this tile's share begins, for step 0 of the panel.
                let next = match ahead {
                    Some((w, total)) => {
                        let depth = if cuts > 1 { len } else { per * k_len } * nr as i64;
                        let done = e.b.mul_int(row_in_block, w)?;
                        let done = e.b.add(done, col)?;
                        let share = e.b.mul_int(done, depth)?;
                        let total_v = e.b.int(total);
                        let share = e.b.div(share, total_v)?;
                        let begin = e.b.mul_int(from, k_len)?;
                        let begin = e.b.add(begin, k_lo)?;
                        let each = ((nr * size) as i64 + total - 1) / total;
                        let at = e.b.mul_int(begin, nr as i64 - each)?;
                        let panel = e.b.mul_int(panel, taps * ic * nr as i64)?;
                        let at = e.b.add(at, panel)?;
                        let at = e.b.add(at, share)?;
                        Some((e.b.add_int(at, depth)?, each))
                    }
                    None => None,
                };
                let acc = e.for_loop(from, to, 1, &init, |e, t, carried| {
                    let mut rest = t;
                    let kw = if k_count > 1 {
                        let n = e.b.int(k_count);
                        let kw = e.b.binary(Binary::Rem, rest, n)?;
                        rest = e.b.div(rest, n)?;
                        kw
                    } else {
                        zero
                    };
                    let mut taps = Vec::new();
                    for (i, &n) in outer_taps.iter().enumerate().rev() {
                        if i == 0 {
                            taps.push(rest);
                        } else {
                            let nv = e.b.int(n);
                            taps.push(e.b.binary(Binary::Rem, rest, nv)?);
                            rest = e.b.div(rest, nv)?;
                        }
                    }
                    taps.reverse();
                    // The scratch row.
                    let mut line = zero;
                    for (s, &t) in taps.iter().enumerate() {
                        let d = e.b.mul_int(t, windows[s].dilation)?;
                        let at = if s + 1 == last {
                            let r = e.b.mul_int(row_in_block, windows[s].step)?;
                            e.b.add(d, r)?
                        } else {
                            d
                        };
                        let scaled = e.b.mul_int(line, outer_len[s])?;
                        line = e.b.add(scaled, at)?;
                    }
                    let kw_at = if planar {
                        e.b.mul(kw, columns_v)?
                    } else {
                        e.b.mul_int(kw, windows[last].dilation * pitch)?
                    };
                    let start = e.b.add(first, kw_at)?;
                    // Offset of this run in the packed kernel's panel: the taps come in the same order.
                    let run = e.b.mul_int(t, k_len)?;
                    let mut factors = vec![Factor { size: width, dim: Some(1), step }];
                    if lines > 1 {
                        factors.insert(0, Factor { size: lines, dim: Some(0), step: windows[last - 1].step });
                    }
                    // Some steps of the summed dim from one place on.
                    let summed = |e: &mut Emitter<'_>, k: Val, depth: usize, acc: Val| {
                        let ka = e.b.add(start, k)?;
                        let along = match depth {
                            1 => Factor { size: 1, dim: None, step: 0 },
                            _ => Factor { size: depth, dim: Some(1), step: windows[last].dilation },
                        };
                        let map = TileMap(vec![factors.clone(), vec![along]]);
                        let a = e.b.load(flat, &[line, ka], map, &[true, true], zero_of(ct))?;
                        let kr = e.b.add(run, k)?;
                        let rows = if depth == 1 { Coord::at(kr) } else { Coord::along(kr, 0, true) };
                        let at = [Coord::at(panel), rows, Coord::along(zero, 1, true)];
                        let shape = std::mem::replace(&mut e.shape, vec![depth, nr]);
                        let b =
                            e.load_view(kb, kv, &kstrides, &panel_dims, &at, zero_of(g.dtype(c.kernel)))?;
                        e.shape = shape;
                        let b = e.b.cast(b, ct, CAST)?;
                        if let Some((next, each)) = next {
                            let far = e.b.mul_int(kr, each)?;
                            let at = e.b.add(next, far)?;
                            for part in 0..(each + brought - 1) / brought {
                                let at = e.b.add_int(at, part * brought)?;
                                e.b.prefetch(packed, &[at])?;
                            }
                        }
                        Ok::<_, Error>(vec![e.b.mma(acc, a, b)?])
                    };
                    if planar {
                        return summed(e, zero, k_len as usize, carried[0]);
                    }
                    e.for_loop(k_lo, k_hi, 1, carried, |e, k, carried| summed(e, k, 1, carried[0]))
                })?[0];
                let inside = single.is_some();
                let finish = |e: &mut Emitter<'_>| {
                    epilogue(e, c.out, acc, finish_view, &outs, &mut |e, line| {
                        let (down, along) = match line {
                            Some(i) if lines > 1 => {
                                let n = e.b.int(width as i64);
                                (e.b.div(i, n)?, Some(e.b.binary(Binary::Rem, i, n)?))
                            }
                            line => (zero, line),
                        };
                        let row = e.b.add(row, down)?;
                        let column = match along {
                            None => Coord::along(w0, 0, inside),
                            Some(i) => Coord::Affine { base: e.b.add(w0, i)?, lane: None, inside },
                        };
                        Ok(spec
                            .output
                            .iter()
                            .map(|role| match *role {
                                ConvRole::N => outer[0],
                                ConvRole::C => Coord::along(n0, 1, exact),
                                ConvRole::S(s) if s == last => column,
                                ConvRole::S(s) if s + 1 == last => Coord::at(row),
                                ConvRole::S(s) => outer[2 + s],
                            })
                            .collect())
                    })
                };
                let (Some(view), Some(block)) = (sums, block) else { return finish(e) };
                let end = e.b.int(count - 1);
                let last = e.b.compare(Compare::Eq, block, end)?;
                e.if_else(
                    last,
                    |e| finish(e).map(|()| vec![]),
                    |e| {
                        e.b.store(view, acc, &place, all.clone(), &[true, true])?;
                        Ok(vec![])
                    },
                )?;
                Ok(())
            };
        let tiled = |e: &mut Emitter<'_>, block: Option<Val>| -> Result<Vec<Val>, Error> {
            for &(lines, lo, hi) in &row_tiles {
                e.for_loop(lo, hi, lines as i64, &[], |e, row, _| {
                    for &(size, lo, hi) in &tiles {
                        e.for_loop(lo, hi, size as i64, &[], |e, w0, _| {
                            tile(e, block, row, w0, lines, size)?;
                            Ok(vec![])
                        })?;
                    }
                    Ok(vec![])
                })?;
            }
            Ok(vec![])
        };
        if count == 1 {
            return tiled(e, None);
        }
        let count_v = e.b.int(count);
        e.for_loop(zero, count_v, 1, &[], |e, block, _| tiled(e, Some(block)))?;
        Ok(vec![])
    })?;
    s.launches.push(e.launch([col_blocks, row_blocks, product(&outer_dims)]));
    Ok(s)
}

fn divisor(n: i64, most: usize) -> usize {
    (1..=most).rev().find(|d| n % *d as i64 == 0).unwrap_or(1)
}
