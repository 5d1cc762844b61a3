//! Rows that stay in a device's memory while it is open which features will get one.

use candle_core::{CudaDevice, DType, Device, Result, Tensor, bail};

use super::cuda::{self, Buffer};
use super::influence::{RowSums, RowsSoFar, launch};

const NAME: &str = "influence";

/// Rows computed so far, where they are on a device: the next features are chosen there, so that rows need not come
/// back before the next ones are computed.
#[derive(Debug)]
pub struct RowsOnDevice {
    gpu: CudaDevice,
    /// `[capacity, row_stride]`
    rows: Tensor,
    n_columns: usize,
    layer_starts: Vec<usize>,
    row_sum_clamp: f32,
    sums: RowSums<Buffer<f64>>,
    /// Row and weight of each target.
    targets: Vec<(usize, f32)>,
    /// Row and index of each feature that has one.
    visited: Vec<(usize, usize)>,
}

/// What the influence of features depends on, beside the rows.
#[derive(Clone, Debug)]
pub struct RowShape<'a> {
    /// Rows there will be at most.
    pub capacity: usize,
    /// Columns that count: the active features, then errors, then tokens.
    pub n_columns: usize,
    /// Columns there are, see [`super::BatchRows::on_device`].
    pub row_stride: usize,
    /// First active feature of each layer, and their number. `[n_layers + 1]`
    pub layer_starts: &'a [usize],
    /// The smallest sum of absolute values that a row is divided by.
    pub row_sum_clamp: f32,
}

impl RowsOnDevice {
    /// Room for rows on `device`; `None` on the CPU, where rows are on the host anyway.
    ///
    /// # Errors
    /// Those of the device. One that [`super::is_out_of_memory`] recognises may be survived: rows get to the host too,
    /// so features can be chosen there.
    pub fn new(device: &Device, shape: RowShape) -> Result<Option<Self>> {
        let Device::Cuda(gpu) = device else { return Ok(None) };
        let RowShape { n_columns, row_stride, layer_starts, .. } = shape;
        if n_columns > row_stride || layer_starts.last().is_some_and(|&n_active| n_active > n_columns) {
            bail!("{NAME}: {layer_starts:?} active features in {n_columns} of {row_stride} columns");
        }
        Ok(Some(Self {
            gpu: gpu.clone(),
            rows: Tensor::zeros((shape.capacity, row_stride), DType::F32, device)?,
            n_columns,
            layer_starts: layer_starts.to_vec(),
            row_sum_clamp: shape.row_sum_clamp,
            sums: RowSums::new(gpu, shape.capacity)?,
            targets: Vec::new(),
            visited: Vec::new(),
        }))
    }

    /// Copies `n` rows after those there are; returns the first one's place.
    fn push(&mut self, rows: &Tensor, n: usize) -> Result<usize> {
        if rows.dim(0)? != n {
            bail!("{NAME}: {n} targets or features for rows {:?}", rows.shape());
        }
        let first = self.targets.len() + self.visited.len();
        self.rows.slice_set(rows, 0, first)?;
        Ok(first)
    }

    /// Adds rows of targets with their weights. `rows` as [`super::BatchRows::on_device`].
    ///
    /// # Errors
    /// Those of the device.
    pub fn push_targets(&mut self, rows: &Tensor, weights: &[f32]) -> Result<()> {
        let first = self.push(rows, weights.len())?;
        self.targets.extend(weights.iter().enumerate().map(|(i, &weight)| (first + i, weight)));
        Ok(())
    }

    /// Adds rows of active features. `rows` as [`super::BatchRows::on_device`], `features` one a row.
    ///
    /// # Errors
    /// Those of the device.
    pub fn push_features(&mut self, rows: &Tensor, features: &[usize]) -> Result<()> {
        let n_active = self.layer_starts.last().copied().unwrap_or(0);
        if let Some(feature) = features.iter().find(|&&feature| feature >= n_active) {
            bail!("{NAME}: feature {feature} of {n_active}");
        }
        let first = self.push(rows, features.len())?;
        self.visited.extend(features.iter().enumerate().map(|(i, &feature)| (first + i, feature)));
        Ok(())
    }

    /// The `count` most influential features without a row, strongest first.
    ///
    /// # Errors
    /// Those of the device.
    pub fn next_features(&mut self, count: usize) -> Result<Vec<usize>> {
        let so_far = RowsSoFar {
            rows: cuda::tensor_arg(NAME, &self.rows)?,
            row_stride: self.rows.dim(1)?,
            n_columns: self.n_columns,
            layer_starts: &self.layer_starts,
            row_sum_clamp: self.row_sum_clamp,
            targets: &self.targets,
            visited: &self.visited,
        };
        // SAFETY: `slice_set` has checked that each row is within the tensor, whose rows are so numbered; columns and
        // features were checked when they came; there is room for a sum a row.
        unsafe { launch(&self.gpu, &so_far, &mut self.sums, count) }
    }
}
