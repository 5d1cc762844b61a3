//! Influence of every node on the targets (definitions 6), in one sweep.
//!
//! `N[t,s] = |A[t,s]| / max(Σ_s' |A[t,s']|, clamp)` and `influence = w·N + w·N² + …`. The graph is acyclic: when the rows
//! are visited from the targets down through the layers, the influence of a row's node is complete before the row is
//! used, so one visit of every row is the whole series.

use rayon::prelude::*;

use super::{EdgeRows, NodeLayout};

/// The smallest denominator of a normalised row.
pub const ROW_SUM_CLAMP: f64 = 1e-10;

/// The smallest denominator while rows are still being computed (definitions 6, order of work).
pub const PARTIAL_ROW_SUM_CLAMP: f64 = 1e-8;

/// Rows that one task adds up by itself. The sums of these blocks are added in order, so that the result is the same
/// for any number of threads.
pub(super) const BLOCK_ROWS: usize = 64;

/// What one sweep over the edge rows yields.
#[derive(Debug, Clone, PartialEq)]
pub struct Influence {
    /// Influence of every node; zero for targets. [n_nodes].
    pub nodes: Vec<f64>,
    /// `Σ_s |A[t,s]|` of every row. [n_rows].
    pub row_abs_sums: Vec<f64>,
    /// The part of `row_abs_sums` that comes from error nodes. [n_rows].
    pub error_abs_sums: Vec<f64>,
}

/// Influence of every node on the targets.
///
/// `weights` are the targets' weights. [n_targets].
///
/// # Cost
/// One pass over the edges that can be other than zero, in f64, in parallel within a layer; memory for some rows of
/// f64, no copy of the edges. The summation order does not depend on the number of threads.
pub fn influence(edge_rows: &EdgeRows, layout: &NodeLayout, weights: &[f32]) -> Influence {
    let all = |_: usize| true;
    sweep(edge_rows, layout, weights, all, None)
}

/// The sweep behind [`influence`]; pruning leaves out the rows that `keep_row` refuses and the columns whose `mask` is zero.
pub(crate) fn sweep(
    edge_rows: &EdgeRows,
    layout: &NodeLayout,
    weights: &[f32],
    keep_row: impl Fn(usize) -> bool + Sync,
    mask: Option<&[f32]>,
) -> Influence {
    let mut swept = Influence {
        nodes: vec![0.0; layout.n_nodes()],
        row_abs_sums: vec![0.0; layout.n_rows()],
        error_abs_sums: vec![0.0; layout.n_rows()],
    };
    let targets = layout.n_features()..layout.n_rows();
    let target_weights: Vec<f64> = weights.iter().map(|&w| f64::from(w)).collect();
    let rows_of_layers = (0..layout.n_layers()).rev().map(|layer| layout.features_of_layer(layer));
    for rows in std::iter::once(targets.clone()).chain(rows_of_layers) {
        let rows: Vec<usize> = rows.filter(|&row| keep_row(row)).collect();
        let blocks: Vec<BlockSums> = rows
            .par_chunks(BLOCK_ROWS)
            .map(|block| {
                let influence_of = |row: usize| match row.checked_sub(targets.start) {
                    Some(target) => target_weights[target],
                    None => swept.nodes[row],
                };
                add_block(edge_rows, layout, block, mask, influence_of)
            })
            .collect();
        for (block, sums) in rows.chunks(BLOCK_ROWS).zip(blocks) {
            for (total, sum) in swept.nodes.iter_mut().zip(&sums.nodes) {
                *total += sum;
            }
            for (&row, (abs_sum, error_abs_sum)) in block.iter().zip(sums.rows) {
                swept.row_abs_sums[row] = abs_sum;
                swept.error_abs_sums[row] = error_abs_sum;
            }
        }
    }
    swept
}

/// What a block of rows adds.
struct BlockSums {
    /// To the influence of every node that the block's rows can see. [<= n_nodes].
    nodes: Vec<f64>,
    /// Absolute sums of each row: all of it, and its errors. [block].
    rows: Vec<(f64, f64)>,
}

fn add_block(
    edge_rows: &EdgeRows,
    layout: &NodeLayout,
    block: &[usize],
    mask: Option<&[f32]>,
    influence_of: impl Fn(usize) -> f64,
) -> BlockSums {
    let mut sums = BlockSums { nodes: vec![0.0; layout.targets().start], rows: Vec::with_capacity(block.len()) };
    let mut masked = vec![0.0f32; if mask.is_some() { layout.n_nodes() } else { 0 }];
    for &row in block {
        let mut effects = edge_rows.row(row);
        if let Some(mask) = mask {
            for range in layout.source_ranges(row) {
                let (kept, effects) = (&mut masked[range.clone()], &effects[range.clone()]);
                for ((kept, &effect), &m) in kept.iter_mut().zip(effects).zip(&mask[range]) {
                    *kept = effect * m;
                }
            }
            effects = &masked;
        }
        let (abs_sum, error_abs_sum) = row_abs_sums(layout, row, effects);
        sums.rows.push((abs_sum, error_abs_sum));
        let share = influence_of(row) / abs_sum.max(ROW_SUM_CLAMP);
        if share != 0.0 {
            // The row is still in the cache: reading it twice costs one pass over memory.
            for range in layout.source_ranges(row) {
                add_abs_scaled(&mut sums.nodes[range.clone()], &effects[range], share);
            }
        }
    }
    sums
}

/// `Σ_s |A[t,s]|` of a row, and the part of it that comes from errors. `effects`: [features, errors, tokens] at least.
pub(super) fn row_abs_sums(layout: &NodeLayout, row: usize, effects: &[f32]) -> (f64, f64) {
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
    /// Weights of the targets, whose rows come first. [n_targets].
    pub weights: &'a [f32],
    /// The visited features, as indices into the active ones, in the order of their rows. [n_visited].
    pub visited: &'a [usize],
}

/// Influence of every active feature from the rows computed so far (definitions 6, order of work). [n_active].
///
/// # Panics
/// Where `values` is too short for the rows it should hold.
///
/// # Cost
/// One pass over the rows of targets and of visited features with influence.
pub fn partial_influence(rows: &PartialRows<'_>) -> Vec<f64> {
    let n_targets = rows.weights.len();
    let mut influence = vec![0.0f64; rows.n_active];
    let row = |index: usize| &rows.values[index * rows.stride..index * rows.stride + rows.n_columns];
    let share = |weight: f64, row: &[f32]| weight / sum_of_abs(row).max(PARTIAL_ROW_SUM_CLAMP);

    let target_sums: Vec<f64> =
        (0..n_targets).into_par_iter().map(|k| share(f64::from(rows.weights[k]), row(k))).collect();
    for (k, &share) in target_sums.iter().enumerate() {
        add_abs_scaled(&mut influence, &row(k)[..rows.n_active], share);
    }

    // Active features are sorted by layer, so descending columns are descending layers.
    let mut order: Vec<usize> = (0..rows.visited.len()).collect();
    order.sort_unstable_by_key(|&visit| std::cmp::Reverse(rows.visited[visit]));
    for visit in order {
        let column = rows.visited[visit];
        if influence[column] != 0.0 {
            let row = row(n_targets + visit);
            let share = share(influence[column], row);
            // A feature sees only features before it.
            add_abs_scaled(&mut influence[..column], &row[..column], share);
        }
    }
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
