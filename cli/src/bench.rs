//! `tongtu bench`.

use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::{Value as Json, json};
use tongtu::cache::Cache;
use tongtu::{Options, Session, Value};

use crate::args::BenchArgs;
use crate::data;
use crate::open;
use crate::ui::{self, Done, FAILED, Fail, Progress, print_json, table};

fn ms(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

/// Loads and compiles with the caches of the measurement.
fn session(args: &BenchArgs, dir: &std::path::Path) -> Result<Session, Fail> {
    let cache = |name: &str| Cache::new(dir.join(name), tongtu::cache::LIMIT);
    let mut options = open::tied(Options::host().threads(args.model.threads), &args.model);
    options = options.kernel_cache(cache("kernels"));
    options = match args.model.no_model_cache {
        true => options.without_model_cache(),
        false => options.keep_models(cache("compiled")),
    };
    open::session(&args.model, &options)
}

/// A folder that goes away at the end.
struct Folder(std::path::PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs a measuring process, which shares nothing with this one but the caches of the measurement.
fn measure(dir: &std::path::Path, first: bool) -> Result<Json, Fail> {
    let program = std::env::current_exe().map_err(tongtu::Error::io("tongtu"))?;
    let mut child = Command::new(program);
    child.arg("--json").arg("bench-child").arg("--cache-dir").arg(dir);
    if first {
        child.arg("--first");
    }
    // The rest of the command line as it came.
    let given: Vec<std::ffi::OsString> = std::env::args_os().collect();
    let at = given.iter().position(|a| a == "bench").map_or(given.len(), |i| i + 1);
    child.args(given[at..].iter().filter(|a| *a != "--json"));
    let output = {
        let _wait = Progress::wait(if first { "compiling" } else { "measuring" });
        child.stdin(Stdio::null()).stderr(Stdio::inherit()).output().map_err(tongtu::Error::io("tongtu"))?
    };
    let report: Json = serde_json::from_slice(&output.stdout).unwrap_or_default();
    if let Some(message) = report["error"]["message"].as_str() {
        let hint = report["error"]["hint"].as_str().map(str::to_string);
        return Err(Fail { message: message.to_string(), hint, exit: FAILED });
    }
    if !output.status.success() || !report.is_object() {
        let message = format!("[A008] the measuring process ended with {}", output.status);
        return Err(Fail { message, hint: None, exit: FAILED });
    }
    Ok(report)
}

/// Measures a model: the first start and run in one process, the others in a second.
pub fn bench(args: &BenchArgs, as_json: bool) -> Done {
    if args.runs == 0 {
        return Err(Fail::usage("--runs must be at least 1"));
    }
    let folder = Folder(std::env::temp_dir().join(format!("tongtu-bench-{}", std::process::id())));
    let first = measure(&folder.0, true)?;
    let mut report = measure(&folder.0, false)?;
    for (name, from) in [
        ("compile_ms", "start_ms"),
        ("first_run_ms", "first_run_ms"),
        ("first_peak_rss_bytes", "peak_rss_bytes"),
    ] {
        report[name] = first[from].clone();
    }
    report["cached_start_ms"] = report["start_ms"].take();
    if as_json {
        print_json(&report);
        return Ok(0);
    }
    let number = |name: &str| report[name].as_f64().unwrap_or(0.0);
    let size = |name: &str| ui::bytes(report[name].as_u64().unwrap_or(0));
    let samples: Vec<f64> =
        report["samples_ms"].as_array().into_iter().flatten().filter_map(Json::as_f64).collect();
    let (low, high) = samples.iter().fold((f64::MAX, f64::MIN), |(l, h), &v| (l.min(v), h.max(v)));
    table(
        &[
            [
                "latency".to_string(),
                format!("{:.3} ms", number("median_ms")),
                format!(
                    "median of {} runs, {low:.3} to {high:.3}, on {} threads",
                    samples.len(),
                    report["threads"]
                ),
            ],
            [
                "first start".to_string(),
                format!("{:.0} ms", number("compile_ms")),
                format!(
                    "compiles everything; then {:.1} ms to the first result, {} at most",
                    number("first_run_ms"),
                    size("first_peak_rss_bytes")
                ),
            ],
            [
                "next starts".to_string(),
                format!("{:.1} ms", number("cached_start_ms")),
                "from the cache".to_string(),
            ],
            [
                "memory".to_string(),
                size("peak_rss_bytes"),
                format!(
                    "at most; {} of constants, {} of intermediate results",
                    ui::bytes(report["memory"]["constants"].as_u64().unwrap_or(0)),
                    ui::bytes(report["memory"]["arena"].as_u64().unwrap_or(0))
                ),
            ],
        ]
        .map(Vec::from),
    );
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
    let session = session(args, dir)?;
    let start_ms = ms(start);
    let wants = data::wants_of_plan(session.plan(), &args.inputs.dims());
    let inputs = data::inputs(&args.inputs, &wants, true)?;
    let named: Vec<(&str, Value)> = inputs.iter().map(|(n, v)| (n.as_str(), v.clone())).collect();
    let ordered = session.ordered(&named)?;
    let mut context = session.context();
    let mut outputs = Vec::new();
    let mut samples = Vec::with_capacity(args.runs);
    let (warmup, runs) = if args.first { (1, 0) } else { (args.warmup, args.runs) };
    let mut first_run_ms = None;
    for i in 0..warmup + runs {
        let start = Instant::now();
        context.run_into(&ordered, &mut outputs).map_err(tongtu::Error::from)?;
        first_run_ms = first_run_ms.or(Some(ms(start)));
        if i >= warmup {
            samples.push(ms(start));
        }
    }
    // Counting takes memory of its own.
    let (memory, peak_rss_bytes) = (context.memory(), peak_rss());
    let flops = match args.first {
        true => None,
        false => Some(session.profile(&named)?.1.groups().iter().map(|g| g.flops).sum::<u64>()),
    };
    let mut sorted = samples.clone();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let median = match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    };
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
        "flops": flops,
        "start_ms": start_ms,
        "first_run_ms": first_run_ms,
        "peak_rss_bytes": peak_rss_bytes,
        "memory": memory,
    }));
    Ok(0)
}
