//! Conversions between element types.

use super::elem::no;
use super::emit::{Reg, V, int, real};
use super::{Fun, Result};
use crate::target;
use tongtu_tensor::scalar::Unary;
use tongtu_tensor::{CastMode, DType, FloatFormat, Num, Overflow, Rounding};

/// Whether a float lives as its code.
fn coded(dtype: DType) -> bool {
    dtype.is_float() && !matches!(dtype, DType::F16 | DType::F32 | DType::F64)
}

/// 2^n as `f64`, for n in its normal range.
fn pow2(n: i32) -> f64 {
    f64::from_bits(((n + 1023) as u64) << 52)
}

impl Fun<'_> {
    /// The same bits as another type of equal width.
    pub(super) fn bitcast(&mut self, from: DType, to: DType, n: usize, x: &V) -> Result<V> {
        let (a, b) = (Reg::of(from), Reg::of(to));
        Ok(if from == to {
            x.clone()
        } else if to.is_bool() {
            self.cmp("icmp ne", &a.ty(n), x, &int(a, 0, n))
        } else if from.is_bool() {
            self.conv("zext", &a.ty(n), x, &b.ty(n))
        } else {
            let v = self.conv("bitcast", &a.ty(n), x, &b.ty(n));
            if to.bits() >= 8 {
                v
            } else if to.is_float() {
                self.bin("and", &b.ty(n), &v, &int(b, (1 << to.bits()) - 1, n))
            } else {
                self.normal(to, n, &v)
            }
        })
    }

    /// Each element's value in another type.
    pub(super) fn cast(&mut self, from: DType, to: DType, mode: CastMode, n: usize, x: &V) -> Result<V> {
        if from == to && (mode.overflow == Overflow::Format || !from.is_float()) {
            return Ok(x.clone());
        }
        match (from.is_float(), to.is_float()) {
            _ if to.is_bool() => self.truth(from, n, x),
            (false, false) => Ok(self.int_to_int(from, to, mode, n, x)),
            (false, true) => self.int_to_float(from, to, mode, n, x),
            (true, false) => self.float_to_int(from, to, mode, n, x),
            (true, true) => {
                let wide = self.widen(from, n, x)?;
                if from == DType::F64 {
                    self.convert_f64(to, mode, n, &wide)
                } else {
                    self.convert_f32(to, mode, n, &wide)
                }
            }
        }
    }

    fn truth(&mut self, from: DType, n: usize, x: &V) -> Result<V> {
        if from.is_float() {
            let x = self.widen(from, n, x)?;
            let reg = if from == DType::F64 { Reg::F64 } else { Reg::F32 };
            return Ok(self.cmp("fcmp une", &reg.ty(n), &x, &real(reg, 0.0, n)));
        }
        let reg = Reg::of(from);
        if reg == Reg::I1 { Ok(x.clone()) } else { Ok(self.cmp("icmp ne", &reg.ty(n), x, &int(reg, 0, n))) }
    }

    fn int_to_int(&mut self, from: DType, to: DType, mode: CastMode, n: usize, x: &V) -> V {
        let (a, b) = (Reg::of(from), Reg::of(to));
        let mut x = x.clone();
        if mode.overflow == Overflow::Saturate
            && let (Num::Int(lo), Num::Int(hi)) = (to.min_value(), to.max_value())
            && let (Num::Int(least), Num::Int(most)) = (from.min_value(), from.max_value())
        {
            let ty = a.ty(n);
            let s = if from.is_signed() { 's' } else { 'u' };
            for (bound, needed, name) in [(hi, hi < most, "min"), (lo, lo > least, "max")] {
                if needed {
                    let name = format!("llvm.{s}{name}.{}", a.suffix(n));
                    let bound = int(a, bound as i64, n);
                    x = self.call(&ty, &name, &[(&ty, &x), (&ty, &bound)]);
                }
            }
        }
        let v = if b.bits() < a.bits() {
            self.conv("trunc", &a.ty(n), &x, &b.ty(n))
        } else if b.bits() > a.bits() {
            let name = if from.is_signed() { "sext" } else { "zext" };
            self.conv(name, &a.ty(n), &x, &b.ty(n))
        } else {
            x
        };
        self.normal(to, n, &v)
    }

    fn int_to_float(&mut self, from: DType, to: DType, mode: CastMode, n: usize, x: &V) -> Result<V> {
        let name = if from.is_signed() { "sitofp" } else { "uitofp" };
        let ty = Reg::of(from).ty(n);
        let value_bits = from.bits() - u32::from(from.is_signed());
        let direct = |p: u32| mode.rounding == Rounding::NearestEven || value_bits <= p;
        match to {
            DType::F32 if direct(24) => Ok(self.conv(name, &ty, x, &Reg::F32.ty(n))),
            DType::F64 if direct(53) => Ok(self.conv(name, &ty, x, &Reg::F64.ty(n))),
            _ if value_bits <= 24 => {
                let wide = self.conv(name, &ty, x, &Reg::F32.ty(n));
                self.convert_f32(to, mode, n, &wide)
            }
            _ if value_bits <= 53 => {
                let wide = self.conv(name, &ty, x, &Reg::F64.ty(n));
                self.convert_f64(to, mode, n, &wide)
            }
            DType::F32 | DType::F64 => Ok(self.long_directed(from, to, mode.rounding, n, x)),
            _ => {
                // Fold what f64 cannot hold into its last bit, in magnitude; the next rounding is then exact.
                let ity = Reg::I64.ty(n);
                let k = |x: i64| int(Reg::I64, x, n);
                let negative = self.cmp("icmp slt", &ity, x, &k(0));
                let magnitude = if from.is_signed() {
                    let minus = self.bin("sub", &ity, &k(0), x);
                    self.choose(n, &negative, &ity, &minus, x)
                } else {
                    x.clone()
                };
                let low = self.bin("and", &ity, &magnitude, &k(0xfff));
                let some = self.cmp("icmp ne", &ity, &low, &k(0));
                let sticky = self.choose(n, &some, &ity, &k(0x1000), &k(0));
                let high = self.bin("and", &ity, &magnitude, &k(!0xfff));
                let high = self.bin("or", &ity, &high, &sticky);
                let big = self.cmp("icmp ugt", &ity, &magnitude, &k(1 << 53));
                let exact = self.choose(n, &big, &ity, &high, &magnitude);
                let wide = self.conv("uitofp", &ity, &exact, &Reg::F64.ty(n));
                let wide = if from.is_signed() {
                    let fty = Reg::F64.ty(n);
                    let minus = self.def(format_args!("fneg {fty} {wide}"));
                    self.choose(n, &negative, &fty, &minus, &wide)
                } else {
                    wide
                };
                self.convert_f64(to, mode, n, &wide)
            }
        }
    }

    /// An integer of more bits than the float's mantissa, rounded other than to nearest: what the mantissa holds of the
    /// magnitude converts exactly, and the next float is taken where the rest counts.
    fn long_directed(&mut self, from: DType, to: DType, rounding: Rounding, n: usize, x: &V) -> V {
        let (ity, bty) = (Reg::I64.ty(n), Reg::I1.ty(n));
        let k = |x: i64| int(Reg::I64, x, n);
        let name = if from.is_signed() { "sext" } else { "zext" };
        let x = self.conv(name, &Reg::of(from).ty(n), x, &ity);
        let negative = match from.is_signed() {
            true => self.cmp("icmp slt", &ity, &x, &k(0)),
            false => int(Reg::I1, 0, n),
        };
        let minus = self.bin("sub", &ity, &k(0), &x);
        let magnitude = self.choose(n, &negative, &ity, &minus, &x);
        let name = format!("llvm.ctlz.{}", Reg::I64.suffix(n));
        let zeros = self.call(&ity, &name, &[(&ity, &magnitude), ("i1 immarg", &"false".into())]);
        let (precision, reg) = if to == DType::F32 { (24, Reg::F32) } else { (53, Reg::F64) };
        let smax = format!("llvm.smax.{}", Reg::I64.suffix(n));
        let shift = self.bin("sub", &ity, &k(64 - precision), &zeros);
        let shift = self.call(&ity, &smax, &[(&ity, &shift), (&ity, &k(0))]);
        let held = self.bin("lshr", &ity, &magnitude, &shift);
        let held = self.bin("shl", &ity, &held, &shift);
        let (fty, bits) = (reg.ty(n), if to == DType::F32 { Reg::I32 } else { Reg::I64 });
        let near = self.conv("uitofp", &ity, &held, &fty);
        let code = self.conv("bitcast", &fty, &near, &bits.ty(n));
        let away: V = match rounding {
            Rounding::Up => self.bin("xor", &bty, &negative, &int(Reg::I1, 1, n)),
            Rounding::Down => negative.clone(),
            _ => int(Reg::I1, 0, n),
        };
        let rest = self.cmp("icmp ne", &ity, &held, &magnitude);
        let away = self.bin("and", &bty, &away, &rest);
        let step = self.conv("zext", &bty, &away, &bits.ty(n));
        let code = self.bin("add", &bits.ty(n), &code, &step);
        let value = self.conv("bitcast", &bits.ty(n), &code, &fty);
        let minus = self.def(format_args!("fneg {fty} {value}"));
        self.choose(n, &negative, &fty, &minus, &value)
    }

    fn float_to_int(&mut self, from: DType, to: DType, mode: CastMode, n: usize, x: &V) -> Result<V> {
        let x = self.widen(from, n, x)?;
        let reg = if from == DType::F64 { Reg::F64 } else { Reg::F32 };
        let (fty, target) = (reg.ty(n), Reg::of(to));
        if mode.overflow == Overflow::Saturate {
            if let Some(y) = self.narrow_int(from, to, n, &x) {
                return Ok(y);
            }
            if to.bits() <= 16 {
                // Clamped as a float, in as many instructions as there are steps here; NaN becomes zero.
                let (lo, hi) = (to.min_value().to_f64(), to.max_value().to_f64());
                let above = self.cmp("fcmp ogt", &fty, &x, &real(reg, hi, n));
                let y = self.choose(n, &above, &fty, &real(reg, hi, n), &x);
                let below = self.cmp("fcmp olt", &fty, &y, &real(reg, lo, n));
                let y = self.choose(n, &below, &fty, &real(reg, lo, n), &y);
                let nan = self.cmp("fcmp uno", &fty, &x, &x);
                let y = self.choose(n, &nan, &fty, &real(reg, 0.0, n), &y);
                let wide = Reg::I32.ty(n);
                let y = self.conv("fptosi", &fty, &y, &wide);
                return Ok(self.conv("trunc", &wide, &y, &target.ty(n)));
            }
            let op = if to.is_signed() { "fptosi" } else { "fptoui" };
            let ity = target.ty(n);
            let name = format!("llvm.{op}.sat.{}.{}", target.suffix(n), reg.suffix(n));
            return Ok(self.call(&ity, &name, &[(&fty, &x)]));
        }
        // Modulo 2^bits. A float of at least 2^63 with 24 significant bits is a multiple of 2^40.
        let limit = real(reg, pow2(63), n);
        let ity = Reg::I64.ty(n);
        let fabs = format!("llvm.fabs.{}", reg.suffix(n));
        let wide = if reg == Reg::F32 && to.bits() <= 32 {
            let a = self.call(&fty, &fabs, &[(&fty, &x)]);
            let fits = self.cmp("fcmp olt", &fty, &a, &limit);
            let x = self.choose(n, &fits, &fty, &x, &real(reg, 0.0, n));
            if target::narrows_casts(self.chip) && n > 1 {
                let each = |s: &mut Self, i: usize| {
                    let x = s.lane(reg, &x, n, i);
                    s.conv("fptosi", &reg.ty(1), &x, &Reg::I64.ty(1))
                };
                let parts: Vec<V> = (0..n).map(|i| each(self, i)).collect();
                self.pack(Reg::I64, &parts, n)
            } else {
                self.conv("fptosi", &fty, &x, &ity)
            }
        } else {
            let scaled = self.bin("fmul", &fty, &x, &real(reg, pow2(-64), n));
            let turns = self.whole(Unary::Trunc, reg, n, &scaled);
            let whole = self.bin("fmul", &fty, &turns, &real(reg, pow2(64), n));
            let rest = self.bin("fsub", &fty, &x, &whole);
            let a = self.call(&fty, &fabs, &[(&fty, &rest)]);
            let name = format!("llvm.fptoui.sat.{}.{}", Reg::I64.suffix(n), reg.suffix(n));
            // Infinity minus infinity is NaN, which becomes 0.
            let magnitude = self.call(&ity, &name, &[(&fty, &a)]);
            let minus = self.bin("sub", &ity, &int(Reg::I64, 0, n), &magnitude);
            let below = self.cmp("fcmp olt", &fty, &x, &real(reg, 0.0, n));
            self.choose(n, &below, &ity, &minus, &magnitude)
        };
        let v = self.conv("trunc", &ity, &wide, &target.ty(n));
        Ok(self.normal(to, n, &v))
    }

    /// A float's exact value in f32, or f64 for f64.
    pub(super) fn widen(&mut self, from: DType, n: usize, x: &V) -> Result<V> {
        let fty = Reg::F32.ty(n);
        let ity = Reg::I32.ty(n);
        let k = |x: i64| int(Reg::I32, x, n);
        match from {
            DType::F32 | DType::F64 => return Ok(x.clone()),
            DType::F16 if target::casts_f16(self.chip) => {
                return Ok(self.conv("fpext", &Reg::F16.ty(n), x, &fty));
            }
            _ => {}
        }
        let code = match from {
            DType::F16 => self.conv("bitcast", &Reg::F16.ty(n), x, &Reg::I16.ty(n)),
            _ => x.clone(),
        };
        let bits = if coded(from) { Reg::of(from) } else { Reg::I16 };
        let code = self.conv("zext", &bits.ty(n), &code, &ity);
        if from == DType::BF16 {
            let bits = self.bin("shl", &ity, &code, &k(16));
            return Ok(self.conv("bitcast", &ity, &bits, &fty));
        }
        if from == DType::F8E8M0 {
            let normal = self.bin("shl", &ity, &code, &k(23));
            let least = self.cmp("icmp eq", &ity, &code, &k(0));
            let bits = self.choose(n, &least, &ity, &k(0x0040_0000), &normal);
            let nan = self.cmp("icmp eq", &ity, &code, &k(255));
            let bits = self.choose(n, &nan, &ity, &k(0x7fc0_0000), &bits);
            return Ok(self.conv("bitcast", &ity, &bits, &fty));
        }
        let Some(f) = from.float_format().filter(|_| from != DType::HiF8) else {
            return no(format!("{from} has no conversion on this chip"));
        };
        // Put exponent and mantissa where f32 has them; a multiplication then moves the bias, subnormals too.
        let top = 1i64 << (from.bits() - 1);
        let low = self.bin("and", &ity, &code, &k(top - 1));
        let bits = self.bin("shl", &ity, &low, &k(i64::from(23 - f.mantissa_bits)));
        let small = self.conv("bitcast", &ity, &bits, &fty);
        let scale = pow2(126 + f.min_exponent);
        let value = self.bin("fmul", &fty, &small, &real(Reg::F32, scale, n));
        let mut bits = self.conv("bitcast", &fty, &value, &ity);
        if f.has_inf {
            let inf = self.cmp("icmp eq", &ity, &low, &k(f.max_code as i64 + 1));
            bits = self.choose(n, &inf, &ity, &k(0x7f80_0000), &bits);
        }
        let sign = self.bin("and", &ity, &code, &k(top));
        let sign = self.bin("shl", &ity, &sign, &k(i64::from(32 - from.bits())));
        bits = self.bin("or", &ity, &bits, &sign);
        if f.has_nan && f.has_negative_zero {
            let past = f.max_code as i64 + i64::from(f.has_inf);
            let nan = self.cmp("icmp ugt", &ity, &low, &k(past));
            bits = self.choose(n, &nan, &ity, &k(0x7fc0_0000), &bits);
        }
        if f.has_nan && !f.has_negative_zero {
            let nan = self.cmp("icmp eq", &ity, &code, &k(top));
            bits = self.choose(n, &nan, &ity, &k(0x7fc0_0000), &bits);
        }
        Ok(self.conv("bitcast", &ity, &bits, &fty))
    }

    /// f64 to f32 rounded to odd: a later rounding to at most 22 bits is as if it were the only one.
    pub(super) fn narrow_double(&mut self, n: usize, x: &V) -> V {
        let (dty, fty, ity, bty) = (Reg::F64.ty(n), Reg::F32.ty(n), Reg::I32.ty(n), Reg::I1.ty(n));
        let near = self.conv("fptrunc", &dty, x, &fty);
        let back = self.conv("fpext", &fty, &near, &dty);
        let inexact = self.cmp("fcmp one", &dty, &back, x);
        let fabs = format!("llvm.fabs.{}", Reg::F64.suffix(n));
        let (a, b) = (self.call(&dty, &fabs, &[(&dty, &back)]), self.call(&dty, &fabs, &[(&dty, x)]));
        let above = self.cmp("fcmp ogt", &dty, &a, &b);
        let bits = self.conv("bitcast", &fty, &near, &ity);
        let less = self.conv("zext", &bty, &above, &ity);
        let bits = self.bin("sub", &ity, &bits, &less);
        let odd = self.conv("zext", &bty, &inexact, &ity);
        let bits = self.bin("or", &ity, &bits, &odd);
        self.conv("bitcast", &ity, &bits, &fty)
    }

    fn convert_f64(&mut self, to: DType, mode: CastMode, n: usize, x: &V) -> Result<V> {
        match to {
            DType::F64 => Ok(self.saturate(DType::F64, mode, n, x)),
            DType::F32 => {
                let (dty, fty, ity) = (Reg::F64.ty(n), Reg::F32.ty(n), Reg::I32.ty(n));
                let near = self.conv("fptrunc", &dty, x, &fty);
                let y = if mode.rounding == Rounding::NearestEven {
                    near
                } else {
                    // Step back by one place where the rounding went the wrong way.
                    let back = self.conv("fpext", &fty, &near, &dty);
                    let zero = real(Reg::F64, 0.0, n);
                    let above = self.cmp("fcmp ogt", &dty, &back, x);
                    let below = self.cmp("fcmp olt", &dty, &back, x);
                    let positive = self.cmp("fcmp ogt", &dty, x, &zero);
                    let bty = Reg::I1.ty(n);
                    let no: V = int(Reg::I1, 0, n);
                    let (down, up) = match mode.rounding {
                        Rounding::Down => (above, no),
                        Rounding::Up => (no, below),
                        _ => {
                            let negative = self.cmp("fcmp olt", &dty, x, &zero);
                            (
                                self.bin("and", &bty, &above, &positive),
                                self.bin("and", &bty, &below, &negative),
                            )
                        }
                    };
                    let bits = self.conv("bitcast", &fty, &near, &ity);
                    let minus = self.cmp("icmp slt", &ity, &bits, &int(Reg::I32, 0, n));
                    let (one, less) = (int(Reg::I32, 1, n), int(Reg::I32, -1, n));
                    let down_step = self.choose(n, &minus, &ity, &one, &less);
                    let up_step = self.choose(n, &minus, &ity, &less, &one);
                    let none = int(Reg::I32, 0, n);
                    let step = self.choose(n, &up, &ity, &up_step, &none);
                    let step = self.choose(n, &down, &ity, &down_step, &step);
                    // Zero has no neighbour on the other side in this order of bits.
                    let magnitude = self.bin("and", &ity, &bits, &int(Reg::I32, 0x7fff_ffff, n));
                    let is_zero = self.cmp("icmp eq", &ity, &magnitude, &none);
                    let moved = self.bin("add", &ity, &bits, &step);
                    let least_up = int(Reg::I32, 1, n);
                    let least_down = int(Reg::I32, i64::from(i32::MIN) + 1, n);
                    let from_zero = self.choose(n, &up, &ity, &least_up, &least_down);
                    let moves = self.cmp("icmp ne", &ity, &step, &none);
                    let from_zero = self.choose(n, &moves, &ity, &from_zero, &bits);
                    let bits = self.choose(n, &is_zero, &ity, &from_zero, &moved);
                    self.conv("bitcast", &ity, &bits, &fty)
                };
                Ok(self.saturate(DType::F32, mode, n, &y))
            }
            _ => {
                let y = self.narrow_double(n, x);
                self.convert_f32(to, mode, n, &y)
            }
        }
    }

    /// Infinities become the greatest finite value, where the mode says so.
    fn saturate(&mut self, dtype: DType, mode: CastMode, n: usize, x: &V) -> V {
        if mode.overflow == Overflow::Format {
            return x.clone();
        }
        let reg = Reg::of(dtype);
        let (ty, most) = (reg.ty(n), dtype.max_value().to_f64());
        let above = self.cmp("fcmp ogt", &ty, x, &real(reg, most, n));
        let x = self.choose(n, &above, &ty, &real(reg, most, n), x);
        let below = self.cmp("fcmp olt", &ty, &x, &real(reg, -most, n));
        self.choose(n, &below, &ty, &real(reg, -most, n), &x)
    }

    /// An f32, which may be rounded to odd already, to another float type.
    fn convert_f32(&mut self, to: DType, mode: CastMode, n: usize, x: &V) -> Result<V> {
        let fty = Reg::F32.ty(n);
        let near = mode.rounding == Rounding::NearestEven;
        match to {
            DType::F32 => return Ok(self.saturate(to, mode, n, x)),
            DType::F64 => {
                let y = self.conv("fpext", &fty, x, &Reg::F64.ty(n));
                return Ok(self.saturate(to, mode, n, &y));
            }
            DType::F16 if near && target::casts_f16(self.chip) => {
                let y = self.conv("fptrunc", &fty, x, &Reg::F16.ty(n));
                return Ok(self.saturate(to, mode, n, &y));
            }
            DType::HiF8 => return no(format!("{to} has no conversion on this chip")),
            _ => {}
        }
        let ity = Reg::I32.ty(n);
        let k = |x: i64| int(Reg::I32, x, n);
        let code = if to == DType::BF16 && near {
            let x = if mode.overflow == Overflow::Saturate {
                let most = DType::BF16.max_value().to_f64();
                let above = self.cmp("fcmp ogt", &fty, x, &real(Reg::F32, most, n));
                let x = self.choose(n, &above, &fty, &real(Reg::F32, most, n), x);
                let below = self.cmp("fcmp olt", &fty, &x, &real(Reg::F32, -most, n));
                self.choose(n, &below, &fty, &real(Reg::F32, -most, n), &x)
            } else {
                x.clone()
            };
            let bits = self.conv("bitcast", &fty, &x, &ity);
            let half = self.bin("lshr", &ity, &bits, &k(16));
            let last = self.bin("and", &ity, &half, &k(1));
            let up = self.bin("add", &ity, &last, &k(0x7fff));
            let sum = self.bin("add", &ity, &bits, &up);
            let code = self.bin("lshr", &ity, &sum, &k(16));
            let nan = self.cmp("fcmp uno", &fty, &x, &x);
            self.choose(n, &nan, &ity, &k(0x7fc0), &code)
        } else if to == DType::F8E8M0 {
            self.encode_scale(mode, n, x)
        } else {
            let Some(format) = to.float_format() else { return no(format!("{to} is not a float")) };
            self.encode(to, &format, mode, n, x)
        };
        let reg = Reg::of(to);
        if coded(to) {
            return Ok(self.conv("trunc", &ity, &code, &reg.ty(n)));
        }
        let code = self.conv("trunc", &ity, &code, &Reg::I16.ty(n));
        Ok(self.conv("bitcast", &Reg::I16.ty(n), &code, &reg.ty(n)))
    }

    /// The code, in an `i32`, of an f32 in an IEEE-like format of at most 16 bits.
    fn encode(&mut self, to: DType, f: &FloatFormat, mode: CastMode, n: usize, x: &V) -> V {
        let (fty, ity, bty) = (Reg::F32.ty(n), Reg::I32.ty(n), Reg::I1.ty(n));
        let k = |x: i64| int(Reg::I32, x, n);
        let top = 1i64 << (to.bits() - 1);
        let bits = self.conv("bitcast", &fty, x, &ity);
        let magnitude = self.bin("and", &ity, &bits, &k(0x7fff_ffff));
        let negative = self.cmp("icmp slt", &ity, &bits, &k(0));
        let field = self.bin("lshr", &ity, &magnitude, &k(23));
        let exponent = self.bin("sub", &ity, &field, &k(127));
        let mantissa = self.bin("and", &ity, &magnitude, &k(0x7f_ffff));
        let with_lead = self.bin("or", &ity, &mantissa, &k(0x80_0000));
        let subnormal = self.cmp("icmp eq", &ity, &field, &k(0));
        let sig = self.choose(n, &subnormal, &ity, &mantissa, &with_lead);
        let exponent = self.choose(n, &subnormal, &ity, &k(-126), &exponent);
        let smax = format!("llvm.smax.{}", Reg::I32.suffix(n));
        let umin = format!("llvm.umin.{}", Reg::I32.suffix(n));
        let least = k(i64::from(f.min_exponent));
        let at = self.call(&ity, &smax, &[(&ity, &exponent), (&ity, &least)]);
        let extra = self.bin("sub", &ity, &at, &exponent);
        let shift = self.bin("add", &ity, &extra, &k(i64::from(23 - f.mantissa_bits)));
        let shift = self.call(&ity, &umin, &[(&ity, &shift), (&ity, &k(26))]);
        let one_up = self.bin("shl", &ity, &k(1), &shift);
        let rest_max = self.bin("sub", &ity, &one_up, &k(1));
        let whole = self.bin("lshr", &ity, &sig, &shift);
        let nearest = |s: &mut Self| {
            let last = s.bin("and", &ity, &whole, &k(1));
            let half = s.bin("lshr", &ity, &rest_max, &k(1));
            s.bin("add", &ity, &half, &last)
        };
        let add = match mode.rounding {
            Rounding::NearestEven => nearest(self),
            Rounding::TowardZero => k(0),
            Rounding::Down => self.choose(n, &negative, &ity, &rest_max, &k(0)),
            Rounding::Up => self.choose(n, &negative, &ity, &k(0), &rest_max),
        };
        let sum = self.bin("add", &ity, &sig, &add);
        let units = self.bin("lshr", &ity, &sum, &shift);
        let up = self.bin("sub", &ity, &at, &least);
        let up = self.bin("shl", &ity, &up, &k(i64::from(f.mantissa_bits)));
        let mut code = self.bin("add", &ity, &up, &units);
        // Past the greatest finite value.
        let most = k(f.max_code as i64);
        let over = self.cmp("icmp ugt", &ity, &code, &most);
        let infinite = self.cmp("icmp eq", &ity, &magnitude, &k(0x7f80_0000));
        let nan_code = f.nan_code.map(|c| c as i64);
        let (past, plain) = match (mode.overflow, nan_code) {
            (Overflow::Saturate, _) => (most.clone(), false),
            _ if f.has_inf => (k(f.max_code as i64 + 1), false),
            (_, Some(nan)) => (k(nan), !f.has_negative_zero),
            _ => (most.clone(), false),
        };
        let finite_past = match mode.rounding {
            Rounding::NearestEven => past.clone(),
            Rounding::TowardZero => most.clone(),
            Rounding::Down => self.choose(n, &negative, &ity, &past, &most),
            Rounding::Up => self.choose(n, &negative, &ity, &most, &past),
        };
        code = self.choose(n, &over, &ity, &finite_past, &code);
        code = self.choose(n, &infinite, &ity, &past, &code);
        // The sign, but for what has none.
        let mut signed = negative;
        if !f.has_negative_zero {
            let some = self.cmp("icmp ne", &ity, &code, &k(0));
            signed = self.bin("and", &bty, &signed, &some);
        }
        if plain && let Some(nan) = nan_code {
            let other = self.cmp("icmp ne", &ity, &code, &k(nan));
            signed = self.bin("and", &bty, &signed, &other);
        }
        let with = self.bin("or", &ity, &code, &k(top));
        code = self.choose(n, &signed, &ity, &with, &code);
        let nan = self.cmp("fcmp uno", &fty, x, x);
        self.choose(n, &nan, &ity, &k(nan_code.unwrap_or(top)), &code)
    }

    /// The f8e8m0 code, in an `i32`, of an f32.
    fn encode_scale(&mut self, mode: CastMode, n: usize, x: &V) -> V {
        let (fty, ity, bty) = (Reg::F32.ty(n), Reg::I32.ty(n), Reg::I1.ty(n));
        let k = |x: i64| int(Reg::I32, x, n);
        let saturate = mode.overflow == Overflow::Saturate;
        // Negative values become NaN, so down is towards zero. What is added before the mantissa is cut off; the
        // least subnormal magnitudes that round to code 1 and to code 0.
        let (add, to_one, to_zero) = match mode.rounding {
            Rounding::NearestEven => (0x40_0000, 0x60_0000, 0x20_0000),
            Rounding::Up => (0x7f_ffff, 0x40_0001, 1),
            Rounding::TowardZero | Rounding::Down => (0, 0x80_0000, 0x40_0000),
        };
        let bits = self.conv("bitcast", &fty, x, &ity);
        let magnitude = self.bin("and", &ity, &bits, &k(0x7fff_ffff));
        let sum = self.bin("add", &ity, &magnitude, &k(add));
        let normal = self.bin("lshr", &ity, &sum, &k(23));
        let upper = self.cmp("icmp uge", &ity, &magnitude, &k(to_one));
        let small = self.conv("zext", &bty, &upper, &ity);
        let subnormal = self.cmp("icmp ult", &ity, &magnitude, &k(0x80_0000));
        let code = self.choose(n, &subnormal, &ity, &small, &normal);
        // Past the greatest value.
        let past = k(if saturate { 254 } else { 255 });
        let finite_past = if add == 0 { k(254) } else { past.clone() };
        let over = self.cmp("icmp ugt", &ity, &code, &k(254));
        let code = self.choose(n, &over, &ity, &finite_past, &code);
        let infinite = self.cmp("icmp eq", &ity, &magnitude, &k(0x7f80_0000));
        let code = self.choose(n, &infinite, &ity, &past, &code);
        // Below half the least value, and zero.
        let tiny = self.cmp("icmp ult", &ity, &magnitude, &k(to_zero));
        let code = self.choose(n, &tiny, &ity, &k(if saturate { 0 } else { 255 }), &code);
        let below = self.cmp("fcmp olt", &fty, x, &real(Reg::F32, 0.0, n));
        let unordered = self.cmp("fcmp uno", &fty, x, x);
        let nan = self.bin("or", &bty, &below, &unordered);
        self.choose(n, &nan, &ity, &k(255), &code)
    }
}
