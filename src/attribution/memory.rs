//! What the rows of a graph will take, from sizes alone.

use candle_core::Device;

use super::row_choice::{ALL_ERRORS, MAX_ERRORS, RowChoice};
use crate::error::Result;
use crate::memory::MemoryPlan;
use crate::ops::gradient_rows;

/// Bytes of an edge.
const EDGE: u64 = 4;

/// Bytes of a node in layouts, influence and sums: ids twice, some numbers in f64.
const NODE: u64 = 96;

/// Sizes of the rows of a graph.
#[derive(Clone, Copy, Debug)]
pub struct RowSizes {
    /// Which features get a row; not [`RowChoice::Auto`].
    pub rows: RowChoice,
    /// Active features.
    pub n_active: usize,
    /// Targets, which all get a row.
    pub n_targets: usize,
    /// Errors, tokens and targets: columns beside those of features.
    pub n_others: usize,
    /// Errors among them.
    pub n_errors: usize,
    /// Positions that carry gradient.
    pub n_pos: usize,
    /// Values of a decoder direction, where these are kept; else 0.
    pub d_decoder: usize,
}

impl RowSizes {
    fn n_selected(&self) -> usize {
        self.rows.max_features().map_or(self.n_active, |most| most.min(self.n_active))
    }

    /// Bytes of one more row, with its columns and direction. Rows of a sample keep the columns of other kept rows only.
    fn row_bytes(&self) -> u64 {
        let n_features = if self.is_sampled() { self.n_selected() } else { self.n_active };
        // Directions are summed in f32 and kept in f16.
        let n_others = match self.is_sampled() && self.n_errors > ALL_ERRORS {
            true => self.n_others - self.n_errors + MAX_ERRORS,
            false => self.n_others,
        };
        (n_features + n_others) as u64 * EDGE + self.d_decoder as u64 * (4 + 2)
    }

    fn is_sampled(&self) -> bool {
        matches!(self.rows, RowChoice::Sampled { .. })
    }

    /// What they take.
    pub fn plan(&self) -> MemoryPlan {
        let n_nodes = (self.n_active + self.n_others) as u64;
        let n_rows = (self.n_selected() + self.n_targets) as u64;
        // Rows of a sample are computed whole, a batch on each thread, before they are let go or cut.
        let at_work = match self.is_sampled() {
            true => rayon::current_num_threads() * (1 + 4 * gradient_rows(&Device::Cpu) / self.n_pos.max(1)),
            false => 0,
        };
        MemoryPlan::new()
            .with("rows", n_rows.saturating_mul(self.row_bytes()))
            .with("rows at work", at_work as u64 * n_nodes * EDGE)
            .with("nodes", n_nodes * NODE)
    }

    /// Checks that they fit into memory.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`], with the number of features that would fit.
    pub fn check(&self) -> Result<()> {
        self.plan().check(
            || {
                let (n_selected, n_nodes) = (self.n_selected(), self.n_active + self.n_others);
                format!("a graph of {n_selected} features and {} targets over {n_nodes} nodes", self.n_targets)
            },
            |bytes| match self.fitting(bytes) {
                0 => "use a shorter prompt".into(),
                fits if self.is_sampled() => format!("use a shorter prompt, or fewer nodes: `--nodes {fits}`"),
                fits => format!(
                    "use a shorter prompt, or `--max-features {fits}`, or leave that out: a sample of the rows takes less"
                ),
            },
        )
    }

    /// How many features fit into `bytes`.
    fn fitting(&self, bytes: u64) -> usize {
        let of = |max_features| Self {
            rows: match self.rows {
                RowChoice::Sampled { visits, .. } => RowChoice::Sampled { visits, nodes: Some(max_features) },
                _ => RowChoice::BestFirst { max_features },
            },
            ..*self
        };
        let (mut fits, mut too_many) = (0, self.n_selected());
        while too_many - fits > 1 {
            let middle = fits + (too_many - fits) / 2;
            let place = if of(middle).plan().bytes() <= bytes { &mut fits } else { &mut too_many };
            *place = middle;
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::super::row_choice::Visits;
    use super::*;

    #[test]
    fn the_number_of_features_that_is_said_to_fit_does_and_one_more_does_not() {
        let all = RowSizes {
            rows: RowChoice::All,
            n_active: 900_000,
            n_targets: 10,
            n_others: 32_000,
            n_errors: 30_000,
            n_pos: 1000,
            d_decoder: 576,
        };
        let bytes = 3_000_000_000u64;
        assert!(all.plan().bytes() > bytes);
        let fits = all.fitting(bytes);
        let capped = |max_features| RowSizes { rows: RowChoice::BestFirst { max_features }, ..all };
        assert!(capped(fits).plan().bytes() <= bytes && capped(fits + 1).plan().bytes() > bytes);
        // A sample of as many rows is small: its rows have the columns of one another.
        let sampled = RowChoice::Sampled { visits: Visits::default(), nodes: Some(fits) };
        assert!(RowSizes { rows: sampled, ..all }.plan().bytes() < bytes / 4);
    }
}
