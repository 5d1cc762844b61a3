//! A base model's files, whatever they came from.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::checkpoint::Checkpoint;
use super::folder::Folder;
use super::tokenizer::Tokenizer;
use crate::error::{Error, Result};

/// What the `model` room needs of a base model, in Hugging Face's names and layouts whatever the source was.
#[derive(Clone, Debug)]
pub struct ModelFiles {
    /// How the model was named: path, Hub id, or `atlas`.
    pub source: String,
    /// As `config.json`; of a model for text and images, the text part.
    pub config: Value,
    /// As `generation_config.json`.
    pub generation_config: Option<Value>,
    /// Every weight, by name.
    pub checkpoint: Checkpoint,
    /// Text to token ids and back.
    pub tokenizer: Tokenizer,
}

impl ModelFiles {
    /// Opens a folder in Hugging Face layout, a `.gguf` file, or a Hub id `org/name[@revision]`.
    ///
    /// # Errors
    /// [`Error::UnknownSource`], [`Error::MissingFile`], [`Error::NotCached`], and those of [`Checkpoint`] and
    /// [`Tokenizer`].
    pub fn open(spec: &str) -> Result<Self> {
        let path = Path::new(spec);
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
            return super::gguf::open(path);
        }
        Self::from_folder(&Folder::open(spec)?)
    }

    /// Reads the files of a folder in Hugging Face layout.
    ///
    /// # Errors
    /// As [`ModelFiles::open`].
    pub fn from_folder(folder: &Folder) -> Result<Self> {
        let config = folder.read_json("config.json")?.ok_or_else(|| folder.missing("config.json"))?;
        let generation_config = folder.read_json("generation_config.json")?;
        let tokenizer_config = folder.read_json("tokenizer_config.json")?;
        let json = folder.read("tokenizer.json")?.ok_or_else(|| folder.missing("tokenizer.json"))?;
        let file = folder.shown("tokenizer.json");
        let tokenizer = Tokenizer::from_json(&file, &json, tokenizer_config.as_ref(), &config)?;
        let names = weight_files(folder)?;
        let checkpoint = folder.checkpoints(&names.iter().map(String::as_str).collect::<Vec<_>>())?;
        Self::from_parts(folder.spec().to_string(), config, generation_config, checkpoint, tokenizer)
    }

    /// The ids of tokens that end a text: the tokenizer's own, and those that `generation_config.json` lists (chat models
    /// end a turn with another one).
    pub fn end_tokens(&self) -> Vec<u32> {
        let listed = self.generation_config.as_ref().and_then(|config| config.get("eos_token_id"));
        let listed: Vec<&Value> = match listed {
            Some(Value::Array(list)) => list.iter().collect(),
            Some(id) => vec![id],
            None => Vec::new(),
        };
        let listed = listed.into_iter().filter_map(|id| u32::try_from(id.as_u64()?).ok());
        let all: BTreeSet<u32> = self.tokenizer.eos().into_iter().chain(listed).collect();
        all.into_iter().collect()
    }

    /// From parts in Hugging Face layout. Checkpoints of the base model alone (as GPT-2's on the Hub) and text parts of
    /// larger models get the names that the language model has.
    ///
    /// # Errors
    /// [`Error::DuplicateTensor`] when the names collide.
    pub fn from_parts(
        source: String,
        config: Value,
        generation_config: Option<Value>,
        checkpoint: Checkpoint,
        tokenizer: Tokenizer,
    ) -> Result<Self> {
        let config = text_config(config);
        let checkpoint = language_model_names(checkpoint)?;
        Ok(Self { source, config, generation_config, checkpoint, tokenizer })
    }
}

/// The names of the weight files: the shards of the index, else `model.safetensors`, else every safetensors file.
fn weight_files(folder: &Folder) -> Result<Vec<String>> {
    const INDEX: &str = "model.safetensors.index.json";
    if let Some(index) = folder.read_json(INDEX)? {
        let map = index.get("weight_map").and_then(Value::as_object).ok_or_else(|| Error::Damaged {
            file: folder.shown(INDEX),
            format: "index",
            reason: "it has no `weight_map`".into(),
        })?;
        let shards: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
        return Ok(shards.into_iter().map(str::to_string).collect());
    }
    let listed = folder.list()?;
    if listed.iter().any(|name| name == "model.safetensors") {
        return Ok(vec!["model.safetensors".to_string()]);
    }
    let others: Vec<_> = listed.into_iter().filter(|n| n.ends_with(".safetensors") && !n.contains('/')).collect();
    // Nothing at hand: a Hub repository may still have the usual file, and the error names it otherwise.
    Ok(if others.is_empty() { vec!["model.safetensors".to_string()] } else { others })
}

/// The text part of a config, with the outer fields that it lacks.
fn text_config(mut config: Value) -> Value {
    let Some(Value::Object(mut text)) = config.get_mut("text_config").map(Value::take) else { return config };
    if let Value::Object(outer) = config {
        for (key, value) in outer {
            if key != "text_config" && key != "vision_config" && key != "architectures" {
                text.entry(key).or_insert(value);
            }
        }
    }
    Value::Object(text)
}

fn language_model_names(checkpoint: Checkpoint) -> Result<Checkpoint> {
    let has = |prefix: &str| checkpoint.names().any(|name| name.starts_with(prefix));
    if has("language_model.model.") {
        return checkpoint.renamed(|name| name.strip_prefix("language_model.").map(str::to_string));
    }
    if has("model.language_model.") {
        return checkpoint.renamed(|name| match name.strip_prefix("model.language_model.") {
            Some(rest) => Some(format!("model.{rest}")),
            None => (!name.starts_with("model.")).then(|| name.to_string()),
        });
    }
    if has("layers.0.") && checkpoint.contains("embed_tokens.weight") {
        let is_outer = |name: &str| name.starts_with("lm_head.");
        return checkpoint.renamed(|name| Some(if is_outer(name) { name.to_owned() } else { format!("model.{name}") }));
    }
    if has("h.0.") && checkpoint.contains("wte.weight") {
        return checkpoint.renamed(|name| Some(format!("transformer.{name}")));
    }
    Ok(checkpoint)
}
