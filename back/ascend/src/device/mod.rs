//! A machine on the host that runs planned device programs: what the vendor's compiler made of a kernel after it planned
//! memory, inserted synchronisation and split it into matrix and vector cores.
//!
//! Every instance of the grid runs on one matrix core and its two vector cores, or on one core alone, with
//! scratchpads of the chip's sizes that hold NaN at first. Cores wait for one another by their flags; a wait that nothing ends, an
//! access outside of a scratchpad or of device memory, and a wait for an event that was not set are errors. The meaning of each vector
//! operation is that of its name: what the chip's own device library computes is assumed, not proven, and time is not modelled.

#[allow(missing_docs)]
mod exec;
mod hivm;
mod ir;
mod mem;
mod race;
mod scalar;
mod vector;

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex};

use tongtu_chip::Chip;
use tongtu_plan::backend::{Artifact, Device, DeviceError, Event, LaunchArg, Mem};

use exec::{Core, Shared, V};
use ir::{Func, Program, Space, Ty};
use race::Pipes;

/// Device addresses begin here: far from any host pointer.
const BASE: u64 = 1 << 56;

/// A kernel that was loaded.
struct Kernel {
    program: Program,
    /// Names of the functions that run on vector cores and on the matrix core.
    vector: Option<usize>,
    matrix: Option<usize>,
    /// Vector cores of an instance.
    vectors: usize,
    /// Bytes of workspace of an instance.
    workspace: u64,
    name: String,
}

#[derive(Default)]
struct State {
    memory: BTreeMap<u64, Vec<u8>>,
    next: u64,
}

/// The machine, as a device.
pub struct Simulator {
    name: String,
    chip: Chip,
    check: bool,
    state: Mutex<State>,
    kernels: Mutex<Vec<Arc<Vec<Kernel>>>>,
}

impl Simulator {
    /// A machine with a chip's storage. With `check`, accesses of a vector core's pipes to its scratchpad that no flag or barrier
    /// orders are errors too.
    pub fn new(chip: &Chip, check: bool) -> Simulator {
        Simulator {
            name: format!("{} (simulated)", chip.title),
            chip: chip.clone(),
            check,
            state: Mutex::new(State { memory: BTreeMap::new(), next: BASE }),
            kernels: Mutex::new(Vec::new()),
        }
    }

    fn size(&self, level: &str) -> usize {
        self.chip.capacity(level).unwrap_or(0) as usize
    }

    fn run(&self, k: &Kernel, state: &mut State, grid: [i64; 3], args: &[LaunchArg]) -> Result<(), String> {
        let count =
            grid.iter().try_fold(1i64, |a, &n| a.checked_mul(n.max(0))).ok_or("the grid is too large")?;
        let workspace = state.next;
        let bytes = (k.workspace as usize).saturating_mul(count as usize).max(64);
        if bytes > 1 << 32 {
            return Err(format!("a workspace of {bytes} bytes"));
        }
        state.memory.insert(workspace, vec![0xff; bytes]);
        let result = (0..count).try_for_each(|block| {
            self.instance(k, state, block, grid, workspace, args)
                .map_err(|e| format!("instance {block} of {count}: {e}"))
        });
        state.memory.remove(&workspace);
        result
    }

    /// One instance of the grid.
    fn instance(
        &self,
        k: &Kernel,
        state: &mut State,
        block: i64,
        grid: [i64; 3],
        workspace: u64,
        args: &[LaunchArg],
    ) -> Result<(), String> {
        let vectors = if k.vector.is_some() { k.vectors } else { 0 };
        let cores: Vec<(usize, usize)> =
            (0..vectors).filter_map(|c| Some((c, k.vector?))).chain(k.matrix.map(|f| (vectors, f))).collect();
        let nan = |n: usize| vec![0xffu8; n];
        let storage = mem::Storage {
            gm: &mut state.memory,
            ub: (0..vectors.max(1)).map(|_| nan(self.size("ub"))).collect(),
            l1: nan(self.size("l1")),
            l0c: nan(self.size("l0c")),
            stack: vec![Vec::new(); vectors + 1],
        };
        let mut live = vec![false; vectors + 1];
        cores.iter().for_each(|c| live[c.0] = true);
        let shared = Mutex::new(Shared {
            storage,
            flags: [vec![[0; 16]; vectors], vec![[0; 16]; vectors]],
            waiting: vec![None; vectors + 1],
            live,
            failed: false,
        });
        let turn = Condvar::new();
        let one = |me: usize, f: usize| -> Result<(), String> {
            let func = &k.program.funcs[f];
            let values = arguments(func, workspace, grid, args)?;
            let guard = shared.lock().map_err(|_| "a core panicked".to_string())?;
            let mut core = Core {
                program: &k.program,
                turn: &turn,
                guard: Some(guard),
                me,
                vectors,
                block,
                pipes: Pipes::new(self.check, crate::legal::is_950(&self.chip)),
                stack: 0,
                mask: None,
                steps: 0,
            };
            let result = core.call(func, values);
            let races = std::mem::take(&mut core.pipes.races);
            if let Some(mut g) = core.guard.take() {
                g.live[me] = false;
                g.failed |= result.is_err();
                turn.notify_all();
            }
            result?;
            match races.first() {
                Some(r) => Err(format!("{} races, the first: {r}", races.len())),
                None => Ok(()),
            }
        };
        if let [(me, f)] = cores[..] {
            return one(me, f);
        }
        let results: Vec<Result<(), String>> = std::thread::scope(|s| {
            let all: Vec<_> = cores.iter().map(|&(me, f)| s.spawn(move || one(me, f))).collect();
            let join = |h: std::thread::ScopedJoinHandle<'_, Result<(), String>>| {
                h.join().unwrap_or_else(|_| Err("a core panicked".to_string()))
            };
            all.into_iter().map(join).collect()
        });
        let first = |e: &&Result<(), String>| e.as_ref().is_err_and(|e| !e.contains("another core failed"));
        match results.iter().find(first).or(results.iter().find(|r| r.is_err())) {
            Some(Err(e)) => Err(e.clone()),
            _ => Ok(()),
        }
    }
}

/// The values of a function's parameters: addresses of synchronisation, lock, workspace, then the kernel's own, the lengths
/// of its buffers, the grid.
fn arguments(f: &Func, workspace: u64, grid: [i64; 3], args: &[LaunchArg]) -> Result<Vec<V>, String> {
    let memory = |ty: &Ty, address: u64, len: i64| -> Result<V, String> {
        let Ty::MemRef { elem, .. } = ty else { return Err("a buffer where a scalar is wanted".to_string()) };
        let m = mem::Mem {
            space: Space::Gm,
            bits: address as i64 * 8,
            base: address as i64 * 8,
            elem: *elem,
            dims: vec![len],
            strides: vec![1],
        };
        Ok(V::M(Arc::new(m)))
    };
    let roles = f.attrs.get("arg_attrs").map(String::as_str).unwrap_or("");
    let roles = ir::split(roles.trim_start_matches('[').trim_end_matches(']'), ',');
    let mut own = args.iter();
    let mut lens =
        args.iter().filter_map(|a| if let LaunchArg::Buffer(_, n) = a { Some(*n as i64) } else { None });
    let mut grid = grid.into_iter();
    let mut out = Vec::new();
    for (i, ty) in f.body.types.iter().enumerate() {
        let role = roles.get(i).copied().unwrap_or("");
        out.push(if role.contains("ffts") {
            V::I(0)
        } else if role.contains("sync_block_lock") || role.contains("workspace") {
            memory(ty, workspace, i64::MAX / 64)?
        } else if let Some(a) = own.next() {
            match (a, ty) {
                (LaunchArg::Buffer(m, len), ty) => memory(ty, m.address, *len as i64)?,
                (LaunchArg::Scalar(bits), Ty::Scalar(e)) if e.is_float() => V::F(mem::decode(*e, *bits)),
                (LaunchArg::Scalar(bits), Ty::Scalar(e)) => V::I(mem::wrap(*e, *bits as i64)),
                _ => return Err("a scalar where a buffer is wanted".to_string()),
            }
        } else if let Some(n) = lens.next() {
            V::I(n)
        } else {
            V::I(grid.next().ok_or("too many parameters")?)
        });
    }
    Ok(out)
}

/// The constant that a function of the host gives.
fn number(f: &Func) -> Option<i64> {
    f.body.ops.iter().find(|o| o.name == "arith.constant").and_then(|o| o.int("value"))
}

/// Bytes of workspace that an instance of a planned program needs.
///
/// # Errors
/// The program is not understood.
pub(crate) fn workspace(planned: &str) -> Result<u64, String> {
    kernel(planned).map(|k| k.workspace)
}

fn kernel(planned: &str) -> Result<Kernel, String> {
    let program = ir::parse(planned)?;
    let find = |end: &str| program.funcs.iter().find(|f| f.name.ends_with(end)).and_then(number);
    let task = find("_infer_task_type_function").unwrap_or(0);
    let workspace = find("_infer_workspace_shape_function").unwrap_or(0).max(0) as u64;
    let entry = |core: &str| {
        program.funcs.iter().position(|f| {
            f.attrs.contains_key("hacc.entry")
                && f.attrs.get("hivm.func_core_type").is_some_and(|t| t.contains(core))
        })
    };
    let (vector, matrix) = (entry("AIV"), entry("AIC"));
    let first = vector.or(matrix).ok_or("no function of the device")?;
    let name = program.funcs[first].name.clone();
    // Mixed kernels have two vector cores to a matrix core unless they say otherwise.
    let vectors = if matrix.is_some() && task != 31 { 2 } else { 1 };
    Ok(Kernel { vector, matrix, vectors, workspace, name, program })
}

impl Device for Simulator {
    fn name(&self) -> &str {
        &self.name
    }

    fn alloc(&self, bytes: u64) -> Result<Mem, DeviceError> {
        let mut s = self.state.lock().map_err(|_| lost(&self.name))?;
        let address = s.next;
        // Memory is apart, so that what is written past its end is found.
        s.next += bytes.next_multiple_of(64) + 4096;
        s.memory.insert(address, vec![0xff; bytes as usize]);
        Ok(Mem { address, bytes })
    }

    fn free(&self, mem: Mem) {
        if let Ok(mut s) = self.state.lock() {
            s.memory.remove(&mem.address);
        }
    }

    fn load(&self, artifact: &Artifact) -> Result<u64, DeviceError> {
        let bad = |detail: String| DeviceError::Artifact { device: self.name.clone(), detail };
        if artifact.backend != crate::NAME {
            return Err(bad(format!("it was made by the back end '{}'", artifact.backend)));
        }
        let (chip, parts) =
            crate::artifact::read(&artifact.bytes).ok_or_else(|| bad("it is damaged".to_string()))?;
        if chip != self.chip.name {
            return Err(bad(format!("it was made for {chip}")));
        }
        let kernels = parts.iter().map(|p| kernel(&p.planned)).collect::<Result<Vec<_>, _>>().map_err(bad)?;
        let mut all = self.kernels.lock().map_err(|_| lost(&self.name))?;
        all.push(Arc::new(kernels));
        Ok(all.len() as u64 - 1)
    }

    fn launch(
        &self,
        module: u64,
        entry: usize,
        grid: [i64; 3],
        args: &[LaunchArg],
        _: Event,
    ) -> Result<Event, DeviceError> {
        let found = self.kernels.lock().map_err(|_| lost(&self.name))?.get(module as usize).cloned();
        let fail = |kernel: &str, detail: String| DeviceError::Launch {
            device: self.name.clone(),
            kernel: kernel.to_string(),
            detail,
        };
        let found = found.ok_or_else(|| fail("", "there is no such module".to_string()))?;
        let k = found.get(entry).ok_or_else(|| fail("", "there is no such entry".to_string()))?;
        let mut state = self.state.lock().map_err(|_| lost(&self.name))?;
        self.run(k, &mut state, grid, args).map_err(|e| fail(&k.name, e))?;
        Ok(Event::DONE)
    }

    fn copy(&self, dst: Mem, src: Mem, _: Event) -> Result<Event, DeviceError> {
        let mut s = self.state.lock().map_err(|_| lost(&self.name))?;
        let n = src.bytes.min(dst.bytes) as usize;
        let data = if src.address >= BASE {
            slice(&mut s.memory, src.address, n).map(|b| b.to_vec())
        } else {
            Some(host::read(src.address, n))
        };
        let data = data.ok_or_else(|| lost(&self.name))?;
        if dst.address >= BASE {
            slice(&mut s.memory, dst.address, n).ok_or_else(|| lost(&self.name))?.copy_from_slice(&data);
        } else {
            host::write(dst.address, &data);
        }
        Ok(Event::DONE)
    }

    fn wait(&self, _: Event) -> Result<(), DeviceError> {
        Ok(())
    }
}

fn lost(device: &str) -> DeviceError {
    DeviceError::Lost { device: device.to_string(), detail: "memory that is not there".to_string() }
}

fn slice(memory: &mut BTreeMap<u64, Vec<u8>>, address: u64, n: usize) -> Option<&mut [u8]> {
    if n == 0 {
        return Some(&mut []);
    }
    let (at, v) = memory.range_mut(..=address).next_back()?;
    let from = (address - at) as usize;
    v.get_mut(from..from.checked_add(n)?)
}

/// Host memory that callers of the device give by its address.
#[allow(unsafe_code)]
mod host {
    /// Bytes at a host address.
    pub fn read(address: u64, n: usize) -> Vec<u8> {
        if n == 0 {
            return Vec::new();
        }
        let p: *const u8 = std::ptr::with_exposed_provenance(address as usize);
        // SAFETY: by the device's contract the address is that of live host memory of at least `n` bytes.
        unsafe { std::slice::from_raw_parts(p, n).to_vec() }
    }

    /// Writes bytes to a host address.
    pub fn write(address: u64, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let p: *mut u8 = std::ptr::with_exposed_provenance_mut(address as usize);
        // SAFETY: by the device's contract the address is that of live host memory of that size which nothing else uses.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), p, data.len()) }
    }
}
