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

/// The files of families of chips built into this crate, as (name, TOML text).
const FAMILIES: [(&str, &str); 14] = [
    ("x86-64-v2", include_str!("../../../chips/x86-64-v2.toml")),
    ("x86-64-v3", include_str!("../../../chips/x86-64-v3.toml")),
    ("x86-64-v4", include_str!("../../../chips/x86-64-v4.toml")),
    ("x86-64-amx", include_str!("../../../chips/x86-64-amx.toml")),
    ("aarch64-neon", include_str!("../../../chips/aarch64-neon.toml")),
    ("aarch64-sve128", include_str!("../../../chips/aarch64-sve128.toml")),
    ("aarch64-sve256", include_str!("../../../chips/aarch64-sve256.toml")),
    ("aarch64-sve512", include_str!("../../../chips/aarch64-sve512.toml")),
    ("riscv64", include_str!("../../../chips/riscv64.toml")),
    ("riscv64-v128", include_str!("../../../chips/riscv64-v128.toml")),
    ("riscv64-v256", include_str!("../../../chips/riscv64-v256.toml")),
    ("riscv64-v512", include_str!("../../../chips/riscv64-v512.toml")),
    ("riscv64-v1024", include_str!("../../../chips/riscv64-v1024.toml")),
    ("loongarch64", include_str!("../../../chips/loongarch64.toml")),
];

/// The files of chips that one can buy.
const PARTS: [(&str, &str); 7] = [
    ("kunpeng-920", include_str!("../../../chips/kunpeng-920.toml")),
    ("graviton-3", include_str!("../../../chips/graviton-3.toml")),
    ("spacemit-k1", include_str!("../../../chips/spacemit-k1.toml")),
    ("sophgo-sg2044", include_str!("../../../chips/sophgo-sg2044.toml")),
    ("loongson-3a6000", include_str!("../../../chips/loongson-3a6000.toml")),
    ("ascend-910b", include_str!("../../../chips/ascend-910b.toml")),
    ("ascend-950", include_str!("../../../chips/ascend-950.toml")),
];

fn files() -> impl Iterator<Item = &'static (&'static str, &'static str)> {
    FAMILIES.iter().chain(&PARTS)
}

impl Chip {
    /// Names of the chips built in, in a fixed order.
    pub fn names() -> impl Iterator<Item = &'static str> {
        files().map(|(name, _)| *name)
    }

    /// The built-in descriptions of families: what machines of a kind have in common.
    pub fn families() -> impl Iterator<Item = Chip> {
        FAMILIES.iter().filter_map(|(_, text)| Chip::parse(text).ok())
    }

    /// The built-in chip called `name`, or `host` for the machine this runs on.
    pub fn builtin(name: &str) -> Result<Chip, Error> {
        if name == "host" {
            return Chip::host();
        }
        let (_, text) = files().find(|(n, _)| *n == name).ok_or_else(|| Error::Unknown {
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
