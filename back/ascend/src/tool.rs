//! The vendor's compiler, `bishengir-compile`, as a separate program.
//!
//! Pinned to version 1.2.0 of the Python package `ascendnpu-ir`, which needs neither a chip nor the vendor's toolkit. It plans
//! memory and synchronisation and stops where the toolkit's closed `hivmc` would make the object file; a stand-in for that
//! program lets the check end with success.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tongtu_chip::Chip;
use tongtu_plan::backend::CompileError;

use crate::legal::is_950;

/// The pinned version.
pub const VERSION: &str = "1.2.0";
/// What the pinned package's file is: `pip` takes no other.
const SHA256: &str = "d4e5bfab877ee4ba7b312885f4f5bf646072fd47c88d5aa96f6a11f67d3e8522";
/// Longest one check may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Longest it may take to fit a kernel another way, once it has said that it does not fit.
const SECOND: Duration = Duration::from_secs(30);
/// What it says then.
const AGAIN: &str = "Ub overflow detected";

/// The program for one chip.
#[derive(Clone, Debug)]
pub struct Tool {
    /// Path of the executable.
    pub program: PathBuf,
}

/// What a check found out.
#[derive(Clone, Debug)]
pub struct Report {
    /// The device program after memory planning, synchronisation and the split into cores, in MLIR's generic form.
    pub planned: String,
}

/// The vendor's answer to one text.
enum Verdict {
    Planned(String),
    TooLarge { level: String, need: u64, limit: u64 },
    Refused(String),
}

impl Verdict {
    fn to_text(&self) -> String {
        match self {
            Verdict::Planned(p) => format!("planned\n{p}"),
            Verdict::TooLarge { level, need, limit } => format!("overflow {level} {need} {limit}\n"),
            Verdict::Refused(why) => format!("refused\n{why}"),
        }
    }

    fn from_text(text: &str) -> Option<Verdict> {
        let (head, rest) = text.split_once('\n')?;
        let words: Vec<&str> = head.split(' ').collect();
        Some(match words[..] {
            ["planned"] => Verdict::Planned(rest.to_string()),
            ["refused"] => Verdict::Refused(rest.to_string()),
            ["overflow", level, need, limit] => Verdict::TooLarge {
                level: level.to_string(),
                need: need.parse().ok()?,
                limit: limit.parse().ok()?,
            },
            _ => return None,
        })
    }
}

/// The last point in the pipeline where vector operations are still those of the kernel: after memory planning, synchronisation and the split
/// into cores, before library calls and intrinsics.
fn last_pass(chip: &Chip) -> &'static str {
    if is_950(chip) { "convert-vector-to-hivmave" } else { "convert-hivm-to-std" }
}

fn program_name(chip: &Chip) -> &'static str {
    if is_950(chip) { "bishengir-compile-a5" } else { "bishengir-compile" }
}

/// Where the package's programs may lie: the search path, then this project's cache.
fn places() -> Vec<PathBuf> {
    let mut out: Vec<PathBuf> =
        std::env::var_os("PATH").map(|p| std::env::split_paths(&p).collect()).unwrap_or_default();
    out.extend(cache().map(|c| c.join("ascendnpu-ir/ascendnpuir/bin")));
    out
}

/// This project's cache.
fn cache() -> Option<PathBuf> {
    let home = std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cache"));
    let base = std::env::var_os("XDG_CACHE_HOME").filter(|d| !d.is_empty()).map(PathBuf::from).or(home);
    let own = std::env::var_os("TONGTU_CACHE").filter(|d| !d.is_empty()).map(PathBuf::from);
    own.or(base.map(|c| c.join("tongtu")))
}

/// Installs the pinned package, with `pip`, in this project's cache, unless it is there; gives the folder.
///
/// # Errors
/// [`CompileError::Toolchain`] with the words of `pip`, or that there is none.
pub fn install() -> Result<PathBuf, CompileError> {
    let fail = |detail: String| CompileError::Toolchain { tool: "ascendnpu-ir".to_string(), detail };
    let folder = cache().ok_or_else(|| fail("there is no folder for caches".to_string()))?;
    let to = folder.join("ascendnpu-ir");
    if to.join(format!("ascendnpu_ir-{VERSION}.dist-info")).is_dir() {
        return Ok(to);
    }
    let list = folder.join("ascendnpu-ir.txt");
    std::fs::create_dir_all(&folder)
        .and_then(|()| std::fs::write(&list, format!("ascendnpu-ir=={VERSION} --hash=sha256:{SHA256}\n")))
        .map_err(|e| fail(format!("{}: {e}", folder.display())))?;
    // One file serves every Python: only its programs are used.
    let run = |python: &str| {
        Command::new(python)
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--no-deps",
                "--upgrade",
            ])
            .args(["--python-version", "3.11", "--only-binary=:all:", "--require-hashes", "--target"])
            .arg(&to)
            .arg("-r")
            .arg(&list)
            .output()
    };
    let mut said = "there is no Python with pip".to_string();
    for python in ["python3", "python"] {
        match run(python) {
            Ok(o) if o.status.success() => {
                let _ = std::fs::remove_file(&list);
                return Ok(to);
            }
            Ok(o) => said = String::from_utf8_lossy(&o.stderr).trim().to_string(),
            Err(_) => {}
        }
    }
    let _ = std::fs::remove_file(&list);
    Err(fail(said))
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
                "install it with `tongtu toolchain install ascend` (ascendnpu-ir {VERSION}), or put it in PATH"
            ),
        })
    }

    /// The program's verdict on a kernel's text, from the cache where it has been given before. `origins` names the
    /// instruction that each line from one on comes from.
    ///
    /// # Errors
    /// What the program says: [`CompileError::TooLarge`] where a storage level overflows, else [`CompileError::Internal`] with its
    /// diagnostics and the instructions they are about.
    pub fn check(
        &self,
        kernel: &str,
        text: &str,
        origins: &[(usize, String)],
        chip: &Chip,
    ) -> Result<Report, CompileError> {
        let internal = |detail: String| CompileError::Internal { kernel: kernel.to_string(), detail };
        let known = cached(text, chip);
        let read = known.as_ref().and_then(|p| std::fs::read_to_string(p).ok());
        let verdict = match read.as_deref().and_then(Verdict::from_text) {
            Some(v) => v,
            None => {
                let v =
                    self.ask(text, chip).map_err(|e| internal(format!("{}: {e}", self.program.display())))?;
                if let Some(path) = known {
                    keep(&path, &v.to_text());
                }
                v
            }
        };
        match verdict {
            Verdict::Planned(planned) => Ok(Report { planned }),
            Verdict::TooLarge { level, need, limit } => {
                Err(CompileError::TooLarge { kernel: kernel.to_string(), level, need, limit })
            }
            Verdict::Refused(why) => Err(internal(with_origins(&why, origins))),
        }
    }

    /// Makes an object file of a kernel's text, where the toolkit's `hivmc` is; the file is the caller's to remove.
    ///
    /// # Errors
    /// [`CompileError::Toolchain`] where there is no `hivmc`, else what the program says.
    pub fn object(&self, text: &str, chip: &Chip) -> Result<PathBuf, CompileError> {
        let name = if is_950(chip) { "hivmc-a5" } else { "hivmc" };
        let home = std::env::var_os("ASCEND_HOME_PATH").map(|h| PathBuf::from(h).join("bin"));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = home.into_iter().chain(std::env::split_paths(&path)).find(|d| d.join(name).is_file());
        let Some(folder) = found else {
            let detail = "it comes with CANN, on a machine with the chip; set ASCEND_HOME_PATH".to_string();
            return Err(CompileError::Toolchain { tool: name.to_string(), detail });
        };
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("tongtu-object-{}-{n}", std::process::id()));
        let to = dir.with_extension("o");
        let made = (|| -> std::io::Result<(bool, String)> {
            std::fs::create_dir_all(&dir)?;
            std::os::unix::fs::symlink(folder.join(name), dir.join(name))?;
            std::fs::write(dir.join("kernel.mlir"), text)?;
            let answer = self.launch(&dir, chip)?;
            std::fs::rename(dir.join("kernel.o"), &to)?;
            Ok(answer)
        })();
        let _ = std::fs::remove_dir_all(&dir);
        match made {
            Ok((true, _)) => Ok(to),
            Ok((false, said)) => {
                Err(CompileError::Internal { kernel: String::new(), detail: first_lines(&said) })
            }
            Err(e) => Err(CompileError::Internal { kernel: String::new(), detail: e.to_string() }),
        }
    }

    fn ask(&self, text: &str, chip: &Chip) -> std::io::Result<Verdict> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("tongtu-ascend-{}-{n}", std::process::id()));
        let result = (|| -> std::io::Result<(bool, String, String)> {
            std::fs::create_dir_all(&dir)?;
            for name in ["hivmc", "hivmc-a5"] {
                stand_in(&dir.join(name))?;
            }
            std::fs::write(dir.join("kernel.mlir"), text)?;
            let (ok, said) = self.launch(&dir, chip)?;
            let last = std::fs::read_to_string(dir.join("out/module.hivm.opt.mlir"));
            Ok((ok, said, last.unwrap_or_default()))
        })();
        let _ = std::fs::remove_dir_all(&dir);
        let (ok, said, last) = result?;
        let said = said.replace(&format!("{}/", dir.display()), "");
        let (said, planned) = match said.rfind(DUMP) {
            Some(at) if ok => (&said[..at], said[at..].split_once('\n').map(|x| x.1)),
            _ => {
                // What stops it after the dump is said after it.
                let before = &said[..said.find(DUMP).unwrap_or(said.len())];
                (if before.trim().is_empty() { &said[..] } else { before }, None)
            }
        };
        let Some(planned) = planned.filter(|_| !last.is_empty()) else {
            // Without an answer how much more it needs is not known.
            let limit = chip.capacity("ub").unwrap_or(0);
            let large = || Verdict::TooLarge { level: "ub".to_string(), need: limit + 1, limit };
            let other = || match said.starts_with(SILENCE) && said.contains(AGAIN) {
                true => large(),
                false => Verdict::Refused(first_lines(said)),
            };
            return Ok(overflow(said).unwrap_or_else(other));
        };
        let lacking = self.lacking(&last, chip)?;
        if !lacking.is_empty() {
            let names = lacking.join(", ");
            return Ok(Verdict::Refused(format!("the chip's device library lacks {names}")));
        }
        Ok(Verdict::Planned(planned.to_string()))
    }

    /// The library functions that a final program calls and that are in no library shipped for the chip.
    fn lacking(&self, last: &str, chip: &Chip) -> std::io::Result<Vec<String>> {
        const DECLARED: &str = "func.func private @";
        let called = last.split(DECLARED).skip(1).filter_map(|s| s.split('(').next());
        let called: BTreeSet<&str> = called.collect();
        if called.is_empty() {
            return Ok(Vec::new());
        }
        let family = if is_950(chip) { "c310" } else { "c220" };
        let folder = self.program.parent().and_then(Path::parent).map(|p| p.join("lib")).unwrap_or_default();
        static NAMES: Mutex<BTreeMap<(PathBuf, &str), Names>> = Mutex::new(BTreeMap::new());
        let mut known = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
        let names = match known.get(&(folder.clone(), family)) {
            Some(names) => names.clone(),
            None => {
                let names = Arc::new(names_of(&folder, family)?);
                known.insert((folder, family), names.clone());
                names
            }
        };
        drop(known);
        // Names stand side by side: what follows one in its library may be another.
        let is_there = |n: &str| {
            let from = names.range(n.as_bytes().to_vec()..).next();
            from.is_some_and(|found| found.starts_with(n.as_bytes()))
        };
        Ok(called.into_iter().filter(|n| !is_there(n)).map(str::to_string).collect())
    }

    fn launch(&self, dir: &Path, chip: &Chip) -> std::io::Result<(bool, String)> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::iter::once(dir.to_path_buf()).chain(std::env::split_paths(&path));
        let path = std::env::join_paths(path).map_err(std::io::Error::other)?;
        let log = std::fs::File::create(dir.join("log"))?;
        // Where this process is ended, that one ends by itself.
        let most = 2 * PATIENCE.as_secs();
        let mut child = Command::new("/bin/sh")
            .args(["-c", &format!("ulimit -t {most}; exec \"$0\" \"$@\"")])
            .arg(&self.program)
            .current_dir(dir)
            .env("PATH", path)
            .arg("kernel.mlir")
            .arg(format!("--target={}", chip.arch))
            .args(["--enable-hfusion-compile=true", "--enable-hivm-compile=true"])
            .args(["--enable-triton-kernel-compile=true", "--save-temps=out", "-o", "kernel.o"])
            .arg(format!("--mlir-print-ir-before={}", last_pass(chip)))
            .args(["--mlir-print-ir-module-scope", "--mlir-print-op-generic", "--mlir-disable-threading"])
            .stdin(std::process::Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let start = Instant::now();
        let (mut looked, mut end) = (start, start + PATIENCE);
        let status = loop {
            let now = Instant::now();
            match child.try_wait()? {
                Some(status) => break Some(status),
                None if now > end => {
                    child.kill()?;
                    child.wait()?;
                    break None;
                }
                None => std::thread::sleep(Duration::from_millis(5)),
            }
            if now - looked > Duration::from_secs(1) && end == start + PATIENCE {
                looked = now;
                if String::from_utf8_lossy(&std::fs::read(dir.join("log"))?).contains(AGAIN) {
                    end = end.min(now + SECOND);
                }
            }
        };
        let mut said = String::from_utf8_lossy(&std::fs::read(dir.join("log"))?).into_owned();
        if status.is_none() {
            said = format!("{SILENCE} within {} s\n{said}", (end - start).as_secs());
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

/// What begins the words of a program that was stopped.
const SILENCE: &str = "no answer";

/// What begins a dump of the program.
const DUMP: &str = "// -----// IR Dump Before";

/// What stands behind each place where a library names a function.
type Names = Arc<BTreeSet<Vec<u8>>>;

/// The bytes after each place where the libraries of a family name a function: its name, and what follows.
fn names_of(folder: &Path, family: &str) -> std::io::Result<BTreeSet<Vec<u8>>> {
    const HEAD: &[u8] = b"_mlir_ciface_";
    const MOST: usize = 160;
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let file = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if !(file.ends_with(".bc") && file.contains(family)) {
            continue;
        }
        let bytes = std::fs::read(&path)?;
        let mut at = 0;
        while let Some(next) = bytes[at..].iter().position(|b| *b == HEAD[0]) {
            at += next;
            if bytes[at..].starts_with(HEAD) {
                let name = &bytes[at + HEAD.len()..];
                names.insert(name[..name.len().min(MOST)].to_vec());
            }
            at += 1;
        }
    }
    Ok(names)
}

/// Where the verdict on a text is kept: by the compiler's version, the chip and the text.
fn cached(text: &str, chip: &Chip) -> Option<PathBuf> {
    let mut hash = Sha256::new();
    for part in [VERSION, &chip.arch, last_pass(chip), text] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    let mut name = String::new();
    hash.finalize().iter().for_each(|b| {
        let _ = write!(name, "{b:02x}");
    });
    Some(cache()?.join("ascend").join(&name[..2]).join(name))
}

/// Writes a cache entry whole or not at all; a cache that cannot be written is no cache.
fn keep(path: &Path, text: &str) {
    let own = path.with_extension(format!("{}", std::process::id()));
    let written = path.parent().is_some_and(|d| std::fs::create_dir_all(d).is_ok())
        && std::fs::write(&own, text).is_ok()
        && std::fs::rename(&own, path).is_ok();
    if !written {
        let _ = std::fs::remove_file(own);
    }
}

/// Diagnostics with the instructions that their lines come from.
fn with_origins(why: &str, origins: &[(usize, String)]) -> String {
    let line = |l: &str| {
        let number: usize = l.split("kernel.mlir:").nth(1)?.split(':').next()?.parse().ok()?;
        let (_, origin) = origins.iter().rev().find(|o| o.0 <= number)?;
        Some(format!("{l}\n  in: {origin}"))
    };
    why.lines().map(|l| line(l).unwrap_or_else(|| l.to_string())).collect::<Vec<_>>().join("\n")
}

/// Reads "ub overflow, requires N bits while M bits available".
fn overflow(said: &str) -> Option<Verdict> {
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
    Some(Verdict::TooLarge { level: level.to_string(), need: need.div_ceil(8), limit: limit / 8 })
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
    fn diagnostics_name_the_instruction() {
        let origins = [(3, "add (f32[4]) at 'a'".to_string()), (7, "exp (f32[4])".to_string())];
        let said = with_origins("kernel.mlir:5:2: error: no\nnote", &origins);
        assert_eq!(said, "kernel.mlir:5:2: error: no\n  in: add (f32[4]) at 'a'\nnote");
    }

    #[test]
    fn overflow_is_read() {
        let said = "kernel.mlir:3:1: error: ub overflow, requires 2097152 bits while 1572864 bits available! (possible reason)";
        let text = overflow(said).unwrap().to_text();
        assert_eq!(text, "overflow ub 262144 196608\n");
        assert_eq!(Verdict::from_text(&text).unwrap().to_text(), text);
        assert!(overflow("error: something else").is_none());
    }
}
