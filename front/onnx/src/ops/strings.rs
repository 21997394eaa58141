//! Strings: operations of the host.

use tongtu_graph::infer::numel;
use tongtu_graph::{AttrValue, Type};
use tongtu_tensor::DType;
use tongtu_tensor::dim::Dim;

use crate::ctx::{Ctx, NodeCtx};
use crate::error::Result;
use crate::fold;
use crate::ops::{Entry, Lower, broadcast, op};
use crate::val::Val;

/// The family's operators.
pub const OPS: &[Entry] = &[
    op("StringConcat", concat),
    op("StringSplit", split),
    op("StringNormalizer", normalize),
    op("RegexFullMatch", matches),
];

/// Operators of the standard domain that only move elements.
#[rustfmt::skip]
const MOVES: &[&str] = &[
    "Compress", "Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Reshape", "Scatter",
    "ScatterElements", "ScatterND", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where",
];

/// Whether a node of the standard domain only moves strings.
pub(crate) fn moves(n: &NodeCtx<'_>) -> bool {
    n.inputs.iter().flatten().any(|v| matches!(v, Val::Strings(_))) && MOVES.contains(&n.op())
}

/// Moves the positions of strings as the operator moves numbers, and takes the strings from there.
pub(crate) fn moved<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>, lower: Lower) -> Result<Vec<Val>> {
    let (mut texts, mut inputs, mut before) = (Vec::new(), Vec::new(), Dim::from(0));
    for v in &n.inputs {
        let Some(v @ Val::Strings(s)) = v else {
            inputs.push(v.clone());
            continue;
        };
        let count = numel(&s.dims);
        let at = cx.b.iota(DType::I64, std::slice::from_ref(&count), 0)?;
        let first = cx.b.dim_as(&before, DType::I64)?;
        let at = cx.b.add2(at, first)?;
        let at = cx.b.reshape(at, &s.dims)?;
        inputs.push(Some(cx.out(at)));
        texts.push(cx.id(v)?);
        before = before + count;
    }
    let numbers =
        NodeCtx { node: n.node, opset: n.opset, inputs, attrs: n.attrs.clone(), loc: n.loc.clone() };
    let mut out = Vec::new();
    for at in fold::node(cx, &numbers, lower)? {
        let at = cx.id(&at)?;
        let ty = Type::Strings { dims: cx.b.dims(at) };
        let operands: Vec<_> = texts.iter().copied().chain([at]).collect();
        let y = cx.host("strings_take", Vec::new(), &operands, vec![ty])?;
        out.push(cx.out(y[0]));
    }
    Ok(out)
}

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
