//! Compiled kernels as bytes, and the calling convention they share.
//!
//! # The kernel ABI, version 1
//! A kernel is one function of the platform's C convention:
//!
//! ```text
//! void kernel(const Buf *bufs, const int64_t *scalars, const int64_t grid[3],
//!             int64_t first, int64_t last, uint8_t *scratch);
//! struct Buf { uint8_t *ptr; int64_t len; };   // len in elements
//! ```
//!
//! It runs the program instances with linear index `first <= i < last`; instance `i` has grid coordinates
//! `x = i % grid[0]`, `y = i / grid[0] % grid[1]`, `z = i / (grid[0] * grid[1])`. Each scalar argument
//! takes 8 bytes: integers are sign-extended, floats are their bits, zero-extended. `scratch` is 64-byte
//! aligned and holds as many bytes as the artifact states for the kernel; no two calls share it at a
//! time. Elements narrower than a byte are packed from the low bits; a bool takes a byte. The function
//! calls nothing outside the blob and keeps no state.

use crate::Error;

/// One kernel in an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name, unique in the artifact.
    pub name: String,
    /// Where its code starts in the blob.
    pub offset: u32,
    /// Bytes of scratch each concurrent call needs.
    pub scratch: u64,
    /// Buffers it takes.
    pub buffers: u32,
    /// Scalars it takes.
    pub scalars: u32,
}

/// Compiled kernels: a position-independent blob, what is in it, and what it needs of the machine.
///
/// [This type's module](crate::artifact) states the kernel ABI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// The architecture of the code, such as `x86_64`.
    pub arch: String,
    /// Bits of the vector registers that the code is made for, on architectures whose vector length varies; 0 if it holds for any.
    pub vector: u32,
    /// Instruction set features the code may use, by LLVM's names.
    pub features: Vec<String>,
    /// The kernels.
    pub entries: Vec<Entry>,
    /// Code and constants, to be placed at a page-aligned address.
    pub blob: Vec<u8>,
}

const MAGIC: &[u8; 8] = b"TTCPUART";
const VERSION: u32 = 2;

impl Artifact {
    /// Whether a machine can run the code, given its architecture, the bits of its vector registers if their length varies among
    /// machines of its kind (else 0), and its features by LLVM's names; what is missing if not.
    pub fn runs_on(&self, arch: &str, vector: u32, features: &[String]) -> Result<(), Error> {
        if self.arch != arch {
            return Err(Error::Architecture { need: self.arch.clone(), have: arch.to_string() });
        }
        if let Some(missing) = self.features.iter().find(|f| !features.contains(f)) {
            return Err(Error::Feature(missing.clone()));
        }
        match self.vector == 0 || self.vector == vector {
            true => Ok(()),
            false => Err(Error::VectorLength { need: self.vector, have: vector }),
        }
    }

    /// The artifact as bytes: little-endian, with a version and a checksum.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.blob.len() + 256);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 8]);
        put_str(&mut out, &self.arch);
        out.extend_from_slice(&self.vector.to_le_bytes());
        put_u32(&mut out, self.features.len());
        for f in &self.features {
            put_str(&mut out, f);
        }
        put_u32(&mut out, self.entries.len());
        for e in &self.entries {
            put_str(&mut out, &e.name);
            out.extend_from_slice(&e.offset.to_le_bytes());
            out.extend_from_slice(&e.scratch.to_le_bytes());
            out.extend_from_slice(&e.buffers.to_le_bytes());
            out.extend_from_slice(&e.scalars.to_le_bytes());
        }
        put_u32(&mut out, self.blob.len());
        out.extend_from_slice(&self.blob);
        let sum = checksum(&out[20..]);
        out[12..20].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// Reads what [`Artifact::to_bytes`] wrote; anything else is an error.
    pub fn from_bytes(bytes: &[u8]) -> Result<Artifact, Error> {
        let bad = |s: &str| Error::Artifact(s.to_string());
        let mut r = Reader(bytes);
        if r.take(8)? != MAGIC {
            return Err(bad("these bytes are no artifact"));
        }
        let version = r.u32()?;
        if version != VERSION {
            return Err(Error::Artifact(format!("version {version}; this program reads version {VERSION}")));
        }
        let sum = r.u64()?;
        if sum != checksum(r.0) {
            return Err(bad("the checksum does not match"));
        }
        let arch = r.string()?;
        let vector = r.u32()?;
        let n = r.u32()?;
        let features = (0..n).map(|_| r.string()).collect::<Result<Vec<_>, _>>()?;
        let n = r.u32()?;
        let mut entries: Vec<Entry> = Vec::new();
        for _ in 0..n {
            let name = r.string()?;
            let entry =
                Entry { name, offset: r.u32()?, scratch: r.u64()?, buffers: r.u32()?, scalars: r.u32()? };
            entries.push(entry);
        }
        let size = r.u32()? as usize;
        let blob = r.take(size)?.to_vec();
        if !r.0.is_empty() {
            return Err(bad("bytes follow its end"));
        }
        if entries.iter().any(|e| e.offset as usize >= blob.len()) {
            return Err(bad("a kernel starts outside the blob"));
        }
        Ok(Artifact { arch, vector, features, entries, blob })
    }
}

fn put_u32(out: &mut Vec<u8>, n: usize) {
    // Lengths come from artifacts of this program, all far below 4 GiB; `link` bounds the blob.
    out.extend_from_slice(&(n as u32).to_le_bytes());
}

fn put_str(out: &mut Vec<u8>, s: &str) {
    put_u32(out, s.len());
    out.extend_from_slice(s.as_bytes());
}

/// FNV-1a, 64 bits.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3))
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], Error> {
        let (head, tail) =
            self.0.split_at_checked(n).ok_or_else(|| Error::Artifact("it ends too early".to_string()))?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u32(&mut self) -> Result<u32, Error> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Error> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn string(&mut self) -> Result<String, Error> {
        let n = self.u32()? as usize;
        let text = std::str::from_utf8(self.take(n)?);
        Ok(text.map_err(|_| Error::Artifact("a name is not UTF-8".to_string()))?.to_string())
    }
}
