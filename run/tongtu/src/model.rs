//! Models before compilation.

use std::path::{Path, PathBuf};

use tongtu_graph::Module;
use tongtu_graph::eval::{self, HostValue};
use tongtu_onnx::{Loaded, OnnxError};
use tongtu_plan::Plan;
use tongtu_plan::bundle::{self, Info};
use tongtu_tensor::Tensor;

use crate::cache;
use crate::error::Error;
use crate::options::Options;
use crate::pipeline;
use crate::session::{Outputs, Session, by_name};

pub use tongtu_onnx::Options as LoadOptions;

/// A model that was read, before it is compiled for a chip.
#[derive(Clone, Debug)]
pub struct Model {
    loaded: Loaded,
    path: Option<PathBuf>,
    name: String,
    /// Decides, with the chip and the compiler, what compiling gives.
    key: Vec<u8>,
}

/// Sizes and contents given at load, in a form to hash.
fn options_key(options: &LoadOptions) -> Vec<u8> {
    let mut text = format!("{:?}", options.dims).into_bytes();
    for (name, t) in &options.constants {
        text.extend_from_slice(format!("{name}{}{:?}", t.dtype(), t.shape()).as_bytes());
        text.extend_from_slice(&t.bytes());
    }
    text
}

impl Model {
    /// Reads an ONNX file. Weights stay in the file, which is mapped.
    ///
    /// # Errors
    /// Everything in the model that is not supported is listed in one error.
    pub fn load(path: impl AsRef<Path>) -> Result<Model, Error> {
        Model::load_with(path, &LoadOptions::default())
    }

    /// Reads an ONNX file with sizes for symbolic dims, or contents for inputs, fixed.
    pub fn load_with(path: impl AsRef<Path>, options: &LoadOptions) -> Result<Model, Error> {
        let path = path.as_ref();
        let loaded = tongtu_onnx::load(path, options)?;
        let name = path.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Model { loaded, path: Some(path.to_path_buf()), name, key: options_key(options) })
    }

    /// Reads an ONNX file to be run on given inputs. Where it cannot be taken without knowing the contents of small integer
    /// inputs (axes, sizes, repeats), these become part of the model: they are no inputs of it any more, and their names are
    /// given back.
    pub fn load_for(
        path: impl AsRef<Path>,
        options: &LoadOptions,
        inputs: &[(String, HostValue)],
    ) -> Result<(Model, Vec<String>), Error> {
        let path = path.as_ref();
        let error = match Model::load_with(path, options) {
            Ok(model) => return Ok((model, Vec::new())),
            Err(e) => e,
        };
        let small = |t: &&Tensor| !t.dtype().is_float() && t.rank() <= 1 && t.len() <= 64;
        let known = |(n, v): &(String, HostValue)| Some((n.clone(), v.as_tensor().filter(small)?.clone()));
        let mut options = options.clone();
        options.constants.extend(inputs.iter().filter_map(known));
        let names: Vec<String> = options.constants.iter().map(|(n, _)| n.clone()).collect();
        match matches!(error, Error::Onnx(OnnxError::Node(_) | OnnxError::Nodes(_))) && !names.is_empty() {
            true => Ok((Model::load_with(path, &options)?, names)),
            false => Err(error),
        }
    }

    /// The names of the inputs that a file asks for, whether or not it can be loaded.
    pub fn input_names(path: impl AsRef<Path>) -> Result<Vec<String>, Error> {
        Ok(tongtu_onnx::input_names(path)?)
    }

    /// Reads an ONNX model from memory; it cannot refer to other files.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Model, Error> {
        let key = bytes.clone();
        let loaded = tongtu_onnx::load_bytes(bytes, &LoadOptions::default())?;
        Ok(Model { loaded, path: None, name: "model".to_string(), key })
    }

    /// The graph it became.
    pub fn module(&self) -> &Module {
        &self.loaded.module
    }

    /// The graph as text, constants included.
    pub fn graph_text(&self) -> String {
        self.module().to_string()
    }

    /// What the front end tells of it.
    pub fn loaded(&self) -> &Loaded {
        &self.loaded
    }

    /// Its name: the file's, without the ending.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Names of the inputs, in order.
    pub fn inputs(&self) -> Vec<&str> {
        self.loaded.inputs.iter().map(|p| p.name.as_str()).collect()
    }

    /// Names of the outputs, in order.
    pub fn outputs(&self) -> Vec<&str> {
        self.loaded.outputs.iter().map(|p| p.name.as_str()).collect()
    }

    /// Operator sets by domain.
    pub fn opsets(&self) -> Vec<(String, i64)> {
        self.loaded.opsets.iter().map(|(d, v)| (d.clone(), *v)).collect()
    }

    /// Compiles the model and loads it on the chip. Kernels compiled before come from the cache (see [`Options`]).
    pub fn compile(&self, options: &Options) -> Result<Session, Error> {
        let plan = match self.cached_plan(options)? {
            Some(plan) => plan,
            None => self.plan(options)?,
        };
        Session::from_plan(plan, options)
    }

    /// Compiles the model without loading it anywhere.
    pub fn plan(&self, options: &Options) -> Result<Plan, Error> {
        let mut plan = pipeline::compile(self.module(), options)?;
        pipeline::name_ports(&mut plan, &self.inputs(), &self.outputs());
        Ok(plan)
    }

    /// Compiles the model to a bundle on disk, which [`Session::open`] maps.
    pub fn save(&self, path: impl AsRef<Path>, options: &Options) -> Result<(), Error> {
        bundle::save(&self.plan(options)?, &self.info(options)?, path)?;
        Ok(())
    }

    fn info(&self, options: &Options) -> Result<Info, Error> {
        Ok(Info {
            model: self.name.clone(),
            chip: options.chip()?.name,
            producer: format!("tongtu {}", env!("CARGO_PKG_VERSION")),
        })
    }

    /// The plan from the cache of whole models, put there first if it is not; `None` where that cache is off.
    fn cached_plan(&self, options: &Options) -> Result<Option<Plan>, Error> {
        let (Some(cache), Some(path)) = (options.model_cache(), &self.path) else { return Ok(None) };
        // The graph and the small data by contents; large external files by name, size and time of change.
        let file = std::fs::read(path).map_err(Error::io(path))?;
        let mut near = String::new();
        if let Some(folder) = path.parent() {
            let mut entries: Vec<_> = std::fs::read_dir(folder).into_iter().flatten().flatten().collect();
            entries.sort_by_key(|e| e.file_name());
            for e in entries {
                if let Ok(m) = e.metadata() {
                    near += &format!("{:?} {} {:?}\n", e.file_name(), m.len(), m.modified().ok());
                }
            }
        }
        let chip = serde_json::to_vec(&options.chip()?).unwrap_or_default();
        let key =
            cache::key(&[pipeline::MODELS_VERSION.as_bytes(), &self.key, &file, near.as_bytes(), &chip]);
        let entry = cache.path(&key);
        if let Ok(b) = bundle::open(&entry) {
            cache.touch(&entry);
            return Ok(Some(b.plan));
        }
        let plan = self.plan(options)?;
        let info = self.info(options)?;
        cache.put_with(&key, |file| {
            let mut out = std::io::BufWriter::with_capacity(1 << 20, file);
            bundle::write(&plan, &info, &mut out)?;
            std::io::Write::flush(&mut out)
        });
        Ok(Some(plan))
    }

    /// Runs the model in the reference interpreter: slow, and by definition right.
    pub fn interpret<V: Clone + Into<tongtu_runtime::Value>>(
        &self,
        inputs: &[(&str, V)],
    ) -> Result<Outputs, Error> {
        let types: Vec<String> = self
            .loaded
            .inputs
            .iter()
            .map(|p| crate::inspect::type_text(&p.ty, &self.module().symbols))
            .collect();
        let values = by_name(&self.inputs(), &types, inputs)?;
        let mut host = Vec::new();
        for v in values {
            host.push(match v {
                tongtu_runtime::Value::Tensor(t) => HostValue::Tensor(t),
                tongtu_runtime::Value::Host(h) => h,
                tongtu_runtime::Value::Device(d) => HostValue::Tensor(d.read()?),
            });
        }
        let values = eval::run(self.module(), &host)?;
        let names = self.outputs().into_iter().map(str::to_string);
        Ok(Outputs::new(names.zip(values.into_iter().map(tongtu_runtime::Value::from)).collect()))
    }
}
