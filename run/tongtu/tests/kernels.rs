//! A kernel of the tile instruction set inside a graph, through the compiler and on the CPU.

use tongtu::{Options, Session, Tensor, Value, VerifyOptions, pipeline};
use tongtu_graph::composite::Granularity;
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

/// Rows of `f32`, or of bytes in runs of 32 with a scale of their own, times 4-bit numbers in such runs.
fn four_bits(rows: i64, bytes: bool) -> Module {
    let mut m = Module::default();
    let rows = if rows == 0 { Dim::from(m.symbols.fresh("rows")) } else { Dim::from(rows) };
    let x = m.graph.add_input(Type::tensor(DType::F32, [rows.clone(), 192.into()]), Some("x".into()));
    let mut b = Builder::new(&mut m.graph, &mut m.symbols);
    let number = |i: usize| (((i * 11) ^ (i / 7)) % 16) as i64;
    let w = b.constant(Tensor::from_fn(DType::U4, &[128, 192], |i| number(i).into()).unwrap()).unwrap();
    let zeros = b.constant(Tensor::from_fn(DType::U4, &[128, 6], |_| 6i64.into()).unwrap()).unwrap();
    let scale = |i: usize| [0.5, 0.25, 2.0][i % 3].into();
    let scales = b.constant(Tensor::from_fn(DType::F32, &[128, 6], scale).unwrap()).unwrap();
    let runs = Granularity::Block { axis: 1, size: 32 };
    let w = b.dequantize(w, scales, Some(zeros), DType::F32, runs).unwrap();
    let own = b.constant(Tensor::from_fn(DType::F32, &[6], |i| scale(i + 1)).unwrap()).unwrap();
    let own = b.broadcast(own, &[rows, 6.into()], &[1]).unwrap();
    let q = b.quantize(x, own, None, DType::I8, runs, true).unwrap();
    let q = if bytes { b.dequantize(q, own, None, DType::F32, runs).unwrap() } else { x };
    m.graph.outputs = vec![b.contract(q, w, &[], &[(1, 1)], DType::F32).unwrap()];
    m
}

#[test]
fn rows_times_four_bit_numbers() {
    for (known, bytes, rows) in
        [(1, true, 1), (5, true, 5), (0, true, 7), (12, true, 12), (1, false, 1), (3, false, 3)]
    {
        let m = four_bits(known, bytes);
        let plan = pipeline::compile(m.clone(), &Options::host().threads(1).without_cache()).unwrap();
        let session = Session::from_plan(plan, &Options::host().threads(1)).unwrap();
        // Small whole numbers and quarters: sums are exact.
        let values: Vec<f32> = (0..rows * 192).map(|i| ((i * 29) % 97) as f32 * 0.25 - 12.0).collect();
        let x = Tensor::from_slice(&[rows, 192], &values).unwrap();
        let want = run_tensors(&m, std::slice::from_ref(&x)).unwrap();
        let got = session.run(&[("x", Value::from(x))]).unwrap();
        let name = session.output_names()[0].to_string();
        assert!(got.tensor(&name).unwrap().same_bits(&want[0]), "{rows} rows, bytes: {bytes}");
    }
}
