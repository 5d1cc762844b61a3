//! The part of a graph that is meant, as options.

use std::ops::RangeInclusive;

use crate::Error;
use crate::circuits::{Part, Selection};
use crate::graph::NodeKind;
use clap::{Args, ValueEnum};

/// [`NodeKind`] as an option's value; the library knows nothing of options.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Feature,
    Error,
    Token,
    Target,
}

#[derive(Debug, Args)]
pub(super) struct ChooseArgs {
    /// Only these nodes, with all tokens and targets
    #[arg(long, value_name = "ID,..", value_delimiter = ',')]
    subgraph: Vec<String>,
    /// Only features and errors of these layers: 3, or 3..7 (without 7)
    #[arg(long, value_name = "A..B", value_parser = parse_range)]
    layers: Option<RangeInclusive<u32>>,
    /// Only nodes at these positions: 4, or 4..7 (without 7)
    #[arg(long, value_name = "A..B", value_parser = parse_range)]
    positions: Option<RangeInclusive<u32>>,
    /// Only nodes of this kind; may be given several times
    #[arg(long, value_enum, value_delimiter = ',', value_name = "KIND")]
    feature_type: Vec<Kind>,
    /// Only what leads to this node or follows from it
    #[arg(long, value_name = "ID,..", value_delimiter = ',')]
    around: Vec<String>,
    /// How many edges away
    #[arg(long, value_name = "N", default_value_t = 1, requires = "around")]
    hops: usize,
    /// Only the fewest strongest nodes whose paths carry this share of the influence
    #[arg(long, value_name = "SHARE")]
    carry: Option<f64>,
}

impl ChooseArgs {
    /// The part that all options allow.
    pub(super) fn part(&self) -> Part {
        let kind = |kind: &Kind| match kind {
            Kind::Feature => NodeKind::Feature,
            Kind::Error => NodeKind::Error,
            Kind::Token => NodeKind::Token,
            Kind::Target => NodeKind::Target,
        };
        Part {
            ids: self.subgraph.clone(),
            region: Selection {
                layers: self.layers.clone(),
                positions: self.positions.clone(),
                kinds: self.feature_type.iter().map(kind).collect(),
            },
            around: self.around.clone(),
            hops: self.hops,
            carry: self.carry,
        }
    }
}

fn parse_range(text: &str) -> std::result::Result<RangeInclusive<u32>, String> {
    let number = |part: &str| part.trim().parse::<u32>().map_err(|_| format!("{part:?} is no number"));
    match text.split_once("..") {
        None => number(text).map(|at| at..=at),
        Some((start, end)) => {
            let start = if start.is_empty() { 0 } else { number(start)? };
            let end = if end.is_empty() { u32::MAX } else { number(end)?.saturating_sub(1) };
            if start > end {
                return Err(Error::EmptyRange { what: "numbers", start: start as usize, end: end as usize }.to_string());
            }
            Ok(start..=end)
        }
    }
}
