//! Running the kit on a chip.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tongtu_chip::{Chip, Kind};
use tongtu_compile::{expand, split};
use tongtu_plan::backend::{Artifact, CompileError, Compiler, Device, Event, LaunchArg, Mem, Support};
use tongtu_tensor::{DType, Overflow, Tensor};
use tongtu_tile::{Block, Kernel, Module, ParamKind, Ty, verify};

use crate::{Check, Program};

/// How a case went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Everything is as it must be.
    Pass,
    /// Something is not.
    Fail,
    /// The chip lacks an instruction, and says which.
    Unsupported,
    /// It compiles; there is no device to run it on.
    Compiled,
}

impl Verdict {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Pass => "pass",
            Verdict::Fail => "fail",
            Verdict::Unsupported => "unsupported",
            Verdict::Compiled => "compiled",
        }
    }
}

/// The verdict on a case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The case.
    pub case: String,
    /// The verdict.
    pub verdict: Verdict,
    /// Why it is not a pass.
    pub detail: String,
    /// The extensions it needs.
    pub extensions: Vec<String>,
}

/// Kernels compiled as one module.
const BATCH: usize = 64;

/// A kernel made ready for a chip: instructions that it lacks are rewritten, tiles that exceed its registers split.
///
/// # Errors
/// The reason, if an instruction is left that the chip does not take.
pub fn prepare(kernel: &Kernel, compiler: &dyn Compiler, chip: &Chip) -> Result<Kernel, String> {
    let mut k = kernel.clone();
    let native =
        |op: &tongtu_tile::Op, tys: &[Ty]| matches!(compiler.supports(op, tys, &[], chip), Support::Native);
    expand::expand(&mut k, &native);
    let registers = split::Registers::of(chip);
    // Tiles of chips with scratchpads are not held in registers.
    if chip.kind == Kind::Cpu && registers.count > 0 && split::is_large(&k, registers) {
        k = split::split(&k, registers).map_err(|e| e.to_string())?;
    }
    verify(&k).map_err(|e| e.first().map(ToString::to_string).unwrap_or_default())?;
    supported(&k, &k.body, compiler, chip)?;
    Ok(k)
}

fn supported(k: &Kernel, block: &Block, compiler: &dyn Compiler, chip: &Chip) -> Result<(), String> {
    for i in &block.insts {
        let types = |vals: &[tongtu_tile::Val]| vals.iter().map(|v| k.ty(*v).clone()).collect::<Vec<Ty>>();
        match compiler.supports(&i.op, &types(&i.operands), &types(&i.results), chip) {
            Support::No(why) => return Err(format!("{}: {why}", i.op.name())),
            Support::Emulated(rule) => {
                return Err(format!("{}: the rewrite '{rule}' does not cover it", i.op.name()));
            }
            Support::Native => {}
        }
        i.blocks.iter().try_for_each(|b| supported(k, b, compiler, chip))?;
    }
    Ok(())
}

/// A chip with what compiles for it and, where there is one, what runs it.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// The chip.
    pub chip: &'a Chip,
    /// What compiles for it.
    pub compiler: &'a dyn Compiler,
    /// What runs it; without one it is only compiled for.
    pub device: Option<&'a dyn Device>,
}

/// What became of a launch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ran {
    /// It ran: the codes that its buffers hold after.
    After(Vec<Vec<u64>>),
    /// It compiles; there is no device to run it on.
    Compiled,
    /// The chip, or what compiles for it, lacks something.
    Lacks(String),
    /// It did not compile although nothing is lacking, or did not run.
    Failed(String),
}

/// The verdicts on a program's cases.
pub fn outcomes(p: &Program, ran: &Ran) -> Vec<Outcome> {
    let extensions: Vec<String> = p.kernel.extensions().iter().map(|e| e.name().to_string()).collect();
    let all = |why: &str| vec![Some(why.to_string()); p.checks.len()];
    let (verdict, details) = match ran {
        Ran::After(after) => (Verdict::Pass, p.compare(after)),
        Ran::Compiled => (Verdict::Compiled, vec![None; p.checks.len()]),
        Ran::Lacks(why) => (Verdict::Unsupported, all(why)),
        Ran::Failed(why) => (Verdict::Fail, all(why)),
    };
    let one = |(c, detail): (&Check, Option<String>)| Outcome {
        case: c.case.clone(),
        verdict: if verdict == Verdict::Pass && detail.is_some() { Verdict::Fail } else { verdict },
        detail: detail.unwrap_or_default(),
        extensions: extensions.clone(),
    };
    p.checks.iter().zip(details).map(one).collect()
}

/// Runs programs in this process, several threads compiling. A kernel that hangs or crashes takes the process with it; see
/// [`isolate`](crate::isolate).
pub fn run(programs: &[Program], target: Target<'_>, threads: usize) -> Vec<Outcome> {
    let next = AtomicUsize::new(0);
    let batches: Vec<&[Program]> = programs.chunks(BATCH).collect();
    let done: Mutex<Vec<(usize, Vec<Ran>)>> = Mutex::new(Vec::new());
    let work = || {
        while let Some((i, batch)) = {
            let i = next.fetch_add(1, Ordering::Relaxed);
            batches.get(i).map(|b| (i, *b))
        } {
            let ran = run_batch(batch, target);
            done.lock().unwrap_or_else(PoisonError::into_inner).push((i, ran));
        }
    };
    std::thread::scope(|scope| {
        (0..threads.max(1)).for_each(|_| drop(scope.spawn(work)));
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|d| d.0);
    let ran = done.into_iter().flat_map(|d| d.1);
    programs.iter().zip(ran).flat_map(|(p, r)| outcomes(p, &r)).collect()
}

/// Runs programs whose kernels are compiled as one module.
pub fn run_batch(batch: &[Program], Target { chip, compiler, device }: Target<'_>) -> Vec<Ran> {
    let mut artifacts: Vec<Artifact> = Vec::new();
    let mut module = Module::default();
    // The place of each kernel: an artifact's number and an entry of it.
    let mut places: Vec<Result<(usize, usize), Ran>> = Vec::new();
    for p in batch {
        let place = prepare(&p.kernel, compiler, chip).map_err(Ran::Lacks).map(|k| {
            module.kernels.push(k);
            (0, module.kernels.len() - 1)
        });
        places.push(place);
    }
    match compiler.compile(&module, chip) {
        Ok(a) => artifacts.push(a),
        // One at a time, to tell which it is.
        Err(_) => {
            for place in places.iter_mut() {
                let Ok((_, entry)) = *place else { continue };
                let one = Module { kernels: vec![module.kernels[entry].clone()] };
                *place = match compiler.compile(&one, chip) {
                    Ok(a) => {
                        artifacts.push(a);
                        Ok((artifacts.len() - 1, 0))
                    }
                    Err(e @ (CompileError::Unsupported { .. } | CompileError::Toolchain { .. })) => {
                        Err(Ran::Lacks(e.to_string()))
                    }
                    Err(e) => Err(Ran::Failed(e.to_string())),
                };
            }
        }
    }
    let Some(device) = device else {
        return places.into_iter().map(|p| p.err().unwrap_or(Ran::Compiled)).collect();
    };
    let modules: Vec<Result<u64, String>> =
        artifacts.iter().map(|a| device.load(a).map_err(|e| e.to_string())).collect();
    let one = |(p, place): (&Program, Result<(usize, usize), Ran>)| {
        let (artifact, entry) = match place {
            Ok(place) => place,
            Err(ran) => return ran,
        };
        match modules[artifact].clone().and_then(|m| launch(p, device, m, entry)) {
            Ok(after) => Ran::After(after),
            Err(why) => Ran::Failed(why),
        }
    };
    batch.iter().zip(places).map(one).collect()
}

/// Runs a program on a device; gives the codes that its buffers hold then.
///
/// # Errors
/// What the device says.
pub fn launch(p: &Program, device: &dyn Device, module: u64, entry: usize) -> Result<Vec<Vec<u64>>, String> {
    let mut held = Vec::new();
    let outcome = (|| {
        let mut args = Vec::new();
        let (mut buffers, mut scalars) = (p.buffers.iter(), p.scalars.iter());
        for param in &p.kernel.params {
            match param.kind {
                ParamKind::Buffer(..) => {
                    let b = buffers.next().ok_or("a buffer is missing")?;
                    let t = b.to_tensor(&[b.codes.len()]).map_err(|e| e.to_string())?;
                    let bytes = t.bytes();
                    let mem = device.alloc((bytes.len() as u64).max(1)).map_err(|e| e.to_string())?;
                    held.push(mem);
                    let host = Mem { address: bytes.as_ptr() as u64, bytes: bytes.len() as u64 };
                    let mem = Mem { bytes: bytes.len() as u64, ..mem };
                    if !bytes.is_empty() {
                        let event = device.copy(mem, host, Event::DONE).map_err(|e| e.to_string())?;
                        device.wait(event).map_err(|e| e.to_string())?;
                    }
                    args.push(LaunchArg::Buffer(mem, b.codes.len() as u64));
                }
                ParamKind::Scalar(_) => {
                    let (d, n) = scalars.next().ok_or("a scalar is missing")?;
                    args.push(LaunchArg::Scalar(d.encode(*n, Overflow::Format)));
                }
            }
        }
        let event = device.launch(module, entry, p.grid, &args, Event::DONE).map_err(|e| e.to_string())?;
        device.wait(event).map_err(|e| e.to_string())?;
        let mut after = Vec::new();
        for (b, mem) in p.buffers.iter().zip(&held) {
            after.push(read(device, b.dtype, b.codes.len(), *mem)?);
        }
        Ok(after)
    })();
    held.into_iter().for_each(|m| device.free(m));
    outcome
}

fn read(device: &dyn Device, d: DType, len: usize, mem: Mem) -> Result<Vec<u64>, String> {
    let mut bytes = vec![0u8; d.bytes_for(len).unwrap_or(0)];
    if !bytes.is_empty() {
        let host = Mem { address: bytes.as_mut_ptr() as u64, bytes: bytes.len() as u64 };
        let event = device
            .copy(host, Mem { bytes: bytes.len() as u64, ..mem }, Event::DONE)
            .map_err(|e| e.to_string())?;
        device.wait(event).map_err(|e| e.to_string())?;
    }
    let t = Tensor::from_bytes(d, &[len], bytes).map_err(|e| e.to_string())?;
    Ok(t.codes().collect())
}

/// The extensions all of whose cases pass, of those that a case needs.
pub fn conforms(outcomes: &[Outcome]) -> BTreeSet<String> {
    let all: BTreeSet<String> = outcomes.iter().flat_map(|o| o.extensions.iter().cloned()).collect();
    // A case of several extensions counts for an extension if the others pass by themselves.
    let pure = |o: &Outcome, e: &str| o.extensions.iter().all(|x| x == e || x == "base");
    let mut whole = all;
    whole.retain(|e| {
        let mut cases = outcomes.iter().filter(|o| pure(o, e)).peekable();
        cases.peek().is_some() && cases.all(|o| o.verdict == Verdict::Pass)
    });
    whole
}
