//! Compiled kernels, and whole models, kept on disk between runs.
//!
//! An entry's name is the hash of everything that decides its contents, so an entry is never wrong, only missing. Files are
//! written aside and renamed, so that readers and other writers see them whole; each carries its own checksum, and a damaged
//! one is dropped and made anew. When the folder grows past its limit the entries used longest ago go.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use serde::Serialize;
use sha2::{Digest, Sha256};
use tongtu_chip::Chip;
use tongtu_plan::{Artifact, CompileError, Compiler, Entry, Support};
use tongtu_tile::{Module, Op, Ty};

/// Bytes that a cache may take by default.
pub const LIMIT: u64 = 2 << 30;

const MAGIC: &[u8; 8] = b"TONGTUK1";

/// A folder of entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    dir: PathBuf,
    limit: u64,
}

/// What a cache holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CacheState {
    /// The folder.
    pub dir: PathBuf,
    /// Entries.
    pub entries: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes they may take.
    pub limit: u64,
}

/// The folder for the caches of this user: `$TONGTU_CACHE`, else `tongtu` under `$XDG_CACHE_HOME` or `~/.cache`. `None` if none
/// of these is set.
pub fn root() -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    var("TONGTU_CACHE")
        .or_else(|| var("XDG_CACHE_HOME").map(|d| d.join("tongtu")))
        .or_else(|| var("HOME").map(|d| d.join(".cache").join("tongtu")))
}

/// The hash of several parts, which do not run into each other.
pub(crate) fn key(parts: &[&[u8]]) -> String {
    let mut sum = Sha256::new();
    for part in parts {
        sum.update((part.len() as u64).to_le_bytes());
        sum.update(part);
    }
    sum.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

impl Cache {
    /// A cache in a folder, which is made when something is stored.
    pub fn new(dir: impl Into<PathBuf>, limit: u64) -> Cache {
        Cache { dir: dir.into(), limit }
    }

    /// The cache of compiled kernels of this user.
    pub fn kernels() -> Option<Cache> {
        root().map(|r| Cache::new(r.join("kernels"), LIMIT))
    }

    /// The cache of whole compiled models of this user.
    pub fn models() -> Option<Cache> {
        root().map(|r| Cache::new(r.join("compiled"), 4 * LIMIT))
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Bytes that it may take.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// The file of an entry.
    pub fn path(&self, key: &str) -> PathBuf {
        let (folder, rest) = key.split_at(key.len().min(2));
        self.dir.join(folder).join(rest)
    }

    /// The contents of an entry. A damaged one is removed.
    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        let path = self.path(key);
        let bytes = fs::read(&path).ok()?;
        let contents = bytes.strip_prefix(MAGIC).and_then(|b| b.split_at_checked(32));
        match contents {
            Some((sum, contents)) if Sha256::digest(contents)[..] == *sum => {
                self.touch(&path);
                Some(contents.to_vec())
            }
            _ => {
                let _ = fs::remove_file(&path);
                None
            }
        }
    }

    /// Notes that an entry was used now.
    pub(crate) fn touch(&self, path: &Path) {
        if let Ok(file) = fs::File::options().append(true).open(path) {
            let _ = file.set_modified(SystemTime::now());
        }
    }

    /// Stores an entry. Failure (a full disk, say) is no error: the entry is just not there next time.
    pub fn put(&self, key: &str, contents: &[u8]) {
        self.put_with(key, |file| {
            file.write_all(MAGIC)?;
            file.write_all(&Sha256::digest(contents))?;
            file.write_all(contents)
        });
    }

    /// Stores an entry that a function writes; tells whether it is there.
    pub(crate) fn put_with(
        &self,
        key: &str,
        write: impl FnOnce(&mut fs::File) -> std::io::Result<()>,
    ) -> bool {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let path = self.path(key);
        let Some(folder) = path.parent() else { return false };
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let part = self.dir.join(format!(".part-{}-{number}", std::process::id()));
        let store = || -> std::io::Result<()> {
            fs::create_dir_all(folder)?;
            let mut file = fs::File::create(&part)?;
            write(&mut file)?;
            drop(file);
            fs::rename(&part, &path)
        };
        let stored = store().is_ok();
        if !stored {
            let _ = fs::remove_file(&part);
        }
        // Counting the folder is cheap beside compiling, but not for every entry.
        if number.is_multiple_of(64) {
            self.shrink();
        }
        stored
    }

    /// Every file with its size and time of last use.
    fn files(&self) -> Vec<(SystemTime, u64, PathBuf)> {
        let list = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten();
        let folders = list(&self.dir).filter(|e| e.path().is_dir());
        let files = folders.flat_map(|f| list(&f.path()).collect::<Vec<_>>());
        files
            .filter_map(|e| {
                let m = e.metadata().ok().filter(|m| m.is_file())?;
                Some((m.modified().ok()?, m.len(), e.path()))
            })
            .collect()
    }

    /// Removes the entries used longest ago until the rest takes three quarters of the limit.
    fn shrink(&self) {
        let mut files = self.files();
        let mut total: u64 = files.iter().map(|f| f.1).sum();
        if total <= self.limit {
            return;
        }
        files.sort();
        for (_, bytes, path) in files {
            if total <= self.limit / 4 * 3 {
                break;
            }
            if fs::remove_file(path).is_ok() {
                total -= bytes;
            }
        }
    }

    /// What it holds.
    pub fn state(&self) -> CacheState {
        let files = self.files();
        let bytes = files.iter().map(|f| f.1).sum();
        CacheState { dir: self.dir.clone(), entries: files.len(), bytes, limit: self.limit }
    }

    /// Removes all entries.
    pub fn clear(&self) {
        for (_, _, path) in self.files() {
            let _ = fs::remove_file(path);
        }
    }
}

/// A back end's compile half that asks a [`Cache`] first.
pub struct Cached<C> {
    inner: C,
    cache: Cache,
    /// The version of the code that compiles: part of every key.
    version: String,
    hits: AtomicU64,
    misses: AtomicU64,
}

impl<C: Compiler> Cached<C> {
    /// Wraps a compiler; `version` must change whenever what it emits may change.
    pub fn new(inner: C, cache: Cache, version: impl Into<String>) -> Cached<C> {
        Cached { inner, cache, version: version.into(), hits: AtomicU64::new(0), misses: AtomicU64::new(0) }
    }

    /// Modules found in the cache, and compiled, so far.
    pub fn counts(&self) -> (u64, u64) {
        (self.hits.load(Ordering::Relaxed), self.misses.load(Ordering::Relaxed))
    }

    fn key(&self, module: &Module, chip: &Chip) -> Option<String> {
        let chip = serde_json::to_vec(chip).ok()?;
        let text = module.to_string();
        Some(key(&[self.version.as_bytes(), self.inner.name().as_bytes(), &chip, text.as_bytes()]))
    }

    fn load(&self, key: &str) -> Option<Artifact> {
        let bytes = self.cache.get(key)?;
        let (len, rest) = bytes.split_at_checked(8)?;
        let len = usize::try_from(u64::from_le_bytes(len.try_into().ok()?)).ok()?;
        let (head, code) = rest.split_at_checked(len)?;
        let entries: Vec<Entry> = serde_json::from_slice(head).ok()?;
        Some(Artifact { backend: self.inner.name().to_string(), entries, bytes: code.into() })
    }

    fn store(&self, key: &str, artifact: &Artifact) {
        let Ok(head) = serde_json::to_vec(&artifact.entries) else { return };
        let mut bytes = (head.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(&head);
        bytes.extend_from_slice(&artifact.bytes);
        self.cache.put(key, &bytes);
    }
}

impl<C: Compiler> Compiler for Cached<C> {
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn supports(&self, op: &Op, operands: &[Ty], results: &[Ty], chip: &Chip) -> Support {
        self.inner.supports(op, operands, results, chip)
    }
    fn compile(&self, module: &Module, chip: &Chip) -> Result<Artifact, CompileError> {
        let key = self.key(module, chip);
        if let Some(artifact) = key.as_deref().and_then(|k| self.load(k)) {
            self.hits.fetch_add(1, Ordering::Relaxed);
            return Ok(artifact);
        }
        self.misses.fetch_add(1, Ordering::Relaxed);
        let artifact = self.inner.compile(module, chip)?;
        if let Some(key) = key {
            self.store(&key, &artifact);
        }
        Ok(artifact)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    /// Gives each module a code of its name and counts.
    struct Counting(Arc<AtomicUsize>);

    impl Compiler for Counting {
        fn name(&self) -> &str {
            "counting"
        }
        fn supports(&self, _: &Op, _: &[Ty], _: &[Ty], _: &Chip) -> Support {
            Support::Native
        }
        fn compile(&self, module: &Module, _: &Chip) -> Result<Artifact, CompileError> {
            self.0.fetch_add(1, Ordering::SeqCst);
            let name = module.kernels[0].name.clone();
            let bytes = name.as_bytes().repeat(100);
            let entries = vec![Entry { name, scratch: 64, buffers: 1, scalars: 2 }];
            Ok(Artifact { backend: "counting".into(), entries, bytes: bytes.into() })
        }
    }

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Dir {
            let dir = std::env::temp_dir().join(format!("tongtu-cache-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            Dir(dir)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn module(name: &str) -> Module {
        Module { kernels: vec![tongtu_tile::Kernel { name: name.into(), ..Default::default() }] }
    }

    #[test]
    fn a_module_is_compiled_once() {
        let dir = Dir::new("once");
        let count = Arc::new(AtomicUsize::new(0));
        let chip = Chip::builtin("x86-64-v3").unwrap();
        let make = |version: &str| Cached::new(Counting(count.clone()), Cache::new(&dir.0, LIMIT), version);
        let first = make("1").compile(&module("a"), &chip).unwrap();
        assert_eq!(make("1").compile(&module("a"), &chip).unwrap(), first);
        assert_eq!(count.load(Ordering::SeqCst), 1);
        // Another module, another chip, another version: other entries.
        make("1").compile(&module("b"), &chip).unwrap();
        make("1").compile(&module("a"), &Chip::builtin("x86-64-v4").unwrap()).unwrap();
        make("2").compile(&module("a"), &chip).unwrap();
        assert_eq!(count.load(Ordering::SeqCst), 4);
        assert_eq!(Cache::new(&dir.0, LIMIT).state().entries, 4);
    }

    #[test]
    fn damage_is_noticed_and_repaired() {
        let dir = Dir::new("damage");
        let count = Arc::new(AtomicUsize::new(0));
        let chip = Chip::builtin("x86-64-v3").unwrap();
        let cache = Cache::new(&dir.0, LIMIT);
        let cached = Cached::new(Counting(count.clone()), cache.clone(), "1");
        let good = cached.compile(&module("a"), &chip).unwrap();
        let path = cache.path(&cached.key(&module("a"), &chip).unwrap());
        let bytes = fs::read(&path).unwrap();
        for cut in [0, 7, 20, 41, bytes.len() - 1] {
            fs::write(&path, &bytes[..cut]).unwrap();
            assert_eq!(cached.compile(&module("a"), &chip).unwrap(), good, "cut to {cut} bytes");
        }
        let mut flipped = bytes.clone();
        let last = flipped.len() - 1;
        flipped[last] ^= 1;
        fs::write(&path, &flipped).unwrap();
        assert_eq!(cached.compile(&module("a"), &chip).unwrap(), good);
        assert_eq!(count.load(Ordering::SeqCst), 7);
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }

    #[test]
    fn many_writers_agree() {
        let dir = Dir::new("writers");
        let chip = Chip::builtin("x86-64-v3").unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for i in 0..20 {
                        let cached = Cached::new(Counting(Arc::default()), Cache::new(&dir.0, LIMIT), "1");
                        let name = format!("k{}", i % 5);
                        let artifact = cached.compile(&module(&name), &chip).unwrap();
                        assert_eq!(&artifact.bytes[..], name.as_bytes().repeat(100));
                    }
                });
            }
        });
        let state = Cache::new(&dir.0, LIMIT).state();
        assert_eq!(state.entries, 5);
        let leftovers =
            fs::read_dir(&dir.0).unwrap().filter(|e| e.as_ref().unwrap().path().is_file()).count();
        assert_eq!(leftovers, 0);
    }

    #[test]
    fn the_oldest_entries_go() {
        let dir = Dir::new("limit");
        let cache = Cache::new(&dir.0, 10_000);
        for i in 0..20 {
            cache.put(&key(&[&[i]]), &[i; 1000]);
        }
        let oldest = cache.path(&key(&[&[3]]));
        let file = fs::File::options().append(true).open(&oldest).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        cache.shrink();
        assert!(cache.state().bytes <= 10_000);
        assert!(!oldest.exists());
    }
}
