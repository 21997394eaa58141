//! Pooling, and moving blocks between channels and space. Dims are batch, channels, spatial.

use tongtu_tensor::dim::Dim;
use tongtu_tensor::scalar::{Binary, Unary};
use tongtu_tensor::{Combiner, DType};

use crate::build::{Builder, One};
use crate::composite::{attr, attributes, wide};
use crate::error::GraphError;
use crate::graph::ValueId;
use crate::op::{AttrValue, Op, WindowSpec};

/// Geometry of a pooling; lists are indexed by spatial dim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSpec {
    /// Window lengths.
    pub window: Vec<i64>,
    /// Steps between windows.
    pub strides: Vec<i64>,
    /// Padding before and after, which counts as part of the operand where padding is counted.
    pub pads: Vec<(Dim, Dim)>,
    /// Further padding after, which never counts: it lets a last, partial window in (`ceil_mode`).
    pub extra: Vec<Dim>,
    /// Steps between elements of a window.
    pub dilation: Vec<i64>,
}

impl PoolSpec {
    /// A window without padding that moves by one.
    pub fn new(window: &[i64]) -> PoolSpec {
        let n = window.len();
        PoolSpec {
            window: window.to_vec(),
            strides: vec![1; n],
            pads: vec![(Dim::from(0), Dim::from(0)); n],
            extra: vec![Dim::from(0); n],
            dilation: vec![1; n],
        }
    }
    fn windows(&self, pads: Vec<(Dim, Dim)>) -> WindowSpec {
        let lead = |v: &[i64]| [1, 1].into_iter().chain(v.iter().copied()).collect::<Vec<_>>();
        let none = (Dim::from(0), Dim::from(0));
        WindowSpec {
            window: lead(&self.window),
            strides: lead(&self.strides),
            pads: [none.clone(), none].into_iter().chain(pads).collect(),
            dilation: lead(&self.dilation),
        }
    }
    /// All padding, as a window reduction takes it.
    fn padded(&self) -> WindowSpec {
        self.windows(self.pads.iter().zip(&self.extra).map(|((l, h), e)| (l.clone(), h + e)).collect())
    }
    fn attributes(&self) -> Vec<(String, AttrValue)> {
        attributes(&[
            ("window", attr(self.window.clone())),
            ("strides", attr(self.strides.clone())),
            ("pads", attr(self.pads.clone())),
            ("extra", attr(self.extra.clone())),
            ("dilation", attr(self.dilation.clone())),
        ])
    }
}

/// How [`Builder::depth_to_space`] orders the channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DepthToSpace {
    /// Block position first, then channel (`DCR`).
    DepthColumnRow,
    /// Channel first, then block position (`CRD`).
    ColumnRowDepth,
}

impl Builder<'_> {
    fn check_pool(&self, name: &str, x: ValueId, spec: &PoolSpec) -> Result<(), GraphError> {
        let n = spec.window.len();
        if self.rank(x) != n + 2
            || [spec.strides.len(), spec.pads.len(), spec.extra.len(), spec.dilation.len()] != [n; 4]
        {
            return Err(
                self.shape_error(name, format!("{n} spatial dims wanted in every list and the operand"))
            );
        }
        Ok(())
    }
    /// The greatest element of each window; padding never wins.
    pub fn max_pool(&mut self, x: ValueId, spec: &PoolSpec) -> One {
        self.check_pool("max_pool", x, spec)?;
        self.composite_one("max_pool", spec.attributes(), &[x], |b, x| {
            b.window_reduce(Combiner::Max, x[0], spec.padded())
        })
    }
    /// [`Builder::max_pool`] and the index (`i64`) of each winner in the whole operand, counted in row-major order or, with
    /// `column_major`, with the spatial dims in reverse order.
    pub fn max_pool_indices(
        &mut self,
        x: ValueId,
        spec: &PoolSpec,
        column_major: bool,
    ) -> Result<(ValueId, ValueId), GraphError> {
        self.check_pool("max_pool_indices", x, spec)?;
        let mut a = spec.attributes();
        a.push(("column_major".into(), attr(column_major)));
        let out = self.composite("max_pool_indices", a, &[x], |b, x| {
            let dims = b.dims(x[0]);
            let mut order: Vec<usize> = (0..dims.len()).collect();
            if column_major {
                order[2..].reverse();
            }
            let mut index = b.full(DType::I64, 0.0, &dims)?;
            for axis in order {
                let n = b.dim_as(&dims[axis], DType::I64)?;
                index = b.binary(Binary::Mul, index, n)?;
                let i = b.iota(DType::I64, &dims, axis)?;
                index = b.add2(index, i)?;
            }
            b.add(Op::WindowReduce { combiner: Combiner::ArgMax, spec: spec.padded() }, &[x[0], index])
        })?;
        Ok((out[0], out[1]))
    }
    /// The mean of each window: over the elements inside the operand, or with `count_padding` inside operand and `pads`.
    pub fn avg_pool(&mut self, x: ValueId, spec: &PoolSpec, count_padding: bool) -> One {
        self.check_pool("avg_pool", x, spec)?;
        let mut a = spec.attributes();
        a.push(("count_padding".into(), attr(count_padding)));
        self.widened("avg_pool", a, &[x], |b, x| {
            let sum = b.window_reduce(Combiner::Add, x[0], spec.padded())?;
            let zero = |d: &Dim| d.as_const() == Some(0);
            let whole = spec.extra.iter().all(zero)
                && (count_padding || spec.pads.iter().all(|(l, h)| zero(l) && zero(h)));
            if whole {
                let n: i64 = spec.window.iter().product();
                return b.binary_const(Binary::Div, sum, n as f64);
            }
            let mut dims = b.dims(x[0]);
            dims[0] = Dim::from(1);
            dims[1] = Dim::from(1);
            let mut windows = spec.padded();
            if count_padding {
                for (i, (l, h)) in spec.pads.iter().enumerate() {
                    dims[2 + i] = &dims[2 + i] + l + h;
                    windows.pads[2 + i] = (Dim::from(0), spec.extra[i].clone());
                }
            }
            let ones = b.full(b.dtype(x[0]), 1.0, &dims)?;
            let count = b.window_reduce(Combiner::Add, ones, windows)?;
            b.div(sum, count)
        })
    }
    /// `sum(|x|^p)^(1/p)` of each window.
    pub fn lp_pool(&mut self, x: ValueId, spec: &PoolSpec, p: i64) -> One {
        self.check_pool("lp_pool", x, spec)?;
        let mut a = spec.attributes();
        a.push(("p".into(), attr(p)));
        self.widened("lp_pool", a, &[x], |b, x| {
            let m = b.unary(Unary::Abs, x[0])?;
            let m = b.power(m, p)?;
            let s = b.window_reduce(Combiner::Add, m, spec.padded())?;
            b.root(s, p)
        })
    }
    fn power(&mut self, x: ValueId, p: i64) -> One {
        match p {
            1 => Ok(x),
            2 => self.square(x),
            _ => self.binary_const(Binary::Pow, x, p as f64),
        }
    }
    fn root(&mut self, x: ValueId, p: i64) -> One {
        match p {
            1 => Ok(x),
            2 => self.unary(Unary::Sqrt, x),
            _ => self.binary_const(Binary::Pow, x, 1.0 / p as f64),
        }
    }
    /// `sum(|x|^p)^(1/p)` over axes.
    pub fn lp_norm(&mut self, x: ValueId, axes: &[usize], p: i64, keep: bool) -> One {
        let d = self.float_only("lp_norm", x)?;
        for &axis in axes {
            self.check_axis("lp_norm", x, axis)?;
        }
        let a = attributes(&[("axes", attr(axes.to_vec())), ("p", attr(p)), ("keep", attr(keep))]);
        self.composite_one("lp_norm", a, &[x], |b, x| {
            let v = b.convert(x[0], wide(d))?;
            let m = b.unary(Unary::Abs, v)?;
            let m = b.power(m, p)?;
            let s = b.sum(m, axes)?;
            let y = b.root(s, p)?;
            let y = b.convert(y, d)?;
            b.keep_axes(y, x[0], axes, keep)
        })
    }

    /// Moves blocks of channels to square blocks of the two spatial dims: `[n, c * k², h, w]` to `[n, c, h * k, w * k]`.
    pub fn depth_to_space(&mut self, x: ValueId, block: i64, order: DepthToSpace) -> One {
        let d = self.dims(x);
        if d.len() != 4 || block < 1 {
            return Err(self.shape_error("depth_to_space", "four dims and a positive block wanted"));
        }
        let k = Dim::from(block);
        let c = d[1].floordiv(&Dim::from(block * block));
        let (split, perm): (Vec<Dim>, [usize; 6]) = match order {
            DepthToSpace::DepthColumnRow => (
                vec![d[0].clone(), k.clone(), k.clone(), c.clone(), d[2].clone(), d[3].clone()],
                [0, 3, 4, 1, 5, 2],
            ),
            DepthToSpace::ColumnRowDepth => (
                vec![d[0].clone(), c.clone(), k.clone(), k.clone(), d[2].clone(), d[3].clone()],
                [0, 1, 4, 2, 5, 3],
            ),
        };
        let v = self.reshape(x, &split)?;
        let v = self.permute(v, &perm)?;
        self.reshape(v, &[d[0].clone(), c, &d[2] * &k, &d[3] * &k])
    }
    /// The inverse of [`Builder::depth_to_space`] in the order `DepthColumnRow`.
    pub fn space_to_depth(&mut self, x: ValueId, block: i64) -> One {
        let d = self.dims(x);
        if d.len() != 4 || block < 1 {
            return Err(self.shape_error("space_to_depth", "four dims and a positive block wanted"));
        }
        let k = Dim::from(block);
        let (h, w) = (d[2].floordiv(&k), d[3].floordiv(&k));
        let v = self.reshape(x, &[d[0].clone(), d[1].clone(), h.clone(), k.clone(), w.clone(), k.clone()])?;
        let v = self.permute(v, &[0, 3, 5, 1, 2, 4])?;
        self.reshape(v, &[d[0].clone(), &d[1] * &Dim::from(block * block), h, w])
    }
}
