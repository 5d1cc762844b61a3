//! The vector-Jacobian product (VJP) of a norm whose denominators are frozen: its transpose, fused with the residual
//! it is added to.

use candle_core::{CpuStorage, CudaStorage, CustomOp2, CustomOp3, D, Device, Layout, Result, Shape, Tensor, bail};

use super::gpu::{Arg, Gpu, Kernel, Launch};
use super::{RaggedBatch, f32_slice};

const KERNEL: Kernel = Kernel { file: "norm_pullback", name: "norm_pullback", n_threads: 256 };

/// Rows that one thread block of the kernel computes: one a warp.
const TILE_ROWS: usize = 8;

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
        self.push(x, &self.packed.narrow(0, width, self.n_pos)?.unsqueeze(1)?)
    }

    /// As [`NormFactors::push_forward`], with positions first, the first of which is `pos`.
    ///
    /// # Shapes
    /// `x` `[up to n_pos - pos, .., width]` of three dimensions; returns the same shape.
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub fn push_forward_from(&self, x: &Tensor, pos: usize) -> Result<Tensor> {
        let (n, _, width) = x.dims3()?;
        self.push(x, &self.packed.narrow(0, width + pos, n)?.reshape((n, 1, 1))?)
    }

    fn push(&self, x: &Tensor, scale: &Tensor) -> Result<Tensor> {
        let gain = self.packed.narrow(0, 0, x.dim(D::Minus1)?)?;
        let centred = if self.centred { x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)? } else { x.clone() };
        centred.broadcast_mul(scale)?.broadcast_mul(&gain)
    }
}

/// `residual + centre(grad ⊙ gain · scale[position of the row])`; without a residual, the second part alone.
///
/// Centring is symmetric, so it is its own transpose.
///
/// # Shapes
/// `grad` and `residual` `[n_rows, width]` in the layout of `ragged`; returns the same shape. f32, contiguous.
///
/// # Errors
/// Shapes that do not fit `ragged` and `factors`.
pub fn norm_pullback(
    grad: &Tensor,
    residual: Option<&Tensor>,
    factors: &NormFactors,
    ragged: &RaggedBatch,
) -> Result<Tensor> {
    let op = NormPullback { centred: factors.centred, n_pos: factors.n_pos, ragged };
    match residual {
        Some(residual) => grad.apply_op3_no_bwd(&factors.packed, residual, &op),
        None => grad.apply_op2_no_bwd(&factors.packed, &op),
    }
}

/// A gradient and what the norm after the next MLP down makes of it, where there is one: `residual + grad`, and that
/// times the factors. On the CPU two passes, since a batch's rows stay in the cache; elsewhere one.
///
/// # Shapes
/// `grad` and `residual` `[n_rows, width]` in the layout of `ragged`; returns two of the same. f32, contiguous.
///
/// # Errors
/// Shapes that do not fit.
pub(super) fn add_then_norm(
    grad: &Tensor,
    residual: &Tensor,
    post: Option<&NormFactors>,
    ragged: &RaggedBatch,
) -> Result<(Tensor, Option<Tensor>)> {
    if let (Device::Cuda(device), false) = (grad.device(), post.is_some_and(|post| post.centred)) {
        return on_cuda::add_then_norm(device, grad, residual, post, ragged);
    }
    let sum = (residual + grad)?;
    let normed = post.map(|post| norm_pullback(&sum, None, post, ragged)).transpose()?;
    Ok((sum, normed))
}

/// What the kernel reads and writes; see `kernels/norm_pullback.cu`.
#[derive(Clone, Copy, Debug)]
pub struct NormPullbackArgs {
    /// `[n_rows, width]` f32
    pub out: Arg,
    /// `[n_rows, width]` f32, or null
    pub post_out: Arg,
    /// `[n_rows, width]` f32
    pub grad: Arg,
    /// `[n_rows, width]` f32, or null
    pub residual: Arg,
    /// Gain `[width]` and scale `[n_pos]`; null for none
    pub norm: [Arg; 2],
    /// Gain `[width]` and scale `[n_pos]` of what makes `post_out`; null for none
    pub post: [Arg; 2],
    /// `[n_rows]` u32
    pub row_positions: Arg,
    pub width: usize,
    pub centred: bool,
}

/// Runs the kernel on a device.
///
/// # Safety
/// The buffers are as large as `args` says for `ragged`.
///
/// # Errors
/// Those of the device.
pub unsafe fn launch<G: Gpu>(gpu: &G, args: &NormPullbackArgs, ragged: &RaggedBatch) -> Result<()> {
    let n_rows = ragged.n_rows();
    let args = vec![
        args.out,
        args.post_out,
        args.grad,
        args.residual,
        args.norm[0],
        args.norm[1],
        args.post[0],
        args.post[1],
        args.row_positions,
        Arg::size(n_rows)?,
        Arg::size(args.width)?,
        Arg::U32(u32::from(args.centred)),
    ];
    // SAFETY: the caller's promise.
    unsafe { gpu.launch(&Launch { kernel: KERNEL, grid: [n_rows.div_ceil(TILE_ROWS), 1, 1], args }) }
}

struct NormPullback<'a> {
    centred: bool,
    n_pos: usize,
    ragged: &'a RaggedBatch,
}

const NAME: &str = "norm_pullback";

impl NormPullback<'_> {
    /// The width, checked.
    fn width(&self, grad: &Shape, packed: &Shape, residual: Option<&Shape>) -> Result<usize> {
        let ((n_rows, width), n_packed) = (grad.dims2()?, packed.elem_count());
        if n_rows != self.ragged.n_rows() || n_packed != width + self.n_pos || self.n_pos < self.ragged.n_segments() {
            bail!(
                "{NAME}: grad {grad:?} with {n_packed} factors of {} positions, expected {} rows of {} positions",
                self.n_pos,
                self.ragged.n_rows(),
                self.ragged.n_segments()
            );
        }
        if let Some(residual) = residual.filter(|residual| *residual != grad) {
            bail!("{NAME}: residual {residual:?} and grad {grad:?} differ in size");
        }
        Ok(width)
    }

    fn cpu(&self, grad: &[f32], width: usize, packed: &[f32], residual: Option<&[f32]>) -> CpuStorage {
        let (gain, scale) = packed.split_at(width);
        let mut out = vec![0f32; grad.len()];
        pulp::Arch::new().dispatch(|| {
            for (row, pos) in self.ragged.row_positions().enumerate() {
                let range = row * width..(row + 1) * width;
                let out = &mut out[range.clone()];
                pull_back_row(out, &grad[range.clone()], gain, scale[pos], self.centred);
                if let Some(residual) = residual {
                    out.iter_mut().zip(&residual[range]).for_each(|(o, r)| *o += r);
                }
            }
        });
        CpuStorage::F32(out)
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

impl CustomOp2 for NormPullback<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let width = self.width(l1.shape(), l2.shape(), None)?;
        let out = self.cpu(f32_slice(NAME, s1, l1)?, width, f32_slice(NAME, s2, l2)?, None);
        Ok((out, l1.shape().clone()))
    }

    fn cuda_fwd(&self, s1: &CudaStorage, l1: &Layout, s2: &CudaStorage, l2: &Layout) -> Result<(CudaStorage, Shape)> {
        let width = self.width(l1.shape(), l2.shape(), None)?;
        let out = on_cuda::norm(self, (s1, l1), (s2, l2), None, width)?;
        Ok((out, l1.shape().clone()))
    }
}

impl CustomOp3 for NormPullback<'_> {
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
        let width = self.width(l1.shape(), l2.shape(), Some(l3.shape()))?;
        let residual = f32_slice(NAME, s3, l3)?;
        let out = self.cpu(f32_slice(NAME, s1, l1)?, width, f32_slice(NAME, s2, l2)?, Some(residual));
        Ok((out, l1.shape().clone()))
    }

    fn cuda_fwd(
        &self,
        s1: &CudaStorage,
        l1: &Layout,
        s2: &CudaStorage,
        l2: &Layout,
        s3: &CudaStorage,
        l3: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let width = self.width(l1.shape(), l2.shape(), Some(l3.shape()))?;
        let out = on_cuda::norm(self, (s1, l1), (s2, l2), Some((s3, l3)), width)?;
        Ok((out, l1.shape().clone()))
    }
}

mod on_cuda {
    use candle_core::backend::BackendStorage;
    use candle_core::{Layout, Result, Tensor, bail};

    use super::super::cuda::{self, CudaDevice, CudaStorage};
    use super::{Arg, Gpu, NAME, NormFactors, NormPullback, NormPullbackArgs, RaggedBatch, launch};

    type Operand<'a> = (&'a CudaStorage, &'a Layout);

    pub fn norm(
        op: &NormPullback,
        grad: Operand,
        packed: Operand,
        residual: Option<Operand>,
        width: usize,
    ) -> Result<CudaStorage> {
        let device = grad.0.device();
        let out = device.zeros::<f32>(grad.1.shape().elem_count())?;
        let gain = packed.1.narrow(0, 0, width)?;
        let scale = packed.1.narrow(0, width, op.n_pos)?;
        let args = NormPullbackArgs {
            out: device.arg(&out),
            post_out: Arg::Null,
            grad: cuda::arg(NAME, grad.0, grad.1)?,
            residual: residual.map_or(Ok(Arg::Null), |(storage, layout)| cuda::arg(NAME, storage, layout))?,
            norm: [cuda::arg(NAME, packed.0, &gain)?, cuda::arg(NAME, packed.0, &scale)?],
            post: [Arg::Null; 2],
            row_positions: op.ragged.row_positions_arg(device)?,
            width,
            centred: op.centred,
        };
        // SAFETY: sizes are checked by the operation.
        unsafe { launch(device, &args, op.ragged)? };
        Ok(cuda::storage(out, device))
    }

    pub fn add_then_norm(
        device: &CudaDevice,
        grad: &Tensor,
        residual: &Tensor,
        post: Option<&NormFactors>,
        ragged: &RaggedBatch,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let (n_rows, width) = grad.dims2()?;
        let fits =
            |post: &NormFactors| post.packed.elem_count() == width + post.n_pos && post.n_pos >= ragged.n_segments();
        if residual.shape() != grad.shape() || n_rows != ragged.n_rows() || !post.is_none_or(fits) {
            bail!("{NAME}: residual {:?}, grad {:?}, {} rows", residual.shape(), grad.shape(), ragged.n_rows());
        }
        let new = || Tensor::zeros((n_rows, width), candle_core::DType::F32, grad.device());
        let (sum, normed) = (new()?, post.map(|_| new()).transpose()?);
        let factors = |post: &NormFactors| -> Result<[Arg; 2]> {
            let (gain, scale) = (post.packed.narrow(0, 0, width)?, post.packed.narrow(0, width, post.n_pos)?);
            Ok([cuda::tensor_arg(NAME, &gain)?, cuda::tensor_arg(NAME, &scale)?])
        };
        let args = NormPullbackArgs {
            out: cuda::tensor_arg(NAME, &sum)?,
            post_out: normed.as_ref().map_or(Ok(Arg::Null), |normed| cuda::tensor_arg(NAME, normed))?,
            grad: cuda::tensor_arg(NAME, grad)?,
            residual: cuda::tensor_arg(NAME, residual)?,
            norm: [Arg::Null; 2],
            post: post.map_or(Ok([Arg::Null; 2]), factors)?,
            row_positions: ragged.row_positions_arg(device)?,
            width,
            centred: false,
        };
        // SAFETY: sizes are checked above.
        unsafe { launch(device, &args, ragged)? };
        Ok((sum, normed))
    }
}
