//! Machines reached through an agent: boards, and emulators of chips that are not here.

use std::process::{Command, Stdio};
use std::sync::Arc;

use tongtu_chip::{Chip, Kind};
use tongtu_cpu::agent::{AgentDevice, SOURCE, build, emulator, newer_emulator};
use tongtu_cpu::dispensable;
use tongtu_plan::Device;

use crate::cache;
use crate::error::Error;

/// Seconds that one launch may take there.
const LIMIT: u64 = 600;

/// A machine that runs kernels for this one.
#[derive(Clone, Debug)]
pub struct Remote {
    pub(crate) device: Arc<AgentDevice>,
    pub(crate) chip: Chip,
}

impl Remote {
    /// Reaches a machine by its name: `agent:COMMAND`, where the shell command is an agent or leads to one (`ssh board ./agent`);
    /// `agent:tcp:HOST:PORT` or `agent:unix:PATH`, where an agent answers connections; or `emulator:CHIP`.
    pub fn open(name: &str) -> Result<Remote, Error> {
        match name.split_once(':') {
            Some(("agent", at)) if at.starts_with("tcp:") || at.starts_with("unix:") => Remote::connect(at),
            Some(("agent", command)) => Remote::agent(command),
            Some(("emulator", chip)) => Remote::emulator(&Chip::builtin(chip)?),
            _ => Err(Error::Remote(format!("'{name}' is neither agent:COMMAND nor emulator:CHIP"))),
        }
    }

    /// The machine that an agent runs on, which a shell command starts; described by the family of chips that it belongs to.
    pub fn agent(command: &str) -> Result<Remote, Error> {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("exec {command}")]);
        Remote::of(start(&format!("agent:{command}"), shell)?)
    }

    /// The machine that an agent behind an address runs on: `tcp:HOST:PORT` or `unix:PATH`.
    pub fn connect(address: &str) -> Result<Remote, Error> {
        let name = format!("agent:{address}");
        let device = AgentDevice::connect(&name, address, LIMIT);
        Remote::of(device.map_err(|e| Error::Remote(format!("{name}: {e}")))?)
    }

    fn of(device: AgentDevice) -> Result<Remote, Error> {
        let hello = device.hello();
        let none =
            || format!("no chip file describes a machine {} with {}", hello.arch, hello.features.join(", "));
        let chip = device.chip().ok_or_else(|| Error::Remote(none()))?;
        Ok(Remote { device: Arc::new(device), chip })
    }

    /// The same machine under another description, such as that of the very part.
    pub fn with_chip(self, chip: Chip) -> Remote {
        Remote { chip, ..self }
    }

    /// An emulation of a CPU by a program that is installed here (QEMU).
    pub fn emulator(chip: &Chip) -> Result<Remote, Error> {
        let none = || Error::Remote(format!("there is no emulator for {}", chip.name));
        let command = emulator(chip).filter(|_| chip.kind == Kind::Cpu).ok_or_else(none)?;
        if !installed(&command[0]) {
            let detail = format!("{} is not installed: `scripts/setup --emulators` installs it", command[0]);
            return Err(Error::Remote(detail));
        }
        let agent = built(&chip.arch)?;
        let name = format!("emulator:{}", chip.name);
        let run = |command: &[String]| {
            let mut run = Command::new(&command[0]);
            run.args(&command[1..]).arg(&agent);
            run
        };
        // An older one complains of what it does not know.
        let newer = newer_emulator(chip).and_then(|command| {
            let mut run = run(&command);
            run.stderr(Stdio::null());
            start(&name, run).ok()
        });
        let device = newer.map_or_else(|| start(&name, run(&command)), Ok)?;
        // What the emulator lacks and code can do without is not asked for, and the name says so.
        let mut chip = chip.clone();
        let there = device.hello().features.clone();
        let (kept, lacking): (Vec<String>, Vec<String>) =
            chip.features.into_iter().partition(|f| there.contains(f) || !dispensable(f));
        chip.features = kept;
        let device = match lacking.is_empty() {
            true => device,
            false => device.renamed(&format!("{name} without {}", lacking.join(", "))),
        };
        Ok(Remote { device: Arc::new(device), chip })
    }

    /// The chip that is compiled for.
    pub fn chip(&self) -> &Chip {
        &self.chip
    }

    /// The device.
    pub fn device(&self) -> &AgentDevice {
        &self.device
    }
}

fn start(name: &str, command: Command) -> Result<AgentDevice, Error> {
    AgentDevice::start(name, command, LIMIT).map_err(|e| Error::Remote(format!("{name}: {e}")))
}

/// The chips of other architectures that an emulator is installed for.
pub fn emulated() -> Vec<Chip> {
    let there = |c: &Chip| emulator(c).is_some_and(|run| installed(&run[0]));
    let foreign = |c: &Chip| c.kind == Kind::Cpu && c.arch != std::env::consts::ARCH;
    Chip::names().filter_map(|n| Chip::builtin(n).ok()).filter(|c| foreign(c) && there(c)).collect()
}

/// Whether a program is on the path.
fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|d| d.join(program).is_file())
}

/// The agent for an architecture, built where it was not before.
fn built(arch: &str) -> Result<std::path::PathBuf, Error> {
    let root =
        cache::root().ok_or_else(|| Error::Remote("there is no folder to build the agent in".into()))?;
    let folder = root.join("agents");
    let key = cache::key(&[SOURCE.as_bytes()]);
    let path = folder.join(format!("{arch}-{}", &key[..16]));
    if !path.is_file() {
        std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        let part = folder.join(format!(".part-{arch}-{}", std::process::id()));
        build(arch, &part).map_err(|e| Error::Remote(e.to_string()))?;
        std::fs::rename(&part, &path).map_err(Error::io(&path))?;
    }
    Ok(path)
}

impl Remote {
    pub(crate) fn shared(&self) -> Arc<dyn Device> {
        self.device.clone()
    }
}
