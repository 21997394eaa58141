//! The CPU back end.
//!
//! The compile half (feature `llvm`) lowers tile programs to LLVM IR text with explicit vectors and has LLVM
//! turn that into machine code; the code becomes a position-independent [`Artifact`] that needs no linker.
//! The run half loads artifacts and launches their kernels on a thread pool; it does not need LLVM.

mod artifact;
#[cfg(any(feature = "llvm", feature = "llvm-static"))]
pub mod blob;
mod error;
mod exec;
#[cfg(any(feature = "llvm", feature = "llvm-static"))]
pub mod llvm;
mod pool;

pub use artifact::{Artifact, Entry};
pub use error::Error;
pub use exec::{Buf, Kernel, Loaded};
pub use pool::Pool;
