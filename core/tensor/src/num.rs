//! The exact value of one element, and conversion between element types with one rounding.

use std::fmt;

use crate::dtype::{DType, FloatFormat};
use crate::hif8;

/// The exact value of one element of any type.
///
/// Elements of floating-point types are `Float`, all others `Int` (bool: 0 or 1). `f64` holds every value of
/// every floating-point type, `i128` of every integer type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Num {
    /// Element of a floating-point type.
    Float(f64),
    /// Element of an integer type, or bool.
    Int(i128),
}

/// What a value outside the range of the target type becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Overflow {
    /// The nearest finite value of the target type, for infinities too.
    Saturate,
    /// What the format says. Floats: infinity where there is one, else NaN where there is one, else the
    /// greatest finite value. Integers: the value modulo 2^bits, 0 for infinities.
    #[default]
    Format,
}

/// How an inexact conversion to a floating-point type rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Rounding {
    /// To the nearest value, ties to the even one (HiF8: away from zero, f8e8m0: up).
    #[default]
    NearestEven,
    /// Towards zero.
    TowardZero,
    /// Towards negative infinity.
    Down,
    /// Towards positive infinity.
    Up,
}

/// How to convert between element types. The default is what the formats themselves say, to nearest even.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct CastMode {
    /// Treatment of values out of range.
    pub overflow: Overflow,
    /// Rounding to floating-point types. Conversion of a float to an integer always truncates.
    pub rounding: Rounding,
}

impl CastMode {
    /// Every mode, the default first.
    pub fn all() -> impl Iterator<Item = CastMode> {
        let roundings = [Rounding::NearestEven, Rounding::TowardZero, Rounding::Down, Rounding::Up];
        let modes = roundings.map(|rounding| {
            [Overflow::Format, Overflow::Saturate].map(|overflow| CastMode { overflow, rounding })
        });
        modes.into_iter().flatten()
    }
}

impl Overflow {
    /// The name in text forms.
    pub fn name(self) -> &'static str {
        match self {
            Overflow::Saturate => "saturate",
            Overflow::Format => "format",
        }
    }
}

impl Rounding {
    /// All of them.
    pub const ALL: [Rounding; 4] =
        [Rounding::NearestEven, Rounding::TowardZero, Rounding::Down, Rounding::Up];
    /// The name in text forms.
    pub fn name(self) -> &'static str {
        match self {
            Rounding::NearestEven => "nearest_even",
            Rounding::TowardZero => "toward_zero",
            Rounding::Down => "down",
            Rounding::Up => "up",
        }
    }
}

impl CastMode {
    /// The mode with these names.
    pub fn from_names(overflow: &str, rounding: &str) -> Option<CastMode> {
        let overflow = [Overflow::Saturate, Overflow::Format].into_iter().find(|o| o.name() == overflow)?;
        let all = [Rounding::NearestEven, Rounding::TowardZero, Rounding::Down, Rounding::Up];
        let rounding = all.into_iter().find(|r| r.name() == rounding)?;
        Some(CastMode { overflow, rounding })
    }
}

impl Num {
    /// The value as `f64`; integers beyond 2^53 round to nearest even.
    pub fn to_f64(self) -> f64 {
        match self {
            Num::Float(x) => x,
            Num::Int(n) => n as f64,
        }
    }

    /// The value as an integer; floats truncate and saturate, NaN is 0.
    pub fn to_i128(self) -> i128 {
        match self {
            Num::Float(x) => x as i128,
            Num::Int(n) => n,
        }
    }

    /// Whether the value is other than zero; true of NaN.
    pub fn is_true(self) -> bool {
        match self {
            Num::Float(x) => x != 0.0,
            Num::Int(n) => n != 0,
        }
    }

    /// Whether the value is NaN.
    pub fn is_nan(self) -> bool {
        matches!(self, Num::Float(x) if x.is_nan())
    }
}

impl From<bool> for Num {
    fn from(b: bool) -> Num {
        Num::Int(b as i128)
    }
}

impl From<f64> for Num {
    fn from(x: f64) -> Num {
        Num::Float(x)
    }
}

impl From<i64> for Num {
    fn from(n: i64) -> Num {
        Num::Int(n.into())
    }
}

impl fmt::Display for Num {
    /// Floats print the shortest decimal that reads back as the same `f64`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Num::Float(x) => write!(f, "{x:?}"),
            Num::Int(n) => write!(f, "{n}"),
        }
    }
}

/// Converts an element of type `from` to type `to`; defined for every value.
///
/// To a float: the exact value, rounded once. To an integer: floats truncate towards zero, NaN becomes 0, and
/// what is out of range follows [`Overflow`]. To bool: whether the value is other than zero. To f8e8m0: NaN for
/// negative values, and for zero and anything else below half its least value unless saturating.
pub fn cast(value: Num, from: DType, to: DType, mode: CastMode) -> Num {
    let value = match value {
        Num::Int(_) if from.is_float() => Num::Float(value.to_f64()),
        Num::Float(_) if !from.is_float() => Num::Int(value.to_i128()),
        value => value,
    };
    to.decode(to.encode_rounded(value, mode))
}

impl DType {
    /// The value of a bit pattern, of which the low [`bits`](DType::bits) count.
    pub fn decode(self, bits: u64) -> Num {
        match self {
            DType::Bool => Num::from(bits & 0xff != 0),
            DType::F64 => Num::Float(f64::from_bits(bits)),
            DType::F32 => Num::Float(f32::from_bits(bits as u32).into()),
            DType::BF16 => Num::Float(f32::from_bits((bits as u32) << 16).into()),
            DType::F16 => Num::Float(half::f16::from_bits(bits as u16).into()),
            DType::HiF8 => Num::Float(hif8::decode(bits as u8)),
            DType::F8E8M0 => Num::Float(match bits & 0xff {
                255 => f64::NAN,
                exponent => pow2(exponent as i32 - 127),
            }),
            _ => match self.float_format() {
                Some(format) => Num::Float(decode_float(bits, self.bits(), &format)),
                None => {
                    let unused = 128 - self.bits();
                    let top = u128::from(bits) << unused;
                    Num::Int(match self.is_signed() {
                        true => top as i128 >> unused,
                        false => (top >> unused) as i128,
                    })
                }
            },
        }
    }

    /// The bit pattern of the value nearest to `value`, as [`cast`] defines it.
    ///
    /// NaN becomes the type's canonical NaN: positive, quiet, no payload. The float types of 6 and fewer bits
    /// have none; NaN becomes their negative zero, as in `ml_dtypes`.
    pub fn encode(self, value: Num, overflow: Overflow) -> u64 {
        self.encode_rounded(value, CastMode { overflow, rounding: Rounding::NearestEven })
    }

    /// [`encode`](DType::encode) with a choice of rounding.
    pub fn encode_rounded(self, value: Num, mode: CastMode) -> u64 {
        if self.is_bool() {
            return value.is_true() as u64;
        }
        let Some(format) = self.float_format() else { return self.encode_int(value, mode.overflow) };
        let sign_bit = 1 << (self.bits() - 1);
        let (negative, sig, exp) = match value {
            Num::Float(x) => {
                if x.is_nan() {
                    return format.nan_code.unwrap_or(sign_bit);
                }
                if mode == CastMode::default() {
                    let narrow = x as f32;
                    // From f64 `half` may round twice.
                    let exact = f64::from(narrow) == x;
                    match self {
                        DType::F64 => return x.to_bits(),
                        DType::F32 => return narrow.to_bits().into(),
                        DType::F16 if exact => return half::f16::from_f32(narrow).to_bits().into(),
                        DType::BF16 if exact => return half::bf16::from_f32(narrow).to_bits().into(),
                        _ => {}
                    }
                }
                if x.is_infinite() {
                    return overflowed(self, &format, x < 0.0, mode.overflow);
                }
                let (sig, exp) = decompose(x);
                (x.is_sign_negative(), sig, exp)
            }
            Num::Int(n) => (n < 0, n.unsigned_abs(), 0),
        };
        // The rounding of the magnitude.
        let rounding = match mode.rounding {
            Rounding::NearestEven => Toward::Nearest,
            Rounding::TowardZero => Toward::Zero,
            Rounding::Down if negative => Toward::Infinity,
            Rounding::Up if !negative => Toward::Infinity,
            Rounding::Down | Rounding::Up => Toward::Zero,
        };
        let code = match self {
            DType::F8E8M0 if negative && sig != 0 => return 255,
            DType::F8E8M0 => match round_scale(sig, exp, rounding) {
                Some(code) => Some(code).filter(|&c| c <= format.max_code),
                None if mode.overflow == Overflow::Saturate => Some(0),
                None => return 255,
            },
            DType::HiF8 => round_hif8(sig, exp, rounding),
            _ => round_magnitude(sig, exp, &format, rounding),
        };
        let Some(code) = code else {
            return match rounding {
                Toward::Zero => signed(format.max_code, negative, sign_bit),
                _ => overflowed(self, &format, negative, mode.overflow),
            };
        };
        let negative = negative && (code != 0 || format.has_negative_zero);
        signed(code, negative, sign_bit)
    }

    fn encode_int(self, value: Num, overflow: Overflow) -> u64 {
        let (Num::Int(least), Num::Int(greatest)) = (self.min_value(), self.max_value()) else { return 0 };
        let wide = match (overflow, value) {
            (Overflow::Saturate, value) => value.to_i128().clamp(least, greatest) as u128,
            (Overflow::Format, Num::Int(n)) => n as u128,
            (Overflow::Format, Num::Float(x)) if x.is_finite() => {
                let (sig, exp) = decompose(x);
                let magnitude = match exp {
                    0.. => sig.checked_shl(exp as u32).unwrap_or(0),
                    _ => sig.checked_shr(exp.unsigned_abs()).unwrap_or(0),
                };
                if x < 0.0 { magnitude.wrapping_neg() } else { magnitude }
            }
            (Overflow::Format, Num::Float(_)) => 0,
        };
        wide as u64 & (u64::MAX >> (64 - self.bits()))
    }
}

/// Direction in which a magnitude is rounded.
#[derive(Clone, Copy, PartialEq)]
enum Toward {
    Nearest,
    Zero,
    Infinity,
}

/// 2^n for n in the range of normal `f64`.
fn pow2(n: i32) -> f64 {
    f64::from_bits(((n + 1023) as u64) << 52)
}

/// |x| = significand × 2^exponent for a finite x.
fn decompose(x: f64) -> (u128, i32) {
    let bits = x.to_bits();
    let exponent = (bits >> 52 & 0x7ff) as i32;
    let mantissa = u128::from(bits & ((1 << 52) - 1));
    match exponent {
        0 => (mantissa, -1074),
        _ => (mantissa | 1 << 52, exponent - 1075),
    }
}

fn signed(code: u64, negative: bool, sign_bit: u64) -> u64 {
    if negative { code | sign_bit } else { code }
}

/// The code for a magnitude past the greatest finite one.
fn overflowed(dtype: DType, format: &FloatFormat, negative: bool, overflow: Overflow) -> u64 {
    if negative && !format.has_sign {
        return format.nan_code.unwrap_or(0);
    }
    let sign_bit = 1 << (dtype.bits() - 1);
    let code = match overflow {
        Overflow::Format if format.has_inf => format.max_code + 1,
        Overflow::Format => match format.nan_code {
            Some(nan) => return if format.has_negative_zero { signed(nan, negative, sign_bit) } else { nan },
            None => format.max_code,
        },
        Overflow::Saturate => format.max_code,
    };
    signed(code, negative, sign_bit)
}

/// Value of a bit pattern of one of the IEEE-like types of at most 16 bits.
fn decode_float(bits: u64, width: u32, format: &FloatFormat) -> f64 {
    let negative = bits >> (width - 1) & 1 == 1;
    let code = bits & ((1 << (width - 1)) - 1);
    if code == 0 && negative && !format.has_negative_zero {
        return f64::NAN;
    }
    if code > format.max_code {
        return match format.has_inf && code == format.max_code + 1 {
            true if negative => f64::NEG_INFINITY,
            true => f64::INFINITY,
            false => f64::NAN,
        };
    }
    let field = (code >> format.mantissa_bits) as i32;
    let mantissa = code & ((1 << format.mantissa_bits) - 1);
    let unit = |exponent: i32| pow2(exponent - format.mantissa_bits as i32);
    let value = match field {
        0 => mantissa as f64 * unit(format.min_exponent),
        _ => (mantissa | 1 << format.mantissa_bits) as f64 * unit(format.min_exponent + field - 1),
    };
    if negative { -value } else { value }
}

/// Rounds sig × 2^-shift to an integer; the result must fit.
fn round_shift(sig: u128, shift: i32, toward: Toward) -> u64 {
    if shift <= 0 {
        return (sig << -shift) as u64;
    }
    let (whole, rest, half) = match shift {
        1..=127 => (sig >> shift, sig & ((1 << shift) - 1), 1 << (shift - 1)),
        // Only significands of an f64 get here, so what is lost is less than a half.
        _ => (0, sig.min(1), 2),
    };
    let up = match toward {
        Toward::Zero => false,
        Toward::Infinity => rest != 0,
        Toward::Nearest => rest > half || rest == half && whole & 1 == 1,
    };
    whole as u64 + u64::from(up)
}

/// floor(log2(sig × 2^exp)) of a positive number.
fn exponent_of(sig: u128, exp: i32) -> i32 {
    exp + 127 - sig.leading_zeros() as i32
}

/// The code, without sign, of sig × 2^exp; `None` where it does not fit.
fn round_magnitude(sig: u128, exp: i32, format: &FloatFormat, toward: Toward) -> Option<u64> {
    if sig == 0 {
        return Some(0);
    }
    let exponent = exponent_of(sig, exp);
    if exponent > format.max_exponent {
        return None;
    }
    let mantissa_bits = format.mantissa_bits as i32;
    let exponent = exponent.max(format.min_exponent);
    let units = round_shift(sig, exponent - mantissa_bits - exp, toward);
    // A carry out of the mantissa moves into the exponent field, as it should; the leading one adds one there.
    let code = (((exponent - format.min_exponent) as u64) << mantissa_bits) + units;
    Some(code).filter(|&c| c <= format.max_code)
}

/// The f8e8m0 code of sig × 2^exp, past `max_code` where it does not fit; `None` below half the least value.
fn round_scale(sig: u128, exp: i32, toward: Toward) -> Option<u64> {
    const BIAS: i32 = 127;
    if sig == 0 {
        return None;
    }
    let exponent = exponent_of(sig, exp);
    if exponent < -BIAS {
        let reaches = match toward {
            Toward::Nearest => exponent == -BIAS - 1,
            Toward::Infinity => true,
            Toward::Zero => false,
        };
        return reaches.then_some(0);
    }
    let exact = sig.is_power_of_two();
    let up = match toward {
        Toward::Zero => false,
        Toward::Infinity => !exact,
        Toward::Nearest => !exact && sig << (sig.leading_zeros() + 1) >> 127 == 1,
    };
    Some((exponent + BIAS) as u64 + u64::from(up))
}

/// The HiF8 code, without sign, of sig × 2^exp; `None` where it does not fit.
fn round_hif8(sig: u128, exp: i32, toward: Toward) -> Option<u64> {
    // Only integers of more than 53 bits round here, and they are out of range anyway.
    let x = libm::ldexp(sig as f64, exp);
    let (lower, upper) = hif8::neighbours(x)?;
    let up = match toward {
        Toward::Zero => false,
        Toward::Infinity => lower.value < x,
        Toward::Nearest => x >= (lower.value + upper.value) / 2.0,
    };
    let code = if up { upper.code } else { lower.code };
    Some(code.into()).filter(|_| code != hif8::INFINITY_CODE)
}
