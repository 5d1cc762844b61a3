//! How much each layer and position gives to some targets, from their rows alone: features and errors are computed, read
//! and let go layer by layer, patterns too, so that a prompt of any length has room.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::linear_model::{FrozenLayer, LinearModel};
use super::pull_back::{TargetBatch, TargetSite};
use super::run::{LinearWeights, Run};
use super::sources::{Origin, Sources, SourcesBuilder};
use super::{OpenPositions, Replacement};
use crate::error::{ErrorContext, Result};
use crate::job::Job;
use crate::model::HookPoint;
use crate::ops::RaggedBatch;
use crate::transcoder::Candidate;

/// Positions whose features are held at once.
const POSITIONS_AT_ONCE: usize = 512;

/// `Σ|effect|` of what is at each place, for every target.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PlaceEffects {
    /// Of the features. `[n_targets][n_layers * n_pos]`, layer-major
    pub features: Vec<Vec<f64>>,
    /// Of the errors. `[n_targets][n_layers * n_pos]`
    pub errors: Vec<Vec<f64>>,
    /// Of the tokens. `[n_targets][n_pos]`
    pub tokens: Vec<Vec<f64>>,
}

/// A prompt that was run, of which no more is kept than what the linear model is made from.
#[derive(Debug)]
pub struct Prepared {
    pub(super) tokens: Vec<u32>,
    pub(super) run: Run,
    pub(super) weights: Vec<LinearWeights>,
    /// The linear model without features and layers: what targets are chosen by.
    shell: LinearModel,
}

impl Prepared {
    /// The linear model of all positions without its features, sources and layers. Targets can be chosen by it.
    pub fn shell(&self) -> &LinearModel {
        &self.shell
    }
}

impl Replacement {
    /// Runs a prompt without keeping its patterns.
    ///
    /// # Errors
    /// Those of a forward pass; [`crate::Error::OutOfMemory`].
    pub fn prepare(&self, tokens: &[u32], job: &Job) -> Result<Prepared> {
        let (run, weights) = self.run_without_patterns(tokens, 0, job)?;
        let shell = self.shell(tokens, &run)?;
        Ok(Prepared { tokens: tokens.to_vec(), run, weights, shell })
    }

    /// The linear model of a prepared prompt, with some positions closed.
    ///
    /// # Errors
    /// As [`Replacement::linearize_open`].
    pub fn linearize_prepared(&self, prepared: Prepared, positions: &OpenPositions, job: &Job) -> Result<LinearModel> {
        let Prepared { tokens, run, weights, shell: _ } = prepared;
        self.linearize_run(&tokens, run, weights, positions, job)
    }

    /// What each layer and position gives to the targets of batches, whose members are numbered from 0 on over all of them.
    ///
    /// A feature of a cross-layer transcoder writes to several layers; what all features write at a place is one thing
    /// here, as is what errors write.
    ///
    /// # Errors
    /// Those of reading and of the tensor operations; [`crate::Error::Cancelled`].
    ///
    /// # Cost
    /// A pull-back of the targets, and encoders and active decoder rows of all positions once for every batch.
    pub fn place_effects(&self, prepared: &Prepared, batches: &[TargetBatch], job: &Job) -> Result<PlaceEffects> {
        let mut found = PlaceEffects::default();
        for batch in batches {
            self.add_places(prepared, batch, &mut found, job)?;
        }
        Ok(found)
    }

    fn add_places(&self, prepared: &Prepared, batch: &TargetBatch, found: &mut PlaceEffects, job: &Job) -> Result<()> {
        let (n_pos, n_layers, n_targets) = (prepared.tokens.len(), self.model.config.n_layers, batch.positions.len());
        let mut at = PlaceEffects {
            features: vec![vec![0.0; n_layers * n_pos]; n_targets],
            errors: vec![vec![0.0; n_layers * n_pos]; n_targets],
            tokens: vec![vec![0.0; n_pos]; n_targets],
        };
        // A gradient before an attention goes down a layer at a time, through a model of that layer alone.
        let (mut grad, top) = match batch.site {
            TargetSite::FinalNorm => {
                let model = LinearModel { embed_sources: prepared.one_a_position(self)?, ..prepared.shell.clone() };
                (last_gradient(&model, batch)?, n_layers)
            }
            TargetSite::InputHook { layer } => {
                let model = self.one_layer(prepared, layer)?;
                let batch = TargetBatch { site: TargetSite::InputHook { layer: 0 }, ..batch.clone() };
                (last_gradient(&model, &batch)?, layer)
            }
            TargetSite::AttentionInput { layer } => (batch.gradients.clone(), layer),
        };
        let ragged = RaggedBatch::new(batch.positions.clone());
        for layer in (0..top).rev() {
            job.check()?;
            let model = self.one_layer(prepared, layer)?;
            let below = TargetBatch {
                site: TargetSite::AttentionInput { layer: 1 },
                positions: batch.positions.clone(),
                gradients: grad,
            };
            let mut gradients = Vec::new();
            model.pull_back(&below, &mut |_, grad, _| {
                gradients.push(grad.copy()?);
                Ok(())
            })?;
            // The first read is at the layer's output hook, the last one before its attention.
            let at_output = gradients.swap_remove(0);
            self.read_places(prepared, layer, &at_output, &ragged, &mut at)?;
            grad = gradients.pop().unwrap_or(at_output);
            job.report("map", top - layer, top);
        }
        let tokens = self.embed_sources(&prepared.tokens, &OpenPositions::all(n_pos))?;
        let effects = tokens.effects(&grad, &ragged)?;
        for (target, of_tokens) in at.tokens.iter_mut().enumerate() {
            let row: Vec<f32> = effects.get(target)?.contiguous()?.to_vec1()?;
            for (origin, effect) in tokens.origins.iter().zip(row) {
                if let Origin::Token { pos } = *origin {
                    of_tokens[pos] += f64::from(effect.abs());
                }
            }
        }
        found.features.extend(at.features);
        found.errors.extend(at.errors);
        found.tokens.extend(at.tokens);
        Ok(())
    }

    /// Adds what features and errors of a layer give. `grad` `[n_rows, d_model]` at its output hook
    fn read_places(
        &self,
        prepared: &Prepared,
        layer: usize,
        grad: &Tensor,
        ragged: &RaggedBatch,
        found: &mut PlaceEffects,
    ) -> Result<()> {
        let (n_pos, d_model) = (prepared.tokens.len(), self.model.config.d_model);
        let n_excluded = self.n_excluded(&prepared.tokens);
        let kept = &prepared.run.activations;
        let transcoder = &self.transcoders.layers[layer];
        let grad: Vec<f32> = grad.flatten_all()?.to_vec1()?;
        let b_dec: Vec<f32> = transcoder.b_dec().flatten_all()?.to_vec1()?;
        let is_per_layer = (0..=layer).all(|from| self.transcoders.n_written(from) == 1);
        let (inputs, outputs) =
            (kept.need(self.input_point(layer))?.squeeze(0)?, kept.need(self.output_point(layer))?.squeeze(0)?);
        // Positions after the last target carry no gradient.
        for first in (n_excluded..n_pos.min(ragged.n_segments())).step_by(POSITIONS_AT_ONCE) {
            let n = POSITIONS_AT_ONCE.min(n_pos.min(ragged.n_segments()) - first);
            let input = inputs.narrow(0, first, n)?.contiguous()?;
            let mut output: Vec<f32> = outputs.narrow(0, first, n)?.flatten_all()?.to_vec1()?;
            if let Some(skip) = transcoder.skip(&input)? {
                let skip: Vec<f32> = skip.flatten_all()?.to_vec1()?;
                output.iter_mut().zip(skip).for_each(|(output, skip)| *output -= skip);
            }
            let active = match is_per_layer {
                true => transcoder.active(&input).context(|| format!("cannot encode layer {layer}"))?,
                // What all of them write is the output but for the error, which is read with it.
                false => vec![Vec::new(); n],
            };
            let wanted: Vec<usize> = active.iter().flatten().map(|candidate| candidate.feature as usize).collect();
            let decoders = transcoder.decoder_vecs(&wanted, &Device::Cpu);
            let decoders = decoders.context(|| format!("cannot read the decoder of layer {layer}"))?;
            let decoders: Vec<f32> = decoders.flatten_all()?.to_vec1()?;
            let mut starts = vec![0];
            active.iter().for_each(|here| starts.push(starts[starts.len() - 1] + here.len()));
            let places: Vec<Vec<(f64, f64)>> = (0..n)
                .into_par_iter()
                .map(|at| {
                    let place = Place {
                        active: &active[at],
                        decoders: &decoders[starts[at] * d_model..starts[at + 1] * d_model],
                        output: &output[at * d_model..(at + 1) * d_model],
                        b_dec: &b_dec,
                    };
                    let from = ragged.start(first + at) * d_model;
                    let grad = &grad[from..from + ragged.count(first + at) * d_model];
                    place.effects(grad)
                })
                .collect();
            for (at, effects) in places.into_iter().enumerate() {
                let cell = layer * n_pos + first + at;
                for (target, (features, error)) in effects.into_iter().enumerate() {
                    found.features[target][cell] += features;
                    found.errors[target][cell] += error;
                }
            }
        }
        Ok(())
    }

    /// A model of one layer, layer 0 of it, with something to read at its output and below its attention.
    fn one_layer(&self, prepared: &Prepared, layer: usize) -> Result<LinearModel> {
        let n_pos = prepared.tokens.len();
        let positions = OpenPositions::all(n_pos);
        let kept = &prepared.run.activations;
        let pattern = self.model.patterns_of(layer, kept.need(HookPoint::ResidPre(layer))?, positions.open())?;
        let frozen: FrozenLayer = self.freeze(layer, prepared.weights[layer].clone(), pattern, &positions, kept)?;
        let sources = prepared.one_a_position(self)?;
        Ok(LinearModel {
            layers: vec![frozen],
            mlp_sources: vec![sources.clone()],
            attn_constants: vec![None],
            embed_sources: sources,
            ..prepared.shell.clone()
        })
    }
}

impl Prepared {
    /// Zeros at every position: something that is read, so that the gradient is seen.
    fn one_a_position(&self, replacement: &Replacement) -> Result<Sources> {
        let d_model = replacement.model.config.d_model;
        let mut builder = SourcesBuilder::new(d_model);
        for _ in 0..self.tokens.len() {
            builder.push(Origin::Constant, &vec![0.0; d_model]);
            builder.end_position();
        }
        builder.build(&Device::Cpu)
    }
}

/// The gradient where a pull-back reads last: at the embedding.
fn last_gradient(model: &LinearModel, batch: &TargetBatch) -> Result<Tensor> {
    let mut last = batch.gradients.clone();
    model.pull_back(batch, &mut |_, grad, _| {
        last = grad.copy()?;
        Ok(())
    })?;
    Ok(last)
}

/// What is at one layer and position.
struct Place<'a> {
    active: &'a [Candidate],
    /// `[active.len(), d_model]`
    decoders: &'a [f32],
    /// What the MLP writes, less what a skip connection passes on. `[d_model]`
    output: &'a [f32],
    b_dec: &'a [f32],
}

impl Place<'_> {
    /// `Σ|effect|` of features and of the error on each target. `grad` `[n_targets, d_model]`
    fn effects(&self, grad: &[f32]) -> Vec<(f64, f64)> {
        let d_model = self.output.len();
        let mut error: Vec<f32> = self.output.iter().zip(self.b_dec).map(|(output, bias)| output - bias).collect();
        for (candidate, vec) in self.active.iter().zip(self.decoders.chunks_exact(d_model)) {
            error.iter_mut().zip(vec).for_each(|(error, x)| *error -= candidate.value * x);
        }
        let of_target = |grad: &[f32]| {
            let dot = |vec: &[f32]| vec.iter().zip(grad).map(|(a, b)| a * b).sum::<f32>();
            let of_features = self.active.iter().zip(self.decoders.chunks_exact(d_model));
            let features = of_features.map(|(candidate, vec)| f64::from((candidate.value * dot(vec)).abs())).sum();
            (features, f64::from(dot(&error).abs()))
        };
        grad.chunks_exact(d_model).map(of_target).collect()
    }
}
