//! `prune`: two thresholds turn an attribution graph into a circuit (definitions 7).
//!
//! In go an [`AttributionGraph`] and its influence, out comes which nodes and edges stay ([`Pruned`]) and, from that, a
//! [`Circuit`]. No pair of nodes is sorted and no copy of the edge rows is made.

mod dead_ends;
mod links;
mod threshold;

use rayon::prelude::*;

use crate::graph::influence::{ROW_SUM_CLAMP, masked_influence};
use crate::graph::{
    AttributionGraph, Circuit, CircuitMeta, Influence, Link, Node, NodeId, NodeKind, NodeLayout, node_threshold,
};
use crate::{Error, Result};
use dead_ends::on_paths;
pub use links::{nodes_within, prune_links, strongest_within};
use threshold::ScoreHistogram;

/// The share of influence that nodes and edges have to add up to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PruneSettings {
    /// Share of all influence that kept nodes add up to, in 0..=1 (definitions 7.1).
    pub node_threshold: f64,
    /// Share of all edge scores that kept edges add up to, in 0..=1 (definitions 7.3).
    pub edge_threshold: f64,
    /// At most so many nodes stay, tokens and targets among them: those of most influence. `None`: all within the threshold.
    pub max_nodes: Option<usize>,
}

/// Nodes that are kept where nobody asks for another number: more than anybody looks at, and a file that viewers open.
const MAX_NODES: usize = 5000;

impl Default for PruneSettings {
    fn default() -> PruneSettings {
        PruneSettings { node_threshold: 0.8, edge_threshold: 0.98, max_nodes: Some(MAX_NODES) }
    }
}

impl PruneSettings {
    /// # Errors
    /// A threshold outside 0..=1.
    pub fn check(&self) -> Result<()> {
        for (name, value) in [("node_threshold", self.node_threshold), ("edge_threshold", self.edge_threshold)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(Error::Threshold { name, value });
            }
        }
        match self.max_nodes {
            Some(0) => Err(Error::Setting { name: "max_nodes", value: 0.0, range: "1.." }),
            _ => Ok(()),
        }
    }
}

/// What pruning keeps, by node index of the graph's layout.
#[derive(Debug, Clone, PartialEq)]
pub struct Pruned {
    /// `[n_nodes]`
    pub node_mask: Vec<bool>,
    /// Kept edges, by target and then source. The ends are node indices.
    pub edges: Vec<Link>,
    /// Cumulative share of influence at the node's rank. `[n_nodes]`
    pub cumulative_influence: Vec<f64>,
    /// Nodes within the threshold that were left out for their number.
    pub n_left_out: usize,
    /// What it was pruned with.
    pub settings: PruneSettings,
}

/// Rows that one task handles; fixed, so that sums do not depend on the number of threads.
const BLOCK_ROWS: usize = 512;

/// Keeps the nodes and edges that carry the given shares of influence.
///
/// At threshold 1 everything with a score above zero stays: the last index that a cumulative share can need is that of
/// the smallest positive score. (In float32 the share may reach 1 some 3e-7 of the total earlier, or never.)
///
/// # Errors
/// A threshold outside 0..=1, edge rows with NaN or infinity in them.
///
/// # Cost
/// Four passes over the rows of kept nodes; memory for the kept edges and some histograms.
pub fn prune(graph: &AttributionGraph, influence: &Influence, settings: &PruneSettings) -> Result<Pruned> {
    settings.check()?;
    let layout = graph.layout();
    if let Some(row) = influence.row_abs_sums.iter().position(|sum| !sum.is_finite()) {
        return Err(Error::GraphNotFinite { name: "edge_rows", index: row });
    }

    let (smallest, cumulative_influence) = match graph.whole_influence() {
        // Shares are of the whole influence: features that are no nodes count too.
        Some(whole) => {
            let (smallest, of_whole) = node_threshold(&whole.nodes, settings.node_threshold);
            let mut cumulative = vec![1.0; layout.n_nodes()];
            (0..layout.targets().start).for_each(|node| cumulative[node] = of_whole[graph.place_in_whole(node)]);
            (smallest, cumulative)
        }
        None => node_threshold(&influence.nodes, settings.node_threshold),
    };
    let mut node_mask: Vec<bool> = influence.nodes.iter().map(|&score| score >= smallest).collect();
    for (kept, node) in node_mask[layout.tokens().start..].iter_mut().zip(layout.tokens().start..) {
        *kept |= layout.kind_of(node) != NodeKind::Context;
    }
    let n_left_out = keep_strongest(layout, &influence.nodes, &mut node_mask, settings.max_nodes);

    let edges = strongest_edges(graph, &node_mask, settings.edge_threshold);
    let edges = drop_dead_ends(layout, &mut node_mask, edges);
    Ok(Pruned { node_mask, edges, cumulative_influence, n_left_out, settings: *settings })
}

/// Keeps no more than `max_nodes` of the kept nodes: tokens, targets, and of the others those of most influence, of equal
/// ones the first. Returns how many were left out.
fn keep_strongest(layout: &NodeLayout, influence: &[f64], node_mask: &mut [bool], max_nodes: Option<usize>) -> usize {
    let Some(most) = max_nodes else { return 0 };
    let stays = |node: usize| matches!(layout.kind_of(node), NodeKind::Token | NodeKind::Target);
    let kept = (0..node_mask.len()).filter(|&node| node_mask[node]);
    let (fixed, mut others): (Vec<usize>, Vec<usize>) = kept.partition(|&node| stays(node));
    let n_others = most.saturating_sub(fixed.len());
    if others.len() <= n_others {
        return 0;
    }
    others.sort_by(|&a, &b| influence[b].total_cmp(&influence[a]).then(a.cmp(&b)));
    let left_out = &others[n_others..];
    left_out.iter().for_each(|&node| node_mask[node] = false);
    left_out.len()
}

/// The edges between kept nodes whose scores make up the share `threshold` (definitions 7.2 and 7.3).
fn strongest_edges(graph: &AttributionGraph, node_mask: &[bool], threshold: f64) -> Vec<Link> {
    let layout = graph.layout();
    let column_mask: Vec<f32> = node_mask.iter().map(|&kept| f32::from(kept)).collect();
    let keep_row = |row: usize| node_mask[layout.node_at_row(row)];
    let weights = &graph.target_probabilities;
    let kept = masked_influence(&graph.edge_rows, layout, weights, keep_row, Some(&column_mask));
    let rows: Vec<usize> = (0..layout.n_rows()).filter(|&row| keep_row(row)).collect();

    // Edge score N'[t,s]·(influence' + w)[t] = |A[t,s]| · scale of the row.
    let scale_of = |row: usize| {
        let influence = match layout.target_of_row(row) {
            Some(target) => f64::from(weights[target]),
            None => kept.nodes[row],
        };
        influence / kept.row_abs_sums[row].max(ROW_SUM_CLAMP)
    };
    // Calls `visit` with source, weight and score of every edge of a row that scores above zero.
    let for_each_edge = |row: usize, visit: &mut dyn FnMut(usize, f32, f64)| {
        let scale = scale_of(row);
        let effects = graph.row(row);
        for range in layout.source_ranges(row) {
            for source in range {
                let score = f64::from(effects[source].abs() * column_mask[source]) * scale;
                if score > 0.0 {
                    visit(source, effects[source], score);
                }
            }
        }
    };

    let blocks: Vec<ScoreHistogram> = rows
        .par_chunks(BLOCK_ROWS)
        .map(|block| {
            let mut histogram = ScoreHistogram::new();
            block.iter().for_each(|&row| for_each_edge(row, &mut |_, _, score| histogram.add(score)));
            histogram
        })
        .collect();
    let Some(bin) = ScoreHistogram::merge(blocks).bin_at(threshold) else {
        return Vec::new();
    };
    let in_bin: Vec<Vec<f64>> = rows
        .par_chunks(BLOCK_ROWS)
        .map(|block| {
            let mut scores = Vec::new();
            let mut visit = |_, _, score| {
                if bin.contains(score) {
                    scores.push(score);
                }
            };
            block.iter().for_each(|&row| for_each_edge(row, &mut visit));
            scores
        })
        .collect();
    let smallest = bin.threshold(in_bin.concat());
    let edges: Vec<Vec<Link>> = rows
        .par_chunks(BLOCK_ROWS)
        .map(|block| {
            let mut edges = Vec::new();
            for &row in block {
                let target = layout.node_at_row(row);
                for_each_edge(row, &mut |source, weight, score| {
                    if score >= smallest {
                        edges.push(Link { source, target, weight });
                    }
                });
            }
            edges
        })
        .collect();
    edges.concat()
}

/// Drops features, errors and contexts that lead nowhere and features that nothing leads to, with their edges (definitions 7.4).
/// `edges` are sorted by target.
fn drop_dead_ends(layout: &NodeLayout, node_mask: &mut [bool], mut edges: Vec<Link>) -> Vec<Link> {
    // Targets come after all features and features are sorted by layer, so ascending targets are upwards.
    let upwards = edges.iter().map(|edge| (edge.source, edge.target));
    let stays = on_paths(layout.n_nodes(), |node| layout.kind_of(node), upwards);
    for (node, (kept, stays)) in node_mask.iter_mut().zip(stays).enumerate() {
        *kept &= stays || matches!(layout.kind_of(node), NodeKind::Token | NodeKind::Target);
    }
    edges.retain(|edge| node_mask[edge.source] && node_mask[edge.target]);
    edges
}

impl Pruned {
    /// Kept nodes.
    pub fn n_nodes(&self) -> usize {
        self.node_mask.iter().filter(|&&kept| kept).count()
    }

    /// The kept part of `graph` as a circuit, labelled with the labels that the graph carries.
    ///
    /// # Errors
    /// None for what [`prune`] returned for the same graph.
    pub fn circuit(&self, graph: &AttributionGraph) -> Result<Circuit> {
        let mut place = vec![usize::MAX; self.node_mask.len()];
        let mut nodes = Vec::new();
        for index in (0..self.node_mask.len()).filter(|&index| self.node_mask[index]) {
            place[index] = nodes.len();
            nodes.push(self.node(graph, index));
        }
        let links = self.edges.iter().map(|link| Link {
            source: place[link.source],
            target: place[link.target],
            weight: link.weight,
        });
        let meta = &graph.meta;
        let meta = CircuitMeta {
            prompt: meta.prompt.clone(),
            prompt_tokens: meta.prompt_tokens.clone(),
            scan: meta.scan.clone(),
            transcoders: meta.transcoders.clone(),
            model: meta.model.clone(),
            n_layers: meta.n_layers,
            node_threshold: Some(self.settings.node_threshold),
            edge_threshold: Some(self.settings.edge_threshold),
            settings: Some(meta.settings.clone()),
            replacement_score: Some(meta.replacement_score),
            completeness_score: Some(meta.completeness_score),
            row_identity_error: Some(meta.row_identity_error),
            trace_id: (!meta.trace_id.is_empty()).then(|| meta.trace_id.clone()),
            sampling: meta.sampling,
            n_left_out: self.n_left_out,
        };
        let mut circuit = Circuit::new(meta, nodes, links)?;
        circuit.set_heads(graph.heads().cloned());
        let labels = &graph.meta.feature_labels;
        if !labels.is_empty() {
            circuit.set_labels(|layer, feature| labels.get(&format!("{layer}_{feature}")).cloned());
        }
        Ok(circuit)
    }

    fn node(&self, graph: &AttributionGraph, index: usize) -> Node {
        let id = graph.layout().node(index).expect("masks have the length of the layout");
        let mut node = Node {
            id,
            pos: id.pos().unwrap_or_default(),
            token_id: None,
            text: String::new(),
            label: None,
            activation: graph.activation(index),
            influence: Some(self.cumulative_influence[index]),
            probability: None,
            estimate: None,
        };
        if let Some(whole) = graph.whole_influence().filter(|_| index < graph.layout().targets().start) {
            let total_weight = graph.target_probabilities.iter().map(|&weight| f64::from(weight)).sum();
            node.estimate = Some(whole.share_of(graph, index, total_weight));
        }
        match id {
            NodeId::Token { pos } => {
                node.token_id = Some(graph.input_tokens[pos as usize]);
                node.text = graph.meta.prompt_tokens[pos as usize].clone();
            }
            NodeId::Target { index } => {
                let index = index as usize;
                node.pos = graph.meta.target_positions[index];
                node.token_id = Some(graph.target_ids[index]);
                node.text = graph.meta.target_labels[index].clone();
                node.probability = Some(graph.target_probabilities[index]);
                node.influence = None;
            }
            NodeId::Context { pos } => node.text = graph.meta.prompt_tokens[pos as usize].clone(),
            NodeId::Feature { .. } | NodeId::Error { .. } => {}
        }
        node
    }
}
