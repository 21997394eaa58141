//! ONNX's own backend tests, loaded and (where that exists) run by the reference interpreter.

use std::path::PathBuf;

use tongtu_onnx::{Options, load};

fn root() -> Option<PathBuf> {
    let cache = std::env::var_os("TONGTU_CACHE").map(PathBuf::from).or_else(|| {
        let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        Some(base.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?.join("tongtu"))
    })?;
    let root = cache.join("onnx-tests");
    root.join("index.txt").is_file().then_some(root)
}

#[test]
fn models_load() {
    let Some(root) = root() else { return };
    let index = std::fs::read_to_string(root.join("index.txt")).unwrap();
    let mut failed = Vec::new();
    let mut count = 0;
    let filter = std::env::var("TONGTU_TEST").unwrap_or_default();
    for name in index.lines().filter(|l| l.contains(&filter)) {
        count += 1;
        if let Err(e) = load(root.join(name).join("model.onnx"), &Options::default()) {
            failed.push(format!("{name}: {e}"));
        }
    }
    for f in &failed {
        println!("{}", f.replace('\n', " "));
    }
    println!("{} of {count} load", count - failed.len());
}
