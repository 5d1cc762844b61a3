//! A linear map with an optional bias.

use candle_core::{D, Tensor};

use crate::error::Result;

/// `y = x · Wᵀ + b`.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[d_out, d_in]`, f32.
    pub weight: Tensor,
    /// `[d_out]`, f32.
    pub bias: Option<Tensor>,
}

impl Linear {
    /// `[.., d_in]` to `[.., d_out]`
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (d_out, d_in) = self.weight.dims2()?;
        let mut shape = x.dims().to_vec();
        shape.pop();
        let y = x.reshape(((), d_in))?.matmul(&self.weight.t()?)?;
        let y = match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        };
        shape.push(d_out);
        debug_assert_eq!(x.dim(D::Minus1)?, d_in);
        Ok(y.reshape(shape)?)
    }
}
