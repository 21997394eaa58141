//! The binary form: the same programs as the text, every byte of damage refused without harm.

#[path = "common/examples.rs"]
mod examples;
#[path = "common/grow.rs"]
mod grow;

use examples::examples;
use grow::grow;
use proptest::prelude::*;
use tongtu_tile::binary::{MAGIC, is_binary};
use tongtu_tile::op::{TABLE, rows};
use tongtu_tile::{Module, TileError, Version, from_bytes, parse_module, to_bytes, verify};

/// Text and bytes of every released version, by name.
const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

fn same(a: &Module, b: &Module) {
    // As text, for NaN is not equal to itself.
    assert_eq!(format!("{a:?}"), format!("{b:?}"));
}

fn compact(m: &Module) -> Module {
    Module { kernels: m.kernels.iter().map(|k| k.compact()).collect() }
}

fn round_trip(m: &Module) {
    let bytes = to_bytes(m);
    let back = from_bytes(&bytes).unwrap_or_else(|e| panic!("{e}\n{m}"));
    same(&back, &compact(m));
    assert_eq!(to_bytes(&back), bytes, "reading and writing give the same bytes");
    assert_eq!(back.to_string(), m.to_string(), "binary and text say the same");
    same(&parse_module(&back.to_string()).unwrap(), &back);
}

#[test]
fn every_instruction_survives() {
    round_trip(&examples());
    round_trip(&Module::default());
    let choices: Vec<(u8, u8, u8)> = (0..60).map(|i| (i, i / 3, i / 7)).collect();
    round_trip(&Module { kernels: vec![grow(&choices), grow(&choices[20..])] });
}

/// Programs of each version; those of old versions stay as they are. `TONGTU_UPDATE=1` writes the current version's.
#[test]
fn programs_of_every_version_read() {
    let choices: Vec<(u8, u8, u8)> = (0..60).map(|i| (i, i / 3, i / 7)).collect();
    let mut located = Module { kernels: vec![grow(&choices)] };
    located.kernels[0].body.insts[7].loc = Some("a place, 'quoted' — and beyond ASCII".into());
    let current = [("examples", examples()), ("grown", located)];
    for (name, module) in current {
        let base = format!("{GOLDEN}/{}/{name}", Version::CURRENT);
        if std::env::var_os("TONGTU_UPDATE").is_some() {
            std::fs::create_dir_all(format!("{GOLDEN}/{}", Version::CURRENT)).unwrap();
            std::fs::write(format!("{base}.txt"), module.to_string()).unwrap();
            std::fs::write(format!("{base}.tile"), to_bytes(&module)).unwrap();
        }
        assert_eq!(std::fs::read_to_string(format!("{base}.txt")).unwrap(), module.to_string(), "{base}.txt");
        assert_eq!(std::fs::read(format!("{base}.tile")).unwrap(), to_bytes(&module), "{base}.tile");
    }
    for version in std::fs::read_dir(GOLDEN).unwrap() {
        for file in std::fs::read_dir(version.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|e| e == "tile") {
                let bytes = std::fs::read(&path).unwrap();
                let module = from_bytes(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                let text = std::fs::read_to_string(path.with_extension("txt")).unwrap();
                same(&module, &parse_module(&text).unwrap());
                for k in &module.kernels {
                    verify(k).unwrap_or_else(|e| panic!("{}: {}", path.display(), e[0]));
                }
            }
        }
    }
}

/// What fuzzing starts from: every instruction that is not scalar, small. `TONGTU_UPDATE=1` writes them.
#[test]
fn seeds_are_current() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/seeds/tile");
    for k in examples().kernels {
        if !TABLE.iter().any(|row| row.name == k.name) {
            continue;
        }
        let (path, one) = (format!("{folder}/{}", k.name), Module { kernels: vec![k] });
        if std::env::var_os("TONGTU_UPDATE").is_some() {
            std::fs::create_dir_all(folder).unwrap();
            std::fs::write(format!("{path}.txt"), one.to_string()).unwrap();
            std::fs::write(format!("{path}.tile"), to_bytes(&one)).unwrap();
        }
        assert_eq!(std::fs::read_to_string(format!("{path}.txt")).unwrap(), one.to_string(), "{path}");
        assert_eq!(std::fs::read(format!("{path}.tile")).unwrap(), to_bytes(&one), "{path}");
    }
}

/// Numbers and names as each version gave them: none ever means something else. `TONGTU_UPDATE=1` writes the current version's.
#[test]
fn numbers_are_never_given_again() {
    let current: String = rows().iter().map(|r| format!("{}\t{}\t{}\n", r.code, r.name, r.since)).collect();
    let path = format!("{GOLDEN}/{}/numbers.tsv", Version::CURRENT);
    if std::env::var_os("TONGTU_UPDATE").is_some() {
        std::fs::write(&path, &current).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), current, "{path}");
    for version in std::fs::read_dir(GOLDEN).unwrap() {
        let version = version.unwrap();
        let of: Version = version.file_name().to_str().unwrap().parse().unwrap();
        for line in std::fs::read_to_string(version.path().join("numbers.tsv")).unwrap().lines() {
            assert!(current.lines().any(|l| l == line), "{of} has {line}");
        }
        assert!(rows().iter().all(|r| r.since <= Version::CURRENT));
    }
}

/// Damaged programs, each with the error it gives. `TONGTU_UPDATE=1` writes both.
#[test]
fn damaged_files_are_refused() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corrupt");
    if std::env::var_os("TONGTU_UPDATE").is_some() {
        std::fs::create_dir_all(folder).unwrap();
        let mut list = String::new();
        for (name, bytes) in damaged() {
            std::fs::write(format!("{folder}/{name}.tile"), &bytes).unwrap();
            let error = from_bytes(&bytes).map(|_| ()).unwrap_err();
            list += &format!("{name}\t{error}\n");
        }
        std::fs::write(format!("{folder}/expected.tsv"), list).unwrap();
    }
    let list = std::fs::read_to_string(format!("{folder}/expected.tsv")).unwrap();
    let mut files = 0;
    for line in list.lines() {
        let (name, want) = line.split_once('\t').unwrap();
        let bytes = std::fs::read(format!("{folder}/{name}.tile")).unwrap();
        assert_eq!(from_bytes(&bytes).unwrap_err().to_string(), want, "{name}");
        files += 1;
    }
    assert_eq!(files + 1, std::fs::read_dir(folder).unwrap().count());
}

/// Programs with one thing wrong each.
fn damaged() -> Vec<(&'static str, Vec<u8>)> {
    let good = to_bytes(&examples());
    let with = |at: usize, byte: u8| {
        let mut out = good.clone();
        out[at] = byte;
        out
    };
    let own = |tail: &[u8]| [&MAGIC[..], tail].concat();
    vec![
        ("empty", vec![]),
        ("another-format", b"\x7fELF\x02\x01\x01".to_vec()),
        ("magic-only", MAGIC.to_vec()),
        ("future-minor", with(5, 2)),
        ("future-major", with(4, 1)),
        ("cut-in-strings", good[..20].to_vec()),
        ("cut-in-body", good[..good.len() / 2].to_vec()),
        ("cut-last-byte", good[..good.len() - 1].to_vec()),
        ("left-over", [&good[..], &[0]].concat()),
        ("many-strings", own(&[0, 1, 0xff, 0xff, 0xff, 0x7f])),
        ("long-string", own(&[0, 1, 1, 0xff, 0xff, 0x7f, b'k'])),
        ("not-utf-8", own(&[0, 1, 1, 1, 0xff, 0, 0])),
        ("many-types", own(&[0, 1, 1, 1, b'k', 0xff, 0xff, 0x7f])),
        ("unknown-type-kind", own(&[0, 1, 1, 1, b'k', 1, 9, 7, 0, 0])),
        ("unknown-element", own(&[0, 1, 1, 1, b'k', 1, 0, 99, 0, 0])),
        ("huge-rank", own(&[0, 1, 1, 1, b'k', 1, 0, 7, 0xff, 0x7f])),
        ("many-kernels", own(&[0, 1, 1, 1, b'k', 0, 0xff, 0xff, 0x7f])),
        ("name-not-there", own(&[0, 1, 1, 1, b'k', 0, 1, 5])),
        ("unknown-instruction", body(&[0xff, 0x7f, 0, 0, 0, 0])),
        ("unknown-flags", body(&[0x82, 1, 0x10, 2, 0, 1, 0, 0])),
        ("long-number", body(&[0x82, 1, 0, 0x82, 0, 0, 1, 0, 0])),
        ("endless-number", own(&[0x80; 32])),
        ("operand-not-defined", body(&[0x82, 1, 0, 2, 1, 0, 1, 0, 0])),
        ("result-type-not-there", body(&[0x82, 1, 0, 2, 0, 1, 1, 0])),
        ("many-results", body(&[0x82, 1, 0, 2, 0, 0xff, 0xff, 0x7f, 0])),
        ("deep-regions", body(&[0x9d, 1, 0, 0, 0, 1, 0, 1].repeat(100))),
    ]
}

#[test]
fn other_versions_are_refused_by_name() {
    let bytes = to_bytes(&examples());
    for (major, minor, name) in [(0, 2, "0.2"), (0, 0, "0.0"), (1, 0, "1.0"), (7, 99, "7.99")] {
        let mut future = bytes.clone();
        (future[4], future[5]) = (major, minor);
        let error = from_bytes(&future).unwrap_err();
        assert!(matches!(error, TileError::Version { .. }), "{error}");
        let want =
            format!("[K005] the program is of version {name} of the instruction set, this reads 0.1 to 0.1");
        assert_eq!(error.to_string(), want);
    }
}

/// A module of one kernel without parameters, whose body holds these bytes of one instruction.
fn body(inst: &[u8]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    // Version, one string "k", one type i64, one kernel named by string 0, no parameters; a body without parameters.
    out.extend([0, 1, 1, 1, b'k', 1, 0, 7, 0, 1, 0, 0, 0, 1]);
    out.extend(inst);
    out.push(0);
    out
}

#[test]
fn the_layout_is_as_specified() {
    // program_id: number 130 in two bytes, no flags, axis 2, no operands, one result of type 0, no regions.
    let bytes = body(&[0x82, 1, 0, 2, 0, 1, 0, 0]);
    assert!(is_binary(&bytes) && !is_binary(b"tile 0.1"));
    let text = "tile 0.1\nkernel @k() {\n  %0: i64 = program_id {axis = 2}\n}\n";
    assert_eq!(from_bytes(&bytes).unwrap().to_string(), text);
    assert_eq!(to_bytes(&parse_module(text).unwrap()), bytes);
}

#[test]
fn what_is_wrong_is_said() {
    let refused = |inst: &[u8], want: &str| {
        let error = from_bytes(&body(inst)).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    };
    let unknown =
        "no instruction has number 16383 in version 0.1, which the program is of; this reads up to 0.1";
    refused(&[0xff, 0x7f, 0, 0, 0, 0], unknown);
    refused(&[0x82, 1, 0x10, 2, 0, 1, 0, 0], "flags 0x10");
    refused(&[0x82, 1, 0, 0x82, 0, 0, 1, 0, 0], "longer than it needs to be");
    refused(&[0x82, 1, 0, 2, 1, 0, 1, 0, 0], "value 0 is not defined before");
    refused(&[0x82, 1, 0, 2, 0, 1, 1, 0], "type 1 is not there");
    refused(&[0x82, 1, 0, 2, 0, 0xff, 0xff, 0x7f, 0], "a count of 2097151 with");
    refused(&[0x82, 1, 0, 2, 0, 1, 0, 0, 0], "left over");
    let deep: Vec<u8> = [0x9d, 1, 0, 0, 0, 1, 0, 1].repeat(100);
    refused(&deep, "nest deeper");
    assert!(from_bytes(b"PNG").unwrap_err().to_string().contains("no tile program"));
    assert!(from_bytes(b"TILE").unwrap_err().to_string().contains("ends too early"));
}

#[test]
fn every_cut_and_every_flipped_bit_is_harmless() {
    let choices: Vec<(u8, u8, u8)> = (0..20).map(|i| (i, i / 3, i / 7)).collect();
    let bytes = to_bytes(&Module { kernels: vec![grow(&choices)] });
    for n in 0..bytes.len() {
        assert!(from_bytes(&bytes[..n]).is_err(), "cut at {n}");
    }
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << bit;
            if let Ok(m) = from_bytes(&damaged) {
                assert_eq!(
                    to_bytes(&m),
                    damaged,
                    "byte {at}, bit {bit}: another encoding of the same module"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn grown_kernels_round_trip(choices in prop::collection::vec(any::<(u8, u8, u8)>(), 0..40)) {
        round_trip(&Module { kernels: vec![grow(&choices)] });
    }

    #[test]
    fn damage_never_panics(
        choices in prop::collection::vec(any::<(u8, u8, u8)>(), 0..12),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = to_bytes(&Module { kernels: vec![grow(&choices)] });
        for (at, with) in edits {
            let at = at.index(bytes.len());
            bytes[at] = with;
        }
        if let Ok(m) = from_bytes(&bytes) {
            m.kernels.iter().for_each(|k| drop(verify(k)));
            prop_assert_eq!(to_bytes(&m), bytes);
        }
    }

    #[test]
    fn noise_is_refused(noise in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([0, 1]);
        bytes.extend(noise);
        let _ = from_bytes(&bytes);
    }
}
