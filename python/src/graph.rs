//! A traced graph.

use std::path::PathBuf;
use std::sync::Arc;

use circuitscope::export::node_id_text;
use circuitscope::graph::{
    AttributionGraph, EdgeRows, FeatureId, GraphData, GraphMeta, Node, NodeId, RAW_FORMAT_VERSION, scores,
};
use circuitscope::{PruneSettings, TracedGraph};
use pyo3::exceptions::PyKeyError;
use pyo3::prelude::*;

use crate::array::Array;
use crate::circuit::Circuit;
use crate::error::{Raise, raise};
use crate::job;

/// Every direct effect of one prompt.
#[pyclass(frozen, module = "circuitscope._native")]
pub struct Graph {
    pub inner: Arc<TracedGraph>,
}

impl From<TracedGraph> for Graph {
    fn from(graph: TracedGraph) -> Graph {
        Graph { inner: Arc::new(graph) }
    }
}

#[pymethods]
impl Graph {
    #[staticmethod]
    fn read(py: Python<'_>, path: PathBuf) -> PyResult<Graph> {
        Ok(job::short(py, || TracedGraph::read(path))?.into())
    }

    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        job::short(py, || self.inner.save(path))
    }

    fn prune(
        &self,
        py: Python<'_>,
        node_threshold: f64,
        edge_threshold: f64,
        max_nodes: Option<usize>,
    ) -> PyResult<Circuit> {
        let settings = PruneSettings { node_threshold, edge_threshold, max_nodes };
        let circuit = job::short(py, || self.inner.prune(&settings))?;
        Ok(Circuit::of_traced(circuit, self.inner.clone()))
    }

    /// A graph that another program computed: rows of selected features and targets, and what they are of. Bytes are of
    /// the machine's own order.
    #[staticmethod]
    #[allow(clippy::too_many_arguments)]
    fn from_parts(
        py: Python<'_>,
        prompt: String,
        prompt_tokens: Vec<String>,
        input_tokens: Vec<i64>,
        active_features: Vec<(u32, u32, u32)>,
        activation_values: Vec<f32>,
        selected_features: Vec<usize>,
        edge_rows: &[u8],
        target_ids: Vec<i64>,
        target_labels: Vec<String>,
        target_probabilities: Vec<f32>,
        n_layers: usize,
        names: (String, String),
    ) -> PyResult<Graph> {
        let made = || -> circuitscope::Result<Graph> {
            let values: Vec<f32> =
                edge_rows.chunks_exact(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect();
            let (n_pos, n_selected, n_targets) = (input_tokens.len(), selected_features.len(), target_ids.len());
            let n_rows = n_selected + n_targets;
            let n_nodes = n_layers.saturating_mul(n_pos).saturating_add(n_rows + n_pos);
            let edge_rows = EdgeRows::from_vec(values, n_rows, n_nodes)?;
            let row_values = (0..n_rows).map(|row| edge_rows.row(row).iter().sum()).collect();
            let (model, scan) = names;
            let active = active_features.into_iter();
            let data = GraphData {
                input_tokens,
                active_features: active.map(|(layer, pos, feature)| FeatureId { layer, pos, feature }).collect(),
                activation_values,
                selected_features,
                edge_rows,
                bias_effect: vec![0.0; n_rows],
                unselected_effect: Vec::new(),
                error_nodes: None,
                unselected_error_effect: Vec::new(),
                row_values,
                target_ids,
                target_probabilities,
                logits: Vec::new(),
                meta: GraphMeta {
                    format_version: RAW_FORMAT_VERSION,
                    prompt,
                    prompt_tokens,
                    target_positions: vec![n_pos.saturating_sub(1) as u32; n_targets],
                    target_labels,
                    model,
                    scan,
                    n_layers,
                    program_version: "circuit-tracer".to_owned(),
                    ..GraphMeta::default()
                },
            };
            let mut graph = AttributionGraph::new(data)?;
            let found = scores(graph.layout(), &graph.influence(), &graph.target_probabilities);
            graph.meta_mut().replacement_score = found.replacement;
            graph.meta_mut().completeness_score = found.completeness;
            Ok(TracedGraph::from(graph).into())
        };
        made().raised(py)
    }

    /// The metadata of the raw file, as JSON.
    fn meta(&self, py: Python<'_>) -> PyResult<String> {
        circuitscope::cli::json_text(&self.inner.graph().meta).raised(py)
    }

    /// What tracing took: rows and seconds.
    fn work(&self) -> Option<(usize, f64)> {
        self.inner.work().map(|work| (work.n_rows, work.rows_secs))
    }

    /// Numbers of features, layers, positions, targets, and of nodes in all.
    fn sizes(&self) -> (usize, usize, usize, usize, usize) {
        let layout = self.inner.graph().layout();
        (layout.n_features(), layout.n_layers(), layout.n_pos(), layout.n_targets(), layout.n_nodes())
    }

    /// Kind, layer and position of every node; -1 where there is no layer.
    fn places(&self) -> Vec<(&'static str, i64, i64)> {
        let graph = self.inner.graph();
        let layout = graph.layout();
        let place = |node: NodeId| {
            let pos = match node {
                NodeId::Target { index } => graph.meta.target_positions.get(index as usize).copied(),
                _ => node.pos(),
            };
            (node.kind().name(), node.layer().map_or(-1, i64::from), pos.map_or(-1, i64::from))
        };
        (0..layout.n_nodes()).filter_map(|index| layout.node(index)).map(place).collect()
    }

    /// Whether there is an error node for every layer and position, and no position is closed.
    fn is_full(&self) -> bool {
        let layout = self.inner.graph().layout();
        layout.has_all_errors() && layout.closed().is_empty()
    }

    /// The ids of all nodes, as JSON and the command line write them.
    fn node_ids(&self) -> Vec<String> {
        let graph = self.inner.graph();
        let layout = graph.layout();
        let id = |index: usize| {
            let id = layout.node(index).unwrap_or(NodeId::Token { pos: 0 });
            let (pos, token_id) = match id {
                NodeId::Feature { pos, .. } | NodeId::Error { pos, .. } | NodeId::Context { pos } => (pos, None),
                NodeId::Token { pos } => (pos, graph.input_tokens.get(pos as usize).copied()),
                NodeId::Target { index } => {
                    let index = index as usize;
                    (graph.meta.target_positions[index], Some(graph.target_ids[index]))
                }
            };
            let node = Node {
                id,
                pos,
                token_id,
                text: String::new(),
                label: None,
                activation: None,
                influence: None,
                probability: None,
                estimate: None,
            };
            node_id_text(layout.n_layers(), &node)
        };
        (0..layout.n_nodes()).map(id).collect()
    }

    /// One of the graph's lists and matrices.
    fn array(&self, name: &str) -> PyResult<Array> {
        let graph = self.inner.graph();
        let owner = self.inner.clone();
        let n = |values: usize| vec![values];
        Ok(match name {
            "adjacency" => {
                let shape = vec![graph.edge_rows.n_rows(), graph.edge_rows.n_nodes()];
                Array::of(owner, shape, |g: &TracedGraph| g.graph().edge_rows.values())
            }
            "active_features" => {
                let shape = vec![graph.active_features.len(), 3];
                Array::of(owner, shape, |g: &TracedGraph| &g.graph().active_features[..])
            }
            "activation_values" => {
                Array::of(owner, n(graph.activation_values.len()), |g: &TracedGraph| &g.graph().activation_values[..])
            }
            "selected_features" => {
                Array::of(owner, n(graph.selected_features.len()), |g: &TracedGraph| &g.graph().selected_features[..])
            }
            "bias_effect" => Array::of(owner, n(graph.bias_effect.len()), |g: &TracedGraph| &g.graph().bias_effect[..]),
            "unselected_effect" => {
                Array::of(owner, n(graph.unselected_effect.len()), |g: &TracedGraph| &g.graph().unselected_effect[..])
            }
            "unselected_error_effect" => Array::of(owner, n(graph.unselected_error_effect.len()), |g: &TracedGraph| {
                &g.graph().unselected_error_effect[..]
            }),
            "row_values" => Array::of(owner, n(graph.row_values.len()), |g: &TracedGraph| &g.graph().row_values[..]),
            "input_tokens" => {
                Array::of(owner, n(graph.input_tokens.len()), |g: &TracedGraph| &g.graph().input_tokens[..])
            }
            "target_ids" => Array::of(owner, n(graph.target_ids.len()), |g: &TracedGraph| &g.graph().target_ids[..]),
            "target_probabilities" => Array::of(owner, n(graph.target_probabilities.len()), |g: &TracedGraph| {
                &g.graph().target_probabilities[..]
            }),
            "logits" => Array::of(owner, n(graph.logits.len()), |g: &TracedGraph| &g.graph().logits[..]),
            "influence" => {
                Array::of(owner, n(self.inner.influence().nodes.len()), |g: &TracedGraph| &g.influence().nodes[..])
            }
            _ => return Err(PyKeyError::new_err(name.to_owned())),
        })
    }
}

/// Features of a circuit, for the check of a graph.
pub fn kept_features(
    py: Python<'_>,
    graph: &Arc<TracedGraph>,
    settings: &PruneSettings,
) -> PyResult<Vec<circuitscope::graph::FeatureId>> {
    let circuit = graph.prune(settings).map_err(|error| raise(py, &error))?;
    Ok(circuit.order().iter().filter_map(|&index| circuit.node(index).id.feature()).collect())
}
