//! Random programs: the CPU back end against the interpreter, with what fails made as short as it gets.
//!
//! `TONGTU_CASES` sets the number of programs (a night's worth: 100000), `TONGTU_SEED` the sequence.

use std::sync::OnceLock;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use tongtu_chip::Chip;
use tongtu_conformance::random::program;
use tongtu_conformance::{Verdict, run};
use tongtu_cpu::{CpuCompiler, CpuDevice};

fn number(name: &str, default: u32) -> u32 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

#[test]
fn machine_code_agrees_with_the_interpreter() {
    static PLACE: OnceLock<(Chip, CpuDevice)> = OnceLock::new();
    let (chip, device) =
        PLACE.get_or_init(|| (Chip::host().expect("a description"), CpuDevice::new(1).expect("a thread")));
    let config =
        Config { cases: number("TONGTU_CASES", 150), failure_persistence: None, ..Config::default() };
    let mut seed = [0; 32];
    seed[..4].copy_from_slice(&number("TONGTU_SEED", 1).to_le_bytes());
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    let outcome = runner.run(&prop::collection::vec(any::<(u8, u8, u8, u8)>(), 1..24), |choices| {
        let p = program("grown/any", &choices);
        let outcomes = run(std::slice::from_ref(&p), &CpuCompiler { threads: 1 }, chip, Some(device), 1);
        match outcomes.iter().find(|o| o.verdict != Verdict::Pass) {
            None => Ok(()),
            Some(o) => Err(TestCaseError::fail(format!("{}: {}\n{}", o.case, o.detail, p.kernel))),
        }
    });
    if let Err(e) = outcome {
        panic!("{e}");
    }
}
