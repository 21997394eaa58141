//! What host and agent say to each other.
//!
//! The host asks, the agent answers, one request at a time. A request or answer is a frame: `MAGIC`, a kind and the length of the body
//! (three 32-bit numbers), then the body of at most `LARGEST` bytes. All numbers are little-endian; a text is its length (32 bits) and
//! UTF-8. The kind of an answer is that of the request with its highest bit set, or `REFUSAL`.
//!
//! | kind | request | body | answer |
//! |---|---|---|---|
//! | 1 | hello | version: u32 | version: u32, bits of a vector register of varying length, else 0: u32, architecture: text, features: u32 and as many texts |
//! | 2 | alloc | bytes: u64 | address: u64 |
//! | 3 | free | address: u64 | |
//! | 4 | write | address: u64, the bytes | |
//! | 5 | read | address: u64, bytes: u32 | the bytes |
//! | 6 | copy | to: u64, from: u64, bytes: u64 | |
//! | 7 | code | address of a blob in memory: u64, bytes: u64 | number of the code: u64 |
//! | 8 | launch | see below | nanoseconds that it took: u64 |
//! | 9 | bye | | and the agent ends |
//!
//! A launch is: number of the code, offset of the kernel in it, bytes of scratch, seconds after which the agent may end itself (0:
//! never), the grid (three), first instance, instance after the last (all u64), buffers and scalars (u32 each); for each buffer its address,
//! bytes and length in elements (u64), then the scalars (u64). The kernel is called as [`artifact`](crate::artifact) says.
//!
//! The body of a refusal is a number (u32: 1 frame, 2 kind, 3 memory, 4 address, 5 argument) and a text. After a frame whose magic number or
//! length is wrong the agent ends, as it does when its input ends.

use std::io::{Read, Write};

/// Version of the protocol.
pub const VERSION: u32 = 1;
/// The first number of each frame.
pub const MAGIC: u32 = 0x4154_5454;
/// Most bytes of a body.
pub const LARGEST: usize = 1 << 20;
/// Marks answers.
pub const ANSWER: u32 = 1 << 31;
/// The kind of a refusal.
pub const REFUSAL: u32 = u32::MAX;

/// Requests, by their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs)]
pub enum Kind {
    Hello = 1,
    Alloc,
    Free,
    Write,
    Read,
    Copy,
    Code,
    Launch,
    Bye,
}

/// Why talking to an agent failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Its command cannot be run.
    #[error("the agent does not start: {0}")]
    Start(String),
    /// It is no more; all later requests fail.
    #[error("the agent ended: {0}")]
    Ended(String),
    /// It did not answer in time, and was ended.
    #[error("the agent did not answer within {0} s")]
    Late(u64),
    /// What it says is not of the protocol's form.
    #[error("the agent does not keep to the protocol: {0}")]
    Frame(String),
    /// It refuses a request.
    #[error("the agent refuses: {text} (code {code})")]
    Refused {
        /// The number of the reason.
        code: u32,
        /// Its words.
        text: String,
    },
}

fn bad<T>(what: impl ToString) -> Result<T, Error> {
    Err(Error::Frame(what.to_string()))
}

/// The bytes of a frame.
///
/// # Panics
/// If the body is larger than [`LARGEST`].
pub fn frame(kind: u32, body: &[u8]) -> Vec<u8> {
    assert!(body.len() <= LARGEST, "a body of {} bytes", body.len());
    let mut out = Vec::with_capacity(12 + body.len());
    for n in [MAGIC, kind, body.len() as u32] {
        out.extend_from_slice(&n.to_le_bytes());
    }
    out.extend_from_slice(body);
    out
}

/// Reads a frame; its kind and body, or `None` where the input ends before one.
///
/// # Errors
/// [`Error::Frame`] if something else comes, [`Error::Ended`] if the input ends inside a frame or fails.
pub fn read_frame(from: &mut impl Read) -> Result<Option<(u32, Vec<u8>)>, Error> {
    let ended = |e: std::io::Error| Error::Ended(e.to_string());
    let mut head = [0; 12];
    let mut have = 0;
    while have < head.len() {
        match from.read(&mut head[have..]) {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(Error::Ended("inside a frame".to_string())),
            Ok(n) => have += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(ended(e)),
        }
    }
    let mut numbers = Body(&head);
    let (magic, kind, len) = (numbers.u32()?, numbers.u32()?, numbers.u32()? as usize);
    if magic != MAGIC {
        return bad(format!("{:?} is not the start of a frame", String::from_utf8_lossy(&head)));
    }
    if len > LARGEST {
        return bad(format!("a frame of {len} bytes"));
    }
    let mut body = vec![0; len];
    from.read_exact(&mut body).map_err(ended)?;
    Ok(Some((kind, body)))
}

/// Writes a frame.
pub(super) fn write_frame(to: &mut impl Write, bytes: &[u8]) -> std::io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

/// The answer in a frame, to a request of a kind.
///
/// # Errors
/// [`Error::Refused`] for a refusal, [`Error::Frame`] if it answers something else.
pub fn answer(asked: Kind, kind: u32, body: Vec<u8>) -> Result<Vec<u8>, Error> {
    if kind == REFUSAL {
        let mut body = Body(&body);
        let (code, text) = (body.u32()?, body.text()?);
        return body.end(Error::Refused { code, text }).and_then(Err);
    }
    if kind == ANSWER | asked as u32 { Ok(body) } else { bad(format!("kind {kind:#x} answers {asked:?}")) }
}

/// What an agent says of its machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hello {
    /// Architecture, such as `riscv64`.
    pub arch: String,
    /// Bits of a vector register, where the architecture leaves its length open and the machine has such registers; else 0.
    pub vector: u32,
    /// Features, by LLVM's names.
    pub features: Vec<String>,
}

impl Hello {
    /// Reads the body of an answer.
    ///
    /// # Errors
    /// [`Error::Frame`].
    pub fn read(body: &[u8]) -> Result<Hello, Error> {
        let mut body = Body(body);
        let version = body.u32()?;
        if version != VERSION {
            return bad(format!("it speaks version {version}, this program version {VERSION}"));
        }
        let (vector, arch, n) = (body.u32()?, body.text()?, body.u32()?);
        let features = (0..n).map(|_| body.text()).collect::<Result<_, _>>()?;
        body.end(Hello { arch, vector, features })
    }
}

/// A body being read.
pub struct Body<'a>(pub &'a [u8]);

impl Body<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        match self.0.split_first_chunk::<N>() {
            Some((head, tail)) => {
                self.0 = tail;
                Ok(*head)
            }
            None => bad("a body is too short"),
        }
    }

    /// A number.
    ///
    /// # Errors
    /// [`Error::Frame`], as of all here, if the body is too short.
    pub fn u32(&mut self) -> Result<u32, Error> {
        self.take().map(u32::from_le_bytes)
    }

    /// A number.
    ///
    /// # Errors
    /// [`Error::Frame`].
    pub fn u64(&mut self) -> Result<u64, Error> {
        self.take().map(u64::from_le_bytes)
    }

    /// A text.
    ///
    /// # Errors
    /// [`Error::Frame`].
    pub fn text(&mut self) -> Result<String, Error> {
        let n = self.u32()? as usize;
        let Some((head, tail)) = self.0.split_at_checked(n) else { return bad("a body is too short") };
        self.0 = tail;
        String::from_utf8(head.to_vec()).or_else(|_| bad("a text is not UTF-8"))
    }

    /// `value`, if nothing is left.
    ///
    /// # Errors
    /// [`Error::Frame`].
    pub fn end<T>(self, value: T) -> Result<T, Error> {
        if self.0.is_empty() { Ok(value) } else { bad("a body is too long") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that look random and are the same in every run.
    fn noise(seed: &mut u64) -> u64 {
        *seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        *seed >> 33
    }

    #[test]
    fn frames_read_back() {
        let bytes = [frame(7, b"abc"), frame(ANSWER | 7, &[])].concat();
        let mut from = &bytes[..];
        assert_eq!(read_frame(&mut from), Ok(Some((7, b"abc".to_vec()))));
        assert_eq!(read_frame(&mut from), Ok(Some((ANSWER | 7, vec![]))));
        assert_eq!(read_frame(&mut from), Ok(None));
    }

    #[test]
    fn what_is_no_frame_is_an_error() {
        let long = [MAGIC, 1, LARGEST as u32 + 1].map(u32::to_le_bytes).concat();
        let whole = frame(1, &[0; 9]);
        for bytes in [&long[..], b"login: root@board", &[0; 12]] {
            assert!(matches!(read_frame(&mut &bytes[..]), Err(Error::Frame(_))), "{bytes:?}");
        }
        for cut in 1..whole.len() {
            assert!(matches!(read_frame(&mut &whole[..cut]), Err(Error::Ended(_))), "cut to {cut}");
        }
    }

    /// Any bytes give a value or an error, and take no more memory than a frame may.
    #[test]
    fn any_bytes_are_read() {
        let hello = {
            let mut b = [VERSION, 256, 7].map(u32::to_le_bytes).concat();
            b.extend_from_slice(b"riscv64\x01\0\0\0\x01\0\0\0v");
            b
        };
        assert_eq!(
            Hello::read(&hello),
            Ok(Hello { arch: "riscv64".into(), vector: 256, features: vec!["v".into()] })
        );
        let mut seed = 1;
        for _ in 0..20_000 {
            let mut bytes = hello.clone();
            for _ in 0..noise(&mut seed) % 4 {
                let at = noise(&mut seed) as usize % bytes.len();
                bytes[at] = noise(&mut seed) as u8;
            }
            bytes.truncate(noise(&mut seed) as usize % (bytes.len() + 1));
            let _ = Hello::read(&bytes);
            let _ = answer(Kind::Read, REFUSAL, bytes.clone());
            let _ = answer(Kind::Read, noise(&mut seed) as u32, bytes.clone());
            let mut whole = frame(1, &bytes);
            let at = noise(&mut seed) as usize % whole.len();
            whole[at] ^= 1 << (noise(&mut seed) % 8);
            let _ = read_frame(&mut &whole[..]);
        }
    }
}
