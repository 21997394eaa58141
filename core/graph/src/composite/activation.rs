//! Activation functions.

use tongtu_tensor::scalar::{Binary, Compare, Unary};

use crate::build::{Builder, One};
use crate::composite::{attr, attributes};
use crate::graph::ValueId;

impl Builder<'_> {
    /// `1 / (1 + exp(-x))`.
    pub fn sigmoid(&mut self, x: ValueId) -> One {
        self.widened("sigmoid", vec![], &[x], |b, x| b.sigmoid_of(x[0]))
    }
    pub(crate) fn sigmoid_of(&mut self, x: ValueId) -> One {
        let n = self.unary(Unary::Neg, x)?;
        let e = self.exp(n)?;
        let d = self.add_const(e, 1.0)?;
        self.recip(d)
    }
    /// `max(x, 0)`, for numbers of any type.
    pub fn relu(&mut self, x: ValueId) -> One {
        self.composite_one("relu", vec![], &[x], |b, x| b.binary_const(Binary::Max, x[0], 0.0))
    }
    /// `min(max(x, low), high)`, each bound a scalar or broadcast; a missing bound does not clip. NaN stays NaN.
    pub fn clip(&mut self, x: ValueId, low: Option<ValueId>, high: Option<ValueId>) -> One {
        let operands: Vec<ValueId> = [Some(x), low, high].into_iter().flatten().collect();
        let has = attributes(&[("low", attr(low.is_some())), ("high", attr(high.is_some()))]);
        self.composite_one("clip", has, &operands, |b, x| {
            let mut y = x[0];
            if low.is_some() {
                y = b.binary(Binary::Max, y, x[1])?;
            }
            if high.is_some() {
                y = b.binary(Binary::Min, y, x[x.len() - 1])?;
            }
            Ok(y)
        })
    }
    fn hard_sigmoid_of(&mut self, x: ValueId, alpha: f64, beta: f64) -> One {
        let y = self.scale_by(x, alpha)?;
        let y = self.add_const(y, beta)?;
        let y = self.binary_const(Binary::Min, y, 1.0)?;
        self.binary_const(Binary::Max, y, 0.0)
    }
    /// `max(0, min(1, alpha * x + beta))`.
    pub fn hard_sigmoid(&mut self, x: ValueId, alpha: f64, beta: f64) -> One {
        let a = attributes(&[("alpha", attr(alpha)), ("beta", attr(beta))]);
        self.widened("hard_sigmoid", a, &[x], |b, x| b.hard_sigmoid_of(x[0], alpha, beta))
    }
    /// `x * max(0, min(1, x / 6 + 1/2))`.
    pub fn hard_swish(&mut self, x: ValueId) -> One {
        self.widened("hard_swish", vec![], &[x], |b, x| {
            let h = b.hard_sigmoid_of(x[0], 1.0 / 6.0, 0.5)?;
            b.mul(x[0], h)
        })
    }
    /// `x * sigmoid(x)`.
    pub fn silu(&mut self, x: ValueId) -> One {
        self.widened("silu", vec![], &[x], |b, x| {
            let s = b.sigmoid_of(x[0])?;
            b.mul(x[0], s)
        })
    }
    /// `x * sigmoid(alpha * x)`.
    pub fn swish(&mut self, x: ValueId, alpha: f64) -> One {
        self.widened("swish", attributes(&[("alpha", attr(alpha))]), &[x], |b, x| {
            let t = b.scale_by(x[0], alpha)?;
            let s = b.sigmoid_of(t)?;
            b.mul(x[0], s)
        })
    }
    /// `x / 2 * (1 + erf(x / sqrt(2)))`.
    pub fn gelu(&mut self, x: ValueId) -> One {
        self.widened("gelu", vec![], &[x], |b, x| {
            let t = b.scale_by(x[0], std::f64::consts::FRAC_1_SQRT_2)?;
            let t = b.unary(Unary::Erf, t)?;
            let t = b.add_const(t, 1.0)?;
            let h = b.scale_by(x[0], 0.5)?;
            b.mul(h, t)
        })
    }
    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`.
    pub fn gelu_tanh(&mut self, x: ValueId) -> One {
        self.widened("gelu_tanh", vec![], &[x], |b, x| {
            let s = b.square(x[0])?;
            let c = b.mul(s, x[0])?;
            let c = b.scale_by(c, 0.044715)?;
            let t = b.add2(x[0], c)?;
            let t = b.scale_by(t, (2.0 / std::f64::consts::PI).sqrt())?;
            let t = b.unary(Unary::Tanh, t)?;
            let t = b.add_const(t, 1.0)?;
            let h = b.scale_by(x[0], 0.5)?;
            b.mul(h, t)
        })
    }
    fn softplus_of(&mut self, x: ValueId) -> One {
        let m = self.unary(Unary::Abs, x)?;
        let m = self.unary(Unary::Neg, m)?;
        let e = self.exp(m)?;
        let l = self.unary(Unary::Log1p, e)?;
        let r = self.binary_const(Binary::Max, x, 0.0)?;
        self.add2(r, l)
    }
    /// `log(1 + exp(x))`.
    pub fn softplus(&mut self, x: ValueId) -> One {
        self.widened("softplus", vec![], &[x], |b, x| b.softplus_of(x[0]))
    }
    /// `x / (1 + |x|)`.
    pub fn softsign(&mut self, x: ValueId) -> One {
        self.widened("softsign", vec![], &[x], |b, x| {
            let a = b.unary(Unary::Abs, x[0])?;
            let d = b.add_const(a, 1.0)?;
            b.div(x[0], d)
        })
    }
    /// `x` above zero, else `y`.
    fn above_zero(&mut self, x: ValueId, y: ValueId) -> One {
        let p = self.compare_const(Compare::Gt, x, 0.0)?;
        self.select(p, x, y)
    }
    /// `x` above zero, else `alpha * (exp(x) - 1)`.
    pub fn elu(&mut self, x: ValueId, alpha: f64) -> One {
        self.widened("elu", attributes(&[("alpha", attr(alpha))]), &[x], |b, x| {
            let e = b.unary(Unary::Expm1, x[0])?;
            let e = b.scale_by(e, alpha)?;
            b.above_zero(x[0], e)
        })
    }
    /// `gamma * x` above zero, else `gamma * alpha * (exp(x) - 1)`.
    pub fn selu(&mut self, x: ValueId, alpha: f64, gamma: f64) -> One {
        let a = attributes(&[("alpha", attr(alpha)), ("gamma", attr(gamma))]);
        self.widened("selu", a, &[x], |b, x| {
            let e = b.unary(Unary::Expm1, x[0])?;
            let e = b.scale_by(e, alpha)?;
            let y = b.above_zero(x[0], e)?;
            b.scale_by(y, gamma)
        })
    }
    /// `x` at or above zero, else `alpha * x`.
    pub fn leaky_relu(&mut self, x: ValueId, alpha: f64) -> One {
        self.widened("leaky_relu", attributes(&[("alpha", attr(alpha))]), &[x], |b, x| {
            let y = b.scale_by(x[0], alpha)?;
            let p = b.compare_const(Compare::Ge, x[0], 0.0)?;
            b.select(p, x[0], y)
        })
    }
    /// `x` at or above zero, else `slope * x` with a slope that broadcasts to `x`; numbers of any type.
    pub fn prelu(&mut self, x: ValueId, slope: ValueId) -> One {
        self.composite_one("prelu", vec![], &[x, slope], |b, x| {
            let y = b.mul(x[0], x[1])?;
            let p = b.compare_const(Compare::Ge, x[0], 0.0)?;
            b.select(p, x[0], y)
        })
    }
    /// `x` above `alpha`, else 0.
    pub fn thresholded_relu(&mut self, x: ValueId, alpha: f64) -> One {
        self.widened("thresholded_relu", attributes(&[("alpha", attr(alpha))]), &[x], |b, x| {
            let p = b.compare_const(Compare::Gt, x[0], alpha)?;
            let z = b.full_like(x[0], 0.0)?;
            b.select(p, x[0], z)
        })
    }
    /// `max(0, x) + min(0, alpha * (exp(x / alpha) - 1))`.
    pub fn celu(&mut self, x: ValueId, alpha: f64) -> One {
        self.widened("celu", attributes(&[("alpha", attr(alpha))]), &[x], |b, x| {
            let p = b.binary_const(Binary::Max, x[0], 0.0)?;
            let e = b.binary_const(Binary::Div, x[0], alpha)?;
            let e = b.unary(Unary::Expm1, e)?;
            let e = b.scale_by(e, alpha)?;
            let e = b.binary_const(Binary::Min, e, 0.0)?;
            b.add2(p, e)
        })
    }
    /// `x * tanh(log(1 + exp(x)))`.
    pub fn mish(&mut self, x: ValueId) -> One {
        self.widened("mish", vec![], &[x], |b, x| {
            let s = b.softplus_of(x[0])?;
            let t = b.unary(Unary::Tanh, s)?;
            b.mul(x[0], t)
        })
    }
    /// `x + bias` below `-lambda`, `x - bias` above `lambda`, else 0; numbers of any type.
    pub fn shrink(&mut self, x: ValueId, lambda: f64, bias: f64) -> One {
        let a = attributes(&[("lambda", attr(lambda)), ("bias", attr(bias))]);
        self.composite_one("shrink", a, &[x], |b, x| {
            let d = b.dtype(x[0]);
            let w = if d.is_float() { crate::composite::wide(d) } else { tongtu_tensor::DType::F64 };
            let v = b.convert(x[0], w)?;
            let up = b.add_const(v, bias)?;
            let down = b.add_const(v, -bias)?;
            let below = b.compare_const(Compare::Lt, v, -lambda)?;
            let above = b.compare_const(Compare::Gt, v, lambda)?;
            let zero = b.full_like(v, 0.0)?;
            let y = b.select(above, down, zero)?;
            let y = b.select(below, up, y)?;
            b.convert(y, d)
        })
    }
}
