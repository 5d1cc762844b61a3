//! Edges against measured direct effects.

use serde::Serialize;

use super::{VerifyTarget, feature_at, feature_ids};
use crate::error::Result;
use crate::graph::{AttributionGraph, FeatureId, NodeId};
use crate::intervene::effects::Readout;
use crate::intervene::original::Original;
use crate::job::Job;
use crate::replacement::LinearModel;

/// An effect is the difference of two f32 values; this part of the larger one is lost to rounding over all layers.
const ROUNDING: f64 = 2e-5;
/// Absolute tolerance beyond rounding: that of the field's acceptance test.
const ATOL: f64 = 5e-4;
/// Relative tolerance: as above.
const RTOL: f64 = 1e-3;
/// Share of the edges that must be within tolerance. Of a million f32 differences a few fall outside of any tolerance
/// that is still strict for the rest.
const MIN_SHARE_WITHIN: f64 = 0.9999;

/// How edges and measured effects agree.
#[derive(Clone, Debug, Default, Serialize)]
pub struct EdgeCheck {
    /// Features doubled.
    pub n_features: usize,
    /// Error nodes doubled.
    pub n_errors: usize,
    /// Token nodes doubled.
    pub n_tokens: usize,
    /// Contexts doubled: closed positions.
    #[serde(skip_serializing_if = "is_zero")]
    pub n_contexts: usize,
    /// Edges compared.
    pub n_edges: usize,
    /// The largest `|measured effect − edge|`.
    pub largest_error: f64,
    /// Where the largest error is: source and target node.
    pub largest_error_at: Option<(NodeId, NodeId)>,
    /// The largest edge that was compared, for scale.
    pub largest_edge: f64,
    /// Edges within tolerance as a part of all, in 0..=1.
    pub share_within: f64,
    /// Whether enough are.
    pub passed: bool,
}

/// Measures the columns of a sample of sources: half of the features by influence, the rest and the other kinds spread
/// evenly.
pub fn check(
    original: &Original,
    linear: &LinearModel,
    graph: &AttributionGraph,
    targets: &[VerifyTarget],
    n_samples: usize,
    influence: &[f64],
    job: &Job,
) -> Result<EdgeCheck> {
    let layout = graph.layout();
    // Where the graph's features are among those of this run; the few that are not active here are left out.
    let here = feature_ids(original);
    let index_here = |feature: FeatureId| here.binary_search(&feature).ok();
    let mut by_influence = super::features_by_influence(graph, influence);
    by_influence.retain(|&index| index_here(feature_at(graph, index)).is_some());
    let rest = by_influence.split_off((n_samples / 2).min(by_influence.len()));
    let mut features = by_influence;
    features.extend(spread(&rest, n_samples - features.len().min(n_samples)));
    let errors = spread(&layout.errors().collect::<Vec<_>>(), n_samples);
    let is_context = |&node: &usize| layout.is_closed(node - layout.tokens().start);
    let (contexts, tokens): (Vec<usize>, Vec<usize>) = layout.tokens().partition(is_context);
    let (contexts, tokens) = (spread(&contexts, n_samples), spread(&tokens, n_samples));
    let columns: Vec<usize> = features.iter().chain(&errors).chain(&tokens).chain(&contexts).copied().collect();
    let sources: Vec<NodeId> = columns.iter().filter_map(|&column| layout.node(column)).collect();
    // A feature is a target like any other where it is active here; else nothing keeps its pre-activation.
    let (mut readouts, mut of_features) = (Vec::new(), Vec::new());
    for target in targets {
        match target {
            VerifyTarget::Direction { index, pos, direction } => {
                readouts.push((*index, Readout::FinalNorm { pos: *pos, direction: direction.clone() }));
            }
            VerifyTarget::AttentionInput { index, layer, gradients } => {
                readouts.push((*index, Readout::ResidPre { layer: *layer, directions: gradients.clone() }));
            }
            VerifyTarget::Feature { index, layer, feature, pos, .. } => {
                let id = FeatureId { layer: *layer as u32, pos: *pos as u32, feature: *feature as u32 };
                of_features.extend(index_here(id).map(|active| (*index, active)));
            }
        }
    }
    let (indices, readouts): (Vec<usize>, Vec<Readout>) = readouts.into_iter().unzip();

    let mut found = EdgeCheck {
        n_features: features.len(),
        n_errors: errors.len(),
        n_tokens: tokens.len(),
        n_contexts: contexts.len(),
        ..EdgeCheck::default()
    };
    let mut n_within = 0;
    let effects = original.direct_effects(linear, &sources, &readouts, job)?;
    for ((&column, &source), effects) in columns.iter().zip(&sources).zip(&effects) {
        let mut compare = |row: usize, effect: f32, target: NodeId| {
            let (edge, value) = (f64::from(graph.row(row)[column]), f64::from(graph.row_values[row]));
            let error = (f64::from(effect) - edge).abs();
            found.n_edges += 1;
            n_within += usize::from(error <= ATOL + RTOL * edge.abs() + ROUNDING * value.abs());
            found.largest_edge = found.largest_edge.max(edge.abs());
            if found.largest_error_at.is_none() || error > found.largest_error || error.is_nan() {
                found.largest_error = error;
                found.largest_error_at = Some((source, target));
            }
        };
        for row in layout.features() {
            let feature = feature_at(graph, row);
            if let Some(active) = index_here(feature) {
                compare(row, effects.features[active], feature.into());
            }
        }
        let of_features = of_features.iter().map(|&(index, active)| (index, effects.features[active]));
        for (index, effect) in indices.iter().copied().zip(effects.readouts.iter().copied()).chain(of_features) {
            compare(layout.n_features() + index, effect, NodeId::Target { index: index as u32 });
        }
    }
    found.share_within = if found.n_edges == 0 { 1.0 } else { n_within as f64 / found.n_edges as f64 };
    found.passed = found.share_within >= MIN_SHARE_WITHIN;
    Ok(found)
}

/// Graphs without closed positions do not speak of them.
fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// At most `n` of `all`, evenly spread.
fn spread(all: &[usize], n: usize) -> Vec<usize> {
    let n = n.min(all.len());
    (0..n).map(|i| all[i * all.len() / n]).collect()
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn a_sample_is_spread_and_no_larger_than_asked() {
        let all: Vec<usize> = (0..10).collect();
        assert_eq!(spread(&all, 3), [0, 3, 6]);
        assert_eq!(spread(&all, 20), all);
        assert!(spread(&all, 0).is_empty() && spread(&[], 3).is_empty());
    }
}
