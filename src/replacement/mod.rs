//! `replacement`: the base model with its MLPs cut out and transcoders put in. What a run of the model leaves behind
//! that makes it linear ([`Run`]), and the linear model of one prompt ([`LinearModel`], with its VJP and JVP).
//! Ameisen et al. 2025, "Building an Attribution Graph".

mod hops;
mod linear_model;
mod memory;
mod open_positions;
mod place_effects;
mod pull_back;
mod push_forward;
mod push_up;
mod run;
mod sources;

pub use hops::Place;
pub use linear_model::{ActiveFeature, ActiveFeatures, LinearModel};
pub use open_positions::{OpenPositions, spans};
pub use place_effects::{PlaceEffects, Prepared};
pub use pull_back::{AtHeads, TargetBatch, TargetSite};
pub use push_forward::{ChangeSite, PushedForward};
pub use push_up::PushUp;
pub use run::{LinearWeights, Run};
pub use sources::{Origin, Sources};

use candle_core::Device;

use crate::error::{ErrorContext, Result};
use crate::hash::{START, fnv1a};
use crate::model::{HookPoint, Model};
use crate::transcoder::{InputHook, OutputHook, TranscoderSet};
use crate::weights::{Folder, ModelFiles, Tokenizer};

/// First tokens of a chat prompt of the gemma-3-it models; all of them are excluded (definitions 3).
const GEMMA3_IT_START: [u32; 4] = [2, 105, 2364, 107];

/// A base model and its transcoders.
#[derive(Debug)]
pub struct Replacement {
    /// The base model.
    pub model: Model,
    /// One transcoder a layer.
    pub transcoders: TranscoderSet,
    /// The base model's tokenizer.
    pub tokenizer: Tokenizer,
    /// Tokens that end a text.
    pub end_tokens: Vec<u32>,
    /// Where the base model came from, as the user named it.
    pub source: String,
    /// Where the transcoders came from, as the user named them.
    pub transcoder_source: String,
}

impl Replacement {
    /// Opens transcoders for a base model; reads no large tensor yet.
    ///
    /// # Errors
    /// Those of [`Model::open`] and [`crate::transcoder::open`].
    pub fn open(files: ModelFiles, transcoders: &Folder, device: &Device) -> Result<Self> {
        let end_tokens = files.end_tokens();
        let model = Model::open(&files.config, files.checkpoint, device)?;
        let (n_layers, d_model) = (model.config.n_layers, model.config.d_model);
        let transcoder_source = transcoders.spec().to_owned();
        let transcoders = crate::transcoder::open(transcoders, n_layers, d_model, device)
            .context(|| format!("cannot use the transcoders in `{}`", transcoders.spec()))?;
        Ok(Self { model, transcoders, tokenizer: files.tokenizer, end_tokens, source: files.source, transcoder_source })
    }

    /// A hash of the weights of the model and of the transcoders: of some of each tensor's values
    /// ([`Checkpoint::fingerprint`](crate::weights::Checkpoint::fingerprint)).
    ///
    /// # Errors
    /// Those of reading.
    pub fn fingerprint(&self) -> Result<u64> {
        let mut hash = fnv1a(START, self.model.fingerprint()?.to_le_bytes());
        for transcoder in &self.transcoders.layers {
            hash = fnv1a(hash, transcoder.fingerprint()?.to_le_bytes());
        }
        Ok(hash)
    }

    /// How many positions at the start have no features and no errors: the BOS token, or of a gemma-3-it chat its
    /// whole preamble, as far as the prompt has it.
    pub fn n_excluded(&self, tokens: &[u32]) -> usize {
        n_excluded(&[&self.transcoders.model_name, &self.source], tokens)
    }

    /// Where the transcoder of a layer reads.
    pub fn input_point(&self, layer: usize) -> HookPoint {
        input_point(self.transcoders.input_hook, layer)
    }

    /// Where the transcoder of a layer writes.
    pub fn output_point(&self, layer: usize) -> HookPoint {
        output_point(self.transcoders.output_hook, layer)
    }
}

/// Where a transcoder with this hook reads.
pub(crate) fn input_point(hook: InputHook, layer: usize) -> HookPoint {
    match hook {
        InputHook::ResidMid => HookPoint::ResidMid(layer),
        InputHook::Normalized => HookPoint::Ln2Normalized(layer),
        InputHook::MlpIn => HookPoint::MlpIn(layer),
    }
}

/// Where a transcoder with this hook writes.
pub(crate) fn output_point(hook: OutputHook, layer: usize) -> HookPoint {
    match hook {
        OutputHook::MlpOut => HookPoint::MlpOut(layer),
        OutputHook::HookMlpOut => HookPoint::HookMlpOut(layer),
    }
}

/// [`Replacement::n_excluded`], for a model of one of these names.
pub(crate) fn n_excluded(names: &[&str], tokens: &[u32]) -> usize {
    let is_chat_model = |name: &&str| name.contains("gemma-3") && name.ends_with("-it");
    let n_preamble = match names.iter().any(is_chat_model) {
        true => tokens.iter().zip(GEMMA3_IT_START).take_while(|&(&token, start)| token == start).count(),
        false => 0,
    };
    n_preamble.max(1).min(tokens.len())
}
