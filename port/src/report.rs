//! The report: what every page and the JSON form are made from.

use serde::{Deserialize, Serialize};

/// The version of the JSON form. Fields may be added under the same number; it changes when one is removed or means something else.
pub const VERSION: u32 = 1;

/// What was found out about moving one model to one chip or several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The version of this form: [`VERSION`].
    pub version: u32,
    /// The program that wrote it, with its version.
    pub producer: String,
    /// The model's name.
    pub model: String,
    /// How deep it was looked into.
    pub depth: Depth,
    /// The sizes that figures are for.
    pub sizes: Vec<Size>,
    /// The chips, in the order asked for.
    pub chips: Vec<ChipReport>,
    /// The worst verdict of all chips.
    pub verdict: Verdict,
    /// The exit code of the command: 0 works, 1 works with reservations, 2 does not work.
    pub exit: u8,
}

/// How deep a report looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Depth {
    /// From descriptions alone.
    Check,
    /// Compiled, run and compared with the reference.
    Prove,
    /// The same on a real device, and measured.
    Measure,
}

/// A size that the model leaves open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Its name.
    pub name: String,
    /// What it is taken to be.
    pub size: i64,
    /// Whether the user gave it.
    pub given: bool,
}

/// Whether the model works on a chip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It works.
    Works,
    /// It works, with the reservations that the findings name.
    Reservations,
    /// It does not.
    Fails,
}

impl Verdict {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Verdict::Works => "works",
            Verdict::Reservations => "works with reservations",
            Verdict::Fails => "does not work",
        }
    }
    /// The exit code that says so.
    pub fn exit(self) -> u8 {
        self as u8
    }
}

/// One chip.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChipReport {
    /// The chip's name.
    pub chip: String,
    /// What it is, for people.
    pub title: String,
    /// Whether the model works there.
    pub verdict: Verdict,
    /// What the user should know, failures first.
    pub findings: Vec<Finding>,
    /// The operations of the user's model.
    pub ops: Vec<OpReport>,
    /// The kernels that it becomes, in the order in which they run.
    pub kernels: Vec<KernelReport>,
    /// What does not run on the chip.
    pub placement: Vec<Placement>,
    /// Memory.
    pub memory: MemoryReport,
    /// The limits of the chip that times are predicted from.
    pub limits: Limits,
    /// All kernels together.
    pub total: Total,
    /// What running it showed.
    pub proof: Option<Proof>,
}

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weight {
    /// The model does not work.
    Failure,
    /// It works, but.
    Reservation,
    /// Good to know.
    Note,
}

/// Something the user should know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// Its stable code, which `docs/errors.md` explains.
    pub code: String,
    /// How much it matters.
    pub weight: Weight,
    /// What was found.
    pub what: String,
    /// Where in the user's model, or empty.
    pub at: String,
    /// What to do, or empty.
    pub fix: String,
}

/// How an operation gets to a chip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Support {
    /// Nothing of it is left to run: it was computed when compiling, or only renames memory.
    Folded,
    /// The chip has every instruction.
    Native,
    /// Some instructions are made of others by the shared rules.
    Composed,
    /// Elements are held in another type than they are computed in.
    Emulated,
    /// On the host: strings and sequences are there by definition, and what the chip does not take by `--allow-host`.
    Host,
    /// The chip cannot.
    Unsupported,
}

impl Support {
    /// All of them, best first.
    pub const ALL: [Support; 6] = [
        Support::Native,
        Support::Composed,
        Support::Emulated,
        Support::Host,
        Support::Folded,
        Support::Unsupported,
    ];
    /// The name in JSON and text.
    pub fn name(self) -> &'static str {
        match self {
            Support::Folded => "folded",
            Support::Native => "native",
            Support::Composed => "composed",
            Support::Emulated => "emulated",
            Support::Host => "host",
            Support::Unsupported => "unsupported",
        }
    }
}

/// An operation of the user's model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpReport {
    /// Its name in the model.
    pub op: String,
    /// Where it is.
    pub at: String,
    /// How it gets to the chip.
    pub support: Support,
    /// What is composed, emulated or not supported, each with its reason.
    pub how: Vec<String>,
    /// The kernels that it is part of: positions in [`ChipReport::kernels`].
    pub kernels: Vec<usize>,
}

/// What a kernel's time is bound by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// Arithmetic.
    Compute,
    /// Bytes moved.
    Memory,
    /// The chip file lacks the figures.
    Unknown,
}

/// A kernel, or the few that compute one part of the model together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelReport {
    /// Its name.
    pub name: String,
    /// Where in the user's model.
    pub at: String,
    /// How it gets to the chip: the worst of its instructions.
    pub support: Support,
    /// Launches that compute it.
    pub launches: usize,
    /// Whether it is in a loop or a branch; it counts once.
    pub inside: bool,
    /// Operations, a multiply-add being two.
    pub flops: f64,
    /// Bytes that must be read and written at least.
    pub bytes: f64,
    /// The unit that its arithmetic is counted against: `vector`, or a matrix unit.
    pub unit: String,
    /// What bounds its time.
    pub bound: Bound,
    /// Microseconds that it takes at least, by the chip's limits.
    pub limit_us: Option<f64>,
    /// Microseconds that it took.
    pub measured_us: Option<f64>,
    /// Its use of the storage that programs fill, an estimate from its tiles.
    pub scratch: Option<ScratchUse>,
    /// How its results compared with the reference.
    pub verified: Option<Verified>,
}

/// Use of a scratchpad.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScratchUse {
    /// The storage level.
    pub level: String,
    /// Bytes of tiles that are live at once.
    pub need: u64,
    /// Bytes there are.
    pub limit: u64,
}

/// Results of one kernel held against the reference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verified {
    /// Elements compared.
    pub checked: usize,
    /// Elements there are.
    pub elements: usize,
    /// Elements outside the error that the contract allows.
    pub outside: usize,
    /// Greatest error over what the contract allows; at most 1 where all is right.
    pub worst_ratio: f64,
    /// Greatest error.
    pub worst_error: f64,
    /// Why it could not be compared.
    pub error: Option<String>,
}

/// A part of the model that does not run on the chip.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Placement {
    /// The operation or kernel.
    pub op: String,
    /// Where in the model.
    pub at: String,
    /// Where it runs.
    pub place: String,
    /// Why.
    pub why: String,
    /// Bytes copied to the host and back in one run.
    pub bytes: f64,
}

/// What a run needs of memory, and what the chip has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MemoryReport {
    /// Bytes of weights as the kernels want them.
    pub weights: u64,
    /// Bytes of inputs.
    pub inputs: u64,
    /// Bytes of the arena that holds values of known size between kernels, and results.
    pub activations: u64,
    /// Values whose size is known only when the model runs; they come on top.
    pub unknown: usize,
    /// The levels of the chip.
    pub levels: Vec<LevelUse>,
    /// Steps of the plan.
    pub steps: usize,
    /// The largest values of the arena.
    pub map: Vec<Place>,
}

/// One storage level.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LevelUse {
    /// Its name.
    pub level: String,
    /// What it is: `registers`, `cache`, `scratchpad`, `memory`.
    pub kind: String,
    /// Bytes there are (of all cores, for caches of one core), where the chip file says.
    pub capacity: Option<u64>,
    /// Bytes that are wanted.
    pub need: u64,
    /// What is wanted there.
    pub what: String,
    /// Whether it fits; for caches, whether the model runs from there.
    pub fits: Option<bool>,
}

/// A value's place in the arena.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Place {
    /// Its name.
    pub name: String,
    /// Offset in bytes.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
    /// The step that makes it.
    pub first: usize,
    /// The last step that needs it.
    pub last: usize,
}

/// What times are predicted from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// f32 operations a second of the vector units of all cores.
    pub vector_f32: Option<f64>,
    /// Operations a second of each matrix unit of all cores.
    pub matrix: Vec<(String, f64)>,
    /// The level that weights and activations are read from.
    pub level: String,
    /// Bytes a second from there.
    pub bandwidth: Option<f64>,
    /// Where the figures come from.
    pub source: String,
}

/// All kernels together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Total {
    /// Operations.
    pub flops: f64,
    /// Bytes moved at least.
    pub bytes: f64,
    /// Microseconds at least; `None` where figures are missing.
    pub limit_us: Option<f64>,
    /// Share of that time bound by arithmetic.
    pub compute_share: Option<f64>,
    /// Microseconds measured.
    pub measured_us: Option<f64>,
}

/// What a run showed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Proof {
    /// How it was run: on a device, in a simulation.
    pub how: String,
    /// Kernels compared.
    pub kernels: usize,
    /// Kernels outside their contract.
    pub failed: usize,
    /// Elements compared.
    pub checked: usize,
    /// Elements there are; more than were compared where they were sampled.
    pub elements: usize,
    /// Greatest error over what a contract allows.
    pub worst_ratio: f64,
    /// The first operation that differs.
    pub diverges: Option<Divergence>,
    /// The model's outputs against the reference interpreter.
    pub quality: Vec<Quality>,
    /// Why outputs were not compared.
    pub quality_note: String,
    /// Milliseconds that compiling took.
    pub compile_ms: f64,
}

/// The first operation that differs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    /// The operation, or the kernel where it could not be narrowed down.
    pub op: String,
    /// Where in the user's model.
    pub at: String,
    /// The kernel.
    pub kernel: String,
    /// Where in its result.
    pub index: Vec<usize>,
    /// The reference's value.
    pub expected: f64,
    /// The chip's value.
    pub actual: f64,
    /// The error that the contract allows.
    pub allowed: f64,
    /// What is at fault, in words.
    pub fault: String,
}

/// One output of the model against the reference interpreter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// The output.
    pub output: String,
    /// Elements.
    pub elements: usize,
    /// Elements that are not numbers in the reference: they agree where they are none on the chip either, and say little.
    #[serde(default)]
    pub not_numbers: usize,
    /// Greatest absolute error; the greatest number there is where only one of the two is a number.
    pub max_error: f64,
    /// Mean absolute error.
    pub mean_error: f64,
    /// Greatest absolute value of the reference.
    pub scale: f64,
    /// Cosine of the angle between both.
    pub cosine: f64,
    /// Share of rows (along the last dim) whose greatest element is at the same place: for tokens, the rate of the same top token.
    pub top1: Option<f64>,
    /// Where the rows are scores or probabilities of many classes, such as the tokens of a vocabulary (rank 2 or more, at least 256): mean
    /// Kullback-Leibler divergence of the chip's distributions from the reference's, in nats.
    pub kl_mean: Option<f64>,
    /// The greatest of them.
    pub kl_max: Option<f64>,
}

impl ChipReport {
    /// Sorts the findings and decides the verdict.
    pub(crate) fn settle(mut self) -> ChipReport {
        self.findings.sort_by_key(|f| f.weight);
        self.verdict = match self.findings.first().map(|f| f.weight) {
            Some(Weight::Failure) => Verdict::Fails,
            Some(Weight::Reservation) => Verdict::Reservations,
            _ => Verdict::Works,
        };
        self
    }
    /// How many operations get to the chip in each way.
    pub fn counts(&self) -> Vec<(Support, usize)> {
        let count = |s| (s, self.ops.iter().filter(|o| o.support == s).count());
        Support::ALL.into_iter().map(count).filter(|c| c.1 > 0).collect()
    }
}

impl Report {
    /// A report on chips.
    pub fn new(model: &str, depth: Depth, sizes: Vec<Size>, chips: Vec<ChipReport>) -> Report {
        let verdict = chips.iter().map(|c| c.verdict).max().unwrap_or(Verdict::Works);
        Report {
            version: VERSION,
            producer: format!("tongtu {}", env!("CARGO_PKG_VERSION")),
            model: model.to_string(),
            depth,
            sizes,
            chips,
            verdict,
            exit: verdict.exit(),
        }
    }
}
