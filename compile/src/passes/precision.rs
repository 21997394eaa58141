//! Products in a narrower type than the model asks for, where the user chose so.
//!
//! What only moves numbers, such as a permutation, comes after the rounding, so that the kernel which makes the numbers rounds them.

use std::collections::HashMap;

use tongtu_graph::{Builder, ConvRole, Graph, GraphError, Module, Node, Op, ValueId};
use tongtu_tensor::{CastMode, DType};

/// Least columns and steps of a product that is worth converting its operands.
const LEAST: i64 = 32;

/// Least input channels of a convolution that is worth it.
const CHANNELS: i64 = 16;

/// What f32 products are computed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// As the model says.
    #[default]
    F32,
    /// Operands rounded to bf16, sums in f32.
    Bf16,
}

/// Rounds the operands of contractions, and of convolutions with constants, to bf16. What the constants become is left to folding.
pub(super) fn narrow(mut module: Module) -> Result<Module, GraphError> {
    let old = module.graph;
    let defs = old.definitions();
    let mut g = Graph {
        name: old.name.clone(),
        values: old.values.clone(),
        inputs: old.inputs.clone(),
        outputs: old.outputs.clone(),
        nodes: Vec::with_capacity(old.nodes.len()),
        state: old.state.clone(),
    };
    let mut rounded: HashMap<ValueId, ValueId> = HashMap::new();
    for node in &old.nodes {
        let mut inputs = node.inputs.clone();
        if fits(&old, &defs, node) {
            for v in &mut inputs {
                if let Some(&known) = rounded.get(v) {
                    *v = known;
                    continue;
                }
                let mut b = Builder::new(&mut g, &mut module.symbols);
                b.loc = node.loc.clone();
                let (from, moves) = moved(&old, &defs, *v);
                let mut cast = match rounded.get(&from) {
                    Some(&known) => known,
                    None => b.cast(from, DType::BF16, CastMode::default())?,
                };
                rounded.insert(from, cast);
                for &n in moves.iter().rev() {
                    cast = b.one(old.nodes[n].op.clone(), &[cast])?;
                }
                rounded.insert(*v, cast);
                *v = cast;
            }
        }
        g.nodes.push(Node { inputs, ..node.clone() });
    }
    Ok(Module { graph: g, symbols: module.symbols })
}

/// What a value is moved from, and the moves, the last first.
fn moved(g: &Graph, defs: &[Option<usize>], v: ValueId) -> (ValueId, Vec<usize>) {
    let (mut at, mut moves) = (v, Vec::new());
    while let Some(n) = defs[at.index()]
        && matches!(g.nodes[n].op, Op::Reshape { .. } | Op::Permute { .. })
    {
        moves.push(n);
        at = g.nodes[n].inputs[0];
    }
    (at, moves)
}

/// Whether a node is an f32 product, summed over one dim, large enough as far as is known; a convolution's kernel is a constant, and a
/// right operand that is not lies in memory as a matrix unit can be given it.
fn fits(g: &Graph, defs: &[Option<usize>], node: &Node) -> bool {
    let &[x, y] = &node.inputs[..] else { return false };
    let constant = defs[y.index()].is_some_and(|n| matches!(g.nodes[n].op, Op::Constant { .. }));
    if let Op::Conv { spec, acc: DType::F32 } = &node.op {
        let at_least = |role: ConvRole, n: i64| {
            let dim = spec.kernel.iter().position(|r| *r == role).map(|p| &g.dims(y)[p]);
            dim.and_then(|d| d.as_const()).is_some_and(|d| d >= n)
        };
        let whole = spec.groups == 1 && spec.input_dilation.iter().all(|&d| d == 1);
        let types = [x, y].iter().all(|&v| g.dtype(v) == DType::F32);
        return constant && whole && types && at_least(ConvRole::C, CHANNELS) && at_least(ConvRole::N, LEAST);
    }
    let Op::Contract { batch, over, acc: DType::F32 } = &node.op else { return false };
    let &[(a, b)] = &over[..] else { return false };
    let wide = |v: ValueId, d: usize| g.dims(v)[d].as_const().map_or(!constant, |n| n >= LEAST);
    let columns = (0..g.dims(y).len()).rfind(|&d| d != b && batch.iter().all(|p| p.1 != d));
    let last = g.dims(y).len().wrapping_sub(1);
    let pairs = match b == last {
        true => g.dims(y)[b].as_const().is_some_and(|n| n % LEAST == 0),
        false => columns == Some(last),
    };
    (constant || pairs)
        && [x, y].iter().all(|&v| g.dtype(v) == DType::F32)
        && a + 1 == g.dims(x).len()
        && wide(y, b)
        && columns.is_some_and(|d| wide(y, d))
}
