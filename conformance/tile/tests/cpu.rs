//! The CPU back end on a part of the kit that is large enough to matter and small enough for every build;
//! `tongtu conform --chip host` runs all of it.

use tongtu_chip::Chip;
use tongtu_conformance::run::prepare;
use tongtu_conformance::{Expected, Outcome, Program, Report, Verdict, programs, run};
use tongtu_cpu::{CpuCompiler, CpuDevice};

/// The list of what is expected not to pass.
const LIST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/expected/cpu.tsv");

/// `TONGTU_CASES=all` takes the whole kit; `TONGTU_UPDATE=1` writes the list, without it of what is refused only.
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
        (whole || i % 31 == 0 || structural.iter().any(|s| p.name().starts_with(s))).then_some(p)
    };
    (programs().into_iter().enumerate().filter_map(chosen).collect(), whole)
}

/// What the back end refuses, without running anything.
fn refused(chip: &Chip) -> Vec<Outcome> {
    let one = |p: &Program| {
        let why = prepare(&p.kernel, &CpuCompiler { threads: 1 }, chip).err();
        let verdict = if why.is_some() { Verdict::Unsupported } else { Verdict::Pass };
        let detail = why.unwrap_or_default();
        let outcome =
            |case: &str| Outcome { case: case.into(), verdict, detail: detail.clone(), extensions: vec![] };
        p.checks.iter().map(|c| outcome(&c.case)).collect::<Vec<_>>()
    };
    programs().iter().flat_map(one).collect()
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
    if std::env::var_os("TONGTU_UPDATE").is_some() {
        let verdicts = if whole { outcomes.clone() } else { refused(&chip) };
        std::fs::write(LIST, Expected::of(&verdicts)).unwrap();
    }
    let expected = Expected::parse(&std::fs::read_to_string(LIST).unwrap());
    let report = Report::new("host", outcomes, &expected, whole);
    assert!(report.unexpected.is_empty(), "{}", report.text());
    assert!(report.count(Verdict::Pass) > 1000);
}
