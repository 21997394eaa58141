//! The meaning of the operations whose result elements depend on all of an operand: one definition for both modes.

use std::cmp::Ordering;

use tongtu_tensor::scalar::Approx;
use tongtu_tensor::{Combiner, Num};

use crate::eval::elem::{Elem, hull};
use crate::eval::element::Combination;
use crate::eval::prepare::{Prepared, count, ravel, unravel};
use crate::op::Op;

/// The results of scan, sort and scatter for whole operands.
pub(crate) fn whole<E: Elem>(p: &Prepared, x: &[Vec<E>]) -> Vec<Vec<E>> {
    match &p.op {
        Op::Scan { combiner, axis, exclusive, reverse } => scan(p, x, *combiner, *axis, *exclusive, *reverse),
        Op::Sort { axis, descending } => sort(p, x, *axis, *descending),
        Op::ScatterAlong { axis, combiner } => {
            let (data, indices) = (&p.ins[0].1, &p.ins[1].1);
            scatter(p, x, *combiner, 1, |n, index| {
                let mut i = unravel(n, indices);
                i[*axis] = usize::try_from(index[0]).ok().filter(|&v| v < data[*axis])?;
                Some(ravel(&i, data))
            })
        }
        Op::ScatterNd { combiner } => {
            let (data, indices) = (&p.ins[0].1, &p.ins[1].1);
            let k = indices.last().copied().unwrap_or(0);
            let slice = count(&data[k..]);
            scatter(p, x, *combiner, k, |n, index| {
                let inside = index.iter().zip(data).all(|(&i, &n)| (0..n as i128).contains(&i));
                let i: Vec<usize> = index.iter().map(|&i| i as usize).collect();
                inside.then(|| ravel(&i, &data[..k]) * slice + n % slice.max(1))
            })
        }
        _ => Vec::new(),
    }
}

/// The linear positions of one line along an axis for every other index.
fn lines(shape: &[usize], axis: usize) -> impl Iterator<Item = Vec<usize>> {
    let (n, inner) = (shape[axis], count(&shape[axis + 1..]));
    let outer = count(&shape[..axis]);
    (0..outer).flat_map(move |o| (0..inner).map(move |i| (0..n).map(|k| (o * n + k) * inner + i).collect()))
}

fn scan<E: Elem>(
    p: &Prepared,
    x: &[Vec<E>],
    combiner: Combiner,
    axis: usize,
    exclusive: bool,
    reverse: bool,
) -> Vec<Vec<E>> {
    let dtype = p.ins[0].0;
    let index = p.ins.get(1).map(|i| i.0);
    let mut out: Vec<Vec<E>> = x.to_vec();
    for mut line in lines(&p.ins[0].1, axis) {
        if reverse {
            line.reverse();
        }
        let mut c = Combination::new(combiner, dtype, index);
        for &at in &line {
            if exclusive {
                out.iter_mut().enumerate().for_each(|(o, out)| out[at] = c.value(o));
            }
            c.push(x[0][at].clone(), x.get(1).map(|i| i[at].clone()));
            if !exclusive {
                out.iter_mut().enumerate().for_each(|(o, out)| out[at] = c.value(o));
            }
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

fn sort<E: Elem>(p: &Prepared, x: &[Vec<E>], axis: usize, descending: bool) -> Vec<Vec<E>> {
    let mut out: Vec<Vec<E>> = x.to_vec();
    let key_type = p.ins[0].0;
    for line in lines(&p.ins[0].1, axis) {
        let keys: Vec<Approx> = line.iter().map(|&i| x[0][i].approx(key_type)).collect();
        let mut by: Vec<usize> = (0..line.len()).collect();
        by.sort_by(|&a, &b| {
            let o = order(keys[a].value, keys[b].value);
            if descending { o.reverse() } else { o }
        });
        // No key moves further than the greatest error of any.
        let err = keys.iter().map(|k| k.err).fold(0.0, f64::max);
        for (place, &from) in by.iter().enumerate() {
            for (o, out) in out.iter_mut().enumerate() {
                let nominal = &x[o][line[from]];
                out[line[place]] = if err == 0.0 {
                    nominal.clone()
                } else if o == 0 {
                    E::of_approx(key_type, Approx { value: keys[from].value, err })
                } else {
                    let near = (0..line.len()).filter(|&k| {
                        let d = (keys[k].value.to_f64() - keys[from].value.to_f64()).abs();
                        d.is_nan() || d <= 2.0 * err
                    });
                    hull(p.ins[o].0, nominal, near.map(|k| x[o][line[k]].clone()))
                };
            }
        }
    }
    out
}

/// `target(update, index)` is the place that an update goes to.
fn scatter<E: Elem>(
    p: &Prepared,
    x: &[Vec<E>],
    combiner: Combiner,
    depth: usize,
    target: impl Fn(usize, &[i128]) -> Option<usize>,
) -> Vec<Vec<E>> {
    let dtype = p.ins[0].0;
    let index_type = p.ins[1].0;
    let updates = x[2].len();
    let rows = x[1].len().checked_div(depth).unwrap_or(updates);
    let per_row = updates.checked_div(rows).unwrap_or(0);
    let mut places: Vec<Vec<usize>> = vec![Vec::new(); x[0].len()];
    let mut sure = true;
    for n in 0..updates {
        let row = n / per_row.max(1);
        let index: Vec<Approx> = (0..depth).map(|k| x[1][row * depth + k].approx(index_type)).collect();
        sure &= index.iter().all(|a| a.err == 0.0);
        let index: Vec<i128> = index.iter().map(|a| a.value.to_i128()).collect();
        if let Some(place) = target(n, &index) {
            places[place].push(n);
        }
    }
    let out = places.iter().enumerate().map(|(i, from)| {
        let v = if from.is_empty() {
            x[0][i].clone()
        } else {
            let mut c = Combination::new(combiner, dtype, None);
            c.push(x[0][i].clone(), None);
            for &n in from {
                c.push(x[2][n].clone(), None);
            }
            c.value(0)
        };
        if sure {
            v
        } else {
            E::of_approx(dtype, Approx { value: v.approx(dtype).value, err: f64::INFINITY })
        }
    });
    vec![out.collect()]
}
