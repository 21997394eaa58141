//! The examples of the instruction table.

use tongtu_tile::op::{EXAMPLE, rows};
use tongtu_tile::{Module, parse_module};

/// The program that an example of the table stands for.
pub fn example(body: &str) -> String {
    EXAMPLE.replace('…', body)
}

/// Every example of the table, each as a kernel named after its instruction.
pub fn examples() -> Module {
    let mut module = Module::default();
    for row in rows() {
        let text = example(&row.example);
        let mut one = parse_module(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        one.kernels[0].name = row.name.to_string();
        module.kernels.append(&mut one.kernels);
    }
    module
}
