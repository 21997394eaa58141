//! Ascend HiFloat8. A code is sign, dot field, exponent, mantissa: the dot field is a prefix code for the
//! width of the exponent field (`11` 4 bits, `10` 3, `01` 2, `001` 1, `0001` none), the exponent is in
//! sign-magnitude form with its leading magnitude bit implied, and the mantissa takes what is left. The dot
//! field `0000` marks 2^(mantissa - 23), or zero (NaN with the sign set) for mantissa 0.
//! Source: arXiv 2409.16626.

use std::sync::LazyLock;

/// The code of positive infinity: the first magnitude past the greatest finite one.
pub(crate) const INFINITY_CODE: u8 = 0x6f;

/// The value of the low 7 bits of a code, infinity taken as the number it would otherwise be.
fn magnitude(code: u8) -> f64 {
    let (exponent_bits, mantissa_bits) = match code {
        0x60..=0x7f => (4, 1),
        0x40..=0x5f => (3, 2),
        0x20..=0x3f => (2, 3),
        0x10..=0x1f => (1, 3),
        0x08..=0x0f => (0, 3),
        0 => return 0.0,
        _ => return libm::ldexp(1.0, code as i32 - 23),
    };
    let mantissa = code & ((1 << mantissa_bits) - 1);
    let exponent = if exponent_bits == 0 {
        0
    } else {
        let field = code >> mantissa_bits;
        let top = 1 << (exponent_bits - 1);
        let size = (field & (top - 1) | top) as i32;
        if field & top != 0 { -size } else { size }
    };
    let unit = libm::ldexp(1.0, exponent - mantissa_bits);
    unit * (mantissa | 1 << mantissa_bits) as f64
}

/// The value of a code.
pub(crate) fn decode(code: u8) -> f64 {
    let value = match code & 0x7f {
        0 if code == 0x80 => return f64::NAN,
        INFINITY_CODE => f64::INFINITY,
        low => magnitude(low),
    };
    if code & 0x80 != 0 { -value } else { value }
}

/// A value of the format that is not negative.
#[derive(Clone, Copy)]
pub(crate) struct Magnitude {
    /// The value.
    pub(crate) value: f64,
    /// Its code.
    pub(crate) code: u8,
}

/// All magnitudes in increasing order, zero first, infinity's code (as the number it would be) last.
static MAGNITUDES: LazyLock<Vec<Magnitude>> =
    LazyLock::new(|| ordered().map(|code| Magnitude { value: magnitude(code), code }).collect());

/// The greatest magnitude not above `x` (not negative), and the next one; `None` from infinity's on.
pub(crate) fn neighbours(x: f64) -> Option<(Magnitude, Magnitude)> {
    let above = MAGNITUDES.partition_point(|m| m.value <= x);
    Some((*MAGNITUDES.get(above.checked_sub(1)?)?, *MAGNITUDES.get(above)?))
}

/// Codes of all magnitudes in increasing order.
fn ordered() -> impl Iterator<Item = u8> {
    // Negative exponents run downwards in blocks of one mantissa range each.
    fn block(range: std::ops::Range<u8>, mantissas: u8) -> impl Iterator<Item = u8> {
        range.step_by(mantissas as usize).rev().flat_map(move |c| c..c + mantissas)
    }
    (0..8)
        .chain(block(0x70..0x80, 2))
        .chain(block(0x50..0x60, 4))
        .chain(block(0x30..0x40, 8))
        .chain(0x18..0x20)
        .chain(0x08..0x18)
        .chain(0x20..0x30)
        .chain(0x40..0x50)
        .chain(0x60..0x70)
}

/// The spacing of values around a number that is not negative.
pub(crate) fn spacing(x: f64) -> f64 {
    match neighbours(x) {
        Some((lower, upper)) => upper.value - lower.value,
        None => magnitude(INFINITY_CODE) - magnitude(INFINITY_CODE - 1),
    }
}
