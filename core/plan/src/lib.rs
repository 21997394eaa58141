//! What the compiler hands to the runtime: the [`Plan`], a small host program over device memory, and the two
//! halves of a back end as traits ([`backend`]).
//!
//! A plan binds sizes, guards, branches, loops, launches and copies. It knows kernels only as entries of opaque
//! artifacts and values only as memory with dims; it names the device of each step and the steps it waits for.
//! This crate links neither a compiler nor a device.
#![forbid(unsafe_code)]

pub mod backend;
pub mod bundle;
mod check;
mod packing;
pub mod plan;

pub use backend::{
    Artifact, CompileError, Compiler, Device, DeviceError, Entry, Event, LaunchArg, Mem, Support,
};
pub use bundle::{Bundle, BundleError, FileIdentity};
pub use check::PlanError;
pub use packing::Packing;
pub use plan::{Arg, Block, Group, Hosted, Plan, PlanValue, Port, State, Step, StepKind, Storage, ValueRef};
