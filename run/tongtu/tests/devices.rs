//! One plan over two processors' queues: the model, and the model again on its own output, each on a device of its own.

use std::path::PathBuf;
use std::sync::Arc;

use tongtu::{CpuDevice, Model, Options, Plan, StepKind, Tensor, Value};
use tongtu_plan::{Arg, Block, Device, Port, Step, Storage, ValueRef};

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../conformance/models").join(name).join("model.onnx")
}

/// The plan's values, artifacts and groups moved behind those of another, and its steps to another device.
struct Shift {
    values: u32,
    artifacts: usize,
    groups: usize,
    steps: usize,
}

impl Shift {
    fn value(&self, v: &mut ValueRef) {
        v.0 += self.values;
    }
    fn block(&self, block: &mut Block, top: bool) {
        for s in &mut block.steps {
            s.device = 1;
            if top {
                s.wait.iter_mut().for_each(|w| *w += self.steps);
            }
            match &mut s.kind {
                StepKind::Launch { artifact, args, group, .. } => {
                    *artifact += self.artifacts;
                    *group += self.groups;
                    args.iter_mut().for_each(|a| {
                        if let Arg::Buffer(v) = a {
                            self.value(v)
                        }
                    });
                }
                StepKind::Copy { src, dst } | StepKind::Assign { src, dst } => {
                    self.value(src);
                    self.value(dst);
                }
                StepKind::WriteDim { dst, .. } => self.value(dst),
                StepKind::Bind { src, .. } => self.value(src),
                StepKind::BindDims { value, .. } => self.value(value),
                StepKind::Guard { .. } => {}
                other => panic!("not expected here: {other:?}"),
            }
        }
    }
}

/// `plan` on device 0, then on device 1 with the output `from` as its first input.
fn twice(plan: &Plan, from: usize) -> Plan {
    let mut out = plan.clone();
    let mut second = plan.clone();
    let shift = Shift {
        values: plan.values.len() as u32,
        artifacts: plan.artifacts.len(),
        groups: plan.groups.len(),
        steps: plan.body.steps.len() + 1,
    };
    let end = shift.steps + plan.body.steps.len();
    for v in &mut second.values {
        v.device = 1;
        match &mut v.storage {
            Storage::Constant(k) => *k += plan.constants.len(),
            Storage::Alias(of) => shift.value(of),
            Storage::Arena { first, last } => {
                *first += shift.steps;
                *last = last.saturating_add(shift.steps);
            }
            Storage::Input => v.storage = Storage::Arena { first: shift.steps - 1, last: end },
            _ => {}
        }
    }
    // The first half's outputs are read by the copy and at the end.
    shift.block(&mut second.body, true);
    for g in &mut second.groups {
        g.inputs.iter_mut().chain(&mut g.outputs).for_each(|v| shift.value(v));
    }
    let mut input = second.inputs[0].value;
    shift.value(&mut input);
    let copy = StepKind::Copy { src: plan.outputs[from].value, dst: input };
    let wait = (0..plan.body.steps.len()).collect();
    out.body.steps.push(Step { kind: copy, device: 1, wait, loc: Default::default() });
    out.body.steps.extend(second.body.steps);
    out.values.extend(second.values);
    out.constants.extend(second.constants);
    out.artifacts.extend(second.artifacts);
    out.groups.extend(second.groups);
    for p in second.outputs {
        let mut value = p.value;
        shift.value(&mut value);
        out.outputs.push(Port { name: format!("{}_again", p.name), value });
    }
    out
}

#[test]
fn a_plan_over_two_queues() {
    let model = Model::load(path("functions")).unwrap();
    let plan = twice(&model.plan(&Options::host().without_cache()).unwrap(), 0);
    plan.check().unwrap();
    let queues: Vec<Arc<dyn Device>> =
        vec![Arc::new(CpuDevice::queued(1).unwrap()), Arc::new(CpuDevice::queued(1).unwrap())];
    let session = tongtu_runtime::Session::new(plan, queues).unwrap();
    for n in [1usize, 7, 64] {
        let x = Tensor::from_slice(
            &[n, 12],
            &(0..n * 12).map(|i| (i % 17) as f32 / 9.0 - 1.0).collect::<Vec<_>>(),
        )
        .unwrap();
        let out = session.run(&[x.clone().into()]).unwrap();
        let first = model.interpret(&[("x", x)]).unwrap();
        let again = model.interpret(&[("x", first[0].clone())]).unwrap();
        let near = |a: &Value, b: &Value| {
            let (a, b) = (a.tensor().unwrap().unwrap(), b.tensor().unwrap().unwrap());
            assert_eq!(a.shape(), b.shape());
            let (a, b) = (a.to_f64_vec(), b.to_f64_vec());
            assert!(a.iter().zip(&b).all(|(x, y)| (x - y).abs() <= 1e-4 + 1e-4 * y.abs()), "{a:?} {b:?}");
        };
        near(&out[0], &first[0]);
        near(&out[1], &first[1]);
        near(&out[2], &again[0]);
        near(&out[3], &again[1]);
    }
}
