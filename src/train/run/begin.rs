//! How training begins: from a checkpoint, from a set, or with first weights.

use std::path::PathBuf;
use std::time::Instant;

use candle_core::Tensor;
use rayon::prelude::*;

use super::super::checkpoint;
use super::super::init::{begin, mlp_of, scale_of};
use super::super::layer::Layer;
use super::super::schedule;
use super::super::step::LayerBatch;
use super::from_set::{take_over, take_thresholds};
use super::{Run, mixed};
use crate::error::{ErrorContext, Result};
use crate::intervene::Random;
use crate::job::Job;
use crate::transcoder::InputHook;

/// Tokens that scales and first weights are taken from.
const FIRST_TOKENS: usize = 8192;

impl Run<'_> {
    /// Reads a checkpoint, or begins.
    pub(super) fn begin(&mut self, unfinished: Option<(u64, PathBuf)>, job: &Job) -> Result<()> {
        if let Some(from) = self.subject.from {
            self.sets.iter_mut().for_each(|layers| take_thresholds(from, layers));
        }
        if let Some((generation, folder)) = unfinished {
            let state = checkpoint::read(&folder, &self.state.request, &mut self.sets)
                .context(|| format!("cannot go on from `{}`", folder.display()))?;
            self.generation = generation;
            self.secs_before = state.secs;
            self.resumed_from = Some(state.step);
            self.n_stepped_before = state.n_stepped;
            self.state = state;
            return Ok(());
        }
        self.state.target = match (self.options.n_tokens, self.options.minutes) {
            (None, None) => Some(self.count(job)?),
            (n_tokens, _) => n_tokens,
        };
        self.read_chunk(job)?;
        let n_first = self.activations.n_tokens().min(FIRST_TOKENS);
        let tokens: Vec<u32> = (0..n_first as u32).collect();
        let (n_layers, d_model) = (self.subject.model.config.n_layers, self.subject.model.config.d_model);
        let mut by_layer: Vec<Vec<&mut Layer>> = (0..n_layers).map(|_| Vec::new()).collect();
        for layers in &mut self.sets {
            by_layer.iter_mut().zip(layers).for_each(|(of_layer, layer)| of_layer.push(layer));
        }
        let (activations, subject, points, options) = (&self.activations, self.subject, self.points, self.options);
        by_layer.into_par_iter().enumerate().try_for_each(|(layer, of_layer)| -> Result<()> {
            job.check()?;
            let mut raw = LayerBatch::default();
            activations.batch(layer, &tokens, (1.0, 1.0), &mut raw);
            let (scale_in, scale_out) = (scale_of(&raw.x, d_model), scale_of(&raw.y, d_model));
            raw.x.iter_mut().for_each(|value| *value *= scale_in);
            raw.y.iter_mut().for_each(|value| *value *= scale_out);
            let model_layer = subject.model.layer(layer)?;
            let gain = (points.input != InputHook::MlpIn).then(|| model_layer.mlp_norm.clone());
            let mlp = |x: &Tensor| -> Result<Tensor> {
                let x = x.to_device(subject.model.device())?;
                let x = match (&gain, points.input) {
                    (Some(norm), InputHook::Normalized) => norm.affine(&x)?,
                    (Some(norm), _) => norm.apply(&x, &norm.scale(&x)?)?,
                    (None, _) => x,
                };
                mlp_of(&model_layer, points.output, &x)
            };
            for (set, begun) in of_layer.into_iter().enumerate() {
                (begun.scale_in, begun.scale_out) = (scale_in, scale_out);
                let l0 = schedule::wanted_l0(options.sets[set].l0, 0.0);
                let mut random = Random(mixed(options.seed, [1, set as u64, layer as u64]));
                if subject.from.is_none() {
                    begin(begun, &raw, &mlp, l0, &mut random).context(|| format!("cannot begin layer {layer}"))?;
                }
            }
            Ok(())
        })?;
        if let Some(from) = self.subject.from {
            for layers in &mut self.sets {
                take_over(from, layers)?;
            }
        }
        self.started = Instant::now();
        Ok(())
    }
}
