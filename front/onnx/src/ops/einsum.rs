//! Einstein summation.

use crate::ops::Entry;

/// The family's operators.
pub const OPS: &[Entry] = &[];
