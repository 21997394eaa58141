//! Attention and rotary position embedding.

use tongtu_tensor::dim::Dim;
use tongtu_tensor::scalar::{Binary, Compare, Unary};
use tongtu_tensor::{Combiner, DType};

use crate::build::{Builder, One};
use crate::composite::{attr, attributes, wide};
use crate::error::GraphError;
use crate::graph::ValueId;

/// Parameters of [`Builder::attention`].
#[derive(Clone, Debug)]
pub struct AttentionSpec {
    /// Factor on the products of queries and keys (`1 / sqrt(head size)` usually).
    pub scale: f64,
    /// Position of query 0 among the keys: the number of earlier keys (0 without a cache).
    pub offset: Dim,
    /// Query `i` sees no key before position `i + offset - left`.
    pub left: Option<i64>,
    /// Query `i` sees no key after position `i + offset + right`: 0 for causal attention.
    pub right: Option<i64>,
    /// `c * tanh(score / c)` before the mask.
    pub softcap: Option<f64>,
}

impl AttentionSpec {
    /// Every query sees every key.
    pub fn new(scale: f64) -> AttentionSpec {
        AttentionSpec { scale, offset: Dim::from(0), left: None, right: None, softcap: None }
    }
    /// Query `i` sees keys up to position `i + offset`.
    pub fn causal(scale: f64, offset: Dim) -> AttentionSpec {
        AttentionSpec { offset, right: Some(0), ..AttentionSpec::new(scale) }
    }
}

/// A stage of the scores that [`Builder::attention_scores`] gives as a second result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scores {
    /// Products times the scale.
    Raw,
    /// After the soft cap.
    Capped,
    /// After masks.
    Masked,
    /// After softmax.
    Probabilities,
}

impl Builder<'_> {
    /// Scaled dot-product attention: `softmax(q kᵀ * scale + mask) v` for `q [b, h, s, d]`, `k [b, n, t, d]`, `v [b, n, t, e]` with
    /// `h` a multiple of `n` (groups of `h / n` query heads share a key head). The mask broadcasts to `[b, h, s, t]`: bool (true is
    /// seen) or a floating-point number that is added. Scores are `f32` (`f64` for `f64`); probabilities are rounded to the type of `v`
    /// before the last product; the result has the type of `q`, dims `[b, h, s, e]`. A row that sees nothing is zero.
    pub fn attention(
        &mut self,
        spec: &AttentionSpec,
        q: ValueId,
        k: ValueId,
        v: ValueId,
        mask: Option<ValueId>,
    ) -> One {
        Ok(self.attention_with(spec, q, k, v, mask, None)?[0])
    }
    /// [`Builder::attention`] with a stage of its scores `[b, h, s, t]`, in the type of `q`, as second result.
    pub fn attention_scores(
        &mut self,
        spec: &AttentionSpec,
        q: ValueId,
        k: ValueId,
        v: ValueId,
        mask: Option<ValueId>,
        stage: Scores,
    ) -> Result<(ValueId, ValueId), GraphError> {
        let out = self.attention_with(spec, q, k, v, mask, Some(stage))?;
        Ok((out[0], out[1]))
    }
    fn attention_with(
        &mut self,
        spec: &AttentionSpec,
        q: ValueId,
        k: ValueId,
        v: ValueId,
        mask: Option<ValueId>,
        stage: Option<Scores>,
    ) -> Result<Vec<ValueId>, GraphError> {
        let name = if stage.is_some() { "attention_scores" } else { "attention" };
        let d = self.float_only(name, q)?;
        if [q, k, v].iter().any(|&x| self.rank(x) != 4) {
            return Err(
                self.shape_error(name, "q, k and v have four dims: batch, heads, sequence, head size")
            );
        }
        let mut a = attributes(&[
            ("scale", attr(spec.scale)),
            ("mask", attr(mask.is_some())),
            ("offset", attr(spec.offset.clone())),
        ]);
        a.extend(spec.left.iter().map(|w| ("left".to_string(), attr(*w))));
        a.extend(spec.right.iter().map(|w| ("right".to_string(), attr(*w))));
        a.extend(spec.softcap.iter().map(|c| ("softcap".to_string(), attr(*c))));
        let operands: Vec<ValueId> = [Some(q), Some(k), Some(v), mask].into_iter().flatten().collect();
        self.composite(name, a, &operands, |b, x| {
            let acc = wide(d);
            let (qd, kd) = (b.dims(x[0]), b.dims(x[1]));
            let raw = b.scores(x[0], x[1], acc)?;
            let raw = b.scale_by(raw, spec.scale)?;
            let capped = match spec.softcap {
                Some(c) => {
                    let t = b.binary_const(Binary::Div, raw, c)?;
                    let t = b.unary(Unary::Tanh, t)?;
                    b.scale_by(t, c)?
                }
                None => raw,
            };
            let masked = match x.get(3) {
                Some(&m) => b.mask_scores(capped, m)?,
                None => capped,
            };
            let masked = b.window_scores(masked, spec)?;
            let partial = mask.is_some() || spec.left.is_some() || spec.right.is_some();
            let p = if partial { b.masked_softmax(masked)? } else { b.softmax_of(masked, 3)? };
            let rounded = b.convert(p, b.dtype(x[2]))?;
            let (h, n) = (qd[1].clone(), kd[1].clone());
            let y = if h == n {
                b.contract(rounded, x[2], &[(0, 0), (1, 1)], &[(3, 2)], acc)?
            } else {
                let g = b.group_size(&h, &n)?;
                let p = b.reshape(rounded, &[qd[0].clone(), n, g, qd[2].clone(), kd[2].clone()])?;
                let y = b.contract(p, x[2], &[(0, 0), (1, 1)], &[(4, 2)], acc)?;
                let e = b.dims(y)[4].clone();
                b.reshape(y, &[qd[0].clone(), h, qd[2].clone(), e])?
            };
            let mut out = vec![b.convert(y, d)?];
            if let Some(stage) = stage {
                let s = match stage {
                    Scores::Raw => raw,
                    Scores::Capped => capped,
                    Scores::Masked => masked,
                    Scores::Probabilities => p,
                };
                out.push(b.convert(s, d)?);
            }
            Ok(out)
        })
    }
    /// Softmax of the last of four dims in which a row of `-inf` becomes zeros.
    fn masked_softmax(&mut self, s: ValueId) -> One {
        let m = self.reduce(Combiner::Max, s, &[3])?;
        let none = self.compare_const(Compare::Eq, m, f64::NEG_INFINITY)?;
        let zero = self.full_like(m, 0.0)?;
        let m = self.select(none, zero, m)?;
        let m = self.spread(m, s, &[3])?;
        let d = self.sub(s, m)?;
        let e = self.exp(d)?;
        let t = self.sum(e, &[3])?;
        let one = self.full_like(t, 1.0)?;
        let t = self.select(none, one, t)?;
        let t = self.spread(t, s, &[3])?;
        self.div(e, t)
    }
    fn group_size(&self, heads: &Dim, key_heads: &Dim) -> Result<Dim, GraphError> {
        match (heads.as_const(), key_heads.as_const()) {
            (Some(h), Some(n)) if n > 0 && h % n == 0 => Ok(Dim::from(h / n)),
            _ => Err(self.shape_error(
                "attention",
                format!(
                    "{} query heads are no multiple of {} key heads",
                    heads.display(self.symbols),
                    key_heads.display(self.symbols)
                ),
            )),
        }
    }
    /// Products of queries and keys: `[b, h, s, t]`.
    fn scores(&mut self, q: ValueId, k: ValueId, acc: DType) -> One {
        let (qd, kd) = (self.dims(q), self.dims(k));
        if qd[1] == kd[1] {
            return self.contract(q, k, &[(0, 0), (1, 1)], &[(3, 3)], acc);
        }
        let g = self.group_size(&qd[1], &kd[1])?;
        let q = self.reshape(q, &[qd[0].clone(), kd[1].clone(), g, qd[2].clone(), qd[3].clone()])?;
        let s = self.contract(q, k, &[(0, 0), (1, 1)], &[(4, 3)], acc)?;
        self.reshape(s, &[qd[0].clone(), qd[1].clone(), qd[2].clone(), kd[2].clone()])
    }
    fn mask_scores(&mut self, s: ValueId, mask: ValueId) -> One {
        if self.dtype(mask).is_bool() {
            let out = self.full_like(s, f64::NEG_INFINITY)?;
            return self.select(mask, s, out);
        }
        let m = self.convert(mask, self.dtype(s))?;
        self.add2(s, m)
    }
    fn window_scores(&mut self, s: ValueId, spec: &AttentionSpec) -> One {
        if spec.left.is_none() && spec.right.is_none() {
            return Ok(s);
        }
        let dims = self.dims(s);
        let plane = [dims[2].clone(), dims[3].clone()];
        let i = self.iota(DType::I64, &plane, 0)?;
        let o = self.dim_as(&spec.offset, DType::I64)?;
        let at = self.add2(i, o)?;
        let j = self.iota(DType::I64, &plane, 1)?;
        let mut seen = None;
        if let Some(right) = spec.right {
            let last = self.add_const(at, right as f64)?;
            seen = Some(self.compare(Compare::Le, j, last)?);
        }
        if let Some(left) = spec.left {
            let first = self.add_const(at, -(left as f64))?;
            let p = self.compare(Compare::Ge, j, first)?;
            seen = Some(match seen {
                Some(q) => self.binary(Binary::And, p, q)?,
                None => p,
            });
        }
        match seen {
            Some(p) => self.mask_scores(s, p),
            None => Ok(s),
        }
    }

    /// Rotary position embedding of the first `2 n` elements of the last dim, for `cos` and `sin` whose last dim is `n` and that broadcast
    /// to the other dims of `x`. Element pairs are `(i, i + n)`, or `(2 i, 2 i + 1)` when interleaved;
    /// `(a, b)` becomes `(a cos - b sin, a sin + b cos)`.
    pub fn rotary_embedding(&mut self, x: ValueId, cos: ValueId, sin: ValueId, interleaved: bool) -> One {
        let name = "rotary_embedding";
        let (Some(last), Some(n)) = (self.dims(x).last().cloned(), self.dims(cos).last().cloned()) else {
            return Err(self.shape_error(name, "scalars have no elements to rotate"));
        };
        self.widened(name, attributes(&[("interleaved", attr(interleaved))]), &[x, cos, sin], |b, x| {
            let axis = b.rank(x[0]) - 1;
            let turned = &n * &Dim::from(2);
            let head = b.slice_axis(x[0], axis, Dim::from(0), turned.clone())?;
            let mut pairs = b.dims(head);
            let (p, q) = if interleaved {
                let half = b.dims(head)[..axis].iter().cloned().chain([n.clone()]).collect::<Vec<_>>();
                pairs[axis] = n.clone();
                pairs.push(Dim::from(2));
                let v = b.reshape(head, &pairs)?;
                let p = b.slice_axis(v, axis + 1, Dim::from(0), Dim::from(1))?;
                let q = b.slice_axis(v, axis + 1, Dim::from(1), Dim::from(1))?;
                (b.reshape(p, &half)?, b.reshape(q, &half)?)
            } else {
                (
                    b.slice_axis(head, axis, Dim::from(0), n.clone())?,
                    b.slice_axis(head, axis, n.clone(), n.clone())?,
                )
            };
            let (pc, qs) = (b.mul(p, x[1])?, b.mul(q, x[2])?);
            let (ps, qc) = (b.mul(p, x[2])?, b.mul(q, x[1])?);
            let real = b.sub(pc, qs)?;
            let imaginary = b.add2(ps, qc)?;
            let y = if interleaved {
                let real = b.unsqueeze(real, axis + 1)?;
                let imaginary = b.unsqueeze(imaginary, axis + 1)?;
                let y = b.concat(&[real, imaginary], axis + 1)?;
                let dims = b.dims(head);
                b.reshape(y, &dims)?
            } else {
                b.concat(&[real, imaginary], axis)?
            };
            if turned == last {
                return Ok(y);
            }
            let rest = b.slice_axis(x[0], axis, turned.clone(), &last - &turned)?;
            b.concat(&[y, rest], axis)
        })
    }
}
