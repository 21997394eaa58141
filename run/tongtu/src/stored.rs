//! Whole compiled models, kept between runs.
//!
//! An entry is a bundle named by the path of the model and what it was compiled for. It names the compiler and lists the files it was made from, and
//! is good only while each has the size, times and number that it had before it was read: a start reads no weights.
//! Files changed a moment ago are not trusted, since a further change might not show in their times.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tongtu_plan::bundle::{self, Bundle, FileIdentity};

use crate::cache::{self, Cache};
use crate::error::Error;
use crate::model::{LoadOptions, Model};
use crate::options::Options;
use crate::pipeline;
use crate::session::Session;

/// The cache, and the key of a model in it.
fn place(path: &Path, load: &LoadOptions, options: &Options) -> Option<(Cache, String)> {
    let cache = options.model_cache()?;
    let path = path.canonicalize().ok()?;
    let chip = serde_json::to_vec(&options.chip().ok()?).ok()?;
    let mut given = format!("{:?}", load.dims).into_bytes();
    for (name, t) in &load.constants {
        given.extend_from_slice(format!("{name}{}{:?}", t.dtype(), t.shape()).as_bytes());
        given.extend_from_slice(&t.bytes());
    }
    given.extend_from_slice(format!("{:?}{:?}", options.state, options.precision).as_bytes());
    let key = cache::key(&[path.as_os_str().as_encoded_bytes(), &given, &chip]);
    Some((cache.clone(), key))
}

/// Who makes entries: another version of the compiler replaces them.
fn producer() -> String {
    format!("tongtu {} {}", env!("CARGO_PKG_VERSION"), pipeline::MODELS_VERSION)
}

/// The compiled model in the cache, if it is of the files as they are now.
pub(crate) fn open(path: &Path, load: &LoadOptions, options: &Options) -> Option<Bundle> {
    let (cache, key) = place(path, load, options)?;
    let entry = cache.path(&key);
    let bundle = bundle::open(&entry).ok()?;
    let same = |f: &FileIdentity| FileIdentity::of(&f.path).is_ok_and(|now| now == *f);
    if bundle.info.producer != producer()
        || bundle.info.sources.is_empty()
        || !bundle.info.sources.iter().all(same)
    {
        return None;
    }
    cache.touch(&entry);
    Some(bundle)
}

/// Compiles a model and puts it in the cache, where there is one.
pub(crate) fn make(path: &Path, load: &LoadOptions, options: &Options) -> Result<Session, Error> {
    let now = SystemTime::now();
    let before = FileIdentity::of(path);
    let model = Model::load_with(path, load)?;
    let mut info = model.info(options)?;
    let files: Vec<PathBuf> = model.loaded().files.clone();
    let plan = model.into_plan(options)?;
    let sources: Option<Vec<FileIdentity>> = files.iter().map(|f| FileIdentity::of(f).ok()).collect();
    // The model itself is as it was before it was read; its weights were mapped, and are as they are now.
    let sources = sources.filter(|s| {
        s.first().is_some_and(|f| before.is_ok_and(|b| b == *f)) && s.iter().all(|f| f.is_settled(now))
    });
    let (Some((cache, key)), Some(sources)) = (place(path, load, options), sources) else {
        return Session::from_plan(plan, options);
    };
    info.sources = sources;
    info.producer = producer();
    let size: u64 = plan.constants.iter().map(|t| t.nbytes() as u64).sum();
    let stored = size <= cache.limit() / 2
        && cache.put_with(&key, |file| {
            let mut out = std::io::BufWriter::with_capacity(1 << 20, file);
            bundle::write(&plan, &info, &mut out)?;
            out.flush()?;
            out.into_inner().map_err(|e| e.into_error())?.sync_data()
        });
    // What was written is mapped, so that weights are in memory once, and can leave it.
    match bundle::open(cache.path(&key)) {
        Ok(bundle) if stored => {
            drop(plan);
            Session::from_plan(bundle.plan, options)
        }
        _ => Session::from_plan(plan, options),
    }
}
