//! Elements that tiles of indices name: gathers, scatters, atomics, and picks from a tile.

use super::emit::{self, Reg, V, int};
use super::layout::Chunk;
use super::{Fun, Result, Tile, broken};
use crate::target;
use tongtu_tensor::{Combiner, DType, Num};
use tongtu_tile::{Inst, Ordering};

/// LLVM's name of a memory order.
pub(super) fn ordering(order: Ordering) -> &'static str {
    match order {
        Ordering::Relaxed => "monotonic",
        Ordering::Acquire => "acquire",
        Ordering::Release => "release",
        Ordering::AcqRel => "acq_rel",
    }
}

impl Fun<'_> {
    /// Index lanes as `i64`, and which of them are inside the buffer and not masked out.
    fn indices(&mut self, dtype: DType, x: &V, chunk: Chunk, len: &V, given: Option<&V>) -> (V, V) {
        let n = chunk.width;
        let ty = Reg::I64.ty(n);
        let wide = self.conv("sext", &Reg::of(dtype).ty(n), x, &ty);
        let len = self.spread(Reg::I64, len, n);
        // As unsigned, a negative index is too large as well.
        let inside = self.cmp("icmp ult", &ty, &wide, &len);
        let mask = self.part_mask(chunk, None, Some(inside.clone()), given).unwrap_or(inside);
        (wide, mask)
    }

    pub(super) fn gather(&mut self, inst: &Inst, pad: Num, masked: bool) -> Result<()> {
        let buffer = self.buffer(inst.operands[0])?;
        let (index_type, shape) = self.tile_ty(inst.operands[1])?;
        let index = self.operand(inst.operands[1])?;
        let given = if masked { Some(self.operand(inst.operands[2])?) } else { None };
        let (dtype, geo) = (buffer.dtype, self.geometry(shape));
        let (reg, mem, scope) = (Reg::of(dtype), self.memory(dtype), Self::alias(buffer.scope));
        let mut parts = Vec::with_capacity(geo.parts());
        for (part, x) in index.iter().enumerate() {
            let chunk = geo.chunk(part);
            let n = chunk.width;
            let given = given.as_ref().map(|g| &g[part]);
            let (wide, mask) = self.indices(index_type, x, chunk, &buffer.len, given);
            if dtype.bits() < 8 {
                let mut each = Vec::new();
                for i in 0..chunk.valid {
                    let (at, c) = (self.lane(Reg::I64, &wide, n, i), self.lane(Reg::I1, &mask, n, i));
                    let place = self.bit_place_of(&buffer.ptr, dtype.bits(), &at);
                    let x = self.load_bits_at(dtype, place, Some(&c), &scope);
                    each.push(self.choose(1, &c, &reg.ty(1), &x, &emit::constant(dtype, pad, 1)));
                }
                parts.push(self.pack(reg, &each, n));
                continue;
            }
            let other = self.memory_constant(dtype, pad, n);
            let x = if n > 1 && mem.bits() >= 32 && target::gathers(self.chip) {
                let at = self.def(format_args!(
                    "getelementptr {}, ptr {}, {} {wide}",
                    mem.ty(1),
                    buffer.ptr,
                    Reg::I64.ty(n)
                ));
                self.masked_gather(mem, n, &at, &mask, &other, &scope)
            } else {
                let mut at = Vec::new();
                for i in 0..chunk.valid {
                    let i = self.lane(Reg::I64, &wide, n, i);
                    at.push(self.def(format_args!(
                        "getelementptr {}, ptr {}, i64 {i}",
                        mem.ty(1),
                        buffer.ptr
                    )));
                }
                self.gather_from(mem, n, &at, &mask, &other, &scope)
            };
            parts.push(self.read_in(dtype, n, &x));
        }
        self.set(inst.results[0], parts)
    }

    pub(super) fn scatter(&mut self, inst: &Inst, masked: bool) -> Result<()> {
        let buffer = self.buffer(inst.operands[0])?;
        let (index_type, shape) = self.tile_ty(inst.operands[1])?;
        let (index, values) = (self.operand(inst.operands[1])?, self.operand(inst.operands[2])?);
        let given = if masked { Some(self.operand(inst.operands[3])?) } else { None };
        let (dtype, geo) = (buffer.dtype, self.geometry(shape));
        let (mem, scope) = (self.memory(dtype), Self::alias(buffer.scope));
        for (part, x) in index.iter().enumerate() {
            let chunk = geo.chunk(part);
            let n = chunk.width;
            let given = given.as_ref().map(|g| &g[part]);
            let (wide, mask) = self.indices(index_type, x, chunk, &buffer.len, given);
            let value =
                if dtype.bits() < 8 { values[part].clone() } else { self.write_out(dtype, n, &values[part]) };
            let mut at = Vec::new();
            for i in 0..chunk.valid {
                let element = self.lane(Reg::I64, &wide, n, i);
                if dtype.bits() < 8 {
                    let (one, c) = (self.lane(Reg::I8, &value, n, i), self.lane(Reg::I1, &mask, n, i));
                    let place = self.bit_place_of(&buffer.ptr, dtype.bits(), &element);
                    self.store_bits(dtype, place, &one, Some(&c), &scope)?;
                } else {
                    at.push(self.def(format_args!(
                        "getelementptr {}, ptr {}, i64 {element}",
                        mem.ty(1),
                        buffer.ptr
                    )));
                }
            }
            self.scatter_to(mem, n, &value, &at, &mask, &scope);
        }
        Ok(())
    }

    /// Combines elements into memory one by one; the result, if there is one, holds the old elements, and zeros
    /// where nothing was done.
    pub(super) fn atomic(
        &mut self,
        inst: &Inst,
        combiner: Combiner,
        order: &str,
        masked: bool,
    ) -> Result<()> {
        let given = if masked { Some(self.operand(inst.operands[3])?) } else { None };
        let values = self.operand(inst.operands[2])?;
        let buffer = self.buffer(inst.operands[0])?;
        let dtype = buffer.dtype;
        self.each_atomic(inst, given, |s, part, lane, n, at| {
            let x = s.lane(Reg::of(dtype), &values[part], n, lane);
            let plain = match combiner {
                Combiner::Replace => Some("xchg"),
                Combiner::Add if dtype.is_int() => Some("add"),
                Combiner::And if dtype.is_int() => Some("and"),
                Combiner::Or if dtype.is_int() => Some("or"),
                Combiner::Xor if dtype.is_int() => Some("xor"),
                Combiner::Max if dtype.is_int() => Some(if dtype.is_signed() { "max" } else { "umax" }),
                Combiner::Min if dtype.is_int() => Some(if dtype.is_signed() { "min" } else { "umin" }),
                _ => None,
            };
            let (mem, align) = (s.memory(dtype), dtype.byte_size().unwrap_or(1));
            if let Some(op) = plain {
                let x = s.write_out(dtype, 1, &x);
                let old =
                    s.def(format_args!("atomicrmw {op} ptr {at}, {} {x} {order}, align {align}", mem.ty(1)));
                return Ok(s.read_in(dtype, 1, &old));
            }
            let Some(op) = combiner.binary() else { return Err(broken("an atomic that combines nothing")) };
            // Try until nobody else wrote in between.
            let ity = format!("i{}", 8 * align);
            let (turn, done) = (s.fresh("try"), s.fresh("won"));
            let first = s.def(format_args!("load atomic {ity}, ptr {at} monotonic, align {align}"));
            let from = s.block.clone();
            s.line(format_args!("br label %{turn}"));
            s.label(&turn);
            let (seen, won) = (s.fresh("%seen"), s.fresh("%pair"));
            let head = s.out.len();
            let bits = s.conv("bitcast", &ity, &seen, &mem.ty(1));
            let old = s.read_in(dtype, 1, &bits);
            let new = s.binary(op, dtype, 1, &old, &x, inst.flags)?;
            let new = s.write_out(dtype, 1, &new);
            let new = s.conv("bitcast", &mem.ty(1), &new, &ity);
            s.line(format_args!(
                "{won} = cmpxchg ptr {at}, {ity} {seen}, {ity} {new} {order} monotonic, align {align}"
            ));
            let now = s.def(format_args!("extractvalue {{ {ity}, i1 }} {won}, 0"));
            let ok = s.def(format_args!("extractvalue {{ {ity}, i1 }} {won}, 1"));
            let phi = format!("  {seen} = phi {ity} [{first}, %{from}], [{now}, %{}]\n", s.block);
            s.out.insert_str(head, &phi);
            s.line(format_args!("br i1 {ok}, label %{done}, label %{turn}"));
            s.label(&done);
            Ok(old)
        })
    }

    pub(super) fn compare_and_swap(&mut self, inst: &Inst, order: &str) -> Result<()> {
        let (expected, desired) = (self.operand(inst.operands[2])?, self.operand(inst.operands[3])?);
        let dtype = self.buffer(inst.operands[0])?.dtype;
        let failure = match order {
            "acquire" | "acq_rel" => "acquire",
            _ => "monotonic",
        };
        self.each_atomic(inst, None, |s, part, lane, n, at| {
            let (reg, mem, align) = (Reg::of(dtype), s.memory(dtype), dtype.byte_size().unwrap_or(1));
            let ity = format!("i{}", 8 * align);
            let mut both = Vec::new();
            for x in [&expected[part], &desired[part]] {
                let x = s.lane(reg, x, n, lane);
                let x = s.write_out(dtype, 1, &x);
                both.push(s.conv("bitcast", &mem.ty(1), &x, &ity));
            }
            let pair = s.def(format_args!(
                "cmpxchg ptr {at}, {ity} {}, {ity} {} {order} {failure}, align {align}",
                both[0], both[1]
            ));
            let old = s.def(format_args!("extractvalue {{ {ity}, i1 }} {pair}, 0"));
            let old = s.conv("bitcast", &ity, &old, &mem.ty(1));
            Ok(s.read_in(dtype, 1, &old))
        })
    }

    /// Runs `f` for each element of an atomic instruction that is inside the buffer and not masked out.
    fn each_atomic(
        &mut self,
        inst: &Inst,
        given: Option<Vec<V>>,
        mut f: impl FnMut(&mut Self, usize, usize, usize, &V) -> Result<V>,
    ) -> Result<()> {
        let buffer = self.buffer(inst.operands[0])?;
        let dtype = buffer.dtype;
        if dtype.bits() < 8 {
            return self.unsupported(inst, "elements of less than a byte have no atomic access");
        }
        let (index_type, shape) = self.tile_ty(inst.operands[1])?;
        let index = self.operand(inst.operands[1])?;
        let (geo, reg, mem) = (self.geometry(shape), Reg::of(dtype), self.memory(dtype));
        let mut parts = Vec::with_capacity(geo.parts());
        for (part, x) in index.iter().enumerate() {
            let chunk = geo.chunk(part);
            let n = chunk.width;
            let given = given.as_ref().map(|g| &g[part]);
            let (wide, mask) = self.indices(index_type, x, chunk, &buffer.len, given);
            let mut each = Vec::new();
            for lane in 0..chunk.valid {
                let (i, c) = (self.lane(Reg::I64, &wide, n, lane), self.lane(Reg::I1, &mask, n, lane));
                let (yes, join) = (self.fresh("do"), self.fresh("done"));
                let from = self.block.clone();
                self.line(format_args!("br i1 {c}, label %{yes}, label %{join}"));
                self.label(&yes);
                let at = self.def(format_args!("getelementptr {}, ptr {}, i64 {i}", mem.ty(1), buffer.ptr));
                let old = f(self, part, lane, n, &at)?;
                let end = self.block.clone();
                self.line(format_args!("br label %{join}"));
                self.label(&join);
                let zero = self.zero(reg, 1);
                each.push(self.def(format_args!("phi {} [{zero}, %{from}], [{old}, %{end}]", reg.ty(1))));
            }
            parts.push(self.pack(reg, &each, n));
        }
        match inst.results.first() {
            Some(r) => self.set(*r, parts),
            None => Ok(()),
        }
    }

    /// Writes a tile's parts to fresh scratch memory, elements of whole bytes packed row-major; gives the address.
    pub(super) fn spill(&mut self, tile: &Tile) -> Result<(V, Reg)> {
        let parts = self.rows(tile)?;
        let (geo, mem) = (self.geometry(&tile.shape), self.memory(tile.dtype));
        let size = (mem.bits() / 8) as usize;
        // Room for the lanes past the end of the last row.
        let ptr = self.reserve((geo.rows * geo.n + self.lanes) * size)?;
        for (part, x) in parts.iter().enumerate() {
            let chunk = geo.chunk(part);
            let row = part / geo.chunks.len();
            let at = ((row * geo.n + chunk.start) * size).to_string().into();
            let at = self.offset(&ptr, &at);
            let x = self.write_out(tile.dtype, chunk.width, x);
            self.line(format_args!("store {} {x}, ptr {at}, align {}", mem.ty(chunk.width), mem.bytes()));
        }
        Ok((ptr, mem))
    }

    pub(super) fn take_along(&mut self, inst: &Inst, dim: usize) -> Result<()> {
        let source = self.tile(inst.operands[0])?.clone();
        let (index_type, shape) = self.tile_ty(inst.operands[1])?;
        let index = self.operand(inst.operands[1])?;
        let (ptr, mem) = self.spill(&source)?;
        let geo = self.geometry(shape);
        let from = super::layout::steps(&source.shape);
        let mut parts = Vec::with_capacity(geo.parts());
        for (part, x) in index.iter().enumerate() {
            let chunk = geo.chunk(part);
            let n = chunk.width;
            let (wide, mask) =
                self.indices(index_type, x, chunk, &source.shape[dim].to_string().into(), None);
            // Where the other coordinates put each lane.
            let rest: Vec<i64> = (0..n)
                .map(|lane| {
                    let mut p = part / geo.chunks.len() * geo.n + chunk.start + lane.min(chunk.valid - 1);
                    let mut sum = 0;
                    for d in (0..shape.len()).rev() {
                        if d != dim {
                            sum += p % shape[d] * from[d];
                        }
                        p /= shape[d];
                    }
                    sum as i64
                })
                .collect();
            let ty = Reg::I64.ty(n);
            let step = int(Reg::I64, from[dim] as i64, n);
            let along = self.bin("mul", &ty, &wide, &step);
            let rest: V = if n == 1 {
                rest[0].to_string().into()
            } else {
                let lanes: Vec<String> = rest.iter().map(|r| format!("i64 {r}")).collect();
                format!("<{}>", lanes.join(", ")).into()
            };
            let at = self.bin("add", &ty, &along, &rest);
            let mut each = Vec::new();
            for i in 0..chunk.valid {
                let i = self.lane(Reg::I64, &at, n, i);
                each.push(self.def(format_args!("getelementptr {}, ptr {ptr}, i64 {i}", mem.ty(1))));
            }
            let zero = self.zero(mem, n);
            let x = self.gather_from(mem, n, &each, &mask, &zero, "");
            let x = self.read_spilled(source.dtype, n, &x);
            parts.push(x);
        }
        self.set(inst.results[0], parts)
    }

    /// Like `read_in` for spilled values, whose elements take whole bytes.
    fn read_spilled(&mut self, dtype: DType, n: usize, x: &V) -> V {
        if dtype.bits() < 8 && !dtype.is_bool() { x.clone() } else { self.read_in(dtype, n, x) }
    }
}
