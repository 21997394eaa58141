//! Large tiles to small ones: rewrites a kernel whose tiles exceed the registers into loops over tiles that fit.
//!
//! Every tile becomes one of two things. A *lazy* tile is computed piece by piece inside the loops of whatever uses it, so chains of
//! elementwise operations, and the loads before them, end in one loop. A *stored* tile lives in scratch: values carried by
//! loops, operands of matrix products, results of reductions, and what more than one user would compute twice.
//! Matrix products keep a register tile of the accumulator over the summed dim. Scalars stay as they are.

mod access;
mod piece;
mod roots;
mod uses;

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use tongtu_chip::Chip;
use tongtu_tensor::DType;
use tongtu_tile::{Block, Inst, Kernel, KernelBuilder, Op, ParamKind, TileError, Ty, Val};

use uses::Uses;

/// What the pass must know of a machine.
#[derive(Clone, Copy, Debug)]
pub struct Registers {
    /// Bits of a vector register.
    pub bits: usize,
    /// Number of vector registers.
    pub count: usize,
}

impl Registers {
    /// The vector registers of a chip.
    pub fn of(chip: &Chip) -> Registers {
        Registers { bits: chip.vector.bits as usize, count: chip.vector.registers as usize }
    }

    fn lanes(&self, d: DType) -> usize {
        (self.bits / (d.bits().clamp(8, 64) as usize)).max(1)
    }

    /// Bytes that all registers hold.
    fn bytes(&self) -> usize {
        self.bits / 8 * self.count
    }
}

/// Whether a kernel has a tile that exceeds the registers.
pub fn is_large(kernel: &Kernel, registers: Registers) -> bool {
    kernel.types.iter().any(|t| match t {
        Ty::Tile { dtype, shape } => {
            dtype.bytes_for(shape.iter().product()).is_none_or(|bytes| bytes > registers.bytes())
        }
        _ => false,
    })
}

/// The same kernel over tiles that fit the registers; it must have passed the verifier.
///
/// # Errors
/// The rewritten program breaks a rule of the instruction set, which is a fault of this pass.
pub fn split(kernel: &Kernel, registers: Registers) -> Result<Kernel, TileError> {
    let mut s = Split {
        kernel,
        registers,
        uses: Uses::of(kernel),
        b: KernelBuilder::new(&kernel.name),
        defs: HashMap::new(),
        panels: HashMap::new(),
        memo: HashMap::new(),
        dense: HashSet::new(),
    };
    for p in &kernel.params {
        let v = match p.kind {
            ParamKind::Buffer(d, access) => s.b.buffer(&p.name, d, access),
            ParamKind::Scalar(d) => s.b.scalar(&p.name, d),
        };
        s.defs.insert(p.value, Def::Whole(v));
    }
    s.block(&kernel.body)?;
    let mut out = s.b.finish();
    let mut allocs = Vec::new();
    hoist(&mut out.body, &mut allocs);
    out.body.insts.splice(0..0, allocs);
    Ok(out)
}

/// Scratch stands in the body itself.
fn hoist(block: &mut Block, allocs: &mut Vec<Inst>) {
    for mut inst in std::mem::take(&mut block.insts) {
        inst.blocks.iter_mut().for_each(|b| hoist(b, allocs));
        let to = if matches!(inst.op, Op::Alloc { .. }) { &mut *allocs } else { &mut block.insts };
        to.push(inst);
    }
}

/// What a value of the old kernel is in the new one.
#[derive(Clone)]
enum Def {
    /// A scalar, buffer or view.
    Whole(Val),
    /// In scratch.
    Stored(Stored),
    /// Computed where it is used.
    Lazy(Rc<Lazy>),
}

#[derive(Clone, PartialEq)]
struct Stored {
    buffer: Val,
    shape: Vec<usize>,
    /// For the right operand of a product: columns lie in panels of this many, [columns / panel, rows, panel], and parts are
    /// one panel wide.
    panel: Option<usize>,
}

struct Lazy {
    inst: Inst,
    shape: Vec<usize>,
}

/// A part of a tile: offsets (scalars of the new kernel) and sizes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Part {
    at: Vec<Val>,
    shape: Vec<usize>,
}

type Done<T> = Result<T, TileError>;

struct Split<'a> {
    kernel: &'a Kernel,
    registers: Registers,
    uses: Uses,
    b: KernelBuilder,
    defs: HashMap<Val, Def>,
    /// The right operands of products, by the product's result.
    panels: HashMap<Val, Stored>,
    /// Parts of lazy tiles computed already in the current block.
    memo: HashMap<(Val, Part), Val>,
    /// Views whose last dim lies element by element.
    dense: HashSet<Val>,
}

impl Split<'_> {
    fn shape(&self, v: Val) -> Vec<usize> {
        self.kernel.ty(v).as_tile().map(|(_, s)| s.to_vec()).unwrap_or_default()
    }

    fn is_tile(&self, v: Val) -> bool {
        matches!(self.kernel.ty(v), Ty::Tile { shape, .. } if !shape.is_empty())
    }

    fn broken<T>(&self, what: &str) -> Done<T> {
        Err(TileError::Structure { kernel: self.kernel.name.clone(), detail: format!("split: {what}") })
    }

    /// A scalar, buffer or view in the new kernel.
    fn whole(&mut self, v: Val) -> Done<Val> {
        match self.defs.get(&v) {
            Some(Def::Whole(w)) => Ok(*w),
            Some(_) => self.broken("a tile stands where a scalar is wanted"),
            None => self.broken("a value is not defined"),
        }
    }

    fn wholes(&mut self, vals: &[Val]) -> Done<Vec<Val>> {
        vals.iter().map(|&v| self.whole(v)).collect()
    }

    /// Runs `f` with the builder inside a loop.
    fn for_loop(
        &mut self,
        (lo, hi, step): (Val, Val, Val),
        init: &[Val],
        f: impl FnOnce(&mut Self, Val, &[Val]) -> Done<Vec<Val>>,
    ) -> Done<Vec<Val>> {
        let memo = self.memo.clone();
        let mut b = std::mem::replace(&mut self.b, KernelBuilder::new(""));
        let r = b.for_loop(lo, hi, step, init, |b, i, carried| {
            std::mem::swap(b, &mut self.b);
            let r = f(self, i, carried);
            std::mem::swap(b, &mut self.b);
            r
        });
        self.b = b;
        self.memo = memo;
        r
    }

    fn while_loop(
        &mut self,
        condition: Val,
        init: &[Val],
        f: impl FnOnce(&mut Self, &[Val]) -> Done<(Val, Vec<Val>)>,
    ) -> Done<Vec<Val>> {
        let memo = self.memo.clone();
        let mut b = std::mem::replace(&mut self.b, KernelBuilder::new(""));
        let r = b.while_loop(condition, init, |b, carried| {
            std::mem::swap(b, &mut self.b);
            let r = f(self, carried);
            std::mem::swap(b, &mut self.b);
            r
        });
        self.b = b;
        self.memo = memo;
        r
    }

    fn branch(&mut self, condition: Val, f: impl Fn(&mut Self, usize) -> Done<Vec<Val>>) -> Done<Vec<Val>> {
        let memo = self.memo.clone();
        let mut b = std::mem::replace(&mut self.b, KernelBuilder::new(""));
        let this = std::cell::RefCell::new(self);
        let side = |b: &mut KernelBuilder, i: usize| {
            let mut s = this.borrow_mut();
            std::mem::swap(b, &mut s.b);
            let r = f(&mut s, i);
            s.memo = memo.clone();
            std::mem::swap(b, &mut s.b);
            r
        };
        let r = b.if_else(condition, |b| side(b, 0), |b| side(b, 1));
        let s = this.into_inner();
        s.b = b;
        r
    }

    /// Runs `f` for every part of a tile, full ones in loops, what is left over apart.
    fn parts(
        &mut self,
        shape: &[usize],
        piece: &[usize],
        f: &mut dyn FnMut(&mut Self, &Part) -> Done<()>,
    ) -> Done<()> {
        self.parts_from(shape, piece, &mut Part { at: Vec::new(), shape: Vec::new() }, f)
    }

    fn parts_from(
        &mut self,
        shape: &[usize],
        piece: &[usize],
        part: &mut Part,
        f: &mut dyn FnMut(&mut Self, &Part) -> Done<()>,
    ) -> Done<()> {
        let d = part.at.len();
        let (Some(&n), Some(&p)) = (shape.get(d), piece.get(d)) else { return f(self, part) };
        let p = p.clamp(1, n);
        let whole = n / p * p;
        let mut go = |s: &mut Self, at: Val, size: usize| {
            part.at.push(at);
            part.shape.push(size);
            let r = s.parts_from(shape, piece, part, f);
            part.at.pop();
            part.shape.pop();
            r
        };
        if whole == p {
            let zero = self.b.int(0);
            go(self, zero, p)?;
        } else {
            let bounds = (self.b.int(0), self.b.int(whole as i64), self.b.int(p as i64));
            self.for_loop(bounds, &[], |s, i, _| go(s, i, p).map(|_| Vec::new()))?;
        }
        if whole < n {
            let at = self.b.int(whole as i64);
            go(self, at, n - whole)?;
        }
        Ok(())
    }
}
