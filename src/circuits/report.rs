//! A part of a graph and its supernodes in figures: how much they explain, beside the summary.

use petgraph::graph::NodeIndex;
use serde::Serialize;

use super::{OpenedGraph, Summary, Supernode, carried, circuit_scores, collapse, pinned_scores};
use crate::Result;
use crate::export::node_id_text;
use crate::graph::{Circuit, NodeKind, Scores, subgraph_scores};

/// A summary, and what there is to say about a chosen part and about supernodes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The circuit as a whole.
    #[serde(flatten)]
    pub summary: Summary,
    /// What a chosen part explains.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subgraph: Option<SubgraphReport>,
    /// What supernodes were found or asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grouping: Option<Grouping>,
}

/// How much a chosen part explains (definitions 8).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SubgraphReport {
    /// Nodes of the part.
    pub n_nodes: usize,
    /// Nodes of the circuit.
    pub n_nodes_of_whole: usize,
    /// Features of the part.
    pub n_pinned_features: usize,
    /// What of the targets' weight its paths from tokens to targets carry, in 0..=1.
    pub carried_by_tokens: f64,
    /// What errors feed into what is on paths to its targets, in 0..=1.
    pub carried_by_errors: f64,
    /// What all paths from tokens to targets carry in the whole circuit, in 0..=1.
    pub whole_by_tokens: f64,
    /// What passes through at least one of its features and errors, in 0..=1.
    pub passes_through: f64,
    /// Replacement score of the part, in 0..=1.
    pub replacement: f64,
    /// Completeness of the part, in 0..=1.
    pub completeness: f64,
    /// Whether the scores are over all edges of a raw graph, or over those that pruning has left.
    pub over_all_edges: bool,
    /// Ids of its nodes.
    pub ids: Vec<String>,
}

/// Supernodes, and what is lost by merging them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Grouping {
    /// Strongest first.
    pub supernodes: Vec<GroupReport>,
    /// Scores of the circuit's own edges.
    pub before: ScoresReport,
    /// Scores of the collapsed ones.
    pub collapsed: ScoresReport,
}

/// Both scores of [`Scores`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ScoresReport {
    /// Replacement score, in 0..=1.
    pub replacement: f64,
    /// Completeness, in 0..=1.
    pub completeness: f64,
}

impl ScoresReport {
    fn new(scores: Scores) -> ScoresReport {
        ScoresReport { replacement: scores.replacement, completeness: scores.completeness }
    }
}

/// One supernode, strongest first in its list; members by id.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GroupReport {
    /// What it is called.
    pub name: String,
    /// Part of the targets' weight that passes through at least one member.
    pub share: f64,
    /// Ids of its nodes.
    pub members: Vec<String>,
}

impl Report {
    /// Adds to a summary of `opened`, or of the `chosen` part of it, what the part carries and explains of the whole, and how
    /// much the supernodes carry and hide in the whole.
    ///
    /// # Errors
    /// As [`collapse`].
    ///
    /// # Cost
    /// A pass over the pinned rows of a raw graph, or over the edges of the circuit.
    pub fn new(
        opened: &OpenedGraph,
        chosen: Option<&[NodeIndex]>,
        groups: &[Supernode],
        summary: Summary,
    ) -> Result<Report> {
        let subgraph = chosen.map(|nodes| {
            let scores = scores_of(opened, nodes);
            let circuit = &opened.circuit;
            let mut is_in = vec![false; circuit.graph().node_count()];
            nodes.iter().for_each(|node| is_in[node.index()] = true);
            let part = carried(circuit, |node| is_in[node.index()]);
            let inner: Vec<NodeIndex> =
                nodes.iter().copied().filter(|&node| circuit.node(node).id.layer().is_some()).collect();
            SubgraphReport {
                n_nodes: nodes.len(),
                n_nodes_of_whole: circuit.graph().node_count(),
                carried_by_tokens: part.by_tokens,
                carried_by_errors: part.by_errors,
                whole_by_tokens: carried(circuit, |_| true).by_tokens,
                passes_through: share_through(circuit, &inner),
                n_pinned_features: n_features(circuit, nodes),
                replacement: scores.replacement,
                completeness: scores.completeness,
                over_all_edges: opened.raw.is_some(),
                ids: nodes.iter().map(|&node| id(circuit, node)).collect(),
            }
        });
        let grouping = if groups.is_empty() {
            None
        } else {
            let circuit = &opened.circuit;
            let report = |group: &Supernode| GroupReport {
                name: group.name.clone(),
                share: share_through(circuit, &group.members),
                members: group.members.iter().map(|&member| id(circuit, member)).collect(),
            };
            let mut supernodes: Vec<GroupReport> = groups.iter().map(report).collect();
            supernodes.sort_by(|a, b| b.share.total_cmp(&a.share));
            Some(Grouping {
                supernodes,
                before: ScoresReport::new(circuit_scores(circuit)),
                collapsed: ScoresReport::new(collapse(circuit, groups)?.scores(circuit)),
            })
        };
        Ok(Report { summary, subgraph, grouping })
    }
}

fn id(circuit: &Circuit, node: NodeIndex) -> String {
    node_id_text(circuit.meta.n_layers, circuit.node(node))
}

/// The part of the targets' weight that passes through at least one of `nodes`.
fn share_through(circuit: &Circuit, nodes: &[NodeIndex]) -> f64 {
    let whole = circuit.whole_weight();
    if whole > 0.0 { circuit.influence_through(nodes) / whole } else { 0.0 }
}

pub(super) fn n_features(circuit: &Circuit, nodes: &[NodeIndex]) -> usize {
    nodes.iter().filter(|&&node| circuit.node(node).id.kind() == NodeKind::Feature).count()
}

/// The scores of the subgraph of `nodes`: over all edges of a raw graph, else over those of the circuit.
pub(super) fn scores_of(opened: &OpenedGraph, nodes: &[NodeIndex]) -> Scores {
    let mut is_pinned = vec![false; opened.circuit.graph().node_count()];
    nodes.iter().for_each(|node| is_pinned[node.index()] = true);
    let Some(raw) = &opened.raw else {
        return pinned_scores(&opened.circuit, |node| is_pinned[node.index()]);
    };
    let mut pinned = vec![false; raw.layout().n_features()];
    for &node in nodes {
        let index = raw.layout().index(opened.circuit.node(node).id);
        if let Some(pinned) = index.and_then(|index| pinned.get_mut(index)) {
            *pinned = true;
        }
    }
    subgraph_scores(&raw.edge_rows, raw.layout(), &raw.target_probabilities, &pinned)
}
