//! Host tensors.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use crate::storage::Owned;
use crate::{CastMode, DType, Element, Num, Overflow, Storage, TensorError};

/// A shaped array of elements in host memory.
///
/// Clones and views share the bytes; writing copies them first if they are shared. Elements of a byte or more
/// may be strided views; elements of less than a byte are always one dense row-major run. Linear indices count
/// elements in row-major order, whatever the strides.
#[derive(Clone)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    strides: Vec<isize>,
    /// Offset of the first element in bytes.
    offset: usize,
    data: Data,
}

#[derive(Clone)]
enum Data {
    Owned(Arc<Owned>),
    Shared(Arc<dyn Storage>),
    /// Nobody has the elements; the line gives an address of its own, and zeros.
    Absent(Arc<Owned>),
}

impl Data {
    fn bytes(&self) -> &[u8] {
        match self {
            Data::Owned(owned) | Data::Absent(owned) => owned.bytes(),
            Data::Shared(storage) => storage.bytes(),
        }
    }
}

/// Number of elements and bytes of a tensor; an error if either does not fit.
fn sizes_of(dtype: DType, shape: &[usize]) -> Result<(usize, usize), TensorError> {
    let empty = shape.contains(&0);
    let count = match empty {
        true => Some(0),
        false => shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)),
    };
    let sizes = count.and_then(|n| Some((n, dtype.bytes_for(n)?)));
    sizes
        .filter(|s| s.0 <= isize::MAX as usize && s.1 <= isize::MAX as usize)
        .ok_or_else(|| TensorError::TooLarge { dtype, shape: shape.to_vec() })
}

/// Strides of a dense row-major array.
fn dense_strides(shape: &[usize]) -> Vec<isize> {
    let mut strides = vec![0; shape.len()];
    let mut step = 1isize;
    for (stride, &dim) in strides.iter_mut().zip(shape).rev() {
        *stride = step;
        // Wraps only if some dim is zero, when no stride is ever used.
        step = step.wrapping_mul(dim.max(1) as isize);
    }
    strides
}

/// The code of element `i` of a dense run.
fn fetch(bytes: &[u8], dtype: DType, i: usize) -> u64 {
    match dtype.bits() {
        8 => bytes[i].into(),
        16 => u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).into(),
        bits @ (32 | 64) => {
            let size = bits as usize / 8;
            let mut code = [0; 8];
            code[..size].copy_from_slice(&bytes[i * size..][..size]);
            u64::from_le_bytes(code)
        }
        bits => {
            let (byte, shift) = sub_byte(bits, i);
            let high = bytes.get(byte + 1).copied().unwrap_or(0);
            u64::from(u16::from_le_bytes([bytes[byte], high]) >> shift) & ((1 << bits) - 1)
        }
    }
}

/// Sets the code of element `i` of a dense run.
fn put(bytes: &mut [u8], dtype: DType, i: usize, code: u64) {
    match dtype.byte_size() {
        Some(size) => bytes[i * size..][..size].copy_from_slice(&code.to_le_bytes()[..size]),
        None => {
            let bits = dtype.bits();
            let (byte, shift) = sub_byte(bits, i);
            let mask = ((1u16 << bits) - 1) << shift;
            let [low, high] = ((code as u16) << shift & mask).to_le_bytes();
            let [keep_low, keep_high] = (!mask).to_le_bytes();
            bytes[byte] = bytes[byte] & keep_low | low;
            if keep_high != 0xff {
                bytes[byte + 1] = bytes[byte + 1] & keep_high | high;
            }
        }
    }
}

/// The byte in which element `i` begins and the bit there, for elements of less than a byte.
fn sub_byte(bits: u32, i: usize) -> (usize, u32) {
    let bits = bits as usize;
    let in_group = i % 8 * bits;
    (i / 8 * bits + in_group / 8, (in_group % 8) as u32)
}

impl Tensor {
    /// A tensor of zero bytes (of f8e8m0 that is 2^-127).
    pub fn zeros(dtype: DType, shape: &[usize]) -> Result<Tensor, TensorError> {
        let (_, bytes) = sizes_of(dtype, shape)?;
        let owned =
            Owned::zeros(bytes).ok_or_else(|| TensorError::TooLarge { dtype, shape: shape.to_vec() })?;
        Ok(Tensor::dense(dtype, shape, Data::Owned(Arc::new(owned)), 0))
    }

    fn dense(dtype: DType, shape: &[usize], data: Data, offset: usize) -> Tensor {
        Tensor { dtype, shape: shape.to_vec(), strides: dense_strides(shape), offset, data }
    }

    /// A tensor of the given bytes, copied to aligned storage. Bytes of a bool tensor must be 0 or 1; padding
    /// bits after the last sub-byte element are cleared.
    pub fn from_bytes(dtype: DType, shape: &[usize], bytes: Vec<u8>) -> Result<Tensor, TensorError> {
        let (count, need) = sizes_of(dtype, shape)?;
        if need != bytes.len() {
            let shape = shape.to_vec();
            return Err(TensorError::WrongSize { dtype, shape, need, have: bytes.len() });
        }
        check_bools(dtype, &bytes)?;
        let mut tensor = Tensor::zeros(dtype, shape)?;
        let target = tensor.bytes_mut();
        target.copy_from_slice(&bytes);
        let spare = need as u64 * 8 - count as u64 * u64::from(dtype.bits());
        if let (Some(last), 1..8) = (target.last_mut(), spare) {
            *last &= 0xff >> spare;
        }
        Ok(tensor)
    }

    /// A tensor of the given elements.
    pub fn from_slice<T: Element>(shape: &[usize], elements: &[T]) -> Result<Tensor, TensorError> {
        let bytes: &[u8] = bytemuck::cast_slice(elements);
        let (_, need) = sizes_of(T::DTYPE, shape)?;
        if need != bytes.len() {
            let (dtype, shape) = (T::DTYPE, shape.to_vec());
            return Err(TensorError::WrongSize { dtype, shape, need, have: bytes.len() });
        }
        let mut tensor = Tensor::zeros(T::DTYPE, shape)?;
        tensor.bytes_mut().copy_from_slice(bytes);
        Ok(tensor)
    }

    /// A tensor over bytes that live elsewhere, from `byte_offset` on; nothing is copied.
    pub fn from_storage(
        dtype: DType,
        shape: &[usize],
        storage: Arc<dyn Storage>,
        byte_offset: usize,
    ) -> Result<Tensor, TensorError> {
        let (_, need) = sizes_of(dtype, shape)?;
        let have = storage.bytes().len().saturating_sub(byte_offset);
        if need > have {
            return Err(TensorError::WrongSize { dtype, shape: shape.to_vec(), need, have });
        }
        if dtype.is_bool() {
            check_bools(dtype, &storage.bytes()[byte_offset..][..need])?;
        }
        // Nothing of an empty tensor is ever read, wherever it lies.
        let byte_offset = if need == 0 { 0 } else { byte_offset };
        Ok(Tensor::dense(dtype, shape, Data::Shared(storage), byte_offset))
    }

    /// A tensor whose elements nobody has, for questions that its type and shape answer: it takes no memory, and reads as zeros. Views of
    /// it are absent too.
    pub fn absent(dtype: DType, shape: &[usize]) -> Result<Tensor, TensorError> {
        sizes_of(dtype, shape)?;
        let data = Data::Absent(Arc::new(Owned::default_line()));
        Ok(Tensor { dtype, shape: shape.to_vec(), strides: vec![0; shape.len()], offset: 0, data })
    }

    /// Whether nobody has the elements; see [`Tensor::absent`].
    pub fn is_absent(&self) -> bool {
        matches!(self.data, Data::Absent(_))
    }

    /// A tensor of rank 0; the value is converted as by [`cast`](crate::cast).
    pub fn scalar(dtype: DType, value: Num) -> Tensor {
        let mut owned = Owned::default_line();
        put(owned.bytes_mut(), dtype, 0, dtype.encode(value, Overflow::Format));
        Tensor::dense(dtype, &[], Data::Owned(Arc::new(owned)), 0)
    }

    /// A tensor of equal elements; the value is converted as by [`cast`](crate::cast).
    pub fn full(dtype: DType, shape: &[usize], value: Num) -> Result<Tensor, TensorError> {
        let mut tensor = Tensor::zeros(dtype, shape)?;
        let code = dtype.encode(value, Overflow::Format);
        let count = tensor.len();
        if code != 0 {
            let bytes = tensor.bytes_mut();
            match dtype.byte_size() {
                Some(size) => bytes
                    .chunks_exact_mut(size)
                    .for_each(|element| element.copy_from_slice(&code.to_le_bytes()[..size])),
                None => (0..count).for_each(|i| put(bytes, dtype, i, code)),
            }
        }
        Ok(tensor)
    }

    /// A tensor whose element at each linear index is given by a function, converted as by [`cast`](crate::cast).
    pub fn from_fn(
        dtype: DType,
        shape: &[usize],
        mut element: impl FnMut(usize) -> Num,
    ) -> Result<Tensor, TensorError> {
        let mut tensor = Tensor::zeros(dtype, shape)?;
        let count = tensor.len();
        let bytes = tensor.bytes_mut();
        for i in 0..count {
            put(bytes, dtype, i, dtype.encode(element(i), Overflow::Format));
        }
        Ok(tensor)
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The size of each axis.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Distance between neighbours on each axis, in elements.
    pub fn strides(&self) -> &[isize] {
        &self.strides
    }

    /// Offset of the first element in the storage, in bytes.
    pub fn byte_offset(&self) -> usize {
        self.offset
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self.shape.contains(&0) {
            true => 0,
            false => self.shape.iter().product(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }

    /// Bytes that the elements take when dense.
    pub fn nbytes(&self) -> usize {
        self.dtype.bytes_for(self.len()).unwrap_or(usize::MAX)
    }

    /// Whether the elements are one dense row-major run.
    pub fn is_contiguous(&self) -> bool {
        let mut step = 1;
        if self.is_absent() && self.len() > 1 {
            return false;
        }
        self.is_empty()
            || self.shape.iter().zip(&self.strides).rev().all(|(&dim, &stride)| {
                let fits = dim == 1 || stride == step;
                step *= dim as isize;
                fits
            })
    }

    /// The same tensor as one dense row-major run; shares the bytes if it is one already.
    pub fn to_contiguous(&self) -> Result<Tensor, TensorError> {
        if self.is_contiguous() {
            return Ok(self.clone());
        }
        let mut dense = Tensor::zeros(self.dtype, &self.shape)?;
        self.copy_runs(dense.bytes_mut());
        Ok(dense)
    }

    /// Copies the elements, which take at least a byte each, to a dense run.
    fn copy_runs(&self, target: &mut [u8]) {
        // The trailing axes that are dense are copied at once.
        let (mut outer, mut run) = (self.rank(), 1);
        while let Some(axis) = outer.checked_sub(1)
            && (self.shape[axis] == 1 || self.strides[axis] == run as isize)
        {
            run *= self.shape[axis];
            outer = axis;
        }
        let size = self.dtype.byte_size().unwrap_or(1);
        let starts = Tensor {
            shape: self.shape[..outer].to_vec(),
            strides: self.strides[..outer].to_vec(),
            ..self.clone()
        };
        let source = self.data.bytes();
        for (elements, at) in target.chunks_exact_mut(run.max(1) * size).zip(starts.offsets()) {
            elements.copy_from_slice(&source[at..][..run * size]);
        }
    }

    /// Byte offsets of all elements in row-major order, for elements of at least a byte.
    fn offsets(&self) -> Offsets<'_> {
        Offsets { tensor: self, index: vec![0; self.rank()], at: self.offset as isize, left: self.len() }
    }

    fn offset_of(&self, mut i: usize, size: usize) -> usize {
        let mut at = self.offset as isize;
        for (&dim, &stride) in self.shape.iter().zip(&self.strides).rev() {
            at += (i % dim) as isize * stride * size as isize;
            i /= dim;
        }
        at as usize
    }

    fn dense_bytes(&self) -> Option<&[u8]> {
        self.is_contiguous().then(|| &self.data.bytes()[self.offset..][..self.nbytes()])
    }

    /// The bytes of the elements in row-major order; copied if the tensor is a strided view.
    pub fn bytes(&self) -> Cow<'_, [u8]> {
        if let Some(bytes) = self.dense_bytes() {
            return Cow::Borrowed(bytes);
        }
        let mut bytes = vec![0; self.nbytes()];
        self.copy_runs(&mut bytes);
        Cow::Owned(bytes)
    }

    /// The bytes of the elements in row-major order, to write. Bytes that others share, and strided views, are
    /// copied first. A bool must stay 0 or 1.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let len = self.nbytes();
        let ours = match &mut self.data {
            Data::Owned(owned) => Arc::get_mut(owned).is_some(),
            Data::Shared(_) | Data::Absent(_) => false,
        };
        if !ours || !self.is_contiguous() {
            let owned = Owned::copy_of(&self.bytes());
            *self = Tensor::dense(self.dtype, &self.shape, Data::Owned(Arc::new(owned)), 0);
        }
        let offset = self.offset;
        match &mut self.data {
            Data::Owned(owned) => &mut Arc::make_mut(owned).bytes_mut()[offset..][..len],
            Data::Shared(_) | Data::Absent(_) => &mut [],
        }
    }

    /// The address of the first element: what is read from the same address, by the same type, shape and strides, is the
    /// same tensor.
    pub fn address(&self) -> usize {
        self.data.bytes().as_ptr().addr() + self.offset
    }

    /// Lets go of memory that mapped elements take; they are read from the file again when they are needed.
    pub fn release(&self) {
        if let Data::Shared(storage) = &self.data {
            storage.release(self.offset..self.offset + self.nbytes());
        }
    }

    /// The elements in row-major order, without a copy.
    pub fn as_slice<T: Element>(&self) -> Result<&[T], TensorError> {
        self.check_type(T::DTYPE)?;
        let bytes = self.dense_bytes().ok_or(TensorError::NotContiguous)?;
        bytemuck::checked::try_cast_slice(bytes).map_err(|_| TensorError::Misaligned(self.dtype))
    }

    /// The elements in row-major order.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>, TensorError> {
        self.check_type(T::DTYPE)?;
        let elements =
            self.bytes().chunks_exact(size_of::<T>()).map(bytemuck::checked::pod_read_unaligned).collect();
        Ok(elements)
    }

    /// The elements in row-major order, to write; shared bytes and strided views are copied first.
    pub fn as_mut_slice<T: Element + bytemuck::AnyBitPattern>(&mut self) -> Result<&mut [T], TensorError> {
        self.check_type(T::DTYPE)?;
        let dtype = self.dtype;
        bytemuck::try_cast_slice_mut(self.bytes_mut()).map_err(|_| TensorError::Misaligned(dtype))
    }

    fn check_type(&self, want: DType) -> Result<(), TensorError> {
        match self.dtype == want {
            true => Ok(()),
            false => Err(TensorError::WrongType { have: self.dtype, want }),
        }
    }

    /// One element.
    ///
    /// # Panics
    /// If the index is out of bounds or has another rank, like indexing a slice.
    pub fn get(&self, index: &[usize]) -> Num {
        assert!(
            index.len() == self.rank() && index.iter().zip(&self.shape).all(|(i, d)| i < d),
            "index {index:?} out of bounds of shape {:?}",
            self.shape
        );
        let linear = index.iter().zip(&self.shape).fold(0, |n, (&i, &d)| n * d + i);
        self.get_linear(linear)
    }

    /// The element at a linear index.
    ///
    /// # Panics
    /// If the index is out of bounds, like indexing a slice.
    pub fn get_linear(&self, i: usize) -> Num {
        self.dtype.decode(self.code(i))
    }

    /// The bit pattern of the element at a linear index.
    ///
    /// # Panics
    /// If the index is out of bounds, like indexing a slice.
    pub fn code(&self, i: usize) -> u64 {
        assert!(i < self.len(), "index {i} out of bounds of {} elements", self.len());
        match self.dtype.byte_size() {
            _ if self.is_absent() => 0,
            Some(size) => fetch(&self.data.bytes()[self.offset_of(i, size)..][..size], self.dtype, 0),
            None => fetch(&self.data.bytes()[self.offset..], self.dtype, i),
        }
    }

    /// Sets the element at a linear index; the value is converted as by [`cast`](crate::cast).
    ///
    /// # Panics
    /// If the index is out of bounds, like indexing a slice.
    pub fn set_linear(&mut self, i: usize, value: Num) {
        let dtype = self.dtype;
        self.set_code(i, dtype.encode(value, Overflow::Format));
    }

    /// Sets the bit pattern of the element at a linear index.
    ///
    /// # Panics
    /// If the index is out of bounds, like indexing a slice.
    pub fn set_code(&mut self, i: usize, code: u64) {
        assert!(i < self.len(), "index {i} out of bounds of {} elements", self.len());
        let dtype = self.dtype;
        put(self.bytes_mut(), dtype, i, code);
    }

    /// The elements in row-major order.
    pub fn iter(&self) -> impl Iterator<Item = Num> + '_ {
        self.codes().map(|code| self.dtype.decode(code))
    }

    /// The bit patterns of the elements in row-major order.
    pub fn codes(&self) -> impl Iterator<Item = u64> + '_ {
        let dense = self.dense_bytes();
        let bytes = self.data.bytes();
        let size = self.dtype.byte_size().unwrap_or(1);
        let mut offsets = self.offsets();
        (0..self.len()).map(move |i| match dense {
            Some(dense) => fetch(dense, self.dtype, i),
            None => offsets.next().map_or(0, |at| fetch(&bytes[at..][..size], self.dtype, 0)),
        })
    }

    /// A view with the axes reordered: axis `i` of the result is axis `axes[i]` of this tensor.
    pub fn permute(&self, axes: &[usize]) -> Result<Tensor, TensorError> {
        let mut seen = vec![false; self.rank()];
        let valid = axes.len() == self.rank()
            && axes.iter().all(|&a| a < seen.len() && !std::mem::replace(&mut seen[a], true));
        if !valid {
            return Err(TensorError::BadPermutation(axes.to_vec()));
        }
        let shape: Vec<usize> = axes.iter().map(|&a| self.shape[a]).collect();
        let strides = axes.iter().map(|&a| self.strides[a]).collect();
        self.view(shape, strides, 0)
    }

    /// A view of the elements `start`, `start + step`, … of an axis, up to but without `stop`. Indices are not
    /// wrapped or clamped: a forward slice needs 0 ≤ start ≤ stop ≤ dim; a backward one (step < 0)
    /// dim > start ≥ stop ≥ -1, where a stop of -1 includes element 0.
    pub fn slice(&self, axis: usize, start: i64, stop: i64, step: i64) -> Result<Tensor, TensorError> {
        let rank = self.rank();
        let Some(&dim) = self.shape.get(axis) else { return Err(TensorError::BadAxis { axis, rank }) };
        let size = dim as i64;
        let valid = match step {
            1.. => 0 <= start && start <= stop && stop <= size,
            0 => false,
            _ => -1 <= stop && stop <= start && start < size,
        };
        if !valid {
            return Err(TensorError::BadSlice { start, stop, step, dim });
        }
        let count = start.abs_diff(stop).div_ceil(step.unsigned_abs()) as usize;
        let mut shape = self.shape.clone();
        let mut strides = self.strides.clone();
        shape[axis] = count;
        // With at most one element the stride is never used, and only then can this wrap.
        strides[axis] = strides[axis].wrapping_mul(step as isize);
        let shift = (start as isize).wrapping_mul(self.strides[axis]);
        self.view(shape, strides, shift)
    }

    /// A view of a larger shape by NumPy's rule: axes align at the end, missing axes and axes of size 1 repeat.
    pub fn broadcast_to(&self, shape: &[usize]) -> Result<Tensor, TensorError> {
        let bad = || TensorError::BadShape { from: self.shape.clone(), to: shape.to_vec() };
        sizes_of(self.dtype, shape)?;
        let new_axes = shape.len().checked_sub(self.rank()).ok_or_else(bad)?;
        let mut strides = vec![0; shape.len()];
        for (axis, &dim) in self.shape.iter().enumerate() {
            let target = shape[new_axes + axis];
            if dim == target {
                strides[new_axes + axis] = self.strides[axis];
            } else if dim != 1 {
                return Err(bad());
            }
        }
        self.view(shape.to_vec(), strides, 0)
    }

    /// The same elements in row-major order under another shape; copies if the tensor is a strided view.
    pub fn reshape(&self, shape: &[usize]) -> Result<Tensor, TensorError> {
        let (count, _) = sizes_of(self.dtype, shape)?;
        if count != self.len() {
            return Err(TensorError::BadShape { from: self.shape.clone(), to: shape.to_vec() });
        }
        if self.is_absent() {
            return self.view(shape.to_vec(), vec![0; shape.len()], 0);
        }
        let dense = self.to_contiguous()?;
        Ok(Tensor::dense(self.dtype, shape, dense.data, dense.offset))
    }

    /// A view, `shift` elements on; of sub-byte elements a dense copy.
    fn view(&self, shape: Vec<usize>, strides: Vec<isize>, shift: isize) -> Result<Tensor, TensorError> {
        if self.is_absent() {
            let strides = vec![0; shape.len()];
            return Ok(Tensor { dtype: self.dtype, shape, strides, offset: 0, data: self.data.clone() });
        }
        if shape.contains(&0) {
            return Ok(Tensor::dense(self.dtype, &shape, self.data.clone(), 0));
        }
        let Some(size) = self.dtype.byte_size() else {
            let mut dense = Tensor::zeros(self.dtype, &shape)?;
            let elements = Tensor {
                // Only the offsets of this view are used: one unit per element.
                dtype: DType::U8,
                shape,
                strides,
                offset: shift.max(0) as usize,
                data: self.data.clone(),
            };
            let source = &self.data.bytes()[self.offset..];
            let target = dense.bytes_mut();
            for (i, at) in elements.offsets().enumerate() {
                put(target, self.dtype, i, fetch(source, self.dtype, at));
            }
            return Ok(dense);
        };
        let offset = (self.offset as isize + shift * size as isize) as usize;
        Ok(Tensor { dtype: self.dtype, shape, strides, offset, data: self.data.clone() })
    }

    /// Every element converted to another type, see [`cast`](crate::cast).
    pub fn cast(&self, to: DType, mode: CastMode) -> Result<Tensor, TensorError> {
        if to == self.dtype && mode.overflow == Overflow::Format {
            return Ok(self.clone());
        }
        let mut result = Tensor::zeros(to, &self.shape)?;
        let bytes = result.bytes_mut();
        let convert = |code| to.encode_rounded(self.dtype.decode(code), mode);
        if self.cast_dense(to, mode, bytes) {
            return Ok(result);
        }
        // Narrow types have fewer codes than a large tensor has elements.
        if self.dtype.bits() <= 16 && self.len() >= 1 << self.dtype.bits() {
            let table: Vec<u64> = (0..1 << self.dtype.bits()).map(convert).collect();
            self.codes().enumerate().for_each(|(i, code)| put(bytes, to, i, table[code as usize]));
        } else {
            self.codes().enumerate().for_each(|(i, code)| put(bytes, to, i, convert(code)));
        }
        Ok(result)
    }

    /// [`Tensor::cast`] of what large quantised constants are made of, as fast as memory. Gives whether it was done.
    fn cast_dense(&self, to: DType, mode: CastMode, out: &mut [u8]) -> bool {
        let Some(dense) = self.dense_bytes().filter(|_| !self.is_absent()) else { return false };
        let (from_int, to_int) = (self.dtype.is_int(), to.is_int());
        let words = || dense.chunks_exact(4).map(|c| i32::from_le_bytes([c[0], c[1], c[2], c[3]]));
        match (self.dtype.bits(), to.bits()) {
            // Fewer codes than elements.
            (8, 32) if self.len() >= 256 && !self.dtype.is_bool() => {
                let value = |code| to.encode_rounded(self.dtype.decode(code), mode) as u32;
                let table: Vec<[u8; 4]> = (0..256).map(|code| value(code).to_le_bytes()).collect();
                let places = out.chunks_exact_mut(4).zip(dense);
                places.for_each(|(o, &code)| o.copy_from_slice(&table[code as usize]));
            }
            (32, 8) if from_int && to_int && mode.overflow == Overflow::Format => {
                out.iter_mut().zip(words()).for_each(|(o, n)| *o = n as u8);
            }
            (32, 32) if self.dtype == DType::I32 && to == DType::F32 && mode == CastMode::default() => {
                let places = out.chunks_exact_mut(4).zip(words());
                places.for_each(|(o, n)| o.copy_from_slice(&(n as f32).to_le_bytes()));
            }
            _ => return false,
        }
        true
    }

    /// The elements in row-major order as `f64`.
    pub fn to_f64_vec(&self) -> Vec<f64> {
        fn all<T: Element>(tensor: &Tensor, convert: impl Fn(T) -> f64) -> Vec<f64> {
            let elements = tensor.to_vec::<T>().unwrap_or_default();
            elements.into_iter().map(convert).collect()
        }
        match self.dtype {
            DType::F32 => all::<f32>(self, f64::from),
            DType::F64 => self.to_vec().unwrap_or_default(),
            DType::F16 => all::<half::f16>(self, f64::from),
            DType::BF16 => all::<half::bf16>(self, f64::from),
            DType::I32 => all::<i32>(self, f64::from),
            DType::I64 => all::<i64>(self, |n| n as f64),
            _ => self.iter().map(Num::to_f64).collect(),
        }
    }

    /// The elements of a bool or integer tensor in row-major order as `i64`.
    pub fn to_i64_vec(&self) -> Result<Vec<i64>, TensorError> {
        if self.dtype.is_float() {
            return Err(TensorError::WrongType { have: self.dtype, want: DType::I64 });
        }
        let convert = |(index, value): (usize, Num)| {
            i64::try_from(value.to_i128()).map_err(|_| TensorError::NotI64 { dtype: self.dtype, index })
        };
        self.iter().enumerate().map(convert).collect()
    }

    /// Whether both have the same type, shape and bit patterns.
    pub fn same_bits(&self, other: &Tensor) -> bool {
        self.dtype == other.dtype && self.shape == other.shape && self.bytes() == other.bytes()
    }
}

fn check_bools(dtype: DType, bytes: &[u8]) -> Result<(), TensorError> {
    match bytes.iter().position(|&b| b > 1) {
        Some(index) if dtype.is_bool() => Err(TensorError::BadBool { index, value: bytes[index] }),
        _ => Ok(()),
    }
}

impl fmt::Debug for Tensor {
    /// Type, shape and the first elements.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        write!(f, "Tensor({} {:?} [", self.dtype, self.shape)?;
        for (i, value) in self.iter().take(SHOWN).enumerate() {
            write!(f, "{}{value}", if i == 0 { "" } else { ", " })?;
        }
        f.write_str(if self.len() > SHOWN { ", …])" } else { "])" })
    }
}

/// See [`Tensor::offsets`].
struct Offsets<'a> {
    tensor: &'a Tensor,
    index: Vec<usize>,
    at: isize,
    left: usize,
}

impl Iterator for Offsets<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        self.left = self.left.checked_sub(1)?;
        let here = self.at as usize;
        let size = self.tensor.dtype.byte_size().unwrap_or(1) as isize;
        for axis in (0..self.index.len()).rev() {
            let step = self.tensor.strides[axis].wrapping_mul(size);
            self.index[axis] += 1;
            self.at = self.at.wrapping_add(step);
            if self.index[axis] < self.tensor.shape[axis] {
                break;
            }
            self.at = self.at.wrapping_sub(step.wrapping_mul(self.index[axis] as isize));
            self.index[axis] = 0;
        }
        Some(here)
    }
}
