//! The text form of graphs: whatever reads can be verified and printed, and what is printed reads back as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tongtu_graph::{text, verify};

fuzz_target!(|source: &str| {
    let Ok(module) = text::parse(source) else { return };
    let sound = verify(&module).is_ok();
    let printed = text::print(&module);
    match text::parse(&printed) {
        Ok(again) => assert_eq!(text::print(&again), printed),
        Err(e) => assert!(!sound, "{e}\n{printed}"),
    }
});
