//! The built-in chip files, the host, and refusals.

use tongtu_chip::{Basis, Chip, Error, Kind, LevelKind};

#[test]
fn every_file_reads_and_carries_its_own_name() {
    for name in Chip::names() {
        let chip = Chip::builtin(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(chip.name, name);
        assert!(chip.levels.iter().any(|l| l.kind == LevelKind::Memory), "{name} has no memory");
        for level in &chip.levels {
            for source in
                level.capacity.iter().map(|f| &f.source).chain(level.bandwidth.iter().map(|f| &f.source))
            {
                assert!(source.len() > 8, "{name} {}: a number needs a source", level.name);
            }
        }
        let others =
            chip.matrix.iter().map(|m| &m.source).chain(chip.levels.iter().filter_map(|l| l.source.as_ref()));
        for source in others.chain([&chip.vector.source]).chain(&chip.dims.source) {
            assert!(source.len() > 8, "{name}: a number needs a source");
        }
    }
}

#[test]
fn written_text_reads_back() {
    for name in Chip::names() {
        let chip = Chip::builtin(name).unwrap();
        let text = toml::to_string(&chip).unwrap();
        assert_eq!(Chip::parse(&text).unwrap(), chip);
    }
}

#[test]
fn ascend_capacities_are_the_ones_its_compiler_prints() {
    let old = Chip::builtin("ascend-910b").unwrap();
    let new = Chip::builtin("ascend-950").unwrap();
    assert_eq!((old.kind, new.kind), (Kind::Npu, Kind::Npu));
    assert_eq!(old.capacity("ub"), Some(1572864 / 8));
    assert_eq!(new.capacity("ub"), Some(2031616 / 8));
    assert_eq!(old.capacity("l1"), Some(4194304 / 8));
    assert!(new.matrix_unit("f8e4m3fn", "f8e4m3fn", "f32").is_some());
    assert!(old.matrix_unit("f8e4m3fn", "f8e4m3fn", "f32").is_none());
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_host_agrees_with_the_standard_library() {
    let host = match Chip::host() {
        Ok(chip) => chip,
        Err(Error::NoHost(_)) => {
            assert!(!std::arch::is_x86_feature_detected!("avx2"));
            return;
        }
        Err(e) => panic!("{e}"),
    };
    assert_eq!(host.has("avx512f"), std::arch::is_x86_feature_detected!("avx512f"));
    assert_eq!(host.has("fma"), std::arch::is_x86_feature_detected!("fma"));
    assert_eq!(host.vector.bits == 512, host.has("avx512vl"));
    assert_eq!(host.cores.value as usize, std::thread::available_parallelism().unwrap().get());
    let l1 = host.level("l1").and_then(|l| l.capacity.as_ref()).unwrap();
    assert!((8 << 10..=1 << 20).contains(&l1.value) && l1.basis == Basis::Datasheet);
}

#[test]
fn refusals_are_typed() {
    assert_eq!(Chip::builtin("abacus").unwrap_err().code(), "F002");
    assert_eq!(Chip::parse("name = 3").unwrap_err().code(), "F001");
    let good = toml::to_string(&Chip::builtin("x86-64-v3").unwrap()).unwrap();
    let zero = good.replace("bits = 256", "bits = 0");
    assert_ne!(good, zero);
    assert_eq!(Chip::parse(&zero).unwrap_err().code(), "F003");
    let unknown = format!("colour = \"red\"\n{good}");
    assert_eq!(Chip::parse(&unknown).unwrap_err().code(), "F001");
}
