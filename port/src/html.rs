//! The report as one page that needs nothing else: no script, no network.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use crate::report::{
    Bound, ChipReport, Depth, Finding, KernelReport, Limits, MemoryReport, Report, Support, Verdict, Weight,
};
use crate::text::{bound, bytes, count, counts, percent, sizes, time};

/// Kernels listed.
const KERNELS: usize = 25;
/// Operations listed of a chip, beside those that are not supported.
const OPS: usize = 200;

const STYLE: &str = "
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --good: #1a7f37; --warn: #b07300; --bad: #c62828; --mark: #3b6fd6; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { margin-top: 2.2rem; border-bottom: 1px solid var(--line); } h3 { margin-top: 1.6rem; }
table { border-collapse: collapse; width: 100%; margin: .6rem 0; font-size: .92em; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
th { font-weight: 600; } th, td.c { overflow-wrap: normal; } td.c, td.n { white-space: nowrap; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1rem 0; }
.card { border: 1px solid var(--line); border-left: .4rem solid; border-radius: .4rem; padding: .6rem 1rem; min-width: 15rem; flex: 1; }
.works { border-left-color: var(--good); } .reservations { border-left-color: var(--warn); } .fails { border-left-color: var(--bad); }
.big { font-size: 1.2rem; font-weight: 600; } .soft { opacity: .75; }
.native, .folded { color: var(--good); } .composed, .host { color: var(--warn); } .emulated { color: var(--warn); font-weight: 600; }
.unsupported { color: var(--bad); font-weight: 600; }
code { background: var(--soft); padding: 0 .25em; border-radius: .2em; }
svg { max-width: 100%; height: auto; font: 12px system-ui, sans-serif; } svg text { fill: currentColor; }
";

/// Text that cannot be taken for markup.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() && c != '\n' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// Escaped text, with what stands in backticks as code.
fn marked(text: &str) -> String {
    let part = |(i, t): (usize, &str)| match i % 2 {
        0 => escape(t),
        _ => format!("<code>{}</code>", escape(t)),
    };
    text.split('`').enumerate().map(part).collect()
}

/// The page.
pub fn page(r: &Report) -> String {
    let mut out = String::new();
    let chips = r.chips.iter().map(|c| c.chip.as_str()).collect::<Vec<_>>().join(", ");
    let title = escape(&format!("{} on {chips}", r.model));
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\
         <meta name=\"viewport\" content=\"width=device-width\"><link rel=\"icon\" href=\"data:,\">\
         <title>{title}</title><style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n"
    );
    let depth = match r.depth {
        Depth::Check => "Checked against the chips' descriptions; nothing was run.",
        Depth::Prove => "Compiled, run and compared with the reference.",
        Depth::Measure => "Compiled, run, compared with the reference and measured.",
    };
    let at = if r.sizes.is_empty() { String::new() } else { format!(" Sizes: {}.", sizes(r)) };
    let _ =
        writeln!(out, "<p class=\"soft\">{} {}</p>", escape(&format!("{depth}{at}")), escape(&r.producer));
    summary(&mut out, r);
    next(&mut out, r);
    matrix(&mut out, r);
    for c in &r.chips {
        chip(&mut out, c);
    }
    out.push_str("</body></html>\n");
    out
}

fn class(v: Verdict) -> &'static str {
    match v {
        Verdict::Works => "works",
        Verdict::Reservations => "reservations",
        Verdict::Fails => "fails",
    }
}

fn summary(out: &mut String, r: &Report) {
    out.push_str("<h2>Summary</h2><div class=\"cards\">\n");
    for c in &r.chips {
        let memory = c.memory.weights + c.memory.activations + c.memory.inputs;
        let speed = match (c.total.measured_us, c.total.limit_us) {
            (Some(m), Some(l)) => {
                format!("{} measured, {} of the chip's limit", time(m), percent(l / m.max(1e-9)))
            }
            (_, Some(l)) => format!("at least {} a run", time(l)),
            _ => "time not predicted".to_string(),
        };
        let proof = c.proof.as_ref().map_or("not run there".to_string(), |p| match p.failed {
            0 => format!("{} kernels right ({})", p.kernels, p.how),
            n => format!("{n} of {} kernels differ ({})", p.kernels, p.how),
        });
        let _ = writeln!(
            out,
            "<div class=\"card {}\"><div class=\"big\">{}: {}</div><div class=\"soft\">{}</div>\
             <div>{}</div><div>{} of memory</div><div>{}</div><div>{}</div></div>",
            class(c.verdict),
            escape(&c.chip),
            c.verdict.words(),
            escape(&c.title),
            escape(&format!("{} operations: {}", c.ops.len(), counts(c))),
            bytes(memory as f64),
            escape(&speed),
            escape(&proof),
        );
    }
    out.push_str("</div>\n");
}

/// What to do: each kind of finding once, failures first.
fn next(out: &mut String, r: &Report) {
    let mut kinds = Kinds::new();
    for c in &r.chips {
        for f in &c.findings {
            kinds.entry((f.weight, &f.code)).or_default().push((&c.chip, f));
        }
    }
    out.push_str("<h2>What to do next</h2>\n");
    let notes = kinds.split_off(&(Weight::Note, ""));
    if kinds.is_empty() {
        out.push_str("<p>Nothing: the model works as it is.</p>\n");
    } else {
        kinds_table(out, kinds);
    }
    if !notes.is_empty() {
        let many = if notes.len() > 1 { "s" } else { "" };
        let _ = writeln!(out, "<details><summary>{} note{many}</summary>", notes.len());
        kinds_table(out, notes);
        out.push_str("</details>\n");
    }
}

/// Findings by weight and code, each with its chip.
type Kinds<'a> = BTreeMap<(Weight, &'a str), Vec<(&'a str, &'a Finding)>>;

fn kinds_table(out: &mut String, kinds: Kinds<'_>) {
    out.push_str("<table><tr><th>code</th><th>found</th><th>chips</th><th>what to do</th></tr>\n");
    for ((weight, code), all) in kinds {
        let mut chips: Vec<&str> = all.iter().map(|a| a.0).collect();
        chips.dedup();
        let words = match weight {
            Weight::Failure => "<span class=\"unsupported\">does not work</span>",
            Weight::Reservation => "<span class=\"composed\">reservation</span>",
            Weight::Note => "note",
        };
        let texts: BTreeSet<String> = all
            .iter()
            .map(|(_, f)| if f.at.is_empty() { f.what.clone() } else { format!("{} (at {})", f.what, f.at) })
            .collect();
        let mut found: String = texts.iter().take(8).map(|t| format!("<div>{}</div>", escape(t))).collect();
        if texts.len() > 8 {
            let rest: String = texts.iter().skip(8).map(|t| format!("<div>{}</div>", escape(t))).collect();
            let _ = write!(found, "<details><summary>{} more</summary>{rest}</details>", texts.len() - 8);
        }
        let fix = all.first().map_or("", |(_, f)| &f.fix);
        let _ = writeln!(
            out,
            "<tr><td class=\"c\"><code>{}</code><br>{words}</td><td>{found}</td><td>{}</td><td>{}</td></tr>",
            escape(code),
            escape(&chips.join(", ")),
            marked(fix)
        );
    }
    out.push_str("</table>\n");
}

/// Operations by chips.
fn matrix(out: &mut String, r: &Report) {
    let mut rows: BTreeMap<&str, Vec<BTreeMap<Support, usize>>> = BTreeMap::new();
    for (i, c) in r.chips.iter().enumerate() {
        for o in &c.ops {
            let row = rows.entry(&o.op).or_insert_with(|| vec![BTreeMap::new(); r.chips.len()]);
            *row[i].entry(o.support).or_default() += 1;
        }
    }
    out.push_str("<h2>Operations and chips</h2>\n<table id=\"matrix\"><tr><th>operation</th>");
    r.chips.iter().for_each(|c| _ = write!(out, "<th>{}</th>", escape(&c.chip)));
    out.push_str("</tr>\n");
    for (op, cells) in rows {
        let _ = write!(out, "<tr><td>{}</td>", escape(op));
        for cell in cells {
            let parts = cell.iter().map(|(s, n)| format!("<span class=\"{0}\">{n} {0}</span>", s.name()));
            let _ = write!(out, "<td>{}</td>", parts.collect::<Vec<_>>().join(", "));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table>\n");
    let used: BTreeSet<Support> = r.chips.iter().flat_map(|c| &c.ops).map(|o| o.support).collect();
    let words =
        used.into_iter().map(|s| format!("<span class=\"{0}\">{0}</span>: {1}", s.name(), meaning(s)));
    let _ = writeln!(out, "<p class=\"soft\">{}.</p>", words.collect::<Vec<_>>().join("; "));
}

/// What a way to get to a chip means, for people.
fn meaning(s: Support) -> &'static str {
    match s {
        Support::Folded => "nothing of it is left to run",
        Support::Native => "the chip has every instruction",
        Support::Composed => "made of simpler instructions, with the same results",
        Support::Emulated => "computed in another element type, which costs conversions",
        Support::Host => "runs on the host, with its operands copied",
        Support::Unsupported => "the chip cannot",
    }
}

fn chip(out: &mut String, c: &ChipReport) {
    let _ = writeln!(out, "<h2>{}</h2>", escape(&c.chip));
    divergence(out, c);
    if !c.kernels.is_empty() {
        roofline(out, c);
        kernels(out, c);
        memory(out, &c.memory, c);
    }
    ops(out, c);
    placement(out, c);
}

fn divergence(out: &mut String, c: &ChipReport) {
    let Some(p) = &c.proof else { return };
    let _ = writeln!(
        out,
        "<h3>Proof</h3><p>{}: {} kernels compared with the reference, {} of {} elements; {} differ; the worst error is {:.3} of what is allowed.</p>",
        escape(&p.how),
        p.kernels,
        p.checked,
        p.elements,
        p.failed,
        p.worst_ratio
    );
    if let Some(d) = &p.diverges {
        let _ = writeln!(
            out,
            "<div class=\"card fails\" id=\"diverges\"><div class=\"big\">First to differ: {}</div><div>at {}</div>\
             <table><tr><th>in</th><th class=\"n\">element</th><th class=\"n\">expected</th><th class=\"n\">allowed error</th><th class=\"n\">computed</th></tr>\
             <tr><td>{}</td><td class=\"n\">{:?}</td><td class=\"n\">{}</td><td class=\"n\">{:.3e}</td><td class=\"n\">{}</td></tr></table><div>{}</div></div>",
            escape(&d.op),
            escape(&d.at),
            escape(&d.kernel),
            d.index,
            d.expected,
            d.allowed,
            d.actual,
            escape(&d.fault)
        );
    }
    if !p.quality.is_empty() {
        out.push_str("<table><tr><th>output</th><th class=\"n\">elements</th><th class=\"n\">greatest error</th><th class=\"n\">mean error</th><th class=\"n\">greatest value</th><th class=\"n\">cosine</th><th class=\"n\">same top element</th><th class=\"n\">KL divergence</th></tr>\n");
        for q in &p.quality {
            let _ = writeln!(
                out,
                "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{:.3e}</td><td class=\"n\">{:.3e}</td><td class=\"n\">{:.3e}</td><td class=\"n\">{:.8}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
                escape(&q.output),
                q.elements,
                q.max_error,
                q.mean_error,
                q.scale,
                q.cosine,
                q.top1.map_or("-".to_string(), percent),
                q.kl_mean.map_or("-".to_string(), |k| format!("{k:.2e}"))
            );
        }
        out.push_str("</table>\n");
    }
    if !p.quality_note.is_empty() {
        let _ = writeln!(out, "<p class=\"soft\">Outputs {}.</p>", escape(&p.quality_note));
    }
}

/// A place on a logarithmic axis.
fn along(x: f64, from: f64, to: f64, length: f64) -> f64 {
    ((x.max(1e-30) / from).log10() / (to / from).log10()).clamp(0.0, 1.0) * length
}

/// Operations a second by operations a byte, on logarithmic axes.
fn roofline(out: &mut String, c: &ChipReport) {
    out.push_str("<h3>Roofline</h3>\n");
    let Limits { vector_f32, matrix, bandwidth, level, source } = &c.limits;
    let roofs: Vec<(&str, f64)> = vector_f32
        .iter()
        .map(|&v| ("vector f32", v))
        .chain(
            matrix
                .iter()
                .filter(|(n, _)| c.kernels.iter().any(|k| k.unit == *n))
                .map(|(n, v)| (n.as_str(), *v)),
        )
        .collect();
    let (Some(top), Some(&bandwidth)) = (roofs.iter().map(|r| r.1).reduce(f64::max), bandwidth.as_ref())
    else {
        out.push_str("<p>The chip file lacks the figures that it needs.</p>\n");
        return;
    };
    let (width, height, left, under) = (760.0, 340.0, 70.0, 40.0);
    let (x0, x1) = (1e-2, (top / bandwidth * 100.0).max(1e3));
    let (y0, y1) = (bandwidth * x0 / 10.0, top * 2.0);
    let x = |v: f64| left + along(v, x0, x1, width);
    let y = |v: f64| height - along(v, y0, y1, height) + 10.0;
    let _ = write!(
        out,
        "<svg class=\"roofline\" viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"roofline\">\
         <rect x=\"{left}\" y=\"10\" width=\"{width}\" height=\"{height}\" fill=\"none\" stroke=\"currentColor\" stroke-opacity=\".3\"/>",
        left + width + 20.0,
        height + under + 20.0
    );
    let mut tick = x0;
    while tick <= x1 {
        let _ = write!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{tick}</text>",
            x(tick),
            height + 26.0
        );
        tick *= 10.0;
    }
    let mut tick = 10f64.powf(y0.log10().ceil());
    while tick <= y1 {
        let _ = write!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            left - 6.0,
            y(tick) + 4.0,
            count(tick)
        );
        tick *= 10.0;
    }
    let _ = write!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">operations a byte</text><text x=\"{:.1}\" y=\"26\">operations a second</text>",
        left + width / 2.0,
        height + 44.0,
        left + 8.0
    );
    for (name, roof) in &roofs {
        let ridge = roof / bandwidth;
        let _ = write!(
            out,
            "<polyline points=\"{:.1},{:.1} {:.1},{:.1} {:.1},{:.1}\" fill=\"none\" stroke=\"currentColor\" stroke-width=\"1.5\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}: {}/s</text>",
            x(x0),
            y(bandwidth * x0),
            x(ridge),
            y(*roof),
            x(x1),
            y(*roof),
            x(x1) - 6.0,
            y(*roof) - 5.0,
            escape(name),
            count(*roof)
        );
    }
    let taken = |k: &KernelReport| k.measured_us.or(k.limit_us).unwrap_or(0.0);
    let whole: f64 = c.kernels.iter().map(taken).sum();
    for k in c.kernels.iter().filter(|k| k.flops > 0.0 && k.bytes > 0.0) {
        let Some(us) = k.measured_us.or(k.limit_us).filter(|t| *t > 0.0) else { continue };
        let rate = k.flops / us * 1e6;
        let color = if k.bound == Bound::Compute { "var(--mark)" } else { "var(--warn)" };
        let _ = write!(
            out,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"{:.1}\" fill=\"{color}\" fill-opacity=\".6\"><title>{}</title></circle>",
            x(k.flops / k.bytes),
            y(rate),
            3.0 + 15.0 * (us / whole).sqrt(),
            escape(&format!("{} at {}: {}, {}/s", k.name, k.at, time(us), count(rate)))
        );
    }
    let what = match c.kernels.iter().any(|k| k.measured_us.is_some()) {
        true => "Each point is a kernel as measured",
        false => "Each point is a kernel at its limit (nothing was measured)",
    };
    let _ = writeln!(
        out,
        "</svg>\n<p class=\"soft\">{}, as large as its share of the time; blue is bound by arithmetic, amber by {} at {}/s. {}.</p>",
        what,
        escape(level),
        bytes(bandwidth),
        escape(source)
    );
}

/// The kernels that cost most or, where they were measured, lose most against their limit.
fn kernels(out: &mut String, c: &ChipReport) {
    let mut order: Vec<&KernelReport> = c.kernels.iter().collect();
    let lost = |k: &KernelReport| match (k.measured_us, k.limit_us) {
        (Some(m), Some(l)) => m - l,
        (Some(m), None) => m,
        (None, Some(l)) => l,
        _ => k.flops + k.bytes,
    };
    order.sort_by(|a, b| {
        b.verified
            .as_ref()
            .map_or(0, |v| v.outside)
            .cmp(&a.verified.as_ref().map_or(0, |v| v.outside))
            .then(lost(b).total_cmp(&lost(a)))
    });
    let measured = c.kernels.iter().any(|k| k.measured_us.is_some());
    let column = if measured { "<th class=\"n\">measured</th>" } else { "" };
    let _ = writeln!(
        out,
        "<h3>Worst kernels first</h3>\n<table class=\"kernels\"><tr><th>kernel</th><th>at</th><th>support</th><th class=\"n\">limit</th><th>bound by</th>{}<th class=\"n\">operations</th><th class=\"n\">bytes</th><th>compared</th></tr>",
        column
    );
    for k in order.iter().take(KERNELS) {
        let took = k.measured_us.map_or("-".to_string(), time);
        let took = if measured { format!("<td class=\"n\">{took}</td>") } else { String::new() };
        let verified = k.verified.as_ref().map_or("-".to_string(), |v| match (&v.error, v.outside) {
            (Some(e), _) => e.clone(),
            (None, 0) => format!("right, {:.2} of the allowed error", v.worst_ratio),
            (None, n) => format!("{n} of {} elements differ", v.checked),
        });
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td class=\"c {}\">{}</td><td class=\"n\">{}</td><td>{}</td>{}<td class=\"n\">{}</td><td class=\"n\">{}</td><td>{}</td></tr>",
            escape(&k.name),
            escape(&k.at),
            k.support.name(),
            k.support.name(),
            k.limit_us.map_or("-".to_string(), time),
            escape(&bound(k)),
            took,
            count(k.flops),
            bytes(k.bytes),
            escape(&verified)
        );
    }
    out.push_str("</table>\n");
    if order.len() > KERNELS {
        let _ = writeln!(
            out,
            "<p class=\"soft\">{} kernels in all; the JSON form has every one.</p>",
            order.len()
        );
    }
}

/// The arena over the steps of the plan.
fn memory(out: &mut String, m: &MemoryReport, c: &ChipReport) {
    let _ = writeln!(
        out,
        "<h3>Memory</h3><p>Weights {}, activations {}, inputs {}.</p>",
        bytes(m.weights as f64),
        bytes(m.activations as f64),
        bytes(m.inputs as f64)
    );
    out.push_str("<table><tr><th>level</th><th>kind</th><th class=\"n\">wanted</th><th class=\"n\">there</th><th>fits</th></tr>\n");
    let scratch = c.kernels.iter().filter_map(|k| k.scratch.as_ref()).max_by_key(|s| s.need);
    let mut row = |level: &str, kind: &str, need: u64, there: Option<u64>, fits: Option<bool>| {
        let fits = match fits {
            Some(true) => "yes",
            Some(false) if kind == "cache" => "no: read from farther away",
            Some(false) => "<span class=\"unsupported\">no</span>",
            None => "not known",
        };
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td>{fits}</td></tr>",
            escape(level),
            escape(kind),
            bytes(need as f64),
            there.map_or("not known".to_string(), |b| bytes(b as f64))
        );
    };
    if let Some(s) = scratch {
        row(&s.level, "scratchpad, largest kernel, estimate", s.need, Some(s.limit), Some(s.need <= s.limit));
    }
    m.levels.iter().for_each(|l| row(&l.level, &l.kind, l.need, l.capacity, l.fits));
    out.push_str("</table>\n");
    if m.activations == 0 || m.steps == 0 {
        return;
    }
    let (width, height) = (820.0, 240.0);
    let x = |step: usize| step.min(m.steps) as f64 / m.steps as f64 * width;
    let y = |at: u64| at as f64 / m.activations as f64 * height;
    let _ = write!(
        out,
        "<svg class=\"memory\" viewBox=\"0 0 {width} {}\" role=\"img\" aria-label=\"memory map\">\
         <rect x=\"0\" y=\"0\" width=\"{width}\" height=\"{height}\" fill=\"none\" stroke=\"currentColor\" stroke-opacity=\".3\"/>",
        height + 20.0
    );
    for (i, p) in m.map.iter().enumerate() {
        let hue = i * 47 % 360;
        let _ = write!(
            out,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"hsl({hue} 60% 55%)\" fill-opacity=\".75\"><title>{}</title></rect>",
            x(p.first),
            y(p.offset),
            (x(p.last + 1) - x(p.first)).max(1.5),
            y(p.bytes).max(1.0),
            escape(&format!("{}: {}, steps {} to {}", p.name, bytes(p.bytes as f64), p.first, p.last))
        );
    }
    let _ = writeln!(
        out,
        "<text x=\"0\" y=\"{}\">{} steps from left to right; {} of activations from top to bottom; the largest values</text></svg>",
        height + 15.0,
        m.steps,
        bytes(m.activations as f64)
    );
}

fn ops(out: &mut String, c: &ChipReport) {
    let mut rows: Vec<_> =
        c.ops.iter().filter(|o| !matches!(o.support, Support::Native | Support::Folded)).collect();
    if rows.is_empty() {
        return;
    }
    rows.sort_by_key(|o| std::cmp::Reverse(o.support));
    let hard = rows.iter().filter(|o| o.support == Support::Unsupported).count();
    let _ = writeln!(
        out,
        "<details{}><summary>{} operations that the chip does not take as they are</summary>\n<table class=\"ops\"><tr><th>operation</th><th>at</th><th>support</th><th>how, or why not</th></tr>",
        if hard > 0 { " open" } else { "" },
        rows.len()
    );
    for o in rows.iter().take(hard + OPS) {
        let how: String = o.how.iter().map(|h| format!("<div>{}</div>", escape(h))).collect();
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td class=\"c {}\">{}</td><td>{how}</td></tr>",
            escape(&o.op),
            escape(&o.at),
            o.support.name(),
            o.support.name()
        );
    }
    out.push_str("</table></details>\n");
}

fn placement(out: &mut String, c: &ChipReport) {
    if c.placement.is_empty() {
        return;
    }
    out.push_str("<h3>Placement</h3>\n<table><tr><th>operation</th><th>at</th><th>where</th><th>why</th><th class=\"n\">bytes copied</th></tr>\n");
    for p in &c.placement {
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td class=\"n\">{}</td></tr>",
            escape(&p.op),
            escape(&p.at),
            escape(&p.place),
            escape(&p.why),
            bytes(p.bytes)
        );
    }
    out.push_str("</table>\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_taken_for_markup() {
        assert_eq!(escape("<a href='x'>&\u{1}"), "&lt;a href=&#39;x&#39;&gt;&amp;\u{fffd}");
        let r = Report::new("<script>alert(1)</script>", Depth::Check, Vec::new(), Vec::new());
        let page = page(&r);
        assert!(!page.contains("<script") && page.contains("&lt;script&gt;"));
    }
}
