//! A circuit: what pruning leaves of a graph.

use std::path::PathBuf;
use std::sync::Arc;

use circuitscope::circuits::{
    GroupRequest, NamedGroup, OpenedGraph, Opening, Summary, SummarySettings, Supernode, collapse, decoder_direction,
    find_nodes, open_graph, save, summarize, summarize_with_raw,
};
use circuitscope::cli::{check_json_output, json_text, summary_text};
use circuitscope::export::{WireGraph, node_id_text, write_wire};
use circuitscope::graph::{AttributionGraph, Circuit as Pruned, Node};
use circuitscope::petgraph::graph::NodeIndex;
use circuitscope::picture::{Cells, PictureSettings, arrange, csv_edges, csv_nodes, dot, graphml, png, svg};
use circuitscope::{Result, TracedGraph};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::error::{Raise, input_error};
use crate::job;

/// Where a circuit comes from.
enum Origin {
    Traced(Arc<TracedGraph>, Box<Pruned>),
    File(Box<OpenedGraph>),
}

/// What pruning left of a graph.
#[pyclass(frozen, module = "circuitscope._native")]
pub struct Circuit {
    origin: Arc<Origin>,
}

/// Names of supernodes with those of their members, whether others are found too, and at which likeness.
type Groups = (Vec<NamedGroup>, Option<f64>);

impl Origin {
    fn circuit(&self) -> &Pruned {
        match self {
            Origin::Traced(_, circuit) => circuit,
            Origin::File(opened) => &opened.circuit,
        }
    }

    fn raw(&self) -> Option<&AttributionGraph> {
        match self {
            Origin::Traced(graph, _) => Some(graph.graph()),
            Origin::File(opened) => opened.raw.as_ref(),
        }
    }

    fn summary(&self, settings: &SummarySettings) -> Result<Summary> {
        match self.raw() {
            Some(raw) => summarize_with_raw(self.circuit(), raw, settings),
            None => summarize(self.circuit(), settings),
        }
    }

    fn supernodes(&self, (named, auto_cut): Groups) -> Result<Vec<Supernode>> {
        let request = GroupRequest { named, auto_cut, ..GroupRequest::default() };
        match self {
            Origin::File(opened) => request.supernodes(opened),
            Origin::Traced(graph, circuit) => {
                let direction = |index| decoder_direction(graph.graph(), circuit, index);
                request.supernodes_in(circuit, &direction, Vec::new)
            }
        }
    }
}

impl Circuit {
    pub fn of_traced(circuit: Pruned, graph: Arc<TracedGraph>) -> Circuit {
        Circuit { origin: Arc::new(Origin::Traced(graph, Box::new(circuit))) }
    }
}

#[pymethods]
impl Circuit {
    #[staticmethod]
    fn read(
        py: Python<'_>,
        path: PathBuf,
        node_threshold: Option<f64>,
        edge_threshold: Option<f64>,
    ) -> PyResult<Circuit> {
        let opened = job::short(py, || open_graph(&path, &Opening::new(node_threshold, edge_threshold)?))?;
        Ok(Circuit { origin: Arc::new(Origin::File(Box::new(opened))) })
    }

    /// Writes a JSON graph; with pinned nodes or supernodes, as `inspect --save` does, else as `trace` does.
    fn save(&self, py: Python<'_>, path: PathBuf, groups: Groups, pinned: Vec<String>) -> PyResult<()> {
        job::short(py, || {
            check_json_output(&path)?;
            let groups = self.origin.supernodes(groups)?;
            let circuit = self.origin.circuit();
            let mut chosen: Vec<NodeIndex> = Vec::new();
            for name in &pinned {
                chosen.extend(find_nodes(circuit, name)?);
            }
            chosen.sort_unstable();
            chosen.dedup();
            let chosen = (!chosen.is_empty()).then_some(chosen);
            match &*self.origin {
                Origin::File(opened) => save(opened, chosen.as_deref(), &groups, &path),
                Origin::Traced(..) if chosen.is_none() && groups.is_empty() => {
                    let slug = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
                    write_wire(&WireGraph::new(circuit, &slug)?, &path)
                }
                Origin::Traced(..) => {
                    let opened = OpenedGraph { circuit: circuit.clone(), raw: None, json: None };
                    save(&opened, chosen.as_deref(), &groups, &path)
                }
            }
        })
    }

    /// The summary as JSON.
    #[pyo3(signature = (top, paths, node, sources, targets))]
    fn summary(
        &self,
        py: Python<'_>,
        top: usize,
        paths: usize,
        node: Option<String>,
        sources: Vec<String>,
        targets: Vec<String>,
    ) -> PyResult<String> {
        let settings = SummarySettings { top, paths, node, from: sources, to: targets };
        job::short(py, || json_text(&self.origin.summary(&settings)?))
    }

    /// The summary as text, as `trace` and `inspect` print it.
    fn text(&self, py: Python<'_>, top: usize, paths: usize, node: Option<String>) -> PyResult<String> {
        let settings = SummarySettings { top, paths, node, ..SummarySettings::default() };
        job::short(py, || Ok(summary_text(&self.origin.summary(&settings)?)))
    }

    /// The circuit as SVG, DOT, GraphML or CSV.
    #[pyo3(signature = (format, groups, max_nodes=None, edge_share=None, max_inputs=None, target_share=None))]
    #[allow(clippy::too_many_arguments)]
    fn drawn(
        &self,
        py: Python<'_>,
        format: &str,
        groups: Groups,
        max_nodes: Option<usize>,
        edge_share: Option<f64>,
        max_inputs: Option<usize>,
        target_share: Option<f64>,
    ) -> PyResult<String> {
        let usual = PictureSettings::default();
        let settings = PictureSettings {
            max_nodes: max_nodes.unwrap_or(usual.max_nodes),
            edge_share: share(py, "edge_share", edge_share.unwrap_or(usual.edge_share))?,
            max_inputs: max_inputs.unwrap_or(usual.max_inputs),
            target_share: share(py, "target_share", target_share.unwrap_or(usual.target_share))?,
            scale: usual.scale,
        };
        let drawn = job::short(py, || {
            let circuit = self.origin.circuit();
            let collapsed = collapse(circuit, &self.origin.supernodes(groups)?)?;
            Ok(match format {
                "svg" => Some(svg(circuit, &collapsed, &arrange(circuit, &collapsed, &settings))),
                "dot" => Some(dot(circuit, &collapsed)),
                "graphml" => Some(graphml(circuit, &collapsed)),
                "csv" => Some(csv_edges(circuit, &collapsed, Cells::Exact)),
                "csv-nodes" => Some(csv_nodes(circuit, &collapsed, Cells::Exact)),
                _ => None,
            })
        })?;
        drawn.ok_or_else(|| input_error(py, &format!("expected svg, dot, graphml, csv or csv-nodes, found {format:?}")))
    }

    /// Where the circuit comes from: prompt, tokens, model, thresholds, scores; as JSON.
    fn meta(&self, py: Python<'_>) -> PyResult<String> {
        let meta = &self.origin.circuit().meta;
        let meta = serde_json::json!({
            "prompt": meta.prompt,
            "prompt_tokens": meta.prompt_tokens,
            "scan": meta.scan,
            "model": meta.model,
            "transcoders": meta.transcoders,
            "n_layers": meta.n_layers,
            "node_threshold": meta.node_threshold,
            "edge_threshold": meta.edge_threshold,
            "replacement_score": meta.replacement_score,
            "completeness_score": meta.completeness_score,
            "row_identity_error": meta.row_identity_error,
            "trace_id": meta.trace_id,
        });
        json_text(&meta).raised(py)
    }

    /// Numbers of nodes and edges.
    fn sizes(&self) -> (usize, usize) {
        let graph = self.origin.circuit().graph();
        (graph.node_count(), graph.edge_count())
    }

    /// The nodes, one list a column.
    fn nodes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let circuit = self.origin.circuit();
        let n_layers = circuit.meta.n_layers;
        let weight = circuit.whole_weight();
        let nodes: Vec<&Node> = circuit.graph().node_weights().collect();
        let influence = circuit.node_influence();
        let shares: Vec<f64> = influence.iter().map(|share| if weight > 0.0 { share / weight } else { 0.0 }).collect();
        let columns = PyDict::new(py);
        columns.set_item("id", nodes.iter().map(|node| node_id_text(n_layers, node)).collect::<Vec<_>>())?;
        columns.set_item("kind", nodes.iter().map(|node| node.id.kind().name()).collect::<Vec<_>>())?;
        columns.set_item("layer", nodes.iter().map(|node| node.id.layer()).collect::<Vec<_>>())?;
        columns.set_item("pos", nodes.iter().map(|node| node.pos).collect::<Vec<_>>())?;
        columns
            .set_item("feature", nodes.iter().map(|node| node.id.feature().map(|f| f.feature)).collect::<Vec<_>>())?;
        columns.set_item("token_id", nodes.iter().map(|node| node.token_id).collect::<Vec<_>>())?;
        columns.set_item("text", nodes.iter().map(|node| node.text.as_str()).collect::<Vec<_>>())?;
        columns.set_item("label", nodes.iter().map(|node| node.label.as_deref()).collect::<Vec<_>>())?;
        columns.set_item("activation", nodes.iter().map(|node| node.activation).collect::<Vec<_>>())?;
        columns.set_item("probability", nodes.iter().map(|node| node.probability).collect::<Vec<_>>())?;
        columns.set_item("cumulative_influence", nodes.iter().map(|node| node.influence).collect::<Vec<_>>())?;
        columns.set_item("share", shares)?;
        Ok(columns)
    }

    /// The edges: numbers of the nodes at their ends, weights, shares of the target's input.
    fn edges(&self) -> (Vec<usize>, Vec<usize>, Vec<f32>, Vec<f64>) {
        let edges = self.origin.circuit().graph().raw_edges();
        (
            edges.iter().map(|edge| edge.source().index()).collect(),
            edges.iter().map(|edge| edge.target().index()).collect(),
            edges.iter().map(|edge| edge.weight.weight).collect(),
            edges.iter().map(|edge| edge.weight.share).collect(),
        )
    }

    /// The strongest features and errors, at most `count` of them, as numbers of nodes.
    fn strongest(&self, count: usize) -> Vec<usize> {
        self.origin.circuit().strongest_nodes(count).into_iter().map(|(index, _)| index.index()).collect()
    }
}

/// An SVG as PNG.
#[pyfunction]
pub fn png_of(py: Python<'_>, svg: &str, scale: f64) -> PyResult<Vec<u8>> {
    job::short(py, || png(svg, scale))
}

fn share(py: Python<'_>, name: &'static str, value: f64) -> PyResult<f64> {
    match (0.0..=1.0).contains(&value) {
        true => Ok(value),
        false => Err(circuitscope::Error::Setting { name, value, range: "0..=1" }).raised(py),
    }
}
