//! Rows that are not finite: found by the sums that are taken of them anyway, named by the edge where that began.

use super::targets::Target;
use crate::error::{Error, Result};
use crate::graph::{AttributionGraph, NodeId, NodeLayout};
use crate::replacement::ActiveFeatures;

/// Checks what was computed for each row beside its edges: `values` of the kind `what`, one a row, features first.
///
/// # Errors
/// [`Error::ComputedNotFinite`] with the feature or target.
pub(super) fn check_row_values(
    what: &str,
    values: &[f32],
    features: &ActiveFeatures,
    selected: &[usize],
    targets: &[Target],
) -> Result<()> {
    let Some(row) = values.iter().position(|value| !value.is_finite()) else { return Ok(()) };
    let of = match selected.get(row).map(|&index| &features.all[index]) {
        Some(f) => format!("feature {}_{}_{}", f.layer, f.feature, f.pos),
        None => format!("target {:?}", targets.get(row - selected.len()).map_or("", |target| &target.label)),
    };
    Err(Error::ComputedNotFinite { quantity: format!("the {what} of {of}"), value: values[row] })
}

/// Names the first edge of a graph that is not finite: rows are those of the lowest layer first, and in a row the source
/// of the highest layer comes first in the pull-back.
///
/// # Errors
/// [`Error::ComputedNotFinite`], unless all are finite.
pub(super) fn check_edges(graph: &AttributionGraph) -> Result<()> {
    let layout = graph.layout();
    let depth = |source: usize| match layout.node(source) {
        Some(NodeId::Feature { layer, .. } | NodeId::Error { layer, .. }) => layer + 1,
        Some(NodeId::Token { .. } | NodeId::Context { .. } | NodeId::Target { .. }) | None => 0,
    };
    for row in 0..layout.n_rows() {
        let effects = graph.row(row);
        let bad = layout.source_ranges(row).flatten().filter(|&source| !effects[source].is_finite());
        if let Some(source) = bad.max_by_key(|&source| depth(source)) {
            let (from, to) =
                (name(layout.node(source)), name(layout.node_of_row(row).and_then(|node| layout.node(node))));
            return Err(Error::ComputedNotFinite {
                quantity: format!("the edge from {from} to {to}"),
                value: effects[source],
            });
        }
    }
    Ok(())
}

/// Checks the influence of nodes, where rows were summed that the graph does not keep.
///
/// # Errors
/// [`Error::ComputedNotFinite`] with the first node.
pub(super) fn check_influence(layout: &NodeLayout, influence: &[f64]) -> Result<()> {
    match influence.iter().position(|value| !value.is_finite()) {
        Some(node) => Err(Error::ComputedNotFinite {
            quantity: format!("the influence of {}", name(layout.node(node))),
            value: influence[node] as f32,
        }),
        None => Ok(()),
    }
}

fn name(node: Option<NodeId>) -> String {
    match node {
        Some(NodeId::Feature { layer, pos, feature }) => format!("feature {layer}_{feature}_{pos}"),
        Some(NodeId::Error { layer, pos }) => format!("the error of layer {layer} at position {pos}"),
        Some(NodeId::Token { pos }) => format!("the token at position {pos}"),
        Some(NodeId::Context { pos }) => format!("the context at position {pos}"),
        Some(NodeId::Target { index }) => format!("target {index}"),
        None => "no node".into(),
    }
}
