//! The split pass: what it makes computes the same, tiles fit, and random kernels survive it.

use proptest::prelude::*;
use tongtu_compile::split::{Registers, is_large, split};
use tongtu_tensor::scalar::{Binary, Compare, Unary};
use tongtu_tensor::{CastMode, Combiner, DType, Num};
use tongtu_tile::interp::{BufferData, Options, run};
use tongtu_tile::op::Factor;
use tongtu_tile::{Access, Flags, Kernel, KernelBuilder, Op, TileMap, verify};

#[path = "../../conformance/gates.rs"]
mod gates;

const SMALL: Registers = Registers { bits: 128, count: 8 };
const WIDE: Registers = Registers { bits: 512, count: 32 };

fn checked(k: &Kernel, registers: Registers) -> Kernel {
    if let Err(e) = verify(k) {
        panic!("before: {}\n{k}", e[0]);
    }
    let out = split(k, registers).unwrap_or_else(|e| panic!("{e}\n{k}"));
    if let Err(e) = verify(&out) {
        panic!("after: {}\n{k}\n{out}", e[0]);
    }
    out
}

fn numbers(n: usize, seed: u32) -> Vec<f64> {
    let mut s = seed.wrapping_mul(2654435761).wrapping_add(12345);
    (0..n)
        .map(|_| {
            s = s.wrapping_mul(1664525).wrapping_add(1013904223);
            f64::from((s >> 8) as f32 / (1 << 24) as f32) - 0.5
        })
        .collect()
}

fn execute(k: &Kernel, grid: [i64; 3], inputs: &[BufferData], scalars: &[i64]) -> Vec<Vec<f64>> {
    let mut buffers = inputs.to_vec();
    let scalars: Vec<Num> = scalars.iter().map(|&s| Num::from(s)).collect();
    run(k, grid, &mut buffers, &scalars, &Options::default()).unwrap_or_else(|e| panic!("{e}\n{k}"));
    buffers.iter().map(BufferData::to_f64).collect()
}

fn close(got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= tolerance * (1.0 + w.abs()), "element {i}: {g}, {w} is wanted");
    }
}

/// Every form of a kernel against a plain reference.
fn forms(
    forms: &[Kernel],
    grid: impl Fn(usize) -> [i64; 3],
    inputs: &[BufferData],
    scalars: &[i64],
    want: &[f64],
    tolerance: f64,
) {
    for (i, k) in forms.iter().enumerate() {
        let out = execute(k, grid(i), inputs, scalars);
        close(out.last().unwrap(), want, tolerance);
        for registers in [SMALL, WIDE] {
            let s = checked(k, registers);
            let out = execute(&s, grid(i), inputs, scalars);
            close(out.last().unwrap(), want, tolerance);
            assert!(!is_large(&s, registers), "{s}");
        }
    }
}

#[test]
fn matmul_with_epilogue() {
    let (m, n, k) = (28usize, 64usize, 16usize);
    let (a, b, bias) = (numbers(m * k, 1), numbers(k * n, 2), numbers(n, 3));
    let want: Vec<f64> = (0..m * n)
        .map(|i| ((0..k).map(|l| a[i / n * k + l] * b[l * n + i % n]).sum::<f64>() + bias[i % n]).max(0.0))
        .collect();
    let f = |v: &[f64]| BufferData::from_f64(DType::F32, v);
    let inputs = [f(&a), f(&b), f(&bias), BufferData::full(DType::F32, m * n, Num::Float(0.0))];
    let tiles = [(14, 32, 1), (28, 64, 8), (16, 48, 16)];
    let kernels: Vec<Kernel> =
        tiles.iter().enumerate().map(|(i, &t)| gates::matmul(DType::F32, t, i < 2).unwrap()).collect();
    let grid = |i: usize| [m.div_ceil(tiles[i].0) as i64, n.div_ceil(tiles[i].1) as i64, 1];
    forms(&kernels, grid, &inputs, &[m as i64, n as i64, k as i64], &want, 1e-5);
    let packed: Vec<f64> = (0..n / 32)
        .flat_map(|p| (0..k).flat_map(move |l| (0..32).map(move |j| (l, p * 32 + j))))
        .map(|(l, j)| b[l * n + j])
        .collect();
    let inputs = [f(&a), f(&packed), f(&bias), BufferData::full(DType::F32, m * n, Num::Float(0.0))];
    forms(
        &[gates::matmul_packed((14, 32, 4)).unwrap()],
        |_| [2, 1, 1],
        &inputs,
        &[m as i64, n as i64, k as i64],
        &want,
        1e-5,
    );
}

#[test]
fn convolution_of_stride_2() {
    let (h, w, c, f) = (5usize, 9usize, 8usize, 16usize);
    let (oh, ow) = (h.div_ceil(2), w.div_ceil(2));
    let (x, weights) = (numbers(h * w * c, 4), numbers(9 * c * f, 5));
    let mut want = vec![0.0; oh * ow * f];
    for (i, y) in want.iter_mut().enumerate() {
        let (oy, ox, of) = (i / f / ow, i / f % ow, i % f);
        for tap in 0..9 {
            let (iy, ix) = ((oy * 2 + tap / 3) as i64 - 1, (ox * 2 + tap % 3) as i64 - 1);
            if (0..h as i64).contains(&iy) && (0..w as i64).contains(&ix) {
                for ic in 0..c {
                    *y += x[(iy as usize * w + ix as usize) * c + ic] * weights[(tap * c + ic) * f + of];
                }
            }
        }
    }
    let b = |v: &[f64]| BufferData::from_f64(DType::F32, v);
    let inputs = [b(&x), b(&weights), BufferData::full(DType::F32, want.len(), Num::Float(0.0))];
    let tiles = [(2, 16, 1), (8, 16, 8)];
    let kernels: Vec<Kernel> = tiles.iter().map(|&t| gates::conv(DType::F32, t, false).unwrap()).collect();
    let grid = |i: usize| [ow.div_ceil(tiles[i].0) as i64, oh as i64, 1];
    let sizes = [h as i64, w as i64, c as i64, f as i64];
    forms(&kernels, grid, &inputs, &sizes, &want, 1e-5);

    // The same on a picture with zeros around it.
    let tw = 8;
    let (down, along) = (2 * oh + 1, 2 * ow.div_ceil(tw) * tw + 1);
    let mut padded = vec![0.0; down * along * c];
    for (y, row) in x.chunks(w * c).enumerate() {
        padded[((y + 1) * along + 1) * c..][..w * c].copy_from_slice(row);
    }
    let [_, weights, out] = inputs;
    let kernels = [1, 8].map(|tc| gates::conv(DType::F32, (tw, 16, tc), true).unwrap());
    let grid = |_| [ow.div_ceil(tw) as i64, oh as i64, 1];
    forms(&kernels, grid, &[b(&padded), weights, out], &sizes, &want, 1e-5);
}

#[test]
fn softmax_over_long_rows() {
    let (rows, n) = (3usize, 700usize);
    let x: Vec<f64> = numbers(rows * n, 6).iter().map(|v| v * 20.0).collect();
    let want: Vec<f64> = x
        .chunks(n)
        .flat_map(|row| {
            let most = row.iter().copied().fold(f64::MIN, f64::max);
            let sum: f64 = row.iter().map(|v| (v - most).exp()).sum();
            row.iter().map(move |v| (v - most).exp() / sum).collect::<Vec<_>>()
        })
        .collect();
    let inputs =
        [BufferData::from_f64(DType::F32, &x), BufferData::full(DType::F32, rows * n, Num::Float(0.0))];
    let kernels = [gates::softmax(64).unwrap(), gates::softmax(1024).unwrap()];
    forms(&kernels, |_| [rows as i64, 1, 1], &inputs, &[rows as i64, n as i64], &want, 1e-5);
}

#[test]
fn flash_attention() {
    let (n, hd) = (64usize, 32usize);
    let [q, k, v] = [7, 8, 9].map(|s| numbers(n * hd, s).iter().map(|x| x * 4.0).collect::<Vec<_>>());
    let mut want = Vec::new();
    for i in 0..n {
        let scores: Vec<f64> = (0..n)
            .map(|j| (0..hd).map(|l| q[i * hd + l] * k[j * hd + l]).sum::<f64>() / (hd as f64).sqrt())
            .collect();
        let most = scores.iter().copied().fold(f64::MIN, f64::max);
        let e: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
        let sum: f64 = e.iter().sum();
        want.extend((0..hd).map(|l| (0..n).map(|j| e[j] * v[j * hd + l]).sum::<f64>() / sum));
    }
    let b = |v: &[f64]| BufferData::from_f64(DType::F32, v);
    let inputs = [b(&q), b(&k), b(&v), BufferData::full(DType::F32, n * hd, Num::Float(0.0))];
    let tiles = [(4, 16, hd), (32, 32, hd)];
    let kernels: Vec<Kernel> = tiles.iter().map(|&t| gates::attention(DType::F32, t).unwrap()).collect();
    forms(&kernels, |i| [(n / tiles[i].0) as i64, 1, 1], &inputs, &[n as i64], &want, 1e-4);
}

/// A kernel over [rows, cols] tiles from random choices; it reads `x` and writes `y`, both of rows × cols elements.
fn grow(rows: usize, cols: usize, choices: &[(u8, u8, u8)]) -> Kernel {
    let mut b = KernelBuilder::new("grown");
    let x = b.buffer("x", DType::F32, Access::Read);
    let t = b.buffer("t", DType::F32, Access::ReadWrite);
    let y = b.buffer("y", DType::F32, Access::Write);
    let n = b.scalar("n", DType::I64);
    let (o, one) = (b.int(0), b.int(1));
    let (rv, cv) = (b.int(rows as i64), b.int(cols as i64));
    let [vx, vt, vy] = [x, t, y].map(|buffer| b.view(buffer, o, &[rv, cv], &[cv, one]).unwrap());
    let map = || TileMap::along(&[rows, cols], &[0, 1]);
    let shape = [rows, cols];
    let mut f = vec![b.load(vx, &[o, o], map(), &[true, true], Num::Float(0.0)).unwrap()];
    f.push(b.load(vx, &[one, n], map(), &[false, false], Num::Float(0.25)).unwrap());
    for &(kind, p, q) in choices {
        let (a, c) = (f[p as usize % f.len()], f[q as usize % f.len()]);
        b.flags = Flags { reassoc: p & 1 == 1, ..Flags::default() };
        let r = match kind % 16 {
            0 => b.unary([Unary::Neg, Unary::Abs, Unary::Tanh][p as usize % 3], a),
            1 => b.binary([Binary::Add, Binary::Max, Binary::Mul, Binary::Sub][p as usize % 4], a, c),
            2 => {
                let m = b.compare(Compare::Lt, a, c).unwrap();
                b.select(m, c, a)
            }
            3 => {
                let r =
                    b.reduce([Combiner::Max, Combiner::Min][q as usize % 2], a, &[p as usize % 2]).unwrap();
                let s = if p % 2 == 0 { [1, cols] } else { [rows, 1] };
                let r = b.reshape(r, &s).unwrap();
                b.broadcast(r, &shape)
            }
            4 => {
                let r = b.reduce(Combiner::Max, a, &[0, 1]).unwrap();
                b.broadcast(r, &shape)
            }
            5 => {
                let r = b.permute(a, &[1, 0]).unwrap();
                b.reshape(r, &shape)
            }
            6 => {
                let i = b.iota(DType::I32, &shape, p as usize % 2).unwrap();
                let r =
                    b.add_inst(Op::Reduce { combiner: Combiner::ArgMax, dims: vec![1] }, &[a, i]).unwrap();
                let r = b.reshape(r[1], &[rows, 1]).unwrap();
                let r = b.broadcast(r, &shape).unwrap();
                b.cast(r, DType::F32, CastMode::default())
            }
            7 => {
                // Two equal halves of rows swapped, through extract and concat.
                let top = b.extract(a, &[0, 0], &[1, cols]).unwrap();
                let rest = b.extract(c, &[0, 0], &[rows - 1, cols]).unwrap();
                b.concat(&[rest, top], 0)
            }
            8 => {
                b.store(vt, a, &[o, o], map(), &[true, true]).unwrap();
                let r = b.load(vt, &[o, o], map(), &[true, true], Num::Float(0.0)).unwrap();
                b.store(vt, c, &[o, o], map(), &[true, true]).unwrap();
                Ok(r)
            }
            9 => Ok(b
                .for_loop(o, n, one, &[a, c], |b, i, s| {
                    let sum = b.binary(Binary::Max, s[0], s[1])?;
                    let i = b.cast(i, DType::F32, CastMode::default())?;
                    let i = b.broadcast(i, &shape)?;
                    let other = b.binary(Binary::Min, s[0], i)?;
                    // Each reads both homes.
                    Ok(vec![other, sum])
                })
                .unwrap()[p as usize % 2]),
            10 => {
                let go = b.compare(Compare::Lt, one, n).unwrap();
                Ok(b.if_else(go, |b| Ok(vec![b.binary(Binary::Max, a, c)?]), |_| Ok(vec![c])).unwrap()[0])
            }
            11 => {
                let i = b.iota(DType::I64, &shape, 1).unwrap();
                let k = b.splat(DType::I64, &shape, 3.0).unwrap();
                let i = b.mul(i, k).unwrap();
                let k = b.splat(DType::I64, &shape, cols as f64).unwrap();
                let i = b.binary(Binary::Rem, i, k).unwrap();
                Ok(b.add_inst(Op::TakeAlong { dim: 1 }, &[a, i]).unwrap()[0])
            }
            12 => {
                let right = b.permute(c, &[1, 0]).unwrap();
                let acc = b.splat(DType::F32, &[rows, rows], 0.0).unwrap();
                let r = b.mma(acc, a, right).unwrap();
                let r = b.reduce(Combiner::Max, r, &[1]).unwrap();
                let r = b.reshape(r, &[rows, 1]).unwrap();
                let r = b.broadcast(r, &shape).unwrap();
                b.unary(Unary::Tanh, r)
            }
            13 => {
                // Rows of the buffer read in two factors.
                let map = TileMap(vec![
                    vec![Factor { size: rows, dim: Some(0), step: 1 }],
                    vec![
                        Factor { size: cols / 2, dim: Some(1), step: 1 },
                        Factor { size: 2, dim: Some(1), step: (cols / 2) as i64 },
                    ],
                ]);
                b.load(vx, &[o, o], map, &[true, true], Num::Float(0.0))
            }
            14 => {
                let op = Op::Scan { combiner: Combiner::Max, dim: p as usize % 2, reverse: q % 2 == 1 };
                Ok(b.add_inst(op, &[a]).unwrap()[0])
            }
            _ => {
                let (i, j) = (b.iota(DType::I64, &shape, 0).unwrap(), b.iota(DType::I64, &shape, 1).unwrap());
                let k = b.splat(DType::I64, &shape, cols as f64).unwrap();
                let i = b.mul(i, k).unwrap();
                let i = b.add(i, j).unwrap();
                b.scatter(t, i, a, None).unwrap();
                b.gather(t, i, None, Num::Float(0.0))
            }
        };
        f.push(r.unwrap());
    }
    b.store(vy, *f.last().unwrap(), &[o, o], map(), &[true, true]).unwrap();
    b.finish()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn random_kernels_compute_the_same(
        choices in prop::collection::vec(any::<(u8, u8, u8)>(), 1..12),
        rows in 2usize..9,
        half in 2usize..20,
        n in 0i64..3,
    ) {
        let cols = half * 2;
        let k = grow(rows, cols, &choices);
        let len = rows * cols;
        let zeros = BufferData::full(DType::F32, len, Num::Float(0.0));
        let inputs = [BufferData::from_f64(DType::F32, &numbers(len, 11)), zeros.clone(), zeros];
        let want = execute(&k, [1, 1, 1], &inputs, &[n]);
        for registers in [SMALL, WIDE] {
            let s = checked(&k, registers);
            let got = execute(&s, [1, 1, 1], &inputs, &[n]);
            for (g, w) in got.iter().flatten().zip(want.iter().flatten()) {
                prop_assert!((g - w).abs() <= 1e-5, "{g} {w}\n{k}\n{s}");
            }
        }
    }
}
