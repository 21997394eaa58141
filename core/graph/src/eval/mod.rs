//! The reference interpreter: the oracle that every back end is compared with.
//!
//! It has two modes with one definition of each operation. [`run`] computes whole values, node by node, every element
//! rounded as its operation says. A [`Sampler`] computes chosen elements of a result, each with a bound on the error that
//! the operations' contracts allow an implementation ([`Approx`]); [`compare`] holds results against that.
//! Both are simple rather than fast.

mod bindings;
mod elem;
mod element;
pub mod host;
#[cfg(test)]
mod noise;
pub mod philox;
pub(crate) mod prepare;
mod run;
mod sample;
mod whole;

pub use bindings::Bindings;
pub use elem::accumulator;
pub use host::HostValue;
pub use run::{Evaluator, run, run_tensors};
pub use sample::{Comparison, Sampler, compare, sample};
pub use tongtu_tensor::scalar::Approx;
