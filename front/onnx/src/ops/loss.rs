//! Losses.

use tongtu_graph::{Combiner, ValueId};
use tongtu_tensor::{Compare, DType, Unary};

use crate::ctx::{Ctx, NodeCtx};
use crate::error::Result;
use crate::ops::nn::accumulator;
use crate::ops::{Entry, op};

/// The family's operators.
pub const OPS: &[Entry] = &[
    op("NegativeLogLikelihoodLoss", |cx, n| {
        let x = cx.tensor(n, 0)?;
        let d = cx.b.dtype(x);
        let x = cx.b.convert(x, accumulator(d))?;
        let y = likelihood(cx, n, x)?;
        let y = cx.b.convert(y, d)?;
        cx.one(y)
    }),
    op("SoftmaxCrossEntropyLoss", |cx, n| {
        let x = cx.tensor(n, 0)?;
        let d = cx.b.dtype(x);
        if cx.b.rank(x) < 2 {
            return Err(n.bad("the scores have no classes"));
        }
        let x = cx.b.convert(x, accumulator(d))?;
        let p = cx.b.log_softmax(x, 1)?;
        let y = likelihood(cx, n, p)?;
        let (y, p) = (cx.b.convert(y, d)?, cx.b.convert(p, d)?);
        Ok(vec![cx.out(y), cx.out(p)])
    }),
];

/// Minus the weighted entry of each target class (dim 1), reduced as the node says. Targets equal to `ignore_index` have no weight.
fn likelihood<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>, x: ValueId) -> Result<ValueId> {
    let d = cx.b.dtype(x);
    let target = cx.tensor(n, 1)?;
    let target = cx.b.convert(target, DType::I64)?;
    let places = cx.b.dims(target);
    if cx.b.rank(x) != places.len() + 1 || places.is_empty() {
        return Err(n.bad("the targets do not have one dim less than the scores"));
    }
    let ignored = match n.opt_int("ignore_index")? {
        Some(i) => {
            let i = cx.b.int(DType::I64, i)?;
            Some(cx.b.compare(Compare::Eq, target, i)?)
        }
        None => None,
    };
    let class = match ignored {
        Some(p) => {
            let zero = cx.int64(0)?;
            cx.b.select(p, zero, target)?
        }
        None => target,
    };
    let at = cx.b.unsqueeze(class, 1)?;
    let picked = cx.b.take_along(x, at, 1)?;
    let picked = cx.b.reshape(picked, &places)?;
    let loss = cx.b.unary(Unary::Neg, picked)?;
    let mut weight = match cx.opt(n, 2)? {
        Some(w) => {
            let w = cx.b.convert(w, d)?;
            Some(cx.b.take(w, class, 0)?)
        }
        None => None,
    };
    if let Some(p) = ignored {
        let one = cx.b.full(d, 1.0, &places)?;
        let zero = cx.b.full(d, 0.0, &places)?;
        weight = Some(cx.b.select(p, zero, weight.unwrap_or(one))?);
    }
    let loss = match weight {
        Some(w) => cx.b.mul(loss, w)?,
        None => loss,
    };
    let all: Vec<usize> = (0..places.len()).collect();
    Ok(match (n.str("reduction", "mean")?, weight) {
        ("none", _) => loss,
        ("sum", _) => cx.b.reduce(Combiner::Add, loss, &all)?,
        ("mean", None) => cx.b.mean(loss, &all, false)?,
        ("mean", Some(w)) => {
            let (sum, by) = (cx.b.reduce(Combiner::Add, loss, &all)?, cx.b.reduce(Combiner::Add, w, &all)?);
            cx.b.div(sum, by)?
        }
        (other, _) => return Err(n.bad(format!("reduction '{other}'"))),
    })
}
