//! How reductions, scans and scatters combine two elements, in graphs and in tiles.

use crate::scalar::Binary;
use crate::{DType, Num};

macro_rules! combiners {
    ($($(#[$meta:meta])* $variant:ident = $name:literal),* $(,)?) => {
        /// How reduce, scan, scatter and atomics combine two elements. `ArgMax` and its kin take two operands,
        /// a value and an integer index, and keep the pair that wins; NaN wins over numbers.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Combiner { $($(#[$meta])* $variant,)* }
        impl Combiner {
            /// Every case, in order.
            pub const ALL: &'static [Combiner] = &[$(Combiner::$variant,)*];
            /// The name in text.
            pub fn name(self) -> &'static str { match self { $(Combiner::$variant => $name,)* } }
            /// The combiner with this name.
            pub fn from_name(name: &str) -> Option<Combiner> { match name { $($name => Some(Combiner::$variant),)* _ => None } }
        }
    };
}

combiners! {
    /// Sum.
    Add = "add",
    /// Product.
    Mul = "mul",
    /// Greater; NaN if either is.
    Max = "max",
    /// Lesser; NaN if either is.
    Min = "min",
    /// Bitwise or logical and.
    And = "and",
    /// Bitwise or logical or.
    Or = "or",
    /// Bitwise or logical exclusive or.
    Xor = "xor",
    /// Greater value; of equals the lower index.
    ArgMax = "argmax",
    /// Lesser value; of equals the lower index.
    ArgMin = "argmin",
    /// Greater value; of equals the higher index.
    ArgMaxLast = "argmax_last",
    /// Lesser value; of equals the higher index.
    ArgMinLast = "argmin_last",
    /// The newer element replaces the older (scatters only; of updates to one place, the last in row-major order stays).
    Replace = "replace",
}

impl Combiner {
    /// Number of operands combined together.
    pub fn arity(self) -> usize {
        match self {
            Combiner::ArgMax | Combiner::ArgMin | Combiner::ArgMaxLast | Combiner::ArgMinLast => 2,
            _ => 1,
        }
    }
    /// The element that changes nothing, which combining no elements gives; for the arg-combiners the value that loses to every other.
    /// A sum of floats begins at 0, so it is never -0.
    pub fn identity(self, dtype: DType) -> Num {
        let number = |n: i64| if dtype.is_float() { Num::Float(n as f64) } else { Num::Int(n.into()) };
        let infinite = dtype.float_format().is_some_and(|f| f.has_inf);
        match self {
            Combiner::Mul => number(1),
            Combiner::And if dtype.is_bool() => number(1),
            Combiner::And => dtype.decode(u64::MAX >> (64 - dtype.bits())),
            Combiner::Max | Combiner::ArgMax | Combiner::ArgMaxLast if infinite => {
                Num::Float(f64::NEG_INFINITY)
            }
            Combiner::Min | Combiner::ArgMin | Combiner::ArgMinLast if infinite => Num::Float(f64::INFINITY),
            Combiner::Max | Combiner::ArgMax | Combiner::ArgMaxLast => dtype.min_value(),
            Combiner::Min | Combiner::ArgMin | Combiner::ArgMinLast => dtype.max_value(),
            Combiner::Add | Combiner::Or | Combiner::Xor | Combiner::Replace => number(0),
        }
    }
    /// The scalar operation, for the combiners that are one.
    pub fn binary(self) -> Option<Binary> {
        Some(match self {
            Combiner::Add => Binary::Add,
            Combiner::Mul => Binary::Mul,
            Combiner::Max => Binary::Max,
            Combiner::Min => Binary::Min,
            Combiner::And => Binary::And,
            Combiner::Or => Binary::Or,
            Combiner::Xor => Binary::Xor,
            _ => return None,
        })
    }
}
