//! The part of a graph that is meant, as options.

use std::ops::RangeInclusive;

use crate::circuits::{Part, Selection};
use crate::graph::NodeKind;
use clap::{Args, ValueEnum};

/// [`NodeKind`] as an option's value; the library knows nothing of options.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Feature,
    Error,
    Token,
    Context,
    Target,
}

#[derive(Debug, Args)]
pub(super) struct ChooseArgs {
    /// Only these nodes, with all tokens and targets
    #[arg(long, value_name = "NAME,..", value_delimiter = ',')]
    subgraph: Vec<String>,
    /// Only features and errors of these layers: 3, or 3..7 (without 7)
    #[arg(long, value_name = "A..B", value_parser = parse_range, allow_hyphen_values = true)]
    layers: Option<RangeInclusive<u32>>,
    /// Only nodes at these positions: 4, or 4..7 (without 7)
    #[arg(long, value_name = "A..B", value_parser = parse_range, allow_hyphen_values = true)]
    positions: Option<RangeInclusive<u32>>,
    /// Only nodes of this kind; may be given several times
    #[arg(long, value_enum, value_delimiter = ',', value_name = "KIND")]
    feature_type: Vec<Kind>,
    /// Only what leads to this node or follows from it
    #[arg(long, value_name = "NAME,..", value_delimiter = ',')]
    around: Vec<String>,
    /// How many edges away
    #[arg(long, value_name = "N", default_value_t = 1, requires = "around")]
    hops: usize,
    /// Only the fewest strongest features whose paths carry this share of what all paths from tokens carry
    #[arg(long, value_name = "SHARE", value_parser = parse_share)]
    carry: Option<f64>,
}

impl ChooseArgs {
    /// The part that all options allow.
    pub(super) fn part(&self) -> Part {
        let kind = |kind: &Kind| match kind {
            Kind::Feature => NodeKind::Feature,
            Kind::Error => NodeKind::Error,
            Kind::Token => NodeKind::Token,
            Kind::Context => NodeKind::Context,
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

fn parse_share(text: &str) -> std::result::Result<f64, String> {
    let percent = text.trim().strip_suffix('%').and_then(|percent| percent.trim().parse::<f64>().ok());
    match percent {
        Some(percent) => Err(format!("shares are parts of 1: {percent} % is {}", percent / 100.0)),
        None => text.trim().parse().map_err(|_| "expected a share in 0..=1, such as 0.5".to_owned()),
    }
}

fn parse_range(text: &str) -> std::result::Result<RangeInclusive<u32>, String> {
    if text.trim_start().starts_with('-') {
        return Err("they are counted from 0, and none from the end".to_owned());
    }
    let number = |part: &str| {
        part.trim()
            .parse::<u32>()
            .map_err(|_| "expected a number, or a range such as 4..7, which is 4, 5 and 6".to_owned())
    };
    match text.split_once("..") {
        None => number(text).map(|at| at..=at),
        Some((start, end)) => {
            let start = if start.is_empty() { 0 } else { number(start)? };
            let end = if end.is_empty() { None } else { Some(number(end)?) };
            match end {
                None => Ok(start..=u32::MAX),
                Some(end) if end > start => Ok(start..=end - 1),
                Some(end) if end == start => {
                    Err(format!("it is empty, since the end of a range is not part of it; `{start}` is {start} alone"))
                }
                Some(end) => Err(format!("it ends before it begins; ranges go upwards, as {end}..{start} does")),
            }
        }
    }
}
