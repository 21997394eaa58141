//! Shows what becomes of a kernel in tile text: `asm FILE [CHIP] [ll]` prints assembly, or LLVM text, and times.

use tongtu_chip::Chip;
use tongtu_cpu::{CpuCompiler, llvm, lower};
use tongtu_tile::Module;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let file = args.first().ok_or("give a file of tile text")?;
    let chip = Chip::builtin(args.get(1).map_or("host", String::as_str))?;
    let kernel = tongtu_tile::text::parse_kernel(&std::fs::read_to_string(file)?)?;
    let module = Module { kernels: vec![kernel] };
    for kernel in &module.kernels {
        let lowered = lower::kernel(kernel, &chip).map_err(|e| format!("{e:?}"))?;
        if args.iter().any(|a| a == "ll") {
            println!("{}", lowered.ir);
        } else {
            println!("{}", llvm::assembly(&lowered.ir, lowered.products, &llvm::Target::of(&chip)?)?);
        }
    }
    for times in CpuCompiler::default().compile_timed(&module, &chip)?.1 {
        eprintln!("{times:?}");
    }
    Ok(())
}
