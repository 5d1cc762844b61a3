//! The vector-Jacobian product (VJP) of attention with a frozen pattern: its transpose, all heads at once.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

use super::causal_pattern::{n_packed, row_start};
use super::cuda::{self, CudaStorage};
use super::gpu::{Arg, Gpu, Kernel, Launch};
use super::{RaggedBatch, f32_slice};

const SHORT: Kernel = Kernel { file: "frozen_attention", name: "frozen_attention_short", n_threads: 128 };
const LONG: Kernel = Kernel { file: "frozen_attention", name: "frozen_attention_long", n_threads: 128 };

/// Keys that one thread block of either kernel computes, and dimensions of a head.
const SHORT_KEYS: usize = 8;
const LONG_KEYS: usize = 32;
const TILE_DIMS: usize = 64;

/// Up to this many positions the short kernel has less to do.
const SHORT_POSITIONS: usize = 16;

/// Neighbouring keys that the CPU side computes together: each gradient is loaded once for all of them.
const KEYS: usize = 4;
/// Vectors of neighbouring dimensions that it computes together: with [`KEYS`], what fits into 32 wide registers, and
/// for narrower vectors into 16.
const VECTORS: (usize, usize) = (4, 2);

/// Which queries a gradient has rows for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queries {
    /// All positions up to the target's own: `[n_rows, ..]` in the layout of the batch.
    All,
    /// The target's own position alone: `[n_targets, ..]`.
    Own,
}

/// `out[k, kv] = Σ_{q ≥ k} Σ_{heads h of kv} pattern[h, q, k] · grad_z[q, h]` for every target.
///
/// Keys and values are shared by groups of heads, so the sum over a group's heads is part of the transpose. The
/// pattern is causal, and a target's gradient exists at positions up to its own: `q < k` is never touched.
///
/// # Shapes
/// `grad_z` `[n_rows, n_heads · d_head]` in the layout of `ragged`, `pattern` `[n_heads, n_pos, n_pos]`, or on the CPU as
/// [`super::CausalPattern`] packs it; returns `[n_rows, n_kv_heads · d_head]`. All f32, contiguous.
///
/// # Errors
/// Shapes that do not fit `ragged`, or heads that do not divide.
pub fn frozen_attention(grad_z: &Tensor, pattern: &Tensor, n_kv_heads: usize, ragged: &RaggedBatch) -> Result<Tensor> {
    let op = FrozenAttention { n_kv_heads, ragged, queries: Queries::All };
    grad_z.apply_op2_no_bwd(pattern, &op)
}

/// As [`frozen_attention`], for a gradient that is zero but at each target's own position: at the layer where targets
/// enter, most of the work of the general form would be on zeros.
///
/// # Shapes
/// `grad_z` `[n_targets, n_heads · d_head]`; otherwise as [`frozen_attention`].
///
/// # Errors
/// As [`frozen_attention`].
pub fn frozen_attention_own(
    grad_z: &Tensor,
    pattern: &Tensor,
    n_kv_heads: usize,
    ragged: &RaggedBatch,
) -> Result<Tensor> {
    let op = FrozenAttention { n_kv_heads, ragged, queries: Queries::Own };
    grad_z.apply_op2_no_bwd(pattern, &op)
}

struct FrozenAttention<'a> {
    n_kv_heads: usize,
    ragged: &'a RaggedBatch,
    queries: Queries,
}

/// Sizes and operands of the CPU side.
struct Operands<'a> {
    grad_z: &'a [f32],
    pattern: &'a [f32],
    /// Whether each query has the keys up to its own alone.
    is_packed: bool,
    n_pos: usize,
    n_heads: usize,
    n_kv_heads: usize,
    d_head: usize,
    ragged: &'a RaggedBatch,
    queries: Queries,
}

/// The CPU side, for whatever vector width the processor has.
struct OnCpu<'a> {
    operands: Operands<'a>,
    out: &'a mut [f32],
}

impl pulp::WithSimd for OnCpu<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        let Self { operands, out } = self;
        for target in 0..operands.ragged.n_targets() {
            let last = operands.ragged.positions()[target];
            for kv in 0..operands.n_kv_heads {
                let mut key = 0;
                while key + KEYS <= last + 1 {
                    operands.keys::<S, KEYS>(simd, out, target, last, kv, key);
                    key += KEYS;
                }
                while key <= last {
                    operands.keys::<S, 1>(simd, out, target, last, kv, key);
                    key += 1;
                }
            }
        }
    }
}

impl Operands<'_> {
    /// `K` neighbouring keys of one target and kv head.
    #[inline(always)]
    fn keys<S: pulp::Simd, const K: usize>(
        &self,
        simd: S,
        out: &mut [f32],
        target: usize,
        last: usize,
        kv: usize,
        key: usize,
    ) {
        let mut at = 0;
        if S::F32_LANES >= 16 {
            at = self.vectors::<S, K, { VECTORS.0 }>(simd, out, target, last, kv, key, at);
        }
        at = self.vectors::<S, K, { VECTORS.1 }>(simd, out, target, last, kv, key, at);
        while at < self.d_head {
            let mut sums = [0f32; K];
            self.each_query::<K>(target, last, kv, key, at, 1, |weights, grad| {
                for k in 0..K {
                    sums[k] += weights[k] * grad[0];
                }
            });
            for (k, &sum) in sums.iter().enumerate() {
                self.out_row(out, target, kv, key + k, at)[0] = sum;
            }
            at += 1;
        }
    }

    /// As many times `V` vectors of dimensions as the head has from `at` on; returns where they end.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn vectors<S: pulp::Simd, const K: usize, const V: usize>(
        &self,
        simd: S,
        out: &mut [f32],
        target: usize,
        last: usize,
        kv: usize,
        key: usize,
        mut at: usize,
    ) -> usize {
        let n_dims = V * S::F32_LANES;
        while at + n_dims <= self.d_head {
            let mut sums = [[simd.splat_f32s(0.0); V]; K];
            self.each_query::<K>(target, last, kv, key, at, n_dims, |weights, grad| {
                let (grad, _) = S::as_simd_f32s(grad);
                for k in 0..K {
                    let weight = simd.splat_f32s(weights[k]);
                    for v in 0..V {
                        sums[k][v] = simd.mul_add_f32s(weight, grad[v], sums[k][v]);
                    }
                }
            });
            for (k, sums) in sums.iter().enumerate() {
                let (out, _) = S::as_mut_simd_f32s(self.out_row(out, target, kv, key + k, at));
                out[..V].copy_from_slice(sums);
            }
            at += n_dims;
        }
        at
    }

    /// Calls `add` with the weights of `K` keys and with `n_dims` dimensions of the gradient, for every query that
    /// sees the keys and every head of the group.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn each_query<const K: usize>(
        &self,
        target: usize,
        last: usize,
        kv: usize,
        key: usize,
        at: usize,
        n_dims: usize,
        mut add: impl FnMut([f32; K], &[f32]),
    ) {
        let n_rep = self.n_heads / self.n_kv_heads;
        let width = self.n_heads * self.d_head;
        let first = if self.queries == Queries::Own { last } else { key };
        for q in first..=last {
            let row = match self.queries {
                Queries::All => self.ragged.start(q) + target,
                Queries::Own => target,
            };
            for h in kv * n_rep..(kv + 1) * n_rep {
                let first = match self.is_packed {
                    true => h * row_start(self.n_pos) + row_start(q),
                    false => (h * self.n_pos + q) * self.n_pos,
                };
                let stored = &self.pattern[first + key..first + q + 1];
                let mut weights = [0f32; K];
                if let Some(stored) = stored.first_chunk::<K>() {
                    weights = *stored;
                } else {
                    // Keys after the query are none of its, whatever the pattern holds there.
                    weights[..stored.len()].copy_from_slice(stored);
                }
                add(weights, &self.grad_z[row * width + h * self.d_head + at..][..n_dims]);
            }
        }
    }

    /// What is written for one key, from dimension `at` of the head on.
    #[inline(always)]
    fn out_row<'o>(&self, out: &'o mut [f32], target: usize, kv: usize, key: usize, at: usize) -> &'o mut [f32] {
        let row = (self.ragged.start(key) + target) * self.n_kv_heads * self.d_head;
        &mut out[row + kv * self.d_head + at..row + (kv + 1) * self.d_head]
    }
}

/// What the kernels read and write; see `kernels/frozen_attention.cu`.
#[derive(Clone, Copy, Debug)]
pub struct FrozenAttentionArgs {
    /// `[n_rows, n_kv_heads · d_head]` f32: every element is written.
    pub out: Arg,
    /// `[n_rows, n_heads · d_head]`, or with [`Queries::Own`] `[n_targets, n_heads · d_head]`; f32
    pub grad_z: Arg,
    /// `[n_heads, n_pos, n_pos]` f32
    pub pattern: Arg,
    /// `[n_segments + 1]` u32
    pub segment_starts: Arg,
    /// `[n_targets]` u32
    pub positions: Arg,
    pub n_pos: usize,
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub d_head: usize,
    pub queries: Queries,
}

/// Runs the kernel on a device: with 8 keys a thread block for short prompts, with 32 for long ones.
///
/// # Safety
/// The buffers are as large as `args` says for `ragged`.
///
/// # Errors
/// Those of the device.
pub unsafe fn launch<G: Gpu>(gpu: &G, args: &FrozenAttentionArgs, ragged: &RaggedBatch) -> Result<()> {
    let (kernel, keys) = if ragged.n_segments() <= SHORT_POSITIONS { (SHORT, SHORT_KEYS) } else { (LONG, LONG_KEYS) };
    let slices = args.n_kv_heads * args.d_head.div_ceil(TILE_DIMS);
    let grid = [ragged.n_targets(), ragged.n_segments().div_ceil(keys), slices];
    let args = vec![
        args.out,
        args.grad_z,
        args.pattern,
        args.segment_starts,
        args.positions,
        Arg::size(args.n_pos)?,
        Arg::size(args.n_heads)?,
        Arg::size(args.n_kv_heads)?,
        Arg::size(args.d_head)?,
        Arg::U32(u32::from(args.queries == Queries::Own)),
    ];
    // SAFETY: the caller's promise.
    unsafe { gpu.launch(&Launch { kernel, grid, args }) }
}

impl FrozenAttention<'_> {
    /// Numbers of heads and of positions and the size of a head, checked.
    fn sizes(&self, grad_z: &Shape, pattern: &Shape) -> Result<(usize, usize, usize)> {
        let (n_rows, width) = grad_z.dims2()?;
        let (n_heads, n_pos, n_keys) = match *pattern.dims() {
            [n_heads, len] => n_packed(len).map_or((n_heads, 0, len), |n_pos| (n_heads, n_pos, n_pos)),
            _ => pattern.dims3()?,
        };
        let (ragged, n_kv_heads) = (self.ragged, self.n_kv_heads);
        let expected_rows = match self.queries {
            Queries::All => ragged.n_rows(),
            Queries::Own => ragged.n_targets(),
        };
        if n_rows != expected_rows || n_pos < ragged.n_segments() || n_keys != n_pos {
            bail!(
                "frozen_attention: grad {grad_z:?} and pattern {pattern:?} for {expected_rows} rows of {} positions",
                ragged.n_segments()
            );
        }
        if n_kv_heads == 0 || !n_heads.is_multiple_of(n_kv_heads) || !width.is_multiple_of(n_heads) {
            bail!("frozen_attention: width {width}, {n_heads} heads, {n_kv_heads} kv heads do not divide");
        }
        Ok((n_heads, n_pos, width / n_heads))
    }
}

impl CustomOp2 for FrozenAttention<'_> {
    fn name(&self) -> &'static str {
        "frozen_attention"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n_heads, n_pos, d_head) = self.sizes(l1.shape(), l2.shape())?;
        let (ragged, n_kv_heads) = (self.ragged, self.n_kv_heads);
        let operands = Operands {
            grad_z: f32_slice(self.name(), s1, l1)?,
            pattern: f32_slice(self.name(), s2, l2)?,
            is_packed: l2.dims().len() == 2,
            n_pos,
            n_heads,
            n_kv_heads,
            d_head,
            ragged,
            queries: self.queries,
        };
        let out_width = n_kv_heads * d_head;
        let mut out = vec![0f32; ragged.n_rows() * out_width];
        pulp::Arch::new().dispatch(OnCpu { operands, out: &mut out });
        Ok((CpuStorage::F32(out), Shape::from((ragged.n_rows(), out_width))))
    }

    fn cuda_fwd(&self, s1: &CudaStorage, l1: &Layout, s2: &CudaStorage, l2: &Layout) -> Result<(CudaStorage, Shape)> {
        let (n_heads, _, d_head) = self.sizes(l1.shape(), l2.shape())?;
        if l2.dims().len() != 3 {
            bail!("frozen_attention: a packed pattern on a GPU");
        }
        let (ragged, n_kv_heads) = (self.ragged, self.n_kv_heads);
        let device = s1.device();
        let out = device.zeros::<f32>(ragged.n_rows() * n_kv_heads * d_head)?;
        let args = FrozenAttentionArgs {
            out: device.arg(&out),
            grad_z: cuda::arg(self.name(), s1, l1)?,
            pattern: cuda::arg(self.name(), s2, l2)?,
            segment_starts: ragged.starts().arg(device)?,
            positions: ragged.positions().arg(device)?,
            n_pos: l2.dims()[1],
            n_heads,
            n_kv_heads,
            d_head,
            queries: self.queries,
        };
        // SAFETY: sizes are checked above.
        unsafe { launch(device, &args, ragged)? };
        Ok((cuda::storage(out, device), Shape::from((ragged.n_rows(), n_kv_heads * d_head))))
    }
}
