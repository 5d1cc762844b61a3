//! `config.json` as it would be, from a GGUF file's metadata.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::checkpoint::Checkpoint;
use super::gguf::{Architecture, plain};
use super::gguf_header::Header;
use super::source::Source;
use crate::error::{Error, Result};

/// What a model's metadata does not say and llama.cpp knows by heart.
mod defaults {
    pub const ROPE_THETA: f64 = 10_000.0;
    pub const GEMMA3_LOCAL_ROPE_THETA: f64 = 10_000.0;
    pub const GEMMA2_ATTENTION_SOFTCAP: f64 = 50.0;
    pub const GEMMA2_FINAL_SOFTCAP: f64 = 30.0;
    pub const GEMMA2_SLIDING_WINDOW: usize = 4096;
    pub const GEMMA3_SLIDING_WINDOW: usize = 1024;
    /// Every sixth layer of Gemma 3 sees everything.
    pub const GEMMA3_PATTERN: usize = 6;
    /// Layers of the models whose query scale is not the head size.
    pub const GEMMA2_27B_LAYERS: usize = 46;
    pub const GEMMA3_27B_LAYERS: usize = 62;
    pub const GPT_OSS_SWIGLU_LIMIT: f64 = 7.0;
    pub const YARN_BETA_FAST: f64 = 32.0;
    pub const YARN_BETA_SLOW: f64 = 1.0;
}

/// One number a rotary pair; heads of 128 have 64 pairs.
const MAX_ROPE_FACTORS: usize = 1 << 15;

/// The config of a GGUF file's model.
///
/// # Errors
/// [`Error::Metadata`] for what is missing.
pub(super) fn config(
    header: &Header,
    architecture: Architecture,
    checkpoint: &Checkpoint,
    source: &Arc<Source>,
) -> Result<Value> {
    let prefix = header.text("general.architecture").unwrap_or_default().to_string();
    let key = |name: &str| format!("{prefix}.{name}");
    let int = |name: &str| header.int(&key(name));
    let float = |name: &str| header.float(&key(name));
    let required = |name: &str| header.required_int(&key(name));

    let n_layers = required("block_count")?;
    let n_heads = required("attention.head_count")?;
    let d_model = required("embedding_length")?;
    let context = required("context_length")?;
    check_layers(header, &key("block_count"), n_layers)?;
    if n_heads == 0 {
        return Err(header.missing(&key("attention.head_count")));
    }
    let gpt2 = architecture == Architecture::Gpt2;
    let embedding = if gpt2 { "transformer.wte.weight" } else { "model.embed_tokens.weight" };
    let d_vocab = checkpoint.shape(embedding)?.first().copied().unwrap_or(0);
    let tied = !checkpoint.contains("lm_head.weight");

    let mut config = Map::new();
    let mut set = |name: &str, value: Value| config.insert(name.to_string(), value);
    set("vocab_size", json!(d_vocab));
    set("tie_word_embeddings", json!(tied));
    for (role, id) in [("bos", "bos"), ("eos", "eos"), ("pad", "padding")] {
        if let Some(id) = header.int(&format!("tokenizer.ggml.{id}_token_id")) {
            set(&format!("{role}_token_id"), json!(id));
        }
    }
    if gpt2 {
        set("model_type", json!("gpt2"));
        set("activation_function", json!("gelu_new"));
        set("n_embd", json!(d_model));
        set("n_layer", json!(n_layers));
        set("n_head", json!(n_heads));
        set("n_positions", json!(context));
        set("n_inner", json!(int("feed_forward_length")));
        let epsilon = float("attention.layer_norm_epsilon");
        set("layer_norm_epsilon", json!(epsilon.ok_or_else(|| header.missing(&key("attention.layer_norm_epsilon")))?));
        return Ok(Value::Object(config));
    }

    let d_head = int("attention.key_length").unwrap_or(d_model / n_heads);
    let epsilon = float("attention.layer_norm_rms_epsilon");
    set("hidden_size", json!(d_model));
    set("num_hidden_layers", json!(n_layers));
    set("num_attention_heads", json!(n_heads));
    set("num_key_value_heads", json!(int("attention.head_count_kv").unwrap_or(n_heads)));
    set("head_dim", json!(d_head));
    set("max_position_embeddings", json!(context));
    set("rms_norm_eps", json!(epsilon.ok_or_else(|| header.missing(&key("attention.layer_norm_rms_epsilon")))?));
    set("rope_theta", json!(float("rope.freq_base").unwrap_or(defaults::ROPE_THETA)));
    set("rope_scaling", rope_scaling(header, &prefix, context, source)?);
    let d_ff = int("expert_feed_forward_length").or(int("feed_forward_length"));
    set("intermediate_size", json!(d_ff.ok_or_else(|| header.missing(&key("feed_forward_length")))?));

    let sliding_window = int("attention.sliding_window");
    // Layers whose index is not `period - 1` modulo `period` see a window only.
    let layer_types = |period: usize| -> Value {
        let full = |layer: usize| (layer + 1).is_multiple_of(period.max(1));
        (0..n_layers).map(|l| if full(l) { "full_attention" } else { "sliding_attention" }).collect()
    };
    let scalar = |large: usize| if n_layers == large { d_model / n_heads } else { d_head };
    match architecture {
        Architecture::Llama => {
            set("model_type", json!("llama"));
            set("hidden_act", json!("silu"));
        }
        Architecture::Qwen2 | Architecture::Qwen3 => {
            let qwen2 = architecture == Architecture::Qwen2;
            set("model_type", json!(if qwen2 { "qwen2" } else { "qwen3" }));
            set("hidden_act", json!("silu"));
            set("use_sliding_window", json!(false));
        }
        Architecture::Gemma2 => {
            let attention = float("attn_logit_softcapping").unwrap_or(defaults::GEMMA2_ATTENTION_SOFTCAP);
            let last = float("final_logit_softcapping").unwrap_or(defaults::GEMMA2_FINAL_SOFTCAP);
            set("model_type", json!("gemma2"));
            set("hidden_activation", json!("gelu_pytorch_tanh"));
            set("attn_logit_softcapping", json!(attention));
            set("final_logit_softcapping", json!(last));
            set("query_pre_attn_scalar", json!(scalar(defaults::GEMMA2_27B_LAYERS)));
            set("sliding_window", json!(sliding_window.unwrap_or(defaults::GEMMA2_SLIDING_WINDOW)));
            set("layer_types", layer_types(2));
        }
        Architecture::Gemma3 => {
            let local = float("rope.freq_base_swa").unwrap_or(defaults::GEMMA3_LOCAL_ROPE_THETA);
            set("model_type", json!("gemma3_text"));
            set("hidden_activation", json!("gelu_pytorch_tanh"));
            set("query_pre_attn_scalar", json!(scalar(defaults::GEMMA3_27B_LAYERS)));
            set("final_logit_softcapping", json!(float("final_logit_softcapping")));
            set("rope_local_base_freq", json!(local));
            set("sliding_window", json!(sliding_window.unwrap_or(defaults::GEMMA3_SLIDING_WINDOW)));
            let period = int("attention.sliding_window_pattern").unwrap_or(defaults::GEMMA3_PATTERN);
            set("layer_types", layer_types(period));
        }
        Architecture::GptOss => {
            set("model_type", json!("gpt_oss"));
            set("hidden_act", json!("silu"));
            set("attention_bias", json!(true));
            set("num_local_experts", json!(required("expert_count")?));
            set("num_experts_per_tok", json!(required("expert_used_count")?));
            set("swiglu_limit", json!(defaults::GPT_OSS_SWIGLU_LIMIT));
            set("sliding_window", json!(sliding_window));
            set("layer_types", layer_types(2));
        }
        Architecture::Gpt2 => {}
    }
    Ok(Value::Object(config))
}

/// Lists of one entry a layer are made next: the file must have the layers.
fn check_layers(header: &Header, key: &str, n_layers: usize) -> Result<()> {
    let layer_of = |name: &str| name.strip_prefix("blk.")?.split('.').next()?.parse::<usize>().ok();
    let stored = header.tensors.iter().filter_map(|info| layer_of(&info.name));
    let n_stored = stored.max().map_or(0, |last| last.saturating_add(1));
    // Not more than tensors: one name could speak of any layer.
    if n_layers == n_stored && n_stored <= header.tensors.len() {
        return Ok(());
    }
    let reason = format!("it is {n_layers}, but the file has tensors of {n_stored} layers");
    Err(Error::Metadata { file: header.file.clone(), key: key.to_string(), reason })
}

/// Rope scaling. Llama 3's is stored as the factors by which inverse frequencies are divided:
/// `{"rope_type": "factors", "factors": [..]}`, one of each rotary pair.
fn rope_scaling(header: &Header, prefix: &str, context: usize, source: &Arc<Source>) -> Result<Value> {
    if let Some(info) = header.tensor("rope_freqs.weight") {
        let n_factors = info.shape.iter().try_fold(1usize, |n, &len| n.checked_mul(len)).unwrap_or(usize::MAX);
        if n_factors > MAX_ROPE_FACTORS {
            let reason =
                format!("`rope_freqs.weight` has shape {:?}, expected at most {MAX_ROPE_FACTORS} numbers", info.shape);
            return Err(Error::Damaged { file: header.file.clone(), format: "GGUF", reason });
        }
        let stored = plain(source, info);
        let tensors = vec![(info.name.clone(), stored)];
        let factors = Checkpoint::from_tensors(header.file.clone(), tensors)?.tensor(&info.name, &info.shape)?;
        let factors = factors.flatten_all()?.to_vec1::<f32>()?;
        if factors.iter().any(|f| *f <= 0.0) {
            let reason = "`rope_freqs.weight` has a factor that is not positive".to_string();
            return Err(Error::Damaged { file: header.file.clone(), format: "GGUF", reason });
        }
        return Ok(json!({ "rope_type": "factors", "factors": factors }));
    }
    let float = |name: &str| header.float(&format!("{prefix}.rope.scaling.{name}"));
    // Before `rope.scaling` there was one number, of linear scaling.
    let Some(kind) = header.text(&format!("{prefix}.rope.scaling.type")) else {
        let linear = header.float(&format!("{prefix}.rope.scale_linear"));
        return Ok(linear.map_or(Value::Null, |factor| json!({ "rope_type": "linear", "factor": factor })));
    };
    let factor = float("factor").unwrap_or(1.0);
    Ok(match kind {
        "none" => Value::Null,
        "linear" => json!({ "rope_type": "linear", "factor": factor }),
        "yarn" => json!({
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings":
                header.int(&format!("{prefix}.rope.scaling.original_context_length")).unwrap_or(context),
            "beta_fast": float("yarn_beta_fast").unwrap_or(defaults::YARN_BETA_FAST),
            "beta_slow": float("yarn_beta_slow").unwrap_or(defaults::YARN_BETA_SLOW),
            // llama.cpp rounds the corners of the ramp, except where the checkpoint says not to (GPT-OSS).
            "truncate": prefix != "gpt-oss",
        }),
        other => json!({ "rope_type": other, "factor": factor }),
    })
}
