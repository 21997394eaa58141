//! Forms of control flow, scratch and reductions: which of them the vendor's compiler takes is recorded here, so that a new
//! version that differs is noticed. Where the program is not installed nothing is checked, and the tests say so.

use tongtu_ascend::{Tool, emit};
use tongtu_chip::Chip;
use tongtu_tensor::scalar::{Binary, Compare, Unary};
use tongtu_tensor::{CastMode, Combiner, DType, Num};
use tongtu_tile::{Access, Kernel, KernelBuilder, Op, TileError, TileMap, Val, verify};

fn chips() -> [Chip; 2] {
    [
        Chip::parse(include_str!("../../../chips/ascend-910b.toml")).unwrap(),
        Chip::parse(include_str!("../../../chips/ascend-950.toml")).unwrap(),
    ]
}

/// Whether each chip's compiler takes the text; `None` where it is not installed.
fn taken(text: impl Fn(&Chip) -> String) -> Option<[bool; 2]> {
    let mut out = [false; 2];
    for (chip, out) in chips().iter().zip(&mut out) {
        let Ok(tool) = Tool::find(chip) else {
            eprintln!("NOT CHECKED: no compiler for {}", chip.name);
            return None;
        };
        let text = text(chip);
        match tool.check("form", &text, &[], chip) {
            Ok(_) => *out = true,
            Err(e) => println!("{}: {e}\n{text}", chip.name),
        }
    }
    Some(out)
}

fn expect(text: impl Fn(&Chip) -> String, want: [bool; 2]) {
    if let Some(got) = taken(text) {
        assert_eq!(got, want);
    }
}

const N: usize = 1024;

/// A kernel on blocks of 1,024 f32: `body` makes the result from the block read.
fn blocks(
    rows: usize,
    out: DType,
    body: impl FnOnce(&mut KernelBuilder, Val, Val) -> Result<Val, TileError>,
) -> Kernel {
    let build = || {
        let mut b = KernelBuilder::new("form");
        let x = b.buffer("x", DType::F32, Access::Read);
        let y = b.buffer("y", out, Access::Write);
        let n = b.scalar("n", DType::I64);
        let (o, one, width) = (b.int(0), b.int(1), b.int(N as i64));
        let count = b.mul_int(n, 64)?;
        let vx = b.view(x, o, &[count, width], &[width, one])?;
        let p = b.program_id(0)?;
        let row = b.mul_int(p, rows as i64)?;
        let t = b.load(vx, &[row, o], TileMap::along(&[rows, N], &[0, 1]), &[true, true], Num::Float(0.0))?;
        let r = body(&mut b, t, n)?;
        let shape = b.shape(r);
        let len: usize = shape.iter().product();
        let r = b.reshape(r, &[len])?;
        let at = b.mul_int(p, len as i64)?;
        let total = b.mul_int(n, len as i64)?;
        let vy = b.view(y, o, &[total], &[one])?;
        b.store(vy, r, &[at], TileMap::along(&[len], &[0]), &[true])?;
        Ok::<_, TileError>(b.finish())
    };
    let k = build().unwrap();
    verify(&k).unwrap_or_else(|e| panic!("{}", e[0]));
    k
}

fn text(k: &Kernel, chip: &Chip) -> String {
    emit(k, chip).unwrap_or_else(|e| panic!("{e}")).text
}

#[test]
fn while_with_carried_tiles() {
    let k = blocks(8, DType::F32, |b, t, n| {
        let o = b.int(0);
        let go = b.compare(Compare::Lt, o, n)?;
        let r = b.while_loop(go, &[t, o], |b, c| {
            let next = b.add_int(c[1], 1)?;
            let t = b.add(c[0], t)?;
            Ok((b.compare(Compare::Lt, next, n)?, vec![t, next]))
        })?;
        Ok(r[0])
    });
    expect(|c| text(&k, c), [true, true]);
}

#[test]
fn if_with_tile_results() {
    let k = blocks(8, DType::F32, |b, t, n| {
        let o = b.int(0);
        let go = b.compare(Compare::Lt, o, n)?;
        let r =
            b.if_else(go, |b| Ok(vec![b.unary(Unary::Exp, t)?]), |b| Ok(vec![b.unary(Unary::Neg, t)?]))?;
        Ok(r[0])
    });
    expect(|c| text(&k, c), [true, true]);
}

#[test]
fn scratch_at_dynamic_offsets() {
    let k = blocks(8, DType::F32, |b, t, n| {
        let s = b.alloc(DType::F32, 16 * N)?;
        let (o, one, width) = (b.int(0), b.int(1), b.int(N as i64));
        let rows = b.int(16);
        let v = b.view(s, o, &[rows, width], &[width, one])?;
        let map = || TileMap::along(&[8, N], &[0, 1]);
        let at = b.program_id(1)?;
        b.store(v, t, &[at, o], map(), &[true, true])?;
        let back = b.binary(Binary::Sub, n, one)?;
        b.load(v, &[back, o], map(), &[true, true], Num::Float(0.0))
    });
    expect(|c| text(&k, c), SCRATCH);
}

#[test]
fn arg_reductions() {
    for combiner in [Combiner::ArgMax, Combiner::ArgMin] {
        let k = blocks(8, DType::I32, |b, t, _| {
            let i = b.iota(DType::I32, &[8, N], 1)?;
            let r = b.add_inst(Op::Reduce { combiner, dims: vec![1] }, &[t, i])?;
            Ok(r[1])
        });
        expect(|c| text(&k, c), [true, true]);
    }
}

#[test]
fn movement_inside_tiles() {
    let k = blocks(8, DType::F32, |b, t, _| {
        let a = b.extract(t, &[0, 0], &[8, 512])?;
        let c = b.extract(t, &[0, 512], &[8, 512])?;
        let r = b.concat(&[c, a], 1)?;
        let r = b.permute(r, &[1, 0])?;
        b.reshape(r, &[8, N])
    });
    expect(|c| text(&k, c), [true, true]);
    let k = blocks(1, DType::F32, |b, t, _| {
        let t = b.reshape(t, &[N])?;
        let i = b.iota(DType::I32, &[N], 0)?;
        let last = b.splat(DType::I32, &[N], (N - 1) as f64)?;
        let i = b.sub(last, i)?;
        Ok(b.add_inst(Op::TakeAlong { dim: 0 }, &[t, i])?[0])
    });
    expect(|c| text(&k, c), [true, true]);
}

#[test]
fn scans() {
    let k = blocks(8, DType::F32, |b, t, _| {
        Ok(b.add_inst(Op::Scan { combiner: Combiner::Add, dim: 1, reverse: false }, &[t])?[0])
    });
    expect(|c| text(&k, c), [true, true]);
}

#[test]
fn select_compare_and_casts() {
    let k = blocks(8, DType::F16, |b, t, _| {
        let z = b.splat(DType::F32, &[8, N], 0.0)?;
        let m = b.compare(Compare::Ge, t, z)?;
        let i = b.cast(m, DType::I32, CastMode::default())?;
        let f = b.cast(i, DType::F32, CastMode::default())?;
        let r = b.select(m, t, f)?;
        b.cast(r, DType::F16, CastMode::default())
    });
    expect(|c| text(&k, c), [true, true]);
}

#[test]
fn integer_division_by_anything() {
    let k = |divides: bool| {
        blocks(4, DType::I32, |b, t, _| {
            let mode = CastMode { overflow: tongtu_tensor::Overflow::Saturate, ..CastMode::default() };
            let i = b.cast(t, DType::I32, mode)?;
            let j = b.iota(DType::I32, &[4, N], 1)?;
            let q = if divides { b.div(i, j)? } else { i };
            b.binary(Binary::Shl, q, j)
        })
    };
    // One chip's compiler divides integers in f32: there the quotient comes from the shared rewrite.
    expect(|c| text(&k(c.name == "ascend-950"), c), [true, true]);
}

/// Scratch at run-time offsets, on either chip.
const SCRATCH: [bool; 2] = [true, true];

/// A block stored with an atomic combination.
fn atomic(kind: &str, element: &str) -> String {
    format!(
        "func.func @atomic(%lock: memref<?xi8>, %ws: memref<?xi8>, %a: memref<?x{element}>, %c: memref<?x{element}>,
    %gx: i32, %gy: i32, %gz: i32, %px: i32, %py: i32, %pz: i32)
    attributes {{SyncBlockLockArgIdx = 0 : i64, WorkspaceArgIdx = 1 : i64, global_kernel = \"local\"}} {{
  %z = arith.constant 0 : index
  %ga = memref.reinterpret_cast %a to offset: [%z], sizes: [256], strides: [1] : memref<?x{element}> to memref<256x{element}, strided<[1], offset: ?>>
  %la = memref.alloc() : memref<256x{element}>
  memref.copy %ga, %la : memref<256x{element}, strided<[1], offset: ?>> to memref<256x{element}>
  %x = bufferization.to_tensor %la restrict writable : memref<256x{element}>
  %gc = memref.reinterpret_cast %c to offset: [%z], sizes: [256], strides: [1] : memref<?x{element}> to memref<256x{element}, strided<[1], offset: ?>>
  hivm.hir.store ins(%x : tensor<256x{element}>) outs(%gc : memref<256x{element}, strided<[1], offset: ?>>) atomic = <{kind}>
  return
}}
"
    )
}

#[test]
fn atomic_stores() {
    let table = [
        ("add", "f32", [true, true]),
        ("add", "f16", [true, true]),
        ("add", "i32", [true, true]),
        ("max", "f32", [true, true]),
        ("max", "i32", [true, true]),
        ("min", "f32", [true, true]),
        ("and", "i32", [true, true]),
        ("or", "i32", [true, true]),
        ("xor", "i32", [true, true]),
        ("xchg", "i32", [false, false]),
        ("cas", "i32", [false, false]),
    ];
    let mut wrong = Vec::new();
    for (kind, element, want) in table {
        let Some(got) = taken(|_| atomic(kind, element)) else { return };
        if got != want {
            wrong.push((kind, element, got));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}
