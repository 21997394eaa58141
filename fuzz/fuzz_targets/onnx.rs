//! Any bytes as an ONNX file: an error, or a graph that verifies.
//!
//!     cargo +nightly fuzz run onnx corpus ../conformance/hostile -- -max_len=8192
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(loaded) = tongtu_onnx::load_bytes(bytes.to_vec(), &tongtu_onnx::Options::default())
        && let Err(errors) = tongtu_graph::verify::verify(&loaded.module)
    {
        panic!("loads, but does not verify: {}", errors[0]);
    }
});
