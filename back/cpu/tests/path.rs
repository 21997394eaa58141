//! From LLVM text to a result, and the refusals on the way.

#![cfg(any(feature = "llvm", feature = "llvm-static"))]

use tongtu_chip::Chip;
use tongtu_cpu::{Artifact, Buf, Entry, Error, Loaded, Pool, assemble};

/// Adds a constant vector and the instance number to each element; the constants need a relocation.
const ADD: &str = "
define void @add(ptr %bufs, ptr %scalars, ptr %grid, i64 %first, i64 %last, ptr %scratch) nounwind {
entry:
  %p = load ptr, ptr %bufs
  br label %l
l:
  %i = phi i64 [%first, %entry], [%n, %l]
  %o = mul i64 %i, 32
  %q = getelementptr i8, ptr %p, i64 %o
  %v = load <8 x i32>, ptr %q, align 4
  %t = trunc i64 %i to i32
  %s = insertelement <8 x i32> poison, i32 %t, i64 0
  %b = shufflevector <8 x i32> %s, <8 x i32> poison, <8 x i32> zeroinitializer
  %w = add <8 x i32> %v, <i32 100, i32 201, i32 302, i32 403, i32 504, i32 605, i32 706, i32 807>
  %x = add <8 x i32> %w, %b
  store <8 x i32> %x, ptr %q, align 4
  %n = add i64 %i, 1
  %c = icmp slt i64 %n, %last
  br i1 %c, label %l, label %e
e:
  ret void
}";

fn entry(name: &str, buffers: u32) -> Entry {
    Entry { name: name.into(), offset: 0, scratch: 0, buffers, scalars: 0 }
}

#[test]
fn text_to_result_on_every_level_the_machine_has() {
    for name in ["x86-64-v2", "x86-64-v3", "x86-64-v4", "host"] {
        let Ok(chip) = Chip::builtin(name) else { continue };
        let artifact = assemble(ADD, &chip, vec![entry("add", 1)]).unwrap();
        let artifact = Artifact::from_bytes(&artifact.to_bytes()).unwrap();
        let loaded = match Loaded::new(&artifact) {
            Err(Error::Feature(f)) if name != "host" => {
                eprintln!("{name}: not run, this machine has no {f}");
                continue;
            }
            other => other.unwrap(),
        };
        let pool = Pool::new(2).unwrap();
        let mut data: Vec<i32> = vec![1; 8 * 100];
        let bufs = [Buf { ptr: data.as_mut_ptr().cast(), len: data.len() as i64 }];
        let kernel = loaded.kernel("add").unwrap();
        // SAFETY: the buffer holds the 100 rows that the instances change.
        unsafe { kernel.launch(&pool, &bufs, &[], [10, 5, 2], 1).unwrap() };
        for (i, x) in data.iter().enumerate() {
            assert_eq!(*x, 1 + 100 + 101 * (i as i32 % 8) + i as i32 / 8);
        }
        // SAFETY: these are refused before anything runs.
        let (few, huge) = unsafe {
            (kernel.launch(&pool, &[], &[], [1; 3], 1), kernel.launch(&pool, &bufs, &[], [i64::MAX, 2, 1], 1))
        };
        assert_eq!(few.unwrap_err().code(), "E008");
        assert_eq!(huge.unwrap_err().code(), "E008");
    }
}

#[test]
fn bad_text_and_outside_calls_are_errors() {
    let chip = Chip::builtin("x86-64-v3").unwrap();
    assert_eq!(assemble("define void @x(", &chip, vec![]).unwrap_err().code(), "E002");
    let unverified = "define i32 @x() {\n  %a = add i32 %b, 1\n  %b = add i32 %a, 1\n  ret i32 %b\n}";
    assert_eq!(assemble(unverified, &chip, vec![]).unwrap_err().code(), "E002");
    let frem = "define float @x(float %a, float %b) {\n  %c = frem float %a, %b\n  ret float %c\n}";
    match assemble(frem, &chip, vec![]).unwrap_err() {
        Error::External(symbol) => assert_eq!(symbol, "fmodf"),
        other => panic!("{other}"),
    }
    let state = "@g = global i32 5\ndefine ptr @x() {\n  ret ptr @g\n}";
    assert_eq!(assemble(state, &chip, vec![]).unwrap_err().code(), "E004");
    let npu = Chip::builtin("ascend-950").unwrap();
    assert_eq!(assemble(ADD, &npu, vec![]).unwrap_err().code(), "E001");
    assert_eq!(assemble(ADD, &chip, vec![entry("sub", 1)]).unwrap_err().code(), "E007");
}

#[test]
fn damaged_artifacts_are_errors() {
    let artifact = Artifact {
        arch: "x86_64".into(),
        vector: 0,
        features: vec!["avx2".into(), "fma".into()],
        entries: vec![Entry { name: "k".into(), offset: 3, scratch: 1 << 40, buffers: 2, scalars: 7 }],
        blob: (0..77).collect(),
    };
    let bytes = artifact.to_bytes();
    assert_eq!(Artifact::from_bytes(&bytes).unwrap(), artifact);
    for cut in 0..bytes.len() {
        assert_eq!(Artifact::from_bytes(&bytes[..cut]).unwrap_err().code(), "E005");
    }
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(Artifact::from_bytes(&flipped).unwrap_err().code(), "E005");
    }
    let foreign = Artifact { arch: "abacus".into(), ..artifact.clone() };
    assert_eq!(Loaded::new(&foreign).err().unwrap().code(), "E011");
    let newer = Artifact { features: vec!["avx1024".into()], ..artifact.clone() };
    assert_eq!(Loaded::new(&newer).err().unwrap().code(), "E006");
    let here = || std::env::consts::ARCH.to_string();
    let longer = Artifact { arch: here(), vector: 256, features: vec![], ..artifact };
    assert_eq!(Loaded::new(&longer).err().unwrap().code(), "E012");
}

#[test]
fn many_threads_compile_at_once() {
    let chip = Chip::builtin("x86-64-v3").unwrap();
    let want = assemble(ADD, &chip, vec![entry("add", 1)]).unwrap();
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| {
                for _ in 0..5 {
                    assert_eq!(assemble(ADD, &chip, vec![entry("add", 1)]).unwrap(), want);
                }
            });
        }
    });
}
