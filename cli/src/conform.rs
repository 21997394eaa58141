//! `tongtu conform`: suites of tests, run in processes of their own.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::json;
use tongtu::cache::Cache;
use tongtu::conform::{Stopped, Worker, isolate};
use tongtu::onnx::{FileKind, OnnxError};
use tongtu::{Error, LoadOptions, Model, Options, Outputs, Session, Value};

use crate::args::{ConformArgs, WorkerArgs};
use crate::data::{self, Tolerance};
use crate::info;
use crate::ui::{DIFFERS, Done, Fail, Progress, print, print_json, say, short};

/// How a test went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    /// Every result is as expected.
    Passed,
    /// A result is not.
    Wrong,
    /// Something in the model is not supported.
    Unsupported,
    /// Another error.
    Failed,
    /// It took too long.
    Timeout,
    /// The process died.
    Crashed,
}

/// What a worker says of a test.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Outcome {
    test: String,
    verdict: Verdict,
    /// Why it did not pass.
    reason: String,
    /// Whether operations of the host library took part.
    host: bool,
    /// Whether contents of small integer inputs had to be known to compile it.
    fixed: bool,
    ms: f64,
}

fn first_line(text: &str) -> String {
    short(&text.split_whitespace().collect::<Vec<_>>().join(" "), 300)
}

/// The data sets of a test, in order.
fn data_sets(dir: &Path) -> Vec<PathBuf> {
    let number = |p: &PathBuf| p.file_name()?.to_str()?.strip_prefix("test_data_set_")?.parse::<usize>().ok();
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    let mut sets: Vec<(usize, PathBuf)> = entries.filter_map(|p| Some((number(&p)?, p))).collect();
    sets.sort();
    sets.into_iter().map(|(_, p)| p).collect()
}

/// How files are read, from the names of types in `meta.json`.
fn kinds(dir: &Path, what: &str) -> Vec<FileKind> {
    let text = std::fs::read_to_string(dir.join("meta.json")).unwrap_or_default();
    let meta: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let kind = |name: &str| match name {
        n if n.starts_with("sequence") => FileKind::Sequence,
        n if n.starts_with("optional") => FileKind::Optional,
        _ => FileKind::Tensor,
    };
    meta[what].as_array().into_iter().flatten().map(|v| kind(v.as_str().unwrap_or_default())).collect()
}

/// A model that runs.
enum Ready {
    Compiled(Session),
    Interpreted(Box<Model>),
}

impl Ready {
    fn run(&self, inputs: &[(&str, Value)]) -> Result<Outputs, Error> {
        match self {
            Ready::Compiled(s) => s.run(inputs),
            Ready::Interpreted(m) => m.interpret(inputs),
        }
    }
}

/// What is known of a test when it is done.
struct Found {
    verdict: Verdict,
    reason: String,
    host: bool,
    fixed: bool,
}

/// Runs one test.
fn test(dir: &Path, interpret: bool, options: &Options) -> Result<Found, Fail> {
    let mut found = Found { verdict: Verdict::Passed, reason: String::new(), host: false, fixed: false };
    let stop = |mut found: Found, verdict, reason: &str| {
        (found.verdict, found.reason) = (verdict, first_line(reason));
        Ok(found)
    };
    let refused = |found: Found, e: Error| {
        let unsupported = matches!(
            e,
            Error::Onnx(OnnxError::Unsupported(_))
                | Error::Compile(tongtu::CompileStageError::Unsupported { .. })
        );
        let verdict = if unsupported { Verdict::Unsupported } else { Verdict::Failed };
        stop(found, verdict, &e.to_string())
    };
    let path = dir.join("model.onnx");
    let wants = match Model::input_names(&path) {
        Ok(names) => data::wants_of_names(&names, &kinds(dir, "inputs")),
        Err(e) => return refused(found, e),
    };
    let mut out_kinds = kinds(dir, "outputs");
    let tolerance = Tolerance::of(dir);
    let sets = data_sets(dir);
    if sets.is_empty() {
        return stop(found, Verdict::Failed, "there is no data set");
    }
    let mut ready: Option<Ready> = None;
    for set in sets {
        let inputs: Vec<(&str, Value)> = data::data_set_inputs(&set, &wants)?;
        let mut fixed = Vec::new();
        if ready.is_none() || found.fixed {
            let host = |(n, v): &(&str, Value)| Ok((n.to_string(), data::host_value(v)?));
            let known = inputs.iter().map(host).collect::<Result<Vec<_>, Fail>>()?;
            let model = match Model::load_for(&path, &LoadOptions::default(), &known) {
                Ok((model, names)) => {
                    fixed = names;
                    model
                }
                Err(e) => return refused(found, e),
            };
            found.fixed |= !fixed.is_empty();
            if out_kinds.is_empty() {
                out_kinds = data::output_kinds(model.loaded().outputs.iter().map(|p| p.ty.clone()));
            }
            ready = Some(match interpret {
                true => Ready::Interpreted(Box::new(model)),
                false => match model.compile(options) {
                    Ok(session) => {
                        found.host |= info::has_host_steps(&session);
                        Ready::Compiled(session)
                    }
                    Err(e) => return refused(found, e),
                },
            });
        }
        let Some(ready) = &ready else { continue };
        let given: Vec<(&str, Value)> =
            inputs.into_iter().filter(|(n, _)| !fixed.iter().any(|f| f == n)).collect();
        let outputs = match ready.run(&given) {
            Ok(outputs) => outputs,
            Err(e) => return refused(found, e),
        };
        let expected = data::data_set_outputs(&set, &out_kinds)?;
        if expected.is_empty() || expected.len() != outputs.iter().count() {
            return stop(found, Verdict::Failed, "the data set has not as many outputs as the model");
        }
        for ((name, got), want) in outputs.iter().zip(&expected) {
            let d = data::compare(&data::host_value(got)?, want, tolerance);
            if !d.passes() {
                let what = d.problem.clone().unwrap_or_else(|| {
                    format!("{} of {} elements, worst error {:.3e}", d.outside, d.elements, d.worst_abs)
                });
                return stop(found, Verdict::Wrong, &format!("output '{name}': {what}"));
            }
        }
    }
    Ok(found)
}

/// Runs tests named on standard input, one a line; answers each with a line of JSON.
pub fn worker(args: &WorkerArgs) -> Done {
    // One thread each: as many workers as threads run at a time.
    let options = Options::host().threads(1);
    let options = match Cache::kernels() {
        Some(_) => options,
        None => options.without_cache(),
    };
    isolate::end_with_parent();
    print(isolate::READY);
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        let start = Instant::now();
        let caught = std::panic::catch_unwind(|| test(Path::new(&line), args.interpret, &options));
        let other = |verdict, reason| Found { verdict, reason, host: false, fixed: false };
        let Found { verdict, reason, host, fixed } = match caught {
            Ok(Ok(found)) => found,
            Ok(Err(fail)) => other(Verdict::Failed, first_line(&fail.message)),
            Err(_) => other(Verdict::Crashed, "a panic".to_string()),
        };
        let ms = start.elapsed().as_secs_f64() * 1e3;
        let outcome = Outcome { test: line, verdict, reason, host, fixed, ms };
        print(&serde_json::to_string(&outcome).unwrap_or_default());
    }
    Ok(0)
}

/// Starts a process that runs tests.
fn start(interpret: bool) -> Result<Worker, Fail> {
    let program = std::env::current_exe().map_err(Error::io("tongtu"))?;
    let mut command = Command::new(program);
    command.arg("conform-worker");
    if interpret {
        command.arg("--interpret");
    }
    Ok(Worker::start(command, Duration::from_secs(60)).map_err(Error::io("tongtu"))?)
}

/// Runs a test in a worker; what is wrong with the worker where it is of no use any more.
fn ask(worker: &mut Worker, dir: &Path, limit: Duration) -> Result<Outcome, Verdict> {
    match worker.ask(&format!("{}\n", dir.display()), limit) {
        Ok(answer) => serde_json::from_str(&answer).map_err(|_| Verdict::Crashed),
        Err(Stopped::Late) => Err(Verdict::Timeout),
        Err(Stopped::Died) => Err(Verdict::Crashed),
    }
}

/// The tests below a folder, by their path in it.
fn find_tests(root: &Path, at: &Path, depth: usize, out: &mut Vec<String>) {
    if at.join("model.onnx").is_file() {
        let name = at.strip_prefix(root).unwrap_or(at).to_string_lossy().into_owned();
        out.push(name);
        return;
    }
    if depth == 0 {
        return;
    }
    for e in std::fs::read_dir(at).into_iter().flatten().flatten() {
        if e.path().is_dir() {
            find_tests(root, &e.path(), depth - 1, out);
        }
    }
}

fn read_list(path: &Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).map(str::to_string).collect()
}

/// Runs ONNX's own tests.
pub fn onnx(args: &ConformArgs, as_json: bool) -> Done {
    if !args.dir.is_dir() {
        return Err(Fail::usage(format!("{}: there is no such folder", args.dir.display()))
            .hint("`python conformance/onnx/dump.py` writes the tests to files"));
    }
    let mut tests = Vec::new();
    find_tests(&args.dir, &args.dir, 3, &mut tests);
    tests.sort();
    let listed = args.list.as_deref().map(read_list).unwrap_or_default();
    tests.retain(|t| args.filter.as_ref().is_none_or(|f| t.contains(f.as_str())));
    if args.listed {
        tests.retain(|t| listed.contains(t));
    }
    let jobs = match args.jobs {
        0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
        n => n,
    };
    let bar = Progress::count(tests.len() as u64, "testing");
    let queue: Mutex<VecDeque<String>> = Mutex::new(tests.iter().cloned().collect());
    let outcomes: Mutex<Vec<Outcome>> = Mutex::new(Vec::new());
    let hold = std::sync::PoisonError::into_inner;
    let serve = || -> Result<(), Fail> {
        let mut worker: Option<Worker> = None;
        loop {
            let Some(test) = queue.lock().unwrap_or_else(hold).pop_front() else { return Ok(()) };
            let mut w = match worker.take() {
                Some(w) => w,
                None => start(args.interpret)?,
            };
            let start = Instant::now();
            let result = ask(&mut w, &args.dir.join(&test), Duration::from_secs(args.timeout));
            let outcome = match result {
                Ok(o) => {
                    worker = Some(w);
                    Outcome { test: test.clone(), ..o }
                }
                Err(verdict) => {
                    drop(w);
                    let ms = start.elapsed().as_secs_f64() * 1e3;
                    let reason = match verdict {
                        Verdict::Timeout => format!("not done after {} s", args.timeout),
                        _ => "the process died".to_string(),
                    };
                    Outcome { test: test.clone(), verdict, reason, host: false, fixed: false, ms }
                }
            };
            outcomes.lock().unwrap_or_else(|e| e.into_inner()).push(outcome);
            bar.step();
        }
    };
    let results: Vec<Result<(), Fail>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs.min(tests.len().max(1))).map(|_| scope.spawn(serve)).collect();
        threads
            .into_iter()
            .map(|t| t.join().unwrap_or_else(|_| Err(Fail::usage("a test thread failed"))))
            .collect()
    });
    drop(bar);
    results.into_iter().collect::<Result<Vec<()>, Fail>>()?;
    let mut outcomes = outcomes.into_inner().unwrap_or_else(|e| e.into_inner());
    outcomes.sort_by(|a, b| a.test.cmp(&b.test));

    let mut counts: BTreeMap<Verdict, usize> = BTreeMap::new();
    outcomes.iter().for_each(|o| *counts.entry(o.verdict).or_insert(0) += 1);
    let passed: BTreeSet<String> =
        outcomes.iter().filter(|o| o.verdict == Verdict::Passed).map(|o| o.test.clone()).collect();
    let host = outcomes.iter().filter(|o| o.verdict == Verdict::Passed && o.host).count();
    let fixed = outcomes.iter().filter(|o| o.verdict == Verdict::Passed && o.fixed).count();
    let ran: BTreeSet<&String> = tests.iter().collect();
    let lost: Vec<&String> = listed.iter().filter(|t| ran.contains(t) && !passed.contains(*t)).collect();
    let new: Vec<&String> = passed.iter().filter(|t| !listed.contains(*t)).collect();
    if let (Some(path), true) = (&args.list, args.update) {
        let all: BTreeSet<&String> = listed.iter().chain(&passed).collect();
        let text: String = all.iter().map(|t| format!("{t}\n")).collect();
        std::fs::write(path, text).map_err(Error::io(path))?;
    }
    // Reasons, with what varies between tests left out.
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for o in outcomes.iter().filter(|o| !matches!(o.verdict, Verdict::Passed)) {
        let code = tongtu::code_of(&o.reason);
        let key = if code.is_empty() { short(&o.reason, 60) } else { code.to_string() };
        *reasons.entry(format!("{:?} {key}", o.verdict)).or_insert(0) += 1;
    }
    if as_json {
        print_json(&json!({
            "tests": outcomes,
            "counts": counts.iter().map(|(v, n)| (format!("{v:?}").to_lowercase(), *n)).collect::<BTreeMap<_, _>>(),
            "passed_with_host_operations": host,
            "passed_with_fixed_inputs": fixed,
            "lost": lost,
            "new": new,
        }));
    } else {
        for o in outcomes.iter().filter(|o| args.failures && o.verdict != Verdict::Passed) {
            say!("{:?}  {}  {}", o.verdict, o.test, o.reason);
        }
        for (reason, n) in reasons.iter().filter(|_| !args.failures) {
            say!("{n:5}  {reason}");
        }
        let list: Vec<String> =
            counts.iter().map(|(v, n)| format!("{n} {}", format!("{v:?}").to_lowercase())).collect();
        say!("{} tests: {}", outcomes.len(), list.join(", "));
        say!(
            "of those passed, {host} use host operations, {fixed} were compiled for their small integer inputs"
        );
        if let Some(path) = &args.list {
            let verb = if args.update { "added to" } else { "not on" };
            say!("{} {verb} {}; {} on it do not pass", new.len(), path.display(), lost.len());
            for t in &lost {
                say!("LOST  {t}");
            }
        }
    }
    Ok(if lost.is_empty() { 0 } else { DIFFERS })
}
