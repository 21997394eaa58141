//! The run half: this machine's processors as a device.

use crate::{Artifact, Buf, Error, Loaded, Pool};
use std::alloc::Layout;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tongtu_plan::backend::{self, Device, DeviceError, Event, LaunchArg, Mem};

/// Launches expected to take less than this run in the calling thread alone: waking others costs as much.
const SHORT: Duration = Duration::from_micros(15);

/// Blocks of at least this size are placed for huge pages.
const HUGE: u64 = 8 << 20;

/// What is asked of the device's queue.
struct Task {
    module: Arc<Module>,
    entry: usize,
    grid: [i64; 3],
    bufs: Vec<Buf>,
    scalars: Vec<i64>,
}

enum Work {
    Launch(Task),
    Copy(Mem, Mem),
}

/// A loaded artifact and how long an instance of each kernel took last, in picoseconds; 0 if unknown.
struct Module {
    loaded: Loaded,
    cost: Vec<AtomicU64>,
}

/// The machine's processors, or some of them. Work runs in the calling thread and its pool before `launch`
/// returns, or, for a device made by [`CpuDevice::queued`], in a thread of the device's own.
pub struct CpuDevice {
    name: String,
    shared: Arc<Shared>,
    queue: Option<Queue>,
}

struct Shared {
    name: String,
    pool: Pool,
    modules: Table<Arc<Module>>,
}

/// A list that grows at its end and is read without a lock.
struct Table<T> {
    /// Part `k` holds 2^k elements.
    parts: [OnceLock<Box<[OnceLock<T>]>>; 32],
    len: Mutex<usize>,
}

impl<T> Default for Table<T> {
    fn default() -> Table<T> {
        Table { parts: std::array::from_fn(|_| OnceLock::new()), len: Mutex::new(0) }
    }
}

impl<T> Table<T> {
    fn get(&self, index: u64) -> Option<&T> {
        let n = index.checked_add(1)?;
        let part = n.ilog2();
        self.parts.get(part as usize)?.get()?.get((n - (1 << part)) as usize)?.get()
    }

    /// The position of a new element; `None` if there is no place left.
    fn push(&self, value: T) -> Option<u64> {
        let mut len = hold(&self.len);
        let n = *len as u64 + 1;
        let part = n.ilog2();
        let slots = self.parts.get(part as usize)?;
        let slots = slots.get_or_init(|| (0..1u64 << part).map(|_| OnceLock::new()).collect());
        slots.get((n - (1 << part)) as usize)?.set(value).ok()?;
        *len += 1;
        Some(n - 1)
    }
}

struct Queue {
    state: Arc<QueueState>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Default)]
struct QueueState {
    inner: Mutex<QueueInner>,
    changed: Condvar,
}

#[derive(Default)]
struct QueueInner {
    waiting: std::collections::VecDeque<Work>,
    given: u64,
    finished: u64,
    error: Option<DeviceError>,
    stop: bool,
}

fn hold<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl CpuDevice {
    /// A device of `threads` threads (0: as many as the machine has), the calling one among them.
    pub fn new(threads: usize) -> Result<CpuDevice, Error> {
        let threads = match threads {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
            n => n,
        };
        let name = format!("cpu ({threads} thread{})", if threads == 1 { "" } else { "s" });
        let shared = Shared { name: name.clone(), pool: Pool::new(threads)?, modules: Table::default() };
        Ok(CpuDevice { name, shared: Arc::new(shared), queue: None })
    }

    /// A device whose launches and copies return at once and run one after another in a thread of its own.
    pub fn queued(threads: usize) -> Result<CpuDevice, Error> {
        let mut device = CpuDevice::new(threads)?;
        let state = Arc::new(QueueState::default());
        let (shared, inner) = (device.shared.clone(), state.clone());
        let thread = std::thread::Builder::new()
            .name("tongtu-queue".to_string())
            .spawn(move || inner.serve(&shared))
            .map_err(|error| Error::System { what: "starting a thread", error })?;
        device.queue = Some(Queue { state, thread: Some(thread) });
        Ok(device)
    }

    /// Threads that work on a launch.
    pub fn threads(&self) -> usize {
        self.shared.pool.threads()
    }

    fn submit(&self, work: Work) -> Result<Event, DeviceError> {
        match &self.queue {
            None => self.shared.perform(work).map(|()| Event::DONE),
            Some(queue) => {
                let mut inner = hold(&queue.state.inner);
                inner.waiting.push_back(work);
                inner.given += 1;
                let event = Event(inner.given);
                queue.state.changed.notify_all();
                Ok(event)
            }
        }
    }
}

impl QueueState {
    /// Does what is asked, until told to stop.
    fn serve(&self, shared: &Shared) {
        let mut inner = hold(&self.inner);
        loop {
            if let Some(work) = inner.waiting.pop_front() {
                let failed = inner.error.is_some();
                drop(inner);
                // After a failure the rest would work on wrong data.
                let outcome = if failed { Ok(()) } else { shared.perform(work) };
                inner = hold(&self.inner);
                inner.finished += 1;
                if let Err(e) = outcome {
                    inner.error = Some(e);
                }
                self.changed.notify_all();
            } else if inner.stop {
                return;
            } else {
                inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        hold(&self.state.inner).stop = true;
        self.state.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn perform(&self, work: Work) -> Result<(), DeviceError> {
        match work {
            Work::Launch(t) => self.launch(&t.module, t.entry, t.grid, &t.bufs, &t.scalars),
            Work::Copy(dst, src) => {
                // SAFETY: by the device's contract both are live memory of these sizes; `copy` allows overlap.
                unsafe {
                    std::ptr::copy(src.address as *const u8, dst.address as *mut u8, src.bytes as usize);
                }
                Ok(())
            }
        }
    }

    fn launch(
        &self,
        module: &Module,
        entry: usize,
        grid: [i64; 3],
        bufs: &[Buf],
        scalars: &[i64],
    ) -> Result<(), DeviceError> {
        let bad = |kernel: &str, detail: String| DeviceError::Launch {
            device: self.name.clone(),
            kernel: kernel.to_string(),
            detail,
        };
        let Some(kernel) = module.loaded.kernel_at(entry) else {
            return Err(bad("?", format!("there is no entry {entry}")));
        };
        let failed = |e: Error| bad(&kernel.entry().name, e.to_string());
        if self.pool.threads() == 1 {
            // SAFETY: as below.
            return unsafe { kernel.launch(&self.pool, bufs, scalars, grid, 1) }.map_err(failed);
        }
        let total = grid.iter().fold(1i64, |n, g| n.saturating_mul((*g).max(0)));
        let cost = &module.cost[entry];
        let known = cost.load(Ordering::Relaxed);
        let short = SHORT.as_nanos() as u64 * 1000;
        let grain = match known {
            0 => 1,
            c => (short / c).min(i64::MAX as u64).max(1) as i64,
        };
        // Below this size it is not worth timing precisely, and the clock is cheap.
        let start = Instant::now();
        // SAFETY: by the device's contract the arguments are live memory of this device as large as stated, and
        // the plan orders launches so that no two touch the same memory unless both read.
        let outcome = unsafe { kernel.launch(&self.pool, bufs, scalars, grid, grain) };
        let alone = self.pool.threads() == 1 || total <= grain;
        let workers = if alone { 1 } else { self.pool.threads() as u64 };
        let spent = (start.elapsed().as_nanos() as u64).saturating_mul(1000).saturating_mul(workers);
        cost.store((spent / total.max(1) as u64).max(1), Ordering::Relaxed);
        outcome.map_err(failed)
    }
}

/// Size and alignment that memory of so many bytes is taken with.
fn layout(bytes: u64) -> Option<Layout> {
    let align = if bytes >= HUGE { 2 << 20 } else { 64 };
    Layout::from_size_align(usize::try_from(bytes.max(1)).ok()?.checked_next_multiple_of(64)?, align).ok()
}

impl Device for CpuDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn alloc(&self, bytes: u64) -> Result<Mem, DeviceError> {
        let none = || DeviceError::Memory { device: self.name.clone(), bytes };
        let layout = layout(bytes).ok_or_else(none)?;
        // SAFETY: the layout's size is not zero.
        let ptr = unsafe { std::alloc::alloc(layout) };
        if ptr.is_null() {
            return Err(none());
        }
        #[cfg(target_os = "linux")]
        if bytes >= HUGE {
            // SAFETY: the range was just allocated and is ours; this is advice and changes no contents.
            unsafe { libc::madvise(ptr.cast(), layout.size(), libc::MADV_HUGEPAGE) };
        }
        Ok(Mem { address: ptr as u64, bytes })
    }

    fn free(&self, mem: Mem) {
        if let Some(layout) = layout(mem.bytes) {
            // SAFETY: by the device's contract `mem` came from `alloc`, whose layout depends on the size alone,
            // and is not used any more.
            unsafe { std::alloc::dealloc(mem.address as *mut u8, layout) }
        }
    }

    fn load(&self, artifact: &backend::Artifact) -> Result<u64, DeviceError> {
        let bad = |detail: String| DeviceError::Artifact { device: self.name.clone(), detail };
        if artifact.backend != "cpu" {
            return Err(bad(format!("it was made by the back end '{}'", artifact.backend)));
        }
        let parsed = Artifact::from_bytes(&artifact.bytes).map_err(|e| bad(e.to_string()))?;
        let loaded = Loaded::new(&parsed).map_err(|e| bad(e.to_string()))?;
        let scratch = parsed.entries.iter().map(|e| e.scratch).max().unwrap_or(0);
        self.shared.pool.reserve(usize::try_from(scratch).map_err(|e| bad(e.to_string()))?);
        let cost = parsed.entries.iter().map(|_| AtomicU64::new(0)).collect();
        let place = self.shared.modules.push(Arc::new(Module { loaded, cost }));
        place.ok_or_else(|| bad("there are too many".to_string()))
    }

    fn launch(
        &self,
        module: u64,
        entry: usize,
        grid: [i64; 3],
        args: &[LaunchArg],
        wait: Event,
    ) -> Result<Event, DeviceError> {
        let bad = |detail: String| DeviceError::Launch {
            device: self.name.clone(),
            kernel: format!("entry {entry} of module {module}"),
            detail,
        };
        let module =
            self.shared.modules.get(module).ok_or_else(|| bad("there is no such module".to_string()))?;
        // Work of one device takes effect in order, so what `wait` names has passed before this starts.
        let _ = wait;
        let (mut bufs, mut scalars) = ([Buf { ptr: std::ptr::null_mut(), len: 0 }; 32], [0i64; 32]);
        let (mut nb, mut ns) = (0, 0);
        let (mut many_bufs, mut many_scalars) = (Vec::new(), Vec::new());
        let large = args.len() > 32;
        for arg in args {
            match *arg {
                LaunchArg::Buffer(mem, len) => {
                    let len = i64::try_from(len).map_err(|e| bad(e.to_string()))?;
                    let buf = Buf { ptr: mem.address as *mut u8, len };
                    if large {
                        many_bufs.push(buf)
                    } else {
                        bufs[nb] = buf
                    }
                    nb += 1;
                }
                LaunchArg::Scalar(bits) => {
                    if large {
                        many_scalars.push(bits as i64)
                    } else {
                        scalars[ns] = bits as i64
                    }
                    ns += 1;
                }
            }
        }
        let (bufs, scalars) =
            if large { (&many_bufs[..], &many_scalars[..]) } else { (&bufs[..nb], &scalars[..ns]) };
        if self.queue.is_none() {
            return self.shared.launch(module, entry, grid, bufs, scalars).map(|()| Event::DONE);
        }
        self.submit(Work::Launch(Task {
            module: module.clone(),
            entry,
            grid,
            bufs: bufs.to_vec(),
            scalars: scalars.to_vec(),
        }))
    }

    fn copy(&self, dst: Mem, src: Mem, _wait: Event) -> Result<Event, DeviceError> {
        if dst.bytes < src.bytes {
            return Err(DeviceError::Launch {
                device: self.name.clone(),
                kernel: "copy".to_string(),
                detail: format!("{} bytes into {}", src.bytes, dst.bytes),
            });
        }
        self.submit(Work::Copy(dst, src))
    }

    fn wait(&self, event: Event) -> Result<(), DeviceError> {
        let Some(queue) = &self.queue else { return Ok(()) };
        let mut inner = hold(&queue.state.inner);
        while inner.finished < event.0 {
            inner = queue.state.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        inner.error.clone().map_or(Ok(()), Err)
    }

    fn host_memory(&self) -> bool {
        true
    }
}
