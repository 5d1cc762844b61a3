//! Graphs as they are named on the command line: a raw graph or a pruned one.

use std::path::{Path, PathBuf};

use clap::Args;
use petgraph::graph::NodeIndex;

use crate::Result;
use crate::error::Doing;
use crate::export::{Summary, WireGraph, raw, read_raw, read_wire};
use crate::graph::{AttributionGraph, Circuit, influence};
use crate::labels::Labels;
use crate::prune::{PruneSettings, prune};

use super::summary::summary_text;
use super::{Format, json_text};

/// Thresholds, as options.
#[derive(Debug, Args)]
pub(super) struct Thresholds {
    /// Keep the nodes that carry this share of the influence
    #[arg(long, value_name = "SHARE", default_value_t = PruneSettings::default().node_threshold)]
    node_threshold: f64,
    /// Keep the edges that carry this share of what is left
    #[arg(long, value_name = "SHARE", default_value_t = PruneSettings::default().edge_threshold)]
    edge_threshold: f64,
}

impl Thresholds {
    /// # Errors
    /// A threshold outside 0..=1.
    pub(super) fn settings(&self) -> Result<PruneSettings> {
        let settings = PruneSettings { node_threshold: self.node_threshold, edge_threshold: self.edge_threshold };
        settings.check()?;
        Ok(settings)
    }
}

/// A raw graph, by its file.
pub(super) fn open_raw(path: &Path) -> Result<AttributionGraph> {
    read_raw(path).doing(|| format!("cannot load the graph `{}`", path.display()))
}

/// The circuit in a raw graph.
pub(super) fn prune_raw(graph: &AttributionGraph, settings: &PruneSettings) -> Result<Circuit> {
    let influence = influence(&graph.edge_rows, graph.layout(), &graph.target_probabilities);
    prune(graph, &influence, settings)?.circuit(graph)
}

/// A graph with what its file holds besides the circuit.
pub(super) struct OpenedGraph {
    pub(super) circuit: Circuit,
    /// Where the file is a raw graph.
    pub(super) raw: Option<AttributionGraph>,
    /// Where the file is JSON. Node i is node i of the circuit.
    pub(super) wire: Option<WireGraph>,
}

impl OpenedGraph {
    /// Where a feature of the circuit writes to, if a raw graph tells. [d_model].
    pub(super) fn decoder_direction(&self, index: NodeIndex) -> Option<Vec<f32>> {
        let raw = self.raw.as_ref()?;
        let directions = raw.decoder_directions()?;
        let feature = raw.layout().index(self.circuit.node(index).id)?;
        (feature < directions.n_features()).then(|| directions.row(feature))
    }

    /// The supernodes in the file: name and ids.
    pub(super) fn stored_groups(&self) -> Vec<(String, Vec<String>)> {
        let stored = self.wire.as_ref().and_then(|wire| wire.q_params.get("supernodes")).cloned();
        let lists: Vec<Vec<String>> = stored.and_then(|lists| serde_json::from_value(lists).ok()).unwrap_or_default();
        lists.into_iter().filter(|list| !list.is_empty()).map(|mut list| (list.remove(0), list)).collect()
    }
}

/// The circuit in a raw graph, which is pruned, or in a JSON graph, which is taken as it is.
pub(super) fn open_graph(path: &Path, settings: &PruneSettings) -> Result<OpenedGraph> {
    // By content: names are free.
    if raw::looks_raw(path).unwrap_or(false) {
        let graph = open_raw(path)?;
        let circuit = prune_raw(&graph, settings)?;
        return Ok(OpenedGraph { circuit, raw: Some(graph), wire: None });
    }
    let doing = || format!("cannot load the graph `{}`", path.display());
    let wire = read_wire(path).doing(doing)?;
    let circuit = wire.circuit().doing(doing)?;
    Ok(OpenedGraph { circuit, raw: None, wire: Some(wire) })
}

/// As [`open_graph`], the circuit only.
pub(super) fn open_circuit(path: &Path, settings: &PruneSettings) -> Result<Circuit> {
    Ok(open_graph(path, settings)?.circuit)
}

/// Labels from a file, over those that the graph carries.
pub(super) fn relabel(circuit: &mut Circuit, labels: Option<&PathBuf>) -> Result<()> {
    if let Some(path) = labels {
        let labels = Labels::read(path)?;
        circuit.set_labels(|layer, feature| labels.get(layer, feature).map(str::to_owned));
    }
    Ok(())
}

/// A summary as it is printed.
pub(super) fn render(summary: &Summary, format: Format) -> Result<String> {
    match format {
        Format::Text => Ok(summary_text(summary)),
        Format::Json => json_text(summary),
    }
}
