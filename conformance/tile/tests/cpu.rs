//! The CPU back end on a part of the kit that is large enough to matter and small enough for every build;
//! `TONGTU_CASES=all`, as `tongtu conform --chip host`, runs all of it.

use std::process::Command;
use std::time::Duration;

use tongtu_chip::Chip;
use tongtu_conformance::run::prepare;
use tongtu_conformance::{Check, Want};
use tongtu_conformance::{Expected, Outcome, Program, Report, Target, Verdict, isolate, programs};
use tongtu_cpu::{CpuCompiler, CpuDevice};
use tongtu_tensor::DType;
use tongtu_tile::interp::BufferData;
use tongtu_tile::parse_kernel;

/// The list of what is expected not to pass.
const LIST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/expected/cpu.tsv");

/// How long a few programs may take.
const LIMIT: Duration = Duration::from_secs(120);

/// `TONGTU_CASES=all` takes the whole kit, `TONGTU_CASES=2/8` the second eighth of it; `TONGTU_UPDATE=1` writes the list, of what is
/// refused only unless the whole kit runs.
fn part() -> (Vec<Program>, bool) {
    let cases = std::env::var("TONGTU_CASES").unwrap_or_default();
    let whole = cases == "all";
    let number = |s: &str| s.parse::<usize>().ok();
    if let Some((k, n)) = cases.split_once('/').and_then(|(k, n)| Some((number(k)?, number(n)?))) {
        let share = programs().into_iter().skip(k.saturating_sub(1)).step_by(n.max(1));
        return (share.collect(), false);
    }
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
        let extensions: Vec<String> = p.kernel.extensions().iter().map(|e| e.name().into()).collect();
        let outcome = |case: &str| Outcome {
            case: case.into(),
            verdict,
            detail: detail.clone(),
            extensions: extensions.clone(),
        };
        p.checks.iter().map(|c| outcome(&c.case)).collect::<Vec<_>>()
    };
    programs().iter().flat_map(one).collect()
}

/// This program as a worker.
fn worker_command() -> Command {
    let mut command = Command::new(std::env::current_exe().expect("a path"));
    command.args(["--exact", "worker", "--ignored"]);
    command
}

/// Not a test: what [`worker_command`] runs.
#[test]
#[ignore]
fn worker() {
    let (chip, device) = (Chip::host().expect("a description"), CpuDevice::new(2).expect("threads"));
    let target = Target { chip: &chip, compiler: &CpuCompiler { threads: 1 }, device: Some(&device) };
    isolate::serve(target).expect("standard input and output");
}

/// A kernel that never ends, and one that ends the process, are failures of their own.
#[test]
fn what_hangs_or_crashes_is_a_failure() {
    let kernel = |body: &str| {
        let text = format!(
            "kernel @k(%y \"y\": readwrite buffer<i32>) {{
  %zero: i64 = full {{dtype = i64, shape = [], value = 0}}
  %go: bool = full {{dtype = bool, shape = [], value = 1}}
  %at: i64[1] = reshape %zero {{shape = [1]}}
  %one: i32[1] = full {{dtype = i32, shape = [1], value = 1}}
  {body}
  scatter %y, %at, %one
}}
"
        );
        let check = Check { case: "k/y".into(), buffer: 0, first: 0, want: vec![Want::exact(1)] };
        Program {
            kernel: parse_kernel(&text).unwrap_or_else(|e| panic!("{e}")),
            grid: [1, 1, 1],
            buffers: vec![BufferData { dtype: DType::I32, codes: vec![0] }],
            scalars: vec![],
            checks: vec![check],
        }
    };
    let forever = "while %go do () {
    %old: i32[1] = atomic_rmw %y, %at, %one {combiner = add, ordering = relaxed, scope = device}
    yield %go
  }";
    // An address that no process has.
    let crash = "%far: i64 = full {dtype = i64, shape = [], value = 1000000000000}
  %step: i64 = full {dtype = i64, shape = [], value = 1}
  %v: view<i32, 1> = view %y, %far, [%far], [%step]
  store %v[%zero], %one {map = [1@0], inside = [true]}";
    let programs = [kernel(""), kernel(forever), kernel(""), kernel(crash), kernel("")];
    let outcomes =
        isolate::run(&programs, &worker_command, 1, Duration::from_secs(3), &|_| ()).expect("workers");
    let found: Vec<(Verdict, &str)> = outcomes.iter().map(|o| (o.verdict, o.detail.as_str())).collect();
    let (pass, late) = ((Verdict::Pass, ""), (Verdict::Fail, "not done after 3 s"));
    assert_eq!(found, [pass, late, pass, (Verdict::Fail, "the process died"), pass]);
}

#[test]
fn the_host_is_as_its_list_says() {
    let (programs, whole) = part();
    let chip = Chip::host().expect("a description of this machine");
    let start = std::time::Instant::now();
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get());
    let outcomes = isolate::run(&programs, &worker_command, workers, LIMIT, &|_| ()).expect("workers");
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
