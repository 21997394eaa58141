//! Errors of the compile stage.

use tongtu_graph::{GraphError, Loc};
use tongtu_plan::CompileError;
use tongtu_tile::TileError;

/// Why a graph was not compiled. Each kind has a stable code, in brackets in its message.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The graph is broken.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// A schedule wrote a tile program that its verifier refuses: a defect of the compiler.
    #[error("[C001] {group}: {error}")]
    Tile {
        /// The group of operations.
        group: String,
        /// The verifier's words.
        error: TileError,
    },
    /// The back end refused a kernel.
    #[error("[C002] {group} at {loc}: {error}")]
    Backend {
        /// The group of operations.
        group: String,
        /// Origin in the user's model.
        loc: Loc,
        /// The back end's words.
        error: Box<CompileError>,
    },
    /// An operation that no schedule covers.
    #[error("[C003] {op} at {loc}: {detail}")]
    Unsupported {
        /// Operation.
        op: String,
        /// Origin in the user's model.
        loc: Loc,
        /// What is not covered.
        detail: String,
    },
    /// Several parts of a model that do not compile.
    #[error("[C004] {} parts of the model do not compile:\n{}", .0.len(), lines(.0))]
    Several(Vec<Error>),
}

fn lines(errors: &[Error]) -> String {
    errors.iter().map(|e| format!("  {e}")).collect::<Vec<_>>().join("\n")
}

impl Error {
    /// One error for all of them.
    pub fn several(mut errors: Vec<Error>) -> Error {
        match errors.len() {
            1 => errors.remove(0),
            _ => Error::Several(errors),
        }
    }

    /// An operation that no schedule covers.
    pub fn unsupported(op: &str, loc: &Loc, detail: impl Into<String>) -> Error {
        Error::Unsupported { op: op.to_string(), loc: loc.clone(), detail: detail.into() }
    }
}

impl From<TileError> for Error {
    fn from(error: TileError) -> Error {
        Error::Tile { group: String::new(), error }
    }
}
