//! Plans on fake devices: sizes, arenas, loops, branches, state, devices, verification.

mod fake;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use fake::*;
use tongtu_graph::{AttrValue, Module, Type};
use tongtu_plan::*;
use tongtu_runtime::*;
use tongtu_tensor::dim::Dim;
use tongtu_tensor::{DType, Tensor};

fn session(plan: Plan, devices: &[Arc<Fake>]) -> Session {
    Session::new(plan, devices.iter().map(|d| d.clone() as Arc<dyn Device>).collect()).unwrap()
}

/// `y = ((x + c) * 2 …)`, `doublings` times.
fn chain(doublings: usize) -> Plan {
    let mut p = P::default();
    let n = p.sym("n");
    p.plan.symbols.set_bounds(n, 1, Some(1000));
    let dims = [Dim::from(n)];
    let x = p.input("x", &dims);
    let w = p.input("w", &dims);
    let mut last = p.arena(&dims, 0, 1);
    let mut steps = vec![p.binary("add", x, w, last)];
    for i in 0..doublings {
        let next = p.arena(&dims, i + 1, i + 2);
        steps.push(p.launch("double", &[last, next]));
        last = next;
    }
    p.output("y", last);
    p.plan.body = block(steps);
    p.plan
}

#[test]
fn sizes_are_bound_and_memory_is_reused() {
    let device = Fake::new("cpu");
    let s = session(chain(6), std::slice::from_ref(&device));
    let mut c = s.context();
    for n in [3usize, 700, 3, 1] {
        let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
        let out = c.run(&[floats(&x).into(), floats(&vec![1.0; n]).into()]).unwrap();
        assert_eq!(list(&out[0]), x.iter().map(|v| (v + 1.0) * 64.0).collect::<Vec<_>>(), "n = {n}");
    }
    // Two places suffice for the chain, each rounded up to 64 bytes.
    assert_eq!(c.memory().arena, 2 * 2816);
    assert_eq!(c.memory().bindings, 3);
    // At a known size nothing is allocated.
    let inputs = [floats(&[1.0, 2.0, 3.0]).into(), floats(&[0.0; 3]).into()];
    let mut outputs = Vec::new();
    c.run_into(&inputs, &mut outputs).unwrap();
    let allocs = device.allocs.load(Ordering::Relaxed);
    c.run_into(&inputs, &mut outputs).unwrap();
    assert_eq!(device.allocs.load(Ordering::Relaxed), allocs);
    assert_eq!(list(&outputs[0]), [64.0, 128.0, 192.0]);
    drop((c, s));
    assert_eq!(device.live(), 0, "memory is left on the device");
}

#[test]
fn wrong_inputs_are_named() {
    let s = session(chain(1), &[Fake::new("cpu")]);
    let message = |inputs: &[Value]| s.run(inputs).unwrap_err().to_string();
    let three = || Value::from(floats(&[1.0, 2.0, 3.0]));
    assert_eq!(message(&[three()]), "[R001] the model takes 2 inputs (x, w), 1 were given");
    let text = message(&[three(), floats(&[1.0, 2.0]).into()]);
    assert!(text.starts_with("[R004] input 'w', dim 0: must be 3") && text.ends_with("is 2"), "{text}");
    let ints = Tensor::from_slice(&[3], &[1i32, 2, 3]).unwrap();
    assert_eq!(message(&[ints.into(), three()]), "[R002] input 'x' must be a f32 tensor, not a i32 tensor");
    let square = Tensor::from_slice(&[1, 3], &[1f32, 2.0, 3.0]).unwrap();
    assert!(message(&[three(), square.into()]).starts_with("[R003] input 'w' has 2 dims"));
    let many = || Value::from(floats(&vec![0.0; 1001]));
    assert_eq!(message(&[many(), many()]), "[R005] input 'x', dim 0: 'n' must be from 1 to 1000, is 1001");
    // And then it still works.
    assert_eq!(list(&s.run(&[three(), three()]).unwrap()[0]), [4.0, 8.0, 12.0]);
}

#[test]
fn a_loop_grows_its_value() {
    let mut p = P::default();
    let (n, k, i) = (p.sym("n"), p.sym("k"), p.sym("i"));
    let x = p.input("x", &[Dim::from(n)]);
    // Carried: acc of length k, the turn as i64, the condition.
    let acc = p.f32(&[Dim::from(k)], Storage::Pool);
    let next = p.f32(&[Dim::from(k) + 1], Storage::Pool);
    let turn = p.value(DType::I64, &[], Storage::Pool);
    let go = p.value(DType::Bool, &[], Storage::Pool);
    let next_turn = p.value(DType::I64, &[], Storage::Pool);
    let next_go = p.value(DType::Bool, &[], Storage::Pool);
    let copy = p.f32(&[Dim::from(n)], Storage::Pool);
    let assign = |src, dst| step(StepKind::Assign { src, dst });
    let first = p.launch_with("less", &[turn, go], 5.into());
    let append = p.launch_with("append", &[acc, next], Dim::from(i) * 10);
    let less = p.launch_with("less", &[next_turn, next_go], 5.into());
    let body = vec![
        step(StepKind::Bind { sym: i, src: turn }),
        step(StepKind::BindDims { value: acc, fresh: vec![k] }),
        append,
        step(StepKind::WriteDim { dst: next_turn, dim: Dim::from(i) + 1 }),
        less,
        assign(next, acc),
        assign(next_turn, turn),
        assign(next_go, go),
    ];
    p.plan.body = block(vec![
        step(StepKind::WriteDim { dst: turn, dim: 0.into() }),
        first,
        step(StepKind::Copy { src: x, dst: copy }),
        assign(copy, acc),
        step(StepKind::While { condition: go, body: block(body) }),
        step(StepKind::BindDims { value: acc, fresh: vec![k] }),
    ]);
    p.output("acc", acc);
    for device in [Fake::new("cpu"), Fake::slow("queue", 20)] {
        let s = session(p.plan.clone(), std::slice::from_ref(&device));
        let out = s.run(&[floats(&[7.0, 8.0]).into()]).unwrap();
        assert_eq!(list(&out[0]), [7.0, 8.0, 0.0, 10.0, 20.0, 30.0, 40.0]);
        let allocs = device.allocs.load(Ordering::Relaxed);
        assert_eq!(list(&s.run(&[floats(&[1.0]).into()]).unwrap()[0])[0], 1.0);
        assert_eq!(device.allocs.load(Ordering::Relaxed), allocs, "blocks of the first run are used again");
        assert!(s.memory().pool_high_water > 0);
        drop(s);
        assert_eq!(device.live(), 0);
    }
}

#[test]
fn data_decides_sizes_and_branches() {
    let mut p = P::default();
    let (n, k) = (p.sym("n"), p.sym("k"));
    let x = p.input("x", &[Dim::from(n)]);
    let count = p.value(DType::I64, &[], Storage::Pool);
    let flag = p.value(DType::Bool, &[], Storage::Pool);
    let taken = p.f32(&[Dim::from(k)], Storage::Pool);
    let result = p.f32(&[Dim::from(k)], Storage::Pool);
    let view = p.f32(&[Dim::from(k), 1.into()], Storage::Alias(result));
    let steps = vec![
        p.launch("count_positive", &[x, count]),
        step(StepKind::Bind { sym: k, src: count }),
        p.launch("take_positive", &[x, taken]),
        p.launch("is_positive", &[x, flag]),
        step(StepKind::If {
            condition: flag,
            then_block: block(vec![p.launch("double", &[taken, result])]),
            else_block: block(vec![step(StepKind::Assign { src: taken, dst: result })]),
        }),
    ];
    p.plan.body = block(steps);
    p.output("y", view);
    p.plan.symbols.set_bounds(k, 0, Some(3));
    let s = session(p.plan, &[Fake::new("cpu")]);
    let run = |x: &[f32]| s.run(&[floats(x).into()]);
    let out = run(&[1.0, -1.0, 2.0]).unwrap();
    assert_eq!(list(&out[0]), [2.0, 4.0]);
    assert_eq!(out[0].tensor().unwrap().unwrap().shape(), [2, 1]);
    assert_eq!(list(&run(&[-1.0, 5.0]).unwrap()[0]), [5.0]);
    assert_eq!(list(&run(&[-1.0]).unwrap()[0]), [0f32; 0]);
    let error = run(&[1.0; 4]).unwrap_err().to_string();
    assert_eq!(error, "[R005] model/step: 'k' must be from 0 to 3, is 4");
}

#[test]
fn guards_speak() {
    let mut p = P::default();
    let (n, m) = (p.sym("n"), p.sym("m"));
    let x = p.input("x", &[Dim::from(n)]);
    p.input("w", &[Dim::from(m) * 2 + Dim::from(n)]);
    let message = "operands of node Add_3 must have equal sizes".to_string();
    p.plan.body = block(vec![step(StepKind::Guard { lhs: n.into(), rhs: m.into(), message })]);
    p.output("y", x);
    let s = session(p.plan, &[Fake::new("cpu")]);
    let run = |x: usize, w: usize| s.run(&[floats(&vec![0.0; x]).into(), floats(&vec![0.0; w]).into()]);
    assert_eq!(run(2, 6).unwrap().len(), 1);
    let error = run(2, 8).unwrap_err().to_string();
    assert_eq!(error, "[R006] model/step: operands of node Add_3 must have equal sizes: n is 2, m is 3");
    assert!(run(2, 7).unwrap_err().to_string().starts_with("[R004] input 'w', dim 0"));
}

#[test]
fn a_grid_without_value_is_an_error() {
    let mut p = P::default();
    let (n, m) = (p.sym("n"), p.sym("m"));
    let (x, w) = (p.input("x", &[Dim::from(n)]), p.input("w", &[Dim::from(m)]));
    let y = p.arena(&[Dim::from(n)], 0, 1);
    let mut launch = p.binary("add", x, x, y);
    let StepKind::Launch { grid, .. } = &mut launch.kind else { panic!() };
    grid[0] = Dim::from(n).floordiv(&Dim::from(m));
    p.plan.body = block(vec![launch]);
    p.output("y", y);
    p.output("w", w);
    let s = session(p.plan, &[Fake::new("cpu")]);
    let run = |w: usize| s.run(&[floats(&[1.0, 2.0]).into(), floats(&vec![0.0; w]).into()]);
    assert_eq!(list(&run(1).unwrap()[0]), [2.0, 4.0]);
    let error = run(0).unwrap_err().to_string();
    assert!(error.starts_with("[R007] model/add: size 'floordiv(n, m)'"), "{error}");
}

#[test]
fn state_stays_on_its_device() {
    let mut p = P::default();
    let n = p.sym("n");
    let state = p.input("state", &[Dim::from(n)]);
    let x = p.input("x", &[Dim::from(n)]);
    let steps = vec![p.launch("accumulate", &[state, x])];
    p.plan.body = block(steps);
    p.output("new_state", state);
    p.plan.state = vec![State { input: 0, output: 0, axis: 0 }];
    let device = Fake::new("cpu");
    let s = session(p.plan, std::slice::from_ref(&device));
    let kept = DeviceTensor::new(device.clone(), &floats(&[1.0, 2.0])).unwrap();
    for _ in 0..3 {
        let out = s.run(&[Value::Device(kept.clone()), floats(&[10.0, 20.0]).into()]).unwrap();
        assert!(matches!(&out[0], Value::Device(d) if Arc::ptr_eq(d, &kept)));
    }
    assert_eq!(kept.read().unwrap().to_vec::<f32>().unwrap(), [31.0, 62.0]);
    // A host tensor given as state is not changed.
    let host = floats(&[1.0, 2.0]);
    let out = s.run(&[host.clone().into(), floats(&[10.0, 20.0]).into()]).unwrap();
    assert_eq!(list(&out[0]), [11.0, 22.0]);
    assert_eq!(host.to_vec::<f32>().unwrap(), [1.0, 2.0]);
    // The same state twice in one run would be a race.
    let twice = s.run(&[Value::Device(kept.clone()), Value::Device(kept.clone())]);
    assert!(twice.unwrap_err().to_string().starts_with("[R011]"));
    assert_eq!(kept.read().unwrap().to_vec::<f32>().unwrap(), [31.0, 62.0]);
}

/// x doubled on device 0, w doubled on device 1, added on device 0, doubled on 1.
fn two_devices() -> Plan {
    let mut p = P::default();
    let n = p.sym("n");
    let dims = [Dim::from(n)];
    let arena = |p: &mut P, d, f, l| p.on(d, DType::F32, &dims, Storage::Arena { first: f, last: l });
    let x = p.input("x", &dims);
    let w = p.on(1, DType::F32, &dims, Storage::Input);
    p.plan.inputs.push(Port { name: "w".into(), value: w });
    let a = arena(&mut p, 0, 0, 3);
    let b = arena(&mut p, 1, 1, 2);
    let b0 = arena(&mut p, 0, 2, 3);
    let sum = arena(&mut p, 0, 3, 4);
    let sum1 = arena(&mut p, 1, 4, 5);
    let y = arena(&mut p, 1, 5, 9);
    let on = |mut s: Step, device, wait: &[usize]| {
        (s.device, s.wait) = (device, wait.to_vec());
        s
    };
    let steps = vec![
        p.launch("double", &[x, a]),
        on(p.launch("double", &[w, b]), 1, &[]),
        on(step(StepKind::Copy { src: b, dst: b0 }), 0, &[1]),
        on(p.binary("add", a, b0, sum), 0, &[2]),
        on(step(StepKind::Copy { src: sum, dst: sum1 }), 1, &[3]),
        on(p.launch("double", &[sum1, y]), 1, &[4]),
    ];
    p.plan.body = block(steps);
    p.output("y", y);
    p.output("sum", sum);
    p.plan
}

#[test]
fn two_asynchronous_devices_in_one_plan() {
    for delays in [(0, 300), (300, 0), (50, 50)] {
        let devices = [Fake::slow("first", delays.0), Fake::slow("second", delays.1)];
        let s = session(two_devices(), &devices);
        for round in 0..5 {
            let x = vec![round as f32; 100];
            let out = s.run(&[floats(&x).into(), floats(&[1.0; 100]).into()]).unwrap();
            assert_eq!(list(&out[0]), vec![(2.0 * round as f32 + 2.0) * 2.0; 100]);
            assert_eq!(list(&out[1]), vec![2.0 * round as f32 + 2.0; 100]);
        }
        assert!(devices.iter().all(|d| d.launches.load(Ordering::Relaxed) >= 10));
    }
    let missing = Session::new(two_devices(), vec![Fake::new("only")]).map(|_| ()).unwrap_err();
    assert_eq!(missing.to_string(), "[R012] the plan uses 2 devices, 1 were given");
}

#[test]
fn host_operations_and_values() {
    let mut p = P::default();
    let (n, k) = (p.sym("n"), p.sym("k"));
    let x = p.input("x", &[Dim::from(n)]);
    let host = |p: &mut P, ty: Type| {
        p.plan.values.push(PlanValue { ty, storage: Storage::Host, device: 0, name: None });
        ValueRef(p.plan.values.len() as u32 - 1)
    };
    let seq = host(&mut p, Type::Sequence(Box::new(Type::Any)));
    let len = p.value(DType::I64, &[], Storage::Pool);
    let last = p.f32(&[Dim::from(k)], Storage::Pool);
    let call = |name: &str, attributes, inputs, outputs| {
        step(StepKind::Host { name: name.into(), attributes, inputs, outputs })
    };
    let split = vec![("axis".to_string(), AttrValue::Int(0)), ("keep".to_string(), AttrValue::Bool(true))];
    let two = p.constant(Tensor::from_slice(&[], &[2i64]).unwrap());
    let at = p.constant(Tensor::from_slice(&[], &[-1i64]).unwrap());
    p.plan.body = block(vec![
        call("sequence_from_split", split, vec![x, two], vec![seq]),
        call("sequence_length", vec![], vec![seq], vec![len]),
        call("sequence_at", vec![], vec![seq, at], vec![last]),
        step(StepKind::BindDims { value: last, fresh: vec![k] }),
    ]);
    p.output("parts", seq);
    p.output("len", len);
    p.output("last", last);
    let s = session(p.plan, &[Fake::new("cpu")]);
    let out = s.run(&[floats(&[1.0, 2.0, 3.0, 4.0, 5.0]).into()]).unwrap();
    assert!(matches!(&out[0], Value::Host(HostValue::Sequence(parts)) if parts.len() == 3));
    assert_eq!(out[1].tensor().unwrap().unwrap().to_vec::<i64>().unwrap(), [3]);
    assert_eq!(list(&out[2]), [5.0]);
}

#[test]
fn one_session_serves_many_threads() {
    let s = session(chain(3), &[Fake::new("cpu")]);
    std::thread::scope(|scope| {
        for t in 0..4 {
            let s = &s;
            scope.spawn(move || {
                for n in 1..40usize {
                    let x = vec![t as f32; n];
                    let out = s.run(&[floats(&x).into(), floats(&x).into()]).unwrap();
                    assert_eq!(list(&out[0]), vec![t as f32 * 16.0; n]);
                }
            });
        }
    });
}

#[test]
fn defects_of_plans_are_errors() {
    let mut p = P::default();
    let a = p.f32(&[4.into()], Storage::Pool);
    let b = p.f32(&[4.into()], Storage::Pool);
    let copy = step(StepKind::Copy { src: a, dst: b });
    p.plan.body = block(vec![copy]);
    let devices = || vec![Fake::new("cpu") as Arc<dyn Device>];
    let error = Session::new(p.plan.clone(), devices()).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("is used before anything is written"), "{error}");
    p.plan.body.steps[0].wait = vec![3];
    assert!(matches!(Session::new(p.plan, devices()), Err(RuntimeError::Plan(_))));
}

#[test]
fn verification_finds_the_kernel_that_differs() {
    let build = |kernel: &str| {
        let mut p = P::default();
        let n = p.sym("n");
        let dims = [Dim::from(n)];
        let (x, w) = (p.input("x", &dims), p.input("w", &dims));
        let product = p.arena(&dims, 0, 1);
        let sum = p.arena(&dims, 1, 2);
        let steps = vec![p.binary("mul", x, w, product), p.binary(kernel, product, w, sum)];
        p.plan.body = block(steps);
        p.output("y", sum);
        p.plan
    };
    let inputs = [floats(&[1.0, 2.0, 3.0]).into(), floats(&[1.0, 2.0, 0.5]).into()];
    let good = session(build("add"), &[Fake::new("cpu")]);
    let (out, report) = good.verify(&inputs, &VerifyOptions::default()).unwrap();
    assert_eq!(list(&out[0]), [2.0, 6.0, 2.0]);
    assert!(report.passes());
    assert_eq!((report.groups.len(), report.checked()), (2, 6));
    assert!(report.worst_ratio() <= 1.0);

    let bad = session(build("add_wrong"), &[Fake::new("cpu")]);
    let check = |kernel: &'static str| {
        let recompile = move |m: &Module| {
            let mut p = P::default();
            p.plan.symbols = m.symbols.clone();
            let dims = m.graph.dims(m.graph.inputs[0]).to_vec();
            let (a, b) = (p.input("a", &dims), p.input("b", &dims));
            let out = p.arena(&dims, 0, 1);
            let name = if m.graph.nodes[0].op.name() == "mul" { "mul" } else { kernel };
            let steps = vec![p.binary(name, a, b, out)];
            p.plan.body = block(steps);
            p.output("y", out);
            Ok(p.plan)
        };
        let options = VerifyOptions { recompile: Some(&recompile), ..VerifyOptions::default() };
        let (_, report) = bad.verify(&inputs, &options).unwrap();
        assert!(!report.passes() && report.groups[0].passes() && !report.groups[1].passes());
        let group = report.groups[1].clone();
        assert_eq!((group.failed, group.checked), (1, 3));
        let worst = group.worst.clone().unwrap();
        assert_eq!((worst.index.as_slice(), worst.expected, worst.actual), (&[1usize][..], 6.0, 6.5));
        group.culprit.unwrap()
    };
    match check("add_wrong") {
        Culprit::Op { op, worst } => {
            assert_eq!((op.op.as_str(), op.loc.as_str()), ("add", "node/add_wrong"));
            assert_eq!(worst.unwrap().actual, 6.5);
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(check("add"), Culprit::Fusion));
}

#[test]
fn verification_notices_memory_that_is_written_over() {
    let mut p = P::default();
    let dims = [Dim::from(4)];
    let (x, w) = (p.input("x", &dims), p.input("w", &dims));
    let a = p.arena(&dims, 0, 2);
    let b = p.arena(&dims, 1, 2);
    let y = p.arena(&dims, 2, 3);
    // The second launch writes before its own memory, where the first's result lies.
    let steps = vec![p.binary("add", x, w, a), p.binary("mul_astray", x, w, b), p.binary("add", a, b, y)];
    p.plan.body = block(steps);
    p.output("y", y);
    let s = session(p.plan, &[Fake::new("cpu")]);
    let ones = || Value::from(floats(&[1.0; 4]));
    let (_, report) = s.verify(&[ones(), ones()], &VerifyOptions::default()).unwrap();
    assert!(report.groups[0].passes() && report.groups[1].passes());
    assert!(
        report.groups[2].error.as_ref().unwrap().starts_with("[R017] its operand 'v2'"),
        "{:?}",
        report.groups[2]
    );
}

#[test]
fn profiles_and_traces() {
    let s = session(chain(3), &[Fake::slow("queue", 100)]);
    let inputs = [floats(&[1.0]).into(), floats(&[1.0]).into()];
    let (_, mut profile) = s.profile(&inputs).unwrap();
    let (_, other) = s.profile(&inputs).unwrap();
    let least: Vec<u64> = profile.steps.iter().zip(&other.steps).map(|(a, b)| a.ns.min(b.ns)).collect();
    profile.keep_best(&other);
    assert_eq!(profile.steps.iter().map(|s| s.ns).collect::<Vec<_>>(), least);
    assert_eq!(profile.steps.len(), 4);
    let groups = profile.groups();
    assert_eq!(groups.len(), 4);
    assert!((groups.iter().map(|g| g.share).sum::<f64>() - 1.0).abs() < 1e-9);
    assert!(groups.iter().all(|g| g.ns >= 100_000), "a launch is waited for");
    let mut trace = Vec::new();
    profile.write_trace(&mut trace).unwrap();
    let trace: serde_json::Value = serde_json::from_slice(&trace).unwrap();
    let complete = trace["traceEvents"].as_array().unwrap().iter().filter(|e| e["ph"] == "X");
    assert_eq!(complete.count(), 4);
}
