//! The CPU back end.
//!
//! The compile half (feature `llvm`) lowers tile programs to LLVM IR text with explicit vectors and has LLVM
//! turn that into machine code; the code becomes a position-independent [`Artifact`] that needs no linker.
//! The run half loads artifacts and launches their kernels on a thread pool; it does not need LLVM.

pub mod agent;
pub mod artifact;
#[cfg(any(feature = "llvm", feature = "llvm-static"))]
pub mod blob;
#[cfg(any(feature = "llvm", feature = "llvm-static"))]
mod compile;
mod device;
mod error;
mod exec;
#[cfg(any(feature = "llvm", feature = "llvm-static"))]
pub mod llvm;
#[cfg(any(feature = "llvm", feature = "llvm-static"))]
pub mod lower;
mod pool;
#[cfg(any(feature = "llvm", feature = "llvm-static"))]
pub mod probe;
#[cfg_attr(not(any(feature = "llvm", feature = "llvm-static")), expect(dead_code))]
mod target;

pub use artifact::{Artifact, Entry};
#[cfg(any(feature = "llvm", feature = "llvm-static"))]
pub use compile::{CpuCompiler, NAME, Times};
pub use device::CpuDevice;
pub use error::Error;
pub use exec::{Buf, Kernel, Loaded};
pub use pool::Pool;
pub use target::dispensable;

/// Compiles LLVM IR text whose functions follow the kernel ABI (see [`Artifact`]) to an artifact for `chip`.
///
/// `entries` says which functions are kernels and what they take; their offsets are filled in here.
#[cfg(any(feature = "llvm", feature = "llvm-static"))]
pub fn assemble(ir: &str, chip: &tongtu_chip::Chip, mut entries: Vec<Entry>) -> Result<Artifact, Error> {
    let target = llvm::Target::of(chip)?;
    let (object, _) = llvm::object(ir, false, &target)?;
    let blob = blob::link(&object)?;
    for entry in &mut entries {
        let found = blob.entries.iter().find(|(name, _)| *name == entry.name);
        entry.offset = found.ok_or_else(|| Error::NoKernel(entry.name.clone()))?.1;
    }
    Ok(Artifact {
        arch: chip.arch.clone(),
        vector: target::vector_length(chip),
        features: chip.features.clone(),
        entries,
        blob: blob.bytes,
    })
}
