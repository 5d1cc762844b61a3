//! What running and linearizing a prompt will take, from sizes alone.

use super::Replacement;
use super::linear_model::{ActiveFeatures, SHARED_FROM};
use crate::error::Result;
use crate::memory::MemoryPlan;
use crate::model::{MlpKind, QUERY_BLOCK};
use crate::ops::chunk_values;

/// Bytes of a value.
const F32: u64 = 4;

/// Copies of the pattern that a layer's attention has at once: scores, masked scores, pattern.
const PATTERNS_AT_WORK: u64 = 3;

/// Copies of the MLP's hidden layer at once: gate, its activation, up, their product.
const HIDDEN_AT_WORK: u64 = 4;

/// Copies of the residual stream at once, in a layer.
const RESIDUALS_AT_WORK: u64 = 6;

impl Replacement {
    /// Keeps the base model's weights in memory for the many passes that follow, where there is room for them three times:
    /// the rest of the work needs some too. Returns whether they are kept; a GPU's never are.
    ///
    /// # Errors
    /// Those of reading.
    pub fn keep_weights(&self) -> Result<bool> {
        let c = &self.model.config;
        let bytes = self.model.layer_bytes() + (c.d_vocab * c.d_model) as u64 * F32;
        let fits = MemoryPlan::new().with("weights", 3 * bytes).check(String::new, |_| String::new()).is_ok();
        let keeps = fits && self.model.device().is_cpu();
        if keeps {
            self.model.keep_layers()?;
        }
        Ok(keeps)
    }

    /// What a forward pass of `batch` sequences of `n_pos` tokens takes beyond the weights, and what is kept of it for
    /// `kept` sequences.
    fn pass_plan(&self, batch: usize, n_pos: usize, kept: usize, keeps_patterns: bool) -> MemoryPlan {
        let c = &self.model.config;
        let [batch, n_pos, kept, n_layers, n_heads, n_kv, d_head, d_model, d_mlp] =
            [batch, n_pos, kept, c.n_layers, c.n_heads, c.n_kv_heads, c.d_head, c.d_model, c.d_mlp].map(|n| n as u64);
        let pattern = n_heads * n_pos * n_pos * F32;
        // Where nobody sees the whole pattern, it is computed some queries at a time.
        let (n_patterns, at_work) = match keeps_patterns {
            true => (kept * n_layers, pattern),
            false => (0, n_heads * n_pos * n_pos.min(QUERY_BLOCK as u64) * F32),
        };
        let at_once = match c.mlp {
            MlpKind::Gated | MlpKind::Plain => 1,
            MlpKind::Experts { top_k, .. } => top_k as u64,
        };
        let layer_weights = (2 * n_heads + 2 * n_kv) * d_head * d_model + 3 * d_mlp * at_once * d_model;
        let work = n_pos * (HIDDEN_AT_WORK * d_mlp * at_once + RESIDUALS_AT_WORK * d_model);
        MemoryPlan::new()
            .with("attention patterns that are kept", n_patterns * pattern)
            .with("activations that are kept", kept * n_layers * 3 * n_pos * d_model * F32)
            .with("attention patterns of a layer", batch * PATTERNS_AT_WORK * at_work)
            .with("activations of a layer", batch * work * F32)
            .with("weights of a layer", layer_weights * F32)
    }

    /// What [`Replacement::run`] of `n_pos` tokens takes, and the encoders that are streamed over it.
    pub(super) fn run_plan(&self, n_pos: usize, keeps_weights: bool, keeps_patterns: bool) -> MemoryPlan {
        let c = &self.model.config;
        let d_model = c.d_model;
        let n_features = self.transcoders.layers.iter().map(|layer| layer.n_features()).max().unwrap_or(0);
        let step = (chunk_values(self.model.device()) / d_model.max(1)).clamp(1, n_features.max(1));
        let vo = (c.n_heads + c.n_kv_heads) * c.d_head * d_model * c.n_layers;
        let weights = if keeps_weights { vo as u64 } else { 0 };
        self.pass_plan(1, n_pos, 1, keeps_patterns)
            .with("weights that are kept", weights * F32)
            .with("a part of an encoder", (step * (d_model + n_pos)) as u64 * F32)
    }

    /// Checks that a run of a prompt fits into memory.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`], with the number of tokens that would fit.
    pub(super) fn check_run(&self, n_pos: usize, keeps_weights: bool) -> Result<()> {
        self.check_tokens_fit(n_pos, "running the model on", |n_pos| self.run_plan(n_pos, keeps_weights, true))
    }

    /// Checks that a run of a prompt fits into memory whose patterns are computed some queries at a time, and then layer by
    /// layer for `n_open` queries, when the keys up to each are kept.
    ///
    /// # Errors
    /// As [`Replacement::check_run`].
    pub(super) fn check_run_without_patterns(&self, n_pos: usize, n_open: usize) -> Result<()> {
        let c = &self.model.config;
        self.check_tokens_fit(n_pos, "running the model on", |n_pos| {
            let n_open = n_open.min(n_pos);
            let pattern = (c.n_heads * n_open * n_pos) as u64 * F32;
            let kept = (c.n_layers * c.n_heads * (n_open * (n_pos - n_open) + n_open * (n_open + 1) / 2)) as u64 * F32;
            self.run_plan(n_pos, true, false)
                .with("attention patterns that are kept", kept)
                .with("the whole pattern of a layer", PATTERNS_AT_WORK * pattern)
        })
    }

    /// Checks that a changed pass of `batch` alternatives of a prompt fits into memory.
    ///
    /// # Errors
    /// As [`Replacement::check_run`].
    pub(crate) fn check_changed_run(&self, batch: usize, n_pos: usize) -> Result<()> {
        self.check_tokens_fit(n_pos, "a changed run of", |n_pos| self.pass_plan(batch, n_pos, 0, true))
    }

    fn check_tokens_fit(&self, n_pos: usize, doing: &str, plan: impl Fn(usize) -> MemoryPlan) -> Result<()> {
        if !self.model.device().is_cpu() {
            return Ok(());
        }
        plan(n_pos).check(
            || format!("{doing} {n_pos} tokens"),
            |bytes| {
                let (mut fits, mut too_many) = (0, n_pos);
                while too_many - fits > 1 {
                    let middle = fits + (too_many - fits) / 2;
                    let place = if plan(middle).bytes() <= bytes { &mut fits } else { &mut too_many };
                    *place = middle;
                }
                match fits {
                    0 => "no prompt fits: the model alone needs more".into(),
                    fits => format!("use a prompt of at most {fits} tokens"),
                }
            },
        )
    }

    /// Checks that encoding one more layer fits, when the layers so far have had `most_active` active features at most;
    /// nothing else tells how many there will be.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`].
    pub(super) fn check_encoder(&self, most_active: usize, layer: usize, n_pos: usize) -> Result<()> {
        if !self.model.device().is_cpu() {
            return Ok(());
        }
        // As they are found, together, and without those that are discarded: a row a feature, however often it is active.
        let copies = 3;
        let n_rows = most_active.min(self.transcoders.layers[layer].n_features());
        let bytes = copies * (n_rows * self.model.config.d_model) as u64 * F32;
        MemoryPlan::new().with("encoder rows of active features", bytes).check(
            || format!("encoding layer {layer} of {n_pos} tokens with some {most_active} active features a layer"),
            |_| format!("use a prompt of at most about {} tokens", n_pos * layer / self.model.config.n_layers),
        )
    }

    /// Checks that the sources of `n_active` features fit into memory.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`].
    pub(super) fn check_sources(&self, features: &ActiveFeatures, n_pos: usize) -> Result<()> {
        if !self.model.device().is_cpu() {
            return Ok(());
        }
        let c = &self.model.config;
        let d_model = c.d_model as u64;
        // A cross-layer transcoder's features are sources at every layer that they write to.
        let n_written = (0..c.n_layers).map(|layer| self.transcoders.n_written(layer)).max().unwrap_or(1) as u64;
        let one = d_model * F32;
        let n_active = features.len();
        // A vector for each that is active, or one for all of a feature where there are many.
        let vectors = |layer: usize| {
            let (n_here, n_all) = (features.of_layer(layer).len(), self.transcoders.layers[layer].n_features());
            if n_here > SHARED_FROM * n_all { n_all } else { n_here }
        };
        let n_vectors: usize = (0..c.n_layers).map(vectors).sum();
        let vectors = n_vectors as u64 * n_written * one;
        // The decoder rows of one layer, or of all where they are needed later, beside what is made of them.
        let decoders = if n_written > 1 { vectors } else { vectors / c.n_layers.max(1) as u64 };
        let plan = MemoryPlan::new()
            .with("vectors of features", vectors)
            .with("decoder rows", 2 * decoders)
            .with("vectors of errors and biases", 2 * (c.n_layers * n_pos) as u64 * one);
        plan.check(
            || format!("the linear model of {n_pos} tokens with {n_active} active features"),
            |bytes| {
                let fitting = (n_pos as u128 * u128::from(bytes) / u128::from(plan.bytes().max(1))) as usize;
                format!("use a prompt of at most about {fitting} tokens")
            },
        )
    }
}
