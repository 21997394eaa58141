//! What can go wrong in this back end.

/// Why a kernel could not be compiled, loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The chip description is not one this back end compiles for.
    #[error("[E001] the CPU back end cannot compile for {chip}: {problem}")]
    Target {
        /// The chip's name.
        chip: String,
        /// What is missing.
        problem: String,
    },
    /// LLVM refused a module. This is a fault of this program, not of its input.
    #[error("[E002] LLVM, {stage}: {message}")]
    Llvm {
        /// What LLVM was doing.
        stage: &'static str,
        /// What LLVM says.
        message: String,
    },
    /// The machine code needs something from outside itself.
    #[error("[E003] kernel code calls `{0}`, which is outside it")]
    External(String),
    /// The object file that LLVM wrote is not of the expected form.
    #[error("[E004] object file: {0}")]
    Object(String),
    /// The artifact is damaged, or of another version.
    #[error("[E005] CPU artifact: {0}")]
    Artifact(String),
    /// The artifact needs an instruction set feature that this machine lacks.
    #[error("[E006] the kernel needs the processor feature {0}, which this machine does not have")]
    Feature(String),
    /// The artifact is for another architecture.
    #[error("[E011] the kernel is code for {need}; this machine is {have}")]
    Architecture {
        /// The code's architecture.
        need: String,
        /// The machine's.
        have: String,
    },
    /// The artifact is for another vector length.
    #[error(
        "[E012] the kernel is made for vectors of {need} bits, those of this machine have {have}; compile for a chip with its length"
    )]
    VectorLength {
        /// Bits that the code is made for.
        need: u32,
        /// Bits that the machine has; 0 without such vectors.
        have: u32,
    },
    /// There is no kernel of this name in the artifact.
    #[error("[E007] the artifact has no kernel called {0}")]
    NoKernel(String),
    /// A launch does not fit the kernel's signature or limits.
    #[error("[E008] launch of {kernel}: {problem}")]
    Launch {
        /// The kernel's name.
        kernel: String,
        /// What does not fit.
        problem: String,
    },
    /// The operating system refused something.
    #[error("[E009] {what}: {error}")]
    System {
        /// What was asked of it.
        what: &'static str,
        /// What it answered.
        error: std::io::Error,
    },
    /// A function given to the thread pool panicked.
    #[error("[E010] a function run by the thread pool panicked")]
    Panicked,
}

impl Error {
    /// A stable code for this kind of error.
    pub fn code(&self) -> &'static str {
        match self {
            Error::Target { .. } => "E001",
            Error::Llvm { .. } => "E002",
            Error::External(_) => "E003",
            Error::Object(_) => "E004",
            Error::Artifact(_) => "E005",
            Error::Feature(_) => "E006",
            Error::NoKernel(_) => "E007",
            Error::Architecture { .. } => "E011",
            Error::VectorLength { .. } => "E012",
            Error::Launch { .. } => "E008",
            Error::System { .. } => "E009",
            Error::Panicked => "E010",
        }
    }
}
