//! From tile kernels to LLVM IR text with explicit vectors.
//!
//! A tile is a list of LLVM vectors: its last dim is cut into chunks of the kernel's lane count (the last one a
//! power of two that covers the rest), all outer dims are unrolled; a chunk of one element, and rank 0, is an
//! LLVM scalar. Every tile of a kernel uses the same lane count, so elementwise instructions, casts too, work
//! chunk by chunk. Lanes beyond a dim's end hold anything and are never stored or combined.
//!
//! In registers a bool is an `i1`; integers of less than a byte are kept sign- or zero-extended in an `i8`;
//! bf16 and the floats of 8 and fewer bits are their codes, in `i16` and `i8`. In memory elements are as the
//! element types define them.

mod avx512;
mod cast;
mod dot;
mod elem;
mod emit;
mod flow;
mod indexed;
mod layout;
mod memory;
mod mma;
mod reduce;
mod shape;

use crate::{Entry, target};
use emit::V;
use layout::Layout;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Write;
use tongtu_chip::Chip;
use tongtu_tensor::DType;
use tongtu_tile::{Block, Inst, Kernel, Op, ParamKind, TileMap, Ty, Val};

/// Why a kernel was not lowered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The instruction cannot be done here, and why.
    Unsupported {
        /// The instruction.
        instruction: String,
        /// Why.
        reason: String,
    },
    /// The code or the values would be too large; smaller tiles help.
    TooLarge {
        /// What is short.
        level: &'static str,
        /// How much is needed.
        need: u64,
        /// How much there is.
        limit: u64,
    },
    /// The kernel breaks a rule that verification guarantees.
    Broken(String),
}

type Result<T> = std::result::Result<T, Refusal>;

/// Most instructions of LLVM text in one kernel: beyond this, compiling takes seconds and the tile cannot have
/// been meant for registers.
const MAX_LINES: usize = 60_000;

/// Most bytes of scratch a kernel may ask for.
const MAX_SCRATCH: usize = 1 << 28;

/// LLVM IR text of one kernel and what its callers need to know.
#[derive(Debug, Clone)]
pub struct Lowered {
    /// The text; its only symbol is [`SYMBOL`].
    pub ir: String,
    /// The kernel's entry, offset 0.
    pub entry: Entry,
    /// Whether it multiplies matrices.
    pub products: bool,
}

/// The name of the function in every lowered kernel's text.
pub const SYMBOL: &str = "kernel";

/// Lowers a verified kernel for a CPU.
pub fn kernel(kernel: &Kernel, chip: &Chip) -> Result<Lowered> {
    Fun::new(kernel, chip).lower()
}

/// A tile's type and its parts, in an order that its layout gives.
#[derive(Debug, Clone)]
struct Tile {
    dtype: DType,
    shape: Vec<usize>,
    layout: Layout,
    parts: Vec<V>,
}

/// Memory of one element type.
#[derive(Debug, Clone)]
struct Buffer {
    dtype: DType,
    ptr: V,
    len: V,
    /// Its number among the buffers, none of which overlap.
    scope: usize,
}

/// A window on a buffer.
#[derive(Debug, Clone)]
struct View {
    buffer: Buffer,
    offset: V,
    dims: Vec<V>,
    strides: Vec<V>,
}

#[derive(Debug, Clone)]
enum Value {
    Tile(Tile),
    Buffer(Buffer),
    View(View),
}

/// The function being written.
struct Fun<'k> {
    k: &'k Kernel,
    chip: &'k Chip,
    /// Elements of a full chunk.
    lanes: usize,
    out: String,
    lines: usize,
    next: u32,
    /// Label of the block being written.
    block: V,
    declared: BTreeSet<String>,
    /// Constant tables.
    globals: String,
    values: Vec<Option<Value>>,
    /// Buffers seen.
    scopes: usize,
    products: bool,
    /// Bytes of scratch given out.
    scratch: usize,
    /// Layouts that values are wanted in.
    wanted: Vec<Layout>,
    /// Loads that only a later product of the same block reads, with the elements side by side it wants.
    streamed: HashMap<Val, usize>,
    /// Operands of products that the matrix unit does.
    unit_operands: HashSet<Val>,
    /// Streamed loads, done when their product comes to them.
    pending: HashMap<Val, memory::Access>,
    /// Those that lie in memory as the matrix unit reads them.
    direct: HashMap<Val, memory::Direct>,
    /// Right operands of dot products of bytes, and what they are made of.
    dots: HashMap<Val, layout::Bytes>,
    /// What numbers of f32 that were rounded to even were before.
    rounded: HashMap<V, V>,
    pid: [V; 3],
    grid: [V; 3],
}

impl<'k> Fun<'k> {
    fn new(k: &'k Kernel, chip: &'k Chip) -> Fun<'k> {
        let lanes = lanes(k, chip);
        Fun {
            k,
            chip,
            lanes,
            out: String::new(),
            lines: 0,
            next: 0,
            block: "entry".into(),
            declared: BTreeSet::new(),
            globals: String::new(),
            values: vec![None; k.types.len()],
            scopes: 0,
            products: false,
            scratch: 0,
            wanted: Vec::new(),
            streamed: HashMap::new(),
            unit_operands: HashSet::new(),
            pending: HashMap::new(),
            direct: HashMap::new(),
            dots: HashMap::new(),
            rounded: HashMap::new(),
            pid: ["%px".into(), "%py".into(), "%pz".into()],
            grid: ["%gx".into(), "%gy".into(), "%gz".into()],
        }
    }

    fn lower(mut self) -> Result<Lowered> {
        (self.wanted, self.streamed, self.unit_operands) = layout::choose(self.k, self.chip);
        self.dots = layout::dots(self.k, self.chip, &self.wanted);
        let (mut buffers, mut scalars) = (0, 0);
        self.line(format_args!("%gx = load i64, ptr %grid"));
        for (i, name) in ["gy", "gz"].iter().enumerate() {
            self.line(format_args!("%{name}.p = getelementptr i64, ptr %grid, i64 {}", i + 1));
            self.line(format_args!("%{name} = load i64, ptr %{name}.p"));
        }
        for p in &self.k.params {
            let value = match p.kind {
                ParamKind::Buffer(dtype, _) => {
                    let at = self.def(format_args!("getelementptr {{ ptr, i64 }}, ptr %bufs, i64 {buffers}"));
                    let ptr = self.def(format_args!("load ptr, ptr {at}"));
                    let at = self.def(format_args!("getelementptr i8, ptr {at}, i64 8"));
                    let len = self.def(format_args!("load i64, ptr {at}"));
                    buffers += 1;
                    Value::Buffer(self.new_buffer(dtype, ptr, len))
                }
                ParamKind::Scalar(dtype) => {
                    let at = self.def(format_args!("getelementptr i64, ptr %scalars, i64 {scalars}"));
                    scalars += 1;
                    let part = self.load_element(dtype, &at)?;
                    Value::Tile(Tile { dtype, shape: vec![], layout: Layout::Rows, parts: vec![part] })
                }
            };
            self.values[p.value.index()] = Some(value);
        }
        self.line(format_args!("%px.0 = srem i64 %first, %gx"));
        self.line(format_args!("%pt.0 = sdiv i64 %first, %gx"));
        self.line(format_args!("%py.0 = srem i64 %pt.0, %gy"));
        self.line(format_args!("%pz.0 = sdiv i64 %pt.0, %gy"));
        self.line(format_args!("br label %program"));
        self.label("program");
        self.line(format_args!("%pi = phi i64 [%first, %entry], [%pi.1, %next]"));
        for a in ["px", "py", "pz"] {
            self.line(format_args!("%{a} = phi i64 [%{a}.0, %entry], [%{a}.3, %next]"));
        }
        let k = self.k;
        for inst in &k.body.insts {
            self.inst(inst)?;
        }
        self.line(format_args!("br label %next"));
        self.label("next");
        for text in [
            "%px.1 = add i64 %px, 1",
            "%px.2 = icmp eq i64 %px.1, %gx",
            "%px.3 = select i1 %px.2, i64 0, i64 %px.1",
            "%px.4 = zext i1 %px.2 to i64",
            "%py.1 = add i64 %py, %px.4",
            "%py.2 = icmp eq i64 %py.1, %gy",
            "%py.3 = select i1 %py.2, i64 0, i64 %py.1",
            "%py.4 = zext i1 %py.2 to i64",
            "%pz.3 = add i64 %pz, %py.4",
            "%pi.1 = add i64 %pi, 1",
            "%pi.2 = icmp slt i64 %pi.1, %last",
            "br i1 %pi.2, label %program, label %end",
        ] {
            self.line(format_args!("{text}"));
        }
        self.label("end");
        self.line(format_args!("ret void"));
        let entry =
            Entry { name: self.k.name.clone(), offset: 0, scratch: self.scratch as u64, buffers, scalars };
        let products = self.products;
        Ok(Lowered { ir: self.text(), entry, products })
    }

    /// The whole module.
    fn text(self) -> String {
        let mut w = String::with_capacity(self.out.len() + 4096);
        w.push_str(&self.globals);
        for d in &self.declared {
            let _ = writeln!(w, "{d}");
        }
        let tune = self.chip.llvm_tune.as_ref().map(|t| format!(" \"tune-cpu\"=\"{t}\"")).unwrap_or_default();
        let vscale = target::vscale(self.chip).map(|k| format!(" vscale_range({k},{k})")).unwrap_or_default();
        let _ = writeln!(
            w,
            "define void @{SYMBOL}(ptr readonly noalias %bufs, ptr readonly noalias %scalars, \
             ptr readonly noalias %grid, i64 %first, i64 %last, ptr %scratch) nounwind \"no-builtins\"{tune}{vscale} {{\nentry:"
        );
        w.push_str(&self.out);
        w.push_str("}\n");
        // Buffer parameters and scratch buffers overlap nobody but themselves.
        let _ = writeln!(w, "!0 = distinct !{{!0}}");
        let n = self.scopes;
        for s in 0..n {
            let _ = writeln!(w, "!{} = distinct !{{!{0}, !0}}", 1 + s);
        }
        for s in 0..n {
            let _ = writeln!(w, "!{} = !{{!{}}}", 1 + n + s, 1 + s);
            let others: Vec<String> = (0..n).filter(|o| *o != s).map(|o| format!("!{}", 1 + o)).collect();
            let _ = writeln!(w, "!{} = !{{{}}}", 1 + 2 * n + s, others.join(", "));
        }
        // Metadata numbers depend on how many scopes there were in the end; see `alias`.
        for s in (0..n).rev() {
            let now = format!(", !alias.scope !{}, !noalias !{}", 1 + n + s, 1 + 2 * n + s);
            w = w.replace(&format!(", !scope{s}."), &now);
        }
        w
    }

    fn new_buffer(&mut self, dtype: DType, ptr: V, len: V) -> Buffer {
        self.scopes += 1;
        Buffer { dtype, ptr, len, scope: self.scopes - 1 }
    }

    /// Bytes of scratch, 64-byte aligned; gives their address.
    fn reserve(&mut self, bytes: usize) -> Result<V> {
        let at = self.scratch;
        self.scratch = bytes
            .checked_next_multiple_of(64)
            .and_then(|b| b.checked_add(at))
            .filter(|total| *total <= MAX_SCRATCH)
            .ok_or(Refusal::TooLarge { level: "scratch", need: bytes as u64, limit: MAX_SCRATCH as u64 })?;
        Ok(self.def(format_args!("getelementptr i8, ptr %scratch, i64 {at}")))
    }

    fn tile(&self, v: Val) -> Result<&Tile> {
        match &self.values[v.index()] {
            Some(Value::Tile(t)) => Ok(t),
            _ => Err(broken("an operand is not a tile")),
        }
    }

    fn view(&self, v: Val) -> Result<View> {
        match &self.values[v.index()] {
            Some(Value::View(t)) => Ok(t.clone()),
            _ => Err(broken("an operand is not a view")),
        }
    }

    fn buffer(&self, v: Val) -> Result<Buffer> {
        match &self.values[v.index()] {
            Some(Value::Buffer(b)) => Ok(b.clone()),
            _ => Err(broken("an operand is not a buffer")),
        }
    }

    /// A scalar operand's value.
    fn scalar(&self, v: Val) -> Result<V> {
        let tile = self.tile(v)?;
        tile.parts.first().cloned().ok_or_else(|| broken("a scalar has no value"))
    }

    fn tile_ty(&self, v: Val) -> Result<(DType, &'k [usize])> {
        self.k.ty(v).as_tile().ok_or_else(|| broken("a result is not a tile"))
    }

    fn set(&mut self, v: Val, parts: Vec<V>) -> Result<()> {
        let (dtype, shape) = self.tile_ty(v)?;
        let tile = Tile { dtype, shape: shape.to_vec(), layout: Layout::Rows, parts };
        self.values[v.index()] = Some(Value::Tile(tile));
        Ok(())
    }

    fn unsupported<T>(&self, inst: &Inst, reason: impl ToString) -> Result<T> {
        let types: Vec<String> = inst.operands.iter().map(|v| self.k.ty(*v).to_string()).collect();
        let instruction = format!("{}({})", inst.op.name(), types.join(", "));
        Err(Refusal::Unsupported { instruction, reason: reason.to_string() })
    }

    fn inst(&mut self, inst: &Inst) -> Result<()> {
        // Without vectors every element is an instruction.
        let limit = if target::vector_bits(self.chip, false).is_some() { MAX_LINES } else { 2 * MAX_LINES };
        if self.lines > limit {
            return Err(Refusal::TooLarge { level: "code", need: self.lines as u64, limit: limit as u64 });
        }
        let result = inst.results.first().copied();
        match &inst.op {
            Op::Unary(_) | Op::Binary(_) | Op::Compare(_) | Op::Select {} | Op::Fma {} => {
                self.elementwise(inst)
            }
            Op::Cast { .. } | Op::Bitcast { .. } => self.elementwise(inst),
            Op::Full { dtype, shape, value } => self.full(inst, *dtype, shape, *value),
            Op::Iota { dtype, shape, dim } => self.iota(inst, *dtype, shape, *dim),
            Op::ProgramId { axis } | Op::NumPrograms { axis } => {
                let of = if matches!(inst.op, Op::ProgramId { .. }) { &self.pid } else { &self.grid };
                let part = of[*axis].clone();
                result.map_or(Ok(()), |r| self.set(r, vec![part]))
            }
            Op::BufferLen {} => {
                let len = self.buffer(inst.operands[0])?.len;
                result.map_or(Ok(()), |r| self.set(r, vec![len]))
            }
            Op::Broadcast { shape } => self.broadcast(inst, shape),
            Op::Reshape { .. } => self.reshape(inst),
            Op::Permute { perm } => self.permute(inst, perm),
            Op::Extract { offset, .. } => self.extract(inst, offset),
            Op::Concat { dim } => self.concat(inst, *dim),
            Op::TakeAlong { dim } => self.take_along(inst, *dim),
            Op::Reduce { combiner, dims } => self.reduce(inst, *combiner, dims),
            Op::Scan { combiner, dim, reverse } => self.scan(inst, *combiner, *dim, *reverse),
            Op::Mma {} => self.mma(inst),
            Op::MmaScaled {} => self.unsupported(inst, "scales are applied before"),
            Op::View { rank } => {
                let buffer = self.buffer(inst.operands[0])?;
                let scalars =
                    inst.operands[1..].iter().map(|v| self.scalar(*v)).collect::<Result<Vec<_>>>()?;
                let (dims, strides) = scalars[1..].split_at(*rank);
                let view = View {
                    buffer,
                    offset: scalars[0].clone(),
                    dims: dims.to_vec(),
                    strides: strides.to_vec(),
                };
                if let Some(r) = result {
                    self.values[r.index()] = Some(Value::View(view));
                }
                Ok(())
            }
            Op::Load { map, inside, pad, masked } => self.load(inst, map, inside, *pad, *masked),
            Op::Store { map, inside, masked } => self.store(inst, map, inside, *masked),
            Op::Prefetch {} => self.prefetch(inst),
            Op::Gather { pad, masked } => self.gather(inst, *pad, *masked),
            Op::Scatter { masked } => self.scatter(inst, *masked),
            Op::AtomicReduce { combiner, masked, .. } => self.atomic(inst, *combiner, "monotonic", *masked),
            Op::AtomicRmw { combiner, ordering, masked, .. } => {
                self.atomic(inst, *combiner, indexed::ordering(*ordering), *masked)
            }
            Op::AtomicCas { ordering, .. } => self.compare_and_swap(inst, indexed::ordering(*ordering)),
            Op::Alloc { dtype, len } => {
                let bytes = dtype.bytes_for(*len).ok_or_else(|| broken("scratch overflows"))?;
                let ptr = self.reserve(bytes)?;
                let buffer = self.new_buffer(*dtype, ptr, len.to_string().into());
                if let Some(r) = result {
                    self.values[r.index()] = Some(Value::Buffer(buffer));
                }
                Ok(())
            }
            Op::For {} => self.for_loop(inst),
            Op::While {} => self.while_loop(inst),
            Op::If {} => self.branch(inst),
        }
    }
}

fn broken(what: &str) -> Refusal {
    Refusal::Broken(what.to_string())
}

/// Whether every instruction acts on each lane by itself, or reads and writes elements that lie one after another, or combines all.
/// Then a group of vector registers does as one.
fn by_lanes(block: &Block) -> bool {
    let dense = |map: &TileMap| {
        let last = map.0.last().map_or(&[][..], Vec::as_slice);
        last.iter().all(|f| f.size == 1 || f.dim.is_none() || f.step == 1)
            && last.iter().filter(|f| f.size > 1).count() <= 1
    };
    let op = |op: &Op| match op {
        Op::Load { map, .. } | Op::Store { map, .. } => dense(map),
        Op::Mma {} | Op::Permute { .. } | Op::Concat { .. } | Op::Extract { .. } => false,
        Op::Scan { .. } | Op::TakeAlong { .. } | Op::Gather { .. } | Op::Scatter { .. } => false,
        _ => true,
    };
    block.insts.iter().all(|i| op(&i.op) && i.blocks.iter().all(by_lanes))
}

/// The lane count of a kernel: a full register, or group of registers, of the widest element its tiles compute in, but never less than
/// that of 32-bit elements, so that one wide index tile does not narrow all others.
fn lanes(k: &Kernel, chip: &Chip) -> usize {
    let width = |t: &Ty| match t {
        Ty::Tile { dtype, shape } if !shape.is_empty() => match dtype {
            DType::Bool => 0,
            d if d.is_float() && d.bits() < 32 && *d != DType::F16 => 32,
            d => d.bits(),
        },
        _ => 0,
    };
    let widest = k.types.iter().map(width).max().unwrap_or(32).clamp(8, 32);
    let widest = if widest == 8 && k.types.iter().any(|t| width(t) == 8) { 8 } else { widest.max(16) };
    target::vector_bits(chip, by_lanes(&k.body)).map_or(1, |bits| (bits / widest).max(1) as usize)
}
