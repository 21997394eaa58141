//! The Ascend back end: tile kernels as MLIR text for the vendor's compiler.
//!
//! A kernel becomes a function on bare device pointers whose body is upstream MLIR (`memref`, `linalg`, `arith`, `math`, `scf`)
//! on tensors of static shape: the form that `bishengir-compile` takes for Triton kernels. Tile sizes come from
//! the schedule; memory planning, fractal layouts, synchronisation and the split into matrix and vector cores are the vendor
//! compiler's. That program is separate ([`tool`]): it checks the text on any x86-64 machine and reports
//! what does not fit; the last step to an object file needs the toolkit of a machine with the chip.
//!
//! This crate promises: what [`emit()`] accepts means what the tile kernel means, element by element, or is refused by name.
#![deny(unsafe_code)]

mod access;
pub mod artifact;
mod codes;
pub mod device;
mod elements;
mod emit;
mod legal;
pub mod npu;
pub mod tool;

use std::sync::Arc;

use tongtu_chip::{Chip, Kind};
use tongtu_plan::backend::{Artifact, CompileError, Compiler, Entry, Support};
use tongtu_tile::{Module, Op, ParamKind, Ty};

pub use artifact::Part;
pub use device::Simulator;
pub use emit::{Emitted, emit};
pub use npu::Npu;
pub use tool::Tool;

/// The back end's name, which its artifacts carry.
pub const NAME: &str = "ascend";

/// The compile half of the back end. The artifact is the text of its kernels, checked by the vendor's compiler.
#[derive(Clone, Debug, Default)]
pub struct AscendCompiler;

impl Compiler for AscendCompiler {
    fn name(&self) -> &str {
        NAME
    }

    fn supports(&self, op: &Op, operands: &[Ty], results: &[Ty], chip: &Chip) -> Support {
        if chip.kind != Kind::Npu {
            return Support::No("the chip is not an Ascend NPU".to_string());
        }
        legal::supports(op, operands, results, chip)
    }

    fn compile(&self, module: &Module, chip: &Chip) -> Result<Artifact, CompileError> {
        let tool = Tool::find(chip)?;
        let mut parts = Vec::new();
        let mut entries = Vec::new();
        for k in &module.kernels {
            let one = emit(k, chip)?;
            let report = tool.check(&k.name, &one.text, &one.origins, chip)?;
            parts.push(Part { text: one.text, planned: report.planned });
            let buffers = k.params.iter().filter(|p| matches!(p.kind, ParamKind::Buffer(..))).count();
            let scalars = k.params.len() - buffers;
            entries.push(Entry { name: k.name.clone(), scratch: 0, buffers, scalars });
        }
        let bytes = Arc::from(artifact::write(&chip.name, &parts).into_bytes());
        Ok(Artifact { backend: NAME.to_string(), entries, bytes })
    }
}
