//! The operators, by family. A row of a family's table names an operator, the versions of its set that the row is
//! for, and the function that lowers a node.

use std::collections::HashMap;

use tongtu_graph::{AttrValue, Type, infer};
use tongtu_tensor::DType;
use tongtu_tensor::dim::Dim;

use crate::ctx::{Ctx, NodeCtx};
use crate::error::Result;
use crate::val::Val;

mod attention;
mod calc;
mod classic;
mod control;
mod deform;
mod detect;
mod einsum;
mod flex;
mod index;
mod loss;
mod math;
mod microsoft;
mod nn;
mod quant;
mod recurrent;
mod reduce;
mod resize;
mod sequence;
mod shape;
mod signal;
pub(crate) mod strings;
mod training;

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
    classic::OPS,
    control::OPS,
    training::OPS,
    strings::OPS,
    sequence::OPS,
    loss::OPS,
    flex::OPS,
    einsum::OPS,
    detect::OPS,
    deform::OPS,
    index::OPS,
    math::OPS,
    microsoft::OPS,
    attention::OPS,
    nn::OPS,
    quant::OPS,
    recurrent::OPS,
    reduce::OPS,
    resize::OPS,
    shape::OPS,
    signal::OPS,
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
pub(crate) fn strings_equal<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let (Val::Strings(a), Val::Strings(b)) = (n.val(0)?, n.val(1)?) else {
        return Err(n.bad("strings are compared with strings only"));
    };
    let dims = broadcast(n, &a.dims, &b.dims)?;
    let operands = [cx.arg(n, 0)?, cx.arg(n, 1)?];
    let y = cx.host("strings_equal", Vec::new(), &operands, vec![Type::tensor(DType::Bool, dims)])?;
    cx.one(y[0])
}

/// Dims under NumPy's broadcasting.
pub(crate) fn broadcast(n: &NodeCtx<'_>, a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>> {
    let rank = a.len().max(b.len());
    let one = Dim::from(1);
    let at = |v: &[Dim], i: usize| (i + v.len()).checked_sub(rank).map_or(one.clone(), |k| v[k].clone());
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == one => Ok(y),
            (x, y) if y == one => Ok(x),
            (x, y) if infer::may_equal(&x, &y) => Ok(infer::simpler(&x, &y)),
            (x, y) => Err(n.bad(format!("dims {x:?} and {y:?} do not broadcast"))),
        })
        .collect()
}

/// Conversions from and to strings, operations of the host.
pub(crate) fn strings_cast<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let to = match n.op() {
        "Cast" => n.int("to", 0)?,
        _ => match n.val(1)? {
            Val::Tensor(t) => t_number(t.dtype),
            _ => i64::from(crate::data::STRING),
        },
    };
    let x = cx.arg(n, 0)?;
    let y = match n.val(0)? {
        v @ Val::Strings(_) if to == i64::from(crate::data::STRING) => return Ok(vec![v.clone()]),
        Val::Strings(s) => {
            let to = i32::try_from(to).ok().and_then(crate::data::dtype);
            let to = to.ok_or_else(|| n.unsupported("this element type"))?;
            let ty = Type::tensor(to, s.dims.clone());
            cx.host("strings_to_numbers", vec![("to".into(), AttrValue::DType(to))], &[x], vec![ty])?
        }
        Val::Tensor(t) => {
            let ty = Type::Strings { dims: t.dims.clone() };
            cx.host("strings_from_numbers", Vec::new(), &[x], vec![ty])?
        }
        _ => return Err(n.bad("the operand is no tensor")),
    };
    cx.one(y[0])
}

fn t_number(dtype: DType) -> i64 {
    crate::data::dtype_number(dtype).map_or(0, i64::from)
}
