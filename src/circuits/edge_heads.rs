//! Heads of edges where several nodes are shown as one.

use std::collections::HashMap;

use crate::graph::{Circuit, EdgeHeads};

use super::CollapsedCircuit;

/// Through which heads the edges between groups of nodes go: `group_of` has the group of every node of the circuit that
/// is in one. By the groups of source and target; empty where nothing is known of heads.
///
/// # Cost
/// Linear in edges.
pub fn heads_between(circuit: &Circuit, group_of: &[Option<usize>]) -> HashMap<(usize, usize), EdgeHeads> {
    let mut found: HashMap<(usize, usize), EdgeHeads> = HashMap::new();
    if circuit.heads().is_none() {
        return found;
    }
    for edge in circuit.graph().raw_edges() {
        let (source, target) = (edge.source(), edge.target());
        let (Some(from), Some(to)) = (group_of[source.index()], group_of[target.index()]) else { continue };
        let Some(heads) = circuit.edge_heads(source, target).filter(|_| from != to) else { continue };
        match found.get_mut(&(from, to)) {
            Some(sum) => sum.add(heads),
            None => {
                found.insert((from, to), heads.clone());
            }
        }
    }
    found
}

/// As [`heads_between`], of the nodes of a collapsed circuit.
///
/// # Cost
/// As [`heads_between`].
pub fn collapsed_heads(circuit: &Circuit, collapsed: &CollapsedCircuit) -> HashMap<(usize, usize), EdgeHeads> {
    let mut group_of = vec![None; circuit.graph().node_count()];
    for (at, node) in collapsed.nodes.iter().enumerate() {
        node.members.iter().for_each(|member| group_of[member.index()] = Some(at));
    }
    heads_between(circuit, &group_of)
}
