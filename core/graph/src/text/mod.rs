//! The text form of modules: reading, writing, exact in both directions.
//!
//! ```text
//! symbol batch 1..64 multiple 2
//!
//! graph "main" (%x: f32[batch, 4]) -> (%y) {
//!   %0 = constant {value = tensor<f32[4]>[0.0, 1.0, 2.0, 3.0]} : f32[4]
//!   %1 = broadcast %0 {dims = [<batch>, 4], axes = [1]} : f32[batch, 4]
//!   %y = add %x, %1 : f32[batch, 4]  @ "encoder/Add_3 (Add)"
//! }
//! ```
//!
//! - `symbol NAME LOWER..UPPER multiple M` declares a dim symbol; bounds and multiple may be missing.
//! - A value is `%NAME` where its name is an identifier of its own in the graph, else `%NUMBER`, at its definition followed by its
//!   name in quotes if it has one. Numbers count the values that need one, in order of definition.
//! - A graph's inputs have types, its results and `state (INPUT, OUTPUT)` pairs follow.
//! - Attributes are numbers, `true`, `false`, strings, element types, lists, `<DIM>` expressions, `$SYMBOL`, types, graphs, and
//!   `tensor<TYPE>` with a list of elements, `splat` and one element, or elements' bytes in base64. An element that no
//!   number stands for (a NaN with a payload) is `0x` and its bits.
//! - `//` starts a comment.

mod base64;
mod parse;
mod print;

pub use parse::parse;
pub use print::{print, print_graph};

impl std::fmt::Display for crate::graph::Module {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&print(self))
    }
}

impl std::str::FromStr for crate::graph::Module {
    type Err = crate::error::GraphError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text)
    }
}
