//! Whether a graph tells the truth about its model: the row identity, edges against measured effects, predictions of
//! the graph against ablations in the free model, and what the kept part of the graph is worth.

mod circuit;
mod edges;
mod faithfulness;
mod statistics;

use serde::Serialize;

pub use circuit::{CircuitCheck, CurvePoint};
pub use edges::EdgeCheck;
pub use faithfulness::{AblationPoint, Faithfulness, ModeFaithfulness};

use super::effects::Readout;
use super::original::Original;
use crate::error::{Error, Result};
use crate::graph::{AttributionGraph, FeatureId};
use crate::job::Job;
use crate::replacement::{LinearModel, Replacement};

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
    /// Whether the identity holds and every edge is a measured effect, within tolerance.
    pub passed: bool,
    /// Whether rows add up.
    pub identity: IdentityCheck,
    /// Whether edges are measured effects.
    pub edges: EdgeCheck,
    /// `None` where the graph's first target is no token.
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

/// Checks a graph against the model that it was traced on.
///
/// # Errors
/// [`Error::GraphMismatch`] for a graph of another model, transcoder set or tokenizer; those of reading and of the
/// tensor operations.
pub fn verify(
    replacement: &Replacement,
    graph: &AttributionGraph,
    options: &VerifyOptions,
    job: &Job,
) -> Result<Verification> {
    let tokens = check_shape(replacement, graph)?;
    replacement.model.keep_layers()?;
    let (original, linear) = Original::linearized(replacement, &tokens, job)?;
    check_same(&original, graph)?;

    let largest = graph.row_identity_error();
    let identity = IdentityCheck {
        n_rows: graph.layout().n_rows(),
        largest_relative_error: largest,
        tolerance: IDENTITY_TOLERANCE,
        passed: largest <= IDENTITY_TOLERANCE,
    };
    let targets = token_targets(&original, &linear, graph)?;
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
        passed: identity.passed && edges.passed,
        identity,
        edges,
        faithfulness,
        circuit,
    })
}

/// A target that is a token, with the direction that its logit is read by.
#[derive(Clone, Debug)]
struct TokenTarget {
    index: usize,
    readout: Readout,
}

/// Targets whose directions follow from a token id; others (differences, features, own directions) are not in the file.
fn token_targets(original: &Original, linear: &LinearModel, graph: &AttributionGraph) -> Result<Vec<TokenTarget>> {
    let model = &original.replacement.model;
    let (_, mean_row) = model.logits_and_mean_row(&linear.final_normed.narrow(0, 0, 1)?)?;
    let mut targets = Vec::new();
    for (index, &id) in graph.target_ids.iter().enumerate() {
        let Ok(token) = u32::try_from(id) else { continue };
        let direction = (model.unembedding_rows(&[token])?.squeeze(0)? - &mean_row)?;
        let pos = graph.meta.target_positions[index] as usize;
        targets.push(TokenTarget { index, readout: Readout { pos, direction } });
    }
    Ok(targets)
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
        let (graph, model) = (graph.active_features.len().to_string(), here.len().to_string());
        let model = format!("{model}, and {n_different} are not in both");
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
