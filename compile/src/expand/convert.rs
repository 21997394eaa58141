//! Conversions between element types by bit operations.

use tongtu_tensor::scalar::{Binary, Compare, Unary};
use tongtu_tensor::{CastMode, DType, FloatFormat, Overflow, Rounding};
use tongtu_tile::{Op, Val};

use super::emit::Emit;
use super::math::format;

/// The unsigned integer of a narrow type's width; `None` for widths without one.
fn bits_type(d: DType) -> Option<DType> {
    match d.bits() {
        4 => Some(DType::U4),
        8 => Some(DType::U8),
        16 => Some(DType::U16),
        _ => None,
    }
}

impl Emit<'_> {
    pub(super) fn convert(&mut self, x: Val, to: DType, mode: CastMode) -> Option<Val> {
        let from = self.dtype(x);
        if from.is_bool() && to != DType::I32 {
            let wide = self.cast(x, DType::I32);
            return Some(self.op(Op::Cast { to, mode }, &[wide]));
        }
        if to.is_bool() {
            // Not every narrow float has a zero.
            let x = if from.is_float() && from.bits() <= 8 { self.cast(x, DType::F32) } else { x };
            let from = self.dtype(x);
            let zero = if from.is_float() { self.k(from, 0.0) } else { self.i(from, 0) };
            return Some(self.cmp(Compare::Ne, x, zero));
        }
        match (from.is_float(), to.is_float()) {
            (true, _) if from.bits() < 32 => {
                if to != DType::F32 {
                    let wide = self.cast(x, DType::F32);
                    return Some(self.op(Op::Cast { to, mode }, &[wide]));
                }
                let wide = self.decode(x)?;
                let infinite = from.float_format().is_some_and(|f| f.has_inf);
                if mode.overflow == Overflow::Format || !infinite {
                    return Some(wide);
                }
                Some(self.made_finite(wide))
            }
            (true, true) if from == DType::F32 && to == from => match mode.overflow {
                Overflow::Saturate => Some(self.made_finite(x)),
                _ => Some(x),
            },
            (true, true) if to.bits() < 32 => self.encode(x, to, mode),
            (true, false) => self.float_to_int(x, to, mode),
            (false, true) if to == DType::F32 && mode.rounding != Rounding::NearestEven => {
                match from.bits() {
                    0..=16 => Some(self.cast(x, to)),
                    _ => Some(self.integer_directed(x, mode.rounding)),
                }
            }
            (false, true) if to.bits() < 32 => {
                // Through a float that holds the integer exactly, or to odd.
                let wide = match from.bits() {
                    0..=16 => self.cast(x, DType::F32),
                    _ if !self.has_wide() => self.integer_to_odd(x),
                    32 => self.cast(x, DType::F64),
                    _ => self.long_to_odd(x),
                };
                Some(self.op(Op::Cast { to, mode }, &[wide]))
            }
            (false, true) if from == DType::U32 && to == DType::F32 => {
                // Both halves are exact, their sum is rounded once.
                let (high, low) = (self.shr(x, 16), self.and_i(x, 0xffff));
                let (high, low) = (self.bits(high, DType::I32), self.bits(low, DType::I32));
                let (high, low) = (self.cast(high, to), self.cast(low, to));
                let high = self.mul_k(high, 65536.0);
                Some(self.add(high, low))
            }
            (false, true) if from == DType::U64 && to == DType::F32 => {
                // Halved to odd where the sign bit is in the way.
                let (half, odd) = (self.shr(x, 1), self.and_i(x, 1));
                let half = self.or(half, odd);
                let (x, half) = (self.bits(x, DType::I64), self.bits(half, DType::I64));
                let large = self.cmp_i(Compare::Lt, x, 0);
                let (one, two) = (self.k(to, 1.0), self.k(to, 2.0));
                let (r, by) = (self.sel(large, half, x), self.sel(large, two, one));
                let r = self.cast(r, to);
                Some(self.mul(r, by))
            }
            (false, true) if from.bits() < 32 => {
                let wide = self.cast(x, if from.is_signed() { DType::I32 } else { DType::U32 });
                Some(self.cast(wide, to))
            }
            (false, false) if mode.overflow == Overflow::Saturate => self.saturate_int(x, to),
            _ => None,
        }
    }

    /// An f32 with the greatest finite values in place of infinite ones.
    fn made_finite(&mut self, x: Val) -> Val {
        let d = DType::F32;
        let (lo, hi) = (self.k(d, f32::MIN.into()), self.k(d, f32::MAX.into()));
        let r = self.bin(Binary::Max, x, lo);
        self.bin(Binary::Min, r, hi)
    }

    /// A 64-bit integer as f64, the last bit telling of what was lost.
    fn long_to_odd(&mut self, x: Val) -> Val {
        let d = self.dtype(x);
        let low = self.and_i(x, 0xfff);
        let high = self.sub(x, low);
        let (sticky, zero) = (self.i(d, 0x800), self.i(d, 0));
        let some = self.cmp_i(Compare::Ne, low, 0);
        let rest = self.sel(some, sticky, zero);
        let odd = self.or(high, rest);
        // Integers below 2^53 need no help.
        let top = self.shr(x, 53);
        let minus = self.i(d, -1);
        let (none, ones) = (self.cmp_i(Compare::Eq, top, 0), self.cmp(Compare::Eq, top, minus));
        let small = self.or(none, ones);
        let x = self.sel(small, x, odd);
        self.cast(x, DType::F64)
    }

    /// An integer as f32, digits after the first 13 telling of what was lost.
    fn integer_to_odd(&mut self, x: Val) -> Val {
        let d = self.dtype(x);
        let mut rest = self.i(d, 0);
        let mut size = self.un(Unary::Abs, x);
        if d.is_signed() {
            // The least integer has no opposite.
            let most = self.i(d, d.max_value().to_i128());
            let none = self.i(d, 0);
            let over = self.cmp(Compare::Lt, size, none);
            size = self.sel(over, most, size);
        }
        for (from, digits) in [(24, 10), (33, 20), (43, 30), (53, 40), (63, 50)] {
            if 1i128 << from <= d.max_value().to_i128() {
                let large = self.cmp_i(Compare::Ge, size, 1 << from);
                let mask = self.i(d, (1 << digits) - 1);
                rest = self.sel(large, mask, rest);
            }
        }
        let low = self.and(x, rest);
        let high = self.sub(x, low);
        let (zero, one) = (self.i(d, 0), self.i(d, 1));
        let unit = self.add(rest, one);
        let half = self.shr(unit, 1);
        let some = self.cmp(Compare::Ne, low, zero);
        let odd = self.sel(some, half, zero);
        let odd = self.or(high, odd);
        self.cast(odd, DType::F32)
    }

    /// An integer of 32 or 64 bits as f32, rounded towards zero, down or up.
    fn integer_directed(&mut self, x: Val, rounding: Rounding) -> Val {
        let x = if self.dtype(x).bits() < 64 { self.cast(x, DType::I64) } else { x };
        let (zero, w) = (self.i(self.dtype(x), 0), DType::U64);
        let negative = self.cmp(Compare::Lt, x, zero);
        let minus = self.sub(zero, x);
        let m = self.sel(negative, minus, x);
        let m = self.bits(m, w);
        // 24 digits, and the places that are cut off.
        let (mut kept, mut places) = (m, self.i(w, 0));
        for step in [32, 16, 8, 4, 2, 1] {
            let large = self.cmp_i(Compare::Ge, kept, 1 << (23 + step));
            let (less, more) = (self.shr(kept, step), self.add_i(places, step.into()));
            kept = self.sel(large, less, kept);
            places = self.sel(large, more, places);
        }
        let back = self.bin(Binary::Shl, kept, places);
        let lost = self.cmp(Compare::Ne, back, m);
        let (none, one) = (self.i(w, 0), self.i(w, 1));
        let up = self.sel(lost, one, none);
        let up = self.toward(negative, rounding, none, up);
        let kept = self.add(kept, up);
        let (kept, places) = (self.cast(kept, DType::I32), self.cast(places, DType::I32));
        let value = self.cast(kept, DType::F32);
        let power = self.add_i(places, 127);
        let power = self.shl(power, 23);
        let power = self.bits(power, DType::F32);
        let r = self.mul(value, power);
        let minus = self.un(Unary::Neg, r);
        self.sel(negative, minus, r)
    }

    fn saturate_int(&mut self, x: Val, to: DType) -> Option<Val> {
        let from = self.dtype(x);
        let (lo, hi) = (to.min_value().to_i128(), to.max_value().to_i128());
        let (least, most) = (from.min_value().to_i128(), from.max_value().to_i128());
        let mut r = x;
        if lo > least {
            let k = self.i(from, lo);
            r = self.bin(Binary::Max, r, k);
        }
        if hi < most {
            let k = self.i(from, hi);
            r = self.bin(Binary::Min, r, k);
        }
        Some(self.cast(r, to))
    }

    /// Truncation to an integer; out of range modulo 2^bits, or saturating.
    fn float_to_int(&mut self, x: Val, to: DType, mode: CastMode) -> Option<Val> {
        let saturate = CastMode { overflow: Overflow::Saturate, ..mode };
        if mode.overflow == Overflow::Saturate {
            let w = match to.bits() {
                0..=16 if to != DType::I32 => DType::I32,
                32 if to == DType::U32 => DType::I64,
                64 if self.dtype(x) == DType::F32 && !self.has_wide() => {
                    return Some(self.digits_to_long(x, to));
                }
                _ => return None,
            };
            let wide = self.op(Op::Cast { to: w, mode: saturate }, &[x]);
            return self.saturate_int(wide, to);
        }
        let d = DType::F64;
        if self.dtype(x) == DType::F32 && !self.has_wide() {
            return Some(self.digits_to_int(x, to));
        }
        let x = self.cast(x, d);
        let t = self.un(Unary::Trunc, x);
        let magnitude = self.un(Unary::Abs, t);
        let finite = self.cmp_k(Compare::Lt, magnitude, f64::INFINITY);
        let zero = self.k(d, 0.0);
        let t = self.sel(finite, t, zero);
        let wide = to.bits() == 64;
        let span = if wide { 64 } else { 32 };
        // t modulo 2^span; every step is exact.
        let q = self.mul_k(t, 2f64.powi(-span));
        let q = self.un(Unary::RoundEven, q);
        let whole = self.mul_k(q, 2f64.powi(span));
        let r = self.sub(t, whole);
        // At most half the span; exactly half is the least value.
        let upper = self.cmp_k(Compare::Ge, r, 2f64.powi(span - 1));
        let less = self.add_k(r, -(2f64.powi(span)));
        let r = self.sel(upper, less, r);
        let n = self.op(Op::Cast { to: DType::I64, mode: saturate }, &[r]);
        Some(match to {
            DType::U64 => self.bits(n, to),
            _ => self.cast(n, to),
        })
    }

    /// Whether there is f64 to compute in.
    pub(super) fn has_wide(&self) -> bool {
        let wide = Op::Cast { to: DType::F64, mode: CastMode::default() };
        self.takes(&wide, &[DType::F32])
    }

    /// An f32 truncated to an integer modulo 2^bits, from its digits.
    fn digits_to_int(&mut self, x: Val, to: DType) -> Val {
        let code = self.bits(x, DType::U32);
        let exponent = self.shr(code, 23);
        let exponent = self.and_i(exponent, 0xff);
        let digits = self.and_i(code, 0x007f_ffff);
        let first = self.i(DType::U32, 0x0080_0000);
        let digits = self.or(digits, first);
        let wide = if to.bits() == 64 { DType::U64 } else { DType::U32 };
        let (e, digits) = (self.cast(exponent, wide), self.cast(digits, wide));
        // Shifts past the width give 0.
        let bias = self.i(wide, 150);
        let (up, down) = (self.sub(e, bias), self.sub(bias, e));
        let (left, right) = (self.bin(Binary::Shl, digits, up), self.bin(Binary::Shr, digits, down));
        let large = self.cmp_i(Compare::Ge, exponent, 150);
        let r = self.sel(large, left, right);
        let zero = self.i(wide, 0);
        let minus = self.sub(zero, r);
        let sign = self.shr(code, 31);
        let negative = self.cmp_i(Compare::Ne, sign, 0);
        let r = self.sel(negative, minus, r);
        let finite = self.cmp_i(Compare::Ne, exponent, 0xff);
        let r = self.sel(finite, r, zero);
        match (to, wide) {
            (DType::I32, _) | (DType::I64, _) => self.bits(r, to),
            _ if to == wide => r,
            _ => self.cast(r, to),
        }
    }

    /// An f32 truncated to an integer of 64 bits, to the nearest there is.
    fn digits_to_long(&mut self, x: Val, to: DType) -> Val {
        let mut r = self.digits_to_int(x, to);
        // All is asked of the code: not every chip chooses long integers by comparisons of floats.
        let code = self.bits(x, DType::U32);
        let magnitude = self.and_i(code, 0x7fff_ffff);
        let sign = self.shr(code, 31);
        let negative = self.cmp_i(Compare::Ne, sign, 0);
        let (zero, most) = (self.i(to, 0), self.i(to, to.max_value().to_i128()));
        let least = self.i(to, to.min_value().to_i128());
        let digits = if to.is_signed() { 63 } else { 64 };
        let beyond = self.cmp_i(Compare::Ge, magnitude, (127 + digits) << 23);
        let bound = self.sel(negative, least, most);
        r = self.sel(beyond, bound, r);
        if !to.is_signed() {
            r = self.sel(negative, zero, r);
        }
        let nan = self.cmp_i(Compare::Gt, magnitude, 0x7f80_0000);
        self.sel(nan, zero, r)
    }

    /// A narrow float as f32, exactly.
    fn decode(&mut self, x: Val) -> Option<Val> {
        let d = self.dtype(x);
        let f = d.float_format()?;
        let code = self.bits(x, bits_type(d)?);
        let code = self.cast(code, DType::U32);
        self.value_of(code, d, &f)
    }

    /// The f32 that a narrow float's code stands for.
    fn value_of(&mut self, code: Val, d: DType, f: &FloatFormat) -> Option<Val> {
        let (i, r) = (DType::U32, DType::F32);
        if d == DType::BF16 {
            let b = self.shl(code, 16);
            return Some(self.bits(b, r));
        }
        if d == DType::F8E8M0 {
            let b = self.shl(code, 23);
            let (least, nan) = (self.i(i, 0x0040_0000), self.i(i, 0x7fc0_0000));
            let (zero, last) = (self.cmp_i(Compare::Eq, code, 0), self.cmp_i(Compare::Eq, code, 255));
            let b = self.sel(zero, least, b);
            let b = self.sel(last, nan, b);
            return Some(self.bits(b, r));
        }
        if d == DType::HiF8 {
            return Some(self.decode_hif8(code));
        }
        let width = d.bits();
        let magnitude = self.and_i(code, (1 << (width - 1)) - 1);
        let sign = self.shr(code, width - 1);
        let sign = self.shl(sign, 31);
        let bias = 1 - f.min_exponent;
        let normal = self.shl(magnitude, 23 - f.mantissa_bits);
        let normal = self.add_i(normal, i128::from(127 - bias) << 23);
        let small = self.cast(magnitude, r);
        let small = self.mul_k(small, 2f64.powi(f.min_exponent - f.mantissa_bits as i32));
        let small = self.bits(small, i);
        let is_small = self.cmp_i(Compare::Lt, magnitude, 1 << f.mantissa_bits);
        let mut b = self.sel(is_small, small, normal);
        let above = self.cmp_i(Compare::Gt, magnitude, f.max_code.into());
        if f.has_nan || f.has_inf {
            let nan = self.i(i, 0x7fc0_0000);
            let mut special = nan;
            if f.has_inf {
                let is_inf = self.cmp_i(Compare::Eq, magnitude, i128::from(f.max_code) + 1);
                let inf = self.i(i, 0x7f80_0000);
                special = self.sel(is_inf, inf, nan);
            }
            b = self.sel(above, special, b);
        }
        b = self.or(b, sign);
        if !f.has_negative_zero {
            let is_nan = self.cmp_i(Compare::Eq, code, 1 << (width - 1));
            let nan = self.i(i, 0x7fc0_0000);
            b = self.sel(is_nan, nan, b);
        }
        Some(self.bits(b, r))
    }

    /// HiF8: after the sign a prefix code says how many exponent bits follow; the rest is mantissa.
    fn decode_hif8(&mut self, code: Val) -> Val {
        let i = DType::I32;
        let code = self.bits(code, i);
        let size = self.and_i(code, 127);
        // Below the prefix codes: powers of two.
        let power = self.add_i(size, 127 - 23);
        let mut r = self.shl(power, 23);
        // From which code on: the exponent's least size, how many of its digits follow, where its sign and the mantissa lie.
        for (limit, least, digits, sign, places) in
            [(8, 0, 0, 0, 3), (16, 1, 0, 8, 3), (32, 2, 1, 16, 3), (64, 4, 2, 16, 2), (96, 8, 3, 16, 1)]
        {
            let more = self.shr(size, places);
            let more = self.and_i(more, (1 << digits) - 1);
            let exponent = self.add_i(more, least);
            let minus = self.un(Unary::Neg, exponent);
            let below = self.and_i(size, sign);
            let below = self.cmp_i(Compare::Ne, below, 0);
            let exponent = self.sel(below, minus, exponent);
            let exponent = self.add_i(exponent, 127);
            let exponent = self.shl(exponent, 23);
            let mantissa = self.and_i(size, (1 << places) - 1);
            let mantissa = self.shl(mantissa, 23 - places);
            let value = self.or(exponent, mantissa);
            let here = self.cmp_i(Compare::Ge, size, limit);
            r = self.sel(here, value, r);
        }
        let f = DType::HiF8.float_format().map_or(0, |f| f.max_code);
        for (at, bits) in [(0, 0), (i128::from(f) + 1, 0x7f80_0000)] {
            let (is, bits) = (self.cmp_i(Compare::Eq, size, at), self.i(i, bits));
            r = self.sel(is, bits, r);
        }
        let sign = self.and_i(code, 128);
        let sign = self.shl(sign, 24);
        let r = self.or(r, sign);
        let (is_nan, nan) = (self.cmp_i(Compare::Eq, code, 128), self.i(i, 0x7fc0_0000));
        let r = self.sel(is_nan, nan, r);
        self.bits(r, DType::F32)
    }

    /// f32 or f64 to a narrow float, rounded once.
    fn encode(&mut self, x: Val, to: DType, mode: CastMode) -> Option<Val> {
        let (f, target) = (format(self.dtype(x))?, to.float_format()?);
        let store = bits_type(to);
        // Without an integer of its width a type must be converted to by leaving digits out: then the value is rounded before.
        let cut = Op::Cast { to, mode: CastMode { rounding: Rounding::TowardZero, ..CastMode::default() } };
        if store.is_none() && !self.takes(&cut, &[f.d]) {
            return None;
        }
        let i = f.int;
        let bits = self.bits(x, i);
        let sign_bit = self.i(i, if f.single() { i32::MIN.into() } else { i64::MIN.into() });
        let a = self.bin(Binary::Xor, bits, sign_bit);
        let negative = self.cmp_i(Compare::Lt, bits, 0);
        let a = self.sel(negative, a, bits);
        let finite_limit = self.i(i, if f.single() { 0x7f80_0000 } else { 0x7ff0_0000_0000_0000 });
        let nan = self.cmp(Compare::Gt, a, finite_limit);
        let nearest = mode.rounding == Rounding::NearestEven;
        let (code, over) = match to {
            DType::HiF8 => self.hif8_code(f, a, negative, mode.rounding),
            _ => {
                let code = match (to, nearest) {
                    (DType::F8E8M0, true) => self.scale_code(f.mantissa, a, f.bias),
                    (DType::F8E8M0, false) => self.directed_scale(f, a, mode.rounding),
                    (_, true) => self.rounded_code(f, a, &target),
                    _ => self.directed_code(f, a, negative, &target, mode.rounding),
                };
                (code, self.cmp_i(Compare::Gt, code, target.max_code.into()))
            }
        };
        let saturate = mode.overflow == Overflow::Saturate;
        let overflowed = match (saturate, target.has_inf, target.nan_code) {
            (false, true, _) => i128::from(target.max_code) + 1,
            (false, false, Some(n)) => i128::from(n),
            _ => target.max_code.into(),
        };
        // Where the rounding is towards zero, finite values stay finite.
        let (most, past) = (self.i(i, target.max_code.into()), self.i(i, overflowed));
        let infinite = self.cmp(Compare::Eq, a, finite_limit);
        let beyond = self.toward(negative, mode.rounding, most, past);
        let beyond = self.sel(infinite, past, beyond);
        let mut code = self.sel(over, beyond, code);
        if target.has_sign {
            let s = self.i(i, 1 << (to.bits() - 1));
            let signed = self.or(code, s);
            let signed = match target.has_negative_zero {
                true => signed,
                false => {
                    let zero = self.cmp_i(Compare::Eq, code, 0);
                    self.sel(zero, code, signed)
                }
            };
            code = self.sel(negative, signed, code);
            if !target.has_negative_zero && !saturate && !target.has_inf {
                // Overflow gives the one NaN whatever the sign.
                let lost = self.cmp(Compare::Eq, beyond, past);
                let lost = self.and(over, lost);
                let n = self.i(i, target.nan_code.unwrap_or(0).into());
                code = self.sel(lost, n, code);
            }
        } else {
            let n = self.i(i, target.nan_code.unwrap_or(0).into());
            let zero = self.cmp_i(Compare::Eq, a, 0);
            let some = self.un(Unary::Not, zero);
            let below = self.and(negative, some);
            code = self.sel(below, n, code);
            if !saturate {
                let half = self.cmp_i(Compare::Lt, code, 0);
                code = self.sel(half, n, code);
            } else {
                let none = self.i(i, 0);
                code = self.bin(Binary::Max, code, none);
            }
        }
        let n = self.i(i, target.nan_code.unwrap_or(1 << (to.bits() - 1)).into());
        code = self.sel(nan, n, code);
        let Some(store) = store else {
            let code = self.cast(code, DType::U32);
            let value = self.value_of(code, to, &target)?;
            return Some(self.op(cut, &[value]));
        };
        let code = self.cast(code, store);
        Some(self.bits(code, to))
    }

    /// What goes with a magnitude that is rounded towards zero, or towards infinity (to nearest, too).
    fn toward(&mut self, negative: Val, rounding: Rounding, zero: Val, infinity: Val) -> Val {
        match rounding {
            Rounding::NearestEven => infinity,
            Rounding::TowardZero => zero,
            Rounding::Down => self.sel(negative, infinity, zero),
            Rounding::Up => self.sel(negative, zero, infinity),
        }
    }

    /// As [`Emit::rounded_code`], rounded towards zero or away from it.
    fn directed_code(
        &mut self,
        f: super::math::Format,
        a: Val,
        negative: Val,
        target: &FloatFormat,
        rounding: Rounding,
    ) -> Val {
        let i = f.int;
        let field = self.shr(a, f.mantissa);
        let subnormal = self.cmp_i(Compare::Eq, field, 0);
        let mantissa = self.and_i(a, (1 << f.mantissa) - 1);
        let with_lead = self.add_i(mantissa, 1 << f.mantissa);
        let sig = self.sel(subnormal, mantissa, with_lead);
        let one = self.i(i, 1);
        let field = self.bin(Binary::Max, field, one);
        // Places to cut off: more below the least normal exponent, until nothing is left.
        let least = self.i(i, f.bias + i128::from(target.min_exponent));
        let at = self.bin(Binary::Max, field, least);
        let extra = self.sub(at, field);
        let shift = self.add_i(extra, (f.mantissa - target.mantissa_bits).into());
        let most = self.i(i, i128::from(f.mantissa) + 2);
        let shift = self.bin(Binary::Min, shift, most);
        let unit = self.bin(Binary::Shl, one, shift);
        let rest = self.add_i(unit, -1);
        let none = self.i(i, 0);
        let add = self.toward(negative, rounding, none, rest);
        let sum = self.add(sig, add);
        let units = self.bin(Binary::Shr, sum, shift);
        let up = self.sub(at, least);
        let up = self.shl(up, target.mantissa_bits);
        self.add(up, units)
    }

    /// The code of a magnitude in HiF8, and whether it is past the greatest; to nearest halves go up.
    fn hif8_code(&mut self, f: super::math::Format, a: Val, negative: Val, rounding: Rounding) -> (Val, Val) {
        let i = f.int;
        let bits_of =
            |x: f64| -> i128 { if f.single() { (x as f32).to_bits().into() } else { x.to_bits().into() } };
        let exponent = |s: &mut Self, a: Val| {
            let field = s.shr(a, f.mantissa);
            let e = s.add_i(field, -f.bias);
            let minus = s.un(Unary::Neg, e);
            (e, s.bin(Binary::Max, e, minus))
        };
        // Mantissa places to cut off, by the size of the exponent.
        let places = |s: &mut Self, size: Val| {
            let mut drop = s.i(i, f.mantissa.into());
            for (limit, kept) in [(16, 1), (8, 2), (4, 3)] {
                let (less, fewer) =
                    (s.cmp_i(Compare::Lt, size, limit), s.i(i, i128::from(f.mantissa) - kept));
                drop = s.sel(less, fewer, drop);
            }
            drop
        };
        let (_, size) = exponent(self, a);
        let drop = places(self, size);
        let one = self.i(i, 1);
        let unit = self.bin(Binary::Shl, one, drop);
        let none = self.i(i, 0);
        let add = match rounding {
            Rounding::NearestEven => self.shr(unit, 1),
            _ => {
                let rest = self.add_i(unit, -1);
                self.toward(negative, rounding, none, rest)
            }
        };
        // A NaN or infinity would run over.
        let limit = self.i(i, bits_of(65536.0));
        let held = self.bin(Binary::Min, a, limit);
        let sum = self.add(held, add);
        let r = self.bin(Binary::Shr, sum, drop);
        let r = self.bin(Binary::Shl, r, drop);
        let over = self.cmp_i(Compare::Ge, r, bits_of(49152.0));
        let (e, size) = exponent(self, r);
        let drop = places(self, size);
        let mantissa = self.and_i(r, (1 << f.mantissa) - 1);
        let mantissa = self.bin(Binary::Shr, mantissa, drop);
        let below = self.cmp_i(Compare::Lt, e, 0);
        // Powers of two below the others, then the prefix codes, the sign of the exponent and what is left of it.
        let mut code = self.add_i(e, 23);
        for (limit, prefix, sign, mask, at) in
            [(16, 96, 4, 7, 1), (8, 64, 4, 3, 2), (4, 32, 4, 1, 3), (2, 16, 3, 0, 3)]
        {
            let (minus, plus) = (self.i(i, prefix + (1 << sign)), self.i(i, prefix));
            let head = self.sel(below, minus, plus);
            let rest = self.and_i(size, mask);
            let rest = self.shl(rest, at);
            let whole = self.add(head, rest);
            let whole = self.add(whole, mantissa);
            let less = self.cmp_i(Compare::Lt, size, limit);
            code = self.sel(less, whole, code);
        }
        let unit = self.add_i(mantissa, 8);
        let is_unit = self.cmp_i(Compare::Eq, size, 0);
        code = self.sel(is_unit, unit, code);
        // Below the least value.
        let threshold =
            self.i(i, if rounding == Rounding::NearestEven { bits_of(2f64.powi(-23)) } else { 1 });
        let reaches = self.cmp(Compare::Ge, a, threshold);
        let up = self.sel(reaches, one, none);
        let small = self.toward(negative, rounding, none, up);
        let tiny = self.cmp_i(Compare::Lt, a, bits_of(2f64.powi(-22)));
        (self.sel(tiny, small, code), over)
    }

    /// The magnitude's code, past the greatest where it does not fit.
    fn rounded_code(&mut self, f: super::math::Format, a: Val, target: &FloatFormat) -> Val {
        let drop = f.mantissa - target.mantissa_bits;
        let bias = 1 - i128::from(target.min_exponent);
        let odd = self.shr(a, drop);
        let odd = self.and_i(odd, 1);
        let r = self.add_i(a, (1 << (drop - 1)) - 1);
        let r = self.add(r, odd);
        let r = self.shr(r, drop);
        let normal = self.add_i(r, -((f.bias - bias) << target.mantissa_bits));
        if target.min_exponent == 1 - f.bias as i32 {
            // The exponents are the source's own, subnormals too.
            return normal;
        }
        // Adding a power of two leaves the subnormal code in the low bits, rounded.
        let magic = 2f64.powi(target.min_exponent - target.mantissa_bits as i32 + f.mantissa as i32);
        let value = self.bits(a, f.d);
        let sum = self.add_k(value, magic);
        let k = self.k(f.d, magic);
        let (s, k) = (self.bits(sum, f.int), self.bits(k, f.int));
        let small = self.sub(s, k);
        let least = (f.bias + i128::from(target.min_exponent)) << f.mantissa;
        let is_small = self.cmp_i(Compare::Lt, a, least);
        self.sel(is_small, small, normal)
    }

    /// The code of a power-of-two scale, halves up; -1 below half the least value, and for zero.
    fn scale_code(&mut self, mantissa: u32, a: Val, bias: i128) -> Val {
        let half = self.add_i(a, 1 << (mantissa - 1));
        let code = self.shr(half, mantissa);
        let code = self.add_i(code, 127 - bias);
        if bias == 127 {
            // f32 subnormals: 2^-127 is code 0 and reaches up to 3/2 of it, 2^-128 is half of that.
            let field = self.i(self.dtype(a), 1 << mantissa);
            let subnormal = self.cmp(Compare::Lt, a, field);
            let (one, zero, minus) =
                (self.i(self.dtype(a), 1), self.i(self.dtype(a), 0), self.i(self.dtype(a), -1));
            let upper = self.cmp_i(Compare::Ge, a, 3 << (mantissa - 2));
            let lower = self.cmp_i(Compare::Lt, a, 1 << (mantissa - 2));
            let c = self.sel(upper, one, zero);
            let c = self.sel(lower, minus, c);
            return self.sel(subnormal, c, code);
        }
        // From half the least value on, 2^-128, the least.
        let (minus, zero) = (self.i(self.dtype(a), -1), self.i(self.dtype(a), 0));
        let reaches = self.cmp_i(Compare::Ge, a, (bias - 128) << mantissa);
        let least = self.bin(Binary::Max, code, zero);
        self.sel(reaches, least, minus)
    }

    /// As [`Emit::scale_code`], rounded down or up: negative values, which become NaN, do not matter here.
    fn directed_scale(&mut self, f: super::math::Format, a: Val, rounding: Rounding) -> Val {
        let up = rounding == Rounding::Up;
        let d = self.dtype(a);
        let minus = self.i(d, -1);
        let sum = if up { self.add_i(a, (1 << f.mantissa) - 1) } else { a };
        let code = self.shr(sum, f.mantissa);
        let mut code = self.add_i(code, 127 - f.bias);
        if f.single() {
            // Subnormals: 2^-127 is code 0.
            let subnormal = self.cmp_i(Compare::Lt, a, 1 << f.mantissa);
            let half = 1i128 << (f.mantissa - 1);
            let (first, second) = if up { (1, half + 1) } else { (half, 1 << f.mantissa) };
            let (zero, one) = (self.i(d, 0), self.i(d, 1));
            let to_one = self.cmp_i(Compare::Ge, a, second);
            let to_zero = self.cmp_i(Compare::Ge, a, first);
            let c = self.sel(to_zero, zero, minus);
            let c = self.sel(to_one, one, c);
            code = self.sel(subnormal, c, code);
        } else if up {
            let zero = self.i(d, 0);
            code = self.bin(Binary::Max, code, zero);
        } else {
            code = self.bin(Binary::Max, code, minus);
        }
        let nothing = self.cmp_i(Compare::Eq, a, 0);
        self.sel(nothing, minus, code)
    }
}
