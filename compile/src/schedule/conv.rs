//! Convolutions with the elementwise operations that follow.
//!
//! An instance computes a block of output rows. It copies the input rows it needs into scratch, channels last and padding
//! written out, and then runs the register-tiled product of contractions over taps and channels: for one row of taps
//! the taps and channels of a window lie next to each other in scratch, so they are one summed dim. Convolutions with one
//! input channel a group put vectors along the channels instead.

use tongtu_graph::{ConvRole, ConvSpec, Op, ValueId};
use tongtu_tensor::DType;
use tongtu_tensor::dim::Dim;
use tongtu_tensor::scalar::Binary;
use tongtu_tile::{Access, Factor, TileMap, Val};

use super::contract::{
    compute_type, cover_rows, epilogue, epilogue_view, heavy_epilogue, register_tile, row_tiles,
};
use super::{Pack, Request, Scheduled, blocks, delinear, multiple, product};
use crate::emit::{CAST, Coord, Emitter, zero_of};
use crate::error::Error;

/// Bytes of input rows an instance keeps in scratch.
const ROWS_BYTES: i64 = 384 * 1024;

struct Conv<'a> {
    spec: &'a ConvSpec,
    input: ValueId,
    kernel: ValueId,
    out: ValueId,
    acc: DType,
    /// Kernel lengths by spatial dim.
    taps: Vec<i64>,
}

impl Conv<'_> {
    fn at(roles: &[ConvRole], role: ConvRole) -> usize {
        roles.iter().position(|r| *r == role).unwrap_or(0)
    }
    fn input_dim<'g>(&self, r: &Request<'g>, role: ConvRole) -> &'g Dim {
        &r.graph.dims(self.input)[Self::at(&self.spec.input, role)]
    }
    fn output_dim<'g>(&self, r: &Request<'g>, role: ConvRole) -> &'g Dim {
        &r.graph.dims(self.out)[Self::at(&self.spec.output, role)]
    }
    fn kernel_dim<'g>(&self, r: &Request<'g>, role: ConvRole) -> &'g Dim {
        &r.graph.dims(self.kernel)[Self::at(&self.spec.kernel, role)]
    }
}

/// The schedule of a convolution and what follows it.
pub fn schedule(r: &Request<'_>, n: usize) -> Result<Scheduled, Error> {
    let node = &r.graph.nodes[n];
    let Op::Conv { spec, acc } = &node.op else {
        return Err(Error::unsupported("conv", r.loc, "the anchor is another operation"));
    };
    if spec.input_dilation.iter().any(|&d| d != 1) {
        return Err(Error::unsupported(
            "conv",
            r.loc,
            "spread input elements are rewritten before schedules",
        ));
    }
    let mut c = Conv {
        spec,
        input: node.inputs[0],
        kernel: node.inputs[1],
        out: node.outputs[0],
        acc: *acc,
        taps: Vec::new(),
    };
    for s in 0..spec.rank() {
        let t = c.kernel_dim(r, ConvRole::S(s)).as_const();
        c.taps.push(t.ok_or_else(|| Error::unsupported("conv", r.loc, "a kernel of unknown lengths"))?);
    }
    let ic = c.kernel_dim(r, ConvRole::C).as_const();
    if ic == Some(1) && spec.groups > 1 && c.kernel_dim(r, ConvRole::N).as_const() == Some(spec.groups) {
        return depthwise(r, &c);
    }
    direct(r, &c)
}

/// One input channel a group: vectors along the channels.
fn depthwise(r: &Request<'_>, c: &Conv<'_>) -> Result<Scheduled, Error> {
    let g = r.graph;
    let spec = c.spec;
    let rank = spec.rank();
    let last = rank - 1;
    let ct = compute_type(c.acc);
    let lanes = r.machine.lanes(ct);
    let channels = c.output_dim(r, ConvRole::C).clone();
    let input = g.inputs.iter().position(|&v| v == c.kernel);
    let mut s = Scheduled::default();
    let cl = match channels.as_const() {
        Some(n) if n <= lanes as i64 => lanes,
        _ => 2 * lanes,
    };
    // Taps first, channels in panels.
    let mut perm = vec![Conv::at(&spec.kernel, ConvRole::N)];
    perm.extend((0..rank).map(|i| Conv::at(&spec.kernel, ConvRole::S(i))));
    perm.push(Conv::at(&spec.kernel, ConvRole::C));
    let input = input.ok_or_else(|| Error::unsupported("conv", r.loc, "a computed kernel"))?;
    let pack = Pack { input, perm, columns: 0, width: cl };
    let packed_dims = pack.dims(g.dims(c.kernel));
    let arg = pack.place(r, &mut s)?;

    let mut e = Emitter::new(r.name, g);
    e.leaves_of(&g.outputs, &[c.out])?;
    e.leaves_of(&[c.input], &[])?;
    let wb = e.buffer(arg, g.dtype(c.kernel), Access::Read);
    let (wv, wstrides) = e.view(wb, &packed_dims)?;
    let outs = (0..g.outputs.len()).map(|i| e.output(i)).collect::<Result<Vec<_>, _>>()?;
    let zero = e.b.int(0);
    let width = c.output_dim(r, ConvRole::S(rank - 1)).clone();
    let mw = match width.as_const() {
        Some(n) if n < 6 => n.max(1) as usize,
        Some(n) => (4..=7).rev().min_by_key(|t| (n as usize).div_ceil(*t) * t).unwrap_or(4),
        None => 6,
    };
    // The grid: batch and outer spatial positions, then panels of channels.
    let mut outer_dims = vec![c.output_dim(r, ConvRole::N).clone()];
    outer_dims.extend((0..rank - 1).map(|i| c.output_dim(r, ConvRole::S(i)).clone()));
    let pid = e.b.program_id(0)?;
    let outer = delinear(&mut e, pid, &outer_dims)?;
    let panels = channels.ceildiv(&Dim::from(cl as i64));
    let (panels_v, width_v) = (e.dim_param(&panels), e.dim_param(&width));
    let exact = multiple(&channels, cl);
    let scalar = |c: Coord| match c {
        Coord::Affine { base, .. } => base,
        Coord::Tile { index, .. } => index,
    };
    // Output columns whose windows lie inside the input are computed in tiles without checks, the others one by one.
    let (stride, reach) = (spec.strides[last], (c.taps[last] - 1) * spec.dilation[last]);
    let in_width = c.input_dim(r, ConvRole::S(last));
    let (none, pad) = (Dim::from(0), &spec.pads[last].0);
    let left = pad.max(&none).ceildiv(&Dim::from(stride)).min(&width);
    let right = (in_width + pad - reach - 1).floordiv(&Dim::from(stride)) + 1;
    let right = right.min(&width).max(&left);
    let (left_v, right_v) = (e.dim(&left), e.dim(&right));
    // Taps that stay inside along the other dims.
    let mut ranges = Vec::new();
    for s in 0..last {
        let start = e.b.mul_int(scalar(outer[1 + s]), spec.strides[s])?;
        let low = e.dim(&spec.pads[s].0);
        let start = e.b.sub(start, low)?;
        let below = e.b.sub(zero, start)?;
        let below = e.b.max(below, zero)?;
        let lo = e.b.ceil_div_int(below, spec.dilation[s])?;
        let n = e.dim(c.input_dim(r, ConvRole::S(s)));
        let room = e.b.sub(n, start)?;
        let room = e.b.max(room, zero)?;
        let hi = e.b.ceil_div_int(room, spec.dilation[s])?;
        let taps = e.b.int(c.taps[s]);
        ranges.push((start, lo, e.b.min(hi, taps)?));
    }
    let finish_view = if heavy_epilogue(g) { Some(epilogue_view(&mut e, ct, mw, cl)?) } else { None };
    let in_rank = g.dims(c.input).len();
    e.for_loop(zero, panels_v, 1, &[], |e, p, _| {
        let c0 = e.b.mul_int(p, cl as i64)?;
        let columns = |e: &mut Emitter<'_>, w0: Val, size: usize, inside: bool| -> Result<(), Error> {
            e.shape = vec![size, cl];
            let acc = e.b.full(ct, &[size, cl], zero_of(ct))?;
            let first = e.b.mul_int(w0, stride)?;
            let low = e.dim(pad);
            let first = e.b.sub(first, low)?;
            let (mut at, mut tap) = (vec![zero; last], vec![zero; last]);
            let acc = tap_loops(e, &ranges, spec, &mut at, &mut tap, acc, &mut |e, at, tap, mut acc| {
                for k in 0..c.taps[last] {
                    let mut coords = vec![Coord::at(zero); in_rank];
                    for (d, role) in spec.input.iter().enumerate() {
                        coords[d] = match *role {
                            ConvRole::N => outer[0],
                            ConvRole::C => Coord::along(c0, 1, exact),
                            ConvRole::S(i) if i == last => {
                                let base = e.b.add_int(first, k * spec.dilation[last])?;
                                Coord::Affine { base, lane: Some((0, stride)), inside }
                            }
                            ConvRole::S(i) => Coord::at(at[i]),
                        };
                    }
                    let x = e.emit(c.input, &coords)?;
                    let x = e.b.cast(x, ct, CAST)?;
                    let mut wc = vec![Coord::at(p)];
                    wc.extend(tap.iter().map(|&t| Coord::at(t)));
                    wc.push(Coord::at(e.b.int(k)));
                    wc.push(Coord::at(zero));
                    wc.push(Coord::along(zero, 1, true));
                    let w = e.load_view(wb, wv, &wstrides, &packed_dims, &wc, zero_of(g.dtype(c.kernel)))?;
                    let w = e.b.cast(w, ct, CAST)?;
                    let t = e.common(&[x, w, acc])?;
                    acc = if ct.is_float() {
                        e.b.fma(t[0], t[1], t[2])?
                    } else {
                        let m = e.b.mul(t[0], t[1])?;
                        e.b.add(m, t[2])?
                    };
                }
                Ok(acc)
            })?;
            epilogue(e, c.out, acc, finish_view, &outs, &mut |e, line| {
                let mut coords = Vec::new();
                for role in &spec.output {
                    coords.push(match *role {
                        ConvRole::N => outer[0],
                        ConvRole::C => Coord::along(c0, 1, exact),
                        ConvRole::S(i) if i == last => match line {
                            None => Coord::along(w0, 0, true),
                            Some(i) => Coord::at(e.b.add(w0, i)?),
                        },
                        ConvRole::S(i) => outer[1 + i],
                    });
                }
                Ok(coords)
            })
        };
        let span = |e: &mut Emitter<'_>, lo: Val, hi: Val, size: usize, inside: bool| {
            e.for_loop(lo, hi, size as i64, &[], |e, w0, _| {
                columns(e, w0, size, inside)?;
                Ok(vec![])
            })
        };
        let whole = {
            let inner = e.b.sub(right_v, left_v)?;
            let mw_v = e.b.int(mw as i64);
            let rest = e.b.binary(Binary::Rem, inner, mw_v)?;
            e.b.sub(right_v, rest)?
        };
        span(e, zero, left_v, 1, false)?;
        span(e, left_v, whole, mw, true)?;
        span(e, whole, width_v, 1, false)?;
        Ok(vec![])
    })?;
    s.launches.push(e.launch([product(&outer_dims), Dim::from(1), Dim::from(1)]));
    Ok(s)
}

type Taps<'b> = dyn FnMut(&mut Emitter<'_>, &[Val], &[Val], Val) -> Result<Val, Error> + 'b;

/// Loops over the taps of all spatial dims but the last, each over the range that stays inside the input; the body gets
/// the input positions and the taps.
fn tap_loops(
    e: &mut Emitter<'_>,
    ranges: &[(Val, Val, Val)],
    spec: &ConvSpec,
    at: &mut Vec<Val>,
    tap: &mut Vec<Val>,
    acc: Val,
    body: &mut Taps<'_>,
) -> Result<Val, Error> {
    let s = at.len() - ranges.len();
    let Some((&(start, lo, hi), rest)) = ranges.split_first() else { return body(e, at, tap, acc) };
    let r = e.for_loop(lo, hi, 1, &[acc], |e, k, carried| {
        let step = e.b.mul_int(k, spec.dilation[s])?;
        at[s] = e.b.add(start, step)?;
        tap[s] = k;
        Ok(vec![tap_loops(e, rest, spec, at, tap, carried[0], body)?])
    })?;
    Ok(r[0])
}

/// The general convolution.
fn direct(r: &Request<'_>, c: &Conv<'_>) -> Result<Scheduled, Error> {
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
    let (mut mr, mut vectors) = register_tile(r);
    if ocg <= lanes as i64 {
        vectors = 1;
        mr = if r.machine.registers >= 32 { 24 } else { 10 };
    }
    let nr = lanes * vectors;
    let last = rank - 1;
    let width = c.output_dim(r, ConvRole::S(last)).clone();
    let (register_rows, mut lines) = (mr, 1usize);
    if let Some(w) = width.as_const() {
        // The tile length that wastes least at the end of a row.
        mr = (mr / 2..=mr).rev().min_by_key(|t| (w as usize).div_ceil(*t)).unwrap_or(mr);
        mr = mr.min((w.max(1)) as usize);
        // Short rows: one register tile takes several.
        if rank >= 2 && mr as i64 == w {
            lines = (register_rows / mr).max(1);
        }
    }

    let mut s = Scheduled::default();
    // Kernel: for a grouped convolution the group's output channels must start a panel.
    let whole_panels = groups == 1 || ocg % nr as i64 == 0;
    let nr = if whole_panels { nr } else { divisor(ocg, nr) };
    let mut perm = vec![Conv::at(&spec.kernel, ConvRole::N)];
    perm.extend((0..rank).map(|i| Conv::at(&spec.kernel, ConvRole::S(i))));
    perm.push(Conv::at(&spec.kernel, ConvRole::C));
    let pack = Pack { input, perm, columns: 0, width: nr };
    // A panel's taps and channels as one dim.
    let taps: i64 = c.taps.iter().product();
    let panel_dims = [pack.dims(g.dims(c.kernel))[0].clone(), Dim::from(taps * ic), Dim::from(nr as i64)];
    let arg = pack.place(r, &mut s)?;
    let group_panels = (ocg + nr as i64 - 1) / nr as i64;

    // Input rows in scratch: [rows…, columns, channels].
    let span = |s: usize, n: i64| (n - 1) * spec.strides[s] + (c.taps[s] - 1) * spec.dilation[s] + 1;
    let row_bytes = |cols: i64| cols * ic * ct.bits() as i64 / 8;
    let max_cols = match width.as_const() {
        Some(w) => w.max(1),
        None => 1 << 20,
    };
    let outer_taps: i64 = (0..last).map(|s| span(s, 1)).product();
    let mut wb = max_cols;
    while wb > mr as i64 && outer_taps * row_bytes(span(last, wb)) > ROWS_BYTES {
        wb = (wb / 2).max(mr as i64);
    }
    wb = wb.min(4096);
    // Several output rows along the last but one spatial dim share their input rows.
    let mut rows = 1i64;
    if rank >= 2 {
        let height = c.output_dim(r, ConvRole::S(last - 1)).as_const().unwrap_or(8).max(1);
        let others: i64 = (0..last - 1).map(|s| span(s, 1)).product();
        while rows < height.min(8)
            && others * span(last - 1, rows + 1) * row_bytes(span(last, wb)) <= ROWS_BYTES
        {
            rows += 1;
        }
        rows = (height + (height + rows - 1) / rows - 1) / ((height + rows - 1) / rows);
    }
    let cols = span(last, wb);
    let mut scratch_dims: Vec<i64> =
        (0..last).map(|s| if s + 1 == last { span(s, rows) } else { span(s, 1) }).collect();
    scratch_dims.push(cols);
    scratch_dims.push(ic);
    let scratch_len: i64 = scratch_dims.iter().product();

    let mut e = Emitter::new(r.name, g);
    e.leaves_of(&g.outputs, &[c.out])?;
    e.leaves_of(&[c.input], &[])?;
    let kb = e.buffer(arg, g.dtype(c.kernel), Access::Read);
    let (kv, kstrides) = e.view(kb, &panel_dims)?;
    let outs = (0..g.outputs.len()).map(|i| e.output(i)).collect::<Result<Vec<_>, _>>()?;
    let (zero, one) = (e.b.int(0), e.b.int(1));
    let pad_lanes = 4 * lanes;
    let scratch = e.b.alloc(ct, scratch_len as usize + pad_lanes)?;
    let sdims: Vec<Val> = scratch_dims.iter().map(|&d| e.b.int(d)).collect();
    let sstrides: Vec<i64> =
        (0..scratch_dims.len()).map(|i| scratch_dims[i + 1..].iter().product()).collect();
    let ss: Vec<Val> = sstrides.iter().map(|&d| e.b.int(d)).collect();
    let sv = e.b.view(scratch, zero, &sdims, &ss)?;
    let lines = lines.min(rows as usize);
    let by_line = lines > 1 || heavy_epilogue(g);
    let finish_view = if by_line { Some(epilogue_view(&mut e, ct, mr * lines, nr)?) } else { None };
    // The same memory as [rows…, everything in a row].
    let flat_rows: i64 = scratch_dims[..last].iter().product();
    let row_len = cols * ic;
    let (fr, fl) = (e.b.int(flat_rows), e.b.int(row_len));
    let flat = e.b.view(scratch, zero, &[fr, fl], &[fl, one])?;

    // The grid: batch × groups × outer positions, blocks of rows × blocks of columns.
    let rows_dim = if rank >= 2 { c.output_dim(r, ConvRole::S(last - 1)).clone() } else { Dim::from(1) };
    let row_blocks = rows_dim.ceildiv(&Dim::from(rows));
    let col_blocks = width.ceildiv(&Dim::from(wb));
    let mut outer_dims = vec![c.output_dim(r, ConvRole::N).clone(), Dim::from(groups)];
    outer_dims.extend((0..last.saturating_sub(1)).map(|i| c.output_dim(r, ConvRole::S(i)).clone()));
    let pid_outer = e.b.program_id(2)?;
    let outer = delinear(&mut e, pid_outer, &outer_dims)?;
    let scalar = |c: &Coord| match c {
        Coord::Affine { base, .. } => *base,
        Coord::Tile { index, .. } => *index,
    };
    let group = scalar(&outer[1]);
    let (pid_row, pid_col) = (e.b.program_id(1)?, e.b.program_id(0)?);
    let row0 = e.b.mul_int(pid_row, rows)?;
    let col0 = e.b.mul_int(pid_col, wb)?;
    let (rows_v, width_v) = (e.dim_param(&rows_dim), e.dim_param(&width));
    let row_end = e.b.add_int(row0, rows)?;
    let row_hi = e.b.min(row_end, rows_v)?;
    let col_end = e.b.add_int(col0, wb)?;
    let col_hi = e.b.min(col_end, width_v)?;
    let first_channel = e.b.mul_int(group, ic)?;

    // Copy the rows, padding written out.
    let rank_in = g.dims(c.input).len();
    let mut copy_dims: Vec<i64> = scratch_dims[..last].to_vec();
    copy_dims.push(cols);
    let copies: i64 = copy_dims.iter().product();
    let wide = (ic as usize).next_power_of_two().min(pad_lanes);
    let copies_v = e.b.int(copies);
    let ic_v = e.b.int(ic);
    e.for_loop(zero, copies_v, 1, &[], |e, i, _| {
        let dims: Vec<Dim> = copy_dims.iter().map(|&d| Dim::from(d)).collect();
        let mut at = Vec::new();
        let mut rest = i;
        for d in dims.iter().skip(1).rev() {
            let n = e.b.int(d.as_const().unwrap_or(1));
            at.push(e.b.binary(Binary::Rem, rest, n)?);
            rest = e.b.div(rest, n)?;
        }
        at.push(rest);
        at.reverse();
        e.shape = vec![wide];
        blocks(e, zero, ic_v, wide, ic % wide as i64 == 0, &[], |e, ch, inside, _| {
            let mut coords = vec![Coord::at(zero); rank_in];
            let channel = e.b.add(first_channel, ch)?;
            for (d, role) in spec.input.iter().enumerate() {
                coords[d] = match *role {
                    ConvRole::N => outer[0],
                    ConvRole::C => Coord::along(channel, 0, inside),
                    ConvRole::S(s) => {
                        let start = if s == last {
                            col0
                        } else if s + 1 == last {
                            row0
                        } else {
                            scalar(&outer[2 + s])
                        };
                        let start = e.b.mul_int(start, spec.strides[s])?;
                        let low = e.dim(&spec.pads[s].0);
                        let p = e.b.add(start, at[s])?;
                        Coord::Affine { base: e.b.sub(p, low)?, lane: None, inside: false }
                    }
                };
            }
            let t = e.emit(c.input, &coords)?;
            let t = e.b.cast(t, ct, CAST)?;
            let mut place: Vec<Coord> = at.iter().map(|&v| Coord::at(v)).collect();
            place.push(Coord::along(ch, 0, inside));
            e.store_view(sv, t, &place)?;
            Ok(vec![])
        })?;
        Ok(vec![])
    })?;

    // Panels of output channels; rows; tiles along a row.
    let sizes = row_tiles(mr, width.as_const().filter(|&w| w <= wb || wb % mr as i64 == 0));
    let gp = e.b.int(group_panels);
    let dense = spec.dilation[last] == 1;
    let exact = ocg % nr as i64 == 0;
    let step = spec.strides[last] * ic;
    let (k_len, k_count) = if dense { (c.taps[last] * ic, 1) } else { (ic, c.taps[last]) };
    let outer_taps: Vec<i64> = c.taps[..last].to_vec();
    e.for_loop(zero, gp, 1, &[], |e, p, _| {
        let base_panel = e.b.mul_int(group, group_panels)?;
        let panel = e.b.add(base_panel, p)?;
        let n_in_group = e.b.mul_int(p, nr as i64)?;
        let group_first = e.b.mul_int(group, ocg)?;
        let n0 = e.b.add(group_first, n_in_group)?;
        let row_sizes = row_tiles(lines, rows_dim.as_const().filter(|&h| h <= rows));
        let row_sizes = if lines == 1 { vec![1] } else { row_sizes };
        cover_rows(e, row0, row_hi, &row_sizes, &mut |e, row, lines| {
            let row_in_block = e.b.sub(row, row0)?;
            cover_rows(e, col0, col_hi, &sizes, &mut |e, w0, width| {
                let size = width * lines;
                e.shape = vec![size, nr];
                let col = e.b.sub(w0, col0)?;
                let first = e.b.mul_int(col, step)?;
                let zeros = e.b.full(ct, &[size, nr], zero_of(ct))?;
                // All taps but the last dim's, as nested loops; then the summed run.
                let total: i64 = outer_taps.iter().product::<i64>() * k_count;
                let total_v = e.b.int(total);
                let acc = e.for_loop(zero, total_v, 1, &[zeros], |e, t, carried| {
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
                        let d = e.b.mul_int(t, spec.dilation[s])?;
                        let at = if s + 1 == last {
                            let r = e.b.mul_int(row_in_block, spec.strides[s])?;
                            e.b.add(d, r)?
                        } else {
                            d
                        };
                        let scaled = e.b.mul_int(line, scratch_dims[s])?;
                        line = e.b.add(scaled, at)?;
                    }
                    let kw_at = e.b.mul_int(kw, spec.dilation[last] * ic)?;
                    let start = e.b.add(first, kw_at)?;
                    // Offset of this run in the packed kernel's panel.
                    let mut tap_index = zero;
                    for (s, &t) in taps.iter().enumerate() {
                        let scaled = e.b.mul_int(tap_index, c.taps[s])?;
                        tap_index = e.b.add(scaled, t)?;
                    }
                    let run = e.b.mul_int(tap_index, c.taps[last] * ic)?;
                    let kw_run = e.b.mul_int(kw, ic)?;
                    let run = e.b.add(run, kw_run)?;
                    let k_len_v = e.b.int(k_len);
                    e.for_loop(zero, k_len_v, 1, carried, |e, k, carried| {
                        let ka = e.b.add(start, k)?;
                        let mut factors = vec![Factor { size: width, dim: Some(1), step }];
                        if lines > 1 {
                            factors.insert(
                                0,
                                Factor { size: lines, dim: Some(0), step: spec.strides[last - 1] },
                            );
                        }
                        let map = TileMap(vec![factors, vec![Factor { size: 1, dim: None, step: 0 }]]);
                        let a = e.b.load(flat, &[line, ka], map, &[true, true], zero_of(ct))?;
                        let kr = e.b.add(run, k)?;
                        let at = [Coord::at(panel), Coord::at(kr), Coord::along(zero, 1, true)];
                        let b =
                            e.load_view(kb, kv, &kstrides, &panel_dims, &at, zero_of(g.dtype(c.kernel)))?;
                        let b = e.b.cast(b, ct, CAST)?;
                        Ok(vec![e.b.mma(carried[0], a, b)?])
                    })
                })?[0];
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
                        None => Coord::along(w0, 0, true),
                        Some(i) => Coord::at(e.b.add(w0, i)?),
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
            })
        })?;
        Ok(vec![])
    })?;
    s.launches.push(e.launch([col_blocks, row_blocks, product(&outer_dims)]));
    Ok(s)
}

fn divisor(n: i64, most: usize) -> usize {
    (1..=most).rev().find(|d| n % *d as i64 == 0).unwrap_or(1)
}
