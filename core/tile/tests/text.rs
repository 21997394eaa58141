//! Text: what is printed reads back the same, what is broken is refused with its place.

#[path = "common/grow.rs"]
mod grow;

use grow::grow;
use proptest::prelude::*;
use tongtu_tensor::{DType, Num};
use tongtu_tile::{Access, Kernel, KernelBuilder, Op, TileError, Val, parse_kernel, parse_module, verify};

fn round_trip(k: &Kernel) {
    if let Err(e) = verify(k) {
        panic!("{}\n{k}", e[0]);
    }
    let text = k.to_string();
    let back = parse_kernel(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert_eq!(back.to_string(), text);
    assert_eq!(format!("{back:?}"), format!("{:?}", k.compact()));
    verify(&back).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn printed_kernels_read_back(choices in prop::collection::vec(any::<(u8, u8, u8)>(), 0..40)) {
        round_trip(&grow(&choices));
    }

    #[test]
    fn broken_text_is_refused_without_panic(
        choices in prop::collection::vec(any::<(u8, u8, u8)>(), 0..12),
        at in any::<prop::sample::Index>(),
        with in "[ -~]{0,6}",
        cut in 0usize..8,
    ) {
        let text = grow(&choices).to_string();
        let start = at.index(text.len());
        let end = (start + cut).min(text.len());
        if text.is_char_boundary(start) && text.is_char_boundary(end) {
            let broken = format!("{}{with}{}", &text[..start], &text[end..]);
            if let Ok(k) = parse_kernel(&broken) {
                let _ = verify(&k);
                prop_assert_eq!(parse_kernel(&k.to_string()).map(|k| k.to_string()), Ok(k.to_string()));
            }
        }
    }
}

#[test]
fn every_instruction_survives() {
    let choices: Vec<(u8, u8, u8)> = (0..60).map(|i| (i, i / 3, i / 7)).collect();
    let k = grow(&choices);
    round_trip(&k);
    let text = k.to_string();
    for row in tongtu_tile::op::TABLE {
        let skipped = ["num_programs", "buffer_len", "mma_scaled"].contains(&row.name);
        assert!(skipped || text.contains(&format!(" {}", row.name)), "{} is not in the text", row.name);
    }
}

fn error(text: &str) -> (usize, usize, String) {
    match parse_module(text) {
        Err(TileError::Parse { line, column, detail }) => (line, column, detail),
        other => panic!("{other:?}"),
    }
}

#[test]
fn errors_name_line_and_column() {
    let at = |text: &str| {
        let (line, column, detail) = error(text);
        format!("{line}:{column} {detail}")
    };
    let version = |text: &str| parse_module(text).unwrap_err().to_string();
    for future in ["0.2", "0.10", "1.0", "7.3"] {
        let refused = format!("version {future} of the instruction set, this reads 0.1 to 0.1");
        assert!(version(&format!("tile {future}\n")).contains(&refused), "{future}");
    }
    assert_eq!(at("tile 0\n"), "1:6 a version, as in 'tile 0.1', is wanted, '0' found");
    assert_eq!(at("tile 0.1\nkernel @k() {\n  %a: f33 = full\n}\n"), "3:7 no element type is called 'f33'");
    assert_eq!(at("tile 0.1\nkernel @k() {\n  %a: f32 = fall\n}\n"), "3:13 no instruction is called 'fall'");
    assert_eq!(
        at("tile 0.1\nkernel @k() {\n  %a: f32 = full {dtype = f32, shape = []}\n}\n"),
        "3:13 attribute 'value' is missing"
    );
    assert_eq!(at("tile 0.1\nkernel @k() {\n  %a: f32 = neg %b\n}\n"), "3:17 '%b' is not defined here");
    assert_eq!(at("1"), "1:1 'tile' is wanted, '1' found");
    assert_eq!(at("tile 0.1\nkernel @k("), "2:11 a value's name is wanted, the end found");
    let (.., detail) = error(&format!("tile 0.1 kernel @k() {{ {} ", "if do () {".repeat(100)));
    assert!(detail.contains("deeper"), "{detail}");
    let (.., detail) = error(&format!("tile 0.1 kernel @k() {{ full {{shape = {}", "[".repeat(100_000)));
    assert!(detail.contains("deeper"), "{detail}");
    let huge = "tile 0.1 kernel @k(%b \"b\": read buffer<f32>) { %z: i64 = full {dtype = i64, shape = [], value = 0}
        %v: view<f32, 1> = view %b, %z, [%z], [%z]
        %x: f32[2] = load %v[%z] {map = [[9223372036854775807@0, 9223372036854775807@0]], inside = [true], pad = 0} }";
    let k = &parse_module(huge).unwrap().kernels[0];
    assert!(verify(k).is_err());
}

#[test]
fn the_verifier_finds_each_fault() {
    let fault = |edit: &dyn Fn(&mut Kernel), want: &str| {
        let mut k = grow(&[(16, 0, 1), (1, 0, 1), (18, 2, 2), (12, 0, 0)]);
        verify(&k).unwrap();
        edit(&mut k);
        let errors = verify(&k).unwrap_err();
        assert!(errors.iter().any(|e| e.to_string().contains(want)), "{want}: {errors:?}");
    };
    fault(&|k| k.body.insts.reverse(), "is not defined");
    fault(&|k| k.types[k.body.insts[0].results[0].index()] = tongtu_tile::Ty::scalar(DType::F16), "gives");
    fault(&|k| k.body.results.push(k.params[2].value), "the body has");
    fault(&|k| k.body.insts[2].results = vec![k.params[2].value], "defined twice");
    fault(&|k| k.body.insts[2].results = vec![Val(u32::MAX)], "has no type");
    fault(
        &|k| {
            let i = k.body.insts.iter().position(|i| i.op == Op::For {}).unwrap();
            let inner = k.body.insts[i].blocks[0].insts[0].results[0];
            k.body.insts.last_mut().unwrap().operands[1] = inner;
        },
        "out of scope",
    );
    fault(
        &|k| {
            let i = k.body.insts.iter().position(|i| i.op == Op::For {}).unwrap();
            k.body.insts[i].blocks[0].results.pop();
        },
        "region results",
    );
    fault(
        &|k| {
            let alloc = k.body.insts.remove(0);
            let i = k.body.insts.iter().position(|i| matches!(i.op, Op::If {})).unwrap();
            k.body.insts[i].blocks[0].insts.push(alloc);
        },
        "stands in a region",
    );
    let mut b = KernelBuilder::new("k");
    let x = b.buffer("x", DType::F32, Access::Read);
    let i = b.iota(DType::I32, &[4], 0).unwrap();
    let v = b.gather(x, i, None, Num::Float(0.0)).unwrap();
    b.scatter(x, i, v, None).unwrap();
    let errors = verify(&b.finish()).unwrap_err();
    assert!(errors[0].to_string().contains("declared Read"), "{errors:?}");
}
