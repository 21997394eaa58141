//! Packing: an operand of a contraction or convolution laid out in panels.
//!
//! A panel holds, for every position of the summed dims, `width` neighbouring columns next to each other, zeros past the end. The
//! layout is pad, reshape and permute, written as a graph: constants are packed when compiling, other
//! operands by a kernel made from that graph.

use tongtu_graph::{Builder, Graph, GraphError, Type};
use tongtu_plan::Packing;
use tongtu_tensor::dim::{Dim, Symbols};
use tongtu_tensor::scalar::Binary;
use tongtu_tensor::{DType, Num};
use tongtu_tile::Val;

use super::{Launch, Request, Scheduled, blocks, delinear, map, multiple, product, rows_per_instance};
use crate::emit::{CAST, Coord, Emitter, KernelArg, zero_of};
use crate::error::Error;

/// Two steps of 16 bits side by side.
const PAIR: DType = DType::U32;

/// Dims `perm` of a value, the one at position `columns` cut into panels of `width`: the packed dims are
/// `perm[..columns] ++ [panels] ++ perm[columns + 1..] ++ [width]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pack {
    /// The group's input that is packed.
    pub input: usize,
    /// Order of the operand's dims.
    pub perm: Vec<usize>,
    /// Which of them is cut.
    pub columns: usize,
    /// Columns of a panel.
    pub width: usize,
    /// Steps of the last summed dim that stand side by side, as a matrix unit reads them, and the number that its length is padded to a
    /// multiple of, with zeros. With more than 1 the packed dims end in `[…, length / steps, width, steps]`.
    pub group: (usize, usize),
}

impl Pack {
    /// Dims of the packed value.
    pub fn dims(&self, from: &[Dim]) -> Vec<Dim> {
        let mut dims: Vec<Dim> = self.perm.iter().map(|&p| from[p].clone()).collect();
        dims[self.columns] = dims[self.columns].ceildiv(&Dim::from(self.width as i64));
        let (side, whole) = self.group;
        if side > 1
            && let Some(last) = dims.last_mut()
        {
            *last = last.ceildiv(&Dim::from(whole as i64)) * (whole / side) as i64;
        }
        dims.push(Dim::from(self.width as i64));
        if side > 1 {
            dims.push(Dim::from(side as i64));
        }
        dims
    }

    /// The layout, for constants of these dims.
    fn packing(&self, dims: &[Dim]) -> Option<Packing> {
        let size = |d: &Dim| usize::try_from(d.as_const()?).ok();
        Some(Packing {
            dims: dims.iter().map(size).collect::<Option<_>>()?,
            perm: self.perm.clone(),
            columns: self.columns,
            width: self.width,
            group: self.group,
        })
    }

    /// A kernel that packs an operand whose last dim is summed over: squares are transposed on the way.
    fn transposing(&self, r: &Request<'_>) -> Result<Option<Launch>, Error> {
        let g = r.graph;
        let (x, out) = (g.inputs[0], g.outputs[0]);
        let last = self.perm.len() - 1;
        let lanes = r.machine.lanes(g.dtype(x)).min(r.machine.lanes(DType::F32));
        if self.perm[last] != last || self.columns == last || !self.width.is_multiple_of(lanes) {
            return Ok(None);
        }
        let mut e = Emitter::new(r.name, g);
        e.leaf(x)?;
        let to = e.output(0)?;
        let (outer, steps) = (g.dims(out)[..last].to_vec(), g.dims(out)[last].clone());
        let inside = multiple(&g.dims(x)[self.perm[self.columns]], self.width);
        let per = rows_per_instance(&(&steps * self.width as i64), map::GRAIN);
        let count = product(&outer);
        let (pid, per_v, count_v) = (e.b.program_id(0)?, e.dim_param(&per), e.dim_param(&count));
        let (zero, steps_v) = (e.b.int(0), e.dim_param(&steps));
        let lo = e.b.mul(pid, per_v)?;
        let end = e.b.add(lo, per_v)?;
        let hi = e.b.min(end, count_v)?;
        e.for_loop(lo, hi, 1, &[], |e, row, _| {
            let at = delinear(e, row, &outer)?;
            let column = match at[self.columns] {
                Coord::Affine { base, .. } => e.b.mul_int(base, self.width as i64)?,
                Coord::Tile { .. } => zero,
            };
            blocks(e, zero, steps_v, lanes, multiple(&steps, lanes), &[], |e, i, whole, _| {
                let mut from = vec![Coord::at(zero); last + 1];
                for (place, &d) in self.perm.iter().enumerate() {
                    from[d] = match place {
                        p if p == self.columns => Coord::along(column, 0, inside),
                        p if p == last => Coord::along(i, 1, whole),
                        p => at[p],
                    };
                }
                e.shape = vec![self.width, lanes];
                let t = e.emit(x, &from)?;
                let t = e.b.permute(t, &[1, 0])?;
                e.shape = vec![lanes, self.width];
                let mut to_coords = at.clone();
                to_coords.extend([Coord::along(i, 0, whole), Coord::along(zero, 1, true)]);
                e.store_view(to, t, &to_coords)?;
                Ok(vec![])
            })?;
            Ok(vec![])
        })?;
        Ok(Some(e.launch([count.ceildiv(&per), Dim::from(1), Dim::from(1)])))
    }

    fn graph(&self, dtype: DType, from: &[Dim]) -> Result<Graph, GraphError> {
        let mut g = Graph { name: "pack".into(), ..Graph::default() };
        let x = g.add_input(Type::tensor(dtype, from.to_vec()), None);
        let mut symbols = Symbols::new();
        let mut b = Builder::new(&mut g, &mut symbols);
        let p = b.permute(x, &self.perm)?;
        let dims = b.dims(p);
        let width = Dim::from(self.width as i64);
        let panels = dims[self.columns].ceildiv(&width);
        let mut high = vec![Dim::from(0); dims.len()];
        high[self.columns] = &(&panels * &width) - &dims[self.columns];
        let low = vec![Dim::from(0); dims.len()];
        let zero = b.scalar(dtype, zero_of(dtype))?;
        let padded = b.pad(p, zero, &low, &high)?;
        let mut split = dims[..self.columns].to_vec();
        split.extend([panels, width]);
        split.extend_from_slice(&dims[self.columns + 1..]);
        let s = b.one(tongtu_graph::Op::Reshape { dims: split.clone() }, &[padded])?;
        let mut perm: Vec<usize> = (0..split.len()).filter(|&i| i != self.columns + 1).collect();
        perm.push(self.columns + 1);
        let out = b.permute(s, &perm)?;
        g.outputs = vec![out];
        Ok(g)
    }

    /// Makes the packed operand available to a kernel: a constant laid out when compiling, or temporary memory with the
    /// launch that fills it.
    pub fn place(self, r: &Request<'_>, s: &mut Scheduled) -> Result<KernelArg, Error> {
        let v = r.graph.inputs[self.input];
        if let Some(Some(value)) = r.constants.get(self.input)
            && value.dtype().bits() % 8 == 0
            && let Some(packing) = self.packing(r.graph.dims(v))
        {
            s.packed.push((self.input, packing));
            return Ok(KernelArg::Packed(s.packed.len() - 1));
        }
        let (mut dtype, mut dims) = (r.graph.dtype(v), r.graph.dims(v).to_vec());
        let name = format!("{}_pack", r.name);
        if self.group.0 > 1 && self.perm.last() != Some(&(dims.len() - 1)) {
            let to = self.in_pairs(&dims);
            let launch = self.pairing(r, &name, Type::tensor(dtype, dims.clone()), &dims, &to)?;
            return Ok(s.prepare(self.input, (PAIR, to), vec![launch]));
        }
        let mut pack = self;
        if pack.group.0 > 1 {
            // Pairs of steps lie next to each other already.
            dtype = PAIR;
            if let Some(last) = dims.last_mut() {
                *last = last.floordiv(&Dim::from(2));
            }
            pack.group = (1, 1);
        }
        let graph = pack.graph(dtype, &dims)?;
        let inner = r.part(&graph, &name);
        let launches = match pack.transposing(&inner)? {
            Some(launch) => vec![launch],
            None => map::schedule(&inner)?.launches,
        };
        Ok(s.prepare(pack.input, (dtype, pack.dims(&dims)), launches))
    }

    /// The packed dims with a pair of steps as one number.
    fn in_pairs(&self, from: &[Dim]) -> Vec<Dim> {
        let mut dims = self.dims(from);
        dims.pop();
        dims
    }

    /// A kernel that packs an operand of 16-bit numbers whose steps are rows in memory: two rows become one of pairs.
    fn pairing(
        &self,
        r: &Request<'_>,
        name: &str,
        ty: Type,
        from: &[Dim],
        to: &[Dim],
    ) -> Result<Launch, Error> {
        let mut g = Graph { name: name.into(), ..Graph::default() };
        let steps = from[self.perm[self.perm.len() - 1]].clone();
        let exact = multiple(&from[self.perm[self.columns]], self.width);
        let x = g.add_input(ty, None);
        let out = g.add_value(Type::tensor(PAIR, to.to_vec()), None);
        g.outputs = vec![out];
        let inner = r.part(&g, name);
        let mut e = Emitter::new(inner.name, &g);
        e.leaf(x)?;
        let to_view = e.output(0)?;
        let last = self.perm.len() - 1;
        let (outer, groups) = (to[..last].to_vec(), to[last].clone());
        let per = rows_per_instance(&(&groups * self.width as i64), map::GRAIN);
        let count = product(&outer);
        let (pid, per_v, count_v) = (e.b.program_id(0)?, e.dim_param(&per), e.dim_param(&count));
        let (zero, groups_v) = (e.b.int(0), e.dim_param(&groups));
        let lo = e.b.mul(pid, per_v)?;
        let end = e.b.add(lo, per_v)?;
        let hi = e.b.min(end, count_v)?;
        e.for_loop(lo, hi, 1, &[], |e, row, _| {
            let at = delinear(e, row, &outer)?;
            let column = match at[self.columns] {
                Coord::Affine { base, .. } => e.b.mul_int(base, self.width as i64)?,
                Coord::Tile { .. } => zero,
            };
            e.for_loop(zero, groups_v, 1, &[], |e, group, _| {
                e.shape = vec![self.width];
                let half = |e: &mut Emitter<'_>, k: i64| -> Result<Val, Error> {
                    let base = e.b.mul_int(group, 2)?;
                    let base = e.b.add_int(base, k)?;
                    let mut coords = vec![Coord::at(zero); last + 1];
                    for (place, &d) in self.perm.iter().enumerate() {
                        coords[d] = match place {
                            p if p == self.columns => Coord::along(column, 0, exact),
                            p if p == last => {
                                Coord::Affine { base, lane: None, inside: multiple(&steps, self.group.1) }
                            }
                            p => at[p],
                        };
                    }
                    let t = e.emit(x, &coords)?;
                    let t = e.b.bitcast(t, DType::U16)?;
                    Ok(e.b.cast(t, PAIR, CAST)?)
                };
                let (low, high) = (half(e, 0)?, half(e, 1)?);
                let far = e.b.full(PAIR, &[self.width], Num::Int(16))?;
                let high = e.b.binary(Binary::Shl, high, far)?;
                let t = e.b.binary(Binary::Or, low, high)?;
                let mut coords = at.clone();
                coords.extend([Coord::at(group), Coord::along(zero, 0, true)]);
                e.store_view(to_view, t, &coords)?;
                Ok(vec![])
            })?;
            Ok(vec![])
        })?;
        Ok(e.launch([count.ceildiv(&per), Dim::from(1), Dim::from(1)]))
    }
}
