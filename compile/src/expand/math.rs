//! Mathematical functions of f32 and f64 in arithmetic, bit operations and selection.

use tongtu_tensor::DType;
use tongtu_tensor::scalar::{Binary, Compare, Unary};
use tongtu_tile::{Op, Val};

use super::coefficients::*;
use super::emit::Emit;

/// What the algorithms must know of f32 or f64.
#[derive(Clone, Copy)]
pub(super) struct Format {
    pub d: DType,
    /// Signed integer of the same width.
    pub int: DType,
    /// Stored mantissa bits.
    pub mantissa: u32,
    /// Exponent bias.
    pub bias: i128,
    /// Least normal number.
    pub least: f64,
}

/// The format of f32 or f64; `None` for other types.
pub(super) fn format(d: DType) -> Option<Format> {
    match d {
        DType::F32 => {
            Some(Format { d, int: DType::I32, mantissa: 23, bias: 127, least: f64::from(f32::MIN_POSITIVE) })
        }
        DType::F64 => Some(Format { d, int: DType::I64, mantissa: 52, bias: 1023, least: f64::MIN_POSITIVE }),
        _ => None,
    }
}

impl Format {
    pub fn single(&self) -> bool {
        self.d == DType::F32
    }
    /// One of two constants.
    pub fn pick<T>(&self, single: T, double: T) -> T {
        if self.single() { single } else { double }
    }
    /// Adding it rounds to an integer that then stands in the low bits.
    pub fn magic(&self) -> f64 {
        1.5 * 2f64.powi(self.mantissa as i32)
    }
    fn sign(&self) -> i128 {
        if self.single() { i32::MIN.into() } else { i64::MIN.into() }
    }
}

impl Emit<'_> {
    /// A unary operation on floats.
    pub fn unary_float(&mut self, op: Unary, x: Val) -> Option<Val> {
        let d = self.dtype(x);
        let Some(f) = format(d) else {
            let wide = self.cast(x, DType::F32);
            let r = self.un(op, wide);
            return Some(self.cast(r, if self.dtype(r) == DType::Bool { DType::Bool } else { d }));
        };
        use Unary::*;
        Some(match op {
            Neg => {
                let (b, s) = (self.bits(x, f.int), self.i(f.int, f.sign()));
                let r = self.bin(Binary::Xor, b, s);
                self.bits(r, d)
            }
            Abs => {
                let b = self.bits(x, f.int);
                let r = self.and_i(b, !f.sign());
                self.bits(r, d)
            }
            Sign => {
                let (zero, one, minus) = (self.k(d, 0.0), self.k(d, 1.0), self.k(d, -1.0));
                let (up, down) = (self.cmp(Compare::Gt, x, zero), self.cmp(Compare::Lt, x, zero));
                let r = self.sel(down, minus, x);
                self.sel(up, one, r)
            }
            IsNan => self.cmp(Compare::Ne, x, x),
            IsInf => {
                let a = self.un(Abs, x);
                self.cmp_k(Compare::Eq, a, f64::INFINITY)
            }
            Floor | Ceil | Trunc | RoundEven => self.integral(f, op, x),
            Rsqrt => {
                let (s, one) = (self.un(Sqrt, x), self.k(d, 1.0));
                self.div(one, s)
            }
            Exp => self.exp(f, x),
            Exp2 => self.exp2(f, x, None),
            Expm1 => {
                let q = self.expm1_quarter(f, x);
                let y = self.mul_k(q, 4.0);
                self.with_sign(f, y, x)
            }
            Tanh => {
                let a = self.un(Abs, x);
                let t = self.mul_k(a, -2.0);
                let q = self.expm1_quarter(f, t);
                let h = self.add(q, q);
                let below = self.add_k(h, 1.0);
                let r = self.div(h, below);
                let r = self.un(Abs, r);
                self.with_sign(f, r, x)
            }
            Sinh => {
                let a = self.un(Abs, x);
                let q = self.expm1_quarter(f, a);
                let (e, h) = (self.mul_k(q, 4.0), self.add(q, q));
                let most = self.k(d, f.pick(f32::MAX.into(), f64::MAX));
                let e = self.bin(Binary::Min, e, most);
                let below = self.add_k(e, 1.0);
                let r = self.div(h, below);
                let r = self.add(h, r);
                self.with_sign(f, r, x)
            }
            Cosh => {
                let a = self.un(Abs, x);
                let most = self.k(d, f.pick(89.5, 710.5));
                let a = self.bin(Binary::Min, a, most);
                let (tail, n) = self.exp_reduced(f, a, false);
                let p = self.add_k(tail, 1.0);
                let s = self.power_of_two(f, n, -2);
                let q = self.mul(p, s);
                let (h, eighth) = (self.add(q, q), self.k(d, 0.125));
                let r = self.div(eighth, q);
                self.add(h, r)
            }
            Log => self.log(f, x),
            Log2 => self.log2(f, x),
            Log1p => self.log1p(f, x),
            Asinh => {
                let a = self.un(Abs, x);
                let big = self.cmp_k(Compare::Gt, a, f.pick(1e9, 1e150));
                let square = self.mul(a, a);
                let root = self.add_k(square, 1.0);
                let root = self.un(Sqrt, root);
                let below = self.add_k(root, 1.0);
                let part = self.div(square, below);
                let near = self.add(a, part);
                let u = self.sel(big, a, near);
                let r = self.un(Log1p, u);
                let (ln2, zero) = (self.k(d, std::f64::consts::LN_2), self.k(d, 0.0));
                let more = self.sel(big, ln2, zero);
                let r = self.add(r, more);
                self.with_sign(f, r, x)
            }
            Acosh => {
                let big = self.cmp_k(Compare::Gt, x, f.pick(1e9, 1e150));
                let t = self.add_k(x, -1.0);
                let two = self.k(d, 2.0);
                let square = self.add(t, two);
                let square = self.mul(t, square);
                let root = self.un(Sqrt, square);
                let near = self.add(t, root);
                let u = self.sel(big, x, near);
                let r = self.un(Log1p, u);
                let (ln2, zero) = (self.k(d, std::f64::consts::LN_2), self.k(d, 0.0));
                let more = self.sel(big, ln2, zero);
                let r = self.add(r, more);
                let (inside, nan) = (self.cmp_k(Compare::Ge, x, 1.0), self.k(d, f64::NAN));
                self.sel(inside, r, nan)
            }
            Atanh => {
                let a = self.un(Abs, x);
                let (one, twice) = (self.k(d, 1.0), self.add(a, a));
                let below = self.sub(one, a);
                let t = self.div(twice, below);
                let r = self.un(Log1p, t);
                let r = self.mul_k(r, 0.5);
                self.with_sign(f, r, x)
            }
            Sin | Cos | Tan => self.trigonometric(f, op, x),
            Asin | Acos => self.arc(f, op, x),
            Atan => {
                let a = self.un(Abs, x);
                let one = self.k(d, 1.0);
                let swap = self.cmp(Compare::Gt, a, one);
                let (n, m) = (self.sel(swap, one, a), self.sel(swap, a, one));
                let r = self.atan_ratio(f, n, m);
                let r = self.reflect(swap, r, f.pick(PI_2_PAIR_F32, PI_2_PAIR_F64));
                self.with_sign(f, r, x)
            }
            Erf => self.erf(f, x),
            LogGamma if f.single() && self.has_wide() => {
                let wide = self.cast(x, DType::F64);
                let r = self.un(LogGamma, wide);
                self.cast(r, d)
            }
            LogGamma => self.log_gamma(f, x),
            Sqrt | Not | Popcount | Clz => return None,
        })
    }

    /// A binary operation on floats.
    pub fn binary_float(&mut self, op: Binary, x: Val, y: Val) -> Option<Val> {
        let d = self.dtype(x);
        let Some(f) = format(d) else {
            let (a, b) = (self.cast(x, DType::F32), self.cast(y, DType::F32));
            let r = self.bin(op, a, b);
            return Some(self.cast(r, d));
        };
        use Binary::*;
        Some(match op {
            Max | Min => {
                let (xb, yb) = (self.bits(x, f.int), self.bits(y, f.int));
                let both = self.bin(if op == Max { And } else { Or }, xb, yb);
                let (both, nan) = (self.bits(both, d), self.k(d, f64::NAN));
                let (first, second) = if op == Max { (x, y) } else { (y, x) };
                let (gt, lt) = (self.cmp(Compare::Gt, first, second), self.cmp(Compare::Lt, first, second));
                let equal = self.cmp(Compare::Eq, x, y);
                let r = self.sel(equal, both, nan);
                let r = self.sel(lt, y, r);
                self.sel(gt, x, r)
            }
            MaxNum | MinNum => {
                let r = self.bin(if op == MaxNum { Max } else { Min }, x, y);
                let (xn, yn) = (self.cmp(Compare::Ne, x, x), self.cmp(Compare::Ne, y, y));
                let r = self.sel(yn, x, r);
                self.sel(xn, y, r)
            }
            CopySign => {
                let (a, b) = (self.bits(x, f.int), self.bits(y, f.int));
                let (a, b) = (self.and_i(a, !f.sign()), self.and_i(b, f.sign()));
                let r = self.or(a, b);
                self.bits(r, d)
            }
            Rem if f.single() && !self.has_wide() => self.remainder_digits(x, y),
            Rem if f.single() => {
                let (a, b) = (self.cast(x, DType::F64), self.cast(y, DType::F64));
                let r = self.bin(Rem, a, b);
                self.cast(r, d)
            }
            Rem => self.remainder(f, x, y),
            Mod => {
                let r = self.bin(Rem, x, y);
                let zero = self.k(d, 0.0);
                let is_zero = self.cmp(Compare::Eq, r, zero);
                let (r_neg, y_neg) = (self.cmp(Compare::Lt, r, zero), self.cmp(Compare::Lt, y, zero));
                let differ = self.bin(Xor, r_neg, y_neg);
                let shifted = self.add(r, y);
                let signed_zero = self.bin(CopySign, zero, y);
                let r = self.sel(differ, shifted, r);
                self.sel(is_zero, signed_zero, r)
            }
            Pow => self.pow(f, x, y),
            Atan2 => self.atan2(f, x, y),
            Add | Sub | Mul | Div | And | Or | Xor | Shl | Shr => return None,
        })
    }

    /// `y`, whose sign bit is clear or that of `x`, with the sign of `x`.
    pub fn with_sign(&mut self, f: Format, y: Val, x: Val) -> Val {
        let (xb, yb) = (self.bits(x, f.int), self.bits(y, f.int));
        let s = self.and_i(xb, f.sign());
        let r = self.or(yb, s);
        self.bits(r, f.d)
    }

    /// Whether the sign bit is set.
    fn is_negative(&mut self, f: Format, x: Val) -> Val {
        let b = self.bits(x, f.int);
        self.cmp_i(Compare::Lt, b, 0)
    }

    /// Where `p`, the constant less `x`.
    fn reflect(&mut self, p: Val, x: Val, constant: (f64, f64)) -> Val {
        let hi = self.k(self.dtype(x), constant.0);
        let less = self.add_k(x, -constant.1);
        let r = self.sub(hi, less);
        self.sel(p, r, x)
    }

    fn integral(&mut self, f: Format, op: Unary, x: Val) -> Val {
        let a = self.un(Unary::Abs, x);
        let unit = 2f64.powi(f.mantissa as i32);
        let whole = self.cmp_k(Compare::Lt, a, unit);
        let r = self.add_k(a, unit);
        let r = self.add_k(r, -unit);
        let r = match op {
            Unary::RoundEven => r,
            Unary::Trunc => {
                let up = self.cmp(Compare::Gt, r, a);
                let less = self.add_k(r, -1.0);
                self.sel(up, less, r)
            }
            _ => {
                let signed = self.with_sign(f, r, x);
                let (past, step) = match op {
                    Unary::Floor => (self.cmp(Compare::Gt, signed, x), -1.0),
                    _ => (self.cmp(Compare::Lt, signed, x), 1.0),
                };
                let moved = self.add_k(signed, step);
                self.sel(past, moved, signed)
            }
        };
        let r = self.with_sign(f, r, x);
        // NaN compares false and stays.
        self.sel(whole, r, x)
    }

    /// exp(x) - 1 on the reduced argument, and the magic sum whose low bits are n; exp(x) = 2^n (1 + tail).
    fn exp_reduced(&mut self, f: Format, x: Val, fast: bool) -> (Val, Val) {
        let (k, magic) = (self.k(f.d, f.pick(LOG2_E_F32.0, LOG2_E_F64.0)), self.k(f.d, f.magic()));
        let t = self.fma(x, k, magic);
        let n = self.sub(t, magic);
        let ln2 = f.pick(LN2_F32, LN2_F64);
        let (hi, lo) = (self.k(f.d, -ln2[0]), self.k(f.d, -ln2[1]));
        let r = self.fma(n, hi, x);
        let r = self.fma(n, lo, r);
        let tail = match fast {
            true => self.poly(r, f.pick(EXP_FAST_F32, EXP_FAST_F64)),
            false => self.poly(r, f.pick(EXP_F32, EXP_F64)),
        };
        let square = self.mul(r, r);
        (self.fma(square, tail, r), t)
    }

    /// 2^(n + more) for n in the low bits of a magic sum; must be normal.
    fn power_of_two(&mut self, f: Format, t: Val, more: i128) -> Val {
        let b = self.bits(t, f.int);
        let b = self.add_i(b, f.bias + more);
        let b = self.shl(b, f.mantissa);
        self.bits(b, f.d)
    }

    /// p × 2^n, p near 1, for n in the low bits of a magic sum, from below the least subnormal to overflow; `low` says
    /// where n is less than about half the least exponent.
    fn scale(&mut self, f: Format, p: Val, t: Val, low: Val) -> Val {
        let step: i128 = f.pick(64, 128);
        let b = self.bits(t, f.int);
        let n = self.shl(b, f.mantissa);
        let (up, down) =
            (self.i(f.int, (f.bias + step) << f.mantissa), self.i(f.int, (f.bias - 1) << f.mantissa));
        let shift = self.sel(low, up, down);
        let b = self.add(n, shift);
        let power = self.bits(b, f.d);
        let y = self.mul(p, power);
        let (small, two) = (self.k(f.d, 2f64.powi(-step as i32)), self.k(f.d, 2.0));
        let back = self.sel(low, small, two);
        self.mul(y, back)
    }

    fn clamp(&mut self, x: Val, lo: f64, hi: f64) -> Val {
        let d = self.dtype(x);
        let (lo, hi) = (self.k(d, lo), self.k(d, hi));
        let x = self.bin(Binary::Max, x, lo);
        self.bin(Binary::Min, x, hi)
    }

    fn exp(&mut self, f: Format, x: Val) -> Val {
        if self.flags.approx {
            // Results from 2^-126 to below 2^127, flushed and saturated.
            let c = self.clamp(x, f.pick(-87.3, -708.3), f.pick(88.3, 709.0));
            let (tail, t) = self.exp_reduced(f, c, true);
            let p = self.add_k(tail, 1.0);
            let power = self.power_of_two(f, t, 0);
            let y = self.mul(p, power);
            let (low, zero) = (self.cmp_k(Compare::Lt, x, f.pick(-87.3, -708.3)), self.k(f.d, 0.0));
            let (high, inf) =
                (self.cmp_k(Compare::Gt, x, f.pick(88.72284, 709.79)), self.k(f.d, f64::INFINITY));
            let y = self.sel(low, zero, y);
            return self.sel(high, inf, y);
        }
        let x = self.clamp(x, f.pick(-104.0, -746.0), f.pick(89.0, 710.0));
        let (tail, t) = self.exp_reduced(f, x, false);
        let p = self.add_k(tail, 1.0);
        let low = self.cmp_k(Compare::Lt, x, f.pick(-50.0, -600.0));
        self.scale(f, p, t, low)
    }

    /// 2^(x + low).
    fn exp2(&mut self, f: Format, x: Val, low: Option<Val>) -> Val {
        // One more than what overflows, for `low` may take some away.
        let c = self.clamp(x, f.pick(-151.0, -1080.0), f.pick(129.0, 1025.0));
        let magic = self.k(f.d, f.magic());
        let t = self.add(c, magic);
        let n = self.sub(t, magic);
        let mut r = self.sub(c, n);
        if let Some(low) = low {
            r = self.add(r, low);
        }
        let tail = self.poly(r, f.pick(EXP2_F32, EXP2_F64));
        let one = self.k(f.d, 1.0);
        let p = self.fma(r, tail, one);
        let below = self.cmp_k(Compare::Lt, c, f.pick(-64.0, -800.0));
        self.scale(f, p, t, below)
    }

    /// (exp(x) - 1) / 4, so that it does not overflow before exp(x) / 4.
    fn expm1_quarter(&mut self, f: Format, x: Val) -> Val {
        let x = self.clamp(x, f.pick(-18.0, -38.0), f.pick(89.5, 710.5));
        let (tail, t) = self.exp_reduced(f, x, false);
        let s = self.power_of_two(f, t, -2);
        let less = self.add_k(s, -0.25);
        self.fma(s, tail, less)
    }

    /// x = 2^e (1 + r) with r from √½ - 1 to √2 - 1: (e as a float, r, e << mantissa as bits).
    fn log_reduced(&mut self, f: Format, x: Val, subnormals: bool) -> (Val, Val, Val) {
        let (mut x, mut adjust) = (x, None);
        if subnormals {
            let up = f.pick(24, 54);
            let tiny = self.cmp_k(Compare::Lt, x, f.least);
            let scaled = self.mul_k(x, 2f64.powi(up));
            x = self.sel(tiny, scaled, x);
            let (less, zero) = (self.k(f.d, (-up).into()), self.k(f.d, 0.0));
            adjust = Some(self.sel(tiny, less, zero));
        }
        let b = self.bits(x, f.int);
        let root: i128 = f.pick(
            std::f32::consts::FRAC_1_SQRT_2.to_bits().into(),
            std::f64::consts::FRAC_1_SQRT_2.to_bits().into(),
        );
        let t = self.add_i(b, -root);
        let shifted = self.and_i(t, -1 << f.mantissa);
        let m = self.sub(b, shifted);
        let m = self.bits(m, f.d);
        let r = self.add_k(m, -1.0);
        let e = self.shr(t, f.mantissa);
        let mut e = self.cast(e, f.d);
        if let Some(a) = adjust {
            e = self.add(e, a);
        }
        (e, r, shifted)
    }

    /// log(1 + r) - r.
    fn log_rest(&mut self, f: Format, r: Val) -> Val {
        let square = self.mul(r, r);
        if f.single() {
            let tail = self.poly(r, LOG_F32);
            let cube = self.mul(r, square);
            let (t, half) = (self.mul(cube, tail), self.k(f.d, -0.5));
            return self.fma(square, half, t);
        }
        let below = self.add_k(r, 2.0);
        let s = self.div(r, below);
        let z = self.mul(s, s);
        let tail = self.poly(z, LOG_ODD_F64);
        let half = self.mul_k(square, 0.5);
        let sum = self.fma(z, tail, half);
        let t = self.mul(s, sum);
        self.sub(t, half)
    }

    /// What a logarithm gives outside the positive finite numbers: `y` replaced where `x` is negative, zero, infinite, NaN.
    fn log_special(&mut self, f: Format, x: Val, y: Val, pole: f64) -> Val {
        let (inf, nan, minus) =
            (self.k(f.d, f64::INFINITY), self.k(f.d, f64::NAN), self.k(f.d, f64::NEG_INFINITY));
        let at = self.k(f.d, pole);
        let finite = self.cmp(Compare::Lt, x, inf);
        let y = self.sel(finite, y, x);
        let (is_pole, above) = (self.cmp(Compare::Eq, x, at), self.cmp(Compare::Gt, x, at));
        let other = self.sel(is_pole, minus, nan);
        self.sel(above, y, other)
    }

    fn log_sum(&mut self, f: Format, e: Val, r: Val) -> Val {
        let ln2 = f.pick(LN2_F32, LN2_F64);
        let (hi, lo) = (self.k(f.d, ln2[0]), self.k(f.d, ln2[1]));
        let rest = self.log_rest(f, r);
        let rest = self.fma(e, lo, rest);
        let y = self.add(r, rest);
        self.fma(e, hi, y)
    }

    fn log(&mut self, f: Format, x: Val) -> Val {
        let (e, r, _) = self.log_reduced(f, x, true);
        let y = self.log_sum(f, e, r);
        self.log_special(f, x, y, 0.0)
    }

    fn log2(&mut self, f: Format, x: Val) -> Val {
        let (e, r, _) = self.log_reduced(f, x, true);
        let k = f.pick(LOG2_E_F32, LOG2_E_F64);
        let (hi, lo) = (self.k(f.d, k.0), self.k(f.d, k.1));
        let rest = self.log_rest(f, r);
        let (t, error) = self.two_product(f, r, hi);
        let small = self.fma(r, lo, error);
        let small = self.fma(rest, hi, small);
        let y = self.add(t, small);
        let y = self.add(e, y);
        self.log_special(f, x, y, 0.0)
    }

    fn log1p(&mut self, f: Format, x: Val) -> Val {
        let u = self.add_k(x, 1.0);
        let back = self.add_k(u, -1.0);
        // What the sum lost; 1 - (u - x) where x is the greater.
        let c = self.sub(x, back);
        let (e, r, shifted) = self.log_reduced(f, u, false);
        let one = self.i(f.int, f.bias << f.mantissa);
        let scale = self.sub(one, shifted);
        let none = self.i(f.int, 0);
        let scale = self.bin(Binary::Max, scale, none);
        let scale = self.bits(scale, f.d);
        let c = self.mul(c, scale);
        let r = self.add(r, c);
        let y = self.log_sum(f, e, r);
        let y = self.log_special(f, x, y, -1.0);
        let tiny = self.un(Unary::Abs, x);
        let tiny = self.cmp_k(Compare::Lt, tiny, f.pick(1e-10, 1e-18));
        self.sel(tiny, x, y)
    }

    /// The product and its rounding error.
    pub fn two_product(&mut self, f: Format, a: Val, b: Val) -> (Val, Val) {
        let p = self.mul(a, b);
        let minus = self.un(Unary::Neg, p);
        if self.has(&Op::Fma {}, f.d, 3) {
            return (p, self.fma_exact(a, b, minus));
        }
        if f.single() && self.has_wide() {
            let (x, y, p64) = (self.cast(a, DType::F64), self.cast(b, DType::F64), self.cast(p, DType::F64));
            let exact = self.mul(x, y);
            let error = self.sub(exact, p64);
            return (p, self.cast(error, f.d));
        }
        // Dekker's product: halves of 26 bits, or 12, multiply exactly.
        let (ah, al) = self.halves(f, a);
        let (bh, bl) = self.halves(f, b);
        let t = self.mul(ah, bh);
        let t = self.add(t, minus);
        let (x, y, z) = (self.mul(ah, bl), self.mul(al, bh), self.mul(al, bl));
        let t = self.add(t, x);
        let t = self.add(t, y);
        (p, self.add(t, z))
    }

    fn halves(&mut self, f: Format, a: Val) -> (Val, Val) {
        let c = self.mul_k(a, f.pick(4097.0, 134217729.0));
        let d = self.sub(c, a);
        let hi = self.sub(c, d);
        (hi, self.sub(a, hi))
    }

    /// The sum and its rounding error.
    pub fn two_sum(&mut self, a: Val, b: Val) -> (Val, Val) {
        let s = self.add(a, b);
        let bb = self.sub(s, a);
        let aa = self.sub(s, bb);
        let (db, da) = (self.sub(b, bb), self.sub(a, aa));
        (s, self.add(da, db))
    }

    /// atan(n / m) for 0 ≤ n ≤ m.
    fn atan_ratio(&mut self, f: Format, n: Val, m: Val) -> Val {
        let edge = self.mul_k(m, 0.414_213_562_373_095_03);
        let far = self.cmp(Compare::Gt, n, edge);
        let (less, sum) = (self.sub(n, m), self.add(n, m));
        let (a, b) = (self.sel(far, less, n), self.sel(far, sum, m));
        let t = self.div(a, b);
        let y = self.mul(t, t);
        let tail = self.poly(y, f.pick(ATAN_F32, ATAN_F64));
        let cube = self.mul(t, y);
        let p = self.fma(cube, tail, t);
        let quarter = f.pick(PI_4_F32, PI_4_F64);
        let (hi, lo, zero) = (self.k(f.d, quarter.0), self.k(f.d, quarter.1), self.k(f.d, 0.0));
        let (hi, lo) = (self.sel(far, hi, zero), self.sel(far, lo, zero));
        let p = self.add(p, lo);
        self.add(hi, p)
    }

    fn atan2(&mut self, f: Format, y: Val, x: Val) -> Val {
        let (ay, ax) = (self.un(Unary::Abs, y), self.un(Unary::Abs, x));
        let swap = self.cmp(Compare::Gt, ay, ax);
        let (n, m) = (self.sel(swap, ax, ay), self.sel(swap, ay, ax));
        let (one, zero, inf) = (self.k(f.d, 1.0), self.k(f.d, 0.0), self.k(f.d, f64::INFINITY));
        let (n_inf, m_inf) = (self.cmp(Compare::Eq, n, inf), self.cmp(Compare::Eq, m, inf));
        let at_inf = self.sel(n_inf, one, zero);
        let n = self.sel(m_inf, at_inf, n);
        let m_zero = self.cmp(Compare::Eq, m, zero);
        let special = self.or(m_inf, m_zero);
        let m = self.sel(special, one, m);
        let edge: i32 = f.pick(100, 900);
        let (big, small) =
            (self.cmp_k(Compare::Gt, m, 2f64.powi(edge)), self.cmp_k(Compare::Lt, m, 2f64.powi(-edge)));
        let (down, up) = (self.k(f.d, 2f64.powi(-24)), self.k(f.d, 2f64.powi(edge - 40)));
        let scale = self.sel(small, up, one);
        let scale = self.sel(big, down, scale);
        let (n, m) = (self.mul(n, scale), self.mul(m, scale));
        let r = self.atan_ratio(f, n, m);
        let r = self.reflect(swap, r, f.pick(PI_2_PAIR_F32, PI_2_PAIR_F64));
        let left = self.is_negative(f, x);
        let r = self.reflect(left, r, f.pick(PI_F32, PI_F64));
        let r = self.with_sign(f, r, y);
        let (xn, yn) = (self.cmp(Compare::Ne, x, x), self.cmp(Compare::Ne, y, y));
        let (nan, r_nan) = (self.or(xn, yn), self.k(f.d, f64::NAN));
        self.sel(nan, r_nan, r)
    }

    fn arc(&mut self, f: Format, op: Unary, x: Val) -> Val {
        let a = self.un(Unary::Abs, x);
        let far = self.cmp_k(Compare::Gt, a, 0.5);
        let one = self.k(f.d, 1.0);
        let rest = self.sub(one, a);
        let (half, square) = (self.mul_k(rest, 0.5), self.mul(a, a));
        let z = self.sel(far, half, square);
        let root = self.un(Unary::Sqrt, z);
        let s = self.sel(far, root, a);
        let tail = self.poly(z, f.pick(ASIN_F32, ASIN_F64));
        let cube = self.mul(s, z);
        let p = self.fma(cube, tail, s);
        let twice = self.add(p, p);
        let quarter_turn = f.pick(PI_2_PAIR_F32, PI_2_PAIR_F64);
        if op == Unary::Asin {
            let p = self.sel(far, twice, p);
            let r = self.reflect(far, p, quarter_turn);
            return self.with_sign(f, r, x);
        }
        let negative = self.cmp_k(Compare::Lt, x, 0.0);
        let outer = self.reflect(negative, twice, f.pick(PI_F32, PI_F64));
        let signed = self.with_sign(f, p, x);
        let all = self.cmp(Compare::Eq, x, x);
        let inner = self.reflect(all, signed, quarter_turn);
        self.sel(far, outer, inner)
    }

    fn erf(&mut self, f: Format, x: Val) -> Val {
        let a = self.un(Unary::Abs, x);
        let far = self.cmp_k(Compare::Gt, a, 1.0);
        let square = self.mul(a, a);
        let (limit, one) = (self.k(f.d, 1.0), self.k(f.d, 1.0));
        let y = self.bin(Binary::Min, square, limit);
        let tail = self.poly(y, f.pick(ERF_F32, ERF_F64));
        let near = self.mul(a, tail);
        let complement = if f.single() {
            let c = self.clamp(a, 0.9, 4.0);
            let p = self.poly(c, ERFC_LOG_F32);
            let (tail, t) = self.exp_reduced(f, p, false);
            let p = self.add_k(tail, 1.0);
            let s = self.power_of_two(f, t, 0);
            self.mul(p, s)
        } else {
            let c = self.clamp(a, 0.9, 6.2);
            let (n, m) = (self.add_k(c, -4.0), self.add_k(c, 4.0));
            let t = self.div(n, m);
            let g = self.poly(t, ERFCX_F64);
            let (square, error) = self.two_product(f, c, c);
            let minus = self.un(Unary::Neg, square);
            let e = self.un(Unary::Exp, minus);
            let less = self.sub(one, error);
            let e = self.mul(e, less);
            let below = self.add(c, c);
            let below = self.add(below, one);
            let g = self.div(g, below);
            self.mul(e, g)
        };
        let r = self.sub(one, complement);
        let r = self.sel(far, r, near);
        let nan = self.cmp(Compare::Ne, x, x);
        let r = self.sel(nan, x, r);
        self.with_sign(f, r, x)
    }

    fn log_gamma(&mut self, f: Format, x: Val) -> Val {
        let a = self.un(Unary::Abs, x);
        let (one, zero) = (self.k(f.d, 1.0), self.k(f.d, 0.0));
        let near0 = self.cmp_k(Compare::Lt, a, 0.5);
        let near1 = self.cmp_k(Compare::Lt, a, 1.5);
        let large = self.cmp_k(Compare::Ge, a, 8.0);
        // Down to [1.5, 2.5) by the recurrence.
        let (mut w, mut product) = (a, one);
        for _ in 0..6 {
            let above = self.cmp_k(Compare::Ge, w, 2.5);
            let less = self.add_k(w, -1.0);
            w = self.sel(above, less, w);
            let more = self.mul(product, w);
            product = self.sel(above, more, product);
        }
        let z1 = self.add_k(a, -1.0);
        let z1 = self.sel(near0, x, z1);
        let z2 = self.add_k(w, -2.0);
        let (p1, p2) = (self.poly(z1, LGAMMA1_F64), self.poly(z2, LGAMMA2_F64));
        let (p1, p2) = (self.mul(z1, p1), self.mul(z2, p2));
        let p = self.sel(near1, p1, p2);
        let outside = self.or(near0, large);
        let argument = self.sel(near1, one, product);
        let argument = self.sel(outside, a, argument);
        let l = self.un(Unary::Log, argument);
        let (less, more) = (self.sub(p, l), self.add(p, l));
        let low = self.sel(near0, less, more);
        // Stirling's series.
        let inverse = self.div(one, a);
        let square = self.mul(inverse, inverse);
        let tail = self.poly(square, STIRLING_F64);
        let tail = self.mul(tail, inverse);
        let tail = self.add_k(tail, HALF_LOG_2PI_F64.0 - 0.5);
        let (b, m) = (self.add_k(a, -0.5), self.add_k(l, -1.0));
        let high = self.fma(b, m, tail);
        let r = self.sel(large, high, low);
        // Reflection.
        let whole = self.un(Unary::RoundEven, a);
        let part = self.sub(a, whole);
        let angle = self.mul_k(part, PI_F64.0);
        let s = self.un(Unary::Sin, angle);
        let s = self.un(Unary::Abs, s);
        let s = self.mul(s, a);
        let s = self.un(Unary::Log, s);
        let k = self.k(f.d, LN_PI_F64.0);
        let reflected = self.sub(k, s);
        let reflected = self.sub(reflected, r);
        let negative = self.cmp(Compare::Lt, x, zero);
        let not_near0 = self.un(Unary::Not, near0);
        let use_reflection = self.and(negative, not_near0);
        let r = self.sel(use_reflection, reflected, r);
        let inf = self.k(f.d, f64::INFINITY);
        let infinite = self.cmp(Compare::Eq, a, inf);
        let pole = self.cmp(Compare::Eq, part, zero);
        let pole = self.and(pole, use_reflection);
        let infinite = self.or(infinite, pole);
        self.sel(infinite, inf, r)
    }

    fn pow(&mut self, f: Format, x: Val, y: Val) -> Val {
        let a = self.un(Unary::Abs, x);
        let r = if f.single() && self.has_wide() {
            let (wide, exponent) = (self.cast(a, DType::F64), self.cast(y, DType::F64));
            let l = self.un(Unary::Log2, wide);
            let p = self.mul(exponent, l);
            let r = self.un(Unary::Exp2, p);
            self.cast(r, f.d)
        } else {
            self.pow_positive(f, a, y)
        };
        let whole = self.un(Unary::Floor, y);
        let integral = self.cmp(Compare::Eq, whole, y);
        let half = self.mul_k(y, 0.5);
        let whole_half = self.un(Unary::Floor, half);
        let not_even = self.cmp(Compare::Ne, whole_half, half);
        let odd = self.and(integral, not_even);
        let negative = self.is_negative(f, x);
        let flip = self.and(odd, negative);
        let minus = self.un(Unary::Neg, r);
        let r = self.sel(flip, minus, r);
        let (below, finite) =
            (self.cmp_k(Compare::Lt, x, 0.0), self.cmp_k(Compare::Gt, x, f64::NEG_INFINITY));
        let fractional = self.un(Unary::Not, integral);
        let bad = self.and(below, finite);
        let bad = self.and(bad, fractional);
        let nan = self.k(f.d, f64::NAN);
        let r = self.sel(bad, nan, r);
        let one = self.k(f.d, 1.0);
        let (x_one, y_zero) = (self.cmp(Compare::Eq, x, one), self.cmp_k(Compare::Eq, y, 0.0));
        let (a_one, y_inf) = (self.cmp(Compare::Eq, a, one), self.un(Unary::IsInf, y));
        let both = self.and(a_one, y_inf);
        let p = self.or(x_one, y_zero);
        let p = self.or(p, both);
        self.sel(p, one, r)
    }

    /// x^y for x ≥ 0, with the logarithm in two parts.
    fn pow_positive(&mut self, f: Format, x: Val, y: Val) -> Val {
        let (e, r, _) = self.log_reduced(f, x, true);
        // s = r / (2 + r)
        let two = self.k(f.d, 2.0);
        let q = self.add(r, two);
        let q_back = self.sub(q, two);
        let q_low = self.sub(r, q_back);
        let s = self.div(r, q);
        let (p, p_low) = self.two_product(f, s, q);
        let rest = self.sub(r, p);
        let rest = self.sub(rest, p_low);
        let more = self.mul(s, q_low);
        let rest = self.sub(rest, more);
        let s_low = self.div(rest, q);
        // z = s², T = 2/3 z + z² tail(z)
        let (z, z_low) = self.two_product(f, s, s);
        let cross = self.mul(s, s_low);
        let z_low = self.fma(cross, two, z_low);
        let two_thirds = f.pick(TWO_THIRDS_F32, TWO_THIRDS_F64);
        let third = self.k(f.d, two_thirds.0);
        let (t, t_low) = self.two_product(f, z, third);
        let t_more = self.mul_k(z, two_thirds.1);
        let t_low = self.add(t_low, t_more);
        let t_low = self.fma(z_low, third, t_low);
        let tail = self.poly(z, f.pick(LOG_ODD5_F32, LOG_ODD5_F64));
        let tail = self.mul(tail, z);
        let tail = self.mul(tail, z);
        let (u, u_low) = self.two_sum(t, tail);
        let u_low = self.add(u_low, t_low);
        let (v, v_low) = self.two_sum(two, u);
        let v_low = self.add(v_low, u_low);
        // log(1 + r) = s v, then to base 2
        let (l, l_low) = self.product_pair(f, (s, s_low), (v, v_low));
        let e_log = f.pick(LOG2_E_F32, LOG2_E_F64);
        let k = (self.k(f.d, e_log.0), self.k(f.d, e_log.1));
        let (g, g_low) = self.product_pair(f, (l, l_low), k);
        let (h, h_low) = self.two_sum(e, g);
        let low = self.add(h_low, g_low);
        let zero = self.k(f.d, 0.0);
        let mut by = y;
        if !self.has(&Op::Fma {}, f.d, 3) {
            // So large an exponent overflows, or its factor is 0; larger ones have no halves.
            let most = f.pick(2f64.powi(100), 2f64.powi(960));
            let (lo, hi) = (self.k(f.d, -most), self.k(f.d, most));
            by = self.bin(Binary::Max, by, lo);
            by = self.bin(Binary::Min, by, hi);
        }
        let (p, p_low) = self.product_pair(f, (h, low), (by, zero));
        let a = self.un(Unary::Abs, p);
        let moderate = self.cmp_k(Compare::Lt, a, 2000.0);
        let p_low = self.sel(moderate, p_low, zero);
        let r = self.exp2(f, p, Some(p_low));
        // Zero and infinity have no such logarithm.
        let (x_zero, x_inf) = (self.cmp(Compare::Eq, x, zero), self.cmp_k(Compare::Eq, x, f64::INFINITY));
        let inf = self.k(f.d, f64::INFINITY);
        let up = self.cmp(Compare::Gt, y, zero);
        let (at_zero, at_inf) = (self.sel(up, zero, inf), self.sel(up, inf, zero));
        let r = self.sel(x_zero, at_zero, r);
        let r = self.sel(x_inf, at_inf, r);
        let (xn, yn) = (self.cmp(Compare::Ne, x, x), self.cmp(Compare::Ne, y, y));
        let nan = self.or(xn, yn);
        let either = self.add(x, y);
        self.sel(nan, either, r)
    }

    fn product_pair(&mut self, f: Format, a: (Val, Val), b: (Val, Val)) -> (Val, Val) {
        let (p, low) = self.two_product(f, a.0, b.0);
        let low = self.fma(a.0, b.1, low);
        let low = self.fma(a.1, b.0, low);
        (p, low)
    }

    /// The exponent of a positive number, as an integer tile.
    fn exponent(&mut self, f: Format, x: Val) -> Val {
        let tiny = self.cmp_k(Compare::Lt, x, f.least);
        let scaled = self.mul_k(x, 2f64.powi(54));
        let x = self.sel(tiny, scaled, x);
        let b = self.bits(x, f.int);
        let e = self.shr(b, f.mantissa);
        let (less, zero) = (self.i(f.int, 54), self.i(f.int, 0));
        let adjust = self.sel(tiny, less, zero);
        self.sub(e, adjust)
    }

    /// C's fmod: the quotient is taken off in parts of 50 bits, each exact.
    fn remainder(&mut self, f: Format, x: Val, y: Val) -> Val {
        let (a, b) = (self.un(Unary::Abs, x), self.un(Unary::Abs, y));
        let (finite, some) = (self.cmp_k(Compare::Lt, a, f64::INFINITY), self.cmp_k(Compare::Gt, b, 0.0));
        let valid = self.and(finite, some);
        let (zero, one) = (self.k(f.d, 0.0), self.k(f.d, 1.0));
        let (a, b) = (self.sel(valid, a, zero), self.sel(valid, b, one));
        let left = self.cmp(Compare::Ge, a, b);
        let go = self.any(left);
        let b_exponent = self.exponent(f, b);
        let r = self.repeat(go, &[a], |m, carried| {
            let r = carried[0];
            let e = m.exponent(f, r);
            let k = m.sub(e, b_exponent);
            let k = m.add_i(k, -50);
            let none = m.i(f.int, 0);
            let mut k = m.bin(Binary::Max, k, none);
            let mut scaled = b;
            for _ in 0..3 {
                let most = m.i(f.int, 1000);
                let part = m.bin(Binary::Min, k, most);
                k = m.sub(k, part);
                let power = m.add_i(part, f.bias);
                let power = m.shl(power, f.mantissa);
                let power = m.bits(power, f.d);
                scaled = m.mul(scaled, power);
            }
            // The product may be above r; where that could overflow, both are made smaller.
            let large = m.cmp_k(Compare::Ge, r, 2f64.powi(1000));
            let (small, great) = (m.k(f.d, 2f64.powi(-60)), m.k(f.d, 2f64.powi(60)));
            let (shrink, grow) = (m.sel(large, small, one), m.sel(large, great, one));
            let (rest, scaled) = (m.mul(r, shrink), m.mul(scaled, shrink));
            let q = m.div(rest, scaled);
            let q = m.un(Unary::Trunc, q);
            let (p, p_low) = m.two_product(f, q, scaled);
            let next = m.sub(rest, p);
            let next = m.sub(next, p_low);
            let (under, back) = (m.cmp_k(Compare::Lt, next, 0.0), m.add(next, scaled));
            let next = m.sel(under, back, next);
            let next = m.mul(next, grow);
            // Elements already done keep their value, whatever the divisor.
            let active = m.cmp(Compare::Ge, r, b);
            let next = m.sel(active, next, r);
            let left = m.cmp(Compare::Ge, next, b);
            (m.any(left), vec![next])
        });
        let r = r.first().copied().unwrap_or(a);
        let r = self.with_sign(f, r, x);
        let nan = self.k(f.d, f64::NAN);
        self.sel(valid, r, nan)
    }
}
