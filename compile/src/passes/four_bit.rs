//! Products of few rows with constant 4-bit numbers in runs that share a scale, as kernels that multiply the numbers as they are and scale
//! the sums of runs.
//!
//! Over a run `Σ x ((w - z) s)` is `s Σ x (w - z)`; where the rows are bytes in runs with a scale of their own, `Σ (q d) ((w - z) s)` is
//! `d s (Σ q w - z Σ q)`, whose sums are whole numbers and exact.

use tongtu_graph::infer::numel;
use tongtu_graph::op::AttrValue;
use tongtu_graph::{Graph, GraphError, Module, Op, Type, ValueId};
use tongtu_tensor::dim::Dim;
use tongtu_tensor::scalar::Binary;
use tongtu_tensor::{Combiner, DType, Num, Tensor};
use tongtu_tile::{Access, Factor, KernelBuilder, TileError, TileMap};

use super::quantised::{PANEL, ROWS, RUN, in_runs, rebuild};

/// Rows of bytes that share what is read of the 4-bit numbers.
const TILE: usize = 4;
/// Steps that stand side by side.
const FOUR: usize = 4;

/// Bits of `f32` numbers whose last places 0 and 4 count ones: their low mantissa bits hold the lower and the upper half of a byte.
const ONES: [(u32, f64); 2] = [(0x4b00_0000, 8_388_608.0), (0x4900_0000, 524_288.0)];

/// Contractions with 4-bit numbers in runs of [`RUN`] of few rows of `f32`, or any of bytes dequantised in such runs. A byte holds the
/// numbers of a column at the same place of two runs that follow each other; for rows of bytes four places lie side by side.
pub(super) fn kernels(module: Module) -> Result<Module, GraphError> {
    rebuild(module, |b, old, defs, node, new| {
        let (Op::Contract { batch, over, acc: DType::F32 }, &[x, y]) = (&node.op, &node.inputs[..]) else {
            return Ok(None);
        };
        let dims = old.dims(x).to_vec();
        let last = dims.len().saturating_sub(1);
        if !batch.is_empty() || over[..] != [(last, 1)] {
            return Ok(None);
        }
        let rows = numel(&dims[..last]);
        let bytes = in_bytes(old, defs, x, last);
        // Rows of a tile; more rows, or a number that is not known, are tiles by themselves.
        let tile = match rows.as_const() {
            Some(n @ 1..=ROWS) => n as usize,
            _ if bytes.is_some() => TILE,
            _ => return Ok(None),
        };
        let Some(w) = in_runs(old, defs, y).filter(|_| old.dtype(x) == DType::F32) else { return Ok(None) };
        let [columns, k] = w.numbers.shape()[..] else { return Ok(None) };
        let mut zeros = w.zeros.into_iter().flat_map(|z| z.iter().map(|n| n.to_i128()));
        let zero = zeros.next().unwrap_or(0);
        if zeros.any(|z| z != zero) || !k.is_multiple_of(2 * RUN) || !columns.is_multiple_of(PANEL) {
            return Ok(None);
        }
        let (panels, pairs) = (columns / PANEL, k / (2 * RUN));
        let numbers = w.nibbles();
        let side = if bytes.is_some() { FOUR } else { 1 };
        let mut packed = Vec::with_capacity(numbers.len() / 2);
        for (panel, group) in (0..panels).flat_map(|p| (0..k / 2 / side).map(move |g| (p, g))) {
            let first = group * side / RUN * 2 * RUN + group * side % RUN;
            for column in panel * PANEL..(panel + 1) * PANEL {
                let at = column * k + first;
                packed.extend((at..at + side).map(|at| numbers[at] | numbers[at + RUN] << 4));
            }
        }
        let Ok(packed) = Tensor::from_slice(&[panels, pairs * RUN / side, PANEL, side], &packed) else {
            return Ok(None);
        };
        let dim = |d: usize| Dim::from(d as i64);
        let packed = b.constant(packed)?;
        let scales = b.reshape(new(w.scales), &[dim(panels), dim(PANEL), dim(2 * pairs)])?;
        let scales = b.permute(scales, &[0, 2, 1])?;
        let width = if tile == 1 { PANEL } else { PANEL / 4 };
        let tiles = rows.ceildiv(&dim(tile));
        let padded = &tiles * &dim(tile);
        let more = &padded - &rows;
        let (code, operands) = match bytes {
            Some((q, d)) => {
                let mut whole = |v: ValueId, dtype: DType, n: usize| {
                    let v = b.reshape(new(v), &[rows.clone(), dim(n)])?;
                    if more == 0 {
                        return Ok(v);
                    }
                    let zero = b.float(dtype, 0.0)?;
                    b.pad(v, zero, &[dim(0), dim(0)], &[more.clone(), dim(0)])
                };
                let (q, d) = (whole(q, DType::I8, k)?, whole(d, DType::F32, 2 * pairs)?);
                let runs = b.reshape(q, &[padded.clone(), dim(2 * pairs), dim(RUN)])?;
                let runs = b.convert(runs, DType::I32)?;
                let sums = b.reduce(Combiner::Add, runs, &[2])?;
                let sums = b.binary_const(Binary::Mul, sums, -(zero as f64))?;
                (of_bytes(tile, width), vec![q, d, sums, packed, scales])
            }
            None => {
                let x = b.reshape(new(x), &[rows.clone(), dim(k)])?;
                (of_floats(tile, width, zero as f64), vec![x, packed, scales])
            }
        };
        let code = code.map_err(|e| GraphError::Structure {
            op: "contract".into(),
            loc: node.loc.clone(),
            detail: e.to_string(),
        })?;
        let op = Op::Kernel {
            code,
            grid: vec![dim(columns / width), tiles],
            scalars: vec![dim(pairs), dim(columns)],
            in_place: vec![],
            results: vec![Type::tensor(DType::F32, [padded.clone(), dim(columns)])],
        };
        let mut y = b.one(op, &operands)?;
        if more != 0 {
            y = b.slice(y, &[dim(0), dim(0)], &[rows, dim(columns)], &[1, 1])?;
        }
        let mut out = dims[..last].to_vec();
        out.push(dim(columns));
        Ok(Some(b.reshape(y, &out)?))
    })
}

/// The bytes and scales that a value is dequantised from in runs along its last dim.
fn in_bytes(g: &Graph, defs: &[Option<usize>], v: ValueId, last: usize) -> Option<(ValueId, ValueId)> {
    let node = &g.nodes[defs[v.index()]?];
    let Op::Composite { name, attributes, .. } = &node.op else { return None };
    let is = |key: &str, n: i64| {
        attributes.iter().any(|(k, v)| k == key && matches!(v, AttrValue::Int(i) if *i == n))
    };
    let &[q, d] = &node.inputs[..] else { return None };
    let in_runs = name == "dequantize" && is("axis", last as i64) && is("block", RUN as i64);
    (in_runs && (g.dtype(q), g.dtype(d)) == (DType::I8, DType::F32)).then_some((q, d))
}

/// The kernel for rows of `f32`; an instance makes `width` columns of a panel.
fn of_floats(rows: usize, width: usize, zero_point: f64) -> Result<String, TileError> {
    let mut b = KernelBuilder::new("product_with_4_bits");
    let x = b.buffer("x", DType::F32, Access::Read);
    let packed = b.buffer("packed", DType::U8, Access::Read);
    let scales = b.buffer("scales", DType::F32, Access::Read);
    let out = b.buffer("out", DType::F32, Access::Write);
    let (pairs, columns) = (b.scalar("pairs", DType::I64), b.scalar("columns", DType::I64));
    let (zero, one, two) = (b.int(0), b.int(1), b.int(2));
    let (panel_v, rows_v, run_v) = (b.int(PANEL as i64), b.int(rows as i64), b.int(RUN as i64));
    let steps = b.mul_int(pairs, 2 * RUN as i64)?;
    let panels = b.div(columns, panel_v)?;
    let all = b.mul(pairs, panels)?;
    let (all_lines, all_runs) = (b.mul_int(all, RUN as i64)?, b.mul(all, two)?);
    let x = b.view(x, zero, &[rows_v, steps], &[steps, one])?;
    let packed = b.view(packed, zero, &[all_lines, panel_v], &[panel_v, one])?;
    let scales = b.view(scales, zero, &[all_runs, panel_v], &[panel_v, one])?;
    let out = b.view(out, zero, &[rows_v, columns], &[columns, one])?;
    let pid = b.program_id(0)?;
    let per = b.int((PANEL / width) as i64);
    let panel = b.div(pid, per)?;
    let column = b.binary(Binary::Rem, pid, per)?;
    let column = b.mul_int(column, width as i64)?;
    let first = b.mul(panel, pairs)?;
    let nothing = b.full(DType::F32, &[rows, width], Num::Float(0.0))?;
    let line = TileMap::along(&[1, width], &[0, 1]);
    let halves = [Num::Int(15), Num::Int(240)].map(|n| b.full(DType::U32, &[1, width], n));
    let ones = ONES.map(|o| b.full(DType::U32, &[1, width], Num::Int(o.0.into())));
    let less = ONES.map(|o| b.full(DType::F32, &[1, width], Num::Float(o.1 + zero_point)));
    let [halves, ones, less] = [halves, ones, less].map(|[a, b]| a.and_then(|a| Ok([a, b?])));
    let (halves, ones, less) = (halves?, ones?, less?);
    let acc = b.for_loop(zero, pairs, one, &[nothing], |b, pair, acc| {
        let at = b.add(first, pair)?;
        let (row, from) = (b.mul_int(at, RUN as i64)?, b.mul_int(pair, 2 * RUN as i64)?);
        let sums = b.for_loop(zero, run_v, one, &[nothing, nothing], |b, i, sums| {
            let (row, from) = (b.add(row, i)?, b.add(from, i)?);
            let both = b.load(packed, &[row, column], line.clone(), &[true; 2], Num::Int(0))?;
            let both = b.cast(both, DType::U32, Default::default())?;
            let mut out = Vec::new();
            for half in 0..2 {
                let w = b.binary(Binary::And, both, halves[half])?;
                let w = b.binary(Binary::Or, w, ones[half])?;
                let w = b.bitcast(w, DType::F32)?;
                let w = b.sub(w, less[half])?;
                let from = b.add_int(from, (half * RUN) as i64)?;
                let map = TileMap::along(&[rows, 1], &[0, 1]);
                let x = b.load(x, &[zero, from], map, &[true; 2], Num::Float(0.0))?;
                out.push(b.mma(sums[half], x, w)?);
            }
            Ok(out)
        })?;
        let mut acc = acc[0];
        for (half, sum) in sums.into_iter().enumerate() {
            let run = b.mul(at, two)?;
            let run = b.add_int(run, half as i64)?;
            let scale = b.load(scales, &[run, column], line.clone(), &[true; 2], Num::Float(0.0))?;
            let scale = b.broadcast(scale, &[rows, width])?;
            acc = b.fma(sum, scale, acc)?;
        }
        Ok(vec![acc])
    })?;
    let at = b.mul_int(panel, PANEL as i64)?;
    let at = b.add(at, column)?;
    b.store(out, acc[0], &[zero, at], TileMap::along(&[rows, width], &[0, 1]), &[true; 2])?;
    Ok(b.finish().to_string())
}

/// The kernel for rows of bytes; an instance makes `width` columns of a panel.
fn of_bytes(rows: usize, width: usize) -> Result<String, TileError> {
    let mut b = KernelBuilder::new("bytes_with_4_bits");
    let q = b.buffer("q", DType::I8, Access::Read);
    let d = b.buffer("d", DType::F32, Access::Read);
    let sums = b.buffer("sums", DType::I32, Access::Read);
    let packed = b.buffer("packed", DType::U8, Access::Read);
    let scales = b.buffer("scales", DType::F32, Access::Read);
    let out = b.buffer("out", DType::F32, Access::Write);
    let (pairs, columns) = (b.scalar("pairs", DType::I64), b.scalar("columns", DType::I64));
    let (zero, one, two) = (b.int(0), b.int(1), b.int(2));
    let (panel_v, four) = (b.int(PANEL as i64), b.int(FOUR as i64));
    let line = b.int((PANEL * FOUR) as i64);
    let (tile, tiles) = (b.program_id(1)?, b.num_programs(1)?);
    let (row, rows_v) = (b.mul_int(tile, rows as i64)?, b.mul_int(tiles, rows as i64)?);
    let steps = b.mul_int(pairs, 2 * RUN as i64)?;
    let runs = b.mul(pairs, two)?;
    let panels = b.div(columns, panel_v)?;
    let all_groups = b.mul_int(pairs, (RUN / FOUR) as i64)?;
    let all_groups = b.mul(all_groups, panels)?;
    let all_runs = b.mul(runs, panels)?;
    let q = b.view(q, zero, &[rows_v, steps], &[steps, one])?;
    let d = b.view(d, zero, &[rows_v, runs], &[runs, one])?;
    let sums = b.view(sums, zero, &[rows_v, runs], &[runs, one])?;
    let packed = b.view(packed, zero, &[all_groups, panel_v, four], &[line, four, one])?;
    let scales = b.view(scales, zero, &[all_runs, panel_v], &[panel_v, one])?;
    let out = b.view(out, zero, &[rows_v, columns], &[columns, one])?;
    let pid = b.program_id(0)?;
    let per = b.int((PANEL / width) as i64);
    let panel = b.div(pid, per)?;
    let column = b.binary(Binary::Rem, pid, per)?;
    let column = b.mul_int(column, width as i64)?;
    let first = b.mul(panel, pairs)?;
    let pad = Num::Int(0);
    let acc = b.full(DType::F32, &[rows, width], Num::Float(0.0))?;
    let low = b.full(DType::U8, &[RUN, width], Num::Int(15))?;
    let high = b.full(DType::U8, &[RUN, width], Num::Int(4))?;
    let factor = |size: usize, dim: usize| Factor { size, dim: Some(dim), step: 1 };
    let acc = b.for_loop(zero, pairs, one, &[acc], |b, pair, acc| {
        let at = b.add(first, pair)?;
        let group = b.mul_int(at, (RUN / FOUR) as i64)?;
        let map = TileMap(vec![vec![factor(RUN / FOUR, 0), factor(FOUR, 2)], vec![factor(width, 1)]]);
        let both = b.load(packed, &[group, column, zero], map, &[true; 3], pad)?;
        let mut acc = acc[0];
        for half in 0..2 {
            let w = match half {
                0 => b.binary(Binary::And, both, low)?,
                _ => b.binary(Binary::Shr, both, high)?,
            };
            let run = b.mul(pair, two)?;
            let run = b.add_int(run, half)?;
            let step = b.mul_int(run, RUN as i64)?;
            let left = b.load(q, &[row, step], TileMap::along(&[rows, RUN], &[0, 1]), &[true; 2], pad)?;
            let map = TileMap::along(&[rows, 1], &[0, 1]);
            let start = b.load(sums, &[row, run], map.clone(), &[true; 2], pad)?;
            let start = b.broadcast(start, &[rows, width])?;
            let sum = b.mma(start, left, w)?;
            let sum = b.cast(sum, DType::F32, Default::default())?;
            let own = b.load(d, &[row, run], map, &[true; 2], Num::Float(0.0))?;
            let own = b.broadcast(own, &[rows, width])?;
            let run = b.mul(at, two)?;
            let run = b.add_int(run, half)?;
            let map = TileMap::along(&[1, width], &[0, 1]);
            let scale = b.load(scales, &[run, column], map, &[true; 2], Num::Float(0.0))?;
            let scale = b.broadcast(scale, &[rows, width])?;
            let scale = b.mul(scale, own)?;
            acc = b.fma(sum, scale, acc)?;
        }
        Ok(vec![acc])
    })?;
    let at = b.mul_int(panel, PANEL as i64)?;
    let at = b.add(at, column)?;
    b.store(out, acc[0], &[row, at], TileMap::along(&[rows, width], &[0, 1]), &[true; 2])?;
    Ok(b.finish().to_string())
}
