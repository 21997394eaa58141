//! The interpreter on kernels whose results are plain to see.

use tongtu_tensor::scalar::Compare;
use tongtu_tensor::{Combiner, DType, Num};
use tongtu_tile::interp::{BufferData, Options, run};
use tongtu_tile::op::{Factor, Ordering, Scope};
use tongtu_tile::{Access, Kernel, KernelBuilder, Op, TileError, TileMap, Val, verify};

fn floats(b: &BufferData) -> Vec<f64> {
    b.to_f64()
}

fn execute(k: &Kernel, grid: [i64; 3], buffers: &mut [BufferData], scalars: &[i64]) -> Result<(), TileError> {
    verify(k).unwrap_or_else(|e| panic!("{}", e[0]));
    let scalars: Vec<Num> = scalars.iter().map(|&s| Num::from(s)).collect();
    run(k, grid, buffers, &scalars, &Options::default())
}

/// A kernel from a buffer of f32 to another: views on both of [n, m] row-major, with n and m scalars.
fn between(body: impl FnOnce(&mut KernelBuilder, Val, Val, [Val; 2]) -> Result<(), TileError>) -> Kernel {
    let mut b = KernelBuilder::new("k");
    let (x, y) = (b.buffer("x", DType::F32, Access::Read), b.buffer("y", DType::F32, Access::Write));
    let (n, m) = (b.scalar("n", DType::I64), b.scalar("m", DType::I64));
    let (o, one) = (b.int(0), b.int(1));
    let vx = b.view(x, o, &[n, m], &[m, one]).unwrap();
    let vy = b.view(y, o, &[n, m], &[m, one]).unwrap();
    body(&mut b, vx, vy, [n, m]).unwrap();
    b.finish()
}

#[test]
fn blocks_are_padded_and_clipped() {
    let k = between(|b, vx, vy, _| {
        let (at, o) = (b.int(-1), b.int(0));
        let map = TileMap::along(&[3, 4], &[0, 1]);
        let t = b.load(vx, &[at, at], map.clone(), &[false, false], Num::Float(9.0))?;
        b.store(vy, t, &[o, o], map, &[false, false])
    });
    let x: Vec<f64> = (1..=6).map(f64::from).collect();
    let mut buffers =
        [BufferData::from_f64(DType::F32, &x), BufferData::full(DType::F32, 6, Num::Float(0.0))];
    execute(&k, [1, 1, 1], &mut buffers, &[2, 3]).unwrap();
    assert_eq!(floats(&buffers[1]), [9.0, 9.0, 9.0, 9.0, 1.0, 2.0]);
}

#[test]
fn factors_step_along_one_dim_or_none() {
    // Pairs of rows interleaved, each element twice.
    let k = between(|b, vx, vy, _| {
        let o = b.int(0);
        let f = |size, dim, step| Factor { size, dim, step };
        let map = TileMap(vec![vec![f(2, Some(1), 1), f(2, Some(0), 1)], vec![f(2, None, 1)]]);
        let t = b.load(vx, &[o, o], map, &[true, true], Num::Float(0.0))?;
        let t = b.reshape(t, &[1, 8])?;
        b.store(vy, t, &[o, o], TileMap::along(&[1, 8], &[0, 1]), &[true, false])
    });
    let x: Vec<f64> = (0..16).map(f64::from).collect();
    let mut buffers =
        [BufferData::from_f64(DType::F32, &x), BufferData::full(DType::F32, 16, Num::Float(-1.0))];
    execute(&k, [1, 1, 1], &mut buffers, &[2, 8]).unwrap();
    assert_eq!(floats(&buffers[1])[..8], [0.0, 0.0, 8.0, 8.0, 1.0, 1.0, 9.0, 9.0]);
}

fn failure(r: Result<(), TileError>) -> String {
    match r {
        Err(TileError::Run { detail, .. }) => detail,
        other => panic!("{other:?}"),
    }
}

#[test]
fn broken_programs_are_caught() {
    let wrong = |inside: bool, n: i64| {
        let k = between(|b, vx, vy, _| {
            let o = b.int(0);
            let map = TileMap::along(&[4, 4], &[0, 1]);
            let t = b.load(vx, &[o, o], map.clone(), &[inside, true], Num::Float(0.0))?;
            b.store(vy, t, &[o, o], map, &[false, true])
        });
        let zeros = BufferData::full(DType::F32, 8, Num::Float(0.0));
        execute(&k, [1, 1, 1], &mut [zeros.clone(), zeros], &[n, 4])
    };
    wrong(false, 2).unwrap();
    assert!(failure(wrong(true, 2)).contains("declared inside"));
    assert!(failure(wrong(false, 3)).contains("of a buffer of 8"));

    let mut b = KernelBuilder::new("scratch");
    let y = b.buffer("y", DType::F32, Access::Write);
    let s = b.alloc(DType::F32, 4).unwrap();
    let i = b.iota(DType::I32, &[4], 0).unwrap();
    let t = b.gather(s, i, None, Num::Float(0.0)).unwrap();
    b.scatter(y, i, t, None).unwrap();
    let k = b.finish();
    let mut buffers = [BufferData::full(DType::F32, 4, Num::Float(0.0))];
    assert!(failure(execute(&k, [1, 1, 1], &mut buffers, &[])).contains("before it is written"));
    assert_eq!(buffers[0].codes.len(), 4, "buffers come back after a failure");

    let mut b = KernelBuilder::new("forever");
    let go = b.full(DType::Bool, &[], Num::Int(1)).unwrap();
    b.while_loop(go, &[], |_, _| Ok((go, vec![]))).unwrap();
    let options = Options { max_steps: 1000, ..Options::default() };
    assert!(failure(run(&b.finish(), [1, 1, 1], &mut [], &[], &options)).contains("steps"));
    let mut none = [BufferData::full(DType::F32, 1, Num::Float(0.0))];
    assert!(
        failure(execute(&KernelBuilder::new("k").finish(), [1, 1, 1], &mut none, &[])).contains("too many")
    );
}

#[test]
fn atomics_add_up_over_the_grid() {
    let mut b = KernelBuilder::new("k");
    let (sum, old) =
        (b.buffer("sum", DType::I32, Access::ReadWrite), b.buffer("old", DType::I32, Access::Write));
    let ones = b.splat(DType::I32, &[3], 1.0).unwrap();
    let zeros = b.splat(DType::I64, &[3], 0.0).unwrap();
    let reduce = Op::AtomicReduce { combiner: Combiner::Add, scope: Scope::Device, masked: false };
    b.add_inst(reduce, &[sum, zeros, ones]).unwrap();
    let p = b.program_id(0).unwrap();
    let at = b.reshape(p, &[1]).unwrap();
    let zero = b.splat(DType::I64, &[1], 0.0).unwrap();
    let one = b.splat(DType::I32, &[1], 1.0).unwrap();
    let rmw = Op::AtomicRmw {
        combiner: Combiner::Add,
        ordering: Ordering::Relaxed,
        scope: Scope::Device,
        masked: false,
    };
    let was = b.add_inst(rmw, &[sum, zero, one]).unwrap()[0];
    b.scatter(old, at, was, None).unwrap();
    let k = b.finish();
    for reverse in [false, true] {
        let mut buffers =
            [BufferData::full(DType::I32, 1, Num::Int(0)), BufferData::full(DType::I32, 2, Num::Int(0))];
        run(&k, [2, 1, 1], &mut buffers, &[], &Options { reverse, ..Options::default() }).unwrap();
        assert_eq!(buffers[0].to_f64(), [8.0]);
        assert_eq!(buffers[1].to_f64(), if reverse { [7.0, 3.0] } else { [3.0, 7.0] });
    }
}

#[test]
fn pairs_and_scans() {
    let values = [1.0, 5.0, 5.0, -2.0];
    let mut b = KernelBuilder::new("k");
    let (x, y) = (b.buffer("x", DType::F32, Access::Read), b.buffer("y", DType::I32, Access::Write));
    let z = b.buffer("z", DType::F32, Access::Write);
    let i = b.iota(DType::I32, &[4], 0).unwrap();
    let t = b.gather(x, i, None, Num::Float(0.0)).unwrap();
    let all = [Combiner::ArgMax, Combiner::ArgMaxLast, Combiner::ArgMin];
    let found: Vec<Val> = all
        .iter()
        .map(|&combiner| {
            let r = b.add_inst(Op::Reduce { combiner, dims: vec![0] }, &[t, i]).unwrap();
            b.reshape(r[1], &[1]).unwrap()
        })
        .collect();
    let r = b.concat(&found, 0).unwrap();
    let j = b.iota(DType::I32, &[3], 0).unwrap();
    b.scatter(y, j, r, None).unwrap();
    let s = b.add_inst(Op::Scan { combiner: Combiner::Add, dim: 0, reverse: true }, &[t]).unwrap()[0];
    let four = b.splat(DType::I32, &[4], 4.0).unwrap();
    let m = b.compare(Compare::Lt, i, four).unwrap();
    b.scatter(z, i, s, Some(m)).unwrap();
    let k = b.finish();
    let outcome = |values: &[f64]| {
        let out =
            [BufferData::full(DType::I32, 3, Num::Int(0)), BufferData::full(DType::F32, 4, Num::Float(0.0))];
        let [y, z] = out;
        let mut buffers = [BufferData::from_f64(DType::F32, values), y, z];
        execute(&k, [1, 1, 1], &mut buffers, &[]).unwrap();
        (buffers[1].to_f64(), buffers[2].to_f64())
    };
    assert_eq!(outcome(&values), (vec![1.0, 2.0, 3.0], vec![9.0, 8.0, 3.0, -2.0]));
    assert_eq!(outcome(&[1.0, f64::NAN, 5.0, f64::NAN]).0, [1.0, 3.0, 1.0]);
}
