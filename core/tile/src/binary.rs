//! The binary form: the same programs as the text, a tenth of the size.
//!
//! All numbers are *varints* (7 bits a byte, low ones first, the high bit set on all but the last byte; no longer than needed) unless
//! said otherwise; *signed* ones are zigzag varints (`n` as `2n`, `-n` as `2n - 1`). What is written is the only encoding of a module:
//! reading and writing give the same bytes again. `docs/isa/binary.md` gives the layout byte by byte.
//!
//! Reading never panics, and takes no more memory than a constant times the bytes given; what it accepts is well-formed, not verified.

use std::collections::HashMap;
use std::sync::Arc;

use tongtu_tensor::{DType, Num};

use crate::error::TileError;
use crate::kernel::{Access, Block, Flags, Inst, Kernel, Module, Param, ParamKind, Val};
use crate::limits;
use crate::op::Op;
use crate::row::Version;
use crate::types::Ty;

/// The first bytes of every binary.
pub const MAGIC: [u8; 4] = *b"TILE";

type Read<T> = Result<T, TileError>;

/// The numbers of names, which never change their meaning.
pub(crate) mod codes {
    use crate::op::{Ordering, Scope};
    use tongtu_tensor::{Combiner, DType, Overflow, Rounding};

    macro_rules! codes {
        ($ty:ident $to:ident $from:ident { $($variant:ident = $code:literal),* $(,)? }) => {
            pub(crate) fn $to(x: $ty) -> u8 {
                match x { $($ty::$variant => $code,)* }
            }
            pub(crate) fn $from(code: u8) -> Option<$ty> {
                match code { $($code => Some($ty::$variant),)* _ => None }
            }
        };
    }

    codes!(DType dtype dtype_of {
        Bool = 1, I2 = 2, I4 = 3, I8 = 4, I16 = 5, I32 = 6, I64 = 7, U2 = 8, U4 = 9, U8 = 10, U16 = 11, U32 = 12, U64 = 13,
        F16 = 16, BF16 = 17, F32 = 18, F64 = 19, F8E4M3FN = 20, F8E4M3FNUZ = 21, F8E5M2 = 22, F8E5M2FNUZ = 23, F8E8M0 = 24,
        F6E2M3 = 25, F6E3M2 = 26, F4E2M1 = 27, HiF8 = 28,
    });
    codes!(Combiner combiner combiner_of {
        Add = 1, Mul = 2, Max = 3, Min = 4, And = 5, Or = 6, Xor = 7, ArgMax = 8, ArgMin = 9, ArgMaxLast = 10, ArgMinLast = 11,
        Replace = 12,
    });
    codes!(Overflow overflow overflow_of { Format = 0, Saturate = 1 });
    codes!(Rounding rounding rounding_of { NearestEven = 0, TowardZero = 1, Down = 2, Up = 3 });
    codes!(Ordering ordering ordering_of { Relaxed = 0, Acquire = 1, Release = 2, AcqRel = 3 });
    codes!(Scope scope scope_of { Device = 0, System = 1 });

    pub(crate) fn flag_of(code: u8) -> Option<bool> {
        match code {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

/// Bytes being written.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn byte(&mut self, b: u8) {
        self.bytes.push(b);
    }
    fn varint(&mut self, mut n: u128) {
        while n >= 128 {
            self.bytes.push(n as u8 | 128);
            n >>= 7;
        }
        self.bytes.push(n as u8);
    }
    pub(crate) fn size(&mut self, n: usize) {
        self.varint(n as u128);
    }
    pub(crate) fn signed(&mut self, n: i128) {
        self.varint(((n << 1) ^ (n >> 127)) as u128);
    }
    pub(crate) fn num(&mut self, n: Num) {
        match n {
            Num::Int(n) => {
                self.byte(0);
                self.signed(n);
            }
            Num::Float(x) => {
                self.byte(1);
                let x = if x.is_nan() { f64::NAN } else { x };
                self.bytes.extend(x.to_bits().to_le_bytes());
            }
        }
    }
}

/// Bytes being read.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    pub(crate) fn at(&self) -> usize {
        self.at
    }
    pub(crate) fn broken(&self, at: usize, detail: impl Into<String>) -> TileError {
        TileError::Binary { at, detail: detail.into() }
    }
    fn take(&mut self, n: usize) -> Read<&[u8]> {
        let end = self.at.checked_add(n).filter(|e| *e <= self.bytes.len());
        let end = end.ok_or_else(|| self.broken(self.at, "the file ends too early"))?;
        let out = &self.bytes[self.at..end];
        self.at = end;
        Ok(out)
    }
    fn byte(&mut self) -> Read<u8> {
        Ok(self.take(1)?[0])
    }
    fn varint(&mut self) -> Read<u128> {
        let start = self.at;
        let mut out = 0u128;
        for shift in (0..128).step_by(7) {
            let b = self.byte()?;
            let part = u128::from(b & 127);
            if shift > 0 && b == 0 || part << shift >> shift != part {
                return Err(self.broken(start, "a number is longer than it needs to be, or than 128 bits"));
            }
            out |= part << shift;
            if b < 128 {
                return Ok(out);
            }
        }
        Err(self.broken(start, "a number is longer than 128 bits"))
    }
    pub(crate) fn size(&mut self) -> Read<usize> {
        let start = self.at;
        let n = self.varint()?;
        usize::try_from(n).map_err(|_| self.broken(start, format!("{n} is too large")))
    }
    fn small(&mut self) -> Read<u32> {
        let start = self.at;
        let n = self.varint()?;
        u32::try_from(n).map_err(|_| self.broken(start, format!("{n} is too large")))
    }
    pub(crate) fn signed(&mut self) -> Read<i128> {
        let n = self.varint()?;
        Ok((n >> 1) as i128 ^ -((n & 1) as i128))
    }
    pub(crate) fn num(&mut self) -> Read<Num> {
        let start = self.at;
        match self.byte()? {
            0 => self.signed().map(Num::Int),
            1 => {
                let mut bits = [0; 8];
                bits.copy_from_slice(self.take(8)?);
                let x = f64::from_bits(u64::from_le_bytes(bits));
                if x.is_nan() && x.to_bits() != f64::NAN.to_bits() {
                    return Err(self.broken(start, "a NaN other than the canonical one"));
                }
                Ok(Num::Float(x))
            }
            tag => Err(self.broken(start, format!("a number of kind {tag}"))),
        }
    }
    /// A name by its number.
    pub(crate) fn code<T>(&mut self, what: &str, of: fn(u8) -> Option<T>) -> Read<T> {
        let start = self.at;
        let code = self.byte()?;
        of(code).ok_or_else(|| self.broken(start, format!("no {what} has number {code}")))
    }
    /// A count of things that take at least a byte each, so that it never exceeds what is left.
    fn count(&mut self) -> Read<usize> {
        let start = self.at;
        let n = self.size()?;
        if n > self.bytes.len() - self.at {
            return Err(
                self.broken(start, format!("a count of {n} with {} bytes left", self.bytes.len() - self.at))
            );
        }
        Ok(n)
    }
    /// A short list: dims, factors.
    pub(crate) fn list<T>(&mut self, each: impl Fn(&mut Self) -> Read<T>) -> Read<Vec<T>> {
        let start = self.at;
        let n = self.count()?;
        if n > limits::RANK {
            return Err(self.broken(start, format!("a list of {n}; at most {} are taken", limits::RANK)));
        }
        (0..n).map(|_| each(self)).collect()
    }
}

/// The version that a module needs: the newest of its instructions'.
pub fn version_needed(module: &Module) -> Version {
    fn block(b: &Block) -> Version {
        let inst = |i: &Inst| i.blocks.iter().map(block).fold(i.op.since(), Version::max);
        b.insts.iter().map(inst).fold(Version::OLDEST, Version::max)
    }
    module.kernels.iter().map(|k| block(&k.body)).fold(Version::OLDEST, Version::max)
}

/// Tables of what is written once and named by number after: strings and types, in the order of their first use.
struct Tables {
    strings: Vec<String>,
    string_index: HashMap<String, usize>,
    types: Vec<Ty>,
    type_index: HashMap<Ty, usize>,
}

impl Tables {
    fn string(&mut self, s: &str) -> usize {
        if let Some(&i) = self.string_index.get(s) {
            return i;
        }
        self.strings.push(s.to_string());
        self.string_index.insert(s.to_string(), self.strings.len() - 1);
        self.strings.len() - 1
    }
    fn ty(&mut self, ty: &Ty) -> usize {
        if let Some(&i) = self.type_index.get(ty) {
            return i;
        }
        self.types.push(ty.clone());
        self.type_index.insert(ty.clone(), self.types.len() - 1);
        self.types.len() - 1
    }
}

/// The binary form of a module. Values are renumbered in the order of their definitions, as by [`Kernel::compact`].
///
/// A module that [`verify`](crate::verify()) accepts reads back as its compact form.
pub fn to_bytes(module: &Module) -> Vec<u8> {
    let mut tables = Tables {
        strings: Vec::new(),
        string_index: HashMap::new(),
        types: Vec::new(),
        type_index: HashMap::new(),
    };
    let mut body = Writer::default();
    body.size(module.kernels.len());
    for k in &module.kernels {
        kernel(&mut body, &k.compact(), &mut tables);
    }
    let version = version_needed(module);
    let mut w = Writer::default();
    w.bytes.extend(MAGIC);
    w.varint(version.major.into());
    w.varint(version.minor.into());
    w.size(tables.strings.len());
    for s in &tables.strings {
        w.size(s.len());
        w.bytes.extend(s.as_bytes());
    }
    w.size(tables.types.len());
    for t in &tables.types {
        match t {
            Ty::Tile { dtype, shape } => {
                w.byte(0);
                w.byte(codes::dtype(*dtype));
                w.size(shape.len());
                shape.iter().for_each(|n| w.size(*n));
            }
            Ty::Buffer { dtype } => {
                w.byte(1);
                w.byte(codes::dtype(*dtype));
            }
            Ty::View { dtype, rank } => {
                w.byte(2);
                w.byte(codes::dtype(*dtype));
                w.size(*rank);
            }
        }
    }
    w.bytes.extend(body.bytes);
    w.bytes
}

/// Kinds of parameters in the binary form.
const SCALAR: u8 = 0;
const READ: u8 = 1;
const WRITE: u8 = 2;
const READ_WRITE: u8 = 3;

fn kernel(w: &mut Writer, k: &Kernel, tables: &mut Tables) {
    w.size(tables.string(&k.name));
    w.size(k.params.len());
    for p in &k.params {
        w.size(tables.string(&p.name));
        let (kind, dtype) = match p.kind {
            ParamKind::Scalar(d) => (SCALAR, d),
            ParamKind::Buffer(d, Access::Read) => (READ, d),
            ParamKind::Buffer(d, Access::Write) => (WRITE, d),
            ParamKind::Buffer(d, Access::ReadWrite) => (READ_WRITE, d),
        };
        w.byte(kind);
        w.byte(codes::dtype(dtype));
    }
    block(w, k, &k.body, tables);
}

fn block(w: &mut Writer, k: &Kernel, b: &Block, tables: &mut Tables) {
    fn defined(w: &mut Writer, k: &Kernel, vals: &[Val], tables: &mut Tables) {
        w.size(vals.len());
        for v in vals {
            let ty = k.types.get(v.index()).cloned().unwrap_or_else(|| Ty::scalar(DType::Bool));
            w.size(tables.ty(&ty));
        }
    }
    let used = |w: &mut Writer, vals: &[Val]| {
        w.size(vals.len());
        vals.iter().for_each(|v| w.size(v.index()));
    };
    defined(w, k, &b.params, tables);
    w.size(b.insts.len());
    for i in &b.insts {
        w.varint(i.op.code().into());
        let Flags { contract, reassoc, approx } = i.flags;
        let located = u8::from(i.loc.is_some());
        w.byte(u8::from(contract) | u8::from(reassoc) << 1 | u8::from(approx) << 2 | located << 3);
        if let Some(loc) = &i.loc {
            w.size(tables.string(loc));
        }
        i.op.write_attributes(w);
        used(w, &i.operands);
        defined(w, k, &i.results, tables);
        w.size(i.blocks.len());
        i.blocks.iter().for_each(|b| block(w, k, b, tables));
    }
    used(w, &b.results);
}

/// Whether bytes begin as a binary does.
pub fn is_binary(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

/// Reads a module; well-formed, not verified.
///
/// # Errors
/// Bytes that are no module, with where and why; a version that is not read here, with both versions; sizes beyond
/// [`limits`].
pub fn from_bytes(bytes: &[u8]) -> Read<Module> {
    let mut r = Reader { bytes, at: 0 };
    if bytes.len() > limits::BYTES {
        return Err(r.broken(0, format!("more than {} bytes", limits::BYTES)));
    }
    if r.take(MAGIC.len()).ok() != Some(&MAGIC) {
        return Err(r.broken(0, "this is no tile program: it does not begin with TILE"));
    }
    let version = Version::new(r.small()?, r.small()?);
    if !version.is_read() {
        return Err(TileError::version(version));
    }
    let n = r.count()?;
    let mut strings: Vec<Arc<str>> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..n {
        let start = r.at;
        let len = r.count()?;
        let text = match std::str::from_utf8(r.take(len)?) {
            Ok(text) => Arc::<str>::from(text),
            Err(_) => return Err(r.broken(start, "a string is not UTF-8")),
        };
        if !seen.insert(text.clone()) {
            return Err(r.broken(start, "a string is given twice"));
        }
        strings.push(text);
    }
    let n = r.count()?;
    let mut types = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..n {
        let start = r.at;
        let ty = ty(&mut r)?;
        if !seen.insert(ty.clone()) {
            return Err(r.broken(start, "a type is given twice"));
        }
        types.push(ty);
    }
    let mut loader = Loader {
        r,
        version,
        strings,
        types,
        strings_used: 0,
        types_used: 0,
        kernel: Kernel::default(),
        left: limits::INSTRUCTIONS,
        values_left: limits::INSTRUCTIONS,
    };
    let n = loader.r.count()?;
    let mut module = Module::default();
    for _ in 0..n {
        module.kernels.push(loader.kernel()?);
    }
    let r = &loader.r;
    if r.at != bytes.len() {
        return Err(r.broken(r.at, format!("{} bytes are left over", bytes.len() - r.at)));
    }
    if loader.strings_used != loader.strings.len() || loader.types_used != loader.types.len() {
        return Err(r.broken(r.at, "a string or type is never used"));
    }
    if version_needed(&module) != version {
        return Err(
            r.broken(MAGIC.len(), format!("the program needs version {} only", version_needed(&module)))
        );
    }
    Ok(module)
}

fn ty(r: &mut Reader) -> Read<Ty> {
    let start = r.at;
    let kind = r.byte()?;
    let dtype = r.code("element type", codes::dtype_of)?;
    match kind {
        0 => Ok(Ty::Tile { dtype, shape: r.list(Reader::size)? }),
        1 => Ok(Ty::Buffer { dtype }),
        2 => match r.size()? {
            rank if rank <= limits::RANK => Ok(Ty::View { dtype, rank }),
            rank => Err(r.broken(start, format!("a view of rank {rank}"))),
        },
        kind => Err(r.broken(start, format!("a type of kind {kind}"))),
    }
}

struct Loader<'a> {
    r: Reader<'a>,
    version: Version,
    strings: Vec<Arc<str>>,
    types: Vec<Ty>,
    /// How many of them have been used; first uses come in order.
    strings_used: usize,
    types_used: usize,
    kernel: Kernel,
    /// Instructions that may still come.
    left: usize,
    /// Values that may still come.
    values_left: usize,
}

impl Loader<'_> {
    fn string(&mut self) -> Read<Arc<str>> {
        let (start, i) = (self.r.at, self.r.size()?);
        match self.strings.get(i) {
            Some(s) if i <= self.strings_used => {
                self.strings_used = self.strings_used.max(i + 1);
                Ok(s.clone())
            }
            _ => Err(self.r.broken(start, format!("string {i} is not there or out of turn"))),
        }
    }

    fn kernel(&mut self) -> Read<Kernel> {
        self.kernel = Kernel { name: self.string()?.to_string(), ..Kernel::default() };
        for _ in 0..self.r.count()? {
            let name = self.string()?.to_string();
            let start = self.r.at;
            let kind = self.r.byte()?;
            let d = self.r.code("element type", codes::dtype_of)?;
            let kind = match kind {
                SCALAR => ParamKind::Scalar(d),
                READ => ParamKind::Buffer(d, Access::Read),
                WRITE => ParamKind::Buffer(d, Access::Write),
                READ_WRITE => ParamKind::Buffer(d, Access::ReadWrite),
                other => return Err(self.r.broken(start, format!("a parameter of kind {other}"))),
            };
            let ty = match kind {
                ParamKind::Scalar(d) => Ty::scalar(d),
                ParamKind::Buffer(d, _) => Ty::Buffer { dtype: d },
            };
            let value = self.value(start, ty)?;
            self.kernel.params.push(Param { name, kind, value });
        }
        self.kernel.body = self.block(0)?;
        Ok(std::mem::take(&mut self.kernel))
    }

    fn value(&mut self, start: usize, ty: Ty) -> Read<Val> {
        self.values_left = match self.values_left.checked_sub(1) {
            Some(n) => n,
            None => return Err(self.r.broken(start, format!("more than {} values", limits::INSTRUCTIONS))),
        };
        Ok(self.kernel.new_value(ty))
    }

    /// Values defined here.
    fn defined(&mut self) -> Read<Vec<Val>> {
        let n = self.r.count()?;
        let mut out = Vec::new();
        for _ in 0..n {
            let (start, i) = (self.r.at, self.r.size()?);
            let ty = match self.types.get(i) {
                Some(ty) if i <= self.types_used => ty.clone(),
                _ => return Err(self.r.broken(start, format!("type {i} is not there or out of turn"))),
            };
            self.types_used = self.types_used.max(i + 1);
            out.push(self.value(start, ty)?);
        }
        Ok(out)
    }

    /// Values used here, defined before.
    fn used(&mut self) -> Read<Vec<Val>> {
        let n = self.r.count()?;
        let mut out = Vec::new();
        for _ in 0..n {
            let (start, v) = (self.r.at, self.r.size()?);
            if v >= self.kernel.types.len() {
                return Err(self.r.broken(start, format!("value {v} is not defined before")));
            }
            out.push(Val(v as u32));
        }
        Ok(out)
    }

    fn block(&mut self, depth: usize) -> Read<Block> {
        if depth > limits::DEPTH {
            return Err(self.r.broken(self.r.at, format!("regions nest deeper than {}", limits::DEPTH)));
        }
        let params = self.defined()?;
        let n = self.r.count()?;
        let mut insts = Vec::new();
        for _ in 0..n {
            insts.push(self.inst(depth)?);
        }
        Ok(Block { params, insts, results: self.used()? })
    }

    fn inst(&mut self, depth: usize) -> Read<Inst> {
        let start = self.r.at;
        self.left = match self.left.checked_sub(1) {
            Some(n) => n,
            None => {
                return Err(self.r.broken(start, format!("more than {} instructions", limits::INSTRUCTIONS)));
            }
        };
        let code = self.r.small()?;
        let bits = self.r.byte()?;
        if bits >> 4 != 0 {
            return Err(self.r.broken(start, format!("flags {bits:#x}")));
        }
        let flags = Flags { contract: bits & 1 != 0, reassoc: bits & 2 != 0, approx: bits & 4 != 0 };
        let loc = if bits & 8 != 0 { Some(self.string()?) } else { None };
        let op = match Op::read(code, &mut self.r)? {
            Some(op) if op.since() <= self.version => op,
            _ => {
                let (version, newest) = (self.version, Version::CURRENT);
                let detail = format!(
                    "no instruction has number {code} in version {version}, which the program is of; this reads up to {newest}"
                );
                return Err(self.r.broken(start, detail));
            }
        };
        let operands = self.used()?;
        let results = self.defined()?;
        let n = self.r.count()?;
        let mut blocks = Vec::new();
        for _ in 0..n {
            blocks.push(self.block(depth + 1)?);
        }
        Ok(Inst { op, operands, results, blocks, flags, loc })
    }
}
