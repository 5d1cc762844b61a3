//! A whole graph, opened: all its nodes, numbered once for all, and the cuts of it that were asked for last.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::circuits::open_json;
use crate::export::{StreamedGraph, node_id_text};
use crate::graph::{CircuitMeta, Node, NodeId, NodeKind, node_threshold};
use crate::prune::{PruneSettings, Pruned};
use crate::tracer::TracedGraph;
use crate::{Error, Result};

use super::cut::Cut;
use super::reply::Hash;

/// Cuts that are kept of one graph. A slider that goes back and forth finds them again.
const MAX_CUTS: usize = 6;

/// Bytes that the kept cuts of one graph may take, the last one apart.
const MAX_CUT_BYTES: usize = 256 << 20;

/// Where the edges of a graph are.
#[derive(Debug)]
pub(super) enum Edges {
    /// In the rows of a raw graph.
    Raw(Box<TracedGraph>),
    /// In the links of a JSON graph, which was pruned before.
    Json(Box<StreamedGraph>),
}

/// How a graph is cut. `None`: as its file is.
pub(super) type Thresholds = Option<PruneSettings>;

/// A graph of which parts are asked for.
#[derive(Debug)]
pub(super) struct Whole {
    pub meta: CircuitMeta,
    /// All nodes; node `n` stays node `n` at all thresholds. `[n_nodes]`
    pub nodes: Vec<Node>,
    /// Ids as files have them. `[n_nodes]`
    pub ids: Vec<String>,
    pub edges: Edges,
    /// Changes with the graph.
    pub etag: String,
    by_id: HashMap<String, u32>,
    by_node: HashMap<NodeId, u32>,
    cuts: Mutex<Vec<Arc<Cut>>>,
}

impl Whole {
    /// Opens a raw graph; its rows stay in the file.
    ///
    /// # Errors
    /// As [`TracedGraph::read`].
    pub fn read_raw(path: &Path) -> Result<Self> {
        Self::traced(TracedGraph::read(path)?)
    }

    /// A graph as it was traced.
    ///
    /// # Errors
    /// None for what was checked before.
    pub fn traced(traced: TracedGraph) -> Result<Self> {
        let graph = traced.graph();
        let (_, cumulative_influence) = match graph.whole_influence() {
            Some(whole) => {
                let (smallest, of_whole) = node_threshold(&whole.nodes, 1.0);
                let mut cumulative = vec![1.0; graph.layout().n_nodes()];
                let inner = 0..graph.layout().targets().start;
                inner.for_each(|node| cumulative[node] = of_whole[graph.place_in_whole(node)]);
                (smallest, cumulative)
            }
            None => node_threshold(&traced.influence().nodes, 1.0),
        };
        let everything = PruneSettings { node_threshold: 1.0, edge_threshold: 1.0, max_nodes: None };
        let node_mask = vec![true; graph.layout().n_nodes()];
        let all = Pruned { node_mask, edges: Vec::new(), cumulative_influence, n_left_out: 0, settings: everything }
            .circuit(graph)?;
        let meta = CircuitMeta { node_threshold: None, edge_threshold: None, ..all.meta.clone() };
        let nodes: Vec<Node> = all.graph().node_weights().cloned().collect();
        let hash = graph
            .row_values
            .iter()
            .chain(&graph.activation_values)
            .fold(Hash::new(), |hash, value| hash.with_number(u64::from(value.to_bits())));
        Ok(Self::new(meta, nodes, None, Edges::Raw(Box::new(traced)), hash))
    }

    /// Opens a JSON graph of any size.
    ///
    /// # Errors
    /// As [`open_json`]; a circle of links.
    pub fn read_json(path: &Path) -> Result<Self> {
        let file = open_json(path, None)?;
        let ids = (0..file.nodes.len()).map(|node| file.node_id(node).to_owned()).collect();
        let hash = file.links.iter().fold(Hash::new(), |hash, link| {
            hash.with_number(u64::from(link.source) << 32 | u64::from(link.target))
                .with_number(u64::from(link.weight.to_bits()))
        });
        Ok(Self::new(file.meta(), file.nodes.clone(), Some(ids), Edges::Json(Box::new(file)), hash))
    }

    fn new(meta: CircuitMeta, nodes: Vec<Node>, ids: Option<Vec<String>>, edges: Edges, hash: Hash) -> Self {
        let ids = ids.unwrap_or_else(|| nodes.iter().map(|node| node_id_text(meta.n_layers, node)).collect());
        let mut by_id = HashMap::with_capacity(ids.len());
        for (n, id) in ids.iter().enumerate() {
            // Error nodes of other programs may have the id of a feature, which is meant then.
            let is_error = nodes[n].id.kind() == NodeKind::Error;
            if !(is_error && by_id.contains_key(id)) {
                by_id.insert(id.clone(), n as u32);
            }
        }
        let label = |node: &Node| node.label.clone().unwrap_or_default();
        let hash =
            ids.iter().zip(&nodes).fold(hash, |hash, (id, node)| hash.with(id.as_bytes()).with(label(node).as_bytes()));
        let etag = hash.with(meta.prompt.as_bytes()).etag();
        let by_node = nodes.iter().enumerate().map(|(n, node)| (node.id, n as u32)).collect();
        Self { meta, nodes, ids, edges, etag, by_id, by_node, cuts: Mutex::default() }
    }

    /// The raw graph, where this is one.
    pub fn raw(&self) -> Option<&TracedGraph> {
        match &self.edges {
            Edges::Raw(traced) => Some(traced),
            Edges::Json(_) => None,
        }
    }

    /// The node that a number or an id names.
    pub fn find(&self, name: &str) -> Option<usize> {
        match self.by_id.get(name) {
            Some(&n) => Some(n as usize),
            None => name.parse().ok().filter(|&n: &usize| n < self.nodes.len()),
        }
    }

    /// The id of a node of this graph; nothing for one of another.
    pub fn id_of(&self, node: NodeId) -> &str {
        self.by_node.get(&node).map_or("", |&n| self.ids[n as usize].as_str())
    }

    /// As [`Whole::find`].
    ///
    /// # Errors
    /// [`Error::UnknownNode`].
    pub fn need(&self, name: &str) -> Result<usize> {
        self.find(name).ok_or_else(|| Error::UnknownNode { id: name.to_owned(), near: Vec::new() })
    }

    /// What a node is called: its label, or the text of a token or target.
    pub fn label(&self, n: usize) -> &str {
        let node = &self.nodes[n];
        node.label.as_deref().unwrap_or(&node.text)
    }

    /// Thresholds as somebody asks for them; what is not said is as usual: that of the file where it is JSON.
    ///
    /// # Errors
    /// [`Error::Threshold`] outside 0..=1.
    pub fn thresholds(&self, node_threshold: Option<f64>, edge_threshold: Option<f64>) -> Result<Thresholds> {
        let usual = match self.edges {
            Edges::Raw(_) => PruneSettings::default(),
            Edges::Json(_) if node_threshold.is_none() && edge_threshold.is_none() => return Ok(None),
            Edges::Json(_) => PruneSettings { node_threshold: 1.0, edge_threshold: 1.0, max_nodes: None },
        };
        let settings = PruneSettings {
            node_threshold: node_threshold.unwrap_or(usual.node_threshold),
            edge_threshold: edge_threshold.unwrap_or(usual.edge_threshold),
            // The page asks for cuts of any size.
            max_nodes: None,
        };
        settings.check()?;
        Ok(Some(settings))
    }

    /// The graph cut at these thresholds.
    ///
    /// # Errors
    /// As [`Cut::new`].
    pub fn cut(&self, thresholds: Thresholds) -> Result<Arc<Cut>> {
        let is_it = |cut: &Arc<Cut>| cut.thresholds == thresholds;
        let mut cuts = self.cuts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = cuts.iter().position(is_it) {
            let cut = cuts.remove(at);
            cuts.push(cut.clone());
            return Ok(cut);
        }
        // Others may want what is there already.
        drop(cuts);
        let cut = Arc::new(Cut::new(self, thresholds)?);
        let mut cuts = self.cuts.lock().unwrap_or_else(PoisonError::into_inner);
        cuts.retain(|cut| !is_it(cut));
        cuts.push(cut.clone());
        let size = |cuts: &[Arc<Cut>]| cuts.iter().map(|cut| cut.size_bytes()).sum::<usize>();
        while cuts.len() > 1 && (cuts.len() > MAX_CUTS || size(&cuts) > MAX_CUT_BYTES) {
            cuts.remove(0);
        }
        Ok(cut)
    }
}
