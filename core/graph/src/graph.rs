//! Graphs, nodes, values and their types.

use std::sync::Arc;

use tongtu_tensor::DType;
use tongtu_tensor::dim::{Dim, Symbols};

use crate::op::Op;

/// A value of one [`Graph`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub u32);

impl ValueId {
    /// Position in the graph's value list.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// The type of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Type {
    /// A tensor of numbers.
    Tensor {
        /// Element type.
        dtype: DType,
        /// Dims, outermost first.
        dims: Vec<Dim>,
    },
    /// A tensor of strings, on the host.
    Strings {
        /// Dims, outermost first.
        dims: Vec<Dim>,
    },
    /// A sequence of values of one type, on the host.
    Sequence(Box<Type>),
    /// A value or nothing, on the host.
    Optional(Box<Type>),
    /// A tensor of unknown rank (only as an element of a sequence or optional).
    Any,
}

impl Type {
    /// A tensor type.
    pub fn tensor(dtype: DType, dims: impl Into<Vec<Dim>>) -> Type {
        Type::Tensor { dtype, dims: dims.into() }
    }
    /// A scalar type.
    pub fn scalar(dtype: DType) -> Type {
        Type::Tensor { dtype, dims: Vec::new() }
    }
    /// Element type and dims, for a tensor of numbers.
    pub fn as_tensor(&self) -> Option<(DType, &[Dim])> {
        match self {
            Type::Tensor { dtype, dims } => Some((*dtype, dims)),
            _ => None,
        }
    }
}

/// Where an operation came from in the user's own model: a path of names, outermost first, such as
/// `encoder/layer.3/MatMul_12 (MatMul)`. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Loc(pub Option<Arc<str>>);

impl Loc {
    /// A location.
    pub fn new(text: impl AsRef<str>) -> Loc {
        Loc(Some(Arc::from(text.as_ref())))
    }
}

impl std::fmt::Display for Loc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.as_deref().unwrap_or("unknown location"))
    }
}

/// A value: its type and, for people, a name.
#[derive(Clone, Debug)]
pub struct Value {
    /// Type.
    pub ty: Type,
    /// The name in the user's model, where it has one.
    pub name: Option<Arc<str>>,
}

/// One operation of a graph.
#[derive(Clone, Debug)]
pub struct Node {
    /// What it does.
    pub op: Op,
    /// Operands.
    pub inputs: Vec<ValueId>,
    /// Results, each defined here and nowhere else.
    pub outputs: Vec<ValueId>,
    /// Where it came from.
    pub loc: Loc,
}

/// Operations in execution order. Every operand is an input of the graph or the result of an earlier node; regions
/// and definitions inside ops are closed graphs that see nothing of the outer one but the module's symbols.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// Name, for people.
    pub name: String,
    /// Every value, indexed by [`ValueId`].
    pub values: Vec<Value>,
    /// Parameters.
    pub inputs: Vec<ValueId>,
    /// Results.
    pub outputs: Vec<ValueId>,
    /// Operations in execution order.
    pub nodes: Vec<Node>,
    /// State: pairs of an input's and an output's position. The output is the input's new contents, updated in place.
    pub state: Vec<(usize, usize)>,
}

impl Graph {
    /// The type of a value.
    pub fn ty(&self, v: ValueId) -> &Type {
        &self.values[v.index()].ty
    }
    /// The dims of a tensor value (empty for others).
    pub fn dims(&self, v: ValueId) -> &[Dim] {
        match self.ty(v) {
            Type::Tensor { dims, .. } | Type::Strings { dims } => dims,
            _ => &[],
        }
    }
    /// The element type of a tensor value (`Bool` for others; ask [`Graph::ty`] where that matters).
    pub fn dtype(&self, v: ValueId) -> DType {
        self.ty(v).as_tensor().map_or(DType::Bool, |(d, _)| d)
    }
    /// Adds a value that nothing defines yet.
    pub fn add_value(&mut self, ty: Type, name: Option<Arc<str>>) -> ValueId {
        let id = ValueId(self.values.len() as u32);
        self.values.push(Value { ty, name });
        id
    }
    /// Adds a parameter.
    pub fn add_input(&mut self, ty: Type, name: Option<Arc<str>>) -> ValueId {
        let id = self.add_value(ty, name);
        self.inputs.push(id);
        id
    }
    /// For each value, the position of the node that defines it (`None` for inputs).
    pub fn definitions(&self) -> Vec<Option<usize>> {
        let mut defs = vec![None; self.values.len()];
        for (i, n) in self.nodes.iter().enumerate() {
            for &o in &n.outputs {
                defs[o.index()] = Some(i);
            }
        }
        defs
    }
    /// The name of a value for people and text: its own, or its number.
    pub fn value_name(&self, v: ValueId) -> String {
        self.values[v.index()].name.as_deref().map_or_else(|| v.0.to_string(), str::to_string)
    }
}

/// A graph with the symbols that its dims, and those of every graph inside it, are written in.
#[derive(Clone, Debug, Default)]
pub struct Module {
    /// Dim symbols with their bounds.
    pub symbols: Symbols,
    /// The graph that runs.
    pub graph: Graph,
}
