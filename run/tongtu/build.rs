//! Gives the crate fingerprints of the sources that decide what is compiled, so that caches notice every change.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

fn add(path: &Path, out: &mut Vec<PathBuf>) {
    if path.is_dir() {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries.for_each(|e| add(&e.path(), out));
    } else if path.extension().is_some_and(|e| e == "rs" || e == "toml") {
        out.push(path.to_path_buf());
    }
}

/// The hash of all sources under some folders of the workspace; the version where there are none (a packaged crate).
fn fingerprint(folders: &[&str]) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut files = Vec::new();
    for folder in folders {
        let path = root.join(folder);
        println!("cargo::rerun-if-changed={}", path.display());
        add(&path, &mut files);
    }
    files.sort();
    let mut sum = Sha256::new();
    sum.update(env!("CARGO_PKG_VERSION"));
    for file in files {
        sum.update(file.strip_prefix(&root).unwrap_or(&file).as_os_str().as_encoded_bytes());
        sum.update(std::fs::read(&file).unwrap_or_default());
    }
    sum.finalize()[..8].iter().map(|b| format!("{b:02x}")).collect()
}

fn main() {
    const KERNELS: &[&str] =
        &["core/tensor/src", "core/tile/src", "core/chip/src", "core/plan/src", "back/cpu/src"];
    const MODELS: &[&str] = &["core/graph/src", "front/onnx/src", "compile/src", "back/ascend/src", "chips"];
    println!("cargo::rustc-env=TONGTU_KERNELS={}", fingerprint(KERNELS));
    println!("cargo::rustc-env=TONGTU_MODELS={}", fingerprint(&[KERNELS, MODELS].concat()));
}
