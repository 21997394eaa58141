//! Sequences and optionals: lists known while lowering where that can be, else values of the host.

use std::rc::Rc;

use tongtu_graph::{AttrValue, Op, Type, ValueId};
use tongtu_tensor::dim::Dim;
use tongtu_tensor::{Compare, DType, Tensor};

use crate::ctx::{Ctx, NodeCtx};
use crate::error::Result;
use crate::lower::element_type;
use crate::ops::{Entry, op};
use crate::val::{OptionalVal, SequenceVal, Val};

/// The family's operators.
pub const OPS: &[Entry] = &[
    op("SequenceEmpty", |_, _| Ok(vec![known(Type::Any, Vec::new())])),
    op("SequenceConstruct", construct),
    op("SequenceInsert", insert),
    op("SequenceErase", erase),
    op("SequenceAt", at),
    op("SequenceLength", length),
    op("SplitToSequence", split),
    op("ConcatFromSequence", concat),
    op("SequenceMap", map),
    op("Optional", optional),
    op("OptionalHasElement", has_element),
    op("OptionalGetElement", get_element),
];

/// Most elements of a sequence that is followed one by one.
const MAX_ITEMS: usize = 1024;

fn known(element: Type, items: Vec<Val>) -> Val {
    Val::Sequence(SequenceVal::Known { element, items: Rc::new(items) })
}

/// The type that all elements have, without dims that may differ.
fn common(items: &[Val]) -> Type {
    let mut types = items.iter().map(Val::ty);
    let first = types.next().unwrap_or(Type::Any);
    if types.all(|t| t == first) { first } else { Type::Any }
}

/// The elements of an operand, if known.
fn items<'n>(n: &'n NodeCtx<'_>, i: usize) -> Result<Option<&'n Rc<Vec<Val>>>> {
    match n.val(i)? {
        Val::Sequence(SequenceVal::Known { items, .. }) if items.len() <= MAX_ITEMS => Ok(Some(items)),
        Val::Sequence(_) => Ok(None),
        _ => Err(n.bad(format!("operand {i} is no sequence"))),
    }
}

/// The type of the elements of a sequence operand.
fn element(n: &NodeCtx<'_>, i: usize) -> Result<Type> {
    match n.val(i)?.ty() {
        Type::Sequence(t) => Ok(*t),
        _ => Err(n.bad(format!("operand {i} is no sequence"))),
    }
}

/// A place in a sequence of `len` elements given by an operand: `None` if left out or not known.
fn place(n: &NodeCtx<'_>, i: usize, len: usize, limit: usize) -> Result<Option<usize>> {
    let Some(p) = n.const_ints(i).and_then(|p| p.first().copied()) else { return Ok(None) };
    let p = if p < 0 { p + len as i64 } else { p };
    match usize::try_from(p).ok().filter(|&p| p < limit) {
        Some(p) => Ok(Some(p)),
        None => Err(n.bad(format!("place {p} in a sequence of {len}"))),
    }
}

/// A type whose dims hold for one element only: those not constant become fresh symbols. Where the type of the elements is not known,
/// what the model declares of the result.
fn fresh_type(cx: &mut Ctx<'_, '_>, n: &NodeCtx<'_>, t: Type) -> Result<Type> {
    let t = match t {
        Type::Any => cx.declared_type(n, 0)?,
        t => t,
    };
    let mut dims = |dims: Vec<Dim>| -> Vec<Dim> {
        dims.into_iter().map(|d| if d.as_const().is_some() { d } else { Dim::from(cx.fresh("n")) }).collect()
    };
    Ok(match t {
        Type::Tensor { dtype, dims: d } => Type::Tensor { dtype, dims: dims(d) },
        Type::Strings { dims: d } => Type::Strings { dims: dims(d) },
        t => t,
    })
}

fn construct<'m>(_: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let all = (0..n.inputs.len()).map(|i| n.val(i).cloned()).collect::<Result<Vec<_>>>()?;
    Ok(vec![known(common(&all), all)])
}

fn insert<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    if let Some(all) = items(n, 0)? {
        let at = place(n, 2, all.len(), all.len() + 1)?;
        if at.is_some() || !n.has(2) {
            let mut all = all.to_vec();
            all.insert(at.unwrap_or(all.len()), n.val(1)?.clone());
            return Ok(vec![known(common(&all), all)]);
        }
    }
    let (old, new) = (element(n, 0)?, n.val(1)?.ty());
    let ty = if old == new { old } else { Type::Any };
    edit(cx, n, "sequence_insert", ty)
}

fn edit<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>, name: &str, element: Type) -> Result<Vec<Val>> {
    let ids = (0..n.inputs.len()).filter(|&i| n.has(i)).map(|i| cx.arg(n, i)).collect::<Result<Vec<_>>>()?;
    let out = cx.host(name, Vec::new(), &ids, vec![Type::Sequence(Box::new(element))])?;
    cx.one(out[0])
}

fn erase<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    if let Some(all) = items(n, 0)?
        && !all.is_empty()
    {
        let at = place(n, 1, all.len(), all.len())?;
        if at.is_some() || !n.has(1) {
            let mut all = all.to_vec();
            all.remove(at.unwrap_or(all.len() - 1));
            return Ok(vec![known(common(&all), all)]);
        }
    }
    let ty = element(n, 0)?;
    edit(cx, n, "sequence_erase", ty)
}

fn at<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    if let Some(all) = items(n, 0)?
        && let Some(p) = place(n, 1, all.len(), all.len())?
    {
        return Ok(vec![all[p].clone()]);
    }
    let ty = element(n, 0)?;
    let ty = fresh_type(cx, n, ty)?;
    let ids = [cx.arg(n, 0)?, cx.arg(n, 1)?];
    let out = cx.host("sequence_at", Vec::new(), &ids, vec![ty])?;
    cx.one(out[0])
}

fn length<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    if let Some(all) = items(n, 0)? {
        return Ok(vec![Val::constant(Tensor::scalar(DType::I64, (all.len() as i64).into()))]);
    }
    let id = cx.arg(n, 0)?;
    let out = cx.host("sequence_length", Vec::new(), &[id], vec![Type::scalar(DType::I64)])?;
    cx.one(out[0])
}

fn split<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let x = cx.tensor(n, 0)?;
    let dims = cx.b.dims(x);
    let axis = n.axis(n.int("axis", 0)?, dims.len())?;
    let keep = n.has(1) || n.flag("keepdims", true)?;
    if let Some(len) = dims[axis].as_const() {
        let parts = match (n.has(1), n.const_ints(1)) {
            (false, _) => Some(vec![1; len.max(0) as usize]),
            (true, Some(p)) if n.rank(1)? == 0 => {
                let by = p.first().copied().unwrap_or(0);
                if by < 1 {
                    return Err(n.bad(format!("parts of {by}")));
                }
                let by = by.min(len.max(1));
                Some((0..(len + by - 1) / by).map(|k| by.min(len - k * by)).collect())
            }
            (true, p) => p,
        };
        if let Some(parts) = parts.filter(|p| p.len() <= MAX_ITEMS) {
            if parts.iter().any(|&p| p < 0) || parts.iter().sum::<i64>() != len {
                return Err(n.bad(format!("parts {parts:?} of a dim of {len}")));
            }
            let mut from = 0;
            let mut all = Vec::new();
            for p in parts {
                let mut y = cx.b.slice_axis(x, axis, Dim::from(from), Dim::from(p))?;
                from += p;
                if !keep {
                    let mut rest = dims.clone();
                    rest.remove(axis);
                    y = cx.b.reshape(y, &rest)?;
                }
                all.push(cx.out(y));
            }
            return Ok(vec![known(common(&all), all)]);
        }
    }
    let mut ids = vec![x];
    ids.extend(cx.opt(n, 1)?);
    let attributes =
        vec![("axis".into(), AttrValue::Int(axis as i64)), ("keep".into(), AttrValue::Bool(keep))];
    let mut part = dims;
    if keep {
        part[axis] = Dim::from(cx.fresh("part"));
    } else {
        part.remove(axis);
    }
    let element = Type::tensor(cx.b.dtype(x), part);
    let out = cx.host("sequence_from_split", attributes, &ids, vec![Type::Sequence(Box::new(element))])?;
    cx.one(out[0])
}

fn concat<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let stack = n.flag("new_axis", false)?;
    let axis = n.opt_int("axis")?.ok_or_else(|| n.bad("no axis is given"))?;
    if let Some(all) = items(n, 0)?
        && !all.is_empty()
    {
        let mut ids = Vec::new();
        for v in all.iter() {
            let id = cx.id(v)?;
            ids.push(if stack {
                let a = n.axis(axis, cx.b.rank(id) + 1)?;
                cx.b.unsqueeze(id, a)?
            } else {
                id
            });
        }
        let axis = n.axis(axis, cx.b.rank(ids[0]))?;
        let y = cx.b.concat(&ids, axis)?;
        return cx.one(y);
    }
    let ty = match element(n, 0)? {
        Type::Tensor { dtype, dims } => {
            let axis = n.axis(axis, dims.len() + usize::from(stack))?;
            let mut dims = dims;
            if stack {
                dims.insert(axis, Dim::from(cx.fresh("count")));
            } else {
                dims[axis] = Dim::from(cx.fresh("sum"));
            }
            fresh_type(cx, n, Type::Tensor { dtype, dims })?
        }
        _ => fresh_type(cx, n, Type::Any)?,
    };
    let attributes = vec![("axis".into(), AttrValue::Int(axis)), ("new_axis".into(), AttrValue::Bool(stack))];
    let id = cx.arg(n, 0)?;
    let out = cx.host("sequence_concat", attributes, &[id], vec![ty])?;
    cx.one(out[0])
}

/// A function of the elements of sequences at one place, and of tensors that are the same for all.
fn map<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let body = n.graph("body")?;
    let count = body.output.len();
    if let Some(first) = items(n, 0)? {
        let len = first.len();
        let mut results = vec![Vec::new(); count];
        for k in 0..len {
            let mut args = Vec::new();
            for i in 0..n.inputs.len() {
                args.push(match n.val(i)? {
                    Val::Sequence(SequenceVal::Known { items, .. }) if items.len() == len => items[k].clone(),
                    Val::Sequence(_) => {
                        return Err(n.unsupported("sequences of lengths not known to be equal"));
                    }
                    v => v.clone(),
                });
            }
            for (r, v) in results.iter_mut().zip(cx.inline(body, args)?) {
                r.push(v);
            }
        }
        return Ok(results.into_iter().map(|r| known(common(&r), r)).collect());
    }
    let ids = (0..n.inputs.len()).map(|i| cx.arg(n, i)).collect::<Result<Vec<_>>>()?;
    let kinds: Vec<Type> = n.inputs.iter().flatten().map(Val::ty).collect();
    let mut elements = Vec::new();
    for k in &kinds {
        elements.push(match k {
            Type::Sequence(t) => match &**t {
                Type::Any => return Err(n.unsupported("elements whose rank is not known")),
                t => Some(fresh_type(cx, n, t.clone())?),
            },
            _ => None,
        });
    }
    let sequence = Type::Sequence(Box::new(Type::Any));
    let mut params = vec![Type::scalar(DType::I64)];
    params.extend(vec![sequence.clone(); count]);
    params.push(Type::scalar(DType::I64));
    params.extend(kinds);
    let names = cx.captures(&[body]);
    let begin = |cx: &mut Ctx<'_, 'm>, p: &[ValueId]| -> Result<Vec<Val>> {
        let mut args = Vec::new();
        for (&v, t) in p[2 + count..].iter().zip(&elements) {
            args.push(match t {
                Some(t) => {
                    let y = cx.host("sequence_at", Vec::new(), &[v, p[0]], vec![t.clone()])?;
                    cx.out(y[0])
                }
                None => cx.out(v),
            });
        }
        Ok(args)
    };
    let mut given = Vec::new();
    let finish = |cx: &mut Ctx<'_, 'm>, p: &[ValueId], r: Vec<Val>| -> Result<Vec<ValueId>> {
        let one = cx.int64(1)?;
        let next = cx.b.add2(p[0], one)?;
        let mut out = vec![cx.b.compare(Compare::Lt, next, p[1 + count])?, next];
        for (k, v) in r.iter().enumerate() {
            given.push(v.ty());
            let id = cx.id(v)?;
            out.push(cx.host("sequence_insert", Vec::new(), &[p[1 + k], id], vec![sequence.clone()])?[0]);
        }
        Ok(out)
    };
    let (body, captured) = cx.region(body, &names, &params, begin, finish)?;
    let len = cx.host("sequence_length", Vec::new(), &ids[..1], vec![Type::scalar(DType::I64)])?[0];
    let zero = cx.int64(0)?;
    let mut operands = vec![cx.b.compare(Compare::Lt, zero, len)?, zero];
    for _ in 0..count {
        operands
            .push(cx.host("sequence_empty", Vec::new(), &[], vec![Type::Sequence(Box::new(Type::Any))])?[0]);
    }
    operands.push(len);
    operands.extend(ids);
    operands.extend(captured);
    let mut results = vec![Type::scalar(DType::I64)];
    results.extend(given.into_iter().map(|t| Type::Sequence(Box::new(t))));
    let out = cx.b.add(Op::While { body, results }, &operands)?;
    Ok(out[1..].iter().map(|&v| cx.out(v)).collect())
}

fn optional<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let item = n.opt(0).cloned();
    let element = match (&item, n.attr("type").and_then(|a| a.tp.as_deref())) {
        (Some(v), _) => v.ty(),
        (None, Some(t)) => element_type(t, &n.node.name, 1, cx.b.symbols)?,
        (None, None) => return Err(n.bad("neither an element nor a type is given")),
    };
    Ok(vec![Val::Optional(OptionalVal::Known { element, item: item.map(Box::new) })])
}

fn has_element<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let has = match n.opt(0) {
        None => false,
        Some(Val::Optional(OptionalVal::Known { item, .. })) => item.is_some(),
        Some(Val::Optional(OptionalVal::Host(id, _))) => {
            let out = cx.host("optional_has", Vec::new(), &[*id], vec![Type::scalar(DType::Bool)])?;
            return cx.one(out[0]);
        }
        Some(_) => true,
    };
    Ok(vec![Val::constant(Tensor::scalar(DType::Bool, has.into()))])
}

fn get_element<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    match n.val(0)? {
        Val::Optional(OptionalVal::Known { item: Some(v), .. }) => Ok(vec![(**v).clone()]),
        // The branch that has this is not taken: anything will do.
        Val::Optional(OptionalVal::Known { item: None, .. }) => Err(n.bad("the optional is empty")),
        Val::Optional(OptionalVal::Host(id, t)) => {
            let (id, t) = (*id, t.clone());
            let inner = match t {
                Type::Optional(t) => *t,
                t => t,
            };
            let ty = fresh_type(cx, n, inner)?;
            let out = cx.host("optional_get", Vec::new(), &[id], vec![ty])?;
            cx.one(out[0])
        }
        v => Ok(vec![v.clone()]),
    }
}
