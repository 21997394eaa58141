//! Memory of a plan at given sizes.

use tongtu_chip::{Chip, LevelKind, Scope};
use tongtu_plan::plan::{Plan, Storage, ValueRef};
use tongtu_runtime::arena::{Span, assign};
use tongtu_tensor::dim::Dim;

use crate::report::{LevelUse, MemoryReport, Place};

/// Values of the arena that are listed.
const LISTED: usize = 60;

/// Bytes of a value; 0 for those that are no tensors of numbers.
pub(crate) fn bytes(plan: &Plan, v: ValueRef, size: &dyn Fn(&Dim) -> i64) -> u64 {
    let Some(dtype) = plan.dtype(v) else { return 0 };
    let count = plan.dims(v).iter().fold(1u64, |n, d| n.saturating_mul(size(d).max(0) as u64));
    usize::try_from(count).ok().and_then(|n| dtype.bytes_for(n)).map_or(u64::MAX / 4, |b| b as u64)
}

/// Weights, activations and what they find on the chip.
pub fn report(plan: &Plan, chip: &Chip, size: &dyn Fn(&Dim) -> i64) -> MemoryReport {
    let weights: u64 = plan.constants.iter().map(|t| t.nbytes() as u64).sum();
    let mut spans = Vec::new();
    let mut names = Vec::new();
    let mut unknown = 0;
    for (i, v) in plan.values.iter().enumerate() {
        match v.storage {
            Storage::Arena { first, last } => {
                spans.push(Span { bytes: bytes(plan, ValueRef(i as u32), size), first, last });
                names.push(v.name.as_deref().map_or(format!("value {i}"), str::to_string));
            }
            Storage::Pool => unknown += 1,
            _ => {}
        }
    }
    let (offsets, activations) = assign(&spans);
    let inputs: u64 = plan.inputs.iter().map(|p| bytes(plan, p.value, size)).sum();
    let mut map: Vec<Place> = spans
        .iter()
        .zip(offsets)
        .zip(names)
        .map(|((s, offset), name)| Place { name, offset, bytes: s.bytes, first: s.first, last: s.last })
        .collect();
    map.sort_by_key(|p| (std::cmp::Reverse(p.bytes), p.first));
    map.truncate(LISTED);
    map.sort_by_key(|p| (p.first, p.offset));
    let steps = plan.body.steps.len();
    let mut report = MemoryReport { weights, inputs, activations, unknown, levels: Vec::new(), steps, map };
    report.levels = chip.levels.iter().filter_map(|l| level(chip, l, &report)).collect();
    report
}

/// Bytes that a run works on.
pub fn working_set(m: &MemoryReport) -> u64 {
    m.weights.saturating_add(m.activations).saturating_add(m.inputs)
}

fn level(chip: &Chip, l: &tongtu_chip::Level, m: &MemoryReport) -> Option<LevelUse> {
    let cores = if l.scope == Scope::Core { u64::from(chip.cores.value) } else { 1 };
    let capacity = l.capacity.as_ref().map(|c| c.value.saturating_mul(cores));
    let (kind, what) = match l.kind {
        LevelKind::Memory => ("memory", "weights, activations, inputs"),
        LevelKind::Cache => ("cache", "weights, activations, inputs"),
        // What programs fill is told kernel by kernel.
        LevelKind::Scratchpad | LevelKind::Registers => return None,
    };
    let need = working_set(m);
    Some(LevelUse {
        level: l.name.clone(),
        kind: kind.to_string(),
        capacity,
        need,
        what: what.to_string(),
        fits: capacity.map(|c| need <= c),
    })
}
