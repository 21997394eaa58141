//! The report as text for a terminal.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::report::{Bound, ChipReport, Depth, KernelReport, Report, Support, Weight};

/// Kernels shown.
const KERNELS: usize = 8;
/// Findings of one kind shown.
const FINDINGS: usize = 20;

/// A number of bytes for people.
pub fn bytes(n: f64) -> String {
    scaled(n, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB"])
}

/// A large number for people.
pub fn count(n: f64) -> String {
    scaled(n, 1000.0, &["", "K", "M", "G", "T", "P"]).trim_end().to_string()
}

fn scaled(n: f64, by: f64, units: &[&str]) -> String {
    let (mut value, mut unit) = (n, 0);
    while value >= by && unit + 1 < units.len() {
        value /= by;
        unit += 1;
    }
    if unit == 0 { format!("{value:.0} {}", units[0]) } else { format!("{value:.1} {}", units[unit]) }
}

/// Microseconds for people.
pub fn time(us: f64) -> String {
    match us {
        us if us >= 1e6 => format!("{:.2} s", us / 1e6),
        us if us >= 1e3 => format!("{:.2} ms", us / 1e3),
        us if us >= 10.0 => format!("{us:.0} us"),
        us => format!("{us:.2} us"),
    }
}

/// A share for people.
pub fn percent(x: f64) -> String {
    match x * 100.0 {
        // Not quite all is not all.
        p if p > 99.0 && p < 100.0 => format!("{p:.2} %"),
        p => format!("{p:.0} %"),
    }
}

/// What bounds a kernel, in a word.
pub fn bound(k: &KernelReport) -> String {
    match k.bound {
        Bound::Compute => k.unit.clone(),
        Bound::Memory => "memory".to_string(),
        Bound::Unknown => "-".to_string(),
    }
}

fn short(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_string();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

/// Rows in columns.
fn table(out: &mut String, rows: &[Vec<String>]) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|t| t.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, w)| format!("{cell:<w$}")).collect();
        let _ = writeln!(out, "  {}", cells.join("  ").trim_end());
    }
}

/// How operations get to a chip, in words.
pub fn counts(c: &ChipReport) -> String {
    let list = c.counts().into_iter().map(|(s, n)| format!("{n} {}", s.name()));
    list.collect::<Vec<_>>().join(", ")
}

/// The sizes that figures are for.
pub fn sizes(r: &Report) -> String {
    let one = |s: &crate::report::Size| format!("{}={}", s.name, s.size);
    r.sizes.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// The whole report.
pub fn render(r: &Report) -> String {
    let mut out = String::new();
    if r.chips.len() > 1 {
        compare(&mut out, r);
    }
    for c in &r.chips {
        if !out.is_empty() {
            out.push('\n');
        }
        chip(&mut out, r, c);
    }
    out
}

fn compare(out: &mut String, r: &Report) {
    let head = ["chip", "verdict", "operations", "memory", "time at least", "proof"];
    let mut rows = vec![head.map(str::to_string).to_vec()];
    for c in &r.chips {
        rows.push(vec![
            c.chip.clone(),
            c.verdict.words().to_string(),
            counts(c),
            bytes((c.memory.weights + c.memory.activations + c.memory.inputs) as f64),
            c.total.limit_us.map_or("not known".to_string(), time),
            proof_line(c),
        ]);
    }
    table(out, &rows);
}

fn proof_line(c: &ChipReport) -> String {
    match &c.proof {
        None => "not run".to_string(),
        Some(p) if p.failed > 0 => format!("{} of {} kernels differ", p.failed, p.kernels),
        Some(p) => format!("{} kernels within contract", p.kernels),
    }
}

fn chip(out: &mut String, r: &Report, c: &ChipReport) {
    let depth = match (r.depth, &c.proof) {
        (Depth::Check, _) => "checked, not run".to_string(),
        (_, None) => "not run".to_string(),
        (_, Some(p)) => p.how.clone(),
    };
    let _ = writeln!(out, "{} on {} ({}): {} ({depth})", r.model, c.chip, c.title, c.verdict.words());
    let _ = writeln!(out, "  operations  {}: {}", c.ops.len(), counts(c));
    if !c.kernels.is_empty() {
        let m = &c.memory;
        let open = if r.sizes.is_empty() { String::new() } else { format!(" ({})", sizes(r)) };
        let _ = writeln!(
            out,
            "  memory      weights {}, activations {}, inputs {}{open}",
            bytes(m.weights as f64),
            bytes(m.activations as f64),
            bytes(m.inputs as f64)
        );
        for l in m.levels.iter().filter(|l| l.kind == "memory") {
            let fits = match l.fits {
                Some(true) => "fits",
                Some(false) => "DOES NOT FIT",
                None => "size not known",
            };
            let has = l.capacity.map_or(String::new(), |c| format!(" of {}", bytes(c as f64)));
            let _ = writeln!(out, "              {}: {}{has}: {fits}", l.level, bytes(l.need as f64));
        }
        let scratch = c.kernels.iter().filter_map(|k| k.scratch.as_ref()).max_by_key(|s| s.need);
        if let Some(s) = scratch {
            let (need, limit) = (bytes(s.need as f64), bytes(s.limit as f64));
            let _ = writeln!(
                out,
                "              {}: {need} of {limit} by the largest kernel (estimate)",
                s.level
            );
        }
        times(out, c);
    }
    if let Some(p) = &c.proof {
        proof(out, p);
    }
    findings(out, c);
}

fn times(out: &mut String, c: &ChipReport) {
    let work = format!("{} operations, {} moved", count(c.total.flops), bytes(c.total.bytes));
    match c.total.limit_us {
        Some(us) => {
            let share = c.total.compute_share.map_or(String::new(), |s| {
                format!(", {} of it bound by arithmetic, the rest by {}", percent(s), c.limits.level)
            });
            let measured = c.total.measured_us.map_or(String::new(), |m| {
                format!("; measured {} ({} of the limit reached)", time(m), percent(us / m.max(1e-9)))
            });
            let _ = writeln!(out, "  time        at least {}{share}{measured}; {work}", time(us));
        }
        None => {
            let _ = writeln!(out, "  time        not predicted: the chip file lacks figures; {work}");
        }
    }
    let mut order: Vec<&KernelReport> = c.kernels.iter().collect();
    let weight = |k: &KernelReport| k.measured_us.or(k.limit_us).unwrap_or(k.flops + k.bytes);
    order.sort_by(|a, b| weight(b).total_cmp(&weight(a)));
    let measured = c.kernels.iter().any(|k| k.measured_us.is_some());
    let mut rows =
        vec![["", "limit", "bound by", "measured", "support", "kernel", "at"].map(str::to_string).to_vec()];
    for k in order.iter().take(KERNELS) {
        rows.push(vec![
            String::new(),
            k.limit_us.map_or("-".to_string(), time),
            bound(k),
            k.measured_us.map_or("-".to_string(), time),
            k.support.name().to_string(),
            short(&k.name, 36),
            short(&k.at, 48),
        ]);
    }
    if !measured {
        rows.iter_mut().for_each(|r| _ = r.remove(3));
    }
    table(out, &rows);
    if order.len() > KERNELS {
        let _ = writeln!(out, "    … {} kernels in all", order.len());
    }
}

fn proof(out: &mut String, p: &crate::report::Proof) {
    let _ = writeln!(
        out,
        "  proof       {} kernels compared with the reference, {} of {} elements; {} differ; worst error {:.3} of what is allowed",
        p.kernels, p.checked, p.elements, p.failed, p.worst_ratio
    );
    if let Some(d) = &p.diverges {
        let _ = writeln!(out, "              first to differ: {} at {}", d.op, d.at);
        let _ = writeln!(
            out,
            "              at {:?}: {} computed, {} (± {:.3e}) expected; {}",
            d.index, d.actual, d.expected, d.allowed, d.fault
        );
    }
    for q in &p.quality {
        let mut top = q.top1.map_or(String::new(), |t| format!(", same top element in {}", percent(t)));
        if let (Some(mean), Some(most)) = (q.kl_mean, q.kl_max) {
            top += &format!(", KL divergence {mean:.1e} (at most {most:.1e})");
        }
        let _ = writeln!(
            out,
            "  output      {}: greatest error {:.2e} (values to {:.2e}), mean {:.2e}, cosine {:.7}{top}",
            q.output, q.max_error, q.scale, q.mean_error, q.cosine
        );
    }
    if !p.quality_note.is_empty() {
        let _ = writeln!(out, "  output      {}", p.quality_note);
    }
}

fn findings(out: &mut String, c: &ChipReport) {
    let mut shown: BTreeMap<&str, usize> = BTreeMap::new();
    for f in &c.findings {
        let n = shown.entry(&f.code).or_default();
        *n += 1;
        if *n > FINDINGS {
            continue;
        }
        let weight = match f.weight {
            Weight::Failure => "FAILS",
            Weight::Reservation => "but",
            Weight::Note => "note",
        };
        let at = if f.at.is_empty() { String::new() } else { format!("  at {}", f.at) };
        let _ = writeln!(out, "  {weight:<10}  [{}] {}{at}", f.code, f.what);
        if *n == 1 && !f.fix.is_empty() {
            let _ = writeln!(out, "              → {}", f.fix);
        }
    }
    for (code, n) in shown.into_iter().filter(|(_, n)| *n > FINDINGS) {
        let _ = writeln!(out, "              … and {} more of [{code}]: --json has all", n - FINDINGS);
    }
    if !c.placement.is_empty() {
        let mut rows = vec![["on the host", "bytes copied", "at", "why"].map(str::to_string).to_vec()];
        for p in &c.placement {
            rows.push(vec![p.op.clone(), bytes(p.bytes), short(&p.at, 48), short(&p.why, 70)]);
        }
        table(out, &rows);
    }
    let composed = c.ops.iter().filter(|o| o.support == Support::Composed);
    let mut names: BTreeMap<&str, usize> = BTreeMap::new();
    composed.for_each(|o| *names.entry(&o.op).or_default() += 1);
    if !names.is_empty() {
        let list = names.iter().map(|(n, c)| format!("{n} {c}")).collect::<Vec<_>>().join(", ");
        let _ = writeln!(out, "  composed    {list}");
    }
}
