//! Convolutions with the elementwise operations that follow; those with one input channel a group put vectors along the channels.

use tongtu_graph::{ConvRole, ConvSpec, Node, Op, ValueId};
use tongtu_tensor::DType;
use tongtu_tensor::dim::Dim;
use tongtu_tile::{Access, Val};

use super::epilogue::{epilogue, epilogue_view, heavy_epilogue};
use super::taps::{TapLine, cut, tap_loops};
use super::tiles::compute_type;
use super::{Pack, Request, Scheduled, delinear, multiple, product};
use crate::emit::{CAST, Coord, Emitter, zero_of};
use crate::error::Error;

/// Most products of two bytes whose sum, and all on the way to it, are whole numbers of `f32`.
const EXACT: i64 = 1 << 8;

/// A convolution and its operands.
pub(super) struct Conv<'a> {
    pub spec: &'a ConvSpec,
    pub input: ValueId,
    pub kernel: ValueId,
    pub out: ValueId,
    pub acc: DType,
    /// Kernel lengths by spatial dim.
    pub taps: Vec<i64>,
}

impl Conv<'_> {
    pub fn at(roles: &[ConvRole], role: ConvRole) -> usize {
        roles.iter().position(|r| *r == role).unwrap_or(0)
    }
    pub fn input_dim<'g>(&self, r: &Request<'g>, role: ConvRole) -> &'g Dim {
        &r.graph.dims(self.input)[Self::at(&self.spec.input, role)]
    }
    pub fn output_dim<'g>(&self, r: &Request<'g>, role: ConvRole) -> &'g Dim {
        &r.graph.dims(self.out)[Self::at(&self.spec.output, role)]
    }
    /// Whether sums of integers are exact in `f32`: few products of bytes, on machines that add up vectors.
    fn fits_f32(&self, r: &Request<'_>) -> bool {
        let byte = |v: ValueId| r.graph.dtype(v).is_int() && r.graph.dtype(v).bits() == 8;
        let summed = |role: &ConvRole| *role != ConvRole::N;
        let dims = self.spec.kernel.iter().zip(r.graph.dims(self.kernel)).filter(|(role, _)| summed(role));
        let count = dims.map(|d| d.1.as_const()).try_fold(1i64, |n, d| n.checked_mul(d?));
        let whole = byte(self.input) && byte(self.kernel) && self.acc == DType::I32;
        whole && r.machine.scratch.is_none() && count.is_some_and(|n| n <= EXACT)
    }
    pub fn kernel_dim<'g>(&self, r: &Request<'g>, role: ConvRole) -> &'g Dim {
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
    let turned = turned(r, node, spec);
    let spec = turned.as_ref().unwrap_or(spec);
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
    if let (Some(u), None) = (super::matrix::unit(r, &c), r.machine.scratch) {
        return super::matrix::schedule(r, &c, u);
    }
    if c.fits_f32(r) && !super::direct::sums_fours(r, &c) {
        c.acc = DType::F32;
    }
    let ic = c.kernel_dim(r, ConvRole::C).as_const();
    if ic == Some(1) && spec.groups > 1 && c.kernel_dim(r, ConvRole::N).as_const() == Some(spec.groups) {
        return depthwise(r, &c);
    }
    match r.machine.scratch {
        Some(_) => super::block::conv(r, &c),
        None => super::direct::schedule(r, &c),
    }
}

/// The same convolution with its last spatial dim exchanged for another, where it is a single column and others are not: schedules run
/// along the last one.
fn turned(r: &Request<'_>, node: &Node, spec: &ConvSpec) -> Option<ConvSpec> {
    let last = spec.rank().checked_sub(1)?;
    let (input, kernel) = (r.graph.dims(node.inputs[0]), r.graph.dims(node.inputs[1]));
    let single = |s: usize| {
        let is_one = |dims: &[Dim], roles| dims[Conv::at(roles, ConvRole::S(s))].as_const() == Some(1);
        let (low, high) = &spec.pads[s];
        is_one(input, &spec.input) && is_one(kernel, &spec.kernel) && *low == 0 && *high == 0
    };
    let channels_last = spec.input.last() == Some(&ConvRole::C);
    let other = (0..last).rev().find(|&s| !single(s)).filter(|_| single(last) && channels_last)?;
    let mut t = spec.clone();
    for role in [&mut t.input, &mut t.kernel, &mut t.output].into_iter().flatten() {
        match *role {
            ConvRole::S(s) if s == last => *role = ConvRole::S(other),
            ConvRole::S(s) if s == other => *role = ConvRole::S(last),
            _ => {}
        }
    }
    t.strides.swap(last, other);
    t.pads.swap(last, other);
    t.dilation.swap(last, other);
    Some(t)
}

/// One input channel a group: vectors along the channels. A tile of neighbouring outputs loads the columns that it needs once for
/// each row of taps.
fn depthwise(r: &Request<'_>, c: &Conv<'_>) -> Result<Scheduled, Error> {
    let g = r.graph;
    let spec = c.spec;
    let rank = spec.rank();
    let last = rank - 1;
    let ct = compute_type(c.acc);
    let lanes = r.machine.lanes(ct);
    let channels = c.output_dim(r, ConvRole::C).clone();
    let width = c.output_dim(r, ConvRole::S(last)).clone();
    let input = g.inputs.iter().position(|&v| v == c.kernel);
    let input = input.ok_or_else(|| Error::unsupported("conv", r.loc, "a computed kernel"))?;
    let mut s = Scheduled::default();
    // Columns of the input that a tile of outputs reads: its taps by the remainder of their place, each with a run of
    // columns a stride apart.
    let (stride, dilation) = (spec.strides[last], spec.dilation[last]);
    let mut runs: Vec<(i64, i64)> = Vec::new();
    let mut taps: Vec<(usize, usize)> = Vec::new();
    for k in 0..c.taps[last] {
        let place = k * dilation;
        // Far taps share no columns.
        let (from, shift) = if dilation > stride { (place, 0) } else { (place % stride, place / stride) };
        let run = runs.iter().position(|r| r.0 == from).unwrap_or_else(|| {
            runs.push((from, 0));
            runs.len() - 1
        });
        runs[run].1 = runs[run].1.max(shift);
        taps.push((run, shift as usize));
    }
    // The most outputs whose accumulators and columns stay in registers.
    let shared = dilation <= stride;
    let most = |vectors: usize| {
        let extra: i64 = if shared { runs.iter().map(|r| r.1).sum() } else { 0 };
        let lists = 1 + if shared { runs.len() } else { 1 };
        ((r.machine.registers / vectors).saturating_sub(1 + extra as usize) / lists).clamp(1, 14)
    };
    let known = width.as_const();
    let even = multiple(&channels, 2 * lanes);
    let vectors = if even && known.is_none_or(|w| w <= most(2) as i64) { 2 } else { 1 };
    let (mut cl, most) = (vectors * lanes, most(vectors));
    if let (Some(_), Some(n)) = (r.machine.scratch, channels.as_const()) {
        cl = cl.min((n.max(1) as usize).next_multiple_of(16));
    }
    // Taps first, channels in panels.
    let mut perm = vec![Conv::at(&spec.kernel, ConvRole::N)];
    perm.extend((0..rank).map(|i| Conv::at(&spec.kernel, ConvRole::S(i))));
    perm.push(Conv::at(&spec.kernel, ConvRole::C));
    let pack = Pack { input, perm, columns: 0, width: cl, group: (1, 1) };
    let packed_dims = pack.dims(g.dims(c.kernel));
    let arg = pack.place(r, &mut s)?;

    let mut e = Emitter::new(r.name, g);
    e.write_dims();
    e.leaves_of(&g.outputs, &[c.out])?;
    e.leaves_of(&[c.input], &[])?;
    let wb = e.buffer(arg, g.dtype(c.kernel), Access::Read);
    let (wv, wstrides) = e.view(wb, &packed_dims)?;
    let outs = (0..g.outputs.len()).map(|i| e.output(i)).collect::<Result<Vec<_>, _>>()?;
    let zero = e.b.int(0);
    // The grid: batch and outer spatial positions, then panels of channels.
    let mut outer_dims = vec![c.output_dim(r, ConvRole::N).clone()];
    outer_dims.extend((0..last).map(|i| c.output_dim(r, ConvRole::S(i)).clone()));
    let pid = e.b.program_id(0)?;
    let outer = delinear(&mut e, pid, &outer_dims)?;
    let panels = channels.ceildiv(&Dim::from(cl as i64));
    let (panels_v, width_v) = (e.dim_param(&panels), e.dim_param(&width));
    let exact = multiple(&channels, cl);
    let scalar = |c: Coord| match c {
        Coord::Affine { base, .. } => base,
        Coord::Tile { index, .. } => index,
    };
    // Taps that stay inside along the other dims.
    let mut ranges = Vec::new();
    for s in 0..last {
        let line = TapLine {
            taps: c.taps[s],
            stride: spec.strides[s],
            dilation: spec.dilation[s],
            low: &spec.pads[s].0,
            len: c.input_dim(r, ConvRole::S(s)),
        };
        ranges.push(line.range(&mut e, scalar(outer[1 + s]))?);
    }
    let tiles = cut(&mut e, zero, width_v, known, most)?;
    let largest = tiles.iter().map(|t| t.0).max().unwrap_or(1);
    let finish_view = if heavy_epilogue(g) { Some(epilogue_view(&mut e, ct, largest, cl)?) } else { None };
    let low = e.dim(&spec.pads[last].0);
    let padded = spec.pads[last].0 != 0 || spec.pads[last].1 != 0 || known.is_none();
    let in_rank = g.dims(c.input).len();
    e.for_loop(zero, panels_v, 1, &[], |e, p, _| {
        let c0 = e.b.mul_int(p, cl as i64)?;
        let columns = |e: &mut Emitter<'_>, w0: Val, size: usize| -> Result<(), Error> {
            e.shape = vec![size, cl];
            let acc = e.b.full(ct, &[size, cl], zero_of(ct))?;
            let first = e.b.mul_int(w0, stride)?;
            let first = e.b.sub(first, low)?;
            let acc = tap_loops(e, &ranges, acc, &mut |e, at, tap, mut acc| {
                let mut loaded = Vec::new();
                for &(from, more) in &runs {
                    e.shape = vec![size + more as usize, cl];
                    let mut coords = vec![Coord::at(zero); in_rank];
                    for (d, role) in spec.input.iter().enumerate() {
                        coords[d] = match *role {
                            ConvRole::N => outer[0],
                            ConvRole::C => Coord::along(c0, 1, exact),
                            ConvRole::S(i) if i == last => {
                                let base = e.b.add_int(first, from)?;
                                Coord::Affine { base, lane: Some((0, stride)), inside: !padded }
                            }
                            ConvRole::S(i) => Coord::at(at[i]),
                        };
                    }
                    let x = e.emit(c.input, &coords)?;
                    let x = e.b.cast(x, ct, CAST)?;
                    loaded.push(e.full(x)?);
                }
                e.shape = vec![size, cl];
                for (k, &(run, shift)) in taps.iter().enumerate() {
                    let x = e.b.extract(loaded[run], &[shift, 0], &[size, cl])?;
                    let mut wc = vec![Coord::at(p)];
                    wc.extend(tap.iter().map(|&t| Coord::at(t)));
                    wc.push(Coord::at(e.b.int(k as i64)));
                    wc.push(Coord::at(zero));
                    wc.push(Coord::along(zero, 1, true));
                    let w = e.load_view(wb, wv, &wstrides, &packed_dims, &wc, zero_of(g.dtype(c.kernel)))?;
                    let w = e.b.cast(w, ct, CAST)?;
                    let t = e.common(&[x, w, acc])?;
                    acc = if ct.is_float() && r.machine.scratch.is_none() {
                        e.b.fma(t[0], t[1], t[2])?
                    } else {
                        let m = e.b.mul(t[0], t[1])?;
                        e.b.add(m, t[2])?
                    };
                }
                Ok(acc)
            })?;
            epilogue(e, c.out, acc, finish_view, &outs, &mut |e, line| {
                let inside = known.is_some();
                let mut coords = Vec::new();
                for role in &spec.output {
                    coords.push(match *role {
                        ConvRole::N => outer[0],
                        ConvRole::C => Coord::along(c0, 1, exact),
                        ConvRole::S(i) if i == last => match line {
                            None => Coord::along(w0, 0, inside),
                            Some(i) => Coord::Affine { base: e.b.add(w0, i)?, lane: None, inside },
                        },
                        ConvRole::S(i) => outer[1 + i],
                    });
                }
                Ok(coords)
            })
        };
        for &(size, lo, hi) in &tiles {
            e.for_loop(lo, hi, size as i64, &[], |e, w0, _| {
                columns(e, w0, size)?;
                Ok(vec![])
            })?;
        }
        Ok(vec![])
    })?;
    s.launches.push(e.launch([product(&outer_dims), Dim::from(1), Dim::from(1)]));
    Ok(s)
}
