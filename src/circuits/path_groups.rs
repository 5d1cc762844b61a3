//! Paths by what they go through: a position and a kind at each step. Of a real model's paths each carries next to
//! nothing, and together they tell the story.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};

use petgraph::Direction;
use petgraph::graph::NodeIndex;
use petgraph::visit::EdgeRef;
use serde::{Deserialize, Serialize};

use crate::graph::{Circuit, NodeKind};

/// All paths from one token to one target that go through features at the same positions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PathGroup {
    /// Summed strength of the paths: products of shares.
    pub strength: f64,
    /// Summed effect of the paths on the target, with its sign, where activations are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<f64>,
    /// Token first, target last; features of several layers at one position are one step.
    pub steps: Vec<PathStep>,
}

/// One step of a [`PathGroup`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PathStep {
    /// Of the nodes there.
    pub kind: NodeKind,
    /// Position in the prompt.
    pub pos: u32,
    /// The prompt's token there; for the target, what it stands for.
    pub text: String,
}

/// Groups that are taken up at most: enough for the strongest of prompts of hundreds of tokens, and an end for others.
const MAX_STEPS: usize = 5_000;

/// What comes down from the target to the nodes of one group, along paths with the same steps.
struct Front {
    /// Summed share: what any of its continuations carries at most.
    strength: f64,
    /// Summed effect at a token, where it ends.
    effect: f64,
    /// Positions of the steps so far, the target's left out; the last is where it is.
    steps: Vec<u32>,
    /// Whether it has come to a token.
    is_done: bool,
    /// Nodes that it enters, with share and effect.
    entries: Vec<(NodeIndex, f64, f64)>,
}

impl PartialEq for Front {
    fn eq(&self, other: &Front) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Front {}

impl PartialOrd for Front {
    fn partial_cmp(&self, other: &Front) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Front {
    fn cmp(&self, other: &Front) -> Ordering {
        self.strength.total_cmp(&other.strength).then_with(|| other.steps.cmp(&self.steps))
    }
}

/// The `count` strongest groups of paths from tokens to `target`, strongest first.
///
/// A group's continuations carry no more than itself, so that taking up the strongest first finds the strongest first.
///
/// # Cost
/// Each group that is taken up costs the edges into the features of one position.
pub fn strongest_path_groups(circuit: &Circuit, target: NodeIndex, count: usize) -> Vec<PathGroup> {
    let graph = circuit.graph();
    let n_nodes = graph.node_count();
    // Place in the order, downwards: whatever a node feeds comes before it.
    let mut place = vec![0usize; n_nodes];
    circuit.order().iter().rev().enumerate().for_each(|(at, node)| place[node.index()] = at);
    let has_activations = graph
        .node_weights()
        .all(|node| node.id.kind() != NodeKind::Feature || node.activation.is_some_and(|activation| activation != 0.0));
    let scale = |node: NodeIndex| match circuit.node(node).activation {
        Some(activation) if node != target => 1.0 / f64::from(activation),
        _ => 1.0,
    };
    let mut share = vec![0.0f64; n_nodes];
    let mut effect = vec![0.0f64; n_nodes];
    let start =
        Front { strength: 1.0, effect: 1.0, steps: Vec::new(), is_done: false, entries: vec![(target, 1.0, 1.0)] };
    let mut open = BinaryHeap::from([start]);
    let mut found = Vec::new();
    for _ in 0..MAX_STEPS {
        if found.len() == count {
            break;
        }
        let Some(front) = open.pop() else { break };
        if front.is_done {
            found.push(described(circuit, target, &front, has_activations));
            continue;
        }
        let here = front.steps.last().copied();
        let mut waiting: BTreeMap<usize, NodeIndex> = BTreeMap::new();
        for &(node, strength, given) in &front.entries {
            (share[node.index()], effect[node.index()]) = (strength, given);
            waiting.insert(place[node.index()], node);
        }
        // By kind and position: the sources outside of this group.
        let mut next: BTreeMap<(bool, u32), Vec<NodeIndex>> = BTreeMap::new();
        while let Some((_, node)) = waiting.pop_first() {
            let passed = (std::mem::take(&mut share[node.index()]), std::mem::take(&mut effect[node.index()]));
            let scale = scale(node);
            for edge in graph.edges_directed(node, Direction::Incoming) {
                let (source, weight) = (edge.source(), edge.weight());
                let (kind, pos) = (circuit.node(source).id.kind(), circuit.node(source).pos);
                if matches!(kind, NodeKind::Error | NodeKind::Target) || weight.share == 0.0 {
                    continue;
                }
                let is_new = share[source.index()] == 0.0;
                share[source.index()] += passed.0 * weight.share;
                effect[source.index()] += passed.1 * scale * f64::from(weight.weight);
                if !is_new {
                    continue;
                }
                match kind {
                    NodeKind::Feature if Some(pos) == here => {
                        waiting.insert(place[source.index()], source);
                    }
                    _ => next.entry((kind.is_beginning(), pos)).or_default().push(source),
                }
            }
        }
        for ((is_done, pos), nodes) in next {
            let mut entries = Vec::with_capacity(nodes.len());
            for node in nodes {
                let (strength, given) =
                    (std::mem::take(&mut share[node.index()]), std::mem::take(&mut effect[node.index()]));
                entries.push((node, strength, given));
            }
            let strength = entries.iter().map(|(_, strength, _)| strength).sum();
            let effect = entries.iter().map(|(.., effect)| effect).sum();
            let steps = front.steps.iter().copied().chain([pos]).collect();
            open.push(Front { strength, effect, steps, is_done, entries });
        }
    }
    found
}

fn described(circuit: &Circuit, target: NodeIndex, front: &Front, has_activations: bool) -> PathGroup {
    let step = |(at, &pos): (usize, &u32)| PathStep {
        kind: if at + 1 == front.steps.len() { NodeKind::Token } else { NodeKind::Feature },
        pos,
        text: circuit.meta.prompt_tokens.get(pos as usize).cloned().unwrap_or_default(),
    };
    let end = PathStep {
        kind: circuit.node(target).id.kind(),
        pos: circuit.node(target).pos,
        text: super::summary::text_of(circuit, target),
    };
    let mut steps: Vec<PathStep> = front.steps.iter().enumerate().map(step).rev().collect();
    steps.push(end);
    PathGroup { strength: front.strength, effect: has_activations.then_some(front.effect), steps }
}
