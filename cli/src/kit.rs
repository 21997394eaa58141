//! `tongtu conform --chip`: the conformance kit of the instruction set, and random programs.

use std::process::Command;
use std::time::Duration;

use tongtu::Error;
use tongtu::conform::{Expected, Outcome, Program, Report, isolate, programs, search, with_target};

use crate::args::{ConformChipArgs, KitWorkerArgs};
use crate::ui::{DIFFERS, Done, Fail, Progress, print, print_json, say};

/// Answers programs on standard input, one process of many.
pub fn worker(args: &KitWorkerArgs) -> Done {
    with_target(&args.chip, isolate::serve)?.map_err(Error::io("standard input"))?;
    Ok(0)
}

/// Runs the kit on a chip and holds the verdicts against the list of what is expected not to pass, or tries random programs.
pub fn chip(args: &ConformChipArgs, as_json: bool) -> Done {
    let backend = with_target(&args.chip, |target| target.compiler.name().to_string())?;
    let program = std::env::current_exe().map_err(Error::io("tongtu"))?;
    let worker = || {
        let mut command = Command::new(&program);
        command.args(["conform-kit-worker", "--chip", &args.chip]);
        command
    };
    let workers = match args.jobs {
        0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
        n => n,
    };
    let limit = Duration::from_secs(args.timeout.max(1));
    let run = |programs: &[Program], done: &(dyn Fn() + Sync)| -> Result<Vec<Outcome>, Fail> {
        Ok(isolate::run(programs, &worker, workers, limit, done).map_err(Error::io("a worker"))?)
    };
    if let Some(n) = args.random {
        let wait = Progress::wait("trying random programs");
        let found = search(n, args.seed, |programs| run(programs, &|| ()))?;
        drop(wait);
        if as_json {
            print_json(&serde_json::json!({
                "chip": args.chip, "seed": args.seed, "tried": found.tried, "unsupported": found.unsupported,
                "fault": found.fault.as_ref().map(|f| &f.detail),
            }));
        } else {
            if let Some(f) = &found.fault {
                say!("{}", f.detail.trim_end());
            }
            let end = if found.fault.is_some() { "a fault was found" } else { "no fault was found" };
            say!("{}: {} random programs, {} unsupported; {end}", args.chip, found.tried, found.unsupported);
        }
        return Ok(if found.fault.is_none() { 0 } else { DIFFERS });
    }
    let wait = Progress::wait("writing the conformance kit");
    let kit = programs();
    let name = args.filter.as_deref().unwrap_or_default();
    let (part, parts) = args.part;
    let chosen = kit.iter().filter(|p| p.name().contains(name)).skip(part - 1).step_by(parts);
    let programs: Vec<Program> = chosen.cloned().collect();
    drop(wait);
    let bar = Progress::count(programs.len() as u64, "running the conformance kit");
    let outcomes = run(&programs, &|| bar.step())?;
    drop(bar);
    if let (Some(path), true) = (&args.list, args.update) {
        let old = std::fs::read_to_string(path).ok();
        let new = Expected::updated(old.as_deref(), &outcomes, &kit);
        std::fs::write(path, new).map_err(Error::io(path))?;
    }
    let expected = match &args.list {
        Some(path) => Expected::parse(&std::fs::read_to_string(path).map_err(Error::io(path))?),
        None => Expected::of_chip(&args.chip, &backend),
    };
    let report = Report::new(&args.chip, outcomes, &expected, programs.len() == kit.len());
    if let Some(path) = &args.html {
        std::fs::write(path, report.html()).map_err(Error::io(path))?;
    }
    match as_json {
        true => print_json(&report.json()),
        false => print(report.text().trim_end()),
    }
    Ok(if report.unexpected.is_empty() { 0 } else { DIFFERS })
}
