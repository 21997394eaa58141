//! Loads and stores of blocks.

use super::emit::{self, Reg, V, as_int, int};
use super::layout::{Chunk, Geometry, Layout};
use super::{Fun, Result, Tile, Value, View};
use crate::target;
use std::collections::HashMap;
use tongtu_tensor::{DType, Num};
use tongtu_tile::{Factor, Inst, TileMap, Val};

/// Steps along each view dim from the block's origin to an element.
type Steps = Vec<i64>;

/// A block access being written.
pub(super) struct Access {
    view: View,
    index: Vec<V>,
    /// View dims that must be checked.
    checked: Vec<usize>,
    pub(super) geo: Geometry,
    /// Steps of each lane of each part.
    lanes: Vec<Vec<Steps>>,
    /// Element index of the block's origin in the buffer.
    origin: V,
    /// Address of the block's origin, for types of whole bytes.
    base: V,
    /// Bytes of an element; 0 for less than a byte.
    size: i64,
    /// Known sums of steps times strides, in elements.
    deltas: HashMap<Steps, V>,
    /// Known conditions.
    bounds: HashMap<(usize, Vec<i64>, usize), V>,
}

/// Rows in memory that the matrix unit can read: the first one's address and the bytes from one to the next.
#[derive(Debug, Clone)]
pub(super) struct Direct {
    pub(super) ptr: V,
    pub(super) stride: V,
}

/// How the lanes of a part lie in memory, counted in elements from its first lane.
enum Pattern {
    /// One after another.
    Dense,
    /// All on one element.
    Same,
    /// At these distances, none negative, all near.
    Near(Vec<i64>),
    /// Anywhere.
    Far,
}

/// Steps of the tile element with these coordinates.
fn steps(map: &TileMap, at: &[usize], rank: usize) -> Steps {
    let mut out = vec![0; rank];
    for (factors, &t) in map.0.iter().zip(at) {
        let mut rest = t;
        for f in factors.iter().rev() {
            if let Some(d) = f.dim {
                out[d] += (rest % f.size) as i64 * f.step;
            }
            rest /= f.size;
        }
    }
    out
}

/// Least and greatest step along view dim `d`.
fn reach(map: &TileMap, d: usize) -> (i64, i64) {
    let (mut low, mut high) = (0, 0);
    for f in map.0.iter().flatten().filter(|f: &&Factor| f.dim == Some(d)) {
        let far = (f.size as i64 - 1) * f.step;
        low += far.min(0);
        high += far.max(0);
    }
    (low, high)
}

impl Fun<'_> {
    /// Loads one element of a type of whole bytes, or of a scalar argument's slot.
    pub(super) fn load_element(&mut self, dtype: DType, at: &V) -> Result<V> {
        let reg = self.memory(dtype);
        let x = self.def(format_args!("load {}, ptr {at}, align {}", reg.ty(1), reg.bytes()));
        Ok(self.read_in(dtype, 1, &x))
    }

    /// How an element lies in memory, for types of whole bytes.
    pub(super) fn memory(&self, dtype: DType) -> Reg {
        match dtype {
            DType::Bool => Reg::I8,
            DType::F16 if !target::moves_f16(self.chip) => Reg::I16,
            d => Reg::of(d),
        }
    }

    /// A register value from what memory holds.
    pub(super) fn read_in(&mut self, dtype: DType, n: usize, x: &V) -> V {
        if dtype.is_bool() {
            return self.cmp("icmp ne", &Reg::I8.ty(n), x, &int(Reg::I8, 0, n));
        }
        if dtype.bits() < 8 {
            let code = self.bin("and", &Reg::I8.ty(n), x, &int(Reg::I8, (1 << dtype.bits()) - 1, n));
            return self.normal(dtype, n, &code);
        }
        self.conv("bitcast", &self.memory(dtype).ty(n), x, &Reg::of(dtype).ty(n))
    }

    pub(super) fn write_out(&mut self, dtype: DType, n: usize, x: &V) -> V {
        let op = if dtype.is_bool() { "zext" } else { "bitcast" };
        self.conv(op, &Reg::of(dtype).ty(n), x, &self.memory(dtype).ty(n))
    }

    fn access(
        &mut self,
        view: View,
        index: Vec<V>,
        map: &TileMap,
        inside: &[bool],
        layout: Layout,
    ) -> Access {
        let rank = view.dims.len();
        let shape = map.shape();
        let width = if layout == Layout::Elements { 1 } else { self.lanes };
        let mut geo = Geometry::new(&shape, width);
        if layout == Layout::Elements {
            geo.chunks = (0..geo.n).map(|start| Chunk { start, valid: 1, width: 1 }).collect();
        }
        let mut lanes = Vec::with_capacity(geo.parts());
        for part in 0..geo.parts() {
            let chunk = geo.chunk(part);
            let mut row = part / geo.chunks.len();
            let mut at = vec![0; shape.len()];
            for d in (0..shape.len().saturating_sub(1)).rev() {
                at[d] = row % shape[d];
                row /= shape[d];
            }
            let of = (0..chunk.valid).map(|lane| {
                if let Some(last) = at.last_mut() {
                    *last = chunk.start + lane;
                }
                steps(map, &at, rank)
            });
            lanes.push(of.collect());
        }
        let mut origin = view.offset.clone();
        for (at, stride) in index.iter().zip(&view.strides) {
            let far = self.imul(at, stride);
            origin = self.iadd(&origin, &far);
        }
        let size = view.buffer.dtype.byte_size().unwrap_or(0) as i64;
        let bytes = self.imul(&origin, &size.to_string().into());
        let base = self.offset(&view.buffer.ptr.clone(), &bytes);
        let checked = (0..rank).filter(|d| !inside[*d]).collect();
        Access {
            view,
            index,
            checked,
            geo,
            lanes,
            origin,
            base,
            size,
            deltas: HashMap::new(),
            bounds: HashMap::new(),
        }
    }

    /// Elements from the block's origin to the element at `steps`.
    fn delta(&mut self, a: &mut Access, steps: &Steps) -> V {
        if let Some(v) = a.deltas.get(steps) {
            return v.clone();
        }
        let mut sum: V = "0".into();
        for (d, s) in steps.iter().enumerate() {
            let far = self.imul(&s.to_string().into(), &a.view.strides[d]);
            sum = self.iadd(&sum, &far);
        }
        a.deltas.insert(steps.clone(), sum.clone());
        sum
    }

    /// Address of the element at `steps`, for types of whole bytes.
    fn address(&mut self, a: &mut Access, steps: &Steps) -> V {
        let delta = self.delta(a, steps);
        let bytes = self.imul(&delta, &a.size.to_string().into());
        self.offset(&a.base.clone(), &bytes)
    }

    /// Whether rows of a two-dimensional tile lie dense in memory, `group` of them side by side element by
    /// element, and equally far apart.
    pub(super) fn direct(&mut self, a: &mut Access, group: usize) -> Option<Direct> {
        let (rows, cuts) = (a.geo.rows, a.geo.chunks.len());
        if !a.checked.is_empty() || a.size == 0 || rows % group != 0 {
            return None;
        }
        let first = a.lanes[0][0].clone();
        let next = if rows > group { a.lanes[group * cuts][0].clone() } else { first.clone() };
        let step: Steps = next.iter().zip(&first).map(|(x, y)| x - y).collect();
        let strides: Vec<Option<i64>> = a.view.strides.iter().map(|s| as_int(s)).collect();
        for (part, lanes) in a.lanes.iter().enumerate() {
            let (row, start) = (part / cuts, a.geo.chunk(part).start);
            for (lane, at) in lanes.iter().enumerate() {
                // What is left after whole rows must be a known distance.
                let mut far = 0;
                for d in 0..at.len() {
                    let rest = at[d] - first[d] - (row / group) as i64 * step[d];
                    if rest != 0 {
                        far += rest * strides[d]?;
                    }
                }
                if far != ((start + lane) * group + row % group) as i64 {
                    return None;
                }
            }
        }
        let ptr = self.address(a, &first);
        let mut stride: V = "0".into();
        for (d, s) in step.iter().enumerate() {
            let far = self.imul(&(s * a.size).to_string().into(), &a.view.strides[d]);
            stride = self.iadd(&stride, &far);
        }
        Some(Direct { ptr, stride })
    }

    fn pattern(&self, a: &Access, part: usize) -> Pattern {
        let lanes = &a.lanes[part];
        let mut far = Vec::with_capacity(lanes.len());
        for steps in lanes {
            let mut sum = 0i64;
            for (d, (s, first)) in steps.iter().zip(&lanes[0]).enumerate() {
                if s != first {
                    let Some(stride) = as_int(&a.view.strides[d]) else { return Pattern::Far };
                    sum = sum.wrapping_add((s - first).wrapping_mul(stride));
                }
            }
            far.push(sum);
        }
        if far.iter().enumerate().all(|(i, x)| *x == i as i64) {
            Pattern::Dense
        } else if far.iter().all(|x| *x == 0) {
            Pattern::Same
        } else if far.iter().all(|x| (0..4 * self.lanes as i64).contains(x)) {
            Pattern::Near(far)
        } else {
            Pattern::Far
        }
    }

    /// A condition on the whole block: every element is inside the view.
    fn all_inside(&mut self, a: &Access, map: &TileMap) -> V {
        let mut all: V = "true".into();
        for &d in &a.checked {
            let (low, high) = reach(map, d);
            let first = self.iadd(&a.index[d], &low.to_string().into());
            let last = self.iadd(&a.index[d], &high.to_string().into());
            let above = self.cmp("icmp sge", "i64", &first, &"0".into());
            let below = self.cmp("icmp slt", "i64", &last, &a.view.dims[d]);
            for c in [above, below] {
                all = if &*all == "true" { c } else { self.bin("and", "i1", &all, &c) };
            }
        }
        all
    }

    /// Which lanes of a part are inside the view: a condition for all of them, or a mask.
    fn lanes_inside(&mut self, a: &mut Access, part: usize) -> (Option<V>, Option<V>) {
        let n = a.geo.chunk(part).width;
        let (mut all, mut mask): (Option<V>, Option<V>) = (None, None);
        for d in a.checked.clone() {
            let along: Vec<i64> = a.lanes[part].iter().map(|s| s[d]).collect();
            let varies = along.iter().any(|s| *s != along[0]);
            let key = (d, if varies { along.clone() } else { vec![along[0]] }, if varies { n } else { 1 });
            let known = a.bounds.get(&key).cloned();
            let c = match known {
                Some(c) => c,
                None => {
                    let at = self.iadd(&a.index[d], &along[0].to_string().into());
                    let c = if varies {
                        self.bound_mask(&at, &a.view.dims[d].clone(), &along, n)
                    } else {
                        let above = self.cmp("icmp sge", "i64", &at, &"0".into());
                        let below = self.cmp("icmp slt", "i64", &at, &a.view.dims[d]);
                        self.bin("and", "i1", &above, &below)
                    };
                    a.bounds.insert(key, c.clone());
                    c
                }
            };
            let slot = if varies { &mut mask } else { &mut all };
            *slot = Some(match slot.take() {
                None => c,
                Some(old) => self.bin("and", &Reg::I1.ty(if varies { n } else { 1 }), &old, &c),
            });
        }
        (all, mask)
    }

    /// Lanes `i` with `0 <= at + along[i] - along[0] < dim`.
    fn bound_mask(&mut self, at: &V, dim: &V, along: &[i64], n: usize) -> V {
        const FAR: i64 = 1 << 30;
        let clamp = |s: &mut Self, x: &V| {
            let x = s.call("i64", "llvm.smin.i64", &[("i64", x), ("i64", &FAR.to_string().into())]);
            let x = s.call("i64", "llvm.smax.i64", &[("i64", &x), ("i64", &(-FAR).to_string().into())]);
            let x = s.conv("trunc", "i64", &x, "i32");
            s.spread(Reg::I32, &x, n)
        };
        let first = self.bin("sub", "i64", &"0".into(), at);
        let last = self.bin("sub", "i64", dim, at);
        let (first, last) = (clamp(self, &first), clamp(self, &last));
        let lanes: Vec<String> = (0..n)
            .map(|i| format!("i32 {}", (along[i.min(along.len() - 1)] - along[0]).clamp(-FAR, FAR)))
            .collect();
        let lanes: V = format!("<{}>", lanes.join(", ")).into();
        let ty = Reg::I32.ty(n);
        let above = self.cmp("icmp sge", &ty, &lanes, &first);
        let below = self.cmp("icmp slt", &ty, &lanes, &last);
        self.bin("and", &Reg::I1.ty(n), &above, &below)
    }

    /// Every condition on a part's lanes in one mask of its width, lanes past its end being false; none when
    /// nothing needs a mask.
    pub(super) fn part_mask(
        &mut self,
        chunk: Chunk,
        all: Option<V>,
        mask: Option<V>,
        given: Option<&V>,
    ) -> Option<V> {
        let n = chunk.width;
        let ty = Reg::I1.ty(n);
        let mut out: Option<V> = None;
        let spread = all.map(|c| self.spread(Reg::I1, &c, n));
        for c in spread.into_iter().chain(mask).chain(given.cloned()).chain(valid(chunk)) {
            out = Some(match out {
                None => c,
                Some(old) => self.bin("and", &ty, &old, &c),
            });
        }
        out
    }

    pub(super) fn load(
        &mut self,
        inst: &Inst,
        map: &TileMap,
        inside: &[bool],
        pad: Num,
        masked: bool,
    ) -> Result<()> {
        let result = inst.results[0];
        let view = self.view(inst.operands[0])?;
        let rank = view.dims.len();
        let index = inst.operands[1..=rank].iter().map(|v| self.scalar(*v)).collect::<Result<Vec<_>>>()?;
        let given = if masked { Some(self.operand(inst.operands[1 + rank])?) } else { None };
        let layout = match self.wanted[result.index()] {
            Layout::Squares => Layout::Rows,
            layout => layout,
        };
        let dtype = view.buffer.dtype;
        let mut a = self.access(view, index, map, inside, layout);
        if self.dots.contains_key(&result)
            && let Some(direct) = self.direct(&mut a, 32 / dtype.bits() as usize)
        {
            self.direct.insert(result, direct);
            return Ok(());
        }
        if let Some(group) = self.streamed.get(&result).copied()
            && a.checked.is_empty()
        {
            // The product reads it when it gets there; nobody else does.
            let product = self.wanted_by_unit(result);
            if product && let Some(direct) = self.direct(&mut a, group) {
                self.direct.insert(result, direct);
                return Ok(());
            }
            if !product {
                let tile = Tile { dtype, shape: map.shape(), layout, parts: Vec::new() };
                self.values[result.index()] = Some(Value::Tile(tile));
                self.pending.insert(result, a);
                return Ok(());
            }
        }
        if self.wanted[result.index()] == Layout::Squares
            && !masked
            && a.checked.is_empty()
            && let Some(direct) = self.direct(&mut a, 1)
        {
            let shape = map.shape();
            let parts = self.load_squares(&shape, &direct);
            self.values[result.index()] =
                Some(Value::Tile(Tile { dtype, shape, layout: Layout::Squares, parts }));
            return Ok(());
        }
        let count = a.geo.parts();
        let single = count == 1 && a.geo.chunk(0).width == 1;
        let parts = if a.checked.is_empty() && !masked {
            (0..count).map(|p| self.load_part(&mut a, p, dtype)).collect()
        } else if masked || single {
            let mut parts = Vec::with_capacity(count);
            for p in 0..count {
                let given = given.as_ref().map(|g| &g[p]);
                parts.push(self.load_checked(&mut a, p, dtype, pad, given));
            }
            parts
        } else {
            let all = self.all_inside(&a, map);
            let (fast, slow, join) = (self.fresh("in"), self.fresh("edge"), self.fresh("loaded"));
            self.line(format_args!("br i1 {all}, label %{fast}, label %{slow}"));
            self.label(&fast);
            // What one side computes the other cannot see.
            let kept = a.deltas.clone();
            let quick: Vec<V> = (0..count).map(|p| self.load_part(&mut a, p, dtype)).collect();
            let quick_end = self.block.clone();
            self.line(format_args!("br label %{join}"));
            a.deltas = kept;
            self.label(&slow);
            let mut careful = Vec::with_capacity(count);
            for p in 0..count {
                careful.push(self.load_checked(&mut a, p, dtype, pad, None));
            }
            let slow_end = self.block.clone();
            self.line(format_args!("br label %{join}"));
            self.label(&join);
            let reg = Reg::of(dtype);
            (0..count)
                .map(|p| {
                    let ty = reg.ty(a.geo.chunk(p).width);
                    self.def(format_args!(
                        "phi {ty} [{}, %{quick_end}], [{}, %{slow_end}]",
                        quick[p], careful[p]
                    ))
                })
                .collect()
        };
        let tile = Tile { dtype, shape: map.shape(), layout, parts };
        self.values[result.index()] = Some(Value::Tile(tile));
        Ok(())
    }

    /// Brings the line of an element to the second level of cache, so that what the first holds stays there.
    pub(super) fn prefetch(&mut self, inst: &Inst) -> Result<()> {
        let view = self.view(inst.operands[0])?;
        let mut at = view.offset.clone();
        for (v, stride) in inst.operands[1..].iter().zip(&view.strides) {
            let index = self.scalar(*v)?;
            let far = self.imul(&index, stride);
            at = self.iadd(&at, &far);
        }
        // Of elements of less than a byte the address need not be exact.
        let size = view.buffer.dtype.byte_size().unwrap_or(1);
        let bytes = self.imul(&at, &size.to_string().into());
        let ptr = self.offset(&view.buffer.ptr, &bytes);
        self.declared.insert("declare void @llvm.prefetch.p0(ptr, i32, i32, i32)".to_string());
        self.line(format_args!("call void @llvm.prefetch.p0(ptr {ptr}, i32 0, i32 2, i32 1)"));
        Ok(())
    }

    /// Whether a streamed load feeds the matrix unit.
    fn wanted_by_unit(&self, v: Val) -> bool {
        self.unit_operands.contains(&v)
    }

    /// Loads a part that is inside.
    pub(super) fn load_part(&mut self, a: &mut Access, part: usize, dtype: DType) -> V {
        let (reg, mem, chunk) = (Reg::of(dtype), self.memory(dtype), a.geo.chunk(part));
        let (n, scope) = (chunk.width, Self::alias(a.view.buffer.scope));
        let lanes = a.lanes[part].clone();
        if a.size == 0 {
            let each: Vec<V> = lanes
                .iter()
                .map(|s| {
                    let delta = self.delta(a, s);
                    let at = self.iadd(&a.origin.clone(), &delta);
                    self.load_bits(a, dtype, &at, None)
                })
                .collect();
            return self.pack(reg, &each, n);
        }
        let pattern = self.pattern(a, part);
        match pattern {
            Pattern::Dense | Pattern::Same if n == 1 => {
                let at = self.address(a, &lanes[0]);
                let x = self.def(format_args!("load {}, ptr {at}, align {}{scope}", mem.ty(1), mem.bytes()));
                self.read_in(dtype, 1, &x)
            }
            Pattern::Dense if chunk.valid == n => {
                let at = self.address(a, &lanes[0]);
                let x = self.def(format_args!("load {}, ptr {at}, align {}{scope}", mem.ty(n), mem.bytes()));
                self.read_in(dtype, n, &x)
            }
            Pattern::Dense => {
                let at = self.address(a, &lanes[0]);
                let mask = self.part_mask(chunk, None, None, None).unwrap_or_else(|| int(Reg::I1, 1, n));
                let zero = self.zero(mem, n);
                let x = self.masked_load(mem, n, &at, &mask, &zero, &scope);
                self.read_in(dtype, n, &x)
            }
            Pattern::Same => {
                let at = self.address(a, &lanes[0]);
                let x = self.def(format_args!("load {}, ptr {at}, align {}{scope}", mem.ty(1), mem.bytes()));
                let x = self.spread(mem, &x, n);
                self.read_in(dtype, n, &x)
            }
            Pattern::Near(far) => {
                let x = self.load_near(a, &lanes[0], &far, mem, n, &scope);
                self.read_in(dtype, n, &x)
            }
            Pattern::Far => {
                let each: Vec<V> = lanes
                    .iter()
                    .map(|s| {
                        let at = self.address(a, s);
                        self.def(format_args!("load {}, ptr {at}, align {}{scope}", mem.ty(1), mem.bytes()))
                    })
                    .collect();
                let x = self.pack(mem, &each, n);
                self.read_in(dtype, n, &x)
            }
        }
    }

    /// Whether the elements of `n` parts of one element each, from one on, lie one after another.
    pub(super) fn lies_in_run(&self, a: &Access, part: usize, n: usize) -> bool {
        let strides: Vec<Option<i64>> = a.view.strides.iter().map(|s| as_int(s)).collect();
        let Some(parts) = a.lanes.get(part..part + n).filter(|_| a.size > 0) else { return false };
        parts.iter().enumerate().all(|(i, lanes)| {
            let steps = lanes[0].iter().zip(&parts[0][0]).zip(&strides);
            let far = steps.map(|((at, from), stride)| match at - from {
                0 => Some(0),
                step => stride.map(|s| s.wrapping_mul(step)),
            });
            far.sum::<Option<i64>>() == Some(i as i64)
        })
    }

    /// The elements of `n` parts that [lie in a run](Self::lies_in_run) as one vector, in the type that multiply-adds pick from.
    pub(super) fn load_run(&mut self, a: &mut Access, part: usize, n: usize, dtype: DType) -> V {
        let first = a.lanes[part][0].clone();
        let (at, scope) = (self.address(a, &first), Self::alias(a.view.buffer.scope));
        let reg = Reg::of(dtype);
        if let Some(ty) = self.scalable(reg, self.lanes) {
            let (predicate, all) = (format!("<vscale x {n} x i1>"), "splat (i1 true)".into());
            let name = format!("llvm.aarch64.sve.ld1rq.{}", ty.suffix);
            return self.call(&ty.name, &name, &[(&predicate, &all), ("ptr", &at)]);
        }
        self.def(format_args!("load {}, ptr {at}, align {}{scope}", reg.ty(n), reg.bytes()))
    }

    /// Loads windows that lie between the nearest and the farthest element, and shuffles.
    fn load_near(
        &mut self,
        a: &mut Access,
        first: &Steps,
        far: &[i64],
        mem: Reg,
        n: usize,
        scope: &str,
    ) -> V {
        let span = far.iter().max().map_or(1, |m| m + 1) as usize;
        let at = self.address(a, first);
        let window = n.min(span.next_power_of_two() / if span.is_power_of_two() { 1 } else { 2 });
        let mut starts: Vec<usize> = Vec::new();
        let mut from = Vec::with_capacity(far.len());
        for f in far {
            let f = *f as usize;
            let start = (f / window * window).min(span - window);
            let which = starts.iter().position(|s| *s == start).unwrap_or_else(|| {
                starts.push(start);
                starts.len() - 1
            });
            from.push((which, f - start));
        }
        let ty = mem.ty(window);
        let parts: Vec<(V, usize)> = starts
            .iter()
            .map(|s| {
                let p = self.offset(&at, &(*s as i64 * a.size).to_string().into());
                (self.def(format_args!("load {ty}, ptr {p}, align {}{scope}", mem.bytes())), window)
            })
            .collect();
        self.assemble(mem, &parts, &from, n)
    }

    pub(super) fn zero(&mut self, reg: Reg, n: usize) -> V {
        match reg {
            Reg::F16 | Reg::F32 | Reg::F64 => emit::real(reg, 0.0, n),
            _ => int(reg, 0, n),
        }
    }

    fn masked_load(&mut self, mem: Reg, n: usize, at: &V, mask: &V, other: &V, scope: &str) -> V {
        let (ty, m, s) = (mem.ty(n), Reg::I1.ty(n), mem.suffix(n));
        self.declared.insert(format!("declare {ty} @llvm.masked.load.{s}.p0(ptr, {m}, {ty})"));
        self.def(format_args!(
            "call {ty} @llvm.masked.load.{s}.p0(ptr align {} {at}, {m} {mask}, {ty} {other}){scope}",
            mem.bytes()
        ))
    }

    /// A constant as memory holds it.
    pub(super) fn memory_constant(&self, dtype: DType, x: Num, n: usize) -> V {
        match dtype {
            DType::Bool => int(Reg::I8, i64::from(x.is_true()), n),
            DType::F16 if self.memory(dtype) == Reg::I16 => {
                int(Reg::I16, dtype.encode_rounded(x, Default::default()) as i64, n)
            }
            _ => emit::constant(dtype, x, n),
        }
    }

    /// Loads a part of which some elements may be outside or masked out.
    fn load_checked(&mut self, a: &mut Access, part: usize, dtype: DType, pad: Num, given: Option<&V>) -> V {
        let (reg, mem, chunk) = (Reg::of(dtype), self.memory(dtype), a.geo.chunk(part));
        let (n, scope) = (chunk.width, Self::alias(a.view.buffer.scope));
        let lanes = a.lanes[part].clone();
        let (all, mask) = self.lanes_inside(a, part);
        let uniform = mask.is_none() && given.is_none();
        let pattern = if a.size == 0 { Pattern::Far } else { self.pattern(a, part) };
        if a.size != 0 && (n == 1 || (uniform && matches!(pattern, Pattern::Same))) {
            // One element, under one condition: read from somewhere harmless otherwise.
            let c = match (all, given) {
                (Some(c), Some(g)) => Some(self.bin("and", "i1", &c, g)),
                (c, g) => c.or_else(|| g.cloned()),
            };
            let at = self.address(a, &lanes[0]);
            let at = match &c {
                Some(c) => self.choose(1, c, "ptr", &at, &"%bufs".into()),
                None => at,
            };
            let x = self.def(format_args!("load {}, ptr {at}, align {}{scope}", mem.ty(1), mem.bytes()));
            let pad = self.memory_constant(dtype, pad, 1);
            let x = match &c {
                Some(c) => self.choose(1, c, &mem.ty(1), &x, &pad),
                None => x,
            };
            let x = self.spread(mem, &x, n);
            return self.read_in(dtype, n, &x);
        }
        let mask = self.part_mask(chunk, all, mask, given).unwrap_or_else(|| int(Reg::I1, 1, n));
        if a.size == 0 {
            let each: Vec<V> = lanes
                .iter()
                .enumerate()
                .map(|(i, s)| {
                    let c = self.lane(Reg::I1, &mask, n, i);
                    let delta = self.delta(a, s);
                    let at = self.iadd(&a.origin.clone(), &delta);
                    let x = self.load_bits(a, dtype, &at, Some(&c));
                    self.choose(1, &c, &reg.ty(1), &x, &emit::constant(dtype, pad, 1))
                })
                .collect();
            return self.pack(reg, &each, n);
        }
        let other = self.memory_constant(dtype, pad, n);
        let x = match pattern {
            Pattern::Dense => {
                let at = self.address(a, &lanes[0]);
                self.masked_load(mem, n, &at, &mask, &other, &scope)
            }
            _ => {
                let each: Vec<V> = lanes.iter().map(|s| self.address(a, s)).collect();
                self.gather_from(mem, n, &each, &mask, &other, &scope)
            }
        };
        self.read_in(dtype, n, &x)
    }

    /// Loads from single addresses where the mask is true, `other` elsewhere.
    pub(super) fn gather_from(
        &mut self,
        mem: Reg,
        n: usize,
        at: &[V],
        mask: &V,
        other: &V,
        scope: &str,
    ) -> V {
        if n > 1 && mem.bits() >= 32 && target::gathers(self.chip) {
            let mut pointers: V = "poison".into();
            for (i, p) in at.iter().enumerate() {
                pointers = self.def(format_args!("insertelement <{n} x ptr> {pointers}, ptr {p}, i64 {i}"));
            }
            return self.masked_gather(mem, n, &pointers, mask, other, scope);
        }
        let each: Vec<V> = at
            .iter()
            .enumerate()
            .map(|(i, p)| {
                let c = self.lane(Reg::I1, mask, n, i);
                let p = self.choose(1, &c, "ptr", p, &"%bufs".into());
                self.def(format_args!("load {}, ptr {p}, align {}{scope}", mem.ty(1), mem.bytes()))
            })
            .collect();
        let x = self.pack(mem, &each, n);
        self.choose(n, mask, &mem.ty(n), &x, other)
    }

    pub(super) fn masked_gather(
        &mut self,
        mem: Reg,
        n: usize,
        at: &V,
        mask: &V,
        other: &V,
        scope: &str,
    ) -> V {
        let (ty, m, s) = (mem.ty(n), Reg::I1.ty(n), mem.suffix(n));
        self.declared.insert(format!("declare {ty} @llvm.masked.gather.{s}.v{n}p0(<{n} x ptr>, {m}, {ty})"));
        self.def(format_args!(
            "call {ty} @llvm.masked.gather.{s}.v{n}p0(<{n} x ptr> align {} {at}, {m} {mask}, {ty} {other}){scope}",
            mem.bytes()
        ))
    }

    /// The byte address and bit shift of an element of less than a byte.
    fn bit_place(&mut self, a: &Access, bits: u32, element: &V) -> (V, V) {
        self.bit_place_of(&a.view.buffer.ptr.clone(), bits, element)
    }

    pub(super) fn bit_place_of(&mut self, ptr: &V, bits: u32, element: &V) -> (V, V) {
        let bit = self.imul(element, &bits.to_string().into());
        let byte = self.bin("ashr", "i64", &bit, &"3".into());
        let at = self.offset(ptr, &byte);
        let shift = self.bin("and", "i64", &bit, &"7".into());
        (at, self.conv("trunc", "i64", &shift, "i16"))
    }

    /// Loads an element of less than a byte, given its index in the buffer; under a condition, if there is one.
    fn load_bits(&mut self, a: &Access, dtype: DType, element: &V, c: Option<&V>) -> V {
        let place = self.bit_place(a, dtype.bits(), element);
        let scope = Self::alias(a.view.buffer.scope);
        self.load_bits_at(dtype, place, c, &scope)
    }

    pub(super) fn load_bits_at(
        &mut self,
        dtype: DType,
        (at, shift): (V, V),
        c: Option<&V>,
        scope: &str,
    ) -> V {
        let at = match c {
            Some(c) => self.choose(1, c, "ptr", &at, &"%bufs".into()),
            None => at,
        };
        let low = self.def(format_args!("load i8, ptr {at}, align 1{scope}"));
        let mut word = self.conv("zext", "i8", &low, "i16");
        if dtype.bits() == 6 {
            // The element may go on in the next byte.
            let next = self.offset(&at, &"1".into());
            let goes_on = self.cmp("icmp ugt", "i16", &shift, &"2".into());
            let mut reads = goes_on.clone();
            if let Some(c) = c {
                reads = self.bin("and", "i1", &reads, c);
            }
            let next = self.choose(1, &reads, "ptr", &next, &"%bufs".into());
            let high = self.def(format_args!("load i8, ptr {next}, align 1{scope}"));
            let high = self.conv("zext", "i8", &high, "i16");
            let high = self.bin("shl", "i16", &high, &"8".into());
            word = self.bin("or", "i16", &word, &high);
        }
        let word = self.bin("lshr", "i16", &word, &shift);
        let code = self.conv("trunc", "i16", &word, "i8");
        self.read_in(dtype, 1, &code)
    }

    /// Stores an element of less than a byte, without touching its neighbours, if the condition holds.
    pub(super) fn store_bits(
        &mut self,
        dtype: DType,
        (at, shift): (V, V),
        x: &V,
        c: Option<&V>,
        scope: &str,
    ) -> Result<()> {
        let mask = (1i64 << dtype.bits()) - 1;
        let nowhere = self.reserve(64)?;
        let code = self.bin("and", "i8", x, &mask.to_string().into());
        let code = self.conv("zext", "i8", &code, "i16");
        let code = self.bin("shl", "i16", &code, &shift);
        let hole = self.bin("shl", "i16", &mask.to_string().into(), &shift);
        let keep = self.bin("xor", "i16", &hole, &"-1".into());
        let bytes = if dtype.bits() == 6 { 2 } else { 1 };
        for byte in 0..bytes {
            let mut writes = c.cloned();
            if byte == 1 {
                let goes_on = self.cmp("icmp ugt", "i16", &shift, &"2".into());
                writes = Some(match writes {
                    Some(c) => self.bin("and", "i1", &goes_on, &c),
                    None => goes_on,
                });
            }
            let mut p = self.offset(&at, &byte.to_string().into());
            if let Some(c) = &writes {
                p = self.choose(1, c, "ptr", &p, &nowhere);
            }
            let by: V = (8 * byte).to_string().into();
            let part = |s: &mut Self, x: &V| {
                let x = s.bin("lshr", "i16", x, &by);
                s.conv("trunc", "i16", &x, "i8")
            };
            let (set, stay) = (part(self, &code), part(self, &keep));
            // Without alias data: the harmless address is nobody's buffer.
            let scope = if writes.is_some() { "" } else { scope };
            let old = self.def(format_args!("load i8, ptr {p}, align 1{scope}"));
            let kept = self.bin("and", "i8", &old, &stay);
            let new = self.bin("or", "i8", &kept, &set);
            self.line(format_args!("store i8 {new}, ptr {p}, align 1{scope}"));
        }
        Ok(())
    }

    pub(super) fn store(&mut self, inst: &Inst, map: &TileMap, inside: &[bool], masked: bool) -> Result<()> {
        let view = self.view(inst.operands[0])?;
        let rank = view.dims.len();
        let index = inst.operands[2..2 + rank].iter().map(|v| self.scalar(*v)).collect::<Result<Vec<_>>>()?;
        let dtype = view.buffer.dtype;
        let mut a = self.access(view, index, map, inside, Layout::Rows);
        let tile = self.tile(inst.operands[1])?.clone();
        if tile.layout == Layout::Squares
            && !masked
            && let Some(direct) = self.direct(&mut a, 1)
        {
            self.store_squares(&tile, &direct);
            return Ok(());
        }
        let values = self.rows(&tile)?;
        let given = if masked { Some(self.operand(inst.operands[2 + rank])?) } else { None };
        if a.checked.is_empty() && !masked {
            for (p, x) in values.iter().enumerate() {
                self.store_part(&mut a, p, dtype, x)?;
            }
            return Ok(());
        }
        if masked {
            for (p, x) in values.iter().enumerate() {
                let given = given.as_ref().map(|g| &g[p]);
                self.store_checked(&mut a, p, dtype, x, given)?;
            }
            return Ok(());
        }
        let all = self.all_inside(&a, map);
        let (fast, slow, join) = (self.fresh("in"), self.fresh("edge"), self.fresh("stored"));
        self.line(format_args!("br i1 {all}, label %{fast}, label %{slow}"));
        self.label(&fast);
        let kept = a.deltas.clone();
        for (p, x) in values.iter().enumerate() {
            self.store_part(&mut a, p, dtype, x)?;
        }
        self.line(format_args!("br label %{join}"));
        a.deltas = kept;
        self.label(&slow);
        for (p, x) in values.iter().enumerate() {
            self.store_checked(&mut a, p, dtype, x, None)?;
        }
        self.line(format_args!("br label %{join}"));
        self.label(&join);
        Ok(())
    }

    fn store_part(&mut self, a: &mut Access, part: usize, dtype: DType, x: &V) -> Result<()> {
        let (reg, mem, chunk) = (Reg::of(dtype), self.memory(dtype), a.geo.chunk(part));
        let (n, scope) = (chunk.width, Self::alias(a.view.buffer.scope));
        let lanes = a.lanes[part].clone();
        if a.size == 0 {
            for (i, s) in lanes.iter().enumerate() {
                let one = self.lane(reg, x, n, i);
                let delta = self.delta(a, s);
                let at = self.iadd(&a.origin.clone(), &delta);
                let place = self.bit_place(a, dtype.bits(), &at);
                self.store_bits(dtype, place, &one, None, &scope)?;
            }
            return Ok(());
        }
        let x = self.write_out(dtype, n, x);
        match self.pattern(a, part) {
            Pattern::Dense if chunk.valid == n => {
                let at = self.address(a, &lanes[0]);
                self.line(format_args!("store {} {x}, ptr {at}, align {}{scope}", mem.ty(n), mem.bytes()));
            }
            Pattern::Dense => {
                let at = self.address(a, &lanes[0]);
                let mask = self.part_mask(chunk, None, None, None).unwrap_or_else(|| int(Reg::I1, 1, n));
                self.masked_store(mem, n, &x, &at, &mask, &scope);
            }
            _ => {
                for (i, s) in lanes.iter().enumerate() {
                    let one = self.lane(mem, &x, n, i);
                    let at = self.address(a, s);
                    self.line(format_args!(
                        "store {} {one}, ptr {at}, align {}{scope}",
                        mem.ty(1),
                        mem.bytes()
                    ));
                }
            }
        }
        Ok(())
    }

    fn masked_store(&mut self, mem: Reg, n: usize, x: &V, at: &V, mask: &V, scope: &str) {
        let (ty, m, s) = (mem.ty(n), Reg::I1.ty(n), mem.suffix(n));
        self.declared.insert(format!("declare void @llvm.masked.store.{s}.p0({ty}, ptr, {m})"));
        self.line(format_args!(
            "call void @llvm.masked.store.{s}.p0({ty} {x}, ptr align {} {at}, {m} {mask}){scope}",
            mem.bytes()
        ));
    }

    fn store_checked(
        &mut self,
        a: &mut Access,
        part: usize,
        dtype: DType,
        x: &V,
        given: Option<&V>,
    ) -> Result<()> {
        let (reg, mem, chunk) = (Reg::of(dtype), self.memory(dtype), a.geo.chunk(part));
        let (n, scope) = (chunk.width, Self::alias(a.view.buffer.scope));
        let lanes = a.lanes[part].clone();
        let (all, mask) = self.lanes_inside(a, part);
        let mask = self.part_mask(chunk, all, mask, given).unwrap_or_else(|| int(Reg::I1, 1, n));
        if a.size == 0 {
            for (i, s) in lanes.iter().enumerate() {
                let (one, c) = (self.lane(reg, x, n, i), self.lane(Reg::I1, &mask, n, i));
                let delta = self.delta(a, s);
                let at = self.iadd(&a.origin.clone(), &delta);
                let place = self.bit_place(a, dtype.bits(), &at);
                self.store_bits(dtype, place, &one, Some(&c), &scope)?;
            }
            return Ok(());
        }
        let x = self.write_out(dtype, n, x);
        if n > 1 && matches!(self.pattern(a, part), Pattern::Dense) {
            let at = self.address(a, &lanes[0]);
            self.masked_store(mem, n, &x, &at, &mask, &scope);
            return Ok(());
        }
        let each: Vec<V> = lanes.iter().map(|s| self.address(a, s)).collect();
        self.scatter_to(mem, n, &x, &each, &mask, &scope);
        Ok(())
    }

    /// Stores to single addresses where the mask is true, in the order of the lanes.
    pub(super) fn scatter_to(&mut self, mem: Reg, n: usize, x: &V, at: &[V], mask: &V, scope: &str) {
        for (i, p) in at.iter().enumerate() {
            let (one, c) = (self.lane(mem, x, n, i), self.lane(Reg::I1, mask, n, i));
            self.when(&c, |s| {
                s.line(format_args!("store {} {one}, ptr {p}, align {}{scope}", mem.ty(1), mem.bytes()));
            });
        }
    }

    /// Writes what `f` writes under a condition.
    fn when(&mut self, c: &V, f: impl FnOnce(&mut Self)) {
        match &**c {
            "false" => return,
            "true" => return f(self),
            _ => {}
        }
        let (yes, join) = (self.fresh("do"), self.fresh("done"));
        self.line(format_args!("br i1 {c}, label %{yes}, label %{join}"));
        self.label(&yes);
        f(self);
        self.line(format_args!("br label %{join}"));
        self.label(&join);
    }
}

/// The mask of the lanes that a chunk really has; none if it has all.
fn valid(chunk: Chunk) -> Option<V> {
    if chunk.valid == chunk.width {
        return None;
    }
    let lanes: Vec<&str> =
        (0..chunk.width).map(|i| if i < chunk.valid { "i1 true" } else { "i1 false" }).collect();
    Some(format!("<{}>", lanes.join(", ")).into())
}
