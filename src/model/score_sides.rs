//! The two sides of a head's attention scores: with all norms frozen, queries and keys are affine in the residual stream.

use candle_core::{Device, Tensor};

use super::Layer;
use super::config::ModelConfig;
use super::linear::Linear;
use super::norm::Norm;
use super::rope::rotate;
use crate::error::Result;

/// The queries, or the keys, of one head at every position: `R_p N_p (W · norm(x_p) + b)`, with rotation R and the norm
/// N of a head's query or key, where the family has them.
#[derive(Clone, Debug)]
pub struct ScoreSide {
    /// The rotated vectors. `[n_pos, d_head]`
    pub vecs: Tensor,
    /// With gain and centring of the norm before attention. `[d_head, d_model]`
    w: Tensor,
    /// One over what that norm divides by. `[n_pos, 1]`
    in_scale: Tensor,
    /// What its bias and that of the map give. `[1, d_head]`
    bias: Tensor,
    /// Gain over scale of the head's own norm. `[n_pos, d_head]`
    head_scale: Option<Tensor>,
    /// Cosines and sines of the positions. `[n_pos, d_head / 2]`
    rotation: Option<(Tensor, Tensor)>,
}

/// Everything that the scores of one head are made of.
#[derive(Clone, Debug)]
pub struct ScoreSides {
    /// Queries.
    pub query: ScoreSide,
    /// Keys, shared by the heads of a group.
    pub key: ScoreSide,
    /// Factor on their products.
    pub scale: f64,
    /// Products are bent to `cap · tanh(x / cap)`, where the family does that.
    pub softcap: Option<f64>,
    /// A query sees so many positions, its own included; `None`: all.
    pub window: Option<usize>,
    /// The head's logit that no position gets, where the family has one.
    pub sink: Option<f32>,
}

impl ScoreSide {
    /// From a weight on the rotated vector at a position to one on the residual stream there: the gradient, and what
    /// constants give. `[d_head]` to `[d_model]`
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub fn pull_back(&self, pos: usize, weight: &Tensor) -> Result<(Tensor, f32)> {
        let (gradient, constant) = self.pull_back_rows(pos, &weight.reshape((1, ()))?)?;
        Ok((gradient.squeeze(0)?, constant.squeeze(0)?.to_scalar::<f32>()?))
    }

    /// As [`ScoreSide::pull_back`], of several weights: the gradients, and what constants give to each. `[n, d_head]` to
    /// `[n, d_model]` and `[n]`
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub fn pull_back_rows(&self, pos: usize, weights: &Tensor) -> Result<(Tensor, Tensor)> {
        let mut weights = weights.clone();
        if let Some((cos, sin)) = &self.rotation {
            // The transpose of a rotation turns the other way.
            weights = rotate(&weights, &cos.narrow(0, pos, 1)?, &sin.narrow(0, pos, 1)?.neg()?)?;
        }
        if let Some(scale) = &self.head_scale {
            weights = weights.broadcast_mul(&scale.narrow(0, pos, 1)?)?;
        }
        let constants = weights.broadcast_mul(&self.bias)?.sum(1)?;
        let gradients = weights.matmul(&self.w)?.broadcast_mul(&self.in_scale.narrow(0, pos, 1)?)?;
        Ok((gradients, constants))
    }
}

impl Layer {
    /// The sides of one head's scores, for a residual stream before the layer `[n_pos, d_model]`.
    ///
    /// # Errors
    /// Those of the tensor operations. `layer` and `head` must be there.
    pub fn score_sides(
        &self,
        config: &ModelConfig,
        layer: usize,
        head: usize,
        resid_pre: &Tensor,
    ) -> Result<ScoreSides> {
        let n_pos = resid_pre.dim(0)?;
        let in_scale = self.attn_norm.scale(resid_pre)?.recip()?;
        let rope = config.layers[layer].rope.map(|rope| config.ropes[rope].tables(0, n_pos, resid_pre.device()));
        let rotation = rope.transpose()?;
        let side = |map: &Linear, norm: Option<&Norm>, head: usize| -> Result<ScoreSide> {
            let rows = |w: &Tensor| w.narrow(0, head * config.d_head, config.d_head);
            let weight = rows(&map.weight)?;
            let w = self.attn_norm.fold(&weight)?;
            let mut bias = match &self.attn_norm.bias {
                Some(bias) => bias.unsqueeze(0)?.matmul(&weight.t()?)?,
                None => Tensor::zeros((1, config.d_head), w.dtype(), w.device())?,
            };
            if let Some(own) = &map.bias {
                bias = (bias + rows(own)?.unsqueeze(0)?)?;
            }
            let mut vecs = resid_pre.broadcast_mul(&in_scale)?.matmul(&w.t()?)?.broadcast_add(&bias)?;
            let head_scale = match norm {
                Some(norm) => {
                    let scale = norm.scale(&vecs)?.recip()?.broadcast_mul(&norm.gain.unsqueeze(0)?)?;
                    vecs = (vecs * &scale)?;
                    Some(scale)
                }
                None => None,
            };
            if let Some((cos, sin)) = &rotation {
                vecs = rotate(&vecs, cos, sin)?;
            }
            Ok(ScoreSide { vecs, w, in_scale: in_scale.clone(), bias, head_scale, rotation: rotation.clone() })
        };
        let group = config.n_heads / config.n_kv_heads;
        let sink =
            self.qk.sinks.as_ref().map(|sinks| sinks.flatten_all()?.get(head)?.to_scalar::<f32>()).transpose()?;
        Ok(ScoreSides {
            query: side(&self.qk.q, self.qk.q_norm.as_ref(), head)?,
            key: side(&self.qk.k, self.qk.k_norm.as_ref(), head / group)?,
            scale: config.attn_scale,
            softcap: config.attn_softcap,
            window: config.layers[layer].window,
            sink,
        })
    }
}

impl ScoreSides {
    /// The products of a query with all keys that it may see, before softcap and softmax, by position; those that it
    /// may not see are `None`. `[n_pos]`
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub fn scores(&self, query: usize) -> Result<Vec<Option<f64>>> {
        let q = self.query.vecs.narrow(0, query, 1)?;
        let products = self.key.vecs.matmul(&q.t()?)?.flatten_all()?.to_device(&Device::Cpu)?.to_vec1::<f32>()?;
        let sees = |key: usize| key <= query && self.window.is_none_or(|window| query - key < window);
        let score = |(key, product): (usize, f32)| sees(key).then(|| f64::from(product) * self.scale);
        Ok(products.into_iter().enumerate().map(score).collect())
    }

    /// A score after the softcap, and by how much it changes with the product.
    pub fn capped(&self, score: f64) -> (f64, f64) {
        match self.softcap {
            Some(cap) => {
                let bent = (score / cap).tanh();
                (cap * bent, 1.0 - bent * bent)
            }
            None => (score, 1.0),
        }
    }

    /// The attention that a query gives to every position, from its [`ScoreSides::scores`]. `[n_pos]`
    pub fn pattern(&self, scores: &[Option<f64>]) -> Vec<f64> {
        let capped: Vec<Option<f64>> = scores.iter().map(|score| score.map(|score| self.capped(score).0)).collect();
        let sink = self.sink.map(f64::from);
        let top = capped.iter().flatten().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
        let exps: Vec<f64> = capped.iter().map(|score| score.map_or(0.0, |score| (score - top).exp())).collect();
        let sum: f64 = exps.iter().sum::<f64>() + sink.map_or(0.0, |sink| (sink - top).exp());
        exps.into_iter().map(|exp| exp / sum).collect()
    }
}
