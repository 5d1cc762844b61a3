//! Supernodes, and the circuit collapsed: each of them one node.

use petgraph::graph::NodeIndex;
use petgraph::visit::EdgeRef;

use crate::graph::{Circuit, NodeKind, Scores};
use crate::{Error, Result};

/// Nodes that are shown as one.
#[derive(Debug, Clone, PartialEq)]
pub struct Supernode {
    /// What it is called.
    pub name: String,
    /// Its nodes in the circuit.
    pub members: Vec<NodeIndex>,
}

/// A node of a [`CollapsedCircuit`]: a node of the circuit, or a supernode.
#[derive(Debug, Clone, PartialEq)]
pub struct CollapsedNode {
    /// The supernode's name.
    pub name: Option<String>,
    /// One, for a node of the circuit.
    pub members: Vec<NodeIndex>,
    /// Summed over the members: the part of the targets' weight that passes through them. Paths within a supernode count
    /// once for every member.
    pub influence: f64,
}

/// All edges between two nodes of a [`CollapsedCircuit`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CollapsedEdge {
    /// Index in [`CollapsedCircuit::nodes`] of where the edge starts.
    pub source: usize,
    /// Index of where it leads.
    pub target: usize,
    /// Sum of the edges' weights.
    pub weight: f64,
    /// `|weight|` over the sum of `|weight|` of all edges of the collapsed circuit into the same node.
    pub share: f64,
}

/// A circuit with its supernodes merged: edges between two nodes summed, those within a supernode left out.
#[derive(Debug, Clone, PartialEq)]
pub struct CollapsedCircuit {
    /// Supernodes, and the nodes that are in none.
    pub nodes: Vec<CollapsedNode>,
    /// By target and then source.
    pub edges: Vec<CollapsedEdge>,
}

/// Checks that no node is in two supernodes and that none is empty.
///
/// # Errors
/// Names the supernode.
pub(super) fn check_groups(groups: &[Supernode]) -> Result<()> {
    let mut seen = std::collections::HashMap::new();
    for group in groups {
        if group.members.is_empty() {
            return Err(Error::Supernode { name: group.name.clone(), problem: "has no members".to_owned() });
        }
        for member in &group.members {
            if let Some(other) = seen.insert(member, &group.name) {
                let problem = format!("shares a node with the supernode `{other}`");
                return Err(Error::Supernode { name: group.name.clone(), problem });
            }
        }
    }
    Ok(())
}

/// `circuit` with `groups` merged; nodes in the circuit's order, a supernode at its first member.
///
/// # Errors
/// A node in two supernodes, or a supernode without members; names the supernode.
///
/// # Cost
/// O(nodes + edges · log edges).
pub fn collapse(circuit: &Circuit, groups: &[Supernode]) -> Result<CollapsedCircuit> {
    check_groups(groups)?;
    let graph = circuit.graph();
    let influence = circuit.node_influence();
    let mut group_of = vec![None; graph.node_count()];
    for (at, group) in groups.iter().enumerate() {
        group.members.iter().for_each(|member| group_of[member.index()] = Some(at));
    }
    let mut nodes: Vec<CollapsedNode> = Vec::new();
    let mut place = vec![0usize; graph.node_count()];
    let mut place_of_group = vec![None; groups.len()];
    for index in graph.node_indices() {
        let at = match group_of[index.index()] {
            Some(group) => *place_of_group[group].get_or_insert_with(|| {
                nodes.push(CollapsedNode {
                    name: Some(groups[group].name.clone()),
                    members: Vec::new(),
                    influence: 0.0,
                });
                nodes.len() - 1
            }),
            None => {
                nodes.push(CollapsedNode { name: None, members: Vec::new(), influence: 0.0 });
                nodes.len() - 1
            }
        };
        nodes[at].members.push(index);
        nodes[at].influence += influence[index.index()];
        place[index.index()] = at;
    }
    let mut pairs: Vec<(usize, usize, f64)> = graph
        .edge_references()
        .map(|edge| (place[edge.target().index()], place[edge.source().index()], f64::from(edge.weight().weight)))
        .filter(|(target, source, _)| target != source)
        .collect();
    pairs.sort_by_key(|&(target, source, _)| (target, source));
    let mut edges: Vec<CollapsedEdge> = Vec::new();
    for (target, source, weight) in pairs {
        match edges.last_mut() {
            Some(last) if last.source == source && last.target == target => last.weight += weight,
            _ => edges.push(CollapsedEdge { source, target, weight, share: 0.0 }),
        }
    }
    // Shares are of the whole circuit's inputs, in a part too.
    let mut sums: Vec<f64> = nodes.iter().map(|node| left_out(circuit, node)).collect();
    edges.iter().for_each(|edge| sums[edge.target] += edge.weight.abs());
    for edge in &mut edges {
        edge.share = if sums[edge.target] > 0.0 { edge.weight.abs() / sums[edge.target] } else { 0.0 };
    }
    Ok(CollapsedCircuit { nodes, edges })
}

/// Sum of |weight| of the inputs that the members have in the whole circuit, but not in this part of it.
fn left_out(circuit: &Circuit, node: &CollapsedNode) -> f64 {
    node.members.iter().map(|&member| circuit.inputs_left_out(member)).sum()
}

/// Largest change of a node's influence at which the sweeps through a collapsed circuit with cycles end.
const NEGLIGIBLE: f64 = 1e-12;

/// Sweeps at most: supernodes that feed nothing but each other would take for ever.
const MAX_SWEEPS: usize = 1_000;

impl CollapsedCircuit {
    /// Both scores of the collapsed circuit: definitions 8 with its own edges. What it loses against
    /// [`circuit_scores`](super::circuit_scores) is how much the merging hides.
    ///
    /// A supernode of tokens only counts as a token, one of errors only as an error, any other as a feature.
    ///
    /// # Cost
    /// Two sweeps over the edges; with cycles some more.
    pub fn scores(&self, circuit: &Circuit) -> Scores {
        let kinds: Vec<NodeKind> = self.nodes.iter().map(|node| kind_of(circuit, node)).collect();
        let influence = self.influence(circuit);
        let mut error_share = vec![0.0; self.nodes.len()];
        for edge in self.edges.iter().filter(|edge| kinds[edge.source] == NodeKind::Error) {
            error_share[edge.target] += edge.share;
        }
        let of_kind = |kind: NodeKind| -> f64 {
            influence.iter().zip(&kinds).filter(|(_, other)| **other == kind).map(|(influence, _)| influence).sum()
        };
        let (from_tokens, from_errors) = (of_kind(NodeKind::Token), of_kind(NodeKind::Error));
        let explained: f64 =
            influence.iter().zip(&error_share).map(|(influence, share)| influence * (1.0 - share)).sum();
        let ratio = |part: f64, whole: f64, otherwise: f64| if whole > 0.0 { part / whole } else { otherwise };
        Scores {
            replacement: ratio(from_tokens, from_tokens + from_errors, 0.0),
            completeness: ratio(explained, influence.iter().sum(), 1.0),
        }
    }
}

impl CollapsedCircuit {
    /// The part of the targets' weight that passes through every node along its own edges, targets included.
    /// `[n_nodes]`
    ///
    /// Supernodes that feed each other make a cycle, which their members did not: influence then goes round until it
    /// changes no more.
    ///
    /// # Cost
    /// Two sweeps over the edges; with cycles some more.
    fn influence(&self, circuit: &Circuit) -> Vec<f64> {
        let mut place = vec![0usize; circuit.graph().node_count()];
        circuit.order().iter().enumerate().for_each(|(at, node)| place[node.index()] = at);
        let mut order: Vec<usize> = (0..self.nodes.len()).collect();
        // Targets first. Without cycles through supernodes whatever a node feeds is complete before it.
        order.sort_by_key(|&at| std::cmp::Reverse(self.nodes[at].members.iter().map(|m| place[m.index()]).max()));
        let mut outputs: Vec<Vec<&CollapsedEdge>> = vec![Vec::new(); self.nodes.len()];
        self.edges.iter().for_each(|edge| outputs[edge.source].push(edge));
        let weights: Vec<f64> = self.nodes.iter().map(|node| weight_of(circuit, node)).collect();
        let mut influence = vec![0.0f64; self.nodes.len()];
        for _ in 0..MAX_SWEEPS {
            let mut change = 0.0f64;
            for &at in &order {
                let passed: f64 = outputs[at].iter().map(|edge| influence[edge.target] * edge.share).sum();
                change = change.max((weights[at] + passed - influence[at]).abs());
                influence[at] = weights[at] + passed;
            }
            if change < NEGLIGIBLE {
                break;
            }
        }
        influence
    }
}

/// What a collapsed node counts as.
fn kind_of(circuit: &Circuit, node: &CollapsedNode) -> NodeKind {
    let kind = |member: &NodeIndex| circuit.node(*member).id.kind();
    let first = kind(&node.members[0]);
    if node.members.iter().all(|member| kind(member) == first) { first } else { NodeKind::Feature }
}

/// The targets' weights in a collapsed node.
fn weight_of(circuit: &Circuit, node: &CollapsedNode) -> f64 {
    let is_target = |member: &&NodeIndex| circuit.node(**member).id.kind() == NodeKind::Target;
    let members = node.members.iter().filter(is_target);
    members.map(|&member| circuit.node(member).probability.map_or(1.0, f64::from)).sum()
}
