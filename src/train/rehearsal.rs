//! A step on random data, for measuring what it costs.

use super::init::unit_rows;
use super::layer::Layer;
use super::select::Choice;
use super::step::{LayerBatch, StepSettings, step};
use crate::intervene::Random;
use crate::ops::product_with_transpose;

/// Layers with random weights and a batch of random tokens.
#[doc(hidden)]
pub struct Rehearsal {
    layers: Vec<Layer>,
    batch: Vec<LayerBatch>,
    settings: StepSettings,
}

impl Rehearsal {
    /// Per-layer dictionaries of such sizes, with products in bf16 where that is asked for and can be had.
    pub fn new(n_layers: usize, d_model: usize, n_features: usize, l0: f64, n_tokens: usize, rounds: bool) -> Self {
        let mut random = Random(1);
        let mut layer = Layer::new(d_model, n_features, 1, false);
        layer.w_enc = unit_rows(n_features, d_model, &mut random);
        layer.w_dec = unit_rows(n_features, d_model, &mut random);
        layer.rounds = rounds;
        layer.measure_decoder();
        // As a language model's: a mean length of √d_model.
        let mut rows = || {
            let mut rows = unit_rows(n_tokens, d_model, &mut random);
            rows.iter_mut().for_each(|value| *value *= (d_model as f32).sqrt());
            rows
        };
        let batch = LayerBatch { x: rows(), y: rows() };
        let settings = StepSettings {
            step: 0,
            lr: 1e-4,
            choice: Choice::OfBatch((l0 * n_tokens as f64) as usize),
            l0,
            learns_thresholds: true,
            n_tokens: 0,
            dead_window: i64::MAX,
        };
        Self { layers: vec![layer; n_layers], batch: vec![batch; n_layers], settings }
    }

    /// A whole step.
    pub fn step(&mut self) {
        self.settings.step += 1;
        step(&mut self.layers, &self.batch, &self.settings);
    }

    /// The encoder's product alone, of all layers, on one thread; gives a value of it, so that it is computed.
    pub fn products(&self) -> f32 {
        let sum = self.layers.iter().zip(&self.batch).map(|(layer, batch)| {
            let n_tokens = batch.x.len() / layer.d_model;
            let mut out = vec![0f32; n_tokens * layer.n_features];
            product_with_transpose(&mut out, &batch.x, &layer.w_enc, (n_tokens, layer.d_model, layer.n_features));
            out[out.len() / 2]
        });
        sum.sum()
    }
}
