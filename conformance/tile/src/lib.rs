//! The conformance kit of the tile instruction set: programs with inputs and expected results for every instruction, element type and
//! edge shape, and whole kernels of the kinds that models are made of.
//!
//! A [`Program`] is one kernel launch with several [`Check`]s; each check is a *case*, called `INSTRUCTION/TYPES/WHAT` or
//! `program/NAME/WHAT`. The cases of scalar instructions follow from the scalar table, the others from the lists of [`structure`].
//! Expected values come from tables that mpmath, NumPy and ml_dtypes made, from plain `f64` arithmetic, or from the reference
//! interpreter in its checked mode, each with the bound that the instruction's numeric class allows.
//!
//! [`run()`], and [`isolate::run`] in processes of their own, give the verdict of a chip on every case, [`report`] shows them and holds them against the list of what is expected not
//! to pass.
#![forbid(unsafe_code)]

pub mod composite;
mod draft;
pub mod isolate;
pub mod random;
pub mod report;
pub mod run;
pub mod scalar;
pub mod structure;
pub mod values;

use tongtu_tensor::scalar::Approx;
use tongtu_tensor::{DType, Num};
use tongtu_tile::Kernel;
use tongtu_tile::interp::BufferData;

pub use report::{Expected, Report};
pub use run::{Outcome, Ran, Target, Verdict, run};

/// An element that is expected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Want {
    /// Its bits.
    pub code: u64,
    /// How far the value may be off; if 0 the bits count, and any NaN serves for NaN.
    pub err: f64,
}

impl Want {
    /// These bits.
    pub fn exact(code: u64) -> Want {
        Want { code, err: 0.0 }
    }

    /// Whether an element of a type is what is wanted.
    pub fn admits(&self, d: DType, code: u64) -> bool {
        let (got, want) = (d.decode(code), d.decode(self.code));
        if code == self.code || got.is_nan() && want.is_nan() {
            return true;
        }
        self.err > 0.0 && Approx { value: want, err: self.err }.admits(got)
    }
}

/// One case: a range of a buffer after the launch.
#[derive(Clone, Debug)]
pub struct Check {
    /// Its name.
    pub case: String,
    /// Which buffer.
    pub buffer: usize,
    /// The first element.
    pub first: usize,
    /// The elements from there on.
    pub want: Vec<Want>,
}

/// A launch with what it must leave.
#[derive(Clone, Debug)]
pub struct Program {
    /// The kernel, of the program's name.
    pub kernel: Kernel,
    /// The grid.
    pub grid: [i64; 3],
    /// What the buffers hold before.
    pub buffers: Vec<BufferData>,
    /// The scalars.
    pub scalars: Vec<(DType, Num)>,
    /// What they must hold after.
    pub checks: Vec<Check>,
}

impl Program {
    /// Its name: what its cases' names have in common.
    pub fn name(&self) -> &str {
        &self.kernel.name
    }

    /// The first element of each check that is not as wanted; `after` are the codes of all buffers.
    pub fn compare(&self, after: &[Vec<u64>]) -> Vec<Option<String>> {
        let one = |c: &Check| {
            let d = self.buffers[c.buffer].dtype;
            let have = |i: usize| after.get(c.buffer).and_then(|b| b.get(c.first + i)).copied();
            let right = |i: usize, w: &Want| have(i).is_some_and(|code| w.admits(d, code));
            let wrong = c.want.iter().enumerate().find(|(i, w)| !right(*i, w));
            wrong.map(|(i, w)| {
                let Some(got) = have(i) else { return format!("element {i} is not there") };
                let within = if w.err > 0.0 { format!(" within {:e}", w.err) } else { String::new() };
                format!(
                    "element {i} of {} {d} is {} ({got:#x}), {} ({:#x}){within} is wanted",
                    c.want.len(),
                    d.decode(got),
                    d.decode(w.code),
                    w.code
                )
            })
        };
        self.checks.iter().map(one).collect()
    }
}

/// The whole kit.
pub fn programs() -> Vec<Program> {
    let mut all = scalar::programs();
    all.extend(structure::programs());
    all.extend(composite::programs());
    all
}
