//! What features make of the MLPs' outputs, found as a pass goes by.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use crate::error::{ErrorContext, Result};
use crate::model::HookPoint;
use crate::replacement::Replacement;
use crate::transcoder::Candidate;

/// Values of decoder rows that are held at once: 32 MiB.
const DECODER_VALUES: usize = 8 << 20;

/// Values that are held for the layers above, which a cross-layer transcoder writes to: 256 MiB.
const PENDING_VALUES: usize = 64 << 20;

/// Sequences that go through the model together, and which of their positions have features.
pub(super) struct Batch {
    /// `[n_sequences][..]`
    pub tokens: Vec<Vec<u32>>,
    /// Positions, padding included.
    pub n_pos: usize,
    /// Rows of `[n_sequences · n_pos, d_model]` that have features: no padding, no excluded position.
    pub rows: Vec<u32>,
    /// The same on the model's device.
    index: Option<Tensor>,
}

impl Batch {
    pub fn new(replacement: &Replacement, tokens: Vec<Vec<u32>>) -> Result<Self> {
        let n_pos = tokens.iter().map(Vec::len).max().unwrap_or(0);
        let of = |(at, tokens): (usize, &Vec<u32>)| {
            (replacement.n_excluded(tokens)..tokens.len()).map(move |pos| (at * n_pos + pos) as u32)
        };
        let rows: Vec<u32> = tokens.iter().enumerate().flat_map(of).collect();
        // GPUs have no empty memory.
        let index = match rows.is_empty() {
            true => None,
            false => Some(Tensor::new(rows.as_slice(), replacement.model.device())?),
        };
        Ok(Self { tokens, n_pos, rows, index })
    }

    /// Sequences of `longest` tokens that may go through together, so that what waits for the layers above is bounded.
    pub fn max_sequences(replacement: &Replacement, longest: usize) -> usize {
        let config = &replacement.model.config;
        let a_position = config.n_layers * config.d_model;
        (PENDING_VALUES / (a_position * longest).max(1)).max(1)
    }

    /// The rows that have features. `[n_sequences, n_pos, d_model]` to `[rows.len(), d_model]`
    pub fn rows_of(&self, tensor: &Tensor) -> Result<Option<Tensor>> {
        let Some(index) = &self.index else { return Ok(None) };
        Ok(Some(tensor.flatten_to(1)?.contiguous()?.index_select(index, 0)?))
    }

    /// `tensor` with other values in the rows that have features: `row(i)` gives those of the i-th. `[d_model]`
    pub fn with_rows<'r>(&self, tensor: &Tensor, row: impl Fn(usize) -> &'r [f32]) -> Result<Tensor> {
        let d_model = tensor.dim(candle_core::D::Minus1)?;
        let mut values: Vec<f32> = tensor.flatten_all()?.to_vec1()?;
        for (i, &at) in self.rows.iter().enumerate() {
            values[at as usize * d_model..][..d_model].copy_from_slice(row(i));
        }
        Ok(Tensor::from_vec(values, tensor.shape(), tensor.device())?)
    }
}

/// Reconstructions of one pass: reads inputs layer by layer, upwards.
pub(super) struct Reconstruction<'a> {
    replacement: &'a Replacement,
    batch: &'a Batch,
    /// What was written so far at each layer's output; empty where nothing was. `[n_layers]` of `[n_rows, d_model]`
    pending: Vec<Vec<f32>>,
}

/// What a pass comes by at one layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Site {
    /// What the transcoder of a layer reads.
    Input(usize),
    /// What it is compared with.
    Output(usize),
}

impl Site {
    /// What a hook point is to transcoders, if anything.
    pub fn of(replacement: &Replacement, point: HookPoint) -> Option<Self> {
        let layer = point.layer()?;
        if point == replacement.input_point(layer) {
            return Some(Site::Input(layer));
        }
        (point == replacement.output_point(layer)).then_some(Site::Output(layer))
    }
}

impl<'a> Reconstruction<'a> {
    pub fn new(replacement: &'a Replacement, batch: &'a Batch) -> Self {
        Self { replacement, batch, pending: vec![Vec::new(); replacement.model.config.n_layers] }
    }

    /// Encodes what the transcoder of a layer reads, and writes it to all layers that its features write to. Returns
    /// the active features of each row that has some, ascending. `input` `[n_sequences, n_pos, d_model]`
    pub fn read(&mut self, layer: usize, input: &Tensor) -> Result<Vec<Vec<Candidate>>> {
        let d_model = self.replacement.model.config.d_model;
        let transcoder = &self.replacement.transcoders.layers[layer];
        let Some(x) = self.batch.rows_of(input)? else { return Ok(Vec::new()) };
        let active = transcoder.active(&x).context(|| format!("cannot encode layer {layer}"))?;
        self.decode(layer, &active).context(|| format!("cannot read the decoder of layer {layer}"))?;
        let b_dec: Vec<f32> = transcoder.b_dec().to_vec1()?;
        let skip: Option<Vec<f32>> = transcoder.skip(&x)?.map(|skip| skip.flatten_all()?.to_vec1()).transpose()?;
        for (i, row) in self.written(layer).chunks_exact_mut(d_model).enumerate() {
            add(row, &b_dec, 1.0);
            if let Some(skip) = &skip {
                add(row, &skip[i * d_model..(i + 1) * d_model], 1.0);
            }
        }
        Ok(active)
    }

    /// The reconstruction of a layer whose input was read. `[n_rows, d_model]`
    pub fn take(&mut self, layer: usize) -> Vec<f32> {
        std::mem::take(&mut self.pending[layer])
    }

    fn written(&mut self, layer: usize) -> &mut Vec<f32> {
        let n_values = self.batch.rows.len() * self.replacement.model.config.d_model;
        let pending = &mut self.pending[layer];
        if pending.is_empty() {
            pending.resize(n_values, 0.0);
        }
        pending
    }

    /// Adds decoder rows, scaled: those of lower features first, whatever is held at once.
    fn decode(&mut self, layer: usize, active: &[Vec<Candidate>]) -> Result<()> {
        let d_model = self.replacement.model.config.d_model;
        let transcoder = &self.replacement.transcoders.layers[layer];
        let n_written = self.replacement.transcoders.n_written(layer);
        let mut is_active = vec![false; transcoder.n_features()];
        active.iter().flatten().for_each(|c| is_active[c.feature as usize] = true);
        let wanted: Vec<usize> = (0..is_active.len()).filter(|&feature| is_active[feature]).collect();
        let mut slots = vec![0u32; is_active.len()];
        for features in wanted.chunks((DECODER_VALUES / (n_written * d_model)).max(1)) {
            let vecs = transcoder.decoder_vecs(features, &Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
            features.iter().zip(0..).for_each(|(&feature, slot)| slots[feature] = slot);
            let (first, last) = (features[0], features[features.len() - 1]);
            for offset in 0..n_written {
                let rows = self.written(layer + offset).par_chunks_exact_mut(d_model);
                rows.zip(active).for_each(|(row, active)| {
                    let start = active.partition_point(|c| (c.feature as usize) < first);
                    for c in active[start..].iter().take_while(|c| c.feature as usize <= last) {
                        let at = (slots[c.feature as usize] as usize * n_written + offset) * d_model;
                        add(row, &vecs[at..at + d_model], c.value);
                    }
                });
            }
        }
        Ok(())
    }
}

fn add(sum: &mut [f32], vec: &[f32], factor: f32) {
    sum.iter_mut().zip(vec).for_each(|(sum, x)| *sum += factor * x);
}
