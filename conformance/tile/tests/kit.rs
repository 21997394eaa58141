//! The kit against the reference interpreter and against itself.

use std::collections::BTreeSet;

use tongtu_conformance::{Expected, Outcome, Program, Report, Verdict, programs};
use tongtu_tensor::{DType, Num};
use tongtu_tile::interp::{Options, run};
use tongtu_tile::op::rows;
use tongtu_tile::verify;

/// The interpreter passes every case: what other programs computed, what formulas say, and the bounds agree with it.
#[test]
fn the_interpreter_passes() {
    let mut wrong = Vec::new();
    let (mut names, mut instructions, mut types) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let all = programs();
    for p in &all {
        verify(&p.kernel).unwrap_or_else(|e| panic!("{}: {}", p.name(), e[0]));
        let mut after = p.buffers.clone();
        let scalars: Vec<Num> = p.scalars.iter().map(|s| s.1).collect();
        run(&p.kernel, p.grid, &mut after, &scalars, &Options::default()).unwrap_or_else(|e| panic!("{e}"));
        let after: Vec<Vec<u64>> = after.into_iter().map(|b| b.codes).collect();
        for (c, found) in p.checks.iter().zip(p.compare(&after)) {
            assert!(names.insert(c.case.clone()), "{} is there twice", c.case);
            wrong.extend(found.map(|f| format!("{}: {f}", c.case)));
        }
        let text = p.kernel.to_string();
        instructions.extend(text.split([' ', '\n']).map(str::to_string));
        types.extend(p.buffers.iter().map(|b| b.dtype));
    }
    assert!(wrong.is_empty(), "{} cases\n{}", wrong.len(), wrong[..wrong.len().min(40)].join("\n"));
    assert!(names.len() > 5000, "{}", names.len());
    let absent: Vec<&str> = rows().iter().map(|r| r.name).filter(|n| !instructions.contains(*n)).collect();
    assert!(absent.is_empty(), "no case has {absent:?}");
    assert_eq!(types.len(), DType::ALL.len());
}

/// What has not been run is not claimed, though the list expects it to pass; what fails is claimed no more.
#[test]
fn a_part_of_the_kit_claims_nothing_new() {
    let all = programs();
    let kit: Vec<_> = all.into_iter().filter(|p| p.name().starts_with("shapes/")).take(2).collect();
    let outcome = |case: &str, verdict| {
        let (case, detail, extensions) = (case.to_string(), "why".to_string(), vec!["base".to_string()]);
        Outcome { case, verdict, detail, extensions }
    };
    let cases = |p: &[Program], verdict| -> Vec<Outcome> {
        p.iter().flat_map(|p| &p.checks).map(|c| outcome(&c.case, verdict)).collect()
    };
    let claims = |old: &str, outcomes: &[Outcome]| {
        let list = Expected::updated(Some(old), outcomes, &kit);
        list.lines().nth(1).map(str::to_string)
    };
    let (whole, part) = (cases(&kit, Verdict::Pass), cases(&kit[..1], Verdict::Pass));
    assert_eq!(claims("claims\t", &whole).as_deref(), Some("claims\tbase"));
    assert_eq!(claims("claims\t", &part).as_deref(), Some("claims\t"));
    assert_eq!(claims("claims\tbase", &part).as_deref(), Some("claims\tbase"));
    let failed = cases(&kit[..1], Verdict::Fail);
    assert_eq!(claims("claims\tbase", &failed).as_deref(), Some("claims\t"));
}

#[test]
fn lists_hold_both_ways() {
    let outcome = |case: &str, verdict| Outcome {
        case: case.into(),
        verdict,
        detail: "why".into(),
        extensions: vec!["base".into()],
    };
    let cases = vec![
        outcome("a/f32/x", Verdict::Pass),
        outcome("b/f32/x", Verdict::Unsupported),
        outcome("b/f32/y", Verdict::Unsupported),
        outcome("c/f32/x", Verdict::Fail),
        outcome("c/f32/y", Verdict::Pass),
    ];
    let list = Expected::of(&cases);
    let lines = ["claims\t", "b/f32\tunsupported\twhy", "c/f32/x\tfail\twhy"];
    assert_eq!(list.lines().skip(1).collect::<Vec<_>>(), lines);
    let claiming = Expected::parse(&list.replace("claims\t", "claims\tbase"));
    let broken = Report::new("chip", cases.clone(), &claiming, true).unexpected;
    assert_eq!(broken, ["base: claimed, but not all of it passes"]);
    assert_eq!(Expected::of(&cases[..1]).lines().nth(1), Some("claims\tbase"));
    let good = Report::new("chip", cases.clone(), &Expected::parse(&list), true);
    assert!(good.unexpected.is_empty(), "{:?}", good.unexpected);
    assert!(good.html().contains("class=\"fail\"") && good.json()["counts"]["fail"] == 1);
    // A failure that is not listed, a pass that is, an entry for nothing.
    let bad = Report::new(
        "chip",
        cases,
        &Expected::parse("a/f32\tfail\twhy\nz/f32\tfail\twhy\nb/f32\tunsupported\twhy\n"),
        true,
    );
    assert_eq!(bad.unexpected.len(), 3, "{:?}", bad.unexpected);
    assert!(bad.text().contains("UNEXPECTED  a/f32/x: pass, the list says fail"));
}
