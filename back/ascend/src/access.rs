//! Block reads and writes: windows on device pointers, clipped to the view.

use tongtu_tensor::Num;
use tongtu_tile::{Factor, Inst, TileMap, Val};

use crate::emit::{Emit, Slot, Text, ViewSlot, constant, mlir, shaped};
use crate::legal;

/// Where a window's elements are present: first coordinate and count for each memory dim.
struct Clip {
    first: Vec<String>,
    count: Vec<String>,
}

/// How a tile that a matrix unit reads lies in memory.
#[derive(Clone, Debug)]
pub(crate) struct Lay {
    /// Whether its dims are not in the order of memory.
    turned: bool,
    /// For each dim whether the tile may reach out of memory along it.
    padded: Vec<bool>,
}

impl Emit<'_> {
    /// Notes how an operand of a product lies.
    fn note_lay(&mut self, v: Val, map: &TileMap, inside: &[bool], turned: bool) {
        let along = |d: usize| map.0.iter().flatten().any(|f| f.size > 1 && f.dim == Some(d));
        // An index alone may leave out the whole tile.
        let all = (0..inside.len()).any(|d| !inside[d] && !along(d));
        let out = |f: &Factor| f.size > 1 && f.dim.is_some_and(|d| !inside[d]);
        let padded = map.0.iter().map(|fs| all || fs.iter().any(out)).collect();
        self.lays.insert(v, Lay { turned, padded });
    }

    /// Notes how a permuted operand of a product lies.
    pub(crate) fn permute_lay(&mut self, from: Val, to: Val, perm: &[usize]) {
        if let Some(l) = self.lays.get(&from) {
            let padded = perm.iter().map(|&p| l.padded.get(p).copied().unwrap_or(true)).collect();
            let turned = l.turned == perm.is_sorted();
            self.lays.insert(to, Lay { turned, padded });
        }
    }

    /// Whether the padding along the summed dim of a product would be lost: one chip's compiler leaves it out where an operand is turned.
    pub(crate) fn loses_padding(&self, a: Val, b: Val) -> bool {
        let of = |v: Val| self.lays.get(&v);
        let turned = [a, b].into_iter().any(|v| of(v).is_some_and(|l| l.turned));
        let padded = |v: Val, d: usize| of(v).is_some_and(|l| l.padded.get(d) == Some(&true));
        legal::is_950(self.chip) && turned && (padded(a, 1) || padded(b, 0))
    }

    /// The factors of at least so many elements that lie in memory, in the order of memory: of dims, and along one dim the far steps
    /// first. With the place of each among all such factors, and their sizes.
    fn factors(map: &TileMap, least: usize) -> (Vec<Factor>, Vec<usize>, Vec<usize>) {
        let kept = map.0.iter().flatten().filter(|f| f.size >= least && (f.size > 1 || f.dim.is_some()));
        let all: Vec<Factor> = kept.copied().collect();
        let mut places: Vec<usize> = (0..all.len()).filter(|&i| all[i].dim.is_some()).collect();
        places.sort_by_key(|&i| (all[i].dim, std::cmp::Reverse(all[i].step.abs())));
        (places.iter().map(|&i| all[i]).collect(), places, all.iter().map(|f| f.size).collect())
    }

    /// Whether some elements fall on one place.
    pub(crate) fn repeats(map: &TileMap) -> bool {
        map.0.iter().flatten().any(|f| f.size > 1 && (f.dim.is_none() || f.step == 0))
    }

    /// Whether a block steps along a dim of a view by 0 or backwards, as far as is known: such memory has no form.
    pub(crate) fn goes_back(&self, view: &ViewSlot, map: &TileMap) -> bool {
        let back = |d: usize| view.strides.get(d).and_then(|s| self.known.get(s)).is_some_and(|&s| s <= 0);
        map.0.iter().flatten().any(|f| f.size > 1 && f.dim.is_some_and(back))
    }

    /// Whether a block is a window that bounds clip: no more than one factor steps along a bounded dim, and forwards.
    pub(crate) fn is_window(map: &TileMap, inside: &[bool]) -> bool {
        let along = |d: usize| map.0.iter().flatten().filter(move |f| f.size > 1 && f.dim == Some(d));
        (0..inside.len())
            .filter(|&d| !inside[d])
            .all(|d| along(d).count() <= 1 && along(d).all(|f| f.step > 0))
    }

    /// The window as a memref value and its type, with the clipping it needs.
    fn window(
        &mut self,
        view: &ViewSlot,
        index: &[String],
        factors: &[Factor],
        inside: &[bool],
    ) -> (String, String, Option<Clip>) {
        let mut offset = view.offset.clone();
        for (i, stride) in index.iter().zip(&view.strides) {
            let t = self.int_mul(i, stride);
            offset = self.int_add(&offset, &t);
        }
        let offset = self.index(&offset);
        let mut strides = Vec::new();
        for f in factors {
            let d = f.dim.unwrap_or(0);
            let s = view.strides.get(d).cloned().unwrap_or_default();
            let step = self.int(f.step);
            let s = self.int_mul(&s, &step);
            strides.push(match self.known.get(&s) {
                Some(k) => k.to_string(),
                None => self.index(&s),
            });
        }
        let shape: Vec<usize> = factors.iter().map(|f| f.size).collect();
        // A window of no dims is one element.
        let (shape, strides) =
            if shape.is_empty() { (vec![1], vec!["1".to_string()]) } else { (shape, strides) };
        let fixed = |s: &String| if s.starts_with('%') { "?".to_string() } else { s.clone() };
        let layout: Vec<String> = strides.iter().map(fixed).collect();
        let element = mlir(view.dtype);
        let sizes = shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        let ty = format!("memref<{}, strided<[{}], offset: ?>>", shaped(&shape, &element), layout.join(", "));
        let name = self.fresh();
        self.line(format!(
            "{name} = memref.reinterpret_cast {} to offset: [{offset}], sizes: [{sizes}], strides: [{}] : {} to {ty}",
            view.buffer,
            strides.join(", "),
            view.ty
        ));
        let clip =
            if inside.iter().all(|&i| i) { None } else { Some(self.clip(view, index, factors, inside)) };
        (name, ty, clip)
    }

    /// The factors without what is known to lie behind the end of the view: of a clipped window whose size is known, one chip's compiler
    /// takes no part.
    fn held(&self, view: &ViewSlot, index: &[String], factors: &[Factor], inside: &[bool]) -> Vec<Factor> {
        let known = |v: &String| self.known.get(v).copied();
        let cut = |f: &Factor| {
            let Some(d) = f.dim.filter(|&d| !inside[d]) else { return *f };
            match (known(&view.dims[d]), known(&index[d])) {
                (Some(end), Some(at)) if (0..end).contains(&at) && f.step > 0 => {
                    let reach = (end - at).unsigned_abs().div_ceil(f.step.unsigned_abs()) as usize;
                    Factor { size: f.size.min(reach), ..*f }
                }
                _ => *f,
            }
        };
        factors.iter().map(cut).collect()
    }

    fn clip(&mut self, view: &ViewSlot, index: &[String], factors: &[Factor], inside: &[bool]) -> Clip {
        let mut clip = Clip {
            first: vec!["0".to_string(); factors.len().max(1)],
            count: factors.iter().map(|f| f.size.to_string()).collect(),
        };
        if factors.is_empty() {
            clip.count.push("1".to_string());
        }
        for d in (0..inside.len()).filter(|&d| !inside[d]) {
            let on = factors.iter().position(|f| f.dim == Some(d));
            let zero = self.int(0);
            match on {
                None => {
                    // The index alone decides: nothing or all of the first dim.
                    let low = self.pred("sge", &index[d], &zero);
                    let high = self.pred("slt", &index[d], &view.dims[d]);
                    let both = self.fresh();
                    self.line(format!("{both} = arith.andi {low}, {high} : i1"));
                    let have = self.as_int(&clip.count[0]);
                    let n = self.fresh();
                    self.line(format!("{n} = arith.select {both}, {have}, {zero} : i64"));
                    clip.count[0] = self.index(&n);
                }
                Some(i) => {
                    let f = factors[i];
                    let (step, size) = (self.int(f.step), self.int(f.size as i64));
                    let left = self.int_sub(&view.dims[d], &index[d]);
                    let reach = self.int_ceil_div(&left, &step);
                    let end = self.int_op("minsi", &reach, &size);
                    let first = if self.not_negative.contains(&index[d]) {
                        zero.clone()
                    } else {
                        let minus = self.int_sub(&zero, &index[d]);
                        let low = self.int_ceil_div(&minus, &step);
                        let low = self.int_op("maxsi", &low, &zero);
                        self.int_op("minsi", &low, &size)
                    };
                    let n = self.int_sub(&end, &first);
                    let n = self.int_op("maxsi", &n, &zero);
                    // Another condition may have emptied this dim.
                    let n = if clip.count[i].starts_with('%') {
                        let have = self.as_int(&clip.count[i]);
                        self.int_op("minsi", &n, &have)
                    } else {
                        n
                    };
                    let fixed = |s: &mut Self, v: &str| match s.known.get(v) {
                        Some(k) => k.to_string(),
                        None => s.index(v),
                    };
                    clip.first[i] =
                        if self.known.get(&first) == Some(&0) { "0".to_string() } else { self.index(&first) };
                    // Of dims known to be empty the vendor's compiler wants to know nothing.
                    clip.count[i] =
                        if self.known.get(&n) == Some(&0) { self.index(&n) } else { fixed(self, &n) };
                }
            }
        }
        clip
    }

    /// The part of a memref that a clip leaves, and its type.
    fn subview(
        &mut self,
        name: &str,
        from: &str,
        strides: &[String],
        dtype: &str,
        clip: &Clip,
    ) -> (String, String) {
        let moved = from.contains("offset: ?") || clip.first.iter().any(|f| f != "0");
        let dims: Vec<String> =
            clip.count.iter().map(|c| if c.starts_with('%') { "?".to_string() } else { c.clone() }).collect();
        let offset = if moved { ", offset: ?" } else { "" };
        let to = format!("memref<{}x{dtype}, strided<[{}]{offset}>>", dims.join("x"), strides.join(", "));
        let sub = self.fresh();
        self.line(format!(
            "{sub} = memref.subview {name}[{}] [{}] [{}] : {from} to {to}",
            clip.first.join(", "),
            clip.count.join(", "),
            vec!["1"; clip.count.len()].join(", ")
        ));
        (sub, to)
    }

    /// The part of a window that a clip leaves, and its type.
    fn clipped(
        &mut self,
        name: &str,
        ty: &str,
        factors: &[Factor],
        dtype: &str,
        clip: &Clip,
    ) -> (String, String) {
        let shape: Vec<usize> = factors.iter().map(|f| f.size).collect();
        let shape = if shape.is_empty() { vec![1] } else { shape };
        let whole = clip.first.iter().all(|f| f == "0")
            && clip.count.iter().zip(&shape).all(|(count, n)| *count == n.to_string());
        match whole {
            true => (name.to_string(), ty.to_string()),
            false => self.subview(name, ty, &layout_of(ty), dtype, clip),
        }
    }

    /// A tensor with dim `order[i]` of the operand as dim `i`.
    fn transposed(&mut self, t: String, element: &str, shape: &[usize], order: &[usize]) -> String {
        if order.is_sorted() {
            return t;
        }
        let to: Vec<usize> = order.iter().map(|&i| shape[i]).collect();
        let ty = format!("tensor<{}>", shaped(&to, element));
        let (empty, name) = (self.empty(&ty), self.fresh());
        let order = order.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        self.line(format!(
            "{name} = linalg.transpose ins({t} : tensor<{}>) outs({empty} : {ty}) permutation = [{order}]",
            shaped(shape, element)
        ));
        name
    }

    pub(crate) fn load(&mut self, inst: &Inst, map: &TileMap, inside: &[bool], pad: Num) -> Text<()> {
        let view = self.view(inst.operands[0])?;
        let index =
            inst.operands[1..=inside.len()].iter().map(|&v| self.scalar(v)).collect::<Text<Vec<_>>>()?;
        let (factors, places, all) = Self::factors(map, 2);
        let held = self.held(&view, &index, &factors, inside);
        let (name, ty, clip) = self.window(&view, &index, &held, inside);
        let present: Vec<usize> = factors.iter().map(|f| f.size).collect();
        let shape = if present.is_empty() { vec![1] } else { present.clone() };
        let element = mlir(view.dtype);
        let local_ty = format!("memref<{}>", shaped(&shape, &element));
        // Beside matrix units it takes no copies inside a memory.
        let guarded = clip.is_some() && self.reshapes && self.matrix.is_empty();
        let (local, home_ty) = self.home(&shape, &element, guarded);
        match clip {
            None => self.line(format!("memref.copy {name}, {local} : {ty} to {local_ty}")),
            Some(clip) => {
                let p = self.fresh();
                self.line(format!("{p} = arith.constant {} : {element}", constant(view.dtype, pad)));
                self.line(format!("linalg.fill ins({p} : {element}) outs({local} : {home_ty})"));
                let (from, from_ty) = self.clipped(&name, &ty, &held, &element, &clip);
                let own: Vec<String> = row_major(&shape);
                let (to, to_ty) = self.subview(&local, &home_ty, &own, &element, &clip);
                self.line(format!("memref.copy {from}, {to} : {from_ty} to {to_ty}"));
            }
        }
        let t = self.written(&local, &home_ty, &shape, &element);
        // From the order of memory to the tile's.
        let mut order: Vec<usize> = (0..places.len()).collect();
        order.sort_by_key(|&i| places[i]);
        let moved: Vec<usize> = order.iter().map(|&i| present[i]).collect();
        if self.matrix.contains(&inst.results[0]) {
            self.note_lay(inst.results[0], map, inside, !order.is_sorted());
        }
        let mut t = self.transposed(t, &element, &shape, &order);
        let mut now = if moved.is_empty() { shape } else { moved };
        if places.len() < all.len() && !places.is_empty() {
            let missing: Vec<String> =
                (0..all.len()).filter(|i| !places.contains(i)).map(|i| i.to_string()).collect();
            let to = format!("tensor<{}>", shaped(&all, &element));
            let (empty, wide) = (self.empty(&to), self.fresh());
            self.line(format!(
                "{wide} = linalg.broadcast ins({t} : tensor<{}>) outs({empty} : {to}) dimensions = [{}]",
                shaped(&now, &element),
                missing.join(", ")
            ));
            (t, now) = (wide, all);
        } else if places.is_empty() && !all.is_empty() {
            let scalar = self.reshaped(&t, &element, &now, &[]);
            t = self.fill(&scalar, &element, &format!("tensor<{}>", shaped(&all, &element)));
            self.repeat(view.dtype, &t);
            now = all;
        }
        let result_shape = self.shape(inst.results[0]);
        let t = self.reshaped(&t, &element, &now, &result_shape);
        let t = self.truth_values(t, view.dtype, &result_shape);
        self.define(inst.results[0], Slot::Value(t));
        Ok(())
    }

    pub(crate) fn store(&mut self, inst: &Inst, map: &TileMap, inside: &[bool]) -> Text<()> {
        let view = self.view(inst.operands[0])?;
        let index =
            inst.operands[2..2 + inside.len()].iter().map(|&v| self.scalar(v)).collect::<Text<Vec<_>>>()?;
        // Products keep their two dims.
        let least = if map.0.len() == 2 && map.0.iter().all(|f| f.len() == 1) { 1 } else { 2 };
        let (factors, places, all) = Self::factors(map, least);
        let held = self.held(&view, &index, &factors, inside);
        let (name, ty, clip) = self.window(&view, &index, &held, inside);
        let shape: Vec<usize> = factors.iter().map(|f| f.size).collect();
        let shape = if shape.is_empty() { vec![1] } else { shape };
        let element = mlir(view.dtype);
        let from = self.shape(inst.operands[1]);
        let value = self.scalar(inst.operands[1])?;
        let value = self.bytes_of(value, view.dtype, &from);
        let to: &[usize] = if all.is_empty() { &[1] } else { &all };
        let part = self.parts_lie_open(inst.operands[1]) && from != to;
        let value =
            if part { self.dense(&value, &format!("tensor<{}>", shaped(&from, &element))) } else { value };
        let value = self.reshaped(&value, &element, &from, to);
        let value = self.transposed(value, &element, &all, &places);
        let tensor = format!("tensor<{}>", shaped(&shape, &element));
        match clip {
            None => self.line(format!(
                "bufferization.materialize_in_destination {value} in writable {name} : ({tensor}, {ty}) -> ()"
            )),
            Some(clip) => {
                let dims: Vec<String> = clip
                    .count
                    .iter()
                    .map(|c| if c.starts_with('%') { "?".to_string() } else { c.clone() })
                    .collect();
                let part_ty = format!("tensor<{}x{element}>", dims.join("x"));
                let part = self.fresh();
                self.line(format!(
                    "{part} = tensor.extract_slice {value}[{}] [{}] [{}] : {tensor} to {part_ty}",
                    clip.first.join(", "),
                    clip.count.join(", "),
                    vec!["1"; shape.len()].join(", ")
                ));
                let (to, to_ty) = self.clipped(&name, &ty, &held, &element, &clip);
                self.line(format!(
                    "bufferization.materialize_in_destination {part} in writable {to} : ({part_ty}, {to_ty}) -> ()"
                ));
            }
        }
        Ok(())
    }
}

fn row_major(shape: &[usize]) -> Vec<String> {
    let mut stride = 1;
    let mut out: Vec<String> = shape
        .iter()
        .rev()
        .map(|&n| {
            let s = stride.to_string();
            stride *= n;
            s
        })
        .collect();
    out.reverse();
    out
}

/// The strides in a memref type written by `window`.
fn layout_of(ty: &str) -> Vec<String> {
    let inner = ty.split("strided<[").nth(1).and_then(|s| s.split(']').next()).unwrap_or("");
    inner.split(", ").map(str::to_string).collect()
}
