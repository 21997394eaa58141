//! The compile half: tile modules to artifacts.

use crate::lower::{self, Refusal};
use crate::target::{fused, vector_length};
use crate::{Artifact, Entry, blob, llvm};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tongtu_chip::Chip;
use tongtu_plan::backend::{self, CompileError, Compiler, Support};
use tongtu_tensor::scalar::{Binary, Unary};
use tongtu_tensor::{Combiner, DType};
use tongtu_tile::{Kernel, Module, Op, Ty};

/// The back end's name, which its artifacts carry.
pub const NAME: &str = "cpu";

/// Stack of a thread that runs LLVM, whose passes recurse on large functions.
const STACK: usize = 64 << 20;

/// The compile half of the CPU back end.
#[derive(Debug, Clone)]
pub struct CpuCompiler {
    /// Threads that compile kernels of one module at a time.
    pub threads: usize,
}

impl Default for CpuCompiler {
    fn default() -> CpuCompiler {
        CpuCompiler { threads: std::thread::available_parallelism().map_or(1, |n| n.get()) }
    }
}

/// Where the time of compiling went.
#[derive(Debug, Clone, Copy, Default)]
pub struct Times {
    /// Tile instructions to LLVM text.
    pub lower: Duration,
    /// LLVM.
    pub llvm: llvm::Times,
    /// Object file to blob.
    pub link: Duration,
    /// Bytes of LLVM text.
    pub text: usize,
}

/// One compiled kernel.
struct Compiled {
    blob: blob::Blob,
    entry: Entry,
    times: Times,
    /// It uses the matrix unit, which the operating system may withhold.
    matrix: bool,
}

fn one(kernel: &Kernel, chip: &Chip, target: &llvm::Target) -> Result<Compiled, CompileError> {
    let internal = |detail: String| CompileError::Internal { kernel: kernel.name.clone(), detail };
    let start = std::time::Instant::now();
    let lowered = lower::kernel(kernel, chip).map_err(|refusal| match refusal {
        Refusal::Unsupported { instruction, reason } => CompileError::Unsupported {
            kernel: kernel.name.clone(),
            instruction,
            chip: chip.name.clone(),
            reason,
        },
        Refusal::TooLarge { level, need, limit } => {
            CompileError::TooLarge { kernel: kernel.name.clone(), level: level.to_string(), need, limit }
        }
        Refusal::Broken(detail) => internal(detail),
    })?;
    let mut times = Times { lower: start.elapsed(), text: lowered.ir.len(), ..Times::default() };
    let (object, llvm) =
        llvm::object(&lowered.ir, lowered.products, target).map_err(|e| internal(e.to_string()))?;
    times.llvm = llvm;
    let start = std::time::Instant::now();
    let blob = blob::link(&object).map_err(|e| internal(e.to_string()))?;
    times.link = start.elapsed();
    let mut entry = lowered.entry.clone();
    let found = blob.entries.iter().find(|(name, _)| name == lower::SYMBOL);
    entry.offset = found.ok_or_else(|| internal("the object has no kernel".to_string()))?.1;
    Ok(Compiled { blob, entry, times, matrix: lowered.ir.contains("x86_amx") })
}

impl CpuCompiler {
    /// Compiles a module, and says what each kernel cost.
    pub fn compile_timed(
        &self,
        module: &Module,
        chip: &Chip,
    ) -> Result<(Artifact, Vec<Times>), CompileError> {
        let name = || module.kernels.first().map(|k| k.name.clone()).unwrap_or_default();
        let internal = |detail: String| CompileError::Internal { kernel: name(), detail };
        let target = llvm::Target::of(chip).map_err(|e| internal(e.to_string()))?;
        let next = AtomicUsize::new(0);
        let done: Mutex<Vec<Option<Result<Compiled, CompileError>>>> =
            Mutex::new(module.kernels.iter().map(|_| None).collect());
        let work = || {
            while let Some(kernel) = {
                let i = next.fetch_add(1, Ordering::Relaxed);
                module.kernels.get(i).map(|k| (i, k))
            } {
                let result = one(kernel.1, chip, &target);
                done.lock().unwrap_or_else(PoisonError::into_inner)[kernel.0] = Some(result);
            }
        };
        let threads = self.threads.clamp(1, module.kernels.len().max(1));
        std::thread::scope(|scope| {
            let spawn = || std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work);
            let started: Vec<_> = (0..threads).map(|_| spawn()).collect();
            if started.iter().all(Result::is_err) {
                work();
            }
            for thread in started.into_iter().flatten() {
                // A thread that panicked leaves its kernel without a result, which is reported below.
                let _ = thread.join();
            }
        });
        let mut artifact = Artifact {
            arch: chip.arch.clone(),
            vector: vector_length(chip),
            features: chip.features.clone(),
            entries: Vec::new(),
            blob: Vec::new(),
        };
        let mut times = Vec::new();
        let mut matrix = false;
        for result in done.into_inner().unwrap_or_else(PoisonError::into_inner) {
            let Compiled { blob, mut entry, times: cost, matrix: uses } =
                result.unwrap_or_else(|| Err(internal("the compiling thread ended early".to_string())))?;
            let base = artifact.blob.len().next_multiple_of(blob.align);
            artifact.blob.resize(base, 0);
            artifact.blob.extend_from_slice(&blob.bytes);
            entry.offset += u32::try_from(base).map_err(|e| internal(e.to_string()))?;
            artifact.entries.push(entry);
            times.push(cost);
            matrix |= uses;
        }
        if !matrix {
            artifact.features.retain(|f| !f.starts_with("amx-"));
        }
        Ok((artifact, times))
    }
}

impl Compiler for CpuCompiler {
    fn name(&self) -> &str {
        NAME
    }

    fn supports(&self, op: &Op, operands: &[Ty], results: &[Ty], chip: &Chip) -> Support {
        if chip.kind != tongtu_chip::Kind::Cpu {
            return Support::No("the chip is not a CPU".to_string());
        }
        let computed = !matches!(
            op,
            Op::Load { .. }
                | Op::Store { .. }
                | Op::Prefetch {}
                | Op::View { .. }
                | Op::Alloc { .. }
                | Op::For {}
                | Op::While {}
                | Op::If {}
                | Op::Bitcast { .. }
                | Op::Reshape { .. }
                | Op::Broadcast { .. }
                | Op::Permute { .. }
                | Op::Extract { .. }
                | Op::Concat { .. }
                | Op::Select {}
                | Op::Gather { .. }
                | Op::Scatter { .. }
                | Op::TakeAlong { .. }
                | Op::Full { .. }
                | Op::BufferLen {}
                | Op::AtomicCas { .. }
                | Op::AtomicRmw { combiner: Combiner::Replace, .. }
        );
        let made = matches!(op, Op::Cast { to: DType::HiF8, .. });
        if made || computed && operands.iter().chain(results).any(|t| t.dtype() == DType::HiF8) {
            return Support::Emulated("narrow floats");
        }
        let first = operands.first().map_or(DType::Bool, Ty::dtype);
        match op {
            Op::Unary(u) => match u {
                Unary::Neg | Unary::Abs | Unary::Not | Unary::Sign | Unary::Floor | Unary::Ceil => {
                    Support::Native
                }
                Unary::Trunc | Unary::RoundEven | Unary::IsNan | Unary::IsInf => Support::Native,
                Unary::Popcount | Unary::Clz | Unary::Sqrt | Unary::Rsqrt => Support::Native,
                Unary::Exp if first == DType::F32 && chip.has("avx512vl") => Support::Native,
                _ => Support::Emulated("math"),
            },
            Op::Binary(b) => match b {
                Binary::Pow | Binary::Atan2 => Support::Emulated("math"),
                Binary::Rem | Binary::Mod if first.is_float() => Support::Emulated("math"),
                _ => Support::Native,
            },
            Op::Fma {} if !fused(chip) => match first {
                DType::F64 => Support::No("the chip has no fused multiply-add".to_string()),
                _ => Support::Emulated("double precision"),
            },
            Op::MmaScaled {} => Support::Emulated("scales"),
            _ => Support::Native,
        }
    }

    fn compile(&self, module: &Module, chip: &Chip) -> Result<backend::Artifact, CompileError> {
        let (artifact, _) = self.compile_timed(module, chip)?;
        let entries = artifact.entries.iter().map(|e| backend::Entry {
            name: e.name.clone(),
            scratch: e.scratch,
            buffers: e.buffers as usize,
            scalars: e.scalars as usize,
        });
        let entries = entries.collect();
        Ok(backend::Artifact { backend: NAME.to_string(), entries, bytes: artifact.to_bytes().into() })
    }
}
