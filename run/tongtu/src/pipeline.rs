//! From a module to a plan: the compiler with the back end and caches that the options choose.

use std::sync::Arc;

use tongtu_chip::{Chip, Kind};
use tongtu_compile::Target;
use tongtu_cpu::CpuDevice;
use tongtu_graph::Module;
use tongtu_plan::{Compiler, Device, Plan};

use crate::error::Error;
use crate::options::Options;
use crate::remote::Remote;

/// Changes with every source that decides a compiled kernel.
pub const KERNELS_VERSION: &str = env!("TONGTU_KERNELS");

/// Changes with every source that decides a compiled model.
pub const MODELS_VERSION: &str = env!("TONGTU_MODELS");

/// Gives the plan's inputs and outputs the names of the model's, which values deep inside it may not have kept.
pub(crate) fn name_ports(plan: &mut Plan, inputs: &[String], outputs: &[String]) {
    let ports = plan.inputs.iter_mut().zip(inputs).chain(plan.outputs.iter_mut().zip(outputs));
    ports.for_each(|(port, name)| port.name = name.clone());
}

/// The device that the options' chip is, or its simulation.
pub(crate) fn device(options: &Options) -> Result<Arc<dyn Device>, Error> {
    if let Some(remote) = &options.remote {
        return Ok(remote.shared());
    }
    let chip = options.chip()?;
    match chip.kind {
        Kind::Npu if options.simulate => Ok(Arc::new(tongtu_ascend::Simulator::new(&chip, true))),
        Kind::Npu => Ok(Arc::new(tongtu_ascend::Npu::open(&chip)?)),
        Kind::Cpu if !options.simulate => Ok(Arc::new(CpuDevice::new(options.threads)?)),
        Kind::Cpu => Ok(Remote::emulator(&chip)?.shared()),
        _ => Err(Error::NoDevice(chip.name)),
    }
}

/// Compiles a module for the options' chip and, where they allow it, what the chip does not take for this machine.
pub fn compile(module: Module, options: &Options) -> Result<Plan, Error> {
    let chip = options.chip()?;
    let mut settings = tongtu_compile::Options::default();
    settings.passes.precision = options.precision;
    let plan = with_compiler(&chip, options, |compiler| -> Result<Plan, Error> {
        if !options.allow_host || chip.name == "host" {
            return Ok(tongtu_compile::compile(module, compiler, &chip, &settings)?);
        }
        let here = Chip::host()?;
        let target = Target { chip: &chip, compiler };
        let plan = with_compiler(&here, options, |compiler| {
            tongtu_compile::compile_with_host(module, target, Target { chip: &here, compiler }, &settings)
        });
        Ok(plan??)
    });
    plan?
}

/// Gives `f` what compiles for a chip, with the options' cache.
fn with_compiler<T>(chip: &Chip, options: &Options, f: impl FnOnce(&dyn Compiler) -> T) -> Result<T, Error> {
    match chip.kind {
        #[cfg(any(feature = "llvm", feature = "llvm-static"))]
        Kind::Cpu => {
            let compiler = tongtu_cpu::CpuCompiler::default();
            Ok(match options.kernels() {
                Some(cache) => f(&crate::cache::Cached::new(compiler, cache.clone(), KERNELS_VERSION)),
                None => f(&compiler),
            })
        }
        Kind::Npu => Ok(f(&tongtu_ascend::AscendCompiler)),
        _ => {
            let _ = (f, options);
            Err(Error::NoCompiler(chip.name.clone()))
        }
    }
}
