//! Errors as a user meets them.

use std::path::PathBuf;

use tongtu_chip::Error as ChipError;
use tongtu_graph::GraphError;
use tongtu_onnx::OnnxError;
use tongtu_plan::{BundleError, CompileError, DeviceError, PlanError};
use tongtu_runtime::{DeviceTensorError, RuntimeError};
use tongtu_tensor::TensorError;
use tongtu_tensor::dim::DimError;

/// Anything that can go wrong, with a stable code ([`Error::code`]) and, where there is one, advice ([`Error::hint`]).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A model file.
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    /// A decoder's configuration.
    #[error(transparent)]
    Llm(#[from] tongtu_llm::LlmError),
    /// A graph, or its evaluation by the interpreter.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// Compilation.
    #[error(transparent)]
    Compile(#[from] tongtu_compile::Error),
    /// A back end.
    #[error(transparent)]
    Backend(#[from] CompileError),
    /// A plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A run.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// A device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A device tensor.
    #[error(transparent)]
    DeviceTensor(#[from] DeviceTensorError),
    /// A chip description.
    #[error(transparent)]
    Chip(#[from] ChipError),
    /// The CPU device.
    #[error(transparent)]
    Cpu(#[from] tongtu_cpu::Error),
    /// A host tensor.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// A file.
    #[error("[A001] {path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's words.
        error: std::io::Error,
    },
    /// A name that is no input of the model.
    #[error("[A002] the model has no input '{name}'; its inputs are {inputs}")]
    UnknownInput {
        /// The name given.
        name: String,
        /// The names there are.
        inputs: String,
    },
    /// An input without a value.
    #[error("[A003] no value for input '{name}': {ty}")]
    MissingInput {
        /// Its name.
        name: String,
        /// Its type.
        ty: String,
    },
    /// An input given twice.
    #[error("[A004] input '{0}' is given twice")]
    DoubleInput(String),
    /// An input and an output that cannot be tied as state.
    #[error("[A010] input '{input}' cannot be state that output '{output}' replaces: {detail}")]
    State {
        /// The input.
        input: String,
        /// The output.
        output: String,
        /// Why.
        detail: String,
    },
    /// This build has no compiler for the chip.
    #[error("[A005] this build cannot compile for {0}")]
    NoCompiler(String),
    /// There is no such device on this machine, and no simulation of it.
    #[error("[A011] this machine cannot run what is compiled for {0}")]
    NoDevice(String),
    /// A machine that an agent or an emulator is, or should be.
    #[error("[A012] {0}")]
    Remote(String),
    /// A model of which parts run on the host, where that was not allowed.
    #[error("[A014] the chip does not take parts of the model, which were compiled for the host: {0}")]
    Hosted(String),
    /// A model without weights, where they are needed.
    #[error(
        "[A013] the weights of {model} are not here, such as those of {place}: it can be checked, not run"
    )]
    NoWeights {
        /// The model.
        model: String,
        /// Where the first is used.
        place: String,
    },
    /// An output that is not there.
    #[error("[A006] the model has no output '{name}'; its outputs are {outputs}")]
    UnknownOutput {
        /// The name asked for.
        name: String,
        /// The names there are.
        outputs: String,
    },
    /// A value that is no tensor of numbers where one is wanted.
    #[error("[A007] '{0}' is not a tensor of numbers")]
    NotATensor(String),
}

impl Error {
    /// An I/O error of a file.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |error| Error::Io { path, error }
    }

    /// The stable code: a letter and three digits; empty for errors of the system.
    pub fn code(&self) -> String {
        code_of(&self.to_string()).to_string()
    }

    /// Whether two sizes differ of which one is 1: a model compiled for that size may run.
    pub fn is_size_of_one(&self) -> bool {
        matches!(
            self,
            Error::Runtime(
                RuntimeError::Guard { lhs_value: 1, .. } | RuntimeError::Guard { rhs_value: 1, .. }
            )
        )
    }

    /// What to do: for this very error where that can be said, else what the [catalogue](crate::catalogue) says of its code.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            e if e.is_size_of_one() => {
                "a size of 1 is repeated only if it is known when the model is compiled: `--fix NAME=1`"
            }
            Error::Runtime(RuntimeError::Dim { error: DimError::TooComplex, .. }) => {
                "fix sizes of the inputs when the model is compiled: `--fix NAME=SIZE`"
            }
            Error::Runtime(RuntimeError::Device { error, .. }) => {
                crate::catalogue::find(code_of(&error.to_string()))?.fix
            }
            Error::Compile(e) => match refusal(e) {
                Some(error) => crate::catalogue::find(code_of(&error.to_string()))?.fix,
                None => crate::catalogue::find(code_of(&e.to_string()))?.fix,
            },
            e => crate::catalogue::find(&e.code())?.fix,
        })
    }
}

/// What a back end said, where that is what went wrong.
fn refusal(error: &tongtu_compile::Error) -> Option<&CompileError> {
    match error {
        tongtu_compile::Error::Backend { error, .. } => Some(error),
        tongtu_compile::Error::Several(all) => all.iter().find_map(refusal),
        _ => None,
    }
}

/// The code at the start of a message: `[X001] …` or `X001: …`.
pub fn code_of(message: &str) -> &str {
    let text = message.strip_prefix('[').unwrap_or(message);
    let is_code = |c: &str| {
        let mut chars = c.chars();
        chars.next().is_some_and(|c| c.is_ascii_uppercase()) && chars.all(|c| c.is_ascii_digit())
    };
    match text.get(..4) {
        Some(code) if is_code(code) => code,
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_found() {
        assert_eq!(Error::DoubleInput("x".into()).code(), "A004");
        assert_eq!(Error::from(OnnxError::Invalid("x".into())).code(), "O004");
        assert_eq!(Error::from(PlanError { place: "x".into(), detail: "y".into() }).code(), "P001");
        assert_eq!(code_of("no code"), "");
        assert_eq!(code_of("é"), "");
    }
}
