//! Causal attention, split where attribution freezes it: the pattern (queries and keys) and what it moves (values).

use candle_core::{D, DType, Tensor};

use super::config::{HostConfig, LayerConfig};
use super::linear::Linear;
use super::norm::Norm;
use super::rope::rotate;
use crate::error::Result;

/// The half of a layer's attention that shapes the pattern.
#[derive(Clone, Debug)]
pub struct QueryKey {
    pub q: Linear,
    pub k: Linear,
    pub q_norm: Option<Norm>,
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

/// Keys and values of earlier positions, for generation.
#[derive(Clone, Debug, Default)]
pub struct KvCache {
    /// Per layer: keys (rotated) and values, `[batch, n_kv_heads, n_past, d_head]` each.
    pub layers: Vec<Option<(Tensor, Tensor)>>,
}

impl KvCache {
    /// An empty cache.
    pub fn new(n_layers: usize) -> Self {
        Self { layers: vec![None; n_layers] }
    }

    /// Positions held by every layer.
    pub fn n_past(&self) -> usize {
        self.n_past_of(self.layers.len().saturating_sub(1))
    }

    /// Positions held by one layer: during a pass the lower layers are ahead.
    pub fn n_past_of(&self, layer: usize) -> usize {
        self.layers.get(layer).and_then(Option::as_ref).map_or(0, |(k, _)| k.dims()[2])
    }

    /// Appends new positions to a layer and returns all of them.
    ///
    /// # Shapes
    /// `k` and `v` `[batch, n_kv_heads, n_new, d_head]`.
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub fn append(&mut self, layer: usize, k: Tensor, v: Tensor) -> Result<(Tensor, Tensor)> {
        let (k, v) = match self.layers[layer].take() {
            Some((past_k, past_v)) => (Tensor::cat(&[past_k, k], 2)?, Tensor::cat(&[past_v, v], 2)?),
            None => (k, v),
        };
        self.layers[layer] = Some((k.clone(), v.clone()));
        Ok((k, v))
    }
}

/// `[batch, n_pos, n · d_head]` to `[batch, n, n_pos, d_head]`
pub fn split_heads(x: &Tensor, d_head: usize) -> Result<Tensor> {
    let (batch, n_pos, width) = x.dims3()?;
    Ok(x.reshape((batch, n_pos, width / d_head, d_head))?.transpose(1, 2)?.contiguous()?)
}

/// `[batch, n, n_pos, d_head]` to `[batch, n_pos, n · d_head]`
pub fn join_heads(x: &Tensor) -> Result<Tensor> {
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
    /// Rotated keys and queries of the positions `start..`, `[batch, n, n_pos, d_head]` each.
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub fn project(
        &self,
        x: &Tensor,
        config: &HostConfig,
        layer: LayerConfig,
        start: usize,
    ) -> Result<(Tensor, Tensor)> {
        let mut q = split_heads(&self.q.forward(x)?, config.d_head)?;
        let mut k = split_heads(&self.k.forward(x)?, config.d_head)?;
        if let (Some(q_norm), Some(k_norm)) = (&self.q_norm, &self.k_norm) {
            q = q_norm.apply(&q, &q_norm.scale(&q)?)?;
            k = k_norm.apply(&k, &k_norm.scale(&k)?)?;
        }
        if let Some(rope) = layer.rope {
            let (cos, sin) = config.ropes[rope].tables(start, x.dim(1)?, x.device())?;
            q = rotate(&q, &cos, &sin)?;
            k = rotate(&k, &cos, &sin)?;
        }
        Ok((q, k))
    }

    /// The attention pattern, after softmax. Rows sum to 1, or to less where there are sinks.
    ///
    /// # Shapes
    /// `q` `[batch, n_heads, n_q, d_head]`, `k` `[batch, n_kv_heads, n_k, d_head]`, whose last `n_q` positions are
    /// the queries'; returns `[batch, n_heads, n_q, n_k]`.
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub fn pattern(&self, q: &Tensor, k: &Tensor, config: &HostConfig, layer: LayerConfig) -> Result<Tensor> {
        let (batch, n_heads, n_q, _) = q.dims4()?;
        let n_k = k.dim(2)?;
        let k = repeat_kv(k, n_heads)?;
        let mut scores = (q.matmul(&k.transpose(2, 3)?)? * config.attn_scale)?;
        if let Some(cap) = config.attn_softcap {
            scores = ((scores / cap)?.tanh()? * cap)?;
        }
        scores = scores.broadcast_add(&mask(n_q, n_k, layer.window, q)?)?;
        match &self.sinks {
            None => Ok(candle_nn::ops::softmax_last_dim(&scores)?),
            Some(sinks) => {
                let sinks = sinks.reshape((1, n_heads, 1, 1))?.expand((batch, n_heads, n_q, 1))?;
                let with_sink = Tensor::cat(&[&scores, &sinks], D::Minus1)?.contiguous()?;
                Ok(candle_nn::ops::softmax_last_dim(&with_sink)?.narrow(D::Minus1, 0, n_k)?.contiguous()?)
            }
        }
    }
}

impl ValueOutput {
    /// What attention writes, before any post-norm: `W_O · (pattern · v) + b_O`.
    ///
    /// # Shapes
    /// `pattern` `[batch, n_heads, n_q, n_k]`, `v` `[batch, n_kv_heads, n_k, d_head]`; returns `[batch, n_q, d_model]`.
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub fn mix(&self, pattern: &Tensor, v: &Tensor) -> Result<Tensor> {
        let v = repeat_kv(v, pattern.dim(1)?)?;
        self.o.forward(&join_heads(&pattern.contiguous()?.matmul(&v)?)?)
    }
}

/// 0 where a query may look, −∞ elsewhere: causal, and within the window. `[n_q, n_k]`
fn mask(n_q: usize, n_k: usize, window: Option<usize>, like: &Tensor) -> Result<Tensor> {
    let past = n_k - n_q;
    let window = window.unwrap_or(usize::MAX);
    let values: Vec<f32> = (0..n_q)
        .flat_map(|q| (0..n_k).map(move |k| (past + q, k)))
        .map(|(q, k)| if k <= q && q - k < window { 0.0 } else { f32::NEG_INFINITY })
        .collect();
    Ok(Tensor::from_vec(values, (n_q, n_k), like.device())?.to_dtype(DType::F32)?)
}
