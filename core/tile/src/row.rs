//! What the instruction table says of an instruction, and the words it says it in.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use tongtu_tensor::{DType, NumericClass};

/// A version of the instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version {
    /// Counts changes that old programs could notice; 0 is the draft.
    pub major: u32,
    /// Counts additions.
    pub minor: u32,
}

impl Version {
    /// The version that this crate implements.
    pub const CURRENT: Version = Version::new(0, 1);
    /// The oldest version whose programs are read.
    pub const OLDEST: Version = Version::new(0, 1);

    /// A version.
    pub const fn new(major: u32, minor: u32) -> Version {
        Version { major, minor }
    }
    /// Whether programs of this version are read here.
    pub fn is_read(self) -> bool {
        (Version::OLDEST..=Version::CURRENT).contains(&self)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for Version {
    type Err = ();
    fn from_str(text: &str) -> Result<Version, ()> {
        let (major, minor) = text.split_once('.').ok_or(())?;
        let number = |s: &str| {
            let plain = s.bytes().all(|b| b.is_ascii_digit()) && (s == "0" || !s.starts_with('0'));
            if plain { s.parse().map_err(|_| ()) } else { Err(()) }
        };
        Ok(Version { major: number(major)?, minor: number(minor)? })
    }
}

/// How settled a part of the instruction set is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// It may still change.
    Draft,
    /// It changes only for a fault found while it is being ratified.
    Frozen,
    /// It never changes.
    Ratified,
}

impl State {
    /// The name in text.
    pub fn name(self) -> &'static str {
        match self {
            State::Draft => "draft",
            State::Frozen => "frozen",
            State::Ratified => "ratified",
        }
    }
}

macro_rules! extensions {
    ($($variant:ident $name:literal $state:ident $doc:literal;)*) => {
        /// A part of the instruction set that a chip has as a whole or lacks. Every chip has the base set.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Extension { $(#[doc = $doc] $variant,)* }
        impl Extension {
            /// Every extension, the base set first.
            pub const ALL: &'static [Extension] = &[$(Extension::$variant,)*];
            /// The name in text.
            pub fn name(self) -> &'static str { match self { $(Extension::$variant => $name,)* } }
            /// What it brings.
            pub fn doc(self) -> &'static str { match self { $(Extension::$variant => $doc,)* } }
            /// How settled it is.
            pub fn state(self) -> State { match self { $(Extension::$variant => State::$state,)* } }
        }
    };
}

extensions! {
    Base "base" Draft "Everything that no extension names: arithmetic on bool, i8 to i64, u8 to u64, f16, bf16 and f32, shapes, reductions, scans, block accesses, scratch, control flow.";
    Mma "mma" Draft "Products of matrices.";
    Gather "gather" Draft "Accesses by tiles of indices, in memory and inside tiles.";
    Atomics "atomics" Draft "Atomic accesses to memory.";
    F64 "f64" Draft "Elements of type f64.";
    Subbyte "subbyte" Draft "Integers of 2 and 4 bits.";
    Fp8 "fp8" Draft "Elements of the four 8-bit float types of OCP and of the fnuz forms.";
    Mx "mx" Draft "Elements of the OCP microscaling formats: f6e2m3, f6e3m2, f4e2m1 and scales f8e8m0.";
    HiF8 "hif8" Draft "Elements of type hif8.";
}

impl Extension {
    /// The extension that an element type belongs to.
    pub fn of(dtype: DType) -> Extension {
        match dtype {
            DType::F64 => Extension::F64,
            DType::I2 | DType::I4 | DType::U2 | DType::U4 => Extension::Subbyte,
            DType::F8E4M3FN | DType::F8E4M3FNUZ | DType::F8E5M2 | DType::F8E5M2FNUZ => Extension::Fp8,
            DType::F8E8M0 | DType::F6E2M3 | DType::F6E3M2 | DType::F4E2M1 => Extension::Mx,
            DType::HiF8 => Extension::HiF8,
            _ => Extension::Base,
        }
    }
    /// The extension with this name.
    pub fn from_name(name: &str) -> Option<Extension> {
        Extension::ALL.iter().copied().find(|e| e.name() == name)
    }
}

/// A set of extensions under a dated name, for programs and chips to agree on.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    /// Its name, with the month it was drawn up.
    pub name: &'static str,
    /// What it is for.
    pub doc: &'static str,
    /// The extensions, beside the base set.
    pub extensions: &'static [Extension],
}

/// The profiles.
pub const PROFILES: &[Profile] = &[
    Profile {
        name: "inference-2026-11",
        doc: "Neural networks in 16 and 32 bits, quantised to 8.",
        extensions: &[Extension::Mma, Extension::Gather],
    },
    Profile {
        name: "narrow-2026-11",
        doc: "The same with weights and activations of 8 and fewer bits in the formats of OCP.",
        extensions: &[Extension::Mma, Extension::Gather, Extension::Subbyte, Extension::Fp8, Extension::Mx],
    },
    Profile {
        name: "general-2026-11",
        doc: "Numeric programs of any kind.",
        extensions: &[Extension::Mma, Extension::Gather, Extension::Atomics, Extension::F64],
    },
];

/// How exactly an instruction must be computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Class {
    /// Bit for bit as the interpreter.
    Exact,
    /// The exact real result rounded once, as the instruction says.
    Rounded,
    /// At most this many units in the last place from the real result.
    Ulp(f32),
    /// Sums and products in any order and grouping, within the bound that the specification derives from it.
    Regrouped,
    /// Whatever memory or the order of instances gives.
    Unspecified,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Class::Exact => f.write_str("exact"),
            Class::Rounded => f.write_str("correctly rounded"),
            Class::Ulp(n) => write!(f, "{n} ulp"),
            Class::Regrouped => f.write_str("re-associable"),
            Class::Unspecified => f.write_str("unspecified"),
        }
    }
}

impl From<NumericClass> for Class {
    fn from(c: NumericClass) -> Class {
        match c {
            NumericClass::Exact => Class::Exact,
            NumericClass::CorrectlyRounded => Class::Rounded,
            NumericClass::Ulp(n) => Class::Ulp(n),
        }
    }
}

/// An attribute of an instruction.
#[derive(Clone, Copy, Debug)]
pub struct AttributeRow {
    /// Name in text.
    pub name: &'static str,
    /// The kind of its values, in words.
    pub kind: &'static str,
    /// Meaning.
    pub doc: &'static str,
}

/// One row of the instruction table.
#[derive(Clone, Debug)]
pub struct OpRow {
    /// Number in the binary form.
    pub code: u32,
    /// Name in text.
    pub name: &'static str,
    /// Operands; a trailing `…` means any number, `?` one or none.
    pub operands: &'static [&'static str],
    /// Result type, in words; empty for none.
    pub result: &'static str,
    /// The type rule, in words.
    pub rule: &'static str,
    /// Attributes in the order of the binary form.
    pub attributes: &'static [AttributeRow],
    /// The version that brought it.
    pub since: Version,
    /// The extension it belongs to, whatever its element types.
    pub extension: Extension,
    /// How exact it is for floating-point elements; everything else is exact.
    pub class: Class,
    /// Meaning.
    pub doc: Cow<'static, str>,
    /// Instructions that use it, after those of [`EXAMPLE`](crate::op::EXAMPLE).
    pub example: Cow<'static, str>,
}
