//! The scalar operations, declared once: the tensor graph applies them elementwise to tensors, the tile
//! instruction set to tiles. Each row gives the variant, its name in every text form, its numeric class
//! and its meaning. All of them are total.

/// How exactly a back end must compute an operation, given exact operands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NumericClass {
    /// Bit for bit the reference result.
    Exact,
    /// The exact real result, rounded once to nearest even.
    CorrectlyRounded,
    /// At most this many units in the last place of the result type from the real result.
    Ulp(f32),
}

use NumericClass::{CorrectlyRounded, Exact, Ulp};

macro_rules! scalar_table {
    ($(#[$emeta:meta])* $ename:ident { $($variant:ident $name:literal $class:expr, $doc:literal;)* }) => {
        $(#[$emeta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $ename { $(#[doc = $doc] $variant,)* }
        impl $ename {
            /// Every operation of this kind, in table order.
            pub const ALL: &'static [$ename] = &[$($ename::$variant,)*];
            /// The name in text forms.
            pub fn name(self) -> &'static str { match self { $($ename::$variant => $name,)* } }
            /// The meaning, in one line.
            pub fn doc(self) -> &'static str { match self { $($ename::$variant => $doc,)* } }
            /// The numeric contract for floating-point operands (integers are always exact).
            pub fn class(self) -> NumericClass { match self { $($ename::$variant => $class,)* } }
            /// The operation with this name.
            pub fn from_name(name: &str) -> Option<$ename> { match name { $($name => Some($ename::$variant),)* _ => None } }
        }
        impl std::fmt::Display for $ename {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str(self.name()) }
        }
    };
}

scalar_table! {
    /// Operations of one operand; the result has the operand's type unless said otherwise.
    Unary {
        Neg "neg" Exact, "Negation; integers wrap.";
        Abs "abs" Exact, "Absolute value; the least signed integer wraps to itself.";
        Not "not" Exact, "Bitwise complement of integers, logical complement of bool.";
        Sign "sign" Exact, "-1, 0 or 1 with the operand's sign; a zero keeps its sign, NaN stays NaN.";
        Floor "floor" Exact, "Largest integral value not above the operand.";
        Ceil "ceil" Exact, "Smallest integral value not below the operand.";
        Trunc "trunc" Exact, "Integral value towards zero.";
        RoundEven "round_even" Exact, "Nearest integral value, ties to even.";
        IsNan "is_nan" Exact, "bool: the operand is NaN.";
        IsInf "is_inf" Exact, "bool: the operand is an infinity.";
        Popcount "popcount" Exact, "Number of one bits of an integer.";
        Clz "clz" Exact, "Number of leading zero bits of an integer; its width for zero.";
        Sqrt "sqrt" CorrectlyRounded, "Square root; NaN below zero.";
        Rsqrt "rsqrt" Ulp(2.0), "Reciprocal square root.";
        Exp "exp" Ulp(2.0), "e to the power of the operand.";
        Exp2 "exp2" Ulp(2.0), "2 to the power of the operand.";
        Expm1 "expm1" Ulp(3.0), "exp(x) - 1 without cancellation near zero.";
        Log "log" Ulp(2.0), "Natural logarithm; NaN below zero, -inf at zero.";
        Log2 "log2" Ulp(2.0), "Logarithm to base 2.";
        Log1p "log1p" Ulp(3.0), "log(1 + x) without cancellation near zero.";
        Sin "sin" Ulp(4.0), "Sine of radians.";
        Cos "cos" Ulp(4.0), "Cosine of radians.";
        Tan "tan" Ulp(6.0), "Tangent of radians.";
        Asin "asin" Ulp(4.0), "Inverse sine; NaN outside [-1, 1].";
        Acos "acos" Ulp(4.0), "Inverse cosine; NaN outside [-1, 1].";
        Atan "atan" Ulp(4.0), "Inverse tangent.";
        Sinh "sinh" Ulp(6.0), "Hyperbolic sine.";
        Cosh "cosh" Ulp(4.0), "Hyperbolic cosine.";
        Tanh "tanh" Ulp(4.0), "Hyperbolic tangent.";
        Asinh "asinh" Ulp(6.0), "Inverse hyperbolic sine.";
        Acosh "acosh" Ulp(6.0), "Inverse hyperbolic cosine; NaN below 1.";
        Atanh "atanh" Ulp(6.0), "Inverse hyperbolic tangent; NaN outside [-1, 1].";
        Erf "erf" Ulp(4.0), "Error function.";
        LogGamma "lgamma" Ulp(16.0), "Natural logarithm of the absolute value of the gamma function.";
    }
}

scalar_table! {
    /// Operations of two operands of one type; the result has that type.
    Binary {
        Add "add" CorrectlyRounded, "Sum; integers wrap, bool is `or`.";
        Sub "sub" CorrectlyRounded, "Difference; integers wrap.";
        Mul "mul" CorrectlyRounded, "Product; integers wrap, bool is `and`.";
        Div "div" CorrectlyRounded, "Quotient; integers truncate, by zero gives 0, the least value by -1 wraps to itself.";
        Rem "rem" Exact, "Remainder with the dividend's sign (C's fmod); integers by zero give 0, floats NaN.";
        Mod "mod" Exact, "Remainder with the divisor's sign (Python's %); integers by zero give 0, floats NaN.";
        Max "max" Exact, "Greater operand; NaN if either is; +0 above -0.";
        Min "min" Exact, "Lesser operand; NaN if either is; -0 below +0.";
        MaxNum "max_num" Exact, "Greater operand; the other one if one is NaN.";
        MinNum "min_num" Exact, "Lesser operand; the other one if one is NaN.";
        And "and" Exact, "Bitwise and of integers, logical and of bool.";
        Or "or" Exact, "Bitwise or of integers, logical or of bool.";
        Xor "xor" Exact, "Bitwise exclusive or of integers, logical of bool.";
        Shl "shl" Exact, "Shift left; an amount of the width or more (or negative) gives 0.";
        Shr "shr" Exact, "Shift right, arithmetic for signed types; an amount of the width or more (or negative) acts as shifting every bit out.";
        Pow "pow" Ulp(8.0), "First operand to the power of the second (C's pow); integer powers wrap, a negative exponent gives the truncated quotient.";
        Atan2 "atan2" Ulp(6.0), "Angle of the point (second, first) in radians.";
        CopySign "copysign" Exact, "Magnitude of the first operand, sign of the second.";
    }
}

scalar_table! {
    /// Comparisons of two operands of one type; the result is bool. With a NaN all are false but `ne`.
    Compare {
        Eq "eq" Exact, "Equal.";
        Ne "ne" Exact, "Not equal.";
        Lt "lt" Exact, "Less.";
        Le "le" Exact, "Less or equal.";
        Gt "gt" Exact, "Greater.";
        Ge "ge" Exact, "Greater or equal.";
    }
}

mod approx;
mod eval;

pub use approx::{Approx, approx_binary, approx_cast, approx_compare, approx_fma, approx_unary, ulp};
pub use eval::{eval_binary, eval_compare, eval_fma, eval_unary};

use crate::DType;

/// The fused multiply-add `a * b + c`, the one operation of three operands: rounded once; integers wrap.
pub const FMA_CLASS: NumericClass = CorrectlyRounded;

impl Unary {
    /// Whether the operation is defined for elements of this type.
    pub fn accepts(self, dtype: DType) -> bool {
        match self {
            Unary::Not => !dtype.is_float(),
            Unary::Popcount | Unary::Clz => dtype.is_int(),
            Unary::Neg | Unary::Abs | Unary::Sign => !dtype.is_bool(),
            _ => dtype.is_float(),
        }
    }

    /// The type of the result for operands of this type.
    pub fn result(self, dtype: DType) -> DType {
        match self {
            Unary::IsNan | Unary::IsInf => DType::Bool,
            _ => dtype,
        }
    }
}

impl Binary {
    /// Whether the operation is defined for elements of this type.
    pub fn accepts(self, dtype: DType) -> bool {
        match self {
            Binary::And | Binary::Or | Binary::Xor => !dtype.is_float(),
            Binary::Shl | Binary::Shr => dtype.is_int(),
            Binary::Atan2 | Binary::CopySign => dtype.is_float(),
            Binary::Sub | Binary::Div | Binary::Rem | Binary::Mod | Binary::Pow => !dtype.is_bool(),
            Binary::Add | Binary::Mul | Binary::Max | Binary::Min | Binary::MaxNum | Binary::MinNum => true,
        }
    }
}
