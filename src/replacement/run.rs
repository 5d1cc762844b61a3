//! A run of a prompt with all that the linear model and interventions read of it.

use candle_core::Tensor;

use super::Replacement;
use crate::error::Result;
use crate::job::Job;
use crate::model::{Activations, ForwardOptions, HookPoint, Hooks, Layer, Norm, Pass, ValueOutput};

/// What a run of one prompt leaves behind.
#[derive(Clone, Debug)]
pub struct Run {
    /// What the forward pass ends in.
    pub pass: Pass,
    /// At the points of [`Replacement::points`].
    pub activations: Activations,
}

/// The weights of a layer that carry gradient.
#[derive(Clone, Debug)]
pub struct LinearWeights {
    /// The norm before attention.
    pub attn_norm: Norm,
    /// What the pattern moves.
    pub vo: ValueOutput,
    /// The norm after attention, where the family has one.
    pub post_attn_norm: Option<Norm>,
    /// The norm before the MLP.
    pub mlp_norm: Norm,
    /// The norm after the MLP, where the family has one.
    pub post_mlp_norm: Option<Norm>,
}

/// Keeps norms, `W_V` and `W_O` of every layer, without MLP and query-key weights.
#[derive(Debug, Default)]
struct KeepWeights(Vec<LinearWeights>);

impl Hooks for KeepWeights {
    fn wants(&self, _: HookPoint) -> bool {
        false
    }

    fn see(&mut self, _: HookPoint, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(None)
    }

    fn weights(&mut self, _: usize, layer: &Layer) {
        self.0.push(LinearWeights {
            attn_norm: layer.attn_norm.clone(),
            vo: layer.vo.clone(),
            post_attn_norm: layer.post_attn_norm.clone(),
            mlp_norm: layer.mlp_norm.clone(),
            post_mlp_norm: layer.post_mlp_norm.clone(),
        });
    }
}

impl Replacement {
    /// What freezes a run (patterns and norm scales), what transcoders read and are compared with, and the residual
    /// stream before each layer.
    pub fn points(&self) -> impl Iterator<Item = HookPoint> + '_ {
        let of_layer = |layer| {
            let frozen = [HookPoint::AttnPattern(layer), HookPoint::ResidPre(layer)];
            frozen.into_iter().chain([self.input_point(layer), self.output_point(layer)])
        };
        let n_layers = self.model.config.n_layers;
        HookPoint::all(n_layers).filter(|point| point.is_scale()).chain((0..n_layers).flat_map(of_layer))
    }

    /// Runs the model on a prompt.
    ///
    /// # Errors
    /// Those of [`crate::model::Model::forward`]; [`crate::Error::OutOfMemory`].
    pub fn run(&self, tokens: &[u32], job: &Job) -> Result<Run> {
        self.check_run(tokens.len(), false)?;
        self.run_with(tokens, &mut (), job)
    }

    /// As [`Replacement::run`]; `kept` looks into the pass too.
    ///
    /// # Errors
    /// As [`Replacement::run`].
    pub fn run_keeping(&self, tokens: &[u32], kept: &mut Activations, job: &Job) -> Result<Run> {
        self.check_run(tokens.len(), false)?;
        self.run_with(tokens, kept, job)
    }

    /// As [`Replacement::run`], with the weights that the linear model needs. `[n_layers]`
    ///
    /// # Errors
    /// As [`Replacement::run`].
    pub(crate) fn run_with_weights(&self, tokens: &[u32], job: &Job) -> Result<(Run, Vec<LinearWeights>)> {
        self.check_run(tokens.len(), true)?;
        let mut weights = KeepWeights::default();
        let run = self.run_with(tokens, &mut weights, job)?;
        Ok((run, weights.0))
    }

    /// As [`Replacement::run_with_weights`], without the patterns, which grow with the square of the prompt: those of
    /// `n_open` queries are computed afterwards.
    ///
    /// # Errors
    /// As [`Replacement::run`].
    pub(crate) fn run_without_patterns(
        &self,
        tokens: &[u32],
        n_open: usize,
        job: &Job,
    ) -> Result<(Run, Vec<LinearWeights>)> {
        self.check_run_without_patterns(tokens.len(), n_open)?;
        let mut weights = KeepWeights::default();
        let points = self.points().filter(|point| !matches!(point, HookPoint::AttnPattern(_)));
        let run = self.run_at(points, tokens, &mut weights, job)?;
        Ok((run, weights.0))
    }

    fn run_with(&self, tokens: &[u32], hooks: &mut dyn Hooks, job: &Job) -> Result<Run> {
        self.run_at(self.points(), tokens, hooks, job)
    }

    fn run_at(
        &self,
        points: impl Iterator<Item = HookPoint>,
        tokens: &[u32],
        hooks: &mut dyn Hooks,
        job: &Job,
    ) -> Result<Run> {
        let mut activations = Activations::at(points);
        let options = ForwardOptions::of(job);
        let pass = self.model.forward(&[tokens.to_vec()], &mut (&mut activations, hooks), options)?;
        Ok(Run { pass, activations })
    }
}
