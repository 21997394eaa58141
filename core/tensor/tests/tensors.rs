//! Host tensors: elements, views against index arithmetic, storage, errors.

use std::sync::Arc;

use proptest::prelude::*;
use tongtu_tensor::{CastMode, DType, MappedFile, Num, Overflow, Tensor, TensorError, bf16, cast, f16};

fn counting(dtype: DType, shape: &[usize]) -> Tensor {
    Tensor::from_fn(dtype, shape, |i| Num::Int(i as i128)).unwrap()
}

#[test]
fn typed_elements() {
    let tensor = Tensor::from_slice(&[2, 2], &[1.5f32, -2.0, 0.0, 4.0]).unwrap();
    assert_eq!(
        (tensor.dtype(), tensor.shape(), tensor.len(), tensor.nbytes()),
        (DType::F32, &[2, 2][..], 4, 16)
    );
    assert_eq!(tensor.as_slice::<f32>().unwrap(), [1.5, -2.0, 0.0, 4.0]);
    assert_eq!(tensor.to_vec::<f32>().unwrap(), [1.5, -2.0, 0.0, 4.0]);
    assert_eq!(tensor.get(&[1, 1]), Num::Float(4.0));
    assert!(matches!(tensor.as_slice::<f64>(), Err(TensorError::WrongType { .. })));
    assert_eq!(tensor.bytes().as_ptr() as usize % 64, 0);
    let halves = Tensor::from_slice(&[2], &[f16::from_f32(1.5), f16::INFINITY]).unwrap();
    assert_eq!(halves.to_f64_vec(), [1.5, f64::INFINITY]);
    let brains = Tensor::from_slice(&[1], &[bf16::from_f32(-3.0)]).unwrap();
    assert_eq!(brains.get_linear(0), Num::Float(-3.0));
    let bools = Tensor::from_slice(&[3], &[true, false, true]).unwrap();
    assert_eq!(bools.as_slice::<bool>().unwrap(), [true, false, true]);
    assert_eq!(bools.to_i64_vec().unwrap(), [1, 0, 1]);
    let big = Tensor::from_slice(&[2], &[7, u64::MAX]).unwrap();
    assert!(matches!(big.to_i64_vec(), Err(TensorError::NotI64 { index: 1, .. })));
    assert!(tensor.to_i64_vec().is_err());
    assert_eq!(Tensor::scalar(DType::I8, Num::Int(300)).get(&[]), Num::Int(44));
    assert_eq!(format!("{:?}", counting(DType::U8, &[9])), "Tensor(u8 [9] [0, 1, 2, 3, 4, 5, 6, 7, …])");
}

#[test]
fn packed_elements() {
    // From the low bits on, whatever the width.
    let bytes = |dtype, codes: &[u64]| {
        let values: Vec<Num> = codes.iter().map(|&c| dtype_decode(dtype, c)).collect();
        Tensor::from_fn(dtype, &[codes.len()], |i| values[i]).unwrap().bytes().into_owned()
    };
    fn dtype_decode(dtype: DType, code: u64) -> Num {
        dtype.decode(code)
    }
    assert_eq!(bytes(DType::U4, &[1, 2, 3]), [0x21, 0x03]);
    assert_eq!(bytes(DType::I4, &[15, 8]), [0x8f]);
    assert_eq!(bytes(DType::U2, &[1, 2, 3, 0, 1]), [0b00111001, 0b01]);
    // 6 bits: 24 bits 0b100001_010010_001100_000001 from the low end.
    assert_eq!(bytes(DType::F6E2M3, &[0b000001, 0b001100, 0b010010, 0b100001]), [0x01, 0x23, 0x85]);
    for &dtype in DType::ALL {
        for count in [0, 1, 2, 3, 5, 8, 13] {
            let mut tensor = Tensor::zeros(dtype, &[count]).unwrap();
            let code = |i: usize| {
                if dtype.is_bool() {
                    i as u64 % 2
                } else {
                    (i as u64 * 11) & ((1 << dtype.bits().min(8)) - 1)
                }
            };
            (0..count).rev().for_each(|i| tensor.set_code(i, code(i)));
            assert!(tensor.codes().eq((0..count).map(code)), "{dtype} {count}");
            assert!((0..count).all(|i| tensor.code(i) == code(i)), "{dtype} {count}");
            let again = Tensor::from_bytes(dtype, &[count], tensor.bytes().into_owned()).unwrap();
            assert!(again.same_bits(&tensor));
        }
    }
    let padded = Tensor::from_bytes(DType::U4, &[3], vec![0x21, 0xf3]).unwrap();
    assert_eq!(*padded.bytes(), [0x21, 0x03]);
}

#[test]
fn full_and_from_fn_agree() {
    for &dtype in DType::ALL {
        let full = Tensor::full(dtype, &[3, 3], Num::Int(1)).unwrap();
        assert!(full.same_bits(&Tensor::from_fn(dtype, &[3, 3], |_| Num::Int(1)).unwrap()), "{dtype}");
        assert_eq!(
            full.get(&[2, 1]).to_f64(),
            dtype.decode(dtype.encode(Num::Int(1), Overflow::Format)).to_f64()
        );
    }
}

#[test]
fn clones_share_until_written() {
    let first = counting(DType::I32, &[4]);
    let mut second = first.clone();
    assert_eq!(first.bytes().as_ptr(), second.bytes().as_ptr());
    second.set_linear(0, Num::Int(9));
    assert_eq!(first.to_i64_vec().unwrap(), [0, 1, 2, 3]);
    assert_eq!(second.to_i64_vec().unwrap(), [9, 1, 2, 3]);
    let at = second.bytes().as_ptr();
    second.as_mut_slice::<i32>().unwrap()[3] = 7;
    assert_eq!((second.bytes().as_ptr(), second.get_linear(3)), (at, Num::Int(7)));
    // A view's write leaves the whole alone.
    let mut row = first.reshape(&[2, 2]).unwrap().slice(0, 1, 2, 1).unwrap();
    assert!(row.is_contiguous());
    row.set_linear(0, Num::Int(-1));
    assert_eq!((row.to_i64_vec().unwrap(), first.to_i64_vec().unwrap()), (vec![-1, 3], vec![0, 1, 2, 3]));
    // What nobody else holds is written in place, view or not.
    let mut tail = counting(DType::I32, &[100]).slice(0, 50, 100, 1).unwrap();
    let at = tail.bytes().as_ptr();
    tail.set_linear(0, Num::Int(1));
    assert_eq!(
        (tail.bytes().as_ptr(), tail.get_linear(0), tail.get_linear(1)),
        (at, Num::Int(1), Num::Int(51))
    );
}

/// What a view should be: its shape, and for each index the linear index in the original.
#[derive(Clone, Debug)]
struct Model {
    shape: Vec<usize>,
    linear: Vec<usize>,
}

impl Model {
    fn gather(&self, shape: Vec<usize>, source: impl Fn(&[usize]) -> Vec<usize>) -> Model {
        let count: usize = shape.iter().product();
        let linear = (0..count).map(|mut i| {
            let mut index = vec![0; shape.len()];
            for (x, &d) in index.iter_mut().zip(&shape).rev() {
                (*x, i) = (i % d, i / d);
            }
            let from = source(&index);
            self.linear[from.iter().zip(&self.shape).fold(0, |n, (&x, &d)| n * d + x)]
        });
        Model { linear: linear.collect(), shape }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn views_are_what_they_say(
        shape in prop::collection::vec(0usize..5, 0..4),
        steps in prop::collection::vec((0u8..4, any::<u32>(), any::<u32>(), any::<u32>()), 0..5),
        dtype in prop::sample::select(vec![DType::I16, DType::U8, DType::F64, DType::U4, DType::F6E3M2, DType::U2]),
    ) {
        let whole = counting(dtype, &shape);
        let mut model = Model { linear: (0..whole.len()).collect(), shape };
        let mut view = whole.clone();
        for (kind, a, b, c) in steps {
            let rank = model.shape.len();
            match kind {
                0 => {
                    let mut axes: Vec<usize> = (0..rank).collect();
                    if rank > 0 {
                        axes.rotate_left(a as usize % rank);
                        axes.swap(0, b as usize % rank);
                    }
                    view = view.permute(&axes).unwrap();
                    let shape = axes.iter().map(|&x| model.shape[x]).collect();
                    model = model.gather(shape, |index| {
                        let mut from = vec![0; axes.len()];
                        axes.iter().zip(index).for_each(|(&x, &i)| from[x] = i);
                        from
                    });
                }
                1 if rank > 0 => {
                    let axis = a as usize % rank;
                    let dim = model.shape[axis] as i64;
                    let (x, y) = (i64::from(b) % (dim + 1), i64::from(c) % (dim + 1));
                    let size = i64::from(a % 3) + 1;
                    let (start, stop, step) = match b % 2 {
                        0 => (x.min(y), x.max(y), size),
                        _ => (x.max(y) - 1, x.min(y) - 1, -size),
                    };
                    view = view.slice(axis, start, stop, step).unwrap();
                    let count = (0..).take_while(|k| if step > 0 { start + k * step < stop } else { start + k * step > stop }).count();
                    let mut shape = model.shape.clone();
                    shape[axis] = count;
                    model = model.gather(shape, |index| {
                        let mut from = index.to_vec();
                        from[axis] = (start + from[axis] as i64 * step) as usize;
                        from
                    });
                }
                2 if rank < 6 => {
                    let mut shape = model.shape.clone();
                    shape.iter_mut().filter(|d| **d == 1).for_each(|d| *d = b as usize % 4);
                    shape.insert(0, a as usize % 3);
                    view = view.broadcast_to(&shape).unwrap();
                    let old = model.shape.clone();
                    model = model.gather(shape, |index| {
                        index[1..].iter().zip(&old).map(|(&i, &d)| if d == 1 { 0 } else { i }).collect()
                    });
                }
                _ => {
                    let mut shape = model.shape.clone();
                    shape.insert(a as usize % (rank + 1), 1);
                    view = view.reshape(&shape).unwrap();
                    model.shape = shape;
                }
            }
            prop_assert_eq!(view.shape(), &model.shape[..]);
        }
        let want: Vec<u64> = model.linear.iter().map(|&i| whole.code(i)).collect();
        prop_assert_eq!(view.codes().collect::<Vec<_>>(), want.clone());
        prop_assert!((0..view.len()).all(|i| view.code(i) == want[i]));
        let dense = view.to_contiguous().unwrap();
        prop_assert!(dense.is_contiguous() && dense.same_bits(&view));
        prop_assert_eq!(dense.codes().collect::<Vec<_>>(), want);
    }

    #[test]
    fn cast_is_elementwise(from in prop::sample::select(DType::ALL), to in prop::sample::select(DType::ALL), saturate: bool, seed: u64) {
        let code = |i: u64| {
            let x = (seed ^ i).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
            if from.is_bool() { x & 1 } else { x & (u64::MAX >> (64 - from.bits())) }
        };
        let mut tensor = Tensor::zeros(from, &[40]).unwrap();
        (0..40).for_each(|i| tensor.set_code(i, code(i as u64)));
        let overflow = if saturate { Overflow::Saturate } else { Overflow::Format };
        let mode = CastMode { overflow, ..CastMode::default() };
        let result = tensor.cast(to, mode).unwrap();
        for i in 0..40 {
            let want = cast(tensor.get_linear(i), from, to, mode);
            let have = result.get_linear(i);
            prop_assert!(have == want || have.is_nan() && want.is_nan(), "{} is not {}", have, want);
        }
    }
}

#[test]
fn mistakes_are_errors() {
    let tensor = counting(DType::F32, &[2, 3]);
    let huge = [usize::MAX, usize::MAX];
    assert!(matches!(Tensor::zeros(DType::U8, &huge), Err(TensorError::TooLarge { .. })));
    assert!(matches!(Tensor::zeros(DType::U8, &[1 << 62]), Err(TensorError::TooLarge { .. })));
    assert_eq!(Tensor::zeros(DType::F64, &[usize::MAX, 0]).unwrap().len(), 0);
    assert!(matches!(Tensor::from_bytes(DType::F32, &[2], vec![0; 7]), Err(TensorError::WrongSize { .. })));
    assert!(matches!(
        Tensor::from_bytes(DType::Bool, &[2], vec![1, 2]),
        Err(TensorError::BadBool { index: 1, value: 2 })
    ));
    assert!(matches!(Tensor::from_slice(&[3], &[1u8]), Err(TensorError::WrongSize { .. })));
    for axes in [&[0][..], &[0, 0], &[0, 2], &[0, 1, 2]] {
        assert!(matches!(tensor.permute(axes), Err(TensorError::BadPermutation(_))));
    }
    assert!(matches!(tensor.slice(2, 0, 1, 1), Err(TensorError::BadAxis { .. })));
    for (start, stop, step) in
        [(0, 4, 1), (-1, 2, 1), (2, 1, 1), (0, 1, 0), (3, 0, -1), (0, -2, -1), (0, 2, -1)]
    {
        assert!(
            matches!(tensor.slice(1, start, stop, step), Err(TensorError::BadSlice { .. })),
            "{start} {stop} {step}"
        );
    }
    assert!(tensor.slice(1, 0, 3, i64::MAX).is_ok() && tensor.slice(1, 2, -1, i64::MIN).is_ok());
    assert!(matches!(tensor.broadcast_to(&[3, 3]), Err(TensorError::BadShape { .. })));
    assert!(matches!(tensor.broadcast_to(&[3]), Err(TensorError::BadShape { .. })));
    assert!(matches!(tensor.broadcast_to(&[usize::MAX, 2, 3]), Err(TensorError::TooLarge { .. })));
    assert!(matches!(tensor.reshape(&[5]), Err(TensorError::BadShape { .. })));
    let column = tensor.slice(1, 0, 1, 1).unwrap();
    assert!(matches!(column.as_slice::<f32>(), Err(TensorError::NotContiguous)));
    assert!(TensorError::NotContiguous.to_string().starts_with("T004: "));
}

#[test]
fn borrowed_and_mapped_storage() {
    let path = std::env::temp_dir().join(format!("tongtu-tensor-{}.bin", std::process::id()));
    let numbers: Vec<u8> = (0..8u32).flat_map(|n| (n as f32).to_le_bytes()).collect();
    std::fs::write(&path, &numbers).unwrap();
    let file = MappedFile::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let mut tensor = Tensor::from_storage(DType::F32, &[2, 3], file.clone(), 8).unwrap();
    assert_eq!(tensor.as_slice::<f32>().unwrap(), [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    tensor.set_linear(0, Num::Float(9.0));
    assert_eq!(Tensor::from_storage(DType::F32, &[1], file.clone(), 8).unwrap().get(&[0]), Num::Float(2.0));
    assert_eq!(tensor.get(&[0, 0]), Num::Float(9.0));
    for (shape, offset) in [(&[2, 4][..], 4), (&[1], 29), (&[1], usize::MAX)] {
        assert!(Tensor::from_storage(DType::F32, shape, file.clone(), offset).is_err());
    }
    let odd = Tensor::from_storage(DType::F32, &[1], file.clone(), 5).unwrap();
    assert!(matches!(odd.as_slice::<f32>(), Err(TensorError::Misaligned(DType::F32))));
    assert_eq!(
        odd.to_vec::<f32>().unwrap()[0].to_bits(),
        f32::from_le_bytes(numbers[5..9].try_into().unwrap()).to_bits()
    );
    assert_eq!(odd.get_linear(0), Num::Float(odd.to_vec::<f32>().unwrap()[0].into()));
    let bytes: Arc<Vec<u8>> = Arc::new(vec![1, 0, 7]);
    assert!(Tensor::from_storage(DType::Bool, &[2], bytes.clone(), 0).is_ok());
    assert!(Tensor::from_storage(DType::Bool, &[2], bytes.clone(), 1).is_err());
    let packed = Tensor::from_storage(DType::U4, &[3], bytes, 1).unwrap();
    assert_eq!(packed.to_i64_vec().unwrap(), [0, 0, 7]);
    assert!(MappedFile::open(std::env::temp_dir().join("tongtu-tensor-none")).is_err());
}
