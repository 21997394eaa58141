//! Inputs from files or random numbers, outputs to files, data sets and their comparison.

use std::path::{Path, PathBuf};

use serde::Serialize;
use tongtu::onnx::{FileKind, read_file, write_tensor};
use tongtu::{DType, HostValue, Num, Tensor, Value, npy};

use crate::args::{Dims, InputArgs, OutputFormat};
use crate::ui::{FAILED, Fail};

/// An input that a model wants.
#[derive(Clone, Debug)]
pub struct Want {
    /// Its name.
    pub name: String,
    /// Element type, of a tensor of numbers.
    pub dtype: Option<DType>,
    /// For each dim its size, or the name it is given by.
    pub dims: Vec<Result<i64, String>>,
    /// How a file of it is read.
    pub kind: FileKind,
}

fn kind_of(ty: &tongtu::GraphType) -> FileKind {
    match ty {
        tongtu::GraphType::Sequence(_) => FileKind::Sequence,
        tongtu::GraphType::Optional(_) => FileKind::Optional,
        _ => FileKind::Tensor,
    }
}

fn want(name: &str, ty: &tongtu::GraphType, symbols: &tongtu::Symbols, sizes: &Dims) -> Want {
    let (dtype, dims) = match ty {
        tongtu::GraphType::Tensor { dtype, dims } => (Some(*dtype), dims.as_slice()),
        _ => (None, &[][..]),
    };
    let value = |s: tongtu::Sym| {
        let name = symbols.name(s)?;
        sizes.0.iter().find(|(n, _)| n == name || identifier(n) == name).map(|(_, v)| *v)
    };
    let size = |d: &tongtu::Dim| d.eval(&value).map_err(|_| d.display(symbols).to_string());
    Want { name: name.to_string(), dtype, dims: dims.iter().map(size).collect(), kind: kind_of(ty) }
}

/// A dim's name as the graph spells it.
fn identifier(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' || c == '.' { c } else { '_' }).collect()
}

/// The inputs of a plan.
pub fn wants_of_plan(plan: &tongtu::Plan, sizes: &Dims) -> Vec<Want> {
    let port = |(i, p): (usize, &tongtu::PlanPort)| want(&p.name, &plan.input_type(i), &plan.symbols, sizes);
    plan.inputs.iter().enumerate().map(port).collect()
}

/// The inputs of a model.
pub fn wants_of_model(model: &tongtu::Model, sizes: &Dims) -> Vec<Want> {
    let symbols = &model.module().symbols;
    model.loaded().inputs.iter().map(|p| want(&p.name, &p.ty, symbols, sizes)).collect()
}

/// The inputs of a file that could not be loaded without knowing them: tensors, as far as can be said.
pub fn wants_of_names(names: &[String], kinds: &[FileKind]) -> Vec<Want> {
    let kind = |i: usize| kinds.get(i).copied().unwrap_or(FileKind::Tensor);
    let want =
        |(i, n): (usize, &String)| Want { name: n.clone(), dtype: None, dims: Vec::new(), kind: kind(i) };
    names.iter().enumerate().map(want).collect()
}

/// How the outputs of a plan or model are read from files.
pub fn output_kinds(types: impl Iterator<Item = tongtu::GraphType>) -> Vec<FileKind> {
    types.map(|t| kind_of(&t)).collect()
}

/// A seeded stream of numbers (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Numbers from -1 to 1 for floating-point types, 0 and 1 for integers and bools.
pub fn random(dtype: DType, shape: &[usize], seed: u64) -> Result<Tensor, Fail> {
    let mut random = Random(seed);
    let element = |_| {
        let bits = random.next();
        if dtype.is_float() {
            Num::Float((bits >> 11) as f64 / (1u64 << 52) as f64 - 1.0)
        } else {
            Num::Int(i128::from(bits >> 63))
        }
    };
    Tensor::from_fn(dtype, shape, element).map_err(|e| tongtu::Error::from(e).into())
}

fn parse_shape(text: &str) -> Option<Vec<usize>> {
    if text.is_empty() || text == "scalar" {
        return Some(Vec::new());
    }
    text.split(['x', ',']).map(|n| n.trim().parse().ok()).collect()
}

fn io(path: &Path, e: impl std::fmt::Display) -> Fail {
    let message = e.to_string();
    let coded = !tongtu::code_of(&message).is_empty();
    let message = if coded {
        format!("{message} ({})", path.display())
    } else {
        format!("[A001] {}: {message}", path.display())
    };
    Fail { message, hint: None, exit: FAILED }
}

/// Reads one value from a file by its ending.
fn read_value(path: &Path, want: &Want) -> Result<Value, Fail> {
    let ending = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    match ending.as_str() {
        "npy" => npy::load(path, want.dtype).map(Value::from).map_err(|e| io(path, e)),
        "npz" => {
            let mut all = npy::load_npz(path).map_err(|e| io(path, e))?;
            let named = all.iter().position(|(n, _)| *n == want.name);
            match (named, all.len()) {
                (Some(i), _) => Ok(all.swap_remove(i).1.into()),
                (None, 1) => Ok(all.swap_remove(0).1.into()),
                _ => {
                    let names: Vec<&str> = all.iter().map(|(n, _)| n.as_str()).collect();
                    Err(Fail::usage(format!("{} has no array '{}'", path.display(), want.name))
                        .hint(format!("it has: {}", names.join(", "))))
                }
            }
        }
        "pb" => read_file(path, want.kind).map(Value::from).map_err(|e| io(path, e)),
        _ => Err(Fail::usage(format!("{}: inputs are .npy, .npz or .pb files", path.display()))
            .hint("`numpy.save` writes .npy files; NAME=random:SHAPE makes random numbers")),
    }
}

/// Values for a model's inputs, from the command line. `fill` makes random ones for those that are not given.
pub fn inputs(args: &InputArgs, wants: &[Want], fill: bool) -> Result<Vec<(String, Value)>, Fail> {
    let mut out: Vec<(String, Value)> = Vec::new();
    if let Some(dir) = &args.data_set {
        return Ok(data_set_inputs(dir, wants)?.into_iter().map(|(n, v)| (n.to_string(), v)).collect());
    }
    for spec in &args.input {
        let Some((name, source)) = spec.split_once('=') else {
            // A file of named arrays.
            let path = PathBuf::from(spec);
            if path.extension().is_none_or(|e| e != "npz") {
                return Err(Fail::usage(format!("--input {spec}: that is no name with a source"))
                    .hint("write NAME=FILE, NAME=random:SHAPE or FILE.npz"));
            }
            let all = npy::load_npz(&path).map_err(|e| io(&path, e))?;
            out.extend(all.into_iter().map(|(n, t)| (n, t.into())));
            continue;
        };
        let Some((i, want)) = wants.iter().enumerate().find(|(_, w)| w.name == name) else {
            let names: Vec<&str> = wants.iter().map(|w| w.name.as_str()).collect();
            let names = names.join(", ");
            return Err(Fail::usage(format!("the model has no input '{name}'; its inputs are {names}"))
                .hint("`tongtu inspect MODEL` shows their types"));
        };
        let value = match source.strip_prefix("random:") {
            Some(shape) => {
                let shape = parse_shape(shape)
                    .ok_or_else(|| Fail::usage(format!("'{shape}' is no shape")).hint("write 1x3x224"))?;
                let other = || Fail::usage(format!("'{name}' is not a tensor of numbers"));
                let dtype =
                    want.dtype.ok_or_else(|| other().hint(format!("give a file: --input {name}=FILE.pb")))?;
                random(dtype, &shape, args.seed.wrapping_add(i as u64))?.into()
            }
            None => read_value(Path::new(source), want)?,
        };
        out.push((name.to_string(), value));
    }
    if fill {
        for (i, want) in wants.iter().enumerate() {
            if out.iter().any(|(n, _)| *n == want.name) {
                continue;
            }
            let Some(dtype) = want.dtype else {
                return Err(Fail::usage(format!("'{}' is not a tensor of numbers", want.name))
                    .hint(format!("give a file: --input {}=FILE.pb", want.name)));
            };
            let mut shape = Vec::new();
            for d in &want.dims {
                match d {
                    Ok(n) => shape.push((*n).max(0) as usize),
                    Err(name) => {
                        return Err(Fail::usage(format!(
                            "input '{}' has a dim '{name}' of no given size",
                            want.name
                        ))
                        .hint(format!("set it with --dim {name}=SIZE")));
                    }
                }
            }
            out.push((want.name.clone(), random(dtype, &shape, args.seed.wrapping_add(i as u64))?.into()));
        }
    }
    Ok(out)
}

/// The inputs of a data set in ONNX's layout.
pub fn data_set_inputs<'a>(dir: &Path, wants: &'a [Want]) -> Result<Vec<(&'a str, Value)>, Fail> {
    if !dir.is_dir() {
        return Err(Fail::usage(format!("{}: there is no such folder", dir.display()))
            .hint("a data set is a folder with input_0.pb, input_1.pb, … and output_0.pb"));
    }
    let mut out = Vec::new();
    for (i, want) in wants.iter().enumerate() {
        let path = dir.join(format!("input_{i}.pb"));
        out.push((want.name.as_str(), read_value(&path, want)?));
    }
    Ok(out)
}

/// The expected outputs of a data set: as many as there are files.
pub fn data_set_outputs(dir: &Path, kinds: &[FileKind]) -> Result<Vec<HostValue>, Fail> {
    let mut out = Vec::new();
    for (i, kind) in kinds.iter().enumerate() {
        let path = dir.join(format!("output_{i}.pb"));
        if path.exists() {
            out.push(read_file(&path, *kind).map_err(|e| io(&path, e))?);
        }
    }
    Ok(out)
}

/// How near results must be: `|got - want| <= atol + rtol * |want|`.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Tolerance {
    /// Relative.
    pub rtol: f64,
    /// Absolute.
    pub atol: f64,
    /// Relative, for bf16.
    pub rtol_bf16: f64,
}

impl Tolerance {
    /// From the file `meta.json` beside a model, else those of ONNX's own runner.
    pub fn of(folder: &Path) -> Tolerance {
        let text = std::fs::read_to_string(folder.join("meta.json")).unwrap_or_default();
        let meta: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let number = |name: &str, default: f64| meta[name].as_f64().unwrap_or(default);
        let rtol = number("rtol", 1e-3);
        Tolerance {
            rtol,
            atol: number("atol", 1e-7),
            rtol_bf16: number("rtol_bfloat16", rtol.max(1.0 / 64.0)),
        }
    }
}

/// How far one output is from what is expected.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Difference {
    /// Elements compared.
    pub elements: usize,
    /// Elements outside the tolerance.
    pub outside: usize,
    /// Greatest absolute error.
    pub worst_abs: f64,
    /// Greatest error over its tolerance: at most 1 where all is well.
    pub worst_ratio: f64,
    /// What else differs: type or shape.
    pub problem: Option<String>,
}

impl Difference {
    /// Whether all is well.
    pub fn passes(&self) -> bool {
        self.outside == 0 && self.problem.is_none()
    }

    fn merge(&mut self, other: Difference) {
        self.elements += other.elements;
        self.outside += other.outside;
        self.worst_abs = self.worst_abs.max(other.worst_abs);
        self.worst_ratio = self.worst_ratio.max(other.worst_ratio);
        self.problem = self.problem.take().or(other.problem);
    }

    fn problem(text: impl Into<String>) -> Difference {
        Difference { problem: Some(text.into()), ..Difference::default() }
    }
}

/// Compares a value with the expected one.
pub fn compare(got: &HostValue, want: &HostValue, t: Tolerance) -> Difference {
    match (got, want) {
        (HostValue::Tensor(a), HostValue::Tensor(b)) => compare_tensors(a, b, t),
        (HostValue::Strings { shape, data }, HostValue::Strings { shape: s, data: d }) => {
            if shape != s {
                return Difference::problem(format!("shape {shape:?}, {s:?} expected"));
            }
            let outside = data.iter().zip(d).filter(|(x, y)| x != y).count();
            Difference { elements: d.len(), outside, ..Difference::default() }
        }
        (HostValue::Sequence(a), HostValue::Sequence(b)) => {
            let mut all = Difference::default();
            if a.len() != b.len() {
                all.problem = Some(format!("{} elements, {} expected", a.len(), b.len()));
            }
            a.iter().zip(b).for_each(|(x, y)| all.merge(compare(x, y, t)));
            all
        }
        (HostValue::Optional(a), HostValue::Optional(b)) => match (a, b) {
            (Some(a), Some(b)) => compare(a, b, t),
            (None, None) => Difference::default(),
            _ => Difference::problem("one is empty, the other not"),
        },
        (got, HostValue::Optional(Some(want))) => compare(got, want, t),
        (HostValue::Optional(Some(got)), want) => compare(got, want, t),
        _ => Difference::problem("another kind of value"),
    }
}

fn compare_tensors(got: &Tensor, want: &Tensor, t: Tolerance) -> Difference {
    if got.dtype() != want.dtype() {
        return Difference::problem(format!("type {}, {} expected", got.dtype(), want.dtype()));
    }
    if got.shape() != want.shape() {
        return Difference::problem(format!("shape {:?}, {:?} expected", got.shape(), want.shape()));
    }
    let mut d = Difference { elements: want.len(), ..Difference::default() };
    let rtol = if want.dtype() == DType::BF16 { t.rtol_bf16 } else { t.rtol };
    for (a, b) in got.iter().zip(want.iter()) {
        let (error, allowed) = match (a, b) {
            // Integers are exact, unless a whole step is allowed (quantised results).
            (Num::Int(x), Num::Int(y)) => (x.abs_diff(y) as f64, if t.atol >= 1.0 { t.atol } else { 0.0 }),
            (x, y) => {
                let (x, y) = (x.to_f64(), y.to_f64());
                if x == y || x.is_nan() && y.is_nan() {
                    continue;
                }
                let e = (x - y).abs();
                (if e.is_nan() { f64::INFINITY } else { e }, t.atol + rtol * y.abs())
            }
        };
        if error == 0.0 {
            continue;
        }
        d.worst_abs = d.worst_abs.max(error);
        let ratio = if error.is_finite() && allowed.is_infinite() { f64::INFINITY } else { error / allowed };
        d.worst_ratio = d.worst_ratio.max(ratio);
        if ratio > 1.0 || ratio.is_nan() {
            d.outside += 1;
        }
    }
    d
}

/// A value on the host.
pub fn host_value(v: &Value) -> Result<HostValue, Fail> {
    match v {
        Value::Host(h) => Ok(h.clone()),
        other => match other.tensor() {
            Ok(Some(t)) => Ok(HostValue::Tensor(t)),
            Ok(None) => Ok(HostValue::Optional(None)),
            Err(e) => Err(tongtu::Error::from(e).into()),
        },
    }
}

/// A file name for a value's name.
fn file_name(name: &str) -> String {
    let safe: String =
        name.chars().map(|c| if c.is_alphanumeric() || "._-".contains(c) { c } else { '_' }).collect();
    if safe.trim_matches('.').is_empty() { "output".to_string() } else { safe }
}

fn json_of(value: &HostValue) -> serde_json::Value {
    match value {
        HostValue::Tensor(t) => {
            let elements: Vec<String> = t.iter().map(|n| n.to_string()).collect();
            serde_json::json!({ "type": t.dtype().name(), "shape": t.shape(), "elements": elements })
        }
        HostValue::Strings { shape, data } => {
            serde_json::json!({ "type": "string", "shape": shape, "elements": data })
        }
        HostValue::Sequence(items) => {
            serde_json::json!({ "sequence": items.iter().map(json_of).collect::<Vec<_>>() })
        }
        HostValue::Optional(item) => serde_json::json!({ "optional": item.as_deref().map(json_of) }),
    }
}

/// Writes an output to a folder; gives the file.
pub fn write_output(
    dir: &Path,
    name: &str,
    value: &HostValue,
    format: OutputFormat,
) -> Result<PathBuf, Fail> {
    let file = |ending: &str| dir.join(format!("{}.{ending}", file_name(name)));
    let (path, result) = match (value, format) {
        (HostValue::Tensor(t), OutputFormat::Npy) => {
            let path = file("npy");
            let result = npy::save(&path, t).map_err(|e| io(&path, e));
            (path, result)
        }
        (HostValue::Tensor(t), OutputFormat::Pb) => {
            let path = file("pb");
            let bytes = write_tensor(name, t).ok_or_else(|| {
                Fail::usage(format!("ONNX has no element type {}", t.dtype()))
                    .hint("write NumPy files: --output-format npy")
            })?;
            let result = std::fs::write(&path, bytes).map_err(|e| io(&path, e));
            (path, result)
        }
        (other, _) => {
            let path = file("json");
            let result = std::fs::write(&path, json_of(other).to_string()).map_err(|e| io(&path, e));
            (path, result)
        }
    };
    result.map(|()| path)
}

/// What a value looks like, in one line.
pub fn summary(value: &HostValue) -> String {
    match value {
        HostValue::Tensor(t) => {
            let mut text = format!("{}{:?}", t.dtype(), t.shape());
            let numbers: Vec<f64> = t.iter().take(1 << 20).map(Num::to_f64).collect();
            if numbers.len() > 8 {
                let (low, high) =
                    numbers.iter().fold((f64::MAX, f64::MIN), |(l, h), &v| (l.min(v), h.max(v)));
                let mean = numbers.iter().sum::<f64>() / numbers.len() as f64;
                text += &format!("  min {low:.6}  max {high:.6}  mean {mean:.6}");
            } else {
                let list: Vec<String> = t.iter().map(|n| n.to_string()).collect();
                text += &format!("  {}", list.join(" "));
            }
            text
        }
        HostValue::Strings { shape, data } => {
            format!("string{shape:?}  {:?}", data.first().map_or("", |s| s))
        }
        HostValue::Sequence(items) => format!("sequence of {}", items.len()),
        HostValue::Optional(item) => item.as_deref().map_or("nothing".to_string(), summary),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: Tolerance = Tolerance { rtol: 1e-3, atol: 1e-7, rtol_bf16: 1e-2 };

    fn tensor(values: &[f32]) -> HostValue {
        HostValue::Tensor(Tensor::from_slice(&[values.len()], values).unwrap())
    }

    #[test]
    fn comparison() {
        let same = |a: &[f32], b: &[f32]| compare(&tensor(a), &tensor(b), T);
        assert!(same(&[1.0, f32::NAN, f32::INFINITY], &[1.0, f32::NAN, f32::INFINITY]).passes());
        assert!(same(&[1.0009], &[1.0]).passes());
        let d = same(&[1.0, 2.0, 3.5], &[1.0, 2.0, 3.0]);
        assert_eq!((d.outside, d.elements, d.worst_abs), (1, 3, 0.5));
        assert!(!same(&[f32::NAN], &[1.0]).passes());
        assert!(!same(&[1.0], &[f32::INFINITY]).passes());
        assert!(!same(&[1e30], &[f32::INFINITY]).passes());
        assert!(same(&[1.0], &[1.0, 2.0]).problem.is_some());
        let sequence = |n: usize| HostValue::Sequence(vec![tensor(&[1.0]); n]);
        assert!(compare(&sequence(2), &sequence(2), T).passes());
        assert!(!compare(&sequence(1), &sequence(2), T).passes());
    }

    #[test]
    fn shapes_and_names() {
        assert_eq!(parse_shape("1x3x224"), Some(vec![1, 3, 224]));
        assert_eq!(parse_shape(""), Some(vec![]));
        assert_eq!(parse_shape("1xa"), None);
        assert_eq!(file_name("a/b:c.d"), "a_b_c.d");
        assert_eq!(file_name(".."), "output");
    }

    #[test]
    fn random_numbers_are_seeded() {
        let a = random(DType::F32, &[100], 1).unwrap();
        assert!(a.same_bits(&random(DType::F32, &[100], 1).unwrap()));
        assert!(!a.same_bits(&random(DType::F32, &[100], 2).unwrap()));
        assert!(a.iter().all(|n| n.to_f64().abs() <= 1.0));
    }
}
