//! The page on the instruction set follows from the tables.

use std::fmt::Write;

use tongtu_tensor::NumericClass;
use tongtu_tensor::scalar::{Binary, Compare, Unary};
use tongtu_tile::op::TABLE;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/src/isa.md");

fn class(c: NumericClass) -> String {
    match c {
        NumericClass::Exact => "exact".to_string(),
        NumericClass::CorrectlyRounded => "rounded once".to_string(),
        NumericClass::Ulp(n) => format!("{n} ulp"),
    }
}

fn page() -> String {
    let mut out = String::from(HEAD);
    out.push_str("\n## Instructions\n\n");
    for row in TABLE {
        let result = if row.result.is_empty() { "nothing" } else { row.result };
        let operands = if row.operands.is_empty() { "none".to_string() } else { row.operands.join(", ") };
        let _ = writeln!(out, "### `{}`\n\n{}\n", row.name, row.doc.trim());
        let _ = writeln!(out, "Operands: {operands}. Result: {result}. Since {}.\n", row.since);
        for (name, doc) in row.attributes {
            let _ = writeln!(out, "- `{name}`: {doc}");
        }
        if !row.attributes.is_empty() {
            out.push('\n');
        }
    }
    out.push_str("## Scalar instructions\n\nThey act elementwise on tiles of equal shape. The class is that of floating-point operands; integers are exact.\n\n");
    out.push_str("| name | operands | class | meaning |\n| --- | --- | --- | --- |\n");
    let mut line = |name: &str, n: usize, c: NumericClass, doc: &str| {
        let _ = writeln!(out, "| `{name}` | {n} | {} | {} |", class(c), doc.replace('|', "\\|"));
    };
    Unary::ALL.iter().for_each(|u| line(u.name(), 1, u.class(), u.doc()));
    Binary::ALL.iter().for_each(|b| line(b.name(), 2, b.class(), b.doc()));
    Compare::ALL.iter().for_each(|c| line(c.name(), 2, c.class(), c.doc()));
    out
}

/// Set `TONGTU_UPDATE=1` to write the page.
#[test]
fn the_page_is_current() {
    let want = page();
    if std::env::var_os("TONGTU_UPDATE").is_some() {
        std::fs::write(PAGE, &want).unwrap();
    }
    let have = std::fs::read_to_string(PAGE).unwrap_or_default();
    assert!(have == want, "docs/src/isa.md is stale: run this test with TONGTU_UPDATE=1");
}

/// The example on the page is a program.
#[test]
fn the_example_is_a_kernel() {
    let text = HEAD.split("```text\n").nth(1).and_then(|t| t.split("```").next()).unwrap();
    let module = tongtu_tile::parse_module(text).unwrap_or_else(|e| panic!("{e}"));
    for k in &module.kernels {
        tongtu_tile::verify(k).unwrap_or_else(|e| panic!("{}", e[0]));
    }
    assert_eq!(tongtu_tile::parse_module(&module.to_string()).unwrap(), module);
}

const HEAD: &str = r#"# The tile instruction set

Version 0.1, a draft: it may change until 1.0. This page is generated from the instruction table; the reference interpreter in
`core/tile` defines the results.

A kernel is a function that every instance of a grid runs once. Its values are tiles: n-dimensional arrays of one element type with
static dims, scalars of rank 0. Memory arguments are buffers; a view lays run-time dims and strides over one, and blocks of it are
read and written at any index. Control flow is structured and carries tiles. There are no threads, vector widths or caches.

- **Order.** Within one instance, accesses to a buffer take effect in program order. Buffer parameters do not overlap. Instances run in
  any order, even one after another; only atomics order across them.
- **Numbers.** Every instruction is total. Each rounds once; what a back end may do beyond that is said by flags on the instruction:
  `contract` (a product and a sum may round once), `reassoc` (sums and products may be regrouped), `approx` (subnormals may be flushed
  and a faster approximation of twice the error used).
- **Bounds.** A block access checks each view dim unless it is declared inside. Outside, reads give the padding and writes are dropped.
  An address past the buffer that no view dim catches is an error of the program.

## Text

```text
tile 0.1
kernel @scale(%x "x": read buffer<f32>, %y "y": write buffer<f32>, %n "n": i64) {
  %zero: i64 = full {dtype = i64, shape = [], value = 0}
  %one: i64 = full {dtype = i64, shape = [], value = 1}
  %block: i64 = full {dtype = i64, shape = [], value = 64}
  %vx: view<f32, 1> = view %x, %zero, [%n], [%one]
  %vy: view<f32, 1> = view %y, %zero, [%n], [%one]
  for %zero, %n, %block do (%i: i64) {
    %a: f32[64] = load %vx[%i] {map = [64@0], inside = [false], pad = 0.0}
    %b: f32[64] = add.approx %a, %a @ "model node 'double'"
    store %vy[%i], %b {map = [64@0], inside = [false]}
  }
}
```

In words, with `?` for at most one, `*` for any number and `,…` for a list with commas:

- module: `tile 0.1` kernel\*
- kernel: `kernel @`name `(` parameter,… `) {` instruction\* `}`
- parameter: `%`name `"`name`":` (`read` \| `write` \| `readwrite`) `buffer<`element`>`, or an element type for a scalar
- instruction: (result,… `=`)? name flag\* operand,… attributes? region\* (`@ "`origin`"`)?
- result: `%`name `:` type; every name is defined once in a kernel
- type: element (`[`size,…`]`)? \| `buffer<`element`>` \| `view<`element`,` rank`>`
- flag: `.contract` \| `.reassoc` \| `.approx`
- operand: `%`name; the indices of `load` and `store` stand in brackets after the view (`store %v[%i], %value`), the dims and the strides of
  `view` in brackets; a mask is the last operand, after the word `mask`
- attributes: `{` name `=` value,… `}`; a value is a word, a number, a factor or a list in brackets
- factor, of a `map`: size`@`dim, size`@`dim`*`step, or size`@_` for one that does not step; the factors of one tile dim stand in brackets if there are several
- region: `do (`result,…`) {` instruction\* (`yield` `%`name,…)? `}`
- `//` starts a comment; numbers with a point, `inf` and `nan` are floats

What is printed reads back the same. Values print as numbers in the order of their definitions.
"#;
