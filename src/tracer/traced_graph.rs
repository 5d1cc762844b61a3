//! A graph as it was traced, or as it was read from a raw file.

use std::path::Path;

use crate::attribution::Attribution;
use crate::circuits::open_raw;
use crate::error::Result;
use crate::export::write_raw;
use crate::graph::{AttributionGraph, Circuit, HeadFlows, Influence};
use crate::prune::{PruneSettings, prune};

/// An attribution graph with the influence of its nodes: what pruning, inspection and verification start from.
#[derive(Debug)]
pub struct TracedGraph {
    graph: AttributionGraph,
    influence: Influence,
    work: Option<TraceWork>,
}

/// What tracing took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TraceWork {
    /// Rows computed: targets and selected features.
    pub n_rows: usize,
    /// Seconds that the rows took.
    pub rows_secs: f64,
    /// Whether the device had no room for the rows so far, so that the host chose the features: the same ones, slower.
    pub short_of_device_memory: bool,
}

impl From<Attribution> for TracedGraph {
    fn from(found: Attribution) -> Self {
        let work = TraceWork {
            n_rows: found.n_rows,
            rows_secs: found.elapsed_secs.rows,
            short_of_device_memory: found.short_of_device_memory,
        };
        Self { graph: found.graph, influence: found.influence, work: Some(work) }
    }
}

impl From<AttributionGraph> for TracedGraph {
    fn from(graph: AttributionGraph) -> Self {
        let influence = graph.influence();
        Self { graph, influence, work: None }
    }
}

impl TracedGraph {
    /// Reads a raw graph (`.safetensors`). The edge rows stay in the file.
    ///
    /// # Errors
    /// A file that cannot be read, that is no raw graph or damaged.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        Ok(Self::from(open_raw(path.as_ref())?))
    }

    /// Writes the raw graph: safetensors, all of it or nothing.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        write_raw(&self.graph, path.as_ref())
    }

    /// Keeps through which heads edges go, as [`Tracer::edge_heads`](super::Tracer::edge_heads) finds it.
    ///
    /// # Errors
    /// Edges that the graph has not.
    pub fn set_heads(&mut self, heads: HeadFlows) -> Result<()> {
        self.graph.set_heads(heads)
    }

    /// The nodes and edges that carry most of the influence.
    ///
    /// # Errors
    /// Thresholds outside 0..=1; a graph with numbers that are not finite.
    pub fn prune(&self, settings: &PruneSettings) -> Result<Circuit> {
        prune(&self.graph, &self.influence, settings)?.circuit(&self.graph)
    }

    /// What tracing took; nothing where the graph was read from a file.
    pub fn work(&self) -> Option<TraceWork> {
        self.work
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
