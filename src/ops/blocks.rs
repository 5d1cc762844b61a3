//! The ragged layout of a batch's gradient: only rows that can be non-zero exist.

use super::Indices;

/// How the gradient of a batch of targets is laid out.
///
/// Targets are sorted by position, last first. Block `p` holds the gradient at position `p` of every target whose
/// position is at least `p`: because of the order these are the first [`TargetBlocks::count`] targets. Blocks follow
/// each other, so the gradient is one matrix `[n_rows, width]`, a block is a run of its rows, and dense products need
/// no padding, no gather and no mask.
#[derive(Clone, Debug)]
pub struct TargetBlocks {
    /// Positions of the targets, descending. `[n_targets]`
    positions: Indices,
    /// First row of each block, and the number of rows. `[n_blocks + 1]`
    starts: Indices,
    /// Position of every row, where a device needs it. `[n_rows]`
    #[cfg(feature = "cuda")]
    row_positions: std::sync::OnceLock<Indices>,
}

impl TargetBlocks {
    /// Lays out targets at `positions`, which must be descending.
    pub fn new(positions: Vec<usize>) -> Self {
        debug_assert!(positions.is_sorted_by(|a, b| a >= b), "positions must be descending");
        let n_blocks = positions.first().map_or(0, |p| p + 1);
        let mut starts = Vec::with_capacity(n_blocks + 1);
        starts.push(0);
        let mut count = positions.len();
        for p in 0..n_blocks {
            while count > 0 && positions[count - 1] < p {
                count -= 1;
            }
            starts.push(starts[p] + count);
        }
        Self {
            positions: positions.into(),
            starts: starts.into(),
            #[cfg(feature = "cuda")]
            row_positions: std::sync::OnceLock::new(),
        }
    }

    /// Number of targets.
    pub fn n_targets(&self) -> usize {
        self.positions.len()
    }

    /// One more than the last position of any target.
    pub fn n_blocks(&self) -> usize {
        self.starts.len() - 1
    }

    /// Rows of the gradient: the sum over the targets of (position + 1).
    pub fn n_rows(&self) -> usize {
        self.starts[self.n_blocks()]
    }

    /// First row of block `p`.
    pub fn start(&self, p: usize) -> usize {
        self.starts[p]
    }

    /// Number of targets in block `p`; they are targets `0..count(p)`.
    pub fn count(&self, p: usize) -> usize {
        self.starts[p + 1] - self.starts[p]
    }

    /// Positions of the targets, descending. `[n_targets]`
    pub fn positions(&self) -> &Indices {
        &self.positions
    }

    /// First row of each block, and the number of rows. `[n_blocks + 1]`
    pub fn starts(&self) -> &Indices {
        &self.starts
    }

    /// Row of each target's own position: where its gradient enters. `[n_targets]`
    pub fn own_rows(&self) -> Vec<usize> {
        self.positions.iter().enumerate().map(|(t, &p)| self.starts[p] + t).collect()
    }

    /// Position of every row. `[n_rows]`
    pub fn row_positions(&self) -> impl Iterator<Item = usize> {
        (0..self.n_blocks()).flat_map(|p| std::iter::repeat_n(p, self.count(p)))
    }

    #[cfg(feature = "cuda")]
    pub(super) fn row_positions_arg(&self, device: &super::cuda::CudaDevice) -> candle_core::Result<super::gpu::Arg> {
        self.row_positions.get_or_init(|| self.row_positions().collect::<Vec<_>>().into()).arg(device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_p_holds_the_targets_at_p_or_later() {
        let blocks = TargetBlocks::new(vec![3, 3, 1, 0]);
        assert_eq!(blocks.n_blocks(), 4);
        assert_eq!((0..4).map(|p| blocks.count(p)).collect::<Vec<_>>(), [4, 3, 2, 2]);
        assert_eq!(blocks.n_rows(), 11);
        assert_eq!(blocks.own_rows(), [9, 10, 6, 3]);
        assert_eq!(blocks.row_positions().collect::<Vec<_>>(), [0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 3]);
    }

    #[test]
    fn no_targets_have_no_rows() {
        let blocks = TargetBlocks::new(vec![]);
        assert_eq!((blocks.n_blocks(), blocks.n_rows()), (0, 0));
    }
}
