//! What `inspect` says about a part of a graph and its supernodes, beside the summary.

use std::collections::HashSet;
use std::fmt::Write;
use std::path::Path;

use petgraph::graph::NodeIndex;
use serde::Serialize;
use serde_json::{Value, json};

use crate::Result;
use crate::circuits::{Supernode, circuit_scores, pinned_scores, view};
use crate::export::{Summary, WireGraph, node_id_text, write_wire};
use crate::graph::{Circuit, NodeId, Scores, subgraph_scores};
use crate::text::terminal;

use super::super::graph_file::OpenedGraph;
use super::super::json_text;

/// All that is said.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    #[serde(flatten)]
    pub(super) summary: Summary,
    #[serde(skip_serializing_if = "Option::is_none")]
    subgraph: Option<SubgraphReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grouping: Option<Grouping>,
}

/// How much a chosen part explains (definitions 8).
#[derive(Debug, Serialize)]
struct SubgraphReport {
    n_pinned_features: usize,
    replacement: f64,
    completeness: f64,
    /// Whether the scores are over all edges of a raw graph, or over those that pruning has left.
    over_all_edges: bool,
    ids: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Grouping {
    supernodes: Vec<GroupReport>,
    /// Scores of the circuit's own edges, and of the collapsed ones.
    before: ScoresReport,
    collapsed: ScoresReport,
}

#[derive(Debug, Serialize)]
struct ScoresReport {
    replacement: f64,
    completeness: f64,
}

impl ScoresReport {
    fn new(scores: Scores) -> ScoresReport {
        ScoresReport { replacement: scores.replacement, completeness: scores.completeness }
    }
}

#[derive(Debug, Serialize)]
struct GroupReport {
    name: String,
    /// Part of the targets' weight that passes through the members.
    share: f64,
    members: Vec<String>,
}

impl Report {
    pub(super) fn new(
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
            let collapsed = view(shown, groups)?;
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

    pub(super) fn json(&self) -> Result<String> {
        json_text(self)
    }

    /// What follows the summary.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        if let Some(subgraph) = &self.subgraph {
            let over = if subgraph.over_all_edges { "all edges" } else { "the edges that pruning has left" };
            let _ = writeln!(
                text,
                "\nsubgraph    {} features pinned; replacement {:.3}  completeness {:.3} over {over}",
                subgraph.n_pinned_features, subgraph.replacement, subgraph.completeness
            );
        }
        if let Some(grouping) = &self.grouping {
            let _ = writeln!(
                text,
                "\nsupernodes  replacement {:.3} before, {:.3} collapsed; completeness {:.3} before, {:.3} collapsed",
                grouping.before.replacement,
                grouping.collapsed.replacement,
                grouping.before.completeness,
                grouping.collapsed.completeness
            );
            for group in &grouping.supernodes {
                let _ = writeln!(
                    text,
                    "  {:5.1} %  {}  ({}: {})",
                    group.share * 100.0,
                    terminal(&group.name),
                    group.members.len(),
                    group.members.join(", ")
                );
            }
        }
        text
    }
}

fn id(circuit: &Circuit, node: NodeIndex) -> String {
    node_id_text(circuit.meta.n_layers, circuit.node(node))
}

fn n_features(circuit: &Circuit, nodes: &[NodeIndex]) -> usize {
    nodes.iter().filter(|&&node| matches!(circuit.node(node).id, NodeId::Feature { .. })).count()
}

fn scores_of(opened: &OpenedGraph, nodes: &[NodeIndex]) -> Scores {
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

/// Writes the whole graph as JSON, `chosen` pinned with the scores of what is pinned, `groups` stored; what else the file
/// held stays.
///
/// # Errors
/// The file cannot be written.
pub(super) fn save(
    opened: &OpenedGraph,
    chosen: Option<&[NodeIndex]>,
    groups: &[Supernode],
    path: &Path,
) -> Result<()> {
    let slug = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let mut wire = match &opened.json {
        Some(json) => json.to_wire(),
        None => WireGraph::new(&opened.circuit, &slug)?,
    };
    // Node i of the file is node i of the circuit; its id may be of another program's form.
    let ids = |nodes: &[NodeIndex]| -> Vec<Value> {
        nodes.iter().map(|node| json!(wire.nodes[node.index()].node_id)).collect()
    };
    // Viewers draw supernodes of pinned nodes only.
    let pinned = chosen.map(|chosen| {
        let mut pinned = chosen.to_vec();
        let mut is_pinned: HashSet<NodeIndex> = chosen.iter().copied().collect();
        pinned.extend(groups.iter().flat_map(|group| &group.members).filter(|member| is_pinned.insert(**member)));
        pinned
    });
    let supernodes: Vec<Value> =
        groups.iter().map(|group| Value::Array([vec![json!(group.name)], ids(&group.members)].concat())).collect();
    let pinned_ids = pinned.as_deref().map(ids);
    if let (Some(pinned), Some(pinned_ids)) = (pinned, pinned_ids) {
        wire.q_params.insert("pinnedIds".to_owned(), Value::Array(pinned_ids));
        let scores = scores_of(opened, &pinned);
        wire.set_subgraph_scores(json!({
            "replacement_score": scores.replacement,
            "completeness_score": scores.completeness,
            "n_pinned_features": n_features(&opened.circuit, &pinned),
            "over_all_edges": opened.raw.is_some(),
        }));
    }
    wire.q_params.insert("supernodes".to_owned(), Value::Array(supernodes));
    write_wire(&wire, path)
}
