//! Frozen attention patterns, in half the memory where prompts are long.

use candle_core::{Result, Storage, Tensor, bail};

use super::f32_slice;

/// From so many positions on, the CPU keeps no keys after the query: short prompts take little anyway.
const PACKED_FROM: usize = 256;

/// What errors call this.
const NAME: &str = "causal_pattern";
const NOT_ON_CPU: &str = "a packed pattern is on the CPU";

/// What each query of a layer's heads takes from each key up to its own position.
#[derive(Clone, Debug)]
pub struct CausalPattern {
    /// As [`CausalPattern::tensor`].
    values: Tensor,
    n_pos: usize,
}

impl CausalPattern {
    /// Takes a pattern whose keys after the query mean nothing. `dense` `[n_heads, n_pos, n_pos]`, f32
    ///
    /// # Errors
    /// Another shape; those of the tensor operations.
    pub fn new(dense: Tensor) -> Result<Self> {
        let n_pos = dense.dim(2)?;
        if n_pos < PACKED_FROM || !dense.device().is_cpu() {
            return Ok(Self { values: dense, n_pos });
        }
        Self::packed(&dense)
    }

    /// As [`CausalPattern::new`], packed however short. On the CPU.
    ///
    /// # Errors
    /// As [`CausalPattern::new`].
    pub fn packed(dense: &Tensor) -> Result<Self> {
        let (n_heads, n_queries, n_pos) = dense.dims3()?;
        if n_queries != n_pos {
            bail!("a pattern of {n_queries} queries and {n_pos} keys");
        }
        let dense = dense.contiguous()?;
        let (storage, layout) = dense.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else { bail!("{NOT_ON_CPU}") };
        let values = f32_slice(NAME, storage, layout)?;
        let mut packed = Vec::with_capacity(n_heads * row_start(n_pos));
        for (row, keys) in values.chunks_exact(n_pos.max(1)).enumerate() {
            packed.extend_from_slice(&keys[..=row % n_pos]);
        }
        Ok(Self { values: Tensor::from_vec(packed, (n_heads, row_start(n_pos)), dense.device())?, n_pos })
    }

    /// The values as [`super::frozen_attention`] takes them: `[n_heads, n_pos, n_pos]`, or packed
    /// `[n_heads, n_pos · (n_pos + 1) / 2]`, each query with the keys up to its own.
    pub fn tensor(&self) -> &Tensor {
        &self.values
    }

    /// Number of heads.
    ///
    /// # Errors
    /// None: there is always that dimension.
    pub fn n_heads(&self) -> Result<usize> {
        self.values.dim(0)
    }

    /// With all keys, zero after the query where it was packed. `[n_heads, n_pos, n_pos]`
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub fn dense(&self) -> Result<Tensor> {
        self.dense_from(0)
    }

    /// As [`CausalPattern::dense`], of the queries and keys from a position on, n of them. `[n_heads, n, n]`, contiguous
    ///
    /// # Errors
    /// As [`CausalPattern::dense`]; a position past the last.
    pub fn dense_from(&self, pos: usize) -> Result<Tensor> {
        let Some(n) = self.n_pos.checked_sub(pos) else { bail!("position {pos} of a pattern of {}", self.n_pos) };
        if self.values.rank() == 3 {
            return self.values.narrow(1, pos, n)?.narrow(2, pos, n)?.contiguous();
        }
        let n_heads = self.n_heads()?;
        let (storage, layout) = self.values.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else { bail!("{NOT_ON_CPU}") };
        let packed = f32_slice(NAME, storage, layout)?;
        let mut dense = vec![0f32; n_heads * n * n];
        for (row, keys) in dense.chunks_exact_mut(n.max(1)).enumerate() {
            let (head, query) = (row / n, row % n);
            let first = head * row_start(self.n_pos) + row_start(pos + query) + pos;
            keys[..=query].copy_from_slice(&packed[first..][..=query]);
        }
        Tensor::from_vec(dense, (n_heads, n, n), self.values.device())
    }

    /// Each head times a factor. `factors` `[n_heads]`
    ///
    /// # Errors
    /// Another number of factors.
    pub fn scaled(&self, factors: &[f32]) -> Result<Self> {
        let mut shape = vec![1; self.values.rank()];
        shape[0] = factors.len();
        let factors = Tensor::from_slice(factors, shape, self.values.device())?;
        Ok(Self { values: self.values.broadcast_mul(&factors)?, n_pos: self.n_pos })
    }
}

/// Where the keys of a query begin, in a packed head.
#[inline(always)]
pub(super) fn row_start(query: usize) -> usize {
    query * (query + 1) / 2
}

/// Positions of a packed head of `len` values; `None` where it is none.
pub(super) fn n_packed(len: usize) -> Option<usize> {
    let n_pos = (2 * len).isqrt();
    (row_start(n_pos) == len).then_some(n_pos)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::super::{RaggedBatch, frozen_attention, frozen_attention_own};
    use super::*;

    #[test]
    fn packed_patterns_are_the_same_patterns() {
        let (n_heads, n_kv, d_head) = (4, 2, 37);
        for n_pos in [1, 2, 5, 23] {
            let values = |n: usize, seed: usize| -> Vec<f32> {
                (0..n).map(|i| ((i * 7919 + seed) % 1009) as f32 / 504.5 - 1.0).collect()
            };
            let mut pattern = values(n_heads * n_pos * n_pos, 3);
            for (row, keys) in pattern.chunks_exact_mut(n_pos).enumerate() {
                keys[row % n_pos + 1..].fill(0.0);
            }
            let dense = Tensor::from_vec(pattern, (n_heads, n_pos, n_pos), &Device::Cpu).unwrap();
            let packed = CausalPattern::packed(&dense).unwrap();
            let all = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(all(&packed.dense().unwrap()), all(&dense));
            for pos in 0..n_pos {
                let part = dense.narrow(1, pos, n_pos - pos).unwrap().narrow(2, pos, n_pos - pos).unwrap();
                assert_eq!(all(&packed.dense_from(pos).unwrap()), all(&part));
                assert_eq!(all(&CausalPattern::new(dense.clone()).unwrap().dense_from(pos).unwrap()), all(&part));
            }
            assert!(packed.dense_from(n_pos + 1).is_err());
            assert_eq!(CausalPattern::new(dense.clone()).unwrap().tensor().rank(), 3);
            let halved = packed.scaled(&[0.5, 0.0, 1.0, 2.0]).unwrap().dense().unwrap();
            assert_eq!(all(&halved.get(3).unwrap()), all(&(dense.get(3).unwrap() * 2.0).unwrap()));

            let ragged = RaggedBatch::new((0..n_pos).rev().step_by(2).collect());
            let width = n_heads * d_head;
            let n = ragged.n_rows();
            let grad = Tensor::from_vec(values(n * width, 7), (n, width), &Device::Cpu).unwrap();
            let of = |pattern: &Tensor| all(&frozen_attention(&grad, pattern, n_kv, &ragged).unwrap());
            assert_eq!(of(packed.tensor()), of(&dense));
            let own = grad.narrow(0, 0, ragged.n_targets()).unwrap();
            let of = |pattern: &Tensor| all(&frozen_attention_own(&own, pattern, n_kv, &ragged).unwrap());
            assert_eq!(of(packed.tensor()), of(&dense));
        }
        assert_eq!([0, 1, 2, 3, 6, 7].map(n_packed), [Some(0), Some(1), None, Some(2), Some(3), None]);
        assert!(
            CausalPattern::packed(&Tensor::zeros((1, 2, 3), candle_core::DType::F32, &Device::Cpu).unwrap()).is_err()
        );
    }
}
