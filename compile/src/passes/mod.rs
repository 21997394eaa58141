//! Graph to graph: inlining, folding, simplification, layouts.
//!
//! [`prepare`] runs a fixed sequence: composites are [inlined](inline), then the graph is rebuilt in sweeps in which every
//! operation, as it is added, is folded if its operands are constants, rewritten by the first rule that applies, or
//! shared with an equal operation; sweeps repeat until no rule applies. A first round of sweeps simplifies, a second
//! also chooses channels-last layouts and moves permutations towards results, less or more far, whichever leaves less to move.
//! What no result needs is dropped.
//!
//! The order and names of inputs, outputs and state stay. Results are bit for bit those of the original graph, except where
//! constants are merged into one another or into a kernel ([`Contract::Reassociable`](tongtu_graph::op::Contract)
//! operations keep to their contract; chains of additions and multiplications by constants round once instead of twice).

mod arith;
mod batches;
mod control;
mod cse;
mod dce;
mod dilation;
mod elementwise;
mod fold;
mod four_bit;
mod inline;
mod layout;
mod linear;
mod movement;
mod narrow;
mod precision;
mod quantised;
mod rewrite;
mod stats;
mod strided;
mod widen;

pub use dce::dce;
pub use inline::inline;
pub use precision::Precision;
pub use stats::{Stats, stats};
pub(crate) use strided::dense;

use tongtu_graph::{GraphError, Module, Node, Op};

use rewrite::{Rule, Rules, sweep};

/// What the passes may do.
#[derive(Clone, Debug)]
pub struct Options {
    /// Names of composites that stay whole.
    pub keep: Vec<String>,
    /// Most elements of a result that is computed here; constants that are only moved, cast or scaled may be of any size.
    pub fold_limit: usize,
    /// Whether convolutions and poolings get channels-last operands.
    pub channels_last: bool,
    /// What products are computed in, and convolutions with constants.
    pub precision: Precision,
    /// Whether `f32` products of dequantised bytes become products of the bytes, which machines with a matrix unit for bytes are
    /// faster at.
    pub integers: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            keep: Vec::new(),
            fold_limit: 1 << 20,
            channels_last: true,
            precision: Precision::F32,
            integers: false,
        }
    }
}

/// Most sweeps of one round; each makes progress, and few graphs need more than five.
const MAX_SWEEPS: usize = 24;

const SIMPLIFY: &[Rule] =
    &[fold::rule, control::rule, elementwise::rule, arith::rule, movement::rule, narrow::rule, linear::rule];

/// Rules for the form that kernels are made from; `fold` and `layout` take more or less.
const fn kernel_form(fold: Rule, layout: Rule) -> [Rule; 12] {
    [
        control::rule,
        quantised::rule,
        movement::rule,
        fold,
        elementwise::rule,
        arith::rule,
        narrow::rule,
        widen::rule,
        linear::rule,
        batches::rule,
        dilation::rule,
        layout,
    ]
}

const LAYOUT: &[Rule] = &kernel_form(fold::rule, layout::rule);

/// As [`LAYOUT`], once nothing else can take the permutation of a large constant.
const FINISH: &[Rule] = &kernel_form(fold::all, layout::finish);

/// Brings a module to the form that kernels are made from.
///
/// # Errors
/// The first that verification finds.
pub fn prepare(module: Module, options: &Options) -> Result<Module, GraphError> {
    if let Some(first) = tongtu_graph::verify(&module).err().and_then(|all| all.into_iter().next()) {
        return Err(first);
    }
    let module = if options.integers { quantised::integers(module)? } else { module };
    let module = if options.integers { four_bit::kernels(module)? } else { module };
    let module = quantised::four_bit_panels(module)?;
    let module = Module {
        graph: dce(&inline(&module.graph, &options.keep), &module.symbols),
        symbols: module.symbols,
    };
    let module = rounds(module, options, &[&[], SIMPLIFY], false)?;
    let module = if options.channels_last { laid_out(module, options)? } else { module };
    match options.precision {
        Precision::F32 => Ok(module),
        Precision::Bf16 => rounds(precision::narrow(module)?, options, &[FINISH], false),
    }
}

/// Layouts chosen, and permutations moved to where they cost least.
fn laid_out(module: Module, options: &Options) -> Result<Module, GraphError> {
    // Taking permutations further helps where they meet their inverse, and costs where they do not.
    let near = rounds(module.clone(), options, &[LAYOUT, FINISH], false)?;
    if moved(&near) <= 1.0 {
        return Ok(near);
    }
    let far = rounds(module, options, &[LAYOUT, FINISH], true)?;
    Ok(if moved(&far) < moved(&near) { far } else { near })
}

/// Rebuilds the graph by each list of rules until none applies.
fn rounds(
    mut module: Module,
    options: &Options,
    lists: &[&'static [Rule]],
    apart: bool,
) -> Result<Module, GraphError> {
    for list in lists {
        for _ in 0..MAX_SWEEPS {
            let rules = Rules { list, apart };
            let (next, fired) = sweep(&module.graph, &mut module.symbols, options, rules)?;
            module.graph = dce(&next, &module.symbols);
            debug_assert_eq!(tongtu_graph::verify(&module), Ok(()), "a pass broke the graph");
            if fired == 0 {
                break;
            }
        }
    }
    Ok(module)
}

/// Elements that permutations move, in all, taking unknown dims to be of middling size.
fn moved(module: &Module) -> f64 {
    let elements = |n: &Node| -> f64 {
        let dims = n.outputs.iter().flat_map(|&v| module.graph.dims(v));
        dims.map(|d| d.eval(&|_| Some(16)).unwrap_or(16).max(1) as f64).product()
    };
    module.graph.nodes.iter().filter(|n| matches!(n.op, Op::Permute { .. })).map(elements).sum()
}

#[cfg(test)]
mod tests;
