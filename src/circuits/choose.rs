//! The part of a circuit that somebody asks for.

use petgraph::graph::NodeIndex;

use super::{Selection, carrying_paths, find_nodes, neighborhood};
use crate::graph::{Circuit, NodeKind};
use crate::{Error, Result};

/// A part of a circuit: the nodes that everything given here allows. The default is the whole.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Part {
    /// Only these nodes, by name ([`find_nodes`]), with all tokens and targets; empty: any.
    pub ids: Vec<String>,
    /// Only nodes of this region.
    pub region: Selection,
    /// Only what leads to one of these nodes, by name, or follows from it; empty: any.
    pub around: Vec<String>,
    /// How many edges away from `around`.
    pub hops: usize,
    /// Only the fewest strongest features whose paths carry this share, in 0..=1, of what all paths from tokens carry
    /// ([`carrying_paths`]).
    pub carry: Option<f64>,
}

impl Part {
    /// # Errors
    /// A share outside 0..=1.
    pub fn check(&self) -> Result<()> {
        match self.carry {
            Some(value) if !(0.0..=1.0).contains(&value) => {
                Err(Error::Setting { name: "carry", value, range: "0..=1" })
            }
            _ => Ok(()),
        }
    }

    /// The nodes of `circuit` in this part, ascending; `None` where the part is the whole.
    ///
    /// # Errors
    /// A share outside 0..=1, [`Error::UnknownNode`] for a name that is not in the circuit, layers and positions that its
    /// model and prompt do not have.
    ///
    /// # Cost
    /// As [`neighborhood`] and [`carrying_paths`], where they are asked for; else linear in nodes.
    pub fn nodes(&self, circuit: &Circuit) -> Result<Option<Vec<NodeIndex>>> {
        self.check()?;
        let found = |names: &[String]| {
            let found = names.iter().map(|name| find_nodes(circuit, name)).collect::<Result<Vec<_>>>();
            found.map(|found| found.concat())
        };
        let mut lists = Vec::new();
        if !self.region.is_everything() {
            self.region.check(circuit)?;
            lists.push(self.region.nodes(circuit));
        }
        if !self.ids.is_empty() {
            let mut nodes = found(&self.ids)?;
            let is_end =
                |index: &NodeIndex| matches!(circuit.node(*index).id.kind(), NodeKind::Token | NodeKind::Target);
            nodes.extend(circuit.graph().node_indices().filter(is_end));
            nodes.sort_unstable();
            nodes.dedup();
            lists.push(nodes);
        }
        if !self.around.is_empty() {
            lists.push(neighborhood(circuit, &found(&self.around)?, self.hops));
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
