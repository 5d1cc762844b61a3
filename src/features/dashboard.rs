//! What is known of one feature.

use super::histogram::{Histogram, step_of, step_start};

/// Tokens before an example whose activations are stored with it; positions count from the example's own.
pub const WINDOW_BEFORE: usize = 16;

/// The same after it.
pub const WINDOW_AFTER: usize = 7;

/// Intervals of the activation that examples are sampled from.
pub const N_INTERVALS: usize = 5;

/// The interval that a value is in, from 1: the step of the largest value is the last one, the first has all lower steps.
pub(super) fn interval_of(max: f32, value: f32) -> usize {
    N_INTERVALS.saturating_sub(usize::from(step_of(max).saturating_sub(step_of(value)))).max(1)
}

/// Where an interval begins and ends.
pub(super) fn interval_edges(max: f32, interval: usize) -> (f32, f32) {
    let last = usize::from(step_of(max));
    let edge = |steps_below: usize| step_start(u8::try_from(last.saturating_sub(steps_below)).unwrap_or(u8::MAX));
    let start = if interval <= 1 { 0.0 } else { edge(N_INTERVALS - interval.min(N_INTERVALS)) };
    let end = match N_INTERVALS.saturating_sub(interval) {
        0 => max,
        below => edge(below - 1),
    };
    (start, end)
}

/// What is known of one feature.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dashboard {
    /// Positions where it is active.
    pub count: u32,
    /// Sequences that have such a position.
    pub n_sequences: u32,
    /// Mean of its activations; 0 where it is never active.
    pub mean: f32,
    /// The smallest.
    pub min: f32,
    /// The largest.
    pub max: f32,
    /// How often it has which activation.
    pub histogram: Histogram,
    /// Strongest first; of equal ones, the earlier.
    pub examples: Vec<Example>,
    /// How many of its activations the tokens below were counted on: all of them, or as many as
    /// [`super::Settings::n_sampled`], chosen by hash.
    pub n_sampled: u32,
    /// The tokens it is active on, most frequent first: the first ten.
    pub tokens: Vec<TokenCount>,
    /// The tokens right before those, most frequent first: the first five. Their means are of the activation after them.
    pub before: Vec<TokenCount>,
}

/// One place where a feature is active.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// Position in the token store.
    pub position: u32,
    /// The activation there.
    pub value: f32,
    /// Why it was kept.
    pub groups: Groups,
    /// Where else near it the feature is active: from [`WINDOW_BEFORE`] tokens before it to [`WINDOW_AFTER`] after, within
    /// its sequence, ascending.
    pub neighbors: Vec<Neighbor>,
}

/// An activation near an example.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neighbor {
    /// Tokens after the example's own; negative before it, never 0.
    pub offset: i8,
    /// The activation.
    pub value: f32,
}

/// Why an example was kept: bit 0 for the strongest, bit i for a sample of interval i, of which 1 is the weakest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Groups(pub u8);

impl Groups {
    /// One of the strongest.
    pub const TOP: Groups = Groups(1);

    /// A sample of an interval in `1..=N_INTERVALS`.
    pub fn of_interval(interval: usize) -> Self {
        Groups(1 << interval)
    }

    /// Whether it is one of the strongest.
    pub fn is_top(self) -> bool {
        self.0 & Self::TOP.0 != 0
    }

    /// The interval that it is a sample of, if it is one.
    pub fn interval(self) -> Option<usize> {
        (1..=N_INTERVALS).find(|&interval| self.0 & Self::of_interval(interval).0 != 0)
    }
}

/// How often a token was seen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenCount {
    /// Its id.
    pub token: u32,
    /// Times, of [`Dashboard::n_sampled`].
    pub count: u32,
    /// Mean activation.
    pub mean: f32,
}

impl Dashboard {
    /// Whether the feature was never active on the text.
    pub fn is_dead(&self) -> bool {
        self.count == 0
    }

    /// The strongest examples, strongest first.
    pub fn top(&self) -> impl Iterator<Item = &Example> {
        self.examples.iter().filter(|example| example.groups.is_top())
    }

    /// The samples of an interval in `1..=N_INTERVALS`, strongest first.
    pub fn samples(&self, interval: usize) -> impl Iterator<Item = &Example> {
        let of_interval = Groups::of_interval(interval).0;
        self.examples.iter().filter(move |example| example.groups.0 & of_interval != 0)
    }

    /// The activation below which a share of its activations lies, to the width of a bin of the histogram.
    pub fn quantile(&self, share: f64) -> f32 {
        self.histogram.quantile(share, self.min, self.max)
    }

    /// The share of its activations that lies below a value, to the width of a bin of the histogram.
    pub fn share_below(&self, value: f32) -> f64 {
        self.histogram.share_below(value, self.min, self.max)
    }

    /// Of the activations that were sampled, the share on a token.
    pub fn share(&self, token: &TokenCount) -> f64 {
        f64::from(token.count) / f64::from(self.n_sampled.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_between_the_edges_of_its_interval() {
        for max in [0.001f32, 1.0, 3.7, 250.0] {
            for i in 1..=1000u16 {
                let value = max * f32::from(i) / 1000.0;
                let (start, end) = interval_edges(max, interval_of(max, value));
                assert!(start <= value && value <= end, "{value} of {max}: {start} to {end}");
            }
            assert_eq!(interval_of(max, max), N_INTERVALS);
        }
        assert_eq!(interval_of(0.0, 0.0), N_INTERVALS);
    }
}
