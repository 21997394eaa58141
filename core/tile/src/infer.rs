//! Result types from operand types: the type rule of every instruction without regions.

use tongtu_tensor::scalar::Unary;
use tongtu_tensor::{Combiner, DType};

use crate::limits;
use crate::op::{Op, TileMap};
use crate::types::Ty;

fn tile(tys: &[&Ty], i: usize) -> Result<(DType, Vec<usize>), String> {
    match tys.get(i) {
        Some(Ty::Tile { dtype, shape }) => Ok((*dtype, shape.clone())),
        Some(other) => Err(format!("operand {i} is {other}, not a tile")),
        None => Err(format!("operand {i} is missing")),
    }
}

fn count(tys: &[&Ty], n: usize) -> Result<(), String> {
    if tys.len() == n { Ok(()) } else { Err(format!("takes {n} operands, has {}", tys.len())) }
}

fn equal(tys: &[&Ty], a: usize, b: usize) -> Result<(), String> {
    if tys[a] == tys[b] { Ok(()) } else { Err(format!("operands {a} and {b} are {} and {}", tys[a], tys[b])) }
}

fn scalar_i64(tys: &[&Ty], i: usize) -> Result<(), String> {
    match tile(tys, i)? {
        (DType::I64, s) if s.is_empty() => Ok(()),
        (d, s) => Err(format!("operand {i} is {}, an i64 scalar is wanted", Ty::tile(d, &s))),
    }
}

fn shape_ok(shape: &[usize]) -> Result<(), String> {
    let n = shape.iter().try_fold(1usize, |a, &d| if d == 0 { None } else { a.checked_mul(d) });
    match n {
        Some(n) if n <= limits::TILE && shape.len() <= limits::RANK => Ok(()),
        _ => Err(format!("shape {shape:?} is empty or has more than 2^24 elements or {} dims", limits::RANK)),
    }
}

fn buffer(tys: &[&Ty], i: usize) -> Result<DType, String> {
    match tys.get(i) {
        Some(Ty::Buffer { dtype }) => Ok(*dtype),
        Some(other) => Err(format!("operand {i} is {other}, not a buffer")),
        None => Err(format!("operand {i} is missing")),
    }
}

fn mask(tys: &[&Ty], i: usize, shape: &[usize]) -> Result<(), String> {
    let (d, s) = tile(tys, i)?;
    if d == DType::Bool && s == shape {
        Ok(())
    } else {
        Err(format!("the mask is {}, {} is wanted", Ty::tile(d, &s), Ty::tile(DType::Bool, shape)))
    }
}

fn map_ok(map: &TileMap, rank: usize, inside: &[bool]) -> Result<Vec<usize>, String> {
    if inside.len() != rank {
        return Err(format!("'inside' has {} entries for {rank} view dims", inside.len()));
    }
    for f in map.0.iter().flatten() {
        if f.size == 0 || f.dim.is_some_and(|d| d >= rank) || f.step.unsigned_abs() > 1 << 32 {
            return Err(format!("factor {f:?} on a view of rank {rank}"));
        }
    }
    if map.0.iter().any(|factors| factors.len() > limits::RANK) {
        return Err(format!("a tile dim of more than {} factors", limits::RANK));
    }
    let shape = map.shape();
    shape_ok(&shape)?;
    Ok(shape)
}

fn index_tile(tys: &[&Ty], i: usize) -> Result<Vec<usize>, String> {
    match tile(tys, i)? {
        (DType::I32 | DType::I64, s) => Ok(s),
        (d, _) => Err(format!("indices are {d}; i32 or i64 is wanted")),
    }
}

/// Chips have no atomic access to part of a byte.
fn whole_bytes(d: DType) -> Result<(), String> {
    if d.bits() < 8 { Err(format!("{d} takes less than a byte, and has no atomic access")) } else { Ok(()) }
}

fn unary_result(op: Unary, d: DType) -> Result<DType, String> {
    if op.accepts(d) { Ok(op.result(d)) } else { Err(format!("'{op}' does not take {d}")) }
}

fn combined(tys: &[&Ty], combiner: Combiner) -> Result<Vec<usize>, String> {
    count(tys, combiner.arity())?;
    let (d, shape) = tile(tys, 0)?;
    match combiner.binary() {
        Some(b) if !b.accepts(d) => return Err(format!("'{b}' does not take {d}")),
        None if combiner == Combiner::Replace => return Err("'replace' does not reduce".into()),
        None => {
            let (i, s) = tile(tys, 1)?;
            if !i.is_int() || s != shape {
                return Err("the index operand must be an integer tile of equal shape".into());
            }
        }
        _ => {}
    }
    Ok(shape)
}

/// The result types of an instruction that has no regions, from its operands' types. Errors say the rule that is broken.
pub fn infer(op: &Op, tys: &[&Ty]) -> Result<Vec<Ty>, String> {
    let one = |d: DType, s: &[usize]| Ok(vec![Ty::tile(d, s)]);
    match op {
        Op::Unary(u) => {
            count(tys, 1)?;
            let (d, s) = tile(tys, 0)?;
            one(unary_result(*u, d)?, &s)
        }
        Op::Binary(b) => {
            count(tys, 2)?;
            equal(tys, 0, 1)?;
            let (d, s) = tile(tys, 0)?;
            if b.accepts(d) { one(d, &s) } else { Err(format!("'{b}' does not take {d}")) }
        }
        Op::Compare(_) => {
            count(tys, 2)?;
            equal(tys, 0, 1)?;
            one(DType::Bool, &tile(tys, 0)?.1)
        }
        Op::Full { dtype, shape, .. } => {
            shape_ok(shape)?;
            one(*dtype, shape)
        }
        Op::Iota { dtype, shape, dim } => {
            shape_ok(shape)?;
            if !dtype.is_int() || *dim >= shape.len() {
                return Err(format!("iota of {dtype} along dim {dim} of {shape:?}"));
            }
            one(*dtype, shape)
        }
        Op::ProgramId { axis } | Op::NumPrograms { axis } => {
            if *axis > 2 {
                return Err(format!("grid axis {axis}"));
            }
            one(DType::I64, &[])
        }
        Op::BufferLen {} => {
            count(tys, 1)?;
            buffer(tys, 0)?;
            one(DType::I64, &[])
        }
        Op::Select {} => {
            count(tys, 3)?;
            equal(tys, 1, 2)?;
            let ((p, ps), (d, s)) = (tile(tys, 0)?, tile(tys, 1)?);
            if p != DType::Bool || !(ps.is_empty() || ps == s) {
                return Err(format!("condition {} for choices {}", tys[0], tys[1]));
            }
            one(d, &s)
        }
        Op::Fma {} => {
            count(tys, 3)?;
            equal(tys, 0, 1)?;
            equal(tys, 0, 2)?;
            let (d, s) = tile(tys, 0)?;
            if d.is_float() { one(d, &s) } else { Err(format!("'fma' does not take {d}")) }
        }
        Op::Cast { to, .. } => {
            count(tys, 1)?;
            one(*to, &tile(tys, 0)?.1)
        }
        Op::Bitcast { to } => {
            count(tys, 1)?;
            let (d, s) = tile(tys, 0)?;
            if d.bits() == to.bits() {
                one(*to, &s)
            } else {
                Err(format!("{d} and {to} have different widths"))
            }
        }
        Op::Broadcast { shape } => {
            count(tys, 1)?;
            shape_ok(shape)?;
            let (d, s) = tile(tys, 0)?;
            let fits = s.len() <= shape.len()
                && s.iter().rev().zip(shape.iter().rev()).all(|(a, b)| *a == 1 || a == b);
            if fits { one(d, shape) } else { Err(format!("{s:?} does not broadcast to {shape:?}")) }
        }
        Op::Reshape { shape } => {
            count(tys, 1)?;
            shape_ok(shape)?;
            let (d, s) = tile(tys, 0)?;
            if s.iter().product::<usize>() != shape.iter().product::<usize>() {
                return Err(format!("{s:?} and {shape:?} hold different numbers of elements"));
            }
            one(d, shape)
        }
        Op::Permute { perm } => {
            count(tys, 1)?;
            let (d, s) = tile(tys, 0)?;
            let mut sorted = perm.clone();
            sorted.sort_unstable();
            if sorted.len() != s.len() || sorted.iter().enumerate().any(|(i, &p)| i != p) {
                return Err(format!("{perm:?} is no permutation of {} dims", s.len()));
            }
            one(d, &perm.iter().map(|&p| s[p]).collect::<Vec<_>>())
        }
        Op::Extract { offset, shape } => {
            count(tys, 1)?;
            shape_ok(shape)?;
            let (d, s) = tile(tys, 0)?;
            let fits = offset.len() == s.len()
                && shape.len() == s.len()
                && (0..s.len()).all(|i| offset[i].checked_add(shape[i]).is_some_and(|e| e <= s[i]));
            if fits { one(d, shape) } else { Err(format!("{shape:?} at {offset:?} of {s:?}")) }
        }
        Op::Concat { dim } => {
            let (d, mut s) = tile(tys, 0)?;
            if *dim >= s.len() {
                return Err(format!("dim {dim} of rank {}", s.len()));
            }
            for i in 1..tys.len() {
                let (e, t) = tile(tys, i)?;
                if e != d || t.len() != s.len() || (0..s.len()).any(|k| k != *dim && t[k] != s[k]) {
                    return Err(format!("{} and {} can't be joined along dim {dim}", tys[0], tys[i]));
                }
                s[*dim] += t[*dim];
            }
            shape_ok(&s)?;
            one(d, &s)
        }
        Op::TakeAlong { dim } => {
            count(tys, 2)?;
            let (d, s) = tile(tys, 0)?;
            let i = index_tile(tys, 1)?;
            if i.len() != s.len() || *dim >= s.len() || (0..s.len()).any(|k| k != *dim && i[k] != s[k]) {
                return Err(format!("indices {i:?} along dim {dim} of {s:?}"));
            }
            one(d, &i)
        }
        Op::Reduce { combiner, dims } => {
            let shape = combined(tys, *combiner)?;
            if dims.windows(2).any(|w| w[0] >= w[1]) || dims.iter().any(|&d| d >= shape.len()) {
                return Err(format!("dims {dims:?} of rank {}", shape.len()));
            }
            let keep: Vec<usize> = (0..shape.len()).filter(|i| !dims.contains(i)).map(|i| shape[i]).collect();
            Ok(tys.iter().map(|t| Ty::tile(t.dtype(), &keep)).collect())
        }
        Op::Scan { combiner, dim, .. } => {
            let shape = combined(tys, *combiner)?;
            if *dim >= shape.len() {
                return Err(format!("dim {dim} of rank {}", shape.len()));
            }
            Ok(tys.iter().map(|&t| t.clone()).collect())
        }
        Op::Mma {} => {
            count(tys, 3)?;
            let ((t, c), (ad, a), (bd, b)) = (tile(tys, 0)?, tile(tys, 1)?, tile(tys, 2)?);
            let ([m, n], [am, ak], [bk, bn]) = (&c[..], &a[..], &b[..]) else {
                return Err("operands of rank 2 are wanted".into());
            };
            if m != am || n != bn || ak != bk {
                return Err(format!("{c:?} + {a:?} × {b:?}"));
            }
            let float = t.is_float() && ad.is_float() && bd.is_float();
            let int = t.is_int() && ad.is_int() && bd.is_int();
            if float || int { Ok(vec![Ty::tile(t, &c)]) } else { Err(format!("{t} + {ad} × {bd}")) }
        }
        Op::MmaScaled {} => {
            count(tys, 5)?;
            let t = tile(tys, 0)?.0;
            if !matches!(t, DType::F32 | DType::F64) || (1..5).any(|i| !tys[i].dtype().is_float()) {
                return Err(format!("scaled products of floats add up in f32 or f64, not {t}"));
            }
            let ((_, a), (_, s)) = (tile(tys, 1)?, tile(tys, 2)?);
            let ((_, b), (_, u)) = (tile(tys, 3)?, tile(tys, 4)?);
            let divides = |n: usize, g: usize| n.is_multiple_of(g);
            match (&a[..], &s[..], &b[..], &u[..]) {
                ([m, k], [sm, g], [_, n], [h, un])
                    if m == sm && n == un && divides(*k, *g) && divides(*k, *h) => {}
                _ => return Err(format!("scales {s:?} and {u:?} for {a:?} × {b:?}")),
            }
            infer(&Op::Mma {}, &[tys[0], tys[1], tys[3]])
        }
        Op::View { rank } => {
            if *rank > limits::RANK {
                return Err(format!("a view of rank {rank}"));
            }
            count(tys, 2 + 2 * rank)?;
            let d = buffer(tys, 0)?;
            for i in 1..tys.len() {
                scalar_i64(tys, i)?;
            }
            Ok(vec![Ty::View { dtype: d, rank: *rank }])
        }
        Op::Load { map, inside, masked, .. } => {
            let Some(Ty::View { dtype, rank }) = tys.first() else {
                return Err("operand 0 is not a view".into());
            };
            let shape = map_ok(map, *rank, inside)?;
            count(tys, 1 + rank + usize::from(*masked))?;
            for i in 1..=*rank {
                scalar_i64(tys, i)?;
            }
            if *masked {
                mask(tys, 1 + rank, &shape)?;
            }
            one(*dtype, &shape)
        }
        Op::Prefetch {} => {
            let Some(Ty::View { rank, .. }) = tys.first() else {
                return Err("operand 0 is not a view".into());
            };
            count(tys, 1 + rank)?;
            for i in 1..=*rank {
                scalar_i64(tys, i)?;
            }
            Ok(vec![])
        }
        Op::Store { map, inside, masked } => {
            let Some(Ty::View { dtype, rank }) = tys.first() else {
                return Err("operand 0 is not a view".into());
            };
            let shape = map_ok(map, *rank, inside)?;
            count(tys, 2 + rank + usize::from(*masked))?;
            let (d, s) = tile(tys, 1)?;
            if d != *dtype || s != shape {
                return Err(format!("stores {} where the map takes {}", tys[1], Ty::tile(*dtype, &shape)));
            }
            for i in 2..2 + rank {
                scalar_i64(tys, i)?;
            }
            if *masked {
                mask(tys, 2 + rank, &shape)?;
            }
            Ok(vec![])
        }
        Op::Gather { masked, .. } => {
            count(tys, 2 + usize::from(*masked))?;
            let d = buffer(tys, 0)?;
            let s = index_tile(tys, 1)?;
            if *masked {
                mask(tys, 2, &s)?;
            }
            one(d, &s)
        }
        Op::Scatter { masked } | Op::AtomicReduce { masked, .. } | Op::AtomicRmw { masked, .. } => {
            count(tys, 3 + usize::from(*masked))?;
            let d = buffer(tys, 0)?;
            let s = index_tile(tys, 1)?;
            if *tys[2] != Ty::tile(d, &s) {
                return Err(format!("values are {}, {} is wanted", tys[2], Ty::tile(d, &s)));
            }
            if *masked {
                mask(tys, 3, &s)?;
            }
            if !matches!(op, Op::Scatter { .. }) {
                whole_bytes(d)?;
            }
            match op {
                Op::AtomicReduce { combiner: Combiner::Replace | Combiner::Mul, .. }
                | Op::AtomicRmw { combiner: Combiner::Mul, .. } => Err("no such atomic combiner".into()),
                Op::AtomicReduce { combiner, .. } | Op::AtomicRmw { combiner, .. }
                    if combiner.arity() != 1 =>
                {
                    Err("arg-combiners are not atomic".into())
                }
                Op::AtomicReduce { combiner, .. } | Op::AtomicRmw { combiner, .. }
                    if combiner.binary().is_some_and(|b| !b.accepts(d)) =>
                {
                    Err(format!("'{}' does not take {d}", combiner.name()))
                }
                Op::AtomicRmw { .. } => one(d, &s),
                _ => Ok(vec![]),
            }
        }
        Op::AtomicCas { .. } => {
            count(tys, 4)?;
            let d = buffer(tys, 0)?;
            whole_bytes(d)?;
            let s = index_tile(tys, 1)?;
            equal(tys, 2, 3)?;
            if *tys[2] != Ty::tile(d, &s) {
                return Err(format!("values are {}, {} is wanted", tys[2], Ty::tile(d, &s)));
            }
            one(d, &s)
        }
        Op::Alloc { dtype, len } => {
            if *len == 0 || *len > limits::SCRATCH {
                return Err(format!("scratch of {len} elements"));
            }
            Ok(vec![Ty::Buffer { dtype: *dtype }])
        }
        Op::For {} | Op::While {} | Op::If {} => Err("has regions".into()),
    }
}
