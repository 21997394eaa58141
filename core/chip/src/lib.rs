//! Chip descriptions: what the schedules, the split pass and the cost model may know of a chip.
//!
//! A [`Chip`] is read from one TOML file (the files under `chips/` are built into the crate, see
//! [`Chip::builtin`]) or found by looking at the machine the program runs on ([`Chip::host`]). Every
//! number is a [`Fact`]: the value, how it is known, and where it comes from.

#![forbid(unsafe_code)]

mod describe;
mod host;

pub use describe::{
    Basis, Chip, DimRules, Error, Fact, Kind, Level, LevelKind, MatrixUnit, Scope, VectorUnit,
};

/// The chip files built into this crate, as (name, TOML text).
const FILES: [(&str, &str); 6] = [
    ("x86-64-v2", include_str!("../../../chips/x86-64-v2.toml")),
    ("x86-64-v3", include_str!("../../../chips/x86-64-v3.toml")),
    ("x86-64-v4", include_str!("../../../chips/x86-64-v4.toml")),
    ("x86-64-amx", include_str!("../../../chips/x86-64-amx.toml")),
    ("ascend-910b", include_str!("../../../chips/ascend-910b.toml")),
    ("ascend-950", include_str!("../../../chips/ascend-950.toml")),
];

impl Chip {
    /// Names of the chips built in, in a fixed order.
    pub fn names() -> impl Iterator<Item = &'static str> {
        FILES.iter().map(|(name, _)| *name)
    }

    /// The built-in chip called `name`, or `host` for the machine this runs on.
    pub fn builtin(name: &str) -> Result<Chip, Error> {
        if name == "host" {
            return Chip::host();
        }
        let (_, text) = FILES.iter().find(|(n, _)| *n == name).ok_or_else(|| Error::Unknown {
            name: name.to_string(),
            known: Chip::names().chain(["host"]).collect::<Vec<_>>().join(", "),
        })?;
        Chip::parse(text)
    }

    /// A description of the machine this runs on: the built-in file nearest to its instruction set, with
    /// the features, cores and cache sizes found here put in.
    ///
    /// Features come from feature bits, never from the model name, which virtual machines hide or change.
    pub fn host() -> Result<Chip, Error> {
        host::detect()
    }
}
