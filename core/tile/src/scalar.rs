//! The scalar instructions: numbers and finer points of what the scalar table declares.

use std::borrow::Cow;

use tongtu_tensor::DType;
use tongtu_tensor::scalar::{Binary, Compare, Unary};

use crate::op::Op;
use crate::row::{Class, Extension, OpRow, Version};

/// The version that brought them.
pub(crate) const SINCE: Version = Version::new(0, 1);

macro_rules! numbers {
    ($kind:ident $code:ident $note:ident $of:ident { $($variant:ident = $number:literal, $text:literal;)* }) => {
        /// The number in the binary form.
        pub(crate) fn $code(op: $kind) -> u32 {
            match op { $($kind::$variant => $number,)* }
        }
        /// What the one line of the scalar table leaves open.
        fn $note(op: $kind) -> &'static str {
            match op { $($kind::$variant => $text,)* }
        }
        fn $of(code: u32) -> Option<$kind> {
            match code { $($number => Some($kind::$variant),)* _ => None }
        }
    };
}

numbers! {
    Unary unary_code unary_note unary_of {
        Neg = 1, "Of a float the sign changes; NaN stays NaN.";
        Abs = 2, "Of a float the sign is cleared; NaN stays NaN.";
        Not = 3, "";
        Sign = 4, "";
        Floor = 5, "Zeros, infinities and NaN stay.";
        Ceil = 6, "Zeros, infinities and NaN stay; what rounds to zero keeps its sign.";
        Trunc = 7, "Zeros, infinities and NaN stay; what rounds to zero keeps its sign.";
        RoundEven = 8, "Zeros, infinities and NaN stay; what rounds to zero keeps its sign.";
        IsNan = 9, "";
        IsInf = 10, "";
        Popcount = 11, "";
        Clz = 12, "";
        Sqrt = 13, "sqrt(-0) = -0, sqrt(+inf) = +inf.";
        Rsqrt = 14, "rsqrt(±0) = ±inf, rsqrt(+inf) = +0, NaN below zero.";
        Exp = 15, "exp(±0) = 1, exp(-inf) = +0, exp(+inf) = +inf.";
        Exp2 = 16, "exp2(±0) = 1, exp2(-inf) = +0, exp2(+inf) = +inf.";
        Expm1 = 17, "expm1(±0) = ±0, expm1(-inf) = -1, expm1(+inf) = +inf.";
        Log = 18, "log(1) = +0, log(+inf) = +inf.";
        Log2 = 19, "log2(1) = +0, log2(±0) = -inf, log2(+inf) = +inf; NaN below zero.";
        Log1p = 20, "log1p(±0) = ±0, log1p(-1) = -inf, log1p(+inf) = +inf; NaN below -1.";
        Sin = 21, "sin(±0) = ±0; NaN at infinities. The operand is reduced exactly, however large.";
        Cos = 22, "cos(±0) = 1; NaN at infinities. The operand is reduced exactly, however large.";
        Tan = 23, "tan(±0) = ±0; NaN at infinities. The operand is reduced exactly, however large.";
        Asin = 24, "asin(±0) = ±0.";
        Acos = 25, "acos(1) = +0.";
        Atan = 26, "atan(±0) = ±0, atan(±inf) = ±π/2.";
        Sinh = 27, "sinh(±0) = ±0, sinh(±inf) = ±inf.";
        Cosh = 28, "cosh(±0) = 1, cosh(±inf) = +inf.";
        Tanh = 29, "tanh(±0) = ±0, tanh(±inf) = ±1.";
        Asinh = 30, "asinh(±0) = ±0, asinh(±inf) = ±inf.";
        Acosh = 31, "acosh(1) = +0, acosh(+inf) = +inf.";
        Atanh = 32, "atanh(±0) = ±0, atanh(±1) = ±inf.";
        Erf = 33, "erf(±0) = ±0, erf(±inf) = ±1.";
        LogGamma = 34, "lgamma(1) = lgamma(2) = +0, +inf at zero, at negative integers and at infinities.";
    }
}

numbers! {
    Binary binary_code binary_note binary_of {
        Add = 64, "Infinities of opposite sign give NaN; the sum of opposite zeros is +0.";
        Sub = 65, "Infinities of equal sign give NaN; a difference of equal numbers is +0.";
        Mul = 66, "An infinity times a zero gives NaN.";
        Div = 67, "A finite number other than zero by a zero gives an infinity, 0/0 and inf/inf NaN.";
        Rem = 68, "The result is exact. NaN if the dividend is infinite; the dividend if the divisor is.";
        Mod = 69, "The result is that of `rem`, plus the divisor where that has another sign than the divisor and is not zero, rounded once.";
        Max = 70, "";
        Min = 71, "";
        MaxNum = 72, "";
        MinNum = 73, "";
        And = 74, "";
        Or = 75, "";
        Xor = 76, "";
        Shl = 77, "";
        Shr = 78, "";
        Pow = 79, "pow(x, ±0) = 1 and pow(1, y) = 1 even for NaN; NaN for a negative base and a power that is no integer.";
        Atan2 = 80, "The sign of a zero says on which side of the cut the point lies: atan2(±0, -1) = ±π.";
        CopySign = 81, "The sign of a NaN counts as any other.";
    }
}

numbers! {
    Compare compare_code compare_note compare_of {
        Eq = 112, "Zeros of either sign are equal.";
        Ne = 113, "True if either operand is NaN.";
        Lt = 114, "";
        Le = 115, "";
        Gt = 116, "";
        Ge = 117, "";
    }
}

/// The scalar instruction of a number.
pub(crate) fn from_code(code: u32) -> Option<Op> {
    unary_of(code)
        .map(Op::Unary)
        .or_else(|| binary_of(code).map(Op::Binary))
        .or_else(|| compare_of(code).map(Op::Compare))
}

fn types(accepts: impl Fn(DType) -> bool) -> &'static str {
    match (accepts(DType::F32), accepts(DType::I32), accepts(DType::Bool)) {
        (true, true, true) => "Any element type.",
        (true, true, false) => "Floats and integers.",
        (true, false, _) => "Floats.",
        (false, true, true) => "Integers and bool.",
        (false, true, false) => "Integers.",
        _ => "Bool.",
    }
}

fn row(
    code: u32,
    name: &'static str,
    operands: &'static [&'static str],
    result: &'static str,
    rule: &'static str,
    class: Class,
    doc: [&str; 2],
) -> OpRow {
    let (ty, args) = match rule {
        "Integers and bool." | "Integers." => ("i32", ["%i", "%i"]),
        _ => ("f32", ["%a", "%b"]),
    };
    let ty = if result == "bool" { "bool" } else { ty };
    let args = args[..operands.len()].join(", ");
    OpRow {
        code,
        name,
        operands,
        result,
        rule,
        attributes: &[],
        since: SINCE,
        extension: Extension::Base,
        class,
        doc: Cow::Owned(doc.join(" ").trim().to_string()),
        example: Cow::Owned(format!("%r: {ty}[4] = {name} {args}")),
    }
}

/// The rows of the scalar instructions.
pub(crate) fn rows() -> Vec<OpRow> {
    let one = |u: &Unary| {
        let result = if u.result(DType::F32).is_bool() { "bool" } else { "as x" };
        let rule = types(|d| u.accepts(d));
        row(unary_code(*u), u.name(), &["x"], result, rule, u.class().into(), [u.doc(), unary_note(*u)])
    };
    let two = |b: &Binary| {
        let rule = types(|d| b.accepts(d));
        let doc = [b.doc(), binary_note(*b)];
        row(binary_code(*b), b.name(), &["x", "y"], "as x", rule, b.class().into(), doc)
    };
    let compare = |c: &Compare| {
        let doc = [c.doc(), compare_note(*c)];
        row(compare_code(*c), c.name(), &["x", "y"], "bool", "Any element type.", c.class().into(), doc)
    };
    let unary = Unary::ALL.iter().map(one);
    unary.chain(Binary::ALL.iter().map(two)).chain(Compare::ALL.iter().map(compare)).collect()
}
