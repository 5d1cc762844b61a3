//! Pruning of a graph that is there as links, not as edge rows: one that was pruned before.

use super::PruneSettings;
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
        *stays |= is_fixed(node);
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
    let stays = |node: &Node| is_fixed(node) || node.influence.is_none_or(|share| share <= largest);
    nodes.iter().map(stays).collect()
}

/// As [`nodes_within`], and no more than `settings.max_nodes`: those of most influence, of equal ones the first; tokens,
/// targets and nodes without a share always stay. Also returns how many were left out for their number.
///
/// # Cost
/// Two sorts of the nodes.
pub fn strongest_within(nodes: &[Node], settings: &PruneSettings) -> (Vec<bool>, usize) {
    let mut stays = nodes_within(nodes, settings.node_threshold);
    let Some(most) = settings.max_nodes else { return (stays, 0) };
    let share = |node: usize| nodes[node].influence.filter(|_| !is_fixed(&nodes[node]));
    let kept = (0..nodes.len()).filter(|&node| stays[node]);
    let (mut ranked, fixed): (Vec<usize>, Vec<usize>) = kept.partition(|&node| share(node).is_some());
    // The share adds up along the ranks: least is first.
    ranked.sort_by(|&a, &b| share(a).unwrap_or(1.0).total_cmp(&share(b).unwrap_or(1.0)).then(a.cmp(&b)));
    let left_out = ranked.get(most.saturating_sub(fixed.len())..).unwrap_or_default();
    left_out.iter().for_each(|&node| stays[node] = false);
    let n_left_out = left_out.len();
    (stays, n_left_out)
}

/// Tokens and targets stay whatever they carry.
fn is_fixed(node: &Node) -> bool {
    matches!(node.id.kind(), NodeKind::Token | NodeKind::Target)
}
