//! RMSNorm and LayerNorm, taken apart as attribution needs them: a scale per position that can be frozen, and a
//! linear rest (centring, gain, bias).

use candle_core::{D, Tensor};

use super::config::NormKind;
use crate::error::Result;

/// One norm: `y = centre(x) / scale(x) ⊙ gain + bias`; only LayerNorm centres and has a bias.
#[derive(Clone, Debug)]
pub struct Norm {
    /// How it divides.
    pub kind: NormKind,
    /// What is added under the root.
    pub eps: f64,
    /// The whole factor, Gemma's `1 +` included. `[width]`
    pub gain: Tensor,
    /// `[width]`
    pub bias: Option<Tensor>,
}

impl Norm {
    /// The input without its mean (LayerNorm) or as it is (RMSNorm). `[.., width]` to `[.., width]`
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub(crate) fn centre(&self, x: &Tensor) -> Result<Tensor> {
        match self.kind {
            NormKind::Rms => Ok(x.clone()),
            NormKind::Layer => Ok(x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?),
        }
    }

    /// What the norm divides by: `sqrt(mean(centred²) + eps)`. `[.., width]` to `[.., 1]`
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub fn scale(&self, x: &Tensor) -> Result<Tensor> {
        let centred = self.centre(x)?;
        Ok((centred.sqr()?.mean_keepdim(D::Minus1)? + self.eps)?.sqrt()?)
    }

    /// The normalised input before the gain, with a given scale: `centre(x) / scale`.
    ///
    /// # Shapes
    /// `x` `[.., width]`, `scale` `[.., 1]`.
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub(crate) fn normalize(&self, x: &Tensor, scale: &Tensor) -> Result<Tensor> {
        Ok(self.centre(x)?.broadcast_mul(&scale.recip()?)?)
    }

    /// Gain and bias on an input that [`Norm::normalize`] returned.
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub(crate) fn affine(&self, normalized: &Tensor) -> Result<Tensor> {
        let y = normalized.broadcast_mul(&self.gain)?;
        match &self.bias {
            Some(bias) => Ok(y.broadcast_add(bias)?),
            None => Ok(y),
        }
    }

    /// The whole norm with a given scale.
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub fn apply(&self, x: &Tensor, scale: &Tensor) -> Result<Tensor> {
        self.affine(&self.normalize(x, scale)?)
    }

    /// A map that reads this norm's output, as one that reads its input divided by the scale: `w · diag(gain) ·
    /// centring`. `[n, width]` to the same
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub(crate) fn fold(&self, w: &Tensor) -> Result<Tensor> {
        let scaled = w.broadcast_mul(&self.gain)?;
        match self.kind {
            NormKind::Rms => Ok(scaled),
            NormKind::Layer => Ok(scaled.broadcast_sub(&scaled.mean_keepdim(1)?)?),
        }
    }
}
