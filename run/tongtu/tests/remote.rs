//! Models on emulations of other CPUs: every kernel is compared with the reference interpreter on the inputs that it had. Where QEMU, clang or
//! lld are not installed nothing is checked, and the tests say so.

use tongtu::{Chip, Error, Model, Options, Remote, Tensor, VerifyOptions};

fn holds(chip: &str) {
    let remote = match Remote::open(&format!("emulator:{chip}")) {
        Ok(remote) => remote,
        Err(e @ Error::Remote(_)) => return eprintln!("NOT CHECKED: {e}"),
        Err(e) => panic!("{e}"),
    };
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../conformance/models/external/model.onnx");
    let session = Model::load(file).unwrap().compile(&Options::on(remote).without_cache()).unwrap();
    let x: Vec<f32> = (0..96).map(|i| (i % 13) as f32 / 4.0 - 1.5).collect();
    let x = Tensor::from_slice(&[2, 48], &x).unwrap();
    let (_, report) =
        session.verify(&[("x", x)], &VerifyOptions::default()).unwrap_or_else(|e| panic!("{chip}: {e}"));
    assert!(report.passes(), "{chip}: {} of what is allowed", report.worst_ratio());
    assert!(report.checked() > 0);
}

#[test]
fn a_model_holds_on_arm() {
    ["aarch64-neon", "aarch64-sve128", "aarch64-sve256", "aarch64-sve512"].into_iter().for_each(holds);
}

#[test]
fn a_model_holds_on_risc_v() {
    ["riscv64", "riscv64-v128", "riscv64-v256", "riscv64-v512", "riscv64-v1024"].into_iter().for_each(holds);
}

#[test]
fn a_model_holds_on_loongarch() {
    holds("loongarch64");
}

#[test]
fn machines_that_are_not_there_are_errors() {
    for name in [
        "riscv64",
        "agent:false",
        "agent:echo hello",
        "agent:tcp:127.0.0.1:1",
        "agent:unix:/nowhere/agent",
        "emulator:ascend-950",
        "emulator:abacus",
    ] {
        assert!(Remote::open(name).is_err(), "{name}");
    }
    let npu = Chip::builtin("ascend-950").unwrap();
    assert_eq!(Remote::emulator(&npu).unwrap_err().code(), "A012");
}
