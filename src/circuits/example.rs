//! Examples of what features are active on, beside the nodes of a summary.

use serde::{Deserialize, Serialize};

use super::{NodeSummary, Summary};
use crate::Result;
use crate::graph::NodeKind;

/// A place in a text where a feature is active.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeExample {
    /// The activation there.
    pub value: f32,
    /// Texts of the tokens around it.
    pub tokens: Vec<String>,
    /// Which of them it is active on.
    pub at: usize,
}

impl Summary {
    /// Gives the features that are listed an example each: of lists of nodes and of edges, not of paths.
    ///
    /// # Errors
    /// Those of `example_of`, which is given (layer, feature).
    pub fn add_examples(&mut self, mut example_of: impl FnMut(u32, u32) -> Result<Option<NodeExample>>) -> Result<()> {
        let of_names = self.strongest_by_name.iter_mut().flat_map(|named| &mut named.nodes);
        let of_edges = self.nodes.iter_mut().flat_map(|summary| {
            let NodeSummary { node, inputs, outputs } = summary;
            let edges = [&mut inputs.positive, &mut inputs.negative, &mut outputs.positive, &mut outputs.negative];
            std::iter::once(node).chain(edges.into_iter().flatten().map(|edge| &mut edge.node))
        });
        for node in self.strongest.iter_mut().chain(of_names).chain(of_edges) {
            if let (NodeKind::Feature, Some((layer, feature))) = (node.kind, feature_of(&node.id)) {
                node.example = example_of(layer, feature)?;
            }
        }
        Ok(())
    }
}

/// Layer and feature of a feature's id.
fn feature_of(id: &str) -> Option<(u32, u32)> {
    let mut parts = id.split('_').map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}
