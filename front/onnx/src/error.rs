//! What can be wrong with a model.

use tongtu_graph::GraphError;
use tongtu_tensor::TensorError;

/// One thing in a model that can't be taken as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issue {
    /// The operator with its domain and version, such as `Conv (opset 22)`.
    pub op: String,
    /// Where it is: the path of node names.
    pub node: String,
    /// What is the matter.
    pub why: String,
}

impl std::fmt::Display for Issue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}: {}", self.node, self.op, self.why)
    }
}

fn list(issues: &[Issue]) -> String {
    issues.iter().map(|i| format!("\n  {i}")).collect()
}

/// An error of this crate; each has a stable code, the first word of its message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OnnxError {
    /// The operating system refused.
    #[error("O001: {path}: {detail}")]
    Io {
        /// The file.
        path: String,
        /// What it said.
        detail: String,
    },
    /// Not protobuf, or cut short or damaged.
    #[error("O002: not a valid ONNX file: {detail} (at byte {offset})")]
    Malformed {
        /// Offset in the file.
        offset: usize,
        /// What is wrong there.
        detail: String,
    },
    /// Larger or deeper than any real model.
    #[error("O003: refused: {what}")]
    Limit {
        /// What is beyond which limit.
        what: String,
    },
    /// Readable, but no model: a name without definition, a cycle, a missing part.
    #[error("O004: not a valid model: {0}")]
    Invalid(String),
    /// A tensor whose parts contradict each other.
    #[error("O005: tensor '{name}': {detail}")]
    Tensor {
        /// Its name.
        name: String,
        /// What is wrong.
        detail: String,
    },
    /// A tensor kept in another file that is missing, too short or outside the model's folder.
    #[error("O006: external data of tensor '{name}': {detail}")]
    External {
        /// The tensor's name.
        name: String,
        /// What is wrong.
        detail: String,
    },
    /// Operations, or uses of them, that are not supported; all of the model's.
    #[error("O007: {} not supported:{}", if .0.len() == 1 { "1 node is".to_string() } else { format!("{} nodes are", .0.len()) }, list(.0))]
    Unsupported(Vec<Issue>),
    /// A node that breaks the rules of its operator.
    #[error("O008: {0}")]
    Node(Issue),
    /// Several nodes that can't be taken.
    #[error("O009: {} nodes can't be taken:{}", .0.len(), list(.0))]
    Nodes(Vec<Issue>),
    /// A dim override that names no dim of the model's inputs.
    #[error("O010: the model's inputs have no dim called '{name}'; they have: {have}")]
    UnknownDim {
        /// The name given.
        name: String,
        /// The names there are.
        have: String,
    },
    /// The tensor graph refuses an operation.
    #[error("O011: {0}")]
    Graph(#[from] GraphError),
    /// A host tensor can't be made.
    #[error("O012: {0}")]
    Host(#[from] TensorError),
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, OnnxError>;
