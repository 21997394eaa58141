//! Products of dequantised bytes as products of the bytes.
//!
//! `Σ (x - z) s · (w - v) t` is `s t Σ (x - z)(w - v)`: the sum of integers is exact, and is rounded once.

use tongtu_graph::op::AttrValue;
use tongtu_graph::{Builder, ConvRole, Graph, GraphError, Module, Node, Op, ValueId};
use tongtu_tensor::dim::Dim;
use tongtu_tensor::scalar::{Binary, Compare, Unary};
use tongtu_tensor::{DType, Num, Overflow};

use super::rewrite::{Rewriter, Rewritten};

/// Most products of two differences of bytes whose sum fits 32 bits.
const MOST: i64 = 1 << 15;
/// Most reshapes and permutations between dequantising and a product.
const MOVES: usize = 4;

/// Contractions and convolutions in `f32` of two dequantised operands, of which the right one is constant, as such of 32-bit integers
/// whose sums are scaled.
pub(super) fn integers(mut module: Module) -> Result<Module, GraphError> {
    let old = module.graph;
    let mut g = Graph {
        name: old.name.clone(),
        values: old.values.clone(),
        inputs: old.inputs.clone(),
        outputs: Vec::new(),
        nodes: Vec::with_capacity(old.nodes.len()),
        state: old.state.clone(),
    };
    let defs = old.definitions();
    let mut renamed: Vec<Option<ValueId>> = vec![None; old.values.len()];
    for node in &old.nodes {
        let inputs: Vec<ValueId> = node.inputs.iter().map(|v| renamed[v.index()].unwrap_or(*v)).collect();
        let Some((x, w)) = product(&old, &defs, node) else {
            g.nodes.push(Node { inputs, ..node.clone() });
            continue;
        };
        let mut b = Builder::new(&mut g, &mut module.symbols);
        b.loc = node.loc.clone();
        let new = |v: ValueId| renamed[v.index()].unwrap_or(v);
        let operands = [x.difference(&mut b, new)?, w.difference(&mut b, new)?];
        let mut op = node.op.clone();
        let (Op::Contract { acc, .. } | Op::Conv { acc, .. }) = &mut op else { continue };
        *acc = DType::I32;
        let sum = b.one(op, &operands)?;
        let sum = b.convert(sum, DType::F32)?;
        let one = b.reshape(new(x.scale), &[])?;
        let scale = match w.axis {
            None => {
                let other = b.reshape(new(w.scale), &[])?;
                b.mul(one, other)?
            }
            Some(_) => b.mul(one, new(w.scale))?,
        };
        let dims = b.dims(sum);
        let axes: Vec<usize> = w.axis.and_then(|a| result_axis(&old, node, a)).into_iter().collect();
        let scale = b.broadcast(scale, &dims, &axes)?;
        renamed[node.outputs[0].index()] = Some(b.one(Op::Binary(Binary::Mul), &[sum, scale])?);
    }
    g.outputs = old.outputs.iter().map(|v| renamed[v.index()].unwrap_or(*v)).collect();
    Ok(Module { graph: g, symbols: module.symbols })
}

/// A dequantised operand.
struct Source {
    /// The bytes, and what moves them from there to the operand.
    bytes: ValueId,
    moves: Vec<Op>,
    zero: Option<Zero>,
    scale: ValueId,
    /// The operand's dim that the scale lies along.
    axis: Option<usize>,
}

enum Zero {
    /// One number, computed.
    Of(ValueId),
    /// One number, known.
    Known(i128),
}

impl Source {
    /// The bytes less their zero point, as 32-bit integers.
    fn difference(
        &self,
        b: &mut Builder<'_>,
        new: impl Fn(ValueId) -> ValueId,
    ) -> Result<ValueId, GraphError> {
        let mut x = new(self.bytes);
        for op in self.moves.iter().rev() {
            x = b.one(op.clone(), &[x])?;
        }
        let x = b.convert(x, DType::I32)?;
        let z = match self.zero {
            None | Some(Zero::Known(0)) => return Ok(x),
            Some(Zero::Known(z)) => b.scalar(DType::I32, Num::Int(z))?,
            Some(Zero::Of(z)) => {
                let z = b.reshape(new(z), &[])?;
                b.convert(z, DType::I32)?
            }
        };
        b.sub(x, z)
    }
}

/// The operands of an `f32` product of dequantised bytes.
fn product(g: &Graph, defs: &[Option<usize>], node: &Node) -> Option<(Source, Source)> {
    let (&[x, y], k) = (&node.inputs[..], summed(g, node)?) else { return None };
    if k > MOST {
        return None;
    }
    let (x, mut w) = (source(g, defs, x)?, source(g, defs, y)?);
    // A constant whose differences from its zero point are bytes.
    constant(g, defs, w.bytes)?;
    if let Some(Zero::Of(z)) = w.zero {
        let mut all = constant(g, defs, z)?.iter().map(|n| n.to_i128());
        let first = all.next()?;
        let byte = match g.dtype(w.bytes) {
            DType::I8 => first == 0,
            _ => first == 0 || first == 128,
        };
        if !byte || all.any(|n| n != first) {
            return None;
        }
        w.zero = Some(Zero::Known(first));
    }
    let along = w.axis.is_none_or(|a| result_axis(g, node, a).is_some());
    (x.axis.is_none() && along).then_some((x, w))
}

/// Number of products that are summed.
fn summed(g: &Graph, node: &Node) -> Option<i64> {
    let dims = g.dims(*node.inputs.get(1)?);
    let all =
        |mut d: Box<dyn Iterator<Item = &Dim> + '_>| d.try_fold(1i64, |n, d| n.checked_mul(d.as_const()?));
    match &node.op {
        Op::Contract { over, acc: DType::F32, .. } => all(Box::new(over.iter().map(|p| &dims[p.1]))),
        Op::Conv { spec, acc: DType::F32 } => {
            let summed = spec.kernel.iter().zip(dims).filter(|(r, _)| **r != ConvRole::N);
            all(Box::new(summed.map(|p| p.1)))
        }
        _ => None,
    }
}

fn constant<'g>(g: &'g Graph, defs: &[Option<usize>], v: ValueId) -> Option<&'g tongtu_tensor::Tensor> {
    match &g.nodes[defs[v.index()]?].op {
        Op::Constant { value } if !value.is_absent() => Some(value),
        _ => None,
    }
}

/// What a value is dequantised from.
fn source(g: &Graph, defs: &[Option<usize>], mut v: ValueId) -> Option<Source> {
    let mut moves = Vec::new();
    loop {
        let node = &g.nodes[defs[v.index()]?];
        match &node.op {
            op @ (Op::Reshape { .. } | Op::Permute { .. }) if moves.len() < MOVES => {
                moves.push(op.clone());
                v = node.inputs[0];
            }
            Op::Composite { name, attributes, .. } if name == "dequantize" => {
                let attribute = |k: &str| attributes.iter().find(|(n, _)| n == k).map(|(_, v)| v);
                let (bytes, scale) = (node.inputs[0], node.inputs[1]);
                let d = g.dtype(bytes);
                let single = g.dims(scale).iter().all(|d| d.as_const() == Some(1));
                let mut axis = match attribute("axis") {
                    Some(AttrValue::Int(a)) if !single => Some(usize::try_from(*a).ok()?),
                    _ => None,
                };
                let fits = attribute("block").is_none()
                    && (single || axis.is_some())
                    && d.is_int()
                    && d.bits() == 8
                    && g.dtype(v) == DType::F32
                    && g.dtype(scale) == DType::F32;
                if !fits {
                    return None;
                }
                for op in moves.iter().rev() {
                    axis = match (axis, op) {
                        (None, _) => None,
                        (Some(a), Op::Permute { perm }) => Some(perm.iter().position(|&p| p == a)?),
                        _ => return None,
                    };
                }
                let zero = node.inputs.get(2).map(|&z| Zero::Of(z));
                if axis.is_none() && zero.is_some() && !g.dims(node.inputs[2]).iter().all(|d| *d == 1) {
                    return None;
                }
                return Some(Source { bytes, moves, zero, scale, axis });
            }
            _ => return None,
        }
    }
}

/// The result dim that is a dim of the right operand.
fn result_axis(g: &Graph, node: &Node, axis: usize) -> Option<usize> {
    match &node.op {
        Op::Contract { batch, over, .. } => {
            if let Some(b) = batch.iter().position(|p| p.1 == axis) {
                return Some(b);
            }
            let summed = |d: usize| over.iter().any(|p| p.1 == d) || batch.iter().any(|p| p.1 == d);
            let rank = [g.dims(node.inputs[0]).len(), g.dims(node.inputs[1]).len()];
            let before = rank[0] - over.len();
            (!summed(axis)).then(|| before + (0..axis).filter(|&d| !summed(d)).count())
        }
        Op::Conv { spec, .. } if spec.kernel.get(axis) == Some(&ConvRole::N) => {
            spec.output.iter().position(|r| *r == ConvRole::C)
        }
        _ => None,
    }
}

/// Quotients beyond this are no byte, whatever is added.
const FAR: f32 = 1048576.0;
/// Greatest whole number next to which quotients are compared: twice the range of bytes.
const STEPS: i32 = 512;

/// `x / s` that is rounded to whole numbers and cut to bytes, for a constant `s`: by its reciprocal, with the remainder's share added,
/// which takes a fifth of the time and gives the same whole numbers.
pub(super) fn rule(rw: &mut Rewriter<'_>, op: &Op, inputs: &[ValueId]) -> Rewritten {
    let (Op::Cast { to, mode }, &[v]) = (op, inputs) else { return Ok(None) };
    if !rw.options.integers || to.bits() != 8 || !to.is_int() || mode.overflow != Overflow::Saturate {
        return Ok(None);
    }
    let binary = |rw: &Rewriter<'_>, v: ValueId, op: Binary| match rw.node(v).map(|n| (&n.op, &n.inputs[..]))
    {
        Some((Op::Binary(b), &[x, y])) if *b == op => Some((x, y)),
        _ => None,
    };
    let near = |n: Num| n.to_f64().abs() <= 255.0;
    let sum = binary(rw, v, Binary::Add).filter(|&(_, z)| rw.splat(z).is_some_and(near));
    let round = sum.map_or(v, |s| s.0);
    let Some((Op::Unary(Unary::RoundEven), quotient)) = rw.def(round) else { return Ok(None) };
    let Some((x, s)) = binary(rw, quotient, Binary::Div) else { return Ok(None) };
    let Some(scale) = rw.splat(s).map(|n| n.to_f64() as f32).filter(|_| rw.dtype(x) == DType::F32) else {
        return Ok(None);
    };
    if !same_steps(scale) {
        return Ok(None);
    }
    let (near_one, minus) = (Num::Float((1.0 / scale).into()), Num::Float((-scale).into()));
    let (r, m) = (rw.full_like(x, near_one)?, rw.full_like(x, minus)?);
    let q = rw.binary(Binary::Mul, x, r)?;
    let rest = rw.one(Op::Fma {}, &[q, m, x])?;
    let exact = rw.one(Op::Fma {}, &[rest, r, q])?;
    let size = rw.unary(Unary::Abs, q)?;
    let far = rw.full_like(x, Num::Float(FAR.into()))?;
    let inside = rw.one(Op::Compare(Compare::Lt), &[size, far])?;
    let q = rw.one(Op::Select {}, &[inside, exact, q])?;
    let mut y = rw.unary(Unary::RoundEven, q)?;
    if let Some((_, z)) = sum {
        y = rw.binary(Binary::Add, y, z)?;
    }
    Ok(Some(rw.emit(op.clone(), &[y])?))
}

/// Whether the corrected product with the reciprocal of `s` rounds as the quotient does, next to every place where that
/// changes; elsewhere both are far from any.
fn same_steps(s: f32) -> bool {
    if !(1e-15..=1e15).contains(&s) {
        return false;
    }
    let r = 1.0 / s;
    (0..STEPS).all(|k| {
        let edge = (k as f32 + 0.5) * s;
        (-2..=2).all(|ulps: i32| {
            let x = f32::from_bits(edge.to_bits().wrapping_add_signed(ulps));
            let q = x * r;
            let exact = (-s).mul_add(q, x).mul_add(r, q);
            exact.round_ties_even() == (x / s).round_ties_even()
        })
    })
}
