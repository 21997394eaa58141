//! What moving a model to another chip costs.

use std::path::Path;
use std::time::Instant;

use tongtu_chip::{Chip, Kind};
use tongtu_onnx::{Issue, OnnxError};
use tongtu_plan::DeviceError;
use tongtu_runtime::{RuntimeError, Value, VerifyOptions};

pub use tongtu_port::report::{self, ChipReport, Depth, Report};
pub use tongtu_port::{Gap, Settings, html, text};

use tongtu_port::prove::{self, Ran};

use crate::conform::with_compiler;
use crate::error::Error;
use crate::model::{LoadOptions, Model, tie};
use crate::options::Options;
use crate::remote::Remote;
use crate::session::Outputs;

/// Most operations of a model that the reference interpreter is asked to run whole.
const INTERPRETED: f64 = 5e8;

/// Reads a model of which only the shapes need to be known: weights in files that are not there are absent.
///
/// # Errors
/// As for [`Model::load_with`].
pub fn load(path: impl AsRef<Path>, options: &LoadOptions) -> Result<Model, Error> {
    let path = path.as_ref();
    if path.extension().is_some_and(|e| e == "json") {
        return Model::from_config(path);
    }
    Model::load_with(path, &LoadOptions { without_weights: true, ..options.clone() })
}

/// What a front end cannot take of a model, if that is what went wrong.
pub fn gaps(error: &Error) -> Option<Vec<Gap>> {
    let issues: &[Issue] = match error {
        Error::Onnx(OnnxError::Unsupported(all) | OnnxError::Nodes(all)) => all,
        Error::Onnx(OnnxError::Node(one)) => std::slice::from_ref(one),
        _ => return None,
    };
    let gap = |i: &Issue| Gap { op: i.op.clone(), at: i.node.clone(), why: i.why.clone() };
    Some(issues.iter().map(gap).collect())
}

/// Holds a model against a chip's description; see [`tongtu_port::check`](fn@tongtu_port::check).
///
/// # Errors
/// There is no such chip, no compiler for it in this build, or the graph is broken.
pub fn check(
    model: &Model,
    chip: &str,
    settings: &Settings,
    state: &[(String, String)],
) -> Result<ChipReport, Error> {
    let mut module = model.module().clone();
    let loaded = model.loaded();
    tie(&mut module, &loaded.inputs, &loaded.outputs, state)?;
    let chip = Chip::builtin(chip)?;
    let report = with_compiler(&chip, |compiler| tongtu_port::check(&module, &chip, compiler, settings))?;
    Ok(report?)
}

/// The report on a model that could not be read because of what its front end cannot take: that, and what the chip lacks for the rest as
/// far as it can be read.
///
/// # Errors
/// There is no such chip, or no compiler for it in this build.
pub fn refused(
    path: impl AsRef<Path>,
    options: &LoadOptions,
    chip: &str,
    settings: &Settings,
    gaps: &[Gap],
) -> Result<ChipReport, Error> {
    let rest = LoadOptions { partial: true, ..options.clone() };
    let none = || Ok(tongtu_port::gaps(&Chip::builtin(chip)?, gaps));
    let Ok(model) = load(path, &rest) else { return none() };
    match check(&model, chip, settings, &[]) {
        Ok(report) => Ok(tongtu_port::with_gaps(report, gaps, model.loaded().behind)),
        Err(Error::Chip(e)) => Err(Error::Chip(e)),
        Err(_) => none(),
    }
}

/// Compiles a model for a chip, runs it there or in its simulation, and compares every kernel with its reference on the inputs that it really
/// had, and the outputs with those of the whole model. What cannot be done is a finding of the report.
pub fn prove(
    report: ChipReport,
    model: &Model,
    options: &Options,
    inputs: &[(&str, Value)],
    verify: &VerifyOptions<'_>,
    measure: bool,
) -> ChipReport {
    let start = Instant::now();
    let plan = match model.plan(options) {
        Ok(plan) => plan,
        Err(e) => return prove::unproven(report, "M010", &e.to_string()),
    };
    let compile_ms = start.elapsed().as_secs_f64() * 1e3;
    let session = match crate::Session::from_plan(plan, options) {
        Ok(session) => session,
        Err(e) => {
            // What is not for this machine is refused by its device.
            let elsewhere = matches!(
                e,
                Error::NoDevice(_)
                    | Error::Device(_)
                    | Error::Runtime(RuntimeError::Device { error: DeviceError::Artifact { .. }, .. })
            );
            let code = if elsewhere { "M012" } else { "M011" };
            return prove::unproven(report, code, &e.to_string());
        }
    };
    let sizes = session.sizes(inputs);
    let report = prove::placed(report, session.plan(), &|d| d.eval(&|s| sizes.get(&s).copied()).unwrap_or(1));
    let (outputs, verified) = match session.verify(inputs, verify) {
        Ok(both) => both,
        Err(e) => return prove::unproven(report, "M011", &e.to_string()),
    };
    let (quality, quality_note) = quality(&report, model, options, inputs, &outputs);
    let how = match options.is_simulated() {
        true => format!("run in a simulation: {}", session.device().name()),
        false => format!("run on {}", session.device().name()),
    };
    let mut report = prove::prove(report, &verified, Ran { how, compile_ms, quality, quality_note });
    if measure {
        // The first run binds sizes and touches memory.
        let times = session.run(inputs).and_then(|_| {
            let (_, mut best) = session.profile(inputs)?;
            for _ in 0..4 {
                best.keep_best(&session.profile(inputs)?.1);
            }
            Ok(best)
        });
        match times {
            Ok(p) => {
                let kernel = |s: &tongtu_runtime::StepTime| Some((s.group?, s.ns as f64 / 1e3));
                let times: Vec<(usize, f64)> = p.steps.iter().filter_map(kernel).collect();
                let total = p.steps.iter().map(|s| s.ns as f64 / 1e3).sum();
                report = prove::measure(report, &times, total);
            }
            Err(e) => return prove::unproven(report, "M011", &e.to_string()),
        }
    }
    report
}

/// The outputs against those of the interpreter or, where the model is too large for it, of this machine.
fn quality(
    report: &ChipReport,
    model: &Model,
    options: &Options,
    inputs: &[(&str, Value)],
    outputs: &Outputs,
) -> (Vec<report::Quality>, String) {
    let (want, note) = match (report.total.flops <= INTERPRETED, is_here(options)) {
        (true, _) => (model.interpret(inputs), "compared with the reference interpreter"),
        (false, false) => {
            let here = model.compile(&Options::host()).and_then(|s| s.run(inputs));
            (here, "compared with this machine's, as the model is too large for the reference interpreter")
        }
        (false, true) => {
            let why = "not compared as a whole: the model is too large for the reference interpreter";
            return (Vec::new(), why.to_string());
        }
    };
    let want = match want {
        Ok(want) => want,
        Err(e) => return (Vec::new(), format!("not compared: {e}")),
    };
    let one = |(name, _): (&str, &Value)| {
        prove::quality(name, &outputs.tensor(name).ok()?, &want.tensor(name).ok()?)
    };
    (outputs.iter().filter_map(one).collect(), note.to_string())
}

/// Whether the chip is this machine.
fn is_here(options: &Options) -> bool {
    options.chip().is_ok_and(|c| c.name == "host")
}

/// How a chip is run from here: this machine, an emulator of a CPU where there is one, a simulation of a chip that has one.
pub fn options_for(chip: Chip) -> Options {
    let options = match (chip.name.as_str(), chip.kind) {
        ("host", _) => Options::host(),
        (_, Kind::Npu) => Options::for_chip(chip).simulated(),
        (_, Kind::Cpu) if Chip::host().is_ok_and(|h| h.arch == chip.arch) => Options::for_chip(chip),
        _ => match Remote::emulator(&chip) {
            Ok(remote) => Options::on(remote),
            Err(_) => Options::for_chip(chip),
        },
    };
    options.without_model_cache()
}
