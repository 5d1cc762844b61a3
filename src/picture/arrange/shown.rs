//! Which nodes and edges a picture has: the strongest.

use std::collections::BTreeMap;

use super::cells::{Row, cell_of};
use super::{DrawnEdge, PictureSettings};
use crate::circuits::{CollapsedCircuit, CollapsedNode};
use crate::graph::Circuit;

/// The nodes to show, in their order, and how many are not.
pub(super) fn nodes(circuit: &Circuit, collapsed: &CollapsedCircuit, max_nodes: usize) -> (Vec<usize>, usize) {
    let is_fixed = |node: &CollapsedNode| matches!(cell_of(circuit, node).0, Row::Tokens | Row::Targets);
    let (fixed, mut ranked): (Vec<usize>, Vec<usize>) =
        (0..collapsed.nodes.len()).partition(|&at| is_fixed(&collapsed.nodes[at]));
    ranked.sort_by(|&a, &b| collapsed.nodes[b].influence.total_cmp(&collapsed.nodes[a].influence).then(a.cmp(&b)));
    let n_hidden = ranked.len().saturating_sub(max_nodes);
    ranked.truncate(max_nodes);
    ranked.extend(fixed);
    ranked.sort_unstable();
    (ranked, n_hidden)
}

/// For every shown node the strongest shown inputs that make up `edge_share` of the shown ones, `max_inputs` at most, and
/// its strongest shown output, so that nothing seems to lead nowhere; weakest first. And how many are left out.
pub(super) fn edges(
    collapsed: &CollapsedCircuit,
    shown: &[usize],
    settings: &PictureSettings,
) -> (Vec<DrawnEdge>, usize) {
    let mut drawn = vec![usize::MAX; collapsed.nodes.len()];
    shown.iter().enumerate().for_each(|(at, &node)| drawn[node] = at);
    let mut by_target: BTreeMap<usize, Vec<DrawnEdge>> = BTreeMap::new();
    for edge in &collapsed.edges {
        let (source, target) = (drawn[edge.source], drawn[edge.target]);
        if source != usize::MAX && target != usize::MAX && edge.weight != 0.0 {
            let edge = DrawnEdge { source, target, weight: edge.weight, share: edge.share, way: Vec::new() };
            by_target.entry(target).or_default().push(edge);
        }
    }
    // Share and target of every node's strongest output.
    let mut strongest_output: BTreeMap<usize, (f64, usize)> = BTreeMap::new();
    for edge in by_target.values().flatten() {
        let strongest = strongest_output.entry(edge.source).or_insert((edge.share, edge.target));
        if edge.share > strongest.0 {
            *strongest = (edge.share, edge.target);
        }
    }
    let mut edges = Vec::new();
    let mut n_hidden = 0;
    for mut inputs in by_target.into_values() {
        inputs.sort_by(|a, b| b.share.total_cmp(&a.share).then(a.source.cmp(&b.source)));
        let wanted = settings.edge_share * inputs.iter().map(|edge| edge.share).sum::<f64>();
        let mut sum = 0.0;
        for (rank, edge) in inputs.into_iter().enumerate() {
            let is_strongest = strongest_output[&edge.source].1 == edge.target;
            let is_wanted = sum < wanted && rank < settings.max_inputs;
            sum += edge.share;
            if is_wanted || is_strongest {
                edges.push(edge);
            } else {
                n_hidden += 1;
            }
        }
    }
    edges.sort_by(|a, b| a.weight.abs().total_cmp(&b.weight.abs()));
    (edges, n_hidden)
}
