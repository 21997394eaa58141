//! Time of a launch in the executor: a plan of many launches on a device that does nothing.
//!
//!     cargo run --release -p tongtu-runtime --example overhead

use std::sync::Arc;
use std::time::Instant;

use tongtu_graph::{Graph, Loc, Type};
use tongtu_plan::*;
use tongtu_runtime::{Session, Value};
use tongtu_tensor::{DType, Dim, Tensor};

/// Gives memory and does nothing with it.
struct Idle;

impl Device for Idle {
    fn name(&self) -> &str {
        "idle"
    }
    fn alloc(&self, bytes: u64) -> Result<Mem, DeviceError> {
        Ok(Mem { address: 1 << 40, bytes })
    }
    fn free(&self, _: Mem) {}
    fn load(&self, _: &Artifact) -> Result<u64, DeviceError> {
        Ok(0)
    }
    fn launch(
        &self,
        _: u64,
        _: usize,
        grid: [i64; 3],
        args: &[LaunchArg],
        _: Event,
    ) -> Result<Event, DeviceError> {
        std::hint::black_box((grid, args));
        Ok(Event::DONE)
    }
    fn copy(&self, _: Mem, _: Mem, _: Event) -> Result<Event, DeviceError> {
        Ok(Event::DONE)
    }
    fn wait(&self, _: Event) -> Result<(), DeviceError> {
        Ok(())
    }
}

const LAUNCHES: usize = 1000;

/// A chain of launches; of inputs and arena values, or of values with memory of their own.
fn chain(pool: bool) -> Plan {
    let mut plan = Plan::default();
    let n = plan.symbols.fresh("n");
    let ty = Type::tensor(DType::F32, vec![Dim::from(n), 64.into()]);
    let value = |storage| PlanValue { ty: ty.clone(), storage, device: 0, name: None };
    plan.values.push(value(Storage::Input));
    plan.artifacts.push(Artifact {
        backend: "idle".into(),
        entries: vec![Entry { name: "k".into(), scratch: 0, buffers: 2, scalars: 2 }],
        bytes: Arc::from(vec![]),
    });
    plan.groups.push(Group {
        name: "k".into(),
        graph: Arc::new(Graph::default()),
        inputs: vec![],
        outputs: vec![],
        loc: Loc::default(),
        flops: 0.into(),
        bytes: 0.into(),
    });
    for i in 0..LAUNCHES {
        plan.values.push(value(if pool { Storage::Pool } else { Storage::Arena { first: i, last: i + 1 } }));
        let v = |i: usize| Arg::Buffer(ValueRef(i as u32));
        let dim = Dim::from(n).ceildiv(&16.into());
        let kind = StepKind::Launch {
            artifact: 0,
            entry: 0,
            grid: [dim.clone(), 1.into(), 1.into()],
            args: vec![v(i), v(i + 1), Arg::Dim(dim), Arg::Dim(Dim::from(n))],
            group: 0,
        };
        plan.body.steps.push(Step { kind, device: 0, wait: vec![], loc: Loc::default() });
    }
    plan.inputs.push(Port { name: "x".into(), value: ValueRef(0) });
    plan.outputs.push(Port { name: "y".into(), value: ValueRef(LAUNCHES as u32) });
    plan
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for (name, pool) in [("arena", false), ("pool", true)] {
        let session = Session::new(chain(pool), vec![Arc::new(Idle)])?;
        let mut context = session.context();
        let inputs = [Value::Tensor(Tensor::zeros(DType::F32, &[32, 64])?)];
        let mut outputs = Vec::new();
        let mut best = f64::MAX;
        for _ in 0..200 {
            let start = Instant::now();
            context.run_into(&inputs, &mut outputs)?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        println!("{name}: {:.0} ns a launch", best * 1e9 / LAUNCHES as f64);
    }
    Ok(())
}
