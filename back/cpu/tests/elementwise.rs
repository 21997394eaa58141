//! Every elementwise instruction on every type, machine code against the interpreter.

#![cfg(any(feature = "llvm", feature = "llvm-static"))]

mod common;

use common::{Near, chips, differences, samples};
use tongtu_cpu::CpuCompiler;
use tongtu_plan::backend::{Compiler, Support};
use tongtu_tensor::scalar::{Binary, Compare, Unary};
use tongtu_tensor::{CastMode, DType, Rounding};
use tongtu_tile::{Access, Kernel, KernelBuilder, Op, TileError, TileMap, Ty, Val};

/// A kernel that applies `f` to tiles of each type in turn, `n` elements an instance.
fn apply(
    name: &str,
    from: &[DType],
    n: usize,
    f: impl FnOnce(&mut KernelBuilder, &[Val]) -> Result<Val, TileError>,
) -> Result<Kernel, TileError> {
    let mut b = KernelBuilder::new(name);
    let inputs: Vec<Val> =
        from.iter().enumerate().map(|(i, d)| b.buffer(&format!("x{i}"), *d, Access::Read)).collect();
    let size = b.int(n as i64);
    let (zero, one) = (b.int(0), b.int(1));
    let pid = b.program_id(0)?;
    let at = b.mul(pid, size)?;
    let mut tiles = Vec::new();
    for (x, d) in inputs.iter().zip(from) {
        let len = b.buffer_len(*x)?;
        let view = b.view(*x, zero, &[len], &[one])?;
        let pad = d.decode(0);
        tiles.push(b.load(view, &[at], TileMap::along(&[n], &[0]), &[true], pad)?);
    }
    let y = f(&mut b, &tiles)?;
    let out = b.dtype(y);
    let result = b.buffer("y", out, Access::Write);
    let len = b.buffer_len(result)?;
    let view = b.view(result, zero, &[len], &[one])?;
    b.store(view, y, &[at], TileMap::along(&[n], &[0]), &[true])?;
    Ok(b.finish())
}

fn supported(op: &Op, from: &[DType], to: DType, n: usize) -> bool {
    let types: Vec<Ty> = from.iter().map(|d| Ty::tile(*d, &[n])).collect();
    let result = [Ty::tile(to, &[n])];
    chips().iter().all(|c| CpuCompiler::default().supports(op, &types, &result, c) == Support::Native)
}

fn zeros(d: DType, n: usize) -> tongtu_tile::interp::BufferData {
    tongtu_tile::interp::BufferData { dtype: d, codes: vec![0; n] }
}

/// Elements an instance takes: a full chunk and a rest.
const N: usize = 19;
/// Elements in all.
const LEN: usize = N * 32;
const GRID: [i64; 3] = [32, 1, 1];

#[test]
fn unary() {
    let mut wrong = Vec::new();
    let mut done = 0;
    for &op in Unary::ALL {
        for &d in DType::ALL {
            let Ok(k) = apply(&format!("{op}_{d}"), &[d], N, |b, x| b.unary(op, x[0])) else { continue };
            let to = if matches!(op, Unary::IsNan | Unary::IsInf) { DType::Bool } else { d };
            if !supported(&Op::Unary(op), &[d], to, N) {
                continue;
            }
            let near = if op == Unary::Rsqrt { Near::Codes(2) } else { Near::Same };
            wrong.extend(differences(&k, GRID, &[samples(d, LEN, 1), zeros(to, LEN)], &[], near));
            done += 1;
        }
    }
    assert!(done > 150, "{done}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn binary() {
    let mut wrong = Vec::new();
    let mut done = 0;
    for &op in Binary::ALL {
        for &d in DType::ALL {
            let Ok(k) = apply(&format!("{op}_{d}"), &[d, d], N, |b, x| b.binary(op, x[0], x[1])) else {
                continue;
            };
            if !supported(&Op::Binary(op), &[d, d], d, N) {
                continue;
            }
            wrong.extend(differences(
                &k,
                GRID,
                &[samples(d, LEN, 2), samples(d, LEN, 3), zeros(d, LEN)],
                &[],
                Near::Same,
            ));
            done += 1;
        }
    }
    assert!(done > 150, "{done}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn comparisons_and_choices() {
    let mut wrong = Vec::new();
    for &op in Compare::ALL {
        for &d in DType::ALL {
            if d == DType::HiF8 {
                continue;
            }
            let k = apply(&format!("{op}_{d}"), &[d, d], N, |b, x| b.compare(op, x[0], x[1])).unwrap();
            wrong.extend(differences(
                &k,
                GRID,
                &[samples(d, LEN, 4), samples(d, LEN, 5), zeros(DType::Bool, LEN)],
                &[],
                Near::Same,
            ));
        }
    }
    for &d in DType::ALL {
        let k = apply(&format!("select_{d}"), &[DType::Bool, d, d], N, |b, x| b.select(x[0], x[1], x[2]))
            .unwrap();
        let buffers = [samples(DType::Bool, LEN, 6), samples(d, LEN, 7), samples(d, LEN, 8), zeros(d, LEN)];
        wrong.extend(differences(&k, GRID, &buffers, &[], Near::Same));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn fused_multiply_add() {
    let mut wrong = Vec::new();
    for &d in DType::ALL {
        if !d.is_float() || d == DType::HiF8 {
            continue;
        }
        let k = apply(&format!("fma_{d}"), &[d, d, d], N, |b, x| {
            let r = b.add_inst(Op::Fma {}, x)?;
            Ok(r[0])
        })
        .unwrap();
        let buffers = [samples(d, LEN, 9), samples(d, LEN, 10), samples(d, LEN, 11), zeros(d, LEN)];
        wrong.extend(differences(&k, GRID, &buffers, &[], Near::Same));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn casts() {
    // One full chunk: there are many kernels here, and tails are like those of other instructions.
    const N: usize = 16;
    const LEN: usize = N * 32;
    let mut wrong = Vec::new();
    let mut done = 0;
    for &from in DType::ALL {
        for &to in DType::ALL {
            for mode in CastMode::all() {
                let CastMode { overflow, rounding } = mode;
                let op = Op::Cast { to, mode };
                if !supported(&op, &[from], to, N) {
                    continue;
                }
                // Directed rounding changes nothing but floats from wider types.
                if rounding != Rounding::NearestEven && (!to.is_float() || from.bits() <= 8) {
                    continue;
                }
                let k = apply(&format!("cast_{from}_{to}_{overflow:?}_{rounding:?}"), &[from], N, |b, x| {
                    Ok(b.add_inst(op, x)?[0])
                });
                wrong.extend(differences(
                    &k.unwrap(),
                    GRID,
                    &[samples(from, LEN, 12), zeros(to, LEN)],
                    &[],
                    Near::Same,
                ));
                done += 1;
            }
        }
    }
    assert!(done > 1000, "{done}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn bitcasts() {
    let mut wrong = Vec::new();
    for &from in DType::ALL {
        for &to in DType::ALL {
            if from.bits() != to.bits() {
                continue;
            }
            let k = apply(&format!("bitcast_{from}_{to}"), &[from], N, |b, x| {
                Ok(b.add_inst(Op::Bitcast { to }, x)?[0])
            });
            wrong.extend(differences(
                &k.unwrap(),
                GRID,
                &[samples(from, LEN, 13), zeros(to, LEN)],
                &[],
                Near::Same,
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
