//! The conformance kit of the instruction set, run on a chip.

pub use tongtu_conformance::{Expected, Outcome, Program, Report, Verdict, programs};

use tongtu_chip::Chip;

use crate::Error;

/// Runs programs on a chip that this machine can compile for. One that it cannot run is only compiled for.
///
/// # Errors
/// There is no such chip, or no compiler for it in this build.
pub fn run(programs: &[Program], chip: &str) -> Result<Vec<Outcome>, Error> {
    let chip = if chip == "host" { Chip::host()? } else { Chip::builtin(chip)? };
    #[cfg(any(feature = "llvm", feature = "llvm-static"))]
    if chip.kind == tongtu_chip::Kind::Cpu {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        let host = Chip::host()?;
        let runs = chip.arch == host.arch && chip.features.iter().all(|f| host.features.contains(f));
        let device = if runs { Some(tongtu_cpu::CpuDevice::new(threads)?) } else { None };
        let device = device.as_ref().map(|d| d as &dyn tongtu_plan::Device);
        let compiler = tongtu_cpu::CpuCompiler { threads: 1 };
        return Ok(tongtu_conformance::run(programs, &compiler, &chip, device, threads));
    }
    let _ = programs;
    Err(Error::NoCompiler(chip.name))
}
