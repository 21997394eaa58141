//! Matrix multiplication.

use super::emit::{Reg, V};
use super::layout::Layout;
use super::{Fun, Result, Tile, Value};
use tongtu_tensor::DType;
use tongtu_tile::Inst;

impl Fun<'_> {
    /// `acc + a × b` as outer products: each element of `a` is spread over the lanes of a row of `b`.
    pub(super) fn mma(&mut self, inst: &Inst) -> Result<()> {
        let (acc, a) = (self.tile(inst.operands[0])?.clone(), self.tile(inst.operands[1])?.clone());
        let b = self.tile(inst.operands[2])?.clone();
        let (m, n, k) = (acc.shape[0], acc.shape[1], a.shape[1]);
        let dtype = acc.dtype;
        // Narrow accumulators sum in f32 and round at the end.
        let sum = self.computes_in(dtype).unwrap_or(dtype);
        let left = self.elements(&a);
        let (acc_parts, b_parts) = (self.rows(&acc)?, self.rows(&b)?);
        let geo = self.geometry(&[m, n]);
        let cuts = geo.chunks.len();
        let mut out = Vec::with_capacity(acc_parts.len());
        for (p, x) in acc_parts.iter().enumerate() {
            out.push(self.cast(dtype, sum, Default::default(), geo.chunk(p).width, x)?);
        }
        let reg = Reg::of(sum);
        for kk in 0..k {
            let mut row = Vec::with_capacity(cuts);
            for (j, chunk) in geo.chunks.iter().enumerate() {
                row.push(self.cast(
                    b.dtype,
                    sum,
                    Default::default(),
                    chunk.width,
                    &b_parts[kk * cuts + j],
                )?);
            }
            for i in 0..m {
                let x = self.cast(a.dtype, sum, Default::default(), 1, &left[i * k + kk])?;
                for (j, chunk) in geo.chunks.iter().enumerate() {
                    let n = chunk.width;
                    let spread = self.spread(reg, &x, n);
                    let at = i * cuts + j;
                    out[at] = self.multiply_add(sum, n, &spread, &row[j], &out[at].clone(), inst)?;
                }
            }
        }
        let mut parts = Vec::with_capacity(out.len());
        for (p, x) in out.iter().enumerate() {
            parts.push(self.cast(sum, dtype, Default::default(), geo.chunk(p).width, x)?);
        }
        let tile = Tile { dtype, shape: vec![m, n], layout: Layout::Rows, parts };
        self.values[inst.results[0].index()] = Some(Value::Tile(tile));
        Ok(())
    }

    fn multiply_add(&mut self, dtype: DType, n: usize, a: &V, b: &V, c: &V, inst: &Inst) -> Result<V> {
        if dtype.is_float() {
            return self.fma(dtype, n, a, b, c, inst.flags);
        }
        let ty = Reg::of(dtype).ty(n);
        let product = self.bin("mul", &ty, a, b);
        let sum = self.add(dtype, n, c, &product, inst.flags)?;
        Ok(sum)
    }
}
