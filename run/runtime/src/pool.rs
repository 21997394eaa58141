//! Memory of one context outside its arena: blocks counted by reference, kept by size for the next run.

use std::sync::Arc;

use tongtu_plan::{Device, DeviceError, Mem};

/// A block of [`Pool`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockId(u32);

impl BlockId {
    /// No block: memory that belongs to somebody else.
    pub(crate) const NONE: BlockId = BlockId(u32::MAX);
}

#[derive(Debug)]
struct Block {
    mem: Mem,
    device: usize,
    class: usize,
    refs: u32,
}

pub(crate) struct Pool {
    devices: Vec<Arc<dyn Device>>,
    blocks: Vec<Block>,
    /// Block numbers without memory.
    vacant: Vec<u32>,
    /// Unused blocks with memory, by device and class.
    free: Vec<Vec<Vec<u32>>>,
    live: u64,
    held: u64,
    high_water: u64,
}

/// Sizes come in four steps to each power of two, from 64 bytes on.
fn class(bytes: u64) -> usize {
    let n = bytes.max(64) - 1;
    let top = 63 - n.leading_zeros() as u64;
    (top * 4 + ((n >> (top - 2)) & 3)) as usize
}

/// The bytes of a class: the largest size that falls into it.
fn class_bytes(class: usize) -> u64 {
    let (top, quarter) = (class as u64 / 4, class as u64 % 4);
    (4 + quarter + 1).checked_shl(top as u32 - 2).map_or(u64::MAX, |b| if b == 0 { u64::MAX } else { b })
}

impl Pool {
    pub(crate) fn new(devices: &[Arc<dyn Device>]) -> Pool {
        Pool {
            devices: devices.to_vec(),
            blocks: Vec::new(),
            vacant: Vec::new(),
            free: vec![Vec::new(); devices.len()],
            live: 0,
            held: 0,
            high_water: 0,
        }
    }

    /// A block of at least `bytes`, with one reference.
    pub(crate) fn alloc(&mut self, device: usize, bytes: u64) -> Result<BlockId, DeviceError> {
        let class = class(bytes);
        let size = class_bytes(class);
        let lists = &mut self.free[device];
        let id = match lists.get_mut(class).and_then(Vec::pop) {
            Some(id) => id,
            None => {
                let mem = Mem { bytes: size, ..self.devices[device].alloc(size)? };
                self.held += size;
                let block = Block { mem, device, class, refs: 0 };
                match self.vacant.pop() {
                    Some(id) => {
                        self.blocks[id as usize] = block;
                        id
                    }
                    None => {
                        self.blocks.push(block);
                        self.blocks.len() as u32 - 1
                    }
                }
            }
        };
        let block = &mut self.blocks[id as usize];
        block.refs = 1;
        self.live += block.mem.bytes;
        self.high_water = self.high_water.max(self.live);
        Ok(BlockId(id))
    }

    pub(crate) fn mem(&self, id: BlockId) -> Mem {
        self.blocks[id.0 as usize].mem
    }

    /// Adds a reference.
    pub(crate) fn share(&mut self, id: BlockId) {
        if id != BlockId::NONE {
            self.blocks[id.0 as usize].refs += 1;
        }
    }

    /// Takes a reference away.
    pub(crate) fn release(&mut self, id: BlockId) {
        if id == BlockId::NONE {
            return;
        }
        let block = &mut self.blocks[id.0 as usize];
        block.refs -= 1;
        if block.refs == 0 {
            self.live -= block.mem.bytes;
            let lists = &mut self.free[block.device];
            if lists.len() <= block.class {
                lists.resize_with(block.class + 1, Vec::new);
            }
            lists[block.class].push(id.0);
        }
    }

    /// Gives unused memory back to the devices. Work that used it must have been waited for.
    pub(crate) fn trim(&mut self) {
        for (device, lists) in self.free.iter_mut().enumerate() {
            for id in lists.iter_mut().flat_map(std::mem::take) {
                let mem = self.blocks[id as usize].mem;
                self.held -= mem.bytes;
                self.devices[device].free(mem);
                self.vacant.push(id);
            }
        }
    }

    /// Most bytes in use at a time, and bytes held now.
    pub(crate) fn usage(&self) -> (u64, u64) {
        (self.high_water, self.held)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut vacant = vec![false; self.blocks.len()];
        for &id in &self.vacant {
            vacant[id as usize] = true;
        }
        for (block, vacant) in self.blocks.iter().zip(vacant) {
            if !vacant {
                self.devices[block.device].free(block.mem);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_hold_their_sizes() {
        for bytes in (0..5000).chain((6..50).flat_map(|k| [(1u64 << k) - 1, 1 << k, (1 << k) + 1])) {
            let size = class_bytes(class(bytes));
            assert!(size >= bytes && size >= 64, "{bytes} in {size}");
            assert!(bytes <= 64 || size <= bytes + bytes / 4 + 1, "{bytes} wastes too much in {size}");
        }
    }
}
