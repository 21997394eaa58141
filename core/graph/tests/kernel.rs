//! The operation `kernel`: what it computes, and what it refuses.

use tongtu_graph::eval::run_tensors;
use tongtu_graph::{GraphError, Loc, Module, Node, Op, Type, verify};
use tongtu_tensor::{DType, Dim, Tensor};
use tongtu_tile::{Access, KernelBuilder, TileMap};

/// `y += a · x` over blocks of 8, one for each instance; `a` is the first of `scale`.
fn axpy() -> String {
    let mut b = KernelBuilder::new("axpy");
    let x = b.buffer("x", DType::F32, Access::Read);
    let scale = b.buffer("scale", DType::F32, Access::Read);
    let y = b.buffer("y", DType::F32, Access::ReadWrite);
    let n = b.scalar("n", DType::I64);
    let (zero, one, eight) = (b.int(0), b.int(1), b.int(8));
    let pid = b.program_id(0).unwrap();
    let at = b.mul(pid, eight).unwrap();
    let map = TileMap::along(&[8], &[0]);
    let block = |b: &mut KernelBuilder, v| {
        let view = b.view(v, zero, &[n], &[one]).unwrap();
        (view, b.load(view, &[at], map.clone(), &[false], 0.0.into()).unwrap())
    };
    let (_, xs) = block(&mut b, x);
    let (out, ys) = block(&mut b, y);
    let first = b.view(scale, zero, &[one], &[one]).unwrap();
    let a = b.load(first, &[zero], TileMap::along(&[1], &[0]), &[false], 0.0.into()).unwrap();
    let a = b.broadcast(a, &[8]).unwrap();
    let product = b.mul(a, xs).unwrap();
    let sum = b.add(ys, product).unwrap();
    b.store(out, sum, &[at], map.clone(), &[false]).unwrap();
    b.finish().to_string()
}

/// A module of one kernel node on `x [n]`, `scale [1]` and `y [n]`.
fn module(change: impl Fn(&mut Op)) -> Module {
    let mut m = Module::default();
    let n = Dim::from(m.symbols.fresh("n"));
    let vector = Type::tensor(DType::F32, [n.clone()]);
    let types = [vector.clone(), Type::tensor(DType::F32, [Dim::from(1)]), vector.clone()];
    let inputs: Vec<_> = types.iter().map(|t| m.graph.add_input(t.clone(), None)).collect();
    let mut op = Op::Kernel {
        code: axpy(),
        grid: vec![n.ceildiv(&Dim::from(8))],
        scalars: vec![n],
        in_place: vec![(2, 0)],
        results: vec![vector],
    };
    change(&mut op);
    let out = m.graph.add_value(types[2].clone(), None);
    m.graph.nodes.push(Node { op, inputs, outputs: vec![out], loc: Loc::default() });
    m.graph.outputs = vec![out];
    m
}

#[test]
fn a_kernel_runs_over_its_grid() {
    let m = module(|_| {});
    assert!(verify(&m).is_ok(), "{:?}", verify(&m));
    for n in [0usize, 1, 8, 21] {
        let ramp =
            |k: f32| Tensor::from_slice(&[n], &(0..n).map(|i| k * i as f32).collect::<Vec<_>>()).unwrap();
        let scale = Tensor::from_slice(&[1], &[2f32]).unwrap();
        let y = ramp(10.0);
        let out = run_tensors(&m, &[ramp(1.0), scale, y.clone()]).unwrap();
        assert!(out[0].same_bits(&ramp(12.0)), "{n}");
        assert!(y.same_bits(&ramp(10.0)), "the operand keeps its own");
    }
}

#[test]
fn text_round_trips() {
    let text = module(|_| {}).to_string();
    assert_eq!(text.parse::<Module>().unwrap().to_string(), text);
}

type Change = fn(&mut Op);

#[test]
fn what_does_not_fit_is_refused() {
    let changes: [(&str, Change); 6] = [
        ("no kernel", |op| edit(op, |code, _, _, _| *code = "kernel".into())),
        ("no grid", |op| edit(op, |_, grid, _, _| grid.clear())),
        ("too many extents", |op| edit(op, |_, grid, _, _| *grid = vec![Dim::from(1); 4])),
        ("no scalar", |op| edit(op, |_, _, scalars, _| scalars.clear())),
        ("a result that is read", |op| edit(op, |_, _, _, in_place| in_place.clear())),
        ("an operand of another type", |op| edit(op, |_, _, _, in_place| *in_place = vec![(1, 0)])),
    ];
    for (what, change) in changes {
        let errors = verify(&module(change)).expect_err(what);
        assert!(matches!(errors[0], GraphError::Type { .. }), "{what}: {}", errors[0]);
    }
}

fn edit(op: &mut Op, f: impl Fn(&mut String, &mut Vec<Dim>, &mut Vec<Dim>, &mut Vec<(usize, usize)>)) {
    if let Op::Kernel { code, grid, scalars, in_place, .. } = op {
        f(code, grid, scalars, in_place);
    }
}
