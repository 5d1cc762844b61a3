//! The transcoder of one layer: streamed encoder, decoder rows on demand.

use candle_core::{Device, Tensor};

use super::activation::{ActivationFunction, Candidate};
use crate::error::{Error, Result};
use crate::hash::fnv1a;
use crate::ops::{SparseActivations, chunk_values, encode_active};
use crate::weights::Checkpoint;

/// Where the encoder is, and which way round.
#[derive(Clone, Debug)]
pub(super) struct Encoder {
    pub checkpoint: Checkpoint,
    pub name: String,
    /// Stored as `[d_model, d_transcoder]` (Gemma Scope).
    pub transposed: bool,
}

/// Where the decoder is.
#[derive(Clone, Debug)]
pub(super) struct Decoder {
    pub checkpoint: Checkpoint,
    pub name: String,
}

/// The transcoder of one layer. Biases are in memory; encoder and decoder stay in the file.
#[derive(Clone, Debug)]
pub struct Transcoder {
    pub(super) d_model: usize,
    pub(super) activation: ActivationFunction,
    /// `W_enc`, `[d_transcoder, d_model]`
    pub(super) encoder: Encoder,
    /// `W_dec`, `[d_transcoder, d_model]`, or `[d_transcoder, n_written, d_model]` for a cross-layer transcoder.
    pub(super) decoder: Decoder,
    /// `[d_transcoder]`
    pub(super) b_enc: Vec<f32>,
    /// `[d_model]`
    pub(super) b_dec: Tensor,
    /// `[d_model, d_model]`, applied as `x · W_skipᵀ`.
    pub(super) w_skip: Option<Tensor>,
}

/// The active features of one layer.
#[derive(Debug)]
pub struct EncodedLayer {
    /// Active features of each position, ascending by feature. `[n_pos][..]`
    pub active: Vec<Vec<Candidate>>,
    /// Encoder rows of the active features, position by position. `[n_active]`
    pub encoder_vecs: EncoderRows,
}

/// Encoder rows of active features: a feature that is active at many positions has one row for all of them.
#[derive(Clone, Debug)]
pub struct EncoderRows {
    /// `[n_different, d_model]`
    table: Tensor,
    /// `[n_active]`
    row_of: Vec<u32>,
}

impl EncoderRows {
    /// Number of active features.
    pub fn len(&self) -> usize {
        self.row_of.len()
    }

    /// Whether no feature is active.
    pub fn is_empty(&self) -> bool {
        self.row_of.is_empty()
    }

    /// The rows of some active features, by their places. `[places.len(), d_model]`
    ///
    /// # Errors
    /// Those of the tensor operations.
    ///
    /// # Panics
    /// Past the last active feature.
    pub fn select(&self, places: impl ExactSizeIterator<Item = usize>) -> Result<Tensor> {
        let n = places.len();
        let rows: Vec<u32> = places.map(|place| self.row_of[place]).collect();
        Ok(self.table.index_select(&Tensor::from_vec(rows, n, self.table.device())?, 0)?)
    }
}

impl Transcoder {
    /// A hash of the weights ([`Checkpoint::fingerprint`]).
    ///
    /// # Errors
    /// Those of reading.
    pub fn fingerprint(&self) -> Result<u64> {
        let hash = self.encoder.checkpoint.fingerprint()?;
        // Of most sets one file holds both.
        if self.decoder.checkpoint.is_same(&self.encoder.checkpoint) {
            return Ok(hash);
        }
        Ok(fnv1a(hash, self.decoder.checkpoint.fingerprint()?.to_le_bytes()))
    }

    /// Number of features.
    pub fn n_features(&self) -> usize {
        self.b_enc.len()
    }

    /// The activation function.
    pub fn activation(&self) -> &ActivationFunction {
        &self.activation
    }

    /// Encoder bias of a feature.
    pub fn b_enc(&self, feature: usize) -> f32 {
        self.b_enc[feature]
    }

    /// Decoder bias. `[d_model]`
    pub fn b_dec(&self) -> &Tensor {
        &self.b_dec
    }

    /// The skip connection, applied as `x · W_skipᵀ`. `[d_model, d_model]`
    pub fn w_skip(&self) -> Option<&Tensor> {
        self.w_skip.as_ref()
    }

    /// The skip term `x · W_skipᵀ`, where there is one. `[.., d_model]` to `[.., d_model]`
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub fn skip(&self, x: &Tensor) -> Result<Option<Tensor>> {
        let Some(w_skip) = &self.w_skip else { return Ok(None) };
        let flat = x.reshape(((), self.d_model))?.matmul(&w_skip.t()?)?;
        Ok(Some(flat.reshape(x.shape())?))
    }

    /// Encodes every position but the first `n_excluded`: `z = x · W_encᵀ + b_enc`, `a = act(z)`.
    ///
    /// The encoder is streamed in chunks, so that only active rows stay in memory.
    ///
    /// # Shapes
    /// `x` `[n_pos, d_model]`, at the input hook of this layer.
    ///
    /// # Errors
    /// Those of reading and of the tensor operations; [`Error::ComputedNotFinite`].
    pub fn encode(&self, x: &Tensor, n_excluded: usize) -> Result<EncodedLayer> {
        let n_pos = x.dim(0)?;
        let device = x.device();
        let mut active: Vec<Vec<Candidate>> = vec![Vec::new(); n_pos];
        // Features of every chunk that are active anywhere, and their rows; TopK may discard some again.
        let mut kept: Vec<u32> = Vec::new();
        let mut kept_rows: Vec<Tensor> = Vec::new();
        let x = x.narrow(0, n_excluded.min(n_pos), n_pos - n_excluded.min(n_pos))?;
        self.candidates(&x, |start, chunk, found| {
            for ((&pos, &feature), &value) in found.positions.iter().zip(&found.features).zip(&found.values) {
                let (pos, feature) = (n_excluded + pos as usize, start as u32 + feature);
                active[pos].push(Candidate { feature, value });
            }
            let mut here = found.features;
            here.sort_unstable();
            here.dedup();
            kept.extend(here.iter().map(|feature| start as u32 + feature));
            let n = here.len();
            if n > 0 {
                kept_rows.push(chunk.index_select(&Tensor::from_vec(here, n, device)?, 0)?);
            }
            Ok(())
        })?;
        active.iter_mut().for_each(|candidates| self.activation.finish(candidates));
        let encoder_vecs = self.rows_of(&active, &kept, &kept_rows, device)?;
        Ok(EncodedLayer { active, encoder_vecs })
    }

    /// The active features of every row, ascending by feature, without their encoder rows: for many positions at once.
    ///
    /// # Shapes
    /// `x` `[n, d_model]`, at the input hook of this layer; returns `[n][..]`.
    ///
    /// # Errors
    /// Those of reading and of the tensor operations; [`Error::ComputedNotFinite`].
    pub fn active(&self, x: &Tensor) -> Result<Vec<Vec<Candidate>>> {
        let mut active: Vec<Vec<Candidate>> = vec![Vec::new(); x.dim(0)?];
        self.candidates(x, |start, _, found| {
            for ((&row, &feature), &value) in found.positions.iter().zip(&found.features).zip(&found.values) {
                active[row as usize].push(Candidate { feature: start as u32 + feature, value });
            }
            Ok(())
        })?;
        active.iter_mut().for_each(|candidates| self.activation.finish(candidates));
        Ok(active)
    }

    /// Goes through the encoder chunk by chunk: (first feature, encoder rows `[n, d_model]`, what is active of them).
    fn candidates(
        &self,
        x: &Tensor,
        mut found_in: impl FnMut(usize, &Tensor, SparseActivations) -> Result<()>,
    ) -> Result<()> {
        let (n_rows, d_model) = x.dims2()?;
        let step = (chunk_values(x.device()) / d_model).max(1);
        let starts = if n_rows == 0 { 0..0 } else { 0..self.n_features() };
        for start in starts.step_by(step) {
            let range = start..(start + step).min(self.n_features());
            let chunk = self.encoder_chunk(range.clone(), x.device())?;
            let products = x.matmul(&chunk.t()?)?;
            // NaN would count as inactive.
            if !products.sum_all()?.to_scalar::<f32>()?.is_finite() {
                check_pre_activations(&products, range.start)?;
            }
            let found = encode_active(&products, &self.b_enc[range.clone()], self.activation.activity(range))?;
            found_in(start, &chunk, found)?;
        }
        Ok(())
    }

    /// The rows of what is active, of those that the chunks left behind: of the features `kept`, which ascend.
    fn rows_of(
        &self,
        active: &[Vec<Candidate>],
        kept: &[u32],
        kept_rows: &[Tensor],
        device: &Device,
    ) -> Result<EncoderRows> {
        let mut features: Vec<u32> = active.iter().flatten().map(|candidate| candidate.feature).collect();
        features.sort_unstable();
        features.dedup();
        if features.is_empty() {
            // On the CPU: GPUs have no empty memory.
            let table = Tensor::zeros((0, self.d_model), candle_core::DType::F32, &Device::Cpu)?;
            return Ok(EncoderRows { table, row_of: Vec::new() });
        }
        let row_of = active.iter().flatten().map(|c| features.partition_point(|&other| other < c.feature) as u32);
        let row_of = row_of.collect();
        let mut table = Tensor::cat(kept_rows, 0)?;
        if features.len() < kept.len() {
            let n = features.len();
            let index: Vec<u32> =
                features.iter().map(|feature| kept.partition_point(|other| other < feature) as u32).collect();
            table = table.index_select(&Tensor::from_vec(index, n, device)?, 0)?;
        }
        Ok(EncoderRows { table, row_of })
    }

    /// Rows of the encoder. `[rows.len(), d_model]`
    fn encoder_chunk(&self, rows: std::ops::Range<usize>, device: &Device) -> Result<Tensor> {
        let Encoder { checkpoint, name, transposed } = &self.encoder;
        let chunk = if *transposed { checkpoint.columns(name, rows)? } else { checkpoint.rows(name, rows)? };
        Ok(chunk.to_device(device)?)
    }

    /// One encoder row. `[d_model]`
    ///
    /// # Errors
    /// Those of reading.
    pub(crate) fn encoder_row(&self, feature: usize, device: &Device) -> Result<Tensor> {
        Ok(self.encoder_chunk(feature..feature + 1, device)?.squeeze(0)?)
    }

    /// Pre-activations of all features. `[n, d_model]` to `[n, d_transcoder]`: for small sets and tests.
    ///
    /// # Errors
    /// Those of reading and of the tensor operations.
    pub fn pre_activations(&self, x: &Tensor) -> Result<Tensor> {
        let bias = Tensor::from_slice(&self.b_enc, self.n_features(), x.device())?;
        Ok(self.encoder_products(x)?.broadcast_add(&bias)?)
    }

    /// Products with all encoder rows, without the bias. `[n, d_model]` to `[n, d_transcoder]`
    ///
    /// # Errors
    /// Those of reading and of the tensor operations.
    pub(crate) fn encoder_products(&self, x: &Tensor) -> Result<Tensor> {
        let step = (chunk_values(x.device()) / self.d_model).max(1);
        let chunks = (0..self.n_features())
            .step_by(step)
            .map(|start| {
                let chunk = self.encoder_chunk(start..(start + step).min(self.n_features()), x.device())?;
                Ok(x.matmul(&chunk.t()?)?)
            })
            .collect::<Result<Vec<Tensor>>>()?;
        Ok(Tensor::cat(&chunks, 1)?)
    }

    /// Decoder vectors of chosen features, not scaled by their activations.
    ///
    /// # Shapes
    /// Returns `[features.len(), n_written, d_model]`; `n_written` is 1 for a per-layer transcoder.
    ///
    /// # Errors
    /// Those of reading.
    pub fn decoder_vecs(&self, features: &[usize], device: &Device) -> Result<Tensor> {
        if features.is_empty() {
            return Ok(Tensor::zeros((0, 1, self.d_model), candle_core::DType::F32, &Device::Cpu)?);
        }
        let Decoder { checkpoint, name } = &self.decoder;
        let rows = checkpoint.gather_rows(name, features)?;
        Ok(rows.reshape((features.len(), (), self.d_model))?.to_device(device)?)
    }
}

/// Looks for a pre-activation that is no finite number among those of the features from `first` on. `[n_pos, n]`
fn check_pre_activations(products: &Tensor, first: usize) -> Result<()> {
    let (n, values) = (products.dim(1)?, products.flatten_all()?.to_vec1::<f32>()?);
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => {
            let quantity = format!("the pre-activation of feature {}", first + index % n);
            Err(Error::ComputedNotFinite { quantity, value: values[index] })
        }
        None => Ok(()),
    }
}
