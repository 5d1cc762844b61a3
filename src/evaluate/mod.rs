//! `evaluate`: how good a set of transcoders is, measured on text that it was not trained on: how well features
//! reconstruct the MLPs' outputs, what the model predicts with features in their place, and what graphs made with them
//! explain (`docs/training.md`, "How good is a set").
//!
//! In: a [`Replacement`] and files of text. Out: [`Quality`], the same for any number of threads; [`layer_quality`] gives
//! its first part alone. Figures are of the weights as they are stored.

mod graphs;
pub(crate) mod layers;
mod options;
mod reconstruction;
mod replaced;
mod spread;

pub use graphs::{AblationQuality, GraphQuality, PromptAblations, PromptScores};
pub use layers::{FREQUENCY_EDGES, LayerQuality, Layers};
pub use options::{EvaluateOptions, MeasuredText, TextOptions};
pub use replaced::{Divergence, Replaced, Substituted};
pub use spread::Spread;

use serde::{Deserialize, Serialize};

use crate::corpus::Input;
use crate::error::Result;
use crate::features::Subject;
use crate::job::Job;
use crate::replacement::Replacement;

/// The version of `quality.json` that this program writes.
pub const QUALITY_FORMAT_VERSION: u32 = 1;

/// The phase of a [`Job`] that counts tokens whose layers are measured.
pub const TOKENS_PHASE: &str = "tokens";

/// The phase of a [`Job`] that counts passes with something in the place of MLPs.
pub const REPLACED_PHASE: &str = "replaced";

/// The phase of a [`Job`] that counts prompts whose graphs are scored.
pub const PROMPTS_PHASE: &str = "prompts";

/// How good a set of transcoders is: `quality.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// [`QUALITY_FORMAT_VERSION`]
    pub format_version: u32,
    /// The program that measured.
    pub program: String,
    /// The base model and its transcoders.
    pub subject: Subject,
    /// What was asked for.
    pub options: EvaluateOptions,
    /// What was measured on.
    pub text: MeasuredText,
    /// Reconstruction, sparsity and use of features, layer by layer.
    pub reconstruction: Layers,
    /// The model with features in place of MLPs; `None` where it was not asked for, or no token is followed by another.
    pub replaced: Option<Replaced>,
    /// Scores of graphs; `None` where they were not asked for, or no sequence is long enough for a prompt.
    pub graphs: Option<GraphQuality>,
    /// Influence held against ablations; `None` where it was not asked for, or no prompt has two features.
    pub ablations: Option<AblationQuality>,
}

/// Measures a set of transcoders on text.
///
/// # Errors
/// Options out of range; [`crate::Error::NothingHeldOut`], [`crate::Error::Text`] for a text that gives nothing to
/// measure on; those of reading text and weights and of the tensor operations; [`crate::Error::Cancelled`].
///
/// # Cost
/// A pass for all tokens; four for those of [`EvaluateOptions::replaced_tokens`]; one and a half for each layer for those
/// of [`EvaluateOptions::layer_tokens`]; a trace for each prompt. Memory does not grow with the text, but for the tokens
/// that the later parts read again.
pub fn evaluate(replacement: &Replacement, inputs: &[Input], options: &EvaluateOptions, job: &Job) -> Result<Quality> {
    options.check(replacement)?;
    let subject = Subject::of(replacement)?;
    let mut kept = options::Kept::new(options);
    let (text, measures) = layers::measure(replacement, inputs, &options.text, &mut |s| kept.add(s), job)?;
    replacement.keep_weights()?;
    let means: Vec<Vec<f32>> = measures.iter().map(layers::LayerMeasure::mean_output).collect();
    let replaced = replaced::measure(replacement, &kept.sequences, &means, options, job)?;
    let (graphs, ablations) = graphs::measure(replacement, kept.prompts(), options, job)?;
    Ok(Quality {
        format_version: QUALITY_FORMAT_VERSION,
        program: concat!("circuitscope ", env!("CARGO_PKG_VERSION")).to_owned(),
        subject,
        options: options.clone(),
        text,
        reconstruction: Layers::of(&measures),
        replaced,
        graphs,
        ablations,
    })
}

/// Measures reconstruction alone: one pass, without logits.
///
/// # Errors
/// As [`evaluate`].
pub fn layer_quality(
    replacement: &Replacement,
    inputs: &[Input],
    options: &TextOptions,
    job: &Job,
) -> Result<(MeasuredText, Layers)> {
    options.check(replacement)?;
    let (text, measures) = layers::measure(replacement, inputs, options, &mut |_| (), job)?;
    Ok((text, Layers::of(&measures)))
}
