//! `docs/ops.md` is what the tables say. `UPDATE=1` writes it anew.

use std::fmt::Write;

use tongtu_graph::op::{Contract, TABLE};
use tongtu_tensor::Combiner;
use tongtu_tensor::scalar::{Binary, Compare, NumericClass, Unary};

fn class(c: NumericClass) -> String {
    match c {
        NumericClass::Exact => "exact".into(),
        NumericClass::CorrectlyRounded => "correctly rounded".into(),
        NumericClass::Ulp(n) => format!("≤ {n} ulp"),
    }
}

fn page() -> String {
    let mut out = String::from(
        "# Operations of the tensor graph\n\n\
         This page is generated from the operation table (`core/graph/src/op.rs`) and the scalar table \
         (`core/tensor/src/scalar.rs`).\n\n\
         The contract says how exactly an implementation must compute: *exact* results have the same bits \
         everywhere; *scalar* ones follow the class of the scalar operation; *re-associable* ones may add their terms \
         in any order in the accumulator type; *definition* follows from the operations inside.\n\n\
         ## Operations on tensors\n",
    );
    for row in TABLE {
        let contract = match row.contract {
            Contract::Exact => "exact",
            Contract::Scalar => "scalar",
            Contract::Reassociable => "re-associable",
            Contract::Definition => "definition",
        };
        let _ = writeln!(out, "\n### `{}`\n", row.name);
        let doc: Vec<&str> = row.doc.lines().map(str::trim).collect();
        let _ = writeln!(out, "{}\n", doc.join(" ").trim());
        let operands = if row.operands.is_empty() { "none".to_string() } else { row.operands.join(", ") };
        let _ = writeln!(out, "Operands: {operands}. Contract: {contract}.");
        if !row.attributes.is_empty() {
            let _ = writeln!(out, "\n| attribute | meaning |\n|---|---|");
            for (name, doc) in row.attributes {
                let _ = writeln!(out, "| `{name}` | {doc} |");
            }
        }
    }
    let mut table = |title: &str, rows: Vec<(&str, NumericClass, &str)>| {
        let _ = writeln!(out, "\n## {title}\n\n| name | class | meaning |\n|---|---|---|");
        for (name, c, doc) in rows {
            let _ = writeln!(out, "| `{name}` | {} | {doc} |", class(c));
        }
    };
    table("Elementwise, one operand", Unary::ALL.iter().map(|o| (o.name(), o.class(), o.doc())).collect());
    table("Elementwise, two operands", Binary::ALL.iter().map(|o| (o.name(), o.class(), o.doc())).collect());
    table("Comparisons", Compare::ALL.iter().map(|o| (o.name(), o.class(), o.doc())).collect());
    let combiners: Vec<String> = Combiner::ALL.iter().map(|c| format!("`{}`", c.name())).collect();
    let _ = writeln!(
        out,
        "\n## Combiners\n\nReduce, scan, scatter and window reduce combine by {}.",
        combiners.join(", ")
    );
    out
}

#[test]
fn page_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/ops.md");
    let want = page();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, &want).expect("docs/ops.md is writable");
    }
    let have = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        have == want,
        "docs/ops.md is stale; UPDATE=1 cargo test -p tongtu-graph --test ops_doc writes it"
    );
}
