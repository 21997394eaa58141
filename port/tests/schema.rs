//! `docs/port-report.md` says what `port/src/report.rs` says. `UPDATE=1` writes it anew.

use std::fmt::Write;

const SOURCE: &str = include_str!("../src/report.rs");

/// The page: a table for every structure, a list for every enumeration.
fn page() -> String {
    let mut out = String::from(
        "# The JSON report of `tongtu port`\n\nWhat `tongtu port --json` prints, as `port/src/report.rs` has it. `version` is 1; fields may be added under the same version, and it\n\
         changes when one is removed or means something else. Names of variants are in snake case. An absent figure is `null`.\n",
    );
    let (mut doc, mut inside) = (String::new(), None);
    for line in SOURCE.lines() {
        let text = line.trim();
        if let Some(d) = text.strip_prefix("/// ") {
            if !doc.is_empty() {
                doc.push(' ');
            }
            doc.push_str(&d.replace("[`", "`").replace("`]", "`").replace('|', "or"));
            continue;
        }
        if text.starts_with("#[") {
            continue;
        }
        let declared = text.strip_prefix("pub struct ").or(text.strip_prefix("pub enum "));
        if let Some(name) = declared.and_then(|d| d.strip_suffix(" {")) {
            inside = Some(text.starts_with("pub struct"));
            let head = if inside == Some(true) { "| field | type | meaning |\n|---|---|---|" } else { "" };
            let _ = write!(out, "\n## {name}\n\n{doc}\n\n{head}{}", if head.is_empty() { "" } else { "\n" });
        } else if text == "}" || text.starts_with("impl ") {
            inside = None;
        } else if let (Some(true), Some((name, ty))) =
            (inside, text.strip_prefix("pub ").and_then(|t| t.split_once(": ")))
        {
            let _ = writeln!(out, "| `{name}` | `{}` | {doc} |", ty.trim_end_matches(','));
        } else if let (Some(false), Some(name)) = (inside, text.strip_suffix(',')) {
            let _ = writeln!(out, "- `{}`: {doc}", name.to_lowercase());
        }
        doc.clear();
    }
    out
}

#[test]
fn page_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/port-report.md");
    let want = page();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, &want).expect("docs/port-report.md is writable");
    }
    let have = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        have == want,
        "docs/port-report.md is stale: UPDATE=1 cargo test -p tongtu-port --test schema writes it"
    );
}
