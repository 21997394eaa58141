//! The page that says which chip has which instruction, from what the back ends answer.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use tongtu_ascend::AscendCompiler;
use tongtu_chip::{Chip, Kind};
use tongtu_conformance::programs;
use tongtu_cpu::CpuCompiler;
use tongtu_plan::backend::{Compiler, Support};
use tongtu_tensor::DType;
use tongtu_tile::op::rows;
use tongtu_tile::row::Extension;
use tongtu_tile::{Block, Kernel, Op, Ty};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/isa/chips.md");

/// Uses of instructions: operation, operand types, result types.
type Uses = BTreeMap<&'static str, Vec<(Op, Vec<Ty>, Vec<Ty>)>>;

fn collect(k: &Kernel, block: &Block, seen: &mut BTreeSet<String>, out: &mut Uses) {
    for i in &block.insts {
        let types = |vals: &[tongtu_tile::Val]| vals.iter().map(|v| k.ty(*v).clone()).collect::<Vec<Ty>>();
        let (operands, results) = (types(&i.operands), types(&i.results));
        let kinds: Vec<DType> = operands.iter().chain(&results).map(Ty::dtype).collect();
        if seen.insert(format!(
            "{} {:?} {kinds:?}",
            i.op.name(),
            i.op.attributes().iter().find(|a| a.0 == "combiner")
        )) {
            out.entry(i.op.name()).or_default().push((i.op.clone(), operands, results));
        }
        i.blocks.iter().for_each(|b| collect(k, b, seen, out));
    }
}

/// Types in few words.
fn types(of: &BTreeSet<DType>) -> String {
    let mut names: Vec<String> = Vec::new();
    for &e in &Extension::ALL[1..] {
        let all: Vec<DType> = DType::ALL.iter().copied().filter(|d| Extension::of(*d) == e).collect();
        if all.len() > 1 && all.iter().all(|d| of.contains(d)) {
            names.push(format!("*{}*", e.name()));
        } else {
            names.extend(all.iter().filter(|d| of.contains(*d)).map(ToString::to_string));
        }
    }
    let base = of.iter().filter(|d| Extension::of(**d) == Extension::Base).map(ToString::to_string);
    base.chain(names).collect::<Vec<_>>().join(" ")
}

fn cell(uses: &[(Op, Vec<Ty>, Vec<Ty>)], compiler: &dyn Compiler, chip: &Chip) -> String {
    let mut by: BTreeMap<&str, BTreeSet<DType>> = BTreeMap::new();
    for (op, operands, results) in uses {
        let d =
            operands.iter().chain(results).map(Ty::dtype).find(|d| *d != DType::Bool).unwrap_or(DType::Bool);
        let answer = match compiler.supports(op, operands, results, chip) {
            Support::Native => "native",
            Support::Emulated(_) => "rewritten",
            Support::No(_) => "no",
        };
        by.entry(answer).or_default().insert(d);
    }
    // A type is as its worst use.
    let no = by.get("no").cloned().unwrap_or_default();
    let rewritten: BTreeSet<DType> =
        by.get("rewritten").into_iter().flatten().filter(|d| !no.contains(d)).copied().collect();
    let native: BTreeSet<DType> = by
        .get("native")
        .into_iter()
        .flatten()
        .filter(|d| !no.contains(d) && !rewritten.contains(d))
        .copied()
        .collect();
    let mut parts = Vec::new();
    match (native.is_empty(), rewritten.is_empty()) {
        (true, true) => return "no".into(),
        (false, true) => parts.push("native".to_string()),
        (true, false) => parts.push("rewritten".to_string()),
        (false, false) if native.len() < rewritten.len() => {
            parts.push(format!("rewritten; native: {}", types(&native)))
        }
        (false, false) => parts.push(format!("native; rewritten: {}", types(&rewritten))),
    }
    if !no.is_empty() {
        parts.push(format!("not: {}", types(&no)));
    }
    parts.join("; ")
}

/// Set `TONGTU_UPDATE=1` to write the page.
#[test]
fn the_matrix_is_current() {
    let (mut uses, mut seen) = (Uses::new(), BTreeSet::new());
    programs().iter().for_each(|p| collect(&p.kernel, &p.kernel.body, &mut seen, &mut uses));
    let chips: Vec<Chip> = ["x86-64-v3", "x86-64-amx", "ascend-910b", "ascend-950"]
        .iter()
        .map(|n| Chip::builtin(n).unwrap_or_else(|e| panic!("{e}")))
        .collect();
    let mut out = String::from(
        "# Instructions by chip\n\nGenerated from what the back ends answer about every use of an instruction in the conformance kit. *Rewritten* is what a\n\
         shared rule turns into other instructions first; a type counts by its worst use, and the names in italics are the types of an\n\
         [extension](extensions.md). What the answers are worth, the conformance kit finds out.\n\n",
    );
    let names: Vec<&str> = chips.iter().map(|c| c.name.as_str()).collect();
    let _ = writeln!(out, "| instruction | {} |\n| --- |{}", names.join(" | "), " --- |".repeat(chips.len()));
    for row in rows() {
        let uses = uses.get(row.name).unwrap_or_else(|| panic!("the kit has no {}", row.name));
        let cells: Vec<String> = chips
            .iter()
            .map(|c| match c.kind {
                Kind::Cpu => cell(uses, &CpuCompiler::default(), c),
                _ => cell(uses, &AscendCompiler, c),
            })
            .collect();
        let _ = writeln!(out, "| `{}` | {} |", row.name, cells.join(" | "));
    }
    if std::env::var_os("TONGTU_UPDATE").is_some() {
        std::fs::write(PAGE, &out).unwrap();
    }
    let have = std::fs::read_to_string(PAGE).unwrap_or_default();
    assert!(have == out, "docs/isa/chips.md is stale: run this test with TONGTU_UPDATE=1");
}
