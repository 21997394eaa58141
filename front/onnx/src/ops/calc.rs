//! Short forms for arithmetic on values, where an operator is written out in primitives.

use tongtu_graph::build::One;
use tongtu_graph::{Builder, Combiner, ValueId};
use tongtu_tensor::dim::Dim;
use tongtu_tensor::{Binary, Compare, Unary};

/// Arithmetic with constants of the operand's type, and other common steps.
pub(crate) trait Calc {
    /// `x + c`.
    fn plus(&mut self, x: ValueId, c: f64) -> One;
    /// `x * c`.
    fn times(&mut self, x: ValueId, c: f64) -> One;
    /// `max(x, c)`.
    fn at_least(&mut self, x: ValueId, c: f64) -> One;
    /// `min(x, c)`.
    fn at_most(&mut self, x: ValueId, c: f64) -> One;
    /// Minimum of two values, broadcasting.
    fn min2(&mut self, a: ValueId, b: ValueId) -> One;
    /// Maximum of two values, broadcasting.
    fn max2(&mut self, a: ValueId, b: ValueId) -> One;
    /// Conjunction, broadcasting.
    fn both(&mut self, a: ValueId, b: ValueId) -> One;
    /// `0 <= x < n`.
    fn inside(&mut self, x: ValueId, n: &Dim) -> One;
    /// `p` ? `a` : the constant.
    fn or_const(&mut self, p: ValueId, a: ValueId, c: f64) -> One;
    /// The largest integer not above.
    fn floor(&mut self, x: ValueId) -> One;
    /// The index `i` of an axis, which disappears.
    fn index(&mut self, x: ValueId, axis: usize, i: i64) -> One;
    /// The sum of some values, of equal dims.
    fn total(&mut self, xs: &[ValueId]) -> One;
    /// Index along one dim, as a value of all dims that broadcasting gives.
    fn count_along(&mut self, dtype: tongtu_tensor::DType, rank: usize, axis: usize, len: &Dim) -> One;
    /// Greatest along axes, which disappear.
    fn greatest(&mut self, x: ValueId, axes: &[usize]) -> One;
}

impl Calc for Builder<'_> {
    fn plus(&mut self, x: ValueId, c: f64) -> One {
        if c == 0.0 { Ok(x) } else { self.binary_const(Binary::Add, x, c) }
    }
    fn times(&mut self, x: ValueId, c: f64) -> One {
        if c == 1.0 { Ok(x) } else { self.binary_const(Binary::Mul, x, c) }
    }
    fn at_least(&mut self, x: ValueId, c: f64) -> One {
        self.binary_const(Binary::Max, x, c)
    }
    fn at_most(&mut self, x: ValueId, c: f64) -> One {
        self.binary_const(Binary::Min, x, c)
    }
    fn min2(&mut self, a: ValueId, b: ValueId) -> One {
        self.binary(Binary::Min, a, b)
    }
    fn max2(&mut self, a: ValueId, b: ValueId) -> One {
        self.binary(Binary::Max, a, b)
    }
    fn both(&mut self, a: ValueId, b: ValueId) -> One {
        self.binary(Binary::And, a, b)
    }
    fn inside(&mut self, x: ValueId, n: &Dim) -> One {
        let low = self.compare_const(Compare::Ge, x, 0.0)?;
        let end = self.dim_as(n, self.dtype(x))?;
        let high = self.compare(Compare::Lt, x, end)?;
        self.both(low, high)
    }
    fn or_const(&mut self, p: ValueId, a: ValueId, c: f64) -> One {
        let c = self.full_like(a, c)?;
        self.select(p, a, c)
    }
    fn floor(&mut self, x: ValueId) -> One {
        self.unary(Unary::Floor, x)
    }
    fn index(&mut self, x: ValueId, axis: usize, i: i64) -> One {
        let y = self.slice_axis(x, axis, Dim::from(i), Dim::from(1))?;
        let mut dims = self.dims(y);
        dims.remove(axis);
        self.reshape(y, &dims)
    }
    fn total(&mut self, xs: &[ValueId]) -> One {
        let Some((&first, rest)) = xs.split_first() else {
            return Err(self.shape_error("add", "a sum of nothing"));
        };
        let mut y = first;
        for &x in rest {
            y = self.add2(y, x)?;
        }
        Ok(y)
    }
    fn count_along(&mut self, dtype: tongtu_tensor::DType, rank: usize, axis: usize, len: &Dim) -> One {
        let i = self.iota(dtype, std::slice::from_ref(len), 0)?;
        let mut dims = vec![Dim::from(1); rank];
        dims[axis] = len.clone();
        self.reshape(i, &dims)
    }
    fn greatest(&mut self, x: ValueId, axes: &[usize]) -> One {
        self.reduce(Combiner::Max, x, axes)
    }
}
