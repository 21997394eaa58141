//! Result types from operand types: the type rule of every operation.
//!
//! Dims that must be equal may be different expressions as long as they could be equal: the plan then checks the
//! equality when sizes are bound. Dims that can't be equal are an error here.

use tongtu_tensor::dim::{Dim, Symbols};
use tongtu_tensor::scalar::Unary;
use tongtu_tensor::{Combiner, DType};

use crate::error::GraphError;
use crate::graph::{Graph, Loc, Type};
use crate::kernel::kernel_of;
use crate::op::{ConvRole, ConvSpec, Op, WindowSpec};

/// The simpler of two dims taken to be equal: a constant before a symbol before an expression.
pub fn simpler(a: &Dim, b: &Dim) -> Dim {
    let rank = |d: &Dim| {
        if d.as_const().is_some() {
            0
        } else if d.as_sym().is_some() {
            1
        } else {
            2
        }
    };
    if rank(b) < rank(a) { b.clone() } else { a.clone() }
}

/// Whether two dims could be equal for some sizes.
pub fn may_equal(a: &Dim, b: &Dim) -> bool {
    a == b || (a - b).as_const().is_none_or(|c| c == 0)
}

/// The product of dims.
pub fn numel(dims: &[Dim]) -> Dim {
    dims.iter().fold(Dim::from(1), |acc, d| &acc * d)
}

/// Length of a sliding window's result along one dim: `floor((n + lo + hi - ((k-1)*dilation + 1)) / stride) + 1`. A
/// negative length means that the window does not fit, which is an error.
pub fn window_len(n: &Dim, k: i64, stride: i64, pad: &(Dim, Dim), dilation: i64) -> Dim {
    let span = (Dim::from(k) - 1) * dilation + 1;
    let room = n + &pad.0 + &pad.1 - span;
    room.floordiv(&Dim::from(stride)) + 1
}

struct Ctx<'a> {
    op: &'a Op,
    loc: &'a Loc,
    inputs: &'a [Type],
}

impl Ctx<'_> {
    fn name(&self) -> String {
        match self.op {
            Op::Composite { name, .. } if !name.is_empty() => name.clone(),
            op => op.name().to_string(),
        }
    }
    fn shape(&self, detail: impl Into<String>) -> GraphError {
        GraphError::Shape { op: self.name(), loc: self.loc.clone(), detail: detail.into() }
    }
    fn ty(&self, detail: impl Into<String>) -> GraphError {
        GraphError::Type { op: self.name(), loc: self.loc.clone(), detail: detail.into() }
    }
    fn arity(&self, expected: &str) -> GraphError {
        GraphError::Arity {
            op: self.name(),
            loc: self.loc.clone(),
            expected: expected.into(),
            found: self.inputs.len(),
        }
    }
    fn tensors<const N: usize>(&self) -> Result<[(DType, &[Dim]); N], GraphError> {
        if self.inputs.len() != N {
            return Err(self.arity(&N.to_string()));
        }
        let mut out = [(DType::Bool, &[] as &[Dim]); N];
        for (i, o) in out.iter_mut().enumerate() {
            *o = self.tensor(i)?;
        }
        Ok(out)
    }
    fn tensor(&self, i: usize) -> Result<(DType, &[Dim]), GraphError> {
        self.inputs[i]
            .as_tensor()
            .ok_or_else(|| self.ty(format!("operand {i} is {:?}, not a tensor of numbers", self.inputs[i])))
    }
    fn axis(&self, axis: usize, rank: usize) -> Result<(), GraphError> {
        if axis < rank { Ok(()) } else { Err(self.shape(format!("axis {axis} of a value of rank {rank}"))) }
    }
    fn same(&self, what: &str, a: &Dim, b: &Dim) -> Result<Dim, GraphError> {
        if may_equal(a, b) {
            Ok(simpler(a, b))
        } else {
            Err(self.shape(format!("{what}: {a:?} and {b:?} differ")))
        }
    }
    fn same_dims(&self, what: &str, a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>, GraphError> {
        if a.len() != b.len() {
            return Err(self.shape(format!("{what}: ranks {} and {} differ", a.len(), b.len())));
        }
        a.iter().zip(b).map(|(x, y)| self.same(what, x, y)).collect()
    }
    fn same_types(&self, a: DType, b: DType) -> Result<(), GraphError> {
        if a == b { Ok(()) } else { Err(self.ty(format!("operand types {a} and {b} differ"))) }
    }
    /// Refuses windows that are longer than what they slide over.
    fn fits(&self, dims: &[Dim]) -> Result<(), GraphError> {
        match dims.iter().filter_map(Dim::as_const).find(|&n| n < 0) {
            Some(n) => Err(self.shape(format!("the window does not fit: {n} positions"))),
            None => Ok(()),
        }
    }
    /// Refuses indices longer than the data in a dim other than `axis`.
    fn not_above(&self, indices: &[Dim], data: &[Dim], axis: usize) -> Result<(), GraphError> {
        for (k, (i, n)) in indices.iter().zip(data).enumerate() {
            if k != axis && (i - n).as_const().is_some_and(|d| d > 0) {
                return Err(self.shape(format!("dim {k}: indices of {i:?} for data of {n:?}")));
            }
        }
        Ok(())
    }
    fn index_type(&self, i: usize) -> Result<(), GraphError> {
        let (d, _) = self.tensor(i)?;
        if matches!(d, DType::I32 | DType::I64 | DType::U32 | DType::U64) {
            Ok(())
        } else {
            Err(self.ty(format!("indices have type {d}; i32, i64, u32 or u64 wanted")))
        }
    }
}

fn unary_type(c: &Ctx<'_>, op: Unary, d: DType) -> Result<DType, GraphError> {
    if op.accepts(d) { Ok(op.result(d)) } else { Err(c.ty(format!("'{op}' does not take {d}"))) }
}

/// The result types of an operation. Errors name the operation, its origin and the rule that is broken.
pub fn infer(op: &Op, inputs: &[Type], symbols: &Symbols, loc: &Loc) -> Result<Vec<Type>, GraphError> {
    let c = Ctx { op, loc, inputs };
    let one = |dtype: DType, dims: Vec<Dim>| Ok(vec![Type::Tensor { dtype, dims }]);
    match op {
        Op::Unary(u) => {
            let [(d, dims)] = c.tensors()?;
            one(unary_type(&c, *u, d)?, dims.to_vec())
        }
        Op::Binary(b) => {
            let [(d, x), (e, y)] = c.tensors()?;
            c.same_types(d, e)?;
            if !b.accepts(d) {
                return Err(c.ty(format!("'{b}' does not take {d}")));
            }
            one(d, c.same_dims("operands", x, y)?)
        }
        Op::Compare(_) => {
            let [(d, x), (e, y)] = c.tensors()?;
            c.same_types(d, e)?;
            one(DType::Bool, c.same_dims("operands", x, y)?)
        }
        Op::Constant { value } => {
            one(value.dtype(), value.shape().iter().map(|&n| Dim::from(n as i64)).collect())
        }
        Op::Iota { dtype, dims, axis } => {
            c.axis(*axis, dims.len())?;
            if dtype.is_bool() {
                return Err(c.ty("iota of bool"));
            }
            one(*dtype, dims.clone())
        }
        Op::DimValue { .. } => one(DType::I64, vec![]),
        Op::Bind { sym } => {
            let [(d, dims)] = c.tensors()?;
            if d != DType::I64 || !dims.is_empty() {
                return Err(c.ty("binds an i64 scalar"));
            }
            if symbols.get(*sym).is_none() {
                return Err(c.shape("binds a symbol that the module does not declare"));
            }
            Ok(vec![])
        }
        Op::Select {} => {
            let [(p, pd), (d, x), (e, y)] = c.tensors()?;
            if p != DType::Bool {
                return Err(c.ty(format!("condition has type {p}, not bool")));
            }
            c.same_types(d, e)?;
            let dims = c.same_dims("choices", x, y)?;
            one(d, c.same_dims("condition", &dims, pd)?)
        }
        Op::Fma {} => {
            let [(d, x), (e, y), (f, z)] = c.tensors()?;
            c.same_types(d, e)?;
            c.same_types(d, f)?;
            if !d.is_float() {
                return Err(c.ty(format!("fma does not take {d}")));
            }
            let dims = c.same_dims("operands", x, y)?;
            one(d, c.same_dims("operands", &dims, z)?)
        }
        Op::Cast { to, .. } => {
            let [(_, dims)] = c.tensors()?;
            one(*to, dims.to_vec())
        }
        Op::Bitcast { to } => {
            let [(d, dims)] = c.tensors()?;
            if d.bits() != to.bits() {
                return Err(c.ty(format!("{d} and {to} have different widths")));
            }
            one(*to, dims.to_vec())
        }
        Op::Reshape { dims } => {
            let [(d, x)] = c.tensors()?;
            let (a, b) = (numel(x), numel(dims));
            if !may_equal(&a, &b) {
                return Err(c.shape(format!("{a:?} elements can't have {b:?} places")));
            }
            one(d, dims.clone())
        }
        Op::Permute { perm } => {
            let [(d, x)] = c.tensors()?;
            let mut seen = vec![false; x.len()];
            if perm.len() != x.len()
                || !perm.iter().all(|&p| p < x.len() && !std::mem::replace(&mut seen[p], true))
            {
                return Err(c.shape(format!("{perm:?} is no permutation of {} dims", x.len())));
            }
            one(d, perm.iter().map(|&p| x[p].clone()).collect())
        }
        Op::Broadcast { dims, axes } => {
            let [(d, x)] = c.tensors()?;
            if axes.len() != x.len() || axes.windows(2).any(|w| w[0] >= w[1]) {
                return Err(c.shape("one ascending result dim for each operand dim is wanted"));
            }
            for (i, &a) in axes.iter().enumerate() {
                c.axis(a, dims.len())?;
                if x[i].as_const() != Some(1) {
                    c.same("broadcast dim", &x[i], &dims[a])?;
                }
            }
            one(d, dims.clone())
        }
        Op::Slice { start, len, step } => {
            let [(d, x)] = c.tensors()?;
            if start.len() != x.len() || len.len() != x.len() || step.len() != x.len() {
                return Err(c.shape(format!("start, len and step need {} entries", x.len())));
            }
            for i in 0..x.len() {
                let (Some(s), Some(l)) = (start[i].as_const(), len[i].as_const()) else { continue };
                if step[i] == 0 || s < 0 || l < 0 {
                    return Err(c.shape(format!("dim {i}: start {s}, len {l}, step {}", step[i])));
                }
                if let (Some(n), true) = (x[i].as_const(), l > 0) {
                    let last = (l - 1).checked_mul(step[i]).and_then(|v| v.checked_add(s));
                    if s >= n || !last.is_some_and(|v| (0..n).contains(&v)) {
                        return Err(
                            c.shape(format!("dim {i}: {l} elements from {s} by {} leave 0..{n}", step[i]))
                        );
                    }
                }
            }
            one(d, len.clone())
        }
        Op::Pad { low, high } => {
            let [(d, x), (e, v)] = c.tensors()?;
            c.same_types(d, e)?;
            if !v.is_empty() || low.len() != x.len() || high.len() != x.len() {
                return Err(c.shape(format!("a scalar value and {} amounts are wanted", x.len())));
            }
            let dims: Vec<Dim> = x.iter().zip(low.iter().zip(high)).map(|(n, (l, h))| n + l + h).collect();
            if let Some(n) = dims.iter().filter_map(Dim::as_const).find(|&n| n < 0) {
                return Err(c.shape(format!("a dim of {n} elements")));
            }
            one(d, dims)
        }
        Op::Concat { axis } => {
            if inputs.is_empty() {
                return Err(c.arity("at least 1"));
            }
            let (d, first) = c.tensor(0)?;
            c.axis(*axis, first.len())?;
            let mut dims = first.to_vec();
            for i in 1..inputs.len() {
                let (e, x) = c.tensor(i)?;
                c.same_types(d, e)?;
                if x.len() != dims.len() {
                    return Err(c.shape("ranks differ"));
                }
                for k in 0..dims.len() {
                    dims[k] =
                        if k == *axis { &dims[k] + &x[k] } else { c.same("joined dims", &dims[k], &x[k])? };
                }
            }
            one(d, dims)
        }
        Op::Take { axis } => {
            let [(d, x), (_, i)] = c.tensors()?;
            c.index_type(1)?;
            c.axis(*axis, x.len())?;
            one(d, x[..*axis].iter().chain(i).chain(&x[axis + 1..]).cloned().collect())
        }
        Op::TakeAlong { axis } => {
            let [(d, x), (_, i)] = c.tensors()?;
            c.index_type(1)?;
            c.axis(*axis, x.len())?;
            if x.len() != i.len() {
                return Err(c.shape("data and indices have different ranks"));
            }
            c.not_above(i, x, *axis)?;
            one(d, i.to_vec())
        }
        Op::GatherNd { batch } => {
            let [(d, x), (_, i)] = c.tensors()?;
            c.index_type(1)?;
            let k = index_depth(&c, i)?;
            if *batch >= i.len() || batch + k > x.len() {
                return Err(
                    c.shape(format!("{batch} batch dims and {k} indices of a value of rank {}", x.len()))
                );
            }
            c.same_dims("batch dims", &x[..*batch], &i[..*batch])?;
            one(d, i[..i.len() - 1].iter().chain(&x[batch + k..]).cloned().collect())
        }
        Op::ScatterAlong { axis, combiner } => {
            let [(d, x), (_, i), (e, u)] = c.tensors()?;
            c.index_type(1)?;
            c.same_types(d, e)?;
            c.axis(*axis, x.len())?;
            check_scatter(&c, *combiner)?;
            if x.len() != i.len() {
                return Err(c.shape("data and indices have different ranks"));
            }
            c.not_above(i, x, *axis)?;
            c.same_dims("indices and updates", i, u)?;
            one(d, x.to_vec())
        }
        Op::ScatterNd { combiner } => {
            let [(d, x), (_, i), (e, u)] = c.tensors()?;
            c.index_type(1)?;
            c.same_types(d, e)?;
            check_scatter(&c, *combiner)?;
            let k = index_depth(&c, i)?;
            if k > x.len() {
                return Err(c.shape(format!("{k} indices of a value of rank {}", x.len())));
            }
            let want: Vec<Dim> = i[..i.len() - 1].iter().chain(&x[k..]).cloned().collect();
            c.same_dims("updates", &want, u)?;
            one(d, x.to_vec())
        }
        Op::Reduce { combiner, axes } => {
            let dims = check_combined(&c, *combiner)?;
            if axes.windows(2).any(|w| w[0] >= w[1]) {
                return Err(c.shape("axes are not ascending"));
            }
            for &a in axes {
                c.axis(a, dims.len())?;
            }
            let keep: Vec<Dim> =
                dims.iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|(_, d)| d.clone()).collect();
            combined(&c, keep)
        }
        Op::Scan { combiner, axis, .. } => {
            let dims = check_combined(&c, *combiner)?;
            c.axis(*axis, dims.len())?;
            combined(&c, dims)
        }
        Op::Sort { axis, .. } => {
            if inputs.is_empty() {
                return Err(c.arity("at least 1"));
            }
            let mut dims = c.tensor(0)?.1.to_vec();
            for i in 1..inputs.len() {
                dims = c.same_dims("operands", &dims, c.tensor(i)?.1)?;
            }
            c.axis(*axis, dims.len())?;
            combined(&c, dims)
        }
        Op::Contract { batch, over, acc } => {
            let [(_, x), (_, y)] = c.tensors()?;
            if !acc.is_float() && inputs.iter().any(|t| t.as_tensor().is_some_and(|(d, _)| d.is_float())) {
                return Err(c.ty(format!("floating-point operands can't accumulate in {acc}")));
            }
            let mut used = (vec![false; x.len()], vec![false; y.len()]);
            for &(a, b) in batch.iter().chain(over) {
                c.axis(a, x.len())?;
                c.axis(b, y.len())?;
                if std::mem::replace(&mut used.0[a], true) || std::mem::replace(&mut used.1[b], true) {
                    return Err(c.shape("a dim is named twice"));
                }
            }
            for &(a, b) in over {
                c.same("contracted dims", &x[a], &y[b])?;
            }
            let mut dims = Vec::new();
            for &(a, b) in batch {
                dims.push(c.same("batch dims", &x[a], &y[b])?);
            }
            dims.extend(x.iter().zip(&used.0).filter(|(_, u)| !**u).map(|(d, _)| d.clone()));
            dims.extend(y.iter().zip(&used.1).filter(|(_, u)| !**u).map(|(d, _)| d.clone()));
            one(*acc, dims)
        }
        Op::Conv { spec, acc } => {
            let [(_, x), (_, k)] = c.tensors()?;
            if !acc.is_float() && inputs.iter().any(|t| t.as_tensor().is_some_and(|(d, _)| d.is_float())) {
                return Err(c.ty(format!("floating-point operands can't accumulate in {acc}")));
            }
            one(*acc, conv_dims(&c, spec, x, k)?)
        }
        Op::WindowReduce { combiner, spec } => {
            let dims = check_combined(&c, *combiner)?;
            combined(&c, window_dims(&c, spec, &dims)?)
        }
        Op::RandomBits { dims } => {
            let [(k, kd), (n, nd)] = c.tensors()?;
            if k != DType::U64 || n != DType::U64 || !kd.is_empty() || !nd.is_empty() {
                return Err(c.ty("key and counter are u64 scalars"));
            }
            one(DType::U32, dims.clone())
        }
        Op::If { then_branch, else_branch, results } => {
            if inputs.is_empty() {
                return Err(c.arity("at least 1"));
            }
            check_condition(&c, 0)?;
            for g in [then_branch, else_branch] {
                check_values(&c, g)?;
                if g.inputs.len() != inputs.len() - 1 || g.outputs.len() != results.len() {
                    return Err(c.shape(format!(
                        "a branch takes {} values and gives {}; {} and {} wanted",
                        g.inputs.len(),
                        g.outputs.len(),
                        inputs.len() - 1,
                        results.len()
                    )));
                }
                check_operands(&c, g, 1)?;
                check_results(&c, g.outputs.iter().map(|&v| g.ty(v)), results)?;
            }
            Ok(results.clone())
        }
        Op::While { body, results } => {
            let n = results.len();
            if inputs.len() < n + 1 {
                return Err(c.arity(&format!("at least {}", n + 1)));
            }
            check_condition(&c, 0)?;
            check_values(&c, body)?;
            if body.inputs.len() != inputs.len() - 1 || body.outputs.len() != n + 1 {
                return Err(c.shape(format!(
                    "the body takes {} values and gives {}; {} and {} wanted",
                    body.inputs.len(),
                    body.outputs.len(),
                    inputs.len() - 1,
                    n + 1
                )));
            }
            check_operands(&c, body, 1)?;
            let carried: Vec<Type> = body.inputs[..n].iter().map(|&v| body.ty(v).clone()).collect();
            check_results(&c, body.outputs[1..].iter().map(|&v| body.ty(v)), results)?;
            check_results(&c, carried.iter(), results)?;
            if !matches!(body.ty(body.outputs[0]).as_tensor(), Some((DType::Bool, []))) {
                return Err(c.ty("the body's first result is not a bool scalar"));
            }
            Ok(results.clone())
        }
        Op::Composite { body, .. } => {
            check_values(&c, body)?;
            if body.inputs.len() != inputs.len() {
                return Err(c.arity(&body.inputs.len().to_string()));
            }
            for (i, (&v, have)) in body.inputs.iter().zip(inputs).enumerate() {
                match (body.ty(v).as_tensor(), have.as_tensor()) {
                    (Some((d, x)), Some((e, y))) => {
                        c.same_types(d, e)?;
                        c.same_dims(&format!("operand {i}"), x, y)?;
                    }
                    _ => return Err(c.ty(format!("operand {i} is not a tensor of numbers"))),
                }
            }
            Ok(body.outputs.iter().map(|&v| body.ty(v).clone()).collect())
        }
        Op::Kernel { results, .. } => {
            kernel_of(op, inputs).map_err(|e| c.ty(e))?;
            Ok(results.clone())
        }
        Op::Host { results, .. } => Ok(results.clone()),
    }
}

fn index_depth(c: &Ctx<'_>, indices: &[Dim]) -> Result<usize, GraphError> {
    indices
        .last()
        .and_then(Dim::as_const)
        .and_then(|k| usize::try_from(k).ok())
        .ok_or_else(|| c.shape("the last dim of the indices must be a constant"))
}

fn check_scatter(c: &Ctx<'_>, combiner: Combiner) -> Result<(), GraphError> {
    if combiner.arity() != 1 {
        return Err(c.ty(format!("updates can't combine by {}", combiner.name())));
    }
    if let (Some(b), (d, _)) = (combiner.binary(), c.tensor(0)?)
        && !b.accepts(d)
    {
        return Err(c.ty(format!("'{b}' does not take {d}")));
    }
    Ok(())
}

fn check_combined(c: &Ctx<'_>, combiner: Combiner) -> Result<Vec<Dim>, GraphError> {
    if combiner == Combiner::Replace {
        return Err(c.ty("'replace' combines only in scatters"));
    }
    if c.inputs.len() != combiner.arity() {
        return Err(c.arity(&combiner.arity().to_string()));
    }
    let (d, dims) = c.tensor(0)?;
    let mut dims = dims.to_vec();
    if let Some(b) = combiner.binary()
        && !b.accepts(d)
    {
        return Err(c.ty(format!("'{b}' does not take {d}")));
    }
    if combiner.arity() == 2 {
        let (i, y) = c.tensor(1)?;
        if !i.is_int() {
            return Err(c.ty(format!("the index operand has type {i}")));
        }
        dims = c.same_dims("operands", &dims, y)?;
    }
    Ok(dims)
}

fn combined(c: &Ctx<'_>, dims: Vec<Dim>) -> Result<Vec<Type>, GraphError> {
    (0..c.inputs.len()).map(|i| Ok(Type::Tensor { dtype: c.tensor(i)?.0, dims: dims.clone() })).collect()
}

fn check_condition(c: &Ctx<'_>, i: usize) -> Result<(), GraphError> {
    let (d, dims) = c.tensor(i)?;
    if d == DType::Bool && dims.is_empty() { Ok(()) } else { Err(c.ty("the condition is not a bool scalar")) }
}

/// Most elements of a window.
const MAX_WINDOW: i64 = 1 << 31;

/// Refuses a region or definition that names values it does not have.
fn check_values(c: &Ctx<'_>, g: &Graph) -> Result<(), GraphError> {
    match g.inputs.iter().chain(&g.outputs).find(|v| v.index() >= g.values.len()) {
        Some(v) => Err(GraphError::Structure {
            op: c.name(),
            loc: c.loc.clone(),
            detail: format!("value {} is no value of the graph inside", v.0),
        }),
        None => Ok(()),
    }
}

/// Kinds of operands from `first` on against the inputs of a region.
fn check_operands(c: &Ctx<'_>, region: &Graph, first: usize) -> Result<(), GraphError> {
    for (i, (have, &v)) in c.inputs[first..].iter().zip(&region.inputs).enumerate() {
        let same = match (have.as_tensor(), region.ty(v).as_tensor()) {
            (Some((d, x)), Some((e, y))) => d == e && x.len() == y.len(),
            (None, None) => true,
            _ => false,
        };
        if !same {
            return Err(c.ty(format!(
                "operand {} is {have:?}, the region takes {:?}",
                i + first,
                region.ty(v)
            )));
        }
    }
    Ok(())
}

fn check_results<'a>(
    c: &Ctx<'_>,
    have: impl Iterator<Item = &'a Type>,
    want: &[Type],
) -> Result<(), GraphError> {
    for (i, (h, w)) in have.zip(want).enumerate() {
        match (h.as_tensor(), w.as_tensor()) {
            (Some((d, x)), Some((e, y))) => {
                if d != e || x.len() != y.len() {
                    return Err(c.ty(format!("result {i}: a region gives {h:?}, {w:?} is declared")));
                }
            }
            (None, None) => {}
            _ => return Err(c.ty(format!("result {i}: a region gives {h:?}, {w:?} is declared"))),
        }
    }
    Ok(())
}

fn role_dims<'d>(
    c: &Ctx<'_>,
    roles: &[ConvRole],
    dims: &'d [Dim],
    spatial: usize,
) -> Result<Vec<&'d Dim>, GraphError> {
    if roles.len() != dims.len() || roles.len() != spatial + 2 {
        return Err(c.shape(format!("{} roles for {} dims, {} spatial", roles.len(), dims.len(), spatial)));
    }
    let want = [ConvRole::N, ConvRole::C].into_iter().chain((0..spatial).map(ConvRole::S));
    want.map(|r| {
        roles
            .iter()
            .position(|x| *x == r)
            .map(|p| &dims[p])
            .ok_or_else(|| c.shape(format!("no dim has the role {r:?}")))
    })
    .collect()
}

fn conv_dims(c: &Ctx<'_>, spec: &ConvSpec, x: &[Dim], k: &[Dim]) -> Result<Vec<Dim>, GraphError> {
    let rank = spec.rank();
    let lens = [spec.pads.len(), spec.dilation.len(), spec.input_dilation.len()];
    if lens != [rank; 3]
        || spec.groups < 1
        || spec.strides.iter().chain(&spec.dilation).chain(&spec.input_dilation).any(|&v| v < 1)
    {
        return Err(c.shape("strides, dilations and groups must be positive, one of each for a spatial dim"));
    }
    let xr = role_dims(c, &spec.input, x, rank)?;
    let kr = role_dims(c, &spec.kernel, k, rank)?;
    let per_group = kr[1] * &Dim::from(spec.groups);
    c.same("input channels and kernel channels × groups", xr[1], &per_group)?;
    if let Some(n) = kr[0].as_const()
        && n % spec.groups != 0
    {
        return Err(c.shape(format!("{n} output channels in {} groups", spec.groups)));
    }
    let mut by_role = vec![xr[0].clone(), kr[0].clone()];
    for s in 0..rank {
        let taps =
            kr[2 + s].as_const().ok_or_else(|| c.shape("the kernel's spatial dims must be constants"))?;
        let n = if spec.input_dilation[s] == 1 {
            xr[2 + s].clone()
        } else {
            (xr[2 + s] - 1) * spec.input_dilation[s] + 1
        };
        by_role.push(window_len(&n, taps, spec.strides[s], &spec.pads[s], spec.dilation[s]));
    }
    if spec.output.len() != rank + 2 {
        return Err(c.shape("output roles"));
    }
    let find = |r: &ConvRole| match r {
        ConvRole::N => Some(by_role[0].clone()),
        ConvRole::C => Some(by_role[1].clone()),
        ConvRole::S(i) => by_role.get(2 + i).cloned(),
    };
    let dims: Vec<Dim> = spec
        .output
        .iter()
        .map(|r| find(r).ok_or_else(|| c.shape("output roles")))
        .collect::<Result<_, _>>()?;
    c.fits(&dims)?;
    Ok(dims)
}

fn window_dims(c: &Ctx<'_>, spec: &WindowSpec, dims: &[Dim]) -> Result<Vec<Dim>, GraphError> {
    let n = dims.len();
    if [spec.window.len(), spec.strides.len(), spec.pads.len(), spec.dilation.len()] != [n; 4]
        || spec.window.iter().chain(&spec.strides).chain(&spec.dilation).any(|&v| v < 1)
    {
        return Err(c.shape(format!("window, strides, pads and dilation need {n} positive entries")));
    }
    if spec.window.iter().try_fold(1i64, |a, &w| a.checked_mul(w)).is_none_or(|w| w > MAX_WINDOW) {
        return Err(c.shape(format!("a window of more than {MAX_WINDOW} elements")));
    }
    let dims: Vec<Dim> = (0..n)
        .map(|i| window_len(&dims[i], spec.window[i], spec.strides[i], &spec.pads[i], spec.dilation[i]))
        .collect();
    c.fits(&dims)?;
    Ok(dims)
}
