//! What the machine says of itself.

use crate::{Basis, Chip, Error, Fact, LevelKind};

/// Describes this machine; see [`Chip::host`].
pub(crate) fn detect() -> Result<Chip, Error> {
    let features = features();
    let has = |names: &[&str]| names.iter().all(|n| features.iter().any(|f| f == n));
    let base = if !cfg!(target_arch = "x86_64") {
        return Err(Error::NoHost(std::env::consts::ARCH.to_string()));
    } else if has(&["avx512f", "avx512bw", "avx512dq", "avx512vl", "amx-tile", "amx-bf16", "amx-int8"]) {
        "x86-64-amx"
    } else if has(&["avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"]) {
        "x86-64-v4"
    } else if has(&["avx2", "fma", "f16c", "bmi2"]) {
        "x86-64-v3"
    } else if has(&["ssse3", "sse4.1", "sse4.2", "popcnt"]) {
        "x86-64-v2"
    } else {
        return Err(Error::NoHost("x86_64 without SSE4.2".to_string()));
    };
    let mut chip = Chip::builtin(base)?;
    chip.name = "host".to_string();
    chip.title = format!("this machine ({base})");
    chip.features = features;
    if !chip.has("amx-int8") {
        chip.matrix.retain(|u| u.lhs == "bf16");
    }
    chip.native.retain(|t| t != "f16");
    if chip.has("avx512fp16") {
        chip.native.push("f16".to_string());
    }
    if let Ok(n) = std::thread::available_parallelism() {
        let value = u32::try_from(n.get()).unwrap_or(u32::MAX);
        chip.cores = fact(value, "available parallelism, from the operating system");
    }
    for level in &mut chip.levels {
        if level.kind == LevelKind::Cache
            && let Some((bytes, _)) = cache(&level.name)
        {
            level.capacity = Some(fact(bytes, "cache description of the operating system"));
        }
        if level.kind == LevelKind::Memory
            && let Some(bytes) = memory()
        {
            level.capacity = Some(fact(bytes, "memory size of the operating system"));
        }
    }
    Ok(chip)
}

fn fact<T>(value: T, source: &str) -> Fact<T> {
    Fact { value, basis: Basis::Datasheet, source: source.to_string() }
}

/// Names, as LLVM spells them, of the instruction set features found.
fn features() -> Vec<String> {
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! test {
            ($($name:tt),*) => {$(
                if std::arch::is_x86_feature_detected!($name) {
                    found.push(llvm_name($name).to_string());
                }
            )*};
        }
        test!(
            "sse3",
            "ssse3",
            "sse4.1",
            "sse4.2",
            "popcnt",
            "avx",
            "avx2",
            "fma",
            "f16c",
            "bmi1",
            "bmi2",
            "lzcnt",
            "movbe",
            "avx512f",
            "avx512bw",
            "avx512cd",
            "avx512dq",
            "avx512vl",
            "avx512vbmi",
            "avx512vbmi2",
            "avx512ifma",
            "avx512bitalg",
            "avx512vpopcntdq",
            "avx512vnni",
            "avx512bf16",
            "avx512fp16",
            "gfni"
        );
        // The standard library does not test these; the kernel lists a flag only if it saves the state.
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let flags = cpuinfo.lines().find(|l| l.starts_with("flags")).unwrap_or_default();
        for (flag, name) in [
            ("avx_vnni", "avxvnni"),
            ("amx_tile", "amx-tile"),
            ("amx_bf16", "amx-bf16"),
            ("amx_int8", "amx-int8"),
            ("amx_fp16", "amx-fp16"),
        ] {
            if flags.split_ascii_whitespace().any(|f| f == flag) {
                found.push(name.to_string());
            }
        }
    }
    found
}

#[cfg(target_arch = "x86_64")]
fn llvm_name(name: &'static str) -> &'static str {
    match name {
        "bmi1" => "bmi",
        other => other,
    }
}

/// Bytes of the cache called `name` (`l1`, `l2`, `l3`) and how many processors share it.
fn cache(name: &str) -> Option<(u64, u32)> {
    let level = name.strip_prefix('l')?;
    for index in 0..8 {
        let read = |file: &str| {
            let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/{file}");
            std::fs::read_to_string(path).ok().map(|s| s.trim().to_string())
        };
        let (Some(found), Some(kind), Some(size)) = (read("level"), read("type"), read("size")) else {
            continue;
        };
        if found != level || kind == "Instruction" {
            continue;
        }
        let shared = read("shared_cpu_map")
            .map_or(1, |m| m.chars().filter_map(|c| c.to_digit(16)).map(u32::count_ones).sum());
        return Some((bytes(&size)?, shared));
    }
    None
}

/// Reads `48K`, `2M` or a plain number of bytes.
fn bytes(text: &str) -> Option<u64> {
    let (digits, unit) = match text.strip_suffix(['K', 'M', 'G']) {
        Some(d) => (d, text.as_bytes().last().copied()?),
        None => (text, b'B'),
    };
    let shift = match unit {
        b'K' => 10,
        b'M' => 20,
        b'G' => 30,
        _ => 0,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|l| l.starts_with("MemTotal:"))?;
    line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes() {
        assert_eq!(bytes("48K"), Some(48 << 10));
        assert_eq!(bytes("2M"), Some(2 << 20));
        assert_eq!(bytes("512"), Some(512));
        assert_eq!(bytes("K"), None);
        assert_eq!(bytes("99999999999999999999K"), None);
    }
}
