//! Types of values.

use tongtu_tensor::DType;

/// The type of a value in a kernel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Ty {
    /// An n-dimensional array; rank 0 is a scalar. Every dim is at least 1.
    Tile {
        /// Element type.
        dtype: DType,
        /// Dims, outermost first.
        shape: Vec<usize>,
    },
    /// Memory of one element type with a length known at launch.
    Buffer {
        /// Element type.
        dtype: DType,
    },
    /// A window on a buffer with run-time dims and strides.
    View {
        /// Element type.
        dtype: DType,
        /// Number of dims.
        rank: usize,
    },
}

impl Ty {
    /// A tile type.
    pub fn tile(dtype: DType, shape: &[usize]) -> Ty {
        Ty::Tile { dtype, shape: shape.to_vec() }
    }
    /// A scalar type.
    pub fn scalar(dtype: DType) -> Ty {
        Ty::Tile { dtype, shape: Vec::new() }
    }
    /// The element type.
    pub fn dtype(&self) -> DType {
        match self {
            Ty::Tile { dtype, .. } | Ty::Buffer { dtype } | Ty::View { dtype, .. } => *dtype,
        }
    }
    /// Element type and dims of a tile.
    pub fn as_tile(&self) -> Option<(DType, &[usize])> {
        match self {
            Ty::Tile { dtype, shape } => Some((*dtype, shape)),
            _ => None,
        }
    }
}

impl std::fmt::Display for Ty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Ty::Tile { dtype, shape } if shape.is_empty() => write!(f, "{dtype}"),
            Ty::Tile { dtype, shape } => {
                write!(f, "{dtype}[")?;
                for (i, n) in shape.iter().enumerate() {
                    write!(f, "{}{n}", if i == 0 { "" } else { ", " })?;
                }
                write!(f, "]")
            }
            Ty::Buffer { dtype } => write!(f, "buffer<{dtype}>"),
            Ty::View { dtype, rank } => write!(f, "view<{dtype}, {rank}>"),
        }
    }
}
