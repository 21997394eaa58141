//! Results in the caller's tensors: written in place, run after run, and never into a tensor that somebody else holds.
#![cfg(feature = "llvm")]

use std::path::Path;

use tongtu::onnx::{FileKind, read_file};
use tongtu::{HostValue, Options, Session, Value};

fn bytes(values: &[Value]) -> Vec<Vec<u8>> {
    let tensor = |v: &Value| match v {
        Value::Tensor(t) => t.bytes().to_vec(),
        _ => panic!("a tensor is wanted"),
    };
    values.iter().map(tensor).collect()
}

fn places(values: &[Value]) -> Vec<usize> {
    let place = |v: &Value| match v {
        Value::Tensor(t) => t.bytes().as_ptr().addr(),
        _ => panic!("a tensor is wanted"),
    };
    values.iter().map(place).collect()
}

#[test]
fn results_are_written_where_the_last_ones_were() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/models");
    for name in ["cnn", "transformer", "llama-layer", "quantised", "windows", "recurrent", "control"] {
        let at = models.join(name);
        let session =
            Session::load(at.join("model.onnx"), &Options::host().threads(1).without_model_cache()).unwrap();
        let data = at.join("test_data_set_0");
        let input = |i: usize| match read_file(&data.join(format!("input_{i}.pb")), FileKind::Tensor).unwrap()
        {
            HostValue::Tensor(t) => Value::Tensor(t),
            other => Value::Host(other),
        };
        let inputs: Vec<Value> = (0..session.inputs().len()).map(input).collect();
        let mut context = session.context();
        let want = bytes(&context.run(&inputs).unwrap());
        let mut outputs = Vec::new();
        context.run_into(&inputs, &mut outputs).unwrap();
        assert!(bytes(&outputs) == want, "{name}: the first run");
        let before = places(&outputs);
        context.run_into(&inputs, &mut outputs).unwrap();
        assert!(bytes(&outputs) == want, "{name}: the second run");
        assert_eq!(places(&outputs), before, "{name}");
        // What is held elsewhere is not written to.
        let held = outputs.clone();
        let zeros = |v: &Value| match v {
            Value::Tensor(t) => Value::Tensor(tongtu::Tensor::zeros(t.dtype(), t.shape()).unwrap()),
            other => other.clone(),
        };
        let others: Vec<Value> = inputs.iter().map(zeros).collect();
        context.run_into(&others, &mut outputs).unwrap();
        assert!(bytes(&held) == want, "{name}: a held result changed");
        let mut wrong = vec![Value::Tensor(tongtu::Tensor::zeros(tongtu::DType::I8, &[3]).unwrap())];
        context.run_into(&inputs, &mut wrong).unwrap();
        assert!(bytes(&wrong) == want, "{name}: into tensors of another kind");
    }
}
