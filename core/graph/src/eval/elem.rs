//! What an element is while it is computed: its bits, or its value with an error bound.

use tongtu_tensor::scalar::{
    self, Approx, approx_binary, approx_cast, approx_compare, approx_fma, approx_unary, eval_binary,
    eval_compare, eval_fma, eval_unary,
};
use tongtu_tensor::{Binary, CastMode, Compare, DType, Num, Overflow, Tensor, Unary, cast};

/// An element of one of the evaluator's modes. Every function takes the element type, which the element need not know.
pub(crate) trait Elem: Clone {
    /// The element with these bits.
    fn of_code(dtype: DType, code: u64) -> Self;
    /// The element nearest to an approximation.
    fn of_approx(dtype: DType, a: Approx) -> Self;
    /// Its value with its error.
    fn approx(&self, dtype: DType) -> Approx;
    fn unary(&self, op: Unary, dtype: DType) -> Self;
    fn binary(&self, op: Binary, dtype: DType, other: &Self) -> Self;
    fn compare(&self, op: Compare, dtype: DType, other: &Self) -> Self;
    fn fma(&self, dtype: DType, b: &Self, c: &Self) -> Self;
    fn cast(&self, from: DType, to: DType, mode: CastMode) -> Self;
    fn bitcast(&self, from: DType, to: DType) -> Self;

    /// The element of a tensor.
    fn read(t: &Tensor, i: usize) -> Self {
        Self::of_code(t.dtype(), t.code(i))
    }
    /// An exact value.
    fn exact(dtype: DType, value: Num) -> Self {
        Self::of_code(dtype, dtype.encode(value, Overflow::Format))
    }
    /// The integer it surely is.
    fn certain_int(&self, dtype: DType) -> Option<i128> {
        let a = self.approx(dtype);
        if a.err == 0.0 { Some(a.value.to_i128()) } else { None }
    }
}

/// An element by its bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bits(pub u64);

impl Bits {
    fn of(dtype: DType, value: Num) -> Bits {
        Bits(dtype.encode(value, Overflow::Format))
    }
}

impl Elem for Bits {
    fn of_code(_: DType, code: u64) -> Self {
        Bits(code)
    }
    fn of_approx(dtype: DType, a: Approx) -> Self {
        Bits::of(dtype, a.value)
    }
    fn approx(&self, dtype: DType) -> Approx {
        Approx::exact(dtype.decode(self.0))
    }
    fn unary(&self, op: Unary, dtype: DType) -> Self {
        Bits::of(op.result(dtype), eval_unary(op, dtype, dtype.decode(self.0)))
    }
    fn binary(&self, op: Binary, dtype: DType, other: &Self) -> Self {
        Bits::of(dtype, eval_binary(op, dtype, dtype.decode(self.0), dtype.decode(other.0)))
    }
    fn compare(&self, op: Compare, dtype: DType, other: &Self) -> Self {
        Bits(eval_compare(op, dtype, dtype.decode(self.0), dtype.decode(other.0)).into())
    }
    fn fma(&self, dtype: DType, b: &Self, c: &Self) -> Self {
        Bits::of(dtype, eval_fma(dtype, dtype.decode(self.0), dtype.decode(b.0), dtype.decode(c.0)))
    }
    fn cast(&self, from: DType, to: DType, mode: CastMode) -> Self {
        Bits::of(to, cast(from.decode(self.0), from, to, mode))
    }
    fn bitcast(&self, _: DType, _: DType) -> Self {
        *self
    }
}

impl Elem for Approx {
    fn of_code(dtype: DType, code: u64) -> Self {
        Approx::exact(dtype.decode(code))
    }
    fn of_approx(_: DType, a: Approx) -> Self {
        // No bound is known where it can't be computed.
        Approx { err: if a.err.is_nan() { f64::INFINITY } else { a.err }, ..a }
    }
    fn approx(&self, _: DType) -> Approx {
        *self
    }
    fn unary(&self, op: Unary, dtype: DType) -> Self {
        approx_unary(op, dtype, *self)
    }
    fn binary(&self, op: Binary, dtype: DType, other: &Self) -> Self {
        approx_binary(op, dtype, *self, *other)
    }
    fn compare(&self, op: Compare, dtype: DType, other: &Self) -> Self {
        approx_compare(op, dtype, *self, *other)
    }
    fn fma(&self, dtype: DType, b: &Self, c: &Self) -> Self {
        approx_fma(dtype, *self, *b, *c)
    }
    fn cast(&self, from: DType, to: DType, mode: CastMode) -> Self {
        approx_cast(*self, from, to, mode)
    }
    fn bitcast(&self, from: DType, to: DType) -> Self {
        let value = to.decode(from.encode(self.value, Overflow::Format));
        Approx { value, err: if self.err == 0.0 { 0.0 } else { f64::INFINITY } }
    }
}

/// The nominal element of several that an implementation may give instead: its value, with an error that reaches the others.
pub(crate) fn hull<E: Elem>(dtype: DType, nominal: &E, others: impl IntoIterator<Item = E>) -> E {
    let n = nominal.approx(dtype);
    let mut err = n.err;
    for other in others {
        let o = other.approx(dtype);
        let apart = match (n.value, o.value) {
            (Num::Int(a), Num::Int(b)) => a.abs_diff(b) as f64,
            (a, b) if a == b || a.is_nan() && b.is_nan() => 0.0,
            (a, b) => {
                let d = (a.to_f64() - b.to_f64()).abs();
                if d.is_nan() { f64::INFINITY } else { d }
            }
        };
        if apart > 0.0 || o.err > 0.0 {
            err = err.max(apart + o.err);
        }
    }
    if err == n.err { nominal.clone() } else { E::of_approx(dtype, Approx { value: n.value, err }) }
}

/// Sums of terms in an accumulator type, with the error of adding them in any order.
pub(crate) struct Sum {
    acc: DType,
    /// Rounding errors a term may have of its own: 1 for products.
    own: f64,
    high: f64,
    low: f64,
    int: i128,
    /// Sum of the magnitudes of the finite terms.
    magnitude: f64,
    /// Errors of the operands, carried through.
    carried: f64,
    count: u64,
    /// Power of two of which every term is a multiple.
    grain: i32,
    special: bool,
}

/// Operands below this may count as zero in matrix units, and so may their products.
const LEAST_NORMAL_F32: f64 = f32::MIN_POSITIVE as f64;

impl Sum {
    pub fn new(acc: DType) -> Sum {
        let (high, low, int) = (0.0, 0.0, 0);
        Sum {
            acc,
            own: 0.0,
            high,
            low,
            int,
            magnitude: 0.0,
            carried: 0.0,
            count: 0,
            grain: i32::MAX,
            special: false,
        }
    }
    fn push(&mut self, term: f64, rest: f64) {
        self.count += 1;
        let sum = self.high + term;
        // Knuth's two-sum.
        let part = sum - self.high;
        let lost = (self.high - (sum - part)) + (term - part);
        self.high = sum;
        self.low += lost + rest;
        if term.is_finite() {
            self.magnitude += term.abs();
            self.grain = self.grain.min(if rest == 0.0 { lowest_bit(term) } else { i32::MIN });
        } else {
            self.special = true;
        }
    }
    /// Adds a term.
    pub fn add(&mut self, term: Approx) {
        self.carried += term.err;
        match term.value {
            Num::Int(n) if !self.acc.is_float() => {
                self.count += 1;
                self.int = if self.acc.is_bool() { self.int | n } else { self.int.wrapping_add(n) };
                self.magnitude += (n as f64).abs();
            }
            v => self.push(v.to_f64(), 0.0),
        }
    }
    /// Adds a product.
    pub fn add_product(&mut self, a: Approx, b: Approx) {
        let (x, y) = (a.value.to_f64(), b.value.to_f64());
        if a.err != 0.0 || b.err != 0.0 {
            let change = x.abs() * b.err + y.abs() * a.err + a.err * b.err;
            self.carried += if change.is_nan() { f64::INFINITY } else { change };
        }
        match (a.value, b.value) {
            (Num::Int(m), Num::Int(n)) if !self.acc.is_float() => {
                self.count += 1;
                self.int = match self.acc {
                    DType::Bool => self.int | (m & n),
                    _ => self.int.wrapping_add(m.wrapping_mul(n)),
                };
                self.magnitude += (x * y).abs();
            }
            _ => {
                self.own = 1.0;
                let product = x * y;
                // Operands of the smaller accumulators have products that are exact in f64.
                let rest = if self.acc == DType::F64 { x.mul_add(y, -product) } else { 0.0 };
                self.push(product, if rest.is_finite() { rest } else { 0.0 });
                let small = |v: f64| v != 0.0 && v.abs() < LEAST_NORMAL_F32;
                if self.acc != DType::F64 && (small(x) || small(y) || small(product)) {
                    self.carried += product.abs();
                }
            }
        }
    }
    /// The sum in the accumulator type.
    pub fn finish(&self) -> Approx {
        if !self.acc.is_float() {
            let value = self.acc.decode(self.acc.encode(Num::Int(self.int), Overflow::Format));
            let limit = self.acc.max_value().to_f64();
            let err = match self.carried {
                0.0 => 0.0,
                _ if self.acc.is_bool() => 1.0,
                e if self.magnitude + e > limit => f64::INFINITY,
                e => e,
            };
            return Approx { value, err };
        }
        let sum = if self.high.is_finite() { self.high + self.low } else { self.high };
        let value = self.acc.decode(self.acc.encode(Num::Float(sum), Overflow::Format));
        let greatest = self.acc.max_value().to_f64();
        let bits = self.acc.float_format().map_or(24, |f| f.mantissa_bits + 1) as i32;
        let err = if self.carried == f64::INFINITY {
            f64::INFINITY
        } else if self.special {
            // Infinities and NaN decide, unless the finite terms may overflow the other way.
            if self.magnitude + self.carried < greatest { 0.0 } else { f64::INFINITY }
        } else if self.count == 0
            || self.carried == 0.0 && (self.count as f64 + self.own <= 1.0 || self.exact(bits))
        {
            0.0
        } else {
            let k = (self.count as f64 + self.own) * libm::ldexp(1.0, -bits);
            let gamma = if k < 0.5 { k / (1.0 - k) } else { f64::INFINITY };
            // The last term is for computing all this, and the reference, in f64.
            let slack = 4.0 * scalar::ulp(DType::F64, self.magnitude) * (self.count as f64).max(1.0);
            let err = (self.carried + gamma * self.magnitude) * (1.0 + gamma)
                + if self.acc == DType::F64 { slack } else { 0.0 };
            let err = if self.carried > 0.0 { err + scalar::ulp(self.acc, sum.abs() + err) } else { err };
            if self.magnitude + err >= greatest { f64::INFINITY } else { err }
        };
        Approx { value, err }
    }
    /// Whether every partial sum is exact, in whatever order.
    fn exact(&self, bits: i32) -> bool {
        self.low == 0.0
            && (self.magnitude == 0.0
                || (self.grain >= -126 || self.acc == DType::F64 && self.grain > -1022)
                    && self.magnitude <= libm::ldexp(1.0, self.grain.saturating_add(bits).min(1000)))
    }
}

/// Exponent of the lowest set bit of a finite number; of zero the greatest `i32`.
fn lowest_bit(x: f64) -> i32 {
    let bits = x.to_bits();
    let exponent = (bits >> 52 & 0x7ff) as i32;
    let mantissa = bits & ((1 << 52) - 1);
    match (exponent, mantissa) {
        (0, 0) => i32::MAX,
        (0, m) => m.trailing_zeros() as i32 - 1074,
        (e, m) => (m | 1 << 52).trailing_zeros() as i32 + e - 1075,
    }
}

/// The type in which a reduction of elements of a type is computed: `f32` for the smaller floats.
pub fn accumulator(dtype: DType) -> DType {
    match dtype {
        DType::F64 => DType::F64,
        d if d.is_float() => DType::F32,
        d => d,
    }
}
