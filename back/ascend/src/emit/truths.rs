//! Truth values: bytes in memory, bits in tiles, and on one chip another kind for long integers.

use tongtu_tensor::DType;

use super::{Emit, mlir, shaped, ty_text};
use crate::legal;

impl Emit<'_> {
    /// Bytes read from memory as truth values.
    pub(crate) fn truth_values(&mut self, t: String, d: DType, shape: &[usize]) -> String {
        if !d.is_bool() {
            return t;
        }
        let bytes =
            if shape.is_empty() { "i8".to_string() } else { format!("tensor<{}>", shaped(shape, "i8")) };
        let (zero, name) = (self.fresh(), self.fresh());
        let literal = if shape.is_empty() { "0".to_string() } else { "dense<0>".to_string() };
        self.line(format!("{zero} = arith.constant {literal} : {bytes}"));
        self.line(format!("{name} = arith.cmpi ne, {t}, {zero} : {bytes}"));
        self.read_as.insert(name.clone(), t);
        name
    }

    /// Whether the truth values of long integers are not those of others: on one chip they are bytes for some of its operations.
    pub(super) fn splits_truths(&self, shape: &[usize]) -> bool {
        !shape.is_empty() && !legal::is_950(self.chip)
    }

    /// Truth values of a comparison as those of any other.
    pub(super) fn short_truths(&mut self, t: String, of: DType, shape: &[usize]) -> String {
        if mlir(of) != "i64" || !self.splits_truths(shape) {
            return t;
        }
        let (long, int) =
            (format!("tensor<{}>", shaped(shape, "i64")), format!("tensor<{}>", shaped(shape, "i32")));
        let [one, zero, chosen, cut, none, name] = [(); 6].map(|()| self.fresh());
        self.line(format!("{one} = arith.constant dense<1> : {long}"));
        self.line(format!("{zero} = arith.constant dense<0> : {long}"));
        self.line(format!(
            "{chosen} = arith.select {t}, {one}, {zero} : {}, {long}",
            ty_text(DType::Bool, shape)
        ));
        self.line(format!("{cut} = arith.trunci {chosen} : {long} to {int}"));
        self.line(format!("{none} = arith.constant dense<0> : {int}"));
        self.line(format!("{name} = arith.cmpi ne, {cut}, {none} : {int}"));
        self.long.insert(name.clone(), t);
        name
    }

    /// Truth values to choose long integers by.
    pub(super) fn long_truths(&mut self, t: &str, shape: &[usize]) -> String {
        if let Some(own) = self.long.get(t) {
            return own.clone();
        }
        let (long, int) =
            (format!("tensor<{}>", shaped(shape, "i64")), format!("tensor<{}>", shaped(shape, "i32")));
        let [wide, far, zero, name] = [(); 4].map(|()| self.fresh());
        self.line(format!("{wide} = arith.extui {t} : {} to {int}", ty_text(DType::Bool, shape)));
        self.line(format!("{far} = arith.extsi {wide} : {int} to {long}"));
        self.line(format!("{zero} = arith.constant dense<0> : {long}"));
        self.line(format!("{name} = arith.cmpi ne, {far}, {zero} : {long}"));
        name
    }

    /// Truth values as bytes.
    pub(crate) fn bytes_of(&mut self, t: String, d: DType, shape: &[usize]) -> String {
        if !d.is_bool() {
            return t;
        }
        if let Some(bytes) = self.read_as.get(&t) {
            return bytes.clone();
        }
        let bytes =
            if shape.is_empty() { "i8".to_string() } else { format!("tensor<{}>", shaped(shape, "i8")) };
        let name = self.fresh();
        self.line(format!("{name} = arith.extui {t} : {} to {bytes}", ty_text(d, shape)));
        name
    }
}
