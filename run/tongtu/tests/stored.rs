//! Whole compiled models in the cache: used while their files are the same, and only then.
#![cfg(feature = "llvm")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tongtu::cache::{Cache, LIMIT};
use tongtu::{Options, Session, Tensor};

struct Dir(PathBuf);

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A copy of a model with external weights, and a cache.
fn set_up(name: &str) -> (Dir, PathBuf, Options) {
    let dir = std::env::temp_dir().join(format!("tongtu-stored-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(dir.join("weights")).unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/models/external");
    for file in ["model.onnx", "second.bin", "weights/first.bin"] {
        fs::copy(from.join(file), dir.join(file)).unwrap();
    }
    let cache = |part: &str| Cache::new(dir.join(part), LIMIT);
    let options = Options::host().threads(1).kernel_cache(cache("kernels")).keep_models(cache("compiled"));
    let model = dir.join("model.onnx");
    // Files that have just changed are not trusted.
    std::thread::sleep(Duration::from_millis(150));
    (Dir(dir), model, options)
}

/// The output, and whether the model came from the cache.
fn run(model: &Path, options: &Options) -> (Vec<f32>, bool) {
    let session = Session::load(model, options).unwrap();
    let x = Tensor::from_slice(&[1, 48], &[0.25f32; 48]).unwrap();
    let y = session.run(&[("x", x)]).unwrap().tensor("y").unwrap();
    (y.to_vec().unwrap(), session.info().is_some())
}

fn entry(dir: &Dir) -> PathBuf {
    let folders = fs::read_dir(dir.0.join("compiled")).unwrap().flatten().map(|f| f.path());
    let mut files = folders.flat_map(|f| fs::read_dir(f).unwrap().flatten()).map(|f| f.path());
    files.next().unwrap()
}

#[test]
fn the_second_start_compiles_nothing() {
    let (_dir, model, options) = set_up("second");
    let (first, cached) = run(&model, &options);
    assert!(!cached);
    assert_eq!(run(&model, &options), (first, true));
}

#[test]
fn changed_weights_are_noticed() {
    let (dir, model, options) = set_up("changed");
    let (first, _) = run(&model, &options);
    let data = dir.0.join("weights/first.bin");
    let mut bytes = fs::read(&data).unwrap();
    bytes.iter_mut().skip(3).step_by(4).for_each(|b| *b ^= 0x80);
    fs::write(&data, bytes).unwrap();
    let (second, cached) = run(&model, &options);
    assert!(!cached && second != first);
    std::thread::sleep(Duration::from_millis(150));
    assert_eq!(run(&model, &options), (second.clone(), false), "not stored when the file had just changed");
    assert_eq!(run(&model, &options), (second, true));
    assert_eq!(options.model_cache().unwrap().state().entries, 1);
}

#[test]
fn a_damaged_entry_is_made_anew() {
    let (dir, model, options) = set_up("damaged");
    let (first, _) = run(&model, &options);
    let path = entry(&dir);
    let bytes = fs::read(&path).unwrap();
    for cut in [0, 60, 200, bytes.len() / 2] {
        fs::write(&path, &bytes[..cut]).unwrap();
        assert_eq!(run(&model, &options), (first.clone(), false), "cut to {cut} bytes");
        assert_eq!(run(&model, &options), (first.clone(), true));
    }
}

#[test]
fn verification_unpacks_weights() {
    let (_dir, model, options) = set_up("verify");
    for _ in 0..2 {
        let session = Session::load(&model, &options).unwrap();
        let x = Tensor::from_slice(&[3, 48], &[0.5f32; 144]).unwrap();
        let (_, report) = session.verify(&[("x", x)], &tongtu::VerifyOptions::default()).unwrap();
        assert!(report.passes() && report.checked() > 0);
    }
}
