//! The pull-back counted by hops: which part of an effect passes no head, one, two, and so on.
//!
//! With one gradient a number of hops, `G_k ← G_k + Aᵀ G_{k−1}` at every layer, where `Aᵀ` is the transpose of its
//! attention: a path gains a hop where it passes a head and keeps its number where it stays in the residual stream. The
//! last gradient collects all paths of that many hops or more.

use candle_core::{DType, Tensor};

use super::linear_model::LinearModel;
use super::pull_back::{TargetBatch, TargetSite};
use crate::error::Result;
use crate::ops::{RaggedBatch, add_product, frozen_attention, matmul, norm_pullback};

/// A place where sources are added to the residual stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// The output hook of a layer.
    Output {
        /// The layer of the hook.
        layer: usize,
    },
    /// The residual stream before the first layer.
    Embedding,
}

/// Called at every place with the number of hops and the gradient there, `[n_rows, d_model]`.
pub type ReadHops<'a> = &'a mut dyn FnMut(Place, usize, &Tensor, &RaggedBatch) -> Result<()>;

impl LinearModel {
    /// Pulls a batch back as [`LinearModel::pull_back`] does, with the gradients of 0, 1, .. `max_hops` or more hops
    /// apart. They add up to its gradient. Where a gradient is zero, since no path has so many hops yet, `read` is not
    /// called.
    ///
    /// # Cost
    /// `max_hops` times that of [`LinearModel::pull_back`].
    ///
    /// # Errors
    /// Those of the tensor operations and of `read`.
    pub fn pull_back_by_hops(&self, batch: &TargetBatch, max_hops: usize, read: ReadHops) -> Result<()> {
        let ragged = RaggedBatch::new(batch.positions.clone());
        let n_targets = ragged.n_targets();
        if n_targets == 0 {
            return Ok(());
        }
        let d_model = batch.gradients.dim(1)?;
        let scattered = || -> Result<Tensor> {
            let own_rows: Vec<u32> = ragged.own_rows().into_iter().map(|row| row as u32).collect();
            let own_rows = Tensor::from_vec(own_rows, n_targets, batch.gradients.device())?;
            let zeros = Tensor::zeros((ragged.n_rows(), d_model), DType::F32, batch.gradients.device())?;
            Ok(zeros.index_add(&own_rows, &batch.gradients, 0)?)
        };
        let mut grads: Vec<Option<Tensor>> = vec![None; max_hops + 1];
        let top = match batch.site {
            TargetSite::FinalNorm => {
                grads[0] = Some(norm_pullback(&scattered()?, None, &self.final_norm, &ragged)?);
                self.layers.len()
            }
            TargetSite::AttentionInput { layer } => {
                // A copy: it is changed in place further down, and this one is the caller's.
                grads[0] = Some(batch.gradients.copy()?);
                layer
            }
            TargetSite::InputHook { layer } => {
                grads[0] = Some(self.layers[layer].pull_back_input(scattered()?, None, &ragged)?);
                self.hop(layer, &mut grads, &ragged)?;
                layer
            }
        };
        for layer in (0..top).rev() {
            let frozen = &self.layers[layer];
            for (hops, slot) in grads.iter_mut().enumerate() {
                let Some(grad) = slot else { continue };
                let normed = self.pull_back_output(layer + 1, grad, &ragged)?;
                let at_output = normed.as_ref().unwrap_or(grad);
                read(Place::Output { layer }, hops, at_output, &ragged)?;
                if let Some(w_skip) = &frozen.w_skip {
                    *grad = frozen.pull_back_input(matmul(at_output, w_skip)?, Some(grad), &ragged)?;
                }
            }
            self.hop(layer, &mut grads, &ragged)?;
        }
        for (hops, grad) in grads.iter().enumerate() {
            if let Some(grad) = grad {
                read(Place::Embedding, hops, grad, &ragged)?;
            }
        }
        Ok(())
    }

    /// Through the attention of a layer: from `resid_mid` to `resid_pre`. Sums are made in place, as everything in the row
    /// phase: the gradients are nobody else's.
    fn hop(&self, layer: usize, grads: &mut [Option<Tensor>], ragged: &RaggedBatch) -> Result<()> {
        let frozen = &self.layers[layer];
        let last = grads.len() - 1;
        // From many hops to few, so that each reads what was there above this layer.
        for hops in (last.min(1)..=last).rev() {
            let fewer = match hops.checked_sub(1).and_then(|fewer| grads[fewer].as_ref()) {
                Some(fewer) => Some(matmul(fewer, &frozen.w_o)?),
                None => None,
            };
            // The last one keeps what has more hops still.
            let z = match (fewer, grads[hops].as_ref().filter(|_| hops == last)) {
                (Some(fewer), Some(same)) => Some(add_product(fewer, same, &frozen.w_o, None, ragged)?.0),
                (None, Some(same)) => Some(matmul(same, &frozen.w_o)?),
                (fewer, None) => fewer,
            };
            let Some(z) = z else { continue };
            let v = frozen_attention(&z, frozen.pattern.tensor(), self.n_kv_heads, ragged)?;
            grads[hops] = Some(match grads[hops].take() {
                Some(sum) => add_product(sum, &v, &frozen.w_v, None, ragged)?.0,
                None => matmul(&v, &frozen.w_v)?,
            });
        }
        Ok(())
    }
}
