//! Which positions of a prompt are open: carry gradient, and have features and errors of their own.

use candle_core::{Device, Tensor};

use crate::error::{Error, Result};

/// The open positions of a prompt. The others are closed: what attention reads there is a leaf (definitions 3).
///
/// In the linear model of a prompt with closed positions, open ones lie side by side: position `open()[place]` is at
/// `place`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenPositions {
    n_pos: usize,
    /// Ascending.
    open: Vec<usize>,
}

impl OpenPositions {
    /// All positions of a prompt.
    pub fn all(n_pos: usize) -> Self {
        Self { n_pos, open: (0..n_pos).collect() }
    }

    /// Some positions of a prompt, in any order.
    ///
    /// # Errors
    /// [`Error::NoSuchPosition`]; [`Error::Setting`] where there is none.
    pub fn new(mut open: Vec<usize>, n_pos: usize) -> Result<Self> {
        open.sort_unstable();
        open.dedup();
        match open.last() {
            Some(&pos) if pos >= n_pos => Err(Error::NoSuchPosition { pos, n_pos }),
            Some(_) => Ok(Self { n_pos, open }),
            None => Err(Error::Setting { name: "open positions", value: 0.0, range: "1.." }),
        }
    }

    /// Those that are not among `closed`.
    ///
    /// # Errors
    /// As [`OpenPositions::new`].
    pub fn without(closed: &[usize], n_pos: usize) -> Result<Self> {
        if let Some(&pos) = closed.iter().find(|&&pos| pos >= n_pos) {
            return Err(Error::NoSuchPosition { pos, n_pos });
        }
        let mut is_open = vec![true; n_pos];
        closed.iter().for_each(|&pos| is_open[pos] = false);
        Self::new((0..n_pos).filter(|&pos| is_open[pos]).collect(), n_pos)
    }

    /// Positions of the prompt.
    pub fn n_pos(&self) -> usize {
        self.n_pos
    }

    /// The open ones, ascending.
    pub fn open(&self) -> &[usize] {
        &self.open
    }

    /// The closed ones, ascending.
    pub fn closed(&self) -> Vec<usize> {
        let mut open = self.open.iter().peekable();
        (0..self.n_pos).filter(|pos| open.next_if_eq(&pos).is_none()).collect()
    }

    /// Whether every position is open.
    pub fn is_all(&self) -> bool {
        self.open.len() == self.n_pos
    }

    /// Where a position is among the open ones; `None` for closed ones.
    pub fn place(&self, pos: usize) -> Option<usize> {
        if self.is_all() { (pos < self.n_pos).then_some(pos) } else { self.open.binary_search(&pos).ok() }
    }

    /// As [`OpenPositions::place`].
    ///
    /// # Errors
    /// [`Error::ClosedPosition`]
    pub fn need(&self, pos: usize) -> Result<usize> {
        self.place(pos).ok_or(Error::ClosedPosition { pos })
    }

    /// # Errors
    /// [`Error::NeedsAllOpen`], unless all are.
    pub fn check_all(&self, what: &str) -> Result<()> {
        if self.is_all() { Ok(()) } else { Err(Error::NeedsAllOpen { what: what.to_owned() }) }
    }

    /// How many open positions come before each closed one. `[n_closed]`
    pub(super) fn open_before_closed(&self) -> Vec<usize> {
        self.closed().into_iter().map(|pos| self.open.partition_point(|&open| open < pos)).collect()
    }

    /// The entries at open positions of a tensor that has all along `dim`.
    pub(super) fn select(&self, tensor: &Tensor, dim: usize) -> Result<Tensor> {
        if self.is_all() {
            Ok(tensor.clone())
        } else {
            Ok(tensor.index_select(&index(&self.open, tensor.device())?, dim)?)
        }
    }

    /// As [`OpenPositions::select`], the rows of an activation. `[1, n_pos, width]` to `[n_open, width]`
    pub(super) fn rows_of(&self, activation: &Tensor) -> Result<Tensor> {
        self.select(&activation.squeeze(0)?, 0)
    }

    /// The closed positions as an index. `[n_closed]`
    pub(super) fn closed_index(&self, device: &Device) -> Result<Tensor> {
        index(&self.closed(), device)
    }
}

fn index(positions: &[usize], device: &Device) -> Result<Tensor> {
    let index: Vec<u32> = positions.iter().map(|&pos| pos as u32).collect();
    Ok(Tensor::from_vec(index, positions.len(), device)?)
}

/// Ascending positions as spans `[first, end)`.
pub fn spans(positions: &[usize]) -> Vec<[usize; 2]> {
    let runs = positions.chunk_by(|a, b| a + 1 == *b);
    runs.filter_map(|run| Some([*run.first()?, *run.last()? + 1])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_and_closed_positions_are_all_positions() {
        let open = OpenPositions::new(vec![5, 1, 2, 5], 7).unwrap();
        assert_eq!(open.open(), [1, 2, 5]);
        assert_eq!(open.closed(), [0, 3, 4, 6]);
        assert_eq!((open.place(5), open.place(3), open.place(9)), (Some(2), None, None));
        assert_eq!(OpenPositions::without(&open.closed(), 7).unwrap(), open);
        assert_eq!(spans(open.open()), [[1, 3], [5, 6]]);
        assert!(OpenPositions::all(3).is_all() && !open.is_all() && OpenPositions::all(3).closed().is_empty());
        assert!(OpenPositions::new(vec![7], 7).is_err() && OpenPositions::new(vec![], 7).is_err());
        assert!(open.need(3).is_err());
    }
}
