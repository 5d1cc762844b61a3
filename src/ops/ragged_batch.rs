//! The ragged layout of a batch's gradient: only rows that can be non-zero exist.

use std::sync::OnceLock;

use candle_core::{CudaDevice, Result};

use super::Indices;
use super::gpu::Arg;

/// How the gradient of a batch of targets is laid out.
///
/// Targets are those of one layer, or of the logits, sorted by position, last first. Segment `p` holds the gradients at
/// position `p` of every target whose own position is at least `p`: because of the order these are the first
/// [`RaggedBatch::count`] targets. Segments follow each other, so the gradient is one matrix `[n_rows, width]`, a segment
/// is a run of its rows, and dense products need no padding, no gather and no mask.
#[derive(Clone, Debug)]
pub struct RaggedBatch {
    /// Positions of the targets, descending. `[n_targets]`
    positions: Indices,
    /// First row of each segment, and the number of rows. `[n_segments + 1]`
    starts: Indices,
    /// Position of every row, where a device needs it. `[n_rows]`
    row_positions: OnceLock<Indices>,
}

impl RaggedBatch {
    /// Lays out targets at `positions`, which must be descending.
    pub fn new(positions: Vec<usize>) -> Self {
        debug_assert!(positions.is_sorted_by(|a, b| a >= b), "positions must be descending");
        let n_segments = positions.first().map_or(0, |p| p + 1);
        let mut starts = Vec::with_capacity(n_segments + 1);
        starts.push(0);
        let mut count = positions.len();
        for p in 0..n_segments {
            while count > 0 && positions[count - 1] < p {
                count -= 1;
            }
            starts.push(starts[p] + count);
        }
        Self { positions: positions.into(), starts: starts.into(), row_positions: OnceLock::new() }
    }

    /// Number of targets.
    pub fn n_targets(&self) -> usize {
        self.positions.len()
    }

    /// One more than the last position of any target.
    pub fn n_segments(&self) -> usize {
        self.starts.len() - 1
    }

    /// Rows of the gradient: the sum over the targets of (position + 1).
    pub fn n_rows(&self) -> usize {
        self.starts[self.n_segments()]
    }

    /// First row of segment `p`.
    pub fn start(&self, p: usize) -> usize {
        self.starts[p]
    }

    /// Number of targets in segment `p`; they are targets `0..count(p)`.
    pub fn count(&self, p: usize) -> usize {
        self.starts[p + 1] - self.starts[p]
    }

    /// Positions of the targets, descending. `[n_targets]`
    pub fn positions(&self) -> &Indices {
        &self.positions
    }

    /// First row of each segment, and the number of rows. `[n_segments + 1]`
    pub fn starts(&self) -> &Indices {
        &self.starts
    }

    /// Row of each target's own position: where its gradient enters. `[n_targets]`
    pub fn own_rows(&self) -> Vec<usize> {
        self.positions.iter().enumerate().map(|(t, &p)| self.starts[p] + t).collect()
    }

    /// Position of every row. `[n_rows]`
    pub fn row_positions(&self) -> impl Iterator<Item = usize> {
        (0..self.n_segments()).flat_map(|p| std::iter::repeat_n(p, self.count(p)))
    }

    /// Position of every row, as the argument of a kernel: `[n_rows]` u32 in the device's memory.
    pub(super) fn row_positions_arg(&self, device: &CudaDevice) -> Result<Arg> {
        self.row_positions.get_or_init(|| self.row_positions().collect::<Vec<_>>().into()).arg(device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segment_p_holds_the_targets_at_p_or_later() {
        let ragged = RaggedBatch::new(vec![3, 3, 1, 0]);
        assert_eq!(ragged.n_segments(), 4);
        assert_eq!((0..4).map(|p| ragged.count(p)).collect::<Vec<_>>(), [4, 3, 2, 2]);
        assert_eq!(ragged.n_rows(), 11);
        assert_eq!(ragged.own_rows(), [9, 10, 6, 3]);
        assert_eq!(ragged.row_positions().collect::<Vec<_>>(), [0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 3]);
    }

    #[test]
    fn no_targets_have_no_rows() {
        let ragged = RaggedBatch::new(vec![]);
        assert_eq!((ragged.n_segments(), ragged.n_rows()), (0, 0));
    }
}
