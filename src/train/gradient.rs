//! The gradient of the rows of features, and moving them by it, in one go: no gradient is ever in memory but that of the
//! row that is moved.
//!
//! Rows are gone through in blocks of columns, so many that the block of all rows stays in a core's cache: a pair of token and
//! feature reads four rows, and any of them would come from memory otherwise.

use std::ops::Range;

use super::layer::{Layer, Moments};
use super::rows::AdamStep;
use super::select::{Active, Choice};
use super::step::StepSettings;
use crate::ops::rows::{add_scaled, dot, wide};

/// Bytes of a block of all rows.
const BLOCK_BYTES: usize = 1 << 20;

/// Blocks of columns of `n_rows` rows of `width`, a multiple of the widest vectors wide.
pub(super) fn column_blocks(width: usize, n_rows: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    let step = (BLOCK_BYTES / (4 * n_rows.max(1)) / 64 * 64).max(64);
    (0..width).step_by(step).map(move |start| start..(start + step).min(width))
}

/// The pairs of each feature, in the order of their tokens.
pub(super) struct ByFeature {
    starts: Vec<u32>,
    /// Indices into the pairs in the order of tokens, and their tokens.
    pairs: Vec<(u32, u32)>,
}

impl ByFeature {
    pub(super) fn new(active: &Active, n_features: usize) -> Self {
        let mut starts = vec![0u32; n_features + 1];
        active.features.iter().for_each(|&feature| starts[feature as usize + 1] += 1);
        for feature in 0..n_features {
            starts[feature + 1] += starts[feature];
        }
        let mut next = starts.clone();
        let mut pairs = vec![(0, 0); active.features.len()];
        for token in 0..active.n_tokens() {
            for pair in active.starts[token]..active.starts[token + 1] {
                let at = &mut next[active.features[pair as usize] as usize];
                pairs[*at as usize] = (pair, token as u32);
                *at += 1;
            }
        }
        Self { starts, pairs }
    }

    #[inline(always)]
    pub(super) fn of(&self, feature: usize) -> &[(u32, u32)] {
        &self.pairs[self.starts[feature] as usize..self.starts[feature + 1] as usize]
    }
}

/// Pairs and what each does to its encoder row, with the errors that they answer to.
pub(super) struct Gradient<'a> {
    pub active: &'a Active,
    pub by_feature: ByFeature,
    /// Loss by activation. `[n_active]`
    pub deltas: Vec<f32>,
    /// Errors of the layers written to, and what they are multiplied by to be a gradient.
    errors: &'a [Vec<f32>],
    factor: f32,
}

impl<'a> Gradient<'a> {
    pub(super) fn new(layer: &Layer, active: &'a Active, errors: &'a [Vec<f32>], factor: f32) -> Self {
        let mut deltas = vec![0f32; active.features.len()];
        add_deltas((&mut deltas[..], layer, active, errors, factor));
        Self { by_feature: ByFeature::new(active, layer.n_features), active, deltas, errors, factor }
    }

    /// Adds some columns of the gradient of a feature's encoder row. `x` `[n_tokens, d_model]`
    #[inline(always)]
    fn add_enc(&self, feature: usize, x: &[f32], d_model: usize, columns: &Range<usize>, sum: &mut [f32]) {
        for &(pair, token) in self.by_feature.of(feature) {
            let x = &x[token as usize * d_model..][columns.clone()];
            add_scaled(sum, self.deltas[pair as usize], x);
        }
    }

    /// As [`Gradient::add_enc`], of the decoder row for one of the layers that the feature writes to; of layers without an
    /// error there is none.
    #[inline(always)]
    fn add_dec(&self, feature: usize, written: usize, d_model: usize, columns: &Range<usize>, sum: &mut [f32]) {
        let Some(error) = self.errors.get(written) else { return };
        for &(pair, token) in self.by_feature.of(feature) {
            let error = &error[token as usize * d_model..][columns.clone()];
            add_scaled(sum, self.factor * self.active.values[pair as usize], error);
        }
    }

    fn bias(&self, feature: usize) -> f32 {
        self.by_feature.of(feature).iter().map(|&(pair, _)| self.deltas[pair as usize]).sum()
    }
}

wide! {
    /// ⟨g_n, W_dec,i⟩ of every pair.
    fn add_deltas<'a>(
        (deltas, layer, active, errors, factor) =>
            (&'a mut [f32], &'a Layer, &'a Active, &'a [Vec<f32>], f32)
    ) -> () {
        let d_model = layer.d_model;
        for (written, error) in errors.iter().enumerate() {
            for columns in column_blocks(d_model, layer.n_features) {
                for token in 0..active.n_tokens() {
                    let pairs = active.starts[token] as usize..active.starts[token + 1] as usize;
                    let error = &error[token * d_model..][columns.clone()];
                    for (delta, &feature) in deltas[pairs.clone()].iter_mut().zip(&active.features[pairs]) {
                        *delta += factor * dot(error, &layer.dec_row(feature as usize, written)[columns.clone()]);
                    }
                }
            }
        }
    }
}

/// A feature whose rows move.
struct Moving {
    feature: usize,
    adam: AdamStep,
    /// What the loss of lengths gives to its decoder row, as a multiple of the row.
    of_length: f32,
}

/// Moves the rows of every feature that has a gradient. `of_dead`: the gradient of those that answer for their own layer
/// alone.
pub(super) fn move_features(
    layer: &mut Layer,
    x: &[f32],
    gradient: &Gradient,
    of_dead: Option<&Gradient>,
    settings: &StepSettings,
) {
    let gradients: Vec<&Gradient> = [gradient].into_iter().chain(of_dead).collect();
    let mut moving = Vec::new();
    for feature in 0..layer.n_features {
        if gradients.iter().all(|gradient| gradient.by_feature.of(feature).is_empty()) {
            continue;
        }
        let adam = AdamStep::new(settings.lr, settings.step, settings.step - layer.last_moved[feature]);
        layer.last_moved[feature] = settings.step;
        let of_length = if settings.choice == Choice::Positive { length_factor(layer, gradient, feature) } else { 0.0 };
        let bias = gradients.iter().map(|gradient| gradient.bias(feature)).sum();
        let Moments { first, second } = &mut layer.moments.b_enc;
        let place = feature..feature + 1;
        let moments = (&mut first[place.clone()], &mut second[place.clone()]);
        adam.apply(&mut layer.b_enc[place], moments, &[bias]);
        moving.push(Moving { feature, adam, of_length });
    }
    move_encoders((layer, x, &gradients, &moving));
    move_decoders((layer, &gradients, &moving));
}

/// What the loss of the lengths that activations add gives to a decoder row, as a multiple of it.
fn length_factor(layer: &Layer, gradient: &Gradient, feature: usize) -> f32 {
    let values = gradient.by_feature.of(feature).iter().map(|&(pair, _)| gradient.active.values[pair as usize]);
    let norm = layer.dec_norms[feature].max(f32::MIN_POSITIVE);
    layer.sparsity * values.sum::<f32>() / (norm * gradient.active.n_tokens() as f32)
}

wide! {
    fn move_encoders<'a>(
        (layer, x, gradients, moving) =>
            (&'a mut Layer, &'a [f32], &'a [&'a Gradient<'a>], &'a [Moving])
    ) -> () {
        let d_model = layer.d_model;
        let Moments { first, second } = &mut layer.moments.w_enc;
        let mut sum = vec![0f32; d_model];
        for columns in column_blocks(d_model, x.len() / d_model) {
            let sum = &mut sum[..columns.len()];
            for Moving { feature, adam, .. } in moving {
                sum.fill(0.0);
                for gradient in gradients {
                    gradient.add_enc(*feature, x, d_model, &columns, sum);
                }
                let place = feature * d_model + columns.start..feature * d_model + columns.end;
                let moments = (&mut first[place.clone()], &mut second[place.clone()]);
                adam.apply(&mut layer.w_enc[place], moments, sum);
            }
        }
    }
}

wide! {
    fn move_decoders<'a>(
        (layer, gradients, moving) =>
            (&'a mut Layer, &'a [&'a Gradient<'a>], &'a [Moving])
    ) -> () {
        let (d_model, n_written) = (layer.d_model, layer.n_written);
        let Moments { first, second } = &mut layer.moments.w_dec;
        let mut sum = vec![0f32; d_model];
        let n_tokens = gradients.first().map_or(0, |gradient| gradient.active.n_tokens());
        for written in 0..n_written {
            for columns in column_blocks(d_model, n_tokens) {
                let sum = &mut sum[..columns.len()];
                for Moving { feature, adam, of_length } in moving {
                    sum.fill(0.0);
                    for gradient in gradients {
                        gradient.add_dec(*feature, written, d_model, &columns, sum);
                    }
                    let start = (feature * n_written + written) * d_model;
                    let place = start + columns.start..start + columns.end;
                    if *of_length != 0.0 {
                        add_scaled(sum, *of_length, &layer.w_dec[place.clone()]);
                    }
                    let moments = (&mut first[place.clone()], &mut second[place.clone()]);
                    adam.apply(&mut layer.w_dec[place], moments, sum);
                }
            }
        }
        for Moving { feature, .. } in moving {
            let row = &layer.w_dec[feature * n_written * d_model..][..n_written * d_model];
            layer.dec_norms[*feature] = dot(row, row).sqrt();
        }
    }
}
