//! Instructions that are not elementwise: constants, shapes, reductions, products, memory, atomics, control flow.

use tongtu_tensor::scalar::{Binary, Compare, ulp};
use tongtu_tensor::{Combiner, DType, Num};
use tongtu_tile::op::{Factor, Ordering, Scope};
use tongtu_tile::{Op, TileError, TileMap, Val};

use crate::Program;
use crate::draft::Draft;
use crate::values::{Rng, code, cycled, edges, mask, small};

type Built = Result<Program, TileError>;

fn count(shape: &[usize]) -> usize {
    shape.iter().product()
}

/// Half a unit in the last place of 1.
pub(crate) fn half_unit(d: DType) -> f64 {
    let bits = d.float_format().map_or(60, |f| f.mantissa_bits);
    0.5f64.powi(bits as i32 + 1)
}

/// How far two sums of `n` values of a total size may be apart, each within the bound of the specification.
pub(crate) fn sum_bound(d: DType, n: usize, size: f64) -> f64 {
    let nu = n.saturating_sub(1) as f64 * half_unit(d);
    if nu < 0.5 { 2.0 * nu * size / (1.0 - nu) } else { f64::INFINITY }
}

/// The programs of all these instructions. One that a rule of the instruction set forbids for a type is no case.
pub fn programs() -> Vec<Program> {
    let mut out = Vec::new();
    for &d in DType::ALL {
        out.extend(full(d).ok());
        out.extend(shapes(d).ok());
        out.extend(take_along(d).ok());
        out.extend(blocks(d).ok());
        out.extend(edges_of_views(d).ok());
        out.extend(prefetch(d).ok());
        out.extend(indexed(d).ok());
        out.extend(scratch(d).ok());
        out.extend(control(d).ok());
        for &c in Combiner::ALL {
            out.extend(reduce(c, d).ok());
            out.extend(scan(c, d).ok());
            if c.binary().is_none_or(|b| b.accepts(d)) {
                out.extend(atomic_reduce(c, d).ok());
                out.extend(atomic_rmw(c, d).ok());
            }
        }
        out.extend(atomic_cas(d).ok());
    }
    out.extend(DType::ALL.iter().filter(|d| d.is_int()).filter_map(|&d| iota(d).ok()));
    out.extend(grid().ok());
    out.extend(lengths().ok());
    out.extend(products());
    out
}

fn full(d: DType) -> Built {
    let mut p = Draft::new(&format!("full/{d}"));
    for (i, c) in edges(d).into_iter().enumerate() {
        let t = p.b.full(d, &[[1, 7, 19][i % 3]], d.decode(c))?;
        p.store(&format!("{c:#x}"), t)?;
    }
    let t = p.b.full(d, &[], Num::Float(1.0))?;
    p.store("scalar", t)?;
    let t = p.b.full(d, &[3, 5], Num::Float(2.5))?;
    p.store("converted", t)?;
    Ok(p.finish([1, 1, 1]))
}

fn iota(d: DType) -> Built {
    let mut p = Draft::new(&format!("iota/{d}"));
    for (shape, dim) in
        [(vec![1], 0), (vec![7], 0), (vec![19], 0), (vec![3, 5], 0), (vec![3, 5], 1), (vec![2, 1, 300], 2)]
    {
        let t = p.b.iota(d, &shape, dim)?;
        p.store(&format!("{shape:?}-{dim}").replace(' ', ""), t)?;
    }
    Ok(p.finish([1, 1, 1]))
}

/// Each instance writes where it stands.
fn grid() -> Built {
    let mut p = Draft::new("program_id/i64");
    let ids = (0..3).map(|a| p.b.program_id(a)).collect::<Result<Vec<_>, _>>()?;
    let counts = (0..3).map(|a| p.b.num_programs(a)).collect::<Result<Vec<_>, _>>()?;
    let zy = p.b.mul(ids[2], counts[1])?;
    let zy = p.b.add(zy, ids[1])?;
    let at = p.b.mul(zy, counts[0])?;
    let at = p.b.add(at, ids[0])?;
    let at = p.b.reshape(at, &[1])?;
    for (what, list) in [("ids", ids), ("counts", counts)] {
        for (axis, v) in list.into_iter().enumerate() {
            let out = p.output(&format!("{what}-{axis}"), DType::I64, 30);
            let v = p.b.reshape(v, &[1])?;
            p.b.scatter(out, at, v, None)?;
        }
    }
    Ok(p.finish([2, 3, 5]))
}

fn lengths() -> Built {
    let mut p = Draft::new("buffer_len/i64");
    for (d, n) in [(DType::F32, 0), (DType::F32, 1), (DType::I4, 7), (DType::F64, 31), (DType::Bool, 2)] {
        let x = p.input(d, small(d, n, 1));
        let len = p.b.buffer_len(x)?;
        p.store(&format!("{d}-{n}"), len)?;
    }
    Ok(p.finish([1, 1, 1]))
}

fn shapes(d: DType) -> Built {
    let mut p = Draft::new(&format!("shapes/{d}"));
    // Elements that share bytes take a back end many instructions each.
    let large = if d.bits() < 8 { [2usize, 3, 7] } else { [3, 5, 19] };
    for [a, m, n] in [large, [1, 4, 8], [2, 1, 5], [1, 1, 1]] {
        let x = p.input(d, cycled(d, a * m * n, 1));
        let x = p.load(x, &[a, m, n])?;
        let name = |what: &str| format!("{what}-{a}x{m}x{n}");
        let t = p.b.add_inst(Op::Permute { perm: vec![0, 2, 1] }, &[x])?[0];
        p.store(&name("permute"), t)?;
        let t = p.b.add_inst(Op::Permute { perm: vec![2, 0, 1] }, &[x])?[0];
        p.store(&name("rotate"), t)?;
        let t = p.b.add_inst(Op::Reshape { shape: vec![m, a * n] }, &[x])?[0];
        p.store(&name("reshape"), t)?;
        let t = p.b.add_inst(Op::Reshape { shape: vec![a * m * n] }, &[x])?[0];
        p.store(&name("flat"), t)?;
        let part = Op::Extract { offset: vec![a - 1, m / 2, n / 2], shape: vec![1, m - m / 2, n - n / 2] };
        let t = p.b.add_inst(part, &[x])?[0];
        p.store(&name("extract"), t)?;
        let t = p.b.add_inst(Op::Concat { dim: 1 }, &[x, x, x])?[0];
        p.store(&name("concat"), t)?;
        let t = p.b.add_inst(Op::Concat { dim: 2 }, &[x, x])?[0];
        p.store(&name("beside"), t)?;
        let t = p.b.add_inst(Op::Broadcast { shape: vec![2, a, m, n] }, &[x])?[0];
        p.store(&name("broadcast"), t)?;
    }
    let x = p.input(d, cycled(d, 5, 3));
    let column = p.load(x, &[5, 1])?;
    let t = p.b.broadcast(column, &[5, 9])?;
    p.store("broadcast-columns", t)?;
    let one = p.load(x, &[])?;
    let t = p.b.broadcast(one, &[3, 7])?;
    p.store("broadcast-scalar", t)?;
    let t = p.b.add_inst(Op::Reshape { shape: vec![1, 1] }, &[one])?[0];
    p.store("reshape-scalar", t)?;
    Ok(p.finish([1, 1, 1]))
}

fn take_along(d: DType) -> Built {
    let mut p = Draft::new(&format!("take_along/{d}"));
    for (i, (shape, dim, index)) in [
        (vec![7], 0, vec![19]),
        (vec![3, 5], 1, vec![3, 4]),
        (vec![5, 3], 0, vec![6, 3]),
        (vec![1], 0, vec![1]),
    ]
    .into_iter()
    .enumerate()
    {
        let x = p.input(d, cycled(d, count(&shape), 1));
        let x = p.load(x, &shape)?;
        let id = if i % 2 == 0 { DType::I32 } else { DType::I64 };
        // Some outside, on both sides.
        let mut rng = Rng::new(i as u64 + 5);
        let at: Vec<u64> =
            (0..count(&index)).map(|_| (rng.below(shape[dim] + 4) as i64 - 2) as u64 & mask(id)).collect();
        let at = p.input(id, at);
        let at = p.load(at, &index)?;
        let t = p.b.add_inst(Op::TakeAlong { dim }, &[x, at])?[0];
        p.store(&format!("{index:?}-{dim}").replace(' ', ""), t)?;
    }
    Ok(p.finish([1, 1, 1]))
}

/// Two sets of values: ordinary ones, and edges that give one result in any order.
fn operands(c: Combiner, d: DType, n: usize, edgy: bool) -> Vec<u64> {
    let rounds = d.is_float() && matches!(c, Combiner::Add | Combiner::Mul);
    match (edgy, rounds) {
        (false, _) => small(d, n, n as u64),
        (true, false) => cycled(d, n, 5),
        (true, true) => {
            let mut codes = small(d, n, 77);
            let f = d.float_format();
            if f.is_some_and(|f| f.has_inf) && n > 2 {
                codes[n / 2] = code(d, f64::INFINITY);
            }
            codes[0] = f.and_then(|f| f.nan_code).unwrap_or(codes[0]);
            codes
        }
    }
}

/// For each result what regrouping allows; `groups` gives the values that go into it.
fn regrouped(c: Combiner, d: DType, groups: &[Vec<u64>]) -> Vec<f64> {
    if !d.is_float() || !matches!(c, Combiner::Add | Combiner::Mul) {
        return Vec::new();
    }
    let one = |g: &Vec<u64>| {
        let values: Vec<f64> = g.iter().map(|&c| d.decode(c).to_f64()).collect();
        if g.len() < 2 || values.iter().any(|x| !x.is_finite()) {
            return 0.0;
        }
        let size = match c {
            Combiner::Add => values.iter().map(|x| x.abs()).sum(),
            _ => values.iter().map(|x| x.abs()).fold(1.0, |a, x| a * x.max(1.0)),
        };
        let bound = sum_bound(d, g.len(), size);
        let tiny = if c == Combiner::Mul { g.len() as f64 * size * ulp(d, 0.0) } else { 0.0 };
        if size >= d.max_value().to_f64() / 2.0 { f64::INFINITY } else { bound + tiny }
    };
    groups.iter().map(one).collect()
}

/// A reduction or scan of a tile of these values, or of their pairs with indices of a type.
fn combined_rows(
    p: &mut Draft,
    (c, d, index): (Combiner, DType, DType),
    op: Op,
    shape: &[usize],
    codes: Vec<u64>,
    groups: &[Vec<u64>],
    what: &str,
) -> Result<(), TileError> {
    let x = p.input(d, codes);
    let x = p.load(x, shape)?;
    if c.arity() == 2 {
        let i = p.b.iota(index, &[count(shape)], 0)?;
        let i = p.b.reshape(i, shape)?;
        let r = p.b.add_inst(op, &[x, i])?;
        p.store(&format!("{what}-value"), r[0])?;
        return p.store(&format!("{what}-index"), r[1]);
    }
    let r = p.b.add_inst(op, &[x])?;
    p.store(what, r[0])?;
    p.within(regrouped(c, d, groups));
    Ok(())
}

fn reduce(c: Combiner, d: DType) -> Built {
    let mut p = Draft::new(&format!("reduce-{}/{d}", c.name()));
    let list: [(&[usize], &[usize]); 7] = [
        (&[1], &[0]),
        (&[7], &[0]),
        (&[35], &[0]),
        (&[3, 5], &[0]),
        (&[3, 19], &[1]),
        (&[3, 5], &[0, 1]),
        (&[2, 3, 8], &[0, 2]),
    ];
    for edgy in [false, true] {
        for (shape, dims) in list {
            let codes = operands(c, d, count(shape), edgy);
            let mut groups: Vec<Vec<u64>> = Vec::new();
            let keep: Vec<usize> = (0..shape.len()).filter(|i| !dims.contains(i)).collect();
            groups.resize(keep.iter().map(|&i| shape[i]).product(), Vec::new());
            for (i, &x) in codes.iter().enumerate() {
                let mut rest = i;
                let at: Vec<usize> = shape.iter().rev().map(|n| (rest % n, rest /= n).0).collect();
                let to = keep.iter().fold(0, |t, &k| t * shape[k] + at[shape.len() - 1 - k]);
                groups[to].push(x);
            }
            let op = Op::Reduce { combiner: c, dims: dims.to_vec() };
            let what = format!("{shape:?}-{dims:?}{}", if edgy { "-edges" } else { "" }).replace(' ', "");
            combined_rows(&mut p, (c, d, DType::I32), op, shape, codes, &groups, &what)?;
        }
    }
    Ok(p.finish([1, 1, 1]))
}

fn scan(c: Combiner, d: DType) -> Built {
    let mut p = Draft::new(&format!("scan-{}/{d}", c.name()));
    let list: [(&[usize], usize, bool); 5] =
        [(&[1], 0, false), (&[7], 0, true), (&[19], 0, false), (&[3, 5], 0, false), (&[3, 5], 1, true)];
    for edgy in [false, true] {
        for (shape, dim, reverse) in list {
            let codes = operands(c, d, count(shape), edgy);
            let inner = count(&shape[dim + 1..]);
            let n = shape[dim];
            let group = |i: usize| -> Vec<u64> {
                let k = i / inner % n;
                let base = i - k * inner;
                let range = if reverse { k..n } else { 0..k + 1 };
                range.map(|k| codes[base + k * inner]).collect()
            };
            let groups: Vec<Vec<u64>> = (0..codes.len()).map(group).collect();
            let op = Op::Scan { combiner: c, dim, reverse };
            let what = format!(
                "{shape:?}-{dim}{}{}",
                if reverse { "-reverse" } else { "" },
                if edgy { "-edges" } else { "" }
            );
            let what = what.replace(' ', "");
            combined_rows(&mut p, (c, d, DType::I64), op, shape, codes, &groups, &what)?;
        }
    }
    Ok(p.finish([1, 1, 1]))
}

fn products() -> Vec<Program> {
    use DType::*;
    let mut out = Vec::new();
    let same = [F16, BF16, F32, F64, I32, I64];
    let mut types: Vec<[DType; 3]> = same.iter().map(|&d| [d, d, d]).collect();
    types.extend(
        [F16, BF16, F8E4M3FN, F8E5M2, F8E4M3FNUZ, F8E5M2FNUZ, F6E2M3, F6E3M2, F4E2M1, HiF8]
            .map(|d| [F32, d, d]),
    );
    types.extend([[F32, F8E4M3FN, F8E5M2], [F32, BF16, F32], [F16, F8E4M3FN, F8E4M3FN]]);
    types.extend([
        [I32, I8, I8],
        [I32, U8, I8],
        [I32, U8, U8],
        [I32, I4, I4],
        [I32, I16, I16],
        [U32, U8, U8],
    ]);
    for t in types {
        out.extend(mma(t).ok());
    }
    for (d, s) in [
        (F8E4M3FN, F8E8M0),
        (F8E5M2, F8E8M0),
        (F6E2M3, F8E8M0),
        (F6E3M2, F8E8M0),
        (F4E2M1, F8E8M0),
        (F4E2M1, F8E4M3FN),
        (F32, F32),
    ] {
        out.extend(mma_scaled(d, s).ok());
    }
    out
}

fn mma([acc, left, right]: [DType; 3]) -> Built {
    let mut p = Draft::new(&format!("mma/{acc}-{left}-{right}"));
    for (i, (m, k, n)) in
        [(1, 1, 1), (3, 5, 7), (16, 16, 16), (5, 19, 8), (4, 32, 17), (1, 33, 1)].into_iter().enumerate()
    {
        let (c, a, b) =
            (small(acc, m * n, 3), small(left, m * k, i as u64), small(right, k * n, i as u64 + 9));
        let size = |d: DType, c: u64| d.decode(c).to_f64().abs();
        let bound = |at: usize| {
            let (row, column) = (at / n, at % n);
            let sum: f64 = (0..k).map(|l| size(left, a[row * k + l]) * size(right, b[l * n + column])).sum();
            sum_bound(acc, k + 2, size(acc, c[at]) + sum)
        };
        let err = if acc.is_float() { (0..m * n).map(bound).collect() } else { vec![] };
        let (c, a, b) = (p.input(acc, c), p.input(left, a), p.input(right, b));
        let (c, a, b) = (p.load(c, &[m, n])?, p.load(a, &[m, k])?, p.load(b, &[k, n])?);
        let r = p.b.mma(c, a, b)?;
        p.store(&format!("{m}x{k}x{n}"), r)?;
        p.within(err);
    }
    if acc.is_int() {
        let (c, a, b) = (cycled(acc, 4, 3), cycled(left, 6, 1), cycled(right, 6, 2));
        let (c, a, b) = (p.input(acc, c), p.input(left, a), p.input(right, b));
        let (c, a, b) = (p.load(c, &[2, 2])?, p.load(a, &[2, 3])?, p.load(b, &[3, 2])?);
        let r = p.b.mma(c, a, b)?;
        p.store("wraps", r)?;
    } else if left.float_format().is_some_and(|f| f.has_nan) {
        // NaN and infinities go to their rows and columns only.
        let mut a = small(left, 6, 1);
        a[0] = left.float_format().and_then(|f| f.nan_code).unwrap_or(a[0]);
        if left.float_format().is_some_and(|f| f.has_inf) {
            a[5] = code(left, f64::INFINITY);
        }
        let (c, b) = (vec![0; 4], vec![code(right, 1.0); 6]);
        let err = vec![0.0, 0.0, 0.0, 0.0];
        let (c, a, b) = (p.input(acc, c), p.input(left, a), p.input(right, b));
        let (c, a, b) = (p.load(c, &[2, 2])?, p.load(a, &[2, 3])?, p.load(b, &[3, 2])?);
        let r = p.b.mma(c, a, b)?;
        p.store("special", r)?;
        p.within(err);
    }
    Ok(p.finish([1, 1, 1]))
}

fn mma_scaled(d: DType, s: DType) -> Built {
    let mut p = Draft::new(&format!("mma_scaled/{d}-{s}"));
    let acc = DType::F32;
    for (i, (m, k, n, g, h)) in
        [(1, 1, 1, 1, 1), (3, 8, 5, 2, 4), (4, 32, 8, 1, 2), (5, 21, 7, 3, 7), (2, 6, 3, 6, 1)]
            .into_iter()
            .enumerate()
    {
        let (c, a, b) = (small(acc, m * n, 3), small(d, m * k, i as u64), small(d, k * n, i as u64 + 9));
        let (sa, sb) = (small(s, m * g, 5), small(s, h * n, 6));
        let size = |d: DType, c: u64| d.decode(c).to_f64().abs();
        let bound = |at: usize| {
            let (row, column) = (at / n, at % n);
            let left = |l: usize| size(d, a[row * k + l]) * size(s, sa[row * g + l / (k / g)]);
            let right = |l: usize| size(d, b[l * n + column]) * size(s, sb[l / (k / h) * n + column]);
            sum_bound(acc, k + 4, size(acc, c[at]) + (0..k).map(|l| left(l) * right(l)).sum::<f64>())
        };
        let err = (0..m * n).map(bound).collect();
        let (c, a, b, sa, sb) =
            (p.input(acc, c), p.input(d, a), p.input(d, b), p.input(s, sa), p.input(s, sb));
        let (c, a, b) = (p.load(c, &[m, n])?, p.load(a, &[m, k])?, p.load(b, &[k, n])?);
        let (sa, sb) = (p.load(sa, &[m, g])?, p.load(sb, &[h, n])?);
        let r = p.b.add_inst(Op::MmaScaled {}, &[c, a, sa, b, sb])?[0];
        p.store(&format!("{m}x{k}x{n}-{g}-{h}"), r)?;
        p.within(err);
    }
    Ok(p.finish([1, 1, 1]))
}

/// Blocks over views: offsets that are not aligned, padding on both sides, masks, strides of any sign, empty views.
fn edges_of_views(d: DType) -> Built {
    let mut p = Draft::new(&format!("load/{d}"));
    let x = p.input(d, cycled(d, 40, 1));
    let pad = d.decode(*edges(d).last().unwrap_or(&0));
    let (zero, one) = (p.b.int(0), p.b.int(1));
    let v = p.view(x, &[5, 8])?;
    for (what, at, shape) in [
        ("whole", [0, 0], [5, 8]),
        ("before", [-2, -3], [4, 7]),
        ("past", [3, 5], [4, 7]),
        ("far", [9, 0], [1, 3]),
        ("odd", [1, 3], [3, 5]),
    ] {
        let index = at.map(|n| p.b.int(n));
        let t = p.b.load(v, &index, TileMap::along(&shape, &[0, 1]), &[false, false], pad)?;
        p.store(what, t)?;
    }
    let mask = p.input(DType::Bool, small(DType::Bool, 15, 3));
    let mask = p.load(mask, &[3, 5])?;
    let masked =
        Op::Load { map: TileMap::along(&[3, 5], &[0, 1]), inside: vec![false, false], pad, masked: true };
    let two = p.b.int(2);
    let t = p.b.add_inst(masked, &[v, one, two, mask])?[0];
    p.store("masked", t)?;
    for (what, offset, dim, stride) in [
        ("backward", 39, 40, -1),
        ("strided", 1, 13, 3),
        ("repeated", 7, 19, 0),
        ("no-elements", 3, 0, 1),
        ("negative-dim", 3, -4, 1),
    ] {
        let [offset, dim, stride] = [offset, dim, stride].map(|n| p.b.int(n));
        let w = p.b.view(x, offset, &[dim], &[stride])?;
        let t = p.b.load(w, &[zero], TileMap::along(&[19], &[0]), &[false], pad)?;
        p.store(what, t)?;
    }
    let f = |size, dim, step| Factor { size, dim, step };
    let maps = [
        ("transposed", TileMap::along(&[8, 5], &[1, 0])),
        ("pairs", TileMap(vec![vec![f(2, Some(0), 2)], vec![f(8, Some(1), 1), f(2, Some(0), 1)]])),
        ("window", TileMap(vec![vec![f(3, Some(1), 2)], vec![f(3, Some(1), 1)]])),
        ("again", TileMap(vec![vec![f(3, Some(1), 1), f(2, None, 1)], vec![f(4, None, 1)]])),
        ("steps", TileMap(vec![vec![f(2, Some(0), 3)], vec![f(4, Some(1), -2)]])),
    ];
    for (what, map) in maps {
        let last = p.b.int(if what == "steps" { 7 } else { 0 });
        let t = p.b.load(v, &[zero, last], map, &[false, false], pad)?;
        p.store(what, t)?;
    }
    Ok(p.finish([1, 1, 1]))
}

/// Saying what will be read changes nothing, wherever it points.
fn prefetch(d: DType) -> Built {
    let mut p = Draft::new(&format!("prefetch/{d}"));
    let x = p.input(d, cycled(d, 40, 1));
    let v = p.view(x, &[5, 8])?;
    for at in [[0, 0], [4, 7], [-1, 3], [5, 0], [1 << 40, 1]] {
        let index = at.map(|n| p.b.int(n));
        p.b.prefetch(v, &index)?;
    }
    let t = p.load(x, &[5, 8])?;
    p.store("unchanged", t)?;
    Ok(p.finish([1, 1, 1]))
}

fn blocks(d: DType) -> Built {
    let mut p = Draft::new(&format!("store/{d}"));
    let x = p.input(d, cycled(d, 35, 1));
    let t = p.load(x, &[5, 7])?;
    let mask = p.input(DType::Bool, small(DType::Bool, 35, 3));
    let mask = p.load(mask, &[5, 7])?;
    let block = TileMap::along(&[5, 7], &[0, 1]);
    for (what, at) in [("whole", [0, 0]), ("before", [-2, -3]), ("past", [2, 4]), ("far", [0, 99])] {
        let out = p.output(what, d, 48);
        let v = p.view(out, &[6, 8])?;
        let index = at.map(|n| p.b.int(n));
        p.b.store(v, t, &index, block.clone(), &[false, false])?;
    }
    let out = p.output("masked", d, 48);
    let v = p.view(out, &[6, 8])?;
    let (zero, one) = (p.b.int(0), p.b.int(1));
    p.b.add_inst(
        Op::Store { map: block, inside: vec![false, false], masked: true },
        &[v, t, one, zero, mask],
    )?;
    let out = p.output("transposed", d, 35);
    let v = p.view(out, &[7, 5])?;
    p.b.store(v, t, &[zero, zero], TileMap::along(&[5, 7], &[1, 0]), &[true, true])?;
    let out = p.output("panels", d, 40);
    let v = p.view(out, &[2, 5, 4])?;
    let f = |size, dim, step| Factor { size, dim: Some(dim), step };
    let part = p.b.extract(t, &[0, 0], &[5, 6])?;
    let map = TileMap(vec![vec![f(5, 1, 1)], vec![f(2, 0, 1), f(3, 2, 1)]]);
    p.b.store(v, part, &[zero, zero, zero], map, &[true, true, true])?;
    let out = p.output("nothing", d, 8);
    let w = p.b.view(out, zero, &[zero], &[one])?;
    let row = p.b.extract(t, &[0, 0], &[1, 7])?;
    let row = p.b.reshape(row, &[7])?;
    p.b.store(w, row, &[zero], TileMap::along(&[7], &[0]), &[false])?;
    // Of elements that fall on one place the last stays.
    let out = p.output("one-place", d, 1);
    let w = p.b.view(out, zero, &[one], &[one])?;
    p.b.store(w, row, &[zero], TileMap(vec![vec![Factor { size: 7, dim: None, step: 1 }]]), &[true])?;
    Ok(p.finish([1, 1, 1]))
}

/// Indices from before a buffer of `n` to after it, some more than once.
fn wild(id: DType, n: usize, len: usize, seed: u64) -> Vec<u64> {
    let mut rng = Rng::new(seed);
    (0..len).map(|_| (rng.below(n + 6) as i64 - 3) as u64 & mask(id)).collect()
}

fn indexed(d: DType) -> Built {
    let mut p = Draft::new(&format!("gather/{d}"));
    let x = p.input(d, cycled(d, 23, 1));
    let values = p.input(d, cycled(d, 21, 2));
    let pad = d.decode(*edges(d).last().unwrap_or(&0));
    let on = p.input(DType::Bool, small(DType::Bool, 21, 3));
    for (id, shape) in
        [(DType::I32, vec![3, 7]), (DType::I64, vec![19]), (DType::I32, vec![1]), (DType::I64, vec![])]
    {
        let at = p.input(id, wild(id, 23, count(&shape), count(&shape) as u64));
        let at = p.load(at, &shape)?;
        let (v, m) = (p.load(values, &shape)?, p.load(on, &shape)?);
        let what = format!("{id}-{shape:?}").replace(' ', "");
        let t = p.b.gather(x, at, None, pad)?;
        p.store(&format!("gather-{what}"), t)?;
        let t = p.b.gather(x, at, Some(m), pad)?;
        p.store(&format!("gather-masked-{what}"), t)?;
        let out = p.output(&format!("scatter-{what}"), d, 23);
        p.b.scatter(out, at, v, None)?;
        let out = p.output(&format!("scatter-masked-{what}"), d, 23);
        p.b.scatter(out, at, v, Some(m))?;
    }
    // Far outside: indices do not wrap.
    let far = p.input(DType::I64, vec![u64::MAX, 1 << 63, (1 << 63) - 1, 1 << 32, (1 << 32) + 1]);
    let far = p.load(far, &[5])?;
    let t = p.b.gather(x, far, None, pad)?;
    p.store("gather-far", t)?;
    Ok(p.finish([1, 1, 1]))
}

fn scratch(d: DType) -> Built {
    let mut p = Draft::new(&format!("alloc/{d}"));
    let x = p.input(d, cycled(d, 63, 1));
    let s = p.b.alloc(d, 64)?;
    let t = p.load(x, &[9, 7])?;
    let v = p.view(s, &[9, 7])?;
    let zero = p.b.int(0);
    p.b.store(v, t, &[zero, zero], TileMap::along(&[9, 7], &[0, 1]), &[true, true])?;
    // Written through one view, read through another.
    let w = p.view(s, &[7, 9])?;
    let t = p.b.load(w, &[zero, zero], TileMap::along(&[9, 7], &[1, 0]), &[true, true], d.decode(0))?;
    p.store("other-view", t)?;
    let row = p.b.load(v, &[zero, zero], TileMap::along(&[1, 7], &[0, 1]), &[true, true], d.decode(0))?;
    let two = p.b.int(2);
    p.b.store(v, row, &[two, zero], TileMap::along(&[1, 7], &[0, 1]), &[true, true])?;
    let t = p.b.load(v, &[zero, zero], TileMap::along(&[9, 7], &[0, 1]), &[true, true], d.decode(0))?;
    p.store("overwritten", t)?;
    Ok(p.finish([1, 1, 1]))
}

fn control(d: DType) -> Built {
    let mut p = Draft::new(&format!("for/{d}"));
    let x = p.input(d, cycled(d, 19, 1));
    let y = p.input(d, cycled(d, 19, 4));
    let (a, c) = (p.load(x, &[19])?, p.load(y, &[19])?);
    let three = p.scalar(3);
    for (what, lo, hi, step) in [
        ("none", 0, 0, 1),
        ("once", 5, 6, 9),
        ("odd", 0, 3, 1),
        ("even", -4, 2, 3),
        ("backward", 3, -3, 1),
        ("last", i64::MAX - 4, i64::MAX - 1, 1),
        ("past-end", i64::MAX - 4, i64::MAX, 3),
        ("past-end-told", i64::MAX - 4, i64::MAX, 3),
        ("long-step", -3, 5, i64::MAX),
        ("long-step-told", i64::MIN, i64::MAX, i64::MAX),
    ] {
        // Bounds that are known, and bounds that the launch gives.
        let told = what.ends_with("told");
        let [lo, hi, step] = [lo, hi, step].map(|n| if told { p.scalar(n) } else { p.b.int(n) });
        let zero = p.b.int(0);
        // Two values change places; the turns are counted.
        let r = p.b.for_loop(lo, hi, step, &[a, c, zero], |b, i, v| {
            let sum = b.add(v[2], i)?;
            Ok(vec![v[1], v[0], sum])
        })?;
        p.store(&format!("for-{what}"), r[0])?;
        p.store(&format!("for-{what}-sum"), r[2])?;
    }
    let (zero, one) = (p.b.int(0), p.b.int(1));
    for (what, start) in [("none", 3), ("thrice", 0)] {
        let start = p.b.int(start);
        let go = p.b.compare(Compare::Lt, start, three)?;
        let r = p.b.while_loop(go, &[a, c, start], |b, v| {
            let next = b.add(v[2], one)?;
            let go = b.compare(Compare::Lt, next, three)?;
            Ok((go, vec![v[1], v[0], next]))
        })?;
        p.store(&format!("while-{what}"), r[0])?;
    }
    for (what, with) in [("true", Compare::Lt), ("false", Compare::Gt)] {
        let go = p.b.compare(with, zero, three)?;
        let r = p.b.if_else(go, |_| Ok(vec![a]), |_| Ok(vec![c]))?;
        p.store(&format!("if-{what}"), r[0])?;
        let out = p.output(&format!("if-{what}-stores"), d, 19);
        let v = p.view(out, &[19])?;
        p.b.if_else(
            go,
            |b| {
                b.store(v, a, &[zero], TileMap::along(&[19], &[0]), &[true])?;
                Ok(vec![])
            },
            |_| Ok(vec![]),
        )?;
    }
    // A loop in a loop, with a choice inside.
    let two = p.b.int(2);
    let r = p.b.for_loop(zero, three, one, &[a, c], |b, i, v| {
        b.for_loop(zero, i, one, v, |b, j, w| {
            let at = b.binary(Binary::Rem, j, two)?;
            let even = b.compare(Compare::Eq, at, zero)?;
            b.if_else(even, |_| Ok(vec![w[1], w[0]]), |_| Ok(vec![w[0], w[1]]))
        })
    })?;
    p.store("nested", r[0])?;
    Ok(p.finish([1, 1, 1]))
}

/// Values whose sums are exact in any order, and edges for what is exact anyway.
fn combined(c: Combiner, d: DType, n: usize) -> Vec<u64> {
    match d.is_float() && c == Combiner::Add {
        true => (0..n).map(|i| code(d, if i % 3 == 0 { 0.5 } else { 0.0 })).collect(),
        false => cycled(d, n, 3),
    }
}

fn atomic_reduce(c: Combiner, d: DType) -> Built {
    let mut p = Draft::new(&format!("atomic_reduce-{}/{d}", c.name()));
    let x = p.input(d, combined(c, d, 21));
    let at = p.input(DType::I32, wild(DType::I32, 4, 21, 9));
    let on = p.input(DType::Bool, small(DType::Bool, 21, 3));
    let (v, at, m) = (p.load(x, &[21])?, p.load(at, &[21])?, p.load(on, &[21])?);
    let op = |masked| Op::AtomicReduce { combiner: c, scope: Scope::Device, masked };
    let out = p.output("together", d, 4);
    p.b.add_inst(op(false), &[out, at, v])?;
    let out = p.output("masked", d, 4);
    p.b.add_inst(op(true), &[out, at, v, m])?;
    Ok(p.finish([3, 1, 1]))
}

fn atomic_rmw(c: Combiner, d: DType) -> Built {
    let mut p = Draft::new(&format!("atomic_rmw-{}/{d}", c.name()));
    let x = p.input(d, combined(c, d, 9));
    // Each place once, so that what is given back does not depend on the order; the last is outside.
    let at = p.input(DType::I64, (0..9u64).map(|i| (i * 4) % 9).collect());
    let on = p.input(DType::Bool, small(DType::Bool, 9, 3));
    let (v, at, m) = (p.load(x, &[9])?, p.load(at, &[9])?, p.load(on, &[9])?);
    for ordering in [Ordering::Relaxed, Ordering::AcqRel] {
        for masked in [false, true] {
            let what = format!(
                "{}{}",
                if ordering == Ordering::Relaxed { "relaxed" } else { "ordered" },
                if masked { "-masked" } else { "" }
            );
            let out = p.output(&what, d, 8);
            let op = Op::AtomicRmw { combiner: c, ordering, scope: Scope::System, masked };
            let operands: Vec<Val> = [out, at, v].into_iter().chain(masked.then_some(m)).collect();
            let old = p.b.add_inst(op, &operands)?[0];
            p.store(&format!("{what}-old"), old)?;
        }
    }
    Ok(p.finish([1, 1, 1]))
}

fn atomic_cas(d: DType) -> Built {
    let mut p = Draft::new(&format!("atomic_cas/{d}"));
    let x = p.input(d, cycled(d, 9, 2));
    // Half of them hold what memory holds.
    let held = code(d, 1.0);
    let expected: Vec<u64> =
        cycled(d, 9, 1).into_iter().enumerate().map(|(i, c)| if i % 2 == 0 { held } else { c }).collect();
    let expected = p.input(d, expected);
    let at = p.input(DType::I32, (0..9u64).map(|i| (i * 2) % 9).collect());
    let (v, e, at) = (p.load(x, &[9])?, p.load(expected, &[9])?, p.load(at, &[9])?);
    for ordering in [Ordering::Relaxed, Ordering::Acquire, Ordering::Release, Ordering::AcqRel] {
        let out = p.output(&format!("{ordering:?}").to_lowercase(), d, 8);
        let old = p.b.add_inst(Op::AtomicCas { ordering, scope: Scope::Device }, &[out, at, e, v])?[0];
        p.store(&format!("{ordering:?}-old").to_lowercase(), old)?;
    }
    Ok(p.finish([1, 1, 1]))
}
