//! What a `config.json` may say: checked before anything is allocated on its word, and against the tensors that are
//! there.

use serde_json::Value;

use super::{ModelConfig, Naming};
use crate::error::{Error, Result};
use crate::weights::Checkpoint;

/// Keys that are sizes, under all names that families have for them, and the largest size that is believed: some ten
/// times that of any model published, and small enough that products of two of them are whole numbers of this machine.
const SIZES: [(&str, u64); 19] = [
    ("num_hidden_layers", 4_096),
    ("n_layer", 4_096),
    ("hidden_size", 1 << 20),
    ("n_embd", 1 << 20),
    ("intermediate_size", 1 << 24),
    ("n_inner", 1 << 24),
    ("vocab_size", 1 << 26),
    ("num_attention_heads", 1 << 14),
    ("n_head", 1 << 14),
    ("num_key_value_heads", 1 << 14),
    ("head_dim", 1 << 16),
    ("max_position_embeddings", 1 << 32),
    ("n_positions", 1 << 32),
    ("sliding_window", 1 << 32),
    ("max_window_layers", 1 << 32),
    ("sliding_window_pattern", 1 << 32),
    ("_sliding_window_pattern", 1 << 32),
    ("num_local_experts", 1 << 14),
    ("num_experts_per_tok", 1 << 14),
];

/// Keys of a config that must be positive.
const POSITIVE: [&str; 7] = [
    "rms_norm_eps",
    "layer_norm_epsilon",
    "rope_theta",
    "rope_local_base_freq",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
];

/// Keys of a rotary embedding's scaling that must be positive.
const POSITIVE_IN_SCALING: [&str; 9] = [
    "rope_theta",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "attention_factor",
    "partial_rotary_factor",
];

/// Epsilons and the like: larger ones would leave nothing of any number that they are added to.
const MAX_EPS: f64 = 1.0;

/// Checks the numbers of a `config.json` as they stand there. Types are checked where values are read.
///
/// # Errors
/// [`Error::Config`] for a size that no model has, and for a number that is not positive but must be.
pub(super) fn check_keys(config: &Value) -> Result<()> {
    for (key, most) in SIZES {
        let value = config.get(key).and_then(Value::as_u64);
        if let Some(value) = value.filter(|value| *value > most) {
            return Err(wrong(key, format!("is {value}, expected at most {most}")));
        }
    }
    for key in POSITIVE {
        let most = if key.contains("norm") { MAX_EPS } else { f64::MAX };
        check_positive(key, config.get(key), most)?;
    }
    for outer in ["rope_scaling", "rope_parameters"] {
        let Some(scaling) = config.get(outer) else { continue };
        // Gemma 3 has one for each kind of layer.
        let kinds = ["full_attention", "sliding_attention"];
        let nested = kinds.iter().filter_map(|kind| Some((format!("{outer}.{kind}"), scaling.get(kind)?)));
        for (at, scaling) in std::iter::once((outer.to_owned(), scaling)).chain(nested) {
            for key in POSITIVE_IN_SCALING {
                check_positive(&format!("{at}.{key}"), scaling.get(key), f64::MAX)?;
            }
            if let (Some(low), Some(high)) = (number(scaling, "low_freq_factor"), number(scaling, "high_freq_factor"))
                && low >= high
            {
                let problem = format!("is {low}, expected less than high_freq_factor {high}");
                return Err(wrong(&format!("{at}.low_freq_factor"), problem));
            }
        }
    }
    Ok(())
}

/// Checks a config that was read: what its numbers make together.
///
/// # Errors
/// [`Error::Config`] for a window without positions, a context without positions, an MLP without neurons, rotary
/// frequencies that are not finite.
pub(super) fn check_config(config: &ModelConfig) -> Result<()> {
    if config.layers.iter().any(|layer| layer.window == Some(0)) {
        return Err(wrong("sliding_window", "is 0, expected at least 1".into()));
    }
    let context = if config.learned_positions { "n_positions" } else { "max_position_embeddings" };
    let inner = if config.naming == Naming::Gpt2 { "n_inner" } else { "intermediate_size" };
    for (key, value) in [(context, config.n_ctx), (inner, config.d_mlp)] {
        if value == 0 {
            return Err(wrong(key, "is 0".into()));
        }
    }
    for rope in &config.ropes {
        if let Some(freq) = rope.inv_freq.iter().find(|freq| !freq.is_finite()) {
            return Err(wrong("rope_scaling", format!("makes a rotary frequency {freq}")));
        }
        if !rope.attention_factor.is_finite() || rope.attention_factor <= 0.0 {
            return Err(wrong("rope_scaling", format!("makes the attention factor {}", rope.attention_factor)));
        }
    }
    for (key, value) in [("norm epsilon", config.norm_eps), ("attention scale", config.attn_scale)] {
        if !value.is_finite() || value <= 0.0 {
            return Err(wrong(key, format!("is {value}, expected a positive number")));
        }
    }
    Ok(())
}

/// Checks that the checkpoint has the layers that the config speaks of, neither fewer nor more. `prefix` is what
/// precedes `layers` (or `h`) in tensor names.
///
/// # Errors
/// [`Error::Config`].
pub(super) fn check_layers(config: &ModelConfig, checkpoint: &Checkpoint, prefix: &str) -> Result<()> {
    let (key, list) = match config.naming {
        Naming::Llama => ("num_hidden_layers", "layers."),
        Naming::Gpt2 => ("n_layer", "h."),
    };
    let layer_of = |name: &str| -> Option<usize> {
        name.strip_prefix(prefix)?.strip_prefix(list)?.split('.').next()?.parse().ok()
    };
    let n_stored = checkpoint.names().filter_map(layer_of).max().map_or(0, |last| last.saturating_add(1));
    if n_stored != config.n_layers {
        let problem = format!("is {}, but the checkpoint has tensors of {n_stored} layers", config.n_layers);
        return Err(wrong(key, problem));
    }
    Ok(())
}

fn wrong(key: &str, problem: String) -> Error {
    Error::Config { key: key.to_owned(), problem }
}

fn number(object: &Value, key: &str) -> Option<f64> {
    object.get(key).and_then(Value::as_f64)
}

fn check_positive(key: &str, value: Option<&Value>, most: f64) -> Result<()> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(()) };
    match value.as_f64() {
        Some(number) if number > 0.0 && number <= most => Ok(()),
        Some(_) if most < f64::MAX => Err(wrong(key, format!("is {value}, expected more than 0 and at most {most}"))),
        _ => Err(wrong(key, format!("is {value}, expected a positive number"))),
    }
}
