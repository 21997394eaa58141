//! ONNX's own backend tests, lowered and run by the reference interpreter. The list of those that pass is committed
//! and may only grow; `TONGTU_UPDATE=1` rewrites it, `TONGTU_TEST=text` runs only the tests whose name contains the text.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tongtu_graph::eval::{self, HostValue};
use tongtu_onnx::data::{FileKind, read_file};
use tongtu_onnx::{Loaded, Options, load};
use tongtu_tensor::{DType, Tensor};

fn cache() -> Option<PathBuf> {
    std::env::var_os("TONGTU_CACHE").map(PathBuf::from).or_else(|| {
        let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let base = base.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
        Some(base.join("tongtu"))
    })
}

fn kind(declared: &str) -> FileKind {
    if declared.starts_with("sequence") {
        FileKind::Sequence
    } else if declared.starts_with("optional") {
        FileKind::Optional
    } else {
        FileKind::Tensor
    }
}

struct Meta {
    rtol: f64,
    rtol_bfloat16: f64,
    atol: f64,
    inputs: Vec<String>,
    outputs: Vec<String>,
}

fn meta(folder: &Path) -> Meta {
    let text = std::fs::read_to_string(folder.join("meta.json")).unwrap();
    let v: serde_json::Value = serde_json::from_str(&text).unwrap();
    // Models that say nothing of their values have tensors only, as many as there are files.
    let files = |stem: &str| {
        (0..).take_while(|i| folder.join(format!("test_data_set_0/{stem}_{i}.pb")).is_file()).count()
    };
    let list = |k: &str, stem: &str| match v[k].as_array() {
        Some(all) => all.iter().map(|s| s.as_str().unwrap().to_string()).collect(),
        None => vec![String::from("float"); files(stem)],
    };
    let number = |k: &str| v[k].as_f64().unwrap_or(1.0 / 64.0);
    Meta {
        rtol: number("rtol"),
        rtol_bfloat16: number("rtol_bfloat16"),
        atol: number("atol"),
        inputs: list("inputs", "input"),
        outputs: list("outputs", "output"),
    }
}

fn differs(got: &HostValue, want: &HostValue, m: &Meta) -> Option<String> {
    match (got, want) {
        (HostValue::Tensor(g), HostValue::Tensor(w)) => tensor_differs(g, w, m),
        (HostValue::Strings { shape: a, data: x }, HostValue::Strings { shape: b, data: y }) => {
            (a != b || x != y).then(|| format!("strings {x:?}, expected {y:?}"))
        }
        (HostValue::Sequence(a), HostValue::Sequence(b)) => {
            if a.len() != b.len() {
                return Some(format!("{} elements, expected {}", a.len(), b.len()));
            }
            a.iter().zip(b).find_map(|(x, y)| differs(x, y, m))
        }
        (HostValue::Optional(Some(a)), HostValue::Optional(Some(b))) => differs(a, b, m),
        (HostValue::Optional(None), HostValue::Optional(None)) => None,
        (g, w) => Some(format!("{g:?}, expected {w:?}")),
    }
}

fn tensor_differs(g: &Tensor, w: &Tensor, m: &Meta) -> Option<String> {
    if g.dtype() != w.dtype() || g.shape() != w.shape() {
        return Some(format!("{}{:?}, expected {}{:?}", g.dtype(), g.shape(), w.dtype(), w.shape()));
    }
    let rtol = if g.dtype() == DType::BF16 { m.rtol_bfloat16 } else { m.rtol };
    let exact = !g.dtype().is_float();
    for i in 0..g.len() {
        let (a, b) = (g.get_linear(i), w.get_linear(i));
        let (x, y) = (a.to_f64(), b.to_f64());
        let same =
            a == b || (x.is_nan() && y.is_nan()) || (!exact && (x - y).abs() <= m.atol + rtol * y.abs());
        if !same {
            return Some(format!("element {i} is {a}, expected {b}"));
        }
    }
    None
}

/// Inputs that are small lists of numbers, as constants: those that a model may need to know to be compiled.
fn constants(loaded_inputs: &[(String, HostValue)]) -> Vec<(String, Tensor)> {
    let small = |t: &Tensor| t.rank() <= 1 && t.len() <= if t.dtype().is_float() { 8 } else { 64 };
    let pick =
        |(n, v): &(String, HostValue)| v.as_tensor().filter(|t| small(t)).map(|t| (n.clone(), t.clone()));
    loaded_inputs.iter().filter_map(pick).collect()
}

fn data(folder: &Path, stem: &str, kinds: &[String]) -> Result<Vec<HostValue>, String> {
    let read = |(i, k): (usize, &String)| {
        read_file(&folder.join(format!("{stem}_{i}.pb")), kind(k)).map_err(|e| e.to_string())
    };
    kinds.iter().enumerate().map(read).collect()
}

/// Runs one test; `Ok` tells whether small inputs had to be constants.
fn run(folder: &Path) -> Result<bool, String> {
    let m = meta(folder);
    let model = folder.join("model.onnx");
    let plain = load(&model, &Options::default());
    let mut needed = false;
    for set in 0.. {
        let set_dir = folder.join(format!("test_data_set_{set}"));
        if !set_dir.is_dir() {
            break;
        }
        let inputs = data(&set_dir, "input", &m.inputs)?;
        let want = data(&set_dir, "output", &m.outputs)?;
        let names = input_names(&model)?;
        let named: Vec<(String, HostValue)> = names.into_iter().zip(inputs).collect();
        let again;
        let loaded: &Loaded = match &plain {
            Ok(l) => l,
            Err(e) => {
                let options = Options { constants: constants(&named), ..Options::default() };
                if options.constants.is_empty() {
                    return Err(format!("load: {e}"));
                }
                needed = true;
                again = load(&model, &options).map_err(|e| format!("load: {e}"))?;
                &again
            }
        };
        if let Err(e) = tongtu_graph::verify::verify(&loaded.module) {
            return Err(format!("verify: {} errors, first: {}", e.len(), e[0]));
        }
        let args: Vec<HostValue> = loaded
            .inputs
            .iter()
            .map(|p| {
                named
                    .iter()
                    .find(|(n, _)| *n == p.name)
                    .map(|(_, v)| v.clone())
                    .ok_or(format!("no input {}", p.name))
            })
            .collect::<Result<_, _>>()?;
        let got = eval::run(&loaded.module, &args).map_err(|e| format!("run: {e}"))?;
        if got.len() != want.len() {
            return Err(format!("{} outputs, expected {}", got.len(), want.len()));
        }
        for (i, (g, w)) in got.iter().zip(&want).enumerate() {
            if let Some(d) = differs(g, w, &m) {
                return Err(format!("output {i}: {d}"));
            }
        }
    }
    Ok(needed)
}

/// Networks of full size are beyond an interpreter, and some small tests beyond an unoptimised one.
fn slow(name: &str) -> bool {
    let large = ["pool_3d_default", "_stride_padding_dilation", "/test_operator_conv"];
    name.starts_with("real/") || (cfg!(debug_assertions) && large.iter().any(|l| name.ends_with(l)))
}

fn input_names(model: &Path) -> Result<Vec<String>, String> {
    tongtu_onnx::input_names(model).map_err(|e| e.to_string())
}

#[test]
fn backend_tests() {
    let Some(root) = cache().map(|c| c.join("onnx-tests")).filter(|r| r.join("index.txt").is_file()) else {
        println!("the tests are not there; conformance/onnx/dump.py writes them");
        return;
    };
    let filter = std::env::var("TONGTU_TEST").unwrap_or_default();
    let index = std::fs::read_to_string(root.join("index.txt")).unwrap();
    let names: Vec<&str> = index.lines().filter(|l| l.contains(&filter) && !slow(l)).collect();
    let next = AtomicUsize::new(0);
    let results = Mutex::new(vec![Err(String::new()); names.len()]);
    std::thread::scope(|s| {
        for _ in 0..2 {
            let worker = || {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(name) = names.get(i) else { return };
                    let start = std::time::Instant::now();
                    let run = std::panic::catch_unwind(|| run(&root.join(name)));
                    if start.elapsed().as_secs() > 2 {
                        println!("SLOW {name}: {:?}", start.elapsed());
                    }
                    results.lock().unwrap()[i] = run.unwrap_or_else(|_| Err("panic".into()));
                }
            };
            std::thread::Builder::new().stack_size(64 << 20).spawn_scoped(s, worker).unwrap();
        }
    });
    let results = results.into_inner().unwrap();
    let mut passed = BTreeSet::new();
    for (name, r) in names.iter().zip(&results) {
        match r {
            Ok(_) => {
                passed.insert(name.to_string());
            }
            Err(e) => println!("FAIL {name}: {}", e.replace('\n', " ").chars().take(300).collect::<String>()),
        }
    }
    let constant = results.iter().filter(|r| matches!(r, Ok(true))).count();
    println!("{} of {} pass, {constant} of them with small inputs as constants", passed.len(), names.len());

    let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/onnx/interpreted.txt");
    let known: BTreeSet<String> =
        std::fs::read_to_string(&list).unwrap_or_default().lines().map(str::to_string).collect();
    if std::env::var_os("TONGTU_UPDATE").is_some() {
        let all: BTreeSet<&String> = known.union(&passed).collect();
        std::fs::write(&list, all.into_iter().map(|n| format!("{n}\n")).collect::<String>()).unwrap();
    }
    if filter.is_empty() {
        let reasons =
            std::fs::read_to_string(list.with_file_name("left-out.tsv")).expect("the list is committed");
        let patterns: Vec<&str> = reasons.lines().filter_map(|l| l.split('\t').next()).collect();
        let listed = |n: &str| {
            patterns.iter().any(|p| p.strip_suffix('*').map_or(n == *p, |start| n.starts_with(start)))
        };
        let unknown: Vec<_> = names.iter().filter(|n| !passed.contains(**n) && !listed(n)).collect();
        assert!(unknown.is_empty(), "these tests fail and are not in left-out.tsv: {unknown:#?}");
    }
    let lost: Vec<&String> =
        known.iter().filter(|n| names.contains(&n.as_str()) && !passed.contains(*n)).collect();
    assert!(lost.is_empty(), "these tests passed before: {lost:#?}");
}

/// The small models of the project, with the results that ONNX Runtime gave.
#[test]
fn committed_models() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/models");
    let filter = std::env::var("TONGTU_TEST").unwrap_or_default();
    let mut failed = Vec::new();
    let mut count = 0;
    for e in std::fs::read_dir(folder).expect("the models are committed").flatten() {
        let name = e.file_name().to_string_lossy().into_owned();
        if !e.path().join("model.onnx").is_file() || !name.contains(&filter) {
            continue;
        }
        count += 1;
        match run(&e.path()) {
            Ok(false) => {}
            Ok(true) => failed.push(format!("{name}: needs constants")),
            Err(e) => failed.push(format!("{name}: {e}")),
        }
    }
    assert!(failed.is_empty(), "of {count}: {failed:#?}");
}

/// Operators of `com.microsoft` against ONNX Runtime: all tests pass, as far as they are there.
#[test]
fn microsoft_tests() {
    let Some(root) = cache().map(|c| c.join("onnx-microsoft")).filter(|r| r.join("index.txt").is_file())
    else {
        println!("the tests are not there; conformance/onnx/microsoft.py writes them");
        return;
    };
    let index = std::fs::read_to_string(root.join("index.txt")).unwrap();
    let failed: Vec<String> = index
        .lines()
        .filter_map(|name| run(&root.join(name)).err().map(|e| format!("{name}: {e}")))
        .collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

/// Real models, where they are: they load, and what they lower to is well formed. With `TONGTU_RUN=1` those whose names
/// contain `TONGTU_TEST` are run too.
#[test]
fn real_models() {
    let Some(folder) = cache().map(|c| c.join("models")).and_then(|m| std::fs::read_dir(m).ok()) else {
        return;
    };
    let filter = std::env::var("TONGTU_TEST").unwrap_or_default();
    let mut failed = Vec::new();
    for model in folder.flatten().map(|e| e.path()).filter(|p| p.join("model.onnx").is_file()) {
        let name = model.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !name.contains(&filter) {
            continue;
        }
        let start = std::time::Instant::now();
        let loaded = match load(model.join("model.onnx"), &Options::default()) {
            Ok(l) => l,
            Err(e) => {
                failed.push(format!("{name}: {e}"));
                continue;
            }
        };
        if let Err(e) = tongtu_graph::verify::verify(&loaded.module) {
            failed.push(format!("{name}: {} errors, first: {}", e.len(), e[0]));
        }
        let binds = loaded.module.graph.nodes.iter().filter(|n| n.op.name() == "bind").count();
        println!(
            "{name}: {} nodes, {binds} bound sizes, {:?}",
            loaded.module.graph.nodes.len(),
            start.elapsed()
        );
        if std::env::var_os("TONGTU_RUN").is_some() {
            match run(&model) {
                Ok(_) => println!("{name}: right"),
                Err(e) => failed.push(format!("{name}: {e}")),
            }
        }
    }
    for f in &failed {
        println!("FAIL {f}");
    }
    assert!(failed.is_empty(), "{} models fail", failed.len());
}
