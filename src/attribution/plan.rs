//! How rows are put into batches: targets of one layer, last position first, as many as fit.

use crate::error::Result;
use crate::replacement::{LinearModel, TargetSite};

/// One batch of rows to compute.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchPlan {
    pub site: TargetSite,
    /// What the batch computes, by the caller's numbering, with the place of its position among the open ones; descending
    /// by place.
    pub members: Vec<(usize, usize)>,
}

/// How large a batch may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// Gradient rows (targets × positions up to theirs), but for what the last target has more.
    pub gradient_rows: usize,
    pub targets: usize,
}

/// The active features `wanted` (indices into those of `linear`) of each layer, with the places of their positions.
/// `[n_layers]`
///
/// # Errors
/// None: features are at open positions.
pub fn by_layer(linear: &LinearModel, wanted: &[usize]) -> Result<Vec<Vec<(usize, usize)>>> {
    let features = &linear.features;
    let mut by_layer: Vec<Vec<(usize, usize)>> = vec![Vec::new(); features.encoder_vecs.len()];
    for &index in wanted {
        let feature = &features.all[index];
        by_layer[feature.layer].push((index, linear.positions.need(feature.pos)?));
    }
    Ok(by_layer)
}

/// Cuts the members of one site into batches of about the same size: a small last batch would waste its products.
pub fn cut(site: TargetSite, mut members: Vec<(usize, usize)>, limits: BatchLimits) -> Vec<BatchPlan> {
    members.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
    let all_rows: usize = members.iter().map(|member| member.1 + 1).sum();
    let max_rows = all_rows.div_ceil(all_rows.div_ceil(limits.gradient_rows).max(1));
    let mut plans: Vec<BatchPlan> = Vec::new();
    let mut n_rows = usize::MAX;
    for member in members {
        let rows = member.1 + 1;
        match plans.last_mut() {
            Some(plan) if n_rows < max_rows && plan.members.len() < limits.targets => {
                n_rows += rows;
                plan.members.push(member);
            }
            _ => {
                n_rows = rows;
                plans.push(BatchPlan { site, members: vec![member] });
            }
        }
    }
    plans
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: BatchLimits = BatchLimits { gradient_rows: 768, targets: 40 };

    #[test]
    fn batches_are_sorted_complete_and_no_larger_than_allowed() {
        let members: Vec<(usize, usize)> = (0..500).map(|i| (i, (i * 37) % 60)).collect();
        let plans = cut(TargetSite::FinalNorm, members.clone(), LIMITS);
        let mut seen: Vec<(usize, usize)> = Vec::new();
        for plan in &plans {
            assert!(plan.members.is_sorted_by(|a, b| a.1 >= b.1));
            // A batch ends with the member that fills it.
            assert!(plan.members.iter().map(|m| m.1 + 1).sum::<usize>() < LIMITS.gradient_rows + 60);
            assert!(plan.members.len() <= LIMITS.targets);
            seen.extend(&plan.members);
        }
        assert!(plans.len() > 1);
        seen.sort_unstable();
        assert_eq!(seen, members);
    }
}
