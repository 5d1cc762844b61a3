//! `replacement`: the host model with its MLPs cut out and transcoders put in. The one loop over layers
//! ([`Replacement::forward`]), what it freezes ([`Frozen`]), and the linear model that is left for one prompt
//! ([`LinearModel`], with its pull-back). Ameisen et al. 2025, "Building an Attribution Graph".

mod forward;
mod linear_model;
mod pull_back;
mod push_forward;
mod sources;

pub use forward::{Edit, ForwardOptions, Frozen, Hold, Keep, Pass, Unedited};
pub use linear_model::{ActiveFeature, ActiveFeatures, LinearModel};
pub use pull_back::{TargetBatch, TargetSite};
pub use push_forward::{ChangeSite, PushedForward};
pub use sources::{Origin, Sources};

use candle_core::{Device, Tensor};

use crate::error::{Doing, Error, Result};
use crate::model::{LayerConfig, Model};
use crate::transcoder::{InputHook, TranscoderSet};
use crate::weights::{Folder, HostFiles, Tokenizer};

/// First tokens of a chat prompt of the gemma-3-it models; all of them are excluded (definitions 3).
const GEMMA3_IT_START: [u32; 4] = [2, 105, 2364, 107];

/// A host model and its transcoders.
#[derive(Debug)]
pub struct Replacement {
    pub model: Model,
    pub transcoders: TranscoderSet,
    pub tokenizer: Tokenizer,
    /// Tokens that end a text.
    pub end_tokens: Vec<u32>,
    /// Where the host model came from, as the user named it.
    pub source: String,
}

impl Replacement {
    /// Opens transcoders for a host model; reads no large tensor yet.
    ///
    /// # Errors
    /// Those of [`Model::open`] and [`crate::transcoder::open`].
    pub fn open(host: HostFiles, transcoders: &Folder, device: &Device) -> Result<Self> {
        let end_tokens = host.end_tokens();
        let model = Model::open(&host.config, host.checkpoint, device)?;
        let (n_layers, d_model) = (model.config.n_layers, model.config.d_model);
        let transcoders = crate::transcoder::open(transcoders, n_layers, d_model, device)
            .doing(|| format!("cannot use the transcoders in `{}`", transcoders.spec()))?;
        Ok(Self { model, transcoders, tokenizer: host.tokenizer, end_tokens, source: host.source })
    }

    /// Checks a prompt against the model.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`], [`Error::PromptTooLong`], [`Error::TokenOutOfRange`].
    pub fn check_tokens(&self, tokens: &[u32]) -> Result<()> {
        let config = &self.model.config;
        if tokens.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if tokens.len() > config.n_ctx {
            return Err(Error::PromptTooLong { n_pos: tokens.len(), n_ctx: config.n_ctx });
        }
        match tokens.iter().find(|&&t| t as usize >= config.d_vocab) {
            Some(&token) => Err(Error::TokenOutOfRange { token, d_vocab: config.d_vocab }),
            None => Ok(()),
        }
    }

    /// How many positions at the start have no features and no errors: the BOS token, or of a gemma-3-it chat its
    /// whole preamble, as far as the prompt has it.
    pub fn n_excluded(&self, tokens: &[u32]) -> usize {
        let is_chat_model = |name: &str| name.contains("gemma-3") && name.ends_with("-it");
        let n_preamble = match is_chat_model(&self.transcoders.model_name) || is_chat_model(&self.source) {
            true => tokens.iter().zip(GEMMA3_IT_START).take_while(|&(&token, start)| token == start).count(),
            false => 0,
        };
        n_preamble.max(1).min(tokens.len())
    }

    fn layer_config(&self, layer: usize) -> LayerConfig {
        self.model.config.layers[layer]
    }

    /// The tensor at the input hook, out of the three that a layer has there.
    fn at_input_hook(&self, resid_mid: &Tensor, normalized: &Tensor, mlp_in: &Tensor) -> Tensor {
        match self.transcoders.input_hook {
            InputHook::ResidMid => resid_mid.clone(),
            InputHook::Normalized => normalized.clone(),
            InputHook::MlpIn => mlp_in.clone(),
        }
    }
}
