//! The edge rows: batches pulled back, effects put where they belong.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::Tensor;
use rayon::prelude::*;

use super::plan::{BatchLimits, BatchPlan, batches, feature_batches};
use super::targets::{Target, TargetKind};
use super::{AttributionOptions, Progress, feature_ids};
use crate::error::Result;
use crate::graph::{NodeId, NodeLayout, PARTIAL_ROW_SUM_CLAMP, PartialRows, next_features, partial_influence};
use crate::ops::{
    BatchRows, HostRow, RowCollector, RowShape, RowsOnDevice, gradient_rows, is_out_of_memory, row_values,
};
use crate::replacement::{LinearModel, Origin, Replacement, Sources, TargetBatch, TargetSite};

/// Features chosen between two looks at the influence: this many times the batch size.
const UPDATE_INTERVAL: usize = 4;

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
    /// `[n_selected + n_targets]`
    pub row_values: Vec<f32>,
    /// Whether the device had no room for the rows so far, so that the host chose the features.
    pub short_of_device_memory: bool,
}

/// Computes the rows of the targets and of the features that `options` allow.
///
/// # Errors
/// Those of reading and of the tensor operations.
pub fn compute(
    linear: &LinearModel,
    replacement: &Replacement,
    targets: &[Target],
    options: &AttributionOptions,
    progress: Progress,
) -> Result<Rows> {
    let n_active = linear.features.len();
    let limit = options.max_features.unwrap_or(n_active).min(n_active);
    let active = feature_ids(linear);
    let (n_layers, n_pos) = (linear.mlp_sources.len(), linear.tokens.len());
    let layout = NodeLayout::new(active, n_layers, n_pos, targets.len())?;
    let mut matrix = Matrix::new(&layout, limit + targets.len());
    if limit == n_active {
        // Every feature has a row, so each is written where it stays: feature i in row i, the targets last.
        let nothing: KeepOnDevice = &mut |_, _| Ok(());
        target_rows(linear, replacement, targets, n_active, &mut matrix, nothing)?;
        let wanted: Vec<usize> = (0..n_active).collect();
        feature_rows(linear, replacement, &wanted, &wanted, &mut matrix, nothing, progress)?;
        let Matrix { edge_rows, bias_effect, row_values, .. } = matrix;
        return Ok(Rows {
            selected: wanted,
            edge_rows,
            bias_effect,
            unselected_effect: Vec::new(),
            row_values,
            short_of_device_memory: false,
        });
    }
    // Partial attribution: targets first, then features in the order of their influence.
    let weights: Vec<f32> = targets.iter().map(|t| t.weight).collect();
    let shape = RowShape {
        capacity: limit + targets.len(),
        n_columns: layout.targets().start,
        row_stride: matrix.n_nodes + n_pos,
        layer_starts: &linear.features.layer_starts,
        row_sum_clamp: PARTIAL_ROW_SUM_CLAMP as f32,
    };
    let (mut on_device, short_of_device_memory) = match RowsOnDevice::new(linear.final_normed.device(), shape) {
        Ok(rows) => (rows, false),
        Err(error) if is_out_of_memory(&error) => (None, true),
        Err(error) => return Err(error.into()),
    };
    target_rows(linear, replacement, targets, 0, &mut matrix, &mut |rows, members| {
        let weights: Vec<f32> = members.iter().map(|&i| weights[i]).collect();
        on_device.as_mut().map_or(Ok(()), |all| Ok(all.push_targets(rows, &weights)?))
    })?;
    let mut visited: Vec<usize> = Vec::with_capacity(limit);
    let mut is_visited = vec![false; n_active];
    while visited.len() < limit {
        let count = (UPDATE_INTERVAL * options.batch_size).min(limit - visited.len());
        let next = match &mut on_device {
            Some(rows) => rows.next_features(count)?,
            None => {
                let influence = partial_influence(&PartialRows {
                    values: &matrix.edge_rows,
                    stride: matrix.n_nodes,
                    n_columns: layout.targets().start,
                    n_active,
                    weights: &weights,
                    visited: &visited,
                });
                next_features(&influence, &is_visited, count)
            }
        };
        let rows: Vec<usize> = (0..next.len()).map(|i| targets.len() + visited.len() + i).collect();
        let done = visited.len();
        let keep: KeepOnDevice =
            &mut |rows, members| on_device.as_mut().map_or(Ok(()), |all| Ok(all.push_features(rows, members)?));
        feature_rows(linear, replacement, &next, &rows, &mut matrix, keep, &|n, _| progress(done + n, limit))?;
        next.iter().for_each(|&feature| is_visited[feature] = true);
        visited.extend(next);
    }
    Ok(Rows { short_of_device_memory, ..matrix.select(&layout, &visited, targets.len()) })
}

/// Rows as they are computed: columns are all active features, errors, tokens and targets.
struct Matrix<'a> {
    layout: &'a NodeLayout,
    n_nodes: usize,
    edge_rows: Vec<f32>,
    bias_effect: Vec<f32>,
    row_values: Vec<f32>,
}

impl<'a> Matrix<'a> {
    fn new(layout: &'a NodeLayout, n_rows: usize) -> Self {
        let n_nodes = layout.n_nodes();
        Self {
            layout,
            n_nodes,
            edge_rows: vec![0.0; n_rows * n_nodes],
            bias_effect: vec![0.0; n_rows],
            row_values: vec![0.0; n_rows],
        }
    }

    /// Borrows rows for batches that fill them at the same time; no row may be asked for twice.
    fn take_rows(&mut self, wanted: &[Vec<usize>]) -> Vec<Vec<HostRow<'_>>> {
        let rows = self.edge_rows.chunks_exact_mut(self.n_nodes.max(1)).zip(&mut self.bias_effect);
        let mut rows: Vec<Option<HostRow>> = rows.map(|(effects, bias)| Some(HostRow { effects, bias })).collect();
        wanted.iter().map(|batch| batch.iter().filter_map(|&row| rows[row].take()).collect()).collect()
    }

    /// Keeps the columns of the visited features and puts their rows into ascending order, targets last; in place,
    /// since the rows are the largest thing there is.
    fn select(mut self, layout: &NodeLayout, visited: &[usize], n_targets: usize) -> Rows {
        let mut selected = visited.to_vec();
        selected.sort_unstable();
        let n_rows = visited.len() + n_targets;
        let rest = layout.errors().start..layout.n_nodes();
        let n_columns = selected.len() + rest.len();
        let mut is_selected = vec![false; layout.n_features()];
        selected.iter().for_each(|&column| is_selected[column] = true);
        let mut unselected_effect = Vec::with_capacity(n_rows);
        for row in 0..n_rows {
            let (from, to) = (row * self.n_nodes, row * n_columns);
            let effects = self.edge_rows[from..].iter().zip(&is_selected).filter(|(_, selected)| !**selected);
            unselected_effect.push(effects.map(|(&effect, _)| f64::from(effect)).sum::<f64>() as f32);
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
        permute_rows(&mut unselected_effect, 1, &source);
        self.edge_rows.shrink_to_fit();
        let Self { edge_rows, bias_effect, row_values, .. } = self;
        let short_of_device_memory = false;
        Rows { selected, edge_rows, bias_effect, unselected_effect, row_values, short_of_device_memory }
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

/// A batch, and where its rows go.
struct Planned {
    plan: BatchPlan,
    /// `[n_targets, d_model]`
    gradients: Tensor,
    /// `[n_targets]`
    rows: Vec<usize>,
}

/// How large batches may be on the device at hand.
fn batch_limits(linear: &LinearModel, matrix: &Matrix) -> BatchLimits {
    let device = linear.final_normed.device();
    let targets = (row_values(device) / matrix.n_nodes.max(1)).max(1);
    BatchLimits { gradient_rows: gradient_rows(device), targets }
}

/// The rows of all targets, into rows `first_row..`.
fn target_rows(
    linear: &LinearModel,
    replacement: &Replacement,
    targets: &[Target],
    first_row: usize,
    matrix: &mut Matrix,
    keep: KeepOnDevice,
) -> Result<()> {
    let limits = batch_limits(linear, matrix);
    let mut plans: Vec<BatchPlan> = Vec::new();
    let directions = targets.iter().enumerate().filter(|(_, t)| matches!(t.kind, TargetKind::Direction(_)));
    plans.extend(batches(TargetSite::FinalNorm, directions.map(|(i, t)| (i, t.pos)).collect(), limits));
    for (i, target) in targets.iter().enumerate() {
        if let TargetKind::Feature { layer, .. } = target.kind {
            plans.extend(batches(TargetSite::InputHook { layer }, vec![(i, target.pos)], limits));
        }
    }
    let mut planned = Vec::with_capacity(plans.len());
    for plan in plans {
        let mut gradients = Vec::with_capacity(plan.members.len());
        for &(i, pos) in &plan.members {
            let (gradient, bias, value) = gradient_of(linear, replacement, &targets[i], pos)?;
            gradients.push(gradient);
            matrix.bias_effect[first_row + i] = bias;
            matrix.row_values[first_row + i] = value;
        }
        let rows = plan.members.iter().map(|&(i, _)| first_row + i).collect();
        planned.push(Planned { plan, gradients: Tensor::stack(&gradients, 0)?, rows });
    }
    run(linear, planned, matrix, keep, &|_, _| ())
}

/// A target's gradient at its site, the part of its value that is constant there, and its value.
fn gradient_of(
    linear: &LinearModel,
    replacement: &Replacement,
    target: &Target,
    pos: usize,
) -> Result<(Tensor, f32, f32)> {
    match &target.kind {
        TargetKind::Direction(direction) => {
            let value = dot(direction, &linear.final_normed.get(pos)?)?;
            let bias = linear.final_bias.as_ref().map_or(Ok(0.0), |bias| dot(direction, bias))?;
            Ok((direction.clone(), bias, value))
        }
        &TargetKind::Feature { layer, feature } => {
            let transcoder = &replacement.transcoders.layers[layer];
            let row = transcoder.encoder_row(feature, linear.final_normed.device())?;
            let b_enc = transcoder.b_enc(feature);
            let value = dot(&row, &linear.hook_in[layer].get(pos)?)? + b_enc;
            let bias = linear.input_bias(layer).map_or(Ok(0.0), |bias| dot(&row, bias))?;
            Ok((row, bias + b_enc, value))
        }
    }
}

fn dot(a: &Tensor, b: &Tensor) -> Result<f32> {
    Ok((a * b)?.sum_all()?.to_scalar()?)
}

/// The rows of active features: feature `wanted[i]` into row `rows[i]`.
fn feature_rows(
    linear: &LinearModel,
    replacement: &Replacement,
    wanted: &[usize],
    rows: &[usize],
    matrix: &mut Matrix,
    keep: KeepOnDevice,
    progress: Progress,
) -> Result<()> {
    let features = &linear.features;
    let row_of: HashMap<usize, usize> = wanted.iter().copied().zip(rows.iter().copied()).collect();
    let mut planned = Vec::new();
    // Batches of high layers have the most to do, so they go first.
    let limits = batch_limits(linear, matrix);
    for plan in feature_batches(features, wanted, limits).into_iter().rev() {
        let TargetSite::InputHook { layer } = plan.site else { continue };
        let rows: Vec<usize> = plan.members.iter().map(|(index, _)| row_of[index]).collect();
        let local: Vec<u32> =
            plan.members.iter().map(|&(index, _)| (index - features.layer_starts[layer]) as u32).collect();
        let encoder_vecs = &features.encoder_vecs[layer];
        let n = local.len();
        let gradients = encoder_vecs.index_select(&Tensor::from_vec(local, n, encoder_vecs.device())?, 0)?;
        let input_bias = match linear.input_bias(layer) {
            Some(bias) => gradients.matmul(&bias.unsqueeze(1)?)?.squeeze(1)?.to_vec1::<f32>()?,
            None => vec![0.0; n],
        };
        for (i, &(index, _)) in plan.members.iter().enumerate() {
            let feature = &features.all[index];
            let b_enc = replacement.transcoders.layers[layer].b_enc(feature.feature);
            matrix.bias_effect[rows[i]] = b_enc + input_bias[i];
            matrix.row_values[rows[i]] = feature.value;
        }
        planned.push(Planned { plan, gradients, rows });
    }
    run(linear, planned, matrix, keep, progress)
}

/// Gets the rows of every batch that are in a device's memory, and the numbers of its members.
type KeepOnDevice<'a> = &'a mut dyn FnMut(&Tensor, &[usize]) -> Result<()>;

/// Pulls batches back and collects their rows: in parallel on the CPU; on other devices one after another, each copied
/// to the host while the next is computed.
fn run(
    linear: &LinearModel,
    planned: Vec<Planned>,
    matrix: &mut Matrix,
    keep: KeepOnDevice,
    progress: Progress,
) -> Result<()> {
    let (layout, n_nodes) = (matrix.layout, matrix.n_nodes);
    let wanted: Vec<Vec<usize>> = planned.iter().map(|p| p.rows.clone()).collect();
    let n_rows: usize = wanted.iter().map(Vec::len).sum();
    let done = AtomicUsize::new(0);
    let device = linear.final_normed.device();
    let collector = RowCollector::new(device, linear.tokens.len())?;
    let pull_back = |plan: &BatchPlan, gradients: Tensor, rows: &mut BatchRows| -> Result<()> {
        let positions = plan.members.iter().map(|&(_, pos)| pos).collect();
        let batch = TargetBatch { site: plan.site, positions, gradients };
        linear.pull_back(&batch, &mut |sources, grad, ragged| {
            Ok(rows.add(grad, &sources.vecs, &columns(layout, sources), ragged)?)
        })?;
        progress(done.fetch_add(rows.len(), Ordering::Relaxed) + rows.len(), n_rows);
        Ok(())
    };
    let jobs: Vec<(Planned, Vec<HostRow>)> = planned.into_iter().zip(matrix.take_rows(&wanted)).collect();
    if device.is_cpu() {
        return jobs.into_par_iter().with_max_len(1).try_for_each(|(Planned { plan, gradients, .. }, rows)| {
            let mut rows = collector.batch(rows, n_nodes)?;
            pull_back(&plan, gradients, &mut rows)?;
            Ok(collector.wait(collector.finish(rows)?)?)
        });
    }
    let mut copying = None;
    for (Planned { plan, gradients, .. }, rows) in jobs {
        let mut rows = collector.batch(rows, n_nodes)?;
        pull_back(&plan, gradients, &mut rows)?;
        if let Some(on_device) = rows.on_device() {
            let members: Vec<usize> = plan.members.iter().map(|&(number, _)| number).collect();
            keep(on_device, &members)?;
        }
        if let Some(before) = copying.replace(collector.finish(rows)?) {
            collector.wait(before)?;
        }
    }
    copying.map_or(Ok(()), |last| Ok(collector.wait(last)?))
}

/// The column of each source; `None` goes to the bias effect.
fn columns(layout: &NodeLayout, sources: &Sources) -> Vec<Option<usize>> {
    let column = |origin: &Origin| match *origin {
        Origin::Feature(index) => Some(index),
        Origin::Error { layer, pos } => layout.index(NodeId::Error { layer: layer as u32, pos: pos as u32 }),
        Origin::Token { pos } => layout.index(NodeId::Token { pos: pos as u32 }),
        Origin::Constant => None,
    };
    sources.origins.iter().map(column).collect()
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
