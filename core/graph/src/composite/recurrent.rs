//! Recurrent layers over a `while`.

use tongtu_tensor::dim::Dim;
use tongtu_tensor::scalar::{Binary, Compare, Unary};
use tongtu_tensor::{Combiner, DType};

use crate::build::{Builder, One};
use crate::composite::{attr, attributes, wide};
use crate::error::GraphError;
use crate::graph::{Type, ValueId};
use crate::op::Op;

/// Activation of a gate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
    /// Hyperbolic tangent.
    Tanh,
    /// `max(x, 0)`.
    Relu,
    /// `x / (1 + |x|)`.
    Softsign,
    /// `log(1 + exp(x))`.
    Softplus,
    /// `alpha * x + beta`.
    Affine(f64, f64),
    /// `x` at or above zero, else `alpha * x`.
    LeakyRelu(f64),
    /// `x` above `alpha`, else 0.
    ThresholdedRelu(f64),
    /// `alpha * tanh(beta * x)`.
    ScaledTanh(f64, f64),
    /// `max(0, min(1, alpha * x + beta))`.
    HardSigmoid(f64, f64),
    /// `x` above zero, else `alpha * (exp(x) - 1)`.
    Elu(f64),
}

/// Order in which a recurrent layer reads its sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the first element.
    Forward,
    /// From the last element of each sequence; the output at a position belongs to the input at that position.
    Reverse,
}

/// Parameters of one direction of a recurrent layer.
#[derive(Clone, Debug)]
pub struct RecurrentSpec {
    /// Order of reading.
    pub direction: Direction,
    /// Activations `f`, `g`, `h` as far as the layer has them.
    pub activations: Vec<Activation>,
    /// Inputs of activations are cut to `[-clip, clip]`.
    pub clip: Option<f64>,
    /// LSTM: the forget gate is `1 - input gate`.
    pub input_forget: bool,
    /// GRU: the reset gate applies after the recurrent product.
    pub linear_before_reset: bool,
}

impl RecurrentSpec {
    /// With the given activations, nothing else set.
    pub fn new(direction: Direction, activations: &[Activation]) -> RecurrentSpec {
        RecurrentSpec {
            direction,
            activations: activations.to_vec(),
            clip: None,
            input_forget: false,
            linear_before_reset: false,
        }
    }
}

/// Operands of one direction of a recurrent layer. `g` is its number of gates.
#[derive(Clone, Copy, Debug)]
pub struct RecurrentInputs {
    /// Sequence `[s, b, i]`.
    pub x: ValueId,
    /// Weights of the input `[g * h, i]`.
    pub w: ValueId,
    /// Weights of the state `[g * h, h]`.
    pub r: ValueId,
    /// Biases `[2 * g * h]`: of the input product, then of the state product.
    pub bias: Option<ValueId>,
    /// Length of each sequence of the batch, integer `[b]`; outputs past it are zero.
    pub lengths: Option<ValueId>,
    /// First hidden state `[b, h]`; zeros where missing.
    pub hidden: Option<ValueId>,
}

impl Builder<'_> {
    fn activate(&mut self, a: Activation, x: ValueId) -> One {
        match a {
            Activation::Sigmoid => self.sigmoid_of(x),
            Activation::Tanh => self.unary(Unary::Tanh, x),
            Activation::Relu => self.binary_const(Binary::Max, x, 0.0),
            Activation::Softsign => self.softsign(x),
            Activation::Softplus => self.softplus(x),
            Activation::Affine(alpha, beta) => {
                let y = self.scale_by(x, alpha)?;
                self.add_const(y, beta)
            }
            Activation::LeakyRelu(alpha) => self.leaky_relu(x, alpha),
            Activation::ThresholdedRelu(alpha) => self.thresholded_relu(x, alpha),
            Activation::ScaledTanh(alpha, beta) => {
                let y = self.scale_by(x, beta)?;
                let y = self.unary(Unary::Tanh, y)?;
                self.scale_by(y, alpha)
            }
            Activation::HardSigmoid(alpha, beta) => self.hard_sigmoid(x, alpha, beta),
            Activation::Elu(alpha) => self.elu(x, alpha),
        }
    }
    fn cut(&mut self, x: ValueId, clip: Option<f64>) -> One {
        match clip {
            Some(c) => {
                let x = self.binary_const(Binary::Min, x, c)?;
                self.binary_const(Binary::Max, x, -c)
            }
            None => Ok(x),
        }
    }
    /// `activation(cut(x))`.
    fn gate(&mut self, spec: &RecurrentSpec, activation: usize, x: ValueId) -> One {
        let Some(&a) = spec.activations.get(activation) else {
            return Err(self.shape_error("recurrent layer", format!("activation {activation} is missing")));
        };
        let x = self.cut(x, spec.clip)?;
        self.activate(a, x)
    }
    /// Part `i` of `h` columns of the last dim.
    fn gate_part(&mut self, x: ValueId, i: i64, h: &Dim) -> One {
        let axis = self.rank(x).saturating_sub(1);
        self.slice_axis(x, axis, h * i, h.clone())
    }
    /// `x [b, n] · w [m, n]ᵀ`.
    fn project(&mut self, x: ValueId, w: ValueId) -> One {
        let acc = self.dtype(x);
        self.contract(x, w, &[], &[(1, 1)], acc)
    }

    /// One direction of an LSTM: outputs `[s, b, h]`, last hidden state and last cell `[b, h]`. Gates in the order input, output, forget,
    /// cell; peephole weights `[3 h]` in the order input, output, forget. With `f`, `g`, `h` the activations:
    /// `i = f(x Wi + h Ri + Pi c)`, `f = f(x Wf + h Rf + Pf c)`, `c' = f c + i g(x Wc + h Rc)`, `o = f(x Wo + h Ro + Po c')`, `h' = o h(c')`.
    pub fn lstm(
        &mut self,
        x: RecurrentInputs,
        cell: Option<ValueId>,
        peephole: Option<ValueId>,
        spec: &RecurrentSpec,
    ) -> Result<[ValueId; 3], GraphError> {
        let out =
            self.recurrence("lstm", x, &[cell], peephole, 4, spec, |b, xw, state, r, _, peephole, hd| {
                let (h, c) = (state[0], state[1]);
                let hr = b.project(h, r)?;
                let z = b.add2(xw, hr)?;
                let peep = |b: &mut Builder<'_>, v: ValueId, k: i64, c: ValueId| match peephole {
                    Some(p) => {
                        let p = b.gate_part(p, k, hd)?;
                        let p = b.mul(c, p)?;
                        b.add2(v, p)
                    }
                    None => Ok(v),
                };
                let zi = b.gate_part(z, 0, hd)?;
                let zi = peep(b, zi, 0, c)?;
                let i = b.gate(spec, 0, zi)?;
                let f = if spec.input_forget {
                    let one = b.full_like(i, 1.0)?;
                    b.sub(one, i)?
                } else {
                    let zf = b.gate_part(z, 2, hd)?;
                    let zf = peep(b, zf, 2, c)?;
                    b.gate(spec, 0, zf)?
                };
                let zc = b.gate_part(z, 3, hd)?;
                let g = b.gate(spec, 1, zc)?;
                let keep = b.mul(f, c)?;
                let new = b.mul(i, g)?;
                let c = b.add2(keep, new)?;
                let zo = b.gate_part(z, 1, hd)?;
                let zo = peep(b, zo, 1, c)?;
                let o = b.gate(spec, 0, zo)?;
                let a = b.gate(spec, 2, c)?;
                Ok(vec![b.mul(o, a)?, c])
            })?;
        Ok([out[0], out[1], out[2]])
    }
    /// One direction of a GRU: outputs `[s, b, h]` and last hidden state `[b, h]`. Gates in the order update, reset, hidden:
    /// `z = f(x Wz + h Rz)`, `r = f(x Wr + h Rr)`, `n = g(x Wn + (r h) Rn)` (or `g(x Wn + r (h Rn + bias))`), `h' = (1 - z) n + z h`.
    pub fn gru(&mut self, x: RecurrentInputs, spec: &RecurrentSpec) -> Result<[ValueId; 2], GraphError> {
        let out = self.recurrence("gru", x, &[], None, 3, spec, |b, xw, state, r, rb, _, hd| {
            let h = state[0];
            let two = hd * 2;
            let rzr = b.slice_axis(r, 0, Dim::from(0), two.clone())?;
            let rn = b.slice_axis(r, 0, two.clone(), hd.clone())?;
            let zr = b.slice_axis(xw, 1, Dim::from(0), two.clone())?;
            let hr = b.project(h, rzr)?;
            let mut zr = b.add2(zr, hr)?;
            if let Some(rb) = rb {
                let v = b.slice_axis(rb, 0, Dim::from(0), two.clone())?;
                zr = b.add2(zr, v)?;
            }
            let z = b.gate_part(zr, 0, hd)?;
            let z = b.gate(spec, 0, z)?;
            let reset = b.gate_part(zr, 1, hd)?;
            let reset = b.gate(spec, 0, reset)?;
            let rbn = match rb {
                Some(rb) => Some(b.slice_axis(rb, 0, two, hd.clone())?),
                None => None,
            };
            let inner = if spec.linear_before_reset {
                let mut p = b.project(h, rn)?;
                if let Some(v) = rbn {
                    p = b.add2(p, v)?;
                }
                b.mul(reset, p)?
            } else {
                let rh = b.mul(reset, h)?;
                let mut p = b.project(rh, rn)?;
                if let Some(v) = rbn {
                    p = b.add2(p, v)?;
                }
                p
            };
            let xn = b.gate_part(xw, 2, hd)?;
            let n = b.add2(xn, inner)?;
            let n = b.gate(spec, 1, n)?;
            let one = b.full_like(z, 1.0)?;
            let take = b.sub(one, z)?;
            let new = b.mul(take, n)?;
            let old = b.mul(z, h)?;
            Ok(vec![b.add2(new, old)?])
        })?;
        Ok([out[0], out[1]])
    }
    /// One direction of a plain recurrent layer `h' = f(x W + h R)`: outputs `[s, b, h]` and last hidden state `[b, h]`.
    pub fn rnn(&mut self, x: RecurrentInputs, spec: &RecurrentSpec) -> Result<[ValueId; 2], GraphError> {
        let out = self.recurrence("rnn", x, &[], None, 1, spec, |b, xw, state, r, _, _, _| {
            let hr = b.project(state[0], r)?;
            let z = b.add2(xw, hr)?;
            Ok(vec![b.gate(spec, 0, z)?])
        })?;
        Ok([out[0], out[1]])
    }

    /// The loop that the layers share. `step` gets the input product at one position (biases of the state product added, except
    /// for a GRU, which gets them apart), the states, the state weights, those biases, the peephole weights and the hidden size, and gives the next states.
    #[allow(clippy::too_many_arguments)]
    fn recurrence(
        &mut self,
        name: &str,
        io: RecurrentInputs,
        more_states: &[Option<ValueId>],
        peephole: Option<ValueId>,
        gates: i64,
        spec: &RecurrentSpec,
        step: impl FnOnce(
            &mut Builder<'_>,
            ValueId,
            &[ValueId],
            ValueId,
            Option<ValueId>,
            Option<ValueId>,
            &Dim,
        ) -> Result<Vec<ValueId>, GraphError>,
    ) -> Result<Vec<ValueId>, GraphError> {
        let d = self.float_only(name, io.x)?;
        if self.rank(io.x) != 3 || self.rank(io.w) != 2 || self.rank(io.r) != 2 {
            return Err(self.shape_error(name, "wanted x [s, b, i], w [g h, i] and r [g h, h]"));
        }
        let optional =
            [io.bias, io.lengths, io.hidden].into_iter().chain(more_states.iter().copied()).chain([peephole]);
        let optional: Vec<Option<ValueId>> = optional.collect();
        let operands: Vec<ValueId> =
            [io.x, io.w, io.r].into_iter().chain(optional.iter().filter_map(|v| *v)).collect();
        let a = attributes(&[
            ("reverse", attr(spec.direction == Direction::Reverse)),
            ("given", attr(optional.iter().map(Option::is_some).collect::<Vec<_>>())),
        ]);
        self.composite(name, a, &operands, |b, v| {
            let v = b.widen_all(v, wide(d))?;
            let (x, w, r) = (v[0], v[1], v[2]);
            let mut rest = v[3..].iter().copied();
            let given: Vec<Option<ValueId>> =
                optional.iter().map(|o| if o.is_some() { rest.next() } else { None }).collect();
            let (bias, lengths) = (given[0], given[1]);
            let peephole = given[given.len() - 1];
            let dtype = b.dtype(x);
            let (xd, hd) = (b.dims(x), b.dims(r)[1].clone());
            let (s, batch) = (xd[0].clone(), xd[1].clone());
            let all = &hd * gates;

            // Input products of every position at once.
            let mut xw = b.contract(x, w, &[], &[(2, 1)], dtype)?;
            let mut state_bias = None;
            if let Some(bias) = bias {
                let wb = b.slice_axis(bias, 0, Dim::from(0), all.clone())?;
                let rb = b.slice_axis(bias, 0, all.clone(), all.clone())?;
                xw = b.add2(xw, wb)?;
                if name == "gru" {
                    state_bias = Some(rb);
                } else {
                    xw = b.add2(xw, rb)?;
                }
            }
            let state_dims = [batch.clone(), hd.clone()];
            let mut carried =
                vec![b.int(DType::I64, 0)?, b.full(dtype, 0.0, &[s.clone(), batch.clone(), hd.clone()])?];
            for state in &given[2..given.len() - 1] {
                let state = match state {
                    Some(v) => *v,
                    None => b.full(dtype, 0.0, &state_dims)?,
                };
                carried.push(state);
            }
            let lengths = match lengths {
                Some(l) => Some(b.convert(l, DType::I64)?),
                None => None,
            };
            let captured: Vec<ValueId> =
                [Some(xw), Some(r), lengths, state_bias, peephole].into_iter().flatten().collect();
            let n = carried.len();
            let types: Vec<Type> = carried.iter().chain(&captured).map(|&v| b.graph.ty(v).clone()).collect();
            let body = b.region(name, &types, |b, p| {
                let (t, y) = (p[0], p[1]);
                let states = &p[2..n];
                let (xw, r) = (p[n], p[n + 1]);
                let mut extra = p[n + 2..].iter().copied();
                let lengths = lengths.and_then(|_| extra.next());
                let state_bias = state_bias.and_then(|_| extra.next());
                let peephole = peephole.and_then(|_| extra.next());
                let reverse = spec.direction == Direction::Reverse;
                let end = b.dim_as(&s, DType::I64)?;
                // The position that each sequence of the batch reads at this turn.
                let at = match (lengths, reverse) {
                    (Some(l), true) => {
                        let p = b.sub(l, t)?;
                        b.add_const(p, -1.0)?
                    }
                    (None, true) => {
                        let p = b.sub(end, t)?;
                        b.add_const(p, -1.0)?
                    }
                    (Some(_), false) => b.broadcast_to(t, std::slice::from_ref(&batch))?,
                    (None, false) => t,
                };
                let mut active = None;
                let now = match lengths {
                    Some(l) => {
                        let p = b.compare(Compare::Lt, t, l)?;
                        active = Some(p);
                        let rows = b.batch_rows(at, &batch)?;
                        b.gather_nd(xw, rows, 0)?
                    }
                    None => b.take(xw, at, 0)?,
                };
                let mut next = step(b, now, states, r, state_bias, peephole, &hd)?;
                if let Some(p) = active {
                    let p = b.broadcast(p, &state_dims, &[0])?;
                    for (new, old) in next.iter_mut().zip(states) {
                        *new = b.select(p, *new, *old)?;
                    }
                }
                let y = match active {
                    Some(p) => {
                        let nowhere = b.full_like(at, -1.0)?;
                        let at = b.select(p, at, nowhere)?;
                        let rows = b.batch_rows(at, &batch)?;
                        b.scatter_nd(Combiner::Replace, y, rows, next[0])?
                    }
                    None => {
                        let row = b.reshape(at, &[Dim::from(1)])?;
                        b.scatter_nd(Combiner::Replace, y, row, next[0])?
                    }
                };
                let t = b.add_const(t, 1.0)?;
                let more = b.compare(Compare::Lt, t, end)?;
                Ok([more, t, y].into_iter().chain(next).collect())
            })?;
            let end = b.dim_as(&s, DType::I64)?;
            let more = b.compare_const(Compare::Gt, end, 0.0)?;
            let operands: Vec<ValueId> =
                [more].into_iter().chain(carried.iter().copied()).chain(captured).collect();
            let results = types[..n].to_vec();
            let out = b.add(Op::While { body, results }, &operands)?;
            out[1..].iter().map(|&v| b.convert(v, d)).collect()
        })
    }
    /// Rows `(at[b], b)` for each `b`: `i64 [batch, 2]`.
    fn batch_rows(&mut self, at: ValueId, batch: &Dim) -> One {
        let i = self.iota(DType::I64, std::slice::from_ref(batch), 0)?;
        let i = self.unsqueeze(i, 1)?;
        let at = self.unsqueeze(at, 1)?;
        self.concat(&[at, i], 1)
    }
}
