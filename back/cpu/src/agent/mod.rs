//! Kernels on another machine: a small program there, the *agent*, takes code and buffers and runs launches for this one.
//!
//! [`protocol`] is what the two say to each other over the agent's standard input and output, so that it works through an emulator,
//! `ssh` or a serial line alike. [`AgentDevice`] is this side. The agent itself is one file of freestanding C, built by
//! [`build`] for any architecture that the back end compiles for.

mod build;
mod device;
pub mod protocol;

pub use build::{SOURCE, build, emulator, newer_emulator};
pub use device::AgentDevice;
