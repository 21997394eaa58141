//! Constants laid out in panels, and back.

use serde::{Deserialize, Serialize};
use tongtu_tensor::{DType, Tensor};

/// Dims `perm` of a value, the one at position `columns` cut into panels of `width`: the packed dims are
/// `perm[..columns] ++ [panels] ++ perm[columns + 1..] ++ [width]`. Columns past the end are zeros. Subnormal `f32` elements
/// become zero: products may count them so, and they slow a processor down a hundredfold; weights that decayed in training
/// are full of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Packing {
    /// The value's dims as they are counted here: neighbours may be one.
    pub dims: Vec<usize>,
    /// Order of the dims.
    pub perm: Vec<usize>,
    /// Which of them is cut, as a position in `perm`.
    pub columns: usize,
    /// Columns of a panel.
    pub width: usize,
    /// Steps of the last dim of `perm` that stand side by side, as a matrix unit reads them, and the number that its length is
    /// padded to a multiple of, with zeros. With more than 1 the packed dims end in `[…, length / steps, width, steps]`.
    pub group: (usize, usize),
}

/// One walk over the packed rows: where each begins in the dense value, and how many of its columns exist.
struct Rows {
    extents: Vec<usize>,
    steps: Vec<usize>,
    index: Vec<usize>,
    left: usize,
    columns: usize,
    width: usize,
    count: usize,
}

impl Iterator for Rows {
    type Item = (usize, usize);

    fn next(&mut self) -> Option<(usize, usize)> {
        self.left = self.left.checked_sub(1)?;
        let base = self.index.iter().zip(&self.steps).map(|(i, s)| i * s).sum();
        let count = self.width.min(self.count - self.index[self.columns] * self.width);
        for (i, e) in self.extents.iter().enumerate().rev() {
            self.index[i] += 1;
            if self.index[i] < *e {
                break;
            }
            self.index[i] = 0;
        }
        Some((base, count))
    }
}

impl Packing {
    /// Whether there is such a packing.
    pub fn is_valid(&self) -> bool {
        let rank = self.dims.len();
        let mut seen = vec![false; rank];
        self.perm.len() == rank
            && self.columns < rank
            && self.width > 0
            && self.group.0 > 0
            && (self.group.0 == 1 || self.columns + 1 < rank && self.group.1.is_multiple_of(self.group.0))
            && self.group.1 > 0
            && self.perm.iter().all(|&p| p < rank && !std::mem::replace(&mut seen[p], true))
    }

    /// The packed shape of a value; `None` if it has not as many elements, or they are too many.
    pub fn shape(&self, from: &[usize]) -> Option<Vec<usize>> {
        let count = |dims: &[usize]| dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        if !self.is_valid() || count(from)? != count(&self.dims)? {
            return None;
        }
        let mut shape: Vec<usize> = self.perm.iter().map(|&p| self.dims[p]).collect();
        shape[self.columns] = shape[self.columns].div_ceil(self.width);
        let (side, whole) = self.group;
        if side > 1
            && let Some(last) = shape.last_mut()
        {
            *last = last.checked_next_multiple_of(whole)? / side;
        }
        shape.push(self.width);
        if side > 1 {
            shape.push(side);
        }
        shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
        Some(shape)
    }

    /// Rows of the packed form of a dense value, and the distance between columns there.
    fn rows(&self) -> (Rows, usize) {
        let shape = &self.dims;
        let mut strides = vec![1usize; shape.len()];
        for i in (0..shape.len().saturating_sub(1)).rev() {
            strides[i] = strides[i + 1] * shape[i + 1];
        }
        let count = shape[self.perm[self.columns]];
        let stride = strides[self.perm[self.columns]];
        let cut = |i: usize, whole: usize, part: usize| if i == self.columns { part } else { whole };
        let perm = self.perm.iter().enumerate();
        let extents: Vec<usize> =
            perm.clone().map(|(i, &p)| cut(i, shape[p], count.div_ceil(self.width))).collect();
        let steps = perm.map(|(i, &p)| cut(i, strides[p], stride * self.width)).collect();
        let left = extents.iter().product();
        let index = vec![0; extents.len()];
        let (columns, width) = (self.columns, self.width);
        (Rows { extents, steps, index, left, columns, width, count }, stride)
    }

    /// A value, packed. `None` where its element type does not fill bytes, or as for [`Packing::shape`].
    pub fn pack(&self, value: &Tensor) -> Option<Tensor> {
        let size = value.dtype().byte_size()?;
        let out_shape = self.shape(value.shape())?;
        if value.shape() != self.dims {
            return self.pack(&value.to_contiguous().ok()?.reshape(&self.dims).ok()?);
        }
        // A view with its dims in another order is read where it lies.
        let mut order: Vec<usize> = (0..value.rank()).collect();
        order.sort_by_key(|&i| (std::cmp::Reverse(value.strides()[i]), i));
        let dense = value.permute(&order).ok().filter(Tensor::is_contiguous);
        if let Some(dense) = dense.filter(|_| !value.is_contiguous()) {
            let place = |p: &usize| order.iter().position(|o| o == p);
            let perm = self.perm.iter().map(place).collect::<Option<Vec<_>>>()?;
            return Packing { dims: dense.shape().to_vec(), perm, ..self.clone() }.pack(&dense);
        }
        if self.group.0 > 1 {
            let panels = Packing { group: (1, 1), ..self.clone() }.pack(value)?;
            return self.interleave(&panels, &out_shape);
        }
        let (rows, stride) = self.rows();
        let mut out = Tensor::zeros(value.dtype(), &out_shape).ok()?;
        let source = value.bytes();
        for (row, (base, count)) in out.bytes_mut().chunks_exact_mut(self.width * size).zip(rows) {
            let row = &mut row[..count * size];
            match (stride, size) {
                (1, _) => row.copy_from_slice(&source[base * size..][..count * size]),
                (_, 4) => gather::<4>(row, &source, base, stride),
                (_, 2) => gather::<2>(row, &source, base, stride),
                (_, 1) => gather::<1>(row, &source, base, stride),
                _ => gather::<8>(row, &source, base, stride),
            }
            if value.dtype() == DType::F32 {
                flush(row);
            }
        }
        Some(out)
    }

    /// Where cell `j` of step `k` of a panel lies among cells that stand side by side.
    fn beside(&self, k: usize, j: usize) -> usize {
        let side = self.group.0;
        k / side * self.width * side + j * side + k % side
    }

    /// Panels `[…, steps, width]` as `[…, steps / side, width, side]`.
    fn interleave(&self, panels: &Tensor, shape: &[usize]) -> Option<Tensor> {
        let size = panels.dtype().byte_size()?;
        let (line, steps) = (self.width * size, panels.shape()[panels.rank() - 2]);
        let mut out = Tensor::zeros(panels.dtype(), shape).ok()?;
        let (source, target) = (panels.bytes(), out.bytes_mut());
        for (from, to) in self.cells(steps, source.len() / line, size) {
            target[to..][..size].copy_from_slice(&source[from..][..size]);
        }
        Some(out)
    }

    /// Undoes [`Packing::interleave`].
    fn separate(&self, packed: &Tensor, shape: &[usize]) -> Option<Tensor> {
        let size = packed.dtype().byte_size()?;
        let (line, steps) = (self.width * size, shape[shape.len() - 2]);
        let mut out = Tensor::zeros(packed.dtype(), shape).ok()?;
        let (source, target) = (packed.bytes(), out.bytes_mut());
        for (to, from) in self.cells(steps, target.len() / line, size) {
            target[to..][..size].copy_from_slice(&source[from..][..size]);
        }
        Some(out)
    }

    /// For each cell of `lines` lines in panels of `steps`, its place in bytes, and its place among cells that stand side by side.
    fn cells(&self, steps: usize, lines: usize, size: usize) -> impl Iterator<Item = (usize, usize)> {
        let (width, padded) = (self.width, steps.next_multiple_of(self.group.1));
        (0..lines).flat_map(move |line| {
            let (panel, k) = (line / steps, line % steps);
            let place = move |j| panel * padded * width + self.beside(k, j);
            (0..width).map(move |j| ((line * width + j) * size, place(j) * size))
        })
    }

    /// The value of a shape that a packed one was made from. `None` where the packed shape is not that of `shape`.
    pub fn unpack(&self, packed: &Tensor, shape: &[usize]) -> Option<Tensor> {
        let size = packed.dtype().byte_size()?;
        if self.shape(shape)? != packed.shape() {
            return None;
        }
        if self.group.0 > 1 {
            let plain = Packing { group: (1, 1), ..self.clone() };
            return plain.unpack(&self.separate(packed, &plain.shape(shape)?)?, shape);
        }
        let (rows, stride) = self.rows();
        let mut out = Tensor::zeros(packed.dtype(), &self.dims).ok()?;
        let target = out.bytes_mut();
        for (row, (base, count)) in packed.bytes().chunks_exact(self.width * size).zip(rows) {
            for (j, cell) in row[..count * size].chunks_exact(size).enumerate() {
                target[(base + j * stride) * size..][..size].copy_from_slice(cell);
            }
        }
        out.reshape(shape).ok()
    }
}

/// Makes subnormal `f32` elements zero.
fn flush(row: &mut [u8]) {
    for cell in row.as_chunks_mut::<4>().0 {
        let bits = u32::from_le_bytes(*cell);
        if bits & 0x7F80_0000 == 0 {
            *cell = (bits & 0x8000_0000).to_le_bytes();
        }
    }
}

/// Fills a row with every `stride`-th element from `base` on.
fn gather<const SIZE: usize>(row: &mut [u8], source: &[u8], base: usize, stride: usize) {
    for (j, cell) in row.as_chunks_mut::<SIZE>().0.iter_mut().enumerate() {
        let at = (base + j * stride) * SIZE;
        cell.copy_from_slice(&source[at..at + SIZE]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    fn numbers(shape: &[usize]) -> Tensor {
        Tensor::from_fn(DType::I32, shape, |i| tongtu_tensor::Num::Int(i as i128 + 1)).unwrap()
    }

    #[test]
    fn every_element_lands_where_the_layout_says() {
        let x = numbers(&[3, 5, 7]);
        let dims = vec![3, 5, 7];
        let packing = Packing { dims, perm: vec![2, 0, 1], columns: 1, width: 2, group: (1, 1) };
        let y = packing.pack(&x).unwrap();
        assert_eq!(y.shape(), [7, 2, 5, 2]);
        for k in 0..7 {
            for n in 0..4 {
                for j in 0..5 {
                    let expected = if n < 3 { x.get(&[n, j, k]) } else { tongtu_tensor::Num::Int(0) };
                    assert_eq!(y.get(&[k, n / 2, j, n % 2]), expected);
                }
            }
        }
    }

    #[test]
    fn unpacking_undoes_it() {
        for (shape, perm, columns, width) in [
            (vec![6usize, 4], vec![0, 1], 0usize, 4usize),
            (vec![6, 5], vec![1, 0], 1, 4),
            (vec![2, 3, 4, 5], vec![3, 1, 0, 2], 2, 3),
            (vec![7], vec![0], 0, 16),
            (vec![0, 3], vec![1, 0], 1, 2),
        ] {
            let x = numbers(&shape);
            let packing = Packing { dims: shape.clone(), perm, columns, width, group: (1, 1) };
            let back = packing.unpack(&packing.pack(&x).unwrap(), &shape).unwrap();
            assert!(back.same_bits(&x), "{shape:?} {packing:?}");
        }
    }

    #[test]
    fn steps_stand_side_by_side_and_come_apart() {
        for (shape, group) in [([6usize, 10], (4usize, 64usize)), ([5, 7], (2, 2)), ([3, 0], (4, 4))] {
            let x = numbers(&shape);
            let dims = shape.to_vec();
            let packing = Packing { dims, perm: vec![0, 1], columns: 0, width: 4, group };
            let y = packing.pack(&x).unwrap();
            let steps = shape[1].next_multiple_of(group.1);
            assert_eq!(y.shape(), [shape[0].div_ceil(4), steps / group.0, 4, group.0]);
            for n in 0..shape[0] {
                for k in 0..shape[1] {
                    assert_eq!(y.get(&[n / 4, k / group.0, n % 4, k % group.0]), x.get(&[n, k]));
                }
            }
            assert!(packing.unpack(&y, &shape).unwrap().same_bits(&x));
        }
    }

    #[test]
    fn a_permuted_view_is_packed_like_its_copy() {
        let view = numbers(&[4, 6, 5]).permute(&[2, 0, 1]).unwrap();
        let dims = vec![5, 4, 6];
        let packing = Packing { dims, perm: vec![1, 2, 0], columns: 2, width: 4, group: (1, 1) };
        let dense = view.to_contiguous().unwrap();
        assert!(packing.pack(&view).unwrap().same_bits(&packing.pack(&dense).unwrap()));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let x = numbers(&[2, 3]);
        for (perm, columns, width) in
            [(vec![0, 0], 0, 1), (vec![0, 1], 2, 1), (vec![0, 1], 0, 0), (vec![0], 0, 1), (vec![0, 2], 0, 1)]
        {
            let dims = vec![2, 3];
            assert!(Packing { dims, perm, columns, width, group: (1, 1) }.pack(&x).is_none());
        }
        let dims = vec![2, 3];
        let packing = Packing { dims, perm: vec![0, 1], columns: 0, width: 4, group: (1, 1) };
        assert!(packing.unpack(&x, &[2, 3]).is_none());
        assert!(packing.pack(&numbers(&[7])).is_none());
    }

    #[test]
    fn neighbouring_dims_may_count_as_one() {
        let x = numbers(&[4, 2, 3]);
        let packing = Packing { dims: vec![4, 6], perm: vec![1, 0], columns: 0, width: 4, group: (1, 1) };
        let y = packing.pack(&x).unwrap();
        assert_eq!(y.shape(), [2, 4, 4]);
        assert!(y.same_bits(&packing.pack(&x.reshape(&[4, 6]).unwrap()).unwrap()));
        assert!(packing.unpack(&y, &[4, 2, 3]).unwrap().same_bits(&x));
    }
}
