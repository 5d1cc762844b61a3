//! `transcoder`: sparse, readable features in place of an MLP (definitions 2; Dunefsky et al. 2024). It knows
//! nothing of the base model beyond its sizes.
//!
//! In: a folder of transcoders. Out: the active features of a tensor of inputs ([`Transcoder::encode`]) and the
//! decoder rows of chosen features.

mod activation;
mod layer;
mod open;
mod probe;

pub use activation::{ActivationFunction, Candidate};
pub use layer::{EncodedLayer, EncoderRows, Transcoder};
pub use open::open;
pub use probe::FeatureProbe;

use crate::error::{Error, Result};
use crate::labels::Labels;

/// Where the transcoder reads the residual stream (`feature_input_hook`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputHook {
    /// `hook_resid_mid`: before the MLP's norm.
    ResidMid,
    /// `ln2.hook_normalized`: divided by the norm's denominator, before the gain.
    Normalized,
    /// `mlp.hook_in`: the MLP's input.
    MlpIn,
}

/// Where the transcoder's output is compared and added (`feature_output_hook`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputHook {
    /// `mlp.hook_out`: the MLP's output, before any post-norm.
    MlpOut,
    /// `hook_mlp_out`: what is added to the residual stream.
    HookMlpOut,
}

impl InputHook {
    /// The names in `config.yaml`.
    pub const NAMES: [&str; 3] = ["hook_resid_mid", "ln2.hook_normalized", "mlp.hook_in"];

    /// # Errors
    /// [`Error::UnknownHook`]
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "hook_resid_mid" => Ok(Self::ResidMid),
            "ln2.hook_normalized" => Ok(Self::Normalized),
            "mlp.hook_in" => Ok(Self::MlpIn),
            _ => Err(Error::UnknownHook { key: "feature_input_hook", name: name.into(), known: Self::NAMES.to_vec() }),
        }
    }

    /// The name in `config.yaml`.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

impl OutputHook {
    /// The names in `config.yaml`.
    pub const NAMES: [&str; 2] = ["mlp.hook_out", "hook_mlp_out"];

    /// # Errors
    /// [`Error::UnknownHook`]
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "mlp.hook_out" => Ok(Self::MlpOut),
            "hook_mlp_out" => Ok(Self::HookMlpOut),
            _ => Err(Error::UnknownHook { key: "feature_output_hook", name: name.into(), known: Self::NAMES.to_vec() }),
        }
    }

    /// The name in `config.yaml`.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

/// Whether a feature writes to its own layer's MLP output, or to that of every later layer too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Per-layer transcoder (PLT): to its own layer's.
    PerLayer,
    /// Cross-layer transcoder (CLT): to that of every later layer too.
    CrossLayer,
}

/// Transcoders for every layer of one base model.
#[derive(Debug)]
pub struct TranscoderSet {
    /// Where features write.
    pub kind: Kind,
    /// The model these were trained on, as `config.yaml` names it.
    pub model_name: String,
    /// Names the set in viewers.
    pub scan: String,
    /// What features read.
    pub input_hook: InputHook,
    /// What features are added to.
    pub output_hook: OutputHook,
    /// One a layer.
    pub layers: Vec<Transcoder>,
    /// Readable names of features; empty when there is no label file.
    pub labels: Labels,
}

impl TranscoderSet {
    /// Features of each layer. `[n_layers]`
    pub fn n_features(&self) -> Vec<usize> {
        self.layers.iter().map(Transcoder::n_features).collect()
    }

    /// How many layers a feature of `layer` writes to: 1, or all from its own upwards.
    pub(crate) fn n_written(&self, layer: usize) -> usize {
        match self.kind {
            Kind::PerLayer => 1,
            Kind::CrossLayer => self.layers.len() - layer,
        }
    }

    /// Checks that a feature exists.
    ///
    /// # Errors
    /// [`Error::NoSuchLayer`], [`Error::NoSuchFeature`]
    pub(crate) fn check_feature(&self, layer: usize, feature: usize) -> Result<()> {
        let Some(transcoder) = self.layers.get(layer) else {
            return Err(Error::NoSuchLayer { layer, n_layers: self.layers.len() });
        };
        let n_features = transcoder.n_features();
        if feature < n_features {
            return Ok(());
        }
        Err(Error::NoSuchFeature { layer, feature, n_layers: self.layers.len(), n_features })
    }
}
