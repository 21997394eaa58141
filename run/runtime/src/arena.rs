//! Places of values in an arena.

/// A value to place: bytes, and the first and last step that need it.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Its size.
    pub bytes: u64,
    /// The first step that needs it.
    pub first: usize,
    /// The last step that needs it.
    pub last: usize,
}

const ALIGN: u64 = 64;

/// Offsets such that spans whose lifetimes overlap do not, and the bytes needed. The largest are placed first, each into the
/// smallest gap that holds it. Offsets are multiples of 64.
pub fn assign(spans: &[Span]) -> (Vec<u64>, u64) {
    let size = |i: usize| spans[i].bytes.max(1).div_ceil(ALIGN).saturating_mul(ALIGN);
    let mut order: Vec<usize> = (0..spans.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(spans[i].bytes), spans[i].first, i));
    let mut offsets = vec![0u64; spans.len()];
    let mut total = 0;
    // Placed spans in order of their offset.
    let mut placed: Vec<usize> = Vec::new();
    for i in order {
        let need = size(i);
        let (mut at, mut best): (u64, Option<(u64, u64)>) = (0, None);
        for &p in &placed {
            if spans[p].last < spans[i].first || spans[i].last < spans[p].first {
                continue;
            }
            let gap = offsets[p].saturating_sub(at);
            if gap >= need && best.is_none_or(|(g, _)| gap < g) {
                best = Some((gap, at));
            }
            at = at.max(offsets[p].saturating_add(size(p)));
        }
        offsets[i] = best.map_or(at, |(_, at)| at);
        total = total.max(offsets[i].saturating_add(need));
        let position = placed.partition_point(|&p| offsets[p] <= offsets[i]);
        placed.insert(position, i);
    }
    (offsets, total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn live_spans_never_overlap(raw in prop::collection::vec((0u64..5000, 0usize..30, 0usize..10), 0..60)) {
            let spans: Vec<Span> =
                raw.iter().map(|&(bytes, first, len)| Span { bytes, first, last: first + len }).collect();
            let (offsets, total) = assign(&spans);
            for (i, a) in spans.iter().enumerate() {
                prop_assert!(offsets[i] % 64 == 0 && offsets[i] + a.bytes <= total);
                for (j, b) in spans.iter().enumerate().skip(i + 1) {
                    let both_live = a.first <= b.last && b.first <= a.last;
                    let apart = offsets[i] + a.bytes <= offsets[j] || offsets[j] + b.bytes <= offsets[i];
                    prop_assert!(!both_live || apart || a.bytes == 0 || b.bytes == 0, "{} and {}", i, j);
                }
            }
            // No plan needs less than what is live at any one step.
            let peak = (0..40).map(|t| spans.iter().filter(|s| s.first <= t && t <= s.last).map(|s| s.bytes).sum::<u64>()).max();
            prop_assert!(total >= peak.unwrap_or(0));
        }
    }

    #[test]
    fn a_chain_takes_two_places() {
        let spans: Vec<Span> = (0..100).map(|i| Span { bytes: 640, first: i, last: i + 1 }).collect();
        assert_eq!(assign(&spans).1, 1280);
    }
}
