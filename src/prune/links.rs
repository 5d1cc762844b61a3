//! Pruning of a graph that is there as links, not as edge rows: one that was pruned before.

use crate::graph::influence::ROW_SUM_CLAMP;
use crate::graph::{CompactLink, Node, NodeId};
use crate::{Error, Result};

/// Keeps of `links` those whose scores make up the share `threshold`, then drops what leads nowhere (definitions 7.2 to
/// 7.4, over the links that there are). Returns which nodes stay.
///
/// Targets without a probability weigh 1. Links must lead upwards ([`NodeId::height`]) between nodes that exist.
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
        .map(|node| match node.id {
            NodeId::Target { .. } => node.probability.map_or(1.0, f64::from),
            _ => 0.0,
        })
        .collect();
    let mut scores: Vec<f64> = Vec::with_capacity(links.len());
    for inputs in links.chunk_by(|a, b| a.target == b.target) {
        let sum: f64 = inputs.iter().map(|link| f64::from(link.weight.abs())).sum();
        let scale = influence[inputs[0].target as usize] / sum.max(ROW_SUM_CLAMP);
        for link in inputs {
            let score = scale * f64::from(link.weight.abs());
            influence[link.source as usize] += score;
            scores.push(score);
        }
    }
    let smallest = smallest_kept(&scores, threshold);
    let mut score = scores.into_iter();
    links.retain(|_| score.next().is_some_and(|score| score > 0.0 && score >= smallest));

    // What leads to a target through features that are fed, as for raw graphs.
    let is_feature = |at: u32| matches!(nodes[at as usize].id, NodeId::Feature { .. });
    let mut is_fed: Vec<bool> = (0..nodes.len() as u32).map(|at| !is_feature(at)).collect();
    for link in links.iter().rev() {
        if is_fed[link.source as usize] {
            is_fed[link.target as usize] = true;
        }
    }
    let mut stays: Vec<bool> = nodes.iter().map(|node| matches!(node.id, NodeId::Target { .. })).collect();
    for link in links.iter() {
        if stays[link.target as usize] && is_fed[link.source as usize] {
            stays[link.source as usize] = true;
        }
    }
    for (stays, node) in stays.iter_mut().zip(nodes) {
        *stays |= matches!(node.id, NodeId::Token { .. });
    }
    links.retain(|link| stays[link.source as usize] && stays[link.target as usize]);
    Ok(stays)
}

/// The smallest of the largest scores that make up the share `threshold` of all.
fn smallest_kept(scores: &[f64], threshold: f64) -> f64 {
    let mut sorted: Vec<f64> = scores.to_vec();
    sorted.sort_unstable_by(|a, b| b.total_cmp(a));
    let total: f64 = sorted.iter().sum();
    let mut sum = 0.0;
    for &score in &sorted {
        sum += score;
        if sum >= threshold * total {
            return score;
        }
    }
    0.0
}
