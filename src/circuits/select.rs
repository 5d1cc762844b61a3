//! Parts of a circuit, as sets of nodes.

use std::ops::RangeInclusive;

use petgraph::Direction;
use petgraph::graph::NodeIndex;
use petgraph::visit::EdgeRef;

use crate::graph::{Circuit, NodeKind, propagate};

/// A region of a circuit. The default is everything.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Selection {
    /// Features and errors of these layers; tokens and targets are not restricted by it.
    pub layers: Option<RangeInclusive<u32>>,
    /// Nodes at these positions; targets are not restricted by it.
    pub positions: Option<RangeInclusive<u32>>,
    /// Features and errors must be of one of these kinds; empty: any. Naming tokens or targets drops the other of them.
    pub kinds: Vec<NodeKind>,
}

impl Selection {
    /// Whether it chooses every node.
    pub(crate) fn is_everything(&self) -> bool {
        *self == Selection::default()
    }

    /// The nodes of `circuit` in this region, ascending.
    ///
    /// # Cost
    /// Linear in nodes.
    pub fn nodes(&self, circuit: &Circuit) -> Vec<NodeIndex> {
        let within =
            |range: &Option<RangeInclusive<u32>>, value: u32| range.as_ref().is_none_or(|r| r.contains(&value));
        let is_in = |index: &NodeIndex| {
            let node = circuit.node(*index);
            let kind = node.id.kind();
            let layer_fits = node.id.layer().is_none_or(|layer| within(&self.layers, layer));
            let pos_fits = kind == NodeKind::Target || within(&self.positions, node.pos);
            layer_fits && pos_fits && (self.kinds.is_empty() || self.kinds.contains(&kind))
        };
        circuit.graph().node_indices().filter(is_in).collect()
    }
}

/// All nodes at most `hops` edges from `center`, along the edges or against them; ascending.
///
/// # Cost
/// Linear in nodes and edges, times `hops`.
pub fn neighborhood(circuit: &Circuit, center: &[NodeIndex], hops: usize) -> Vec<NodeIndex> {
    let graph = circuit.graph();
    let mut is_in = vec![false; graph.node_count()];
    // Ancestors and descendants apart: a sibling is no neighbour.
    for direction in [Direction::Incoming, Direction::Outgoing] {
        let mut reached = vec![false; graph.node_count()];
        let mut front = center.to_vec();
        center.iter().for_each(|node| reached[node.index()] = true);
        for _ in 0..hops {
            if front.is_empty() {
                break;
            }
            let mut next = Vec::new();
            for &node in &front {
                for neighbor in graph.neighbors_directed(node, direction) {
                    if !std::mem::replace(&mut reached[neighbor.index()], true) {
                        next.push(neighbor);
                    }
                }
            }
            front = next;
        }
        is_in.iter_mut().zip(reached).for_each(|(is_in, reached)| *is_in |= reached);
    }
    graph.node_indices().filter(|node| is_in[node.index()]).collect()
}

/// The smallest set of strongest nodes such that the paths from tokens and errors to targets that stay within it carry at
/// least `share` of what all such paths of the circuit carry; ascending, sources and targets included.
///
/// Nodes enter in order of their influence within the circuit; how much a number of them carries is computed exactly
/// (one sweep) and grows with the number, so that a binary search finds the smallest.
///
/// # Cost
/// O(edges · log nodes).
pub fn carrying_paths(circuit: &Circuit, share: f64) -> Vec<NodeIndex> {
    let graph = circuit.graph();
    let influence = circuit.node_influence();
    let mut ranked: Vec<NodeIndex> = graph.node_indices().filter(|&n| !is_end(circuit, n)).collect();
    ranked.sort_by(|a, b| influence[b.index()].total_cmp(&influence[a.index()]).then(a.cmp(b)));
    let mut rank = vec![0usize; graph.node_count()];
    ranked.iter().enumerate().for_each(|(at, node)| rank[node.index()] = at + 1);
    let carried = |count: usize| carried_by(circuit, |node| rank[node.index()] <= count);
    let wanted = share * carried(ranked.len());
    let (mut low, mut high) = (0, ranked.len());
    while low < high {
        let middle = (low + high) / 2;
        if carried(middle) >= wanted {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    let is_in = |node: &NodeIndex| rank[node.index()] <= low;
    // An end that no path within the set uses is no part of it, a target always is.
    let feeds = |node: &NodeIndex| graph.edges_directed(*node, Direction::Outgoing).any(|edge| is_in(&edge.target()));
    let is_target = |node: &NodeIndex| circuit.node(*node).id.kind() == NodeKind::Target;
    let wanted = |node: &NodeIndex| is_in(node) && (!is_end(circuit, *node) || is_target(node) || feeds(node));
    graph.node_indices().filter(wanted).collect()
}

/// Where paths begin or end.
fn is_end(circuit: &Circuit, node: NodeIndex) -> bool {
    circuit.node(node).id.kind() != NodeKind::Feature
}

/// What the paths within a set carry from tokens and errors to the targets, in the targets' weight.
fn carried_by(circuit: &Circuit, is_in: impl Fn(NodeIndex) -> bool) -> f64 {
    let graph = circuit.graph();
    let mut influence = circuit.target_weights();
    let mut carried = 0.0;
    let rows = circuit.rows_downwards().filter(|&(_, node)| is_in(node));
    propagate(&mut influence, rows, |node, passed, influence| {
        if passed == 0.0 {
            return;
        }
        if matches!(circuit.node(node).id.kind(), NodeKind::Token | NodeKind::Error) {
            carried += passed;
        }
        for edge in graph.edges_directed(node, Direction::Incoming) {
            influence[edge.source().index()] += passed * edge.weight().share;
        }
    });
    carried
}
