//! One prompt, with and without changes.

use serde::Serialize;

use super::TokenizedPrompt;
use crate::error::Result;
use crate::intervene::{
    Alternative, CompareOptions, Comparison, FeatureGroup, GenerateOptions, HeadIntervention, Intervention, Mode,
    Original, SweepResult,
};
use crate::job::Job;
use crate::replacement::Replacement;

/// How an intervention runs, and what is shown of it.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// What is held to the original run.
    pub mode: Mode,
    /// What the comparison shows.
    pub compare: CompareOptions,
    /// Continue the prompt too, with and without the changes.
    pub generate: Option<GenerateOptions>,
    /// Groups of features that are read before and after; not in sweeps.
    pub groups: Vec<FeatureGroup>,
    /// Heads that are changed too, in every run.
    pub heads: Vec<HeadIntervention>,
}

/// What an intervention did. Reads like its [`Comparison`]: `target`, `tokens`, `features`, `kl_divergence`.
#[derive(Clone, Debug, Serialize)]
pub struct Intervened {
    /// The prompt's text.
    pub prompt: String,
    /// The text of every token. `[n_pos]`
    pub prompt_tokens: Vec<String>,
    /// What was changed, in the order of the request.
    pub interventions: Vec<String>,
    /// What was held to the original run.
    pub mode: String,
    /// The changed run beside the original.
    #[serde(flatten)]
    pub comparison: Comparison,
    /// Both continuations, where they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub continuation: Option<Continuation>,
    /// Of the unchanged run, at the last position. `[d_vocab]`
    #[serde(skip)]
    pub logits_before: Vec<f32>,
    /// Of the changed run, at the last position. `[d_vocab]`
    #[serde(skip)]
    pub logits_after: Vec<f32>,
}

impl std::ops::Deref for Intervened {
    type Target = Comparison;

    fn deref(&self) -> &Comparison {
        &self.comparison
    }
}

/// What many alternatives of one intervention did.
#[derive(Clone, Debug, Serialize)]
pub struct Swept {
    /// The prompt's text.
    pub prompt: String,
    /// The text of every token. `[n_pos]`
    pub prompt_tokens: Vec<String>,
    /// What was changed in every alternative.
    pub interventions: Vec<String>,
    /// What was held to the original run.
    pub mode: String,
    /// One point an alternative.
    #[serde(flatten)]
    pub result: SweepResult,
}

/// What the model goes on with.
#[derive(Clone, Debug, Serialize)]
pub struct Continuation {
    /// Text of the unchanged model's continuation.
    pub original: String,
    /// Text of the changed model's continuation.
    pub changed: String,
    /// Token ids of the unchanged model's continuation.
    pub original_tokens: Vec<u32>,
    /// Token ids of the changed model's continuation.
    pub changed_tokens: Vec<u32>,
    /// Whether what the mode holds was held at generated tokens too.
    pub is_held: bool,
}

/// Runs a prompt with and without `interventions`.
pub(super) fn run(
    replacement: &Replacement,
    prompt: TokenizedPrompt,
    interventions: &[Intervention],
    options: &RunOptions,
    job: &Job,
) -> Result<Intervened> {
    let mut original = Original::run(replacement, &prompt.tokens, job)?;
    // Before anything is changed.
    let unchanged = match &options.generate {
        Some(generate) => Some(original.generate(&[], &Mode::Free, generate, job)?),
        None => None,
    };
    original.change_heads(&options.heads, job)?;
    let outcome = original.intervene_reading(&[interventions.to_vec()], &options.mode, &options.groups, job)?.remove(0);
    let comparison = original.compare(&outcome, &options.compare)?;
    let continuation = match (&options.generate, unchanged) {
        (Some(generate), Some(unchanged)) => {
            Some(continue_changed(&original, unchanged, interventions, &options.mode, generate, job)?)
        }
        _ => None,
    };
    Ok(Intervened {
        prompt_tokens: prompt.tokens.iter().map(|&token| replacement.tokenizer.token(token)).collect(),
        prompt: prompt.text,
        interventions: descriptions(interventions, &options.heads),
        mode: options.mode.to_string(),
        comparison,
        continuation,
        logits_before: original.logits,
        logits_after: outcome.logits,
    })
}

/// Runs a prompt once for each of `alternatives`, which have `interventions` among theirs.
pub(super) fn sweep(
    replacement: &Replacement,
    prompt: TokenizedPrompt,
    interventions: &[Intervention],
    alternatives: &[Alternative],
    options: &RunOptions,
    job: &Job,
) -> Result<Swept> {
    let mut original = Original::run(replacement, &prompt.tokens, job)?;
    original.change_heads(&options.heads, job)?;
    let result = original.sweep(alternatives, &options.mode, &options.compare, job)?;
    Ok(Swept {
        prompt_tokens: prompt.tokens.iter().map(|&token| replacement.tokenizer.token(token)).collect(),
        prompt: prompt.text,
        interventions: descriptions(interventions, &options.heads),
        mode: options.mode.to_string(),
        result,
    })
}

fn descriptions(interventions: &[Intervention], heads: &[HeadIntervention]) -> Vec<String> {
    interventions.iter().map(ToString::to_string).chain(heads.iter().map(ToString::to_string)).collect()
}

/// The changed continuation beside that of the unchanged model.
fn continue_changed(
    original: &Original,
    original_tokens: Vec<u32>,
    interventions: &[Intervention],
    mode: &Mode,
    options: &GenerateOptions,
    job: &Job,
) -> Result<Continuation> {
    let changed_tokens = original.generate(interventions, mode, options, job)?;
    let tokenizer = &original.replacement.tokenizer;
    Ok(Continuation {
        original: tokenizer.decode(&original_tokens),
        changed: tokenizer.decode(&changed_tokens),
        original_tokens,
        changed_tokens,
        is_held: options.keep_frozen,
    })
}
