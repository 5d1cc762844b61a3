//! `attribution`: from a linear model to an [`AttributionGraph`] (definitions 4 to 6). Chooses targets, pulls them
//! and the features back in batches, and collects the edge rows.

mod batches;
mod coarse;
mod finished;
mod finite;
mod matrix;
mod memory;
mod open_choice;
mod plan;
mod row_choice;
mod row_count;
mod rows;
mod sampled;
mod score_targets;
mod target_map;
mod targets;

pub(crate) use batches::{Batch, batch_limits, feature_batches, target_batches};
pub use coarse::{CoarseMap, CoarseSpan};
pub use finished::{FinishedAbout, FinishedColumn, FinishedPart, FinishedRows, RowStore};
pub use open_choice::{OpenChoice, linearized, open_positions};
pub use row_choice::{Count, RowChoice, RowRequest, Visits};
pub use sampled::{ExactInfluence, exact_influence};
pub use score_targets::{FrozenScore, Score, Versus, score_sides};
pub use target_map::TargetMap;
pub use targets::{Target, TargetKind, TargetRequest, choose_targets};

use std::sync::Arc;
use std::time::Instant;

use crate::error::{Error, ErrorContext, Result};
use crate::graph::{
    AttributionGraph, ByPlace, DecoderDirections, EdgeRows, FeatureId, GraphData, GraphMeta, GraphSettings, NodeLayout,
};
use crate::graph::{Influence, RAW_FORMAT_VERSION, scores};
use crate::job::Job;
use crate::replacement::{ActiveFeature, LinearModel, Origin, Replacement, spans};

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
    /// Which positions have features, errors and gradient of their own.
    pub open: OpenChoice,
    /// Whether the graph keeps the directions that its features write along, d_model values of two bytes for each.
    pub keep_decoders: bool,
    /// Where finished rows of a sampled graph are kept, and where those of an earlier run are found.
    pub finished: Option<Arc<dyn RowStore>>,
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
            open: OpenChoice::All,
            keep_decoders: true,
            finished: None,
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
        self.open.check()?;
        if self.finished.is_some() && matches!(self.rows, RowChoice::All | RowChoice::BestFirst { .. }) {
            let (first, second) = ("keeping finished rows", "rows that are no sample");
            return Err(Error::Contradiction { first, second });
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
    attribute_rows(replacement, linear, prompt, options, None, job)
}

/// Computes a graph again, from its own settings and with rows for the features that it has: what is left to compare it
/// with. Features of the graph that are not active in `linear` have no row in the other.
///
/// # Errors
/// As [`attribute`], of settings that no trace can have had.
pub fn retrace(
    replacement: &Replacement,
    linear: &LinearModel,
    graph: &AttributionGraph,
    job: &Job,
) -> Result<AttributionGraph> {
    let options = options_of(replacement, graph);
    let active = feature_ids(linear);
    let features = graph.layout().feature_ids().iter();
    let features: Vec<usize> = features.filter_map(|feature| active.binary_search(feature).ok()).collect();
    // A sample is drawn again, with all that was found from it.
    let given = graph.whole_influence().is_none().then_some(features.as_slice());
    let again = attribute_rows(replacement, linear, &graph.meta.prompt, &options, given, job);
    Ok(again.context(|| "cannot compute the graph again from its `settings`".into())?.graph)
}

/// The targets of a graph, chosen again: `None` for one whose direction the file does not tell. `[n_targets]`
///
/// # Errors
/// As [`choose_targets`].
pub fn targets_of(
    replacement: &Replacement,
    linear: &LinearModel,
    graph: &AttributionGraph,
) -> Result<Vec<Option<Target>>> {
    let chosen = choose_targets(replacement, linear, &options_of(replacement, graph))?.targets;
    let mut chosen: Vec<Option<Target>> = chosen.into_iter().map(Some).collect();
    chosen.resize(graph.target_ids.len(), None);
    // What stands for an unknown direction is zero, and a target of another name is another target.
    for (target, label) in chosen.iter_mut().zip(&graph.meta.target_labels) {
        let is_known = |target: &Target| -> Result<bool> {
            let is_zero = match &target.kind {
                TargetKind::Direction(direction) => direction.abs()?.max(0)?.to_scalar::<f32>()? == 0.0,
                TargetKind::Feature { .. } | TargetKind::AttentionInput { .. } => false,
            };
            Ok(target.label == *label && !is_zero)
        };
        if !target.as_ref().map_or(Ok(false), is_known)? {
            *target = None;
        }
    }
    Ok(chosen)
}

/// What a graph was asked to be.
fn options_of(replacement: &Replacement, graph: &AttributionGraph) -> AttributionOptions {
    let settings = &graph.meta.settings;
    let recorded: Option<Vec<TargetRequest>> = settings.targets.iter().map(|text| TargetRequest::parse(text)).collect();
    // Older files do not say what was asked for, only what that led to.
    let (targets, position) = match recorded.filter(|_| !graph.meta.trace_id.is_empty()) {
        Some(targets) => (targets, settings.position),
        None => {
            let position = graph.meta.target_positions.first().map(|&pos| pos as usize);
            (targets::requests_of(graph, replacement.model.config.d_model), position)
        }
    };
    AttributionOptions {
        targets,
        position,
        max_logits: settings.max_logits,
        logit_prob: settings.logit_prob,
        rows: row_choice(graph),
        batch_size: settings.batch_size,
        open: OpenChoice::parse(&settings.open).unwrap_or_default(),
        keep_decoders: graph.decoder_directions().is_some(),
        finished: None,
    }
}

/// Which rows a graph was computed with, as far as its file tells.
fn row_choice(graph: &AttributionGraph) -> RowChoice {
    let settings = &graph.meta.settings;
    RowChoice::parse(&settings.rows).unwrap_or(match (&graph.meta.sampling, settings.max_features) {
        (Some(sampling), nodes) => RowChoice::Sampled { visits: Visits::Theta(sampling.theta), nodes },
        (None, Some(max_features)) => RowChoice::BestFirst { max_features },
        (None, None) => RowChoice::All,
    })
}

/// As [`attribute`], with rows for the `given` features, ascending, where they are given.
fn attribute_rows(
    replacement: &Replacement,
    linear: &LinearModel,
    prompt: &str,
    options: &AttributionOptions,
    given: Option<&[usize]>,
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
    let closed = linear.positions.closed();
    let layout = NodeLayout::new(active.clone(), config.n_layers, linear.tokens.len(), chosen.targets.len())?;
    let layout = layout.with_closed(&closed)?;
    memory::RowSizes {
        rows: match given {
            Some(features) => RowChoice::BestFirst { max_features: features.len() },
            None => options.rows.for_prompt(active.len()),
        },
        n_active: active.len(),
        n_targets: chosen.targets.len(),
        n_others: layout.n_nodes() - layout.n_features(),
        n_errors: layout.errors().len(),
        n_pos: linear.positions.open().len(),
        d_decoder: if options.keep_decoders { config.d_model } else { 0 },
    }
    .check()?;
    let meta = requested(replacement, &linear.tokens, options);
    let rows = match given {
        Some(features) if features.len() < active.len() => {
            rows::compute_given(linear, &layout, &chosen.targets, features, job)?
        }
        _ => rows::compute(linear, &layout, &chosen.targets, options, &meta.trace_id, job)?,
    };
    for (what, values) in [
        ("value", &rows.row_values),
        ("bias effect", &rows.bias_effect),
        ("effect of unselected features", &rows.unselected_effect),
        ("effect of unselected errors", &rows.unselected_error_effect),
    ] {
        finite::check_row_values(what, values, &linear.features, &rows.selected, &chosen.targets)?;
    }
    let (rows_secs, short_of_device_memory) = (start.elapsed().as_secs_f64(), rows.short_of_device_memory);

    let start = Instant::now();
    let tokenizer = &replacement.tokenizer;
    let (n_rows, n_computed) = (rows.row_values.len(), rows.n_computed);
    let n_errors = rows.error_nodes.as_ref().map_or(layout.errors().len(), Vec::len);
    let n_nodes = rows.selected.len() + n_errors + layout.n_nodes() - layout.errors().end;
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
        error_nodes: rows.error_nodes,
        unselected_error_effect: rows.unselected_error_effect,
        row_values: rows.row_values,
        target_ids: chosen.targets.iter().map(|t| t.token_id.map_or(-1, i64::from)).collect(),
        target_probabilities: chosen.targets.iter().map(|t| t.weight).collect(),
        logits: chosen.logits,
        meta: GraphMeta {
            prompt: prompt.to_owned(),
            prompt_tokens: linear.tokens.iter().map(|&t| tokenizer.token(t)).collect(),
            target_labels: chosen.targets.iter().map(|t| t.label.clone()).collect(),
            target_positions: chosen.targets.iter().map(|t| t.pos as u32).collect(),
            feature_labels,
            closed_positions: spans(&closed),
            ..meta
        },
    })?;
    if !rows.unselected_at.is_empty() {
        graph.set_by_place(ByPlace::Unselected, rows.unselected_at)?;
    }
    if !rows.unselected_errors_at.is_empty() {
        graph.set_by_place(ByPlace::UnselectedErrors, rows.unselected_errors_at)?;
    }
    if !closed.is_empty() {
        graph.set_by_place(ByPlace::Contexts, batches::context_at(linear, &layout, &chosen.targets, job)?)?;
    }
    graph.meta_mut().settings.max_features = options.rows.for_prompt(linear.features.len()).max_features();
    if options.keep_decoders {
        let directions = decoder_directions(linear, &graph.selected_features)?;
        graph.set_decoder_directions(directions)?;
    }
    let estimated = match rows.estimate {
        Some(estimate) => {
            finite::check_influence(&layout, &estimate.influence.nodes)?;
            graph.set_whole_influence(estimate.influence)?;
            graph.meta_mut().sampling = Some(estimate.sampling);
            Some(estimate.scores)
        }
        None => None,
    };
    let influence = graph.influence();
    let identity = graph.row_identity_error();
    if !identity.is_finite() {
        finite::check_edges(&graph)?;
    }
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

/// The metadata that is known before anything is computed: of which model, with which settings.
pub fn requested(replacement: &Replacement, tokens: &[u32], options: &AttributionOptions) -> GraphMeta {
    // Taken apart, so that an option that is new cannot be forgotten. What the file leaves out is the same graph.
    let AttributionOptions {
        targets,
        position,
        max_logits,
        logit_prob,
        rows,
        batch_size,
        open,
        keep_decoders: _,
        finished: _,
    } = options;
    let mut meta = GraphMeta {
        format_version: RAW_FORMAT_VERSION,
        model: replacement.source.clone(),
        scan: replacement.transcoders.scan.clone(),
        transcoders: replacement.transcoder_source.clone(),
        feature_input_hook: replacement.transcoders.input_hook.name().into(),
        feature_output_hook: replacement.transcoders.output_hook.name().into(),
        n_layers: replacement.model.config.n_layers,
        settings: GraphSettings {
            max_logits: *max_logits,
            logit_prob: *logit_prob,
            // Of prompts that are long enough for a sample, only their run tells.
            max_features: None,
            batch_size: *batch_size,
            rows: rows.to_string(),
            targets: targets.iter().map(TargetRequest::to_string).collect(),
            position: *position,
            open: open.to_string(),
        },
        program_version: env!("CARGO_PKG_VERSION").into(),
        ..GraphMeta::default()
    };
    let tokens: Vec<i64> = tokens.iter().map(|&token| i64::from(token)).collect();
    meta.trace_id = meta.fingerprint(&tokens);
    meta
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
        let place_of = |origin: &Origin| match *origin {
            Origin::Feature(feature) => Some(place[feature]).filter(|&place| place != usize::MAX),
            _ => None,
        };
        let found = sources.origins.iter().enumerate().filter_map(|(at, origin)| Some((at as u32, place_of(origin)?)));
        let (wanted, places): (Vec<u32>, Vec<usize>) = found.unzip();
        if wanted.is_empty() {
            continue;
        }
        let vecs: Vec<f32> = sources.vecs.select(&wanted)?.flatten_all()?.to_vec1()?;
        for (place, vec) in places.into_iter().zip(vecs.chunks_exact(d_model)) {
            let sum = &mut sums[place * d_model..][..d_model];
            sum.iter_mut().zip(vec).for_each(|(sum, x)| *sum += x);
        }
    }
    DecoderDirections::new(&sums, selected.len(), d_model)
}
