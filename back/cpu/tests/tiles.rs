//! Instructions on memory, shapes, reductions, products and control flow, machine code against the
//! interpreter.

#![cfg(any(feature = "llvm", feature = "llvm-static"))]

mod common;

use common::{Near, check, samples, small};
use tongtu_tensor::scalar::{Binary, Compare};
use tongtu_tensor::{Combiner, DType, Num};
use tongtu_tile::interp::BufferData;
use tongtu_tile::{Access, Factor, Kernel, KernelBuilder, Op, TileError, TileMap, Val};

type Built = Result<Kernel, TileError>;

fn zeros(d: DType, n: usize) -> BufferData {
    BufferData { dtype: d, codes: vec![0; n] }
}

/// A row-major view of a whole buffer.
fn view(b: &mut KernelBuilder, buffer: Val, dims: &[i64]) -> Result<Val, TileError> {
    let mut strides = vec![1; dims.len()];
    for i in (1..dims.len()).rev() {
        strides[i - 1] = strides[i] * dims[i];
    }
    let zero = b.int(0);
    let dims: Vec<Val> = dims.iter().map(|d| b.int(*d)).collect();
    let strides: Vec<Val> = strides.iter().map(|s| b.int(*s)).collect();
    b.view(buffer, zero, &dims, &strides)
}

/// A kernel that loads whole tiles, applies `f`, and stores the results whole.
fn whole(
    name: &str,
    from: &[(DType, &[usize])],
    f: impl FnOnce(&mut KernelBuilder, &[Val]) -> Result<Vec<Val>, TileError>,
) -> Kernel {
    let build = || -> Built {
        let mut b = KernelBuilder::new(name);
        let inputs: Vec<Val> =
            from.iter().enumerate().map(|(i, (d, _))| b.buffer(&format!("x{i}"), *d, Access::Read)).collect();
        let zero = b.int(0);
        let mut tiles = Vec::new();
        for (x, (d, shape)) in inputs.iter().zip(from) {
            let dims: Vec<i64> = shape.iter().map(|n| *n as i64).collect();
            let v = view(&mut b, *x, &dims)?;
            let at = vec![zero; shape.len()];
            let map = TileMap::trailing(shape, shape.len());
            tiles.push(b.load(v, &at, map, &vec![true; shape.len()], d.decode(0))?);
        }
        for (i, y) in f(&mut b, &tiles)?.into_iter().enumerate() {
            let (d, shape) = (b.dtype(y), b.shape(y));
            let out = b.buffer(&format!("y{i}"), d, Access::Write);
            let dims: Vec<i64> = shape.iter().map(|n| *n as i64).collect();
            let v = view(&mut b, out, &dims)?;
            let map = TileMap::trailing(&shape, shape.len());
            b.store(v, y, &vec![zero; shape.len()], map, &vec![true; shape.len()])?;
        }
        Ok(b.finish())
    };
    build().unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn count(shape: &[usize]) -> usize {
    shape.iter().product()
}

const SOME: [DType; 9] = [
    DType::Bool,
    DType::I4,
    DType::U8,
    DType::I32,
    DType::I64,
    DType::F16,
    DType::BF16,
    DType::F32,
    DType::F64,
];

#[test]
fn moving_elements() {
    for d in SOME {
        for shape in [[3usize, 5, 19], [1, 8, 8], [2, 16, 16], [1, 32, 4], [4, 1, 7]] {
            let [a, m, n] = shape;
            if d.bits() < 8 && count(&shape) > 300 {
                continue;
            }
            let k = whole(&format!("move_{d}_{shape:?}"), &[(d, &shape)], |b, x| {
                let x = x[0];
                Ok(vec![
                    b.permute(x, &[0, 2, 1])?,
                    b.permute(x, &[2, 0, 1])?,
                    b.reshape(x, &[a * n, m])?,
                    b.reshape(x, &[a * m * n])?,
                    b.extract(x, &[0, m / 2, n / 2], &[a, 1, n - n / 2])?,
                    b.concat(&[x, x], 2)?,
                    b.concat(&[x, x], 0)?,
                    b.broadcast(x, &[2, a, m, n])?,
                ])
            });
            let mut buffers = vec![samples(d, count(&shape), 1)];
            for factor in [1, 1, 1, 1, 0, 2, 2, 2] {
                let n = if factor == 0 { a * (n - n / 2) } else { factor * count(&shape) };
                buffers.push(zeros(d, n));
            }
            check(&k, [1, 1, 1], &buffers, &[], Near::Same);
        }
    }
}

#[test]
fn broadcasts_and_counts() {
    let k = whole("broadcast", &[(DType::F32, &[5, 1]), (DType::I8, &[1, 21]), (DType::F64, &[])], |b, x| {
        Ok(vec![
            b.broadcast(x[0], &[5, 35])?,
            b.broadcast(x[1], &[3, 4, 21])?,
            b.broadcast(x[2], &[2, 9])?,
            b.iota(DType::I32, &[3, 18], 0)?,
            b.iota(DType::U8, &[3, 18], 1)?,
            b.iota(DType::I4, &[40], 0)?,
            b.splat(DType::BF16, &[17], 1.5)?,
            b.splat(DType::Bool, &[17], 1.0)?,
        ])
    });
    let buffers = [
        samples(DType::F32, 5, 1),
        samples(DType::I8, 21, 2),
        samples(DType::F64, 1, 3),
        zeros(DType::F32, 175),
        zeros(DType::I8, 252),
        zeros(DType::F64, 18),
        zeros(DType::I32, 54),
        zeros(DType::U8, 54),
        zeros(DType::I4, 40),
        zeros(DType::BF16, 17),
        zeros(DType::Bool, 17),
    ];
    check(&k, [1, 1, 1], &buffers, &[], Near::Same);
}

#[test]
fn taking_elements() {
    for d in SOME {
        for (dim, shape, index) in [(1, [4, 21], [4, 9]), (0, [7, 18], [3, 18])] {
            let k = whole(&format!("take_{d}_{dim}"), &[(d, &shape), (DType::I32, &index)], |b, x| {
                b.add_inst(Op::TakeAlong { dim }, x)
            });
            let mut at = samples(DType::I32, count(&index), 3);
            at.codes.iter_mut().enumerate().filter(|(i, _)| i % 3 != 0).for_each(|(_, c)| *c %= 7);
            check(
                &k,
                [1, 1, 1],
                &[samples(d, count(&shape), 2), at, zeros(d, count(&index))],
                &[],
                Near::Same,
            );
        }
    }
}

#[test]
fn reductions_and_scans() {
    for d in [DType::Bool, DType::U8, DType::I32, DType::I64, DType::BF16, DType::F32] {
        for &c in Combiner::ALL {
            if c == Combiner::Replace
                || (d.is_float() && matches!(c, Combiner::And | Combiner::Or | Combiner::Xor))
            {
                continue;
            }
            let shape = [2usize, 3, 21];
            let inputs: Vec<(DType, &[usize])> =
                if c.arity() == 2 { vec![(d, &shape), (DType::I64, &shape)] } else { vec![(d, &shape)] };
            let k = whole(&format!("reduce_{}_{d}", c.name()), &inputs, |b, x| {
                let mut out = Vec::new();
                for dims in [vec![2], vec![0], vec![1, 2], vec![0, 1, 2]] {
                    out.extend(b.add_inst(Op::Reduce { combiner: c, dims }, x)?);
                }
                for (dim, reverse) in [(2, false), (2, true), (0, false), (1, true)] {
                    out.extend(b.add_inst(Op::Scan { combiner: c, dim, reverse }, x)?);
                }
                Ok(out)
            });
            let mut values = small(d, count(&shape), 5);
            if d.is_float() && c != Combiner::Add && c != Combiner::Mul {
                values.codes[50] = d.encode(Num::Float(f64::NAN), Default::default());
                values.codes[70] = d.encode(Num::Float(-0.0), Default::default());
            }
            if c == Combiner::Mul && d.is_float() {
                for (i, x) in values.codes.iter_mut().enumerate() {
                    *x = d.encode(Num::Float([2.0, 0.5, -1.0][i % 3]), Default::default());
                }
            }
            let index =
                BufferData::from_nums(DType::I64, (0..count(&shape)).map(|i| Num::Int((i as i128 * 8) % 21)));
            let mut buffers = vec![values];
            if c.arity() == 2 {
                buffers.push(index);
            }
            for n in [6, 63, 2, 1, 126, 126, 126, 126] {
                buffers.push(zeros(d, n));
                if c.arity() == 2 {
                    buffers.push(zeros(DType::I64, n));
                }
            }
            let near = match (c, d) {
                (Combiner::Add | Combiner::Mul, DType::F16 | DType::BF16) => Near::Share(0.05),
                (Combiner::Add | Combiner::Mul, d) if d.is_float() => Near::Share(1e-5),
                _ => Near::Same,
            };
            check(&k, [1, 1, 1], &buffers, &[], near);
        }
    }
}

#[test]
fn products() {
    let kinds = [
        (DType::F32, DType::F32, DType::F32),
        (DType::F64, DType::F64, DType::F64),
        (DType::F32, DType::BF16, DType::BF16),
        (DType::F32, DType::F16, DType::F16),
        (DType::F16, DType::F16, DType::F16),
        (DType::F32, DType::F8E4M3FN, DType::F8E5M2),
        (DType::I32, DType::I8, DType::I8),
        (DType::I32, DType::U8, DType::I8),
        (DType::I64, DType::I32, DType::I32),
    ];
    for (acc, a, b) in kinds {
        for (m, n, k) in [(3, 37, 5), (1, 16, 8), (6, 1, 3), (16, 16, 32), (32, 32, 64)] {
            if m >= 16 && !matches!(a, DType::F32 | DType::BF16 | DType::I8 | DType::U8)
                || (m == 32 && a == DType::F32)
            {
                continue;
            }
            let kernel = whole(
                &format!("mma_{acc}_{a}_{b}_{m}x{n}x{k}"),
                &[(acc, &[m, n]), (a, &[m, k]), (b, &[k, n])],
                |b, x| Ok(vec![b.mma(x[0], x[1], x[2])?]),
            );
            let buffers = [small(acc, m * n, 1), small(a, m * k, 2), small(b, k * n, 3), zeros(acc, m * n)];
            let near = if acc.is_float() {
                Near::Share(if acc == DType::F16 { 0.02 } else { 1e-5 })
            } else {
                Near::Same
            };
            check(&kernel, [1, 1, 1], &buffers, &[], near);
        }
    }
}

/// A block at a moving place of a padded, strided two-dimensional window, copied to the same place of the result.
fn window(d: DType, name: &str, map: TileMap, stride: i64) -> Kernel {
    let build = || -> Built {
        let mut b = KernelBuilder::new(name);
        let (x, y) = (b.buffer("x", d, Access::Read), b.buffer("y", d, Access::ReadWrite));
        let (zero, one) = (b.int(0), b.int(1));
        let (h, w) = (b.int(11), b.int(23));
        let (px, py) = (b.program_id(0)?, b.program_id(1)?);
        let (px, py) = (b.mul_int(px, 10)?, b.mul_int(py, 3)?);
        let at = [b.add_int(py, -3)?, b.add_int(px, -7)?];
        let row = b.int(23 * stride);
        let step = if stride == 1 { one } else { b.int(stride) };
        let from = b.view(x, zero, &[h, w], &[row, step])?;
        let pad = d.decode(1);
        let t = b.load(from, &at, map.clone(), &[false, false], pad)?;
        // Each instance has a place of its own in the result.
        let (gx, gy) = (b.num_programs(0)?, b.num_programs(1)?);
        let _ = gy;
        let (ix, iy) = (b.program_id(0)?, b.program_id(1)?);
        let i = b.mul(iy, gx)?;
        let i = b.add(i, ix)?;
        let shape = map.shape();
        let size = b.int(count(&shape) as i64);
        let offset = b.mul(i, size)?;
        let dims: Vec<Val> = shape.iter().map(|n| b.int(*n as i64)).collect();
        let mut strides = vec![1i64; shape.len()];
        for k in (1..shape.len()).rev() {
            strides[k - 1] = strides[k] * shape[k] as i64;
        }
        let strides: Vec<Val> = strides.iter().map(|s| b.int(*s)).collect();
        let to = b.view(y, offset, &dims, &strides)?;
        // A shifted store drops what falls outside.
        let mut index = vec![zero; shape.len()];
        index[shape.len() - 1] = b.int(2);
        b.store(to, t, &index, TileMap::trailing(&shape, shape.len()), &vec![false; shape.len()])?;
        Ok(b.finish())
    };
    build().unwrap_or_else(|e| panic!("{name}: {e}"))
}

#[test]
fn windows_and_edges() {
    let f = |size, dim, step| Factor { size, dim: Some(dim), step };
    let maps = [
        ("plain", TileMap::along(&[4, 19], &[0, 1])),
        ("turned", TileMap::along(&[19, 4], &[1, 0])),
        ("single", TileMap::along(&[1, 1], &[0, 1])),
        ("factors", TileMap(vec![vec![f(2, 0, 2)], vec![f(3, 1, 4), f(4, 1, 1)]])),
        ("pairs", TileMap(vec![vec![f(3, 0, 1)], vec![f(9, 1, 2), f(2, 0, 1)]])),
        ("backwards", TileMap(vec![vec![f(3, 0, 1)], vec![f(17, 1, -1)]])),
        ("repeat", TileMap(vec![vec![f(3, 0, 1)], vec![Factor { size: 17, dim: None, step: 1 }]])),
        ("far", TileMap(vec![vec![f(9, 0, 1)], vec![f(3, 1, 7)]])),
    ];
    for d in [DType::F32, DType::I8, DType::Bool, DType::F64, DType::I4, DType::F6E2M3, DType::BF16] {
        for (name, map) in &maps {
            for stride in [1, 3] {
                let k = window(d, &format!("{name}_{d}_{stride}"), map.clone(), stride);
                let size = count(&map.shape());
                let x = samples(d, 11 * 23 * stride as usize, 4);
                check(&k, [4, 5, 1], &[x, samples(d, size * 20, 9)], &[], Near::Same);
            }
        }
    }
}

#[test]
fn masks() {
    for d in [DType::F32, DType::U8, DType::Bool, DType::U2, DType::I64] {
        let build = || -> Built {
            let mut b = KernelBuilder::new(&format!("mask_{d}"));
            let (x, y) = (b.buffer("x", d, Access::Read), b.buffer("y", d, Access::ReadWrite));
            let m = b.buffer("m", DType::Bool, Access::Read);
            let shape = [3usize, 21];
            let zero = b.int(0);
            let (xv, yv, mv) =
                (view(&mut b, x, &[3, 20])?, view(&mut b, y, &[3, 20])?, view(&mut b, m, &[3, 21])?);
            let map = TileMap::trailing(&shape, 2);
            let mask = b.load(mv, &[zero, zero], map.clone(), &[true, true], Num::Int(0))?;
            let load =
                Op::Load { map: map.clone(), inside: vec![true, false], pad: d.decode(1), masked: true };
            let t = b.add_inst(load, &[xv, zero, zero, mask])?[0];
            let flipped = b.unary(tongtu_tensor::scalar::Unary::Not, mask)?;
            let t = b.select(flipped, t, t)?;
            b.add_inst(
                Op::Store { map, inside: vec![true, false], masked: true },
                &[yv, t, zero, zero, flipped],
            )?;
            Ok(b.finish())
        };
        let buffers = [samples(d, 60, 1), samples(d, 60, 2), samples(DType::Bool, 63, 3)];
        check(&build().unwrap(), [1, 1, 1], &buffers, &[], Near::Same);
    }
}

#[test]
fn gathers_scatters_and_atomics() {
    for d in [DType::F32, DType::I8, DType::Bool, DType::U4, DType::F64, DType::BF16, DType::I32] {
        let build = |what: &str| -> Built {
            let mut b = KernelBuilder::new(&format!("{what}_{d}"));
            let (x, y) = (b.buffer("x", d, Access::ReadWrite), b.buffer("y", d, Access::ReadWrite));
            let i = b.buffer("i", DType::I32, Access::Read);
            let m = b.buffer("m", DType::Bool, Access::Read);
            let shape = [2usize, 19];
            let zero = b.int(0);
            let (iv, yv) = (view(&mut b, i, &[2, 19])?, view(&mut b, y, &[2, 19])?);
            let mv = view(&mut b, m, &[2, 19])?;
            let map = TileMap::trailing(&shape, 2);
            let at = [zero, zero];
            let index = b.load(iv, &at, map.clone(), &[true, true], Num::Int(0))?;
            let mask = b.load(mv, &at, map.clone(), &[true, true], Num::Int(0))?;
            match what {
                "gather" => {
                    let t = b.gather(x, index, Some(mask), d.decode(1))?;
                    b.store(yv, t, &at, map, &[true, true])?;
                }
                "scatter" => {
                    let t = b.load(yv, &at, map, &[true, true], d.decode(0))?;
                    b.scatter(x, index, t, Some(mask))?;
                }
                other => {
                    let t = b.load(yv, &at, map.clone(), &[true, true], d.decode(0))?;
                    let combiner = Combiner::from_name(other).unwrap();
                    let (ordering, scope) = (tongtu_tile::Ordering::AcqRel, tongtu_tile::Scope::Device);
                    let op = Op::AtomicRmw { combiner, ordering, scope, masked: true };
                    let old = b.add_inst(op, &[x, index, t, mask])?[0];
                    b.store(yv, old, &at, map, &[true, true])?;
                }
            }
            Ok(b.finish())
        };
        let mut index = BufferData::from_nums(DType::I32, (0..38).map(|i| Num::Int((i * 7) % 11 - 1)));
        index.codes[5] = 1 << 31;
        let buffers = [small(d, 9, 1), small(d, 38, 2), index, samples(DType::Bool, 38, 3)];
        for what in ["gather", "scatter", "add", "max", "min", "replace", "xor"] {
            if (d.bits() < 8 && !matches!(what, "gather" | "scatter")) || (d.is_float() && what == "xor") {
                continue;
            }
            check(&build(what).unwrap(), [1, 1, 1], &buffers, &[], Near::Same);
        }
    }
}

#[test]
fn instances_add_atomically() {
    let build = || -> Built {
        let mut b = KernelBuilder::new("count");
        let x = b.buffer("x", DType::F32, Access::ReadWrite);
        let shape = [20usize];
        let index = b.iota(DType::I32, &shape, 0)?;
        let three = b.splat(DType::I32, &shape, 3.0)?;
        let index = b.binary(Binary::Rem, index, three)?;
        let one = b.splat(DType::F32, &shape, 1.0)?;
        let op =
            Op::AtomicReduce { combiner: Combiner::Add, scope: tongtu_tile::Scope::Device, masked: false };
        b.add_inst(op, &[x, index, one])?;
        Ok(b.finish())
    };
    check(&build().unwrap(), [100, 10, 5], &[zeros(DType::F32, 3)], &[], Near::Same);
}

#[test]
fn control_flow() {
    let build = || -> Built {
        let mut b = KernelBuilder::new("control");
        let x = b.buffer("x", DType::F32, Access::Read);
        let y = b.buffer("y", DType::F32, Access::Write);
        let n = b.scalar("n", DType::I64);
        let scale = b.scalar("scale", DType::F32);
        let flag = b.scalar("flag", DType::Bool);
        let scratch = b.alloc(DType::F32, 64)?;
        let (zero, one) = (b.int(0), b.int(1));
        let shape = [2usize, 18];
        let map = TileMap::trailing(&shape, 2);
        let len = b.buffer_len(x)?;
        let xv = b.view(x, zero, &[len], &[one])?;
        let start = b.splat(DType::F32, &shape, 0.0)?;
        let step = b.int(2);
        let sum = b.for_loop(zero, n, step, &[start, zero], |b, i, c| {
            let i36 = b.mul_int(i, 36)?;
            let flat = b.load(xv, &[i36], TileMap::along(&[36], &[0]), &[false], Num::Float(-1.0))?;
            let t = b.reshape(flat, &[2, 18])?;
            let odd = b.iota(DType::I32, &[2, 18], 1)?;
            let nine = b.splat(DType::I32, &[2, 18], 9.0)?;
            let p = b.compare(Compare::Lt, odd, nine)?;
            let t2 = b.add(t, t)?;
            let t = b.select(p, t, t2)?;
            Ok(vec![b.add(c[0], t)?, b.add_int(c[1], 1)?])
        })?;
        // Halve until small, at most ten times.
        let ten = b.int(10);
        let go = b.compare(Compare::Gt, sum[1], zero)?;
        let w = b.while_loop(go, &[sum[0], zero], |b, c| {
            let half = b.splat(DType::F32, &[2, 18], 0.5)?;
            let t = b.mul(c[0], half)?;
            let k = b.add_int(c[1], 1)?;
            let most = b.reduce(Combiner::Max, t, &[0, 1])?;
            let hundred = b.splat(DType::F32, &[], 100.0)?;
            let big = b.compare(Compare::Gt, most, hundred)?;
            let more = b.compare(Compare::Lt, k, ten)?;
            let go = b.binary(Binary::And, big, more)?;
            Ok((go, vec![t, k]))
        })?;
        let t = b.if_else(
            flag,
            |b| {
                let s = b.broadcast(scale, &[2, 18])?;
                Ok(vec![b.mul(w[0], s)?])
            },
            |b| {
                // Through scratch, turned round.
                let dims = [b.int(2), b.int(18)];
                let strides = [b.int(18), b.int(1)];
                let v = b.view(scratch, zero, &dims, &strides)?;
                b.store(v, w[0], &[zero, zero], TileMap::trailing(&[2, 18], 2), &[true, true])?;
                let f = |size, dim, step| Factor { size, dim: Some(dim), step };
                let back = TileMap(vec![vec![f(2, 0, 1)], vec![f(18, 1, -1)]]);
                let last = b.int(17);
                Ok(vec![b.load(v, &[zero, last], back, &[true, true], Num::Float(0.0))?])
            },
        )?;
        let yv = view(&mut b, y, &[2, 18])?;
        b.store(yv, t[0], &[zero, zero], map, &[true, true])?;
        Ok(b.finish())
    };
    let kernel = build().unwrap();
    for n in [0, 1, 7] {
        for flag in [0, 1] {
            let scalars =
                [(DType::I64, Num::Int(n)), (DType::F32, Num::Float(1.5)), (DType::Bool, Num::Int(flag))];
            check(
                &kernel,
                [1, 1, 1],
                &[samples(DType::F32, 200, 3), zeros(DType::F32, 36)],
                &scalars,
                Near::Same,
            );
        }
    }
}

#[test]
fn too_large_and_unsupported_are_refused() {
    let chip = &common::chips()[0];
    let large = whole("large", &[(DType::F32, &[512, 512])], |b, x| {
        let mut t = x[0];
        for _ in 0..8 {
            t = b.add(t, t)?;
        }
        Ok(vec![t])
    });
    assert!(common::compile(&large, chip).unwrap_err().to_string().contains("B002"));
    let log = whole("log", &[(DType::F32, &[8])], |b, x| {
        Ok(vec![b.unary(tongtu_tensor::scalar::Unary::Log, x[0])?])
    });
    assert!(common::compile(&log, chip).unwrap_err().to_string().contains("B001"));
}

/// A product in a loop over the summed dim; the right operand is packed, `group` steps side by side, or not.
fn looped(
    acc: DType,
    a: DType,
    b: DType,
    (m, n): (usize, usize),
    depth: usize,
    group: Option<usize>,
) -> Kernel {
    let build = || -> Built {
        let mut k = KernelBuilder::new(&format!("loop_{acc}_{a}_{b}_{m}x{n}_{group:?}"));
        let (x, w) = (k.buffer("x", a, Access::Read), k.buffer("w", b, Access::Read));
        let y = k.buffer("y", acc, Access::Write);
        let len = k.scalar("k", DType::I64);
        let (zero, one) = (k.int(0), k.int(1));
        let (rows, cols) = (k.int(m as i64), k.int(n as i64));
        let xv = k.view(x, zero, &[rows, len], &[len, one])?;
        let g = group.unwrap_or(1) as i64;
        let wv = match group {
            // [k / g, n, g]
            Some(_) => {
                let gv = k.int(g);
                let outer = k.div(len, gv)?;
                let step = k.int(g * n as i64);
                k.view(w, zero, &[outer, cols, gv], &[step, gv, one])?
            }
            None => k.view(w, zero, &[len, cols], &[cols, one])?,
        };
        let start = k.full(acc, &[m, n], acc.decode(0))?;
        let step = k.int(depth as i64);
        let sum = k.for_loop(zero, len, step, &[start], |k, i, c| {
            let xt =
                k.load(xv, &[zero, i], TileMap::along(&[m, depth], &[0, 1]), &[false, true], a.decode(0))?;
            let xt2 =
                k.load(xv, &[zero, i], TileMap::along(&[m, depth], &[0, 1]), &[true, true], a.decode(0))?;
            let f = |size, dim, step| Factor { size, dim: Some(dim), step };
            let wt = match group {
                Some(g) => {
                    let gv = k.int(g as i64);
                    let at = k.div(i, gv)?;
                    let map = TileMap(vec![vec![f(depth / g, 0, 1), f(g, 2, 1)], vec![f(n, 1, 1)]]);
                    k.load(wv, &[at, zero, zero], map, &[true; 3], b.decode(0))?
                }
                None => {
                    k.load(wv, &[i, zero], TileMap::along(&[depth, n], &[0, 1]), &[true; 2], b.decode(0))?
                }
            };
            let c = k.mma(c[0], xt, wt)?;
            Ok(vec![k.mma(c, xt2, wt)?])
        })?[0];
        let yv = view(&mut k, y, &[m as i64, n as i64])?;
        let t = k.add(sum, sum)?;
        k.store(yv, t, &[zero, zero], TileMap::trailing(&[m, n], 2), &[true; 2])?;
        Ok(k.finish())
    };
    build().unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn products_in_loops() {
    let kinds = [
        (DType::F32, DType::BF16, DType::BF16, 2, 32),
        (DType::I32, DType::I8, DType::U8, 4, 64),
        (DType::I32, DType::U8, DType::I8, 4, 64),
        (DType::F32, DType::F32, DType::F32, 2, 4),
    ];
    for (acc, a, b, group, depth) in kinds {
        for (m, n) in [(20, 16), (5, 48)] {
            for packed in [None, Some(group)] {
                let kernel = looped(acc, a, b, (m, n), depth, packed);
                let k = 3 * depth;
                let buffers = [small(a, m * k, 1), small(b, k * n, 2), zeros(acc, m * n)];
                let near = if acc.is_float() { Near::Share(1e-5) } else { Near::Same };
                check(&kernel, [1, 1, 1], &buffers, &[(DType::I64, Num::Int(k as i128))], near);
            }
        }
    }
}
