//! One run at a time: memory, symbols and bindings of a session's user.

use std::collections::HashMap;
use std::sync::Arc;

use tongtu_graph::{Loc, Type};
use tongtu_plan::{Device, DeviceError, Event, LaunchArg, Mem};
use tongtu_tensor::DType;
use tongtu_tensor::dim::Sym;

use crate::arena::{self, Span};
use crate::dims::{self, DimId};
use crate::error::RuntimeError;
use crate::host::HostValue;
use crate::pool::{BlockId, Pool};
use crate::profile::Recorder;
use crate::program::{DimUse, Kind, LArg};
use crate::session::Inner;
use crate::value::Value;
use crate::verify::Verifier;

/// What one root value is at the moment.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) mem: Mem,
    /// Bytes that an alias may use, where they are more than `mem` has.
    pub(crate) room: u64,
    pub(crate) count: u64,
    /// Dims where they are not those of the value's type: assigned values and results of host operations.
    pub(crate) dims: Vec<i64>,
    pub(crate) block: BlockId,
    /// Whether it has memory.
    pub(crate) ready: bool,
}

/// A launch with what is known of it for a binding.
#[derive(Clone, Debug)]
pub(crate) struct Ready {
    pub(crate) grid: [i64; 3],
    pub(crate) args: Vec<LaunchArg>,
}

/// Everything that the values of the input symbols decide.
pub(crate) struct Binding {
    /// Values of fixed expressions.
    pub(crate) dims: Vec<Option<i64>>,
    /// Offset of each arena value, and bytes needed on each device.
    offsets: Vec<u64>,
    need: Vec<u64>,
    pub(crate) ready: Vec<Ready>,
    /// The arenas that `ready` has addresses of.
    arenas: u64,
}

/// Bindings kept at most; more start anew.
const MAX_BINDINGS: usize = 256;

/// What a run does besides running.
pub(crate) enum Mode<'a> {
    Plain,
    Profile(&'a mut Recorder),
    Verify(&'a mut Verifier),
}

/// Memory that a context, and the session behind it, hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct MemoryReport {
    /// Bytes of constants, whether mapped or copied.
    pub constants: u64,
    /// Of these, bytes copied to devices.
    pub constants_copied: u64,
    /// Bytes of the arenas of all devices.
    pub arena: u64,
    /// Most bytes of pool memory in use at a time.
    pub pool_high_water: u64,
    /// Bytes of pool memory held.
    pub pool_held: u64,
    /// Bytes of state copied so far, because it was not updated in place or had no room to grow.
    pub state_copied: u64,
    /// Sizes that were bound.
    pub bindings: usize,
}

/// What one user of a session needs to run it: its memory and the sizes it has met. Contexts share nothing that changes, so
/// several threads run one session with a context each.
pub struct Context {
    inner: Arc<Inner>,
    state: State,
}

pub(crate) struct State {
    pub(crate) syms: Vec<Option<i64>>,
    pub(crate) slots: Vec<Slot>,
    pub(crate) host: Vec<Option<HostValue>>,
    pub(crate) pool: Pool,
    pub(crate) arenas: Vec<Option<Mem>>,
    /// Changes when an arena moves.
    pub(crate) arena_epoch: u64,
    pub(crate) bindings: Vec<Binding>,
    pub(crate) by_key: HashMap<Box<[i64]>, usize>,
    pub(crate) key: Vec<i64>,
    pub(crate) current: usize,
    /// The binding and arena epoch that the slots of arena values are for.
    pub(crate) slots_for: (usize, u64),
    /// The last event of each device.
    pub(crate) last: Vec<Event>,
    /// Events of the steps of the blocks being run.
    pub(crate) events: Vec<Event>,
    /// Bytes of state copied.
    pub(crate) state_copied: u64,
}

impl Drop for Context {
    fn drop(&mut self) {
        for (d, device) in self.inner.devices.iter().enumerate() {
            let _ = device.wait(self.state.last[d]);
            if let Some(mem) = self.state.arenas[d].take() {
                device.free(mem);
            }
        }
    }
}

impl Context {
    pub(crate) fn new(inner: Arc<Inner>) -> Context {
        let p = &inner.program;
        let empty = Slot {
            mem: Mem { address: 64, bytes: 0 },
            room: 0,
            count: 0,
            dims: Vec::new(),
            block: BlockId::NONE,
            ready: false,
        };
        let mut slots = vec![empty; p.values.len()];
        for (i, v) in p.values.iter().enumerate() {
            if let (Kind::Constant(k), true) = (v.kind, v.root == i && v.used) {
                let tensor = &p.plan.constants[k];
                slots[i].mem = inner.constants.get(&(k, v.device)).copied().unwrap_or(slots[i].mem);
                slots[i].count = tensor.len() as u64;
                slots[i].ready = true;
            }
        }
        let state = State {
            syms: vec![None; p.plan.symbols.len()],
            host: vec![None; p.values.len()],
            slots,
            pool: Pool::new(&inner.devices),
            arenas: vec![None; inner.devices.len()],
            arena_epoch: 1,
            bindings: Vec::new(),
            by_key: HashMap::new(),
            key: Vec::new(),
            current: 0,
            slots_for: (usize::MAX, 0),
            last: vec![Event::DONE; inner.devices.len()],
            events: Vec::new(),
            state_copied: 0,
        };
        Context { inner, state }
    }

    /// Runs the model on inputs in its order. A state input given as [`Value::Device`] is updated in place and comes back as the
    /// output that it is tied to; all other outputs come back in host memory.
    pub fn run(&mut self, inputs: &[Value]) -> Result<Vec<Value>, RuntimeError> {
        self.run_mode(inputs, &mut Mode::Plain)
    }

    /// As [`Context::run`], writing results into the tensors of `outputs` that have the right type and dims already
    /// (others are replaced), so that a loop over equal sizes allocates nothing. Kernels may write there at once: after an error the
    /// contents are anything.
    pub fn run_into(&mut self, inputs: &[Value], outputs: &mut Vec<Value>) -> Result<(), RuntimeError> {
        self.execute(inputs, outputs, &mut Mode::Plain)
    }

    pub(crate) fn run_mode(
        &mut self,
        inputs: &[Value],
        mode: &mut Mode<'_>,
    ) -> Result<Vec<Value>, RuntimeError> {
        let mut outputs = Vec::new();
        self.execute(inputs, &mut outputs, mode)?;
        Ok(outputs)
    }

    fn execute(
        &mut self,
        inputs: &[Value],
        outputs: &mut Vec<Value>,
        mode: &mut Mode<'_>,
    ) -> Result<(), RuntimeError> {
        let inner = self.inner.clone();
        let mut run = Run { inner: &inner, s: &mut self.state };
        let held = run.acquire(inputs)?;
        let result = run.all(inputs, outputs, mode);
        run.clear();
        for (i, v) in inputs.iter().enumerate().take(held) {
            if let Value::Device(d) = v {
                d.release(inner.program.state[i].is_some());
            }
        }
        result
    }

    /// Memory held now.
    pub fn memory(&self) -> MemoryReport {
        let (pool_high_water, pool_held) = self.state.pool.usage();
        MemoryReport {
            arena: self.state.arenas.iter().flatten().map(|m| m.bytes).sum(),
            pool_high_water,
            pool_held,
            state_copied: self.state.state_copied,
            bindings: self.state.bindings.len(),
            ..self.inner.memory()
        }
    }
}

/// One run.
pub(crate) struct Run<'a> {
    pub(crate) inner: &'a Inner,
    pub(crate) s: &'a mut State,
}

pub(crate) type Result<T, E = RuntimeError> = std::result::Result<T, E>;

pub(crate) fn numel(dims: impl Iterator<Item = i64>) -> Option<u64> {
    let mut n = 1u64;
    let mut empty = false;
    for d in dims {
        let d = u64::try_from(d).ok()?;
        empty |= d == 0;
        n = n.checked_mul(d.max(1))?;
    }
    Some(if empty { 0 } else { n })
}

pub(crate) fn bytes_of(dtype: DType, count: u64) -> Option<u64> {
    usize::try_from(count).ok().and_then(|n| dtype.bytes_for(n)).map(|b| b as u64)
}

impl<'a> Run<'a> {
    pub(crate) fn device_error<'l>(&self, loc: &'l Loc) -> impl Fn(DeviceError) -> RuntimeError + use<'l> {
        move |error| RuntimeError::Device { loc: loc.clone(), error }
    }

    pub(crate) fn defect<T>(&self, loc: &Loc, detail: impl Into<String>) -> Result<T> {
        Err(RuntimeError::Defect { loc: loc.clone(), detail: detail.into() })
    }

    pub(crate) fn device(&self, d: usize) -> &'a dyn Device {
        &*self.inner.devices[d]
    }

    /// Takes part in the use of device tensors; gives how many inputs are held.
    fn acquire(&self, inputs: &[Value]) -> Result<usize> {
        let plan = &self.inner.program.plan;
        if inputs.len() != plan.inputs.len() {
            return Err(RuntimeError::InputCount {
                expected: plan.inputs.len(),
                names: plan.inputs.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join(", "),
                found: inputs.len(),
            });
        }
        for (i, v) in inputs.iter().enumerate() {
            let Value::Device(d) = v else { continue };
            if !d.acquire(self.inner.program.state[i].is_some()) {
                for (j, v) in inputs.iter().enumerate().take(i) {
                    if let Value::Device(d) = v {
                        d.release(self.inner.program.state[j].is_some());
                    }
                }
                return Err(RuntimeError::DeviceTensor {
                    input: plan.inputs[i].name.clone(),
                    detail: "another run, or another input, uses the device tensor".to_string(),
                });
            }
        }
        Ok(inputs.len())
    }

    fn all(&mut self, inputs: &[Value], outputs: &mut Vec<Value>, mode: &mut Mode<'_>) -> Result<()> {
        let p = &self.inner.program;
        self.bind_inputs(inputs)?;
        self.place_inputs(inputs)?;
        self.place_outputs(outputs)?;
        self.block(&p.body, mode)?;
        for d in 0..self.s.last.len() {
            self.sync(d).map_err(self.device_error(&Loc::default()))?;
        }
        self.write_back(inputs)?;
        self.outputs(inputs, outputs)
    }

    /// After a run, or a failed one: waits for the devices and lets go of everything that belongs to the run.
    fn clear(&mut self) {
        for d in 0..self.s.last.len() {
            let _ = self.device(d).wait(self.s.last[d]);
            self.s.last[d] = Event::DONE;
        }
        for (i, v) in self.inner.program.values.iter().enumerate() {
            if matches!(v.kind, Kind::Pool | Kind::Input | Kind::Output) {
                self.drop_value(i);
            }
            self.s.host[i] = None;
        }
        self.s.events.clear();
    }

    pub(crate) fn drop_value(&mut self, root: usize) {
        let slot = &mut self.s.slots[root];
        slot.ready = false;
        slot.room = 0;
        slot.dims.clear();
        let block = std::mem::replace(&mut slot.block, BlockId::NONE);
        self.s.pool.release(block);
        self.s.host[root] = None;
    }

    // ---- sizes ----

    /// Binds the symbols of the inputs' dims, checks all of them, and makes the binding current.
    fn bind_inputs(&mut self, inputs: &[Value]) -> Result<()> {
        let p = &self.inner.program;
        let plan = &p.plan;
        self.s.syms.fill(None);
        for (port, value) in plan.inputs.iter().zip(inputs) {
            let v = &plan.values[port.value.index()];
            let rank = match (&v.ty, value) {
                (Type::Tensor { dtype, .. }, Value::Tensor(t)) if t.dtype() == *dtype => Some(t.rank()),
                (Type::Tensor { dtype, .. }, Value::Device(t)) if t.dtype == *dtype => Some(t.rank()),
                (Type::Strings { .. }, Value::Host(HostValue::Strings { shape, .. })) => Some(shape.len()),
                (Type::Sequence(_), Value::Host(HostValue::Sequence { .. })) => None,
                (Type::Optional(_), Value::Host(_) | Value::Tensor(_)) => None,
                (Type::Any, _) => None,
                _ => {
                    return Err(RuntimeError::InputType {
                        input: port.name.clone(),
                        expected: type_words(&v.ty),
                        found: value.kind(),
                    });
                }
            };
            let dims = plan.dims(port.value);
            if let Some(rank) = rank
                && rank != dims.len()
            {
                let declared: Vec<String> =
                    dims.iter().map(|d| d.display(&plan.symbols).to_string()).collect();
                return Err(RuntimeError::InputRank {
                    input: port.name.clone(),
                    expected: dims.len(),
                    declared: format!("[{}]", declared.join(", ")),
                    found: rank,
                });
            }
        }
        let actual = |input: usize, axis: usize| -> i64 {
            let n = match &inputs[input] {
                Value::Tensor(t) => t.shape()[axis],
                Value::Device(t) => t.dim(axis),
                Value::Host(HostValue::Strings { shape, .. }) => shape[axis],
                Value::Host(_) => 0,
            };
            i64::try_from(n).unwrap_or(i64::MAX)
        };
        for u in &p.input_dims {
            match u {
                DimUse::Solve { input, axis, sym, dim } => {
                    let found = actual(*input, *axis);
                    let value = match dim.as_sym() {
                        Some(_) => Some(found),
                        None => dims::solve(dim, *sym, found, &self.s.syms),
                    };
                    let Some(value) = value else {
                        return Err(RuntimeError::InputDim {
                            input: plan.inputs[*input].name.clone(),
                            axis: *axis,
                            expected: "of the declared form".to_string(),
                            declared: dim.display(&plan.symbols).to_string(),
                            found,
                        });
                    };
                    let place = || format!("input '{}', dim {axis}", plan.inputs[*input].name);
                    self.bind_symbol(*sym, value, place)?;
                }
                DimUse::Check { .. } => {}
            }
        }
        self.s.key.clear();
        for s in &p.key {
            self.s.key.push(self.s.syms[s.0 as usize].unwrap_or(0));
        }
        match self.s.by_key.get(self.s.key.as_slice()) {
            Some(&b) => self.s.current = b,
            None => {
                if self.s.bindings.len() >= MAX_BINDINGS {
                    self.s.bindings.clear();
                    self.s.by_key.clear();
                    self.s.slots_for = (usize::MAX, 0);
                }
                let binding = self.new_binding()?;
                self.s.current = self.s.bindings.len();
                self.s.by_key.insert(self.s.key.as_slice().into(), self.s.current);
                self.s.bindings.push(binding);
            }
        }
        for u in &p.input_dims {
            let DimUse::Check { input, axis, dim } = u else { continue };
            let found = actual(*input, *axis);
            let loc = Loc::default();
            let want = self.dim(*dim, &loc)?;
            if want != found {
                return Err(RuntimeError::InputDim {
                    input: plan.inputs[*input].name.clone(),
                    axis: *axis,
                    expected: want.to_string(),
                    declared: self.explain(*dim),
                    found,
                });
            }
        }
        self.use_binding()
    }

    /// A dim with the values of its symbols, for people.
    fn explain(&self, id: DimId) -> String {
        let symbols = &self.inner.program.plan.symbols;
        let dim = self.inner.program.dims.expr(id);
        let mut text = format!("declared as {}", dim.display(symbols));
        for s in dim.symbols() {
            if let (Some(name), Some(v)) = (symbols.name(s), self.s.syms[s.0 as usize]) {
                text += &format!(", {name} is {v}");
            }
        }
        text
    }

    pub(crate) fn bind_symbol(&mut self, sym: Sym, value: i64, place: impl FnOnce() -> String) -> Result<()> {
        let symbols = &self.inner.program.plan.symbols;
        if let Some(info) = symbols.get(sym) {
            let ok = value >= info.lower
                && info.upper.is_none_or(|u| value <= u)
                && (info.multiple_of <= 1 || value % info.multiple_of == 0);
            if !ok {
                let mut expected = match info.upper {
                    Some(u) => format!("from {} to {u}", info.lower),
                    None => format!("at least {}", info.lower),
                };
                if info.multiple_of > 1 {
                    expected += &format!(" and a multiple of {}", info.multiple_of);
                }
                return Err(RuntimeError::SymbolRange {
                    place: place(),
                    symbol: info.name.clone(),
                    expected,
                    found: value,
                });
            }
        }
        self.s.syms[sym.0 as usize] = Some(value);
        Ok(())
    }

    fn new_binding(&mut self) -> Result<Binding> {
        let p = &self.inner.program;
        let dims = p.dims.fixed_values(&self.s.syms);
        let mut offsets = vec![0; p.arena.len()];
        let mut need = vec![0; self.inner.devices.len()];
        for (d, need) in need.iter_mut().enumerate() {
            let mine: Vec<usize> =
                (0..p.arena.len()).filter(|&i| p.values[p.arena[i].value].device == d).collect();
            let mut spans = Vec::with_capacity(mine.len());
            for &i in &mine {
                let a = &p.arena[i];
                let v = &p.values[a.value];
                let size = numel(v.dims.iter().map(|d| dims[d.index()].unwrap_or(-1)));
                let bytes = size.and_then(|n| bytes_of(v.dtype.unwrap_or(DType::U8), n));
                let Some(bytes) = bytes.filter(|&b| b <= isize::MAX as u64) else {
                    return Err(self.size_error(a.value, &Loc::default()));
                };
                spans.push(Span { bytes, first: a.first, last: a.last });
            }
            let (places, total) = arena::assign(&spans);
            for (&i, place) in mine.iter().zip(places) {
                offsets[i] = place;
            }
            *need = total;
        }
        let ready = p.launches.iter().map(|l| {
            // What has no value is asked for again, and the error reported, when the launch is due.
            let grid = l.grid.map(|d| dims[d.index()].unwrap_or(-1));
            Ready { grid, args: vec![LaunchArg::Scalar(0); l.args.len()] }
        });
        Ok(Binding { ready: ready.collect(), dims, offsets, need, arenas: 0 })
    }

    pub(crate) fn size_error(&self, value: usize, loc: &Loc) -> RuntimeError {
        let p = &self.inner.program;
        let mut dims = Vec::new();
        for &d in &p.values[value].dims {
            match p.dims.eval(d, &self.s.syms) {
                Ok(n) => dims.push(n),
                Err(error) => {
                    let dim = p.dims.expr(d).display(&p.plan.symbols).to_string();
                    return RuntimeError::Dim { loc: loc.clone(), dim, error };
                }
            }
        }
        RuntimeError::Size { loc: loc.clone(), value: self.name(value), dims }
    }

    pub(crate) fn name(&self, value: usize) -> String {
        self.inner.program.plan.values[value]
            .name
            .as_deref()
            .map_or_else(|| format!("value {value}"), str::to_string)
    }

    /// Makes arenas large enough for the current binding and fills in what it decides of slots and launches.
    fn use_binding(&mut self) -> Result<()> {
        let p = &self.inner.program;
        let loc = Loc::default();
        let current = self.s.current;
        for d in 0..self.inner.devices.len() {
            let need = self.s.bindings[current].need[d];
            if need <= self.s.arenas[d].map_or(0, |m| m.bytes) {
                continue;
            }
            self.s.arena_epoch += 1;
            if let Some(old) = self.s.arenas[d].take() {
                self.device(d).free(old);
            }
            let mem = self.device(d).alloc(need).or_else(|_| {
                self.s.pool.trim();
                self.device(d).alloc(need)
            });
            self.s.arenas[d] = Some(Mem { bytes: need, ..mem.map_err(self.device_error(&loc))? });
        }
        if self.s.slots_for != (current, self.s.arena_epoch) {
            for (i, a) in p.arena.iter().enumerate() {
                let v = &p.values[a.value];
                let b = &self.s.bindings[current];
                let count = numel(v.dims.iter().map(|d| b.dims[d.index()].unwrap_or(-1))).unwrap_or(0);
                let bytes = bytes_of(v.dtype.unwrap_or(DType::U8), count).unwrap_or(0);
                let base = self.s.arenas[v.device].map_or(64, |m| m.address);
                let slot = &mut self.s.slots[a.value];
                slot.mem = Mem { address: base + b.offsets[i], bytes };
                slot.count = count;
                slot.ready = true;
            }
            self.s.slots_for = (current, self.s.arena_epoch);
        }
        if self.s.bindings[current].arenas != self.s.arena_epoch {
            for (i, l) in p.launches.iter().enumerate() {
                for (k, arg) in l.args.iter().enumerate() {
                    let varies = match arg {
                        LArg::Buffer(v) => !p.values[*v].fixed,
                        LArg::Dim(d) => !p.dims.is_fixed(*d),
                    };
                    if !varies {
                        self.s.bindings[current].ready[i].args[k] = self.launch_arg(arg, &loc)?;
                    }
                }
            }
            self.s.bindings[current].arenas = self.s.arena_epoch;
        }
        Ok(())
    }
}

fn type_words(ty: &Type) -> String {
    match ty {
        Type::Tensor { dtype, .. } => format!("a {dtype} tensor"),
        Type::Strings { .. } => "a tensor of strings".to_string(),
        Type::Sequence(_) => "a sequence".to_string(),
        Type::Optional(_) => "an optional".to_string(),
        Type::Any => "any value".to_string(),
    }
}
