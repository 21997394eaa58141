//! Elementwise operators: arithmetic, comparisons, logic, bits, conversions, activations.

use tongtu_graph::ValueId;
use tongtu_tensor::dim::Dim;
use tongtu_tensor::{Binary, CastMode, Compare, DType, Overflow, Rounding, Unary};

use crate::ctx::{Ctx, NodeCtx};
use crate::error::Result;
use crate::ops::{Entry, op};
use crate::val::Val;

/// The family's operators.
pub const OPS: &[Entry] = &[
    op("Abs", unary),
    op("Neg", unary),
    op("Sign", unary),
    op("Floor", unary),
    op("Ceil", unary),
    op("Round", unary),
    op("Sqrt", unary),
    op("Exp", unary),
    op("Log", unary),
    op("Sin", unary),
    op("Cos", unary),
    op("Tan", unary),
    op("Asin", unary),
    op("Acos", unary),
    op("Atan", unary),
    op("Sinh", unary),
    op("Cosh", unary),
    op("Tanh", unary),
    op("Asinh", unary),
    op("Acosh", unary),
    op("Atanh", unary),
    op("Erf", unary),
    op("IsNaN", unary),
    op("Not", unary),
    op("BitwiseNot", unary),
    op("Reciprocal", |cx, n| with_x(cx, n, |cx, _, x| Ok(cx.b.recip(x)?))),
    op("IsInf", is_inf),
    op("Add", binary),
    op("Sub", binary),
    op("Mul", binary),
    op("Div", binary),
    op("And", binary),
    op("Or", binary),
    op("Xor", binary),
    op("BitwiseAnd", binary),
    op("BitwiseOr", binary),
    op("BitwiseXor", binary),
    op("BitShift", bit_shift),
    op("Mod", modulo),
    op("Pow", pow),
    op("Equal", compare),
    op("Less", compare),
    op("LessOrEqual", compare),
    op("Greater", compare),
    op("GreaterOrEqual", compare),
    op("Max", variadic),
    op("Min", variadic),
    op("Sum", variadic),
    op("Mean", variadic),
    op("Where", select),
    op("Cast", cast),
    op("CastLike", cast_like),
    op("BitCast", bit_cast),
    op("Identity", |_, n| Ok(vec![n.val(0)?.clone()])),
    op("Clip", clip),
    op("Relu", |cx, n| with_x(cx, n, |cx, _, x| Ok(cx.b.relu(x)?))),
    op("LeakyRelu", |cx, n| with_x(cx, n, |cx, n, x| Ok(cx.b.leaky_relu(x, n.float("alpha", 0.01)?)?))),
    op("PRelu", prelu),
    op("Elu", |cx, n| with_x(cx, n, |cx, n, x| Ok(cx.b.elu(x, n.float("alpha", 1.0)?)?))),
    op("Selu", selu),
    op("Celu", |cx, n| with_x(cx, n, |cx, n, x| Ok(cx.b.celu(x, n.float("alpha", 1.0)?)?))),
    op("Sigmoid", |cx, n| with_x(cx, n, |cx, _, x| Ok(cx.b.sigmoid(x)?))),
    op("HardSigmoid", |cx, n| {
        with_x(cx, n, |cx, n, x| {
            let (alpha, beta) = (n.float("alpha", f64::from(0.2f32))?, n.float("beta", 0.5)?);
            Ok(cx.b.hard_sigmoid(x, alpha, beta)?)
        })
    }),
    op("HardSwish", |cx, n| with_x(cx, n, |cx, _, x| Ok(cx.b.hard_swish(x)?))),
    op("Softplus", |cx, n| with_x(cx, n, |cx, _, x| Ok(cx.b.softplus(x)?))),
    op("Softsign", |cx, n| with_x(cx, n, |cx, _, x| Ok(cx.b.softsign(x)?))),
    op("ThresholdedRelu", |cx, n| {
        with_x(cx, n, |cx, n, x| Ok(cx.b.thresholded_relu(x, n.float("alpha", 1.0)?)?))
    }),
    op("Mish", |cx, n| with_x(cx, n, |cx, _, x| Ok(cx.b.mish(x)?))),
    op("Gelu", gelu),
    op("Shrink", |cx, n| {
        with_x(cx, n, |cx, n, x| Ok(cx.b.shrink(x, n.float("lambd", 0.5)?, n.float("bias", 0.0)?)?))
    }),
    op("Swish", |cx, n| with_x(cx, n, |cx, n, x| Ok(cx.b.swish(x, n.float("alpha", 1.0)?)?))),
    op("SwiGLU", |cx, n| {
        let (a, b) = (cx.tensor(n, 0)?, cx.tensor(n, 1)?);
        let gate = cx.b.swish(a, n.float("alpha", 1.0)?)?;
        let y = cx.b.mul(gate, b)?;
        cx.one(y)
    }),
    op("Softmax", softmax),
    op("LogSoftmax", softmax),
    op("Dropout", dropout),
];

fn with_x<'m>(
    cx: &mut Ctx<'_, 'm>,
    n: &NodeCtx<'m>,
    f: impl FnOnce(&mut Ctx<'_, 'm>, &NodeCtx<'m>, ValueId) -> Result<ValueId>,
) -> Result<Vec<Val>> {
    let x = cx.tensor(n, 0)?;
    let y = f(cx, n, x)?;
    cx.one(y)
}

fn unary<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let op = match n.op() {
        "Abs" => Unary::Abs,
        "Neg" => Unary::Neg,
        "Sign" => Unary::Sign,
        "Floor" => Unary::Floor,
        "Ceil" => Unary::Ceil,
        "Round" => Unary::RoundEven,
        "Sqrt" => Unary::Sqrt,
        "Exp" => Unary::Exp,
        "Log" => Unary::Log,
        "Sin" => Unary::Sin,
        "Cos" => Unary::Cos,
        "Tan" => Unary::Tan,
        "Asin" => Unary::Asin,
        "Acos" => Unary::Acos,
        "Atan" => Unary::Atan,
        "Sinh" => Unary::Sinh,
        "Cosh" => Unary::Cosh,
        "Tanh" => Unary::Tanh,
        "Asinh" => Unary::Asinh,
        "Acosh" => Unary::Acosh,
        "Atanh" => Unary::Atanh,
        "Erf" => Unary::Erf,
        "IsNaN" => Unary::IsNan,
        "Not" | "BitwiseNot" => Unary::Not,
        other => return Err(n.unsupported(format!("unary operator {other}"))),
    };
    let x = cx.tensor(n, 0)?;
    let y = cx.b.unary(op, x)?;
    cx.one(y)
}

fn is_inf<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let x = cx.tensor(n, 0)?;
    let inf = cx.b.unary(Unary::IsInf, x)?;
    let (negative, positive) = (n.flag("detect_negative", true)?, n.flag("detect_positive", true)?);
    let y = if negative && positive {
        inf
    } else {
        let side = match (negative, positive) {
            (true, false) => cx.b.compare_const(Compare::Lt, x, 0.0)?,
            (false, true) => cx.b.compare_const(Compare::Gt, x, 0.0)?,
            _ => cx.b.compare(Compare::Lt, x, x)?,
        };
        cx.b.binary(Binary::And, inf, side)?
    };
    cx.one(y)
}

/// Two operands under the rules of their operator set: since version 7 they broadcast; before, the second one does if told to, at
/// an axis of the first.
pub(crate) fn two<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<(ValueId, ValueId)> {
    let a = cx.tensor(n, 0)?;
    let mut b = cx.tensor(n, 1)?;
    if n.opset < 7
        && let Some(axis) = n.opt_int("axis")?
    {
        let (ra, rb) = (cx.b.rank(a), cx.b.rank(b));
        let axis = n.axis(axis, ra)?;
        let Some(after) = ra.checked_sub(axis + rb) else {
            return Err(n.bad(format!("an operand of rank {rb} does not fit at axis {axis} of rank {ra}")));
        };
        let mut dims = cx.b.dims(b);
        dims.extend(std::iter::repeat_n(Dim::from(1), after));
        b = cx.b.reshape(b, &dims)?;
    }
    Ok((a, b))
}

fn binary<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let op = match n.op() {
        "Add" => Binary::Add,
        "Sub" => Binary::Sub,
        "Mul" => Binary::Mul,
        "Div" => Binary::Div,
        "And" | "BitwiseAnd" => Binary::And,
        "Or" | "BitwiseOr" => Binary::Or,
        "Xor" | "BitwiseXor" => Binary::Xor,
        other => return Err(n.unsupported(format!("binary operator {other}"))),
    };
    let (a, b) = two(cx, n)?;
    let y = cx.b.binary(op, a, b)?;
    cx.one(y)
}

fn bit_shift<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let op = match n.opt_str("direction")? {
        Some("LEFT") => Binary::Shl,
        Some("RIGHT") => Binary::Shr,
        other => return Err(n.bad(format!("direction {other:?}"))),
    };
    let (a, b) = two(cx, n)?;
    let y = cx.b.binary(op, a, b)?;
    cx.one(y)
}

fn modulo<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let op = if n.flag("fmod", false)? { Binary::Rem } else { Binary::Mod };
    let (a, b) = two(cx, n)?;
    let y = cx.b.binary(op, a, b)?;
    cx.one(y)
}

fn pow<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let exponent = n.const_scalar(1);
    let (a, b) = if exponent.is_some() && n.rank(1)? == 0 {
        (cx.tensor(n, 0)?, cx.tensor(n, 1)?)
    } else {
        two(cx, n)?
    };
    let (da, db) = (cx.b.dtype(a), cx.b.dtype(b));
    let y = if exponent == Some(2.0) && n.rank(1)? <= cx.b.rank(a) {
        cx.b.mul(a, a)?
    } else if !da.is_float() && db.is_float() {
        let (a, b) = (cx.b.convert(a, DType::F64)?, cx.b.convert(b, DType::F64)?);
        let y = cx.b.binary(Binary::Pow, a, b)?;
        cx.b.convert(y, da)?
    } else {
        let b = cx.b.convert(b, da)?;
        cx.b.binary(Binary::Pow, a, b)?
    };
    cx.one(y)
}

fn compare<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let op = match n.op() {
        "Equal" => Compare::Eq,
        "Less" => Compare::Lt,
        "LessOrEqual" => Compare::Le,
        "Greater" => Compare::Gt,
        _ => Compare::Ge,
    };
    if let (Some(Val::Strings(_)), "Equal") = (n.opt(0), n.op()) {
        return crate::ops::strings_equal(cx, n);
    }
    let (a, b) = two(cx, n)?;
    let y = cx.b.compare(op, a, b)?;
    cx.one(y)
}

fn variadic<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let op = match n.op() {
        "Max" => Binary::Max,
        "Min" => Binary::Min,
        _ => Binary::Add,
    };
    let mut y = cx.tensor(n, 0)?;
    for i in 1..n.inputs.len() {
        let x = cx.tensor(n, i)?;
        y = cx.b.binary(op, y, x)?;
    }
    if n.op() == "Mean" {
        y = cx.b.binary_const(Binary::Div, y, n.inputs.len() as f64)?;
    }
    cx.one(y)
}

fn select<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let (p, a, b) = (cx.tensor(n, 0)?, cx.tensor(n, 1)?, cx.tensor(n, 2)?);
    let y = cx.b.select(p, a, b)?;
    cx.one(y)
}

/// How ONNX converts to a type.
fn cast_mode(n: &NodeCtx<'_>, from: DType, to: DType) -> Result<CastMode> {
    let narrow = to.is_float() && to.bits() <= 8;
    let overflow = match to {
        DType::F4E2M1 => Overflow::Saturate,
        _ if narrow && n.flag("saturate", true)? => Overflow::Saturate,
        // Conversions of floats beyond an integer's range are not defined. Narrow integers get the low bits of a wider one, as ONNX's
        // own tests have it; for wide ones the least surprising result is the nearest.
        _ if to.is_int() && to.bits() >= 32 && from.is_float() => Overflow::Saturate,
        _ => Overflow::Format,
    };
    let rounding = match (to, n.str("round_mode", "up")?) {
        (DType::F8E8M0, "up") => Rounding::Up,
        (DType::F8E8M0, "down") => Rounding::Down,
        _ => Rounding::NearestEven,
    };
    Ok(CastMode { overflow, rounding })
}

/// The name of an element type as versions before 6 gave it.
fn named_dtype(name: &str) -> Option<DType> {
    Some(match name {
        "FLOAT" => DType::F32,
        "DOUBLE" => DType::F64,
        "FLOAT16" => DType::F16,
        "BOOL" => DType::Bool,
        "INT8" => DType::I8,
        "INT16" => DType::I16,
        "INT32" => DType::I32,
        "INT64" => DType::I64,
        "UINT8" => DType::U8,
        "UINT16" => DType::U16,
        "UINT32" => DType::U32,
        "UINT64" => DType::U64,
        _ => return None,
    })
}

fn cast<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let to = if n.opset < 6 {
        n.opt_str("to")?.and_then(named_dtype)
    } else {
        if n.opt_int("to")? == Some(i64::from(crate::data::STRING))
            || matches!(n.opt(0), Some(Val::Strings(_)))
        {
            return crate::ops::strings_cast(cx, n);
        }
        n.dtype_attr("to")?
    };
    let to = to.ok_or_else(|| n.bad("attribute 'to' is missing"))?;
    cast_to(cx, n, to)
}

fn cast_like<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    if matches!(n.opt(0), Some(Val::Strings(_))) || matches!(n.opt(1), Some(Val::Strings(_))) {
        return crate::ops::strings_cast(cx, n);
    }
    let to = n.dtype(1)?;
    cast_to(cx, n, to)
}

fn cast_to<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>, to: DType) -> Result<Vec<Val>> {
    let mode = cast_mode(n, n.dtype(0)?, to)?;
    let x = cx.tensor(n, 0)?;
    let y = cx.b.cast(x, to, mode)?;
    cx.one(y)
}

fn bit_cast<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let to = n.dtype_attr("to")?.ok_or_else(|| n.bad("attribute 'to' is missing"))?;
    let x = cx.tensor(n, 0)?;
    let y = if cx.b.dtype(x) == to { x } else { cx.b.bitcast(x, to)? };
    cx.one(y)
}

fn clip<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let x = cx.tensor(n, 0)?;
    let d = cx.b.dtype(x);
    let (low, high) = if n.opset < 11 {
        let attr = |cx: &mut Ctx<'_, 'm>, name: &str| -> Result<Option<ValueId>> {
            match n.opt_float(name)? {
                Some(v) => Ok(Some(cx.b.float(d, v)?)),
                None => Ok(None),
            }
        };
        (attr(cx, "min")?, attr(cx, "max")?)
    } else {
        let scalar = |cx: &mut Ctx<'_, 'm>, i: usize| -> Result<Option<ValueId>> {
            match cx.opt(n, i)? {
                Some(v) => Ok(Some(cx.b.reshape(v, &[])?)),
                None => Ok(None),
            }
        };
        (scalar(cx, 1)?, scalar(cx, 2)?)
    };
    let y = cx.b.clip(x, low, high)?;
    cx.one(y)
}

fn prelu<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let (x, mut slope) = (cx.tensor(n, 0)?, cx.tensor(n, 1)?);
    // Before version 7 a vector of slopes is one for each channel.
    let (rank, dims) = (cx.b.rank(x), cx.b.dims(slope));
    if n.opset < 7 && dims.len() == 1 && dims[0].as_const() != Some(1) && rank > 2 {
        let mut dims = dims;
        dims.extend(std::iter::repeat_n(Dim::from(1), rank - 2));
        slope = cx.b.reshape(slope, &dims)?;
    }
    let y = cx.b.prelu(x, slope)?;
    cx.one(y)
}

fn selu<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let old = n.opset < 6;
    let alpha = n.float("alpha", if old { 1.6732 } else { 1.673_263_192_176_818_8 })?;
    let gamma = n.float("gamma", if old { 1.0507 } else { 1.050_701_022_148_132_3 })?;
    with_x(cx, n, |cx, _, x| Ok(cx.b.selu(x, alpha, gamma)?))
}

fn gelu<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let tanh = match n.str("approximate", "none")? {
        "none" => false,
        "tanh" => true,
        other => return Err(n.bad(format!("approximate '{other}'"))),
    };
    with_x(cx, n, |cx, _, x| Ok(if tanh { cx.b.gelu_tanh(x)? } else { cx.b.gelu(x)? }))
}

fn softmax<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let x = cx.tensor(n, 0)?;
    let dims = cx.b.dims(x);
    let rank = dims.len();
    let apply = |cx: &mut Ctx<'_, 'm>, x: ValueId, axis: usize| -> Result<ValueId> {
        Ok(if n.op() == "Softmax" { cx.b.softmax(x, axis)? } else { cx.b.log_softmax(x, axis)? })
    };
    let y = if n.opset >= 13 {
        let axis = n.axis(n.int("axis", -1)?, rank)?;
        apply(cx, x, axis)?
    } else {
        // All dims from the axis on are one.
        let axis = n.int("axis", 1)?;
        let axis = if axis == rank as i64 { rank } else { n.axis(axis, rank)? };
        if axis + 1 == rank {
            apply(cx, x, axis)?
        } else {
            let flat = [dims[..axis].iter().cloned().product(), dims[axis..].iter().cloned().product()];
            let x = cx.b.reshape(x, &flat)?;
            let y = apply(cx, x, 1)?;
            cx.b.reshape(y, &dims)?
        }
    };
    cx.one(y)
}

fn dropout<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let training = match n.opset {
        12.. if !n.has(2) || n.const_scalar(2) == Some(0.0) => false,
        12.. => return dropout_training(cx, n),
        7.. => false,
        _ => !n.flag("is_test", false)?,
    };
    if training {
        return Err(n.unsupported("dropout in training mode"));
    }
    let mut out = vec![n.val(0)?.clone()];
    if n.wants(1) {
        let t = n.tensor(0)?;
        let (dims, dtype) = (t.dims.clone(), if n.opset >= 10 { DType::Bool } else { t.dtype });
        let mask = cx.b.full(dtype, 1.0, &dims)?;
        out.push(cx.out(mask));
    }
    Ok(out)
}

/// Drops elements with the probability given, if it is told to train; random bits come from the seed, or else from the node's place.
fn dropout_training<'m>(cx: &mut Ctx<'_, 'm>, n: &NodeCtx<'m>) -> Result<Vec<Val>> {
    let x = cx.tensor(n, 0)?;
    let (d, dims) = (cx.b.dtype(x), cx.b.dims(x));
    let training = cx.tensor(n, 2)?;
    let training = cx.b.reshape(training, &[])?;
    let ratio = match cx.opt(n, 1)? {
        Some(r) => {
            let r = cx.b.reshape(r, &[])?;
            cx.b.convert(r, DType::F64)?
        }
        None => cx.b.float(DType::F64, 0.5)?,
    };
    let place = n
        .loc
        .to_string()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let seed = n.opt_int("seed")?.unwrap_or(place as i64);
    let key = cx.b.scalar(DType::U64, tongtu_tensor::Num::Int((seed as u64).into()))?;
    let counter = cx.b.int(DType::U64, 0)?;
    let bits = cx.b.one(tongtu_graph::Op::RandomBits { dims: dims.clone() }, &[key, counter])?;
    let unit = cx.b.convert(bits, DType::F64)?;
    let unit = cx.b.binary_const(Binary::Mul, unit, 2f64.powi(-32))?;
    let kept = cx.b.compare(Compare::Ge, unit, ratio)?;
    let not = cx.b.unary(Unary::Not, training)?;
    let mask = cx.b.binary(Binary::Or, kept, not)?;
    let one = cx.b.float(DType::F64, 1.0)?;
    let left = cx.b.sub(one, ratio)?;
    let scale = cx.b.recip(left)?;
    let scale = cx.b.select(training, scale, one)?;
    let scale = cx.b.convert(scale, d)?;
    let scaled = cx.b.mul(x, scale)?;
    let zero = cx.b.full(d, 0.0, &[])?;
    let y = cx.b.select(mask, scaled, zero)?;
    Ok(vec![cx.out(y), cx.out(mask)])
}
