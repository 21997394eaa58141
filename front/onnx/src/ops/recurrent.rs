//! Recurrent layers: RNN, GRU, LSTM.

use tongtu_graph::ValueId;
use tongtu_graph::composite::{Activation, Direction, RecurrentInputs, RecurrentSpec};
use tongtu_tensor::DType;
use tongtu_tensor::dim::Dim;

use crate::ctx::{Ctx, NodeCtx};
use crate::error::Result;
use crate::ops::{Entry, op, op_in};
use crate::val::Val;

/// The family's operators.
pub const OPS: &[Entry] = &[
    op("RNN", plain),
    op("GRU", plain),
    op("LSTM", plain),
    op_in("com.microsoft", "DynamicQuantizeLSTM", quantized_lstm),
];

/// The activations of all directions, with their parameters taken from the lists in turn.
fn activations(n: &NodeCtx<'_>, defaults: &[&str], directions: usize) -> Result<Vec<Activation>> {
    let names = match n.strings("activations")? {
        Some(a) if !a.is_empty() => a,
        _ => defaults.iter().cycle().take(defaults.len() * directions).map(|s| s.to_string()).collect(),
    };
    if names.len() != defaults.len() * directions {
        return Err(n.bad(format!(
            "{} activations; {} are wanted",
            names.len(),
            defaults.len() * directions
        )));
    }
    let mut alphas = n.floats("activation_alpha")?.unwrap_or_default().iter().map(|&v| f64::from(v));
    let mut betas = n.floats("activation_beta")?.unwrap_or_default().iter().map(|&v| f64::from(v));
    let mut alpha = |default: f64| alphas.next().unwrap_or(default);
    let mut beta = |default: f64| betas.next().unwrap_or(default);
    names
        .iter()
        .map(|name| {
            Ok(match name.to_ascii_lowercase().as_str() {
                "sigmoid" => Activation::Sigmoid,
                "tanh" => Activation::Tanh,
                "relu" => Activation::Relu,
                "softsign" => Activation::Softsign,
                "softplus" => Activation::Softplus,
                "affine" => Activation::Affine(alpha(1.0), beta(0.0)),
                "leakyrelu" => Activation::LeakyRelu(alpha(f64::from(0.01f32))),
                "thresholdedrelu" => Activation::ThresholdedRelu(alpha(1.0)),
                "scaledtanh" => Activation::ScaledTanh(alpha(1.0), beta(1.0)),
                "hardsigmoid" => Activation::HardSigmoid(alpha(f64::from(0.2f32)), beta(0.5)),
                "elu" => Activation::Elu(alpha(1.0)),
                _ => return Err(n.unsupported(format!("activation '{name}'"))),
            })
        })
        .collect()
}

/// One direction's part of an operand whose dim `axis` counts directions.
fn part(cx: &mut Ctx<'_, '_>, v: Option<ValueId>, axis: usize, k: usize) -> Result<Option<ValueId>> {
    let Some(v) = v else { return Ok(None) };
    let mut dims = cx.b.dims(v);
    let y = cx.b.slice_axis(v, axis, Dim::from(k as i64), Dim::from(1))?;
    dims.remove(axis);
    Ok(Some(cx.b.reshape(y, &dims)?))
}

fn plain<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let (w, r) = (cx.tensor(n, 1)?, cx.tensor(n, 2)?);
    layer(cx, n, n.op(), w, r)
}

/// An LSTM with weights of 8 bits, transposed. The weights are taken as the numbers that they stand for; inputs and states are not
/// rounded to 8 bits as they would be by integer products, so results are closer to those of the layer before it was quantised.
fn quantized_lstm<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let mut weights = Vec::new();
    for (i, scale) in [(1, 8), (2, 10)] {
        let w = cx.tensor(n, i)?;
        let dims = cx.b.dims(w);
        if dims.len() != 3 {
            return Err(n.bad(format!("operand {i} has rank {}, not 3", dims.len())));
        }
        let mut laid = Vec::new();
        for (at, d) in [(scale + 1, DType::I32), (scale, DType::F32)] {
            let v = cx.tensor(n, at)?;
            let v = cx.b.convert(v, d)?;
            // One for each direction, or for each of its columns too.
            let columns = cx.b.dims(v).get(1).cloned().unwrap_or(Dim::from(1));
            laid.push(cx.b.reshape(v, &[dims[0].clone(), Dim::from(1), columns])?);
        }
        let w = cx.b.convert(w, DType::I32)?;
        let w = cx.b.sub(w, laid[0])?;
        let w = cx.b.convert(w, DType::F32)?;
        let w = cx.b.mul(w, laid[1])?;
        weights.push(cx.b.permute(w, &[0, 2, 1])?);
    }
    layer(cx, n, "LSTM", weights[0], weights[1])
}

/// All directions of a layer with its weights.
fn layer<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>, kind: &str, w: ValueId, r: ValueId) -> Result<Vec<Val>> {
    let defaults: &[&str] = match kind {
        "RNN" => &["Tanh"],
        "GRU" => &["Sigmoid", "Tanh"],
        _ => &["Sigmoid", "Tanh", "Tanh"],
    };
    let directions = match n.str("direction", "forward")? {
        "forward" => vec![Direction::Forward],
        "reverse" => vec![Direction::Reverse],
        "bidirectional" => vec![Direction::Forward, Direction::Reverse],
        other => return Err(n.bad(format!("direction '{other}'"))),
    };
    let batch_first = n.int("layout", 0)? == 1;
    let all = activations(n, defaults, directions.len())?;
    for (i, rank) in [(0, 3), (1, 3), (2, 3)] {
        if n.rank(i)? != rank {
            return Err(n.bad(format!("operand {i} has rank {}, not {rank}", n.rank(i)?)));
        }
    }
    let have = cx.b.dims(r)[2].clone();
    if let Some(size) = n.opt_int("hidden_size")?
        && have.as_const().is_some_and(|have| have != size)
    {
        return Err(n.bad(format!("hidden_size {size}, but the weights are for {have:?}")));
    }
    let mut x = cx.tensor(n, 0)?;
    if batch_first {
        x = cx.b.permute(x, &[1, 0, 2])?;
    }
    let (bias, lengths, hidden) = (cx.opt(n, 3)?, cx.opt(n, 4)?, cx.opt(n, 5)?);
    let lstm = kind == "LSTM";
    let (cell, peephole) = if lstm { (cx.opt(n, 6)?, cx.opt(n, 7)?) } else { (None, None) };
    let state_axis = usize::from(batch_first);
    let mut parts: Vec<Vec<ValueId>> = Vec::new();
    for (k, &direction) in directions.iter().enumerate() {
        let mut spec = RecurrentSpec::new(direction, &all[k * defaults.len()..(k + 1) * defaults.len()]);
        spec.clip = n.opt_float("clip")?.filter(|&c| c > 0.0);
        spec.input_forget = n.flag("input_forget", false)?;
        spec.linear_before_reset = n.flag("linear_before_reset", false)?;
        let inputs = RecurrentInputs {
            x,
            w: part(cx, Some(w), 0, k)?.unwrap_or(w),
            r: part(cx, Some(r), 0, k)?.unwrap_or(r),
            bias: part(cx, bias, 0, k)?,
            lengths,
            hidden: part(cx, hidden, state_axis, k)?,
        };
        parts.push(match kind {
            "LSTM" => {
                let (cell, peephole) = (part(cx, cell, state_axis, k)?, part(cx, peephole, 0, k)?);
                cx.b.lstm(inputs, cell, peephole, &spec)?.to_vec()
            }
            "GRU" => cx.b.gru(inputs, &spec)?.to_vec(),
            _ => cx.b.rnn(inputs, &spec)?.to_vec(),
        });
    }
    // Outputs [s, b, h] of the directions become [s, d, b, h], states [b, h] become [d, b, h]; with the batch first [b, s, d, h] and
    // [b, d, h].
    let mut out = Vec::new();
    for k in 0..parts[0].len() {
        let axis = if k == 0 { 1 } else { 0 };
        let mut column = Vec::new();
        for p in &parts {
            column.push(cx.b.unsqueeze(p[k], axis)?);
        }
        let mut y = cx.b.concat(&column, axis)?;
        if batch_first {
            y = if k == 0 { cx.b.permute(y, &[2, 0, 1, 3])? } else { cx.b.permute(y, &[1, 0, 2])? };
        }
        out.push(cx.out(y));
    }
    Ok(out)
}
