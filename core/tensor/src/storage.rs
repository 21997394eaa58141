//! Where a tensor's bytes live.

use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use crate::TensorError;

/// Bytes that several tensors may share. They must not change while a tensor refers to them.
pub trait Storage: Send + Sync + fmt::Debug {
    /// All the bytes.
    fn bytes(&self) -> &[u8];

    /// Lets go of memory that some of the bytes take and that can be had again: what is read next may take longer.
    fn release(&self, _range: Range<usize>) {}
}

impl Storage for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
}

/// One cache line, the unit of owned storage.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

// SAFETY: an array of bytes of exactly the alignment, so without padding; every bit pattern is valid.
#[allow(unsafe_code)]
unsafe impl Zeroable for Line {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Pod for Line {}

/// Owned bytes, aligned to 64.
#[derive(Clone)]
pub(crate) struct Owned {
    lines: Vec<Line>,
    len: usize,
}

impl Owned {
    /// `len` zero bytes; `None` if there is not that much memory.
    pub(crate) fn zeros(len: usize) -> Option<Owned> {
        let lines = bytemuck::allocation::try_zeroed_vec(len.div_ceil(64)).ok()?;
        Some(Owned { lines, len })
    }

    /// 64 zero bytes.
    pub(crate) fn default_line() -> Owned {
        Owned { lines: vec![Line([0; 64])], len: 64 }
    }

    /// A copy of some bytes.
    pub(crate) fn copy_of(bytes: &[u8]) -> Owned {
        let mut owned = Owned { lines: bytemuck::zeroed_vec(bytes.len().div_ceil(64)), len: bytes.len() };
        owned.bytes_mut().copy_from_slice(bytes);
        owned
    }

    /// The bytes, to write.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

impl Storage for Owned {
    fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl fmt::Debug for Owned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Owned({} bytes)", self.len)
    }
}

/// A file mapped into memory, read only.
///
/// The file must not be changed or cut short while it is mapped: reading pages that are gone ends the process.
#[derive(Debug)]
pub struct MappedFile {
    map: Option<memmap2::Mmap>,
}

impl MappedFile {
    /// Maps the whole of a file.
    pub fn open(path: impl AsRef<Path>) -> Result<Arc<MappedFile>, TensorError> {
        let file = File::open(path)?;
        if file.metadata()?.len() == 0 {
            return Ok(Arc::new(MappedFile { map: None }));
        }
        // SAFETY: the mapping is private and read only. That nobody else changes the file is a condition on the
        // caller stated above; it cannot be checked.
        #[allow(unsafe_code)]
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Arc::new(MappedFile { map: Some(map) }))
    }
}

impl Storage for MappedFile {
    fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }

    fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Some(map) = &self.map {
            let end = range.end.min(map.len());
            let len = end.saturating_sub(range.start);
            // SAFETY: the mapping is of a file and read only, so its pages are read from the file again.
            #[allow(unsafe_code)]
            let _ =
                unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, len) };
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}
