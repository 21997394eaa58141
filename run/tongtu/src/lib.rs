//! Tongtu: load a model, compile it for the chip at hand, run it.
//!
//! ```
//! # fn main() -> Result<(), tongtu::Error> {
//! use tongtu::{Model, Options, Tensor};
//! # let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../conformance/models/external/model.onnx");
//!
//! let model = Model::load(file)?;
//! let session = model.compile(&Options::host())?;
//! let x = Tensor::from_slice(&[2, 48], &[0.5f32; 96])?;
//! let outputs = session.run(&[("x", x)])?;
//! assert_eq!(outputs.tensor("y")?.shape(), [2, 16]);
//! # Ok(())
//! # }
//! ```
//!
//! The sizes of a batch, a picture or a text are known only when the model runs; one compiled model serves them all.
//! The same model is verified, kernel by kernel, on the inputs it is given:
//!
//! ```
//! # fn main() -> Result<(), tongtu::Error> {
//! # use tongtu::{Model, Options, Tensor, VerifyOptions};
//! # let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../conformance/models/external/model.onnx");
//! let session = Model::load(file)?.compile(&Options::host().threads(1))?;
//! let x = Tensor::from_slice(&[1, 48], &[0.25f32; 48])?;
//! let (outputs, report) = session.verify(&[("x", x)], &VerifyOptions::default())?;
//! assert!(report.passes());
//! println!("{} elements, worst error {:.2} of what is allowed", report.checked(), report.worst_ratio());
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
pub mod catalogue;
pub mod conform;
mod error;
pub mod inspect;
mod model;
mod options;
pub mod pipeline;
pub mod port;
pub mod remote;
mod session;
mod stored;

pub use error::{Error, code_of};
pub use model::{LoadOptions, Model};
pub use options::Options;
pub use remote::Remote;
pub use session::{Outputs, Session};

pub use tongtu_chip::Chip;
pub use tongtu_compile::Error as CompileStageError;
pub use tongtu_compile::passes::Precision;
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

/// Other vendors' compilers, which are programs of their own.
pub mod toolchain {
    pub use tongtu_ascend::tool::install as install_ascend;
}

/// Measured limits of this machine.
#[cfg(any(feature = "llvm", feature = "llvm-static"))]
pub use tongtu_cpu::probe;
