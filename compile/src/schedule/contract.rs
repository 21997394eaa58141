//! Contractions: blocked, packed, register-tiled matrix products, with the elementwise operations that follow.
//!
//! The left operand's rows are copied block by block into scratch with a fixed row length; the right operand is read in panels
//! of as many columns as the accumulators hold, packed beforehand unless its columns are next to each other in memory
//! already. Accumulators stay in registers over a block of the summed dim (Goto and van de Geijn, "Anatomy of
//! High-Performance Matrix Multiplication", 2008).

use tongtu_graph::{Graph, Node, Op, ValueId};
use tongtu_tensor::dim::Dim;
use tongtu_tensor::scalar::{Binary, Compare, Unary};
use tongtu_tensor::{DType, Num};
use tongtu_tile::{Access, Factor, TileMap, Val};

use super::epilogue::{epilogue_of, epilogue_rows, epilogue_view, heavy_epilogue, result_coords};
use super::tiles::{Tiles, compute_type, register_tile};
use super::{Pack, Request, Scheduled, Unit, blocks, delinear, multiple, product};
use crate::emit::{CAST, Coord, Emitter, KernelArg, zero_of};
use crate::error::Error;
use crate::fuse::result_dims;

/// Most steps of the summed dim in a block: a panel of them stays in the nearest cache.
const KC: i64 = 256;
/// As many elements of few rows are in a block instead.
const FEW: i64 = 8192;
/// Most bytes of a row of a matrix unit's operand in a block.
const UNIT_BYTES: i64 = 2048;
/// Most rows of the left operand in a block.
const MC: i64 = 192;
/// Bytes that a prefetch brings.
pub const CACHE_LINE: usize = 64;
/// Least vectors of the right operand that one row is multiplied by at once.
const WIDE: usize = 8;
/// Panels whose results are finished together, so that memory is written along its lines.
const STRIP: usize = 4;
/// Most columns of the right operand in a block.
const NC: i64 = 512;
/// The same on a matrix unit where all steps are one block.
const UNIT_NC: i64 = 2048;
/// Most lines that a step on a matrix unit brings nearer.
const AHEAD: usize = 8;

/// One operand's dims by role.
pub struct Side {
    /// The operand.
    pub value: ValueId,
    /// Its batch dims.
    pub batch: Vec<usize>,
    /// Its dims that are in the result.
    pub free: Vec<usize>,
    /// Its dims that are summed over.
    pub over: Vec<usize>,
    /// Position of its first free dim in the result.
    pub first: usize,
}

impl Side {
    /// Operand `k` of a contraction.
    pub fn new(g: &Graph, node: &Node, k: usize, first: usize) -> Side {
        let value = node.inputs[k];
        let pick = |p: &(usize, usize)| if k == 0 { p.0 } else { p.1 };
        let (batch, over): (Vec<usize>, Vec<usize>) = match &node.op {
            Op::Contract { batch, over, .. } => {
                (batch.iter().map(pick).collect(), over.iter().map(pick).collect())
            }
            _ => Default::default(),
        };
        let free = (0..g.dims(value).len()).filter(|d| !batch.contains(d) && !over.contains(d)).collect();
        Side { value, batch, free, over, first }
    }

    /// The dim that register tiles step along.
    pub fn free_last(&self) -> Option<usize> {
        self.free.last().copied()
    }

    /// Whether the operand is a constant.
    fn is_constant(&self, r: &Request<'_>) -> bool {
        let input = r.graph.inputs.iter().position(|&v| v == self.value);
        input.is_some_and(|p| matches!(r.constants.get(p), Some(Some(_))))
    }

    /// Whether it can be laid out for a matrix unit, as the right operand: a constant, or one whose pairs of steps lie next to each other
    /// in memory or in neighbouring rows.
    pub fn for_unit(&self, r: &Request<'_>) -> bool {
        let (dims, last) = (r.graph.dims(self.value), r.graph.dims(self.value).len().wrapping_sub(1));
        let leaf = r.graph.inputs.contains(&self.value);
        let &[over] = &self.over[..] else { return false };
        let pairs = match over == last {
            true => multiple(&dims[over], CACHE_LINE / 2),
            false => self.free_last() == Some(last),
        };
        self.is_constant(r) || leaf && pairs && byte_size(r.graph.dtype(self.value)) == 2
    }

    /// As the right operand: its panels of `width` columns, with the summed dims in the given order, and their dims. Nothing where its
    /// columns are next to each other in memory already.
    pub fn place(
        &self,
        r: &Request<'_>,
        s: &mut Scheduled,
        over: &[usize],
        width: usize,
        group: (usize, usize),
    ) -> Result<Option<(KernelArg, Vec<Dim>)>, Error> {
        let dims = r.graph.dims(self.value);
        let input = r.graph.inputs.iter().position(|&v| v == self.value);
        let columns_last = self.free_last().is_some_and(|d| d + 1 == dims.len());
        let (Some(last), Some(input)) = (self.free_last(), input) else { return Ok(None) };
        if columns_last && !self.is_constant(r) && group.0 == 1 {
            return Ok(None);
        }
        let mut perm: Vec<usize> = self.batch.clone();
        perm.extend(&self.free[..self.free.len() - 1]);
        let columns = perm.len();
        perm.push(last);
        perm.extend(over);
        let pack = Pack { input, perm, columns, width, group };
        let dims = pack.dims(dims);
        Ok(Some((pack.place(r, s)?, dims)))
    }

    /// As the right operand, in panels where it was [placed](Side::place); its memory is declared either way.
    pub fn panels(
        &self,
        r: &Request<'_>,
        e: &mut Emitter<'_>,
        placed: Option<(KernelArg, Vec<Dim>)>,
    ) -> Result<Option<Panels>, Error> {
        let Some((arg, dims)) = placed else {
            return e.leaves_of(&[self.value], &[]).map(|_| None);
        };
        let buffer = e.buffer(arg, r.graph.dtype(self.value), Access::Read);
        Ok(Some((buffer, e.view(buffer, &dims)?, dims)))
    }
}

/// An operand in panels: buffer, view with its strides, dims.
pub type Panels = (Val, (Val, Vec<Val>), Vec<Dim>);

/// How a contraction is computed: its operands by role, the register tile, the blocks.
struct Plan<'a> {
    r: &'a Request<'a>,
    node: usize,
    out: ValueId,
    /// The operand whose free dim gives the rows.
    a: Side,
    /// The operand whose free dim lies along vectors.
    b: Side,
    columns: Dim,
    /// Extent of the summed dim that is walked innermost: the one along which the rows lie in memory, else the last.
    steps: Dim,
    /// Its position among the summed dims, and the other positions.
    inner: usize,
    outer: Vec<usize>,
    /// Whether rows of the left operand lie along the summed dim, and are copied so.
    by_rows: bool,
    /// The type of products and sums, and of the left operand in scratch.
    ct: DType,
    scratch: DType,
    lanes: usize,
    unit: Option<Unit>,
    /// Steps of one multiplication, whether of the matrix unit or of vectors.
    depth: usize,
    /// Whether the steps of a block are always a multiple of these.
    whole: bool,
    /// Steps side by side in the right operand.
    side: usize,
    tiles: Tiles,
    /// Most rows of a register tile.
    height: usize,
    /// Columns of a register tile, and how many tiles lie side by side.
    width: usize,
    panels: Dim,
    /// Panels of an instance.
    panel_block: Dim,
    /// Most steps of a block.
    most: i64,
    /// Whether all steps are one block.
    single: bool,
}

impl<'a> Plan<'a> {
    fn new(r: &'a Request<'a>, n: usize) -> Result<Plan<'a>, Error> {
        let g = r.graph;
        let node = &g.nodes[n];
        let Op::Contract { batch, over, acc } = &node.op else {
            return Err(Error::unsupported("contract", r.loc, "the anchor is another operation"));
        };
        let lhs = Side::new(g, node, 0, batch.len());
        let rhs = Side::new(g, node, 1, batch.len() + lhs.free.len());
        let extent = |s: &Side| s.free_last().map_or(Dim::from(1), |d| g.dims(s.value)[d].clone());
        let ct = compute_type(*acc);
        let lanes = r.machine.lanes(ct);
        // Columns go along vectors: the operand with few columns gives the rows.
        let narrow = |d: &Dim| d.as_const().is_some_and(|c| c < lanes as i64 / 2);
        let swap = narrow(&extent(&rhs)) && !narrow(&extent(&lhs));
        let (a, b) = if swap { (rhs, lhs) } else { (lhs, rhs) };
        let (rows, columns) = (extent(&a), extent(&b));

        let last = g.dims(a.value).len().saturating_sub(1);
        let inner = a.over.iter().position(|&d| d == last).unwrap_or(over.len().saturating_sub(1));
        let outer: Vec<usize> = (0..over.len()).filter(|&i| i != inner).collect();
        let steps = a.over.get(inner).map_or(Dim::from(1), |&d| g.dims(a.value)[d].clone());
        let by_rows = a.free_last() != Some(last);

        let picked = if by_rows { r.machine.steps(ct) } else { 1 };
        let (mut height, vectors) =
            register_tile(r, ct, columns.as_const(), picked, |most| match rows.as_const() {
                Some(m) if m > 0 => m as f64 / (m as u64).div_ceil(most as u64) as f64,
                _ => most as f64,
            });
        let (a_type, b_type) = (g.dtype(a.value), g.dtype(b.value));
        let bytes = byte_size(b_type);
        // Two by two squares of a matrix unit, operands as they are.
        let wide = columns.as_const().is_none_or(|c| c > lanes as i64);
        let unit = r
            .machine
            .unit(a_type, b_type, *acc)
            .filter(|_| by_rows && outer.is_empty() && !over.is_empty() && wide && b.for_unit(r));
        let mut width = lanes * vectors;
        if let Some(u) = &unit {
            (height, width) = (2 * u.shape[0], 2 * u.shape[1]);
        }
        // Few panels are a block, and rows are cut for the cores instead.
        let panels = columns.ceildiv(&Dim::from(width as i64));
        // Few rows read the right operand once: in long runs.
        let most = match rows.as_const() {
            _ if unit.is_some() => UNIT_BYTES / bytes as i64,
            Some(m) if m <= height as i64 => (FEW / m.max(1)).max(KC),
            _ => KC,
        };
        let single = outer.is_empty() && steps.as_const().is_some_and(|c| c <= most);
        // Without sums between blocks the left operand's rows are copied for more columns.
        let columns_most = if unit.is_some() && single { UNIT_NC } else { NC };
        let most_panels = (columns_most / width as i64).max(1);
        let least = match panels.as_const() {
            _ if unit.is_some() => 1,
            Some(p) if p > most_panels => 1,
            _ => 2,
        };
        // A matrix unit's squares have one size in a kernel.
        let tiles = match &unit {
            Some(_) => Tiles::padded(&rows, height, MC / height as i64, least),
            None => Tiles::new(&rows, height, MC / height as i64, least),
        };
        let one = Dim::from(1);
        // Work for two cores at least: from blocks of rows, or else of columns, which read the right operand once.
        let block = if unit.is_some() { MC } else { height as i64 };
        let tall = rows.ceildiv(&Dim::from(block)).max(&one).min(&Dim::from(2));
        let blocks = panels.ceildiv(&Dim::from(most_panels)).max(&(Dim::from(3) - tall));
        let panel_block = panels.ceildiv(&blocks).max(&one);
        let depth = unit.map_or(picked, |u| u.shape[2]);
        let whole = unit.is_some() || multiple(&steps, depth);
        Ok(Plan {
            r,
            node: n,
            out: node.outputs[0],
            a,
            b,
            columns,
            steps,
            inner,
            outer,
            by_rows,
            ct,
            scratch: if unit.is_some() { a_type } else { ct },
            lanes,
            depth,
            whole,
            side: unit.map_or(1, |_| 4 / bytes),
            unit,
            tiles,
            height,
            width,
            panels,
            panel_block,
            most,
            single,
        })
    }

    /// Extents of the summed dims that are walked outside the inner one.
    fn outer_dims(&self) -> Vec<Dim> {
        let dims = self.r.graph.dims(self.a.value);
        self.outer.iter().map(|&i| dims[self.a.over[i]].clone()).collect()
    }

    /// The right operand's summed dims in the order in which they are walked.
    fn walk(&self) -> Vec<usize> {
        let inner = self.b.over.get(self.inner).copied();
        self.outer.iter().map(|&i| self.b.over[i]).chain(inner).collect()
    }

    /// Panels that one row is multiplied by at once.
    fn side_by_side(&self) -> usize {
        (WIDE * self.lanes).div_ceil(self.width)
    }

    /// Most rows of a block.
    fn block_rows(&self) -> usize {
        self.tiles.block_rows(MC / self.height as i64)
    }
}

/// Bytes of an element, at least 1.
fn byte_size(d: DType) -> usize {
    (d.bits() as usize / 8).max(1)
}

/// Some steps of the summed dims.
struct Steps<'s> {
    /// Places along the outer summed dims.
    outer: &'s [Coord],
    /// The first step along the inner one.
    first: Val,
    /// How many there are.
    count: Val,
    /// Whether nothing was summed before, and whether nothing will be after; where there is one block only, nothing.
    ends: Option<(Val, Val)>,
}

/// The kernel being written: what is known throughout an instance.
struct Body<'p, 'a> {
    p: &'p Plan<'a>,
    /// Rows of the left operand: memory, and as rows.
    a_scratch: Val,
    a_view: Val,
    /// Sums between blocks.
    sums: Option<Val>,
    panels: Option<Panels>,
    outs: Vec<Val>,
    /// Scratch for what follows row by row.
    finish: Option<Val>,
    /// Scratch for a matrix unit's sums of a register tile's rows in all panels.
    strip: Option<Val>,
    /// Scratch for several panels of one row.
    wide: Option<Val>,
    zero: Val,
    one: Val,
    /// First row and the one after the last.
    rows: (Val, Val),
    /// First panel and the one after the last.
    columns: (Val, Val),
    /// Coordinates of the result but for row and column, and the dims that these are.
    base: Vec<Coord>,
    row_dim: Option<usize>,
    column_dim: Option<usize>,
    /// For each dim of the group's results the dim of the contraction's.
    results: Vec<Option<usize>>,
}

/// The schedule of a contraction and what follows it.
pub fn schedule(r: &Request<'_>, n: usize) -> Result<Scheduled, Error> {
    let p = Plan::new(r, n)?;
    let g = r.graph;
    let mut s = Scheduled::default();
    let group = if p.unit.is_some() { (p.side, p.depth) } else { (1, 1) };
    let packed = p.b.place(r, &mut s, &p.walk(), p.width, group)?;
    let mut e = Emitter::new(r.name, g);
    e.leaves_of(&g.outputs, &[p.out])?;
    e.leaves_of(&[p.a.value], &[])?;
    let panels = p.b.panels(r, &mut e, packed)?;
    let outs = (0..g.outputs.len()).map(|i| e.output(i)).collect::<Result<Vec<_>, _>>()?;

    let dims = g.dims(p.out).to_vec();
    let place = |s: &Side| s.free_last().map(|_| s.first + s.free.len() - 1);
    let (row_dim, column_dim) = (place(&p.a), place(&p.b));
    let others: Vec<usize> =
        (0..dims.len()).filter(|&i| Some(i) != row_dim && Some(i) != column_dim).collect();
    let other_dims: Vec<Dim> = others.iter().map(|&i| dims[i].clone()).collect();

    let body = Body::new(&p, &mut e, panels, outs, (row_dim, column_dim), (&others, &other_dims))?;
    body.write(&mut e)?;
    let grid = [p.tiles.blocks.clone(), p.panels.ceildiv(&p.panel_block), product(&other_dims)];
    s.launches.push(e.launch(grid));
    Ok(s)
}

impl<'p, 'a> Body<'p, 'a> {
    /// Scratch, and what the instance's numbers mean.
    fn new(
        p: &'p Plan<'a>,
        e: &mut Emitter<'_>,
        panels: Option<Panels>,
        outs: Vec<Val>,
        (row_dim, column_dim): (Option<usize>, Option<usize>),
        (others, other_dims): (&[usize], &[Dim]),
    ) -> Result<Self, Error> {
        let g = p.r.graph;
        let (zero, one) = (e.b.int(0), e.b.int(1));
        let rows = p.block_rows();
        let row_len =
            (p.most as usize).next_multiple_of(4 * p.lanes) + CACHE_LINE * 8 / p.scratch.bits() as usize;
        let a_scratch = e.b.alloc(p.scratch, rows * if p.by_rows { row_len } else { p.most as usize })?;
        let a_view = {
            let (rows, cols) = (e.b.int(rows as i64), e.b.int(row_len as i64));
            e.b.view(a_scratch, zero, &[rows, cols], &[cols, one])?
        };
        let sums = match p.single {
            true => None,
            false => Some(epilogue_view(e, p.ct, rows * (NC as usize / p.width).max(1), p.width)?),
        };
        let pid = e.b.program_id(0)?;
        let span = p.tiles.block(e, pid)?;
        let (panels_v, block_v) = (e.dim_param(&p.panels), e.dim_param(&p.panel_block));
        let pid = e.b.program_id(1)?;
        let first = e.b.mul(pid, block_v)?;
        let end = e.b.add(first, block_v)?;
        let columns = (first, e.b.min(end, panels_v)?);
        let pid = e.b.program_id(2)?;
        let mut base = vec![Coord::at(zero); g.dims(p.out).len()];
        for (&i, c) in others.iter().zip(delinear(e, pid, other_dims)?) {
            base[i] = c;
        }
        let strip = match p.unit.is_some() && p.single {
            // Rows that are a multiple of half a page apart would share few sets of the nearest cache.
            true => Some(epilogue_view(e, p.ct, p.tiles.sizes[0], STRIP * p.width + CACHE_LINE / 4)?),
            false => None,
        };
        let by_line = strip.is_none() && (heavy_epilogue(g) || p.unit.is_some());
        let finish = if by_line { Some(epilogue_view(e, p.ct, p.tiles.sizes[0], p.width)?) } else { None };
        // A single row streams several panels at once.
        let wide = match (&panels, &p.unit) {
            (Some(_), None) if p.tiles.sizes.contains(&1) => {
                Some(epilogue_view(e, p.ct, p.side_by_side(), p.width)?)
            }
            _ => None,
        };
        let results = result_dims(g, p.node)
            .ok_or_else(|| Error::unsupported("contract", p.r.loc, "the results have other dims"))?;
        Ok(Body {
            p,
            a_scratch,
            a_view,
            sums,
            panels,
            outs,
            finish,
            strip,
            wide,
            zero,
            one,
            rows: span,
            columns,
            base,
            row_dim,
            column_dim,
            results,
        })
    }

    /// All blocks of the summed dims.
    fn write(&self, e: &mut Emitter<'_>) -> Result<(), Error> {
        let (p, zero) = (self.p, self.zero);
        let steps_v = e.dim_param(&p.steps);
        if p.single {
            return self.block(e, &Steps { outer: &[], first: zero, count: steps_v, ends: None });
        }
        let (one, outer_dims) = (Dim::from(1), p.outer_dims());
        let depth = p.depth as i64;
        let blocks = p.steps.ceildiv(&Dim::from(p.most)).max(&one);
        let each = p.steps.ceildiv(&(&blocks * depth)) * &Dim::from(depth);
        let blocks = p.steps.ceildiv(&each.max(&one)).max(&one);
        let total = product(&outer_dims).max(&one) * &blocks;
        let (total_v, each_v) = (e.dim_param(&total), e.dim_param(&each));
        let mut dims = outer_dims.clone();
        dims.push(blocks);
        e.for_loop(zero, total_v, 1, &[], |e, t, _| {
            let mut outer = delinear(e, t, &dims)?;
            let first = match outer.pop() {
                Some(Coord::Affine { base, .. }) => e.b.mul(base, each_v)?,
                _ => zero,
            };
            let rest = e.b.sub(steps_v, first)?;
            let mut count = e.b.min(each_v, rest)?;
            if !outer_dims.is_empty() {
                // With an outer summed dim of length 0 nothing is summed.
                let any = e.dim_param(&product(&outer_dims).min(&one));
                count = e.b.mul(count, any)?;
            }
            let begins = e.b.compare(Compare::Eq, t, zero)?;
            let end = e.b.sub(total_v, self.one)?;
            let ends = e.b.compare(Compare::Eq, t, end)?;
            self.block(e, &Steps { outer: &outer, first, count, ends: Some((begins, ends)) })?;
            Ok(vec![])
        })?;
        Ok(())
    }

    /// One block of the summed dim: the left operand's rows to scratch, then every panel with every register tile of rows.
    fn block(&self, e: &mut Emitter<'_>, steps: &Steps<'_>) -> Result<(), Error> {
        let (p, (lo, hi), (first, end)) = (self.p, self.rows, self.columns);
        self.copy_left(e, steps)?;
        let alone = if self.wide.is_some() { p.tiles.alone(e, lo, hi)? } else { hi };
        if let Some(strip) = self.strip {
            e.for_loop(first, end, STRIP as i64, &[], |e, first, _| {
                let (left, most) = (e.b.sub(end, first)?, e.b.int(STRIP as i64));
                let count = e.b.min(left, most)?;
                p.tiles.cover(e, lo, hi, &mut |e, row, size| {
                    let left = e.b.sub(hi, row)?;
                    let rows = e.b.int(size as i64);
                    let rows = e.b.min(rows, left)?;
                    self.strip(e, steps, strip, (row, size), (first, count))?;
                    let mut place = |e: &mut Emitter<'_>, line: Val, panel: Val| {
                        let line = e.b.add(row, line)?;
                        let panel = e.b.add(first, panel)?;
                        self.place(e, panel, Coord::at(line))
                    };
                    epilogue_rows(e, p.out, strip, (rows, count, p.width), &self.outs, &mut place)
                })?;
                Ok(vec![])
            })?;
            return Ok(());
        }
        e.for_loop(first, end, 1, &[], |e, panel, _| {
            p.tiles.cover(e, lo, alone, &mut |e, row, size| match size {
                1 if self.wide.is_some() => Ok(()),
                _ => self.tile(e, steps, (row, size), (panel, 1)),
            })?;
            Ok(vec![])
        })?;
        if self.wide.is_none() {
            return Ok(());
        }
        e.for_loop(alone, hi, 1, &[], |e, row, _| {
            let span = e.b.sub(end, first)?;
            let count = self.p.side_by_side();
            let wide = e.b.int(count as i64);
            let rest = e.b.binary(Binary::Rem, span, wide)?;
            let whole = e.b.sub(end, rest)?;
            for (lo, hi, count) in [(first, whole, count), (whole, end, 1)] {
                e.for_loop(lo, hi, count as i64, &[], |e, panel, _| {
                    self.tile(e, steps, (row, 1), (panel, count))?;
                    Ok(vec![])
                })?;
            }
            Ok(vec![])
        })?;
        Ok(())
    }

    /// A matrix unit's sums of a register tile's rows in some panels, to scratch.
    fn strip(
        &self,
        e: &mut Emitter<'_>,
        steps: &Steps<'_>,
        strip: Val,
        (row, size): (Val, usize),
        (first, count): (Val, Val),
    ) -> Result<(), Error> {
        let p = self.p;
        e.for_loop(self.zero, count, 1, &[], |e, panel, _| {
            e.shape = vec![size, p.width];
            let at = e.b.mul_int(panel, p.width as i64)?;
            let panel = e.b.add(first, panel)?;
            let init = e.b.full(p.ct, &[size, p.width], zero_of(p.ct))?;
            let sums = self.multiply_unit(e, steps, (row, size), panel, &[init])?;
            let map = TileMap::along(&[size, p.width], &[0, 1]);
            e.b.store(strip, sums[0], &[self.zero, at], map, &[true, true])?;
            Ok(vec![])
        })?;
        Ok(())
    }

    /// The left operand's part of a block to scratch: row by row, or for each register tile step by step.
    fn copy_left(&self, e: &mut Emitter<'_>, steps: &Steps<'_>) -> Result<(), Error> {
        let p = self.p;
        if p.by_rows {
            let at = |row: Coord, k: Coord| self.operand(&p.a, row, steps.outer, k);
            let range = (steps.first, steps.count);
            let steps = p.steps.as_const().filter(|_| p.single);
            return copy_rows(e, p.a.value, self.a_view, p.scratch, p.lanes, self.rows, range, steps, &at);
        }
        let shape = std::mem::take(&mut e.shape);
        p.tiles.cover(e, self.rows.0, self.rows.1, &mut |e, row, size| {
            let view = self.left_tile(e, row, size)?;
            e.for_loop(self.zero, steps.count, 1, &[], |e, i, _| {
                e.shape = vec![size];
                let k = e.b.add(steps.first, i)?;
                let c = self.operand(&p.a, Coord::along(row, 0, true), steps.outer, Coord::at(k));
                let t = e.emit(p.a.value, &c)?;
                let t = e.b.cast(t, p.ct, CAST)?;
                e.store_view(view, t, &[Coord::at(i), Coord::along(self.zero, 0, true)])?;
                Ok(vec![])
            })?;
            Ok(())
        })?;
        e.shape = shape;
        Ok(())
    }

    /// Where a tile's rows are when they lie side by side.
    fn left_tile(&self, e: &mut Emitter<'_>, row: Val, size: usize) -> Result<Val, Error> {
        let down = e.b.sub(row, self.rows.0)?;
        let at = e.b.mul_int(down, self.p.most)?;
        let (rows, cols) = (e.b.int(self.p.most), e.b.int(size as i64));
        Ok(e.b.view(self.a_scratch, at, &[rows, cols], &[cols, self.one])?)
    }

    /// Coordinates of an operand's dims.
    fn operand(&self, side: &Side, free: Coord, outer: &[Coord], k: Coord) -> Vec<Coord> {
        let p = self.p;
        (0..p.r.graph.dims(side.value).len())
            .map(|d| {
                if let Some(i) = side.batch.iter().position(|&x| x == d) {
                    self.base[i]
                } else if let Some(i) = side.over.iter().position(|&x| x == d) {
                    p.outer.iter().position(|&o| o == i).map_or(k, |at| outer[at])
                } else if Some(d) == side.free_last() {
                    free
                } else {
                    let i = side.free.iter().position(|&x| x == d).unwrap_or(0);
                    self.base[side.first + i]
                }
            })
            .collect()
    }

    /// Coordinates of the right operand's leading dims in panels.
    fn lead(&self) -> impl Iterator<Item = Coord> {
        let b = &self.p.b;
        let batch = (0..b.batch.len()).map(|i| self.base[i]);
        batch.chain((0..b.free.len().saturating_sub(1)).map(|i| self.base[b.first + i]))
    }

    /// A register tile of rows times neighbouring panels.
    fn tile(
        &self,
        e: &mut Emitter<'_>,
        steps: &Steps<'_>,
        (row, size): (Val, usize),
        (panel, count): (Val, usize),
    ) -> Result<(), Error> {
        let p = self.p;
        e.shape = vec![size, p.width];
        let init = self.start(e, steps, (row, size), (panel, count))?;
        let sums = match &p.unit {
            Some(_) => self.multiply_unit(e, steps, (row, size), panel, &init)?,
            None => self.multiply(e, steps, (row, size), panel, &init)?,
        };
        let (Some(wide), true) = (self.wide, count > 1) else {
            return self.settle(e, steps, (row, size), panel, sums[0]);
        };
        let map = || TileMap::along(&[size, p.width], &[0, 1]);
        for (j, &sum) in sums.iter().enumerate() {
            let j = e.b.int(j as i64);
            e.b.store(wide, sum, &[j, self.zero], map(), &[true, true])?;
        }
        let count = e.b.int(count as i64);
        e.for_loop(self.zero, count, 1, &[], |e, j, _| {
            let acc = e.b.load(wide, &[j, self.zero], map(), &[true, true], zero_of(p.ct))?;
            let panel = e.b.add(panel, j)?;
            self.settle(e, steps, (row, size), panel, acc)?;
            Ok(vec![])
        })?;
        Ok(())
    }

    /// The row of the sums between blocks where a register tile's begin.
    fn sums_row(&self, e: &mut Emitter<'_>, row: Val, panel: Val) -> Result<Val, Error> {
        let (down, along) = (e.b.sub(row, self.rows.0)?, e.b.sub(panel, self.columns.0)?);
        let at = e.b.mul_int(along, self.p.block_rows() as i64)?;
        Ok(e.b.add(at, down)?)
    }

    /// The accumulators that a block begins with.
    fn start(
        &self,
        e: &mut Emitter<'_>,
        steps: &Steps<'_>,
        (row, size): (Val, usize),
        (panel, count): (Val, usize),
    ) -> Result<Vec<Val>, Error> {
        let (ct, shape) = (self.p.ct, [size, self.p.width]);
        let zeros = |e: &mut Emitter<'_>| -> Result<Vec<Val>, Error> {
            Ok(vec![e.b.full(ct, &shape, zero_of(ct))?; count])
        };
        let (Some(view), Some((begins, _))) = (self.sums, steps.ends) else { return zeros(e) };
        e.if_else(begins, zeros, |e| {
            let mut sums = Vec::new();
            for j in 0..count {
                let panel = e.b.add_int(panel, j as i64)?;
                let at = [self.sums_row(e, row, panel)?, self.zero];
                sums.push(e.b.load(
                    view,
                    &at,
                    TileMap::along(&shape, &[0, 1]),
                    &[true, true],
                    zero_of(ct),
                )?);
            }
            Ok(sums)
        })
    }

    /// The products of a block on the matrix unit, from where the panel begins, groups of steps in rows.
    fn multiply_unit(
        &self,
        e: &mut Emitter<'_>,
        steps: &Steps<'_>,
        (row, size): (Val, usize),
        panel: Val,
        init: &[Val],
    ) -> Result<Vec<Val>, Error> {
        let p = self.p;
        let Some(panels) = &self.panels else {
            return Err(Error::unsupported("contract", p.r.loc, "the right operand is not packed"));
        };
        let view = unit_panel(e, panels, self.lead().chain([Coord::at(panel)]))?;
        let side = e.b.int(p.side as i64);
        let down = e.b.sub(row, self.rows.0)?;
        let b_type = p.r.graph.dtype(p.b.value);
        let next = self.share(e, steps, (row, size), panel)?;
        e.for_loop(self.zero, steps.count, p.depth as i64, init, |e, i, sums| {
            if let Some((packed, begin, each)) = next {
                let far = e.b.mul(i, each)?;
                let at = e.b.add(begin, far)?;
                for line in 0..AHEAD {
                    let at = e.b.add_int(at, (line * CACHE_LINE / byte_size(b_type)) as i64)?;
                    e.b.prefetch(packed, &[at])?;
                }
            }
            let k = e.b.add(steps.first, i)?;
            let group = e.b.div(k, side)?;
            let shape = [size, p.width, p.depth, p.side];
            let types = [p.scratch, b_type];
            Ok(vec![unit_product(e, shape, types, (self.a_view, [down, i]), (view, group), sums[0])?])
        })
    }

    /// The products of a block, step by step.
    fn multiply(
        &self,
        e: &mut Emitter<'_>,
        steps: &Steps<'_>,
        (row, size): (Val, usize),
        panel: Val,
        init: &[Val],
    ) -> Result<Vec<Val>, Error> {
        let p = self.p;
        let down = e.b.sub(row, self.rows.0)?;
        let view = if p.by_rows { self.a_view } else { self.left_tile(e, row, size)? };
        let next = self.share(e, steps, (row, size), panel)?;
        let turns = |e: &mut Emitter<'_>, (lo, hi): (Val, Val), depth: usize, init: &[Val]| {
            e.for_loop(lo, hi, depth as i64, init, |e, i, sums| {
                let k = e.b.add(steps.first, i)?;
                let (map, index) = match p.by_rows {
                    true => (TileMap::along(&[size, depth], &[0, 1]), [down, i]),
                    false => (TileMap::along(&[size, depth], &[1, 0]), [i, self.zero]),
                };
                let mut out = Vec::new();
                for (j, &sum) in sums.iter().enumerate() {
                    let panel = e.b.add_int(panel, j as i64)?;
                    for step in 0..depth {
                        if let Some((packed, begin, each)) = next {
                            let i = e.b.add_int(i, step as i64)?;
                            let far = e.b.mul(i, each)?;
                            let at = e.b.add(begin, far)?;
                            e.b.prefetch(packed, &[at])?;
                        }
                    }
                    let right = self.right(e, steps, panel, (k, depth))?;
                    let right = e.b.cast(right, p.ct, CAST)?;
                    let left = e.b.load(view, &index, map.clone(), &[true, true], zero_of(p.ct))?;
                    out.push(e.b.mma(sum, left, right)?);
                }
                Ok(out)
            })
        };
        if p.whole {
            return turns(e, (self.zero, steps.count), p.depth, init);
        }
        let depth = e.b.int(p.depth as i64);
        let rest = e.b.binary(Binary::Rem, steps.count, depth)?;
        let end = e.b.sub(steps.count, rest)?;
        let sums = turns(e, (self.zero, end), p.depth, init)?;
        turns(e, (end, steps.count), 1, &sums)
    }

    /// Coordinates of a row of a panel, but for the column.
    fn panel_row(&self, steps: &Steps<'_>, panel: Val, k: Coord) -> Vec<Coord> {
        let summed = steps.outer.iter().copied().chain((!self.p.b.over.is_empty()).then_some(k));
        self.lead().chain([Coord::at(panel)]).chain(summed).collect()
    }

    /// What a register tile of rows brings nearer of the panel after this one, in this block of the summed dim or the next: the packed
    /// operand as one dim, where the tile's share begins, and its elements for each step. Every tile brings as much, so that memory
    /// is read all the time, and not only while the first is multiplied.
    fn share(
        &self,
        e: &mut Emitter<'_>,
        steps: &Steps<'_>,
        (row, size): (Val, usize),
        panel: Val,
    ) -> Result<Option<(Val, Val, Val)>, Error> {
        let (Some((buffer, (_, strides), dims)), true) = (&self.panels, size > 1 && self.p.tiles.several())
        else {
            return Ok(None);
        };
        // Every register tile passes all panels of a strip before the next.
        let ahead = if self.strip.is_some() { STRIP as i64 } else { 1 };
        let after = e.b.add_int(panel, ahead)?;
        let more = e.b.compare(Compare::Lt, after, self.columns.1)?;
        let next_k = e.b.add(steps.first, steps.count)?;
        let (panel, first) =
            (e.b.select(more, after, self.columns.0)?, e.b.select(more, steps.first, next_k)?);
        let side = e.b.int(self.p.side as i64);
        let first = e.b.div(first, side)?;
        let (down, rows) = (e.b.sub(row, self.rows.0)?, e.b.sub(self.rows.1, self.rows.0)?);
        let line = e.b.mul_int(steps.count, self.p.width as i64)?;
        let done = e.b.mul(down, line)?;
        let mut begin = e.b.div(done, rows)?;
        for (c, stride) in self.panel_row(steps, panel, Coord::at(first)).into_iter().zip(strides) {
            let Coord::Affine { base, .. } = c else { return Ok(None) };
            let far = e.b.mul(base, *stride)?;
            begin = e.b.add(begin, far)?;
        }
        let each = e.b.int((self.p.width * size) as i64);
        let each = e.b.add(each, rows)?;
        let each = e.b.add_int(each, -1)?;
        let each = e.b.div(each, rows)?;
        let (packed, _) = e.view(*buffer, &[product(dims)])?;
        Ok(Some((packed, begin, each)))
    }

    /// Rows of the right operand: the columns of a panel at some steps from one on.
    fn right(
        &self,
        e: &mut Emitter<'_>,
        steps: &Steps<'_>,
        panel: Val,
        (k, depth): (Val, usize),
    ) -> Result<Val, Error> {
        let p = self.p;
        let k = if depth == 1 { Coord::at(k) } else { Coord::along(k, 0, true) };
        let shape = std::mem::replace(&mut e.shape, vec![depth, p.width]);
        let tile = if let Some((buffer, (view, strides), dims)) = &self.panels {
            let mut c = self.panel_row(steps, panel, k);
            c.push(Coord::along(self.zero, 1, true));
            e.load_view(*buffer, *view, strides, dims, &c, zero_of(p.r.graph.dtype(p.b.value)))?
        } else {
            let first = e.b.mul_int(panel, p.width as i64)?;
            let columns = Coord::along(first, 1, multiple(&p.columns, p.width));
            let t = e.emit(p.b.value, &self.operand(&p.b, columns, steps.outer, k))?;
            e.b.broadcast(t, &[depth, p.width])?
        };
        e.shape = shape;
        Ok(tile)
    }

    /// A register tile's sums at the end of a block: to scratch, or after the last block what follows.
    fn settle(
        &self,
        e: &mut Emitter<'_>,
        steps: &Steps<'_>,
        (row, size): (Val, usize),
        panel: Val,
        acc: Val,
    ) -> Result<(), Error> {
        let (Some(view), Some((_, ends))) = (self.sums, steps.ends) else {
            return self.store(e, row, panel, acc);
        };
        let at = [self.sums_row(e, row, panel)?, self.zero];
        e.if_else(
            ends,
            |e| self.store(e, row, panel, acc).map(|()| vec![]),
            |e| {
                let map = TileMap::along(&[size, self.p.width], &[0, 1]);
                e.b.store(view, acc, &at, map, &[true, true])?;
                Ok(vec![])
            },
        )?;
        Ok(())
    }

    /// What follows the contraction, on a register tile of results.
    fn store(&self, e: &mut Emitter<'_>, row: Val, panel: Val, acc: Val) -> Result<(), Error> {
        let p = self.p;
        let rows = if p.tiles.padded { Some(e.b.sub(self.rows.1, row)?) } else { None };
        epilogue_of(e, p.out, acc, self.finish, rows, &self.outs, &mut |e, line| {
            let row = match line {
                None => Coord::along(row, 0, true),
                Some(line) => Coord::at(e.b.add(row, line)?),
            };
            self.place(e, panel, row)
        })
    }

    /// Coordinates of the results from those of rows and a panel.
    fn place(&self, e: &mut Emitter<'_>, panel: Val, row: Coord) -> Result<Vec<Coord>, Error> {
        let p = self.p;
        let first = e.b.mul_int(panel, p.width as i64)?;
        let mut c = self.base.clone();
        if let Some(i) = self.row_dim {
            c[i] = row;
        }
        if let Some(i) = self.column_dim {
            c[i] = Coord::along(first, 1, multiple(&p.columns, p.width));
        }
        Ok(result_coords(e, &self.results, &c))
    }
}

/// A view of one panel of a right operand laid out for a matrix unit: groups of steps, columns, steps side by side. `lead` gives
/// the coordinates of the panel.
pub fn unit_panel(
    e: &mut Emitter<'_>,
    (buffer, (_, strides), dims): &Panels,
    lead: impl Iterator<Item = Coord>,
) -> Result<Val, Error> {
    let (mut base, one) = (e.b.int(0), e.b.int(1));
    for (c, stride) in lead.zip(strides) {
        if let Coord::Affine { base: at, .. } = c {
            let far = e.b.mul(at, *stride)?;
            base = e.b.add(base, far)?;
        }
    }
    let [.., rows, width, side] = &dims[..] else { return Ok(*buffer) };
    let rows = e.dim_param(rows);
    let [width, side] = [width, side].map(|d| d.as_const().unwrap_or(1));
    let (columns, line, side) = (e.b.int(width), e.b.int(width * side), e.b.int(side));
    Ok(e.b.view(*buffer, base, &[rows, columns, side], &[line, side, one])?)
}

/// One product on a matrix unit: rows of a view from a place on times a group of a panel's steps.
pub fn unit_product(
    e: &mut Emitter<'_>,
    [height, width, depth, side]: [usize; 4],
    types: [DType; 2],
    (left, at): (Val, [Val; 2]),
    (right, group): (Val, Val),
    sum: Val,
) -> Result<Val, Error> {
    let zero = e.b.int(0);
    let map = TileMap::along(&[height, depth], &[0, 1]);
    let left = e.b.load(left, &at, map, &[true, true], zero_of(types[0]))?;
    let factor = |size: usize, dim: usize| Factor { size, dim: Some(dim), step: 1 };
    let map = TileMap(vec![vec![factor(depth / side, 0), factor(side, 2)], vec![factor(width, 1)]]);
    let right = e.b.load(right, &[group, zero, zero], map, &[true; 3], zero_of(types[1]))?;
    Ok(e.b.mma(sum, left, right)?)
}

/// Zero for subnormal numbers of `f32`, which many machines multiply slowly.
pub fn flush(e: &mut Emitter<'_>, t: Val) -> Result<Val, Error> {
    if e.b.dtype(t) != DType::F32 {
        return Ok(t);
    }
    let shape = e.b.shape(t);
    let size = e.b.unary(Unary::Abs, t)?;
    let least = e.b.full(DType::F32, &shape, Num::Float(f32::MIN_POSITIVE.into()))?;
    let zero = e.b.full(DType::F32, &shape, Num::Float(0.0))?;
    let tiny = e.b.compare(Compare::Lt, size, least)?;
    Ok(e.b.select(tiny, zero, t)?)
}

/// Copies rows `rows.0..rows.1` of an operand, steps `k.0..k.0 + k.1` of its summed dim, to the first rows and columns of a
/// view in type `ct`; `steps` is the number of steps where it is known. `at` gives the operand's coordinates from those of the row and
/// the summed dim.
#[allow(clippy::too_many_arguments)]
pub fn copy_rows(
    e: &mut Emitter<'_>,
    value: ValueId,
    to: Val,
    ct: DType,
    lanes: usize,
    rows: (Val, Val),
    k: (Val, Val),
    steps: Option<i64>,
    at: &dyn Fn(Coord, Coord) -> Vec<Coord>,
) -> Result<(), Error> {
    let most = 4 * lanes as i64;
    let width = steps.map_or(most, |s| s.clamp(1, most)) as usize;
    let exact = steps.is_some_and(|s| s % width as i64 == 0);
    let shape = std::mem::replace(&mut e.shape, vec![width]);
    let zero = e.b.int(0);
    e.for_loop(rows.0, rows.1, 1, &[], |e, row, _| {
        let down = e.b.sub(row, rows.0)?;
        blocks(e, zero, k.1, width, exact, &[], |e, i, inside, _| {
            let ki = e.b.add(k.0, i)?;
            let t = e.emit(value, &at(Coord::at(row), Coord::along(ki, 0, inside)))?;
            let t = e.b.cast(t, ct, CAST)?;
            let t = flush(e, t)?;
            e.store_view(to, t, &[Coord::at(down), Coord::along(i, 0, true)])?;
            Ok(vec![])
        })
    })?;
    e.shape = shape;
    Ok(())
}
