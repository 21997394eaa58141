//! The executor of plans.
//!
//! A [`Session`] is a [`Plan`](tongtu_plan::Plan) loaded on its devices. A run binds the plan's symbols from the inputs' dims,
//! places every value of known size in one arena for each device (places are computed once for each set of sizes and
//! kept), and walks the steps. Values whose sizes come from data have memory of their own, counted by reference.
//!
//! - [`Session::run`] takes and gives values in the model's order, from any number of threads; a [`Context`] is the
//!   memory of one of them.
//! - [`DeviceTensor`] keeps state on its device between runs, updated in place.
//! - [`Session::profile`] measures every step; [`Session::verify`] compares every group of kernels with the reference
//!   interpreter on its real inputs.
//!
//! After the first run at a set of sizes, [`Context::run_into`] neither allocates nor locks on the way to the kernels of a plan
//! without values of unknown size. This crate links neither a compiler nor a back end.
#![forbid(unsafe_code)]

pub mod arena;
mod context;
mod dims;
mod error;
mod exec;
mod host;
mod pool;
mod profile;
mod program;
mod session;
mod value;
mod verify;

pub use context::{Context, MemoryReport};
pub use error::RuntimeError;
pub use profile::{GroupTime, Profile, StepTime};
pub use session::Session;
pub use value::{DeviceTensor, DeviceTensorError, HostValue, Value};
pub use verify::{Culprit, GroupReport, OpReport, Recompile, VerifyOptions, VerifyReport, Worst};
