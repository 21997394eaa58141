//! Sessions: a plan on its devices.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tongtu_graph::Loc;
use tongtu_plan::{Device, Mem, Plan};

use crate::context::{Context, MemoryReport, Mode};
use crate::error::RuntimeError;
use crate::profile::{Profile, Recorder};
use crate::program::{Kind, Program};
use crate::value::{Value, copy_in, host_mem};

/// What all contexts of a session share; nothing of it changes.
pub(crate) struct Inner {
    pub(crate) program: Program,
    pub(crate) devices: Vec<Arc<dyn Device>>,
    /// Handles of loaded artifacts, by device and artifact; 0 where an artifact is not used on a device.
    pub(crate) modules: Vec<Vec<u64>>,
    /// Where constants lie, by constant and device.
    pub(crate) constants: HashMap<(usize, usize), Mem>,
    /// The constants that were copied, to be given back.
    copied: Vec<(usize, Mem)>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        for (d, mem) in self.copied.drain(..) {
            self.devices[d].free(mem);
        }
    }
}

impl Inner {
    pub(crate) fn memory(&self) -> MemoryReport {
        MemoryReport {
            constants: self.constants.values().map(|m| m.bytes).sum(),
            constants_copied: self.copied.iter().map(|(_, m)| m.bytes).sum(),
            ..MemoryReport::default()
        }
    }
}

/// A plan, loaded on its devices, ready to run from any number of threads.
pub struct Session {
    inner: Arc<Inner>,
    /// Contexts that no run uses.
    idle: Mutex<Vec<Context>>,
}

impl Session {
    /// Loads a plan's kernels and constants on devices, which the plan names by position.
    pub fn new(plan: impl Into<Arc<Plan>>, devices: Vec<Arc<dyn Device>>) -> Result<Session, RuntimeError> {
        let program =
            Program::new(plan.into(), |d| devices.get(d).is_some_and(|device| device.host_memory()))?;
        if program.devices > devices.len() {
            return Err(RuntimeError::Devices { needed: program.devices, given: devices.len() });
        }
        let mut modules = vec![vec![0; program.plan.artifacts.len()]; devices.len()];
        let fail = |error| RuntimeError::Device { loc: Loc::default(), error };
        for &(artifact, device) in &program.loads {
            modules[device][artifact] =
                devices[device].load(&program.plan.artifacts[artifact]).map_err(fail)?;
        }
        let mut inner = Inner { program, devices, modules, constants: HashMap::new(), copied: Vec::new() };
        inner.place_constants()?;
        Ok(Session { inner: Arc::new(inner), idle: Mutex::new(Vec::new()) })
    }

    /// The plan.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.inner.program.plan
    }

    /// The devices, in the plan's order.
    pub fn devices(&self) -> &[Arc<dyn Device>] {
        &self.inner.devices
    }

    /// A context of its own for one thread.
    pub fn context(&self) -> Context {
        Context::new(self.inner.clone())
    }

    fn with<T>(&self, f: impl FnOnce(&mut Context) -> T) -> T {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let context = idle().pop();
        let mut context = context.unwrap_or_else(|| self.context());
        let result = f(&mut context);
        idle().push(context);
        result
    }

    /// Runs the model on inputs in its order, in a context that the session keeps for the next run. May be called from several
    /// threads at a time. See [`Context::run`].
    pub fn run(&self, inputs: &[Value]) -> Result<Vec<Value>, RuntimeError> {
        self.with(|c| c.run(inputs))
    }

    /// Runs the model and measures every step. Steps are waited for one by one, so the whole takes longer than a plain run
    /// where devices are asynchronous.
    pub fn profile(&self, inputs: &[Value]) -> Result<(Vec<Value>, Profile), RuntimeError> {
        self.with(|c| {
            let mut recorder = Recorder::new();
            let outputs = c.run_mode(inputs, &mut Mode::Profile(&mut recorder))?;
            let profile = recorder.finish(&self.inner);
            Ok((outputs, profile))
        })
    }

    pub(crate) fn run_mode(&self, inputs: &[Value], mode: &mut Mode<'_>) -> Result<Vec<Value>, RuntimeError> {
        self.with(|c| c.run_mode(inputs, mode))
    }

    /// Memory that the session and its idle contexts hold.
    pub fn memory(&self) -> MemoryReport {
        let mut sum = self.inner.memory();
        for c in self.idle.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let m = c.memory();
            sum.arena += m.arena;
            sum.pool_high_water += m.pool_high_water;
            sum.pool_held += m.pool_held;
            sum.state_copied += m.state_copied;
            sum.bindings += m.bindings;
        }
        sum
    }
}

impl Inner {
    /// Host memory is used as it is where a device can; other constants are copied. Those that no step uses stay where they are.
    fn place_constants(&mut self) -> Result<(), RuntimeError> {
        let fail = |error| RuntimeError::Device { loc: Loc::default(), error };
        for v in &self.program.values {
            let Kind::Constant(k) = v.kind else { continue };
            if !self.program.values[v.root].used || self.constants.contains_key(&(k, v.device)) {
                continue;
            }
            let tensor = &self.program.plan.constants[k];
            let bytes = tensor.bytes();
            let device = &self.devices[v.device];
            let here =
                matches!(bytes, std::borrow::Cow::Borrowed(_)) && bytes.as_ptr().addr().is_multiple_of(64);
            let mem = if bytes.is_empty() {
                Mem { address: 64, bytes: 0 }
            } else if here && device.host_memory() {
                host_mem(&bytes)
            } else {
                let mem =
                    Mem { bytes: bytes.len() as u64, ..device.alloc(bytes.len() as u64).map_err(fail)? };
                self.copied.push((v.device, mem));
                copy_in(&**device, mem, &bytes).map_err(fail)?;
                tensor.release();
                mem
            };
            self.constants.insert((k, v.device), mem);
        }
        Ok(())
    }
}
