//! What loading a model gives and refuses, on the small models of the project.

use std::path::{Path, PathBuf};

use tongtu_graph::Type;
use tongtu_onnx::{OnnxError, Options, input_names, load, load_bytes};
use tongtu_tensor::dim::Dim;
use tongtu_tensor::{DType, Tensor};

fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/models").join(name).join("model.onnx")
}

fn hostile(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/hostile").join(name).with_extension("onnx")
}

fn dims(n: &[(&str, i64)]) -> Options {
    Options { dims: n.iter().map(|(n, v)| (n.to_string(), *v)).collect(), ..Options::default() }
}

#[test]
fn ports_have_the_names_and_dims_of_the_model() {
    let l = load(model("decode"), &Options::default()).unwrap();
    let names: Vec<&str> = l.inputs.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["x", "past_key", "past_value"]);
    assert_eq!(input_names(model("decode")).unwrap(), names);
    assert_eq!(l.outputs.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["y", "key", "value"]);
    let symbols = &l.module.symbols;
    let Type::Tensor { dtype, dims } = &l.inputs[1].ty else { panic!("not a tensor") };
    assert_eq!(*dtype, DType::F32);
    let shown: Vec<String> = dims.iter().map(|d| d.display(symbols).to_string()).collect();
    assert_eq!(shown, ["batch", "3", "past", "8"]);
    // One name is one symbol, in whichever input it occurs.
    let Type::Tensor { dims: x, .. } = &l.inputs[0].ty else { panic!("not a tensor") };
    assert_eq!(x[0], dims[0]);
    assert_eq!(l.producer, "tongtu");
    assert!(l.opsets.contains_key(""));
    assert!(!l.operators.is_empty());
}

#[test]
fn dims_can_be_given() {
    let l = load(model("decode"), &dims(&[("batch", 2), ("past", 0)])).unwrap();
    let Type::Tensor { dims: d, .. } = &l.inputs[1].ty else { panic!("not a tensor") };
    assert_eq!(*d, [2, 3, 0, 8].map(Dim::from));
    let Err(OnnxError::UnknownDim { name, have }) = load(model("decode"), &dims(&[("bach", 2)])) else {
        panic!("accepted")
    };
    assert_eq!(name, "bach");
    assert_eq!(have, "batch, new, past");
}

#[test]
fn inputs_can_be_constants() {
    let plain = load(model("growing"), &Options::default()).unwrap();
    let turns = plain.inputs.iter().find(|p| p.name == "turns").unwrap();
    let (dtype, _) = turns.ty.as_tensor().unwrap();
    let value = Tensor::scalar(dtype, 3.into());
    let options = Options { constants: vec![("turns".into(), value)], ..Options::default() };
    let l = load(model("growing"), &options).unwrap();
    assert_eq!(l.inputs.len(), plain.inputs.len() - 1);
}

#[test]
fn sizes_computed_from_shapes_add_nothing_to_run() {
    // Shape, Gather, Concat and Reshape of the exporters are followed while loading.
    let l = load(model("transformer"), &Options::default()).unwrap();
    assert!(l.operators.iter().any(|(n, _)| n == "Shape"));
    let bound = l.module.graph.nodes.iter().filter(|n| n.op.name() == "bind").count();
    assert_eq!(bound, 0);
}

#[test]
fn nodes_keep_where_they_come_from() {
    let l = load(model("functions"), &Options::default()).unwrap();
    let locs: Vec<String> = l.module.graph.nodes.iter().map(|n| n.loc.to_string()).collect();
    assert!(locs.iter().all(|l| l != "unknown location"), "{locs:?}");
    // A node of a function is found under the node that calls it.
    assert!(locs.iter().any(|l| l.contains('/')), "{locs:?}");
}

#[test]
fn external_data_needs_the_folder() {
    let bytes = std::fs::read(model("external")).unwrap();
    let Err(e) = load_bytes(bytes, &Options::default()) else { panic!("accepted") };
    assert!(matches!(e, OnnxError::External { .. }), "{e}");
    for file in
        ["external-parent", "external-absolute", "external-missing", "external-length", "external-negative"]
    {
        let e = load(hostile(file), &Options::default()).expect_err(file);
        assert!(matches!(e, OnnxError::External { .. }), "{file}: {e}");
    }
}

#[test]
fn errors_name_the_node_and_the_operator() {
    let e = load(hostile("unknown-op"), &Options::default()).expect_err("an unknown operator");
    let OnnxError::Unsupported(issues) = &e else { panic!("{e}") };
    assert!(!issues.is_empty() && issues.iter().all(|i| i.op.contains("opset") && !i.node.is_empty()));
    let e = load(hostile("bad-permutation"), &Options::default()).expect_err("a wrong permutation");
    let OnnxError::Node(issue) = &e else { panic!("{e}") };
    assert!(issue.op.starts_with("Transpose"), "{issue}");
    assert!(matches!(load(hostile("cycle"), &Options::default()), Err(OnnxError::Invalid(_))));
    assert!(matches!(load(hostile("function-bomb"), &Options::default()), Err(OnnxError::Limit { .. })));
    assert!(matches!(load(Path::new("no such file"), &Options::default()), Err(OnnxError::Io { .. })));
}
