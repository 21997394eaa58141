//! What a run on the chip showed.

use tongtu_runtime::{Culprit, GroupReport, VerifyReport};
use tongtu_tensor::Tensor;

use crate::check::finding;
use crate::report::{ChipReport, Divergence, Proof, Quality, Verified, Weight};

/// What was run, beside the comparison of kernels.
#[derive(Clone, Debug, Default)]
pub struct Ran {
    /// How it was run, for people: on a device, in a simulation.
    pub how: String,
    /// Milliseconds that compiling took.
    pub compile_ms: f64,
    /// The outputs against the reference.
    pub quality: Vec<Quality>,
    /// What the reference was, or why there is none.
    pub quality_note: String,
}

/// Adds what running the model showed.
pub fn prove(mut report: ChipReport, verified: &VerifyReport, ran: Ran) -> ChipReport {
    for g in &verified.groups {
        if let Some(k) = report.kernels.get_mut(g.group).filter(|k| k.name == g.name) {
            k.verified = Some(Verified {
                checked: g.checked,
                elements: g.elements,
                outside: g.failed,
                worst_ratio: g.worst_ratio,
                worst_error: g.worst_error,
                error: g.error.clone(),
            });
        }
    }
    let bad: Vec<&GroupReport> = verified.groups.iter().filter(|g| !g.passes()).collect();
    for g in &bad {
        let what = match &g.error {
            Some(e) => format!("{}: {e}", g.name),
            None => format!(
                "{}: {} of {} elements differ, by up to {:.3} of what is allowed",
                g.name, g.failed, g.checked, g.worst_ratio
            ),
        };
        report.findings.push(finding("M008", Weight::Failure, what, &g.loc));
    }
    let unbounded = verified.groups.iter().filter(|g| g.unbounded * 2 > g.checked).count();
    if unbounded > 0 {
        let what = format!("{unbounded} kernels: the reference excludes nothing for most elements");
        report.findings.push(finding("M013", Weight::Note, what, ""));
    }
    report.proof = Some(Proof {
        how: ran.how,
        kernels: verified.groups.len(),
        failed: bad.len(),
        checked: verified.checked(),
        elements: verified.groups.iter().map(|g| g.elements).sum(),
        worst_ratio: verified.worst_ratio(),
        diverges: bad.first().map(|g| divergence(g)),
        quality: ran.quality,
        quality_note: ran.quality_note,
        compile_ms: ran.compile_ms,
    });
    report.settle()
}

/// Adds that the model could not be proven.
pub fn unproven(mut report: ChipReport, code: &str, why: &str) -> ChipReport {
    let weight = if code == "M012" { Weight::Reservation } else { Weight::Failure };
    report.findings.push(finding(code, weight, why, ""));
    report.settle()
}

/// Adds the microseconds that each kernel took, by its position.
pub fn measure(mut report: ChipReport, times: &[(usize, f64)], total_us: f64) -> ChipReport {
    for &(k, us) in times {
        if let Some(k) = report.kernels.get_mut(k) {
            *k.measured_us.get_or_insert(0.0) += us;
        }
    }
    report.total.measured_us = Some(total_us);
    report
}

fn divergence(g: &GroupReport) -> Divergence {
    let (op, worst, fault) = match &g.culprit {
        Some(Culprit::Op { op, worst }) => {
            (Some(op), worst.as_ref(), "compiled alone, too, it differs".to_string())
        }
        Some(Culprit::Fusion) => {
            (None, None, "each operation alone is right: fusing them is at fault".to_string())
        }
        Some(Culprit::Unknown(why)) => (None, None, format!("which operation was not found: {why}")),
        None => (None, None, g.error.clone().unwrap_or_default()),
    };
    let worst = worst.or(g.worst.as_ref());
    Divergence {
        op: op.map_or(g.name.clone(), |o| o.op.clone()),
        at: op.map_or(g.loc.clone(), |o| o.loc.clone()),
        kernel: g.name.clone(),
        index: worst.map(|w| w.index.clone()).unwrap_or_default(),
        expected: worst.map_or(0.0, |w| w.expected),
        actual: worst.map_or(0.0, |w| w.actual),
        allowed: worst.map_or(0.0, |w| w.bound),
        fault,
    }
}

/// One output against its reference; `None` if their shapes differ or there are no elements.
pub fn quality(output: &str, got: &Tensor, want: &Tensor) -> Option<Quality> {
    if got.shape() != want.shape() || want.is_empty() {
        return None;
    }
    let (g, w) = (got.to_f64_vec(), want.to_f64_vec());
    let error = |(a, b): (&f64, &f64)| if a == b || a.is_nan() && b.is_nan() { 0.0 } else { (a - b).abs() };
    let errors: Vec<f64> = g.iter().zip(&w).map(error).collect();
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(a, b)| a * b).sum::<f64>();
    let norms = (dot(&g, &g) * dot(&w, &w)).sqrt();
    let top =
        |row: &[f64]| row.iter().enumerate().fold(0, |best, (i, x)| if *x > row[best] { i } else { best });
    let width = want.shape().last().copied().unwrap_or(1);
    let rows = g.chunks(width.max(1)).zip(w.chunks(width.max(1)));
    let same = rows.clone().filter(|(a, b)| top(a) == top(b)).count();
    Some(Quality {
        output: output.to_string(),
        elements: g.len(),
        max_error: errors.iter().copied().fold(0.0, f64::max),
        mean_error: errors.iter().sum::<f64>() / errors.len() as f64,
        scale: w.iter().map(|x| x.abs()).fold(0.0, f64::max),
        cosine: if norms > 0.0 { dot(&g, &w) / norms } else { 1.0 },
        top1: (width > 1 && want.dtype().is_float()).then(|| same as f64 / rows.len() as f64),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quality_by_hand() {
        let a = Tensor::from_slice(&[2, 2], &[1.0f32, 2.0, 4.0, 3.0]).unwrap();
        let b = Tensor::from_slice(&[2, 2], &[1.0f32, 2.0, 3.0, 4.0]).unwrap();
        let q = quality("y", &a, &b).unwrap();
        assert_eq!((q.max_error, q.mean_error, q.scale, q.top1), (1.0, 0.5, 4.0, Some(0.5)));
        // (1 + 4 + 12 + 12) / 30
        assert!((q.cosine - 29.0 / 30.0).abs() < 1e-12);
        assert!(quality("y", &a, &Tensor::zeros(tongtu_tensor::DType::F32, &[4]).unwrap()).is_none());
    }
}
