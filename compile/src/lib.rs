//! The compiler: tensor graph in, plan of tile kernels out.
//!
//! In order: [`passes`] simplify, fold and choose layouts; [`fuse`] groups operations into kernels; [`schedule`] gives each group its
//! tile programs, with [`emit`] turning elementwise expressions into tiles; [`expand`] rewrites what a chip
//! lacks; the back end, handed in as an argument, makes artifacts; [`plan`] writes the host program and its memory.
//!
//! It reads chips only through their description, and promises the same output for the same input, byte for byte.
#![forbid(unsafe_code)]

mod collapse;
pub mod emit;
pub mod error;
pub mod expand;
pub mod fuse;
pub mod passes;
pub mod plan;
pub mod schedule;
mod softmax;
pub mod split;
pub mod state;

pub use error::Error;

use tongtu_chip::Chip;
use tongtu_graph::Module;
use tongtu_plan::{Compiler, Plan};
use tongtu_tensor::DType;

/// A chip and what compiles for it.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// The chip.
    pub chip: &'a Chip,
    /// Its back end.
    pub compiler: &'a dyn Compiler,
}

/// What the user may choose.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Settings of the graph passes.
    pub passes: passes::Options,
}

impl Options {
    /// Settings of the graph passes for a chip.
    fn on(&self, chip: &Chip) -> passes::Options {
        let machine = schedule::Machine::of(chip);
        let bytes = machine.scratch.is_none() && machine.unit(DType::U8, DType::I8, DType::I32).is_some();
        passes::Options { integers: self.passes.integers || bytes, ..self.passes.clone() }
    }
}

/// What [`compile`] would make, without reading constants: see [`plan::outline`].
///
/// # Errors
/// A broken graph, or what leaves no plan.
pub fn outline(
    module: Module,
    compiler: &dyn Compiler,
    chip: &Chip,
    options: &Options,
) -> Result<(Plan, Vec<Error>), Error> {
    let module = passes::prepare(module, &options.on(chip))?;
    plan::outline(&module, Target { chip, compiler })
}

/// Compiles a module for a chip.
///
/// # Errors
/// A broken graph, an operation that no schedule covers, or the back end's refusal, each with the operation and its place in the
/// user's model.
pub fn compile(
    module: Module,
    compiler: &dyn Compiler,
    chip: &Chip,
    options: &Options,
) -> Result<Plan, Error> {
    let module = passes::prepare(module, &options.on(chip))?;
    plan::lower(module, &[Target { chip, compiler }])
}

/// As [`compile`]; what the chip does not take is compiled for the host, device 1 of the plan, and listed in [`Plan::hosted`].
///
/// # Errors
/// As for [`compile`], of what the host does not take either.
pub fn compile_with_host(
    module: Module,
    chip: Target<'_>,
    host: Target<'_>,
    options: &Options,
) -> Result<Plan, Error> {
    let module = passes::prepare(module, &options.on(chip.chip))?;
    plan::lower(module, &[chip, host])
}
