//! How much of the whole a part of a circuit explains (definitions 8).

use std::collections::BTreeMap;

use petgraph::Direction;
use petgraph::graph::NodeIndex;
use petgraph::visit::EdgeRef;

use crate::graph::influence::ROW_SUM_CLAMP;
use crate::graph::{Circuit, NodeId, Scores, propagate};

/// The scores of the circuit as it is: definitions 8 with the circuit's own edges.
///
/// # Cost
/// Linear in nodes and edges.
pub fn circuit_scores(circuit: &Circuit) -> Scores {
    pinned_scores(circuit, |_| true)
}

/// The scores of the subgraph in which only the features that `pinned` names remain.
///
/// Every other feature's outgoing edges are added to the error node of its layer and position, its incoming ones dropped;
/// tokens, errors and targets stay. (On a raw graph, [`crate::graph::subgraph_scores`] does the same with all edges.)
///
/// # Cost
/// O(edges · log positions and layers) time, memory for the merged errors of one node.
pub fn pinned_scores(circuit: &Circuit, pinned: impl Fn(NodeIndex) -> bool) -> Scores {
    let graph = circuit.graph();
    let mut influence = circuit.target_weights();
    let (mut from_tokens, mut from_errors, mut explained, mut total) = (0.0, 0.0, 0.0, 0.0);
    propagate(&mut influence, circuit.rows_downwards(), |node, passed, influence| {
        let is_row = match circuit.node(node).id {
            NodeId::Token { .. } => {
                from_tokens += passed;
                false
            }
            NodeId::Context { .. } => false,
            // Summed where they are met, merged with the features that are left out.
            NodeId::Error { .. } => return,
            NodeId::Feature { .. } => pinned(node),
            NodeId::Target { .. } => true,
        };
        total += passed;
        if !is_row {
            explained += passed;
            return;
        }
        let mut errors: BTreeMap<(u32, u32), f64> = BTreeMap::new();
        let mut kept_sum = 0.0;
        for edge in graph.edges_directed(node, Direction::Incoming) {
            let (source, weight) = (circuit.node(edge.source()), f64::from(edge.weight().weight));
            match source.id {
                NodeId::Error { layer, pos } => *errors.entry((layer, pos)).or_default() += weight,
                NodeId::Feature { layer, pos, .. } if !pinned(edge.source()) => {
                    *errors.entry((layer, pos)).or_default() += weight;
                }
                _ => kept_sum += weight.abs(),
            }
        }
        let error_sum: f64 = errors.values().map(|weight| weight.abs()).sum();
        let sum = (kept_sum + error_sum).max(ROW_SUM_CLAMP);
        for edge in graph.edges_directed(node, Direction::Incoming) {
            let is_kept = match circuit.node(edge.source()).id {
                NodeId::Error { .. } => false,
                NodeId::Feature { .. } => pinned(edge.source()),
                _ => true,
            };
            if is_kept {
                influence[edge.source().index()] += passed * f64::from(edge.weight().weight).abs() / sum;
            }
        }
        from_errors += passed * error_sum / sum;
        explained += passed * (1.0 - error_sum / sum);
    });
    // Error nodes have empty rows, which count as explained.
    explained += from_errors;
    total += from_errors;
    let ratio = |part: f64, whole: f64, otherwise: f64| if whole > 0.0 { part / whole } else { otherwise };
    Scores {
        replacement: ratio(from_tokens, from_tokens + from_errors, 0.0),
        completeness: ratio(explained, total, 1.0),
    }
}
