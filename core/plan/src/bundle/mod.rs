//! The `.tongtu` bundle: a plan with its kernels and constants in one file that is memory-mapped.
//!
//! Layout, all integers little-endian:
//!
//! ```text
//! 0    magic "TONGTU\r\n"
//! 8    u32 format version, u32 header length (128)
//! 16   u64 offset and length of the metadata, of the code, of the constants
//! 64   SHA-256 of the metadata
//! 96   first 8 bytes of the SHA-256 of bytes 0..96
//! 104  zeros
//! 128  metadata (JSON), code, constants; each section and each constant on a multiple of 64
//! ```
//!
//! The metadata holds the SHA-256 of the code and, but in caches, of the constants. Reading checks the first (code runs) and leaves the
//! second to [`Bundle::check_constants`], so that weights are not read before they are used. A damaged file
//! is an error, never a panic, and nothing is allocated by a length that the file does not itself contain.
//! Kernels are machine code: like any program, a bundle should come from somebody you trust.

pub(crate) mod meta;

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tongtu_tensor::{DType, MappedFile, Storage, Tensor, TensorError};

use crate::check::PlanError;
use crate::plan::{Block, Plan, StepKind};
use meta::{MetaAttrs, MetaGraph};

/// The format version that this crate writes; it reads this one.
pub const VERSION: u32 = 3;

const MAGIC: &[u8; 8] = b"TONGTU\r\n";
const HEADER: usize = 128;

/// Why a bundle was not written or read. Each kind has a stable code.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// The operating system refused.
    #[error("[P101] {path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's words.
        error: io::Error,
    },
    /// Not a bundle at all.
    #[error("[P102] not a Tongtu bundle: it does not begin with the bundle mark")]
    NotABundle,
    /// Written by a newer or older format.
    #[error("[P103] bundle format {found}; this version reads format {VERSION}: compile the model again")]
    Version {
        /// The format of the file.
        found: u32,
    },
    /// Shorter or longer than its header says.
    #[error("[P104] the bundle is cut short or damaged: the {section} lies outside the file")]
    Truncated {
        /// The section.
        section: &'static str,
    },
    /// A checksum does not match.
    #[error("[P105] the bundle is damaged: the checksum of the {section} does not match")]
    Checksum {
        /// The section.
        section: &'static str,
    },
    /// The metadata does not have the form it should.
    #[error("[P106] the bundle's metadata is malformed: {0}")]
    Metadata(String),
    /// The plan in it is inconsistent.
    #[error("[P107] the bundle's plan is invalid: {0}")]
    Plan(#[from] PlanError),
    /// A constant cannot be written or read.
    #[error("[P108] {0}")]
    Tensor(#[from] TensorError),
}

/// What a bundle says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// The model's name.
    pub model: String,
    /// The chip it was compiled for.
    pub chip: String,
    /// The compiler and its version.
    pub producer: String,
    /// The files that it was made from, where the bundle is good only as long as they are the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<FileIdentity>,
}

/// What tells a file from what it was before a change, without reading it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    /// Its path, links resolved.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// When its contents changed last, in nanoseconds since 1970.
    pub modified: i128,
    /// When the system last changed anything about it, likewise; programs cannot set this. 0 where systems do not tell.
    pub changed: i128,
    /// Its number in the file system; 0 where there is none.
    pub inode: u64,
}

impl FileIdentity {
    /// The identity of a file now.
    pub fn of(path: impl AsRef<Path>) -> io::Result<FileIdentity> {
        let path = path.as_ref().canonicalize()?;
        let m = path.metadata()?;
        let since = |t: std::time::SystemTime| match t.duration_since(std::time::UNIX_EPOCH) {
            Ok(d) => d.as_nanos() as i128,
            Err(e) => -(e.duration().as_nanos() as i128),
        };
        #[cfg(unix)]
        let (changed, inode) = {
            use std::os::unix::fs::MetadataExt;
            (i128::from(m.ctime()) * 1_000_000_000 + i128::from(m.ctime_nsec()), m.ino())
        };
        #[cfg(not(unix))]
        let (changed, inode) = (0, 0);
        Ok(FileIdentity { bytes: m.len(), modified: since(m.modified()?), changed, inode, path })
    }

    /// Whether the file was last changed so long before `now` that a later change must show: clocks of file systems stand
    /// still for some milliseconds, or for two seconds where they count whole seconds.
    pub fn is_settled(&self, now: std::time::SystemTime) -> bool {
        let now = now.duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i128);
        let last = self.modified.max(self.changed);
        let tick = if last % 1_000_000_000 == 0 { 2_500_000_000 } else { 50_000_000 };
        now - last > tick
    }
}

/// A bundle in memory; its constants are views of the file's map.
#[derive(Debug)]
pub struct Bundle {
    /// The plan.
    pub plan: Plan,
    /// What the bundle says about itself.
    pub info: Info,
    storage: Arc<dyn Storage>,
    constants: (usize, usize),
    constants_sum: Option<String>,
}

/// Where a tensor's bytes lie in the constants.
#[derive(Serialize, Deserialize)]
struct MetaTensor {
    dtype: DType,
    shape: Vec<usize>,
    offset: usize,
}

/// Everything but code and constants.
#[derive(Serialize, Deserialize)]
struct Metadata {
    info: Info,
    plan: Plan,
    tensors: Vec<MetaTensor>,
    /// For each constant of the plan its tensor.
    constants: Vec<usize>,
    /// For each group its subgraph.
    graphs: Vec<MetaGraph>,
    /// Attributes of the host steps, in the order in which [`visit_host`] meets them.
    host: Vec<MetaAttrs>,
    /// Offset and length of each artifact in the code.
    code: Vec<(usize, usize)>,
    code_sha256: String,
    /// None where the bundle is good only as long as its sources are, which are checked instead.
    constants_sha256: Option<String>,
}

fn align(n: usize) -> usize {
    n.saturating_add(63) & !63
}

fn hex(sum: impl AsRef<[u8]>) -> String {
    sum.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// Attributes of a host step.
type Attributes = Vec<(String, tongtu_graph::AttrValue)>;

/// Calls `f` with the attributes of every host step.
fn visit_host(block: &mut Block, f: &mut dyn FnMut(&mut Attributes)) {
    for step in &mut block.steps {
        match &mut step.kind {
            StepKind::Host { attributes, .. } => f(attributes),
            StepKind::If { then_block, else_block, .. } => {
                visit_host(then_block, f);
                visit_host(else_block, f);
            }
            StepKind::While { body, .. } => visit_host(body, f),
            _ => {}
        }
    }
}

/// Tensors to write, each once.
#[derive(Default)]
struct Table {
    tensors: Vec<Tensor>,
    known: HashMap<(usize, DType, Vec<usize>), usize>,
}

impl Table {
    fn put(&mut self, tensor: &Tensor) -> usize {
        // A strided view has no address of its own; it is written as often as it occurs.
        let key = match tensor.bytes() {
            std::borrow::Cow::Borrowed(b) if !b.is_empty() => {
                Some((b.as_ptr() as usize, tensor.dtype(), tensor.shape().to_vec()))
            }
            _ => None,
        };
        if let Some(&i) = key.as_ref().and_then(|k| self.known.get(k)) {
            return i;
        }
        let i = self.tensors.len();
        self.known.extend(key.map(|k| (k, i)));
        self.tensors.push(tensor.clone());
        i
    }
}

/// Writes a bundle. Same plan, same bytes.
pub fn write(plan: &Plan, info: &Info, out: &mut impl Write) -> io::Result<()> {
    let mut table = Table::default();
    let constants = plan.constants.iter().map(|t| table.put(t)).collect();
    let graphs = plan.groups.iter().map(|g| MetaGraph::new(&g.graph, &mut |t| table.put(t))).collect();
    let mut host = Vec::new();
    let mut plan_copy = plan.clone();
    visit_host(&mut plan_copy.body, &mut |list| {
        host.push(meta::attrs(list.iter().map(|(n, v)| (n.as_str(), v)), &mut |t| table.put(t)));
    });

    let mut code = Vec::new();
    let mut code_parts = Vec::new();
    for artifact in &plan.artifacts {
        code.resize(align(code.len()), 0);
        code_parts.push((code.len(), artifact.bytes.len()));
        code.extend_from_slice(&artifact.bytes);
    }
    let mut size = 0;
    let checked = info.sources.is_empty();
    let mut sum = Sha256::new();
    let mut tensors = Vec::new();
    for t in &table.tensors {
        let start = align(size);
        if checked {
            sum.update(&[0; 64][..start - size]);
            sum.update(t.bytes());
        }
        tensors.push(MetaTensor { dtype: t.dtype(), shape: t.shape().to_vec(), offset: start });
        size = start + t.nbytes();
    }
    let metadata = Metadata {
        info: info.clone(),
        plan: plan_copy,
        tensors,
        constants,
        graphs,
        host,
        code: code_parts,
        code_sha256: hex(Sha256::digest(&code)),
        constants_sha256: checked.then(|| hex(sum.finalize())),
    };
    let metadata = serde_json::to_vec(&metadata).map_err(io::Error::other)?;

    let code_at = align(HEADER + metadata.len());
    let data_at = align(code_at + code.len());
    let mut header = Vec::with_capacity(HEADER);
    header.extend_from_slice(MAGIC);
    header.extend_from_slice(&VERSION.to_le_bytes());
    header.extend_from_slice(&(HEADER as u32).to_le_bytes());
    for n in [HEADER, metadata.len(), code_at, code.len(), data_at, size] {
        header.extend_from_slice(&(n as u64).to_le_bytes());
    }
    header.extend_from_slice(&Sha256::digest(&metadata));
    let own = Sha256::digest(&header);
    header.extend_from_slice(&own[..8]);
    header.resize(HEADER, 0);
    out.write_all(&header)?;
    out.write_all(&metadata)?;
    out.write_all(&[0; 64][..code_at - HEADER - metadata.len()])?;
    out.write_all(&code)?;
    out.write_all(&[0; 64][..data_at - code_at - code.len()])?;
    let mut at = 0;
    for t in &table.tensors {
        out.write_all(&[0; 64][..align(at) - at])?;
        out.write_all(&t.bytes())?;
        at = align(at) + t.nbytes();
    }
    Ok(())
}

/// Writes a bundle to a file, which appears whole or not at all.
pub fn save(plan: &Plan, info: &Info, path: impl AsRef<Path>) -> Result<(), BundleError> {
    let path = path.as_ref();
    let io = |error| BundleError::Io { path: path.to_path_buf(), error };
    let mut part = path.as_os_str().to_owned();
    part.push(format!(".part{}", std::process::id()));
    let part = PathBuf::from(part);
    let write = || -> io::Result<()> {
        let mut file = io::BufWriter::with_capacity(1 << 20, std::fs::File::create(&part)?);
        write(plan, info, &mut file)?;
        file.into_inner().map_err(|e| e.into_error())?.sync_all()?;
        std::fs::rename(&part, path)
    };
    write().map_err(|e| {
        let _ = std::fs::remove_file(&part);
        io(e)
    })
}

/// Whether bytes begin as a bundle does.
pub fn is_bundle(start: &[u8]) -> bool {
    start.starts_with(MAGIC)
}

/// Opens a bundle by memory-map. The file must not be changed while the bundle or its tensors live.
pub fn open(path: impl AsRef<Path>) -> Result<Bundle, BundleError> {
    read(MappedFile::open(path)?)
}

/// Reads a bundle from bytes; its constants are views of them.
pub fn read(storage: Arc<dyn Storage>) -> Result<Bundle, BundleError> {
    let bytes = storage.bytes();
    if !is_bundle(bytes) {
        return Err(BundleError::NotABundle);
    }
    let Some((header, _)) = bytes.split_at_checked(HEADER) else {
        return Err(BundleError::Truncated { section: "header" });
    };
    let version = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
    if version != VERSION {
        return Err(BundleError::Version { found: version });
    }
    if Sha256::digest(&header[..96])[..8] != header[96..104] {
        return Err(BundleError::Checksum { section: "header" });
    }
    let number = |i: usize| {
        let mut b = [0; 8];
        b.copy_from_slice(&header[16 + 8 * i..][..8]);
        usize::try_from(u64::from_le_bytes(b)).unwrap_or(usize::MAX)
    };
    let section = |i: usize, name: &'static str| {
        let range = number(2 * i).checked_add(number(2 * i + 1)).map(|end| number(2 * i)..end);
        range.filter(|r| bytes.get(r.clone()).is_some()).ok_or(BundleError::Truncated { section: name })
    };
    let (metadata, code, data) = (section(0, "metadata")?, section(1, "code")?, section(2, "constants")?);
    let metadata = &bytes[metadata];
    if Sha256::digest(metadata)[..] != header[64..96] {
        return Err(BundleError::Checksum { section: "metadata" });
    }
    let Metadata {
        info,
        mut plan,
        tensors,
        constants,
        graphs,
        host,
        code: parts,
        code_sha256,
        constants_sha256,
    } = serde_json::from_slice(metadata).map_err(|e| BundleError::Metadata(e.to_string()))?;
    let code = &bytes[code];
    if hex(Sha256::digest(code)) != code_sha256 {
        return Err(BundleError::Checksum { section: "code" });
    }
    let bad = |what: &str| BundleError::Metadata(what.to_string());

    let mut table = Vec::new();
    for t in tensors {
        let at = data.start.checked_add(t.offset).ok_or(BundleError::Truncated { section: "constants" })?;
        let tensor = Tensor::from_storage(t.dtype, &t.shape, storage.clone(), at)?;
        if !tensor.is_empty() && at + tensor.nbytes() > data.end {
            return Err(BundleError::Truncated { section: "constants" });
        }
        table.push(tensor);
    }
    for i in constants {
        plan.constants.push(table.get(i).ok_or_else(|| bad("a constant has no tensor"))?.clone());
    }
    if parts.len() != plan.artifacts.len() || graphs.len() != plan.groups.len() {
        return Err(bad("there are not as many kernels and subgraphs as the plan has"));
    }
    for (artifact, (at, len)) in plan.artifacts.iter_mut().zip(parts) {
        let part = at.checked_add(len).and_then(|end| code.get(at..end));
        artifact.bytes = part.ok_or(BundleError::Truncated { section: "code" })?.into();
    }
    for (group, graph) in plan.groups.iter_mut().zip(graphs) {
        group.graph = Arc::new(graph.build(&table).map_err(BundleError::Metadata)?);
    }
    let mut host = host.into_iter();
    let mut problem = None;
    visit_host(&mut plan.body, &mut |list| match host.next().map(|h| meta::build_attrs(h, &table)) {
        Some(Ok(attributes)) => *list = attributes,
        Some(Err(e)) => problem = Some(e),
        None => problem = Some("attributes of a host step are missing".to_string()),
    });
    if let Some(problem) = problem {
        return Err(BundleError::Metadata(problem));
    }
    plan.check()?;
    let constants = (data.start, data.len());
    Ok(Bundle { plan, info, constants, constants_sum: constants_sha256, storage })
}

impl Bundle {
    /// Reads all constants and compares them with their checksum. A bundle with [sources](Info::sources) has none.
    pub fn check_constants(&self) -> Result<(), BundleError> {
        let bytes = &self.storage.bytes()[self.constants.0..][..self.constants.1];
        if self.constants_sum.as_ref().is_none_or(|sum| hex(Sha256::digest(bytes)) == *sum) {
            Ok(())
        } else {
            Err(BundleError::Checksum { section: "constants" })
        }
    }
}
