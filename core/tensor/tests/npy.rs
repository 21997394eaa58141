//! NumPy's files: what NumPy wrote (scripts/gen-npy-golden.py), round trips, and damaged files.

use std::io::Cursor;
use std::path::PathBuf;

use tongtu_tensor::{DType, Num, Tensor, TensorError, npy};

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn counts(tensor: &Tensor) -> bool {
    let odd = |i: usize| if tensor.dtype().is_bool() { i % 2 } else { i };
    (0..tensor.len()).all(|i| tensor.get_linear(i).to_f64() == odd(i) as f64)
}

#[test]
fn reads_what_numpy_wrote() {
    let cases = [
        ("bool", DType::Bool),
        ("i1", DType::I8),
        ("i2", DType::I16),
        ("i4", DType::I32),
        ("i8", DType::I64),
        ("u1", DType::U8),
        ("u2", DType::U16),
        ("u4", DType::U32),
        ("u8", DType::U64),
        ("f2", DType::F16),
        ("f4", DType::F32),
        ("f8", DType::F64),
        ("be_i4", DType::I32),
        ("be_f8", DType::F64),
        ("be_u2", DType::U16),
        ("bfloat16", DType::BF16),
        ("float8_e5m2", DType::F8E5M2),
        ("version2", DType::F32),
        ("version3", DType::F32),
    ];
    for (name, dtype) in cases {
        for hint in [None, Some(dtype)] {
            let tensor = npy::load(golden(&format!("{name}.npy")), hint).unwrap();
            assert_eq!((tensor.dtype(), tensor.shape()), (dtype, &[2, 3][..]), "{name}");
            assert!(counts(&tensor), "{name}: {tensor:?}");
        }
    }
    let raw = [
        ("float8_e4m3fn", DType::F8E4M3FN),
        ("float4_e2m1fn", DType::F4E2M1),
        ("int4", DType::I4),
        ("uint2", DType::U2),
    ];
    for (name, dtype) in raw {
        let path = golden(&format!("{name}.npy"));
        let tensor = npy::load(&path, Some(dtype)).unwrap();
        assert_eq!(tensor.dtype(), dtype);
        assert!(counts(&tensor), "{name}: {tensor:?}");
        assert!(matches!(npy::load(&path, None), Err(TensorError::NpyType(_))), "{name}");
        assert!(npy::load(&path, Some(DType::F32)).is_err(), "{name}");
    }
    for name in ["fortran.npy", "fortran_be.npy"] {
        let tensor = npy::load(golden(name), None).unwrap();
        assert_eq!(tensor.shape(), [2, 3, 4]);
        assert!(counts(&tensor) && tensor.is_contiguous(), "{name}: {tensor:?}");
    }
    assert_eq!(npy::load(golden("scalar.npy"), None).unwrap().shape(), [0usize; 0]);
    assert_eq!(npy::load(golden("empty.npy"), None).unwrap().shape(), [3, 0, 2]);
    for name in ["fields.npy", "complex.npy"] {
        assert!(matches!(npy::load(golden(name), None), Err(TensorError::NpyType(_))), "{name}");
    }
    for name in ["plain.npz", "deflated.npz"] {
        let arrays = npy::load_npz(golden(name)).unwrap();
        let names: Vec<&str> = arrays.iter().map(|a| a.0.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!((arrays[0].1.dtype(), arrays[1].1.shape()), (DType::F32, &[4][..]));
        assert!(arrays.iter().all(|a| counts(&a.1)), "{name}");
    }
}

#[test]
fn writes_the_same_bytes_as_numpy() {
    let names =
        ["bool", "i1", "i4", "i8", "u8", "f2", "f4", "f8", "bfloat16", "float8_e5m2", "scalar", "empty"];
    for name in names {
        let want = std::fs::read(golden(&format!("{name}.npy"))).unwrap();
        let mut have = Vec::new();
        npy::write(&mut have, &npy::read(&mut want.as_slice(), None).unwrap()).unwrap();
        let differs = have.iter().zip(&want).position(|(a, b)| a != b);
        assert!(have.len() == want.len() && differs.is_none(), "{name}: byte {differs:?}");
    }
}

#[test]
fn every_type_survives_a_round_trip() {
    for &dtype in DType::ALL {
        let tensor = Tensor::from_fn(dtype, &[3, 5], |i| Num::Int(i as i128 % 4 - 1)).unwrap();
        let mut file = Vec::new();
        npy::write(&mut file, &tensor).unwrap();
        let back = npy::read(&mut file.as_slice(), Some(dtype)).unwrap();
        assert!(back.same_bits(&tensor), "{dtype}: {back:?} is not {tensor:?}");
    }
    let a = Tensor::from_slice(&[2], &[1.5f32, -2.0]).unwrap();
    let b = Tensor::from_slice(&[1, 1], &[7i64]).unwrap();
    let mut archive = Cursor::new(Vec::new());
    npy::write_npz(&mut archive, [("a", &a), ("b/c", &b)]).unwrap();
    let back = npy::read_npz(archive).unwrap();
    assert_eq!(back[0].0, "a");
    assert_eq!(back[1].0, "b/c");
    assert!(back[0].1.same_bits(&a) && back[1].1.same_bits(&b));
}

fn file(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend((header.len() as u16).to_le_bytes());
    file.extend(header.as_bytes());
    file.extend(data);
    file
}

#[test]
fn damaged_files_are_errors() {
    let headers = [
        "",
        "{",
        "{}",
        "{'descr': '<f4'}",
        "{'descr': '<f4', 'fortran_order': 0, 'shape': (1,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4611686018427387904)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}",
        "{'descr': '', 'fortran_order': False, 'shape': (1,)}",
        "{'descr': '\u{e9}4', 'fortran_order': False, 'shape': (1,)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'more': 1}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1,)} x",
        "{'descr': '|b1', 'fortran_order': False, 'shape': (4,)}",
    ];
    for header in headers {
        let file = file(header, &[1, 2, 3, 4]);
        assert!(npy::read(&mut file.as_slice(), None).is_err(), "{header}");
    }
    let long = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({})}}", "1,".repeat(100));
    assert!(npy::read(&mut file(&long, &[0; 4]).as_slice(), None).is_err());
    let whole = std::fs::read(golden("f4.npy")).unwrap();
    for end in 0..whole.len() {
        assert!(npy::read(&mut &whole[..end], None).is_err(), "cut at {end}");
    }
    let archive = std::fs::read(golden("deflated.npz")).unwrap();
    for end in (0..archive.len()).step_by(7) {
        assert!(npy::read_npz(Cursor::new(&archive[..end])).is_err(), "cut at {end}");
    }
}
