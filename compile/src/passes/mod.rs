//! Graph to graph: inlining, folding, simplification, layouts.
//!
//! [`prepare`] runs a fixed sequence: composites are [inlined](inline), then the graph is rebuilt in sweeps in which every
//! operation, as it is added, is folded if its operands are constants, rewritten by the first rule that applies, or
//! shared with an equal operation; sweeps repeat until no rule applies. A first round of sweeps simplifies, a second
//! also chooses channels-last layouts and sinks permutations. What no result needs is dropped.
//!
//! The order and names of inputs, outputs and state stay. Results are bit for bit those of the original graph, except where
//! constants are merged into one another or into a kernel ([`Contract::Reassociable`](tongtu_graph::op::Contract)
//! operations keep to their contract; chains of additions and multiplications by constants round once instead of twice).

mod arith;
mod control;
mod cse;
mod dce;
mod dilation;
mod elementwise;
mod fold;
mod inline;
mod layout;
mod linear;
mod movement;
mod rewrite;
mod stats;
mod strided;

pub use dce::dce;
pub use inline::inline;
pub use stats::{Stats, stats};

use tongtu_graph::{GraphError, Module};

use rewrite::{Rule, sweep};

/// What the passes may do.
#[derive(Clone, Debug)]
pub struct Options {
    /// Names of composites that stay whole.
    pub keep: Vec<String>,
    /// Most elements of a result that is computed here; constants that are only moved, cast or scaled may be of any size.
    pub fold_limit: usize,
    /// Whether convolutions and poolings get channels-last operands.
    pub channels_last: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { keep: Vec::new(), fold_limit: 1 << 20, channels_last: true }
    }
}

/// Most sweeps of one round; each makes progress, and few graphs need more than five.
const MAX_SWEEPS: usize = 24;

const SIMPLIFY: &[Rule] =
    &[fold::rule, control::rule, elementwise::rule, arith::rule, movement::rule, linear::rule];

const LAYOUT: &[Rule] = &[
    control::rule,
    movement::rule,
    fold::rule,
    elementwise::rule,
    arith::rule,
    linear::rule,
    dilation::rule,
    layout::rule,
];

/// As [`LAYOUT`], once nothing else can take the permutation of a large constant.
const FINISH: &[Rule] = &[
    control::rule,
    movement::rule,
    fold::all,
    elementwise::rule,
    arith::rule,
    linear::rule,
    dilation::rule,
    layout::finish,
];

/// Brings a module to the form that kernels are made from.
///
/// # Errors
/// Those of inference, for a graph that does not pass verification.
pub fn prepare(module: Module, options: &Options) -> Result<Module, GraphError> {
    let mut module = Module { graph: dce(&inline(&module.graph, &options.keep)), symbols: module.symbols };
    let rounds: &[&[Rule]] =
        if options.channels_last { &[&[], SIMPLIFY, LAYOUT, FINISH] } else { &[&[], SIMPLIFY] };
    for rules in rounds {
        for _ in 0..MAX_SWEEPS {
            let (next, fired) = sweep(&module.graph, &mut module.symbols, options, rules)?;
            module.graph = dce(&next);
            debug_assert_eq!(tongtu_graph::verify(&module), Ok(()), "a pass broke the graph");
            if fired == 0 {
                break;
            }
        }
    }
    Ok(module)
}

#[cfg(test)]
mod tests;
