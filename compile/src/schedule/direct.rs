//! Convolutions over several channels.
//!
//! An instance computes a block of output rows. It copies the input rows it needs into scratch, padding written out, and then runs
//! the register-tiled product of contractions over taps and channels: for one row of taps the taps and channels of a window lie
//! next to each other in scratch, so they are one summed dim.

use tongtu_graph::{ConvRole, ConvSpec};
use tongtu_tensor::DType;
use tongtu_tensor::dim::Dim;
use tongtu_tensor::scalar::{Binary, Compare};
use tongtu_tile::{Access, Factor, TileMap, Val};

use super::contract::CACHE_LINE;
use super::conv::Conv;
use super::epilogue::{epilogue, epilogue_view, heavy_epilogue};
use super::taps::{Window, cut};
use super::tiles::{compute_type, register_tile};
use super::{Pack, Request, Scheduled, blocks, delinear, product};
use crate::emit::{CAST, Coord, Emitter, zero_of};
use crate::error::Error;

/// Bytes of input rows an instance keeps in scratch.
const ROWS_BYTES: i64 = 512 * 1024;
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
/// Least steps of the summed dim for which that is done where the number of tiles is not known: pictures shrink as their channels
/// grow.
const DEEP: i64 = 1024;
/// Steps whose products of bytes are summed at once.
const FOUR: usize = 4;
/// Instances that there should be at least, so that several threads have work.
const INSTANCES: i64 = 8;
/// Most output rows of an instance.
const MAX_ROWS: i64 = 8;

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
    let ct = e.b.dtype(p.scratch);
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

/// Whether columns lie next to each other in memory and stay so in scratch.
fn is_planar(c: &Conv<'_>) -> bool {
    let last = c.taps.len() - 1;
    let window = Window::new(c.taps[last], c.spec.strides[last], c.spec.dilation[last]);
    c.spec.input.last() == Some(&ConvRole::S(last)) && window.jump == 1 && c.spec.groups == 1
}

/// Whether products of bytes are summed four at a time, taps of a row side by side. A machine with a matrix unit for bytes also does it
/// in vectors.
pub fn sums_fours(r: &Request<'_>, c: &Conv<'_>) -> bool {
    let types = [r.graph.dtype(c.input), r.graph.dtype(c.kernel)];
    is_planar(c)
        && c.spec.dilation[c.taps.len() - 1] == 1
        && types == [DType::U8, DType::I8]
        && r.machine.scratch.is_none()
        && r.machine.unit(types[0], types[1], c.acc).is_some()
}

/// How a convolution is cut into instances and register tiles.
struct Cuts {
    windows: Vec<Window>,
    /// Position of the spatial dim that is next to the channels, or last.
    last: usize,
    /// Elements of a vector.
    lanes: usize,
    /// Register tile: outputs, channels.
    tile: (usize, usize),
    /// Steps of one multiplication.
    depth: usize,
    groups: i64,
    /// Input channels of a group.
    ic: i64,
    /// Output channels of a group.
    ocg: i64,
    /// Panels of a group's output channels.
    group_panels: i64,
    /// Whether a row in scratch holds one channel after another.
    planar: bool,
    /// Steps that one product sums at once: four of bytes as they are.
    side: usize,
    /// Elements from one column to the next in scratch.
    pitch: i64,
    width: Dim,
    height: Dim,
    /// Output rows of an instance, and the most that there can be.
    rows: Dim,
    most_rows: i64,
    /// Output columns of an instance, at most.
    columns: i64,
    /// The width, where it is known and one instance's.
    single: Option<i64>,
    /// Output rows of a register tile.
    lines: usize,
    /// Length of each dim but the last in scratch.
    outer_len: Vec<i64>,
    /// How an instance's taps and channels are summed.
    summed: Summed,
}

impl Cuts {
    fn new(r: &Request<'_>, c: &Conv<'_>) -> Result<Cuts, Error> {
        let spec = c.spec;
        let rank = spec.rank();
        let last = rank - 1;
        let ct = compute_type(c.acc);
        let lanes = r.machine.lanes(ct);
        let known = |role: ConvRole, what: &str| {
            c.kernel_dim(r, role).as_const().ok_or_else(|| Error::unsupported("conv", r.loc, what))
        };
        let ic = known(ConvRole::C, "unknown input channels")?;
        let oc = known(ConvRole::N, "unknown output channels")?;
        let (groups, ocg) = (spec.groups, oc / spec.groups);
        let windows: Vec<Window> =
            (0..rank).map(|s| Window::new(c.taps[s], spec.strides[s], spec.dilation[s])).collect();
        let width = c.output_dim(r, ConvRole::S(last)).clone();
        // Columns next to each other in memory stay so in scratch.
        let planar = is_planar(c);
        let depth = if planar { 1 } else { r.machine.steps(ct) };
        let (mr, vectors) = register_tile(r, ct, Some(ocg), depth, |most| match width.as_const() {
            // Several short rows are one tile.
            Some(w) if w > 0 && w <= most as i64 => (most as i64 / w * w) as f64,
            Some(w) if w > 0 => w as f64 / (w as u64).div_ceil(most as u64) as f64,
            _ => most as f64,
        });
        // In a grouped convolution the group's output channels start a panel.
        let nr = lanes * vectors;
        let nr = if groups == 1 || ocg % nr as i64 == 0 { nr } else { divisor(ocg, nr) };
        let dots = sums_fours(r, c);
        let side = if dots { FOUR } else { 1 };
        // Columns that are whole pages apart would push each other out of the nearest cache.
        let bytes = if dots { 1 } else { ct.bits() as i64 / 8 };
        let apart = windows[last].step * ic * bytes % APART == 0;
        let pitch = if apart && !planar { ic + PUSH / bytes } else { ic };
        let height = if rank >= 2 { c.output_dim(r, ConvRole::S(last - 1)).clone() } else { Dim::from(1) };
        let mut cuts = Cuts {
            summed: Summed::new(c, (planar, side), spec.dilation[last] == 1 && pitch == ic, ic),
            windows,
            last,
            lanes,
            tile: (mr, nr),
            depth,
            groups,
            ic,
            ocg,
            group_panels: (ocg + nr as i64 - 1) / nr as i64,
            planar,
            side,
            pitch,
            width,
            height,
            rows: Dim::from(1),
            most_rows: 1,
            columns: 1,
            single: None,
            lines: 1,
            outer_len: Vec::new(),
        };
        cuts.block(bytes);
        Ok(cuts)
    }

    /// The outputs of an instance: some rows and columns whose input rows fit in scratch.
    fn block(&mut self, bytes: i64) {
        let (last, mr) = (self.last, self.tile.0 as i64);
        let flat = last == 0;
        let others: i64 = self.windows[..last.saturating_sub(1)].iter().map(|w| w.span(1)).product();
        let fits = |rows: i64, columns: i64| {
            let lines = if flat { 1 } else { self.windows[last - 1].span(rows) };
            others * lines * self.windows[last].span(columns) * self.pitch * bytes <= ROWS_BYTES
        };
        let known = self.height.as_const();
        let mut rows = if known.is_some() || flat { 1 } else { 4 };
        let mut columns = self.width.as_const().unwrap_or(MAX_COLUMNS).clamp(1, MAX_COLUMNS);
        while columns > mr && !fits(rows, columns) {
            columns = (columns / 2).max(mr);
        }
        if let Some(h) = known.map(|h| h.max(1)) {
            while rows < h.min(MAX_ROWS) && fits(rows + 1, columns) {
                rows += 1;
            }
            // As even as can be.
            let blocks = (h + rows - 1) / rows;
            rows = (h + blocks - 1) / blocks;
        }
        self.single = self.width.as_const().filter(|&w| w <= columns);
        if self.single.is_none() {
            columns = (columns / mr).max(1) * mr;
        }
        // Short rows: one register tile takes several.
        self.lines = match self.single {
            Some(w) if !flat && w > 0 => (mr / w).clamp(1, rows.max(1)) as usize,
            _ => 1,
        };
        (self.rows, self.most_rows, self.columns) = (Dim::from(rows), rows, columns);
        self.outer_len = self.windows[..last].iter().map(|w| w.span(1)).collect();
        if !flat {
            self.outer_len[last - 1] = self.windows[last - 1].span(rows);
        }
        if known.is_none() && last == 1 && self.single.is_none() {
            self.choose_rows(bytes);
        }
    }

    /// As many rows as fit in scratch, where pictures have two dims of which neither is known.
    fn choose_rows(&mut self, bytes: i64) {
        let (along, down) = (self.windows[1], self.windows[0]);
        let line = (self.block_columns() * along.step + along.rest()) * self.pitch;
        let lines = Dim::from(ROWS_BYTES / bytes).floordiv(&line);
        let fit = (lines - down.rest()).floordiv(&Dim::from(down.step));
        let one = Dim::from(1);
        let fit = fit.max(&one).min(&Dim::from(MAX_ROWS));
        let blocks = self.height.ceildiv(&fit).max(&one);
        self.rows = self.height.ceildiv(&blocks).max(&one);
        self.most_rows = MAX_ROWS;
    }

    /// Blocks of columns.
    fn column_blocks(&self) -> Dim {
        self.width.ceildiv(&Dim::from(self.columns))
    }

    /// Columns of an instance, whole register tiles of them but in the last one.
    fn block_columns(&self) -> Dim {
        let mr = self.tile.0 as i64;
        let tiles = self.width.ceildiv(&(self.column_blocks().max(&Dim::from(1)) * mr));
        (tiles * mr).min(&self.width)
    }

    /// The order in which the kernel is packed.
    fn pack(&self, spec: &ConvSpec, input: usize) -> Pack {
        let rank = spec.rank();
        let mut perm = vec![Conv::at(&spec.kernel, ConvRole::N)];
        perm.extend((0..rank).map(|i| Conv::at(&spec.kernel, ConvRole::S(i))));
        perm.insert(if self.planar { rank } else { rank + 1 }, Conv::at(&spec.kernel, ConvRole::C));
        Pack { input, perm, columns: 0, width: self.tile.1, group: (self.side, self.side) }
    }

    /// Elements of scratch that an instance's rows take, at most.
    fn room(&self, bytes: i64) -> i64 {
        let columns = self.windows[self.last].span(self.columns) * self.pitch;
        match self.rows.as_const() {
            Some(_) => self.outer_len.iter().product::<i64>() * columns,
            None => (ROWS_BYTES / bytes).max(self.windows[0].span(1) * columns),
        }
    }

    /// Elements of scratch beyond the rows that a block may write or read.
    fn slack(&self) -> i64 {
        (4 * self.lanes) as i64 + self.tile.0 as i64 * self.windows[self.last].step * self.pitch
    }

    /// Elements from one output to the next along a row in scratch.
    fn step(&self) -> i64 {
        self.windows[self.last].step * if self.planar { 1 } else { self.pitch }
    }

    /// Elements of a block's row of partial sums.
    fn sums_row(&self) -> i64 {
        self.columns + self.tile.0 as i64
    }

    /// Parts that a group's panels are divided in, and panels of a part: where there are few instances and copying the rows again
    /// costs little.
    fn parts(&self, taps: i64, instances: &Dim) -> (Dim, Dim) {
        let per_panel = taps / self.windows.iter().map(|w| w.step).product::<i64>().max(1);
        let least = (8 / per_panel.max(1)).max(1);
        let (one, panels) = (Dim::from(1), Dim::from(self.group_panels));
        let most = Dim::from((self.group_panels / least).max(1));
        let parts = Dim::from(INSTANCES).ceildiv(&instances.max(&one)).min(&most);
        let part_panels = panels.ceildiv(&parts).max(&one);
        (panels.ceildiv(&part_panels), part_panels)
    }
}

/// The summed elements of a window: runs of them lie evenly in scratch. They are summed in blocks of some runs, or of a part of one;
/// a panel's block stays in the nearest cache while all tiles read it.
struct Summed {
    /// Elements of a run.
    len: i64,
    /// Runs of one row of taps.
    of_row: i64,
    /// Runs of a window.
    runs: i64,
    /// Runs of a block.
    per: i64,
    /// Parts that a run is cut in, and elements of a part.
    cuts: i64,
    cut: i64,
    /// Number of blocks.
    blocks: i64,
}

impl Summed {
    /// `dense`: whether neighbouring taps of a row lie next to each other.
    fn new(c: &Conv<'_>, (planar, side): (bool, usize), dense: bool, ic: i64) -> Summed {
        let last = c.taps.len() - 1;
        let (len, of_row) = match (planar, dense) {
            // What is read past the taps is multiplied by zeros.
            (true, _) => ((c.taps[last] as usize).next_multiple_of(side) as i64, ic),
            (_, true) => (c.taps[last] * ic, 1),
            _ => (ic, c.taps[last]),
        };
        let runs: i64 = c.taps[..last].iter().product::<i64>() * of_row;
        let (per, cuts) = if planar || runs * len <= 2 * BLOCK {
            (runs, 1)
        } else if 2 * len > BLOCK {
            (1, (len + BLOCK - 1) / BLOCK)
        } else {
            (BLOCK / len, 1)
        };
        let (cut, blocks) = ((len + cuts - 1) / cuts, (runs + per - 1) / per.max(1) * cuts);
        Summed { len, of_row, runs, per, cuts, cut, blocks }
    }

    /// The runs of a block, and what it takes of each; without a block, all.
    fn range(&self, e: &mut Emitter<'_>, block: Option<Val>) -> Result<[(Val, Val); 2], Error> {
        let zero = e.b.int(0);
        let (runs, len) = (e.b.int(self.runs), e.b.int(self.len));
        let Some(block) = block else { return Ok([(zero, runs), (zero, len)]) };
        if self.cuts > 1 {
            let n = e.b.int(self.cuts);
            let (run, cut) = (e.b.div(block, n)?, e.b.binary(Binary::Rem, block, n)?);
            let lo = e.b.mul_int(cut, self.cut)?;
            let hi = e.b.add_int(lo, self.cut)?;
            return Ok([(run, e.b.add_int(run, 1)?), (lo, e.b.min(hi, len)?)]);
        }
        let lo = e.b.mul_int(block, self.per)?;
        let hi = e.b.add_int(lo, self.per)?;
        Ok([(lo, e.b.min(hi, runs)?), (zero, len)])
    }

    /// Whether what a block takes of a run is a multiple of some steps.
    fn whole(&self, steps: i64) -> bool {
        self.len % steps == 0 && (self.cuts == 1 || self.cut % steps == 0)
    }

    /// Elements of a block along the summed dim, about.
    fn depth(&self) -> i64 {
        if self.cuts > 1 { self.cut } else { self.per * self.len }
    }
}

/// What the tiles of an instance share.
struct Body<'a> {
    c: &'a Conv<'a>,
    cuts: &'a Cuts,
    kernel: DType,
    /// The packed kernel: buffer, view, strides and dims as panels; view as one dim.
    panels: (Val, Val, Vec<Val>, Vec<Dim>),
    packed: Val,
    /// Input rows in scratch.
    rows: Val,
    columns: Val,
    /// First row and column.
    origin: (Val, Val),
    /// Rows and columns.
    extent: [Val; 2],
    /// Batch, group and outer positions.
    outer: Vec<Coord>,
    /// Partial sums between blocks.
    sums: Option<Val>,
    /// Where results wait for what follows them.
    finish: Option<Val>,
    outs: Vec<Val>,
}

/// What a tile brings nearer of the next block.
#[derive(Clone, Copy)]
struct Share {
    /// Place of the first element.
    at: Val,
    /// Elements for each step.
    each: Val,
    /// Lines of the cache for each step, and elements of one.
    lines: i64,
    line: i64,
}

/// Places of one tile.
#[derive(Clone, Copy)]
struct Place {
    block: Option<Val>,
    panel: Val,
    /// First channel.
    channel: Val,
    row: Val,
    column: Val,
    lines: usize,
    width: usize,
}

impl Body<'_> {
    /// What a tile brings nearer of the next block, where a block has few tiles, or may have: from step 0 of the panel on.
    fn share(
        &self,
        e: &mut Emitter<'_>,
        p: &Place,
        row: Val,
        col: Val,
        first: (Val, Val),
    ) -> Result<Option<Share>, Error> {
        let c = self.cuts;
        let nr = c.tile.1 as i64;
        let size = nr * (p.width * p.lines) as i64;
        let line = (CACHE_LINE as i64 * 8 / self.kernel.bits() as i64).max(1);
        let (width, outputs, each, lines) = match c.single.map(|w| (w, w * c.most_rows)) {
            Some((w, n)) if !c.planar && n > 0 && n <= PREFETCHED * c.tile.0 as i64 => {
                let each = (size + n - 1) / n;
                (e.b.int(w), e.b.int(n), e.b.int(each), (each + line - 1) / line)
            }
            None if !c.planar && c.summed.runs * c.summed.len >= DEEP => {
                let [rows, columns] = self.extent;
                let (n, one, size) = (e.b.mul(rows, columns)?, e.b.int(1), e.b.int(size - 1));
                let n = e.b.max(n, one)?;
                let each = e.b.div(size, n)?;
                (columns, n, e.b.add_int(each, 1)?, 1)
            }
            _ => return Ok(None),
        };
        let depth = c.summed.depth() * nr;
        let done = e.b.mul(row, width)?;
        let done = e.b.add(done, col)?;
        let share = e.b.mul_int(done, depth)?;
        let share = e.b.div(share, outputs)?;
        let begin = e.b.mul_int(first.0, c.summed.len)?;
        let begin = e.b.add(begin, first.1)?;
        let nr = e.b.int(nr);
        let skip = e.b.sub(nr, each)?;
        let at = e.b.mul(begin, skip)?;
        let taps: i64 = self.c.taps.iter().product();
        let panel = e.b.mul_int(p.panel, taps * c.ic)?;
        let panel = e.b.mul(panel, nr)?;
        let at = e.b.add(at, panel)?;
        let at = e.b.add(at, share)?;
        Ok(Some(Share { at: e.b.add_int(at, depth)?, each, lines, line }))
    }

    /// The scratch row and the offset in it of a run, for the outputs that begin at `row` and `first`.
    fn run_at(&self, e: &mut Emitter<'_>, t: Val, row: Val, first: Val) -> Result<(Val, Val), Error> {
        let (c, zero) = (self.cuts, e.b.int(0));
        let mut rest = t;
        let along = if c.summed.of_row > 1 {
            let n = e.b.int(c.summed.of_row);
            let along = e.b.binary(Binary::Rem, rest, n)?;
            rest = e.b.div(rest, n)?;
            along
        } else {
            zero
        };
        let mut taps = vec![zero; c.last];
        for (i, &n) in self.c.taps[..c.last].iter().enumerate().rev() {
            taps[i] = rest;
            if i > 0 {
                let n = e.b.int(n);
                taps[i] = e.b.binary(Binary::Rem, rest, n)?;
                rest = e.b.div(rest, n)?;
            }
        }
        let mut line = zero;
        for (s, &t) in taps.iter().enumerate() {
            let mut at = e.b.mul_int(t, c.windows[s].dilation)?;
            if s + 1 == c.last {
                let down = e.b.mul_int(row, c.windows[s].step)?;
                at = e.b.add(at, down)?;
            }
            let scaled = e.b.mul_int(line, c.outer_len[s])?;
            line = e.b.add(scaled, at)?;
        }
        let along = if c.planar {
            e.b.mul(along, self.columns)?
        } else {
            e.b.mul_int(along, c.windows[c.last].dilation * c.pitch)?
        };
        Ok((line, e.b.add(first, along)?))
    }

    /// One tile: its sums over the block, and after the last block what follows.
    fn tile(&self, e: &mut Emitter<'_>, p: &Place) -> Result<(), Error> {
        let (c, zero) = (self.cuts, e.b.int(0));
        let (nr, ct) = (c.tile.1, compute_type(self.c.acc));
        let row = e.b.sub(p.row, self.origin.0)?;
        let size = p.width * p.lines;
        e.shape = vec![size, nr];
        let col = e.b.sub(p.column, self.origin.1)?;
        let first = e.b.mul_int(col, c.step())?;
        let at = {
            let row = e.b.mul_int(row, c.sums_row())?;
            [e.b.add(row, col)?, zero]
        };
        let whole = TileMap::along(&[size, nr], &[0, 1]);
        let init = e.b.full(ct, &[size, nr], zero_of(ct))?;
        let [(from, to), (lo, hi)] = c.summed.range(e, p.block)?;
        let next = self.share(e, p, row, col, (from, lo))?;
        let acc = e.for_loop(from, to, 1, &[init], |e, t, carried| {
            let (line, start) = self.run_at(e, t, row, first)?;
            // The taps come in the same order in the packed kernel's panel.
            let run = e.b.mul_int(t, c.summed.len)?;
            let sum = |e: &mut Emitter<'_>, k: Val, depth: usize, acc: Val| {
                let place = (line, e.b.add(start, k)?, e.b.add(run, k)?);
                Ok(vec![self.sum(e, p, place, depth, next, acc)?])
            };
            if c.planar {
                return sum(e, zero, c.summed.len as usize, carried[0]);
            }
            let turns = |e: &mut Emitter<'_>, (lo, hi): (Val, Val), depth: usize, carried: &[Val]| {
                e.for_loop(lo, hi, depth as i64, carried, |e, k, carried| sum(e, k, depth, carried[0]))
            };
            if c.summed.whole(c.depth as i64) {
                return turns(e, (lo, hi), c.depth, carried);
            }
            let (span, depth) = (e.b.sub(hi, lo)?, e.b.int(c.depth as i64));
            let rest = e.b.binary(Binary::Rem, span, depth)?;
            let end = e.b.sub(hi, rest)?;
            let carried = turns(e, (lo, end), c.depth, carried)?;
            turns(e, (end, hi), 1, &carried)
        })?[0];
        let (Some(view), Some(block)) = (self.sums, p.block) else { return self.finish(e, p, acc) };
        // Blocks are summed by themselves first: rounding errors grow with their number and length, not with their product.
        let begin = e.b.compare(Compare::Eq, block, zero)?;
        let acc = e.if_else(
            begin,
            |_| Ok(vec![acc]),
            |e| {
                let before = e.b.load(view, &at, whole.clone(), &[true, true], zero_of(ct))?;
                Ok(vec![e.b.binary(Binary::Add, before, acc)?])
            },
        )?[0];
        let end = e.b.int(c.summed.blocks - 1);
        let last = e.b.compare(Compare::Eq, block, end)?;
        e.if_else(
            last,
            |e| self.finish(e, p, acc).map(|()| vec![]),
            |e| {
                e.b.store(view, acc, &at, whole.clone(), &[true, true])?;
                Ok(vec![])
            },
        )?;
        Ok(())
    }

    /// Some steps of the summed dim: from a scratch row and an offset in it, and the step of the panel.
    fn sum(
        &self,
        e: &mut Emitter<'_>,
        p: &Place,
        (line, from, step): (Val, Val, Val),
        depth: usize,
        next: Option<Share>,
        acc: Val,
    ) -> Result<Val, Error> {
        let c = self.cuts;
        let (nr, ct) = (c.tile.1, compute_type(self.c.acc));
        let mut factors = vec![Factor { size: p.width, dim: Some(1), step: c.step() }];
        if p.lines > 1 {
            factors.insert(0, Factor { size: p.lines, dim: Some(0), step: c.windows[c.last - 1].step });
        }
        let along = match depth {
            1 => Factor { size: 1, dim: None, step: 0 },
            _ => Factor {
                size: depth,
                dim: Some(1),
                step: if c.planar { c.windows[c.last].dilation } else { 1 },
            },
        };
        let map = TileMap(vec![factors, vec![along]]);
        let st = e.b.dtype(self.rows);
        let a = e.b.load(self.rows, &[line, from], map, &[true, true], zero_of(st))?;
        let steps = if depth == 1 { Coord::at(step) } else { Coord::along(step, 0, true) };
        let zero = e.b.int(0);
        if c.side > 1 {
            let factor = |size: usize, dim: usize| Factor { size, dim: Some(dim), step: 1 };
            let map = TileMap(vec![vec![factor(depth / c.side, 1), factor(c.side, 3)], vec![factor(nr, 2)]]);
            let n = e.b.int(c.side as i64);
            let at = [p.panel, e.b.div(step, n)?, zero, zero];
            let b = e.b.load(self.panels.1, &at, map, &[true; 4], zero_of(self.kernel))?;
            return Ok(e.b.mma(acc, a, b)?);
        }
        let at = [Coord::at(p.panel), steps, Coord::along(zero, 1, true)];
        let shape = std::mem::replace(&mut e.shape, vec![depth, nr]);
        let (buffer, view, strides, dims) = &self.panels;
        let b = e.load_view(*buffer, *view, strides, dims, &at, zero_of(self.kernel))?;
        e.shape = shape;
        let b = e.b.cast(b, ct, CAST)?;
        if let Some(next) = next {
            let far = e.b.mul(step, next.each)?;
            let at = e.b.add(next.at, far)?;
            for i in 0..next.lines {
                let at = e.b.add_int(at, i * next.line)?;
                e.b.prefetch(self.packed, &[at])?;
            }
        }
        Ok(e.b.mma(acc, a, b)?)
    }

    /// What follows the sums of a tile.
    fn finish(&self, e: &mut Emitter<'_>, p: &Place, acc: Val) -> Result<(), Error> {
        let c = self.cuts;
        let (inside, exact) = (c.single.is_some(), c.ocg % c.tile.1 as i64 == 0);
        epilogue(e, self.c.out, acc, self.finish, &self.outs, &mut |e, line| {
            let (down, along) = match line {
                Some(i) if p.lines > 1 => {
                    let n = e.b.int(p.width as i64);
                    (e.b.div(i, n)?, Some(e.b.binary(Binary::Rem, i, n)?))
                }
                line => (e.b.int(0), line),
            };
            let row = e.b.add(p.row, down)?;
            let column = match along {
                None => Coord::along(p.column, 0, inside),
                Some(i) => Coord::Affine { base: e.b.add(p.column, i)?, lane: None, inside },
            };
            let of = |role: &ConvRole| match *role {
                ConvRole::N => self.outer[0],
                ConvRole::C => Coord::along(p.channel, 1, exact),
                ConvRole::S(s) if s == c.last => column,
                ConvRole::S(s) if s + 1 == c.last => Coord::at(row),
                ConvRole::S(s) => self.outer[2 + s],
            };
            Ok(self.c.spec.output.iter().map(of).collect())
        })
    }
}

/// The schedule of a convolution whose windows read several channels.
pub fn schedule(r: &Request<'_>, c: &Conv<'_>) -> Result<Scheduled, Error> {
    let g = r.graph;
    let cuts = Cuts::new(r, c)?;
    let (last, (mr, nr), ct) = (cuts.last, cuts.tile, compute_type(c.acc));
    let computed = || Error::unsupported("conv", r.loc, "a computed kernel");
    let input = g.inputs.iter().position(|&v| v == c.kernel).ok_or_else(computed)?;
    let mut s = Scheduled::default();
    let pack = cuts.pack(c.spec, input);
    // A panel's taps and channels as one dim.
    let taps: i64 = c.taps.iter().product();
    let mut panel_dims =
        vec![pack.dims(g.dims(c.kernel))[0].clone(), Dim::from(taps * cuts.ic), Dim::from(nr as i64)];
    if cuts.side > 1 {
        panel_dims[1] = Dim::from(cuts.summed.runs * cuts.summed.len / cuts.side as i64);
        panel_dims.push(Dim::from(cuts.side as i64));
    }
    let arg = pack.place(r, &mut s)?;

    let mut e = Emitter::new(r.name, g);
    e.write_dims();
    e.leaves_of(&g.outputs, &[c.out])?;
    e.leaves_of(&[c.input], &[])?;
    let kb = e.buffer(arg, g.dtype(c.kernel), Access::Read);
    let (kv, kstrides) = e.view(kb, &panel_dims)?;
    let outs = (0..g.outputs.len()).map(|i| e.output(i)).collect::<Result<Vec<_>, _>>()?;
    let (zero, one) = (e.b.int(0), e.b.int(1));

    // The grid: columns × rows × (batch, groups, outer positions, parts of the panels).
    let row_blocks = cuts.height.ceildiv(&cuts.rows);
    let (col_blocks, block) = (cuts.column_blocks(), cuts.block_columns());
    let mut outer_dims = vec![c.output_dim(r, ConvRole::N).clone(), Dim::from(cuts.groups)];
    outer_dims.extend((0..last.saturating_sub(1)).map(|i| c.output_dim(r, ConvRole::S(i)).clone()));
    let instances = product(&[product(&outer_dims), row_blocks.clone(), col_blocks.clone()]);
    let (parts, part_panels) = cuts.parts(taps, &instances);
    outer_dims.push(parts.clone());
    let pid_outer = e.b.program_id(2)?;
    let outer = delinear(&mut e, pid_outer, &outer_dims)?;
    let scalar = |c: &Coord| match c {
        Coord::Affine { base, .. } => *base,
        Coord::Tile { index, .. } => *index,
    };
    let group = scalar(&outer[1]);
    let (pid_row, pid_col) = (e.b.program_id(1)?, e.b.program_id(0)?);
    let rows_each = e.dim(&cuts.rows);
    let row0 = e.b.mul(pid_row, rows_each)?;
    let block_v = match cuts.single {
        Some(w) => e.b.int(w),
        None => e.dim_param(&block),
    };
    let col0 = e.b.mul(pid_col, block_v)?;
    let (rows_v, width_v) = (e.dim_param(&cuts.height), e.dim_param(&cuts.width));
    let row_end = e.b.add(row0, rows_each)?;
    let row_hi = e.b.min(row_end, rows_v)?;
    let col_end = e.b.add(col0, block_v)?;
    let col_hi = if cuts.single.is_some() { col_end } else { e.b.min(col_end, width_v)? };

    // Scratch: rows of columns × channels, one after another.
    let columns_v = cuts.windows[last].span_of(&mut e, block_v)?;
    let line_v = e.b.mul_int(columns_v, cuts.pitch)?;
    let cols = cuts.windows[last].span(cuts.columns);
    let st = if cuts.side > 1 { g.dtype(c.input) } else { ct };
    let len = cuts.room(st.bits() as i64 / 8) + cuts.slack();
    let scratch = e.b.alloc(st, len as usize)?;
    let len_v = e.b.int(len);
    let all = e.b.view(scratch, zero, &[len_v], &[one])?;
    let by_line = cuts.lines > 1 || heavy_epilogue(g);
    let tile_rows = cuts.single.map_or(mr, |w| mr.min(w.max(1) as usize * cuts.lines));
    let finish = if by_line { Some(epilogue_view(&mut e, ct, tile_rows, nr)?) } else { None };

    let mut start = vec![zero; last + 1];
    let mut lens = Vec::new();
    for i in 0..=last {
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
        lens.push(cuts.windows[i].span_of(&mut e, count)?);
    }
    let lines = match cuts.rows.as_const() {
        Some(_) => e.b.int(cuts.outer_len.iter().product()),
        None => lens[0],
    };
    let reach = e.b.add_int(line_v, cuts.slack())?;
    let flat = e.b.view(scratch, zero, &[lines, reach], &[line_v, one])?;
    let copied = match (cuts.planar, cuts.groups) {
        (true, _) => cols,
        (_, 1) => cols * cuts.ic,
        _ => cuts.ic,
    };
    let copy = Copy {
        windows: &cuts.windows,
        start: &start,
        lens: &lens,
        outer: &cuts.outer_len,
        batch: outer[0],
        first_channel: e.b.mul_int(group, cuts.ic)?,
        channels: cuts.ic,
        pitch: cuts.pitch,
        scratch: all,
        columns: columns_v,
        line: line_v,
        planar: cuts.planar,
        width: (copied as usize).next_power_of_two().min(4 * cuts.lanes),
    };
    copy_rows(r, &mut e, c, &copy)?;

    // Panels of output channels; blocks of the summed dim; rows; tiles along a row.
    let part = outer.last().map_or(zero, scalar);
    let part_panels = e.dim(&part_panels);
    let first_panel = e.b.mul(part, part_panels)?;
    let end_panel = e.b.add(first_panel, part_panels)?;
    let gp = e.b.int(cuts.group_panels);
    let end_panel = if parts == 1 { gp } else { e.b.min(end_panel, gp)? };
    let (packed, _) = e.view(kb, &[product(&panel_dims)])?;
    let blocks = cuts.summed.blocks;
    let sums = if blocks > 1 {
        Some(epilogue_view(&mut e, ct, (cuts.most_rows * cuts.sums_row()) as usize, nr)?)
    } else {
        None
    };
    let tiles = cut(&mut e, col0, col_hi, cuts.single, mr)?;
    let row_tiles = match (cuts.lines, cuts.height.as_const()) {
        (1, _) => vec![(1, row0, row_hi)],
        (lines, Some(h)) if h % cuts.most_rows == 0 => {
            cut(&mut e, row0, row_hi, Some(cuts.most_rows), lines)?
        }
        (lines, _) => {
            let span = e.b.sub(row_hi, row0)?;
            let n = e.b.int(lines as i64);
            let rest = e.b.binary(Binary::Rem, span, n)?;
            let mid = e.b.sub(row_hi, rest)?;
            vec![(lines, row0, mid), (1, mid, row_hi)]
        }
    };
    let body = Body {
        c,
        cuts: &cuts,
        kernel: g.dtype(c.kernel),
        panels: (kb, kv, kstrides, panel_dims),
        packed,
        rows: flat,
        columns: columns_v,
        origin: (row0, col0),
        extent: [e.b.sub(row_hi, row0)?, e.b.sub(col_hi, col0)?],
        outer,
        sums,
        finish,
        outs,
    };
    e.for_loop(first_panel, end_panel, 1, &[], |e, p, _| {
        let base_panel = e.b.mul_int(group, cuts.group_panels)?;
        let panel = e.b.add(base_panel, p)?;
        let n_in_group = e.b.mul_int(p, nr as i64)?;
        let group_first = e.b.mul_int(group, cuts.ocg)?;
        let channel = e.b.add(group_first, n_in_group)?;
        let tiled = |e: &mut Emitter<'_>, block: Option<Val>| -> Result<Vec<Val>, Error> {
            for &(lines, lo, hi) in &row_tiles {
                e.for_loop(lo, hi, lines as i64, &[], |e, row, _| {
                    for &(width, lo, hi) in &tiles {
                        e.for_loop(lo, hi, width as i64, &[], |e, column, _| {
                            body.tile(e, &Place { block, panel, channel, row, column, lines, width })?;
                            Ok(vec![])
                        })?;
                    }
                    Ok(vec![])
                })?;
            }
            Ok(vec![])
        };
        if blocks == 1 {
            return tiled(e, None);
        }
        let blocks = e.b.int(blocks);
        e.for_loop(zero, blocks, 1, &[], |e, block, _| tiled(e, Some(block)))?;
        Ok(vec![])
    })?;
    s.launches.push(e.launch([col_blocks, row_blocks, product(&outer_dims)]));
    Ok(s)
}

fn divisor(n: i64, most: usize) -> usize {
    (1..=most).rev().find(|d| n % *d as i64 == 0).unwrap_or(1)
}
