//! The part of a graph that is meant, as options.

use std::ops::RangeInclusive;

use clap::{Args, ValueEnum};
use petgraph::graph::NodeIndex;

use crate::circuits::{FeatureKind, Selection, carrying_paths, neighborhood};
use crate::export::find_node;
use crate::graph::{Circuit, NodeId};
use crate::{Error, Result};

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
    /// # Errors
    /// A share outside 0..=1.
    pub(super) fn check(&self) -> Result<()> {
        self.carry.map_or(Ok(()), |share| super::check_share("carry", share))
    }

    /// The nodes that all options allow, ascending; `None` where no option is given.
    ///
    /// # Errors
    /// A node that is not in the circuit.
    pub(super) fn nodes(&self, circuit: &Circuit) -> Result<Option<Vec<NodeIndex>>> {
        let ids = |ids: &[String]| ids.iter().map(|id| find_node(circuit, id)).collect::<Result<Vec<_>>>();
        let kind = |kind: &Kind| match kind {
            Kind::Feature => FeatureKind::Feature,
            Kind::Error => FeatureKind::Error,
            Kind::Token => FeatureKind::Token,
            Kind::Target => FeatureKind::Target,
        };
        let region = Selection {
            layers: self.layers.clone(),
            positions: self.positions.clone(),
            kinds: self.feature_type.iter().map(kind).collect(),
        };
        let mut lists = Vec::new();
        if !region.is_everything() {
            lists.push(region.nodes(circuit));
        }
        if !self.subgraph.is_empty() {
            let mut nodes = ids(&self.subgraph)?;
            let is_end =
                |index: &NodeIndex| matches!(circuit.node(*index).id, NodeId::Token { .. } | NodeId::Target { .. });
            nodes.extend(circuit.graph().node_indices().filter(is_end));
            nodes.sort_unstable();
            nodes.dedup();
            lists.push(nodes);
        }
        if !self.around.is_empty() {
            lists.push(neighborhood(circuit, &ids(&self.around)?, self.hops));
        }
        if let Some(share) = self.carry {
            lists.push(carrying_paths(circuit, share));
        }
        let both = |a: Vec<NodeIndex>, b: Vec<NodeIndex>| -> Vec<NodeIndex> {
            a.into_iter().filter(|node| b.binary_search(node).is_ok()).collect()
        };
        Ok(lists.into_iter().reduce(both))
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
