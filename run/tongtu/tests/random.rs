//! Random graphs of every element type: compiled code against the reference interpreter, each element within its
//! computed error bound.
//!
//! `TONGTU_CASES` sets the number of graphs, `TONGTU_SEED` the first one.
#![cfg(feature = "llvm")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tongtu_chip::Chip;
use tongtu_cpu::{CpuCompiler, CpuDevice};
use tongtu_graph::eval::{Sampler, compare};
use tongtu_graph::testing::{Options, random_module};
use tongtu_plan::Device;
use tongtu_runtime::{Session, Value};
use tongtu_tensor::{DType, Num};

/// One graph: `Ok` says whether it was compared, `Err` what differs.
fn check(seed: u64, chip: &Chip, device: &Arc<dyn Device>) -> Result<bool, String> {
    let dtypes = DType::ALL.to_vec();
    let (module, inputs) = random_module(seed, &Options { dtypes, ..Options::default() });
    let Ok(reference) = Sampler::new(&module.symbols, &module.graph, inputs.clone()).all() else {
        // Sizes or branches depend on inexact values, or the data lies outside a symbol's bounds.
        return Ok(false);
    };
    let compiler = CpuCompiler { threads: 1 };
    let shown = || format!("seed {seed}\n{module}");
    let plan = tongtu_compile::compile(module.clone(), &compiler, chip, &tongtu_compile::Options::default())
        .map_err(|e| format!("compile: {e}\n{}", shown()))?;
    let session = Session::new(plan, vec![device.clone()]).map_err(|e| format!("load: {e}\n{}", shown()))?;
    let values: Vec<Value> = inputs.into_iter().map(Value::from).collect();
    let outputs = session.run(&values).map_err(|e| format!("run: {e}\n{}", shown()))?;
    for (i, (out, want)) in outputs.iter().zip(&reference).enumerate() {
        let Ok(Some(t)) = out.tensor() else { return Err(format!("output {i} is no tensor\n{}", shown())) };
        let actual: Vec<Num> = t.iter().collect();
        let c = compare(want, &actual);
        if !c.passes() {
            return Err(format!("output {i}: {c:?}\n{}", shown()));
        }
    }
    Ok(true)
}

#[test]
fn compiled_graphs_agree_with_the_interpreter() {
    let number =
        |name: &str, default: u64| std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default);
    let (first, cases) = (number("TONGTU_SEED", 1), number("TONGTU_CASES", 60));
    // In turn, those of the chips that this machine is too.
    let host = Chip::host().expect("a description of this machine");
    let older = ["x86-64-v2", "x86-64-v3"].map(|n| Chip::builtin(n).expect("built in"));
    let mut chips = vec![host.clone()];
    chips.extend(older.into_iter().filter(|c| c.features.iter().all(|f| host.has(f))));
    let device: Arc<dyn Device> = Arc::new(CpuDevice::new(2).expect("threads"));
    let (mut compared, mut failures) = (0, Vec::new());
    for seed in first..first + cases {
        match catch_unwind(AssertUnwindSafe(|| check(seed, &chips[seed as usize % chips.len()], &device))) {
            Ok(Ok(true)) => compared += 1,
            Ok(Ok(false)) => {}
            Ok(Err(e)) => failures.push(e),
            Err(_) => failures.push(format!("seed {seed}: panic")),
        }
    }
    let shown: Vec<String> = failures.iter().take(5).map(|f| f.chars().take(3000).collect()).collect();
    assert!(failures.is_empty(), "{} of {cases} graphs differ\n\n{}", failures.len(), shown.join("\n\n"));
    assert!(compared * 2 > cases, "only {compared} of {cases} graphs could be compared");
}
