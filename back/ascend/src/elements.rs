//! Memory accessed element by element: by index tiles, under masks, and blocks that no window describes.

use tongtu_tensor::{DType, Num};
use tongtu_tile::{Inst, TileMap, Val};

use crate::emit::{Emit, Slot, Text, ViewSlot, constant, mlir, shaped};

impl Emit<'_> {
    /// Loops over all coordinates of a shape; the body gets their names.
    fn each(&mut self, shape: &[usize], body: &mut dyn FnMut(&mut Self, &[String]) -> Text<()>) -> Text<()> {
        let bounds: Vec<String> = shape.iter().map(|&n| self.index_constant(n)).collect();
        let (zero, one) = (self.index_constant(0), self.index_constant(1));
        let mut at = Vec::new();
        for n in &bounds {
            let i = self.fresh();
            self.line(format!("scf.for {i} = {zero} to {n} step {one} {{"));
            self.depth += 1;
            at.push(i);
        }
        body(self, &at)?;
        for _ in &bounds {
            self.depth -= 1;
            self.line("}".to_string());
        }
        Ok(())
    }

    /// One element of a tile as a scalar; truth values as they are.
    fn element(&mut self, name: &str, d: DType, shape: &[usize], at: &[String]) -> String {
        if shape.is_empty() {
            return name.to_string();
        }
        let v = self.fresh();
        self.line(format!(
            "{v} = tensor.extract {name}[{}] : tensor<{}>",
            at.join(", "),
            shaped(shape, &mlir(d))
        ));
        v
    }

    /// A tile whose elements are extracted: truth values become bytes first.
    fn bytes(&mut self, v: Val) -> Text<String> {
        let (name, d, shape) = (self.scalar(v)?, self.dtype(v), self.shape(v));
        Ok(if shape.is_empty() { name } else { self.bytes_of(name, d, &shape) })
    }

    /// Whether a mask's element is set.
    fn is_set(&mut self, mask: &str, shape: &[usize], at: &[String]) -> String {
        if shape.is_empty() {
            return mask.to_string();
        }
        let byte = self.element(mask, DType::Bool, shape, at);
        self.truth_values(byte, DType::Bool, &[])
    }

    fn both(&mut self, a: Option<String>, b: String) -> Option<String> {
        let Some(a) = a else { return Some(b) };
        let v = self.fresh();
        self.line(format!("{v} = arith.andi {a}, {b} : i1"));
        Some(v)
    }

    fn within(&mut self, at: &str, end: &str) -> Option<String> {
        let zero = self.int(0);
        let low = self.pred("sge", at, &zero);
        let high = self.pred("slt", at, end);
        self.both(Some(low), high)
    }

    /// An index tile's element as i64.
    fn place(&mut self, name: &str, d: DType, shape: &[usize], at: &[String]) -> String {
        let v = self.element(name, d, shape, at);
        if d.bits() == 64 {
            return v;
        }
        let wide = self.fresh();
        let op = if d.is_signed() { "extsi" } else { "extui" };
        self.line(format!("{wide} = arith.{op} {v} : {} to i64", mlir(d)));
        wide
    }

    /// Reads `buffer[at]` where the condition holds, else gives the padding, into an element of a local buffer.
    fn read(&mut self, buffer: (&str, &str, DType), at: &str, ok: Option<String>, pad: Num) -> String {
        let (name, ty, d) = buffer;
        let e = mlir(d);
        let load = |s: &mut Self| {
            let (i, v) = (s.index(at), s.fresh());
            s.line(format!("{v} = memref.load {name}[{i}] : {ty}"));
            v
        };
        let Some(ok) = ok else { return load(self) };
        let (p, v) = (self.fresh(), self.fresh());
        self.line(format!("{p} = arith.constant {} : {e}", constant(d, pad)));
        self.line(format!("{v} = scf.if {ok} -> ({e}) {{"));
        self.depth += 1;
        let x = load(self);
        self.line(format!("scf.yield {x} : {e}"));
        self.depth -= 1;
        self.line("} else {".to_string());
        self.line(format!("  scf.yield {p} : {e}"));
        self.line("}".to_string());
        v
    }

    /// Writes `buffer[at]` where the condition holds.
    fn write(&mut self, buffer: (&str, &str), at: &str, ok: Option<String>, value: &str) {
        let open = ok.is_some();
        if let Some(ok) = ok {
            self.line(format!("scf.if {ok} {{"));
            self.depth += 1;
        }
        let i = self.index(at);
        self.line(format!("memref.store {value}, {}[{i}] : {}", buffer.0, buffer.1));
        if open {
            self.depth -= 1;
            self.line("}".to_string());
        }
    }

    /// A tile filled element by element.
    fn filled_by(
        &mut self,
        result: Val,
        d: DType,
        element: &mut dyn FnMut(&mut Self, &[String]) -> Text<String>,
    ) -> Text<()> {
        let shape = self.shape(result);
        if shape.is_empty() {
            let v = element(self, &[])?;
            let v = self.truth_values(v, d, &[]);
            self.define(result, Slot::Value(v));
            return Ok(());
        }
        let ty = format!("memref<{}>", shaped(&shape, &mlir(d)));
        let (local, t) = (self.fresh(), self.fresh());
        self.line(format!("{local} = memref.alloc() : {ty}"));
        self.each(&shape, &mut |e, at| {
            let v = element(e, at)?;
            e.line(format!("memref.store {v}, {local}[{}] : {ty}", at.join(", ")));
            Ok(())
        })?;
        self.line(format!("{t} = bufferization.to_tensor {local} restrict writable : {ty}"));
        let t = self.truth_values(t, d, &shape);
        self.define(result, Slot::Value(t));
        Ok(())
    }

    /// `gather`.
    pub(crate) fn gather(&mut self, inst: &Inst, pad: Num) -> Text<()> {
        let (name, ty, d, len) = self.buffer(inst.operands[0])?;
        let (index, id) = (self.scalar(inst.operands[1])?, self.dtype(inst.operands[1]));
        let shape = self.shape(inst.operands[1]);
        let mask = inst.operands.get(2).map(|&m| self.bytes(m)).transpose()?;
        self.filled_by(inst.results[0], d, &mut |e, at| {
            let j = e.place(&index, id, &shape, at);
            let mut ok = e.within(&j, &len);
            if let Some(m) = &mask {
                let set = e.is_set(m, &shape, at);
                ok = e.both(ok, set);
            }
            Ok(e.read((&name, &ty, d), &j, ok, pad))
        })
    }

    /// `scatter`.
    pub(crate) fn scatter(&mut self, inst: &Inst) -> Text<()> {
        let (name, ty, d, len) = self.buffer(inst.operands[0])?;
        let (index, id) = (self.scalar(inst.operands[1])?, self.dtype(inst.operands[1]));
        let shape = self.shape(inst.operands[1]);
        let value = self.bytes(inst.operands[2])?;
        let mask = inst.operands.get(3).map(|&m| self.bytes(m)).transpose()?;
        self.each(&shape, &mut |e, at| {
            let j = e.place(&index, id, &shape, at);
            let mut ok = e.within(&j, &len);
            if let Some(m) = &mask {
                let set = e.is_set(m, &shape, at);
                ok = e.both(ok, set);
            }
            let v = e.element(&value, d, &shape, at);
            let v = if shape.is_empty() { e.bytes_of(v, d, &[]) } else { v };
            e.write((&name, &ty), &j, ok, &v);
            Ok(())
        })
    }

    /// The place in memory of an element of a block, and whether it is inside the view.
    fn element_of(
        &mut self,
        view: &ViewSlot,
        index: &[String],
        map: &TileMap,
        inside: &[bool],
        at: &[String],
    ) -> (String, Option<String>) {
        let mut index = index.to_vec();
        for (factors, i) in map.0.iter().zip(at) {
            // The coordinate in each factor, the last fastest.
            let mut rest = self.as_int(i);
            for (k, f) in factors.iter().enumerate().rev() {
                let own = if k == 0 {
                    rest.clone()
                } else {
                    let size = self.int(f.size as i64);
                    let own = self.int_op("remsi", &rest, &size);
                    rest = self.int_op("divsi", &rest, &size);
                    own
                };
                if let (Some(d), true) = (f.dim, f.size > 1) {
                    let step = self.int(f.step);
                    let far = self.int_mul(&own, &step);
                    index[d] = self.int_add(&index[d], &far);
                }
            }
        }
        let mut place = view.offset.clone();
        let mut ok = None;
        for (d, i) in index.iter().enumerate() {
            if !inside[d]
                && let Some(w) = self.within(i, &view.dims[d])
            {
                ok = self.both(ok, w);
            }
            let far = self.int_mul(i, &view.strides[d]);
            place = self.int_add(&place, &far);
        }
        (place, ok)
    }

    /// `load`, one element after another.
    pub(crate) fn load_elements(
        &mut self,
        inst: &Inst,
        map: &TileMap,
        inside: &[bool],
        pad: Num,
    ) -> Text<()> {
        let view = self.view(inst.operands[0])?;
        let rest = &inst.operands[1..];
        let index = rest[..inside.len()].iter().map(|&v| self.scalar(v)).collect::<Text<Vec<_>>>()?;
        let mask = rest.get(inside.len()).map(|&m| self.bytes(m)).transpose()?;
        let shape = self.shape(inst.results[0]);
        self.filled_by(inst.results[0], view.dtype, &mut |e, at| {
            let (place, mut ok) = e.element_of(&view, &index, map, inside, at);
            if let Some(m) = &mask {
                let set = e.is_set(m, &shape, at);
                ok = e.both(ok, set);
            }
            Ok(e.read((&view.buffer, &view.ty, view.dtype), &place, ok, pad))
        })
    }

    /// `store`, one element after another.
    pub(crate) fn store_elements(&mut self, inst: &Inst, map: &TileMap, inside: &[bool]) -> Text<()> {
        let view = self.view(inst.operands[0])?;
        let rest = &inst.operands[2..];
        let index = rest[..inside.len()].iter().map(|&v| self.scalar(v)).collect::<Text<Vec<_>>>()?;
        let mask = rest.get(inside.len()).map(|&m| self.bytes(m)).transpose()?;
        let (value, shape) = (self.bytes(inst.operands[1])?, self.shape(inst.operands[1]));
        self.each(&shape, &mut |e, at| {
            let (place, mut ok) = e.element_of(&view, &index, map, inside, at);
            if let Some(m) = &mask {
                let set = e.is_set(m, &shape, at);
                ok = e.both(ok, set);
            }
            let v = e.element(&value, view.dtype, &shape, at);
            let v = if shape.is_empty() { e.bytes_of(v, view.dtype, &[]) } else { v };
            e.write((&view.buffer, &view.ty), &place, ok, &v);
            Ok(())
        })
    }
}
