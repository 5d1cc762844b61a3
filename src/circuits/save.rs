//! A graph as JSON, with what was chosen and grouped stored where the field's viewers read it.

use std::collections::HashSet;
use std::path::Path;

use petgraph::graph::NodeIndex;
use serde_json::{Value, json};

use super::report::{n_features, scores_of};
use super::{OpenedGraph, Supernode};
use crate::Result;
use crate::export::{StreamedGraph, WireGraph, write_wire};
use crate::graph::{Circuit, NodeId};
use crate::prune::PruneSettings;

/// Writes the whole graph as JSON, `chosen` pinned with the scores of what is pinned, `groups` stored; what else the file
/// held stays.
///
/// # Errors
/// The file cannot be written.
pub fn save(opened: &OpenedGraph, chosen: Option<&[NodeIndex]>, groups: &[Supernode], path: &Path) -> Result<()> {
    let slug = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let mut wire = match &opened.json {
        Some(json) => with_labels(json.to_wire(), &opened.circuit),
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

/// The labels of features as they are in the circuit of the file's nodes.
fn with_labels(mut wire: WireGraph, circuit: &Circuit) -> WireGraph {
    for (wire, node) in wire.nodes.iter_mut().zip(circuit.graph().node_weights()) {
        if let NodeId::Feature { .. } = node.id {
            wire.clerp = node.label.clone().unwrap_or_default();
        }
    }
    wire
}

/// Writes a JSON graph that was pruned with `settings` while it was opened, with the labels of its `circuit`; `slug`
/// renames it.
///
/// # Errors
/// The file cannot be written.
pub fn save_pruned_json(
    graph: &StreamedGraph,
    settings: &PruneSettings,
    slug: Option<&str>,
    circuit: &Circuit,
    path: &Path,
) -> Result<()> {
    let mut wire = with_labels(graph.to_wire(), circuit);
    if let Some(slug) = slug {
        slug.clone_into(&mut wire.metadata.slug);
    }
    wire.set_thresholds(settings.node_threshold, settings.edge_threshold);
    write_wire(&wire, path)
}
