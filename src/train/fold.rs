//! From scaled units to a folder of transcoders: scales and lengths are folded into the weights, thresholds are set so that
//! as many features are active as were wanted.

use std::path::Path;

use half::bf16;
use safetensors::Dtype;

use super::activations::Points;
use super::layer::Layer;
use super::options::{Activation, FolderFormat, Precision, SetSize};
use super::step::LayerBatch;
use crate::error::{Error, Result};
use crate::export::{Numbers, replace_file, write_tensors};
use crate::ops::product_with_transpose;

/// Steps in which a feature must have been active for a threshold of its own.
const MIN_LEAST_KEPT: u32 = 100;

/// Tokens whose pre-activations are in memory at once.
const TILE_TOKENS: usize = 128;

/// One layer's dictionary in the model's own units, rounded as it is written.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Folded {
    pub d_model: usize,
    pub n_written: usize,
    /// `[n_features, d_model]`
    pub w_enc: Vec<f32>,
    /// `[n_features]`
    pub b_enc: Vec<f32>,
    /// `[n_features, n_written, d_model]`
    pub w_dec: Vec<f32>,
    /// `[d_model]`
    pub b_dec: Vec<f32>,
    /// `[d_model, d_model]`, or empty.
    pub w_skip: Vec<f32>,
    /// `[n_features]`
    pub threshold: Vec<f32>,
}

/// Folds scales into weights and rounds them. With `unit_decoders` each decoder row that is not zero gets length 1 at its
/// own layer's scale, and the encoder what it had.
///
/// `scale_out` of a layer that a feature writes to is that layer's.
pub(super) fn fold(layers: &[Layer], index: usize, unit_decoders: bool, precision: Precision) -> Folded {
    let layer = &layers[index];
    let (d, width) = (layer.d_model, layer.n_written * layer.d_model);
    let mut w_dec = layer.w_dec.clone();
    for rows in w_dec.chunks_mut(width) {
        for (written, row) in rows.chunks_mut(d).enumerate() {
            let scale = layers[index + written].scale_out;
            row.iter_mut().for_each(|value| *value /= scale);
        }
    }
    let lengths: Vec<f32> = w_dec
        .chunks(width)
        .map(|rows| rows.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt() as f32)
        .map(|length| if unit_decoders && length > 0.0 { length } else { 1.0 })
        .collect();
    w_dec.chunks_mut(width).zip(&lengths).for_each(|(rows, length)| rows.iter_mut().for_each(|v| *v /= length));
    let mut w_enc = layer.w_enc.clone();
    w_enc
        .chunks_mut(d)
        .zip(&lengths)
        .for_each(|(row, length)| row.iter_mut().for_each(|v| *v *= layer.scale_in * length));
    let threshold = |feature: usize| {
        if let Some(over) = layer.over_threshold.get(feature) {
            return (lengths[feature] / over).clamp(1e-6, f32::MAX);
        }
        let own = layer.n_least_kept[feature] >= MIN_LEAST_KEPT;
        let norm = layer.dec_norms[feature].max(f32::MIN_POSITIVE);
        let least = if own { layer.least_kept[feature] } else { layer.mean_floor / norm };
        // The least of a batch is no more than a guess; none may be zero, since all are multiplied by one factor.
        (least * lengths[feature]).clamp(1e-6, f32::MAX)
    };
    let mut folded = Folded {
        d_model: d,
        n_written: layer.n_written,
        threshold: (0..layer.n_features).map(threshold).collect(),
        b_enc: layer.b_enc.iter().zip(&lengths).map(|(b, length)| b * length).collect(),
        b_dec: layer.b_dec.iter().map(|b| b / layer.scale_out).collect(),
        w_skip: layer.w_skip.iter().map(|w| w * layer.scale_in / layer.scale_out).collect(),
        w_enc,
        w_dec,
    };
    if precision == Precision::Bf16 {
        let Folded { w_enc, b_enc, w_dec, b_dec, w_skip, .. } = &mut folded;
        for values in [w_enc, b_enc, w_dec, b_dec, w_skip] {
            values.iter_mut().for_each(|value| *value = bf16::from_f32(*value).to_f32());
        }
    }
    folded
}

/// What [`calibrate`] and the tokens that it is given take of memory, for one layer.
pub(super) fn calibration_bytes(n_tokens: u64, d_model: usize, size: &SetSize) -> u64 {
    let tokens = n_tokens.saturating_mul(8 * d_model as u64);
    let ratios = 4 * (4 * (n_tokens as f64 * size.l0) as u64).saturating_add(1 << 20);
    // A list that grows is there twice for a moment.
    tokens.saturating_add(2 * ratios).saturating_add(4 * (TILE_TOKENS * size.n_features) as u64)
}

/// Multiplies all thresholds of a layer by one factor, so that `l0` features a token are active on the tokens given.
///
/// # Shapes
/// `batch.x` `[n_tokens, d_model]` in the model's own units.
pub(super) fn calibrate(folded: &mut Folded, batch: &LayerBatch, l0: f64) {
    let (d, n_features) = (folded.d_model, folded.b_enc.len());
    let n_tokens = batch.x.len() / d;
    let wanted = (l0 * n_tokens as f64).round() as usize;
    // A feature is active where its pre-activation over its threshold is above the factor.
    let mut ratios: Vec<f32> = Vec::new();
    let mut products = vec![0f32; TILE_TOKENS * n_features];
    for x in batch.x.chunks(TILE_TOKENS * d) {
        let n = x.len() / d;
        let products = &mut products[..n * n_features];
        product_with_transpose(products, x, &folded.w_enc, (n, d, n_features));
        for products in products.chunks(n_features) {
            for ((product, bias), threshold) in products.iter().zip(&folded.b_enc).zip(&folded.threshold) {
                let ratio = (product + bias) / threshold;
                if ratio > 0.0 {
                    ratios.push(ratio);
                }
            }
        }
        // What is certainly below the cut is forgotten, so that memory does not grow with the tokens.
        if ratios.len() > 4 * wanted + (1 << 20) {
            ratios.select_nth_unstable_by(wanted, |a, b| b.total_cmp(a));
            ratios.truncate(wanted + 1);
        }
    }
    if wanted == 0 || ratios.len() <= wanted {
        // All that is positive is not enough: no threshold can change that.
        let least = ratios.iter().copied().fold(f32::INFINITY, f32::min);
        let factor = if least.is_finite() { least / 2.0 } else { 1.0 };
        folded.threshold.iter_mut().for_each(|threshold| *threshold *= factor);
        return;
    }
    let (_, &mut cut, _) = ratios.select_nth_unstable_by(wanted, |a, b| b.total_cmp(a));
    folded.threshold.iter_mut().for_each(|threshold| *threshold *= cut);
}

/// How a set is written.
#[derive(Clone, Debug)]
pub(super) struct SetHeader<'a> {
    pub model: &'a str,
    pub name: &'a str,
    pub points: Points,
    pub activation: Activation,
    /// Active features a token, for topk.
    pub k: usize,
    pub cross_layer: bool,
    pub precision: Precision,
    pub folder: FolderFormat,
    pub context: usize,
}

/// Numbers as they are written.
struct Rounded<'a>(&'a [f32]);

/// Writes one layer of a set.
///
/// # Errors
/// Those of writing.
pub(super) fn write_layer(folder: &Path, index: usize, folded: &Folded, header: &SetHeader) -> Result<()> {
    let (d, n) = (folded.d_model, folded.b_enc.len());
    let has_threshold = header.activation == Activation::JumpRelu;
    match (header.folder, header.cross_layer) {
        (FolderFormat::CircuitTracer, false) => {
            let shapes: [&[usize]; 4] = [&[n, d], &[n], &[d], &[d, d]];
            let mut tensors: Vec<(&str, &[usize], &[f32])> = vec![
                ("W_enc", shapes[0], &folded.w_enc),
                ("W_dec", shapes[0], &folded.w_dec),
                ("b_enc", shapes[1], &folded.b_enc),
                ("b_dec", shapes[2], &folded.b_dec),
            ];
            if has_threshold {
                tensors.push(("activation_function.threshold", shapes[1], &folded.threshold));
            }
            if !folded.w_skip.is_empty() {
                tensors.push(("W_skip", shapes[3], &folded.w_skip));
            }
            write_all(&folder.join(format!("layer_{index}.safetensors")), &tensors, header.precision)
        }
        (FolderFormat::CircuitTracer, true) => {
            let named = |name: &str| format!("{name}_{index}");
            let names = [named("W_enc"), named("b_enc"), named("b_dec"), named("threshold"), named("W_dec")];
            let shapes: [&[usize]; 4] = [&[n, d], &[n], &[d], &[n, folded.n_written, d]];
            let mut tensors: Vec<(&str, &[usize], &[f32])> = vec![
                (&names[0], shapes[0], &folded.w_enc),
                (&names[1], shapes[1], &folded.b_enc),
                (&names[2], shapes[2], &folded.b_dec),
            ];
            if has_threshold {
                tensors.push((&names[3], shapes[1], &folded.threshold));
            }
            let encoder = folder.join(format!("W_enc_{index}.safetensors"));
            write_all(&encoder, &tensors, header.precision)?;
            let decoder = folder.join(format!("W_dec_{index}.safetensors"));
            write_all(&decoder, &[(&names[4], shapes[3], &folded.w_dec)], header.precision)
        }
        (FolderFormat::SaeLens, _) => {
            let folder = folder.join(format!("layer_{index}"));
            let transposed = transpose(&folded.w_enc, n, d);
            let shapes: [&[usize]; 5] = [&[d, n], &[n, d], &[n], &[d], &[d, d]];
            let mut tensors: Vec<(&str, &[usize], &[f32])> = vec![
                ("W_enc", shapes[0], &transposed),
                ("W_dec", shapes[1], &folded.w_dec),
                ("b_enc", shapes[2], &folded.b_enc),
                ("b_dec", shapes[3], &folded.b_dec),
            ];
            if has_threshold {
                tensors.push(("threshold", shapes[2], &folded.threshold));
            }
            if !folded.w_skip.is_empty() {
                tensors.push(("W_skip", shapes[4], &folded.w_skip));
            }
            write_all(&folder.join("sae_weights.safetensors"), &tensors, header.precision)?;
            let config = sae_lens_config(index, folded, header);
            let text = serde_json::to_vec_pretty(&config).map_err(|e| Error::Io {
                doing: "cannot write",
                path: folder.join("cfg.json"),
                source: e.into(),
            })?;
            replace_file(&folder.join("cfg.json"), |writer| std::io::Write::write_all(writer, &text))
        }
    }
}

fn sae_lens_config(index: usize, folded: &Folded, header: &SetHeader) -> serde_json::Value {
    let architecture = match (folded.w_skip.is_empty(), header.activation) {
        (false, Activation::JumpRelu) => "jumprelu_skip_transcoder",
        (false, _) => "skip_transcoder",
        (true, Activation::JumpRelu) => "jumprelu_transcoder",
        (true, _) => "transcoder",
    };
    let hook = |name: &str| format!("blocks.{index}.{name}");
    serde_json::json!({
        "architecture": architecture,
        "d_in": folded.d_model,
        "d_sae": folded.b_enc.len(),
        "d_out": folded.d_model,
        "dtype": match header.precision { Precision::Bf16 => "bfloat16", Precision::F32 => "float32" },
        "device": "cpu",
        "apply_b_dec_to_input": false,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "model_name": header.model,
            "hook_name": hook(header.points.input.name()),
            "hook_name_out": hook(header.points.output.name()),
            "hook_layer": index,
            "hook_layer_out": index,
            "hook_head_index": null,
            "context_size": header.context,
            "prepend_bos": true,
        },
    })
}

/// `[n_rows, n_columns]` to `[n_columns, n_rows]`
fn transpose(values: &[f32], n_rows: usize, n_columns: usize) -> Vec<f32> {
    let mut out = vec![0f32; values.len()];
    for row in 0..n_rows {
        for column in 0..n_columns {
            out[column * n_rows + row] = values[row * n_columns + column];
        }
    }
    out
}

/// Thresholds keep all their bits: what is rounded away of them would change how many features are active.
fn write_all(path: &Path, tensors: &[(&str, &[usize], &[f32])], precision: Precision) -> Result<()> {
    let writers: Vec<_> = tensors
        .iter()
        .map(|(_, _, values)| {
            let values = Rounded(values);
            move |writer: &mut dyn std::io::Write| values.write(writer)
        })
        .collect();
    let tensors: Vec<(&str, &[usize], Numbers)> = tensors
        .iter()
        .zip(&writers)
        .map(|(&(name, shape, values), write)| {
            let is_kept = precision == Precision::F32 || name.contains("threshold");
            let numbers = match is_kept {
                true => Numbers::F32(values),
                false => Numbers::Streamed { dtype: Dtype::BF16, len: values.len(), write },
            };
            (name, shape, numbers)
        })
        .collect();
    write_tensors(path, &tensors)
}

impl Rounded<'_> {
    fn write(&self, writer: &mut dyn std::io::Write) -> std::io::Result<()> {
        self.0.chunks(1 << 14).try_for_each(|values| {
            let bytes: Vec<u8> = values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect();
            writer.write_all(&bytes)
        })
    }
}

/// Writes `config.yaml`, which says that the layers are there. SAELens needs none, but this program does.
///
/// # Errors
/// Those of writing.
pub(super) fn write_header(folder: &Path, n_layers: usize, header: &SetHeader) -> Result<()> {
    if header.folder == FolderFormat::SaeLens {
        return Ok(());
    }
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let kind = if header.cross_layer { "cross_layer_transcoder" } else { "transcoder_set" };
    let mut text = format!(
        "model_name: {}\nmodel_kind: {kind}\nfeature_input_hook: {}\nfeature_output_hook: {}\nscan: {}\n",
        quoted(header.model),
        header.points.input.name(),
        header.points.output.name(),
        quoted(header.name),
    );
    match header.activation {
        Activation::JumpRelu => text.push_str("activation: jump_relu\n"),
        Activation::TopK => text.push_str(&format!("activation: topk\nk: {}\n", header.k)),
        Activation::Relu => text.push_str("activation: relu\n"),
    }
    if !header.cross_layer {
        text.push_str("transcoders:\n");
        (0..n_layers).for_each(|layer| text.push_str(&format!("  - layer_{layer}.safetensors\n")));
    }
    replace_file(&folder.join("config.yaml"), |writer| std::io::Write::write_all(writer, text.as_bytes()))
}
