//! Damaged and hostile files: every one ends in an error or loads, quickly and in little memory.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tongtu_onnx::{Options, load, load_bytes};

/// Far more than any file needs, even on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance").join(name)
}

/// Loads and, where there is nothing to be given, evaluates.
fn outcome(path: &Path) -> Result<(), String> {
    let loaded = load(path, &Options::default()).map_err(|e| e.to_string())?;
    tongtu_graph::verify::verify(&loaded.module).map_err(|e| e[0].to_string())?;
    let count = |v: &tongtu_graph::Value| {
        let dims = v.ty.as_tensor()?.1;
        dims.iter().try_fold(1i64, |a, d| a.checked_mul(d.as_const()?))
    };
    if loaded.module.graph.values.iter().filter_map(count).any(|n| n > 1 << 20) {
        return Err("T001: too large for this test to evaluate".into());
    }
    if loaded.inputs.is_empty() {
        tongtu_graph::eval::run(&loaded.module, &[]).map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// In a thread with the stack of a program's main thread.
fn on_thread<T: Send>(f: impl FnOnce() -> T + Send) -> Result<T, String> {
    std::thread::scope(|s| {
        let thread = std::thread::Builder::new().stack_size(8 << 20).spawn_scoped(s, f).expect("a thread");
        thread.join().map_err(|_| "panics".to_string())
    })
}

#[test]
fn corpus() {
    let folder = folder("hostile");
    let expected = std::fs::read_to_string(folder.join("expected.tsv")).expect("the corpus is committed");
    let mut wrong = Vec::new();
    for line in expected.lines() {
        let mut columns = line.split('\t');
        let (Some(file), Some(verdict)) = (columns.next(), columns.next()) else { continue };
        let path = folder.join(file).with_extension("onnx");
        if !path.is_file() {
            continue;
        }
        let start = Instant::now();
        let Ok(result) = on_thread(|| outcome(&path)) else {
            wrong.push(format!("{file}: panics"));
            continue;
        };
        if start.elapsed() > LIMIT {
            wrong.push(format!("{file}: took {:?}", start.elapsed()));
        }
        match (verdict, &result) {
            ("refuse", Ok(())) => wrong.push(format!("{file}: accepted")),
            ("load", Err(e)) => wrong.push(format!("{file}: refused: {e}")),
            (_, Err(e)) if !coded(e) => wrong.push(format!("{file}: no code in: {e}")),
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Whether a message begins with a code: a capital letter and three digits, perhaps in brackets.
fn coded(message: &str) -> bool {
    let m = message.trim_start_matches('[').as_bytes();
    m.len() > 4 && m[0].is_ascii_uppercase() && m[1..4].iter().all(u8::is_ascii_digit)
}

/// A generator of numbers that look random: xorshift.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// Small models to damage: those committed for other tests, and the hostile ones that are small.
fn seeds() -> Vec<Vec<u8>> {
    let mut all: Vec<PathBuf> = Vec::new();
    let mut folders = vec![folder("models"), folder("hostile")];
    while let Some(f) = folders.pop() {
        for e in std::fs::read_dir(f).into_iter().flatten().flatten() {
            if e.path().is_dir() {
                folders.push(e.path());
            } else if e.path().extension().is_some_and(|x| x == "onnx") {
                all.push(e.path());
            }
        }
    }
    all.sort();
    let read = |p: &PathBuf| std::fs::read(p).ok().filter(|b| b.len() < 8192);
    all.iter().filter_map(read).collect()
}

#[test]
fn damaged_files_end_in_errors() {
    let seeds = seeds();
    assert!(seeds.len() > 10);
    let rounds = std::env::var("TONGTU_ROUNDS").ok().and_then(|r| r.parse().ok()).unwrap_or(40);
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    for (i, seed) in seeds.iter().enumerate() {
        for round in 0..rounds {
            let mut bytes = seed.clone();
            match round % 4 {
                0 => bytes.truncate(numbers.below(bytes.len())),
                1 => {
                    for _ in 0..1 + numbers.below(3) {
                        let at = numbers.below(bytes.len());
                        if let Some(b) = bytes.get_mut(at) {
                            *b ^= 1 << numbers.below(8);
                        }
                    }
                }
                2 => {
                    for _ in 0..1 + numbers.below(4) {
                        let at = numbers.below(bytes.len());
                        let interesting = [0, 1, 0x7f, 0x80, 0xff, numbers.next() as u8];
                        if let Some(b) = bytes.get_mut(at) {
                            *b = interesting[numbers.below(interesting.len())];
                        }
                    }
                }
                _ => {
                    let (from, to, len) =
                        (numbers.below(bytes.len()), numbers.below(bytes.len()), numbers.below(16));
                    let part: Vec<u8> = bytes.iter().skip(from).take(len).copied().collect();
                    bytes.splice(to..to, part);
                }
            }
            let start = Instant::now();
            let copy = bytes.clone();
            let message = on_thread(|| match load_bytes(bytes, &Options::default()) {
                Ok(l) => tongtu_graph::verify::verify(&l.module)
                    .err()
                    .map(|e| format!("does not verify: {}", e[0])),
                Err(e) => (!coded(&e.to_string())).then(|| format!("no code in: {e}")),
            });
            let fine = matches!(message, Ok(None)) && start.elapsed() < LIMIT;
            if let Some(path) = std::env::var_os("TONGTU_SAVE").filter(|_| !fine) {
                std::fs::write(path, copy).expect("the file can be written");
            }
            assert!(matches!(message, Ok(None)), "seed {i}, round {round}: {message:?}");
            assert!(start.elapsed() < LIMIT, "seed {i}, round {round}: {:?}", start.elapsed());
        }
    }
}
