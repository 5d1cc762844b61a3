//! How good folded weights are on held-out tokens: what goes wrong in training shows here, in the weights as they are
//! written.

use super::activations::Activations;
use super::fold::Folded;
use super::layer::Layer;
use super::options::Activation;
use super::select::{Active, Choice, choose};
use super::step::{LayerBatch, error, figures};

/// Activations of held-out tokens: one half to set thresholds on, the other to measure with.
#[derive(Clone, Debug)]
pub(super) struct HeldOut {
    activations: Activations,
}

impl HeldOut {
    /// `None` if there are fewer than `least` tokens.
    pub(super) fn new(activations: Activations, least: usize) -> Option<Self> {
        (activations.n_tokens() >= least.max(2)).then_some(Self { activations })
    }

    /// In the model's own units.
    pub(super) fn first_half(&self, layer: usize) -> LayerBatch {
        self.of(layer, 0)
    }

    fn second_half(&self, layer: usize) -> LayerBatch {
        self.of(layer, 1)
    }

    /// Every second token, from `first` on: both halves are of the same documents.
    fn of(&self, layer: usize, first: u32) -> LayerBatch {
        let tokens: Vec<u32> = (first..self.activations.n_tokens() as u32).step_by(2).collect();
        let mut batch = LayerBatch::default();
        self.activations.batch(layer, &tokens, (1.0, 1.0), &mut batch);
        batch
    }
}

/// Fraction of variance unexplained and active features a token, of every layer.
pub(super) fn measure(folded: &[Folded], held_out: &HeldOut, activation: Activation, l0: f64) -> (Vec<f64>, Vec<f64>) {
    let layers: Vec<Layer> = folded.iter().map(unfolded).collect();
    let batch: Vec<LayerBatch> = (0..layers.len()).map(|layer| held_out.second_half(layer)).collect();
    let chosen: Vec<Active> = layers
        .iter()
        .zip(&batch)
        .zip(folded)
        .map(|((layer, batch), folded)| {
            let choice = if activation == Activation::TopK { Choice::OfToken(l0 as usize) } else { Choice::Positive };
            let (active, _) = choose(layer, &batch.x, choice);
            if activation == Activation::JumpRelu { above(&active, &folded.threshold) } else { active }
        })
        .collect();
    let active: Vec<&Active> = chosen.iter().collect();
    let of_layer = |layer: usize| {
        let (error, variance) =
            figures(&error(&layers, &active, &batch, layer), &batch[layer].y, layers[layer].d_model);
        error / variance.max(f64::MIN_POSITIVE)
    };
    let l0 = chosen.iter().map(|active| active.features.len() as f64 / active.n_tokens().max(1) as f64).collect();
    ((0..layers.len()).map(of_layer).collect(), l0)
}

/// A layer whose scales are 1.
fn unfolded(folded: &Folded) -> Layer {
    let mut layer = Layer::new(folded.d_model, folded.b_enc.len(), folded.n_written, false);
    layer.w_enc.clone_from(&folded.w_enc);
    layer.b_enc.clone_from(&folded.b_enc);
    layer.w_dec.clone_from(&folded.w_dec);
    layer.b_dec.clone_from(&folded.b_dec);
    layer.w_skip.clone_from(&folded.w_skip);
    layer.measure_decoder();
    layer
}

/// Those above their thresholds.
fn above(active: &Active, threshold: &[f32]) -> Active {
    let mut kept = Active { starts: vec![0], features: Vec::new(), values: Vec::new() };
    for token in 0..active.n_tokens() {
        let (features, values) = active.of(token);
        for (&feature, &value) in features.iter().zip(values).filter(|(f, v)| **v > threshold[**f as usize]) {
            kept.features.push(feature);
            kept.values.push(value);
        }
        kept.starts.push(kept.features.len() as u32);
    }
    kept
}
