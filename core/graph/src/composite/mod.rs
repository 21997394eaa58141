//! Composites: named operations defined as graphs of primitives, as methods of [`Builder`].
//!
//! A definition is the meaning of its name on every chip. Floating-point types of fewer than 32 bits are widened to
//! `f32` at the start of a definition and rounded once at its end, unless said otherwise.

mod activation;
mod attention;
mod index;
mod norm;
mod pool;
mod quant;
mod recurrent;
mod resize;

pub use attention::{AttentionSpec, Scores};
pub use pool::{DepthToSpace, PoolSpec};
pub use quant::Granularity;
pub use recurrent::{Activation, Direction, RecurrentInputs, RecurrentSpec};
pub use resize::{Coordinates, Interpolation, NearestMode, ResizeAxis, ResizeMode};

use tongtu_tensor::dim::Dim;
use tongtu_tensor::scalar::{Binary, Unary};
use tongtu_tensor::{CastMode, Combiner, DType, Overflow, Rounding};

use crate::build::{Builder, One};
use crate::error::GraphError;
use crate::graph::ValueId;
use crate::op::{Attr, AttrValue};

/// The type a definition computes in for operands of a floating-point type: `f64` for itself, `f32` for the others.
pub fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// Parameters of a composite, by name.
pub(crate) fn attributes(list: &[(&str, AttrValue)]) -> Vec<(String, AttrValue)> {
    list.iter().map(|(n, v)| (n.to_string(), v.clone())).collect()
}

/// Any attribute in its generic form.
pub(crate) fn attr<T: Attr>(value: T) -> AttrValue {
    value.to_attr()
}

impl Builder<'_> {
    /// A shape error at the current location.
    pub fn shape_error(&self, op: &str, detail: impl Into<String>) -> GraphError {
        GraphError::Shape { op: op.into(), loc: self.loc.clone(), detail: detail.into() }
    }
    /// A type error at the current location.
    pub fn type_error(&self, op: &str, detail: impl Into<String>) -> GraphError {
        GraphError::Type { op: op.into(), loc: self.loc.clone(), detail: detail.into() }
    }
    /// Refuses a value that is not of a floating-point type.
    pub(crate) fn float_only(&self, op: &str, x: ValueId) -> Result<DType, GraphError> {
        let d = self.dtype(x);
        if d.is_float() {
            Ok(d)
        } else {
            Err(self.type_error(op, format!("takes floating-point types, not {d}")))
        }
    }
    /// Refuses an axis past the rank.
    pub(crate) fn check_axis(&self, op: &str, x: ValueId, axis: usize) -> Result<(), GraphError> {
        let rank = self.rank(x);
        if axis < rank {
            Ok(())
        } else {
            Err(self.shape_error(op, format!("axis {axis} of a value of rank {rank}")))
        }
    }

    /// Conversion as the formats themselves say: to nearest even, out of range to infinity or NaN, integers wrap.
    pub fn convert(&mut self, x: ValueId, to: DType) -> One {
        self.cast(x, to, CastMode::default())
    }
    /// Conversion to nearest even that saturates.
    pub fn saturate(&mut self, x: ValueId, to: DType) -> One {
        self.cast(x, to, CastMode { overflow: Overflow::Saturate, rounding: Rounding::NearestEven })
    }
    /// A composite with one result.
    pub fn composite_one(
        &mut self,
        name: &str,
        attributes: Vec<(String, AttrValue)>,
        operands: &[ValueId],
        define: impl FnOnce(&mut Builder<'_>, &[ValueId]) -> One,
    ) -> One {
        let out = self.composite(name, attributes, operands, |b, x| Ok(vec![define(b, x)?]))?;
        Ok(out[0])
    }
    /// A composite of one result, of the first operand's type, whose floating-point operands are widened for the definition.
    pub(crate) fn widened(
        &mut self,
        name: &str,
        attributes: Vec<(String, AttrValue)>,
        operands: &[ValueId],
        define: impl FnOnce(&mut Builder<'_>, &[ValueId]) -> One,
    ) -> One {
        let d = self.float_only(name, operands[0])?;
        self.composite_one(name, attributes, operands, |b, x| {
            let x = b.widen_all(x, wide(d))?;
            let y = define(b, &x)?;
            b.convert(y, d)
        })
    }
    /// Floating-point values converted to a type; others as they are.
    pub(crate) fn widen_all(&mut self, x: &[ValueId], to: DType) -> Result<Vec<ValueId>, GraphError> {
        x.iter().map(|&v| if self.dtype(v).is_float() { self.convert(v, to) } else { Ok(v) }).collect()
    }

    /// `x` raised to an integer power of 2.
    pub(crate) fn square(&mut self, x: ValueId) -> One {
        self.mul(x, x)
    }
    /// `1 / x`.
    pub fn recip(&mut self, x: ValueId) -> One {
        let one = self.full_like(x, 1.0)?;
        self.div(one, x)
    }
    /// `x * c` with a constant of its type.
    pub(crate) fn scale_by(&mut self, x: ValueId, c: f64) -> One {
        if c == 1.0 { Ok(x) } else { self.binary_const(Binary::Mul, x, c) }
    }
    /// `x + c` with a constant of its type.
    pub(crate) fn add_const(&mut self, x: ValueId, c: f64) -> One {
        if c == 0.0 { Ok(x) } else { self.binary_const(Binary::Add, x, c) }
    }
    /// The product of some dims of a value, as a scalar of a floating-point or integer type.
    pub(crate) fn count(&mut self, x: ValueId, axes: &[usize], dtype: DType) -> One {
        let n = axes.iter().fold(Dim::from(1), |acc, &a| &acc * &self.graph.dims(x)[a]);
        self.dim_as(&n, dtype)
    }
    /// A dim as a scalar of a type.
    pub fn dim_as(&mut self, dim: &Dim, dtype: DType) -> One {
        match dim.as_const() {
            Some(n) if dtype.is_float() => self.float(dtype, n as f64),
            Some(n) => self.int(dtype, n),
            None => {
                let v = self.dim_value(dim.clone())?;
                self.convert(v, dtype)
            }
        }
    }
    /// Puts back, with length 1, the axes that a reduction of `like` removed, and broadcasts to the dims of `like`.
    pub(crate) fn spread(&mut self, reduced: ValueId, like: ValueId, axes: &[usize]) -> One {
        let dims = self.dims(like);
        let kept: Vec<usize> = (0..dims.len()).filter(|i| !axes.contains(i)).collect();
        self.broadcast(reduced, &dims, &kept)
    }
    /// Broadcasts a vector along one dim of `dims`.
    pub(crate) fn along(&mut self, vector: ValueId, dims: &[Dim], axis: usize) -> One {
        self.broadcast(vector, dims, &[axis])
    }
    /// Leaves the reduced axes out, or puts them back with length 1.
    pub(crate) fn keep_axes(&mut self, reduced: ValueId, like: ValueId, axes: &[usize], keep: bool) -> One {
        if !keep {
            return Ok(reduced);
        }
        let mut dims = self.dims(like);
        for &a in axes {
            dims[a] = Dim::from(1);
        }
        self.reshape(reduced, &dims)
    }
    /// Sum over axes, which disappear.
    pub fn sum(&mut self, x: ValueId, axes: &[usize]) -> One {
        self.reduce(Combiner::Add, x, axes)
    }
    pub(crate) fn exp(&mut self, x: ValueId) -> One {
        self.unary(Unary::Exp, x)
    }
}
