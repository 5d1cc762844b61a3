//! A linear map with an optional bias.

use candle_core::{D, Tensor};

use std::sync::Arc;

use crate::error::Result;
use crate::ops::PackedWeight;

/// `y = x · Wᵀ + b`.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[d_out, d_in]`, f32.
    pub weight: Tensor,
    /// `[d_out]`, f32.
    pub bias: Option<Tensor>,
    /// The weight for products in bf16, which take its place then.
    packed: Option<Arc<PackedWeight>>,
}

impl Linear {
    /// A map whose products are in f32.
    pub(super) fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias, packed: None }
    }

    /// From now on products are in bf16, where the processor has such and the weight is on it.
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub(super) fn round(&mut self) -> Result<()> {
        if self.weight.device().is_cpu() {
            let (d_out, d_in) = self.weight.dims2()?;
            let values = self.weight.flatten_all()?.to_vec1::<f32>()?;
            self.packed = PackedWeight::new(&values, d_out, d_in).map(Arc::new);
        }
        Ok(())
    }

    /// `[.., d_in]` to `[.., d_out]`
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (d_out, d_in) = self.weight.dims2()?;
        let mut shape = x.dims().to_vec();
        shape.pop();
        let x_rows = x.reshape(((), d_in))?;
        let y = match &self.packed {
            Some(packed) => packed.apply(&x_rows.contiguous()?)?,
            None => x_rows.matmul(&self.weight.t()?)?,
        };
        let y = match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        };
        shape.push(d_out);
        debug_assert_eq!(x.dim(D::Minus1)?, d_in);
        Ok(y.reshape(shape)?)
    }
}
