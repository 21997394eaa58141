//! What a run on the chip showed.

use tongtu_plan::Plan;
use tongtu_runtime::{Culprit, GroupReport, VerifyReport};
use tongtu_tensor::Tensor;
use tongtu_tensor::dim::Dim;

use crate::check::finding;
use crate::placement;
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

/// Elements in a row from which on it is taken for scores of classes.
const CLASSES: usize = 256;

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
    for q in ran.quality.iter().filter(|q| q.not_numbers > 0) {
        let what = format!(
            "{}: {} of {} elements are no numbers, as in the reference",
            q.output, q.not_numbers, q.elements
        );
        let weight = if q.not_numbers == q.elements { Weight::Reservation } else { Weight::Note };
        report.findings.push(finding("M016", weight, what, ""));
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

/// Adds what of the compiled model runs on the host.
pub fn placed(mut report: ChipReport, plan: &Plan, size: &dyn Fn(&Dim) -> i64) -> ChipReport {
    let kernels: Vec<(usize, String)> = plan.hosted.iter().map(|h| (h.group, h.why.clone())).collect();
    report.placement = placement::of(plan, size);
    placement::host(&mut report, &kernels);
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

/// Logarithms of the probabilities that a row stands for: probabilities themselves, or scores of which the softmax is taken.
fn log_probabilities(row: &[f64], is_probabilities: bool) -> Vec<f64> {
    if is_probabilities {
        return row.iter().map(|p| p.max(f64::MIN_POSITIVE).ln()).collect();
    }
    let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum = row.iter().map(|x| (x - most).exp()).sum::<f64>().ln() + most;
    row.iter().map(|x| x - sum).collect()
}

/// Kullback-Leibler divergence of the distribution of a row from the reference's.
fn divergence_of(got: &[f64], want: &[f64]) -> f64 {
    let sum: f64 = want.iter().sum();
    let is_probabilities = (sum - 1.0).abs() < 1e-3 && want.iter().all(|p| (0.0..=1.001).contains(p));
    let (g, w) = (log_probabilities(got, is_probabilities), log_probabilities(want, is_probabilities));
    // What has no probability adds nothing; rounding may leave less than nothing of the sum.
    let each = w.iter().zip(&g).filter(|(w, _)| **w > f64::NEG_INFINITY).map(|(w, g)| w.exp() * (w - g));
    each.sum::<f64>().max(0.0)
}

/// One output against its reference; `None` if their shapes differ or there are no elements.
pub fn quality(output: &str, got: &Tensor, want: &Tensor) -> Option<Quality> {
    if got.shape() != want.shape() || want.is_empty() {
        return None;
    }
    let (g, w) = (got.to_f64_vec(), want.to_f64_vec());
    let error = |(a, b): (&f64, &f64)| match (a.is_nan(), b.is_nan()) {
        (true, true) => 0.0,
        (false, false) if a == b => 0.0,
        (false, false) => (a - b).abs().min(f64::MAX),
        _ => f64::MAX,
    };
    let errors: Vec<f64> = g.iter().zip(&w).map(error).collect();
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(a, b)| a * b).sum::<f64>();
    let norms = (dot(&g, &g) * dot(&w, &w)).sqrt();
    let top =
        |row: &[f64]| row.iter().enumerate().fold(0, |best, (i, x)| if *x > row[best] { i } else { best });
    let width = want.shape().last().copied().unwrap_or(1);
    let rows = g.chunks(width.max(1)).zip(w.chunks(width.max(1)));
    let same = rows.clone().filter(|(a, b)| top(a) == top(b)).count();
    let scores = want.rank() >= 2 && width >= CLASSES && want.dtype().is_float();
    let kl: Option<Vec<f64>> = scores.then(|| rows.clone().map(|(a, b)| divergence_of(a, b)).collect());
    Some(Quality {
        output: output.to_string(),
        elements: g.len(),
        not_numbers: w.iter().filter(|x| x.is_nan()).count(),
        max_error: errors.iter().copied().fold(0.0, f64::max),
        mean_error: errors.iter().map(|e| e / errors.len() as f64).sum(),
        scale: w.iter().map(|x| x.abs()).fold(0.0, f64::max),
        cosine: if norms > 0.0 { dot(&g, &w) / norms } else { 1.0 },
        top1: (width > 1 && want.dtype().is_float()).then(|| same as f64 / rows.len() as f64),
        kl_mean: kl.as_ref().map(|k| k.iter().sum::<f64>() / k.len() as f64),
        kl_max: kl.map(|k| k.into_iter().fold(0.0, f64::max)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_by_hand() {
        // Scores of 0 but for ln 3 and, on the chip, ln 5: probabilities of 3/258 and 1/258 against 5/260 and 1/260.
        let scores = |x: f64| {
            let mut row = vec![0.0; 256];
            row[7] = x.ln();
            Tensor::from_fn(tongtu_tensor::DType::F64, &[1, 1, 256], |i| row[i].into()).unwrap()
        };
        let q = quality("y", &scores(5.0), &scores(3.0)).unwrap();
        let want =
            3.0 / 258.0 * (3.0 / 258.0 * 260.0 / 5.0f64).ln() + 255.0 / 258.0 * (260.0f64 / 258.0).ln();
        assert!((q.kl_mean.unwrap() - want).abs() < 1e-12 && q.kl_mean == q.kl_max);
        assert_eq!(quality("y", &scores(3.0), &scores(3.0)).unwrap().kl_max, Some(0.0));
        // The same as probabilities.
        let part = |x: f64, i: usize| if i == 7 { x / (255.0 + x) } else { 1.0 / (255.0 + x) };
        let row =
            |x: f64| Tensor::from_fn(tongtu_tensor::DType::F64, &[1, 256], |i| part(x, i).into()).unwrap();
        assert!((quality("y", &row(5.0), &row(3.0)).unwrap().kl_mean.unwrap() - want).abs() < 1e-12);
    }

    #[test]
    fn quality_by_hand() {
        let a = Tensor::from_slice(&[2, 2], &[1.0f32, 2.0, 4.0, 3.0]).unwrap();
        let b = Tensor::from_slice(&[2, 2], &[1.0f32, 2.0, 3.0, 4.0]).unwrap();
        let q = quality("y", &a, &b).unwrap();
        assert_eq!((q.max_error, q.mean_error, q.scale, q.top1), (1.0, 0.5, 4.0, Some(0.5)));
        // (1 + 4 + 12 + 12) / 30
        assert!((q.cosine - 29.0 / 30.0).abs() < 1e-12);
        assert_eq!((q.kl_mean, q.not_numbers), (None, 0));
        // What is no number on one side only is as wrong as can be.
        let c = Tensor::from_slice(&[2, 2], &[1.0f32, f32::NAN, 3.0, 4.0]).unwrap();
        assert_eq!(quality("y", &c, &b).unwrap().max_error, f64::MAX);
        let q = quality("y", &c, &c).unwrap();
        assert_eq!((q.max_error, q.mean_error, q.not_numbers), (0.0, 0.0, 1));
        assert!(quality("y", &a, &Tensor::zeros(tongtu_tensor::DType::F32, &[4]).unwrap()).is_none());
    }
}
