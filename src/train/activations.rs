//! What transcoders read and what they are to write, of the tokens of a text: computed by the model, held in memory in
//! 16 bits a value.

use candle_core::Tensor;
use half::bf16;
use half::slice::HalfFloatSliceExt;

use super::step::LayerBatch;
use crate::corpus::{Sequence, batches};
use crate::error::{Error, Result};
use crate::intervene::Random;
use crate::job::Job;
use crate::model::{HookPoint, Hooks, Model};
use crate::replacement::{input_point, output_point};
use crate::transcoder::{InputHook, OutputHook};

/// Where transcoders read and write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Points {
    pub input: InputHook,
    pub output: OutputHook,
}

impl Points {
    fn input(self, layer: usize) -> HookPoint {
        input_point(self.input, layer)
    }

    fn output(self, layer: usize) -> HookPoint {
        output_point(self.output, layer)
    }
}

/// Inputs and outputs of one layer. `[n_tokens, d_model]` each
#[derive(Clone, Debug, Default)]
struct LayerActivations {
    x: Vec<bf16>,
    y: Vec<bf16>,
}

/// Activations of all layers for the same tokens.
#[derive(Clone, Debug)]
pub(super) struct Activations {
    d_model: usize,
    layers: Vec<LayerActivations>,
}

/// Bytes of a token's activations.
pub(super) fn token_bytes(n_layers: usize, d_model: usize) -> u64 {
    4 * n_layers as u64 * d_model as u64
}

impl Activations {
    pub(super) fn new(n_layers: usize, d_model: usize) -> Self {
        Self { d_model, layers: vec![LayerActivations::default(); n_layers] }
    }

    /// Tokens held.
    pub(super) fn n_tokens(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.x.len() / self.d_model)
    }

    /// Forgets all tokens.
    pub(super) fn clear(&mut self) {
        for layer in &mut self.layers {
            layer.x.clear();
            layer.y.clear();
        }
    }

    /// Runs the model on sequences and adds what it computes, without the first `n_excluded` tokens of each.
    ///
    /// # Errors
    /// Those of the model; [`Error::Cancelled`].
    pub(super) fn add(
        &mut self,
        model: &Model,
        points: Points,
        unit: &[Sequence],
        n_excluded: &dyn Fn(&[u32]) -> usize,
        job: &Job,
    ) -> Result<()> {
        for batch in batches(unit) {
            let tokens: Vec<Vec<u32>> = batch.iter().map(|&i| unit[i].tokens.clone()).collect();
            let wanted = tokens.iter().map(|tokens| (n_excluded(tokens).min(tokens.len()), tokens.len())).collect();
            let last_layer = self.layers.len() - 1;
            let mut taker = Taker { activations: self, points, wanted };
            model.forward_through(last_layer, &tokens, &mut taker, job)?;
        }
        Ok(())
    }

    /// The activations of chosen tokens at a layer, in scaled units.
    pub(super) fn batch(&self, layer: usize, tokens: &[u32], scales: (f32, f32), into: &mut LayerBatch) {
        let of = &self.layers[layer];
        gather(&of.x, tokens, self.d_model, scales.0, &mut into.x);
        gather(&of.y, tokens, self.d_model, scales.1, &mut into.y);
    }
}

fn gather(from: &[bf16], tokens: &[u32], d_model: usize, scale: f32, into: &mut Vec<f32>) {
    into.resize(tokens.len() * d_model, 0.0);
    for (&token, into) in tokens.iter().zip(into.chunks_mut(d_model)) {
        from[token as usize * d_model..][..d_model].convert_to_f32_slice(into);
        into.iter_mut().for_each(|value| *value *= scale);
    }
}

/// Takes what is read and written at every layer.
struct Taker<'a> {
    activations: &'a mut Activations,
    points: Points,
    /// Of each sequence, the tokens from the first number up to the second.
    wanted: Vec<(usize, usize)>,
}

impl Hooks for Taker<'_> {
    fn wants(&self, point: HookPoint) -> bool {
        point.layer().is_some_and(|layer| point == self.points.input(layer) || point == self.points.output(layer))
    }

    fn see(&mut self, point: HookPoint, tensor: &Tensor) -> Result<Option<Tensor>> {
        let Some(layer) = point.layer() else { return Ok(None) };
        let (_, n_pos, d_model) = tensor.dims3()?;
        let values = tensor.flatten_all()?.to_vec1::<f32>()?;
        let of = &mut self.activations.layers[layer];
        let into = if point == self.points.input(layer) { &mut of.x } else { &mut of.y };
        for (sequence, &(start, end)) in values.chunks(n_pos * d_model).zip(&self.wanted) {
            let rows = &sequence[start * d_model..end * d_model];
            let at = into.len();
            into.resize(at + rows.len(), bf16::ZERO);
            into[at..].convert_from_f32_slice(rows);
        }
        if let Some(value) = into.iter().find(|value| !value.is_finite()) {
            return Err(Error::ComputedNotFinite { quantity: point.to_string(), value: value.to_f32() });
        }
        Ok(None)
    }
}

/// `0..n` in random order.
pub(super) fn shuffled(n: usize, random: &mut Random) -> Vec<u32> {
    let mut order: Vec<u32> = (0..n as u32).collect();
    for i in (1..n).rev() {
        order.swap(i, (random.next() % (i as u64 + 1)) as usize);
    }
    order
}
