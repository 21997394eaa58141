//! Arithmetic of f32 on its digits, in 64-bit integers: for chips that have no wider float to be exact in.

use tongtu_tensor::DType;
use tongtu_tensor::scalar::{Binary, Compare, Unary};
use tongtu_tile::Val;

use super::emit::Emit;

const F: DType = DType::F32;
const I: DType = DType::I32;
const W: DType = DType::I64;
const INFINITY: i128 = 0x7f80_0000;

/// A finite number: m × 2^(e - 150), with m from 2^23 to 2^24 or 0.
struct Digits {
    /// The sign bit is set.
    negative: Val,
    /// Exponent, i32.
    e: Val,
    /// Digits, i64.
    m: Val,
    /// Zero, infinite or NaN.
    special: Val,
    /// Infinite or NaN.
    endless: Val,
}

impl Emit<'_> {
    fn digits(&mut self, x: Val) -> Digits {
        let code = self.bits(x, I);
        let negative = self.cmp_i(Compare::Lt, code, 0);
        let magnitude = self.and_i(code, 0x7fff_ffff);
        let endless = self.cmp_i(Compare::Ge, magnitude, INFINITY);
        let is_zero = self.cmp_i(Compare::Eq, magnitude, 0);
        // Subnormal numbers get all their digits.
        let small = self.cmp_i(Compare::Lt, magnitude, 1 << 23);
        let grown = self.mul_k(x, 2f64.powi(24));
        let grown = self.bits(grown, I);
        let grown = self.and_i(grown, 0x7fff_ffff);
        let code = self.sel(small, grown, magnitude);
        let (less, none) = (self.i(I, 24), self.i(I, 0));
        let less = self.sel(small, less, none);
        let e = self.shr(code, 23);
        let e = self.sub(e, less);
        let first = self.i(I, 1 << 23);
        let m = self.and_i(code, (1 << 23) - 1);
        let m = self.or(m, first);
        let m = self.sel(is_zero, none, m);
        let m = self.cast(m, W);
        let special = self.or(endless, is_zero);
        Digits { negative, e, m, special, endless }
    }

    fn clamped(&mut self, x: Val, lo: i128, hi: i128) -> Val {
        let d = self.dtype(x);
        let (lo, hi) = (self.i(d, lo), self.i(d, hi));
        let x = self.bin(Binary::Max, x, lo);
        self.bin(Binary::Min, x, hi)
    }

    /// `x >> n`, the last bit telling of what was lost.
    fn shifted_to_odd(&mut self, x: Val, n: Val) -> Val {
        let s = self.bin(Binary::Shr, x, n);
        let back = self.bin(Binary::Shl, s, n);
        let lost = self.cmp(Compare::Ne, back, x);
        let lost = self.cast(lost, W);
        self.or(s, lost)
    }

    /// `a * b + c` of f32: rounded once to nearest, or to odd, after which rounding to a type of fewer digits is as good as once.
    pub(super) fn fused_digits(&mut self, a: Val, b: Val, c: Val, to_odd: bool) -> Val {
        let (x, y, z) = (self.digits(a), self.digits(b), self.digits(c));
        // Product and addend with about 60 digits each, and the exponents of their last ones.
        let p = self.mul(x.m, y.m);
        let (p, q) = (self.shl(p, 12), self.shl(z.m, 36));
        let pe = self.add(x.e, y.e);
        let (pe, qe) = (self.add_i(pe, -312), self.add_i(z.e, -186));
        let unit = self.bin(Binary::Max, pe, qe);
        let (down_p, down_q) = (self.sub(unit, pe), self.sub(unit, qe));
        let (down_p, down_q) = (self.clamped(down_p, 0, 62), self.clamped(down_q, 0, 62));
        let (down_p, down_q) = (self.cast(down_p, W), self.cast(down_q, W));
        let (p, q) = (self.shifted_to_odd(p, down_p), self.shifted_to_odd(q, down_q));
        let zero = self.i(W, 0);
        let (minus_p, minus_q) = (self.sub(zero, p), self.sub(zero, q));
        let opposite = self.bin(Binary::Xor, x.negative, y.negative);
        let (p, q) = (self.sel(opposite, minus_p, p), self.sel(z.negative, minus_q, q));
        let sum = self.add(p, q);
        let (negative, minus) = (self.cmp_i(Compare::Lt, sum, 0), self.sub(zero, sum));
        let mut m = self.sel(negative, minus, sum);
        let mut e = unit;
        // The first digit to place 60.
        for step in [32, 16, 8, 4, 2, 1] {
            let low = self.cmp_i(Compare::Lt, m, 1 << (61 - step));
            let (up, less) = (self.shl(m, step), self.add_i(e, -i128::from(step)));
            m = self.sel(low, up, m);
            e = self.sel(low, less, e);
        }
        let e = self.add_i(e, 187);
        let e = self.clamped(e, -30, 255);
        let below = self.i(I, 1);
        let below = self.sub(below, e);
        let below = self.clamped(below, 0, 25);
        let drop = self.add_i(below, 37);
        let drop = self.cast(drop, W);
        let kept = if to_odd {
            self.shifted_to_odd(m, drop)
        } else {
            let down = self.bin(Binary::Shr, m, drop);
            let odd = self.and_i(down, 1);
            let (less, one) = (self.add_i(drop, -1), self.i(W, 1));
            let half = self.bin(Binary::Shl, one, less);
            let half = self.add_i(half, -1);
            let up = self.add(half, odd);
            let up = self.add(m, up);
            self.bin(Binary::Shr, up, drop)
        };
        let kept = self.cast(kept, I);
        let base = self.add_i(e, -1);
        let none = self.i(I, 0);
        let base = self.bin(Binary::Max, base, none);
        let base = self.shl(base, 23);
        let code = self.add(base, kept);
        let most = self.i(I, if to_odd { INFINITY - 1 } else { INFINITY });
        let code = self.bin(Binary::Min, code, most);
        let nothing = self.cmp_i(Compare::Eq, m, 0);
        let code = self.sel(nothing, none, code);
        let sign = self.i(I, i32::MIN.into());
        let sign = self.sel(negative, sign, none);
        let code = self.or(code, sign);
        let r = self.bits(code, F);
        // Where the product is exact as it is, and where it is finite and the addend is not.
        let r = self.sel(z.endless, c, r);
        let product = self.mul(a, b);
        let plain = self.add(product, c);
        let special = self.or(x.special, y.special);
        self.sel(special, plain, r)
    }

    /// C's fmod of f32: the digits of the quotient are taken off 38 at a time.
    pub(super) fn remainder_digits(&mut self, a: Val, b: Val) -> Val {
        let (x, y) = (self.digits(a), self.digits(b));
        let away = self.sub(x.e, y.e);
        let none = self.i(I, 0);
        let smaller = self.cmp(Compare::Lt, away, none);
        let endless_b = self.and(y.endless, y.special);
        let nan_b = self.cmp(Compare::Ne, b, b);
        let zero_b = self.cmp_k(Compare::Eq, b, 0.0);
        let invalid = self.or(x.endless, nan_b);
        let invalid = self.or(invalid, zero_b);
        let (one, zero) = (self.i(W, 1), self.i(W, 0));
        let by = self.sel(y.special, one, y.m);
        let first = self.bin(Binary::Rem, x.m, by);
        let idle = self.or(smaller, y.special);
        let idle = self.or(idle, x.endless);
        let left = self.sel(idle, none, away);
        let more = self.cmp_i(Compare::Gt, left, 0);
        let go = self.any(more);
        let out = self.repeat(go, &[first, left], |m, carried| {
            let (r, left) = (carried[0], carried[1]);
            let most = m.i(I, 38);
            let part = m.bin(Binary::Min, left, most);
            let left = m.sub(left, part);
            let by_bits = m.cast(part, W);
            let r = m.bin(Binary::Shl, r, by_bits);
            let r = m.bin(Binary::Rem, r, by);
            let more = m.cmp_i(Compare::Gt, left, 0);
            (m.any(more), vec![r, left])
        });
        let r = out.first().copied().unwrap_or(zero);
        let r = self.cast(r, I);
        let r = self.cast(r, F);
        // Times 2^(e - 150) in two exact steps.
        let e = self.add_i(y.e, -150);
        let first = self.clamped(e, -100, 127);
        let second = self.sub(e, first);
        let r = self.times_power(r, first);
        let r = self.times_power(r, second);
        let code = self.bits(a, I);
        let magnitude = self.and_i(code, 0x7fff_ffff);
        let magnitude = self.bits(magnitude, F);
        let keeps = self.or(smaller, endless_b);
        let r = self.sel(keeps, magnitude, r);
        let minus = self.un(Unary::Neg, r);
        let r = self.sel(x.negative, minus, r);
        let nan = self.k(F, f64::NAN);
        self.sel(invalid, nan, r)
    }

    /// `x * 2^n` for n that is the exponent of a normal number.
    fn times_power(&mut self, x: Val, n: Val) -> Val {
        let n = self.add_i(n, 127);
        let power = self.shl(n, 23);
        let power = self.bits(power, F);
        self.mul(x, power)
    }
}
