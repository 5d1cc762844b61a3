//! The transpose of a norm whose denominators are frozen, fused with the residual it is added to.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, D, Layout, Result, Shape, Tensor, bail};

use super::{TargetBlocks, f32_slice};

/// What a frozen norm multiplies by.
#[derive(Clone, Debug)]
pub struct NormFactors {
    /// The gain, then one scale a position. `[width + n_pos]`
    packed: Tensor,
    /// LayerNorm subtracts the mean, before it scales.
    centred: bool,
    n_pos: usize,
}

impl NormFactors {
    /// Packs the gain `[width]` and the frozen scales `[n_pos]`.
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub fn new(gain: &Tensor, scale: &Tensor, centred: bool) -> Result<Self> {
        let n_pos = scale.elem_count();
        let packed = Tensor::cat(&[&gain.flatten_all()?, &scale.flatten_all()?], 0)?;
        Ok(Self { packed, centred, n_pos })
    }

    /// The norm itself without its bias, denominators frozen: `centre(x) · scale[position] ⊙ gain`, in plain tensor
    /// operations.
    ///
    /// # Shapes
    /// `x` `[.., n_pos, width]`; returns the same shape.
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub fn push_forward(&self, x: &Tensor) -> Result<Tensor> {
        let width = x.dim(D::Minus1)?;
        let gain = self.packed.narrow(0, 0, width)?;
        let scale = self.packed.narrow(0, width, self.n_pos)?.unsqueeze(1)?;
        let centred = if self.centred { x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)? } else { x.clone() };
        centred.broadcast_mul(&scale)?.broadcast_mul(&gain)
    }
}

/// `residual + centre(grad ⊙ gain · scale[position of the row])`; without a residual, the second part alone.
///
/// Centring is symmetric, so it is its own transpose.
///
/// # Shapes
/// `grad` and `residual` `[n_rows, width]` in the layout of `blocks`; returns the same shape. f32, contiguous.
///
/// # Errors
/// Shapes that do not fit `blocks` and `factors`.
pub fn norm_pullback(
    grad: &Tensor,
    residual: Option<&Tensor>,
    factors: &NormFactors,
    blocks: &TargetBlocks,
) -> Result<Tensor> {
    let op = NormPullback { centred: factors.centred, n_pos: factors.n_pos, blocks: blocks.clone() };
    match residual {
        Some(residual) => grad.apply_op3_no_bwd(&factors.packed, residual, &op),
        None => grad.apply_op2_no_bwd(&factors.packed, &op),
    }
}

struct NormPullback {
    centred: bool,
    n_pos: usize,
    blocks: TargetBlocks,
}

const NAME: &str = "norm_pullback";

impl NormPullback {
    fn cpu(
        &self,
        grad: &[f32],
        shape: &Shape,
        packed: &[f32],
        residual: Option<&[f32]>,
    ) -> Result<(CpuStorage, Shape)> {
        let (n_rows, width) = shape.dims2()?;
        if n_rows != self.blocks.n_rows() || packed.len() != width + self.n_pos || self.n_pos < self.blocks.n_blocks() {
            bail!(
                "{NAME}: grad {shape:?} with {} factors of {} positions, expected {} rows of {} positions",
                packed.len(),
                self.n_pos,
                self.blocks.n_rows(),
                self.blocks.n_blocks()
            );
        }
        if residual.is_some_and(|r| r.len() != grad.len()) {
            bail!("{NAME}: residual and grad differ in size");
        }
        let (gain, scale) = packed.split_at(width);
        let mut out = vec![0f32; grad.len()];
        pulp::Arch::new().dispatch(|| {
            for (row, pos) in self.blocks.row_positions().enumerate() {
                let range = row * width..(row + 1) * width;
                let out = &mut out[range.clone()];
                pull_back_row(out, &grad[range.clone()], gain, scale[pos], self.centred);
                if let Some(residual) = residual {
                    out.iter_mut().zip(&residual[range]).for_each(|(o, r)| *o += r);
                }
            }
        });
        Ok((CpuStorage::F32(out), shape.clone()))
    }
}

#[inline(always)]
fn pull_back_row(out: &mut [f32], grad: &[f32], gain: &[f32], scale: f32, centred: bool) {
    for ((out, grad), gain) in out.iter_mut().zip(grad).zip(gain) {
        *out = grad * gain * scale;
    }
    if centred {
        let mean = (out.iter().map(|&v| f64::from(v)).sum::<f64>() / out.len() as f64) as f32;
        out.iter_mut().for_each(|v| *v -= mean);
    }
}

impl CustomOp2 for NormPullback {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        self.cpu(f32_slice(NAME, s1, l1)?, l1.shape(), f32_slice(NAME, s2, l2)?, None)
    }
}

impl CustomOp3 for NormPullback {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let residual = f32_slice(NAME, s3, l3)?;
        self.cpu(f32_slice(NAME, s1, l1)?, l1.shape(), f32_slice(NAME, s2, l2)?, Some(residual))
    }
}
