//! Models compiled for chips that are not here: what the vendor's compiler planned is run on a simulation of the chip, every kernel
//! is compared with the reference interpreter, and the results with those of ONNX Runtime. Where that compiler, or a real model, is not installed
//! nothing is checked, and the tests say so.

use std::path::{Path, PathBuf};

use tongtu::onnx::{FileKind, read_file};
use tongtu::{Chip, HostValue, Model, Options, Session, Tensor, Value, VerifyOptions};

const CHIPS: [&str; 2] = ["ascend-910b", "ascend-950"];

fn conformance(folder: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../conformance").join(folder)
}

/// Where scripts/fetch-models puts real models.
fn fetched(model: &str) -> PathBuf {
    let own = |name: &str| std::env::var_os(name).filter(|d| !d.is_empty()).map(PathBuf::from);
    let base = own("XDG_CACHE_HOME").or(own("HOME").map(|h| h.join(".cache"))).unwrap_or_default();
    own("TONGTU_CACHE").unwrap_or(base.join("tongtu")).join("models").join(model)
}

fn compiled(model: &Path, chip: &str) -> Option<Session> {
    let options = Options::for_chip(Chip::builtin(chip).unwrap()).simulated().without_model_cache();
    match Model::load(model).unwrap().compile(&options) {
        Ok(s) => Some(s),
        Err(e) if e.to_string().contains("[B003]") => {
            eprintln!("NOT CHECKED: {e}");
            None
        }
        Err(e) => panic!("{} for {chip}: {e}", model.display()),
    }
}

fn value(file: &Path) -> HostValue {
    read_file(file, FileKind::Tensor).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

/// Whether each element is within a share of the expected one, or a small distance.
fn near(got: &Tensor, want: &Tensor) -> bool {
    got.shape() == want.shape()
        && got.iter().zip(want.iter()).all(|(g, w)| {
            let (g, w) = (g.to_f64(), w.to_f64());
            g == w || (g - w).abs() <= 1e-4 + 1e-3 * w.abs()
        })
}

fn holds(model: &Path, data: &Path, chip: &str) {
    let Some(session) = compiled(model, chip) else { return };
    let names: Vec<String> = session.inputs().iter().map(|n| n.to_string()).collect();
    let inputs: Vec<(&str, Value)> = names
        .iter()
        .enumerate()
        .map(|(i, name)| {
            let value = match value(&data.join(format!("input_{i}.pb"))) {
                HostValue::Tensor(t) => Value::Tensor(t),
                other => Value::Host(other),
            };
            (name.as_str(), value)
        })
        .collect();
    let checked = session.verify(&inputs, &VerifyOptions::default());
    let (outputs, report) = checked.unwrap_or_else(|e| panic!("{} for {chip}: {e}", model.display()));
    assert!(report.passes(), "{} for {chip}: {} of what is allowed", model.display(), report.worst_ratio());
    for (i, (name, got)) in outputs.iter().enumerate() {
        let (Some(got), HostValue::Tensor(want)) =
            (got.tensor().unwrap(), value(&data.join(format!("output_{i}.pb"))))
        else {
            continue;
        };
        assert!(near(&got, &want), "{} for {chip}: {name} differs", model.display());
    }
}

/// The first data set of small models.
fn small(models: &[&str]) {
    for chip in CHIPS {
        for model in models {
            let at = conformance("models").join(model);
            holds(&at.join("model.onnx"), &at.join("test_data_set_0"), chip);
        }
    }
}

/// A real model on inputs that are very small.
fn real(model: &str, chip: &str) {
    let at = fetched(model).join("model.onnx");
    if !at.is_file() {
        return eprintln!("NOT CHECKED: {} is not there (scripts/fetch-models)", at.display());
    }
    holds(&at, &conformance("simulated").join(model).join("test_data_set_0"), chip);
}

#[test]
fn products_and_shapes() {
    small(&["external", "shapes", "pads", "functions", "slices"]);
}

#[test]
fn pictures() {
    small(&["cnn", "quantised", "windows"]);
}

#[test]
fn transformers() {
    small(&["transformer", "decode", "decode-in-place"]);
}

/// One word more, beside those in the cache.
fn decoder_layer(chip: &str) {
    let at = conformance("models").join("llama-layer");
    holds(&at.join("model.onnx"), &at.join("test_data_set_1"), chip);
}

#[test]
fn a_decoder_layer_on_910b() {
    decoder_layer("ascend-910b");
}

#[test]
fn a_decoder_layer_on_950() {
    decoder_layer("ascend-950");
}

#[test]
fn control_and_growth() {
    small(&["control", "growing"]);
}

#[test]
fn sentences_on_910b() {
    real("minilm-l6", "ascend-910b");
}

#[test]
fn sentences_on_950() {
    real("minilm-l6", "ascend-950");
}

#[test]
fn text_lines() {
    CHIPS.iter().for_each(|c| real("ppocr-v4-rec", c));
}
