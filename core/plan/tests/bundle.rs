//! Bundles: what is written is read back; damaged files are typed errors.

use std::sync::Arc;

use proptest::prelude::*;
use sha2::{Digest, Sha256};
use tongtu_graph::{AttrValue, Builder, Graph, Loc, Type};
use tongtu_plan::bundle::{self, BundleError, Info};
use tongtu_plan::*;
use tongtu_tensor::dim::{Dim, Symbols};
use tongtu_tensor::{DType, Tensor};

fn step(kind: StepKind) -> Step {
    Step { kind, device: 0, wait: vec![], loc: Loc::new("layer/Relu_1 (Relu)") }
}

/// A plan with something of everything.
fn sample() -> Plan {
    let mut symbols = Symbols::new();
    let n = symbols.fresh("n");
    symbols.set_bounds(n, 1, Some(64));
    let k = symbols.fresh("k");
    let mut graph = Graph { name: "relu".into(), ..Graph::default() };
    let x = graph.add_input(Type::tensor(DType::F32, vec![Dim::from(n), Dim::from(4)]), Some("x".into()));
    let mut b = Builder::new(&mut graph, &mut symbols);
    let y = b.relu(x).unwrap();
    let c = b.float(DType::F32, f64::INFINITY).unwrap();
    graph.outputs = vec![y, c];
    let weights = Tensor::from_slice(&[3, 2], &[1f32, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
    let dims = vec![Dim::from(n), Dim::from(4)];
    let value = |ty: Type, storage| PlanValue { ty, storage, device: 0, name: Some("v".into()) };
    let f32s = |dims: &[Dim]| Type::tensor(DType::F32, dims.to_vec());
    let values = vec![
        value(f32s(&dims), Storage::Input),
        value(f32s(&dims), Storage::Arena { first: 0, last: 9 }),
        value(f32s(&[]), Storage::Pool),
        value(f32s(&[3.into(), 2.into()]), Storage::Constant(0)),
        value(f32s(&[6.into()]), Storage::Alias(ValueRef(3))),
        value(Type::Sequence(Box::new(Type::Any)), Storage::Host),
        value(Type::scalar(DType::Bool), Storage::Pool),
        value(Type::scalar(DType::I64), Storage::Pool),
    ];
    let v = ValueRef;
    let body = Block {
        steps: vec![
            step(StepKind::Launch {
                artifact: 0,
                entry: 0,
                grid: [Dim::from(n).ceildiv(&16.into()), 1.into(), 1.into()],
                args: vec![Arg::Buffer(v(0)), Arg::Buffer(v(1)), Arg::Dim(Dim::from(n) * 4)],
                group: 0,
            }),
            step(StepKind::Host {
                name: "sequence_at".into(),
                attributes: vec![
                    ("x".into(), AttrValue::Float(f64::NAN)),
                    ("t".into(), AttrValue::Tensor(weights.clone())),
                ],
                inputs: vec![v(5)],
                outputs: vec![v(2)],
            }),
            step(StepKind::While {
                condition: v(6),
                body: Block {
                    steps: vec![step(StepKind::If {
                        condition: v(6),
                        then_block: Block { steps: vec![step(StepKind::Copy { src: v(0), dst: v(1) })] },
                        else_block: Block { steps: vec![step(StepKind::Assign { src: v(5), dst: v(5) })] },
                    })],
                },
            }),
            step(StepKind::WriteDim { dst: v(7), dim: Dim::from(n) + 1 }),
            step(StepKind::Bind { sym: k, src: v(7) }),
            step(StepKind::BindDims { value: v(2), fresh: vec![k] }),
            step(StepKind::Guard { lhs: Dim::from(n), rhs: Dim::from(k), message: "must agree".into() }),
        ],
    };
    let port = |name: &str, i| Port { name: name.into(), value: v(i) };
    Plan {
        symbols,
        values,
        inputs: vec![port("x", 0)],
        outputs: vec![port("y", 1), port("s", 2)],
        state: vec![State { input: 0, output: 0, axis: 0 }],
        constants: vec![weights],
        artifacts: vec![Artifact {
            backend: "fake".into(),
            entries: vec![Entry { name: "relu".into(), scratch: 64, buffers: 2, scalars: 1 }],
            bytes: Arc::from(&b"machine code"[..]),
        }],
        body,
        hosted: vec![tongtu_plan::Hosted { group: 0, why: "no such instruction".to_string() }],
        groups: vec![Group {
            name: "relu".into(),
            graph: Arc::new(graph),
            inputs: vec![v(0)],
            outputs: vec![v(1), v(2)],
            loc: Loc::default(),
            flops: Dim::from(n) * 4,
            bytes: Dim::from(n) * 32,
        }],
    }
}

fn info() -> Info {
    Info { model: "m".into(), chip: "host".into(), producer: "test".into(), sources: Vec::new() }
}

fn bytes() -> Vec<u8> {
    let mut out = Vec::new();
    bundle::write(&sample(), &info(), &mut out).unwrap();
    out
}

fn read(bytes: Vec<u8>) -> Result<Bundle, BundleError> {
    bundle::read(Arc::new(bytes))
}

#[test]
fn round_trip() {
    let first = bytes();
    let bundle = read(first.clone()).unwrap();
    assert_eq!(bundle.info, info());
    bundle.check_constants().unwrap();
    let mut again = Vec::new();
    bundle::write(&bundle.plan, &bundle.info, &mut again).unwrap();
    assert!(first == again, "a bundle that was read writes other bytes");
    // Debug forms show every field, tensors by their elements.
    assert_eq!(format!("{:?}", bundle.plan.body), format!("{:?}", sample().body));
    assert_eq!(format!("{:?}", bundle.plan.values), format!("{:?}", sample().values));
    assert_eq!(format!("{:?}", bundle.plan.groups), format!("{:?}", sample().groups));
    assert_eq!(bundle.plan.artifacts, sample().artifacts);
    assert!(bundle.plan.constants[0].same_bits(&sample().constants[0]));
}

#[test]
fn file_is_mapped_and_aligned() {
    let path = std::env::temp_dir().join(format!("tongtu-bundle-{}.tongtu", std::process::id()));
    bundle::save(&sample(), &info(), &path).unwrap();
    let bundle = bundle::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let address = bundle.plan.constants[0].bytes().as_ptr() as usize;
    assert_eq!(address % 64, 0);
    assert!(matches!(bundle.plan.constants[0].bytes(), std::borrow::Cow::Borrowed(_)));
}

#[test]
fn damage_is_named() {
    let good = bytes();
    assert!(matches!(read(vec![]), Err(BundleError::NotABundle)));
    assert!(matches!(read(b"\x08\x07onnx".to_vec()), Err(BundleError::NotABundle)));
    let mut newer = good.clone();
    newer[8] = 99;
    assert!(matches!(read(newer), Err(BundleError::Version { found: 99 })));
    for len in 8..good.len() {
        assert!(read(good[..len].to_vec()).is_err(), "cut to {len} of {} bytes", good.len());
    }
    let mut code = good.clone();
    let at = code.windows(12).position(|w| w == b"machine code").unwrap();
    code[at] ^= 1;
    assert!(matches!(read(code), Err(BundleError::Checksum { section: "code" })));
    let mut constant = good.clone();
    *constant.last_mut().unwrap() ^= 1;
    let bundle = read(constant).unwrap();
    assert!(matches!(bundle.check_constants(), Err(BundleError::Checksum { section: "constants" })));
}

/// Replaces the metadata and makes all checksums right again, as an attacker would.
fn with_metadata(good: &[u8], edit: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let len = u64::from_le_bytes(good[24..32].try_into().unwrap()) as usize;
    let mut metadata = good[128..128 + len].to_vec();
    edit(&mut metadata);
    metadata.resize(len, b' ');
    let mut bytes = good.to_vec();
    bytes[128..128 + len].copy_from_slice(&metadata);
    let sum = Sha256::digest(&metadata);
    bytes[64..96].copy_from_slice(&sum);
    let own = Sha256::digest(&bytes[..96]);
    bytes[96..104].copy_from_slice(&own[..8]);
    bytes
}

#[test]
fn hostile_metadata() {
    let good = bytes();
    // The whole metadata as deeply nested JSON.
    assert!(matches!(read(with_metadata(&good, |m| m.fill(b'['))), Err(BundleError::Metadata(_))));
    let edit = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        with_metadata(&good, |m| {
            let text = String::from_utf8(m.clone()).unwrap();
            assert!(text.contains(from), "{from} not in {text}");
            *m = text.replacen(from, to, 1).into_bytes();
        })
    };
    assert!(matches!(read(edit("\"Alias\":3", "\"Alias\":4")), Err(BundleError::Plan(_))));
    assert!(matches!(read(edit("\"artifact\":0", "\"artifact\":7")), Err(BundleError::Plan(_))));
    assert!(matches!(read(edit("\"device\":0", "\"device\":x")), Err(BundleError::Metadata(_))));
    let outside = read(edit("\"shape\":[3,2]", "\"shape\":[9,9]")).unwrap_err();
    assert!(matches!(outside, BundleError::Truncated { .. } | BundleError::Tensor(_)), "{outside}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn mutations_never_panic(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let good = bytes();
        let mut raw = good.clone();
        for (at, byte) in &edits {
            raw[at.index(good.len())] = *byte;
        }
        let _ = read(raw);
        let deep = with_metadata(&good, |m| {
            for (at, byte) in &edits {
                let at = at.index(m.len());
                // Digits stay digits: such files get furthest.
                m[at] = if m[at].is_ascii_digit() { b'0' + byte % 10 } else if byte % 4 == 0 { *byte } else { m[at] };
            }
        });
        if let Ok(bundle) = read(deep) {
            prop_assert!(bundle.plan.check().is_ok());
        }
    }
}
