//! GGUF files as llama.cpp writes them, and the Hugging Face checkpoints that they are made of.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};

/// A metadata value to be written.
#[derive(Clone)]
pub enum Meta {
    Int(u32),
    Float(f32),
    Bool(bool),
    Text(&'static str),
    Texts(Vec<String>),
    Ints(Vec<i32>),
    Floats(Vec<f32>),
}

/// A tensor to be written: ggml's type code, shape (outermost first), bytes.
pub type RawTensor = (u32, Vec<usize>, Vec<u8>);

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

pub fn gguf(metadata: &BTreeMap<String, Meta>, tensors: &BTreeMap<String, RawTensor>) -> Vec<u8> {
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

pub fn raw(tensor: &Tensor) -> RawTensor {
    let values = tensor.flatten_all().and_then(|t| t.to_vec1::<f32>()).unwrap();
    (0, tensor.dims().to_vec(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

/// A tensor of distinct values.
pub fn distinct(shape: &[usize], seed: usize) -> Tensor {
    let n: usize = shape.iter().product();
    let values: Vec<f32> = (0..n).map(|i| (i as f32 + 0.25) / 512.0 + seed as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

pub const LAYERS: usize = 2;
pub const D: usize = 32;
pub const HEADS: usize = 4;
pub const KV: usize = 2;
pub const FF: usize = 64;
pub const VOCAB: usize = 8;
pub const EXPERTS: usize = 3;

/// A byte-level vocabulary just big enough.
pub fn metadata(architecture: &'static str) -> BTreeMap<String, Meta> {
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
pub fn both_forms(architecture: &str) -> (BTreeMap<String, Tensor>, BTreeMap<String, RawTensor>) {
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
