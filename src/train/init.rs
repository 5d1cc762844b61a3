//! Where training begins, and where dead features are placed anew.

use candle_core::{Device, Tensor};

use super::layer::{Layer, Moments};
use super::select::{Choice, choose};
use super::step::{LayerBatch, error};
use crate::error::Result;
use crate::intervene::Random;
use crate::model::Layer as ModelLayer;
use crate::ops::rows::dot;
use crate::transcoder::OutputHook;

/// Tokens that the length of decoder rows is fitted on.
pub(super) const FIT_TOKENS: usize = 2048;

/// Rows of length 1 in random directions. `[n, d]`
pub(super) fn unit_rows(n: usize, d: usize, random: &mut Random) -> Vec<f32> {
    let mut rows = vec![0f32; n * d];
    for row in rows.chunks_mut(d) {
        // Box and Muller 1958; the logarithm's argument is never 0.
        let normal = || {
            let (radius, angle) = (1.0 - random.next_unit(), random.next_unit());
            ((-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()) as f32
        };
        row.fill_with(normal);
        let norm = row.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
        row.iter_mut().for_each(|value| *value = (f64::from(*value) / norm) as f32);
    }
    rows
}

/// Means of rows. `[d]`
fn means(rows: &[f32], d: usize) -> Vec<f64> {
    let mut sums = vec![0f64; d];
    for row in rows.chunks(d) {
        sums.iter_mut().zip(row).for_each(|(sum, &value)| *sum += f64::from(value));
    }
    let n = (rows.len() / d).max(1) as f64;
    sums.into_iter().map(|sum| sum / n).collect()
}

/// √d over the mean length of rows; 1 where all are zero.
pub(super) fn scale_of(rows: &[f32], d: usize) -> f32 {
    let length = |row: &[f32]| row.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
    let mean = rows.chunks(d).map(length).sum::<f64>() / (rows.len() / d).max(1) as f64;
    let scale = (d as f64).sqrt() / mean;
    if scale.is_finite() { scale as f32 } else { 1.0 }
}

/// Begins a layer's dictionary: random encoder rows; each decoder row is what the MLP writes when its input is moved
/// along the encoder row (as Llamascopium does), with one length for all that explains the batch best; biases that
/// centre inputs and outputs.
///
/// # Shapes
/// `batch` in scaled units, the layer's scales being set.
///
/// # Errors
/// Those of the MLP.
pub(super) fn begin(
    layer: &mut Layer,
    batch: &LayerBatch,
    mlp: &dyn Fn(&Tensor) -> Result<Tensor>,
    l0: f64,
    random: &mut Random,
) -> Result<()> {
    let (d, n) = (layer.d_model, layer.n_features);
    layer.w_enc = unit_rows(n, d, random);
    let (mean_in, mean_out) = (means(&batch.x, d), means(&batch.y, d));
    layer.b_dec = mean_out.iter().map(|&mean| mean as f32).collect();
    let mean_in: Vec<f32> = mean_in.iter().map(|&mean| mean as f32).collect();
    for (bias, row) in layer.b_enc.iter_mut().zip(layer.w_enc.chunks(d)) {
        *bias = -dot(row, &mean_in);
    }
    // The mean length of centred inputs.
    let centred = |row: &[f32]| row.iter().zip(&mean_in).map(|(x, m)| f64::from(x - m).powi(2)).sum::<f64>().sqrt();
    let reach = (batch.x.chunks(d).map(centred).sum::<f64>() / (batch.x.len() / d).max(1) as f64) as f32;
    let inputs: Vec<f32> = layer
        .w_enc
        .chunks(d)
        .flat_map(|row| row.iter().zip(&mean_in).map(|(w, m)| (m + reach * w) / layer.scale_in).collect::<Vec<f32>>())
        .collect();
    let written = mlp(&Tensor::from_vec(inputs, (n, d), &Device::Cpu)?)?.to_device(&Device::Cpu)?;
    let mut written = written.flatten_all()?.to_vec1::<f32>()?;
    let mean = means(&written, d);
    for row in written.chunks_mut(d) {
        row.iter_mut().zip(&mean).for_each(|(value, mean)| *value = (f64::from(*value) - mean) as f32);
        let norm = dot(row, row).sqrt();
        if norm > 0.0 {
            row.iter_mut().for_each(|value| *value /= norm);
        }
    }
    for (rows, own) in layer.w_dec.chunks_mut(layer.n_written * d).zip(written.chunks(d)) {
        // Layers above begin with nothing.
        rows[..d].copy_from_slice(own);
    }
    layer.measure_decoder();
    fit_length(layer, batch, l0);
    Ok(())
}

/// Multiplies all decoder rows by the one factor that leaves the least error on a batch, by least squares.
fn fit_length(layer: &mut Layer, batch: &LayerBatch, l0: f64) {
    let n_values = batch.x.len().min(FIT_TOKENS * layer.d_model);
    let batch = LayerBatch { x: batch.x[..n_values].to_vec(), y: batch.y[..n_values].to_vec() };
    let wanted = (l0 * (n_values / layer.d_model) as f64) as usize;
    let (active, _) = choose(layer, &batch.x, Choice::OfBatch(wanted));
    let alone = Layer { n_written: 1, w_dec: own_rows(layer), ..layer.clone() };
    // ŷ − y with b_dec in it, so ŷ₁ = e + (y − b_dec).
    let e = error(std::slice::from_ref(&alone), &[&active], std::slice::from_ref(&batch), 0);
    let (mut products, mut squares) = (0f64, 0f64);
    for (e, y) in e.chunks(layer.d_model).zip(batch.y.chunks(layer.d_model)) {
        for ((e, y), b) in e.iter().zip(y).zip(&layer.b_dec) {
            let wanted = f64::from(y - b);
            let given = f64::from(*e) + wanted;
            products += given * wanted;
            squares += given * given;
        }
    }
    let factor = if squares > 0.0 { (products / squares).max(0.01) as f32 } else { 1.0 };
    layer.w_dec.iter_mut().for_each(|value| *value *= factor);
    layer.measure_decoder();
}

/// Decoder rows for the layer itself. `[n_features, d_model]`
fn own_rows(layer: &Layer) -> Vec<f32> {
    layer.w_dec.chunks(layer.n_written * layer.d_model).flat_map(|rows| rows[..layer.d_model].iter().copied()).collect()
}

/// Places dead features on the tokens that are explained worst: each fires on its token and writes what is missing
/// there, a little shorter than what the others write.
pub(super) fn place_anew(layer: &mut Layer, batch: &LayerBatch, error: &[f32], dead: &[usize], n_tokens: i64) {
    let d = layer.d_model;
    let mut worst: Vec<(usize, f32)> = error.chunks(d).map(|e| dot(e, e)).enumerate().collect();
    worst.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let mean_norm = layer.dec_norms.iter().sum::<f32>() / layer.n_features.max(1) as f32;
    for (&feature, &(token, square)) in dead.iter().zip(&worst) {
        let (x, e) = (&batch.x[token * d..][..d], &error[token * d..][..d]);
        let length = dot(x, x).sqrt();
        if length <= 0.0 || square <= 0.0 {
            continue;
        }
        let dec = 0.2 * mean_norm;
        // As strong as it takes to be kept, and as much again.
        let strength = 2.0 * layer.floor.max(f32::MIN_POSITIVE) / dec.max(f32::MIN_POSITIVE);
        let enc = feature * d..(feature + 1) * d;
        layer.w_enc[enc.clone()].iter_mut().zip(x).for_each(|(w, x)| *w = x / length);
        layer.b_enc[feature] = strength.min(length) - length;
        let rows = &mut layer.w_dec[feature * layer.n_written * d..][..layer.n_written * d];
        rows.fill(0.0);
        rows[..d].iter_mut().zip(e).for_each(|(w, e)| *w = -dec * e / square.sqrt());
        layer.dec_norms[feature] = dec;
        let forget = |moments: &mut Moments, range: std::ops::Range<usize>| {
            moments.first[range.clone()].fill(0.0);
            moments.second[range].fill(0.0);
        };
        forget(&mut layer.moments.w_enc, enc);
        forget(&mut layer.moments.w_dec, feature * layer.n_written * d..(feature + 1) * layer.n_written * d);
        forget(&mut layer.moments.b_enc, feature..feature + 1);
        layer.last_active[feature] = n_tokens;
    }
}

/// What the MLP of a layer of the model writes, at the hook that transcoders write to. `[n, d_model]` to the same
///
/// # Errors
/// Those of the MLP.
pub(super) fn mlp_of(model: &ModelLayer, output: OutputHook, x: &Tensor) -> Result<Tensor> {
    let written = model.mlp.forward(x)?;
    match (&model.post_mlp_norm, output) {
        (Some(norm), OutputHook::HookMlpOut) => norm.apply(&written, &norm.scale(&written)?),
        _ => Ok(written),
    }
}
