//! LLVM: text in, object file out.
//!
//! Every call has a context of its own, so any number of threads may compile at once. LLVM can end the
//! process on a malformed pass list or an instruction it cannot select; the pass list is therefore fixed,
//! and the text comes from this crate's own lowering only.

use crate::Error;
use crate::target::vector_length;
use llvm_sys::core::*;
use llvm_sys::ir_reader::LLVMParseIRInContext2;
use llvm_sys::prelude::*;
use llvm_sys::support::LLVMParseCommandLineOptions;
use llvm_sys::target::*;
use llvm_sys::target_machine::*;
use llvm_sys::transforms::pass_builder::*;
use llvm_sys::{LLVMDiagnosticSeverity, analysis, error};
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::null_mut;
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};
use tongtu_chip::{Chip, Kind};

/// Cleans up what the lowering wrote; the vectors are explicit already, so no vectoriser is needed.
const PASSES: &str = "function(instcombine<no-verify-fixpoint>,simplifycfg,early-cse,loop-mssa(licm))";

/// The same with pointers that move in place of indices: for a kernel of products, where the addresses of a register tile's rows would
/// all be known before the inner loop, its loads move to the loop's head, and its sums out of registers; and for architectures
/// whose addresses have no room for them.
const PASSES_REDUCED: &str =
    "function(instcombine<no-verify-fixpoint>,simplifycfg,early-cse,loop-mssa(licm),loop(loop-reduce))";

/// Settings of code generation that only LLVM's command line has. Reducing the strength of loop indices takes as long as selecting
/// instructions; it is one of the passes above for the kernels that gain from it.
const SETTINGS: [&CStr; 2] = [c"tongtu", c"-disable-lsr"];

/// What to compile for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The target triple.
    pub triple: String,
    /// LLVM's processor name.
    pub cpu: String,
    /// LLVM's feature string, such as `+avx2,+fma`.
    pub features: String,
}

impl Target {
    /// The target that a chip description asks for.
    pub fn of(chip: &Chip) -> Result<Target, Error> {
        let bad = |problem: &str| Error::Target { chip: chip.name.clone(), problem: problem.to_string() };
        if chip.kind != Kind::Cpu {
            return Err(bad("it is not a CPU"));
        }
        if !crate::target::ARCHITECTURES.contains(&chip.arch.as_str()) {
            return Err(bad("its architecture is not one that is compiled for"));
        }
        let cpu = chip.llvm_cpu.clone().ok_or_else(|| bad("its description has no llvm_cpu"))?;
        let mut features: Vec<String> = chip.features.iter().map(|f| format!("+{f}")).collect();
        match (chip.arch.as_str(), vector_length(chip)) {
            // LLVM would otherwise split wide vectors on processors whose clock once suffered from them.
            ("x86_64", _) => features.push("-prefer-256-bit".to_string()),
            ("riscv64", bits @ 1..) => features.push(format!("+zvl{bits}b")),
            // LLVM takes vectors for granted on this architecture.
            ("loongarch64", _) => {
                features.extend(["lsx", "lasx"].iter().filter(|f| !chip.has(f)).map(|f| format!("-{f}")));
            }
            _ => {}
        }
        Ok(Target { triple: format!("{}-unknown-linux-gnu", chip.arch), cpu, features: features.join(",") })
    }
}

/// Time LLVM took for one module.
#[derive(Debug, Clone, Copy, Default)]
pub struct Times {
    /// Reading and verifying the text.
    pub parse: Duration,
    /// The passes.
    pub passes: Duration,
    /// Instruction selection to object file.
    pub codegen: Duration,
}

/// Compiles LLVM IR text to a relocatable ELF object; `products` says whether it multiplies matrices.
pub fn object(ir: &str, products: bool, target: &Target) -> Result<(Vec<u8>, Times), Error> {
    emit(ir, products, target, LLVMCodeGenFileType::LLVMObjectFile)
}

/// Compiles LLVM IR text to assembly text, for people; `products` as for [`object()`].
pub fn assembly(ir: &str, products: bool, target: &Target) -> Result<String, Error> {
    let (bytes, _) = emit(ir, products, target, LLVMCodeGenFileType::LLVMAssemblyFile)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn emit(
    ir: &str,
    products: bool,
    target: &Target,
    kind: LLVMCodeGenFileType,
) -> Result<(Vec<u8>, Times), Error> {
    with_machine(target, |machine| {
        let start = Instant::now();
        let module = Module::parse(ir)?;
        module.set_machine(machine);
        let parsed = Instant::now();
        let arch = target.triple.split('-').next().unwrap_or_default();
        let reduced = products || !crate::target::indexes(arch);
        module.optimise(if reduced { PASSES_REDUCED } else { PASSES }, machine)?;
        let optimised = Instant::now();
        let bytes = module.emit(machine, kind)?;
        let times = Times { parse: parsed - start, passes: optimised - parsed, codegen: optimised.elapsed() };
        Ok((bytes, times))
    })
}

/// Target machines not in use: making one costs as much as a small kernel.
static MACHINES: Mutex<Vec<(Target, Machine)>> = Mutex::new(Vec::new());

fn with_machine<T>(target: &Target, f: impl FnOnce(&Machine) -> Result<T, Error>) -> Result<T, Error> {
    let idle = || MACHINES.lock().unwrap_or_else(PoisonError::into_inner);
    let found = {
        let mut idle = idle();
        let at = idle.iter().position(|(t, _)| t == target);
        at.map(|i| idle.swap_remove(i).1)
    };
    let machine = match found {
        Some(machine) => machine,
        None => Machine::new(target)?,
    };
    let result = f(&machine);
    idle().push((target.clone(), machine));
    result
}

fn text(s: &str, stage: &'static str) -> Result<CString, Error> {
    CString::new(s).map_err(|_| Error::Llvm { stage, message: "text with a zero byte".to_string() })
}

/// Takes over a message that LLVM allocated.
///
/// # Safety
/// `message` is null or a message that LLVM returned and nobody disposed of.
unsafe fn take(message: *mut c_char) -> String {
    if message.is_null() {
        return String::new();
    }
    // SAFETY: by the contract, a live zero-terminated string, disposed of once, here.
    unsafe {
        let s = CStr::from_ptr(message).to_string_lossy().into_owned();
        LLVMDisposeMessage(message);
        s
    }
}

/// A target machine, used by one thread at a time.
struct Machine(LLVMTargetMachineRef);

// SAFETY: LLVM asks only that one thread at a time uses a target machine, and `with_machine` hands each to one.
unsafe impl Send for Machine {}

impl Machine {
    fn new(target: &Target) -> Result<Machine, Error> {
        static START: Once = Once::new();
        // SAFETY: called once, before any other use of LLVM by this crate; the settings are zero-terminated strings that live for
        // ever, as many as stated, and known to this LLVM.
        START.call_once(|| unsafe {
            let settings = SETTINGS.map(CStr::as_ptr);
            LLVMParseCommandLineOptions(settings.len() as c_int, settings.as_ptr(), std::ptr::null());
            LLVMInitializeX86TargetInfo();
            LLVMInitializeX86Target();
            LLVMInitializeX86TargetMC();
            LLVMInitializeX86AsmPrinter();
            LLVMInitializeAArch64TargetInfo();
            LLVMInitializeAArch64Target();
            LLVMInitializeAArch64TargetMC();
            LLVMInitializeAArch64AsmPrinter();
            LLVMInitializeRISCVTargetInfo();
            LLVMInitializeRISCVTarget();
            LLVMInitializeRISCVTargetMC();
            LLVMInitializeRISCVAsmPrinter();
            LLVMInitializeLoongArchTargetInfo();
            LLVMInitializeLoongArchTarget();
            LLVMInitializeLoongArchTargetMC();
            LLVMInitializeLoongArchAsmPrinter();
        });
        let stage = "making a target machine";
        let triple = text(&target.triple, stage)?;
        let (cpu, features) = (text(&target.cpu, stage)?, text(&target.features, stage)?);
        // SAFETY: every pointer passed is a live C string or an object that LLVM just returned; the options
        // are disposed of once.
        unsafe {
            let (mut found, mut message) = (null_mut(), null_mut());
            if LLVMGetTargetFromTriple(triple.as_ptr(), &mut found, &mut message) != 0 {
                return Err(Error::Llvm { stage, message: take(message) });
            }
            let options = LLVMCreateTargetMachineOptions();
            LLVMTargetMachineOptionsSetCPU(options, cpu.as_ptr());
            LLVMTargetMachineOptionsSetFeatures(options, features.as_ptr());
            LLVMTargetMachineOptionsSetCodeGenOptLevel(options, LLVMCodeGenOptLevel::LLVMCodeGenLevelDefault);
            LLVMTargetMachineOptionsSetRelocMode(options, LLVMRelocMode::LLVMRelocPIC);
            // The small model of RISC-V has absolute addresses; its medium one is what others call small.
            let model = match target.triple.starts_with("riscv64") {
                true => LLVMCodeModel::LLVMCodeModelMedium,
                false => LLVMCodeModel::LLVMCodeModelSmall,
            };
            LLVMTargetMachineOptionsSetCodeModel(options, model);
            let machine = LLVMCreateTargetMachineWithOptions(found, triple.as_ptr(), options);
            LLVMDisposeTargetMachineOptions(options);
            if machine.is_null() {
                return Err(Error::Llvm { stage, message: format!("no machine for {}", target.triple) });
            }
            Ok(Machine(machine))
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // SAFETY: the machine is live and owned by this value.
        unsafe { LLVMDisposeTargetMachine(self.0) }
    }
}

/// One module in a context of its own.
struct Module {
    context: LLVMContextRef,
    module: LLVMModuleRef,
    /// What LLVM reported; boxed because the context holds its address.
    errors: Box<RefCell<Vec<String>>>,
}

/// Collects diagnostics; without a handler LLVM would print them and exit the process.
extern "C" fn collect(info: LLVMDiagnosticInfoRef, errors: *mut c_void) {
    // SAFETY: LLVM passes a live diagnostic, and the address that `Module::parse` gave it, which is that of
    // a `RefCell` outliving the context. The context is used by one thread only.
    unsafe {
        if LLVMGetDiagInfoSeverity(info) == LLVMDiagnosticSeverity::LLVMDSError {
            let message = take(LLVMGetDiagInfoDescription(info));
            (*errors.cast::<RefCell<Vec<String>>>()).borrow_mut().push(message);
        }
    }
}

impl Module {
    fn parse(ir: &str) -> Result<Module, Error> {
        let errors = Box::new(RefCell::new(Vec::new()));
        // SAFETY: the buffer copies `ir`, whose length is passed; the buffer and, on failure, the context
        // are disposed of once; on success the context belongs to the returned module.
        unsafe {
            let context = LLVMContextCreate();
            let address: *const RefCell<Vec<String>> = &*errors;
            LLVMContextSetDiagnosticHandler(context, Some(collect), address.cast_mut().cast());
            let buffer =
                LLVMCreateMemoryBufferWithMemoryRangeCopy(ir.as_ptr().cast(), ir.len(), c"kernel".as_ptr());
            let (mut module, mut message) = (null_mut(), null_mut());
            let failed = LLVMParseIRInContext2(context, buffer, &mut module, &mut message) != 0;
            LLVMDisposeMemoryBuffer(buffer);
            if failed {
                let message = take(message);
                LLVMContextDispose(context);
                return Err(Error::Llvm { stage: "reading the module", message });
            }
            let parsed = Module { context, module, errors };
            let mut message = null_mut();
            let action = analysis::LLVMVerifierFailureAction::LLVMReturnStatusAction;
            let broken = analysis::LLVMVerifyModule(parsed.module, action, &mut message) != 0;
            let message = take(message);
            if broken {
                return Err(Error::Llvm { stage: "verifying the module", message });
            }
            Ok(parsed)
        }
    }

    fn set_machine(&self, machine: &Machine) {
        // SAFETY: module and machine are live; what LLVM returns is disposed of once.
        unsafe {
            let layout = LLVMCreateTargetDataLayout(machine.0);
            LLVMSetModuleDataLayout(self.module, layout);
            LLVMDisposeTargetData(layout);
            let triple = LLVMGetTargetMachineTriple(machine.0);
            LLVMSetTarget(self.module, triple);
            LLVMDisposeMessage(triple);
        }
    }

    fn optimise(&self, passes: &str, machine: &Machine) -> Result<(), Error> {
        let passes = text(passes, "running passes")?;
        // SAFETY: module and machine are live; the pass list is a C string known to be well-formed; options
        // and error message are disposed of once.
        unsafe {
            let options = LLVMCreatePassBuilderOptions();
            let failure = LLVMRunPasses(self.module, passes.as_ptr(), machine.0, options);
            LLVMDisposePassBuilderOptions(options);
            if !failure.is_null() {
                let message = error::LLVMGetErrorMessage(failure);
                let copy = CStr::from_ptr(message).to_string_lossy().into_owned();
                error::LLVMDisposeErrorMessage(message);
                return Err(Error::Llvm { stage: "running passes", message: copy });
            }
        }
        self.reported("running passes")
    }

    fn emit(&self, machine: &Machine, kind: LLVMCodeGenFileType) -> Result<Vec<u8>, Error> {
        // SAFETY: module and machine are live; the bytes are copied out of the buffer before it is disposed
        // of, once.
        let bytes = unsafe {
            let (mut buffer, mut message) = (null_mut(), null_mut());
            if LLVMTargetMachineEmitToMemoryBuffer(machine.0, self.module, kind, &mut message, &mut buffer)
                != 0
            {
                return Err(Error::Llvm { stage: "generating code", message: take(message) });
            }
            let start = LLVMGetBufferStart(buffer).cast::<u8>();
            let bytes = std::slice::from_raw_parts(start, LLVMGetBufferSize(buffer)).to_vec();
            LLVMDisposeMemoryBuffer(buffer);
            bytes
        };
        self.reported("generating code")?;
        Ok(bytes)
    }

    fn reported(&self, stage: &'static str) -> Result<(), Error> {
        let errors = self.errors.borrow();
        if errors.is_empty() { Ok(()) } else { Err(Error::Llvm { stage, message: errors.join("; ") }) }
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: both are live and owned by this value; the module goes before its context.
        unsafe {
            LLVMDisposeModule(self.module);
            LLVMContextDispose(self.context);
        }
    }
}
