//! Rotary position embeddings, in the half-split convention of Hugging Face checkpoints.

use candle_core::{D, Device, Tensor};
use serde_json::Value;

use crate::error::{Error, Result};

/// One rotary embedding: a frequency for each pair of dimensions and a factor on cosine and sine.
#[derive(Clone, Debug)]
pub struct Rope {
    /// Radians a position. `[d_head / 2]`
    pub inv_freq: Vec<f64>,
    /// Factor on cosine and sine (YaRN's attention factor; 1 otherwise).
    pub attention_factor: f64,
}

impl Rope {
    /// Frequencies `theta^(-2i/d_head)`, changed as `scaling` (`rope_scaling` of a `config.json`) says:
    /// `default`, `linear`, `llama3`, `yarn`, or `factors` (one divisor a frequency, as GGUF files store them).
    ///
    /// # Errors
    /// [`Error::Config`] for another kind of scaling, or a missing parameter.
    pub fn new(theta: f64, d_head: usize, n_ctx: usize, scaling: Option<&Value>) -> Result<Self> {
        let inv_freq: Vec<f64> = (0..d_head / 2).map(|i| theta.powf(-((2 * i) as f64) / d_head as f64)).collect();
        let plain = Self { inv_freq, attention_factor: 1.0 };
        let Some(scaling) = scaling else { return Ok(plain) };
        let kind = scaling.get("rope_type").or_else(|| scaling.get("type")).and_then(Value::as_str);
        let number = |key: &str| {
            scaling.get(key).and_then(Value::as_f64).ok_or_else(|| Error::Config {
                key: format!("rope_scaling.{key}"),
                problem: "is missing or no number".into(),
            })
        };
        match kind.unwrap_or("default") {
            "default" => Ok(plain),
            "linear" => {
                let factor = number("factor")?;
                Ok(plain.map(|_, f| f / factor))
            }
            "llama3" => {
                let (factor, low, high) = (number("factor")?, number("low_freq_factor")?, number("high_freq_factor")?);
                let original_ctx = number("original_max_position_embeddings")?;
                Ok(plain.map(|_, f| {
                    let turns = original_ctx * f / std::f64::consts::TAU;
                    // Below `low` turns over the original context: stretched; above `high`: kept; between: blended.
                    let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    f * kept + f / factor * (1.0 - kept)
                }))
            }
            "yarn" => {
                let factor = number("factor")?;
                let original_ctx = number("original_max_position_embeddings").unwrap_or(n_ctx as f64);
                let or = |key: &str, default: f64| scaling.get(key).and_then(Value::as_f64).unwrap_or(default);
                let dim = d_head as f64;
                let dim_of =
                    |turns: f64| dim * (original_ctx / (turns * std::f64::consts::TAU)).ln() / (2.0 * theta.ln());
                let (mut low, mut high) = (dim_of(or("beta_fast", 32.0)), dim_of(or("beta_slow", 1.0)));
                if scaling.get("truncate").and_then(Value::as_bool).unwrap_or(true) {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(dim - 1.0));
                if low == high {
                    high += 0.001; // no division by zero, as in the reference code
                }
                let attention_factor =
                    or("attention_factor", if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 });
                let scaled = plain.map(|i, f| {
                    let stretched = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    f / factor * stretched + f * (1.0 - stretched)
                });
                Ok(Self { attention_factor, ..scaled })
            }
            "factors" => {
                let factors: Vec<f64> = scaling
                    .get("factors")
                    .and_then(Value::as_array)
                    .map(|a| a.iter().filter_map(Value::as_f64).collect())
                    .unwrap_or_default();
                if factors.len() != d_head / 2 {
                    return Err(Error::Config {
                        key: "rope_scaling.factors".into(),
                        problem: format!("has {} numbers, expected head_dim / 2 = {}", factors.len(), d_head / 2),
                    });
                }
                Ok(plain.map(|i, f| f / factors[i]))
            }
            other => Err(Error::Config {
                key: "rope_scaling.rope_type".into(),
                problem: format!("is {other:?}, expected default, linear, llama3 or yarn"),
            }),
        }
    }

    fn map(self, change: impl Fn(usize, f64) -> f64) -> Self {
        let inv_freq = self.inv_freq.into_iter().enumerate().map(|(i, f)| change(i, f)).collect();
        Self { inv_freq, ..self }
    }

    /// Cosines and sines of positions `start..start + n`. Two tensors `[n, d_head / 2]`, f32.
    ///
    /// # Errors
    /// Only those of tensor creation.
    pub fn tables(&self, start: usize, n: usize, device: &Device) -> Result<(Tensor, Tensor)> {
        let half = self.inv_freq.len();
        let (mut cos, mut sin) = (Vec::with_capacity(n * half), Vec::with_capacity(n * half));
        for pos in start..start + n {
            for &freq in &self.inv_freq {
                // The reference programs hold frequency and angle in f32; so do we, or long prompts drift apart.
                let angle = f64::from(pos as f32 * freq as f32);
                cos.push((angle.cos() * self.attention_factor) as f32);
                sin.push((angle.sin() * self.attention_factor) as f32);
            }
        }
        Ok((Tensor::from_vec(cos, (n, half), device)?, Tensor::from_vec(sin, (n, half), device)?))
    }
}

/// Rotates every head's vector: `(x1, x2) -> (x1 cos − x2 sin, x2 cos + x1 sin)` over the two halves.
///
/// # Shapes
/// `x` `[batch, n_heads, n_pos, d_head]`, `cos` and `sin` `[n_pos, d_head / 2]`; returns the shape of `x`.
///
/// # Errors
/// Those of the tensor operations.
pub fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let half = x.dim(D::Minus1)? / 2;
    let (x1, x2) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    let first = (x1.broadcast_mul(cos)? - x2.broadcast_mul(sin)?)?;
    let second = (x2.broadcast_mul(cos)? + x1.broadcast_mul(sin)?)?;
    Ok(Tensor::cat(&[first, second], D::Minus1)?)
}
