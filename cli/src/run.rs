//! `tongtu run`.

use std::path::Path;
use std::time::Instant;

use serde_json::json;
use tongtu::onnx::FileKind;
use tongtu::{HostValue, Outputs, Value};

use crate::args::RunArgs;
use crate::data::{self, Tolerance, Want};
use crate::open;
use crate::ui::{DIFFERS, Done, Fail, print_json, say};

/// Runs a model.
pub fn run(args: &RunArgs, as_json: bool) -> Done {
    let start = Instant::now();
    let sizes = args.inputs.dims();
    // Running is the same for both, once there is something that runs.
    type Go = Box<dyn Fn(&[(&str, Value)]) -> Result<Outputs, tongtu::Error>>;
    let (wants, kinds, go): (Vec<Want>, Vec<FileKind>, Go) = if args.interpret {
        let model = open::model(&args.model)?;
        let wants = data::wants_of_model(&model, &sizes);
        let kinds = data::output_kinds(model.loaded().outputs.iter().map(|p| p.ty.clone()));
        (wants, kinds, Box::new(move |inputs| model.interpret(inputs)))
    } else {
        let session = open::session(&args.model, &open::options(&args.model))?;
        let wants = data::wants_of_plan(session.plan(), &sizes);
        let plan = session.plan();
        let kinds = data::output_kinds(plan.outputs.iter().map(|p| plan.values[p.value.index()].ty.clone()));
        (wants, kinds, Box::new(move |inputs| session.run(inputs)))
    };
    let ready = start.elapsed();
    let inputs = data::inputs(&args.inputs, &wants, !sizes.0.is_empty())?;
    let named: Vec<(&str, Value)> = inputs.iter().map(|(n, v)| (n.as_str(), v.clone())).collect();
    let start = Instant::now();
    let outputs = go(&named)?;
    let took = start.elapsed();
    let results: Vec<(String, HostValue)> = outputs
        .iter()
        .map(|(n, v)| Ok((n.to_string(), data::host_value(v)?)))
        .collect::<Result<_, Fail>>()?;

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
    let passes = compared.as_ref().is_none_or(|c| c.iter().all(|(_, d)| d.passes()));
    if as_json {
        print_json(&json!({
            "model": args.model.model,
            "ready_ms": ready.as_secs_f64() * 1e3,
            "run_ms": took.as_secs_f64() * 1e3,
            "outputs": results.iter().map(|(n, v)| json!({ "name": n, "value": data::summary(v) })).collect::<Vec<_>>(),
            "files": files,
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
        say!("ready in {:.1} ms, ran in {:.2} ms", ready.as_secs_f64() * 1e3, took.as_secs_f64() * 1e3);
    }
    Ok(if passes { 0 } else { DIFFERS })
}

fn compare(
    args: &RunArgs,
    dir: &Path,
    results: &[(String, HostValue)],
    kinds: &[FileKind],
) -> Result<Vec<(String, data::Difference)>, Fail> {
    let expected = data::data_set_outputs(dir, kinds)?;
    if expected.is_empty() {
        return Err(Fail::usage(format!("{} has no output_0.pb to compare with", dir.display())));
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
