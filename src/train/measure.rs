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

/// Fraction of variance unexplained and active features a token, of every layer. Tokens of one layer are in memory at once.
pub(super) fn measure(
    folded: Vec<Folded>,
    held_out: &HeldOut,
    activation: Activation,
    l0: f64,
) -> (Vec<f64>, Vec<f64>) {
    let (layers, thresholds): (Vec<Layer>, Vec<Vec<f32>>) = folded.into_iter().map(unfolded).unzip();
    let choice = if activation == Activation::TopK { Choice::OfToken(l0 as usize) } else { Choice::Positive };
    let mut batch = vec![LayerBatch::default(); layers.len()];
    let (mut chosen, mut fvu): (Vec<Active>, Vec<f64>) = (Vec::new(), Vec::new());
    for (at, (layer, threshold)) in layers.iter().zip(&thresholds).enumerate() {
        batch[at] = held_out.second_half(at);
        let (active, _) = choose(layer, &batch[at].x, choice);
        chosen.push(if activation == Activation::JumpRelu { above(&active, threshold) } else { active });
        // Features of later layers do not write here.
        let active: Vec<&Active> = chosen.iter().collect();
        let (error, variance) = figures(&error(&layers, &active, &batch, at), &batch[at].y, layer.d_model);
        fvu.push(error / variance.max(f64::MIN_POSITIVE));
        batch[at] = LayerBatch::default();
    }
    let l0 = chosen.iter().map(|active| active.features.len() as f64 / active.n_tokens().max(1) as f64).collect();
    (fvu, l0)
}

/// A layer whose scales are 1, without moments; and its thresholds.
fn unfolded(folded: Folded) -> (Layer, Vec<f32>) {
    let Folded { d_model, n_written, w_enc, b_enc, w_dec, b_dec, w_skip, threshold } = folded;
    let n_features = b_enc.len();
    let empty = Layer::new(d_model, 0, n_written, false);
    let dec_norms = vec![0.0; n_features];
    let mut layer = Layer { n_features, w_enc, b_enc, w_dec, b_dec, w_skip, dec_norms, ..empty };
    layer.measure_decoder();
    (layer, threshold)
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
