//! Random checkpoints and transcoders of published shapes, bf16.
//!
//! Weights are scaled so that norms' outputs stay near unit variance; a feature's pre-activation is then close to
//! normal, and one threshold gives every position the wanted number of active features.

use std::fs::File;
use std::io::{BufWriter, Result, Write};
use std::path::Path;

use half::bf16;
use serde_json::{Map, Value, json};

/// Sizes of a published model and of transcoders for it.
#[derive(Clone, Debug)]
pub struct Shape {
    pub name: &'static str,
    pub n_layers: usize,
    pub d_model: usize,
    pub d_mlp: usize,
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub d_head: usize,
    pub d_vocab: usize,
    pub family: Family,
    pub d_transcoder: usize,
    /// Active features a position and layer.
    pub l0: f64,
}

/// What the layers have beside attention and MLP.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Family {
    Llama,
    /// Post-norms, gains stored less one, softcaps.
    Gemma2,
    /// Post-norms, gains stored less one, norms of queries and keys, mostly local layers.
    Gemma3,
}

const SHAPES: [Shape; 4] = [
    Shape {
        name: "smollm2-135m",
        n_layers: 30,
        d_model: 576,
        d_mlp: 1536,
        n_heads: 9,
        n_kv_heads: 3,
        d_head: 64,
        d_vocab: 49152,
        family: Family::Llama,
        d_transcoder: 2048,
        l0: 28.0,
    },
    Shape {
        name: "llama-3.2-1b",
        n_layers: 16,
        d_model: 2048,
        d_mlp: 8192,
        n_heads: 32,
        n_kv_heads: 8,
        d_head: 64,
        d_vocab: 128_256,
        family: Family::Llama,
        d_transcoder: 16384,
        l0: 50.0,
    },
    Shape {
        name: "gemma-2-2b",
        n_layers: 26,
        d_model: 2304,
        d_mlp: 9216,
        n_heads: 8,
        n_kv_heads: 4,
        d_head: 256,
        d_vocab: 256_000,
        family: Family::Gemma2,
        d_transcoder: 16384,
        l0: 50.0,
    },
    Shape {
        name: "gemma-3-270m",
        n_layers: 18,
        d_model: 640,
        d_mlp: 2048,
        n_heads: 4,
        n_kv_heads: 1,
        d_head: 256,
        d_vocab: 262_144,
        family: Family::Gemma3,
        d_transcoder: 16384,
        l0: 50.0,
    },
];

impl Shape {
    pub fn names() -> Vec<&'static str> {
        SHAPES.iter().map(|shape| shape.name).collect()
    }

    pub fn named(name: &str) -> Option<Self> {
        SHAPES.iter().find(|shape| shape.name == name).cloned()
    }

    fn config(&self) -> Value {
        let mut config = json!({
            "model_type": match self.family {
                Family::Llama => "llama",
                Family::Gemma2 => "gemma2",
                Family::Gemma3 => "gemma3_text",
            },
            "num_hidden_layers": self.n_layers,
            "hidden_size": self.d_model,
            "intermediate_size": self.d_mlp,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.d_head,
            "vocab_size": self.d_vocab,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "tie_word_embeddings": true,
            "bos_token_id": 0,
        });
        if self.family != Family::Llama {
            config["query_pre_attn_scalar"] = json!(self.d_head);
        }
        if self.family == Family::Gemma2 {
            config["sliding_window"] = json!(4096);
            config["attn_logit_softcapping"] = json!(50.0);
            config["final_logit_softcapping"] = json!(30.0);
        }
        if self.family == Family::Gemma3 {
            config["sliding_window"] = json!(512);
            config["rope_theta"] = json!(1_000_000.0);
            config["rope_local_base_freq"] = json!(10000.0);
        }
        config
    }
}

/// What a tensor is filled with.
#[derive(Clone, Copy)]
enum Fill {
    /// Normal with this standard deviation.
    Normal(f64),
    Constant(f32),
}

/// Random normal values, from a table: quick enough for billions.
struct Normals {
    table: Vec<f32>,
    state: u64,
}

impl Normals {
    fn new(seed: u64) -> Self {
        let n = 1 << 16;
        let mut table: Vec<f32> = (0..n).map(|i| quantile((i as f64 + 0.5) / n as f64) as f32).collect();
        // Exactly symmetric and of unit variance, whatever the approximation of the quantile does.
        let variance = table.iter().map(|v| f64::from(v * v)).sum::<f64>() / n as f64;
        table.iter_mut().for_each(|v| *v = (f64::from(*v) / variance.sqrt()) as f32);
        Self { table, state: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1 }
    }

    /// Four indices into the table at a time (xorshift64*).
    fn next(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}

/// The value that a standard normal variable stays below with probability `p` (bisection on its distribution).
pub fn quantile(p: f64) -> f64 {
    let (mut low, mut high) = (-10.0f64, 10.0f64);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if below(middle) < p { low = middle } else { high = middle }
    }
    low
}

/// The probability that a standard normal variable is below `x` (Abramowitz and Stegun 7.1.26, error 1e-7).
fn below(x: f64) -> f64 {
    let z = x.abs() / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let polynomial =
        t * (0.254_829_592 + t * (-0.284_496_736 + t * (1.421_413_741 + t * (-1.453_152_027 + t * 1.061_405_429))));
    let upper = 0.5 * polynomial * (-z * z).exp();
    if x < 0.0 { upper } else { 1.0 - upper }
}

/// Writes tensors as bf16 safetensors, one after the other.
fn write_tensors(path: &Path, tensors: &[(String, Vec<usize>, Fill)], seed: u64) -> Result<()> {
    let mut header = Map::new();
    let mut offset = 0;
    for (name, shape, _) in tensors {
        let size_bytes = 2 * shape.iter().product::<usize>();
        header.insert(
            name.clone(),
            json!({"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size_bytes]}),
        );
        offset += size_bytes;
    }
    let header = Value::Object(header).to_string();
    let mut writer = BufWriter::with_capacity(1 << 20, File::create(path)?);
    writer.write_all(&(header.len() as u64).to_le_bytes())?;
    writer.write_all(header.as_bytes())?;
    let mut normals = Normals::new(seed);
    let mut buffer = Vec::new();
    for (_, shape, fill) in tensors {
        let mut left: usize = shape.iter().product();
        let table: Vec<[u8; 2]> = match fill {
            Fill::Normal(std) => {
                normals.table.iter().map(|v| bf16::from_f64(f64::from(*v) * std).to_le_bytes()).collect()
            }
            Fill::Constant(value) => vec![bf16::from_f32(*value).to_le_bytes(); 1 << 16],
        };
        while left > 0 {
            buffer.clear();
            let n = left.min(1 << 18);
            while buffer.len() < 2 * n {
                let bits = normals.next();
                for part in 0..4 {
                    buffer.extend_from_slice(&table[(bits >> (16 * part)) as usize & 0xFFFF]);
                }
            }
            writer.write_all(&buffer[..2 * n])?;
            left -= n;
        }
    }
    writer.flush()
}

/// Writes a base model in Hugging Face layout.
pub fn write_model(shape: &Shape, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join("config.json"), shape.config().to_string())?;
    let vocab: Map<String, Value> = (0..shape.d_vocab).map(|id| (format!("w{id}"), json!(id))).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [{"id": 0, "content": "w0", "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}],
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w1"},
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string())?;
    std::fs::write(folder.join("tokenizer_config.json"), json!({"bos_token": "w0"}).to_string())?;

    let (d, d_q, d_kv) = (shape.d_model, shape.n_heads * shape.d_head, shape.n_kv_heads * shape.d_head);
    let unit = |d_in: usize| Fill::Normal(1.0 / (d_in as f64).sqrt());
    // What attention and MLP write stays small against the stream, as in trained models.
    let quiet = |d_in: usize| Fill::Normal(0.3 / (d_in as f64).sqrt());
    let is_gemma = shape.family != Family::Llama;
    let gain = Fill::Constant(if is_gemma { 0.0 } else { 1.0 });
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![shape.d_vocab, d], Fill::Normal(0.05))];
    for layer in 0..shape.n_layers {
        let at = format!("model.layers.{layer}.");
        let mut add = |name: &str, shape: Vec<usize>, fill| tensors.push((format!("{at}{name}.weight"), shape, fill));
        add("self_attn.q_proj", vec![d_q, d], unit(d));
        add("self_attn.k_proj", vec![d_kv, d], unit(d));
        add("self_attn.v_proj", vec![d_kv, d], unit(d));
        add("self_attn.o_proj", vec![d, d_q], quiet(d_q));
        add("mlp.gate_proj", vec![shape.d_mlp, d], unit(d));
        add("mlp.up_proj", vec![shape.d_mlp, d], unit(d));
        add("mlp.down_proj", vec![d, shape.d_mlp], quiet(shape.d_mlp));
        add("input_layernorm", vec![d], gain);
        add("post_attention_layernorm", vec![d], gain);
        if shape.family == Family::Gemma3 {
            add("self_attn.q_norm", vec![shape.d_head], gain);
            add("self_attn.k_norm", vec![shape.d_head], gain);
        }
        if is_gemma {
            add("pre_feedforward_layernorm", vec![d], gain);
            add("post_feedforward_layernorm", vec![d], gain);
        }
    }
    tensors.push(("model.norm.weight".to_owned(), vec![d], gain));
    write_tensors(&folder.join("model.safetensors"), &tensors, 1)
}

/// Writes JumpReLU transcoders of which about `l0` features are active at every position.
pub fn write_transcoders(shape: &Shape, l0: f64, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let (d, n) = (shape.d_model, shape.d_transcoder);
    let mut config = format!(
        "model_name: {0}\nmodel_kind: transcoder_set\nfeature_input_hook: mlp.hook_in\n\
         feature_output_hook: mlp.hook_out\nscan: synthetic-{0}\ntranscoders:\n",
        shape.name
    );
    let threshold = quantile(1.0 - l0 / n as f64) as f32;
    for layer in 0..shape.n_layers {
        let name = format!("layer_{layer}.safetensors");
        config.push_str(&format!("- {name}\n"));
        let tensors = [
            ("W_enc".to_owned(), vec![n, d], Fill::Normal(1.0 / (d as f64).sqrt())),
            ("W_dec".to_owned(), vec![n, d], Fill::Normal(0.02 / (d as f64).sqrt())),
            ("b_enc".to_owned(), vec![n], Fill::Constant(0.0)),
            ("b_dec".to_owned(), vec![d], Fill::Constant(0.0)),
            ("activation_function.threshold".to_owned(), vec![n], Fill::Constant(threshold)),
        ];
        write_tensors(&folder.join(name), &tensors, 100 + layer as u64)?;
    }
    std::fs::write(folder.join("config.yaml"), config)
}
