//! The program as a user runs it, on the small models of `conformance/models`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value as Json;
use tongtu::{Tensor, npy};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn model(name: &str) -> String {
    root().join("conformance/models").join(name).join("model.onnx").display().to_string()
}

fn data(name: &str, set: usize) -> String {
    root().join("conformance/models").join(name).join(format!("test_data_set_{set}")).display().to_string()
}

/// A folder of one test's own.
fn folder(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

fn command() -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_tongtu"));
    // Tests share kernels with each other, not with the user.
    c.env("TONGTU_CACHE", Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache"));
    c
}

fn tongtu(args: &[&str]) -> Output {
    command().args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a command that must end with the given code; gives what it printed.
fn expect(code: i32, args: &[&str]) -> String {
    let out = tongtu(args);
    let (stdout, stderr) = (text(&out.stdout), text(&out.stderr));
    assert_eq!(out.status.code(), Some(code), "tongtu {args:?}\n{stdout}\n{stderr}");
    stdout + &stderr
}

fn json(code: i32, args: &[&str]) -> Json {
    let out = tongtu(args);
    let stdout = text(&out.stdout);
    assert_eq!(out.status.code(), Some(code), "tongtu {args:?}\n{stdout}\n{}", text(&out.stderr));
    serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("tongtu {args:?}: {e}\n{stdout}"))
}

#[test]
fn wrong_command_lines() {
    expect(2, &["run"]);
    expect(2, &["frobnicate"]);
    expect(2, &["run", &model("cnn"), "--dim", "N"]);
    let text = expect(2, &["run", &model("cnn"), "--input", "picture=random:1x3x8x8"]);
    assert!(text.contains("the model has no input 'picture'; its inputs are image"), "{text}");
    let text = expect(3, &["run", "/nonexistent/model.onnx"]);
    assert!(text.starts_with("error[A001]"), "{text}");
    let text = expect(3, &["run", &model("cnn")]);
    assert!(text.starts_with("error[A003]: no value for input 'image': f32[N, 3, H, W]"), "{text}");
    assert!(text.contains("hint: "));
    assert!(expect(0, &["--help"]).contains("Exit codes:"));
}

#[test]
fn broken_models_are_typed_errors() {
    let dir = folder("broken");
    let good = std::fs::read(model("cnn")).unwrap();
    let path = dir.join("cut.onnx");
    std::fs::write(&path, &good[..good.len() / 2]).unwrap();
    let report = json(3, &["--json", "inspect", path.to_str().unwrap()]);
    let code = report["error"]["code"].as_str().unwrap();
    assert!(code.starts_with('O'), "{report}");
    let bundle = dir.join("fake.tongtu");
    std::fs::write(&bundle, b"TONGTU\r\nrubbish").unwrap();
    assert!(expect(3, &["run", bundle.to_str().unwrap()]).starts_with("error[P104]"));
}

#[test]
fn inspection() {
    let info =
        json(0, &["--json", "inspect", &model("cnn"), "--dim", "N=2", "--dim", "H=32", "--dim", "W=32"]);
    assert_eq!(info["inputs"][0]["ty"], "f32[2, 3, 32, 32]");
    assert!(info["flops_value"].as_i64().unwrap() > 1_000_000);
    assert!(info["parameters"].as_u64().unwrap() > 1000);
    let info = json(0, &["--json", "inspect", &model("cnn")]);
    assert_eq!(info["inputs"][0]["ty"], "f32[N, 3, H, W]");
    assert!(info["operators"].as_array().unwrap().iter().any(|o| o[0] == "Conv"));
    assert!(expect(0, &["inspect", &model("cnn")]).contains("parameters"));
}

#[test]
fn data_sets_pass_compiled_and_interpreted() {
    for name in ["transformer", "control", "decode", "functions"] {
        for set in 0..2 {
            expect(0, &["run", &model(name), "--data-set", &data(name, set), "--threads", "1"]);
        }
        expect(0, &["run", &model(name), "--data-set", &data(name, 0), "--interpret"]);
    }
    // The comparison is no formality.
    let text = expect(
        1,
        &["run", &model("transformer"), "--data-set", &data("transformer", 1), "--rtol", "0", "--atol", "0"],
    );
    assert!(text.contains("DIFFERS"), "{text}");
}

#[test]
fn files_in_and_out() {
    let dir = folder("files");
    let x = Tensor::from_slice(&[5, 48], &(0..240).map(|i| i as f32 / 100.0).collect::<Vec<_>>()).unwrap();
    let input = dir.join("x.npy");
    npy::save(&input, &x).unwrap();
    let source = format!("x={}", input.display());
    let (a, b) = (dir.join("a"), dir.join("b"));
    expect(0, &["run", &model("external"), "--input", &source, "--output", a.to_str().unwrap()]);
    let y = npy::load(a.join("y.npy"), None).unwrap();
    assert_eq!(y.shape(), [5, 16]);
    // Through .npz in and .pb out: the same bits.
    let archive = dir.join("all.npz");
    npy::save_npz(&archive, [("x", &x)]).unwrap();
    let args =
        ["--input", archive.to_str().unwrap(), "--output", b.to_str().unwrap(), "--output-format", "pb"];
    expect(0, &[&["run", &model("external")], &args[..]].concat());
    let again = tongtu::onnx::read_file(&b.join("y.pb"), tongtu::onnx::FileKind::Tensor).unwrap();
    assert!(again.as_tensor().unwrap().same_bits(&y));
    // Random inputs are seeded, and sizes come from --dim.
    let run = |dims: &str, seed: &str, out: &str| {
        let out = dir.join(out);
        expect(
            0,
            &["run", &model("external"), "--dim", dims, "--seed", seed, "--output", out.to_str().unwrap()],
        );
        npy::load(out.join("y.npy"), None).unwrap()
    };
    let first = run("N=3", "7", "r1");
    assert_eq!(first.shape(), [3, 16]);
    assert!(first.same_bits(&run("N=3", "7", "r2")) && !first.same_bits(&run("N=3", "8", "r3")));
    let text = expect(3, &["run", &model("external"), "--input", "x=random:2x47"]);
    assert!(text.starts_with("error[R004]: input 'x', dim 1: must be 48"), "{text}");
}

#[test]
fn bundles_run_like_models() {
    let dir = folder("bundle");
    let bundle = dir.join("t.tongtu").display().to_string();
    let report = json(0, &["--json", "compile", &model("transformer"), "-o", &bundle]);
    assert!(report["bytes"].as_u64().unwrap() > 10_000);
    expect(0, &["run", &bundle, "--data-set", &data("transformer", 1), "--rtol", "1e-3", "--atol", "1e-5"]);
    let info = json(0, &["--json", "inspect", &bundle]);
    assert_eq!(info["bundle"]["model"], "model");
    assert_eq!(info["constants_whole"], true);
    let bytes = std::fs::read(&bundle).unwrap();
    for cut in [20, 200, bytes.len() / 2, bytes.len() - 1] {
        let path = dir.join("cut.tongtu");
        std::fs::write(&path, &bytes[..cut]).unwrap();
        assert!(expect(3, &["run", path.to_str().unwrap()]).starts_with("error[P10"));
    }
}

#[test]
fn verification_and_profile() {
    let report = json(0, &["--json", "verify", &model("transformer"), "--data-set", &data("transformer", 1)]);
    assert_eq!(report["passes"], true);
    assert!(report["checked"].as_u64().unwrap() > 1000);
    assert!(report["worst_ratio"].as_f64().unwrap() <= 1.0);
    let trace = folder("trace").join("t.json");
    let args = [
        "--json",
        "profile",
        &model("transformer"),
        "--data-set",
        &data("transformer", 1),
        "--no-peak",
        "--trace",
    ];
    let report = json(0, &[&args[..], &[trace.to_str().unwrap()]].concat());
    assert!(!report["kernels"].as_array().unwrap().is_empty());
    let trace: Json = serde_json::from_slice(&std::fs::read(trace).unwrap()).unwrap();
    assert!(trace["traceEvents"].as_array().unwrap().iter().any(|e| e["ph"] == "X"));
}

#[test]
fn benchmarks() {
    let args = ["--json", "bench", &model("transformer"), "--dim", "batch=1", "--dim", "sequence=8"];
    let report = json(0, &[&args[..], &["--threads", "1", "--runs", "5"]].concat());
    assert_eq!(report["samples_ms"].as_array().unwrap().len(), 5);
    assert_eq!((&report["threads"], &report["runs"]), (&Json::from(1), &Json::from(5)));
    for name in ["median_ms", "compile_ms", "cached_start_ms", "peak_rss_bytes"] {
        assert!(report[name].as_f64().unwrap() > 0.0, "{name}");
    }
    let (cold, cached) =
        (report["compile_ms"].as_f64().unwrap(), report["cached_start_ms"].as_f64().unwrap());
    assert!(cached < cold, "the cache saves nothing: {cached} ms of {cold} ms");
}

#[test]
fn the_kit_runs_here() {
    let dir = folder("kit");
    let html = dir.join("report.html").display().to_string();
    let report = json(0, &["--json", "conform", "--chip", "host", "--filter", "program/", "--html", &html]);
    assert!(report["counts"]["pass"].as_u64().unwrap() >= 17 && report["counts"]["fail"] == 0, "{report}");
    assert!(std::fs::read_to_string(html).unwrap().contains("<h1>Conformance of host</h1>"));
    let list = dir.join("list.tsv");
    std::fs::write(&list, "program/top-k\tfail\tthought to be slow\n").unwrap();
    let args = ["conform", "--filter", "program/top-k", "--list", list.to_str().unwrap()];
    assert!(expect(1, &args).contains("UNEXPECTED  program/top-k/indices: pass, the list says fail"));
    let found = json(0, &["--json", "conform", "--random", "20", "--seed", "3"]);
    assert!(found["fault"].is_null() && found["tried"] == 20, "{found}");
    expect(3, &["conform", "--chip", "no-such-chip"]);
}

#[test]
fn conformance_lists_only_grow() {
    let list = folder("conform").join("passing.txt");
    let list = list.to_str().unwrap();
    let suite = root().join("conformance/models");
    let suite = suite.to_str().unwrap();
    let args = ["--json", "conform", "onnx", suite, "--filter", "e", "--list", list];
    let report = json(0, &[&args[..], &["--update"]].concat());
    let passed = report["counts"]["passed"].as_u64().unwrap();
    assert!(passed >= 3, "{report}");
    assert_eq!(std::fs::read_to_string(list).unwrap().lines().count() as u64, passed);
    // A listed test that does not pass is an error; one that is not there is not asked for.
    std::fs::write(list, "broken\ndecode\nelsewhere\n").unwrap();
    let dir = folder("conform-suite");
    std::fs::create_dir(dir.join("broken")).unwrap();
    std::fs::write(dir.join("broken/model.onnx"), b"no model").unwrap();
    let report = json(1, &["--json", "conform", "onnx", dir.to_str().unwrap(), "--list", list]);
    assert_eq!(report["lost"], serde_json::json!(["broken"]));
    assert_eq!(report["counts"]["failed"], 1);
}

#[test]
fn the_machine_and_its_chips() {
    let chips = json(0, &["--json", "chips"]);
    assert!(chips.as_array().unwrap().iter().any(|c| c["name"] == "ascend-910b"));
    let shown = expect(0, &["chips", "show", "x86-64-v4"]);
    assert!(shown.contains("datasheet") || shown.contains("measured"), "{shown}");
    expect(3, &["chips", "show", "abacus"]);
    assert_eq!(json(0, &["--json", "devices"])[0]["name"], "cpu");
    let doctor = json(0, &["--json", "doctor", "--quick"]);
    assert_eq!((&doctor["healthy"], &doctor["cpu_compiler"]), (&Json::from(true), &Json::from(true)));
}

#[test]
fn completions_and_manual() {
    assert!(expect(0, &["completions", "bash"]).contains("_tongtu"));
    assert!(expect(0, &["man"]).contains(".TH tongtu"));
    let dir = folder("man");
    expect(0, &["man", "--dir", dir.to_str().unwrap()]);
    assert!(dir.join("tongtu-run.1").is_file());
}

/// An ONNX file of one node that adds to an input of 4 numbers, by an operator of a domain.
fn one_node(domain: &str, op: &str) -> Vec<u8> {
    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, bytes.len() as u8], bytes].concat()
    }
    let port = |name: &str| {
        let dims = field(1, &[1 << 3, 4]);
        let tensor = [&[1 << 3, 1][..], &field(2, &dims)].concat();
        [field(1, name.as_bytes()), field(2, &field(1, &tensor))].concat()
    };
    let node = [
        field(1, b"x"),
        field(1, b"x"),
        field(2, b"y"),
        field(3, b"the node"),
        field(4, op.as_bytes()),
        field(7, domain.as_bytes()),
    ]
    .concat();
    let graph = [field(1, &node), field(2, b"g"), field(11, &port("x")), field(12, &port("y"))].concat();
    let set =
        |domain: &str, version: u8| field(8, &[field(1, domain.as_bytes()), vec![2 << 3, version]].concat());
    [vec![1 << 3, 8], field(7, &graph), set("", 17), set("other", 1)].concat()
}

#[test]
fn port_answers_by_its_exit_code() {
    let dir = folder("port");
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.join(name);
        std::fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    let good = file("good.onnx", &one_node("", "Add"));
    let page = dir.join("page.html").display().to_string();
    let r = json(0, &["port", &good, "--to", "host,x86-64-v2", "--html", &page, "--json"]);
    assert_eq!(
        (r["version"].as_u64(), r["verdict"].as_str(), r["depth"].as_str()),
        (Some(1), Some("works"), Some("prove"))
    );
    assert_eq!(r["chips"][0]["proof"]["failed"], 0);
    assert_eq!(r["chips"][0]["total"]["flops"], 4.0);
    assert_eq!(r["chips"][0]["proof"]["quality"][0]["max_error"], 0.0);
    assert!(std::fs::read_to_string(&page).unwrap().contains("x86-64-v2"));
    // An operator of nobody's: named with its node, on every chip, without running anything.
    let bad = file("bad.onnx", &one_node("other", "Frobnicate"));
    let r = json(2, &["port", &bad, "--to", "host,ascend-910b", "--check", "--json"]);
    assert_eq!(r["exit"], 2);
    for chip in r["chips"].as_array().unwrap() {
        assert_eq!(chip["findings"][0]["code"], "M002");
        assert!(chip["findings"][0]["at"].as_str().unwrap().contains("the node"), "{chip}");
    }
    // Errors are 3, those of the command line too: 2 is an answer here.
    expect(3, &["port", &dir.join("none.onnx").display().to_string(), "--to", "host"]);
    expect(3, &["port", &good, "--to", "no-such-chip"]);
    expect(3, &["port", &good, "--to", "host", "--no-such-option"]);
    expect(3, &["port", &good, "--to", "host", "--dim", "absent=3"]);
}

/// f64, which Ascend does not have: the chip refuses, or the host helps and the report says with what.
#[test]
fn the_host_helps_only_when_it_is_allowed_to() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../conformance/port/doubles.onnx");
    let args = ["port", file, "--to", "ascend-950", "--check", "--dim", "count=3"];
    let out = expect(2, &args);
    assert!(out.contains("[M001] MatMul") && out.contains("--allow-host"), "{out}");
    let r = json(1, &[&args[..], &["--allow-host", "--json"]].concat());
    let placement = r["chips"][0]["placement"].as_array().unwrap();
    let ops: Vec<&str> = placement.iter().map(|p| p["op"].as_str().unwrap()).collect();
    assert_eq!(ops, ["Cast, Exp", "MatMul"]);
    // The 3 x 16 numbers in four bytes, and the product's 3 x 3 in eight: what is between the two stays on the host.
    assert_eq!(placement[0]["bytes"], f64::from(4 * 3 * 16));
    assert_eq!(placement[1]["bytes"], f64::from(8 * 3 * 3));
    assert!(placement[1]["why"].as_str().unwrap().contains("no elements of type f64"));
}

#[test]
fn wrong_options_come_with_what_to_do() {
    let file = model("transformer");
    for args in [
        vec!["run", &file, "--input", "nothing"],
        vec!["run", &file, "--input", "nobody=random:1"],
        vec!["run", &file, "--data-set", "/nowhere"],
        vec!["port", &file, "--to", "host", "--simulate", "riscv64"],
        vec!["port", &file, "--to", "host,riscv64", "--on", "emulator:riscv64"],
    ] {
        let out = tongtu(&args);
        assert!(text(&out.stderr).contains("hint: "), "{args:?}\n{}", text(&out.stderr));
    }
}

#[test]
fn port_checks_models_whose_weights_are_missing() {
    let dir = folder("port-weights");
    let file = dir.join("model.onnx").display().to_string();
    std::fs::copy(model("external"), &file).unwrap();
    let checked =
        |path: &str| json(0, &["port", path, "--to", "x86-64-v3", "--check", "--json"])["chips"].clone();
    assert_eq!(checked(&file), checked(&model("external")));
    assert!(expect(3, &["port", &file, "--to", "host"]).contains("O006"));
}

#[test]
fn port_checks_a_decoder_from_its_configuration() {
    let file = folder("port-config").join("config.json");
    let config = r#"{"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "vocab_size": 32000, "torch_dtype": "float16"}"#;
    std::fs::write(&file, config).unwrap();
    let file = file.display().to_string();
    let step =
        ["port", &file, "--to", "x86-64-amx", "--check", "-d", "sequence=1", "-d", "past=100", "--json"];
    let r = json(0, &step);
    let chip = &r["chips"][0];
    // Two bytes a parameter, of all but the table of tokens each used once: a product and a sum.
    let parameters = 6_738_415_616f64;
    assert!((chip["memory"]["weights"].as_f64().unwrap() / (2.0 * parameters) - 1.0).abs() < 0.01);
    let products = 2.0 * (parameters - 32000.0 * 4096.0);
    let flops = chip["total"]["flops"].as_f64().unwrap();
    assert!((1.0..1.02).contains(&(flops / products)), "{flops}");
    // Without weights it does not run.
    assert!(expect(3, &["port", &file, "--to", "host"]).contains("--check"));
}
