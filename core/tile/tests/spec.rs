//! The specification: what the table says is on its pages, and what its pages say holds.

#[path = "common/examples.rs"]
mod examples;
#[path = "common/grow.rs"]
mod grow;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;

use examples::{example, examples};
use grow::grow;
use proptest::prelude::*;
use tongtu_tensor::DType;
use tongtu_tile::interp::{BufferData, Options, run};
use tongtu_tile::op::{EXAMPLE, TABLE, rows};
use tongtu_tile::row::{Extension, OpRow, PROFILES};
use tongtu_tile::{Class, Module, parse_module, verify};

const PAGES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/isa");

/// Set `TONGTU_UPDATE=1` to write the page.
fn current(name: &str, want: &str) {
    let path = format!("{PAGES}/{name}");
    if std::env::var_os("TONGTU_UPDATE").is_some() {
        std::fs::write(&path, want).unwrap();
    }
    let have = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(have == want, "docs/isa/{name} is stale: run this test with TONGTU_UPDATE=1");
}

fn page(name: &str) -> String {
    std::fs::read_to_string(format!("{PAGES}/{name}")).unwrap()
}

fn class(row: &OpRow) -> String {
    match row.class {
        Class::Exact => "exact".into(),
        c => format!("{c} for floats, else exact"),
    }
}

fn entry(out: &mut String, row: &OpRow) {
    let or = |s: String| if s.is_empty() { "none".to_string() } else { s };
    let operands = or(row.operands.join(", "));
    let result = or(row.result.to_string());
    let _ = writeln!(out, "## `{}`\n\n{}\n", row.name, row.doc.trim());
    let _ = writeln!(out, "| number | extension | since | operands | result | numeric class |");
    let _ = writeln!(out, "| --- | --- | --- | --- | --- | --- |");
    let (extension, class) = (row.extension.name(), class(row));
    let _ =
        writeln!(out, "| {} | {extension} | {} | {operands} | {result} | {class} |\n", row.code, row.since);
    let _ = writeln!(out, "Types: {}\n", row.rule);
    for a in row.attributes {
        let _ = writeln!(out, "- `{}` ({}): {}", a.name, a.kind, a.doc);
    }
    if !row.attributes.is_empty() {
        out.push('\n');
    }
    let lines: Vec<&str> = row.example.lines().map(|l| l.strip_prefix("  ").unwrap_or(l)).collect();
    let _ = writeln!(out, "```text\n{}\n```\n", lines.join("\n"));
}

#[test]
fn the_instruction_pages_are_current() {
    let mut out = String::from(
        "# Instructions\n\nGenerated from the instruction table in `core/tile`. Elementwise arithmetic is on [a page of its own](scalar.md).\n\
         The examples stand in this kernel, in place of `…`:\n\n",
    );
    let _ = writeln!(out, "```text\n{EXAMPLE}```\n");
    TABLE.iter().for_each(|row| entry(&mut out, row));
    current("instructions.md", &format!("{}\n", out.trim_end()));

    let mut out = String::from(
        "# Scalar instructions\n\nGenerated from the scalar table in `core/tensor` and the numbers in `core/tile`. They act elementwise on \
         tiles of equal shape and element type. The numeric class is that of floating-point operands; integers and bool are exact. The \
         examples stand in the kernel that the [instruction page](instructions.md) begins with.\n\n\
         | number | name | types | result | class | meaning | example |\n| --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for row in rows().iter().filter(|r| !TABLE.iter().any(|t| t.code == r.code)) {
        let doc = row.doc.replace('|', "\\|");
        let OpRow { code, name, rule, result, class, example, .. } = row;
        let _ = writeln!(out, "| {code} | `{name}` | {rule} | {result} | {class} | {doc} | `{example}` |");
    }
    current("scalar.md", &out);
}

/// What the page on adding an instruction shows is what the code says.
#[test]
fn the_page_on_adding_shows_the_code() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let read = |path: &str| std::fs::read_to_string(format!("{root}/{path}")).unwrap();
    let code = read("core/tile/src/op.rs") + &read("conformance/tile/src/structure.rs");
    let text = read("docs/add-an-instruction.md");
    let mut lines = 0;
    for block in text.split("```rust,ignore\n").skip(1).filter_map(|t| t.split("```").next()) {
        for line in block.lines() {
            let shown = line.split('…').next().unwrap().trim();
            assert!(code.contains(shown), "{line}");
            lines += 1;
        }
    }
    assert!(lines >= 7);
}

#[test]
fn the_extension_page_is_current() {
    let mut out = String::from(EXTENSIONS);
    out.push_str("\n## Extensions\n\n| name | state | brings | instructions | element types |\n| --- | --- | --- | --- | --- |\n");
    for e in Extension::ALL {
        let ops: Vec<String> =
            rows().iter().filter(|r| r.extension == *e).map(|r| format!("`{}`", r.name)).collect();
        let types: Vec<String> =
            DType::ALL.iter().filter(|d| Extension::of(**d) == *e).map(|d| format!("`{d}`")).collect();
        let ops = if *e == Extension::Base { "all others".to_string() } else { ops.join(", ") };
        let _ = writeln!(
            out,
            "| `{}` | {} | {} | {ops} | {} |",
            e.name(),
            e.state().name(),
            e.doc(),
            types.join(", ")
        );
    }
    out.push_str("\n## Profiles\n\n| name | extensions, beside the base set | for |\n| --- | --- | --- |\n");
    for p in PROFILES {
        let list: Vec<String> = p.extensions.iter().map(|e| format!("`{}`", e.name())).collect();
        let _ = writeln!(out, "| `{}` | {} | {} |", p.name, list.join(", "), p.doc);
    }
    current("extensions.md", &out);
}

const EXTENSIONS: &str = "# Base set, extensions, profiles

Generated from the tables in `core/tile`.

A chip has the whole base set. An extension it has as a whole or not at all. An instruction belongs to the extension its row names,
and besides to those of the element types of its operands and results: a `mma` of f64 needs `mma` and `f64`. What a chip has
*natively* is its own affair: the compiler rewrites instructions a chip lacks into others (a logarithm into a polynomial), and what
the chip then runs counts. A profile is a set of extensions under a dated name; it never changes.

An extension, like the set as a whole, is *draft* (it may change), then *frozen* (it changes only for a fault that ratification
finds), then *ratified* (it never changes). Nothing is frozen before two unrelated chips pass its part of the conformance kit.
";

#[test]
fn numbers_and_names_are_given_once() {
    let (mut codes, mut names) = (BTreeSet::new(), BTreeSet::new());
    for row in rows() {
        assert!(codes.insert(row.code), "{} has the number of another", row.name);
        assert!(names.insert(row.name), "{} is there twice", row.name);
        assert!(row.doc.ends_with('.') && row.rule.ends_with('.'), "{}", row.name);
    }
}

/// Every example reads, verifies, holds its instruction, round-trips and runs without a finding.
#[test]
fn examples_run() {
    for row in rows() {
        let text = example(&row.example);
        let module = parse_module(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        let k = &module.kernels[0];
        verify(k).unwrap_or_else(|e| panic!("{}\n{text}", e[0]));
        let inst = k.body.insts.iter().find(|i| i.op.name() == row.name && i.op.code() == row.code);
        assert!(
            inst.is_some_and(|i| i.op.extension() == row.extension && i.op.since() == row.since),
            "{text}"
        );
        let x = BufferData::from_f64(DType::F32, &[0.5, -0.25, 0.75, 1.0]);
        let t = BufferData { dtype: DType::I32, codes: vec![0; 4] };
        run(k, [1, 1, 1], &mut [x, t], &[4i64.into()], &Options::default())
            .unwrap_or_else(|e| panic!("{e}\n{text}"));
    }
}

/// Programs on the pages are programs.
#[test]
fn programs_on_the_pages_are_kernels() {
    let mut programs = 0;
    for file in std::fs::read_dir(PAGES).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        for block in text.split("```text\n").skip(1).filter_map(|t| t.split("```").next()) {
            if block.starts_with("tile 0.1") && !block.contains('…') {
                let module = parse_module(block).unwrap_or_else(|e| panic!("{e}\n{block}"));
                module.kernels.iter().for_each(|k| verify(k).unwrap_or_else(|e| panic!("{}", e[0])));
                programs += 1;
            }
        }
    }
    assert!(programs >= 2, "{programs}");
}

/// The numbers on the page of the binary form are those of the code: a module that uses a name has its number.
#[test]
fn the_binary_page_has_every_number() {
    let text = page("binary.md");
    for d in DType::ALL {
        let module = parse_module(&format!("tile 0.1\nkernel @k(%a \"a\": {d}) {{\n}}\n")).unwrap();
        let bytes = tongtu_tile::to_bytes(&module);
        // Before the body: no parameters, instructions, results.
        let code = bytes[bytes.len() - 4];
        assert!(text.contains(&format!("| {code} | `{d}` |")), "{d} is {code}");
    }
}

/// Every link from a page to a page leads somewhere, and every page of the section is in the summary.
#[test]
fn links_lead_somewhere() {
    let root = format!("{PAGES}/..");
    let mut pages = vec![];
    for dir in [PAGES.to_string(), root.clone(), format!("{root}/guides")] {
        for file in std::fs::read_dir(&dir).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|e| e == "md") {
                pages.push((dir.clone(), path));
            }
        }
    }
    let heading = |line: &str| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        title
            .chars()
            .filter_map(|c| match c {
                ' ' => Some('-'),
                c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
                _ => None,
            })
            .collect::<String>()
    };
    for (dir, path) in &pages {
        let text = std::fs::read_to_string(path).unwrap();
        for target in text.split("](").skip(1).filter_map(|t| t.split(')').next()) {
            if target.is_empty() || target.contains("://") || target.contains(' ') {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let there = if file.is_empty() { path.clone() } else { format!("{dir}/{file}").into() };
            assert!(there.exists(), "{}: link to {target}", path.display());
            if !anchor.is_empty() {
                let page = std::fs::read_to_string(&there).unwrap();
                let found = page.lines().any(|l| l.starts_with('#') && heading(l) == anchor);
                assert!(found, "{}: no heading for {target}", path.display());
            }
        }
    }
    let summary = std::fs::read_to_string(format!("{root}/SUMMARY.md")).unwrap();
    for file in std::fs::read_dir(PAGES).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        assert!(summary.contains(&format!("(isa/{name})")), "isa/{name} is not in the summary");
    }
}

// The grammar of the text form, as its page has it, against the parser.

/// A right-hand side.
enum Rule {
    Word(String),
    Name(String),
    All(Vec<Rule>),
    Any(Vec<Rule>),
    Maybe(Box<Rule>),
    Many(Box<Rule>),
}

/// Reads the grammar: `name = … ;` with `|`, `[…]`, `{…}`, `(…)` and words in quotes.
fn grammar(text: &str) -> HashMap<String, Rule> {
    let spaced = text.replace('\n', " ");
    let mut tokens = Vec::new();
    let mut rest = spaced.trim_start();
    while let Some(c) = rest.chars().next() {
        let end = match c {
            '"' => 2 + rest[1..].find('"').unwrap(),
            c if c.is_alphabetic() => rest.find(|c: char| !c.is_alphanumeric() && c != '-').unwrap(),
            _ => 1,
        };
        tokens.push(rest[..end].to_string());
        rest = rest[end..].trim_start();
    }
    fn any(t: &[String], at: &mut usize) -> Rule {
        let mut all = vec![all_of(t, at)];
        while t[*at] == "|" {
            *at += 1;
            all.push(all_of(t, at));
        }
        if all.len() == 1 { all.remove(0) } else { Rule::Any(all) }
    }
    fn all_of(t: &[String], at: &mut usize) -> Rule {
        let mut all = Vec::new();
        loop {
            let token = t[*at].as_str();
            let rule = match token {
                "[" | "{" | "(" => {
                    *at += 1;
                    let inner = any(t, at);
                    match token {
                        "[" => Rule::Maybe(Box::new(inner)),
                        "{" => Rule::Many(Box::new(inner)),
                        _ => inner,
                    }
                }
                quoted if quoted.starts_with('"') => Rule::Word(quoted.trim_matches('"').to_string()),
                name if name.starts_with(char::is_alphabetic) => Rule::Name(name.to_string()),
                _ => return Rule::All(all),
            };
            *at += 1;
            all.push(rule);
        }
    }
    let mut rules = HashMap::new();
    let mut at = 0;
    while at < tokens.len() {
        let name = tokens[at].clone();
        assert_eq!(tokens[at + 1], "=", "after {name}");
        at += 2;
        let rule = any(&tokens, &mut at);
        assert_eq!(tokens[at], ";", "at the end of {name}");
        at += 1;
        rules.insert(name, rule);
    }
    rules
}

/// Cuts a program into tokens; the page says how.
fn tokens(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    for line in text.lines() {
        let mut rest = line.trim();
        while !rest.is_empty() && !rest.starts_with("//") {
            let word = |s: &str| s.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(s.len());
            let b = rest.as_bytes();
            let end = match b[0] {
                b'%' => 1 + word(&rest[1..]),
                b'"' => {
                    let mut i = 1;
                    while i < b.len() && b[i] != b'"' {
                        i += if b[i] == b'\\' { 2 } else { 1 };
                    }
                    (i + 1).min(b.len())
                }
                b'-' | b'0'..=b'9' if rest[1..].starts_with("inf") || rest[1..].starts_with("nan") => 4,
                b'-' | b'0'..=b'9' => {
                    let mut i = 1;
                    while i < b.len()
                        && (b[i].is_ascii_digit()
                            || b[i] == b'.'
                            || b[i] == b'e'
                            || matches!(b[i], b'-' | b'+') && b[i - 1] == b'e')
                    {
                        i += 1;
                    }
                    i
                }
                c if c.is_ascii_alphabetic() || c == b'_' => word(rest),
                _ => rest.chars().next().unwrap().len_utf8(),
            };
            out.push(rest[..end].to_string());
            rest = rest[end..].trim_start();
        }
    }
    out
}

struct Recogniser<'a> {
    rules: &'a HashMap<String, Rule>,
    tokens: &'a [String],
    known: BTreeMap<(&'a str, usize), BTreeSet<usize>>,
}

impl<'a> Recogniser<'a> {
    fn terminal(&self, name: &str, at: usize) -> Option<bool> {
        let first = self.tokens.get(at).and_then(|t| t.chars().next()).unwrap_or('\0');
        let second = self.tokens.get(at).and_then(|t| t.chars().nth(1)).unwrap_or('\0');
        let token = self.tokens.get(at).map_or("", String::as_str);
        let special = ["inf", "nan"].contains(&token);
        let word = (first.is_ascii_alphabetic() || first == '_') && !special;
        Some(match name {
            "word" => word,
            "name" => word && !["yield", "mask", "do"].contains(&token),
            "element" => word && !["buffer", "view", "read", "write", "readwrite"].contains(&token),
            "size" => token.bytes().all(|b| b.is_ascii_digit()) && !token.is_empty(),
            "value" => first == '%' && second != '\0',
            "string" => first == '"',
            "number" => special || first.is_ascii_digit() || first == '-',
            "integer" => (first.is_ascii_digit() || first == '-') && !token.contains(['.', 'e', 'i', 'n']),
            "version" => token.split('.').filter(|n| n.bytes().all(|b| b.is_ascii_digit())).count() == 2,
            _ => return None,
        })
    }
    /// Where a rule may end that begins at `at`.
    fn ends(&mut self, rule: &'a Rule, at: usize) -> BTreeSet<usize> {
        match rule {
            Rule::Word(w) if self.tokens.get(at) == Some(w) => BTreeSet::from([at + 1]),
            Rule::Word(_) => BTreeSet::new(),
            Rule::Name(name) => match self.terminal(name, at) {
                Some(true) => BTreeSet::from([at + 1]),
                Some(false) => BTreeSet::new(),
                None => {
                    if let Some(known) = self.known.get(&(name.as_str(), at)) {
                        return known.clone();
                    }
                    let rules = self.rules;
                    let inner = rules.get(name).unwrap_or_else(|| panic!("the grammar lacks {name}"));
                    let ends = self.ends(inner, at);
                    self.known.insert((name, at), ends.clone());
                    ends
                }
            },
            Rule::All(all) => all.iter().fold(BTreeSet::from([at]), |from, rule| {
                from.iter().flat_map(|&at| self.ends(rule, at)).collect()
            }),
            Rule::Any(any) => any.iter().flat_map(|rule| self.ends(rule, at)).collect(),
            Rule::Maybe(rule) => {
                let mut ends = self.ends(rule, at);
                ends.insert(at);
                ends
            }
            Rule::Many(rule) => {
                let (mut ends, mut new) = (BTreeSet::from([at]), vec![at]);
                while let Some(at) = new.pop() {
                    for end in self.ends(rule, at) {
                        if ends.insert(end) {
                            new.push(end);
                        }
                    }
                }
                ends
            }
        }
    }
}

fn recognised(rules: &HashMap<String, Rule>, tokens: &[String]) -> bool {
    let mut r = Recogniser { rules, tokens, known: BTreeMap::new() };
    r.ends(&rules["module"], 0).contains(&tokens.len())
}

fn page_grammar() -> HashMap<String, Rule> {
    let text = page("text.md");
    grammar(text.split("```ebnf\n").nth(1).and_then(|t| t.split("```").next()).expect("a grammar"))
}

#[test]
fn the_grammar_takes_what_is_printed() {
    let rules = page_grammar();
    let examples = examples();
    for k in &examples.kernels {
        let text = Module { kernels: vec![k.clone()] }.to_string();
        assert!(recognised(&rules, &tokens(&text)), "{text}");
    }
    let choices: Vec<(u8, u8, u8)> = (0..60).map(|i| (i, i / 3, i / 7)).collect();
    let text = Module { kernels: vec![grow(&choices), grow(&choices[..20])] }.to_string();
    assert!(recognised(&rules, &tokens(&text)));
    assert!(!recognised(&rules, &tokens(&text.replacen("yield", "yield yield", 1))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// What the parser takes, the grammar takes; what the grammar takes fails in the parser only for its meaning.
    #[test]
    fn grammar_and_parser_agree(
        which in any::<prop::sample::Index>(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0u8..3, any::<prop::sample::Index>()), 1..3),
    ) {
        let rules = page_grammar();
        let rows = rows();
        let mut list = tokens(&example(&which.get(&rows).example));
        for (at, what, from) in edits {
            let (at, from) = (at.index(list.len()), from.index(list.len()));
            match what {
                0 => drop(list.remove(at)),
                1 => list.insert(at, list[from].clone()),
                _ => list.swap(at, from),
            }
        }
        let text = list.join(" ");
        // Cutting again: edits may join nothing, for tokens stand apart.
        let takes = recognised(&rules, &list);
        match parse_module(&text) {
            Ok(_) => prop_assert!(takes, "the parser takes, the grammar does not: {}", text),
            Err(e) => prop_assert!(!takes || !e.to_string().contains(" is wanted, "), "the grammar takes: {}\n{}", e, text),
        }
    }
}
