//! What the chips take, by instruction and element type.

use tongtu_chip::Chip;
use tongtu_plan::backend::Support;
use tongtu_tensor::scalar::{Binary, Compare, Unary};
use tongtu_tensor::{CastMode, Combiner, DType, Overflow, Rounding};
use tongtu_tile::{Op, Ty};

/// The shared rewrite into simpler instructions.
const EXPAND: Support = Support::Emulated("expand");

fn no(why: impl Into<String>) -> Support {
    Support::No(why.into())
}

pub(crate) fn is_950(chip: &Chip) -> bool {
    chip.arch.contains("950")
}

/// Whether the chip knows a narrow float.
pub(crate) fn has_type(d: DType, chip: &Chip) -> bool {
    matches!(d, DType::F8E4M3FN | DType::F8E5M2) && is_950(chip)
}

/// Why elements of a type can't be held in tiles; `None` if they can.
fn refused_type(d: DType, chip: &Chip) -> Option<String> {
    match d {
        // Narrow types are held as codes where the chip knows nothing of them.
        DType::F64 => Some(format!("{} has no elements of type {d}", chip.title)),
        _ => None,
    }
}

/// Whether the vector unit has quotients of an integer type: one chip divides in f32.
pub(crate) fn divides(d: DType, chip: &Chip) -> bool {
    is_950(chip) && d.bits() == 32
}

/// Whether an instruction is taken as it is.
pub(crate) fn supports(op: &Op, operands: &[Ty], results: &[Ty], chip: &Chip) -> Support {
    for t in operands.iter().chain(results) {
        let scalar = matches!(t, Ty::Tile { shape, .. } if shape.is_empty());
        if let Some(why) = refused_type(t.dtype(), chip)
            && !(scalar && t.dtype() == DType::F64)
        {
            return no(why);
        }
    }
    if let Op::Cast { to, .. } | Op::Bitcast { to } = op
        && let Some(why) = refused_type(*to, chip)
    {
        return no(why);
    }
    let d = operands.first().map_or(DType::Bool, Ty::dtype);
    let narrow = d.is_float() && d.bits() <= 8 || d.bits() < 8;
    match op {
        Op::Binary(Binary::And | Binary::Or | Binary::Xor) if d.is_int() => Support::Native,
        Op::Unary(_) | Op::Binary(_) | Op::Compare(_) | Op::Fma {} | Op::Reduce { .. } | Op::Scan { .. }
            if narrow =>
        {
            EXPAND
        }
        Op::Compare(_) | Op::Reduce { .. } | Op::Scan { .. } if d.is_bool() => EXPAND,
        Op::Unary(u) => unary(*u, d),
        // By the scalar unit where the vector unit has no quotients.
        Op::Binary(Binary::Div) if d.is_int() => Support::Native,
        Op::Binary(b) => binary(*b, d, chip),
        Op::Compare(c)
            if d.is_int() && !d.is_signed() && !matches!(c, Compare::Eq | Compare::Ne) && !is_950(chip) =>
        {
            EXPAND
        }
        // The vendor's compilers make a product and a sum of it, each rounded.
        Op::Fma {} => EXPAND,
        Op::Cast { to, mode } => cast(d, *to, *mode, chip),
        Op::Reduce { combiner, .. } => match combiner {
            c if c.arity() == 2 && d.is_float() && d != DType::F32 => EXPAND,
            // One chip multiplies them as floats of 16 bits.
            Combiner::Mul if d.is_int() && d.bits() < 32 && !is_950(chip) => EXPAND,
            _ => Support::Native,
        },
        Op::Scan { .. } if d.is_float() && d != DType::F32 => EXPAND,
        Op::Scan { .. } => Support::Native,
        Op::MmaScaled {} => EXPAND,
        Op::Mma {} => mma(operands, chip),
        Op::AtomicReduce { .. } | Op::AtomicRmw { .. } | Op::AtomicCas { .. } => {
            no("atomics by index tiles are not part of the chip's vector unit")
        }
        _ => Support::Native,
    }
}

fn unary(u: Unary, d: DType) -> Support {
    use Unary::*;
    match u {
        // The others are made of these with less care than their class asks for.
        Exp | Log | Sqrt | Floor | Ceil => {
            if d == DType::F32 {
                Support::Native
            } else {
                EXPAND
            }
        }
        Neg | Abs if d.is_signed() => Support::Native,
        Not => Support::Native,
        IsNan if d.is_float() => Support::Native,
        _ => EXPAND,
    }
}

fn binary(b: Binary, d: DType, chip: &Chip) -> Support {
    use Binary::*;
    match b {
        Add | Sub | Mul | And | Or | Xor if !d.is_bool() || matches!(b, And | Or | Xor) => Support::Native,
        // One chip takes them with their sign.
        Max | Min | MaxNum | MinNum if d.is_int() && !d.is_signed() && !is_950(chip) => EXPAND,
        // One chip's compiler gives infinity where both are NaN.
        MaxNum | MinNum if d.is_float() && is_950(chip) => EXPAND,
        Max | Min | MaxNum | MinNum if !d.is_bool() => Support::Native,
        Div if d.is_float() => Support::Native,
        Shl | Shr if d.is_int() => Support::Native,
        _ => EXPAND,
    }
}

fn cast(from: DType, to: DType, mode: CastMode, chip: &Chip) -> Support {
    use DType::*;
    // Floats of 6 bits have no integer of their width to be rewritten into: what the rewrites need is taken as it is.
    let six = |d: DType| d.bits() == 6;
    match mode.rounding {
        Rounding::TowardZero if from == F32 && six(to) => return Support::Native,
        Rounding::NearestEven if six(from) && to == F32 => return Support::Native,
        Rounding::NearestEven => {}
        _ => return EXPAND,
    }
    let saturates = mode.overflow == Overflow::Saturate;
    let native = match (from.is_float(), to.is_float()) {
        (true, true) => {
            let pair =
                |narrow: DType| !saturates && ((from, to) == (narrow, F32) || (from, to) == (F32, narrow));
            pair(F16)
                || pair(BF16)
                || is_950(chip) && (pair(F8E4M3FN) || pair(F8E5M2))
                || from == to && !saturates
        }
        // Others do not saturate, or lose digits on the way.
        (true, false) => from == F32 && to == I32 && saturates || to.is_bool() && from == F32,
        (false, true) => to == F32 && !matches!(from, U16 | U32 | U64),
        (false, false) => !saturates,
    };
    if native { Support::Native } else { EXPAND }
}

fn mma(operands: &[Ty], chip: &Chip) -> Support {
    let [acc, a, b] = operands else { return no("takes 3 operands") };
    match chip.matrix_unit(a.dtype().name(), b.dtype().name(), acc.dtype().name()) {
        Some(_) => Support::Native,
        None => EXPAND,
    }
}
