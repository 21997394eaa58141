//! `tongtu inspect`, `compile`, `chips`, `devices`, `doctor`, `completions`, `man`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use clap::CommandFactory;
use serde_json::{Value as Json, json};
use tongtu::cache::Cache;
use tongtu::{Chip, LoadOptions, Model, Options, Session, bundle};

use crate::args::{
    ChipsAction, ChipsArgs, Cli, CompileArgs, DoctorArgs, InspectArgs, ToolchainAction, ToolchainArgs,
    ToolchainName,
};
use crate::open;
use crate::ui::{self, Done, FAILED, Fail, Progress, print_json, say, table};

/// Shows what a model is made of.
pub fn inspect(args: &InspectArgs, as_json: bool) -> Done {
    if open::is_bundle(&args.model)? {
        return inspect_bundle(&args.model, as_json);
    }
    let model = {
        let _wait = Progress::wait("loading");
        Model::load_with(&args.model, &LoadOptions { dims: args.dim.clone(), ..LoadOptions::default() })?
    };
    let info = model.inspect();
    let kernels = match args.kernels {
        true => Some(model.plan(&Options::host())?),
        false => None,
    };
    let kernels: Option<Vec<(String, String)>> =
        kernels.map(|p| p.groups.iter().map(|g| (g.name.clone(), g.loc.to_string())).collect());
    if as_json {
        let mut json = serde_json::to_value(&info).unwrap_or_default();
        if let Some(k) = kernels {
            json["kernels"] = k.into_iter().map(|(name, loc)| json!({ "name": name, "loc": loc })).collect();
        }
        print_json(&json);
        return Ok(0);
    }
    say!(
        "{}  (written by {})",
        info.model,
        if info.producer.is_empty() { "unknown" } else { &info.producer }
    );
    let opsets = info.opsets.iter().map(|(d, v)| format!("{} {v}", if d.is_empty() { "ai.onnx" } else { d }));
    say!("operator sets  {}", opsets.collect::<Vec<_>>().join(", "));
    for p in &info.inputs {
        say!("input   {}  {}", p.name, p.ty);
    }
    for p in &info.outputs {
        say!("output  {}  {}", p.name, p.ty);
    }
    for s in &info.symbols {
        let upper = s.upper.map_or("any".to_string(), |u| u.to_string());
        say!("size    {}  {} to {upper}", s.name, s.lower);
    }
    say!("parameters  {} ({})", ui::si(info.parameters as f64), ui::bytes(info.parameter_bytes));
    let or = |value: Option<i64>, text: &str| value.map_or(ui::short(text, 200), |v| ui::si(v as f64));
    say!("operations  {}", or(info.flops_value, &info.flops));
    say!("bytes       {}", or(info.bytes_value, &info.bytes));
    let counts = |list: &[(String, usize)]| {
        list.iter().map(|(n, c)| format!("{n} {c}")).collect::<Vec<_>>().join(", ")
    };
    say!("operators   {}", counts(&info.operators));
    say!("graph       {}", counts(&info.operations));
    for (i, (name, loc)) in kernels.iter().flatten().enumerate() {
        say!("kernel {i}  {name}  {loc}");
    }
    if args.graph {
        say!("{}", model.graph_text());
    }
    Ok(0)
}

fn inspect_bundle(path: &Path, as_json: bool) -> Done {
    let b = bundle::open(path).map_err(tongtu::Error::from)?;
    let whole = b.check_constants().map_err(tongtu::Error::from).is_ok();
    let ports = |list: &[tongtu::PlanPort]| -> Vec<(String, String)> {
        let ty = |p: &tongtu::PlanPort| {
            tongtu::inspect::type_text(&b.plan.values[p.value.index()].ty, &b.plan.symbols)
        };
        list.iter().map(|p| (p.name.clone(), ty(p))).collect()
    };
    let (inputs, outputs) = (ports(&b.plan.inputs), ports(&b.plan.outputs));
    let constants: u64 = b.plan.constants.iter().map(|t| t.nbytes() as u64).sum();
    let code: u64 = b.plan.artifacts.iter().map(|a| a.bytes.len() as u64).sum();
    if as_json {
        let list = |ports: &[(String, String)]| -> Json {
            ports.iter().map(|(n, t)| json!({ "name": n, "ty": t })).collect()
        };
        print_json(&json!({
            "bundle": b.info, "inputs": list(&inputs), "outputs": list(&outputs), "kernels": b.plan.groups.len(),
            "steps": b.plan.body.steps.len(), "constant_bytes": constants, "code_bytes": code, "constants_whole": whole,
        }));
        return Ok(0);
    }
    say!("bundle of '{}' for {}, by {}", b.info.model, b.info.chip, b.info.producer);
    inputs.iter().for_each(|(n, t)| say!("input   {n}  {t}"));
    outputs.iter().for_each(|(n, t)| say!("output  {n}  {t}"));
    say!("{} kernels, {} steps", b.plan.groups.len(), b.plan.body.steps.len());
    say!("constants {} ({})", ui::bytes(constants), if whole { "whole" } else { "DAMAGED" });
    say!("code {}", ui::bytes(code));
    Ok(if whole { 0 } else { FAILED })
}

/// Compiles a model to a bundle.
pub fn compile(args: &CompileArgs, as_json: bool) -> Done {
    let model = open::model(&args.model)?;
    let chip = Chip::builtin(&args.chip).map_err(tongtu::Error::from)?;
    let options = match args.chip.as_str() {
        "host" => open::options(&args.model)?,
        _ if args.model.no_cache => open::tied(Options::for_chip(chip).without_cache(), &args.model),
        _ => open::tied(Options::for_chip(chip), &args.model),
    };
    let start = Instant::now();
    {
        let _wait = Progress::wait("compiling");
        model.save(&args.output, &options)?;
    }
    let took = start.elapsed().as_secs_f64() * 1e3;
    let size = std::fs::metadata(&args.output).map(|m| m.len()).unwrap_or(0);
    if as_json {
        print_json(&json!({ "bundle": args.output, "bytes": size, "compile_ms": took }));
    } else {
        say!("wrote {} ({}) in {took:.0} ms", args.output.display(), ui::bytes(size));
    }
    Ok(0)
}

/// Installs a vendor's compiler.
pub fn toolchain(args: &ToolchainArgs, as_json: bool) -> Done {
    let ToolchainAction::Install { name: ToolchainName::Ascend } = args.action;
    let folder = {
        let _wait = Progress::wait("installing");
        tongtu::toolchain::install_ascend().map_err(tongtu::Error::from)?
    };
    match as_json {
        true => print_json(&json!({ "installed": folder })),
        false => say!("installed in {}", folder.display()),
    }
    Ok(0)
}

/// Lists chips, or shows one.
pub fn chips(args: &ChipsArgs, as_json: bool) -> Done {
    let Some(ChipsAction::Show { chip }) = &args.action else {
        let chips: Vec<Chip> =
            Chip::names().map(Chip::builtin).collect::<Result<_, _>>().map_err(tongtu::Error::from)?;
        if as_json {
            print_json(
                &chips.iter().map(|c| json!({ "name": c.name, "title": c.title, "kind": c.kind })).collect(),
            );
            return Ok(0);
        }
        let mut rows = vec![vec!["chip".to_string(), "what it is".to_string()]];
        rows.extend(chips.iter().map(|c| vec![c.name.clone(), c.title.clone()]));
        rows.push(vec!["host".to_string(), "this machine, as it is found".to_string()]);
        table(&rows);
        return Ok(0);
    };
    let chip = Chip::builtin(chip).map_err(tongtu::Error::from)?;
    let json = serde_json::to_value(&chip).unwrap_or_default();
    if as_json {
        print_json(&json);
    } else {
        show(&json, 0);
    }
    Ok(0)
}

/// Prints a tree of facts, a fact with its basis and source on one line.
fn show(value: &Json, indent: usize) {
    let pad = "  ".repeat(indent);
    let fact = |v: &Json| -> Option<String> {
        let (value, basis) = (v.get("value")?, v.get("basis")?.as_str()?);
        Some(format!("{value}  ({basis}: {})", v.get("source")?.as_str()?))
    };
    let plain = |v: &Json| match v {
        Json::String(s) => Some(s.clone()),
        Json::Array(a) if a.iter().all(|e| e.is_string()) => {
            Some(a.iter().filter_map(Json::as_str).collect::<Vec<_>>().join(" "))
        }
        Json::Object(_) => fact(v),
        Json::Array(_) => None,
        Json::Null => Some("unknown".to_string()),
        other => Some(other.to_string()),
    };
    let Json::Object(map) = value else { return };
    for (name, v) in map {
        match (plain(v), v) {
            (Some(text), _) => say!("{pad}{name}: {text}"),
            (None, Json::Array(items)) => {
                for item in items {
                    say!("{pad}{name}:");
                    show(item, indent + 1);
                }
            }
            (None, other) => {
                say!("{pad}{name}:");
                show(other, indent + 1);
            }
        }
    }
}

/// Lists the devices of this machine.
pub fn devices(as_json: bool) -> Done {
    let chip = Chip::host().map_err(tongtu::Error::from)?;
    let memory = chip.capacity("dram").unwrap_or(0);
    let emulated = tongtu::remote::emulated();
    if as_json {
        let here = json!({
            "name": "cpu", "chip": chip.title, "threads": chip.cores.value, "vector_bits": chip.vector.bits,
            "memory_bytes": memory, "features": chip.features,
        });
        let emulator = |c: &Chip| json!({ "name": format!("emulator:{}", c.name), "chip": c.title });
        print_json(&std::iter::once(here).chain(emulated.iter().map(emulator)).collect());
        return Ok(0);
    }
    say!(
        "cpu  {}: {} threads, {}-bit vectors, {}",
        chip.title,
        chip.cores.value,
        chip.vector.bits,
        ui::bytes(memory)
    );
    say!("     {}", chip.features.join(" "));
    for c in &emulated {
        say!("emulator:{}  {}", c.name, c.title);
    }
    Ok(0)
}

/// What can be measured here, by name, in units of the name.
#[cfg(any(feature = "llvm", feature = "llvm-static"))]
pub fn peaks(threads: usize) -> Result<BTreeMap<String, f64>, Fail> {
    let chip = Chip::host().map_err(tongtu::Error::from)?;
    let threads = if threads == 0 { chip.cores.value as usize } else { threads };
    let p = tongtu::probe::measure(&chip, threads).map_err(tongtu::Error::from)?;
    let mut out = BTreeMap::from([
        ("f32 GFLOP/s, one thread".to_string(), p.f32_core / 1e9),
        (format!("f32 GFLOP/s, {} threads", p.threads), p.f32_all / 1e9),
        (format!("memory GB/s, {} threads", p.threads), p.memory_all / 1e9),
    ]);
    out.extend(p.bf16_matrix_core.map(|v| ("bf16 matrix GFLOP/s, one thread".to_string(), v / 1e9)));
    out.extend(p.int8_matrix_core.map(|v| ("int8 matrix GOP/s, one thread".to_string(), v / 1e9)));
    out.extend(p.read.iter().map(|(level, _, rate)| (format!("{level} GB/s, one thread"), rate / 1e9)));
    Ok(out)
}

/// What can be measured here: nothing without a compiler.
#[cfg(not(any(feature = "llvm", feature = "llvm-static")))]
pub fn peaks(_: usize) -> Result<BTreeMap<String, f64>, Fail> {
    Ok(BTreeMap::new())
}

/// Checks what is installed and measures this machine.
pub fn doctor(args: &DoctorArgs, as_json: bool) -> Done {
    let chip = Chip::host();
    let compiler = cfg!(any(feature = "llvm", feature = "llvm-static"));
    let caches: Vec<_> = [("kernels", Cache::kernels()), ("models", Cache::models())]
        .into_iter()
        .filter_map(|(n, c)| Some((n, c?.state())))
        .collect();
    let tool = |name: &str| {
        let paths = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&paths).map(|d| d.join(name)).find(|p| p.is_file())
    };
    let tools = [("bishengir-compile", "Ascend"), ("tileiras", "NVIDIA")].map(|(t, what)| (t, what, tool(t)));
    let measured = match (&chip, args.quick || !compiler) {
        (Ok(_), false) => {
            let _wait = Progress::wait("measuring");
            peaks(0)?
        }
        _ => BTreeMap::new(),
    };
    let healthy = chip.is_ok() && compiler;
    if as_json {
        print_json(&json!({
            "version": env!("CARGO_PKG_VERSION"),
            "healthy": healthy,
            "cpu_compiler": compiler,
            "host": chip.as_ref().map(|c| json!({
                "title": c.title, "threads": c.cores.value, "vector_bits": c.vector.bits, "features": c.features,
            })).map_err(|e| e.to_string()).unwrap_or_else(Json::String),
            "tools": tools.iter().map(|(t, _, path)| json!({ "name": t, "path": path })).collect::<Vec<_>>(),
            "caches": caches.iter().map(|(n, s)| json!({ "name": n, "state": s })).collect::<Vec<_>>(),
            "measured": measured,
        }));
        return Ok(if healthy { 0 } else { FAILED });
    }
    say!("tongtu {}", env!("CARGO_PKG_VERSION"));
    match &chip {
        Ok(c) => {
            say!("ok       {}: {} threads, {}-bit vectors", c.title, c.cores.value, c.vector.bits);
            say!("         {}", c.features.join(" "));
        }
        Err(e) => say!("MISSING  {e}"),
    }
    match compiler {
        true => say!("ok       compiler for CPUs (LLVM 22)"),
        false => say!(
            "MISSING  compiler for CPUs: build with the feature `llvm`; `scripts/setup` installs LLVM 22"
        ),
    }
    for (name, what, path) in &tools {
        match path {
            Some(p) => say!("ok       {name} ({what}): {}", p.display()),
            None => say!("absent   {name}: needed only to compile for {what} chips"),
        }
    }
    for (name, s) in &caches {
        let state = format!("{} entries, {} of {}", s.entries, ui::bytes(s.bytes), ui::bytes(s.limit));
        say!("cache    {name}: {state} in {}", s.dir.display());
    }
    for (name, value) in &measured {
        say!("measured {value:9.1} {name}");
    }
    Ok(if healthy { 0 } else { FAILED })
}

/// Prints shell completions.
pub fn completions(shell: clap_complete::Shell) -> Done {
    let mut out = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tongtu", &mut out);
    ui::print(String::from_utf8_lossy(&out).trim_end());
    Ok(0)
}

/// Prints the manual page, or writes all of them.
pub fn man(dir: Option<&Path>) -> Done {
    let io = |e: std::io::Error| Fail { message: format!("[A001] {e}"), hint: None, exit: FAILED };
    match dir {
        Some(dir) => {
            std::fs::create_dir_all(dir).map_err(io)?;
            clap_mangen::generate_to(Cli::command(), dir).map_err(io)?;
        }
        None => {
            let mut out = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut out).map_err(io)?;
            ui::print(String::from_utf8_lossy(&out).trim_end());
        }
    }
    Ok(0)
}

/// Whether a session's plan has steps on the host library.
pub fn has_host_steps(session: &Session) -> bool {
    fn any(steps: &[tongtu::Step]) -> bool {
        steps.iter().any(|s| match &s.kind {
            tongtu::StepKind::Host { .. } => true,
            tongtu::StepKind::If { then_block, else_block, .. } => {
                any(&then_block.steps) || any(&else_block.steps)
            }
            tongtu::StepKind::While { body, .. } => any(&body.steps),
            _ => false,
        })
    }
    any(&session.plan().body.steps)
}
