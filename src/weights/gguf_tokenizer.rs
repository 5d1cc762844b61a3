//! The tokenizer in a GGUF file's metadata.
//!
//! Own code rather than candle's reader, which knows byte-level vocabularies only, takes a space before every text for
//! granted in the default case, and does not split SmolLM's digits.

use std::collections::{HashMap, HashSet};

use serde_json::{Value as Json, json};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper};

use super::gguf_header::{Header, Value};
use super::tokenizer::{SpecialIds, Tokenizer};
use crate::error::{Error, Result};

/// Token types of llama.cpp that are not plain text.
const TYPE_UNKNOWN: i64 = 2;
const TYPE_CONTROL: i64 = 3;
const TYPE_USER_DEFINED: i64 = 4;

/// Text of all merges for a byte of the vocabulary's text, and on top: real vocabularies have 2 or 3, a vocabulary of
/// runs of one letter, of all lengths, has thousands.
const MERGED_BYTES_PER_BYTE: usize = 32;
const MERGED_BYTES: usize = 1 << 20;

/// The words of GPT-4-like tokenizers, up to the number of digits that stay together.
const LLAMA3_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2_WORDS: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O_WORDS: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The steps around the merges, as `tokenizer.json` has them.
struct Steps {
    normalizer: Json,
    pre_tokenizer: Json,
    decoder: Json,
    /// Words that are tokens as a whole are not split and merged.
    ignore_merges: bool,
    byte_fallback: bool,
}

/// Builds the tokenizer.
///
/// # Errors
/// [`Error::Metadata`], [`Error::Tokenizer`].
pub(super) fn tokenizer(header: &Header) -> Result<Tokenizer> {
    let failed = |reason: String| Error::Tokenizer { file: header.file.clone(), reason };
    let tokens = texts(header, "tokenizer.ggml.tokens")?;
    let model = header.text("tokenizer.ggml.model").ok_or_else(|| header.missing("tokenizer.ggml.model"))?;
    let (merges, steps) = match model {
        "gpt2" => {
            let merges = texts(header, "tokenizer.ggml.merges")?;
            let merges = merges.into_iter().map(|merge| match merge.split_once(' ') {
                Some((left, right)) => Ok((left.to_string(), right.to_string())),
                None => Err(failed(format!("merge `{merge}` is no pair"))),
            });
            (merges.collect::<Result<Vec<_>>>()?, byte_level_steps(header)?)
        }
        "llama" => (merges_from_scores(header, &tokens)?, sentence_piece_steps(header)),
        other => return Err(failed(format!("its model is `{other}`, expected `gpt2` or `llama`"))),
    };

    let vocab = tokens.iter().zip(0u32..).map(|(token, id)| (token.to_string(), id));
    let mut builder = BPE::builder()
        .vocab_and_merges(vocab.collect::<Vocab>(), merges)
        .ignore_merges(steps.ignore_merges)
        .byte_fallback(steps.byte_fallback);
    let unknown = header.int("tokenizer.ggml.unknown_token_id").and_then(|id| tokens.get(id));
    if let (true, Some(unknown)) = (steps.byte_fallback, unknown) {
        builder = builder.unk_token(unknown.to_string()).fuse_unk(true);
    }
    let bpe = builder.build().map_err(|e| failed(e.to_string()))?;

    let mut tokenizer = tokenizers::Tokenizer::new(bpe);
    let step = |e: serde_json::Error| failed(e.to_string());
    let normalizer: Option<NormalizerWrapper> = serde_json::from_value(steps.normalizer).map_err(step)?;
    let pre_tokenizer: Option<PreTokenizerWrapper> = serde_json::from_value(steps.pre_tokenizer).map_err(step)?;
    let decoder: Option<DecoderWrapper> = serde_json::from_value(steps.decoder).map_err(step)?;
    tokenizer.with_normalizer(normalizer).map_err(|e| failed(e.to_string()))?;
    tokenizer.with_pre_tokenizer(pre_tokenizer);
    tokenizer.with_decoder(decoder);

    let types = header.numbers("tokenizer.ggml.token_type");
    let added = types.zip(&tokens).filter_map(|(kind, token)| {
        let special = match kind {
            Value::Int(TYPE_UNKNOWN | TYPE_CONTROL) => true,
            Value::Int(TYPE_USER_DEFINED) => false,
            _ => return None,
        };
        (!token.is_empty()).then(|| AddedToken::from(token.to_string(), special).normalized(false))
    });
    let (special, plain): (Vec<_>, Vec<_>) = added.partition(|token| token.special);
    tokenizer.add_special_tokens(special).map_err(|e| failed(e.to_string()))?;
    tokenizer.add_tokens(plain).map_err(|e| failed(e.to_string()))?;

    let id = |role: &str| {
        let id = header.int(&format!("tokenizer.ggml.{role}_token_id"))?;
        u32::try_from(id).ok().filter(|_| id < tokens.len())
    };
    Tokenizer::new(&header.file, tokenizer, SpecialIds { bos: id("bos"), eos: id("eos"), pad: id("padding") })
}

fn texts<'h>(header: &'h Header, key: &str) -> Result<Vec<&'h str>> {
    let values = header.array(key).ok_or_else(|| header.missing(key))?;
    let texts = values.iter().map(|value| match value {
        Value::Text(text) => Some(text.as_ref()),
        _ => None,
    });
    texts.collect::<Option<Vec<_>>>().ok_or_else(|| header.missing(key))
}

fn byte_level_steps(header: &Header) -> Result<Steps> {
    let byte_level = |use_regex: bool| {
        let add_prefix_space = header.bool("tokenizer.ggml.add_space_prefix").unwrap_or(false);
        json!({
            "type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true, "use_regex": use_regex
        })
    };
    let words = |pattern: &str| {
        let split =
            json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
        json!({ "type": "Sequence", "pretokenizers": [split, byte_level(false)] })
    };
    let kind = header.text("tokenizer.ggml.pre").unwrap_or("gpt-2");
    let (normalizer, pre_tokenizer, ignore_merges) = match kind {
        "gpt-2" | "gpt2" | "default" => (Json::Null, byte_level(true), false),
        "smollm" | "starcoder" | "codeshell" | "refact" | "command-r" => {
            let digits = json!({ "type": "Digits", "individual_digits": true });
            let steps = json!({ "type": "Sequence", "pretokenizers": [digits, byte_level(true)] });
            (Json::Null, steps, false)
        }
        "llama-bpe" | "llama3" | "llama-v3" | "smaug-bpe" => (Json::Null, words(LLAMA3_WORDS), true),
        "qwen2" | "deepseek-r1-qwen" => (json!({ "type": "NFC" }), words(QWEN2_WORDS), false),
        "gpt-4o" => (Json::Null, words(GPT4O_WORDS), false),
        other => {
            return Err(Error::Tokenizer {
                file: header.file.clone(),
                reason: format!(
                    "its way of splitting words is `{other}`, expected gpt-2, smollm, llama-bpe, qwen2 or gpt-4o"
                ),
            });
        }
    };
    let decoder = json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true });
    Ok(Steps { normalizer, pre_tokenizer, decoder, ignore_merges, byte_fallback: false })
}

fn sentence_piece_steps(header: &Header) -> Steps {
    let add_space = header.bool("tokenizer.ggml.add_space_prefix").unwrap_or(true);
    let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "\u{2581}" });
    let normalizer = if add_space {
        json!({ "type": "Sequence", "normalizers": [{ "type": "Prepend", "prepend": "\u{2581}" }, replace] })
    } else {
        replace
    };
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": "\u{2581}" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if add_space {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    let decoder = json!({ "type": "Sequence", "decoders": decoders });
    Steps { normalizer, pre_tokenizer: Json::Null, decoder, ignore_merges: false, byte_fallback: true }
}

/// SentencePiece joins the pair whose joined piece scores highest; as a list of merges: every way to split every
/// piece in two pieces, best score first.
fn merges_from_scores(header: &Header, tokens: &[&str]) -> Result<Vec<(String, String)>> {
    let key = "tokenizer.ggml.scores";
    if !matches!(header.get(key), Some(Value::Numbers(_))) {
        return Err(header.missing(key));
    }
    let types = header.numbers("tokenizer.ggml.token_type");
    let id_from_token: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, &token)| (token, id)).collect();
    // Control tokens are never made by merging.
    let control: HashSet<usize> =
        types.enumerate().filter(|(_, kind)| *kind == Value::Int(TYPE_CONTROL)).map(|(id, _)| id).collect();
    let n_bytes: usize = tokens.iter().map(|token| token.len()).sum();
    let mut room = n_bytes.saturating_mul(MERGED_BYTES_PER_BYTE).saturating_add(MERGED_BYTES);
    let mut merges = Vec::new();
    for (id, (&token, score)) in tokens.iter().zip(header.numbers(key)).enumerate() {
        let Value::Float(score) = score else { return Err(header.missing(key)) };
        if control.contains(&id) {
            continue;
        }
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(&l), Some(&r)) = (id_from_token.get(left), id_from_token.get(right)) {
                merges.push((score, l, r, left, right));
                room = room.checked_sub(token.len()).ok_or_else(|| {
                    let reason = format!("the ways to split {} tokens in two are more than can be held", tokens.len());
                    Error::Tokenizer { file: header.file.clone(), reason }
                })?;
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    Ok(merges.into_iter().map(|(_, _, _, left, right)| (left.to_string(), right.to_string())).collect())
}
