//! Keys and values of earlier positions.

use candle_core::Tensor;

use crate::error::{Error, Result};

/// Where the new tokens of a batch stand: sequence b has the positions `starts[b]..starts[b] + lengths[b]`, and is padded
/// on the right to `n_pos` positions.
#[derive(Clone, Debug)]
pub(super) struct Places {
    pub starts: Vec<usize>,
    pub lengths: Vec<usize>,
    pub n_pos: usize,
}

impl Places {
    /// Where all sequences start, if they start at the same position.
    pub(crate) fn common_start(&self) -> Option<usize> {
        let first = self.starts.first().copied().unwrap_or(0);
        self.starts.iter().all(|&start| start == first).then_some(first)
    }

    /// As [`Places::common_start`], if they end at the same position too.
    pub(crate) fn even_start(&self) -> Option<usize> {
        self.common_start().filter(|_| self.lengths.iter().all(|&length| length == self.n_pos))
    }
}

/// Keys and values of earlier positions, for passes that continue them. A pass that fails leaves it as it was.
#[derive(Clone, Debug, Default)]
pub struct KvCache {
    /// Per layer: keys (rotated) and values, `[batch, n_kv_heads, n_past, d_head]` each; a sequence's position p is
    /// entry p, and entries past its length mean nothing.
    layers: Vec<Option<(Tensor, Tensor)>>,
    /// Positions of each sequence; empty before the first pass. `[batch]`
    lengths: Vec<usize>,
}

impl KvCache {
    /// An empty cache.
    pub fn new(n_layers: usize) -> Self {
        Self { layers: vec![None; n_layers], lengths: Vec::new() }
    }

    /// Positions held of each sequence; empty before the first pass. `[batch]`
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Positions held of the longest sequence.
    pub(crate) fn n_past(&self) -> usize {
        self.lengths.iter().copied().max().unwrap_or(0)
    }

    /// Where the next tokens of a batch stand.
    ///
    /// # Errors
    /// [`Error::Cache`] for a batch of another size.
    pub(super) fn starts(&self, batch: usize) -> Result<Vec<usize>> {
        match self.lengths.len() {
            0 => Ok(vec![0; batch]),
            n if n == batch => Ok(self.lengths.clone()),
            n => Err(Error::Cache { cache: format!("{n} sequences"), pass: batch.to_string() }),
        }
    }

    /// Appends new positions to a layer and returns all of them. They count as held only after [`KvCache::advance`].
    ///
    /// # Shapes
    /// `k` and `v` `[batch, n_kv_heads, n_pos, d_head]`.
    ///
    /// # Errors
    /// [`Error::Cache`] where the layer lacks positions that others hold; those of the tensor operations.
    pub(super) fn append(&mut self, layer: usize, k: Tensor, v: Tensor, places: &Places) -> Result<(Tensor, Tensor)> {
        let n_layers = self.layers.len();
        let slot = self
            .layers
            .get_mut(layer)
            .ok_or_else(|| Error::Cache { cache: format!("{n_layers} layers"), pass: format!("layer {layer}") })?;
        let n_past = places.starts.iter().copied().max().unwrap_or(0);
        let (k, v) = match slot.as_ref() {
            _ if n_past == 0 => (k, v),
            Some((past_k, past_v)) if past_k.dims()[2] >= n_past => {
                (joined(past_k, k, places)?, joined(past_v, v, places)?)
            }
            held => {
                let n_held = held.map_or(0, |(k, _)| k.dims()[2]);
                let cache = format!("{n_held} positions of layer {layer}");
                return Err(Error::Cache { cache, pass: n_past.to_string() });
            }
        };
        *slot = Some((k.clone(), v.clone()));
        Ok((k, v))
    }

    /// Counts the positions that a pass over all layers appended.
    pub(super) fn advance(&mut self, places: &Places) {
        self.lengths = places.starts.iter().zip(&places.lengths).map(|(start, length)| start + length).collect();
    }
}

/// Every sequence's new entries right after its past ones, padded with zeros to the longest.
fn joined(past: &Tensor, new: Tensor, places: &Places) -> Result<Tensor> {
    if let Some(start) = places.common_start() {
        return Ok(Tensor::cat(&[past.narrow(2, 0, start)?, new], 2)?);
    }
    let sequences = places.starts.iter().zip(&places.lengths);
    let n_all = sequences.clone().map(|(start, length)| start + length).max().unwrap_or(0);
    let one = |(b, (&start, &length)): (usize, (&usize, &usize))| -> Result<Tensor> {
        let past = past.narrow(0, b, 1)?.narrow(2, 0, start)?;
        let all = Tensor::cat(&[past, new.narrow(0, b, 1)?.narrow(2, 0, length)?], 2)?;
        Ok(all.pad_with_zeros(2, 0, n_all - start - length)?)
    };
    let all = sequences.enumerate().map(one).collect::<Result<Vec<Tensor>>>()?;
    Ok(Tensor::cat(&all, 0)?)
}
