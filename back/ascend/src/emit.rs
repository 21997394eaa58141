//! A tile kernel as MLIR text.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

use tongtu_chip::Chip;
use tongtu_plan::backend::{CompileError, Support};
use tongtu_tensor::scalar::{Binary, Compare, Unary};
use tongtu_tensor::{Combiner, DType, Num, Overflow};
use tongtu_tile::{Block, Inst, Kernel, Op, ParamKind, Ty, Val};

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

    // Arithmetic on i64 scalars.

    pub(crate) fn int(&mut self, value: i64) -> String {
        let name = self.fresh();
        self.line(format!("{name} = arith.constant {value} : i64"));
        self.known.insert(name.clone(), value);
        if value >= 0 {
            self.not_negative.insert(name.clone());
        }
        name
    }
    pub(crate) fn int_op(&mut self, op: &str, a: &str, b: &str) -> String {
        if let (Some(&x), Some(&y)) = (self.known.get(a), self.known.get(b)) {
            let folded = match op {
                "minsi" => Some(x.min(y)),
                "maxsi" => Some(x.max(y)),
                "divsi" => x.checked_div(y),
                "remsi" => x.checked_rem(y),
                _ => None,
            };
            if let Some(r) = folded {
                return self.int(r);
            }
        }
        let name = self.fresh();
        self.line(format!("{name} = arith.{op} {a}, {b} : i64"));
        let both = self.not_negative.contains(a) && self.not_negative.contains(b);
        let either = self.not_negative.contains(a) || self.not_negative.contains(b);
        let positive = match op {
            "addi" | "muli" | "minsi" | "divsi" | "remsi" | "ceildivsi" => both,
            "maxsi" => either,
            _ => false,
        };
        if positive {
            self.not_negative.insert(name.clone());
        }
        name
    }
    pub(crate) fn int_add(&mut self, a: &str, b: &str) -> String {
        match (self.known.get(a).copied(), self.known.get(b).copied()) {
            (Some(x), Some(y)) => self.int(x.wrapping_add(y)),
            (Some(0), None) => b.to_string(),
            (None, Some(0)) => a.to_string(),
            _ => self.int_op("addi", a, b),
        }
    }
    pub(crate) fn int_sub(&mut self, a: &str, b: &str) -> String {
        match (self.known.get(a).copied(), self.known.get(b).copied()) {
            (Some(x), Some(y)) => self.int(x.wrapping_sub(y)),
            (None, Some(0)) => a.to_string(),
            _ => self.int_op("subi", a, b),
        }
    }
    pub(crate) fn int_mul(&mut self, a: &str, b: &str) -> String {
        match (self.known.get(a).copied(), self.known.get(b).copied()) {
            (Some(x), Some(y)) => self.int(x.wrapping_mul(y)),
            (Some(1), None) => b.to_string(),
            (None, Some(1)) => a.to_string(),
            (Some(0), _) | (_, Some(0)) => self.int(0),
            _ => self.int_op("muli", a, b),
        }
    }
    /// `ceil(a / b)` for b above 0 and any a; for a below 0 any value not above 0.
    pub(crate) fn int_ceil_div(&mut self, a: &str, b: &str) -> String {
        match self.known.get(b).copied() {
            Some(1) => a.to_string(),
            Some(k) => {
                let more = self.int(k - 1);
                let sum = self.int_add(a, &more);
                self.int_op("divsi", &sum, b)
            }
            None => self.int_op("ceildivsi", a, b),
        }
    }
    pub(crate) fn index(&mut self, a: &str) -> String {
        let name = self.fresh();
        self.line(format!("{name} = arith.index_cast {a} : i64 to index"));
        name
    }
    /// An index value or a number as i64.
    pub(crate) fn as_int(&mut self, a: &str) -> String {
        match a.parse() {
            Ok(k) => self.int(k),
            Err(_) => {
                let name = self.fresh();
                self.line(format!("{name} = arith.index_cast {a} : index to i64"));
                name
            }
        }
    }
    pub(crate) fn pred(&mut self, p: &str, a: &str, b: &str) -> String {
        let name = self.fresh();
        self.line(format!("{name} = arith.cmpi {p}, {a}, {b} : i64"));
        name
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

    /// Bytes read from memory as truth values.
    pub(crate) fn truth_values(&mut self, t: String, d: DType, shape: &[usize]) -> String {
        if !d.is_bool() {
            return t;
        }
        let bytes =
            if shape.is_empty() { "i8".to_string() } else { format!("tensor<{}>", shaped(shape, "i8")) };
        let (zero, name) = (self.fresh(), self.fresh());
        let literal = if shape.is_empty() { "0".to_string() } else { "dense<0>".to_string() };
        self.line(format!("{zero} = arith.constant {literal} : {bytes}"));
        self.line(format!("{name} = arith.cmpi ne, {t}, {zero} : {bytes}"));
        self.read_as.insert(name.clone(), t);
        name
    }

    /// Whether the truth values of long integers are not those of others: on one chip they are bytes for some of its operations.
    fn splits_truths(&self, shape: &[usize]) -> bool {
        !shape.is_empty() && !legal::is_950(self.chip)
    }

    /// Truth values of a comparison as those of any other.
    fn short_truths(&mut self, t: String, of: DType, shape: &[usize]) -> String {
        if mlir(of) != "i64" || !self.splits_truths(shape) {
            return t;
        }
        let (long, int) =
            (format!("tensor<{}>", shaped(shape, "i64")), format!("tensor<{}>", shaped(shape, "i32")));
        let [one, zero, chosen, cut, none, name] = [(); 6].map(|()| self.fresh());
        self.line(format!("{one} = arith.constant dense<1> : {long}"));
        self.line(format!("{zero} = arith.constant dense<0> : {long}"));
        self.line(format!(
            "{chosen} = arith.select {t}, {one}, {zero} : {}, {long}",
            ty_text(DType::Bool, shape)
        ));
        self.line(format!("{cut} = arith.trunci {chosen} : {long} to {int}"));
        self.line(format!("{none} = arith.constant dense<0> : {int}"));
        self.line(format!("{name} = arith.cmpi ne, {cut}, {none} : {int}"));
        self.long.insert(name.clone(), t);
        name
    }

    /// Truth values to choose long integers by.
    fn long_truths(&mut self, t: &str, shape: &[usize]) -> String {
        if let Some(own) = self.long.get(t) {
            return own.clone();
        }
        let (long, int) =
            (format!("tensor<{}>", shaped(shape, "i64")), format!("tensor<{}>", shaped(shape, "i32")));
        let [wide, far, zero, name] = [(); 4].map(|()| self.fresh());
        self.line(format!("{wide} = arith.extui {t} : {} to {int}", ty_text(DType::Bool, shape)));
        self.line(format!("{far} = arith.extsi {wide} : {int} to {long}"));
        self.line(format!("{zero} = arith.constant dense<0> : {long}"));
        self.line(format!("{name} = arith.cmpi ne, {far}, {zero} : {long}"));
        name
    }

    /// Truth values as bytes.
    pub(crate) fn bytes_of(&mut self, t: String, d: DType, shape: &[usize]) -> String {
        if !d.is_bool() {
            return t;
        }
        if let Some(bytes) = self.read_as.get(&t) {
            return bytes.clone();
        }
        let bytes =
            if shape.is_empty() { "i8".to_string() } else { format!("tensor<{}>", shaped(shape, "i8")) };
        let name = self.fresh();
        self.line(format!("{name} = arith.extui {t} : {} to {bytes}", ty_text(d, shape)));
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

    fn unary(&mut self, inst: &Inst, u: Unary, d: DType, x: &str, ty: &str, name: &str) -> Text<()> {
        let shape = self.shape(inst.operands[0]);
        let from = ty_text(d, &shape);
        let text = match u {
            Unary::Neg if d.is_float() => format!("arith.negf {x} : {ty}"),
            Unary::Abs if d.is_float() => format!("math.absf {x} : {ty}"),
            Unary::Abs => format!("math.absi {x} : {ty}"),
            Unary::Neg | Unary::Not => {
                let (value, op) = match u {
                    Unary::Neg => (Num::Int(0), "subi"),
                    _ if d.is_bool() => (Num::Int(1), "xori"),
                    _ => (Num::Int(-1), "xori"),
                };
                let (c, k) = (self.fresh(), constant(d, value));
                let k = if shape.is_empty() { k } else { format!("dense<{k}>") };
                self.line(format!("{c} = arith.constant {k} : {ty}"));
                format!("arith.{op} {c}, {x} : {ty}")
            }
            Unary::IsNan => format!("arith.cmpf une, {x}, {x} : {from}"),
            u => format!("math.{} {x} : {ty}", u.name()),
        };
        self.line(format!("{name} = {text}"));
        Ok(())
    }

    pub(crate) fn binary(
        &mut self,
        b: Binary,
        d: DType,
        shape: &[usize],
        x: &str,
        y: &str,
        ty: &str,
    ) -> Text<String> {
        if shape.is_empty() && d == DType::I64 {
            match b {
                Binary::Add => return Ok(self.int_add(x, y)),
                Binary::Sub => return Ok(self.int_sub(x, y)),
                Binary::Mul => return Ok(self.int_mul(x, y)),
                Binary::Max => return Ok(self.int_op("maxsi", x, y)),
                Binary::Min => return Ok(self.int_op("minsi", x, y)),
                Binary::Div if self.known.get(y).is_some_and(|&k| k > 0) => {
                    return Ok(self.int_op("divsi", x, y));
                }
                _ => {}
            }
        }
        let (float, signed) = (d.is_float(), d.is_signed());
        let op = match b {
            Binary::Add if float => "addf",
            Binary::Sub if float => "subf",
            Binary::Mul if float => "mulf",
            Binary::Div if float => "divf",
            Binary::Max if float => "maximumf",
            Binary::Min if float => "minimumf",
            Binary::MaxNum if float => "maxnumf",
            Binary::MinNum if float => "minnumf",
            Binary::Add => "addi",
            Binary::Sub => "subi",
            Binary::Mul => "muli",
            Binary::Max | Binary::MaxNum => {
                if signed {
                    "maxsi"
                } else {
                    "maxui"
                }
            }
            Binary::Min | Binary::MinNum => {
                if signed {
                    "minsi"
                } else {
                    "minui"
                }
            }
            Binary::And => "andi",
            Binary::Or => "ori",
            Binary::Xor => "xori",
            Binary::Div | Binary::Shl | Binary::Shr => return Ok(self.guarded(b, d, shape, x, y, ty)),
            _ => return self.internal("a binary operation without a translation"),
        };
        let name = self.fresh();
        self.line(format!("{name} = arith.{op} {x}, {y} : {ty}"));
        Ok(name)
    }

    /// Division and shifts, which MLIR leaves undefined for some operands: those are replaced, and the result chosen.
    pub(crate) fn guarded(
        &mut self,
        b: Binary,
        d: DType,
        shape: &[usize],
        x: &str,
        y: &str,
        ty: &str,
    ) -> String {
        let constant_of = |e: &mut Self, n: i128| {
            let (name, k) = (e.fresh(), constant(d, Num::Int(n)));
            let k = if shape.is_empty() { k } else { format!("dense<{k}>") };
            e.line(format!("{name} = arith.constant {k} : {ty}"));
            name
        };
        let truth = ty_text(DType::Bool, shape);
        let select = |e: &mut Self, p: &str, a: &str, b: &str| {
            let name = e.fresh();
            let condition = if shape.is_empty() { String::new() } else { format!("{truth}, ") };
            e.line(format!("{name} = arith.select {p}, {a}, {b} : {condition}{ty}"));
            name
        };
        let plain = |e: &mut Self, op: &str, a: &str, b: &str| {
            let name = e.fresh();
            e.line(format!("{name} = arith.{op} {a}, {b} : {ty}"));
            name
        };
        let signed = d.is_signed();
        // One chip's compiler shifts the sign in where a tile is shifted logically: what comes in is masked out.
        let masks = !signed && !shape.is_empty() && self.chip.arch.contains("910B");
        let safe = match (b, self.splats.get(y).copied()) {
            (Binary::Div, Some(k)) if k > 0 && signed => Some("divsi"),
            (Binary::Div, Some(k)) if k > 0 => Some("divui"),
            (Binary::Shl, Some(k)) if (0..d.bits().into()).contains(&k) => Some("shli"),
            (Binary::Shr, Some(k)) if (0..d.bits().into()).contains(&k) => {
                if masks && k > 0 {
                    let mask = constant_of(self, (1 << (i128::from(d.bits()) - k)) - 1);
                    let r = plain(self, "shrsi", x, y);
                    return plain(self, "andi", &r, &mask);
                }
                Some(if signed { "shrsi" } else { "shrui" })
            }
            _ => None,
        };
        if let Some(op) = safe {
            return plain(self, op, x, y);
        }
        let zero = constant_of(self, 0);
        if b == Binary::Div {
            let one = constant_of(self, 1);
            let bad = plain(self, "cmpi eq,", y, &zero);
            let safe = select(self, &bad, &one, y);
            let q = if d.is_signed() {
                // x / -1 is -x, which wraps.
                let minus = constant_of(self, -1);
                let flips = plain(self, "cmpi eq,", y, &minus);
                let safe = select(self, &flips, &one, &safe);
                let q = plain(self, "divsi", x, &safe);
                let negated = plain(self, "subi", &zero, x);
                select(self, &flips, &negated, &q)
            } else {
                plain(self, "divui", x, &safe)
            };
            return select(self, &bad, &zero, &q);
        }
        let width = constant_of(self, d.bits().into());
        // Amounts of half the type's range and more are negative here, so that no unsigned comparison is needed.
        let (above, below) = (plain(self, "cmpi sge,", y, &zero), plain(self, "cmpi slt,", y, &width));
        let in_range = self.fresh();
        self.line(format!("{in_range} = arith.andi {above}, {below} : {truth}"));
        let last = constant_of(self, i128::from(d.bits()) - 1);
        let (op, other) = match b {
            Binary::Shl => ("shli", &zero),
            _ if d.is_signed() => ("shrsi", &last),
            _ => ("shrui", &zero),
        };
        let safe = select(self, &in_range, y, if op == "shrsi" { other } else { &zero });
        if op == "shrui" && masks {
            let (ones, one) = (constant_of(self, -1), constant_of(self, 1));
            let r = plain(self, "shrsi", x, &safe);
            let left = plain(self, "subi", &last, &safe);
            let high = plain(self, "shli", &ones, &left);
            let high = plain(self, "shli", &high, &one);
            let mask = plain(self, "xori", &high, &ones);
            let r = plain(self, "andi", &r, &mask);
            return select(self, &in_range, &r, &zero);
        }
        let r = plain(self, op, x, &safe);
        if op == "shrsi" { r } else { select(self, &in_range, &r, &zero) }
    }

    fn cast(
        &mut self,
        inst: &Inst,
        from: DType,
        to: DType,
        x: &str,
        from_ty: &str,
        ty: &str,
    ) -> Text<String> {
        // What only changes the name of a part is a part.
        if mlir(from) == mlir(to) && self.parts.contains(&inst.operands[0]) {
            self.parts.insert(inst.results[0]);
        }
        if from == to {
            return Ok(x.to_string());
        }
        let shape = self.shape(inst.results[0]);
        let name = self.fresh();
        if to.is_bool() {
            let (zero, k) = (self.fresh(), constant(from, Num::Int(0)));
            let k = if shape.is_empty() { k } else { format!("dense<{k}>") };
            self.line(format!("{zero} = arith.constant {k} : {from_ty}"));
            let op = if from.is_float() { "cmpf une," } else { "cmpi ne," };
            self.line(format!("{name} = arith.{op} {x}, {zero} : {from_ty}"));
            if self.truths.contains(&inst.operands[0]) {
                self.read_as.insert(name.clone(), x.to_string());
            }
            return Ok(self.short_truths(name, from, &shape));
        }
        if from.is_bool() && mlir(to) == "i8" {
            return Ok(self.bytes_of(x.to_string(), from, &shape));
        }
        let op = match (from.is_float(), to.is_float()) {
            (true, true) if from.bits() < to.bits() => "extf",
            (true, true) if from.bits() > to.bits() => "truncf",
            (true, true) => {
                // Types of equal width: through f32.
                let middle = ty_text(DType::F32, &shape);
                let wide = self.fresh();
                self.line(format!("{wide} = arith.extf {x} : {from_ty} to {middle}"));
                self.line(format!("{name} = arith.truncf {wide} : {middle} to {ty}"));
                return Ok(name);
            }
            (true, false) => {
                if to.is_signed() {
                    "fptosi"
                } else {
                    "fptoui"
                }
            }
            (false, true) => {
                if from.is_signed() {
                    "sitofp"
                } else {
                    "uitofp"
                }
            }
            (false, false) => match element(from).len().cmp(&element(to).len()) {
                _ if element(from) == element(to) => return Ok(x.to_string()),
                _ if !from.is_bool() && from.bits() > to.bits() => "trunci",
                _ if from.is_signed() => "extsi",
                _ => "extui",
            },
        };
        // Some tiles are extended with their sign all the same.
        if op == "extui" && !from.is_bool() && !shape.is_empty() {
            let (wide, mask) = (self.fresh(), self.fresh());
            let bits = (1i128 << from.bits()) - 1;
            self.line(format!("{wide} = arith.extsi {x} : {from_ty} to {ty}"));
            self.line(format!("{mask} = arith.constant dense<{}> : {ty}", constant(to, Num::Int(bits))));
            self.line(format!("{name} = arith.andi {wide}, {mask} : {ty}"));
            return Ok(name);
        }
        self.line(format!("{name} = arith.{op} {x} : {from_ty} to {ty}"));
        Ok(name)
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

    /// Defines a region's parameters and gives `name = init` pairs.
    fn carried(&mut self, params: &[Val], init: &[String]) -> (String, String) {
        let mut pairs = Vec::new();
        let mut tys = Vec::new();
        for (&p, i) in params.iter().zip(init) {
            let name = self.fresh();
            pairs.push(format!("{name} = {i}"));
            tys.push(self.ty(p));
            self.define(p, Slot::Value(name));
        }
        (pairs.join(", "), tys.join(", "))
    }

    fn results(&mut self, inst: &Inst, name: &str) {
        for (k, &r) in inst.results.iter().enumerate() {
            let own = if inst.results.len() > 1 { format!("{name}#{k}") } else { name.to_string() };
            self.define(r, Slot::Value(own));
        }
    }

    fn head(&mut self, inst: &Inst) -> (String, String) {
        let name = self.fresh();
        let head = match inst.results.len() {
            0 => String::new(),
            1 => format!("{name} = "),
            n => format!("{name}:{n} = "),
        };
        (name, head)
    }

    fn yielded(&self, vals: &[Val]) -> Text<(String, String)> {
        let names = vals.iter().map(|&v| self.scalar(v)).collect::<Text<Vec<_>>>()?;
        let tys = vals.iter().map(|&v| self.ty(v)).collect::<Vec<_>>();
        Ok((names.join(", "), tys.join(", ")))
    }

    fn for_loop(&mut self, inst: &Inst) -> Text<()> {
        let block = &inst.blocks[0];
        let ops = inst.operands.iter().map(|&v| self.scalar(v)).collect::<Text<Vec<_>>>()?;
        let low = self.not_negative.contains(&ops[0]);
        let counted = !self.is_plain(&ops[0], &ops[1], &ops[2]);
        let bounds = if counted {
            let turns = self.turns(&ops[0], &ops[1], &ops[2]);
            [self.index_constant(0), self.index(&turns), self.index_constant(1)]
        } else {
            [self.index(&ops[0]), self.index(&ops[1]), self.index(&ops[2])]
        };
        let (name, head) = self.head(inst);
        let i = self.fresh();
        let (pairs, tys) = self.carried(&block.params[1..], &ops[3..]);
        let carry = if pairs.is_empty() { String::new() } else { format!(" iter_args({pairs}) -> ({tys})") };
        self.line(format!("{head}scf.for {i} = {} to {} step {}{carry} {{", bounds[0], bounds[1], bounds[2]));
        self.depth += 1;
        let mut at = self.fresh();
        self.line(format!("{at} = arith.index_cast {i} : index to i64"));
        if counted {
            let far = self.int_op("muli", &at, &ops[2]);
            at = self.int_op("addi", &ops[0], &far);
        }
        if low {
            self.not_negative.insert(at.clone());
        }
        self.define(block.params[0], Slot::Value(at));
        self.block(block)?;
        if !inst.results.is_empty() {
            // Tiles that change places: one would be written before the other is read.
            let moved =
                |(k, v): (usize, &Val)| block.params[1..].iter().position(|p| p == v).is_some_and(|p| p != k);
            let moves: Vec<Val> =
                block.results.iter().enumerate().filter(|x| moved(*x)).map(|x| *x.1).collect();
            for v in moves {
                if self.shape(v).is_empty() {
                    continue;
                }
                let (t, ty) = (self.scalar(v)?, self.ty(v));
                let own = self.dense(&t, &ty);
                self.define(v, Slot::Value(own));
            }
            let (names, tys) = self.yielded(&block.results)?;
            self.line(format!("scf.yield {names} : {tys}"));
        }
        self.depth -= 1;
        self.line("}".to_string());
        self.results(inst, &name);
        Ok(())
    }

    /// Whether a loop's variable stays within its type when it passes the end, or would after 2^40 turns.
    fn is_plain(&self, lo: &str, hi: &str, step: &str) -> bool {
        let [lo, hi, step] = [lo, hi, step].map(|v| self.known.get(v).copied());
        match step {
            Some(1) => true,
            Some(n @ 2..=0x10_0000) => {
                lo.is_some_and(|lo| lo < 1 << 62) || hi.is_some_and(|hi| hi < i64::MAX - n)
            }
            _ => false,
        }
    }

    /// How often a loop turns.
    fn turns(&mut self, lo: &str, hi: &str, step: &str) -> String {
        // The way to the last turn at most, as a number without sign; half of it is divided, then what is left.
        let (zero, one) = (self.int(0), self.int(1));
        let way = self.int_op("subi", hi, lo);
        let way = self.int_op("subi", &way, &one);
        let half = self.int_op("shrui", &way, &one);
        let half = self.int_op("divsi", &half, step);
        let twice = self.int_op("shli", &half, &one);
        let done = self.int_op("muli", &twice, step);
        let left = self.int_op("subi", &way, &done);
        let (some, wraps) = (self.pred("sge", &left, step), self.pred("slt", &left, &zero));
        let more = self.fresh();
        self.line(format!("{more} = arith.ori {some}, {wraps} : i1"));
        let more_int = self.fresh();
        self.line(format!("{more_int} = arith.extui {more} : i1 to i64"));
        let turns = self.int_op("addi", &twice, &more_int);
        let turns = self.int_op("addi", &turns, &one);
        let (any, n) = (self.pred("slt", lo, hi), self.fresh());
        self.line(format!("{n} = arith.select {any}, {turns}, {zero} : i64"));
        n
    }

    /// The condition and scalars are carried as values. Carried tiles live in memory, for the vendor's compiler fails on them.
    fn while_loop(&mut self, inst: &Inst) -> Text<()> {
        let block = &inst.blocks[0];
        let ops = inst.operands.iter().map(|&v| self.scalar(v)).collect::<Text<Vec<_>>>()?;
        let (mut homes, mut init, mut tys) = (Vec::new(), vec![ops[0].clone()], vec!["i1".to_string()]);
        for (&p, o) in block.params.iter().zip(&ops[1..]) {
            let shape = self.shape(p);
            if shape.is_empty() {
                init.push(o.clone());
                tys.push(self.ty(p));
                homes.push(None);
                continue;
            }
            let ty = format!("memref<{}>", shaped(&shape, &element(self.dtype(p))));
            let home = self.fresh();
            self.line(format!("{home} = memref.alloc() : {ty}"));
            self.put_home(o, &home, &self.ty(p), &ty);
            homes.push(Some((home, ty)));
        }
        let name = self.fresh();
        let names: Vec<String> = tys.iter().map(|_| self.fresh()).collect();
        let pairs: Vec<String> = names.iter().zip(&init).map(|(n, o)| format!("{n} = {o}")).collect();
        let tys_text = tys.join(", ");
        let count = if tys.len() > 1 { format!(":{}", tys.len()) } else { String::new() };
        self.line(format!(
            "{name}{count} = scf.while ({}) : ({tys_text}) -> ({tys_text}) {{",
            pairs.join(", ")
        ));
        self.line(format!("  scf.condition({}) {} : {tys_text}", names[0], names.join(", ")));
        self.line("} do {".to_string());
        let inner: Vec<String> = tys.iter().map(|_| self.fresh()).collect();
        let typed: Vec<String> = inner.iter().zip(&tys).map(|(p, t)| format!("{p}: {t}")).collect();
        self.line(format!("^bb0({}):", typed.join(", ")));
        self.depth += 1;
        let mut scalars = inner.into_iter().skip(1);
        for (&p, home) in block.params.iter().zip(&homes) {
            let value = match home {
                Some((home, ty)) => Some(self.take_home(home, ty)),
                None => scalars.next(),
            };
            if let Some(v) = value {
                self.define(p, Slot::Value(v));
            }
        }
        self.block(block)?;
        let mut out = vec![self.scalar(block.results[0])?];
        for (&r, home) in block.results[1..].iter().zip(&homes) {
            let value = self.scalar(r)?;
            match home {
                Some((home, ty)) => self.put_home(&value, home, &self.ty(r), ty),
                None => out.push(value),
            }
        }
        self.line(format!("scf.yield {} : {tys_text}", out.join(", ")));
        self.depth -= 1;
        self.line("}".to_string());
        let mut next = 1;
        for (&r, home) in inst.results.iter().zip(&homes) {
            let value = match home {
                Some((home, ty)) => self.take_home(home, ty),
                None => {
                    next += 1;
                    format!("{name}#{}", next - 1)
                }
            };
            self.define(r, Slot::Value(value));
        }
        Ok(())
    }

    /// A copy of a carried tile's memory as a tensor, for the memory is written before the tensor's last use.
    fn take_home(&mut self, home: &str, ty: &str) -> String {
        let (copy, t) = (self.fresh(), self.fresh());
        self.line(format!("{copy} = memref.alloc() : {ty}"));
        self.line(format!("memref.copy {home}, {copy} : {ty} to {ty}"));
        self.line(format!("{t} = bufferization.to_tensor {copy} restrict writable : {ty}"));
        t
    }

    pub(crate) fn put_home(&mut self, value: &str, home: &str, tensor: &str, ty: &str) {
        self.line(format!(
            "bufferization.materialize_in_destination {value} in writable {home} : ({tensor}, {ty}) -> ()"
        ));
    }

    fn branch(&mut self, inst: &Inst) -> Text<()> {
        let condition = self.scalar(inst.operands[0])?;
        let (name, head) = self.head(inst);
        let tys = inst.results.iter().map(|&r| self.ty(r)).collect::<Vec<_>>().join(", ");
        let arrow = if inst.results.is_empty() { String::new() } else { format!(" -> ({tys})") };
        self.line(format!("{head}scf.if {condition}{arrow} {{"));
        for (i, block) in inst.blocks.iter().enumerate() {
            if i > 0 {
                self.line("} else {".to_string());
            }
            self.depth += 1;
            self.block(block)?;
            if !inst.results.is_empty() {
                let (names, tys) = self.yielded(&block.results)?;
                self.line(format!("scf.yield {names} : {tys}"));
            }
            self.depth -= 1;
        }
        self.line("}".to_string());
        self.results(inst, &name);
        Ok(())
    }
}

fn compare(c: Compare, d: DType) -> (&'static str, &'static str) {
    if d.is_float() {
        return (
            "cmpf",
            match c {
                Compare::Eq => "oeq,",
                Compare::Ne => "une,",
                Compare::Lt => "olt,",
                Compare::Le => "ole,",
                Compare::Gt => "ogt,",
                Compare::Ge => "oge,",
            }
            .trim_end_matches(','),
        );
    }
    let p = match (c, d.is_signed()) {
        (Compare::Eq, _) => "eq",
        (Compare::Ne, _) => "ne",
        (Compare::Lt, true) => "slt",
        (Compare::Le, true) => "sle",
        (Compare::Gt, true) => "sgt",
        (Compare::Ge, true) => "sge",
        (Compare::Lt, false) => "ult",
        (Compare::Le, false) => "ule",
        (Compare::Gt, false) => "ugt",
        (Compare::Ge, false) => "uge",
    };
    ("cmpi", p)
}
