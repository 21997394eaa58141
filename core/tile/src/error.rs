//! Errors of the tile stage.

use crate::row::Version;

/// What is wrong with a tile program. Each kind has a stable code, in brackets in its message.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum TileError {
    /// Operands, attributes or types of an instruction break its rule.
    #[error("[K001] {op} in kernel '{kernel}': {detail}")]
    Rule {
        /// Kernel.
        kernel: String,
        /// Instruction.
        op: String,
        /// The rule and what was found.
        detail: String,
    },
    /// The program's structure is broken: a value used where it is not defined, or defined twice.
    #[error("[K002] kernel '{kernel}': {detail}")]
    Structure {
        /// Kernel.
        kernel: String,
        /// What is broken.
        detail: String,
    },
    /// The text form could not be read.
    #[error("[K003] line {line}, column {column}: {detail}")]
    Parse {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What was expected.
        detail: String,
    },
    /// Interpretation failed: a launch that does not fit the kernel, or a step limit.
    #[error("[K004] kernel '{kernel}': {detail}")]
    Run {
        /// Kernel.
        kernel: String,
        /// What failed.
        detail: String,
    },
    /// A program of a version that is not read here.
    #[error(
        "[K005] the program is of version {found} of the instruction set, this reads {oldest} to {newest}"
    )]
    Version {
        /// The program's version.
        found: Version,
        /// The oldest that is read.
        oldest: Version,
        /// The newest that is read.
        newest: Version,
    },
    /// The binary form could not be read.
    #[error("[K006] byte {at}: {detail}")]
    Binary {
        /// Where, from 0.
        at: usize,
        /// What is wrong.
        detail: String,
    },
}

impl TileError {
    /// A program of another version.
    pub(crate) fn version(found: Version) -> TileError {
        TileError::Version { found, oldest: Version::OLDEST, newest: Version::CURRENT }
    }
}
