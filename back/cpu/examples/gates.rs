//! How near tile kernels come to this machine's peak: the register-tiled f32 matrix product, and the bf16 one on
//! the matrix unit where there is one. Prints compile times, and shares of the adjacent peak burst.

#[path = "../../../conformance/gates.rs"]
mod gates;

use std::time::Instant;
use tongtu_chip::Chip;
use tongtu_cpu::{Artifact, Buf, CpuCompiler, Kernel, Loaded, Pool, llvm, lower, probe};
use tongtu_plan::backend::Compiler;
use tongtu_tensor::DType;
use tongtu_tile::{Access, Factor, KernelBuilder, Module, TileMap};

/// How often a product is made in one launch, so that what a launch costs does not count.
const TIMES: i64 = 8;

fn time(kernel: &Kernel, pool: &Pool, bufs: &[Buf], scalars: &[i64], grid: [i64; 3]) -> f64 {
    let t = Instant::now();
    // SAFETY: the buffers are live and as large as the kernels need.
    unsafe { kernel.launch(pool, bufs, scalars, grid, i64::MAX).expect("the launch fits") };
    t.elapsed().as_secs_f64()
}

fn buf<T>(v: &mut [T]) -> Buf {
    Buf { ptr: v.as_mut_ptr().cast(), len: v.len() as i64 }
}

/// So many elements that begin where a cache line does, as memory of a device does.
fn lines<T: Copy + Default>(memory: &mut Vec<T>, len: usize, f: impl Fn(usize) -> T) -> &mut [T] {
    memory.resize(len + 64, T::default());
    let first = memory.as_ptr().align_offset(64);
    let out = &mut memory[first..first + len];
    out.iter_mut().enumerate().for_each(|(i, x)| *x = f(i));
    out
}

/// `c = a × b` in bf16 with f32 sums; a is [m, k], b is [n / 32, k / 2, 32, 2]; an instance is a panel.
fn matmul_bf16() -> Result<tongtu_tile::Kernel, tongtu_tile::TileError> {
    let mut b = KernelBuilder::new("matmul_bf16");
    let (a, w) = (b.buffer("a", DType::BF16, Access::Read), b.buffer("b", DType::BF16, Access::Read));
    let c = b.buffer("c", DType::F32, Access::Write);
    let (m, n, k) = (b.scalar("m", DType::I64), b.scalar("n", DType::I64), b.scalar("k", DType::I64));
    let (o, one, two, width) = (b.int(0), b.int(1), b.int(2), b.int(32));
    let va = b.view(a, o, &[m, k], &[k, one])?;
    let vc = b.view(c, o, &[m, n], &[n, one])?;
    let half = b.div(k, two)?;
    let panels = b.div(n, width)?;
    let (panel, pair) = (b.mul_int(k, 32)?, b.int(64));
    let vw = b.view(w, o, &[panels, half, width, two], &[panel, pair, two, one])?;
    let q = b.program_id(0)?;
    let col = b.mul_int(q, 32)?;
    let step = b.int(32);
    b.for_loop(o, m, step, &[], |b, row, _| {
        let acc = b.splat(DType::F32, &[32, 32], 0.0)?;
        let sum = b.for_loop(o, k, step, &[acc], |b, i, acc| {
            let zero = DType::BF16.decode(0);
            let x = b.load(va, &[row, i], TileMap::along(&[32, 32], &[0, 1]), &[true; 2], zero)?;
            let f = |size, dim| Factor { size, dim: Some(dim), step: 1 };
            let map = TileMap(vec![vec![f(16, 1), f(2, 3)], vec![f(32, 2)]]);
            let at = b.div(i, two)?;
            let y = b.load(vw, &[q, at, o, o], map, &[true; 4], zero)?;
            Ok(vec![b.mma(acc[0], x, y)?])
        })?[0];
        b.store(vc, sum, &[row, col], TileMap::along(&[32, 32], &[0, 1]), &[true; 2])?;
        Ok(vec![])
    })?;
    Ok(b.finish())
}

fn assembly(kernel: &tongtu_tile::Kernel, chip: &Chip) -> Result<(), Box<dyn std::error::Error>> {
    let lowered = lower::kernel(kernel, chip).map_err(|e| format!("{e:?}"))?;
    println!("{}", llvm::assembly(&lowered.ir, lowered.products, &llvm::Target::of(chip)?)?);
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let wanted = std::env::args().any(|a| a == "asm");
    let chip = Chip::host()?;
    let pool = Pool::new(1)?;
    let fma = probe::fma_kernel(&chip)?;
    let fma = Loaded::new(&fma)?;
    let fma = fma.kernel("fma")?;
    let lanes = f64::from(chip.vector.bits / 32);
    let peak = || probe::FMA_OPS_PER_LANE * lanes * 4000.0 / time(&fma, &pool, &[], &[4000], [1, 1, 1]);
    let wide = chip.vector.registers >= 32;
    let (tm, tn) = if wide { (14, 2 * lanes as usize) } else { (6, 2 * lanes as usize) };
    let kernel = gates::matmul_packed((tm, tn, 4))?;
    let (artifact, times) =
        CpuCompiler::default().compile_timed(&Module { kernels: vec![kernel.clone()] }, &chip)?;
    println!("f32 {tm}x{tn}x4: {:?}", times[0]);
    if wanted {
        assembly(&kernel, &chip)?;
    }
    let loaded = Loaded::new(&Artifact::from_bytes(&artifact.to_bytes())?)?;
    let kernel = loaded.kernel_at(0).ok_or("no kernel")?;
    let (m, n, k) = (tm * 4, tn * 2, 256);
    let mut memory: [Vec<f32>; 4] = Default::default();
    let [a, w, bias, c] = &mut memory;
    let a = lines(a, m * k, |i| (i % 7) as f32 - 3.0);
    let w = lines(w, n * k, |i| (i % 5) as f32 - 2.0);
    let c = lines(c, m * n, |_| 0.0);
    let bufs = [buf(a), buf(w), buf(lines(bias, n, |_| 0.0)), buf(c)];
    let scalars = [m as i64, n as i64, k as i64];
    let ops = (2 * m * n * k) as f64 * TIMES as f64;
    let shares = sorted(2000, || ops / time(&kernel, &pool, &bufs, &scalars, [2, TIMES, 1]) / peak());
    println!(
        "f32 product, {m}x{n}x{k}: median {:.1} % of peak, best tenth {:.1} %",
        100.0 * shares[1000],
        100.0 * shares[1800]
    );
    for (i, got) in c.iter().enumerate() {
        let (row, column) = (i / n, i % n);
        let panel = &w[column / tn * k * tn + column % tn..];
        let want: f32 = (0..k).map(|j| a[row * k + j] * panel[j * tn]).sum();
        assert_eq!(*got, want.max(0.0));
    }

    if !chip.has("amx-bf16") {
        return Ok(());
    }
    let kernel = matmul_bf16()?;
    if wanted {
        assembly(&kernel, &chip)?;
    }
    let compiled = CpuCompiler::default().compile(&Module { kernels: vec![kernel] }, &chip)?;
    let loaded = Loaded::new(&Artifact::from_bytes(&compiled.bytes)?)?;
    let kernel = loaded.kernel_at(0).ok_or("no kernel")?;
    // Operands that stay in the nearest cache, and left operands that come from the next one.
    for (m, k) in [(32usize, 256usize), (32, 320), (512, 320)] {
        let n = 32usize;
        let one = |i: usize| half(((i * 7) % 5) as f32 - 2.0);
        let (mut a, mut w, mut c) = (Vec::new(), Vec::new(), Vec::new());
        let (a, w) = (lines(&mut a, m * k, one), lines(&mut w, n * k, one));
        let c = lines(&mut c, m * n, |_| 0f32);
        let bufs = [buf(a), buf(w), buf(c)];
        let scalars = [m as i64, n as i64, k as i64];
        let times = 256 * TIMES / m as i64;
        let ops = (2 * m * n * k) as f64 * times as f64;
        let unit = probe::unit_kernel(&chip)?;
        let unit = Loaded::new(&unit)?;
        let unit = unit.kernel("bf16")?;
        let top = || probe::UNIT_OPS * 300.0 / time(&unit, &pool, &[], &[300], [1, 1, 1]);
        let mut rates = Vec::new();
        let shares = sorted(2000, || {
            let rate = ops / time(&kernel, &pool, &bufs, &scalars, [1, times, 1]);
            rates.push(rate);
            rate / top()
        });
        rates.sort_by(f64::total_cmp);
        println!(
            "bf16 product, {m}x{n}x{k}: median {:.2} TFLOP/s, {:.1} % of the unit's rate from registers; best tenth {:.1} %",
            rates[1000] / 1e12,
            100.0 * shares[1000],
            100.0 * shares[1800]
        );
        let number = |x: u16| f32::from_bits(u32::from(x) << 16);
        for (i, got) in c.iter().enumerate() {
            let (row, column) = (i / n, i % n);
            let right = |j: usize| number(w[(j / 2 * n + column) * 2 + j % 2]);
            let want: f32 = (0..k).map(|j| number(a[row * k + j]) * right(j)).sum();
            assert_eq!(*got, want);
        }
    }
    Ok(())
}

/// The results of so many calls, the least first.
fn sorted(calls: usize, mut f: impl FnMut() -> f64) -> Vec<f64> {
    let mut out: Vec<f64> = (0..calls).map(|_| f()).collect();
    out.sort_by(f64::total_cmp);
    out
}

fn half(x: f32) -> u16 {
    (x.to_bits() >> 16) as u16
}
