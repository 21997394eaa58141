//! Kernels, blocks and instructions.

use std::collections::BTreeSet;
use std::sync::Arc;

use tongtu_tensor::DType;

use crate::op::Op;
use crate::row::Extension;
use crate::types::Ty;

/// A value of one [`Kernel`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Val(pub u32);

impl Val {
    /// Position in the kernel's type list.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What a kernel does with a buffer parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Reads only.
    Read,
    /// Writes only.
    Write,
    /// Reads and writes.
    ReadWrite,
}

/// Kind of a kernel parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ParamKind {
    /// Memory of this element type.
    Buffer(DType, Access),
    /// A scalar of this element type.
    Scalar(DType),
}

/// A kernel parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Name.
    pub name: String,
    /// Kind.
    pub kind: ParamKind,
    /// Its value in the body.
    pub value: Val,
}

/// Liberties an instruction may take beyond its numeric class. None is set unless a front end or schedule sets it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flags {
    /// A product and a sum may round once.
    pub contract: bool,
    /// Sums and products may be regrouped.
    pub reassoc: bool,
    /// Subnormals may be flushed and a faster approximation with twice the class's error used.
    pub approx: bool,
}

/// One instruction.
#[derive(Clone, Debug, PartialEq)]
pub struct Inst {
    /// What it does.
    pub op: Op,
    /// Operands.
    pub operands: Vec<Val>,
    /// Results.
    pub results: Vec<Val>,
    /// Regions (loop and branch bodies).
    pub blocks: Vec<Block>,
    /// Liberties.
    pub flags: Flags,
    /// Where it came from, if known.
    pub loc: Option<Arc<str>>,
}

/// A sequence of instructions with parameters and results. Inner blocks see the values defined before them in outer ones.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Block {
    /// Parameters (induction variable, carried values).
    pub params: Vec<Val>,
    /// Instructions in order.
    pub insts: Vec<Inst>,
    /// Values given back to the enclosing instruction.
    pub results: Vec<Val>,
}

/// A function run once by every program instance of a grid.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Kernel {
    /// Name.
    pub name: String,
    /// Parameters in launch order.
    pub params: Vec<Param>,
    /// The type of every value.
    pub types: Vec<Ty>,
    /// The body; it has no parameters and no results.
    pub body: Block,
}

impl Kernel {
    /// The extensions it needs, the base set among them: those of its instructions and of its values' element types.
    pub fn extensions(&self) -> BTreeSet<Extension> {
        fn block(b: &Block, out: &mut BTreeSet<Extension>) {
            for i in &b.insts {
                out.insert(i.op.extension());
                i.blocks.iter().for_each(|b| block(b, out));
            }
        }
        let mut out: BTreeSet<Extension> = self.types.iter().map(|t| Extension::of(t.dtype())).collect();
        out.insert(Extension::Base);
        block(&self.body, &mut out);
        out
    }
    /// The type of a value.
    pub fn ty(&self, v: Val) -> &Ty {
        &self.types[v.index()]
    }
    /// Adds a value of a type, defined by whoever asks.
    pub fn new_value(&mut self, ty: Ty) -> Val {
        let v = Val(self.types.len() as u32);
        self.types.push(ty);
        v
    }
}

/// Kernels compiled and shipped together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Module {
    /// The kernels; names are unique.
    pub kernels: Vec<Kernel>,
}
