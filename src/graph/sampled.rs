//! Influence from a sample of the rows: one sweep from the targets down that visits few features and misses none on
//! average (`docs/sampling.md`).
//!
//! When the sweep reaches a layer, the influence `i` of its features is final. A feature is visited at the rate
//! `min(1, i/θ)` and, if visited, passes on `max(i, θ)` instead of `i`: in the mean just `i`. Whom the sweep visits does
//! not depend on rows that it has not seen, so what it adds up to is the whole influence in the mean; each row that goes
//! in is exact. Rows are read once and let go.

use std::sync::OnceLock;

use rayon::prelude::*;

use super::influence::{ROW_SUM_CLAMP, add_abs_scaled, row_abs_sums};
use super::sweep::BLOCK_ROWS;
use super::{NodeLayout, Scores, next_features, node_threshold};
use crate::{Error, Result};

/// Sign patterns that the uncertainty comes from: with 8, it is itself known to about a quarter.
const N_PATTERNS: usize = 8;

/// Values of rows that are held at once, unless a block of rows has more.
const HELD_VALUES: usize = 1 << 25;

/// Columns that one task adds up.
const SEGMENT_COLUMNS: usize = 1 << 12;

/// Where rows come from: computed on demand, or read.
pub trait RowSource: Sync {
    /// Calls `each` once for every one of `rows`, with its place in `rows` and its effects, in any order and from any
    /// thread. `rows` are row numbers of the layout, all of one layer or all of targets, ascending. Effects:
    /// [features, errors, tokens] at least, zero outside of the row's source ranges.
    ///
    /// # Errors
    /// Those of computing or reading the rows.
    fn rows(&self, rows: &[usize], each: &(dyn Fn(usize, &[f32]) + Sync)) -> Result<()>;
}

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

/// One visited row.
#[derive(Debug, Clone, Copy)]
struct Visit {
    row: usize,
    /// What it passes on, and the same for each sign pattern.
    weight: f64,
    noise: [f64; N_PATTERNS],
    /// `Σ_s |A[t,s]|`, and the part of it that comes from errors.
    abs_sums: (f64, f64),
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
    if !(settings.theta >= 0.0 && settings.theta.is_finite()) {
        return Err(Error::Setting { name: "theta", value: settings.theta, range: "0.." });
    }
    let mut sweep = Sweep {
        source,
        layout,
        nodes: vec![0.0; layout.targets().start],
        noise: vec![Vec::new(); if settings.theta > 0.0 { N_PATTERNS } else { 0 }],
        unexplained: [0.0; N_PATTERNS + 1],
        visited: Vec::new(),
        n_pairs: 0,
    };
    sweep.noise.iter_mut().for_each(|noise| noise.resize(layout.targets().start, 0.0));
    let of_target = |(target, &weight): (usize, &f32)| Visit {
        row: layout.n_features() + target,
        weight: f64::from(weight),
        noise: [0.0; N_PATTERNS],
        abs_sums: (0.0, 0.0),
    };
    sweep.add(weights.iter().enumerate().map(of_target).collect())?;
    for layer in (0..layout.n_layers()).rev() {
        let visits = sweep.choose(layer, settings);
        sweep.visited.extend(visits.iter().map(|visit| visit.row));
        sweep.add(visits)?;
    }
    sweep.visited.sort_unstable();
    Ok(sweep.finish(weights))
}

struct Sweep<'a> {
    source: &'a dyn RowSource,
    layout: &'a NodeLayout,
    nodes: Vec<f64>,
    /// For each sign pattern, how far the influence might be off. [N_PATTERNS][features, errors, tokens], or [0].
    noise: Vec<Vec<f64>>,
    /// What was passed on to errors, and the same for each pattern.
    unexplained: [f64; N_PATTERNS + 1],
    visited: Vec<usize>,
    /// Pairs of uncertain visits so far.
    n_pairs: u64,
}

impl Sweep<'_> {
    /// The visits of a layer whose influence is final.
    fn choose(&mut self, layer: usize, settings: SampleSettings) -> Vec<Visit> {
        let mut visits = Vec::new();
        let mut sum = settings.start.of_layer(layer);
        let mut is_second = false;
        for row in self.layout.features_of_layer(layer) {
            let influence = self.nodes[row];
            let mut visit = Visit { row, weight: influence, noise: [0.0; N_PATTERNS], abs_sums: (0.0, 0.0) };
            for (noise, all) in visit.noise.iter_mut().zip(&self.noise) {
                *noise = all[row];
            }
            if influence < settings.theta {
                let rate = influence / settings.theta;
                let before = sum;
                sum += rate;
                if sum.floor() == before.floor() {
                    continue;
                }
                visit.weight = settings.theta;
                let signs = mix(self.n_pairs);
                let own = settings.theta * (1.0 - rate).sqrt() * if is_second { -1.0 } else { 1.0 };
                for (pattern, noise) in visit.noise.iter_mut().enumerate() {
                    let sign = if signs >> pattern & 1 == 0 { own } else { -own };
                    *noise = *noise / rate + sign;
                }
                self.n_pairs += u64::from(is_second);
                is_second = !is_second;
            }
            visits.push(visit);
        }
        // One that is left over has no neighbour in its layer.
        self.n_pairs += u64::from(is_second);
        visits
    }

    /// Gets the rows of `visits`, some blocks at a time, and adds what they pass on.
    fn add(&mut self, mut visits: Vec<Visit>) -> Result<()> {
        let n_columns = self.nodes.len();
        let n_held = (HELD_VALUES / n_columns.max(1)).max(BLOCK_ROWS);
        let Some(first) = visits.first().map(|visit| visit.row) else { return Ok(()) };
        let block_of = match first.checked_sub(self.layout.n_features()) {
            Some(_) => self.layout.n_features(),
            None => self.layout.features_of_layer(self.layout.feature_ids()[first].layer as usize).start,
        };
        let block_of = |visit: &Visit| (visit.row - block_of) / BLOCK_ROWS;
        let mut rest = visits.as_mut_slice();
        while !rest.is_empty() {
            // Whole blocks, so that the order of additions does not depend on how many rows are held.
            let mut n = rest.len().min(n_held);
            while n < rest.len() && n > 1 && block_of(&rest[n]) == block_of(&rest[n - 1]) {
                n -= 1;
            }
            let (held, later) = std::mem::take(&mut rest).split_at_mut(n);
            self.add_held(held, block_of)?;
            rest = later;
        }
        Ok(())
    }

    fn add_held(&mut self, visits: &mut [Visit], block_of: impl Fn(&Visit) -> usize + Sync) -> Result<()> {
        let layout = self.layout;
        let n_columns = self.nodes.len();
        let slots: Vec<OnceLock<Box<[f32]>>> = visits.iter().map(|_| OnceLock::new()).collect();
        let rows: Vec<usize> = visits.iter().map(|visit| visit.row).collect();
        self.source.rows(&rows, &|place, effects| {
            // A second call for a row brings the same values.
            let _ = slots[place].set(effects[..n_columns].into());
        })?;
        let effects: Vec<&[f32]> = slots.iter().map(|slot| slot.get().map_or(&[][..], |row| row)).collect();
        if let Some(place) = effects.iter().position(|row| row.is_empty() && n_columns > 0) {
            return Err(Error::GraphShape {
                name: "rows of a source",
                expected: vec![n_columns],
                actual: vec![rows[place], 0],
            });
        }
        visits.par_iter_mut().zip(&effects).for_each(|(visit, effects)| {
            visit.abs_sums = row_abs_sums(layout, visit.row, effects);
        });
        for visit in visits.iter() {
            let error_share = visit.abs_sums.1 / visit.abs_sums.0.max(ROW_SUM_CLAMP);
            self.unexplained[0] += visit.weight * error_share;
            for (unexplained, noise) in self.unexplained[1..].iter_mut().zip(visit.noise) {
                *unexplained += noise * error_share;
            }
        }

        let visits = &*visits;
        let add_to = |vector: &mut [f64], weight: &(dyn Fn(&Visit) -> f64 + Sync)| {
            vector.par_chunks_mut(SEGMENT_COLUMNS).enumerate().for_each(|(segment, totals)| {
                let first = segment * SEGMENT_COLUMNS;
                let mut block_sums = vec![0.0f64; totals.len()];
                let places: Vec<usize> = (0..visits.len()).collect();
                for block in places.chunk_by(|&a, &b| block_of(&visits[a]) == block_of(&visits[b])) {
                    // Sums of blocks are added, as `influence` does; a single row is its own sum.
                    let is_single = block.len() == 1;
                    for &place in block {
                        let visit = &visits[place];
                        let share = weight(visit) / visit.abs_sums.0.max(ROW_SUM_CLAMP);
                        if share == 0.0 {
                            continue;
                        }
                        let sums = if is_single { &mut *totals } else { &mut block_sums };
                        for range in layout.source_ranges(visit.row) {
                            let (start, end) = (range.start.max(first), range.end.min(first + sums.len()));
                            if start < end {
                                add_abs_scaled(
                                    &mut sums[start - first..end - first],
                                    &effects[place][start..end],
                                    share,
                                );
                            }
                        }
                    }
                    if !is_single {
                        totals.iter_mut().zip(&block_sums).for_each(|(total, sum)| *total += sum);
                        block_sums.fill(0.0);
                    }
                }
            });
        };
        add_to(&mut self.nodes, &|visit| visit.weight);
        for (pattern, noise) in self.noise.iter_mut().enumerate() {
            add_to(noise, &|visit| visit.noise[pattern]);
        }
        Ok(())
    }

    fn finish(self, weights: &[f32]) -> SampledInfluence {
        let layout = self.layout;
        let weight: f64 = weights.iter().map(|&w| f64::from(w)).sum();
        let sums = |nodes: &[f64]| ScoreSums {
            tokens: nodes[layout.tokens()].iter().sum(),
            errors: nodes[layout.errors()].iter().sum(),
            total: nodes.iter().sum(),
        };
        let found = sums(&self.nodes);
        let of = |sign: f64, noise: &ScoreSums, unexplained: f64| {
            let moved = ScoreSums {
                tokens: found.tokens + sign * noise.tokens,
                errors: found.errors + sign * noise.errors,
                total: weight + found.total + sign * noise.total,
            };
            moved.scores(self.unexplained[0] + sign * unexplained)
        };
        let none = ScoreSums { tokens: 0.0, errors: 0.0, total: 0.0 };
        let scores = of(0.0, &none, 0.0);
        let halves: Vec<(f64, f64)> = self
            .noise
            .iter()
            .zip(&self.unexplained[1..])
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
        let uncertainty = (0..self.nodes.len())
            .into_par_iter()
            .map(|node| root_mean_square(&mut self.noise.iter().map(|noise| noise[node])))
            .collect();
        SampledInfluence {
            uncertainty,
            visited: self.visited,
            scores,
            score_uncertainty: Scores {
                replacement: root_mean_square(&mut halves.iter().map(|half| half.0)),
                completeness: root_mean_square(&mut halves.iter().map(|half| half.1)),
            },
            nodes: self.nodes,
        }
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
