//! How much of the model a graph explains (definitions 8).

use super::influence::{ROW_SUM_CLAMP, sum_of_abs};
use super::sweep::propagate;
use super::{EdgeRows, Influence, NodeLayout};

/// The two scores of a graph or of a subgraph, both in 0..=1, higher is better.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scores {
    /// `T / (T + E)`: the part of all influence that starts at tokens and not at errors. 0 where there is none.
    pub replacement: f64,
    /// The part of the nodes' inputs that does not come from errors, weighted by the nodes' influence. 1 where there is none.
    pub completeness: f64,
}

/// The scores of the whole graph, from its influence.
///
/// `weights` are the targets' weights. `[n_targets]`
///
/// # Cost
/// Linear in the number of nodes: the sweep has kept what is needed of the rows.
pub fn scores(layout: &NodeLayout, influence: &Influence, weights: &[f32]) -> Scores {
    // What contexts give is neither explained nor unexplained: those who closed the positions did not ask.
    let from_tokens: f64 = layout.sum_of_tokens(&influence.nodes);
    let from_errors: f64 = influence.nodes[layout.errors()].iter().sum();
    let without_rows: f64 = influence.nodes[layout.errors().start..layout.targets().start].iter().sum();
    let (mut explained, mut total) = (without_rows, without_rows);
    for row in 0..layout.n_rows() {
        let weight = match layout.target_of_row(row) {
            Some(target) => f64::from(weights[target]),
            None => influence.nodes[row],
        };
        let error_share = influence.error_abs_sums[row] / influence.row_abs_sums[row].max(ROW_SUM_CLAMP);
        explained += weight * (1.0 - error_share);
        total += weight;
    }
    Scores {
        replacement: ratio_or(from_tokens, from_tokens + from_errors, 0.0),
        completeness: ratio_or(explained, total, 1.0),
    }
}

/// The scores of the subgraph in which only the features with `pinned` remain. `pinned`: `[n_features]`
///
/// The column of every other feature is added to the error node of its layer and position, its row is dropped.
///
/// # Cost
/// One pass over the rows of targets and pinned features; memory for one row in f64.
pub fn subgraph_scores(edge_rows: &EdgeRows, layout: &NodeLayout, weights: &[f32], pinned: &[bool]) -> Scores {
    // With an error node at every layer and position, whichever of them the graph has: features merge into them.
    let whole = layout.clone().with_all_errors();
    let errors = layout.errors();
    let mut nodes = vec![0.0; whole.n_nodes()];
    let mut row_abs_sums = vec![0.0; layout.n_rows()];
    let mut error_abs_sums = vec![0.0; layout.n_rows()];
    nodes[whole.targets()].iter_mut().zip(weights).for_each(|(node, &weight)| *node = f64::from(weight));
    let mut merged_errors = vec![0.0f64; whole.errors().len()];
    // Targets first, then features downwards.
    let rows = layout.target_rows().chain(layout.features().rev().filter(|&row| pinned[row]));
    let rows = rows.map(|row| (whole.node_at_row(row), row));
    propagate(&mut nodes, rows, |row, passed, nodes| {
        let effects = edge_rows.row(row);
        merged_errors.fill(0.0);
        for (at, &effect) in effects[errors.clone()].iter().enumerate() {
            merged_errors[layout.cell_of_error(at)] = f64::from(effect);
        }
        let mut pinned_abs_sum = 0.0;
        for (source, feature) in layout.feature_ids().iter().enumerate() {
            if pinned[source] {
                pinned_abs_sum += f64::from(effects[source].abs());
            } else {
                let cell = layout.error_cell(feature.layer as usize, feature.pos as usize);
                merged_errors[cell] += f64::from(effects[source]);
            }
        }
        let error_abs_sum: f64 = merged_errors.iter().map(|e| e.abs()).sum();
        let abs_sum = pinned_abs_sum + error_abs_sum + sum_of_abs(&effects[layout.tokens()]);
        row_abs_sums[row] = abs_sum;
        error_abs_sums[row] = error_abs_sum;
        let share = passed / abs_sum.max(ROW_SUM_CLAMP);
        for source in layout.features().filter(|&source| pinned[source]) {
            nodes[source] += share * f64::from(effects[source].abs());
        }
        for (node, effect) in whole.tokens().zip(&effects[layout.tokens()]) {
            nodes[node] += share * f64::from(effect.abs());
        }
        for (node, merged) in whole.errors().zip(&merged_errors) {
            nodes[node] += share * merged.abs();
        }
    });
    nodes[whole.targets()].fill(0.0);
    let swept = Influence { nodes, row_abs_sums, error_abs_sums };
    scores(&whole, &swept, weights)
}

fn ratio_or(part: f64, whole: f64, otherwise: f64) -> f64 {
    if whole > 0.0 { part / whole } else { otherwise }
}
