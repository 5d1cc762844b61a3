//! A circuit boiled down to what fits a screen; as JSON, the machine-readable answer of `trace`, `prune` and `inspect`.

use std::collections::BTreeMap;

use petgraph::graph::NodeIndex;
use serde::{Deserialize, Serialize};

use super::effects::direct_effects;
use super::{Effects, NodeExample, PathGroup, find_nodes, strongest_path_groups};
use crate::export::node_id_text;
use crate::graph::{
    AttributionGraph, Circuit, EdgeHeads, MAX_PATHS, Neighbor, NodeKind, Sampling, ShareEstimate, StrongestPaths,
    strongest_paths,
};
use crate::{Error, Result};

/// So many nodes of one name at one position are one entry.
const MIN_NAMED: usize = 3;

/// Nodes of such an entry that are listed.
const MAX_NAMED: usize = 5;

/// How much a summary shows.
#[derive(Debug, Clone, PartialEq)]
pub struct SummarySettings {
    /// Entries of every list of nodes.
    pub top: usize,
    /// Strongest token-to-target paths.
    pub paths: usize,
    /// Name of the nodes whose inputs and outputs are wanted ([`find_nodes`]).
    pub node: Option<String>,
    /// Names of the nodes where the paths begin; empty: all tokens.
    pub from: Vec<String>,
    /// Names of the nodes where the paths end; the first one's effects are shown first. Empty: the first target.
    pub to: Vec<String>,
}

impl Default for SummarySettings {
    fn default() -> SummarySettings {
        SummarySettings { top: 10, paths: 5, node: None, from: Vec::new(), to: Vec::new() }
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
    /// Nodes within the threshold that pruning left out, since the graph was to have no more.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub n_left_out: usize,
    /// Whether it is a part of a circuit; shares are those of the whole all the same.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_part: bool,
    /// Signed effects on each target; first on the one that paths lead to.
    pub effects: Vec<Effects>,
    /// Features and errors, strongest first.
    pub strongest: Vec<SummaryNode>,
    /// The same by name: features of one label (without labels: of one token) at one position are one entry where there
    /// are several. Strongest first.
    pub strongest_by_name: Vec<NamedNodes>,
    /// The nodes that [`SummarySettings::node`] asks for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<NodeSummary>,
    /// Strongest paths from a token to the first target.
    pub paths: Vec<SummaryPath>,
    /// Strongest groups of paths to it, by the positions that they go through.
    pub path_groups: Vec<PathGroup>,
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
    /// Context nodes: closed positions.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub contexts: usize,
    /// Target nodes.
    pub targets: usize,
    /// Edges between them.
    pub edges: usize,
}

impl Counts {
    /// Nodes of all kinds.
    pub fn nodes(&self) -> usize {
        self.features + self.errors + self.tokens + self.contexts + self.targets
    }
}

/// Graphs without closed positions do not speak of them.
fn is_zero(count: &usize) -> bool {
    *count == 0
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
    /// The strongest example of what the feature is active on, where it was asked for and features were collected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub example: Option<NodeExample>,
}

/// Features or errors at one position that are called the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NamedNodes {
    /// Their label; without one, the prompt's token at their position.
    pub name: String,
    /// Whether `name` is a label.
    pub is_label: bool,
    /// Features or errors.
    pub kind: NodeKind,
    /// Position in the prompt.
    pub pos: u32,
    /// How many there are.
    pub n_nodes: usize,
    /// The part of the targets' weight that passes through at least one of them.
    pub share: f64,
    /// Their summed direct effect on the target that paths lead to.
    pub direct: f64,
    /// The strongest of them.
    pub nodes: Vec<SummaryNode>,
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
    /// Through which heads it goes, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<SharedHeads>,
}

/// Through which heads an edge goes, in words and figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SharedHeads {
    /// The largest flow and the direct part in per cent: `18.6 71 %, direct 12 %` ([`EdgeHeads::label`]).
    pub label: String,
    /// The largest flows, largest first: head and flow, in the units of the edge.
    pub strongest: Vec<(String, f32)>,
    /// The sum of all other flows.
    pub rest: f32,
    /// Parts of the edge that pass 0, 1, .. heads; the last: that many or more.
    pub hops: Vec<f32>,
}

impl From<&EdgeHeads> for SharedHeads {
    fn from(edge: &EdgeHeads) -> SharedHeads {
        SharedHeads {
            label: edge.label(),
            strongest: edge.strongest.iter().map(|flow| (flow.head.to_string(), flow.flow)).collect(),
            rest: edge.rest,
            hops: edge.hops.clone(),
        }
    }
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
/// A node that `settings` name is not in the circuit; more than [`MAX_PATHS`] paths are asked for.
///
/// # Cost
/// Linear in nodes and edges, times the numbers of targets, of paths and of listed names.
pub fn summarize(circuit: &Circuit, settings: &SummarySettings) -> Result<Summary> {
    summary(circuit, None, None, settings)
}

/// As [`summarize`], effects over all edges of `raw`, the graph that `circuit` was pruned from.
///
/// # Errors
/// As [`summarize`].
///
/// # Cost
/// As [`summarize`], and one pass over the edge rows.
pub fn summarize_with_raw(circuit: &Circuit, raw: &AttributionGraph, settings: &SummarySettings) -> Result<Summary> {
    summary(circuit, None, Some(raw), settings)
}

/// As [`summarize`], of a part of `whole`, in which it is known what passes through several nodes together; effects are over
/// all edges of `raw`, where that is given.
///
/// # Errors
/// As [`summarize`].
///
/// # Cost
/// As [`summarize`], with the nodes and edges of the whole.
pub fn summarize_part(
    part: &Circuit,
    whole: &Circuit,
    raw: Option<&AttributionGraph>,
    settings: &SummarySettings,
) -> Result<Summary> {
    summary(part, Some(whole), raw, settings)
}

fn summary(
    circuit: &Circuit,
    whole: Option<&Circuit>,
    raw: Option<&AttributionGraph>,
    settings: &SummarySettings,
) -> Result<Summary> {
    if settings.paths > MAX_PATHS {
        return Err(Error::Setting { name: "paths", value: settings.paths as f64, range: "0..=1000000" });
    }
    let describer =
        Describer { whole: whole.or_else(|| (!circuit.is_part()).then_some(circuit)), ..Describer::new(circuit) };
    let targets = circuit.targets();
    let mut counts = Counts { edges: circuit.graph().edge_count(), ..Counts::default() };
    for node in circuit.graph().node_weights() {
        match node.id.kind() {
            NodeKind::Feature => counts.features += 1,
            NodeKind::Error => counts.errors += 1,
            NodeKind::Token => counts.tokens += 1,
            NodeKind::Context => counts.contexts += 1,
            NodeKind::Target => counts.targets += 1,
        }
    }
    let mut predictions: Vec<Prediction> = targets.iter().map(|&index| describer.prediction(index)).collect();
    predictions.sort_by(|a, b| b.probability.unwrap_or(0.0).total_cmp(&a.probability.unwrap_or(0.0)));
    let nodes = match &settings.node {
        Some(name) => find_nodes(circuit, name)?,
        None => Vec::new(),
    };
    let begins = match settings.from.is_empty() {
        true => circuit.tokens(),
        false => described_ends(circuit, &settings.from, NodeKind::Target)?,
    };
    let ends = match settings.to.is_empty() {
        true => targets[..targets.len().min(1)].to_vec(),
        false => described_ends(circuit, &settings.to, NodeKind::Token)?,
    };
    let paths = strongest_paths(circuit, &begins, &ends, settings.paths);
    // A token or an error has no inputs that there could be effects of.
    let has_inputs =
        |index: &&NodeIndex| matches!(circuit.node(**index).id.kind(), NodeKind::Feature | NodeKind::Target);
    let main = ends.iter().find(has_inputs).copied();
    let others = targets.iter().copied().filter(|&target| Some(target) != main);
    let path_groups = match main.filter(|_| settings.from.is_empty() && ends.len() == 1) {
        Some(target) => strongest_path_groups(circuit, target, settings.paths),
        None => Vec::new(),
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
        n_left_out: circuit.meta.n_left_out,
        is_part: circuit.is_part(),
        effects: Effects::on(circuit, raw, &main.into_iter().chain(others).collect::<Vec<_>>()),
        strongest: circuit.strongest_nodes(settings.top).into_iter().map(|(index, _)| describer.node(index)).collect(),
        strongest_by_name: describer.by_name(raw, main, settings.top),
        nodes: nodes.into_iter().map(|index| describer.node_summary(index, settings.top)).collect(),
        paths_total: paths.total,
        paths: describer.paths(&paths),
        path_groups,
    })
}

/// The nodes with these names. A token and a target may be called the same: paths begin at the one and end at the other, so
/// that nodes of the kind `other` are left out where there are others.
fn described_ends(circuit: &Circuit, names: &[String], other: NodeKind) -> Result<Vec<NodeIndex>> {
    let mut ends = Vec::new();
    for name in names {
        let found = find_nodes(circuit, name)?;
        let is_other = |index: &NodeIndex| circuit.node(*index).id.kind() == other;
        let all_are = found.iter().all(is_other);
        ends.extend(found.into_iter().filter(|index| all_are || !is_other(index)));
    }
    Ok(ends)
}

/// What a node is about: the prompt's token at its position; for a target, what it stands for.
pub(super) fn text_of(circuit: &Circuit, index: NodeIndex) -> String {
    let node = circuit.node(index);
    if node.id.kind() == NodeKind::Target {
        return node.text.clone();
    }
    circuit.meta.prompt_tokens.get(node.pos as usize).cloned().unwrap_or_default()
}

/// Puts the nodes of one circuit into words.
struct Describer<'a> {
    circuit: &'a Circuit,
    /// The circuit itself, or what it is a part of, where that is at hand.
    whole: Option<&'a Circuit>,
    /// By `NodeIndex`. `[n_nodes]`
    influence: Vec<f64>,
    total_weight: f64,
}

impl Describer<'_> {
    fn new(circuit: &Circuit) -> Describer<'_> {
        Describer { circuit, whole: None, influence: circuit.node_influence(), total_weight: circuit.whole_weight() }
    }

    fn id(&self, index: NodeIndex) -> String {
        node_id_text(self.circuit.meta.n_layers, self.circuit.node(index))
    }

    /// What passes through `influence`, as a part of the targets' weight.
    fn share(&self, influence: f64) -> f64 {
        if self.total_weight > 0.0 { influence / self.total_weight } else { 0.0 }
    }

    /// What passes through at least one of some nodes, in the whole.
    fn through(&self, nodes: &[NodeIndex]) -> f64 {
        let Some(whole) = self.whole else { return 0.0 };
        let there: Vec<NodeIndex> = nodes.iter().filter_map(|&node| whole.find(self.circuit.node(node).id)).collect();
        whole.influence_through(&there)
    }

    /// The `count` strongest entries of [`Summary::strongest_by_name`].
    fn by_name(&self, raw: Option<&AttributionGraph>, main: Option<NodeIndex>, count: usize) -> Vec<NamedNodes> {
        let graph = self.circuit.graph();
        let mut by_name: BTreeMap<(u32, NodeKind, Option<&str>), Vec<NodeIndex>> = BTreeMap::new();
        for index in graph.node_indices() {
            let node = self.circuit.node(index);
            if node.id.layer().is_some() {
                by_name.entry((node.pos, node.id.kind(), node.label.as_deref())).or_default().push(index);
            }
        }
        let mut entries: Vec<Vec<NodeIndex>> = Vec::new();
        for mut nodes in by_name.into_values() {
            // What passes through a part's nodes together is a matter of the whole.
            if nodes.len() < MIN_NAMED || self.whole.is_none() {
                entries.extend(nodes.into_iter().map(|node| vec![node]));
                continue;
            }
            nodes.sort_by(|a, b| self.influence[b.index()].total_cmp(&self.influence[a.index()]).then(a.cmp(b)));
            entries.push(nodes);
        }
        // What passes through several nodes is at most what passes through each, and only the strongest are wanted.
        let bound = |nodes: &[NodeIndex]| nodes.iter().map(|node| self.influence[node.index()]).sum::<f64>();
        let mut entries: Vec<(f64, Vec<NodeIndex>)> = entries.into_iter().map(|nodes| (bound(&nodes), nodes)).collect();
        entries.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let mut found: Vec<(f64, Vec<NodeIndex>)> = Vec::new();
        for (bound, nodes) in entries {
            if count == 0 || found.len() == count && found[count - 1].0 >= bound {
                break;
            }
            let through = match nodes.len() {
                1 => bound,
                _ => self.through(&nodes),
            };
            let place = found.partition_point(|(other, _)| *other >= through);
            found.insert(place, (through, nodes));
            found.truncate(count);
        }
        let effect = direct_effects(self.circuit, raw, main);
        let named = |(through, nodes): (f64, Vec<NodeIndex>)| {
            let first = self.circuit.node(nodes[0]);
            NamedNodes {
                name: first.label.clone().unwrap_or_else(|| text_of(self.circuit, nodes[0])),
                is_label: first.label.is_some(),
                kind: first.id.kind(),
                pos: first.pos,
                n_nodes: nodes.len(),
                share: self.share(through),
                direct: nodes.iter().map(|&node| effect(node)).sum(),
                nodes: nodes.iter().take(MAX_NAMED).map(|&node| self.node(node)).collect(),
            }
        };
        found.into_iter().map(named).collect()
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
        SummaryNode {
            id: self.id(index),
            text: text_of(self.circuit, index),
            kind,
            layer: node.id.layer(),
            pos: node.pos,
            label: node.label.clone(),
            activation: node.activation,
            share: self.share(self.influence[index.index()]),
            cumulative_influence: node.influence,
            estimate: node.estimate,
            example: None,
        }
    }

    fn node_summary(&self, index: NodeIndex, top: usize) -> NodeSummary {
        NodeSummary {
            node: self.node(index),
            inputs: self.neighbors(self.circuit.inputs(index), top, |other| (other, index)),
            outputs: self.neighbors(self.circuit.outputs(index), top, |other| (index, other)),
        }
    }

    /// `ends` gives source and target of the edge to a neighbour.
    fn neighbors(
        &self,
        neighbors: Vec<Neighbor>,
        top: usize,
        ends: impl Fn(NodeIndex) -> (NodeIndex, NodeIndex),
    ) -> Neighbors {
        let (negative, positive): (Vec<Neighbor>, Vec<Neighbor>) =
            neighbors.into_iter().partition(|neighbor| neighbor.edge.weight < 0.0);
        let described = |neighbors: &[Neighbor]| {
            let edges = neighbors.iter().take(top).map(|neighbor| SharedEdge {
                node: self.node(neighbor.node),
                weight: neighbor.edge.weight,
                edge_share: neighbor.edge.share,
                heads: {
                    let (source, target) = ends(neighbor.node);
                    self.circuit.edge_heads(source, target).map(SharedHeads::from)
                },
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
