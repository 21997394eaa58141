//! The two halves of a back end: a pure compiler and a device. Ten required methods together.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tongtu_chip::Chip;
use tongtu_tile::{Module, Op, Ty};

/// Whether a chip runs an instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Support {
    /// As it is.
    Native,
    /// After the shared rewrite of this name.
    Emulated(&'static str),
    /// Not at all, and why.
    No(String),
}

/// Why a module was not compiled. Each kind has a stable code.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CompileError {
    /// An instruction that the chip lacks.
    #[error("[B001] kernel '{kernel}': {instruction} is not supported on {chip}: {reason}")]
    Unsupported {
        /// Kernel.
        kernel: String,
        /// Instruction with its types.
        instruction: String,
        /// Chip.
        chip: String,
        /// Why.
        reason: String,
    },
    /// A tile or its working set does not fit; the schedule should choose smaller tiles.
    #[error("[B002] kernel '{kernel}': {level} needs {need} bytes, {limit} are there")]
    TooLarge {
        /// Kernel.
        kernel: String,
        /// Storage level.
        level: String,
        /// Bytes needed.
        need: u64,
        /// Bytes there are.
        limit: u64,
    },
    /// A tool or library that compiles for the chip is not installed.
    #[error("[B003] {tool} is not available: {detail}")]
    Toolchain {
        /// Tool.
        tool: String,
        /// What to install.
        detail: String,
    },
    /// The back end failed on a verified module: a defect, with the tool's own words.
    #[error("[B004] kernel '{kernel}': {detail}")]
    Internal {
        /// Kernel.
        kernel: String,
        /// What happened.
        detail: String,
    },
}

/// One kernel of an artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The kernel's name.
    pub name: String,
    /// Scratch bytes each concurrently running instance needs.
    pub scratch: u64,
    /// Number of buffer parameters.
    pub buffers: usize,
    /// Number of scalar parameters.
    pub scalars: usize,
}

/// A compiled module: bytes that only its back end reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// Name of the back end that made it and loads it.
    pub backend: String,
    /// Its kernels.
    pub entries: Vec<Entry>,
    /// The loadable bytes.
    #[serde(skip, default = "no_bytes")]
    pub bytes: Arc<[u8]>,
}

fn no_bytes() -> Arc<[u8]> {
    Arc::from(&[][..])
}

/// The compile half: pure, needs no device, cross-compiles.
pub trait Compiler: Send + Sync {
    /// Name of the back end; artifacts carry it.
    fn name(&self) -> &str;
    /// Whether an instruction with these operand and result types runs on the chip.
    fn supports(&self, op: &Op, operands: &[Ty], results: &[Ty], chip: &Chip) -> Support;
    /// A verified module to a loadable artifact. Same input, same bytes.
    fn compile(&self, module: &Module, chip: &Chip) -> Result<Artifact, CompileError>;
}

/// Why a device refused or failed. Each kind has a stable code.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DeviceError {
    /// Out of memory.
    #[error("[V001] {device}: no memory for {bytes} bytes")]
    Memory {
        /// Device.
        device: String,
        /// Bytes asked for.
        bytes: u64,
    },
    /// An artifact is corrupt, of another back end or needs features that the device lacks.
    #[error("[V002] {device}: artifact refused: {detail}")]
    Artifact {
        /// Device.
        device: String,
        /// Why.
        detail: String,
    },
    /// A launch does not fit its kernel.
    #[error("[V003] {device}: launch of '{kernel}': {detail}")]
    Launch {
        /// Device.
        device: String,
        /// Kernel.
        kernel: String,
        /// Why.
        detail: String,
    },
    /// The device is gone or its driver failed.
    #[error("[V004] {device}: {detail}")]
    Lost {
        /// Device.
        device: String,
        /// The driver's words.
        detail: String,
    },
}

/// Memory of a device. `address` means something to that device only (on a CPU it is the pointer).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mem {
    /// Device address.
    pub address: u64,
    /// Bytes.
    pub bytes: u64,
}

/// A point in a device's queue. `Event::DONE` has always passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Event(pub u64);

impl Event {
    /// An event that has passed.
    pub const DONE: Event = Event(0);
}

/// An argument of a launch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LaunchArg {
    /// Memory with its length in elements.
    Buffer(Mem, u64),
    /// A scalar's bits, zero-extended.
    Scalar(u64),
}

/// The run half: one device. Launches and copies may be asynchronous; those of one device take effect in the order they were
/// given, and a device that answers with [`Event::DONE`] has done the work when the call returns. Sizes and addresses given here
/// must be of live memory of this device (or the host's, for copies in and out, whose addresses a device tells from its own).
pub trait Device: Send + Sync {
    /// Name for people, and for errors.
    fn name(&self) -> &str;
    /// Memory, aligned to 64 bytes, contents unspecified.
    fn alloc(&self, bytes: u64) -> Result<Mem, DeviceError>;
    /// Gives memory back; work that uses it has been waited for.
    fn free(&self, mem: Mem);
    /// Makes an artifact's kernels launchable; gives a handle. Handles live as long as the device.
    fn load(&self, artifact: &Artifact) -> Result<u64, DeviceError>;
    /// Runs a kernel over a grid after `wait` has passed (events of this device).
    fn launch(
        &self,
        module: u64,
        entry: usize,
        grid: [i64; 3],
        args: &[LaunchArg],
        wait: Event,
    ) -> Result<Event, DeviceError>;
    /// Copies bytes between this device's memory, or between it and host memory given as a `Mem` with the pointer as address.
    fn copy(&self, dst: Mem, src: Mem, wait: Event) -> Result<Event, DeviceError>;
    /// Returns when an event has passed, with the error of any work before it.
    fn wait(&self, event: Event) -> Result<(), DeviceError>;
    /// Whether this device's addresses are the host's pointers, so that host memory can be given to its launches as it is.
    fn host_memory(&self) -> bool {
        false
    }
}
