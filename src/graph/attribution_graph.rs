//! The attribution graph of one prompt before pruning.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{
    DecoderDirections, EdgeRows, FeatureId, HeadFlows, Influence, NodeId, NodeLayout, Sampling, WholeInfluence,
    influence,
};
use crate::hash::{START, fnv1a};
use crate::{Error, Result};

/// The version of the raw file that this program writes and reads.
pub const RAW_FORMAT_VERSION: u32 = 1;

/// The scale below which a row counts as empty in [`AttributionGraph::row_identity_error`].
pub(crate) const ROW_IDENTITY_FLOOR: f64 = 1e-6;

/// What an attribution graph consists of. Checked by [`AttributionGraph::new`], read-only after.
#[derive(Debug)]
pub struct GraphData {
    /// Token ids, BOS included. `[n_pos]`
    pub input_tokens: Vec<i64>,
    /// Every active feature, strictly ascending. `[n_active]`
    pub active_features: Vec<FeatureId>,
    /// Activations of the active features. `[n_active]`
    pub activation_values: Vec<f32>,
    /// Indices into `active_features` of the features that are nodes, strictly ascending. `[n_selected]`
    pub selected_features: Vec<usize>,
    /// Direct effects. `[n_selected + n_targets, n_nodes]`
    pub edge_rows: EdgeRows,
    /// The part of each row's value that comes from biases (definitions 4). `[n_selected + n_targets]`
    pub bias_effect: Vec<f32>,
    /// The part of each row's value that comes from active features that are no nodes; empty where all are nodes.
    /// `[n_selected + n_targets]`, or `[0]`
    pub unselected_effect: Vec<f32>,
    /// Layer and position of the errors that are nodes, strictly ascending; `None`: those of every layer and position.
    pub error_nodes: Option<Vec<(usize, usize)>>,
    /// The part of each row's value that comes from errors that are no nodes; empty where all are nodes.
    /// `[n_selected + n_targets]`, or `[0]`
    pub unselected_error_effect: Vec<f32>,
    /// The pre-activation or target value that a row and its bias effect must add up to. `[n_selected + n_targets]`
    pub row_values: Vec<f32>,
    /// Vocabulary ids, -1 for a direction that is no token. `[n_targets]`
    pub target_ids: Vec<i64>,
    /// Weights of the targets. `[n_targets]`
    pub target_probabilities: Vec<f32>,
    /// The model's own logits at the last position. `[d_vocab]`
    pub logits: Vec<f32>,
    /// Where the graph comes from, and its scores.
    pub meta: GraphMeta,
}

/// What the metadata of a raw file says about a graph (formats.md).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GraphMeta {
    /// Version of the file's format: [`RAW_FORMAT_VERSION`].
    pub format_version: u32,
    /// The prompt's text.
    pub prompt: String,
    /// The text of every input token. `[n_pos]`
    pub prompt_tokens: Vec<String>,
    /// The text of every target: a token's own text, or a name such as `" Austin" - " Sacramento"`. `[n_targets]`
    pub target_labels: Vec<String>,
    /// `[n_targets]`
    pub target_positions: Vec<u32>,
    /// What `--model` said.
    pub model: String,
    /// The transcoder set's own name.
    pub scan: String,
    /// What `--transcoders` said; empty in files that did not note it.
    #[serde(default)]
    pub transcoders: String,
    /// Where transcoders read (definitions 2).
    pub feature_input_hook: String,
    /// Where they write (definitions 2).
    pub feature_output_hook: String,
    /// Layers of the base model.
    pub n_layers: usize,
    /// Closed positions as spans, `[first, end)`, ascending: each has a context node in the place of its token.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub closed_positions: Vec<[usize; 2]>,
    /// The settings that the graph was computed with.
    pub settings: GraphSettings,
    /// The largest relative error of the row identity.
    pub row_identity_error: f64,
    /// Replacement score before pruning, in 0..=1 (definitions 8).
    pub replacement_score: f64,
    /// Completeness before pruning, in 0..=1 (definitions 8).
    pub completeness_score: f64,
    /// How the influence was sampled; `None` where it follows from the rows of the graph.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling: Option<Sampling>,
    /// The version of the program that computed the graph.
    pub program_version: String,
    /// [`GraphMeta::fingerprint`] of what was asked for; empty in files of older programs.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub trace_id: String,
    /// Labels of selected features by `<layer>_<feature>`, where a label file was at hand.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub feature_labels: BTreeMap<String, String>,
}

/// The settings that a graph was computed with.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GraphSettings {
    /// Salient logits, at most.
    pub max_logits: usize,
    /// Salient logits were cut once their probabilities added up to this, in 0..=1.
    pub logit_prob: f64,
    /// `None`: all active features.
    pub max_features: Option<usize>,
    /// With `max_features`: a quarter of the features that were chosen between two looks at the influence.
    pub batch_size: usize,
    /// Which rows were asked for, as a text.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub rows: String,
    /// The targets that were asked for, one text each; empty: the likeliest tokens.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<String>,
    /// Position of logit targets; `None`: the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<usize>,
    /// Which positions were to be open, as a text; empty: all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub open: String,
}

impl GraphMeta {
    /// What tells one trace from another: a hash of model, transcoders, tokens and settings, 16 hexadecimal digits. The
    /// same request gives the same on every machine; two files of one trace carry the same.
    pub fn fingerprint(&self, input_tokens: &[i64]) -> String {
        let GraphMeta { model, scan, transcoders, feature_input_hook, feature_output_hook, n_layers, .. } = self;
        // How many features that leaves is found out while the prompt is traced.
        let settings = GraphSettings { max_features: None, ..self.settings.clone() };
        let asked =
            (model, scan, transcoders, feature_input_hook, feature_output_hook, n_layers, settings, input_tokens);
        // Numbers and texts always have a form in JSON.
        let asked = serde_json::to_vec(&asked).unwrap_or_default();
        format!("{:016x}", fnv1a(START, asked))
    }
}

/// What can be known of a graph's targets layer by layer and position by position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByPlace {
    /// What active features without a row give: the parts of `unselected_effect`.
    Unselected,
    /// What errors that are no nodes give: the parts of `unselected_error_effect`.
    UnselectedErrors,
    /// The edges from contexts, by the layer whose attention reads there.
    Contexts,
}

impl ByPlace {
    /// All of them.
    pub const ALL: [ByPlace; 3] = [ByPlace::Unselected, ByPlace::UnselectedErrors, ByPlace::Contexts];

    /// What the tensor in raw files is called.
    pub fn name(self) -> &'static str {
        match self {
            ByPlace::Unselected => "unselected_at",
            ByPlace::UnselectedErrors => "unselected_errors_at",
            ByPlace::Contexts => "context_at",
        }
    }
}

/// The attribution graph of one prompt: every direct effect between its nodes.
///
/// Reads like [`GraphData`]; that its parts agree was checked when it was built.
#[derive(Debug)]
pub struct AttributionGraph {
    data: GraphData,
    layout: NodeLayout,
    decoder_directions: Option<DecoderDirections>,
    whole_influence: Option<WholeInfluence>,
    by_place: [Option<Vec<f32>>; ByPlace::ALL.len()],
    heads: Option<Arc<HeadFlows>>,
}

impl Deref for AttributionGraph {
    type Target = GraphData;

    fn deref(&self) -> &GraphData {
        &self.data
    }
}

impl AttributionGraph {
    /// Checks that the parts agree, once for all that is done with them later.
    ///
    /// # Errors
    /// Lengths that disagree, unsorted or foreign features, values that are not finite (the edge rows apart: they may
    /// be a memory map that nobody wants to read twice; a NaN in them shows in the influence).
    pub fn new(data: GraphData) -> Result<AttributionGraph> {
        let (n_pos, n_active) = (data.input_tokens.len(), data.active_features.len());
        let (n_selected, n_targets) = (data.selected_features.len(), data.target_ids.len());
        let n_rows = n_selected + n_targets;
        let check = |name, expected: usize, actual: usize| {
            if expected == actual {
                Ok(())
            } else {
                Err(Error::GraphShape { name, expected: vec![expected], actual: vec![actual] })
            }
        };
        // A graph of nothing has sizes that nothing checks.
        check("input_tokens", n_pos.max(1), n_pos)?;
        check("target_ids", n_targets.max(1), n_targets)?;
        check("activation_values", n_active, data.activation_values.len())?;
        check("bias_effect", n_rows, data.bias_effect.len())?;
        if !data.unselected_effect.is_empty() {
            check("unselected_effect", n_rows, data.unselected_effect.len())?;
        }
        if !data.unselected_error_effect.is_empty() {
            check("unselected_error_effect", n_rows, data.unselected_error_effect.len())?;
        }
        check("row_values", n_rows, data.row_values.len())?;
        check("target_probabilities", n_targets, data.target_probabilities.len())?;
        check("prompt_tokens", n_pos, data.meta.prompt_tokens.len())?;
        check("target_labels", n_targets, data.meta.target_labels.len())?;
        check("target_positions", n_targets, data.meta.target_positions.len())?;
        check_finite("activation_values", &data.activation_values)?;
        check_finite("bias_effect", &data.bias_effect)?;
        check_finite("unselected_effect", &data.unselected_effect)?;
        check_finite("unselected_error_effect", &data.unselected_error_effect)?;
        check_finite("row_values", &data.row_values)?;
        check_finite("target_probabilities", &data.target_probabilities)?;
        check_finite("logits", &data.logits)?;
        if let Some(index) = data.target_probabilities.iter().position(|&p| p < 0.0) {
            return Err(Error::GraphNegative { name: "target_probabilities", index });
        }
        if let Some(index) = data.meta.target_positions.iter().position(|&pos| pos as usize >= n_pos) {
            let value = data.meta.target_positions[index] as usize;
            return Err(Error::GraphIndex { name: "position of a target", index, value, limit: n_pos });
        }

        // Before anything is made of that size: the number of layers is what a file says.
        let n_errors = match &data.error_nodes {
            Some(errors) => errors.len(),
            None => data.meta.n_layers.saturating_mul(n_pos),
        };
        let n_nodes = n_errors.saturating_add(n_rows + n_pos);
        let shape = [data.edge_rows.n_rows(), data.edge_rows.n_nodes()];
        if shape != [n_rows, n_nodes] {
            return Err(Error::GraphShape {
                name: "edge_rows",
                expected: vec![n_rows, n_nodes],
                actual: shape.to_vec(),
            });
        }

        let mut closed: Vec<usize> = Vec::new();
        for (index, &[first, end]) in data.meta.closed_positions.iter().enumerate() {
            if end > n_pos {
                return Err(Error::GraphIndex { name: "end of a closed span", index, value: end, limit: n_pos + 1 });
            }
            if first >= end || closed.last().is_some_and(|&last| last + 1 >= first) {
                return Err(Error::GraphOrder { name: "closed_positions", index });
            }
            closed.extend(first..end);
        }
        // The active features get the same checks as the nodes: a layout of them is made and let go.
        NodeLayout::new(data.active_features.clone(), data.meta.n_layers, n_pos, 0)?.with_closed(&closed)?;
        let mut features = Vec::with_capacity(n_selected);
        for (index, &active) in data.selected_features.iter().enumerate() {
            let Some(&feature) = data.active_features.get(active) else {
                return Err(Error::GraphIndex { name: "selected feature", index, value: active, limit: n_active });
            };
            features.push(feature);
        }
        let mut layout = NodeLayout::new(features, data.meta.n_layers, n_pos, n_targets)?.with_closed(&closed)?;
        if let Some(errors) = &data.error_nodes {
            layout = layout.with_errors(errors)?;
        }
        Ok(AttributionGraph {
            data,
            layout,
            decoder_directions: None,
            whole_influence: None,
            by_place: Default::default(),
            heads: None,
        })
    }

    /// Where every node is in rows and columns.
    pub fn layout(&self) -> &NodeLayout {
        &self.layout
    }

    /// Where the selected features write to, if that was kept.
    pub fn decoder_directions(&self) -> Option<&DecoderDirections> {
        self.decoder_directions.as_ref()
    }

    /// Keeps where the selected features write to.
    ///
    /// # Errors
    /// Directions of another number of features.
    pub(crate) fn set_decoder_directions(&mut self, directions: DecoderDirections) -> Result<()> {
        let (expected, actual) = (self.layout.n_features(), directions.n_features());
        if expected != actual {
            return Err(Error::GraphShape {
                name: "decoder_directions",
                expected: vec![expected, directions.d_model()],
                actual: vec![actual, directions.d_model()],
            });
        }
        self.decoder_directions = Some(directions);
        Ok(())
    }

    /// What a target gets from each layer and position, where that was kept. `[n_layers, n_pos]`
    pub fn by_place(&self, what: ByPlace, target: usize) -> Option<&[f32]> {
        let n_places = self.layout.n_layers() * self.layout.n_pos();
        self.by_place_all(what)?.get(target * n_places..(target + 1) * n_places)
    }

    /// The same of all targets. `[n_targets, n_layers, n_pos]`
    pub fn by_place_all(&self, what: ByPlace) -> Option<&[f32]> {
        self.by_place[what as usize].as_deref()
    }

    /// Keeps what the targets get from each layer and position. `[n_targets, n_layers, n_pos]`
    ///
    /// # Errors
    /// Another number of values; values that are not finite.
    pub(crate) fn set_by_place(&mut self, what: ByPlace, values: Vec<f32>) -> Result<()> {
        let (n_targets, n_layers, n_pos) = (self.layout.n_targets(), self.layout.n_layers(), self.layout.n_pos());
        let name = what.name();
        if values.len() != n_targets * n_layers * n_pos {
            let expected = vec![n_targets, n_layers, n_pos];
            return Err(Error::GraphShape { name, expected, actual: vec![values.len()] });
        }
        check_finite(name, &values)?;
        self.by_place[what as usize] = Some(values);
        Ok(())
    }

    /// Through which heads some edges go, where that was found out.
    pub fn heads(&self) -> Option<&Arc<HeadFlows>> {
        self.heads.as_ref()
    }

    /// Keeps through which heads edges go.
    ///
    /// # Errors
    /// Edges that the graph has not.
    pub fn set_heads(&mut self, heads: HeadFlows) -> Result<()> {
        for edge in heads.edges() {
            let is_target = matches!(edge.target, NodeId::Feature { .. } | NodeId::Target { .. });
            for (node, is_end) in
                [(edge.target, is_target), (edge.source, !matches!(edge.source, NodeId::Target { .. }))]
            {
                if !is_end || self.layout.index(node).is_none() {
                    return Err(Error::UnknownNode { id: node.to_string(), near: Vec::new() });
                }
            }
            if let Some(flow) = edge.strongest.iter().find(|flow| flow.head.layer as usize >= self.meta.n_layers) {
                let layer = flow.head.layer as usize;
                return Err(Error::NoSuchLayer { layer, n_layers: self.meta.n_layers });
            }
        }
        self.heads = Some(Arc::new(heads));
        Ok(())
    }

    /// Influence in the graph of all active features, where it was sampled before the nodes were chosen.
    pub fn whole_influence(&self) -> Option<&WholeInfluence> {
        self.whole_influence.as_ref()
    }

    /// Keeps the influence in the graph of all active features.
    ///
    /// # Errors
    /// That of another graph: lengths that disagree; values that are negative or not finite.
    pub fn set_whole_influence(&mut self, whole: WholeInfluence) -> Result<()> {
        whole.check(self)?;
        self.whole_influence = Some(whole);
        Ok(())
    }

    /// Influence of every node on the targets, in the whole graph where that is known.
    ///
    /// # Cost
    /// As [`influence()`]; one pass over the edge rows where the influence was sampled.
    pub fn influence(&self) -> Influence {
        match &self.whole_influence {
            Some(whole) => whole.of_nodes(self),
            None => influence(&self.edge_rows, &self.layout, &self.target_probabilities),
        }
    }

    /// Where feature, error, token or context `node` of this graph is in a [`WholeInfluence`].
    pub(crate) fn place_in_whole(&self, node: usize) -> usize {
        let (layout, n_active) = (&self.layout, self.active_features.len());
        match self.selected_features.get(node) {
            Some(&active) => active,
            None if layout.errors().contains(&node) => n_active + layout.cell_of_error(node - layout.errors().start),
            None => n_active + layout.n_layers() * layout.n_pos() + node - layout.tokens().start,
        }
    }

    /// The metadata, for the figures that are known only after the graph is built.
    pub fn meta_mut(&mut self) -> &mut GraphMeta {
        &mut self.data.meta
    }

    /// The direct effects on one feature or target. `[n_nodes]`
    ///
    /// # Panics
    /// Past the last row.
    pub fn row(&self, row: usize) -> &[f32] {
        self.edge_rows.row(row)
    }

    /// The activation of the selected feature at node `index`.
    pub fn activation(&self, index: usize) -> Option<f32> {
        self.selected_features.get(index).map(|&active| self.activation_values[active])
    }

    /// How far the rows are from adding up (definitions 4): the largest
    /// `|Σ_s A[t,s] + bias_effect[t] + unselected_effect[t] - value[t]| / max(|value[t]|, |bias_effect[t]|, Σ_s |A[t,s]|, floor)` of all rows `t`.
    /// Where it is known, the last sum is over all active features.
    ///
    /// The scale is what was summed, not what came out: a value near zero may be the difference of large effects.
    ///
    /// # Cost
    /// One pass over the edge rows, in f64.
    pub fn row_identity_error(&self) -> f64 {
        let error_of = |row: usize| {
            let effects = self.row(row);
            let (mut sum, mut abs_sum) = (0.0f64, 0.0f64);
            for range in self.layout.source_ranges(row) {
                for &effect in &effects[range] {
                    sum += f64::from(effect);
                    abs_sum += f64::from(effect.abs());
                }
            }
            let (bias, value) = (f64::from(self.bias_effect[row]), f64::from(self.row_values[row]));
            let of = |effects: &[f32]| effects.get(row).map_or(0.0, |&effect| f64::from(effect));
            let unselected = of(&self.unselected_effect) + of(&self.unselected_error_effect);
            // What was summed, kept or not.
            let whole = self.whole_influence.as_ref().map_or(0.0, |whole| f64::from(whole.row_abs_sums[row]));
            let scale =
                abs_sum.max(whole).max(value.abs()).max(bias.abs()).max(unselected.abs()).max(ROW_IDENTITY_FLOOR);
            (sum + bias + unselected - value).abs() / scale
        };
        // A NaN must not be lost, as `f64::max` would; the largest is the same in any order.
        let larger = |a: f64, b: f64| if a.is_nan() || a > b { a } else { b };
        (0..self.layout.n_rows()).into_par_iter().map(error_of).reduce(|| 0.0, larger)
    }
}

fn check_finite(name: &'static str, values: &[f32]) -> Result<()> {
    match values.iter().position(|v| !v.is_finite()) {
        Some(index) => Err(Error::GraphNotFinite { name, index }),
        None => Ok(()),
    }
}
