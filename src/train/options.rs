//! What is asked of training.

use serde::{Deserialize, Serialize};

use crate::corpus::TextFormat;
use crate::error::{Error, Result};

/// How features become active.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// Where its pre-activation is above a threshold of its own. Trained by keeping the largest of every batch; the
    /// thresholds are set at the end so that the wanted number is active.
    #[default]
    JumpRelu,
    /// As many as wanted at every token.
    TopK,
    /// Wherever its pre-activation is positive; what activations add is kept short by the loss.
    Relu,
}

impl std::str::FromStr for Activation {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "jumprelu" => Ok(Self::JumpRelu),
            "topk" => Ok(Self::TopK),
            "relu" => Ok(Self::Relu),
            _ => Err(Error::Spec { text: text.to_owned(), expected: "jumprelu, topk or relu" }),
        }
    }
}

/// How a dictionary is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FolderFormat {
    /// `config.yaml` and a file a layer, as circuit-tracer reads.
    #[default]
    CircuitTracer,
    /// A folder a layer with `cfg.json` and `sae_weights.safetensors`, as SAELens reads.
    SaeLens,
}

impl std::str::FromStr for FolderFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "circuit-tracer" => Ok(Self::CircuitTracer),
            "sae-lens" => Ok(Self::SaeLens),
            _ => Err(Error::Spec { text: text.to_owned(), expected: "circuit-tracer or sae-lens" }),
        }
    }
}

/// Numbers that weights are written in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Rounded to 16 bits.
    #[default]
    Bf16,
    /// As they were trained.
    F32,
}

impl std::str::FromStr for Precision {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "bf16" => Ok(Self::Bf16),
            "f32" => Ok(Self::F32),
            _ => Err(Error::Spec { text: text.to_owned(), expected: "bf16 or f32" }),
        }
    }
}

/// A dictionary to train: sizes of one set.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SetSize {
    /// Features of each layer.
    pub n_features: usize,
    /// Active features a token and layer.
    pub l0: f64,
}

/// How to train.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainOptions {
    /// The sets, trained from the same passes of the model.
    pub sets: Vec<SetSize>,
    /// How features become active.
    pub activation: Activation,
    /// Whether there is a linear path past the features.
    pub skip: bool,
    /// Whether features write to all layers from their own upwards (CLT).
    pub cross_layer: bool,
    /// Tokens to read of the text, some several times where it is shorter; all of it once where neither this nor
    /// `minutes` is given.
    pub n_tokens: Option<u64>,
    /// Minutes to train for at most; the schedule fits into them.
    pub minutes: Option<f64>,
    /// How often each token's activations are used.
    pub replay: usize,
    /// Tokens of a step.
    pub batch: usize,
    /// Tokens of a sequence.
    pub context: usize,
    /// Step size; `None` for one that fits the number of features.
    pub lr: Option<f64>,
    /// Bytes for activations in memory.
    pub memory: u64,
    /// Products in f32 also where the processor has faster ones in bf16.
    pub exact: bool,
    /// Seed of what is random.
    pub seed: u64,
    /// Tokens without an activation after which a feature is asked to explain errors.
    pub dead_window: u64,
    /// Seconds between two checkpoints.
    pub keep_every_secs: f64,
    /// How files are read.
    pub format: TextFormat,
    /// How the sets are written.
    pub folder: FolderFormat,
    /// In which numbers.
    pub precision: Precision,
    /// The name of the sets in viewers.
    pub name: String,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            sets: vec![SetSize { n_features: 2048, l0: 32.0 }],
            activation: Activation::default(),
            skip: false,
            cross_layer: false,
            n_tokens: None,
            minutes: None,
            replay: 3,
            batch: 2048,
            context: 128,
            lr: None,
            memory: 4 << 30,
            exact: false,
            seed: 0,
            dead_window: 75_000,
            keep_every_secs: 300.0,
            format: TextFormat::default(),
            folder: FolderFormat::default(),
            precision: Precision::default(),
            name: String::new(),
        }
    }
}

/// The step size of 2,048 features, and how it falls with more.
const LR_OF_2048: f64 = 7e-4;

impl TrainOptions {
    /// The step size for a number of features: in proportion to 1/√features, as sparsify's rule.
    pub(super) fn step_size(&self, n_features: usize) -> f64 {
        self.lr.unwrap_or_else(|| LR_OF_2048 * (2048.0 / n_features as f64).sqrt().min(2.0))
    }

    /// Checks what can be checked without a model.
    ///
    /// # Errors
    /// [`Error::Train`]
    pub fn check(&self) -> Result<()> {
        let refuse = |problem: String| Err(Error::Train { problem });
        for set in &self.sets {
            if set.n_features == 0 || set.n_features > MAX_FEATURES {
                return refuse(format!("{} features a layer, expected 1 to {MAX_FEATURES}", set.n_features));
            }
            if !(set.l0 > 0.0 && set.l0 <= set.n_features as f64 / 2.0) {
                return refuse(format!(
                    "an L0 of {} with {} features a layer, expected above 0 and at most half of the features",
                    set.l0, set.n_features
                ));
            }
            if self.activation == Activation::TopK && set.l0.fract() != 0.0 {
                return refuse(format!("an L0 of {} with topk, which keeps a whole number", set.l0));
            }
        }
        if self.sets.is_empty() {
            return refuse("no features are asked for".into());
        }
        let at_least = |what: &str, value: usize, least: usize, most: usize| match (least..=most).contains(&value) {
            true => Ok(()),
            false => Err(Error::Train { problem: format!("{what} of {value}, expected {least} to {most}") }),
        };
        at_least("a batch", self.batch, 16, 1 << 20)?;
        at_least("a replay", self.replay, 1, 1000)?;
        at_least("a context", self.context, 2, 1 << 20)?;
        if self.minutes.is_some_and(|minutes| !(minutes > 0.0 && minutes < 1e6)) {
            return refuse(format!("{} minutes, expected more than 0", self.minutes.unwrap_or_default()));
        }
        if self.lr.is_some_and(|lr| !(lr > 0.0 && lr < 1.0)) {
            return refuse(format!("a step size of {}, expected above 0 and below 1", self.lr.unwrap_or_default()));
        }
        if self.n_tokens == Some(0) {
            return refuse("0 tokens, expected at least a batch".into());
        }
        if self.cross_layer && self.skip {
            return refuse("a skip connection for cross-layer transcoders, which have none".into());
        }
        if self.folder == FolderFormat::SaeLens && (self.cross_layer || self.activation == Activation::TopK) {
            let what = if self.cross_layer { "cross-layer transcoders" } else { "transcoders with topk" };
            return refuse(format!("{what} in SAELens's files, which have no such thing"));
        }
        Ok(())
    }
}

/// Features of a layer at most: indices are 32 bits, and so are places in memory of a step.
const MAX_FEATURES: usize = 1 << 22;
