//! Errors of the tile stage.

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
}
