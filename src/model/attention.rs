//! Causal attention, split where attribution freezes it: the pattern (queries and keys) and what it moves (values).

use candle_core::{D, Tensor};

use super::config::{LayerConfig, ModelConfig};
use super::kv_cache::Places;
use super::linear::Linear;
use super::norm::Norm;
use super::rope::rotate;
use crate::error::Result;

/// The half of a layer's attention that shapes the pattern.
#[derive(Clone, Debug)]
pub struct QueryKey {
    /// Queries. `[n_heads * d_head, d_model]`
    pub q: Linear,
    /// Keys. `[n_kv_heads * d_head, d_model]`
    pub k: Linear,
    /// RMS norm of every head's query, where the family has one.
    pub q_norm: Option<Norm>,
    /// RMS norm of every head's key, where the family has one.
    pub k_norm: Option<Norm>,
    /// One logit per head that no position gets. `[n_heads]`
    pub sinks: Option<Tensor>,
}

/// The half that carries gradient: `W_V` and `W_O`.
#[derive(Clone, Debug)]
pub struct ValueOutput {
    /// `[n_kv_heads · d_head, d_model]`
    pub v: Linear,
    /// `[d_model, n_heads · d_head]`
    pub o: Linear,
}

/// `[batch, n_pos, n · d_head]` to `[batch, n, n_pos, d_head]`
pub(crate) fn split_heads(x: &Tensor, d_head: usize) -> Result<Tensor> {
    let (batch, n_pos, width) = x.dims3()?;
    Ok(x.reshape((batch, n_pos, width / d_head, d_head))?.transpose(1, 2)?.contiguous()?)
}

/// `[batch, n, n_pos, d_head]` to `[batch, n_pos, n · d_head]`
pub(crate) fn join_heads(x: &Tensor) -> Result<Tensor> {
    let (batch, n, n_pos, d_head) = x.dims4()?;
    Ok(x.transpose(1, 2)?.reshape((batch, n_pos, n * d_head))?)
}

/// Repeats every kv head for the queries that share it. `[batch, n_kv_heads, ..]` to `[batch, n_heads, ..]`
fn repeat_kv(x: &Tensor, n_heads: usize) -> Result<Tensor> {
    let (batch, n_kv, n_pos, d) = x.dims4()?;
    let n_rep = n_heads / n_kv;
    if n_rep == 1 {
        return Ok(x.clone());
    }
    Ok(x.unsqueeze(2)?.expand((batch, n_kv, n_rep, n_pos, d))?.reshape((batch, n_heads, n_pos, d))?)
}

impl QueryKey {
    /// Rotated queries and keys, `[batch, n, n_pos, d_head]` each.
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub(super) fn project(
        &self,
        x: &Tensor,
        config: &ModelConfig,
        layer: LayerConfig,
        places: &Places,
    ) -> Result<(Tensor, Tensor)> {
        let mut q = split_heads(&self.q.forward(x)?, config.d_head)?;
        let mut k = split_heads(&self.k.forward(x)?, config.d_head)?;
        if let (Some(q_norm), Some(k_norm)) = (&self.q_norm, &self.k_norm) {
            q = q_norm.apply(&q, &q_norm.scale(&q)?)?;
            k = k_norm.apply(&k, &k_norm.scale(&k)?)?;
        }
        if let Some(rope) = layer.rope {
            let tables = |start| config.ropes[rope].tables(start, places.n_pos, x.device());
            let (cos, sin) = match places.common_start() {
                Some(start) => tables(start)?,
                None => {
                    let all = places.starts.iter().map(|&start| tables(start)).collect::<Result<Vec<_>>>()?;
                    let (cos, sin): (Vec<Tensor>, Vec<Tensor>) = all.into_iter().unzip();
                    // `[batch, 1, n_pos, d_head / 2]`
                    (Tensor::stack(&cos, 0)?.unsqueeze(1)?, Tensor::stack(&sin, 0)?.unsqueeze(1)?)
                }
            };
            q = rotate(&q, &cos, &sin)?;
            k = rotate(&k, &cos, &sin)?;
        }
        Ok((q, k))
    }

    /// Scores before softmax, softcapped; −∞ where a query may not look.
    ///
    /// # Shapes
    /// `q` `[batch, n_heads, n_q, d_head]`, `k` `[batch, n_kv_heads, n_k, d_head]`, whose entries are the positions
    /// from 0 on; returns `[batch, n_heads, n_q, n_k]`.
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub(super) fn scores(
        &self,
        q: &Tensor,
        k: &Tensor,
        config: &ModelConfig,
        layer: LayerConfig,
        places: &Places,
    ) -> Result<Tensor> {
        masked_scores(q, k, config, &mask(k.dim(2)?, layer.window, places, q)?)
    }

    /// The attention pattern of some queries of one sequence that begins at position 0: what [`QueryKey::scores`] and
    /// [`QueryKey::pattern`] give for them, without those of the others.
    ///
    /// # Shapes
    /// `q` `[1, n_heads, n_pos, d_head]`, `k` `[1, n_kv_heads, n_pos, d_head]`; `queries` below n_pos; returns
    /// `[1, n_heads, queries.len(), n_pos]`.
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub(super) fn pattern_of(
        &self,
        q: &Tensor,
        k: &Tensor,
        config: &ModelConfig,
        layer: LayerConfig,
        queries: &[usize],
    ) -> Result<Tensor> {
        let is_run = queries.windows(2).all(|two| two[0] + 1 == two[1]);
        let q = match queries {
            [first, ..] if is_run => q.narrow(2, *first, queries.len())?.contiguous()?,
            _ => {
                let index: Vec<u32> = queries.iter().map(|&query| query as u32).collect();
                q.index_select(&Tensor::from_vec(index, queries.len(), q.device())?, 2)?
            }
        };
        let n_k = k.dim(2)?;
        let values = queries.iter().flat_map(|&query| (0..n_k).map(move |key| seen(sees(query, key, layer.window))));
        let mask = Tensor::from_vec(values.collect::<Vec<f32>>(), (queries.len(), n_k), q.device())?;
        self.pattern(&masked_scores(&q, k, config, &mask)?)
    }

    /// The attention pattern of scores. Rows sum to 1, or to less where there are sinks.
    ///
    /// # Shapes
    /// `[batch, n_heads, n_q, n_k]` to the same.
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub(super) fn pattern(&self, scores: &Tensor) -> Result<Tensor> {
        let (batch, n_heads, n_q, n_k) = scores.dims4()?;
        match &self.sinks {
            None => Ok(candle_nn::ops::softmax_last_dim(scores)?),
            Some(sinks) => {
                let sinks = sinks.reshape((1, n_heads, 1, 1))?.expand((batch, n_heads, n_q, 1))?;
                let with_sink = Tensor::cat(&[scores, &sinks], D::Minus1)?.contiguous()?;
                Ok(candle_nn::ops::softmax_last_dim(&with_sink)?.narrow(D::Minus1, 0, n_k)?.contiguous()?)
            }
        }
    }
}

impl ValueOutput {
    /// What each head reads: `pattern · v`.
    ///
    /// # Shapes
    /// `pattern` `[batch, n_heads, n_q, n_k]`, `v` `[batch, n_kv_heads, n_k, d_head]`; returns
    /// `[batch, n_heads, n_q, d_head]`.
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub fn read(&self, pattern: &Tensor, v: &Tensor) -> Result<Tensor> {
        let v = repeat_kv(v, pattern.dim(1)?)?;
        Ok(pattern.contiguous()?.matmul(&v)?)
    }

    /// What attention writes, before any post-norm: `W_O · z + b_O`.
    ///
    /// # Shapes
    /// `z` `[batch, n_heads, n_pos, d_head]`; returns `[batch, n_pos, d_model]`.
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub fn write(&self, z: &Tensor) -> Result<Tensor> {
        self.o.forward(&join_heads(z)?)
    }
}

/// Scores before softmax, softcapped, with a mask added.
fn masked_scores(q: &Tensor, k: &Tensor, config: &ModelConfig, mask: &Tensor) -> Result<Tensor> {
    let k = repeat_kv(k, q.dim(1)?)?;
    let mut scores = (q.matmul(&k.transpose(2, 3)?)? * config.attn_scale)?;
    if let Some(cap) = config.attn_softcap {
        scores = ((scores / cap)?.tanh()? * cap)?;
    }
    Ok(scores.broadcast_add(mask)?)
}

/// Whether the query of a position may look at a key.
fn sees(query: usize, key: usize, window: Option<usize>) -> bool {
    key <= query && window.is_none_or(|window| query - key < window)
}

/// What a mask adds to a score.
fn seen(sees: bool) -> f32 {
    if sees { 0.0 } else { f32::NEG_INFINITY }
}

/// 0 where a query may look, −∞ elsewhere: causal, and within the window. `[n_q, n_k]`, or with unequal sequences
/// `[batch, 1, n_q, n_k]`
fn mask(n_k: usize, window: Option<usize>, places: &Places, like: &Tensor) -> Result<Tensor> {
    let n_q = places.n_pos;
    let of = |start: usize, length: usize| {
        (0..n_q).flat_map(move |q| (0..n_k).map(move |k| (q, start + q, k))).map(move |(q, pos, k)| {
            // Padding looks at position 0, since a row that looks nowhere is no number.
            seen(if q < length { sees(pos, k, window) } else { k == 0 })
        })
    };
    match places.even_start() {
        Some(start) => {
            let values: Vec<f32> = of(start, n_q).collect();
            Ok(Tensor::from_vec(values, (n_q, n_k), like.device())?)
        }
        None => {
            let sequences = places.starts.iter().zip(&places.lengths);
            let values: Vec<f32> = sequences.flat_map(|(&start, &length)| of(start, length)).collect();
            Ok(Tensor::from_vec(values, (places.starts.len(), 1, n_q, n_k), like.device())?)
        }
    }
}
