//! From JSON back to a circuit, also from files that circuit-tracer wrote.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;

use super::wire::{CONTEXT_TYPE, ERROR_TYPE, ESTIMATE, LOGIT_TYPE, TOKEN_TYPE, WireGraph, WireNode};
use crate::graph::{Circuit, CircuitMeta, GraphSettings, Link, Node, NodeId, Sampling, ShareEstimate};
use crate::{Error, Result};

impl WireGraph {
    /// The circuit in this file.
    ///
    /// Error nodes are told by their `feature_type`, whatever their id is. circuit-tracer writes them `0_{layer}_{pos}`,
    /// which can also be a feature of layer 0; a link that names such an id goes to the node that it can mean by layer
    /// and by its place among the links of its target, which that program sorts in node order.
    ///
    /// # Errors
    /// Nodes that cannot be told or that are there twice, links to missing nodes, cycles.
    pub fn circuit(&self) -> Result<Circuit> {
        let mut nodes: Vec<Node> = Vec::with_capacity(self.nodes.len());
        let mut by_id: HashMap<&str, Vec<usize>> = HashMap::with_capacity(self.nodes.len());
        let mut reader = NodeReader::new(&self.metadata.prompt_tokens);
        for wire in &self.nodes {
            by_id.entry(&wire.node_id).or_default().push(nodes.len());
            nodes.push(reader.node(wire)?);
        }
        let mut links: Vec<Link> = Vec::with_capacity(self.links.len());
        for wire in &self.links {
            let find = |id: &str| {
                by_id.get(id).map(Vec::as_slice).ok_or_else(|| Error::LinkToNowhere {
                    source_id: wire.source.clone(),
                    target_id: wire.target.clone(),
                    missing: id.to_owned(),
                })
            };
            let (sources, targets) = (find(&wire.source)?, find(&wire.target)?);
            let (source, target) = resolve(&nodes, sources, targets, links.last());
            links.push(Link { source, target, weight: wire.weight });
        }
        Circuit::new(self.circuit_meta(&nodes), nodes, links)
    }

    pub(super) fn circuit_meta(&self, nodes: &[Node]) -> CircuitMeta {
        let extra = &self.metadata.extra;
        let number = |group: &str, name: &str| extra.get(group)?.get(name)?.as_f64();
        let count = |name: &str| extra.get("generation_settings")?.get(name)?.as_u64().map(|n| n as usize);
        let settings = extra.get("generation_settings").map(|_| GraphSettings {
            max_logits: count("max_n_logits").unwrap_or_default(),
            logit_prob: number("generation_settings", "desired_logit_prob").unwrap_or_default(),
            max_features: count("max_feature_nodes"),
            batch_size: count("batch_size").unwrap_or_default(),
            ..GraphSettings::default()
        });
        // Logits are written at layer n_layers + 1; without one, the highest layer there is has to do.
        let logit_layer =
            self.nodes.iter().find(|node| node.feature_type == LOGIT_TYPE).and_then(|node| layer_number(&node.layer));
        let n_layers = match logit_layer {
            Some(layer) => layer.saturating_sub(1) as usize,
            None => nodes.iter().filter_map(|node| node.id.layer()).max().map_or(0, |layer| layer as usize + 1),
        };
        CircuitMeta {
            prompt: self.metadata.prompt.clone(),
            prompt_tokens: self.metadata.prompt_tokens.clone(),
            scan: self.metadata.scan.as_ref().and_then(Value::as_str).unwrap_or_default().to_owned(),
            model: extra.get("model").and_then(Value::as_str).unwrap_or_default().to_owned(),
            transcoders: extra.get("transcoders").and_then(Value::as_str).unwrap_or_default().to_owned(),
            n_layers,
            node_threshold: self.metadata.node_threshold.or_else(|| number("pruning_settings", "node_threshold")),
            edge_threshold: number("pruning_settings", "edge_threshold"),
            settings,
            replacement_score: number("scores", "replacement_score"),
            completeness_score: number("scores", "completeness_score"),
            row_identity_error: number("scores", "row_identity_error"),
            n_left_out: number("pruning_settings", "n_nodes_left_out").unwrap_or_default() as usize,
            trace_id: extra.get("trace_id").and_then(Value::as_str).map(str::to_owned),
            // What another program writes there is its own affair.
            sampling: extra.get("sampling").and_then(|value| Sampling::deserialize(value).ok()),
        }
    }
}

/// Layers and positions that a graph may have; more positions where its prompt has more.
const MAX_LAYERS: u64 = 1000;
const MAX_POSITIONS: u32 = 10_000;

/// A layer as a number or as text.
fn layer_number(layer: &Value) -> Option<u64> {
    layer.as_str().map_or_else(|| layer.as_u64(), |text| text.parse().ok())
}

/// Reads nodes one after the other; targets are numbered as they come.
pub(super) struct NodeReader<'a> {
    prompt_tokens: &'a [String],
    n_targets: u32,
}

impl<'a> NodeReader<'a> {
    pub(super) fn new(prompt_tokens: &'a [String]) -> NodeReader<'a> {
        NodeReader { prompt_tokens, n_targets: 0 }
    }

    pub(super) fn node(&mut self, wire: &WireNode) -> Result<Node> {
        let unknown = |reason: &str| Error::WireNode { id: wire.node_id.clone(), reason: reason.to_owned() };
        let pos = wire.ctx_idx;
        // Tables of layers and positions are made from these.
        if pos >= MAX_POSITIONS && pos as usize >= self.prompt_tokens.len() {
            return Err(unknown(&format!("its `ctx_idx` is {pos}, past the prompt and past {MAX_POSITIONS}")));
        }
        if layer_number(&wire.layer).is_some_and(|layer| layer > MAX_LAYERS) {
            return Err(unknown(&format!("its `layer` is {}, past {MAX_LAYERS}", wire.layer)));
        }
        let layer = || match &wire.layer {
            Value::String(text) => text.parse::<u32>().map_err(|_| unknown("its `layer` is no number")),
            Value::Number(number) => number
                .as_u64()
                .and_then(|n| u32::try_from(n).ok())
                .ok_or_else(|| unknown("its `layer` is out of range")),
            _ => Err(unknown("its `layer` is no number")),
        };
        let mut parts = wire.node_id.split('_').skip(1);
        let mut number = || parts.next().and_then(|part| part.parse::<i64>().ok());
        let mut token_id = None;
        let mut text = String::new();
        let id = match wire.feature_type.as_str() {
            ERROR_TYPE => NodeId::Error { layer: layer()?, pos },
            TOKEN_TYPE => {
                token_id = number();
                text = self.prompt_tokens.get(pos as usize).cloned().unwrap_or_default();
                NodeId::Token { pos }
            }
            CONTEXT_TYPE => {
                text = self.prompt_tokens.get(pos as usize).cloned().unwrap_or_default();
                NodeId::Context { pos }
            }
            LOGIT_TYPE => {
                token_id = number().or(wire.feature).map(|id| id.max(-1));
                text = logit_text(&wire.clerp).to_owned();
                self.n_targets += 1;
                NodeId::Target { index: self.n_targets - 1 }
            }
            _ => {
                let feature = number().and_then(|n| u32::try_from(n).ok());
                let feature = feature.ok_or_else(|| unknown("it is not {layer}_{feature}_{position}"))?;
                NodeId::Feature { layer: layer()?, pos, feature }
            }
        };
        let is_logit = matches!(id, NodeId::Target { .. });
        // JSON has larger numbers than f32, which become infinite.
        if wire.activation.is_some_and(|activation| !activation.is_finite()) {
            return Err(unknown("its `activation` is outside the range of f32"));
        }
        if wire.token_prob.is_some_and(|probability| !(probability.is_finite() && probability >= 0.0)) {
            return Err(unknown("its `token_prob` is negative or outside the range of f32"));
        }
        Ok(Node {
            id,
            pos,
            token_id,
            text,
            label: (!is_logit && !wire.clerp.is_empty()).then(|| wire.clerp.clone()),
            activation: wire.activation,
            influence: wire.influence.filter(|_| !is_logit),
            probability: wire.token_prob.filter(|_| is_logit),
            estimate: wire.extra.get(ESTIMATE).and_then(|value| ShareEstimate::deserialize(value).ok()),
        })
    }
}

/// The token in `Output "tok" (p=0.123)`; the whole text where it is anything else.
fn logit_text(clerp: &str) -> &str {
    let inner = clerp.strip_prefix("Output \"").and_then(|rest| rest.rsplit_once("\" (p=")).map(|(text, _)| text);
    inner.unwrap_or(clerp)
}

/// The ends of a link whose ids may be those of several nodes, `before` being the link before it. Neither list is empty.
pub(super) fn resolve(nodes: &[Node], sources: &[usize], targets: &[usize], before: Option<&Link>) -> (usize, usize) {
    // Nothing leads to an error node.
    let target = *targets.iter().find(|&&t| !matches!(nodes[t].id, NodeId::Error { .. })).unwrap_or(&targets[0]);
    let can_feed = |&&source: &&usize| match (nodes[source].id.layer(), nodes[target].id.layer()) {
        (Some(source), Some(target)) => source < target,
        _ => true,
    };
    let mut possible: Vec<usize> = sources.iter().filter(can_feed).copied().collect();
    possible.sort_by_key(|&source| nodes[source].id);
    let source = match (possible.as_slice(), before.filter(|before| before.target == target)) {
        ([], _) => sources[0],
        // In node order the features come first; once they are passed, only the error can be meant.
        ([feature, .., error], Some(before)) if nodes[before.source].id >= nodes[*feature].id => *error,
        ([first, ..], _) => *first,
    };
    (source, target)
}
