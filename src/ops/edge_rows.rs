//! Reads: dot products of the pulled-back gradient with the vectors of the sources at their positions.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, Device, Layout, Result, Shape, Tensor, bail};

use super::cuda::{self, CudaDevice, CudaStorage, tensor_arg};
use super::gpu::{Arg, Gpu, Kernel, Launch};
use super::{RaggedBatch, SourceVecs, f32_slice};

const KERNEL: Kernel = Kernel { file: "edge_rows", name: "edge_rows", n_threads: 128 };

/// So many targets are multiplied with shared vectors where these are: side by side they would be read more often than
/// they are used.
const FEW_TARGETS: usize = 4;

/// Targets and sources that one thread block of the kernel computes.
const TILE: (usize, usize) = (64, 32);

/// `out[t, s] = ⟨grad of target t at the position of source s, vec of s⟩`, 0 where the source's position is after
/// the target's.
///
/// Sources are sorted by position, so each position is one product `[count(p), width] × [width, sources there]`.
///
/// # Shapes
/// `grad` `[n_rows, width]` in the layout of `ragged`, f32, contiguous. Returns `[n_targets, n_sources]`; on the CPU a
/// view of the transpose: there are far more targets than sources at a position, and a product is quickest along its
/// longer side.
///
/// # Errors
/// Shapes that do not fit `ragged` and `starts`.
pub fn edge_rows(grad: &Tensor, sources: &SourceVecs, ragged: &RaggedBatch) -> Result<Tensor> {
    let effects = grad.apply_op2_no_bwd(sources.table(), &EdgeRows { ragged, sources })?;
    match grad.device() {
        Device::Cpu => effects.t(),
        _ => Ok(effects),
    }
}

struct EdgeRows<'a> {
    ragged: &'a RaggedBatch,
    sources: &'a SourceVecs,
}

pub(super) const NAME: &str = "edge_rows";

/// Width and number of sources, checked.
pub(super) fn sizes(grad: &Shape, ragged: &RaggedBatch, sources: &SourceVecs) -> Result<(usize, usize)> {
    let ((n_rows, width), (n_sources, vec_width)) = (grad.dims2()?, (sources.n_vecs()?, sources.width()?));
    if n_rows != ragged.n_rows() || width != vec_width {
        bail!("{NAME}: grad {grad:?}, expected [{}, {vec_width}]", ragged.n_rows());
    }
    let starts = &sources.starts;
    let covered = starts.len() > ragged.n_segments() && starts.is_sorted() && starts.last() == Some(&n_sources);
    if !covered {
        bail!("{NAME}: {} positions of sources for {} segments", starts.len().max(1) - 1, ragged.n_segments());
    }
    Ok((width, n_sources))
}

/// What the kernel reads and writes; see `kernels/edge_rows.cu`.
#[derive(Clone, Copy, Debug)]
pub struct EdgeRowsArgs {
    /// `[n_targets, row_stride]` f32: added to.
    pub rows: Arg,
    pub row_stride: usize,
    /// `[n_rows, width]` f32
    pub grad: Arg,
    /// `[n_sources, width]` f32
    pub vecs: Arg,
    /// Column of each source, all different; null for their numbers. `[n_sources]` u32
    pub columns: Arg,
    /// `[n_segments + 1]` u32
    pub segment_starts: Arg,
    /// `[n_pos + 1]` u32
    pub source_starts: Arg,
    pub width: usize,
}

/// Adds the effects of sources to rows on a device: `rows[t, columns[s]] += ..`, as [`edge_rows`] computes them.
///
/// # Safety
/// The buffers are as large as `args` says for `ragged` and `starts`, columns below `row_stride`.
///
/// # Errors
/// Those of the device.
pub unsafe fn launch<G: Gpu>(gpu: &G, args: &EdgeRowsArgs, ragged: &RaggedBatch, starts: &[usize]) -> Result<()> {
    let at_most = starts.windows(2).take(ragged.n_segments()).map(|s| s[1] - s[0]).max().unwrap_or(0);
    let grid = [at_most.div_ceil(TILE.1), ragged.n_targets().div_ceil(TILE.0), ragged.n_segments()];
    let args = vec![
        args.rows,
        args.grad,
        args.vecs,
        args.columns,
        args.segment_starts,
        args.source_starts,
        Arg::size(args.row_stride)?,
        Arg::size(args.width)?,
    ];
    // SAFETY: the caller's promise.
    unsafe { gpu.launch(&Launch { kernel: KERNEL, grid, args }) }
}

impl CustomOp2 for EdgeRows<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (width, n_sources) = sizes(l1.shape(), self.ragged, self.sources)?;
        let (ragged, starts) = (self.ragged, &self.sources.starts);
        let (grad, table) = (f32_slice(NAME, s1, l1)?, f32_slice(NAME, s2, l2)?);
        let mut place = Vec::new();
        let n_targets = ragged.n_targets();
        let mut out = vec![0f32; n_targets * n_sources];
        for p in (0..ragged.n_segments()).filter(|&p| starts[p] < starts[p + 1]) {
            let (n, from, to) = (ragged.count(p), starts[p], starts[p + 1]);
            let lhs = &grad[ragged.start(p) * width..][..n * width];
            if n <= FEW_TARGETS
                && self.sources.few(table, (from, to), (lhs, width), (&mut out[from * n_targets..], n_targets))
            {
                continue;
            }
            let rhs = self.sources.range(table, (from, to), width, &mut place);
            let out = &mut out[from * n_targets..to * n_targets];
            // SAFETY: the destination is [to - from, n_targets] and its first `n` columns are written; both operands
            // are exactly as long as their sizes and strides say.
            unsafe {
                gemm::gemm(
                    n,
                    to - from,
                    width,
                    out.as_mut_ptr(),
                    n_targets as isize,
                    1,
                    false,
                    lhs.as_ptr(),
                    1,
                    width as isize,
                    rhs.as_ptr(),
                    width as isize,
                    1,
                    0.0,
                    1.0,
                    false,
                    false,
                    false,
                    gemm::Parallelism::None,
                );
            }
        }
        Ok((CpuStorage::F32(out), Shape::from((n_sources, n_targets))))
    }

    fn cuda_fwd(&self, s1: &CudaStorage, l1: &Layout, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        let (_, n_sources) = sizes(l1.shape(), self.ragged, self.sources)?;
        let n_targets = self.ragged.n_targets();
        let device = s1.device();
        let rows = device.zeros::<f32>(n_targets * n_sources)?;
        let grad = cuda::arg(NAME, s1, l1)?;
        // SAFETY: sizes are checked above, the rows have a column a source.
        unsafe {
            launch_on_tensors(device, (device.arg(&rows), n_sources), grad, self.sources, Arg::Null, self.ragged)?
        };
        Ok((cuda::storage(rows, device), Shape::from((n_targets, n_sources))))
    }
}

/// [`launch`] for tensors on a GPU: adds effects to rows, given with their stride.
///
/// # Safety
/// [`sizes`] has checked gradient and sources; the columns, as in [`EdgeRowsArgs`], are below the rows' stride.
pub(super) unsafe fn launch_on_tensors(
    device: &CudaDevice,
    (rows, row_stride): (Arg, usize),
    grad: Arg,
    sources: &SourceVecs,
    columns: Arg,
    ragged: &RaggedBatch,
) -> Result<()> {
    let args = EdgeRowsArgs {
        rows,
        row_stride,
        grad,
        vecs: tensor_arg(NAME, sources.table())?,
        columns,
        segment_starts: ragged.starts().arg(device)?,
        source_starts: sources.starts.arg(device)?,
        width: sources.width()?,
    };
    // SAFETY: the caller's promise.
    unsafe { launch(device, &args, ragged, &sources.starts) }
}
