//! Runs a kernel by the reference interpreter and as machine code, and compares.

#![allow(dead_code)]

use std::sync::OnceLock;
use tongtu_chip::Chip;
use tongtu_cpu::{CpuCompiler, CpuDevice};
use tongtu_plan::backend::{CompileError, Compiler, Device, Event, LaunchArg, Mem};
use tongtu_tensor::{DType, Num, Tensor};
use tongtu_tile::interp::{self, BufferData};
use tongtu_tile::{Kernel, Module, verify};

/// The chips to compile for: all that this machine can run.
pub fn chips() -> &'static [Chip] {
    static CHIPS: OnceLock<Vec<Chip>> = OnceLock::new();
    CHIPS.get_or_init(|| {
        let host = Chip::host().expect("a description of this machine");
        let small = Chip::builtin("x86-64-v3").expect("built in");
        let both = host.vector.bits > small.vector.bits;
        if both { vec![host, small] } else { vec![host] }
    })
}

fn device() -> &'static CpuDevice {
    static DEVICE: OnceLock<CpuDevice> = OnceLock::new();
    DEVICE.get_or_init(|| CpuDevice::new(2).expect("threads"))
}

/// How far from the interpreter a float may be.
#[derive(Clone, Copy, Debug)]
pub enum Near {
    /// The same bits; NaNs are alike.
    Same,
    /// Within this share of the greatest magnitude in the buffer.
    Share(f64),
    /// So many codes away.
    Codes(i64),
}

/// Codes as integers in the order of their values.
fn order(d: DType, code: u64) -> i64 {
    let top = 1i64 << (d.bits() - 1);
    let code = code as i64;
    if code & top != 0 && d.is_float() { -(code & (top - 1)) } else { code & (top - 1 + top) }
}

fn compare(what: &str, got: &BufferData, want: &BufferData, near: Near) -> Result<(), String> {
    let d = want.dtype;
    let most = want.to_f64().into_iter().filter(|x| x.is_finite()).fold(0.0, |m: f64, x| m.max(x.abs()));
    for (i, (&g, &w)) in got.codes.iter().zip(&want.codes).enumerate() {
        let (x, y) = (d.decode(g), d.decode(w));
        if g == w || (x.is_nan() && y.is_nan()) {
            continue;
        }
        let ok = match near {
            Near::Same => false,
            Near::Share(s) => (x.to_f64() - y.to_f64()).abs() <= s * most,
            Near::Codes(n) => !x.is_nan() && !y.is_nan() && (order(d, g) - order(d, w)).abs() <= n,
        };
        if !ok {
            return Err(format!("{what}: element {i} is {x} ({g:#x}), the interpreter has {y} ({w:#x})"));
        }
    }
    Ok(())
}

/// Compiles a kernel for a chip.
pub fn compile(kernel: &Kernel, chip: &Chip) -> Result<tongtu_plan::Artifact, CompileError> {
    CpuCompiler { threads: 1 }.compile(&Module { kernels: vec![kernel.clone()] }, chip)
}

/// Runs machine code on copies of the buffers and gives what they hold then.
pub fn run(
    artifact: &tongtu_plan::Artifact,
    grid: [i64; 3],
    buffers: &[BufferData],
    scalars: &[(DType, Num)],
    order: &[bool],
) -> Vec<BufferData> {
    let device = device();
    let module = device.load(artifact).expect("this machine runs it");
    let mut memory: Vec<Vec<u8>> =
        buffers.iter().map(|b| b.to_tensor(&[b.codes.len()]).unwrap().bytes().to_vec()).collect();
    let (mut next_buffer, mut next_scalar) = (0, 0);
    let args: Vec<LaunchArg> = order
        .iter()
        .map(|is_buffer| {
            if *is_buffer {
                let m = &mut memory[next_buffer];
                let mem = Mem { address: m.as_mut_ptr() as u64, bytes: m.len() as u64 };
                next_buffer += 1;
                LaunchArg::Buffer(mem, buffers[next_buffer - 1].codes.len() as u64)
            } else {
                let (d, n) = scalars[next_scalar];
                next_scalar += 1;
                LaunchArg::Scalar(d.encode(n, Default::default()))
            }
        })
        .collect();
    let event = device.launch(module, 0, grid, &args, Event::DONE).expect("the launch fits");
    device.wait(event).expect("it ran");
    buffers
        .iter()
        .zip(memory)
        .map(|(b, m)| BufferData::from_tensor(&Tensor::from_bytes(b.dtype, &[b.codes.len()], m).unwrap()))
        .collect()
}

/// Checks that machine code and the interpreter leave the same in every buffer, on every chip.
pub fn check(kernel: &Kernel, grid: [i64; 3], buffers: &[BufferData], scalars: &[(DType, Num)], near: Near) {
    let wrong = differences(kernel, grid, buffers, scalars, near);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What [`check`] finds.
pub fn differences(
    kernel: &Kernel,
    grid: [i64; 3],
    buffers: &[BufferData],
    scalars: &[(DType, Num)],
    near: Near,
) -> Vec<String> {
    verify(kernel).unwrap_or_else(|e| panic!("{}: {e:?}", kernel.name));
    let mut want = buffers.to_vec();
    let plain: Vec<Num> = scalars.iter().map(|s| s.1).collect();
    interp::run(kernel, grid, &mut want, &plain, &Default::default()).unwrap_or_else(|e| panic!("{e}"));
    let order: Vec<bool> =
        kernel.params.iter().map(|p| matches!(p.kind, tongtu_tile::ParamKind::Buffer(..))).collect();
    let mut wrong = Vec::new();
    for chip in chips() {
        let artifact = match compile(kernel, chip) {
            Ok(a) => a,
            Err(e) => {
                wrong.push(format!("{} on {}: {e}", kernel.name, chip.name));
                continue;
            }
        };
        let got = run(&artifact, grid, buffers, scalars, &order);
        for (i, (g, w)) in got.iter().zip(&want).enumerate() {
            wrong.extend(compare(&format!("{} on {}, buffer {i}", kernel.name, chip.name), g, w, near).err());
        }
    }
    wrong
}

/// A small generator of numbers.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// Interesting and random codes of a type.
pub fn samples(d: DType, n: usize, seed: u64) -> BufferData {
    let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1);
    let mask = u64::MAX >> (64 - d.bits());
    let mut codes: Vec<u64> = Vec::new();
    let top = 1u64 << (d.bits() - 1);
    if d.is_bool() {
        codes = (0..n).map(|_| rng.next() >> 63).collect();
    } else if d.bits() <= 8 {
        codes.extend(0..=mask);
    } else {
        codes.extend([0, 1, 2, 3, 7, 63, 64, top, top + 1, top - 1, mask, mask - 1]);
        if d.is_float() {
            let special =
                [0.0, -0.0, 0.5, 1.0, -1.0, 1.5, 2.5, -2.5, 3.5, 100.25, -1e30, 1e30, 65504.0, 65519.0];
            codes.extend(special.map(|x| d.encode(Num::Float(x), Default::default())));
            let special =
                [f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 2147483648.0, -2147483649.0, 1.8e19, 3e38];
            codes.extend(special.map(|x| d.encode(Num::Float(x), Default::default())));
        }
    }
    while codes.len() < n {
        let r = rng.next();
        codes.push(match r % 4 {
            // Ordinary values, and any bits at all.
            0 => r >> 8 & mask,
            1 if !d.is_float() => r >> 8 & mask & 0xff,
            _ if d.is_float() => d.encode(Num::Float((r >> 40) as f64 / 16384.0 - 512.0), Default::default()),
            _ => (r >> 8 & mask) >> (r % u64::from(d.bits())),
        });
    }
    if n < codes.len() {
        // Take them at random.
        let all = codes.clone();
        codes = (0..n).map(|_| all[(rng.next() % all.len() as u64) as usize]).collect();
    }
    if d.is_bool() {
        codes.iter_mut().for_each(|c| *c &= 1);
    }
    BufferData { dtype: d, codes }
}

/// Small ordinary values.
pub fn small(d: DType, n: usize, seed: u64) -> BufferData {
    let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1);
    let values = (0..n).map(|_| (rng.next() % 17) as f64 / 4.0 - 2.0);
    let values: Vec<Num> = values
        .map(|x| if d.is_float() { Num::Float(x) } else { Num::Int((x * 4.0).abs() as i128) })
        .collect();
    BufferData::from_nums(d, values)
}
