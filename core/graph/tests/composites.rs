//! Composites that the goldens leave out, against results worked out by hand.

use tongtu_graph::build::Builder;
use tongtu_graph::composite::*;
use tongtu_graph::eval::run_tensors;
use tongtu_graph::{GraphError, Module, Type, ValueId, verify};
use tongtu_tensor::dim::Dim;
use tongtu_tensor::{DType, Num, Tensor};

type Built = Result<Vec<ValueId>, GraphError>;

fn evaluate(inputs: &[Tensor], define: impl FnOnce(&mut Builder<'_>, &[ValueId]) -> Built) -> Vec<Tensor> {
    let mut m = Module::default();
    let x: Vec<ValueId> = inputs
        .iter()
        .map(|t| {
            let dims: Vec<Dim> = t.shape().iter().map(|&n| Dim::from(n as i64)).collect();
            m.graph.add_input(Type::tensor(t.dtype(), dims), None)
        })
        .collect();
    let outputs = define(&mut Builder::new(&mut m.graph, &mut m.symbols), &x).unwrap();
    m.graph.outputs = outputs;
    assert_eq!(verify(&m), Ok(()));
    run_tensors(&m, inputs).unwrap()
}

fn f32s(shape: &[usize], x: &[f32]) -> Tensor {
    Tensor::from_slice(shape, x).unwrap()
}

fn near(t: &Tensor, want: &[f64]) {
    let got = t.to_f64_vec();
    assert_eq!(got.len(), want.len());
    assert!(
        got.iter().zip(want).all(|(g, w)| (g - w).abs() <= 1e-6 * w.abs().max(1.0)),
        "{got:?}, not {want:?}"
    );
}

#[test]
fn bounds_and_slopes() {
    let x = f32s(&[4], &[-3.0, -1.0, 2.0, f32::NAN]);
    let (low, high) =
        (Tensor::scalar(DType::F32, Num::Float(-2.0)), Tensor::scalar(DType::F32, Num::Float(1.0)));
    let y = evaluate(&[x.clone(), low, high], |b, x| {
        Ok(vec![
            b.clip(x[0], Some(x[1]), Some(x[2]))?,
            b.clip(x[0], None, Some(x[2]))?,
            b.clip(x[0], Some(x[1]), None)?,
        ])
    });
    assert_eq!(y[0].to_f64_vec()[..3], [-2.0, -1.0, 1.0]);
    assert!(y[0].to_f64_vec()[3].is_nan());
    assert_eq!(y[1].to_f64_vec()[..3], [-3.0, -1.0, 1.0]);
    assert_eq!(y[2].to_f64_vec()[..3], [-2.0, -1.0, 2.0]);
    let x = Tensor::from_slice(&[2, 2], &[-4i32, 3, -2, 1]).unwrap();
    let slope = Tensor::from_slice(&[2, 1], &[2i32, 3]).unwrap();
    let y = evaluate(&[x, slope], |b, x| Ok(vec![b.prelu(x[0], x[1])?]));
    assert_eq!(y[0].to_f64_vec(), [-8.0, 3.0, -6.0, 1.0]);
}

#[test]
fn small_floats_are_widened_inside() {
    // exp(12) overflows nothing in f32; in f16 it would, and the result would be zero.
    let x = Tensor::from_fn(DType::F16, &[1], |_| Num::Float(-12.0)).unwrap();
    let y = evaluate(&[x], |b, x| Ok(vec![b.sigmoid(x[0])?]));
    assert_eq!(y[0].dtype(), DType::F16);
    assert!((y[0].to_f64_vec()[0] - 6.144e-6).abs() < 6e-8);
    // The mean of 60000 and 60000 is not the infinity that their sum is in f16.
    let x = Tensor::from_fn(DType::F16, &[2], |_| Num::Float(60000.0)).unwrap();
    let y = evaluate(&[x], |b, x| Ok(vec![b.mean(x[0], &[0], false)?]));
    assert_eq!(y[0].to_f64_vec(), [60000.0]);
}

#[test]
fn norms_and_statistics() {
    let x = f32s(&[1, 4], &[1.0, 2.0, 3.0, 6.0]);
    let y =
        evaluate(std::slice::from_ref(&x), |b, x| Ok(b.layer_norm_stats(x[0], None, None, 1, 0.5)?.to_vec()));
    // The variance is 3.5, so the deviation with epsilon is 2.
    near(&y[0], &[-1.0, -0.5, 0.0, 1.5]);
    near(&y[1], &[3.0]);
    near(&y[2], &[0.5]);
    assert_eq!(y[1].shape(), [1, 1]);
    let y = evaluate(&[x], |b, x| {
        Ok(vec![
            b.lp_norm(x[0], &[1], 1, true)?,
            b.lp_norm(x[0], &[1], 2, false)?,
            b.lp_norm(x[0], &[0, 1], 3, false)?,
        ])
    });
    near(&y[0], &[12.0]);
    near(&y[1], &[50f64.sqrt()]);
    near(&y[2], &[252f64.cbrt()]);
    assert_eq!((y[0].shape(), y[1].shape()), (&[1, 1][..], &[1][..]));
    // Infinities make no NaN.
    let x = f32s(&[2, 2], &[f32::NEG_INFINITY; 4]);
    let y = evaluate(&[x], |b, x| Ok(vec![b.log_sum_exp(x[0], &[1], false)?]));
    assert_eq!(y[0].to_f64_vec(), [f64::NEG_INFINITY; 2]);
}

#[test]
fn scores_of_attention() {
    let q = f32s(&[1, 1, 2, 1], &[1.0, 2.0]);
    let k = f32s(&[1, 1, 2, 1], &[1.0, -1.0]);
    let v = f32s(&[1, 1, 2, 1], &[10.0, 20.0]);
    let spec = AttentionSpec { softcap: Some(2.0), ..AttentionSpec::causal(0.5, Dim::from(0)) };
    let stage = |s| {
        evaluate(&[q.clone(), k.clone(), v.clone()], |b, x| {
            let (y, s) = b.attention_scores(&spec, x[0], x[1], x[2], None, s)?;
            Ok(vec![y, s])
        })
    };
    near(&stage(Scores::Raw)[1], &[0.5, -0.5, 1.0, -1.0]);
    let cap = |x: f64| 2.0 * (x / 2.0).tanh();
    near(&stage(Scores::Capped)[1], &[cap(0.5), cap(-0.5), cap(1.0), cap(-1.0)]);
    let masked = stage(Scores::Masked)[1].to_f64_vec();
    assert_eq!(masked[1], f64::NEG_INFINITY);
    let p = 1.0 / (1.0 + (2.0 * cap(-1.0)).exp());
    let out = stage(Scores::Probabilities);
    near(&out[1], &[1.0, 0.0, p, 1.0 - p]);
    near(&out[0], &[10.0, 10.0 * p + 20.0 * (1.0 - p)]);
}

#[test]
fn places() {
    let i = Tensor::from_slice(&[3], &[-1i64, 0, 4]).unwrap();
    let y = evaluate(&[i], |b, x| Ok(vec![b.normalize_indices(x[0], &Dim::from(5))?]));
    assert_eq!(y[0].to_i64_vec().unwrap(), [4, 0, 4]);
    let at = Tensor::from_slice(&[2, 3], &[0i64, 0, 1, 1, 2, 3]).unwrap();
    let y = evaluate(&[at], |b, x| Ok(vec![b.flatten_coordinates(x[0], &[2, 3, 4].map(Dim::from))?]));
    assert_eq!(y[0].to_i64_vec().unwrap(), [1, 23]);
    // A scalar has one coordinate row, of no coordinates.
    let y =
        evaluate(&[Tensor::scalar(DType::F32, Num::Float(f64::NAN))], |b, x| Ok(vec![b.nonzero(x[0])?.0]));
    assert_eq!(y[0].shape(), [1, 0]);
    let y = evaluate(&[f32s(&[0, 3], &[])], |b, x| Ok(vec![b.nonzero(x[0])?.0]));
    assert_eq!(y[0].shape(), [0, 2]);
}

#[test]
fn symmetric_resampling() {
    // Length 3 at scale 1.2 stays 3: positions 1/6, 1 and 11/6.
    let x = f32s(&[3], &[0.0, 10.0, 20.0]);
    let axis = ResizeAxis { axis: 0, len: Dim::from(3), scale: Some(1.2), crop: (0.0, 1.0) };
    let mode = ResizeMode::new(Coordinates::HalfPixelSymmetric, Interpolation::Linear);
    let y = evaluate(&[x], |b, x| Ok(vec![b.resize(x[0], &[axis], mode)?]));
    let got = y[0].to_f64_vec();
    for (g, w) in got.iter().zip([10.0 / 6.0, 10.0, 110.0 / 6.0]) {
        assert!((g - w).abs() < 1e-5, "{got:?}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut m = Module::default();
    let x = m.graph.add_input(Type::tensor(DType::F32, vec![Dim::from(2), Dim::from(3)]), None);
    let i = m.graph.add_input(Type::tensor(DType::I32, vec![Dim::from(2), Dim::from(3)]), None);
    let mut b = Builder::new(&mut m.graph, &mut m.symbols);
    assert!(matches!(b.softmax(x, 2), Err(GraphError::Shape { .. })));
    assert!(matches!(b.sigmoid(i), Err(GraphError::Type { .. })));
    assert!(b.attention(&AttentionSpec::new(1.0), x, x, x, None).is_err());
    assert!(b.max_pool(x, &PoolSpec::new(&[2, 2])).is_err());
    assert!(b.depth_to_space(x, 2, DepthToSpace::DepthColumnRow).is_err());
    assert!(b.lp_normalize(x, 0, 3).is_err());
    assert!(b.group_norm(x, x, x, 0, 1e-5).is_err());
    assert!(b.dequantize(i, x, None, DType::F32, Granularity::Axis(7)).is_err());
    assert!(b.triangle(x, i, true).is_err());
}
