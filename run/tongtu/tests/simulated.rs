//! Small models compiled for chips that are not here: what the vendor's compiler planned is run on a simulation of the chip and compared with
//! the reference interpreter. Where that compiler is not installed nothing is checked, and the tests say so.

use std::path::PathBuf;

use tongtu::onnx::{FileKind, read_file};
use tongtu::{Chip, Error, HostValue, Model, Options, Value, VerifyOptions};

fn folder(model: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../conformance/models").join(model)
}

fn holds(model: &str, chip: &str) {
    let at = folder(model);
    let options = Options::for_chip(Chip::builtin(chip).unwrap()).simulated().without_model_cache();
    let session = match Model::load(at.join("model.onnx")).unwrap().compile(&options) {
        Ok(s) => s,
        Err(e) if e.to_string().contains("[B003]") => return eprintln!("NOT CHECKED: {e}"),
        Err(e) => panic!("{model} for {chip}: {e}"),
    };
    let names: Vec<String> = session.plan().inputs.iter().map(|p| p.name.clone()).collect();
    let inputs: Vec<(&str, Value)> = names
        .iter()
        .enumerate()
        .map(|(i, name)| {
            let file = at.join(format!("test_data_set_0/input_{i}.pb"));
            let value = match read_file(&file, FileKind::Tensor).unwrap() {
                HostValue::Tensor(t) => Value::Tensor(t),
                other => Value::Host(other),
            };
            (name.as_str(), value)
        })
        .collect();
    let checked: Result<_, Error> = session.verify(&inputs, &VerifyOptions::default());
    let (_, report) = checked.unwrap_or_else(|e| panic!("{model} for {chip}: {e}"));
    assert!(report.passes(), "{model} for {chip}: {} of what is allowed", report.worst_ratio());
}

#[test]
fn a_product_and_an_activation() {
    ["ascend-910b", "ascend-950"].iter().for_each(|c| holds("external", c));
}

#[test]
fn shapes_and_pads() {
    for chip in ["ascend-910b", "ascend-950"] {
        holds("shapes", chip);
        holds("pads", chip);
    }
}

#[test]
fn convolutions() {
    ["ascend-910b", "ascend-950"].iter().for_each(|c| holds("cnn", c));
}

#[test]
fn a_transformer() {
    ["ascend-910b", "ascend-950"].iter().for_each(|c| holds("transformer", c));
}
