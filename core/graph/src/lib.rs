//! The tensor graph: what a model means, before any chip is known.
//!
//! A [`Graph`] is a list of operations in execution order over whole tensors in single-assignment form. Dims are
//! [`Dim`](tongtu_tensor::dim::Dim) expressions over symbols of the enclosing [`Module`]. A small set of
//! primitives has its meaning here; every other operation is a *composite*: a named node that carries its own
//! definition as a graph of primitives, so that it runs on every chip from the first day while a schedule may
//! recognise the name.
//!
//! This crate knows no front end and no chip, and of kernels only what the operation `kernel` runs. It promises: one table declares every operation
//! ([`op`]); the text form round-trips ([`text`]); [`verify()`] accepts exactly what the evaluator and the compiler
//! may take; [`eval`] is the oracle that everything else is compared with.
//!
//! ```
//! use tongtu_graph::eval::{Sampler, compare, run_tensors};
//! use tongtu_graph::{Builder, Module, Type, verify};
//! use tongtu_tensor::{DType, Dim, Num, Tensor};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut m = Module::default();
//! let rows = m.symbols.fresh("rows");
//! let x = m.graph.add_input(Type::tensor(DType::F32, [Dim::from(rows), Dim::from(3)]), Some("x".into()));
//! let y = Builder::new(&mut m.graph, &mut m.symbols).softmax(x, 1)?;
//! m.graph.outputs.push(y);
//! assert!(verify(&m).is_ok());
//!
//! let input = Tensor::from_slice(&[1, 3], &[0f32, 1.0, 2.0])?;
//! let all = run_tensors(&m, &[input.clone()])?;
//! assert_eq!(all[0].shape(), [1, 3]);
//!
//! // One element with the error that an implementation may have, and a result held against it.
//! let bound = Sampler::new(&m.symbols, &m.graph, vec![input]).elements(0, &[2])?;
//! assert!(compare(&bound, &[Num::Float(0.665_240_94)]).passes());
//! assert!(!compare(&bound, &[Num::Float(0.66525)]).passes());
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

pub mod build;
pub mod composite;
pub mod error;
pub mod eval;
pub mod graph;
pub mod infer;
mod inline;
pub mod kernel;
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
