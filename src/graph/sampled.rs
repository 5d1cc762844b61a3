//! Influence from a sample of the rows: one sweep from the targets down that visits few features and misses none on
//! average (`docs/sampling.md`).
//!
//! When the sweep reaches a layer, the influence `i` of its features is final. A feature is visited at the rate
//! `min(1, i/θ)` and, if visited, passes on `max(i, θ)` instead of `i`: in the mean just `i`. Whom the sweep visits does
//! not depend on rows that it has not seen, so what it adds up to is the whole influence in the mean; each row that goes
//! in is exact. Rows are read once and let go.

use rayon::prelude::*;

use super::sampled_vectors::{HostVectors, N_PATTERNS, RowSource, SweepVectors, SweptVectors, Visit};
use super::{NodeLayout, Scores, next_features, node_threshold};
use crate::{Error, Result};

/// Where the running sum of rates begins in each layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start {
    /// At ½ everywhere: the choice that depends on nothing.
    #[default]
    Middle,
    /// At numbers in 0..1 that follow from this seed, another one for each layer: repeats of a sweep that are
    /// independent of each other.
    Seed(u64),
}

impl Start {
    fn of_layer(self, layer: usize) -> f64 {
        match self {
            Start::Middle => 0.5,
            Start::Seed(seed) => (mix(mix(seed) ^ layer as u64) >> 11) as f64 / (1u64 << 53) as f64,
        }
    }
}

/// How a sweep chooses its rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampleSettings {
    /// Features with this much influence, in units of the targets' weights, are always visited; others at the rate
    /// influence/θ. With 0 all are.
    pub theta: f64,
    /// Where the running sums of visits start.
    pub start: Start,
}

impl SampleSettings {
    /// Settings for about `n_rows` visited features: influence passes through about two features on its way, so that
    /// all rates add up to about `2·Σ weights/θ`.
    pub fn for_rows(n_rows: usize, weights: &[f32]) -> SampleSettings {
        let weight: f64 = weights.iter().map(|&w| f64::from(w)).sum();
        SampleSettings { theta: FEATURES_PASSED * weight / n_rows.max(1) as f64, start: Start::Middle }
    }

    /// Vectors that a sweep adds to: influence, and where it is not exact, one for each pattern of signs.
    pub fn n_vectors(&self) -> usize {
        if self.theta > 0.0 { 1 + N_PATTERNS } else { 1 }
    }
}

/// Features that influence passes through between a target and an error or token, in the mean over real graphs.
const FEATURES_PASSED: f64 = 2.0;

/// What a sampled sweep yields.
#[derive(Debug, Clone, PartialEq)]
pub struct SampledInfluence {
    /// Estimated influence of every feature, error and token. [features, errors, tokens].
    pub nodes: Vec<f64>,
    /// Standard error of each estimate; 0 where it is exact. [features, errors, tokens].
    pub uncertainty: Vec<f64>,
    /// The features that were visited, ascending.
    pub visited: Vec<usize>,
    /// Scores of the whole graph.
    pub scores: Scores,
    /// Standard errors of the scores.
    pub score_uncertainty: Scores,
}

/// Which of the active features become nodes of a graph.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum KeptFeatures {
    /// Those among the strongest nodes that carry this share of all influence.
    Share(f64),
    /// This many, the strongest.
    Number(usize),
}

impl SampledInfluence {
    /// The features to keep, by their estimated influence, ascending. Features without influence are not kept.
    ///
    /// The share is one of the whole influence, whatever was visited: nodes that are not kept count too.
    pub fn kept_features(&self, layout: &NodeLayout, kept: KeptFeatures) -> Vec<usize> {
        let (smallest, number) = match kept {
            KeptFeatures::Share(share) => (node_threshold(&self.nodes, share).0, layout.n_features()),
            KeptFeatures::Number(number) => (0.0, number),
        };
        let features = &self.nodes[layout.features()];
        let mut strongest = next_features(features, &vec![false; features.len()], number);
        strongest.retain(|&feature| features[feature] > 0.0 && features[feature] >= smallest);
        strongest.sort_unstable();
        strongest
    }
}

/// Estimates the influence of every node on the targets from a sample of rows.
///
/// `layout`: all active features. `weights` are the targets' weights. `[n_targets]`.
///
/// The uncertainty comes from the same rows: neighbouring visits are paired, and what a pair would have given had one of
/// the two been visited twice and the other not is carried down beside the influence, under eight patterns of
/// signs.
///
/// # Errors
/// [`Error::Setting`] for a θ that is negative or no number; those of the source.
///
/// # Cost
/// About `2·Σ weights/θ` rows; `1 + N_PATTERNS` vectors of f64 over the columns, and some rows at a time.
pub fn sampled_influence(
    source: &dyn RowSource,
    layout: &NodeLayout,
    weights: &[f32],
    settings: SampleSettings,
) -> Result<SampledInfluence> {
    let vectors = &mut HostVectors::new(source, layout, settings.n_vectors());
    sampled_influence_in(vectors, layout, weights, settings, None)
}

/// A sweep on its way: what it takes to go on.
#[derive(Debug, Clone, PartialEq)]
pub struct SweepState {
    /// The layers below this one are left.
    pub layers_left: usize,
    /// The features that were visited, layers from the top down, each ascending.
    pub visited: Vec<usize>,
    /// Pairs of uncertain visits so far.
    pub n_pairs: u64,
    /// What the vectors have so far. `[n_vectors][features, errors, tokens]`
    pub vectors: Vec<Vec<f64>>,
    /// What was passed on to errors, in each vector. `[n_vectors]`
    pub to_errors: Vec<f64>,
}

/// As [`SweepState`], lent.
#[derive(Debug, Clone, Copy)]
pub struct SweepAt<'a> {
    /// The layers below this one are left.
    pub layers_left: usize,
    /// The features that were visited, layers from the top down, each ascending.
    pub visited: &'a [usize],
    /// Pairs of uncertain visits so far.
    pub n_pairs: u64,
    /// What the vectors have so far. `[n_vectors][features, errors, tokens]`
    pub vectors: &'a [Vec<f64>],
    /// What was passed on to errors, in each vector. `[n_vectors]`
    pub to_errors: &'a [f64],
}

/// Keeps a sweep that is on its way, so that another can go on from it.
pub trait SweepKeeper {
    /// Where an earlier sweep has come to, if one was kept: asked for once, before the first row.
    fn begin(&mut self) -> Option<SweepState>;

    /// Told after each layer.
    ///
    /// # Errors
    /// Those of keeping it.
    fn layer_done(&mut self, at: &SweepAt) -> Result<()>;
}

/// As [`sampled_influence`], where the vectors may be elsewhere than on the host, and with a keeper of what is done. There
/// are as many vectors as [`SampleSettings::n_vectors`] says, of zeros.
///
/// # Errors
/// [`Error::Setting`] for a θ that is negative or no number; those of the vectors and of the keeper.
pub fn sampled_influence_in(
    vectors: &mut dyn SweepVectors,
    layout: &NodeLayout,
    weights: &[f32],
    settings: SampleSettings,
    mut keeper: Option<&mut dyn SweepKeeper>,
) -> Result<SampledInfluence> {
    if !(settings.theta >= 0.0 && settings.theta.is_finite()) {
        return Err(Error::Setting { name: "theta", value: settings.theta, range: "0.." });
    }
    let of_target = |(target, &weight): (usize, &f32)| {
        let mut visit = Visit { row: layout.n_features() + target, weights: [0.0; N_PATTERNS + 1] };
        visit.weights[0] = f64::from(weight);
        visit
    };
    let (mut visited, mut n_pairs, n_layers) = match keeper.as_mut().and_then(|keeper| keeper.begin()) {
        Some(state) => {
            vectors.restore(state.vectors, state.to_errors)?;
            (state.visited, state.n_pairs, state.layers_left)
        }
        None => {
            vectors.add(&weights.iter().enumerate().map(of_target).collect::<Vec<Visit>>())?;
            (Vec::new(), 0, layout.n_layers())
        }
    };
    for layer in (0..n_layers).rev() {
        let features = layout.features_of_layer(layer);
        let visits = choose(features.start, &vectors.values(features)?, settings, layer, &mut n_pairs);
        visited.extend(visits.iter().map(|visit| visit.row));
        vectors.add(&visits)?;
        if let (Some(keeper), Some((vectors, to_errors))) = (&mut keeper, vectors.held()) {
            keeper.layer_done(&SweepAt { layers_left: layer, visited: &visited, n_pairs, vectors, to_errors })?;
        }
    }
    visited.sort_unstable();
    Ok(finished(vectors.finish()?, layout, weights, visited))
}

/// The visits of a layer whose influence is final. `first` is its first feature, `values` are those of the vectors;
/// `n_pairs` counts pairs of uncertain visits.
fn choose(first: usize, values: &[Vec<f64>], settings: SampleSettings, layer: usize, n_pairs: &mut u64) -> Vec<Visit> {
    let mut visits = Vec::new();
    let mut sum = settings.start.of_layer(layer);
    let mut is_second = false;
    for (at, &influence) in values[0].iter().enumerate() {
        let mut visit = Visit { row: first + at, weights: [0.0; N_PATTERNS + 1] };
        visit.weights.iter_mut().zip(values).for_each(|(weight, values)| *weight = values[at]);
        if influence < settings.theta {
            let rate = influence / settings.theta;
            let before = sum;
            sum += rate;
            if sum.floor() == before.floor() {
                continue;
            }
            visit.weights[0] = settings.theta;
            let signs = mix(*n_pairs);
            let own = settings.theta * (1.0 - rate).sqrt() * if is_second { -1.0 } else { 1.0 };
            for (pattern, noise) in visit.weights[1..].iter_mut().enumerate() {
                let sign = if signs >> pattern & 1 == 0 { own } else { -own };
                *noise = *noise / rate + sign;
            }
            *n_pairs += u64::from(is_second);
            is_second = !is_second;
        }
        visits.push(visit);
    }
    // One that is left over has no neighbour in its layer.
    *n_pairs += u64::from(is_second);
    visits
}

/// What the vectors of a sweep say. `visited` ascending.
fn finished(swept: SweptVectors, layout: &NodeLayout, weights: &[f32], visited: Vec<usize>) -> SampledInfluence {
    let SweptVectors { nodes, noise, to_errors } = swept;
    let weight: f64 = weights.iter().map(|&w| f64::from(w)).sum();
    let sums = |nodes: &[f64]| ScoreSums {
        tokens: layout.sum_of_tokens(nodes),
        errors: nodes[layout.errors()].iter().sum(),
        total: nodes.iter().sum(),
    };
    let found = sums(&nodes);
    let of = |sign: f64, noise: &ScoreSums, unexplained: f64| {
        let moved = ScoreSums {
            tokens: found.tokens + sign * noise.tokens,
            errors: found.errors + sign * noise.errors,
            total: weight + found.total + sign * noise.total,
        };
        moved.scores(to_errors[0] + sign * unexplained)
    };
    let none = ScoreSums { tokens: 0.0, errors: 0.0, total: 0.0 };
    let scores = of(0.0, &none, 0.0);
    let halves: Vec<(f64, f64)> = noise
        .iter()
        .zip(&to_errors[1..])
        .map(|(noise, &unexplained)| {
            let noise = sums(noise);
            let (up, down) = (of(1.0, &noise, unexplained), of(-1.0, &noise, unexplained));
            ((up.replacement - down.replacement) / 2.0, (up.completeness - down.completeness) / 2.0)
        })
        .collect();
    let root_mean_square = |values: &mut dyn Iterator<Item = f64>| {
        let (n, sum) = values.fold((0.0f64, 0.0), |(n, sum), value| (n + 1.0, sum + value * value));
        (sum / n.max(1.0)).sqrt()
    };
    let uncertainty = (0..nodes.len())
        .into_par_iter()
        .map(|node| root_mean_square(&mut noise.iter().map(|noise| noise[node])))
        .collect();
    SampledInfluence {
        uncertainty,
        visited,
        scores,
        score_uncertainty: Scores {
            replacement: root_mean_square(&mut halves.iter().map(|half| half.0)),
            completeness: root_mean_square(&mut halves.iter().map(|half| half.1)),
        },
        nodes,
    }
}

/// What the scores are made of.
struct ScoreSums {
    tokens: f64,
    errors: f64,
    /// Influence of all nodes, and weights of the targets.
    total: f64,
}

impl ScoreSums {
    fn scores(&self, unexplained: f64) -> Scores {
        let ends = self.tokens + self.errors;
        Scores {
            replacement: if ends > 0.0 { self.tokens / ends } else { 0.0 },
            completeness: if self.total > 0.0 { 1.0 - unexplained / self.total } else { 1.0 },
        }
    }
}

/// Bits that look random, from a number (splitmix64, Steele et al. 2014).
fn mix(number: u64) -> u64 {
    let mut bits = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
