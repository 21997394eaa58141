//! `tongtu port`.

use std::path::Path;

use tongtu::port::{self, ChipReport, Depth, Report, Settings};
use tongtu::{Chip, Options, Value, VerifyOptions};

use crate::args::{PortArgs, Precision};
use crate::data;
use crate::open;
use crate::ui::{Done, FAILED, Fail, Progress, print};

/// Says what moving a model to other chips costs.
pub fn port(args: &PortArgs, as_json: bool) -> Done {
    let report = make(args).map_err(|f| Fail { exit: FAILED, ..f })?;
    if let Some(path) = &args.html {
        std::fs::write(path, port::html::page(&report)).map_err(tongtu::Error::io(path))?;
    }
    match as_json {
        true => print(&serde_json::to_string_pretty(&report).unwrap_or_default()),
        false => print(port::text::render(&report).trim_end()),
    }
    Ok(report.exit)
}

/// A model's name: its file's or, where that says nothing, its folder's.
fn name(path: &Path) -> String {
    let stem = path.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let folder = path.parent().and_then(Path::file_name).map(|n| n.to_string_lossy().into_owned());
    match stem.as_str() {
        "model" | "config" => folder.unwrap_or(stem),
        _ => stem,
    }
}

fn make(args: &PortArgs) -> Result<Report, Fail> {
    if args.model.simulate.is_some() {
        return Err(Fail::usage("--simulate has no effect here")
            .hint("--to names the chip; what emulates or simulates it is found"));
    }
    let machine = match &args.model.on {
        Some(_) if args.to.len() > 1 => {
            return Err(Fail::usage("--on names one machine, --to several chips")
                .hint("give --to the chip that the machine is"));
        }
        Some(name) if !args.check => Some(tongtu::Remote::open(name)?),
        _ => None,
    };
    if open::is_bundle(&args.model.model)? {
        return Err(Fail::usage("a bundle is compiled already").hint("give the model that it was made from"));
    }
    let depth = match (args.check, args.measure) {
        (true, _) => Depth::Check,
        (_, true) => Depth::Measure,
        _ => Depth::Prove,
    };
    let mut settings = Settings { allow_host: args.model.allow_host, ..Settings::default() };
    settings.sizes = args.inputs.dims().0;
    if args.model.precision == Precision::Bf16 {
        settings.compile.passes.precision = tongtu::Precision::Bf16;
    }
    let name = name(&args.model.model);
    let load = open::load(&args.model);
    let is_config = args.model.model.extension().is_some_and(|e| e == "json");
    if is_config && !args.check {
        return Err(Fail::usage("a configuration has no weights to run").hint("--check needs none"));
    }
    let loaded = {
        let _wait = Progress::wait("loading");
        match args.check {
            true => port::load(&args.model.model, &load),
            false => tongtu::Model::load_with(&args.model.model, &load),
        }
    };
    let model = match loaded {
        Ok(model) => model,
        Err(e) => {
            let Some(gaps) = port::gaps(&e) else { return Err(e.into()) };
            let path = &args.model.model;
            let refused = |c: &String| port::refused(path, &load, c, &settings, &gaps);
            let chips = args.to.iter().map(refused).collect::<Result<_, _>>()?;
            return Ok(Report::new(&name, depth, Vec::new(), chips));
        }
    };
    if let Some(unknown) = settings.unknown(model.module()) {
        let have: Vec<String> = settings.open(model.module()).into_iter().map(|s| s.name).collect();
        return Err(Fail::usage(format!("the model's inputs have no dim called '{unknown}'"))
            .hint(format!("they have: {}", have.join(", "))));
    }
    let given = args.inputs.data_set.is_some() || !args.inputs.input.is_empty();
    let inputs = match args.check && !given {
        true => Vec::new(),
        false => {
            // What is left open is as small as it may be, as in the check.
            let mut sizes = args.inputs.dims();
            for s in settings.open(model.module()) {
                if !s.given {
                    sizes.0.push((s.name, s.size));
                }
            }
            data::inputs(&args.inputs, &data::wants_of_model(&model, &sizes), true)?
        }
    };
    for (name, value) in &inputs {
        bind(&mut settings, &model, name, value);
    }
    let named: Vec<(&str, Value)> = inputs.iter().map(|(n, v)| (n.as_str(), v.clone())).collect();
    let mut chips: Vec<ChipReport> = Vec::new();
    let mut state = args.model.state.clone();
    if is_config {
        state.push(("past.*".to_string(), "present.*".to_string()));
    }
    for chip in &args.to {
        let _wait = Progress::wait("porting");
        let mut report = port::check(&model, chip, &settings, &state)?;
        if depth != Depth::Check && report.verdict != port::report::Verdict::Fails {
            let chip = Chip::builtin(chip).map_err(tongtu::Error::from)?;
            let here = chip.name == "host";
            let options = match &machine {
                Some(remote) => Options::on(remote.clone().with_chip(chip)).without_model_cache(),
                None => port::options_for(chip),
            };
            let mut options = open::tied(options.threads(args.model.threads), &args.model);
            if args.model.no_cache {
                options = options.without_cache();
            }
            let verify =
                VerifyOptions { elements: args.elements, seed: args.inputs.seed, ..VerifyOptions::default() };
            let measure = args.measure && (here || machine.is_some());
            report = port::prove(report, &model, &options, &named, &verify, measure);
        }
        chips.push(report);
    }
    Ok(Report::new(&name, depth, settings.open(model.module()), chips))
}

/// Takes sizes from the shape of an input.
fn bind(settings: &mut Settings, model: &tongtu::Model, name: &str, value: &Value) {
    let Value::Tensor(t) = value else { return };
    let Some(port) = model.loaded().inputs.iter().find(|p| p.name == name) else { return };
    let Some((_, dims)) = port.ty.as_tensor() else { return };
    let symbols = &model.module().symbols;
    for (d, &n) in dims.iter().zip(t.shape()) {
        let known = d.as_sym().and_then(|s| symbols.name(s));
        if let Some(sym) = known.filter(|k| !settings.sizes.iter().any(|(n, _)| n == k)) {
            settings.sizes.push((sym.to_string(), n as i64));
        }
    }
}
