//! Kernels whose tiles were chosen for a larger machine, made ready for smaller ones: what comes out fits their registers and computes the
//! same within each instruction's numeric class.

use tongtu_chip::Chip;
use tongtu_compile::split::{Registers, is_large};
use tongtu_conformance::run::{Target, prepare, run_batch};
use tongtu_conformance::{Program, Ran, composite};
use tongtu_cpu::{CpuCompiler, CpuDevice};
use tongtu_tensor::Num;
use tongtu_tile::interp::{Options, run};

/// The chip files, and one of the smallest register file there is.
fn chips() -> Vec<Chip> {
    let builtin = |name| Chip::builtin(name).unwrap_or_else(|e| panic!("{e}"));
    let mut tiny = builtin("x86-64-v3");
    (tiny.vector.bits, tiny.vector.registers) = (128, 8);
    tiny.name = "tiny".into();
    vec![builtin("x86-64-amx"), builtin("x86-64-v4"), builtin("x86-64-v3"), tiny]
}

/// The whole programs of the kit that exceed a chip's registers.
fn large(chip: &Chip) -> Vec<Program> {
    let mut all = composite::programs();
    all.retain(|p| is_large(&p.kernel, Registers::of(chip)));
    all
}

fn right(p: &Program, after: &[Vec<u64>], chip: &Chip) {
    for (c, wrong) in p.checks.iter().zip(p.compare(after)) {
        assert!(wrong.is_none(), "{} on {}: {}", c.case, chip.name, wrong.unwrap_or_default());
    }
}

#[test]
fn the_interpreter_agrees_after_the_split() {
    let mut before = 0;
    for chip in chips() {
        let programs = large(&chip);
        assert!(programs.len() >= before.max(3), "{}: {}", chip.name, programs.len());
        before = programs.len();
        for p in programs {
            let ready =
                prepare(&p.kernel, &CpuCompiler { threads: 1 }, &chip).unwrap_or_else(|e| panic!("{e}"));
            assert!(!is_large(&ready, Registers::of(&chip)), "{} on {}", p.name(), chip.name);
            let mut buffers = p.buffers.clone();
            let scalars: Vec<Num> = p.scalars.iter().map(|s| s.1).collect();
            run(&ready, p.grid, &mut buffers, &scalars, &Options::default())
                .unwrap_or_else(|e| panic!("{e}"));
            right(&p, &buffers.into_iter().map(|b| b.codes).collect::<Vec<_>>(), &chip);
        }
    }
}

#[test]
fn machine_code_agrees_after_the_split() {
    let host = Chip::host().expect("a description of this machine");
    let device = CpuDevice::new(2).expect("threads");
    for chip in chips().into_iter().filter(|c| c.features.iter().all(|f| host.features.contains(f))) {
        let programs = large(&chip);
        let target = Target { chip: &chip, compiler: &CpuCompiler { threads: 1 }, device: Some(&device) };
        for (p, ran) in programs.iter().zip(run_batch(&programs, target)) {
            match ran {
                Ran::After(after) => right(p, &after, &chip),
                other => panic!("{} on {}: {other:?}", p.name(), chip.name),
            }
        }
    }
}
