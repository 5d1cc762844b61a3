//! The one loop over layers.

use std::sync::Arc;

use candle_core::Tensor;

use super::Replacement;
use crate::error::Result;
use crate::model::{KvCache, Layer, Norm, split_heads};
use crate::transcoder::OutputHook;

/// What one forward pass leaves behind that makes the model linear: attention patterns and norm scales.
#[derive(Clone, Debug, Default)]
pub struct Frozen {
    /// Attention patterns after softmax. `[n_layers]` of `[batch, n_heads, n_pos, n_pos]`
    pub pattern: Vec<Tensor>,
    /// Scales of the norm before attention. `[n_layers]` of `[batch, n_pos, 1]`
    pub attn_scale: Vec<Tensor>,
    /// Scales of the norm after attention, where the family has one.
    pub post_attn_scale: Vec<Option<Tensor>>,
    /// Scales of the norm before the MLP.
    pub mlp_scale: Vec<Tensor>,
    /// Scales of the norm after the MLP, where the family has one.
    pub post_mlp_scale: Vec<Option<Tensor>>,
    /// Scales of the final norm. One `[batch, n_pos, 1]`
    pub final_scale: Vec<Tensor>,
}

/// Which parts of an earlier pass a new one is held to.
#[derive(Clone, Copy, Debug, Default)]
pub enum Hold<'a> {
    /// Everything is computed anew.
    #[default]
    Nothing,
    /// Attention patterns are those of the earlier pass.
    Patterns(&'a Frozen),
    /// Attention patterns and norm scales are those of the earlier pass.
    PatternsAndNorms(&'a Frozen),
}

/// What a pass should return beside the residual stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// The frozen patterns and scales.
    pub frozen: bool,
    /// The tensors at the input and output hooks of every layer, and the residual stream before each.
    pub hooks: bool,
    /// The weights of every layer that the pull-back needs.
    pub weights: bool,
}

/// Changes what the MLPs write, at the output hook. The forward pass calls it once a layer, in order.
pub trait Edit {
    /// Returns what is to stand at the output hook of `layer`.
    ///
    /// `input` is the running pass's tensor at the input hook, `[batch, n_pos, d_model]`; `output` computes what the
    /// MLP would write, of the same shape, and need not be called.
    ///
    /// # Errors
    /// Those of the tensor operations.
    fn write(&mut self, layer: usize, input: &Tensor, output: &mut dyn FnMut() -> Result<Tensor>) -> Result<Tensor>;
}

/// The pass as the model computes it.
#[derive(Debug)]
pub struct Unedited;

impl Edit for Unedited {
    fn write(&mut self, _: usize, _: &Tensor, output: &mut dyn FnMut() -> Result<Tensor>) -> Result<Tensor> {
        output()
    }
}

/// How a forward pass is to run.
#[derive(Debug, Default)]
pub struct ForwardOptions<'a> {
    pub hold: Hold<'a>,
    pub keep: Keep,
    /// Keys and values of earlier positions; the pass appends its own.
    pub cache: Option<&'a mut KvCache>,
    /// Where [`Replacement::forward_from`] begins: the residual stream it gets stands before this layer. What a pass
    /// returns per layer begins here too.
    pub first_layer: usize,
}

/// What a forward pass returns.
#[derive(Clone, Debug)]
pub struct Pass {
    /// The residual stream after the last layer. `[batch, n_pos, d_model]`
    pub resid_final: Tensor,
    /// The output of the final norm. `[batch, n_pos, d_model]`
    pub final_normed: Tensor,
    /// With [`Keep::frozen`].
    pub frozen: Frozen,
    /// The residual stream before each layer, with [`Keep::hooks`]. `[n_layers]` of `[batch, n_pos, d_model]`
    pub resid_pre: Vec<Tensor>,
    /// Tensors at the input hook, with [`Keep::hooks`]. `[n_layers]` of `[batch, n_pos, d_model]`
    pub hook_in: Vec<Tensor>,
    /// Tensors at the output hook, with [`Keep::hooks`]. `[n_layers]` of `[batch, n_pos, d_model]`
    pub hook_out: Vec<Tensor>,
    /// Norms, `W_V` and `W_O`, with [`Keep::weights`]: layers without MLP and query-key weights. `[n_layers]`
    pub weights: Vec<LinearWeights>,
}

/// The weights of a layer that carry gradient.
#[derive(Clone, Debug)]
pub struct LinearWeights {
    pub attn_norm: Norm,
    pub vo: crate::model::ValueOutput,
    pub post_attn_norm: Option<Norm>,
    pub mlp_norm: Norm,
    pub post_mlp_norm: Option<Norm>,
}

/// The scale of a norm: held, or computed from its input.
fn scale(norm: &Norm, x: &Tensor, held: Option<&Tensor>) -> Result<Tensor> {
    match held {
        Some(held) => Ok(held.clone()),
        None => norm.scale(x),
    }
}

impl Replacement {
    /// Runs the model on `tokens`, layer by layer; weights are read when a layer is reached and let go after it.
    ///
    /// # Shapes
    /// `tokens` `[batch]` of `[n_pos]`, all of one length. With a cache, these follow the positions in it.
    ///
    /// # Errors
    /// Those of reading weights, of `edit`, and of the tensor operations.
    pub fn forward(&self, tokens: &[Vec<u32>], mut options: ForwardOptions, edit: &mut dyn Edit) -> Result<Pass> {
        let (batch, n_pos) = (tokens.len(), tokens.first().map_or(0, Vec::len));
        let start = options.cache.as_ref().map_or(0, |cache| cache.n_past());
        let flat: Vec<u32> = tokens.concat();
        let d_model = self.model.config.d_model;
        let mut resid_pre = self.model.embed(&flat)?.reshape((batch, n_pos, d_model))?;
        if let Some(positions) = self.model.position_embeddings(start, n_pos)? {
            resid_pre = resid_pre.broadcast_add(&positions)?;
        }
        self.forward_from(resid_pre, &mut options, edit)
    }

    /// As [`Replacement::forward`], from a given residual stream before [`ForwardOptions::first_layer`].
    ///
    /// # Shapes
    /// `resid_pre` `[batch, n_pos, d_model]`.
    ///
    /// # Errors
    /// As [`Replacement::forward`].
    pub fn forward_from(
        &self,
        mut resid_pre: Tensor,
        options: &mut ForwardOptions,
        edit: &mut dyn Edit,
    ) -> Result<Pass> {
        let config = &self.model.config;
        let keep = options.keep;
        let (held_patterns, held_norms) = match options.hold {
            Hold::Nothing => (None, None),
            Hold::Patterns(frozen) => (Some(frozen), None),
            Hold::PatternsAndNorms(frozen) => (Some(frozen), Some(frozen)),
        };
        let mut frozen = Frozen::default();
        let (mut resids, mut hook_in, mut hook_out, mut weights) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for index in options.first_layer..config.n_layers {
            let layer = self.model.layer(index)?;
            if keep.hooks {
                resids.push(resid_pre.clone());
            }

            let attn_scale = scale(&layer.attn_norm, &resid_pre, held_norms.map(|f| &f.attn_scale[index]))?;
            let attn_in = layer.attn_norm.apply(&resid_pre, &attn_scale)?;
            let held_pattern = held_patterns.map(|f| &f.pattern[index]);
            let (attn_out, pattern) =
                self.attention(index, &layer, &attn_in, held_pattern, options.cache.as_deref_mut())?;
            let (attn_out, post_attn_scale) = post_norm(
                layer.post_attn_norm.as_ref(),
                attn_out,
                held_norms.and_then(|f| f.post_attn_scale[index].as_ref()),
            )?;
            let resid_mid = (&resid_pre + &attn_out)?;

            let mlp_scale = scale(&layer.mlp_norm, &resid_mid, held_norms.map(|f| &f.mlp_scale[index]))?;
            let normalized = layer.mlp_norm.normalize(&resid_mid, &mlp_scale)?;
            let mlp_in = layer.mlp_norm.affine(&normalized)?;
            let input = self.at_input_hook(&resid_mid, &normalized, &mlp_in);
            let held_post = held_norms.and_then(|f| f.post_mlp_scale[index].as_ref());
            let (mlp_out, output, post_mlp_scale) = match self.transcoders.output_hook {
                OutputHook::MlpOut => {
                    let output = edit.write(index, &input, &mut || layer.mlp.forward(&mlp_in))?;
                    let (mlp_out, scale) = post_norm(layer.post_mlp_norm.as_ref(), output.clone(), held_post)?;
                    (mlp_out, output, scale)
                }
                OutputHook::HookMlpOut => {
                    let mut post_scale = None;
                    let output = edit.write(index, &input, &mut || {
                        let (out, scale) =
                            post_norm(layer.post_mlp_norm.as_ref(), layer.mlp.forward(&mlp_in)?, held_post)?;
                        post_scale = scale;
                        Ok(out)
                    })?;
                    (output.clone(), output, post_scale)
                }
            };
            resid_pre = (&resid_mid + &mlp_out)?;

            if keep.frozen {
                frozen.pattern.push(pattern);
                frozen.attn_scale.push(attn_scale);
                frozen.post_attn_scale.push(post_attn_scale);
                frozen.mlp_scale.push(mlp_scale);
                frozen.post_mlp_scale.push(post_mlp_scale);
            }
            if keep.hooks {
                hook_in.push(input);
                hook_out.push(output);
            }
            if keep.weights {
                weights.push(linear_weights(&layer));
            }
        }
        let final_norm = self.model.final_norm()?;
        let final_scale = scale(&final_norm, &resid_pre, held_norms.map(|f| &f.final_scale[0]))?;
        let final_normed = final_norm.apply(&resid_pre, &final_scale)?;
        if keep.frozen {
            frozen.final_scale.push(final_scale);
        }
        Ok(Pass { resid_final: resid_pre, final_normed, frozen, resid_pre: resids, hook_in, hook_out, weights })
    }

    /// What attention writes before any post-norm, and its pattern.
    fn attention(
        &self,
        index: usize,
        layer: &Layer,
        attn_in: &Tensor,
        held_pattern: Option<&Tensor>,
        cache: Option<&mut KvCache>,
    ) -> Result<(Tensor, Tensor)> {
        let (config, layer_config) = (&self.model.config, self.layer_config(index));
        let mut v = split_heads(&layer.vo.v.forward(attn_in)?, config.d_head)?;
        let held_pattern = match held_pattern {
            Some(pattern) => {
                let (_, n_heads, n_q, n_k) = pattern.dims4()?;
                Some(pattern.broadcast_as((v.dim(0)?, n_heads, n_q, n_k))?.contiguous()?)
            }
            None => None,
        };
        if let (Some(pattern), None) = (&held_pattern, &cache) {
            return Ok((layer.vo.mix(pattern, &v)?, pattern.clone()));
        }
        let start = cache.as_ref().map_or(0, |cache| cache.n_past_of(index));
        let (q, mut k) = layer.qk.project(attn_in, config, layer_config, start)?;
        if let Some(cache) = cache {
            (k, v) = cache.append(index, k, v)?;
        }
        let pattern = match held_pattern {
            Some(pattern) => pattern,
            None => layer.qk.pattern(&q, &k, config, layer_config)?,
        };
        Ok((layer.vo.mix(&pattern, &v)?, pattern))
    }
}

/// A norm on what a block writes, where the family has one; returns its scale too.
fn post_norm(norm: Option<&Norm>, x: Tensor, held: Option<&Tensor>) -> Result<(Tensor, Option<Tensor>)> {
    let Some(norm) = norm else { return Ok((x, None)) };
    let scale = scale(norm, &x, held)?;
    Ok((norm.apply(&x, &scale)?, Some(scale)))
}

fn linear_weights(layer: &Arc<Layer>) -> LinearWeights {
    LinearWeights {
        attn_norm: layer.attn_norm.clone(),
        vo: layer.vo.clone(),
        post_attn_norm: layer.post_attn_norm.clone(),
        mlp_norm: layer.mlp_norm.clone(),
        post_mlp_norm: layer.post_mlp_norm.clone(),
    }
}
