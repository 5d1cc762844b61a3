//! The two vocabulary matrices: read in chunks of rows, never whole, since they are the largest tensors of most
//! models.

use candle_core::{D, DType, Tensor};

use super::Model;
use super::config::Naming;
use super::finite::check_values;
use crate::error::{Error, Result};

/// f32 values held at once while a vocabulary matrix is streamed: 32 MiB.
const CHUNK_VALUES: usize = 8 << 20;

impl Model {
    fn embedding_name(&self) -> String {
        match self.config.naming {
            Naming::Llama => format!("{}embed_tokens.weight", self.prefix),
            Naming::Gpt2 => format!("{}wte.weight", self.prefix),
        }
    }

    fn unembedding_name(&self) -> String {
        let untied = "lm_head.weight".to_owned();
        // Some configs leave `tie_word_embeddings` out; what the checkpoint holds decides.
        if !self.config.tied && self.checkpoint.contains(&untied) { untied } else { self.embedding_name() }
    }

    /// Token embeddings as they enter the residual stream (Gemma: times √d_model), without position embeddings.
    ///
    /// # Shapes
    /// Returns `[tokens.len(), d_model]`.
    ///
    /// # Errors
    /// [`Error::TokenOutOfRange`]; those of reading.
    pub fn embed(&self, tokens: &[u32]) -> Result<Tensor> {
        let rows: Vec<usize> = tokens.iter().map(|&t| t as usize).collect();
        if let Some(&token) = tokens.iter().find(|&&t| t as usize >= self.config.d_vocab) {
            return Err(Error::TokenOutOfRange { token, d_vocab: self.config.d_vocab });
        }
        let rows = self.checkpoint.gather_rows(&self.embedding_name(), &rows)?;
        Ok((rows * self.config.embed_scale)?.to_device(&self.device)?)
    }

    /// Learned position embeddings of positions `start..start + n`, where the family has them. `[n, d_model]`
    ///
    /// # Errors
    /// Those of reading.
    pub(crate) fn position_embeddings(&self, start: usize, n: usize) -> Result<Option<Tensor>> {
        if !self.config.learned_positions {
            return Ok(None);
        }
        let rows = self.checkpoint.rows(&format!("{}wpe.weight", self.prefix), start..start + n)?;
        Ok(Some(rows.to_device(&self.device)?))
    }

    pub(crate) fn unembedding_chunks(&self) -> impl Iterator<Item = Result<Tensor>> {
        let name = self.unembedding_name();
        let (d_vocab, step) = (self.config.d_vocab, (CHUNK_VALUES / self.config.d_model).max(1));
        let kept = self.kept_unembedding.get();
        (0..d_vocab).step_by(step).enumerate().map(move |(at, start)| {
            if let Some(chunk) = kept.and_then(|kept| kept.get(at)) {
                return Ok(chunk.clone());
            }
            let rows = self.checkpoint.rows(&name, start..(start + step).min(d_vocab))?;
            Ok(rows.to_device(&self.device)?)
        })
    }

    /// Logits after the final softcap, from the output of the final norm. `[n, d_model]` to `[n, d_vocab]`
    ///
    /// # Errors
    /// Those of reading and of the tensor operations; [`Error::ComputedNotFinite`].
    pub fn logits(&self, final_normed: &Tensor) -> Result<Tensor> {
        let chunks: Vec<Tensor> =
            self.unembedding_chunks().map(|chunk| Ok(final_normed.matmul(&chunk?.t()?)?)).collect::<Result<_>>()?;
        self.softcap(Tensor::cat(&chunks, D::Minus1)?)
    }

    /// Logits as [`Model::logits`], and the mean row of the unembedding, in one pass over the vocabulary.
    ///
    /// # Shapes
    /// Returns `[n, d_vocab]` and `[d_model]`.
    ///
    /// # Errors
    /// Those of [`Model::logits`].
    pub(crate) fn logits_and_mean_row(&self, final_normed: &Tensor) -> Result<(Tensor, Tensor)> {
        if let Some(mean) = self.mean_row.get() {
            return Ok((self.logits(final_normed)?, mean.clone()));
        }
        let mut chunks = Vec::new();
        let mut sum: Option<Tensor> = None;
        for chunk in self.unembedding_chunks() {
            let chunk = chunk?;
            chunks.push(final_normed.matmul(&chunk.t()?)?);
            let part = chunk.sum(0)?;
            sum = Some(match sum {
                Some(sum) => (sum + part)?,
                None => part,
            });
        }
        let sum = sum.ok_or_else(|| Error::Config { key: "vocab_size".into(), problem: "is 0".into() })?;
        let mean = (sum / self.config.d_vocab as f64)?;
        // Another thread may have found the same.
        let _ = self.mean_row.set(mean.clone());
        Ok((self.softcap(Tensor::cat(&chunks, D::Minus1)?)?, mean))
    }

    /// The mean of the unembedding's rows, as [`Model::logits_and_mean_row`] gives it. `[d_model]`
    ///
    /// # Errors
    /// Those of [`Model::logits`].
    pub(crate) fn mean_row(&self) -> Result<Tensor> {
        if let Some(mean) = self.mean_row.get() {
            return Ok(mean.clone());
        }
        let nothing = Tensor::zeros((1, self.config.d_model), DType::F32, &self.device)?;
        Ok(self.logits_and_mean_row(&nothing)?.1)
    }

    /// `W_Eᵀ W_U`, the final norm's gain in it: what the embedding of a token is worth as a direction of its logit, of all
    /// tokens. `[d_model, d_model]`
    ///
    /// # Cost
    /// `2 · d_vocab · d_model²` operations.
    ///
    /// # Errors
    /// Those of reading and of the tensor operations.
    pub(crate) fn embedding_by_unembedding(&self) -> Result<Tensor> {
        let (d_vocab, step) = (self.config.d_vocab, (CHUNK_VALUES / self.config.d_model).max(1));
        let final_norm = self.final_norm()?;
        let mut sum: Option<Tensor> = None;
        for (start, unembedding) in (0..d_vocab).step_by(step).zip(self.unembedding_chunks()) {
            let rows = start..(start + step).min(d_vocab);
            let embedding = self.checkpoint.rows(&self.embedding_name(), rows)?.to_device(&self.device)?;
            let part = embedding.t()?.matmul(&final_norm.fold(&unembedding?)?)?;
            sum = Some(match sum {
                Some(sum) => (sum + part)?,
                None => part,
            });
        }
        sum.ok_or_else(|| Error::Config { key: "vocab_size".into(), problem: "is 0".into() })
    }

    /// Rows of the unembedding. `[tokens.len(), d_model]`
    ///
    /// # Errors
    /// [`Error::TokenOutOfRange`]; those of reading.
    pub fn unembedding_rows(&self, tokens: &[u32]) -> Result<Tensor> {
        if let Some(&token) = tokens.iter().find(|&&t| t as usize >= self.config.d_vocab) {
            return Err(Error::TokenOutOfRange { token, d_vocab: self.config.d_vocab });
        }
        let rows: Vec<usize> = tokens.iter().map(|&t| t as usize).collect();
        Ok(self.checkpoint.gather_rows(&self.unembedding_name(), &rows)?.to_device(&self.device)?)
    }

    fn softcap(&self, logits: Tensor) -> Result<Tensor> {
        // Before the cap, which would make an infinity a number like any other.
        check_values(|| "a logit".into(), &logits)?;
        Ok(match self.config.final_softcap {
            Some(cap) => ((logits / cap)?.tanh()? * cap)?,
            None => logits,
        })
    }
}
