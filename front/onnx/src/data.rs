//! Tensors of a file as host tensors, and the files that hold them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use tongtu_graph::eval::HostValue;
use tongtu_tensor::{DType, MappedFile, Storage, Tensor};

use crate::error::{OnnxError, Result};
use crate::proto::{OptionalProto, SequenceProto, StringEntry, TensorProto};

/// Tensors of at least this many bytes stay in the mapped file; smaller ones are copied to aligned memory.
const MAPPED: usize = 4096;

/// Highest rank read.
const MAX_RANK: usize = 64;

/// The element type with ONNX's number; `None` for string (8), the complex types and unknown numbers.
pub fn dtype(number: i32) -> Option<DType> {
    Some(match number {
        1 => DType::F32,
        2 => DType::U8,
        3 => DType::I8,
        4 => DType::U16,
        5 => DType::I16,
        6 => DType::I32,
        7 => DType::I64,
        9 => DType::Bool,
        10 => DType::F16,
        11 => DType::F64,
        12 => DType::U32,
        13 => DType::U64,
        16 => DType::BF16,
        17 => DType::F8E4M3FN,
        18 => DType::F8E4M3FNUZ,
        19 => DType::F8E5M2,
        20 => DType::F8E5M2FNUZ,
        21 => DType::U4,
        22 => DType::I4,
        23 => DType::F4E2M1,
        24 => DType::F8E8M0,
        25 => DType::U2,
        26 => DType::I2,
        _ => return None,
    })
}

/// ONNX's number of an element type; `None` for types it does not have.
pub fn dtype_number(dtype: DType) -> Option<i32> {
    (1..=26).find(|&n| self::dtype(n) == Some(dtype))
}

/// ONNX's number for strings.
pub const STRING: i32 = 8;

/// A file of which tensors may be views.
#[derive(Debug)]
pub struct Source {
    /// Its bytes.
    pub bytes: Arc<dyn Storage>,
    /// The folder that external data must stay in; `None` where there is none (a model read from memory).
    pub folder: Option<PathBuf>,
    /// Whether tensors in files that are not there are taken as absent.
    pub without: bool,
    /// External files mapped so far.
    files: RefCell<HashMap<PathBuf, Arc<dyn Storage>>>,
}

impl Source {
    /// Maps a file.
    pub fn open(path: &Path) -> Result<Source> {
        let io = |e: &dyn std::fmt::Display| OnnxError::Io {
            path: path.display().to_string(),
            detail: e.to_string(),
        };
        let bytes = MappedFile::open(path).map_err(|e| io(&e))?;
        let folder = match path.parent() {
            Some(p) if p.as_os_str().is_empty() => PathBuf::from("."),
            Some(p) => p.to_path_buf(),
            None => PathBuf::from("."),
        };
        Ok(Source { bytes, folder: Some(folder), without: false, files: RefCell::default() })
    }
    /// The external files that tensors were read from, in order.
    pub fn external(&self) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = self.files.borrow().keys().cloned().collect();
        files.sort();
        files
    }
    /// Takes bytes that are in memory; tensors in other files can't be read.
    pub fn memory(bytes: Vec<u8>) -> Source {
        Source { bytes: Arc::new(bytes), folder: None, without: false, files: RefCell::default() }
    }
}

/// The contents of a tensor of the file: numbers or strings.
#[derive(Clone, Debug)]
pub enum Contents {
    /// Numbers.
    Tensor(Tensor),
    /// Strings in row-major order.
    Strings {
        /// Dims.
        shape: Vec<usize>,
        /// Elements; strings of ONNX are UTF-8.
        elements: Vec<String>,
    },
}

/// Dims and number of elements.
fn shape(p: &TensorProto) -> Result<(Vec<usize>, usize)> {
    let bad = |detail: String| OnnxError::Tensor { name: p.name.clone(), detail };
    if p.dims.len() > MAX_RANK {
        return Err(bad(format!("has {} dims", p.dims.len())));
    }
    let mut n = 1usize;
    let mut shape = Vec::new();
    for &d in &p.dims {
        let d = usize::try_from(d).map_err(|_| bad(format!("dim {d} is negative")))?;
        n = n
            .checked_mul(d)
            .filter(|&n| n < 1 << 48)
            .ok_or_else(|| bad(format!("dims {:?} are too large", p.dims)))?;
        shape.push(d);
    }
    Ok((shape, n))
}

/// Reads a tensor of a file.
pub fn tensor(p: &TensorProto, source: &Source) -> Result<Contents> {
    let bad = |detail: String| OnnxError::Tensor { name: p.name.clone(), detail };
    let (shape, n) = shape(p)?;
    if p.data_type == STRING {
        if p.string_data.len() != n {
            return Err(bad(format!("{} strings for {n} places", p.string_data.len())));
        }
        let elements =
            p.string_data.iter().map(|s| String::from_utf8(s.clone())).collect::<std::result::Result<_, _>>();
        return Ok(Contents::Strings {
            shape,
            elements: elements.map_err(|_| bad("a string is not UTF-8".into()))?,
        });
    }
    let dtype =
        dtype(p.data_type).ok_or_else(|| bad(format!("element type {} is not supported", p.data_type)))?;
    let need = dtype.bytes_for(n).ok_or_else(|| bad("too large".into()))?;
    let wrap = |e: tongtu_tensor::TensorError| bad(e.to_string());
    let view = |bytes: &Arc<dyn Storage>, start: usize, len: usize| -> Result<Tensor> {
        if len != need {
            return Err(bad(format!("{len} bytes of data where {shape:?} of {dtype} takes {need}")));
        }
        if need < MAPPED {
            let data = bytes
                .bytes()
                .get(start..start + len)
                .ok_or_else(|| bad("its data is outside the file".into()))?;
            return Tensor::from_bytes(dtype, &shape, data.to_vec()).map_err(wrap);
        }
        Tensor::from_storage(dtype, &shape, bytes.clone(), start).map_err(wrap)
    };
    if p.data_location == 1 {
        // Sizes and indices must be known.
        let known = !dtype.is_float() && n <= crate::val::MAX_CONTENTS;
        if source.without && !known && is_missing(p, source) {
            return Tensor::absent(dtype, &shape).map(Contents::Tensor).map_err(wrap);
        }
        let (file, offset, len) = external(p, source, need)?;
        return view(&file, offset, len).map(Contents::Tensor);
    }
    if let Some(span) = p.raw_data {
        return view(&source.bytes, span.start, span.len).map(Contents::Tensor);
    }
    let bytes = typed_bytes(p, dtype, n, need)?;
    Tensor::from_bytes(dtype, &shape, bytes).map(Contents::Tensor).map_err(wrap)
}

/// Whether the file with a tensor's external data is not there.
fn is_missing(p: &TensorProto, source: &Source) -> bool {
    let location = p.external_data.iter().find(|e| e.key == "location");
    let path = location.zip(source.folder.as_deref()).map(|(l, folder)| folder.join(&l.value));
    path.is_some_and(|p| !p.exists())
}

/// The elements of the typed lists as bytes.
fn typed_bytes(p: &TensorProto, dtype: DType, n: usize, need: usize) -> Result<Vec<u8>> {
    let count = |have: usize, want: usize| {
        if have == want {
            Ok(())
        } else {
            Err(OnnxError::Tensor {
                name: p.name.clone(),
                detail: format!("{have} elements of data for {want} places"),
            })
        }
    };
    Ok(match dtype {
        DType::F32 => {
            count(p.float_data.len(), n)?;
            p.float_data.iter().flat_map(|v| v.to_le_bytes()).collect()
        }
        DType::F64 => {
            count(p.double_data.len(), n)?;
            p.double_data.iter().flat_map(|v| v.to_le_bytes()).collect()
        }
        DType::I64 => {
            count(p.int64_data.len(), n)?;
            p.int64_data.iter().flat_map(|v| v.to_le_bytes()).collect()
        }
        DType::U64 => {
            count(p.uint64_data.len(), n)?;
            p.uint64_data.iter().flat_map(|v| v.to_le_bytes()).collect()
        }
        DType::U32 => {
            count(p.uint64_data.len(), n)?;
            p.uint64_data.iter().flat_map(|v| (*v as u32).to_le_bytes()).collect()
        }
        _ => match dtype.byte_size() {
            Some(size) => {
                count(p.int32_data.len(), n)?;
                p.int32_data.iter().flat_map(|v| v.to_le_bytes().into_iter().take(size)).collect()
            }
            // One entry holds one byte of packed elements.
            None => {
                count(p.int32_data.len(), need)?;
                p.int32_data.iter().map(|v| *v as u8).collect()
            }
        },
    })
}

/// The file, offset and length of a tensor's external data.
fn external(p: &TensorProto, source: &Source, need: usize) -> Result<(Arc<dyn Storage>, usize, usize)> {
    let bad = |detail: String| OnnxError::External { name: p.name.clone(), detail };
    let get =
        |key: &str| p.external_data.iter().find(|e: &&StringEntry| e.key == key).map(|e| e.value.as_str());
    let number = |key: &str| {
        get(key).map(|v| v.parse::<usize>().map_err(|_| bad(format!("{key} '{v}' is no number")))).transpose()
    };
    let location = get("location").ok_or_else(|| bad("has no location".into()))?;
    let folder =
        source.folder.as_deref().ok_or_else(|| bad("the model was not read from a folder".into()))?;
    let path = inside(folder, location).map_err(bad)?;
    let known = source.files.borrow().get(&path).cloned();
    let file: Arc<dyn Storage> = match known {
        Some(file) => file,
        None => {
            let file = MappedFile::open(&path).map_err(|e| bad(format!("'{location}': {e}")))?;
            source.files.borrow_mut().insert(path, file.clone());
            file
        }
    };
    let have = file.bytes().len();
    let offset = number("offset")?.unwrap_or(0);
    let len = number("length")?.unwrap_or(need);
    if len != need {
        return Err(bad(format!("length {len} where the dims take {need} bytes")));
    }
    if offset.checked_add(len).is_none_or(|end| end > have) {
        return Err(bad(format!("'{location}' has {have} bytes; {len} from {offset} on are wanted")));
    }
    Ok((file, offset, len))
}

/// The path of a file that must lie in a folder, links resolved.
fn inside(folder: &Path, location: &str) -> std::result::Result<PathBuf, String> {
    let relative = Path::new(location);
    if location.is_empty()
        || !relative.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir))
    {
        return Err(format!("'{location}' is not a path inside the model's folder"));
    }
    let folder = folder.canonicalize().map_err(|e| format!("the model's folder: {e}"))?;
    let path = folder.join(relative).canonicalize().map_err(|e| format!("'{location}': {e}"))?;
    if !path.starts_with(&folder) {
        return Err(format!("'{location}' leads out of the model's folder"));
    }
    if !path.is_file() {
        return Err(format!("'{location}' is not a file"));
    }
    Ok(path)
}

/// What a data file holds; the file does not say so itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// `TensorProto`.
    Tensor,
    /// `SequenceProto`.
    Sequence,
    /// `OptionalProto`.
    Optional,
}

/// Reads a data file (`input_0.pb` and the like).
///
/// # Errors
/// As for models: a typed error with a code.
pub fn read_file(path: &Path, kind: FileKind) -> Result<HostValue> {
    let source = Source::open(path)?;
    let bytes = source.bytes.bytes();
    match kind {
        FileKind::Tensor => file_tensor(&crate::wire::read(bytes)?, &source),
        FileKind::Sequence => file_sequence(&crate::wire::read(bytes)?, &source),
        FileKind::Optional => file_optional(&crate::wire::read(bytes)?, &source),
    }
}

fn file_tensor(p: &TensorProto, source: &Source) -> Result<HostValue> {
    Ok(match tensor(p, source)? {
        Contents::Tensor(t) => HostValue::Tensor(t),
        Contents::Strings { shape, elements } => HostValue::Strings { shape, data: elements },
    })
}

fn file_sequence(p: &SequenceProto, source: &Source) -> Result<HostValue> {
    let mut items = Vec::new();
    for t in &p.tensor_values {
        items.push(file_tensor(t, source)?);
    }
    for s in &p.sequence_values {
        items.push(file_sequence(s, source)?);
    }
    for o in &p.optional_values {
        items.push(file_optional(o, source)?);
    }
    Ok(HostValue::Sequence(items))
}

fn file_optional(p: &OptionalProto, source: &Source) -> Result<HostValue> {
    let item = match (&p.tensor_value, &p.sequence_value, &p.optional_value) {
        (Some(t), _, _) => Some(file_tensor(t, source)?),
        (_, Some(s), _) => Some(file_sequence(s, source)?),
        (_, _, Some(o)) => Some(file_optional(o, source)?),
        _ => None,
    };
    Ok(HostValue::Optional(item.map(Box::new)))
}

/// A tensor as the bytes of a `TensorProto`; `None` for element types that ONNX does not have.
pub fn write_tensor(name: &str, t: &Tensor) -> Option<Vec<u8>> {
    fn varint(out: &mut Vec<u8>, mut v: u64) {
        while v >= 0x80 {
            out.push(v as u8 | 0x80);
            v >>= 7;
        }
        out.push(v as u8);
    }
    let mut out = Vec::new();
    for &d in t.shape() {
        out.push(1 << 3);
        varint(&mut out, d as u64);
    }
    out.push(2 << 3);
    varint(&mut out, dtype_number(t.dtype())? as u64);
    for (number, bytes) in [(8u8, name.as_bytes()), (9, &t.bytes())] {
        out.push(number << 3 | 2);
        varint(&mut out, bytes.len() as u64);
        out.extend_from_slice(bytes);
    }
    Some(out)
}
