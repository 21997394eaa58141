//! From a file to a session.

use std::io::Read;
use std::path::Path;

use tongtu::{LoadOptions, Model, Options, Session};

use crate::args::{ModelArgs, Precision};
use crate::ui::{FAILED, Fail, Progress};

/// Whether a file is a bundle.
pub fn is_bundle(path: &Path) -> Result<bool, Fail> {
    let mut start = [0; 8];
    let io = |e: std::io::Error| Fail {
        message: format!("[A001] {}: {e}", path.display()),
        hint: None,
        exit: FAILED,
    };
    let mut file = std::fs::File::open(path).map_err(io)?;
    let mut have = 0;
    while have < start.len() {
        match file.read(&mut start[have..]).map_err(io)? {
            0 => break,
            n => have += n,
        }
    }
    Ok(tongtu::bundle::is_bundle(&start[..have]))
}

/// The options of the command line.
pub fn options(args: &ModelArgs) -> Result<Options, Fail> {
    let options = match (&args.on, &args.simulate) {
        (Some(machine), _) => Options::on(tongtu::Remote::open(machine)?),
        (None, Some(chip)) => {
            let chip = tongtu::Chip::builtin(chip).map_err(tongtu::Error::from)?;
            Options::for_chip(chip).simulated().without_model_cache()
        }
        (None, None) => Options::host(),
    };
    let options = tied(options.threads(args.threads), args);
    Ok(match (args.no_cache, args.no_model_cache) {
        (true, _) => options.without_cache(),
        (_, true) => options.without_model_cache(),
        _ => options,
    })
}

/// With the precision, the state and the use of the host that the command line asks for.
pub fn tied(options: Options, args: &ModelArgs) -> Options {
    let options = match args.precision {
        Precision::F32 => options,
        Precision::Bf16 => options.precision(tongtu::Precision::Bf16),
    };
    let options = options.allow_host(args.allow_host);
    args.state.iter().fold(options, |o, (input, output)| o.state(input, output))
}

/// What the command line fixes when a model is read.
pub fn load(args: &ModelArgs) -> LoadOptions {
    LoadOptions { dims: args.fix.clone(), ..LoadOptions::default() }
}

/// Loads a model that is no bundle.
pub fn model(args: &ModelArgs) -> Result<Model, Fail> {
    let _wait = Progress::wait("loading");
    Ok(Model::load_with(&args.model, &load(args))?)
}

/// Loads and compiles a model, or opens a bundle.
pub fn session(args: &ModelArgs, options: &Options) -> Result<Session, Fail> {
    if is_bundle(&args.model)? {
        if !args.fix.is_empty() {
            return Err(Fail::usage("--fix has no effect on a bundle")
                .hint("fix sizes when it is compiled: `tongtu compile MODEL --fix NAME=SIZE -o FILE`"));
        }
        if !args.state.is_empty() {
            return Err(Fail::usage("--state has no effect on a bundle")
                .hint("tie state when it is compiled: `tongtu compile MODEL --state INPUT=OUTPUT -o FILE`"));
        }
        if args.precision != Precision::F32 {
            return Err(Fail::usage("--precision has no effect on a bundle")
                .hint("choose it when it is compiled: `tongtu compile MODEL --precision bf16 -o FILE`"));
        }
        return Ok(Session::open(&args.model, options)?);
    }
    let _wait = Progress::wait("compiling");
    Ok(Session::load_with(&args.model, &load(args), options)?)
}
