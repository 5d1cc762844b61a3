//! Vectors of a sampled sweep that stay in a device's memory, as the rows that are added to them do.

use std::ops::Range;

use candle_core::{CudaDevice, Device, Result, Tensor, bail};

use super::cuda::{self, Buffer};
use super::gpu::Gpu;
use super::influence::{SweptRows, add_rows};

const NAME: &str = "influence";

/// Vectors on a device: influence, and how far it might be off.
#[derive(Debug)]
pub struct SweptOnDevice {
    gpu: CudaDevice,
    /// `[n_vectors][n_columns]`
    vectors: Vec<Buffer<f64>>,
    n_columns: usize,
    row_sum_clamp: f32,
}

impl SweptOnDevice {
    /// Vectors of zeros on `device`; `None` on the CPU. `row_sum_clamp` is the smallest sum of absolute values that a row
    /// is divided by.
    ///
    /// # Errors
    /// Those of the device.
    pub fn new(device: &Device, n_vectors: usize, n_columns: usize, row_sum_clamp: f32) -> Result<Option<Self>> {
        let Device::Cuda(gpu) = device else { return Ok(None) };
        let vectors = (0..n_vectors).map(|_| gpu.zeros::<f64>(n_columns)).collect::<Result<_>>()?;
        Ok(Some(Self { gpu: gpu.clone(), vectors, n_columns, row_sum_clamp }))
    }

    /// How many vectors there are.
    pub fn n_vectors(&self) -> usize {
        self.vectors.len()
    }

    /// Adds rows, see [`add_rows`]. `rows` as [`super::BatchRows::on_device`], `weights` `[n_vectors][n_rows]`
    ///
    /// # Errors
    /// Numbers of weights that do not fit; those of the device.
    pub fn add(&mut self, rows: &Tensor, weights: &[Vec<f64>]) -> Result<()> {
        let (n_rows, row_stride) = rows.dims2()?;
        let (n_columns, row_sum_clamp) = (self.n_columns, self.row_sum_clamp);
        let rows = cuda::tensor_arg(NAME, rows)?;
        let swept = SweptRows { rows, n_rows, row_stride, n_columns, row_sum_clamp };
        // SAFETY: a contiguous tensor of this shape; the vectors were made with so many columns.
        unsafe { add_rows(&self.gpu, swept, &self.vectors, weights) }
    }

    /// Some columns of every vector. `[n_vectors][columns.len()]`
    ///
    /// # Errors
    /// Those of the device.
    pub fn values(&self, columns: Range<usize>) -> Result<Vec<Vec<f64>>> {
        if columns.end > self.n_columns {
            bail!("{NAME}: columns {columns:?} of {}", self.n_columns);
        }
        self.vectors.iter().map(|vector| self.gpu.download_part(vector, columns.clone())).collect()
    }
}
