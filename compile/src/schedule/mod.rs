//! Schedules: a group of operations to tile programs.
//!
//! Each schedule reads only the group and the chip's description. Sizes are kernel arguments, so that one kernel
//! serves every batch and sequence length; small structure (window lengths, steps) is written into the kernel.

mod attention;
mod block;
mod contract;
mod conv;
mod direct;
mod epilogue;
mod map;
mod matrix;
mod order;
mod pack;
mod reduce;
mod taps;
mod tiles;
mod window;

use std::collections::BTreeSet;

use tongtu_chip::{Chip, LevelKind};
use tongtu_graph::kernel::{Buffer, kernel_of};
use tongtu_graph::{Graph, Op};
use tongtu_plan::Packing;
use tongtu_tensor::dim::Dim;
use tongtu_tensor::{Combiner, DType, Num, Tensor};
use tongtu_tile::{Kernel, ParamKind, Val};

use crate::collapse::collapse;
use crate::emit::{Coord, Emitter, KernelArg};
use crate::error::Error;
use crate::fuse::{Group, Kind};

pub use pack::Pack;

/// One launch of a kernel.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The kernel.
    pub kernel: Kernel,
    /// What each of its parameters stands for.
    pub args: Vec<KernelArg>,
    /// Number of instances along x, y and z.
    pub grid: [Dim; 3],
}

/// How a group is computed.
#[derive(Clone, Debug, Default)]
pub struct Scheduled {
    /// Launches in order.
    pub launches: Vec<Launch>,
    /// Temporary memory.
    pub temps: Vec<(DType, Vec<Dim>)>,
    /// Constant inputs laid out for the kernels when compiling.
    pub packed: Vec<(usize, Packing)>,
    /// Pairs of an input and an output that begins as a copy of it.
    pub copies: Vec<(usize, usize)>,
}

impl Scheduled {
    /// The inputs that its launches and copies read as they are.
    pub fn reads(&self) -> BTreeSet<usize> {
        let input = |a: &KernelArg| if let KernelArg::Input(i) = a { Some(*i) } else { None };
        let launched = self.launches.iter().flat_map(|l| &l.args).filter_map(input);
        launched.chain(self.copies.iter().map(|c| c.0)).collect()
    }

    /// Adds launches that make one result from one input; the result is new temporary memory, which the argument given stands for.
    fn prepare(&mut self, input: usize, temp: (DType, Vec<Dim>), launches: Vec<Launch>) -> KernelArg {
        let result = KernelArg::Temp(self.temps.len());
        self.temps.push(temp);
        for mut launch in launches {
            for arg in &mut launch.args {
                match arg {
                    KernelArg::Input(_) => *arg = KernelArg::Input(input),
                    KernelArg::Output(_) => *arg = result.clone(),
                    _ => {}
                }
            }
            self.launches.push(launch);
        }
        result
    }
}

/// Vector operations whose tiles fill the smallest scratchpad.
const VECTORS: usize = 32;

/// What schedules know of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Bytes of a vector register.
    pub vector_bytes: usize,
    /// Number of vector registers.
    pub registers: usize,
    /// Bytes of a vector that multiply-adds pick one element of for all their lanes; 0 where they do not.
    pub picked_bytes: usize,
    /// Matrix units.
    pub units: [Option<Unit>; 8],
    /// Bytes of the smallest scratchpad, on machines whose tiles lie in scratchpads: a tile is no larger. A tile of one vector
    /// operation is a small part of it.
    pub scratch: Option<usize>,
}

/// A matrix unit: `acc[m, n] += lhs[m, k] * rhs[k, n]`, the right operand with the elements of as many steps as fill 32 bits
/// side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Element types of the left and right operand and of the sums.
    pub types: [DType; 3],
    /// Rows, columns and steps of one product.
    pub shape: [usize; 3],
}

impl Machine {
    /// From a chip's description.
    pub fn of(chip: &Chip) -> Machine {
        Machine::reduced(chip, 0)
    }
    /// The same with tiles of half the size, so many times.
    pub fn reduced(chip: &Chip, times: u32) -> Machine {
        let mut units = [None; 8];
        let all = chip.matrix.iter().filter_map(|u| {
            let types = [u.lhs.parse().ok()?, u.rhs.parse().ok()?, u.acc.parse().ok()?];
            Some(Unit { types, shape: [u.m as usize, u.n as usize, u.k as usize] })
        });
        units.iter_mut().zip(all).for_each(|(slot, u)| *slot = Some(u));
        let pads = chip.levels.iter().filter(|l| l.kind == LevelKind::Scratchpad);
        let scratch = pads.filter_map(|l| l.capacity.as_ref()).map(|c| (c.value >> times) as usize).min();
        let register = chip.vector.bits as usize / 8;
        Machine {
            vector_bytes: scratch.map_or(register, |s| (s / VECTORS).max(register)),
            registers: chip.vector.registers as usize,
            picked_bytes: chip.vector.picked_bits.unwrap_or(0) as usize / 8,
            units,
            scratch,
        }
    }
    /// The matrix unit that takes these element types.
    pub fn unit(&self, lhs: DType, rhs: DType, acc: DType) -> Option<Unit> {
        self.units.iter().flatten().find(|u| u.types == [lhs, rhs, acc]).copied()
    }
    /// Steps of a product whose elements of the left operand one load brings: as many are one multiplication of tiles.
    pub fn steps(&self, dtype: DType) -> usize {
        if dtype.is_float() { (self.picked_bytes * 8 / dtype.bits() as usize).max(1) } else { 1 }
    }
    /// Elements of a type in a vector register.
    pub fn lanes(&self, dtype: DType) -> usize {
        (self.vector_bytes * 8 / (dtype.bits() as usize).max(8)).max(1)
    }
}

/// What a schedule is given.
pub struct Request<'a> {
    /// The graph to compute: the group's, or an equal one over fewer dims.
    pub graph: &'a Graph,
    /// What it is built around.
    pub kind: &'a Kind,
    /// The contents of inputs that are constants.
    pub constants: &'a [Option<Tensor>],
    /// The machine.
    pub machine: Machine,
    /// Name for the kernels.
    pub name: &'a str,
    /// The group's origin.
    pub loc: &'a tongtu_graph::Loc,
    /// Whether the result lies where the first operand of its last operation does, which need not be copied.
    pub in_place: bool,
}

impl<'a> Request<'a> {
    /// A request for a map of one input, a part of this one.
    fn part(&self, graph: &'a Graph, name: &'a str) -> Request<'a> {
        let (machine, loc) = (self.machine, self.loc);
        Request { graph, kind: &Kind::Map, constants: &[None], machine, name, loc, in_place: false }
    }
}

/// Chooses and runs the schedule of a group. `constants` holds, for each of its inputs, the contents if it is a constant;
/// `in_place` tells whether the result of joining or scattering has the memory of the first operand.
pub fn schedule(
    group: &Group,
    constants: &[Option<Tensor>],
    machine: Machine,
    in_place: bool,
) -> Result<Scheduled, Error> {
    let name: String =
        group.name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect();
    let collapsed = collapse(group);
    let (graph, kind) = match &collapsed {
        Some(c) => (&c.graph, &c.kind),
        None => (&group.graph, &group.kind),
    };
    let r = Request { graph, kind, constants, machine, name: &name, loc: &group.loc, in_place };
    match kind {
        Kind::Map => map::schedule(&r),
        Kind::Concat => map::schedule_concat(&r),
        Kind::Reduce(rows) => reduce::schedule(&r, rows),
        Kind::Contract(n) if machine.scratch.is_some() => block::contract(&r, *n),
        Kind::Contract(n) => contract::schedule(&r, *n),
        Kind::Attention(a) => attention::schedule(&r, a),
        Kind::Conv(n) => conv::schedule(&r, *n),
        Kind::Window(n) => window::schedule(&r, *n),
        Kind::Scan => order::schedule_scan(&r),
        Kind::Sort => order::schedule_sort(&r),
        Kind::Scatter => order::schedule_scatter(&r),
        Kind::Kernel => kernel(&r),
    }
}

/// A kernel that the model brings with it, as it is.
fn kernel(r: &Request<'_>) -> Result<Scheduled, Error> {
    let [node] = r.graph.nodes.as_slice() else {
        return Err(Error::unsupported("kernel", r.loc, "is not alone in its group"));
    };
    let types: Vec<_> = node.inputs.iter().map(|&v| r.graph.ty(v).clone()).collect();
    let (kernel, buffers) =
        kernel_of(&node.op, &types).map_err(|e| Error::unsupported("kernel", r.loc, e))?;
    let Op::Kernel { grid, scalars, .. } = &node.op else {
        return Err(Error::unsupported(node.op.name(), r.loc, "is no kernel"));
    };
    // The group's inputs are the operands in order of their values, each once.
    let input = |operand: usize| r.graph.inputs.iter().position(|v| *v == node.inputs[operand]).unwrap_or(0);
    let mut copies = Vec::new();
    let mut given = buffers.iter().map(|b| match *b {
        Buffer::Operand(i) => KernelArg::Input(input(i)),
        Buffer::Result(i) => KernelArg::Output(i),
        Buffer::InPlace { result, operand } => {
            copies.push((input(operand), result));
            KernelArg::Output(result)
        }
    });
    let mut numbers = scalars.iter().cloned().map(KernelArg::Dim);
    let arg = |p: &tongtu_tile::Param| match p.kind {
        ParamKind::Buffer(..) => given.next(),
        ParamKind::Scalar(_) => numbers.next(),
    };
    let args = kernel.params.iter().filter_map(arg).collect();
    let extent = |i: usize| grid.get(i).cloned().unwrap_or_else(|| Dim::from(1));
    let grid = [extent(0), extent(1), extent(2)];
    Ok(Scheduled { launches: vec![Launch { kernel, args, grid }], copies, ..Scheduled::default() })
}

impl Emitter<'_> {
    /// The finished launch.
    fn launch(self, grid: [Dim; 3]) -> Launch {
        Launch { kernel: self.b.finish(), args: self.args, grid }
    }
}

/// `0..extent` in steps of `width`: whole blocks first, then one block that may reach past the end. The body is told
/// whether its block is inside.
fn blocks(
    e: &mut Emitter<'_>,
    lo: Val,
    hi: Val,
    width: usize,
    exact: bool,
    init: &[Val],
    mut body: impl FnMut(&mut Emitter<'_>, Val, bool, &[Val]) -> Result<Vec<Val>, Error>,
) -> Result<Vec<Val>, Error> {
    if exact {
        return e.for_loop(lo, hi, width as i64, init, |e, i, c| body(e, i, true, c));
    }
    let span = e.b.sub(hi, lo)?;
    let w = e.b.int(width as i64);
    let rest = e.b.binary(tongtu_tensor::scalar::Binary::Rem, span, w)?;
    let whole = e.b.sub(hi, rest)?;
    let carried = e.for_loop(lo, whole, width as i64, init, |e, i, c| body(e, i, true, c))?;
    // Not a loop, so that what depends on its place only can be known before the loops around it.
    let more = e.b.compare(tongtu_tensor::scalar::Compare::Lt, whole, hi)?;
    e.if_else(more, |e| body(e, whole, false, &carried), |_| Ok(carried.clone()))
}

/// Whether a dim is known to be a multiple of a number.
fn multiple(d: &Dim, of: usize) -> bool {
    d.as_const().is_some_and(|c| c % of as i64 == 0)
}

/// Splits a row number into one coordinate for each dim, the last fastest.
fn delinear(e: &mut Emitter<'_>, row: Val, dims: &[Dim]) -> Result<Vec<Coord>, Error> {
    let mut out = Vec::new();
    let mut rest = row;
    for (i, d) in dims.iter().enumerate().rev() {
        if d.as_const() == Some(1) {
            out.push(Coord::at(e.b.int(0)));
        } else if i == 0 || dims[..i].iter().all(|d| d.as_const() == Some(1)) {
            out.push(Coord::at(rest));
            rest = e.b.int(0);
        } else {
            let n = e.dim(d);
            let r = e.b.binary(tongtu_tensor::scalar::Binary::Rem, rest, n)?;
            out.push(Coord::at(r));
            rest = e.b.div(rest, n)?;
        }
    }
    out.reverse();
    Ok(out)
}

/// The product of dims.
fn product(dims: &[Dim]) -> Dim {
    tongtu_graph::infer::numel(dims)
}

/// How many rows of `len` elements an instance takes so that it handles about `target` elements.
fn rows_per_instance(len: &Dim, target: i64) -> Dim {
    match len.as_const() {
        Some(n) => Dim::from((target / n.max(1)).max(1)),
        None => Dim::from(target).floordiv(&len.max(&Dim::from(1))).max(&Dim::from(1)),
    }
}

/// The accumulator that every element or pair replaces or leaves as it should be, for operand `k` of a combiner.
fn initial(combiner: Combiner, k: usize, dtype: DType) -> Num {
    match (k, combiner) {
        (0, _) => combiner.identity(dtype),
        (_, Combiner::ArgMaxLast | Combiner::ArgMinLast) => dtype.min_value(),
        _ => dtype.max_value(),
    }
}

/// The result of accumulator `k`: an index that nothing has replaced is 0.
fn settle(e: &mut Emitter<'_>, combiner: Combiner, k: usize, acc: Val) -> Result<Val, Error> {
    if k == 0 {
        return Ok(acc);
    }
    let (dtype, shape) = (e.b.dtype(acc), e.b.shape(acc));
    let start = e.b.full(dtype, &shape, initial(combiner, k, dtype))?;
    let zero = e.b.full(dtype, &shape, Num::Int(0))?;
    let untouched = e.b.compare(tongtu_tensor::scalar::Compare::Eq, acc, start)?;
    Ok(e.b.select(untouched, zero, acc)?)
}

/// Combines two elements, or two pairs of value and index, of the same shape; the second is the newer.
fn combine(e: &mut Emitter<'_>, combiner: Combiner, old: &[Val], new: &[Val]) -> Result<Vec<Val>, Error> {
    use tongtu_tensor::scalar::{Binary, Compare, Unary};
    if let Some(op) = combiner.binary() {
        return Ok(vec![e.b.binary(op, old[0], new[0])?]);
    }
    if combiner == Combiner::Replace {
        return Ok(new.to_vec());
    }
    let (compare, order) = match combiner {
        Combiner::ArgMax => (Compare::Gt, Compare::Lt),
        Combiner::ArgMaxLast => (Compare::Gt, Compare::Gt),
        Combiner::ArgMin => (Compare::Lt, Compare::Lt),
        _ => (Compare::Lt, Compare::Gt),
    };
    let mut wins = e.b.compare(compare, new[0], old[0])?;
    let mut tie = e.b.compare(Compare::Eq, new[0], old[0])?;
    if e.b.dtype(new[0]).is_float() {
        let nan = e.b.unary(Unary::IsNan, new[0])?;
        let old_nan = e.b.unary(Unary::IsNan, old[0])?;
        let not = e.b.unary(Unary::Not, old_nan)?;
        let fresh = e.b.binary(Binary::And, nan, not)?;
        wins = e.b.binary(Binary::Or, wins, fresh)?;
        let both = e.b.binary(Binary::And, nan, old_nan)?;
        tie = e.b.binary(Binary::Or, tie, both)?;
    }
    let better = e.b.compare(order, new[1], old[1])?;
    let tie = e.b.binary(Binary::And, tie, better)?;
    wins = e.b.binary(Binary::Or, wins, tie)?;
    Ok(vec![e.b.select(wins, new[0], old[0])?, e.b.select(wins, new[1], old[1])?])
}

/// The type that elements of a type are combined in.
fn accumulator(combiner: Combiner, dtype: DType) -> DType {
    if dtype.is_float() && dtype != DType::F64 && matches!(combiner, Combiner::Add | Combiner::Mul) {
        DType::F32
    } else {
        dtype
    }
}
