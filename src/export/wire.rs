//! The pruned graph as JSON: the format of the published schema, which the field's viewers read (formats.md).

use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::path::Path;

use petgraph::visit::EdgeRef;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::link_heads::link_heads;
use super::replace::replace_file;
use crate::graph::{Circuit, Node, NodeId};
use crate::input::read_json;
use crate::{Error, Result};

pub(super) const FEATURE_TYPE: &str = "cross layer transcoder";
pub(super) const ERROR_TYPE: &str = "mlp reconstruction error";
pub(super) const TOKEN_TYPE: &str = "embedding";
pub(super) const CONTEXT_TYPE: &str = "context";
pub(super) const LOGIT_TYPE: &str = "logit";

/// The key of a node's [`ShareEstimate`](crate::graph::ShareEstimate).
pub(super) const ESTIMATE: &str = "influence_estimate";

/// The `schema_version` that is written; files without one are read too.
const SCHEMA_VERSION: u32 = 1;

/// A whole file. Fields that this program does not know are kept in `extra` at every level.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WireGraph {
    /// Where the graph comes from.
    pub metadata: WireMetadata,
    /// What the viewer shows first: `pinnedIds`, `supernodes`, `clickedId` and the like.
    #[serde(rename = "qParams", default)]
    pub q_params: Map<String, Value>,
    /// Every node once.
    pub nodes: Vec<WireNode>,
    /// Edges between the nodes above.
    pub links: Vec<WireLink>,
    /// Other keys of the file.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

/// The `metadata` of a file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct WireMetadata {
    /// The graph's short name, which viewers list.
    pub slug: String,
    /// `null` in some files that circuit-tracer wrote.
    #[serde(default)]
    pub scan: Option<Value>,
    /// The text of every token. `[n_pos]`
    pub prompt_tokens: Vec<String>,
    /// The prompt's text.
    pub prompt: String,
    /// The share of influence that nodes were pruned to, in 0..=1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_threshold: Option<f64>,
    /// Version of the schema, a number or a text; 1 is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema_version: Option<Value>,
    /// `info`, `generation_settings`, `pruning_settings`, our `scores`, and what others write.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

/// A node of a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WireNode {
    /// Its id ([`node_id_text`]), by which links name it.
    pub node_id: String,
    /// Cantor pairing of (layer, feature) for features, -1 for errors, position for tokens and contexts, vocabulary id for logits.
    pub feature: Option<i64>,
    /// A string here; some programs write a number.
    pub layer: Value,
    /// Position in the prompt.
    pub ctx_idx: u32,
    /// What it stands for: `cross layer transcoder`, `mlp reconstruction error`, `embedding`, `context` or `logit`.
    pub feature_type: String,
    /// Probability of a target's token; 0 for other nodes.
    #[serde(default)]
    pub token_prob: Option<f32>,
    /// Whether it is the first target.
    #[serde(default)]
    pub is_target_logit: bool,
    /// Always 0 here; the viewers expect it.
    #[serde(default)]
    pub run_idx: u32,
    /// Always 0 here; the viewers expect it.
    #[serde(default)]
    pub reverse_ctx_idx: u32,
    /// The viewers' own id.
    #[serde(rename = "jsNodeId", default)]
    pub js_node_id: String,
    /// The label.
    #[serde(default)]
    pub clerp: String,
    /// Cumulative share of influence (definitions 7.5): small is important.
    #[serde(default)]
    pub influence: Option<f64>,
    /// Activation of a feature.
    #[serde(default)]
    pub activation: Option<f32>,
    /// Other keys of the node.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

/// An edge of a file, its ends by [`WireNode::node_id`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WireLink {
    /// Where the edge starts.
    pub source: String,
    /// Where it leads.
    pub target: String,
    /// The direct effect.
    pub weight: f32,
    /// Other keys of the link.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

/// One number for a (layer, feature): `(x+y)(x+y+1)/2 + y`. Wraps past i64, where no real feature is.
pub(crate) fn cantor_pairing(layer: u32, feature: u32) -> i64 {
    let (x, y) = (u128::from(layer), u128::from(feature));
    ((x + y) * (x + y + 1) / 2 + y) as i64
}

/// The id of a node in JSON and on the command line.
///
/// A direction that is no token has -1 for a vocabulary id, so that several of them are told apart by their place: the
/// second target, if it is one, is -2.
pub fn node_id_text(n_layers: usize, node: &Node) -> String {
    match node.id {
        NodeId::Feature { layer, pos, feature } => format!("{layer}_{feature}_{pos}"),
        NodeId::Error { layer, pos } => format!("{layer}_-1_{pos}"),
        NodeId::Token { pos } => format!("E_{}_{pos}", node.token_id.unwrap_or(-1)),
        NodeId::Context { pos } => format!("C_{pos}"),
        NodeId::Target { index } => format!("{}_{}_{}", n_layers + 1, target_number(node, index), node.pos),
    }
}

fn target_number(node: &Node, index: u32) -> i64 {
    match node.token_id {
        Some(id) if id >= 0 => id,
        _ => -1 - i64::from(index),
    }
}

impl WireNode {
    fn new(n_layers: usize, node: &Node) -> WireNode {
        let mut wire = WireNode {
            node_id: node_id_text(n_layers, node),
            feature: Some(-1),
            layer: Value::String(String::new()),
            ctx_idx: node.pos,
            feature_type: String::new(),
            token_prob: Some(node.probability.unwrap_or(0.0)),
            is_target_logit: false,
            run_idx: 0,
            reverse_ctx_idx: 0,
            js_node_id: String::new(),
            clerp: node.label.clone().unwrap_or_default(),
            influence: node.influence,
            activation: node.activation,
            extra: BTreeMap::new(),
        };
        let (layer, feature_type) = match node.id {
            NodeId::Feature { layer, feature, .. } => {
                wire.feature = Some(cantor_pairing(layer, feature));
                wire.js_node_id = format!("{layer}_{feature}-0");
                (layer.to_string(), FEATURE_TYPE)
            }
            NodeId::Error { layer, pos } => {
                wire.js_node_id = format!("{layer}_-1-{pos}");
                (layer.to_string(), ERROR_TYPE)
            }
            NodeId::Token { pos } => {
                wire.feature = Some(i64::from(pos));
                wire.js_node_id = format!("E_{}-{pos}", node.token_id.unwrap_or(-1));
                ("E".to_owned(), TOKEN_TYPE)
            }
            NodeId::Context { pos } => {
                wire.feature = Some(i64::from(pos));
                wire.js_node_id = format!("C-{pos}");
                ("E".to_owned(), CONTEXT_TYPE)
            }
            NodeId::Target { index } => {
                let number = target_number(node, index);
                wire.feature = Some(number);
                wire.js_node_id = format!("L_{number}-{}", node.pos);
                wire.is_target_logit = index == 0;
                wire.clerp = format!("Output \"{}\" (p={:.3})", node.text, node.probability.unwrap_or(0.0));
                ((n_layers + 1).to_string(), LOGIT_TYPE)
            }
        };
        if let Some(estimate) = &node.estimate {
            wire.extra.insert(ESTIMATE.to_owned(), json!(estimate));
        }
        wire.layer = Value::String(layer);
        wire.feature_type = feature_type.to_owned();
        wire
    }
}

impl WireGraph {
    /// A circuit as JSON: nodes in the circuit's order, links by target and then source.
    ///
    /// # Errors
    /// Two nodes that would have the same id: the same token twice among the targets of a position.
    pub fn new(circuit: &Circuit, slug: &str) -> Result<WireGraph> {
        let n_layers = circuit.meta.n_layers;
        let graph = circuit.graph();
        let nodes: Vec<WireNode> = graph.node_weights().map(|node| WireNode::new(n_layers, node)).collect();
        let mut ids = HashSet::with_capacity(nodes.len());
        if let Some(twice) = nodes.iter().find(|node| !ids.insert(node.node_id.as_str())) {
            return Err(Error::CircuitDuplicate { node: format!("`{}`", twice.node_id) });
        }
        let links = graph.edge_references().map(|edge| WireLink {
            source: nodes[edge.source().index()].node_id.clone(),
            target: nodes[edge.target().index()].node_id.clone(),
            weight: edge.weight().weight,
            extra: circuit.edge_heads(edge.source(), edge.target()).map(link_heads).unwrap_or_default(),
        });
        let links = links.collect();
        let q_params = json!({"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""});
        let Value::Object(q_params) = q_params else { unreachable!("the literal above is an object") };
        Ok(WireGraph { metadata: metadata(circuit, slug), q_params, nodes, links, extra: BTreeMap::new() })
    }
}

impl WireGraph {
    /// Notes what the file was pruned with.
    pub(crate) fn set_thresholds(&mut self, node_threshold: f64, edge_threshold: f64) {
        self.metadata.node_threshold = Some(node_threshold);
        let pruning = self.metadata.extra.entry("pruning_settings".to_owned()).or_insert_with(|| json!({}));
        if let Value::Object(pruning) = pruning {
            pruning.insert("node_threshold".to_owned(), json!(node_threshold));
            pruning.insert("edge_threshold".to_owned(), json!(edge_threshold));
        }
    }

    /// Notes how many nodes were left out for their number.
    pub(crate) fn set_left_out(&mut self, n_nodes: usize) {
        let pruning = self.metadata.extra.entry("pruning_settings".to_owned()).or_insert_with(|| json!({}));
        if let Value::Object(pruning) = pruning {
            pruning.insert("n_nodes_left_out".to_owned(), json!(n_nodes));
        }
    }

    /// Notes how much the pinned nodes explain, beside the scores of the whole graph.
    pub(crate) fn set_subgraph_scores(&mut self, scores: Value) {
        let all = self.metadata.extra.entry("scores".to_owned()).or_insert_with(|| json!({}));
        if let Value::Object(all) = all {
            all.insert("pinned_subgraph".to_owned(), scores);
        }
    }
}

fn metadata(circuit: &Circuit, slug: &str) -> WireMetadata {
    let meta = &circuit.meta;
    let mut extra = BTreeMap::new();
    let generator = json!({"name": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION")});
    extra.insert("info".to_owned(), json!({ "generator": generator }));
    if let Some(settings) = &meta.settings {
        let mut generation = json!({
            "max_n_logits": settings.max_logits,
            "desired_logit_prob": settings.logit_prob,
            "batch_size": settings.batch_size,
        });
        // The schema wants a number: absent means all features.
        if let Some(max_features) = settings.max_features {
            generation["max_feature_nodes"] = json!(max_features);
        }
        extra.insert("generation_settings".to_owned(), generation);
    }
    let mut pruning = Map::new();
    let thresholds = [("node_threshold", meta.node_threshold), ("edge_threshold", meta.edge_threshold)];
    pruning.extend(thresholds.into_iter().filter_map(|(name, value)| Some((name.to_owned(), json!(value?)))));
    if meta.n_left_out > 0 {
        pruning.insert("n_nodes_left_out".to_owned(), json!(meta.n_left_out));
    }
    if !pruning.is_empty() {
        extra.insert("pruning_settings".to_owned(), Value::Object(pruning));
    }
    let scores = [
        ("replacement_score", meta.replacement_score),
        ("completeness_score", meta.completeness_score),
        ("row_identity_error", meta.row_identity_error),
    ];
    let scores: Map<String, Value> =
        scores.into_iter().filter_map(|(name, value)| Some((name.to_owned(), json!(value?)))).collect();
    if !scores.is_empty() {
        extra.insert("scores".to_owned(), Value::Object(scores));
    }
    if let Some(sampling) = &meta.sampling {
        extra.insert("sampling".to_owned(), json!(sampling));
    }
    if !meta.model.is_empty() {
        extra.insert("model".to_owned(), json!(meta.model));
    }
    if !meta.transcoders.is_empty() {
        extra.insert("transcoders".to_owned(), json!(meta.transcoders));
    }
    // circuit-tracer's page wants it; it names the parts of a set that was put together, which ours are not.
    extra.insert("transcoder_list".to_owned(), json!([]));
    if let Some(trace_id) = &meta.trace_id {
        extra.insert("trace_id".to_owned(), json!(trace_id));
    }
    WireMetadata {
        slug: slug.to_owned(),
        scan: Some(Value::String(meta.scan.clone())),
        prompt_tokens: meta.prompt_tokens.clone(),
        prompt: meta.prompt.clone(),
        node_threshold: meta.node_threshold,
        schema_version: Some(json!(SCHEMA_VERSION)),
        extra,
    }
}

/// Reads a JSON graph of ours or of circuit-tracer's.
///
/// # Errors
/// A file that cannot be read or that is not such a graph.
pub fn read_wire(path: &Path) -> Result<WireGraph> {
    parse_wire(&read_json(path, "graph JSON")?, &path.display().to_string())
}

/// Parses the bytes of a JSON graph; `file` names it in errors.
///
/// # Errors
/// As [`read_wire`].
pub fn parse_wire(bytes: &[u8], file: &str) -> Result<WireGraph> {
    serde_json::from_slice(bytes).map_err(|e| Error::Damaged {
        file: file.to_owned(),
        format: "graph JSON",
        reason: e.to_string(),
    })
}

/// Writes `graph` to `path`, all of it or nothing. The same graph gives the same bytes.
///
/// # Errors
/// The file cannot be written.
pub fn write_wire(graph: &WireGraph, path: &Path) -> Result<()> {
    replace_file(path, |writer| {
        serde_json::to_writer(&mut *writer, graph)?;
        writer.write_all(b"\n")
    })
}

#[cfg(test)]
mod tests {
    use super::cantor_pairing;

    #[test]
    fn cantor_pairing_is_that_of_the_format() {
        assert_eq!(cantor_pairing(0, 82), 3485);
        assert_eq!(cantor_pairing(2, 3), 18);
    }
}
