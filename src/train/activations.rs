//! What transcoders read and what they are to write, of the tokens of a text: computed by the model, held in memory in
//! 16 bits a value.

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::step::LayerBatch;
use crate::corpus::Sequence;
use crate::error::{Error, Result};
use crate::intervene::Random;
use crate::job::Job;
use crate::model::{HookPoint, TextPass, TextVisitor};
use crate::ops::rows::wide;
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
        pass: &TextPass,
        points: Points,
        unit: &[Sequence],
        n_excluded: &dyn Fn(&[u32]) -> usize,
        job: &Job,
    ) -> Result<()> {
        let sequences: Vec<&[u32]> = unit.iter().map(|sequence| &sequence.tokens[..]).collect();
        let wanted = sequences.iter().map(|tokens| (n_excluded(tokens).min(tokens.len()), tokens.len())).collect();
        let last_layer = self.layers.len() - 1;
        pass.run(last_layer, &sequences, &mut Taker { activations: self, points, wanted }, job)
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
    gather_rows((from, tokens, d_model, scale, into));
}

wide! {
    fn gather_rows<'a>(
        (from, tokens, d_model, scale, into) =>
            (&'a [bf16], &'a [u32], usize, f32, &'a mut [f32])
    ) -> () {
        for (&token, into) in tokens.iter().zip(into.chunks_mut(d_model)) {
            for (into, value) in into.iter_mut().zip(&from[token as usize * d_model..][..d_model]) {
                *into = scale * f32::from_bits(u32::from(value.to_bits()) << 16);
            }
        }
    }
}

/// Takes what is read and written at every layer.
struct Taker<'a> {
    activations: &'a mut Activations,
    points: Points,
    /// Of each sequence, the tokens from the first number up to the second.
    wanted: Vec<(usize, usize)>,
}

impl TextVisitor for Taker<'_> {
    fn wants(&self, point: HookPoint) -> bool {
        point.layer().is_some_and(|layer| point == self.points.input(layer) || point == self.points.output(layer))
    }

    fn see(&mut self, point: HookPoint, rows: Vec<f32>, sequences: Range<usize>) -> Result<()> {
        let Some(layer) = point.layer() else { return Ok(()) };
        let d_model = self.activations.d_model;
        let of = &mut self.activations.layers[layer];
        let into = if point == self.points.input(layer) { &mut of.x } else { &mut of.y };
        let wanted = &self.wanted[sequences];
        let n_values = wanted.iter().map(|&(start, end)| (end - start) * d_model).sum::<usize>();
        let at = into.len();
        into.resize(at + n_values, bf16::ZERO);
        let (mut from, mut to) = (&rows[..], &mut into[at..]);
        let mut parts = Vec::with_capacity(wanted.len());
        for &(start, end) in wanted {
            let (own, rest) = from.split_at(end * d_model);
            let (place, left) = to.split_at_mut((end - start) * d_model);
            parts.push((place, &own[start * d_model..]));
            (from, to) = (rest, left);
        }
        if !parts.into_par_iter().all(|(place, rows)| round((place, rows))) {
            let value = rows.iter().copied().find(|value| !bf16::from_f32(*value).is_finite()).unwrap_or(f32::NAN);
            return Err(Error::ComputedNotFinite { quantity: point.to_string(), value });
        }
        Ok(())
    }
}

wide! {
    /// Rounds values to the nearest bf16, the even one of two; whether all are finite then.
    fn round<'a>((out, values) => (&'a mut [bf16], &'a [f32])) -> bool {
        const EXPONENT: u32 = 0x7f80_0000;
        let mut any = 0u32;
        for (out, value) in out.iter_mut().zip(values) {
            let bits = value.to_bits();
            let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
            // What is not finite has all bits of the exponent, and would lose them by rounding.
            any |= u32::from(bits & EXPONENT == EXPONENT) | u32::from(rounded & EXPONENT == EXPONENT);
            *out = bf16::from_bits((rounded >> 16) as u16);
        }
        any == 0
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activations_are_rounded_to_the_nearest_and_what_is_not_finite_is_found() {
        let values: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.37).sin() * 10f32.powi(i % 60 - 30)).collect();
        let mut out = vec![bf16::ZERO; values.len()];
        assert!(round((&mut out, &values)));
        assert!(out.iter().zip(&values).all(|(out, &value)| *out == bf16::from_f32(value)));
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::from_bits(0x7fff_ffff)] {
            for at in [0, 17, 63] {
                let mut values = vec![1f32; 64];
                values[at] = bad;
                assert!(!round((&mut out[..64], &values)), "{bad} at {at}");
            }
        }
    }
}
