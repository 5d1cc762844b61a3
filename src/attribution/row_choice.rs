//! Which rows of a graph are computed.

use crate::error::{Error, Result};
use crate::graph::SampleSettings;

/// Features that the default sweep visits: enough for scores within 0.01 of exact and for 95 % of the strongest 500
/// features, whatever the prompt (`docs/sampling.md`).
const DEFAULT_VISITS: usize = 1000;

/// The share of all influence that the nodes of a sampled graph carry, unless they are too many: what pruning keeps.
pub(super) const NODE_SHARE: f64 = 0.8;

/// At most this many features become nodes of a sampled graph, unless a number is asked for.
pub(super) const MAX_NODES: usize = 1500;

/// Which features get a row, and so become nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum RowChoice {
    /// [`RowChoice::All`] where that is no more work than the default sample, else the sample.
    #[default]
    Auto,
    /// All active features.
    All,
    /// At most this many, those of most influence so far (definitions 6, order of work).
    BestFirst {
        /// How many.
        max_features: usize,
    },
    /// Two passes: a sampled sweep estimates the influence of every active feature, then the strongest get their rows.
    Sampled {
        /// How many features the first pass visits.
        visits: Visits,
        /// So many of the strongest features become nodes; `None`: those that carry 0.8 of the influence, 1,500 at most.
        nodes: Option<usize>,
    },
}

/// How many features a sampled sweep visits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Visits {
    /// About this many.
    Rows(usize),
    /// All that have at least this much influence, in units of the targets' weights, and others at the rate
    /// influence/θ. 0: all, so that the influence is exact.
    Theta(f64),
}

impl Default for Visits {
    fn default() -> Self {
        Visits::Rows(DEFAULT_VISITS)
    }
}

impl RowChoice {
    /// # Errors
    /// [`Error::Setting`] with the name of what is out of range.
    pub fn check(&self) -> Result<()> {
        match *self {
            RowChoice::Sampled { visits: Visits::Rows(0), .. } => {
                Err(Error::Setting { name: "rows", value: 0.0, range: "1.." })
            }
            RowChoice::Sampled { visits: Visits::Theta(theta), .. } if !(theta >= 0.0 && theta.is_finite()) => {
                Err(Error::Setting { name: "theta", value: theta, range: "0.." })
            }
            _ => Ok(()),
        }
    }

    /// What [`RowChoice::Auto`] means for a prompt with `n_active` active features; others are what they are.
    pub fn for_prompt(self, n_active: usize) -> RowChoice {
        match self {
            RowChoice::Auto if n_active <= DEFAULT_VISITS + MAX_NODES => RowChoice::All,
            RowChoice::Auto => RowChoice::Sampled { visits: Visits::default(), nodes: None },
            choice => choice,
        }
    }

    /// At most so many features become nodes; `None`: all active ones, or those that `Auto` finds.
    pub fn max_features(self) -> Option<usize> {
        match self {
            RowChoice::Auto | RowChoice::All => None,
            RowChoice::BestFirst { max_features } => Some(max_features),
            RowChoice::Sampled { nodes, .. } => Some(nodes.unwrap_or(MAX_NODES)),
        }
    }
}

impl Visits {
    /// The settings of the sweep. `weights` are the targets'. [n_targets].
    pub(super) fn settings(self, weights: &[f32]) -> SampleSettings {
        match self {
            Visits::Rows(n_rows) => SampleSettings::for_rows(n_rows, weights),
            Visits::Theta(theta) => SampleSettings { theta, ..SampleSettings::for_rows(1, weights) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_rows_are_computed_where_that_is_no_more_work() {
        assert_eq!(RowChoice::Auto.for_prompt(2500), RowChoice::All);
        assert!(matches!(RowChoice::Auto.for_prompt(2501), RowChoice::Sampled { visits: Visits::Rows(1000), .. }));
        let capped = RowChoice::BestFirst { max_features: 3 };
        assert_eq!(capped.for_prompt(2501), capped);
    }
}
