//! The families of base models: each is a function from its `config.json` to a [`ModelConfig`]. Nothing outside this
//! file tests a family's name.

use serde_json::Value;

use super::config::{Activation, LayerConfig, MlpKind, ModelConfig, Naming, NormKind};
use super::rope::Rope;
use crate::error::{Error, Result};

/// The `model_type`s that [`ModelConfig::from_json`] understands.
pub const FAMILIES: [&str; 8] = ["llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "gemma3", "gpt2", "gpt_oss"];

/// The description that a `config.json` amounts to, not checked yet.
///
/// # Errors
/// Those of [`ModelConfig::from_json`].
pub(super) fn describe(json: &Value) -> Result<ModelConfig> {
    let keys = Keys(json);
    let model_type = keys.string("model_type")?;
    match model_type.as_str() {
        "llama" => llama(&keys),
        "qwen2" => qwen2(&keys),
        "qwen3" => qwen3(&keys),
        "gemma2" => gemma2(&keys),
        "gemma3" | "gemma3_text" => gemma3(&keys),
        "gpt2" => gpt2(&keys),
        "gpt_oss" => gpt_oss(&keys),
        _ => Err(Error::UnknownFamily { model_type, known: FAMILIES.to_vec() }),
    }
}

/// Typed access to the keys of a `config.json`.
struct Keys<'a>(&'a Value);

impl Keys<'_> {
    fn wrong(key: &str, value: &Value, expected: &str) -> Error {
        Error::Config { key: key.into(), problem: format!("is {value}, expected {expected}") }
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|v| !v.is_null())
    }

    fn need(&self, key: &str) -> Result<&Value> {
        self.get(key).ok_or_else(|| Error::Config { key: key.into(), problem: "is missing".into() })
    }

    fn string(&self, key: &str) -> Result<String> {
        let value = self.need(key)?;
        value.as_str().map(str::to_owned).ok_or_else(|| Self::wrong(key, value, "a string"))
    }

    fn usize(&self, key: &str) -> Result<usize> {
        let value = self.need(key)?;
        value.as_u64().map(|v| v as usize).ok_or_else(|| Self::wrong(key, value, "a whole number"))
    }

    fn usize_or(&self, key: &str, default: usize) -> Result<usize> {
        if self.get(key).is_some() { self.usize(key) } else { Ok(default) }
    }

    fn f64_opt(&self, key: &str) -> Result<Option<f64>> {
        self.get(key).map(|v| v.as_f64().ok_or_else(|| Self::wrong(key, v, "a number"))).transpose()
    }

    fn f64_or(&self, key: &str, default: f64) -> Result<f64> {
        Ok(self.f64_opt(key)?.unwrap_or(default))
    }

    fn bool_or(&self, key: &str, default: bool) -> Result<bool> {
        self.get(key).map_or(Ok(default), |v| v.as_bool().ok_or_else(|| Self::wrong(key, v, "true or false")))
    }

    fn activation(&self, key: &str, default: &str) -> Result<Activation> {
        let name = if self.get(key).is_some() { self.string(key)? } else { default.into() };
        match name.as_str() {
            "silu" | "swish" => Ok(Activation::Silu),
            "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Ok(Activation::GeluTanh),
            "gelu" => Ok(Activation::GeluErf),
            "relu" => Ok(Activation::Relu),
            _ => Err(Error::Config {
                key: key.into(),
                problem: format!("is {name:?}, expected silu, gelu_pytorch_tanh, gelu_new, gelu or relu"),
            }),
        }
    }

    /// The windows of all layers: from `layer_types`, else by `is_sliding(layer)`.
    fn windows(&self, n_layers: usize, is_sliding: impl Fn(usize) -> bool) -> Result<Vec<Option<usize>>> {
        let sliding: Vec<bool> = match self.get("layer_types").and_then(Value::as_array) {
            None => (0..n_layers).map(is_sliding).collect(),
            Some(types) if types.len() != n_layers => {
                return Err(Error::Config {
                    key: "layer_types".into(),
                    problem: format!("has {} entries, but num_hidden_layers is {n_layers}", types.len()),
                });
            }
            Some(types) => types
                .iter()
                .map(|t| match t.as_str() {
                    Some("sliding_attention") => Ok(true),
                    Some("full_attention") => Ok(false),
                    _ => Err(Self::wrong("layer_types", t, "sliding_attention or full_attention")),
                })
                .collect::<Result<_>>()?,
        };
        if !sliding.contains(&true) {
            return Ok(vec![None; n_layers]);
        }
        let window = self.usize("sliding_window")?;
        Ok(sliding.into_iter().map(|s| s.then_some(window)).collect())
    }

    /// The rotary embedding: `rope_theta` and `rope_scaling`, or both inside `rope_parameters` (newer files).
    fn rope(&self, theta_key: &str, theta: f64, d_head: usize, n_ctx: usize, scaled: bool) -> Result<Rope> {
        let parameters = self.get("rope_parameters");
        let theta = match parameters.and_then(|p| p.get("rope_theta")).and_then(Value::as_f64) {
            Some(theta) => theta,
            None => self.f64_or(theta_key, theta)?,
        };
        let scaling = if scaled { self.get("rope_scaling").or(parameters) } else { None };
        if self.f64_or("partial_rotary_factor", 1.0)? != 1.0 {
            return Err(Error::Config { key: "partial_rotary_factor".into(), problem: "other than 1".into() });
        }
        Rope::new(theta, d_head, n_ctx, scaling)
    }
}

/// What the Llama-like families share.
fn llama_like(keys: &Keys) -> Result<ModelConfig> {
    let n_layers = keys.usize("num_hidden_layers")?;
    let d_model = keys.usize("hidden_size")?;
    let n_heads = keys.usize("num_attention_heads")?;
    let d_head = keys.usize_or("head_dim", d_model / n_heads.max(1))?;
    Ok(ModelConfig {
        model_type: keys.string("model_type")?,
        n_layers,
        d_model,
        d_vocab: keys.usize("vocab_size")?,
        n_heads,
        n_kv_heads: keys.usize_or("num_key_value_heads", n_heads)?,
        d_head,
        d_mlp: keys.usize("intermediate_size")?,
        n_ctx: keys.usize_or("max_position_embeddings", 2048)?,
        norm: NormKind::Rms,
        norm_eps: keys.f64_or("rms_norm_eps", 1e-6)?,
        gain_plus_one: false,
        post_norms: false,
        qk_norm: false,
        attn_scale: 1.0 / (d_head as f64).sqrt(),
        attn_softcap: None,
        final_softcap: None,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        sinks: false,
        activation: keys.activation("hidden_act", "silu")?,
        mlp: MlpKind::Gated,
        learned_positions: false,
        embed_scale: 1.0,
        tied: keys.bool_or("tie_word_embeddings", false)?,
        naming: Naming::Llama,
        ropes: Vec::new(),
        layers: vec![LayerConfig { window: None, rope: Some(0) }; n_layers],
    })
}

fn with_one_rope(mut config: ModelConfig, keys: &Keys, theta: f64) -> Result<ModelConfig> {
    config.ropes = vec![keys.rope("rope_theta", theta, config.d_head, config.n_ctx, true)?];
    Ok(config)
}

fn with_windows(mut config: ModelConfig, windows: Vec<Option<usize>>) -> ModelConfig {
    for (layer, window) in config.layers.iter_mut().zip(windows) {
        layer.window = window;
    }
    config
}

fn llama(keys: &Keys) -> Result<ModelConfig> {
    let mut config = with_one_rope(llama_like(keys)?, keys, 10_000.0)?;
    let bias = keys.bool_or("attention_bias", false)?;
    (config.qkv_bias, config.o_bias) = (bias, bias);
    config.mlp_bias = keys.bool_or("mlp_bias", false)?;
    Ok(config)
}

fn qwen2(keys: &Keys) -> Result<ModelConfig> {
    let mut config = with_one_rope(llama_like(keys)?, keys, 10_000.0)?;
    config.qkv_bias = true;
    let first_sliding = match keys.bool_or("use_sliding_window", false)? {
        true => keys.usize_or("max_window_layers", config.n_layers)?,
        false => config.n_layers,
    };
    let windows = keys.windows(config.n_layers, |layer| layer >= first_sliding)?;
    Ok(with_windows(config, windows))
}

fn qwen3(keys: &Keys) -> Result<ModelConfig> {
    let mut config = qwen2(keys)?;
    let bias = keys.bool_or("attention_bias", false)?;
    (config.qkv_bias, config.o_bias) = (bias, bias);
    config.qk_norm = true;
    Ok(config)
}

/// What Gemma 2 and Gemma 3 share; ropes and windows are theirs.
fn gemma(keys: &Keys) -> Result<ModelConfig> {
    let mut config = llama_like(keys)?;
    // Gemma's files leave out what equals the default of its code, which differs from Llama's.
    config.tied = keys.bool_or("tie_word_embeddings", true)?;
    config.d_head = keys.usize_or("head_dim", 256)?;
    config.gain_plus_one = true;
    config.post_norms = true;
    config.activation = keys.activation("hidden_activation", "gelu_pytorch_tanh")?;
    config.embed_scale = (config.d_model as f64).sqrt();
    config.attn_scale = 1.0 / keys.f64_or("query_pre_attn_scalar", 256.0)?.sqrt();
    config.attn_softcap = keys.f64_opt("attn_logit_softcapping")?;
    config.final_softcap = keys.f64_opt("final_logit_softcapping")?;
    let bias = keys.bool_or("attention_bias", false)?;
    (config.qkv_bias, config.o_bias) = (bias, bias);
    if keys.bool_or("use_bidirectional_attention", false)? {
        return Err(Error::Config {
            key: "use_bidirectional_attention".into(),
            problem: "true is not supported".into(),
        });
    }
    Ok(config)
}

fn gemma2(keys: &Keys) -> Result<ModelConfig> {
    let mut config = with_one_rope(gemma(keys)?, keys, 10_000.0)?;
    if config.attn_softcap.is_none() && keys.0.get("attn_logit_softcapping").is_none() {
        config.attn_softcap = Some(50.0);
    }
    if config.final_softcap.is_none() && keys.0.get("final_logit_softcapping").is_none() {
        config.final_softcap = Some(30.0);
    }
    let windows = keys.windows(config.n_layers, |layer| layer.is_multiple_of(2))?;
    Ok(with_windows(config, windows))
}

fn gemma3(keys: &Keys) -> Result<ModelConfig> {
    let mut config = gemma(keys)?;
    config.qk_norm = true;
    let pattern = match keys.get("sliding_window_pattern") {
        Some(_) => keys.usize("sliding_window_pattern")?,
        None => keys.usize_or("_sliding_window_pattern", 6)?,
    };
    let windows = keys.windows(config.n_layers, |layer| pattern == 0 || !(layer + 1).is_multiple_of(pattern))?;
    config = with_windows(config, windows);
    let (d_head, n_ctx) = (config.d_head, config.n_ctx);
    // Global layers scale their rotary embedding; local layers keep a small base and no scaling.
    let nested = keys.get("rope_parameters").filter(|p| p.get("full_attention").is_some());
    config.ropes = match nested {
        Some(parameters) => ["full_attention", "sliding_attention"]
            .iter()
            .map(|kind| {
                let scaling = parameters.get(kind);
                let theta = scaling.and_then(|s| s.get("rope_theta")).and_then(Value::as_f64).ok_or_else(|| {
                    Error::Config { key: format!("rope_parameters.{kind}.rope_theta"), problem: "is missing".into() }
                })?;
                Rope::new(theta, d_head, n_ctx, scaling)
            })
            .collect::<Result<_>>()?,
        None => vec![
            keys.rope("rope_theta", 1_000_000.0, d_head, n_ctx, true)?,
            keys.rope("rope_local_base_freq", 10_000.0, d_head, n_ctx, false)?,
        ],
    };
    for layer in &mut config.layers {
        layer.rope = Some(usize::from(layer.window.is_some()));
    }
    Ok(config)
}

fn gpt_oss(keys: &Keys) -> Result<ModelConfig> {
    let mut config = with_one_rope(llama_like(keys)?, keys, 150_000.0)?;
    let bias = keys.bool_or("attention_bias", true)?;
    (config.qkv_bias, config.o_bias) = (bias, bias);
    config.sinks = true;
    let n_experts = keys.usize("num_local_experts")?;
    let top_k = keys.usize_or("num_experts_per_tok", 4)?;
    if top_k == 0 || top_k > n_experts {
        return Err(Error::Config {
            key: "num_experts_per_tok".into(),
            problem: format!("is {top_k}, but there are {n_experts} experts"),
        });
    }
    config.mlp = MlpKind::Experts { n_experts, top_k };
    let windows = keys.windows(config.n_layers, |layer| layer.is_multiple_of(2))?;
    Ok(with_windows(config, windows))
}

fn gpt2(keys: &Keys) -> Result<ModelConfig> {
    let n_layers = keys.usize("n_layer")?;
    let d_model = keys.usize("n_embd")?;
    let n_heads = keys.usize("n_head")?;
    if n_heads == 0 || !d_model.is_multiple_of(n_heads) {
        return Err(Error::Config {
            key: "n_head".into(),
            problem: format!("{n_heads} does not divide n_embd {d_model}"),
        });
    }
    for key in ["scale_attn_by_inverse_layer_idx", "add_cross_attention"] {
        if keys.bool_or(key, false)? {
            return Err(Error::Config { key: key.into(), problem: "true is not supported".into() });
        }
    }
    let d_head = d_model / n_heads;
    Ok(ModelConfig {
        model_type: keys.string("model_type")?,
        n_layers,
        d_model,
        d_vocab: keys.usize("vocab_size")?,
        n_heads,
        n_kv_heads: n_heads,
        d_head,
        d_mlp: keys.usize_or("n_inner", 4 * d_model)?,
        n_ctx: keys.usize_or("n_positions", 1024)?,
        norm: NormKind::Layer,
        norm_eps: keys.f64_or("layer_norm_epsilon", 1e-5)?,
        gain_plus_one: false,
        post_norms: false,
        qk_norm: false,
        attn_scale: if keys.bool_or("scale_attn_weights", true)? { 1.0 / (d_head as f64).sqrt() } else { 1.0 },
        attn_softcap: None,
        final_softcap: None,
        qkv_bias: true,
        o_bias: true,
        mlp_bias: true,
        sinks: false,
        activation: keys.activation("activation_function", "gelu_new")?,
        mlp: MlpKind::Plain,
        learned_positions: true,
        embed_scale: 1.0,
        tied: keys.bool_or("tie_word_embeddings", true)?,
        naming: Naming::Gpt2,
        ropes: Vec::new(),
        layers: vec![LayerConfig { window: None, rope: None }; n_layers],
    })
}
