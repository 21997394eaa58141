//! A thread pool for launches.
//!
//! The calling thread works too. Workers spin for a moment after a launch, then sleep; a launch never
//! waits for a sleeping worker, only for those that joined in. Nothing is allocated per launch.
//!
//! Each worker has a part of the range of its own, the same in every launch of that size, so that what it wrote is still in its cache
//! when it reads it; when its part is done it takes pieces of the others'.

use crate::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a worker looks for more work before it sleeps.
const SPIN: Duration = Duration::from_micros(50);

/// The job's state: epoch in the upper half, then a closed bit, then the number of workers inside.
const CLOSED: u64 = 1 << 31;
const COUNT: u64 = CLOSED - 1;

/// The work of one launch. `call` is a borrow of the caller's closure whose lifetime was erased; it is read
/// only between a successful join and the matching leave, and the caller outlives all of these.
struct Job {
    call: AtomicUsize,
    data: AtomicUsize,
    chunk: AtomicI64,
    parts: Vec<Part>,
}

/// The part of the range that a worker begins with.
#[derive(Default)]
#[repr(align(128))]
struct Part {
    next: AtomicI64,
    end: AtomicI64,
}

type Call = unsafe fn(*const (), usize, i64, i64);

struct Shared {
    state: AtomicU64,
    job: Job,
    panicked: AtomicBool,
    sleepers: AtomicUsize,
    stop: AtomicBool,
    lock: Mutex<()>,
    wake: Condvar,
    done: Condvar,
}

/// A fixed number of worker threads and their scratch memory.
pub struct Pool {
    shared: Arc<Shared>,
    launch: Mutex<Scratch>,
    workers: Vec<JoinHandle<()>>,
}

/// Memory for one call at a time by each worker.
#[derive(Default)]
struct Scratch {
    blocks: Vec<Vec<Line>>,
}

/// 64 bytes on a 64-byte line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

fn hold<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// A pool in which `threads` threads work, the caller being one of them; 0 counts as 1.
    pub fn new(threads: usize) -> Result<Pool, Error> {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(CLOSED),
            job: Job {
                call: AtomicUsize::new(0),
                data: AtomicUsize::new(0),
                chunk: AtomicI64::new(1),
                parts: (0..threads.max(1)).map(|_| Part::default()).collect(),
            },
            panicked: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            lock: Mutex::new(()),
            wake: Condvar::new(),
            done: Condvar::new(),
        });
        let mut pool = Pool { shared, launch: Mutex::default(), workers: Vec::new() };
        for index in 1..threads.max(1) {
            let shared = pool.shared.clone();
            let made =
                std::thread::Builder::new().name(format!("tongtu-{index}")).spawn(move || shared.work(index));
            pool.workers.push(made.map_err(|error| Error::System { what: "starting a thread", error })?);
        }
        hold(&pool.launch).blocks.resize_with(pool.threads(), Vec::new);
        Ok(pool)
    }

    /// Threads that work, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Makes sure that each thread has at least `bytes` of scratch, so that launches need not allocate.
    pub fn reserve(&self, bytes: usize) {
        hold(&self.launch).reserve(bytes);
    }

    /// Calls `f(worker, first, last, scratch)` so that the ranges `first..last` cover `0..total` once each.
    ///
    /// `worker` is below [`Pool::threads`] and unique among the calls running at a time; `scratch` points to
    /// at least `scratch` bytes, 64-byte aligned, of that worker. `grain` is the smallest range worth a call:
    /// with `total <= grain` all runs in the calling thread. Launches from several threads take turns; a
    /// launch from inside `f` would wait for itself and must not be made.
    pub fn run(
        &self,
        total: i64,
        grain: i64,
        scratch: usize,
        f: &(impl Fn(usize, i64, i64, *mut u8) + Sync),
    ) -> Result<(), Error> {
        if total <= 0 {
            return Ok(());
        }
        let mut held = hold(&self.launch);
        held.reserve(scratch);
        let blocks = Blocks(held.blocks.as_mut_ptr());
        let call = |worker: usize, first: i64, last: i64| {
            // SAFETY: `blocks` has one element for each worker and is not resized while `held` is locked;
            // each worker touches its own element only.
            let at = unsafe { (*blocks.at(worker)).as_mut_ptr() };
            f(worker, first, last, at.cast());
        };
        let threads = self.threads() as i64;
        if threads == 1 || total <= grain.max(1) {
            return catch_unwind(AssertUnwindSafe(|| call(0, 0, total))).map_err(|_| Error::Panicked);
        }
        let chunk = (total / (threads * 8)).max(grain.max(1));
        self.shared.launch(total, chunk, &call);
        if self.shared.panicked.swap(false, Ordering::Relaxed) { Err(Error::Panicked) } else { Ok(()) }
    }
}

/// A pointer to the scratch blocks that may cross to the workers.
struct Blocks(*mut Vec<Line>);

impl Blocks {
    fn at(&self, worker: usize) -> *mut Vec<Line> {
        self.0.wrapping_add(worker)
    }
}

// SAFETY: workers use disjoint elements, see `Pool::run`.
unsafe impl Sync for Blocks {}

impl Scratch {
    fn reserve(&mut self, bytes: usize) {
        let lines = bytes.div_ceil(64);
        for block in &mut self.blocks {
            if block.len() < lines {
                *block = vec![Line([0; 64]); lines];
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        {
            let _held = hold(&self.shared.lock);
            self.shared.wake.notify_all();
        }
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// Runs one job to its end; the launch lock of the pool is held.
    fn launch<F: Fn(usize, i64, i64) + Sync>(&self, total: i64, chunk: i64, f: &F) {
        unsafe fn trampoline<F: Fn(usize, i64, i64)>(data: *const (), worker: usize, first: i64, last: i64) {
            // SAFETY: `data` is the address of the `F` that `launch` borrows until every worker has left.
            let f = unsafe { &*data.cast::<F>() };
            f(worker, first, last);
        }
        let job = &self.job;
        job.call.store(trampoline::<F> as Call as usize, Ordering::Relaxed);
        job.data.store(std::ptr::from_ref(f) as usize, Ordering::Relaxed);
        let workers = job.parts.len() as i128;
        let start = |worker: usize| (i128::from(total) * worker as i128 / workers) as i64;
        for (i, part) in job.parts.iter().enumerate() {
            part.next.store(start(i), Ordering::Relaxed);
            part.end.store(start(i + 1), Ordering::Relaxed);
        }
        job.chunk.store(chunk, Ordering::Relaxed);
        let epoch = (self.state.load(Ordering::Relaxed) >> 32).wrapping_add(1) << 32;
        self.state.store(epoch, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            let _held = hold(&self.lock);
            self.wake.notify_all();
        }
        self.drain(0);
        // From here on nobody joins; wait for those inside.
        let mut state = self.state.fetch_or(CLOSED, Ordering::AcqRel) | CLOSED;
        let start = Instant::now();
        while state & COUNT != 0 {
            if start.elapsed() < SPIN {
                std::hint::spin_loop();
            } else {
                let held = hold(&self.lock);
                if self.state.load(Ordering::Acquire) & COUNT != 0 {
                    drop(self.done.wait(held).unwrap_or_else(PoisonError::into_inner));
                }
            }
            state = self.state.load(Ordering::Acquire);
        }
    }

    /// Takes chunks until none is left.
    fn drain(&self, worker: usize) {
        let job = &self.job;
        let chunk = job.chunk.load(Ordering::Relaxed);
        let data = job.data.load(Ordering::Relaxed) as *const ();
        // SAFETY: the address was stored by `launch` from a `Call`, and this thread is the launching one or
        // joined the job, so the store is visible and the job is live.
        let call: Call = unsafe { std::mem::transmute::<usize, Call>(job.call.load(Ordering::Relaxed)) };
        for i in 0..job.parts.len() {
            let part = &job.parts[(worker + i) % job.parts.len()];
            let end = part.end.load(Ordering::Relaxed);
            loop {
                let first = part.next.fetch_add(chunk, Ordering::Relaxed);
                if first >= end {
                    break;
                }
                let last = end.min(first.saturating_add(chunk));
                // SAFETY: the job is live, see above.
                let run = || unsafe { call(data, worker, first, last) };
                if catch_unwind(AssertUnwindSafe(run)).is_err() {
                    self.panicked.store(true, Ordering::Relaxed);
                    for p in &job.parts {
                        p.next.store(p.end.load(Ordering::Relaxed), Ordering::Relaxed);
                    }
                }
            }
        }
    }

    /// The life of a worker.
    fn work(&self, worker: usize) {
        let mut seen = 0;
        loop {
            let Some(epoch) = self.await_job(seen) else { return };
            seen = epoch;
            let mut state = self.state.load(Ordering::Acquire);
            let joined = loop {
                if state >> 32 != epoch || state & CLOSED != 0 {
                    break false;
                }
                match self.state.compare_exchange_weak(state, state + 1, Ordering::AcqRel, Ordering::Acquire)
                {
                    Ok(_) => break true,
                    Err(now) => state = now,
                }
            };
            if joined {
                self.drain(worker);
                let before = self.state.fetch_sub(1, Ordering::AcqRel);
                if before & CLOSED != 0 && before & COUNT == 1 {
                    let _held = hold(&self.lock);
                    self.done.notify_all();
                }
            }
        }
    }

    /// Waits for a job of another epoch than `seen`; none when the pool ends.
    fn await_job(&self, seen: u64) -> Option<u64> {
        let fresh = |state: u64| state >> 32 != seen && state & CLOSED == 0;
        let start = Instant::now();
        loop {
            for _ in 0..64 {
                let state = self.state.load(Ordering::Acquire);
                if fresh(state) {
                    return Some(state >> 32);
                }
                std::hint::spin_loop();
            }
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            if start.elapsed() > SPIN {
                break;
            }
        }
        let mut held = hold(&self.lock);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let found = loop {
            let state = self.state.load(Ordering::SeqCst);
            if fresh(state) {
                break Some(state >> 32);
            }
            if self.stop.load(Ordering::SeqCst) {
                break None;
            }
            held = self.wake.wait(held).unwrap_or_else(PoisonError::into_inner);
        };
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_once() {
        for threads in [1, 2, 4] {
            let pool = Pool::new(threads).unwrap();
            for total in [1i64, 2, 7, 1000] {
                let hits: Vec<AtomicUsize> = (0..total).map(|_| AtomicUsize::new(0)).collect();
                for _ in 0..50 {
                    pool.run(total, 1, 256, &|worker, first, last, scratch: *mut u8| {
                        assert!(worker < threads && (scratch as usize).is_multiple_of(64));
                        for i in first..last {
                            hits[i as usize].fetch_add(1, Ordering::Relaxed);
                        }
                    })
                    .unwrap();
                }
                assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 50));
            }
        }
    }

    #[test]
    fn sleeping_workers_wake_and_callers_take_turns() {
        let pool = Pool::new(3).unwrap();
        let sum = AtomicI64::new(0);
        std::thread::scope(|s| {
            for _ in 0..3 {
                s.spawn(|| {
                    for round in 0..30 {
                        if round % 10 == 0 {
                            std::thread::sleep(Duration::from_millis(2));
                        }
                        let add = |_: usize, a: i64, b: i64, _: *mut u8| {
                            sum.fetch_add(b - a, Ordering::Relaxed);
                        };
                        pool.run(100, 1, 0, &add).unwrap();
                    }
                });
            }
        });
        assert_eq!(sum.load(Ordering::Relaxed), 3 * 30 * 100);
    }

    #[test]
    fn a_panic_is_an_error_and_the_pool_goes_on() {
        let pool = Pool::new(2).unwrap();
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let bad = pool.run(64, 1, 0, &|_, first, _, _| assert!(first != 8 && first != 9));
        std::panic::set_hook(hook);
        assert_eq!(bad.unwrap_err().code(), "E010");
        let n = AtomicI64::new(0);
        pool.run(64, 1, 0, &|_, a, b, _| {
            n.fetch_add(b - a, Ordering::Relaxed);
        })
        .unwrap();
        assert_eq!(n.into_inner(), 64);
    }
}
