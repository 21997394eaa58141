//! Values to test with: the edges of every element type, and ordinary ones.

use tongtu_tensor::{DType, Num, Overflow};

/// A small generator of numbers.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator of its own sequence for each seed.
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next_u64() >> 11) as usize % n.max(1)
    }
}

/// The bits that count.
pub fn mask(d: DType) -> u64 {
    if d.is_bool() { 1 } else { u64::MAX >> (64 - d.bits()) }
}

/// The code of a number.
pub fn code(d: DType, x: f64) -> u64 {
    let n = if d.is_float() { Num::Float(x) } else { Num::Int(x as i128) };
    d.encode(n, Overflow::Format)
}

/// The edges of a type: zeros of both signs, the least and greatest numbers and subnormals, infinities, NaN, halves that round, the
/// ends of integer ranges, and some ordinary numbers.
pub fn edges(d: DType) -> Vec<u64> {
    if d.bits() <= 4 || d.is_bool() {
        return (0..=mask(d)).collect();
    }
    let mut out = Vec::new();
    if let Some(f) = d.float_format() {
        let sign = if f.has_sign { 1u64 << (d.bits() - 1) } else { 0 };
        for c in [0, 1, (1 << f.mantissa_bits) - 1, 1 << f.mantissa_bits, f.max_code] {
            out.extend([c, c | sign]);
        }
        if f.has_inf {
            out.extend([f.max_code + 1, (f.max_code + 1) | sign]);
        }
        out.extend(f.nan_code);
        let ordinary = [1.0, -1.0, 0.5, 1.5, 2.5, -2.5, 3.0, -0.3, 0.1, 10.5, 127.9, 1e4, -6.0];
        out.extend(ordinary.map(|x| code(d, x)));
    } else {
        let (least, greatest) = (d.min_value().to_i128(), d.max_value().to_i128());
        let bits = i128::from(d.bits());
        let some = [0, 1, 2, 3, 7, 10, -1, -2, -7, bits - 1, bits, bits + 1, 100, 0x5555_5555_5555_5555];
        let ends = [least, least + 1, greatest, greatest - 1, greatest / 2, greatest / 3];
        out.extend(some.iter().chain(&ends).map(|n| *n as u64 & mask(d)));
    }
    let mut seen = std::collections::HashSet::new();
    out.retain(|c| seen.insert(*c));
    out
}

/// For a type of a byte or less every code, else the edges, ordinary numbers and any bits at all.
pub fn many(d: DType, seed: u64) -> Vec<u64> {
    if d.bits() <= 8 {
        return (0..=mask(d)).collect();
    }
    let mut out = edges(d);
    let mut rng = Rng::new(seed);
    for i in 0..64 {
        let r = rng.next_u64();
        out.push(match i % 2 {
            0 if d.is_float() => code(d, (r >> 40) as f64 / 16384.0 - 512.0),
            0 => (r & mask(d)) >> (r >> 58).min(u64::from(d.bits() - 1)),
            _ => r & mask(d),
        });
    }
    out
}

/// Small ordinary values, exact in every type that holds quarters up to 2; integers from 0 up to 8, bool of both kinds.
pub fn small(d: DType, n: usize, seed: u64) -> Vec<u64> {
    let mut rng = Rng::new(seed);
    let one = |_| match d {
        DType::Bool => rng.next_u64() >> 63,
        DType::F8E8M0 => code(d, [0.5, 1.0, 2.0, 4.0][rng.below(4)]),
        _ if d.is_float() => code(d, rng.below(17) as f64 / 4.0 - 2.0),
        _ => rng.below(9) as u64 & mask(d),
    };
    (0..n).map(one).collect()
}

/// Edges in turn, up to `n` of them.
pub fn cycled(d: DType, n: usize, step: usize) -> Vec<u64> {
    let all = edges(d);
    (0..n).map(|i| all[i * step.max(1) % all.len()]).collect()
}
