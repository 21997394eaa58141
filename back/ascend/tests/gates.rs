//! The gates' kernels in Ascend's tile sizes, through the vendor's compiler for both chips. Where that program is not installed the tests
//! say so and check the text's form only.

use tongtu_ascend::{AscendCompiler, Tool, emit};
use tongtu_chip::Chip;
use tongtu_plan::backend::{CompileError, Compiler};
use tongtu_tensor::{DType, Num};
use tongtu_tile::{Access, Kernel, KernelBuilder, Module, TileError, TileMap, verify};

#[path = "../../../conformance/gates.rs"]
mod gates;

fn chips() -> [Chip; 2] {
    [
        Chip::parse(include_str!("../../../chips/ascend-910b.toml")).unwrap(),
        Chip::parse(include_str!("../../../chips/ascend-950.toml")).unwrap(),
    ]
}

/// The planned program of a kernel on each chip; empty where the tool is absent.
fn accepted(k: &Kernel) -> Vec<String> {
    verify(k).unwrap_or_else(|e| panic!("{}", e[0]));
    let mut out = Vec::new();
    for chip in chips() {
        let one = emit(k, &chip).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(one, emit(k, &chip).unwrap(), "the text is not the same twice");
        let text = &one.text;
        assert!(text.starts_with("func.func @"));
        match Tool::find(&chip) {
            Ok(tool) => {
                let report = tool.check(&k.name, text, &one.origins, &chip);
                out.push(report.unwrap_or_else(|e| panic!("{}: {e}\n{text}", chip.name)).planned);
            }
            Err(e) => eprintln!("NOT CHECKED for {}: {e}", chip.name),
        }
    }
    out
}

#[test]
fn matmul_with_epilogue() {
    accepted(&gates::matmul(DType::F16, (128, 128, 64), true).unwrap());
    accepted(&gates::matmul(DType::BF16, (128, 128, 64), false).unwrap());
}

#[test]
fn convolution() {
    accepted(&gates::conv(DType::F16, (64, 64, 16), true).unwrap());
    accepted(&gates::conv(DType::BF16, (32, 128, 64), true).unwrap());
}

#[test]
fn convolution_with_padding_read_in_place_is_refused() {
    let k = gates::conv(DType::F16, (64, 64, 16), false).unwrap();
    for chip in chips() {
        match emit(&k, &chip) {
            Err(CompileError::Unsupported { reason, .. }) => assert!(reason.contains("before its memory")),
            other => panic!("{other:?}"),
        }
    }
}

/// `x[16, k] * w[16, k]` transposed, in steps of 16.
fn product_of_rows() -> Kernel {
    let build = || {
        let mut b = KernelBuilder::new("rows");
        let x = b.buffer("x", DType::F32, Access::Read);
        let w = b.buffer("w", DType::F32, Access::Read);
        let y = b.buffer("y", DType::F32, Access::Write);
        let k = b.scalar("k", DType::I64);
        let (o, one, n) = (b.int(0), b.int(1), b.int(16));
        let (vx, vw) = (b.view(x, o, &[n, k], &[k, one])?, b.view(w, o, &[n, k], &[k, one])?);
        let vy = b.view(y, o, &[n, n], &[n, one])?;
        let sums = b.full(DType::F32, &[16, 16], Num::Float(0.0))?;
        let r = b.for_loop(o, k, n, &[sums], |b, i, c| {
            let zero = Num::Float(0.0);
            let s = b.load(vx, &[o, i], TileMap::along(&[16, 16], &[0, 1]), &[true, false], zero)?;
            let t = b.load(vw, &[o, i], TileMap::along(&[16, 16], &[1, 0]), &[true, false], zero)?;
            Ok(vec![b.mma(c[0], s, t)?])
        })?;
        b.store(vy, r[0], &[o, o], TileMap::along(&[16, 16], &[0, 1]), &[true, true])?;
        Ok::<_, TileError>(b.finish())
    };
    build().unwrap()
}

#[test]
fn padded_steps_of_a_transposed_operand_are_refused_where_they_are_lost() {
    let k = product_of_rows();
    verify(&k).unwrap_or_else(|e| panic!("{}", e[0]));
    for chip in chips() {
        match emit(&k, &chip) {
            Ok(_) => assert_eq!(chip.name, "ascend-910b"),
            Err(CompileError::Unsupported { reason, .. }) => {
                assert_eq!(chip.name, "ascend-950");
                assert!(reason.contains("transposed operand"), "{reason}");
            }
            Err(e) => panic!("{e}"),
        }
    }
}

#[test]
fn softmax_over_long_rows() {
    accepted(&gates::softmax(8192).unwrap());
}

#[test]
fn flash_attention() {
    accepted(&gates::attention(DType::F16, (64, 64, 64)).unwrap());
}

#[test]
fn what_does_not_fit_is_said() {
    for chip in chips() {
        if Tool::find(&chip).is_err() {
            eprintln!("NOT CHECKED for {}", chip.name);
            continue;
        }
        let module = Module { kernels: vec![gates::softmax(65536).unwrap()] };
        match AscendCompiler.compile(&module, &chip) {
            Err(CompileError::TooLarge { level, need, limit, .. }) => {
                assert_eq!(level, "ub");
                assert_eq!(Some(limit), chip.capacity("ub"));
                assert!(need > limit);
            }
            other => panic!("{other:?}"),
        }
    }
}
