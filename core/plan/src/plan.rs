//! Plans: the host program that runs a model.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tongtu_graph::op::AttrValue;
use tongtu_graph::{Graph, Loc, Type};
use tongtu_tensor::dim::{Dim, Sym, Symbols};
use tongtu_tensor::{DType, Tensor};

use crate::backend::Artifact;
use crate::bundle::meta;
use crate::packing::Packing;

/// A value of a [`Plan`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ValueRef(pub u32);

impl ValueRef {
    /// Position in [`Plan::values`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where a value's memory comes from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Storage {
    /// Given by the caller for each run.
    Input,
    /// A constant: an index into [`Plan::constants`].
    Constant(usize),
    /// What a packed constant was made from. No step may use it: it is kept nowhere, and unpacked where verification asks (with
    /// zeros where subnormal numbers were packed so).
    Packed {
        /// The packed form: an index into [`Plan::constants`].
        constant: usize,
        /// How it was laid out.
        packing: Packing,
    },
    /// A place in the device's arena, for the top-level steps `first..=last` (their positions). The offset is assigned when
    /// sizes are bound. Every size it depends on is bound by the inputs alone.
    Arena {
        /// The step that defines it.
        first: usize,
        /// The last step that uses it (results: past the end).
        last: usize,
    },
    /// Its own memory, counted by reference: growing values, values in loops and branches, sizes that depend on data.
    Pool,
    /// The bytes of another value under other dims.
    Alias(ValueRef),
    /// A host value: strings, sequences, optionals.
    Host,
}

/// A value: memory on one device with a type and dims.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PlanValue {
    /// Its type; dims are over the plan's symbols.
    #[serde(with = "meta::ty")]
    pub ty: Type,
    /// Where its memory comes from.
    pub storage: Storage,
    /// The device it lives on (position in the list the executor was given).
    pub device: usize,
    /// Name for people.
    pub name: Option<Arc<str>>,
}

/// An input or output of the model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Port {
    /// Name in the model.
    pub name: String,
    /// The value.
    pub value: ValueRef,
}

/// An input and the output that is its new contents. Where the output's value is an alias of the input's it is updated in
/// place, and may be larger: then the input's memory has room for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Position of the input.
    pub input: usize,
    /// Position of the output.
    pub output: usize,
    /// The dim along which the model appends: the plan keeps it first, so that what is appended comes last in memory.
    pub axis: usize,
}

/// An argument of a launch.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Arg {
    /// A value's memory.
    Buffer(ValueRef),
    /// A dim expression, passed as an `i64` scalar.
    Dim(Dim),
}

/// What a step does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum StepKind {
    /// Runs a kernel over a grid.
    Launch {
        /// Position in [`Plan::artifacts`].
        artifact: usize,
        /// Position in the artifact's entries.
        entry: usize,
        /// Number of instances along x, y and z. With an extent of 0 nothing runs.
        grid: [Dim; 3],
        /// Arguments in the kernel's order.
        args: Vec<Arg>,
        /// The group whose subgraph it helps to compute.
        group: usize,
    },
    /// Copies all bytes of one value to another, possibly on another device. Element counts are equal.
    Copy {
        /// From.
        src: ValueRef,
        /// To.
        dst: ValueRef,
    },
    /// `dst` becomes another name for the contents and dims of `src` (both of storage `Pool`, `Input`, `Constant` or `Host`).
    Assign {
        /// From.
        src: ValueRef,
        /// To.
        dst: ValueRef,
    },
    /// Writes a dim expression into an `i64` scalar.
    WriteDim {
        /// To.
        dst: ValueRef,
        /// The expression.
        dim: Dim,
    },
    /// Binds a symbol to an `i64` scalar's contents; outside the symbol's bounds is an error.
    Bind {
        /// The symbol.
        sym: Sym,
        /// The scalar.
        src: ValueRef,
    },
    /// Binds the symbols of a value's dims that are bare, from its actual dims (and checks the others).
    BindDims {
        /// The value.
        value: ValueRef,
        /// The symbols to bind anew; other dims are checked.
        fresh: Vec<Sym>,
    },
    /// Two dims must be equal.
    Guard {
        /// One.
        lhs: Dim,
        /// Other.
        rhs: Dim,
        /// What the user should know if they differ.
        message: String,
    },
    /// Runs one of two blocks by a bool scalar.
    If {
        /// Condition.
        condition: ValueRef,
        /// Run when true.
        then_block: Block,
        /// Run when false.
        else_block: Block,
    },
    /// While the bool scalar is true runs the block, which assigns it and the carried values.
    While {
        /// Condition, assigned before the loop and by the block.
        condition: ValueRef,
        /// One turn.
        body: Block,
    },
    /// An operation of the host library on host values and tensors.
    Host {
        /// Its name.
        name: String,
        /// Its parameters.
        #[serde(skip)]
        attributes: Vec<(String, AttrValue)>,
        /// Operands.
        inputs: Vec<ValueRef>,
        /// Results.
        outputs: Vec<ValueRef>,
    },
}

/// One step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Step {
    /// What it does.
    pub kind: StepKind,
    /// The device whose queue it goes to (launches and copies).
    pub device: usize,
    /// Steps of the same block that must have finished: positions. Steps of one device run in order anyway.
    pub wait: Vec<usize>,
    /// Where in the user's model it comes from.
    #[serde(with = "meta::loc")]
    pub loc: Loc,
}

impl Step {
    /// The values that the step itself reads or writes, not those of blocks inside it.
    pub fn values(&self) -> Vec<ValueRef> {
        match &self.kind {
            StepKind::Launch { args, .. } => {
                args.iter().filter_map(|a| if let Arg::Buffer(v) = a { Some(*v) } else { None }).collect()
            }
            StepKind::Copy { src, dst } | StepKind::Assign { src, dst } => vec![*src, *dst],
            StepKind::WriteDim { dst, .. } => vec![*dst],
            StepKind::Bind { src, .. } => vec![*src],
            StepKind::BindDims { value, .. } => vec![*value],
            StepKind::Guard { .. } => vec![],
            StepKind::If { condition, .. } | StepKind::While { condition, .. } => vec![*condition],
            StepKind::Host { inputs, outputs, .. } => inputs.iter().chain(outputs).copied().collect(),
        }
    }

    /// The blocks inside it.
    pub fn blocks(&self) -> impl Iterator<Item = &Block> {
        let (a, b) = match &self.kind {
            StepKind::If { then_block, else_block, .. } => (Some(then_block), Some(else_block)),
            StepKind::While { body, .. } => (Some(body), None),
            _ => (None, None),
        };
        a.into_iter().chain(b)
    }
}

/// Steps run in order.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Block {
    /// The steps.
    pub steps: Vec<Step>,
}

/// The part of the model that one or more launches compute together: what verification compares them with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Group {
    /// Name for people: kind and the operations inside.
    pub name: String,
    /// The subgraph of primitives.
    #[serde(skip)]
    pub graph: Arc<Graph>,
    /// The values given to the subgraph's inputs.
    pub inputs: Vec<ValueRef>,
    /// The values of the subgraph's outputs.
    pub outputs: Vec<ValueRef>,
    /// Where in the user's model it comes from.
    #[serde(with = "meta::loc")]
    pub loc: Loc,
    /// Floating-point (or integer) operations, a fused multiply-add being 2.
    pub flops: Dim,
    /// Bytes that must be read and written at least.
    pub bytes: Dim,
}

/// A group that the chip does not take: it runs on the host, the plan's second device, and its operands and results are copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hosted {
    /// Position in [`Plan::groups`].
    pub group: usize,
    /// Why the chip does not take it.
    pub why: String,
}

/// A host program that runs a model, with its kernels and constants.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Plan {
    /// Dim symbols.
    pub symbols: Symbols,
    /// Every value.
    pub values: Vec<PlanValue>,
    /// The model's inputs, in its order.
    pub inputs: Vec<Port>,
    /// The model's outputs, in its order.
    pub outputs: Vec<Port>,
    /// State: inputs that outputs replace.
    pub state: Vec<State>,
    /// Constants, as the kernels want them (packed weights among them).
    #[serde(skip)]
    pub constants: Vec<Tensor>,
    /// Compiled kernels.
    pub artifacts: Vec<Artifact>,
    /// The program.
    pub body: Block,
    /// What the launches compute.
    pub groups: Vec<Group>,
    /// The groups that run on the host because the chip does not take them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosted: Vec<Hosted>,
}

impl Plan {
    /// The dim of an input that the plan keeps first (see [`State`]).
    pub fn input_axis(&self, input: usize) -> usize {
        self.state.iter().find(|s| s.input == input).map_or(0, |s| s.axis)
    }
    /// The dim of an output that the plan keeps first.
    pub fn output_axis(&self, output: usize) -> usize {
        self.state.iter().find(|s| s.output == output).map_or(0, |s| s.axis)
    }
    /// The type that the model gives an input.
    pub fn input_type(&self, input: usize) -> Type {
        self.model_type(self.inputs[input].value, self.input_axis(input))
    }
    /// The type that the model gives an output.
    pub fn output_type(&self, output: usize) -> Type {
        self.model_type(self.outputs[output].value, self.output_axis(output))
    }
    fn model_type(&self, v: ValueRef, axis: usize) -> Type {
        let mut ty = self.values[v.index()].ty.clone();
        if let Type::Tensor { dims, .. } = &mut ty {
            dims.get_mut(..=axis).into_iter().for_each(|d| d.rotate_left(1));
        }
        ty
    }
    /// The element type of a value that is a tensor of numbers.
    pub fn dtype(&self, v: ValueRef) -> Option<DType> {
        self.values[v.index()].ty.as_tensor().map(|(d, _)| d)
    }
    /// The value whose memory a value is: itself, or what it is an alias of.
    pub fn root(&self, v: ValueRef) -> ValueRef {
        let mut at = v;
        while let Storage::Alias(of) = self.values[at.index()].storage {
            at = of;
        }
        at
    }
    /// The dims of a value.
    pub fn dims(&self, v: ValueRef) -> &[Dim] {
        match &self.values[v.index()].ty {
            Type::Tensor { dims, .. } | Type::Strings { dims } => dims,
            _ => &[],
        }
    }
}
