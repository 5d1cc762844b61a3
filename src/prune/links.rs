//! Pruning of a graph that is there as links, not as edge rows: one that was pruned before.

use super::dead_ends::on_paths;
use super::threshold::{largest_kept_share, smallest_kept};
use crate::graph::influence::ROW_SUM_CLAMP;
use crate::graph::{CompactLink, Node, NodeKind, propagate};
use crate::{Error, Result};

/// Keeps of `links` those whose scores make up the share `threshold`, then drops what leads nowhere (definitions 7.2 to
/// 7.4, over the links that there are). Returns which nodes stay.
///
/// Targets without a probability weigh 1. Links must lead upwards ([`NodeId::height`](crate::graph::NodeId::height)) between nodes that exist.
///
/// # Errors
/// A threshold outside 0..=1.
///
/// # Cost
/// Sorts the links in place; 8 bytes more for every link.
pub fn prune_links(nodes: &[Node], links: &mut Vec<CompactLink>, threshold: f64) -> Result<Vec<bool>> {
    if !(0.0..=1.0).contains(&threshold) {
        return Err(Error::Threshold { name: "edge_threshold", value: threshold });
    }
    // Targets first, then downwards: whatever a node passes on is complete when its links are met.
    let height = |link: &CompactLink| nodes[link.target as usize].id.height();
    links.sort_unstable_by_key(|link| (std::cmp::Reverse(height(link)), link.target, link.source));
    let mut influence: Vec<f64> = nodes
        .iter()
        .map(|node| match node.id.kind() {
            NodeKind::Target => node.probability.map_or(1.0, f64::from),
            _ => 0.0,
        })
        .collect();
    let mut scores: Vec<f64> = Vec::with_capacity(links.len());
    let rows = links.chunk_by(|a, b| a.target == b.target).map(|inputs| (inputs[0].target as usize, inputs));
    propagate(&mut influence, rows, |inputs, passed, influence| {
        let sum: f64 = inputs.iter().map(|link| f64::from(link.weight.abs())).sum();
        let scale = passed / sum.max(ROW_SUM_CLAMP);
        for link in inputs {
            let score = scale * f64::from(link.weight.abs());
            influence[link.source as usize] += score;
            scores.push(score);
        }
    });
    let smallest = smallest_kept(&scores, threshold);
    let mut score = scores.into_iter();
    links.retain(|_| score.next().is_some_and(|score| score > 0.0 && score >= smallest));

    let upwards = links.iter().rev().map(|link| (link.source as usize, link.target as usize));
    let mut stays = on_paths(nodes.len(), |node| nodes[node].id.kind(), upwards);
    for (stays, node) in stays.iter_mut().zip(nodes) {
        *stays |= matches!(node.id.kind(), NodeKind::Token | NodeKind::Target);
    }
    links.retain(|link| stays[link.source as usize] && stays[link.target as usize]);
    Ok(stays)
}

/// Which nodes of a circuit carry the share `threshold` of the influence (definitions 7.1), by the cumulative shares that
/// its file holds (definitions 7.5). Tokens, targets and nodes without a share always stay. `[n_nodes]`
///
/// As in a raw graph everything stays whose score is at least that of the node that reaches the threshold: a node's score
/// is the step that its share makes. Where pruning has dropped the node before it, the step is larger than the score, so
/// that such a node counts as equal to no other.
///
/// # Cost
/// A sort of the nodes.
pub fn nodes_within(nodes: &[Node], threshold: f64) -> Vec<bool> {
    let mut shares: Vec<f64> = nodes.iter().filter_map(|node| node.influence).collect();
    shares.sort_unstable_by(f64::total_cmp);
    let largest = largest_kept_share(&shares, threshold);
    let stays = |node: &Node| {
        matches!(node.id.kind(), NodeKind::Token | NodeKind::Target)
            || node.influence.is_none_or(|share| share <= largest)
    };
    nodes.iter().map(stays).collect()
}
