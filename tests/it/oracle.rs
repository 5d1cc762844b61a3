//! candle-transformers as an independent oracle: its models, opened from the same files, give our logits.
//!
//! It has no GPT-2 and no GPT-OSS. What its configurations do not know is said where it matters.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{gemma2, gemma3, llama, qwen2, qwen3};
use circuitscope::model::ForwardOptions;
use serde_json::{Value, json};

use crate::support::{Random, close_all, fixture, open_replacement};

/// Twelve tokens of the vocabulary of 512, the first of them `<bos>`.
const TOKENS: [u32; 12] = [2, 17, 204, 9, 311, 480, 33, 362, 76, 150, 441, 260];

fn config(model: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(model.join("config.json")).unwrap()).unwrap()
}

fn parsed<T: serde::de::DeserializeOwned>(config: Value) -> T {
    serde_json::from_value(config).unwrap()
}

/// Logits of the last token, by candle-transformers.
fn theirs(model: &Path, config: Value, tokens: &[u32]) -> Vec<f32> {
    let file = std::fs::read(model.join("model.safetensors")).unwrap();
    let vb = VarBuilder::from_buffered_safetensors(file, DType::F32, &Device::Cpu).unwrap();
    let input = Tensor::new(tokens, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    let logits = match config["model_type"].as_str().unwrap() {
        "llama" => {
            let config = parsed::<llama::LlamaConfig>(config).into_config(false);
            let mut cache = llama::Cache::new(false, DType::F32, &config, &Device::Cpu).unwrap();
            llama::Llama::load(vb, &config).unwrap().forward(&input, 0, &mut cache)
        }
        "qwen2" => qwen2::ModelForCausalLM::new(&parsed(config), vb).unwrap().forward(&input, 0),
        "qwen3" => qwen3::ModelForCausalLM::new(&parsed(config), vb).unwrap().forward(&input, 0),
        "gemma2" => gemma2::Model::new(false, &parsed(config), vb).unwrap().forward(&input, 0),
        "gemma3_text" => gemma3::Model::new(false, &parsed(config), vb).unwrap().forward(&input, 0),
        other => panic!("candle-transformers has no {other}"),
    };
    logits.unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Logits of the last token, by our model.
fn ours(model: &Path, transcoders: &Path, tokens: &[u32]) -> Vec<f32> {
    let replacement = open_replacement(model, transcoders);
    let pass = replacement.model.forward(&[tokens.to_vec()], &mut (), ForwardOptions::default()).unwrap();
    replacement.model.last_logits(&pass).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Compares the logits after each of the first `n_tokens` tokens.
#[track_caller]
fn agree(model: &Path, transcoders: &Path, config: &Value, n_tokens: usize) {
    let mut all = Vec::new();
    for n in 1..=n_tokens {
        let (ours, theirs) = (ours(model, transcoders, &TOKENS[..n]), theirs(model, config.clone(), &TOKENS[..n]));
        assert_eq!(theirs.len(), 512);
        close_all(&ours, &theirs, 1e-4, 1e-4, &format!("{}, {n} tokens", model.display()));
        all.push(theirs);
    }
    // The oracle itself answers differently to every prompt, so the comparison is not of constants.
    assert!(all.windows(2).all(|pair| pair[0].iter().zip(&pair[1]).any(|(a, b)| (a - b).abs() > 1e-3)));
}

#[track_caller]
fn family_agrees(family: &str, n_tokens: usize, adapt: impl Fn(&mut Value)) {
    let folder = fixture("reference").join(family);
    let model = folder.join("model");
    let mut config = config(&model);
    adapt(&mut config);
    agree(&model, &folder.join("transcoders"), &config, n_tokens);
}

#[test]
fn llama_agrees_with_candle_transformers() {
    family_agrees("llama_relu", TOKENS.len(), |_| ());
    family_agrees("llama_clt", TOKENS.len(), |_| ());
}

#[test]
fn llama_with_scaled_rotary_embedding_and_tied_unembedding_agrees_with_candle_transformers() {
    family_agrees("llama3_topk_skip", TOKENS.len(), |_| ());
}

#[test]
fn qwen3_agrees_with_candle_transformers() {
    family_agrees("qwen3_relu", TOKENS.len(), |_| ());
}

#[test]
fn gemma2_agrees_with_candle_transformers_inside_of_the_window() {
    // It puts every layer under the sliding window, where ours (and the published model) alternate, and scales by the
    // width of a head, not by `query_pre_attn_scalar` (equal here): so prompts are no longer than the window, 6.
    family_agrees("gemma2_jumprelu", 6, |config| {
        assert_eq!(config["query_pre_attn_scalar"], config["head_dim"]);
        assert_eq!(config["sliding_window"], 6);
    });
}

#[test]
fn gemma3_agrees_with_candle_transformers_beyond_the_window() {
    family_agrees("gemma3_jumprelu_skip", TOKENS.len(), |config| {
        assert_eq!(config["query_pre_attn_scalar"], config["head_dim"]);
        config["sliding_window_pattern"] = config["_sliding_window_pattern"].take();
        // Its mask lets a query see `sliding_window` positions before its own, ours (and the published model) that
        // many with its own; its cache of one pass holds what the mask lets through.
        config["sliding_window"] = json!(config["sliding_window"].as_u64().unwrap() - 1);
    });
}

/// A random Qwen2 model in Hugging Face's layout: biases on q, k and v, two heads a key.
fn write_qwen2(model: &Path, tied: bool) -> Value {
    let (d_model, d_mlp, d_vocab, n_layers, n_heads, n_kv_heads) = (64, 96, 512, 3, 4, 2);
    let d_kv = d_model / n_heads * n_kv_heads;
    std::fs::create_dir_all(model).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(fixture("tokenizer").join(name), model.join(name)).unwrap();
    }
    let config = json!({
        "model_type": "qwen2", "vocab_size": d_vocab, "hidden_size": d_model, "intermediate_size": d_mlp,
        "num_hidden_layers": n_layers, "num_attention_heads": n_heads, "num_key_value_heads": n_kv_heads,
        "max_position_embeddings": 128, "sliding_window": 128, "max_window_layers": n_layers,
        "use_sliding_window": false, "tie_word_embeddings": tied, "rope_theta": 1_000_000.0, "rms_norm_eps": 1e-6,
        "hidden_act": "silu", "bos_token_id": 2, "eos_token_id": 1,
    });
    std::fs::write(model.join("config.json"), config.to_string()).unwrap();
    let mut random = Random::new(11);
    let mut tensors = HashMap::new();
    let mut add = |name: String, shape: &[usize], mean: f32, scale: f32| {
        let values: Vec<f32> = random.vec(shape.iter().product()).iter().map(|v| mean + scale * v).collect();
        tensors.insert(name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap());
    };
    add("model.embed_tokens.weight".into(), &[d_vocab, d_model], 0.0, 1.0);
    add("model.norm.weight".into(), &[d_model], 1.0, 0.3);
    if !tied {
        add("lm_head.weight".into(), &[d_vocab, d_model], 0.0, 0.3);
    }
    for layer in 0..n_layers {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        for (part, n_out) in [("q", d_model), ("k", d_kv), ("v", d_kv)] {
            add(name(&format!("self_attn.{part}_proj.weight")), &[n_out, d_model], 0.0, 0.3);
            add(name(&format!("self_attn.{part}_proj.bias")), &[n_out], 0.0, 0.5);
        }
        add(name("self_attn.o_proj.weight"), &[d_model, d_model], 0.0, 0.3);
        add(name("mlp.gate_proj.weight"), &[d_mlp, d_model], 0.0, 0.3);
        add(name("mlp.up_proj.weight"), &[d_mlp, d_model], 0.0, 0.3);
        add(name("mlp.down_proj.weight"), &[d_model, d_mlp], 0.0, 0.3);
        add(name("input_layernorm.weight"), &[d_model], 1.0, 0.3);
        add(name("post_attention_layernorm.weight"), &[d_model], 1.0, 0.3);
    }
    candle_core::safetensors::save(&tensors, model.join("model.safetensors")).unwrap();
    config
}

/// Transcoders of a few features, which a replacement model cannot be opened without.
fn write_transcoders(folder: &Path, n_layers: usize, d_model: usize) {
    std::fs::create_dir_all(folder).unwrap();
    let names: Vec<String> = (0..n_layers).map(|layer| format!("layer_{layer}.safetensors")).collect();
    let list: String = names.iter().map(|name| format!("- {name}\n")).collect();
    let head = "model_name: tiny\nmodel_kind: transcoder_set\nfeature_input_hook: mlp.hook_in\n\
                feature_output_hook: mlp.hook_out\nscan: tiny\nactivation: relu\ntranscoders:\n";
    std::fs::write(folder.join("config.yaml"), format!("{head}{list}")).unwrap();
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    for name in names {
        let tensors = HashMap::from([
            ("W_enc", zeros(&[8, d_model])),
            ("W_dec", zeros(&[8, d_model])),
            ("b_enc", zeros(&[8])),
            ("b_dec", zeros(&[d_model])),
        ]);
        candle_core::safetensors::save(&tensors, folder.join(name)).unwrap();
    }
}

#[test]
fn qwen2_agrees_with_candle_transformers() {
    for tied in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let (model, transcoders) = (folder.path().join("model"), folder.path().join("transcoders"));
        let config = write_qwen2(&model, tied);
        write_transcoders(&transcoders, 3, 64);
        agree(&model, &transcoders, &config, TOKENS.len());
    }
}
