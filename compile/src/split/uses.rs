//! Who uses a value, and which buffers a kernel writes.

use std::collections::{HashMap, HashSet};

use tongtu_tile::{Block, Kernel, Op, Val};

/// One use of a value.
#[derive(Clone, Copy)]
pub(super) struct Use {
    /// The block it is in.
    pub block: usize,
    /// The user reads it more than once or at shifted places, so it should be in memory.
    pub stored: bool,
}

#[derive(Default)]
pub(super) struct Uses {
    uses: HashMap<Val, Vec<Use>>,
    block: HashMap<Val, usize>,
    /// For views the buffer.
    buffer: HashMap<Val, Val>,
    written: HashSet<Val>,
    blocks: usize,
}

impl Uses {
    pub fn of(kernel: &Kernel) -> Uses {
        let mut u = Uses::default();
        u.walk(&kernel.body);
        u
    }

    fn walk(&mut self, block: &Block) {
        let id = self.blocks;
        self.blocks += 1;
        for &p in &block.params {
            self.block.insert(p, id);
        }
        for inst in &block.insts {
            for (i, &o) in inst.operands.iter().enumerate() {
                let stored = match inst.op {
                    Op::Mma {} => i > 0,
                    Op::TakeAlong { .. } => i == 0,
                    _ => false,
                };
                self.uses.entry(o).or_default().push(Use { block: id, stored });
            }
            for &r in &inst.results {
                self.block.insert(r, id);
            }
            match inst.op {
                Op::View { .. } => {
                    self.buffer.insert(inst.results[0], inst.operands[0]);
                }
                Op::Store { .. }
                | Op::Scatter { .. }
                | Op::AtomicReduce { .. }
                | Op::AtomicRmw { .. }
                | Op::AtomicCas { .. } => {
                    let to = self.root(inst.operands[0]);
                    self.written.insert(to);
                }
                _ => {}
            }
            inst.blocks.iter().for_each(|b| self.walk(b));
        }
        for &r in &block.results {
            self.uses.entry(r).or_default().push(Use { block: id, stored: false });
        }
    }

    fn root(&self, v: Val) -> Val {
        self.buffer.get(&v).copied().unwrap_or(v)
    }

    /// Whether the kernel writes the buffer, or the buffer of the view.
    pub fn is_written(&self, v: Val) -> bool {
        self.written.contains(&self.root(v))
    }

    /// Whether a value has one user at most, in its own block, that reads each element once and in place.
    pub fn is_private(&self, v: Val) -> bool {
        match self.uses.get(&v).map(Vec::as_slice) {
            None | Some([]) => true,
            Some([u]) => !u.stored && self.block.get(&v) == Some(&u.block),
            Some(_) => false,
        }
    }

    /// Whether nothing uses a value.
    pub fn is_dead(&self, v: Val) -> bool {
        self.uses.get(&v).is_none_or(Vec::is_empty)
    }
}
