//! What a user sees: messages, tables, progress, errors.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value as Json, json};

/// Prints a line; a reader that went away is no error.
macro_rules! say {
    ($($arg:tt)*) => { $crate::ui::print(&format!($($arg)*)) };
}
pub(crate) use say;

/// Prints a line to standard output.
pub fn print(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// Prints a report as JSON.
pub fn print_json(value: &Json) {
    print(&serde_json::to_string_pretty(value).unwrap_or_default());
}

/// The exit code where results differ from what is expected.
pub const DIFFERS: u8 = 1;
/// The exit code of a wrong command line.
pub const USAGE: u8 = 2;
/// The exit code where a model, file or device cannot be used.
pub const FAILED: u8 = 3;
/// The exit code of a defect of the program itself.
pub const INTERNAL: u8 = 4;

/// Why a command stops.
#[derive(Debug)]
pub struct Fail {
    /// What happened.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
    /// The exit code.
    pub exit: u8,
}

/// The result of a command: its exit code.
pub type Done = Result<u8, Fail>;

impl Fail {
    /// A wrong use of the command line.
    pub fn usage(message: impl Into<String>) -> Fail {
        Fail { message: message.into(), hint: None, exit: USAGE }
    }

    /// With advice.
    pub fn hint(mut self, hint: impl Into<String>) -> Fail {
        self.hint = Some(hint.into());
        self
    }

    /// Prints it: to standard error for people, to standard output as JSON.
    pub fn show(&self, as_json: bool) {
        let code = tongtu::code_of(&self.message);
        if as_json {
            print_json(&json!({ "error": { "code": code, "message": self.message, "hint": self.hint } }));
            return;
        }
        let bare = self.message.trim_start_matches('[').trim_start_matches(code);
        let text = bare.trim_start_matches([']', ':']).trim_start();
        let mut err = std::io::stderr().lock();
        let _ = match code {
            "" => writeln!(err, "error: {text}"),
            _ => writeln!(err, "error[{code}]: {text}"),
        };
        if let Some(hint) = &self.hint {
            let _ = writeln!(err, "  hint: {hint}");
        }
    }
}

impl From<tongtu::Error> for Fail {
    fn from(e: tongtu::Error) -> Fail {
        Fail { message: e.to_string(), hint: e.hint().map(str::to_string), exit: FAILED }
    }
}

/// A wait that is shown while it lasts, where standard error is a terminal.
pub struct Progress(ProgressBar);

impl Progress {
    /// Something of unknown length.
    pub fn wait(message: &'static str) -> Progress {
        let bar =
            if std::io::stderr().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        bar.set_message(message);
        bar.enable_steady_tick(Duration::from_millis(100));
        Progress(bar)
    }

    /// Something of known length.
    pub fn count(total: u64, message: &'static str) -> Progress {
        let bar =
            if std::io::stderr().is_terminal() { ProgressBar::new(total) } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("{msg} {bar:30} {pos}/{len} {eta}") {
            bar.set_style(style);
        }
        bar.set_message(message);
        Progress(bar)
    }

    /// One more is done.
    pub fn step(&self) {
        self.0.inc(1);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Prints rows in columns; the first row is the heading.
pub fn table(rows: &[Vec<String>]) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|t| t.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, w)| format!("{cell:<w$}"));
        print(cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}

/// A number of bytes for people.
pub fn bytes(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (n as f64, 0);
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", units[unit]) }
}

/// A large number for people.
pub fn si(n: f64) -> String {
    let units = ["", "K", "M", "G", "T", "P"];
    let (mut value, mut unit) = (n, 0);
    while value.abs() >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{value}") } else { format!("{value:.2} {}", units[unit]) }
}

/// The first characters of a text.
pub fn short(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_string();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}
