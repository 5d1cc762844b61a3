//! One step on a batch of tokens, all layers: the encoder is the one dense product, everything else is done for the
//! active pairs of token and feature alone.
//!
//! With e = ŷ − y, N tokens and g = 2e/N, the gradient of Σ‖e‖²/N is, over the pairs (n, i) that are active,
//!
//! ```text
//! ∂W_dec,i = Σ_n a_ni g_n      δ_ni = ⟨g_n, W_dec,i⟩      ∂W_enc,i = Σ_n δ_ni x_n      ∂b_enc,i = Σ_n δ_ni
//! ```
//!
//! and no feature that is active nowhere has one. A cross-layer transcoder's feature has a g and a decoder row for every
//! layer that it writes to; δ is summed over them.
//!
//! Layers are computed in parallel, and each in one order, so that nothing depends on the number of threads.

use rayon::prelude::*;

use super::gradient::{ByFeature, Gradient, column_blocks, move_features};
use super::layer::{Layer, Moments};
use super::rows::AdamStep;
use super::select::{Active, Choice, choose};
use crate::ops::rows::{add_scaled, wide};
use crate::ops::{product_with_transpose, transpose_product};

/// Weight of what dead features are asked to explain, and how many of them a token gets at most (Gao et al. 2024,
/// "AuxK"; more cost as much as the step itself).
const DEAD_WEIGHT: f32 = 1.0 / 32.0;
const MAX_DEAD_A_TOKEN: usize = 32;

/// Dead features are asked in every second step.
const DEAD_EVERY: u32 = 2;

/// The running mean of thresholds takes so much of the newest.
const THRESHOLD_RATE: f32 = 0.01;

/// How fast the weight of lengths follows the number of active features.
const SPARSITY_RATE: f64 = 0.02;

/// How a step is taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct StepSettings {
    /// From 1 on.
    pub step: u32,
    /// Adam's step size.
    pub lr: f64,
    /// How features are chosen.
    pub choice: Choice,
    /// Active features a token that are wanted; with [`Choice::Positive`] the weight of lengths is moved towards them.
    pub l0: f64,
    /// Whether thresholds are being learnt.
    pub learns_thresholds: bool,
    /// Tokens read, with this batch.
    pub n_tokens: i64,
    /// Tokens without an activation after which a feature is dead.
    pub dead_window: i64,
}

/// The batch of one layer: inputs and outputs in scaled units, row-major. `[n_tokens, d_model]`
#[derive(Clone, Debug, Default)]
pub(super) struct LayerBatch {
    pub x: Vec<f32>,
    pub y: Vec<f32>,
}

/// What a step says of a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct LayerReport {
    /// Σ‖ŷ − y‖².
    pub error: f64,
    /// Σ‖y − ȳ‖², ȳ the batch's mean.
    pub variance: f64,
    /// Active pairs of token and feature.
    pub n_active: usize,
    /// Dead features.
    pub n_dead: usize,
}

/// Layers that write to layer `target`, with which of their decoder rows.
fn writers(layers: &[Layer], target: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
    (0..=target).filter(move |&source| target - source < layers[source].n_written).map(move |s| (s, target - s))
}

/// Takes a step: chooses, decodes, and moves every row that has a gradient.
pub(super) fn step(layers: &mut [Layer], batch: &[LayerBatch], settings: &StepSettings) -> Vec<LayerReport> {
    let chosen: Vec<(Active, f32)> =
        layers.par_iter().zip(batch).map(|(layer, batch)| choose(layer, &batch.x, settings.choice)).collect();
    let active: Vec<&Active> = chosen.iter().map(|(active, _)| active).collect();
    let errors: Vec<Vec<f32>> =
        (0..layers.len()).into_par_iter().map(|target| error(layers, &active, batch, target)).collect();
    let parallel = layers.par_iter_mut().enumerate();
    parallel
        .map(|(index, layer)| {
            let (active, floor) = &chosen[index];
            layer.floor = if floor.is_finite() { *floor } else { 0.0 };
            let written = &errors[index..index + layer.n_written];
            let n_dead = update(layer, &batch[index], active, written, settings);
            let (error, variance) = figures(&errors[index], &batch[index].y, layer.d_model);
            LayerReport { error, variance, n_active: active.features.len(), n_dead }
        })
        .collect()
}

/// ŷ − y of a layer. `[n_tokens, d_model]`
pub(super) fn error(layers: &[Layer], active: &[&Active], batch: &[LayerBatch], target: usize) -> Vec<f32> {
    let layer = &layers[target];
    let (d_model, LayerBatch { x, y }) = (layer.d_model, &batch[target]);
    // Written before it is read: pages that are read first are mapped twice.
    let mut out: Vec<f32> = Vec::with_capacity(y.len());
    y.chunks(d_model).for_each(|y| out.extend(layer.b_dec.iter().zip(y).map(|(bias, y)| bias - y)));
    if !layer.w_skip.is_empty() {
        let mut skipped = vec![0f32; y.len()];
        product_with_transpose(&mut skipped, x, &layer.w_skip, (y.len() / d_model, d_model, d_model));
        out.iter_mut().zip(&skipped).for_each(|(out, skipped)| *out += skipped);
    }
    add_decoded((&mut out[..], layers, active, target));
    out
}

wide! {
    /// Adds what is decoded.
    fn add_decoded<'a>(
        (out, layers, active, target) =>
            (&'a mut [f32], &'a [Layer], &'a [&'a Active], usize)
    ) -> () {
        let (d_model, n_features) = (layers[target].d_model, layers[target].n_features);
        for columns in column_blocks(d_model, n_features) {
            for (source, written) in writers(layers, target) {
                for (token, out) in out.chunks_mut(d_model).enumerate() {
                    let (features, values) = active[source].of(token);
                    let out = &mut out[columns.clone()];
                    for (&feature, &value) in features.iter().zip(values) {
                        add_scaled(out, value, &layers[source].dec_row(feature as usize, written)[columns.clone()]);
                    }
                }
            }
        }
    }
}

/// Σ‖e‖² and Σ‖y − ȳ‖².
pub(super) fn figures(error: &[f32], y: &[f32], d_model: usize) -> (f64, f64) {
    sums_of_squares((error, y, d_model))
}

wide! {
    fn sums_of_squares<'a>((error, y, d_model) => (&'a [f32], &'a [f32], usize)) -> (f64, f64) {
        let n_tokens = (y.len() / d_model).max(1) as f64;
        // A column has a sum of its own, so that neighbouring columns are added side by side.
        let mut sums = vec![[0f64; 3]; d_model];
        for (y, e) in y.chunks(d_model).zip(error.chunks(d_model)) {
            for ((sums, &y), &e) in sums.iter_mut().zip(y).zip(e) {
                let (y, e) = (f64::from(y), f64::from(e));
                *sums = [sums[0] + y, sums[1] + y * y, sums[2] + e * e];
            }
        }
        let variance = sums.iter().map(|sums| sums[1] - sums[0] * sums[0] / n_tokens).sum();
        (sums.iter().map(|sums| sums[2]).sum(), variance)
    }
}

/// Moves a layer's parameters; gives how many features are dead.
fn update(
    layer: &mut Layer,
    batch: &LayerBatch,
    active: &Active,
    errors: &[Vec<f32>],
    settings: &StepSettings,
) -> usize {
    let (d_model, n_tokens) = (layer.d_model, active.n_tokens());
    let factor = 2.0 / n_tokens as f32;
    let mut gradient = Gradient::new(layer, active, errors, factor);
    if settings.choice == Choice::Positive {
        add_lengths(layer, &mut gradient, settings);
    }
    let dead = layer.dead(settings.n_tokens, settings.dead_window);
    let asked = (!dead.is_empty() && settings.step.is_multiple_of(DEAD_EVERY))
        .then(|| ask_dead(layer, batch, &dead, &errors[0]));
    let of_dead = asked.as_ref().map(|(active, errors, share)| {
        Gradient::new(layer, active, std::slice::from_ref(errors), factor * DEAD_WEIGHT * share)
    });
    note_activity(layer, active, &gradient.by_feature, settings);

    move_features(layer, &batch.x, &gradient, of_dead.as_ref(), settings);
    let mut sum = vec![0f32; d_model];
    add_rows((&mut sum[..], factor, &errors[0][..]));
    move_all(&mut layer.b_dec, &mut layer.moments.b_dec, &sum, settings);
    if !layer.w_skip.is_empty() {
        let mut sum = vec![0f32; d_model * d_model];
        transpose_product(&mut sum, &errors[0], &batch.x, (d_model, n_tokens, d_model));
        sum.iter_mut().for_each(|value| *value *= factor);
        move_all(&mut layer.w_skip, &mut layer.moments.w_skip, &sum, settings);
    }
    dead.len()
}

/// Moves a parameter that has a gradient in every step.
fn move_all(values: &mut [f32], moments: &mut Moments, gradient: &[f32], settings: &StepSettings) {
    let adam = AdamStep::new(settings.lr, settings.step, 1);
    move_row_of((&adam, values, &mut *moments, gradient));
}

wide! {
    fn move_row_of<'a>(
        (adam, values, moments, gradient) =>
            (&'a AdamStep, &'a mut [f32], &'a mut Moments, &'a [f32])
    ) -> () {
        adam.apply(values, (&mut moments.first, &mut moments.second), gradient);
    }
}

wide! {
    /// `sum += factor · row` of all rows.
    fn add_rows<'a>((sum, factor, rows) => (&'a mut [f32], f32, &'a [f32])) -> () {
        for row in rows.chunks(sum.len()) {
            add_scaled(sum, factor, row);
        }
    }
}

/// When features were last active and, where thresholds are learnt, how small their activations were.
fn note_activity(layer: &mut Layer, active: &Active, by_feature: &ByFeature, settings: &StepSettings) {
    for feature in 0..layer.n_features {
        let pairs = by_feature.of(feature);
        if pairs.is_empty() {
            continue;
        }
        layer.last_active[feature] = settings.n_tokens;
        if settings.learns_thresholds {
            let values = pairs.iter().map(|&(pair, _)| active.values[pair as usize]);
            let least = values.fold(f32::INFINITY, f32::min);
            let mean = &mut layer.least_kept[feature];
            *mean = if layer.n_least_kept[feature] == 0 { least } else { *mean + THRESHOLD_RATE * (least - *mean) };
            layer.n_least_kept[feature] += 1;
        }
    }
    if settings.learns_thresholds {
        let mean = &mut layer.mean_floor;
        *mean = if *mean == 0.0 { layer.floor } else { *mean + THRESHOLD_RATE * (layer.floor - *mean) };
    }
}

/// What dead features could explain of the error: their strongest on every token, the error that these leave of it
/// (their decoding, and the error as it is), and their number as a share of what a token could get.
fn ask_dead(layer: &Layer, batch: &LayerBatch, dead: &[usize], error: &[f32]) -> (Active, Vec<f32>, f32) {
    let (d_model, n_tokens) = (layer.d_model, batch.x.len() / layer.d_model);
    let wanted = MAX_DEAD_A_TOKEN.min(d_model / 2).max(1);
    let rows: Vec<f32> =
        dead.iter().flat_map(|&feature| layer.w_enc[feature * d_model..][..d_model].iter().copied()).collect();
    let mut products = vec![0f32; n_tokens * dead.len()];
    product_with_transpose(&mut products, &batch.x, &rows, (n_tokens, d_model, dead.len()));
    let mut active = Active { starts: vec![0], features: Vec::new(), values: Vec::new() };
    let mut found: Vec<(usize, f32)> = Vec::new();
    for products in products.chunks(dead.len()) {
        found.clear();
        let values = products.iter().zip(dead).map(|(product, &feature)| (feature, product + layer.b_enc[feature]));
        found.extend(values.filter(|(_, value)| *value > 0.0));
        if found.len() > wanted {
            found.select_nth_unstable_by(wanted - 1, |a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            found.truncate(wanted);
            found.sort_unstable_by_key(|(feature, _)| *feature);
        }
        active.features.extend(found.iter().map(|(feature, _)| *feature as u32));
        active.values.extend(found.iter().map(|(_, value)| *value));
        active.starts.push(active.features.len() as u32);
    }
    let mut left = error.to_vec();
    add_own((&mut left[..], layer, &active));
    (active, left, (dead.len() as f32 / wanted as f32).min(1.0))
}

wide! {
    /// Adds what features write to their own layer.
    fn add_own<'a>((out, layer, active) => (&'a mut [f32], &'a Layer, &'a Active)) -> () {
        for (token, out) in out.chunks_mut(layer.d_model).enumerate() {
            let (features, values) = active.of(token);
            for (&feature, &value) in features.iter().zip(values) {
                add_scaled(out, value, layer.dec_row(feature as usize, 0));
            }
        }
    }
}

/// The loss of the lengths that activations add, λ Σ a‖W_dec‖ / N: what it gives to activations, and a λ that follows the
/// number of active features.
fn add_lengths(layer: &mut Layer, gradient: &mut Gradient, settings: &StepSettings) {
    let n_tokens = gradient.active.n_tokens() as f32;
    let l0 = gradient.active.features.len() as f64 / f64::from(n_tokens);
    let factor = (SPARSITY_RATE * (l0 / settings.l0 - 1.0).clamp(-1.0, 1.0)).exp();
    layer.sparsity = (f64::from(layer.sparsity.max(1e-6)) * factor) as f32;
    for (delta, &feature) in gradient.deltas.iter_mut().zip(&gradient.active.features) {
        *delta += layer.sparsity * layer.dec_norms[feature as usize] / n_tokens;
    }
}
