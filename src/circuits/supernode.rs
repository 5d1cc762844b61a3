//! Supernodes, and the view of a circuit in which each of them is one node.

use petgraph::graph::NodeIndex;
use petgraph::visit::EdgeRef;

use crate::graph::Circuit;
use crate::{Error, Result};

/// Nodes that are shown as one.
#[derive(Debug, Clone, PartialEq)]
pub struct Supernode {
    pub name: String,
    pub members: Vec<NodeIndex>,
}

/// A node of a [`View`]: a node of the circuit, or a supernode.
#[derive(Debug, Clone, PartialEq)]
pub struct ViewNode {
    /// The supernode's name.
    pub name: Option<String>,
    /// One, for a node of the circuit.
    pub members: Vec<NodeIndex>,
    /// Summed over the members: the part of the targets' weight that passes through them. Paths within a supernode count
    /// once for every member.
    pub influence: f64,
}

/// All edges between two nodes of a [`View`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ViewEdge {
    pub source: usize,
    pub target: usize,
    /// Sum of the edges' weights.
    pub weight: f64,
    /// `|weight|` over the sum of `|weight|` of all edges of the view into the same node.
    pub share: f64,
}

/// A circuit as it is shown: supernodes merged, edges between two nodes summed, those within a supernode left out.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    pub nodes: Vec<ViewNode>,
    /// By target and then source.
    pub edges: Vec<ViewEdge>,
}

/// Checks that no node is in two supernodes and that none is empty.
///
/// # Errors
/// Names the supernode.
pub fn check_groups(groups: &[Supernode]) -> Result<()> {
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

/// The view of `circuit` with `groups` merged; nodes in the circuit's order, a supernode at its first member.
///
/// # Errors
/// As [`check_groups`].
///
/// # Cost
/// O(nodes + edges · log edges).
pub fn view(circuit: &Circuit, groups: &[Supernode]) -> Result<View> {
    check_groups(groups)?;
    let graph = circuit.graph();
    let influence = circuit.node_influence();
    let mut group_of = vec![None; graph.node_count()];
    for (at, group) in groups.iter().enumerate() {
        group.members.iter().for_each(|member| group_of[member.index()] = Some(at));
    }
    let mut nodes: Vec<ViewNode> = Vec::new();
    let mut place = vec![0usize; graph.node_count()];
    let mut place_of_group = vec![None; groups.len()];
    for index in graph.node_indices() {
        let at = match group_of[index.index()] {
            Some(group) => *place_of_group[group].get_or_insert_with(|| {
                nodes.push(ViewNode { name: Some(groups[group].name.clone()), members: Vec::new(), influence: 0.0 });
                nodes.len() - 1
            }),
            None => {
                nodes.push(ViewNode { name: None, members: Vec::new(), influence: 0.0 });
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
    let mut edges: Vec<ViewEdge> = Vec::new();
    for (target, source, weight) in pairs {
        match edges.last_mut() {
            Some(last) if last.source == source && last.target == target => last.weight += weight,
            _ => edges.push(ViewEdge { source, target, weight, share: 0.0 }),
        }
    }
    let mut sums = vec![0.0f64; nodes.len()];
    edges.iter().for_each(|edge| sums[edge.target] += edge.weight.abs());
    for edge in &mut edges {
        edge.share = if sums[edge.target] > 0.0 { edge.weight.abs() / sums[edge.target] } else { 0.0 };
    }
    Ok(View { nodes, edges })
}

impl View {
    /// The replacement score of the view: definitions 8 with its own edges, supernodes as features. What a view loses
    /// against its circuit is how much the merging hides. A supernode pair that feeds each other makes a cycle; the sweep
    /// then stops after as many steps as there are nodes.
    pub fn replacement_score(&self, circuit: &Circuit) -> f64 {
        use crate::graph::NodeId;
        let mut passing: Vec<f64> = self.nodes.iter().map(|node| self.weight_of(circuit, node)).collect();
        let (mut from_tokens, mut from_errors) = (0.0, 0.0);
        for _ in 0..=self.nodes.len() {
            let mut next = vec![0.0; passing.len()];
            let mut any = false;
            for edge in &self.edges {
                let step = passing[edge.target] * edge.share;
                next[edge.source] += step;
                any |= step > 1e-12;
            }
            for (node, &amount) in self.nodes.iter().zip(&next) {
                if node.name.is_none() {
                    match circuit.node(node.members[0]).id {
                        NodeId::Token { .. } => from_tokens += amount,
                        NodeId::Error { .. } => from_errors += amount,
                        _ => {}
                    }
                }
            }
            passing = next;
            if !any {
                break;
            }
        }
        let all = from_tokens + from_errors;
        if all > 0.0 { from_tokens / all } else { 0.0 }
    }

    fn weight_of(&self, circuit: &Circuit, node: &ViewNode) -> f64 {
        let is_target = |member: &&NodeIndex| matches!(circuit.node(**member).id, crate::graph::NodeId::Target { .. });
        let members = node.members.iter().filter(is_target);
        members.map(|&member| circuit.node(member).probability.map_or(1.0, f64::from)).sum()
    }
}
