//! Whether a graph tells the truth about its model: the row identity, edges against measured effects, predictions of
//! the graph against ablations in the free model, and what the kept part of the graph is worth.

mod circuit;
mod contents;
mod contents_heads;
mod edges;
mod faithfulness;
mod statistics;

use candle_core::Tensor;
use serde::Serialize;

pub use circuit::{CircuitCheck, CurvePoint};
use contents::differing;
pub use contents::{ContentsCheck, Difference, PartCheck};
pub use edges::EdgeCheck;
pub use faithfulness::{AblationPoint, ErrorParts, Faithfulness, ModeFaithfulness, Predictor};

pub(crate) use statistics::spearman;

use super::original::Original;
use crate::error::{Error, Result};
use crate::graph::{AttributionGraph, FeatureId};
use crate::job::Job;
use crate::replacement::{LinearModel, OpenPositions, Replacement};

/// Largest relative error of the row identity that passes: f32 sums over some ten thousand sources.
const IDENTITY_TOLERANCE: f64 = 1e-4;

/// How far the logits in a graph may be from the model's own, relative to the largest: the same computation on another
/// machine.
const LOGIT_TOLERANCE: f32 = 1e-3;

/// Share of the active features that may differ: on another machine, rounding decides about those at their threshold.
const MAX_SHARE_OF_OTHERS: f64 = 0.01;

/// How much is tried.
#[derive(Clone, Debug)]
pub struct VerifyOptions {
    /// Sources of each kind (features, errors, tokens) whose edges are measured, at most.
    pub n_samples: usize,
    /// How many of the most influential features are ablated.
    pub n_ablated: usize,
    /// Seeds the choice of random features.
    pub seed: u64,
    /// The features that pruning kept.
    pub kept: Vec<FeatureId>,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Verification {
    /// The prompt's text.
    pub prompt: String,
    /// The base model's name.
    pub model: String,
    /// Whether everything in the graph is what the model gives, the identity holds and every edge is a measured effect,
    /// within tolerance.
    pub passed: bool,
    /// Whether every tensor and every key of the metadata is what the model gives.
    pub contents: ContentsCheck,
    /// Whether rows add up.
    pub identity: IdentityCheck,
    /// Whether edges are measured effects.
    pub edges: EdgeCheck,
    /// Labels of the targets that nothing could be measured for: directions that the file does not tell.
    pub untested: Vec<String>,
    /// For the first target that can be measured; `None` where none can.
    pub faithfulness: Option<Faithfulness>,
    /// What the circuit keeps of the model's answer.
    pub circuit: CircuitCheck,
}

/// Rows, bias effects and what they must add up to.
#[derive(Clone, Debug, Serialize)]
pub struct IdentityCheck {
    /// Rows checked: all of them.
    pub n_rows: usize,
    /// The row identity error (definitions 4), from the numbers of the graph.
    pub largest_relative_error: f64,
    /// What it may be at most.
    pub tolerance: f64,
    /// Whether it is.
    pub passed: bool,
}

/// Checks a graph against the model that it was traced on. `retrace` computes the graph again, the rows of the same
/// features, from the linear model of its tokens.
///
/// # Errors
/// [`Error::GraphMismatch`] for a graph of another model, transcoder set or tokenizer; those of reading and of the
/// tensor operations.
pub fn verify(
    replacement: &Replacement,
    graph: &AttributionGraph,
    options: &VerifyOptions,
    retrace: impl FnOnce(&LinearModel) -> Result<Retraced>,
    job: &Job,
) -> Result<Verification> {
    let (original, linear) = linearized_as_traced(replacement, graph, job)?;
    let Retraced { graph: again, targets } = retrace(&linear)?;
    let contents = contents::check(&original, &linear, graph, &again)?;

    let largest = graph.row_identity_error();
    let identity = IdentityCheck {
        n_rows: graph.layout().n_rows(),
        largest_relative_error: largest,
        tolerance: IDENTITY_TOLERANCE,
        passed: largest <= IDENTITY_TOLERANCE,
    };
    let influence = graph.influence();
    let edges = edges::check(&original, &linear, graph, &targets, options.n_samples, &influence.nodes, job)?;
    let by_influence = features_by_influence(graph, &influence.nodes);
    let faithfulness = match targets.first() {
        Some(target) => {
            let ablated = &by_influence[..options.n_ablated.min(by_influence.len())];
            Some(faithfulness::check(&original, graph, target, ablated, job)?)
        }
        None => None,
    };
    let circuit = circuit::check(&original, graph, &by_influence, options, job)?;
    Ok(Verification {
        prompt: graph.meta.prompt.clone(),
        model: replacement.source.clone(),
        passed: contents.passed && identity.passed && edges.passed,
        contents,
        identity,
        edges,
        untested: untested(graph, &targets),
        faithfulness,
        circuit,
    })
}

/// Runs a graph's prompt again and compares with what the graph recorded.
///
/// # Errors
/// As [`verify`].
pub(crate) fn linearized_as_traced<'a>(
    replacement: &'a Replacement,
    graph: &AttributionGraph,
    job: &Job,
) -> Result<(Original<'a>, LinearModel)> {
    let tokens = check_shape(replacement, graph)?;
    check_tokens(replacement, graph, &tokens)?;
    replacement.model.keep_layers()?;
    let positions = OpenPositions::without(&graph.layout().closed(), tokens.len())?;
    let (original, linear) = Original::linearized_open(replacement, &tokens, &positions, job)?;
    check_same(&original, graph)?;
    Ok((original, linear))
}

/// A graph computed again, and how its targets are read off a run.
#[derive(Debug)]
pub struct Retraced {
    /// The same trace, anew.
    pub graph: AttributionGraph,
    /// Of the targets in the file, those that can be measured, ascending.
    pub targets: Vec<VerifyTarget>,
}

/// A target as it is read off a run of the model.
#[derive(Clone, Debug)]
pub enum VerifyTarget {
    /// A token's logit, a difference, or any direction of the final norm's output.
    Direction {
        /// Place among the graph's targets.
        index: usize,
        /// Position in the prompt.
        pos: usize,
        /// `[d_model]`
        direction: Tensor,
    },
    /// The pre-activation of a feature.
    Feature {
        /// Place among the graph's targets.
        index: usize,
        /// The layer whose MLP the transcoder reads.
        layer: usize,
        /// Index among the features of the layer.
        feature: usize,
        /// Position in the prompt.
        pos: usize,
        /// What the feature looks for. `[d_model]`
        encoder_vec: Tensor,
    },
    /// A side of an attention score, its norms held: what it reads of the residual stream before its layer.
    AttentionInput {
        /// Place among the graph's targets.
        index: usize,
        /// The layer of the attention.
        layer: usize,
        /// What it reads at the first positions. `[n_read, d_model]`
        gradients: Tensor,
    },
}

impl VerifyTarget {
    /// Place among the graph's targets.
    pub fn index(&self) -> usize {
        match self {
            VerifyTarget::Direction { index, .. }
            | VerifyTarget::Feature { index, .. }
            | VerifyTarget::AttentionInput { index, .. } => *index,
        }
    }
}

/// Labels of the targets that are not among those that can be measured.
fn untested(graph: &AttributionGraph, targets: &[VerifyTarget]) -> Vec<String> {
    let labels = graph.meta.target_labels.iter().enumerate();
    let is_untested = |index: usize| !targets.iter().any(|target| target.index() == index);
    labels.filter(|(index, _)| is_untested(*index)).map(|(_, label)| label.clone()).collect()
}

/// Node indices of the features, most influential first.
fn features_by_influence(graph: &AttributionGraph, influence: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = graph.layout().features().collect();
    order.sort_by(|&a, &b| influence[b].total_cmp(&influence[a]).then(a.cmp(&b)));
    order
}

/// Compares what can be compared without running the model; returns the prompt's tokens.
fn check_shape(replacement: &Replacement, graph: &AttributionGraph) -> Result<Vec<u32>> {
    let (meta, transcoders, config) = (&graph.meta, &replacement.transcoders, &replacement.model.config);
    let mismatch = |what: &'static str, graph: String, model: String| Err(Error::GraphMismatch { what, graph, model });
    if meta.n_layers != config.n_layers {
        return mismatch("layers are", meta.n_layers.to_string(), config.n_layers.to_string());
    }
    if graph.logits.len() != config.d_vocab {
        return mismatch("vocabulary is", graph.logits.len().to_string(), config.d_vocab.to_string());
    }
    if meta.scan != transcoders.scan {
        return mismatch("transcoders are", format!("{:?}", meta.scan), format!("{:?}", transcoders.scan));
    }
    let hooks = [(&meta.feature_input_hook, transcoders.input_hook.name())];
    let hooks = hooks.into_iter().chain([(&meta.feature_output_hook, transcoders.output_hook.name())]);
    for (in_graph, here) in hooks {
        if in_graph != here {
            return mismatch("hook is", format!("`{in_graph}`"), format!("`{here}`"));
        }
    }
    let token = |&id: &i64| {
        let token = u32::try_from(id).ok().filter(|&t| (t as usize) < config.d_vocab);
        token.ok_or(Error::GraphMismatch {
            what: "prompt holds token",
            graph: id.to_string(),
            model: format!("ids end at {}", config.d_vocab),
        })
    };
    graph.input_tokens.iter().map(token).collect()
}

/// The tokens are those that the graph names and that its prompt is made of: of two that disagree, the third tells which
/// is wrong. Where the text alone is, the comparison of the contents says so.
fn check_tokens(replacement: &Replacement, graph: &AttributionGraph, tokens: &[u32]) -> Result<()> {
    let tokenizer = &replacement.tokenizer;
    let prompt = &graph.meta.prompt;
    if tokenizer.decode(tokens) == *prompt || tokenizer.encode_prompt(prompt).is_ok_and(|encoded| encoded == tokens) {
        return Ok(());
    }
    let named = tokens.iter().zip(&graph.meta.prompt_tokens).enumerate();
    for (index, (&token, name)) in named {
        let text = tokenizer.token(token);
        if text != *name {
            let what = "`input_tokens`, which are not those of its prompt,";
            let graph = format!("hold {token} ({text:?}) at {index}");
            return Err(Error::GraphMismatch { what, graph, model: format!("{name:?} is expected") });
        }
    }
    Ok(())
}

/// Compares the model's run with what the graph recorded of its own.
fn check_same(original: &Original, graph: &AttributionGraph) -> Result<()> {
    let largest = original.logits.iter().fold(0f32, |m, l| m.max(l.abs())).max(1.0);
    for (token, (here, there)) in original.logits.iter().zip(&graph.logits).enumerate() {
        if (here - there).abs() > LOGIT_TOLERANCE * largest {
            let (graph, model) = (format!("{token} is {there}"), here.to_string());
            return Err(Error::GraphMismatch { what: "logit of token", graph, model });
        }
    }
    let here = feature_ids(original);
    let others = graph.active_features.iter().filter(|f| here.binary_search(f).is_err()).count();
    let shared = graph.active_features.len() - others;
    let n_different = others + here.len() - shared;
    if n_different as f64 > MAX_SHARE_OF_OTHERS * here.len().max(graph.active_features.len()) as f64 {
        let other = differing(&graph.active_features, &here).first().copied();
        let other = other.map_or(String::new(), |f| format!(", such as {}_{}_{}", f.layer, f.feature, f.pos));
        let (graph, model) = (graph.active_features.len().to_string(), here.len());
        let model = format!("{model}, and {n_different} are not in both{other}");
        return Err(Error::GraphMismatch { what: "active features are", graph, model });
    }
    Ok(())
}

/// Ids of the active features of a run, in order.
fn feature_ids(original: &Original) -> Vec<FeatureId> {
    let id = |f: &crate::replacement::ActiveFeature| FeatureId {
        layer: f.layer as u32,
        pos: f.pos as u32,
        feature: f.feature as u32,
    };
    original.features.all.iter().map(id).collect()
}

/// The feature at a node index, which is one of a feature.
fn feature_at(graph: &AttributionGraph, index: usize) -> FeatureId {
    graph.layout().feature_ids()[index]
}
