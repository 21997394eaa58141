//! What can go wrong with host tensors and their files.

use crate::DType;

/// An error of this crate; each has a stable code (`T001` …), the first word of its message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    /// The product of the dims, or its size in bytes, does not fit the address space.
    #[error("T001: a {dtype} tensor of shape {shape:?} is too large")]
    TooLarge {
        /// Element type.
        dtype: DType,
        /// Requested shape.
        shape: Vec<usize>,
    },
    /// The data does not hold exactly the elements the shape asks for.
    #[error("T002: a {dtype} tensor of shape {shape:?} needs {need} bytes, but there are {have}")]
    WrongSize {
        /// Element type.
        dtype: DType,
        /// Requested shape.
        shape: Vec<usize>,
        /// Bytes the shape asks for.
        need: usize,
        /// Bytes at hand.
        have: usize,
    },
    /// A typed access to a tensor of another element type.
    #[error("T003: the tensor holds {have}, not {want}")]
    WrongType {
        /// The tensor's element type.
        have: DType,
        /// The type asked for.
        want: DType,
    },
    /// A typed slice of a tensor whose elements are not one dense row-major run.
    #[error("T004: the tensor is a strided view; make it contiguous first")]
    NotContiguous,
    /// A typed slice of storage that is not aligned for the type.
    #[error("T005: the storage is not aligned for {0}")]
    Misaligned(DType),
    /// An axis past the rank.
    #[error("T006: axis {axis} of a tensor of rank {rank}")]
    BadAxis {
        /// The axis asked for.
        axis: usize,
        /// The tensor's rank.
        rank: usize,
    },
    /// A permutation that does not name every axis once.
    #[error("T007: {0:?} is not a permutation of the axes")]
    BadPermutation(Vec<usize>),
    /// A slice that leaves the axis, or has a step of zero.
    #[error("T008: slice {start}..{stop} step {step} of an axis of {dim}")]
    BadSlice {
        /// First index.
        start: i64,
        /// End, exclusive.
        stop: i64,
        /// Step.
        step: i64,
        /// Size of the axis.
        dim: usize,
    },
    /// A shape that cannot be had from another by broadcasting or reshaping.
    #[error("T009: cannot turn shape {from:?} into {to:?}")]
    BadShape {
        /// The tensor's shape.
        from: Vec<usize>,
        /// The shape asked for.
        to: Vec<usize>,
    },
    /// A byte of a bool tensor that is neither 0 nor 1.
    #[error("T010: byte {value} at {index} of a bool tensor is neither 0 nor 1")]
    BadBool {
        /// Byte offset.
        index: usize,
        /// The byte.
        value: u8,
    },
    /// A value that the target type cannot hold.
    #[error("T011: element {index} of a {dtype} tensor does not fit i64")]
    NotI64 {
        /// Element type.
        dtype: DType,
        /// Linear index of the element.
        index: usize,
    },
    /// A `.npy` or `.npz` file that is damaged or not one at all.
    #[error("T012: not a valid npy file: {0}")]
    Npy(String),
    /// A `.npy` file of an element type that has no counterpart here.
    #[error("T013: npy element type {0} is not supported")]
    NpyType(String),
    /// The operating system refused.
    #[error("T014: {0}")]
    Io(#[from] std::io::Error),
    /// A damaged zip archive.
    #[error("T015: not a valid npz file: {0}")]
    Zip(String),
}
