//! What moving a model to another chip costs: which operations it takes as they are, how much memory, how much time at
//! least, and, where it was run there, whether its results are right.
//!
//! [`check`](check()) needs neither a device nor weights: it makes the plan that compiling would make, over a back end that is asked
//! what it supports but compiles nothing, and holds it against the chip's description. [`prove`] adds what a run
//! showed. Everything lands in one [`Report`], from which [`text`] and [`html`] make pages; as JSON it is described in
//! `docs/port-report.md`.
#![forbid(unsafe_code)]

pub mod check;
pub mod codes;
pub mod cost;
pub mod html;
pub mod memory;
pub mod placement;
pub mod prove;
pub mod report;
pub mod survey;
pub mod text;

pub use check::{Gap, Settings, check, gaps, with_gaps};
pub use report::{ChipReport, Report};
