//! `tongtu conform --chip`: the conformance kit of the instruction set, and random programs.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use sha2::{Digest, Sha256};

use tongtu::conform::{
    Expected, Outcome, Program, Report, isolate, not_run, programs, search, with_compiler, with_target,
};
use tongtu::{Chip, Error};

use crate::args::{ConformChipArgs, KitWorkerArgs};
use crate::ui::{DIFFERS, Done, Fail, Progress, print, print_json, say};

/// Answers programs on standard input, one process of many.
pub fn worker(args: &KitWorkerArgs) -> Done {
    isolate::end_with_parent();
    with_target(&args.chip, isolate::serve)?.map_err(Error::io("standard input"))?;
    Ok(0)
}

/// Verdicts kept in a file.
struct Kept {
    file: File,
    known: HashMap<String, Outcome>,
}

impl Kept {
    /// Opens a file of verdicts, or begins one: a line that names the program and the chip, then one for each case. Lines that were
    /// cut off count for nothing.
    ///
    /// # Errors
    /// The file is of another program or chip, or cannot be read or written.
    fn open(path: &Path, program: &Path, chip: &str) -> Result<Kept, Fail> {
        let bytes = std::fs::read(program).map_err(Error::io(program))?;
        let hash = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect::<String>();
        let head = format!("{chip} {hash}");
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(Error::io(path)(e).into()),
        };
        let mut file = File::options().create(true).append(true).open(path).map_err(Error::io(path))?;
        if text.is_empty() {
            writeln!(file, "{head}").map_err(Error::io(path))?;
        } else if text.lines().next() != Some(&head) {
            return Err(Fail::usage(format!(
                "{}: these verdicts are not this program's on {chip}",
                path.display()
            ))
            .hint("give another file, or remove this one"));
        } else if !text.ends_with('\n') {
            writeln!(file).map_err(Error::io(path))?;
        }
        let cases = text.lines().skip(1).filter_map(|l| serde_json::from_str::<Outcome>(l).ok());
        Ok(Kept { file, known: cases.map(|o| (o.case.clone(), o)).collect() })
    }
}

/// Writes verdicts down; what cannot be written is run again another time.
fn keep(mut file: &File, cases: &[Outcome]) {
    let lines = cases.iter().filter_map(|o| serde_json::to_string(o).ok());
    let _ = file.write_all(lines.map(|l| l + "\n").collect::<String>().as_bytes());
}

/// Says that verdicts are those of the compiler alone.
fn only_compiled(not_run: &Option<String>) {
    if let Some(why) = not_run {
        say!("NOT RUN: programs were compiled only, no result was compared: {why}");
    }
}

/// Runs the kit on a chip and holds the verdicts against the list of what is expected not to pass, or tries random programs.
pub fn chip(args: &ConformChipArgs, as_json: bool) -> Done {
    let chip = Chip::builtin(&args.chip).map_err(Error::from)?;
    let backend = with_compiler(&chip, |compiler| compiler.name().to_string())?;
    let not_run = not_run(&chip);
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
    let run = |programs: &[Program], done: &(dyn Fn(&[Outcome]) + Sync)| -> Result<Vec<Outcome>, Fail> {
        Ok(isolate::run(programs, &worker, workers, limit, done).map_err(Error::io("a worker"))?)
    };
    if let Some(n) = args.random {
        let wait = Progress::wait("trying random programs");
        let found = search(n, args.seed, |programs| run(programs, &|_| ()))?;
        drop(wait);
        if as_json {
            print_json(&serde_json::json!({
                "chip": args.chip, "seed": args.seed, "tried": found.tried, "unsupported": found.unsupported,
                "fault": found.fault.as_ref().map(|f| &f.detail), "not_run": not_run,
            }));
        } else {
            if let Some(f) = &found.fault {
                say!("{}", f.detail.trim_end());
            }
            let end = if found.fault.is_some() { "a fault was found" } else { "no fault was found" };
            say!("{}: {} random programs, {} unsupported; {end}", args.chip, found.tried, found.unsupported);
            only_compiled(&not_run);
        }
        return Ok(if found.fault.is_none() { 0 } else { DIFFERS });
    }
    let wait = Progress::wait("writing the conformance kit");
    let kit = programs();
    let name = args.filter.as_deref().unwrap_or_default();
    let (part, parts) = args.part;
    let chosen = kit.iter().filter(|p| p.name().contains(name)).skip(part - 1).step_by(parts);
    let programs: Vec<Program> = chosen.cloned().collect();
    let mut kept = args.resume.as_deref().map(|path| Kept::open(path, &program, &args.chip)).transpose()?;
    drop(wait);
    let bar = Progress::count(programs.len() as u64, "running the conformance kit");
    let known =
        |p: &Program| kept.as_ref().is_some_and(|k| p.checks.iter().all(|c| k.known.contains_key(&c.case)));
    let (old, new): (Vec<Program>, Vec<Program>) = programs.iter().cloned().partition(known);
    old.iter().for_each(|_| bar.step());
    let file = kept.as_ref().map(|k| &k.file);
    let mut ran = run(&new, &|cases| {
        file.into_iter().for_each(|f| keep(f, cases));
        bar.step();
    })?;
    drop(bar);
    if let Some(kept) = &mut kept {
        kept.known.extend(ran.drain(..).map(|o| (o.case.clone(), o)));
        let cases = programs.iter().flat_map(|p| &p.checks);
        ran = cases.filter_map(|c| kept.known.remove(&c.case)).collect();
    }
    let outcomes = ran;
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
        true => {
            let mut json = report.json();
            json["not_run"] = not_run.into();
            print_json(&json);
        }
        false => {
            print(report.text().trim_end());
            only_compiled(&not_run);
        }
    }
    Ok(if report.unexpected.is_empty() { 0 } else { DIFFERS })
}
