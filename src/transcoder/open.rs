//! Opening a folder of transcoders: circuit-tracer's layout, Gemma Scope 1 (`.npz`) and Gemma Scope 2.

use candle_core::{Device, Tensor};
use serde::Deserialize;

use super::activation::ActivationFunction;
use super::layer::{Decoder, Encoder, Transcoder};
use super::{InputHook, Kind, OutputHook, TranscoderSet};
use crate::error::{Error, ErrorContext, Result};
use crate::labels::Labels;
use crate::weights::{Checkpoint, Folder};

/// `config.yaml`, as circuit-tracer writes it.
#[derive(Debug, Deserialize)]
struct ConfigYaml {
    #[serde(default)]
    model_name: String,
    #[serde(default)]
    model_kind: Option<String>,
    feature_input_hook: String,
    feature_output_hook: String,
    #[serde(default)]
    scan: Option<Scan>,
    #[serde(default)]
    transcoders: Vec<String>,
    #[serde(default)]
    activation: Option<String>,
    #[serde(default)]
    k: Option<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Scan {
    One(String),
    Many(Vec<String>),
}

/// What [`open`] checks every tensor against, and where it puts them.
struct Expected<'a> {
    n_layers: usize,
    d_model: usize,
    config: &'a ConfigYaml,
    device: &'a Device,
}

/// Opens the transcoders of a base model with `n_layers` layers and width `d_model`.
///
/// Encoders and decoders are mapped and checked for shape; their values are checked when they are read.
///
/// # Errors
/// [`Error::Transcoders`] for a `config.yaml` that is missing or wrong, [`Error::UnknownHook`],
/// [`Error::LayerCount`], [`Error::MissingTensor`], [`Error::Shape`], [`Error::NotFinite`].
pub fn open(folder: &Folder, n_layers: usize, d_model: usize, device: &Device) -> Result<TranscoderSet> {
    let problem = |problem: String| Error::Transcoders { folder: folder.spec().to_owned(), problem };
    let text = folder.read_text("config.yaml")?.ok_or_else(|| problem("has no `config.yaml`".into()))?;
    let config: ConfigYaml =
        serde_saphyr::from_str(&text).map_err(|e| problem(format!("`config.yaml` cannot be read: {e}")))?;
    let kind = match config.model_kind.as_deref() {
        None | Some("transcoder_set") => Kind::PerLayer,
        Some("cross_layer_transcoder") => Kind::CrossLayer,
        Some(other) => {
            return Err(problem(format!(
                "`model_kind` in `config.yaml` is `{other}`, expected `transcoder_set` or `cross_layer_transcoder`"
            )));
        }
    };
    let expected = Expected { n_layers, d_model, config: &config, device };
    let own = folder.shown(Labels::FILE);
    let labels = match folder.read(Labels::FILE)? {
        Some(bytes) => Labels::parse(&bytes, &own)?,
        None => Labels::default(),
    };
    // Names that were made from a text are for features without one.
    let made = folder.path().map(|path| path.join(Labels::FEATURES_FOLDER).join(Labels::FILE));
    let made = match made.filter(|made| made.is_file()) {
        Some(file) => Some((Labels::read(&file)?, file.display().to_string())),
        None => None,
    };
    let layers = match kind {
        Kind::PerLayer => per_layer(folder, &expected)?,
        Kind::CrossLayer => cross_layer(folder, &expected)?,
    };
    let n_features: Vec<usize> = layers.iter().map(Transcoder::n_features).collect();
    labels.check(&n_features, &own)?;
    let labels = match made {
        Some((made, file)) => {
            made.check(&n_features, &file)?;
            labels.or(made)
        }
        None => labels,
    };
    Ok(TranscoderSet {
        kind,
        scan: match &config.scan {
            Some(Scan::One(scan)) => scan.clone(),
            Some(Scan::Many(scans)) => scans.join(","),
            None => config.model_name.clone(),
        },
        input_hook: InputHook::parse(&config.feature_input_hook)?,
        output_hook: OutputHook::parse(&config.feature_output_hook)?,
        layers,
        labels,
        model_name: config.model_name,
    })
}

fn per_layer(folder: &Folder, expected: &Expected) -> Result<Vec<Transcoder>> {
    let listed = &expected.config.transcoders;
    let names: Vec<String> = match listed.is_empty() {
        false => listed.clone(),
        true => (0..expected.n_layers).map(|layer| format!("layer_{layer}.safetensors")).collect(),
    };
    if names.len() != expected.n_layers {
        return Err(Error::LayerCount {
            folder: folder.spec().to_owned(),
            transcoders: names.len(),
            model: expected.n_layers,
        });
    }
    let open = |(layer, name): (usize, &String)| {
        folder
            .checkpoint(name)
            .and_then(|checkpoint| one_per_layer(&checkpoint, expected))
            .context(|| format!("cannot load the transcoder of layer {layer}"))
    };
    names.iter().enumerate().map(open).collect()
}

/// The tensor names of the three layouts, in the order encoder, decoder, threshold, skip.
fn one_per_layer(checkpoint: &Checkpoint, expected: &Expected) -> Result<Transcoder> {
    let d_model = expected.d_model;
    let gemma_scope_2 = checkpoint.contains("w_enc");
    // Gemma Scope 1 shares circuit-tracer's names, but its plain `threshold` and its orientation are its own.
    let gemma_scope_1 = !gemma_scope_2 && checkpoint.contains("threshold");
    let transposed = gemma_scope_1 || gemma_scope_2;
    let (w_enc, w_dec) = if gemma_scope_2 { ("w_enc", "w_dec") } else { ("W_enc", "W_dec") };
    let threshold = if transposed { "threshold" } else { "activation_function.threshold" };

    let b_enc_shape = checkpoint.shape("b_enc")?;
    let n_features = b_enc_shape.iter().product();
    let encoder_shape = if transposed { vec![d_model, n_features] } else { vec![n_features, d_model] };
    check_shape(checkpoint, w_enc, encoder_shape)?;
    check_shape(checkpoint, w_dec, vec![n_features, d_model])?;
    let w_skip = if checkpoint.contains("W_skip") {
        Some(checkpoint.tensor("W_skip", &[d_model, d_model])?)
    } else if checkpoint.contains("affine_skip_connection") {
        Some(checkpoint.tensor("affine_skip_connection", &[d_model, d_model])?.t()?.contiguous()?)
    } else {
        None
    };
    Ok(Transcoder {
        d_model,
        activation: activation(checkpoint, threshold, n_features, expected.config)?,
        encoder: Encoder { checkpoint: checkpoint.clone(), name: w_enc.into(), transposed },
        decoder: Decoder { checkpoint: checkpoint.clone(), name: w_dec.into() },
        b_enc: checkpoint.tensor("b_enc", &[n_features])?.to_vec1()?,
        b_dec: checkpoint.tensor("b_dec", &[d_model])?.to_device(expected.device)?,
        w_skip: w_skip.map(|w| w.to_device(expected.device)).transpose()?,
    })
}

fn cross_layer(folder: &Folder, expected: &Expected) -> Result<Vec<Transcoder>> {
    let (n_layers, d_model) = (expected.n_layers, expected.d_model);
    let n_files = folder.list()?.iter().filter(|name| name.starts_with("W_enc_")).count();
    // Of a Hub repository only what is cached is listed; there a missing layer shows when it is asked for.
    if n_files != n_layers && (folder.path().is_some() || n_files > n_layers) {
        return Err(Error::LayerCount { folder: folder.spec().to_owned(), transcoders: n_files, model: n_layers });
    }
    let open = |layer: usize| -> Result<Transcoder> {
        let encoder = folder.checkpoint(&format!("W_enc_{layer}.safetensors"))?;
        let decoder = folder.checkpoint(&format!("W_dec_{layer}.safetensors"))?;
        let named = |name: &str| format!("{name}_{layer}");
        let n_features = encoder.shape(&named("b_enc"))?.iter().product();
        check_shape(&encoder, &named("W_enc"), vec![n_features, d_model])?;
        check_shape(&decoder, &named("W_dec"), vec![n_features, n_layers - layer, d_model])?;
        Ok(Transcoder {
            d_model,
            activation: activation(&encoder, &named("threshold"), n_features, expected.config)?,
            b_enc: encoder.tensor(&named("b_enc"), &[n_features])?.to_vec1()?,
            b_dec: encoder.tensor(&named("b_dec"), &[d_model])?.to_device(expected.device)?,
            w_skip: None,
            encoder: Encoder { checkpoint: encoder, name: named("W_enc"), transposed: false },
            decoder: Decoder { checkpoint: decoder, name: named("W_dec") },
        })
    };
    (0..n_layers).map(|layer| open(layer).context(|| format!("cannot load the transcoder of layer {layer}"))).collect()
}

fn check_shape(checkpoint: &Checkpoint, name: &str, expected: Vec<usize>) -> Result<()> {
    let actual = checkpoint.shape(name)?;
    if actual == expected {
        return Ok(());
    }
    Err(Error::Shape { tensor: name.into(), file: checkpoint.file_of(name), actual, expected })
}

fn activation(
    checkpoint: &Checkpoint,
    threshold: &str,
    n_features: usize,
    config: &ConfigYaml,
) -> Result<ActivationFunction> {
    let problem = |problem: String| Error::Transcoders { folder: checkpoint.file_of(threshold), problem };
    let has_threshold = checkpoint.contains(threshold);
    match config.activation.as_deref() {
        Some("relu") => Ok(ActivationFunction::Relu),
        Some("topk") => {
            let k = match (config.k, checkpoint.contains("k")) {
                (Some(k), _) => k,
                (None, true) => {
                    let k: Tensor = checkpoint.tensor("k", &checkpoint.shape("k")?)?;
                    k.flatten_all()?.to_vec1::<f32>()?.first().map_or(0, |&k| k as usize)
                }
                (None, false) => 0,
            };
            if k == 0 || k > n_features {
                return Err(problem(format!("activation is topk, but k is {k} with {n_features} features")));
            }
            Ok(ActivationFunction::TopK { k })
        }
        None | Some("jump_relu" | "jumprelu") if has_threshold => {
            let shape = checkpoint.shape(threshold)?;
            if shape.iter().product::<usize>() != n_features {
                return Err(Error::Shape {
                    tensor: threshold.into(),
                    file: checkpoint.file_of(threshold),
                    actual: shape,
                    expected: vec![n_features],
                });
            }
            let threshold = checkpoint.tensor(threshold, &shape)?.flatten_all()?.to_vec1()?;
            Ok(ActivationFunction::JumpRelu { threshold })
        }
        None => Ok(ActivationFunction::Relu),
        Some("jump_relu" | "jumprelu") => Err(problem("activation is JumpReLU, but there are no thresholds".into())),
        Some(other) => Err(problem(format!("`activation` is `{other}`, expected relu, topk or jump_relu"))),
    }
}
