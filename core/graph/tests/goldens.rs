//! Composites against results of NumPy and ONNX's reference evaluator (`data/make_goldens.py`), in both modes of the
//! evaluator, with the bounds that the evaluator computes.

use std::collections::BTreeMap;

use tongtu_graph::build::Builder;
use tongtu_graph::composite::*;
use tongtu_graph::eval::{Sampler, compare, run_tensors};
use tongtu_graph::op::{ConvSpec, Op};
use tongtu_graph::{Combiner, GraphError, Module, Type, ValueId, text, verify};
use tongtu_tensor::dim::Dim;
use tongtu_tensor::{DType, Num, Tensor};

type Built = Result<Vec<ValueId>, GraphError>;

fn dims(t: &Tensor) -> Vec<Dim> {
    t.shape().iter().map(|&n| Dim::from(n as i64)).collect()
}

fn one(v: Result<ValueId, GraphError>) -> Built {
    Ok(vec![v?])
}

fn axis(axis: usize, len: i64) -> ResizeAxis {
    ResizeAxis { axis, len: Dim::from(len), scale: None, crop: (0.0, 1.0) }
}

fn resize(b: &mut Builder<'_>, x: ValueId, h: i64, w: i64, mode: ResizeMode) -> Built {
    one(b.resize(x, &[axis(2, h), axis(3, w)], mode))
}

fn pool(window: &[i64], strides: &[i64], pads: &[(i64, i64)], dilation: &[i64]) -> PoolSpec {
    PoolSpec {
        strides: strides.to_vec(),
        pads: pads.iter().map(|&(l, h)| (Dim::from(l), Dim::from(h))).collect(),
        dilation: dilation.to_vec(),
        ..PoolSpec::new(window)
    }
}

fn recurrent(x: &[ValueId], lengths: Option<ValueId>, hidden: ValueId) -> RecurrentInputs {
    RecurrentInputs { x: x[0], w: x[1], r: x[2], bias: Some(x[3]), lengths, hidden: Some(hidden) }
}

fn define(name: &str, b: &mut Builder<'_>, x: &[ValueId]) -> Built {
    use Coordinates::*;
    use Interpolation::*;
    let f = Direction::Forward;
    match name {
        "sigmoid" => one(b.sigmoid(x[0])),
        "relu" => one(b.relu(x[0])),
        "hard_sigmoid" => one(b.hard_sigmoid(x[0], 0.2, 0.5)),
        "hard_swish" => one(b.hard_swish(x[0])),
        "silu" => one(b.silu(x[0])),
        "gelu" => one(b.gelu(x[0])),
        "gelu_tanh" => one(b.gelu_tanh(x[0])),
        "softplus" => one(b.softplus(x[0])),
        "softsign" => one(b.softsign(x[0])),
        "elu" => one(b.elu(x[0], 1.5)),
        "selu" => one(b.selu(x[0], 1.67, 1.05)),
        "leaky_relu" => one(b.leaky_relu(x[0], 0.1)),
        "thresholded_relu" => one(b.thresholded_relu(x[0], 1.0)),
        "celu" => one(b.celu(x[0], 0.7)),
        "mish" => one(b.mish(x[0])),
        "shrink" => one(b.shrink(x[0], 1.0, 0.5)),
        "softmax" => one(b.softmax(x[0], 1)),
        "log_softmax" => one(b.log_softmax(x[0], 1)),
        "log_sum_exp" => one(b.log_sum_exp(x[0], &[0, 2], false)),
        "mean" => one(b.mean(x[0], &[0, 2], true)),
        "variance" => one(b.variance(x[0], &[1, 2], false, 1)),
        "reduce_l1" => one(b.reduce_l1(x[0], &[2], false)),
        "reduce_l2" => one(b.reduce_l2(x[0], &[0], false)),
        "reduce_sum_square" => one(b.reduce_sum_square(x[0], &[0, 1], false)),
        "prod" => one(b.reduce(Combiner::Mul, x[0], &[2])),
        "layer_norm" => one(b.layer_norm(x[0], Some(x[1]), Some(x[2]), 1, 1e-5)),
        "rms_norm" => one(b.rms_norm(x[0], Some(x[1]), 2, 1e-6)),
        "lp_normalize1" => one(b.lp_normalize(x[0], 1, 1)),
        "lp_normalize2" => one(b.l2_normalize(x[0], 2)),
        "instance_norm" => one(b.instance_norm(x[0], x[1], x[2], 1e-5)),
        "group_norm" => one(b.group_norm(x[0], x[1], x[2], 3, 1e-5)),
        "batch_norm" => one(b.batch_norm(x[0], x[1], x[2], x[3], x[4], 1e-5)),
        "local_response_norm" => one(b.local_response_norm(x[0], 3, 0.1, 0.6, 1.5)),
        "mean_variance_normalization" => one(b.mean_variance_normalization(x[0], &[0, 2, 3])),
        "attention" => one(b.attention(&AttentionSpec::new(0.25), x[0], x[1], x[2], None)),
        "attention_mask" => one(b.attention(&AttentionSpec::new(0.25), x[0], x[1], x[2], Some(x[3]))),
        "attention_bias" => {
            let spec = AttentionSpec { softcap: Some(3.0), ..AttentionSpec::new(0.25) };
            one(b.attention(&spec, x[0], x[1], x[2], Some(x[3])))
        }
        "attention_causal" => {
            one(b.attention(&AttentionSpec::causal(0.25, Dim::from(1)), x[0], x[1], x[2], None))
        }
        "attention_window" => {
            let spec = AttentionSpec { left: Some(1), ..AttentionSpec::causal(0.25, Dim::from(1)) };
            one(b.attention(&spec, x[0], x[1], x[2], None))
        }
        "rotary" => one(b.rotary_embedding(x[0], x[1], x[2], false)),
        "rotary_interleaved" => one(b.rotary_embedding(x[0], x[1], x[2], true)),
        "nonzero" => Ok(vec![b.nonzero(x[0])?.0]),
        "top_k" => b.top_k(x[0], &Dim::from(4), 1, true).map(|(v, i)| vec![v, i]),
        "top_k_least" => b.top_k(x[0], &Dim::from(2), 0, false).map(|(v, i)| vec![v, i]),
        "arg_max" => one(b.arg_max(x[0], 1, false, false)),
        "arg_max_last" => one(b.arg_max(x[0], 1, false, true)),
        "arg_min" => one(b.arg_min(x[0], 0, false, false)),
        "cum_sum" => one(b.cum_sum(x[0], 1, false, false)),
        "cum_sum_reverse_exclusive" => one(b.cum_sum(x[0], 0, true, true)),
        "one_hot" => {
            let (on, off) = (b.float(DType::F32, 1.0)?, b.float(DType::F32, 0.0)?);
            one(b.one_hot(x[0], &Dim::from(3), on, off, 1))
        }
        "triangle" | "triangle_lower" => {
            let upper = name == "triangle";
            let k = b.int(DType::I64, if upper { 1 } else { -1 })?;
            one(b.triangle(x[0], k, upper))
        }
        "reverse_sequence" => one(b.reverse_sequence(x[0], x[1], 1, 0)),
        "compress" => one(b.compress(x[0], x[1], 1)),
        "max_pool" => one(b.max_pool(x[0], &pool(&[3, 2], &[2, 1], &[(1, 1), (0, 1)], &[1, 1]))),
        "max_pool_dilated" => one(b.max_pool(x[0], &pool(&[2, 3], &[1, 1], &[(0, 0), (0, 0)], &[3, 2]))),
        "avg_pool" | "avg_pool_padding" => {
            let spec = pool(&[3, 3], &[2, 2], &[(1, 1), (1, 1)], &[1, 1]);
            one(b.avg_pool(x[0], &spec, name == "avg_pool_padding"))
        }
        "lp_pool" => one(b.lp_pool(x[0], &PoolSpec::new(&[2, 2]), 3)),
        "depth_to_space" => one(b.depth_to_space(x[0], 2, DepthToSpace::DepthColumnRow)),
        "depth_to_space_crd" => one(b.depth_to_space(x[0], 2, DepthToSpace::ColumnRowDepth)),
        "space_to_depth" => one(b.space_to_depth(x[0], 2)),
        "conv" => {
            let pad = |l: i64, h: i64| (Dim::from(l), Dim::from(h));
            let spec = ConvSpec {
                groups: 2,
                strides: vec![2, 1],
                pads: vec![pad(1, 2), pad(0, 1)],
                dilation: vec![1, 2],
                ..ConvSpec::nchw(2)
            };
            one(b.conv(x[0], x[1], spec, DType::F32))
        }
        "conv_transpose" => {
            // A transposed convolution slides the flipped kernel, in and out swapped, over the dilated input.
            let kernel =
                b.slice(x[1], &[0, 0, 2, 1].map(Dim::from), &[4, 3, 3, 2].map(Dim::from), &[1, 1, -1, -1])?;
            let kernel = b.permute(kernel, &[1, 0, 2, 3])?;
            let pad = |k: i64, l: i64, h: i64| (Dim::from(k - 1 - l), Dim::from(k - 1 - h));
            let spec = ConvSpec {
                pads: vec![pad(3, 1, 0), pad(2, 0, 1)],
                input_dilation: vec![2, 3],
                ..ConvSpec::nchw(2)
            };
            one(b.conv(x[0], kernel, spec, DType::F32))
        }
        "quantize" => one(b.quantize(x[0], x[1], Some(x[2]), DType::U8, Granularity::Axis(0), true)),
        "dequantize" => one(b.dequantize(x[0], x[1], Some(x[2]), DType::F32, Granularity::Axis(0))),
        "quantize_block" => {
            one(b.quantize(x[0], x[1], None, DType::I8, Granularity::Block { axis: 1, size: 2 }, true))
        }
        "dequantize_block" => {
            one(b.dequantize(x[0], x[1], None, DType::F32, Granularity::Block { axis: 1, size: 2 }))
        }
        "dynamic_quantize" => Ok(b.dynamic_quantize(x[0])?.to_vec()),
        "resize_nearest" => {
            resize(b, x[0], 8, 10, ResizeMode::new(HalfPixel, Nearest(NearestMode::RoundPreferFloor)))
        }
        "resize_nearest_ceil" => {
            resize(b, x[0], 7, 3, ResizeMode::new(AlignCorners, Nearest(NearestMode::Ceil)))
        }
        "resize_linear" => resize(b, x[0], 8, 10, ResizeMode::new(HalfPixel, Linear)),
        "resize_linear_corners" => resize(b, x[0], 7, 9, ResizeMode::new(AlignCorners, Linear)),
        "resize_linear_asymmetric" => resize(b, x[0], 9, 3, ResizeMode::new(Asymmetric, Linear)),
        "resize_linear_pytorch" => resize(b, x[0], 1, 8, ResizeMode::new(PytorchHalfPixel, Linear)),
        "resize_cubic" => resize(b, x[0], 8, 7, ResizeMode::new(HalfPixel, Cubic(-0.75))),
        "resize_cubic_outside" => {
            let mode = ResizeMode { exclude_outside: true, ..ResizeMode::new(HalfPixel, Cubic(-0.5)) };
            resize(b, x[0], 8, 7, mode)
        }
        "resize_linear_antialias" | "resize_cubic_antialias" => {
            let how = if name == "resize_linear_antialias" { Linear } else { Cubic(-0.75) };
            resize(b, x[0], 2, 3, ResizeMode { antialias: true, ..ResizeMode::new(HalfPixel, how) })
        }
        "resize_crop" => {
            let mode = ResizeMode { extrapolation: Some(10.0), ..ResizeMode::new(CropAndResize, Linear) };
            let axes = [
                ResizeAxis { crop: (0.4, 0.6), ..axis(2, 3) },
                ResizeAxis { crop: (f64::from(0.6f32), f64::from(1.3f32)), ..axis(3, 4) },
            ];
            one(b.resize(x[0], &axes, mode))
        }
        "lstm" => {
            let spec = RecurrentSpec::new(f, &[Activation::Sigmoid, Activation::Tanh, Activation::Tanh]);
            Ok(b.lstm(recurrent(x, None, x[4]), Some(x[5]), Some(x[6]), &spec)?.to_vec())
        }
        "gru0" | "gru1" => {
            let spec = RecurrentSpec {
                linear_before_reset: name == "gru1",
                ..RecurrentSpec::new(f, &[Activation::Sigmoid, Activation::Tanh])
            };
            Ok(b.gru(recurrent(x, None, x[4]), &spec)?.to_vec())
        }
        "rnn" => Ok(b.rnn(recurrent(x, None, x[4]), &RecurrentSpec::new(f, &[Activation::Tanh]))?.to_vec()),
        "rnn_reverse" => {
            let spec = RecurrentSpec::new(Direction::Reverse, &[Activation::Tanh]);
            Ok(b.rnn(recurrent(x, Some(x[4]), x[5]), &spec)?.to_vec())
        }
        _ => panic!("no definition of case {name}"),
    }
}

/// Case name to its inputs and results.
fn cases() -> BTreeMap<String, (Vec<Tensor>, Vec<Tensor>)> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/goldens.npz");
    let mut cases: BTreeMap<String, BTreeMap<String, Tensor>> = BTreeMap::new();
    for (key, t) in tongtu_tensor::npy::load_npz(path).expect("goldens.npz reads") {
        let (case, part) = key.split_once('/').expect("a case and a part");
        cases.entry(case.to_string()).or_default().insert(part.to_string(), t);
    }
    let list = |parts: &BTreeMap<String, Tensor>, kind: &str| {
        (0..).map_while(|i| parts.get(&format!("{kind}{i}")).cloned()).collect::<Vec<_>>()
    };
    cases.into_iter().map(|(n, p)| (n, (list(&p, "i"), list(&p, "o")))).collect()
}

fn build(name: &str, inputs: &[Tensor]) -> Module {
    let mut m = Module::default();
    m.graph.name = name.to_string();
    let x: Vec<ValueId> =
        inputs.iter().map(|t| m.graph.add_input(Type::tensor(t.dtype(), dims(t)), None)).collect();
    let mut b = Builder::new(&mut m.graph, &mut m.symbols);
    let outputs = define(name, &mut b, &x).unwrap_or_else(|e| panic!("{name}: {e}"));
    m.graph.outputs = outputs;
    m
}

#[test]
fn composites_agree_with_numpy_and_onnx() {
    let mut problems = Vec::new();
    let cases = cases();
    assert!(cases.len() > 80, "{} cases", cases.len());
    for (name, (inputs, want)) in &cases {
        let m = build(name, inputs);
        if let Err(errors) = verify(&m) {
            problems.push(format!("{name}: {}", errors[0]));
            continue;
        }
        let got = match run_tensors(&m, inputs) {
            Ok(got) => got,
            Err(e) => {
                problems.push(format!("{name}: run: {e}"));
                continue;
            }
        };
        let bounds = match Sampler::new(&m.symbols, &m.graph, inputs.clone()).all() {
            Ok(b) => b,
            Err(e) => {
                problems.push(format!("{name}: sample: {e}"));
                continue;
            }
        };
        for (o, want) in want.iter().enumerate() {
            if got[o].shape() != want.shape() || got[o].dtype() != want.dtype() {
                problems.push(format!("{name}: result {o} is {:?}, not {:?}", got[o].shape(), want.shape()));
                continue;
            }
            for (i, (bound, got)) in bounds[o].iter().zip(got[o].iter()).enumerate() {
                if bound.value != got && !(bound.value.is_nan() && got.is_nan()) {
                    problems.push(format!(
                        "{name}: result {o}, element {i}: modes give {got} and {}",
                        bound.value
                    ));
                }
                // A bound that excludes little would prove little.
                if bound.err > 1e-3 * (got.to_f64().abs() + 1.0) && want.dtype().is_float() {
                    problems.push(format!("{name}: result {o}, element {i}: bound {} of {got}", bound.err));
                }
            }
            // The goldens are rounded from f64 (or come from another evaluator in f32).
            let mut loose = bounds[o].clone();
            for a in &mut loose {
                a.err += if want.dtype().is_float() { 4e-6 * (a.value.to_f64().abs() + 0.5) } else { 0.0 };
            }
            let actual: Vec<Num> = want.iter().collect();
            let c = compare(&loose, &actual);
            if !c.passes() {
                problems.push(format!("{name}: result {o}: {c:?}"));
            }
        }
    }
    assert!(problems.is_empty(), "{} problems\n{}", problems.len(), problems.join("\n"));
}

#[test]
fn composites_read_back_from_text() {
    for (name, (inputs, _)) in cases() {
        let m = build(&name, &inputs);
        let printed = text::print(&m);
        let back = text::parse(&printed).unwrap_or_else(|e| panic!("{name}: {e}\n{printed}"));
        assert_eq!(text::print(&back), printed);
        assert!(verify(&back).is_ok(), "{name}");
    }
}

#[test]
fn max_pool_gives_places() {
    let x = Tensor::from_slice(&[1, 1, 2, 3], &[1f32, 5.0, 2.0, 7.0, 0.0, 7.0]).unwrap();
    let mut m = Module::default();
    let v = m.graph.add_input(Type::tensor(DType::F32, dims(&x)), None);
    let mut b = Builder::new(&mut m.graph, &mut m.symbols);
    let (y, i) = b.max_pool_indices(v, &PoolSpec::new(&[2, 2]), false).unwrap();
    let (_, j) = b.max_pool_indices(v, &PoolSpec::new(&[2, 2]), true).unwrap();
    m.graph.outputs = vec![y, i, j];
    let out = run_tensors(&m, &[x]).unwrap();
    assert_eq!(out[0].to_f64_vec(), [7.0, 7.0]);
    assert_eq!(out[1].to_i64_vec().unwrap(), [3, 5]);
    // Column-major: w * 2 + h.
    assert_eq!(out[2].to_i64_vec().unwrap(), [1, 5]);
    assert!(matches!(m.graph.nodes[0].op, Op::Composite { .. }));
}
