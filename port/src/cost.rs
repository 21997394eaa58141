//! The roofline: the least time a kernel can take by the chip's description.

use tongtu_chip::{Chip, LevelKind, Scope};
use tongtu_tensor::DType;

use crate::report::{Bound, Limits};
use crate::survey::Survey;

/// The limits of a chip for a model whose weights and activations take so many bytes: it reads them from the nearest cache that holds them
/// all, else from memory.
pub fn limits(chip: &Chip, working_set: u64) -> Limits {
    let cores = f64::from(chip.cores.value);
    let clock = chip.frequency.as_ref().map(|f| f.value);
    let matrix = chip
        .matrix
        .iter()
        .filter_map(|u| Some((u.name.clone(), u.flops_per_cycle.as_ref()?.value * clock? * cores)));
    let holds = |l: &&tongtu_chip::Level| match l.kind {
        LevelKind::Memory => true,
        LevelKind::Cache => {
            let each = if l.scope == Scope::Core { u64::from(chip.cores.value) } else { 1 };
            l.capacity.as_ref().is_some_and(|c| c.value.saturating_mul(each) >= working_set)
        }
        _ => false,
    };
    let level = chip.levels.iter().find(holds);
    let bandwidth = level.and_then(|l| l.bandwidth.as_ref()).map(|b| b.value * cores);
    Limits {
        vector_f32: chip.f32_peak(),
        matrix: matrix.collect(),
        level: level.map_or(String::new(), |l| l.name.clone()),
        bandwidth,
        source: format!("chip file of {}: figures of one core times {}", chip.name, chip.cores.value),
    }
}

/// The unit that a kernel's arithmetic is counted against, and its operations a second where known.
pub fn unit(chip: &Chip, limits: &Limits, survey: &Survey) -> (String, Option<f64>) {
    for [lhs, rhs, acc] in &survey.products {
        if let Some(u) = chip.matrix_unit(lhs, rhs, acc) {
            let rate = limits.matrix.iter().find(|(n, _)| *n == u.name).map(|(_, r)| *r);
            return (u.name.clone(), rate);
        }
    }
    // Narrower elements fill a register with more of them, where the chip computes in them.
    let bits = match survey.dtype.parse::<DType>() {
        Ok(d) if chip.is_native(d.name()) => f64::from(d.bits().max(8)),
        _ => 32.0,
    };
    ("vector".to_string(), limits.vector_f32.map(|r| r * 32.0 / bits))
}

/// Microseconds that so many operations and bytes take at least, and what bounds them.
pub fn least(flops: f64, bytes: f64, rate: Option<f64>, bandwidth: Option<f64>) -> (Option<f64>, Bound) {
    let compute = if flops == 0.0 { Some(0.0) } else { rate.map(|r| flops / r) };
    let memory = bandwidth.map(|b| bytes / b);
    match (compute, memory) {
        (Some(c), Some(m)) if c > m => (Some(c * 1e6), Bound::Compute),
        (Some(_), Some(m)) => (Some(m * 1e6), Bound::Memory),
        _ => (None, Bound::Unknown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greater_time_bounds() {
        // 2 GFLOP at 1 TFLOP/s is 2 ms; 1 MB at 10 GB/s is 100 us.
        assert_eq!(least(2e9, 1e6, Some(1e12), Some(1e10)), (Some(2000.0), Bound::Compute));
        assert_eq!(least(2e6, 1e6, Some(1e12), Some(1e10)), (Some(100.0), Bound::Memory));
        assert_eq!(least(2e6, 1e6, None, Some(1e10)), (None, Bound::Unknown));
    }

    #[test]
    fn a_small_model_runs_from_a_cache() {
        let chip = Chip::builtin("x86-64-v3").unwrap();
        assert_eq!(limits(&chip, 1 << 40).level, "dram");
        assert_eq!(limits(&chip, 1 << 10).level, "l1");
    }
}
