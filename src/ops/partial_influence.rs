//! Rows that stay in a device's memory while it is open which features will get one.

use candle_core::{Device, Result, Tensor};

/// Rows computed so far, where they are on a device: the next features are chosen there, so that rows need not come
/// back before the next ones are computed.
#[derive(Debug)]
pub struct RowsOnDevice {
    #[cfg(feature = "cuda")]
    on_cuda: on_cuda::Rows,
    #[cfg(not(feature = "cuda"))]
    never: std::convert::Infallible,
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
}

impl RowsOnDevice {
    /// Room for rows on `device`; `None` on the CPU, and where the device has no room for them: rows get to the host
    /// anyway.
    pub fn new(device: &Device, shape: RowShape) -> Option<Self> {
        match device {
            #[cfg(feature = "cuda")]
            Device::Cuda(cuda) => on_cuda::Rows::new(device, cuda, shape).ok().map(|on_cuda| Self { on_cuda }),
            _ => {
                let _ = shape;
                None
            }
        }
    }

    /// Adds rows of targets with their weights. `rows` as [`super::BatchRows::on_device`].
    ///
    /// # Errors
    /// Those of the device.
    pub fn push_targets(&mut self, rows: &Tensor, weights: &[f32]) -> Result<()> {
        #[cfg(feature = "cuda")]
        return self.on_cuda.push_targets(rows, weights);
        #[cfg(not(feature = "cuda"))]
        {
            let _ = (rows, weights);
            match self.never {}
        }
    }

    /// Adds rows of active features. `rows` as [`super::BatchRows::on_device`], `features` one a row.
    ///
    /// # Errors
    /// Those of the device.
    pub fn push_features(&mut self, rows: &Tensor, features: &[usize]) -> Result<()> {
        #[cfg(feature = "cuda")]
        return self.on_cuda.push_features(rows, features);
        #[cfg(not(feature = "cuda"))]
        {
            let _ = (rows, features);
            match self.never {}
        }
    }

    /// The `count` most influential features without a row, strongest first.
    ///
    /// # Errors
    /// Those of the device.
    pub fn next_features(&mut self, count: usize) -> Result<Vec<usize>> {
        #[cfg(feature = "cuda")]
        return self.on_cuda.next_features(count);
        #[cfg(not(feature = "cuda"))]
        {
            let _ = count;
            match self.never {}
        }
    }
}

#[cfg(feature = "cuda")]
mod on_cuda {
    use candle_core::{DType, Device, Result, Tensor};

    use super::super::cuda::{self, CudaDevice, CudaSlice};
    use super::super::influence::{RowSums, RowsSoFar, launch};
    use super::RowShape;

    #[derive(Debug)]
    pub struct Rows {
        device: CudaDevice,
        /// `[capacity, row_stride]`
        rows: Tensor,
        n_columns: usize,
        layer_starts: Vec<usize>,
        sums: RowSums<CudaSlice<f64>>,
        targets: Vec<(usize, f32)>,
        visited: Vec<(usize, usize)>,
    }

    impl Rows {
        pub fn new(device: &Device, cuda: &CudaDevice, shape: RowShape) -> Result<Self> {
            Ok(Self {
                device: cuda.clone(),
                rows: Tensor::zeros((shape.capacity, shape.row_stride), DType::F32, device)?,
                n_columns: shape.n_columns,
                layer_starts: shape.layer_starts.to_vec(),
                sums: RowSums::new(cuda, shape.capacity)?,
                targets: Vec::new(),
                visited: Vec::new(),
            })
        }

        /// Copies rows behind those there are; returns the first one's place.
        fn push(&mut self, rows: &Tensor) -> Result<usize> {
            let first = self.targets.len() + self.visited.len();
            self.rows.slice_set(rows, 0, first)?;
            Ok(first)
        }

        pub fn push_targets(&mut self, rows: &Tensor, weights: &[f32]) -> Result<()> {
            let first = self.push(rows)?;
            self.targets.extend(weights.iter().enumerate().map(|(i, &weight)| (first + i, weight)));
            Ok(())
        }

        pub fn push_features(&mut self, rows: &Tensor, features: &[usize]) -> Result<()> {
            let first = self.push(rows)?;
            self.visited.extend(features.iter().enumerate().map(|(i, &feature)| (first + i, feature)));
            Ok(())
        }

        pub fn next_features(&mut self, count: usize) -> Result<Vec<usize>> {
            let so_far = RowsSoFar {
                rows: cuda::tensor_arg::<f32>("influence", &self.rows)?,
                row_stride: self.rows.dim(1)?,
                n_columns: self.n_columns,
                layer_starts: &self.layer_starts,
                targets: &self.targets,
                visited: &self.visited,
            };
            // SAFETY: `slice_set` has checked that each row is within the tensor, whose rows are so numbered.
            unsafe { launch(&self.device, &so_far, &mut self.sums, count) }
        }
    }
}
