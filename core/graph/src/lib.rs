//! The tensor graph: what a model means, before any chip is known.
//!
//! A [`Graph`] is a list of operations in execution order over whole tensors in single-assignment form. Dims are
//! [`Dim`](tongtu_tensor::dim::Dim) expressions over symbols of the enclosing [`Module`]. A small set of
//! primitives has its meaning here; every other operation is a *composite*: a named node that carries its own
//! definition as a graph of primitives, so that it runs on every chip from the first day while a schedule may
//! recognise the name.
//!
//! This crate knows no front end, no kernel and no chip. It promises: one table declares every operation
//! ([`op`]); the text form round-trips ([`text`]); [`verify()`] accepts exactly what the evaluator and the compiler
//! may take; [`eval`] is the oracle that everything else is compared with.
#![forbid(unsafe_code)]

pub mod build;
pub mod composite;
pub mod error;
pub mod eval;
pub mod graph;
pub mod infer;
mod inline;
pub mod op;
pub mod testing;
pub mod text;
pub mod verify;

pub use build::Builder;
pub use error::GraphError;
pub use graph::{Graph, Loc, Module, Node, Type, Value, ValueId};
pub use inline::{inline_composites, inline_where};
pub use op::{AttrValue, ConvRole, ConvSpec, Op, WindowSpec};
pub use tongtu_tensor::Combiner;
pub use verify::verify;
