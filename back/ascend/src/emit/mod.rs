//! A tile kernel as MLIR text.

mod arith;
mod control;
mod ints;
mod truths;

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

use tongtu_chip::Chip;
use tongtu_plan::backend::{CompileError, Support};
use tongtu_tensor::scalar::{Binary, Unary};
use tongtu_tensor::{Combiner, DType, Num, Overflow};
use tongtu_tile::{Block, Inst, Kernel, Op, ParamKind, Ty, Val};

use self::arith::compare;
use crate::access::Lay;
use crate::codes::as_codes;
use crate::legal;

pub(crate) type Text<T> = Result<T, CompileError>;

/// A view: nothing of it is in the text until a block is accessed.
#[derive(Clone, Debug)]
pub(crate) struct ViewSlot {
    pub buffer: String,
    /// The buffer's memref type.
    pub ty: String,
    pub dtype: DType,
    pub offset: String,
    pub dims: Vec<String>,
    pub strides: Vec<String>,
}

#[derive(Clone, Debug)]
pub(crate) enum Slot {
    /// A scalar or tensor by its name.
    Value(String),
    Buffer {
        name: String,
        ty: String,
        dtype: DType,
        /// Number of elements.
        len: String,
    },
    View(ViewSlot),
}

pub(crate) struct Emit<'a> {
    kernel: &'a Kernel,
    pub chip: &'a Chip,
    out: String,
    /// Lines written.
    lines: usize,
    origins: Vec<(usize, String)>,
    pub depth: usize,
    next: usize,
    slots: HashMap<Val, Slot>,
    /// Integer constants by name.
    pub known: HashMap<String, i64>,
    /// Tiles of one integer by name.
    splats: HashMap<String, i128>,
    /// The bytes of 0 and 1 that truth values were read from, by name.
    read_as: HashMap<String, String>,
    /// The truth values of comparisons of long integers as those came, by what was made of them.
    long: HashMap<String, String>,
    /// Tiles of one integer that is known at run time only.
    pub repeated: HashSet<String>,
    /// Tiles of bytes that are 0 or 1.
    truths: &'a HashSet<Val>,
    /// Scalars proven not negative.
    pub not_negative: HashSet<String>,
    /// Tiles that only add dims of 1 to another: what they are made of.
    squeezed: HashMap<Val, (String, Vec<usize>)>,
    /// Tiles that must come from a fill: accumulators of products and reductions.
    filled: HashSet<Val>,
    /// Tiles that a matrix unit reads as they lie in memory.
    pub matrix: HashSet<Val>,
    /// How those lie.
    pub lays: HashMap<Val, Lay>,
    /// Tiles that are parts of others, in whose memory they may lie.
    parts: HashSet<Val>,
    /// Tiles that loops carry.
    carried: HashSet<Val>,
    /// Whether tiles' dims are changed.
    pub reshapes: bool,
}

/// A kernel's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emitted {
    /// The text.
    pub text: String,
    /// The first line (from 1) of each instruction, and its name with its types and place in the user's model.
    pub origins: Vec<(usize, String)>,
}

/// The text of a verified kernel for a chip; equal kernels give equal text.
///
/// # Errors
/// An instruction that the chip lacks, by name.
pub fn emit(kernel: &Kernel, chip: &Chip) -> Result<Emitted, CompileError> {
    let (kernel, truths) = &as_codes(kernel, chip);
    let mut e = Emit {
        kernel,
        chip,
        out: String::new(),
        lines: 2,
        origins: Vec::new(),
        depth: 1,
        next: 0,
        slots: HashMap::new(),
        known: HashMap::new(),
        splats: HashMap::new(),
        read_as: HashMap::new(),
        repeated: HashSet::new(),
        truths,
        long: HashMap::new(),
        not_negative: HashSet::new(),
        squeezed: HashMap::new(),
        filled: HashSet::new(),
        matrix: HashSet::new(),
        lays: HashMap::new(),
        parts: HashSet::new(),
        carried: HashSet::new(),
        reshapes: has_reshapes(kernel, &kernel.body),
    };
    find_fills(&kernel.body, &mut e.filled);
    find_operands(&kernel.body, &mut e.matrix);
    e.kernel()?;
    Ok(Emitted { text: e.out, origins: e.origins })
}

fn find_fills(block: &Block, out: &mut HashSet<Val>) {
    for inst in &block.insts {
        match inst.op {
            Op::Mma {} => out.extend(inst.operands.first()),
            Op::For {} => out.extend(inst.operands.get(3..).unwrap_or(&[])),
            Op::While {} => out.extend(inst.operands.get(1..).unwrap_or(&[])),
            _ => {}
        }
        inst.blocks.iter().for_each(|b| find_fills(b, out));
    }
}

/// The operands of products, and what they are other views of.
fn find_operands(block: &Block, out: &mut HashSet<Val>) {
    for inst in block.insts.iter().rev() {
        inst.blocks.iter().for_each(|b| find_operands(b, out));
        match inst.op {
            Op::Mma {} => out.extend(&inst.operands[1..]),
            Op::Permute { .. } | Op::Reshape { .. } if out.contains(&inst.results[0]) => {
                out.insert(inst.operands[0]);
            }
            _ => {}
        }
    }
}

/// Whether dims but those of 1 are changed somewhere.
fn has_reshapes(kernel: &Kernel, block: &Block) -> bool {
    let core = |v: Val| {
        let shape = kernel.ty(v).as_tile().map(|t| t.1).unwrap_or_default();
        shape.iter().copied().filter(|&n| n != 1).collect::<Vec<_>>()
    };
    block.insts.iter().any(|i| {
        matches!(i.op, Op::Reshape { .. }) && core(i.operands[0]) != core(i.results[0])
            || i.blocks.iter().any(|b| has_reshapes(kernel, b))
    })
}

/// The element type in MLIR; bools in memory are bytes.
pub(crate) fn mlir(d: DType) -> String {
    match d {
        DType::Bool => "i8".to_string(),
        DType::F16 | DType::BF16 | DType::F32 | DType::F64 => d.name().to_string(),
        DType::F8E4M3FN => "f8E4M3FN".to_string(),
        DType::F8E5M2 => "f8E5M2".to_string(),
        d => format!("i{}", d.bits().max(8)),
    }
}

/// The element type of values.
fn element(d: DType) -> String {
    if d.is_bool() { "i1".to_string() } else { mlir(d) }
}

/// `2x3xf32`.
pub(crate) fn shaped(shape: &[usize], element: &str) -> String {
    shape.iter().map(|n| format!("{n}x")).collect::<String>() + element
}

fn ty_text(d: DType, shape: &[usize]) -> String {
    if shape.is_empty() { element(d) } else { format!("tensor<{}>", shaped(shape, &element(d))) }
}

/// A kernel's name in the program.
pub(crate) fn symbol(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

/// A literal: floats by their bits where a short decimal does not say them exactly.
pub(crate) fn constant(d: DType, value: Num) -> String {
    let code = d.encode(value, Overflow::Format);
    if d.is_bool() {
        return code.to_string();
    }
    if d.is_float() {
        let short = format!("{:?}", d.decode(code).to_f64());
        let plain = short.contains('.') && !short.contains('e') && short.len() < 12;
        return if plain { short } else { format!("0x{code:0width$X}", width = d.bits() as usize / 4) };
    }
    // Signless integers print as signed.
    let unused = 64 - d.bits();
    (((code << unused) as i64) >> unused).to_string()
}

impl Emit<'_> {
    pub(crate) fn refuse<T>(&self, inst: &Inst, reason: &str) -> Text<T> {
        Err(CompileError::Unsupported {
            kernel: self.kernel.name.clone(),
            instruction: self.title(inst),
            chip: self.chip.name.clone(),
            reason: reason.to_string(),
        })
    }

    /// An instruction's name, types and origin.
    fn title(&self, inst: &Inst) -> String {
        let tys = inst.operands.iter().map(|&v| self.kernel.ty(v).to_string()).collect::<Vec<_>>();
        let at = inst.loc.as_ref().map(|l| format!(" at {l}")).unwrap_or_default();
        format!("{} ({}){at}", inst.op.name(), tys.join(", "))
    }

    fn internal<T>(&self, detail: &str) -> Text<T> {
        Err(CompileError::Internal { kernel: self.kernel.name.clone(), detail: detail.to_string() })
    }

    pub(crate) fn line(&mut self, text: String) {
        self.lines += 1 + text.matches('\n').count();
        let _ = writeln!(self.out, "{:indent$}{text}", "", indent = self.depth * 2);
    }

    pub(crate) fn fresh(&mut self) -> String {
        self.next += 1;
        format!("%v{}", self.next)
    }

    pub(crate) fn define(&mut self, v: Val, slot: Slot) {
        self.slots.insert(v, slot);
    }

    pub(crate) fn shape(&self, v: Val) -> Vec<usize> {
        self.kernel.ty(v).as_tile().map(|(_, s)| s.to_vec()).unwrap_or_default()
    }

    pub(crate) fn dtype(&self, v: Val) -> DType {
        self.kernel.ty(v).dtype()
    }

    fn ty(&self, v: Val) -> String {
        ty_text(self.dtype(v), &self.shape(v))
    }

    /// The name of a scalar or tensor.
    pub(crate) fn scalar(&self, v: Val) -> Text<String> {
        match self.slots.get(&v) {
            Some(Slot::Value(name)) => Ok(name.clone()),
            _ => self.internal("a buffer or view stands where a value is wanted"),
        }
    }

    /// A buffer's name, type, element type and length.
    pub(crate) fn buffer(&self, v: Val) -> Text<(String, String, DType, String)> {
        match self.slots.get(&v) {
            Some(Slot::Buffer { name, ty, dtype, len }) => {
                Ok((name.clone(), ty.clone(), *dtype, len.clone()))
            }
            _ => self.internal("a buffer is wanted"),
        }
    }

    pub(crate) fn view(&self, v: Val) -> Text<ViewSlot> {
        match self.slots.get(&v) {
            Some(Slot::View(view)) => Ok(view.clone()),
            _ => self.internal("a view is wanted"),
        }
    }

    /// A tensor under other dims of the same elements.
    pub(crate) fn reshaped(&mut self, t: &str, element: &str, from: &[usize], to: &[usize]) -> String {
        if from == to {
            return t.to_string();
        }
        let total: usize = from.iter().product();
        let mut t = t.to_string();
        let text = |s: &[usize]| format!("tensor<{}>", shaped(s, element));
        let group = |n: usize| (0..n).map(|i| i.to_string()).collect::<Vec<_>>().join(", ");
        if to.is_empty() {
            let zeros = from.iter().map(|_| self.index_constant(0)).collect::<Vec<_>>().join(", ");
            let name = self.fresh();
            self.line(format!("{name} = tensor.extract {t}[{zeros}] : {}", text(from)));
            return name;
        }
        let mut now = from.to_vec();
        if now.is_empty() {
            let name = self.fresh();
            self.line(format!("{name} = tensor.from_elements {t} : {}", text(&[1])));
            t = name;
            now = vec![1];
        }
        if now.len() > 1 {
            let name = self.fresh();
            self.line(format!(
                "{name} = tensor.collapse_shape {t} [[{}]] : {} into {}",
                group(now.len()),
                text(&now),
                text(&[total])
            ));
            t = name;
        }
        if to.len() > 1 {
            let name = self.fresh();
            let sizes = to.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
            self.line(format!(
                "{name} = tensor.expand_shape {t} [[{}]] output_shape [{sizes}] : {} into {}",
                group(to.len()),
                text(&[total]),
                text(to)
            ));
            t = name;
        }
        t
    }

    /// Whether a tile is a part of another's memory that must be copied before its dims are changed: one chip's compiler fails
    /// on it.
    pub(crate) fn parts_lie_open(&self, v: Val) -> bool {
        self.parts.contains(&v) && legal::is_950(self.chip)
    }

    /// A tensor copied to memory of its own.
    pub(crate) fn dense(&mut self, t: &str, tensor: &str) -> String {
        let (local, name) = (self.fresh(), self.fresh());
        let ty = tensor.replacen("tensor", "memref", 1);
        self.line(format!("{local} = memref.alloc() : {ty}"));
        self.put_home(t, &local, tensor, &ty);
        self.line(format!("{name} = bufferization.to_tensor {local} restrict writable : {ty}"));
        name
    }

    pub(crate) fn index_constant(&mut self, k: usize) -> String {
        let name = self.fresh();
        self.line(format!("{name} = arith.constant {k} : index"));
        name
    }

    fn kernel(&mut self) -> Text<()> {
        let kernel = self.kernel;
        let mut args = vec!["%lock: memref<?xi8>".to_string(), "%ws: memref<?xi8>".to_string()];
        for (i, p) in kernel.params.iter().enumerate() {
            let name = format!("%p{i}");
            match p.kind {
                ParamKind::Buffer(d, _) => {
                    let ty = format!("memref<?x{}>", mlir(d));
                    args.push(format!("{name}: {ty}"));
                    let len = format!("%len{i}");
                    self.define(p.value, Slot::Buffer { name, ty, dtype: d, len });
                }
                ParamKind::Scalar(d) => {
                    args.push(format!("{name}: {}", element(d)));
                    self.define(p.value, Slot::Value(name));
                }
            }
        }
        // Device pointers carry no length.
        let buffers =
            kernel.params.iter().enumerate().filter(|(_, p)| matches!(p.kind, ParamKind::Buffer(..)));
        args.extend(buffers.map(|(i, _)| format!("%len{i}: i64")));
        args.extend(["gx", "gy", "gz", "px", "py", "pz"].map(|n| format!("%{n}: i32")));
        let symbol = symbol(&kernel.name);
        let _ = writeln!(self.out, "func.func @{symbol}({})", args.join(", "));
        let _ = writeln!(
            self.out,
            "    attributes {{SyncBlockLockArgIdx = 0 : i64, WorkspaceArgIdx = 1 : i64, global_kernel = \"local\"}} {{"
        );
        self.block(&kernel.body)?;
        self.line("return".to_string());
        self.out.push_str("}\n");
        Ok(())
    }

    fn block(&mut self, block: &Block) -> Text<()> {
        block.insts.iter().try_for_each(|i| self.inst(i))
    }

    fn inst(&mut self, inst: &Inst) -> Text<()> {
        self.origins.push((self.lines + 1, self.title(inst)));
        let tys = |vals: &[Val]| vals.iter().map(|&v| self.kernel.ty(v).clone()).collect::<Vec<Ty>>();
        match legal::supports(&inst.op, &tys(&inst.operands), &tys(&inst.results), self.chip) {
            Support::Native => {}
            Support::Emulated(how) => {
                return self.refuse(inst, &format!("it must be rewritten first ({how})"));
            }
            Support::No(why) => return self.refuse(inst, &why),
        }
        match &inst.op {
            Op::For {} => return self.for_loop(inst),
            Op::While {} => return self.while_loop(inst),
            Op::If {} => return self.branch(inst),
            Op::Load { map, inside, pad, masked } => {
                let view = self.view(inst.operands[0])?;
                let packed = view.dtype.bits() < 8;
                if packed || *masked || !Self::is_window(map, inside) || self.goes_back(&view, map) {
                    return self.load_elements(inst, map, inside, *pad);
                }
                // A window that a matrix unit reads is not clipped in front: its layout has no such place.
                let index = &inst.operands[1..];
                let behind = |d: usize| match self.slots.get(&index[d]) {
                    Some(Slot::Value(name)) => self.not_negative.contains(name),
                    _ => false,
                };
                let along = |d: usize| map.0.iter().flatten().any(|f| f.size > 1 && f.dim == Some(d));
                let clipped = self.matrix.contains(&inst.results[0])
                    && (0..inside.len()).any(|d| !inside[d] && along(d) && !behind(d));
                if clipped {
                    return self.refuse(inst, "a matrix unit's operand may begin before its memory");
                }
                return self.load(inst, map, inside, *pad);
            }
            Op::Store { map, inside, masked } => {
                let view = self.view(inst.operands[0])?;
                let back = self.goes_back(&view, map) || view.dtype.bits() < 8;
                return match *masked || !Self::is_window(map, inside) || Self::repeats(map) || back {
                    true => self.store_elements(inst, map, inside),
                    false => self.store(inst, map, inside),
                };
            }
            Op::Gather { pad, .. } => return self.gather(inst, *pad),
            Op::Scatter { .. } => return self.scatter(inst),
            Op::BufferLen {} => {
                let len = self.buffer(inst.operands[0])?.3;
                self.define(inst.results[0], Slot::Value(len));
                return Ok(());
            }
            Op::Prefetch {} => return Ok(()),
            Op::View { rank } => {
                let (name, ty, dtype, _) = self.buffer(inst.operands[0])?;
                let rest = inst.operands[1..].iter().map(|&v| self.scalar(v)).collect::<Text<Vec<_>>>()?;
                let view = ViewSlot {
                    buffer: name,
                    ty,
                    dtype,
                    offset: rest[0].clone(),
                    dims: rest[1..1 + rank].to_vec(),
                    strides: rest[1 + rank..].to_vec(),
                };
                self.define(inst.results[0], Slot::View(view));
                return Ok(());
            }
            Op::Alloc { dtype, len } => {
                let (name, ty) = (self.fresh(), format!("memref<{len}x{}>", mlir(*dtype)));
                self.line(format!("{name} = memref.alloc() : {ty}"));
                let len = self.int(*len as i64);
                self.define(inst.results[0], Slot::Buffer { name, ty, dtype: *dtype, len });
                return Ok(());
            }
            Op::Reduce { combiner, dims }
                if combiner.arity() == 2
                    || matches!(combiner, Combiner::Max | Combiner::Min)
                        && self.dtype(inst.operands[0]).is_int()
                        && !self.dtype(inst.operands[0]).is_signed() =>
            {
                return self.combine_elements(inst, *combiner, dims, None);
            }
            Op::Reduce { combiner, dims } => return self.reduce(inst, *combiner, dims),
            Op::Scan { combiner, dim, reverse } if !matches!(combiner, Combiner::Add | Combiner::Mul) => {
                return self.combine_elements(inst, *combiner, &[*dim], Some(*reverse));
            }
            Op::TakeAlong { dim } => return self.take_along(inst, *dim),
            Op::Binary(Binary::Div)
                if self.dtype(inst.results[0]).is_int()
                    && !self.shape(inst.results[0]).is_empty()
                    && !legal::divides(self.dtype(inst.results[0]), self.chip) =>
            {
                return self.quotients(inst);
            }
            _ => {}
        }
        let ops = inst.operands.iter().map(|&v| self.scalar(v)).collect::<Text<Vec<_>>>()?;
        let result = inst.results[0];
        let name = self.value(inst, &ops)?;
        self.define(result, Slot::Value(name));
        Ok(())
    }

    /// An instruction of one result and no region.
    fn value(&mut self, inst: &Inst, ops: &[String]) -> Text<String> {
        let result = inst.results[0];
        let (ty, shape) = (self.ty(result), self.shape(result));
        let d = inst.operands.first().map_or(DType::Bool, |&v| self.dtype(v));
        let from = inst.operands.first().map_or_else(String::new, |&v| self.ty(v));
        let from_shape = inst.operands.first().map_or_else(Vec::new, |&v| self.shape(v));
        let name = self.fresh();
        match &inst.op {
            Op::Unary(u) => self.unary(inst, *u, d, &ops[0], &ty, &name)?,
            Op::Binary(b) => return self.binary(*b, d, &shape, &ops[0], &ops[1], &ty),
            Op::Compare(c) => {
                let (op, p) = compare(*c, d);
                // One chip's compiler compares such a tile's one integer, and fails on what it makes of that.
                let mut ops = ops.to_vec();
                if legal::is_950(self.chip) && !shape.is_empty() {
                    for x in &mut ops {
                        if self.repeated.contains(x) {
                            *x = self.dense(x, &from);
                        }
                    }
                }
                self.line(format!("{name} = arith.{op} {p}, {}, {} : {from}", ops[0], ops[1]));
                return Ok(self.short_truths(name, d, &shape));
            }
            // One chip's compiler gives other bytes than 0 and 1.
            Op::Select {}
                if self.dtype(result).is_bool() && from_shape == shape && legal::is_950(self.chip) =>
            {
                let [c, a, b] = [0, 1, 2].map(|i| ops[i].as_str());
                let d = DType::Bool;
                let taken = self.binary(Binary::And, d, &shape, c, a, &ty)?;
                self.unary(inst, Unary::Not, d, c, &ty, &name)?;
                let left = self.binary(Binary::And, d, &shape, &name, b, &ty)?;
                return self.binary(Binary::Or, d, &shape, &taken, &left, &ty);
            }
            Op::Select {} => {
                let long = mlir(self.dtype(result)) == "i64";
                let own;
                let ops = if self.splits_truths(&shape) && long && !from_shape.is_empty() {
                    own = [self.long_truths(&ops[0], &shape), ops[1].clone(), ops[2].clone()];
                    &own[..]
                } else {
                    ops
                };
                let condition = if from_shape == shape { String::new() } else { "i1, ".to_string() };
                let condition =
                    if condition.is_empty() && !shape.is_empty() { format!("{from}, ") } else { condition };
                self.line(format!(
                    "{name} = arith.select {}, {}, {} : {condition}{ty}",
                    ops[0], ops[1], ops[2]
                ));
            }
            Op::Full { dtype, value, .. } => return Ok(self.full(result, *dtype, &shape, *value, &ty)),
            Op::Iota { dtype, dim, .. } => return Ok(self.iota(*dtype, &shape, *dim)),
            Op::ProgramId { axis } | Op::NumPrograms { axis } => {
                let kind = if matches!(inst.op, Op::ProgramId { .. }) { "p" } else { "g" };
                let axis = ["x", "y", "z"][*axis];
                self.line(format!("{name} = arith.extsi %{kind}{axis} : i32 to i64"));
                self.not_negative.insert(name.clone());
            }
            Op::Cast { to, .. } => return self.cast(inst, d, *to, &ops[0], &from, &ty),
            Op::Bitcast { to } => {
                if element(d) == element(*to) {
                    return Ok(ops[0].clone());
                }
                // Truth values are bytes of 0 and 1.
                if to.is_bool() && mlir(d) == "i8" {
                    let t = self.truth_values(ops[0].clone(), DType::Bool, &shape);
                    self.read_as.remove(&t);
                    return Ok(t);
                }
                if d.is_bool() && mlir(*to) == "i8" {
                    return Ok(self.bytes_of(ops[0].clone(), d, &shape));
                }
                let (x, from) = match d.is_bool() {
                    true => (self.bytes_of(ops[0].clone(), d, &shape), from.replace("i1", "i8")),
                    false => (ops[0].clone(), from),
                };
                let to_bool = to.is_bool();
                let to_ty = if to_bool { ty.replace("i1", "i8") } else { ty };
                self.line(format!("{name} = arith.bitcast {x} : {from} to {to_ty}"));
                if to_bool {
                    let t = self.truth_values(name, DType::Bool, &shape);
                    self.read_as.remove(&t);
                    return Ok(t);
                }
            }
            Op::Broadcast { .. } => return Ok(self.broadcast(inst, &ops[0], &shape)),
            Op::Reshape { .. } => {
                let core = |s: &[usize]| s.iter().copied().filter(|&n| n != 1).collect::<Vec<_>>();
                if core(&from_shape) == core(&shape) {
                    let source = self.squeezed.get(&inst.operands[0]).cloned();
                    let source = source.unwrap_or((ops[0].clone(), from_shape.clone()));
                    self.squeezed.insert(result, source);
                }
                let part = self.parts_lie_open(inst.operands[0]) && core(&from_shape) != core(&shape);
                let source = if part { self.dense(&ops[0], &from) } else { ops[0].clone() };
                return Ok(self.reshaped(&source, &element(d), &from_shape, &shape));
            }
            Op::Permute { perm } => {
                self.permute_lay(inst.operands[0], result, perm);
                let empty = self.empty(&ty);
                let p = perm.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
                self.line(format!(
                    "{name} = linalg.transpose ins({} : {from}) outs({empty} : {ty}) permutation = [{p}]",
                    ops[0]
                ));
            }
            Op::Extract { offset, .. } => {
                // Parts of products are copied as they are.
                if self.matrix.is_empty() {
                    self.parts.insert(result);
                }
                let join = |v: &[usize]| v.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
                let ones = vec!["1"; shape.len()].join(", ");
                self.line(format!(
                    "{name} = tensor.extract_slice {}[{}] [{}] [{ones}] : {from} to {ty}",
                    ops[0],
                    join(offset),
                    join(&shape)
                ));
            }
            Op::Concat { dim } => {
                let tys = inst.operands.iter().map(|&v| self.ty(v)).collect::<Vec<_>>().join(", ");
                self.line(format!("{name} = tensor.concat dim({dim}) {} : ({tys}) -> {ty}", ops.join(", ")));
            }
            Op::Scan { combiner, dim, reverse } => {
                let op = if *combiner == Combiner::Add { "cumsum" } else { "cumprod" };
                self.line(format!(
                    "{name} = hfusion.{op} {} : {from} cum_dims = [{dim}] reverse = {reverse} -> {ty}",
                    ops[0]
                ));
            }
            Op::Mma {} if self.loses_padding(inst.operands[1], inst.operands[2]) => {
                return self.refuse(inst, "a transposed operand beside one padded along the summed dim");
            }
            Op::Mma {} => {
                let (a, b) = (self.ty(inst.operands[1]), self.ty(inst.operands[2]));
                self.line(format!(
                    "{name} = linalg.matmul ins({}, {} : {a}, {b}) outs({} : {ty}) -> {ty}",
                    ops[1], ops[2], ops[0]
                ));
            }
            _ => return self.internal("an instruction without a translation"),
        }
        Ok(name)
    }

    pub(crate) fn empty(&mut self, ty: &str) -> String {
        let name = self.fresh();
        self.line(format!("{name} = tensor.empty() : {ty}"));
        name
    }

    fn full(&mut self, v: Val, d: DType, shape: &[usize], value: Num, ty: &str) -> String {
        let literal = constant(d, value);
        if shape.is_empty() {
            if d == DType::I64 {
                return self.int(value.to_i128() as i64);
            }
            let name = self.fresh();
            self.line(format!("{name} = arith.constant {literal} : {}", element(d)));
            return name;
        }
        if self.filled.contains(&v) {
            let scalar = self.fresh();
            self.line(format!("{scalar} = arith.constant {literal} : {}", element(d)));
            return self.fill(&scalar, &element(d), ty);
        }
        let name = self.fresh();
        self.line(format!("{name} = arith.constant dense<{literal}> : {ty}"));
        if d.is_int() {
            self.splats.insert(name.clone(), value.to_i128());
        }
        name
    }

    pub(crate) fn fill(&mut self, scalar: &str, element: &str, ty: &str) -> String {
        let (empty, name) = (self.empty(ty), self.fresh());
        self.line(format!("{name} = linalg.fill ins({scalar} : {element}) outs({empty} : {ty}) -> {ty}"));
        name
    }

    /// Notes a tile of one integer.
    pub(crate) fn repeat(&mut self, d: DType, t: &str) {
        if d.is_int() && !d.is_bool() {
            self.repeated.insert(t.to_string());
        }
    }

    fn iota(&mut self, d: DType, shape: &[usize], dim: usize) -> String {
        if shape.is_empty() {
            return self.int(0);
        }
        if shape[dim] == 1 {
            let (zero, ty) = (self.fresh(), ty_text(d, shape));
            self.line(format!("{zero} = arith.constant 0 : {}", element(d)));
            return self.fill(&zero, &element(d), &ty);
        }
        // Along one dim, then repeated along the others.
        // One chip counts in no less than 16 bits.
        let narrow = mlir(d) == "i8";
        let (line, counted) =
            (ty_text(d, &shape[dim..=dim]), ty_text(if narrow { DType::I16 } else { d }, &shape[dim..=dim]));
        let empty = self.empty(&counted);
        let (zero, one, mut name) = (self.index_constant(0), self.index_constant(1), self.fresh());
        self.line(format!(
            "{name} = hfusion.arange offset[{zero}] strides[{one}] outs({empty} : {counted}) -> {counted}"
        ));
        if narrow {
            let cut = self.fresh();
            self.line(format!("{cut} = arith.trunci {name} : {counted} to {line}"));
            name = cut;
        }
        let others: Vec<String> = (0..shape.len()).filter(|i| *i != dim).map(|i| i.to_string()).collect();
        if others.is_empty() {
            return name;
        }
        if shape.iter().product::<usize>() == shape[dim] {
            return self.reshaped(&name, &element(d), &shape[dim..=dim], shape);
        }
        let ty = ty_text(d, shape);
        let (empty, wide) = (self.empty(&ty), self.fresh());
        self.line(format!(
            "{wide} = linalg.broadcast ins({name} : {line}) outs({empty} : {ty}) dimensions = [{}]",
            others.join(", ")
        ));
        wide
    }

    fn broadcast(&mut self, inst: &Inst, x: &str, shape: &[usize]) -> String {
        let source = inst.operands[0];
        let d = self.dtype(source);
        let from = self.shape(source);
        let ty = ty_text(d, shape);
        if from.iter().all(|&n| n == 1) {
            let scalar = self.reshaped(x, &element(d), &from, &[]);
            let t = self.fill(&scalar, &element(d), &ty);
            self.repeat(d, &t);
            return t;
        }
        // Dims of 1 that grow go, and come back with the new ones.
        let skip = shape.len() - from.len();
        let kept: Vec<usize> = (0..from.len()).filter(|&i| from[i] == shape[skip + i]).collect();
        let inner: Vec<usize> = kept.iter().map(|&i| from[i]).collect();
        let new: Vec<String> = (0..shape.len())
            .filter(|i| *i < skip || !kept.contains(&(i - skip)))
            .map(|i| i.to_string())
            .collect();
        if new.is_empty() {
            return x.to_string();
        }
        let x = match self.squeezed.get(&source).cloned() {
            Some((name, s)) if s == inner => name,
            Some((name, s)) => self.reshaped(&name, &element(d), &s, &inner),
            None => self.reshaped(x, &element(d), &from, &inner),
        };
        let (empty, name) = (self.empty(&ty), self.fresh());
        self.line(format!(
            "{name} = linalg.broadcast ins({x} : {}) outs({empty} : {ty}) dimensions = [{}]",
            ty_text(d, &inner),
            new.join(", ")
        ));
        name
    }

    fn reduce(&mut self, inst: &Inst, combiner: Combiner, dims: &[usize]) -> Text<()> {
        let from = self.shape(inst.operands[0]);
        let kept: Vec<usize> = (0..from.len()).filter(|i| !dims.contains(i)).map(|i| from[i]).collect();
        let list = dims.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        // A result of rank 0 is a tensor of rank 0 first.
        let tensor = |d: DType| format!("tensor<{}>", shaped(&kept, &element(d)));
        let mut inits = Vec::new();
        let tys: Vec<DType> = inst.operands.iter().map(|&v| self.dtype(v)).collect();
        for (i, &d) in tys.iter().enumerate() {
            let value = if i == 0 { combiner.identity(d) } else { Num::Int(0) };
            let scalar = self.fresh();
            self.line(format!("{scalar} = arith.constant {} : {}", constant(d, value), element(d)));
            let init = self.fill(&scalar, &element(d), &tensor(d));
            inits.push(init);
        }
        let ops = inst.operands.iter().map(|&v| self.scalar(v)).collect::<Text<Vec<_>>>()?;
        let in_tys = inst.operands.iter().map(|&v| self.ty(v)).collect::<Vec<_>>().join(", ");
        let out_tys = tys.iter().map(|&d| tensor(d)).collect::<Vec<_>>().join(", ");
        let name = self.fresh();
        let Some(b) = combiner.binary() else { return self.internal("a combiner without an operation") };
        let v = element(tys[0]);
        self.line(format!(
            "{name} = linalg.reduce ins({} : {in_tys}) outs({} : {out_tys}) dimensions = [{list}]",
            ops[0], inits[0]
        ));
        self.line(format!("  ({name}a: {v}, {name}b: {v}) {{"));
        self.depth += 2;
        let r = self.binary(b, tys[0], &[], &format!("{name}a"), &format!("{name}b"), &v)?;
        self.line(format!("linalg.yield {r} : {v} }}"));
        self.depth -= 2;
        for (k, &r) in inst.results.iter().enumerate() {
            let own = if inst.results.len() > 1 { format!("{name}#{k}") } else { name.clone() };
            let own = if kept.is_empty() {
                let s = self.fresh();
                self.line(format!("{s} = tensor.extract {own}[] : {}", tensor(tys[k])));
                s
            } else {
                own
            };
            self.define(r, Slot::Value(own));
        }
        Ok(())
    }
}
