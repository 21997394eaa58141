//! Any bytes as a bundle, and as the metadata of a bundle whose checksums are right: an error, or a plan that is
//! consistent.
//!
//!     cargo +nightly fuzz run bundle -- -max_len=8192
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};

fn read(bytes: Vec<u8>) {
    if let Ok(bundle) = tongtu_plan::bundle::read(Arc::new(bytes))
        && let Err(e) = bundle.plan.check()
    {
        panic!("reads, but is not consistent: {e}");
    }
}

fuzz_target!(|bytes: &[u8]| {
    read(bytes.to_vec());
    let mut file = b"TONGTU\r\n".to_vec();
    file.extend_from_slice(&tongtu_plan::bundle::VERSION.to_le_bytes());
    file.extend_from_slice(&128u32.to_le_bytes());
    let end = 128 + bytes.len() as u64;
    // No code; sixty-four bytes of constants.
    for n in [128, bytes.len() as u64, end, 0, end, 64] {
        file.extend_from_slice(&n.to_le_bytes());
    }
    file.extend_from_slice(&Sha256::digest(bytes));
    let own = Sha256::digest(&file);
    file.extend_from_slice(&own[..8]);
    file.resize(128, 0);
    file.extend_from_slice(bytes);
    file.resize(file.len() + 64, 1);
    read(file);
});
