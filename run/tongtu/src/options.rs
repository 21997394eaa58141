//! How to compile and run.

use tongtu_chip::Chip;
use tongtu_compile::passes::Precision;

use crate::cache::Cache;
use crate::error::Error;
use crate::remote::Remote;

/// How to compile and run a model: the chip, threads, caches.
///
/// ```
/// use tongtu::Options;
/// let quiet = Options::host().threads(1).without_cache();
/// # assert_eq!(quiet.chip().unwrap().name, "host");
/// ```
#[derive(Clone, Debug)]
pub struct Options {
    chip: Option<Chip>,
    pub(crate) threads: usize,
    kernels: Option<Cache>,
    models: Option<Cache>,
    pub(crate) state: Vec<(String, String)>,
    pub(crate) precision: Precision,
    pub(crate) simulate: bool,
    pub(crate) allow_host: bool,
    pub(crate) remote: Option<Remote>,
}

impl Default for Options {
    fn default() -> Options {
        Options::host()
    }
}

impl Options {
    /// For this machine, with all its threads, keeping compiled kernels and models in the user's cache.
    pub fn host() -> Options {
        Options {
            chip: None,
            threads: 0,
            kernels: Cache::kernels(),
            models: Cache::models(),
            state: Vec::new(),
            precision: Precision::F32,
            simulate: false,
            allow_host: false,
            remote: None,
        }
    }

    /// For another chip.
    pub fn for_chip(chip: Chip) -> Options {
        Options { chip: Some(chip), ..Options::host() }
    }

    /// For another machine, which runs what is compiled.
    pub fn on(remote: Remote) -> Options {
        Options { remote: Some(remote.clone()), ..Options::for_chip(remote.chip) }
    }

    /// Runs on a simulation of the chip, where there is one: slow, to see what is computed before there is a device.
    pub fn simulated(mut self) -> Options {
        self.simulate = true;
        self
    }

    /// Whether what the chip does not take may run on the host ([`Session::placement`](crate::Session::placement) lists it); else it
    /// is an error.
    pub fn allow_host(mut self, allow: bool) -> Options {
        self.allow_host = allow;
        self
    }

    /// Whether it runs on a simulation.
    pub fn is_simulated(&self) -> bool {
        self.simulate
    }

    /// Threads that run kernels; 0 for as many as the machine has.
    pub fn threads(mut self, threads: usize) -> Options {
        self.threads = threads;
        self
    }

    /// What products of f32 values are computed in, and convolutions with constants: with [`Precision::Bf16`] their operands are rounded to bf16, which
    /// a chip with a matrix unit multiplies many times faster, and results differ from those in f32.
    pub fn precision(mut self, precision: Precision) -> Options {
        self.precision = precision;
        self
    }

    /// Ties an input to the output that is its new contents, such as a decoder's past keys to its present ones. Given as a
    /// [`DeviceTensor`](crate::DeviceTensor) it is updated in place (see [`Session::state`](crate::Session::state)). A star in
    /// both names stands for whatever the inputs have there: `past.*` and `present.*`.
    pub fn state(mut self, input: impl Into<String>, output: impl Into<String>) -> Options {
        self.state.push((input.into(), output.into()));
        self
    }

    /// Keeps compiled kernels in the given cache.
    pub fn kernel_cache(mut self, cache: Cache) -> Options {
        self.kernels = Some(cache);
        self
    }

    /// Keeps whole compiled models, with their weights, in the given cache: the next [`Session::load`](crate::Session::load)
    /// maps them.
    pub fn keep_models(mut self, cache: Cache) -> Options {
        self.models = Some(cache);
        self
    }

    /// Keeps no whole models, only kernels.
    pub fn without_model_cache(mut self) -> Options {
        self.models = None;
        self
    }

    /// Compiles everything anew and keeps nothing.
    pub fn without_cache(mut self) -> Options {
        (self.kernels, self.models) = (None, None);
        self
    }

    /// The chip compiled for.
    pub fn chip(&self) -> Result<Chip, Error> {
        match &self.chip {
            Some(chip) => Ok(chip.clone()),
            None => Ok(Chip::host()?),
        }
    }

    /// The cache of kernels, if any.
    pub fn kernels(&self) -> Option<&Cache> {
        self.kernels.as_ref()
    }

    /// The cache of whole models, if any.
    pub fn model_cache(&self) -> Option<&Cache> {
        self.models.as_ref()
    }
}
