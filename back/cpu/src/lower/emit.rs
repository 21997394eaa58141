//! Writing LLVM IR text.

use super::Fun;
use std::fmt::{Arguments, Write};
use std::rc::Rc;
use tongtu_tensor::{CastMode, DType, Num};

/// The text of an operand: a name or a constant.
pub(super) type V = Rc<str>;

/// The kind of register an element lives in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reg {
    I1,
    I8,
    I16,
    I32,
    I64,
    F16,
    F32,
    F64,
}

impl Reg {
    pub(super) fn of(dtype: DType) -> Reg {
        match dtype {
            DType::Bool => Reg::I1,
            DType::F16 => Reg::F16,
            DType::F32 => Reg::F32,
            DType::F64 => Reg::F64,
            d => match d.bits() {
                64 => Reg::I64,
                32 => Reg::I32,
                16 => Reg::I16,
                _ => Reg::I8,
            },
        }
    }

    pub(super) fn bits(self) -> u32 {
        match self {
            Reg::I1 => 1,
            Reg::I8 => 8,
            Reg::I16 | Reg::F16 => 16,
            Reg::I32 | Reg::F32 => 32,
            Reg::I64 | Reg::F64 => 64,
        }
    }

    /// Bytes of one in memory, to which every access of elements is aligned: devices give memory that is, and views count elements.
    pub(super) fn bytes(self) -> u32 {
        self.bits().div_ceil(8)
    }

    fn name(self) -> &'static str {
        match self {
            Reg::I1 => "i1",
            Reg::I8 => "i8",
            Reg::I16 => "i16",
            Reg::I32 => "i32",
            Reg::I64 => "i64",
            Reg::F16 => "half",
            Reg::F32 => "float",
            Reg::F64 => "double",
        }
    }

    /// The LLVM type of `n` of them.
    pub(super) fn ty(self, n: usize) -> String {
        if n == 1 { self.name().to_string() } else { format!("<{n} x {}>", self.name()) }
    }

    /// The suffix of intrinsics on `n` of them.
    pub(super) fn suffix(self, n: usize) -> String {
        let base = match self {
            Reg::F16 => "f16",
            Reg::F32 => "f32",
            Reg::F64 => "f64",
            other => other.name(),
        };
        if n == 1 { base.to_string() } else { format!("v{n}{base}") }
    }
}

/// The text of a float constant in `reg`.
fn float(reg: Reg, x: f64) -> String {
    match reg {
        Reg::F16 => format!("0xH{:04X}", DType::F16.encode(Num::Float(x), Default::default())),
        Reg::F32 => format!("0x{:016X}", f64::from(x as f32).to_bits()),
        _ => format!("0x{:016X}", x.to_bits()),
    }
}

/// A constant integer of `reg`, in `n` lanes.
pub(super) fn int(reg: Reg, x: i64, n: usize) -> V {
    let text = match reg {
        Reg::I1 => if x == 0 { "false" } else { "true" }.to_string(),
        Reg::I8 => (x as i8).to_string(),
        Reg::I16 => (x as i16).to_string(),
        Reg::I32 => (x as i32).to_string(),
        _ => x.to_string(),
    };
    splat(reg, text, x == 0, n)
}

/// A constant float of `reg`, in `n` lanes.
pub(super) fn real(reg: Reg, x: f64, n: usize) -> V {
    splat(reg, float(reg, x), x.to_bits() == 0, n)
}

fn splat(reg: Reg, text: String, zero: bool, n: usize) -> V {
    match n {
        1 => text.into(),
        _ if zero => "zeroinitializer".into(),
        _ => format!("splat ({} {text})", reg.name()).into(),
    }
}

/// The constant `value` of `dtype` as it lives in a register, in `n` lanes.
pub(super) fn constant(dtype: DType, value: Num, n: usize) -> V {
    let reg = Reg::of(dtype);
    let code = dtype.encode_rounded(value, CastMode::default());
    match (reg, dtype.decode(code)) {
        (Reg::F16 | Reg::F32 | Reg::F64, x) => real(reg, x.to_f64(), n),
        (_, Num::Int(x)) => int(reg, x as i64, n),
        // A narrow float lives as its code.
        (_, Num::Float(_)) => int(reg, code as i64, n),
    }
}

/// The value of a constant integer scalar.
pub(super) fn as_int(v: &str) -> Option<i64> {
    v.parse().ok()
}

impl Fun<'_> {
    /// Writes one line of the block.
    pub(super) fn line(&mut self, text: Arguments<'_>) {
        self.lines += 1;
        let _ = writeln!(self.out, "  {text}");
    }

    /// Starts a block.
    pub(super) fn label(&mut self, name: &str) {
        let _ = writeln!(self.out, "{name}:");
        self.block = name.into();
    }

    /// A fresh label.
    pub(super) fn fresh(&mut self, hint: &str) -> V {
        self.next += 1;
        format!("{hint}{}", self.next).into()
    }

    /// Writes an instruction; gives its result.
    pub(super) fn def(&mut self, text: Arguments<'_>) -> V {
        self.next += 1;
        let name = format!("%v{}", self.next);
        self.line(format_args!("{name} = {text}"));
        name.into()
    }

    /// `op ty a, b`.
    pub(super) fn bin(&mut self, op: &str, ty: &str, a: &V, b: &V) -> V {
        self.def(format_args!("{op} {ty} {a}, {b}"))
    }

    /// A comparison of two operands of type `ty`.
    pub(super) fn cmp(&mut self, op: &str, ty: &str, a: &V, b: &V) -> V {
        self.def(format_args!("{op} {ty} {a}, {b}"))
    }

    /// A choice lane by lane, or of whole operands by a scalar when `n` is 1.
    pub(super) fn choose(&mut self, n: usize, c: &V, ty: &str, a: &V, b: &V) -> V {
        if a == b {
            return a.clone();
        }
        self.def(format_args!("select {} {c}, {ty} {a}, {ty} {b}", Reg::I1.ty(n)))
    }

    /// A conversion instruction.
    pub(super) fn conv(&mut self, op: &str, from: &str, v: &V, to: &str) -> V {
        if from == to { v.clone() } else { self.def(format_args!("{op} {from} {v} to {to}")) }
    }

    /// A call of an intrinsic that gives `ret`; `flags` as LLVM writes fast-math flags.
    pub(super) fn call_flags(&mut self, flags: &str, ret: &str, name: &str, args: &[(&str, &V)]) -> V {
        let types: Vec<&str> = args.iter().map(|a| a.0).collect();
        self.declared.insert(format!("declare {ret} @{name}({})", types.join(", ")));
        let given: Vec<String> = args.iter().map(|(t, v)| format!("{t} {v}")).collect();
        let given = given.join(", ");
        if ret == "void" {
            self.line(format_args!("call void @{name}({given})"));
            return "".into();
        }
        let space = if flags.is_empty() { "" } else { " " };
        self.def(format_args!("call{space}{flags} {ret} @{name}({given})"))
    }

    pub(super) fn call(&mut self, ret: &str, name: &str, args: &[(&str, &V)]) -> V {
        self.call_flags("", ret, name, args)
    }

    /// `a + b` of `i64` scalars, folded where known.
    pub(super) fn iadd(&mut self, a: &V, b: &V) -> V {
        match (as_int(a), as_int(b)) {
            (Some(x), Some(y)) => x.wrapping_add(y).to_string().into(),
            (Some(0), _) => b.clone(),
            (_, Some(0)) => a.clone(),
            _ => self.bin("add", "i64", a, b),
        }
    }

    /// `a * b` of `i64` scalars, folded where known.
    pub(super) fn imul(&mut self, a: &V, b: &V) -> V {
        match (as_int(a), as_int(b)) {
            (Some(x), Some(y)) => x.wrapping_mul(y).to_string().into(),
            (Some(0), _) | (_, Some(0)) => "0".into(),
            (Some(1), _) => b.clone(),
            (_, Some(1)) => a.clone(),
            _ => self.bin("mul", "i64", a, b),
        }
    }

    /// `ptr + bytes`.
    pub(super) fn offset(&mut self, ptr: &V, bytes: &V) -> V {
        if as_int(bytes) == Some(0) {
            return ptr.clone();
        }
        self.def(format_args!("getelementptr i8, ptr {ptr}, i64 {bytes}"))
    }

    /// `x` in every lane of `n`.
    pub(super) fn spread(&mut self, reg: Reg, x: &V, n: usize) -> V {
        if n == 1 {
            return x.clone();
        }
        let ty = reg.ty(n);
        if !x.starts_with('%') {
            return match as_int(x) {
                Some(i) if !matches!(reg, Reg::F16 | Reg::F32 | Reg::F64) => int(reg, i, n),
                _ => format!("splat ({} {x})", reg.name()).into(),
            };
        }
        let one = self.def(format_args!("insertelement {ty} poison, {} {x}, i64 0", reg.name()));
        self.def(format_args!("shufflevector {ty} {one}, {ty} poison, <{n} x i32> zeroinitializer"))
    }

    /// Lane `lane` of a vector of `n`.
    pub(super) fn lane(&mut self, reg: Reg, x: &V, n: usize, lane: usize) -> V {
        if n == 1 {
            return x.clone();
        }
        if &**x == "zeroinitializer" {
            return match reg {
                Reg::F16 | Reg::F32 | Reg::F64 => real(reg, 0.0, 1),
                _ => int(reg, 0, 1),
            };
        }
        if let Some(inner) = x.strip_prefix("splat (").and_then(|s| s.strip_suffix(')'))
            && let Some((_, value)) = inner.split_once(' ')
        {
            return value.into();
        }
        self.def(format_args!("extractelement {} {x}, i64 {lane}", reg.ty(n)))
    }

    /// A shuffle of two vectors of `n` lanes; a lane of `None` may hold anything. The result has
    /// `lanes.len()` lanes, at least 2.
    pub(super) fn shuffle(&mut self, reg: Reg, a: &V, b: &V, n: usize, lanes: &[Option<usize>]) -> V {
        let ty = reg.ty(n);
        let list: Vec<String> = lanes
            .iter()
            .map(|l| l.map_or_else(|| "i32 poison".to_string(), |l| format!("i32 {l}")))
            .collect();
        let list = list.join(", ");
        self.def(format_args!("shufflevector {ty} {a}, {ty} {b}, <{} x i32> <{list}>", lanes.len()))
    }

    /// The alias metadata of an access to buffer number `scope`, completed when all buffers are known.
    pub(super) fn alias(scope: usize) -> String {
        format!(", !scope{scope}.")
    }
}
