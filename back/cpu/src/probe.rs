//! What this machine reaches: multiply-add peaks and read bandwidth, measured by generated code.

use crate::{Artifact, Buf, Entry, Error, Kernel, Loaded, Pool, assemble};
use std::fmt::Write;
use std::time::{Duration, Instant};
use tongtu_chip::{Chip, LevelKind};

/// Measured limits of this machine. Rates are the best of several bursts.
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    /// f32 multiply-add, operations a second of one core, a multiply-add counting as two.
    pub f32_core: f64,
    /// The same of all threads together.
    pub f32_all: f64,
    /// Threads that `f32_all` and `memory_all` were measured with.
    pub threads: usize,
    /// bf16 matrix unit, operations a second of one core, if there is one.
    pub bf16_matrix_core: Option<f64>,
    /// int8 matrix unit, operations a second of one core, if there is one.
    pub int8_matrix_core: Option<f64>,
    /// Bytes a second one core reads from each storage level: level, bytes of the buffer, rate.
    pub read: Vec<(String, u64, f64)>,
    /// Bytes a second that all threads together read from main memory.
    pub memory_all: f64,
}

/// How long one figure is measured.
const BURSTS: Duration = Duration::from_millis(60);

/// Largest buffer for the memory figure.
const MEMORY: u64 = 512 << 20;

/// Measures this machine, which `chip` describes (see [`Chip::host`]); about a second.
pub fn measure(chip: &Chip, threads: usize) -> Result<Probe, Error> {
    let bits = chip.vector.bits as usize;
    let matrix = |lhs: &str| chip.matrix.iter().any(|u| u.lhs == lhs && u.name.starts_with("amx"));
    let (bf16, int8) = (matrix("bf16"), matrix("i8"));
    let mut ir = String::new();
    fma_loop(&mut ir, bits / 32);
    read_loop(&mut ir, bits / 32);
    let mut names = vec![("fma", 0, 1), ("read", 1, 1)];
    if bf16 {
        tile_loop(&mut ir, "bf16", "tdpbf16ps");
        names.push(("bf16", 0, 1));
    }
    if int8 {
        tile_loop(&mut ir, "int8", "tdpbssd");
        names.push(("int8", 0, 1));
    }
    let entries = names.iter().map(|(name, buffers, scalars)| Entry {
        name: name.to_string(),
        offset: 0,
        scratch: 8192,
        buffers: *buffers,
        scalars: *scalars,
    });
    let artifact: Artifact = assemble(&ir, chip, entries.collect())?;
    let loaded = Loaded::new(&artifact)?;
    let (one, all) = (Pool::new(1)?, Pool::new(threads)?);
    let threads = all.threads();

    const TURNS: i64 = 2000;
    let rate = |pool: &Pool, name: &str, turns: i64, ops_per_turn: f64| -> Result<f64, Error> {
        let kernel = loaded.kernel(name)?;
        let n = pool.threads() as i64;
        best(|| run(&kernel, pool, &[], &[turns], n)).map(|t| turns as f64 * n as f64 * ops_per_turn / t)
    };
    let fma_ops = (CHAINS * 2 * bits / 32) as f64;
    let f32_core = rate(&one, "fma", TURNS, fma_ops)?;
    let f32_all = rate(&all, "fma", TURNS, fma_ops)?;
    let tile = |name: &str, present: bool, k: usize| -> Result<Option<f64>, Error> {
        if !present {
            return Ok(None);
        }
        rate(&one, name, TURNS / 10, (TILES * 2 * 16 * 16 * k) as f64).map(Some)
    };
    let bf16_matrix_core = tile("bf16", bf16, 32)?;
    let int8_matrix_core = tile("int8", int8, 64)?;

    let kernel = loaded.kernel("read")?;
    let mut read = Vec::new();
    let memory = chip.capacity("dram").map_or(MEMORY, |m| (m / 16).min(MEMORY));
    let mut data: Vec<u8> = vec![1; memory as usize + 64];
    let aligned = data.as_mut_ptr().align_offset(64).min(64);
    let mut sweep = |pool: &Pool, bytes: u64, each: Duration| -> Result<f64, Error> {
        let threads = pool.threads() as u64;
        let part = bytes / threads / 1024 * 1024;
        let repeat = (1u64 << 20).div_ceil(part.max(1)) as i64;
        let buf = Buf { ptr: data[aligned..].as_mut_ptr(), len: part as i64 };
        let turns = best_for(each, || run(&kernel, pool, &[buf], &[repeat], threads as i64))?;
        Ok((part * threads * repeat as u64) as f64 / turns)
    };
    let mut inner = 0;
    for level in &chip.levels {
        let bytes = match (level.kind, &level.capacity) {
            (LevelKind::Cache, Some(c)) if level.name == "l3" => (c.value / 2).min(16 << 20),
            (LevelKind::Cache, Some(c)) => c.value / 2,
            (LevelKind::Memory, _) => memory,
            _ => continue,
        };
        if bytes <= inner || bytes > memory {
            continue;
        }
        inner = bytes;
        read.push((level.name.clone(), bytes, sweep(&one, bytes, BURSTS)?));
    }
    let memory_all = sweep(&all, memory, BURSTS)?;
    Ok(Probe { f32_core, f32_all, threads, bf16_matrix_core, int8_matrix_core, read, memory_all })
}

fn run(kernel: &Kernel, pool: &Pool, bufs: &[Buf], scalars: &[i64], instances: i64) -> Result<(), Error> {
    // SAFETY: the probe kernels only read the bytes stated in their buffer, which the caller holds; each
    // instance `i` reads the `i`-th part, and the caller sized the parts by the number of instances.
    unsafe { kernel.launch(pool, bufs, scalars, [instances, 1, 1], 1) }
}

fn best(f: impl FnMut() -> Result<(), Error>) -> Result<f64, Error> {
    best_for(BURSTS, f)
}

/// Seconds of the shortest call of those made within `time`, at least three.
fn best_for(time: Duration, mut f: impl FnMut() -> Result<(), Error>) -> Result<f64, Error> {
    let start = Instant::now();
    let mut best = f64::MAX;
    let mut calls = 0;
    while calls < 3 || start.elapsed() < time {
        let t = Instant::now();
        f()?;
        best = best.min(t.elapsed().as_secs_f64());
        calls += 1;
    }
    Ok(best)
}

/// f32 operations that the kernel of [`fma_kernel`] makes a turn and vector lane.
pub const FMA_OPS_PER_LANE: f64 = (CHAINS * 2) as f64;

/// The multiply-add loop alone, as kernel `fma` with one scalar, the number of turns: the burst to run beside
/// what is to be compared with the peak.
pub fn fma_kernel(chip: &Chip) -> Result<Artifact, Error> {
    let mut ir = String::new();
    fma_loop(&mut ir, chip.vector.bits as usize / 32);
    assemble(&ir, chip, vec![Entry { name: "fma".into(), offset: 0, scratch: 8192, buffers: 0, scalars: 1 }])
}

/// bf16 operations that the kernel of [`unit_kernel`] makes a turn.
pub const UNIT_OPS: f64 = (TILES * 2 * 16 * 16 * 32) as f64;

/// The matrix unit's loop alone, as kernel `bf16` with one scalar, the number of turns; the chip must have the unit.
pub fn unit_kernel(chip: &Chip) -> Result<Artifact, Error> {
    let mut ir = String::new();
    tile_loop(&mut ir, "bf16", "tdpbf16ps");
    assemble(&ir, chip, vec![Entry { name: "bf16".into(), offset: 0, scratch: 8192, buffers: 0, scalars: 1 }])
}

/// Independent multiply-add chains: enough to hide the latency, few enough to stay in 16 registers.
const CHAINS: usize = 12;

/// Tile multiply-adds that are independent of each other.
const TILES: usize = 6;

const SIGNATURE: &str =
    "(ptr readonly %bufs, ptr readonly %scalars, ptr %grid, i64 %first, i64 %last, ptr %scratch) nounwind";

fn head(w: &mut String, name: &str) {
    let _ = writeln!(
        w,
        "define void @{name}{SIGNATURE} {{\nentry:\n  %turns = load i64, ptr %scalars\n  br label %body\nbody:"
    );
    let _ = writeln!(w, "  %pi = phi i64 [%first, %entry], [%pn, %next]\n  br label %l");
}

fn tail(w: &mut String) {
    let _ = writeln!(
        w,
        "  br label %next\nnext:\n  %pn = add i64 %pi, 1\n  %pq = icmp slt i64 %pn, %last\n  br i1 %pq, label %body, label %end\nend:\n  ret void\n}}"
    );
}

/// Every instance runs `turns` rounds of `CHAINS` multiply-adds.
fn fma_loop(w: &mut String, lanes: usize) {
    let v = format!("<{lanes} x float>");
    let _ = writeln!(w, "declare {v} @llvm.fma.v{lanes}f32({v}, {v}, {v})");
    head(w, "fma");
    let _ = writeln!(w, "l:\n  %i = phi i64 [0, %body], [%in, %l]");
    for c in 0..CHAINS {
        let _ = writeln!(w, "  %s{c} = phi {v} [zeroinitializer, %body], [%t{c}, %l]");
    }
    let _ = writeln!(w, "  %x0 = load volatile {v}, ptr %scratch, align 64");
    for c in 0..CHAINS {
        let _ = writeln!(w, "  %t{c} = call {v} @llvm.fma.v{lanes}f32({v} %x0, {v} %x0, {v} %s{c})");
    }
    let _ = writeln!(
        w,
        "  %in = add i64 %i, 1\n  %d = icmp slt i64 %in, %turns\n  br i1 %d, label %l, label %e\ne:"
    );
    for c in 0..CHAINS {
        let _ = writeln!(
            w,
            "  %g{c} = getelementptr i8, ptr %scratch, i64 {}\n  store {v} %t{c}, ptr %g{c}, align 4",
            64 + c * lanes * 4
        );
    }
    tail(w);
}

/// Instance `i` reads the `i`-th part of the buffer's memory `turns` times; `len` is the bytes of a part.
fn read_loop(w: &mut String, lanes: usize) {
    let v = format!("<{lanes} x i32>");
    head(w, "read");
    let step = 8 * lanes * 4;
    let _ = writeln!(w, "l:\n  %i = phi i64 [0, %body], [%in, %le]");
    let _ = writeln!(
        w,
        "  %base = load ptr, ptr %bufs\n  %lp = getelementptr i8, ptr %bufs, i64 8\n  %len = load i64, ptr %lp"
    );
    let _ = writeln!(
        w,
        "  %off = mul i64 %pi, %len\n  %mine = getelementptr i8, ptr %base, i64 %off\n  br label %k\nk:\n  %o = phi i64 [0, %l], [%on, %k]"
    );
    for c in 0..8 {
        let _ = writeln!(w, "  %s{c} = phi {v} [zeroinitializer, %l], [%t{c}, %k]");
    }
    let _ = writeln!(w, "  %p = getelementptr i8, ptr %mine, i64 %o");
    for c in 0..8 {
        let _ = writeln!(
            w,
            "  %p{c} = getelementptr i8, ptr %p, i64 {}\n  %v{c} = load {v}, ptr %p{c}, align 4\n  %t{c} = add {v} %s{c}, %v{c}",
            c * lanes * 4
        );
    }
    let _ = writeln!(
        w,
        "  %on = add i64 %o, {step}\n  %q = icmp slt i64 %on, %len\n  br i1 %q, label %k, label %le\nle:"
    );
    for c in 0..8 {
        let _ = writeln!(
            w,
            "  %g{c} = getelementptr i8, ptr %scratch, i64 {}\n  store volatile {v} %t{c}, ptr %g{c}, align 4",
            c * lanes * 4
        );
    }
    let _ = writeln!(
        w,
        "  %in = add i64 %i, 1\n  %d = icmp slt i64 %in, %turns\n  br i1 %d, label %l, label %e\ne:"
    );
    tail(w);
}

/// Every instance runs `turns` rounds of `TILES` tile multiply-adds from registers.
fn tile_loop(w: &mut String, name: &str, op: &str) {
    for decl in [
        "declare x86_amx @llvm.x86.tileloadd64.internal(i16, i16, ptr, i64)".to_string(),
        "declare x86_amx @llvm.x86.tilezero.internal(i16, i16)".to_string(),
        "declare void @llvm.x86.tilestored64.internal(i16, i16, ptr, i64, x86_amx)".to_string(),
        format!("declare x86_amx @llvm.x86.{op}.internal(i16, i16, i16, x86_amx, x86_amx, x86_amx)"),
    ] {
        if !w.contains(&decl) {
            let _ = writeln!(w, "{decl}");
        }
    }
    head(w, name);
    let _ = writeln!(w, "l:");
    for c in 0..TILES {
        let _ = writeln!(w, "  %z{c} = call x86_amx @llvm.x86.tilezero.internal(i16 16, i16 64)");
    }
    for o in ["a", "b"] {
        let _ = writeln!(
            w,
            "  %{o} = call x86_amx @llvm.x86.tileloadd64.internal(i16 16, i16 64, ptr %scratch, i64 64)"
        );
    }
    let _ = writeln!(w, "  br label %k\nk:\n  %i = phi i64 [0, %l], [%in, %k]");
    for c in 0..TILES {
        let _ = writeln!(w, "  %s{c} = phi x86_amx [%z{c}, %l], [%t{c}, %k]");
    }
    for c in 0..TILES {
        let _ = writeln!(
            w,
            "  %t{c} = call x86_amx @llvm.x86.{op}.internal(i16 16, i16 64, i16 64, x86_amx %s{c}, x86_amx %a, x86_amx %b)"
        );
    }
    let _ = writeln!(
        w,
        "  %in = add i64 %i, 1\n  %d = icmp slt i64 %in, %turns\n  br i1 %d, label %k, label %e\ne:"
    );
    for c in 0..TILES {
        let _ = writeln!(
            w,
            "  %g{c} = getelementptr i8, ptr %scratch, i64 {}\n  call void @llvm.x86.tilestored64.internal(i16 16, i16 64, ptr %g{c}, i64 64, x86_amx %t{c})",
            1024 + c * 1024
        );
    }
    tail(w);
}
