//! The conformance kit of the instruction set, run on a chip.

pub use tongtu_conformance::isolate::{self, Stopped, Worker};
pub use tongtu_conformance::random::{Fault, Found, search};
pub use tongtu_conformance::{Expected, Outcome, Program, Report, Target, Verdict, programs};

use tongtu_chip::Chip;

use crate::{Error, Remote};

/// Whether this machine runs what is compiled for a chip.
pub fn runs_here(chip: &Chip) -> bool {
    Chip::host().is_ok_and(|h| chip.arch == h.arch && chip.features.iter().all(|f| h.features.contains(f)))
}

/// Gives `f` a chip with what compiles for it here and, where there is something, what runs it: this machine, an emulator, or a simulation of
/// the chip that runs the program its compiler planned. This is where a back end comes in.
///
/// # Errors
/// There is no such chip, or no compiler for it in this build.
pub fn with_target<T>(chip: &str, f: impl FnOnce(Target<'_>) -> T) -> Result<T, Error> {
    let chip = Chip::builtin(chip)?;
    #[cfg(any(feature = "llvm", feature = "llvm-static"))]
    if chip.kind == tongtu_chip::Kind::Cpu {
        let device: Option<std::sync::Arc<dyn tongtu_plan::Device>> = match runs_here(&chip) {
            true => Some(std::sync::Arc::new(tongtu_cpu::CpuDevice::new(2)?)),
            false => Remote::emulator(&chip).ok().map(|r| r.shared()),
        };
        let device = device.as_deref();
        let compiler = tongtu_cpu::CpuCompiler { threads: 1 };
        return Ok(f(Target { chip: &chip, compiler: &compiler, device }));
    }
    if chip.kind == tongtu_chip::Kind::Npu {
        let device = tongtu_ascend::Simulator::new(&chip, true);
        return Ok(f(Target {
            chip: &chip,
            compiler: &tongtu_ascend::AscendCompiler,
            device: Some(&device),
        }));
    }
    let _ = f;
    Err(Error::NoCompiler(chip.name))
}
