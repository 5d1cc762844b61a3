//! Parts of a circuit, as sets of nodes.

use std::ops::RangeInclusive;

use petgraph::Direction;
use petgraph::graph::NodeIndex;
use petgraph::visit::EdgeRef;

use crate::graph::{Circuit, NodeKind, propagate};
use crate::{Error, Result};

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

    /// # Errors
    /// Layers or positions that begin past the last one.
    pub(crate) fn check(&self, circuit: &Circuit) -> Result<()> {
        let (n_layers, n_pos) = (circuit.meta.n_layers, circuit.meta.prompt_tokens.len());
        let begin = |range: &Option<RangeInclusive<u32>>| range.as_ref().map_or(0, |range| *range.start() as usize);
        let (layer, pos) = (begin(&self.layers), begin(&self.positions));
        // Files of other programs need not say how many there are.
        if n_layers > 0 && layer >= n_layers {
            return Err(Error::NoSuchLayer { layer, n_layers });
        }
        if n_pos > 0 && pos >= n_pos {
            return Err(Error::NoSuchPosition { pos, n_pos });
        }
        Ok(())
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

/// The fewest strongest features such that the paths from tokens to targets that stay within them carry at least `share` of
/// what all such paths of the circuit carry; ascending, with the targets and the tokens that feed them. Errors explain
/// nothing and are not among them: what they give to the part says [`carried`].
///
/// Features enter in order of their influence within the circuit; how much a number of them carries is computed exactly
/// (one sweep) and grows with the number, so that a binary search finds the smallest.
///
/// # Cost
/// O(edges · log nodes).
pub fn carrying_paths(circuit: &Circuit, share: f64) -> Vec<NodeIndex> {
    let graph = circuit.graph();
    let influence = circuit.node_influence();
    let kind = |node: NodeIndex| circuit.node(node).id.kind();
    let mut ranked: Vec<NodeIndex> = graph.node_indices().filter(|&n| kind(n) == NodeKind::Feature).collect();
    ranked.sort_by(|a, b| influence[b.index()].total_cmp(&influence[a.index()]).then(a.cmp(b)));
    let mut rank = vec![0usize; graph.node_count()];
    ranked.iter().enumerate().for_each(|(at, node)| rank[node.index()] = at + 1);
    let is_in = |node: NodeIndex, count: usize| kind(node) != NodeKind::Error && rank[node.index()] <= count;
    let by_tokens = |count: usize| carried(circuit, |node| is_in(node, count)).by_tokens;
    let wanted = share * by_tokens(ranked.len());
    let (mut low, mut high) = (0, ranked.len());
    while low < high {
        let middle = (low + high) / 2;
        if by_tokens(middle) >= wanted {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    // A token that no path within the set uses is no part of it.
    let feeds = |node: NodeIndex| graph.edges_directed(node, Direction::Outgoing).any(|edge| is_in(edge.target(), low));
    let wanted = |node: &NodeIndex| is_in(*node, low) && (!kind(*node).is_beginning() || feeds(*node));
    graph.node_indices().filter(wanted).collect()
}

/// What a part of a circuit carries, as parts of the weight of all targets of the whole: each 0..=1.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Carried {
    /// On paths from the part's tokens and contexts to its targets that stay within it.
    pub by_tokens: f64,
    /// What errors feed into those of its features and targets that are on such paths, whether the errors are part of it or
    /// not.
    pub by_errors: f64,
}

/// What the paths within a set carry to its targets.
///
/// # Cost
/// Linear in nodes and edges.
pub fn carried(circuit: &Circuit, is_in: impl Fn(NodeIndex) -> bool) -> Carried {
    let graph = circuit.graph();
    let mut influence = circuit.target_weights();
    let whole = circuit.whole_weight();
    let mut carried = Carried::default();
    let kind = |node: NodeIndex| circuit.node(node).id.kind();
    let rows = circuit.rows_downwards().filter(|&(_, node)| is_in(node) || kind(node) == NodeKind::Error);
    propagate(&mut influence, rows, |node, passed, influence| {
        if passed == 0.0 {
            return;
        }
        match kind(node) {
            NodeKind::Token | NodeKind::Context => carried.by_tokens += passed,
            NodeKind::Error => carried.by_errors += passed,
            NodeKind::Feature | NodeKind::Target => {}
        }
        for edge in graph.edges_directed(node, Direction::Incoming) {
            influence[edge.source().index()] += passed * edge.weight().share;
        }
    });
    let share = |value: f64| if whole > 0.0 { value / whole } else { 0.0 };
    Carried { by_tokens: share(carried.by_tokens), by_errors: share(carried.by_errors) }
}
