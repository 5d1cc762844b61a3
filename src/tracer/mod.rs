//! `tracer`: the front door. What a program, a server, Python and the command line call.
//!
//! [`Setup`] names a base model, its transcoders and a device; [`Tracer::open`] opens them once; then
//! [`Tracer::trace`] makes a [`TracedGraph`] of a prompt, [`Tracer::intervene`] changes features while the model runs,
//! and [`Tracer::verify`] checks a graph against the model. A [`Job`] goes with each call: it hears of progress and can
//! cancel.

mod attention;
mod direction;
mod finished_file;
mod influence_check;
mod intervention;
mod reading;
mod setup;
mod traced_graph;

pub use attention::{ExplainedScore, TargetHeads};
pub use direction::{NamedDirection, directions};
pub use finished_file::FinishedFile;
pub use influence_check::{CheckedFeature, CheckedScore, InfluenceCheck, InfluenceCheckOptions};
pub use intervention::{Continuation, Intervened, RunOptions, Swept};
pub use reading::{PromptReading, ReadOptions, Values};
pub use setup::{BaseModel, DeviceChoice, Setup};
pub use traced_graph::{TraceWork, TracedGraph};

use crate::attribution::{
    Attribution, AttributionOptions, Target, TargetKind, TargetMap, attribute, linearized, retrace, targets_of,
};
use crate::error::{Error, Result};
use crate::features::check_labels_beside;
use crate::graph::{AttributionGraph, FeatureId};
use crate::intervene::{
    Alternative, Intervention, Original, Retraced, Verification, VerifyOptions, VerifyTarget, verify,
};
use crate::job::Job;
use crate::labels::Labels;
use crate::replacement::{ActiveFeature, LinearModel, Replacement};
use crate::weights::Tokenizer;

/// A base model with its transcoders, opened. Holds weights once, whoever calls; `Send + Sync`.
#[derive(Debug)]
pub struct Tracer {
    replacement: Replacement,
    device_note: Option<String>,
}

/// A prompt: a text, or token ids that are used as they are.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// A text. A leading BOS token is added where the tokenizer has one.
    Text(String),
    /// Token ids, special tokens included.
    Tokens(Vec<u32>),
    /// What [`Tracer::tokenize`] gave.
    Tokenized(TokenizedPrompt),
}

impl From<TokenizedPrompt> for Prompt {
    fn from(prompt: TokenizedPrompt) -> Self {
        Prompt::Tokenized(prompt)
    }
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Prompt::Text(text.to_owned())
    }
}

impl From<String> for Prompt {
    fn from(text: String) -> Self {
        Prompt::Text(text)
    }
}

impl From<&String> for Prompt {
    fn from(text: &String) -> Self {
        Prompt::Text(text.clone())
    }
}

impl From<Vec<u32>> for Prompt {
    fn from(tokens: Vec<u32>) -> Self {
        Prompt::Tokens(tokens)
    }
}

impl From<&[u32]> for Prompt {
    fn from(tokens: &[u32]) -> Self {
        Prompt::Tokens(tokens.to_vec())
    }
}

/// A prompt as the model reads it.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenizedPrompt {
    /// The text; of a prompt given as ids, their decoding.
    pub text: String,
    /// Token ids, BOS included. `[n_pos]`
    pub tokens: Vec<u32>,
}

impl Tracer {
    /// Opens the model and its transcoders. Checks every header and shape; large tensors are read when they are needed.
    ///
    /// # Errors
    /// Files that are missing, damaged or do not belong together; a device that cannot be used.
    pub fn open(setup: Setup) -> Result<Self> {
        let (device, device_note) = setup.device_choice().open()?;
        let (model, transcoders) = setup.open_files()?;
        let mut replacement = Replacement::open(model, &transcoders, &device)?;
        if let Some(file) = setup.label_file() {
            let beside = std::mem::take(&mut replacement.transcoders.labels);
            let labels = Labels::read(file)?;
            labels.check(&replacement.transcoders.n_features(), &file.display().to_string())?;
            replacement.transcoders.labels = labels.or(beside);
        }
        if let Some(folder) = transcoders.path() {
            check_labels_beside(&replacement, folder)?;
        }
        Ok(Self { replacement, device_note })
    }

    /// Traces a prompt: which tokens and features made the model predict what it predicts.
    ///
    /// # Errors
    /// A prompt or targets that do not fit the model; options out of range; those of reading weights and of the device.
    pub fn trace(&self, prompt: impl Into<Prompt>, options: &AttributionOptions) -> Result<TracedGraph> {
        self.trace_with(prompt, options, &Job::default())
    }

    /// As [`Tracer::trace`]; `job` hears of the progress and can cancel.
    ///
    /// # Errors
    /// As [`Tracer::trace`], and [`Error::Cancelled`].
    pub fn trace_with(
        &self,
        prompt: impl Into<Prompt>,
        options: &AttributionOptions,
        job: &Job,
    ) -> Result<TracedGraph> {
        options.check()?;
        let prompt = self.tokenize(prompt)?;
        let linear = linearized(&self.replacement, &prompt.tokens, options, job)?;
        let found: Attribution = attribute(&self.replacement, &linear, &prompt.text, options, job)?;
        Ok(TracedGraph::from(found))
    }

    /// Where a prompt's targets get their values from, place by place, from their rows alone: much less work than a graph.
    ///
    /// # Errors
    /// As [`Tracer::trace_with`]; [`Error::NeedsCpu`]; [`Error::NeedsAllOpen`] for attention scores.
    pub fn map_with(&self, prompt: impl Into<Prompt>, options: &AttributionOptions, job: &Job) -> Result<TargetMap> {
        options.check()?;
        let prompt = self.tokenize(prompt)?;
        if !self.replacement.model.device().is_cpu() {
            return Err(Error::NeedsCpu { what: "a map" });
        }
        let prepared = self.replacement.prepare(&prompt.tokens, job)?;
        TargetMap::new(&self.replacement, &prepared, options, job)
    }

    /// The text of each token.
    pub fn token_texts(&self, tokens: &[u32]) -> Vec<String> {
        tokens.iter().map(|&token| self.replacement.tokenizer.token(token)).collect()
    }

    /// Runs a prompt with and without changes of features, and compares.
    ///
    /// # Errors
    /// Changes that do not fit model or prompt; those of reading weights and of the device.
    pub fn intervene(
        &self,
        prompt: impl Into<Prompt>,
        interventions: &[Intervention],
        options: &RunOptions,
    ) -> Result<Intervened> {
        self.intervene_with(prompt, interventions, options, &Job::default())
    }

    /// As [`Tracer::intervene`]; `job` hears of the progress and can cancel.
    ///
    /// # Errors
    /// As [`Tracer::intervene`], and [`Error::Cancelled`].
    pub fn intervene_with(
        &self,
        prompt: impl Into<Prompt>,
        interventions: &[Intervention],
        options: &RunOptions,
        job: &Job,
    ) -> Result<Intervened> {
        let prompt = self.tokenize(prompt)?;
        intervention::run(&self.replacement, prompt, interventions, options, job)
    }

    /// Runs a prompt once for each of `alternatives` and compares each with the original. `interventions` are what all of
    /// them have in common; [`RunOptions::generate`] is not used.
    ///
    /// # Errors
    /// As [`Tracer::intervene`], and [`Error::Cancelled`].
    pub fn sweep_with(
        &self,
        prompt: impl Into<Prompt>,
        interventions: &[Intervention],
        alternatives: &[Alternative],
        options: &RunOptions,
        job: &Job,
    ) -> Result<Swept> {
        let prompt = self.tokenize(prompt)?;
        intervention::sweep(&self.replacement, prompt, interventions, alternatives, options, job)
    }

    /// The features that are active in a prompt, with their activations, ascending.
    ///
    /// # Errors
    /// As [`Tracer::intervene`], and [`Error::Cancelled`].
    pub fn active_features(&self, prompt: impl Into<Prompt>, job: &Job) -> Result<Vec<(FeatureId, f32)>> {
        let prompt = self.tokenize(prompt)?;
        let original = Original::run(&self.replacement, &prompt.tokens, job)?;
        let id = |f: &ActiveFeature| FeatureId { layer: f.layer as u32, pos: f.pos as u32, feature: f.feature as u32 };
        Ok(original.features.all.iter().map(|f| (id(f), f.value)).collect())
    }

    /// Reads what a prompt does: its active features, and what `options` ask for beside them.
    ///
    /// # Errors
    /// Layers that do not exist, hook points that the model's family has not; as [`Tracer::active_features`].
    pub fn read(&self, prompt: impl Into<Prompt>, options: &ReadOptions, job: &Job) -> Result<PromptReading> {
        reading::read(&self.replacement, self.tokenize(prompt)?, options, job)
    }

    /// Checks a graph against the model: is everything that it holds what the model gives, do its rows add up, are its
    /// edges measured effects, do its predictions come
    /// true in the free model.
    ///
    /// # Errors
    /// A graph of another model, prompt or transcoder set; those of reading weights and of the device.
    pub fn verify(&self, graph: &AttributionGraph, options: &VerifyOptions, job: &Job) -> Result<Verification> {
        let replacement = &self.replacement;
        let target = |(index, target): (usize, Option<Target>)| {
            let Target { pos, kind, .. } = target?;
            Some(match kind {
                TargetKind::Direction(direction) => VerifyTarget::Direction { index, pos, direction },
                TargetKind::Feature { layer, feature, encoder_vec, .. } => {
                    VerifyTarget::Feature { index, layer, feature, pos, encoder_vec }
                }
                TargetKind::AttentionInput { layer, gradients, .. } => {
                    VerifyTarget::AttentionInput { index, layer, gradients }
                }
            })
        };
        let again = |linear: &LinearModel| {
            let known = targets_of(replacement, linear, graph)?;
            let mut again = retrace(replacement, linear, graph, job)?;
            if let Some(heads) = graph.heads()
                && let Some(targets) = known.iter().cloned().collect::<Option<Vec<Target>>>()
            {
                again.set_heads(attention::heads_again(linear, &targets, heads, &again, job)?)?;
            }
            let targets = known.into_iter().enumerate().filter_map(target);
            Ok(Retraced { graph: again, targets: targets.collect() })
        };
        verify(replacement, graph, options, again, job)
    }

    /// Compares the influences and scores of a graph with exact ones, from the rows of all active features.
    ///
    /// # Errors
    /// As [`Tracer::verify`]; a target whose direction the graph does not tell, of an older version's file.
    ///
    /// # Cost
    /// A row for every active feature, none of which is kept.
    pub fn verify_influence(
        &self,
        graph: &AttributionGraph,
        options: &InfluenceCheckOptions,
        job: &Job,
    ) -> Result<InfluenceCheck> {
        influence_check::check(&self.replacement, graph, options, job)
    }

    /// A prompt's tokens, checked against the model.
    ///
    /// # Errors
    /// An empty prompt, one longer than the model's context, ids outside the vocabulary.
    pub fn tokenize(&self, prompt: impl Into<Prompt>) -> Result<TokenizedPrompt> {
        setup::tokenized(&self.replacement.model, &self.replacement.tokenizer, prompt.into())
    }

    /// The id of the token whose text is exactly `text`, leading space included.
    ///
    /// # Errors
    /// [`Error::NotOneToken`], with near misses.
    pub fn token(&self, text: &str) -> Result<u32> {
        self.replacement.tokenizer.single_token(text)
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.replacement.tokenizer
    }

    /// The model's name, as [`Setup`] gave it.
    pub fn model_name(&self) -> &str {
        &self.replacement.source
    }

    /// The transcoder set's name.
    pub fn transcoder_name(&self) -> &str {
        &self.replacement.transcoders.scan
    }

    /// The model and its transcoders, for what the front door does not offer.
    pub fn replacement(&self) -> &Replacement {
        &self.replacement
    }

    /// Which device was chosen, in words; nothing in builds that have no choice.
    pub fn device_note(&self) -> Option<&str> {
        self.device_note.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compiles for what threads may share.
    fn shared_between_threads<T: Send + Sync>() {}

    #[test]
    fn a_server_can_share_tracers_graphs_and_jobs_between_threads() {
        shared_between_threads::<Tracer>();
        shared_between_threads::<TracedGraph>();
        shared_between_threads::<Job>();
    }
}
