//! The check against figures worked out by hand, and a back end that lacks things.

use tongtu_chip::Chip;
use tongtu_graph::{Builder, Loc, Module, Type};
use tongtu_plan::backend::{Artifact, CompileError, Compiler, Support as Answer};
use tongtu_port::report::{Bound, Support, Verdict};
use tongtu_port::{Settings, check};
use tongtu_tensor::dim::Dim;
use tongtu_tensor::scalar::{Binary, Unary};
use tongtu_tensor::{DType, Tensor};
use tongtu_tile::{Op, Ty};

/// Has everything but the instructions named.
struct Without(&'static [&'static str]);

impl Compiler for Without {
    fn name(&self) -> &str {
        "without"
    }
    fn supports(&self, op: &Op, _: &[Ty], _: &[Ty], _: &Chip) -> Answer {
        match self.0.contains(&op.name()) {
            true => Answer::No(format!("it has no {}", op.name())),
            false => Answer::Native,
        }
    }
    fn compile(&self, _: &tongtu_tile::Module, _: &Chip) -> Result<Artifact, CompileError> {
        panic!("a check compiles nothing");
    }
}

fn weight(shape: &[usize], absent: bool) -> Tensor {
    match absent {
        true => Tensor::absent(DType::F32, shape).unwrap(),
        false => Tensor::from_fn(DType::F32, shape, |i| (((i * 7 + 3) % 11) as f64 - 5.0).into()).unwrap(),
    }
}

/// `tanh(x w + b)`, then `sqrt`, of `x [rows, 128]`, `w [128, 256]`.
fn model(absent: bool) -> Module {
    let mut m = Module::default();
    let rows = Dim::sym(m.symbols.intern("rows"));
    let x = m.graph.add_input(Type::tensor(DType::F32, [rows, Dim::from(128)]), Some("x".into()));
    let mut b = Builder::new(&mut m.graph, &mut m.symbols);
    b.loc = Loc::new("fc (Linear)");
    let w = b.constant(weight(&[128, 256], absent)).unwrap();
    let y = b.contract(x, w, &[], &[(1, 0)], DType::F32).unwrap();
    let bias = b.constant(weight(&[256], absent)).unwrap();
    let y = b.binary(Binary::Add, y, bias).unwrap();
    b.loc = Loc::new("act (Tanh)");
    let y = b.unary(Unary::Tanh, y).unwrap();
    b.loc = Loc::new("root (Sqrt)");
    let y = b.unary(Unary::Sqrt, y).unwrap();
    m.graph.outputs = vec![y];
    m
}

fn rows(n: i64) -> Settings {
    Settings { sizes: vec![("rows".to_string(), n)], ..Settings::default() }
}

#[test]
fn figures_are_those_by_hand() {
    let chip = Chip::builtin("x86-64-v3").unwrap();
    let r = check(&model(false), &chip, &Without(&[]), &rows(64)).unwrap();
    assert_eq!(r.verdict, Verdict::Works);
    // A multiply-add is two; a sum, a tanh and a root each one.
    assert_eq!(r.total.flops, (64 * 256 * (2 * 128 + 3)) as f64);
    // x, w, b and y, once each.
    assert_eq!(r.total.bytes, (4 * (64 * 128 + 128 * 256 + 256 + 64 * 256)) as f64);
    assert_eq!(r.memory.weights, 4 * (128 * 256 + 256));
    assert_eq!(r.memory.inputs, 4 * 64 * 128);
    let time = r.total.flops / chip.f32_peak().unwrap() * 1e6;
    let kernel = &r.kernels[0];
    assert_eq!((r.kernels.len(), kernel.bound), (1, Bound::Compute));
    assert!((kernel.limit_us.unwrap() / time - 1.0).abs() < 1e-12);
    assert_eq!(r.ops.iter().map(|o| o.support).collect::<Vec<_>>(), [Support::Native; 3]);
}

#[test]
fn weights_that_are_absent_change_nothing() {
    for chip in ["x86-64-v2", "x86-64-amx", "ascend-910b"] {
        let chip = Chip::builtin(chip).unwrap();
        let with = check(&model(false), &chip, &Without(&[]), &rows(3)).unwrap();
        let without = check(&model(true), &chip, &Without(&[]), &rows(3)).unwrap();
        assert_eq!(with, without);
    }
}

#[test]
fn everything_that_is_lacking_is_named_at_once() {
    let chip = Chip::builtin("x86-64-v3").unwrap();
    let r = check(&model(true), &chip, &Without(&["tanh", "sqrt"]), &rows(8)).unwrap();
    assert_eq!(r.verdict, Verdict::Fails);
    let failures: Vec<&str> = r.findings.iter().filter(|f| f.code == "M001").map(|f| f.at.as_str()).collect();
    assert_eq!(failures, ["act (Tanh)", "root (Sqrt)"]);
    let support = |at: &str| r.ops.iter().find(|o| o.at == at).unwrap().support;
    assert_eq!(support("fc (Linear)"), Support::Native);
    assert_eq!(support("act (Tanh)"), Support::Unsupported);
    assert!(r.placement.is_empty());
}

#[test]
fn the_host_is_used_only_when_that_is_allowed() {
    let chip = Chip::builtin("x86-64-v3").unwrap();
    let settings = Settings { allow_host: true, ..rows(8) };
    let r = check(&model(true), &chip, &Without(&["tanh"]), &settings).unwrap();
    assert_eq!(r.verdict, Verdict::Reservations);
    let [p] = &r.placement[..] else { panic!("{:?}", r.placement) };
    assert_eq!((p.op.as_str(), p.place.as_str()), ("Tanh", "host"));
    // The kernel's input and its result; weights are there already.
    assert_eq!(p.bytes, (4 * 8 * (128 + 256)) as f64);
    assert!(p.why.contains("it has no tanh"), "{}", p.why);
}

#[test]
fn a_convolution_by_hand() {
    use tongtu_graph::ConvSpec;
    let mut m = Module::default();
    let dims = [1, 16, 32, 32].map(Dim::from);
    let x = m.graph.add_input(Type::tensor(DType::F32, dims), None);
    let mut b = Builder::new(&mut m.graph, &mut m.symbols);
    let k = b.constant(weight(&[24, 16, 3, 3], true)).unwrap();
    let y = b.conv(x, k, ConvSpec::nchw(2), DType::F32).unwrap();
    m.graph.outputs = vec![y];
    let chip = Chip::builtin("x86-64-v3").unwrap();
    let r = check(&m, &chip, &Without(&[]), &Settings::default()).unwrap();
    // 30 x 30 places of 24 channels, each of 16 x 3 x 3 products and sums.
    assert_eq!(r.total.flops, f64::from(30 * 30 * 24 * 16 * 9 * 2));
}
