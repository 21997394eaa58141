//! Compiled models, ready to run.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use tongtu_cpu::CpuDevice;
use tongtu_graph::Module;
use tongtu_plan::bundle::{self, Info};
use tongtu_plan::{Device, Plan};
use tongtu_port::report::Placement;
use tongtu_runtime::{Context, DeviceTensor, MemoryReport, Profile, Value, VerifyOptions, VerifyReport};
use tongtu_tensor::Tensor;
use tongtu_tensor::dim::Sym;

use crate::error::Error;
use crate::inspect::type_text;
use crate::model::LoadOptions;
use crate::options::Options;
use crate::pipeline;
use crate::stored;

/// A compiled model on its device. It may be used from several threads at a time.
pub struct Session {
    session: tongtu_runtime::Session,
    device: Arc<dyn Device>,
    options: Box<Options>,
    info: Option<Info>,
    /// Input types for errors.
    types: Vec<String>,
}

/// Results by name, in the model's order.
#[derive(Clone, Debug)]
pub struct Outputs {
    values: Vec<(String, Value)>,
    /// For each the dim of the model's value that comes first in a device tensor.
    axes: Vec<usize>,
}

/// The order of dims in which one of them comes first.
fn moved(rank: usize, first: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rank).collect();
    order[..=first].rotate_right(1);
    order
}

/// A tensor whose first dim goes back to its place in the model's value.
fn restored(t: &Tensor, axis: usize) -> Result<Tensor, Error> {
    let mut order: Vec<usize> = (0..t.rank()).collect();
    order.get_mut(..=axis).into_iter().for_each(|o| o.rotate_left(1));
    Ok(t.permute(&order)?.to_contiguous()?)
}

/// Puts named values in the order of the inputs.
pub(crate) fn by_name<V: Clone + Into<Value>>(
    names: &[&str],
    types: &[String],
    inputs: &[(&str, V)],
) -> Result<Vec<Value>, Error> {
    for (i, (name, _)) in inputs.iter().enumerate() {
        if !names.contains(name) {
            return Err(Error::UnknownInput { name: name.to_string(), inputs: names.join(", ") });
        }
        if inputs[..i].iter().any(|(n, _)| n == name) {
            return Err(Error::DoubleInput(name.to_string()));
        }
    }
    let find = |(i, name): (usize, &&str)| match inputs.iter().find(|(n, _)| n == name) {
        Some((_, v)) => Ok(v.clone().into()),
        None => {
            Err(Error::MissingInput { name: name.to_string(), ty: types.get(i).cloned().unwrap_or_default() })
        }
    };
    names.iter().enumerate().map(find).collect()
}

impl Session {
    /// Opens a bundle that [`Model::save`](crate::Model::save) or `tongtu compile` wrote. Weights are mapped, not read.
    pub fn open(path: impl AsRef<Path>, options: &Options) -> Result<Session, Error> {
        let bundle = bundle::open(path)?;
        let mut session = Session::from_plan(bundle.plan, options)?;
        session.info = Some(bundle.info);
        Ok(session)
    }

    /// Loads a model file, compiled: from the cache of whole models (see [`Options`]) where the file, and those with its weights,
    /// are the ones that were compiled; else compiles it and puts it there. The weights are then mapped, not read.
    pub fn load(path: impl AsRef<Path>, options: &Options) -> Result<Session, Error> {
        Session::load_with(path, &LoadOptions::default(), options)
    }

    /// As [`Session::load`], with sizes for symbolic dims, or contents for inputs, fixed.
    pub fn load_with(
        path: impl AsRef<Path>,
        load: &LoadOptions,
        options: &Options,
    ) -> Result<Session, Error> {
        let path = path.as_ref();
        match stored::open(path, load, options) {
            Some(bundle) => {
                let mut session = Session::from_plan(bundle.plan, options)?;
                session.info = Some(bundle.info);
                Ok(session)
            }
            None => stored::make(path, load, options),
        }
    }

    /// Loads a plan on the chip of the options.
    pub fn from_plan(plan: Plan, options: &Options) -> Result<Session, Error> {
        let device = pipeline::device(options)?;
        let types = (0..plan.inputs.len()).map(|i| type_text(&plan.input_type(i), &plan.symbols)).collect();
        let mut devices = vec![device.clone()];
        if !plan.hosted.is_empty() {
            if !options.allow_host {
                let places = plan.hosted.iter().map(|h| plan.groups[h.group].loc.to_string());
                return Err(Error::Hosted(places.collect::<Vec<_>>().join(", ")));
            }
            devices.push(Arc::new(CpuDevice::new(options.threads)?));
        }
        let session = tongtu_runtime::Session::new(plan, devices)?;
        Ok(Session { session, device, options: Box::new(options.clone()), info: None, types })
    }

    /// Runs the model on named inputs, in any order.
    pub fn run<V: Clone + Into<Value>>(&self, inputs: &[(&str, V)]) -> Result<Outputs, Error> {
        let values = self.ordered(inputs)?;
        self.outputs(self.session.run(&values)?)
    }

    /// Named inputs in the model's order, ready for a [`Context`].
    pub fn ordered<V: Clone + Into<Value>>(&self, inputs: &[(&str, V)]) -> Result<Vec<Value>, Error> {
        let mut values = by_name(&self.inputs(), &self.types, inputs)?;
        for s in self.plan().state.iter().filter(|s| s.axis > 0) {
            if let Value::Tensor(t) = &mut values[s.input]
                && s.axis < t.rank()
            {
                *t = t.permute(&moved(t.rank(), s.axis))?.to_contiguous()?;
            }
        }
        Ok(values)
    }

    /// Memory on the device for an input that is tied to an output ([`Options::state`]), filled with a tensor. Given to each run, it
    /// is updated in place. State that grows is moved when it has no room left; `room` is the size up to which it is not,
    /// along the dim that grows.
    pub fn state(&self, input: &str, tensor: &Tensor, room: usize) -> Result<Value, Error> {
        let unknown = || Error::UnknownInput { name: input.to_string(), inputs: self.inputs().join(", ") };
        let i = self.inputs().iter().position(|n| *n == input).ok_or_else(unknown)?;
        let axis = self.plan().input_axis(i);
        let mut t = tensor.clone();
        if axis > 0 && axis < t.rank() {
            t = t.permute(&moved(t.rank(), axis))?.to_contiguous()?;
        }
        let grown: usize = match self
            .plan()
            .dims(self.plan().inputs[i].value)
            .iter()
            .position(|d| d.as_const() != Some(1))
        {
            Some(d) => {
                t.shape().iter().enumerate().map(|(k, &n)| if k == d { n.max(room) } else { n }).product()
            }
            None => t.len(),
        };
        Ok(Value::Device(DeviceTensor::with_room(self.device.clone(), &t, grown)?))
    }

    fn outputs(&self, mut values: Vec<Value>) -> Result<Outputs, Error> {
        let plan = self.session.plan();
        for s in plan.state.iter().filter(|s| s.axis > 0) {
            if let Value::Tensor(t) = &mut values[s.output] {
                *t = restored(t, s.axis)?;
            }
        }
        let axes = (0..values.len()).map(|o| plan.output_axis(o)).collect();
        let names = plan.outputs.iter().map(|p| p.name.clone());
        Ok(Outputs { values: names.zip(values).collect(), axes })
    }

    /// Runs the model and compares every kernel with the subgraph it implements, by the reference interpreter.
    pub fn verify<V: Clone + Into<Value>>(
        &self,
        inputs: &[(&str, V)],
        options: &VerifyOptions<'_>,
    ) -> Result<(Outputs, VerifyReport), Error> {
        let values = self.ordered(inputs)?;
        let recompile = |m: &Module| {
            let mut plan = pipeline::compile(m.clone(), &self.options).map_err(|e| e.to_string())?;
            let names: Vec<String> =
                (0..plan.inputs.len().max(plan.outputs.len())).map(|i| i.to_string()).collect();
            pipeline::name_ports(&mut plan, &names, &names);
            Ok(plan)
        };
        let mut options = options.clone();
        if options.recompile.is_none() {
            options.recompile = Some(&recompile);
        }
        let (outputs, report) = self.session.verify(&values, &options)?;
        Ok((self.outputs(outputs)?, report))
    }

    /// Runs the model and measures each kernel.
    pub fn profile<V: Clone + Into<Value>>(&self, inputs: &[(&str, V)]) -> Result<(Outputs, Profile), Error> {
        let values = self.ordered(inputs)?;
        let (outputs, profile) = self.session.profile(&values)?;
        Ok((self.outputs(outputs)?, profile))
    }

    /// What runs on the host, with the bytes that a run on these inputs copies for it.
    pub fn placement<V: Clone + Into<Value>>(&self, inputs: &[(&str, V)]) -> Vec<Placement> {
        let sizes = self.sizes(inputs);
        tongtu_port::placement::of(self.plan(), &|d| d.eval(&|s| sizes.get(&s).copied()).unwrap_or(1))
    }

    /// The sizes that inputs give to symbols.
    pub(crate) fn sizes<V: Clone + Into<Value>>(&self, inputs: &[(&str, V)]) -> BTreeMap<Sym, i64> {
        let plan = self.plan();
        let mut sizes = BTreeMap::new();
        for (name, value) in inputs {
            let Some(port) = plan.inputs.iter().find(|p| p.name == *name) else { continue };
            let Value::Tensor(t) = value.clone().into() else { continue };
            let dims = plan.dims(port.value).iter().zip(t.shape());
            sizes.extend(dims.filter_map(|(d, &n)| Some((d.as_sym()?, n as i64))));
        }
        sizes
    }

    /// A context of its own for one thread, which runs without locks; inputs and outputs in the model's order.
    pub fn context(&self) -> Context {
        self.session.context()
    }

    /// Names of the inputs, in order.
    pub fn inputs(&self) -> Vec<&str> {
        self.plan().inputs.iter().map(|p| p.name.as_str()).collect()
    }

    /// Types of the inputs, in order, such as `f32[batch, 3]`.
    pub fn input_types(&self) -> &[String] {
        &self.types
    }

    /// Names of the outputs, in order.
    pub fn output_names(&self) -> Vec<&str> {
        self.plan().outputs.iter().map(|p| p.name.as_str()).collect()
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        self.session.plan()
    }

    /// What the bundle says of itself, if it came from one.
    pub fn info(&self) -> Option<&Info> {
        self.info.as_ref()
    }

    /// The device, to keep tensors on.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// Memory held.
    pub fn memory(&self) -> MemoryReport {
        self.session.memory()
    }
}

impl Outputs {
    pub(crate) fn new(values: Vec<(String, Value)>) -> Outputs {
        let axes = vec![0; values.len()];
        Outputs { values, axes }
    }

    /// The output of a name.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.values.iter().find(|(n, _)| n == name).map(|(_, v)| v)
    }

    /// The output of a name, as a tensor with the dims of the model.
    pub fn tensor(&self, name: &str) -> Result<Tensor, Error> {
        let unknown = || Error::UnknownOutput {
            name: name.to_string(),
            outputs: self.values.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>().join(", "),
        };
        let at = self.values.iter().position(|(n, _)| n == name).ok_or_else(unknown)?;
        let value = &self.values[at].1;
        let tensor = value.tensor()?.ok_or_else(|| Error::NotATensor(name.to_string()))?;
        match (value, self.axes[at]) {
            (Value::Device(_), axis) if axis > 0 => restored(&tensor, axis),
            _ => Ok(tensor),
        }
    }

    /// Every output in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.values.iter().map(|(n, v)| (n.as_str(), v))
    }

    /// The values alone.
    pub fn into_values(self) -> Vec<Value> {
        self.values.into_iter().map(|(_, v)| v).collect()
    }
}

impl std::ops::Index<usize> for Outputs {
    type Output = Value;

    /// The output at a position.
    ///
    /// # Panics
    /// If there are not that many, like indexing a slice.
    fn index(&self, i: usize) -> &Value {
        &self.values[i].1
    }
}
