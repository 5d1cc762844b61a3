//! Reads: dot products of the pulled-back gradient with the vectors of the sources at their positions.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::{TargetBlocks, f32_slice};

/// Targets in one task of the CPU side: enough rows to fill a gemm kernel, few enough to balance the threads.
const TASK_TARGETS: usize = 96;

/// First source of each position, and the number of sources. `[n_pos + 1]`
pub type SourceStarts = Vec<usize>;

/// `out[t, s] = ⟨grad of target t at the position of source s, vec of s⟩`, 0 where the source's position is behind
/// the target's.
///
/// Sources are sorted by position, so each position is one product `[count(p), width] × [width, sources there]`.
///
/// # Shapes
/// `grad` `[n_rows, width]` in the layout of `blocks`; `vecs` `[n_sources, width]`, those of position `p` being
/// `starts[p]..starts[p + 1]`; returns `[n_targets, n_sources]`. All f32, contiguous.
///
/// # Errors
/// Shapes that do not fit `blocks` and `starts`.
pub fn edge_rows(grad: &Tensor, vecs: &Tensor, blocks: &TargetBlocks, starts: &SourceStarts) -> Result<Tensor> {
    grad.apply_op2_no_bwd(vecs, &EdgeRows { blocks: blocks.clone(), starts: starts.clone() })
}

struct EdgeRows {
    blocks: TargetBlocks,
    starts: SourceStarts,
}

/// A pointer that tasks share while each writes its own, disjoint part.
#[derive(Clone, Copy)]
struct Shared(*mut f32);
// SAFETY: the tasks of `cpu_fwd` write to disjoint (targets × sources) rectangles.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

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
        let mut out = vec![0f32; blocks.n_targets() * n_sources];
        let tasks: Vec<(usize, usize)> = (0..blocks.n_blocks())
            .filter(|&p| starts[p] < starts[p + 1])
            .flat_map(|p| (0..blocks.count(p)).step_by(TASK_TARGETS).map(move |t| (p, t)))
            .collect();
        let shared = Shared(out.as_mut_ptr());
        tasks.into_par_iter().for_each(|(p, first)| {
            let shared = shared;
            let n = TASK_TARGETS.min(blocks.count(p) - first);
            let (from, to) = (starts[p], starts[p + 1]);
            let lhs = &grad[(blocks.start(p) + first) * width..][..n * width];
            let rhs = &vecs[from * width..to * width];
            // SAFETY: the destination rectangle, rows `first..first + n` and columns `from..to` of an
            // [n_targets, n_sources] matrix, is inside `out` and no other task has it; both operands are exactly
            // as long as their sizes and strides say.
            unsafe {
                let Shared(out) = shared;
                gemm::gemm(
                    n,
                    to - from,
                    width,
                    out.add(first * n_sources + from),
                    1,
                    n_sources as isize,
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
        });
        Ok((CpuStorage::F32(out), Shape::from((blocks.n_targets(), n_sources))))
    }
}
