//! What the graph predicts for an ablation, and what the model does.

use serde::Serialize;

use super::statistics::{pearson, spearman};
use super::{VerifyTarget, feature_at};
use crate::error::Result;
use crate::graph::{AttributionGraph, FeatureId};
use crate::intervene::change::{Change, Intervention, Mode, Positions};
use crate::intervene::effects::{read, read_positions};
use crate::intervene::original::{Keep, Original};
use crate::job::Job;
use crate::model::HookPoint;

/// Alternatives that go through the model together.
const BATCH: usize = 32;

/// Predicted and real changes of the first target that can be measured when the most influential features are ablated.
#[derive(Clone, Debug, Serialize)]
pub struct Faithfulness {
    /// Label of the target: its demeaned logit, difference or pre-activation is what changes.
    pub target: String,
    /// Features ablated.
    pub n_ablated: usize,
    /// Free, frozen attention, frozen attention and norms, and direct.
    pub modes: Vec<ModeFaithfulness>,
    /// Where predictions of single ablations go wrong; `None` where nothing is ablated.
    pub error_parts: Option<ErrorParts>,
}

/// Where the predictions of single ablations under frozen attention go wrong. All but correlations are means of |changes|.
#[derive(Clone, Debug, Serialize)]
pub struct ErrorParts {
    /// The real changes, for scale.
    pub real: f64,
    /// Prediction along all paths against the real change, attention frozen.
    pub total: f64,
    /// What frees norms: the real change against that with norms held too.
    pub from_norms: f64,
    /// What is left with norms held: MLPs that answer as their features do not say, since these saturate, switch on or off,
    /// or miss a part.
    pub from_features: f64,
    /// What frees attention: the free change against that with attention frozen.
    pub from_attention: f64,
    /// First-order predictors, the same ablations.
    pub predictors: Vec<Predictor>,
}

/// A way to predict an ablation, held against the real changes under frozen attention.
#[derive(Clone, Debug, Serialize)]
pub struct Predictor {
    /// What it follows.
    pub name: &'static str,
    /// Mean of |prediction - real|.
    pub error: f64,
    /// Over the ablations; `None` where one side does not vary.
    pub pearson: Option<f64>,
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
    target: &VerifyTarget,
    ablated: &[usize],
    job: &Job,
) -> Result<Faithfulness> {
    let mut groups: Vec<Vec<usize>> = ablated.iter().map(|&index| vec![index]).collect();
    groups.push(ablated.to_vec());
    let n = ablated.len();
    let modes = [Mode::Free, Mode::FrozenAttention, Mode::FrozenNorms, Mode::Direct];
    let real = modes.iter().map(|mode| measure(original, graph, target, &groups, Change::Set(0.0), mode, job));
    let real = real.collect::<Result<Vec<_>>>()?;
    let predicted = |paths: Paths| -> Vec<f64> {
        groups.iter().map(|group| predict(graph, target.index(), group, paths)).collect()
    };
    let (along_all, direct) = (predicted(Paths::Clamped), predicted(Paths::Direct));
    let of_mode = |(mode, real): (&Mode, &Vec<f64>)| {
        let follow_paths = *mode != Mode::Direct;
        let predicted = if follow_paths { &along_all } else { &direct };
        let changes = |i: usize| Changes { predicted: predicted[i], real: real[i] };
        ModeFaithfulness {
            mode: mode.to_string(),
            prediction: if follow_paths { "all paths" } else { "direct edges" },
            pearson: pearson(&predicted[..n], &real[..n]),
            spearman: spearman(&predicted[..n], &real[..n]),
            together: changes(n),
            single: (0..n)
                .map(|i| AblationPoint { feature: feature_at(graph, ablated[i]), changes: changes(i) })
                .collect(),
        }
    };
    let error_parts = if n == 0 {
        None
    } else {
        let (free, frozen, norms_held) = (&real[0][..n], &real[1][..n], &real[2][..n]);
        let small = measure(original, graph, target, &groups[..n], Change::Scale(1.0 - SMALL), &modes[1], job)?;
        let tangent: Vec<f64> = small.iter().map(|change| change / f64::from(SMALL)).collect();
        let predictor = |name: &'static str, predicted: &[f64]| Predictor {
            name,
            error: mean_distance(&predicted[..n], frozen),
            pearson: pearson(&predicted[..n], frozen),
        };
        Some(ErrorParts {
            real: mean_distance(frozen, &vec![0.0; n]),
            total: mean_distance(&along_all[..n], frozen),
            from_norms: mean_distance(frozen, norms_held),
            from_features: mean_distance(norms_held, &along_all[..n]),
            from_attention: mean_distance(free, frozen),
            predictors: vec![
                predictor("all paths", &along_all),
                predictor("all paths, unlimited", &predicted(Paths::Linear)),
                predictor("direct edges", &direct),
                predictor("small ablation, scaled", &tangent),
            ],
        })
    };
    Ok(Faithfulness {
        target: graph.meta.target_labels[target.index()].clone(),
        n_ablated: n,
        modes: modes.iter().zip(&real).map(of_mode).collect(),
        error_parts,
    })
}

/// Part of a feature that a small ablation takes away: small enough that the model answers in a straight line, large enough
/// to stand out of rounding in f32.
const SMALL: f32 = 1.0 / 32.0;

/// Mean of `|a - b|`.
fn mean_distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum::<f64>() / a.len().max(1) as f64
}

/// Real changes of the target's value (a logit demeaned, before any final softcap) under `change` of each group.
/// `[groups.len()]`
fn measure(
    original: &Original,
    graph: &AttributionGraph,
    target: &VerifyTarget,
    groups: &[Vec<usize>],
    change: Change,
    mode: &Mode,
    job: &Job,
) -> Result<Vec<f64>> {
    let of = |index: usize| Intervention { change, ..ablation(feature_at(graph, index)) };
    let mut all = Vec::with_capacity(groups.len());
    for groups in groups.chunks(BATCH) {
        let alternatives: Vec<Vec<Intervention>> =
            groups.iter().map(|group| group.iter().map(|&index| of(index)).collect()).collect();
        match target {
            VerifyTarget::Direction { pos, direction, .. } => {
                let before = f64::from(read(&original.run.pass.final_normed, *pos, direction)?[0]);
                let changed = original.changed_run(&alternatives, mode, Keep::Nothing, job)?;
                let after = read(&changed.pass.final_normed, *pos, direction)?;
                all.extend(after.into_iter().map(|after| f64::from(after) - before));
            }
            VerifyTarget::Feature { layer, pos, encoder_vec, .. } => {
                let point = original.replacement.input_point(*layer);
                let before = f64::from(read(original.run.activations.need(point)?, *pos, encoder_vec)?[0]);
                let changed = original.changed_run(&alternatives, mode, Keep::Inputs, job)?;
                if *layer < changed.first_layer {
                    // Nothing below the first change differs.
                    all.extend(vec![0.0; alternatives.len()]);
                    continue;
                }
                let after = read(changed.activations.need(point)?, *pos, encoder_vec)?;
                all.extend(after.into_iter().map(|after| f64::from(after) - before));
            }
            VerifyTarget::AttentionInput { layer, gradients, .. } => {
                let point = HookPoint::ResidPre(*layer);
                let before = f64::from(read_positions(original.run.activations.need(point)?, gradients)?[0]);
                let changed = original.changed_run(&alternatives, mode, Keep::Stream(*layer), job)?;
                if *layer <= changed.first_layer {
                    all.extend(vec![0.0; alternatives.len()]);
                    continue;
                }
                let after = read_positions(changed.activations.need(point)?, gradients)?;
                all.extend(after.into_iter().map(|after| f64::from(after) - before));
            }
        }
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

/// Which paths a prediction follows.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Paths {
    /// Edges into the target alone.
    Direct,
    /// All; a feature cannot lose more than it has.
    Clamped,
    /// All; features answer linearly, whatever comes out.
    Linear,
}

/// What the graph says about ablating features: each node's relative change runs along the edges, from low layers up.
///
/// # Cost
/// The edges between features, once; with direct edges only, one row.
fn predict(graph: &AttributionGraph, target: usize, ablated: &[usize], paths: Paths) -> f64 {
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
    if paths != Paths::Direct {
        let first_layer = ablated.iter().filter_map(|&index| layout.layer_of(index)).min().unwrap_or(0) as usize;
        for row in layout.features_of_layer(first_layer + 1).start..n_features {
            let activation = f64::from(graph.activation_values[graph.selected_features[row]]);
            if relative[row] == 0.0 && activation != 0.0 {
                let change = along(row, &relative) / activation;
                relative[row] = if paths == Paths::Clamped { change.max(-1.0) } else { change };
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
            error_nodes: None,
            unselected_error_effect: Vec::new(),
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
        assert_eq!(predict(&graph(1.0), 0, &[0], Paths::Direct), -3.0);
        // The second feature loses 1 of 4.
        assert_eq!(predict(&graph(1.0), 0, &[0], Paths::Clamped), -3.0 - 5.0 / 4.0);
        assert_eq!(predict(&graph(9.0), 0, &[0], Paths::Clamped), -8.0);
        assert_eq!(predict(&graph(9.0), 0, &[0], Paths::Linear), -3.0 - 5.0 * 9.0 / 4.0);
        assert_eq!(predict(&graph(-4.0), 0, &[0], Paths::Clamped), -3.0 + 5.0);
        assert_eq!(predict(&graph(1.0), 0, &[0, 1], Paths::Clamped), -8.0);
        assert_eq!(predict(&graph(1.0), 0, &[1], Paths::Clamped), -5.0);
    }
}
