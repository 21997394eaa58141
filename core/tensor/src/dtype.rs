//! Element types.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Num;

/// The type of a tensor's elements.
///
/// Integers are two's complement. A bool is one byte, 0 or 1. Elements of less than a byte fill a byte from
/// its low bits on; the 6-bit floats are packed the same way, four to three bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// Truth value, one byte.
    Bool,
    /// Signed, 2 bits.
    I2,
    /// Signed, 4 bits.
    I4,
    /// Signed, 8 bits.
    I8,
    /// Signed, 16 bits.
    I16,
    /// Signed, 32 bits.
    I32,
    /// Signed, 64 bits.
    I64,
    /// Unsigned, 2 bits.
    U2,
    /// Unsigned, 4 bits.
    U4,
    /// Unsigned, 8 bits.
    U8,
    /// Unsigned, 16 bits.
    U16,
    /// Unsigned, 32 bits.
    U32,
    /// Unsigned, 64 bits.
    U64,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    BF16,
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary64.
    F64,
    /// OCP OFP8 E4M3: no infinities, one NaN magnitude.
    F8E4M3FN,
    /// E4M3 with bias 8, no infinities, no negative zero; its NaN is 0x80.
    F8E4M3FNUZ,
    /// OCP OFP8 E5M2: infinities and NaNs as in IEEE 754.
    F8E5M2,
    /// E5M2 with bias 16, no infinities, no negative zero; its NaN is 0x80.
    F8E5M2FNUZ,
    /// OCP MX scale: a power of two from 2^-127 to 2^127, or NaN; no sign, no zero.
    F8E8M0,
    /// OCP MX FP6 E2M3: finite values only.
    F6E2M3,
    /// OCP MX FP6 E3M2: finite values only.
    F6E3M2,
    /// OCP MX FP4 E2M1: finite values only.
    F4E2M1,
    /// Ascend HiFloat8: the width of the exponent field varies with the exponent, so values near 1 have 3
    /// mantissa bits and the largest and smallest 1 or none. One zero, one NaN, both infinities. Conversion
    /// to it rounds ties away from zero, as the format defines. Source: "Ascend HiFloat8 Format for Deep
    /// Learning", arXiv 2409.16626.
    HiF8,
}

/// The parameters of a floating-point type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FloatFormat {
    /// Stored mantissa bits; of HiF8 the most it has anywhere.
    pub mantissa_bits: u32,
    /// Stored exponent bits; of HiF8 the most it has anywhere.
    pub exponent_bits: u32,
    /// Exponent of the least normal value (the power of two).
    pub min_exponent: i32,
    /// Exponent of the greatest finite value.
    pub max_exponent: i32,
    /// Has infinities.
    pub has_inf: bool,
    /// Has at least one NaN.
    pub has_nan: bool,
    /// Has negative values.
    pub has_sign: bool,
    /// Has a negative zero.
    pub has_negative_zero: bool,
    /// Bit pattern of the greatest finite value.
    pub max_code: u64,
    /// The NaN that conversions give, if there is one.
    pub nan_code: Option<u64>,
}

/// A string that names no element type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("T020: no element type is called {0:?}")]
pub struct ParseDTypeError(pub String);

impl DType {
    /// Every element type.
    pub const ALL: &'static [DType] = &[
        DType::Bool,
        DType::I2,
        DType::I4,
        DType::I8,
        DType::I16,
        DType::I32,
        DType::I64,
        DType::U2,
        DType::U4,
        DType::U8,
        DType::U16,
        DType::U32,
        DType::U64,
        DType::F16,
        DType::BF16,
        DType::F32,
        DType::F64,
        DType::F8E4M3FN,
        DType::F8E4M3FNUZ,
        DType::F8E5M2,
        DType::F8E5M2FNUZ,
        DType::F8E8M0,
        DType::F6E2M3,
        DType::F6E3M2,
        DType::F4E2M1,
        DType::HiF8,
    ];

    /// The name in every text form.
    pub const fn name(self) -> &'static str {
        match self {
            DType::Bool => "bool",
            DType::I2 => "i2",
            DType::I4 => "i4",
            DType::I8 => "i8",
            DType::I16 => "i16",
            DType::I32 => "i32",
            DType::I64 => "i64",
            DType::U2 => "u2",
            DType::U4 => "u4",
            DType::U8 => "u8",
            DType::U16 => "u16",
            DType::U32 => "u32",
            DType::U64 => "u64",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::F32 => "f32",
            DType::F64 => "f64",
            DType::F8E4M3FN => "f8e4m3fn",
            DType::F8E4M3FNUZ => "f8e4m3fnuz",
            DType::F8E5M2 => "f8e5m2",
            DType::F8E5M2FNUZ => "f8e5m2fnuz",
            DType::F8E8M0 => "f8e8m0",
            DType::F6E2M3 => "f6e2m3",
            DType::F6E3M2 => "f6e3m2",
            DType::F4E2M1 => "f4e2m1",
            DType::HiF8 => "hif8",
        }
    }

    /// Width of one element in memory, in bits (bool: 8).
    pub const fn bits(self) -> u32 {
        match self {
            DType::I2 | DType::U2 => 2,
            DType::I4 | DType::U4 | DType::F4E2M1 => 4,
            DType::F6E2M3 | DType::F6E3M2 => 6,
            DType::Bool
            | DType::I8
            | DType::U8
            | DType::F8E4M3FN
            | DType::F8E4M3FNUZ
            | DType::F8E5M2
            | DType::F8E5M2FNUZ
            | DType::F8E8M0
            | DType::HiF8 => 8,
            DType::I16 | DType::U16 | DType::F16 | DType::BF16 => 16,
            DType::I32 | DType::U32 | DType::F32 => 32,
            DType::I64 | DType::U64 | DType::F64 => 64,
        }
    }

    /// Width of one element in bytes; `None` for elements of less than a byte.
    pub const fn byte_size(self) -> Option<usize> {
        match self.bits() {
            bits if bits >= 8 => Some(bits as usize / 8),
            _ => None,
        }
    }

    /// Bytes that `count` elements take, the last one filled up; `None` if that overflows.
    pub fn bytes_for(self, count: usize) -> Option<usize> {
        match self.byte_size() {
            Some(size) => count.checked_mul(size),
            // Whole bytes hold 8 / gcd(bits, 8) elements, so count / 8 groups never overflow.
            None => {
                let bits = self.bits() as usize;
                Some(count / 8 * bits + (count % 8 * bits).div_ceil(8))
            }
        }
    }

    /// A floating-point type.
    pub const fn is_float(self) -> bool {
        !matches!(self, DType::Bool) && !self.is_int()
    }

    /// An integer type, bool not among them.
    pub const fn is_int(self) -> bool {
        matches!(
            self,
            DType::I2
                | DType::I4
                | DType::I8
                | DType::I16
                | DType::I32
                | DType::I64
                | DType::U2
                | DType::U4
                | DType::U8
                | DType::U16
                | DType::U32
                | DType::U64
        )
    }

    /// A type with negative values.
    pub const fn is_signed(self) -> bool {
        !matches!(
            self,
            DType::Bool
                | DType::U2
                | DType::U4
                | DType::U8
                | DType::U16
                | DType::U32
                | DType::U64
                | DType::F8E8M0
        )
    }

    /// The type of truth values.
    pub const fn is_bool(self) -> bool {
        matches!(self, DType::Bool)
    }

    /// The parameters of a floating-point type; `None` for the others.
    pub const fn float_format(self) -> Option<FloatFormat> {
        const fn ieee(mantissa: u32, exponent: u32) -> FloatFormat {
            let inf = ((1u64 << exponent) - 1) << mantissa;
            FloatFormat {
                mantissa_bits: mantissa,
                exponent_bits: exponent,
                min_exponent: 2 - (1 << (exponent - 1)),
                max_exponent: (1 << (exponent - 1)) - 1,
                has_inf: true,
                has_nan: true,
                has_sign: true,
                has_negative_zero: true,
                max_code: inf - 1,
                nan_code: Some(inf | 1 << (mantissa - 1)),
            }
        }
        const fn finite(mantissa: u32, exponent: u32) -> FloatFormat {
            FloatFormat {
                max_exponent: 1 << (exponent - 1),
                has_inf: false,
                has_nan: false,
                max_code: (1 << (mantissa + exponent)) - 1,
                nan_code: None,
                ..ieee(mantissa, exponent)
            }
        }
        const fn fnuz(mantissa: u32, exponent: u32) -> FloatFormat {
            FloatFormat {
                min_exponent: 1 - (1 << (exponent - 1)),
                max_exponent: (1 << (exponent - 1)) - 1,
                has_nan: true,
                has_negative_zero: false,
                max_code: 0x7f,
                nan_code: Some(0x80),
                ..finite(mantissa, exponent)
            }
        }
        Some(match self {
            DType::F16 => ieee(10, 5),
            DType::BF16 => ieee(7, 8),
            DType::F32 => ieee(23, 8),
            DType::F64 => ieee(52, 11),
            DType::F8E5M2 => ieee(2, 5),
            DType::F8E4M3FN => {
                FloatFormat { has_nan: true, max_code: 0x7e, nan_code: Some(0x7f), ..finite(3, 4) }
            }
            DType::F8E4M3FNUZ => fnuz(3, 4),
            DType::F8E5M2FNUZ => fnuz(2, 5),
            DType::F6E2M3 => finite(3, 2),
            DType::F6E3M2 => finite(2, 3),
            DType::F4E2M1 => finite(1, 2),
            DType::F8E8M0 => FloatFormat {
                mantissa_bits: 0,
                exponent_bits: 8,
                min_exponent: -127,
                max_exponent: 127,
                has_inf: false,
                has_nan: true,
                has_sign: false,
                has_negative_zero: false,
                max_code: 254,
                nan_code: Some(255),
            },
            DType::HiF8 => FloatFormat {
                mantissa_bits: 3,
                exponent_bits: 4,
                min_exponent: -15,
                max_exponent: 15,
                has_inf: true,
                has_nan: true,
                has_sign: true,
                has_negative_zero: false,
                max_code: 0x6e,
                nan_code: Some(0x80),
            },
            _ => return None,
        })
    }

    /// Least finite value.
    pub fn min_value(self) -> Num {
        match self.float_format() {
            Some(f) if f.has_sign => match self.max_value() {
                Num::Float(x) => Num::Float(-x),
                n => n,
            },
            Some(_) => self.decode(0),
            None if self.is_signed() => Num::Int(-1 << (self.bits() - 1)),
            None => Num::Int(0),
        }
    }

    /// Greatest finite value.
    pub fn max_value(self) -> Num {
        match self.float_format() {
            Some(f) => self.decode(f.max_code),
            None if self.is_bool() => Num::Int(1),
            None => Num::Int((1 << (self.bits() - self.is_signed() as u32)) - 1),
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for DType {
    type Err = ParseDTypeError;

    fn from_str(s: &str) -> Result<DType, ParseDTypeError> {
        let found = DType::ALL.iter().find(|d| d.name() == s);
        found.copied().ok_or_else(|| ParseDTypeError(s.chars().take(40).collect()))
    }
}
