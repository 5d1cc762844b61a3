//! The forward pass: the one loop over layers.

use std::ops::Range;

use candle_core::Tensor;

use super::finite::{check_finite, check_layer};
use super::hook_point::HookPoint;
use super::hooks::{Hooks, at, given, seen};
use super::kv_cache::{KvCache, Places};
use super::{Layer, Model, Norm, split_heads};
use crate::error::{Error, Result};
use crate::job::Job;

/// Positions whose queries a pass takes at once where nobody wants to see the pattern: one of all positions would be the
/// largest thing of a long prompt.
pub(crate) const QUERY_BLOCK: usize = 256;

/// What goes with a forward pass.
#[derive(Debug, Default)]
pub struct ForwardOptions<'a> {
    /// Keys and values of earlier positions; the pass appends its own.
    pub cache: Option<&'a mut KvCache>,
    /// Checked at every layer.
    pub job: Job,
}

impl<'a> ForwardOptions<'a> {
    /// A pass that `job` can end.
    pub fn of(job: &Job) -> Self {
        Self { cache: None, job: job.clone() }
    }

    /// A pass that continues the sequences in a cache.
    pub fn continuing(cache: &'a mut KvCache, job: &Job) -> Self {
        Self { cache: Some(cache), job: job.clone() }
    }
}

/// What a forward pass ends in.
#[derive(Clone, Debug)]
pub struct Pass {
    /// The residual stream after the last layer. `[batch, n_pos, d_model]`
    pub resid_final: Tensor,
    /// The output of the final norm: what the unembedding reads. `[batch, n_pos, d_model]`
    pub final_normed: Tensor,
    /// New positions of each sequence; what follows them is padding and means nothing. `[batch]`
    pub lengths: Vec<usize>,
}

impl Model {
    /// Checks a prompt against the model.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`], [`Error::PromptTooLong`], [`Error::TokenOutOfRange`].
    pub fn check_tokens(&self, tokens: &[u32]) -> Result<()> {
        let (n_ctx, d_vocab) = (self.config.n_ctx, self.config.d_vocab);
        if tokens.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if tokens.len() > n_ctx {
            return Err(Error::PromptTooLong { n_pos: tokens.len(), n_ctx });
        }
        match tokens.iter().find(|&&t| t as usize >= d_vocab) {
            Some(&token) => Err(Error::TokenOutOfRange { token, d_vocab }),
            None => Ok(()),
        }
    }

    /// Runs the model on a batch of sequences, layer by layer; weights are read when a layer is reached and let go
    /// after it. Logits are another step ([`Model::logits`], [`Model::last_logits`]).
    ///
    /// A ragged batch (sequences of unequal length) is padded on the right, and no sequence sees the padding. With a
    /// cache, tokens follow the positions that it holds of their sequence.
    ///
    /// # Errors
    /// Those of [`Model::check_tokens`]; [`Error::Cache`]; those of reading weights, of `hooks` and of the tensor
    /// operations; [`Error::ComputedNotFinite`], with the hook point where that began; [`Error::Cancelled`].
    pub fn forward(&self, tokens: &[Vec<u32>], hooks: &mut dyn Hooks, mut options: ForwardOptions) -> Result<Pass> {
        let places = self.places(tokens, options.cache.as_deref())?;
        let resid_pre = self.embedded(tokens, &places, hooks)?;
        self.finish(0, resid_pre, places, hooks, &mut options)
    }

    /// As [`Model::forward`], from a given residual stream before layer `first_layer` (or after the last one, where it
    /// is their number) on.
    ///
    /// # Shapes
    /// `resid_pre` `[batch, n_pos, d_model]`.
    ///
    /// # Errors
    /// As [`Model::forward`]; [`Error::NoSuchLayer`].
    pub fn forward_from(
        &self,
        first_layer: usize,
        resid_pre: Tensor,
        hooks: &mut dyn Hooks,
        mut options: ForwardOptions,
    ) -> Result<Pass> {
        let (batch, n_pos, _) = resid_pre.dims3()?;
        if first_layer > self.config.n_layers {
            return Err(Error::NoSuchLayer { layer: first_layer, n_layers: self.config.n_layers });
        }
        let starts = options.cache.as_ref().map_or_else(|| Ok(vec![0; batch]), |cache| cache.starts(batch))?;
        let places = Places { starts, lengths: vec![n_pos; batch], n_pos };
        self.finish(first_layer, resid_pre, places, hooks, &mut options)
    }

    /// As [`Model::forward`], through layer `last_layer` and no further: the residual stream after it. There is no
    /// final norm, and no cache, which would lack the layers above.
    ///
    /// # Shapes
    /// Returns `[batch, n_pos, d_model]`.
    ///
    /// # Errors
    /// As [`Model::forward`]; [`Error::NoSuchLayer`].
    pub fn forward_through(
        &self,
        last_layer: usize,
        tokens: &[Vec<u32>],
        hooks: &mut dyn Hooks,
        job: &Job,
    ) -> Result<Tensor> {
        if last_layer >= self.config.n_layers {
            return Err(Error::NoSuchLayer { layer: last_layer, n_layers: self.config.n_layers });
        }
        let places = self.places(tokens, None)?;
        let resid_pre = self.embedded(tokens, &places, hooks)?;
        let mut options = ForwardOptions::of(job);
        self.layers(0..last_layer + 1, resid_pre, &places, hooks, &mut options)
    }

    /// Logits at the last position of every sequence of a pass. `[batch, d_vocab]`
    ///
    /// # Errors
    /// Those of [`Model::logits`].
    pub fn last_logits(&self, pass: &Pass) -> Result<Tensor> {
        let last = |(b, &length): (usize, &usize)| Ok(pass.final_normed.get(b)?.narrow(0, length - 1, 1)?);
        let rows = pass.lengths.iter().enumerate().map(last).collect::<Result<Vec<Tensor>>>()?;
        self.logits(&Tensor::cat(&rows, 0)?)
    }

    fn places(&self, tokens: &[Vec<u32>], cache: Option<&KvCache>) -> Result<Places> {
        let batch = tokens.len();
        let starts = cache.map_or_else(|| Ok(vec![0; batch]), |cache| cache.starts(batch))?;
        let lengths: Vec<usize> = tokens.iter().map(Vec::len).collect();
        let n_pos = lengths.iter().copied().max().ok_or(Error::EmptyPrompt)?;
        for (tokens, start) in tokens.iter().zip(&starts) {
            self.check_tokens(tokens)?;
            let (n_pos, n_ctx) = (start + tokens.len(), self.config.n_ctx);
            if n_pos > n_ctx {
                return Err(Error::PromptTooLong { n_pos, n_ctx });
            }
        }
        Ok(Places { starts, lengths, n_pos })
    }

    /// The residual stream before the first layer; padding repeats a sequence's last token.
    fn embedded(&self, tokens: &[Vec<u32>], places: &Places, hooks: &mut dyn Hooks) -> Result<Tensor> {
        let (batch, n_pos, d_model) = (tokens.len(), places.n_pos, self.config.d_model);
        let padding = |tokens: &[u32]| tokens.last().copied().into_iter().cycle().take(n_pos - tokens.len()).collect();
        let padded = tokens.iter().map(|tokens| [&tokens[..], &padding(tokens) as &Vec<u32>].concat());
        let flat: Vec<u32> = padded.flatten().collect();
        let embed = self.embed(&flat)?.reshape((batch, n_pos, d_model))?;
        let embed = seen(hooks, HookPoint::Embed, embed)?;
        if !self.config.learned_positions {
            return Ok(embed);
        }
        // Padding may reach past the last position that there is: it gets that one.
        let positions = |start: usize| -> Result<Option<Tensor>> {
            let n_real = n_pos.min(self.config.n_ctx - start);
            let Some(rows) = self.position_embeddings(start, n_real)? else { return Ok(None) };
            Ok(Some(rows.pad_with_same(0, 0, n_pos - n_real)?.unsqueeze(0)?))
        };
        let positions = match places.common_start() {
            Some(start) => positions(start)?,
            None => {
                let all = places.starts.iter().map(|&start| positions(start)).collect::<Result<Option<Vec<_>>>>()?;
                all.map(|all| Tensor::cat(&all, 0)).transpose()?
            }
        };
        match positions {
            Some(positions) => Ok(embed.broadcast_add(&seen(hooks, HookPoint::PosEmbed, positions)?)?),
            None => Ok(embed),
        }
    }

    /// Everything from layer `first_layer` on.
    fn finish(
        &self,
        first_layer: usize,
        resid_pre: Tensor,
        places: Places,
        hooks: &mut dyn Hooks,
        options: &mut ForwardOptions,
    ) -> Result<Pass> {
        let resid_final = self.layers(first_layer..self.config.n_layers, resid_pre, &places, hooks, options)?;
        let final_norm = self.final_norm()?;
        let scale = at(hooks, HookPoint::LnFinalScale, || final_norm.scale(&resid_final))?;
        check_finite(HookPoint::LnFinalScale, &scale, &places.starts)?;
        let normalized = at(hooks, HookPoint::LnFinalNormalized, || final_norm.normalize(&resid_final, &scale))?;
        let final_normed = final_norm.affine(&normalized)?;
        if let Some(cache) = options.cache.as_deref_mut() {
            cache.advance(&places);
        }
        Ok(Pass { resid_final, final_normed, lengths: places.lengths })
    }

    /// The loop over layers. `[batch, n_pos, d_model]` to the same
    fn layers(
        &self,
        layers: Range<usize>,
        mut resid_pre: Tensor,
        places: &Places,
        hooks: &mut dyn Hooks,
        options: &mut ForwardOptions,
    ) -> Result<Tensor> {
        use HookPoint::*;
        let n_layers = layers.len();
        for l in layers.clone() {
            options.job.check()?;
            let layer = self.layer(l)?;
            hooks.weights(l, &layer);
            resid_pre = seen(hooks, ResidPre(l), resid_pre)?;

            let scale = at(hooks, Ln1Scale(l), || layer.attn_norm.scale(&resid_pre))?;
            check_finite(Ln1Scale(l), &scale, &places.starts)?;
            let normalized = at(hooks, Ln1Normalized(l), || layer.attn_norm.normalize(&resid_pre, &scale))?;
            let attn_in = layer.attn_norm.affine(&normalized)?;
            let attn_out = match given(hooks, AttnOut(l))? {
                Some(attn_out) => attn_out,
                None => {
                    let written = self.attention(l, &layer, &attn_in, places, options.cache.as_deref_mut(), hooks)?;
                    post_norm(layer.post_attn_norm.as_ref(), written, Ln1PostScale(l), &places.starts, hooks)?
                }
            };
            let attn_out = seen(hooks, AttnOut(l), attn_out)?;
            let resid_mid = seen(hooks, ResidMid(l), (&resid_pre + &attn_out)?)?;

            let scale = at(hooks, Ln2Scale(l), || layer.mlp_norm.scale(&resid_mid))?;
            check_finite(Ln2Scale(l), &scale, &places.starts)?;
            let normalized = at(hooks, Ln2Normalized(l), || layer.mlp_norm.normalize(&resid_mid, &scale))?;
            let mlp_in = at(hooks, MlpIn(l), || layer.mlp_norm.affine(&normalized))?;
            let mlp_out = match given(hooks, HookMlpOut(l))? {
                Some(mlp_out) => mlp_out,
                None => {
                    let written = at(hooks, MlpOut(l), || layer.mlp.forward(&mlp_in))?;
                    post_norm(layer.post_mlp_norm.as_ref(), written, Ln2PostScale(l), &places.starts, hooks)?
                }
            };
            let mlp_out = seen(hooks, HookMlpOut(l), mlp_out)?;
            let resid_post = seen(hooks, ResidPost(l), (&resid_mid + &mlp_out)?)?;
            let on_the_way =
                [(AttnOut(l), &attn_out), (ResidMid(l), &resid_mid), (MlpIn(l), &mlp_in), (HookMlpOut(l), &mlp_out)];
            check_layer((ResidPost(l), &resid_post), &on_the_way, &places.starts)?;
            resid_pre = resid_post;
            options.job.report("layers", l + 1 - layers.start, n_layers);
        }
        Ok(resid_pre)
    }

    /// The attention patterns of some queries of a layer, of one sequence that begins at position 0, from the residual
    /// stream before the layer: what a pass would show at [`HookPoint::AttnPattern`].
    ///
    /// # Shapes
    /// `resid_pre` `[1, n_pos, d_model]`; `queries` below n_pos; returns `[1, n_heads, queries.len(), n_pos]`.
    ///
    /// # Errors
    /// [`Error::NoSuchLayer`]; those of reading weights and of the tensor operations.
    pub fn patterns_of(&self, layer: usize, resid_pre: &Tensor, queries: &[usize]) -> Result<Tensor> {
        let n_layers = self.config.n_layers;
        let layer_config = *self.config.layers.get(layer).ok_or(Error::NoSuchLayer { layer, n_layers })?;
        let weights = self.layer(layer)?;
        let n_pos = resid_pre.dim(1)?;
        let places = Places { starts: vec![0], lengths: vec![n_pos], n_pos };
        let attn_in = weights.attn_norm.apply(resid_pre, &weights.attn_norm.scale(resid_pre)?)?;
        let (q, k) = weights.qk.project(&attn_in, &self.config, layer_config, &places)?;
        weights.qk.pattern_of(&q, &k, &self.config, layer_config, queries)
    }

    /// What attention writes, before any post-norm.
    fn attention(
        &self,
        l: usize,
        layer: &Layer,
        attn_in: &Tensor,
        places: &Places,
        cache: Option<&mut KvCache>,
        hooks: &mut dyn Hooks,
    ) -> Result<Tensor> {
        use HookPoint::*;
        let (config, layer_config) = (&self.config, self.config.layers[l]);
        let v = split_heads(&layer.vo.v.forward(attn_in)?, config.d_head)?;
        let mut v = seen_by_position(hooks, AttnV(l), v)?;
        let held = match given(hooks, AttnPattern(l))? {
            // A pattern of one sequence holds for all of them.
            Some(pattern) => {
                let (_, n_heads, n_q, n_k) = pattern.dims4()?;
                Some(pattern.broadcast_as((v.dim(0)?, n_heads, n_q, n_k))?.contiguous()?)
            }
            None => None,
        };
        let sees_pattern = hooks.wants(AttnPattern(l)) || hooks.wants(AttnScores(l));
        if held.is_none() && cache.is_none() && !sees_pattern && places.starts == [0] && places.n_pos > QUERY_BLOCK {
            let (q, k) = layer.qk.project(attn_in, config, layer_config, places)?;
            let read = |first: usize| {
                // Later keys are seen by none of these queries.
                let end = places.n_pos.min(first + QUERY_BLOCK);
                let queries: Vec<usize> = (first..end).collect();
                let (k, v) = (k.narrow(2, 0, end)?.contiguous()?, v.narrow(2, 0, end)?.contiguous()?);
                layer.vo.read(&layer.qk.pattern_of(&q, &k, config, layer_config, &queries)?, &v)
            };
            let z = (0..places.n_pos).step_by(QUERY_BLOCK).map(read).collect::<Result<Vec<Tensor>>>()?;
            let z = seen_by_position(hooks, AttnZ(l), Tensor::cat(&z, 2)?)?;
            return layer.vo.write(&z);
        }
        let pattern = match (held, cache) {
            (Some(pattern), None) => pattern,
            (held, cache) => {
                let (q, mut k) = layer.qk.project(attn_in, config, layer_config, places)?;
                if let Some(cache) = cache {
                    (k, v) = cache.append(l, k, v, places)?;
                }
                match held {
                    Some(pattern) => pattern,
                    None => {
                        let scores = || layer.qk.scores(&q, &k, config, layer_config, places);
                        layer.qk.pattern(&at(hooks, AttnScores(l), scores)?)?
                    }
                }
            }
        };
        let pattern = seen(hooks, AttnPattern(l), pattern)?;
        let z = seen_by_position(hooks, AttnZ(l), layer.vo.read(&pattern, &v)?)?;
        layer.vo.write(&z)
    }
}

/// Shows a tensor that is `[batch, n_heads, n_pos, d_head]` as `[batch, n_pos, n_heads, d_head]`.
fn seen_by_position(hooks: &mut dyn Hooks, point: HookPoint, tensor: Tensor) -> Result<Tensor> {
    if !hooks.wants(point) {
        return Ok(tensor);
    }
    let shown = seen(hooks, point, tensor.transpose(1, 2)?.contiguous()?)?;
    Ok(shown.transpose(1, 2)?.contiguous()?)
}

/// A norm on what attention or MLP writes, where the family has one.
fn post_norm(
    norm: Option<&Norm>,
    written: Tensor,
    point: HookPoint,
    starts: &[usize],
    hooks: &mut dyn Hooks,
) -> Result<Tensor> {
    let Some(norm) = norm else { return Ok(written) };
    let scale = at(hooks, point, || norm.scale(&written))?;
    check_finite(point, &scale, starts)?;
    norm.apply(&written, &scale)
}
