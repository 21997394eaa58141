//! The same bits at any number of threads: what an instance of a kernel computes does not depend on which others run beside it.
#![cfg(feature = "llvm")]

use std::path::{Path, PathBuf};

use tongtu::onnx::{FileKind, read_file};
use tongtu::{HostValue, Options, Session, Value};

fn outputs(model: &Path, data: &Path, threads: usize) -> Vec<Vec<u8>> {
    let session = Session::load(model, &Options::host().threads(threads)).unwrap();
    let names: Vec<String> = session.inputs().iter().map(|n| n.to_string()).collect();
    let value = |(i, name)| {
        let value = match read_file(&data.join(format!("input_{i}.pb")), FileKind::Tensor).unwrap() {
            HostValue::Tensor(t) => Value::Tensor(t),
            other => Value::Host(other),
        };
        (name, value)
    };
    let inputs: Vec<(&str, Value)> = names.iter().map(String::as_str).enumerate().map(value).collect();
    let outputs = session.run(&inputs).unwrap();
    outputs.iter().map(|(_, v)| v.tensor().unwrap().unwrap().bytes().to_vec()).collect()
}

fn agree(at: &Path) {
    let (model, data) = (at.join("model.onnx"), at.join("test_data_set_0"));
    let alone = outputs(&model, &data, 1);
    for threads in [2, 3, 5] {
        assert!(outputs(&model, &data, threads) == alone, "{} on {threads} threads", at.display());
    }
}

#[test]
fn small_models() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/models");
    for name in ["cnn", "transformer", "llama-layer", "quantised", "windows", "recurrent"] {
        agree(&models.join(name));
    }
}

#[test]
fn real_models() {
    let own = |name: &str| std::env::var_os(name).filter(|d| !d.is_empty()).map(PathBuf::from);
    let base = own("XDG_CACHE_HOME").or(own("HOME").map(|h| h.join(".cache"))).unwrap_or_default();
    let models = own("TONGTU_CACHE").unwrap_or(base.join("tongtu")).join("models");
    for name in ["minilm-l6", "ppocr-v4-rec", "ppocr-v4-det"] {
        let at = models.join(name);
        match at.join("model.onnx").is_file() {
            true => agree(&at),
            false => eprintln!("NOT CHECKED: {} is not there (scripts/fetch-models)", at.display()),
        }
    }
}
