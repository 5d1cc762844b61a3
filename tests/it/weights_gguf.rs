//! Promises of the GGUF reader: undoing what llama.cpp's conversion does to each family, and never trusting a length.

use std::collections::BTreeMap;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use circuitscope::weights::{ModelFiles, Tokenizer};
use circuitscope::{Error, Result};
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{file_named_by, shared};
use crate::weights::{check_cases, damage};

/// A metadata value to be written.
#[derive(Clone)]
enum Meta {
    Int(u32),
    Float(f32),
    Bool(bool),
    Text(&'static str),
    Texts(Vec<String>),
    Ints(Vec<i32>),
    Floats(Vec<f32>),
}

/// A tensor to be written: ggml's type code, shape (outermost first), bytes.
type RawTensor = (u32, Vec<usize>, Vec<u8>);

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn gguf(metadata: &BTreeMap<String, Meta>, tensors: &BTreeMap<String, RawTensor>) -> Vec<u8> {
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        text(&mut out, key);
        let list = |out: &mut Vec<u8>, kind: u32, len: usize| {
            out.extend(9u32.to_le_bytes());
            out.extend(kind.to_le_bytes());
            out.extend((len as u64).to_le_bytes());
        };
        match value {
            Meta::Int(v) => out.extend([4u32.to_le_bytes(), v.to_le_bytes()].concat()),
            Meta::Float(v) => out.extend([6u32.to_le_bytes(), v.to_le_bytes()].concat()),
            Meta::Bool(v) => out.extend([&7u32.to_le_bytes()[..], &[u8::from(*v)]].concat()),
            Meta::Text(v) => {
                out.extend(8u32.to_le_bytes());
                text(&mut out, v);
            }
            Meta::Texts(v) => {
                list(&mut out, 8, v.len());
                v.iter().for_each(|v| text(&mut out, v));
            }
            Meta::Ints(v) => {
                list(&mut out, 5, v.len());
                v.iter().for_each(|v| out.extend(v.to_le_bytes()));
            }
            Meta::Floats(v) => {
                list(&mut out, 6, v.len());
                v.iter().for_each(|v| out.extend(v.to_le_bytes()));
            }
        }
    }
    let mut data = Vec::new();
    for (name, (kind, shape, bytes)) in tensors {
        text(&mut out, name);
        out.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|len| out.extend((*len as u64).to_le_bytes()));
        out.extend(kind.to_le_bytes());
        out.extend((data.len() as u64).to_le_bytes());
        data.extend(bytes);
        data.resize(data.len().next_multiple_of(32), 0);
    }
    out.resize(out.len().next_multiple_of(32), 0);
    out.extend(data);
    out
}

fn raw(tensor: &Tensor) -> RawTensor {
    let values = tensor.flatten_all().and_then(|t| t.to_vec1::<f32>()).unwrap();
    (0, tensor.dims().to_vec(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

/// A tensor of distinct values.
fn distinct(shape: &[usize], seed: usize) -> Tensor {
    let n: usize = shape.iter().product();
    let values: Vec<f32> = (0..n).map(|i| (i as f32 + 0.25) / 512.0 + seed as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

const LAYERS: usize = 2;
const D: usize = 32;
const HEADS: usize = 4;
const KV: usize = 2;
const FF: usize = 64;
const VOCAB: usize = 8;
const EXPERTS: usize = 3;

/// A byte-level vocabulary just big enough.
fn metadata(architecture: &'static str) -> BTreeMap<String, Meta> {
    let tokens = ["<unk>", "<s>", "</s>", "a", "b", "ab", "\u{120}", "\u{120}a"];
    let mut m: BTreeMap<String, Meta> = BTreeMap::new();
    let mut set = |key: &str, value: Meta| m.insert(key.replace("ARCH", architecture), value);
    set("general.architecture", Meta::Text(architecture));
    set("ARCH.block_count", Meta::Int(LAYERS as u32));
    set("ARCH.embedding_length", Meta::Int(D as u32));
    set("ARCH.context_length", Meta::Int(128));
    set("ARCH.feed_forward_length", Meta::Int(FF as u32));
    set("ARCH.attention.head_count", Meta::Int(HEADS as u32));
    set("ARCH.attention.head_count_kv", Meta::Int(KV as u32));
    set("ARCH.attention.layer_norm_rms_epsilon", Meta::Float(1e-5));
    set("ARCH.attention.layer_norm_epsilon", Meta::Float(1e-5));
    set("ARCH.rope.freq_base", Meta::Float(50_000.0));
    set("tokenizer.ggml.model", Meta::Text("gpt2"));
    set("tokenizer.ggml.pre", Meta::Text("gpt-2"));
    set("tokenizer.ggml.tokens", Meta::Texts(tokens.map(str::to_string).to_vec()));
    set("tokenizer.ggml.token_type", Meta::Ints(vec![2, 3, 3, 1, 1, 1, 1, 1]));
    set("tokenizer.ggml.merges", Meta::Texts(vec!["a b".into(), "\u{120} a".into()]));
    set("tokenizer.ggml.bos_token_id", Meta::Int(1));
    set("tokenizer.ggml.eos_token_id", Meta::Int(2));
    m
}

/// llama.cpp's `permute` (convert_hf_to_gguf.py): `[heads, 2, d_head / 2]` rows to `[heads, d_head / 2, 2]`.
fn permute(w: &Tensor, heads: usize) -> Tensor {
    let (rows, cols) = w.dims2().unwrap();
    let split = w.reshape((heads, 2, rows / heads / 2, cols)).unwrap();
    split.transpose(1, 2).unwrap().reshape((rows, cols)).unwrap()
}

/// A Hugging Face checkpoint of an architecture, and the same as llama.cpp's conversion writes it.
fn both_forms(architecture: &str) -> (BTreeMap<String, Tensor>, BTreeMap<String, RawTensor>) {
    let d_head = D / HEADS;
    let mut hf = BTreeMap::new();
    let mut gg = BTreeMap::new();
    let mut seed = 0;
    let mut put = |hf_name: String, gg_name: String, shape: &[usize], convert: &dyn Fn(&Tensor) -> Tensor| {
        seed += 1;
        let tensor = distinct(shape, seed);
        gg.insert(gg_name, raw(&convert(&tensor).contiguous().unwrap()));
        hf.insert(hf_name, tensor);
    };
    let same = |t: &Tensor| t.clone();
    let gemma = architecture.starts_with("gemma");
    let norm = |t: &Tensor| if gemma { (t + 1.0).unwrap() } else { t.clone() };
    let conv1d = |t: &Tensor| t.t().unwrap();
    if architecture == "gpt2" {
        put("transformer.wte.weight".into(), "token_embd.weight".into(), &[VOCAB, D], &same);
        put("transformer.wpe.weight".into(), "position_embd.weight".into(), &[128, D], &same);
        put("transformer.ln_f.weight".into(), "output_norm.weight".into(), &[D], &same);
        put("transformer.ln_f.bias".into(), "output_norm.bias".into(), &[D], &same);
        for l in 0..LAYERS {
            for (h, g, d_in, d_out) in [
                ("attn.c_attn", "attn_qkv", D, 3 * D),
                ("attn.c_proj", "attn_output", D, D),
                ("mlp.c_fc", "ffn_up", D, FF),
                ("mlp.c_proj", "ffn_down", FF, D),
            ] {
                put(format!("transformer.h.{l}.{h}.weight"), format!("blk.{l}.{g}.weight"), &[d_in, d_out], &conv1d);
                put(format!("transformer.h.{l}.{h}.bias"), format!("blk.{l}.{g}.bias"), &[d_out], &same);
            }
            for (h, g) in [("ln_1", "attn_norm"), ("ln_2", "ffn_norm")] {
                put(format!("transformer.h.{l}.{h}.weight"), format!("blk.{l}.{g}.weight"), &[D], &same);
                put(format!("transformer.h.{l}.{h}.bias"), format!("blk.{l}.{g}.bias"), &[D], &same);
            }
        }
        return (hf, gg);
    }
    put("model.embed_tokens.weight".into(), "token_embd.weight".into(), &[VOCAB, D], &same);
    put("model.norm.weight".into(), "output_norm.weight".into(), &[D], &norm);
    if architecture == "gpt-oss" {
        put("lm_head.weight".into(), "output.weight".into(), &[VOCAB, D], &same);
    }
    for l in 0..LAYERS {
        let name = |h: &str| format!("model.layers.{l}.{h}");
        let blk = |g: &str| format!("blk.{l}.{g}");
        let kv = KV * d_head;
        let rotary =
            |heads: usize| move |t: &Tensor| if architecture == "llama" { permute(t, heads) } else { t.clone() };
        put(name("self_attn.q_proj.weight"), blk("attn_q.weight"), &[D, D], &rotary(HEADS));
        put(name("self_attn.k_proj.weight"), blk("attn_k.weight"), &[kv, D], &rotary(KV));
        put(name("self_attn.v_proj.weight"), blk("attn_v.weight"), &[kv, D], &same);
        put(name("self_attn.o_proj.weight"), blk("attn_output.weight"), &[D, D], &same);
        put(name("input_layernorm.weight"), blk("attn_norm.weight"), &[D], &norm);
        if gemma {
            put(name("post_attention_layernorm.weight"), blk("post_attention_norm.weight"), &[D], &norm);
            put(name("pre_feedforward_layernorm.weight"), blk("ffn_norm.weight"), &[D], &norm);
            put(name("post_feedforward_layernorm.weight"), blk("post_ffw_norm.weight"), &[D], &norm);
        } else {
            let gg_norm = if architecture == "gpt-oss" { "post_attention_norm.weight" } else { "ffn_norm.weight" };
            put(name("post_attention_layernorm.weight"), blk(gg_norm), &[D], &same);
        }
        if matches!(architecture, "qwen3" | "gemma3") {
            put(name("self_attn.q_norm.weight"), blk("attn_q_norm.weight"), &[d_head], &norm);
            put(name("self_attn.k_norm.weight"), blk("attn_k_norm.weight"), &[d_head], &norm);
        }
        if matches!(architecture, "qwen2" | "gpt-oss") {
            put(name("self_attn.q_proj.bias"), blk("attn_q.bias"), &[D], &same);
            put(name("self_attn.k_proj.bias"), blk("attn_k.bias"), &[kv], &same);
            put(name("self_attn.v_proj.bias"), blk("attn_v.bias"), &[kv], &same);
        }
        if architecture != "gpt-oss" {
            put(name("mlp.gate_proj.weight"), blk("ffn_gate.weight"), &[FF, D], &same);
            put(name("mlp.up_proj.weight"), blk("ffn_up.weight"), &[FF, D], &same);
            put(name("mlp.down_proj.weight"), blk("ffn_down.weight"), &[D, FF], &same);
            continue;
        }
        put(name("self_attn.o_proj.bias"), blk("attn_output.bias"), &[D], &same);
        put(name("self_attn.sinks"), blk("attn_sinks.weight"), &[HEADS], &same);
        put(name("mlp.router.weight"), blk("ffn_gate_inp.weight"), &[EXPERTS, D], &same);
        put(name("mlp.router.bias"), blk("ffn_gate_inp.bias"), &[EXPERTS], &same);
        let transposed = |t: &Tensor| t.transpose(1, 2).unwrap();
        put(name("mlp.experts.down_proj"), blk("ffn_down_exps.weight"), &[EXPERTS, FF, D], &transposed);
        put(name("mlp.experts.down_proj_bias"), blk("ffn_down_exps.bias"), &[EXPERTS, D], &same);
    }
    if architecture == "gpt-oss" {
        for l in 0..LAYERS {
            // Gate in even, up in odd columns.
            let gate_up = distinct(&[EXPERTS, D, 2 * FF], 100 + l);
            let bias = distinct(&[EXPERTS, 2 * FF], 200 + l);
            let pairs = gate_up.reshape((EXPERTS, D, FF, 2)).unwrap();
            let bias_pairs = bias.reshape((EXPERTS, FF, 2)).unwrap();
            for (half, g) in [(0, "gate"), (1, "up")] {
                let w = pairs.narrow(3, half, 1).unwrap().squeeze(3).unwrap().transpose(1, 2).unwrap();
                gg.insert(format!("blk.{l}.ffn_{g}_exps.weight"), raw(&w.contiguous().unwrap()));
                let b = bias_pairs.narrow(2, half, 1).unwrap().squeeze(2).unwrap();
                gg.insert(format!("blk.{l}.ffn_{g}_exps.bias"), raw(&b.contiguous().unwrap()));
            }
            hf.insert(format!("model.layers.{l}.mlp.experts.gate_up_proj"), gate_up);
            hf.insert(format!("model.layers.{l}.mlp.experts.gate_up_proj_bias"), bias);
        }
    }
    (hf, gg)
}

fn open(
    folder: &TempDir,
    metadata: &BTreeMap<String, Meta>,
    tensors: &BTreeMap<String, RawTensor>,
) -> Result<ModelFiles> {
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, gguf(metadata, tensors)).unwrap();
    ModelFiles::open(&path.display().to_string())
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().and_then(|t| t.to_vec1()).unwrap()
}

fn assert_same(actual: &Tensor, expected: &Tensor, name: &str) {
    assert_eq!(actual.dims(), expected.dims(), "{name}");
    // Adding 1 and taking it away again rounds (Gemma's norm weights).
    let close = |(a, e): (&f32, &f32)| (a - e).abs() <= 1e-6 * (1.0 + e.abs());
    assert!(values(actual).iter().zip(&values(expected)).all(close), "{name}");
}

#[test]
fn every_architecture_reads_as_its_hugging_face_checkpoint() {
    let folder = TempDir::new().unwrap();
    for architecture in ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "gpt2", "gpt-oss"] {
        let (hf, gg) = both_forms(architecture);
        let mut metadata = metadata(architecture);
        metadata
            .insert(format!("{architecture}.expert_count"), Meta::Int(if architecture == "gpt-oss" { 3 } else { 0 }));
        metadata.insert(format!("{architecture}.expert_used_count"), Meta::Int(2));
        let host = open(&folder, &metadata, &gg).unwrap();
        assert_eq!(host.checkpoint.names().collect::<Vec<_>>(), hf.keys().map(String::as_str).collect::<Vec<_>>());
        for (name, expected) in &hf {
            let checkpoint = &host.checkpoint;
            assert_same(
                &checkpoint.tensor(name, expected.dims()).unwrap(),
                expected,
                &format!("{architecture} {name}"),
            );
            let n = expected.dims()[0];
            assert_same(&checkpoint.rows(name, 1..n).unwrap(), &expected.narrow(0, 1, n - 1).unwrap(), name);
            let picked = Tensor::new(&[n as u32 - 1, 0], &Device::Cpu).unwrap();
            let expected_rows = expected.index_select(&picked, 0).unwrap();
            assert_same(&checkpoint.gather_rows(name, &[n - 1, 0]).unwrap(), &expected_rows, name);
            if let Ok((_, cols)) = expected.dims2() {
                let block = expected.narrow(1, 1, cols - 1).unwrap().t().unwrap().contiguous().unwrap();
                assert_same(&checkpoint.columns(name, 1..cols).unwrap(), &block, name);
            }
        }
    }
}

#[test]
fn configs_say_what_the_metadata_and_llama_cpp_know() {
    let folder = TempDir::new().unwrap();
    let config = |architecture: &'static str, extra: &[(&str, Meta)]| -> Value {
        let mut metadata = metadata(architecture);
        metadata.extend(extra.iter().map(|(key, value)| (key.to_string(), value.clone())));
        open(&folder, &metadata, &both_forms(architecture).1).unwrap().config
    };
    let llama = config("llama", &[]);
    for (key, value) in [
        ("model_type", json!("llama")),
        ("hidden_size", json!(D)),
        ("num_hidden_layers", json!(LAYERS)),
        ("num_attention_heads", json!(HEADS)),
        ("num_key_value_heads", json!(KV)),
        ("head_dim", json!(D / HEADS)),
        ("intermediate_size", json!(FF)),
        ("vocab_size", json!(VOCAB)),
        ("max_position_embeddings", json!(128)),
        ("tie_word_embeddings", json!(true)),
        ("rope_theta", json!(50_000.0)),
        ("rope_scaling", Value::Null),
        ("bos_token_id", json!(1)),
    ] {
        assert_eq!(llama[key], value, "{key}");
    }
    let gemma2 = config(
        "gemma2",
        &[("gemma2.attention.key_length", Meta::Int(8)), ("gemma2.attention.sliding_window", Meta::Int(6))],
    );
    assert_eq!(gemma2["layer_types"], json!(["sliding_attention", "full_attention"]));
    assert_eq!((&gemma2["query_pre_attn_scalar"], &gemma2["sliding_window"]), (&json!(8), &json!(6)));
    assert_eq!((&gemma2["attn_logit_softcapping"], &gemma2["final_logit_softcapping"]), (&json!(50.0), &json!(30.0)));
    let gemma3 = config(
        "gemma3",
        &[("gemma3.rope.scaling.type", Meta::Text("linear")), ("gemma3.rope.scaling.factor", Meta::Float(8.0))],
    );
    assert_eq!((&gemma3["model_type"], &gemma3["rope_local_base_freq"]), (&json!("gemma3_text"), &json!(10_000.0)));
    assert_eq!(gemma3["rope_scaling"], json!({ "rope_type": "linear", "factor": 8.0 }));
    let gpt2 = config("gpt2", &[]);
    assert_eq!((&gpt2["model_type"], &gpt2["n_embd"], &gpt2["n_positions"]), (&json!("gpt2"), &json!(D), &json!(128)));

    let mut tensors = both_forms("llama").1;
    tensors.insert("rope_freqs.weight".into(), raw(&distinct(&[D / HEADS / 2], 1)));
    let scaled = open(&folder, &metadata("llama"), &tensors).unwrap().config;
    assert_eq!(scaled["rope_scaling"]["rope_type"], "factors");
    assert_eq!(scaled["rope_scaling"]["factors"].as_array().unwrap().len(), D / HEADS / 2);
}

#[test]
fn quantised_blocks_are_read_as_candle_dequantises_them() {
    let folder = TempDir::new().unwrap();
    let (rows, cols) = (70, 512);
    let source: Vec<f32> = (0..rows * cols).map(|i| ((i * 7919 % 1009) as f32 - 504.0) / 504.0).collect();
    let source = Tensor::from_vec(source, (rows, cols), &Device::Cpu).unwrap();
    for (code, dtype) in [
        (1, GgmlDType::F16),
        (2, GgmlDType::Q4_0),
        (3, GgmlDType::Q4_1),
        (6, GgmlDType::Q5_0),
        (7, GgmlDType::Q5_1),
        (8, GgmlDType::Q8_0),
        (10, GgmlDType::Q2K),
        (11, GgmlDType::Q3K),
        (12, GgmlDType::Q4K),
        (13, GgmlDType::Q5K),
        (14, GgmlDType::Q6K),
        (30, GgmlDType::BF16),
    ] {
        let quantised = QTensor::quantize(&source, dtype).unwrap();
        let expected = quantised.dequantize(&Device::Cpu).unwrap();
        let mut tensors = both_forms("qwen2").1;
        tensors.insert("output.weight".into(), (code, vec![rows, cols], quantised.data().unwrap().into_owned()));
        let checkpoint = open(&folder, &metadata("qwen2"), &tensors).unwrap().checkpoint;
        let name = "lm_head.weight";
        assert_same(&checkpoint.tensor(name, &[rows, cols]).unwrap(), &expected, name);
        assert_same(&checkpoint.rows(name, 3..7).unwrap(), &expected.narrow(0, 3, 4).unwrap(), name);
        let columns = expected.narrow(1, 100, 300).unwrap().t().unwrap().contiguous().unwrap();
        assert_same(&checkpoint.columns(name, 100..400).unwrap(), &columns, name);
    }
}

#[test]
fn mxfp4_blocks_are_read_and_other_types_are_named() {
    let folder = TempDir::new().unwrap();
    // Scale 2^(128 - 127) = 2: low nibbles first, then high ones.
    let block: Vec<u8> = std::iter::once(128).chain((0..16).map(|j| j | (15 - j) << 4)).collect();
    let mut tensors = both_forms("qwen2").1;
    tensors.insert("output.weight".into(), (39, vec![1, 32], block));
    tensors.insert("blk.0.attn_q.weight".into(), (22, vec![D, D], vec![0; 16]));
    let checkpoint = open(&folder, &metadata("qwen2"), &tensors).unwrap().checkpoint;
    let levels = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];
    let expected: Vec<f32> = levels.iter().chain(levels.iter().rev()).map(|v| v * 2.0).collect();
    assert_eq!(values(&checkpoint.tensor("lm_head.weight", &[1, 32]).unwrap()), expected);
    let e = checkpoint.tensor("model.layers.0.self_attn.q_proj.weight", &[D, D]).unwrap_err();
    assert!(matches!(&e, Error::Dtype { dtype, .. } if dtype == "ggml type 22"), "{e}");
}

#[test]
fn what_a_gguf_file_lacks_is_named() {
    let folder = TempDir::new().unwrap();
    let (_, tensors) = both_forms("llama");
    for key in [
        "llama.block_count",
        "llama.context_length",
        "llama.attention.layer_norm_rms_epsilon",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.merges",
    ] {
        let mut metadata = metadata("llama");
        metadata.remove(key);
        let e = open(&folder, &metadata, &tensors).unwrap_err();
        assert!(matches!(&e, Error::Metadata { key: k, .. } if k == key), "{e}");
    }
    let mut other = metadata("llama");
    other.insert("general.architecture".into(), Meta::Text("mamba"));
    assert!(
        matches!(open(&folder, &other, &tensors).unwrap_err(), Error::Architecture { architecture, .. } if architecture == "mamba")
    );
    let mut experts = metadata("llama");
    experts.insert("llama.expert_count".into(), Meta::Int(8));
    assert!(matches!(open(&folder, &experts, &tensors).unwrap_err(), Error::Architecture { .. }));
    let mut words = metadata("llama");
    words.insert("tokenizer.ggml.pre".into(), Meta::Text("unheard-of"));
    assert!(open(&folder, &words, &tensors).unwrap_err().to_string().contains("unheard-of"));
    let mut heads = metadata("llama");
    heads.insert("llama.attention.head_count".into(), Meta::Int(5));
    assert!(matches!(open(&folder, &heads, &tensors).unwrap_err(), Error::Damaged { .. }));
}

#[test]
fn byte_level_and_sentence_piece_vocabularies_tokenise() {
    let folder = TempDir::new().unwrap();
    let (_, tensors) = both_forms("llama");
    let tokenizer = open(&folder, &metadata("llama"), &tensors).unwrap().tokenizer;
    assert_eq!(tokenizer.encode_prompt("ab a").unwrap(), [1, 5, 7]);
    assert_eq!((tokenizer.token(7), tokenizer.single_token(" a").unwrap()), (" a".to_string(), 7));
    assert!(tokenizer.is_special(2) && !tokenizer.is_special(3));

    let mut metadata = metadata("llama");
    let tokens = ["<unk>", "<s>", "</s>", "a", "b", "ab", "\u{2581}", "\u{2581}a"];
    metadata.insert("tokenizer.ggml.model".into(), Meta::Text("llama"));
    metadata.insert("tokenizer.ggml.tokens".into(), Meta::Texts(tokens.map(str::to_string).to_vec()));
    metadata.insert("tokenizer.ggml.scores".into(), Meta::Floats(vec![0.0, 0.0, 0.0, -6.0, -5.0, -1.0, -4.0, -2.0]));
    metadata.insert("tokenizer.ggml.add_space_prefix".into(), Meta::Bool(false));
    let tokenizer = open(&folder, &metadata, &tensors).unwrap().tokenizer;
    assert_eq!(tokenizer.encode_prompt("ab a").unwrap(), [1, 5, 7]);
    // "▁ab": `ab` scores higher than `▁a`.
    assert_eq!(tokenizer.encode_plain(" ab").unwrap(), [6, 5]);
    assert_eq!(tokenizer.decode(&[5, 7]), "ab a");
    metadata.insert("tokenizer.ggml.add_space_prefix".into(), Meta::Bool(true));
    let tokenizer = open(&folder, &metadata, &tensors).unwrap().tokenizer;
    assert_eq!(tokenizer.encode_plain("a").unwrap(), [7]);
}

#[test]
fn truncated_gguf_is_refused_at_every_length() {
    let folder = TempDir::new().unwrap();
    let (_, tensors) = both_forms("llama");
    let bytes = gguf(&metadata("llama"), &tensors);
    let path = folder.path().join("cut.gguf");
    // The last tensor's padding may be missing.
    for len in (0..bytes.len() - 32).step_by(37) {
        std::fs::write(&path, &bytes[..len]).unwrap();
        let e = ModelFiles::open(&path.display().to_string()).unwrap_err();
        assert!(matches!(e, Error::Damaged { .. }), "{len} of {}: {e}", bytes.len());
    }
}

#[test]
#[ignore = "needs CIRCUITSCOPE_SMOLLM2_GGUF (SmolLM2-135M-Instruct-Q8_0.gguf) and CIRCUITSCOPE_SHARED (smollm2/): cargo test --release --test it -- --ignored smollm2"]
fn smollm2_opens_and_tokenises_as_recorded() {
    let (path, expected) = (file_named_by("CIRCUITSCOPE_SMOLLM2_GGUF"), shared("smollm2/expected"));
    let host = ModelFiles::open(&path.display().to_string()).unwrap();
    assert!(check_cases(&host, &expected) > 0);
    assert_eq!(
        host.tokenizer.decode(&host.tokenizer.encode_plain("In 1984, it's  two\n").unwrap()),
        "In 1984, it's  two\n"
    );
    assert_eq!(host.config["num_key_value_heads"], 3);
    let json = host.tokenizer.to_json().unwrap();
    let again = Tokenizer::from_json("again", json.as_bytes(), None, &host.config).unwrap();
    for text in ["The capital of France is", "x = 1234567;\n\t\treturn x", "it's\u{a0}naïve <|im_end|> 日本語"] {
        assert_eq!(again.encode_prompt(text).unwrap(), host.tokenizer.encode_prompt(text).unwrap());
    }
    let shape = host.checkpoint.shape("model.embed_tokens.weight").unwrap();
    assert_eq!(shape, [49_152, 576]);
    for name in host.checkpoint.names() {
        host.checkpoint.tensor(name, &host.checkpoint.shape(name).unwrap()).unwrap();
    }
}

#[test]
#[ignore = "needs CIRCUITSCOPE_GEMMA3_GGUF (a Gemma 3 GGUF file): cargo test --release --test it -- --ignored gemma_3"]
fn gemma_3_opens_and_tokenises() {
    let path = file_named_by("CIRCUITSCOPE_GEMMA3_GGUF");
    let host = ModelFiles::open(&path.display().to_string()).unwrap();
    // The ids of the published tokenizer.
    let ids = host.tokenizer.encode_prompt("The capital of France is").unwrap();
    assert_eq!(ids, [2, 818, 5279, 529, 7001, 563]);
    let text = "Two  spaces,\n\nlines, naïve 日本 and \u{1f600}\u{1f3ff}";
    assert_eq!(host.tokenizer.decode(&host.tokenizer.encode_plain(text).unwrap()), text);
    for name in host.checkpoint.names() {
        host.checkpoint.tensor(name, &host.checkpoint.shape(name).unwrap()).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn damaged_gguf_never_panic(
        header in prop::collection::hash_map(0usize..4000, any::<u8>(), 1..6),
        anywhere in prop::collection::hash_map(any::<usize>(), any::<u8>(), 0..3),
        cut in prop_oneof![Just(0usize), 0usize..10_000],
    ) {
        let folder = TempDir::new().unwrap();
        let bytes = damage(damage(gguf(&metadata("llama"), &both_forms("llama").1), &header, 0), &anywhere, cut);
        let path = folder.path().join("x.gguf");
        std::fs::write(&path, bytes).unwrap();
        if let Ok(host) = ModelFiles::open(&path.display().to_string()) {
            let _ = host.tokenizer.encode_prompt("ab a");
            crate::weights::read_all(Ok(host.checkpoint));
        }
    }
}
