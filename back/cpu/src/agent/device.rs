//! The host's side: an agent as a device.

use super::protocol::{Body, Error, Hello, Kind, LARGEST, VERSION, answer, frame, read_frame, write_frame};
use crate::{Artifact, target};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tongtu_chip::Chip;
use tongtu_plan::backend::{self, Device, DeviceError, Event, LaunchArg, Mem};

/// Added to the agent's addresses, which then differ from all of this process.
const FAR: u64 = 1 << 63;

/// Bytes of memory sent in one frame.
const PIECE: usize = LARGEST - 64;

/// Seconds that anything but a launch may take.
const QUICK: u64 = 60;

/// What an agent is given to end in, and beyond the limit of a launch to say that it is done.
const ENDING: Duration = Duration::from_secs(2);

/// Seconds that a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(10);

/// What ends when the agent is let go.
enum End {
    /// A process of this machine that is the agent, or leads to it.
    Process(Child),
    /// A connection; what it does closes it.
    Socket(Box<dyn Fn() + Send>),
}

/// An agent and the way to it.
struct Line {
    end: End,
    /// Frames on their way to it; closing this closes its input.
    requests: Option<Sender<Vec<u8>>>,
    answers: Receiver<Result<(u32, Vec<u8>), Error>>,
    /// Why it is of no use any more.
    gone: Option<Error>,
}

impl Line {
    fn start(mut command: Command) -> Result<Line, Error> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|e| Error::Start(e.to_string()))?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(input), Some(output)) => Ok(Line::over(input, output, End::Process(child))),
            _ => Err(Error::Start("it has no standard input and output".to_string())),
        }
    }

    /// Connects to an address, `tcp:HOST:PORT` or `unix:PATH`.
    fn connect(address: &str) -> Result<Line, Error> {
        let fail = |e: std::io::Error| Error::Start(format!("{address}: {e}"));
        match address.split_once(':') {
            Some(("tcp", at)) => {
                let mut last = std::io::Error::other("the name has no address");
                for to in at.to_socket_addrs().map_err(fail)? {
                    match TcpStream::connect_timeout(&to, CONNECT) {
                        Ok(s) => {
                            s.set_nodelay(true).map_err(fail)?;
                            let (output, end) = (s.try_clone().map_err(fail)?, s.try_clone().map_err(fail)?);
                            let close = move || drop(end.shutdown(Shutdown::Both));
                            return Ok(Line::over(s, output, End::Socket(Box::new(close))));
                        }
                        Err(e) => last = e,
                    }
                }
                Err(fail(last))
            }
            #[cfg(unix)]
            Some(("unix", path)) => {
                let s = std::os::unix::net::UnixStream::connect(path).map_err(fail)?;
                let (output, end) = (s.try_clone().map_err(fail)?, s.try_clone().map_err(fail)?);
                let close = move || drop(end.shutdown(Shutdown::Both));
                Ok(Line::over(s, output, End::Socket(Box::new(close))))
            }
            _ => Err(Error::Start(format!("'{address}' is neither tcp:HOST:PORT nor unix:PATH"))),
        }
    }

    /// Threads of their own write and read, so that an agent that does not read, or does not write, can be given up.
    fn over(
        mut input: impl Write + Send + 'static,
        mut output: impl Read + Send + 'static,
        end: End,
    ) -> Line {
        let (requests, waiting) = channel::<Vec<u8>>();
        let (found, answers) = channel();
        std::thread::spawn(
            move || while waiting.recv().is_ok_and(|b| write_frame(&mut input, &b).is_ok()) {},
        );
        std::thread::spawn(move || {
            while let Some(frame) = read_frame(&mut output).transpose() {
                let last = frame.is_err();
                if found.send(frame).is_err() || last {
                    return;
                }
            }
        });
        Line { end, requests: Some(requests), answers, gone: None }
    }

    /// How it ended: a process that has not, and is not about to, is ended, a connection is closed.
    fn ending(&mut self) -> String {
        let child = match &mut self.end {
            End::Process(child) => child,
            End::Socket(close) => {
                close();
                return "the connection is closed".to_string();
            }
        };
        let until = Instant::now() + ENDING;
        while Instant::now() < until {
            if let Ok(Some(status)) = child.try_wait() {
                return status.to_string();
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = child.kill();
        child.wait().map_or_else(|e| e.to_string(), |s| s.to_string())
    }

    /// Ends it at once.
    fn kill(&mut self) {
        match &mut self.end {
            End::Process(child) => {
                let _ = child.kill();
                let _ = child.wait();
            }
            End::Socket(close) => close(),
        }
    }

    fn ask(&mut self, kind: Kind, body: &[u8], seconds: u64) -> Result<Vec<u8>, Error> {
        if let Some(e) = &self.gone {
            return Err(e.clone());
        }
        if let Some(r) = &self.requests {
            // If nobody takes it any more there will be no answer either.
            let _ = r.send(frame(kind as u32, body));
        }
        let result = match self.answers.recv_timeout(Duration::from_secs(seconds)) {
            Ok(Ok((got, body))) => answer(kind, got, body),
            Ok(Err(Error::Ended(_))) | Err(RecvTimeoutError::Disconnected) => {
                Err(Error::Ended(self.ending()))
            }
            Ok(Err(e)) => Err(e),
            Err(RecvTimeoutError::Timeout) => Err(Error::Late(seconds)),
        };
        if let Err(e) = &result
            && !matches!(e, Error::Refused { .. })
        {
            self.kill();
            self.gone = Some(e.clone());
        }
        result
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // An agent whose input ends, ends.
        self.requests = None;
        self.ending();
    }
}

/// What an artifact left at the agent.
struct Module {
    code: u64,
    entries: Vec<crate::Entry>,
}

/// A machine that an agent runs on. Work is done when a call returns.
pub struct AgentDevice {
    name: String,
    hello: Hello,
    line: Mutex<Line>,
    modules: Mutex<Vec<Module>>,
    /// Nanoseconds in kernels.
    spent: AtomicU64,
    /// Seconds that a launch may take.
    limit: u64,
}

impl std::fmt::Debug for AgentDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AgentDevice({})", self.name)
    }
}

fn hold<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The bytes of some numbers.
fn numbers(of: &[u64]) -> Vec<u8> {
    of.iter().flat_map(|n| n.to_le_bytes()).collect()
}

impl AgentDevice {
    /// Starts a command that is an agent, or leads to one, and asks it what its machine is. A launch may take `limit` seconds.
    ///
    /// # Errors
    /// It does not start, or does not answer as an agent does.
    pub fn start(name: &str, command: Command, limit: u64) -> Result<AgentDevice, Error> {
        AgentDevice::over(name, Line::start(command)?, limit)
    }

    /// Connects to an agent that something on its machine starts for each connection: `tcp:HOST:PORT` or `unix:PATH`. Nothing there asks who it is, so
    /// that the way should be one that only its user can take.
    ///
    /// # Errors
    /// Nothing listens there, or it does not answer as an agent does.
    pub fn connect(name: &str, address: &str, limit: u64) -> Result<AgentDevice, Error> {
        AgentDevice::over(name, Line::connect(address)?, limit)
    }

    fn over(name: &str, mut line: Line, limit: u64) -> Result<AgentDevice, Error> {
        let hello = Hello::read(&line.ask(Kind::Hello, &VERSION.to_le_bytes(), QUICK)?)?;
        Ok(AgentDevice {
            name: name.to_string(),
            hello,
            line: Mutex::new(line),
            modules: Mutex::default(),
            spent: AtomicU64::new(0),
            limit: limit.max(1),
        })
    }

    /// The same under another name.
    pub fn renamed(self, name: &str) -> AgentDevice {
        AgentDevice { name: name.to_string(), ..self }
    }

    /// What the machine is.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// The description of a family of chips that the machine belongs to: the one with most features.
    pub fn chip(&self) -> Option<Chip> {
        let Hello { arch, vector, features } = &self.hello;
        let fits = |c: &Chip| {
            let length = target::vector_length(c);
            c.arch == *arch
                && c.features.iter().all(|f| features.contains(f))
                && (length == 0 || length == *vector)
        };
        Chip::families().filter(fits).max_by_key(|c| c.features.len())
    }

    /// Time spent in kernels so far, by the clock of the machine.
    pub fn spent(&self) -> Duration {
        Duration::from_nanos(self.spent.load(Ordering::Relaxed))
    }

    fn ask(&self, kind: Kind, body: &[u8]) -> Result<Vec<u8>, DeviceError> {
        hold(&self.line).ask(kind, body, QUICK).map_err(|e| self.lost(e))
    }

    fn lost(&self, e: Error) -> DeviceError {
        DeviceError::Lost { device: self.name.clone(), detail: e.to_string() }
    }

    fn number(&self, kind: Kind, body: &[u8]) -> Result<u64, DeviceError> {
        let answer = self.ask(kind, body)?;
        let mut body = Body(&answer);
        body.u64().and_then(|n| body.end(n)).map_err(|e| self.lost(e))
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        for (i, piece) in bytes.chunks(PIECE).enumerate() {
            let mut body = numbers(&[at + (i * PIECE) as u64]);
            body.extend_from_slice(piece);
            self.ask(Kind::Write, &body)?;
        }
        Ok(())
    }

    fn read(&self, at: u64, bytes: &mut [u8]) -> Result<(), DeviceError> {
        for (i, piece) in bytes.chunks_mut(PIECE).enumerate() {
            let mut body = numbers(&[at + (i * PIECE) as u64]);
            body.extend_from_slice(&(piece.len() as u32).to_le_bytes());
            let got = self.ask(Kind::Read, &body)?;
            if got.len() != piece.len() {
                let e = Error::Frame(format!("{} bytes read of {}", got.len(), piece.len()));
                return Err(self.lost(e));
            }
            piece.copy_from_slice(&got);
        }
        Ok(())
    }
}

impl Device for AgentDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn alloc(&self, bytes: u64) -> Result<Mem, DeviceError> {
        let memory = DeviceError::Memory { device: self.name.clone(), bytes };
        let answer = match hold(&self.line).ask(Kind::Alloc, &numbers(&[bytes]), QUICK) {
            Err(Error::Refused { .. }) => return Err(memory),
            other => other.map_err(|e| self.lost(e))?,
        };
        let at = Body(&answer).u64().map_err(|e| self.lost(e))?;
        Ok(Mem { address: at | FAR, bytes })
    }

    fn free(&self, mem: Mem) {
        // An agent that is no more has no memory either.
        let _ = self.ask(Kind::Free, &numbers(&[mem.address & !FAR]));
    }

    fn load(&self, artifact: &backend::Artifact) -> Result<u64, DeviceError> {
        let bad = |detail: String| DeviceError::Artifact { device: self.name.clone(), detail };
        if artifact.backend != "cpu" {
            return Err(bad(format!("it was made by the back end '{}'", artifact.backend)));
        }
        let parsed = Artifact::from_bytes(&artifact.bytes).map_err(|e| bad(e.to_string()))?;
        let Hello { arch, vector, features } = &self.hello;
        parsed.runs_on(arch, *vector, features).map_err(|e| bad(e.to_string()))?;
        let bytes = parsed.blob.len() as u64;
        let mem = self.alloc(bytes)?;
        let sent = self.write(mem.address & !FAR, &parsed.blob);
        let code = sent.and_then(|()| self.number(Kind::Code, &numbers(&[mem.address & !FAR, bytes])));
        self.free(mem);
        let mut modules = hold(&self.modules);
        modules.push(Module { code: code?, entries: parsed.entries });
        Ok(modules.len() as u64 - 1)
    }

    fn launch(
        &self,
        module: u64,
        entry: usize,
        grid: [i64; 3],
        args: &[LaunchArg],
        _wait: Event,
    ) -> Result<Event, DeviceError> {
        let bad = |kernel: &str, detail: &str| DeviceError::Launch {
            device: self.name.clone(),
            kernel: kernel.to_string(),
            detail: detail.to_string(),
        };
        let (code, entry) = {
            let modules = hold(&self.modules);
            let module = usize::try_from(module).ok().and_then(|m| modules.get(m));
            let found = module.and_then(|m| Some((m.code, m.entries.get(entry)?.clone())));
            found.ok_or_else(|| bad("?", "there is no such kernel"))?
        };
        let bad = |detail: &str| bad(&entry.name, detail);
        let (mut buffers, mut scalars) = (Vec::new(), Vec::new());
        for arg in args {
            match *arg {
                LaunchArg::Buffer(m, len) => buffers.extend([m.address & !FAR, m.bytes, len]),
                LaunchArg::Scalar(bits) => scalars.push(bits),
            }
        }
        if buffers.len() / 3 != entry.buffers as usize || scalars.len() != entry.scalars as usize {
            return Err(bad("other arguments than the kernel takes"));
        }
        let total = grid.iter().try_fold(1i64, |n, g| n.checked_mul(*g).filter(|n| *n >= 0));
        let total = total.ok_or_else(|| bad("a grid of no size"))?;
        let [x, y, z] = grid.map(|g| g as u64);
        let head = [code, entry.offset.into(), entry.scratch, self.limit, x, y, z, 0, total as u64];
        let mut body = numbers(&head);
        body.extend_from_slice(&entry.buffers.to_le_bytes());
        body.extend_from_slice(&entry.scalars.to_le_bytes());
        body.extend(numbers(&buffers));
        body.extend(numbers(&scalars));
        if body.len() > LARGEST {
            return Err(bad("too many arguments"));
        }
        let answer = hold(&self.line).ask(Kind::Launch, &body, self.limit + ENDING.as_secs());
        let answer = answer.map_err(|e| match e {
            Error::Refused { text, .. } => bad(&text),
            e => self.lost(e),
        })?;
        let took = Body(&answer).u64().map_err(|e| self.lost(e))?;
        self.spent.fetch_add(took, Ordering::Relaxed);
        Ok(Event::DONE)
    }

    fn copy(&self, dst: Mem, src: Mem, _wait: Event) -> Result<Event, DeviceError> {
        let detail = || format!("{} bytes into {}", src.bytes, dst.bytes);
        let n = usize::try_from(src.bytes).ok().filter(|_| dst.bytes >= src.bytes).ok_or_else(|| {
            DeviceError::Launch { device: self.name.clone(), kernel: "copy".to_string(), detail: detail() }
        })?;
        let (to, from) = (dst.address & !FAR, src.address & !FAR);
        match (dst.address & FAR != 0, src.address & FAR != 0) {
            _ if n == 0 => {}
            (true, true) => drop(self.ask(Kind::Copy, &numbers(&[to, from, src.bytes]))?),
            // SAFETY: by the device's contract, an address that is not this device's is live memory of the host, of so many bytes.
            (true, false) => self.write(to, unsafe { std::slice::from_raw_parts(from as *const u8, n) })?,
            // SAFETY: as above; nobody else uses the destination of a copy.
            (false, true) => self.read(from, unsafe { std::slice::from_raw_parts_mut(to as *mut u8, n) })?,
            // SAFETY: as above, for both.
            (false, false) => unsafe { std::ptr::copy(from as *const u8, to as *mut u8, n) },
        }
        Ok(Event::DONE)
    }

    fn wait(&self, _event: Event) -> Result<(), DeviceError> {
        Ok(())
    }
}
