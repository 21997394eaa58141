//! Running programs in processes of their own, so that one that hangs or crashes is a failure of its own and of nothing else.
//!
//! A *worker* says `ready`, then answers lines. Here it is sent programs (kernels as text, buffers as codes) and answers
//! with what became of them; the parent compares.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tongtu_tensor::{DType, Overflow};
use tongtu_tile::interp::BufferData;
use tongtu_tile::{parse_kernel, verify};

use crate::run::{Ran, Target, outcomes, run_batch};
use crate::{Outcome, Program};

/// Ends this process, a worker, when the one that started it ends: it is not reached by what a terminal sends to that one.
pub fn end_with_parent() {
    #[cfg(target_os = "linux")]
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
}

/// Programs given to a worker at a time.
const BATCH: usize = 8;

/// What a worker says first.
pub const READY: &str = "ready";

/// Why a worker is of no use any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// It did not answer in time.
    Late,
    /// It ended.
    Died,
}

/// A process that answers each line with a line. It ends with this value, and what it started with it.
pub struct Worker {
    child: Child,
    answers: Receiver<String>,
}

impl Worker {
    /// Starts one and waits until it is ready.
    ///
    /// # Errors
    /// The program cannot be started, or ends, or is not ready in time.
    pub fn start(mut command: Command, limit: Duration) -> std::io::Result<Worker> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn()?;
        let (send, answers) = channel();
        if let Some(out) = child.stdout.take() {
            std::thread::spawn(move || {
                for line in BufReader::new(out).lines().map_while(Result::ok) {
                    if send.send(line).is_err() {
                        return;
                    }
                }
            });
        }
        let worker = Worker { child, answers };
        let until = Instant::now() + limit;
        loop {
            match worker.answer(until.saturating_duration_since(Instant::now())) {
                // Something else may stand before it on the line.
                Ok(line) if line.ends_with(READY) => return Ok(worker),
                Ok(_) => {}
                Err(why) => return Err(std::io::Error::other(format!("a worker is not ready: {why:?}"))),
            }
        }
    }

    fn answer(&self, limit: Duration) -> Result<String, Stopped> {
        self.answers.recv_timeout(limit).map_err(|e| match e {
            RecvTimeoutError::Timeout => Stopped::Late,
            RecvTimeoutError::Disconnected => Stopped::Died,
        })
    }

    /// The answer to a line.
    ///
    /// # Errors
    /// There is none; the worker is then of no use any more.
    pub fn ask(&mut self, line: &str, limit: Duration) -> Result<String, Stopped> {
        let given = self.child.stdin.as_mut().map(|i| i.write_all(line.as_bytes()).and_then(|()| i.flush()));
        if !matches!(given, Some(Ok(()))) {
            return Err(Stopped::Died);
        }
        self.answer(limit)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        #[cfg(unix)]
        let _ = rustix::process::kill_process_group(
            rustix::process::Pid::from_child(&self.child),
            rustix::process::Signal::KILL,
        );
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program on its way to a worker.
#[derive(Serialize, Deserialize)]
struct Sent {
    kernel: String,
    grid: [i64; 3],
    buffers: Vec<(String, Vec<u64>)>,
    scalars: Vec<(String, u64)>,
}

impl Sent {
    fn of(p: &Program) -> Sent {
        Sent {
            kernel: p.kernel.to_string(),
            grid: p.grid,
            buffers: p.buffers.iter().map(|b| (b.dtype.to_string(), b.codes.clone())).collect(),
            scalars: p.scalars.iter().map(|(d, n)| (d.to_string(), d.encode(*n, Overflow::Format))).collect(),
        }
    }

    fn program(self) -> Result<Program, String> {
        let kernel = parse_kernel(&self.kernel).map_err(|e| e.to_string())?;
        verify(&kernel).map_err(|e| e.first().map(ToString::to_string).unwrap_or_default())?;
        let dtype = |name: &str| name.parse::<DType>().map_err(|e| e.to_string());
        let buffer = |(d, codes): (String, Vec<u64>)| dtype(&d).map(|dtype| BufferData { dtype, codes });
        let scalar = |(d, code): (String, u64)| dtype(&d).map(|d| (d, d.decode(code)));
        Ok(Program {
            kernel,
            grid: self.grid,
            buffers: self.buffers.into_iter().map(buffer).collect::<Result<_, _>>()?,
            scalars: self.scalars.into_iter().map(scalar).collect::<Result<_, _>>()?,
            checks: Vec::new(),
        })
    }
}

/// What a worker does: answers lines on standard input until there are no more.
///
/// # Errors
/// Standard input or output fails.
pub fn serve(target: Target<'_>) -> std::io::Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{READY}")?;
    for line in std::io::stdin().lock().lines() {
        let sent: Vec<Sent> = serde_json::from_str(&line?)?;
        let mut programs = Vec::new();
        let read: Vec<Result<(), String>> =
            sent.into_iter().map(|s| s.program().map(|p| programs.push(p))).collect();
        let mut ran = run_batch(&programs, target).into_iter();
        let answer: Vec<Ran> = read
            .into_iter()
            .map(|r| r.map_or_else(Ran::Failed, |()| ran.next().unwrap_or(Ran::Failed(String::new()))))
            .collect();
        writeln!(out, "{}", serde_json::to_string(&answer)?)?;
        out.flush()?;
    }
    Ok(())
}

/// Runs programs in as many workers as said, each of which `worker` starts. A batch that a worker does not answer within `limit`, or
/// ends over, is tried again program by program, each in a worker that has done nothing else wrong. `done` is told of every program's cases.
///
/// # Errors
/// A worker cannot be started.
pub fn run(
    programs: &[Program],
    worker: &(dyn Fn() -> Command + Sync),
    workers: usize,
    limit: Duration,
    done: &(dyn Fn(&[Outcome]) + Sync),
) -> std::io::Result<Vec<Outcome>> {
    let batches: Vec<&[Program]> = programs.chunks(BATCH).collect();
    let next = AtomicUsize::new(0);
    let all: Mutex<Vec<(usize, Vec<Outcome>)>> = Mutex::new(Vec::new());
    let serve = || -> std::io::Result<()> {
        let mut place: Option<Worker> = None;
        while let Some((i, batch)) = {
            let i = next.fetch_add(1, Ordering::Relaxed);
            batches.get(i).map(|b| (i, *b))
        } {
            let ran = match ask(&mut place, worker, batch, limit)? {
                Ok(ran) => ran,
                Err(_) => {
                    let mut ran = Vec::new();
                    for p in batch {
                        ran.push(match ask(&mut place, worker, std::slice::from_ref(p), limit)? {
                            Ok(mut one) => one.pop().unwrap_or(Ran::Failed(String::new())),
                            Err(Stopped::Late) => {
                                Ran::Failed(format!("not done after {} s", limit.as_secs_f64()))
                            }
                            Err(Stopped::Died) => Ran::Failed("the process died".to_string()),
                        });
                    }
                    ran
                }
            };
            for (p, r) in batch.iter().zip(&ran) {
                let cases = outcomes(p, r);
                done(&cases);
                all.lock().unwrap_or_else(PoisonError::into_inner).push((i, cases));
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..workers.clamp(1, batches.len().max(1))).map(|_| scope.spawn(serve)).collect();
        let join = |t: std::thread::ScopedJoinHandle<'_, std::io::Result<()>>| {
            t.join().unwrap_or_else(|_| Err(std::io::Error::other("a thread ended early")))
        };
        threads.into_iter().map(join).collect::<Vec<_>>().into_iter().collect::<std::io::Result<Vec<()>>>()
    })?;
    let mut all = all.into_inner().unwrap_or_else(PoisonError::into_inner);
    all.sort_by_key(|d| d.0);
    Ok(all.into_iter().flat_map(|d| d.1).collect())
}

/// Asks the worker in place, or a new one; one that fails is dropped.
fn ask(
    place: &mut Option<Worker>,
    worker: &(dyn Fn() -> Command + Sync),
    batch: &[Program],
    limit: Duration,
) -> std::io::Result<Result<Vec<Ran>, Stopped>> {
    let mut w = match place.take() {
        Some(w) => w,
        None => Worker::start(worker(), limit)?,
    };
    let sent: Vec<Sent> = batch.iter().map(Sent::of).collect();
    let line = format!("{}\n", serde_json::to_string(&sent)?);
    let ran = w.ask(&line, limit).and_then(|answer| {
        let ran: Vec<Ran> = serde_json::from_str(&answer).map_err(|_| Stopped::Died)?;
        if ran.len() == batch.len() { Ok(ran) } else { Err(Stopped::Died) }
    });
    if ran.is_ok() {
        *place = Some(w);
    }
    Ok(ran)
}
