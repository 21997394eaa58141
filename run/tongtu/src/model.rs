//! Models before compilation.

use std::path::Path;

use tongtu_graph::eval::{self, HostValue};
use tongtu_graph::{Graph, Module, Op};
use tongtu_onnx::{Loaded, OnnxError, Port};
use tongtu_plan::Plan;
use tongtu_plan::bundle::{self, Info};
use tongtu_tensor::Tensor;

use crate::error::Error;
use crate::options::Options;
use crate::pipeline;
use crate::session::{Outputs, Session, by_name};

pub use tongtu_onnx::Options as LoadOptions;

/// A model that was read, before it is compiled for a chip.
#[derive(Clone, Debug)]
pub struct Model {
    loaded: Loaded,
    name: String,
}

/// Pairs of names, with those that have a star written out for every input that they match.
fn ties(given: &[(String, String)], inputs: &[Port]) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    for (input, output) in given {
        let before = pairs.len();
        if let Some((start, end)) = input.split_once('*') {
            let middle = |p: &Port| Some(p.name.strip_prefix(start)?.strip_suffix(end)?.to_string());
            let found =
                inputs.iter().filter_map(|p| Some((p.name.clone(), output.replace('*', &middle(p)?))));
            pairs.extend(found);
        }
        if pairs.len() == before {
            pairs.push((input.clone(), output.clone()));
        }
    }
    pairs
}

/// Ties inputs to outputs of a module; gives the dim along which each grows.
pub(crate) fn tie(
    module: &mut Module,
    inputs: &[Port],
    outputs: &[Port],
    state: &[(String, String)],
) -> Result<Vec<usize>, Error> {
    let mut axes = Vec::new();
    for (input, output) in &ties(state, inputs) {
        let fail = |detail: String| Error::State { input: input.clone(), output: output.clone(), detail };
        let place = |ports: &[Port], what: &str, name: &String| {
            let names = || ports.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join(", ");
            let found = ports.iter().position(|p| p.name == *name);
            found.ok_or_else(|| fail(format!("there is no {what} '{name}'; there are {}", names())))
        };
        let (i, o) = (place(inputs, "input", input)?, place(outputs, "output", output)?);
        axes.push(tongtu_compile::state::tie(module, i, o).map_err(fail)?);
    }
    Ok(axes)
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
        Ok(Model { loaded, name })
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
        let loaded = tongtu_onnx::load_bytes(bytes, &LoadOptions::default())?;
        Ok(Model { loaded, name: "model".to_string() })
    }

    /// A decoder from the configuration of its checkpoint, a `config.json`: its weights are absent, which is enough to
    /// [check](crate::port::check) it. State is tied: `past.*` to `present.*`.
    ///
    /// # Errors
    /// What is wrong with the configuration, or not known of it.
    pub fn from_config(path: impl AsRef<Path>) -> Result<Model, Error> {
        let path = path.as_ref();
        let decoder = tongtu_llm::decoder(&tongtu_llm::Config::read(path)?)?;
        let g = &decoder.module.graph;
        let ports = |names: Vec<String>, values: &[tongtu_graph::ValueId]| -> Vec<Port> {
            names.into_iter().zip(values).map(|(name, &v)| Port { name, ty: g.ty(v).clone() }).collect()
        };
        let inputs = ports(decoder.inputs, &g.inputs);
        let outputs = ports(decoder.outputs, &g.outputs);
        let loaded = Loaded {
            inputs,
            outputs,
            module: decoder.module,
            metadata: Vec::new(),
            opsets: Default::default(),
            producer: String::new(),
            ir_version: 0,
            operators: Vec::new(),
            files: vec![path.to_path_buf()],
            gaps: Vec::new(),
            behind: 0,
        };
        let name = path.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Model { loaded, name })
    }

    /// The name of a weight that nobody has, if there is one: then the model can be checked, not run.
    pub(crate) fn absent(&self) -> Option<String> {
        fn find(g: &Graph) -> Option<String> {
            g.nodes.iter().find_map(|n| match &n.op {
                Op::Constant { value } => value.is_absent().then(|| n.loc.to_string()),
                Op::If { then_branch, else_branch, .. } => find(then_branch).or_else(|| find(else_branch)),
                Op::While { body, .. } | Op::Composite { body, .. } => find(body),
                _ => None,
            })
        }
        find(&self.module().graph)
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
        Session::from_plan(self.plan(options)?, options)
    }

    /// As [`Model::compile`], for a model that is of no use afterwards: its weights need not be in memory twice.
    pub fn into_session(self, options: &Options) -> Result<Session, Error> {
        Session::from_plan(self.into_plan(options)?, options)
    }

    /// Compiles the model without loading it anywhere.
    pub fn plan(&self, options: &Options) -> Result<Plan, Error> {
        self.clone().into_plan(options)
    }

    pub(crate) fn into_plan(self, options: &Options) -> Result<Plan, Error> {
        if let Some(place) = self.absent() {
            return Err(Error::NoWeights { model: self.name, place });
        }
        let Loaded { mut module, inputs, outputs, .. } = self.loaded;
        let axes = tie(&mut module, &inputs, &outputs, &options.state)?;
        let mut plan = pipeline::compile(module, options)?;
        plan.state.iter_mut().zip(axes).for_each(|(s, axis)| s.axis = axis);
        let names = |ports: &'_ [Port]| ports.iter().map(|p| p.name.clone()).collect::<Vec<_>>();
        pipeline::name_ports(&mut plan, &names(&inputs), &names(&outputs));
        Ok(plan)
    }

    /// Compiles the model to a bundle on disk, which [`Session::open`] maps.
    pub fn save(&self, path: impl AsRef<Path>, options: &Options) -> Result<(), Error> {
        bundle::save(&self.plan(options)?, &self.info(options)?, path)?;
        Ok(())
    }

    pub(crate) fn info(&self, options: &Options) -> Result<Info, Error> {
        Ok(Info {
            model: self.name.clone(),
            chip: options.chip()?.name,
            producer: format!("tongtu {}", env!("CARGO_PKG_VERSION")),
            sources: Vec::new(),
        })
    }

    /// Runs the model in the reference interpreter: slow, and by definition right.
    pub fn interpret<V: Clone + Into<tongtu_runtime::Value>>(
        &self,
        inputs: &[(&str, V)],
    ) -> Result<Outputs, Error> {
        if let Some(place) = self.absent() {
            return Err(Error::NoWeights { model: self.name.clone(), place });
        }
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tongtu_graph::{Loc, Node, Type};
    use tongtu_tensor::DType;
    use tongtu_tensor::dim::Dim;

    use super::*;

    /// A branch that gives a constant.
    fn branch(value: Tensor) -> Arc<Graph> {
        let mut g = Graph::default();
        let out = g.add_value(Type::tensor(value.dtype(), [Dim::from(2)]), None);
        let loc = Loc::new("the weight");
        g.nodes.push(Node { op: Op::Constant { value }, inputs: vec![], outputs: vec![out], loc });
        g.outputs = vec![out];
        Arc::new(g)
    }

    #[test]
    fn weights_absent_from_a_branch_are_found() {
        let here = || Tensor::from_slice(&[2], &[1f32, 2.0]).unwrap();
        let gone = || Tensor::absent(DType::F32, &[2]).unwrap();
        for (yes, no, found) in
            [(here(), here(), false), (gone(), here(), true), (here(), gone(), true), (gone(), gone(), true)]
        {
            let mut module = Module::default();
            let condition = module.graph.add_input(Type::scalar(DType::Bool), None);
            let ty = Type::tensor(DType::F32, [Dim::from(2)]);
            let out = module.graph.add_value(ty.clone(), None);
            let op = Op::If { then_branch: branch(yes), else_branch: branch(no), results: vec![ty.clone()] };
            let (inputs, outputs) = (vec![condition], vec![out]);
            module.graph.nodes.push(Node { op, inputs, outputs, loc: Loc::default() });
            module.graph.outputs = vec![out];
            let port = |name: &str, ty: Type| vec![Port { name: name.to_string(), ty }];
            let loaded = Loaded {
                module,
                inputs: port("condition", Type::scalar(DType::Bool)),
                outputs: port("y", ty),
                metadata: Vec::new(),
                opsets: Default::default(),
                producer: String::new(),
                ir_version: 0,
                operators: Vec::new(),
                files: Vec::new(),
                gaps: Vec::new(),
                behind: 0,
            };
            let model = Model { loaded, name: "branches".to_string() };
            assert_eq!(model.absent(), found.then(|| "the weight".to_string()));
            let condition = Tensor::from_fn(DType::Bool, &[], |_| true.into()).unwrap();
            let run = model.interpret(&[("condition", condition)]);
            assert_eq!(matches!(run, Err(Error::NoWeights { .. })), found);
        }
    }
}
