//! Products of dequantised numbers: of bytes as products of the bytes, of 4 bits in a layout that kernels decode as they read it.
//!
//! `Σ (x - z) s · (w - v) t` is `s t Σ (x - z)(w - v)`: the sum of integers is exact, and is rounded once.

use tongtu_graph::op::AttrValue;
use tongtu_graph::{Builder, ConvRole, Graph, GraphError, Module, Node, Op, ValueId};
use tongtu_tensor::dim::Dim;
use tongtu_tensor::scalar::{Binary, Unary};
use tongtu_tensor::{DType, Num, Overflow, Tensor};

use super::rewrite::{Rewriter, Rewritten};

/// Most products of two differences of bytes whose sum fits 32 bits.
const MOST: i64 = 1 << 15;
/// Most reshapes and permutations between dequantising and a product.
const MOVES: usize = 4;

/// What a value of the old graph is in the new one.
pub(super) type Renamed<'a> = dyn Fn(ValueId) -> ValueId + 'a;

/// Rebuilds a graph node by node: `rule` gives what takes the place of a node's only result, or nothing.
pub(super) fn rebuild(
    mut module: Module,
    rule: impl Fn(
        &mut Builder<'_>,
        &Graph,
        &[Option<usize>],
        &Node,
        &Renamed<'_>,
    ) -> Result<Option<ValueId>, GraphError>,
) -> Result<Module, GraphError> {
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
        let new = |v: ValueId| renamed[v.index()].unwrap_or(v);
        let mut b = Builder::new(&mut g, &mut module.symbols);
        b.loc = node.loc.clone();
        match rule(&mut b, &old, &defs, node, &new)? {
            Some(result) => renamed[node.outputs[0].index()] = Some(result),
            None => {
                let inputs = node.inputs.iter().map(|&v| new(v)).collect();
                g.nodes.push(Node { inputs, ..node.clone() });
            }
        }
    }
    g.outputs = old.outputs.iter().map(|v| renamed[v.index()].unwrap_or(*v)).collect();
    Ok(Module { graph: g, symbols: module.symbols })
}

/// Contractions and convolutions in `f32` of two dequantised operands, of which the right one is constant, as such of 32-bit integers
/// whose sums are scaled.
pub(super) fn integers(module: Module) -> Result<Module, GraphError> {
    rebuild(module, |b, old, defs, node, new| {
        let Some((x, w)) = product(old, defs, node) else { return Ok(None) };
        let mut op = node.op.clone();
        let (Op::Contract { acc, .. } | Op::Conv { acc, .. }) = &mut op else { return Ok(None) };
        *acc = DType::I32;
        let operands = [x.difference(b, new)?, w.difference(b, new)?];
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
        let axes: Vec<usize> = w.axis.and_then(|a| result_axis(old, node, a)).into_iter().collect();
        let scale = b.broadcast(scale, &dims, &axes)?;
        Ok(Some(b.one(Op::Binary(Binary::Mul), &[sum, scale])?))
    })
}

/// Numbers that share a scale, and columns that lie side by side, where 4-bit numbers are laid out for kernels.
pub(super) const RUN: usize = 32;
pub(super) const PANEL: usize = 64;
/// Most rows of the left operand for which that is done: more would decode the numbers again and again.
pub(super) const ROWS: i64 = 8;

/// Contractions in `f32` of few rows with constant 4-bit numbers in runs of [`RUN`] that share a scale, as such with numbers laid out in
/// panels of [`PANEL`] columns, which kernels decode as they read them: a byte holds the numbers of one column at the same place of two
/// runs that follow each other.
pub(super) fn four_bit_panels(module: Module) -> Result<Module, GraphError> {
    rebuild(module, |b, old, defs, node, new| {
        let (Op::Contract { batch, over, acc: DType::F32 }, &[x, y]) = (&node.op, &node.inputs[..]) else {
            return Ok(None);
        };
        let mut dims = old.dims(x).to_vec();
        let last = dims.len().saturating_sub(1);
        let rows = dims.iter().take(last).try_fold(1i64, |n, d| n.checked_mul(d.as_const()?));
        let few = rows.is_some_and(|n| n <= ROWS) && old.dtype(x) == DType::F32;
        let Some(w) = in_runs(old, defs, y).filter(|_| few && batch.is_empty() && over[..] == [(last, 1)])
        else {
            return Ok(None);
        };
        let [columns, k] = w.numbers.shape()[..] else { return Ok(None) };
        if !k.is_multiple_of(2 * RUN) || !columns.is_multiple_of(PANEL) {
            return Ok(None);
        }
        let (panels, pairs) = (columns / PANEL, k / (2 * RUN));
        let numbers = w.nibbles();
        let mut bytes = Vec::with_capacity(numbers.len() / 2);
        for panel in 0..panels {
            for step in 0..pairs * RUN {
                let at = step / RUN * 2 * RUN + step % RUN;
                let rows = panel * PANEL..(panel + 1) * PANEL;
                bytes.extend(rows.map(|row| numbers[row * k + at] | numbers[row * k + at + RUN] << 4));
            }
        }
        let Ok(bytes) = Tensor::from_slice(&[panels, pairs, RUN, PANEL], &bytes) else { return Ok(None) };
        let dim = |d: usize| Dim::from(d as i64);
        let all = [dim(panels), dim(pairs), dim(2), dim(RUN), dim(PANEL)];
        let made = b.constant(bytes)?;
        let made = b.broadcast(made, &all, &[0, 1, 3, 4])?;
        let half = b.iota(DType::U8, &[dim(2)], 0)?;
        let four = b.int(DType::U8, 4)?;
        let shift = b.mul(half, four)?;
        let shift = b.broadcast(shift, &all, &[2])?;
        let made = b.binary(Binary::Shr, made, shift)?;
        let low = b.int(DType::U8, 15)?;
        let made = b.binary(Binary::And, made, low)?;
        let mut made = b.convert(made, DType::F32)?;
        let each = |b: &mut Builder<'_>, v: ValueId| -> Result<ValueId, GraphError> {
            let v = b.reshape(v, &[dim(panels), dim(PANEL), dim(pairs), dim(2)])?;
            let v = b.permute(v, &[0, 2, 3, 1])?;
            b.broadcast(v, &all, &[0, 1, 2, 4])
        };
        if let Some(zeros) = w.zeros {
            let first = zeros.iter().next().filter(|&z| zeros.iter().all(|n| n == z));
            let z = match first {
                Some(z) => b.float(DType::F32, z.to_f64())?,
                None => {
                    let z = b.constant(zeros.clone())?;
                    let z = b.convert(z, DType::F32)?;
                    each(b, z)?
                }
            };
            made = b.sub(made, z)?;
        }
        let scales = each(b, new(w.scales))?;
        let made = b.mul(made, scales)?;
        dims.truncate(last);
        let outer = dims.clone();
        dims.extend([dim(pairs), dim(2), dim(RUN)]);
        let x = b.reshape(new(x), &dims)?;
        let over = [(last, 1), (last + 1, 2), (last + 2, 3)];
        let y = b.contract(x, made, &[], &over, DType::F32)?;
        let dims = [outer, vec![dim(columns)]].concat();
        Ok(Some(b.reshape(y, &dims)?))
    })
}

/// A matrix of constant 4-bit numbers of which [`RUN`] in a row share a scale.
pub(super) struct Runs<'g> {
    pub numbers: &'g Tensor,
    pub zeros: Option<&'g Tensor>,
    pub scales: ValueId,
}

impl Runs<'_> {
    /// The numbers, each in a byte.
    pub fn nibbles(&self) -> Vec<u8> {
        let mut numbers: Vec<u8> = self.numbers.bytes().iter().flat_map(|b| [b & 15, b >> 4]).collect();
        numbers.truncate(self.numbers.len());
        numbers
    }
}

/// The runs that a value is dequantised from, in `f32`.
pub(super) fn in_runs<'g>(g: &'g Graph, defs: &[Option<usize>], v: ValueId) -> Option<Runs<'g>> {
    let node = &g.nodes[defs[v.index()]?];
    let Op::Composite { name, attributes, .. } = &node.op else { return None };
    let is = |key: &str, n: i64| {
        attributes.iter().any(|(k, v)| k == key && matches!(v, AttrValue::Int(i) if *i == n))
    };
    let scales = *node.inputs.get(1).filter(|_| name == "dequantize")?;
    let numbers = constant(g, defs, node.inputs[0])?;
    let zeros = match node.inputs.get(2) {
        Some(&z) => Some(constant(g, defs, z)?),
        None => None,
    };
    let fits = is("axis", 1)
        && is("block", RUN as i64)
        && numbers.dtype() == DType::U4
        && g.dtype(scales) == DType::F32
        && g.dtype(v) == DType::F32;
    fits.then_some(Runs { numbers, zeros, scales })
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

fn constant<'g>(g: &'g Graph, defs: &[Option<usize>], v: ValueId) -> Option<&'g Tensor> {
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

/// Greatest whole number next to which quotients are compared: twice the range of bytes.
const STEPS: i32 = 512;

/// `x / s` that is rounded to whole numbers and cut to bytes, for a constant `s`: by its reciprocal in two parts, which
/// takes a fifth of the time and gives the same whole numbers.
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
    let sum = binary(rw, v, Binary::Add).and_then(|(x, z)| Some((x, z, rw.splat(z)?.to_f64())));
    if let Some((x, _, 0.0)) = sum {
        return Ok(Some(rw.emit(op.clone(), &[x])?));
    }
    let sum = sum.filter(|s| s.2.abs() <= 255.0);
    let round = sum.map_or(v, |s| s.0);
    let Some((Op::Unary(Unary::RoundEven), quotient)) = rw.def(round) else { return Ok(None) };
    let Some((x, s)) = binary(rw, quotient, Binary::Div) else { return Ok(None) };
    let Some(scale) = rw.splat(s).map(|n| n.to_f64() as f32).filter(|_| rw.dtype(x) == DType::F32) else {
        return Ok(None);
    };
    let Some((most, rest)) = reciprocal(scale) else { return Ok(None) };
    let constant = |n: f32| Num::Float(n.into());
    let (most, rest) = (rw.full_like(x, constant(most))?, rw.full_like(x, constant(rest))?);
    let small = rw.binary(Binary::Mul, x, rest)?;
    let q = rw.one(Op::Fma {}, &[x, most, small])?;
    let mut y = rw.unary(Unary::RoundEven, q)?;
    if let Some((_, z, _)) = sum {
        y = rw.binary(Binary::Add, y, z)?;
    }
    Ok(Some(rw.emit(op.clone(), &[y])?))
}

/// `1 / s` as a number of `f32` no greater and what is left, neither negative, so that products with them and their sum are infinite
/// where the quotient is, and never less for a greater number. Nothing where they round otherwise than the quotient next to some
/// place where that changes.
fn reciprocal(s: f32) -> Option<(f32, f32)> {
    if !(1e-15..=1e15).contains(&s) {
        return None;
    }
    let exact = 1.0 / f64::from(s);
    let near = exact as f32;
    let most = if f64::from(near) < exact { near } else { near.next_down() };
    let rest = (exact - f64::from(most)) as f32;
    let same = (0..STEPS).all(|k| {
        let edge = (k as f32 + 0.5) * s;
        (-2..=2).all(|ulps: i32| {
            let x = f32::from_bits(edge.to_bits().wrapping_add_signed(ulps));
            x.mul_add(most, x * rest).round_ties_even() == (x / s).round_ties_even()
        })
    });
    same.then_some((most, rest))
}
