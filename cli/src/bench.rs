//! `tongtu bench`.

use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::{Value as Json, json};
use tongtu::cache::Cache;
use tongtu::{LoadOptions, Model, Session, Value};

use crate::args::BenchArgs;
use crate::data;
use crate::open;
use crate::ui::{self, Done, FAILED, Fail, Progress, print_json, say};

fn ms(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

/// Loads and compiles with the kernel cache of the measurement.
fn session(args: &BenchArgs, cache: &Cache) -> Result<Session, Fail> {
    let options = open::options(&args.model).kernel_cache(cache.clone());
    if open::is_bundle(&args.model.model)? {
        return Ok(Session::open(&args.model.model, &options)?);
    }
    let load = LoadOptions { dims: args.model.fix.clone(), ..LoadOptions::default() };
    Ok(Model::load_with(&args.model.model, &load)?.compile(&options)?)
}

/// A folder that goes away at the end.
struct Folder(std::path::PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Measures a model: a cold compile here, everything else in a process of its own, so that the compiler's memory does not
/// count.
pub fn bench(args: &BenchArgs, as_json: bool) -> Done {
    if args.runs == 0 {
        return Err(Fail::usage("--runs must be at least 1"));
    }
    let folder = Folder(std::env::temp_dir().join(format!("tongtu-bench-{}", std::process::id())));
    let cache = Cache::new(&folder.0, tongtu::cache::LIMIT);
    let compile_ms = {
        let _wait = Progress::wait("compiling");
        let start = Instant::now();
        session(args, &cache)?;
        ms(start)
    };
    let program = std::env::current_exe().map_err(tongtu::Error::io("tongtu"))?;
    let mut child = Command::new(program);
    child.arg("--json").arg("bench-child").arg("--cache-dir").arg(&folder.0);
    // The rest of the command line as it came.
    let given: Vec<std::ffi::OsString> = std::env::args_os().collect();
    let at = given.iter().position(|a| a == "bench").map_or(given.len(), |i| i + 1);
    child.args(given[at..].iter().filter(|a| *a != "--json"));
    let output = {
        let _wait = Progress::wait("measuring");
        child.stdin(Stdio::null()).stderr(Stdio::inherit()).output().map_err(tongtu::Error::io("tongtu"))?
    };
    let mut report: Json = serde_json::from_slice(&output.stdout).unwrap_or_default();
    if let Some(message) = report["error"]["message"].as_str() {
        let hint = report["error"]["hint"].as_str().map(str::to_string);
        return Err(Fail { message: message.to_string(), hint, exit: FAILED });
    }
    if !output.status.success() || !report.is_object() {
        let message = format!("[A008] the measuring process ended with {}", output.status);
        return Err(Fail { message, hint: None, exit: FAILED });
    }
    report["compile_ms"] = json!(compile_ms);
    if as_json {
        print_json(&report);
        return Ok(0);
    }
    let number = |name: &str| report[name].as_f64().unwrap_or(0.0);
    let samples: Vec<f64> =
        report["samples_ms"].as_array().into_iter().flatten().filter_map(Json::as_f64).collect();
    let (low, high) = samples.iter().fold((f64::MAX, f64::MIN), |(l, h), &v| (l.min(v), h.max(v)));
    say!("median        {:.3} ms  ({} runs, {low:.3} to {high:.3})", number("median_ms"), samples.len());
    say!("threads       {}", report["threads"]);
    say!("compile       {compile_ms:.0} ms");
    say!("cached start  {:.1} ms", number("cached_start_ms"));
    say!("peak memory   {}", ui::bytes(report["peak_rss_bytes"].as_u64().unwrap_or(0)));
    Ok(0)
}

/// The most memory that this process had at a time.
fn peak_rss() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find(|l| l.starts_with("VmHWM:"))?;
    Some(line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

/// Runs in the measuring process.
pub fn child(args: &BenchArgs) -> Done {
    let Some(dir) = &args.cache_dir else { return Err(Fail::usage("--cache-dir is missing")) };
    let start = Instant::now();
    let session = session(args, &Cache::new(dir, tongtu::cache::LIMIT))?;
    let cached_start_ms = ms(start);
    let wants = data::wants_of_plan(session.plan(), &args.inputs.dims());
    let inputs = data::inputs(&args.inputs, &wants, true)?;
    let named: Vec<(&str, Value)> = inputs.iter().map(|(n, v)| (n.as_str(), v.clone())).collect();
    let ordered = session.ordered(&named)?;
    let mut context = session.context();
    let mut outputs = Vec::new();
    let mut samples = Vec::with_capacity(args.runs);
    for i in 0..args.warmup + args.runs {
        let start = Instant::now();
        context.run_into(&ordered, &mut outputs).map_err(tongtu::Error::from)?;
        if i >= args.warmup {
            samples.push(ms(start));
        }
    }
    let mut sorted = samples.clone();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let median =
        if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
    let threads = match args.model.threads {
        0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
        n => n,
    };
    print_json(&json!({
        "model": args.model.model,
        "threads": threads,
        "runs": args.runs,
        "samples_ms": samples,
        "median_ms": median,
        "compile_ms": null,
        "cached_start_ms": cached_start_ms,
        "peak_rss_bytes": peak_rss(),
        "memory": context.memory(),
    }));
    Ok(0)
}
