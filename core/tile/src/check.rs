//! Checked mode: runs a launch in the reference interpreter and reports the errors of the program that it meets.
//!
//! - *Outside*: an access outside a view dim declared `inside`, or a position inside a view that is outside its buffer.
//! - *Race*: accesses of two instances to one element, not both atomic, at least one writing, that no release and acquire orders.
//!   Instances run one after another here, so a race is found by who touched what, not by luck.
//! - *Uninitialised*: reading scratch, or a buffer given as uninitialised, before it is written.
//! - *NaN*: an instruction that gives NaN though none of its operands holds one; asked for by [`Options::nan`].
//!
//! Each instruction is reported once for each kind, with its line in the printed kernel.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use tongtu_tensor::{DType, Num};

use crate::error::TileError;
use crate::interp::{self, BufferData};
use crate::kernel::{Block, Inst, Kernel, ParamKind};
use crate::op::{Op, Ordering};

/// Most findings of one launch.
const MOST: usize = 100;

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// An access outside what it claims to be inside.
    Outside,
    /// Instances that touch one element without order.
    Race,
    /// A read of what was never written.
    Uninitialised,
    /// An instruction that makes NaN of numbers.
    Nan,
}

/// An error of the program, or a source of NaN.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// What it is.
    pub kind: Kind,
    /// Line of the instruction in the printed kernel, from 1.
    pub line: usize,
    /// That line.
    pub text: String,
    /// Where the instruction came from, if it says so.
    pub loc: Option<Arc<str>>,
    /// The instance that met it first.
    pub instance: [i64; 3],
    /// What happened.
    pub detail: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [x, y, z] = self.instance;
        write!(f, "line {}: {} (instance {x}, {y}, {z})\n  {}", self.line, self.detail, self.text)?;
        match &self.loc {
            Some(loc) => write!(f, "\n  from {loc}"),
            None => Ok(()),
        }
    }
}

/// How to check.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// How to run.
    pub run: interp::Options,
    /// For each buffer whether it holds nothing at the start; all are initialised where this is shorter.
    pub uninitialised: Vec<bool>,
    /// Report sources of NaN.
    pub nan: bool,
}

/// Runs a launch as [`interp::run`] does and gives what is wrong with it. A wrong access is reported and left out; the run goes on.
///
/// # Errors
/// Arguments that do not fit the parameters, a `for` whose step is not positive, the step limit.
pub fn check(
    kernel: &Kernel,
    grid: [i64; 3],
    buffers: &mut [BufferData],
    scalars: &[Num],
    options: &Options,
) -> Result<Vec<Finding>, TileError> {
    let mut names = Vec::new();
    let mut shadows = Vec::new();
    let params = kernel.params.iter().filter(|p| matches!(p.kind, ParamKind::Buffer(..)));
    for (p, b) in params.zip(buffers.iter()) {
        names.push(p.name.clone());
        shadows.push(vec![Shadow::default(); slots(b.dtype, b.codes.len())]);
    }
    let mut lines = HashMap::new();
    number(&kernel.body, &mut 2, &mut lines);
    let monitor = Monitor {
        now: Cell::new(0),
        nan: options.nan,
        state: RefCell::new(State {
            findings: Vec::new(),
            seen: HashSet::new(),
            names,
            shadows,
            grid,
            instance: 0,
            epoch: 1,
            known: HashMap::new(),
            released: HashMap::new(),
            lines,
            text: kernel.to_string().lines().map(|l| l.trim().chars().take(160).collect()).collect(),
        }),
    };
    interp::run_monitored(
        kernel,
        grid,
        buffers,
        scalars,
        &options.run,
        Some((&monitor, &options.uninitialised)),
    )?;
    Ok(monitor.state.into_inner().findings)
}

/// The line of every instruction in the printed kernel, by its address.
fn number(block: &Block, line: &mut usize, out: &mut HashMap<usize, (usize, Option<Arc<str>>)>) {
    for inst in &block.insts {
        out.insert(address(inst), (*line, inst.loc.clone()));
        for b in &inst.blocks {
            *line += 1;
            number(b, line, out);
            *line += usize::from(!b.results.is_empty());
        }
        *line += 1;
    }
}

fn address(inst: &Inst) -> usize {
    std::ptr::from_ref(inst) as usize
}

/// Units of memory that count as one when it comes to races: elements, or bytes that several share.
fn slots(d: DType, len: usize) -> usize {
    if d.bits() < 8 { d.bytes_for(len).unwrap_or(0) } else { len }
}

#[derive(Clone, Copy, PartialEq)]
struct Touch {
    instance: i64,
    epoch: u32,
    inst: usize,
}

/// Who touched a unit: the last writer, and two different readers and users of atomics, so that one of each is another.
#[derive(Clone, Copy, Default)]
struct Shadow {
    write: Option<Touch>,
    read: [Option<Touch>; 2],
    atomic: [Option<Touch>; 2],
}

/// How an element is touched.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum How {
    Read,
    Write,
    Atomic,
}

struct State {
    findings: Vec<Finding>,
    seen: HashSet<(Kind, usize)>,
    names: Vec<String>,
    shadows: Vec<Vec<Shadow>>,
    grid: [i64; 3],
    instance: i64,
    /// Counts this instance's releases.
    epoch: u32,
    /// For other instances, up to which epoch their accesses happen before this instance's next one.
    known: HashMap<i64, u32>,
    /// What a release left at an element for who acquires there.
    released: HashMap<(usize, usize), HashMap<i64, u32>>,
    lines: HashMap<usize, (usize, Option<Arc<str>>)>,
    text: Vec<String>,
}

/// What the interpreter tells of a run.
pub(crate) struct Monitor {
    /// The instruction that runs.
    now: Cell<usize>,
    pub(crate) nan: bool,
    state: RefCell<State>,
}

impl Monitor {
    pub(crate) fn start(&self, instance: i64) {
        let mut s = self.state.borrow_mut();
        s.instance = instance;
        s.epoch = 1;
        s.known.clear();
    }

    pub(crate) fn enter(&self, inst: &Inst) {
        self.now.set(address(inst));
    }

    pub(crate) fn report(&self, kind: Kind, detail: impl FnOnce() -> String) {
        self.state.borrow_mut().report(kind, self.now.get(), detail);
    }

    /// An element of a parameter is touched; `buffer` is its position among the buffers.
    pub(crate) fn touch(&self, buffer: usize, d: DType, at: usize, how: How) {
        let s = &mut *self.state.borrow_mut();
        if buffer >= s.shadows.len() {
            return;
        }
        let bits = d.bits() as usize;
        let (first, last) = if bits < 8 { (at * bits / 8, (at * bits + bits - 1) / 8) } else { (at, at) };
        for slot in first..=last {
            s.touch(buffer, slot, at, how, self.now.get());
        }
    }

    /// An atomic access orders what comes before or after it.
    pub(crate) fn order(&self, buffer: usize, at: usize, ordering: Ordering) {
        let s = &mut *self.state.borrow_mut();
        let merge = |into: &mut HashMap<i64, u32>, from: &HashMap<i64, u32>| {
            for (&i, &e) in from {
                let known = into.entry(i).or_insert(0);
                *known = (*known).max(e);
            }
        };
        if matches!(ordering, Ordering::Acquire | Ordering::AcqRel)
            && let Some(left) = s.released.get(&(buffer, at))
        {
            merge(&mut s.known, left);
        }
        if matches!(ordering, Ordering::Release | Ordering::AcqRel) {
            let left = s.released.entry((buffer, at)).or_default();
            merge(left, &s.known);
            left.insert(s.instance, s.epoch);
            s.epoch += 1;
        }
    }
}

impl State {
    fn coordinate(&self, instance: i64) -> [i64; 3] {
        let [x, y, _] = self.grid.map(|g| g.max(1));
        [instance % x, instance / x % y, instance / x / y]
    }

    fn report(&mut self, kind: Kind, inst: usize, detail: impl FnOnce() -> String) {
        if self.findings.len() >= MOST || !self.seen.insert((kind, inst)) {
            return;
        }
        let (line, loc) = self.lines.get(&inst).cloned().unwrap_or((1, None));
        let text = self.text.get(line - 1).cloned().unwrap_or_default();
        let instance = self.coordinate(self.instance);
        self.findings.push(Finding { kind, line, text, loc, instance, detail: detail() });
    }

    fn touch(&mut self, buffer: usize, slot: usize, at: usize, how: How, inst: usize) {
        let me = self.instance;
        let here = Touch { instance: me, epoch: self.epoch, inst };
        let Some(shadow) = self.shadows[buffer].get_mut(slot) else { return };
        let other = |t: &Option<Touch>| {
            t.filter(|t| t.instance != me && self.known.get(&t.instance).is_none_or(|e| t.epoch > *e))
        };
        let found = match how {
            How::Read => other(&shadow.write).or_else(|| shadow.atomic.iter().find_map(other)),
            How::Atomic => other(&shadow.write).or_else(|| shadow.read.iter().find_map(other)),
            How::Write => {
                let before = shadow.read.iter().chain(&shadow.atomic).find_map(other);
                other(&shadow.write).or(before)
            }
        };
        let keep = |two: &mut [Option<Touch>; 2]| match two {
            [Some(a), _] if a.instance == me => *a = here,
            [a @ None, _] => *a = Some(here),
            [_, b] => *b = Some(here),
        };
        match how {
            How::Read => keep(&mut shadow.read),
            How::Atomic => keep(&mut shadow.atomic),
            How::Write => shadow.write = Some(here),
        }
        if let Some(t) = found {
            let line = self.lines.get(&t.inst).map_or(1, |l| l.0);
            let [x, y, z] = self.coordinate(t.instance);
            let name = self.names[buffer].clone();
            let verb = match how {
                How::Read => "read",
                How::Write => "written",
                How::Atomic => "combined",
            };
            self.report(Kind::Race, inst, || {
                format!("element {at} of '{name}' is {verb} while instance {x}, {y}, {z} may touch it at line {line}")
            });
        }
    }
}

/// Whether an instruction can make NaN; data movement passes on what is there.
pub(crate) fn computes(op: &Op) -> bool {
    !matches!(
        op,
        Op::Full { .. }
            | Op::Load { .. }
            | Op::Gather { .. }
            | Op::Bitcast { .. }
            | Op::AtomicRmw { .. }
            | Op::AtomicCas { .. }
            | Op::TakeAlong { .. }
            | Op::For {}
            | Op::While {}
            | Op::If {}
    )
}
