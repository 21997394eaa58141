//! The catalogue of errors holds every code in the sources, and `docs/errors.md` is made from it. `UPDATE=1` writes it anew.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use tongtu::catalogue::{self, STAGES};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if path.is_dir() && !matches!(name.as_str(), "target" | "tests" | "fuzz") && !name.starts_with('.') {
            sources(&path, out);
        } else if name.ends_with(".rs") && name != "catalogue.rs" {
            out.push(path);
        }
    }
}

/// Codes in a text: `[X000]` or `X000` at the start of a literal.
fn codes(text: &str) -> BTreeSet<String> {
    let bytes = text.as_bytes();
    let is_code =
        |c: &[u8]| c.len() == 4 && c[0].is_ascii_uppercase() && c[1..].iter().all(u8::is_ascii_digit);
    let starts = (1..bytes.len()).filter(|&i| matches!(bytes[i - 1], b'[' | b'"'));
    let found = starts.filter_map(|i| {
        let code = bytes.get(i..i + 4).filter(|c| is_code(c))?;
        let ends = matches!(bytes.get(i + 4), Some(b']' | b'"' | b':'));
        ends.then(|| String::from_utf8_lossy(code).into_owned())
    });
    found.collect()
}

#[test]
fn every_code_is_in_the_catalogue() {
    let mut files = Vec::new();
    sources(Path::new(ROOT), &mut files);
    assert!(files.len() > 100);
    let mut used: BTreeMap<String, PathBuf> = BTreeMap::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        // What follows the tests of a file is no part of the program.
        let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        used.extend(codes(text).into_iter().map(|c| (c, file.clone())));
    }
    let known: BTreeSet<String> = catalogue::entries().iter().map(|e| e.code.to_string()).collect();
    let lacking: Vec<_> = used.iter().filter(|(c, _)| !known.contains(*c)).collect();
    assert!(lacking.is_empty(), "codes without a row in the catalogue: {lacking:?}");
    let dead: Vec<_> = known.iter().filter(|c| !used.contains_key(*c)).collect();
    assert!(dead.is_empty(), "rows of the catalogue that nothing uses: {dead:?}");
}

#[test]
fn rows_are_whole() {
    let all = catalogue::entries();
    assert!(all.windows(2).all(|w| w[0].code < w[1].code), "a code occurs twice");
    for e in all {
        assert!(!e.meaning.is_empty() && !e.fix.is_empty(), "{}", e.code);
        assert!(!e.meaning.contains('|') && !e.fix.contains('|'), "{}: a bar ends a cell", e.code);
        assert!(STAGES.iter().any(|(s, _)| e.code.starts_with(*s)), "{}: no such stage", e.code);
    }
}

#[test]
fn page_is_up_to_date() {
    let path = Path::new(ROOT).join("docs/errors.md");
    let want = catalogue::page();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &want).expect("docs/errors.md is writable");
    }
    let have = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(have == want, "docs/errors.md is stale: UPDATE=1 cargo test -p tongtu --test errors writes it");
}
