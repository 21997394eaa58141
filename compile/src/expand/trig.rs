//! Sine, cosine and tangent over the whole range.

use tongtu_tensor::DType;
use tongtu_tensor::scalar::{Binary, Compare, Unary};
use tongtu_tile::{Op, Val};

use super::coefficients::*;
use super::emit::Emit;
use super::math::Format;

impl Emit<'_> {
    pub(super) fn trigonometric(&mut self, f: Format, op: Unary, x: Val) -> Val {
        let (r, low, n) = self.quarter_turns(f, x);
        let y = self.mul(r, r);
        let tail = self.poly(y, f.pick(SIN_F32, SIN_F64));
        let cube = self.mul(r, y);
        let half = self.k(f.d, -0.5);
        let one = self.k(f.d, 1.0);
        let (sine, cosine);
        if let Some(low) = low {
            // sin(r + low) = sin r + low cos r, cos(r + low) = cos r - low sin r.
            let c1 = self.fma(y, half, one);
            let more = self.mul(low, c1);
            let rest = self.fma(cube, tail, more);
            sine = self.add(r, rest);
            let tail = self.poly(y, f.pick(COS_F32, COS_F64));
            let fourth = self.mul(y, y);
            let h = self.mul_k(y, 0.5);
            let w = self.sub(one, h);
            let lost = self.sub(one, w);
            let lost = self.sub(lost, h);
            let less = self.mul(r, low);
            let rest = self.sub(lost, less);
            let rest = self.fma(fourth, tail, rest);
            cosine = self.add(w, rest);
        } else {
            sine = self.fma(cube, tail, r);
            let tail = self.poly(y, f.pick(COS_F32, COS_F64));
            let fourth = self.mul(y, y);
            let rest = self.mul(fourth, tail);
            let rest = self.fma(y, half, rest);
            cosine = self.add(rest, one);
        }
        // sin x is x near zero, where the sum would lose the sign of a zero.
        let magnitude = self.un(Unary::Abs, x);
        let tiny = self.cmp_k(Compare::Lt, magnitude, f.pick(1e-5, 1e-9));
        let sine = if op == Unary::Cos { sine } else { self.sel(tiny, x, sine) };
        let n = if op == Unary::Cos { self.add_i(n, 1) } else { n };
        let odd = self.and_i(n, 1);
        let odd = self.cmp_i(Compare::Ne, odd, 0);
        if op == Unary::Tan {
            let minus = self.un(Unary::Neg, cosine);
            let (a, b) = (self.sel(odd, minus, sine), self.sel(odd, sine, cosine));
            return self.div(a, b);
        }
        let r = self.sel(odd, cosine, sine);
        let sign = self.and_i(n, 2);
        let sign = self.shl(sign, f.mantissa + f.pick(7, 10));
        let b = self.bits(r, f.int);
        let b = self.bin(Binary::Xor, b, sign);
        self.bits(b, f.d)
    }

    /// x = n π/2 + r + low with |r| at most about π/4; n modulo 4 in the low bits.
    fn quarter_turns(&mut self, f: Format, x: Val) -> (Val, Option<Val>, Val) {
        let edge = f.pick(131072.0, 1048576.0);
        let a = self.un(Unary::Abs, x);
        let far = self.cmp_k(Compare::Gt, a, edge);
        let (r, low, n) = self.near_turns(f, x);
        let go = self.any(far);
        let near: Vec<Val> = [r, n].into_iter().chain(low).collect();
        let out = self.when(go, &near, |m| {
            let (fr, flow, fk) = match f.single() && !m.has_wide() {
                true => m.far_turns_in_32(x, a),
                false => m.far_turns(f, x, a),
            };
            let mut out = vec![m.sel(far, fr, r), m.sel(far, fk, n)];
            if let (Some(low), Some(flow)) = (low, flow) {
                out.push(m.sel(far, flow, low));
            }
            out
        });
        (out[0], out.get(2).copied(), out[1])
    }

    /// Reduction by parts of π/2, for moderate x.
    fn near_turns(&mut self, f: Format, x: Val) -> (Val, Option<Val>, Val) {
        let (k, magic) = (self.k(f.d, std::f64::consts::FRAC_2_PI), self.k(f.d, f.magic()));
        let t = self.fma(x, k, magic);
        let n = self.sub(t, magic);
        let bits = self.bits(t, f.int);
        if f.single() && self.has(&Op::Fma {}, f.d, 3) {
            let mut r = x;
            for &part in &PI_2_F32[..3] {
                let part = self.k(f.d, -part);
                r = self.fma_exact(n, part, r);
            }
            return (r, None, bits);
        }
        if f.single() && !self.has_wide() {
            // n has 17 bits: its products with parts of 7 are exact, and so are the first two differences.
            let (mut r, mut low) = (x, self.k(f.d, 0.0));
            for (i, &part) in PI_2_SHORT.iter().enumerate() {
                let p = self.mul_k(n, -part);
                if i < 2 {
                    r = self.add(r, p);
                } else {
                    let (sum, e) = self.two_sum(r, p);
                    r = sum;
                    low = self.add(low, e);
                }
            }
            return (self.add(r, low), None, bits);
        }
        // Products of n with a part of 33 bits are exact.
        let wide = DType::F64;
        let (x, n) = (self.cast(x, wide), self.cast(n, wide));
        let first = self.mul_k(n, PI_2_F64[0]);
        let r = self.sub(x, first);
        let second = self.mul_k(n, -PI_2_F64[1]);
        let (r, e) = self.two_sum(r, second);
        let third = self.mul_k(n, PI_2_F64[2]);
        let e = self.sub(e, third);
        let fourth = self.mul_k(n, PI_2_F64[3]);
        let e = self.sub(e, fourth);
        if f.single() {
            let r = self.add(r, e);
            return (self.cast(r, f.d), None, bits);
        }
        let (r, low) = self.two_sum(r, e);
        (r, Some(low), bits)
    }

    /// Reduction by the digits of 1/(2π) that matter, for any x: x = m 2^q with an integer m, so the digits before the
    /// one of weight 2^(-q-1) give whole turns and drop out.
    fn far_turns(&mut self, f: Format, x: Val, a: Val) -> (Val, Option<Val>, Val) {
        let w = DType::U64;
        let words: usize = f.pick(3, 6);
        let bits = self.bits(a, f.int);
        let bits = if f.single() { self.cast(bits, DType::I64) } else { bits };
        let bits = self.bits(bits, w);
        let e = self.shr(bits, f.mantissa);
        let m = self.and_i(bits, (1 << f.mantissa) - 1);
        let hidden = self.i(w, 1 << f.mantissa);
        let m = self.or(m, hidden);
        // Position of the first digit, one word of zeros standing before the digits: q + 32.
        let most: i128 = f.pick(136, 1003);
        let s = self.add_i(e, 32 - f.bias - i128::from(f.mantissa));
        let in_range = self.cmp_i(Compare::Le, s, most);
        let zero = self.i(w, 0);
        let s = self.sel(in_range, s, zero);
        let (at, shift) = (self.shr(s, 5), self.and_i(s, 31));
        let digit = |i: usize| if i == 0 { 0 } else { TURN.get(i - 1).copied().unwrap_or(0) };
        let last = (most >> 5) as usize;
        let mut window: Vec<Val> = (0..=words).map(|j| self.i(w, digit(j).into())).collect();
        for start in 1..=last {
            let here = self.cmp_i(Compare::Eq, at, start as i128);
            for (j, v) in window.iter_mut().enumerate() {
                let d = self.i(w, digit(start + j).into());
                *v = self.sel(here, d, *v);
            }
        }
        let mask = 0xffff_ffff;
        let right = self.i(w, 32);
        let right = self.sub(right, shift);
        let digits: Vec<Val> = window
            .windows(2)
            .map(|pair| {
                let hi = self.shl(pair[0], 32);
                let both = self.or(hi, pair[1]);
                let d = self.bin(Binary::Shr, both, right);
                self.and_i(d, mask)
            })
            .collect();
        // The fraction of a turn, most significant word first.
        let parts: Vec<Val> = match f.single() {
            true => vec![m],
            false => vec![self.and_i(m, mask), self.shr(m, 32)],
        };
        let mut sums: Vec<Vec<Val>> = vec![Vec::new(); words];
        for (p, &part) in parts.iter().enumerate() {
            for (j, &d) in digits.iter().enumerate() {
                let product = self.mul(part, d);
                // Lands on word j - p and, its upper half, on the one before.
                if let Some(to) = j.checked_sub(p) {
                    let low = self.and_i(product, mask);
                    sums[to].push(low);
                }
                if let Some(to) = j.checked_sub(p + 1) {
                    let high = self.shr(product, 32);
                    sums[to].push(high);
                }
            }
        }
        let mut carry = zero;
        let mut fraction = vec![zero; words];
        for j in (0..words).rev() {
            let mut sum = carry;
            for &v in &sums[j] {
                sum = self.add(sum, v);
            }
            fraction[j] = self.and_i(sum, mask);
            carry = self.shr(sum, 32);
        }
        let n = self.add_i(fraction[0], 1 << 29);
        let n = self.shr(n, 30);
        let whole = self.shl(n, 30);
        let top = self.sub(fraction[0], whole);
        let sign = self.i(f.int, if f.single() { i32::MIN.into() } else { i64::MIN.into() });
        let x_bits = self.bits(x, f.int);
        let sign = self.and(x_bits, sign);
        let signed = |m: &mut Self, v: Val| {
            let b = m.bits(v, f.int);
            let b = m.bin(Binary::Xor, b, sign);
            m.bits(b, f.d)
        };
        let n = self.bits(n, DType::I64);
        let n = self.cast(n, f.int);
        let minus = self.un(Unary::Neg, n);
        let negative = self.cmp_i(Compare::Ne, sign, 0);
        let n = self.sel(negative, minus, n);
        let finite = self.cmp_k(Compare::Lt, a, f64::INFINITY);
        let nan = self.k(f.d, f64::NAN);
        if f.single() && !self.has_wide() {
            // In units of 2^-64 turns.
            let high = self.shl(top, 32);
            let part = self.or(high, fraction[1]);
            let part = self.bits(part, DType::I64);
            let part = self.cast(part, f.d);
            let unit = 2f64.powi(-64);
            let (hi, lo) = (self.mul_k(part, TWO_PI_F32.0 * unit), self.mul_k(part, TWO_PI_F32.1 * unit));
            let r = self.add(hi, lo);
            let r = signed(self, r);
            return (self.sel(finite, r, nan), None, n);
        }
        // In units of 2^-32 turns, the top word signed.
        let wide = DType::F64;
        let top = self.bits(top, DType::I64);
        let mut r = self.cast(top, wide);
        let mut low = self.k(wide, 0.0);
        for (j, &word) in fraction.iter().enumerate().skip(1) {
            let word = self.cast(word, wide);
            let word = self.mul_k(word, 2f64.powi(-32 * j as i32));
            let (sum, e) = self.two_sum(r, word);
            r = sum;
            low = self.add(low, e);
        }
        let unit = 2f64.powi(-32);
        let (hi, lo) = (self.k(wide, TWO_PI_F64.0 * unit), self.k(wide, TWO_PI_F64.1 * unit));
        if f.single() {
            let r = self.add(r, low);
            let r = self.mul(r, hi);
            let r = self.cast(r, f.d);
            let r = signed(self, r);
            return (self.sel(finite, r, nan), None, n);
        }
        let (p, e) = self.two_product(f, r, hi);
        let e = self.fma(r, lo, e);
        let e = self.fma(low, hi, e);
        let (r, low) = self.two_sum(p, e);
        let (r, low) = (signed(self, r), signed(self, low));
        (self.sel(finite, r, nan), Some(low), n)
    }

    /// The same for f32 in 32-bit integers.
    fn far_turns_in_32(&mut self, x: Val, a: Val) -> (Val, Option<Val>, Val) {
        let (u, d) = (DType::U32, DType::F32);
        let code = self.bits(a, u);
        let e = self.shr(code, 23);
        let m = self.and_i(code, 0x007f_ffff);
        let hidden = self.i(u, 0x0080_0000);
        let m = self.or(m, hidden);
        // Position of the first digit, one word of zeros standing before the digits.
        let s = self.add_i(e, 32 - 127 - 23);
        let (at, shift) = (self.shr(s, 5), self.and_i(s, 31));
        let digit = |i: usize| if i == 0 { 0 } else { TURN.get(i - 1).copied().unwrap_or(0) };
        let mut window: Vec<Val> = (0..4).map(|j| self.i(u, digit(j).into())).collect();
        for start in 1..=4 {
            let here = self.cmp_i(Compare::Eq, at, start as i128);
            for (j, v) in window.iter_mut().enumerate() {
                let w = self.i(u, digit(start + j).into());
                *v = self.sel(here, w, *v);
            }
        }
        let width = self.i(u, 32);
        let right = self.sub(width, shift);
        // Half words, the last first.
        let mut halves = Vec::new();
        for pair in window.windows(2).rev() {
            let (high, low) = (self.bin(Binary::Shl, pair[0], shift), self.bin(Binary::Shr, pair[1], right));
            let word = self.or(high, low);
            halves.extend([self.and_i(word, 0xffff), self.shr(word, 16)]);
        }
        // The fraction of a turn: what of m times the digits is below their first.
        let parts = [self.and_i(m, 0xffff), self.shr(m, 16)];
        let mut sums: Vec<Vec<Val>> = vec![Vec::new(); halves.len()];
        for (p, &part) in parts.iter().enumerate() {
            for (j, &h) in halves.iter().enumerate().take(halves.len() - p) {
                let product = self.mul(part, h);
                let low = self.and_i(product, 0xffff);
                sums[j + p].push(low);
                if let Some(above) = sums.get_mut(j + p + 1) {
                    let high = self.shr(product, 16);
                    above.push(high);
                }
            }
        }
        let mut carry = self.i(u, 0);
        let mut fraction = Vec::new();
        for column in sums {
            let mut sum = carry;
            for v in column {
                sum = self.add(sum, v);
            }
            fraction.push(self.and_i(sum, 0xffff));
            carry = self.shr(sum, 16);
        }
        let word = |m: &mut Self, k: usize| {
            let high = m.shl(fraction[k + 1], 16);
            m.or(high, fraction[k])
        };
        let top = word(self, 4);
        let n = self.add_i(top, 1 << 29);
        let n = self.shr(n, 30);
        let whole = self.shl(n, 30);
        let top = self.sub(top, whole);
        let top = self.bits(top, DType::I32);
        // In units of 2^-32 turns, from halves that are exact; the top is signed.
        let (high, low) = (self.shr(top, 16), self.and_i(top, 0xffff));
        let (high, low) = (self.cast(high, d), self.cast(low, d));
        let high = self.mul_k(high, 65536.0);
        let (r, rest) = self.two_sum(high, low);
        let mut tail = rest;
        let mut below = self.k(d, 0.0);
        for (k, unit) in [(2, 2f64.powi(-32)), (3, 2f64.powi(-16))] {
            let h = self.bits(fraction[k], DType::I32);
            let h = self.cast(h, d);
            let h = self.mul_k(h, unit);
            below = self.add(below, h);
        }
        tail = self.add(tail, below);
        let r = self.add(r, tail);
        let r = self.mul_k(r, TWO_PI_F64.0 * 2f64.powi(-32));
        let sign_bit = self.i(u, 0x8000_0000);
        let bits = self.bits(x, u);
        let sign = self.and(bits, sign_bit);
        let b = self.bits(r, u);
        let b = self.bin(Binary::Xor, b, sign);
        let r = self.bits(b, d);
        let n = self.bits(n, DType::I32);
        let minus = self.un(Unary::Neg, n);
        let negative = self.cmp_i(Compare::Ne, sign, 0);
        let n = self.sel(negative, minus, n);
        let finite = self.cmp_k(Compare::Lt, a, f64::INFINITY);
        let nan = self.k(d, f64::NAN);
        (self.sel(finite, r, nan), None, n)
    }
}
