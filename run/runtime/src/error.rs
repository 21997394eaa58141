//! What can go wrong when a plan runs.

use tongtu_graph::Loc;
use tongtu_plan::{DeviceError, PlanError};
use tongtu_tensor::dim::DimError;
use tongtu_tensor::{DType, TensorError};

/// An error of a session or a run. Each kind has a stable code.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// Not as many inputs as the model takes.
    #[error("[R001] the model takes {expected} inputs ({names}), {found} were given")]
    InputCount {
        /// Inputs the model has.
        expected: usize,
        /// Their names.
        names: String,
        /// Inputs given.
        found: usize,
    },
    /// An input of another element type, or no tensor where one is wanted.
    #[error("[R002] input '{input}' must be {expected}, not {found}")]
    InputType {
        /// Input.
        input: String,
        /// What the model declares.
        expected: String,
        /// What was given.
        found: String,
    },
    /// An input of another rank.
    #[error("[R003] input '{input}' has {found} dims, the model declares {expected}: {declared}")]
    InputRank {
        /// Input.
        input: String,
        /// Dims declared.
        expected: usize,
        /// The declaration.
        declared: String,
        /// Dims given.
        found: usize,
    },
    /// A dim of an input that does not fit.
    #[error("[R004] input '{input}', dim {axis}: must be {expected} ({declared}), is {found}")]
    InputDim {
        /// Input.
        input: String,
        /// Which dim, from 0.
        axis: usize,
        /// The value it should have, in words.
        expected: String,
        /// The declared expression.
        declared: String,
        /// The value it has.
        found: i64,
    },
    /// A symbol out of the range that it was declared with.
    #[error("[R005] {place}: '{symbol}' must be {expected}, is {found}")]
    SymbolRange {
        /// What gives it its value.
        place: String,
        /// Symbol.
        symbol: String,
        /// The range, in words.
        expected: String,
        /// The value.
        found: i64,
    },
    /// Something the model assumes of its sizes does not hold.
    #[error("[R006] {loc}: {message}: {lhs} is {lhs_value}, {rhs} is {rhs_value}")]
    Guard {
        /// Where in the model.
        loc: Loc,
        /// What is assumed.
        message: String,
        /// One side.
        lhs: String,
        /// Its value.
        lhs_value: i64,
        /// Other side.
        rhs: String,
        /// Its value.
        rhs_value: i64,
    },
    /// A size cannot be computed.
    #[error("[R007] {loc}: size '{dim}': {error}")]
    Dim {
        /// Where in the model.
        loc: Loc,
        /// The expression.
        dim: String,
        /// Why.
        error: DimError,
    },
    /// A device failed.
    #[error("{error} (at {loc})")]
    Device {
        /// Where in the model.
        loc: Loc,
        /// The device's error.
        error: DeviceError,
    },
    /// An operation of the host library failed.
    #[error("[R009] {op} at {loc}: {detail}")]
    Host {
        /// The operation.
        op: String,
        /// Where in the model.
        loc: Loc,
        /// Why.
        detail: String,
    },
    /// The plan asks for something that makes no sense: a defect of whoever made it.
    #[error("[R010] {loc}: {detail}")]
    Defect {
        /// Where in the model.
        loc: Loc,
        /// What.
        detail: String,
    },
    /// A device tensor that cannot be used here.
    #[error("[R011] input '{input}': {detail}")]
    DeviceTensor {
        /// Input.
        input: String,
        /// Why not.
        detail: String,
    },
    /// A plan for more devices than were given.
    #[error("[R012] the plan uses {needed} devices, {given} were given")]
    Devices {
        /// Devices the plan names.
        needed: usize,
        /// Devices there are.
        given: usize,
    },
    /// A negative or absurd size.
    #[error("[R013] {loc}: '{value}' would have dims {dims:?}")]
    Size {
        /// Where in the model.
        loc: Loc,
        /// The value.
        value: String,
        /// Its dims.
        dims: Vec<i64>,
    },
    /// A result that is not of the type the plan says.
    #[error("[R014] {op} at {loc}: result {index} is {found}, the plan says {expected}")]
    ResultType {
        /// The operation.
        op: String,
        /// Where in the model.
        loc: Loc,
        /// Which result.
        index: usize,
        /// Declared.
        expected: DType,
        /// Actual.
        found: String,
    },
    /// A host tensor could not be made.
    #[error("[R015] {0}")]
    Tensor(String),
    /// The plan is inconsistent.
    #[error("{0}")]
    Plan(#[from] PlanError),
}

impl From<TensorError> for RuntimeError {
    fn from(e: TensorError) -> RuntimeError {
        RuntimeError::Tensor(e.to_string())
    }
}
