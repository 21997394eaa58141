//! Memory accessed element by element: by index tiles, under masks, and blocks that no window describes.

use tongtu_tensor::scalar::Binary;
use tongtu_tensor::{Combiner, DType, Num};
use tongtu_tile::{Inst, TileMap, Val};

use crate::emit::{Emit, Slot, Text, ViewSlot, constant, mlir, shaped};
use crate::legal::is_950;

impl Emit<'_> {
    /// Memory for a tile that is written in parts, and its type. Where the dims of what it holds are changed later, one chip's compiler
    /// moves a copy that this takes before the writes, unless they go through a view: `guarded` memory is one there.
    pub(crate) fn home(&mut self, shape: &[usize], element: &str, guarded: bool) -> (String, String) {
        let local = self.fresh();
        if !guarded || is_950(self.chip) {
            let ty = format!("memref<{}>", shaped(shape, element));
            self.line(format!("{local} = memref.alloc() : {ty}"));
            return (local, ty);
        }
        let flat = format!("memref<{}>", shaped(&[shape.iter().product()], element));
        self.line(format!("{local} = memref.alloc() : {flat}"));
        let list = |s: &[usize]| s.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        let strides: Vec<usize> = (1..=shape.len()).map(|d| shape[d..].iter().product()).collect();
        let (sizes, strides, view) = (list(shape), list(&strides), self.fresh());
        // A view of the same layout would be no view to it.
        let (offset, end) = match shape {
            [_] => {
                // Program instances count from 0, which it does not know.
                let (id, zero) = (self.fresh(), self.int(0));
                self.line(format!("{id} = arith.extsi %px : i32 to i64"));
                let none = self.int_op("minsi", &id, &zero);
                (self.index(&none), ", offset: ?")
            }
            _ => ("0".to_string(), ""),
        };
        let ty = format!("memref<{}, strided<[{strides}]{end}>>", shaped(shape, element));
        self.line(format!(
            "{view} = memref.reinterpret_cast {local} to offset: [{offset}], sizes: [{sizes}], strides: [{strides}] : {flat} to {ty}"
        ));
        (view, ty)
    }

    /// What such memory holds, as a tensor.
    pub(crate) fn written(&mut self, home: &str, ty: &str, shape: &[usize], element: &str) -> String {
        let (mut home, t) = (home.to_string(), self.fresh());
        let plain = format!("memref<{}>", shaped(shape, element));
        if ty != plain {
            let copy = self.fresh();
            self.line(format!("{copy} = memref.alloc() : {plain}"));
            self.line(format!("memref.copy {home}, {copy} : {ty} to {plain}"));
            home = copy;
        }
        self.line(format!("{t} = bufferization.to_tensor {home} restrict writable : {plain}"));
        t
    }

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
            if d.bits() < 8 {
                return s.read_packed(name, ty, d.bits(), at);
            }
            let (i, v) = (s.index(at), s.fresh());
            s.line(format!("{v} = memref.load {name}[{i}] : {ty}"));
            v
        };
        let Some(ok) = ok else { return load(self) };
        let (p, v) = (self.fresh(), self.fresh());
        let pad = constant(if d.bits() < 8 { DType::U8 } else { d }, pad);
        self.line(format!("{p} = arith.constant {pad} : {e}"));
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
    fn write(&mut self, buffer: (&str, &str, DType), at: &str, ok: Option<String>, value: &str) {
        let open = ok.is_some();
        if let Some(ok) = ok {
            self.line(format!("scf.if {ok} {{"));
            self.depth += 1;
        }
        let (name, ty, d) = buffer;
        if d.bits() < 8 {
            self.write_packed(name, ty, d.bits(), at, value);
        } else {
            let i = self.index(at);
            self.line(format!("memref.store {value}, {name}[{i}] : {ty}"));
        }
        if open {
            self.depth -= 1;
            self.line("}".to_string());
        }
    }

    fn byte_at(&mut self, name: &str, ty: &str, at: &str) -> String {
        let (i, byte, wide) = (self.index(at), self.fresh(), self.fresh());
        self.line(format!("{byte} = memref.load {name}[{i}] : {ty}"));
        self.line(format!("{wide} = arith.extui {byte} : i8 to i64"));
        wide
    }

    fn as_byte(&mut self, x: &str) -> String {
        let byte = self.fresh();
        self.line(format!("{byte} = arith.trunci {x} : i64 to i8"));
        byte
    }

    /// Where an element of less than a byte lies: its first byte, its last one, and its lowest bit in the first.
    fn packed_place(&mut self, bits: u32, at: &str) -> (String, String, String) {
        let (size, most, eight) = (self.int(bits.into()), self.int(i64::from(bits) - 1), self.int(3));
        let first = self.int_mul(at, &size);
        let last = self.int_add(&first, &most);
        let seven = self.int(7);
        let low = self.int_op("andi", &first, &seven);
        (self.int_op("shrui", &first, &eight), self.int_op("shrui", &last, &eight), low)
    }

    /// The code of an element of less than a byte.
    fn read_packed(&mut self, name: &str, ty: &str, bits: u32, at: &str) -> String {
        let (first, last, low) = self.packed_place(bits, at);
        let mut word = self.byte_at(name, ty, &first);
        if 8 % bits != 0 {
            // The same byte again where it ends there.
            let (more, eight) = (self.byte_at(name, ty, &last), self.int(8));
            let more = self.int_op("shli", &more, &eight);
            word = self.int_op("ori", &word, &more);
        }
        let mask = self.int((1 << bits) - 1);
        let code = self.int_op("shrui", &word, &low);
        let code = self.int_op("andi", &code, &mask);
        self.as_byte(&code)
    }

    /// Writes the code of an element of less than a byte; what shares its bytes stays.
    fn write_packed(&mut self, name: &str, ty: &str, bits: u32, at: &str, value: &str) {
        let (first, last, low) = self.packed_place(bits, at);
        let (mask, ones, wide) = (self.int((1 << bits) - 1), self.int(-1), self.fresh());
        self.line(format!("{wide} = arith.extui {value} : i8 to i64"));
        let (mask, new) = (self.int_op("shli", &mask, &low), self.int_op("shli", &wide, &low));
        let keep = self.int_op("xori", &mask, &ones);
        let put = |s: &mut Self, at: &str, keep: &str, new: &str| {
            let old = s.byte_at(name, ty, at);
            let old = s.int_op("andi", &old, keep);
            let all = s.int_op("ori", &old, new);
            let (byte, i) = (s.as_byte(&all), s.index(at));
            s.line(format!("memref.store {byte}, {name}[{i}] : {ty}"));
        };
        put(self, &first, &keep, &new);
        if 8 % bits != 0 {
            let more = self.pred("ne", &first, &last);
            self.line(format!("scf.if {more} {{"));
            self.depth += 1;
            let eight = self.int(8);
            let (keep, new) = (self.int_op("shrsi", &keep, &eight), self.int_op("shrui", &new, &eight));
            put(self, &last, &keep, &new);
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
        let (local, ty) = self.home(&shape, &mlir(d), shape.len() > 1);
        self.each(&shape, &mut |e, at| {
            let v = element(e, at)?;
            e.line(format!("memref.store {v}, {local}[{}] : {ty}", at.join(", ")));
            Ok(())
        })?;
        let t = self.written(&local, &ty, &shape, &mlir(d));
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
            e.write((&name, &ty, d), &j, ok, &v);
            Ok(())
        })
    }

    /// Integer quotients by the scalar unit, one element after another; 0 where the divisor is.
    pub(crate) fn quotients(&mut self, inst: &Inst) -> Text<()> {
        let (x, y) = (self.scalar(inst.operands[0])?, self.scalar(inst.operands[1])?);
        let (d, shape) = (self.dtype(inst.results[0]), self.shape(inst.results[0]));
        let wide = if d == DType::U64 { d } else { DType::I64 };
        self.filled_by(inst.results[0], d, &mut |s, at| {
            let (a, b) = (s.place(&x, d, &shape, at), s.place(&y, d, &shape, at));
            let q = s.guarded(Binary::Div, wide, &[], &a, &b, "i64");
            if d.bits() == 64 {
                return Ok(q);
            }
            let own = s.fresh();
            s.line(format!("{own} = arith.trunci {q} : i64 to {}", mlir(d)));
            Ok(own)
        })
    }

    /// `take_along`: an element of the operand at an index along a dim, 0 outside.
    pub(crate) fn take_along(&mut self, inst: &Inst, dim: usize) -> Text<()> {
        let (source, d) = (self.scalar(inst.operands[0])?, self.dtype(inst.operands[0]));
        let (index, id) = (self.scalar(inst.operands[1])?, self.dtype(inst.operands[1]));
        let (from, shape) = (self.shape(inst.operands[0]), self.shape(inst.operands[1]));
        let e = mlir(d);
        self.filled_by(inst.results[0], d, &mut |s, at| {
            let j = s.place(&index, id, &shape, at);
            let end = s.int(from[dim] as i64);
            let Some(ok) = s.within(&j, &end) else { return Ok(String::new()) };
            let (zero, v) = (s.fresh(), s.fresh());
            s.line(format!("{zero} = arith.constant {} : {e}", constant(d, Num::Int(0))));
            s.line(format!("{v} = scf.if {ok} -> ({e}) {{"));
            s.depth += 1;
            let mut place = at.to_vec();
            place[dim] = s.index(&j);
            let x = s.element(&source, d, &from, &place);
            s.line(format!("scf.yield {x} : {e}"));
            s.depth -= 1;
            s.line("} else {".to_string());
            s.line(format!("  scf.yield {zero} : {e}"));
            s.line("}".to_string());
            Ok(v)
        })
    }

    /// A reduction along dims or a scan along one, element by element: for pairs, and what the vendor's operations lack.
    pub(crate) fn combine_elements(
        &mut self,
        inst: &Inst,
        combiner: Combiner,
        along: &[usize],
        scan: Option<bool>,
    ) -> Text<()> {
        let shape = self.shape(inst.operands[0]);
        let tys: Vec<DType> = inst.operands.iter().map(|&v| self.dtype(v)).collect();
        let sources = inst.operands.iter().map(|&v| self.scalar(v)).collect::<Text<Vec<_>>>()?;
        let kept: Vec<usize> = (0..shape.len()).filter(|d| !along.contains(d)).collect();
        let to: Vec<usize> =
            if scan.is_some() { shape.clone() } else { kept.iter().map(|&d| shape[d]).collect() };
        let home: Vec<usize> = if to.is_empty() { vec![1] } else { to.clone() };
        let locals: Vec<(String, String)> =
            tys.iter().map(|&d| self.home(&home, &mlir(d), home.len() > 1)).collect();
        let outer: Vec<usize> = kept.iter().map(|&d| shape[d]).collect();
        let inner: Vec<usize> = along.iter().map(|&d| shape[d]).collect();
        let yields = tys.iter().map(|&d| mlir(d)).collect::<Vec<_>>().join(", ");
        self.each(&outer, &mut |s, lead| {
            // The place of the k-th element of the line: in the order of the scan.
            let place = |s: &mut Self, at: &[String]| -> Vec<String> {
                let mut place = vec![String::new(); shape.len()];
                kept.iter().zip(lead).for_each(|(&d, i)| place[d] = i.clone());
                for (&d, i) in along.iter().zip(at) {
                    place[d] = if scan == Some(true) {
                        let (last, back) = (s.index_constant(shape[d] - 1), s.fresh());
                        s.line(format!("{back} = arith.subi {last}, {i} : index"));
                        back
                    } else {
                        i.clone()
                    };
                }
                place
            };
            let put = |s: &mut Self, values: &[String], at: &[String]| {
                let at = if to.is_empty() { vec![s.index_constant(0)] } else { at.to_vec() };
                for (v, (name, ty)) in values.iter().zip(&locals) {
                    s.line(format!("memref.store {v}, {name}[{}] : {ty}", at.join(", ")));
                }
            };
            let take = |s: &mut Self, at: &[String]| -> Vec<String> {
                sources.iter().zip(&tys).map(|(t, &d)| s.element(t, d, &shape, at)).collect()
            };
            let zeros: Vec<String> = inner.iter().map(|_| s.index_constant(0)).collect();
            let first = place(s, &zeros);
            let mut now = take(s, &first);
            if scan.is_some() {
                put(s, &now, &first);
            }
            // Dim by dim: each loop carries what has been combined, its first turn taking the element that is there already.
            let total: usize = inner.iter().product();
            let (one, end) = (s.index_constant(1), s.index_constant(total));
            let names: Vec<String> = tys.iter().map(|_| s.fresh()).collect();
            let (k, r) = (s.fresh(), s.fresh());
            let pairs: Vec<String> = names.iter().zip(&now).map(|(n, v)| format!("{n} = {v}")).collect();
            let count = if tys.len() > 1 { format!(":{}", tys.len()) } else { String::new() };
            s.line(format!(
                "{r}{count} = scf.for {k} = {one} to {end} step {one} iter_args({}) -> ({yields}) {{",
                pairs.join(", ")
            ));
            s.depth += 1;
            // The coordinates of the k-th element, the last fastest.
            let mut at = vec![String::new(); inner.len()];
            let mut rest = k.clone();
            for (i, &n) in inner.iter().enumerate().rev() {
                if i == 0 {
                    at[i] = rest.clone();
                    break;
                }
                let (size, own, more) = (s.index_constant(n), s.fresh(), s.fresh());
                s.line(format!("{own} = arith.remsi {rest}, {size} : index"));
                s.line(format!("{more} = arith.divsi {rest}, {size} : index"));
                (at[i], rest) = (own, more);
            }
            let here = place(s, &at);
            let next = take(s, &here);
            now = s.combined(combiner, &tys, &names, &next)?;
            if scan.is_some() {
                put(s, &now, &here);
            }
            s.line(format!("scf.yield {} : {yields}", now.join(", ")));
            s.depth -= 1;
            s.line("}".to_string());
            if scan.is_none() {
                let results: Vec<String> = (0..tys.len())
                    .map(|i| if tys.len() > 1 { format!("{r}#{i}") } else { r.clone() })
                    .collect();
                put(s, &results, lead);
            }
            Ok(())
        })?;
        for ((&v, (name, ty)), &d) in inst.results.iter().zip(&locals).zip(&tys) {
            let t = self.written(name, ty, &home, &mlir(d));
            let t = self.reshaped(&t, &mlir(d), &home, &to);
            self.define(v, Slot::Value(t));
        }
        Ok(())
    }

    /// What has been combined so far, and one more element or pair.
    fn combined(&mut self, c: Combiner, tys: &[DType], a: &[String], b: &[String]) -> Text<Vec<String>> {
        let (d, e) = (tys[0], mlir(tys[0]));
        if let Some(op) = c.binary() {
            return Ok(vec![self.binary(op, d, &[], &a[0], &b[0], &e)?]);
        }
        let (greater, last) = (
            matches!(c, Combiner::ArgMax | Combiner::ArgMaxLast),
            matches!(c, Combiner::ArgMaxLast | Combiner::ArgMinLast),
        );
        let test = |s: &mut Self, op: &str, x: &str, y: &str, e: &str| {
            let name = s.fresh();
            s.line(format!("{name} = arith.{op}, {x}, {y} : {e}"));
            name
        };
        let both = |s: &mut Self, op: &str, x: &str, y: &str| {
            let name = s.fresh();
            s.line(format!("{name} = arith.{op} {x}, {y} : i1"));
            name
        };
        let sign = if d.is_signed() { "s" } else { "u" };
        let kind = match (d.is_float(), greater) {
            (true, true) => "cmpf ogt".to_string(),
            (true, false) => "cmpf olt".to_string(),
            (false, greater) => format!("cmpi {sign}{}", if greater { "gt" } else { "lt" }),
        };
        // Whether the new pair is the one.
        let (v, w, i, j) = (&b[0], &a[0], &b[1], &a[1]);
        let better = test(self, &kind, v, w, &e);
        let mut equal = test(self, if d.is_float() { "cmpf oeq" } else { "cmpi eq" }, v, w, &e);
        let before = test(self, if last { "cmpi sgt" } else { "cmpi slt" }, i, j, &mlir(tys[1]));
        let mut wins = better;
        if d.is_float() {
            // NaN is before all.
            let (nan, other) = (test(self, "cmpf uno", v, v, &e), test(self, "cmpf uno", w, w, &e));
            let two = both(self, "andi", &nan, &other);
            equal = both(self, "ori", &equal, &two);
            let one = both(self, "xori", &nan, &two);
            wins = both(self, "ori", &wins, &one);
        }
        let by_index = both(self, "andi", &equal, &before);
        let wins = both(self, "ori", &wins, &by_index);
        let mut choose = |x: &str, y: &str, d: DType| {
            let name = self.fresh();
            self.line(format!("{name} = arith.select {wins}, {x}, {y} : {}", mlir(d)));
            name
        };
        Ok(vec![choose(v, w, tys[0]), choose(i, j, tys[1])])
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
        // Where memory is read between the writes the vendor's compiler fails on elements of a tile that no memory holds.
        let home = if view.dtype.bits() < 8 && !shape.is_empty() {
            let (home, ty) = (self.fresh(), format!("memref<{}>", shaped(&shape, "i8")));
            self.line(format!("{home} = memref.alloc() : {ty}"));
            self.put_home(&value, &home, &format!("tensor<{}>", shaped(&shape, "i8")), &ty);
            Some((home, ty))
        } else {
            None
        };
        self.each(&shape, &mut |e, at| {
            let (place, mut ok) = e.element_of(&view, &index, map, inside, at);
            if let Some(m) = &mask {
                let set = e.is_set(m, &shape, at);
                ok = e.both(ok, set);
            }
            let v = match &home {
                Some((home, ty)) => {
                    let v = e.fresh();
                    e.line(format!("{v} = memref.load {home}[{}] : {ty}", at.join(", ")));
                    v
                }
                None => e.element(&value, view.dtype, &shape, at),
            };
            let v = if shape.is_empty() { e.bytes_of(v, view.dtype, &[]) } else { v };
            e.write((&view.buffer, &view.ty, view.dtype), &place, ok, &v);
            Ok(())
        })
    }
}
