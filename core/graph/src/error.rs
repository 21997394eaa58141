//! Errors of the graph stage.

use crate::graph::Loc;

/// What is wrong with a graph. Each kind has a stable code, in brackets in its message.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum GraphError {
    /// An operation was given the wrong number of operands.
    #[error("[G001] {op} at {loc}: takes {expected} operands, has {found}")]
    Arity {
        /// Operation.
        op: String,
        /// Origin.
        loc: Loc,
        /// What it takes, in words.
        expected: String,
        /// What it has.
        found: usize,
    },
    /// An operand has a type that the operation does not take.
    #[error("[G002] {op} at {loc}: {detail}")]
    Type {
        /// Operation.
        op: String,
        /// Origin.
        loc: Loc,
        /// Which operand, its type, and what is taken.
        detail: String,
    },
    /// Dims or attributes do not fit together.
    #[error("[G003] {op} at {loc}: {detail}")]
    Shape {
        /// Operation.
        op: String,
        /// Origin.
        loc: Loc,
        /// Which dims, and the rule.
        detail: String,
    },
    /// The graph's structure is broken: a value used before its definition, defined twice, unknown, an unbound symbol.
    #[error("[G004] {op} at {loc}: {detail}")]
    Structure {
        /// Operation.
        op: String,
        /// Origin.
        loc: Loc,
        /// What is broken.
        detail: String,
    },
    /// The text form could not be read.
    #[error("[G005] line {line}, column {column}: {detail}")]
    Parse {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What was expected.
        detail: String,
    },
    /// Evaluation failed: a bound symbol out of bounds, an unreasonable size, a host operation's own error.
    #[error("[G006] {op} at {loc}: {detail}")]
    Eval {
        /// Operation.
        op: String,
        /// Origin.
        loc: Loc,
        /// What failed.
        detail: String,
    },
}

impl GraphError {
    /// The error with this origin, where it has none of its own.
    pub fn at(mut self, origin: &Loc) -> GraphError {
        match &mut self {
            GraphError::Arity { loc, .. }
            | GraphError::Type { loc, .. }
            | GraphError::Shape { loc, .. }
            | GraphError::Structure { loc, .. }
            | GraphError::Eval { loc, .. } => {
                if loc.0.is_none() {
                    *loc = origin.clone();
                }
            }
            GraphError::Parse { .. } => {}
        }
        self
    }
}
