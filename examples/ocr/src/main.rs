//! Reads the text on a picture. See the folder's README.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use ocr::{Error, Reader, open, page};
use tongtu::{Options, cache};

/// Reads the text on a picture with PaddleOCR's models.
#[derive(Parser)]
#[command(name = "ocr")]
struct Arguments {
    /// The picture, PNG or JPEG.
    picture: PathBuf,
    /// Write a web page that shows what was read, and where.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// The folder of the models [default: models in the cache, where scripts/fetch-models puts them].
    #[arg(long, value_name = "DIR")]
    models: Option<PathBuf>,
    /// The version of the models: v4 or v6.
    #[arg(long, default_value = "v4")]
    version: String,
    /// Threads [default: all].
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    threads: usize,
}

fn run(arguments: &Arguments) -> Result<(), Error> {
    let picture = open(&arguments.picture)?;
    let models =
        arguments.models.clone().or_else(|| cache::root().map(|r| r.join("models"))).unwrap_or_default();
    let options = Options::host().threads(arguments.threads);
    let start = Instant::now();
    let reader = Reader::new(&models, &arguments.version, &options)?;
    let ready = start.elapsed();
    let start = Instant::now();
    let lines = reader.read(&picture)?;
    let took = start.elapsed();
    if arguments.json {
        println!("{}", serde_json::json!({ "lines": lines }));
    } else {
        for line in &lines {
            let [a, _, c, _] = line.corners.0;
            let turned = if line.turned { "  (turned)" } else { "" };
            println!(
                "{:5.1} %  ({:>4}, {:>4}) to ({:>4}, {:>4})  {}{turned}",
                100.0 * line.confidence,
                a.x,
                a.y,
                c.x,
                c.y,
                line.text
            );
        }
    }
    if let Some(path) = &arguments.html {
        let file = |path: &PathBuf| {
            let path = path.clone();
            move |error| Error::File { path, error }
        };
        let bytes = std::fs::read(&arguments.picture).map_err(file(&arguments.picture))?;
        let html = page(&bytes, picture.width(), picture.height(), &lines);
        std::fs::write(path, html).map_err(file(path))?;
    }
    eprintln!("{} lines in {took:.1?}; loading and compiling took {ready:.1?}", lines.len());
    Ok(())
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
