//! Prints what this machine reaches, and how near a hand-written 14x32 f32 kernel comes to it on the same
//! path: LLVM text, blob, loading, launch.

use std::fmt::Write;
use std::time::Instant;
use tongtu_chip::Chip;
use tongtu_cpu::{Buf, Entry, Error, Kernel, Loaded, Pool, assemble, probe};

const MR: usize = 14;
const NV: usize = 2;
const K: usize = 256;

/// C[14, 32] = A[K, 14] (packed) * B[K, 32] (packed), in each instance on the same data.
fn kernel() -> String {
    let mut w =
        String::from("declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)\n");
    w += "define void @gemm(ptr readonly %bufs, ptr %scalars, ptr %grid, i64 %first, i64 %last, ptr %scratch) nounwind {\nentry:\n";
    w += "  %a = load ptr, ptr %bufs\n  %q1 = getelementptr i8, ptr %bufs, i64 16\n  %b = load ptr, ptr %q1\n  %q2 = getelementptr i8, ptr %bufs, i64 32\n  %c = load ptr, ptr %q2\n";
    w += "  br label %p\np:\n  %pi = phi i64 [%first, %entry], [%pn, %e]\n  br label %l\nl:\n  %i = phi i64 [0, %p], [%in, %l]\n";
    for i in 0..MR {
        for j in 0..NV {
            let _ = writeln!(w, "  %c0_{i}_{j} = phi <16 x float> [zeroinitializer, %p], [%c1_{i}_{j}, %l]");
        }
    }
    w += &format!("  %oa = mul i64 %i, {}\n  %pa = getelementptr i8, ptr %a, i64 %oa\n", MR * 4);
    w += &format!("  %ob = mul i64 %i, {}\n  %pb = getelementptr i8, ptr %b, i64 %ob\n", NV * 64);
    for j in 0..NV {
        let _ = writeln!(
            w,
            "  %pb{j} = getelementptr float, ptr %pb, i64 {}\n  %b{j} = load <16 x float>, ptr %pb{j}, align 4",
            j * 16
        );
    }
    for i in 0..MR {
        let _ = writeln!(
            w,
            "  %pa{i} = getelementptr float, ptr %pa, i64 {i}\n  %as{i} = load float, ptr %pa{i}, align 4\n  %ai{i} = insertelement <16 x float> poison, float %as{i}, i64 0\n  %av{i} = shufflevector <16 x float> %ai{i}, <16 x float> poison, <16 x i32> zeroinitializer"
        );
        for j in 0..NV {
            let _ = writeln!(
                w,
                "  %c1_{i}_{j} = call <16 x float> @llvm.fma.v16f32(<16 x float> %av{i}, <16 x float> %b{j}, <16 x float> %c0_{i}_{j})"
            );
        }
    }
    w +=
        &format!("  %in = add i64 %i, 1\n  %d = icmp slt i64 %in, {K}\n  br i1 %d, label %l, label %e\ne:\n");
    for i in 0..MR {
        for j in 0..NV {
            let _ = writeln!(
                w,
                "  %g{i}_{j} = getelementptr float, ptr %c, i64 {}\n  store <16 x float> %c1_{i}_{j}, ptr %g{i}_{j}, align 4",
                (i * NV + j) * 16
            );
        }
    }
    w += "  %pn = add i64 %pi, 1\n  %pq = icmp slt i64 %pn, %last\n  br i1 %pq, label %p, label %end\nend:\n  ret void\n}\n";
    w
}

fn time(kernel: &Kernel, pool: &Pool, bufs: &[Buf], scalars: &[i64], instances: i64) -> Result<f64, Error> {
    let t = Instant::now();
    // SAFETY: the buffers are live and as large as the kernels need.
    unsafe { kernel.launch(pool, bufs, scalars, [instances, 1, 1], instances)? };
    Ok(t.elapsed().as_secs_f64())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let chip = Chip::host()?;
    let t = Instant::now();
    println!("{:#.4?}", probe::measure(&chip, chip.cores.value as usize)?);
    println!("probe: {:.2} s", t.elapsed().as_secs_f64());
    if chip.vector.bits < 512 {
        return Ok(());
    }
    let entry = |name: &str, buffers, scalars| Entry {
        name: name.into(),
        offset: 0,
        scratch: 8192,
        buffers,
        scalars,
    };
    let artifact = assemble(&kernel(), &chip, vec![entry("gemm", 3, 0)])?;
    let loaded = Loaded::new(&artifact)?;
    let gemm = loaded.kernel("gemm")?;
    let peak_artifact = probe::fma_kernel(&chip)?;
    let peak_loaded = Loaded::new(&peak_artifact)?;
    let peak = peak_loaded.kernel("fma")?;
    let pool = Pool::new(1)?;
    let mut a: Vec<f32> = (0..K * MR).map(|i| (i % 7) as f32 - 3.0).collect();
    let mut b: Vec<f32> = (0..K * 32).map(|i| (i % 5) as f32 - 2.0).collect();
    let mut c = vec![0f32; MR * 32];
    let bufs = [&mut a, &mut b, &mut c].map(|v| Buf { ptr: v.as_mut_ptr().cast(), len: v.len() as i64 });
    let mut ratios = Vec::new();
    for _ in 0..1000 {
        let g = 20.0 * (2 * MR * 32 * K) as f64 / time(&gemm, &pool, &bufs, &[], 20)?;
        let p = probe::FMA_OPS_PER_LANE * 16.0 * 2000.0 / time(&peak, &pool, &[], &[2000], 1)?;
        ratios.push(g / p);
    }
    for i in 0..MR {
        for j in 0..32 {
            let want: f32 = (0..K).map(|k| a[k * MR + i] * b[k * 32 + j]).sum();
            assert_eq!(c[i * 32 + j], want);
        }
    }
    ratios.sort_by(f64::total_cmp);
    println!(
        "14x32 f32 kernel: {:.1} % of the adjacent peak burst (median)",
        100.0 * ratios[ratios.len() / 2]
    );
    Ok(())
}
