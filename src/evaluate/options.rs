//! What is measured on, and how much of it.

use serde::{Deserialize, Serialize};

use crate::corpus::{Part, Sequence, TextFormat};
use crate::error::{Error, Result};
use crate::features::sequence_hash;
use crate::replacement::Replacement;

/// Prompts shorter than this say little about graphs.
const MIN_PROMPT_TOKENS: usize = 4;

/// The text to measure on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextOptions {
    /// How files are read.
    pub format: TextFormat,
    /// All documents, and not only those that training leaves out.
    pub all_text: bool,
    /// Tokens of a sequence at most, the one that begins it included.
    pub context: usize,
    /// Stop after about so many tokens.
    pub max_tokens: Option<u64>,
}

impl Default for TextOptions {
    fn default() -> Self {
        Self { format: TextFormat::default(), all_text: false, context: 128, max_tokens: None }
    }
}

impl TextOptions {
    /// # Errors
    /// [`Error::Setting`], [`Error::PromptTooLong`].
    pub(super) fn check(&self, replacement: &Replacement) -> Result<()> {
        let (context, n_ctx) = (self.context, replacement.model.config.n_ctx);
        if context < 2 {
            return Err(Error::Setting { name: "context", value: context as f64, range: "2.." });
        }
        if context > n_ctx {
            return Err(Error::PromptTooLong { n_pos: context, n_ctx });
        }
        Ok(())
    }

    pub(super) fn part(&self) -> Part {
        if self.all_text { Part::Whole } else { Part::HeldOut }
    }
}

/// How to measure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluateOptions {
    /// What text.
    pub text: TextOptions,
    /// Tokens, from the beginning of the text, that the model reads with all MLPs replaced; 0 leaves this out.
    pub replaced_tokens: usize,
    /// Of these, tokens that it reads with one layer's replaced, for every layer; 0 leaves this out.
    pub layer_tokens: usize,
    /// Prompts whose graphs are scored; 0 leaves graphs out.
    pub prompts: usize,
    /// Tokens of a prompt; sequences that are not longer are cut somewhere, told by a hash.
    pub prompt_tokens: usize,
    /// Prompts of these whose features are ablated too.
    pub ablation_prompts: usize,
    /// Features of each that are ablated, one by one.
    pub ablated: usize,
}

impl Default for EvaluateOptions {
    fn default() -> Self {
        Self {
            text: TextOptions::default(),
            replaced_tokens: 8192,
            layer_tokens: 1024,
            prompts: 64,
            prompt_tokens: 32,
            ablation_prompts: 8,
            ablated: 32,
        }
    }
}

impl EvaluateOptions {
    /// # Errors
    /// [`Error::Setting`], [`Error::PromptTooLong`].
    pub(super) fn check(&self, replacement: &Replacement) -> Result<()> {
        self.text.check(replacement)?;
        if self.prompts > 0 && !(MIN_PROMPT_TOKENS..=self.text.context).contains(&self.prompt_tokens) {
            let value = self.prompt_tokens as f64;
            return Err(Error::Setting { name: "prompt_tokens", value, range: "4 up to the context" });
        }
        Ok(())
    }
}

/// What was measured on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeasuredText {
    /// The names of the files, without folders.
    pub files: Vec<String>,
    /// A hash of all sequences, whatever their order.
    pub hash: String,
    /// Tokens of all sequences, those that begin them included.
    pub n_tokens: u64,
    /// Positions that have features: all but the first, or more of some chats, of each sequence.
    pub n_positions: u64,
    /// Sequences.
    pub n_sequences: u64,
    /// Documents that were read.
    pub n_documents: u64,
}

/// What of the text is read again.
pub(super) struct Kept<'a> {
    options: &'a EvaluateOptions,
    /// The first ones, with as many tokens as are to be replaced.
    pub sequences: Vec<Sequence>,
    n_tokens: usize,
    last_document: Option<u32>,
    /// Beginnings of documents, and of their later sequences.
    beginnings: Vec<Vec<u32>>,
    others: Vec<Vec<u32>>,
}

impl<'a> Kept<'a> {
    pub fn new(options: &'a EvaluateOptions) -> Self {
        let (beginnings, others) = (Vec::new(), Vec::new());
        Self { options, sequences: Vec::new(), n_tokens: 0, last_document: None, beginnings, others }
    }

    pub fn add(&mut self, sequence: &Sequence) {
        if self.n_tokens < self.options.replaced_tokens.max(self.options.layer_tokens) {
            self.n_tokens += sequence.tokens.len();
            self.sequences.push(sequence.clone());
        }
        let begins = self.last_document != Some(sequence.document);
        self.last_document = Some(sequence.document);
        let prompts = if begins { &mut self.beginnings } else { &mut self.others };
        let (len, wanted) = (sequence.tokens.len(), self.options.prompt_tokens);
        if prompts.len() < self.options.prompts && len > MIN_PROMPT_TOKENS {
            // What follows a prompt is a token of the text, and not always its last, which is easily told.
            let hash = sequence_hash(sequence.tokens.iter().copied());
            let n = match len > wanted {
                true => wanted,
                false => MIN_PROMPT_TOKENS + (hash % (len - MIN_PROMPT_TOKENS) as u64) as usize,
            };
            prompts.push(sequence.tokens[..n].to_vec());
        }
    }

    /// The beginnings of documents; where these are too few, of their later sequences too.
    pub fn prompts(self) -> Vec<Vec<u32>> {
        self.beginnings.into_iter().chain(self.others).take(self.options.prompts).collect()
    }
}
