//! The pull-back, a vector-Jacobian product (VJP) of the frozen model: gradients of a batch of targets, from where they
//! are put to every source below (definitions 4).
//!
//! The frozen model is linear, so its Jacobian is the model itself, and this is its transpose, layer by layer:
//! `grad_pre = grad_mid + W_Vᵀ · patternᵀ · W_Oᵀ · grad_mid`, where weights and pattern have the norms around attention
//! folded in ([`FrozenLayer`]), and for skip transcoders `grad_mid = grad_post + hookᵀ(W_skipᵀ · outᵀ(grad_post))`.

use candle_core::{DType, Tensor};

use super::linear_model::{FrozenLayer, LinearModel};
use super::sources::Sources;
use crate::error::Result;
use crate::ops::frozen_attention::Queries;
use crate::ops::{
    NormFactors, RaggedBatch, add_product, closed_effects, frozen_attention, frozen_attention_own, matmul,
    norm_pullback,
};

/// Where the gradients of a batch are put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetSite {
    /// On the input-hook tensor of a layer: targets are features of it.
    InputHook {
        /// The layer of the hook.
        layer: usize,
    },
    /// On the residual stream before a layer: targets are what its attention reads.
    AttentionInput {
        /// The layer of the attention.
        layer: usize,
    },
    /// On the output of the final norm: targets are directions that the unembedding reads.
    FinalNorm,
}

/// Targets that are pulled back together.
#[derive(Clone, Debug)]
pub struct TargetBatch {
    /// Where all of them are put.
    pub site: TargetSite,
    /// Places of their positions among the open ones, descending. `[n_targets]`
    pub positions: Vec<usize>,
    /// `[n_targets, d_model]`, f32: each at its target's own position. At [`TargetSite::AttentionInput`], where a
    /// target may read several positions: `[n_rows, d_model]` in the layout of the batch.
    pub gradients: Tensor,
}

/// The gradient of a batch as it enters the heads of a layer from above.
#[derive(Clone, Copy, Debug)]
pub struct AtHeads<'a> {
    /// The layer of the heads.
    pub layer: usize,
    /// The gradient at what each head read: `W_Oᵀ` times that at `resid_mid`, the gain of a norm after attention
    /// included. `[n_rows, n_heads · d_head]`, or `[n_targets, n_heads · d_head]`
    pub grad_z: &'a Tensor,
    /// Which of the two: where targets enter, the gradient is zero but at their own positions.
    pub queries: Queries,
    /// The layout of the batch.
    pub ragged: &'a RaggedBatch,
}

/// Called before the gradient goes through the heads of a layer.
pub type SeeHeads<'a> = &'a mut dyn FnMut(AtHeads) -> Result<()>;

/// Called at every place with sources: these, and the gradient of the batch's targets there, `[n_rows, d_model]`.
pub type Read<'a> = &'a mut dyn FnMut(&Sources, &Tensor, &RaggedBatch) -> Result<()>;

impl LinearModel {
    /// Pulls a batch back through the frozen layers: the VJP of each target's gradient. On the way, `read` gets every
    /// place's sources with the gradient there; layers from the top down, then the embedding. [`Sources::effects`] are
    /// their products.
    ///
    /// Layers at or above the targets and positions after them are never touched. Closed positions get no gradient: what
    /// it would have been is what [`LinearModel::closed_effects`] multiplies.
    ///
    /// # Cost
    /// For a target at position c, per layer below it: `2 (c + 1)` times the sizes of `W_O` and `W_V`.
    ///
    /// # Errors
    /// Those of the tensor operations and of `read`.
    pub fn pull_back(&self, batch: &TargetBatch, read: Read) -> Result<()> {
        self.pull_back_seeing_heads(batch, read, &mut |_| Ok(()))
    }

    /// As [`LinearModel::pull_back`]; `see` gets the gradient before it goes through each layer's heads.
    ///
    /// # Errors
    /// As [`LinearModel::pull_back`], and those of `see`.
    pub fn pull_back_seeing_heads(&self, batch: &TargetBatch, read: Read, see: SeeHeads) -> Result<()> {
        let ragged = RaggedBatch::new(batch.positions.clone());
        let (n_targets, d_model) = (ragged.n_targets(), batch.gradients.dim(1)?);
        if n_targets == 0 {
            return Ok(());
        }
        let own_rows: Vec<u32> = ragged.own_rows().into_iter().map(|row| row as u32).collect();
        let own_rows = Tensor::from_vec(own_rows, n_targets, batch.gradients.device())?;
        let at_site = match batch.site {
            TargetSite::AttentionInput { .. } => batch.gradients.clone(),
            TargetSite::InputHook { .. } | TargetSite::FinalNorm => {
                let zeros = Tensor::zeros((ragged.n_rows(), d_model), DType::F32, batch.gradients.device())?;
                zeros.index_add(&own_rows, &batch.gradients, 0)?
            }
        };

        // `grad` is the gradient of the residual stream above layer `top`; `at_output` is that after the norm which
        // the layer's MLP writes through, where there is one.
        let (mut grad, mut at_output, top) = match batch.site {
            TargetSite::FinalNorm => {
                let top = self.layers.len();
                let grad = norm_pullback(&at_site, None, &self.final_norm, &ragged)?;
                let at_output = self.pull_back_output(top, &grad, &ragged)?;
                (grad, at_output, top)
            }
            TargetSite::AttentionInput { layer } => {
                // A copy: on the CPU the gradient is changed in place further down, and this one is the caller's.
                let at_output = self.pull_back_output(layer, &at_site, &ragged)?;
                (at_site.copy()?, at_output, layer)
            }
            TargetSite::InputHook { layer } => {
                let frozen = &self.layers[layer];
                let resid_mid = frozen.pull_back_input(at_site, None, &ragged)?;
                self.read_constants(layer, &resid_mid, &ragged, read)?;
                // The gradient is zero but at the targets' own positions, so only these go through `W_O`.
                let z = matmul(&resid_mid.index_select(&own_rows, 0)?, &frozen.w_o)?;
                see(AtHeads { layer, grad_z: &z, queries: Queries::Own, ragged: &ragged })?;
                let v = frozen_attention_own(&z, frozen.pattern.tensor(), self.n_kv_heads, &ragged)?;
                let post = self.output_norm_below(layer);
                let (grad, at_output) = add_product(resid_mid, &v, &frozen.w_v, post, &ragged)?;
                (grad, at_output, layer)
            }
        };
        for layer in (0..top).rev() {
            let frozen = &self.layers[layer];
            let at_mlp = at_output.as_ref().unwrap_or(&grad);
            read_sources(&self.mlp_sources[layer], at_mlp, &ragged, read)?;
            if let Some(w_skip) = &frozen.w_skip {
                grad = frozen.pull_back_input(matmul(at_mlp, w_skip)?, Some(&grad), &ragged)?;
            }
            self.read_constants(layer, &grad, &ragged, read)?;
            let z = matmul(&grad, &frozen.w_o)?;
            see(AtHeads { layer, grad_z: &z, queries: Queries::All, ragged: &ragged })?;
            let v = frozen_attention(&z, frozen.pattern.tensor(), self.n_kv_heads, &ragged)?;
            (grad, at_output) = add_product(grad, &v, &frozen.w_v, self.output_norm_below(layer), &ragged)?;
        }
        read_sources(&self.embed_sources, &grad, &ragged, read)
    }

    /// What a layer's heads give to the targets from closed positions: the gradient that they would send there, times the
    /// residual stream there. `None` where all positions are open. `[n_targets, n_closed]`, row-major
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub fn closed_effects(&self, at: &AtHeads) -> Result<Option<Vec<f32>>> {
        let closed = self.layers[at.layer].closed.as_ref();
        let effects = closed.map(|keys| closed_effects(at.grad_z, keys, self.n_kv_heads, at.ragged, at.queries));
        Ok(effects.transpose()?)
    }

    /// The norm that the MLP below `layer` writes through, where there is one.
    fn output_norm_below(&self, layer: usize) -> Option<&NormFactors> {
        self.layers[..layer].last()?.output_norm.as_ref()
    }

    /// What the norm after the MLP below `layer` makes of a gradient, where there is one. `[n_rows, d_model]`
    pub(super) fn pull_back_output(&self, layer: usize, grad: &Tensor, ragged: &RaggedBatch) -> Result<Option<Tensor>> {
        let factors = self.output_norm_below(layer);
        Ok(factors.map(|factors| norm_pullback(grad, None, factors, ragged)).transpose()?)
    }

    /// What biases of a layer's attention give to the targets.
    fn read_constants(&self, layer: usize, resid_mid: &Tensor, ragged: &RaggedBatch, read: Read) -> Result<()> {
        match &self.attn_constants[layer] {
            Some(constants) => read_sources(constants, resid_mid, ragged, read),
            None => Ok(()),
        }
    }
}

impl FrozenLayer {
    /// From the input hook to `resid_mid`, added to a residual gradient. `[n_rows, d_model]` to the same
    pub(super) fn pull_back_input(
        &self,
        at_hook: Tensor,
        residual: Option<&Tensor>,
        ragged: &RaggedBatch,
    ) -> Result<Tensor> {
        match (&self.input_norm, residual) {
            (Some(factors), residual) => Ok(norm_pullback(&at_hook, residual, factors, ragged)?),
            (None, Some(residual)) => Ok((at_hook + residual)?),
            (None, None) => Ok(at_hook),
        }
    }
}

fn read_sources(sources: &Sources, grad: &Tensor, ragged: &RaggedBatch, read: Read) -> Result<()> {
    if sources.origins.is_empty() {
        return Ok(());
    }
    read(sources, grad, ragged)
}
