//! Building the agent, and emulators to run it under.

use super::protocol::Error;
use std::path::Path;
use std::process::{Command, Stdio};
use tongtu_chip::Chip;

/// The agent's source.
pub const SOURCE: &str = include_str!("../../agent/agent.c");

/// Names that clang goes by.
const CLANG: [&str; 2] = ["clang-22", "clang"];

/// Builds the agent for an architecture with clang and lld, as a static program that needs nothing of its machine but Linux.
///
/// # Errors
/// clang is not installed, or refuses.
pub fn build(arch: &str, out: &Path) -> Result<(), Error> {
    let clang = CLANG.iter().find(|c| {
        let tried = Command::new(c).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        tried.is_ok_and(|s| s.success())
    });
    let clang = clang.ok_or_else(|| {
        Error::Start("building it needs clang and lld: `scripts/setup --emulators` installs them".to_string())
    })?;
    let machine: &[&str] = match arch {
        "riscv64" => &["-march=rv64gc", "-mabi=lp64d"],
        "loongarch64" => &["-msimd=none", "-mabi=lp64d"],
        _ => &[],
    };
    let mut command = Command::new(clang);
    command.arg(format!("--target={arch}-unknown-linux-gnu")).args(machine);
    command.args(["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-fno-builtin"]);
    command.args(["-fno-stack-protector", "-fno-pic", "-nostdlib", "-static", "-fuse-ld=lld"]);
    command.args(["-Wl,--no-relax", "-x", "c", "-", "-o"]).arg(out);
    let failed = |e: std::io::Error| Error::Start(format!("building it: {e}"));
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(failed)?;
    if let Some(mut input) = child.stdin.take() {
        std::io::Write::write_all(&mut input, SOURCE.as_bytes()).map_err(failed)?;
    }
    let done = child.wait_with_output().map_err(failed)?;
    match done.status.success() {
        true => Ok(()),
        false => Err(Error::Start(format!("building it: {}", String::from_utf8_lossy(&done.stderr).trim()))),
    }
}

/// The emulator of user programs, with its arguments, that shows a program the machine of a chip description; `None` where the chip is no CPU of
/// an architecture that the back end compiles for. The emulator may not be installed.
pub fn emulator(chip: &Chip) -> Option<Vec<String>> {
    emulated_cpu(chip, "")
}

/// The same with what only newer emulators have; nothing where there is nothing more.
pub fn newer_emulator(chip: &Chip) -> Option<Vec<String>> {
    let more = ["zicond", "zfa", "zfh", "zvfh"].iter().filter(|f| chip.arch == "riscv64" && chip.has(f));
    let more: String = more.map(|f| format!(",{f}=true")).collect();
    if more.is_empty() { None } else { emulated_cpu(chip, &more) }
}

fn emulated_cpu(chip: &Chip, more: &str) -> Option<Vec<String>> {
    let sve = chip.has("sve");
    let cpu = match chip.arch.as_str() {
        "x86_64" => "max".to_string(),
        "aarch64" if sve => format!("max,sve{}=on", chip.vector.bits),
        "aarch64" => "max,sve=off".to_string(),
        "riscv64" if chip.has("v") => {
            let half = if chip.has("zvfh") && more.is_empty() { ",Zfh=true" } else { "" };
            format!("rv64,v=true,vlen={},vext_spec=v1.0{half}{more}", chip.vector.bits)
        }
        "riscv64" => format!("rv64{more}"),
        "loongarch64" => return Some(vec!["qemu-loongarch64".to_string()]),
        _ => return None,
    };
    Some(vec![format!("qemu-{}", chip.arch), "-cpu".to_string(), cpu])
}
