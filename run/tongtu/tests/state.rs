//! State tied to outputs: decoding step by step, in place, gives what it gives when caches are handed around.
#![cfg(feature = "llvm")]

use std::path::{Path, PathBuf};

use tongtu::{Model, Options, Session, Tensor, Value, VerifyOptions};

fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/models").join(name).join("model.onnx")
}

fn options() -> Options {
    Options::host().threads(1).without_model_cache()
}

fn session(name: &str, tied: bool) -> Session {
    let mut options = options();
    if tied {
        options = options.state("past_key", "key").state("past_value", "value");
    }
    Model::load(model(name)).unwrap().compile(&options).unwrap()
}

fn wave(shape: &[usize], seed: usize) -> Tensor {
    let n: usize = shape.iter().product();
    let values: Vec<f32> = (0..n).map(|i| ((i * 7 + seed * 13) as f32 * 0.37).sin()).collect();
    Tensor::from_slice(shape, &values).unwrap()
}

fn close(a: &Tensor, b: &Tensor, what: &str) {
    assert_eq!(a.shape(), b.shape(), "{what}");
    for (i, (x, y)) in a.to_f64_vec().into_iter().zip(b.to_f64_vec()).enumerate() {
        assert!((x - y).abs() <= 1e-5 * (1.0 + y.abs()), "{what}, element {i}: {x}, {y} is wanted");
    }
}

#[test]
fn a_growing_cache_is_appended_to_in_place() {
    let (plain, tied) = (session("decode", false), session("decode", true));
    let (batch, heads, size) = (2, 3, 8);
    let mut caches = [0, 1].map(|i| wave(&[batch, heads, 5, size], 100 + i));
    let state = [("past_key", &caches[0]), ("past_value", &caches[1])]
        .map(|(name, t)| tied.state(name, t, 64).unwrap());
    let mut context = tied.context();
    for step in 0..8 {
        let x = wave(&[batch, 1 + step % 2, 24], step);
        let want = plain.run(&[
            ("x", x.clone()),
            ("past_key", caches[0].clone()),
            ("past_value", caches[1].clone()),
        ]);
        let want = want.unwrap();
        let inputs: [(&str, Value); 3] =
            [("x", x.into()), ("past_key", state[0].clone()), ("past_value", state[1].clone())];
        let got = tied.run(&inputs).unwrap();
        for name in ["y", "key", "value"] {
            close(&got.tensor(name).unwrap(), &want.tensor(name).unwrap(), &format!("step {step}, {name}"));
        }
        caches = [want.tensor("key").unwrap(), want.tensor("value").unwrap()];
    }
    assert_eq!(tied.memory().state_copied, 0);
    // A context of its own, and state without room: right, and the copies are counted.
    let small = [0, 1].map(|i| tied.state(["past_key", "past_value"][i], &caches[i], 0).unwrap());
    let x = wave(&[batch, 1, 24], 50);
    let inputs: [(&str, Value); 3] =
        [("x", x.into()), ("past_key", small[0].clone()), ("past_value", small[1].clone())];
    context.run(&tied.ordered(&inputs).unwrap()).unwrap();
    let moved: usize = caches.iter().map(Tensor::nbytes).sum();
    assert_eq!(context.memory().state_copied, moved as u64);
}

#[test]
fn host_tensors_may_be_given_for_state() {
    let (plain, tied) = (session("decode", false), session("decode", true));
    for past in [0, 1, 9] {
        let inputs = [
            ("x", wave(&[3, 2, 24], 1)),
            ("past_key", wave(&[3, 3, past, 8], 2)),
            ("past_value", wave(&[3, 3, past, 8], 3)),
        ];
        let (want, got) = (plain.run(&inputs).unwrap(), tied.run(&inputs).unwrap());
        for name in ["y", "key", "value"] {
            close(&got.tensor(name).unwrap(), &want.tensor(name).unwrap(), &format!("{past} past, {name}"));
        }
        let (_, report) = tied.verify(&inputs, &VerifyOptions::default()).unwrap();
        assert!(report.passes(), "{report:?}");
    }
}

#[test]
fn a_cache_of_fixed_capacity_is_written_in_place() {
    let (plain, tied) = (session("decode-in-place", false), session("decode-in-place", true));
    let (batch, capacity) = (2, 16);
    let mut caches = [0, 1].map(|i| wave(&[batch, 3, capacity, 8], 200 + i));
    let state = [("past_key", &caches[0]), ("past_value", &caches[1])]
        .map(|(name, t)| tied.state(name, t, 0).unwrap());
    for step in 0..6i64 {
        let x = wave(&[batch, 1, 24], step as usize);
        let at = Tensor::from_slice(&[batch], &[step, step + 3]).unwrap();
        let want = plain
            .run(&[
                ("x", x.clone()),
                ("past_key", caches[0].clone()),
                ("past_value", caches[1].clone()),
                ("at", at.clone()),
            ])
            .unwrap();
        let inputs: [(&str, Value); 4] = [
            ("x", x.into()),
            ("past_key", state[0].clone()),
            ("past_value", state[1].clone()),
            ("at", at.into()),
        ];
        let got = tied.run(&inputs).unwrap();
        for name in ["y", "key", "value"] {
            close(&got.tensor(name).unwrap(), &want.tensor(name).unwrap(), &format!("step {step}, {name}"));
        }
        caches = [want.tensor("key").unwrap(), want.tensor("value").unwrap()];
    }
    assert_eq!(tied.memory().state_copied, 0);
}

#[test]
fn what_cannot_be_tied_is_an_error_that_says_why() {
    let load = || Model::load(model("decode")).unwrap();
    for (input, output, why) in [
        ("past", "key", "there is no input 'past'"),
        ("past_key", "keys", "there is no output 'keys'"),
        ("x", "key", "types and ranks must agree"),
        ("past_key", "value", "not the input with something appended"),
    ] {
        let error = load().compile(&options().state(input, output)).err().unwrap().to_string();
        assert!(error.contains("A010") && error.contains(why), "{error}");
    }
    let all = load().compile(&options().state("past_*", "*")).unwrap();
    assert_eq!(all.plan().state.len(), 2);
    let twice = options().state("past_key", "key").state("past_key", "key");
    assert!(load().compile(&twice).err().unwrap().to_string().contains("tied already"));
}
