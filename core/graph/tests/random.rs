//! Random graphs: they verify, read back from text, and both modes of the evaluator agree.

use std::collections::BTreeSet;

use proptest::prelude::*;
use tongtu_graph::eval::{Sampler, compare, run_tensors};
use tongtu_graph::testing::{Options, random_module};
use tongtu_graph::{text, verify};
use tongtu_tensor::{Num, Tensor};

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn verifies_and_reads_back(seed in any::<u64>()) {
        let (m, _) = random_module(seed, &Options::default());
        prop_assert_eq!(verify(&m), Ok(()));
        let printed = text::print(&m);
        let back = text::parse(&printed).map_err(|e| TestCaseError::fail(format!("{e}\n{printed}")))?;
        prop_assert_eq!(&m.symbols, &back.symbols);
        prop_assert_eq!(verify(&back), Ok(()));
        prop_assert_eq!(text::print(&back), printed);
    }

    #[test]
    fn both_modes_agree(seed in any::<u64>()) {
        let (m, inputs) = random_module(seed, &Options::default());
        let ran = run_tensors(&m, &inputs);
        let sampled = Sampler::new(&m.symbols, &m.graph, inputs.clone()).all();
        let (ran, sampled) = match (ran, sampled) {
            (Ok(r), Ok(s)) => (r, s),
            // Sizes and branches may depend on inexact values, which only the sampler refuses.
            (Ok(_), Err(e)) => {
                prop_assert!(e.to_string().contains("inexact"), "{e}\n{m}");
                return Ok(());
            }
            (Err(e), _) => return Err(TestCaseError::fail(format!("{e}\n{m}"))),
        };
        for (r, s) in ran.iter().zip(&sampled) {
            prop_assert_eq!(r.len(), s.len());
            for (i, (a, b)) in r.iter().zip(s).enumerate() {
                let same = a == b.value || a.is_nan() && b.value.is_nan();
                prop_assert!(same, "element {i}: {a} and {b:?}\n{m}");
                prop_assert!(b.err >= 0.0, "element {i}: {b:?}\n{m}");
            }
            let actual: Vec<Num> = r.iter().collect();
            prop_assert!(compare(s, &actual).passes());
        }
    }

    #[test]
    fn read_back_graphs_compute_the_same(seed in any::<u64>()) {
        let (m, inputs) = random_module(seed, &Options::default());
        let back = text::parse(&text::print(&m)).map_err(|e| TestCaseError::fail(e.to_string()))?;
        if let (Ok(a), Ok(b)) = (run_tensors(&m, &inputs), run_tensors(&back, &inputs)) {
            prop_assert!(a.iter().zip(&b).all(|(x, y): (&Tensor, &Tensor)| x.same_bits(y)));
        }
    }

    #[test]
    fn changed_text_is_read_or_refused(seed in any::<u64>(), edits in proptest::collection::vec((any::<u32>(), any::<u8>(), 0u8..4), 1..6)) {
        let (m, _) = random_module(seed, &Options { nodes: 4, ..Options::default() });
        let mut bytes = text::print(&m).into_bytes();
        for (at, byte, how) in edits {
            let at = at as usize % bytes.len().max(1);
            match how {
                0 => bytes[at] = byte,
                1 => bytes.truncate(at),
                2 => bytes.insert(at, b"{}[]()<>%\",=:$@-0x.esplat"[byte as usize % 25]),
                _ => { bytes.remove(at); }
            }
            if bytes.is_empty() {
                bytes.push(b' ');
            }
        }
        let changed = String::from_utf8_lossy(&bytes);
        if let Ok(m) = text::parse(&changed) {
            // What reads can be verified and printed, whatever it is; what is sound reads back.
            let sound = verify(&m).is_ok();
            let printed = text::print(&m);
            match text::parse(&printed) {
                Ok(again) => prop_assert_eq!(text::print(&again), printed),
                Err(e) => prop_assert!(!sound, "{e}\n{printed}"),
            }
        }
    }
}

/// The generator reaches the whole table.
#[test]
fn every_operation_occurs() {
    let mut seen = BTreeSet::new();
    for seed in 0..600 {
        let (m, _) = random_module(seed, &Options { nodes: 12, ..Options::default() });
        seen.extend(m.graph.nodes.iter().map(|n| n.op.name()));
        let inner = tongtu_graph::inline_composites(&m.graph);
        seen.extend(inner.nodes.iter().map(|n| n.op.name()));
    }
    let missing: Vec<&str> =
        tongtu_graph::op::TABLE.iter().map(|r| r.name).filter(|n| !seen.contains(n)).collect();
    assert_eq!(missing, ["kernel", "host"], "operations that no random graph has");
}
