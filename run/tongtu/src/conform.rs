//! The conformance kit of the instruction set, run on a chip.

pub use tongtu_conformance::isolate::{self, Stopped, Worker};
pub use tongtu_conformance::random::{Fault, Found, search};
pub use tongtu_conformance::{Expected, Outcome, Program, Report, Target, Verdict, programs};

use std::sync::Arc;

use tongtu_chip::{Chip, Kind};
use tongtu_plan::Device;
use tongtu_plan::backend::Compiler;

use crate::{Error, Remote};

/// Whether this machine runs what is compiled for a chip.
pub fn runs_here(chip: &Chip) -> bool {
    Chip::host().is_ok_and(|h| chip.arch == h.arch && chip.features.iter().all(|f| h.features.contains(f)))
}

/// Gives `f` what compiles for a chip here. This is where a back end comes in.
///
/// # Errors
/// This build has no compiler for the chip.
pub fn with_compiler<T>(chip: &Chip, f: impl FnOnce(&dyn Compiler) -> T) -> Result<T, Error> {
    match chip.kind {
        #[cfg(any(feature = "llvm", feature = "llvm-static"))]
        Kind::Cpu => Ok(f(&tongtu_cpu::CpuCompiler { threads: 1 })),
        Kind::Npu => Ok(f(&tongtu_ascend::AscendCompiler)),
        _ => {
            let _ = f;
            Err(Error::NoCompiler(chip.name.clone()))
        }
    }
}

/// What runs programs for a chip, where there is something: this machine, an emulator, or a simulation of the chip that runs the program
/// its compiler planned.
fn device(chip: &Chip) -> Result<Option<Arc<dyn Device>>, Error> {
    Ok(match chip.kind {
        Kind::Npu => Some(Arc::new(tongtu_ascend::Simulator::new(chip, true))),
        Kind::Cpu if runs_here(chip) => Some(Arc::new(tongtu_cpu::CpuDevice::new(2)?)),
        _ => Remote::emulator(chip).ok().map(|r| r.shared()),
    })
}

/// Why nothing here runs what is compiled for a chip; `None` where something does.
pub fn not_run(chip: &Chip) -> Option<String> {
    match chip.kind {
        Kind::Cpu if !runs_here(chip) => Remote::emulator(chip).err().map(|e| e.to_string()),
        _ => None,
    }
}

/// Gives `f` a chip with what compiles for it here and, where there is something, what runs it.
///
/// # Errors
/// There is no such chip, or no compiler for it in this build.
pub fn with_target<T>(chip: &str, f: impl FnOnce(Target<'_>) -> T) -> Result<T, Error> {
    let chip = Chip::builtin(chip)?;
    let device = device(&chip)?;
    with_compiler(&chip, |compiler| f(Target { chip: &chip, compiler, device: device.as_deref() }))
}
