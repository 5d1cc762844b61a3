//! The score at which a cumulative share of the nodes' scores is reached, by sorting them.

/// Scores this close, relative to themselves, count as equal. Equal scores are common, since a node with one input passes
/// its influence on whole; rounding, some 1e-15, must not tell them apart.
pub(crate) const TIE_RTOL: f64 = 1e-9;

/// The smallest score that is kept, and the cumulative share at the rank of every score.
///
/// Equal scores rank by index. Where no score is above zero, nothing is kept.
pub(crate) fn node_threshold(scores: &[f64], threshold: f64) -> (f64, Vec<f64>) {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let total: f64 = order.iter().map(|&index| scores[index]).sum();
    let mut cumulative = vec![if total > 0.0 { 0.0 } else { 1.0 }; scores.len()];
    let mut smallest = f64::INFINITY;
    let mut is_reached = false;
    let mut sum = 0.0;
    for index in order {
        sum += scores[index];
        if total > 0.0 {
            cumulative[index] = sum / total;
        }
        if !is_reached && scores[index] > 0.0 {
            smallest = scores[index];
            is_reached = sum / total >= threshold;
        }
    }
    (smallest * (1.0 - TIE_RTOL), cumulative)
}
