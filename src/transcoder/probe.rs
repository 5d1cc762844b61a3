//! Chosen features of one layer, their encoder rows in memory: for reading the same few activations again and again.

use candle_core::{Device, Tensor};

use super::{ActivationFunction, Transcoder};
use crate::error::Result;

/// Reads the activations of chosen features.
#[derive(Debug)]
pub struct FeatureProbe<'a> {
    transcoder: &'a Transcoder,
    features: Vec<usize>,
    /// `[n_features, d_model]`
    encoder_vecs: Tensor,
}

impl<'a> FeatureProbe<'a> {
    /// Reads the encoder rows of `features`, which must exist.
    ///
    /// # Errors
    /// Those of reading.
    pub fn new(transcoder: &'a Transcoder, features: Vec<usize>, device: &Device) -> Result<Self> {
        let rows = features.iter().map(|&f| transcoder.encoder_row(f, device)).collect::<Result<Vec<Tensor>>>()?;
        Ok(Self { transcoder, features, encoder_vecs: Tensor::stack(&rows, 0)? })
    }

    /// The features, in the order of the columns below.
    pub fn features(&self) -> &[usize] {
        &self.features
    }

    /// Pre-activations `z = x · W_encᵀ + b_enc`. `[n, d_model]` to `[n][n_features]`
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub fn pre_activations(&self, x: &Tensor) -> Result<Vec<Vec<f32>>> {
        let mut z = x.matmul(&self.encoder_vecs.t()?)?.to_vec2::<f32>()?;
        for row in &mut z {
            row.iter_mut().zip(&self.features).for_each(|(z, &f)| *z += self.transcoder.b_enc(f));
        }
        Ok(z)
    }

    /// Activations `act(z)`. `[n, d_model]` to `[n][n_features]`
    ///
    /// # Cost
    /// TopK has to encode all features of the layer; the others read the chosen ones only.
    ///
    /// # Errors
    /// Those of reading and of the tensor operations.
    pub fn activations(&self, x: &Tensor) -> Result<Vec<Vec<f32>>> {
        let threshold = match self.transcoder.activation() {
            ActivationFunction::TopK { .. } => return self.among_all(x),
            ActivationFunction::Relu => None,
            ActivationFunction::JumpRelu { threshold } => Some(threshold),
        };
        let mut z = self.pre_activations(x)?;
        for row in &mut z {
            for (z, &feature) in row.iter_mut().zip(&self.features) {
                if *z <= threshold.map_or(0.0, |t| t[feature]) {
                    *z = 0.0;
                }
            }
        }
        Ok(z)
    }

    fn among_all(&self, x: &Tensor) -> Result<Vec<Vec<f32>>> {
        let encoded = self.transcoder.encode(x, 0)?;
        let value = |active: &[super::Candidate], feature: usize| {
            active.iter().find(|c| c.feature as usize == feature).map_or(0.0, |c| c.value)
        };
        Ok(encoded.active.iter().map(|at| self.features.iter().map(|&f| value(at, f)).collect()).collect())
    }
}
