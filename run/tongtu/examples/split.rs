//! Speed of kernels with large tiles after the split pass, beside the same kernels written with tiles that fit the registers.
//! Prints the best of several runs on one thread, in GFLOP/s or GB/s, and the ratio.

use std::time::Instant;

use tongtu_chip::Chip;
use tongtu_compile::expand::expand;
use tongtu_compile::split::{Registers, split};
use tongtu_cpu::{CpuCompiler, CpuDevice};
use tongtu_plan::backend::{Compiler, Device, Event, LaunchArg, Mem, Support};
use tongtu_tensor::DType;
use tongtu_tile::{Kernel, Module, infer, verify};

#[path = "../../../conformance/gates.rs"]
mod gates;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// A form of a kernel with its grid.
struct Form {
    name: String,
    kernel: Kernel,
    grid: [i64; 3],
}

fn form(name: &str, kernel: gates::Built, grid: [i64; 3]) -> Outcome<Form> {
    Ok(Form { name: name.to_string(), kernel: kernel?, grid })
}

/// Best seconds of a form, and the last buffer's contents.
fn run(
    f: &Form,
    chip: &Chip,
    device: &CpuDevice,
    inputs: &[Vec<f32>],
    scalars: &[i64],
) -> Outcome<(f64, Vec<f32>)> {
    let mut kernel = f.kernel.clone();
    let compiler = CpuCompiler::default();
    expand(&mut kernel, &|op, operands| {
        let tys: Vec<_> = operands.iter().collect();
        let results = infer::infer(op, &tys).unwrap_or_default();
        !matches!(compiler.supports(op, operands, &results, chip), Support::Emulated(_))
    });
    verify(&kernel).map_err(|e| e[0].clone())?;
    let start = Instant::now();
    let artifact = compiler.compile(&Module { kernels: vec![kernel] }, chip)?;
    let compiled = start.elapsed();
    let module = device.load(&artifact)?;
    let mut memory = Vec::new();
    for x in inputs {
        let mem = device.alloc(4 * x.len() as u64)?;
        let host = Mem { address: x.as_ptr() as u64, bytes: mem.bytes };
        device.copy(mem, host, Event::DONE)?;
        memory.push((mem, x.len()));
    }
    let mut args: Vec<LaunchArg> = memory.iter().map(|&(m, n)| LaunchArg::Buffer(m, n as u64)).collect();
    args.extend(scalars.iter().map(|&s| LaunchArg::Scalar(s as u64)));
    let mut best = f64::INFINITY;
    for _ in 0..150 {
        let start = Instant::now();
        let event = device.launch(module, 0, f.grid, &args, Event::DONE)?;
        device.wait(event)?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    let (last, len) = memory[memory.len() - 1];
    let mut out = vec![0f32; len];
    let host = Mem { address: out.as_mut_ptr() as u64, bytes: last.bytes };
    device.copy(host, last, Event::DONE)?;
    memory.iter().for_each(|&(m, _)| device.free(m));
    eprintln!("  {}: compiled in {compiled:.1?}", f.name);
    Ok((best, out))
}

fn compare(
    title: &str,
    unit: &str,
    work: f64,
    hand: Vec<(Form, Vec<Vec<f32>>)>,
    large: Vec<(Form, Vec<Vec<f32>>)>,
    scalars: &[i64],
) -> Outcome<()> {
    let chip = Chip::host()?;
    let device = CpuDevice::new(1)?;
    let mut reference: Option<Vec<f32>> = None;
    let mut best = [0f64; 2];
    let mut name = [String::new(), String::new()];
    for (kind, forms) in [hand, large].into_iter().enumerate() {
        for (mut f, inputs) in forms {
            if kind == 1 {
                f.kernel = split(&f.kernel, Registers::of(&chip))?;
            }
            let (seconds, out) = run(&f, &chip, &device, &inputs, scalars)?;
            let rate = work / seconds * 1e-9;
            println!("{title:>10} {:>24}: {rate:8.2} {unit}", f.name);
            if rate > best[kind] {
                best[kind] = rate;
                name[kind] = f.name.clone();
            }
            match &reference {
                None => reference = Some(out),
                Some(r) => {
                    let most = r.iter().fold(0f32, |m, x| m.max(x.abs()));
                    let worst = r.iter().zip(&out).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
                    if worst.is_nan() || worst > most * 1e-4 {
                        return Err(format!("{title} {}: differs by {worst} of {most}", f.name).into());
                    }
                }
            }
        }
    }
    println!("{title:>10} {} / {}: {:.2}", name[1], name[0], best[1] / best[0]);
    Ok(())
}

fn numbers(n: usize, seed: u32) -> Vec<f32> {
    let mut s = seed.wrapping_mul(2654435761).wrapping_add(12345);
    (0..n)
        .map(|_| {
            s = s.wrapping_mul(1664525).wrapping_add(1013904223);
            (s >> 8) as f32 / (1 << 24) as f32 - 0.5
        })
        .collect()
}

fn matmul() -> Outcome<()> {
    let (m, n, k) = (448usize, 512usize, 512usize);
    let (a, b, bias) = (numbers(m * k, 1), numbers(k * n, 2), numbers(n, 3));
    let packed: Vec<f32> = (0..n / 32)
        .flat_map(|p| (0..k * 32).map(move |i| (i / 32) * n + p * 32 + i % 32))
        .map(|i| b[i])
        .collect();
    let c = vec![0f32; m * n];
    let plain = vec![a.clone(), b, bias.clone(), c.clone()];
    let f = |tm: usize, tn: usize, tk: usize| {
        let grid = [(m / tm) as i64, (n / tn) as i64, 1];
        form(&format!("{tm}x{tn}x{tk}"), gates::matmul(DType::F32, (tm, tn, tk), true), grid)
    };
    let hand = vec![
        (
            form("14x32 packed", gates::matmul_packed((14, 32, 4)), [(n / 32) as i64, 1, 1])?,
            vec![a, packed, bias, c],
        ),
        (f(14, 32, 1)?, plain.clone()),
    ];
    let large = vec![
        (f(112, 128, 128)?, plain.clone()),
        (f(112, 256, 256)?, plain.clone()),
        (f(224, 256, 512)?, plain.clone()),
        (f(64, 256, 128)?, plain),
    ];
    compare("matmul", "GFLOP/s", 2.0 * (m * n * k) as f64, hand, large, &[m as i64, n as i64, k as i64])
}

fn conv() -> Outcome<()> {
    let (h, w, c, f) = (56usize, 56usize, 64usize, 128usize);
    let inputs = vec![numbers(h * w * c, 4), numbers(9 * c * f, 5), vec![0f32; 28 * 28 * f]];
    let make = |tw: usize, tf: usize, tc: usize| {
        let grid = [28usize.div_ceil(tw) as i64, 28, (f / tf) as i64];
        form(&format!("{tw}x{tf}x{tc}"), gates::conv(DType::F32, (tw, tf, tc), false), grid)
    };
    let hand = vec![(make(14, 32, 1)?, inputs.clone()), (make(7, 64, 1)?, inputs.clone())];
    let large = vec![(make(28, 128, 64)?, inputs.clone()), (make(28, 64, 64)?, inputs)];
    let work = 2.0 * (28 * 28 * f * 9 * c) as f64;
    compare("conv", "GFLOP/s", work, hand, large, &[h as i64, w as i64, c as i64, f as i64])
}

fn softmax() -> Outcome<()> {
    let (rows, n) = (1usize, 100_000usize);
    let inputs = vec![numbers(rows * n, 6), vec![0f32; rows * n]];
    let make = |chunk: usize| form(&format!("{chunk}"), gates::softmax(chunk), [rows as i64, 1, 1]);
    let hand = vec![(make(16)?, inputs.clone()), (make(64)?, inputs.clone()), (make(128)?, inputs.clone())];
    let large = vec![(make(1024)?, inputs.clone()), (make(4096)?, inputs)];
    compare("softmax", "GB/s", (rows * n * 12) as f64, hand, large, &[rows as i64, n as i64])
}

fn attention() -> Outcome<()> {
    let (n, hd) = (256usize, 64usize);
    let mut inputs: Vec<Vec<f32>> = (7..10).map(|s| numbers(n * hd, s)).collect();
    inputs.push(vec![0f32; n * hd]);
    let make = |tm: usize, tn: usize| {
        form(&format!("{tm}x{tn}"), gates::attention(DType::F32, (tm, tn, hd)), [(n / tm) as i64, 1, 1])
    };
    let hand = vec![(make(4, 16)?, inputs.clone()), (make(4, 32)?, inputs.clone())];
    let large = vec![(make(64, 64)?, inputs.clone()), (make(128, 128)?, inputs)];
    compare("attention", "GFLOP/s", 4.0 * (n * n * hd) as f64, hand, large, &[n as i64])
}

fn main() -> Outcome<()> {
    matmul()?;
    conv()?;
    softmax()?;
    attention()
}
