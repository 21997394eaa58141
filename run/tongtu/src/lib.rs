//! Tongtu: load a model, compile it for the chip at hand, run it.
//!
//! ```no_run
//! # fn main() -> Result<(), tongtu::Error> {
//! use tongtu::{Model, Options, Tensor};
//!
//! let model = Model::load("mobilenet.onnx")?;
//! let session = model.compile(&Options::host())?;
//! let image = Tensor::from_slice(&[1, 3, 224, 224], &vec![0.5f32; 3 * 224 * 224])?;
//! let outputs = session.run(&[("input", image)])?;
//! println!("{:?}", outputs.tensor("output")?.shape());
//! # Ok(())
//! # }
//! ```
//!
//! - [`Model`] is what was read: it can be inspected, interpreted, compiled ([`Model::compile`]) or saved as a bundle.
//! - [`Session`] is a compiled model: it runs from any number of threads, verifies and profiles itself.
//! - Kernels are kept in a cache on disk ([`cache`]), so that the next start compiles nothing.
//! - Every [`Error`] has a stable code and says where in the model it arose.
#![forbid(unsafe_code)]

pub mod cache;
mod error;
pub mod inspect;
mod model;
mod options;
pub mod pipeline;
mod session;

pub use error::{Error, code_of};
pub use model::{LoadOptions, Model};
pub use options::Options;
pub use session::{Outputs, Session};

pub use tongtu_chip::Chip;
pub use tongtu_compile::Error as CompileStageError;
pub use tongtu_cpu::CpuDevice;
pub use tongtu_graph::Type as GraphType;
pub use tongtu_graph::eval::HostValue;
pub use tongtu_plan::plan::Port as PlanPort;
pub use tongtu_plan::{Plan, Step, StepKind, bundle};
pub use tongtu_runtime::{
    Context, Culprit, DeviceTensor, GroupReport, GroupTime, MemoryReport, Profile, Value, VerifyOptions,
    VerifyReport,
};
pub use tongtu_tensor::dim::{Dim, Sym, Symbols};
pub use tongtu_tensor::{DType, Num, Tensor, npy};

/// Parts of the front end that tools need: data files of ONNX tests.
pub mod onnx {
    pub use tongtu_onnx::OnnxError;
    pub use tongtu_onnx::data::{FileKind, read_file, write_tensor};
}

/// Measured limits of this machine.
#[cfg(any(feature = "llvm", feature = "llvm-static"))]
pub use tongtu_cpu::probe;
