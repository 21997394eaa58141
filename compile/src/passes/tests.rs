//! The passes against the reference interpreter, and the forms they are meant to reach.

use proptest::prelude::*;
use tongtu_graph::op::ConvRole;
use tongtu_graph::{Builder, Combiner, ConvSpec, Graph, Module, Op, Type, ValueId, WindowSpec, eval, verify};
use tongtu_tensor::dim::{Dim, Symbols};
use tongtu_tensor::scalar::{Binary, Compare, Unary, eval_binary};
use tongtu_tensor::{DType, Num, Tensor};

use super::{Options, prepare, stats};

/// Small whole numbers, so that sums and products in any order are exact.
fn whole(dtype: DType, shape: &[usize], seed: usize) -> Tensor {
    let value = |i: usize| ((i * 5 + seed * 13 + i / 7) % 7) as i64 - 3;
    Tensor::from_fn(dtype, shape, |i| Num::from(value(i))).unwrap()
}

fn inputs(module: &Module, size: i64) -> Vec<Tensor> {
    let shape = |v: &ValueId| -> Vec<usize> {
        module.graph.dims(*v).iter().map(|d| d.eval(&|_| Some(size)).unwrap() as usize).collect()
    };
    module.graph.inputs.iter().enumerate().map(|(i, v)| whole(module.graph.dtype(*v), &shape(v), i)).collect()
}

/// Prepares a module, and holds what it computes for several sizes against the original.
fn prepared(module: &Module) -> Module {
    verify(module).unwrap();
    let out = prepare(module.clone(), &Options::default()).unwrap();
    verify(&out).unwrap();
    assert_eq!(out.graph.inputs.len(), module.graph.inputs.len());
    for size in [1, 2, 3] {
        let inputs = inputs(module, size);
        let want = eval::run_tensors(module, &inputs).unwrap();
        let have = eval::run_tensors(&out, &inputs).unwrap();
        for (w, h) in want.iter().zip(&have) {
            assert_eq!((w.dtype(), w.shape()), (h.dtype(), h.shape()), "{module}\n{out}");
            let same =
                w.iter().zip(h.iter()).all(|(a, b)| a.to_f64() == b.to_f64() || a.is_nan() && b.is_nan());
            assert!(same, "size {size}: {w:?} became {h:?}\n{module}\n{out}");
        }
    }
    out
}

/// A module with f32 inputs `[batch, …]`, and what `define` makes of them.
fn module(dims: &[&[i64]], define: impl FnOnce(&mut Builder<'_>, &[ValueId]) -> Vec<ValueId>) -> Module {
    let (mut graph, mut symbols) = (Graph::default(), Symbols::default());
    let batch = Dim::from(symbols.fresh("batch"));
    symbols.set_bounds(batch.as_sym().unwrap(), 1, Some(64));
    for (i, d) in dims.iter().enumerate() {
        let dims: Vec<Dim> = d.iter().map(|&n| if n == 0 { batch.clone() } else { Dim::from(n) }).collect();
        graph.add_input(Type::tensor(DType::F32, dims), Some(format!("x{i}").into()));
    }
    let inputs = graph.inputs.clone();
    let outputs = define(&mut Builder::new(&mut graph, &mut symbols), &inputs);
    graph.outputs = outputs;
    Module { symbols, graph }
}

/// Names of the operations but constants, in order.
fn ops(module: &Module) -> Vec<&'static str> {
    module.graph.nodes.iter().map(|n| n.op.name()).filter(|n| *n != "constant").collect()
}

fn count(module: &Module, name: &str) -> usize {
    stats(module).operations.get(name).copied().unwrap_or(0)
}

fn weight(b: &mut Builder<'_>, shape: &[usize], seed: usize) -> ValueId {
    b.constant(whole(DType::F32, shape, seed)).unwrap()
}

fn conv3(b: &mut Builder<'_>, x: ValueId, out: usize, seed: usize) -> ValueId {
    let c = b.dims(x)[1].as_const().unwrap() as usize;
    let k = weight(b, &[out, c, 3, 3], seed);
    let mut spec = ConvSpec::nchw(2);
    spec.pads = vec![(Dim::from(1), Dim::from(1)); 2];
    b.conv(x, k, spec, DType::F32).unwrap()
}

fn per_channel(b: &mut Builder<'_>, op: Binary, x: ValueId, seed: usize) -> ValueId {
    let dims = b.dims(x);
    let c = weight(b, &[dims[1].as_const().unwrap() as usize], seed);
    let c = b.broadcast(c, &dims, &[1]).unwrap();
    b.binary(op, x, c).unwrap()
}

#[test]
fn a_residual_network_of_few_channels_permutes_nothing() {
    let m = module(&[&[0, 3, 8, 8]], |b, x| {
        let mut y = x[0];
        for i in 0..3 {
            let mut z = conv3(b, y, 3, i);
            z = per_channel(b, Binary::Sub, z, i);
            z = per_channel(b, Binary::Mul, z, i + 1);
            z = per_channel(b, Binary::Add, z, i + 2);
            z = b.relu(z).unwrap();
            y = if i > 0 { b.add2(z, y).unwrap() } else { z };
        }
        let mut pool = tongtu_graph::composite::PoolSpec::new(&[2, 2]);
        pool.strides = vec![2, 2];
        let p = b.max_pool(y, &pool).unwrap();
        let s = b.reduce_keep(Combiner::Add, p, &[2, 3]).unwrap();
        let g = b.mul(p, s).unwrap();
        let f = b.reduce(Combiner::Max, g, &[2, 3]).unwrap();
        vec![f]
    });
    let p = prepared(&m);
    assert_eq!(count(&p, "permute"), 0, "{p}");
    // The normalisation's factor is in the kernel, its shifts are one addition.
    assert_eq!((count(&p, "mul"), count(&p, "sub")), (1, 0), "{p}");
    assert_eq!(count(&p, "add"), 5, "{p}");
}

#[test]
fn attention_of_windows_with_a_mask_is_one_kernel() {
    use crate::fuse::{Item, Kind, fuse};
    let m = module(&[&[0, 4, 3, 5], &[0, 4, 3, 5], &[0, 4, 3, 2], &[4, 3, 3], &[3, 3]], |b, x| {
        let joined = |b: &mut Builder<'_>, v: ValueId| {
            let d = b.dims(v);
            b.reshape(v, &[&d[0] * &d[1], d[2].clone(), d[3].clone()]).unwrap()
        };
        let (q, k, v) = (joined(b, x[0]), joined(b, x[1]), joined(b, x[2]));
        let s = b.contract(q, k, &[(0, 0)], &[(2, 2)], DType::F32).unwrap();
        let together = b.dims(s);
        let bias = b.broadcast(x[4], &together, &[1, 2]).unwrap();
        let s = b.add2(s, bias).unwrap();
        let mut dims = b.dims(x[0]);
        dims[3] = Dim::from(3);
        let s = b.reshape(s, &dims).unwrap();
        let mask = b.broadcast(x[3], &dims, &[1, 2, 3]).unwrap();
        let s = b.add2(s, mask).unwrap();
        let s = joined(b, s);
        let p = b.softmax(s, 2).unwrap();
        vec![b.contract(p, v, &[(0, 0)], &[(2, 1)], DType::F32).unwrap()]
    });
    let p = prepared(&m);
    let items = fuse(&p.graph, true);
    let groups: Vec<&Kind> =
        items.iter().filter_map(|i| if let Item::Group(g) = i { Some(&g.kind) } else { None }).collect();
    assert!(matches!(groups[..], [Kind::Attention(_)]), "{groups:?}\n{p}");
}

#[test]
fn attention_of_heads_joined_with_the_batch_is_one_kernel() {
    use crate::fuse::{Item, Kind, fuse};
    let m = module(&[&[0, 5, 8], &[0, 5, 8], &[0, 5, 8]], |b, x| {
        let n = b.dims(x[0])[0].clone();
        let heads = |b: &mut Builder<'_>, v: ValueId| {
            let v = b.reshape(v, &[n.clone(), 5.into(), 2.into(), 4.into()]).unwrap();
            let v = b.permute(v, &[0, 2, 1, 3]).unwrap();
            b.reshape(v, &[&n * 2, 5.into(), 4.into()]).unwrap()
        };
        let (q, k, v) = (heads(b, x[0]), heads(b, x[1]), heads(b, x[2]));
        let s = b.contract(q, k, &[(0, 0)], &[(2, 2)], DType::F32).unwrap();
        let scale = b.full(DType::F32, 0.5, &b.dims(s)).unwrap();
        let s = b.mul(s, scale).unwrap();
        let p = b.softmax(s, 2).unwrap();
        let y = b.contract(p, v, &[(0, 0)], &[(2, 1)], DType::F32).unwrap();
        let y = b.reshape(y, &[n.clone(), 2.into(), 5.into(), 4.into()]).unwrap();
        let y = b.permute(y, &[0, 2, 1, 3]).unwrap();
        vec![b.reshape(y, &[n.clone(), 5.into(), 8.into()]).unwrap()]
    });
    let p = prepared(&m);
    let items = fuse(&p.graph, true);
    let groups: Vec<&Kind> =
        items.iter().filter_map(|i| if let Item::Group(g) = i { Some(&g.kind) } else { None }).collect();
    assert!(matches!(groups[..], [Kind::Attention(_)]), "{groups:?}\n{p}");
}

#[test]
fn products_with_constants_are_rounded_where_asked() {
    use crate::fuse::{Item, fuse};
    let m = module(&[&[0, 64]], |b, x| {
        let (v, w) = (weight(b, &[64, 32], 1), weight(b, &[64, 48], 2));
        let y = b.contract(x[0], v, &[], &[(1, 0)], DType::F32).unwrap();
        vec![y, b.contract(x[0], w, &[], &[(1, 0)], DType::F32).unwrap()]
    });
    let options = Options { precision: super::Precision::Bf16, ..Options::default() };
    let p = prepare(m.clone(), &options).unwrap();
    verify(&p).unwrap();
    // The constants are folded; the kernels round the operand as they copy it.
    assert_eq!((count(&p, "cast"), count(&p, "contract")), (1, 2), "{p}");
    assert_eq!(fuse(&p.graph, true).iter().filter(|i| matches!(i, Item::Group(_))).count(), 2, "{p}");
    // Small whole numbers are exact in bf16.
    let inputs = inputs(&m, 3);
    let (want, have) = (eval::run_tensors(&m, &inputs).unwrap(), eval::run_tensors(&p, &inputs).unwrap());
    for (w, h) in want.iter().zip(&have) {
        assert!(w.iter().eq(h.iter()), "{p}");
    }
}

#[test]
fn products_of_dequantised_bytes_are_of_integers() {
    use tongtu_graph::composite::Granularity;
    let byte = |b: &mut Builder<'_>, d: DType, z: i64| b.scalar(d, Num::from(z)).unwrap();
    let bytes = |b: &mut Builder<'_>, d: DType, shape: &[usize], z: i64| {
        let t = Tensor::from_fn(d, shape, |i| Num::from((i as i64 * 29 + 5) % 101 - 50 + z)).unwrap();
        b.constant(t).unwrap()
    };
    let scales = |b: &mut Builder<'_>, n: usize| {
        b.constant(Tensor::from_fn(DType::F32, &[n], |i| Num::Float([0.5, 0.25, 2.0][i % 3])).unwrap())
            .unwrap()
    };
    for (d, z) in [(DType::U8, 128), (DType::I8, 0)] {
        let m = module(&[&[0, 6], &[0, 4, 5, 5]], |b, x| {
            let around = |b: &mut Builder<'_>, v: ValueId| {
                let (s, zero) = (b.scalar(DType::F32, Num::Float(0.5)).unwrap(), byte(b, DType::U8, 7));
                let q = b.quantize(v, s, Some(zero), DType::U8, Granularity::Tensor, true).unwrap();
                b.dequantize(q, s, Some(zero), DType::F32, Granularity::Tensor).unwrap()
            };
            let (w, s) = (bytes(b, d, &[9, 6], z), scales(b, 9));
            let zeros = b.constant(Tensor::from_fn(d, &[9], |_| Num::from(z)).unwrap()).unwrap();
            let w = b.dequantize(w, s, Some(zeros), DType::F32, Granularity::Axis(0)).unwrap();
            let w = b.permute(w, &[1, 0]).unwrap();
            let left = around(b, x[0]);
            let y = b.contract(left, w, &[], &[(1, 0)], DType::F32).unwrap();
            let (k, s) = (bytes(b, d, &[3, 4, 3, 3], z), scales(b, 3));
            let zeros = b.constant(Tensor::from_fn(d, &[3], |_| Num::from(z)).unwrap()).unwrap();
            let k = b.dequantize(k, s, Some(zeros), DType::F32, Granularity::Axis(0)).unwrap();
            let picture = around(b, x[1]);
            vec![y, b.conv(picture, k, ConvSpec::nchw(2), DType::F32).unwrap()]
        });
        let p = prepare(m.clone(), &Options { integers: true, ..Options::default() }).unwrap();
        verify(&p).unwrap();
        let whole = |n: &tongtu_graph::Node| match n.op {
            Op::Contract { acc, .. } | Op::Conv { acc, .. } => Some(acc == DType::I32),
            _ => None,
        };
        assert_eq!(p.graph.nodes.iter().filter_map(whole).collect::<Vec<_>>(), [true, true], "{p}");
        // Scales are powers of two and sums are small: products of floats are exact, too.
        let inputs = inputs(&m, 3);
        let (want, have) = (eval::run_tensors(&m, &inputs).unwrap(), eval::run_tensors(&p, &inputs).unwrap());
        for (w, h) in want.iter().zip(&have) {
            assert!(w.iter().eq(h.iter()), "{p}");
        }
    }
}

#[test]
fn four_bit_numbers_are_laid_out_for_few_rows() {
    use tongtu_graph::composite::Granularity;
    for (rows, columns, own_zeros, panels) in
        [(1, 128, true, true), (8, 64, false, true), (9, 64, true, false), (1, 80, true, false)]
    {
        let m = module(&[&[rows, 128]], |b, x| {
            let numbers = |shape: &[usize], step: i64| {
                Tensor::from_fn(DType::U4, shape, |i| Num::from((i as i64 * step + i as i64 / 16) % 16))
                    .unwrap()
            };
            let w = b.constant(numbers(&[columns, 128], 7)).unwrap();
            let zeros = if own_zeros { numbers(&[columns, 4], 3) } else { numbers(&[columns, 4], 0) };
            let zeros = b.constant(zeros).unwrap();
            let scale = |i: usize| Num::Float([0.5, 0.25, 2.0][i % 3]);
            let scales = b.constant(Tensor::from_fn(DType::F32, &[columns, 4], scale).unwrap()).unwrap();
            let blocks = Granularity::Block { axis: 1, size: 32 };
            let w = b.dequantize(w, scales, Some(zeros), DType::F32, blocks).unwrap();
            vec![b.contract(x[0], w, &[], &[(1, 1)], DType::F32).unwrap()]
        });
        let p = prepared(&m);
        let in_runs = |n: &tongtu_graph::Node| matches!(&n.op, Op::Contract { over, .. } if over.len() == 3);
        assert_eq!(p.graph.nodes.iter().any(in_runs), panels, "{p}");
    }
}

#[test]
fn rows_times_four_bit_numbers_are_one_kernel() {
    use tongtu_graph::composite::Granularity;
    for (rows, zero, bytes, kernel) in [
        (1, 8, true, true),
        (3, 5, true, true),
        (8, 0, true, true),
        (9, 8, true, true),
        (0, 6, true, true),
        (1, 7, false, true),
        (2, 15, false, true),
        (9, 8, false, false),
    ] {
        let m = module(&[&[rows, 128]], |b, x| {
            let numbers = |i: usize| Num::from((i * 7 + i / 16) as i64 % 16);
            let w = b.constant(Tensor::from_fn(DType::U4, &[64, 128], numbers).unwrap()).unwrap();
            let zeros = Tensor::from_fn(DType::U4, &[64, 4], |_| Num::from(zero)).unwrap();
            let zeros = b.constant(zeros).unwrap();
            let scale = |i: usize| Num::Float([0.5, 0.25, 2.0][i % 3]);
            let scales = b.constant(Tensor::from_fn(DType::F32, &[64, 4], scale).unwrap()).unwrap();
            let blocks = Granularity::Block { axis: 1, size: 32 };
            let w = b.dequantize(w, scales, Some(zeros), DType::F32, blocks).unwrap();
            // Scales that are powers of two: with bytes all sums are exact.
            let own = |i: usize| Num::Float([0.125, 1.0, 0.5][i % 3]);
            let own = b.constant(Tensor::from_fn(DType::F32, &[4], own).unwrap()).unwrap();
            let all = [b.dims(x[0])[0].clone(), Dim::from(4)];
            let own = b.broadcast(own, &all, &[1]).unwrap();
            let q = b.quantize(x[0], own, None, DType::I8, blocks, true).unwrap();
            let q = if bytes { b.dequantize(q, own, None, DType::F32, blocks).unwrap() } else { x[0] };
            vec![b.contract(q, w, &[], &[(1, 1)], DType::F32).unwrap()]
        });
        let p = prepare(m.clone(), &Options { integers: true, ..Options::default() }).unwrap();
        verify(&p).unwrap();
        assert_eq!(count(&p, "kernel") == 1, kernel, "{p}");
        let inputs = inputs(&m, 5);
        let (want, have) = (eval::run_tensors(&m, &inputs).unwrap(), eval::run_tensors(&p, &inputs).unwrap());
        let most = want[0].iter().fold(0.0, |m: f64, n| m.max(n.to_f64().abs()));
        let error = if bytes { 0.0 } else { 1e-6 * most };
        for (w, h) in want[0].iter().zip(have[0].iter()) {
            assert!((w.to_f64() - h.to_f64()).abs() <= error, "{w} {h} {p}");
        }
    }
}

proptest! {
    /// The reciprocal of a scale in its place gives the same bytes, ties and values without an end among them.
    #[test]
    fn bytes_are_those_of_the_quotient(scale in 1e-6f32..1e3, zero in -128i64..128, steps in prop::collection::vec(-600i32..600, 32)) {
        use tongtu_graph::composite::Granularity;
        let m = module(&[&[0, 40]], |b, x| {
            let s = b.scalar(DType::F32, Num::Float(scale.into())).unwrap();
            let z = b.scalar(DType::I8, Num::from(zero)).unwrap();
            vec![b.quantize(x[0], s, Some(z), DType::I8, Granularity::Tensor, true).unwrap()]
        });
        let p = prepare(m.clone(), &Options { integers: true, ..Options::default() }).unwrap();
        verify(&p).unwrap();
        let special = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, f32::MIN_POSITIVE, 1e-45];
        let value = |i: usize| match steps.get(i) {
            // About half of a step, where the whole number changes.
            Some(k) => (*k as f32 / 2.0 * scale).next_up(),
            None => special[i - steps.len()],
        };
        let x = Tensor::from_fn(DType::F32, &[1, 40], |i| Num::Float(value(i).into())).unwrap();
        let (want, have) = (eval::run_tensors(&m, std::slice::from_ref(&x)).unwrap(), eval::run_tensors(&p, &[x]).unwrap());
        prop_assert!(want[0].iter().eq(have[0].iter()), "{p}");
    }
}

#[test]
fn squeeze_and_excite_stays_channels_last() {
    let m = module(&[&[0, 4, 6, 6]], |b, x| {
        let y = conv3(b, x[0], 4, 1);
        let s = b.reduce_keep(Combiner::Max, y, &[2, 3]).unwrap();
        let k = weight(b, &[2, 4, 1, 1], 3);
        let s = b.conv(s, k, ConvSpec::nchw(2), DType::F32).unwrap();
        let s = per_channel(b, Binary::Add, s, 3);
        let s = b.relu(s).unwrap();
        let k = weight(b, &[4, 2, 1, 1], 4);
        let s = b.conv(s, k, ConvSpec::nchw(2), DType::F32).unwrap();
        let s = b.relu(s).unwrap();
        let y = b.mul(y, s).unwrap();
        let y = conv3(b, y, 4, 2);
        let flat = b.dims(y);
        let y = b.reduce_keep(Combiner::Max, y, &[2, 3]).unwrap();
        vec![b.reshape(y, &[flat[0].clone(), flat[1].clone()]).unwrap()]
    });
    let p = prepared(&m);
    assert_eq!(count(&p, "permute"), 0, "{p}");
    assert_eq!(count(&p, "conv"), 2, "{p}");
    assert_eq!(count(&p, "contract"), 2, "{p}");
    assert_eq!(count(&p, "reshape"), 0, "{p}");
}

#[test]
fn tokens_of_patches_need_no_permutation() {
    let m = module(&[&[0, 3, 8, 8]], |b, x| {
        let k = weight(b, &[5, 3, 4, 4], 1);
        let mut spec = ConvSpec::nchw(2);
        spec.strides = vec![4, 4];
        let y = b.conv(x[0], k, spec, DType::F32).unwrap();
        let n = b.dims(y)[0].clone();
        let y = b.reshape(y, &[n.clone(), Dim::from(5), Dim::from(4)]).unwrap();
        let y = b.permute(y, &[0, 2, 1]).unwrap();
        // Attention heads: the permutations of queries and keys go into the contraction.
        let w = weight(b, &[5, 6], 2);
        let q = b.contract(y, w, &[], &[(2, 0)], DType::F32).unwrap();
        let q = b.reshape(q, &[n, Dim::from(4), Dim::from(2), Dim::from(3)]).unwrap();
        let k = b.permute(q, &[0, 2, 3, 1]).unwrap();
        let q = b.permute(q, &[0, 2, 1, 3]).unwrap();
        vec![b.contract(q, k, &[(0, 0), (1, 1)], &[(3, 2)], DType::F32).unwrap()]
    });
    let p = prepared(&m);
    assert_eq!(ops(&p), ["conv", "contract", "reshape", "contract"], "{p}");
}

#[test]
fn group_normalisation_stays_channels_last() {
    let m = module(&[&[0, 4, 4, 4]], |b, x| {
        let y = conv3(b, x[0], 4, 1);
        let dims = b.dims(y);
        let split = [dims[0].clone(), Dim::from(2), Dim::from(2), Dim::from(4), Dim::from(4)];
        let v = b.reshape(y, &split).unwrap();
        let s = b.reduce_keep(Combiner::Max, v, &[2, 3, 4]).unwrap();
        let v = b.sub(v, s).unwrap();
        let v = b.reshape(v, &dims).unwrap();
        vec![conv3(b, v, 2, 2)]
    });
    let p = prepared(&m);
    assert_eq!(count(&p, "permute"), 1, "{p}");
}

#[test]
fn groups_normalised_as_joined_dims_stay_channels_last() {
    let m = module(&[&[0, 4, 4, 4]], |b, x| {
        let y = conv3(b, x[0], 4, 1);
        let dims = b.dims(y);
        let v = b.reshape(y, &[dims[0].clone(), Dim::from(2), Dim::from(32)]).unwrap();
        let s = b.reduce_keep(Combiner::Max, v, &[2]).unwrap();
        let v = b.sub(v, s).unwrap();
        let q = b.reduce_keep(Combiner::Add, v, &[2]).unwrap();
        let v = b.add2(v, q).unwrap();
        let v = b.reshape(v, &dims).unwrap();
        vec![conv3(b, v, 2, 2)]
    });
    let p = prepared(&m);
    assert_eq!(count(&p, "permute"), 1, "{p}");
}

#[test]
fn channel_shuffles_and_blocks_of_pixels_move_once() {
    let m = module(&[&[0, 4, 6, 6]], |b, x| {
        let y = conv3(b, x[0], 4, 1);
        let dims = b.dims(y);
        let d = |n: i64| Dim::from(n);
        let z = b.reshape(y, &[dims[0].clone(), d(2), d(2), d(6), d(6)]).unwrap();
        let z = b.permute(z, &[0, 2, 1, 3, 4]).unwrap();
        let z = b.reshape(z, &dims).unwrap();
        let kept = b.slice_axis(z, 1, d(0), d(2)).unwrap();
        let turned = b.slice_axis(z, 1, d(2), d(2)).unwrap();
        let turned = conv3(b, turned, 6, 2);
        let z = b.concat(&[kept, turned], 1).unwrap();
        let z = b.depth_to_space(z, 2, tongtu_graph::composite::DepthToSpace::DepthColumnRow).unwrap();
        vec![conv3(b, z, 2, 3)]
    });
    let p = prepared(&m);
    // The shuffle, the blocks, and both ends.
    assert_eq!(count(&p, "permute"), 3, "{p}");
}

#[test]
fn lengths_of_strided_results_are_dims() {
    let m = module(&[&[0, 4]], |b, x| {
        let n = b.dims(x[0])[0].clone();
        b.symbols.set_bounds(n.as_sym().unwrap(), 0, None);
        let (last, two) = (b.dim_value(&n - 1).unwrap(), b.int(DType::I64, 2).unwrap());
        let half = b.binary(Binary::Div, last, two).unwrap();
        let one = b.int(DType::I64, 1).unwrap();
        let len = b.binary(Binary::Add, half, one).unwrap();
        let sym = b.bind(len, "len").unwrap();
        vec![b.iota(DType::F32, &[Dim::from(sym)], 0).unwrap()]
    });
    let p = prepared(&m);
    assert_eq!(ops(&p), ["iota"], "{p}");
    let n = m.graph.dims(m.graph.inputs[0])[0].as_sym().unwrap();
    assert_eq!(p.symbols.get(n).unwrap().lower, 1);
}

#[test]
fn padding_goes_into_convolutions_and_poolings() {
    let m = module(&[&[0, 3, 6, 6]], |b, x| {
        let zero = b.float(DType::F32, 0.0).unwrap();
        let d = |v: [i64; 4]| v.map(Dim::from);
        let y = b.pad(x[0], zero, &d([0, 0, 1, 2]), &d([0, 0, 0, 1])).unwrap();
        let k = weight(b, &[4, 3, 3, 3], 1);
        let y = b.conv(y, k, ConvSpec::nchw(2), DType::F32).unwrap();
        let low = b.float(DType::F32, f64::NEG_INFINITY).unwrap();
        let y = b.pad(y, low, &d([0, 0, 1, 1]), &d([0, 0, 0, 0])).unwrap();
        let none = (Dim::from(0), Dim::from(0));
        let spec = WindowSpec {
            window: vec![1, 1, 2, 2],
            strides: vec![1, 1, 2, 2],
            pads: vec![none; 4],
            dilation: vec![1; 4],
        };
        vec![b.window_reduce(Combiner::Max, y, spec).unwrap()]
    });
    let p = prepared(&m);
    assert_eq!(ops(&p), ["conv", "window_reduce", "permute"], "{p}");
}

fn transposed(spatial: &[i64], kernel: usize, stride: i64, low: i64, high: i64, groups: i64) -> Module {
    let rank = spatial.len();
    let dims: Vec<i64> = [0, 4].iter().chain(spatial).copied().collect();
    module(&[&dims], |b, x| {
        let mut shape = vec![6, 4 / groups as usize];
        shape.extend(vec![kernel; rank]);
        let k = weight(b, &shape, 2);
        let mut spec = ConvSpec::nchw(rank);
        spec.input_dilation = vec![stride; rank];
        spec.pads = vec![(Dim::from(low), Dim::from(high)); rank];
        spec.groups = groups;
        vec![b.conv(x[0], k, spec, DType::F32).unwrap()]
    })
}

#[test]
fn transposed_convolutions_become_plain_ones() {
    let plain = |m: &Module| {
        let no_dilation = |n: &tongtu_graph::Node| match &n.op {
            Op::Conv { spec, .. } => spec.input_dilation.iter().all(|&d| d == 1),
            _ => true,
        };
        m.graph.nodes.iter().all(no_dilation)
    };
    for (spatial, kernel, stride, low, high, groups) in [
        (&[3i64, 4][..], 2, 2, 1, 1, 1),
        (&[3, 4], 4, 2, 2, 2, 1),
        (&[3, 4], 3, 2, 1, 2, 2),
        (&[5], 5, 3, 0, 7, 1),
        (&[5], 2, 3, 1, 1, 1),
        (&[2, 3], 3, 5, 2, 2, 1),
        (&[3, 2, 2], 2, 2, 1, 1, 1),
        (&[4], 4, 2, 5, 3, 2),
        (&[4], 3, 2, -1, -2, 1),
    ] {
        let p = prepared(&transposed(spatial, kernel, stride, low, high, groups));
        assert!(plain(&p), "{p}");
    }
    // A stride as long as the kernel: every output has one tap.
    let p = prepared(&transposed(&[3, 4], 2, 2, 1, 1, 1));
    assert_eq!(count(&p, "conv"), 0, "{p}");
}

#[test]
fn branches_and_dims_that_are_known_fold() {
    let m = module(&[&[0, 4]], |b, x| {
        let n = b.dims(x[0])[0].clone();
        let (one, size) = (b.int(DType::I64, 1).unwrap(), b.dim_value(n).unwrap());
        let more = b.binary(Binary::Add, size, one).unwrap();
        let always = b.compare(Compare::Gt, more, one).unwrap();
        let ty = [b.graph.ty(x[0]).clone()];
        let then_branch = b.region("then", &ty, |b, x| Ok(vec![b.unary(Unary::Neg, x[0])?])).unwrap();
        let else_branch = b.region("else", &ty, |b, x| Ok(vec![b.unary(Unary::Exp, x[0])?])).unwrap();
        let op = Op::If { then_branch, else_branch, results: ty.to_vec() };
        let y = b.add(op, &[always, x[0]]).unwrap()[0];
        let sym = b.bind(more, "more").unwrap();
        let wide = b.iota(DType::F32, &[Dim::from(sym)], 0).unwrap();
        let s = b.sum(wide, &[0]).unwrap();
        let dims = b.dims(y);
        let s = b.broadcast_to(s, &dims).unwrap();
        vec![b.add2(y, s).unwrap()]
    });
    let p = prepared(&m);
    assert_eq!(ops(&p), ["iota", "reduce", "broadcast", "sub"], "{p}");
}

const LOOP: &str = r#"
symbol n 1..8
graph "main" (%x: f32[n, 4], %turns: i64[], %past: f32[4]) -> (%out, %next) state (2, 1) {
  %w = constant {value = tensor<f32[4]>[1.0, 2.0, 3.0, 5.0]} : f32[4]
  %zero = constant {value = tensor<i64[]>[0]} : i64[]
  %unused = add %past, %w : f32[4]
  %go = lt %zero, %turns : bool[]
  %i, %out = while %go, %zero, %x, %w, %unused, %turns {body = graph "body" (%i: i64[], %y: f32[n, 4], %w: f32[4], %u: f32[4], %last: i64[]) -> (%go, %j, %z) {
    %one = constant {value = tensor<i64[]>[1]} : i64[]
    %j = add %i, %one : i64[]
    %b = broadcast %w {dims = [<n>, 4], axes = [1]} : f32[n, 4]
    %z = add %y, %b : f32[n, 4]
    %go = lt %j, %last : bool[]
  }, results = [i64[], f32[n, 4]]} : i64[], f32[n, 4]
  %next = mul %past, %past : f32[4]
}
"#;

#[test]
fn constants_go_into_loops_and_what_they_leave_out_goes() {
    let m: Module = LOOP.parse().unwrap();
    let p = prepared(&m);
    assert_eq!(p.graph.state, [(2, 1)]);
    assert_eq!(p.graph.values[p.graph.outputs[1].index()].name.as_deref(), Some("next"));
    let body = p.graph.nodes.iter().find_map(|n| match &n.op {
        Op::While { body, .. } => Some((n, body.clone())),
        _ => None,
    });
    let (node, body) = body.unwrap();
    // The condition, what is carried, and the number of turns.
    assert_eq!((node.inputs.len(), body.inputs.len()), (4, 3), "{p}");
    assert!(!ops(&p).contains(&"add"), "{p}");
}

#[test]
fn broken_graphs_are_refused() {
    let mut m = module(&[&[0, 4]], |b, x| vec![b.reduce(Combiner::Add, x[0], &[1]).unwrap()]);
    m.graph.nodes[0].op = Op::Take { axis: 7 };
    assert!(prepare(m, &Options::default()).is_err());
}

#[test]
fn conditions_on_sizes_are_kept() {
    for at_run in [true, false] {
        let mut symbols = Symbols::default();
        let mut graph = Graph::default();
        let (n, one) = (Dim::from(symbols.fresh("n")), Dim::from(1));
        let x = graph.add_input(Type::tensor(DType::F32, [n.clone()]), None);
        let given = graph.add_input(Type::tensor(DType::I64, [one]), None);
        let mut b = Builder::new(&mut graph, &mut symbols);
        let value = if at_run { b.reshape(given, &[]).unwrap() } else { b.dim_value(n).unwrap() };
        let sym = b.bind(value, "must_be_1").unwrap();
        let y = b.relu(x).unwrap();
        symbols.set_bounds(sym, 1, Some(1));
        graph.outputs = vec![y];
        let p = prepare(Module { symbols, graph }, &Options::default()).unwrap();
        assert_eq!(count(&p, "bind"), 1, "{p}");
        let run = |n: usize, given: i64| {
            let given = Tensor::from_slice(&[1], &[given]).unwrap();
            eval::run_tensors(&p, &[whole(DType::F32, &[n], 1), given])
        };
        assert!(run(1, 1).is_ok());
        assert!(run(2, 2).is_err());
    }
}

#[test]
fn symbols_keep_what_binds_them() {
    let text = r#"
symbol n 1..8
symbol k 0..8
graph "main" (%x: f32[n]) -> (%y) {
  %zero = constant {value = tensor<f32[]>[0.0]} : f32[]
  %z = broadcast %zero {dims = [<n>], axes = []} : f32[n]
  %p = gt %x, %z : bool[n]
  %i = cast %p {to = i64, mode = ["format", "nearest_even"]} : i64[n]
  %count = reduce %i {combiner = "add", axes = [0]} : i64[]
  bind %count {sym = $k}
  %y = iota {dtype = f32, dims = [<k>], axis = 0} : f32[k]
}
"#;
    let m: Module = text.parse().unwrap();
    let p = prepared(&m);
    assert_eq!(count(&p, "bind"), 1, "{p}");
    assert_eq!(count(&p, "reduce"), 1, "{p}");
}

#[test]
fn composites_stay_where_they_are_kept() {
    let m = module(&[&[0, 4]], |b, x| {
        b.loc = tongtu_graph::Loc::new("block/Softmax_1 (Softmax)");
        let y = b.softmax(x[0], 1).unwrap();
        b.loc = tongtu_graph::Loc::new("block/Relu_2 (Relu)");
        vec![b.relu(y).unwrap()]
    });
    let options = Options { keep: vec!["softmax".into()], ..Options::default() };
    let p = prepare(m.clone(), &options).unwrap();
    assert_eq!((count(&p, "softmax"), count(&p, "relu")), (1, 0), "{p}");
    let whole = super::inline(&m.graph, &[]);
    let origin = |n: &tongtu_graph::Node| n.loc.to_string();
    let expected = ["block/Softmax_1 (Softmax)", "block/Relu_2 (Relu)"];
    assert!(whole.nodes.iter().all(|n| expected.contains(&origin(n).as_str())));
    assert!(whole.nodes.iter().all(|n| !matches!(n.op, Op::Composite { .. })));
}

#[test]
fn quick_folding_agrees_with_scalar_evaluation() {
    for dtype in [DType::I8, DType::U8, DType::I32, DType::I64, DType::F32, DType::F64] {
        let edge = |i: usize| {
            let values = [0i128, 1, -1, 3, 7, 8, 9, 31, 32, 63, 64, 100, -100, 127, -128, 255];
            Num::Int(values[i])
        };
        let x = Tensor::from_fn(dtype, &[16, 16], |i| edge(i / 16)).unwrap();
        let y = Tensor::from_fn(dtype, &[16, 16], |i| edge(i % 16)).unwrap();
        for &op in Binary::ALL.iter().filter(|op| op.accepts(dtype)) {
            let m = module(&[], |b, _| {
                let (x, y) = (b.constant(x.clone()).unwrap(), b.constant(y.clone()).unwrap());
                vec![b.one(Op::Binary(op), &[x, y]).unwrap()]
            });
            let p = prepare(m, &Options::default()).unwrap();
            assert!(ops(&p).iter().all(|o| *o == "broadcast"), "{p}");
            let folded = eval::run_tensors(&p, &[]).unwrap();
            for i in 0..x.len() {
                let want = eval_binary(op, dtype, x.get_linear(i), y.get_linear(i));
                let have = folded[0].get_linear(i);
                assert!(want == have || want.is_nan() && have.is_nan(), "{dtype} {op}: {want} became {have}");
            }
        }
    }
}

#[test]
fn quick_conversions_agree_with_the_exact_one() {
    let small = DType::ALL.iter().filter(|d| d.bits() <= 8);
    for &from in small.chain([&DType::F16, &DType::I32]) {
        let codes = 1u64 << from.bits().min(16);
        let mut x = Tensor::zeros(from, &[codes as usize]).unwrap();
        (0..codes).for_each(|c| x.set_code(c as usize, if from.is_bool() { c % 2 } else { c }));
        for to in [DType::F32, DType::I64, DType::U8, DType::I4, DType::F8E5M2] {
            let m = module(&[], |b, _| {
                let x = b.constant(x.clone()).unwrap();
                let twice = b.saturate(x, DType::F64).unwrap();
                vec![b.saturate(x, to).unwrap(), b.convert(x, to).unwrap(), b.convert(twice, to).unwrap()]
            });
            let p = prepare(m.clone(), &Options::default()).unwrap();
            let (want, have) = (eval::run_tensors(&m, &[]).unwrap(), eval::run_tensors(&p, &[]).unwrap());
            assert!(want[0].same_bits(&have[0]), "{from} to {to}, saturating");
            assert!(want[1].same_bits(&have[1]), "{from} to {to}");
            assert!(want[2].same_bits(&have[2]), "{from} to f64, saturating, to {to}");
            assert_eq!(count(&p, "cast"), 0, "{from} to {to}");
        }
    }
}

#[test]
fn a_weight_used_both_ways_is_not_copied() {
    let m = module(&[&[0, 4]], |b, x| {
        let table = whole(DType::F32, &[70_000, 4], 1);
        let table = b.constant(table).unwrap();
        let rows = b.constant(Tensor::from_slice(&[3], &[5i64, 69_999, 2]).unwrap()).unwrap();
        let t = b.take(table, rows, 0).unwrap();
        let turned = b.permute(table, &[1, 0]).unwrap();
        let logits = b.contract(x[0], turned, &[], &[(1, 0)], DType::F32).unwrap();
        let best = b.reduce(Combiner::Max, logits, &[1]).unwrap();
        let s = b.contract(x[0], t, &[], &[(1, 1)], DType::F32).unwrap();
        vec![best, s]
    });
    let p = prepare(m, &Options::default()).unwrap();
    assert_eq!(count(&p, "permute"), 0, "{p:?}");
    assert!(stats(&p).bytes < 70_000 * 16 + 1000, "{:?}", stats(&p));
}

/// Random graphs tried; more on demand.
const CASES: u32 = 40;

/// Draws from a stream of numbers.
struct Draw<'a> {
    numbers: &'a [u32],
    at: usize,
}

impl Draw<'_> {
    fn below(&mut self, n: usize) -> usize {
        self.at += 1;
        self.numbers.get(self.at - 1).map_or(0, |&v| v as usize % n.max(1))
    }
    fn order(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            let j = self.below(i + 1);
            order.swap(i, j);
        }
        order
    }
}

fn elements(b: &Builder<'_>, v: ValueId) -> i64 {
    b.dims(v).iter().map(|d| d.as_const().unwrap_or(3)).product()
}

/// One more value, made of some that are there.
fn grow(b: &mut Builder<'_>, pool: &[ValueId], d: &mut Draw<'_>) -> Option<ValueId> {
    let x = pool[d.below(pool.len())];
    let dims = b.dims(x);
    let rank = dims.len();
    let seed = d.below(50);
    let fixed = |i: usize| dims[i].as_const();
    Some(match d.below(21) {
        0 => b.unary([Unary::Neg, Unary::Abs, Unary::Sign][d.below(3)], x).ok()?,
        1 | 2 => {
            let other = pool.iter().copied().filter(|&v| b.dims(v) == dims).collect::<Vec<_>>();
            let y = other[d.below(other.len())];
            b.binary([Binary::Add, Binary::Sub, Binary::Max, Binary::Min][d.below(4)], x, y).ok()?
        }
        3 => {
            let c = [0.0, 1.0, -1.0, 2.0, 0.5][d.below(5)];
            b.binary_const([Binary::Add, Binary::Mul, Binary::Sub, Binary::Max][d.below(4)], x, c).ok()?
        }
        4 if rank > 0 => {
            let axis = d.below(rank);
            let c = weight(b, &[fixed(axis)? as usize], seed);
            let c = b.broadcast(c, &dims, &[axis]).ok()?;
            b.binary([Binary::Add, Binary::Mul, Binary::Sub][d.below(3)], x, c).ok()?
        }
        5 | 6 => {
            let order = d.order(rank);
            b.permute(x, &order).ok()?
        }
        7 => {
            // Splits a dim, joins two, puts in or takes out a 1.
            let mut new = dims.clone();
            let i = d.below(rank + 1);
            match d.below(4) {
                0 => new.insert(i, Dim::from(1)),
                1 if i + 1 < rank => {
                    let next = new.remove(i + 1);
                    new[i] = &new[i] * &next;
                }
                2 if i < rank && fixed(i).is_some_and(|n| n % 2 == 0) => {
                    new[i] = Dim::from(fixed(i)? / 2);
                    new.insert(i, Dim::from(2));
                }
                _ => new.retain(|d| *d != 1),
            }
            b.reshape(x, &new).ok()?
        }
        8 if rank > 0 => {
            let axis = d.below(rank);
            let n = fixed(axis).filter(|&n| n > 1)?;
            let start = d.below(n as usize) as i64;
            let len = 1 + d.below((n - start) as usize) as i64;
            b.slice_axis(x, axis, Dim::from(start), Dim::from(len)).ok()?
        }
        9 => {
            let v = b.float(DType::F32, [0.0, f64::NEG_INFINITY, 1.0][d.below(2) * 2]).ok()?;
            let mut low = vec![Dim::from(0); rank];
            let mut high = low.clone();
            if rank > 0 {
                let axis = d.below(rank);
                low[axis] = Dim::from(d.below(2) as i64);
                high[axis] = Dim::from(d.below(3) as i64 - i64::from(fixed(axis).is_some_and(|n| n > 2)));
            }
            b.pad(x, v, &low, &high).ok()?
        }
        10 if rank > 0 => {
            let axis = d.below(rank);
            let fits = |v: &ValueId| {
                let other = b.dims(*v);
                other.len() == rank && (0..rank).all(|i| i == axis || other[i] == dims[i])
            };
            let other: Vec<ValueId> = pool.iter().copied().filter(fits).collect();
            let y = other[d.below(other.len())];
            b.concat(&[x, y], axis).ok()?
        }
        11 if rank > 0 => {
            let axes: Vec<usize> = (0..rank).filter(|_| d.below(2) == 0).collect();
            b.reduce([Combiner::Add, Combiner::Max][d.below(2)], x, &axes).ok()?
        }
        12 if rank < 4 => {
            let mut new = dims.clone();
            let at = d.below(rank + 1);
            new.insert(at, Dim::from(1 + d.below(2) as i64));
            let axes: Vec<usize> = (0..=rank).filter(|&i| i != at).collect();
            b.broadcast(x, &new, &axes).ok()?
        }
        13 if rank > 0 => {
            let axis = d.below(rank);
            let n = fixed(axis).filter(|&n| n > 0)?;
            let count = d.below(3);
            let shape: Vec<usize> = if count == 0 { vec![] } else { vec![count + 1] };
            let (step, first) = (d.below(3), d.below(n as usize));
            let index =
                Tensor::from_fn(DType::I64, &shape, |i| Num::from(((first + i * step) as i64) % n)).ok()?;
            let index = b.constant(index).ok()?;
            b.take(x, index, axis).ok()?
        }
        17 => {
            let other = pool.iter().copied().filter(|&v| b.dims(v) == dims).collect::<Vec<_>>();
            let y = other[d.below(other.len())];
            let compares = [Compare::Lt, Compare::Ge, Compare::Eq, Compare::Ne];
            let mut p = b.compare(compares[d.below(4)], x, y).ok()?;
            if d.below(2) == 0 {
                p = b.unary(Unary::Not, p).ok()?;
            }
            match d.below(3) {
                0 => b.convert(p, DType::F32).ok()?,
                1 => b.select(p, y, x).ok()?,
                _ => {
                    let q = b.compare_const(Compare::Gt, x, 0.0).ok()?;
                    let p = b.binary([Binary::And, Binary::Or, Binary::Xor][d.below(3)], p, q).ok()?;
                    b.select(p, x, y).ok()?
                }
            }
        }
        18 => {
            let ints = [DType::I64, DType::I32, DType::I16];
            let narrow = b.saturate(x, ints[d.below(3)]).ok()?;
            let y = b.convert(narrow, ints[d.below(3)]).ok()?;
            let ops = [Binary::Add, Binary::Sub, Binary::Mul, Binary::Max, Binary::And, Binary::Mod];
            let y = b.binary_const(ops[d.below(6)], y, [0.0, 1.0, -1.0, 3.0][d.below(4)]).ok()?;
            b.convert(y, DType::F32).ok()?
        }
        19 => {
            let n = b.dim_value(&dims.first().cloned().unwrap_or_default() + 2).ok()?;
            let two = b.int(DType::I64, 2).ok()?;
            let ops = [Binary::Div, Binary::Rem, Binary::Max, Binary::Sub];
            let n = b.binary(ops[d.below(4)], n, two).ok()?;
            let n = b.convert(n, DType::F32).ok()?;
            b.add2(x, n).ok()?
        }
        14 | 15 if rank == 4 => {
            let (c, h, w) = (fixed(1)?, fixed(2).filter(|&n| n > 2)?, fixed(3).filter(|&n| n > 2)?);
            let _ = (h, w);
            let groups = if c % 2 == 0 { 1 + d.below(2) as i64 } else { 1 };
            let size = 1 + d.below(3);
            let k = weight(b, &[4, (c / groups) as usize, size, size], seed);
            let mut spec = ConvSpec::nchw(2);
            spec.groups = groups;
            spec.pads = vec![(Dim::from(d.below(2) as i64), Dim::from(d.below(2) as i64)); 2];
            match d.below(4) {
                0 => spec.strides = vec![2, 1],
                1 => spec.input_dilation = vec![1 + d.below(3) as i64, 2],
                _ => {}
            }
            if d.below(3) == 0 {
                spec.input = vec![ConvRole::C, ConvRole::N, ConvRole::S(0), ConvRole::S(1)];
                if dims[0] != c / groups * groups {
                    spec.input = vec![ConvRole::N, ConvRole::C, ConvRole::S(1), ConvRole::S(0)];
                }
            }
            b.conv(x, k, spec, DType::F32).ok()?
        }
        16 if rank > 0 => {
            let none = (Dim::from(0), Dim::from(0));
            let mut spec = WindowSpec {
                window: vec![1; rank],
                strides: vec![1; rank],
                pads: vec![none; rank],
                dilation: vec![1; rank],
            };
            for i in 0..rank {
                let n = fixed(i).unwrap_or(1);
                spec.window[i] = 1 + d.below(n.clamp(1, 3) as usize) as i64;
                spec.strides[i] = 1 + d.below(2) as i64;
            }
            b.window_reduce([Combiner::Add, Combiner::Max][d.below(2)], x, spec).ok()?
        }
        _ => {
            let y = pool[d.below(pool.len())];
            let other = b.dims(y);
            // Pairs of equal dims, shared or summed.
            let mut left = d.order(other.len());
            let (mut batch, mut over) = (Vec::new(), Vec::new());
            for (i, n) in dims.iter().enumerate() {
                let Some(at) = left.iter().position(|&j| other[j] == *n) else { continue };
                match d.below(3) {
                    0 => batch.push((i, left.remove(at))),
                    1 => over.push((i, left.remove(at))),
                    _ => {}
                }
            }
            b.contract(x, y, &batch, &over, DType::F32).ok()?
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(CASES) })]
    #[test]
    fn random_graphs_compute_the_same(numbers in proptest::collection::vec(0u32..5040, 40..160)) {
        let m = module(&[&[0, 4, 5, 3], &[4, 3]], |b, x| {
            let mut pool = x.to_vec();
            let mut d = Draw { numbers: &numbers, at: 0 };
            while d.at < numbers.len() && pool.len() < 24 {
                if let Some(v) = grow(b, &pool, &mut d)
                    && b.rank(v) < 6
                    && elements(b, v) <= 2000
                {
                    pool.push(v);
                }
            }
            pool.iter().rev().take(3).copied().collect()
        });
        // Whole numbers stay exact only while they are small.
        let largest = [1, 2, 3].iter().flat_map(|&n| eval::run_tensors(&m, &inputs(&m, n)).unwrap()).flat_map(|t| t.to_f64_vec()).fold(0.0, |a: f64, v| if v.is_finite() { a.max(v.abs()) } else { a });
        prop_assume!(largest < 1e4);
        prepared(&m);
    }
}
