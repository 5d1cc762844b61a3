//! Which rows are computed, and in which order: those of the targets, then all features, the most influential ones, or a sample.

use super::AttributionOptions;
use super::batches::{KeepOnDevice, batch_limits, feature_batches, target_batches};
use super::matrix::{Matrix, Rows};
use super::row_choice::RowChoice;
use super::row_count::{RowCount, RowWork, WorkLeft};
use super::sampled;
use super::targets::Target;
use crate::error::Result;
use crate::graph::{NodeLayout, PARTIAL_ROW_SUM_CLAMP, PartialRows, next_features, partial_influence};
use crate::job::Job;
use crate::ops::{RowShape, RowsOnDevice, is_out_of_memory};
use crate::replacement::LinearModel;

/// Features chosen between two looks at the influence: this many times the batch size.
const UPDATE_INTERVAL: usize = 4;

/// Computes the rows of the targets and of the features that `options` allow. `layout` is that of all active features;
/// `trace_id` tells finished rows of this graph from those of others.
///
/// # Errors
/// Those of the tensor operations and of finished rows; [`crate::Error::Cancelled`].
pub fn compute(
    linear: &LinearModel,
    layout: &NodeLayout,
    targets: &[Target],
    options: &AttributionOptions,
    trace_id: &str,
    job: &Job,
) -> Result<Rows> {
    let n_active = linear.features.len();
    let limit = match options.rows.for_prompt(n_active) {
        RowChoice::Sampled { visits, nodes } => {
            let keeper = match &options.finished {
                Some(store) => Some(sampled::keeper(store, linear, layout, targets, visits, trace_id)?),
                None => None,
            };
            return sampled::compute(linear, layout, targets, (visits, nodes), keeper, job);
        }
        choice => choice.max_features().map_or(n_active, |limit| limit.min(n_active)),
    };
    let mut matrix = Matrix::new(layout, limit + targets.len());
    let count = RowCount::new(job, "rows", limit + targets.len(), RowWork::of(linear), WorkLeft::Anywhere);
    let limits = batch_limits(linear.final_normed.device(), layout.n_nodes());
    let of_targets = target_batches(linear, targets, limits)?;
    if limit == n_active {
        // Every feature has a row, so each is written where it stays: feature i in row i, the targets last.
        let nothing: KeepOnDevice = &mut |_, _| Ok(());
        matrix.fill(linear, of_targets, |target| n_active + target, nothing, &count)?;
        let wanted: Vec<usize> = (0..n_active).collect();
        matrix.fill(linear, feature_batches(linear, &wanted, limits)?, |feature| feature, nothing, &count)?;
        return Ok(matrix.all());
    }
    // Partial attribution: targets first, then features in the order of their influence.
    let weights: Vec<f32> = targets.iter().map(|t| t.weight).collect();
    let shape = RowShape {
        capacity: limit + targets.len(),
        n_columns: layout.targets().start,
        row_stride: matrix.n_nodes + linear.tokens.len(),
        layer_starts: &linear.features.layer_starts,
        row_sum_clamp: PARTIAL_ROW_SUM_CLAMP as f32,
    };
    let (mut on_device, short_of_device_memory) = match RowsOnDevice::new(linear.final_normed.device(), shape) {
        Ok(rows) => (rows, false),
        Err(error) if is_out_of_memory(&error) => (None, true),
        Err(error) => return Err(error.into()),
    };
    let keep: KeepOnDevice = &mut |rows, members| {
        let weights: Vec<f32> = members.iter().map(|&i| weights[i]).collect();
        on_device.as_mut().map_or(Ok(()), |all| Ok(all.push_targets(rows, &weights)?))
    };
    matrix.fill(linear, of_targets, |target| target, keep, &count)?;
    let mut visited: Vec<usize> = Vec::with_capacity(limit);
    // The row of each visited feature.
    let mut row_of = vec![usize::MAX; n_active];
    while visited.len() < limit {
        let n_next = (UPDATE_INTERVAL * options.batch_size).min(limit - visited.len());
        let next = match &mut on_device {
            Some(rows) => rows.next_features(n_next)?,
            None => {
                let influence = partial_influence(&PartialRows {
                    values: &matrix.edge_rows,
                    stride: matrix.n_nodes,
                    n_columns: layout.targets().start,
                    n_active,
                    weights: &weights,
                    visited: &visited,
                });
                let is_visited: Vec<bool> = row_of.iter().map(|&row| row != usize::MAX).collect();
                next_features(&influence, &is_visited, n_next)
            }
        };
        for &feature in &next {
            row_of[feature] = targets.len() + visited.len();
            visited.push(feature);
        }
        let keep: KeepOnDevice =
            &mut |rows, members| on_device.as_mut().map_or(Ok(()), |all| Ok(all.push_features(rows, members)?));
        matrix.fill(linear, feature_batches(linear, &next, limits)?, |feature| row_of[feature], keep, &count)?;
    }
    Ok(Rows { short_of_device_memory, ..matrix.select(&visited, targets.len()) })
}

/// As [`compute`], the rows of the targets and of `features`, ascending.
///
/// # Errors
/// As [`compute`].
pub fn compute_given(
    linear: &LinearModel,
    layout: &NodeLayout,
    targets: &[Target],
    features: &[usize],
    job: &Job,
) -> Result<Rows> {
    let n_rows = features.len() + targets.len();
    let mut matrix = Matrix::new(layout, n_rows);
    let count = RowCount::new(job, "rows", n_rows, RowWork::of(linear), WorkLeft::Anywhere);
    let limits = batch_limits(linear.final_normed.device(), layout.n_nodes());
    let nothing: KeepOnDevice = &mut |_, _| Ok(());
    matrix.fill(linear, target_batches(linear, targets, limits)?, |target| target, nothing, &count)?;
    let mut row_of = vec![usize::MAX; linear.features.len()];
    features.iter().enumerate().for_each(|(at, &feature)| row_of[feature] = targets.len() + at);
    matrix.fill(linear, feature_batches(linear, features, limits)?, |feature| row_of[feature], nothing, &count)?;
    Ok(matrix.select(features, targets.len()))
}
