//! Programs grown from random choices, and the search among them for one that a chip gets wrong. Every sequence of choices is a sound
//! program, so that a sequence that shows a fault can be made shorter until nothing can be left out.
//!
//! Values that go on have one bit pattern, NaN aside, so any back end must agree with the interpreter: sums of floats are of small
//! integers, and what a numeric class leaves open goes straight to an output, with its bound.

use tongtu_tensor::scalar::{Binary, Compare, NumericClass, Unary};
use tongtu_tensor::{CastMode, Combiner, DType, Num, Overflow, Rounding};
use tongtu_tile::op::{Factor, Ordering, Scope};
use tongtu_tile::{Op, TileError, TileMap, Val};

use crate::draft::Draft;
use crate::values::{Rng, cycled, small};
use crate::{Outcome, Program, Verdict};

/// What one step of growing goes by.
pub type Choice = (u8, u8, u8, u8);

const SHAPES: [&[usize]; 8] = [&[8], &[5], &[3, 4], &[1, 7], &[16], &[2, 3, 5], &[19], &[]];
/// Most elements of a tile.
const MOST: usize = 256;
/// Instances.
const GRID: i64 = 2;

/// The element type that a choice means; the common ones more often.
fn dtype(choice: u8) -> DType {
    let common = [DType::F32, DType::I32, DType::F16, DType::I64, DType::Bool, DType::BF16];
    let all = DType::ALL;
    let i = choice as usize % (2 * common.len() + all.len());
    if i < 2 * common.len() { common[i / 2] } else { all[i - 2 * common.len()] }
}

/// A program that a chip gets wrong, and nothing can be left out of.
#[derive(Clone, Debug)]
pub struct Fault {
    /// What it is grown from.
    pub choices: Vec<Choice>,
    /// The case, what is wrong with it, and the program.
    pub detail: String,
}

/// What a search found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Programs tried.
    pub tried: usize,
    /// Programs among them that the chip declares not to support.
    pub unsupported: usize,
    /// The first fault, made small.
    pub fault: Option<Fault>,
}

/// Programs asked about together.
const TOGETHER: usize = 256;
/// Most programs tried to make one smaller.
const SHRINKS: usize = 400;

/// Grows programs, the same for one seed, and asks for verdicts on them until one is wrong.
///
/// # Errors
/// What `run` says.
pub fn search<E>(
    programs: usize,
    seed: u64,
    mut run: impl FnMut(&[Program]) -> Result<Vec<Outcome>, E>,
) -> Result<Found, E> {
    let mut rng = Rng::new(seed);
    let mut found = Found::default();
    while found.tried < programs {
        let n = TOGETHER.min(programs - found.tried);
        let mut choice = || {
            let [.., a, b, c, d] = rng.next_u64().to_le_bytes();
            (a, b, c, d)
        };
        let grown: Vec<Vec<Choice>> = (0..n)
            .map(|_| {
                let length = 1 + choice().0 as usize % 24;
                (0..length).map(|_| choice()).collect()
            })
            .collect();
        let name = |i: usize| format!("grown/{seed}-{}", found.tried + i);
        let programs: Vec<Program> = grown.iter().enumerate().map(|(i, c)| program(&name(i), c)).collect();
        let outcomes = run(&programs)?;
        let mut at = outcomes.iter();
        let mut first = None;
        let mut unsupported = 0;
        for (p, choices) in programs.iter().zip(&grown) {
            let of: Vec<&Outcome> = at.by_ref().take(p.checks.len()).collect();
            unsupported += usize::from(of.iter().any(|o| o.verdict == Verdict::Unsupported));
            if first.is_none() && of.iter().any(|o| o.verdict == Verdict::Fail) {
                first = Some(choices);
            }
        }
        found.tried += n;
        found.unsupported += unsupported;
        if let Some(choices) = first {
            found.fault = Some(shrink(choices.clone(), &mut run)?);
            break;
        }
    }
    Ok(found)
}

/// Leaves out and simplifies choices as long as the fault stays.
fn shrink<E>(
    mut choices: Vec<Choice>,
    run: &mut impl FnMut(&[Program]) -> Result<Vec<Outcome>, E>,
) -> Result<Fault, E> {
    let mut fault = |choices: &[Choice]| -> Result<Option<String>, E> {
        let p = program("grown/smallest", choices);
        let wrong = run(std::slice::from_ref(&p))?.into_iter().find(|o| o.verdict == Verdict::Fail);
        Ok(wrong.map(|o| format!("{}: {}\n{}", o.case, o.detail, p.kernel)))
    };
    let mut detail = fault(&choices)?.unwrap_or_else(|| "it does not fail again by itself".to_string());
    let mut tries = 0;
    let mut smaller = true;
    while smaller && tries < SHRINKS {
        smaller = false;
        let mut attempts: Vec<Vec<Choice>> = Vec::new();
        let mut part = choices.len() / 2;
        while part > 0 {
            for from in (0..choices.len()).step_by(part) {
                let to = (from + part).min(choices.len());
                attempts.push([&choices[..from], &choices[to..]].concat());
            }
            part /= 2;
        }
        for i in 0..choices.len() {
            let c = choices[i];
            for simpler in [(c.0, 0, 0, 0), (c.0, 0, c.2, c.3), (c.0, c.1, 0, c.3), (c.0, c.1, c.2, 0)] {
                if simpler != c {
                    let mut all = choices.clone();
                    all[i] = simpler;
                    attempts.push(all);
                }
            }
        }
        for attempt in attempts {
            tries += 1;
            if let Some(still) = fault(&attempt)? {
                (choices, detail, smaller) = (attempt, still, true);
                break;
            }
            if tries >= SHRINKS {
                break;
            }
        }
    }
    Ok(Fault { choices, detail })
}

struct Grower {
    p: Draft,
    /// Values so far; the newest last.
    tiles: Vec<Val>,
    pid: Val,
    /// Outputs that are not values at the end.
    outputs: usize,
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
    let mut g = Grower { p, tiles: Vec::new(), pid, outputs: 0 };
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
        let d = dtype(a);
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

    /// The tile's values as small integers up to `most` of a type.
    fn digits(&mut self, x: Val, to: DType, most: u8) -> Result<Val, TileError> {
        let shape = self.shape(x);
        let saturate = CastMode { overflow: Overflow::Saturate, ..CastMode::default() };
        let i = self.p.b.cast(x, DType::I32, saturate)?;
        let most = self.p.b.splat(DType::I32, &shape, f64::from(most))?;
        let i = self.p.b.binary(Binary::And, i, most)?;
        self.p.b.cast(i, to, CastMode::default())
    }

    /// A mask of some elements.
    fn half(&mut self, shape: &[usize], seed: u8) -> Result<Val, TileError> {
        let x = self.p.input(DType::Bool, small(DType::Bool, shape.iter().product(), seed.into()));
        self.p.load(x, shape)
    }

    /// A buffer that is checked, and that all instances share.
    fn output_of(&mut self, d: DType, n: usize) -> Result<Val, TileError> {
        self.outputs += 1;
        Ok(self.p.output(&format!("table-{}", self.outputs), d, n))
    }

    fn step(&mut self, kind: u8, a: u8, b: u8, c: u8) -> Result<Vec<Val>, TileError> {
        let x = self.pick(a);
        let (d, shape) = (self.dtype(x), self.shape(x));
        let (rank, n) = (shape.len(), shape.iter().product::<usize>());
        let dim = if rank > 0 { b as usize % rank } else { 0 };
        let none = Ok(vec![]);
        Ok(match kind % 33 {
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
                let rounding = [Rounding::NearestEven, Rounding::TowardZero, Rounding::Down, Rounding::Up]
                    [c as usize / 2 % 4];
                vec![self.p.b.cast(x, dtype(b), CastMode { overflow, rounding })?]
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
                let reduces = kind % 33 == 12;
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
                let t = dtype(b);
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
            19 if rank == 2 && d.is_int() && d.bits() <= 32 => {
                let y = self.p.b.permute(x, &[1, 0])?;
                let to = if d == DType::U32 { DType::U32 } else { DType::I32 };
                let acc = self.p.b.splat(to, &[shape[0], shape[0]], f64::from(c))?;
                vec![self.p.b.mma(acc, x, y)?]
            }
            20 if rank == 2 => {
                // Of small integers, so that every sum is exact.
                let narrow = [DType::F32, DType::BF16, DType::F16, DType::F8E4M3FN, DType::F8E5M2];
                let x = self.digits(x, narrow[b as usize % narrow.len()], 3)?;
                let y = self.p.b.permute(x, &[1, 0])?;
                let acc = self.p.b.splat(DType::F32, &[shape[0], shape[0]], f64::from(c))?;
                if c.is_multiple_of(2) {
                    vec![self.p.b.mma(acc, x, y)?]
                } else {
                    let s = self.p.b.splat(DType::F8E8M0, &[shape[0], 1], 0.5)?;
                    let u = self.p.b.splat(DType::F8E8M0, &[1, shape[0]], 2.0)?;
                    vec![self.p.b.add_inst(Op::MmaScaled {}, &[acc, x, s, y, u])?[0]]
                }
            }
            21 => {
                let alike: Vec<DType> = DType::ALL.iter().copied().filter(|t| t.bits() == d.bits()).collect();
                // Bits are not what arithmetic gives, so NaN must not become numbers.
                let sound = if d.is_float() { self.digits(x, d, 1)? } else { x };
                vec![self.p.b.bitcast(sound, alike[b as usize % alike.len()])?]
            }
            22 if rank > 0 => {
                let ints = [DType::I32, DType::I64, DType::U8, DType::I16, DType::U32];
                vec![self.p.b.iota(ints[c as usize % ints.len()], &shape, dim)?]
            }
            23 if rank > 0 => {
                let i =
                    self.p.b.iota(if c.is_multiple_of(2) { DType::I32 } else { DType::I64 }, &shape, dim)?;
                let combiner =
                    [Combiner::ArgMax, Combiner::ArgMin, Combiner::ArgMaxLast, Combiner::ArgMinLast]
                        [c as usize / 2 % 4];
                let op = if b > 127 {
                    Op::Reduce { combiner, dims: vec![dim] }
                } else {
                    Op::Scan { combiner, dim, reverse: c > 127 }
                };
                self.p.b.add_inst(op, &[x, i])?
            }
            24 if rank > 0 => {
                let to = [DType::F32, DType::F64][c as usize % 2];
                let x = self.digits(x, to, 15)?;
                let op = if b > 127 {
                    Op::Reduce { combiner: Combiner::Add, dims: vec![dim] }
                } else {
                    Op::Scan { combiner: Combiner::Add, dim, reverse: c > 127 }
                };
                vec![self.p.b.add_inst(op, &[x])?[0]]
            }
            25 => {
                // Scattered over scratch that is full already; of equal indices the last stays.
                let s = self.p.b.alloc(d, n + 3)?;
                let all = self.p.b.iota(DType::I32, &[n + 3], 0)?;
                let before = self.p.b.full(d, &[n + 3], Num::Int(1))?;
                self.p.b.scatter(s, all, before, None)?;
                let at = self.digits(x, DType::I32, 15)?;
                let on = c.is_multiple_of(2).then(|| self.half(&shape, c)).transpose()?;
                self.p.b.scatter(s, at, x, on)?;
                let back = self.p.b.iota(DType::I64, &[n], 0)?;
                let back = self.p.b.reshape(back, &shape)?;
                vec![self.p.b.gather(s, back, on, Num::Int(1))?]
            }
            26 if d.is_int() && d.bits() >= 8 => {
                // Every instance into one table.
                let all: Vec<Combiner> =
                    [Combiner::Add, Combiner::Max, Combiner::Min, Combiner::And, Combiner::Or, Combiner::Xor]
                        .into_iter()
                        .filter(|o| o.binary().is_some_and(|f| f.accepts(d)))
                        .collect();
                let combiner = all[b as usize % all.len()];
                let table = self.output_of(d, 8)?;
                let at = self.digits(x, DType::I32, 15)?;
                let on = c.is_multiple_of(2).then(|| self.half(&shape, c)).transpose()?;
                let op = Op::AtomicReduce { combiner, scope: Scope::Device, masked: on.is_some() };
                let operands: Vec<Val> = [table, at, x].into_iter().chain(on).collect();
                self.p.b.add_inst(op, &operands)?;
                vec![]
            }
            27 if d.bits() >= 8 && rank > 0 => {
                // Each place once, in memory of its own, so that what was there does not depend on the order.
                let s = self.p.b.alloc(d, n)?;
                let at = self.p.b.iota(DType::I32, &[n], 0)?;
                let flat = self.p.b.reshape(x, &[n])?;
                self.p.b.scatter(s, at, flat, None)?;
                let y = self.like(x, c);
                let y = self.p.b.reshape(y, &[n])?;
                let ordering = [Ordering::Relaxed, Ordering::Acquire, Ordering::Release, Ordering::AcqRel]
                    [c as usize % 4];
                let op = match b % 3 {
                    0 => Op::AtomicCas { ordering, scope: Scope::Device },
                    k => {
                        let combiner = if k == 1 || d.is_bool() { Combiner::Replace } else { Combiner::Max };
                        Op::AtomicRmw { combiner, ordering, scope: Scope::System, masked: false }
                    }
                };
                let operands = match op {
                    Op::AtomicCas { .. } => vec![s, at, flat, y],
                    _ => vec![s, at, y],
                };
                // What is compared must have one bit pattern.
                if d.is_float() && matches!(op, Op::AtomicCas { .. }) {
                    return none;
                }
                let old = self.p.b.add_inst(op, &operands)?[0];
                vec![old, self.p.b.gather(s, at, None, Num::Int(0))?]
            }
            28 => {
                // What a class leaves open goes no further.
                let open = |o: &&Unary| o.accepts(d) && matches!(o.class(), NumericClass::Ulp(_));
                let all: Vec<&Unary> = Unary::ALL.iter().filter(open).collect();
                if all.is_empty() {
                    return none;
                }
                let op = *all[b as usize % all.len()];
                let r = self.p.b.unary(op, x)?;
                if let NumericClass::Ulp(u) = op.class() {
                    self.outputs += 1;
                    self.output(100 + self.outputs, r)?;
                    // The interpreter's own result is rounded.
                    self.p.within_ulps(f64::from(u) + 0.5);
                }
                vec![]
            }
            29 => {
                // Blocks masked and stepping backwards through scratch.
                let s = self.p.b.alloc(d, n)?;
                let (zero, one, size) = (self.p.b.int(0), self.p.b.int(1), self.p.b.int(n as i64));
                let flat = self.p.b.reshape(x, &[n])?;
                let v = self.p.b.view(s, zero, &[size], &[one])?;
                let map = TileMap::along(&[n], &[0]);
                self.p.b.store(v, flat, &[zero], map.clone(), &[true])?;
                let on = self.half(&[n], b)?;
                let y = self.like(x, c);
                let y = self.p.b.reshape(y, &[n])?;
                let masked = Op::Store { map: map.clone(), inside: vec![false], masked: true };
                let by = self.p.b.int(i64::from(c % 5) - 2);
                self.p.b.add_inst(masked, &[v, y, by, on])?;
                let (end, minus) = (self.p.b.int(n as i64 - 1), self.p.b.int(-1));
                let w = self.p.b.view(s, end, &[size], &[minus])?;
                let masked = Op::Load { map, inside: vec![false], pad: Num::Int(1), masked: true };
                let r = self.p.b.add_inst(masked, &[w, by, on])?[0];
                vec![self.p.b.reshape(r, &shape)?]
            }
            30 => {
                // A loop that counts to the end of its type, or by a step it is told.
                let y = self.like(x, c);
                let (lo, hi, step) = match b % 3 {
                    0 => (i64::MAX - i64::from(c % 8), i64::MAX, 3),
                    1 => (-5, i64::from(c % 9), 2),
                    _ => (i64::from(c % 4), 3, 1 << 40),
                };
                let [lo, hi, step] = [lo, hi, step].map(|n| self.p.scalar(n));
                self.p.b.for_loop(lo, hi, step, &[x, y], |_, _, v| Ok(vec![v[1], v[0]]))?
            }
            31 => {
                let (zero, one) = (self.p.b.int(0), self.p.b.int(1));
                let turns = self.p.scalar(i64::from(b % 4));
                let go = self.p.b.compare(Compare::Lt, zero, turns)?;
                let y = self.like(x, c);
                let r = self.p.b.while_loop(go, &[x, y, zero], |b, v| {
                    let next = b.add(v[2], one)?;
                    let go = b.compare(Compare::Lt, next, turns)?;
                    Ok((go, vec![v[1], v[0], next]))
                })?;
                r[..2].to_vec()
            }
            32 => {
                let v = match b % 3 {
                    0 => self.p.b.num_programs(c as usize % 3)?,
                    1 => self.pid,
                    _ => {
                        let x = self.p.input(d, small(d, c as usize % 5, 1));
                        self.p.b.buffer_len(x)?
                    }
                };
                vec![self.p.b.broadcast(v, &shape)?]
            }
            _ => return none,
        })
    }
}
