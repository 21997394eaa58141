//! The meaning of scan, sort and scatter: one definition for both modes. An element of a scan or sort takes a line along the
//! axis; one of a scatter takes all indices, but few of the updates.

use std::cmp::Ordering;
use std::collections::HashMap;

use tongtu_tensor::scalar::Approx;
use tongtu_tensor::{Combiner, Num};

use crate::error::GraphError;
use crate::eval::elem::{Elem, hull};
use crate::eval::element::Combination;
use crate::eval::prepare::{Prepared, count, ravel, unravel};
use crate::op::Op;

/// The results of scan, sort and scatter for whole operands.
pub(crate) fn whole<E: Elem>(p: &Prepared, x: &[Vec<E>]) -> Result<Vec<Vec<E>>, GraphError> {
    let Some(axis) = line_axis(&p.op) else {
        let targets = Targets::new(p, |i| Ok(x[1][i].clone()))?;
        let elements =
            (0..x[0].len()).map(|at| targets.element(p, at, x[0][at].clone(), |n| Ok(x[2][n].clone())));
        return Ok(vec![elements.collect::<Result<_, _>>()?]);
    };
    let mut out: Vec<Vec<E>> = x.to_vec();
    let shape = &p.ins[0].1;
    let inner = count(&shape[axis + 1..]);
    for first in (0..count(&shape[..axis])).flat_map(|o| (0..inner).map(move |i| o * shape[axis] * inner + i))
    {
        let places: Vec<usize> = (0..shape[axis]).map(|k| first + k * inner).collect();
        let operands: Vec<Vec<E>> =
            x.iter().map(|x| places.iter().map(|&i| x[i].clone()).collect()).collect();
        for (out, line) in out.iter_mut().zip(line(p, &operands)) {
            places.iter().zip(line).for_each(|(&i, v)| out[i] = v);
        }
    }
    Ok(out)
}

/// The axis of an operation of which each line along it is computed by itself.
pub(crate) fn line_axis(op: &Op) -> Option<usize> {
    match op {
        Op::Scan { axis, .. } | Op::Sort { axis, .. } => Some(*axis),
        _ => None,
    }
}

/// One line of the results of a scan or sort.
pub(crate) fn line<E: Elem>(p: &Prepared, x: &[Vec<E>]) -> Vec<Vec<E>> {
    match &p.op {
        Op::Scan { combiner, exclusive, reverse, .. } => scan(p, x, *combiner, *exclusive, *reverse),
        Op::Sort { descending, .. } => sort(p, x, *descending),
        _ => Vec::new(),
    }
}

fn scan<E: Elem>(
    p: &Prepared,
    x: &[Vec<E>],
    combiner: Combiner,
    exclusive: bool,
    reverse: bool,
) -> Vec<Vec<E>> {
    let mut out: Vec<Vec<E>> = x.to_vec();
    let mut c = Combination::new(combiner, p.ins[0].0, p.ins.get(1).map(|i| i.0));
    let n = x[0].len();
    for k in 0..n {
        let at = if reverse { n - 1 - k } else { k };
        if exclusive {
            out.iter_mut().enumerate().for_each(|(o, out)| out[at] = c.value(o));
        }
        c.push(x[0][at].clone(), x.get(1).map(|i| i[at].clone()));
        if !exclusive {
            out.iter_mut().enumerate().for_each(|(o, out)| out[at] = c.value(o));
        }
    }
    out
}

/// The order of sort keys: numbers ascending, NaN last.
fn order(a: Num, b: Num) -> Ordering {
    match (a, b) {
        (Num::Int(a), Num::Int(b)) => a.cmp(&b),
        (a, b) => match (a.is_nan(), b.is_nan()) {
            (false, false) => a.to_f64().partial_cmp(&b.to_f64()).unwrap_or(Ordering::Equal),
            (a, b) => a.cmp(&b),
        },
    }
}

fn sort<E: Elem>(p: &Prepared, x: &[Vec<E>], descending: bool) -> Vec<Vec<E>> {
    let key_type = p.ins[0].0;
    let keys: Vec<Approx> = x[0].iter().map(|v| v.approx(key_type)).collect();
    let mut by: Vec<usize> = (0..keys.len()).collect();
    by.sort_by(|&a, &b| {
        let o = order(keys[a].value, keys[b].value);
        if descending { o.reverse() } else { o }
    });
    // No key moves further than the greatest error of any.
    let err = keys.iter().map(|k| k.err).fold(0.0, f64::max);
    let place = |o: usize, from: usize| {
        let nominal = &x[o][from];
        if err == 0.0 {
            return nominal.clone();
        }
        if o == 0 {
            return E::of_approx(key_type, Approx { value: keys[from].value, err });
        }
        let near = (0..keys.len()).filter(|&k| {
            let d = (keys[k].value.to_f64() - keys[from].value.to_f64()).abs();
            d.is_nan() || d <= 2.0 * err
        });
        hull(p.ins[o].0, nominal, near.map(|k| x[o][k].clone()))
    };
    (0..x.len()).map(|o| by.iter().map(|&from| place(o, from)).collect()).collect()
}

/// Where the updates of a scatter go.
pub(crate) struct Targets {
    /// Elements of the slice that one row of indices selects.
    slice: usize,
    /// For each slice of the data that is updated, the rows that update it, in order.
    rows: HashMap<usize, Vec<usize>>,
    /// Every index is exact.
    sure: bool,
}

impl Targets {
    /// Reads all indices.
    pub fn new<E: Elem>(
        p: &Prepared,
        mut index: impl FnMut(usize) -> Result<E, GraphError>,
    ) -> Result<Targets, GraphError> {
        let (data, indices) = (&p.ins[0].1, &p.ins[1].1);
        let along = match &p.op {
            Op::ScatterAlong { axis, .. } => Some(*axis),
            _ => None,
        };
        let depth = if along.is_some() { 1 } else { indices.last().copied().unwrap_or(0) };
        let rows =
            if along.is_some() { count(indices) } else { count(&indices[..indices.len().saturating_sub(1)]) };
        let slice = if along.is_some() { 1 } else { count(&data[depth..]) };
        let mut targets = Targets { slice, rows: HashMap::new(), sure: true };
        for row in 0..rows {
            let mut at = Vec::with_capacity(depth);
            for k in 0..depth {
                let a = index(row * depth + k)?.approx(p.ins[1].0);
                targets.sure &= a.err == 0.0;
                at.push(usize::try_from(a.value.to_i128()).unwrap_or(usize::MAX));
            }
            let place = match along {
                Some(axis) => {
                    let mut i = unravel(row, indices);
                    i[axis] = at[0];
                    i
                }
                None => at,
            };
            if place.iter().zip(data).all(|(i, n)| i < n) {
                targets.rows.entry(ravel(&place, &data[..place.len()])).or_default().push(row);
            }
        }
        Ok(targets)
    }
    /// One element of the result, from the one of the data and the updates.
    pub fn element<E: Elem>(
        &self,
        p: &Prepared,
        at: usize,
        old: E,
        mut update: impl FnMut(usize) -> Result<E, GraphError>,
    ) -> Result<E, GraphError> {
        let dtype = p.ins[0].0;
        let combiner = match &p.op {
            Op::ScatterAlong { combiner, .. } | Op::ScatterNd { combiner } => *combiner,
            _ => Combiner::Replace,
        };
        let slice = self.slice.max(1);
        let value = match self.rows.get(&(at / slice)) {
            None => old,
            Some(rows) => {
                let mut c = Combination::stepwise(combiner, dtype);
                c.push(old, None);
                for row in rows {
                    c.push(update(row * slice + at % slice)?, None);
                }
                c.value(0)
            }
        };
        if self.sure {
            return Ok(value);
        }
        Ok(E::of_approx(dtype, Approx { value: value.approx(dtype).value, err: f64::INFINITY }))
    }
}
