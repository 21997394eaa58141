//! Operations on vectors, of which the newer chip's vector functions are made.

use std::sync::Arc;

use super::exec::{Core, Run, V, constant, first, int, mem};
use super::hivm::{permuted, reduce};
use super::ir::{Elem, Expr, Map, Op, Space, Ty};
use super::mem::{Data, Mem};

/// Offsets of all elements of `dims` under strides.
fn walk(dims: &[i64], strides: &[i64]) -> Vec<i64> {
    let m = Mem {
        space: Space::Stack,
        bits: 0,
        base: 0,
        elem: Elem::Int(8),
        dims: dims.to_vec(),
        strides: strides.to_vec(),
    };
    m.offsets(dims).unwrap_or_default()
}

fn dims_of(t: Option<&Ty>) -> Run<&[i64]> {
    match t {
        Some(Ty::Vector { dims, .. }) => Ok(dims),
        _ => Err("a vector is wanted".to_string()),
    }
}

fn data(v: &V) -> Run<Arc<Data>> {
    Ok(match v {
        V::T(d) => d.clone(),
        V::F(x) => Arc::new(Data::F(vec![*x])),
        V::I(x) => Arc::new(Data::I(vec![*x])),
        _ => return Err("a vector is wanted".to_string()),
    })
}

impl Core<'_, '_, '_> {
    /// The memory that a transfer touches, for a vector of dims, and the elements that are inside.
    fn place(&self, op: &Op, m: &Mem, at: &[V], dims: &[i64], mask: Option<&V>) -> Run<(Mem, Vec<bool>)> {
        let name = op.attr("permutation_map").unwrap_or("");
        let identity;
        let map = match self.program.maps.get(name) {
            Some(m) => m,
            None => {
                let lead = m.dims.len() - dims.len().min(m.dims.len());
                identity = Map { dims: m.dims.len(), results: (lead..m.dims.len()).map(Expr::Dim).collect() };
                &identity
            }
        };
        let at = at.iter().map(int).collect::<Run<Vec<i64>>>()?;
        let far: i64 = at.iter().zip(&m.strides).map(|(i, s)| i * s).sum();
        let source: Vec<Option<usize>> =
            map.results.iter().map(|e| if let Expr::Dim(d) = e { Some(*d) } else { None }).collect();
        let strides: Vec<i64> = source.iter().map(|d| d.map_or(0, |d| m.strides[d])).collect();
        let n = dims.iter().product::<i64>() as usize;
        let mut inside = vec![true; n];
        for (k, d) in source.iter().enumerate() {
            let Some(d) = *d else { continue };
            let room = m.dims[d] - at[d];
            if room >= dims[k] {
                continue;
            }
            let each: i64 = dims[k + 1..].iter().product();
            inside.iter_mut().enumerate().for_each(|(i, x)| *x &= (i as i64 / each.max(1)) % dims[k] < room);
        }
        if let Some(mask) = mask {
            let Data::I(bits) = &*data(mask)? else { return Err("a mask".to_string()) };
            inside.iter_mut().zip(bits).for_each(|(x, b)| *x &= b & 1 != 0);
        }
        let bits = m.bits + far * m.elem.bits();
        Ok((Mem { bits, dims: dims.to_vec(), strides, ..m.clone() }, inside))
    }

    /// Notes an access to those elements of a vector's memory that are inside.
    fn touch_inside(&mut self, write: bool, m: &Mem, inside: &[bool]) {
        let at = walk(&m.dims, &m.strides);
        let used = || at.iter().zip(inside).filter(|x| *x.1).map(|x| *x.0);
        if let (Some(low), Some(high), Space::Ub) = (used().min(), used().max(), m.space) {
            let e = m.elem.bits();
            self.pipes.access(1, write, (m.bits + low * e) >> 3, (m.bits + (high + 1) * e + 7) >> 3);
        }
    }

    /// The places that an operation names in an attribute of its own.
    fn second_places(&self, op: &Op) -> Run<Option<Vec<i64>>> {
        let Some(text) = op.attr("secondary_index") else { return Ok(None) };
        let v = match op.value.get() {
            Some(v) => v,
            None => {
                let ty = text.rsplit_once(" : ").map(|x| Ty::parse(x.1)).ok_or("a type")?;
                let v = constant(text, &ty)?;
                op.value.get_or_init(|| v)
            }
        };
        match v {
            V::T(d) => match &**d {
                Data::I(i) => Ok(Some(i.clone())),
                Data::F(_) => Err("indices".to_string()),
            },
            _ => Err("indices".to_string()),
        }
    }

    /// An operation on vectors.
    pub fn vector(&mut self, op: &Op, name: &str, v: &[V]) -> Run<V> {
        let me = self.me;
        let list = |d: Data| V::T(Arc::new(d));
        Ok(match name {
            "transfer_read" | "load" | "maskedload" => {
                let segment = |k: usize| op.ints("operandSegmentSizes").get(k).copied().unwrap_or(0) as usize;
                let dims = dims_of(op.to.first())?.to_vec();
                let m = mem(&v[0])?.clone();
                let (n, masked) = match name {
                    "transfer_read" => (segment(1), segment(3) > 0),
                    "load" => (v.len() - 1, false),
                    _ => (v.len() - 3, true),
                };
                let mask =
                    if masked { v.get(if name == "maskedload" { n + 1 } else { n + 2 }) } else { None };
                let outer = self.mask.clone().map(V::T);
                let mask = mask.or(outer.as_ref());
                let pad = match name {
                    "transfer_read" => Some(data(&v[n + 1])?),
                    "maskedload" => Some(data(&v[n + 2])?),
                    _ => None,
                };
                let (m, inside) = self.place(op, &m, &v[1..=n], &dims, mask)?;
                self.touch_inside(false, &m, &inside);
                if inside.iter().all(|&x| x) {
                    return Ok(list(self.storage()?.read(me, &m, &dims)?));
                }
                // What is outside is not touched.
                let pad = pad.ok_or("a read outside of memory")?;
                let at = walk(&m.dims, &m.strides);
                let mut out = pad.splat(0, inside.len());
                for (k, o) in at.into_iter().enumerate().filter(|(k, _)| inside[*k]) {
                    let one =
                        Mem { bits: m.bits + o * m.elem.bits(), dims: vec![], strides: vec![], ..m.clone() };
                    match (first(self.storage()?.read(me, &one, &[])?)?, &mut out) {
                        (V::F(x), Data::F(d)) => d[k] = x,
                        (V::I(x), Data::I(d)) => d[k] = x,
                        _ => {}
                    }
                }
                list(out)
            }
            "transfer_write" | "store" | "maskedstore" => {
                let segment = |k: usize| op.ints("operandSegmentSizes").get(k).copied().unwrap_or(0) as usize;
                let (at, n, mask, value) = match name {
                    "transfer_write" => {
                        (1, segment(2), if segment(3) > 0 { v.get(2 + segment(2)) } else { None }, &v[0])
                    }
                    "store" => (1, v.len() - 2, None, &v[0]),
                    _ => (0, v.len() - 3, v.get(v.len() - 2), &v[v.len() - 1]),
                };
                let dims = match &op.from[if name == "maskedstore" { v.len() - 1 } else { 0 }] {
                    Ty::Vector { dims, .. } => dims.clone(),
                    _ => return Err("a vector is wanted".to_string()),
                };
                let m = mem(&v[at])?.clone();
                let outer = self.mask.clone().map(V::T);
                let mask = mask.or(outer.as_ref());
                let (m, inside) = self.place(op, &m, &v[at + 1..at + 1 + n], &dims, mask)?;
                self.touch_inside(true, &m, &inside);
                let d = data(value)?;
                if inside.iter().all(|&x| x) {
                    self.storage()?.write(me, &m, &d)?;
                    return Ok(V::None);
                }
                let at = walk(&m.dims, &m.strides);
                for (k, o) in at.into_iter().enumerate().filter(|(k, _)| inside[*k]) {
                    let one =
                        Mem { bits: m.bits + o * m.elem.bits(), dims: vec![], strides: vec![], ..m.clone() };
                    self.storage()?.write(me, &one, &d.pick(std::iter::once(k)))?;
                }
                V::None
            }
            "constant_mask" | "create_mask" => {
                let dims = dims_of(op.to.first())?;
                let sizes = match name {
                    "create_mask" => v.iter().map(int).collect::<Run<Vec<i64>>>()?,
                    _ => op.ints("mask_dim_sizes").to_vec(),
                };
                let n = dims.iter().product::<i64>();
                let set = |k: i64| {
                    let mut rest = k;
                    dims.iter().zip(&sizes).rev().all(|(&d, &s)| {
                        let i = rest % d;
                        rest /= d;
                        i < s
                    })
                };
                list(Data::I((0..n).map(|k| set(k).into()).collect()))
            }
            "shape_cast" | "bitcast" if op.from[0].elem() == op.to[0].elem() => list((*data(&v[0])?).clone()),
            "broadcast" | "splat" => {
                let dims = dims_of(op.to.first())?;
                let from: Vec<i64> = match &op.from[0] {
                    Ty::Vector { dims, .. } => dims.clone(),
                    _ => Vec::new(),
                };
                let lead = dims.len() - from.len();
                let (mut s, mut strides) = (1, vec![0; dims.len()]);
                for (k, &n) in from.iter().enumerate().rev() {
                    strides[lead + k] = if n == dims[lead + k] { s } else { 0 };
                    s *= n;
                }
                list(data(&v[0])?.pick(walk(dims, &strides).into_iter().map(|i| i as usize)))
            }
            "interleave" => {
                let (a, b) = (data(&v[0])?, data(&v[1])?);
                let n = a.len();
                list(joined(&a, &b)?.pick((0..2 * n).map(|k| k / 2 + k % 2 * n)))
            }
            "transpose" => list(permuted(&*data(&v[0])?, dims_of(op.from.first())?, op.ints("permutation"))),
            "reduction" => {
                let mut x = data(&v[0])?;
                let kind = op.word("kind").unwrap_or("");
                let e = op.from[0].elem().ok_or("a type")?;
                if let Some(mask) = &self.mask {
                    let Data::I(bits) = &**mask else { return Err("a mask".to_string()) };
                    let set = (0..x.len()).filter(|&k| bits.get(k).is_some_and(|b| b & 1 != 0));
                    x = Arc::new(x.pick(set));
                }
                if x.len() == 0 {
                    return Ok(v.get(1).cloned().unwrap_or(V::None));
                }
                // The start value is left out where the operation says so.
                let merged = v.len() > 1 && !op.attrs.contains_key("withoutInitMergeOp");
                let all = if merged { joined(&x, &*data(&v[1])?)? } else { (*x).clone() };
                let n = all.len() as i64;
                first(reduce(kind, &all, None, &[n], &[0], e)?.0)?
            }
            "multi_reduction" => {
                let dims = dims_of(op.from.first())?;
                let e = op.from[0].elem().ok_or("a type")?;
                let kind = op.word("kind").unwrap_or("");
                let r = reduce(kind, &*data(&v[0])?, None, dims, op.ints("reduction_dims"), e)?.0;
                let acc = data(&v[1])?;
                let n = r.len();
                let both = joined(&r, &acc)?;
                let out = reduce(kind, &both, None, &[2, n as i64], &[0], e)?.0;
                if matches!(op.to[0], Ty::Scalar(_)) { first(out)? } else { list(out) }
            }
            "extract" => {
                let dims = dims_of(op.from.first())?;
                let mut at = op.ints("static_position").to_vec();
                let mut rest = v[1..].iter();
                for i in &mut at {
                    if *i == i64::MIN {
                        *i = int(rest.next().ok_or("an index")?)?;
                    }
                }
                let each: i64 = dims[at.len()..].iter().product();
                let mut from = 0;
                for (&i, &n) in at.iter().zip(dims) {
                    from = from * n + i;
                }
                let (from, each) = ((from * each) as usize, each as usize);
                let part = data(&v[0])?.pick(from..from + each);
                if matches!(op.to[0], Ty::Scalar(_)) { first(part)? } else { list(part) }
            }
            "extractelement" => {
                let at = v.get(1).map(int).transpose()?.unwrap_or(0) as usize;
                first(data(&v[0])?.pick(std::iter::once(at)))?
            }
            "step" => list(Data::I((0..dims_of(op.to.first())?[0]).collect())),
            "gather" => {
                let m = mem(&v[0])?.clone();
                let n = v.len() - 4;
                let (index, mask, pad) = (data(&v[n + 1])?, data(&v[n + 2])?, data(&v[n + 3])?);
                let (Data::I(index), Data::I(mask)) = (&*index, &*mask) else {
                    return Err("indices".to_string());
                };
                let far: i64 =
                    v[1..=n].iter().zip(&m.strides).map(|(i, s)| Ok(int(i)? * s)).sum::<Run<i64>>()?;
                // Elements of a byte: these are the places of every second one, from the first on, the others stand apart.
                let other = self.second_places(op)?;
                let narrow = op.from.get(n + 1).and_then(Ty::elem) == Some(Elem::Int(16));
                let place = |k: usize| -> Option<i64> {
                    let i = match &other {
                        Some(other) if k % 2 == 1 => *other.get(k / 2)?,
                        Some(_) => *index.get(k / 2)?,
                        None => *index.get(k)?,
                    };
                    Some(if narrow { i & 0xffff } else { i })
                };
                let step = m.strides.last().copied().unwrap_or(1);
                let mut out = (*pad).clone();
                for (k, set) in mask.iter().enumerate() {
                    if set & 1 == 0 {
                        continue;
                    }
                    let i = place(k).ok_or("too few indices")?;
                    let bits = m.bits + (far + i * step) * m.elem.bits();
                    let one = Mem { bits, dims: vec![], strides: vec![], ..m.clone() };
                    match (first(self.storage()?.read(me, &one, &[])?)?, &mut out) {
                        (V::F(x), Data::F(d)) => d[k] = x,
                        (V::I(x), Data::I(d)) => d[k] = x,
                        _ => {}
                    }
                }
                list(out)
            }
            _ => return Err("an operation that is not known".to_string()),
        })
    }
}

fn joined(a: &Data, b: &Data) -> Run<Data> {
    Ok(match (a, b) {
        (Data::F(a), Data::F(b)) => Data::F(a.iter().chain(b).copied().collect()),
        (Data::I(a), Data::I(b)) => Data::I(a.iter().chain(b).copied().collect()),
        _ => return Err("vectors of different kinds".to_string()),
    })
}
