//! Values while a model is lowered: a value of the tensor graph, its contents where they are known, or both.

use std::cell::Cell;
use std::rc::Rc;

use tongtu_graph::{Type, ValueId};
use tongtu_tensor::dim::Dim;
use tongtu_tensor::{DType, Tensor};

/// A value of the model.
#[derive(Clone, Debug)]
pub enum Val {
    /// A tensor of numbers.
    Tensor(TensorVal),
    /// A tensor of strings.
    Strings(StringsVal),
    /// A sequence.
    Sequence(SequenceVal),
    /// An optional.
    Optional(OptionalVal),
    /// The result of a node that failed.
    Poison,
}

/// A tensor of numbers.
#[derive(Clone, Debug)]
pub struct TensorVal {
    /// Element type.
    pub dtype: DType,
    /// Dims, outermost first.
    pub dims: Vec<Dim>,
    /// What is known of the elements.
    pub known: Known,
    /// The value in the graph being built, once there is one.
    pub(crate) id: Rc<Cell<Option<ValueId>>>,
}

/// What is known of a tensor's elements.
#[derive(Clone, Debug)]
pub enum Known {
    /// Nothing.
    No,
    /// All of them.
    Const(Tensor),
    /// Each, as an expression of the sizes; row-major. The tensor's dims are constants.
    Dims(Rc<[Dim]>),
}

/// A tensor of strings.
#[derive(Clone, Debug)]
pub struct StringsVal {
    /// Dims, outermost first.
    pub dims: Vec<Dim>,
    /// The elements, where known.
    pub known: Option<Rc<[String]>>,
    /// The value in the graph being built, once there is one.
    pub(crate) id: Rc<Cell<Option<ValueId>>>,
}

/// A sequence: a list known while lowering, or a value of the host.
#[derive(Clone, Debug)]
pub enum SequenceVal {
    /// The elements are known one by one.
    Known {
        /// Type of the elements.
        element: Type,
        /// The elements.
        items: Rc<Vec<Val>>,
    },
    /// A value of the graph.
    Host(ValueId, Type),
}

/// An optional: known to be there or not, or a value of the host.
#[derive(Clone, Debug)]
pub enum OptionalVal {
    /// Known.
    Known {
        /// Type of the element.
        element: Type,
        /// The element, if there is one.
        item: Option<Box<Val>>,
    },
    /// A value of the graph.
    Host(ValueId, Type),
}

impl TensorVal {
    /// The elements as dim expressions, for integer and bool tensors with known elements.
    pub fn contents(&self) -> Option<Vec<Dim>> {
        match &self.known {
            Known::Dims(d) => Some(d.to_vec()),
            Known::Const(t) if t.len() <= MAX_CONTENTS && !t.dtype().is_float() => {
                t.iter().map(|n| i64::try_from(n.to_i128()).ok().map(Dim::from)).collect()
            }
            _ => None,
        }
    }
    /// The elements, if all are known.
    pub fn constant(&self) -> Option<&Tensor> {
        match &self.known {
            Known::Const(t) => Some(t),
            _ => None,
        }
    }
}

/// Most elements of which contents are followed while lowering.
pub const MAX_CONTENTS: usize = 4096;

impl Val {
    /// A constant.
    pub fn constant(t: Tensor) -> Val {
        Val::Tensor(TensorVal {
            dtype: t.dtype(),
            dims: t.shape().iter().map(|&d| Dim::from(d as i64)).collect(),
            known: Known::Const(t),
            id: Rc::default(),
        })
    }
    /// Strings known now.
    pub fn strings(shape: &[usize], elements: Vec<String>) -> Val {
        Val::Strings(StringsVal {
            dims: shape.iter().map(|&d| Dim::from(d as i64)).collect(),
            known: Some(elements.into()),
            id: Rc::default(),
        })
    }
    /// A tensor whose elements are dim expressions; `shape` has constants only.
    pub fn symbolic(dtype: DType, shape: &[usize], elements: Vec<Dim>) -> Val {
        debug_assert_eq!(shape.iter().product::<usize>(), elements.len());
        if let Some(all) = elements.iter().map(Dim::as_const).collect::<Option<Vec<i64>>>()
            && let Ok(t) = Tensor::from_fn(dtype, shape, |i| {
                if dtype.is_float() { (all[i] as f64).into() } else { all[i].into() }
            })
        {
            return Val::constant(t);
        }
        Val::Tensor(TensorVal {
            dtype,
            dims: shape.iter().map(|&d| Dim::from(d as i64)).collect(),
            known: Known::Dims(elements.into()),
            id: Rc::default(),
        })
    }
    /// The tensor of numbers, if it is one.
    pub fn tensor(&self) -> Option<&TensorVal> {
        match self {
            Val::Tensor(t) => Some(t),
            _ => None,
        }
    }
    /// The type.
    pub fn ty(&self) -> Type {
        match self {
            Val::Tensor(t) => Type::Tensor { dtype: t.dtype, dims: t.dims.clone() },
            Val::Strings(s) => Type::Strings { dims: s.dims.clone() },
            Val::Sequence(SequenceVal::Known { element, .. }) => Type::Sequence(Box::new(element.clone())),
            Val::Optional(OptionalVal::Known { element, .. }) => Type::Optional(Box::new(element.clone())),
            Val::Sequence(SequenceVal::Host(_, t)) | Val::Optional(OptionalVal::Host(_, t)) => t.clone(),
            Val::Poison => Type::Any,
        }
    }
}
