//! Random kernels.

use tongtu_tensor::scalar::{Binary, Compare, Unary};
use tongtu_tensor::{CastMode, Combiner, DType, Num, Overflow, Rounding};
use tongtu_tile::op::{Factor, Ordering, Scope};
use tongtu_tile::{Access, Flags, Kernel, KernelBuilder, Op, TileMap};

/// A kernel grown by random choices, with values of many types, regions and accesses.
pub fn grow(choices: &[(u8, u8, u8)]) -> Kernel {
    let mut b = KernelBuilder::new("grown kernel");
    let x = b.buffer("x", DType::F32, Access::ReadWrite);
    let t = b.buffer("t", DType::I32, Access::ReadWrite);
    let n = b.scalar("n \"quoted\"\n", DType::I64);
    let s = b.alloc(DType::F32, 64).unwrap();
    let (zero, one) = (b.int(0), b.int(1));
    let pid = b.program_id(0).unwrap();
    let v = b.view(x, pid, &[n, n], &[n, one]).unwrap();
    let w = b.view(s, zero, &[n], &[one]).unwrap();
    let mut f =
        vec![b.splat(DType::F32, &[4, 8], 1.5).unwrap(), b.splat(DType::F32, &[4, 8], f64::NAN).unwrap()];
    let mut i = vec![b.iota(DType::I32, &[4, 8], 1).unwrap()];
    for &(kind, p, q) in choices {
        let (a, c) = (f[p as usize % f.len()], f[q as usize % f.len()]);
        let (j, k) = (i[p as usize % i.len()], i[q as usize % i.len()]);
        b.flags = Flags { contract: p & 1 == 1, reassoc: p & 2 == 2, approx: q & 1 == 1 };
        match kind % 20 {
            0 => f.push(b.unary(Unary::ALL[3 + p as usize % 5], a).unwrap()),
            1 => f.push(b.binary(Binary::ALL[p as usize % 4], a, c).unwrap()),
            2 => {
                let m = b.compare(Compare::ALL[p as usize % 6], a, c).unwrap();
                f.push(b.select(m, a, c).unwrap());
            }
            3 => f.push(b.fma(a, c, a).unwrap()),
            4 => {
                let rounding = [Rounding::NearestEven, Rounding::TowardZero, Rounding::Down, Rounding::Up]
                    [p as usize % 4];
                let overflow = [Overflow::Format, Overflow::Saturate][q as usize % 2];
                i.push(b.cast(a, DType::I32, CastMode { overflow, rounding }).unwrap());
            }
            5 => i.push(b.bitcast(a, DType::I32).unwrap()),
            6 => {
                let r = b.reduce(Combiner::Max, a, &[p as usize % 2]).unwrap();
                let shape = if p % 2 == 0 { vec![1, 8] } else { vec![4, 1] };
                let r = b.reshape(r, &shape).unwrap();
                f.push(b.broadcast(r, &[4, 8]).unwrap());
            }
            7 => {
                let r = b
                    .add_inst(
                        Op::Scan { combiner: Combiner::Add, dim: p as usize % 2, reverse: q % 2 == 0 },
                        &[a],
                    )
                    .unwrap();
                f.push(r[0]);
            }
            8 => {
                let r =
                    b.add_inst(Op::Reduce { combiner: Combiner::ArgMax, dims: vec![0] }, &[a, j]).unwrap();
                let r = b.broadcast(r[1], &[4, 8]).unwrap();
                i.push(r);
            }
            9 => {
                let y = b.permute(c, &[1, 0]).unwrap();
                let acc = b.splat(DType::F32, &[4, 4], 0.0).unwrap();
                let r = b.mma(acc, a, y).unwrap();
                let r = b.concat(&[r, r], 1).unwrap();
                f.push(r);
            }
            10 => {
                let r = b.extract(a, &[1, 2], &[2, 4]).unwrap();
                let r = b.concat(&[r, r], 0).unwrap();
                f.push(b.concat(&[r, r], 1).unwrap());
            }
            11 => {
                let step = i64::from(p) - 100;
                let map = TileMap(vec![
                    vec![Factor { size: 2, dim: Some(0), step }, Factor { size: 2, dim: None, step: 1 }],
                    vec![Factor { size: 8, dim: Some(1), step: 1 }],
                ]);
                let mask = b.compare(Compare::Lt, j, k).unwrap();
                let op = Op::Load { map, inside: vec![true, false], pad: Num::Float(-0.0), masked: true };
                f.push(b.add_inst(op, &[v, pid, n, mask]).unwrap()[0]);
            }
            12 => {
                let flat = b.reshape(a, &[32]).unwrap();
                b.prefetch(w, &[zero]).unwrap();
                b.store(w, flat, &[zero], TileMap::along(&[32], &[0]), &[false]).unwrap();
            }
            13 => f.push(b.gather(x, j, None, Num::Float(f64::NEG_INFINITY)).unwrap()),
            14 => {
                let mask = b.compare(Compare::Ge, j, k).unwrap();
                b.scatter(t, j, k, Some(mask)).unwrap();
            }
            15 => {
                let op = Op::AtomicReduce { combiner: Combiner::Add, scope: Scope::Device, masked: false };
                b.add_inst(op, &[x, j, a]).unwrap();
                let op = Op::AtomicRmw {
                    combiner: Combiner::Replace,
                    ordering: Ordering::AcqRel,
                    scope: Scope::System,
                    masked: false,
                };
                i.push(b.add_inst(op, &[t, j, k]).unwrap()[0]);
                let op = Op::AtomicCas { ordering: Ordering::Relaxed, scope: Scope::Device };
                i.push(b.add_inst(op, &[t, j, k, j]).unwrap()[0]);
            }
            16 => {
                let r = b
                    .for_loop(zero, n, one, &[a, j], |b, at, carried| {
                        let at = b.cast(at, DType::I32, CastMode::default())?;
                        let at = b.broadcast(at, &[4, 8])?;
                        let sum = b.add(carried[1], at)?;
                        let f = b.mul(carried[0], c)?;
                        Ok(vec![f, sum])
                    })
                    .unwrap();
                f.push(r[0]);
                i.push(r[1]);
            }
            17 => {
                let go = b.compare(Compare::Lt, pid, n).unwrap();
                let r = b.while_loop(go, &[a], |b, carried| {
                    let next = b.compare(Compare::Lt, n, pid)?;
                    Ok((next, vec![b.add(carried[0], c)?]))
                });
                f.push(r.unwrap()[0]);
            }
            18 => {
                let go = b.compare(Compare::Lt, pid, n).unwrap();
                let r = b.if_else(go, |b| Ok(vec![b.add(a, c)?]), |_| Ok(vec![c])).unwrap();
                f.push(r[0]);
            }
            _ => f.push(b.add_inst(Op::TakeAlong { dim: 1 }, &[a, j]).unwrap()[0]),
        }
    }
    b.finish()
}
