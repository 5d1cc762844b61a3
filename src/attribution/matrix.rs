//! The edge rows in memory: computed with a column for every active feature, cut to the selected ones.

use super::batches::{Batch, KeepOnDevice, run_batches};
use super::row_count::RowCount;
use super::sampled::Estimate;
use crate::error::Result;
use crate::graph::{NodeId, NodeLayout};
use crate::ops::HostRow;
use crate::replacement::LinearModel;

/// The rows of a graph, in the order of its nodes: selected features, then targets.
#[derive(Debug)]
pub struct Rows {
    /// Indices of the active features that have a row, ascending.
    pub selected: Vec<usize>,
    /// `[n_selected + n_targets, n_nodes]`
    pub edge_rows: Vec<f32>,
    /// `[n_selected + n_targets]`
    pub bias_effect: Vec<f32>,
    /// What active features without a row give to each row; empty where all have one. `[n_selected + n_targets]`
    pub unselected_effect: Vec<f32>,
    /// What those features give to each target, by layer and position; empty where all have a row. `[n_targets, n_layers,
    /// n_pos]`
    pub unselected_at: Vec<f32>,
    /// Layer and position of the errors that are nodes; `None`: all of them.
    pub error_nodes: Option<Vec<(usize, usize)>>,
    /// What errors that are no nodes give to each row; empty where all are. `[n_selected + n_targets]`
    pub unselected_error_effect: Vec<f32>,
    /// The same of each target, by layer and position; empty where all are nodes. `[n_targets, n_layers, n_pos]`
    pub unselected_errors_at: Vec<f32>,
    /// `[n_selected + n_targets]`
    pub row_values: Vec<f32>,
    /// Whether the device had no room for the rows so far, so that the host chose the features.
    pub short_of_device_memory: bool,
    /// Rows that were computed, kept or not.
    pub n_computed: usize,
    /// What a sampled sweep found before; `None` where the influence is that of these rows.
    pub estimate: Option<Estimate>,
}

/// What the active features that are not selected give to a row.
pub fn unselected_effect(effects: &[f32], is_selected: &[bool]) -> f32 {
    let unselected = effects.iter().zip(is_selected).filter(|(_, selected)| !**selected);
    unselected.map(|(&effect, _)| f64::from(effect)).sum::<f64>() as f32
}

/// The same by layer and position, into zeros. `sums` `[n_layers, n_pos]`
pub fn add_unselected_at(layout: &NodeLayout, effects: &[f32], is_selected: &[bool], sums: &mut [f32]) {
    let mut exact = vec![0f64; sums.len()];
    let unselected = layout.features().filter(|&column| !is_selected[column]);
    for column in unselected {
        if let Some(NodeId::Feature { layer, pos, .. }) = layout.node(column) {
            exact[layer as usize * layout.n_pos() + pos as usize] += f64::from(effects[column]);
        }
    }
    sums.iter_mut().zip(exact).for_each(|(sum, exact)| *sum = exact as f32);
}

/// Rows as they are computed: columns are all active features, errors, tokens and targets.
pub struct Matrix<'a> {
    layout: &'a NodeLayout,
    pub n_nodes: usize,
    /// `[n_rows, n_nodes]`
    pub edge_rows: Vec<f32>,
    bias_effect: Vec<f32>,
    row_values: Vec<f32>,
}

impl<'a> Matrix<'a> {
    /// Rows of zeros.
    pub fn new(layout: &'a NodeLayout, n_rows: usize) -> Self {
        let n_nodes = layout.n_nodes();
        Self {
            layout,
            n_nodes,
            edge_rows: vec![0.0; n_rows * n_nodes],
            bias_effect: vec![0.0; n_rows],
            row_values: vec![0.0; n_rows],
        }
    }

    /// Computes batches into their rows, which no two targets may share: member `m` of a batch into row `row_of(m)`.
    ///
    /// # Errors
    /// Those of [`run_batches`].
    pub fn fill(
        &mut self,
        linear: &LinearModel,
        batches: Vec<Batch>,
        row_of: impl Fn(usize) -> usize,
        keep: KeepOnDevice,
        count: &RowCount,
    ) -> Result<()> {
        let rows = self.edge_rows.chunks_exact_mut(self.n_nodes.max(1)).zip(&mut self.bias_effect);
        let mut rows: Vec<Option<HostRow>> = rows.map(|(effects, bias)| Some(HostRow { effects, bias })).collect();
        let mut filled = Vec::with_capacity(batches.len());
        for batch in batches {
            let wanted = batch.plan.members.iter().map(|&(member, _)| row_of(member));
            wanted.clone().zip(&batch.values).for_each(|(row, &value)| self.row_values[row] = value);
            let lent = wanted.filter_map(|row| rows[row].take()).collect();
            filled.push((batch, lent));
        }
        run_batches(linear, self.layout, filled, keep, count)
    }

    /// The rows as they are, where every active feature has the row of its number and the targets are last.
    pub fn all(self) -> Rows {
        let selected = (0..self.layout.n_features()).collect();
        let Self { edge_rows, bias_effect, row_values, .. } = self;
        Rows {
            selected,
            edge_rows,
            bias_effect,
            unselected_effect: Vec::new(),
            unselected_at: Vec::new(),
            error_nodes: None,
            unselected_error_effect: Vec::new(),
            unselected_errors_at: Vec::new(),
            n_computed: row_values.len(),
            row_values,
            short_of_device_memory: false,
            estimate: None,
        }
    }

    /// Keeps the columns of the visited features and puts their rows into ascending order, targets last; in place,
    /// since the rows are the largest thing there is.
    pub fn select(mut self, visited: &[usize], n_targets: usize) -> Rows {
        let layout = self.layout;
        let mut selected = visited.to_vec();
        selected.sort_unstable();
        let n_rows = visited.len() + n_targets;
        let rest = layout.errors().start..layout.n_nodes();
        let n_columns = selected.len() + rest.len();
        let mut is_selected = vec![false; layout.n_features()];
        selected.iter().for_each(|&column| is_selected[column] = true);
        let mut unselected_effects = Vec::with_capacity(n_rows);
        let n_places = layout.n_layers() * layout.n_pos();
        let mut unselected_at = vec![0.0; n_targets * n_places];
        for row in 0..n_rows {
            let (from, to) = (row * self.n_nodes, row * n_columns);
            if let Some(sums) = unselected_at.chunks_exact_mut(n_places.max(1)).nth(row) {
                add_unselected_at(layout, &self.edge_rows[from..], &is_selected, sums);
            }
            unselected_effects.push(unselected_effect(&self.edge_rows[from..], &is_selected));
            for (i, &column) in selected.iter().enumerate() {
                self.edge_rows[to + i] = self.edge_rows[from + column];
            }
            self.edge_rows.copy_within(from + rest.start..from + rest.end, to + selected.len());
        }
        self.edge_rows.truncate(n_rows * n_columns);
        // Row i of the result is row `source[i]` of what there is: cycles are turned one by one.
        let mut source: Vec<usize> = (n_targets..n_rows).collect();
        source.sort_unstable_by_key(|&row| visited[row - n_targets]);
        source.extend(0..n_targets);
        permute_rows(&mut self.edge_rows, n_columns, &source);
        permute_rows(&mut self.bias_effect, 1, &source);
        permute_rows(&mut self.row_values, 1, &source);
        permute_rows(&mut unselected_effects, 1, &source);
        self.edge_rows.shrink_to_fit();
        let Self { edge_rows, bias_effect, row_values, .. } = self;
        Rows {
            selected,
            edge_rows,
            bias_effect,
            unselected_effect: unselected_effects,
            unselected_at,
            error_nodes: None,
            unselected_error_effect: Vec::new(),
            unselected_errors_at: Vec::new(),
            row_values,
            short_of_device_memory: false,
            n_computed: n_rows,
            estimate: None,
        }
    }
}

/// Moves rows so that row `i` is what row `source[i]` was. `values` `[source.len(), width]`
fn permute_rows(values: &mut [f32], width: usize, source: &[usize]) {
    let mut done = vec![false; source.len()];
    let mut held = vec![0f32; width];
    for first in 0..source.len() {
        if done[first] || source[first] == first {
            continue;
        }
        held.copy_from_slice(&values[first * width..][..width]);
        let mut row = first;
        loop {
            done[row] = true;
            let from = source[row];
            if from == first {
                values[row * width..][..width].copy_from_slice(&held);
                break;
            }
            values.copy_within(from * width..(from + 1) * width, row * width);
            row = from;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::permute_rows;

    #[test]
    fn permuted_rows_are_where_the_permutation_says() {
        let source = [3, 0, 2, 4, 1, 5];
        let before: Vec<f32> = (0..12).map(|v| v as f32).collect();
        let mut after = before.clone();
        permute_rows(&mut after, 2, &source);
        for (row, &from) in source.iter().enumerate() {
            assert_eq!(after[row * 2..][..2], before[from * 2..][..2]);
        }
    }
}
