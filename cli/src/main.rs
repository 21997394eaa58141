//! The `tongtu` command line.
#![forbid(unsafe_code)]

mod args;
mod bench;
mod check;
mod conform;
mod data;
mod info;
mod kit;
mod open;
mod port;
mod run;
mod ui;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command, Suite};
use ui::Done;

fn dispatch(cli: &Cli) -> Done {
    let json = cli.json;
    match &cli.command {
        Command::Run(a) => run::run(a, json),
        Command::Bench(a) => bench::bench(a, json),
        Command::BenchChild(a) => bench::child(a),
        Command::Inspect(a) => info::inspect(a, json),
        Command::Compile(a) => info::compile(a, json),
        Command::Verify(a) => check::verify(a, json),
        Command::Profile(a) => check::profile(a, json),
        Command::Port(a) => port::port(a, json),
        Command::Conform(c) => match &c.suite {
            Some(Suite::Onnx(a)) => conform::onnx(a, json),
            None => kit::chip(&c.chip, json),
        },
        Command::ConformWorker(a) => conform::worker(a),
        Command::ConformKitWorker(a) => kit::worker(a),
        Command::Chips(a) => info::chips(a, json),
        Command::Devices => info::devices(json),
        Command::Doctor(a) => info::doctor(a, json),
        Command::Toolchain(a) => info::toolchain(a, json),
        Command::Completions { shell } => info::completions(*shell),
        Command::Man { dir } => info::man(dir.as_deref()),
    }
}

/// What is said of a defect instead of a backtrace.
fn on_panic(info: &std::panic::PanicHookInfo<'_>) {
    let place = info.location().map(|l| format!("{}:{}", l.file(), l.line())).unwrap_or_default();
    let what = info.payload_as_str().unwrap_or("unknown");
    eprintln!("error[X001]: internal error at {place}: {what}");
    eprintln!("  hint: this is a defect of Tongtu; please report it with the command and the model");
}

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(on_panic));
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            // There 2 is an answer: the model does not work.
            let is_port = std::env::args().skip(1).find(|a| !a.starts_with('-')).is_some_and(|a| a == "port");
            let code = if is_port && e.use_stderr() { ui::FAILED.into() } else { e.exit_code() };
            return ExitCode::from(u8::try_from(code).unwrap_or(ui::USAGE));
        }
    };
    match std::panic::catch_unwind(|| dispatch(&cli)) {
        Ok(Ok(code)) => ExitCode::from(code),
        Ok(Err(fail)) => {
            fail.show(cli.json);
            ExitCode::from(fail.exit)
        }
        Err(_) => ExitCode::from(ui::INTERNAL),
    }
}
