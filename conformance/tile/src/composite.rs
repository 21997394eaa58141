//! Whole kernels, of the kinds that models are made of. What is expected is computed here by the textbook's formula in `f64`; the
//! bounds follow from the number of operations that a value goes through.

use tongtu_tensor::scalar::{Binary, Compare, Unary};
use tongtu_tensor::{CastMode, Combiner, DType, Num, Overflow};
use tongtu_tile::op::{Factor, Scope};
use tongtu_tile::{Op, TileError, TileMap, Val};

use crate::draft::Draft;
use crate::structure::half_unit;
use crate::values::{Rng, code};
use crate::{Program, Want};

type Built = Result<Program, TileError>;

const F32: DType = DType::F32;

/// All of them.
pub fn programs() -> Vec<Program> {
    let all = [
        softmax(13, 37),
        softmax(3, 64),
        layer_norm(7, 50),
        matmul([17, 23, 19], [16, 8, 16]),
        matmul([32, 64, 48], [16, 8, 16]),
        attention([9, 24, 16], [4, 8]),
        // Tiles chosen for a larger machine than any CPU is.
        softmax(2, 2000),
        matmul([70, 40, 66], [64, 32, 64]),
        attention([40, 64, 32], [32, 64]),
        convolution(),
        block_scaled(DType::F8E4M3FN),
        block_scaled(DType::F4E2M1),
        top_k(),
        prefix_sum(),
        sort(),
        histogram(),
        embedding(),
    ];
    all.into_iter().map(|p| p.unwrap_or_else(|e| panic!("{e}"))).collect()
}

/// Ordinary values of a type, between -2 and 2, and what they are.
fn ordinary(d: DType, n: usize, seed: u64) -> (Vec<u64>, Vec<f64>) {
    let mut rng = Rng::new(seed);
    let codes: Vec<u64> = (0..n).map(|_| code(d, rng.below(4001) as f64 / 1000.0 - 2.0)).collect();
    let values = codes.iter().map(|&c| d.decode(c).to_f64()).collect();
    (codes, values)
}

/// The program with these values expected of its only output.
fn expecting(mut p: Program, values: &[f64], err: impl Fn(usize) -> f64) -> Program {
    let check = &mut p.checks[0];
    let d = p.buffers[check.buffer].dtype;
    assert_eq!(check.want.len(), values.len(), "{}", p.kernel.name);
    let want = values.iter().enumerate();
    check.want =
        want.map(|(i, &x)| Want { code: d.encode(Num::Float(x), Overflow::Format), err: err(i) }).collect();
    p
}

/// Rows split over instances; a row is a tile with a masked end.
fn softmax(rows: usize, columns: usize) -> Built {
    let mut p = Draft::new(&format!("program/softmax-{rows}x{columns}"));
    let (codes, x) = ordinary(F32, rows * columns, 1);
    let xs = p.input(F32, codes);
    let ys = p.output("rows", F32, rows * columns);
    let (from, to) =
        (p.view(xs, &[rows as i64, columns as i64])?, p.view(ys, &[rows as i64, columns as i64])?);
    let wide = columns.next_multiple_of(64);
    let b = &mut p.b;
    let row = b.program_id(0)?;
    let zero = b.int(0);
    let map = TileMap::along(&[1, wide], &[0, 1]);
    let t = b.load(from, &[row, zero], map.clone(), &[true, false], Num::Float(f64::NEG_INFINITY))?;
    let most = b.reduce(Combiner::Max, t, &[1])?;
    let most = b.reshape(most, &[1, 1])?;
    let most = b.broadcast(most, &[1, wide])?;
    let t = b.sub(t, most)?;
    let e = b.unary(Unary::Exp, t)?;
    let sum = b.reduce(Combiner::Add, e, &[1])?;
    let sum = b.reshape(sum, &[1, 1])?;
    let sum = b.broadcast(sum, &[1, wide])?;
    let r = b.div(e, sum)?;
    b.store(to, r, &[row, zero], map, &[true, false])?;
    let mut want = Vec::new();
    for row in x.chunks(columns) {
        let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|x| (x - most).exp()).sum();
        want.extend(row.iter().map(|x| (x - most).exp() / sum));
    }
    // The difference, twice the exponential's 2 ulp and what it makes of the difference's rounding, the sum, the quotient.
    let relative = (16.0 + columns as f64) * half_unit(F32);
    Ok(expecting(p.finish([rows as i64, 1, 1]), &want, |i| relative * want[i]))
}

fn layer_norm(rows: usize, columns: usize) -> Built {
    let mut p = Draft::new("program/layer-norm");
    let (codes, x) = ordinary(F32, rows * columns, 2);
    let (scale_codes, scale) = ordinary(F32, columns, 3);
    let (shift_codes, shift) = ordinary(F32, columns, 4);
    let (xs, scales, shifts) = (p.input(F32, codes), p.input(F32, scale_codes), p.input(F32, shift_codes));
    let ys = p.output("rows", F32, rows * columns);
    let dims = [rows as i64, columns as i64];
    let (from, to) = (p.view(xs, &dims)?, p.view(ys, &dims)?);
    let (scales, shifts) = (p.load(scales, &[columns])?, p.load(shifts, &[columns])?);
    let b = &mut p.b;
    let (row, zero) = (b.program_id(0)?, b.int(0));
    let map = TileMap(vec![vec![Factor { size: columns, dim: Some(1), step: 1 }]]);
    let t = b.load(from, &[row, zero], map.clone(), &[true, true], Num::Float(0.0))?;
    let n = b.splat(F32, &[], columns as f64)?;
    let mean = b.reduce(Combiner::Add, t, &[0])?;
    let mean = b.div(mean, n)?;
    let mean = b.broadcast(mean, &[columns])?;
    let t = b.sub(t, mean)?;
    let squares = b.mul(t, t)?;
    let variance = b.reduce(Combiner::Add, squares, &[0])?;
    let variance = b.div(variance, n)?;
    let epsilon = b.splat(F32, &[], 1e-5)?;
    let variance = b.add(variance, epsilon)?;
    let root = b.unary(Unary::Rsqrt, variance)?;
    let root = b.broadcast(root, &[columns])?;
    let t = b.mul(t, root)?;
    let t = b.mul(t, scales)?;
    let t = b.add(t, shifts)?;
    b.store(to, t, &[row, zero], map, &[true, true])?;
    let mut want = Vec::new();
    for row in x.chunks(columns) {
        let mean = row.iter().sum::<f64>() / columns as f64;
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / columns as f64;
        let one = |(i, x): (usize, &f64)| (x - mean) / (variance + 1e-5).sqrt() * scale[i] + shift[i];
        want.extend(row.iter().enumerate().map(one));
    }
    let bound = 2.0 * (columns as f64 + 16.0) * half_unit(F32);
    Ok(expecting(p.finish([rows as i64, 1, 1]), &want, |i| bound * (4.0 + want[i].abs())))
}

/// Blocks over edges that they do not divide, with bias and GELU; `tile` is of rows, of the summed dim, of columns.
fn matmul([m, k, n]: [usize; 3], [tm, tk, tn]: [usize; 3]) -> Built {
    let mut p = Draft::new(&format!("program/matmul-{m}x{k}x{n}-{tm}x{tk}x{tn}"));
    let (a_codes, a) = ordinary(F32, m * k, 5);
    let (b_codes, w) = ordinary(F32, k * n, 6);
    let (bias_codes, bias) = ordinary(F32, n, 7);
    let (xs, ws, biases) = (p.input(F32, a_codes), p.input(F32, b_codes), p.input(F32, bias_codes));
    let ys = p.output("result", F32, m * n);
    let from = p.view(xs, &[m as i64, k as i64])?;
    let weights = p.view(ws, &[k as i64, n as i64])?;
    let biases = p.view(biases, &[n as i64])?;
    let to = p.view(ys, &[m as i64, n as i64])?;
    let end = p.scalar(k as i64);
    let b = &mut p.b;
    let (row, column) = (b.program_id(0)?, b.program_id(1)?);
    let (row, column) = (b.mul_int(row, tm as i64)?, b.mul_int(column, tn as i64)?);
    let (zero, step) = (b.int(0), b.int(tk as i64));
    let acc = b.splat(F32, &[tm, tn], 0.0)?;
    let none = Num::Float(0.0);
    let acc = b.for_loop(zero, end, step, &[acc], |b, i, v| {
        let x = b.load(from, &[row, i], TileMap::along(&[tm, tk], &[0, 1]), &[false, false], none)?;
        let y = b.load(weights, &[i, column], TileMap::along(&[tk, tn], &[0, 1]), &[false, false], none)?;
        Ok(vec![b.mma(v[0], x, y)?])
    })?[0];
    let t = b.load(biases, &[column], TileMap::along(&[tn], &[0]), &[false], none)?;
    let t = b.broadcast(t, &[tm, tn])?;
    let x = b.add(acc, t)?;
    let c = b.splat(F32, &[tm, tn], std::f64::consts::FRAC_1_SQRT_2)?;
    let e = b.mul(x, c)?;
    let e = b.unary(Unary::Erf, e)?;
    let one = b.splat(F32, &[tm, tn], 1.0)?;
    let e = b.add(e, one)?;
    let half = b.splat(F32, &[tm, tn], 0.5)?;
    let x = b.mul(x, half)?;
    let x = b.mul(x, e)?;
    b.store(to, x, &[row, column], TileMap::along(&[tm, tn], &[0, 1]), &[false, false])?;
    let (mut want, mut size) = (Vec::new(), Vec::new());
    for i in 0..m {
        for j in 0..n {
            let terms = (0..k).map(|l| a[i * k + l] * w[l * n + j]);
            let x = terms.clone().sum::<f64>() + bias[j];
            size.push(terms.map(f64::abs).sum::<f64>() + bias[j].abs() + 1.0);
            want.push(x * 0.5 * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)));
        }
    }
    // GELU's slope stays below 1.2.
    let u = half_unit(F32);
    let grid = [m.div_ceil(tm) as i64, n.div_ceil(tn) as i64, 1];
    Ok(expecting(p.finish(grid), &want, |i| 1.2 * (k as f64 + 2.0) * u * size[i] + 16.0 * u * size[i]))
}

/// The error function, by its series and by its continued fraction.
fn erf(x: f64) -> f64 {
    let z = x.abs();
    let y = if z < 3.0 {
        let (mut term, mut sum, mut n) = (z, z, 0.0);
        while term.abs() > 1e-18 * sum.abs() {
            n += 1.0;
            term *= -z * z / n;
            sum += term / (2.0 * n + 1.0);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    } else {
        let fraction = (1..60).rev().fold(0.0, |f, k| f64::from(k) / 2.0 / (z + f));
        1.0 - (-z * z).exp() / std::f64::consts::PI.sqrt() / (z + fraction)
    };
    y.copysign(x)
}

/// Attention without the matrix of weights: running maximum, running sum, rescaled result.
fn attention([queries, keys, width]: [usize; 3], [rows, block]: [usize; 2]) -> Built {
    let mut p = Draft::new(&format!("program/flash-attention-{queries}x{keys}x{width}-{rows}x{block}"));
    let (q_codes, q) = ordinary(F32, queries * width, 8);
    let (k_codes, k) = ordinary(F32, keys * width, 9);
    let (v_codes, v) = ordinary(F32, keys * width, 10);
    let (qs, ks, vs) = (p.input(F32, q_codes), p.input(F32, k_codes), p.input(F32, v_codes));
    let ys = p.output("result", F32, queries * width);
    let (nq, nk, w) = (queries as i64, keys as i64, width as i64);
    let (from, to) = (p.view(qs, &[nq, w])?, p.view(ys, &[nq, w])?);
    let (key, value) = (p.view(ks, &[nk, w])?, p.view(vs, &[nk, w])?);
    let end = p.scalar(nk);
    let b = &mut p.b;
    let at = b.program_id(0)?;
    let at = b.mul_int(at, rows as i64)?;
    let (zero, step) = (b.int(0), b.int(block as i64));
    let none = Num::Float(0.0);
    let query = b.load(from, &[at, zero], TileMap::along(&[rows, width], &[0, 1]), &[false, true], none)?;
    let scale = b.splat(F32, &[rows, width], 1.0 / (width as f64).sqrt())?;
    let query = b.mul(query, scale)?;
    let most = b.splat(F32, &[rows, 1], f64::NEG_INFINITY)?;
    let sum = b.splat(F32, &[rows, 1], 0.0)?;
    let acc = b.splat(F32, &[rows, width], 0.0)?;
    let r = b.for_loop(zero, end, step, &[most, sum, acc], |b, i, c| {
        let kt = b.load(key, &[i, zero], TileMap::along(&[width, block], &[1, 0]), &[false, true], none)?;
        let s = b.splat(F32, &[rows, block], 0.0)?;
        let s = b.mma(s, query, kt)?;
        let most = b.reduce(Combiner::Max, s, &[1])?;
        let most = b.reshape(most, &[rows, 1])?;
        let most = b.max(c[0], most)?;
        let wide = b.broadcast(most, &[rows, block])?;
        let e = b.sub(s, wide)?;
        let e = b.unary(Unary::Exp, e)?;
        let old = b.sub(c[0], most)?;
        let old = b.unary(Unary::Exp, old)?;
        let part = b.reduce(Combiner::Add, e, &[1])?;
        let part = b.reshape(part, &[rows, 1])?;
        let sum = b.fma(c[1], old, part)?;
        let old = b.broadcast(old, &[rows, width])?;
        let acc = b.mul(c[2], old)?;
        let vt = b.load(value, &[i, zero], TileMap::along(&[block, width], &[0, 1]), &[false, true], none)?;
        Ok(vec![most, sum, b.mma(acc, e, vt)?])
    })?;
    let sum = b.broadcast(r[1], &[rows, width])?;
    let y = b.div(r[2], sum)?;
    b.store(to, y, &[at, zero], TileMap::along(&[rows, width], &[0, 1]), &[false, true])?;
    let mut want = Vec::new();
    for query in q.chunks(width) {
        let dot =
            |key: &[f64]| key.iter().zip(query).map(|(a, b)| a * b).sum::<f64>() / (width as f64).sqrt();
        let weights: Vec<f64> = k.chunks(width).map(|key| dot(key).exp()).collect();
        let sum: f64 = weights.iter().sum();
        want.extend((0..width).map(|c| (0..keys).map(|j| weights[j] * v[j * width + c]).sum::<f64>() / sum));
    }
    // Scores up to 16 pass their error to the exponential; weights add up to 1, values are up to 2.
    let bound = 2.0 * (16.0 * (width as f64 + 4.0) + 2.0 * keys as f64 + 16.0) * half_unit(F32);
    Ok(expecting(p.finish([queries.div_ceil(rows) as i64, 1, 1]), &want, |_| bound))
}

/// 3 by 3 windows with stride 2 and padding, read through a view's factors.
fn convolution() -> Built {
    let (channels, height, width, filters) = (3usize, 9usize, 11usize, 5usize);
    let (out_h, out_w) = (height.div_ceil(2), width.div_ceil(2));
    let mut p = Draft::new("program/convolution");
    let (x_codes, x) = ordinary(F32, channels * height * width, 11);
    let (w_codes, w) = ordinary(F32, filters * channels * 9, 12);
    let (xs, ws) = (p.input(F32, x_codes), p.input(F32, w_codes));
    let ys = p.output("result", F32, filters * out_h * out_w);
    let from = p.view(xs, &[channels as i64, height as i64, width as i64])?;
    let to = p.view(ys, &[filters as i64, out_h as i64, out_w as i64])?;
    let kernel = p.load(ws, &[filters, channels * 9])?;
    let b = &mut p.b;
    let row = b.program_id(0)?;
    let top = b.mul_int(row, 2)?;
    let top = b.add_int(top, -1)?;
    let (zero, left) = (b.int(0), b.int(-1));
    let f = |size, dim, step| Factor { size, dim: Some(dim), step };
    let map = TileMap(vec![vec![f(channels, 0, 1), f(3, 1, 1), f(3, 2, 1)], vec![f(out_w, 2, 2)]]);
    let t = b.load(from, &[zero, top, left], map, &[true, false, false], Num::Float(0.0))?;
    let acc = b.splat(F32, &[filters, out_w], 0.0)?;
    let r = b.mma(acc, kernel, t)?;
    let map = TileMap(vec![vec![f(filters, 0, 1)], vec![f(out_w, 2, 1)]]);
    b.store(to, r, &[zero, row, zero], map, &[true, true, true])?;
    let (mut want, mut size) = (Vec::new(), Vec::new());
    for o in 0..filters {
        for i in 0..out_h {
            for j in 0..out_w {
                let (mut sum, mut total) = (0.0, 0.0);
                for c in 0..channels {
                    for (r, s) in (0..9).map(|n| (n / 3, n % 3)) {
                        let (y, z) = ((2 * i + r) as i64 - 1, (2 * j + s) as i64 - 1);
                        if (0..height as i64).contains(&y) && (0..width as i64).contains(&z) {
                            let term = w[(o * channels + c) * 9 + r * 3 + s]
                                * x[(c * height + y as usize) * width + z as usize];
                            sum += term;
                            total += term.abs();
                        }
                    }
                }
                want.push(sum);
                size.push(total);
            }
        }
    }
    let u = half_unit(F32);
    Ok(expecting(p.finish([out_h as i64, 1, 1]), &want, |i| 30.0 * u * size[i]))
}

/// A product of narrow floats, each 32 along the summed dim with a scale of their own.
fn block_scaled(d: DType) -> Built {
    let (m, k, n, group) = (8usize, 64usize, 12usize, 32usize);
    let mut p = Draft::new(&format!("program/block-scaled-matmul-{d}"));
    let (a_codes, a) = ordinary(d, m * k, 13);
    let (b_codes, w) = ordinary(d, k * n, 14);
    let e8 = DType::F8E8M0;
    let mut rng = Rng::new(15);
    let mut scales = |n: usize| -> Vec<u64> { (0..n).map(|_| 124 + rng.below(7) as u64).collect() };
    let (sa, sb) = (scales(m * k / group), scales(k / group * n));
    let value = |c: &u64| e8.decode(*c).to_f64();
    let (fa, fb): (Vec<f64>, Vec<f64>) = (sa.iter().map(value).collect(), sb.iter().map(value).collect());
    let (xs, ws, sxs, sws) = (p.input(d, a_codes), p.input(d, b_codes), p.input(e8, sa), p.input(e8, sb));
    let ys = p.output("result", F32, m * n);
    let groups = (k / group) as i64;
    let (x, y) = (p.view(xs, &[m as i64, k as i64])?, p.view(ws, &[k as i64, n as i64])?);
    let (sx, sy) = (p.view(sxs, &[m as i64, groups])?, p.view(sws, &[groups, n as i64])?);
    let to = p.view(ys, &[m as i64, n as i64])?;
    let b = &mut p.b;
    let (zero, one, end) = (b.int(0), b.int(1), b.int(groups));
    let acc = b.splat(F32, &[m, n], 0.0)?;
    let none = Num::Float(0.0);
    let mode = CastMode::default();
    let acc = b.for_loop(zero, end, one, &[acc], |b, g, c| {
        let at = b.mul_int(g, group as i64)?;
        let x = b.load(x, &[zero, at], TileMap::along(&[m, group], &[0, 1]), &[true, true], none)?;
        let y = b.load(y, &[at, zero], TileMap::along(&[group, n], &[0, 1]), &[true, true], none)?;
        let f = |size, dim| Factor { size, dim, step: 1 };
        // A scale for each block: repeated by a factor that does not step.
        let map = TileMap(vec![vec![f(m, Some(0))], vec![f(group, None)]]);
        let s = b.load(sx, &[zero, g], map, &[true, true], Num::Float(1.0))?;
        let (x, s) = (b.cast(x, F32, mode)?, b.cast(s, F32, mode)?);
        let x = b.mul(x, s)?;
        let map = TileMap(vec![vec![f(group, None)], vec![f(n, Some(1))]]);
        let s = b.load(sy, &[g, zero], map, &[true, true], Num::Float(1.0))?;
        let (y, s) = (b.cast(y, F32, mode)?, b.cast(s, F32, mode)?);
        let y = b.mul(y, s)?;
        Ok(vec![b.mma(c[0], x, y)?])
    })?[0];
    b.store(to, acc, &[zero, zero], TileMap::along(&[m, n], &[0, 1]), &[true, true])?;
    let (mut want, mut size) = (Vec::new(), Vec::new());
    for i in 0..m {
        for j in 0..n {
            let term = |l: usize| {
                let g = l / group;
                a[i * k + l] * fa[i * (k / group) + g] * w[l * n + j] * fb[g * n + j]
            };
            want.push((0..k).map(term).sum());
            size.push((0..k).map(|l| term(l).abs()).sum::<f64>());
        }
    }
    let u = half_unit(F32);
    Ok(expecting(p.finish([1, 1, 1]), &want, |i| (k as f64 + 2.0) * u * size[i]))
}

/// The five greatest, by taking the greatest and putting it out of the way.
fn top_k() -> Built {
    let (n, k) = (37usize, 5usize);
    let mut p = Draft::new("program/top-k");
    let mut rng = Rng::new(16);
    // With equal values among them.
    let x: Vec<f64> = (0..n).map(|_| rng.below(12) as f64).collect();
    let xs = p.input(F32, x.iter().map(|&x| code(F32, x)).collect());
    let ys = p.output("indices", DType::I32, k);
    let t = p.load(xs, &[n])?;
    let to = p.view(ys, &[k as i64])?;
    let b = &mut p.b;
    let index = b.iota(DType::I32, &[n], 0)?;
    let gone = b.splat(F32, &[n], f64::NEG_INFINITY)?;
    let (zero, one, end) = (b.int(0), b.int(1), b.int(k as i64));
    b.for_loop(zero, end, one, &[t], |b, i, c| {
        let r = b.add_inst(Op::Reduce { combiner: Combiner::ArgMax, dims: vec![0] }, &[c[0], index])?;
        let place = b.reshape(r[1], &[1])?;
        b.store(to, place, &[i], TileMap::along(&[1], &[0]), &[true])?;
        let place = b.broadcast(r[1], &[n])?;
        let here = b.compare(Compare::Eq, index, place)?;
        Ok(vec![b.select(here, gone, c[0])?])
    })?;
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| x[j].total_cmp(&x[i]).then(i.cmp(&j)));
    let want: Vec<f64> = order[..k].iter().map(|&i| i as f64).collect();
    Ok(expecting(p.finish([1, 1, 1]), &want, |_| 0.0))
}

/// Sums of everything before, block by block with what the blocks before left.
fn prefix_sum() -> Built {
    let n = 83usize;
    let mut p = Draft::new("program/prefix-sum");
    let (codes, x) = ordinary(F32, n, 17);
    let xs = p.input(F32, codes);
    let ys = p.output("sums", F32, n);
    let (from, to) = (p.view(xs, &[n as i64])?, p.view(ys, &[n as i64])?);
    let end = p.scalar(n as i64);
    let b = &mut p.b;
    let (zero, step) = (b.int(0), b.int(16));
    let start = b.splat(F32, &[], 0.0)?;
    let map = TileMap::along(&[16], &[0]);
    b.for_loop(zero, end, step, &[start], |b, i, c| {
        let t = b.load(from, &[i], map.clone(), &[false], Num::Float(0.0))?;
        let s = b.add_inst(Op::Scan { combiner: Combiner::Add, dim: 0, reverse: false }, &[t])?[0];
        let before = b.broadcast(c[0], &[16])?;
        let s = b.add(s, before)?;
        b.store(to, s, &[i], map.clone(), &[false])?;
        let last = b.extract(s, &[15], &[1])?;
        Ok(vec![b.reshape(last, &[])?])
    })?;
    let want: Vec<f64> = (1..=n).map(|i| x[..i].iter().sum()).collect();
    let size: Vec<f64> = (1..=n).map(|i| x[..i].iter().map(|x| x.abs()).sum()).collect();
    let u = half_unit(F32);
    Ok(expecting(p.finish([1, 1, 1]), &want, |i| (i as f64 + 18.0) * u * size[i]))
}

/// A bitonic network: partners differ in one bit of their place.
fn sort() -> Built {
    let n = 32usize;
    let mut p = Draft::new("program/bitonic-sort");
    let (codes, mut x) = ordinary(F32, n, 18);
    let xs = p.input(F32, codes);
    let mut t = p.load(xs, &[n])?;
    let b = &mut p.b;
    let place = b.iota(DType::I32, &[n], 0)?;
    let zero = b.splat(DType::I32, &[n], 0.0)?;
    let mut size = 2;
    while size <= n {
        let mut apart = size / 2;
        while apart > 0 {
            let bit = b.splat(DType::I32, &[n], apart as f64)?;
            let partner = b.binary(Binary::Xor, place, bit)?;
            let other = b.add_inst(Op::TakeAlong { dim: 0 }, &[t, partner])?[0];
            let (low, high) = (b.min(t, other)?, b.max(t, other)?);
            let upper = b.binary(Binary::And, place, bit)?;
            let first = b.compare(Compare::Eq, upper, zero)?;
            let block = b.splat(DType::I32, &[n], size as f64)?;
            let down = b.binary(Binary::And, place, block)?;
            let up = b.compare(Compare::Eq, down, zero)?;
            let take_low = b.compare(Compare::Eq, first, up)?;
            t = b.select(take_low, low, high)?;
            apart /= 2;
        }
        size *= 2;
    }
    p.store("sorted", t)?;
    x.sort_by(f64::total_cmp);
    Ok(expecting(p.finish([1, 1, 1]), &x, |_| 0.0))
}

/// Every instance counts its part into one table.
fn histogram() -> Built {
    let (n, bins) = (100usize, 7usize);
    let mut p = Draft::new("program/histogram");
    let mut rng = Rng::new(19);
    let x: Vec<u64> = (0..n).map(|_| rng.below(bins) as u64).collect();
    let xs = p.input(DType::I32, x.clone());
    let ys = p.output("counts", DType::I32, bins);
    let from = p.view(xs, &[n as i64])?;
    let b = &mut p.b;
    let at = b.program_id(0)?;
    let at = b.mul_int(at, 16)?;
    let t = b.load(from, &[at], TileMap::along(&[16], &[0]), &[false], Num::Int(-1))?;
    let ones = b.splat(DType::I32, &[16], 1.0)?;
    b.add_inst(
        Op::AtomicReduce { combiner: Combiner::Add, scope: Scope::Device, masked: false },
        &[ys, t, ones],
    )?;
    let p = p.finish([n.div_ceil(16) as i64, 1, 1]);
    // Outputs hold 1 before.
    let want: Vec<f64> =
        (0..bins).map(|i| 1.0 + x.iter().filter(|x| **x == i as u64).count() as f64).collect();
    Ok(expecting(p, &want, |_| 0.0))
}

/// Rows of a table by number; numbers that are not in the table give zeros.
fn embedding() -> Built {
    let (rows, width, n) = (11usize, 10usize, 9usize);
    let mut p = Draft::new("program/embedding");
    let d = DType::F16;
    let (codes, table) = ordinary(d, rows * width, 20);
    let ids: [i64; 9] = [3, 0, 10, 11, -1, 7, 7, 5, 1000];
    let (xs, is) = (p.input(d, codes), p.input(DType::I64, ids.iter().map(|i| *i as u64).collect()));
    let ys = p.output("rows", d, n * width);
    let (numbers, to) = (p.view(is, &[n as i64])?, p.view(ys, &[n as i64, width as i64])?);
    let b = &mut p.b;
    let (at, zero) = (b.program_id(0)?, b.int(0));
    let map = TileMap(vec![vec![Factor { size: width, dim: None, step: 1 }]]);
    let id = b.load(numbers, &[at], map, &[true], Num::Int(0))?;
    let splat = |b: &mut tongtu_tile::KernelBuilder, x: i64| -> Result<Val, TileError> {
        b.splat(DType::I64, &[width], x as f64)
    };
    let (low, high, wide) = (splat(b, 0)?, splat(b, rows as i64)?, splat(b, width as i64)?);
    let (above, below) = (b.compare(Compare::Ge, id, low)?, b.compare(Compare::Lt, id, high)?);
    let there = b.binary(Binary::And, above, below)?;
    let column = b.iota(DType::I64, &[width], 0)?;
    let place = b.mul(id, wide)?;
    let place = b.add(place, column)?;
    let t = b.gather(xs, place, Some(there), Num::Float(0.0))?;
    let map = TileMap(vec![vec![Factor { size: width, dim: Some(1), step: 1 }]]);
    b.store(to, t, &[at, zero], map, &[true, true])?;
    let row = |&i: &i64| -> Vec<f64> {
        match usize::try_from(i).ok().filter(|i| *i < rows) {
            Some(i) => table[i * width..(i + 1) * width].to_vec(),
            None => vec![0.0; width],
        }
    };
    let want: Vec<f64> = ids.iter().flat_map(row).collect();
    Ok(expecting(p.finish([n as i64, 1, 1]), &want, |_| 0.0))
}
