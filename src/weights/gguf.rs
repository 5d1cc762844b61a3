//! base models in GGUF files, under Hugging Face's names and in its layouts.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::checkpoint::Checkpoint;
use super::foreign::guarded;
use super::gguf_header::{Header, TensorInfo};
use super::model_files::ModelFiles;
use super::source::Source;
use super::stored::{Layout, Part, Stored};
use super::{gguf_config, gguf_tokenizer};
use crate::error::{Error, Result};

/// Architectures whose names and layouts are known here.
const ARCHITECTURES: &str = "llama, qwen2, qwen3, gemma2, gemma3, gpt2, gpt-oss";

/// The families, as far as their files differ.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Architecture {
    Llama,
    Qwen2,
    Qwen3,
    Gemma2,
    Gemma3,
    Gpt2,
    GptOss,
}

impl Architecture {
    fn of(header: &Header) -> Result<Self> {
        let key = "general.architecture";
        Ok(match header.text(key).ok_or_else(|| header.missing(key))? {
            // Mixtures of experts are written under `llama` too; they are another family.
            "llama" if header.int("llama.expert_count").unwrap_or(0) == 0 => Self::Llama,
            "qwen2" => Self::Qwen2,
            "qwen3" => Self::Qwen3,
            "gemma2" => Self::Gemma2,
            "gemma3" => Self::Gemma3,
            "gpt2" => Self::Gpt2,
            "gpt-oss" => Self::GptOss,
            other => {
                return Err(Error::Architecture {
                    file: header.file.clone(),
                    architecture: other.to_string(),
                    expected: ARCHITECTURES,
                });
            }
        })
    }

    pub fn is_gemma(self) -> bool {
        matches!(self, Self::Gemma2 | Self::Gemma3)
    }
}

/// Opens a GGUF file.
///
/// # Errors
/// [`Error::Io`], [`Error::Damaged`], [`Error::Architecture`], [`Error::Metadata`], [`Error::Tokenizer`].
pub(super) fn open(path: &Path) -> Result<ModelFiles> {
    let source = Source::map(path)?;
    let header = Header::parse(&source.name, source.bytes()?)?;
    let architecture = Architecture::of(&header)?;
    let checkpoint = Checkpoint::from_tensors(source.name.clone(), tensors(&source, &header, architecture)?)?;
    let config = gguf_config::config(&header, architecture, &checkpoint, &source)?;
    let failed = |reason| Error::Tokenizer { file: source.name.clone(), reason };
    let tokenizer = guarded(|| gguf_tokenizer::tokenizer(&header)).map_err(failed)??;
    ModelFiles::from_parts(source.name.clone(), config, None, checkpoint, tokenizer)
}

fn part(source: &Arc<Source>, info: &TensorInfo) -> Part {
    Part { source: source.clone(), start: info.start, encoding: info.encoding.clone() }
}

/// A tensor as it is stored.
pub(super) fn plain(source: &Arc<Source>, info: &TensorInfo) -> Stored {
    Stored { part: part(source, info), shape: info.shape.clone(), layout: Layout::RowMajor, shift: 0.0 }
}

fn tensors(source: &Arc<Source>, header: &Header, architecture: Architecture) -> Result<Vec<(String, Stored)>> {
    let infos: BTreeMap<&str, &TensorInfo> = header.tensors.iter().map(|info| (info.name.as_str(), info)).collect();
    let mut tensors = Vec::new();
    for info in infos.values() {
        let Some(name) = hugging_face_name(&info.name, architecture) else { continue };
        let mut stored = plain(source, info);
        if architecture.is_gemma() && info.name.ends_with("norm.weight") {
            stored.shift = -1.0;
        }
        if architecture == Architecture::Gpt2 && is_conv1d(&name) {
            transpose(&mut stored);
        }
        if architecture == Architecture::Llama && (name.contains("q_proj") || name.contains("k_proj")) {
            let role = if name.contains("q_proj") { "head_count" } else { "head_count_kv" };
            let n_heads = header
                .int(&format!("llama.attention.{role}"))
                .or_else(|| header.int("llama.attention.head_count"))
                .ok_or_else(|| header.missing("llama.attention.head_count"))?;
            let n_rows = stored.shape.first().copied().unwrap_or(0);
            if n_heads == 0 || n_rows == 0 || n_rows % (2 * n_heads) != 0 {
                let reason = format!("`{}` has {n_rows} rows, which are no {n_heads} heads of even size", info.name);
                return Err(Error::Damaged { file: header.file.clone(), format: "GGUF", reason });
            }
            stored.layout = Layout::RotaryPairs { d_head: n_rows / n_heads };
        }
        if name.ends_with("experts.down_proj") {
            transpose(&mut stored);
        }
        if let Some(rest) = name.strip_suffix("experts.gate_proj").or(name.strip_suffix("experts.gate_proj_bias")) {
            let up_name = info.name.replace("ffn_gate_exps", "ffn_up_exps");
            let up = infos.get(up_name.as_str()).filter(|up| up.shape == info.shape).ok_or_else(|| {
                let reason = format!("`{up_name}` is missing or has another shape than `{}`", info.name);
                Error::Damaged { file: header.file.clone(), format: "GGUF", reason }
            })?;
            stored.layout = Layout::GateUp(Box::new(part(source, up)));
            // Weights `[n_experts, d_ff, d_model]`, biases `[n_experts, d_ff]`.
            if let [_, a, b] = &mut stored.shape[..] {
                std::mem::swap(a, b);
            }
            if let Some(last) = stored.shape.last_mut() {
                *last *= 2;
            }
            let suffix = if name.ends_with("bias") { "experts.gate_up_proj_bias" } else { "experts.gate_up_proj" };
            tensors.push((format!("{rest}{suffix}"), stored));
            continue;
        }
        tensors.push((name, stored));
    }
    Ok(tensors)
}

/// Swaps the last two dimensions of a matrix or a stack of matrices.
fn transpose(stored: &mut Stored) {
    if let [a, b] | [_, a, b] = &mut stored.shape[..] {
        std::mem::swap(a, b);
        stored.layout = Layout::Transposed;
    }
}

/// GPT-2's checkpoints hold `[d_in, d_out]` where all others hold `[d_out, d_in]`.
fn is_conv1d(name: &str) -> bool {
    name.ends_with(".weight") && (name.contains(".c_attn.") || name.contains(".c_proj.") || name.contains(".c_fc."))
}

/// The Hugging Face name of a GGUF tensor; `None` for those that have no counterpart.
fn hugging_face_name(name: &str, architecture: Architecture) -> Option<String> {
    let gpt2 = architecture == Architecture::Gpt2;
    let Some(block) = name.strip_prefix("blk.") else {
        return Some(
            match (name, gpt2) {
                ("token_embd.weight", false) => "model.embed_tokens.weight",
                ("output_norm.weight", false) => "model.norm.weight",
                ("token_embd.weight", true) => "transformer.wte.weight",
                ("position_embd.weight", true) => "transformer.wpe.weight",
                ("output_norm.weight", true) => "transformer.ln_f.weight",
                ("output_norm.bias", true) => "transformer.ln_f.bias",
                ("output.weight", _) => "lm_head.weight",
                _ => return None,
            }
            .to_string(),
        );
    };
    let (layer, rest) = block.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let (stem, kind) = rest.rsplit_once('.')?;
    if !matches!(kind, "weight" | "bias") {
        return None;
    }
    if gpt2 {
        let module = match stem {
            "attn_norm" => "ln_1",
            "attn_qkv" => "attn.c_attn",
            "attn_output" => "attn.c_proj",
            "ffn_norm" => "ln_2",
            "ffn_up" => "mlp.c_fc",
            "ffn_down" => "mlp.c_proj",
            _ => return None,
        };
        return Some(format!("transformer.h.{layer}.{module}.{kind}"));
    }
    let module = match stem {
        "attn_norm" => "input_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "attn_sinks" => return Some(format!("model.layers.{layer}.self_attn.sinks")),
        "ffn_norm" if architecture.is_gemma() => "pre_feedforward_layernorm",
        "ffn_norm" | "post_attention_norm" => "post_attention_layernorm",
        "post_ffw_norm" => "post_feedforward_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        "ffn_gate_inp" => "mlp.router",
        "ffn_gate_exps" | "ffn_down_exps" => {
            let module = if stem == "ffn_gate_exps" { "gate_proj" } else { "down_proj" };
            let suffix = if kind == "bias" { "_bias" } else { "" };
            return Some(format!("model.layers.{layer}.mlp.experts.{module}{suffix}"));
        }
        _ => return None,
    };
    Some(format!("model.layers.{layer}.{module}.{kind}"))
}
