//! The description and its TOML form.

use serde::{Deserialize, Serialize};

/// Why a chip description was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is not TOML of the expected form.
    #[error("[F001] chip file: {0}")]
    Syntax(#[from] toml::de::Error),
    /// No built-in chip has this name.
    #[error("[F002] no chip is called {name}; known: {known}")]
    Unknown {
        /// The name asked for.
        name: String,
        /// The names that exist.
        known: String,
    },
    /// A number has no sensible meaning.
    #[error("[F003] chip {chip}: {field} {problem}")]
    Value {
        /// The chip's name.
        chip: String,
        /// The field, as a path.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// This program has no description for machines of its own architecture.
    #[error("[F004] no chip description for machines of architecture {0}")]
    NoHost(String),
}

impl Error {
    /// A stable code for this kind of error.
    pub fn code(&self) -> &'static str {
        match self {
            Error::Syntax(_) => "F001",
            Error::Unknown { .. } => "F002",
            Error::Value { .. } => "F003",
            Error::NoHost(_) => "F004",
        }
    }
}

/// How a number is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Basis {
    /// Measured on a machine of this kind.
    Measured,
    /// From the maker's documents or tools, or from what the machine says of itself.
    Datasheet,
    /// Plausible for the kind of chip; not checked.
    Assumed,
}

/// A number with its source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fact<T> {
    /// The number, in the unit that the field names.
    pub value: T,
    /// How it is known.
    pub basis: Basis,
    /// Where it comes from.
    pub source: String,
}

/// The kind of a chip; it decides which back end compiles for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A general-purpose processor with vector instructions.
    Cpu,
    /// A neural processor with explicit scratchpads and matrix units.
    Npu,
    /// A graphics processor.
    Gpu,
}

/// What a storage level is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LevelKind {
    /// Registers that values of a program live in.
    Registers,
    /// Storage that the chip fills by itself.
    Cache,
    /// Storage that a program fills.
    Scratchpad,
    /// Main memory.
    Memory,
}

/// Who shares a storage level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Each core has its own.
    Core,
    /// All cores share it.
    Chip,
}

/// One storage level.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Level {
    /// Its name, such as `l1`; unique in the chip.
    pub name: String,
    /// What it is.
    pub kind: LevelKind,
    /// Who shares it.
    pub scope: Scope,
    /// Bytes it holds (for each core if `scope` is `core`); absent where it depends on the machine.
    pub capacity: Option<Fact<u64>>,
    /// Bytes a second one core reads from it.
    pub bandwidth: Option<Fact<f64>>,
    /// Bytes that addresses in it are rounded up to.
    #[serde(default = "one")]
    pub align: u32,
    /// Where the alignment comes from.
    pub source: Option<String>,
}

/// The vector unit of one core.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VectorUnit {
    /// Bits of one vector register; the smallest width where it may vary.
    pub bits: u32,
    /// The largest width, where it may vary.
    pub max_bits: Option<u32>,
    /// Vector registers a program sees.
    pub registers: u32,
    /// Bits of a vector of which a multiply-add picks one element for all its lanes; absent where it picks none.
    pub picked_bits: Option<u32>,
    /// Where width and number come from.
    pub source: String,
    /// f32 operations a cycle of one core, a multiply-add counting as two.
    pub f32_flops_per_cycle: Option<Fact<f64>>,
}

/// A matrix unit of one core: `acc[m, n] += lhs[m, k] * rhs[k, n]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MatrixUnit {
    /// Its name.
    pub name: String,
    /// Rows of one step.
    pub m: u32,
    /// Columns of one step.
    pub n: u32,
    /// Depth of one step.
    pub k: u32,
    /// Element type of the left operand.
    pub lhs: String,
    /// Element type of the right operand.
    pub rhs: String,
    /// Element type of the accumulator.
    pub acc: String,
    /// Where its shape and types come from.
    pub source: String,
    /// Operations a cycle of one core, a multiply-add counting as two.
    pub flops_per_cycle: Option<Fact<f64>>,
}

/// What tile dims the chip can take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DimRules {
    /// Every dim must be a power of two.
    #[serde(default)]
    pub power_of_two: bool,
    /// Every dim of a matrix operand is padded to a multiple of this.
    #[serde(default = "one")]
    pub matrix_multiple: u32,
    /// The last dim's bytes are padded to a multiple of this.
    #[serde(default = "one")]
    pub inner_bytes: u32,
    /// Where the rules come from.
    pub source: Option<String>,
}

impl Default for DimRules {
    fn default() -> Self {
        DimRules { power_of_two: false, matrix_multiple: 1, inner_bytes: 1, source: None }
    }
}

fn one() -> u32 {
    1
}

/// Everything the compiler knows of a chip.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chip {
    /// Its name, as `--to` takes it.
    pub name: String,
    /// One line for a person.
    pub title: String,
    /// The kind.
    pub kind: Kind,
    /// The instruction set architecture, such as `x86_64`; for chips reached through a vendor's compiler,
    /// the target name that it takes.
    pub arch: String,
    /// LLVM's name of the processor to tune and select instructions for (CPUs).
    pub llvm_cpu: Option<String>,
    /// LLVM's name of the processor whose latencies instructions are ordered for; that of `llvm_cpu` without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub llvm_tune: Option<String>,
    /// Instruction set features a program for this chip may use, by LLVM's names, beyond `llvm_cpu`'s
    /// name. An artifact lists them, and loading checks them.
    #[serde(default)]
    pub features: Vec<String>,
    /// Cores (of the kind that runs vector code).
    pub cores: Fact<u32>,
    /// Clock in hertz under full vector load.
    pub frequency: Option<Fact<f64>>,
    /// The vector unit.
    pub vector: VectorUnit,
    /// Storage levels, nearest first.
    #[serde(rename = "level")]
    pub levels: Vec<Level>,
    /// Matrix units.
    #[serde(default, rename = "matrix")]
    pub matrix: Vec<MatrixUnit>,
    /// Rules on tile dims.
    #[serde(default)]
    pub dims: DimRules,
    /// Element types with native arithmetic.
    pub native: Vec<String>,
    /// Element types that are loaded, stored and converted natively, but not computed in.
    #[serde(default)]
    pub storage: Vec<String>,
}

impl Chip {
    /// Reads a description from TOML text and checks it.
    pub fn parse(text: &str) -> Result<Chip, Error> {
        let chip: Chip = toml::from_str(text)?;
        chip.check()?;
        Ok(chip)
    }

    fn check(&self) -> Result<(), Error> {
        let bad = |field: String, problem: &str| {
            Err(Error::Value { chip: self.name.clone(), field, problem: problem.to_string() })
        };
        if self.cores.value == 0 {
            return bad("cores".into(), "is zero");
        }
        if !self.vector.bits.is_power_of_two() || self.vector.bits < 64 {
            return bad("vector.bits".into(), "is not a power of two of at least 64");
        }
        if self.vector.max_bits.is_some_and(|m| m < self.vector.bits) {
            return bad("vector.max_bits".into(), "is less than vector.bits");
        }
        if self.vector.registers == 0 {
            return bad("vector.registers".into(), "is zero");
        }
        if self.frequency.as_ref().is_some_and(|f| !positive(f.value)) {
            return bad("frequency".into(), "is not a positive number");
        }
        for (i, level) in self.levels.iter().enumerate() {
            if self.levels[..i].iter().any(|l| l.name == level.name) {
                return bad(format!("level.{}", level.name), "occurs twice");
            }
            if level.bandwidth.as_ref().is_some_and(|b| !positive(b.value)) {
                return bad(format!("level.{}.bandwidth", level.name), "is not a positive number");
            }
            if level.capacity.as_ref().is_some_and(|c| c.value == 0) || level.align == 0 {
                return bad(format!("level.{}", level.name), "has a capacity or alignment of zero");
            }
        }
        let plain = DimRules { source: self.dims.source.clone(), ..DimRules::default() };
        if self.dims != plain && self.dims.source.is_none() {
            return bad("dims".into(), "has no source");
        }
        if let Some(level) = self.levels.iter().find(|l| l.align > 1 && l.source.is_none()) {
            return bad(format!("level.{}.align", level.name), "has no source");
        }
        for unit in &self.matrix {
            if unit.m == 0 || unit.n == 0 || unit.k == 0 {
                return bad(format!("matrix.{}", unit.name), "has a dim of zero");
            }
        }
        Ok(())
    }

    /// The storage level called `name`.
    pub fn level(&self, name: &str) -> Option<&Level> {
        self.levels.iter().find(|l| l.name == name)
    }

    /// Bytes the storage level called `name` holds, where known.
    pub fn capacity(&self, name: &str) -> Option<u64> {
        Some(self.level(name)?.capacity.as_ref()?.value)
    }

    /// Elements of `bits` bits in one vector register; at least 1.
    pub fn lanes(&self, bits: u32) -> u32 {
        (self.vector.bits / bits.max(1)).max(1)
    }

    /// Whether a program for this chip may use `feature`.
    pub fn has(&self, feature: &str) -> bool {
        self.features.iter().any(|f| f == feature)
    }

    /// Whether arithmetic on elements of the type called `name` is native.
    pub fn is_native(&self, name: &str) -> bool {
        self.native.iter().any(|t| t == name)
    }

    /// The matrix unit that takes these element types.
    pub fn matrix_unit(&self, lhs: &str, rhs: &str, acc: &str) -> Option<&MatrixUnit> {
        self.matrix.iter().find(|u| u.lhs == lhs && u.rhs == rhs && u.acc == acc)
    }

    /// Peak f32 operations a second of the vector units of all cores, where known.
    pub fn f32_peak(&self) -> Option<f64> {
        let per_cycle = self.vector.f32_flops_per_cycle.as_ref()?.value;
        Some(per_cycle * self.frequency.as_ref()?.value * f64::from(self.cores.value))
    }
}

fn positive(x: f64) -> bool {
    x.is_finite() && x > 0.0
}
