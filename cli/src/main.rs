//! The `tongtu` command line.
fn main() {}
