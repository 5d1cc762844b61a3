//! The vectors of sources: one for each, or one that many share.

use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use super::Indices;
use super::rows::{dot, wide};

/// Vectors of sources, sorted by position.
#[derive(Clone, Debug)]
pub struct SourceVecs {
    /// f32, contiguous: a row a source, `[n_sources, width]`; where sources share rows, a row for each that is different.
    table: Tensor,
    /// Where sources share rows.
    shared: Option<Arc<SharedRows>>,
    /// First source of each position, and the number of sources. `[n_pos + 1]`
    pub starts: Indices,
}

/// Which row of a table each source's vector is, and how many times it: a feature that is active at a thousand positions
/// writes one vector a thousand times.
#[derive(Clone, Debug)]
struct SharedRows {
    /// `[n_sources]`
    rows: Vec<u32>,
    /// `[n_sources]`
    scales: Vec<f32>,
}

impl SourceVecs {
    /// Takes a vector for each source. `vecs` `[n_sources, width]`, f32, contiguous
    pub fn new(vecs: Tensor, starts: Indices) -> Self {
        Self { table: vecs, shared: None, starts }
    }

    /// Takes vectors that sources share: source s is `scales[s]` times row `rows[s]`. On the CPU.
    ///
    /// # Shapes
    /// `table` `[n_rows, width]`, f32, contiguous; `rows` and `scales` `[n_sources]`.
    ///
    /// # Errors
    /// Rows past the table, lengths that differ, another device.
    pub fn shared(table: Tensor, rows: Vec<u32>, scales: Vec<f32>, starts: Indices) -> Result<Self> {
        let n_rows = table.dim(0)?;
        let fits = rows.len() == scales.len() && rows.iter().all(|&row| (row as usize) < n_rows);
        if !fits || !table.device().is_cpu() {
            bail!("edge_rows: {} rows and {} scales of a table of {n_rows}", rows.len(), scales.len());
        }
        Ok(Self { table, shared: Some(Arc::new(SharedRows { rows, scales })), starts })
    }

    /// Number of sources.
    pub fn n_sources(&self) -> usize {
        self.starts.last().copied().unwrap_or_default()
    }

    /// Values of a vector.
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub fn width(&self) -> Result<usize> {
        self.table.dim(1)
    }

    /// The vectors of some sources. `[sources.len(), width]`
    ///
    /// # Errors
    /// Sources that there are not.
    pub fn select(&self, sources: &[u32]) -> Result<Tensor> {
        let (n, device) = (sources.len(), self.table.device());
        let index = |rows: Vec<u32>| Tensor::from_vec(rows, n, device);
        let Some(shared) = &self.shared else { return self.table.index_select(&index(sources.to_vec())?, 0) };
        if let Some(source) = sources.iter().find(|&&source| source as usize >= shared.rows.len()) {
            bail!("edge_rows: source {source} of {}", shared.rows.len());
        }
        let rows = sources.iter().map(|&source| shared.rows[source as usize]).collect();
        let scales: Vec<f32> = sources.iter().map(|&source| shared.scales[source as usize]).collect();
        self.table.index_select(&index(rows)?, 0)?.broadcast_mul(&Tensor::from_vec(scales, (n, 1), device)?)
    }

    /// All vectors, one a source. `[n_sources, width]`
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub fn all(&self) -> Result<Tensor> {
        match &self.shared {
            None => Ok(self.table.clone()),
            Some(_) => self.select(&(0..self.n_sources() as u32).collect::<Vec<_>>()),
        }
    }

    /// How many vectors there are. An error of shapes where they are not one a source.
    pub(super) fn n_vecs(&self) -> Result<usize> {
        self.shared.as_ref().map_or_else(|| self.table.dim(0), |shared| Ok(shared.rows.len()))
    }

    /// The tensor that vectors are in.
    pub(super) fn table(&self) -> &Tensor {
        &self.table
    }

    /// `out[s, t] = ⟨grad[t], vec of from + s⟩` for shared vectors; false where they are not. `grad` `[n, width]`, rows of
    /// `out` are `stride` apart.
    pub(super) fn few(
        &self,
        table: &[f32],
        (from, to): (usize, usize),
        (grad, width): (&[f32], usize),
        (out, stride): (&mut [f32], usize),
    ) -> bool {
        let Some(shared) = &self.shared else { return false };
        let (rows, scales) = (&shared.rows[from..to], &shared.scales[from..to]);
        few_products(Few { table, rows, scales, grad, width, out, stride });
        true
    }

    /// The vectors from source `from` to before `to`, in `place` where they are not side by side. `table` is the tensor's.
    pub(super) fn range<'a>(
        &self,
        table: &'a [f32],
        (from, to): (usize, usize),
        width: usize,
        place: &'a mut Vec<f32>,
    ) -> &'a [f32] {
        let Some(shared) = &self.shared else { return &table[from * width..to * width] };
        place.clear();
        for (&row, &scale) in shared.rows[from..to].iter().zip(&shared.scales[from..to]) {
            place.extend(table[row as usize * width..][..width].iter().map(|x| x * scale));
        }
        place
    }
}

/// A few gradients `[n, width]`, and sources whose vectors are rows of a table.
struct Few<'a> {
    table: &'a [f32],
    rows: &'a [u32],
    scales: &'a [f32],
    grad: &'a [f32],
    width: usize,
    out: &'a mut [f32],
    stride: usize,
}

wide! {
    /// `out[s, t] = scales[s] · ⟨grad[t], row rows[s] of table⟩`; rows of `out` are `stride` apart.
    fn few_products<'a>(few => Few<'a>) -> () {
        let Few { table, rows, scales, grad, width, out, stride } = few;
        for ((&row, &scale), out) in rows.iter().zip(scales).zip(out.chunks_mut(stride)) {
            let vec = &table[row as usize * width..][..width];
            for (out, grad) in out.iter_mut().zip(grad.chunks_exact(width)) {
                *out = scale * dot(grad, vec);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::super::{RaggedBatch, edge_rows};
    use super::*;

    /// Numbers in no order.
    fn values(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0).collect()
    }

    #[test]
    fn shared_vectors_are_those_that_stand_side_by_side() {
        let (width, n_rows) = (147, 6);
        let table = Tensor::from_vec(values(n_rows * width, 1), (n_rows, width), &Device::Cpu).unwrap();
        let starts = vec![0, 3, 3, 8, 10];
        let rows: Vec<u32> = vec![0, 5, 2, 2, 1, 0, 5, 3, 4, 4];
        let scales = values(rows.len(), 2);
        let shared = SourceVecs::shared(table.clone(), rows, scales.clone(), starts.clone().into()).unwrap();
        let apart = SourceVecs::new(shared.all().unwrap(), starts.into());
        assert_eq!((shared.n_sources(), shared.width().unwrap()), (10, width));
        let all: Vec<Vec<f32>> = apart.all().unwrap().to_vec2().unwrap();
        let some: Vec<Vec<f32>> = shared.select(&[9, 1]).unwrap().to_vec2().unwrap();
        assert_eq!(some, [all[9].clone(), all[1].clone()]);
        // Few targets at the later positions, many at the first.
        for positions in [vec![3], vec![3, 3, 2, 0], vec![3, 3, 3, 3, 2, 1, 1, 0, 0]] {
            let ragged = RaggedBatch::new(positions);
            let n = ragged.n_rows();
            let grad = Tensor::from_vec(values(n * width, 3), (n, width), &Device::Cpu).unwrap();
            let of = |sources: &SourceVecs| edge_rows(&grad, sources, &ragged).unwrap().contiguous().unwrap();
            let [a, b]: [Vec<Vec<f32>>; 2] = [of(&shared), of(&apart)].map(|rows| rows.to_vec2().unwrap());
            for (a, b) in a.concat().iter().zip(b.concat()) {
                assert!((a - b).abs() <= 1e-4, "{a} is not {b}");
            }
        }
        assert!(SourceVecs::shared(table.clone(), vec![6], vec![1.0], vec![0, 1].into()).is_err());
        assert!(SourceVecs::shared(table, vec![1], vec![], vec![0, 1].into()).is_err());
        assert!(shared.select(&[10]).is_err());
    }
}
