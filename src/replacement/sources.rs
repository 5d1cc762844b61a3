//! The sources of the linear model: what writes to the residual stream, as vectors at the place where it is added.

use candle_core::{Device, Tensor};

use crate::error::Result;
use crate::ops::{RaggedBatch, SourceVecs, edge_rows};

/// What a source vector belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// Index into [`super::ActiveFeatures`]. A cross-layer feature is a source at every layer it writes to.
    Feature(usize),
    /// What the transcoder of `layer` misses at `pos`.
    Error {
        /// The layer of the transcoder.
        layer: usize,
        /// Position in the prompt.
        pos: usize,
    },
    /// The embedding of the token at `pos`.
    Token {
        /// Position in the prompt.
        pos: usize,
    },
    /// Biases and everything else that no node stands for: it goes to the bias effect.
    Constant,
}

/// Sources that are added to the residual stream at one place, sorted by position.
#[derive(Clone, Debug)]
pub struct Sources {
    /// `[n_sources, d_model]`, f32, by position.
    pub vecs: SourceVecs,
    /// `[n_sources]`
    pub origins: Vec<Origin>,
}

impl Sources {
    /// Effects of these sources on the targets of a batch whose gradient is `grad`. `[n_targets, n_sources]`
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn effects(&self, grad: &Tensor, ragged: &RaggedBatch) -> Result<Tensor> {
        Ok(edge_rows(grad, &self.vecs, ragged)?)
    }
}

/// Collects [`Sources`], position by position.
pub(super) struct SourcesBuilder {
    d_model: usize,
    vecs: Vec<f32>,
    starts: Vec<usize>,
    origins: Vec<Origin>,
    /// Where `vecs` is a table: the row of each source, and how many times it.
    shared: Option<(Vec<u32>, Vec<f32>)>,
}

impl SourcesBuilder {
    pub fn new(d_model: usize) -> Self {
        Self { d_model, vecs: Vec::new(), starts: vec![0], origins: Vec::new(), shared: None }
    }

    /// Sources that share the rows of a table, with room for `n_sources` of them. On the CPU.
    pub fn sharing(d_model: usize, table: Vec<f32>, n_sources: usize) -> Self {
        let shared = Some((Vec::with_capacity(n_sources), Vec::with_capacity(n_sources)));
        Self { vecs: table, shared, ..Self::new(d_model) }
    }

    /// Adds a row to the table that sources share; its number.
    pub fn add_row(&mut self, vec: &[f32]) -> usize {
        let row = self.vecs.len() / self.d_model;
        self.vecs.extend_from_slice(vec);
        row
    }

    /// Adds a source that is a row of the table.
    pub fn push_row(&mut self, origin: Origin, row: usize) {
        self.origins.push(origin);
        self.share(row, 1.0);
    }

    fn share(&mut self, row: usize, scale: f32) {
        if let Some((rows, scales)) = &mut self.shared {
            rows.push(row as u32);
            scales.push(scale);
        }
    }

    /// As [`SourcesBuilder::new`], with room for `n_sources`.
    pub fn with_capacity(d_model: usize, n_sources: usize) -> Self {
        Self { vecs: Vec::with_capacity(d_model * n_sources), ..Self::new(d_model) }
    }

    /// Adds a source at the current position.
    pub fn push(&mut self, origin: Origin, vec: &[f32]) {
        debug_assert_eq!(vec.len(), self.d_model);
        self.origins.push(origin);
        let row = self.add_row(vec);
        self.share(row, 1.0);
    }

    /// Adds `scale · vec`, and adds the same to `sum`. `row` is where the table has `vec`, if there is a table.
    pub(crate) fn push_scaled(&mut self, origin: Origin, (row, vec): (usize, &[f32]), scale: f32, sum: &mut [f32]) {
        self.origins.push(origin);
        if self.shared.is_some() {
            self.share(row, scale);
            return sum.iter_mut().zip(vec).for_each(|(sum, v)| *sum += v * scale);
        }
        self.vecs.extend(vec.iter().zip(sum).map(|(v, sum)| {
            let scaled = v * scale;
            *sum += scaled;
            scaled
        }));
    }

    /// Ends the current position.
    pub(crate) fn end_position(&mut self) {
        self.starts.push(self.origins.len());
    }

    /// The sources, on `device`; where there is none, on the CPU, since GPUs have no empty memory.
    pub fn build(self, device: &Device) -> Result<Sources> {
        let device = if self.origins.is_empty() { &Device::Cpu } else { device };
        let n_vecs = self.vecs.len() / self.d_model;
        let table = Tensor::from_vec(self.vecs, (n_vecs, self.d_model), device)?;
        let vecs = match self.shared {
            Some((rows, scales)) => SourceVecs::shared(table, rows, scales, self.starts.into())?,
            None => SourceVecs::new(table, self.starts.into()),
        };
        Ok(Sources { vecs, origins: self.origins })
    }
}
