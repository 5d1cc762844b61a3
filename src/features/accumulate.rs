//! What stays of a layer's activations: running statistics of each feature. They depend on what was seen, not on its order:
//! sums are exact, and what is kept is chosen by value, hash and position.

use rayon::prelude::*;

use super::dashboard::{
    Dashboard, Example, Groups, N_INTERVALS, Neighbor, TokenCount, WINDOW_AFTER, WINDOW_BEFORE, interval_of,
};
use super::histogram::{Histogram, step_of};
use super::manifest::{Hash, Settings};
use crate::transcoder::Candidate;

/// Tokens on each side of an example that make it the same as another one.
const SAME_WITHIN: usize = 8;

/// Tokens that are listed of a feature.
const N_TOKENS: usize = 10;

/// The same of what comes before them.
const N_BEFORE: usize = 5;

/// Fixed point of sums: 2^-32.
const SUM_SCALE: f64 = 4_294_967_296.0;

/// Features that a task of a thread pool handles.
const TASK_FEATURES: usize = 32;

/// The last steps of splitmix64: spreads every bit over all.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A hash of a sequence's tokens.
pub(crate) fn sequence_hash(tokens: impl Iterator<Item = u32>) -> u64 {
    let mut hash = Hash::default();
    tokens.for_each(|token| hash.add(token));
    mix(hash.value())
}

/// A hash of a place in the text, whatever stands before its sequence: its sequence's tokens and how far in it is.
pub(super) fn place_hash(sequence: u64, offset: usize) -> u64 {
    mix(sequence.wrapping_add((offset as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

/// What chooses samples: the hash of a feature at a place.
pub(super) fn sample_hash(place: u64, feature: u64) -> u64 {
    mix(place ^ feature)
}

/// A hash of a feature and the seed.
fn feature_hash(seed: u64, layer: usize, feature: usize) -> u64 {
    mix(mix(seed ^ 0x5851_f42d_4c95_7f2d) ^ ((layer as u64) << 32 | feature as u64))
}

/// What two examples have in common that are the same but for what is far from them.
fn context_hash(tokens: impl Fn(usize) -> u32, len: usize, at: usize) -> u64 {
    let (start, end) = (at.saturating_sub(SAME_WITHIN), (at + SAME_WITHIN + 1).min(len));
    let mut hash = Hash::default();
    hash.add((at - start) as u32);
    (start..end).for_each(|i| hash.add(tokens(i)));
    hash.value()
}

/// Where the rows of sequences stand, which come one after another.
#[derive(Debug)]
pub(super) struct BatchPlaces<'a> {
    /// Tokens of each sequence of the batch.
    pub sequences: &'a [&'a [u32]],
    /// Where each sequence begins in the token store.
    pub starts: &'a [u32],
    /// Hash of each place. `[n_sequences][len]`
    pub hashes: &'a [Vec<u64>],
    /// Tokens at the beginning of each sequence that do not count.
    pub excluded: &'a [usize],
}

/// Something kept: an example, and what it is ranked or told apart by.
#[derive(Clone, Debug, PartialEq)]
struct Kept {
    position: u32,
    value: f32,
    /// Of a top example, the hash of its context; of a sample, its own hash.
    hash: u64,
    neighbors: Box<[Neighbor]>,
}

/// An activation that was sampled for counting tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Firing {
    hash: u32,
    pub position: u32,
    pub value: f32,
}

impl Firing {
    /// Of an activation whose sample has `hash`.
    pub(super) fn new(hash: u64, position: u32, value: f32) -> Self {
        Self { hash: (hash >> 32) as u32, position, value }
    }

    fn rank(&self) -> (u32, u32) {
        (self.hash, self.position)
    }
}

/// Statistics of one feature.
#[derive(Clone, Debug, Default)]
pub(super) struct FeatureStats {
    count: u32,
    n_sequences: u32,
    /// In units of 2^-32.
    sum: i128,
    min: f32,
    max: f32,
    histogram: Histogram,
    /// Strongest first; no two of one context.
    top: Vec<Kept>,
    /// Samples of the intervals, weakest interval first, smallest hash first.
    samples: [Vec<Kept>; N_INTERVALS],
    /// Those of smallest hash, and some more until they are next sorted out.
    firings: Vec<Firing>,
    /// The largest rank that can still be among them.
    cut: Option<(u32, u32)>,
}

/// One run of a feature's activations: those of one sequence. `(offset in the sequence, value)`
struct Run<'a> {
    active: &'a [(u32, f32)],
    tokens: &'a [u32],
    start: u32,
    hashes: &'a [u64],
}

impl Run<'_> {
    fn neighbors(&self, at: usize) -> Box<[Neighbor]> {
        let own = self.active[at].0;
        let near = self.active.iter().filter(|&&(offset, _)| {
            offset != own && offset + WINDOW_BEFORE as u32 >= own && offset <= own + WINDOW_AFTER as u32
        });
        near.map(|&(offset, value)| Neighbor { offset: (i64::from(offset) - i64::from(own)) as i8, value }).collect()
    }

    fn kept(&self, at: usize, hash: u64) -> Kept {
        let (offset, value) = self.active[at];
        Kept { position: self.start + offset, value, hash, neighbors: self.neighbors(at) }
    }
}

/// Whether (value, position) goes before another: larger values first, of equal ones the earlier.
fn is_stronger(a: (f32, u32), b: (f32, u32)) -> bool {
    a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)).is_gt()
}

impl FeatureStats {
    fn observe(&mut self, run: &Run, feature: u64, settings: &Settings) {
        let mut strongest = 0;
        self.n_sequences += 1;
        for (i, &(offset, value)) in run.active.iter().enumerate() {
            if value > run.active[strongest].1 {
                strongest = i;
            }
            self.add_value(value, settings);
            let (hash, position) = (sample_hash(run.hashes[offset as usize], feature), run.start + offset);
            self.add_firing(Firing::new(hash, position, value), settings.n_sampled);
            let interval = self.interval(value);
            if self.wants_sample(interval, hash, position, settings) {
                self.add_sample(interval, run.kept(i, hash), settings);
            }
        }
        let (offset, value) = run.active[strongest];
        if self.wants_top(value, run.start + offset, settings) {
            let hash = context_hash(|i| run.tokens[i], run.tokens.len(), offset as usize);
            self.add_top(run.kept(strongest, hash), settings);
        }
    }

    fn add_value(&mut self, value: f32, settings: &Settings) {
        let is_first = self.count == 0;
        self.count = self.count.saturating_add(1);
        self.sum = self.sum.saturating_add((f64::from(value) * SUM_SCALE).round() as i128);
        self.histogram.add(value);
        self.see_range(value, value, is_first, settings);
    }

    /// Widens the range of values; intervals count down from the largest, so that samples may move to lower ones.
    fn see_range(&mut self, min: f32, max: f32, is_first: bool, settings: &Settings) {
        let before = step_of(self.max);
        self.min = if is_first { min } else { self.min.min(min) };
        self.max = if is_first { max } else { self.max.max(max) };
        if is_first {
            return;
        }
        for _ in 0..usize::from(step_of(self.max) - before).min(N_INTERVALS) {
            let second = std::mem::take(&mut self.samples[1]);
            self.samples[0].extend(second);
            self.samples[1..].rotate_left(1);
            self.tidy_samples(0, settings);
        }
    }

    /// Which interval a value is in, from 0.
    fn interval(&self, value: f32) -> usize {
        interval_of(self.max, value) - 1
    }

    fn wants_sample(&self, interval: usize, hash: u64, position: u32, settings: &Settings) -> bool {
        let samples = &self.samples[interval];
        let last = samples.get(settings.n_per_interval.wrapping_sub(1));
        settings.n_per_interval > 0 && last.is_none_or(|last| (hash, position) < (last.hash, last.position))
    }

    fn add_sample(&mut self, interval: usize, sample: Kept, settings: &Settings) {
        self.samples[interval].push(sample);
        self.tidy_samples(interval, settings);
    }

    /// Sorts the samples of an interval, of equal hashes (the same place of equal sequences) the first, as many as wanted.
    fn tidy_samples(&mut self, interval: usize, settings: &Settings) {
        let samples = &mut self.samples[interval];
        samples.sort_by_key(|sample| (sample.hash, sample.position));
        samples.dedup_by_key(|sample| sample.hash);
        samples.truncate(settings.n_per_interval);
    }

    fn wants_top(&self, value: f32, position: u32, settings: &Settings) -> bool {
        let last = self.top.get(settings.n_top - 1);
        last.is_none_or(|last| is_stronger((value, position), (last.value, last.position)))
    }

    fn add_top(&mut self, example: Kept, settings: &Settings) {
        let stronger = |other: &Kept| is_stronger((example.value, example.position), (other.value, other.position));
        if let Some(same) = self.top.iter().position(|other| other.hash == example.hash) {
            if !stronger(&self.top[same]) {
                return;
            }
            self.top.remove(same);
        }
        let at = self.top.iter().position(stronger).unwrap_or(self.top.len());
        self.top.insert(at, example);
        self.top.truncate(settings.n_top);
    }

    fn add_firing(&mut self, firing: Firing, n_sampled: usize) {
        if self.cut.is_some_and(|cut| firing.rank() > cut) {
            return;
        }
        self.firings.push(firing);
        if self.firings.len() > n_sampled + n_sampled / 4 {
            self.tidy_firings(n_sampled);
        }
    }

    fn tidy_firings(&mut self, n_sampled: usize) {
        if self.firings.len() > n_sampled {
            self.firings.select_nth_unstable_by_key(n_sampled - 1, Firing::rank);
            self.firings.truncate(n_sampled);
            self.cut = Some(self.firings[n_sampled - 1].rank());
        }
    }

    /// Adds what others saw elsewhere.
    fn merge(&mut self, other: FeatureStats, settings: &Settings) {
        if other.count == 0 {
            return;
        }
        let is_first = self.count == 0;
        self.count = self.count.saturating_add(other.count);
        self.n_sequences = self.n_sequences.saturating_add(other.n_sequences);
        self.sum = self.sum.saturating_add(other.sum);
        self.histogram.merge(&other.histogram);
        self.see_range(other.min, other.max, is_first, settings);
        let below = usize::from(step_of(self.max) - step_of(other.max));
        for (interval, samples) in other.samples.into_iter().enumerate() {
            self.samples[interval.saturating_sub(below)].extend(samples);
        }
        (0..N_INTERVALS).for_each(|interval| self.tidy_samples(interval, settings));
        for example in other.top {
            if self.wants_top(example.value, example.position, settings) {
                self.add_top(example, settings);
            }
        }
        for firing in other.firings {
            self.add_firing(firing, settings.n_sampled);
        }
    }

    /// The dashboard, with the tokens at the sampled positions and before them.
    fn dashboard(&self, settings: &Settings, tokens: &dyn Tokens) -> Dashboard {
        let mut examples: Vec<Example> = Vec::new();
        let groups = std::iter::once((Groups::TOP, &self.top));
        let intervals = self.samples.iter().enumerate().map(|(i, samples)| (Groups::of_interval(i + 1), samples));
        for (groups, kept) in groups.chain(intervals) {
            for kept in kept {
                match examples.iter_mut().find(|example| example.position == kept.position) {
                    Some(example) => example.groups.0 |= groups.0,
                    None => examples.push(Example {
                        position: kept.position,
                        value: kept.value,
                        groups,
                        neighbors: kept.neighbors.to_vec(),
                    }),
                }
            }
        }
        examples.sort_by(|a, b| b.value.total_cmp(&a.value).then(a.position.cmp(&b.position)));
        let firings = self.sampled(settings.n_sampled);
        let on = firings.iter().map(|firing| (tokens.token(firing.position as usize), firing.value));
        let before = firings.iter().map(|firing| (tokens.token(firing.position as usize - 1), firing.value));
        Dashboard {
            count: self.count,
            n_sequences: self.n_sequences,
            mean: mean(self.sum, self.count),
            min: self.min,
            max: self.max,
            histogram: self.histogram.clone(),
            examples,
            n_sampled: firings.len() as u32,
            tokens: most_frequent(on.collect(), N_TOKENS),
            before: most_frequent(before.collect(), N_BEFORE),
        }
    }

    /// The sampled activations, in the order of their hashes.
    pub(super) fn sampled(&self, n_sampled: usize) -> Vec<Firing> {
        let mut firings = self.firings.clone();
        firings.sort_unstable_by_key(Firing::rank);
        firings.truncate(n_sampled);
        firings
    }

    /// The sum of all activations, as two halves.
    pub(super) fn sum(&self) -> [i64; 2] {
        [(self.sum >> 64) as i64, self.sum as i64]
    }

    /// Whether a dashboard can be of activations with this sum.
    pub(super) fn is_sum_of(dashboard: &Dashboard, sum: [i64; 2]) -> bool {
        mean(joined(sum), dashboard.count) == dashboard.mean
    }

    /// Statistics as they were when a dashboard was made of them; hashes are computed again.
    pub(super) fn restore(
        dashboard: Dashboard,
        sum: [i64; 2],
        firings: Vec<Firing>,
        settings: &Settings,
        hashes: &dyn Fn(u32) -> (u64, u64),
    ) -> Self {
        let kept = |example: &Example, hash: u64| {
            let neighbors = example.neighbors.clone().into_boxed_slice();
            Kept { position: example.position, value: example.value, hash, neighbors }
        };
        let mut stats = FeatureStats {
            count: dashboard.count,
            n_sequences: dashboard.n_sequences,
            sum: joined(sum),
            min: dashboard.min,
            max: dashboard.max,
            top: dashboard.top().map(|example| kept(example, hashes(example.position).1)).collect(),
            firings,
            ..Default::default()
        };
        for interval in 1..=N_INTERVALS {
            let samples = dashboard.samples(interval);
            stats.samples[interval - 1] = samples.map(|example| kept(example, hashes(example.position).0)).collect();
            stats.tidy_samples(interval - 1, settings);
        }
        stats.histogram = dashboard.histogram;
        stats.firings.truncate(settings.n_sampled);
        if stats.firings.len() == settings.n_sampled {
            stats.cut = stats.firings.iter().map(Firing::rank).max();
        }
        stats
    }

    fn moved(mut self, to: &dyn Fn(u32) -> u32) -> Self {
        let kept = self.top.iter_mut().chain(self.samples.iter_mut().flatten());
        kept.for_each(|kept| kept.position = to(kept.position));
        self.firings.iter_mut().for_each(|firing| firing.position = to(firing.position));
        if let Some((hash, position)) = self.cut {
            self.cut = Some((hash, to(position)));
        }
        self
    }
}

/// A sum of two halves.
fn joined(halves: [i64; 2]) -> i128 {
    (i128::from(halves[0]) << 64) | i128::from(halves[1] as u64)
}

/// The mean of `count` activations whose sum is `sum`, in units of 2^-32.
fn mean(sum: i128, count: u32) -> f32 {
    if count == 0 { 0.0 } else { (sum as f64 / SUM_SCALE / f64::from(count)) as f32 }
}

/// The token at a position.
pub(super) trait Tokens: Sync {
    fn token(&self, position: usize) -> u32;
}

/// The tokens that occur most often, with the mean of their values; of equally frequent ones the smaller id first.
pub(super) fn most_frequent(mut tokens: Vec<(u32, f32)>, n: usize) -> Vec<TokenCount> {
    // Stable: values of a token are added in one order.
    tokens.sort_by_key(|&(token, _)| token);
    let mut counts: Vec<TokenCount> = tokens
        .chunk_by(|a, b| a.0 == b.0)
        .map(|same| {
            let sum: f64 = same.iter().map(|&(_, value)| f64::from(value)).sum();
            TokenCount { token: same[0].0, count: same.len() as u32, mean: (sum / same.len() as f64) as f32 }
        })
        .collect();
    counts.sort_by_key(|count| (std::cmp::Reverse(count.count), count.token));
    counts.truncate(n);
    counts
}

/// Statistics of the features of one layer.
#[derive(Debug)]
pub(super) struct LayerStats {
    layer: usize,
    pub features: Vec<FeatureStats>,
}

impl LayerStats {
    pub(super) fn new(layer: usize, n_features: usize) -> Self {
        Self { layer, features: vec![FeatureStats::default(); n_features] }
    }

    /// Adds the active features of a batch; `excluded` positions at the start of each sequence are left out. `[rows][..]`
    pub(super) fn observe(&mut self, active: &[Vec<Candidate>], places: &BatchPlaces, settings: &Settings) {
        let by_feature = ByFeature::new(active, places, self.features.len());
        let (seed, layer) = (settings.seed, self.layer);
        self.features.par_chunks_mut(TASK_FEATURES).enumerate().for_each(|(task, features)| {
            for (i, stats) in features.iter_mut().enumerate() {
                let feature = task * TASK_FEATURES + i;
                let hash = feature_hash(seed, layer, feature);
                let (mut left, mut sequences) = by_feature.of(feature);
                while let Some(&sequence) = sequences.first() {
                    let n = sequences.iter().take_while(|&&other| other == sequence).count();
                    let s = sequence as usize;
                    let run = Run {
                        active: &left[..n],
                        tokens: places.sequences[s],
                        start: places.starts[s],
                        hashes: &places.hashes[s],
                    };
                    stats.observe(&run, hash, settings);
                    (left, sequences) = (&left[n..], &sequences[n..]);
                }
            }
        });
    }

    /// Adds what others saw elsewhere.
    pub(super) fn merge(&mut self, other: LayerStats, settings: &Settings) {
        self.features.par_iter_mut().zip(other.features).for_each(|(stats, other)| stats.merge(other, settings));
    }

    /// The same at positions of another token store: `to` maps them, keeping their order.
    pub(super) fn moved(self, to: &(dyn Fn(u32) -> u32 + Sync)) -> Self {
        Self { features: self.features.into_par_iter().map(|stats| stats.moved(to)).collect(), ..self }
    }

    /// The dashboards of all features.
    pub(super) fn dashboards(&self, settings: &Settings, tokens: &dyn Tokens) -> Vec<Dashboard> {
        self.features.par_iter().map(|stats| stats.dashboard(settings, tokens)).collect()
    }

    /// Restores a layer from its parts, feature by feature.
    pub(super) fn restored(layer: usize, features: Vec<FeatureStats>) -> Self {
        Self { layer, features }
    }

    pub(super) fn feature_hash(seed: u64, layer: usize, feature: usize) -> u64 {
        feature_hash(seed, layer, feature)
    }
}

/// The hash of a sample at a place, and that of its context.
pub(super) fn example_hashes(
    tokens: impl Fn(usize) -> u32,
    len: usize,
    at: usize,
    sequence: u64,
    feature: u64,
) -> (u64, u64) {
    (sample_hash(place_hash(sequence, at), feature), context_hash(tokens, len, at))
}

/// The active features of a batch, feature by feature: of each its (offset in the sequence, value), sequence by sequence.
struct ByFeature {
    starts: Vec<usize>,
    active: Vec<(u32, f32)>,
    sequences: Vec<u32>,
}

impl ByFeature {
    fn new(active: &[Vec<Candidate>], places: &BatchPlaces, n_features: usize) -> Self {
        // Rows of positions that count, in the order of sequences and positions.
        let rows = || {
            let of_sequences = places.sequences.iter().zip(places.excluded).enumerate();
            of_sequences
                .scan(0, |first, (s, (tokens, &excluded))| {
                    let start = std::mem::replace(first, *first + tokens.len());
                    Some((excluded..tokens.len()).map(move |offset| (s, offset, &active[start + offset])))
                })
                .flatten()
        };
        let mut starts = vec![0; n_features + 1];
        rows().for_each(|(_, _, row)| row.iter().for_each(|c| starts[c.feature as usize + 1] += 1));
        for feature in 0..n_features {
            starts[feature + 1] += starts[feature];
        }
        let mut next = starts.clone();
        let n = starts[n_features];
        let (mut by_feature, mut sequences) = (vec![(0, 0.0); n], vec![0; n]);
        for (s, offset, row) in rows() {
            for candidate in row {
                let at = &mut next[candidate.feature as usize];
                by_feature[*at] = (offset as u32, candidate.value);
                sequences[*at] = s as u32;
                *at += 1;
            }
        }
        Self { starts, active: by_feature, sequences }
    }

    fn of(&self, feature: usize) -> (&[(u32, f32)], &[u32]) {
        let range = self.starts[feature]..self.starts[feature + 1];
        (&self.active[range.clone()], &self.sequences[range])
    }
}
