//! Emulation: tile → tile rules for instructions that a chip lacks.
//!
//! [`expand`] rewrites every instruction that the back end does not call native into simpler ones: mathematical functions
//! into polynomials, narrow floats into f32, exact remainders into loops. What remains is arithmetic, comparison, selection,
//! integer operations and bit casts. An instruction without a rule stays, for the back end to refuse by name.
//!
//! Errors stay within the numeric class of each operation. With [`approx`](tongtu_tile::Flags::approx) set, exp takes a shorter form
//! that flushes subnormal results.

mod atomics;
// Generated: the constants stand beside the others of their kind.
#[allow(clippy::approx_constant, clippy::excessive_precision)]
mod coefficients;
mod convert;
mod digits;
mod emit;
mod integer;
mod math;
mod product;
mod trig;

use std::collections::HashMap;

use tongtu_tile::{Block, Inst, Kernel, Op, Ty, Val};

use emit::Emit;

/// Whether a back end takes an instruction with operands of these types as it is.
pub type Native<'a> = &'a dyn Fn(&Op, &[Ty]) -> bool;

/// Rewrites every instruction that is not native by the rules of this module.
pub fn expand(kernel: &mut Kernel, native: Native<'_>) {
    let body = std::mem::take(&mut kernel.body);
    let mut types = std::mem::take(&mut kernel.types);
    let mut walk = Walk { emit: Emit::new(&mut types, native), renamed: HashMap::new() };
    kernel.body = walk.block(body);
    kernel.types = types;
}

struct Walk<'a> {
    emit: Emit<'a>,
    /// What stands for a value that an expansion replaced.
    renamed: HashMap<Val, Val>,
}

impl Walk<'_> {
    fn block(&mut self, block: Block) -> Block {
        let outer = self.emit.enter();
        for inst in block.insts {
            self.inst(inst);
        }
        let insts = self.emit.leave(outer);
        let mut results = block.results;
        results.iter_mut().for_each(|v| self.rename(v));
        Block { params: block.params, insts, results }
    }

    fn rename(&self, v: &mut Val) {
        *v = self.renamed.get(v).copied().unwrap_or(*v);
    }

    fn inst(&mut self, mut inst: Inst) {
        inst.operands.iter_mut().for_each(|v| self.rename(v));
        inst.blocks = std::mem::take(&mut inst.blocks).into_iter().map(|b| self.block(b)).collect();
        self.emit.flags = inst.flags;
        self.emit.loc = inst.loc.clone();
        match self.emit.rule(&inst.op, &inst.operands) {
            Some(results) => self.renamed.extend(inst.results.iter().copied().zip(results)),
            None => self.emit.keep(inst),
        }
    }
}
