//! Contractions and convolutions on machines whose tiles lie in scratchpads: blocks of both operands straight from memory, as large as the
//! smallest scratchpad allows, and one product for each block of the summed dim.

use tongtu_graph::{Builder, ConvRole, Graph, GraphError, Op, Type, ValueId};
use tongtu_tensor::DType;
use tongtu_tensor::dim::{Dim, Symbols};
use tongtu_tensor::scalar::Binary;
use tongtu_tile::{Access, Val};

use super::contract::Side;
use super::conv::Conv;
use super::epilogue::{epilogue, result_coords};
use super::tiles::compute_type;
use super::{Pack, Request, Scheduled, delinear, map, multiple, product};
use crate::emit::{CAST, Coord, Emitter, KernelArg, zero_of};
use crate::error::Error;
use crate::fuse::result_dims;

/// Steps of the summed dim in a block.
const STEPS: i64 = 64;
/// Block dims that are not whole are multiples of this.
const UNIT: i64 = 16;

/// How blocks are multiplied.
struct Product {
    /// Element types of the left and right blocks.
    types: [DType; 2],
    /// Type of the sums.
    acc: DType,
    /// Whether a matrix unit takes them.
    unit: bool,
    /// Most rows and columns of a block of sums.
    side: i64,
}

impl Product {
    fn of(r: &Request<'_>, a: DType, b: DType, acc: DType) -> Product {
        let ct = compute_type(acc);
        let bytes = (ct.bits() as usize / 8).max(1);
        let side = (r.machine.scratch.unwrap_or(4096) / bytes).isqrt().next_power_of_two().max(8) as i64;
        let takes = |l: DType, r_: DType| r.machine.unit(l, r_, ct).is_some();
        let (types, unit) = if takes(a, b) { ([a, b], true) } else { ([ct; 2], takes(ct, ct)) };
        Product { types, acc: ct, unit, side }
    }

    /// The length of a block along a dim: all of it where it is short, else nearly equal parts.
    fn length(&self, d: &Dim, most: i64) -> usize {
        let Some(n) = d.as_const() else { return most as usize };
        let n = n.max(1);
        let parts = (n + most - 1) / most;
        let even = (n + parts - 1) / parts;
        // A matrix unit's blocks keep both their dims.
        let least = if self.unit { 2 } else { 1 };
        (if parts == 1 { n.max(least) } else { (even + UNIT - 1) / UNIT * UNIT }) as usize
    }

    /// Steps of the summed dim at once: a divisor of it where there is one that is not short, so that no block is padded.
    fn steps(&self, d: &Dim) -> usize {
        if !self.unit {
            return 1;
        }
        let most = STEPS.min(self.side);
        let long = d.as_const().filter(|&n| n > most).and_then(|n| {
            let divides = |unit: i64| (most / 4..=most).rev().find(|k| n % k == 0 && k % unit == 0);
            divides(UNIT).or(divides(1))
        });
        long.map_or_else(|| self.length(d, most), |k| k as usize)
    }

    /// The sums with one more block.
    fn add(&self, e: &mut Emitter<'_>, sums: Val, a: Val, b: Val) -> Result<Val, Error> {
        if self.unit {
            return Ok(e.b.mma(sums, a, b)?);
        }
        let shape = e.b.shape(sums);
        let (a, b) = (e.b.broadcast(a, &shape)?, e.b.broadcast(b, &shape)?);
        let t = e.b.mul(a, b)?;
        Ok(e.b.add(sums, t)?)
    }
}

/// A block of an operand, zero outside of it.
fn operand(
    e: &mut Emitter<'_>,
    value: ValueId,
    coords: &[Coord],
    shape: [usize; 2],
    to: DType,
) -> Result<Val, Error> {
    e.shape = shape.to_vec();
    let g = e.graph;
    let t = e.emit(value, coords)?;
    let mut t = e.full(t)?;
    if !g.inputs.contains(&value) {
        let mut mask: Option<Val> = None;
        for (&c, d) in coords.iter().zip(g.dims(value)) {
            if let Some(m) = e.inside_mask(c, d)? {
                mask = Some(match mask {
                    Some(o) => e.binary(Binary::And, o, m)?,
                    None => m,
                });
            }
        }
        if let Some(m) = mask {
            let m = e.full(m)?;
            let d = g.dtype(value);
            let zero = e.b.full(d, &shape, zero_of(d))?;
            t = e.b.select(m, t, zero)?;
        }
    }
    Ok(e.b.cast(t, to, CAST)?)
}

/// An operand in memory as a block is read from it.
struct Source {
    buffer: Val,
    view: (Val, Vec<Val>),
    dims: Vec<Dim>,
    /// For each dim of the view the operand's; `None` for one of length 1 that the operand lacks.
    order: Vec<Option<usize>>,
}

impl Source {
    /// One row or column of a matrix unit's block: a dim of 1 stands for what is missing, so that the rest of the block is outside of
    /// the view. Nothing where the side has a dim of its own or is computed.
    fn line(e: &mut Emitter<'_>, side: &Side, at: usize) -> Result<Option<Source>, Error> {
        let (None, Some(buffer)) = (side.free_last(), e.buffer_of(side.value)) else { return Ok(None) };
        let mut dims = e.graph.dims(side.value).to_vec();
        let mut order: Vec<Option<usize>> = (0..dims.len()).map(Some).collect();
        dims.insert(at, Dim::from(1));
        order.insert(at, None);
        let view = e.view(buffer, &dims)?;
        Ok(Some(Source { buffer, view, dims, order }))
    }

    /// The block at coordinates of the operand, those of the missing dim being `own`.
    fn block(
        &self,
        e: &mut Emitter<'_>,
        side: &Side,
        coords: &[Coord],
        own: Coord,
        shape: [usize; 2],
        to: DType,
    ) -> Result<Val, Error> {
        let coords: Vec<Coord> = self.order.iter().map(|d| d.map_or(own, |d| coords[d])).collect();
        e.shape = shape.to_vec();
        let zero = zero_of(e.graph.dtype(side.value));
        let t = e.load_view(self.buffer, self.view.0, &self.view.1, &self.dims, &coords, zero)?;
        Ok(e.b.cast(t, to, CAST)?)
    }
}

type Body<'b> = dyn FnMut(&mut Emitter<'_>, &[Val], Val) -> Result<Val, Error> + 'b;

/// Nested loops of these lengths and steps over one carried tile.
fn nest(
    e: &mut Emitter<'_>,
    lens: &[(Val, i64)],
    at: &mut Vec<Val>,
    carried: Val,
    body: &mut Body<'_>,
) -> Result<Val, Error> {
    let Some((&(n, step), rest)) = lens.split_first() else { return body(e, at, carried) };
    let zero = e.b.int(0);
    let out = e.for_loop(zero, n, step, &[carried], |e, i, c| {
        at.push(i);
        let next = nest(e, rest, at, c[0], body)?;
        at.pop();
        Ok(vec![next])
    })?;
    Ok(out[0])
}

/// The schedule of a contraction and what follows it.
pub(super) fn contract(r: &Request<'_>, n: usize) -> Result<Scheduled, Error> {
    let g = r.graph;
    let node = &g.nodes[n];
    let Op::Contract { batch, over, acc } = &node.op else {
        return Err(Error::unsupported("contract", r.loc, "the anchor is another operation"));
    };
    let a = Side::new(g, node, 0, batch.len());
    let b = Side::new(g, node, 1, batch.len() + a.free.len());
    let extent = |s: &Side| s.free_last().map_or(Dim::from(1), |d| g.dims(s.value)[d].clone());
    let (m, nn) = (extent(&a), extent(&b));
    let p = Product::of(r, g.dtype(a.value), g.dtype(b.value), *acc);
    // The summed dim that is walked in blocks: the one along which rows lie in memory, else the last.
    let a_last = g.dims(a.value).len().saturating_sub(1);
    let ki = a.over.iter().position(|&d| d == a_last).unwrap_or(over.len().saturating_sub(1));
    let k_outer: Vec<usize> = (0..over.len()).filter(|&i| i != ki).collect();
    let k_dim = |i: usize| a.over.get(i).map_or(Dim::from(1), |&d| g.dims(a.value)[d].clone());
    let k = k_dim(ki);
    let (tm, tn, tk) = (p.length(&m, p.side), p.length(&nn, p.side), p.steps(&k));

    let (m_inside, n_inside, k_inside) = (multiple(&m, tm), multiple(&nn, tn), multiple(&k, tk));
    // Where the last block of steps is padded, a matrix unit takes its operands as they lie in memory.
    let mut s = Scheduled::default();
    let (mut copy_a, mut packed_b) = (None, None);
    if p.unit && !k_inside {
        let input = g.inputs.iter().position(|&v| v == a.value);
        if let (Some(input), Some(_), Some(&along)) = (input, a.free_last(), a.over.get(ki))
            && along != a_last
        {
            let mut order: Vec<usize> = (0..=a_last).filter(|&d| d != along).collect();
            order.push(along);
            let (arg, dims) = copied(r, &mut s, input, "turned", &|b, x| b.permute(x, &order))?;
            copy_a = Some((arg, dims, order));
        }
        if b.free_last().is_some_and(|d| d + 1 != g.dims(b.value).len()) {
            packed_b = b.place(r, &mut s, &b.over, tn, (1, 1))?;
        }
    }
    let mut e = Emitter::new(r.name, g);
    let out = node.outputs[0];
    e.leaves_of(&g.outputs, &[out])?;
    let source_a = match copy_a {
        Some((arg, dims, order)) => {
            let buffer = e.buffer(arg, g.dtype(a.value), Access::Read);
            let view = e.view(buffer, &dims)?;
            Some(Source { buffer, view, dims, order: order.into_iter().map(Some).collect() })
        }
        None => {
            e.leaves_of(&[a.value], &[])?;
            if p.unit { Source::line(&mut e, &a, 0)? } else { None }
        }
    };
    let panels_b = b.panels(r, &mut e, packed_b)?;
    let source_b = if p.unit { Source::line(&mut e, &b, g.dims(b.value).len())? } else { None };
    let outs = (0..g.outputs.len()).map(|i| e.output(i)).collect::<Result<Vec<_>, _>>()?;
    let inner_of = |s: &Side| s.free_last().map(|_| s.first + s.free.len() - 1);
    let (m_at, n_at) = (inner_of(&a), inner_of(&b));
    let out_dims = g.dims(out).to_vec();
    let outer_at: Vec<usize> = (0..out_dims.len()).filter(|&i| Some(i) != m_at && Some(i) != n_at).collect();
    let outer_dims: Vec<Dim> = outer_at.iter().map(|&i| out_dims[i].clone()).collect();
    let results = result_dims(g, n)
        .ok_or_else(|| Error::unsupported("contract", r.loc, "the results have other dims"))?;
    let mut lens = Vec::new();
    for &i in &k_outer {
        lens.push((e.dim_param(&k_dim(i)), 1));
    }
    lens.push((e.dim_param(&k), tk as i64));

    let zero = e.b.int(0);
    let (pm, pn, po) = (e.b.program_id(0)?, e.b.program_id(1)?, e.b.program_id(2)?);
    let (m0, n0) = (e.b.mul_int(pm, tm as i64)?, e.b.mul_int(pn, tn as i64)?);
    let mut base = vec![Coord::at(zero); out_dims.len()];
    for (&i, c) in outer_at.iter().zip(delinear(&mut e, po, &outer_dims)?) {
        base[i] = c;
    }
    let place = |side: &Side, free: Coord, at: &[Val], kc: Coord| -> Vec<Coord> {
        (0..g.dims(side.value).len())
            .map(|d| {
                if let Some(i) = side.batch.iter().position(|&x| x == d) {
                    base[i]
                } else if let Some(i) = side.over.iter().position(|&x| x == d) {
                    k_outer.iter().position(|&o| o == i).map_or(kc, |p| Coord::at(at[p]))
                } else if Some(d) == side.free_last() {
                    free
                } else {
                    base[side.first + side.free.iter().position(|&x| x == d).unwrap_or(0)]
                }
            })
            .collect()
    };
    e.shape = vec![tm, tn];
    let start = e.b.full(p.acc, &[tm, tn], zero_of(p.acc))?;
    let sums = nest(&mut e, &lens, &mut Vec::new(), start, &mut |e, at, sums| {
        let k0 = at[at.len() - 1];
        let at_a = place(&a, Coord::along(m0, 0, m_inside), at, Coord::along(k0, 1, k_inside));
        let at_b = place(&b, Coord::along(n0, 1, n_inside), at, Coord::along(k0, 0, k_inside));
        let x = match &source_a {
            Some(from) => from.block(e, &a, &at_a, Coord::along(zero, 0, false), [tm, tk], p.types[0])?,
            None => operand(e, a.value, &at_a, [tm, tk], p.types[0])?,
        };
        let y = match (&panels_b, &source_b) {
            (Some((buffer, (view, strides), dims)), _) => {
                let mut c: Vec<Coord> = b.batch.iter().map(|&d| at_b[d]).collect();
                c.extend(b.free[..b.free.len() - 1].iter().map(|&d| at_b[d]));
                c.push(Coord::at(pn));
                c.extend(b.over.iter().map(|&d| at_b[d]));
                c.push(Coord::along(zero, 1, true));
                e.shape = vec![tk, tn];
                let t = e.load_view(*buffer, *view, strides, dims, &c, zero_of(g.dtype(b.value)))?;
                e.b.cast(t, p.types[1], CAST)?
            }
            (_, Some(from)) => {
                from.block(e, &b, &at_b, Coord::along(zero, 1, false), [tk, tn], p.types[1])?
            }
            _ => operand(e, b.value, &at_b, [tk, tn], p.types[1])?,
        };
        p.add(e, sums, x, y)
    })?;
    // A dim of 1 is one row or column of the block.
    let one = |d: &Dim, n: usize| if d.as_const() == Some(1) { 1 } else { n };
    let (rows, columns) = (one(&m, tm), one(&nn, tn));
    let sums = if (rows, columns) == (tm, tn) { sums } else { e.b.extract(sums, &[0, 0], &[rows, columns])? };
    e.shape = vec![rows, columns];
    epilogue(&mut e, out, sums, None, &outs, &mut |e, _| {
        let mut c = base.clone();
        if let Some(i) = m_at {
            c[i] = Coord::along(m0, 0, m_inside);
        }
        if let Some(i) = n_at {
            c[i] = Coord::along(n0, 1, n_inside);
        }
        Ok(result_coords(e, &results, &c))
    })?;
    let grid = [m.ceildiv(&Dim::from(tm as i64)), nn.ceildiv(&Dim::from(tn as i64)), product(&outer_dims)];
    s.launches.push(e.launch(grid));
    Ok(s)
}

/// A copy of an input with zeros before and after it along the dims of `pads`, for the blocks that a matrix unit adds up have
/// the same rows.
fn padded(
    r: &Request<'_>,
    s: &mut Scheduled,
    input: usize,
    pads: &[(usize, &(Dim, Dim))],
) -> Result<(KernelArg, Vec<Dim>), Error> {
    let dtype = r.graph.dtype(r.graph.inputs[input]);
    copied(r, s, input, "pad", &|b, x| {
        let rank = b.dims(x).len();
        let (mut low, mut high) = (vec![Dim::from(0); rank], vec![Dim::from(0); rank]);
        for &(axis, (before, after)) in pads {
            low[axis] = before.clone();
            high[axis] = after.max(&Dim::from(0));
        }
        let zero = b.scalar(dtype, zero_of(dtype))?;
        b.pad(x, zero, &low, &high)
    })
}

type Build<'b> = dyn Fn(&mut Builder<'_>, ValueId) -> Result<ValueId, GraphError> + 'b;

/// What a graph makes of an input, in temporary memory.
fn copied(
    r: &Request<'_>,
    s: &mut Scheduled,
    input: usize,
    what: &str,
    build: &Build<'_>,
) -> Result<(KernelArg, Vec<Dim>), Error> {
    let v = r.graph.inputs[input];
    let (dtype, dims) = (r.graph.dtype(v), r.graph.dims(v).to_vec());
    let mut graph = Graph { name: what.into(), ..Graph::default() };
    let x = graph.add_input(Type::tensor(dtype, dims), None);
    let mut symbols = Symbols::new();
    let out = build(&mut Builder::new(&mut graph, &mut symbols), x)?;
    graph.outputs = vec![out];
    let to = graph.dims(out).to_vec();
    let launches = map::schedule(&r.part(&graph, &format!("{}_{what}", r.name)))?.launches;
    Ok((s.prepare(input, (dtype, to.clone()), launches), to))
}

/// The schedule of a convolution and what follows it: rows are neighbouring outputs along the last dim, columns are channels.
pub(super) fn conv(r: &Request<'_>, c: &Conv<'_>) -> Result<Scheduled, Error> {
    let g = r.graph;
    let spec = c.spec;
    let (rank, last) = (spec.rank(), spec.rank() - 1);
    let p = Product::of(r, g.dtype(c.input), g.dtype(c.kernel), c.acc);
    let width = c.output_dim(r, ConvRole::S(last)).clone();
    let (channels, groups) = (c.output_dim(r, ConvRole::C).clone(), spec.groups);
    let steps = c.kernel_dim(r, ConvRole::C).clone();
    let (mut tn, mut tk) = (p.length(&channels, p.side), p.steps(&steps));
    if groups > 1 {
        // Blocks do not cross groups.
        let (Some(oc), Some(ic)) = (channels.as_const(), steps.as_const()) else {
            return Err(Error::unsupported("conv", r.loc, "groups of unknown size"));
        };
        let divisor = |n: i64, most: i64| (1..=most.min(n).max(1)).rev().find(|d| n % d == 0).unwrap_or(1);
        tn = divisor(oc / groups, p.side) as usize;
        tk = if p.unit { divisor(ic, STEPS) as usize } else { 1 };
    }
    let tm = p.length(&width, p.side);
    let input = g.inputs.iter().position(|&v| v == c.kernel);
    let input = input.ok_or_else(|| Error::unsupported("conv", r.loc, "a computed kernel"))?;
    let mut s = Scheduled::default();
    let mut perm = vec![Conv::at(&spec.kernel, ConvRole::N)];
    perm.extend((0..rank).map(|i| Conv::at(&spec.kernel, ConvRole::S(i))));
    perm.push(Conv::at(&spec.kernel, ConvRole::C));
    let pack = Pack { input, perm, columns: 0, width: tn, group: (1, 1) };
    let packed_dims = pack.dims(g.dims(c.kernel));
    let arg = pack.place(r, &mut s)?;
    let leaf = g.inputs.iter().position(|&v| v == c.input);
    let copied = match leaf {
        Some(input) if p.unit && spec.pads.iter().any(|p| p.0 != 0 || p.1 != 0) => {
            let axis = |i: usize| Conv::at(&spec.input, ConvRole::S(i));
            let pads: Vec<_> = spec.pads.iter().enumerate().map(|(i, p)| (axis(i), p)).collect();
            Some(padded(r, &mut s, input, &pads)?)
        }
        _ => None,
    };

    let mut e = Emitter::new(r.name, g);
    e.write_dims();
    e.leaves_of(&g.outputs, &[c.out])?;
    let copy = match copied {
        Some((arg, dims)) => {
            let buffer = e.buffer(arg, g.dtype(c.input), Access::Read);
            Some((buffer, e.view(buffer, &dims)?, dims))
        }
        None => e.leaves_of(&[c.input], &[]).map(|()| None)?,
    };
    let wb = e.buffer(arg, g.dtype(c.kernel), Access::Read);
    let (wv, wstrides) = e.view(wb, &packed_dims)?;
    let outs = (0..g.outputs.len()).map(|i| e.output(i)).collect::<Result<Vec<_>, _>>()?;
    let zero = e.b.int(0);
    let mut outer_dims = vec![c.output_dim(r, ConvRole::N).clone()];
    outer_dims.extend((0..last).map(|i| c.output_dim(r, ConvRole::S(i)).clone()));
    let mut lens = Vec::new();
    for &t in &c.taps {
        lens.push((e.b.int(t), 1));
    }
    lens.push((e.dim(&steps), tk as i64));
    let (pm, panel, po) = (e.b.program_id(0)?, e.b.program_id(1)?, e.b.program_id(2)?);
    let (w0, c0) = (e.b.mul_int(pm, tm as i64)?, e.b.mul_int(panel, tn as i64)?);
    let outer = delinear(&mut e, po, &outer_dims)?;
    let scalar = |c: Coord| match c {
        Coord::Affine { base, .. } => base,
        Coord::Tile { index, .. } => index,
    };
    // The first input position of each window, and the first input channel of the group.
    let mut first = Vec::new();
    for i in 0..rank {
        let at = if i == last { w0 } else { scalar(outer[1 + i]) };
        let at = e.b.mul_int(at, spec.strides[i])?;
        if copy.is_some() {
            first.push(at);
            continue;
        }
        let low = e.dim(&spec.pads[i].0);
        first.push(e.b.sub(at, low)?);
    }
    let mut lead = zero;
    if groups > 1 {
        let panels = e.b.int(channels.as_const().unwrap_or(1) / groups / tn as i64);
        let group = e.b.div(panel, panels)?;
        lead = e.b.mul_int(group, steps.as_const().unwrap_or(1))?;
    }
    let (m_inside, n_inside, k_inside) =
        (multiple(&width, tm), multiple(&channels, tn), multiple(&steps, tk));
    let outside: Vec<bool> = spec.pads.iter().map(|p| copy.is_none() && (p.0 != 0 || p.1 != 0)).collect();
    let start = e.b.full(p.acc, &[tm, tn], zero_of(p.acc))?;
    let in_rank = g.dims(c.input).len();
    let sums = nest(&mut e, &lens, &mut Vec::new(), start, &mut |e, at, sums| {
        let k0 = at[rank];
        let channel = e.b.add(lead, k0)?;
        let mut coords = vec![Coord::at(zero); in_rank];
        for (d, role) in spec.input.iter().enumerate() {
            coords[d] = match *role {
                ConvRole::N => outer[0],
                ConvRole::C => Coord::along(channel, 1, k_inside),
                ConvRole::S(i) => {
                    let step = e.b.mul_int(at[i], spec.dilation[i])?;
                    let base = e.b.add(first[i], step)?;
                    let lane = (i == last).then_some((0, spec.strides[i]));
                    let inside = !outside[i] && (i != last || m_inside);
                    Coord::Affine { base, lane, inside }
                }
            };
        }
        let x = match &copy {
            Some((buffer, (view, strides), dims)) => {
                e.shape = vec![tm, tk];
                let t = e.load_view(*buffer, *view, strides, dims, &coords, zero_of(g.dtype(c.input)))?;
                e.b.cast(t, p.types[0], CAST)?
            }
            None => operand(e, c.input, &coords, [tm, tk], p.types[0])?,
        };
        e.shape = vec![tk, tn];
        let mut wc = vec![Coord::at(panel)];
        wc.extend(at[..rank].iter().map(|&t| Coord::at(t)));
        wc.extend([Coord::along(k0, 0, k_inside), Coord::along(zero, 1, true)]);
        let w = e.load_view(wb, wv, &wstrides, &packed_dims, &wc, zero_of(g.dtype(c.kernel)))?;
        let w = e.b.cast(w, p.types[1], CAST)?;
        p.add(e, sums, x, w)
    })?;
    e.shape = vec![tm, tn];
    epilogue(&mut e, c.out, sums, None, &outs, &mut |_, _| {
        let place = |role: &ConvRole| match *role {
            ConvRole::N => outer[0],
            ConvRole::C => Coord::along(c0, 1, n_inside),
            ConvRole::S(i) if i == last => Coord::along(w0, 0, m_inside),
            ConvRole::S(i) => outer[1 + i],
        };
        Ok(spec.output.iter().map(place).collect())
    })?;
    let panels = channels.ceildiv(&Dim::from(tn as i64));
    s.launches.push(e.launch([width.ceildiv(&Dim::from(tm as i64)), panels, product(&outer_dims)]));
    Ok(s)
}
