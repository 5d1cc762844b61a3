//! The original run of a prompt, and runs that are changed.

use candle_core::{Device, Tensor};

use super::change::{Intervention, Mode};
use super::edit::{Constraint, InterventionEdit, Resolved};
use super::followed::last_rows;
use super::head_change::{HeadEdits, HeadIntervention};
use super::read_out::{FeatureGroup, GroupChange};
use crate::error::{Error, Result};
use crate::job::Job;
use crate::model::{Activations, ForwardOptions, Hold, HookPoint, Pass};
use crate::replacement::{ActiveFeatures, LinearModel, OpenPositions, Replacement, Run};
use crate::transcoder::ActivationFunction;

/// The original run of a prompt: what changed runs start from, are held to and are compared with.
#[derive(Debug)]
pub struct Original<'a> {
    /// The base model and its transcoders.
    pub replacement: &'a Replacement,
    /// The prompt's token ids. `[n_pos]`
    pub tokens: Vec<u32>,
    /// Active features of the prompt.
    pub features: ActiveFeatures,
    /// At the last position. `[d_vocab]`
    pub logits: Vec<f32>,
    pub(super) run: Run,
    pub(super) n_excluded: usize,
    heads: HeadEdits,
}

/// What a changed run of the prompt ends in.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// At the last position. `[d_vocab]`
    pub logits: Vec<f32>,
    /// Pre-activations of the features that are active in the original run, in their order. `[n_active]`
    pub pre_activations: Vec<f32>,
    /// Their activations: 0 where a feature is off. `[n_active]`
    pub activations: Vec<f32>,
    /// What the final norm gives at the last position. `[d_model]`
    pub final_normed: Vec<f32>,
    /// The groups that were asked for.
    pub groups: Vec<GroupChange>,
}

/// A pass of changed alternatives, from the lowest layer that any of them changes.
#[derive(Debug)]
pub(super) struct ChangedRun {
    pub pass: Pass,
    /// What was asked for, of the layers from `first_layer` on.
    pub activations: Activations,
    pub first_layer: usize,
}

/// What a changed run keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// Only where it ends.
    Nothing,
    /// The tensors at the input hooks.
    Inputs,
    /// The residual stream before a layer.
    Stream(usize),
}

impl<'a> Original<'a> {
    /// Runs the model on a prompt and finds its active features.
    ///
    /// # Errors
    /// Those of [`crate::model::Model::check_tokens`], of reading, and of the tensor operations;
    /// [`crate::Error::Cancelled`].
    pub fn run(replacement: &'a Replacement, tokens: &[u32], job: &Job) -> Result<Self> {
        let run = replacement.run(tokens, job)?;
        let features = replacement.active_features(&run.activations, replacement.n_excluded(tokens), job)?;
        Self::from_run(replacement, tokens, run, features)
    }

    /// As [`Original::run`]; `kept` looks into the pass too.
    ///
    /// # Errors
    /// As [`Original::run`].
    pub fn run_keeping(
        replacement: &'a Replacement,
        tokens: &[u32],
        kept: &mut Activations,
        job: &Job,
    ) -> Result<Self> {
        let run = replacement.run_keeping(tokens, kept, job)?;
        let features = replacement.active_features(&run.activations, replacement.n_excluded(tokens), job)?;
        Self::from_run(replacement, tokens, run, features)
    }

    /// What the transcoder of a layer reads in the original run. `[1, n_pos, d_model]`
    ///
    /// # Errors
    /// [`Error::NotKept`] past the last layer.
    pub fn input_of(&self, layer: usize) -> Result<&Tensor> {
        self.run.activations.need(self.replacement.input_point(layer))
    }

    /// As [`Original::run`], with the linear model of the same run.
    ///
    /// # Errors
    /// As [`Original::run`].
    pub fn linearized(replacement: &'a Replacement, tokens: &[u32], job: &Job) -> Result<(Self, LinearModel)> {
        Self::linearized_open(replacement, tokens, &OpenPositions::all(tokens.len()), job)
    }

    /// As [`Original::linearized`], with some positions closed: without their features.
    ///
    /// # Errors
    /// As [`Original::run`]; [`Error::NeedsAllOpen`] on a GPU.
    pub fn linearized_open(
        replacement: &'a Replacement,
        tokens: &[u32],
        positions: &OpenPositions,
        job: &Job,
    ) -> Result<(Self, LinearModel)> {
        let (run, weights) = replacement.run_with_weights(tokens, job)?;
        let linear = replacement.linearize_run(tokens, run.clone(), weights, positions, job)?;
        let original = Self::from_run(replacement, tokens, run, linear.features.clone())?;
        Ok((original, linear))
    }

    fn from_run(replacement: &'a Replacement, tokens: &[u32], run: Run, features: ActiveFeatures) -> Result<Self> {
        let logits = last_logits(replacement, &run.pass)?.remove(0);
        let n_excluded = replacement.n_excluded(tokens);
        Ok(Self {
            replacement,
            tokens: tokens.to_vec(),
            features,
            logits,
            run,
            n_excluded,
            heads: HeadEdits::default(),
        })
    }

    /// Changes heads in all runs from now on, in place of what was changed before; the original run stays what it was.
    ///
    /// # Errors
    /// Heads and positions that do not exist; prompts of another length; those of a forward pass.
    pub fn change_heads(&mut self, changes: &[HeadIntervention], job: &Job) -> Result<()> {
        let changes = changes.iter().map(|change| (None, change));
        self.heads = HeadEdits::new(self.replacement, &self.tokens, changes, job)?;
        Ok(())
    }

    /// The changed heads.
    pub(super) fn heads(&self) -> &HeadEdits {
        &self.heads
    }

    /// Positions of the prompt.
    pub fn n_pos(&self) -> usize {
        self.tokens.len()
    }

    /// Runs the prompt with interventions. Each alternative is a list of them, where a later entry replaces an earlier
    /// one at the same feature and position; all alternatives go through the model as one batch, from the lowest layer
    /// that any of them changes.
    ///
    /// # Errors
    /// Interventions that do not fit model or prompt; a mode that does not fit the model; those of reading and of the
    /// tensor operations.
    pub fn intervene(&self, alternatives: &[Vec<Intervention>], mode: &Mode, job: &Job) -> Result<Vec<Outcome>> {
        self.intervene_reading(alternatives, mode, &[], job)
    }

    /// As [`Original::intervene`], and reads groups of features.
    ///
    /// # Errors
    /// As [`Original::intervene`]; features of groups that do not exist.
    pub fn intervene_reading(
        &self,
        alternatives: &[Vec<Intervention>],
        mode: &Mode,
        groups: &[FeatureGroup],
        job: &Job,
    ) -> Result<Vec<Outcome>> {
        if alternatives.is_empty() {
            return Ok(Vec::new());
        }
        let ChangedRun { pass, activations, first_layer } = self.changed_run(alternatives, mode, Keep::Inputs, job)?;
        let logits = last_logits(self.replacement, &pass)?;
        let pre_activations = self.pre_activations(&activations, first_layer, alternatives.len())?;
        let ends = last_rows(&pass.final_normed)?.into_iter().zip(logits);
        let mut outcomes = Vec::with_capacity(alternatives.len());
        for (at, ((final_normed, logits), pre_activations)) in ends.zip(pre_activations).enumerate() {
            outcomes.push(Outcome {
                activations: self.activations_of(&pre_activations, &activations, first_layer, at)?,
                groups: self.group_changes(groups, &alternatives[at], &activations, first_layer, at)?,
                logits,
                pre_activations,
                final_normed,
            });
        }
        Ok(outcomes)
    }

    /// Activations of the active features in alternative `at` of a changed run, of their pre-activations there.
    /// `[n_active]`
    ///
    /// # Cost
    /// TopK has to encode all features of the changed layers; the others look at the pre-activations alone.
    fn activations_of(
        &self,
        pre_activations: &[f32],
        activations: &Activations,
        first_layer: usize,
        at: usize,
    ) -> Result<Vec<f32>> {
        let mut all = pre_activations.to_vec();
        for layer in first_layer..self.replacement.model.config.n_layers {
            let range = self.features.layer_starts[layer]..self.features.layer_starts[layer + 1];
            let transcoder = &self.replacement.transcoders.layers[layer];
            let of_layer = self.features.all[range.clone()].iter().zip(&mut all[range]);
            match transcoder.activation() {
                ActivationFunction::Relu => of_layer.for_each(|(_, z)| *z = z.max(0.0)),
                ActivationFunction::JumpRelu { threshold } => {
                    of_layer.filter(|(f, z)| **z <= threshold[f.feature]).for_each(|(_, z)| *z = 0.0);
                }
                ActivationFunction::TopK { .. } => {
                    let input = activations.need(self.replacement.input_point(layer))?.get(at)?.contiguous()?;
                    let active = transcoder.encode(&input, 0)?.active;
                    for (f, z) in of_layer {
                        *z = active[f.pos].iter().find(|c| c.feature as usize == f.feature).map_or(0.0, |c| c.value);
                    }
                }
            }
        }
        Ok(all)
    }

    /// Where this run ends.
    pub(super) fn end(&self) -> Result<Vec<f32>> {
        Ok(last_rows(&self.run.pass.final_normed)?.remove(0))
    }

    /// As [`Original::intervene`], the logits alone. `[n_alternatives][d_vocab]`
    ///
    /// # Errors
    /// As [`Original::intervene`].
    pub(crate) fn changed_logits(
        &self,
        alternatives: &[Vec<Intervention>],
        mode: &Mode,
        job: &Job,
    ) -> Result<Vec<Vec<f32>>> {
        if alternatives.is_empty() {
            return Ok(Vec::new());
        }
        last_logits(self.replacement, &self.changed_run(alternatives, mode, Keep::Nothing, job)?.pass)
    }

    /// As [`Original::changed_logits`], with these heads changed, and with what the final norm gives at the last position.
    /// `[n_alternatives]`
    pub(super) fn changed_ends(
        &self,
        alternatives: &[Vec<Intervention>],
        heads: &HeadEdits,
        mode: &Mode,
        job: &Job,
    ) -> Result<Vec<(Vec<f32>, Vec<f32>)>> {
        let pass = self.changed_run_with(alternatives, heads, mode, Keep::Nothing, job)?.pass;
        Ok(last_logits(self.replacement, &pass)?.into_iter().zip(last_rows(&pass.final_normed)?).collect())
    }

    /// The pass of [`Original::intervene`].
    pub(super) fn changed_run(
        &self,
        alternatives: &[Vec<Intervention>],
        mode: &Mode,
        keep: Keep,
        job: &Job,
    ) -> Result<ChangedRun> {
        self.changed_run_with(alternatives, &self.heads, mode, keep, job)
    }

    fn changed_run_with(
        &self,
        alternatives: &[Vec<Intervention>],
        heads: &HeadEdits,
        mode: &Mode,
        keep: Keep,
        job: &Job,
    ) -> Result<ChangedRun> {
        mode.check(self.replacement.model.config.n_layers)?;
        let resolved = self.resolve(alternatives)?;
        self.replacement.check_changed_run(alternatives.len(), self.n_pos())?;
        let n_layers = self.replacement.model.config.n_layers;
        let first_layer = resolved.first_layer().into_iter().chain(heads.first_layer()).min().unwrap_or(n_layers);
        let resid_pre = match first_layer == n_layers {
            true => &self.run.pass.resid_final,
            false => self.run.activations.need(HookPoint::ResidPre(first_layer))?,
        };
        let resid_pre = repeat(resid_pre, resolved.n_alternatives)?;
        let mut edit = self.edit(&resolved, mode);
        let mut activations = match keep {
            Keep::Nothing => Activations::default(),
            Keep::Inputs => Activations::at((first_layer..n_layers).map(|layer| self.replacement.input_point(layer))),
            Keep::Stream(layer) => Activations::at([HookPoint::ResidPre(layer)]),
        };
        let mut head_hooks = heads.hooks(mode, n_layers, 0..self.n_pos());
        let hooks = &mut (&mut edit, (&mut head_hooks, (self.hold(mode), &mut activations)));
        let options = ForwardOptions::of(job);
        let pass = self.replacement.model.forward_from(first_layer, resid_pre, hooks, options)?;
        Ok(ChangedRun { pass, activations, first_layer })
    }

    pub(super) fn resolve(&self, alternatives: &[Vec<Intervention>]) -> Result<Resolved<'a>> {
        Resolved::new(self.replacement, alternatives, &self.run.activations, self.n_pos(), self.n_excluded)
    }

    pub(super) fn edit<'b>(&'b self, resolved: &'b Resolved<'b>, mode: &Mode) -> InterventionEdit<'b> {
        let constrained = mode.constrained_layers(self.replacement.model.config.n_layers);
        let constraint = constrained.map(|layers| Constraint { layers, original: &self.run.activations });
        InterventionEdit::new(self.replacement, resolved, constraint, 0..self.n_pos())
    }

    pub(super) fn hold(&self, mode: &Mode) -> Hold<'_> {
        hold(mode, &self.run.activations, self.replacement.model.config.n_layers)
    }

    /// Pre-activations of the active features in a changed run, for each alternative of its batch.
    ///
    /// # Shapes
    /// `activations` are at the input hooks from `first_layer` on; returns `[batch][n_active]`.
    ///
    /// # Errors
    /// [`Error::ComputedNotFinite`]; those of the tensor operations.
    pub(super) fn pre_activations(
        &self,
        activations: &Activations,
        first_layer: usize,
        batch: usize,
    ) -> Result<Vec<Vec<f32>>> {
        // Below the first changed layer everything is as it was; an activation there is its pre-activation.
        let first = self.features.layer_starts[first_layer];
        let unchanged: Vec<f32> = self.features.all[..first].iter().map(|f| f.value).collect();
        let mut all = vec![unchanged; batch];
        for layer in first_layer..self.replacement.model.config.n_layers {
            let input = activations.need(self.replacement.input_point(layer))?;
            let transcoder = &self.replacement.transcoders.layers[layer];
            let features = &self.features.all[self.features.layer_starts[layer]..self.features.layer_starts[layer + 1]];
            let mut done = 0;
            // Features are sorted by position: one product for each position, all alternatives at once.
            for here in features.chunk_by(|a, b| a.pos == b.pos) {
                let rows = input.narrow(1, here[0].pos, 1)?.squeeze(1)?.contiguous()?;
                let encoder_vecs = self.features.encoder_vecs[layer].narrow(0, done, here.len())?;
                done += here.len();
                for (z, products) in all.iter_mut().zip(rows.matmul(&encoder_vecs.t()?)?.to_vec2::<f32>()?) {
                    z.extend(products.iter().zip(here).map(|(product, f)| product + transcoder.b_enc(f.feature)));
                    let new = &z[z.len() - here.len()..];
                    if let Some((f, &value)) = here.iter().zip(new).find(|(_, value)| !value.is_finite()) {
                        let quantity = format!("the pre-activation of {}_{}_{}", f.layer, f.feature, f.pos);
                        return Err(Error::ComputedNotFinite { quantity, value });
                    }
                }
            }
        }
        Ok(all)
    }
}

/// What a pass under `mode` is held to, beside the outputs of constrained layers.
pub(super) fn hold<'b>(mode: &Mode, original: &'b Activations, n_layers: usize) -> Hold<'b> {
    match mode.constrained_layers(n_layers) {
        Some(range) if range == (0..n_layers) => Hold::PatternsAndNorms(original),
        Some(_) => Hold::Patterns(original),
        None if *mode == Mode::FrozenAttention => Hold::Patterns(original),
        None if *mode == Mode::FrozenNorms => Hold::PatternsAndNorms(original),
        None => Hold::Nothing,
    }
}

/// Logits at the last position. `[batch][d_vocab]`
pub(super) fn last_logits(replacement: &Replacement, pass: &Pass) -> Result<Vec<Vec<f32>>> {
    Ok(replacement.model.last_logits(pass)?.to_device(&Device::Cpu)?.to_vec2()?)
}

/// `[1, n_pos, d_model]` to `[n, n_pos, d_model]`
pub(super) fn repeat(resid: &Tensor, n: usize) -> Result<Tensor> {
    let (_, n_pos, d_model) = resid.dims3()?;
    Ok(resid.broadcast_as((n, n_pos, d_model))?.contiguous()?)
}
