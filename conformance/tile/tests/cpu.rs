//! The CPU back end on a part of the kit that is large enough to matter and small enough for every build;
//! `tongtu conform --chip host` runs all of it.

use tongtu_chip::Chip;
use tongtu_conformance::{Expected, Program, Report, Verdict, programs, run};
use tongtu_cpu::{CpuCompiler, CpuDevice};

/// The list of what is expected not to pass.
const LIST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/expected/cpu.tsv");

/// `TONGTU_CASES=all` takes the whole kit; with `TONGTU_UPDATE=1` it writes the list.
fn part() -> (Vec<Program>, bool) {
    let whole = std::env::var("TONGTU_CASES").is_ok_and(|v| v == "all");
    let chosen = |(i, p): (usize, Program)| {
        let structural = [
            "program/",
            "mma/",
            "for/f32",
            "load/",
            "store/",
            "gather/",
            "alloc/",
            "reduce-add/",
            "scan-max/",
            "atomic",
        ];
        (whole || i % 9 == 0 || structural.iter().any(|s| p.name().starts_with(s))).then_some(p)
    };
    (programs().into_iter().enumerate().filter_map(chosen).collect(), whole)
}

#[test]
fn the_host_is_as_its_list_says() {
    let (programs, whole) = part();
    let chip = Chip::host().expect("a description of this machine");
    let device = CpuDevice::new(2).expect("threads");
    let start = std::time::Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let outcomes = run(&programs, &CpuCompiler { threads: 1 }, &chip, Some(&device), threads);
    eprintln!("{} programs, {} cases in {:.1?}", programs.len(), outcomes.len(), start.elapsed());
    if whole && std::env::var_os("TONGTU_UPDATE").is_some() {
        std::fs::write(LIST, Expected::of(&outcomes)).unwrap();
    }
    let expected = Expected::parse(&std::fs::read_to_string(LIST).unwrap());
    let report = Report::new("host", outcomes, &expected, whole);
    assert!(report.unexpected.is_empty(), "{}", report.text());
    assert!(report.count(Verdict::Pass) > 1000);
}
