//! One core running its function.

use std::sync::{Arc, Condvar, MutexGuard};

use super::ir::{Elem, Func, Op, Program, Region, Slot, Space, Ty};
use super::mem::{Data, Mem, Storage, round_to, wrap};
use super::race::Pipes;
use super::scalar::Fun;

/// A value.
#[derive(Clone, Debug)]
pub enum V {
    /// Not set.
    None,
    /// An integer.
    I(i64),
    /// A float.
    F(f64),
    /// Memory.
    M(Arc<Mem>),
    /// A vector's elements in row-major order.
    T(Arc<Data>),
}

/// What a matrix core and its vector cores share.
pub struct Shared<'a> {
    /// Memory.
    pub storage: Storage<'a>,
    /// Flags that the matrix core has set for each vector core, and each vector core for the matrix core, and that are not waited for.
    pub flags: [Vec<[i64; 16]>; 2],
    /// What each core waits for; `None` while it runs.
    pub waiting: Vec<Option<usize>>,
    /// Cores that have not ended.
    pub live: Vec<bool>,
    /// Set when some core has failed.
    pub failed: bool,
}

impl Shared<'_> {
    /// The flags that a core waits for: those of all vector cores, for the matrix core, which comes last.
    pub fn flags_for(&mut self, core: usize) -> &mut [[i64; 16]] {
        let [down, up] = &mut self.flags;
        if core == down.len() { up } else { &mut down[core..=core] }
    }
}

/// A core at work. Cores of a group take turns: one runs until it waits for another.
pub struct Core<'p, 'a, 's> {
    pub program: &'p Program,
    pub turn: &'s Condvar,
    pub guard: Option<MutexGuard<'s, Shared<'a>>>,
    /// Which: vector cores from 0, then the matrix core.
    pub me: usize,
    /// Number of vector cores.
    pub vectors: usize,
    pub block: i64,
    pub pipes: Pipes,
    pub stack: usize,
    /// The mask of the operation at work.
    pub mask: Option<Arc<Data>>,
    pub steps: u64,
}

pub type Run<T> = Result<T, String>;

/// How a block ended.
pub enum Flow {
    /// At its end, with values given back.
    Yield(Vec<V>),
    /// With a condition, and values.
    Condition(bool, Vec<V>),
    /// The function returns.
    Return(Vec<V>),
}

/// Most operations of one core in one block of the grid.
const MOST_STEPS: u64 = 4_000_000_000;

impl<'p, 'a, 's> Core<'p, 'a, 's> {
    pub fn storage(&mut self) -> Run<&mut Storage<'a>> {
        self.guard.as_mut().map(|g| &mut g.storage).ok_or_else(|| "the core is not running".to_string())
    }

    pub fn call(&mut self, f: &'p Func, args: Vec<V>) -> Run<Vec<V>> {
        let mut frame = vec![V::None; f.slots];
        for (&p, a) in f.body.params.iter().zip(args) {
            frame[p as usize] = a;
        }
        match self.block(&f.body, &mut frame)? {
            Flow::Return(v) | Flow::Yield(v) | Flow::Condition(_, v) => Ok(v),
        }
    }

    fn block(&mut self, r: &'p Region, frame: &mut Vec<V>) -> Run<Flow> {
        for op in &r.ops {
            if let Some(flow) = self.op(op, frame).map_err(|e| {
                if e.contains(" in line ") { e } else { format!("{e} in line {} ({})", op.line, op.name) }
            })? {
                return Ok(flow);
            }
        }
        Ok(Flow::Yield(Vec::new()))
    }

    fn region(&mut self, r: &'p Region, args: &[V], frame: &mut Vec<V>) -> Run<Flow> {
        for (&p, a) in r.params.iter().zip(args) {
            frame[p as usize] = a.clone();
        }
        self.block(r, frame)
    }

    fn op(&mut self, op: &'p Op, frame: &mut Vec<V>) -> Run<Option<Flow>> {
        self.steps += 1;
        if self.steps > MOST_STEPS {
            return Err("too many steps".to_string());
        }
        let vals = |frame: &[V], slots: &[Slot]| {
            slots.iter().map(|&s| frame[s as usize].clone()).collect::<Vec<V>>()
        };
        let (dialect, name) = op.name.split_once('.').unwrap_or(("", &op.name));
        let results: Vec<V> = match (dialect, name) {
            ("arith" | "math" | "mathExt", _) => vec![self.arith(op, name, &vals(frame, &op.operands))?],
            ("scf", "yield") | ("scope", "return") => {
                return Ok(Some(Flow::Yield(vals(frame, &op.operands))));
            }
            ("scf", "condition") => {
                let v = vals(frame, &op.operands);
                return Ok(Some(Flow::Condition(int(&v[0])? != 0, v[1..].to_vec())));
            }
            ("func", "return") => return Ok(Some(Flow::Return(vals(frame, &op.operands)))),
            ("scf", "for") => {
                let v = vals(frame, &op.operands);
                let (lo, hi, step) = (int(&v[0])?, int(&v[1])?, int(&v[2])?);
                if step < 1 {
                    return Err(format!("a step of {step}"));
                }
                let mut carried = v[3..].to_vec();
                let mut i = lo;
                while i < hi {
                    let mut args = vec![V::I(i)];
                    args.append(&mut carried);
                    match self.region(&op.regions[0], &args, frame)? {
                        Flow::Yield(v) => carried = v,
                        other => return Ok(Some(other)),
                    }
                    i = i.checked_add(step).ok_or("a loop's variable overflows")?;
                }
                carried
            }
            ("scf", "if") => {
                let c = int(&frame[op.operands[0] as usize])? != 0;
                match op.regions.get(usize::from(!c)) {
                    Some(r) => match self.region(r, &[], frame)? {
                        Flow::Yield(v) => v,
                        other => return Ok(Some(other)),
                    },
                    None => Vec::new(),
                }
            }
            ("scf", "while") => {
                let mut carried = vals(frame, &op.operands);
                loop {
                    match self.region(&op.regions[0], &carried, frame)? {
                        Flow::Condition(go, v) => {
                            carried = v;
                            if !go {
                                break;
                            }
                        }
                        other => return Ok(Some(other)),
                    }
                    match self.region(&op.regions[1], &carried, frame)? {
                        Flow::Yield(v) => carried = v,
                        other => return Ok(Some(other)),
                    }
                }
                carried
            }
            ("func", "call") => {
                let callee = op.attr("callee").unwrap_or("").trim_start_matches('@').trim_matches('"');
                let f = self.program.funcs.iter().find(|f| f.name == callee);
                let f =
                    f.filter(|f| !f.body.ops.is_empty()).ok_or_else(|| format!("no function {callee}"))?;
                let args = vals(frame, &op.operands);
                self.enter(op);
                let out = self.call(f, args);
                self.pipes.inside = false;
                out?
            }
            ("affine", "apply" | "min" | "max") => {
                let name = op.attr("map").unwrap_or("");
                let map = self.program.maps.get(name).ok_or_else(|| format!("no map {name}"))?;
                let args = vals(frame, &op.operands).iter().map(int).collect::<Run<Vec<i64>>>()?;
                let (d, s) = args.split_at(map.dims.min(args.len()));
                let all: Option<Vec<i64>> = map.results.iter().map(|e| e.eval(d, s)).collect();
                let all = all.ok_or("an affine expression overflows")?;
                let v = if name_is(op, "max") { all.iter().max() } else { all.iter().min() };
                vec![V::I(*v.ok_or("an empty map")?)]
            }
            ("memref", _) => self.memref(op, name, &vals(frame, &op.operands))?,
            ("vector", "mask") => {
                let V::T(mask) = frame[op.operands[0] as usize].clone() else {
                    return Err("a mask".to_string());
                };
                let outer = self.mask.replace(mask);
                let flow = self.region(&op.regions[0], &[], frame);
                self.mask = outer;
                match flow? {
                    Flow::Yield(v) => v,
                    other => return Ok(Some(other)),
                }
            }
            ("vector", "yield") => return Ok(Some(Flow::Yield(vals(frame, &op.operands)))),
            ("vector", "deinterleave") => {
                let V::T(x) = &frame[op.operands[0] as usize] else { return Err("a vector".to_string()) };
                let every = |from: usize| V::T(Arc::new(x.pick((from..x.len()).step_by(2))));
                vec![every(0), every(1)]
            }
            ("vector", _) => vec![self.vector(op, name, &vals(frame, &op.operands))?],
            ("builtin", "unrealized_conversion_cast") => {
                vec![shaped(frame[op.operands[0] as usize].clone(), &op.to[0])?]
            }
            ("annotation" | "llvm", _) => Vec::new(),
            ("hivm", _) => {
                let v = vals(frame, &op.operands);
                self.hivm(op, name.trim_start_matches("hir."), &v, frame)?
            }
            _ => return Err("an operation that is not known".to_string()),
        };
        if results.len() < op.results.len() {
            return Err(format!("{} results of {}", results.len(), op.results.len()));
        }
        for (&r, v) in op.results.iter().zip(results) {
            frame[r as usize] = v;
        }
        Ok(None)
    }

    /// Elementwise on scalars and vectors.
    fn arith(&mut self, op: &Op, name: &str, v: &[V]) -> Run<V> {
        if name == "constant" {
            if let Some(v) = op.value.get() {
                return Ok(v.clone());
            }
            let v = constant(op.attr("value").unwrap_or(""), &op.to[0])?;
            return Ok(op.value.get_or_init(|| v).clone());
        }
        // A choice of memory.
        if let ("select", [c, V::M(a), V::M(b)]) = (name, v) {
            return Ok(V::M(if int(c)? != 0 { a.clone() } else { b.clone() }));
        }
        let to = op.to[0].elem().ok_or("a type that is not known")?;
        let fun = match op.fun.get() {
            Some(f) => f,
            None => {
                let from = op.from[0].elem().ok_or("a type that is not known")?;
                let f = Fun::of(op, name, from, to)?;
                op.fun.get_or_init(|| f)
            }
        };
        let count = v.iter().find_map(|x| if let V::T(t) = x { Some(t.len()) } else { None });
        let (mut f, mut i) = ([0.0; 3], [0; 3]);
        if v.len() > f.len() {
            return Err("too many operands".to_string());
        }
        for (j, x) in v.iter().enumerate() {
            match x {
                V::F(x) => f[j] = *x,
                V::I(x) => i[j] = *x,
                V::T(_) => {}
                _ => return Err("an operand that is no number".to_string()),
            }
        }
        let Some(n) = count else { return Ok(fun.apply(&f, &i)) };
        let (mut out_f, mut out_i) = (Vec::new(), Vec::new());
        if to.is_float() {
            out_f.reserve(n)
        } else {
            out_i.reserve(n)
        }
        for k in 0..n {
            for (j, x) in v.iter().enumerate() {
                if let V::T(t) = x {
                    match &**t {
                        Data::F(d) => f[j] = d[k],
                        Data::I(d) => i[j] = d[k],
                    }
                }
            }
            match fun.apply(&f, &i) {
                V::F(x) => out_f.push(x),
                V::I(x) => out_i.push(x),
                _ => {}
            }
        }
        Ok(V::T(Arc::new(if to.is_float() { Data::F(out_f) } else { Data::I(out_i) })))
    }

    fn memref(&mut self, op: &Op, name: &str, v: &[V]) -> Run<Vec<V>> {
        let source = || -> Run<&Mem> { mem(v.first().ok_or("no operand")?) };
        Ok(match name {
            "cast" | "memory_space_cast" => vec![v[0].clone()],
            "load" | "store" => {
                let at = usize::from(name == "store");
                let m = mem(&v[at])?;
                let m = one(m, &v[at + 1..])?;
                self.pipes.start(0);
                self.touch(0, name == "store", &m)?;
                let me = self.me;
                if name == "load" {
                    vec![first(self.storage()?.read(me, &m, &[])?)?]
                } else {
                    let d = match &v[0] {
                        V::F(x) => Data::F(vec![*x]),
                        x => Data::I(vec![int(x)?]),
                    };
                    self.storage()?.write(me, &m, &d)?;
                    Vec::new()
                }
            }
            "reinterpret_cast" => {
                let m = source()?;
                let mut rest = v[1..].iter();
                let off = mixed(op, "static_offsets", &mut rest)?;
                let dims = mixed(op, "static_sizes", &mut rest)?;
                let strides = mixed(op, "static_strides", &mut rest)?;
                let bits = m.base + off.first().copied().unwrap_or(0) * m.elem.bits();
                vec![V::M(Arc::new(Mem { bits, dims, strides, ..m.clone() }))]
            }
            "subview" => {
                let m = source()?;
                let mut rest = v[1..].iter();
                let off = mixed(op, "static_offsets", &mut rest)?;
                let dims = mixed(op, "static_sizes", &mut rest)?;
                let steps = mixed(op, "static_strides", &mut rest)?;
                let far: i64 = off.iter().zip(&m.strides).map(|(o, s)| o * s).sum();
                let strides: Vec<i64> = steps.iter().zip(&m.strides).map(|(a, b)| a * b).collect();
                for ((&o, &n), (&step, &have)) in off.iter().zip(&dims).zip(steps.iter().zip(&m.dims)) {
                    if n > 0 && (o < 0 || o + (n - 1) * step >= have) {
                        return Err(format!("a part from {o} of {n} of a dim of {have}"));
                    }
                }
                let full = Mem { bits: m.bits + far * m.elem.bits(), dims, strides, ..m.clone() };
                vec![V::M(Arc::new(dropped(full, &op.to[0])))]
            }
            "collapse_shape" => {
                let m = source()?;
                let (mut dims, mut strides) = (Vec::new(), Vec::new());
                for group in groups(op) {
                    let n: i64 = group.iter().map(|&d| m.dims[d]).product();
                    let last = group.iter().rev().find(|&&d| m.dims[d] != 1).or(group.last());
                    dims.push(n);
                    strides.push(last.map_or(1, |&d| m.strides[d]));
                }
                vec![V::M(Arc::new(Mem { dims, strides, ..m.clone() }))]
            }
            "expand_shape" => {
                let m = source()?;
                let mut rest = v[1..].iter();
                let sizes = mixed(op, "static_output_shape", &mut rest)?;
                let mut strides = vec![1; sizes.len()];
                for (k, group) in groups(op).iter().enumerate() {
                    let mut s = m.strides.get(k).copied().unwrap_or(1);
                    for &d in group.iter().rev() {
                        strides[d] = s;
                        s *= sizes[d];
                    }
                }
                vec![V::M(Arc::new(Mem { dims: sizes, strides, ..m.clone() }))]
            }
            "view" => {
                let m = source()?;
                let bits = m.bits + int(&v[1])? * 8;
                vec![V::M(Arc::new(typed(&op.to[0], m.space, bits, &v[2..])?))]
            }
            "alloca" | "alloc" => {
                let m = typed(&op.to[0], Space::Stack, self.stack as i64 * 8, v)?;
                self.stack += (((m.len() * m.elem.bits() + 7) / 8) as usize).next_multiple_of(8);
                let (me, size) = (self.me, self.stack);
                self.storage()?.stack[me].resize(size, 0xff);
                vec![V::M(Arc::new(m))]
            }
            "dealloc" => Vec::new(),
            "extract_strided_metadata" => {
                let m = source()?;
                let base = Mem { bits: m.base, dims: Vec::new(), strides: Vec::new(), ..m.clone() };
                let offset = (m.bits - m.base) / m.elem.bits();
                let numbers =
                    std::iter::once(offset).chain(m.dims.iter().copied()).chain(m.strides.iter().copied());
                std::iter::once(V::M(Arc::new(base))).chain(numbers.map(V::I)).collect()
            }
            "dim" => vec![V::I(*source()?.dims.get(int(&v[1])? as usize).ok_or("no such dim")?)],
            "extract_aligned_pointer_as_index" => vec![V::I(source()?.base / 8)],
            "copy" => {
                let (a, b) = (mem(&v[0])?.clone(), mem(&v[1])?.clone());
                self.copy(0, &a, &b)?;
                Vec::new()
            }
            _ => return Err("an operation that is not known".to_string()),
        })
    }

    /// Copies elements between memories of equal dims.
    pub fn copy(&mut self, pipe: usize, from: &Mem, to: &Mem) -> Run<()> {
        self.touch(pipe, false, from)?;
        self.touch(pipe, true, to)?;
        let me = self.me;
        let s = self.storage()?;
        let d = s.read(me, from, &to.dims)?;
        s.write(me, to, &d)
    }

    /// Notes an access for the check of races.
    pub fn touch(&mut self, pipe: usize, write: bool, m: &Mem) -> Run<()> {
        if m.space == Space::Ub
            && let Some((from, to)) = m.span()
        {
            self.pipes.access(pipe, write, from, to);
        }
        Ok(())
    }

    /// A call of a vector function is one operation of the vector pipe on what it is given.
    fn enter(&mut self, op: &Op) {
        if !op.attrs.contains_key("hivm.vector_function") {
            return;
        }
        self.pipes.start(1);
        self.pipes.inside = true;
    }

    /// Waits until a flag has been set for this core.
    pub fn wait_flag_of_others(&mut self, flag: usize) -> Run<()> {
        let (me, turn) = (self.me, self.turn);
        loop {
            let mut g = self.guard.take().ok_or("the core is not running")?;
            if g.failed {
                self.guard = Some(g);
                return Err("another core failed".to_string());
            }
            if g.flags_for(me).iter().all(|f| f[flag] > 0) {
                g.flags_for(me).iter_mut().for_each(|f| f[flag] -= 1);
                g.waiting[me] = None;
                self.guard = Some(g);
                return Ok(());
            }
            g.waiting[me] = Some(flag);
            let stuck = (0..g.live.len()).all(|c| match g.waiting[c] {
                _ if !g.live[c] => true,
                Some(f) => g.flags_for(c).iter().any(|set| set[f] == 0),
                None => false,
            });
            if stuck {
                g.failed = true;
                turn.notify_all();
                self.guard = Some(g);
                return Err(format!("all cores wait: core {me} for flag {flag}"));
            }
            turn.notify_all();
            self.guard = Some(turn.wait(g).map_err(|_| "a core panicked".to_string())?);
        }
    }
}

fn name_is(op: &Op, end: &str) -> bool {
    op.name.ends_with(end)
}

pub fn int(v: &V) -> Run<i64> {
    match v {
        V::I(i) => Ok(*i),
        _ => Err("an integer is wanted".to_string()),
    }
}

pub fn mem(v: &V) -> Run<&Mem> {
    match v {
        V::M(m) => Ok(m),
        _ => Err("memory is wanted".to_string()),
    }
}

/// The only element.
pub fn first(d: Data) -> Run<V> {
    match d {
        Data::F(v) => v.first().map(|&x| V::F(x)),
        Data::I(v) => v.first().map(|&x| V::I(x)),
    }
    .ok_or_else(|| "no elements".to_string())
}

/// A scalar as a vector of one element, and back.
fn shaped(v: V, to: &Ty) -> Run<V> {
    Ok(match (v, to) {
        (V::F(x), Ty::Vector { .. }) => V::T(Arc::new(Data::F(vec![x]))),
        (V::I(x), Ty::Vector { .. }) => V::T(Arc::new(Data::I(vec![x]))),
        (V::T(t), Ty::Scalar(_)) => first((*t).clone())?,
        (v, _) => v,
    })
}

/// The element at indices as memory of no dims.
fn one(m: &Mem, at: &[V]) -> Run<Mem> {
    let mut bits = m.bits;
    for ((i, &s), &n) in at.iter().zip(&m.strides).zip(&m.dims) {
        let i = int(i)?;
        // The length of device memory is not known from its pointer.
        if i < 0 || m.space != Space::Gm && i >= n {
            return Err(format!("index {i} of a dim of {n}"));
        }
        bits += i * s * m.elem.bits();
    }
    Ok(Mem { bits, dims: Vec::new(), strides: Vec::new(), ..m.clone() })
}

const DYNAMIC: i64 = i64::MIN;

/// Static numbers with the run-time ones in their places.
fn mixed(op: &Op, attr: &str, rest: &mut std::slice::Iter<'_, V>) -> Run<Vec<i64>> {
    let one = |n: i64| if n == DYNAMIC { int(rest.next().ok_or("too few operands")?) } else { Ok(n) };
    op.ints(attr).iter().copied().map(one).collect()
}

fn groups(op: &Op) -> Vec<Vec<usize>> {
    let text = op.attr("reassociation").unwrap_or("");
    let inner = text.trim().trim_start_matches('[').trim_end_matches(']');
    if text.trim() == "[]" {
        return Vec::new();
    }
    let list = |s: &str| s.split(',').filter_map(|w| w.trim().parse().ok()).collect();
    inner
        .split(']')
        .map(|s| list(s.trim_matches(|c: char| !c.is_ascii_digit())))
        .filter(|g: &Vec<usize>| !g.is_empty())
        .collect()
}

/// A part whose type has fewer dims has lost dims of 1.
fn dropped(mut m: Mem, ty: &Ty) -> Mem {
    let Ty::MemRef { dims, .. } = ty else { return m };
    let mut k = 0;
    while m.dims.len() > dims.len() && k < m.dims.len() {
        let want = dims.get(k).copied().flatten();
        if m.dims[k] == 1 && want != Some(1) || k >= dims.len() {
            m.dims.remove(k);
            m.strides.remove(k);
        } else {
            k += 1;
        }
    }
    m
}

/// Memory of a type at an address.
pub fn typed(ty: &Ty, space: Space, bits: i64, sizes: &[V]) -> Run<Mem> {
    let Ty::MemRef { elem, dims, strides, .. } = ty else {
        return Err("a memory type is wanted".to_string());
    };
    let mut given = sizes.iter();
    let mut own = Vec::new();
    for d in dims {
        own.push(match d {
            Some(n) => *n,
            None => int(given.next().ok_or("a size is missing")?)?,
        });
    }
    let mut dense = vec![1; own.len()];
    for i in (0..own.len().saturating_sub(1)).rev() {
        dense[i] = dense[i + 1] * own[i + 1];
    }
    let strides = match strides {
        Some(s) => s.iter().zip(&dense).map(|(s, d)| s.unwrap_or(*d)).collect(),
        None => dense,
    };
    Ok(Mem { space, bits, base: bits, elem: *elem, dims: own, strides })
}

/// A constant whose elements are written as the bytes of memory.
fn from_bytes(hex: &str, elem: Elem, n: usize) -> Run<V> {
    let size = (elem.bits() as usize).div_ceil(8) * 2;
    let one = |k: usize| -> Run<u64> {
        let text = hex.get(k * size..(k + 1) * size).ok_or("a constant that is too short")?;
        let bytes = (0..size / 2).rev().map(|i| &text[2 * i..2 * i + 2]);
        u64::from_str_radix(&bytes.collect::<String>(), 16).map_err(|_| "a constant".to_string())
    };
    let codes = (0..n).map(one).collect::<Run<Vec<u64>>>()?;
    Ok(V::T(Arc::new(if elem.is_float() {
        Data::F(codes.into_iter().map(|c| super::mem::decode(elem, c)).collect())
    } else {
        Data::I(codes.into_iter().map(|c| wrap(elem, c as i64)).collect())
    })))
}

/// A constant's value.
pub fn constant(text: &str, ty: &Ty) -> Run<V> {
    let elem = ty.elem().ok_or("a type that is not known")?;
    let literal = |s: &str| -> Run<V> {
        let s = s.trim();
        let bad = || format!("the constant '{s}'");
        if elem.is_float() {
            let x = match s.strip_prefix("0x") {
                Some(h) => {
                    let code = u64::from_str_radix(h, 16).map_err(|_| bad())?;
                    match elem {
                        Elem::F32 => f64::from(f32::from_bits(code as u32)),
                        e => super::mem::decode(e, code),
                    }
                }
                None => round_to(elem, s.parse().map_err(|_| bad())?),
            };
            return Ok(V::F(x));
        }
        Ok(V::I(match s {
            "true" => 1,
            "false" => 0,
            s => wrap(elem, s.parse::<i128>().map_err(|_| bad())? as i64),
        }))
    };
    let Ty::Vector { dims, .. } = ty else { return literal(text.split(" : ").next().unwrap_or("")) };
    let n = dims.iter().product::<i64>() as usize;
    let body = text.trim().strip_prefix("dense<").and_then(|t| t.split('>').next()).ok_or("a constant")?;
    if let Some(hex) = body.trim().strip_prefix("\"0x").and_then(|h| h.strip_suffix('"')) {
        return from_bytes(hex, elem, n);
    }
    let words: Vec<&str> = body.split(|c: char| "[], ".contains(c)).filter(|w| !w.is_empty()).collect();
    let all = words.into_iter().map(literal).collect::<Run<Vec<V>>>()?;
    let pick = |k: usize| if all.len() == 1 { &all[0] } else { &all[k.min(all.len() - 1)] };
    if all.is_empty() {
        return Err("an empty constant".to_string());
    }
    Ok(V::T(Arc::new(if elem.is_float() {
        Data::F((0..n).map(|k| if let V::F(x) = pick(k) { *x } else { 0.0 }).collect())
    } else {
        Data::I((0..n).map(|k| if let V::I(x) = pick(k) { *x } else { 0 }).collect())
    })))
}
