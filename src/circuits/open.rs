//! Graph files of any kind, opened: raw graphs are pruned on the way, JSON graphs are taken as they are or pruned further.

use std::cell::Cell;
use std::path::Path;

use petgraph::graph::NodeIndex;

use super::find_nodes;
use super::group::{NamedGroup, split_name};
use crate::error::ErrorContext;
use crate::export::{StreamedGraph, node_id_text, raw, read_raw, stream_wire};
use crate::graph::{AttributionGraph, Circuit, Node, node_threshold};
use crate::prune::{PruneSettings, Pruned, prune, prune_links, strongest_within};
use crate::{Error, Result};

/// How a graph is pruned when it is opened. The default: raw graphs with the usual thresholds, JSON graphs not at all.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Opening {
    /// For raw graphs.
    pub raw: PruneSettings,
    /// For JSON graphs; `None` takes them as they are, since they were pruned before.
    pub json: Option<PruneSettings>,
}

impl Opening {
    /// Thresholds as somebody asks for them, shares in 0..=1. What is not asked for is the usual threshold for a raw graph
    /// and no pruning for a JSON graph.
    ///
    /// # Errors
    /// [`Error::Threshold`] outside 0..=1.
    pub fn new(node_threshold: Option<f64>, edge_threshold: Option<f64>) -> Result<Opening> {
        let settings_or = |default: PruneSettings| PruneSettings {
            node_threshold: node_threshold.unwrap_or(default.node_threshold),
            edge_threshold: edge_threshold.unwrap_or(default.edge_threshold),
            ..default
        };
        let everything = PruneSettings { node_threshold: 1.0, edge_threshold: 1.0, max_nodes: None };
        let is_asked_for = node_threshold.is_some() || edge_threshold.is_some();
        let opening =
            Opening { raw: settings_or(PruneSettings::default()), json: is_asked_for.then(|| settings_or(everything)) };
        opening.raw.check()?;
        Ok(opening)
    }
}

/// Links of a JSON graph that are held as a circuit, some 60 bytes each; more are no circuit that anybody can look at.
const MAX_LINKS: usize = 4_000_000;

/// A graph file, opened: the circuit, and what the file holds besides.
#[derive(Debug)]
pub struct OpenedGraph {
    /// What pruning has left.
    pub circuit: Circuit,
    /// The whole graph, where the file is a raw one.
    pub raw: Option<AttributionGraph>,
    /// The file, where it is JSON. Node i is node i of the circuit.
    pub json: Option<StreamedGraph>,
}

impl OpenedGraph {
    /// The unit vector along which a feature of the circuit writes, if the file is a raw graph that holds it.
    /// `[d_model]`
    pub fn decoder_direction(&self, index: NodeIndex) -> Option<Vec<f32>> {
        decoder_direction(self.raw.as_ref()?, &self.circuit, index)
    }

    /// What there is to say about a node that the circuit lacks: whether the file holds it, and what would keep it. Other
    /// errors stay as they are.
    pub fn explained(&self, error: Error) -> Error {
        let Error::UnknownNode { id, near } = &error else { return error };
        // A part was searched, and the node is elsewhere.
        if let Ok(found) = find_nodes(&self.circuit, id) {
            let node = node_id_text(self.circuit.meta.n_layers, self.circuit.node(found[0]));
            return Error::NotInPart { id: id.clone(), node };
        }
        let threshold = self.circuit.meta.node_threshold;
        let Some(raw) = &self.raw else {
            // A pruned file cannot know what it has lost.
            return match threshold.filter(|&threshold| near.is_empty() && threshold < 1.0) {
                Some(threshold) => Error::MaybePruned { id: id.clone(), threshold },
                None => error,
            };
        };
        let Some((node, cumulative)) = dropped_node(raw, &self.circuit, id) else { return error };
        Error::PrunedNode { id: node, threshold: threshold.unwrap_or(1.0), cumulative }
    }

    /// The supernodes in the file, their members as ids. Ids of nodes that pruning has dropped may be among them.
    pub fn stored_groups(&self) -> Vec<NamedGroup> {
        let stored = self.json.as_ref().and_then(|json| json.q_params().get("supernodes")).cloned();
        // circuit-tracer's page saves the list as text.
        let stored = stored.and_then(|lists| match lists.as_str() {
            Some(text) => serde_json::from_str(text).ok(),
            None => Some(lists),
        });
        let lists: Vec<Vec<String>> = stored.and_then(|lists| serde_json::from_value(lists).ok()).unwrap_or_default();
        lists.into_iter().filter_map(split_name).collect()
    }
}

/// The unit vector along which a feature of a graph's circuit writes, where the graph holds it. `[d_model]`
pub fn decoder_direction(graph: &AttributionGraph, circuit: &Circuit, index: NodeIndex) -> Option<Vec<f32>> {
    let directions = graph.decoder_directions()?;
    let feature = graph.layout().index(circuit.node(index).id)?;
    (feature < directions.n_features()).then(|| directions.row(feature))
}

/// Opens a graph file: a raw graph (safetensors), which is pruned, or a JSON graph. Which of the two it is says the
/// content, not the name.
///
/// # Errors
/// A file that cannot be read or is no graph, edges that are not finite or go round in a circle; more links than a circuit
/// can hold ([`Error::TooManyLinks`]: thresholds prune them while they are read).
pub fn open_graph(path: &Path, opening: &Opening) -> Result<OpenedGraph> {
    if raw::looks_raw(path).unwrap_or(false) {
        let graph = open_raw(path)?;
        let circuit = prune_raw(&graph, &opening.raw)?;
        return Ok(OpenedGraph { circuit, raw: Some(graph), json: None });
    }
    let json = open_json(path, opening.json.as_ref())?;
    let doing = || format!("cannot load the graph `{}`", path.display());
    if json.links.len() > MAX_LINKS {
        return Err(Error::TooManyLinks { n_links: json.links.len(), limit: MAX_LINKS }).context(doing);
    }
    let circuit = json.circuit().context(doing)?;
    Ok(OpenedGraph { circuit, raw: None, json: Some(json) })
}

/// As [`open_graph`], the circuit only.
///
/// # Errors
/// As [`open_graph`].
pub fn open_circuit(path: &Path, opening: &Opening) -> Result<Circuit> {
    Ok(open_graph(path, opening)?.circuit)
}

/// Opens a raw graph, unpruned; its edge rows stay in the file.
///
/// # Errors
/// As [`read_raw`].
pub fn open_raw(path: &Path) -> Result<AttributionGraph> {
    read_raw(path).context(|| format!("cannot load the graph `{}`", path.display()))
}

/// The circuit in a raw graph.
///
/// # Errors
/// As [`prune`].
pub fn prune_raw(graph: &AttributionGraph, settings: &PruneSettings) -> Result<Circuit> {
    let influence = graph.influence();
    prune(graph, &influence, settings)?.circuit(graph)
}

/// Opens a JSON graph of any size, pruned while it is read.
///
/// # Errors
/// As [`stream_wire`] and [`prune_links`].
pub fn open_json(path: &Path, settings: Option<&PruneSettings>) -> Result<StreamedGraph> {
    let open = || {
        let Some(settings) = settings else { return stream_wire(path, None) };
        settings.check()?;
        let n_left_out = Cell::new(0);
        let within = |nodes: &[Node]| {
            let (stays, n_more) = strongest_within(nodes, settings);
            n_left_out.set(n_more);
            stays
        };
        let mut graph = stream_wire(path, Some(&within))?;
        graph.leave_out(n_left_out.get());
        let is_kept = prune_links(&graph.nodes, &mut graph.links, settings.edge_threshold)?;
        graph.keep_nodes(&is_kept);
        Ok(graph)
    };
    open().context(|| format!("cannot load the graph `{}`", path.display()))
}

/// The node of the raw graph that `name` stands for and the circuit lacks: its id, and the cumulative share of influence at
/// its rank, from which node threshold on it is kept.
fn dropped_node(raw: &AttributionGraph, circuit: &Circuit, name: &str) -> Option<(String, f64)> {
    // Its nodes only: all of its edges may be more than there is memory for.
    let (_, cumulative_influence) = node_threshold(&raw.influence().nodes, 1.0);
    let settings = PruneSettings { node_threshold: 1.0, edge_threshold: 1.0, max_nodes: None };
    let node_mask = vec![true; raw.layout().n_nodes()];
    let nodes = Pruned { node_mask, edges: Vec::new(), cumulative_influence, n_left_out: 0, settings };
    let whole = nodes.circuit(raw).ok()?;
    let found = find_nodes(&whole, name).ok()?;
    let dropped = found.into_iter().find(|&index| circuit.find(whole.node(index).id).is_none())?;
    let node = whole.node(dropped);
    let index = raw.layout().index(node.id)?;
    Some((node_id_text(circuit.meta.n_layers, node), nodes.cumulative_influence[index]))
}
