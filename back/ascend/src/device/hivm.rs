//! The chip's own operations: data movement, vector and matrix units, synchronisation.

use std::sync::Arc;

use super::exec::{Core, Run, V, int, mem, typed};
use super::ir::{Elem, Op, Space, Ty};
use super::mem::{Data, Mem, round_to, wrap};
use super::race::pipe;
use super::scalar;

const VEC: usize = 1;
const MTE1: usize = 2;
const MTE2: usize = 3;
const MTE3: usize = 4;

impl Core<'_, '_, '_> {
    /// An operation of the chip; none has results but casts of addresses and indices.
    pub fn hivm(&mut self, op: &Op, name: &str, v: &[V], frame: &[V]) -> Run<Vec<V>> {
        let of = |slots: &[u32]| slots.iter().map(|&s| frame[s as usize].clone()).collect::<Vec<V>>();
        let segmented = op.attrs.contains_key("operandSegmentSizes");
        let (ins, outs) = if segmented {
            (of(op.segment(0)), of(op.segment(1)))
        } else {
            (v.first().cloned().into_iter().collect(), v.get(1).cloned().into_iter().collect())
        };
        match name {
            "get_block_idx" => return Ok(vec![V::I(self.block)]),
            "get_sub_block_idx" => return Ok(vec![V::I(self.me.min(self.vectors.saturating_sub(1)) as i64)]),
            "get_sub_block_num" => return Ok(vec![V::I(self.vectors as i64)]),
            "pointer_cast" => {
                let Some(Ty::MemRef { space, .. }) = op.to.first() else { return Err("a type".to_string()) };
                let m = typed(&op.to[0], *space, int(&v[0])? * 8, &outs)?;
                return Ok(vec![V::M(Arc::new(m))]);
            }
            "bitcast" => {
                let m = mem(&v[0])?;
                let elem = op.to.first().and_then(Ty::elem).ok_or("a type")?;
                return Ok(vec![V::M(Arc::new(Mem { elem, ..m.clone() }))]);
            }
            "set_mask_norm" | "set_ffts_base_addr" | "set_ctrl" | "set_atomic_none" => {}
            "set_flag" | "wait_flag" => {
                let (from, to) =
                    (pipe(op.word("set_pipe").unwrap_or("")), pipe(op.word("wait_pipe").unwrap_or("")));
                let event = match op.word("static_event_id") {
                    Some(w) => w.trim_start_matches("EVENT_ID").parse().map_err(|_| "an event")?,
                    None => int(v.last().ok_or("no event")?)?,
                };
                if name == "set_flag" {
                    self.pipes.set(from, to, event);
                } else if !self.pipes.wait(from, to, event) {
                    return Err(format!("waits for event {event} that nothing has set"));
                }
            }
            "pipe_barrier" => self.pipes.barrier(pipe(op.word("pipe").unwrap_or(""))),
            "sync_block_set" | "sync_block_wait" => {
                let flag = match op.int("static_flag_id") {
                    Some(f) => f,
                    None => int(v.first().ok_or("no flag")?)?,
                };
                let flag = usize::try_from(flag).ok().filter(|f| *f < 16).ok_or("a flag from 0 to 15")?;
                self.sync(name == "sync_block_set", flag)?;
            }
            "load" => self.load(op, v, frame)?,
            "store" => self.store(op, v)?,
            "copy" => {
                let (a, b) = (mem(&v[0])?.clone(), mem(&v[1])?.clone());
                let p = match (a.space, b.space) {
                    (Space::Gm, _) => MTE2,
                    (_, Space::Gm | Space::L1) => MTE3,
                    _ => VEC,
                };
                self.pipes.start(p);
                self.copy(p, &a, &b)?;
            }
            "nd2nz" => self.nd2nz(mem(&ins[0])?, mem(&outs[0])?)?,
            "mmadL1" => self.mmad(op, v)?,
            "varange" => {
                let m = mem(&v[0])?.clone();
                let start = of(op.segment(1)).first().map(int).transpose()?.unwrap_or(0);
                let steps = of(op.segment(2)).iter().map(int).collect::<Run<Vec<i64>>>()?;
                let each = Mem { strides: steps, ..m.clone() };
                let all = each.offsets(&m.dims)?.into_iter().map(|o| start + o);
                let data = if m.elem.is_float() {
                    Data::F(all.map(|x| round_to(m.elem, x as f64)).collect())
                } else {
                    Data::I(all.map(|x| wrap(m.elem, x)).collect())
                };
                self.pipes.start(VEC);
                self.touch(VEC, true, &m)?;
                let me = self.me;
                self.storage()?.write(me, &m, &data)?;
            }
            "fixpipe" => self.fixpipe(op, mem(&ins[0])?, mem(&outs[0])?)?,
            _ => self.vector_op(op, name, &ins, &outs)?,
        }
        Ok(Vec::new())
    }

    fn sync(&mut self, set: bool, flag: usize) -> Run<()> {
        // A flag of the vector cores reaches the matrix core when all of them have set it.
        if !set {
            return self.wait_flag_of_others(flag);
        }
        let (me, matrix) = (self.me, self.vectors);
        let g = self.guard.as_mut().ok_or("the core is not running")?;
        let [down, up] = &mut g.flags;
        if me == matrix {
            down.iter_mut().for_each(|f| f[flag] += 1);
        } else {
            up[me][flag] += 1;
        }
        self.turn.notify_all();
        Ok(())
    }

    fn load(&mut self, op: &Op, v: &[V], frame: &[V]) -> Run<()> {
        let (src, dst) = (mem(&v[0])?.clone(), mem(&v[1])?.clone());
        self.pipes.start(MTE2);
        let pad = op.segment(2).first().map(|&s| frame[s as usize].clone());
        let left = op.segment(3).first().map(|&s| int(&frame[s as usize])).transpose()?.unwrap_or(0);
        if src.dims == dst.dims || pad.is_none() && src.dims.len() != dst.dims.len() {
            return self.copy(MTE2, &src, &dst);
        }
        // The source lies in the destination from `left` on along the last dim, the rest is padding.
        if src.dims.len() != dst.dims.len() || src.dims.iter().zip(&dst.dims).any(|(a, b)| a > b) {
            return Err(format!("memory of dims {:?} loaded into {:?}", src.dims, dst.dims));
        }
        if let Some(p) = pad {
            let d = match p {
                V::F(x) => Data::F(vec![x]),
                p => Data::I(vec![int(&p)?]),
            };
            let (me, all) = (self.me, d.splat(0, dst.len() as usize));
            self.storage()?.write(me, &dst, &all)?;
        }
        let last = dst.strides.last().copied().unwrap_or(1);
        let part = Mem { bits: dst.bits + left * last * dst.elem.bits(), dims: src.dims.clone(), ..dst };
        self.copy(MTE2, &src, &part)
    }

    fn store(&mut self, op: &Op, v: &[V]) -> Run<()> {
        let (src, dst) = (mem(&v[0])?.clone(), mem(&v[1])?.clone());
        self.pipes.start(MTE3);
        let kind = op.word("atomic_kind").or(op.word("atomic")).unwrap_or("none");
        if kind == "none" {
            return self.copy(MTE3, &src, &dst);
        }
        self.touch(MTE3, false, &src)?;
        let me = self.me;
        let s = self.storage()?;
        let (new, old) = (s.read(me, &src, &dst.dims)?, s.read(me, &dst, &dst.dims)?);
        let base = match kind {
            "umax" => "maxu",
            "umin" => "minu",
            k => k,
        };
        let out = pairs(base, dst.elem, &[old, new])?;
        s.write(me, &dst, &out)
    }

    /// A matrix in rows to blocks of 16 rows and 32 bytes, columns of blocks first.
    fn nd2nz(&mut self, src: &Mem, dst: &Mem) -> Run<()> {
        let (rows, cols) = plane(&src.dims)?;
        let [_, _, r, c] = dst.dims[..] else { return Err("blocks have 4 dims".to_string()) };
        let me = self.me;
        let flat = Mem {
            dims: vec![rows, cols],
            strides: src.strides[src.strides.len() - 2..].to_vec(),
            ..src.clone()
        };
        let s = self.storage()?;
        let data = s.read(me, &flat, &[rows, cols])?;
        // Row by row of each block, so that what lies outside the matrix stays as it is.
        for b in 0..cols.div_euclid(c) + i64::from(cols % c != 0) {
            for i in 0..rows {
                let n = c.min(cols - b * c);
                let bits = dst.bits
                    + (b * dst.strides[0] + i / r * dst.strides[1] + i % r * dst.strides[2])
                        * dst.elem.bits();
                let line = Mem { bits, dims: vec![n], strides: vec![dst.strides[3]], ..dst.clone() };
                let at = (i * cols + b * c) as usize;
                s.write(me, &line, &data.pick(at..at + n as usize))?;
            }
        }
        Ok(())
    }

    /// The part of a matrix in blocks: rows × cols, row by row.
    fn blocks(&mut self, m: &Mem, rows: i64, cols: i64) -> Run<Data> {
        let [_, _, r, c] = m.dims[..] else { return Err("blocks have 4 dims".to_string()) };
        let (nr, nc) = ((rows + r - 1) / r, (cols + c - 1) / c);
        if nr > m.dims[1] || nc > m.dims[0] {
            return Err(format!("a matrix of {rows} × {cols} in blocks of {:?}", m.dims));
        }
        let part = Mem { dims: vec![nc, nr, r, c], ..m.clone() };
        let me = self.me;
        let all = self.storage()?.read(me, &part, &part.dims)?;
        let at = (0..rows * cols).map(|k| {
            let (i, j) = (k / cols, k % cols);
            ((((j / c) * nr + i / r) * r + i % r) * c + j % c) as usize
        });
        Ok(all.pick(at))
    }

    fn mmad(&mut self, op: &Op, v: &[V]) -> Run<()> {
        let (a, b, c) = (mem(&v[0])?.clone(), mem(&v[1])?.clone(), mem(&v[6])?.clone());
        let clear = int(&v[2])? != 0;
        let (m, k, n) = (int(&v[3])?, int(&v[4])?, int(&v[5])?);
        let (ta, tb) = (op.attrs.contains_key("a_transpose"), op.attrs.contains_key("b_transpose"));
        // Inside, the operands' arrival is waited for, and that they have been read is told: by these events, where there are any.
        let ids = op.ints("operandSegmentSizes").iter().take(7).sum::<i64>() as usize;
        let id = |k: usize| v.get(ids + k).map(int).transpose().map(|i| i.filter(|i| *i >= 0));
        for k in 0..2 {
            if let Some(e) = id(k)?
                && !self.pipes.wait(MTE2, MTE1, e)
            {
                return Err(format!("waits for event {e} that nothing has set"));
            }
        }
        for k in 2..4 {
            if let Some(e) = id(k)? {
                self.pipes.set(MTE1, MTE2, e);
            }
        }
        if !op.segment(8).is_empty() {
            return Err("a bias in the product".to_string());
        }
        let x = if ta { turned(self.blocks(&a, k, m)?, k, m) } else { self.blocks(&a, m, k)? };
        let y = if tb { turned(self.blocks(&b, n, k)?, n, k) } else { self.blocks(&b, k, n)? };
        let old = if clear { None } else { Some(self.blocks(&c, m, n)?) };
        let (m, k, n) = (m as usize, k as usize, n as usize);
        let out = match (x, y) {
            (Data::F(x), Data::F(y)) => {
                let y: Vec<f32> = y.iter().map(|&v| v as f32).collect();
                let mut sums: Vec<f32> = match old {
                    Some(Data::F(o)) => o.iter().map(|&v| v as f32).collect(),
                    _ => vec![0.0; m * n],
                };
                for (i, line) in sums.chunks_mut(n.max(1)).enumerate() {
                    for q in 0..k {
                        let f = x[i * k + q] as f32;
                        line.iter_mut().zip(&y[q * n..]).for_each(|(s, w)| *s += f * w);
                    }
                }
                Data::F(sums.into_iter().map(f64::from).collect())
            }
            (Data::I(x), Data::I(y)) => {
                let mut sums = match old {
                    Some(Data::I(o)) => o,
                    _ => vec![0; m * n],
                };
                for (i, line) in sums.chunks_mut(n.max(1)).enumerate() {
                    for q in 0..k {
                        let f = x[i * k + q];
                        line.iter_mut()
                            .zip(&y[q * n..])
                            .for_each(|(s, w)| *s = wrap(Elem::Int(32), *s + f * w));
                    }
                }
                Data::I(sums)
            }
            _ => return Err("a product of floats and integers".to_string()),
        };
        self.put_blocks(&c, m as i64, n as i64, &out)
    }

    fn put_blocks(&mut self, c: &Mem, rows: i64, cols: i64, data: &Data) -> Run<()> {
        let [_, _, r, w] = c.dims[..] else { return Err("blocks have 4 dims".to_string()) };
        let me = self.me;
        let s = self.storage()?;
        for b in 0..(cols + w - 1) / w {
            let n = w.min(cols - b * w);
            for i in 0..rows {
                let bits =
                    c.bits + (b * c.strides[0] + i / r * c.strides[1] + i % r * c.strides[2]) * c.elem.bits();
                let line = Mem { bits, dims: vec![n], strides: vec![c.strides[3]], ..c.clone() };
                let at = (i * cols + b * w) as usize;
                s.write(me, &line, &data.pick(at..at + n as usize))?;
            }
        }
        Ok(())
    }

    /// Sums to memory in rows, with a cast and a relu on the way; to two vector cores, half of the rows each.
    fn fixpipe(&mut self, op: &Op, src: &Mem, dst: &Mem) -> Run<()> {
        let (rows, cols) = plane(&dst.dims)?;
        let dual = op.word("dual_dst_mode").is_some_and(|m| m == "ROW_SPLIT");
        let all = if dual { rows * 2 } else { rows };
        let mut data = self.blocks(src, all, cols)?;
        let relu = op.word("pre_relu").is_some_and(|w| w != "NO_RELU" && w != "no_relu");
        data = match data {
            Data::F(v) if dst.elem.is_float() => {
                let fit = |x: f64| round_to(dst.elem, if relu && x <= 0.0 { 0.0 } else { x });
                Data::F(v.into_iter().map(fit).collect())
            }
            Data::I(v) if !dst.elem.is_float() => {
                Data::I(v.into_iter().map(|x| wrap(dst.elem, if relu { x.max(0) } else { x })).collect())
            }
            _ => return Err("sums to memory of another kind".to_string()),
        };
        let flat = Mem {
            dims: vec![rows, cols],
            strides: dst.strides[dst.strides.len() - 2..].to_vec(),
            ..dst.clone()
        };
        let half = (rows * cols) as usize;
        let me = self.me;
        let s = self.storage()?;
        if dual {
            s.write(0, &flat, &data.pick(0..half))?;
            return s.write(1, &flat, &data.pick(half..2 * half));
        }
        // What goes to one vector core goes to the first.
        let to = if flat.space == Space::Ub { 0 } else { me };
        s.write(to, &flat, &data)
    }

    /// An operation of the vector unit on memory.
    fn vector_op(&mut self, op: &Op, name: &str, ins: &[V], outs: &[V]) -> Run<()> {
        let out = mem(outs.first().ok_or("no result")?)?.clone();
        let unit = if out.space == Space::L1 { MTE2 } else { VEC };
        self.pipes.start(unit);
        for i in ins {
            if let V::M(m) = i {
                self.touch(unit, false, m)?;
            }
        }
        self.touch(unit, true, &out)?;
        let base = name.strip_prefix('v').ok_or("an operation that is not known")?;
        let me = self.me;
        let dims = out.dims.clone();
        let n = out.len().max(0) as usize;
        let read = |c: &mut Self, v: &V, dims: &[i64]| -> Run<Data> {
            Ok(match v {
                V::M(m) => c.storage()?.read(me, m, dims)?,
                V::F(x) => Data::F(vec![*x; dims.iter().product::<i64>() as usize]),
                V::I(x) => Data::I(vec![*x; dims.iter().product::<i64>() as usize]),
                _ => return Err("an operand".to_string()),
            })
        };
        let own = |v: &V| -> Run<Vec<i64>> { Ok(mem(v)?.dims.clone()) };
        let result = match base {
            "brc" => {
                let from = if let V::M(m) = &ins[0] { m.dims.len() } else { 0 };
                if from == dims.len() || from == 0 {
                    read(self, &ins[0], &dims)?
                } else {
                    let m = mem(&ins[0])?;
                    let add = op.ints("broadcast_dims");
                    let (mut wide, mut k) = (m.clone(), 0);
                    (wide.dims, wide.strides) = (Vec::new(), Vec::new());
                    for d in 0..dims.len() as i64 {
                        if add.contains(&d) {
                            wide.dims.push(1);
                            wide.strides.push(0);
                        } else {
                            wide.dims.push(*m.dims.get(k).ok_or("dims")?);
                            wide.strides.push(m.strides[k]);
                            k += 1;
                        }
                    }
                    self.storage()?.read(me, &wide, &dims)?
                }
            }
            "cast" => {
                let x = read(self, &ins[0], &dims)?;
                let from = elem_of(&ins[0], op);
                cast(op, x, from, out.elem)
            }
            "deinterleave" => {
                let mode = op.word("index_mode").unwrap_or("");
                let channel: i64 = mode.trim_start_matches("CHANNEL_").parse().map_err(|_| "a channel")?;
                let m = mem(&ins[0])?;
                // The operand is a strided view already where its dims are the result's.
                if m.dims == dims {
                    self.storage()?.read(
                        me,
                        &Mem { bits: m.bits + channel * m.elem.bits(), ..m.clone() },
                        &dims,
                    )?
                } else {
                    let count = op.int("channel_num").ok_or("channels")?;
                    let from = m.dims.clone();
                    let all = self.storage()?.read(me, m, &from)?;
                    all.pick((0..n).map(|k| k * count as usize + channel as usize))
                }
            }
            "interleave" => {
                // Elements of each operand in turn along the last dim.
                let mut from = dims.clone();
                let k = ins.len().max(1);
                if let Some(last) = from.last_mut() {
                    *last /= k as i64;
                }
                let parts = ins.iter().map(|v| read(self, v, &from)).collect::<Run<Vec<Data>>>()?;
                let mut out = parts.first().ok_or("no operand")?.splat(0, n);
                for (c, part) in parts.iter().enumerate() {
                    match (&mut out, part) {
                        (Data::F(o), Data::F(p)) => p.iter().enumerate().for_each(|(i, x)| o[i * k + c] = *x),
                        (Data::I(o), Data::I(p)) => p.iter().enumerate().for_each(|(i, x)| o[i * k + c] = *x),
                        _ => return Err("operands of different kinds".to_string()),
                    }
                }
                out
            }
            "transpose" => {
                let from = own(&ins[0])?;
                let perm = op.ints("permutation");
                let x = read(self, &ins[0], &from)?;
                permuted(&x, &from, perm)
            }
            "reduce" => {
                let from = own(&ins[0])?;
                let x = read(self, &ins[0], &from)?;
                let kind = op.word("arith").unwrap_or("").to_string();
                let along = op.ints("reduce_dims");
                let second = outs.get(1).map(|o| mem(o).cloned()).transpose()?;
                let index = ins.get(1).map(|v| read(self, v, &from)).transpose()?;
                let (r, at) = reduce(&kind, &x, index.as_ref(), &from, along, elem_of(&ins[0], op))?;
                if let (Some(m), Some(at)) = (second, at) {
                    self.touch(VEC, true, &m)?;
                    self.storage()?.write(me, &m, &at)?;
                }
                r
            }
            "cmp" => {
                let (a, b) = (read(self, &ins[0], &dims)?, read(self, &ins[1], &dims)?);
                compare(op.word("compare_mode").unwrap_or("eq"), elem_of(&ins[0], op), &a, &b)
            }
            "sel" => {
                let c = read(self, &ins[0], &dims)?;
                let (a, b) = (read(self, &ins[1], &dims)?, read(self, &ins[2], &dims)?);
                let Data::I(c) = c else { return Err("a condition of floats".to_string()) };
                match (a, b) {
                    (Data::F(a), Data::F(b)) => {
                        Data::F((0..n).map(|k| if c[k] != 0 { a[k] } else { b[k] }).collect())
                    }
                    (Data::I(a), Data::I(b)) => {
                        Data::I((0..n).map(|k| if c[k] != 0 { a[k] } else { b[k] }).collect())
                    }
                    _ => return Err("choices of different kinds".to_string()),
                }
            }
            "cumsum" | "cumprod" => {
                let x = read(self, &ins[0], &dims)?;
                let along = op.ints("cum_dims");
                let back = op.attr("reverse").is_some_and(|r| r != "false");
                let f = if base == "cumsum" { "add" } else { "mul" };
                scan(f, x, &dims, along.first().copied().unwrap_or(0), back, out.elem)?
            }
            "gather" => {
                let from = own(&ins[0])?;
                let (x, at) = (read(self, &ins[0], &from)?, read(self, &ins[1], &dims)?);
                let Data::I(at) = at else { return Err("indices that are no integers".to_string()) };
                let last = from.last().copied().unwrap_or(1);
                let lines = n as i64 / dims.last().copied().unwrap_or(1).max(1);
                let each = dims.last().copied().unwrap_or(1).max(1);
                let place = |k: i64| -> Run<usize> {
                    let (line, i) = (k / each % lines, at[k as usize]);
                    if i < 0 || i >= last {
                        Err(format!("index {i} of {last}"))
                    } else {
                        Ok((line * last + i) as usize)
                    }
                };
                let places = (0..n as i64).map(place).collect::<Run<Vec<usize>>>()?;
                x.pick(places.into_iter())
            }
            "concat" => {
                let d = op.int("dim").unwrap_or(0) as usize;
                let mut at = 0;
                for i in ins {
                    let m = mem(i)?;
                    let mut part = Mem { dims: m.dims.clone(), ..out.clone() };
                    part.bits += at * out.strides[d] * out.elem.bits();
                    at += m.dims[d];
                    let x = read(self, i, &m.dims)?;
                    self.storage()?.write(me, &part, &x)?;
                }
                return Ok(());
            }
            _ => {
                let data = ins.iter().map(|v| read(self, v, &dims)).collect::<Run<Vec<Data>>>()?;
                let elem = elem_of(&ins[0], op);
                let fit = |name: &str| -> String {
                    let signed = op.attr("is_signed").or(op.attr("isSigned")).is_none_or(|s| s != "false");
                    let tail = if signed { "s" } else { "u" };
                    match name {
                        "div" | "mod" | "rem" if !elem.is_float() => {
                            format!("{}{tail}", if name == "div" { "div" } else { "rem" })
                        }
                        "shr" => {
                            let kind = op.attr("round").is_some();
                            format!("shr{}", if kind || signed { "s" } else { "u" })
                        }
                        n => n.to_string(),
                    }
                };
                pairs(&fit(base), elem, &data)?
            }
        };
        self.storage()?.write(me, &out, &result)
    }
}

fn elem_of(v: &V, op: &Op) -> Elem {
    match v {
        V::M(m) => m.elem,
        _ => op.from.first().and_then(Ty::elem).unwrap_or(Elem::F32),
    }
}

/// The last two dims, of which alone there are elements.
fn plane(dims: &[i64]) -> Run<(i64, i64)> {
    match dims {
        [lead @ .., r, c] if lead.iter().all(|&n| n == 1) => Ok((*r, *c)),
        _ => Err(format!("a matrix of dims {dims:?}")),
    }
}

/// A matrix of rows × cols turned.
fn turned(d: Data, rows: i64, cols: i64) -> Data {
    d.pick((0..rows * cols).map(|k| (k % rows * cols + k / rows) as usize))
}

/// An elementwise operation by name.
fn pairs(name: &str, e: Elem, args: &[Data]) -> Run<Data> {
    let none = || format!("the vector operation '{name}'");
    let n = args.first().ok_or_else(none)?.len();
    if args.len() > 3 || args.iter().any(|a| a.len() != n) {
        return Err("operands of different sizes".to_string());
    }
    match &args[0] {
        Data::F(_) => {
            let f = scalar::float(name).ok_or_else(none)?;
            let mut a = [0.0; 3];
            let mut out = Vec::with_capacity(n);
            for k in 0..n {
                for (slot, d) in a.iter_mut().zip(args) {
                    *slot = match d {
                        Data::F(v) => v[k],
                        Data::I(v) => v[k] as f64,
                    };
                }
                out.push(round_to(e, f(&a)));
            }
            Ok(Data::F(out))
        }
        Data::I(_) => {
            let f = scalar::integer(name).ok_or_else(none)?;
            let mut a = [0; 3];
            let mut out = Vec::with_capacity(n);
            for k in 0..n {
                for (slot, d) in a.iter_mut().zip(args) {
                    *slot = match d {
                        Data::I(v) => v[k],
                        Data::F(_) => return Err(none()),
                    };
                }
                out.push(wrap(e, f(e, &a)));
            }
            Ok(Data::I(out))
        }
    }
}

fn cast(op: &Op, x: Data, from: Elem, to: Elem) -> Data {
    let round = scalar::rounding(op.word("round_mode").unwrap_or("rint"), f64::trunc);
    let unsigned = op.word("cast").is_some_and(|c| c.contains("unsigned"));
    // Narrower integers keep their low bits; floats that are too large saturate.
    let wide = |v: i64| -> i64 {
        match from {
            Elem::Int(n) if unsigned && n < 64 => v & ((1i64 << n) - 1),
            _ => v,
        }
    };
    match x {
        Data::F(v) if to.is_float() => {
            let cut = |x: f64| if from == to { round(x) } else { x };
            Data::F(v.into_iter().map(|x| round_to(to, cut(x))).collect())
        }
        Data::F(v) => Data::I(v.into_iter().map(|x| scalar::to_int(round(x), to, !unsigned)).collect()),
        Data::I(v) if to.is_float() => Data::F(v.into_iter().map(|x| round_to(to, wide(x) as f64)).collect()),
        Data::I(v) => Data::I(v.into_iter().map(|x| wrap(to, wide(x))).collect()),
    }
}

fn strides(dims: &[i64]) -> Vec<i64> {
    let mut out = vec![1; dims.len()];
    for i in (0..dims.len().saturating_sub(1)).rev() {
        out[i] = out[i + 1] * dims[i + 1];
    }
    out
}

/// Result dim `d` is operand dim `perm[d]`.
pub fn permuted(x: &Data, dims: &[i64], perm: &[i64]) -> Data {
    let from = strides(dims);
    let to: Vec<i64> = perm.iter().map(|&p| dims[p as usize]).collect();
    let m = Mem {
        space: Space::Stack,
        bits: 0,
        base: 0,
        elem: Elem::Int(8),
        strides: perm.iter().map(|&p| from[p as usize]).collect(),
        dims: to.clone(),
    };
    let at = m.offsets(&to).unwrap_or_default();
    x.pick(at.into_iter().map(|i| i as usize))
}

/// Positions of the elements that each result of a reduction combines.
fn lines(dims: &[i64], along: &[i64]) -> Vec<Vec<usize>> {
    let s = strides(dims);
    let pick = |inside: bool| -> Vec<i64> {
        let kept = (0..dims.len()).filter(|d| along.contains(&(*d as i64)) == inside);
        let kept: Vec<usize> = kept.collect();
        let d: Vec<i64> = kept.iter().map(|&i| dims[i]).collect();
        let m = Mem {
            space: Space::Stack,
            bits: 0,
            base: 0,
            elem: Elem::Int(8),
            strides: kept.iter().map(|&i| s[i]).collect(),
            dims: d.clone(),
        };
        m.offsets(&d).unwrap_or_default()
    };
    let inner = pick(true);
    pick(false).into_iter().map(|o| inner.iter().map(|i| (o + i) as usize).collect()).collect()
}

/// A reduction; with indices for those that find a place.
pub fn reduce(
    kind: &str,
    x: &Data,
    index: Option<&Data>,
    dims: &[i64],
    along: &[i64],
    e: Elem,
) -> Run<(Data, Option<Data>)> {
    let lines = lines(dims, along);
    let base = match kind {
        "sum" | "add" => "add",
        "prod" | "mul" => "mul",
        "max" | "maximumf" | "maxsi" => "max",
        "min" | "minimumf" | "minsi" => "min",
        "maxnumf" => "maxnum",
        "minnumf" => "minnum",
        "maxui" => "maxu",
        "minui" => "minu",
        "andi" | "and" | "alli" | "all" => "and",
        "ori" | "or" | "anyi" | "any" => "or",
        "xori" | "xor" | "xori_sum" => "xor",
        k if k.contains("with_index") => {
            let better = |a: f64, b: f64| if k.starts_with("max") { a > b } else { a < b };
            let value = |i: usize| match x {
                Data::F(v) => v[i],
                Data::I(v) => v[i] as f64,
            };
            let mut best = Vec::new();
            let mut place = Vec::new();
            for line in &lines {
                let mut b = 0;
                for k in 1..line.len() {
                    if better(value(line[k]), value(line[b])) {
                        b = k;
                    }
                }
                best.push(line[b]);
                place.push(match index {
                    Some(Data::I(v)) => v[line[b]],
                    _ => b as i64,
                });
            }
            return Ok((x.pick(best.into_iter()), Some(Data::I(place))));
        }
        k => return Err(format!("the reduction '{k}'")),
    };
    let none = || format!("the reduction '{kind}'");
    Ok((
        match x {
            Data::F(v) => {
                let f = scalar::float(base).ok_or_else(none)?;
                let fold =
                    |l: &Vec<usize>| l[1..].iter().fold(v[l[0]], |acc, &i| round_to(e, f(&[acc, v[i]])));
                Data::F(lines.iter().map(fold).collect())
            }
            Data::I(v) => {
                let f = scalar::integer(base).ok_or_else(none)?;
                let fold =
                    |l: &Vec<usize>| l[1..].iter().fold(v[l[0]], |acc, &i| wrap(e, f(e, &[acc, v[i]])));
                Data::I(lines.iter().map(fold).collect())
            }
        },
        None,
    ))
}

fn scan(f: &str, x: Data, dims: &[i64], along: i64, back: bool, e: Elem) -> Run<Data> {
    let none = || format!("the running '{f}'");
    let (on_floats, on_integers) = (scalar::float(f).ok_or_else(none)?, scalar::integer(f).ok_or_else(none)?);
    let mut x = x;
    for mut line in lines(dims, &[along]) {
        if back {
            line.reverse();
        }
        for k in 1..line.len() {
            match &mut x {
                Data::F(v) => v[line[k]] = round_to(e, on_floats(&[v[line[k - 1]], v[line[k]]])),
                Data::I(v) => v[line[k]] = wrap(e, on_integers(e, &[v[line[k - 1]], v[line[k]]])),
            }
        }
    }
    Ok(x)
}

fn compare(mode: &str, e: Elem, a: &Data, b: &Data) -> Data {
    let n = a.len();
    Data::I(match (a, b) {
        (Data::F(a), Data::F(b)) => {
            let p = match mode {
                "eq" => 1,
                "ne" => 13,
                "lt" => 4,
                "le" => 5,
                "gt" => 2,
                _ => 3,
            };
            (0..n).map(|k| scalar::compare_float(p, a[k], b[k]).into()).collect()
        }
        (Data::I(a), Data::I(b)) => {
            let p = match mode {
                "eq" => 0,
                "ne" => 1,
                "lt" => 2,
                "le" => 3,
                "gt" => 4,
                _ => 5,
            };
            (0..n).map(|k| scalar::compare_int(p, e, a[k], b[k]).into()).collect()
        }
        _ => vec![0; n],
    })
}
