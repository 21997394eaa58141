//! What instructions a chip has, where architectures name the same thing differently.

use tongtu_chip::Chip;

/// The architectures that are compiled for.
pub(crate) const ARCHITECTURES: [&str; 4] = ["x86_64", "aarch64", "riscv64", "loongarch64"];

/// Whether the chip has any of the features, given with their architecture.
fn any(chip: &Chip, features: &[(&str, &str)]) -> bool {
    features.iter().any(|(arch, f)| chip.arch == *arch && chip.has(f))
}

/// Bits of the vector registers where the architecture leaves them open, so that code is bound to them; else 0.
pub(crate) fn vector_length(chip: &Chip) -> u32 {
    if any(chip, &[("aarch64", "sve"), ("riscv64", "v")]) { chip.vector.bits } else { 0 }
}

/// How many times the unit of its architecture a bound vector register holds, as LLVM's `vscale` counts.
pub(crate) fn vscale(chip: &Chip) -> Option<u32> {
    match vector_length(chip) {
        0 => None,
        bits => Some(bits / if chip.arch == "riscv64" { 64 } else { 128 }),
    }
}

/// Bits of the longest vector that an instruction takes: one register, or a group of them on architectures that have groups; none
/// without vectors.
pub(crate) fn vector_bits(chip: &Chip, group: bool) -> Option<u32> {
    if chip.arch == "riscv64" && !chip.has("v") || chip.arch == "loongarch64" && !chip.has("lsx") {
        return None;
    }
    // The longest groups leave too few of them for what long kernels keep.
    Some(chip.vector.bits * if group && chip.arch == "riscv64" { 4 } else { 1 })
}

/// Whether its code gains from indices in addresses; elsewhere loads take none, or none beside a distance.
pub(crate) fn indexes(arch: &str) -> bool {
    arch == "x86_64"
}

/// Whether it multiplies and adds with one rounding.
pub(crate) fn fused(chip: &Chip) -> bool {
    chip.arch == "aarch64" || any(chip, &[("x86_64", "fma"), ("riscv64", "d"), ("loongarch64", "d")])
}

/// Whether it converts between f16 and f32, in vectors too.
pub(crate) fn casts_f16(chip: &Chip) -> bool {
    chip.arch == "aarch64"
        || any(chip, &[("x86_64", "f16c")])
        || chip.arch == "riscv64" && chip.has("zfhmin") && chip.has("zvfhmin")
        || computes_f16(chip)
}

/// Whether it loads and stores f16 as such; else as whole numbers, lest LLVM move it by way of f32.
pub(crate) fn moves_f16(chip: &Chip) -> bool {
    chip.arch == "x86_64" || casts_f16(chip)
}

/// Whether it computes in f16, in vectors too.
pub(crate) fn computes_f16(chip: &Chip) -> bool {
    any(chip, &[("x86_64", "avx512fp16"), ("aarch64", "fullfp16")])
        || chip.arch == "riscv64" && chip.has("zfh") && chip.has("zvfh")
}

/// Whether it loads a vector from single addresses.
pub(crate) fn gathers(chip: &Chip) -> bool {
    any(chip, &[("x86_64", "avx512f"), ("aarch64", "sve"), ("riscv64", "v")])
}

/// Whether LLVM converts vectors of f32 to whole numbers of 64 bits by way of 32, which loses what is larger.
pub(crate) fn narrows_casts(chip: &Chip) -> bool {
    chip.arch == "loongarch64" && chip.has("lsx")
}

/// Whether a feature only makes code shorter: none of what kernels compute or how they are cut follows from it, so that code without it is
/// as good a proof.
pub fn dispensable(feature: &str) -> bool {
    ["zba", "zbb", "zbs", "zicond", "zfa"].contains(&feature)
}

/// Whether it rounds floats to whole numbers in the direction asked for.
pub(crate) fn rounds(chip: &Chip) -> bool {
    chip.arch != "loongarch64" || chip.has("lsx")
}
