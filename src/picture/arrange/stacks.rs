//! What says the same at one place, merged into one box: features with one label, features without a label, errors,
//! tokens of one column.

use std::collections::BTreeMap;

use super::BoxKind;
use super::grid::{Cell, Grid, Row};
use crate::circuits::{CollapsedCircuit, CollapsedNode};
use crate::graph::{Circuit, NodeId};

/// Features without a label that stand alone in their cell, the strongest.
const MAX_ALONE: usize = 2;
/// Share of all influence that such a feature has at least.
const MIN_ALONE_SHARE: f64 = 0.01;

/// Nodes of the collapsed circuit that are drawn as one box.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Stack {
    /// Strongest first.
    pub members: Vec<usize>,
    pub kind: BoxKind,
    pub cell: Cell,
    /// As a part of the targets' weight. What passes through several members counts once.
    pub share: Option<f64>,
}

/// What members of one stack have in common.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key<'a> {
    Tokens,
    Labelled(&'a str),
    Unlabelled,
    Errors,
    /// Not merged with anything.
    Own(usize),
}

/// All nodes as stacks, in the order of their cells; within one, the most influential first.
///
/// Cost: O(nodes · log nodes + edges).
pub(super) fn merged(circuit: &Circuit, collapsed: &CollapsedCircuit, grid: &Grid) -> Vec<Stack> {
    let total = total_weight(circuit, collapsed);
    let mut by_key: BTreeMap<(Cell, Key), Vec<usize>> = BTreeMap::new();
    for (at, node) in collapsed.nodes.iter().enumerate() {
        by_key.entry((grid.cell_of(circuit, node), key_of(circuit, node, at))).or_default().push(at);
    }
    let mut stacks = Vec::new();
    for ((cell, key), mut members) in by_key {
        if key != Key::Tokens {
            let influence = |at: usize| collapsed.nodes[at].influence;
            members.sort_by(|&a, &b| influence(b).total_cmp(&influence(a)).then(a.cmp(&b)));
        }
        if key == Key::Unlabelled && members.len() > 1 {
            let is_strong = |&&at: &&usize| collapsed.nodes[at].influence >= MIN_ALONE_SHARE * total;
            let n_alone = members.iter().take(MAX_ALONE).take_while(is_strong).count();
            // A rest of one is no stack: it is called by its id as well.
            stacks.extend(members.drain(..n_alone).map(|at| (cell, vec![at])));
        }
        if !members.is_empty() {
            stacks.push((cell, members));
        }
    }
    let mut of_node = vec![0usize; collapsed.nodes.len()];
    for (at, (_, members)) in stacks.iter().enumerate() {
        members.iter().for_each(|&member| of_node[member] = at);
    }
    let mut influence = vec![0.0f64; stacks.len()];
    collapsed.nodes.iter().zip(&of_node).for_each(|(node, &at)| influence[at] += node.influence);
    // What one member passes to another would count twice.
    for edge in collapsed.edges.iter().filter(|edge| of_node[edge.source] == of_node[edge.target]) {
        influence[of_node[edge.source]] -= edge.share * collapsed.nodes[edge.target].influence;
    }
    let share = |influence: f64| (total > 0.0).then(|| influence.max(0.0) / total);
    let mut stacks: Vec<Stack> = stacks
        .into_iter()
        .zip(influence)
        .map(|((cell, members), influence)| {
            let kind = kind_of(circuit, &collapsed.nodes[members[0]]);
            Stack { members, kind, cell, share: share(influence) }
        })
        .collect();
    stacks.sort_by(|a, b| {
        let share = |stack: &Stack| stack.share.unwrap_or(0.0);
        a.cell.cmp(&b.cell).then(share(b).total_cmp(&share(a))).then(a.members[0].cmp(&b.members[0]))
    });
    stacks
}

/// Weight of all targets.
pub(super) fn total_weight(circuit: &Circuit, collapsed: &CollapsedCircuit) -> f64 {
    let members = collapsed.nodes.iter().flat_map(|node| &node.members).map(|&member| circuit.node(member));
    let targets = members.filter(|node| matches!(node.id, NodeId::Target { .. }));
    targets.map(|node| node.probability.map_or(1.0, f64::from)).sum()
}

fn key_of<'a>(circuit: &'a Circuit, node: &CollapsedNode, at: usize) -> Key<'a> {
    if node.name.is_some() {
        return Key::Own(at);
    }
    let inner = circuit.node(node.members[0]);
    match inner.id {
        NodeId::Token { .. } | NodeId::Context { .. } => Key::Tokens,
        NodeId::Error { .. } => Key::Errors,
        NodeId::Target { .. } => Key::Own(at),
        NodeId::Feature { .. } => inner.label.as_deref().map_or(Key::Unlabelled, Key::Labelled),
    }
}

fn kind_of(circuit: &Circuit, node: &CollapsedNode) -> BoxKind {
    if node.name.is_some() {
        return BoxKind::Supernode;
    }
    match circuit.node(node.members[0]).id {
        NodeId::Token { .. } | NodeId::Context { .. } => BoxKind::Token,
        NodeId::Error { .. } => BoxKind::Error,
        NodeId::Target { .. } => BoxKind::Target,
        NodeId::Feature { .. } => BoxKind::Feature,
    }
}

impl Stack {
    /// Tokens and targets are shown by other rules than what lies between them.
    pub(super) fn is_between(&self) -> bool {
        matches!(self.cell.0, Row::Layers(_))
    }
}
