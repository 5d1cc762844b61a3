//! `features.json`: what a folder of features is of, and how it was made.

use serde::{Deserialize, Serialize};

use super::exchange::Agreement;
use crate::error::{Error, Result};
use crate::hash::{START, fnv1a};
use crate::replacement::Replacement;
use crate::transcoder::Kind;

/// The version of the files that this program writes and reads.
pub const FEATURES_FORMAT_VERSION: u32 = 1;

/// `features.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FEATURES_FORMAT_VERSION`]
    pub format_version: u32,
    /// The program that wrote it.
    pub program: String,
    /// The base model and its transcoders.
    pub subject: Subject,
    /// The text that was read.
    pub text: TextSource,
    /// How it was collected.
    pub settings: Settings,
    /// Whether the files that `features merge` needs are there too.
    pub mergeable: bool,
    /// Which part of the text this is, where it is not all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<Shard>,
    /// Where they are from, if another program computed them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imported: Option<Provenance>,
}

/// Where features are from that another program computed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// The program whose files they were.
    pub from: String,
    /// How far they agree with the model here; nothing where that was not looked at.
    #[serde(default)]
    pub agreement: Option<Agreement>,
}

/// One of several parts of a text: every so many units of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Which part, from 1.
    pub index: u32,
    /// How many there are.
    pub of: u32,
}

impl std::fmt::Display for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

impl std::str::FromStr for Shard {
    type Err = Error;

    /// `2/4` is the second of four.
    fn from_str(text: &str) -> Result<Self> {
        let parsed = text.split_once('/').and_then(|(index, of)| Some((index.parse().ok()?, of.parse().ok()?)));
        match parsed {
            Some((index, of)) if index >= 1 && index <= of => Ok(Self { index, of }),
            _ => Err(Error::Spec { text: text.to_owned(), expected: "a part such as 2/4, the second of four" }),
        }
    }
}

/// Whose features these are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Subject {
    /// The base model, as it was named.
    pub model: String,
    /// A hash of some of its weights, in hexadecimal digits.
    pub model_hash: String,
    /// Tokens of its vocabulary.
    pub d_vocab: usize,
    /// The transcoder set's name in viewers.
    pub scan: String,
    /// A hash of some of its weights.
    pub transcoder_hash: String,
    /// `per_layer` or `cross_layer`.
    pub kind: String,
    /// Features of each layer. `[n_layers]`
    pub n_features: Vec<usize>,
}

/// What was read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TextSource {
    /// The files, in the order in which they were read.
    pub files: Vec<TextFile>,
    /// A hash of all sequences, whatever their order.
    pub hash: String,
    /// Tokens of all sequences, those that begin them included.
    pub n_tokens: u64,
    /// Positions whose activations were counted.
    pub n_positions: u64,
    /// Sequences.
    pub n_sequences: u64,
    /// Documents, which sequences are parts of.
    pub n_documents: u64,
}

/// One file of text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextFile {
    /// Its name, without folders.
    pub name: String,
    /// Its documents that were read.
    pub n_documents: u64,
}

/// How features were collected. Two folders can be merged where these agree.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Tokens of a sequence at most, the one that begins it included.
    pub context: usize,
    /// Strongest examples of a feature at most.
    pub n_top: usize,
    /// Examples of each interval of the activation at most.
    pub n_per_interval: usize,
    /// Activations of a feature, chosen by hash, that its tokens are counted on at most.
    pub n_sampled: usize,
    /// Chooses the samples.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { context: 128, n_top: 20, n_per_interval: 5, n_sampled: 256, seed: 0 }
    }
}

impl Settings {
    /// Sequences longer than this are of no model, and positions in them are counted in 16 bits.
    pub(super) const MAX_CONTEXT: usize = 1 << 16;
    /// More examples than anybody looks at; their numbers are stored in few bits.
    pub(super) const MAX_EXAMPLES: usize = 10_000;

    /// # Errors
    /// [`Error::Setting`]
    pub(crate) fn check(&self) -> Result<()> {
        let setting = |name, value: usize, ok: bool, range| match ok {
            true => Ok(()),
            false => Err(Error::Setting { name, value: value as f64, range }),
        };
        let (context, top) = (self.context, self.n_top);
        setting("context", context, (2..=Self::MAX_CONTEXT).contains(&context), "2..=65536")?;
        setting("examples", top, (1..=Self::MAX_EXAMPLES).contains(&top), "1..=10000")?;
        setting("per_interval", self.n_per_interval, self.n_per_interval <= Self::MAX_EXAMPLES, "0..=10000")?;
        setting("sampled", self.n_sampled, (1..=Self::MAX_EXAMPLES).contains(&self.n_sampled), "1..=10000")
    }
}

impl Subject {
    /// What is known of a model and its transcoders; reads a few rows of weights.
    ///
    /// # Errors
    /// Those of reading.
    pub fn of(replacement: &Replacement) -> Result<Self> {
        let (model, transcoders) = (&replacement.model, &replacement.transcoders);
        let mut hash = Hash::default();
        let d_vocab = model.config.d_vocab;
        let some_tokens: Vec<u32> = (0..8).map(|i| (i * (d_vocab - 1) / 7) as u32).collect();
        hash.add_all(&model.embed(&some_tokens)?.flatten_all()?.to_vec1::<f32>()?);
        hash.add_all(&model.final_norm()?.gain.flatten_all()?.to_vec1::<f32>()?);
        let model_hash = hash.text();
        let mut hash = Hash::default();
        for transcoder in &transcoders.layers {
            let n_features = transcoder.n_features();
            let biases: Vec<f32> = (0..n_features).map(|f| transcoder.b_enc(f)).collect();
            hash.add_all(&biases);
            for feature in [0, n_features / 2, n_features.saturating_sub(1)].into_iter().filter(|&f| f < n_features) {
                let row = transcoder.encoder_row(feature, &candle_core::Device::Cpu)?;
                hash.add_all(&row.to_vec1::<f32>()?);
            }
        }
        Ok(Self {
            model: replacement.source.clone(),
            model_hash,
            d_vocab,
            scan: transcoders.scan.clone(),
            transcoder_hash: hash.text(),
            kind: match transcoders.kind {
                Kind::PerLayer => "per_layer".into(),
                Kind::CrossLayer => "cross_layer".into(),
            },
            n_features: transcoders.layers.iter().map(|layer| layer.n_features()).collect(),
        })
    }

    /// Checks that these features are of the same model and set as `other`; `folder` names these in the message. Names
    /// may differ: a model can be opened from several places.
    ///
    /// # Errors
    /// [`Error::FeaturesMismatch`]
    pub fn check_same(&self, other: &Subject, folder: &str) -> Result<()> {
        self.check_same_set(other, folder)?;
        let differ = |what, features: String, here: String| {
            Err(Error::FeaturesMismatch { folder: folder.to_owned(), what, features, here })
        };
        if self.model_hash != other.model_hash || self.d_vocab != other.d_vocab {
            let named = |s: &Subject| format!("`{}` ({} tokens, weights {})", s.model, s.d_vocab, s.model_hash);
            return differ("model", named(self), named(other));
        }
        Ok(())
    }

    /// As [`Subject::check_same`], of the transcoder set alone.
    ///
    /// # Errors
    /// [`Error::FeaturesMismatch`]
    pub fn check_same_set(&self, other: &Subject, folder: &str) -> Result<()> {
        let differ = |features: String, here: String| {
            Err(Error::FeaturesMismatch { folder: folder.to_owned(), what: "transcoder set", features, here })
        };
        if self.n_features != other.n_features || self.kind != other.kind {
            return differ(self.shape(), other.shape());
        }
        if self.transcoder_hash != other.transcoder_hash {
            let named = |s: &Subject| format!("`{}` (weights {})", s.scan, s.transcoder_hash);
            return differ(named(self), named(other));
        }
        Ok(())
    }

    /// The model and the set, by name.
    pub fn named(&self) -> String {
        format!("`{}` with `{}` (weights {}, {})", self.model, self.scan, self.model_hash, self.transcoder_hash)
    }

    fn shape(&self) -> String {
        let kind = if self.kind == "cross_layer" { "cross-layer" } else { "per-layer" };
        let (layers, first) = (self.n_features.len(), self.n_features.first().copied().unwrap_or(0));
        match self.n_features.iter().all(|&n| n == first) {
            true => format!("`{}`, {kind}, {layers} layers of {first} features", self.scan),
            false => format!("`{}`, {kind}, {layers} layers of {:?} features", self.scan, self.n_features),
        }
    }
}

/// 64 bits of FNV-1a: tells files apart that were not made to deceive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hash(u64);

impl Default for Hash {
    fn default() -> Self {
        Self(START)
    }
}

impl Hash {
    pub(super) fn add(&mut self, word: u32) {
        self.0 = fnv1a(self.0, word.to_le_bytes());
    }

    fn add_all(&mut self, values: &[f32]) {
        values.iter().for_each(|value| self.add(value.to_bits()));
    }

    pub(super) fn value(self) -> u64 {
        self.0
    }

    fn text(self) -> String {
        format!("{:016x}", self.0)
    }
}
