//! Reads: dot products of the pulled-back gradient with the vectors of the sources at their positions.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

use super::{TargetBlocks, f32_slice};

/// First source of each position, and the number of sources. `[n_pos + 1]`
pub type SourceStarts = Vec<usize>;

/// `out[t, s] = ⟨grad of target t at the position of source s, vec of s⟩`, 0 where the source's position is behind
/// the target's.
///
/// Sources are sorted by position, so each position is one product `[count(p), width] × [width, sources there]`.
///
/// # Shapes
/// `grad` `[n_rows, width]` in the layout of `blocks`; `vecs` `[n_sources, width]`, those of position `p` being
/// `starts[p]..starts[p + 1]`; both f32, contiguous. Returns `[n_targets, n_sources]`, a view of the transpose:
/// there are far more targets than sources at a position, and a product is quickest along its longer side.
///
/// # Errors
/// Shapes that do not fit `blocks` and `starts`.
pub fn edge_rows(grad: &Tensor, vecs: &Tensor, blocks: &TargetBlocks, starts: &SourceStarts) -> Result<Tensor> {
    grad.apply_op2_no_bwd(vecs, &EdgeRows { blocks: blocks.clone(), starts: starts.clone() })?.t()
}

struct EdgeRows {
    blocks: TargetBlocks,
    starts: SourceStarts,
}

impl CustomOp2 for EdgeRows {
    fn name(&self) -> &'static str {
        "edge_rows"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n_rows, width) = l1.shape().dims2()?;
        let (n_sources, vec_width) = l2.shape().dims2()?;
        let (blocks, starts) = (&self.blocks, &self.starts);
        if n_rows != blocks.n_rows() || width != vec_width {
            bail!("edge_rows: grad {:?}, expected [{}, {vec_width}]", l1.shape(), blocks.n_rows());
        }
        let covered = starts.len() > blocks.n_blocks() && starts.is_sorted() && starts.last() == Some(&n_sources);
        if !covered {
            bail!("edge_rows: {} positions of sources for {} blocks", starts.len().max(1) - 1, blocks.n_blocks());
        }
        let grad = f32_slice(self.name(), s1, l1)?;
        let vecs = f32_slice(self.name(), s2, l2)?;
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
        Ok((CpuStorage::F32(out), Shape::from((n_sources, n_targets))))
    }
}
