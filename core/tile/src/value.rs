//! Attribute values as trees, the common ground of the table and the text form.

use tongtu_tensor::{CastMode, Combiner, DType, Num, Overflow, Rounding};

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
    fn to_value(&self) -> Value {
        Value::Word(self.name().into())
    }
    fn from_value(v: &Value) -> Option<DType> {
        word(v, |w| w.parse().ok())
    }
}

impl Attr for Combiner {
    fn to_value(&self) -> Value {
        Value::Word(self.name().into())
    }
    fn from_value(v: &Value) -> Option<Combiner> {
        word(v, Combiner::from_name)
    }
}

impl Attr for usize {
    fn to_value(&self) -> Value {
        Value::Num(Num::Int(*self as i128))
    }
    fn from_value(v: &Value) -> Option<usize> {
        usize::try_from(int(v)?).ok()
    }
}

impl Attr for bool {
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
    fn to_value(&self) -> Value {
        Value::List(self.iter().map(Attr::to_value).collect())
    }
    fn from_value(v: &Value) -> Option<Vec<usize>> {
        list(v, Attr::from_value)
    }
}

impl Attr for Vec<bool> {
    fn to_value(&self) -> Value {
        Value::List(self.iter().map(Attr::to_value).collect())
    }
    fn from_value(v: &Value) -> Option<Vec<bool>> {
        list(v, Attr::from_value)
    }
}

impl Attr for TileMap {
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
