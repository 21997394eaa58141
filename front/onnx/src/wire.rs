//! The protobuf wire format, read with limits.
//!
//! Fields are visited where they lie; nothing is copied but strings and lists of numbers. Nesting is limited to
//! [`MAX_DEPTH`] and the memory of the result to a multiple of the file's size, so that a hostile file costs no more
//! than an honest one of its length.

use std::cell::Cell;

use crate::error::OnnxError;

/// Deepest nesting of messages: each subgraph of a model takes three levels.
pub const MAX_DEPTH: u32 = 100;

/// A range of bytes of the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: usize,
    /// Number of bytes.
    pub len: usize,
}

/// What reading one file may still use.
#[derive(Debug)]
pub(crate) struct Limits {
    memory: Cell<usize>,
}

impl Limits {
    /// Limits for a file of this many bytes.
    pub(crate) fn for_file(len: usize) -> Limits {
        Limits { memory: Cell::new(len.saturating_mul(16).saturating_add(1 << 20)) }
    }
    fn take(&self, bytes: usize, at: usize) -> Result<(), OnnxError> {
        match self.memory.get().checked_sub(bytes) {
            Some(left) => {
                self.memory.set(left);
                Ok(())
            }
            None => Err(OnnxError::Limit {
                what: format!("the message at byte {at} needs too much memory for its length"),
            }),
        }
    }
}

/// One field's value as it lies in the file.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Field<'a> {
    /// Wire type 0.
    Varint(u64),
    /// Wire type 1.
    Fixed64(u64),
    /// Wire type 2.
    Bytes(&'a [u8]),
    /// Wire type 5.
    Fixed32(u32),
}

/// Reads the fields of one message.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    /// Offset of `bytes[0]` in the file.
    base: usize,
    at: usize,
    depth: u32,
    limits: &'a Limits,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8], limits: &'a Limits) -> Reader<'a> {
        Reader { bytes, base: 0, at: 0, depth: 0, limits }
    }

    fn damaged(&self, detail: &str) -> OnnxError {
        OnnxError::Malformed { offset: self.base + self.at, detail: detail.to_string() }
    }

    fn varint(&mut self) -> Result<u64, OnnxError> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let Some(&byte) = self.bytes.get(self.at) else {
                return Err(self.damaged("the file ends inside a number"));
            };
            self.at += 1;
            if shift < 64 {
                value |= u64::from(byte & 0x7f).wrapping_shl(shift);
            }
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.damaged("a number has more than ten bytes"))
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], OnnxError> {
        let end = self.at.checked_add(len).filter(|&e| e <= self.bytes.len());
        let Some(end) = end else { return Err(self.damaged("a field is longer than what encloses it")) };
        let out = &self.bytes[self.at..end];
        self.at = end;
        Ok(out)
    }

    /// The next field's number and value; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<(u32, Field<'a>)>, OnnxError> {
        if self.at == self.bytes.len() {
            return Ok(None);
        }
        let key = self.varint()?;
        let number = u32::try_from(key >> 3).ok().filter(|&n| n > 0 && n < 1 << 29);
        let Some(number) = number else { return Err(self.damaged("a field number is out of range")) };
        let value = match key & 7 {
            0 => Field::Varint(self.varint()?),
            1 => Field::Fixed64(u64::from_le_bytes(self.take(8)?.try_into().unwrap_or_default())),
            2 => {
                let len = self.varint()?;
                let len = usize::try_from(len)
                    .map_err(|_| self.damaged("a field is longer than what encloses it"))?;
                Field::Bytes(self.take(len)?)
            }
            5 => Field::Fixed32(u32::from_le_bytes(self.take(4)?.try_into().unwrap_or_default())),
            _ => return Err(self.damaged("a field has an unknown wire type")),
        };
        Ok(Some((number, value)))
    }

    /// The place of a field that was just read, in the file.
    pub(crate) fn span(&self, bytes: &[u8]) -> Span {
        Span { start: self.base + self.at - bytes.len(), len: bytes.len() }
    }

    fn inner(&self, bytes: &'a [u8]) -> Result<Reader<'a>, OnnxError> {
        if self.depth >= MAX_DEPTH {
            return Err(OnnxError::Limit { what: format!("messages are nested deeper than {MAX_DEPTH}") });
        }
        Ok(Reader {
            bytes,
            base: self.base + self.at - bytes.len(),
            at: 0,
            depth: self.depth + 1,
            limits: self.limits,
        })
    }
}

/// A message: knows its fields.
pub(crate) trait Message: Default {
    /// Takes one field; unknown numbers are ignored.
    fn field(&mut self, number: u32, value: Field<'_>, reader: &Reader<'_>) -> Result<(), OnnxError>;

    /// Reads all fields.
    fn read(&mut self, mut reader: Reader<'_>) -> Result<(), OnnxError> {
        while let Some((number, value)) = reader.next()? {
            self.field(number, value, &reader)?;
        }
        Ok(())
    }
}

/// A value of one field: set, or appended to.
pub(crate) trait Merge {
    fn merge(&mut self, value: Field<'_>, reader: &Reader<'_>) -> Result<(), OnnxError>;
}

fn wrong(reader: &Reader<'_>) -> OnnxError {
    reader.damaged("a field has the wrong wire type")
}

impl Merge for String {
    fn merge(&mut self, value: Field<'_>, reader: &Reader<'_>) -> Result<(), OnnxError> {
        let Field::Bytes(b) = value else { return Err(wrong(reader)) };
        reader.limits.take(b.len(), reader.base + reader.at)?;
        *self = std::str::from_utf8(b).map_err(|_| reader.damaged("a name is not UTF-8"))?.to_string();
        Ok(())
    }
}

impl Merge for Vec<String> {
    fn merge(&mut self, value: Field<'_>, reader: &Reader<'_>) -> Result<(), OnnxError> {
        reader.limits.take(size_of::<String>(), reader.base + reader.at)?;
        let mut s = String::new();
        s.merge(value, reader)?;
        self.push(s);
        Ok(())
    }
}

impl Merge for Span {
    fn merge(&mut self, value: Field<'_>, reader: &Reader<'_>) -> Result<(), OnnxError> {
        let Field::Bytes(b) = value else { return Err(wrong(reader)) };
        *self = reader.span(b);
        Ok(())
    }
}

/// Byte strings.
impl Merge for Vec<u8> {
    fn merge(&mut self, value: Field<'_>, reader: &Reader<'_>) -> Result<(), OnnxError> {
        let Field::Bytes(b) = value else { return Err(wrong(reader)) };
        reader.limits.take(b.len(), reader.base + reader.at)?;
        *self = b.to_vec();
        Ok(())
    }
}

impl Merge for Vec<Vec<u8>> {
    fn merge(&mut self, value: Field<'_>, reader: &Reader<'_>) -> Result<(), OnnxError> {
        reader.limits.take(size_of::<Vec<u8>>(), reader.base + reader.at)?;
        let mut s = Vec::new();
        Merge::merge(&mut s, value, reader)?;
        self.push(s);
        Ok(())
    }
}

impl<T: Merge + Default> Merge for Option<T> {
    fn merge(&mut self, value: Field<'_>, reader: &Reader<'_>) -> Result<(), OnnxError> {
        self.get_or_insert_with(T::default).merge(value, reader)
    }
}

impl<M: Message> Merge for Box<M> {
    fn merge(&mut self, value: Field<'_>, reader: &Reader<'_>) -> Result<(), OnnxError> {
        let Field::Bytes(b) = value else { return Err(wrong(reader)) };
        reader.limits.take(size_of::<M>(), reader.base + reader.at)?;
        self.read(reader.inner(b)?)
    }
}

/// A list of messages, boxed or not.
pub(crate) fn push_message<M: Message>(
    list: &mut Vec<M>,
    value: Field<'_>,
    reader: &Reader<'_>,
) -> Result<(), OnnxError> {
    let Field::Bytes(b) = value else { return Err(wrong(reader)) };
    reader.limits.take(size_of::<M>(), reader.base + reader.at)?;
    let mut m = M::default();
    m.read(reader.inner(b)?)?;
    list.push(m);
    Ok(())
}

macro_rules! numbers {
    ($($ty:ty: $wire:ident, $value:ident => $convert:expr, $packed:ident => $next:expr;)*) => { $(
        impl Merge for $ty {
            fn merge(&mut self, value: Field<'_>, reader: &Reader<'_>) -> Result<(), OnnxError> {
                let Field::$wire($value) = value else { return Err(wrong(reader)) };
                *self = $convert;
                Ok(())
            }
        }
        impl Merge for Vec<$ty> {
            fn merge(&mut self, value: Field<'_>, reader: &Reader<'_>) -> Result<(), OnnxError> {
                match value {
                    Field::$wire($value) => {
                        reader.limits.take(size_of::<$ty>(), reader.base + reader.at)?;
                        self.push($convert);
                    }
                    Field::Bytes(b) => {
                        let mut $packed = reader.inner(b)?;
                        while $packed.at < $packed.bytes.len() {
                            reader.limits.take(size_of::<$ty>(), $packed.base + $packed.at)?;
                            let $value = $next;
                            self.push($convert);
                        }
                    }
                    _ => return Err(wrong(reader)),
                }
                Ok(())
            }
        }
    )* };
}

numbers! {
    i64: Varint, v => v as i64, r => r.varint()?;
    i32: Varint, v => v as i32, r => r.varint()?;
    u64: Varint, v => v, r => r.varint()?;
    f32: Fixed32, v => f32::from_bits(v), r => u32::from_le_bytes(r.take(4)?.try_into().unwrap_or_default());
    f64: Fixed64, v => f64::from_bits(v), r => u64::from_le_bytes(r.take(8)?.try_into().unwrap_or_default());
}

/// Reads a whole file as one message.
pub(crate) fn read<M: Message>(bytes: &[u8]) -> Result<M, OnnxError> {
    let limits = Limits::for_file(bytes.len());
    let mut message = M::default();
    message.read(Reader::new(bytes, &limits))?;
    Ok(message)
}
