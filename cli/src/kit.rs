//! `tongtu conform --chip`: the conformance kit of the instruction set.

use tongtu::Error;
use tongtu::conform::{Expected, Report, programs, run};

use crate::args::ConformChipArgs;
use crate::ui::{DIFFERS, Done, Progress, print, print_json};

/// Runs the kit on a chip and holds the verdicts against the list of what is expected not to pass.
pub fn chip(args: &ConformChipArgs, as_json: bool) -> Done {
    let wait = Progress::wait("running the conformance kit");
    let mut programs = programs();
    if let Some(filter) = &args.filter {
        programs.retain(|p| p.name().contains(filter.as_str()));
    }
    let outcomes = run(&programs, &args.chip)?;
    drop(wait);
    if let (Some(path), true) = (&args.list, args.update) {
        std::fs::write(path, Expected::of(&outcomes)).map_err(Error::io(path))?;
    }
    let expected = match &args.list {
        Some(path) => Expected::parse(&std::fs::read_to_string(path).map_err(Error::io(path))?),
        None => Expected::cpu(),
    };
    let report = Report::new(&args.chip, outcomes, &expected, args.filter.is_none());
    if let Some(path) = &args.html {
        std::fs::write(path, report.html()).map_err(Error::io(path))?;
    }
    match as_json {
        true => print_json(&report.json()),
        false => print(report.text().trim_end()),
    }
    Ok(if report.unexpected.is_empty() { 0 } else { DIFFERS })
}
