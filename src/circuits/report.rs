//! A part of a graph and its supernodes in figures: how much they explain, beside the summary.

use petgraph::graph::NodeIndex;
use serde::Serialize;

use super::{OpenedGraph, Summary, Supernode, circuit_scores, collapse, pinned_scores};
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
    /// Features of the part.
    pub n_pinned_features: usize,
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
    /// Part of the targets' weight that passes through the members.
    pub share: f64,
    /// Ids of its nodes.
    pub members: Vec<String>,
}

impl Report {
    /// Adds to the summary of `shown` (all of `opened`, or the `chosen` part of it) what the part explains of the whole and
    /// how much the supernodes, nodes of `shown`, carry and hide.
    ///
    /// # Errors
    /// As [`collapse`].
    ///
    /// # Cost
    /// A pass over the pinned rows of a raw graph, or over the edges of the circuit.
    pub fn new(
        opened: &OpenedGraph,
        shown: &Circuit,
        chosen: Option<&[NodeIndex]>,
        groups: &[Supernode],
        summary: Summary,
    ) -> Result<Report> {
        let subgraph = chosen.map(|nodes| {
            let scores = scores_of(opened, nodes);
            let circuit = &opened.circuit;
            SubgraphReport {
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
            let collapsed = collapse(shown, groups)?;
            let influence = shown.node_influence();
            let total: f64 = shown.targets().iter().map(|target| influence[target.index()]).sum();
            let report = |group: &Supernode| {
                let sum: f64 = group.members.iter().map(|member| influence[member.index()]).sum();
                GroupReport {
                    name: group.name.clone(),
                    share: if total > 0.0 { sum / total } else { 0.0 },
                    members: group.members.iter().map(|&member| id(shown, member)).collect(),
                }
            };
            let mut supernodes: Vec<GroupReport> = groups.iter().map(report).collect();
            supernodes.sort_by(|a, b| b.share.total_cmp(&a.share));
            Some(Grouping {
                supernodes,
                before: ScoresReport::new(circuit_scores(shown)),
                collapsed: ScoresReport::new(collapsed.scores(shown)),
            })
        };
        Ok(Report { summary, subgraph, grouping })
    }
}

fn id(circuit: &Circuit, node: NodeIndex) -> String {
    node_id_text(circuit.meta.n_layers, circuit.node(node))
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
