//! Integer operations, and the choice of rule by element type.

use tongtu_tensor::scalar::{Binary, Compare, Unary};
use tongtu_tensor::{CastMode, Combiner, DType};
use tongtu_tile::{Op, Val};

use super::emit::Emit;

/// The 32-bit type that holds every value of a narrow integer type.
fn wider(d: DType) -> Option<DType> {
    (d.is_int() && d.bits() < 32).then_some(if d.is_signed() { DType::I32 } else { DType::U32 })
}

fn unsigned(d: DType) -> DType {
    match d {
        DType::I2 => DType::U2,
        DType::I4 => DType::U4,
        DType::I8 => DType::U8,
        DType::I16 => DType::U16,
        DType::I32 => DType::U32,
        DType::I64 => DType::U64,
        other => other,
    }
}

impl Emit<'_> {
    pub(super) fn unary(&mut self, op: Unary, x: Val) -> Option<Val> {
        let d = self.dtype(x);
        if d.is_float() {
            return self.unary_float(op, x);
        }
        match op {
            Unary::Popcount => return Some(self.popcount(x)),
            Unary::Clz => return Some(self.leading_zeros(x)),
            Unary::Sign if d.is_int() => {
                let (zero, one, minus) = (self.i(d, 0), self.i(d, 1), self.i(d, -1));
                let above = self.cmp(Compare::Gt, x, zero);
                let r = self.sel(above, one, zero);
                if !d.is_signed() {
                    return Some(r);
                }
                let below = self.cmp(Compare::Lt, x, zero);
                return Some(self.sel(below, minus, r));
            }
            _ => {}
        }
        if let Some(w) = wider(d) {
            let wide = self.cast(x, w);
            let r = self.un(op, wide);
            return Some(self.cast(r, d));
        }
        match op {
            Unary::Not if d.is_bool() => {
                let t = self.i(d, 1);
                Some(self.bin(Binary::Xor, x, t))
            }
            Unary::Not => {
                let ones = self.i(d, if d.is_signed() { -1 } else { (1 << d.bits()) - 1 });
                Some(self.bin(Binary::Xor, x, ones))
            }
            Unary::Neg => {
                let zero = self.i(d, 0);
                Some(self.sub(zero, x))
            }
            Unary::Abs if !d.is_signed() => Some(x),
            Unary::Abs => {
                let zero = self.i(d, 0);
                let (minus, below) = (self.sub(zero, x), self.cmp(Compare::Lt, x, zero));
                Some(self.sel(below, minus, x))
            }
            _ => None,
        }
    }

    pub(super) fn binary(&mut self, op: Binary, x: Val, y: Val) -> Option<Val> {
        let d = self.dtype(x);
        if d.is_float() {
            return self.binary_float(op, x, y);
        }
        if d.is_bool() {
            return match op {
                Binary::Add | Binary::Max | Binary::MaxNum => Some(self.or(x, y)),
                Binary::Mul | Binary::Min | Binary::MinNum => Some(self.and(x, y)),
                _ => None,
            };
        }
        match op {
            Binary::MaxNum => return Some(self.bin(Binary::Max, x, y)),
            Binary::MinNum => return Some(self.bin(Binary::Min, x, y)),
            _ => {}
        }
        if let Some(w) = wider(d) {
            let (a, b) = (self.cast(x, w), self.cast(y, w));
            let r = self.bin(op, a, b);
            return Some(self.cast(r, d));
        }
        match op {
            Binary::Max | Binary::Min => {
                let greater = self.cmp(if op == Binary::Max { Compare::Gt } else { Compare::Lt }, x, y);
                Some(self.sel(greater, x, y))
            }
            Binary::Mod if d.is_signed() => {
                let r = self.bin(Binary::Rem, x, y);
                let zero = self.i(d, 0);
                let (some, both) = (self.cmp(Compare::Ne, r, zero), self.bin(Binary::Xor, r, y));
                let differ = self.cmp(Compare::Lt, both, zero);
                let fix = self.and(some, differ);
                let shifted = self.add(r, y);
                Some(self.sel(fix, shifted, r))
            }
            Binary::Mod => Some(self.bin(Binary::Rem, x, y)),
            Binary::Rem => {
                let q = self.div(x, y);
                let p = self.mul(q, y);
                let r = self.sub(x, p);
                let zero = self.i(d, 0);
                let none = self.cmp(Compare::Eq, y, zero);
                Some(self.sel(none, zero, r))
            }
            Binary::Pow => Some(self.power(x, y)),
            Binary::Div if d == DType::U32 => {
                let (a, b) = (self.cast(x, DType::I64), self.cast(y, DType::I64));
                let q = self.div(a, b);
                Some(self.cast(q, d))
            }
            _ => None,
        }
    }

    /// Square and multiply; a negative exponent leaves 0, 1 or -1.
    fn power(&mut self, x: Val, y: Val) -> Val {
        let d = self.dtype(x);
        let (zero, one) = (self.i(d, 0), self.i(d, 1));
        let left = self.cmp(Compare::Gt, y, zero);
        let go = self.any(left);
        let out = self.repeat(go, &[one, x, y], |m, carried| {
            let (r, base, left) = (carried[0], carried[1], carried[2]);
            let bit = m.and_i(left, 1);
            let some = m.cmp(Compare::Gt, left, zero);
            let set = m.cmp_i(Compare::Ne, bit, 0);
            let set = m.and(set, some);
            let product = m.mul(r, base);
            let r = m.sel(set, product, r);
            let base = m.mul(base, base);
            let left = m.shr(left, 1);
            let more = m.cmp(Compare::Gt, left, zero);
            (m.any(more), vec![r, base, left])
        });
        let r = out[0];
        if !d.is_signed() {
            return r;
        }
        let minus = self.i(d, -1);
        let odd = self.and_i(y, 1);
        let odd = self.cmp_i(Compare::Ne, odd, 0);
        let (is_one, is_minus) = (self.cmp(Compare::Eq, x, one), self.cmp(Compare::Eq, x, minus));
        let alternating = self.sel(odd, minus, one);
        let inverse = self.sel(is_minus, alternating, zero);
        let inverse = self.sel(is_one, one, inverse);
        let negative = self.cmp(Compare::Lt, y, zero);
        self.sel(negative, inverse, r)
    }

    /// The bits of an integer, zero-extended to 32 or 64 bits.
    fn zero_extended(&mut self, x: Val) -> Val {
        let d = self.dtype(x);
        let b = self.bits(x, unsigned(d));
        self.cast(b, if d.bits() == 64 { DType::U64 } else { DType::U32 })
    }

    fn popcount(&mut self, x: Val) -> Val {
        let d = self.dtype(x);
        let x = self.zero_extended(x);
        let w = self.dtype(x).bits();
        let repeat = |byte: u128| (0..w / 8).fold(0i128, |a, i| a | (byte as i128) << (8 * i));
        let half = self.shr(x, 1);
        let half = self.and_i(half, repeat(0x55));
        let x = self.sub(x, half);
        let (a, b) = (self.and_i(x, repeat(0x33)), self.shr(x, 2));
        let b = self.and_i(b, repeat(0x33));
        let x = self.add(a, b);
        let b = self.shr(x, 4);
        let x = self.add(x, b);
        let x = self.and_i(x, repeat(0x0f));
        let k = self.i(self.dtype(x), repeat(1));
        let x = self.mul(x, k);
        let x = self.shr(x, w - 8);
        self.cast(x, d)
    }

    fn leading_zeros(&mut self, x: Val) -> Val {
        let d = self.dtype(x);
        let mut x = self.zero_extended(x);
        let w = self.dtype(x).bits();
        // Every bit below the highest set one is set, then counted.
        let mut step = 1;
        while step < w {
            let s = self.shr(x, step);
            x = self.or(x, s);
            step *= 2;
        }
        let ones = self.popcount(x);
        let bits = self.i(self.dtype(ones), d.bits().into());
        let r = self.sub(bits, ones);
        self.cast(r, d)
    }

    pub(super) fn compare(&mut self, op: Compare, x: Val, y: Val) -> Option<Val> {
        let d = self.dtype(x);
        let w = match wider(d) {
            Some(w) => w,
            None if d.is_float() && d.bits() < 32 => DType::F32,
            None if d.is_bool() => {
                let (a, b) = (self.cast(x, DType::U8), self.cast(y, DType::U8));
                return Some(self.cmp(op, a, b));
            }
            None => {
                // Unsigned order is signed order with the first bit turned.
                let signed = match d {
                    DType::U32 => DType::I32,
                    DType::U64 => DType::I64,
                    _ => return None,
                };
                let top = self.i(d, 1 << (d.bits() - 1));
                let (a, b) = (self.bin(Binary::Xor, x, top), self.bin(Binary::Xor, y, top));
                let (a, b) = (self.bits(a, signed), self.bits(b, signed));
                return Some(self.cmp(op, a, b));
            }
        };
        let (a, b) = (self.cast(x, w), self.cast(y, w));
        Some(self.cmp(op, a, b))
    }

    /// Fused multiply-add in a wider type, rounded once.
    pub(super) fn fused(&mut self, a: Val, b: Val, c: Val) -> Option<Val> {
        let d = self.dtype(a);
        if d == DType::F64 || !d.is_float() {
            return None;
        }
        let w = match d {
            _ if self.has_wide() => DType::F64,
            DType::F16 => DType::F32,
            DType::F32 => return Some(self.fused_digits(a, b, c, false)),
            _ => {
                let (a, b, c) =
                    (self.cast(a, DType::F32), self.cast(b, DType::F32), self.cast(c, DType::F32));
                let r = self.fused_digits(a, b, c, true);
                return Some(self.cast(r, d));
            }
        };
        let code = if w == DType::F64 { DType::I64 } else { DType::I32 };
        // The product is exact in the wider type. The sum is rounded to odd, after which rounding to the type is as good as once.
        let (a, b, c) = (self.cast(a, w), self.cast(b, w), self.cast(c, w));
        let p = self.mul(a, b);
        let (s, e) = self.two_sum(p, c);
        let bits = self.bits(s, code);
        let odd = self.and_i(bits, 1);
        let even = self.cmp_i(Compare::Eq, odd, 0);
        let lost = self.cmp_k(Compare::Ne, e, 0.0);
        let magnitude = self.un(Unary::Abs, s);
        let finite = self.cmp_k(Compare::Lt, magnitude, f64::INFINITY);
        let fix = self.and(even, lost);
        let fix = self.and(fix, finite);
        let (e_up, s_up) = (self.cmp_k(Compare::Gt, e, 0.0), self.cmp_k(Compare::Gt, s, 0.0));
        let inwards = self.bin(Binary::Xor, e_up, s_up);
        let (up, down) = (self.i(code, 1), self.i(code, -1));
        let step = self.sel(inwards, down, up);
        let moved = self.add(bits, step);
        let moved = self.bits(moved, w);
        let s = self.sel(fix, moved, s);
        Some(self.cast(s, d))
    }

    /// A matrix product of narrow floats in f32.
    pub(super) fn mma_in_f32(&mut self, acc: Val, a: Val, b: Val) -> Option<Val> {
        let (t, ta, tb) = (self.dtype(acc), self.dtype(a), self.dtype(b));
        let w = match t {
            _ if [t, ta, tb].contains(&DType::F64) => DType::F64,
            _ if t.is_float() => DType::F32,
            _ => t,
        };
        if (t, ta, tb) == (w, w, w) {
            return None;
        }
        if t != w && self.takes(&Op::Mma {}, &[w, ta, tb]) {
            let wide = self.cast(acc, w);
            let r = self.op(Op::Mma {}, &[wide, a, b]);
            return Some(self.cast(r, t));
        }
        let mode = CastMode::default();
        let mut to = |v: Val| if self.dtype(v) == w { v } else { self.op(Op::Cast { to: w, mode }, &[v]) };
        let (acc, a, b) = (to(acc), to(a), to(b));
        // Matrix units take operands of one type, and not all of them what was computed just now.
        let common = matches!(ta, DType::F16 | DType::BF16 | DType::F8E4M3FN | DType::F8E5M2);
        let r = match ta == tb && (common || !ta.is_float() || self.has_wide()) {
            true => self.op(Op::Mma {}, &[acc, a, b]),
            false => self.mma_in_parts(acc, a, b)?,
        };
        Some(self.cast(r, t))
    }

    /// A reduction or scan of pairs whose values are narrow floats: compared in f32, which holds them exactly.
    pub(super) fn pair_in_f32(&mut self, op: &Op, x: Val, i: Val) -> Option<Vec<Val>> {
        let d = self.dtype(x);
        let w = match d {
            DType::Bool => DType::I32,
            d if d.is_float() && d.bits() < 32 => DType::F32,
            d if d.bits() < 8 => wider(d)?,
            _ => return None,
        };
        let wide = self.cast(x, w);
        let results = self.rule(op, &[wide, i]).or_else(|| self.plain(op.clone(), &[wide, i]))?;
        Some(vec![self.cast(results[0], d), results[1]])
    }

    /// A reduction or scan of a narrow type in a wider one.
    pub(super) fn combine_in_f32(&mut self, op: &Op, x: Val) -> Option<Val> {
        let d = self.dtype(x);
        let w = match wider(d) {
            Some(w) => w,
            None if d.is_bool() => return self.combine_truths(op, x),
            None if d.is_float() && d.bits() < 32 => DType::F32,
            None => return None,
        };
        let wide = self.cast(x, w);
        let r = self.op(op.clone(), &[wide]);
        Some(self.cast(r, d))
    }

    /// A reduction or scan of truth values: the least or greatest of them, or whether their number is odd.
    fn combine_truths(&mut self, op: &Op, x: Val) -> Option<Val> {
        let mut op = op.clone();
        let (Op::Reduce { combiner, .. } | Op::Scan { combiner, .. }) = &mut op else { return None };
        let odd = *combiner == Combiner::Xor;
        *combiner = match combiner.binary()? {
            Binary::And | Binary::Mul | Binary::Min | Binary::MinNum => Combiner::Min,
            Binary::Or | Binary::Add | Binary::Max | Binary::MaxNum => Combiner::Max,
            Binary::Xor => Combiner::Add,
            _ => return None,
        };
        let wide = self.cast(x, DType::I32);
        let mut r = self.op(op, &[wide]);
        if odd {
            let shape = self.ty(r).as_tile()?.1.to_vec();
            let outer = std::mem::replace(&mut self.shape, shape);
            r = self.and_i(r, 1);
            self.shape = outer;
        }
        Some(self.cast(r, DType::Bool))
    }
}
