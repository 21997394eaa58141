//! The ONNX front end: a model file becomes a [`tongtu_graph::Module`].
//!
//! [`load`] maps the file, checks that every operator in it is supported, and lowers node by node. Sizes are followed
//! symbolically: a chain of `Shape`, `Gather` and `Concat` into `Reshape` adds nothing to the graph, and sizes that
//! depend on data bind fresh symbols at run time. Weights stay in the mapped file.
//!
//! Files are not trusted: reading is limited in depth and memory, external data must lie in the model's folder, and
//! whatever is wrong is an [`OnnxError`] with a code.
#![forbid(unsafe_code)]

mod ctx;
pub mod data;
pub mod error;
mod fold;
mod lower;
pub mod ops;
pub mod proto;
mod val;
pub mod wire;

pub use ctx::{Ctx, NodeCtx, Opsets};
pub use error::{Issue, OnnxError};
pub use lower::{Loaded, Options, Port, input_names, load, load_bytes};
pub use val::{Known, OptionalVal, SequenceVal, StringsVal, TensorVal, Val};
