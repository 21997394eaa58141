//! Tile programs, as bytes or as text: whatever reads can be verified and printed, and what verifies reads back as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tongtu_tile::{Module, from_bytes, parse_module, to_bytes, verify};

fn sound(module: &Module) -> bool {
    module.kernels.iter().all(|k| verify(k).is_ok())
}

fuzz_target!(|bytes: &[u8]| {
    if let Ok(module) = from_bytes(bytes) {
        assert_eq!(to_bytes(&module), bytes, "another encoding of the same module");
        if sound(&module) {
            let text = module.to_string();
            let again = parse_module(&text).expect("printed text reads");
            assert_eq!(to_bytes(&again), bytes, "{text}");
        }
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(module) = parse_module(text) else { return };
    let printed = module.to_string();
    let again = parse_module(&printed);
    if sound(&module) {
        assert_eq!(again.expect("printed text reads").to_string(), printed);
        let again = from_bytes(&to_bytes(&module)).expect("written bytes read");
        assert_eq!(again.to_string(), printed);
    }
});
