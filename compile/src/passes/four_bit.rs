//! Products of few rows of bytes with constant 4-bit numbers, both in runs that share a scale.
//!
//! Over a run `Σ (q d) ((w - z) s)` is `d s (Σ q w - z Σ q)`, whose sums are whole numbers and exact.

use tongtu_graph::op::AttrValue;
use tongtu_graph::{GraphError, Module, Op, Type};
use tongtu_tensor::dim::Dim;
use tongtu_tensor::scalar::Binary;
use tongtu_tensor::{Combiner, DType, Num, Tensor};
use tongtu_tile::{Access, Factor, KernelBuilder, TileError, TileMap};

use super::quantised::{PANEL, ROWS, RUN, in_runs, rebuild};

/// Steps that stand side by side.
const FOUR: usize = 4;

/// Contractions of few rows of bytes, dequantised in runs of [`RUN`], with 4-bit numbers in such runs, as kernels that multiply the whole
/// numbers. A byte holds the numbers of a column at the same place of two runs that follow each other, four places side by side.
pub(super) fn dots(module: Module) -> Result<Module, GraphError> {
    rebuild(module, |b, old, defs, node, new| {
        let (Op::Contract { batch, over, acc: DType::F32 }, &[x, y]) = (&node.op, &node.inputs[..]) else {
            return Ok(None);
        };
        let dims = old.dims(x).to_vec();
        let last = dims.len().saturating_sub(1);
        let Some(rows) = dims.iter().take(last).try_fold(1i64, |n, d| n.checked_mul(d.as_const()?)) else {
            return Ok(None);
        };
        if !(1..=ROWS).contains(&rows) || !batch.is_empty() || over[..] != [(last, 1)] {
            return Ok(None);
        }
        let Some(bytes) = defs[x.index()].map(|n| &old.nodes[n]) else { return Ok(None) };
        let Op::Composite { name, attributes, .. } = &bytes.op else { return Ok(None) };
        let is = |key: &str, n: i64| {
            attributes.iter().any(|(k, v)| k == key && matches!(v, AttrValue::Int(i) if *i == n))
        };
        let &[q, d] = &bytes.inputs[..] else { return Ok(None) };
        let in_rows = name == "dequantize"
            && is("axis", last as i64)
            && is("block", RUN as i64)
            && (old.dtype(q), old.dtype(d)) == (DType::I8, DType::F32);
        let Some(w) = in_runs(old, defs, y).filter(|_| in_rows) else { return Ok(None) };
        let [columns, k] = w.numbers.shape()[..] else { return Ok(None) };
        let mut zeros = w.zeros.into_iter().flat_map(|z| z.iter().map(|n| n.to_i128()));
        let zero = zeros.next().unwrap_or(0);
        if zeros.any(|z| z != zero) || !k.is_multiple_of(2 * RUN) || !columns.is_multiple_of(PANEL) {
            return Ok(None);
        }
        let (rows, panels, pairs) = (rows as usize, columns / PANEL, k / (2 * RUN));
        let numbers = w.nibbles();
        let mut packed = Vec::with_capacity(numbers.len() / 2);
        for (panel, group) in (0..panels).flat_map(|p| (0..k / 2 / FOUR).map(move |g| (p, g))) {
            let first = group * FOUR / RUN * 2 * RUN + group * FOUR % RUN;
            for column in panel * PANEL..(panel + 1) * PANEL {
                let at = column * k + first;
                packed.extend((at..at + FOUR).map(|at| numbers[at] | numbers[at + RUN] << 4));
            }
        }
        let Ok(packed) = Tensor::from_slice(&[panels, pairs * RUN / FOUR, PANEL, FOUR], &packed) else {
            return Ok(None);
        };
        let dim = |d: usize| Dim::from(d as i64);
        let packed = b.constant(packed)?;
        let scales = b.reshape(new(w.scales), &[dim(panels), dim(PANEL), dim(2 * pairs)])?;
        let scales = b.permute(scales, &[0, 2, 1])?;
        let q = b.reshape(new(q), &[dim(rows), dim(k)])?;
        let d = b.reshape(new(d), &[dim(rows), dim(2 * pairs)])?;
        let runs = b.reshape(q, &[dim(rows), dim(2 * pairs), dim(RUN)])?;
        let runs = b.convert(runs, DType::I32)?;
        let sums = b.reduce(Combiner::Add, runs, &[2])?;
        let sums = b.binary_const(Binary::Mul, sums, -(zero as f64))?;
        let width = if rows == 1 { PANEL } else { PANEL / 4 };
        let code = kernel(rows, width).map_err(|e| GraphError::Structure {
            op: "contract".into(),
            loc: node.loc.clone(),
            detail: e.to_string(),
        })?;
        let y = b.one(
            Op::Kernel {
                code,
                grid: vec![dim(columns / width)],
                scalars: vec![dim(pairs), dim(columns)],
                in_place: vec![],
                results: vec![Type::tensor(DType::F32, [dim(rows), dim(columns)])],
            },
            &[q, d, sums, packed, scales],
        )?;
        let mut out = dims[..last].to_vec();
        out.push(dim(columns));
        Ok(Some(b.reshape(y, &out)?))
    })
}

/// The kernel for a number of rows; an instance makes `width` columns of a panel.
fn kernel(rows: usize, width: usize) -> Result<String, TileError> {
    let mut b = KernelBuilder::new("dots_of_4_bits");
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
    let rows_v = b.int(rows as i64);
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
            let left = b.load(q, &[zero, step], TileMap::along(&[rows, RUN], &[0, 1]), &[true; 2], pad)?;
            let map = TileMap::along(&[rows, 1], &[0, 1]);
            let start = b.load(sums, &[zero, run], map.clone(), &[true; 2], pad)?;
            let start = b.broadcast(start, &[rows, width])?;
            let sum = b.mma(start, left, w)?;
            let sum = b.cast(sum, DType::F32, Default::default())?;
            let own = b.load(d, &[zero, run], map, &[true; 2], Num::Float(0.0))?;
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
    b.store(out, acc[0], &[zero, at], TileMap::along(&[rows, width], &[0, 1]), &[true; 2])?;
    Ok(b.finish().to_string())
}
