//! A circuit boiled down to what fits a screen; as JSON, the machine-readable answer of `trace`, `prune` and `inspect`.

use petgraph::graph::NodeIndex;
use serde::{Deserialize, Serialize};

use crate::export::node_id_text;
use crate::graph::{Circuit, MAX_PATHS, Neighbor, NodeKind, Sampling, ShareEstimate, StrongestPaths, strongest_paths};
use crate::{Error, Result};

/// How much a summary shows.
#[derive(Debug, Clone, PartialEq)]
pub struct SummarySettings {
    /// Entries of every list of nodes.
    pub top: usize,
    /// Strongest token-to-target paths.
    pub paths: usize,
    /// Id of the node whose inputs and outputs are wanted.
    pub node: Option<String>,
}

impl Default for SummarySettings {
    fn default() -> SummarySettings {
        SummarySettings { top: 10, paths: 5, node: None }
    }
}

/// A circuit in words and figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The prompt's text.
    pub prompt: String,
    /// The text of every token. `[n_pos]`
    pub prompt_tokens: Vec<String>,
    /// The targets, most probable first.
    pub predictions: Vec<Prediction>,
    /// Scores of the graph before pruning.
    pub scores: SummaryScores,
    /// What the circuit consists of.
    pub counts: Counts,
    /// Features and errors, strongest first.
    pub strongest: Vec<SummaryNode>,
    /// The node that [`SummarySettings::node`] asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeSummary>,
    /// Strongest paths from a token to the first target.
    pub paths: Vec<SummaryPath>,
    /// The summed strength of all such paths: what of the target's input comes from tokens within the circuit.
    pub paths_total: f64,
}

/// One target in words.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// Id of the target's node.
    pub id: String,
    /// The token's text; the label of a target that is no token.
    pub text: String,
    /// Vocabulary id, -1 for a direction that is no token; `None` where the file does not say.
    pub token_id: Option<i64>,
    /// The target's weight (definitions 5): a token's probability, in 0..=1.
    pub probability: Option<f32>,
}

/// Scores of the graph before pruning, where they are known.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SummaryScores {
    /// Replacement score, in 0..=1 (definitions 8).
    pub replacement: Option<f64>,
    /// Completeness, in 0..=1 (definitions 8).
    pub completeness: Option<f64>,
    /// The largest relative error of the row identity (definitions 4).
    pub row_identity_error: Option<f64>,
    /// How the influence was sampled, and how far the scores may be off; absent where they are exact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling: Option<Sampling>,
}

/// What the circuit consists of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Feature nodes, one a position.
    pub features: usize,
    /// Error nodes.
    pub errors: usize,
    /// Token nodes.
    pub tokens: usize,
    /// Target nodes.
    pub targets: usize,
    /// Edges between them.
    pub edges: usize,
}

impl Counts {
    /// Nodes of all kinds.
    pub fn nodes(&self) -> usize {
        self.features + self.errors + self.tokens + self.targets
    }
}

/// One node in words.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SummaryNode {
    /// Its id, as JSON and the command line write it.
    pub id: String,
    /// What it stands for.
    pub kind: NodeKind,
    /// Layer of a feature or error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<u32>,
    /// Position in the prompt; that of the logit, for a target.
    pub pos: u32,
    /// The prompt's token at `pos`; for a target, what it stands for.
    pub text: String,
    /// What the label file says about a feature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Activation of a feature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activation: Option<f32>,
    /// The part of the targets' weight that passes through the node within the circuit, 1 being all of it.
    pub share: f64,
    /// Cumulative share of influence at the node's rank before pruning: small is important.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cumulative_influence: Option<f64>,
    /// Share in the whole graph, where its influence was sampled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimate: Option<ShareEstimate>,
}

/// Inputs and outputs of one node, largest share first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeSummary {
    /// The node itself.
    pub node: SummaryNode,
    /// Edges into it.
    pub inputs: Neighbors,
    /// Edges out of it.
    pub outputs: Neighbors,
}

/// Edges at one end of a node, by sign, largest share first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Neighbors {
    /// Edges of positive weight, the first [`SummarySettings::top`] of them.
    pub positive: Vec<SharedEdge>,
    /// Edges of negative weight, as many at most.
    pub negative: Vec<SharedEdge>,
    /// How many there are of each sign, listed or not.
    pub n_positive: usize,
    /// As `n_positive`.
    pub n_negative: usize,
}

/// An edge seen from one of its ends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SharedEdge {
    /// The other end.
    pub node: SummaryNode,
    /// The direct effect, with its sign.
    pub weight: f32,
    /// `|weight|` as a part of all input, within the circuit, of the node that the edge leads to.
    pub edge_share: f64,
}

/// One path from a token to a target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SummaryPath {
    /// Product of the edges' shares.
    pub strength: f64,
    /// Whether the path weakens its target.
    pub is_negative: bool,
    /// Token first.
    pub nodes: Vec<SummaryNode>,
}

/// Boils `circuit` down.
///
/// # Errors
/// `settings.node` is not in the circuit; more than [`MAX_PATHS`] paths are asked for.
///
/// # Cost
/// Linear in nodes and edges, times the number of paths.
pub fn summarize(circuit: &Circuit, settings: &SummarySettings) -> Result<Summary> {
    if settings.paths > MAX_PATHS {
        return Err(Error::Setting { name: "paths", value: settings.paths as f64, range: "0..=1000000" });
    }
    let describer = Describer::new(circuit);
    let targets = circuit.targets();
    let mut counts = Counts { edges: circuit.graph().edge_count(), ..Counts::default() };
    for node in circuit.graph().node_weights() {
        match node.id.kind() {
            NodeKind::Feature => counts.features += 1,
            NodeKind::Error => counts.errors += 1,
            NodeKind::Token => counts.tokens += 1,
            NodeKind::Target => counts.targets += 1,
        }
    }
    let mut predictions: Vec<Prediction> = targets.iter().map(|&index| describer.prediction(index)).collect();
    predictions.sort_by(|a, b| b.probability.unwrap_or(0.0).total_cmp(&a.probability.unwrap_or(0.0)));
    let first_target = &targets[..targets.len().min(1)];
    let paths = strongest_paths(circuit, &circuit.tokens(), first_target, settings.paths);
    let node = match &settings.node {
        Some(id) => Some(describer.node_summary(describer.find(id)?, settings.top)),
        None => None,
    };
    Ok(Summary {
        prompt: circuit.meta.prompt.clone(),
        prompt_tokens: circuit.meta.prompt_tokens.clone(),
        predictions,
        scores: SummaryScores {
            replacement: circuit.meta.replacement_score,
            completeness: circuit.meta.completeness_score,
            row_identity_error: circuit.meta.row_identity_error,
            sampling: circuit.meta.sampling,
        },
        counts,
        strongest: circuit.strongest_nodes(settings.top).into_iter().map(|(index, _)| describer.node(index)).collect(),
        node,
        paths_total: paths.total,
        paths: describer.paths(&paths),
    })
}

impl Summary {
    /// Puts other paths into the summary: the `count` strongest from any of `sources` to any of `targets`.
    ///
    /// # Cost
    /// As [`strongest_paths`].
    pub fn set_paths(&mut self, circuit: &Circuit, sources: &[NodeIndex], targets: &[NodeIndex], count: usize) {
        let paths = strongest_paths(circuit, sources, targets, count);
        self.paths_total = paths.total;
        self.paths = Describer::new(circuit).paths(&paths);
    }
}

/// The node with this id.
///
/// # Errors
/// There is none; names the same feature elsewhere.
pub fn find_node(circuit: &Circuit, id: &str) -> Result<NodeIndex> {
    Describer::new(circuit).find(id)
}

/// Puts the nodes of one circuit into words.
struct Describer<'a> {
    circuit: &'a Circuit,
    /// By `NodeIndex`. `[n_nodes]`
    influence: Vec<f64>,
    total_weight: f64,
}

impl Describer<'_> {
    fn new(circuit: &Circuit) -> Describer<'_> {
        let influence = circuit.node_influence();
        let total_weight = circuit.targets().iter().map(|target| influence[target.index()]).sum();
        Describer { circuit, influence, total_weight }
    }

    fn id(&self, index: NodeIndex) -> String {
        node_id_text(self.circuit.meta.n_layers, self.circuit.node(index))
    }

    fn find(&self, id: &str) -> Result<NodeIndex> {
        let indices = || self.circuit.graph().node_indices();
        if let Some(index) = indices().find(|&index| self.id(index) == id) {
            return Ok(index);
        }
        // Most often the position is wrong: the same feature elsewhere is what was meant.
        let stem = id.rsplit_once('_').map_or(id, |(stem, _)| stem);
        let near = indices().map(|index| self.id(index));
        let near = near.filter(|other| other.rsplit_once('_').is_some_and(|(other, _)| other == stem));
        Err(Error::UnknownNode { id: id.to_owned(), near: near.take(5).map(|id| format!("`{id}`")).collect() })
    }

    fn paths(&self, paths: &StrongestPaths) -> Vec<SummaryPath> {
        let paths = paths.paths.iter().map(|path| SummaryPath {
            strength: path.strength,
            is_negative: path.is_negative,
            nodes: path.nodes.iter().map(|&index| self.node(index)).collect(),
        });
        paths.collect()
    }

    fn prediction(&self, index: NodeIndex) -> Prediction {
        let node = self.circuit.node(index);
        Prediction {
            id: self.id(index),
            text: node.text.clone(),
            token_id: node.token_id,
            probability: node.probability,
        }
    }

    fn node(&self, index: NodeIndex) -> SummaryNode {
        let node = self.circuit.node(index);
        let kind = node.id.kind();
        let token = || self.circuit.meta.prompt_tokens.get(node.pos as usize).cloned().unwrap_or_default();
        let share = if self.total_weight > 0.0 { self.influence[index.index()] / self.total_weight } else { 0.0 };
        SummaryNode {
            id: self.id(index),
            text: if kind == NodeKind::Target { node.text.clone() } else { token() },
            kind,
            layer: node.id.layer(),
            pos: node.pos,
            label: node.label.clone(),
            activation: node.activation,
            share,
            cumulative_influence: node.influence,
            estimate: node.estimate,
        }
    }

    fn node_summary(&self, index: NodeIndex, top: usize) -> NodeSummary {
        NodeSummary {
            node: self.node(index),
            inputs: self.neighbors(self.circuit.inputs(index), top),
            outputs: self.neighbors(self.circuit.outputs(index), top),
        }
    }

    fn neighbors(&self, neighbors: Vec<Neighbor>, top: usize) -> Neighbors {
        let (negative, positive): (Vec<Neighbor>, Vec<Neighbor>) =
            neighbors.into_iter().partition(|neighbor| neighbor.edge.weight < 0.0);
        let described = |neighbors: &[Neighbor]| {
            let edges = neighbors.iter().take(top).map(|neighbor| SharedEdge {
                node: self.node(neighbor.node),
                weight: neighbor.edge.weight,
                edge_share: neighbor.edge.share,
            });
            edges.collect()
        };
        Neighbors {
            positive: described(&positive),
            negative: described(&negative),
            n_positive: positive.len(),
            n_negative: negative.len(),
        }
    }
}
