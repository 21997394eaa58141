//! The host library: operations on values that are not numbers, by name.
//!
//! The evaluator and the runtime call the same functions, [`call`]. Operands in parentheses, attributes in braces:
//!
//! | name | meaning |
//! |---|---|
//! | `identity` (x) | the operand |
//! | `strings_constant` () {`value`: list of strings} | the elements; dims from the result type, which has constants only |
//! | `strings_take` (s…, positions) | for each `i64` position an element, counted row-major through all string operands one after another; an empty string for positions outside. Any movement of elements is this, of positions moved by tensor operations |
//! | `strings_equal` (a, b) | bool, broadcasting |
//! | `strings_concat` (a, b) | texts joined, broadcasting |
//! | `strings_split` (x) {`delimiter`, `maxsplit`: int} | parts `[…, most]`, padded with empty strings, and counts `i64`. An empty or missing delimiter splits at runs of white space; a missing or negative `maxsplit` does not limit |
//! | `strings_normalize` (x) {`case`: `none`, `lower` or `upper`, `case_sensitive`: bool, `stopwords`: list} | stop words dropped, case changed; one empty string if nothing is left. Rank 1, or 2 with one row |
//! | `strings_match` (x) {`pattern`} | bool: the whole element matches the regular expression |
//! | `strings_lookup` (x) {`keys`: list, `default`: int} | `i64`: place of the element in the list, else the default |
//! | `strings_from_numbers` (x) | shortest decimal that reads back, as NumPy writes it |
//! | `strings_to_numbers` (x) {`to`: element type} | reads decimal numbers, `nan`, `inf` |
//! | `sequence_construct` (x…) | a sequence |
//! | `sequence_empty` () | an empty one |
//! | `sequence_at` (s, i) | an element; negative positions count from the end |
//! | `sequence_insert` (s, x, maybe i) | with an element put before position `i`, or at the end |
//! | `sequence_erase` (s, maybe i) | without element `i`, or the last |
//! | `sequence_length` (s) | `i64` scalar |
//! | `sequence_from_split` (x, maybe split) {`axis`: int, `keep`: bool} | parts of a tensor along a dim: of the given length or lengths, by default 1, then without the dim unless kept |
//! | `sequence_concat` (s) {`axis`: int, `new_axis`: bool} | the elements joined along a dim, or stacked along a new one |
//! | `optional_construct` (one or no x) | an optional |
//! | `optional_has` (x) | bool scalar |
//! | `optional_get` (x) | the element; of a value that is no optional, itself |

use tongtu_tensor::{CastMode, DType, Num, Overflow, Tensor, TensorError};

use crate::graph::Type;
use crate::op::AttrValue;

/// A value as it lives on the host.
#[derive(Clone, Debug)]
pub enum HostValue {
    /// Numbers.
    Tensor(Tensor),
    /// Strings, in row-major order.
    Strings {
        /// Lengths of the dims.
        shape: Vec<usize>,
        /// Elements.
        data: Vec<String>,
    },
    /// Values of one type.
    Sequence(Vec<HostValue>),
    /// A value or nothing.
    Optional(Option<Box<HostValue>>),
}

impl HostValue {
    /// The tensor, if it is one.
    pub fn as_tensor(&self) -> Option<&Tensor> {
        if let HostValue::Tensor(t) = self { Some(t) } else { None }
    }
    /// The tensor, if it is one.
    pub fn into_tensor(self) -> Option<Tensor> {
        if let HostValue::Tensor(t) = self { Some(t) } else { None }
    }
    /// Whether two values are the same, tensors bit for bit.
    pub fn same(&self, other: &HostValue) -> bool {
        match (self, other) {
            (HostValue::Tensor(a), HostValue::Tensor(b)) => a.same_bits(b),
            (HostValue::Strings { shape, data }, HostValue::Strings { shape: s, data: d }) => {
                shape == s && data == d
            }
            (HostValue::Sequence(a), HostValue::Sequence(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(x, y)| x.same(y))
            }
            (HostValue::Optional(a), HostValue::Optional(b)) => match (a, b) {
                (Some(a), Some(b)) => a.same(b),
                (a, b) => a.is_none() && b.is_none(),
            },
            _ => false,
        }
    }
    fn kind(&self) -> &'static str {
        match self {
            HostValue::Tensor(_) => "a tensor",
            HostValue::Strings { .. } => "strings",
            HostValue::Sequence(_) => "a sequence",
            HostValue::Optional(_) => "an optional",
        }
    }
}

impl From<Tensor> for HostValue {
    fn from(t: Tensor) -> HostValue {
        HostValue::Tensor(t)
    }
}

/// What can go wrong in the host library.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// No operation has the name.
    #[error("[H001] the host library has no '{0}'")]
    Unknown(String),
    /// An operand or attribute is missing or of the wrong kind.
    #[error("[H002] {0}")]
    Operand(String),
    /// A position outside a sequence, text that is no number, lengths that do not fit.
    #[error("[H003] {0}")]
    Value(String),
    /// A result can't be made.
    #[error("[H004] {0}")]
    Tensor(#[from] TensorError),
}

/// Names of all operations.
pub const NAMES: &[&str] = &[
    "identity",
    "strings_constant",
    "strings_take",
    "strings_equal",
    "strings_concat",
    "strings_split",
    "strings_normalize",
    "strings_match",
    "strings_lookup",
    "strings_from_numbers",
    "strings_to_numbers",
    "sequence_construct",
    "sequence_empty",
    "sequence_at",
    "sequence_insert",
    "sequence_erase",
    "sequence_length",
    "sequence_from_split",
    "sequence_concat",
    "optional_construct",
    "optional_has",
    "optional_get",
];

type Attributes = [(String, AttrValue)];
type Result<T> = std::result::Result<T, HostError>;

/// Calls an operation of the library. `results` are the declared result types.
///
/// # Errors
/// [`HostError`]; nothing panics on any operands.
pub fn call(
    name: &str,
    attributes: &Attributes,
    results: &[Type],
    inputs: &[HostValue],
) -> Result<Vec<HostValue>> {
    let one = |v: HostValue| Ok(vec![v]);
    let x = Inputs(inputs);
    match name {
        "identity" => one(x.any(0)?.clone()),
        "strings_constant" => {
            let data = strings(attributes, "value")?;
            let shape: Option<Vec<usize>> = match results {
                [Type::Strings { dims }] => {
                    dims.iter().map(|d| d.as_const().and_then(|n| usize::try_from(n).ok())).collect()
                }
                _ => None,
            };
            let shape =
                shape.ok_or_else(|| HostError::Operand("the result type has no constant dims".into()))?;
            one(strings_value(shape, data)?)
        }
        "strings_take" => {
            let Some((last, sources)) = inputs.split_last() else { return Err(x.missing(0)) };
            let positions = Inputs(std::slice::from_ref(last)).tensor(0)?;
            let mut all: Vec<&String> = Vec::new();
            for i in 0..sources.len() {
                all.extend(x.strings(i)?.1);
            }
            let pick =
                |n: Num| usize::try_from(n.to_i128()).ok().and_then(|i| all.get(i).map(|s| (*s).clone()));
            let data = positions.iter().map(|n| pick(n).unwrap_or_default()).collect();
            one(strings_value(positions.shape().to_vec(), data)?)
        }
        "strings_equal" => {
            let (shape, pairs) = paired(&x)?;
            let equal: Vec<bool> = pairs.iter().map(|(a, b)| a == b).collect();
            one(Tensor::from_fn(DType::Bool, &shape, |i| Num::from(equal[i]))?.into())
        }
        "strings_concat" => {
            let (shape, pairs) = paired(&x)?;
            one(HostValue::Strings { shape, data: pairs.iter().map(|(a, b)| format!("{a}{b}")).collect() })
        }
        "strings_split" => split(&x, attributes),
        "strings_normalize" => one(normalize(&x, attributes)?),
        "strings_match" => {
            let (shape, data) = x.strings(0)?;
            let pattern = format!("^(?:{})$", text(attributes, "pattern")?);
            let regex = regex::Regex::new(&pattern).map_err(|e| HostError::Value(format!("pattern: {e}")))?;
            one(Tensor::from_fn(DType::Bool, shape, |i| Num::from(regex.is_match(&data[i])))?.into())
        }
        "strings_lookup" => {
            let (shape, data) = x.strings(0)?;
            let keys = strings(attributes, "keys")?;
            let places: std::collections::HashMap<&str, usize> =
                keys.iter().enumerate().rev().map(|(i, k)| (k.as_str(), i)).collect();
            let default = integer(attributes, "default").unwrap_or(-1);
            let at =
                |i: usize| places.get(data[i].as_str()).map_or(Num::from(default), |&p| Num::Int(p as i128));
            one(Tensor::from_fn(DType::I64, shape, at)?.into())
        }
        "strings_from_numbers" => {
            let t = x.tensor(0)?;
            let data = t.iter().map(|n| number_text(t.dtype(), n)).collect();
            one(strings_value(t.shape().to_vec(), data)?)
        }
        "strings_to_numbers" => {
            let (shape, data) = x.strings(0)?;
            let Some(AttrValue::DType(to)) = find(attributes, "to") else {
                return Err(HostError::Operand("attribute 'to' is no element type".into()));
            };
            let numbers = data.iter().map(|s| parse_number(*to, s)).collect::<Result<Vec<Num>>>()?;
            one(Tensor::from_fn(*to, shape, |i| numbers[i])?.into())
        }
        "sequence_construct" => one(HostValue::Sequence(inputs.to_vec())),
        "sequence_empty" => one(HostValue::Sequence(vec![])),
        "sequence_at" => {
            let s = x.sequence(0)?;
            let i = position(x.integer(1)?, s.len(), s.len())?;
            one(s[i].clone())
        }
        "sequence_insert" => {
            let mut s = x.sequence(0)?.to_vec();
            let at = if inputs.len() > 2 { position(x.integer(2)?, s.len(), s.len() + 1)? } else { s.len() };
            s.insert(at, x.any(1)?.clone());
            one(HostValue::Sequence(s))
        }
        "sequence_erase" => {
            let mut s = x.sequence(0)?.to_vec();
            let i = if inputs.len() > 1 { x.integer(1)? } else { -1 };
            s.remove(position(i, s.len(), s.len())?);
            one(HostValue::Sequence(s))
        }
        "sequence_length" => one(Tensor::scalar(DType::I64, Num::Int(x.sequence(0)?.len() as i128)).into()),
        "sequence_from_split" => one(HostValue::Sequence(split_tensor(&x, attributes)?)),
        "sequence_concat" => {
            let axis = integer(attributes, "axis").unwrap_or(0);
            let new_axis = matches!(find(attributes, "new_axis"), Some(AttrValue::Bool(true)));
            one(concat(x.sequence(0)?, axis, new_axis)?)
        }
        "optional_construct" => one(HostValue::Optional(inputs.first().cloned().map(Box::new))),
        "optional_has" => {
            let has = !matches!(x.any(0)?, HostValue::Optional(None));
            one(Tensor::scalar(DType::Bool, Num::from(has)).into())
        }
        "optional_get" => match x.any(0)? {
            HostValue::Optional(Some(v)) => one((**v).clone()),
            HostValue::Optional(None) => Err(HostError::Value("the optional holds nothing".into())),
            v => one(v.clone()),
        },
        _ => Err(HostError::Unknown(name.chars().take(80).collect())),
    }
}

struct Inputs<'v>(&'v [HostValue]);

impl<'v> Inputs<'v> {
    fn missing(&self, i: usize) -> HostError {
        HostError::Operand(format!("operand {i} is missing"))
    }
    fn any(&self, i: usize) -> Result<&'v HostValue> {
        self.0.get(i).ok_or_else(|| self.missing(i))
    }
    fn wrong(&self, i: usize, want: &str) -> HostError {
        HostError::Operand(format!("operand {i} is {}; {want} wanted", self.0[i].kind()))
    }
    fn tensor(&self, i: usize) -> Result<&'v Tensor> {
        self.any(i)?.as_tensor().ok_or_else(|| self.wrong(i, "a tensor"))
    }
    fn strings(&self, i: usize) -> Result<(&'v [usize], &'v [String])> {
        match self.any(i)? {
            HostValue::Strings { shape, data } => Ok((shape, data)),
            _ => Err(self.wrong(i, "strings")),
        }
    }
    fn sequence(&self, i: usize) -> Result<&'v [HostValue]> {
        match self.any(i)? {
            HostValue::Sequence(s) => Ok(s),
            _ => Err(self.wrong(i, "a sequence")),
        }
    }
    fn integer(&self, i: usize) -> Result<i64> {
        let t = self.tensor(i)?;
        let n = if t.len() == 1 { i64::try_from(t.get_linear(0).to_i128()).ok() } else { None };
        n.ok_or_else(|| HostError::Operand(format!("operand {i} is no integer scalar")))
    }
}

fn find<'a>(attributes: &'a Attributes, name: &str) -> Option<&'a AttrValue> {
    attributes.iter().find(|(n, _)| n == name).map(|(_, v)| v)
}

fn integer(attributes: &Attributes, name: &str) -> Option<i64> {
    match find(attributes, name)? {
        AttrValue::Int(n) => Some(*n),
        AttrValue::Dim(d) => d.as_const(),
        _ => None,
    }
}

fn text<'a>(attributes: &'a Attributes, name: &str) -> Result<&'a str> {
    match find(attributes, name) {
        Some(AttrValue::Str(s)) => Ok(s),
        _ => Err(HostError::Operand(format!("attribute '{name}' is no string"))),
    }
}

fn strings(attributes: &Attributes, name: &str) -> Result<Vec<String>> {
    let list = match find(attributes, name) {
        Some(AttrValue::List(items)) => items.iter().map(|v| match v {
            AttrValue::Str(s) => Some(s.clone()),
            _ => None,
        }),
        _ => return Err(HostError::Operand(format!("attribute '{name}' is no list"))),
    };
    list.collect::<Option<_>>()
        .ok_or_else(|| HostError::Operand(format!("attribute '{name}' is no list of strings")))
}

fn strings_value(shape: Vec<usize>, data: Vec<String>) -> Result<HostValue> {
    if shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)) != Some(data.len()) {
        return Err(HostError::Value(format!("{} strings for dims {shape:?}", data.len())));
    }
    Ok(HostValue::Strings { shape, data })
}

/// A position, negative from the end, below `limit`.
fn position(i: i64, len: usize, limit: usize) -> Result<usize> {
    let at = if i < 0 { i + len as i64 } else { i };
    usize::try_from(at)
        .ok()
        .filter(|&p| p < limit)
        .ok_or_else(|| HostError::Value(format!("position {i} in a sequence of {len}")))
}

type Pairs<'v> = Vec<(&'v str, &'v str)>;

/// Two string operands broadcast to common dims, numpy's way.
fn paired<'v>(x: &Inputs<'v>) -> Result<(Vec<usize>, Pairs<'v>)> {
    let ((sa, a), (sb, b)) = (x.strings(0)?, x.strings(1)?);
    let rank = sa.len().max(sb.len());
    let at = |s: &[usize], k: usize| (k + s.len()).checked_sub(rank).map_or(1, |i| s[i]);
    let mut shape = Vec::new();
    for k in 0..rank {
        match (at(sa, k), at(sb, k)) {
            (m, n) if m == n || n == 1 => shape.push(m),
            (1, n) => shape.push(n),
            (m, n) => return Err(HostError::Value(format!("dims {m} and {n} do not broadcast"))),
        }
    }
    let too_many = || HostError::Value("too many strings".into());
    let total = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or_else(too_many)?;
    if total > a.len().saturating_mul(b.len().max(1)).max(b.len()) {
        return Err(too_many());
    }
    let pick = |s: &[usize], linear: usize| {
        let (mut rest, mut index, mut step) = (linear, 0, 1);
        for k in (0..rank).rev() {
            let i = rest % shape[k].max(1);
            rest /= shape[k].max(1);
            let n = at(s, k);
            if n != 1 {
                index += i * step;
            }
            step *= n;
        }
        index
    };
    let pairs = (0..total).map(|i| (a[pick(sa, i)].as_str(), b[pick(sb, i)].as_str())).collect();
    Ok((shape, pairs))
}

fn split(x: &Inputs<'_>, attributes: &Attributes) -> Result<Vec<HostValue>> {
    let (shape, data) = x.strings(0)?;
    let delimiter = text(attributes, "delimiter").unwrap_or("");
    let most = integer(attributes, "maxsplit").and_then(|n| usize::try_from(n).ok());
    let parts: Vec<Vec<String>> = data
        .iter()
        .map(|s| match (delimiter, most) {
            ("", None) => s.split_whitespace().map(str::to_string).collect(),
            ("", Some(most)) => split_spaces(s, most),
            (d, None) => s.split(d).map(str::to_string).collect(),
            (d, Some(most)) => s.splitn(most.saturating_add(1), d).map(str::to_string).collect(),
        })
        .collect();
    let longest = parts.iter().map(Vec::len).max().unwrap_or(0);
    let counts = Tensor::from_fn(DType::I64, shape, |i| Num::Int(parts[i].len() as i128))?;
    let mut out = Vec::new();
    for p in parts {
        let missing = longest - p.len();
        out.extend(p);
        out.extend(std::iter::repeat_n(String::new(), missing));
    }
    let shape = shape.iter().copied().chain([longest]).collect();
    Ok(vec![strings_value(shape, out)?, counts.into()])
}

/// Splits at runs of white space at most so many times; the rest keeps its inner spaces.
fn split_spaces(s: &str, most: usize) -> Vec<String> {
    let mut out = Vec::new();
    let mut rest = s.trim_start();
    while !rest.is_empty() {
        if out.len() == most {
            out.push(rest.trim_end().to_string());
            break;
        }
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        out.push(rest[..end].to_string());
        rest = rest[end..].trim_start();
    }
    out
}

fn normalize(x: &Inputs<'_>, attributes: &Attributes) -> Result<HostValue> {
    let (shape, data) = x.strings(0)?;
    if !matches!(shape, [_] | [1, _]) {
        return Err(HostError::Value(format!("dims {shape:?}; one dim, or two with one row, wanted")));
    }
    let case = text(attributes, "case").unwrap_or("none");
    let change = |s: &str| match case {
        "lower" => s.to_lowercase(),
        "upper" => s.to_uppercase(),
        _ => s.to_string(),
    };
    let sensitive = matches!(find(attributes, "case_sensitive"), Some(AttrValue::Bool(true)));
    let key = |s: &str| if sensitive { s.to_string() } else { s.to_lowercase() };
    let stop: Vec<String> =
        strings(attributes, "stopwords").unwrap_or_default().iter().map(|s| key(s)).collect();
    let mut kept: Vec<String> = data.iter().filter(|s| !stop.contains(&key(s))).map(|s| change(s)).collect();
    if kept.is_empty() {
        kept.push(String::new());
    }
    let mut shape = shape.to_vec();
    if let Some(last) = shape.last_mut() {
        *last = kept.len();
    }
    strings_value(shape, kept)
}

/// A number as NumPy writes it: the shortest decimal that reads back as the same element.
pub fn number_text(dtype: DType, value: Num) -> String {
    let x = match value {
        Num::Int(n) if dtype.is_bool() => return if n == 0 { "False" } else { "True" }.to_string(),
        Num::Int(n) => return n.to_string(),
        Num::Float(x) => x,
    };
    if x.is_nan() {
        return "nan".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf" } else { "-inf" }.into();
    }
    let code = dtype.encode(Num::Float(x), Overflow::Format);
    let same =
        |s: &str| s.parse::<f64>().is_ok_and(|v| dtype.encode(Num::Float(v), Overflow::Format) == code);
    let scientific =
        (0..17).map(|p| format!("{x:.p$e}")).find(|s| same(s)).unwrap_or_else(|| format!("{x:e}"));
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if x == 0.0 || (-4..16).contains(&exponent) {
        let (sign, digits) = match digits.strip_prefix('-') {
            Some(d) => ("-", d),
            None => ("", digits),
        };
        let digits: String = digits.chars().filter(char::is_ascii_digit).collect();
        return if exponent < 0 {
            format!("{sign}0.{}{digits}", "0".repeat((-exponent - 1) as usize))
        } else if digits.len() > exponent as usize + 1 {
            format!("{sign}{}.{}", &digits[..=exponent as usize], &digits[exponent as usize + 1..])
        } else {
            format!("{sign}{digits}{}.0", "0".repeat(exponent as usize + 1 - digits.len()))
        };
    }
    format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

fn parse_number(to: DType, s: &str) -> Result<Num> {
    let bad = || HostError::Value(format!("{:?} is no {to}", s.chars().take(40).collect::<String>()));
    let t = s.trim();
    let n = match to {
        DType::Bool => match t {
            "True" | "true" => Num::Int(1),
            "False" | "false" => Num::Int(0),
            _ => Num::Int((t.parse::<f64>().map_err(|_| bad())? != 0.0).into()),
        },
        d if d.is_float() => Num::Float(t.parse::<f64>().map_err(|_| bad())?),
        _ => match t.parse::<i128>() {
            Ok(n) => Num::Int(n),
            Err(_) => Num::Float(t.parse::<f64>().map_err(|_| bad())?.trunc()),
        },
    };
    let from = if matches!(n, Num::Float(_)) { DType::F64 } else { DType::I64 };
    Ok(match n {
        // Decimal text rounds once: f32 text is read as f32.
        Num::Float(_) if to == DType::F32 => Num::Float(t.parse::<f32>().map_err(|_| bad())?.into()),
        Num::Int(_) if to.is_int() => n,
        n => tongtu_tensor::cast(n, from, to, CastMode::default()),
    })
}

fn split_tensor(x: &Inputs<'_>, attributes: &Attributes) -> Result<Vec<HostValue>> {
    let t = x.tensor(0)?;
    let axis = integer(attributes, "axis").unwrap_or(0);
    let axis = position(axis, t.rank(), t.rank())?;
    let n = t.shape()[axis];
    let (lengths, drop): (Vec<usize>, bool) = match x.0.get(1) {
        None => {
            let keep = !matches!(find(attributes, "keep"), Some(AttrValue::Bool(false)));
            (vec![1; n], !keep)
        }
        Some(_) => {
            let split = x.tensor(1)?;
            let lengths: Option<Vec<usize>> =
                split.iter().map(|v| usize::try_from(v.to_i128()).ok()).collect();
            let lengths = lengths.ok_or_else(|| HostError::Value("a negative length".into()))?;
            match (split.rank(), lengths.as_slice()) {
                (0, [0]) => return Err(HostError::Value("parts of length 0".into())),
                (0, [k]) => {
                    let whole = vec![*k; n / k];
                    (if n % k == 0 { whole } else { whole.into_iter().chain([n % k]).collect() }, false)
                }
                _ => (lengths, false),
            }
        }
    };
    if lengths.iter().try_fold(0usize, |a, &b| a.checked_add(b)) != Some(n) {
        return Err(HostError::Value(format!("lengths {lengths:?} do not make up {n}")));
    }
    let mut start = 0;
    let mut out = Vec::new();
    for len in lengths {
        let part = t.slice(axis, start as i64, (start + len) as i64, 1)?.to_contiguous()?;
        start += len;
        let part = if drop {
            let shape: Vec<usize> =
                part.shape().iter().enumerate().filter(|(i, _)| *i != axis).map(|(_, &d)| d).collect();
            part.reshape(&shape)?
        } else {
            part
        };
        out.push(part.into());
    }
    Ok(out)
}

/// Joins values of one kind.
fn concat(items: &[HostValue], axis: i64, new_axis: bool) -> Result<HostValue> {
    let Some(first) = items.first() else {
        return Err(HostError::Value("an empty sequence has no parts".into()));
    };
    let shape_of = |v: &HostValue| match v {
        HostValue::Tensor(t) => Some(t.shape().to_vec()),
        HostValue::Strings { shape, .. } => Some(shape.clone()),
        _ => None,
    };
    let no_shape = || HostError::Operand("the sequence holds neither tensors nor strings".into());
    let rank = shape_of(first).ok_or_else(no_shape)?.len() + usize::from(new_axis);
    let axis = position(axis, rank, rank)?;
    let mut shapes = Vec::new();
    for v in items {
        let mut s = shape_of(v).ok_or_else(no_shape)?;
        if new_axis && axis <= s.len() {
            s.insert(axis, 1);
        }
        let fits = shapes.first().is_none_or(|f: &Vec<usize>| {
            f.len() == s.len() && f.iter().zip(&s).enumerate().all(|(i, (a, b))| i == axis || a == b)
        });
        if s.len() != rank || !fits {
            return Err(HostError::Value("parts of different dims".into()));
        }
        shapes.push(s);
    }
    let mut shape = shapes[0].clone();
    shape[axis] = shapes.iter().map(|s| s[axis]).sum();
    let outer: usize = shape[..axis].iter().product();
    // Runs of elements: for each outer index a run of every part.
    let runs = |i: usize| shapes[i][axis..].iter().product::<usize>();
    let places =
        (0..outer).flat_map(|o| (0..items.len()).flat_map(move |i| (0..runs(i)).map(move |k| (i, o, k))));
    if let HostValue::Tensor(t) = first {
        let dtype = t.dtype();
        let tensors: Option<Vec<&Tensor>> = items.iter().map(HostValue::as_tensor).collect();
        let tensors = tensors.filter(|all| all.iter().all(|t| t.dtype() == dtype));
        let tensors = tensors.ok_or_else(|| HostError::Operand("parts of different types".into()))?;
        let mut out = Tensor::zeros(dtype, &shape)?;
        for (n, (i, o, k)) in places.enumerate() {
            out.set_code(n, tensors[i].code(o * runs(i) + k));
        }
        return Ok(out.into());
    }
    let mut data = Vec::new();
    for (i, o, k) in places {
        match &items[i] {
            HostValue::Strings { data: d, .. } => data.push(d[o * runs(i) + k].clone()),
            _ => return Err(HostError::Operand("parts of different types".into())),
        }
    }
    strings_value(shape, data)
}
