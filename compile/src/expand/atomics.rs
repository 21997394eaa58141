//! Atomic combinations by comparing and exchanging.

use tongtu_tensor::DType;
use tongtu_tensor::scalar::{Binary, Compare};
use tongtu_tile::op::{Ordering, Scope};
use tongtu_tile::{Op, Val};

use super::emit::Emit;

impl Emit<'_> {
    /// Combines each element into memory, again wherever another access came between; gives what was there before.
    pub(super) fn swap_until_alone(
        &mut self,
        [buffer, at, x]: [Val; 3],
        mask: Option<Val>,
        combiner: Binary,
        (ordering, scope): (Ordering, Scope),
    ) -> Option<Val> {
        let (d, index) = (self.dtype(x), self.dtype(at));
        let code = match d.bits() {
            8 => DType::U8,
            16 => DType::U16,
            32 => DType::U32,
            64 => DType::U64,
            _ => return None,
        };
        // Exchanging zero for zero reads; an element at -1 is outside and left alone.
        let zero = self.i(code, 0);
        let zero = self.bits(zero, d);
        let nowhere = self.i(index, -1);
        let on = match mask {
            Some(mask) => mask,
            None => self.i(DType::Bool, 1),
        };
        let start = self.sel(on, at, nowhere);
        let read = Op::AtomicCas { ordering: Ordering::Relaxed, scope };
        let old = self.plain(read, &[buffer, start, zero, zero])?[0];
        let go = self.any(on);
        let mut sound = true;
        let done = self.repeat(go, &[on, old], |e, carried| {
            let (left, old) = (carried[0], carried[1]);
            let new = e.bin(combiner, old, x);
            let place = e.sel(left, at, nowhere);
            let Some(seen) = e.plain(Op::AtomicCas { ordering, scope }, &[buffer, place, old, new]) else {
                sound = false;
                return (left, carried.to_vec());
            };
            let (was, is) = (e.bits(old, code), e.bits(seen[0], code));
            let differs = e.cmp(Compare::Ne, was, is);
            let left = e.and(left, differs);
            let old = e.sel(left, seen[0], old);
            (e.any(left), vec![left, old])
        });
        sound.then(|| done[1])
    }
}
