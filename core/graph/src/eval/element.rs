//! The meaning of the operations of which each result element can be had by itself: one definition for both modes.

use tongtu_tensor::dim::Dim;
use tongtu_tensor::scalar::Approx;
use tongtu_tensor::{CastMode, Combiner, DType, Num, Overflow};

use crate::error::GraphError;
use crate::eval::elem::{Elem, Sum, accumulator, hull};
use crate::eval::philox::random_bits;
use crate::eval::prepare::{Prepared, count, ravel, unravel};
use crate::op::{ConvRole, ConvSpec, Op, WindowSpec};

/// Operand elements, by operand and linear position.
pub(crate) trait Operands<E> {
    fn get(&mut self, operand: usize, linear: usize) -> Result<E, GraphError>;
}

/// Most elements that an uncertain index is tried with; past that nothing is known of the result.
const MAX_CANDIDATES: f64 = 16.0;

/// One element of a result. The operation must be one that [`by_element`] accepts.
pub(crate) fn element<E: Elem>(
    p: &Prepared,
    x: &mut impl Operands<E>,
    output: usize,
    at: usize,
) -> Result<E, GraphError> {
    let (dtype, shape) = (p.outs[output].0, &p.outs[output].1);
    Ok(match &p.op {
        Op::Unary(op) => x.get(0, at)?.unary(*op, p.ins[0].0),
        Op::Binary(op) => x.get(0, at)?.binary(*op, dtype, &x.get(1, at)?),
        Op::Compare(op) => x.get(0, at)?.compare(*op, p.ins[0].0, &x.get(1, at)?),
        Op::Constant { value } => E::read(value, at),
        Op::Iota { axis, .. } => {
            let i = unravel(at, shape)[*axis];
            E::exact(dtype, tongtu_tensor::cast(Num::Int(i as i128), DType::I64, dtype, CastMode::default()))
        }
        Op::DimValue { dim } => E::exact(dtype, Num::from(fixed(dim))),
        Op::Select {} => match x.get(0, at)?.certain_int(DType::Bool) {
            Some(0) => x.get(2, at)?,
            Some(_) => x.get(1, at)?,
            None => {
                let p = x.get(0, at)?.approx(DType::Bool).value.is_true();
                let (a, b) = (x.get(1, at)?, x.get(2, at)?);
                if p { hull(dtype, &a, [b]) } else { hull(dtype, &b, [a]) }
            }
        },
        Op::Fma {} => x.get(0, at)?.fma(dtype, &x.get(1, at)?, &x.get(2, at)?),
        Op::Cast { to, mode } => x.get(0, at)?.cast(p.ins[0].0, *to, *mode),
        Op::Bitcast { to } => x.get(0, at)?.bitcast(p.ins[0].0, *to),
        Op::Reshape { .. } => x.get(0, at)?,
        Op::Permute { perm } => {
            let i = unravel(at, shape);
            let mut j = vec![0; i.len()];
            for (k, &axis) in perm.iter().enumerate() {
                j[axis] = i[k];
            }
            x.get(0, ravel(&j, &p.ins[0].1))?
        }
        Op::Broadcast { axes, .. } => {
            let i = unravel(at, shape);
            let from = &p.ins[0].1;
            let j: Vec<usize> = axes.iter().zip(from).map(|(&a, &n)| if n == 1 { 0 } else { i[a] }).collect();
            x.get(0, ravel(&j, from))?
        }
        Op::Slice { start, step, .. } => {
            let i = unravel(at, shape);
            let j: Vec<usize> =
                (0..i.len()).map(|k| (fixed(&start[k]) + i[k] as i64 * step[k]).max(0) as usize).collect();
            x.get(0, ravel(&j, &p.ins[0].1))?
        }
        Op::Pad { low, .. } => {
            let i = unravel(at, shape);
            let from = &p.ins[0].1;
            let j: Vec<i128> = (0..i.len()).map(|k| i[k] as i128 - i128::from(fixed(&low[k]))).collect();
            if j.iter().zip(from).all(|(&j, &n)| (0..n as i128).contains(&j)) {
                let j: Vec<usize> = j.iter().map(|&j| j as usize).collect();
                x.get(0, ravel(&j, from))?
            } else {
                x.get(1, 0)?
            }
        }
        Op::Concat { axis } => {
            let mut i = unravel(at, shape);
            let mut operand = 0;
            while i[*axis] >= p.ins[operand].1[*axis] {
                i[*axis] -= p.ins[operand].1[*axis];
                operand += 1;
            }
            x.get(operand, ravel(&i, &p.ins[operand].1))?
        }
        Op::Take { axis } => {
            let i = unravel(at, shape);
            let (data, indices) = (&p.ins[0].1, &p.ins[1].1);
            let position = ravel(&i[*axis..axis + indices.len()], indices);
            let index = x.get(1, position)?.approx(p.ins[1].0);
            pick(dtype, x, &[index], &[data[*axis]], |j| {
                let mut at: Vec<usize> = i[..*axis].to_vec();
                at.push(j[0]);
                at.extend_from_slice(&i[axis + indices.len()..]);
                ravel(&at, data)
            })?
        }
        Op::TakeAlong { axis } => {
            let mut i = unravel(at, shape);
            let data = &p.ins[0].1;
            let index = x.get(1, at)?.approx(p.ins[1].0);
            pick(dtype, x, &[index], &[data[*axis]], |j| {
                i[*axis] = j[0];
                ravel(&i, data)
            })?
        }
        Op::GatherNd { batch } => {
            let i = unravel(at, shape);
            let (data, indices) = (&p.ins[0].1, &p.ins[1].1);
            let outer = indices.len() - 1;
            let k = indices[outer];
            let row = ravel(&i[..outer], &indices[..outer]) * k;
            let mut index = Vec::with_capacity(k);
            for j in 0..k {
                index.push(x.get(1, row + j)?.approx(p.ins[1].0));
            }
            pick(dtype, x, &index, &data[*batch..batch + k], |j| {
                let at: Vec<usize> = i[..*batch].iter().chain(j).chain(&i[outer..]).copied().collect();
                ravel(&at, data)
            })?
        }
        Op::Reduce { combiner, axes } => {
            let from = &p.ins[0].1;
            let kept: Vec<usize> = (0..from.len()).filter(|i| !axes.contains(i)).collect();
            let steps = strides(from);
            let base: usize = kept.iter().zip(unravel(at, shape)).map(|(&k, i)| i * steps[k]).sum();
            let over = Odometer::new(axes.iter().map(|&a| (from[a], [steps[a], 0])), [base, 0]);
            combine(*combiner, p, x, output, over.map(|at| at[0]))?
        }
        Op::WindowReduce { combiner, spec } => {
            let positions = window_positions(spec, &p.ins[0].1, &unravel(at, shape));
            combine(*combiner, p, x, output, positions.into_iter())?
        }
        Op::Contract { batch, over, acc } => {
            let (a, b) = (&p.ins[0].1, &p.ins[1].1);
            let (sa, sb) = (strides(a), strides(b));
            let mut free = (vec![true; a.len()], vec![true; b.len()]);
            for &(l, r) in batch.iter().chain(over) {
                (free.0[l], free.1[r]) = (false, false);
            }
            let i = unravel(at, shape);
            let (mut left, mut right) = (0, 0);
            for (&(l, r), &i) in batch.iter().zip(&i) {
                left += i * sa[l];
                right += i * sb[r];
            }
            let mut rest = i[batch.len()..].iter();
            left += (0..a.len()).filter(|&k| free.0[k]).zip(&mut rest).map(|(k, i)| i * sa[k]).sum::<usize>();
            right +=
                (0..b.len()).filter(|&k| free.1[k]).zip(&mut rest).map(|(k, i)| i * sb[k]).sum::<usize>();
            let mut sum = Sum::new(*acc);
            for [l, r] in Odometer::new(over.iter().map(|&(l, r)| (a[l], [sa[l], sb[r]])), [left, right]) {
                let u = widened::<E>(x.get(0, l)?, p.ins[0].0, *acc);
                let v = widened::<E>(x.get(1, r)?, p.ins[1].0, *acc);
                sum.add_product(u, v);
            }
            E::of_approx(dtype, sum.finish())
        }
        Op::Conv { spec, acc } => conv(p, spec, *acc, x, &unravel(at, shape))?,
        Op::RandomBits { .. } => {
            let key = x.get(0, 0)?.certain_int(DType::U64);
            let counter = x.get(1, 0)?.certain_int(DType::U64);
            match (key, counter) {
                (Some(k), Some(c)) => {
                    E::exact(dtype, Num::Int(random_bits(k as u64, c as u64, at as u64).into()))
                }
                _ => E::of_approx(dtype, Approx { value: Num::Int(0), err: f64::INFINITY }),
            }
        }
        // `by_element` keeps the others out.
        _ => E::of_code(dtype, 0),
    })
}

/// Row-major strides.
fn strides(shape: &[usize]) -> Vec<usize> {
    let mut out = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        out[i - 1] = out[i] * shape[i];
    }
    out
}

/// Two offsets that run over all indices of some dims in row-major order.
struct Odometer {
    dims: Vec<(usize, [usize; 2])>,
    index: Vec<usize>,
    at: [usize; 2],
    left: usize,
}

impl Odometer {
    /// Over dims given by length and the steps of both offsets.
    fn new(dims: impl Iterator<Item = (usize, [usize; 2])>, start: [usize; 2]) -> Odometer {
        let dims: Vec<_> = dims.collect();
        let left = dims.iter().map(|d| d.0).product();
        Odometer { index: vec![0; dims.len()], dims, at: start, left }
    }
}

impl Iterator for Odometer {
    type Item = [usize; 2];
    fn next(&mut self) -> Option<[usize; 2]> {
        self.left = self.left.checked_sub(1)?;
        let now = self.at;
        for (i, &(n, steps)) in self.index.iter_mut().zip(&self.dims).rev() {
            *i += 1;
            self.at = [self.at[0] + steps[0], self.at[1] + steps[1]];
            if *i < n {
                break;
            }
            self.at = [self.at[0] - n * steps[0], self.at[1] - n * steps[1]];
            *i = 0;
        }
        Some(now)
    }
}

/// Whether [`element`] defines the operation.
pub(crate) fn by_element(op: &Op) -> bool {
    !matches!(
        op,
        Op::Bind { .. }
            | Op::ScatterAlong { .. }
            | Op::ScatterNd { .. }
            | Op::Scan { .. }
            | Op::Sort { .. }
            | Op::If { .. }
            | Op::While { .. }
            | Op::Composite { .. }
            | Op::Kernel { .. }
            | Op::Host { .. }
    )
}

/// A dim of a prepared operation.
fn fixed(d: &Dim) -> i64 {
    d.as_const().unwrap_or(0)
}

/// The element of operand 0 at some indices; zero outside. Uncertain indices give every element they may mean.
fn pick<E: Elem>(
    dtype: DType,
    x: &mut impl Operands<E>,
    index: &[Approx],
    lengths: &[usize],
    mut at: impl FnMut(&[usize]) -> usize,
) -> Result<E, GraphError> {
    let mut read = |x: &mut dyn FnMut(usize) -> Result<E, GraphError>, i: &[i128]| {
        let inside = i.iter().zip(lengths).all(|(&i, &n)| (0..n as i128).contains(&i));
        if !inside {
            return Ok(E::of_code(dtype, dtype.encode(Num::Int(0), Overflow::Format)));
        }
        let i: Vec<usize> = i.iter().map(|&i| i as usize).collect();
        x(at(&i))
    };
    let mut get = |i: usize| x.get(0, i);
    let nominal: Vec<i128> = index.iter().map(|a| a.value.to_i128()).collect();
    let value = read(&mut get, &nominal)?;
    if index.iter().all(|a| a.err == 0.0) {
        return Ok(value);
    }
    let spread: f64 = index.iter().map(|a| 2.0 * a.err.floor() + 1.0).product();
    if spread.is_nan() || spread > MAX_CANDIDATES {
        return Ok(E::of_approx(dtype, Approx { value: value.approx(dtype).value, err: f64::INFINITY }));
    }
    let lengths: Vec<usize> = index.iter().map(|a| 2 * a.err as usize + 1).collect();
    let mut others = Vec::new();
    for n in 0..count(&lengths) {
        let shift = unravel(n, &lengths);
        let i: Vec<i128> =
            (0..index.len()).map(|k| nominal[k] + shift[k] as i128 - (lengths[k] / 2) as i128).collect();
        others.push(read(&mut get, &i)?);
    }
    Ok(hull(dtype, &value, others))
}

/// An operand of a contraction or convolution in the accumulator type. Subnormal numbers may be taken as zero.
fn widened<E: Elem>(v: E, from: DType, acc: DType) -> Approx {
    let mut a = v.approx(from);
    if from != acc && !(from.is_float() && acc == accumulator(from)) {
        a = v.cast(from, acc, CastMode::default()).approx(acc);
    }
    if let (Num::Float(x), Some(format)) = (a.value, acc.float_format())
        && x.abs() < 2f64.powi(format.min_exponent)
    {
        a.err = a.err.max(x.abs());
    }
    a
}

/// Where a tap of a window lies along a dim of the operand.
fn window_at(window: usize, stride: i64, tap: usize, dilation: i64, low: &Dim) -> i128 {
    window as i128 * i128::from(stride) + tap as i128 * i128::from(dilation) - i128::from(fixed(low))
}

/// Linear positions of the elements of a window.
fn window_positions(spec: &WindowSpec, from: &[usize], at: &[usize]) -> Vec<usize> {
    let taps: Vec<usize> = spec.window.iter().map(|&w| w as usize).collect();
    let mut out = Vec::new();
    'taps: for n in 0..count(&taps) {
        let tap = unravel(n, &taps);
        let mut i = vec![0; from.len()];
        for k in 0..from.len() {
            let j = window_at(at[k], spec.strides[k], tap[k], spec.dilation[k], &spec.pads[k].0);
            if !(0..from[k] as i128).contains(&j) {
                continue 'taps;
            }
            i[k] = j as usize;
        }
        out.push(ravel(&i, from));
    }
    out
}

/// A reduction over positions.
fn combine<E: Elem>(
    combiner: Combiner,
    p: &Prepared,
    x: &mut impl Operands<E>,
    output: usize,
    positions: impl Iterator<Item = usize>,
) -> Result<E, GraphError> {
    let mut c = Combination::new(combiner, p.ins[0].0, p.ins.get(1).map(|i| i.0));
    for i in positions {
        let v = x.get(0, i)?;
        let k = if combiner.arity() == 2 { Some(x.get(1, i)?) } else { None };
        c.push(v, k);
    }
    Ok(c.value(output))
}

/// Elements being combined, in order.
pub(crate) struct Combination<E> {
    combiner: Combiner,
    dtype: DType,
    index_type: DType,
    state: State<E>,
}

enum State<E> {
    Sum(Sum),
    Product(Product),
    Fold(Option<E>),
    /// The winner and, for the arg-combiners, its index.
    Extreme(Option<(E, Option<E>)>),
}

impl<E: Elem> Combination<E> {
    pub fn new(combiner: Combiner, dtype: DType, index_type: Option<DType>) -> Self {
        let state = match combiner {
            Combiner::Add => State::Sum(Sum::new(accumulator(dtype))),
            Combiner::Mul if dtype.is_float() => State::Product(Product::new()),
            Combiner::Mul | Combiner::And | Combiner::Or | Combiner::Xor | Combiner::Replace => {
                State::Fold(None)
            }
            _ => State::Extreme(None),
        };
        Combination { combiner, dtype, index_type: index_type.unwrap_or(DType::I64), state }
    }
    /// The same where every step is rounded to the type: floats narrower than what sums are kept in are combined one after another.
    pub fn stepwise(combiner: Combiner, dtype: DType) -> Self {
        match combiner {
            Combiner::Add | Combiner::Mul if accumulator(dtype) != dtype => {
                Combination { combiner, dtype, index_type: DType::I64, state: State::Fold(None) }
            }
            _ => Combination::new(combiner, dtype, None),
        }
    }
    pub fn push(&mut self, v: E, index: Option<E>) {
        match &mut self.state {
            State::Sum(s) => s.add(v.approx(self.dtype)),
            State::Product(p) => p.push(accumulator(self.dtype), v.approx(self.dtype)),
            State::Fold(so_far) => {
                *so_far = Some(match (so_far.take(), self.combiner.binary()) {
                    (Some(a), Some(op)) => a.binary(op, self.dtype, &v),
                    _ => v,
                });
            }
            State::Extreme(so_far) => {
                *so_far = Some(match so_far.take() {
                    Some(a) => extreme(self.combiner, self.dtype, self.index_type, a, (v, index)),
                    None => (v, index),
                });
            }
        }
    }
    /// What the elements so far combine to: the value, or the index of an arg-combiner.
    pub fn value(&self, output: usize) -> E {
        let dtype = self.dtype;
        let nothing = || E::exact(dtype, self.combiner.identity(dtype));
        match &self.state {
            State::Sum(s) => rounded(s.finish(), dtype),
            State::Product(p) => rounded(p.finish(accumulator(dtype)), dtype),
            State::Fold(v) => v.clone().unwrap_or_else(nothing),
            State::Extreme(Some((v, i))) => match (output, i) {
                (1.., Some(i)) => i.clone(),
                _ => v.clone(),
            },
            State::Extreme(None) if output == 0 => nothing(),
            State::Extreme(None) => E::exact(self.index_type, Num::Int(0)),
        }
    }
}

/// An accumulated value rounded to the result's type.
fn rounded<E: Elem>(a: Approx, dtype: DType) -> E {
    let acc = accumulator(dtype);
    if acc == dtype {
        return E::of_approx(dtype, a);
    }
    E::of_approx(dtype, tongtu_tensor::scalar::approx_cast(a, acc, dtype, CastMode::default()))
}

/// A product of floating-point elements, with the error of multiplying them in any order.
struct Product {
    value: f64,
    relative: f64,
    count: usize,
    /// Every factor is exact.
    certain: bool,
    zero: bool,
    /// A factor is NaN for sure.
    nan: bool,
    /// Logarithms of the greatest and least partial products that some order has.
    high: f64,
    low: f64,
}

impl Product {
    fn new() -> Product {
        Product {
            value: 1.0,
            relative: 0.0,
            count: 0,
            certain: true,
            zero: false,
            nan: false,
            high: 0.0,
            low: 0.0,
        }
    }
    fn push(&mut self, acc: DType, a: Approx) {
        let x = a.value.to_f64();
        let bits = acc.float_format().map_or(24, |f| f.mantissa_bits + 1) as i32;
        // The first factor is not rounded.
        let unit = if self.count == 0 { 0.0 } else { libm::ldexp(1.0, -bits) };
        let own = if a.err == 0.0 { 0.0 } else { a.err / x.abs() };
        self.value *= x;
        self.relative = (1.0 + self.relative) * (1.0 + own) * (1.0 + unit) - 1.0;
        self.certain &= a.err == 0.0;
        self.zero |= x == 0.0;
        self.nan |= x.is_nan() && a.err == 0.0;
        let log = libm::log2(x.abs());
        self.high += log.max(0.0);
        self.low += log.min(0.0);
        self.count += 1;
    }
    fn finish(&self, acc: DType) -> Approx {
        let value = acc.decode(acc.encode(Num::Float(self.value), tongtu_tensor::Overflow::Format));
        let (greatest, least) = if acc == DType::F64 { (1023.0, -1020.0) } else { (127.0, -125.0) };
        let decided = self.nan || self.certain && (self.value.is_nan() || self.zero && self.high < greatest);
        let err = if decided || self.relative == 0.0 {
            0.0
        } else if self.value.is_nan()
            || !self.relative.is_finite()
            || self.high >= greatest
            || self.low <= least
        {
            f64::INFINITY
        } else {
            // Twice, for the reference's own rounding.
            2.0 * self.relative * self.value.abs()
        };
        Approx { value, err }
    }
}

/// The one of two elements that wins, with the error of not knowing which.
fn extreme<E: Elem>(
    combiner: Combiner,
    dtype: DType,
    index: DType,
    a: (E, Option<E>),
    b: (E, Option<E>),
) -> (E, Option<E>) {
    let greatest = matches!(combiner, Combiner::Max | Combiner::ArgMax | Combiner::ArgMaxLast);
    let last = matches!(combiner, Combiner::ArgMaxLast | Combiner::ArgMinLast);
    let (x, y) = (a.0.approx(dtype), b.0.approx(dtype));
    let order = match (x.value.is_nan(), y.value.is_nan()) {
        (true, true) => std::cmp::Ordering::Equal,
        (true, false) => std::cmp::Ordering::Greater,
        (false, true) => std::cmp::Ordering::Less,
        _ => {
            let order = compare(x.value, y.value, combiner.arity() == 1);
            if greatest { order } else { order.reverse() }
        }
    };
    let key = |e: &Option<E>| e.as_ref().map_or(0, |i| i.approx(index).value.to_i128());
    let second = match order {
        std::cmp::Ordering::Equal if combiner.arity() == 2 => {
            if last {
                key(&b.1) > key(&a.1)
            } else {
                key(&b.1) < key(&a.1)
            }
        }
        order => order.is_lt(),
    };
    let ((win, lose), (w, l)) = if second { ((b, a), (y, x)) } else { ((a, b), (x, y)) };
    if w.err == 0.0 && l.err == 0.0 {
        return win;
    }
    let sign = if greatest { 1.0 } else { -1.0 };
    let (top, other) = (sign * w.value.to_f64(), sign * l.value.to_f64());
    let unknown = top.is_nan() || other.is_nan() || w.err == f64::INFINITY || l.err == f64::INFINITY;
    if !unknown && other + l.err < top - w.err {
        return win;
    }
    let err = if unknown { f64::INFINITY } else { w.err.max(other + l.err - top) };
    let value = E::of_approx(dtype, Approx { value: w.value, err });
    let i = match (win.1, lose.1) {
        (Some(i), Some(j)) => Some(hull(index, &i, [j])),
        (i, _) => i,
    };
    (value, i)
}

/// Order of two numbers; with `zeros`, -0 is below +0.
fn compare(x: Num, y: Num, zeros: bool) -> std::cmp::Ordering {
    match (x, y) {
        (Num::Int(a), Num::Int(b)) => a.cmp(&b),
        (a, b) => {
            let (a, b) = (a.to_f64(), b.to_f64());
            let order = a.partial_cmp(&b).unwrap_or(std::cmp::Ordering::Equal);
            if zeros { order.then(b.is_sign_negative().cmp(&a.is_sign_negative())) } else { order }
        }
    }
}

fn conv<E: Elem>(
    p: &Prepared,
    spec: &ConvSpec,
    acc: DType,
    x: &mut impl Operands<E>,
    at: &[usize],
) -> Result<E, GraphError> {
    let rank = spec.rank();
    let place = |roles: &[ConvRole], r: ConvRole| roles.iter().position(|x| *x == r).unwrap_or(0);
    let (input, kernel) = (&p.ins[0].1, &p.ins[1].1);
    let (in_n, in_c) = (place(&spec.input, ConvRole::N), place(&spec.input, ConvRole::C));
    let (k_o, k_i) = (place(&spec.kernel, ConvRole::N), place(&spec.kernel, ConvRole::C));
    let batch = at[place(&spec.output, ConvRole::N)];
    let channel = at[place(&spec.output, ConvRole::C)];
    let in_s: Vec<usize> = (0..rank).map(|s| place(&spec.input, ConvRole::S(s))).collect();
    let k_s: Vec<usize> = (0..rank).map(|s| place(&spec.kernel, ConvRole::S(s))).collect();
    let out: Vec<usize> = (0..rank).map(|s| at[place(&spec.output, ConvRole::S(s))]).collect();
    let per_group = kernel[k_i];
    let group = channel / (kernel[k_o] / spec.groups as usize).max(1);
    let taps: Vec<usize> = k_s.iter().map(|&d| kernel[d]).collect();

    let (channel_step, tap_step) = (strides(input)[in_c], strides(kernel)[k_i]);
    let mut sum = Sum::new(acc);
    let (mut i, mut k) = (vec![0; input.len()], vec![0; kernel.len()]);
    (i[in_n], k[k_o]) = (batch, channel);
    let mut undecided = false;
    for n in 0..count(&taps) {
        let tap = unravel(n, &taps);
        let mut inside = true;
        for s in 0..rank {
            let j = window_at(out[s], spec.strides[s], tap[s], spec.dilation[s], &spec.pads[s].0);
            let gap = i128::from(spec.input_dilation[s]);
            inside &= j >= 0 && j % gap == 0 && j / gap < input[in_s[s]] as i128;
            i[in_s[s]] = if inside { (j / gap) as usize } else { 0 };
            k[k_s[s]] = tap[s];
        }
        (i[in_c], k[k_i]) = (group * per_group, 0);
        if !inside {
            let first = ravel(&k, kernel);
            for j in 0..per_group {
                undecided |= !x.get(1, first + j * tap_step)?.approx(p.ins[1].0).value.to_f64().is_finite();
            }
            continue;
        }
        let start = [ravel(&i, input), ravel(&k, kernel)];
        for [at, tap] in Odometer::new([(per_group, [channel_step, tap_step])].into_iter(), start) {
            let u = widened::<E>(x.get(0, at)?, p.ins[0].0, acc);
            let v = widened::<E>(x.get(1, tap)?, p.ins[1].0, acc);
            sum.add_product(u, v);
        }
    }
    let sum = sum.finish();
    let err = if undecided { f64::INFINITY } else { sum.err };
    Ok(E::of_approx(p.outs[0].0, Approx { err, ..sum }))
}
