//! `tongtu run`.

use std::path::Path;
use std::time::Instant;

use serde_json::json;
use tongtu::onnx::FileKind;
use tongtu::{HostValue, LoadOptions, Model, Session, Value};

use crate::args::{Precision, RunArgs};
use crate::data::{self, Tolerance};
use crate::open;
use crate::ui::{DIFFERS, Done, Fail, Progress, bytes, print_json, say, table};

/// Runs a model.
pub fn run(args: &RunArgs, as_json: bool) -> Done {
    let start = Instant::now();
    let sizes = args.inputs.dims();
    let (ready_model, fixed) = prepare(args)?;
    let wants = match &ready_model {
        Ready::Interpreted(model) => data::wants_of_model(model, &sizes),
        Ready::Compiled(session) => data::wants_of_plan(session.plan(), &sizes),
    };
    let kinds = match &ready_model {
        Ready::Interpreted(model) => data::output_kinds(model.loaded().outputs.iter().map(|p| p.ty.clone())),
        Ready::Compiled(s) => {
            let plan = s.plan();
            data::output_kinds((0..plan.outputs.len()).map(|o| plan.output_type(o)))
        }
    };
    let ready = start.elapsed();
    let inputs = match fixed {
        Some(inputs) => inputs,
        None => data::inputs(&args.inputs, &wants, !sizes.0.is_empty())?,
    };
    let named: Vec<(&str, Value)> = inputs.iter().map(|(n, v)| (n.as_str(), v.clone())).collect();
    let start = Instant::now();
    let outputs = match &ready_model {
        Ready::Interpreted(model) => model.interpret(&named)?,
        Ready::Compiled(session) => match session.run(&named) {
            Ok(outputs) => outputs,
            Err(e) => match with_ones(args, &e, &wants, &inputs)? {
                Some(session) => session.run(&named)?,
                None => return Err(e.into()),
            },
        },
    };
    let took = start.elapsed();
    let results: Vec<(String, HostValue)> = outputs
        .iter()
        .map(|(n, v)| Ok((n.to_string(), data::host_value(v)?)))
        .collect::<Result<_, Fail>>()?;

    let rounding = match (args.model.precision, &ready_model) {
        (Precision::Bf16, Ready::Compiled(_)) => Some(rounding(args, &named, &results)?),
        _ => None,
    };
    let mut files = Vec::new();
    if let Some(dir) = &args.output {
        std::fs::create_dir_all(dir).map_err(tongtu::Error::io(dir))?;
        for (name, value) in &results {
            files.push(data::write_output(dir, name, value, args.output_format)?);
        }
    }
    let compared = match &args.inputs.data_set {
        Some(dir) => Some(compare(args, dir, &results, &kinds)?),
        None => None,
    };
    let placement = match &ready_model {
        Ready::Compiled(session) => session.placement(&named),
        Ready::Interpreted(_) => Vec::new(),
    };
    let passes = compared.as_ref().is_none_or(|c| c.iter().all(|(_, d)| d.passes()));
    if as_json {
        print_json(&json!({
            "model": args.model.model,
            "ready_ms": ready.as_secs_f64() * 1e3,
            "run_ms": took.as_secs_f64() * 1e3,
            "outputs": results.iter().map(|(n, v)| json!({ "name": n, "value": data::summary(v) })).collect::<Vec<_>>(),
            "files": files,
            "error_of_precision": rounding,
            "placement": placement,
            "comparison": compared.as_ref().map(|c| c.iter().map(|(n, d)| json!({
                "output": n, "passes": d.passes(), "difference": d,
            })).collect::<Vec<_>>()),
            "passes": passes,
        }));
    } else {
        for (name, value) in &results {
            say!("{name}  {}", data::summary(value));
        }
        for file in &files {
            say!("wrote {}", file.display());
        }
        for (name, d) in compared.iter().flatten() {
            let verdict = if d.passes() { "ok" } else { "DIFFERS" };
            match &d.problem {
                Some(p) => say!("{verdict}  {name}: {p}"),
                None => say!(
                    "{verdict}  {name}: {} of {} elements outside the tolerance, worst error {:.3e} ({:.3} of what is allowed)",
                    d.outside,
                    d.elements,
                    d.worst_abs,
                    d.worst_ratio
                ),
            }
        }
        for (name, error) in rounding.iter().flatten() {
            say!("{name}: differs from f32 by {error:.1e} of the largest value at most");
        }
        if args.model.allow_host && !placement.is_empty() {
            let heading = ["on the host", "at", "bytes copied", "why"].map(str::to_string).to_vec();
            let row = |p: &tongtu::port::report::Placement| {
                vec![p.op.clone(), p.at.clone(), bytes(p.bytes as u64), p.why.clone()]
            };
            table(&std::iter::once(heading).chain(placement.iter().map(row)).collect::<Vec<_>>());
        }
        say!("ready in {:.1} ms, ran in {:.2} ms", ready.as_secs_f64() * 1e3, took.as_secs_f64() * 1e3);
    }
    Ok(if passes { 0 } else { DIFFERS })
}

/// How far each tensor of the results is from that computed in f32, as a share of the largest value there.
fn rounding(
    args: &RunArgs,
    inputs: &[(&str, Value)],
    results: &[(String, HostValue)],
) -> Result<Vec<(String, f64)>, Fail> {
    let mut model = args.model.clone();
    model.precision = Precision::F32;
    let session = open::session(&model, &open::options(&model)?)?;
    let exact = session.run(inputs)?;
    let mut out = Vec::new();
    for ((name, got), (_, want)) in results.iter().zip(exact.iter()) {
        let want = data::host_value(want)?;
        if let (Some(a), Some(b)) = (got.as_tensor(), want.as_tensor())
            && a.shape() == b.shape()
        {
            let pairs = a.iter().zip(b.iter()).map(|(x, y)| (x.to_f64(), y.to_f64()));
            let (worst, largest) =
                pairs.fold((0f64, 0f64), |(w, l), (x, y)| (w.max((x - y).abs()), l.max(y.abs())));
            out.push((name.clone(), if worst == 0.0 { 0.0 } else { worst / largest }));
        }
    }
    Ok(out)
}

/// The model compiled for the sizes that are 1 here, where it cannot run because it was not known that they are: a size of 1
/// is repeated to another only if it is known.
fn with_ones(
    args: &RunArgs,
    error: &tongtu::Error,
    wants: &[data::Want],
    inputs: &Inputs,
) -> Result<Option<Session>, Fail> {
    if !error.is_size_of_one() || open::is_bundle(&args.model.model)? {
        return Ok(None);
    }
    let mut dims = args.model.fix.clone();
    for (name, value) in inputs {
        let Some(want) = wants.iter().find(|w| w.name == *name) else { continue };
        let Value::Tensor(t) = value else { continue };
        for (size, dim) in t.shape().iter().zip(&want.dims) {
            match dim {
                Err(name) if *size == 1 && !dims.iter().any(|(n, _)| n == name) => {
                    dims.push((name.clone(), 1))
                }
                _ => {}
            }
        }
    }
    if dims.len() == args.model.fix.len() {
        return Ok(None);
    }
    let names: Vec<&str> = dims.iter().map(|(n, _)| n.as_str()).collect();
    eprintln!("note: the model is compiled for sizes of 1: {}", names.join(", "));
    let model = Model::load_with(&args.model.model, &LoadOptions { dims, ..LoadOptions::default() })?;
    Ok(Some(model.compile(&open::options(&args.model)?)?))
}

/// A model that runs.
enum Ready {
    Compiled(Session),
    Interpreted(Box<Model>),
}

/// Inputs by name.
type Inputs = Vec<(String, Value)>;

/// Makes a model ready. One that must know its small integer inputs is made ready for those given, and the inputs that are
/// left come with it.
fn prepare(args: &RunArgs) -> Result<(Ready, Option<Inputs>), Fail> {
    if args.interpret && args.model.precision != Precision::F32 {
        return Err(Fail::usage("--precision has no effect with --interpret")
            .hint("the interpreter computes what the model says: leave one of the two out"));
    }
    let options = open::options(&args.model)?;
    let whole = match args.interpret && !open::is_bundle(&args.model.model)? {
        true => open::model(&args.model).map(|m| Ready::Interpreted(Box::new(m))),
        false => open::session(&args.model, &options).map(Ready::Compiled),
    };
    let path = &args.model.model;
    let error = match whole {
        Ok(ready) => return Ok((ready, None)),
        Err(e) => e,
    };
    if !matches!(tongtu::code_of(&error.message), "O008" | "O009") {
        return Err(error);
    }
    let wants = data::wants_of_names(&Model::input_names(path)?, &[]);
    let Ok(inputs) = data::inputs(&args.inputs, &wants, false) else { return Err(error) };
    let known = inputs
        .iter()
        .map(|(n, v)| Ok((n.clone(), data::host_value(v)?)))
        .collect::<Result<Vec<_>, Fail>>()?;
    let (model, fixed) = Model::load_for(path, &open::load(&args.model), &known)?;
    if !fixed.is_empty() {
        eprintln!("note: the model is compiled for the contents of {}", fixed.join(", "));
    }
    let left = inputs.into_iter().filter(|(n, _)| !fixed.contains(n)).collect();
    let ready = match args.interpret {
        true => Ready::Interpreted(Box::new(model)),
        false => {
            let _wait = Progress::wait("compiling");
            Ready::Compiled(model.into_session(&options)?)
        }
    };
    Ok((ready, Some(left)))
}

fn compare(
    args: &RunArgs,
    dir: &Path,
    results: &[(String, HostValue)],
    kinds: &[FileKind],
) -> Result<Vec<(String, data::Difference)>, Fail> {
    let expected = data::data_set_outputs(dir, kinds)?;
    if expected.is_empty() {
        return Err(Fail::usage(format!("{} has no output_0.pb to compare with", dir.display()))
            .hint("without outputs, give the inputs with --input NAME=FILE.pb"));
    }
    let mut tolerance = Tolerance::of(dir.parent().unwrap_or(Path::new(".")));
    tolerance.rtol = args.rtol.unwrap_or(tolerance.rtol);
    tolerance.atol = args.atol.unwrap_or(tolerance.atol);
    Ok(results
        .iter()
        .zip(&expected)
        .map(|((name, got), want)| (name.clone(), data::compare(got, want, tolerance)))
        .collect())
}
