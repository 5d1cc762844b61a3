//! The two passes of a sampled graph (`docs/sampling.md`): rows that are read and forgotten for the influence of every
//! active feature, then the rows of the features that become nodes, with their columns only.
//!
//! Nothing of the size rows × active features is ever there: some rows at a time, the vectors of the sweep, and kept rows
//! × kept columns.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

use super::batches::{
    Batch, KeepOnDevice, batch_limits, feature_batches, run_batches, run_batches_on_device, target_batches,
};
use super::feature_ids;
use super::finished::{Keeper, RowStore};
use super::matrix::{Rows, add_unselected_at, unselected_effect};
use super::plan::BatchLimits;
use super::row_choice::{ALL_ERRORS, MAX_ERRORS, MAX_NODES, NODE_SHARE, Visits};
use super::row_count::{RowCount, RowWork, WorkLeft};
use super::targets::Target;
use crate::error::{Error, Result};
use crate::graph::influence::{ROW_SUM_CLAMP, row_abs_sums};
use crate::graph::{
    HostVectors, KeptFeatures, NodeLayout, RowSource, SampleSettings, SampledInfluence, Sampling, Scores, SweepKeeper,
    SweepVectors, SweptVectors, Visit, WholeInfluence, next_features, node_threshold, sampled_influence_in,
};
use crate::job::Job;
use crate::ops::{HostRow, SweptOnDevice};
use crate::replacement::{LinearModel, Replacement};

/// What the first pass found of the graph of all active features.
#[derive(Debug)]
pub struct Estimate {
    pub influence: WholeInfluence,
    pub scores: Scores,
    pub sampling: Sampling,
}

/// What keeps the finished rows of a sampled graph in `store`, with what an earlier run has kept there.
///
/// # Errors
/// [`Error::NeedsCpu`]; those of [`Keeper::new`].
pub fn keeper(
    store: &Arc<dyn RowStore>,
    linear: &LinearModel,
    layout: &NodeLayout,
    targets: &[Target],
    visits: Visits,
    trace_id: &str,
) -> Result<Keeper> {
    if !linear.final_normed.device().is_cpu() {
        return Err(Error::NeedsCpu { what: "a graph whose finished rows are kept" });
    }
    let weights: Vec<f32> = targets.iter().map(|target| target.weight).collect();
    let sizes = (visits.settings(&weights).n_vectors(), layout.targets().start, layout.n_layers());
    Keeper::new(store.clone(), trace_id, &layout.feature_ids()[layout.features()], sizes)
}

/// Computes the rows of a sampled graph. `layout` is that of all active features; `choice` says which are visited, and how
/// many become nodes.
///
/// # Errors
/// Those of the tensor operations and of the keeper; [`crate::Error::Cancelled`].
pub fn compute(
    linear: &LinearModel,
    layout: &NodeLayout,
    targets: &[Target],
    choice: (Visits, Option<usize>),
    mut keeper: Option<Keeper>,
    job: &Job,
) -> Result<Rows> {
    let (visits, nodes) = choice;
    let weights: Vec<f32> = targets.iter().map(|target| target.weight).collect();
    let limits = batch_limits(linear.final_normed.device(), layout.n_nodes());
    let settings = visits.settings(&weights);
    let n_expected = match visits {
        Visits::Rows(n_rows) => n_rows.min(layout.n_features()),
        Visits::Theta(_) => layout.n_features(),
    };
    let work = RowWork::of(linear);
    let then = work.below(layout.n_layers(), nodes.unwrap_or(MAX_NODES).min(layout.n_features()));
    let count = RowCount::new(job, "influence rows", n_expected + targets.len(), work, WorkLeft::Sweep { then });
    let pull_backs = PullBacks { linear, layout, targets, limits, count };
    let (found, before) = match keeper.as_mut().and_then(Keeper::take_rows) {
        Some((found, is_done, rows)) => (found, Some((is_done, rows))),
        None => {
            let keeper = keeper.as_mut().map(|keeper| keeper as &mut dyn SweepKeeper);
            (swept(&pull_backs, &weights, settings, keeper)?, None)
        }
    };

    let selected = kept_features(&found, layout, nodes);
    let n_selected = selected.len();
    let mut all = KeptRows::new(layout, selected.clone(), kept_errors(&found, layout), targets.len());
    let mut is_done = vec![false; all.n_rows()];
    if let (Some(keeper), Some((done, rows))) = (&keeper, before) {
        keeper.restore(&done, rows, &mut all)?;
        is_done = done;
    }
    // A batch is cut as if nothing were done, so that its rows do not depend on what is.
    let is_left = |batch: &Batch, first: usize, place_of: &dyn Fn(usize) -> usize| {
        batch.plan.members.iter().any(|&(member, _)| !is_done[first + place_of(member)])
    };
    let place_of = |feature: usize| selected.partition_point(|&other| other < feature);
    let mut of_targets = target_batches(linear, targets, limits)?;
    of_targets.retain(|batch| is_left(batch, n_selected, &|member| member));
    let mut of_features = feature_batches(linear, &selected, limits)?;
    of_features.retain(|batch| is_left(batch, 0, &place_of));
    let n_computed = found.visited.len() + selected.len() + 2 * targets.len();
    let batches = of_targets.iter().chain(&of_features);
    let n_left = batches.clone().map(|batch| batch.plan.members.len()).sum();
    let left = WorkLeft::Known(batches.map(|batch| pull_backs.count.work().of_batch(&batch.plan)).sum());
    let count = pull_backs.count.followed_by("rows", n_left, left);
    let pull_backs = PullBacks { count, ..pull_backs };
    let kept = Mutex::new((all, is_done, keeper, Ok(())));
    let keep = |place: usize, row: &ComputedRow| {
        // A thread that panicked has ended the computation anyway.
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, is_done, keeper, kept_so_far) = &mut *kept;
        all.set(place, row);
        is_done[place] = true;
        if let Some(keeper) = keeper.as_mut().filter(|keeper| keeper.is_due() && kept_so_far.is_ok()) {
            *kept_so_far = keeper.keep_rows(&found, is_done, all);
        }
    };
    pull_backs.run(of_targets, &|row| keep(n_selected + row.member, &row))?;
    pull_backs.run(of_features, &|row| keep(place_of(row.member), &row))?;

    let (kept, _, _, kept_so_far) = kept.into_inner().unwrap_or_else(PoisonError::into_inner);
    kept_so_far?;
    let SampledInfluence { nodes, uncertainty, visited, scores, score_uncertainty } = found;
    let estimate = Estimate {
        influence: WholeInfluence {
            nodes,
            uncertainty: uncertainty.into_iter().map(|value| value as f32).collect(),
            row_abs_sums: kept.row_abs_sums,
        },
        scores,
        sampling: Sampling {
            theta: settings.theta,
            n_visited: visited.len(),
            replacement_uncertainty: score_uncertainty.replacement,
            completeness_uncertainty: score_uncertainty.completeness,
        },
    };
    Ok(Rows {
        selected,
        edge_rows: kept.edge_rows,
        bias_effect: kept.bias_effect,
        unselected_effect: kept.unselected_effect,
        unselected_at: kept.unselected_at,
        error_nodes: kept.error_nodes,
        unselected_error_effect: kept.unselected_error_effect,
        unselected_errors_at: kept.unselected_errors_at,
        row_values: kept.row_values,
        short_of_device_memory: false,
        n_computed,
        estimate: Some(estimate),
    })
}

/// The first pass: where rows are computed on a device, they and the vectors stay there.
fn swept(
    pull_backs: &PullBacks,
    weights: &[f32],
    settings: SampleSettings,
    keeper: Option<&mut dyn SweepKeeper>,
) -> Result<SampledInfluence> {
    let layout = pull_backs.layout;
    let device = pull_backs.linear.final_normed.device();
    match SweptOnDevice::new(device, settings.n_vectors(), layout.targets().start, ROW_SUM_CLAMP as f32)? {
        Some(vectors) => {
            sampled_influence_in(&mut DeviceVectors { pull_backs, vectors }, layout, weights, settings, keeper)
        }
        None => {
            let mut vectors = HostVectors::new(pull_backs, layout, settings.n_vectors());
            sampled_influence_in(&mut vectors, layout, weights, settings, keeper)
        }
    }
}

/// Influence in the graph of all active features.
#[derive(Debug)]
pub struct ExactInfluence {
    /// All active features, errors, tokens and targets.
    pub layout: NodeLayout,
    /// Influence of every feature, error and token. `[n_active + n_errors + n_pos]`
    pub nodes: Vec<f64>,
    /// Scores of the whole graph.
    pub scores: Scores,
}

/// Influence on `targets` from every row: what a sampled trace estimates.
///
/// # Errors
/// Those of the tensor operations; [`crate::Error::Cancelled`].
///
/// # Cost
/// All rows, some at a time: the time of [`super::RowChoice::All`], without its memory.
pub fn exact_influence(
    replacement: &Replacement,
    linear: &LinearModel,
    targets: &[Target],
    job: &Job,
) -> Result<ExactInfluence> {
    let layout =
        NodeLayout::new(feature_ids(linear), replacement.model.config.n_layers, linear.tokens.len(), targets.len())?
            .with_closed(&linear.positions.closed())?;
    let weights: Vec<f32> = targets.iter().map(|target| target.weight).collect();
    let limits = batch_limits(linear.final_normed.device(), layout.n_nodes());
    let (work, left) = (RowWork::of(linear), WorkLeft::Sweep { then: 0.0 });
    let count = RowCount::new(job, "influence rows", layout.n_rows(), work, left);
    let pull_backs = PullBacks { linear, layout: &layout, targets, limits, count };
    let found = swept(&pull_backs, &weights, Visits::Theta(0.0).settings(&weights), None)?;
    Ok(ExactInfluence { nodes: found.nodes, scores: found.scores, layout })
}

/// The features that become nodes, ascending.
fn kept_features(found: &SampledInfluence, layout: &NodeLayout, nodes: Option<usize>) -> Vec<usize> {
    let by_share = || found.kept_features(layout, KeptFeatures::Share(NODE_SHARE));
    let strongest = |number| found.kept_features(layout, KeptFeatures::Number(number));
    match nodes {
        Some(number) => strongest(number),
        None => Some(by_share()).filter(|features| features.len() <= MAX_NODES).unwrap_or_else(|| strongest(MAX_NODES)),
    }
}

/// The errors that become nodes, as places among all layers and positions, ascending: of many the strongest of those that
/// pruning keeps. `None`: all of them.
fn kept_errors(found: &SampledInfluence, layout: &NodeLayout) -> Option<Vec<usize>> {
    let errors = &found.nodes[layout.errors()];
    if errors.len() <= ALL_ERRORS {
        return None;
    }
    let (smallest, _) = node_threshold(&found.nodes, NODE_SHARE);
    let mut strongest = next_features(errors, &vec![false; errors.len()], MAX_ERRORS);
    strongest.retain(|&error| errors[error] > 0.0 && errors[error] >= smallest);
    strongest.sort_unstable();
    Some(strongest)
}

/// A row as it comes out of a batch.
struct ComputedRow<'a> {
    /// What it is the row of, by the batch's numbering.
    member: usize,
    /// [active features, errors, tokens, targets].
    effects: &'a [f32],
    bias_effect: f32,
    value: f32,
}

/// Rows on demand, let go once they were looked at.
struct PullBacks<'a> {
    linear: &'a LinearModel,
    layout: &'a NodeLayout,
    targets: &'a [Target],
    limits: BatchLimits,
    count: RowCount<'a>,
}

impl PullBacks<'_> {
    /// Batches for rows of the layout, all of one layer or all of targets, ascending, and the row that member 0 of them is.
    fn batches(&self, rows: &[usize]) -> Result<(Vec<Batch>, usize)> {
        let (Some(&first), Some(&last)) = (rows.first(), rows.last()) else { return Ok((Vec::new(), 0)) };
        // Targets are asked for without gaps.
        Ok(match self.layout.target_of_row(first).zip(self.layout.target_of_row(last)) {
            Some((from, to)) => (target_batches(self.linear, &self.targets[from..=to], self.limits)?, first),
            None => (feature_batches(self.linear, rows, self.limits)?, 0),
        })
    }

    /// Computes batches and shows each of their rows to `each`: in parallel on the CPU, else one batch after the other.
    fn run(&self, batches: Vec<Batch>, each: &(dyn Fn(ComputedRow) + Sync)) -> Result<()> {
        let n_nodes = self.layout.n_nodes();
        let run = |batch: Batch| {
            let values = batch.values.clone();
            let members: Vec<usize> = batch.plan.members.iter().map(|&(member, _)| member).collect();
            let (mut effects, mut biases) = (vec![0.0; members.len() * n_nodes], vec![0.0; members.len()]);
            let rows = effects.chunks_exact_mut(n_nodes).zip(&mut biases);
            let rows = rows.map(|(effects, bias)| HostRow { effects, bias }).collect();
            run_batches(self.linear, self.layout, vec![(batch, rows)], &mut |_, _| Ok(()), &self.count)?;
            let rows = members.into_iter().zip(effects.chunks_exact(n_nodes)).zip(biases).zip(values);
            rows.for_each(|(((member, effects), bias_effect), value)| {
                each(ComputedRow { member, effects, bias_effect, value });
            });
            Ok(())
        };
        if self.linear.final_normed.device().is_cpu() {
            batches.into_par_iter().with_max_len(1).try_for_each(run)
        } else {
            batches.into_iter().try_for_each(run)
        }
    }
}

impl RowSource for PullBacks<'_> {
    fn rows(&self, rows: &[usize], each: &(dyn Fn(usize, &[f32]) + Sync)) -> Result<()> {
        let (batches, first) = self.batches(rows)?;
        self.run(batches, &|row| each(rows.partition_point(|&other| other < first + row.member), row.effects))
    }
}

/// The vectors of the sweep in the device's memory.
struct DeviceVectors<'a> {
    pull_backs: &'a PullBacks<'a>,
    vectors: SweptOnDevice,
}

impl SweepVectors for DeviceVectors<'_> {
    fn add(&mut self, visits: &[Visit]) -> Result<()> {
        let Self { pull_backs, vectors } = self;
        let rows: Vec<usize> = visits.iter().map(|visit| visit.row).collect();
        let (batches, first) = pull_backs.batches(&rows)?;
        let keep: KeepOnDevice = &mut |on_device, members| {
            let places: Vec<usize> =
                members.iter().map(|&member| rows.partition_point(|&other| other < first + member)).collect();
            let of_vector = |v: usize| places.iter().map(|&place| visits[place].weights[v]).collect();
            let weights: Vec<Vec<f64>> = (0..vectors.n_vectors()).map(of_vector).collect();
            Ok(vectors.add(on_device, &weights)?)
        };
        run_batches_on_device(pull_backs.linear, pull_backs.layout, batches, keep, &pull_backs.count)
    }

    fn values(&self, features: Range<usize>) -> Result<Vec<Vec<f64>>> {
        Ok(self.vectors.values(features)?)
    }

    fn held(&self) -> Option<(&[Vec<f64>], &[f64])> {
        None
    }

    fn restore(&mut self, _: Vec<Vec<f64>>, _: Vec<f64>) -> Result<()> {
        Err(Error::NeedsCpu { what: "a sweep that goes on" })
    }

    fn finish(&mut self) -> Result<SweptVectors> {
        let layout = self.pull_backs.layout;
        let mut vectors = self.vectors.values(0..layout.targets().start)?;
        // Nothing but rows gives to errors, so what was passed on to them is what they have.
        let to_errors = vectors.iter().map(|vector| vector[layout.errors()].iter().sum()).collect();
        let nodes = vectors.remove(0);
        Ok(SweptVectors { nodes, noise: vectors, to_errors })
    }
}

/// The rows of the nodes, without the columns of other features.
pub(super) struct KeptRows<'a> {
    layout: &'a NodeLayout,
    selected: Vec<usize>,
    is_selected: Vec<bool>,
    /// Places of the errors that are kept; `None`: all.
    errors: Option<Vec<usize>>,
    error_nodes: Option<Vec<(usize, usize)>>,
    /// [n_rows, n_columns].
    edge_rows: Vec<f32>,
    bias_effect: Vec<f32>,
    unselected_effect: Vec<f32>,
    /// [n_targets, n_layers, n_pos].
    unselected_at: Vec<f32>,
    unselected_error_effect: Vec<f32>,
    /// [n_targets, n_layers, n_pos].
    unselected_errors_at: Vec<f32>,
    row_values: Vec<f32>,
    row_abs_sums: Vec<f32>,
}

impl<'a> KeptRows<'a> {
    fn new(layout: &'a NodeLayout, selected: Vec<usize>, errors: Option<Vec<usize>>, n_targets: usize) -> Self {
        let n_rows = selected.len() + n_targets;
        let n_errors = errors.as_ref().map_or(layout.errors().len(), Vec::len);
        let n_columns = selected.len() + n_errors + layout.n_nodes() - layout.errors().end;
        let n_pos = layout.n_pos();
        let error_nodes = errors.as_ref().map(|cells| cells.iter().map(|cell| (cell / n_pos, cell % n_pos)).collect());
        let n_error_rows = if errors.is_some() { n_rows } else { 0 };
        let n_places = layout.n_layers() * n_pos;
        let n_error_places = if errors.is_some() { n_targets * n_places } else { 0 };
        let mut is_selected = vec![false; layout.n_features()];
        selected.iter().for_each(|&feature| is_selected[feature] = true);
        Self {
            layout,
            selected,
            is_selected,
            errors,
            error_nodes,
            unselected_error_effect: vec![0.0; n_error_rows],
            unselected_errors_at: vec![0.0; n_error_places],
            edge_rows: vec![0.0; n_rows * n_columns],
            bias_effect: vec![0.0; n_rows],
            unselected_effect: vec![0.0; n_rows],
            unselected_at: vec![0.0; n_targets * layout.n_layers() * layout.n_pos()],
            row_values: vec![0.0; n_rows],
            row_abs_sums: vec![0.0; n_rows],
        }
    }

    /// How many rows there are, done or not.
    pub(super) fn n_rows(&self) -> usize {
        self.row_values.len()
    }

    /// Everything that rows fill, by name.
    pub(super) fn columns(&self) -> [(&'static str, &[f32]); 8] {
        [
            ("edge_rows", &self.edge_rows),
            ("bias_effect", &self.bias_effect),
            ("unselected_effect", &self.unselected_effect),
            ("unselected_at", &self.unselected_at),
            ("unselected_error_effect", &self.unselected_error_effect),
            ("unselected_errors_at", &self.unselected_errors_at),
            ("row_values", &self.row_values),
            ("row_abs_sums", &self.row_abs_sums),
        ]
    }

    /// As [`KeptRows::columns`], to be filled; their lengths stay.
    pub(super) fn columns_mut(&mut self) -> [(&'static str, &mut Vec<f32>); 8] {
        [
            ("edge_rows", &mut self.edge_rows),
            ("bias_effect", &mut self.bias_effect),
            ("unselected_effect", &mut self.unselected_effect),
            ("unselected_at", &mut self.unselected_at),
            ("unselected_error_effect", &mut self.unselected_error_effect),
            ("unselected_errors_at", &mut self.unselected_errors_at),
            ("row_values", &mut self.row_values),
            ("row_abs_sums", &mut self.row_abs_sums),
        ]
    }

    fn set(&mut self, place: usize, row: &ComputedRow) {
        let layout = self.layout;
        let (errors, rest) = (&row.effects[layout.errors()], &row.effects[layout.errors().end..]);
        let n_errors = self.errors.as_ref().map_or(errors.len(), Vec::len);
        let n_columns = self.selected.len() + n_errors + rest.len();
        let (features, others) = self.edge_rows[place * n_columns..][..n_columns].split_at_mut(self.selected.len());
        features.iter_mut().zip(&self.selected).for_each(|(effect, &feature)| *effect = row.effects[feature]);
        let (kept_errors, others) = others.split_at_mut(n_errors);
        others.copy_from_slice(rest);
        match &self.errors {
            None => kept_errors.copy_from_slice(errors),
            Some(cells) => {
                kept_errors.iter_mut().zip(cells).for_each(|(effect, &cell)| *effect = errors[cell]);
                let mut left = errors.to_vec();
                cells.iter().for_each(|&cell| left[cell] = 0.0);
                self.unselected_error_effect[place] = left.iter().map(|&effect| f64::from(effect)).sum::<f64>() as f32;
                if let Some(target) = place.checked_sub(self.selected.len()) {
                    self.unselected_errors_at[target * left.len()..][..left.len()].copy_from_slice(&left);
                }
            }
        }
        // What the row is called in the layout of all active features.
        let in_layout = match place.checked_sub(self.selected.len()) {
            Some(target) => {
                let n_places = layout.n_layers() * layout.n_pos();
                let sums = &mut self.unselected_at[target * n_places..][..n_places];
                add_unselected_at(layout, row.effects, &self.is_selected, sums);
                layout.n_features() + target
            }
            None => self.selected[place],
        };
        self.bias_effect[place] = row.bias_effect;
        self.unselected_effect[place] = unselected_effect(row.effects, &self.is_selected);
        self.row_values[place] = row.value;
        self.row_abs_sums[place] = row_abs_sums(layout, in_layout, row.effects).0 as f32;
    }
}
