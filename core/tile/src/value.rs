//! Attribute values: as trees, the common ground of the table and the text form, and as bytes.

use tongtu_tensor::{CastMode, Combiner, DType, Num, Overflow, Rounding};

use crate::binary::{Reader, Writer, codes};
use crate::error::TileError;
use crate::op::{Factor, Ordering, Scope, TileMap};

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A name: an element type, a combiner, `true`.
    Word(String),
    /// A number.
    Num(Num),
    /// Values in brackets.
    List(Vec<Value>),
    /// `size@dim*step`, or `size@_`.
    Factor(Factor),
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::Word(w) => f.write_str(w),
            Value::Num(n) => f.write_str(&num_text(*n)),
            Value::List(items) => {
                write!(f, "[")?;
                for (i, v) in items.iter().enumerate() {
                    write!(f, "{}{v}", if i == 0 { "" } else { ", " })?;
                }
                write!(f, "]")
            }
            Value::Factor(Factor { size, dim: None, step: 1 }) => write!(f, "{size}@_"),
            Value::Factor(Factor { size, dim: None, step }) => write!(f, "{size}@_*{step}"),
            Value::Factor(Factor { size, dim: Some(d), step: 1 }) => write!(f, "{size}@{d}"),
            Value::Factor(Factor { size, dim: Some(d), step }) => write!(f, "{size}@{d}*{step}"),
        }
    }
}

fn num_text(n: Num) -> String {
    match n {
        Num::Float(x) if x.is_nan() => "nan".into(),
        Num::Float(x) => format!("{x:?}"),
        Num::Int(i) => i.to_string(),
    }
}

/// A type that attributes have.
pub(crate) trait Attr: Sized {
    /// What its values are, in words.
    const KIND: &'static str;
    /// Writes the binary form.
    fn write(&self, w: &mut Writer);
    /// Reads the binary form.
    fn read(r: &mut Reader) -> Result<Self, TileError>;
    fn to_value(&self) -> Value;
    fn from_value(v: &Value) -> Option<Self>;
    /// The value that text leaves out.
    fn absent() -> Option<Self> {
        None
    }
}

/// The value to print; `None` for the one that text leaves out.
pub(crate) fn text_value<A: Attr + PartialEq>(a: &A) -> Option<Value> {
    if A::absent().as_ref() == Some(a) { None } else { Some(a.to_value()) }
}

/// The attribute called `name`.
pub(crate) fn read_value<A: Attr>(attributes: &[(String, Value)], name: &str) -> Result<A, String> {
    match attributes.iter().find(|(n, _)| n == name) {
        Some((_, v)) => A::from_value(v).ok_or_else(|| format!("attribute '{name}' can't be {v}")),
        None => A::absent().ok_or_else(|| format!("attribute '{name}' is missing")),
    }
}

fn word<T>(v: &Value, find: impl FnOnce(&str) -> Option<T>) -> Option<T> {
    match v {
        Value::Word(w) => find(w),
        _ => None,
    }
}

fn int(v: &Value) -> Option<i128> {
    match v {
        Value::Num(Num::Int(n)) => Some(*n),
        _ => None,
    }
}

fn list<T>(v: &Value, each: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
    match v {
        Value::List(items) => items.iter().map(each).collect(),
        _ => None,
    }
}

impl Attr for DType {
    const KIND: &'static str = "element type";
    fn write(&self, w: &mut Writer) {
        w.byte(codes::dtype(*self));
    }
    fn read(r: &mut Reader) -> Result<DType, TileError> {
        r.code("element type", codes::dtype_of)
    }
    fn to_value(&self) -> Value {
        Value::Word(self.name().into())
    }
    fn from_value(v: &Value) -> Option<DType> {
        word(v, |w| w.parse().ok())
    }
}

impl Attr for Combiner {
    const KIND: &'static str = "combiner";
    fn write(&self, w: &mut Writer) {
        w.byte(codes::combiner(*self));
    }
    fn read(r: &mut Reader) -> Result<Combiner, TileError> {
        r.code("combiner", codes::combiner_of)
    }
    fn to_value(&self) -> Value {
        Value::Word(self.name().into())
    }
    fn from_value(v: &Value) -> Option<Combiner> {
        word(v, Combiner::from_name)
    }
}

impl Attr for usize {
    const KIND: &'static str = "integer";
    fn write(&self, w: &mut Writer) {
        w.size(*self);
    }
    fn read(r: &mut Reader) -> Result<usize, TileError> {
        r.size()
    }
    fn to_value(&self) -> Value {
        Value::Num(Num::Int(*self as i128))
    }
    fn from_value(v: &Value) -> Option<usize> {
        usize::try_from(int(v)?).ok()
    }
}

impl Attr for bool {
    const KIND: &'static str = "`true` or `false`";
    fn write(&self, w: &mut Writer) {
        w.byte(u8::from(*self));
    }
    fn read(r: &mut Reader) -> Result<bool, TileError> {
        r.code("truth value", codes::flag_of)
    }
    fn to_value(&self) -> Value {
        Value::Word(self.to_string())
    }
    fn from_value(v: &Value) -> Option<bool> {
        word(v, |w| w.parse().ok())
    }
    fn absent() -> Option<bool> {
        Some(false)
    }
}

impl Attr for Num {
    const KIND: &'static str = "number";
    fn write(&self, w: &mut Writer) {
        w.num(*self);
    }
    fn read(r: &mut Reader) -> Result<Num, TileError> {
        r.num()
    }
    fn to_value(&self) -> Value {
        Value::Num(*self)
    }
    fn from_value(v: &Value) -> Option<Num> {
        match v {
            Value::Num(n) => Some(*n),
            _ => None,
        }
    }
}

impl Attr for Vec<usize> {
    const KIND: &'static str = "list of integers";
    fn write(&self, w: &mut Writer) {
        w.size(self.len());
        self.iter().for_each(|n| w.size(*n));
    }
    fn read(r: &mut Reader) -> Result<Vec<usize>, TileError> {
        r.list(Reader::size)
    }
    fn to_value(&self) -> Value {
        Value::List(self.iter().map(Attr::to_value).collect())
    }
    fn from_value(v: &Value) -> Option<Vec<usize>> {
        list(v, Attr::from_value)
    }
}

impl Attr for Vec<bool> {
    const KIND: &'static str = "list of `true` and `false`";
    fn write(&self, w: &mut Writer) {
        w.size(self.len());
        self.iter().for_each(|b| b.write(w));
    }
    fn read(r: &mut Reader) -> Result<Vec<bool>, TileError> {
        r.list(bool::read)
    }
    fn to_value(&self) -> Value {
        Value::List(self.iter().map(Attr::to_value).collect())
    }
    fn from_value(v: &Value) -> Option<Vec<bool>> {
        list(v, Attr::from_value)
    }
}

impl Attr for TileMap {
    const KIND: &'static str = "list of factors";
    fn write(&self, w: &mut Writer) {
        w.size(self.0.len());
        for factors in &self.0 {
            w.size(factors.len());
            for f in factors {
                w.size(f.size);
                w.size(f.dim.map_or(0, |d| d.saturating_add(1)));
                w.signed(f.step.into());
            }
        }
    }
    fn read(r: &mut Reader) -> Result<TileMap, TileError> {
        let factor = |r: &mut Reader| {
            let (size, dim) = (r.size()?, r.size()?.checked_sub(1));
            let at = r.at();
            let step = i64::try_from(r.signed()?).map_err(|_| r.broken(at, "a step beyond 64 bits"))?;
            Ok(Factor { size, dim, step })
        };
        r.list(|r| r.list(factor)).map(TileMap)
    }
    fn to_value(&self) -> Value {
        let dim = |factors: &Vec<Factor>| match &factors[..] {
            [one] => Value::Factor(*one),
            several => Value::List(several.iter().map(|f| Value::Factor(*f)).collect()),
        };
        Value::List(self.0.iter().map(dim).collect())
    }
    fn from_value(v: &Value) -> Option<TileMap> {
        let factor = |v: &Value| match v {
            Value::Factor(f) => Some(*f),
            _ => None,
        };
        let dim = |v: &Value| match v {
            Value::Factor(f) => Some(vec![*f]),
            other => list(other, factor),
        };
        list(v, dim).map(TileMap)
    }
}

impl Attr for CastMode {
    const KIND: &'static str = "`[overflow, rounding]`";
    fn write(&self, w: &mut Writer) {
        w.byte(codes::overflow(self.overflow));
        w.byte(codes::rounding(self.rounding));
    }
    fn read(r: &mut Reader) -> Result<CastMode, TileError> {
        let overflow = r.code("overflow", codes::overflow_of)?;
        Ok(CastMode { overflow, rounding: r.code("rounding", codes::rounding_of)? })
    }
    fn to_value(&self) -> Value {
        let overflow = match self.overflow {
            Overflow::Saturate => "saturate",
            Overflow::Format => "format",
        };
        let rounding = match self.rounding {
            Rounding::NearestEven => "nearest_even",
            Rounding::TowardZero => "toward_zero",
            Rounding::Down => "down",
            Rounding::Up => "up",
        };
        Value::List(vec![Value::Word(overflow.into()), Value::Word(rounding.into())])
    }
    fn from_value(v: &Value) -> Option<CastMode> {
        let Value::List(items) = v else { return None };
        let [overflow, rounding] = &items[..] else { return None };
        Some(CastMode {
            overflow: word(overflow, |w| match w {
                "saturate" => Some(Overflow::Saturate),
                "format" => Some(Overflow::Format),
                _ => None,
            })?,
            rounding: word(rounding, |w| match w {
                "nearest_even" => Some(Rounding::NearestEven),
                "toward_zero" => Some(Rounding::TowardZero),
                "down" => Some(Rounding::Down),
                "up" => Some(Rounding::Up),
                _ => None,
            })?,
        })
    }
    fn absent() -> Option<CastMode> {
        Some(CastMode::default())
    }
}

impl Attr for Ordering {
    const KIND: &'static str = "memory order";
    fn write(&self, w: &mut Writer) {
        w.byte(codes::ordering(*self));
    }
    fn read(r: &mut Reader) -> Result<Ordering, TileError> {
        r.code("memory order", codes::ordering_of)
    }
    fn to_value(&self) -> Value {
        Value::Word(
            match self {
                Ordering::Relaxed => "relaxed",
                Ordering::Acquire => "acquire",
                Ordering::Release => "release",
                Ordering::AcqRel => "acq_rel",
            }
            .into(),
        )
    }
    fn from_value(v: &Value) -> Option<Ordering> {
        word(v, |w| match w {
            "relaxed" => Some(Ordering::Relaxed),
            "acquire" => Some(Ordering::Acquire),
            "release" => Some(Ordering::Release),
            "acq_rel" => Some(Ordering::AcqRel),
            _ => None,
        })
    }
}

impl Attr for Scope {
    const KIND: &'static str = "scope";
    fn write(&self, w: &mut Writer) {
        w.byte(codes::scope(*self));
    }
    fn read(r: &mut Reader) -> Result<Scope, TileError> {
        r.code("scope", codes::scope_of)
    }
    fn to_value(&self) -> Value {
        Value::Word(
            match self {
                Scope::Device => "device",
                Scope::System => "system",
            }
            .into(),
        )
    }
    fn from_value(v: &Value) -> Option<Scope> {
        word(v, |w| match w {
            "device" => Some(Scope::Device),
            "system" => Some(Scope::System),
            _ => None,
        })
    }
}
