//! Strings: operations of the host.

use tongtu_graph::{AttrValue, Type};
use tongtu_tensor::DType;
use tongtu_tensor::dim::Dim;

use crate::ctx::{Ctx, NodeCtx};
use crate::error::Result;
use crate::ops::{Entry, broadcast, op};
use crate::val::Val;

/// The family's operators.
pub const OPS: &[Entry] = &[
    op("StringConcat", concat),
    op("StringSplit", split),
    op("StringNormalizer", normalize),
    op("RegexFullMatch", matches),
];

fn dims<'n>(n: &'n NodeCtx<'_>, i: usize) -> Result<&'n [Dim]> {
    match n.val(i)? {
        Val::Strings(s) => Ok(&s.dims),
        _ => Err(n.bad(format!("operand {i} is no tensor of strings"))),
    }
}

fn concat<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let ty = Type::Strings { dims: broadcast(n, dims(n, 0)?, dims(n, 1)?)? };
    let ids = [cx.arg(n, 0)?, cx.arg(n, 1)?];
    let out = cx.host("strings_concat", Vec::new(), &ids, vec![ty])?;
    cx.one(out[0])
}

fn split<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let outer = dims(n, 0)?.to_vec();
    let mut attributes = vec![("delimiter".to_string(), AttrValue::Str(n.str("delimiter", "")?.to_string()))];
    if let Some(m) = n.opt_int("maxsplit")? {
        attributes.push(("maxsplit".into(), AttrValue::Int(m)));
    }
    let mut parts = outer.clone();
    parts.push(Dim::from(cx.fresh("parts")));
    let id = cx.arg(n, 0)?;
    let types = vec![Type::Strings { dims: parts }, Type::tensor(DType::I64, outer)];
    let out = cx.host("strings_split", attributes, &[id], types)?;
    Ok(out.into_iter().map(|v| cx.out(v)).collect())
}

fn normalize<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let mut dims = dims(n, 0)?.to_vec();
    let Some(last) = dims.last_mut() else { return Err(n.bad("the operand is a scalar")) };
    *last = Dim::from(cx.fresh("words"));
    let case = n.str("case_change_action", "NONE")?.to_lowercase();
    let words = n.strings("stopwords")?.unwrap_or_default().into_iter().map(AttrValue::Str).collect();
    let attributes = vec![
        ("case".to_string(), AttrValue::Str(case)),
        ("case_sensitive".to_string(), AttrValue::Bool(n.flag("is_case_sensitive", false)?)),
        ("stopwords".to_string(), AttrValue::List(words)),
    ];
    let id = cx.arg(n, 0)?;
    let out = cx.host("strings_normalize", attributes, &[id], vec![Type::Strings { dims }])?;
    cx.one(out[0])
}

fn matches<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let ty = Type::tensor(DType::Bool, dims(n, 0)?.to_vec());
    let pattern = n.opt_str("pattern")?.ok_or_else(|| n.bad("no pattern is given"))?;
    let attributes = vec![("pattern".to_string(), AttrValue::Str(pattern.to_string()))];
    let id = cx.arg(n, 0)?;
    let out = cx.host("strings_match", attributes, &[id], vec![ty])?;
    cx.one(out[0])
}
