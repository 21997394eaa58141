//! Philox 4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as
//! 1, 2, 3" (SC 2011).

/// The block of random words of a counter under a key, words in order of significance from the least.
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    const ROUNDS: usize = 10;
    const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    let split = |m: u32, x: u32| {
        let p = u64::from(m) * u64::from(x);
        ((p >> 32) as u32, p as u32)
    };
    let ([mut a, mut b, mut c, mut d], [mut k, mut l]) = (counter, key);
    for _ in 0..ROUNDS {
        let (high0, low0) = split(MULTIPLIERS[0], a);
        let (high1, low1) = split(MULTIPLIERS[1], c);
        (a, b, c, d) = (high1 ^ b ^ k, low1, high0 ^ d ^ l, low0);
        k = k.wrapping_add(WEYL[0]);
        l = l.wrapping_add(WEYL[1]);
    }
    [a, b, c, d]
}

/// The random bits of element `i` of [`Op::RandomBits`](crate::Op::RandomBits).
pub fn random_bits(key: u64, counter: u64, i: u64) -> u32 {
    let at = counter.wrapping_add(i);
    philox4x32([at as u32, (at >> 32) as u32, 0, 0], [key as u32, (key >> 32) as u32])[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the Random123 distribution (`kat_vectors`, philox4x32 10).
    #[test]
    fn random123_known_answers() {
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(
            philox4x32([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]
        );
        assert_eq!(
            philox4x32([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]),
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]
        );
    }

    #[test]
    fn elements_count_the_low_words() {
        assert_eq!(random_bits(0, 0, 0), 0x6627e8d5);
        assert_eq!(random_bits(7, 1 << 32, 5), philox4x32([5, 1, 0, 0], [7, 0])[0]);
        assert_eq!(random_bits(1, u64::MAX, 1), philox4x32([0; 4], [1, 0])[0]);
    }
}
