//! Which features read a feature and which it reads, by weights: decoders against encoders through the residual stream.

use candle_core::Tensor;

use super::pushes::through_output;
use super::report::FeatureId;
use crate::error::Result;
use crate::job::Job;
use crate::model::{Activations, ForwardOptions, HookPoint};
use crate::replacement::Replacement;
use crate::transcoder::{InputHook, Kind, OutputHook};

/// Rows of a decoder that are read at once.
const N_AT_ONCE: usize = 1024;

/// A feature that another one feeds, or is fed by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VirtualWeight {
    /// The other feature.
    pub id: FeatureId,
    /// What an activation of 1 of the feature below adds to the pre-activation of the one above, straight through the
    /// residual stream, at the average of what norms divide by.
    pub weight: f32,
}

/// What norms divide by on average, so that weights of different layers compare.
#[derive(Debug)]
pub struct VirtualWeights<'a> {
    replacement: &'a Replacement,
    /// Mean of 1 / scale of the norm that each layer's transcoder reads through; 1 where there is none. `[n_layers]`
    input: Vec<f64>,
    /// The same of the norm that it writes through.
    output: Vec<f64>,
}

impl<'a> VirtualWeights<'a> {
    /// Averages over a text, its excluded first positions left out: some hundred tokens do.
    ///
    /// # Errors
    /// Those of the model.
    pub fn new(replacement: &'a Replacement, tokens: &[u32], job: &Job) -> Result<Self> {
        let n_layers = replacement.model.config.n_layers;
        let reads_through_norm = replacement.transcoders.input_hook != InputHook::ResidMid;
        let writes_through_norm =
            replacement.transcoders.output_hook == OutputHook::MlpOut && replacement.model.config.post_norms;
        let mut points: Vec<HookPoint> = Vec::new();
        if reads_through_norm {
            points.extend((0..n_layers).map(HookPoint::Ln2Scale));
        }
        if writes_through_norm {
            points.extend((0..n_layers).map(HookPoint::Ln2PostScale));
        }
        let mut kept = Activations::at(points);
        if reads_through_norm || writes_through_norm {
            replacement.model.forward(&[tokens.to_vec()], &mut kept, ForwardOptions::of(job))?;
        }
        let n_excluded = replacement.n_excluded(tokens).min(tokens.len().saturating_sub(1));
        let mean = |is_used: bool, point: HookPoint| -> Result<f64> {
            if !is_used {
                return Ok(1.0);
            }
            let scales = kept.need(point)?.flatten_all()?.to_vec1::<f32>()?;
            let scales = &scales[n_excluded..];
            Ok(scales.iter().map(|&scale| 1.0 / f64::from(scale)).sum::<f64>() / scales.len().max(1) as f64)
        };
        let layers = 0..n_layers;
        let input = layers.clone().map(|l| mean(reads_through_norm, HookPoint::Ln2Scale(l))).collect::<Result<_>>()?;
        let output = layers.map(|l| mean(writes_through_norm, HookPoint::Ln2PostScale(l))).collect::<Result<_>>()?;
        Ok(Self { replacement, input, output })
    }

    /// The features of later layers that read a feature most, by size: the `n` largest weights of either sign.
    ///
    /// # Errors
    /// [`crate::Error::NoSuchFeature`]; those of reading.
    pub fn feeds(&self, id: FeatureId, n: usize) -> Result<Vec<VirtualWeight>> {
        let transcoders = &self.replacement.transcoders;
        transcoders.check_feature(id.layer, id.feature)?;
        let written = transcoders.layers[id.layer].decoder_vecs(&[id.feature], self.replacement.model.device())?;
        let mut best = Vec::new();
        let mut sum: Option<Tensor> = None;
        for layer in id.layer + 1..transcoders.layers.len() {
            // What it has written below this layer.
            let above = layer - 1 - id.layer;
            if above < written.dim(1)? {
                let part = self.to_residual(layer - 1, &written.get_on_dim(1, above)?)?;
                sum = Some(match sum {
                    Some(sum) => (sum + part)?,
                    None => part,
                });
            }
            let Some(residual) = &sum else { continue };
            let at_input = self.through_input(layer, residual)?;
            let weights = transcoders.layers[layer].encoder_products(&at_input)?.flatten_all()?.to_vec1::<f32>()?;
            keep_largest(&mut best, n, layer, 0, &weights);
        }
        Ok(best)
    }

    /// The features of earlier layers that a feature reads most.
    ///
    /// # Errors
    /// As [`VirtualWeights::feeds`].
    pub fn reads(&self, id: FeatureId, n: usize) -> Result<Vec<VirtualWeight>> {
        let transcoders = &self.replacement.transcoders;
        transcoders.check_feature(id.layer, id.feature)?;
        let device = self.replacement.model.device();
        let encoder = transcoders.layers[id.layer].encoder_row(id.feature, device)?.unsqueeze(0)?;
        let direction = self.through_input_transposed(id.layer, &encoder)?;
        let mut best = Vec::new();
        for (layer, below) in transcoders.layers[..id.layer].iter().enumerate() {
            let n_read = match transcoders.kind {
                Kind::PerLayer => 1,
                Kind::CrossLayer => id.layer - layer,
            };
            let directions: Vec<Tensor> = (0..n_read)
                .map(|above| self.to_residual_transposed(layer + above, &direction))
                .collect::<Result<_>>()?;
            let directions = Tensor::stack(&directions, 1)?.reshape((1, ()))?;
            for start in (0..below.n_features()).step_by(N_AT_ONCE) {
                let features: Vec<usize> = (start..(start + N_AT_ONCE).min(below.n_features())).collect();
                let written = below.decoder_vecs(&features, device)?.narrow(1, 0, n_read)?;
                let written = written.contiguous()?.reshape((features.len(), ()))?;
                let weights = written.matmul(&directions.t()?)?.flatten_all()?.to_vec1::<f32>()?;
                keep_largest(&mut best, n, layer, start, &weights);
            }
        }
        Ok(best)
    }

    /// What is written at a layer, in the residual stream. `[n, d_model]` to the same
    fn to_residual(&self, layer: usize, written: &Tensor) -> Result<Tensor> {
        Ok((through_output(self.replacement, layer, written)? * self.output[layer])?)
    }

    /// The transpose. Only RMSNorms come after MLPs, so it is the same: a product with the gain.
    fn to_residual_transposed(&self, layer: usize, direction: &Tensor) -> Result<Tensor> {
        self.to_residual(layer, direction)
    }

    /// A change of the residual stream before a layer's MLP, at the input of its transcoder. `[n, d_model]` to the same
    fn through_input(&self, layer: usize, residual: &Tensor) -> Result<Tensor> {
        if self.replacement.transcoders.input_hook == InputHook::ResidMid {
            return Ok(residual.clone());
        }
        let norm = &self.replacement.model.layer(layer)?.mlp_norm;
        let centred = (norm.centre(residual)? * self.input[layer])?;
        match self.replacement.transcoders.input_hook {
            InputHook::MlpIn => Ok(centred.broadcast_mul(&norm.gain)?),
            _ => Ok(centred),
        }
    }

    /// The transpose: centring is its own.
    fn through_input_transposed(&self, layer: usize, encoder: &Tensor) -> Result<Tensor> {
        if self.replacement.transcoders.input_hook == InputHook::ResidMid {
            return Ok(encoder.clone());
        }
        let norm = &self.replacement.model.layer(layer)?.mlp_norm;
        let direction = match self.replacement.transcoders.input_hook {
            InputHook::MlpIn => encoder.broadcast_mul(&norm.gain)?,
            _ => encoder.clone(),
        };
        Ok((norm.centre(&direction)? * self.input[layer])?)
    }
}

/// Keeps the `n` largest of either sign, largest first; of equal ones, the first.
fn keep_largest(best: &mut Vec<VirtualWeight>, n: usize, layer: usize, start: usize, weights: &[f32]) {
    for (feature, &weight) in (start..).zip(weights) {
        if best.len() == n && best.last().is_none_or(|last| weight.abs() <= last.weight.abs()) {
            continue;
        }
        let at = best.partition_point(|other| other.weight.abs() >= weight.abs());
        best.insert(at, VirtualWeight { id: FeatureId { layer, feature }, weight });
        best.truncate(n);
    }
}
