//! NumPy's array files: `.npy`, and `.npz` archives of them.
//!
//! Types that NumPy does not have are written as `ml_dtypes` writes them: the raw bytes of each element under a void type
//! code, elements of less than a byte one to a byte. The code does not say which type that was, so reading takes a hint;
//! without one, 2-byte voids are bf16, and 1-byte voids are an error.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::path::Path;

use crate::{DType, Tensor, TensorError};

const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// Longest header accepted; NumPy itself stops at 10000.
const MAX_HEADER: u64 = 1 << 16;
/// NumPy's limit.
const MAX_RANK: usize = 64;

/// Reads one array; `hint` gives the type of elements that the file holds as raw bytes.
pub fn read(reader: &mut impl Read, hint: Option<DType>) -> Result<Tensor, TensorError> {
    let mut start = [0; 8];
    reader.read_exact(&mut start)?;
    if &start[..6] != MAGIC {
        return Err(invalid("no NumPy magic number"));
    }
    let header_len = match start[6] {
        1 => {
            let mut len = [0; 2];
            reader.read_exact(&mut len)?;
            u16::from_le_bytes(len).into()
        }
        2 | 3 => {
            let mut len = [0; 4];
            reader.read_exact(&mut len)?;
            u64::from(u32::from_le_bytes(len))
        }
        version => return Err(TensorError::Npy(format!("unknown version {version}"))),
    };
    if header_len > MAX_HEADER {
        return Err(invalid("the header is too long"));
    }
    let mut header = vec![0; header_len as usize];
    reader.read_exact(&mut header)?;
    let header = String::from_utf8(header).map_err(|_| invalid("the header is not UTF-8"))?;
    let header = Header::parse(&header)?;
    let layout = Layout::of(&header.descr, hint)?;
    header.load(layout, reader)
}

/// Reads a `.npy` file; `hint` gives the type of elements that the file holds as raw bytes.
pub fn load(path: impl AsRef<Path>, hint: Option<DType>) -> Result<Tensor, TensorError> {
    read(&mut BufReader::new(File::open(path)?), hint)
}

/// Writes one array, in row-major order.
pub fn write(writer: &mut impl Write, tensor: &Tensor) -> Result<(), TensorError> {
    let dims: Vec<String> = tensor.shape().iter().map(usize::to_string).collect();
    let shape = match dims.as_slice() {
        [dim] => format!("({dim},)"),
        dims => format!("({})", dims.join(", ")),
    };
    let descr = descr(tensor.dtype());
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    // The data begin at a multiple of 64.
    let unpadded = MAGIC.len() + 4 + header.len() + 1;
    header.push_str(&" ".repeat(unpadded.next_multiple_of(64) - unpadded));
    header.push('\n');
    let len = u16::try_from(header.len()).map_err(|_| invalid("the rank is too high"))?;
    writer.write_all(MAGIC)?;
    writer.write_all(&[1, 0])?;
    writer.write_all(&len.to_le_bytes())?;
    writer.write_all(header.as_bytes())?;
    match tensor.dtype().byte_size() {
        Some(_) => writer.write_all(&tensor.bytes())?,
        None => writer.write_all(&tensor.codes().map(|code| code as u8).collect::<Vec<_>>())?,
    }
    Ok(())
}

/// Writes a `.npy` file.
pub fn save(path: impl AsRef<Path>, tensor: &Tensor) -> Result<(), TensorError> {
    let mut writer = BufWriter::new(File::create(path)?);
    write(&mut writer, tensor)?;
    Ok(writer.flush()?)
}

/// Reads every array of an `.npz` archive in order, with its name.
pub fn read_npz(reader: impl Read + Seek) -> Result<Vec<(String, Tensor)>, TensorError> {
    let mut archive = zip::ZipArchive::new(reader).map_err(zip_error)?;
    let mut arrays = Vec::new();
    for i in 0..archive.len() {
        let mut entry = archive.by_index(i).map_err(zip_error)?;
        let Some(name) = entry.name().strip_suffix(".npy").map(str::to_owned) else { continue };
        arrays.push((name, read(&mut entry, None)?));
    }
    Ok(arrays)
}

/// Reads an `.npz` file, see [`read_npz`].
pub fn load_npz(path: impl AsRef<Path>) -> Result<Vec<(String, Tensor)>, TensorError> {
    read_npz(BufReader::new(File::open(path)?))
}

/// Writes an `.npz` archive, uncompressed as `numpy.savez` does.
pub fn write_npz<'a>(
    writer: impl Write + Seek,
    arrays: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
) -> Result<(), TensorError> {
    let mut archive = zip::ZipWriter::new(writer);
    for (name, tensor) in arrays {
        let options = zip::write::SimpleFileOptions::default()
            .compression_method(zip::CompressionMethod::Stored)
            .large_file(tensor.nbytes() as u64 >= u64::from(u32::MAX) / 2);
        archive.start_file(format!("{name}.npy"), options).map_err(zip_error)?;
        write(&mut archive, tensor)?;
    }
    archive.finish().map_err(zip_error)?;
    Ok(())
}

/// Writes an `.npz` file, see [`write_npz`].
pub fn save_npz<'a>(
    path: impl AsRef<Path>,
    arrays: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
) -> Result<(), TensorError> {
    write_npz(BufWriter::new(File::create(path)?), arrays)
}

fn invalid(message: &str) -> TensorError {
    TensorError::Npy(message.to_owned())
}

fn zip_error(error: zip::result::ZipError) -> TensorError {
    match error {
        zip::result::ZipError::Io(error) => TensorError::Io(error),
        error => TensorError::Zip(error.to_string()),
    }
}

/// The type code we write.
fn descr(dtype: DType) -> &'static str {
    match dtype {
        DType::Bool => "|b1",
        DType::I8 => "|i1",
        DType::I16 => "<i2",
        DType::I32 => "<i4",
        DType::I64 => "<i8",
        DType::U8 => "|u1",
        DType::U16 => "<u2",
        DType::U32 => "<u4",
        DType::U64 => "<u8",
        DType::F16 => "<f2",
        DType::F32 => "<f4",
        DType::F64 => "<f8",
        DType::BF16 => "<V2",
        DType::F8E5M2 => "<f1",
        _ => "<V1",
    }
}

/// How elements lie in a file.
#[derive(Clone, Copy)]
struct Layout {
    dtype: DType,
    /// Bytes of one element.
    size: usize,
    big_endian: bool,
}

impl Layout {
    fn of(descr: &str, hint: Option<DType>) -> Result<Layout, TensorError> {
        let unsupported = || TensorError::NpyType(descr.to_owned());
        let (big_endian, code) = match descr.split_at_checked(1) {
            Some(("<" | "|" | "=", code)) => (false, code),
            Some((">", code)) => (true, code),
            _ => (false, descr),
        };
        let stored = match code {
            "b1" | "?" => Some(DType::Bool),
            "i1" => Some(DType::I8),
            "i2" => Some(DType::I16),
            "i4" => Some(DType::I32),
            "i8" => Some(DType::I64),
            "u1" => Some(DType::U8),
            "u2" => Some(DType::U16),
            "u4" => Some(DType::U32),
            "u8" => Some(DType::U64),
            "f1" => Some(DType::F8E5M2),
            "f2" => Some(DType::F16),
            "f4" => Some(DType::F32),
            "f8" => Some(DType::F64),
            "V2" if hint.is_none() => Some(DType::BF16),
            _ => None,
        };
        // Raw bytes, of the hinted type.
        let raw = match code {
            "V1" | "u1" | "f1" => 1,
            "V2" | "u2" => 2,
            _ => 0,
        };
        let dtype = match (stored, hint) {
            (Some(stored), None) => stored,
            (Some(stored), Some(hint)) if stored == hint => stored,
            (_, Some(hint)) if raw > 0 && hint.byte_size().unwrap_or(1) == raw => hint,
            (Some(have), Some(want)) => return Err(TensorError::WrongType { have, want }),
            (None, _) => return Err(unsupported()),
        };
        Ok(Layout { dtype, size: dtype.byte_size().unwrap_or(1), big_endian })
    }
}

/// What a header says.
struct Header {
    descr: String,
    fortran_order: bool,
    shape: Vec<usize>,
}

impl Header {
    /// Parses the Python dict of a header.
    fn parse(text: &str) -> Result<Header, TensorError> {
        let mut parser = Parser { rest: text };
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        parser.expect('{')?;
        while !parser.eat('}') {
            let key = parser.string()?;
            parser.expect(':')?;
            match key {
                "descr" if parser.peek() == Some('[') => {
                    return Err(TensorError::NpyType("with fields".to_owned()));
                }
                "descr" => descr = Some(parser.string()?.to_owned()),
                "fortran_order" => fortran_order = Some(parser.boolean()?),
                "shape" => shape = Some(parser.shape()?),
                _ => return Err(invalid("the header has an unknown key")),
            }
            if !parser.eat(',') && parser.peek() != Some('}') {
                return Err(invalid("the header is malformed"));
            }
        }
        if parser.peek().is_some() {
            return Err(invalid("text after the header"));
        }
        match (descr, fortran_order, shape) {
            (Some(descr), Some(fortran_order), Some(shape)) => Ok(Header { descr, fortran_order, shape }),
            _ => Err(invalid("the header lacks descr, fortran_order or shape")),
        }
    }

    /// Reads the elements that follow.
    fn load(self, layout: Layout, reader: &mut impl Read) -> Result<Tensor, TensorError> {
        let Header { fortran_order, mut shape, .. } = self;
        let Layout { dtype, size, big_endian } = layout;
        let count = match shape.contains(&0) {
            true => Some(0),
            false => shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)),
        };
        let need = count.and_then(|n| n.checked_mul(size));
        let Some(need) = need else { return Err(TensorError::TooLarge { dtype, shape }) };
        // Grows with what is there, not with what the header claims.
        let mut bytes = Vec::new();
        reader.take(need as u64).read_to_end(&mut bytes)?;
        if bytes.len() != need {
            return Err(TensorError::WrongSize { dtype, shape, need, have: bytes.len() });
        }
        if big_endian {
            bytes.chunks_exact_mut(size).for_each(<[u8]>::reverse);
        }
        if fortran_order {
            shape.reverse();
        }
        let tensor = match dtype.byte_size() {
            Some(_) => Tensor::from_bytes(dtype, &shape, bytes)?,
            None => Tensor::from_fn(dtype, &shape, |i| dtype.decode(bytes[i].into()))?,
        };
        if !fortran_order {
            return Ok(tensor);
        }
        let axes: Vec<usize> = (0..shape.len()).rev().collect();
        tensor.permute(&axes)?.to_contiguous()
    }
}

/// A parser of the Python literals that headers are made of.
struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn peek(&mut self) -> Option<char> {
        self.rest = self.rest.trim_start();
        self.rest.chars().next()
    }

    fn eat(&mut self, c: char) -> bool {
        self.peek();
        match self.rest.strip_prefix(c) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, c: char) -> Result<(), TensorError> {
        match self.eat(c) {
            true => Ok(()),
            false => Err(invalid("the header is malformed")),
        }
    }

    fn take(&mut self, part: impl Fn(char) -> bool) -> &'a str {
        self.peek();
        let end = self.rest.find(|c| !part(c)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }

    fn string(&mut self) -> Result<&'a str, TensorError> {
        let quote = self.peek().filter(|c| matches!(c, '\'' | '"'));
        let quote = quote.ok_or_else(|| invalid("the header is malformed"))?;
        let (string, rest) =
            self.rest[1..].split_once(quote).ok_or_else(|| invalid("the header is malformed"))?;
        self.rest = rest;
        Ok(string)
    }

    fn boolean(&mut self) -> Result<bool, TensorError> {
        match self.take(|c| c.is_ascii_alphabetic()) {
            "True" => Ok(true),
            "False" => Ok(false),
            _ => Err(invalid("fortran_order is not a bool")),
        }
    }

    fn shape(&mut self) -> Result<Vec<usize>, TensorError> {
        let mut shape = Vec::new();
        self.expect('(')?;
        while !self.eat(')') {
            let digits = self.take(|c| c.is_ascii_digit());
            shape.push(digits.parse().map_err(|_| invalid("a dim is not an integer"))?);
            if shape.len() > MAX_RANK {
                return Err(invalid("the rank is too high"));
            }
            if !self.eat(',') && self.peek() != Some(')') {
                return Err(invalid("the shape is malformed"));
            }
        }
        Ok(shape)
    }
}
