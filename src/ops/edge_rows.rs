//! Reads: dot products of the pulled-back gradient with the vectors of the sources at their positions.

use candle_core::{CpuStorage, CustomOp2, DType, Device, Layout, Result, Shape, Storage, Tensor, bail};

use super::gpu::{Arg, Gpu, Kernel, Launch};
use super::{Indices, TargetBlocks, f32_slice};

const F32: Kernel = Kernel { file: "edge_rows", name: "edge_rows_f32", n_threads: 128 };
const BF16: Kernel = Kernel { file: "edge_rows", name: "edge_rows_bf16", n_threads: 128 };

/// Targets and sources that one block of the kernel computes.
const TILE: (usize, usize) = (64, 32);

/// Vectors of sources, sorted by position.
#[derive(Clone, Debug)]
pub struct SourceVecs {
    /// `[n_sources, width]`, f32 or bf16, contiguous.
    pub vecs: Tensor,
    /// What each vector is multiplied by; `None` for 1. `[n_sources]`, f32.
    pub scales: Option<Tensor>,
    /// First source of each position, and the number of sources. `[n_pos + 1]`
    pub starts: Indices,
}

/// `out[t, s] = scale[s] · ⟨grad of target t at the position of source s, vec of s⟩`, 0 where the source's position is
/// behind the target's.
///
/// Sources are sorted by position, so each position is one product `[count(p), width] × [width, sources there]`.
///
/// # Shapes
/// `grad` `[n_rows, width]` in the layout of `blocks`, f32, contiguous. Returns `[n_targets, n_sources]`; on the CPU a
/// view of the transpose: there are far more targets than sources at a position, and a product is quickest along its
/// longer side.
///
/// # Errors
/// Shapes that do not fit `blocks` and `starts`.
pub fn edge_rows(grad: &Tensor, sources: &SourceVecs, blocks: &TargetBlocks) -> Result<Tensor> {
    let effects = grad.apply_op2_no_bwd(&sources.vecs, &EdgeRows { blocks, sources })?;
    match grad.device() {
        Device::Cpu => effects.t(),
        _ => Ok(effects),
    }
}

struct EdgeRows<'a> {
    blocks: &'a TargetBlocks,
    sources: &'a SourceVecs,
}

pub(super) const NAME: &str = "edge_rows";

/// Width and number of sources, checked.
pub(super) fn sizes(grad: &Shape, vecs: &Shape, blocks: &TargetBlocks, sources: &SourceVecs) -> Result<(usize, usize)> {
    let ((n_rows, width), (n_sources, vec_width)) = (grad.dims2()?, vecs.dims2()?);
    if n_rows != blocks.n_rows() || width != vec_width {
        bail!("{NAME}: grad {grad:?}, expected [{}, {vec_width}]", blocks.n_rows());
    }
    let starts = &sources.starts;
    let covered = starts.len() > blocks.n_blocks() && starts.is_sorted() && starts.last() == Some(&n_sources);
    if !covered {
        bail!("{NAME}: {} positions of sources for {} blocks", starts.len().max(1) - 1, blocks.n_blocks());
    }
    if let Some(scales) = sources.scales.as_ref().filter(|scales| scales.dims() != [n_sources]) {
        bail!("{NAME}: scales {:?} for {n_sources} sources", scales.shape());
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
    /// `[n_sources, width]`
    pub vecs: Arg,
    /// F32 or BF16.
    pub vecs_dtype: DType,
    /// `[n_sources]` f32, or null
    pub scales: Arg,
    /// Column of each source, all different; null for their numbers. `[n_sources]` u32
    pub columns: Arg,
    /// `[n_blocks + 1]` u32
    pub block_starts: Arg,
    /// `[n_pos + 1]` u32
    pub source_starts: Arg,
    pub width: usize,
}

/// Adds the effects of sources to rows on a device: `rows[t, columns[s]] += ..`, as [`edge_rows`] computes them.
///
/// # Safety
/// The buffers are as large as `args` says for `blocks` and `starts`, columns below `row_stride`.
///
/// # Errors
/// Those of the device; vectors that are neither f32 nor bf16.
pub unsafe fn launch<G: Gpu>(gpu: &G, args: &EdgeRowsArgs, blocks: &TargetBlocks, starts: &[usize]) -> Result<()> {
    let kernel = match args.vecs_dtype {
        DType::F32 => F32,
        DType::BF16 => BF16,
        other => bail!("{NAME}: vectors are {other:?}, expected F32 or BF16"),
    };
    let at_most = starts.windows(2).take(blocks.n_blocks()).map(|s| s[1] - s[0]).max().unwrap_or(0);
    let grid = [at_most.div_ceil(TILE.1), blocks.n_targets().div_ceil(TILE.0), blocks.n_blocks()];
    let args = vec![
        args.rows,
        args.grad,
        args.vecs,
        args.scales,
        args.columns,
        args.block_starts,
        args.source_starts,
        Arg::size(args.row_stride)?,
        Arg::size(args.width)?,
    ];
    // SAFETY: the caller's promise.
    unsafe { gpu.launch(&Launch { kernel, grid, args }) }
}

impl CustomOp2 for EdgeRows<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (width, n_sources) = sizes(l1.shape(), l2.shape(), self.blocks, self.sources)?;
        let (blocks, starts) = (self.blocks, &self.sources.starts);
        let grad = f32_slice(NAME, s1, l1)?;
        let widened: Vec<f32>;
        let vecs = match (s2, l2.contiguous_offsets()) {
            (CpuStorage::BF16(bits), Some((start, end))) => {
                widened = bits[start..end].iter().map(|v| v.to_f32()).collect();
                &widened
            }
            _ => f32_slice(NAME, s2, l2)?,
        };
        let n_targets = blocks.n_targets();
        let mut out = vec![0f32; n_targets * n_sources];
        for p in (0..blocks.n_blocks()).filter(|&p| starts[p] < starts[p + 1]) {
            let (n, from, to) = (blocks.count(p), starts[p], starts[p + 1]);
            let lhs = &grad[blocks.start(p) * width..][..n * width];
            let rhs = &vecs[from * width..to * width];
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
        if let Some(scales) = &self.sources.scales {
            let (storage, layout) = scales.storage_and_layout();
            let Storage::Cpu(storage) = &*storage else { bail!("{NAME}: scales are on another device") };
            for (effects, scale) in out.chunks_exact_mut(n_targets.max(1)).zip(f32_slice(NAME, storage, layout)?) {
                effects.iter_mut().for_each(|effect| *effect *= scale);
            }
        }
        Ok((CpuStorage::F32(out), Shape::from((n_sources, n_targets))))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        s1: &super::cuda::CudaStorage,
        l1: &Layout,
        _: &super::cuda::CudaStorage,
        l2: &Layout,
    ) -> Result<(super::cuda::CudaStorage, Shape)> {
        use super::cuda;
        let (_, n_sources) = sizes(l1.shape(), l2.shape(), self.blocks, self.sources)?;
        let n_targets = self.blocks.n_targets();
        let device = &s1.device;
        let rows = device.zeros::<f32>(n_targets * n_sources)?;
        let grad = cuda::arg::<f32>(NAME, s1, l1)?;
        // SAFETY: sizes are checked above, the rows have a column a source.
        unsafe { add_on_cuda(device, (device.arg(&rows), n_sources), grad, self.sources, Arg::Null, self.blocks)? };
        Ok((cuda::storage(rows, device), Shape::from((n_targets, n_sources))))
    }
}

/// [`launch`] for tensors on a GPU: adds effects to rows, given with their stride.
///
/// # Safety
/// [`sizes`] has checked gradient and sources; the columns, as in [`EdgeRowsArgs`], are below the rows' stride.
#[cfg(feature = "cuda")]
pub(super) unsafe fn add_on_cuda(
    device: &super::cuda::CudaDevice,
    (rows, row_stride): (Arg, usize),
    grad: Arg,
    sources: &SourceVecs,
    columns: Arg,
    blocks: &TargetBlocks,
) -> Result<()> {
    use super::cuda::tensor_arg;
    let vecs_dtype = sources.vecs.dtype();
    let args = EdgeRowsArgs {
        rows,
        row_stride,
        grad,
        vecs: match vecs_dtype {
            DType::BF16 => tensor_arg::<half::bf16>(NAME, &sources.vecs)?,
            _ => tensor_arg::<f32>(NAME, &sources.vecs)?,
        },
        vecs_dtype,
        scales: sources.scales.as_ref().map_or(Ok(Arg::Null), |scales| tensor_arg::<f32>(NAME, scales))?,
        columns,
        block_starts: blocks.starts().arg(device)?,
        source_starts: sources.starts.arg(device)?,
        width: sources.vecs.dim(1)?,
    };
    // SAFETY: the caller's promise.
    unsafe { launch(device, &args, blocks, &sources.starts) }
}
