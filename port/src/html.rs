//! The report as one page that needs nothing else.

use crate::report::Report;

/// The page.
pub fn page(r: &Report) -> String {
    format!("<!doctype html><title>{}</title>", r.model)
}
