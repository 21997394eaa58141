//! The vendor's compiler, `bishengir-compile`, as a separate program.
//!
//! Pinned to version 1.2.0 of the Python package `ascendnpu-ir`, which needs neither a chip nor the vendor's toolkit. It plans
//! memory and synchronisation and stops where the toolkit's closed `hivmc` would make the object file; a stand-in for that
//! program lets the check end with success.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tongtu_chip::Chip;
use tongtu_plan::backend::CompileError;

/// The pinned version.
pub const VERSION: &str = "1.2.0";
/// Longest one check may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// The program for one chip.
#[derive(Clone, Debug)]
pub struct Tool {
    /// Path of the executable.
    pub program: PathBuf,
}

/// What a check found out.
#[derive(Clone, Debug)]
pub struct Report {
    /// The program after memory planning, the input of the last step.
    pub planned: String,
}

fn program_name(chip: &Chip) -> &'static str {
    if chip.arch.contains("950") { "bishengir-compile-a5" } else { "bishengir-compile" }
}

/// Where the package's programs may lie: the search path, then this project's cache.
fn places() -> Vec<PathBuf> {
    let mut out: Vec<PathBuf> =
        std::env::var_os("PATH").map(|p| std::env::split_paths(&p).collect()).unwrap_or_default();
    let home = std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or(home);
    out.extend(cache.map(|c| c.join("tongtu/ascendnpu-ir/ascendnpuir/bin")));
    out
}

impl Tool {
    /// Looks for the program.
    ///
    /// # Errors
    /// [`CompileError::Toolchain`] with how to install it.
    pub fn find(chip: &Chip) -> Result<Tool, CompileError> {
        let name = program_name(chip);
        let found = places().into_iter().map(|p| p.join(name)).find(|p| p.is_file());
        found.map(|program| Tool { program }).ok_or_else(|| CompileError::Toolchain {
            tool: name.to_string(),
            detail: format!(
                "install it with `pip install --no-deps --target ~/.cache/tongtu/ascendnpu-ir ascendnpu-ir=={VERSION}`, \
                 or put it in PATH"
            ),
        })
    }

    /// Runs the program on a kernel's text.
    ///
    /// # Errors
    /// What the program says: [`CompileError::TooLarge`] where a storage level overflows, else [`CompileError::Internal`] with its
    /// diagnostics.
    pub fn check(&self, kernel: &str, text: &str, chip: &Chip) -> Result<Report, CompileError> {
        let internal = |detail: String| CompileError::Internal { kernel: kernel.to_string(), detail };
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("tongtu-ascend-{}-{n}", std::process::id()));
        let result = (|| {
            std::fs::create_dir_all(&dir)?;
            for name in ["hivmc", "hivmc-a5"] {
                stand_in(&dir.join(name))?;
            }
            std::fs::write(dir.join("kernel.mlir"), text)?;
            self.launch(&dir, chip)
        })();
        let planned = std::fs::read_to_string(dir.join("out/module.hivm.opt.mlir"));
        let _ = std::fs::remove_dir_all(&dir);
        let (ok, said) = result.map_err(|e| internal(format!("{}: {e}", self.program.display())))?;
        match planned {
            Ok(planned) if ok => Ok(Report { planned }),
            _ => Err(overflow(kernel, &said).unwrap_or_else(|| internal(first_lines(&said)))),
        }
    }

    fn launch(&self, dir: &Path, chip: &Chip) -> std::io::Result<(bool, String)> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::iter::once(dir.to_path_buf()).chain(std::env::split_paths(&path));
        let path = std::env::join_paths(path).map_err(std::io::Error::other)?;
        let log = std::fs::File::create(dir.join("log"))?;
        let mut child = Command::new(&self.program)
            .current_dir(dir)
            .env("PATH", path)
            .arg("kernel.mlir")
            .arg(format!("--target={}", chip.arch))
            .args(["--enable-hfusion-compile=true", "--enable-hivm-compile=true"])
            .args(["--enable-triton-kernel-compile=true", "--save-temps=out", "-o", "kernel.o"])
            .stdin(std::process::Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let start = Instant::now();
        let status = loop {
            match child.try_wait()? {
                Some(status) => break Some(status),
                None if start.elapsed() > PATIENCE => {
                    child.kill()?;
                    child.wait()?;
                    break None;
                }
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        let mut said = String::from_utf8_lossy(&std::fs::read(dir.join("log"))?).into_owned();
        if status.is_none() {
            said = format!("no answer within {} s\n{said}", PATIENCE.as_secs());
        }
        Ok((status.is_some_and(|s| s.success()), said))
    }
}

#[cfg(unix)]
fn stand_in(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, "#!/bin/sh\n[ \"$1\" = --version ] && echo 'hivmc 0.1.0'\nexit 0\n")?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
}

#[cfg(not(unix))]
fn stand_in(_: &Path) -> std::io::Result<()> {
    Err(std::io::Error::other("the vendor's compiler runs on Linux only"))
}

/// Reads "ub overflow, requires N bits while M bits available".
fn overflow(kernel: &str, said: &str) -> Option<CompileError> {
    let (before, after) = said.split_once(" overflow, requires ")?;
    let level = before.rsplit(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
    let mut numbers = after.split(|c: char| !c.is_ascii_digit()).filter(|w| !w.is_empty());
    let (need, limit): (u64, u64) = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
    let level = match level {
        "cbuf" => "l1",
        "cc" => "l0c",
        "ca" => "l0a",
        "cb" => "l0b",
        other => other,
    };
    Some(CompileError::TooLarge {
        kernel: kernel.to_string(),
        level: level.to_string(),
        need: need.div_ceil(8),
        limit: limit / 8,
    })
}

fn first_lines(said: &str) -> String {
    let lines: Vec<&str> =
        said.lines().filter(|l| l.contains("error") || l.contains("rror:")).take(6).collect();
    if lines.is_empty() { said.lines().take(6).collect::<Vec<_>>().join("\n") } else { lines.join("\n") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overflow_is_read() {
        let said = "kernel.mlir:3:1: error: ub overflow, requires 2097152 bits while 1572864 bits available! (possible reason)";
        match overflow("k", said) {
            Some(CompileError::TooLarge { level, need, limit, .. }) => {
                assert_eq!((level.as_str(), need, limit), ("ub", 262144, 196608));
            }
            other => panic!("{other:?}"),
        }
        assert!(overflow("k", "error: something else").is_none());
    }
}
