//! Elementwise arithmetic and conversions.

use tongtu_tensor::scalar::{Binary, Compare, Unary};
use tongtu_tensor::{DType, Num};
use tongtu_tile::Inst;

use super::{Emit, Text, constant, element, mlir, ty_text};
use crate::legal::is_950;

impl Emit<'_> {
    pub(super) fn unary(
        &mut self,
        inst: &Inst,
        u: Unary,
        d: DType,
        x: &str,
        ty: &str,
        name: &str,
    ) -> Text<()> {
        let shape = self.shape(inst.operands[0]);
        let from = ty_text(d, &shape);
        let text = match u {
            Unary::Neg if d.is_float() => format!("arith.negf {x} : {ty}"),
            Unary::Abs if d.is_float() => format!("math.absf {x} : {ty}"),
            Unary::Abs => format!("math.absi {x} : {ty}"),
            Unary::Neg | Unary::Not => {
                let (value, op) = match u {
                    Unary::Neg => (Num::Int(0), "subi"),
                    _ if d.is_bool() => (Num::Int(1), "xori"),
                    _ => (Num::Int(-1), "xori"),
                };
                let (c, k) = (self.fresh(), constant(d, value));
                let k = if shape.is_empty() { k } else { format!("dense<{k}>") };
                self.line(format!("{c} = arith.constant {k} : {ty}"));
                format!("arith.{op} {c}, {x} : {ty}")
            }
            Unary::IsNan => format!("arith.cmpf une, {x}, {x} : {from}"),
            u => format!("math.{} {x} : {ty}", u.name()),
        };
        self.line(format!("{name} = {text}"));
        Ok(())
    }

    pub(crate) fn binary(
        &mut self,
        b: Binary,
        d: DType,
        shape: &[usize],
        x: &str,
        y: &str,
        ty: &str,
    ) -> Text<String> {
        if shape.is_empty() && d == DType::I64 {
            match b {
                Binary::Add => return Ok(self.int_add(x, y)),
                Binary::Sub => return Ok(self.int_sub(x, y)),
                Binary::Mul => return Ok(self.int_mul(x, y)),
                Binary::Max => return Ok(self.int_op("maxsi", x, y)),
                Binary::Min => return Ok(self.int_op("minsi", x, y)),
                Binary::Div if self.known.get(y).is_some_and(|&k| k > 0) => {
                    return Ok(self.int_op("divsi", x, y));
                }
                _ => {}
            }
        }
        let (float, signed) = (d.is_float(), d.is_signed());
        let op = match b {
            Binary::Add if float => "addf",
            Binary::Sub if float => "subf",
            Binary::Mul if float => "mulf",
            Binary::Div if float => "divf",
            Binary::Max if float => "maximumf",
            Binary::Min if float => "minimumf",
            Binary::MaxNum if float => "maxnumf",
            Binary::MinNum if float => "minnumf",
            Binary::Add => "addi",
            Binary::Sub => "subi",
            Binary::Mul => "muli",
            Binary::Max | Binary::MaxNum => {
                if signed {
                    "maxsi"
                } else {
                    "maxui"
                }
            }
            Binary::Min | Binary::MinNum => {
                if signed {
                    "minsi"
                } else {
                    "minui"
                }
            }
            Binary::And => "andi",
            Binary::Or => "ori",
            Binary::Xor => "xori",
            Binary::Div | Binary::Shl | Binary::Shr => return Ok(self.guarded(b, d, shape, x, y, ty)),
            _ => return self.internal("a binary operation without a translation"),
        };
        let name = self.fresh();
        self.line(format!("{name} = arith.{op} {x}, {y} : {ty}"));
        Ok(name)
    }

    /// Division and shifts, which MLIR leaves undefined for some operands: those are replaced, and the result chosen.
    pub(crate) fn guarded(
        &mut self,
        b: Binary,
        d: DType,
        shape: &[usize],
        x: &str,
        y: &str,
        ty: &str,
    ) -> String {
        let constant_of = |e: &mut Self, n: i128| {
            let (name, k) = (e.fresh(), constant(d, Num::Int(n)));
            let k = if shape.is_empty() { k } else { format!("dense<{k}>") };
            e.line(format!("{name} = arith.constant {k} : {ty}"));
            name
        };
        let truth = ty_text(DType::Bool, shape);
        let select = |e: &mut Self, p: &str, a: &str, b: &str| {
            let name = e.fresh();
            let condition = if shape.is_empty() { String::new() } else { format!("{truth}, ") };
            e.line(format!("{name} = arith.select {p}, {a}, {b} : {condition}{ty}"));
            name
        };
        let plain = |e: &mut Self, op: &str, a: &str, b: &str| {
            let name = e.fresh();
            e.line(format!("{name} = arith.{op} {a}, {b} : {ty}"));
            name
        };
        let signed = d.is_signed();
        // One chip's compiler shifts the sign in where a tile is shifted logically: what comes in is masked out.
        let masks = !signed && !shape.is_empty() && !is_950(self.chip);
        let safe = match (b, self.splats.get(y).copied()) {
            (Binary::Div, Some(k)) if k > 0 && signed => Some("divsi"),
            (Binary::Div, Some(k)) if k > 0 => Some("divui"),
            (Binary::Shl, Some(k)) if (0..d.bits().into()).contains(&k) => Some("shli"),
            (Binary::Shr, Some(k)) if (0..d.bits().into()).contains(&k) => {
                if masks && k > 0 {
                    let mask = constant_of(self, (1 << (i128::from(d.bits()) - k)) - 1);
                    let r = plain(self, "shrsi", x, y);
                    return plain(self, "andi", &r, &mask);
                }
                Some(if signed { "shrsi" } else { "shrui" })
            }
            _ => None,
        };
        if let Some(op) = safe {
            return plain(self, op, x, y);
        }
        let zero = constant_of(self, 0);
        if b == Binary::Div {
            let one = constant_of(self, 1);
            let bad = plain(self, "cmpi eq,", y, &zero);
            let safe = select(self, &bad, &one, y);
            let q = if d.is_signed() {
                // x / -1 is -x, which wraps.
                let minus = constant_of(self, -1);
                let flips = plain(self, "cmpi eq,", y, &minus);
                let safe = select(self, &flips, &one, &safe);
                let q = plain(self, "divsi", x, &safe);
                let negated = plain(self, "subi", &zero, x);
                select(self, &flips, &negated, &q)
            } else {
                plain(self, "divui", x, &safe)
            };
            return select(self, &bad, &zero, &q);
        }
        let width = constant_of(self, d.bits().into());
        // Amounts of half the type's range and more are negative here, so that no unsigned comparison is needed.
        let (above, below) = (plain(self, "cmpi sge,", y, &zero), plain(self, "cmpi slt,", y, &width));
        let in_range = self.fresh();
        self.line(format!("{in_range} = arith.andi {above}, {below} : {truth}"));
        let last = constant_of(self, i128::from(d.bits()) - 1);
        let (op, other) = match b {
            Binary::Shl => ("shli", &zero),
            _ if d.is_signed() => ("shrsi", &last),
            _ => ("shrui", &zero),
        };
        let safe = select(self, &in_range, y, if op == "shrsi" { other } else { &zero });
        if op == "shrui" && masks {
            let (ones, one) = (constant_of(self, -1), constant_of(self, 1));
            let r = plain(self, "shrsi", x, &safe);
            let left = plain(self, "subi", &last, &safe);
            let high = plain(self, "shli", &ones, &left);
            let high = plain(self, "shli", &high, &one);
            let mask = plain(self, "xori", &high, &ones);
            let r = plain(self, "andi", &r, &mask);
            return select(self, &in_range, &r, &zero);
        }
        let r = plain(self, op, x, &safe);
        if op == "shrsi" { r } else { select(self, &in_range, &r, &zero) }
    }

    pub(super) fn cast(
        &mut self,
        inst: &Inst,
        from: DType,
        to: DType,
        x: &str,
        from_ty: &str,
        ty: &str,
    ) -> Text<String> {
        // What only changes the name of a part is a part.
        if mlir(from) == mlir(to) && self.parts.contains(&inst.operands[0]) {
            self.parts.insert(inst.results[0]);
        }
        if from == to {
            return Ok(x.to_string());
        }
        let shape = self.shape(inst.results[0]);
        let name = self.fresh();
        if to.is_bool() {
            let (zero, k) = (self.fresh(), constant(from, Num::Int(0)));
            let k = if shape.is_empty() { k } else { format!("dense<{k}>") };
            self.line(format!("{zero} = arith.constant {k} : {from_ty}"));
            let op = if from.is_float() { "cmpf une," } else { "cmpi ne," };
            self.line(format!("{name} = arith.{op} {x}, {zero} : {from_ty}"));
            if self.truths.contains(&inst.operands[0]) {
                self.read_as.insert(name.clone(), x.to_string());
            }
            return Ok(self.short_truths(name, from, &shape));
        }
        if from.is_bool() && mlir(to) == "i8" {
            return Ok(self.bytes_of(x.to_string(), from, &shape));
        }
        let op = match (from.is_float(), to.is_float()) {
            (true, true) if from.bits() < to.bits() => "extf",
            (true, true) if from.bits() > to.bits() => "truncf",
            (true, true) => {
                // Types of equal width: through f32.
                let middle = ty_text(DType::F32, &shape);
                let wide = self.fresh();
                self.line(format!("{wide} = arith.extf {x} : {from_ty} to {middle}"));
                self.line(format!("{name} = arith.truncf {wide} : {middle} to {ty}"));
                return Ok(name);
            }
            (true, false) => {
                if to.is_signed() {
                    "fptosi"
                } else {
                    "fptoui"
                }
            }
            (false, true) => {
                if from.is_signed() {
                    "sitofp"
                } else {
                    "uitofp"
                }
            }
            (false, false) => match element(from).len().cmp(&element(to).len()) {
                _ if element(from) == element(to) => return Ok(x.to_string()),
                _ if !from.is_bool() && from.bits() > to.bits() => "trunci",
                _ if from.is_signed() => "extsi",
                _ => "extui",
            },
        };
        // Some tiles are extended with their sign all the same.
        if op == "extui" && !from.is_bool() && !shape.is_empty() {
            let (wide, mask) = (self.fresh(), self.fresh());
            let bits = (1i128 << from.bits()) - 1;
            self.line(format!("{wide} = arith.extsi {x} : {from_ty} to {ty}"));
            self.line(format!("{mask} = arith.constant dense<{}> : {ty}", constant(to, Num::Int(bits))));
            self.line(format!("{name} = arith.andi {wide}, {mask} : {ty}"));
            return Ok(name);
        }
        self.line(format!("{name} = arith.{op} {x} : {from_ty} to {ty}"));
        Ok(name)
    }
}

pub(super) fn compare(c: Compare, d: DType) -> (&'static str, &'static str) {
    if d.is_float() {
        return (
            "cmpf",
            match c {
                Compare::Eq => "oeq,",
                Compare::Ne => "une,",
                Compare::Lt => "olt,",
                Compare::Le => "ole,",
                Compare::Gt => "ogt,",
                Compare::Ge => "oge,",
            }
            .trim_end_matches(','),
        );
    }
    let p = match (c, d.is_signed()) {
        (Compare::Eq, _) => "eq",
        (Compare::Ne, _) => "ne",
        (Compare::Lt, true) => "slt",
        (Compare::Le, true) => "sle",
        (Compare::Gt, true) => "sgt",
        (Compare::Ge, true) => "sge",
        (Compare::Lt, false) => "ult",
        (Compare::Le, false) => "ule",
        (Compare::Gt, false) => "ugt",
        (Compare::Ge, false) => "uge",
    };
    ("cmpi", p)
}
