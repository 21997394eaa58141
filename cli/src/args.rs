//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

const EXIT_CODES: &str = "Exit codes:
  0  success
  1  results differ: a data set, a verification or a list of tests does not hold
  2  the command line is wrong
  3  a model, file or device cannot be used; the error has a code
  4  a defect of Tongtu itself";

/// Run AI models on the chip at hand.
#[derive(Parser, Debug)]
#[command(name = "tongtu", version, about, after_help = EXIT_CODES, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    /// Print reports, and errors, as JSON.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run a model.
    Run(RunArgs),
    /// Measure a model: latency, first and cached start, memory.
    Bench(BenchArgs),
    /// Show what a model is made of.
    Inspect(InspectArgs),
    /// Compile a model to a bundle on disk.
    Compile(CompileArgs),
    /// Compare every kernel of a model with the reference interpreter.
    Verify(VerifyArgs),
    /// Measure every kernel of a model.
    Profile(ProfileArgs),
    /// Say what moving a model to other chips costs, and prove that it works there.
    Port(PortArgs),
    /// Test a chip against the instruction set, or run another suite of tests.
    Conform(ConformCommand),
    /// List the chips that can be compiled for, or show one.
    Chips(ChipsArgs),
    /// List the devices of this machine.
    Devices,
    /// Check what is installed and measure this machine.
    Doctor(DoctorArgs),
    /// Install a vendor's compiler.
    Toolchain(ToolchainArgs),
    /// Print shell completions.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write the pages of all commands to a folder.
    Man {
        /// The folder.
        #[arg(long)]
        dir: Option<PathBuf>,
    },
    /// Runs tests named on standard input.
    #[command(hide = true)]
    ConformWorker(WorkerArgs),
    /// Runs programs given on standard input.
    #[command(hide = true)]
    ConformKitWorker(KitWorkerArgs),
    /// Measures in a process of its own.
    #[command(hide = true)]
    BenchChild(BenchArgs),
}

/// Sizes of named dims.
#[derive(Clone, Debug, Default)]
pub struct Dims(pub Vec<(String, i64)>);

fn parse_dim(text: &str) -> Result<(String, i64), String> {
    let (name, size) = text.split_once('=').ok_or("write NAME=SIZE")?;
    let size: i64 = size.parse().map_err(|_| format!("'{size}' is no size"))?;
    if size < 0 { Err("a size is not negative".to_string()) } else { Ok((name.to_string(), size)) }
}

fn parse_tie(text: &str) -> Result<(String, String), String> {
    let (input, output) = text.split_once('=').ok_or("write INPUT=OUTPUT")?;
    Ok((input.to_string(), output.to_string()))
}

/// What products are computed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    /// As the model says.
    F32,
    /// Operands rounded to bf16, sums in f32.
    Bf16,
}

/// How a model is loaded and compiled.
#[derive(Args, Clone, Debug)]
pub struct ModelArgs {
    /// The model: an ONNX file, or a bundle made by `tongtu compile`.
    pub model: PathBuf,
    /// Threads to run with; all by default.
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    pub threads: usize,
    /// Fix a dim of the inputs at compile time: NAME=SIZE.
    #[arg(long, value_parser = parse_dim, value_name = "NAME=SIZE")]
    pub fix: Vec<(String, i64)>,
    /// Tie an input to the output that is its new contents, so that it is updated in place: INPUT=OUTPUT, as in
    /// 'past.*=present.*'.
    #[arg(long, value_parser = parse_tie, value_name = "INPUT=OUTPUT")]
    pub state: Vec<(String, String)>,
    /// What f32 products are computed in; bf16 rounds their operands (of convolutions where the weights are constants), and results
    /// differ.
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    pub precision: Precision,
    /// Ask for the same bits at any number of threads. They always are the same, at no cost.
    #[arg(long)]
    pub deterministic: bool,
    /// Run on a simulation or emulation of another chip, such as ascend-910b or riscv64-v256: slow, to prove what is compiled for it.
    #[arg(long, value_name = "CHIP")]
    pub simulate: Option<String>,
    /// Run on another machine: `agent:COMMAND` (`agent:ssh board ./agent-riscv64`), `agent:tcp:HOST:PORT`, `agent:unix:PATH`, or
    /// `emulator:CHIP` for a CPU that QEMU emulates here.
    #[arg(long, value_name = "MACHINE", conflicts_with = "simulate")]
    pub on: Option<String>,
    /// Let what the chip does not take run on the host, and list it with the bytes that are copied.
    #[arg(long)]
    pub allow_host: bool,
    /// Compile everything anew and keep nothing.
    #[arg(long)]
    pub no_cache: bool,
    /// Keep compiled kernels, but not the whole compiled model with its weights, for the next start.
    #[arg(long)]
    pub no_model_cache: bool,
}

/// Where inputs come from.
#[derive(Args, Clone, Debug)]
pub struct InputArgs {
    /// An input: NAME=FILE (.npy, .npz, .pb) or NAME=random:1x3x224x224; or FILE.npz with arrays by name.
    #[arg(long, short, value_name = "NAME=SOURCE")]
    pub input: Vec<String>,
    /// A folder with input_N.pb (and output_N.pb), as ONNX tests have them.
    #[arg(long, value_name = "DIR", conflicts_with = "input")]
    pub data_set: Option<PathBuf>,
    /// Size of a named dim, for random inputs: NAME=SIZE.
    #[arg(long, short, value_parser = parse_dim, value_name = "NAME=SIZE")]
    pub dim: Vec<(String, i64)>,
    /// Seed of random inputs.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

impl InputArgs {
    /// Sizes given.
    pub fn dims(&self) -> Dims {
        Dims(self.dim.clone())
    }
}

/// Files of outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// NumPy.
    Npy,
    /// ONNX `TensorProto`.
    Pb,
}

/// Arguments of `run`.
#[derive(Args, Debug)]
pub struct RunArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub inputs: InputArgs,
    /// Folder to write the outputs to, one file each.
    #[arg(long, short)]
    pub output: Option<PathBuf>,
    /// Format of the output files.
    #[arg(long, value_enum, default_value = "npy")]
    pub output_format: OutputFormat,
    /// Use the reference interpreter: slow, and by definition right.
    #[arg(long)]
    pub interpret: bool,
    /// Relative tolerance when comparing with a data set.
    #[arg(long)]
    pub rtol: Option<f64>,
    /// Absolute tolerance when comparing with a data set.
    #[arg(long)]
    pub atol: Option<f64>,
}

/// Arguments of `bench`.
#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub inputs: InputArgs,
    /// Runs that are measured.
    #[arg(long, default_value_t = 20)]
    pub runs: usize,
    /// Runs before that.
    #[arg(long, default_value_t = 3)]
    pub warmup: usize,
    /// The folder of the caches of the measurement.
    #[arg(long, hide = true)]
    pub cache_dir: Option<PathBuf>,
    /// Measure the first run, which compiles.
    #[arg(long, hide = true)]
    pub first: bool,
}

/// Arguments of `inspect`.
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// The model: an ONNX file, or a bundle.
    pub model: PathBuf,
    /// Size of a named dim: NAME=SIZE.
    #[arg(long, short, value_parser = parse_dim, value_name = "NAME=SIZE")]
    pub dim: Vec<(String, i64)>,
    /// Print the graph.
    #[arg(long)]
    pub graph: bool,
    /// Print the kernels that the model is compiled to.
    #[arg(long)]
    pub kernels: bool,
}

/// Arguments of `compile`.
#[derive(Args, Debug)]
pub struct CompileArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The bundle to write.
    #[arg(long, short)]
    pub output: PathBuf,
    /// The chip to compile for.
    #[arg(long, default_value = "host")]
    pub chip: String,
}

/// Arguments of `verify`.
#[derive(Args, Debug)]
pub struct VerifyArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub inputs: InputArgs,
    /// Elements compared of each result of each kernel; all if it has no more.
    #[arg(long, default_value_t = 256)]
    pub elements: usize,
    /// Show every kernel, not only those that differ.
    #[arg(long)]
    pub all: bool,
}

/// Arguments of `profile`.
#[derive(Args, Debug)]
pub struct ProfileArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub inputs: InputArgs,
    /// Write a trace that Perfetto (ui.perfetto.dev) opens.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Runs that are measured; each step counts with its best time.
    #[arg(long, default_value_t = 5)]
    pub runs: usize,
    /// Kernels shown.
    #[arg(long, default_value_t = 25)]
    pub top: usize,
    /// Do not measure this machine's peaks.
    #[arg(long)]
    pub no_peak: bool,
}

const PORT_EXIT_CODES: &str = "Exit codes:
  0  the model works on every chip
  1  it works, with the reservations that are named
  2  it does not work on some chip
  3  an error: the model or a chip cannot be read, the command line is wrong";

/// Arguments of `port`.
#[derive(Args, Debug)]
#[command(after_help = PORT_EXIT_CODES)]
pub struct PortArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub inputs: InputArgs,
    /// The chips, as `tongtu chips` lists them, separated by commas.
    #[arg(long, value_name = "CHIP[,CHIP]", value_delimiter = ',', required = true)]
    pub to: Vec<String>,
    /// Only look: no device is needed, no weights either, and nothing is compiled or run.
    #[arg(long, conflicts_with = "measure")]
    pub check: bool,
    /// Measure every kernel, where the chip is this machine or the one that --on names.
    #[arg(long)]
    pub measure: bool,
    /// Elements compared of each result of each kernel; all if it has no more.
    #[arg(long, default_value_t = 256)]
    pub elements: usize,
    /// Write the report as one page of HTML.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// The conformance kit of the instruction set, or a suite by name.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct ConformCommand {
    /// Another suite.
    #[command(subcommand)]
    pub suite: Option<Suite>,
    #[command(flatten)]
    pub chip: ConformChipArgs,
}

/// Arguments of `conform` without a suite.
#[derive(Args, Debug)]
pub struct ConformChipArgs {
    /// The chip.
    #[arg(long, default_value = "host")]
    pub chip: String,
    /// Only cases whose program's name contains this.
    #[arg(long)]
    pub filter: Option<String>,
    /// One part of so many, `2/8`: every eighth program from the second on.
    #[arg(long, default_value = "1/1", value_parser = part)]
    pub part: (usize, usize),
    /// Processes that compile and run at a time (0: as many as the machine has processors).
    #[arg(long, default_value_t = 0)]
    pub jobs: usize,
    /// Seconds that a few programs may take before they are tried one by one, and then each of them.
    #[arg(long, default_value_t = 120)]
    pub timeout: u64,
    /// In place of the kit so many random programs, until one is wrong; that one is made small.
    #[arg(long, value_name = "PROGRAMS")]
    pub random: Option<usize>,
    /// Which sequence of random programs.
    #[arg(long, default_value_t = 1, requires = "random")]
    pub seed: u64,
    /// The list of what is expected not to pass, in place of the built-in one.
    #[arg(long)]
    pub list: Option<PathBuf>,
    /// Write the list that would be needed; what it says of programs that did not run stays.
    #[arg(long, requires = "list")]
    pub update: bool,
    /// Write the report as one page of HTML.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Keep each verdict in this file, and take from it those that this very program gave for the chip before.
    #[arg(long, value_name = "FILE", conflicts_with = "random")]
    pub resume: Option<PathBuf>,
}

/// `2/8` as numbers.
fn part(text: &str) -> Result<(usize, usize), String> {
    let numbers = text.split_once('/').and_then(|(k, n)| Some((k.parse().ok()?, n.parse().ok()?)));
    numbers
        .filter(|(k, n)| (1..=*n).contains(k))
        .ok_or_else(|| "a part is K/N with K from 1 to N".to_string())
}

/// Arguments of a worker of `conform`.
#[derive(Args, Debug)]
pub struct KitWorkerArgs {
    /// The chip.
    #[arg(long, default_value = "host")]
    pub chip: String,
}

/// Suites of tests.
#[derive(Subcommand, Debug)]
pub enum Suite {
    /// ONNX's own tests, as `conformance/onnx/dump.py` writes them.
    Onnx(ConformArgs),
}

/// Arguments of `conform`.
#[derive(Args, Debug)]
pub struct ConformArgs {
    /// The folder: tests are the folders below it that hold a model.onnx.
    pub dir: PathBuf,
    /// The list of tests that pass; one that is on it and fails is an error.
    #[arg(long)]
    pub list: Option<PathBuf>,
    /// Add tests that pass to the list.
    #[arg(long, requires = "list")]
    pub update: bool,
    /// Only tests whose name contains this.
    #[arg(long)]
    pub filter: Option<String>,
    /// Only tests on the list.
    #[arg(long, requires = "list")]
    pub listed: bool,
    /// Processes at a time; as many as the machine has threads by default.
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    pub jobs: usize,
    /// Seconds that one test may take.
    #[arg(long, default_value_t = 60)]
    pub timeout: u64,
    /// Use the reference interpreter.
    #[arg(long)]
    pub interpret: bool,
    /// Show every test that does not pass.
    #[arg(long)]
    pub failures: bool,
}

/// Arguments of a worker.
#[derive(Args, Debug)]
pub struct WorkerArgs {
    /// Use the reference interpreter.
    #[arg(long)]
    pub interpret: bool,
}

/// Arguments of `chips`.
#[derive(Args, Debug)]
pub struct ChipsArgs {
    #[command(subcommand)]
    pub action: Option<ChipsAction>,
}

/// What to do with chips.
#[derive(Subcommand, Debug)]
pub enum ChipsAction {
    /// Show everything known of a chip.
    Show {
        /// Its name; `host` is this machine.
        chip: String,
    },
}

/// Arguments of `toolchain`.
#[derive(Args, Debug)]
pub struct ToolchainArgs {
    #[command(subcommand)]
    pub action: ToolchainAction,
}

/// What to do with vendors' compilers.
#[derive(Subcommand, Debug)]
pub enum ToolchainAction {
    /// Install one at its pinned version.
    Install {
        /// Which.
        name: ToolchainName,
    },
}

/// Vendors' compilers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ToolchainName {
    /// `bishengir-compile`, of the Python package `ascendnpu-ir`.
    Ascend,
}

/// Arguments of `doctor`.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// Do not measure.
    #[arg(long)]
    pub quick: bool,
}
