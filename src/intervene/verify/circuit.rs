//! What the kept part of a graph is worth: is it sufficient, and is it necessary?

use std::collections::BTreeSet;

use serde::Serialize;

use super::super::random::Random;
use super::faithfulness::ablation;
use super::{VerifyOptions, feature_at};
use crate::error::Result;
use crate::graph::{AttributionGraph, FeatureId};
use crate::intervene::change::{Intervention, Mode};
use crate::intervene::compare::Distribution;
use crate::intervene::original::Original;
use crate::job::Job;

/// Shares of a set that are ablated.
const SHARES: [f64; 5] = [0.1, 0.25, 0.5, 0.75, 1.0];
/// Random sets per point; their mean is shown.
const N_RANDOM: usize = 3;
/// Alternatives that go through the model together: these are long.
const BATCH: usize = 8;

/// How the next token's distribution moves when kept or pruned-away features are ablated in the free model.
#[derive(Clone, Debug, Serialize)]
pub struct CircuitCheck {
    /// Features of the circuit.
    pub n_kept: usize,
    /// Active features that are not part of it.
    pub n_pruned: usize,
    /// Pruned-away features ablated, least influential first: a sufficient circuit stays close.
    pub sufficiency: Vec<CurvePoint>,
    /// Kept features ablated, most influential first: a necessary circuit does not.
    pub necessity: Vec<CurvePoint>,
}

/// One point of a curve.
#[derive(Clone, Debug, Serialize)]
pub struct CurvePoint {
    /// Part of the curve's features that are ablated, in 0..=1.
    pub share: f64,
    /// How many that is.
    pub n_ablated: usize,
    /// From the original distribution, in nats.
    pub kl_divergence: f64,
    /// The same for as many random active features of the same layers; mean of several draws.
    pub kl_divergence_random: f64,
}

/// Computes both curves. `by_influence` are the features' node indices, most influential first.
pub fn check(
    original: &Original,
    graph: &AttributionGraph,
    by_influence: &[usize],
    options: &VerifyOptions,
    job: &Job,
) -> Result<CircuitCheck> {
    let is_kept: BTreeSet<FeatureId> = options.kept.iter().copied().collect();
    let ordered: Vec<FeatureId> = by_influence.iter().map(|&index| feature_at(graph, index)).collect();
    let kept: Vec<FeatureId> = ordered.iter().copied().filter(|f| is_kept.contains(f)).collect();
    // Features without a row come first: they were too uninfluential to get one.
    let selected: BTreeSet<FeatureId> = ordered.iter().copied().collect();
    let unselected = graph.active_features.iter().copied().filter(|f| !selected.contains(f));
    let pruned: Vec<FeatureId> =
        unselected.chain(ordered.iter().rev().copied().filter(|f| !is_kept.contains(f))).collect();
    let mut random = Random(options.seed);
    Ok(CircuitCheck {
        n_kept: kept.len(),
        n_pruned: pruned.len(),
        sufficiency: curve(original, graph, &pruned, &mut random, job)?,
        necessity: curve(original, graph, &kept, &mut random, job)?,
    })
}

fn curve(
    original: &Original,
    graph: &AttributionGraph,
    ordered: &[FeatureId],
    random: &mut Random,
    job: &Job,
) -> Result<Vec<CurvePoint>> {
    let counts: Vec<usize> = SHARES.iter().map(|share| (share * ordered.len() as f64).round() as usize).collect();
    let mut sets: Vec<Vec<FeatureId>> = Vec::new();
    for &count in &counts {
        sets.push(ordered[..count].to_vec());
        for _ in 0..N_RANDOM {
            sets.push(same_layers(graph, &ordered[..count], random));
        }
    }
    let divergences = divergences(original, &sets, job)?;
    let point = |(i, (&share, &n_ablated)): (usize, (&f64, &usize))| {
        let here = &divergences[i * (1 + N_RANDOM)..(i + 1) * (1 + N_RANDOM)];
        CurvePoint {
            share,
            n_ablated,
            kl_divergence: here[0],
            kl_divergence_random: here[1..].iter().sum::<f64>() / N_RANDOM as f64,
        }
    };
    Ok(SHARES.iter().zip(&counts).enumerate().map(point).collect())
}

/// As many random active features of each layer as `features` has there.
fn same_layers(graph: &AttributionGraph, features: &[FeatureId], random: &mut Random) -> Vec<FeatureId> {
    let mut drawn = Vec::with_capacity(features.len());
    for layer in 0..graph.meta.n_layers as u32 {
        let n = features.iter().filter(|f| f.layer == layer).count();
        let all: Vec<FeatureId> = graph.active_features.iter().copied().filter(|f| f.layer == layer).collect();
        drawn.extend(random.draw(&all, n));
    }
    drawn
}

/// KL divergence of the free model from the original when each set is ablated.
fn divergences(original: &Original, sets: &[Vec<FeatureId>], job: &Job) -> Result<Vec<f64>> {
    let before = Distribution::new(&original.logits);
    let mut all = Vec::with_capacity(sets.len());
    for sets in sets.chunks(BATCH) {
        let alternatives: Vec<Vec<Intervention>> =
            sets.iter().map(|set| set.iter().copied().map(ablation).collect()).collect();
        let logits = original.changed_logits(&alternatives, &Mode::Free, job)?;
        all.extend(logits.iter().map(|logits| before.kl_divergence(&Distribution::new(logits))));
    }
    Ok(all)
}
