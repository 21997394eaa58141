//! Constant folding.

use std::borrow::Cow;

use tongtu_graph::{Op, ValueId};
use tongtu_tensor::scalar::{Binary, eval_binary, eval_compare, eval_fma, eval_unary};
use tongtu_tensor::{CastMode, DType, Element, Num, Overflow, Tensor, bf16, f16};

use super::rewrite::{Rewriter, Rewritten};
use super::strided;

/// A result may be this many times larger than the constants it is made from, whatever its size.
const GROWTH: usize = 4;

/// Constants of more bytes are not permuted as long as an operation may take them as they are.
const LARGE: usize = 1 << 18;

/// [`rule`], and large constants are permuted too.
pub(super) fn all(rw: &mut Rewriter<'_>, op: &Op, inputs: &[ValueId]) -> Rewritten {
    match (op, inputs) {
        (Op::Permute { perm }, &[x]) => {
            // A large one is a view: kernels that pack it read it where it lies.
            let moved = rw.constant(x).and_then(|t| match t.nbytes() > LARGE || t.is_absent() {
                true => t.permute(perm).ok(),
                false => strided::permute(t, perm).ok(),
            });
            moved.map(|t| Ok(vec![rw.tensor(t)?])).transpose()
        }
        _ => rule(rw, op, inputs),
    }
}

/// Computes an operation whose operands are all constants. Constants whose elements are all equal become broadcasts of
/// one; large ones are only moved, converted and combined element by element.
pub(super) fn rule(rw: &mut Rewriter<'_>, op: &Op, inputs: &[ValueId]) -> Rewritten {
    match op {
        Op::Constant { value } => return constant(rw, value),
        Op::Permute { .. } if rw.constant(inputs[0]).is_some_and(|t| t.nbytes() > LARGE) => return Ok(None),
        Op::Iota { .. }
        | Op::DimValue { .. }
        | Op::Bind { .. }
        | Op::Broadcast { .. }
        | Op::RandomBits { .. }
        | Op::If { .. }
        | Op::While { .. }
        | Op::Composite { .. }
        | Op::Kernel { .. }
        | Op::Host { .. } => return Ok(None),
        _ => {}
    }
    if inputs.is_empty() {
        return Ok(None);
    }
    let mut stored = 0;
    for &v in inputs {
        match kept_bytes(rw, v) {
            Some(n) => stored += n,
            None => return Ok(None),
        }
    }
    let Some(shape) = result_shape(rw, op, inputs)? else { return Ok(None) };
    let bytes = rw.infer(op, inputs)?.iter().filter_map(|t| t.as_tensor()).try_fold(0usize, |n, (d, _)| {
        n.checked_add(d.bytes_for(shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?)?)
    });
    let Some(bytes) = bytes else { return Ok(None) };
    let small = bytes <= rw.options.fold_limit.saturating_mul(4);
    // A shift takes numbers of few bits out of bytes, which kernels do as they read them.
    let spreads = matches!(op, Op::Binary(Binary::Shr));
    if !small && (spreads || bytes > stored.saturating_mul(GROWTH)) {
        return Ok(None);
    }
    if inputs.iter().any(|&v| is_absent(rw, v)) {
        return absent(rw, op, inputs, &shape);
    }
    let Some(operands) = inputs.iter().map(|&v| materialise(rw, v)).collect::<Option<Vec<_>>>() else {
        return Ok(None);
    };
    if let Some(out) = native(op, &operands, &shape) {
        return Ok(Some(vec![rw.tensor(out)?]));
    }
    if small && work(op, &operands, &shape) <= rw.options.fold_limit {
        return reference(rw, op, inputs, operands);
    }
    Ok(None)
}

/// Whether a value is a constant that nobody has.
fn is_absent(rw: &Rewriter<'_>, v: ValueId) -> bool {
    match rw.op(v) {
        Some(Op::Constant { value }) => value.is_absent(),
        Some(Op::Broadcast { .. }) => rw.broadcast_of(v).is_some_and(|(x, _)| is_absent(rw, x)),
        _ => false,
    }
}

/// What is computed from a constant that nobody has is one more.
fn absent(rw: &mut Rewriter<'_>, op: &Op, inputs: &[ValueId], shape: &[usize]) -> Rewritten {
    let heavy = matches!(
        op,
        Op::Contract { .. } | Op::Conv { .. } | Op::Reduce { .. } | Op::WindowReduce { .. } | Op::Sort { .. }
    );
    let types = rw.infer(op, inputs)?;
    let one = match &types[..] {
        [ty] if !heavy => ty.as_tensor().and_then(|(d, _)| Tensor::absent(d, shape).ok()),
        _ => None,
    };
    one.map(|t| Ok(vec![rw.tensor(t)?])).transpose()
}

/// Roughly the number of scalar operations.
fn work(op: &Op, operands: &[Tensor], shape: &[usize]) -> usize {
    let product = |dims: &mut dyn Iterator<Item = usize>| dims.fold(1usize, usize::saturating_mul);
    let results = product(&mut shape.iter().copied());
    let each = match op {
        Op::Contract { over, .. } => product(&mut over.iter().map(|p| operands[0].shape()[p.0])),
        Op::Conv { .. } => operands[1].len(),
        Op::WindowReduce { spec, .. } => product(&mut spec.window.iter().map(|&w| w.max(0) as usize)),
        _ => 1,
    };
    operands.iter().map(Tensor::len).fold(results.saturating_mul(each), usize::saturating_add)
}

/// Bytes of the constant behind a value; `None` if it is not one, or one of unknown size.
fn kept_bytes(rw: &Rewriter<'_>, v: ValueId) -> Option<usize> {
    let fixed = rw.graph.dims(v).iter().all(|d| d.as_const().is_some());
    match rw.op(v)? {
        Op::Constant { value } => Some(value.nbytes()),
        Op::Broadcast { .. } if fixed => kept_bytes(rw, rw.broadcast_of(v)?.0),
        Op::Iota { .. } if fixed => Some(8),
        _ => None,
    }
}

/// The lengths of the first result, if they are known.
fn result_shape(
    rw: &Rewriter<'_>,
    op: &Op,
    inputs: &[ValueId],
) -> Result<Option<Vec<usize>>, tongtu_graph::GraphError> {
    let types = rw.infer(op, inputs)?;
    Ok(types.first().and_then(|t| t.as_tensor()).and_then(|(_, dims)| {
        dims.iter().map(|d| d.as_const().and_then(|n| usize::try_from(n).ok())).collect()
    }))
}

fn materialise(rw: &Rewriter<'_>, v: ValueId) -> Option<Tensor> {
    let shape: Vec<usize> = rw
        .graph
        .dims(v)
        .iter()
        .map(|d| d.as_const().and_then(|n| usize::try_from(n).ok()))
        .collect::<Option<_>>()?;
    match rw.op(v)? {
        Op::Constant { value } => Some(value.clone()),
        Op::Broadcast { axes, .. } => {
            let x = materialise(rw, rw.broadcast_of(v)?.0)?;
            if x.len() == 1 {
                return Tensor::full(x.dtype(), &shape, x.get_linear(0)).ok();
            }
            strided::expand(&x, &shape, axes)?.ok()
        }
        Op::Iota { dtype, axis, .. } => {
            let inner: usize = shape.get(axis + 1..)?.iter().product();
            let n = *shape.get(*axis)?;
            let at = |i: usize| (i / inner.max(1) % n.max(1)) as i64;
            Tensor::from_fn(*dtype, &shape, |i| Num::from(at(i))).ok()
        }
        _ => None,
    }
}

/// One scalar with a broadcast in place of many equal elements.
fn constant(rw: &mut Rewriter<'_>, value: &Tensor) -> Rewritten {
    if value.rank() == 0 || value.is_empty() || value.is_absent() || !all_equal(value) {
        return Ok(None);
    }
    let code = value.code(0);
    let mut scalar = match Tensor::zeros(value.dtype(), &[]) {
        Ok(t) => t,
        Err(_) => return Ok(None),
    };
    scalar.set_code(0, code);
    let dims: Vec<_> = value.shape().iter().map(|&n| (n as i64).into()).collect();
    let s = rw.tensor(scalar)?;
    Ok(Some(vec![rw.broadcast(s, &dims, &[])?]))
}

fn all_equal(t: &Tensor) -> bool {
    match t.dtype().byte_size() {
        Some(size) if t.is_contiguous() => {
            let bytes = t.bytes();
            let first = bytes.get(..size).unwrap_or_default();
            bytes.chunks_exact(size).all(|c| c == first)
        }
        _ => t.codes().all(|c| c == t.code(0)),
    }
}

/// The operation on single-node terms by the reference interpreter.
fn reference(rw: &mut Rewriter<'_>, op: &Op, inputs: &[ValueId], operands: Vec<Tensor>) -> Rewritten {
    let mut module = tongtu_graph::Module { symbols: rw.symbols.clone(), ..Default::default() };
    let types = rw.infer(op, inputs)?;
    for &v in inputs {
        module.graph.add_input(rw.graph.ty(v).clone(), None);
    }
    let outputs: Vec<ValueId> = types.into_iter().map(|t| module.graph.add_value(t, None)).collect();
    module.graph.nodes.push(tongtu_graph::Node {
        op: op.clone(),
        inputs: module.graph.inputs.clone(),
        outputs: outputs.clone(),
        loc: Default::default(),
    });
    module.graph.outputs = outputs;
    match tongtu_graph::eval::run_tensors(&module, &operands) {
        Ok(results) => Ok(Some(results.into_iter().map(|t| rw.tensor(t)).collect::<Result<_, _>>()?)),
        // What can't be evaluated here is an error only if it is ever run.
        Err(_) => Ok(None),
    }
}

/// The result by code for its kind of operation; `None` where there is none.
fn native(op: &Op, x: &[Tensor], shape: &[usize]) -> Option<Tensor> {
    match op {
        Op::Reshape { .. } => x[0].reshape(shape).ok(),
        Op::Permute { perm } => strided::permute(&x[0], perm).ok(),
        Op::Slice { start, len, step } => {
            let fixed = |d: &[tongtu_tensor::dim::Dim]| {
                d.iter()
                    .map(|d| d.as_const().and_then(|n| usize::try_from(n).ok()))
                    .collect::<Option<Vec<_>>>()
            };
            let (start, len) = (fixed(start)?, fixed(len)?);
            strided::slice(&x[0], &start, &len, step)?.ok()
        }
        Op::Concat { axis } => {
            let mut out = Tensor::zeros(x[0].dtype(), shape).ok()?;
            let mut at = vec![0; shape.len()];
            for t in x {
                strided::place(t, &mut out, &at)?;
                at[*axis] += t.shape()[*axis];
            }
            Some(out)
        }
        Op::Pad { low, high } => {
            let fixed = |d: &[tongtu_tensor::dim::Dim]| {
                d.iter()
                    .map(|d| d.as_const().and_then(|n| usize::try_from(n).ok()))
                    .collect::<Option<Vec<_>>>()
            };
            let (low, _) = (fixed(low)?, fixed(high)?);
            let mut out = Tensor::full(x[0].dtype(), shape, x[1].get_linear(0)).ok()?;
            strided::place(&x[0], &mut out, &low)?;
            Some(out)
        }
        Op::Take { axis } => {
            // Rows at indices that are all inside; each is placed whole.
            let n = x[0].shape()[*axis] as i64;
            let at = x[1].to_i64_vec().ok()?;
            let mut rows = x[0].shape().to_vec();
            rows[*axis] = at.len();
            let mut out = Tensor::zeros(x[0].dtype(), &rows).ok()?;
            let (mut start, mut len, mut to) =
                (vec![0; rows.len()], x[0].shape().to_vec(), vec![0; rows.len()]);
            len[*axis] = 1;
            for (k, i) in at.iter().enumerate() {
                if !(0..n).contains(i) {
                    return None;
                }
                start[*axis] = *i as usize;
                to[*axis] = k;
                let row = strided::slice(&x[0], &start, &len, &vec![1; len.len()])?.ok()?;
                strided::place(&row, &mut out, &to)?;
            }
            out.reshape(shape).ok()
        }
        Op::Cast { to, mode } => cast(&x[0], *to, *mode),
        Op::Bitcast { to } => Tensor::from_bytes(*to, shape, x[0].bytes().into_owned()).ok(),
        Op::Unary(u) => {
            let (from, to) = (x[0].dtype(), u.result(x[0].dtype()));
            let mut values = x[0].iter();
            Tensor::from_fn(to, shape, |_| eval_unary(*u, from, next(&mut values))).ok()
        }
        Op::Binary(b) => binary(*b, &x[0], &x[1], shape),
        Op::Compare(c) => {
            let from = x[0].dtype();
            let (mut a, mut b) = (x[0].iter(), x[1].iter());
            Tensor::from_fn(DType::Bool, shape, |_| eval_compare(*c, from, next(&mut a), next(&mut b)).into())
                .ok()
        }
        Op::Select {} => {
            let (mut p, mut a, mut b) = (x[0].iter(), x[1].iter(), x[2].iter());
            let mut pick = || {
                let (p, a, b) = (next(&mut p), next(&mut a), next(&mut b));
                if p.is_true() { a } else { b }
            };
            Tensor::from_fn(x[1].dtype(), shape, |_| pick()).ok()
        }
        Op::Fma {} => {
            let d = x[0].dtype();
            let (mut a, mut b, mut c) = (x[0].iter(), x[1].iter(), x[2].iter());
            Tensor::from_fn(d, shape, |_| eval_fma(d, next(&mut a), next(&mut b), next(&mut c))).ok()
        }
        _ => None,
    }
}

fn next(values: &mut impl Iterator<Item = Num>) -> Num {
    values.next().unwrap_or(Num::Int(0))
}

fn binary(op: Binary, a: &Tensor, b: &Tensor, shape: &[usize]) -> Option<Tensor> {
    macro_rules! quick {
        ($ty:ty: $($case:ident => $f:expr),*) => {
            match op {
                $(Binary::$case => return zip::<$ty>(a, b, shape, $f),)*
                _ => {}
            }
        };
    }
    macro_rules! integers {
        ($ty:ident) => {
            quick!($ty: Add => $ty::wrapping_add, Sub => $ty::wrapping_sub, Mul => $ty::wrapping_mul,
                And => |x, y| x & y, Or => |x, y| x | y, Xor => |x, y| x ^ y,
                Shr => |x, y| if (0..$ty::BITS as i64).contains(&(y as i64)) { x >> y } else { x >> ($ty::BITS - 1) >> 1 },
                Shl => |x, y| if (0..$ty::BITS as i64).contains(&(y as i64)) { x << y } else { 0 })
        };
    }
    match a.dtype() {
        DType::F32 => {
            quick!(f32: Add => |x, y| x + y, Sub => |x, y| x - y, Mul => |x, y| x * y, Div => |x, y| x / y)
        }
        DType::F64 => {
            quick!(f64: Add => |x, y| x + y, Sub => |x, y| x - y, Mul => |x, y| x * y, Div => |x, y| x / y)
        }
        DType::I8 => integers!(i8),
        DType::U8 => integers!(u8),
        DType::I32 => integers!(i32),
        DType::I64 => integers!(i64),
        _ => {}
    }
    let dtype = a.dtype();
    let (mut a, mut b) = (a.iter(), b.iter());
    Tensor::from_fn(dtype, shape, |_| eval_binary(op, dtype, next(&mut a), next(&mut b))).ok()
}

fn zip<T: Element + bytemuck::AnyBitPattern>(
    a: &Tensor,
    b: &Tensor,
    shape: &[usize],
    f: impl Fn(T, T) -> T,
) -> Option<Tensor> {
    let mut out = Tensor::zeros(T::DTYPE, shape).ok()?;
    let (x, y) = (strided::elements::<T>(a).ok()?, strided::elements::<T>(b).ok()?);
    let target = out.as_mut_slice::<T>().ok()?;
    for ((o, &x), &y) in target.iter_mut().zip(x.iter()).zip(y.iter()) {
        *o = f(x, y);
    }
    Some(out)
}

fn cast(x: &Tensor, to: DType, mode: CastMode) -> Option<Tensor> {
    macro_rules! quick {
        ($($from:ident $f:ty => $to:ident $t:ty: $convert:expr;)*) => {
            match (x.dtype(), to) {
                $((DType::$from, DType::$to) => return map::<$f, $t>(x, $convert),)*
                _ => {}
            }
        };
    }
    // All of these are exact or round to nearest; infinities stay what they are only if nothing saturates.
    if mode.overflow == Overflow::Format {
        let nan = |v: f32| if v.is_nan() { f32::NAN } else { v };
        match (x.dtype(), to) {
            (DType::F16, DType::F32) => return map::<f16, f32>(x, |v| nan(v.to_f32())),
            (DType::BF16, DType::F32) => return map::<bf16, f32>(x, |v| nan(v.to_f32())),
            (DType::F32, DType::BF16) if mode == CastMode::default() => {
                return map::<f32, bf16>(x, |v| if v.is_nan() { bf16::NAN } else { bf16::from_f32(v) });
            }
            (DType::F32, DType::F64) => {
                return map::<f32, f64>(x, |v| if v.is_nan() { f64::NAN } else { v.into() });
            }
            _ => {}
        }
    }
    quick! {
        I8 i8 => F32 f32: f32::from;
        U8 u8 => F32 f32: f32::from;
        I16 i16 => F32 f32: f32::from;
        U16 u16 => F32 f32: f32::from;
        I8 i8 => I32 i32: i32::from;
        U8 u8 => I32 i32: i32::from;
        I32 i32 => I64 i64: i64::from;
        I8 i8 => I64 i64: i64::from;
        U8 u8 => I64 i64: i64::from;
    }
    if x.dtype().bits() <= 8 {
        return by_table(x, to, mode);
    }
    x.cast(to, mode).ok()
}

/// Conversion of elements of at most a byte: each code's result is found once.
fn by_table(x: &Tensor, to: DType, mode: CastMode) -> Option<Tensor> {
    let (from, size) = (x.dtype(), to.byte_size());
    let Some(size) = size else { return x.cast(to, mode).ok() };
    let table: Vec<[u8; 8]> = (0..1u64 << from.bits())
        .map(|code| to.encode_rounded(from.decode(code), mode).to_le_bytes())
        .collect();
    let mut out = Tensor::zeros(to, x.shape()).ok()?;
    let bytes = x.bytes();
    let bits = from.bits() as usize;
    let code = |i: usize| -> Option<usize> {
        Some(match bits {
            8 => usize::from(*bytes.get(i)?),
            // Elements of four or two bits do not cross bytes.
            2 | 4 => usize::from(*bytes.get(i * bits / 8)? >> (i * bits % 8)) & ((1 << bits) - 1),
            _ => x.code(i) as usize,
        })
    };
    for (i, o) in out.bytes_mut().chunks_exact_mut(size).enumerate() {
        o.copy_from_slice(table.get(code(i)?)?.get(..size)?);
    }
    Some(out)
}

fn map<A: Element, B: Element + bytemuck::AnyBitPattern>(x: &Tensor, f: impl Fn(A) -> B) -> Option<Tensor> {
    let mut out = Tensor::zeros(B::DTYPE, x.shape()).ok()?;
    let from: Cow<'_, [A]> = strided::elements(x).ok()?;
    for (o, &v) in out.as_mut_slice::<B>().ok()?.iter_mut().zip(from.iter()) {
        *o = f(v);
    }
    Some(out)
}
