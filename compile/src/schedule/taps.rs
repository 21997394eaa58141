//! Windows: which of their taps are inside, and how results along a row are cut into tiles.

use tongtu_tensor::dim::Dim;
use tongtu_tile::Val;

use crate::emit::Emitter;
use crate::error::Error;

/// Cuts of one spatial dim of the input as it lies in scratch.
#[derive(Clone, Copy)]
pub struct Window {
    /// Kernel length.
    pub taps: i64,
    /// Scratch positions from one tap to the next.
    pub dilation: i64,
    /// Scratch positions from one output to the next.
    pub step: i64,
    /// Input positions from one scratch position to the next: with one tap, only what it meets is copied.
    pub jump: i64,
}

impl Window {
    /// The window of taps with a stride and a dilation.
    pub fn new(taps: i64, stride: i64, dilation: i64) -> Window {
        let (step, jump) = if taps == 1 { (1, stride) } else { (stride, 1) };
        Window { taps, dilation, step, jump }
    }
    /// Scratch positions beyond `n` steps that the last output reads.
    pub fn rest(&self) -> i64 {
        (self.taps - 1) * self.dilation + 1 - self.step
    }
    /// Scratch positions that `n` outputs read.
    pub fn span(&self, n: i64) -> i64 {
        n * self.step + self.rest()
    }
    /// Scratch positions that `n` outputs read.
    pub fn span_of(&self, e: &mut Emitter<'_>, n: Val) -> Result<Val, Error> {
        let far = e.b.mul_int(n, self.step)?;
        Ok(e.b.add_int(far, self.rest())?)
    }
}

/// The taps of windows along one dim.
pub struct TapLine<'a> {
    /// How many there are.
    pub taps: i64,
    /// Elements from one window to the next.
    pub stride: i64,
    /// Elements from one tap to the next.
    pub dilation: i64,
    /// Padding before the operand.
    pub low: &'a Dim,
    /// Length of the operand.
    pub len: &'a Dim,
}

/// The taps of one window that are inside the operand.
#[derive(Clone, Copy)]
pub struct TapRange {
    /// Place of the first tap, inside or not.
    start: Val,
    dilation: i64,
    lo: Val,
    hi: Val,
}

impl TapLine<'_> {
    /// The range of window number `at`.
    pub fn range(&self, e: &mut Emitter<'_>, at: Val) -> Result<TapRange, Error> {
        let zero = e.b.int(0);
        let start = e.b.mul_int(at, self.stride)?;
        let low = e.dim(self.low);
        let start = e.b.sub(start, low)?;
        let below = e.b.sub(zero, start)?;
        let below = e.b.max(below, zero)?;
        let lo = e.b.ceil_div_int(below, self.dilation)?;
        let len = e.dim(self.len);
        let room = e.b.sub(len, start)?;
        let room = e.b.max(room, zero)?;
        let hi = e.b.ceil_div_int(room, self.dilation)?;
        let taps = e.b.int(self.taps);
        Ok(TapRange { start, dilation: self.dilation, lo, hi: e.b.min(hi, taps)? })
    }
}

/// Given the places in the operand, the taps' numbers and what is carried: what is carried on.
type Body<'b> = dyn FnMut(&mut Emitter<'_>, &[Val], &[Val], Val) -> Result<Val, Error> + 'b;

/// Loops over the taps of several dims that are inside.
pub fn tap_loops(
    e: &mut Emitter<'_>,
    ranges: &[TapRange],
    carried: Val,
    body: &mut Body<'_>,
) -> Result<Val, Error> {
    nested(e, ranges, &mut Vec::new(), &mut Vec::new(), carried, body)
}

fn nested(
    e: &mut Emitter<'_>,
    ranges: &[TapRange],
    at: &mut Vec<Val>,
    tap: &mut Vec<Val>,
    carried: Val,
    body: &mut Body<'_>,
) -> Result<Val, Error> {
    let Some((r, rest)) = ranges.split_first() else { return body(e, at, tap, carried) };
    let out = e.for_loop(r.lo, r.hi, 1, &[carried], |e, k, carried| {
        let step = e.b.mul_int(k, r.dilation)?;
        at.push(e.b.add(r.start, step)?);
        tap.push(k);
        let next = nested(e, rest, at, tap, carried[0], body)?;
        at.pop();
        tap.pop();
        Ok(vec![next])
    })?;
    Ok(out[0])
}

/// Tiles along a row: how many outputs each takes, and where the run of such tiles begins and ends.
pub type Cuts = Vec<(usize, Val, Val)>;

/// Cuts `lo..hi` into as few tiles as there can be: of `len` outputs where that is known, of `most` and, towards the end, fewer
/// otherwise. Only in the first case does no tile reach past the end.
pub fn cut(e: &mut Emitter<'_>, lo: Val, hi: Val, len: Option<i64>, most: usize) -> Result<Cuts, Error> {
    if let Some(n) = len.map(|n| n.max(1)) {
        let count = (n + most as i64 - 1) / most as i64;
        let size = (n + count - 1) / count;
        let large = n - count * (size - 1);
        let mid = e.b.add_int(lo, large * size)?;
        let cuts = [(size as usize, lo, mid), ((size - 1) as usize, mid, hi)];
        return Ok(if large == count { vec![(size as usize, lo, hi)] } else { cuts.to_vec() });
    }
    let small = (2 * most).div_ceil(3);
    if small == most {
        return Ok(vec![(most, lo, hi)]);
    }
    let span = e.b.sub(hi, lo)?;
    let count = e.b.ceil_div_int(span, most as i64)?;
    let reach = e.b.mul_int(count, most as i64)?;
    let spare = e.b.sub(reach, span)?;
    let by = e.b.int((most - small) as i64);
    let few = e.b.div(spare, by)?;
    let few = e.b.min(few, count)?;
    let large = e.b.sub(count, few)?;
    let large = e.b.mul_int(large, most as i64)?;
    let mid = e.b.add(lo, large)?;
    Ok(vec![(most, lo, mid), (small, mid, hi)])
}
