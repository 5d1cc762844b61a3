//! Dense products of the row phase.
//!
//! On the CPU a product runs on the calling thread: batches are what runs in parallel, so that a batch's buffers stay
//! in one core's cache and no thread waits for another. On other devices it is candle's own product.

use candle_core::{CpuStorage, CustomOp2, Device, InplaceOp3, Layout, Result, Shape, Tensor, bail};

use super::norm_pullback::{NormFactors, add_then_norm, norm_pullback};
use super::{RaggedBatch, f32_slice};

/// `x · w`.
///
/// # Shapes
/// `x` `[n_rows, d_in]`, `w` `[d_in, d_out]`; returns `[n_rows, d_out]`. f32, contiguous.
///
/// # Errors
/// Shapes that do not fit.
pub fn matmul(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    match x.device() {
        Device::Cpu => x.apply_op2_no_bwd(w, &MatMul::PLAIN),
        _ => x.matmul(w),
    }
}

/// `x · wᵀ`, without a copy of `w`.
///
/// # Shapes
/// `x` `[n_rows, d_in]`, `w` `[d_out, d_in]`; returns `[n_rows, d_out]`. f32, contiguous.
///
/// # Errors
/// Shapes that do not fit.
pub fn matmul_transposed(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    match x.device() {
        Device::Cpu => x.apply_op2_no_bwd(w, &MatMul::TRANSPOSED),
        _ => x.matmul(&w.t()?),
    }
}

/// `sum + x · wᵀ`, without a copy of `w`; on the CPU the sum is made in place.
///
/// # Shapes
/// `sum` `[n_rows, d_out]`, `x` `[n_rows, d_in]`, `w` `[d_out, d_in]`; returns the shape of `sum`. f32, contiguous.
///
/// # Errors
/// Shapes that do not fit.
pub fn add_transposed_product(sum: Tensor, x: &Tensor, w: &Tensor) -> Result<Tensor> {
    match sum.device() {
        Device::Cpu => {
            sum.inplace_op3(x, w, &MatMul::TRANSPOSED)?;
            Ok(sum)
        }
        _ => sum + x.matmul(&w.t()?)?,
    }
}

/// `sum + x · w`, and what the norm after the next MLP down makes of it, where there is one. On the CPU the sum is
/// made in place.
///
/// # Shapes
/// `sum` `[n_rows, d_out]` in the layout of `ragged`, `x` `[n_rows, d_in]`, `w` `[d_in, d_out]`; returns one or two of
/// the shape of `sum`. f32, contiguous.
///
/// # Errors
/// Shapes that do not fit.
pub fn add_product(
    sum: Tensor,
    x: &Tensor,
    w: &Tensor,
    post: Option<&NormFactors>,
    ragged: &RaggedBatch,
) -> Result<(Tensor, Option<Tensor>)> {
    match sum.device() {
        Device::Cpu => {
            sum.inplace_op3(x, w, &MatMul::PLAIN)?;
            let normed = post.map(|post| norm_pullback(&sum, None, post, ragged)).transpose()?;
            Ok((sum, normed))
        }
        _ => add_then_norm(&x.matmul(w)?, &sum, post, ragged),
    }
}

struct MatMul {
    /// Whether the second matrix is `[d_out, d_in]`.
    transposed: bool,
}

const NAME: &str = "matmul";

impl MatMul {
    const PLAIN: Self = Self { transposed: false };
    const TRANSPOSED: Self = Self { transposed: true };

    /// Sizes of a product, checked: (n_rows, d_in, d_out).
    fn sizes(&self, x: &Layout, w: &Layout) -> Result<(usize, usize, usize)> {
        let ((n_rows, d_in), (first, second)) = (x.shape().dims2()?, w.shape().dims2()?);
        let (w_in, d_out) = if self.transposed { (second, first) } else { (first, second) };
        if d_in != w_in {
            bail!("{NAME}: {:?} times {:?}", x.shape(), w.shape());
        }
        Ok((n_rows, d_in, d_out))
    }

    /// `out = x · w`, or `out += x · w`; row-major all three.
    fn gemm(&self, out: &mut [f32], x: &[f32], w: &[f32], (n_rows, d_in, d_out): (usize, usize, usize), add: bool) {
        let w = if self.transposed { (w, 1, d_in) } else { (w, d_out, 1) };
        strided(out, (x, d_in, 1), w, (n_rows, d_in, d_out), add);
    }
}

/// `out = x · wᵀ` on the calling thread.
///
/// # Shapes
/// `sizes` (n_rows, d_in, d_out); `out` `[n_rows, d_out]`, `x` `[n_rows, d_in]`, `w` `[d_out, d_in]`, row-major.
///
/// # Panics
/// Lengths that are not those of `sizes`.
pub(crate) fn product_with_transpose(out: &mut [f32], x: &[f32], w: &[f32], sizes: (usize, usize, usize)) {
    strided(out, (x, sizes.1, 1), (w, 1, sizes.1), sizes, false);
}

/// `out = x · w` on the calling thread.
///
/// # Shapes
/// `sizes` (n_rows, d_in, d_out); `out` `[n_rows, d_out]`, `x` `[n_rows, d_in]`, `w` `[d_in, d_out]`, row-major.
///
/// # Panics
/// Lengths that are not those of `sizes`.
pub(crate) fn product(out: &mut [f32], x: &[f32], w: &[f32], sizes: (usize, usize, usize)) {
    strided(out, (x, sizes.1, 1), (w, sizes.2, 1), sizes, false);
}

/// `out = xᵀ · w` on the calling thread.
///
/// # Shapes
/// `sizes` (d_out, n_rows, d_in); `out` `[d_out, d_in]`, `x` `[n_rows, d_out]`, `w` `[n_rows, d_in]`, row-major.
///
/// # Panics
/// Lengths that are not those of `sizes`.
pub(crate) fn transpose_product(out: &mut [f32], x: &[f32], w: &[f32], sizes: (usize, usize, usize)) {
    strided(out, (x, 1, sizes.0), (w, sizes.2, 1), sizes, false);
}

/// A matrix, and the steps from one row and from one column to the next.
type Strided<'a> = (&'a [f32], usize, usize);

fn strided(out: &mut [f32], x: Strided, w: Strided, (n_rows, d_in, d_out): (usize, usize, usize), add: bool) {
    assert!(out.len() == n_rows * d_out && x.0.len() == n_rows * d_in && w.0.len() == d_in * d_out);
    // SAFETY: the lengths are those of the sizes, as just checked, and the strides those of one order of rows and columns
    // or the other, so that no element is outside; `out` is borrowed mutably.
    unsafe {
        gemm::gemm(
            n_rows,
            d_out,
            d_in,
            out.as_mut_ptr(),
            1,
            d_out as isize,
            add,
            x.0.as_ptr(),
            x.2 as isize,
            x.1 as isize,
            w.0.as_ptr(),
            w.2 as isize,
            w.1 as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

impl CustomOp2 for MatMul {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let sizes = self.sizes(l1, l2)?;
        let mut out = vec![0f32; sizes.0 * sizes.2];
        self.gemm(&mut out, f32_slice(NAME, s1, l1)?, f32_slice(NAME, s2, l2)?, sizes, false);
        Ok((CpuStorage::F32(out), Shape::from((sizes.0, sizes.2))))
    }
}

impl InplaceOp3 for MatMul {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        s1: &mut CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<()> {
        let sizes = self.sizes(l2, l3)?;
        if l1.shape().dims2()? != (sizes.0, sizes.2) {
            bail!("{NAME}: {:?} times {:?} added to {:?}", l2.shape(), l3.shape(), l1.shape());
        }
        let (Some((start, end)), CpuStorage::F32(sum)) = (l1.contiguous_offsets(), s1) else {
            bail!("{NAME}: expected a contiguous f32 sum");
        };
        self.gemm(&mut sum[start..end], f32_slice(NAME, s2, l2)?, f32_slice(NAME, s3, l3)?, sizes, true);
        Ok(())
    }
}
