//! The Ascend back end on a part of the kit that is small enough for every build: compiled by the vendor's compiler, the planned programs
//! executed here, for both chips. `TONGTU_CASES=2/8` takes the second eighth of the kit; `tongtu conform --chip ascend-910b` all of it.

use tongtu_ascend::{AscendCompiler, Simulator, Tool};
use tongtu_chip::Chip;
use tongtu_conformance::{Expected, Program, Report, Target, Verdict, programs, run};

fn part() -> Vec<Program> {
    let cases = std::env::var("TONGTU_CASES").unwrap_or_default();
    let number = |s: &str| s.parse::<usize>().ok();
    let all = programs();
    if let Some((k, n)) = cases.split_once('/').and_then(|(k, n)| Some((number(k)?, number(n)?))) {
        return all.into_iter().skip(k.saturating_sub(1)).step_by(n.max(1)).collect();
    }
    let names = [
        "shapes/f32",
        "shapes/i32",
        "store/i32",
        "for/i32",
        "take_along/f32",
        "reduce-argmax/f32",
        "scan-max/i32",
        "store/bool",
        "iota/i8",
        "cast/f32-u64",
        "max/u64",
        "div/i64",
        "mod/u16",
        "mma_scaled/f4e2m1-f8e8m0",
        "program/flash-attention-9x24x16-4x8",
        "program/block-scaled-matmul-f4e2m1",
    ];
    let chosen = |p: &Program| names.contains(&p.name());
    all.into_iter().filter(chosen).collect()
}

fn check(name: &str) {
    let chip = Chip::builtin(name).expect("a description");
    if let Err(e) = Tool::find(&chip) {
        eprintln!("NOT CHECKED for {name}: {e}");
        return;
    }
    let programs = part();
    let device = Simulator::new(&chip, true);
    let target = Target { chip: &chip, compiler: &AscendCompiler, device: Some(&device) };
    let start = std::time::Instant::now();
    let outcomes = run(&programs, target, 1);
    eprintln!("{name}: {} programs, {} cases in {:.1?}", programs.len(), outcomes.len(), start.elapsed());
    let report = Report::new(name, outcomes, &Expected::of_chip(name, "ascend"), false);
    assert!(report.unexpected.is_empty(), "{}", report.text());
    assert!(report.count(Verdict::Pass) > 0);
}

#[test]
fn the_910b_is_as_its_list_says() {
    check("ascend-910b");
}

#[test]
fn the_950_is_as_its_list_says() {
    check("ascend-950");
}
