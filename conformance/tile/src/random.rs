//! Programs grown from random choices. Every sequence of choices is a sound program, so that a sequence that shows a fault can be
//! made shorter until nothing can be left out.
//!
//! Only instructions are used whose results have one bit pattern, NaN aside, so any back end must agree with the interpreter.

use tongtu_tensor::scalar::{Binary, Compare, NumericClass, Unary};
use tongtu_tensor::{CastMode, Combiner, DType, Num, Overflow, Rounding};
use tongtu_tile::op::Factor;
use tongtu_tile::{Op, TileError, TileMap, Val};

use crate::Program;
use crate::draft::Draft;
use crate::values::{cycled, small};

/// What one step of growing goes by.
pub type Choice = (u8, u8, u8, u8);

const TYPES: [DType; 12] = [
    DType::F32,
    DType::I32,
    DType::F16,
    DType::I64,
    DType::Bool,
    DType::BF16,
    DType::U8,
    DType::I8,
    DType::F64,
    DType::U32,
    DType::I16,
    DType::I4,
];
const SHAPES: [&[usize]; 8] = [&[8], &[5], &[3, 4], &[1, 7], &[16], &[2, 3, 5], &[19], &[]];
/// Most elements of a tile.
const MOST: usize = 256;
/// Instances.
const GRID: i64 = 2;

struct Grower {
    p: Draft,
    /// Values so far; the newest last.
    tiles: Vec<Val>,
    pid: Val,
}

/// The program that a sequence of choices gives.
///
/// # Panics
/// A step that breaks a rule of the instruction set, which is a fault here.
pub fn program(name: &str, choices: &[Choice]) -> Program {
    grow(name, choices).unwrap_or_else(|e| panic!("{e}"))
}

fn grow(name: &str, choices: &[Choice]) -> Result<Program, TileError> {
    let mut p = Draft::new(name);
    let pid = p.b.program_id(0)?;
    let mut g = Grower { p, tiles: Vec::new(), pid };
    g.input(0, 0, 0)?;
    for &(kind, a, b, c) in choices {
        let before = g.tiles.len();
        let made = g.step(kind, a, b, c)?;
        g.tiles.extend(made);
        if g.tiles[before..].iter().any(|&t| g.shape(t).iter().product::<usize>() > MOST) {
            g.tiles.truncate(before);
        }
    }
    let last: Vec<Val> = g.tiles.iter().rev().take(6).copied().collect();
    for (i, t) in last.into_iter().enumerate() {
        g.output(i, t)?;
    }
    Ok(g.p.finish([GRID, 1, 1]))
}

impl Grower {
    fn shape(&self, v: Val) -> Vec<usize> {
        self.p.b.shape(v)
    }

    fn dtype(&self, v: Val) -> DType {
        self.p.b.dtype(v)
    }

    fn pick(&self, a: u8) -> Val {
        self.tiles[self.tiles.len() - 1 - a as usize % self.tiles.len().min(5)]
    }

    /// A value of the same type as another, that one itself if there is none.
    fn like(&self, v: Val, a: u8) -> Val {
        let alike: Vec<Val> =
            self.tiles.iter().copied().filter(|&w| self.p.b.ty(w) == self.p.b.ty(v)).collect();
        alike[a as usize % alike.len()]
    }

    /// A tile of a new input, each instance its own.
    fn input(&mut self, a: u8, b: u8, c: u8) -> Result<(), TileError> {
        let d = TYPES[a as usize % TYPES.len()];
        let shape = SHAPES[b as usize % SHAPES.len()];
        let n: usize = shape.iter().product();
        let codes =
            if c.is_multiple_of(3) { small(d, 2 * n + 3, c.into()) } else { cycled(d, 2 * n + 3, c.into()) };
        let x = self.p.input(d, codes);
        let (zero, one, end) =
            (self.p.b.int(0), self.p.b.int(1), self.p.b.int(2 * n as i64 + i64::from(c % 4)));
        let v = self.p.b.view(x, zero, &[end], &[one])?;
        let at = self.p.b.mul_int(self.pid, n as i64)?;
        let at = self.p.b.add_int(at, i64::from(c % 7) - 2)?;
        let mut step = n as i64;
        let factors = shape.iter().map(|&size| {
            step /= size as i64;
            vec![Factor { size, dim: Some(0), step }]
        });
        let map = TileMap(factors.collect());
        let t = self.p.b.load(v, &[at], map, &[false], Num::Float(f64::from(c % 5) - 1.0))?;
        self.tiles.push(t);
        Ok(())
    }

    fn output(&mut self, i: usize, t: Val) -> Result<(), TileError> {
        let (d, shape) = (self.dtype(t), self.shape(t));
        let n: usize = shape.iter().product();
        // Instances do not share bytes.
        let stride = n.next_multiple_of(8);
        let out = self.p.output(&format!("value-{i}"), d, stride * GRID as usize);
        let flat = self.p.b.reshape(t, &[n])?;
        let (zero, one) = (self.p.b.int(0), self.p.b.int(1));
        let (rows, row, size) = (self.p.b.int(GRID), self.p.b.int(stride as i64), self.p.b.int(n as i64));
        let v = self.p.b.view(out, zero, &[rows, size], &[row, one])?;
        let map = TileMap(vec![vec![Factor { size: n, dim: Some(1), step: 1 }]]);
        self.p.b.store(v, flat, &[self.pid, zero], map, &[true, true])
    }

    fn step(&mut self, kind: u8, a: u8, b: u8, c: u8) -> Result<Vec<Val>, TileError> {
        let x = self.pick(a);
        let (d, shape) = (self.dtype(x), self.shape(x));
        let (rank, n) = (shape.len(), shape.iter().product::<usize>());
        let dim = if rank > 0 { b as usize % rank } else { 0 };
        let none = Ok(vec![]);
        Ok(match kind % 20 {
            0 => {
                self.input(a, b, c)?;
                vec![]
            }
            1 => {
                let exact = |u: &&Unary| u.accepts(d) && !matches!(u.class(), NumericClass::Ulp(_));
                let all: Vec<&Unary> = Unary::ALL.iter().filter(exact).collect();
                vec![self.p.b.unary(*all[b as usize % all.len()], x)?]
            }
            2 | 3 => {
                let y = self.like(x, c);
                let left_out = [Binary::Rem, Binary::Mod, Binary::CopySign, Binary::Pow];
                let exact = |o: &&Binary| {
                    o.accepts(d)
                        && !matches!(o.class(), NumericClass::Ulp(_))
                        && !(d.is_float() && left_out.contains(o))
                };
                let all: Vec<&Binary> =
                    Binary::ALL.iter().filter(exact).filter(|o| **o != Binary::Pow).collect();
                vec![self.p.b.add_inst(Op::Binary(*all[b as usize % all.len()]), &[x, y])?[0]]
            }
            4 => {
                let y = self.like(x, c);
                let m = self.p.b.compare(Compare::ALL[b as usize % 6], x, y)?;
                vec![m, self.p.b.select(m, y, x)?]
            }
            5 if d.is_float() => {
                let (y, z) = (self.like(x, b), self.like(x, c));
                vec![self.p.b.fma(x, y, z)?]
            }
            6 => {
                let overflow = if c.is_multiple_of(2) { Overflow::Format } else { Overflow::Saturate };
                vec![self.p.b.cast(
                    x,
                    TYPES[b as usize % TYPES.len()],
                    CastMode { overflow, rounding: Rounding::NearestEven },
                )?]
            }
            7 => {
                let mut to = shape.clone();
                to.insert(0, 2 + c as usize % 2);
                vec![self.p.b.broadcast(x, &to)?]
            }
            8 => {
                let by = [2, 3, 4, 5][b as usize % 4];
                let to = if n.is_multiple_of(by) && c.is_multiple_of(2) { vec![by, n / by] } else { vec![n] };
                vec![self.p.b.reshape(x, &to)?]
            }
            9 => {
                let perm: Vec<usize> = (0..rank).map(|i| (i + 1 + c as usize) % rank).collect();
                vec![self.p.b.permute(x, &perm)?]
            }
            10 if rank > 0 => {
                let (mut offset, mut to) = (vec![0; rank], shape.clone());
                offset[dim] = c as usize % shape[dim];
                to[dim] -= offset[dim];
                vec![self.p.b.extract(x, &offset, &to)?]
            }
            11 if rank > 0 => vec![self.p.b.concat(&[x, self.like(x, c)], dim)?],
            12 | 13 if rank > 0 => {
                let combiners = Combiner::ALL.iter().filter(|o| {
                    o.binary().is_some_and(|f| {
                        f.accepts(d) && !(d.is_float() && matches!(o, Combiner::Add | Combiner::Mul))
                    })
                });
                let all: Vec<&Combiner> = combiners.collect();
                let combiner = *all[c as usize % all.len()];
                let reduces = kind % 20 == 12;
                let op = if reduces {
                    Op::Reduce { combiner, dims: vec![dim] }
                } else {
                    Op::Scan { combiner, dim, reverse: b > 127 }
                };
                vec![self.p.b.add_inst(op, &[x])?[0]]
            }
            14 => {
                // Through scratch, and back in another order.
                let s = self.p.b.alloc(d, n)?;
                let (zero, one, two) = (self.p.b.int(0), self.p.b.int(1), self.p.b.int(2));
                let (size, half) = (self.p.b.int(n as i64), self.p.b.int((n / 2) as i64));
                let flat = self.p.b.reshape(x, &[n])?;
                let v = self.p.b.view(s, zero, &[size], &[one])?;
                self.p.b.store(v, flat, &[zero], TileMap::along(&[n], &[0]), &[c.is_multiple_of(2)])?;
                let w = self.p.b.view(s, zero, &[half, two], &[two, one])?;
                let map = TileMap::along(&[2, (n / 2).max(1)], &[1, 0]);
                vec![self.p.b.load(w, &[zero, zero], map, &[false, false], Num::Int(1))?]
            }
            15 => {
                let i = self.p.b.cast(
                    x,
                    DType::I32,
                    CastMode { overflow: Overflow::Saturate, ..CastMode::default() },
                )?;
                let kept = self.p.b.splat(DType::I32, &shape, 15.0)?;
                let i = self.p.b.binary(Binary::And, i, kept)?;
                let t = TYPES[b as usize % TYPES.len()];
                let table = self.p.input(t, cycled(t, 12, c.into()));
                vec![self.p.b.gather(table, i, None, Num::Float(1.0))?]
            }
            16 => {
                let y = self.like(x, c);
                let hi = self.p.scalar(i64::from(b % 4));
                let (zero, one) = (self.p.b.int(0), self.p.b.int(1));
                self.p.b.for_loop(zero, hi, one, &[x, y], |b, i, v| {
                    let more = b.compare(Compare::Gt, i, zero)?;
                    let most = b.binary(Binary::Max, v[0], v[1])?;
                    let r = b.if_else(more, |_| Ok(vec![most]), |_| Ok(vec![v[0]]))?;
                    Ok(vec![v[1], r[0]])
                })?
            }
            17 => {
                let y = self.like(x, c);
                let at = self.p.b.int(i64::from(b % 2));
                let go = self.p.b.compare(Compare::Eq, self.pid, at)?;
                self.p.b.if_else(
                    go,
                    |b| Ok(vec![b.binary(Binary::Min, x, y)?]),
                    |b| Ok(vec![b.add_inst(Op::Binary(Binary::MaxNum), &[x, y])?[0]]),
                )?
            }
            18 if rank > 0 => {
                let i = self.p.b.iota(DType::I64, &shape, dim)?;
                let by = self.p.b.splat(DType::I64, &shape, f64::from(c % 5) - 2.0)?;
                let i = self.p.b.add(i, by)?;
                vec![self.p.b.add_inst(Op::TakeAlong { dim }, &[x, i])?[0]]
            }
            19 if rank == 2 && d.is_int() && d.bits() <= 8 => {
                let y = self.p.b.permute(x, &[1, 0])?;
                let acc = self.p.b.splat(DType::I32, &[shape[0], shape[0]], f64::from(c))?;
                vec![self.p.b.mma(acc, x, y)?]
            }
            _ => return none,
        })
    }
}
