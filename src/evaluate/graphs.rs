//! What graphs of prompts explain, and whether their influence tells what an ablation does.

use serde::{Deserialize, Serialize};

use super::PROMPTS_PHASE;
use super::options::EvaluateOptions;
use super::spread::Spread;
use crate::attribution::{Attribution, AttributionOptions, attribute};
use crate::error::{Error, ErrorContext, Result};
use crate::graph::FeatureId;
use crate::intervene::{Change, Distribution, Intervention, Mode, Original, Positions, spearman};
use crate::job::Job;
use crate::replacement::Replacement;

/// Features are ablated that carry this share of all features' influence: what pruning keeps.
const INFLUENCE_SHARE: f64 = 0.8;

/// Alternatives that go through the model together.
const BATCH: usize = 32;

/// Scores of graphs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GraphQuality {
    /// Replacement scores (definitions 8).
    pub replacement: Spread,
    /// Completeness scores.
    pub completeness: Spread,
    /// Each prompt's.
    pub prompts: Vec<PromptScores>,
}

/// Scores of one prompt's graph, traced with default settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PromptScores {
    /// Its tokens, the one that begins it included.
    pub n_tokens: usize,
    /// Its active features.
    pub n_active: usize,
    /// Replacement score.
    pub replacement: f64,
    /// Completeness score.
    pub completeness: f64,
}

/// Rank correlation of features' influence with what their ablation does to the prediction, in KL divergence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AblationQuality {
    /// Mean over prompts, everything free after the ablation; `None` where no prompt has one.
    pub free: Option<f64>,
    /// Mean over prompts, attention patterns held, as they are in graphs.
    pub frozen_attention: Option<f64>,
    /// Each prompt's.
    pub prompts: Vec<PromptAblations>,
}

/// Ablations of one prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PromptAblations {
    /// Features that were ablated, one by one, of those that carry 0.8 of all features' influence: at ranks that grow by
    /// a factor.
    pub n_ablated: usize,
    /// Spearman's correlation of influence and effect, everything free; `None` where either does not vary.
    pub free: Option<f64>,
    /// The same with attention patterns held.
    pub frozen_attention: Option<f64>,
}

/// Traces prompts, and ablates features of the first.
///
/// # Errors
/// As [`super::evaluate`].
pub(super) fn measure(
    replacement: &Replacement,
    prompts: Vec<Vec<u32>>,
    options: &EvaluateOptions,
    job: &Job,
) -> Result<(Option<GraphQuality>, Option<AblationQuality>)> {
    let quiet = job.unreported();
    let (mut scores, mut ablations) = (Vec::new(), Vec::new());
    let trace = AttributionOptions { keep_decoders: false, ..Default::default() };
    for (at, tokens) in prompts.iter().enumerate() {
        let mut one = || -> Result<()> {
            let (original, linear) = Original::linearized(replacement, tokens, &quiet)?;
            let found = attribute(replacement, &linear, "", &trace, &quiet)?;
            let meta = &found.graph.meta;
            scores.push(PromptScores {
                n_tokens: tokens.len(),
                n_active: linear.features.len(),
                replacement: meta.replacement_score,
                completeness: meta.completeness_score,
            });
            if at < options.ablation_prompts {
                ablations.extend(ablate(&original, &found, options.ablated, &quiet)?);
            }
            Ok(())
        };
        match one() {
            Err(error) if !matches!(error.root(), Error::Cancelled) => {
                return Err(error).context(|| format!("cannot trace prompt {}", at + 1));
            }
            done => done?,
        }
        job.report(PROMPTS_PHASE, at + 1, prompts.len());
    }
    let spread = |of: fn(&PromptScores) -> f64| Spread::of(scores.iter().map(of));
    let graphs = match (spread(|s| s.replacement), spread(|s| s.completeness)) {
        (Some(replacement), Some(completeness)) => Some(GraphQuality { replacement, completeness, prompts: scores }),
        _ => None,
    };
    let mean = |of: fn(&PromptAblations) -> Option<f64>| Spread::of(ablations.iter().filter_map(of)).map(|s| s.mean);
    let (free, frozen_attention) = (mean(|a| a.free), mean(|a| a.frozen_attention));
    let ablations = (!ablations.is_empty()).then_some(AblationQuality { free, frozen_attention, prompts: ablations });
    Ok((graphs, ablations))
}

/// Ablates features of a traced prompt one by one; `None` where there are fewer than two.
fn ablate(original: &Original, found: &Attribution, n: usize, job: &Job) -> Result<Option<PromptAblations>> {
    let layout = found.graph.layout();
    let influence = &found.influence.nodes[layout.features()];
    let chosen = chosen(influence, n);
    if chosen.len() < 2 {
        return Ok(None);
    }
    let ablation = |&index: &usize| {
        let FeatureId { layer, pos, feature } = layout.feature_ids()[index];
        let (layer, feature, pos) = (layer as usize, feature as usize, pos as usize);
        vec![Intervention { layer, feature, positions: Positions::At(pos), change: Change::Set(0.0) }]
    };
    let alternatives: Vec<Vec<Intervention>> = chosen.iter().map(ablation).collect();
    let influence: Vec<f64> = chosen.iter().map(|&index| influence[index]).collect();
    let before = Distribution::new(&original.logits);
    let correlation = |mode: Mode| -> Result<Option<f64>> {
        let mut effects = Vec::with_capacity(alternatives.len());
        for together in alternatives.chunks(BATCH) {
            let logits = original.changed_logits(together, &mode, job)?;
            effects.extend(logits.iter().map(|logits| before.kl_divergence(&Distribution::new(logits))));
        }
        Ok(spearman(&influence, &effects))
    };
    Ok(Some(PromptAblations {
        n_ablated: chosen.len(),
        free: correlation(Mode::Free)?,
        frozen_attention: correlation(Mode::FrozenAttention)?,
    }))
}

/// `n` at most of the features that carry most of the influence, most influential first. Their ranks grow by a factor,
/// so that the few strong ones are there as well as the many weak ones, among which influence hardly differs.
fn chosen(influence: &[f64], n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..influence.len()).collect();
    order.sort_by(|&a, &b| influence[b].total_cmp(&influence[a]).then(a.cmp(&b)));
    let total: f64 = order.iter().map(|&index| influence[index]).sum();
    let mut sum = 0.0;
    let n_kept = order.iter().take_while(|&&index| {
        let is_short = sum < INFLUENCE_SHARE * total;
        sum += influence[index];
        is_short
    });
    let n_kept = n_kept.count();
    ranks(n.min(n_kept), n_kept).into_iter().map(|rank| order[rank]).collect()
}

/// `n` different ranks below `n_kept`, from 0: `n_kept^(i/n)`, or the next where that was taken.
fn ranks(n: usize, n_kept: usize) -> Vec<usize> {
    let mut next = 0;
    let rank = |i: usize| {
        let wanted = (n_kept as f64).powf(i as f64 / n as f64) as usize - 1;
        let rank = wanted.max(next);
        next = rank + 1;
        rank
    };
    (0..n).map(rank).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_chosen_from_those_that_carry_most_strong_ones_first() {
        // 0.8 of 10 is carried by the first three.
        let influence = [1.0, 4.0, 3.0, 1.5, 0.5];
        assert_eq!(chosen(&influence, 9), [1, 2, 3]);
        assert_eq!(chosen(&influence, 2), [1, 2]);
        assert_eq!(chosen(&influence, 0), [0; 0]);
        assert_eq!(chosen(&[0.0; 3], 2), [0; 0]);
        assert_eq!(ranks(8, 1000), [0, 1, 4, 12, 30, 73, 176, 420]);
        for (n, n_kept) in [(1, 1), (2, 2), (32, 32), (32, 33), (32, 5000)] {
            let ranks = ranks(n, n_kept);
            assert!(ranks.len() == n && ranks.is_sorted_by(|a, b| a < b) && ranks[n - 1] < n_kept, "{ranks:?}");
        }
    }
}
