//! Reports, and the list of what a chip is expected not to pass.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use serde::Serialize;
use serde_json::json;

use crate::run::conforms;
use crate::{Outcome, Program, Verdict};

/// What a back end claims, and is expected not to pass, with reasons: a line `claims <tab> EXTENSIONS`, and lines
/// `PROGRAM or CASE <tab> VERDICT <tab> REASON`.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    claims: Vec<String>,
    entries: BTreeMap<String, (Verdict, String)>,
}

/// A program's name: a case's without its last part.
fn program(case: &str) -> &str {
    case.rsplit_once('/').map_or(case, |(p, _)| p)
}

impl Expected {
    /// The committed list of a chip, or of its back end for all chips; empty if there is none.
    pub fn of_chip(chip: &str, backend: &str) -> Expected {
        Expected::parse(match (chip, backend) {
            ("ascend-910b", _) => include_str!("../expected/ascend-910b.tsv"),
            ("ascend-950", _) => include_str!("../expected/ascend-950.tsv"),
            (_, "cpu") => include_str!("../expected/cpu.tsv"),
            _ => "",
        })
    }

    /// Reads a list; lines of another form are left out, and then are missed.
    pub fn parse(text: &str) -> Expected {
        let line = |l: &str| {
            let mut parts = l.splitn(3, '\t');
            let (name, verdict, reason) = (parts.next()?, parts.next()?, parts.next()?);
            let verdict = match verdict {
                "fail" => Verdict::Fail,
                "unsupported" => Verdict::Unsupported,
                _ => return None,
            };
            Some((name.to_string(), (verdict, reason.to_string())))
        };
        let claims = text.lines().filter_map(|l| l.strip_prefix("claims\t")).flat_map(str::split_whitespace);
        Expected {
            claims: claims.map(str::to_string).collect(),
            entries: text.lines().filter(|l| !l.starts_with('#')).filter_map(line).collect(),
        }
    }

    /// The list that these outcomes would need: programs where all cases go the same way, else cases.
    pub fn of(outcomes: &[Outcome]) -> String {
        Expected::list(outcomes, &conforms(outcomes))
    }

    fn list(outcomes: &[Outcome], claims: &BTreeSet<String>) -> String {
        let mut programs: BTreeMap<&str, Vec<&Outcome>> = BTreeMap::new();
        outcomes.iter().for_each(|o| programs.entry(program(&o.case)).or_default().push(o));
        let claims: Vec<&str> = claims.iter().map(String::as_str).collect();
        let mut out = format!(
            "# What the back end claims, and what it is expected not to pass: program or case, verdict, reason.\nclaims\t{}\n",
            claims.join(" ")
        );
        for (name, cases) in programs {
            let first = cases[0];
            let mut line = |name: &str, o: &Outcome| {
                let _ =
                    writeln!(out, "{name}\t{}\t{}", o.verdict.name(), o.detail.replace(['\t', '\n'], " "));
            };
            let same = |o: &&Outcome| o.verdict == first.verdict && o.detail == first.detail;
            if cases.iter().all(same) && first.verdict != Verdict::Pass {
                line(name, first);
            } else {
                let wrong =
                    cases.iter().filter(|o| matches!(o.verdict, Verdict::Fail | Verdict::Unsupported));
                wrong.for_each(|o| line(&o.case, o));
            }
        }
        out
    }

    /// The list after some of the kit was run: what it says of the other programs stays, and nothing more is claimed. Without a list they
    /// count as failures, for they have not been run.
    pub fn updated(old: Option<&str>, outcomes: &[Outcome], kit: &[Program]) -> String {
        let old = old.map(Expected::parse);
        let mut ran: BTreeMap<&str, &Outcome> = outcomes.iter().map(|o| (o.case.as_str(), o)).collect();
        let mut all = Vec::new();
        for p in kit {
            let extensions: Vec<String> =
                p.kernel.extensions().iter().map(|e| e.name().to_string()).collect();
            for c in &p.checks {
                if let Some(o) = ran.remove(c.case.as_str()) {
                    all.push(o.clone());
                    continue;
                }
                let (verdict, detail) = match &old {
                    None => (Verdict::Fail, "not run"),
                    Some(list) => list.entry(&c.case).map_or((Verdict::Pass, ""), |e| (e.1.0, &e.1.1)),
                };
                let (case, detail, extensions) = (c.case.clone(), detail.to_string(), extensions.clone());
                all.push(Outcome { case, verdict, detail, extensions });
            }
        }
        let mut claims = conforms(&all);
        if outcomes.len() < all.len() {
            claims.retain(|c| old.as_ref().is_some_and(|o| o.claims.contains(c)));
        }
        Expected::list(&all, &claims)
    }

    fn entry(&self, case: &str) -> Option<(&String, &(Verdict, String))> {
        self.entries.get_key_value(case).or_else(|| self.entries.get_key_value(program(case)))
    }

    fn of_case(&self, case: &str) -> Option<(&str, Verdict)> {
        self.entry(case).map(|(k, v)| (k.as_str(), v.0))
    }
}

/// The verdicts of a chip, held against its list.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The chip.
    pub chip: String,
    /// The version of the instruction set.
    pub version: String,
    /// Every case.
    pub cases: Vec<Outcome>,
    /// What is not as the list says: a case that should pass, one that should not, an entry without a case.
    pub unexpected: Vec<String>,
}

impl Report {
    /// A report. `whole` says that the whole kit ran, so that entries without a case are faults of the list.
    pub fn new(chip: &str, cases: Vec<Outcome>, expected: &Expected, whole: bool) -> Report {
        let mut unexpected = Vec::new();
        let mut used = BTreeSet::new();
        for o in &cases {
            let entry = expected.of_case(&o.case);
            used.extend(entry.map(|e| e.0));
            let wanted = entry.map_or(Verdict::Pass, |e| e.1);
            if o.verdict == wanted || o.verdict == Verdict::Compiled && wanted == Verdict::Pass {
                continue;
            }
            unexpected.push(match entry {
                Some(_) => format!("{}: {}, the list says {}", o.case, o.verdict.name(), wanted.name()),
                None => format!("{}: {}: {}", o.case, o.verdict.name(), o.detail),
            });
        }
        if whole {
            let stale = expected.entries.keys().filter(|k| !used.contains(k.as_str()));
            unexpected.extend(stale.map(|k| format!("{k}: on the list, but there is no such case")));
            let whole = conforms(&cases);
            let broken = expected.claims.iter().filter(|c| !whole.contains(*c));
            unexpected.extend(broken.map(|c| format!("{c}: claimed, but not all of it passes")));
        }
        Report {
            chip: chip.to_string(),
            version: tongtu_tile::Version::CURRENT.to_string(),
            cases,
            unexpected,
        }
    }

    /// Number of cases with a verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.cases.iter().filter(|o| o.verdict == verdict).count()
    }

    /// One line for each instruction that has non-passes, and totals.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let mut rows: BTreeMap<(&str, Verdict, &str), usize> = BTreeMap::new();
        for o in self.cases.iter().filter(|o| !matches!(o.verdict, Verdict::Pass | Verdict::Compiled)) {
            let name = o.case.split('/').next().unwrap_or_default();
            let why = if o.verdict == Verdict::Fail { "" } else { o.detail.as_str() };
            *rows.entry((name, o.verdict, why)).or_insert(0) += 1;
        }
        for ((name, verdict, why), n) in rows {
            let _ = writeln!(out, "{n:6} {:11} {name}  {why}", verdict.name());
        }
        let _ = writeln!(
            out,
            "{}, instruction set {}: {} cases, {} pass, {} fail, {} unsupported, {} compiled only",
            self.chip,
            self.version,
            self.cases.len(),
            self.count(Verdict::Pass),
            self.count(Verdict::Fail),
            self.count(Verdict::Unsupported),
            self.count(Verdict::Compiled)
        );
        let whole: Vec<String> = conforms(&self.cases).into_iter().collect();
        let _ = writeln!(
            out,
            "conforms to: {}",
            if whole.is_empty() { "nothing".to_string() } else { whole.join(", ") }
        );
        for u in &self.unexpected {
            let _ = writeln!(out, "UNEXPECTED  {u}");
        }
        out
    }

    /// The report for programs.
    pub fn json(&self) -> serde_json::Value {
        json!({
            "chip": self.chip,
            "version": self.version,
            "counts": {
                "pass": self.count(Verdict::Pass),
                "fail": self.count(Verdict::Fail),
                "unsupported": self.count(Verdict::Unsupported),
                "compiled": self.count(Verdict::Compiled),
            },
            "conforms": conforms(&self.cases),
            "unexpected": self.unexpected,
            "cases": self.cases,
        })
    }

    /// One page that needs nothing else: a matrix of instructions and types, then every case that does not pass.
    pub fn html(&self) -> String {
        let mut cells: BTreeMap<&str, BTreeMap<&str, Vec<&Outcome>>> = BTreeMap::new();
        for o in &self.cases {
            let mut parts = o.case.splitn(3, '/');
            let (row, column) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            cells.entry(row).or_default().entry(column).or_default().push(o);
        }
        let mut out = String::from(HEAD);
        let _ = write!(
            out,
            "<h1>Conformance of {}</h1><pre>{}</pre><table>",
            escaped(&self.chip),
            escaped(&self.text())
        );
        for (row, columns) in cells {
            let _ = write!(out, "<tr><th>{}</th><td>", escaped(row));
            for (column, cases) in columns {
                let worst =
                    cases.iter().map(|o| o.verdict).find(|v| *v != Verdict::Pass).unwrap_or(Verdict::Pass);
                let passed = cases.iter().filter(|o| o.verdict == Verdict::Pass).count();
                let title = cases.iter().find(|o| o.verdict == worst).map_or("", |o| o.detail.as_str());
                let _ = write!(
                    out,
                    "<span class=\"{}\" title=\"{passed} of {} {}\">{}</span> ",
                    worst.name(),
                    cases.len(),
                    escaped(title),
                    escaped(column)
                );
            }
            out.push_str("</td></tr>\n");
        }
        out.push_str("</table><h2>Cases that do not pass</h2><table>");
        for o in self.cases.iter().filter(|o| !matches!(o.verdict, Verdict::Pass | Verdict::Compiled)) {
            let (case, verdict, detail) = (escaped(&o.case), o.verdict.name(), escaped(&o.detail));
            let _ = writeln!(
                out,
                "<tr><th>{case}</th><td><span class=\"{verdict}\">{verdict}</span> {detail}</td></tr>"
            );
        }
        out.push_str("</table></body></html>\n");
        out
    }
}

const HEAD: &str =
    "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>Conformance</title><style>
body{font:14px system-ui,sans-serif;margin:2em;max-width:80em}table{border-collapse:collapse}
th{text-align:left;vertical-align:top;padding:.2em 1em .2em 0;white-space:nowrap;font-weight:600}
td span{display:inline-block;padding:0 .4em;margin:.1em 0;border-radius:.3em;background:#dfd}
td span.fail{background:#f99}td span.unsupported{background:#ddd}td span.compiled{background:#def}
pre{background:#f6f6f6;padding:1em;overflow:auto}</style></head><body>";

fn escaped(s: &str) -> String {
    s.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
