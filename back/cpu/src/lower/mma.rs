//! Matrix multiplication: vectors, or the matrix unit (AMX).
//!
//! The matrix unit multiplies a square of rows of the left operand (64 bytes of each) by one of the right
//! operand whose rows hold 2 (bf16) or 4 (8-bit) steps of the summed dim side by side. Its registers are
//! LLVM's to give: the `internal` intrinsics. LLVM spills well but moves no loads, so loads stand next to
//! their use and at most 8 squares are alive.

use super::emit::{Reg, V};
use super::layout::Layout;
use super::memory::Direct;
use super::{Fun, Result, Tile, Value};
use crate::target;
use tongtu_chip::Chip;
use tongtu_tensor::DType;
use tongtu_tile::{Inst, Kernel, Val};

/// Most accumulator squares: operands need registers too.
const MAX_SQUARES: usize = 4;

/// Squares that a tile takes.
pub(super) fn squares(shape: &[usize]) -> usize {
    shape[0].div_ceil(16) * (shape[1] / 16)
}

/// The matrix unit's instruction for a product, if it can do it.
pub(super) fn unit(k: &Kernel, chip: &Chip, acc: Val, a: Val, b: Val) -> Option<&'static str> {
    let ((t, c), (ad, a), (bd, _)) = (k.ty(acc).as_tile()?, k.ty(a).as_tile()?, k.ty(b).as_tile()?);
    let (op, feature) = match (t, ad, bd) {
        (DType::F32, DType::BF16, DType::BF16) => ("tdpbf16ps", "amx-bf16"),
        (DType::I32, DType::I8, DType::I8) => ("tdpbssd", "amx-int8"),
        (DType::I32, DType::I8, DType::U8) => ("tdpbsud", "amx-int8"),
        (DType::I32, DType::U8, DType::I8) => ("tdpbusd", "amx-int8"),
        (DType::I32, DType::U8, DType::U8) => ("tdpbuud", "amx-int8"),
        _ => return None,
    };
    let depth = 512 / ad.bits() as usize;
    let fits = chip.has(feature) && c[1] % 16 == 0 && a[1] % depth == 0 && squares(c) <= MAX_SQUARES;
    fits.then_some(op)
}

/// A vector type whose length the machine gives.
pub(super) struct Scalable {
    /// As LLVM writes it.
    pub(super) name: String,
    /// In the names of intrinsics.
    pub(super) suffix: String,
}

impl Scalable {
    /// That of AArch64: a multiple of 128 bits.
    pub(super) fn of(reg: Reg) -> Scalable {
        let (lanes, one) = (128 / reg.bits(), reg.suffix(1));
        Scalable { name: format!("<vscale x {lanes} x {}>", reg.ty(1)), suffix: format!("nxv{lanes}{one}") }
    }
}

impl Fun<'_> {
    /// `acc + a × b` as outer products: each element of `a` is spread over the lanes of a row of `b`.
    pub(super) fn mma(&mut self, inst: &Inst) -> Result<()> {
        self.products = true;
        if self.wanted[inst.results[0].index()] == Layout::Squares
            && let Some(op) = unit(self.k, self.chip, inst.operands[0], inst.operands[1], inst.operands[2])
        {
            return self.unit_mma(inst, op);
        }
        if self.dot(inst)? {
            return Ok(());
        }
        let (acc, a) = (self.tile(inst.operands[0])?.clone(), self.tile(inst.operands[1])?.clone());
        let b = self.tile(inst.operands[2])?.clone();
        let (m, n, k) = (acc.shape[0], acc.shape[1], a.shape[1]);
        let dtype = acc.dtype;
        // Narrow accumulators sum in f32 and round at the end.
        let sum = self.computes_in(dtype).unwrap_or(dtype);
        // Operands that nobody else reads are loaded here, next to their use, to keep registers free.
        let mut a_pending = self.pending.remove(&inst.operands[1]);
        let mut b_pending = self.pending.remove(&inst.operands[2]);
        let left = if a_pending.is_some() { Vec::new() } else { self.elements(&a)? };
        let b_parts = if b_pending.is_some() { Vec::new() } else { self.rows(&b)? };
        let acc_parts = self.rows(&acc)?;
        let geo = self.geometry(&[m, n]);
        let cuts = geo.chunks.len();
        let mut out = Vec::with_capacity(acc_parts.len());
        for (p, x) in acc_parts.iter().enumerate() {
            out.push(self.cast(dtype, sum, Default::default(), geo.chunk(p).width, x)?);
        }
        let reg = Reg::of(sum);
        let steps = self.picked_steps(&a, sum, (m, cuts)).filter(|_| a_pending.is_some()).unwrap_or(1);
        let mut kk = 0;
        while kk < k {
            if let Some(access) = a_pending.as_mut().filter(|_| steps > 1 && kk + steps <= k)
                && self.lies_in_run(access, kk, steps)
            {
                let mut rows = Vec::with_capacity(steps * cuts);
                for at in 0..steps * cuts {
                    let part = kk * cuts + at;
                    let x = match &mut b_pending {
                        Some(access) => self.load_part(access, part, b.dtype),
                        None => b_parts[part].clone(),
                    };
                    let n = geo.chunk(part).width;
                    let x = self.cast(b.dtype, sum, Default::default(), n, &x)?;
                    rows.push(self.as_scalable(reg, n, &x));
                }
                for i in 0..m {
                    // One vector of the left operand at a time, so that few wait for their use.
                    let x = self.load_run(access, i * k + kk, steps, a.dtype);
                    for (j, chunk) in geo.chunks.iter().enumerate() {
                        let n = chunk.width;
                        let mut acc = self.as_scalable(reg, n, &out[i * cuts + j]);
                        for step in 0..steps {
                            let picked = (&x, step, steps);
                            acc =
                                self.multiply_add_picked(sum, n, picked, &rows[step * cuts + j], &acc, inst)?;
                        }
                        out[i * cuts + j] = self.as_fixed(reg, n, &acc);
                    }
                }
                kk += steps;
                continue;
            }
            let mut row = Vec::with_capacity(cuts);
            for (j, chunk) in geo.chunks.iter().enumerate() {
                let x = match &mut b_pending {
                    Some(access) => self.load_part(access, kk * cuts + j, b.dtype),
                    None => b_parts[kk * cuts + j].clone(),
                };
                row.push(self.cast(b.dtype, sum, Default::default(), chunk.width, &x)?);
            }
            for i in 0..m {
                let x = match &mut a_pending {
                    Some(access) => self.load_part(access, i * k + kk, a.dtype),
                    None => left[i * k + kk].clone(),
                };
                let x = self.cast(a.dtype, sum, Default::default(), 1, &x)?;
                for (j, chunk) in geo.chunks.iter().enumerate() {
                    let n = chunk.width;
                    let spread = self.spread(reg, &x, n);
                    let at = i * cuts + j;
                    out[at] = self.multiply_add(sum, n, &spread, &row[j], &out[at].clone(), inst)?;
                }
            }
            kk += 1;
        }
        let mut parts = Vec::with_capacity(out.len());
        for (p, x) in out.iter().enumerate() {
            parts.push(self.cast(sum, dtype, Default::default(), geo.chunk(p).width, x)?);
        }
        let tile = Tile { dtype, shape: vec![m, n], layout: Layout::Rows, parts };
        self.values[inst.results[0].index()] = Some(Value::Tile(tile));
        Ok(())
    }

    /// Steps whose elements of the left operand are one vector that multiply-adds pick from. In registers longer than what is picked from
    /// these vectors have to be in the first eight registers, which several of a row's sums make room for and single ones do not.
    fn picked_steps(&self, a: &Tile, sum: DType, (rows, cuts): (usize, usize)) -> Option<usize> {
        let bits = self.chip.vector.picked_bits.filter(|_| sum.is_float() && a.dtype == sum)?;
        let long = self.scalable(Reg::of(sum), self.lanes).is_some();
        Some((bits / sum.bits()) as usize).filter(|_| !long || rows > 1 && cuts > 1)
    }

    /// The scalable type of `n` elements that fill a register longer than what elements are picked of; nothing for others.
    pub(super) fn scalable(&self, reg: Reg, n: usize) -> Option<Scalable> {
        let unit = self.chip.vector.picked_bits?;
        let bits = target::vector_length(self.chip);
        (bits > unit && n as u32 * reg.bits() == bits).then(|| Scalable::of(reg))
    }

    /// A vector that fills a register, in the type that instructions of any vector length take; others stay.
    fn as_scalable(&mut self, reg: Reg, n: usize, x: &V) -> V {
        if self.scalable(reg, n).is_some() { self.opened(reg, n, x) } else { x.clone() }
    }

    /// The other way.
    fn as_fixed(&mut self, reg: Reg, n: usize, x: &V) -> V {
        if self.scalable(reg, n).is_some() { self.closed(reg, n, x) } else { x.clone() }
    }

    /// A vector that fills a register in its scalable type.
    pub(super) fn opened(&mut self, reg: Reg, n: usize, x: &V) -> V {
        let ty = Scalable::of(reg);
        let name = format!("llvm.vector.insert.{}.{}", ty.suffix, reg.suffix(n));
        let (none, zero) = ("poison".into(), "0".into());
        self.call(&ty.name, &name, &[(&ty.name, &none), (&reg.ty(n), x), ("i64 immarg", &zero)])
    }

    /// The other way.
    pub(super) fn closed(&mut self, reg: Reg, n: usize, x: &V) -> V {
        let ty = Scalable::of(reg);
        let name = format!("llvm.vector.extract.{}.{}", reg.suffix(n), ty.suffix);
        self.call(&reg.ty(n), &name, &[(&ty.name, x), ("i64 immarg", &"0".into())])
    }

    /// `lane` of the `of` elements in `x` times `b`, added to `c`; what fills a register of open length is in its type.
    fn multiply_add_picked(
        &mut self,
        dtype: DType,
        n: usize,
        (x, lane, of): (&V, usize, usize),
        b: &V,
        c: &V,
        inst: &Inst,
    ) -> Result<V> {
        let reg = Reg::of(dtype);
        let held = self.scalable(reg, self.lanes);
        if let Some(ty) = held.as_ref().filter(|_| n == self.lanes) {
            let name = format!("llvm.aarch64.sve.fmla.lane.{}", ty.suffix);
            let (ty, lane) = (ty.name.as_str(), lane.to_string().into());
            return Ok(self.call(ty, &name, &[(ty, c), (ty, b), (ty, x), ("i32 immarg", &lane)]));
        }
        let x = match held {
            Some(ty) => {
                let name = format!("llvm.vector.extract.{}.{}", reg.suffix(of), ty.suffix);
                self.call(&reg.ty(of), &name, &[(&ty.name, x), ("i64 immarg", &"0".into())])
            }
            None => x.clone(),
        };
        let spread = match n {
            1 => self.lane(reg, &x, of, lane),
            _ => self.shuffle(reg, &x, &"poison".into(), of, &vec![Some(lane); n]),
        };
        self.multiply_add(dtype, n, &spread, b, c, inst)
    }

    fn multiply_add(&mut self, dtype: DType, n: usize, a: &V, b: &V, c: &V, inst: &Inst) -> Result<V> {
        if dtype.is_float() && (target::fused(self.chip) || self.computes_in(dtype).is_some()) {
            return self.fma(dtype, n, a, b, c, inst.flags);
        }
        if dtype.is_float() {
            let ty = Reg::of(dtype).ty(n);
            let product = self.bin("fmul", &ty, a, b);
            return Ok(self.bin("fadd", &ty, &product, c));
        }
        let ty = Reg::of(dtype).ty(n);
        let product = self.bin("mul", &ty, a, b);
        let sum = self.add(dtype, n, c, &product, inst.flags)?;
        Ok(sum)
    }

    fn square_load(&mut self, rows: usize, at: &V, stride: &V) -> V {
        let name = "llvm.x86.tileloadd64.internal";
        let (rows, bytes): (V, V) = (rows.to_string().into(), "64".into());
        self.call("x86_amx", name, &[("i16", &rows), ("i16", &bytes), ("ptr", at), ("i64", stride)])
    }

    /// Where the squares of an accumulator are in memory: rows, and offset in elements of 4 bytes.
    fn square_places(shape: &[usize]) -> Vec<(usize, usize)> {
        let (m, n) = (shape[0], shape[1]);
        let mut out = Vec::new();
        for i in 0..m.div_ceil(16) {
            for j in 0..n / 16 {
                out.push((16.min(m - i * 16), i * 16 * n + j * 16));
            }
        }
        out
    }

    /// An accumulator's squares, from any layout.
    pub(super) fn square(&mut self, tile: &Tile) -> Result<Vec<V>> {
        let places = Self::square_places(&tile.shape);
        if tile.parts.iter().all(|p| &**p == "zeroinitializer") {
            let bytes: V = "64".into();
            let zero = |s: &mut Self, rows: usize| {
                let rows: V = rows.to_string().into();
                s.call("x86_amx", "llvm.x86.tilezero.internal", &[("i16", &rows), ("i16", &bytes)])
            };
            return Ok(places.into_iter().map(|(rows, _)| zero(self, rows)).collect());
        }
        let (ptr, _) = self.spill(tile)?;
        let stride: V = (4 * tile.shape[1]).to_string().into();
        let mut out = Vec::new();
        for (rows, at) in places {
            let at = self.offset(&ptr, &(4 * at).to_string().into());
            out.push(self.square_load(rows, &at, &stride));
        }
        Ok(out)
    }

    /// An accumulator's squares from rows in memory.
    pub(super) fn load_squares(&mut self, shape: &[usize], from: &Direct) -> Vec<V> {
        let cols = shape[1] / 16;
        (0..squares(shape))
            .map(|at| {
                let down = self.imul(&from.stride, &(16 * (at / cols)).to_string().into());
                let down = self.iadd(&down, &(64 * (at % cols)).to_string().into());
                let ptr = self.offset(&from.ptr, &down);
                self.square_load(16.min(shape[0] - at / cols * 16), &ptr, &from.stride)
            })
            .collect()
    }

    /// Stores an accumulator's squares to rows in memory.
    pub(super) fn store_squares(&mut self, tile: &Tile, to: &Direct) {
        let cols = tile.shape[1] / 16;
        let bytes: V = "64".into();
        for (i, x) in tile.parts.iter().enumerate() {
            let down = self.imul(&to.stride, &(16 * (i / cols)).to_string().into());
            let down = self.iadd(&down, &(64 * (i % cols)).to_string().into());
            let at = self.offset(&to.ptr, &down);
            let rows: V = 16.min(tile.shape[0] - i / cols * 16).to_string().into();
            let name = "llvm.x86.tilestored64.internal";
            let args = [("i16", &rows), ("i16", &bytes), ("ptr", &at), ("i64", &to.stride), ("x86_amx", x)];
            self.call("void", name, &args);
        }
    }

    /// An accumulator's rows, from its squares.
    pub(super) fn unsquare(&mut self, tile: &Tile) -> Result<Vec<V>> {
        let (m, n) = (tile.shape[0], tile.shape[1]);
        let ptr = self.reserve(4 * m * n)?;
        let stride: V = (4 * n).to_string().into();
        let bytes: V = "64".into();
        for ((rows, at), x) in Self::square_places(&tile.shape).into_iter().zip(&tile.parts) {
            let at = self.offset(&ptr, &(4 * at).to_string().into());
            let rows: V = rows.to_string().into();
            let name = "llvm.x86.tilestored64.internal";
            let args = [("i16", &rows), ("i16", &bytes), ("ptr", &at), ("i64", &stride), ("x86_amx", x)];
            self.call("void", name, &args);
        }
        let (geo, reg) = (self.geometry(&tile.shape), Reg::of(tile.dtype));
        let mut parts = Vec::with_capacity(geo.parts());
        for part in 0..geo.parts() {
            let chunk = geo.chunk(part);
            let at = part / geo.chunks.len() * n + chunk.start;
            let at = self.offset(&ptr, &(4 * at).to_string().into());
            parts.push(self.def(format_args!("load {}, ptr {at}, align 4", reg.ty(chunk.width))));
        }
        Ok(parts)
    }

    /// Where the matrix unit can read an operand: its load's memory if that lies as it should, else scratch.
    /// `group`: steps of the summed dim side by side in a row; 1 for the left operand.
    fn unit_operand(&mut self, v: Val, group: usize) -> Result<Direct> {
        if let Some(direct) = self.direct.get(&v) {
            return Ok(direct.clone());
        }
        let tile = self.tile(v)?.clone();
        let size = tile.dtype.bits() as usize / 8;
        if group == 1 {
            let (ptr, _) = self.spill(&tile)?;
            return Ok(Direct { ptr, stride: (size * tile.shape[1]).to_string().into() });
        }
        let (k, n) = (tile.shape[0], tile.shape[1]);
        let parts = self.rows(&tile)?;
        let (geo, reg) = (self.geometry(&tile.shape), Reg::of(tile.dtype));
        let ptr = self.reserve(k * n * size)?;
        let cuts = geo.chunks.len();
        for row in 0..k / group {
            for (j, chunk) in geo.chunks.iter().enumerate() {
                let side: Vec<(V, usize)> =
                    (0..group).map(|g| (parts[(row * group + g) * cuts + j].clone(), chunk.width)).collect();
                let from: Vec<(usize, usize)> =
                    (0..chunk.width * group).map(|i| (i % group, i / group)).collect();
                let x = self.assemble(reg, &side, &from, chunk.width * group);
                let at = (row * n + chunk.start) * group * size;
                let at = self.offset(&ptr, &at.to_string().into());
                self.line(format_args!("store {} {x}, ptr {at}, align 1", reg.ty(chunk.width * group)));
            }
        }
        Ok(Direct { ptr, stride: (n * group * size).to_string().into() })
    }

    fn unit_mma(&mut self, inst: &Inst, op: &str) -> Result<()> {
        let (_, c) = self.tile_ty(inst.results[0])?;
        let (a_type, a_shape) = self.tile_ty(inst.operands[1])?;
        let (m, n, k) = (c[0], c[1], a_shape[1]);
        let group = 32 / a_type.bits() as usize;
        let depth = 16 * group;
        let mut acc = self.parts_as(inst.operands[0], Layout::Squares)?;
        let a = self.unit_operand(inst.operands[1], 1)?;
        let b = self.unit_operand(inst.operands[2], group)?;
        let (rows, cols) = (m.div_ceil(16), n / 16);
        let name = format!("llvm.x86.{op}.internal");
        let height = |i: usize| 16.min(m - i * 16);
        let left = |s: &mut Self, i: usize, kk: usize| {
            let down = s.imul(&a.stride, &(16 * i).to_string().into());
            let down = s.iadd(&down, &(64 * kk).to_string().into());
            let at = s.offset(&a.ptr, &down);
            s.square_load(height(i), &at, &a.stride)
        };
        let right = |s: &mut Self, j: usize, kk: usize| {
            let down = s.imul(&b.stride, &(16 * kk).to_string().into());
            let down = s.iadd(&down, &(64 * j).to_string().into());
            let at = s.offset(&b.ptr, &down);
            s.square_load(16, &at, &b.stride)
        };
        let bytes: V = "64".into();
        for kk in 0..k / depth {
            // Keep the fewer operands, stream the others.
            let by_rows = cols <= rows;
            let (outer, inner) = if by_rows { (rows, cols) } else { (cols, rows) };
            let held: Vec<V> =
                (0..inner).map(|x| if by_rows { right(self, x, kk) } else { left(self, x, kk) }).collect();
            for y in 0..outer {
                let moving = if by_rows { left(self, y, kk) } else { right(self, y, kk) };
                for (x, kept) in held.iter().enumerate() {
                    let (i, j) = if by_rows { (y, x) } else { (x, y) };
                    let (l, r) = if by_rows { (&moving, kept) } else { (kept, &moving) };
                    let tall: V = height(i).to_string().into();
                    let at = i * cols + j;
                    let sum = acc[at].clone();
                    let args = [
                        ("i16", &tall),
                        ("i16", &bytes),
                        ("i16", &bytes),
                        ("x86_amx", &sum),
                        ("x86_amx", l),
                        ("x86_amx", r),
                    ];
                    acc[at] = self.call("x86_amx", &name, &args);
                }
            }
        }
        let tile = Tile {
            dtype: self.tile_ty(inst.results[0])?.0,
            shape: c.to_vec(),
            layout: Layout::Squares,
            parts: acc,
        };
        self.values[inst.results[0].index()] = Some(Value::Tile(tile));
        Ok(())
    }
}
