//! What a [`Tracer`](super::Tracer) is opened from.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use candle_core::Device;

use super::{Prompt, TokenizedPrompt};
use crate::error::{Error, Result};
use crate::graph::Head;
use crate::heads::{HeadPattern, HeadScore, HeadScoreOptions, head_patterns, head_scores};
use crate::job::Job;
use crate::model::Model;
use crate::ops::{built_with_cuda, device_name, open_cuda};
use crate::weights::{ATLAS, Folder, ModelFiles, Tokenizer, atlas_model, atlas_transcoders};

/// A base model, transcoders for it, and where to compute.
///
/// ```
/// use circuitscope::{DeviceChoice, Setup};
///
/// let atlas = Setup::atlas();
/// let llama = Setup::new("meta-llama/Llama-3.2-1B", "mntss/transcoder-Llama-3.2-1B").device(DeviceChoice::Cpu);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Setup {
    model: String,
    transcoders: Option<String>,
    device: DeviceChoice,
    labels: Option<PathBuf>,
}

impl Setup {
    /// The small model with transcoders that is part of the program.
    pub fn atlas() -> Self {
        Self { model: ATLAS.into(), transcoders: None, device: DeviceChoice::default(), labels: None }
    }

    /// A model (a folder in Hugging Face layout, a `.gguf` file, a Hub id `org/name[@revision]`, or `atlas`) and
    /// transcoders (a folder with a `config.yaml`, a Hub id, or `hf://org/name/folder`).
    pub fn new(model: impl Into<String>, transcoders: impl Into<String>) -> Self {
        Self { model: model.into(), transcoders: Some(transcoders.into()), ..Self::atlas() }
    }

    /// A model by name, and transcoders where they are named: only `atlas` has some of its own.
    ///
    /// # Errors
    /// [`Error::NeedsTranscoders`] for another model without transcoders.
    pub fn from_names(model: &str, transcoders: Option<&str>) -> Result<Self> {
        match transcoders {
            Some(transcoders) => Ok(Self::new(model, transcoders)),
            None if model == ATLAS => Ok(Self::atlas()),
            None => Err(Error::NeedsTranscoders { model: model.into() }),
        }
    }

    /// Where to compute; [`DeviceChoice::Auto`] unless this is called.
    pub fn device(self, device: DeviceChoice) -> Self {
        Self { device, ..self }
    }

    /// Names of features, from a `feature_labels.json` other than the one beside the transcoders.
    pub fn labels(self, file: impl Into<PathBuf>) -> Self {
        Self { labels: Some(file.into()), ..self }
    }

    /// Opens the files of the model and of its transcoders; reads no large tensor yet.
    pub(super) fn open_files(&self) -> Result<(ModelFiles, Folder)> {
        let model = model_files(&self.model)?;
        let transcoders = match &self.transcoders {
            Some(transcoders) => Folder::open(transcoders)?,
            None => atlas_transcoders(),
        };
        Ok((model, transcoders))
    }

    pub(super) fn label_file(&self) -> Option<&PathBuf> {
        self.labels.as_ref()
    }

    pub(super) fn device_choice(&self) -> DeviceChoice {
        self.device
    }
}

/// A base model without transcoders, as training takes it.
#[derive(Debug)]
pub struct BaseModel {
    /// The model.
    pub model: Model,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// How it was named.
    pub source: String,
    /// What was chosen to compute on, in builds that have a choice.
    pub device_note: Option<String>,
}

impl BaseModel {
    /// Opens a model: `atlas`, a folder, a `.gguf` file or a Hub id.
    ///
    /// # Errors
    /// Files that are missing, damaged or do not belong together; a device that cannot be used.
    pub fn open(name: &str, device: DeviceChoice) -> Result<Self> {
        let (device, device_note) = device.open()?;
        let files = model_files(name)?;
        let model = Model::open(&files.config, files.checkpoint, &device)?;
        Ok(Self { model, tokenizer: files.tokenizer, source: files.source, device_note })
    }

    /// What every head does on random tokens.
    ///
    /// # Errors
    /// As [`head_scores`].
    pub fn head_scores(&self, options: &HeadScoreOptions, job: &Job) -> Result<Vec<HeadScore>> {
        head_scores(&self.model, &self.tokenizer, options, job)
    }

    /// Where heads look in a prompt.
    ///
    /// # Errors
    /// As [`head_patterns`], and of a prompt that does not fit the model.
    pub fn head_patterns(
        &self,
        prompt: impl Into<Prompt>,
        heads: &[Head],
        job: &Job,
    ) -> Result<(TokenizedPrompt, Vec<HeadPattern>)> {
        let prompt = tokenized(&self.model, &self.tokenizer, prompt.into())?;
        let found = head_patterns(&self.model, &prompt.tokens, heads, job)?;
        Ok((prompt, found))
    }
}

/// A prompt as its tokens.
///
/// # Errors
/// Text that cannot be split, ids of no token, more of them than the model has positions.
pub(super) fn tokenized(model: &Model, tokenizer: &Tokenizer, prompt: Prompt) -> Result<TokenizedPrompt> {
    let prompt = match prompt {
        Prompt::Tokenized(prompt) => prompt,
        Prompt::Text(text) => TokenizedPrompt { tokens: tokenizer.encode_prompt(&text)?, text },
        Prompt::Tokens(tokens) => {
            // Ids of no token have no text either.
            model.check_tokens(&tokens)?;
            TokenizedPrompt { text: tokenizer.decode(&tokens), tokens }
        }
    };
    model.check_tokens(&prompt.tokens)?;
    Ok(prompt)
}

fn model_files(name: &str) -> Result<ModelFiles> {
    if name == ATLAS { atlas_model() } else { ModelFiles::open(name) }
}

/// Where to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU, if this build can use one and it works; else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
}

impl DeviceChoice {
    /// Opens the device. The second value says in words what was chosen, in builds that have a choice.
    ///
    /// # Errors
    /// [`Error::Device`] for a GPU that was asked for and cannot be used.
    pub(super) fn open(self) -> Result<(Device, Option<String>)> {
        let cuda = |ordinal: usize| {
            // Behind the message may come where in the program it was made.
            let message = |e: candle_core::Error| e.to_string().lines().next().unwrap_or_default().to_owned();
            let failed = |e: candle_core::Error| Error::Device { name: self.to_string(), reason: message(e) };
            open_cuda(ordinal).map_err(failed)
        };
        if !built_with_cuda() {
            return match self {
                DeviceChoice::Auto | DeviceChoice::Cpu => Ok((Device::Cpu, None)),
                DeviceChoice::Cuda(ordinal) => Ok((cuda(ordinal)?, None)),
            };
        }
        let (device, why) = match self {
            DeviceChoice::Cpu => (Device::Cpu, None),
            DeviceChoice::Cuda(ordinal) => (cuda(ordinal)?, None),
            DeviceChoice::Auto => match cuda(0) {
                Ok(device) => (device, None),
                Err(error) => (Device::Cpu, Some(error)),
            },
        };
        let chosen = format!("computing on {}", device_name(&device)?);
        Ok((device, Some(why.map_or(chosen.clone(), |why| format!("{why}\n{chosen}")))))
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => write!(f, "auto"),
            DeviceChoice::Cpu => write!(f, "cpu"),
            DeviceChoice::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = Error;

    /// `auto`, `cpu`, `cuda` (the first GPU) or `cuda:N`.
    fn from_str(text: &str) -> Result<Self> {
        match (text, text.strip_prefix("cuda:").map(str::parse)) {
            ("auto", _) => Ok(DeviceChoice::Auto),
            ("cpu", _) => Ok(DeviceChoice::Cpu),
            ("cuda", _) => Ok(DeviceChoice::Cuda(0)),
            (_, Some(Ok(ordinal))) => Ok(DeviceChoice::Cuda(ordinal)),
            _ => Err(Error::Device { name: text.into(), reason: "expected auto, cpu, cuda or cuda:N".into() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_on_the_command_line() {
        for text in ["auto", "cpu", "cuda:0", "cuda:3"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse::<DeviceChoice>().unwrap(), DeviceChoice::Cuda(0));
        for text in ["", "gpu", "cuda:", "cuda:x", "CPU"] {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn only_the_embedded_model_has_transcoders_of_its_own() {
        assert_eq!(Setup::from_names("atlas", None).unwrap(), Setup::atlas());
        assert!(matches!(Setup::from_names("other", None), Err(Error::NeedsTranscoders { .. })));
    }
}
