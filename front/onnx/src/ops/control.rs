//! Control flow: branches and loops.

use std::sync::Arc;

use tongtu_graph::{Combiner, Graph, Op, Type, ValueId};
use tongtu_tensor::dim::Dim;
use tongtu_tensor::{Binary, Compare, DType, Tensor};

use crate::ctx::{Ctx, NodeCtx};
use crate::error::Result;
use crate::ops::{Entry, op};
use crate::val::Val;

/// The family's operators.
pub const OPS: &[Entry] =
    &[op("If", if_), op("Loop", loop_), op("Scan", scan).since(9), op("Scan", scan_batched).until(9)];

/// Whether a dim has a meaning outside the regions lowered since the module had `before` symbols.
fn known_outside(d: &Dim, before: usize) -> bool {
    d.symbols().iter().all(|s| (s.0 as usize) < before)
}

/// The type of what is one or the other: dims that differ, or that only the regions know, become fresh symbols.
fn join(cx: &mut Ctx<'_, '_>, a: &Type, b: &Type, before: usize) -> Option<Type> {
    let mut dims = |x: &[Dim], y: &[Dim]| -> Option<Vec<Dim>> {
        if x.len() != y.len() {
            return None;
        }
        let same =
            |p: &Dim, q: &Dim, cx: &Ctx<'_, '_>| known_outside(p, before) && p.provably_eq(q, cx.b.symbols);
        Some(
            x.iter()
                .zip(y)
                .map(|(p, q)| if same(p, q, cx) { p.clone() } else { Dim::from(cx.fresh("n")) })
                .collect(),
        )
    };
    match (a, b) {
        (Type::Tensor { dtype: d, dims: x }, Type::Tensor { dtype: e, dims: y }) if d == e => {
            Some(Type::Tensor { dtype: *d, dims: dims(x, y)? })
        }
        (Type::Strings { dims: x }, Type::Strings { dims: y }) => Some(Type::Strings { dims: dims(x, y)? }),
        (Type::Sequence(x), Type::Sequence(y)) => Some(Type::Sequence(Box::new(loose(x, y)))),
        (Type::Optional(x), Type::Optional(y)) => Some(Type::Optional(Box::new(loose(x, y)))),
        _ => None,
    }
}

/// The type of an element that has one type or the other.
fn loose(a: &Type, b: &Type) -> Type {
    if a == b { a.clone() } else { Type::Any }
}

fn if_<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let graphs = [n.graph("then_branch")?, n.graph("else_branch")?];
    if let Some(c) = n.const_scalar(0) {
        return cx.inline(graphs[usize::from(c == 0.0)], Vec::new());
    }
    let condition = cx.tensor(n, 0)?;
    let condition = cx.b.reshape(condition, &[])?;
    let names = cx.captures(&graphs);
    let before = cx.b.symbols.len();
    let mut done = Vec::new();
    for g in graphs {
        done.push(cx.region(
            g,
            &names,
            &[],
            |_, _| Ok(Vec::new()),
            |cx, _, r| r.iter().map(|v| cx.id(v)).collect(),
        )?);
    }
    let [(then_branch, captured), (else_branch, _)] = <[_; 2]>::try_from(done).unwrap_or_default();
    if then_branch.outputs.len() != else_branch.outputs.len() {
        return Err(n.bad("the branches give different numbers of results"));
    }
    let mut results = Vec::new();
    for (&t, &e) in then_branch.outputs.iter().zip(&else_branch.outputs) {
        let (t, e) = (then_branch.ty(t).clone(), else_branch.ty(e).clone());
        match join(cx, &t, &e, before) {
            Some(ty) => results.push(ty),
            None => return different_kinds(cx, n, &graphs, condition),
        }
    }
    let inputs: Vec<ValueId> = std::iter::once(condition).chain(captured).collect();
    let out = cx.b.add(Op::If { then_branch, else_branch, results }, &inputs)?;
    Ok(out.into_iter().map(|v| cx.out(v)).collect())
}

/// The branches give values of different rank or type, as where an exporter squeezes a dim if it is 1. What follows is lowered
/// for one of them only; that it is the one taken is checked when the model runs.
fn different_kinds<'m>(
    cx: &mut Ctx<'_, 'm>,
    n: &NodeCtx<'m>,
    graphs: &[&'m crate::proto::GraphProto; 2],
    condition: ValueId,
) -> Result<Vec<Val>> {
    let squeezes = |g: &crate::proto::GraphProto| g.node.iter().any(|n| n.op_type == "Squeeze");
    let taken = match (squeezes(graphs[0]), squeezes(graphs[1])) {
        (true, false) => usize::from(!cx.shared.squeezed),
        (false, true) => usize::from(cx.shared.squeezed),
        _ => return Err(n.unsupported("the branches give values of different types")),
    };
    cx.shared.ambiguous.set(true);
    let which = cx.b.convert(condition, DType::I64)?;
    let sym = cx.fresh("branch");
    let value = i64::from(taken == 0);
    cx.b.symbols.set_bounds(sym, value, Some(value));
    cx.b.add(Op::Bind { sym }, &[which])?;
    cx.inline(graphs[taken], Vec::new())
}

/// A loop to build: turns with carried values, and results gathered turn by turn.
struct Turns<'m, 'a> {
    body: &'m crate::proto::GraphProto,
    /// Number of turns at most, if that is limited, as an `i64` scalar.
    limit: Option<ValueId>,
    /// The same as a dim, where it is known before the loop runs.
    trips: Option<Dim>,
    /// The first condition, where it is not constantly true.
    condition: Option<ValueId>,
    /// Values carried at first.
    carried: Vec<ValueId>,
    /// Whole tensors of which the body takes a slice each turn: the value, its axis, whether from the end.
    slices: Vec<(ValueId, usize, bool)>,
    /// Number of the body's results before the carried ones: 1 for a condition.
    leading: usize,
    /// For each gathered result, whether it is filled from the end.
    backward: &'a [bool],
}

impl<'m> Turns<'m, '_> {
    /// Parameters of the body: turn, carried, gathered so far, limit, whole tensors.
    fn build(&self, cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<(Vec<Val>, Vec<Val>)> {
        let before = cx.b.symbols.len();
        let names = cx.captures(&[self.body]);
        let mut types: Vec<Type> = self.carried.iter().map(|&v| cx.b.graph.ty(v).clone()).collect();
        let mut varying: Vec<Vec<bool>> = types.iter().map(|t| vec![false; dims_of(t).len()]).collect();
        let gathered = self.body.output.len().checked_sub(self.leading + types.len());
        let Some(gathered) = gathered else { return Err(n.bad("the body gives too few results")) };
        if gathered != self.backward.len() && !self.backward.is_empty() {
            return Err(n.bad("a list of directions has the wrong length"));
        }
        // The dims of what is carried, and the types of what is gathered, are those that the body itself gives.
        let mut found: Option<(Vec<Type>, bool)> = None;
        for _ in 0..6 {
            let (body, _, endless) = self.region(cx, n, &names, &types, None)?;
            let mut stable = true;
            for (i, t) in types.iter_mut().enumerate() {
                let given = body.ty(body.outputs[self.leading + i]).clone();
                stable &= widen(cx, n, t, &given, &mut varying[i])?;
            }
            if stable {
                let each =
                    body.outputs[self.leading + types.len()..].iter().map(|&v| body.ty(v).clone()).collect();
                found = Some((each, endless));
                break;
            }
        }
        let Some((each, endless)) = found else {
            return Err(n.unsupported("the dims of carried values do not settle"));
        };

        // Gathered values fill a tensor of known length where the number of turns is known, else they grow one.
        let mut full = None;
        if gathered > 0 && endless && self.condition.is_none() {
            full = match (&self.trips, self.limit) {
                (Some(t), _) => Some(t.clone()),
                (None, Some(m)) => {
                    let m = cx.b.binary_const(Binary::Max, m, 0.0)?;
                    Some(cx.bind(m)?)
                }
                _ => None,
            };
        }
        let before = if full.is_some() { cx.b.symbols.len() } else { before };
        let mut gather = Vec::new();
        for t in &each {
            let Type::Tensor { dtype, dims } = t else {
                return Err(n.unsupported("gathers values that are no tensors of numbers"));
            };
            if !dims.iter().all(|d| known_outside(d, before) || constant_over(cx, d)) {
                return Err(n.unsupported("gathers tensors whose dims differ from turn to turn"));
            }
            gather.push((*dtype, dims.clone()));
        }
        let (body, captured, _) = self.region(cx, n, &names, &types, Some((&gather, full.as_ref())))?;

        let mut operands = vec![cx.int64(0)?];
        operands.extend(&self.carried);
        let mut results = vec![Type::scalar(DType::I64)];
        for (t, v) in types.iter().zip(&varying) {
            let mut t = t.clone();
            for (d, v) in dims_of_mut(&mut t).iter_mut().zip(v) {
                if *v {
                    *d = Dim::from(cx.fresh("n"));
                }
            }
            results.push(t);
        }
        for (dtype, dims) in &gather {
            let (first, last) = match &full {
                Some(t) => (t.clone(), t.clone()),
                None => (Dim::from(0), Dim::from(cx.fresh("n"))),
            };
            let with = |d: Dim| -> Vec<Dim> { std::iter::once(d).chain(dims.iter().cloned()).collect() };
            operands.push(cx.b.full(*dtype, 0.0, &with(first))?);
            results.push(Type::Tensor { dtype: *dtype, dims: with(last) });
        }
        operands.extend(self.limit);
        operands.extend(self.slices.iter().map(|s| s.0));
        operands.extend(captured);
        let mut condition = match self.condition {
            Some(c) => c,
            None => cx.b.int(DType::Bool, 1)?,
        };
        if let Some(m) = self.limit {
            let zero = cx.int64(0)?;
            let some = cx.b.compare(Compare::Lt, zero, m)?;
            condition =
                if self.condition.is_some() { cx.b.binary(Binary::And, condition, some)? } else { some };
        }
        operands.insert(0, condition);
        let out = cx.b.add(Op::While { body, results }, &operands)?;
        let carried = out[1..1 + types.len()].iter().map(|&v| cx.out(v)).collect();
        let gathered = out[1 + types.len()..].iter().map(|&v| cx.out(v)).collect();
        Ok((carried, gathered))
    }

    /// The body, for `gather` the real one: without it the results are the body's own, to see their types. The last
    /// result tells whether the body's condition is constantly true.
    #[allow(clippy::type_complexity)]
    fn region(
        &self,
        cx: &mut Ctx<'_, 'm>,
        n: &NodeCtx<'m>,
        names: &std::collections::BTreeSet<&'m str>,
        types: &[Type],
        gather: Option<(&[(DType, Vec<Dim>)], Option<&Dim>)>,
    ) -> Result<(Arc<Graph>, Vec<ValueId>, bool)> {
        let carried = types.len();
        let mut params = vec![Type::scalar(DType::I64)];
        params.extend_from_slice(types);
        let mut sums = 0;
        if let Some((all, full)) = gather {
            for (dtype, dims) in all {
                let first = match full {
                    Some(t) => t.clone(),
                    None => Dim::from(cx.fresh("n")),
                };
                let dims: Vec<Dim> = std::iter::once(first).chain(dims.iter().cloned()).collect();
                params.push(Type::Tensor { dtype: *dtype, dims });
                sums += 1;
            }
        }
        params.extend(self.limit.map(|_| Type::scalar(DType::I64)));
        params.extend(self.slices.iter().map(|s| cx.b.graph.ty(s.0).clone()));
        let with_condition = self.leading == 1;
        let mut endless = !with_condition;
        let limited = usize::from(self.limit.is_some());
        let begin = |cx: &mut Ctx<'_, 'm>, p: &[ValueId]| -> Result<Vec<Val>> {
            let mut args = Vec::new();
            if with_condition {
                args.push(cx.out(p[0]));
                // The body only runs where the condition is true.
                args.push(Val::constant(Tensor::scalar(DType::Bool, true.into())));
            }
            args.extend(p[1..1 + carried].iter().map(|&v| cx.out(v)));
            for (k, &(_, axis, backward)) in self.slices.iter().enumerate() {
                let whole = p[1 + carried + sums + limited + k];
                let mut at = p[0];
                if backward {
                    let last = &cx.b.dims(whole)[axis] - 1;
                    let last = cx.b.dim_as(&last, DType::I64)?;
                    at = cx.b.sub(last, at)?;
                }
                let v = cx.b.take(whole, at, axis)?;
                args.push(cx.out(v));
            }
            Ok(args)
        };
        let endless_seen = &mut endless;
        let finish = |cx: &mut Ctx<'_, 'm>, p: &[ValueId], r: Vec<Val>| -> Result<Vec<ValueId>> {
            let ids = r.iter().map(|v| cx.id(v)).collect::<Result<Vec<_>>>()?;
            if with_condition {
                let c = r.first().and_then(Val::tensor).and_then(|t| t.constant());
                *endless_seen = c.is_some_and(|t| t.len() == 1 && t.get_linear(0).is_true());
            }
            let Some((_, full)) = gather else { return Ok(ids) };
            let one = cx.int64(1)?;
            let next = cx.b.add2(p[0], one)?;
            let mut go = match with_condition {
                true => cx.b.reshape(ids[0], &[])?,
                false => cx.b.int(DType::Bool, 1)?,
            };
            if limited == 1 {
                let more = cx.b.compare(Compare::Lt, next, p[1 + carried + sums])?;
                go = if *endless_seen { more } else { cx.b.binary(Binary::And, go, more)? };
            }
            let mut out = vec![go, next];
            out.extend(&ids[self.leading..self.leading + carried]);
            for (k, &v) in ids[self.leading + carried..].iter().enumerate() {
                let so_far = p[1 + carried + k];
                let v = cx.b.unsqueeze(v, 0)?;
                let backward = self.backward.get(k).copied().unwrap_or(false);
                out.push(match full {
                    Some(t) => {
                        let mut at = p[0];
                        if backward {
                            let last = cx.b.dim_as(&(t - 1), DType::I64)?;
                            at = cx.b.sub(last, at)?;
                        }
                        let at = cx.b.reshape(at, &[Dim::from(1), Dim::from(1)])?;
                        cx.b.scatter_nd(Combiner::Replace, so_far, at, v)?
                    }
                    None if backward => cx.b.concat(&[v, so_far], 0)?,
                    None => cx.b.concat(&[so_far, v], 0)?,
                });
            }
            Ok(out)
        };
        let _ = n;
        let (body, captured) = cx.region(self.body, names, &params, begin, finish)?;
        Ok((body, captured, endless))
    }
}

fn constant_over(cx: &Ctx<'_, '_>, d: &Dim) -> bool {
    let _ = cx;
    d.as_const().is_some()
}

fn dims_of(t: &Type) -> &[Dim] {
    match t {
        Type::Tensor { dims, .. } | Type::Strings { dims } => dims,
        _ => &[],
    }
}

fn dims_of_mut(t: &mut Type) -> &mut [Dim] {
    match t {
        Type::Tensor { dims, .. } | Type::Strings { dims } => dims,
        _ => &mut [],
    }
}

/// Makes the type of a carried value wide enough for what the body gives. True if it was already.
fn widen(
    cx: &mut Ctx<'_, '_>,
    n: &NodeCtx<'_>,
    t: &mut Type,
    given: &Type,
    varying: &mut [bool],
) -> Result<bool> {
    let same_kind = match (&*t, given) {
        (Type::Tensor { dtype: d, dims: x }, Type::Tensor { dtype: e, dims: y }) => {
            d == e && x.len() == y.len()
        }
        (Type::Strings { dims: x }, Type::Strings { dims: y }) => x.len() == y.len(),
        (Type::Sequence(x), Type::Sequence(y)) => {
            if x != y && **x != Type::Any {
                *t = Type::Sequence(Box::new(Type::Any));
                return Ok(false);
            }
            true
        }
        (Type::Optional(x), Type::Optional(y)) => {
            if x != y && **x != Type::Any {
                *t = Type::Optional(Box::new(Type::Any));
                return Ok(false);
            }
            true
        }
        // What is an optional at first may be its element from the first turn on.
        (Type::Optional(x), Type::Sequence(_)) => matches!(**x, Type::Sequence(_)),
        _ => false,
    };
    if !same_kind {
        return Err(n.unsupported(format!("a carried value changes from {t:?} to {given:?}")));
    }
    let given = dims_of(given).to_vec();
    let mut stable = true;
    for (i, d) in dims_of_mut(t).iter_mut().enumerate() {
        if !varying[i] && !d.provably_eq(&given[i], cx.b.symbols) {
            varying[i] = true;
            *d = Dim::from(cx.fresh("n"));
            stable = false;
        }
    }
    Ok(stable)
}

fn loop_<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let body = n.graph("body")?;
    let limit = match cx.opt(n, 0)? {
        Some(m) => Some(cx.b.reshape(m, &[])?),
        None => None,
    };
    let trips = match n.opt(0).and_then(Val::tensor).and_then(|t| t.contents()) {
        Some(d) if d.len() == 1 => {
            let d = d[0].clone();
            Some(if d.bounds(cx.b.symbols).0.is_some_and(|l| l >= 0) {
                d
            } else {
                Dim::max(&d, &Dim::from(0))
            })
        }
        _ => None,
    };
    let condition = match n.const_scalar(1) {
        Some(c) if c != 0.0 => None,
        _ => match cx.opt(n, 1)? {
            Some(c) => Some(cx.b.reshape(c, &[])?),
            None => None,
        },
    };
    let carried = (2..n.inputs.len()).map(|i| cx.arg(n, i)).collect::<Result<Vec<_>>>()?;
    let turns =
        Turns { body, limit, trips, condition, carried, slices: Vec::new(), leading: 1, backward: &[] };
    let (mut out, gathered) = turns.build(cx, n)?;
    out.extend(gathered);
    Ok(out)
}

fn scan<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let body = n.graph("body")?;
    let all = (0..n.inputs.len()).map(|i| cx.tensor(n, i)).collect::<Result<Vec<_>>>()?;
    scan_over(cx, n, body, &all, "scan_input_directions", "scan_output_directions")
}

fn scan_over<'m>(
    cx: &mut Ctx<'_, 'm>,
    n: &NodeCtx<'m>,
    body: &'m crate::proto::GraphProto,
    all: &[ValueId],
    input_directions: &str,
    output_directions: &str,
) -> Result<Vec<Val>> {
    let count = usize::try_from(n.int("num_scan_inputs", 0)?).ok().filter(|&c| (1..=all.len()).contains(&c));
    let count = count.ok_or_else(|| n.bad("num_scan_inputs"))?;
    let states = all.len() - count;
    let gathered =
        body.output.len().checked_sub(states).ok_or_else(|| n.bad("the body gives too few results"))?;
    let list = |name: &str, len: usize| -> Result<Vec<i64>> {
        match n.ints(name)? {
            Some(v) if v.len() == len => Ok(v.to_vec()),
            Some(v) => Err(n.bad(format!("{name} has {} entries, not {len}", v.len()))),
            None => Ok(vec![0; len]),
        }
    };
    let (from_end, axes) = (list(input_directions, count)?, list("scan_input_axes", count)?);
    let mut slices = Vec::new();
    for k in 0..count {
        let v = all[states + k];
        slices.push((v, n.axis(axes[k], cx.b.rank(v))?, from_end[k] == 1));
    }
    let trips = cx.b.dims(slices[0].0)[slices[0].1].clone();
    let limit = cx.b.dim_as(&trips, DType::I64)?;
    let backward: Vec<bool> = list(output_directions, gathered)?.iter().map(|&d| d == 1).collect();
    let turns = Turns {
        body,
        limit: Some(limit),
        trips: Some(trips),
        condition: None,
        carried: all[..states].to_vec(),
        slices,
        leading: 0,
        backward: &backward,
    };
    let (mut out, mut scanned) = turns.build(cx, n)?;
    for (v, axis) in scanned.iter_mut().zip(list("scan_output_axes", gathered)?) {
        let id = cx.id(v)?;
        let rank = cx.b.rank(id);
        let axis = n.axis(axis, rank)?;
        let perm: Vec<usize> = (1..=axis).chain([0]).chain(axis + 1..rank).collect();
        let moved = cx.b.permute(id, &perm)?;
        *v = cx.out(moved);
    }
    out.extend(scanned);
    Ok(out)
}

/// Version 8: every operand has a batch dim in front, and the elements of the batch are scanned one by one.
fn scan_batched<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let body = n.graph("body")?;
    if n.has(0) {
        return Err(n.unsupported("sequence_lens"));
    }
    let all = (1..n.inputs.len()).map(|i| cx.tensor(n, i)).collect::<Result<Vec<_>>>()?;
    let batch = all.first().and_then(|&v| cx.b.dims(v).first().and_then(Dim::as_const));
    let Some(batch) = batch.filter(|b| (1..=256).contains(b)) else {
        return Err(n.unsupported("a batch whose size is not a small constant"));
    };
    let mut parts: Vec<Vec<ValueId>> = Vec::new();
    for i in 0..batch {
        let mut one = Vec::new();
        for &v in &all {
            let dims = cx.b.dims(v);
            let s = cx.b.slice_axis(v, 0, Dim::from(i), Dim::from(1))?;
            one.push(cx.b.reshape(s, dims.get(1..).unwrap_or_default())?);
        }
        let done = scan_over(cx, n, body, &one, "directions", "")?;
        parts.push(done.iter().map(|v| cx.id(v)).collect::<Result<_>>()?);
    }
    let mut out = Vec::new();
    for k in 0..parts[0].len() {
        let mut column = Vec::new();
        for p in &parts {
            column.push(cx.b.unsqueeze(p[k], 0)?);
        }
        let v = cx.b.concat(&column, 0)?;
        out.push(cx.out(v));
    }
    Ok(out)
}
