//! What the rows of a graph will take, from sizes alone.

use crate::error::Result;
use crate::memory::MemoryPlan;

/// Bytes of an edge.
const EDGE: u64 = 4;

/// Bytes of a node in layouts, influence and sums: ids twice, some numbers in f64.
const NODE: u64 = 96;

/// Sizes of the rows of a graph.
#[derive(Clone, Copy, Debug)]
pub struct RowSizes {
    /// Features that get a row.
    pub n_selected: usize,
    /// Targets, which all get one.
    pub n_targets: usize,
    /// Columns that a row is computed with: active features, errors, tokens and targets.
    pub n_nodes: usize,
    /// Values of a decoder direction, where these are kept; else 0.
    pub d_decoder: usize,
}

impl RowSizes {
    /// What they take.
    pub fn plan(&self) -> MemoryPlan {
        let n_rows = (self.n_selected + self.n_targets) as u64;
        // Summed in f32, kept in f16.
        let directions = (self.n_selected * self.d_decoder) as u64 * (4 + 2);
        MemoryPlan::new()
            .with("edges", n_rows.saturating_mul(self.n_nodes as u64 * EDGE))
            .with("nodes", self.n_nodes as u64 * NODE)
            .with("decoder directions", directions)
    }

    /// Checks that they fit into memory.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`], with the number of features that would fit.
    pub fn check(&self) -> Result<()> {
        self.plan().check(
            || {
                let Self { n_selected, n_targets, n_nodes, .. } = self;
                format!("a graph of {n_selected} features and {n_targets} targets over {n_nodes} nodes")
            },
            |bytes| {
                let fixed = Self { n_selected: 0, ..*self }.plan().bytes();
                let each = self.n_nodes as u64 * EDGE + self.d_decoder as u64 * 6;
                match bytes.saturating_sub(fixed) / each.max(1) {
                    0 => "use a shorter prompt".into(),
                    fits => format!("use a shorter prompt, or at most {fits} features (`--max-features {fits}`)"),
                }
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_features_that_is_said_to_fit_does_and_one_more_does_not() {
        let sizes = RowSizes { n_selected: 7500, n_targets: 10, n_nodes: 900_000, d_decoder: 576 };
        let bytes = 3_000_000_000u64;
        assert!(sizes.plan().bytes() > bytes);
        let fixed = RowSizes { n_selected: 0, ..sizes }.plan().bytes();
        let fits = ((bytes - fixed) / (900_000 * 4 + 576 * 6)) as usize;
        assert!(RowSizes { n_selected: fits, ..sizes }.plan().bytes() <= bytes);
        assert!(RowSizes { n_selected: fits + 1, ..sizes }.plan().bytes() > bytes);
    }
}
