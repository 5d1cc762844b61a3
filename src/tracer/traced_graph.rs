//! A graph as it was traced, or as it was read from a raw file.

use std::path::Path;

use crate::attribution::Attribution;
use crate::error::{Doing, Result};
use crate::export::{read_raw, write_raw};
use crate::graph::{AttributionGraph, Circuit, Influence};
use crate::prune::{PruneSettings, prune};

/// An attribution graph with the influence of its nodes: what pruning, inspection and verification start from.
#[derive(Debug)]
pub struct TracedGraph {
    graph: AttributionGraph,
    influence: Influence,
}

impl From<Attribution> for TracedGraph {
    fn from(found: Attribution) -> Self {
        Self { graph: found.graph, influence: found.influence }
    }
}

impl From<AttributionGraph> for TracedGraph {
    fn from(graph: AttributionGraph) -> Self {
        let influence = graph.influence();
        Self { graph, influence }
    }
}

impl TracedGraph {
    /// Reads a raw graph (`.safetensors`). The edge rows stay in the file.
    ///
    /// # Errors
    /// A file that cannot be read, that is no raw graph or damaged.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let graph = read_raw(path).doing(|| format!("cannot load the graph `{}`", path.display()))?;
        Ok(Self::from(graph))
    }

    /// Writes the raw graph: safetensors, all of it or nothing.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        write_raw(&self.graph, path.as_ref())
    }

    /// The nodes and edges that carry most of the influence.
    ///
    /// # Errors
    /// Thresholds outside 0..=1; a graph with numbers that are not finite.
    pub fn prune(&self, settings: &PruneSettings) -> Result<Circuit> {
        prune(&self.graph, &self.influence, settings)?.circuit(&self.graph)
    }

    /// The prompt that was traced.
    pub fn prompt(&self) -> &str {
        &self.graph.meta.prompt
    }

    /// Every direct effect, active feature and target, with the metadata.
    pub fn graph(&self) -> &AttributionGraph {
        &self.graph
    }

    /// Influence of every node on the targets.
    pub fn influence(&self) -> &Influence {
        &self.influence
    }
}
