//! What products become on chips whose instructions pick elements of a vector, or sum several steps at once.

#![cfg(any(feature = "llvm", feature = "llvm-static"))]

use std::process::{Command, Stdio};
use tongtu_chip::Chip;
use tongtu_cpu::agent::{AgentDevice, build, emulator};
use tongtu_cpu::{CpuCompiler, llvm, lower};
use tongtu_plan::backend::{Compiler, Device, Event, LaunchArg, Mem};
use tongtu_tensor::{DType, Num};
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

/// `c[6, width] = a[6, steps] b[steps, width]`, the steps of `b` as many side by side as fill 32 bits.
fn grouped(width: usize, steps: usize, types: [DType; 2]) -> Kernel {
    let [a, b] = types.map(|t| t.name());
    let (acc, side) = if types[0] == DType::BF16 { ("f32", 2) } else { ("i32", 4) };
    let (groups, line) = (steps / side, width * side);
    let text = format!(
        "kernel @product(%a \"a\": read buffer<{a}>, %b \"b\": read buffer<{b}>, %c \"c\": write buffer<{acc}>) {{
  %zero: i64 = full {{dtype = i64, shape = [], value = 0}}
  %one: i64 = full {{dtype = i64, shape = [], value = 1}}
  %rows: i64 = full {{dtype = i64, shape = [], value = {ROWS}}}
  %steps: i64 = full {{dtype = i64, shape = [], value = {steps}}}
  %width: i64 = full {{dtype = i64, shape = [], value = {width}}}
  %groups: i64 = full {{dtype = i64, shape = [], value = {groups}}}
  %side: i64 = full {{dtype = i64, shape = [], value = {side}}}
  %line: i64 = full {{dtype = i64, shape = [], value = {line}}}
  %va: view<{a}, 2> = view %a, %zero, [%rows, %steps], [%steps, %one]
  %vb: view<{b}, 3> = view %b, %zero, [%groups, %width, %side], [%line, %side, %one]
  %vc: view<{acc}, 2> = view %c, %zero, [%rows, %width], [%width, %one]
  %none: {acc}[{ROWS}, {width}] = full {{dtype = {acc}, shape = [{ROWS}, {width}], value = 0}}
  %l: {a}[{ROWS}, {steps}] = load %va[%zero, %zero] {{map = [{ROWS}@0, {steps}@1], inside = [true, true], pad = 0}}
  %r: {b}[{steps}, {width}] = load %vb[%zero, %zero, %zero] {{map = [[{groups}@0, {side}@2], {width}@1], inside = [true, true, true], pad = 0}}
  %s: {acc}[{ROWS}, {width}] = mma %none, %l, %r
  store %vc[%zero, %zero], %s {{map = [{ROWS}@0, {width}@1], inside = [true, true]}}
}}
"
    );
    let kernel = parse_kernel(&text).unwrap_or_else(|e| panic!("{e}"));
    verify(&kernel).unwrap_or_else(|e| panic!("{e:?}"));
    kernel
}

/// Chips that sum several steps at once, for operands of some types, and the instructions that they do it with.
fn summing() -> Vec<(Chip, [DType; 2], &'static [&'static str])> {
    let chip = |name: &str| Chip::builtin(name).unwrap_or_else(|e| panic!("{e}"));
    let mut out = Vec::new();
    for name in ["graviton-3", "kunpeng-920", "aarch64-sve128", "aarch64-sve512"] {
        out.push((chip(name), [DType::I8; 2], &["sdot\t"][..]));
        out.push((chip(name), [DType::U8; 2], &["udot\t"][..]));
    }
    out.push((chip("graviton-3"), [DType::U8, DType::I8], &["sudot\t", "usdot\t"]));
    out.push((chip("graviton-3"), [DType::I8, DType::U8], &["usdot\t"]));
    out.push((chip("graviton-3"), [DType::BF16; 2], &["bfmlalb\t", "bfmlalt\t"]));
    // Without an instruction for unlike signs the left operand's are turned over.
    out.push((chip("kunpeng-920"), [DType::U8, DType::I8], &["sdot\t"]));
    out.push((chip("kunpeng-920"), [DType::I8, DType::U8], &["udot\t"]));
    out.push((chip("aarch64-sve256"), [DType::U8, DType::I8], &["sdot\t"]));
    let mut short = chip("graviton-3");
    (short.name, short.vector.bits) = ("graviton-3 with 128 bits".to_string(), 128);
    short.features.retain(|f| f != "sve");
    out.push((short.clone(), [DType::U8, DType::I8], &["sudot\t", "usdot\t"]));
    out.push((short, [DType::BF16; 2], &["bfmlalb\t", "bfmlalt\t"]));
    out
}

#[test]
fn several_steps_are_summed_at_once() {
    for (chip, types, names) in summing() {
        let side = 32 / types[0].bits() as usize;
        for (vectors, groups) in [(2, 4), (2, 5), (1, 4)] {
            let kernel = grouped(vectors * chip.vector.bits as usize / 32, groups * side, types);
            let lowered = lower::kernel(&kernel, &chip).unwrap_or_else(|e| panic!("{e:?}"));
            let target = llvm::Target::of(&chip).unwrap_or_else(|e| panic!("{e}"));
            let code =
                llvm::assembly(&lowered.ir, lowered.products, &target).unwrap_or_else(|e| panic!("{e}"));
            let count = code.lines().filter(|l| names.iter().any(|n| l.contains(n))).count();
            let least = ROWS * vectors * groups * if side == 2 { 2 } else { 1 };
            assert!(count >= least, "{}, {types:?}: {count} of {least}\n{code}", chip.name);
        }
    }
}

#[test]
fn sums_of_several_steps_are_right() {
    for (chip, types, _) in summing() {
        let Some(device) = emulated(&chip) else { continue };
        let side = 32 / types[0].bits() as usize;
        for (vectors, groups) in [(2, 4), (2, 5), (1, 4)] {
            let (width, steps) = (vectors * chip.vector.bits as usize / 32, groups * side);
            // Every byte, the ends of the range next to each other too.
            let value = |d: DType, i: usize| match d {
                DType::U8 => [0, 255, 1, 128, 127, 254][i % 6] as i64,
                DType::I8 => [-128, 127, -1, 0, 1, -127, 64][i % 7] as i64,
                _ => i as i64 % 9 - 4,
            };
            let a = |i: usize, k: usize| value(types[0], i * steps + k);
            let b = |k: usize, j: usize| value(types[1], 3 * k + j);
            let sum = |i: usize, j: usize| (0..steps).map(|k| a(i, k) * b(k, j)).sum::<i64>();
            let sums = (0..ROWS * width).map(|at| sum(at / width, at % width));
            let want: Vec<u8> = match types[0] {
                DType::BF16 => sums.flat_map(|x| (x as f32).to_le_bytes()).collect(),
                _ => sums.flat_map(|x| (x as i32).to_le_bytes()).collect(),
            };
            let left = bytes(types[0], (0..ROWS * steps).map(|at| a(at / steps, at % steps)));
            let place = |at: usize| (at / side / width * side + at % side, at / side % width);
            let right = bytes(types[1], (0..steps * width).map(|at| b(place(at).0, place(at).1)));
            let kernel = grouped(width, steps, types);
            let got = run(
                &device,
                &chip,
                kernel,
                [(&left, left.len() / (4 / side)), (&right, right.len() / (4 / side))],
                ROWS * width,
            );
            assert_eq!(got, want, "{}, {types:?}, {vectors} vectors, {groups} groups", chip.name);
        }
    }
}

/// Whole numbers as elements of a type.
fn bytes(dtype: DType, values: impl Iterator<Item = i64>) -> Vec<u8> {
    let size = dtype.bits() as usize / 8;
    let code = |x: i64| {
        dtype.encode(
            if dtype.is_float() { Num::Float(x as f64) } else { Num::Int(x.into()) },
            Default::default(),
        )
    };
    values.flat_map(|x| code(x).to_le_bytes()[..size].to_vec()).collect()
}

#[test]
fn products_are_right_on_every_length() {
    for chip in picking() {
        let width = 2 * chip.vector.bits as usize / 32;
        let Some(device) = emulated(&chip) else { continue };
        let a = |i: usize| (i % 7) as f32 - 3.0;
        let b = |i: usize| (i % 11) as f32 - 5.0;
        let want: Vec<u8> = (0..ROWS * width)
            .map(|i| (0..STEPS).map(|k| a(i / width * STEPS + k) * b(k * width + i % width)).sum::<f32>())
            .flat_map(f32::to_le_bytes)
            .collect();
        let left: Vec<u8> = (0..ROWS * STEPS).flat_map(|i| a(i).to_le_bytes()).collect();
        let right: Vec<u8> = (0..STEPS * width).flat_map(|i| b(i).to_le_bytes()).collect();
        let inputs = [(&left, ROWS * STEPS), (&right, STEPS * width)];
        assert_eq!(run(&device, &chip, product(width), inputs, ROWS * width), want, "{}", chip.name);
    }
}

/// What a kernel of two inputs, bytes with their number of elements, writes: so many elements of four bytes.
fn run(
    device: &AgentDevice,
    chip: &Chip,
    kernel: Kernel,
    inputs: [(&Vec<u8>, usize); 2],
    out: usize,
) -> Vec<u8> {
    let module = Module { kernels: vec![kernel] };
    let code = CpuCompiler { threads: 1 }.compile(&module, chip).unwrap_or_else(|e| panic!("{e}"));
    let near = |x: &[u8]| Mem { address: x.as_ptr() as u64, bytes: x.len() as u64 };
    let loaded = device.load(&code).unwrap_or_else(|e| panic!("{e}"));
    let mut args = Vec::new();
    for (x, n) in inputs {
        let far = device.alloc(x.len() as u64).unwrap();
        device.copy(far, near(x), Event::DONE).unwrap();
        args.push(LaunchArg::Buffer(far, n as u64));
    }
    let mut result = vec![0u8; 4 * out];
    let far = device.alloc(result.len() as u64).unwrap();
    args.push(LaunchArg::Buffer(far, out as u64));
    device.launch(loaded, 0, [1, 1, 1], &args, Event::DONE).unwrap_or_else(|e| panic!("{e}"));
    let back = Mem { address: result.as_mut_ptr() as u64, bytes: result.len() as u64 };
    device.copy(back, far, Event::DONE).unwrap();
    result
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
