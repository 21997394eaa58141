//! `tongtu verify` and `tongtu profile`.

use serde_json::json;
use tongtu::{Culprit, GroupReport, Value, VerifyOptions};

use crate::args::{ProfileArgs, VerifyArgs};
use crate::data;
use crate::info;
use crate::open;
use crate::ui::{self, DIFFERS, Done, Progress, print_json, say, short, table};

/// Compares every kernel with the reference interpreter.
pub fn verify(args: &VerifyArgs, as_json: bool) -> Done {
    let session = open::session(&args.model, &open::options(&args.model)?)?;
    let wants = data::wants_of_plan(session.plan(), &args.inputs.dims());
    let inputs = data::inputs(&args.inputs, &wants, true)?;
    let named: Vec<(&str, Value)> = inputs.iter().map(|(n, v)| (n.as_str(), v.clone())).collect();
    let (_, report) = {
        let _wait = Progress::wait("verifying");
        let options =
            VerifyOptions { elements: args.elements, seed: args.inputs.seed, ..VerifyOptions::default() };
        session.verify(&named, &options)?
    };
    let passes = report.passes();
    if as_json {
        print_json(&json!({
            "model": args.model.model,
            "passes": passes,
            "checked": report.checked(),
            "worst_ratio": report.worst_ratio(),
            "groups": report.groups,
        }));
        return Ok(if passes { 0 } else { DIFFERS });
    }
    for g in report.groups.iter().filter(|g| args.all || !g.passes()) {
        show(g);
    }
    let bad = report.groups.iter().filter(|g| !g.passes()).count();
    say!(
        "{}: {} kernels, {} elements compared, {bad} kernels differ, worst error {:.3} of what is allowed",
        if passes { "ok" } else { "DIFFERS" },
        report.groups.len(),
        report.checked(),
        report.worst_ratio()
    );
    Ok(if passes { 0 } else { DIFFERS })
}

fn show(g: &GroupReport) {
    let verdict = if g.passes() { "ok" } else { "DIFFERS" };
    say!(
        "{verdict}  {}  at {}: {} of {} elements compared, {} outside, worst error {:.3e} ({:.3} of what is allowed)",
        g.name,
        g.loc,
        g.checked,
        g.elements,
        g.failed,
        g.worst_error,
        g.worst_ratio
    );
    if let Some(e) = &g.error {
        say!("    could not be verified: {e}");
    }
    if g.passes() {
        return;
    }
    if let Some(w) = &g.worst {
        say!(
            "    result {} at {:?}: {} expected (± {:.3e}), {} computed",
            w.output,
            w.index,
            w.expected,
            w.bound,
            w.actual
        );
    }
    for op in &g.ops {
        say!("    {}  at {}", op.op, op.loc);
    }
    match &g.culprit {
        Some(Culprit::Op { op, .. }) => say!("    alone, too, {} at {} differs", op.op, op.loc),
        Some(Culprit::Fusion) => say!("    each operation alone is right: fusing them is at fault"),
        Some(Culprit::Unknown(why)) => say!("    which operation is at fault was not found: {why}"),
        None => {}
    }
}

/// Measures every kernel.
pub fn profile(args: &ProfileArgs, as_json: bool) -> Done {
    let session = open::session(&args.model, &open::options(&args.model)?)?;
    let wants = data::wants_of_plan(session.plan(), &args.inputs.dims());
    let inputs = data::inputs(&args.inputs, &wants, true)?;
    let named: Vec<(&str, Value)> = inputs.iter().map(|(n, v)| (n.as_str(), v.clone())).collect();
    // The first run binds sizes and touches memory.
    session.run(&named)?;
    let (_, mut profile) = session.profile(&named)?;
    for _ in 1..args.runs.max(1) {
        profile.keep_best(&session.profile(&named)?.1);
    }
    let peaks = match args.no_peak {
        true => None,
        false => {
            let _wait = Progress::wait("measuring peaks");
            Some(info::peaks(args.model.threads)?)
        }
    };
    let peak = |start: &str, end: &str| {
        peaks
            .as_ref()
            .and_then(|p| p.iter().find(|(n, _)| n.starts_with(start) && n.ends_with(end)).map(|(_, v)| *v))
    };
    let (flops, memory) = (peak("f32", "threads"), peak("memory", "threads"));
    // The greater of the shares of the two limits that a kernel can run into.
    let share = |gflops: f64, gbytes: f64| Some((gflops / flops?).max(gbytes / memory?));
    if let Some(path) = &args.trace {
        let file = std::fs::File::create(path).map_err(tongtu::Error::io(path))?;
        profile.write_trace(&mut std::io::BufWriter::new(file)).map_err(tongtu::Error::io(path))?;
    }
    let groups = profile.groups();
    if as_json {
        let list = groups.iter().map(|g| {
            let mut v = serde_json::to_value(g).unwrap_or_default();
            v["share_of_peak"] = json!(share(g.gflops, g.gbytes));
            v
        });
        print_json(&json!({
            "model": args.model.model,
            "total_ms": profile.total_ns as f64 / 1e6,
            "kernels": list.collect::<Vec<_>>(),
            "peaks": peaks,
            "memory": session.memory(),
        }));
        return Ok(0);
    }
    let head = ["time", "share", "runs", "GFLOP/s", "GB/s", "of peak", "kernel", "at"];
    let mut rows = vec![head.map(str::to_string).to_vec()];
    for g in groups.iter().take(args.top) {
        rows.push(vec![
            format!("{:.3} ms", g.ns as f64 / 1e6),
            format!("{:.1} %", g.share * 100.0),
            g.launches.to_string(),
            format!("{:.1}", g.gflops),
            format!("{:.1}", g.gbytes),
            share(g.gflops, g.gbytes).map_or("-".to_string(), |s| format!("{:.0} %", s * 100.0)),
            short(&g.name, 48),
            short(&g.loc, 60),
        ]);
    }
    table(&rows);
    let rest = groups.len().saturating_sub(args.top);
    if rest > 0 {
        say!("… and {rest} more (--top {})", groups.len());
    }
    let m = session.memory();
    say!(
        "{:.3} ms in all; memory: constants {}, arena {}, pool {}",
        profile.total_ns as f64 / 1e6,
        ui::bytes(m.constants),
        ui::bytes(m.arena),
        ui::bytes(m.pool_high_water)
    );
    if let Some(path) = &args.trace {
        say!("wrote {} (open it at ui.perfetto.dev)", path.display());
    }
    Ok(0)
}
