//! The transpose of a frozen attention pattern, all heads at once.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::{TargetBlocks, f32_slice};

/// Targets in one task of the CPU side: their gradients at all positions should fit in a core's cache.
const TASK_TARGETS: usize = 8;

/// `out[k, kv] = Σ_{q ≥ k} Σ_{heads h of kv} pattern[h, q, k] · grad_z[q, h]` for every target.
///
/// Keys and values are shared by groups of heads, so the sum over a group's heads is part of the transpose. Blocks
/// are causal: a target's gradient exists at positions up to its own, and `q < k` is never touched.
///
/// # Shapes
/// `grad_z` `[n_rows, n_heads · d_head]` in the layout of `blocks`, `pattern` `[n_heads, n_pos, n_pos]`; returns
/// `[n_rows, n_kv_heads · d_head]`. All f32, contiguous.
///
/// # Errors
/// Shapes that do not fit `blocks`, or heads that do not divide.
pub fn frozen_attention(grad_z: &Tensor, pattern: &Tensor, n_kv_heads: usize, blocks: &TargetBlocks) -> Result<Tensor> {
    grad_z.apply_op2_no_bwd(pattern, &FrozenAttention { n_kv_heads, blocks: blocks.clone() })
}

struct FrozenAttention {
    n_kv_heads: usize,
    blocks: TargetBlocks,
}

/// Rows of one key position and a few targets.
struct Task<'a> {
    key: usize,
    first_target: usize,
    /// `[n_targets of the task, n_kv_heads · d_head]`
    out: &'a mut [f32],
}

/// Sizes and operands that all tasks share.
struct Operands<'a> {
    grad_z: &'a [f32],
    pattern: &'a [f32],
    n_pos: usize,
    n_heads: usize,
    n_kv_heads: usize,
    d_head: usize,
    blocks: &'a TargetBlocks,
}

impl Operands<'_> {
    #[inline(always)]
    fn run(&self, task: &mut Task) {
        let width = self.n_kv_heads * self.d_head;
        for (i, out) in task.out.chunks_exact_mut(width).enumerate() {
            let target = task.first_target + i;
            let last = self.blocks.positions()[target];
            for kv in 0..self.n_kv_heads {
                let out = &mut out[kv * self.d_head..][..self.d_head];
                let mut at = 0;
                // Wide accumulators first: they hide the latency of the multiply-adds.
                while at + 64 <= self.d_head {
                    self.part::<64>(task.key, target, last, kv, at, &mut out[at..at + 64]);
                    at += 64;
                }
                while at + 16 <= self.d_head {
                    self.part::<16>(task.key, target, last, kv, at, &mut out[at..at + 16]);
                    at += 16;
                }
                while at < self.d_head {
                    self.part::<1>(task.key, target, last, kv, at, &mut out[at..at + 1]);
                    at += 1;
                }
            }
        }
    }

    /// `N` neighbouring dimensions of one kv head.
    #[inline(always)]
    fn part<const N: usize>(&self, key: usize, target: usize, last: usize, kv: usize, at: usize, out: &mut [f32]) {
        let n_rep = self.n_heads / self.n_kv_heads;
        let mut sums = [0f32; N];
        for q in key..=last {
            let row = (self.blocks.start(q) + target) * self.n_heads * self.d_head;
            for h in kv * n_rep..(kv + 1) * n_rep {
                let weight = self.pattern[(h * self.n_pos + q) * self.n_pos + key];
                if weight == 0.0 {
                    continue; // outside the window
                }
                let grad = &self.grad_z[row + h * self.d_head + at..][..N];
                for j in 0..N {
                    sums[j] += weight * grad[j];
                }
            }
        }
        out.copy_from_slice(&sums);
    }
}

impl CustomOp2 for FrozenAttention {
    fn name(&self) -> &'static str {
        "frozen_attention"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n_rows, width) = l1.shape().dims2()?;
        let (n_heads, n_pos, n_keys) = l2.shape().dims3()?;
        let (blocks, n_kv_heads) = (&self.blocks, self.n_kv_heads);
        if n_rows != blocks.n_rows() || n_pos < blocks.n_blocks() || n_keys != n_pos {
            bail!(
                "frozen_attention: grad {:?} and pattern {:?} for {} rows of {} positions",
                l1.shape(),
                l2.shape(),
                blocks.n_rows(),
                blocks.n_blocks()
            );
        }
        if n_kv_heads == 0 || !n_heads.is_multiple_of(n_kv_heads) || !width.is_multiple_of(n_heads) {
            bail!("frozen_attention: width {width}, {n_heads} heads, {n_kv_heads} kv heads do not divide");
        }
        let d_head = width / n_heads;
        let operands = Operands {
            grad_z: f32_slice(self.name(), s1, l1)?,
            pattern: f32_slice(self.name(), s2, l2)?,
            n_pos,
            n_heads,
            n_kv_heads,
            d_head,
            blocks,
        };
        let out_width = n_kv_heads * d_head;
        let mut out = vec![0f32; n_rows * out_width];
        let mut tasks = Vec::new();
        let mut rest = out.as_mut_slice();
        for key in 0..blocks.n_blocks() {
            let (block, after) = rest.split_at_mut(blocks.count(key) * out_width);
            rest = after;
            tasks.extend(block.chunks_mut(TASK_TARGETS * out_width).enumerate().map(|(i, out)| Task {
                key,
                first_target: i * TASK_TARGETS,
                out,
            }));
        }
        // All keys of a few targets after each other: their gradients stay in the cache.
        tasks.sort_by_key(|task| task.first_target);
        let arch = pulp::Arch::new();
        tasks.par_iter_mut().with_min_len(4).for_each(|task| arch.dispatch(|| operands.run(task)));
        Ok((CpuStorage::F32(out), Shape::from((n_rows, out_width))))
    }
}
