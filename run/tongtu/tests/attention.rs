//! Attention and products in every form that one kernel is made for: compiled code against the reference interpreter.
#![cfg(feature = "llvm")]

use std::sync::Arc;

use tongtu_chip::Chip;
use tongtu_cpu::{CpuCompiler, CpuDevice};
use tongtu_graph::composite::AttentionSpec;
use tongtu_graph::eval::{Sampler, compare};
use tongtu_graph::{Builder, Graph, Module, Op, Type, ValueId};
use tongtu_plan::Device;
use tongtu_runtime::{Session, Value};
use tongtu_tensor::dim::{Dim, Symbols};
use tongtu_tensor::{DType, Num, Tensor};

/// Numbers in -2..2 that look random.
fn noise(dtype: DType, shape: &[usize], seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    Tensor::from_fn(dtype, shape, |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        match dtype {
            DType::Bool => Num::Int(i128::from(state >> 60 != 0)),
            d if d.is_float() => Num::Float((state >> 40) as f64 / f64::from(1 << 22) - 2.0),
            d => d.decode(state >> 20 & 0xFF),
        }
    })
    .expect("the shape is small")
}

/// Inputs with their dims and sizes, and what is made of them.
struct Case<'a> {
    inputs: &'a [(DType, Vec<Dim>, Vec<usize>)],
    build: &'a dyn Fn(&mut Builder<'_>, &[ValueId]) -> ValueId,
}

/// Compiles, runs and compares; gives the number of contractions of each group.
fn check(name: &str, symbols: Symbols, case: &Case<'_>, constants: &[usize]) -> Vec<usize> {
    let mut module = Module { graph: Graph { name: name.into(), ..Graph::default() }, symbols };
    let mut tensors = Vec::new();
    let mut values = Vec::new();
    for (i, (dtype, dims, shape)) in case.inputs.iter().enumerate() {
        let t = noise(*dtype, shape, i as u64 + 1);
        if constants.contains(&i) {
            let mut b = Builder::new(&mut module.graph, &mut module.symbols);
            values.push(b.one(Op::Constant { value: t }, &[]).expect("a constant"));
        } else {
            values.push(module.graph.add_input(Type::tensor(*dtype, dims.clone()), None));
            tensors.push(t);
        }
    }
    let mut b = Builder::new(&mut module.graph, &mut module.symbols);
    let out = (case.build)(&mut b, &values);
    module.graph.outputs = vec![out];
    let want =
        Sampler::new(&module.symbols, &module.graph, tensors.clone()).all().expect("the reference runs");
    let chip = Chip::host().expect("a description of this machine");
    let device: Arc<dyn Device> = Arc::new(CpuDevice::new(2).expect("threads"));
    let compiler = CpuCompiler { threads: 1 };
    let plan = tongtu_compile::compile(module, &compiler, &chip, &tongtu_compile::Options::default())
        .unwrap_or_else(|e| panic!("{name}: {e}"));
    let count = |g: &Graph| g.nodes.iter().filter(|n| matches!(n.op, Op::Contract { .. })).count();
    let groups = plan.groups.iter().map(|g| count(&g.graph)).filter(|&n| n > 0).collect();
    let session = Session::new(plan, vec![device]).unwrap_or_else(|e| panic!("{name}: {e}"));
    let inputs: Vec<Value> = tensors.into_iter().map(Value::from).collect();
    let got = session.run(&inputs).unwrap_or_else(|e| panic!("{name}: {e}"));
    let got: Vec<Num> = got[0].tensor().ok().flatten().expect("a tensor").iter().collect();
    let c = compare(&want[0], &got);
    assert!(c.passes(), "{name}: {c:?}");
    groups
}

fn fixed(shape: &[usize]) -> Vec<Dim> {
    shape.iter().map(|&n| Dim::from(n as i64)).collect()
}

#[test]
fn attention_is_one_kernel_and_right() {
    // Name, heads, key heads, queries, keys, head size, mask, specification.
    let causal = |offset: i64| AttentionSpec::causal(0.125, Dim::from(offset));
    let capped = AttentionSpec { softcap: Some(5.0), left: Some(7), ..causal(3) };
    let cases: &[(&str, [usize; 5], Option<DType>, AttentionSpec)] = &[
        ("plain", [3, 3, 37, 70, 32], None, AttentionSpec::new(0.25)),
        ("one query", [2, 2, 1, 65, 16], None, AttentionSpec::new(0.25)),
        ("few keys", [2, 2, 15, 3, 8], None, AttentionSpec::new(0.25)),
        ("added mask", [2, 2, 14, 40, 24], Some(DType::F32), AttentionSpec::new(0.3)),
        ("seen by mask", [2, 2, 29, 33, 20], Some(DType::Bool), AttentionSpec::new(0.3)),
        ("causal", [2, 2, 33, 36, 64], None, causal(3)),
        ("nothing seen", [1, 1, 9, 20, 16], None, causal(-4)),
        ("window and cap", [2, 2, 30, 33, 16], None, capped),
        ("grouped", [6, 2, 17, 40, 16], None, AttentionSpec::new(0.25)),
    ];
    for (name, [h, n, s, t, d], mask, spec) in cases {
        let mut inputs = vec![
            (DType::F32, fixed(&[2, *h, *s, *d]), vec![2, *h, *s, *d]),
            (DType::F32, fixed(&[2, *n, *t, *d]), vec![2, *n, *t, *d]),
            (DType::F32, fixed(&[2, *n, *t, *d + 3]), vec![2, *n, *t, *d + 3]),
        ];
        inputs.extend(mask.map(|m| (m, fixed(&[2, 1, *s, *t]), vec![2, 1, *s, *t])));
        let build = |b: &mut Builder<'_>, x: &[ValueId]| {
            b.attention(spec, x[0], x[1], x[2], x.get(3).copied()).expect("attention")
        };
        let groups = check(name, Symbols::new(), &Case { inputs: &inputs, build: &build }, &[]);
        if h == n {
            assert_eq!(groups, [2], "{name}");
        }
    }
}

#[test]
fn attention_takes_sizes_when_it_runs_and_heads_where_they_lie() {
    let mut symbols = Symbols::new();
    let (s, t) = (Dim::from(symbols.fresh("s")), Dim::from(symbols.fresh("t")));
    let (h, d) = (4usize, 16usize);
    let dims = |n: &Dim| vec![Dim::from(1), n.clone(), Dim::from((h * d) as i64)];
    let inputs = [
        (DType::F32, dims(&s), vec![1, 43, h * d]),
        (DType::F32, dims(&t), vec![1, 77, h * d]),
        (DType::F32, dims(&t), vec![1, 77, h * d]),
    ];
    let build = |b: &mut Builder<'_>, x: &[ValueId]| {
        let heads = |b: &mut Builder<'_>, v: ValueId| {
            let n = b.dims(v)[1].clone();
            let v =
                b.reshape(v, &[Dim::from(1), n, Dim::from(h as i64), Dim::from(d as i64)]).expect("reshape");
            b.permute(v, &[0, 2, 1, 3]).expect("permute")
        };
        let q = heads(b, x[0]);
        let (k, v) = (heads(b, x[1]), heads(b, x[2]));
        let y = b.attention(&AttentionSpec::new(0.25), q, k, v, None).expect("attention");
        let y = b.permute(y, &[0, 2, 1, 3]).expect("permute");
        let rows = b.dims(x[0]);
        b.reshape(y, &rows).expect("reshape")
    };
    let groups = check("heads", symbols, &Case { inputs: &inputs, build: &build }, &[]);
    assert_eq!(groups, [2]);
}

#[test]
fn products_of_every_height_and_depth_are_right() {
    for (m, k, n) in [(1, 9000, 40), (2, 70, 33), (13, 300, 65), (29, 513, 31), (128, 520, 40), (187, 64, 70)]
    {
        let inputs = [(DType::F32, fixed(&[m, k]), vec![m, k]), (DType::F32, fixed(&[k, n]), vec![k, n])];
        let build = |b: &mut Builder<'_>, x: &[ValueId]| {
            b.contract(x[0], x[1], &[], &[(1, 0)], DType::F32).expect("a product")
        };
        let name = format!("{m} x {k} x {n}");
        check(&name, Symbols::new(), &Case { inputs: &inputs, build: &build }, &[1]);
        check(&name, Symbols::new(), &Case { inputs: &inputs, build: &build }, &[]);
    }
}

#[test]
fn products_of_bytes_are_exact() {
    for (left, right) in
        [(DType::U8, DType::I8), (DType::I8, DType::I8), (DType::I8, DType::U8), (DType::U8, DType::U8)]
    {
        for (m, k, n) in [(1, 64, 32), (37, 100, 70), (5, 2100, 33)] {
            let inputs = [
                (left, fixed(&[m, k]), vec![m, k]),
                (right, fixed(&[k, n]), vec![k, n]),
                (left, vec![], vec![]),
            ];
            let build = |b: &mut Builder<'_>, x: &[ValueId]| {
                let wide = |b: &mut Builder<'_>, v| b.convert(v, DType::I32).expect("a cast");
                let (a, w, z) = (wide(b, x[0]), wide(b, x[1]), wide(b, x[2]));
                let a = b.sub(a, z).expect("a difference");
                b.contract(a, w, &[], &[(1, 0)], DType::I32).expect("a product")
            };
            let name = format!("{left} x {right}, {m} x {k} x {n}");
            check(&name, Symbols::new(), &Case { inputs: &inputs, build: &build }, &[1]);
            let mut symbols = Symbols::new();
            let rows = Dim::from(symbols.fresh("m"));
            let [a, w, z] = inputs;
            let inputs = [(left, vec![rows, Dim::from(k as i64)], a.2), w, z];
            check(&name, symbols, &Case { inputs: &inputs, build: &build }, &[1]);
        }
    }
}

#[test]
fn attention_of_bf16_is_one_kernel_and_right() {
    // Queries, keys, head size, columns, whether sizes are known before.
    let cases = [
        (37, 70, 64, 64, true),
        (9, 33, 32, 40, true),
        (130, 300, 64, 72, true),
        (1, 50, 64, 64, true),
        (20, 40, 24, 32, true),
        (43, 77, 32, 32, false),
        (3, 64, 64, 32, false),
    ];
    for (s, t, d, c, known) in cases {
        let mut symbols = Symbols::new();
        let mut size = |n: usize, name: &str| match known {
            true => Dim::from(n as i64),
            false => Dim::from(symbols.fresh(name)),
        };
        let (rows, keys) = (size(s, "s"), size(t, "t"));
        let dims = |n: &Dim, d: usize| vec![Dim::from(2), n.clone(), Dim::from(3), Dim::from(d as i64)];
        let inputs = [
            (DType::F32, dims(&rows, d), vec![2, s, 3, d]),
            (DType::F32, dims(&keys, d), vec![2, t, 3, d]),
            (DType::F32, dims(&keys, c), vec![2, t, 3, c]),
            (DType::F32, vec![Dim::from(2), Dim::from(1), Dim::from(1), keys.clone()], vec![2, 1, 1, t]),
        ];
        let build = |b: &mut Builder<'_>, x: &[ValueId]| {
            let heads = |b: &mut Builder<'_>, v: ValueId| {
                let v = b.convert(v, DType::BF16).expect("a cast");
                b.permute(v, &[0, 2, 1, 3]).expect("permute")
            };
            let (q, k, v) = (heads(b, x[0]), heads(b, x[1]), heads(b, x[2]));
            let scores = b.contract(q, k, &[(0, 0), (1, 1)], &[(3, 3)], DType::F32).expect("scores");
            let scores = b.sub(scores, x[3]).expect("a mask");
            let p = b.softmax(scores, 3).expect("softmax");
            let p = b.convert(p, DType::BF16).expect("a cast");
            let y = b.contract(p, v, &[(0, 0), (1, 1)], &[(3, 2)], DType::F32).expect("a product");
            let y = b.permute(y, &[0, 2, 1, 3]).expect("permute");
            b.convert(y, DType::BF16).expect("a cast")
        };
        let name = format!("{s} queries, {t} keys of {d}");
        let groups = check(&name, symbols, &Case { inputs: &inputs, build: &build }, &[]);
        assert_eq!(groups, [2], "{name}");
    }
}

#[test]
fn products_of_bf16_are_right_whatever_the_right_operand() {
    for (m, k, n) in [(37, 64, 70), (5, 1056, 33), (129, 96, 64)] {
        for (across, constants) in [(false, &[][..]), (true, &[]), (false, &[1]), (true, &[1])] {
            let right = if across { [3, n, k] } else { [3, k, n] };
            let inputs =
                [(DType::F32, fixed(&[3, m, k]), vec![3, m, k]), (DType::F32, fixed(&right), right.to_vec())];
            let build = |b: &mut Builder<'_>, x: &[ValueId]| {
                let left = b.convert(x[0], DType::BF16).expect("a cast");
                let right = b.convert(x[1], DType::BF16).expect("a cast");
                let over = (2, if across { 2 } else { 1 });
                b.contract(left, right, &[(0, 0)], &[over], DType::F32).expect("a product")
            };
            let name = format!("{m} x {k} x {n}, {across}, {constants:?}");
            check(&name, Symbols::new(), &Case { inputs: &inputs, build: &build }, constants);
        }
    }
}
