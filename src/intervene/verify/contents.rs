//! Everything that a raw graph holds, computed again and compared: every tensor, every key of the metadata.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Serialize;

use super::{contents_heads, feature_ids};
use crate::error::Result;
use crate::graph::{
    AttributionGraph, ByPlace, FeatureId, GraphData, GraphMeta, NodeId, RAW_FORMAT_VERSION, Sampling, Scores,
    WholeInfluence, influence, scores,
};
use crate::intervene::original::Original;
use crate::replacement::{LinearModel, Replacement};
use crate::transcoder::ActivationFunction;

/// Part of a value that may differ: the same computation in f32 on another machine.
pub(super) const RTOL: f64 = 1e-3;
/// Part of what a value was summed from, of all the sum's terms or of the largest value beside it, that may be added to
/// that: differences of large terms round as the terms do.
pub(super) const SCALE_TOL: f64 = 1e-5;
/// As [`SCALE_TOL`], of logits; the same as that of the field's own comparisons.
const LOGIT_TOL: f64 = 1e-4;
/// Two steps of f16 at a component of usual size.
const DIRECTION_ATOL: f64 = 2e-4;
/// Two steps of f16.
const DIRECTION_RTOL: f64 = 2e-3;
/// Scores are sums in f64 of what the file holds, in any order.
const SCORE_TOL: f64 = 1e-6;
/// As [`SCORE_TOL`], of scores that are estimated from rows in f32.
const SAMPLED_SCORE_TOL: f64 = 1e-4;

/// What a file holds beside what its model gives.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ContentsCheck {
    /// Every tensor.
    pub tensors: Vec<PartCheck>,
    /// Every key of the metadata.
    pub metadata: Vec<PartCheck>,
    /// Whether every one of them is what the model gives.
    pub passed: bool,
}

/// One tensor, or one key of the metadata.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PartCheck {
    /// What the file calls it.
    pub name: String,
    /// Values that were compared.
    pub n_values: usize,
    /// Those that differ by more than rounding.
    pub n_different: usize,
    /// The one that differs most.
    pub difference: Option<Difference>,
}

/// A value that is not what the model gives.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Difference {
    /// Index in the tensor, and what stands there.
    pub at: String,
    /// What the file says.
    pub in_graph: String,
    /// What was computed here.
    pub here: String,
}

impl ContentsCheck {
    /// Adds what a file holds beyond what was compared: nobody has looked at it, so it is no part of a graph that holds.
    /// `tensors` and `keys` are all names in the file.
    pub fn require(&mut self, tensors: &[String], keys: &[String]) {
        for (checks, names) in [(&mut self.tensors, tensors), (&mut self.metadata, keys)] {
            let unknown = names.iter().filter(|name| !checks.iter().any(|check| check.name == **name));
            let unknown: Vec<PartCheck> = unknown.map(|name| PartCheck::not_compared(name)).collect();
            checks.extend(unknown);
        }
        self.judge();
    }

    /// The parts that differ.
    pub fn different(&self) -> impl Iterator<Item = &PartCheck> {
        self.tensors.iter().chain(&self.metadata).filter(|check| check.n_different > 0)
    }

    fn judge(&mut self) {
        let n_different = self.different().count();
        self.passed = n_different == 0;
    }
}

impl PartCheck {
    fn not_compared(name: &str) -> PartCheck {
        let difference =
            Difference { at: String::new(), in_graph: "there".into(), here: "not known to this version".into() };
        PartCheck { name: name.to_owned(), n_values: 0, n_different: 1, difference: Some(difference) }
    }

    fn key(name: &str, holds: bool, at: String, in_graph: String, here: String) -> PartCheck {
        let difference = (!holds).then_some(Difference { at, in_graph, here });
        PartCheck { name: name.to_owned(), n_values: 1, n_different: usize::from(!holds), difference }
    }
}

/// Compares values one after the other and remembers the worst.
pub(super) struct Tally {
    pub(super) check: PartCheck,
    /// The largest difference, as a multiple of what may be.
    worst: f64,
}

impl Tally {
    pub(super) fn new(name: &str) -> Tally {
        Tally { check: PartCheck { name: name.to_owned(), ..PartCheck::default() }, worst: 1.0 }
    }

    pub(super) fn add<T: Copy + Into<f64> + ToString>(
        &mut self,
        in_graph: T,
        here: T,
        tolerance: f64,
        at: impl FnOnce() -> String,
    ) {
        self.check.n_values += 1;
        let excess = (in_graph.into() - here.into()).abs() / tolerance.max(f64::MIN_POSITIVE);
        // A NaN is within nothing.
        if excess <= 1.0 {
            return;
        }
        self.check.n_different += 1;
        if excess > self.worst || excess.is_nan() || self.check.difference.is_none() {
            self.worst = excess;
            let (in_graph, here) = (in_graph.to_string(), here.to_string());
            self.check.difference = Some(Difference { at: at(), in_graph, here });
        }
    }

    pub(super) fn differs(&mut self, at: String, in_graph: String, here: String) {
        self.check.n_values += 1;
        self.check.n_different += 1;
        self.check.difference.get_or_insert(Difference { at, in_graph, here });
    }

    /// Lists of whole numbers, which have no rounding.
    fn exact<T: PartialEq + ToString>(name: &str, in_graph: &[T], here: &[T]) -> PartCheck {
        let mut tally = Tally::new(name);
        tally.check.n_values = in_graph.len();
        if in_graph.len() != here.len() {
            tally.differs("their number".into(), in_graph.len().to_string(), here.len().to_string());
        }
        for (i, (a, b)) in in_graph.iter().zip(here).enumerate().filter(|(_, (a, b))| a != b) {
            tally.differs(format!("[{i}]"), a.to_string(), b.to_string());
        }
        tally.check
    }
}

/// Compares a graph with the one that was computed `again` from its own tokens, settings and features.
///
/// # Errors
/// Those of reading and of the tensor operations.
///
/// # Cost
/// A pass over the edge rows.
pub fn check(
    original: &Original,
    linear: &LinearModel,
    graph: &AttributionGraph,
    again: &AttributionGraph,
) -> Result<ContentsCheck> {
    let here = feature_ids(original);
    let others = differing(&graph.active_features, &here);
    let rows = Rows::new(graph, again, &others);
    // Taken apart, so that a tensor that is new cannot be forgotten.
    let GraphData {
        input_tokens,
        active_features: _,
        activation_values: _,
        selected_features: _,
        edge_rows: _,
        bias_effect,
        unselected_effect,
        error_nodes,
        unselected_error_effect,
        row_values,
        target_ids,
        target_probabilities,
        logits,
        meta,
    } = &**graph;
    let mut tensors = vec![Tally::exact("input_tokens", input_tokens, &again.input_tokens)];
    tensors.extend(features(original, linear, graph, &here)?);
    tensors.push(selection(graph));
    tensors.push(Tally::exact("target_ids", target_ids, &again.target_ids));
    tensors.push(rows.column("bias_effect", bias_effect, &again.bias_effect));
    if !unselected_effect.is_empty() || !again.unselected_effect.is_empty() {
        let mut check = PartCheck { name: "unselected_effect".into(), ..PartCheck::default() };
        // Where other features are active, others are without a row.
        if others.is_empty() {
            let zeros = vec![0.0; row_values.len().max(again.row_values.len())];
            let or_zeros = |values: &'_ [f32]| if values.is_empty() { zeros.clone() } else { values.to_vec() };
            check = rows.column("unselected_effect", &or_zeros(unselected_effect), &or_zeros(&again.unselected_effect));
        }
        if !unselected_effect.is_empty() || check.n_different > 0 {
            tensors.push(check);
        }
    }
    if let Some(errors) = error_nodes {
        let places = |errors: &[(usize, usize)]| errors.iter().flat_map(|&(l, p)| [l as i64, p as i64]).collect();
        let (in_graph, here): (Vec<i64>, Vec<i64>) =
            (places(errors), again.error_nodes.as_deref().map(places).unwrap_or_default());
        // Where other features are active, other errors are among the strongest.
        tensors.push(match others.is_empty() {
            true => Tally::exact("error_nodes", &in_graph, &here),
            false => PartCheck { name: "error_nodes".into(), ..PartCheck::default() },
        });
    }
    if !unselected_error_effect.is_empty() {
        let here = &again.unselected_error_effect;
        tensors.push(match others.is_empty() && here.len() >= again.layout().n_rows() {
            true => rows.column("unselected_error_effect", unselected_error_effect, here),
            false if others.is_empty() => Tally::exact("unselected_error_effect", unselected_error_effect, here),
            false => PartCheck { name: "unselected_error_effect".into(), ..PartCheck::default() },
        });
    }
    tensors.push(rows.column("row_values", row_values, &again.row_values));
    let mut probabilities = Tally::new("target_probabilities");
    for (i, (&a, &b)) in target_probabilities.iter().zip(&again.target_probabilities).enumerate() {
        let at = || format!("[{i}] {:?}", meta.target_labels[i]);
        probabilities.add(a, b, RTOL * f64::from(b.abs()) + SCALE_TOL, at);
    }
    tensors.push(probabilities.check);
    let mut logits_tally = Tally::new("logits");
    let largest = again.logits.iter().fold(1f32, |m, l| m.max(l.abs()));
    for (token, (&a, &b)) in logits.iter().zip(&again.logits).enumerate() {
        logits_tally.add(a, b, LOGIT_TOL * f64::from(largest), || format!("[{token}]"));
    }
    tensors.push(logits_tally.check);
    tensors.push(rows.edges());
    for what in ByPlace::ALL.into_iter().filter(|&what| graph.by_place_all(what).is_some()) {
        let mut tally = Tally::new(what.name());
        // Where other features are active, others are without a row.
        if others.is_empty() {
            let len = |graph: &AttributionGraph| graph.by_place(what, 0).map_or(0, <[f32]>::len);
            match len(graph) == len(again) {
                true => rows.places(&mut tally, what),
                false => tally.differs("their number".into(), len(graph).to_string(), len(again).to_string()),
            }
        }
        tensors.push(tally.check);
    }
    if let (Some(in_graph), Some(here)) = (graph.decoder_directions(), again.decoder_directions()) {
        let mut tally = Tally::new("decoder_directions");
        for (row, row_again) in rows.pairs.iter().copied().filter(|&(row, _)| row < in_graph.n_features()) {
            for (i, (&a, &b)) in in_graph.row(row).iter().zip(&here.row(row_again)).enumerate() {
                let tolerance = DIRECTION_ATOL + DIRECTION_RTOL * f64::from(b.abs());
                tally.add(a, b, tolerance, || format!("[{row}, {i}] {}", describe(graph, row)));
            }
        }
        if in_graph.d_model() != here.d_model() {
            tally.differs("their width".into(), in_graph.d_model().to_string(), here.d_model().to_string());
        }
        tensors.push(tally.check);
    }
    if let Some(in_graph) = graph.whole_influence() {
        let WholeInfluence { nodes, uncertainty, row_abs_sums } = in_graph;
        match again.whole_influence() {
            Some(here) if others.is_empty() => {
                tensors.push(influences("influence", nodes, &here.nodes));
                tensors.push(influences("influence_uncertainty", uncertainty, &here.uncertainty));
                tensors.push(rows.column("row_abs_sums", row_abs_sums, &here.row_abs_sums));
            }
            // Other features are active: another sample, whose estimates stand beside other nodes.
            _ => tensors.extend(
                ["influence", "influence_uncertainty", "row_abs_sums"]
                    .map(|name| PartCheck { name: name.into(), ..PartCheck::default() }),
            ),
        }
    }
    if let Some(in_graph) = graph.heads() {
        tensors.extend(contents_heads::check(in_graph, again));
    }
    let metadata = metadata(original.replacement, graph, again);
    let mut found = ContentsCheck { tensors, metadata, passed: false };
    found.judge();
    Ok(found)
}

/// Two lists of influence, in the units of their sum.
fn influences<T: Copy + Into<f64> + ToString>(name: &str, in_graph: &[T], here: &[T]) -> PartCheck {
    let mut tally = Tally::new(name);
    let largest = here.iter().fold(0f64, |largest, &value| largest.max(value.into()));
    for (i, (&a, &b)) in in_graph.iter().zip(here).enumerate() {
        tally.add(a, b, RTOL * b.into().abs() + SCALE_TOL * largest, || format!("[{i}]"));
    }
    tally.check
}

/// Features that are active in one of two sorted lists alone.
pub(super) fn differing(in_graph: &[FeatureId], here: &[FeatureId]) -> Vec<FeatureId> {
    let (a, b): (BTreeSet<_>, BTreeSet<_>) = (in_graph.iter().copied().collect(), here.iter().copied().collect());
    a.symmetric_difference(&b).copied().collect()
}

/// What a node index stands for, in words.
fn describe(graph: &AttributionGraph, index: usize) -> String {
    match graph.layout().node(index) {
        Some(NodeId::Feature { layer, pos, feature }) => format!("(feature {layer}_{feature}_{pos})"),
        Some(NodeId::Error { layer, pos }) => format!("(error {layer}_-1_{pos})"),
        Some(NodeId::Token { pos }) => format!("(token at {pos})"),
        Some(NodeId::Context { pos }) => format!("(context at {pos})"),
        Some(NodeId::Target { index }) => format!("(target {:?})", graph.meta.target_labels[index as usize]),
        None => String::new(),
    }
}

/// `active_features` and `activation_values`. A feature that is active in one of the two runs alone must be at the edge:
/// its pre-activation here is what the file says, and what decides is within rounding.
fn features(
    original: &Original,
    linear: &LinearModel,
    graph: &AttributionGraph,
    here: &[FeatureId],
) -> Result<[PartCheck; 2]> {
    let transcoders = &original.replacement.transcoders;
    let name = |f: &FeatureId| format!("{}_{}_{}", f.layer, f.feature, f.pos);
    let largest = original.features.all.iter().fold(0f32, |m, f| m.max(f.value.abs()));
    let tolerance = |value: f32| RTOL * f64::from(value.abs()) + SCALE_TOL * f64::from(largest);
    let (mut ids, mut values) = (Tally::new("active_features"), Tally::new("activation_values"));
    for (i, (feature, &value)) in graph.active_features.iter().zip(&graph.activation_values).enumerate() {
        let at = || format!("[{i}] (feature {})", name(feature));
        if let Ok(index) = here.binary_search(feature) {
            ids.check.n_values += 1;
            let value_here = original.features.all[index].value;
            values.add(value, value_here, tolerance(value_here), at);
            continue;
        }
        let (layer, number) = (feature.layer as usize, feature.feature as usize);
        if transcoders.check_feature(layer, number).is_err() {
            ids.differs(at(), name(feature), "no such feature".into());
            continue;
        }
        let input = linear.hook_in[layer].get(linear.positions.need(feature.pos as usize)?)?;
        let transcoder = &transcoders.layers[layer];
        let row = transcoder.encoder_row(number, input.device())?;
        let pre_activation = (row * input)?.sum_all()?.to_scalar::<f32>()? + transcoder.b_enc(number);
        let is_near = f64::from((pre_activation - value).abs()) <= tolerance(value);
        if is_near {
            ids.check.n_values += 1;
        } else {
            ids.differs(at(), format!("active, {value}"), format!("not active, {pre_activation}"));
        }
    }
    for (feature, active) in here.iter().zip(&original.features.all) {
        if graph.active_features.binary_search(feature).is_ok() {
            continue;
        }
        let threshold = match transcoders.layers[active.layer].activation() {
            ActivationFunction::Relu => 0.0,
            ActivationFunction::JumpRelu { threshold } => threshold[active.feature],
            // The last of the k largest: which value that is, the others at the position decide.
            ActivationFunction::TopK { .. } => {
                let same = original.features.all.iter().filter(|f| (f.layer, f.pos) == (active.layer, active.pos));
                same.map(|f| f.value).fold(f32::INFINITY, f32::min)
            }
        };
        if f64::from(active.value - threshold) > tolerance(active.value) {
            ids.differs("missing".into(), "not active".into(), format!("{} active, {}", name(feature), active.value));
        }
    }
    Ok([ids.check, values.check])
}

/// `selected_features`: of the features that a row says it is of, the activation is what the row adds up to; without a
/// limit all are selected.
fn selection(graph: &AttributionGraph) -> PartCheck {
    let mut tally = Tally::new("selected_features");
    for (row, &active) in graph.selected_features.iter().enumerate() {
        let (activation, value) = (graph.activation_values[active], graph.row_values[row]);
        let tolerance = RTOL * f64::from(activation.abs()) + SCALE_TOL;
        tally.add(activation, value, tolerance, || {
            format!("[{row}], which is {active} {}: its activation, and what its row adds up to", describe(graph, row))
        });
    }
    let n_active = graph.active_features.len();
    let wanted = graph.meta.settings.max_features.map_or(n_active, |limit| limit.min(n_active));
    // Of a sample, those that carry enough.
    let fits = match graph.whole_influence() {
        Some(_) => graph.selected_features.len() <= wanted,
        None => graph.selected_features.len() == wanted,
    };
    if !fits {
        tally.differs("their number".into(), graph.selected_features.len().to_string(), wanted.to_string());
    }
    tally.check
}

/// Rows of two graphs that are of the same targets.
struct Rows<'a> {
    graph: &'a AttributionGraph,
    again: &'a AttributionGraph,
    /// Row of the graph, row of the other.
    pairs: Vec<(usize, usize)>,
    /// The column of the other that stands for each column of the graph; `None` where it cannot be compared.
    columns: Vec<Option<usize>>,
    /// What rounding goes with, for each pair: all that its row was summed from.
    scales: Vec<f64>,
}

impl<'a> Rows<'a> {
    fn new(graph: &'a AttributionGraph, again: &'a AttributionGraph, others: &[FeatureId]) -> Rows<'a> {
        let (layout, layout_again) = (graph.layout(), again.layout());
        // The error of a layer takes up what its features do not explain, whichever are active.
        let is_moved = |node: NodeId| match node {
            NodeId::Error { layer, pos } => others.iter().any(|f| f.pos == pos && f.layer <= layer),
            _ => false,
        };
        let column = |index: usize| {
            let node = layout.node(index)?;
            if is_moved(node) { None } else { layout_again.index(node) }
        };
        let columns = (0..layout.n_nodes()).map(column).collect();
        let features = layout.features().filter_map(|row| {
            let there = layout_again.index(layout.node(row)?)?;
            (there < layout_again.n_features()).then_some((row, there))
        });
        // A file that does not say what was asked for says of no direction which it is.
        let is_known = |index: &usize| {
            !graph.meta.trace_id.is_empty()
                || graph.target_ids[*index] >= 0
                || graph.meta.target_labels[*index].starts_with("feature ")
        };
        let n_targets = layout.n_targets().min(layout_again.n_targets());
        let targets = (0..n_targets).filter(is_known).filter(|&i| graph.target_ids[i] == again.target_ids[i]);
        let targets = targets.map(|i| (layout.n_features() + i, layout_again.n_features() + i));
        let pairs: Vec<(usize, usize)> = features.chain(targets).collect();
        let scale = |&(_, row): &(usize, usize)| {
            let effects: f64 = again.row(row).iter().map(|effect| f64::from(effect.abs())).sum();
            let unselected = again.unselected_effect.get(row).copied().unwrap_or_default();
            let errors = again.unselected_error_effect.get(row).copied().unwrap_or_default();
            effects + f64::from(again.bias_effect[row].abs()) + f64::from(unselected.abs()) + f64::from(errors.abs())
        };
        let scales = pairs.iter().map(scale).collect();
        Rows { graph, again, pairs, columns, scales }
    }

    /// What has a value for each target, layer and position.
    fn places(&self, tally: &mut Tally, what: ByPlace) {
        let n_features = [self.graph, self.again].map(|graph| graph.layout().n_features());
        let n_pos = self.graph.layout().n_pos();
        for (&(row, row_again), scale) in self.pairs.iter().zip(&self.scales) {
            let target = row.checked_sub(n_features[0]).zip(row_again.checked_sub(n_features[1]));
            let Some((target, target_again)) = target else { continue };
            let in_graph = self.graph.by_place(what, target).unwrap_or_default();
            let here = self.again.by_place(what, target_again).unwrap_or_default();
            for (place, (&a, &b)) in in_graph.iter().zip(here).enumerate() {
                let tolerance = RTOL * f64::from(b.abs()) + SCALE_TOL * scale;
                tally.add(a, b, tolerance, || format!("[{target}, {}, {}]", place / n_pos, place % n_pos));
            }
        }
    }

    /// A tensor of one value a row.
    fn column(&self, name: &str, in_graph: &[f32], here: &[f32]) -> PartCheck {
        let mut tally = Tally::new(name);
        for (&(row, row_again), scale) in self.pairs.iter().zip(&self.scales) {
            let (a, b) = (in_graph[row], here[row_again]);
            let node = if row < self.graph.layout().n_features() { row } else { self.target_node(row) };
            let tolerance = RTOL * f64::from(b.abs()) + SCALE_TOL * scale;
            tally.add(a, b, tolerance, || format!("[{row}] {}", describe(self.graph, node)));
        }
        tally.check
    }

    fn edges(&self) -> PartCheck {
        let mut tally = Tally::new("edge_rows");
        for (&(row, row_again), scale) in self.pairs.iter().zip(&self.scales) {
            let (effects, effects_again) = (self.graph.row(row), self.again.row(row_again));
            let node = if row < self.graph.layout().n_features() { row } else { self.target_node(row) };
            for (column, there) in self.columns.iter().enumerate() {
                let Some(there) = *there else { continue };
                let (a, b) = (effects[column], effects_again[there]);
                let tolerance = RTOL * f64::from(b.abs()) + SCALE_TOL * scale;
                tally.add(a, b, tolerance, || {
                    let (from, to) = (describe(self.graph, column), describe(self.graph, node));
                    format!("[{row}, {column}] {from} to {to}")
                });
            }
        }
        tally.check
    }

    /// The node of a target's row.
    fn target_node(&self, row: usize) -> usize {
        let layout = self.graph.layout();
        layout.targets().start + row - layout.n_features()
    }
}

/// Every key of the metadata.
fn metadata(replacement: &Replacement, graph: &AttributionGraph, again: &AttributionGraph) -> Vec<PartCheck> {
    // Taken apart, so that a key that is new cannot be forgotten.
    let GraphMeta {
        format_version,
        prompt,
        prompt_tokens,
        target_labels,
        target_positions,
        model,
        scan,
        transcoders,
        feature_input_hook,
        feature_output_hook,
        n_layers,
        closed_positions,
        settings,
        row_identity_error,
        replacement_score,
        completeness_score,
        sampling,
        program_version,
        trace_id,
        feature_labels,
    } = &graph.meta;
    let here = &again.meta;
    let text = |name: &str, in_graph: &str, here: &str| {
        PartCheck::key(name, in_graph == here, String::new(), format!("{in_graph:?}"), format!("{here:?}"))
    };
    let number = |name: &str, in_graph: f64, here: f64, tolerance: f64| {
        let holds = (in_graph - here).abs() <= tolerance;
        PartCheck::key(name, holds, String::new(), in_graph.to_string(), here.to_string())
    };
    let texts = |name: &str, in_graph: &[String], here: &[String]| {
        let quoted = |list: &[String]| list.iter().map(|text| format!("{text:?}")).collect::<Vec<_>>();
        Tally::exact(name, &quoted(in_graph), &quoted(here))
    };
    let tokenizer = &replacement.tokenizer;
    let tokens: Vec<u32> = graph.input_tokens.iter().filter_map(|&id| u32::try_from(id).ok()).collect();
    let decoded = tokenizer.decode(&tokens);
    let is_prompt = *prompt == decoded || tokenizer.encode_prompt(prompt).is_ok_and(|encoded| encoded == tokens);
    let fingerprint = graph.meta.fingerprint(&graph.input_tokens);
    // Files of older programs have none.
    let is_asked = trace_id.is_empty() || *trace_id == fingerprint;
    let is_model = same_model(model, &here.model) || (!trace_id.is_empty() && is_asked);
    // Files of older programs do not say where the transcoders were.
    let are_transcoders =
        transcoders.is_empty() || same_model(transcoders, &here.transcoders) || (!trace_id.is_empty() && is_asked);
    // Of a sample the scores are estimates, which only the whole of it gives again.
    let (own_scores, score_tolerance) = match graph.whole_influence() {
        Some(_) => {
            (Scores { replacement: here.replacement_score, completeness: here.completeness_score }, SAMPLED_SCORE_TOL)
        }
        None => {
            let totals = influence(&graph.edge_rows, graph.layout(), &graph.target_probabilities);
            (scores(graph.layout(), &totals, &graph.target_probabilities), SCORE_TOL)
        }
    };
    let identity = graph.row_identity_error();
    let n_nodes = here.settings.max_features;
    let settings_here = if is_asked { format!("max_features {n_nodes:?}") } else { "others, by `trace_id`".into() };
    let is_set = is_asked && (trace_id.is_empty() || settings.max_features == n_nodes);
    let mut checks = vec![
        number("format_version", f64::from(*format_version), f64::from(RAW_FORMAT_VERSION), 0.0),
        PartCheck::key("prompt", is_prompt, String::new(), format!("{prompt:?}"), format!("{decoded:?}")),
        texts("prompt_tokens", prompt_tokens, &here.prompt_tokens),
        texts("target_labels", target_labels, &here.target_labels),
        Tally::exact("target_positions", target_positions, &here.target_positions),
        PartCheck::key("model", is_model, String::new(), format!("{model:?}"), format!("{:?}", here.model)),
        text("scan", scan, &here.scan),
        PartCheck::key(
            "transcoders",
            are_transcoders,
            String::new(),
            format!("{transcoders:?}"),
            format!("{:?}", here.transcoders),
        ),
        text("feature_input_hook", feature_input_hook, &here.feature_input_hook),
        text("feature_output_hook", feature_output_hook, &here.feature_output_hook),
        number("n_layers", *n_layers as f64, here.n_layers as f64, 0.0),
        PartCheck::key("settings", is_set, String::new(), format!("{settings:?}"), settings_here),
        number("row_identity_error", *row_identity_error, identity, 1e-3 * identity + f64::EPSILON),
        number("replacement_score", *replacement_score, own_scores.replacement, score_tolerance),
        number("completeness_score", *completeness_score, own_scores.completeness, score_tolerance),
        version(program_version, &here.program_version),
    ];
    if !closed_positions.is_empty() {
        let text = |spans: &[[usize; 2]]| format!("{spans:?}");
        let holds = *closed_positions == here.closed_positions;
        let (in_graph, here) = (text(closed_positions), text(&here.closed_positions));
        checks.push(PartCheck::key("closed_positions", holds, String::new(), in_graph, here));
    }
    if let Some(sampling) = sampling {
        checks.push(same_sampling(sampling, here.sampling.as_ref()));
    }
    if !trace_id.is_empty() {
        checks.push(text("trace_id", trace_id, &fingerprint));
    }
    if !feature_labels.is_empty() {
        checks.push(labels(replacement, graph));
    }
    checks
}

/// The same sample was drawn, and is as uncertain.
fn same_sampling(in_graph: &Sampling, here: Option<&Sampling>) -> PartCheck {
    let Sampling { theta, n_visited, replacement_uncertainty, completeness_uncertainty } = in_graph;
    let is_near = |a: f64, b: f64| (a - b).abs() <= RTOL * b.abs() + SCORE_TOL;
    let holds = here.is_some_and(|here| {
        *n_visited == here.n_visited
            && is_near(*theta, here.theta)
            && is_near(*replacement_uncertainty, here.replacement_uncertainty)
            && is_near(*completeness_uncertainty, here.completeness_uncertainty)
    });
    PartCheck::key("sampling", holds, String::new(), format!("{in_graph:?}"), format!("{here:?}"))
}

/// Whether two names are of one model: a folder or a file may have moved, and a repository may have been copied.
fn same_model(a: &str, b: &str) -> bool {
    let name = |text: &str| Path::new(text).file_name().map(std::ffi::OsStr::to_owned);
    a == b || (name(a).is_some() && name(a) == name(b))
}

/// A version is three numbers, and no later program has written what this one reads.
fn version(in_graph: &str, here: &str) -> PartCheck {
    let numbers = |text: &str| -> Option<Vec<u64>> {
        // What follows a dash is of a version that comes before that of these numbers.
        let numbers: Option<Vec<u64>> =
            text.split(['-', '+']).next()?.split('.').map(|part| part.parse().ok()).collect();
        numbers.filter(|numbers| numbers.len() == 3)
    };
    let holds = numbers(in_graph).is_some_and(|there| numbers(here).is_some_and(|here| there <= here));
    PartCheck::key("program_version", holds, String::new(), in_graph.to_owned(), format!("at most {here}"))
}

/// Labels: of features that are there, and those that are at hand here, where any are.
fn labels(replacement: &Replacement, graph: &AttributionGraph) -> PartCheck {
    let mut tally = Tally::new("feature_labels");
    let known = &replacement.transcoders.labels;
    let selected: BTreeSet<(u32, u32)> = graph.layout().feature_ids().iter().map(|f| (f.layer, f.feature)).collect();
    for (key, label) in &graph.meta.feature_labels {
        let parts = key.split_once('_').and_then(|(layer, feature)| Some((layer.parse().ok()?, feature.parse().ok()?)));
        let at = || format!("{key:?}");
        let Some(feature) = parts.filter(|feature| selected.contains(feature)) else {
            tally.differs(at(), format!("{label:?}"), "no feature of the graph".into());
            continue;
        };
        match known.get(feature.0, feature.1) {
            Some(here) if here != label => tally.differs(at(), format!("{label:?}"), format!("{here:?}")),
            None if !known.is_empty() => tally.differs(at(), format!("{label:?}"), "no label".into()),
            _ => tally.check.n_values += 1,
        }
    }
    tally.check
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_told_by_their_names_and_versions_by_their_numbers() {
        assert!(same_model("atlas", "atlas") && same_model("/a/smollm2.gguf", "b/smollm2.gguf"));
        assert!(same_model("org/name", "copies/name") && !same_model("atlas", "gpt2") && !same_model("", "gpt2"));
        for (in_graph, holds) in [("0.1.0", true), ("0.2.0", false), ("0.0.9", true), ("1.0", false), ("x", false)] {
            assert_eq!(version(in_graph, "0.1.0").n_different == 0, holds, "{in_graph}");
        }
    }

    #[test]
    fn what_nobody_compared_does_not_hold() {
        let known = PartCheck { name: "logits".into(), ..PartCheck::default() };
        let mut found = ContentsCheck { tensors: vec![known], metadata: Vec::new(), passed: true };
        found.require(&["logits".into()], &[]);
        assert!(found.passed);
        found.require(&["logits".into(), "new".into()], &[]);
        assert!(!found.passed && found.different().any(|check| check.name == "new"));
    }
}
