//! Random programs: the CPU back end against the interpreter, with what fails made as short as it gets.
//!
//! `TONGTU_CASES` sets the number of programs (a night's worth: 100000), `TONGTU_SEED` the sequence.

use tongtu_chip::Chip;
use tongtu_conformance::random::search;
use tongtu_conformance::{Outcome, Program, Target, Verdict, run};
use tongtu_cpu::{CpuCompiler, CpuDevice};
use tongtu_tensor::DType;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

#[test]
fn machine_code_agrees_with_the_interpreter() {
    let (chip, device) = (Chip::host().expect("a description"), CpuDevice::new(2).expect("threads"));
    let target = Target { chip: &chip, compiler: &CpuCompiler { threads: 1 }, device: Some(&device) };
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let run = |programs: &[Program]| -> Result<Vec<Outcome>, ()> { Ok(run(programs, target, threads)) };
    let found = search(number("TONGTU_CASES", 150) as usize, number("TONGTU_SEED", 1), run).unwrap();
    eprintln!("{} programs, {} unsupported", found.tried, found.unsupported);
    if let Some(fault) = found.fault {
        panic!("{:?}\n{}", fault.choices, fault.detail);
    }
    assert_eq!(found.unsupported, 0);
}

/// A chip that gets one element type wrong: the fault is found, and little is left of the program.
#[test]
fn faults_are_made_small() {
    let wrong = |p: &Program| {
        p.kernel.to_string().contains("= scan ") && p.buffers.iter().any(|b| b.dtype == DType::F16)
    };
    let run = |programs: &[Program]| -> Result<Vec<Outcome>, ()> {
        let one = |p: &Program| -> Vec<Outcome> {
            let verdict = if wrong(p) { Verdict::Fail } else { Verdict::Pass };
            let outcome = |case: &str| Outcome {
                case: case.into(),
                verdict,
                detail: String::new(),
                extensions: vec![],
            };
            p.checks.iter().map(|c| outcome(&c.case)).collect()
        };
        Ok(programs.iter().flat_map(one).collect())
    };
    let fault = search(2000, 1, run).unwrap().fault.expect("a fault");
    assert!(fault.choices.len() <= 3, "{:?}", fault.choices);
    assert!(fault.detail.contains("= scan "), "{}", fault.detail);
}
