//! A set that training begins from.

use candle_core::{Device, Tensor};

use super::super::layer::Layer;
use super::super::options::{Activation, SetSize, TrainOptions};
use crate::error::{Error, Result};
use crate::transcoder::{ActivationFunction, Kind, TranscoderSet};

/// The smallest threshold that activations are divided by.
const LEAST_THRESHOLD: f32 = 1e-6;

/// Features are active above the thresholds that a set has, all of them times one number: at its own L0 the set is what it
/// was.
pub(super) fn take_thresholds(from: &TranscoderSet, layers: &mut [Layer]) {
    for (transcoder, layer) in from.layers.iter().zip(layers) {
        if let ActivationFunction::JumpRelu { threshold } = transcoder.activation() {
            layer.over_threshold = threshold.iter().map(|&at| at.max(LEAST_THRESHOLD).recip()).collect();
        }
    }
}

/// Begins with the weights of a set, in scaled units.
pub(super) fn take_over(from: &TranscoderSet, layers: &mut [Layer]) -> Result<()> {
    let scales: Vec<f32> = layers.iter().map(|layer| layer.scale_out).collect();
    for (index, (transcoder, layer)) in from.layers.iter().zip(layers).enumerate() {
        let (n, d) = (layer.n_features, layer.d_model);
        let values = |tensor: &Tensor| -> Result<Vec<f32>> {
            Ok(tensor.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?)
        };
        let rows = (0..n).map(|feature| values(&transcoder.encoder_row(feature, &Device::Cpu)?));
        layer.w_enc = rows.collect::<Result<Vec<_>>>()?.concat();
        layer.w_enc.iter_mut().for_each(|value| *value /= layer.scale_in);
        layer.b_enc = (0..n).map(|feature| transcoder.b_enc(feature)).collect();
        let all: Vec<usize> = (0..n).collect();
        layer.w_dec = values(&transcoder.decoder_vecs(&all, &Device::Cpu)?)?;
        for rows in layer.w_dec.chunks_mut(layer.n_written * d) {
            for (written, row) in rows.chunks_mut(d).enumerate() {
                row.iter_mut().for_each(|value| *value *= scales[index + written]);
            }
        }
        layer.b_dec = values(transcoder.b_dec())?.into_iter().map(|value| value * layer.scale_out).collect();
        if let Some(w_skip) = transcoder.w_skip() {
            let factor = layer.scale_out / layer.scale_in;
            layer.w_skip = values(w_skip)?.into_iter().map(|value| value * factor).collect();
        }
        layer.measure_decoder();
    }
    Ok(())
}

/// The options that a set to begin from decides: its sizes, kind, activation and skip connection.
///
/// # Errors
/// [`Error::Train`] for layers of different sizes.
pub fn options_of(from: &TranscoderSet, l0: Option<f64>, options: TrainOptions) -> Result<TrainOptions> {
    let n_features = from.layers.first().map_or(0, |layer| layer.n_features());
    if let Some(other) = from.layers.iter().find(|layer| layer.n_features() != n_features) {
        let problem =
            format!("layers of {n_features} and of {} features cannot be trained together", other.n_features());
        return Err(Error::Train { problem });
    }
    let (activation, k) = match from.layers.first().map(|layer| layer.activation()) {
        Some(ActivationFunction::TopK { k }) => (Activation::TopK, Some(*k as f64)),
        Some(ActivationFunction::Relu) => (Activation::Relu, None),
        _ => (Activation::JumpRelu, None),
    };
    let l0 = l0.or(k).unwrap_or(options.sets.first().map_or(32.0, |set| set.l0));
    Ok(TrainOptions {
        sets: vec![SetSize { n_features, l0 }],
        activation,
        skip: from.layers.iter().any(|layer| layer.w_skip().is_some()),
        cross_layer: from.kind == Kind::CrossLayer,
        ..options
    })
}
