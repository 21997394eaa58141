//! Four kernels written with tile sizes as parameters, so that one text serves small register tiles and large scratchpad
//! tiles: a matrix product with an epilogue, a strided convolution, softmax over a row of any length, and attention.
//!
//! Included by the tests of several crates.
#![allow(dead_code)]

use tongtu_tensor::scalar::{Binary, Unary};
use tongtu_tensor::{CastMode, Combiner, DType, Num};
use tongtu_tile::op::Factor;
use tongtu_tile::{Access, Kernel, KernelBuilder, TileError, TileMap, Val};

/// Result of building.
pub type Built = Result<Kernel, TileError>;

fn zero(b: &mut KernelBuilder, shape: &[usize]) -> Result<Val, TileError> {
    b.splat(DType::F32, shape, 0.0)
}

fn view2(b: &mut KernelBuilder, buffer: Val, rows: Val, cols: Val) -> Result<Val, TileError> {
    let (o, one) = (b.int(0), b.int(1));
    b.view(buffer, o, &[rows, cols], &[cols, one])
}

/// `c = relu(a × b + bias)`: a is [m, k], b is [k, n], bias is [n]; one instance a tile of `tm` × `tn`, `tk` of k at a time.
/// `inside`: the sizes are multiples of the tile's.
pub fn matmul(d: DType, (tm, tn, tk): (usize, usize, usize), inside: bool) -> Built {
    let mut b = KernelBuilder::new("matmul");
    let (a, w) = (b.buffer("a", d, Access::Read), b.buffer("b", d, Access::Read));
    let bias = b.buffer("bias", DType::F32, Access::Read);
    let c = b.buffer("c", DType::F32, Access::Write);
    let (m, n, k) = (b.scalar("m", DType::I64), b.scalar("n", DType::I64), b.scalar("k", DType::I64));
    let (va, vb, vc) = (view2(&mut b, a, m, k)?, view2(&mut b, w, k, n)?, view2(&mut b, c, m, n)?);
    let (o, one) = (b.int(0), b.int(1));
    let vbias = b.view(bias, o, &[n], &[one])?;
    let (p, q) = (b.program_id(0)?, b.program_id(1)?);
    let (row, col) = (b.mul_int(p, tm as i64)?, b.mul_int(q, tn as i64)?);
    let acc = zero(&mut b, &[tm, tn])?;
    let step = b.int(tk as i64);
    let sum = b.for_loop(o, k, step, &[acc], |b, i, acc| {
        let x = b.load(va, &[row, i], TileMap::along(&[tm, tk], &[0, 1]), &[inside; 2], Num::Float(0.0))?;
        let y = b.load(vb, &[i, col], TileMap::along(&[tk, tn], &[0, 1]), &[inside; 2], Num::Float(0.0))?;
        Ok(vec![b.mma(acc[0], x, y)?])
    })?[0];
    let t = b.load(vbias, &[col], TileMap::along(&[tn], &[0]), &[inside], Num::Float(0.0))?;
    let t = b.broadcast(t, &[tm, tn])?;
    let t = b.add(sum, t)?;
    let z = zero(&mut b, &[tm, tn])?;
    let t = b.max(t, z)?;
    b.store(vc, t, &[row, col], TileMap::along(&[tm, tn], &[0, 1]), &[inside; 2])?;
    Ok(b.finish())
}

/// The same product with `b` packed beforehand in panels of `tn` columns, [n / tn, k, tn], `tk` steps of k at a time; the tiles
/// divide the sizes.
pub fn matmul_packed((tm, tn, tk): (usize, usize, usize)) -> Built {
    let mut b = KernelBuilder::new("matmul_packed");
    let (a, w) = (b.buffer("a", DType::F32, Access::Read), b.buffer("b", DType::F32, Access::Read));
    let bias = b.buffer("bias", DType::F32, Access::Read);
    let c = b.buffer("c", DType::F32, Access::Write);
    let (m, n, k) = (b.scalar("m", DType::I64), b.scalar("n", DType::I64), b.scalar("k", DType::I64));
    let (va, vc) = (view2(&mut b, a, m, k)?, view2(&mut b, c, m, n)?);
    let (o, one, width) = (b.int(0), b.int(1), b.int(tn as i64));
    let panel = b.mul_int(k, tn as i64)?;
    let panels = b.ceil_div_int(n, tn as i64)?;
    let vb = b.view(w, o, &[panels, k, width], &[panel, width, one])?;
    let vbias = b.view(bias, o, &[n], &[one])?;
    // One instance a panel, all rows: the panel stays in the nearest cache.
    let q = b.program_id(0)?;
    let col = b.mul_int(q, tn as i64)?;
    let (rows, steps) = (b.int(tm as i64), b.int(tk as i64));
    b.for_loop(o, m, rows, &[], |b, row, _| {
        let acc = zero(b, &[tm, tn])?;
        let sum = b.for_loop(o, k, steps, &[acc], |b, i, acc| {
            let x = b.load(va, &[row, i], TileMap::along(&[tm, tk], &[0, 1]), &[true; 2], Num::Float(0.0))?;
            let factor = |size, dim| Factor { size, dim: Some(dim), step: 1 };
            let map = TileMap(vec![vec![factor(tk, 1)], vec![factor(tn, 2)]]);
            let y = b.load(vb, &[q, i, o], map, &[true; 3], Num::Float(0.0))?;
            Ok(vec![b.mma(acc[0], x, y)?])
        })?[0];
        let t = b.load(vbias, &[col], TileMap::along(&[tn], &[0]), &[true], Num::Float(0.0))?;
        let t = b.broadcast(t, &[tm, tn])?;
        let t = b.add(sum, t)?;
        let z = zero(b, &[tm, tn])?;
        let t = b.max(t, z)?;
        b.store(vc, t, &[row, col], TileMap::along(&[tm, tn], &[0, 1]), &[true; 2])?;
        Ok(vec![])
    })?;
    Ok(b.finish())
}

/// A 3×3 convolution of stride 2, padding 1: x is [h, w, c], weights are [3, 3, c, f], y is [ceil(h/2), ceil(w/2), f].
/// One instance: `tw` pixels of a row by `tf` channels, `tc` input channels at a time. `padded`: x is
/// [2 ceil(h/2) + 1, 2 tw ceil(w/2 / tw) + 1, c] with zeros around the picture, so that every window lies inside.
pub fn conv(d: DType, (tw, tf, tc): (usize, usize, usize), padded: bool) -> Built {
    let mut b = KernelBuilder::new("conv");
    let (x, w) = (b.buffer("x", d, Access::Read), b.buffer("w", d, Access::Read));
    let y = b.buffer("y", DType::F32, Access::Write);
    let (h, wd) = (b.scalar("h", DType::I64), b.scalar("w", DType::I64));
    let (c, f) = (b.scalar("c", DType::I64), b.scalar("f", DType::I64));
    let (o, one, three) = (b.int(0), b.int(1), b.int(3));
    let (oh, ow) = (b.ceil_div_int(h, 2)?, b.ceil_div_int(wd, 2)?);
    let (rows, columns) = if padded {
        let blocks = b.ceil_div_int(ow, tw as i64)?;
        let (down, along) = (b.mul_int(oh, 2)?, b.mul_int(blocks, 2 * tw as i64)?);
        (b.add_int(down, 1)?, b.add_int(along, 1)?)
    } else {
        (h, wd)
    };
    let row = b.mul(columns, c)?;
    let vx = b.view(x, o, &[rows, columns, c], &[row, c, one])?;
    let taps = b.mul_int(c, 9)?;
    let vw = view2(&mut b, w, taps, f)?;
    let out_row = b.mul(ow, f)?;
    let vy = b.view(y, o, &[oh, ow, f], &[out_row, f, one])?;
    let (py, px, pf) = (b.program_id(1)?, b.program_id(0)?, b.program_id(2)?);
    let (ox, of) = (b.mul_int(px, tw as i64)?, b.mul_int(pf, tf as i64)?);
    let (iy, ix) = (b.mul_int(py, 2)?, b.mul_int(ox, 2)?);
    let before = if padded { 0 } else { -1 };
    let (iy, ix) = (b.add_int(iy, before)?, b.add_int(ix, before)?);
    let acc = zero(&mut b, &[tw, tf])?;
    let step = b.int(tc as i64);
    let sum = b.for_loop(o, three, one, &[acc], |b, ky, acc| {
        let at_y = b.add(iy, ky)?;
        b.for_loop(o, three, one, acc, |b, kx, acc| {
            let at_x = b.add(ix, kx)?;
            let tap = b.mul_int(ky, 3)?;
            let tap = b.add(tap, kx)?;
            let tap = b.mul(tap, c)?;
            b.for_loop(o, c, step, acc, |b, ic, acc| {
                let map = TileMap(vec![
                    vec![Factor { size: tw, dim: Some(1), step: 2 }],
                    vec![Factor { size: tc, dim: Some(2), step: 1 }],
                ]);
                let pixels = b.load(vx, &[at_y, at_x, ic], map, &[padded, padded, true], Num::Float(0.0))?;
                let at = b.add(tap, ic)?;
                let map = TileMap::along(&[tc, tf], &[0, 1]);
                let weights = b.load(vw, &[at, of], map, &[true, true], Num::Float(0.0))?;
                Ok(vec![b.mma(acc[0], pixels, weights)?])
            })
        })
    })?[0];
    let map = TileMap::along(&[tw, tf], &[1, 2]);
    b.store(vy, sum, &[py, ox, of], map, &[true, false, true])?;
    Ok(b.finish())
}

/// Softmax over rows of any length, `chunk` elements at a time, in two passes with a running maximum and sum.
pub fn softmax(chunk: usize) -> Built {
    let mut b = KernelBuilder::new("softmax");
    let (x, y) = (b.buffer("x", DType::F32, Access::Read), b.buffer("y", DType::F32, Access::Write));
    let (rows, n) = (b.scalar("rows", DType::I64), b.scalar("n", DType::I64));
    let (vx, vy) = (view2(&mut b, x, rows, n)?, view2(&mut b, y, rows, n)?);
    let row = b.program_id(0)?;
    let (o, step) = (b.int(0), b.int(chunk as i64));
    let least = b.splat(DType::F32, &[1], f64::NEG_INFINITY)?;
    let none = b.splat(DType::F32, &[1], 0.0)?;
    let map = || TileMap::along(&[1, chunk], &[0, 1]);
    let pad = Num::Float(f64::NEG_INFINITY);
    let stats = b.for_loop(o, n, step, &[least, none], |b, i, s| {
        let t = b.load(vx, &[row, i], map(), &[true, false], pad)?;
        let most = b.reduce(Combiner::Max, t, &[1])?;
        let most = b.max(s[0], most)?;
        let spread = b.reshape(most, &[1, 1])?;
        let spread = b.broadcast(spread, &[1, chunk])?;
        let t = b.sub(t, spread)?;
        let e = b.unary(Unary::Exp, t)?;
        let sum = b.reduce(Combiner::Add, e, &[1])?;
        let old = b.sub(s[0], most)?;
        let old = b.unary(Unary::Exp, old)?;
        let old = b.mul(s[1], old)?;
        Ok(vec![most, b.add(old, sum)?])
    })?;
    b.for_loop(o, n, step, &[], |b, i, _| {
        let t = b.load(vx, &[row, i], map(), &[true, false], pad)?;
        let most = b.reshape(stats[0], &[1, 1])?;
        let most = b.broadcast(most, &[1, chunk])?;
        let t = b.sub(t, most)?;
        let e = b.unary(Unary::Exp, t)?;
        let sum = b.reshape(stats[1], &[1, 1])?;
        let sum = b.broadcast(sum, &[1, chunk])?;
        let r = b.div(e, sum)?;
        b.store(vy, r, &[row, i], map(), &[true, false])?;
        Ok(vec![])
    })?;
    Ok(b.finish())
}

/// Attention of `tm` queries over all keys, `tn` at a time, head size `hd`: q, k, v and the result are [length, hd].
pub fn attention(d: DType, (tm, tn, hd): (usize, usize, usize)) -> Built {
    let mut b = KernelBuilder::new("attention");
    let (q, k, v) =
        (b.buffer("q", d, Access::Read), b.buffer("k", d, Access::Read), b.buffer("v", d, Access::Read));
    let y = b.buffer("y", d, Access::Write);
    let n = b.scalar("n", DType::I64);
    let width = b.int(hd as i64);
    let (vq, vk) = (view2(&mut b, q, n, width)?, view2(&mut b, k, n, width)?);
    let (vv, vy) = (view2(&mut b, v, n, width)?, view2(&mut b, y, n, width)?);
    let p = b.program_id(0)?;
    let row = b.mul_int(p, tm as i64)?;
    let (o, step) = (b.int(0), b.int(tn as i64));
    let block = |rows: usize| TileMap::along(&[rows, hd], &[0, 1]);
    let queries = b.load(vq, &[row, o], block(tm), &[true, true], Num::Float(0.0))?;
    let least = b.splat(DType::F32, &[tm], f64::NEG_INFINITY)?;
    let none = b.splat(DType::F32, &[tm], 0.0)?;
    let acc = zero(&mut b, &[tm, hd])?;
    let state = b.for_loop(o, n, step, &[least, none, acc], |b, j, s| {
        let keys = b.load(vk, &[j, o], block(tn), &[true, true], Num::Float(0.0))?;
        let keys = b.permute(keys, &[1, 0])?;
        let start = zero(b, &[tm, tn])?;
        let scores = b.mma(start, queries, keys)?;
        let scale = b.splat(DType::F32, &[tm, tn], 1.0 / (hd as f64).sqrt())?;
        let scores = b.mul(scores, scale)?;
        let most = b.reduce(Combiner::Max, scores, &[1])?;
        let most = b.max(s[0], most)?;
        let spread = b.reshape(most, &[tm, 1])?;
        let spread = b.broadcast(spread, &[tm, tn])?;
        let t = b.sub(scores, spread)?;
        let e = b.unary(Unary::Exp, t)?;
        let sum = b.reduce(Combiner::Add, e, &[1])?;
        let old = b.sub(s[0], most)?;
        let old = b.unary(Unary::Exp, old)?;
        let total = b.mul(s[1], old)?;
        let total = b.add(total, sum)?;
        let values = b.load(vv, &[j, o], block(tn), &[true, true], Num::Float(0.0))?;
        let weights = b.cast(e, d, CastMode::default())?;
        let old = b.reshape(old, &[tm, 1])?;
        let old = b.broadcast(old, &[tm, hd])?;
        let acc = b.mul(s[2], old)?;
        let start = zero(b, &[tm, hd])?;
        let product = b.mma(start, weights, values)?;
        let acc = b.add(acc, product)?;
        Ok(vec![most, total, acc])
    })?;
    let total = b.reshape(state[1], &[tm, 1])?;
    let total = b.broadcast(total, &[tm, hd])?;
    let r = b.binary(Binary::Div, state[2], total)?;
    let r = b.cast(r, d, CastMode::default())?;
    b.store(vy, r, &[row, o], block(tm), &[true, true])?;
    Ok(b.finish())
}
