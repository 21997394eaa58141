//! Packing: an operand of a contraction or convolution laid out in panels.
//!
//! A panel holds, for every position of the summed dims, `width` neighbouring columns next to each other, zeros past the end. The
//! layout is pad, reshape and permute, written as a graph: constants are packed when compiling, other
//! operands by a kernel made from that graph.

use tongtu_graph::{Builder, Graph, GraphError, Type};
use tongtu_plan::Packing;
use tongtu_tensor::DType;
use tongtu_tensor::dim::{Dim, Symbols};

use super::{Launch, Request, Scheduled, map};
use crate::emit::{KernelArg, zero_of};
use crate::error::Error;
use crate::fuse::Kind;

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
}

/// Makes subnormal `f32` elements zero. Products may count them so, and they slow a processor down a hundredfold; weights that
/// decayed in training are full of them.
pub(crate) fn flush(bytes: &mut [u8]) {
    for cell in bytes.as_chunks_mut::<4>().0 {
        let bits = u32::from_le_bytes(*cell);
        if bits & 0x7F80_0000 == 0 {
            *cell = (bits & 0x8000_0000).to_le_bytes();
        }
    }
}

impl Pack {
    /// Dims of the packed value.
    pub fn dims(&self, from: &[Dim]) -> Vec<Dim> {
        let mut dims: Vec<Dim> = self.perm.iter().map(|&p| from[p].clone()).collect();
        dims[self.columns] = dims[self.columns].ceildiv(&Dim::from(self.width as i64));
        dims.push(Dim::from(self.width as i64));
        dims
    }

    /// The layout, for constants.
    pub fn packing(&self) -> Packing {
        Packing { perm: self.perm.clone(), columns: self.columns, width: self.width }
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
        {
            s.packed.push(self);
            return Ok(KernelArg::Packed(s.packed.len() - 1));
        }
        let (dtype, dims) = (r.graph.dtype(v), r.graph.dims(v).to_vec());
        let graph = self.graph(dtype, &dims)?;
        let name = format!("{}_pack", r.name);
        let inner = Request {
            graph: &graph,
            kind: &Kind::Map,
            constants: &[None],
            machine: r.machine,
            name: &name,
            loc: r.loc,
            in_place: false,
        };
        let temp = s.temps.len();
        s.temps.push((dtype, self.dims(&dims)));
        for mut l in map::schedule(&inner)?.launches {
            for a in &mut l.args {
                match a {
                    KernelArg::Input(_) => *a = KernelArg::Input(self.input),
                    KernelArg::Output(_) => *a = KernelArg::Temp(temp),
                    _ => {}
                }
            }
            let Launch { kernel, args, grid } = l;
            s.launches.push(Launch { kernel, args, grid });
        }
        Ok(KernelArg::Temp(temp))
    }
}
