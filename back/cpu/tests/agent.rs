//! Kernels on other machines: the agent, natively and under emulation. Without clang, lld or QEMU nothing is checked, and the tests say so.

#![cfg(any(feature = "llvm", feature = "llvm-static"))]

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use tongtu_chip::Chip;
use tongtu_cpu::CpuCompiler;
use tongtu_cpu::agent::{AgentDevice, build, emulator, protocol};
use tongtu_plan::backend::{Compiler, Device, DeviceError, Event, LaunchArg, Mem};
use tongtu_tile::{Module, parse_kernel, verify};

/// Doubles 21 numbers and adds a table, so that the code refers to constants.
const TWICE: &str = "kernel @twice(%x \"x\": read buffer<f32>, %y \"y\": write buffer<f32>) {
  %zero: i64 = full {dtype = i64, shape = [], value = 0}
  %one: i64 = full {dtype = i64, shape = [], value = 1}
  %n: i64 = full {dtype = i64, shape = [], value = 21}
  %vx: view<f32, 1> = view %x, %zero, [%n], [%one]
  %vy: view<f32, 1> = view %y, %zero, [%n], [%one]
  %a: f32[21] = load %vx[%zero] {map = [21@0], inside = [true], pad = 0}
  %i: i32[21] = iota {dtype = i32, shape = [21], dim = 0}
  %k: f32[21] = cast %i {to = f32}
  %b: f32[21] = add %a, %a
  %c: f32[21] = add %b, %k
  store %vy[%zero], %c {map = [21@0], inside = [true]}
}
";

/// Never ends.
const FOREVER: &str = "kernel @forever(%y \"y\": readwrite buffer<i32>) {
  %zero: i64 = full {dtype = i64, shape = [], value = 0}
  %go: bool = full {dtype = bool, shape = [], value = 1}
  %at: i64[1] = reshape %zero {shape = [1]}
  %one: i32[1] = full {dtype = i32, shape = [1], value = 1}
  while %go do () {
    %old: i32[1] = atomic_rmw %y, %at, %one {combiner = add, ordering = relaxed, scope = device}
    yield %go
  }
}
";

/// The agent of an architecture; `None`, said aloud, where it cannot be built.
fn agent(arch: &str) -> Option<PathBuf> {
    let path =
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("agent-{arch}-{}", std::process::id()));
    match build(arch, &path) {
        Ok(()) => Some(path),
        Err(e) => {
            eprintln!("NOT CHECKED: {e}");
            None
        }
    }
}

/// The agent on this machine.
fn here(limit: u64) -> Option<AgentDevice> {
    let device = AgentDevice::start("here", Command::new(agent(std::env::consts::ARCH)?), limit);
    Some(device.expect("the agent starts"))
}

/// The agent under the emulation of a chip.
fn emulated(chip: &Chip) -> Option<AgentDevice> {
    let run = emulator(chip)?;
    if Command::new(&run[0]).arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("NOT CHECKED: {} is not installed", run[0]);
        return None;
    }
    let mut command = Command::new(&run[0]);
    command.args(&run[1..]).arg(agent(&chip.arch)?);
    Some(AgentDevice::start(&chip.name, command, 60).expect("the agent starts"))
}

fn compiled(text: &str, chip: &Chip) -> tongtu_plan::Artifact {
    let kernel = parse_kernel(text).unwrap_or_else(|e| panic!("{e}"));
    verify(&kernel).unwrap_or_else(|e| panic!("{e:?}"));
    CpuCompiler { threads: 1 }
        .compile(&Module { kernels: vec![kernel] }, chip)
        .unwrap_or_else(|e| panic!("{e}"))
}

fn doubles(device: &AgentDevice, chip: &Chip) {
    let module = device.load(&compiled(TWICE, chip)).unwrap_or_else(|e| panic!("{e}"));
    let x: Vec<f32> = (0..21).map(|i| i as f32 / 4.0).collect();
    let mut y = vec![0f32; 21];
    let near = |p: *const f32| Mem { address: p as u64, bytes: 84 };
    let (a, b) = (device.alloc(84).unwrap(), device.alloc(84).unwrap());
    device.copy(a, near(x.as_ptr()), Event::DONE).unwrap();
    let args = [LaunchArg::Buffer(a, 21), LaunchArg::Buffer(b, 21)];
    device.launch(module, 0, [1, 1, 1], &args, Event::DONE).unwrap_or_else(|e| panic!("{e}"));
    device.copy(near(y.as_mut_ptr()), b, Event::DONE).unwrap();
    let want: Vec<f32> = (0..21).map(|i| x[i] + x[i] + i as f32).collect();
    assert_eq!(y, want, "{}", chip.name);
    // Memory that is not there is refused, and nothing is lost.
    device.free(b);
    let gone = device.launch(module, 0, [1, 1, 1], &args, Event::DONE);
    assert!(matches!(gone, Err(DeviceError::Launch { .. })), "{gone:?}");
    assert!(device.launch(module, 0, [1, 1, 1], &args[..1], Event::DONE).is_err());
    assert!(device.alloc(64).is_ok());
}

#[test]
fn a_kernel_runs_on_every_family() {
    for chip in Chip::families().filter(|c| !c.name.starts_with("x86-64-v4") && !c.name.contains("amx")) {
        if let Some(device) = emulated(&chip) {
            doubles(&device, &chip);
            assert_eq!(device.hello().arch, chip.arch);
        }
    }
}

#[test]
fn a_kernel_runs_through_the_agent_here() {
    let Some(device) = here(60) else { return };
    let chip = Chip::builtin("x86-64-v2").unwrap();
    if device.hello().arch == chip.arch {
        doubles(&device, &chip);
        assert!(device.chip().is_some());
    }
}

/// The agent with a connection for its input and output, as `socat` and `inetd` start it.
#[test]
#[cfg(unix)]
fn a_kernel_runs_over_a_socket() {
    use std::os::fd::OwnedFd;
    let chip = Chip::builtin("x86-64-v2").unwrap();
    let Some(path) = agent(std::env::consts::ARCH) else { return };
    let serve = |stream: OwnedFd| {
        let output = stream.try_clone().unwrap();
        Command::new(&path).stdin(Stdio::from(stream)).stdout(Stdio::from(output)).spawn().unwrap()
    };
    let check = |device: Result<AgentDevice, protocol::Error>| {
        let device = device.unwrap_or_else(|e| panic!("{e}"));
        if device.hello().arch == chip.arch {
            doubles(&device, &chip);
        }
        device
    };
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp:{}", tcp.local_addr().unwrap());
    let socket = path.with_extension("socket");
    let _ = std::fs::remove_file(&socket);
    let unix = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    std::thread::scope(|s| {
        let mut there = s.spawn(|| serve(tcp.accept().unwrap().0.into()));
        let device = check(AgentDevice::connect("tcp", &address, 60));
        // An agent whose connection ends, ends; one that is ended is lost.
        drop(device);
        assert!(there.join().unwrap().wait().unwrap().success());
        there = s.spawn(|| serve(unix.accept().unwrap().0.into()));
        let device = check(AgentDevice::connect("unix", &format!("unix:{}", socket.display()), 60));
        let mut process = there.join().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
        assert!(matches!(device.alloc(64), Err(DeviceError::Lost { .. })));
    });
    std::fs::remove_file(&socket).unwrap();
    assert!(AgentDevice::connect("gone", &format!("unix:{}", socket.display()), 1).is_err());
    assert!(AgentDevice::connect("what", "serial:/dev/null", 1).is_err());
}

#[test]
fn code_for_another_vector_length_is_refused() {
    let chip = |n: &str| Chip::builtin(n).unwrap();
    for (made_for, machine, need, have) in
        [("riscv64-v256", "riscv64-v128", 256, 128), ("aarch64-sve128", "aarch64-sve256", 128, 256)]
    {
        let Some(device) = emulated(&chip(machine)) else { continue };
        let refused = device.load(&compiled(TWICE, &chip(made_for))).unwrap_err().to_string();
        let words = format!("made for vectors of {need} bits, those of this machine have {have}");
        assert!(refused.contains(&words), "{refused}");
        let foreign = device.load(&compiled(TWICE, &chip("loongarch64"))).unwrap_err().to_string();
        assert!(foreign.contains("code for loongarch64"), "{foreign}");
    }
    if let Some(device) = emulated(&chip("riscv64")) {
        let refused = device.load(&compiled(TWICE, &chip("riscv64-v128"))).unwrap_err().to_string();
        assert!(refused.contains("feature v,"), "{refused}");
    }
}

#[test]
fn what_is_no_agent_is_an_error() {
    let start = |c: &str| {
        let mut shell = Command::new("sh");
        shell.args(["-c", c]);
        AgentDevice::start("x", shell, 1).err().unwrap_or_else(|| panic!("{c} is taken for an agent"))
    };
    assert!(matches!(start("exit 3"), protocol::Error::Ended(s) if s.contains('3')));
    assert!(matches!(start("echo Welcome to the board; sleep 1"), protocol::Error::Frame(_)));
    assert!(matches!(start("exec cat"), protocol::Error::Frame(_)));
    assert!(AgentDevice::start("x", Command::new("/nowhere/agent"), 1).is_err());
}

#[test]
fn an_agent_that_dies_or_does_not_end_is_lost() {
    let Some(device) = here(1) else { return };
    let chip = Chip::builtin("x86-64-v2").unwrap();
    if device.hello().arch != chip.arch {
        return;
    }
    let module = device.load(&compiled(FOREVER, &chip)).unwrap();
    let y = device.alloc(4).unwrap();
    let late = device.launch(module, 0, [1, 1, 1], &[LaunchArg::Buffer(y, 1)], Event::DONE).unwrap_err();
    assert!(matches!(&late, DeviceError::Lost { detail, .. } if detail.contains("SIGALRM")), "{late}");
    // Everything after says so too, at once.
    assert!(matches!(device.alloc(4), Err(DeviceError::Lost { .. })));
    device.free(y);
}

/// Numbers that look random and are the same in every run.
fn noise(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
    *seed >> 33
}

fn bare() -> Option<Child> {
    let mut command = Command::new(agent(std::env::consts::ARCH)?);
    Some(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the agent starts"))
}

/// Frames of any contents are answered, by refusals mostly; the agent lives on.
#[test]
fn the_agent_takes_any_frame() {
    let Some(mut child) = bare() else { return };
    let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut seed = 5;
    for _ in 0..20_000 {
        // 9 would end it, and a block of every size is given if there is memory.
        let kind = match noise(&mut seed) % 12 {
            2 | 9 => 99,
            k => k as u32,
        };
        let numbers = noise(&mut seed) % 20;
        let mut body: Vec<u8> = (0..numbers)
            .flat_map(|_| {
                match noise(&mut seed) % 3 {
                    0 => noise(&mut seed) % 4,
                    1 => u64::MAX - noise(&mut seed) % 4,
                    _ => noise(&mut seed) << 32 | noise(&mut seed),
                }
                .to_le_bytes()
            })
            .collect();
        body.truncate(body.len() - (noise(&mut seed) as usize % 8).min(body.len()));
        input.write_all(&protocol::frame(kind, &body)).unwrap();
        let (answer, _) = protocol::read_frame(&mut output).unwrap().expect("an answer");
        assert!(answer == protocol::REFUSAL || answer == protocol::ANSWER | kind, "{answer:#x} to {kind}");
    }
    // Half a frame, then nothing.
    input.write_all(&protocol::frame(1, &[0; 64])[..30]).unwrap();
    drop(input);
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

/// What is no frame ends it, after it has said so.
#[test]
fn the_agent_ends_over_what_is_no_frame() {
    let long = [protocol::MAGIC, 1, u32::MAX].map(u32::to_le_bytes).concat();
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &long] {
        let Some(mut child) = bare() else { return };
        child.stdin.as_mut().unwrap().write_all(bytes).unwrap();
        let (kind, _) = protocol::read_frame(child.stdout.as_mut().unwrap()).unwrap().expect("an answer");
        assert_eq!(kind, protocol::REFUSAL);
        assert_eq!(child.wait().unwrap().code(), Some(1));
    }
}
