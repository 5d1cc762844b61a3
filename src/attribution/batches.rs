//! Batches of rows: what is put where for each of their targets, and the one function that computes them.

use std::cell::RefCell;

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::plan::{BatchLimits, BatchPlan, by_layer, cut};
use super::row_count::RowCount;
use super::targets::{Target, TargetKind};
use crate::error::Result;
use crate::graph::{NodeId, NodeLayout};
use crate::job::Job;
use crate::ops::{BatchRows, HostRow, RowCollector, gradient_rows, row_values};
use crate::replacement::{LinearModel, Origin, Sources, TargetBatch, TargetSite};

/// Rows that are computed together.
#[derive(Debug)]
pub struct Batch {
    pub plan: BatchPlan,
    /// As [`TargetBatch`] has them.
    gradients: Tensor,
    /// The part of each value that is constant at the target itself: the bias effect begins with it. `[n_members]`
    constants: Vec<f32>,
    /// What the row of each member and its bias effect add up to. `[n_members]`
    pub values: Vec<f32>,
}

impl Batch {
    /// What is pulled back.
    pub fn to_targets(&self) -> TargetBatch {
        let positions = self.plan.members.iter().map(|&(_, pos)| pos).collect();
        TargetBatch { site: self.plan.site, positions, gradients: self.gradients.clone() }
    }
}

/// Gets the rows of every batch that are in a device's memory, and the numbers of its members.
pub type KeepOnDevice<'a> = &'a mut dyn FnMut(&Tensor, &[usize]) -> Result<()>;

/// How large batches of rows with `n_nodes` columns may be on a device.
pub fn batch_limits(device: &Device, n_nodes: usize) -> BatchLimits {
    BatchLimits { gradient_rows: gradient_rows(device), targets: (row_values(device) / n_nodes.max(1)).max(1) }
}

/// Batches for all targets, whose members are numbered as in `targets`.
///
/// # Errors
/// Those of the tensor operations.
pub fn target_batches(linear: &LinearModel, targets: &[Target], limits: BatchLimits) -> Result<Vec<Batch>> {
    let mut plans: Vec<BatchPlan> = Vec::new();
    let mut directions = Vec::new();
    for (i, target) in targets.iter().enumerate().filter(|(_, t)| matches!(t.kind, TargetKind::Direction(_))) {
        directions.push((i, linear.positions.need(target.pos)?));
    }
    plans.extend(cut(TargetSite::FinalNorm, directions, limits));
    for (i, target) in targets.iter().enumerate() {
        let site = match target.kind {
            TargetKind::Feature { layer, .. } => TargetSite::InputHook { layer },
            TargetKind::AttentionInput { layer, .. } => {
                linear.positions.check_all("explaining an attention score")?;
                TargetSite::AttentionInput { layer }
            }
            TargetKind::Direction(_) => continue,
        };
        plans.extend(cut(site, vec![(i, linear.positions.need(target.pos)?)], limits));
    }
    let batch = |plan: BatchPlan| -> Result<Batch> {
        let (mut gradients, mut constants, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for &(i, place) in &plan.members {
            let (gradient, constant, value) = at_site(linear, &targets[i], place)?;
            gradients.push(gradient);
            constants.push(constant);
            values.push(value);
        }
        let gradients = match plan.site {
            // One target a batch, with a gradient at each of its positions.
            TargetSite::AttentionInput { .. } => gradients.remove(0),
            TargetSite::InputHook { .. } | TargetSite::FinalNorm => Tensor::stack(&gradients, 0)?,
        };
        Ok(Batch { plan, gradients, constants, values })
    };
    plans.into_iter().map(batch).collect()
}

/// A target's gradient at its site, the part of its value that is constant there, and its value.
fn at_site(linear: &LinearModel, target: &Target, place: usize) -> Result<(Tensor, f32, f32)> {
    let dot = |a: &Tensor, b: &Tensor| -> Result<f32> { Ok((a * b)?.sum_all()?.to_scalar()?) };
    match &target.kind {
        TargetKind::Direction(direction) => {
            let value = dot(direction, &linear.final_normed.get(target.pos)?)?;
            let bias = linear.final_bias.as_ref().map_or(Ok(0.0), |bias| dot(direction, bias))?;
            Ok((direction.clone(), bias, value))
        }
        TargetKind::Feature { layer, encoder_vec, b_enc, .. } => {
            let value = dot(encoder_vec, &linear.hook_in[*layer].get(place)?)? + b_enc;
            let bias = linear.input_bias(*layer).map_or(Ok(0.0), |bias| dot(encoder_vec, bias))?;
            Ok((encoder_vec.clone(), bias + b_enc, value))
        }
        TargetKind::AttentionInput { gradients, constant, value, .. } => Ok((gradients.clone(), *constant, *value)),
    }
}

/// Batches for the active features `wanted`, whose members are numbered as in [`LinearModel::features`].
///
/// # Errors
/// Those of the tensor operations.
pub fn feature_batches(linear: &LinearModel, wanted: &[usize], limits: BatchLimits) -> Result<Vec<Batch>> {
    let features = &linear.features;
    let mut batches = Vec::new();
    // Batches of high layers have the most to do, so they go first.
    for (layer, members) in by_layer(linear, wanted)?.into_iter().enumerate().rev() {
        for plan in cut(TargetSite::InputHook { layer }, members, limits).into_iter().rev() {
            let n = plan.members.len();
            let here = plan.members.iter().map(|&(index, _)| index - features.layer_starts[layer]);
            let gradients = features.encoder_vecs[layer].select(here)?;
            let input_bias = match linear.input_bias(layer) {
                Some(bias) => gradients.matmul(&bias.unsqueeze(1)?)?.squeeze(1)?.to_vec1::<f32>()?,
                None => vec![0.0; n],
            };
            let of_members = plan.members.iter().map(|&(index, _)| &features.all[index]);
            let constants = of_members.clone().zip(input_bias).map(|(f, bias)| f.b_enc + bias).collect();
            let values = of_members.map(|f| f.value).collect();
            batches.push(Batch { plan, gradients, constants, values });
        }
    }
    Ok(batches)
}

/// Pulls batches back and fills their rows, which must be zero and one for each member: in parallel on the CPU; on other
/// devices one after another, each copied to the host while the next is computed.
///
/// Rows are lent by the caller, so that they can stay where they are for good or be read and used again.
///
/// # Errors
/// Those of the tensor operations; [`crate::Error::Cancelled`], looked for at every layer of every batch.
pub fn run_batches(
    linear: &LinearModel,
    layout: &NodeLayout,
    batches: Vec<(Batch, Vec<HostRow>)>,
    keep: KeepOnDevice,
    count: &RowCount,
) -> Result<()> {
    let device = linear.final_normed.device();
    let collector = RowCollector::new(device, linear.tokens.len())?;
    if device.is_cpu() {
        return batches.into_par_iter().with_max_len(1).try_for_each(|(batch, rows)| {
            let mut rows = collector.batch(with_constants(rows, &batch), layout.n_nodes())?;
            pull_back(linear, layout, batch, &mut rows, count)?;
            Ok(collector.wait(collector.finish(rows)?)?)
        });
    }
    let mut copying = None;
    for (batch, rows) in batches {
        let members: Vec<usize> = batch.plan.members.iter().map(|&(number, _)| number).collect();
        let mut rows = collector.batch(with_constants(rows, &batch), layout.n_nodes())?;
        pull_back(linear, layout, batch, &mut rows, count)?;
        if let Some(on_device) = rows.on_device() {
            keep(on_device, &members)?;
        }
        if let Some(before) = copying.replace(collector.finish(rows)?) {
            collector.wait(before)?;
        }
    }
    copying.map_or(Ok(()), |last| Ok(collector.wait(last)?))
}

/// As [`run_batches`], on a device: `keep` is all that sees the rows.
///
/// # Errors
/// As [`run_batches`], and those of `keep`.
pub fn run_batches_on_device(
    linear: &LinearModel,
    layout: &NodeLayout,
    batches: Vec<Batch>,
    keep: KeepOnDevice,
    count: &RowCount,
) -> Result<()> {
    let collector = RowCollector::new(linear.final_normed.device(), linear.tokens.len())?;
    for batch in batches {
        let members: Vec<usize> = batch.plan.members.iter().map(|&(number, _)| number).collect();
        let mut biases = vec![0.0; members.len()];
        let nowhere = biases.iter_mut().map(|bias| HostRow { effects: &mut [], bias }).collect();
        let mut rows = collector.batch(nowhere, layout.n_nodes())?;
        pull_back(linear, layout, batch, &mut rows, count)?;
        if let Some(on_device) = rows.on_device() {
            keep(on_device, &members)?;
        }
    }
    Ok(())
}

/// What the heads of each layer give to the targets from closed positions. `[n_targets, n_layers, n_pos]`, 0 at open ones
///
/// # Errors
/// Those of the tensor operations; [`crate::Error::Cancelled`].
///
/// # Cost
/// That of the targets' rows, once more.
pub fn context_at(linear: &LinearModel, layout: &NodeLayout, targets: &[Target], job: &Job) -> Result<Vec<f32>> {
    let n_places = layout.n_layers() * layout.n_pos();
    let closed = linear.positions.closed();
    let mut all = vec![0f32; targets.len() * n_places];
    for batch in target_batches(linear, targets, batch_limits(linear.final_normed.device(), layout.n_nodes()))? {
        let members: Vec<usize> = batch.plan.members.iter().map(|&(number, _)| number).collect();
        job.check()?;
        linear.pull_back_seeing_heads(&batch.to_targets(), &mut |_, _, _| Ok(()), &mut |at| {
            let Some(effects) = linear.closed_effects(&at)? else { return Ok(()) };
            for (member, effects) in members.iter().zip(effects.chunks_exact(closed.len().max(1))) {
                let places = &mut all[member * n_places + at.layer * layout.n_pos()..][..layout.n_pos()];
                closed.iter().zip(effects).for_each(|(&pos, &effect)| places[pos] = effect);
            }
            Ok(())
        })?;
    }
    Ok(all)
}

/// Begins the bias effect of each row with what is constant at its target.
fn with_constants<'a>(mut rows: Vec<HostRow<'a>>, batch: &Batch) -> Vec<HostRow<'a>> {
    rows.iter_mut().zip(&batch.constants).for_each(|(row, &constant)| *row.bias = constant);
    rows
}

/// Reads every source below a batch.
fn pull_back(
    linear: &LinearModel,
    layout: &NodeLayout,
    batch: Batch,
    rows: &mut BatchRows,
    count: &RowCount,
) -> Result<()> {
    let plan = &batch.plan;
    let batch = batch.to_targets();
    count.check()?;
    let tokens = layout.tokens().start;
    let contexts: Vec<usize> = linear.positions.closed().into_iter().map(|pos| tokens + pos).collect();
    // Both look at the same rows, one after the other.
    let rows = RefCell::new(rows);
    linear.pull_back_seeing_heads(
        &batch,
        &mut |sources, grad, ragged| {
            count.check()?;
            Ok(rows.borrow_mut().add(grad, &sources.vecs, &columns(layout, sources), ragged)?)
        },
        &mut |at| match linear.closed_effects(&at)? {
            Some(effects) => Ok(rows.borrow_mut().add_effects(&effects, &contexts)?),
            None => Ok(()),
        },
    )?;
    count.add(plan);
    Ok(())
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
