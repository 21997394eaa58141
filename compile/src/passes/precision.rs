//! Products in a narrower type than the model asks for, where the user chose so.

use std::collections::HashMap;

use tongtu_graph::{Builder, ConvRole, Graph, GraphError, Module, Node, Op, ValueId};
use tongtu_tensor::{CastMode, DType};

/// Least columns and steps of a product that is worth converting its operands.
const LEAST: i64 = 32;

/// Least input channels of a convolution that is worth it.
const CHANNELS: i64 = 16;

/// What f32 products with constants are computed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// As the model says.
    #[default]
    F32,
    /// Operands rounded to bf16, sums in f32.
    Bf16,
}

/// Rounds the operands of contractions and convolutions with constants to bf16. What the constants become is left to folding.
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
                let cast = b.cast(*v, DType::BF16, CastMode::default())?;
                rounded.insert(*v, cast);
                *v = cast;
            }
        }
        g.nodes.push(Node { inputs, ..node.clone() });
    }
    Ok(Module { graph: g, symbols: module.symbols })
}

/// Whether a node is an f32 product with a constant, summed over one dim, large enough.
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
    let wide = |v: ValueId, d: usize| g.dims(v)[d].as_const().is_some_and(|n| n >= LEAST);
    let columns = (0..g.dims(y).len()).rfind(|&d| d != b && batch.iter().all(|p| p.1 != d));
    constant
        && [x, y].iter().all(|&v| g.dtype(v) == DType::F32)
        && a + 1 == g.dims(x).len()
        && wide(y, b)
        && columns.is_some_and(|d| wide(y, d))
}
