//! The push-forward, a Jacobian-vector product (JVP) of the frozen model: the model applied forwards, to a change that is
//! added at one place.
//!
//! It is the map whose transpose [`LinearModel::pull_back`] is, written with plain tensor operations and without a
//! thought for speed: the yardstick of the pull-back, and the way to follow one vector upwards. Biases are no part of
//! it, since they do not change.

use candle_core::Tensor;

use super::linear_model::{FrozenLayer, LinearModel};
use crate::error::Result;
use crate::model::{join_heads, split_heads};

/// Where a change is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeSite {
    /// To the residual stream before the first layer.
    Embedding,
    /// To the tensor at the output hook of a layer.
    OutputHook {
        /// The layer of the hook.
        layer: usize,
    },
}

/// What a change does to everything above it.
#[derive(Clone, Debug)]
pub struct PushedForward {
    /// Changes at the input hooks; zero up to the layer of the change. `[n_layers]` of `[batch, n_pos, d_model]`
    pub hook_in: Vec<Tensor>,
    /// Change of the output of the final norm. `[batch, n_pos, d_model]`
    pub final_normed: Tensor,
}

impl LinearModel {
    /// Pushes a change upwards through the frozen layers: its JVP.
    ///
    /// # Shapes
    /// `change` `[batch, n_pos, d_model]`.
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub fn push_forward(&self, site: ChangeSite, change: &Tensor) -> Result<PushedForward> {
        let mut hook_in = Vec::with_capacity(self.layers.len());
        let (mut resid, first) = match site {
            ChangeSite::Embedding => (change.clone(), 0),
            ChangeSite::OutputHook { layer } => (self.layers[layer].push_output(change)?, layer + 1),
        };
        for _ in 0..first {
            hook_in.push(change.zeros_like()?);
        }
        for frozen in &self.layers[first..] {
            let resid_mid = (&resid + frozen.push_attention(&resid, self.n_kv_heads)?)?;
            let input = match &frozen.input_norm {
                Some(factors) => factors.push_forward(&resid_mid)?,
                None => resid_mid.clone(),
            };
            resid = match &frozen.w_skip {
                Some(w_skip) => (&resid_mid + frozen.push_output(&input.broadcast_matmul(&w_skip.t()?)?)?)?,
                None => resid_mid,
            };
            hook_in.push(input);
        }
        Ok(PushedForward { hook_in, final_normed: self.final_norm.push_forward(&resid)? })
    }
}

impl FrozenLayer {
    /// From the output hook to the residual stream. `[batch, n_pos, d_model]` to the same
    fn push_output(&self, at_hook: &Tensor) -> Result<Tensor> {
        match &self.output_norm {
            Some(factors) => Ok(factors.push_forward(at_hook)?),
            None => Ok(at_hook.clone()),
        }
    }

    /// What attention adds to the residual stream. `[batch, n_pos, d_model]` to the same
    fn push_attention(&self, resid: &Tensor, n_kv_heads: usize) -> Result<Tensor> {
        let (batch, n_pos, _) = resid.dims3()?;
        let n_heads = self.pattern.n_heads()?;
        let d_head = self.w_v.dim(0)? / n_kv_heads;
        let v = resid.broadcast_matmul(&self.w_v.t()?)?;
        let v = split_heads(&v, d_head)?.unsqueeze(2)?;
        let v = v.expand((batch, n_kv_heads, n_heads / n_kv_heads, n_pos, d_head))?;
        let z = self.pattern.dense()?.unsqueeze(0)?.broadcast_matmul(&v.reshape((batch, n_heads, n_pos, d_head))?)?;
        Ok(join_heads(&z)?.broadcast_matmul(&self.w_o.t()?)?)
    }
}
