//! Graphs as they are named on the command line: a raw graph or a pruned one.

use std::path::{Path, PathBuf};

use clap::Args;
use petgraph::graph::NodeIndex;

use crate::error::Doing;
use crate::export::{StreamedGraph, Summary, raw, read_raw, stream_wire};
use crate::graph::{AttributionGraph, Circuit, influence};
use crate::labels::Labels;
use crate::prune::{PruneSettings, prune, prune_links};
use crate::{Error, Result};

use super::summary::summary_text;
use super::{Format, json_text};

/// Thresholds, as options.
#[derive(Debug, Args)]
pub(super) struct Thresholds {
    /// Keep the nodes that carry this share of the influence [default: 0.8 for a raw graph, all of a JSON graph]
    #[arg(long, value_name = "SHARE")]
    node_threshold: Option<f64>,
    /// Keep the edges that carry this share of what is left [default: 0.98 for a raw graph, all of a JSON graph]
    #[arg(long, value_name = "SHARE")]
    edge_threshold: Option<f64>,
}

impl Thresholds {
    fn settings_or(&self, default: &PruneSettings) -> Result<PruneSettings> {
        let settings = PruneSettings {
            node_threshold: self.node_threshold.unwrap_or(default.node_threshold),
            edge_threshold: self.edge_threshold.unwrap_or(default.edge_threshold),
        };
        settings.check()?;
        Ok(settings)
    }

    /// # Errors
    /// A threshold outside 0..=1.
    pub(super) fn settings(&self) -> Result<PruneSettings> {
        self.settings_or(&PruneSettings::default())
    }

    /// How graphs are pruned when they are opened.
    ///
    /// # Errors
    /// A threshold outside 0..=1.
    pub(super) fn opening(&self) -> Result<Opening> {
        let everything = PruneSettings { node_threshold: 1.0, edge_threshold: 1.0 };
        let is_given = self.node_threshold.is_some() || self.edge_threshold.is_some();
        let json = if is_given { Some(self.settings_or(&everything)?) } else { None };
        Ok(Opening { raw: self.settings()?, json })
    }
}

/// How a graph is pruned when it is opened.
#[derive(Debug, Clone, Default)]
pub(super) struct Opening {
    raw: PruneSettings,
    /// JSON graphs were pruned before: they are taken as they are, unless something is asked for.
    json: Option<PruneSettings>,
}

/// Links of a JSON graph that are held as a circuit, some 60 bytes each; more are no circuit that anybody can look at.
const MAX_LINKS: usize = 4_000_000;

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
    pub(super) json: Option<StreamedGraph>,
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
        let stored = self.json.as_ref().and_then(|json| json.q_params().get("supernodes")).cloned();
        let lists: Vec<Vec<String>> = stored.and_then(|lists| serde_json::from_value(lists).ok()).unwrap_or_default();
        lists.into_iter().filter(|list| !list.is_empty()).map(|mut list| (list.remove(0), list)).collect()
    }
}

/// The circuit in a raw graph, which is pruned, or in a JSON graph.
pub(super) fn open_graph(path: &Path, opening: &Opening) -> Result<OpenedGraph> {
    // By content: names are free.
    if raw::looks_raw(path).unwrap_or(false) {
        let graph = open_raw(path)?;
        let circuit = prune_raw(&graph, &opening.raw)?;
        return Ok(OpenedGraph { circuit, raw: Some(graph), json: None });
    }
    let doing = || format!("cannot load the graph `{}`", path.display());
    let json = open_json(path, opening.json.as_ref()).doing(doing)?;
    if json.links.len() > MAX_LINKS {
        return Err(Error::TooManyLinks { n_links: json.links.len(), limit: MAX_LINKS }).doing(doing);
    }
    let circuit = json.circuit().doing(doing)?;
    Ok(OpenedGraph { circuit, raw: None, json: Some(json) })
}

/// A JSON graph, pruned while it is read.
///
/// # Errors
/// Those of reading and pruning.
pub(super) fn open_json(path: &Path, settings: Option<&PruneSettings>) -> Result<StreamedGraph> {
    let mut graph = stream_wire(path, settings.map(|settings| settings.node_threshold))?;
    if let Some(settings) = settings {
        let is_kept = prune_links(&graph.nodes, &mut graph.links, settings.edge_threshold)?;
        graph.keep_nodes(&is_kept);
    }
    Ok(graph)
}

/// As [`open_graph`], the circuit only.
pub(super) fn open_circuit(path: &Path, opening: &Opening) -> Result<Circuit> {
    Ok(open_graph(path, opening)?.circuit)
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
