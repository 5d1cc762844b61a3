//! The circuit: what is left of a graph after pruning, as a petgraph `DiGraph`.

use std::collections::HashMap;
use std::sync::Arc;

use petgraph::Direction;
use petgraph::algo::toposort;
use petgraph::graph::{DiGraph, EdgeIndex, NodeIndex};
use petgraph::visit::EdgeRef;

use super::sweep::propagate;
use super::{EdgeHeads, GraphSettings, HeadFlows, NodeId, NodeKind, Sampling, ShareEstimate};
use crate::{Error, Result};

/// A node of a circuit and what is shown of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Which node it is.
    pub id: NodeId,
    /// Position in the prompt; that of the logit, for a target.
    pub pos: u32,
    /// Vocabulary id of a token or target, -1 for a direction that is no token.
    pub token_id: Option<i64>,
    /// The text of a token or the label of a target; empty for features and errors.
    pub text: String,
    /// What the label file says about a feature.
    pub label: Option<String>,
    /// Activation of a feature.
    pub activation: Option<f32>,
    /// Cumulative share of influence (definitions 7.5): small is important.
    pub influence: Option<f64>,
    /// Weight of a target.
    pub probability: Option<f32>,
    /// Share of the whole graph's influence, where it was sampled.
    pub estimate: Option<ShareEstimate>,
}

/// A direct effect between two nodes of a circuit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Edge {
    /// The direct effect.
    pub weight: f32,
    /// `|weight|` over the sum of `|weight|` of all edges of the circuit into the same node.
    pub share: f64,
}

/// An edge on its way into a [`Circuit`], its ends as indices into the list of nodes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Link {
    /// Where the edge starts.
    pub source: usize,
    /// Where it leads.
    pub target: usize,
    /// The direct effect.
    pub weight: f32,
}

/// A [`Link`] in 12 bytes, for the tens of millions that a large file holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CompactLink {
    /// Where the edge starts.
    pub source: u32,
    /// Where it leads.
    pub target: u32,
    /// The direct effect.
    pub weight: f32,
}

/// Where a circuit comes from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CircuitMeta {
    /// The prompt's text.
    pub prompt: String,
    /// `[n_pos]`
    pub prompt_tokens: Vec<String>,
    /// The transcoder set's name.
    pub scan: String,
    /// The base model's name.
    pub model: String,
    /// Where the transcoders were opened; empty where that is not known.
    pub transcoders: String,
    /// Layers of the base model.
    pub n_layers: usize,
    /// The share of influence that nodes were pruned to, in 0..=1.
    pub node_threshold: Option<f64>,
    /// The share of edge scores that edges were pruned to, in 0..=1.
    pub edge_threshold: Option<f64>,
    /// The settings that the graph was computed with, where they are known.
    pub settings: Option<GraphSettings>,
    /// Scores of the graph before pruning.
    pub replacement_score: Option<f64>,
    /// As `replacement_score`.
    pub completeness_score: Option<f64>,
    /// The largest relative error of the row identity.
    pub row_identity_error: Option<f64>,
    /// What tells the trace from others ([`GraphMeta::fingerprint`](super::GraphMeta::fingerprint)), where it is known.
    pub trace_id: Option<String>,
    /// How the influence was sampled, where it was.
    pub sampling: Option<Sampling>,
    /// Nodes within the threshold that pruning left out for their number.
    pub n_left_out: usize,
}

/// What one node gives another, seen from one of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Neighbor {
    /// The node at the other end.
    pub node: NodeIndex,
    /// The edge to it or from it.
    pub edge: Edge,
}

/// A pruned graph: acyclic, every node once, every edge between two of its nodes.
#[derive(Debug, Clone)]
pub struct Circuit {
    /// Where the circuit comes from.
    pub meta: CircuitMeta,
    graph: DiGraph<Node, Edge>,
    by_id: HashMap<NodeId, NodeIndex>,
    /// Sources before what they feed.
    order: Vec<NodeIndex>,
    /// Set in a part of another circuit, whose shares it keeps.
    whole: Option<Whole>,
    /// Through which heads edges go, where that is known.
    heads: Option<Arc<HeadFlows>>,
}

/// What a part of a circuit keeps of the whole.
#[derive(Debug, Clone)]
struct Whole {
    /// Influence within the whole, by `NodeIndex` of the part. `[n_nodes]`
    influence: Vec<f64>,
    /// Summed weight of the whole's targets.
    weight: f64,
}

impl Circuit {
    /// Builds the circuit; node i becomes `NodeIndex` i.
    ///
    /// # Errors
    /// A node that is there twice, a link past the last node, a weight that is not finite, a cycle.
    ///
    /// # Cost
    /// Linear in nodes and links.
    pub fn new(
        meta: CircuitMeta,
        nodes: Vec<Node>,
        links: impl IntoIterator<Item = Link, IntoIter: ExactSizeIterator>,
    ) -> Result<Circuit> {
        let links = links.into_iter();
        let mut graph: DiGraph<Node, Edge> = DiGraph::with_capacity(nodes.len(), links.len());
        let mut by_id = HashMap::with_capacity(nodes.len());
        for node in nodes {
            let id = node.id;
            let index = graph.add_node(node);
            if by_id.insert(id, index).is_some() {
                return Err(Error::CircuitDuplicate { node: format!("{id:?}") });
            }
        }
        let n_nodes = graph.node_count();
        let mut abs_sums = vec![0.0f64; n_nodes];
        for (index, link) in links.enumerate() {
            let end = link.source.max(link.target);
            if end >= n_nodes {
                return Err(Error::GraphIndex { name: "end of link", index, value: end, limit: n_nodes });
            }
            if !link.weight.is_finite() {
                return Err(Error::GraphNotFinite { name: "links", index });
            }
            abs_sums[link.target] += f64::from(link.weight.abs());
            let (source, target) = (NodeIndex::new(link.source), NodeIndex::new(link.target));
            graph.add_edge(source, target, Edge { weight: link.weight, share: 0.0 });
        }
        // Only now are the sums known that weights are shares of.
        for index in (0..graph.edge_count()).map(EdgeIndex::new) {
            let abs_sum = abs_sums[graph.raw_edges()[index.index()].target().index()];
            let edge = &mut graph[index];
            edge.share = if abs_sum > 0.0 { f64::from(edge.weight.abs()) / abs_sum } else { 0.0 };
        }
        let order = order_of(&graph)?;
        Ok(Circuit { meta, graph, by_id, order, whole: None, heads: None })
    }

    /// The circuit of `nodes` (ascending, distinct) and the edges between them. Its shares stay those of the whole: of
    /// every edge, and of every node's influence.
    ///
    /// # Cost
    /// Linear in nodes and edges.
    pub fn part(&self, nodes: &[NodeIndex]) -> Circuit {
        let mut place = vec![None; self.graph.node_count()];
        let mut graph = DiGraph::new();
        let mut by_id = HashMap::with_capacity(nodes.len());
        for &node in nodes {
            let index = graph.add_node(self.graph[node].clone());
            place[node.index()] = Some(index);
            by_id.insert(self.graph[node].id, index);
        }
        for edge in self.graph.raw_edges() {
            if let (Some(source), Some(target)) = (place[edge.source().index()], place[edge.target().index()]) {
                graph.add_edge(source, target, edge.weight);
            }
        }
        let order = self.order.iter().filter_map(|node| place[node.index()]).collect();
        let influence = self.node_influence();
        let influence = nodes.iter().map(|node| influence[node.index()]).collect();
        let whole = Whole { influence, weight: self.whole_weight() };
        Circuit { meta: self.meta.clone(), graph, by_id, order, whole: Some(whole), heads: self.heads.clone() }
    }

    /// Keeps through which heads edges go; edges that are not here do no harm.
    pub fn set_heads(&mut self, heads: Option<Arc<HeadFlows>>) {
        self.heads = heads;
    }

    /// Through which heads edges go, where that is known.
    pub fn heads(&self) -> Option<&Arc<HeadFlows>> {
        self.heads.as_ref()
    }

    /// Through which heads an edge goes.
    ///
    /// # Panics
    /// For indices of another graph.
    pub fn edge_heads(&self, source: NodeIndex, target: NodeIndex) -> Option<&EdgeHeads> {
        self.heads.as_ref()?.find(self.graph[target].id, self.graph[source].id)
    }

    /// The edges as ids: target, then source.
    pub fn edge_ids(&self) -> Vec<(NodeId, NodeId)> {
        let ids = |edge: &petgraph::graph::Edge<Edge>| (self.graph[edge.target()].id, self.graph[edge.source()].id);
        self.graph.raw_edges().iter().map(ids).collect()
    }

    /// Whether this is a part of another circuit.
    pub fn is_part(&self) -> bool {
        self.whole.is_some()
    }

    /// Sum of |weight| of the inputs that a node of a part has in the whole circuit, but not here; 0 in a whole circuit.
    pub fn inputs_left_out(&self, node: NodeIndex) -> f64 {
        if !self.is_part() {
            return 0.0;
        }
        let (mut here, mut whole) = (0f64, 0f64);
        for edge in self.graph.edges_directed(node, Direction::Incoming) {
            let (weight, share) = (f64::from(edge.weight().weight.abs()), edge.weight().share);
            here += weight;
            if share > 0.0 {
                whole = whole.max(weight / share);
            }
        }
        (whole - here).max(0.0)
    }

    /// Summed weight of the targets of the whole circuit: what shares of influence are parts of.
    pub fn whole_weight(&self) -> f64 {
        self.whole.as_ref().map_or_else(|| self.target_weights().iter().sum(), |whole| whole.weight)
    }

    /// The graph itself, for petgraph's algorithms.
    pub fn graph(&self) -> &DiGraph<Node, Edge> {
        &self.graph
    }

    /// The node at `index`.
    ///
    /// # Panics
    /// For an index of another graph.
    pub fn node(&self, index: NodeIndex) -> &Node {
        &self.graph[index]
    }

    /// Where the node with this id is.
    pub fn find(&self, id: NodeId) -> Option<NodeIndex> {
        self.by_id.get(&id).copied()
    }

    /// All nodes, sources before what they feed.
    pub fn order(&self) -> &[NodeIndex] {
        &self.order
    }

    /// The targets, in their own order.
    pub fn targets(&self) -> Vec<NodeIndex> {
        let is_target = |index: &NodeIndex| self.graph[*index].id.kind() == NodeKind::Target;
        let mut targets: Vec<NodeIndex> = self.graph.node_indices().filter(is_target).collect();
        targets.sort_by_key(|&index| self.graph[index].id);
        targets
    }

    /// The tokens, and contexts in the place of tokens, by position.
    pub fn tokens(&self) -> Vec<NodeIndex> {
        let is_token = |index: &NodeIndex| self.graph[*index].id.kind().is_beginning();
        let mut tokens: Vec<NodeIndex> = self.graph.node_indices().filter(is_token).collect();
        tokens.sort_by_key(|&index| (self.graph[index].pos, self.graph[index].id));
        tokens
    }

    /// Gives every feature the label that `label_of(layer, feature)` knows for it.
    pub fn set_labels(&mut self, label_of: impl Fn(u32, u32) -> Option<String>) {
        for node in self.graph.node_weights_mut() {
            if let NodeId::Feature { layer, feature, .. } = node.id
                && let Some(label) = label_of(layer, feature)
            {
                node.label = Some(label);
            }
        }
    }

    /// Gives one node a label, or takes it away.
    ///
    /// # Panics
    /// For an index of another graph.
    pub fn set_label(&mut self, index: NodeIndex, label: Option<String>) {
        self.graph[index].label = label;
    }

    /// What feeds `index`, largest share first.
    pub fn inputs(&self, index: NodeIndex) -> Vec<Neighbor> {
        self.neighbors(index, Direction::Incoming)
    }

    /// What `index` feeds, largest share of the other node's input first.
    pub fn outputs(&self, index: NodeIndex) -> Vec<Neighbor> {
        self.neighbors(index, Direction::Outgoing)
    }

    fn neighbors(&self, index: NodeIndex, direction: Direction) -> Vec<Neighbor> {
        let mut neighbors: Vec<Neighbor> = self
            .graph
            .edges_directed(index, direction)
            .map(|edge| {
                let node = if direction == Direction::Incoming { edge.source() } else { edge.target() };
                Neighbor { node, edge: *edge.weight() }
            })
            .collect();
        neighbors.sort_by(|a, b| b.edge.share.total_cmp(&a.edge.share).then(a.node.cmp(&b.node)));
        neighbors
    }

    /// The weights of the targets: their probabilities, or 1; zero for other nodes. By `NodeIndex`. `[n_nodes]`
    pub(crate) fn target_weights(&self) -> Vec<f64> {
        let weight = |node: &Node| match node.id.kind() {
            NodeKind::Target => node.probability.map_or(1.0, f64::from),
            _ => 0.0,
        };
        self.graph.node_weights().map(weight).collect()
    }

    /// All nodes as rows for [`propagate`]: whatever a node feeds comes before it.
    pub(crate) fn rows_downwards(&self) -> impl Iterator<Item = (usize, NodeIndex)> {
        self.order.iter().rev().map(|&index| (index.index(), index))
    }

    /// The part of the targets' weight that passes through every node along the edges of this circuit:
    /// definitions 6 with the circuit's own shares, targets included. By `NodeIndex`. `[n_nodes]`
    ///
    /// A target without a probability weighs 1. In a part of a circuit it is what passes through the node in the whole.
    ///
    /// # Cost
    /// Linear in nodes and edges.
    pub fn node_influence(&self) -> Vec<f64> {
        if let Some(whole) = &self.whole {
            return whole.influence.clone();
        }
        let mut influence = self.target_weights();
        propagate(&mut influence, self.rows_downwards(), |index, passed, influence| {
            for edge in self.graph.edges_directed(index, Direction::Incoming) {
                influence[edge.source().index()] += passed * edge.weight().share;
            }
        });
        influence
    }

    /// The part of the targets' weight that passes through at least one of `members`, along the edges of this circuit.
    /// Members that feed each other count once, so that it is no more than the whole.
    ///
    /// # Cost
    /// Linear in nodes and edges.
    pub fn influence_through(&self, members: &[NodeIndex]) -> f64 {
        let mut is_member = vec![false; self.graph.node_count()];
        members.iter().for_each(|member| is_member[member.index()] = true);
        let mut influence = self.target_weights();
        let mut through = 0.0;
        propagate(&mut influence, self.rows_downwards(), |index, passed, influence| {
            if is_member[index.index()] {
                through += passed;
            } else if passed != 0.0 {
                for edge in self.graph.edges_directed(index, Direction::Incoming) {
                    influence[edge.source().index()] += passed * edge.weight().share;
                }
            }
        });
        through
    }

    /// Features and errors with the most [`Circuit::node_influence`], strongest first.
    pub fn strongest_nodes(&self, count: usize) -> Vec<(NodeIndex, f64)> {
        let influence = self.node_influence();
        let mut nodes: Vec<NodeIndex> =
            self.graph.node_indices().filter(|&index| self.graph[index].id.layer().is_some()).collect();
        nodes.sort_by(|a, b| influence[b.index()].total_cmp(&influence[a.index()]).then(a.cmp(b)));
        nodes.truncate(count);
        nodes.into_iter().map(|index| (index, influence[index.index()])).collect()
    }

    /// The edge at `index` with its ends.
    pub(super) fn edge_parts(&self, index: EdgeIndex) -> (NodeIndex, NodeIndex, Edge) {
        let (source, target) = self.graph.edge_endpoints(index).expect("edge indices come from this graph");
        (source, target, self.graph[index])
    }
}

/// All nodes, sources before what they feed.
///
/// In every graph of a model edges lead upwards, so that heights are an order; only others need a search.
fn order_of(graph: &DiGraph<Node, Edge>) -> Result<Vec<NodeIndex>> {
    let height: Vec<_> = graph.node_weights().map(|node| node.id.height()).collect();
    let leads_up = |edge: &petgraph::graph::Edge<Edge>| height[edge.source().index()] < height[edge.target().index()];
    if graph.raw_edges().iter().all(leads_up) {
        let mut order: Vec<NodeIndex> = graph.node_indices().collect();
        order.sort_by_key(|node| height[node.index()]);
        return Ok(order);
    }
    toposort(graph, None).map_err(|cycle| Error::CircuitCycle { node: format!("{:?}", graph[cycle.node_id()].id) })
}
