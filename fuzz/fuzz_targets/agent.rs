//! Any bytes as what an agent on another machine sends: frames, answers to each request, a description of its machine. An error, or a value
//! that is written and read back as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tongtu_cpu::agent::protocol::{ANSWER, Body, Hello, Kind, LARGEST, REFUSAL, answer, frame, read_frame};

const KINDS: [Kind; 9] = [
    Kind::Hello,
    Kind::Alloc,
    Kind::Free,
    Kind::Write,
    Kind::Read,
    Kind::Copy,
    Kind::Code,
    Kind::Launch,
    Kind::Bye,
];

fn take(kind: u32, body: Vec<u8>) {
    for asked in KINDS {
        if let Ok(body) = answer(asked, kind, body.clone()) {
            assert_eq!(kind, ANSWER | asked as u32, "another request's answer was taken");
            let _ = Body(&body).u64();
        }
    }
    let _ = Hello::read(&body);
}

fuzz_target!(|bytes: &[u8]| {
    let mut stream = bytes;
    while let Ok(Some((kind, body))) = read_frame(&mut stream) {
        assert!(body.len() <= LARGEST);
        assert_eq!(read_frame(&mut &frame(kind, &body)[..]), Ok(Some((kind, body.clone()))));
        take(kind, body);
    }
    // Bodies without the frame around them.
    for kind in KINDS {
        take(ANSWER | kind as u32, bytes.to_vec());
    }
    take(REFUSAL, bytes.to_vec());
});
