//! Products whose right operand holds as many steps side by side as fill 32 bits, on chips that sum them at once: four of bytes
//! (`vpdpbusd`, `sdot`, `udot`, `usdot`), two of bf16 (`bfmlalb` and `bfmlalt`).
//!
//! `bfdot` and `bfmmla` are not used: they round sums to odd, not to nearest.

use super::emit::{Reg, V, int};
use super::layout::{Bytes, Layout};
use super::memory::Direct;
use super::mma::Scalable;
use super::{Fun, Result, Tile, Value};
use tongtu_chip::Chip;
use tongtu_tensor::DType;
use tongtu_tensor::scalar::Binary;
use tongtu_tile::{Inst, Kernel, Val};

/// Whether an AArch64 chip has the instructions as Advanced SIMD.
fn fixed(chip: &Chip, feature: &str) -> bool {
    chip.vector.bits == 128 && chip.has(feature)
}

/// Whether the chip has instructions that sum several steps at once.
pub(super) fn sums_groups(chip: &Chip) -> bool {
    match chip.arch.as_str() {
        "x86_64" => chip.has("avx512vnni") && chip.has("avx512bw"),
        "aarch64" => chip.has("sve") || fixed(chip, "dotprod") || fixed(chip, "bf16"),
        _ => false,
    }
}

/// Whether a product is one that the chip does in whole vectors, several steps at once.
pub(super) fn is_dot(k: &Kernel, chip: &Chip, acc: Val, a: Val, b: Val) -> bool {
    let (Some((t, c)), Some((ad, a)), Some((bd, _))) =
        (k.ty(acc).as_tile(), k.ty(a).as_tile(), k.ty(b).as_tile())
    else {
        return false;
    };
    let byte = |d: DType| matches!(d, DType::I8 | DType::U8);
    let bytes = t == DType::I32 && byte(ad) && byte(bd);
    let pairs = (t, ad, bd) == (DType::F32, DType::BF16, DType::BF16);
    let (fits, lanes) = match chip.arch.as_str() {
        "x86_64" => (bytes && ad != bd, 16),
        // What SVE has of them at any length are the dot products of bytes of like signs; the other one is made of it.
        _ if bytes => (chip.has("sve") || fixed(chip, "dotprod"), chip.vector.bits as usize / 32),
        _ => (pairs && chip.has("bf16"), chip.vector.bits as usize / 32),
    };
    fits && a[1] % (32 / ad.bits() as usize) == 0 && c[1] % lanes == 0
}

/// A product's operands where they are read from, and its sums.
struct Dot {
    left: Direct,
    right: Direct,
    /// What is done to a vector of the right operand.
    then: Vec<(Binary, i64)>,
    types: [DType; 2],
    /// Rows, vectors of a row, and groups of steps.
    rows: usize,
    cuts: usize,
    groups: usize,
    /// Sums, by rows.
    out: Vec<V>,
}

/// How AArch64 does it.
struct Arm {
    /// The instruction, and whether it takes the unsigned operand first.
    name: &'static str,
    mixed: bool,
    /// Whether the left operand's bytes change their sign, for want of an instruction for unlike signs.
    flips: bool,
    /// Whether vectors are of open length.
    open: bool,
    /// Bytes of a vector.
    bytes: usize,
    /// The type of a vector of operands and of one of sums.
    operand: String,
    sum: String,
    /// The registers of both as they are loaded and carried.
    loaded: Reg,
    summed: Reg,
}

impl Arm {
    fn new(chip: &Chip, types: [DType; 2]) -> Arm {
        let pairs = types[1] == DType::BF16;
        let open = !fixed(chip, if pairs { "bf16" } else { "dotprod" });
        let unlike = types[0] != types[1];
        let mixed = unlike && chip.has("i8mm");
        let name = match types[1] {
            DType::BF16 => "bfmlal",
            _ if mixed => "usdot",
            DType::U8 => "udot",
            _ => "sdot",
        };
        let bytes = chip.vector.bits as usize / 8;
        let (loaded, summed) = if pairs { (Reg::I16, Reg::F32) } else { (Reg::I8, Reg::I32) };
        let ty = |reg: Reg| match open {
            true => Scalable::of(reg).name,
            false => reg.ty(128 / reg.bits() as usize),
        };
        let operand = if pairs { ty(Reg::I16).replace("i16", "bfloat") } else { ty(loaded) };
        let flips = unlike && !mixed;
        Arm { name, mixed, flips, open, bytes, operand, sum: ty(summed), loaded, summed }
    }

    /// Elements of a vector.
    fn lanes(&self, reg: Reg) -> usize {
        8 * self.bytes / reg.bits() as usize
    }
}

impl Fun<'_> {
    /// `acc + a × b`, several steps at a time, where the right operand lies so in memory and is read only here. Gives whether it was
    /// done.
    pub(super) fn dot(&mut self, inst: &Inst) -> Result<bool> {
        let (a, b) = (inst.operands[1], inst.operands[2]);
        let Some(Bytes { load, then }) = self.dots.get(&b).cloned() else { return Ok(false) };
        let Some(right) = self.direct.get(&load).cloned() else { return Ok(false) };
        let (left_type, shape) = self.tile_ty(a)?;
        let (m, k) = (shape[0], shape[1]);
        let types = [left_type, self.tile_ty(b)?.0];
        let acc = self.tile(inst.operands[0])?.clone();
        let mut tile = self.tile(a)?.clone();
        let mut in_memory = None;
        if let Some(mut access) = self.pending.remove(&a) {
            in_memory = self.direct(&mut access, 1);
            if in_memory.is_none() {
                let count = access.geo.parts();
                tile.parts = (0..count).map(|p| self.load_part(&mut access, p, tile.dtype)).collect();
            }
        }
        let size = types[0].bits() as usize / 8;
        let left = match in_memory {
            Some(direct) => direct,
            None => {
                let tile = Tile { parts: self.rows(&tile)?, layout: Layout::Rows, ..tile };
                let (ptr, _) = self.spill(&tile)?;
                Direct { ptr, stride: (size * k).to_string().into() }
            }
        };
        let cuts = self.geometry(&acc.shape).chunks.len();
        let out = self.rows(&acc)?;
        let dot = Dot { left, right, then, types, rows: m, cuts, groups: k * size / 4, out };
        let parts = if self.chip.arch == "x86_64" { self.dot_x86(dot) } else { self.dot_arm(dot) };
        let tile = Tile { parts, layout: Layout::Rows, ..acc };
        self.values[inst.results[0].index()] = Some(Value::Tile(tile));
        Ok(true)
    }

    /// Where a group of steps of a row of the left operand begins.
    fn left_at(&mut self, dot: &Dot, row: usize, group: usize) -> V {
        let down = self.imul(&dot.left.stride, &row.to_string().into());
        let at = self.iadd(&down, &(4 * group).to_string().into());
        self.offset(&dot.left.ptr, &at)
    }

    /// The `at`-th vector of `bytes` of a group of the right operand.
    fn right_vector(&mut self, dot: &Dot, group: usize, at: usize, (reg, bytes): (Reg, usize)) -> V {
        let down = self.imul(&dot.right.stride, &group.to_string().into());
        let at = self.iadd(&down, &(bytes * at).to_string().into());
        let at = self.offset(&dot.right.ptr, &at);
        let n = 8 * bytes / reg.bits() as usize;
        let mut x = self.def(format_args!("load {}, ptr {at}, align {}", reg.ty(n), reg.bytes()));
        for &(op, number) in &dot.then {
            let name = if op == Binary::And { "and" } else { "lshr" };
            x = self.bin(name, &reg.ty(n), &x, &int(reg, number, n));
        }
        x
    }

    fn dot_x86(&mut self, mut dot: Dot) -> Vec<V> {
        let (byte_ty, sum_ty) = (Reg::I8.ty(64), Reg::I32.ty(16));
        for group in 0..dot.groups {
            let mut fours = Vec::with_capacity(dot.rows);
            for i in 0..dot.rows {
                let at = self.left_at(&dot, i, group);
                let four = self.def(format_args!("load i32, ptr {at}, align 1"));
                let all = self.spread(Reg::I32, &four, 16);
                fours.push(self.conv("bitcast", &sum_ty, &all, &byte_ty));
            }
            for j in 0..dot.cuts {
                let x = self.right_vector(&dot, group, j, (Reg::I8, 64));
                for (i, four) in fours.iter().enumerate() {
                    let at = i * dot.cuts + j;
                    // The unsigned one first.
                    let (u, i) = if dot.types[1] == DType::U8 { (&x, four) } else { (four, &x) };
                    let args = [(sum_ty.as_str(), &dot.out[at].clone()), (&byte_ty, u), (&byte_ty, i)];
                    dot.out[at] = self.call(&sum_ty, "llvm.x86.avx512.vpdpbusd.512", &args);
                }
            }
        }
        dot.out
    }

    fn dot_arm(&mut self, mut dot: Dot) -> Vec<V> {
        let arm = Arm::new(self.chip, dot.types);
        let n = arm.lanes(arm.summed);
        // Groups that one vector of the left operand holds and the instructions pick from. Of vectors of open length it has to be in one of
        // the first eight registers, as when products of f32 pick elements.
        let room = dot.cuts * (dot.rows + 4) < 32 && (!arm.open || dot.rows > 1 && dot.cuts > 1);
        let run = if room && dot.groups.is_multiple_of(4) { 4 } else { 1 };
        let mut over: Vec<V> = vec!["zeroinitializer".into(); if arm.flips { dot.cuts } else { 0 }];
        for group in (0..dot.groups).step_by(run) {
            let mut right = Vec::with_capacity(run * dot.cuts);
            for at in 0..run * dot.cuts {
                let x =
                    self.right_vector(&dot, group + at / dot.cuts, at % dot.cuts, (arm.loaded, arm.bytes));
                right.push(self.arm_operand(&arm, arm.loaded, &x));
            }
            for (at, x) in right.iter().enumerate().filter(|_| arm.flips) {
                // 128 times the sums of the right operand, which sums with the other sign lack.
                let j = at % dot.cuts;
                over[j] = self.arm_dot(&arm, &over[j].clone(), x, (&"splat (i8 -128)".into(), None), &dot);
            }
            for i in 0..dot.rows {
                let x = self.arm_left(&arm, &dot, (i, group, run));
                for j in 0..dot.cuts {
                    let at = i * dot.cuts + j;
                    let mut sum = dot.out[at].clone();
                    if arm.open {
                        sum = self.opened(arm.summed, n, &sum);
                    }
                    for step in 0..run {
                        let lane = (run > 1).then_some(step);
                        sum = self.arm_dot(&arm, &sum, &right[step * dot.cuts + j], (&x, lane), &dot);
                    }
                    dot.out[at] = if arm.open { self.closed(arm.summed, n, &sum) } else { sum };
                }
            }
        }
        for (j, over) in over.iter().enumerate() {
            let over = if arm.open { self.closed(arm.summed, n, over) } else { over.clone() };
            for i in 0..dot.rows {
                let at = i * dot.cuts + j;
                dot.out[at] = self.bin("sub", &arm.summed.ty(n), &dot.out[at].clone(), &over);
            }
        }
        dot.out
    }

    /// A vector as the instructions take it.
    fn arm_operand(&mut self, arm: &Arm, reg: Reg, x: &V) -> V {
        let n = arm.lanes(reg);
        let (x, from) = match arm.open {
            true => (self.opened(reg, n, x), Scalable::of(reg).name),
            false => (x.clone(), reg.ty(n)),
        };
        self.conv("bitcast", &from, &x, &arm.operand)
    }

    /// `run` groups of a row of the left operand in each 128 bits of a vector.
    fn arm_left(&mut self, arm: &Arm, dot: &Dot, (row, group, run): (usize, usize, usize)) -> V {
        let at = self.left_at(dot, row, group);
        let x = if run == 1 {
            let one = self.def(format_args!("load i32, ptr {at}, align {}", arm.loaded.bytes()));
            let all = self.spread(Reg::I32, &one, arm.lanes(Reg::I32));
            self.arm_operand(arm, Reg::I32, &all)
        } else if arm.open {
            let (ty, lanes) = (Scalable::of(arm.loaded), 128 / arm.loaded.bits());
            let (predicate, all) = (format!("<vscale x {lanes} x i1>"), "splat (i1 true)".into());
            let name = format!("llvm.aarch64.sve.ld1rq.{}", ty.suffix);
            let x = self.call(&ty.name, &name, &[(&predicate, &all), ("ptr", &at)]);
            self.conv("bitcast", &ty.name, &x, &arm.operand)
        } else {
            self.def(format_args!("load {}, ptr {at}, align {}", arm.operand, arm.loaded.bytes()))
        };
        match arm.flips {
            true => self.bin("xor", &arm.operand, &x, &"splat (i8 -128)".into()),
            false => x,
        }
    }

    /// A group of products added to sums: a vector of the right operand times one of the left, or times a group of it for all.
    fn arm_dot(&mut self, arm: &Arm, sum: &V, right: &V, (left, lane): (&V, Option<usize>), dot: &Dot) -> V {
        let (operand, sum_ty) = (arm.operand.as_str(), arm.sum.as_str());
        let pairs = arm.summed == Reg::F32;
        let right_unsigned = dot.types[1] == DType::U8;
        if let (true, Some(lane)) = (arm.open, lane) {
            let mut call = |name: &str, sum: &V, lane: usize| {
                let lane: V = lane.to_string().into();
                let args = [(sum_ty, sum), (operand, right), (operand, left), ("i32 immarg", &lane)];
                self.call(sum_ty, &format!("llvm.aarch64.sve.{name}"), &args)
            };
            if pairs {
                let sum = call("bfmlalb.lane.v2", sum, 2 * lane);
                return call("bfmlalt.lane.v2", &sum, 2 * lane + 1);
            }
            let name = if arm.mixed && !right_unsigned { "sudot" } else { arm.name };
            return call(&format!("{name}.lane.nxv4i32"), sum, lane);
        }
        let set = if arm.open { "sve" } else { "neon" };
        if pairs {
            let mut sum = sum.clone();
            for (half, odd) in [("b", 0), ("t", 1)] {
                let left = match lane {
                    Some(lane) => self.arm_picked("bfloat", 8, left, 2 * lane + odd),
                    None => left.clone(),
                };
                let name = format!("llvm.aarch64.{set}.bfmlal{half}");
                sum = self.call(sum_ty, &name, &[(sum_ty, &sum), (operand, right), (operand, &left)]);
            }
            return sum;
        }
        let left = match lane {
            Some(lane) => {
                let four = Reg::I32.ty(4);
                let x = self.conv("bitcast", operand, left, &four);
                let x = self.arm_picked("i32", 4, &x, lane);
                self.conv("bitcast", &four, &x, operand)
            }
            None => left.clone(),
        };
        let name = match arm.open {
            true => format!("llvm.aarch64.sve.{}.nxv4i32", arm.name),
            false => format!("llvm.aarch64.neon.{}.v4i32.v16i8", arm.name),
        };
        let (x, y) = if arm.mixed && !right_unsigned { (&left, right) } else { (right, &left) };
        self.call(sum_ty, &name, &[(sum_ty, sum), (operand, x), (operand, y)])
    }

    /// One of `n` elements in all lanes.
    fn arm_picked(&mut self, one: &str, n: usize, x: &V, lane: usize) -> V {
        let lanes = vec![format!("i32 {lane}"); n].join(", ");
        self.def(format_args!("shufflevector <{n} x {one}> {x}, <{n} x {one}> poison, <{n} x i32> <{lanes}>"))
    }
}
