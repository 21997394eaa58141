//! Arithmetic on scalars of 64 bits, with what is known of them.

use super::Emit;

impl Emit<'_> {
    pub(crate) fn int(&mut self, value: i64) -> String {
        let name = self.fresh();
        self.line(format!("{name} = arith.constant {value} : i64"));
        self.known.insert(name.clone(), value);
        if value >= 0 {
            self.not_negative.insert(name.clone());
        }
        name
    }
    pub(crate) fn int_op(&mut self, op: &str, a: &str, b: &str) -> String {
        if let (Some(&x), Some(&y)) = (self.known.get(a), self.known.get(b)) {
            let folded = match op {
                "minsi" => Some(x.min(y)),
                "maxsi" => Some(x.max(y)),
                "divsi" => x.checked_div(y),
                "remsi" => x.checked_rem(y),
                _ => None,
            };
            if let Some(r) = folded {
                return self.int(r);
            }
        }
        let name = self.fresh();
        self.line(format!("{name} = arith.{op} {a}, {b} : i64"));
        let both = self.not_negative.contains(a) && self.not_negative.contains(b);
        let either = self.not_negative.contains(a) || self.not_negative.contains(b);
        let positive = match op {
            "addi" | "muli" | "minsi" | "divsi" | "remsi" | "ceildivsi" => both,
            "maxsi" => either,
            _ => false,
        };
        if positive {
            self.not_negative.insert(name.clone());
        }
        name
    }
    pub(crate) fn int_add(&mut self, a: &str, b: &str) -> String {
        match (self.known.get(a).copied(), self.known.get(b).copied()) {
            (Some(x), Some(y)) => self.int(x.wrapping_add(y)),
            (Some(0), None) => b.to_string(),
            (None, Some(0)) => a.to_string(),
            _ => self.int_op("addi", a, b),
        }
    }
    pub(crate) fn int_sub(&mut self, a: &str, b: &str) -> String {
        match (self.known.get(a).copied(), self.known.get(b).copied()) {
            (Some(x), Some(y)) => self.int(x.wrapping_sub(y)),
            (None, Some(0)) => a.to_string(),
            _ => self.int_op("subi", a, b),
        }
    }
    pub(crate) fn int_mul(&mut self, a: &str, b: &str) -> String {
        match (self.known.get(a).copied(), self.known.get(b).copied()) {
            (Some(x), Some(y)) => self.int(x.wrapping_mul(y)),
            (Some(1), None) => b.to_string(),
            (None, Some(1)) => a.to_string(),
            (Some(0), _) | (_, Some(0)) => self.int(0),
            _ => self.int_op("muli", a, b),
        }
    }
    /// `ceil(a / b)` for b above 0 and any a; for a below 0 any value not above 0.
    pub(crate) fn int_ceil_div(&mut self, a: &str, b: &str) -> String {
        match self.known.get(b).copied() {
            Some(1) => a.to_string(),
            Some(k) => {
                let more = self.int(k - 1);
                let sum = self.int_add(a, &more);
                self.int_op("divsi", &sum, b)
            }
            None => self.int_op("ceildivsi", a, b),
        }
    }
    pub(crate) fn index(&mut self, a: &str) -> String {
        let name = self.fresh();
        self.line(format!("{name} = arith.index_cast {a} : i64 to index"));
        name
    }
    /// An index value or a number as i64.
    pub(crate) fn as_int(&mut self, a: &str) -> String {
        match a.parse() {
            Ok(k) => self.int(k),
            Err(_) => {
                let name = self.fresh();
                self.line(format!("{name} = arith.index_cast {a} : index to i64"));
                name
            }
        }
    }
    pub(crate) fn pred(&mut self, p: &str, a: &str, b: &str) -> String {
        let name = self.fresh();
        self.line(format!("{name} = arith.cmpi {p}, {a}, {b} : i64"));
        name
    }
}
