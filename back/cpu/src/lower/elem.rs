//! Elementwise instructions, chunk by chunk.

use super::emit::{self, Reg, V, int, real};
use super::{Fun, Refusal, Result, broken};
use crate::target;
use std::collections::HashMap;
use tongtu_tensor::scalar::{Binary, Compare, Unary};
use tongtu_tensor::{DType, Num};
use tongtu_tile::{Flags, Inst, Op};

/// LLVM's spelling of an instruction's liberties.
pub(super) fn fast(flags: Flags) -> String {
    let mut out = Vec::new();
    if flags.contract {
        out.push("contract");
    }
    if flags.reassoc {
        out.push("reassoc");
    }
    if flags.approx {
        out.push("afn");
    }
    out.join(" ")
}

impl Fun<'_> {
    /// Any instruction that acts on each element by itself.
    pub(super) fn elementwise(&mut self, inst: &Inst) -> Result<()> {
        let result = *inst.results.first().ok_or_else(|| broken("a result is missing"))?;
        if self.dots.get(&result).is_some_and(|b| self.direct.contains_key(&b.load)) {
            return Ok(());
        }
        let (to, shape) = self.tile_ty(result)?;
        let geo = self.geometry(shape);
        let mut operands = Vec::new();
        for v in &inst.operands {
            operands.push((self.tile(*v)?.dtype, self.operand(*v)?));
        }
        let scalar_condition =
            matches!(inst.op, Op::Select {}) && operands[0].1.len() == 1 && geo.parts() >= 1;
        let scalar_condition = scalar_condition && self.tile(inst.operands[0])?.shape.is_empty();
        let mut known: HashMap<(Vec<V>, usize), V> = HashMap::new();
        let mut parts = Vec::with_capacity(geo.parts());
        for part in 0..geo.parts() {
            let n = geo.chunk(part).width;
            let args: Vec<V> = operands
                .iter()
                .enumerate()
                .map(|(i, o)| if scalar_condition && i == 0 { o.1[0].clone() } else { o.1[part].clone() })
                .collect();
            let key = (args, n);
            if let Some(v) = known.get(&key) {
                parts.push(v.clone());
                continue;
            }
            let (args, from) = (&key.0, operands[0].0);
            let v = match &inst.op {
                Op::Unary(op) => self.unary(*op, from, n, &args[0], inst.flags),
                Op::Binary(op) => self.binary(*op, from, n, &args[0], &args[1], inst.flags),
                Op::Compare(op) => self.compare(*op, from, n, &args[0], &args[1]),
                Op::Select {} => {
                    let ty = Reg::of(to).ty(n);
                    let c = if scalar_condition { 1 } else { n };
                    Ok(self.choose(c, &args[0], &ty, &args[1], &args[2]))
                }
                Op::Fma {} => self.fma(from, n, &args[0], &args[1], &args[2], inst.flags),
                Op::Cast { mode, .. } => self.cast(from, to, *mode, n, &args[0]),
                Op::Bitcast { .. } => self.bitcast(from, to, n, &args[0]),
                _ => return Err(broken("not an elementwise instruction")),
            };
            let v = v.or_else(|e| match e {
                Refusal::Unsupported { reason, .. } => self.unsupported(inst, reason),
                e => Err(e),
            })?;
            known.insert(key, v.clone());
            parts.push(v);
        }
        self.set(result, parts)
    }

    /// The type that arithmetic on `dtype` happens in, if not its own.
    pub(super) fn computes_in(&self, dtype: DType) -> Option<DType> {
        match dtype {
            DType::F32 | DType::F64 => None,
            DType::F16 if target::computes_f16(self.chip) => None,
            d if d.is_float() => Some(DType::F32),
            _ => None,
        }
    }

    /// Brings a sub-byte integer in an `i8` back into its range after arithmetic.
    pub(super) fn normal(&mut self, dtype: DType, n: usize, v: &V) -> V {
        let bits = dtype.bits();
        if bits >= 8 || dtype.is_float() {
            return v.clone();
        }
        let ty = Reg::I8.ty(n);
        if dtype.is_signed() {
            let by = int(Reg::I8, i64::from(8 - bits), n);
            let up = self.bin("shl", &ty, v, &by);
            self.bin("ashr", &ty, &up, &by)
        } else {
            self.bin("and", &ty, v, &int(Reg::I8, (1 << bits) - 1, n))
        }
    }

    /// A call of an intrinsic of `k` operands of one type.
    fn math(&mut self, name: &str, reg: Reg, n: usize, args: &[&V]) -> V {
        let ty = reg.ty(n);
        let args: Vec<(&str, &V)> = args.iter().map(|a| (ty.as_str(), *a)).collect();
        let name = format!("llvm.{name}.{}", reg.suffix(n));
        self.call(&ty, &name, &args)
    }

    pub(super) fn unary(&mut self, op: Unary, dtype: DType, n: usize, x: &V, flags: Flags) -> Result<V> {
        if let Some(wide) = self.computes_in(dtype) {
            let x = self.cast(dtype, wide, Default::default(), n, x)?;
            let y = self.unary(op, wide, n, &x, flags)?;
            if matches!(op, Unary::IsNan | Unary::IsInf) {
                return Ok(y);
            }
            return self.cast(wide, dtype, Default::default(), n, &y);
        }
        let reg = Reg::of(dtype);
        let ty = reg.ty(n);
        if !dtype.is_float() {
            return self.int_unary(op, dtype, reg, n, x);
        }
        let name = match op {
            Unary::Neg => return Ok(self.def(format_args!("fneg {ty} {x}"))),
            Unary::Abs => "fabs",
            Unary::Floor | Unary::Ceil | Unary::Trunc | Unary::RoundEven => {
                return Ok(self.whole(op, reg, n, x));
            }
            Unary::Sqrt => "sqrt",
            Unary::IsNan => return Ok(self.cmp("fcmp uno", &ty, x, &real(reg, 0.0, n))),
            Unary::IsInf => {
                let a = self.math("fabs", reg, n, &[x]);
                return Ok(self.cmp("fcmp oeq", &ty, &a, &real(reg, f64::INFINITY, n)));
            }
            Unary::Sign => {
                let zero = real(reg, 0.0, n);
                let up = self.cmp("fcmp ogt", &ty, x, &zero);
                let down = self.cmp("fcmp olt", &ty, x, &zero);
                let rest = self.choose(n, &down, &ty, &real(reg, -1.0, n), x);
                return Ok(self.choose(n, &up, &ty, &real(reg, 1.0, n), &rest));
            }
            Unary::Exp if dtype == DType::F32 && self.chip.has("avx512vl") => return Ok(self.exp(n, x)),
            Unary::Rsqrt => {
                let root = self.math("sqrt", reg, n, &[x]);
                let flags = fast(flags);
                return Ok(self.bin(&format!("fdiv {flags}"), &ty, &real(reg, 1.0, n), &root));
            }
            _ => return no(format!("'{op}' is expanded into other instructions before it gets here")),
        };
        Ok(self.math(name, reg, n, &[x]))
    }

    /// A float rounded to a whole number, in one of four ways.
    pub(super) fn whole(&mut self, op: Unary, reg: Reg, n: usize, x: &V) -> V {
        let name = match op {
            Unary::Floor => "floor",
            Unary::Ceil => "ceil",
            Unary::Trunc => "trunc",
            _ => "roundeven",
        };
        if target::rounds(self.chip) {
            let y = self.math(name, reg, n, &[x]);
            if (op, reg) == (Unary::RoundEven, Reg::F32) {
                self.rounded.insert(y.clone(), x.clone());
            }
            return y;
        }
        // Adding a number whose last place is 1, and taking it away, rounds to even; a step then goes the way asked for. Numbers
        // beyond it are whole already, and NaN stays.
        let ty = reg.ty(n);
        let large = real(reg, if reg == Reg::F32 { 8388608.0 } else { 4503599627370496.0 }, n);
        let size = self.math("fabs", reg, n, &[x]);
        let up = self.bin("fadd", &ty, &size, &large);
        let near = self.bin("fsub", &ty, &up, &large);
        let of = if op == Unary::Trunc { &size } else { x };
        let near = if op == Unary::Trunc { near } else { self.math("copysign", reg, n, &[&near, x]) };
        let step = match op {
            Unary::Floor | Unary::Trunc => Some(("fcmp ogt", -1.0)),
            Unary::Ceil => Some(("fcmp olt", 1.0)),
            _ => None,
        };
        let whole = match step {
            Some((past, by)) => {
                let wrong = self.cmp(past, &ty, &near, of);
                let moved = self.bin("fadd", &ty, &near, &real(reg, by, n));
                self.choose(n, &wrong, &ty, &moved, &near)
            }
            None => near,
        };
        let whole = self.math("copysign", reg, n, &[&whole, x]);
        let small = self.cmp("fcmp olt", &ty, &size, &large);
        self.choose(n, &small, &ty, &whole, x)
    }

    fn int_unary(&mut self, op: Unary, dtype: DType, reg: Reg, n: usize, x: &V) -> Result<V> {
        let ty = reg.ty(n);
        let bits = dtype.bits();
        let zero = int(reg, 0, n);
        let v = match op {
            Unary::Neg => self.bin("sub", &ty, &zero, x),
            Unary::Not if dtype.is_bool() => return Ok(self.bin("xor", &ty, x, &int(reg, 1, n))),
            Unary::Not => self.bin("xor", &ty, x, &int(reg, -1, n)),
            Unary::Abs if !dtype.is_signed() => x.clone(),
            Unary::Abs => {
                let negative = self.bin("sub", &ty, &zero, x);
                let below = self.cmp("icmp slt", &ty, x, &zero);
                self.choose(n, &below, &ty, &negative, x)
            }
            Unary::Sign => {
                let some = self.cmp("icmp ne", &ty, x, &zero);
                let up = self.conv("zext", &Reg::I1.ty(n), &some, &ty);
                if !dtype.is_signed() {
                    return Ok(up);
                }
                let below = self.cmp("icmp slt", &ty, x, &zero);
                self.choose(n, &below, &ty, &int(reg, -1, n), &up)
            }
            Unary::Popcount | Unary::Clz => {
                let x =
                    if bits < 8 { self.bin("and", &ty, x, &int(reg, (1 << bits) - 1, n)) } else { x.clone() };
                if op == Unary::Popcount {
                    self.math("ctpop", reg, n, &[&x])
                } else {
                    let name = format!("llvm.ctlz.{}", reg.suffix(n));
                    let no: V = "false".into();
                    let count = self.call(&ty, &name, &[(&ty, &x), ("i1 immarg", &no)]);
                    if bits < 8 {
                        self.bin("sub", &ty, &count, &int(reg, i64::from(8 - bits), n))
                    } else {
                        count
                    }
                }
            }
            _ => return no(format!("'{op}' does not take {dtype}")),
        };
        Ok(self.normal(dtype, n, &v))
    }

    pub(super) fn binary(
        &mut self,
        op: Binary,
        dtype: DType,
        n: usize,
        a: &V,
        b: &V,
        flags: Flags,
    ) -> Result<V> {
        if let Some(wide) = self.computes_in(dtype) {
            let a = self.cast(dtype, wide, Default::default(), n, a)?;
            let b = self.cast(dtype, wide, Default::default(), n, b)?;
            let y = self.binary(op, wide, n, &a, &b, Flags { contract: false, ..flags })?;
            return self.cast(wide, dtype, Default::default(), n, &y);
        }
        let reg = Reg::of(dtype);
        let ty = reg.ty(n);
        if dtype.is_bool() {
            let name = match op {
                Binary::Add | Binary::Max | Binary::MaxNum | Binary::Or => "or",
                Binary::Mul | Binary::Min | Binary::MinNum | Binary::And => "and",
                Binary::Xor => "xor",
                _ => return no(format!("'{op}' does not take {dtype}")),
            };
            return Ok(self.bin(name, &ty, a, b));
        }
        if !dtype.is_float() {
            let v = self.int_binary(op, dtype, reg, n, a, b)?;
            return Ok(self.normal(dtype, n, &v));
        }
        if let Some(v) = self.range(op, dtype, n, a, b) {
            return Ok(v);
        }
        let flags = fast(flags);
        Ok(match op {
            Binary::Add => self.bin(&format!("fadd {flags}"), &ty, a, b),
            Binary::Sub => self.bin(&format!("fsub {flags}"), &ty, a, b),
            Binary::Mul => self.bin(&format!("fmul {flags}"), &ty, a, b),
            Binary::Div => self.bin(&format!("fdiv {flags}"), &ty, a, b),
            Binary::Max => self.math("maximum", reg, n, &[a, b]),
            Binary::Min => self.math("minimum", reg, n, &[a, b]),
            Binary::MaxNum => self.math("maximumnum", reg, n, &[a, b]),
            Binary::MinNum => self.math("minimumnum", reg, n, &[a, b]),
            Binary::CopySign => self.math("copysign", reg, n, &[a, b]),
            _ => return no(format!("'{op}' is expanded into other instructions before it gets here")),
        })
    }

    fn int_binary(&mut self, op: Binary, dtype: DType, reg: Reg, n: usize, a: &V, b: &V) -> Result<V> {
        let ty = reg.ty(n);
        let signed = dtype.is_signed();
        let bits = i64::from(dtype.bits());
        let zero = int(reg, 0, n);
        if n == 1 && reg == Reg::I64 {
            match op {
                Binary::Add => return Ok(self.iadd(a, b)),
                Binary::Mul => return Ok(self.imul(a, b)),
                _ => {}
            }
        }
        let pick = |s: &'static str, u: &'static str| if signed { s } else { u };
        Ok(match op {
            Binary::Add => self.bin("add", &ty, a, b),
            Binary::Sub => self.bin("sub", &ty, a, b),
            Binary::Mul => self.bin("mul", &ty, a, b),
            Binary::And => self.bin("and", &ty, a, b),
            Binary::Or => self.bin("or", &ty, a, b),
            Binary::Xor => self.bin("xor", &ty, a, b),
            Binary::Max | Binary::MaxNum => self.math(pick("smax", "umax"), reg, n, &[a, b]),
            Binary::Min | Binary::MinNum => self.math(pick("smin", "umin"), reg, n, &[a, b]),
            Binary::Div | Binary::Rem | Binary::Mod => self.divide(op, dtype, reg, n, a, b),
            Binary::Shl | Binary::Shr => {
                // As unsigned, a negative amount is too large as well.
                let fits = self.cmp("icmp ult", &ty, b, &int(reg, bits, n));
                if op == Binary::Shr && signed {
                    let by = self.choose(n, &fits, &ty, b, &int(reg, bits - 1, n));
                    self.bin("ashr", &ty, a, &by)
                } else {
                    let by = self.choose(n, &fits, &ty, b, &zero);
                    let v = self.bin(if op == Binary::Shl { "shl" } else { "lshr" }, &ty, a, &by);
                    self.choose(n, &fits, &ty, &v, &zero)
                }
            }
            _ => {
                return no(format!(
                    "'{op}' on {dtype} is expanded into other instructions before it gets here"
                ));
            }
        })
    }

    fn divide(&mut self, op: Binary, dtype: DType, reg: Reg, n: usize, a: &V, b: &V) -> V {
        let ty = reg.ty(n);
        let signed = dtype.is_signed();
        let zero = int(reg, 0, n);
        let known = emit::as_int(b).filter(|b| *b > 0).is_some();
        let by_zero = if known { "false".into() } else { self.cmp("icmp eq", &ty, b, &zero) };
        let mut bad = by_zero.clone();
        let b1 = if known {
            b.clone()
        } else {
            if signed {
                // The least value by -1 wraps to itself, which is what division by 1 gives.
                let (Num::Int(least), all) = (dtype.min_value(), int(reg, -1, n)) else { return zero };
                let is_least = self.cmp("icmp eq", &ty, a, &int(reg, least as i64, n));
                let is_minus = self.cmp("icmp eq", &ty, b, &all);
                let wraps = self.bin("and", &Reg::I1.ty(n), &is_least, &is_minus);
                bad = self.bin("or", &Reg::I1.ty(n), &bad, &wraps);
            }
            self.choose(n, &bad, &ty, &int(reg, 1, n), b)
        };
        // Quotients of integers are exact in a float with twice their bits; vectors have no integer division.
        let through = match reg {
            Reg::I32 if n > 1 => Some(Reg::F64),
            Reg::I8 | Reg::I16 if n > 1 => Some(Reg::F32),
            _ => None,
        };
        let q = match through {
            Some(f) => {
                let (up, down) = if signed { ("sitofp", "fptosi") } else { ("uitofp", "fptoui") };
                let fty = f.ty(n);
                let (x, y) = (self.conv(up, &ty, a, &fty), self.conv(up, &ty, &b1, &fty));
                let q = self.bin("fdiv", &fty, &x, &y);
                self.conv(down, &fty, &q, &ty)
            }
            None => self.bin(if signed { "sdiv" } else { "udiv" }, &ty, a, &b1),
        };
        if op == Binary::Div {
            return if known { q } else { self.choose(n, &by_zero, &ty, &zero, &q) };
        }
        let whole = self.bin("mul", &ty, &q, &b1);
        let r = self.bin("sub", &ty, a, &whole);
        let r = if known { r } else { self.choose(n, &by_zero, &ty, &zero, &r) };
        if op == Binary::Rem || !signed {
            return r;
        }
        let some = self.cmp("icmp ne", &ty, &r, &zero);
        let mixed = self.bin("xor", &ty, &r, b);
        let differ = self.cmp("icmp slt", &ty, &mixed, &zero);
        let one = Reg::I1.ty(n);
        let fix = self.bin("and", &one, &some, &differ);
        let fixed = self.bin("add", &ty, &r, b);
        let r = self.choose(n, &fix, &ty, &fixed, &r);
        if known { r } else { self.choose(n, &by_zero, &ty, &zero, &r) }
    }

    pub(super) fn compare(&mut self, op: Compare, dtype: DType, n: usize, a: &V, b: &V) -> Result<V> {
        if let Some(wide) = self.computes_in(dtype) {
            let a = self.cast(dtype, wide, Default::default(), n, a)?;
            let b = self.cast(dtype, wide, Default::default(), n, b)?;
            return self.compare(op, wide, n, &a, &b);
        }
        let ty = Reg::of(dtype).ty(n);
        let name = match (op, dtype.is_float(), dtype.is_signed()) {
            (Compare::Eq, true, _) => "fcmp oeq",
            (Compare::Ne, true, _) => "fcmp une",
            (Compare::Lt, true, _) => "fcmp olt",
            (Compare::Le, true, _) => "fcmp ole",
            (Compare::Gt, true, _) => "fcmp ogt",
            (Compare::Ge, true, _) => "fcmp oge",
            (Compare::Eq, ..) => "icmp eq",
            (Compare::Ne, ..) => "icmp ne",
            (Compare::Lt, _, true) => "icmp slt",
            (Compare::Le, _, true) => "icmp sle",
            (Compare::Gt, _, true) => "icmp sgt",
            (Compare::Ge, _, true) => "icmp sge",
            (Compare::Lt, ..) => "icmp ult",
            (Compare::Le, ..) => "icmp ule",
            (Compare::Gt, ..) => "icmp ugt",
            (Compare::Ge, ..) => "icmp uge",
        };
        Ok(self.cmp(name, &ty, a, b))
    }

    pub(super) fn fma(&mut self, dtype: DType, n: usize, a: &V, b: &V, c: &V, flags: Flags) -> Result<V> {
        let reg = Reg::of(dtype);
        if self.computes_in(dtype).is_none() {
            let (ty, name) = (reg.ty(n), format!("llvm.fma.{}", reg.suffix(n)));
            return Ok(self.call_flags(&fast(flags), &ty, &name, &[(&ty, a), (&ty, b), (&ty, c)]));
        }
        // The product is exact in f64; the sum is rounded to odd there, so that rounding again is exact.
        let mut wide = Vec::new();
        for x in [a, b, c] {
            let x = self.cast(dtype, DType::F32, Default::default(), n, x)?;
            wide.push(self.conv("fpext", &Reg::F32.ty(n), &x, &Reg::F64.ty(n)));
        }
        let ty = Reg::F64.ty(n);
        let p = self.bin("fmul", &ty, &wide[0], &wide[1]);
        let c = &wide[2];
        let s = self.bin("fadd", &ty, &p, c);
        let back = self.bin("fsub", &ty, &s, &p);
        let gone = self.bin("fsub", &ty, &s, &back);
        let left = self.bin("fsub", &ty, &p, &gone);
        let right = self.bin("fsub", &ty, c, &back);
        let error = self.bin("fadd", &ty, &left, &right);
        let odd = self.round_to_odd(n, &s, &error);
        let half = self.narrow_double(n, &odd);
        self.cast(DType::F32, dtype, Default::default(), n, &half)
    }

    /// The f64 `s`, which is `s + error` rounded to nearest, rounded to odd instead.
    fn round_to_odd(&mut self, n: usize, s: &V, error: &V) -> V {
        let (ty, ity, bty) = (Reg::F64.ty(n), Reg::I64.ty(n), Reg::I1.ty(n));
        let zero = real(Reg::F64, 0.0, n);
        let inexact = self.cmp("fcmp one", &ty, error, &zero);
        let up = self.cmp("fcmp ogt", &ty, error, &zero);
        let positive = self.cmp("fcmp ogt", &ty, s, &zero);
        let bits = self.conv("bitcast", &ty, s, &ity);
        let low = self.bin("and", &ity, &bits, &int(Reg::I64, 1, n));
        let even = self.cmp("icmp eq", &ity, &low, &int(Reg::I64, 0, n));
        let fix = self.bin("and", &bty, &inexact, &even);
        let away = self.cmp("icmp eq", &bty, &up, &positive);
        let step = self.choose(n, &away, &ity, &int(Reg::I64, 1, n), &int(Reg::I64, -1, n));
        let moved = self.bin("add", &ity, &bits, &step);
        let bits = self.choose(n, &fix, &ity, &moved, &bits);
        self.conv("bitcast", &ity, &bits, &ty)
    }
}

/// A refusal whose instruction is filled in by the caller.
pub(super) fn no<T>(reason: String) -> Result<T> {
    Err(Refusal::Unsupported { instruction: String::new(), reason })
}
