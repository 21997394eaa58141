//! A device in memory with kernels written in Rust, and a builder of small plans.
#![allow(dead_code)]

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use tongtu_graph::{Builder, Graph, Loc, Type, ValueId};
use tongtu_plan::*;
use tongtu_tensor::dim::{Dim, Sym};
use tongtu_tensor::{DType, Tensor};

/// Device addresses begin here: far from any host pointer.
const BASE: u64 = 1 << 56;

type Args<'a> = &'a [LaunchArg];
type Kernel = fn(&mut Memory, [i64; 3], Args<'_>);

/// Kernels by name.
const KERNELS: &[(&str, Kernel)] = &[
    ("add", |m, _, a| binary(m, a, |x, y| x + y)),
    ("add_wrong", |m, _, a| binary(m, a, |x, y| x + y + if x > 3.0 { 0.5 } else { 0.0 })),
    ("mul", |m, _, a| binary(m, a, |x, y| x * y)),
    // Right, but for writing in front of its result too.
    ("mul_astray", |m, _, a| {
        binary(m, a, |x, y| x * y);
        let LaunchArg::Buffer(out, _) = a[2] else { panic!() };
        m.slice(out.address - 64, 4).fill(0);
    }),
    ("double", |m, _, a| {
        let x = m.f32s(&a[0]);
        m.write(&a[1], &x.iter().map(|v| v * 2.0).collect::<Vec<_>>());
    }),
    // out = x ++ [value]
    ("append", |m, _, a| {
        let mut x = m.f32s(&a[0]);
        let LaunchArg::Scalar(v) = a[2] else { panic!() };
        x.push(v as i64 as f32);
        m.write(&a[1], &x);
    }),
    // out = x < limit, of i64 scalars
    ("less", |m, _, a| {
        let LaunchArg::Scalar(limit) = a[2] else { panic!() };
        let x = i64::from_le_bytes(m.bytes(&a[0], 8).try_into().unwrap());
        m.write_bytes(&a[1], &[u8::from(x < limit as i64)]);
    }),
    ("is_positive", |m, _, a| {
        let x = m.f32s(&a[0]);
        m.write_bytes(&a[1], &[u8::from(x[0] > 0.0)]);
    }),
    ("count_positive", |m, _, a| {
        let n = m.f32s(&a[0]).iter().filter(|v| **v > 0.0).count() as i64;
        m.write_bytes(&a[1], &n.to_le_bytes());
    }),
    ("take_positive", |m, _, a| {
        let x: Vec<f32> = m.f32s(&a[0]).into_iter().filter(|v| *v > 0.0).collect();
        m.write(&a[1], &x);
    }),
    // state += x, in place
    ("accumulate", |m, _, a| {
        let (s, x) = (m.f32s(&a[0]), m.f32s(&a[1]));
        m.write(&a[0], &s.iter().zip(x).map(|(a, b)| a + b).collect::<Vec<_>>());
    }),
];

fn binary(m: &mut Memory, a: Args<'_>, f: fn(f32, f32) -> f32) {
    let (x, y) = (m.f32s(&a[0]), m.f32s(&a[1]));
    m.write(&a[2], &x.iter().zip(y).map(|(x, y)| f(*x, y)).collect::<Vec<_>>());
}

#[derive(Default)]
pub struct Memory {
    blocks: BTreeMap<u64, Vec<u8>>,
    next: u64,
}

impl Memory {
    fn slice(&mut self, address: u64, bytes: usize) -> &mut [u8] {
        if bytes == 0 {
            return &mut [];
        }
        let (at, block) = self.blocks.range_mut(..=address).next_back().expect("no such memory");
        &mut block[(address - at) as usize..][..bytes]
    }
    fn bytes(&mut self, arg: &LaunchArg, bytes: usize) -> Vec<u8> {
        let LaunchArg::Buffer(mem, _) = arg else { panic!("not a buffer") };
        assert!(bytes as u64 <= mem.bytes);
        self.slice(mem.address, bytes).to_vec()
    }
    fn f32s(&mut self, arg: &LaunchArg) -> Vec<f32> {
        let LaunchArg::Buffer(_, len) = arg else { panic!("not a buffer") };
        self.bytes(arg, *len as usize * 4)
            .chunks(4)
            .map(|c| f32::from_le_bytes(c.try_into().unwrap()))
            .collect()
    }
    fn write(&mut self, arg: &LaunchArg, values: &[f32]) {
        let LaunchArg::Buffer(_, len) = arg else { panic!("not a buffer") };
        assert_eq!(*len as usize, values.len(), "a kernel's result has another size than its buffer");
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.write_bytes(arg, &bytes);
    }
    fn write_bytes(&mut self, arg: &LaunchArg, bytes: &[u8]) {
        let LaunchArg::Buffer(mem, _) = arg else { panic!("not a buffer") };
        assert!(bytes.len() as u64 <= mem.bytes);
        self.slice(mem.address, bytes.len()).copy_from_slice(bytes);
    }
    fn copy(&mut self, dst: Mem, src: Mem) {
        assert_eq!(dst.bytes, src.bytes);
        let n = src.bytes as usize;
        let data = if src.address >= BASE {
            self.slice(src.address, n).to_vec()
        } else {
            // SAFETY: by the device's contract it is live host memory of that size.
            unsafe {
                std::slice::from_raw_parts(std::ptr::with_exposed_provenance(src.address as usize), n)
                    .to_vec()
            }
        };
        if dst.address >= BASE {
            self.slice(dst.address, n).copy_from_slice(&data);
        } else {
            let p: *mut u8 = std::ptr::with_exposed_provenance_mut(dst.address as usize);
            // SAFETY: as above, and the caller waits before it looks.
            unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), p, n) };
        }
    }
}

enum Work {
    Launch(usize, usize, [i64; 3], Vec<LaunchArg>),
    Copy(Mem, Mem),
}

#[derive(Default)]
struct Queue {
    memory: Memory,
    modules: Vec<Artifact>,
    work: VecDeque<Work>,
    given: u64,
    done: u64,
    stop: bool,
}

impl Queue {
    fn execute(&mut self, work: Work) {
        match work {
            Work::Launch(module, entry, grid, args) => {
                let name = self.modules[module].entries[entry].name.clone();
                let (_, kernel) = KERNELS.iter().find(|(n, _)| *n == name).expect("no such kernel");
                kernel(&mut self.memory, grid, &args);
            }
            Work::Copy(dst, src) => self.memory.copy(dst, src),
        }
    }
}

type Shared = Arc<(Mutex<Queue>, Condvar)>;

/// A device with its own addresses; asynchronous if made with a delay for each piece of work.
pub struct Fake {
    name: String,
    shared: Shared,
    delay: Option<Duration>,
    pub allocs: AtomicUsize,
    pub launches: AtomicUsize,
}

impl Fake {
    pub fn new(name: &str) -> Arc<Fake> {
        Fake::make(name, None)
    }
    pub fn slow(name: &str, micros: u64) -> Arc<Fake> {
        Fake::make(name, Some(Duration::from_micros(micros)))
    }
    fn make(name: &str, delay: Option<Duration>) -> Arc<Fake> {
        let shared = Shared::default();
        if let Some(delay) = delay {
            let shared = shared.clone();
            std::thread::spawn(move || {
                loop {
                    let mut q = shared.0.lock().unwrap();
                    while q.work.is_empty() && !q.stop {
                        q = shared.1.wait(q).unwrap();
                    }
                    if q.stop {
                        return;
                    }
                    drop(q);
                    std::thread::sleep(delay);
                    let mut q = shared.0.lock().unwrap();
                    let work = q.work.pop_front().unwrap();
                    q.execute(work);
                    q.done += 1;
                    shared.1.notify_all();
                }
            });
        }
        Arc::new(Fake {
            name: name.to_string(),
            shared,
            delay,
            allocs: AtomicUsize::new(0),
            launches: AtomicUsize::new(0),
        })
    }
    pub fn live(&self) -> usize {
        self.shared.0.lock().unwrap().memory.blocks.len()
    }
    fn submit(&self, work: Work) -> Event {
        let mut q = self.shared.0.lock().unwrap();
        if self.delay.is_none() {
            q.execute(work);
            return Event::DONE;
        }
        q.work.push_back(work);
        q.given += 1;
        self.shared.1.notify_all();
        Event(q.given)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        if let Ok(mut q) = self.shared.0.lock() {
            q.stop = true;
        }
        self.shared.1.notify_all();
    }
}

impl Device for Fake {
    fn name(&self) -> &str {
        &self.name
    }
    fn alloc(&self, bytes: u64) -> Result<Mem, DeviceError> {
        if bytes > 1 << 32 {
            return Err(DeviceError::Memory { device: self.name.clone(), bytes });
        }
        self.allocs.fetch_add(1, Ordering::Relaxed);
        let mut q = self.shared.0.lock().unwrap();
        let address = BASE + q.memory.next;
        q.memory.next += bytes.div_ceil(64) * 64 + 4096;
        // Filled with a pattern, so that unwritten memory shows.
        q.memory.blocks.insert(address, vec![0xa5; bytes as usize]);
        Ok(Mem { address, bytes })
    }
    fn free(&self, mem: Mem) {
        self.shared.0.lock().unwrap().memory.blocks.remove(&mem.address).expect("freed twice");
    }
    fn load(&self, artifact: &Artifact) -> Result<u64, DeviceError> {
        let mut q = self.shared.0.lock().unwrap();
        q.modules.push(artifact.clone());
        Ok(q.modules.len() as u64 - 1)
    }
    fn launch(
        &self,
        module: u64,
        entry: usize,
        grid: [i64; 3],
        args: &[LaunchArg],
        _: Event,
    ) -> Result<Event, DeviceError> {
        self.launches.fetch_add(1, Ordering::Relaxed);
        Ok(self.submit(Work::Launch(module as usize, entry, grid, args.to_vec())))
    }
    fn copy(&self, dst: Mem, src: Mem, _: Event) -> Result<Event, DeviceError> {
        Ok(self.submit(Work::Copy(dst, src)))
    }
    fn wait(&self, event: Event) -> Result<(), DeviceError> {
        let mut q = self.shared.0.lock().unwrap();
        while q.done < event.0 {
            q = self.shared.1.wait(q).unwrap();
        }
        Ok(())
    }
}

/// Builds plans.
#[derive(Default)]
pub struct P {
    pub plan: Plan,
    entries: HashMap<String, usize>,
}

impl P {
    pub fn sym(&mut self, name: &str) -> Sym {
        self.plan.symbols.fresh(name)
    }
    pub fn value(&mut self, dtype: DType, dims: &[Dim], storage: Storage) -> ValueRef {
        self.on(0, dtype, dims, storage)
    }
    pub fn on(&mut self, device: usize, dtype: DType, dims: &[Dim], storage: Storage) -> ValueRef {
        let name = Some(Arc::from(format!("v{}", self.plan.values.len())));
        self.plan.values.push(PlanValue { ty: Type::tensor(dtype, dims.to_vec()), storage, device, name });
        ValueRef(self.plan.values.len() as u32 - 1)
    }
    pub fn f32(&mut self, dims: &[Dim], storage: Storage) -> ValueRef {
        self.value(DType::F32, dims, storage)
    }
    /// Arena memory for the whole plan (the executor trusts lifetimes; these are the longest).
    pub fn arena(&mut self, dims: &[Dim], first: usize, last: usize) -> ValueRef {
        self.f32(dims, Storage::Arena { first, last })
    }
    pub fn input(&mut self, name: &str, dims: &[Dim]) -> ValueRef {
        let value = self.f32(dims, Storage::Input);
        self.plan.inputs.push(Port { name: name.into(), value });
        value
    }
    pub fn constant(&mut self, t: Tensor) -> ValueRef {
        let dims: Vec<Dim> = t.shape().iter().map(|&n| Dim::from(n as i64)).collect();
        self.plan.constants.push(t.clone());
        self.value(t.dtype(), &dims, Storage::Constant(self.plan.constants.len() - 1))
    }
    pub fn output(&mut self, name: &str, value: ValueRef) {
        self.plan.outputs.push(Port { name: name.into(), value });
    }
    /// A launch whose group has the given subgraph.
    pub fn launch_as(
        &mut self,
        kernel: &str,
        args: Vec<Arg>,
        graph: Graph,
        ins: &[ValueRef],
        outs: &[ValueRef],
    ) -> Step {
        if self.plan.artifacts.is_empty() {
            self.plan.artifacts.push(Artifact {
                backend: "fake".into(),
                entries: vec![],
                bytes: Arc::from(vec![]),
            });
        }
        let artifact = &mut self.plan.artifacts[0];
        let buffers = args.iter().filter(|a| matches!(a, Arg::Buffer(_))).count();
        let entry = *self.entries.entry(kernel.into()).or_insert_with(|| {
            let scalars = args.len() - buffers;
            artifact.entries.push(Entry { name: kernel.into(), scratch: 0, buffers, scalars });
            artifact.entries.len() - 1
        });
        let loc = Loc::new(format!("model/{kernel}"));
        self.plan.groups.push(Group {
            name: kernel.into(),
            graph: Arc::new(graph),
            inputs: ins.to_vec(),
            outputs: outs.to_vec(),
            loc: loc.clone(),
            flops: 1.into(),
            bytes: 8.into(),
        });
        let group = self.plan.groups.len() - 1;
        let kind = StepKind::Launch { artifact: 0, entry, grid: [1.into(), 1.into(), 1.into()], args, group };
        Step { kind, device: 0, wait: vec![], loc }
    }
    /// A launch without a subgraph to verify.
    pub fn launch(&mut self, kernel: &str, args: &[ValueRef]) -> Step {
        let args = args.iter().map(|v| Arg::Buffer(*v)).collect();
        self.launch_as(kernel, args, Graph::default(), &[], &[])
    }
    pub fn launch_with(&mut self, kernel: &str, args: &[ValueRef], dim: Dim) -> Step {
        let args = args.iter().map(|v| Arg::Buffer(*v)).chain([Arg::Dim(dim)]).collect();
        self.launch_as(kernel, args, Graph::default(), &[], &[])
    }
    /// `out = a op b` with its meaning as subgraph.
    pub fn binary(&mut self, kernel: &str, a: ValueRef, b: ValueRef, out: ValueRef) -> Step {
        let mut graph = Graph::default();
        let ins: Vec<ValueId> =
            [a, b].map(|v| graph.add_input(self.plan.values[v.index()].ty.clone(), None)).to_vec();
        let mut builder = Builder::new(&mut graph, &mut self.plan.symbols);
        builder.loc = Loc::new(format!("node/{kernel}"));
        let y = match kernel {
            "mul" | "mul_astray" => builder.mul(ins[0], ins[1]),
            _ => builder.add2(ins[0], ins[1]),
        };
        graph.outputs = vec![y.unwrap()];
        self.launch_as(kernel, vec![Arg::Buffer(a), Arg::Buffer(b), Arg::Buffer(out)], graph, &[a, b], &[out])
    }
}

pub fn step(kind: StepKind) -> Step {
    Step { kind, device: 0, wait: vec![], loc: Loc::new("model/step") }
}

pub fn block(steps: Vec<Step>) -> Block {
    Block { steps }
}

pub fn floats(values: &[f32]) -> Tensor {
    Tensor::from_slice(&[values.len()], values).unwrap()
}

pub fn list(v: &tongtu_runtime::Value) -> Vec<f32> {
    v.tensor().unwrap().unwrap().to_vec().unwrap()
}
