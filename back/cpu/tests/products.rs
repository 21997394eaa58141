//! What products become on chips whose multiply-adds pick an element of a vector.

#![cfg(any(feature = "llvm", feature = "llvm-static"))]

use std::process::{Command, Stdio};
use tongtu_chip::Chip;
use tongtu_cpu::agent::{AgentDevice, build, emulator};
use tongtu_cpu::{CpuCompiler, llvm, lower};
use tongtu_plan::backend::{Compiler, Device, Event, LaunchArg, Mem};
use tongtu_tile::{Kernel, Module, parse_kernel, verify};

const ROWS: usize = 6;
/// Twelve steps in runs of four, and two more.
const STEPS: usize = 14;

/// `c[6, width] = a[6, 14] b[14, width]`.
fn product(width: usize) -> Kernel {
    let text = format!(
        "kernel @product(%a \"a\": read buffer<f32>, %b \"b\": read buffer<f32>, %c \"c\": write buffer<f32>) {{
  %zero: i64 = full {{dtype = i64, shape = [], value = 0}}
  %one: i64 = full {{dtype = i64, shape = [], value = 1}}
  %four: i64 = full {{dtype = i64, shape = [], value = 4}}
  %end: i64 = full {{dtype = i64, shape = [], value = 12}}
  %rows: i64 = full {{dtype = i64, shape = [], value = {ROWS}}}
  %steps: i64 = full {{dtype = i64, shape = [], value = {STEPS}}}
  %width: i64 = full {{dtype = i64, shape = [], value = {width}}}
  %va: view<f32, 2> = view %a, %zero, [%rows, %steps], [%steps, %one]
  %vb: view<f32, 2> = view %b, %zero, [%steps, %width], [%width, %one]
  %vc: view<f32, 2> = view %c, %zero, [%rows, %width], [%width, %one]
  %none: f32[{ROWS}, {width}] = full {{dtype = f32, shape = [{ROWS}, {width}], value = 0}}
  %most: f32[{ROWS}, {width}] = for %zero, %end, %four, %none do (%k: i64, %sum: f32[{ROWS}, {width}]) {{
    %l: f32[{ROWS}, 4] = load %va[%zero, %k] {{map = [{ROWS}@0, 4@1], inside = [true, true], pad = 0}}
    %r: f32[4, {width}] = load %vb[%k, %zero] {{map = [4@0, {width}@1], inside = [true, true], pad = 0}}
    %s: f32[{ROWS}, {width}] = mma %sum, %l, %r
    yield %s
  }}
  %l2: f32[{ROWS}, 2] = load %va[%zero, %end] {{map = [{ROWS}@0, 2@1], inside = [true, true], pad = 0}}
  %r2: f32[2, {width}] = load %vb[%end, %zero] {{map = [2@0, {width}@1], inside = [true, true], pad = 0}}
  %all: f32[{ROWS}, {width}] = mma %most, %l2, %r2
  store %vc[%zero, %zero], %all {{map = [{ROWS}@0, {width}@1], inside = [true, true]}}
}}
"
    );
    let kernel = parse_kernel(&text).unwrap_or_else(|e| panic!("{e}"));
    verify(&kernel).unwrap_or_else(|e| panic!("{e:?}"));
    kernel
}

fn picking() -> impl Iterator<Item = Chip> {
    Chip::families().filter(|c| c.vector.picked_bits.is_some())
}

#[test]
fn multiply_adds_pick_elements() {
    for chip in picking() {
        let kernel = product(2 * chip.vector.bits as usize / 32);
        let lowered = lower::kernel(&kernel, &chip).unwrap_or_else(|e| panic!("{e:?}"));
        let target = llvm::Target::of(&chip).unwrap_or_else(|e| panic!("{e}"));
        let code = llvm::assembly(&lowered.ir, lowered.products, &target).unwrap_or_else(|e| panic!("{e}"));
        let picked = |l: &&str| l.contains("fmla\t") && l.contains(".s[");
        assert!(code.lines().filter(picked).count() >= ROWS * 2 * 4, "{}", chip.name);
    }
}

#[test]
fn products_are_right_on_every_length() {
    for chip in picking() {
        let width = 2 * chip.vector.bits as usize / 32;
        let Some(device) = emulated(&chip) else { continue };
        let module = Module { kernels: vec![product(width)] };
        let code = CpuCompiler { threads: 1 }.compile(&module, &chip).unwrap_or_else(|e| panic!("{e}"));
        let a: Vec<f32> = (0..ROWS * STEPS).map(|i| (i % 7) as f32 - 3.0).collect();
        let b: Vec<f32> = (0..STEPS * width).map(|i| (i % 11) as f32 - 5.0).collect();
        let mut c = vec![0f32; ROWS * width];
        let want: Vec<f32> = (0..ROWS * width)
            .map(|i| (0..STEPS).map(|k| a[i / width * STEPS + k] * b[k * width + i % width]).sum())
            .collect();
        let near = |p: *const f32, n: usize| Mem { address: p as u64, bytes: 4 * n as u64 };
        let loaded = device.load(&code).unwrap_or_else(|e| panic!("{e}"));
        let far: Vec<Mem> =
            [a.len(), b.len(), c.len()].iter().map(|&n| device.alloc(4 * n as u64).unwrap()).collect();
        device.copy(far[0], near(a.as_ptr(), a.len()), Event::DONE).unwrap();
        device.copy(far[1], near(b.as_ptr(), b.len()), Event::DONE).unwrap();
        let args: Vec<LaunchArg> = far.iter().map(|&m| LaunchArg::Buffer(m, m.bytes / 4)).collect();
        device.launch(loaded, 0, [1, 1, 1], &args, Event::DONE).unwrap_or_else(|e| panic!("{e}"));
        device.copy(near(c.as_mut_ptr(), c.len()), far[2], Event::DONE).unwrap();
        assert_eq!(c, want, "{}", chip.name);
    }
}

/// The agent under the emulation of a chip; `None`, said aloud, where it cannot be.
fn emulated(chip: &Chip) -> Option<AgentDevice> {
    let run = emulator(chip)?;
    let path = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let agent = path.join(format!("products-{}-{}", chip.name, std::process::id()));
    let there = Command::new(&run[0]).arg("--version").stdout(Stdio::null()).status().is_ok();
    if let (false, _) | (_, Err(_)) = (there, build(&chip.arch, &agent)) {
        eprintln!("NOT CHECKED: {} is not emulated here", chip.name);
        return None;
    }
    let mut command = Command::new(&run[0]);
    command.args(&run[1..]).arg(agent);
    Some(AgentDevice::start(&chip.name, command, 60).expect("the agent starts"))
}
