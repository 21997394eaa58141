//! Einstein summation.

use tongtu_graph::{Combiner, ValueId};
use tongtu_tensor::dim::Dim;
use tongtu_tensor::{Compare, DType};

use crate::ctx::{Ctx, NodeCtx};
use crate::error::Result;
use crate::ops::nn::accumulator;
use crate::ops::{Entry, op};
use crate::val::Val;

/// The family's operators.
pub const OPS: &[Entry] = &[op("Einsum", einsum)];

/// The name of a dim: a letter, or a place in the ellipsis counted from its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Label {
    Letter(char),
    Rest(usize),
}

/// A value with a label for each dim.
struct Term {
    value: ValueId,
    labels: Vec<Label>,
}

fn labels(n: &NodeCtx<'_>, text: &str, rank: Option<usize>, rest: usize) -> Result<Vec<Label>> {
    let letters = text.chars().filter(|c| c.is_ascii_alphabetic()).count();
    let rest = match rank {
        Some(r) if text.contains("...") => {
            r.checked_sub(letters).ok_or_else(|| n.bad(format!("'{text}' for a value of rank {r}")))?
        }
        Some(r) if r != letters => return Err(n.bad(format!("'{text}' for a value of rank {r}"))),
        Some(_) => 0,
        None => rest,
    };
    let mut out = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '.' => {
                if chars.next() != Some('.') || chars.next() != Some('.') {
                    return Err(n.bad("an ellipsis is three dots"));
                }
                out.extend((0..rest).rev().map(Label::Rest));
            }
            c if c.is_ascii_alphabetic() => out.push(Label::Letter(c)),
            c => return Err(n.bad(format!("'{c}' in the equation"))),
        }
    }
    Ok(out)
}

fn einsum<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let equation: String = n.str("equation", "")?.chars().filter(|c| !c.is_whitespace()).collect();
    let (left, right) = match equation.split_once("->") {
        Some((l, r)) => (l.to_string(), Some(r.to_string())),
        None => (equation.clone(), None),
    };
    let parts: Vec<&str> = left.split(',').collect();
    if parts.len() != n.inputs.len() {
        return Err(n.bad(format!("'{equation}' for {} operands", n.inputs.len())));
    }
    let d = n.dtype(0)?;
    let mut terms = Vec::new();
    for (i, p) in parts.iter().enumerate() {
        let value = cx.tensor(n, i)?;
        let labels = labels(n, p, Some(cx.b.rank(value)), 0)?;
        terms.push(diagonal(cx, Term { value, labels })?);
    }
    let rest = terms
        .iter()
        .map(|t| t.labels.iter().filter(|l| matches!(l, Label::Rest(_))).count())
        .max()
        .unwrap_or(0);
    let wanted = match &right {
        Some(r) => labels(n, r, None, rest)?,
        None => {
            // Without a right side: the ellipsis, then the letters that occur once, in alphabetical order.
            let mut once: Vec<char> = left.chars().filter(|c| c.is_ascii_alphabetic()).collect();
            once.retain(|c| left.matches(*c).count() == 1);
            once.sort_unstable();
            (0..rest).rev().map(Label::Rest).chain(once.into_iter().map(Label::Letter)).collect()
        }
    };
    let known = |l: &Label| terms.iter().any(|t| t.labels.contains(l));
    if let Some(l) = wanted.iter().find(|l| !known(l)) {
        return Err(n.bad(format!("{l:?} is only on the right of '{equation}'")));
    }
    spread(cx, &mut terms)?;
    let acc = accumulator(d);
    let mut terms = terms.into_iter();
    let Some(mut sum) = terms.next() else { return Err(n.bad("no operands")) };
    let mut left: Vec<Term> = terms.collect();
    while !left.is_empty() {
        let next = left.remove(0);
        let needed = |l: &Label| wanted.contains(l) || left.iter().any(|t| t.labels.contains(l));
        sum = product(cx, sum, next, &needed, acc)?;
    }
    let mut sum = reduce(cx, sum, &|l| wanted.contains(l))?;
    let perm: Vec<usize> = wanted.iter().filter_map(|l| sum.labels.iter().position(|x| x == l)).collect();
    if perm.len() != sum.labels.len() {
        return Err(n.bad(format!("a label occurs twice on the right of '{equation}'")));
    }
    sum.value = cx.b.permute(sum.value, &perm)?;
    let y = cx.b.convert(sum.value, d)?;
    cx.one(y)
}

/// Where a label occurs twice, only the elements with equal indices.
fn diagonal(cx: &mut Ctx<'_, '_>, mut t: Term) -> Result<Term> {
    while let Some((i, j)) = (0..t.labels.len())
        .flat_map(|i| (i + 1..t.labels.len()).map(move |j| (i, j)))
        .find(|&(i, j)| t.labels[i] == t.labels[j])
    {
        let dims = cx.b.dims(t.value);
        let (x, y) = (cx.b.iota(DType::I64, &dims, i)?, cx.b.iota(DType::I64, &dims, j)?);
        let same = cx.b.compare(Compare::Eq, x, y)?;
        let zero = cx.b.full_like(t.value, 0.0)?;
        let masked = cx.b.select(same, t.value, zero)?;
        t.value = cx.b.reduce(Combiner::Add, masked, &[j])?;
        t.labels.remove(j);
    }
    Ok(t)
}

/// Dims of length 1 take the length that the others of their label have.
fn spread(cx: &mut Ctx<'_, '_>, terms: &mut [Term]) -> Result<()> {
    let mut lengths: Vec<(Label, Dim)> = Vec::new();
    for t in terms.iter() {
        for (l, d) in t.labels.iter().zip(cx.b.dims(t.value)) {
            match lengths.iter_mut().find(|(k, _)| k == l) {
                Some((_, have)) if have.as_const() == Some(1) => *have = d,
                Some(_) => {}
                None => lengths.push((*l, d)),
            }
        }
    }
    for t in terms.iter_mut() {
        let mut dims = cx.b.dims(t.value);
        for (d, l) in dims.iter_mut().zip(&t.labels) {
            if d.as_const() == Some(1)
                && let Some((_, len)) = lengths.iter().find(|(k, _)| k == l)
            {
                *d = len.clone();
            }
        }
        t.value = cx.b.broadcast_to(t.value, &dims)?;
    }
    Ok(())
}

/// Sums over labels that nothing needs any more.
fn reduce(cx: &mut Ctx<'_, '_>, t: Term, needed: &dyn Fn(&Label) -> bool) -> Result<Term> {
    let axes: Vec<usize> = (0..t.labels.len()).filter(|&i| !needed(&t.labels[i])).collect();
    if axes.is_empty() {
        return Ok(t);
    }
    let value = cx.b.reduce(Combiner::Add, t.value, &axes)?;
    Ok(Term { value, labels: t.labels.into_iter().filter(|l| needed(l)).collect() })
}

/// The product of two terms, summed over what nothing needs any more.
fn product(
    cx: &mut Ctx<'_, '_>,
    a: Term,
    b: Term,
    needed: &dyn Fn(&Label) -> bool,
    acc: DType,
) -> Result<Term> {
    let a = {
        let other = b.labels.clone();
        reduce(cx, a, &|l| needed(l) || other.contains(l))?
    };
    let b = {
        let other = a.labels.clone();
        reduce(cx, b, &|l| needed(l) || other.contains(l))?
    };
    let (mut batch, mut over) = (Vec::new(), Vec::new());
    let mut labels = Vec::new();
    for (i, l) in a.labels.iter().enumerate() {
        if let Some(j) = b.labels.iter().position(|x| x == l) {
            if needed(l) {
                batch.push((i, j));
                labels.push(*l);
            } else {
                over.push((i, j));
            }
        }
    }
    labels.extend(a.labels.iter().filter(|l| !b.labels.contains(l)));
    labels.extend(b.labels.iter().filter(|l| !a.labels.contains(l)));
    let value = cx.b.contract(a.value, b.value, &batch, &over, acc)?;
    Ok(Term { value, labels })
}
