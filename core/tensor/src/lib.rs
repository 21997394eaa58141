//! Elements, scalar operations, host tensors and symbolic dims: what every other layer of Tongtu agrees on.
//!
//! - [`DType`] and [`Num`]: the element types of the field and the exact value of one element;
//!   [`DType::decode`], [`DType::encode`] and [`cast`] convert with one rounding.
//! - [`scalar`]: the scalar operations, declared once, with their reference evaluation and the error a
//!   conforming implementation may show ([`scalar::Approx`]).
//! - [`Tensor`]: a shaped array of elements on the host, cheap to clone, possibly a view of mapped memory.
//! - [`npy`]: NumPy's array files.
//! - [`dim`]: integer expressions over symbols, the sizes of tensors not known until run time.
//!
//! Bytes are little-endian everywhere, so the crate builds for little-endian hosts only.
#![deny(unsafe_code)]

#[cfg(target_endian = "big")]
compile_error!("tongtu-tensor keeps elements in little-endian order and needs a little-endian host");

mod combine;
pub mod dim;
mod dtype;
mod element;
mod error;
mod hif8;
pub mod npy;
mod num;
pub mod scalar;
mod storage;
mod tensor;

pub use combine::Combiner;
pub use dim::{Dim, DimError, DimView, Sym, Symbols};
pub use dtype::{DType, FloatFormat, ParseDTypeError};
pub use element::Element;
pub use error::TensorError;
pub use half::{bf16, f16};
pub use num::{CastMode, Num, Overflow, Rounding, cast};
pub use scalar::{Binary, Compare, NumericClass, Unary};
pub use storage::{MappedFile, Storage};
pub use tensor::Tensor;
