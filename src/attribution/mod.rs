//! `attribution`: from a linear model to an [`AttributionGraph`] (definitions 4 to 6). Chooses targets, pulls them
//! and the features back in batches, and collects the edge rows.

mod batches;
mod matrix;
mod plan;
mod row_choice;
mod rows;
mod sampled;
mod score_targets;
mod targets;

pub(crate) use batches::{Batch, batch_limits, feature_batches, target_batches};
pub use row_choice::{RowChoice, Visits};
pub use score_targets::{Score, Versus, score_sides};
pub use targets::{Target, TargetKind, TargetRequest, choose_targets};

use std::time::Instant;

use crate::error::{Error, Result};
use crate::graph::{
    AttributionGraph, DecoderDirections, EdgeRows, FeatureId, GraphData, GraphMeta, GraphSettings, NodeLayout,
};
use crate::graph::{Influence, RAW_FORMAT_VERSION, scores};
use crate::job::Job;
use crate::replacement::{ActiveFeature, LinearModel, Origin, Replacement};

/// What to attribute, and how much of it.
#[derive(Clone, Debug)]
pub struct AttributionOptions {
    /// What the graph explains; empty: the salient logits.
    pub targets: Vec<TargetRequest>,
    /// Position of logit targets; `None`: the last one.
    pub position: Option<usize>,
    /// At most this many salient logits.
    pub max_logits: usize,
    /// Salient logits are cut once their probabilities add up to this.
    pub logit_prob: f64,
    /// Which features get a row.
    pub rows: RowChoice,
    /// With [`RowChoice::BestFirst`]: a quarter of the features that are chosen between two looks at the influence.
    pub batch_size: usize,
    /// Whether the graph keeps the directions that its features write along, d_model values of two bytes for each.
    pub keep_decoders: bool,
}

impl Default for AttributionOptions {
    fn default() -> Self {
        Self {
            targets: Vec::new(),
            position: None,
            max_logits: 10,
            logit_prob: 0.95,
            rows: RowChoice::Auto,
            batch_size: 512,
            keep_decoders: true,
        }
    }
}

impl AttributionOptions {
    /// # Errors
    /// [`Error::Setting`] with the field's name.
    pub fn check(&self) -> Result<()> {
        let out_of_range = |name: &'static str, value: f64, range: &'static str| Error::Setting { name, value, range };
        if !(0.0..=1.0).contains(&self.logit_prob) {
            return Err(out_of_range("logit_prob", self.logit_prob, "0..=1"));
        }
        if self.max_logits == 0 {
            return Err(out_of_range("max_logits", 0.0, "1.."));
        }
        if self.batch_size == 0 {
            return Err(out_of_range("batch_size", 0.0, "1.."));
        }
        self.rows.check()
    }
}

/// The phase in which [`attribute`] looks for its targets, as [`Job`] hears of it: the first after the forward pass.
pub const TARGETS_PHASE: &str = "targets";

/// Times of the phases of [`attribute`], in seconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct PhaseSecs {
    /// Choosing targets.
    pub targets: f64,
    /// Computing rows, and choosing which.
    pub rows: f64,
    /// Influence, scores and the row identity.
    pub scores: f64,
}

/// Everything that [`attribute`] finds.
#[derive(Debug)]
pub struct Attribution {
    /// Every direct effect, with the metadata.
    pub graph: AttributionGraph,
    /// What the graph explains, in the order of its target nodes.
    pub targets: Vec<Target>,
    /// Influence of every node of the graph: the scores come from it, and pruning begins with it.
    pub influence: Influence,
    /// Rows computed: targets and selected features; those that a sampled sweep visited count too.
    pub n_rows: usize,
    /// Whether the device had no room for the rows so far, so that the host chose the features: the same ones, slower.
    pub short_of_device_memory: bool,
    /// Times of the phases.
    pub elapsed_secs: PhaseSecs,
}

/// Computes the attribution graph of a linearized prompt.
///
/// # Errors
/// [`AttributionOptions::check`], those of [`choose_targets`], and those of reading and of the tensor operations;
/// [`Error::Cancelled`].
pub fn attribute(
    replacement: &Replacement,
    linear: &LinearModel,
    prompt: &str,
    options: &AttributionOptions,
    job: &Job,
) -> Result<Attribution> {
    options.check()?;
    job.report(TARGETS_PHASE, 0, 1);
    let start = Instant::now();
    let chosen = choose_targets(replacement, linear, options)?;
    let targets_secs = start.elapsed().as_secs_f64();

    let start = Instant::now();
    let config = &replacement.model.config;
    let active = feature_ids(linear);
    let layout = NodeLayout::new(active.clone(), config.n_layers, linear.tokens.len(), chosen.targets.len())?;
    let rows = rows::compute(linear, &layout, &chosen.targets, options, job)?;
    let (rows_secs, short_of_device_memory) = (start.elapsed().as_secs_f64(), rows.short_of_device_memory);

    let start = Instant::now();
    let tokenizer = &replacement.tokenizer;
    let (n_rows, n_computed) = (rows.row_values.len(), rows.n_computed);
    let n_nodes = rows.selected.len() + layout.n_nodes() - layout.n_features();
    let selected = rows.selected.iter().map(|&i| active[i]);
    let feature_labels = replacement.transcoders.labels.of(selected.map(|f| (f.layer, f.feature)));
    let mut graph = AttributionGraph::new(GraphData {
        input_tokens: linear.tokens.iter().map(|&t| i64::from(t)).collect(),
        activation_values: linear.features.all.iter().map(|f| f.value).collect(),
        active_features: active,
        selected_features: rows.selected,
        edge_rows: EdgeRows::from_vec(rows.edge_rows, n_rows, n_nodes)?,
        bias_effect: rows.bias_effect,
        unselected_effect: rows.unselected_effect,
        row_values: rows.row_values,
        target_ids: chosen.targets.iter().map(|t| t.token_id.map_or(-1, i64::from)).collect(),
        target_probabilities: chosen.targets.iter().map(|t| t.weight).collect(),
        logits: chosen.logits,
        meta: GraphMeta {
            format_version: RAW_FORMAT_VERSION,
            prompt: prompt.to_owned(),
            prompt_tokens: linear.tokens.iter().map(|&t| tokenizer.token(t)).collect(),
            target_labels: chosen.targets.iter().map(|t| t.label.clone()).collect(),
            target_positions: chosen.targets.iter().map(|t| t.pos as u32).collect(),
            model: replacement.source.clone(),
            scan: replacement.transcoders.scan.clone(),
            feature_input_hook: replacement.transcoders.input_hook.name().into(),
            feature_output_hook: replacement.transcoders.output_hook.name().into(),
            n_layers: config.n_layers,
            settings: GraphSettings {
                max_logits: options.max_logits,
                logit_prob: options.logit_prob,
                max_features: options.rows.for_prompt(linear.features.len()).max_features(),
                batch_size: options.batch_size,
            },
            program_version: env!("CARGO_PKG_VERSION").into(),
            feature_labels,
            ..GraphMeta::default()
        },
    })?;
    if options.keep_decoders {
        let directions = decoder_directions(linear, &graph.selected_features)?;
        graph.set_decoder_directions(directions)?;
    }
    let estimated = match rows.estimate {
        Some(estimate) => {
            graph.set_whole_influence(estimate.influence)?;
            graph.meta_mut().sampling = Some(estimate.sampling);
            Some(estimate.scores)
        }
        None => None,
    };
    let influence = graph.influence();
    let identity = graph.row_identity_error();
    let scores = estimated.unwrap_or_else(|| scores(graph.layout(), &influence, &graph.target_probabilities));
    let meta = graph.meta_mut();
    meta.row_identity_error = identity;
    meta.replacement_score = scores.replacement;
    meta.completeness_score = scores.completeness;
    let elapsed_secs = PhaseSecs { targets: targets_secs, rows: rows_secs, scores: start.elapsed().as_secs_f64() };
    Ok(Attribution {
        graph,
        targets: chosen.targets,
        influence,
        n_rows: n_computed,
        short_of_device_memory,
        elapsed_secs,
    })
}

/// Ids of all active features, in order.
fn feature_ids(linear: &LinearModel) -> Vec<FeatureId> {
    let id = |f: &ActiveFeature| FeatureId { layer: f.layer as u32, pos: f.pos as u32, feature: f.feature as u32 };
    linear.features.all.iter().map(id).collect()
}

/// Where the selected features write to: the sum of what they write, over all layers that they write to.
fn decoder_directions(linear: &LinearModel, selected: &[usize]) -> Result<DecoderDirections> {
    let d_model = linear.final_normed.dim(1)?;
    let mut place = vec![usize::MAX; linear.features.len()];
    selected.iter().enumerate().for_each(|(at, &feature)| place[feature] = at);
    let mut sums = vec![0f32; selected.len() * d_model];
    for sources in &linear.mlp_sources {
        // Layer by layer: all sources at once would be a second copy of the largest thing after the edge rows.
        let vecs: Vec<f32> = sources.vecs.vecs.flatten_all()?.to_vec1()?;
        for (origin, vec) in sources.origins.iter().zip(vecs.chunks_exact(d_model)) {
            if let Origin::Feature(feature) = *origin
                && place[feature] != usize::MAX
            {
                let sum = &mut sums[place[feature] * d_model..][..d_model];
                sum.iter_mut().zip(vec).for_each(|(sum, x)| *sum += x);
            }
        }
    }
    DecoderDirections::new(&sums, selected.len(), d_model)
}
