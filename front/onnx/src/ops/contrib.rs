//! Operators of ONNX Runtime (`com.microsoft`) that exporters and quantizers emit.

use crate::ops::Entry;

/// The family's operators.
pub const OPS: &[Entry] = &[];
