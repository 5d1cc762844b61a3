//! What the graph predicts for an ablation, and what the model does.

use serde::Serialize;

use super::statistics::{pearson, spearman};
use super::{TokenTarget, feature_at};
use crate::error::Result;
use crate::graph::{AttributionGraph, FeatureId};
use crate::intervene::change::{Change, Intervention, Mode, Positions};
use crate::intervene::effects::read;
use crate::intervene::original::Original;
use crate::job::Job;

/// Alternatives that go through the model together.
const BATCH: usize = 32;

/// Predicted and real changes of the first target's demeaned logit when the most influential features are ablated.
#[derive(Clone, Debug, Serialize)]
pub struct Faithfulness {
    /// Label of the target.
    pub target: String,
    /// Features ablated.
    pub n_ablated: usize,
    /// Free, frozen attention and direct.
    pub modes: Vec<ModeFaithfulness>,
}

/// One mode's ablations.
#[derive(Clone, Debug, Serialize)]
pub struct ModeFaithfulness {
    /// What is held to the original run.
    pub mode: String,
    /// What the prediction follows: `direct edges`, or `all paths` through other features.
    pub prediction: &'static str,
    /// Over the single ablations; `None` where one side does not vary.
    pub pearson: Option<f64>,
    /// The same of ranks.
    pub spearman: Option<f64>,
    /// All of them ablated at once.
    pub together: Changes,
    /// One feature a point, most influential first.
    pub single: Vec<AblationPoint>,
}

/// A change of the target's logit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Changes {
    pub predicted: f64,
    pub real: f64,
}

/// One feature, ablated alone.
#[derive(Clone, Debug, Serialize)]
pub struct AblationPoint {
    /// Which one, and where.
    #[serde(flatten)]
    pub feature: FeatureId,
    /// What its ablation does to the target.
    #[serde(flatten)]
    pub changes: Changes,
}

/// Ablates the features at node indices `ablated` one by one and together, under every mode.
pub fn check(
    original: &Original,
    graph: &AttributionGraph,
    target: &TokenTarget,
    ablated: &[usize],
    job: &Job,
) -> Result<Faithfulness> {
    let mut groups: Vec<Vec<usize>> = ablated.iter().map(|&index| vec![index]).collect();
    groups.push(ablated.to_vec());
    let modes = [Mode::Free, Mode::FrozenAttention, Mode::Direct];
    let check_mode = |mode: &Mode| -> Result<ModeFaithfulness> {
        let follow_paths = *mode != Mode::Direct;
        let real = measure(original, graph, target, &groups, mode, job)?;
        let predicted: Vec<f64> =
            groups.iter().map(|group| predict(graph, target.index, group, follow_paths)).collect();
        let n = ablated.len();
        let changes = |i: usize| Changes { predicted: predicted[i], real: real[i] };
        Ok(ModeFaithfulness {
            mode: mode.to_string(),
            prediction: if follow_paths { "all paths" } else { "direct edges" },
            pearson: pearson(&predicted[..n], &real[..n]),
            spearman: spearman(&predicted[..n], &real[..n]),
            together: changes(n),
            single: (0..n)
                .map(|i| AblationPoint { feature: feature_at(graph, ablated[i]), changes: changes(i) })
                .collect(),
        })
    };
    Ok(Faithfulness {
        target: graph.meta.target_labels[target.index].clone(),
        n_ablated: ablated.len(),
        modes: modes.iter().map(check_mode).collect::<Result<_>>()?,
    })
}

/// Real changes of the target's demeaned logit, before any final softcap. `[groups.len()]`
fn measure(
    original: &Original,
    graph: &AttributionGraph,
    target: &TokenTarget,
    groups: &[Vec<usize>],
    mode: &Mode,
    job: &Job,
) -> Result<Vec<f64>> {
    let readouts = [target.readout.clone()];
    let before = f64::from(read(&original.run.pass.final_normed, &readouts)?[0][0]);
    let mut all = Vec::with_capacity(groups.len());
    for groups in groups.chunks(BATCH) {
        let alternatives: Vec<Vec<Intervention>> = groups
            .iter()
            .map(|group| group.iter().map(|&index| ablation(feature_at(graph, index))).collect())
            .collect();
        let changed = original.changed_run(&alternatives, mode, false, job)?;
        all.extend(read(&changed.pass.final_normed, &readouts)?.iter().map(|row| f64::from(row[0]) - before));
    }
    Ok(all)
}

/// The intervention that switches a feature off.
pub fn ablation(feature: FeatureId) -> Intervention {
    Intervention {
        layer: feature.layer as usize,
        feature: feature.feature as usize,
        positions: Positions::At(feature.pos as usize),
        change: Change::Set(0.0),
    }
}

/// What the graph says about ablating features: each node's relative change runs along the edges, from low layers up.
///
/// A feature's change is linear in its pre-activation, but it cannot lose more than it has.
///
/// # Cost
/// The edges between features, once; with direct edges only, one row.
fn predict(graph: &AttributionGraph, target: usize, ablated: &[usize], follow_paths: bool) -> f64 {
    let layout = graph.layout();
    let n_features = layout.n_features();
    // Change of every feature's activation, as a share of it.
    let mut relative = vec![0f64; n_features];
    ablated.iter().for_each(|&index| relative[index] = -1.0);
    let along = |row: usize, relative: &[f64]| -> f64 {
        let features = layout.source_ranges(row).map(|range| range.start.min(n_features)..range.end.min(n_features));
        let edges = graph.row(row);
        features.flatten().map(|source| f64::from(edges[source]) * relative[source]).sum()
    };
    if follow_paths {
        let first_layer = ablated.iter().filter_map(|&index| layout.layer_of(index)).min().unwrap_or(0) as usize;
        for row in layout.features_of_layer(first_layer + 1).start..n_features {
            let activation = f64::from(graph.activation_values[graph.selected_features[row]]);
            if relative[row] == 0.0 && activation != 0.0 {
                relative[row] = (along(row, &relative) / activation).max(-1.0);
            }
        }
    }
    along(n_features + target, &relative)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{EdgeRows, GraphData, GraphMeta};

    /// A feature in each of two layers and one target; `inner` is the edge between the features.
    fn graph(inner: f32) -> AttributionGraph {
        let feature = |layer| FeatureId { layer, pos: 1, feature: 0 };
        // Columns: two features, four errors, two tokens, the target.
        let mut rows = vec![0f32; 3 * 9];
        rows[9] = inner;
        rows[18] = 3.0;
        rows[19] = 5.0;
        AttributionGraph::new(GraphData {
            input_tokens: vec![0, 1],
            active_features: vec![feature(0), feature(1)],
            activation_values: vec![2.0, 4.0],
            selected_features: vec![0, 1],
            edge_rows: EdgeRows::from_vec(rows, 3, 9).unwrap(),
            bias_effect: vec![0.0; 3],
            unselected_effect: Vec::new(),
            row_values: vec![0.0; 3],
            target_ids: vec![0],
            target_probabilities: vec![1.0],
            logits: vec![0.0],
            meta: GraphMeta {
                prompt_tokens: vec![String::new(); 2],
                target_labels: vec![String::new()],
                target_positions: vec![1],
                n_layers: 2,
                ..GraphMeta::default()
            },
        })
        .unwrap()
    }

    #[test]
    fn predictions_follow_paths_and_no_feature_loses_more_than_it_has() {
        assert_eq!(predict(&graph(1.0), 0, &[0], false), -3.0);
        // The second feature loses 1 of 4.
        assert_eq!(predict(&graph(1.0), 0, &[0], true), -3.0 - 5.0 / 4.0);
        assert_eq!(predict(&graph(9.0), 0, &[0], true), -8.0);
        assert_eq!(predict(&graph(-4.0), 0, &[0], true), -3.0 + 5.0);
        assert_eq!(predict(&graph(1.0), 0, &[0, 1], true), -8.0);
        assert_eq!(predict(&graph(1.0), 0, &[1], true), -5.0);
    }
}
