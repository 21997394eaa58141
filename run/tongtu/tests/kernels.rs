//! A kernel of the tile instruction set inside a graph, through the compiler and on the CPU.

use tongtu::{Options, Session, Tensor, Value, VerifyOptions, pipeline};
use tongtu_graph::eval::run_tensors;
use tongtu_graph::{Builder, Module, Op, Type};
use tongtu_tensor::{DType, Dim};
use tongtu_tile::{Access, KernelBuilder, TileMap};

/// `y += x · x` for a block of 16 elements of row `y` of the grid, rows of `n` elements.
fn square_and_add() -> String {
    let mut b = KernelBuilder::new("square and add");
    let x = b.buffer("x", DType::F32, Access::Read);
    let y = b.buffer("y", DType::F32, Access::ReadWrite);
    let (rows, n) = (b.scalar("rows", DType::I64), b.scalar("n", DType::I64));
    let (zero, one, width) = (b.int(0), b.int(1), b.int(16));
    let (block, row) = (b.program_id(0).unwrap(), b.program_id(1).unwrap());
    let at = b.mul(block, width).unwrap();
    let map = TileMap::along(&[16], &[1]);
    let tile = |b: &mut KernelBuilder, v| {
        let view = b.view(v, zero, &[rows, n], &[n, one]).unwrap();
        (view, b.load(view, &[row, at], map.clone(), &[false, false], 0.0.into()).unwrap())
    };
    let (_, xs) = tile(&mut b, x);
    let (out, ys) = tile(&mut b, y);
    let square = b.mul(xs, xs).unwrap();
    let sum = b.add(ys, square).unwrap();
    b.store(out, sum, &[row, at], map.clone(), &[false, false]).unwrap();
    b.finish().to_string()
}

/// `w = kernel(relu(x), x)` and `w + x`: the operand that shares a buffer with the result is used again.
fn module() -> Module {
    let mut m = Module::default();
    let (rows, n) = (Dim::from(m.symbols.fresh("rows")), Dim::from(m.symbols.fresh("n")));
    let ty = Type::tensor(DType::F32, [rows.clone(), n.clone()]);
    let x = m.graph.add_input(ty.clone(), Some("x".into()));
    let mut b = Builder::new(&mut m.graph, &mut m.symbols);
    let z = b.relu(x).unwrap();
    let op = Op::Kernel {
        code: square_and_add(),
        grid: vec![n.ceildiv(&Dim::from(16)), rows.clone()],
        scalars: vec![rows, n],
        in_place: vec![(1, 0)],
        results: vec![ty],
    };
    let w = b.one(op, &[z, x]).unwrap();
    let y = b.add2(w, x).unwrap();
    m.graph.outputs = vec![w, y];
    m
}

#[test]
fn a_kernel_of_the_model_is_compiled_and_verified() {
    let m = module();
    let plan = pipeline::compile(m.clone(), &Options::host().threads(1).without_cache()).unwrap();
    let session = Session::from_plan(plan, &Options::host().threads(1)).unwrap();
    for (rows, n) in [(1usize, 1usize), (3, 16), (5, 37), (2, 0)] {
        let values: Vec<f32> = (0..rows * n).map(|i| (i as f32 - 20.0) * 0.25).collect();
        let x = Tensor::from_slice(&[rows, n], &values).unwrap();
        let want = run_tensors(&m, std::slice::from_ref(&x)).unwrap();
        let (got, report) = session.verify(&[("x", x.clone())], &VerifyOptions::default()).unwrap();
        assert!(report.passes(), "{rows} x {n}");
        let names = session.output_names();
        for (name, want) in names.iter().zip(&want) {
            assert!(got.tensor(name).unwrap().same_bits(want), "{name}, {rows} x {n}");
        }
        // The operand that shares the result's buffer keeps its contents.
        let again = session.run(&[("x", Value::from(x))]).unwrap();
        assert!(again.tensor(names[1]).unwrap().same_bits(&want[1]), "{rows} x {n}");
    }
}
