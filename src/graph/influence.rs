//! Influence of every node on the targets (definitions 6): `N[t,s] = |A[t,s]| / max(Σ_s' |A[t,s']|, clamp)` and
//! `influence = w·N + w·N² + …`, over edge rows that are all there and over rows that are still being computed.

use rayon::prelude::*;

use super::sweep::{propagate, propagate_steps};
use super::{EdgeRows, NodeLayout};

/// The smallest denominator of a normalised row.
pub(crate) const ROW_SUM_CLAMP: f64 = 1e-10;

/// The smallest denominator while rows are still being computed (definitions 6, order of work).
pub const PARTIAL_ROW_SUM_CLAMP: f64 = 1e-8;

/// What one sweep over the edge rows yields.
#[derive(Debug, Clone, PartialEq)]
pub struct Influence {
    /// Influence of every node; zero for targets. `[n_nodes]`
    pub nodes: Vec<f64>,
    /// `Σ_s |A[t,s]|` of every row. `[n_rows]`
    pub row_abs_sums: Vec<f64>,
    /// The part of `row_abs_sums` that comes from error nodes. `[n_rows]`
    pub error_abs_sums: Vec<f64>,
}

/// Influence of every node on the targets.
///
/// `weights` are the targets' weights. `[n_targets]`
///
/// # Cost
/// One pass over the edges that can be other than zero, in f64, in parallel within a layer; memory for some rows of
/// f64, no copy of the edges. The summation order does not depend on the number of threads.
pub fn influence(edge_rows: &EdgeRows, layout: &NodeLayout, weights: &[f32]) -> Influence {
    masked_influence(edge_rows, layout, weights, |_| true, None)
}

/// As [`influence`]; pruning leaves out the rows that `keep_row` refuses and the columns whose `mask` is zero.
pub(crate) fn masked_influence(
    edge_rows: &EdgeRows,
    layout: &NodeLayout,
    weights: &[f32],
    keep_row: impl Fn(usize) -> bool + Sync,
    mask: Option<&[f32]>,
) -> Influence {
    let mut nodes = vec![0.0; layout.n_nodes()];
    let mut row_abs_sums = vec![0.0; layout.n_rows()];
    let mut error_abs_sums = vec![0.0; layout.n_rows()];
    nodes[layout.targets()].iter_mut().zip(weights).for_each(|(node, &weight)| *node = f64::from(weight));
    let rows_of_layers = (0..layout.n_layers()).rev().map(|layer| layout.features_of_layer(layer));
    let steps = std::iter::once(layout.target_rows()).chain(rows_of_layers).map(|rows| {
        let rows = rows.filter(|&row| keep_row(row));
        rows.map(|row| (layout.node_at_row(row), row)).collect()
    });
    let masked_row = || vec![0.0f32; if mask.is_some() { layout.n_nodes() } else { 0 }];
    let pass_on = |row: usize, passed: f64, nodes: &mut [f64], masked: &mut Vec<f32>| {
        let effects = match mask {
            Some(mask) => masked_effects(edge_rows.row(row), mask, layout, row, masked),
            None => edge_rows.row(row),
        };
        pass_on_row(effects, layout, row, passed, nodes)
    };
    propagate_steps(&mut nodes, steps, masked_row, pass_on, |row, (abs_sum, error_abs_sum)| {
        row_abs_sums[row] = abs_sum;
        error_abs_sums[row] = error_abs_sum;
    });
    nodes[layout.targets()].fill(0.0);
    Influence { nodes, row_abs_sums, error_abs_sums }
}

/// What `mask` leaves of a row, in `masked`. `[n_nodes]`
fn masked_effects<'a>(
    effects: &[f32],
    mask: &[f32],
    layout: &NodeLayout,
    row: usize,
    masked: &'a mut [f32],
) -> &'a [f32] {
    for range in layout.source_ranges(row) {
        let (kept, effects) = (&mut masked[range.clone()], &effects[range.clone()]);
        for ((kept, &effect), &m) in kept.iter_mut().zip(effects).zip(&mask[range]) {
            *kept = effect * m;
        }
    }
    masked
}

/// Hands on what passes through the node of `row`; the absolute sums of the row: all of it, and its errors.
fn pass_on_row(effects: &[f32], layout: &NodeLayout, row: usize, passed: f64, nodes: &mut [f64]) -> (f64, f64) {
    let (abs_sum, error_abs_sum) = row_abs_sums(layout, row, effects);
    let share = passed / abs_sum.max(ROW_SUM_CLAMP);
    if share != 0.0 {
        // The row is still in the cache: reading it twice costs one pass over memory.
        for range in layout.source_ranges(row) {
            add_abs_scaled(&mut nodes[range.clone()], &effects[range], share);
        }
    }
    (abs_sum, error_abs_sum)
}

/// `Σ_s |A[t,s]|` of a row, and the part of it that comes from errors. `effects`: [features, errors, tokens] at least.
pub(crate) fn row_abs_sums(layout: &NodeLayout, row: usize, effects: &[f32]) -> (f64, f64) {
    let errors = layout.errors();
    let (mut abs_sum, mut error_abs_sum) = (0.0, 0.0);
    for range in layout.source_ranges(row) {
        let sum = sum_of_abs(&effects[range.clone()]);
        abs_sum += sum;
        if errors.contains(&range.start) {
            error_abs_sum += sum;
        }
    }
    (abs_sum, error_abs_sum)
}

/// Rows computed so far, while it is still open which features will be selected.
#[derive(Debug, Clone, Copy)]
pub struct PartialRows<'a> {
    /// The rows, `stride` apart: first those of the targets, then those of the visited features.
    pub values: &'a [f32],
    /// Distance between the starts of two rows; at least `n_columns`.
    pub stride: usize,
    /// Columns of a row that count: all active features, then errors, then tokens.
    pub n_columns: usize,
    /// The leading columns that are active features, in node order.
    pub n_active: usize,
    /// Weights of the targets, whose rows come first. `[n_targets]`
    pub weights: &'a [f32],
    /// The visited features, as indices into the active ones, in the order of their rows. `[n_visited]`
    pub visited: &'a [usize],
}

/// Influence of every active feature from the rows computed so far (definitions 6, order of work). `[n_active]`
///
/// # Panics
/// Where `values` is too short for the rows it should hold.
///
/// # Cost
/// One pass over the rows of targets and of visited features with influence.
pub fn partial_influence(rows: &PartialRows<'_>) -> Vec<f64> {
    let n_targets = rows.weights.len();
    let row = |index: usize| &rows.values[index * rows.stride..index * rows.stride + rows.n_columns];
    // The targets are nodes after the features, so that their weights are where the sweep looks for influence.
    let mut influence = vec![0.0f64; rows.n_active];
    influence.extend(rows.weights.iter().map(|&weight| f64::from(weight)));
    let target_sums: Vec<f64> = (0..n_targets).into_par_iter().map(|k| sum_of_abs(row(k))).collect();
    let targets = (0..n_targets).map(|k| (rows.n_active + k, k));
    // Active features are sorted by layer, so descending columns are descending layers.
    let mut visits: Vec<(usize, usize)> =
        rows.visited.iter().enumerate().map(|(visit, &column)| (column, n_targets + visit)).collect();
    visits.sort_unstable_by_key(|&(column, _)| std::cmp::Reverse(column));
    propagate(&mut influence, targets.chain(visits), |index, passed, influence| {
        if passed == 0.0 {
            return;
        }
        let effects = row(index);
        let (sum, n_sources) = match target_sums.get(index) {
            Some(&sum) => (sum, rows.n_active),
            // A feature sees only features before it.
            None => (sum_of_abs(effects), rows.visited[index - n_targets]),
        };
        let share = passed / sum.max(PARTIAL_ROW_SUM_CLAMP);
        add_abs_scaled(&mut influence[..n_sources], &effects[..n_sources], share);
    });
    influence.truncate(rows.n_active);
    influence
}

/// The `count` most influential features that are not `visited`, strongest first; equals go by index. [<= count].
///
/// # Cost
/// A selection, then a sort of the selected.
pub fn next_features(influence: &[f64], visited: &[bool], count: usize) -> Vec<usize> {
    let stronger_first = |&a: &usize, &b: &usize| influence[b].total_cmp(&influence[a]).then(a.cmp(&b));
    let mut open: Vec<usize> = (0..influence.len()).filter(|&feature| !visited[feature]).collect();
    if count < open.len() {
        open.select_nth_unstable_by(count, stronger_first);
        open.truncate(count);
    }
    open.sort_unstable_by(stronger_first);
    open
}

/// `Σ |x|` in f64, in a fixed order that the compiler can vectorise.
pub(crate) fn sum_of_abs(values: &[f32]) -> f64 {
    const LANES: usize = 8;
    let mut lanes = [0.0f64; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest: f64 = chunks.remainder().iter().map(|v| f64::from(v.abs())).sum();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(value.abs());
        }
    }
    lanes.iter().sum::<f64>() + rest
}

/// `total += scale · |x|`, element by element.
pub(super) fn add_abs_scaled(total: &mut [f64], values: &[f32], scale: f64) {
    for (total, value) in total.iter_mut().zip(values) {
        *total += scale * f64::from(value.abs());
    }
}
