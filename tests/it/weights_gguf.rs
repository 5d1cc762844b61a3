//! Promises of the GGUF reader: undoing what llama.cpp's conversion does to each family, and never trusting a length.

use std::collections::BTreeMap;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use circuitscope::weights::{ModelFiles, Tokenizer};
use circuitscope::{Error, Result};
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::gguf::{
    D, FF, HEADS, KV, LAYERS, Meta, RawTensor, VOCAB, both_forms, distinct, gguf, metadata, raw,
};
use crate::support::{file_named_by, shared};
use crate::weights::damage;
use crate::weights_tokenizer::check_cases;

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
