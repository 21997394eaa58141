//! What AVX-512 has single instructions for.

use super::Fun;
use super::emit::{Reg, V, int, real};
use tongtu_tensor::DType;
use tongtu_tensor::scalar::Binary;

/// Lanes of the narrowest vector.
const LEAST: usize = 4;
/// Of f32: log₂ e, and the number whose addition rounds to a whole one.
const LOG2_E: f64 = 1.4426950216293335;
const WHOLE: f64 = 12582912.0;
/// ln 2, negative: a part of few bits, so that products with whole numbers are exact, and the rest.
const LN2: [f64; 2] = [-0.693145751953125, -1.428606765330187e-6];
/// exp(r) = 1 + r (1 + r tail(r)) for |r| ≤ ln 2 / 2, the highest power first.
const EXP: [f64; 5] =
    [0.0013926926767453551, 0.008363774046301842, 0.04166654869914055, 0.16666573286056519, 0.5];

impl Fun<'_> {
    /// Whether the greater and lesser of two numbers take one instruction.
    fn has_range(&self, dtype: DType) -> bool {
        dtype == DType::F32 && self.chip.has("avx512dq") && self.chip.has("avx512vl")
    }

    /// The greater or lesser of two numbers, where it is shorter than LLVM's own form: zeros are ordered by their signs, and
    /// NaN is put in afterwards.
    pub(super) fn range(&mut self, op: Binary, dtype: DType, n: usize, a: &V, b: &V) -> Option<V> {
        // The sign comes from the comparison; the other bits say which of the two.
        let pick = match op {
            Binary::Max => 5,
            Binary::Min => 4,
            _ => return None,
        };
        // With a known number LLVM needs one instruction.
        let known = !a.starts_with('%') || !b.starts_with('%');
        if known || !self.has_range(dtype) || !(LEAST..=16).contains(&n) {
            return None;
        }
        let (ty, pick) = (Reg::F32.ty(n), int(Reg::I32, pick, 1));
        let y = self.masked("range.ps", n, &[("", a), ("", b), ("i32 immarg", &pick)]);
        let unordered = self.cmp("fcmp uno", &ty, a, b);
        let nan: V = real(Reg::F32, f64::NAN, n);
        Some(self.choose(n, &unordered, &ty, &nan, &y))
    }

    /// An f32 cut to the range of an integer of 8 or 16 bits. The conversion rounds by itself, and makes of NaN a number whose low
    /// bits are zeros.
    pub(super) fn narrow_int(&mut self, from: DType, to: DType, n: usize, x: &V) -> Option<V> {
        if from == DType::F64 || to.bits() > 16 || !self.has_range(DType::F32) || ![4, 8, 16].contains(&n) {
            return None;
        }
        let (x, name) = match self.rounded.get(x) {
            Some(source) => (source.clone(), "cvtps2dq"),
            None => (x.clone(), "cvttps2dq"),
        };
        let (fty, ity) = (Reg::F32.ty(n), Reg::I32.ty(n));
        let (lo, hi) = (to.min_value().to_f64(), to.max_value().to_f64());
        let above = self.cmp("fcmp ogt", &fty, &x, &real(Reg::F32, hi, n));
        let x = self.choose(n, &above, &fty, &real(Reg::F32, hi, n), &x);
        let below = self.cmp("fcmp olt", &fty, &x, &real(Reg::F32, lo, n));
        let x = self.choose(n, &below, &fty, &real(Reg::F32, lo, n), &x);
        let none: V = "zeroinitializer".into();
        let mask_ty = if n == 16 { "i16" } else { "i8" };
        let (all, rounding): (V, V) = ("-1".into(), "4".into());
        let mut args = vec![(fty.as_str(), &x), (ity.as_str(), &none), (mask_ty, &all)];
        if n == 16 {
            args.push(("i32 immarg", &rounding));
        }
        let whole = self.call(&ity, &format!("llvm.x86.avx512.mask.{name}.{}", n * 32), &args);
        Some(self.conv("trunc", &ity, &whole, &Reg::of(to).ty(n)))
    }

    /// An intrinsic of one result with a mask, all of whose lanes are wanted; an operand without a type is a vector.
    fn masked(&mut self, name: &str, n: usize, args: &[(&str, &V)]) -> V {
        let ty = Reg::F32.ty(n);
        let none: V = "zeroinitializer".into();
        let mask_ty = if n == 16 { "i16" } else { "i8" };
        let (all, rounding): (V, V) = ("-1".into(), "4".into());
        let mut args: Vec<(&str, &V)> =
            args.iter().map(|(t, v)| (if t.is_empty() { ty.as_str() } else { t }, *v)).collect();
        args.extend([(ty.as_str(), &none), (mask_ty, &all)]);
        if n == 16 {
            args.push(("i32 immarg", &rounding));
        }
        self.call(&ty, &format!("llvm.x86.avx512.mask.{name}.{}", n * 32), &args)
    }

    /// e to the power of f32, to an ulp: 2ⁿ times a polynomial, which one instruction multiplies.
    pub(super) fn exp(&mut self, n: usize, x: &V) -> V {
        if n < LEAST {
            let lanes: Vec<Option<usize>> = (0..LEAST).map(|i| Some(i % n)).collect();
            let wide = match n {
                1 => self.spread(Reg::F32, x, LEAST),
                _ => self.shuffle(Reg::F32, x, &"poison".into(), n, &lanes),
            };
            let y = self.exp(LEAST, &wide);
            return match n {
                1 => self.lane(Reg::F32, &y, LEAST, 0),
                _ => {
                    let lanes: Vec<Option<usize>> = (0..n).map(Some).collect();
                    self.shuffle(Reg::F32, &y, &"poison".into(), LEAST, &lanes)
                }
            };
        }
        let ty = Reg::F32.ty(n);
        let k = |x: f64| real(Reg::F32, x, n);
        let suffix = Reg::F32.suffix(n);
        let call = |s: &mut Self, name: &str, args: &[&V]| {
            let args: Vec<(&str, &V)> = args.iter().map(|a| (ty.as_str(), *a)).collect();
            s.call(&ty, &format!("llvm.{name}.{suffix}"), &args)
        };
        // Beyond, results are zero and infinity.
        let x = call(self, "maximum", &[x, &k(-104.0)]);
        let x = call(self, "minimum", &[&x, &k(89.0)]);
        let sum = call(self, "fma", &[&x, &k(LOG2_E), &k(WHOLE)]);
        let power = self.bin("fsub", &ty, &sum, &k(WHOLE));
        let r = call(self, "fma", &[&power, &k(LN2[0]), &x]);
        let r = call(self, "fma", &[&power, &k(LN2[1]), &r]);
        let mut p = k(EXP[0]);
        for c in EXP[1..].iter().chain(&[1.0, 1.0]) {
            p = call(self, "fma", &[&p, &r, &k(*c)]);
        }
        self.masked("scalef.ps", n, &[("", &p), ("", &power)])
    }
}
