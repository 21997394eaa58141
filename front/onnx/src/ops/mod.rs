//! The operators, by family. A row of a family's table names an operator, the versions of its set that the row is
//! for, and the function that lowers a node.

use std::collections::HashMap;

use crate::ctx::{Ctx, NodeCtx};
use crate::error::Result;
use crate::val::Val;

mod control;
mod index;
mod math;
mod nn;
mod shape;

/// Lowers one node: gives its results, in order (results that are never used may be left out at the end).
pub type Lower = for<'m> fn(&mut Ctx<'_, 'm>, &NodeCtx<'m>) -> Result<Vec<Val>>;

/// One row: an operator in a range of versions of its set.
#[derive(Clone, Copy)]
pub struct Entry {
    /// Domain; empty for the standard one.
    pub domain: &'static str,
    /// Operator name.
    pub name: &'static str,
    /// First version of the set.
    pub since: i64,
    /// First version of the set that the row is not for.
    pub until: i64,
    /// Lowers a node.
    pub lower: Lower,
}

/// A row of the standard domain, for every version.
pub const fn op(name: &'static str, lower: Lower) -> Entry {
    Entry { domain: "", name, since: 1, until: i64::MAX, lower }
}

/// A row of another domain, for every version.
pub const fn op_in(domain: &'static str, name: &'static str, lower: Lower) -> Entry {
    Entry { domain, name, since: 1, until: i64::MAX, lower }
}

impl Entry {
    /// The row from a version on.
    pub const fn since(self, since: i64) -> Entry {
        Entry { since, ..self }
    }
    /// The row up to, but without, a version.
    pub const fn until(self, until: i64) -> Entry {
        Entry { until, ..self }
    }
}

/// The families.
#[rustfmt::skip]
const FAMILIES: &[&[Entry]] = &[
    control::OPS,
    index::OPS,
    math::OPS,
    nn::OPS,
    shape::OPS,
];

/// The operators by domain and name.
pub struct Registry {
    rows: HashMap<(&'static str, &'static str), Vec<Entry>>,
}

impl Registry {
    /// All families.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Registry {
        let mut rows: HashMap<_, Vec<Entry>> = HashMap::new();
        for e in FAMILIES.iter().copied().flatten() {
            rows.entry((e.domain, e.name)).or_default().push(*e);
        }
        Registry { rows }
    }
    /// The function for an operator of a version.
    pub fn find(&self, domain: &str, name: &str, version: i64) -> Option<Lower> {
        let rows = self.rows.get(&(domain, name))?;
        rows.iter().find(|e| (e.since..e.until).contains(&version)).map(|e| e.lower)
    }
}

/// Every operator: domain, name, first version; for documentation.
pub fn operators() -> Vec<(&'static str, &'static str, i64)> {
    let mut all: Vec<_> = FAMILIES.iter().copied().flatten().map(|e| (e.domain, e.name, e.since)).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Equality of strings, an operation of the host.
pub(crate) fn strings_equal<'m>(_: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    Err(n.unsupported("strings"))
}

/// Conversions from and to strings, operations of the host.
pub(crate) fn strings_cast<'m>(_: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    Err(n.unsupported("strings"))
}
