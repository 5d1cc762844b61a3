//! Which rows of a graph are computed.

use crate::error::{Error, Result};
use crate::graph::SampleSettings;

/// Features that the default sweep visits: enough for scores within 0.01 of exact and for 95 % of the strongest 500
/// features, whatever the prompt (`docs/sampling.md`).
const DEFAULT_VISITS: usize = 1000;

/// The share of all influence that the nodes of a sampled graph carry, unless they are too many: what pruning keeps.
pub(super) const NODE_SHARE: f64 = 0.8;

/// Errors of so many layers and positions are all nodes of a sampled graph; of more, the strongest.
pub(super) const ALL_ERRORS: usize = 8192;

/// At most this many features become nodes of a sampled graph, unless a number is asked for.
pub(super) const MAX_NODES: usize = 1500;

/// At most this many errors, where not all are.
pub(super) const MAX_ERRORS: usize = 1500;

/// Which features get a row, and so become nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum RowChoice {
    /// [`RowChoice::All`] where that is no more work than the default sample, else the sample.
    #[default]
    Auto,
    /// As [`RowChoice::Auto`], but only so many of the strongest features become nodes: the influence that ranks them is
    /// exact where all rows are no more work than the default sample.
    Strongest {
        /// How many.
        nodes: usize,
    },
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

/// As settings record it.
impl std::fmt::Display for RowChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RowChoice::Auto => f.write_str("auto"),
            RowChoice::Strongest { nodes } => write!(f, "strongest {nodes}"),
            RowChoice::All => f.write_str("all"),
            RowChoice::BestFirst { max_features } => write!(f, "best {max_features}"),
            RowChoice::Sampled { visits, nodes } => {
                match visits {
                    Visits::Rows(n_rows) => write!(f, "sampled rows {n_rows}")?,
                    Visits::Theta(theta) => write!(f, "sampled theta {theta}")?,
                }
                nodes.map_or(Ok(()), |nodes| write!(f, " nodes {nodes}"))
            }
        }
    }
}

/// A number of rows or features, or all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// All.
    All,
    /// So many.
    Number(usize),
}

impl std::str::FromStr for Count {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let number = || text.parse().map(Count::Number);
        let expected = "a number or `all`";
        if text == "all" { Ok(Count::All) } else { number().map_err(|_| Error::Spec { text: text.into(), expected }) }
    }
}

/// The four ways to ask for rows, as people name them; at most one of `rows`, `theta` and `max_features`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowRequest {
    /// Estimate influence from about this many rows.
    pub rows: Option<Count>,
    /// Visit all features with at least this much influence, others now and then.
    pub theta: Option<f64>,
    /// This many features become nodes.
    pub nodes: Option<usize>,
    /// Choose rows best-first, at most this many.
    pub max_features: Option<Count>,
}

impl RowRequest {
    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The choice that this asks for.
    ///
    /// # Errors
    /// [`Error::Contradiction`] for two ways that exclude each other.
    pub fn choice(&self) -> Result<RowChoice> {
        let Self { rows, theta, nodes, max_features } = *self;
        let contradiction = |first, second| Err(Error::Contradiction { first, second });
        if rows.is_some() && theta.is_some() {
            return contradiction("rows", "`theta`");
        }
        if max_features.is_some() && (rows.is_some() || theta.is_some() || nodes.is_some()) {
            return contradiction("max_features", "`rows`, `theta` or `nodes`");
        }
        let sampled = |visits| RowChoice::Sampled { visits, nodes };
        Ok(match (rows, theta, nodes, max_features) {
            (None, None, None, None) => RowChoice::Auto,
            (_, _, _, Some(Count::All)) | (Some(Count::All), None, None, None) => RowChoice::All,
            (_, _, _, Some(Count::Number(max_features))) => RowChoice::BestFirst { max_features },
            (Some(Count::All), ..) => sampled(Visits::Theta(0.0)),
            (Some(Count::Number(n_rows)), ..) => sampled(Visits::Rows(n_rows)),
            (_, Some(theta), ..) => sampled(Visits::Theta(theta)),
            (None, None, Some(nodes), None) => RowChoice::Strongest { nodes },
        })
    }
}

impl RowChoice {
    /// Reads what [`Display`](std::fmt::Display) writes; `None` for any other text.
    pub fn parse(text: &str) -> Option<RowChoice> {
        let words: Vec<&str> = text.split(' ').collect();
        let sampled = |how: &str, number: &str, nodes: Option<usize>| {
            let visits = match how {
                "rows" => Visits::Rows(number.parse().ok()?),
                "theta" => Visits::Theta(number.parse().ok()?),
                _ => return None,
            };
            Some(RowChoice::Sampled { visits, nodes })
        };
        match words[..] {
            ["auto"] => Some(RowChoice::Auto),
            ["strongest", number] => number.parse().ok().map(|nodes| RowChoice::Strongest { nodes }),
            ["all"] => Some(RowChoice::All),
            ["best", number] => number.parse().ok().map(|max_features| RowChoice::BestFirst { max_features }),
            ["sampled", how, number] => sampled(how, number, None),
            ["sampled", how, number, "nodes", nodes] => sampled(how, number, Some(nodes.parse().ok()?)),
            _ => None,
        }
    }

    /// # Errors
    /// [`Error::Setting`] with the name of what is out of range.
    pub fn check(&self) -> Result<()> {
        match *self {
            RowChoice::Strongest { nodes: 0 } | RowChoice::Sampled { nodes: Some(0), .. } => {
                Err(Error::Setting { name: "nodes", value: 0.0, range: "1.." })
            }
            RowChoice::Sampled { visits: Visits::Rows(0), .. } => {
                Err(Error::Setting { name: "rows", value: 0.0, range: "1.." })
            }
            RowChoice::Sampled { visits: Visits::Theta(theta), .. } if !(theta >= 0.0 && theta.is_finite()) => {
                Err(Error::Setting { name: "theta", value: theta, range: "0.." })
            }
            _ => Ok(()),
        }
    }

    /// What [`RowChoice::Auto`] and [`RowChoice::Strongest`] mean for a prompt with `n_active` active features; others are
    /// what they are.
    pub fn for_prompt(self, n_active: usize) -> RowChoice {
        let is_cheap = n_active <= DEFAULT_VISITS + MAX_NODES;
        match self {
            RowChoice::Auto if is_cheap => RowChoice::All,
            RowChoice::Auto => RowChoice::Sampled { visits: Visits::default(), nodes: None },
            RowChoice::Strongest { nodes } => {
                let visits = if is_cheap { Visits::Theta(0.0) } else { Visits::default() };
                RowChoice::Sampled { visits, nodes: Some(nodes) }
            }
            choice => choice,
        }
    }

    /// At most so many features become nodes; `None`: all active ones, or those that `Auto` finds.
    pub fn max_features(self) -> Option<usize> {
        match self {
            RowChoice::Auto | RowChoice::All => None,
            RowChoice::BestFirst { max_features } => Some(max_features),
            RowChoice::Strongest { nodes } => Some(nodes),
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
    fn choices_are_read_as_they_are_written() {
        for choice in [
            RowChoice::Auto,
            RowChoice::Strongest { nodes: 3 },
            RowChoice::All,
            RowChoice::BestFirst { max_features: 7 },
            RowChoice::Sampled { visits: Visits::Rows(9), nodes: None },
            RowChoice::Sampled { visits: Visits::Theta(0.001), nodes: Some(5) },
        ] {
            assert_eq!(RowChoice::parse(&choice.to_string()), Some(choice));
        }
        for text in ["", "best", "best x", "sampled", "sampled rows", "sampled rows 1 nodes", "every"] {
            assert_eq!(RowChoice::parse(text), None, "{text}");
        }
    }

    #[test]
    fn all_rows_are_computed_where_that_is_no_more_work() {
        assert_eq!(RowChoice::Auto.for_prompt(2500), RowChoice::All);
        assert!(matches!(RowChoice::Auto.for_prompt(2501), RowChoice::Sampled { visits: Visits::Rows(1000), .. }));
        let strongest = |visits| RowChoice::Sampled { visits, nodes: Some(3) };
        assert_eq!(RowChoice::Strongest { nodes: 3 }.for_prompt(2500), strongest(Visits::Theta(0.0)));
        assert_eq!(RowChoice::Strongest { nodes: 3 }.for_prompt(2501), strongest(Visits::Rows(1000)));
        let capped = RowChoice::BestFirst { max_features: 3 };
        assert_eq!(capped.for_prompt(2501), capped);
    }
}
