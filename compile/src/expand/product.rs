//! Products of matrices in elementwise instructions.

use tongtu_tile::{Op, Val};

use super::emit::Emit;

impl Emit<'_> {
    /// The elements from `first` on, `n` of them, along a dim.
    fn part(&mut self, t: Val, dim: usize, first: usize, n: usize) -> Option<Val> {
        let mut shape = self.ty(t).as_tile()?.1.to_vec();
        let mut offset = vec![0; shape.len()];
        (offset[dim], shape[dim]) = (first, n);
        Some(self.op(Op::Extract { offset, shape }, &[t]))
    }

    fn length(&self, t: Val, dim: usize) -> Option<usize> {
        self.ty(t).as_tile()?.1.get(dim).copied()
    }

    /// A product of matrices, one column times one row after another.
    pub(super) fn mma_in_parts(&mut self, acc: Val, a: Val, b: Val) -> Option<Val> {
        let shape = self.ty(acc).as_tile()?.1.to_vec();
        let mut acc = acc;
        for k in 0..self.length(a, 1)? {
            let (column, row) = (self.part(a, 1, k, 1)?, self.part(b, 0, k, 1)?);
            let wide = Op::Broadcast { shape: shape.clone() };
            let (column, row) = (self.op(wide.clone(), &[column]), self.op(wide, &[row]));
            let product = self.mul(column, row);
            acc = self.add(acc, product);
        }
        Some(acc)
    }
}
