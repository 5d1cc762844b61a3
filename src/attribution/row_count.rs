//! How many rows are done, and how long the rest takes: rows of high layers and late positions are more work than others.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::plan::BatchPlan;
use crate::error::Result;
use crate::job::Job;
use crate::replacement::{LinearModel, TargetSite};

/// Before so much time has gone by, nothing is said of the time that is left.
const TOLD_AFTER: Duration = Duration::from_secs(1);

/// The work of rows, in units of a layer at a position.
#[derive(Clone, Debug)]
pub struct RowWork {
    n_layers: usize,
    /// From so many positions on, the pattern is more work than the weights.
    crossover: f64,
    /// Of a feature's row of the layers below each, in the mean. `[n_layers + 1]`
    below: Vec<f64>,
}

impl RowWork {
    /// That of a prompt's rows.
    pub fn of(linear: &LinearModel) -> Self {
        let n_layers = linear.features.layer_starts.len().saturating_sub(1);
        let d_model = linear.final_normed.dims().last().copied().unwrap_or(1);
        // W_O and W_V: some 2 · 2 · d_model for each value of z; the pattern: 2 for each query.
        let mut work = Self { n_layers, crossover: 2.0 * d_model as f64, below: vec![0.0] };
        let (mut sum, mut number) = (0.0, 0usize);
        for layer in 0..n_layers {
            for (_, feature) in linear.features.of_layer(layer) {
                sum += work.at(layer, linear.positions.place(feature.pos).unwrap_or(0));
                number += 1;
            }
            work.below.push(sum / number.max(1) as f64);
        }
        work
    }

    /// Of a target of a layer at a place among the open positions.
    fn at(&self, layer: usize, place: usize) -> f64 {
        let n = (place + 1) as f64;
        (layer + 1) as f64 * n * (1.0 + n / self.crossover)
    }

    /// Of a batch.
    pub fn of_batch(&self, plan: &BatchPlan) -> f64 {
        let layer = self.layer(plan);
        plan.members.iter().map(|&(_, place)| self.at(layer, place)).sum()
    }

    /// Of so many rows of features in the layers below `layer`, in the mean.
    pub fn below(&self, layer: usize, n_rows: usize) -> f64 {
        self.below[layer.min(self.n_layers)] * n_rows as f64
    }

    fn layer(&self, plan: &BatchPlan) -> usize {
        match plan.site {
            TargetSite::InputHook { layer } | TargetSite::AttentionInput { layer } => layer,
            TargetSite::FinalNorm => self.n_layers,
        }
    }
}

/// What is left to do after some rows.
#[derive(Clone, Debug)]
pub enum WorkLeft {
    /// Rows that are known; with their work in all.
    Known(f64),
    /// Rows of the layers below that of the last one, the layers from the top down, and then work that is known.
    Sweep { then: f64 },
    /// Rows of any layer.
    Anywhere,
}

/// Counts the rows that are done, for the job.
#[derive(Debug)]
pub struct RowCount<'a> {
    job: &'a Job,
    phase: &'static str,
    total: usize,
    work: RowWork,
    left: WorkLeft,
    start: Instant,
    done: Mutex<Done>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Done {
    n_rows: usize,
    /// Of this phase.
    work: f64,
    /// Of earlier phases.
    before: f64,
}

impl<'a> RowCount<'a> {
    /// No row of `total`, which may be an estimate, is done.
    pub fn new(job: &'a Job, phase: &'static str, total: usize, work: RowWork, left: WorkLeft) -> Self {
        Self { job, phase, total, work, left, start: Instant::now(), done: Mutex::default() }
    }

    /// The next phase of the same call.
    pub fn followed_by(&self, phase: &'static str, total: usize, left: WorkLeft) -> Self {
        let before = self.done();
        let done = Mutex::new(Done { before: before.before + before.work, ..Done::default() });
        Self { phase, total, left, done, work: self.work.clone(), ..*self }
    }

    /// The work of rows.
    pub fn work(&self) -> &RowWork {
        &self.work
    }

    /// Whether to go on.
    ///
    /// # Errors
    /// [`crate::Error::Cancelled`]
    pub fn check(&self) -> Result<()> {
        self.job.check()
    }

    /// Counts the rows of a batch.
    pub fn add(&self, plan: &BatchPlan) {
        let done = {
            let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
            done.n_rows += plan.members.len();
            done.work += self.work.of_batch(plan);
            *done
        };
        let left = self.left_after(done, self.work.layer(plan));
        let spent = self.start.elapsed();
        let left = (spent >= TOLD_AFTER).then(|| spent.mul_f64(left / (done.before + done.work).max(1.0)));
        self.job.report_with(self.phase, done.n_rows.min(self.total), self.total, left);
    }

    fn done(&self) -> Done {
        *self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn left_after(&self, done: Done, layer: usize) -> f64 {
        let n_left = self.total.saturating_sub(done.n_rows);
        match self.left {
            WorkLeft::Known(work) => (work - done.work).max(0.0),
            WorkLeft::Sweep { then } => self.work.below(layer, n_left) + then,
            WorkLeft::Anywhere => self.work.below(self.work.n_layers, n_left),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_is_left_is_the_work_of_what_is_left() {
        let work = RowWork { n_layers: 2, crossover: 1e9, below: vec![0.0, 10.0, 20.0] };
        let batch = |layer, places: &[usize]| BatchPlan {
            site: TargetSite::InputHook { layer },
            members: places.iter().map(|&place| (place, place)).collect(),
        };
        assert!((work.of_batch(&batch(1, &[3, 0])) - 10.0).abs() < 1e-6);
        let told = Arc::new(Mutex::new(Vec::new()));
        let tell = told.clone();
        let job = Job::default().with_progress(move |progress| tell.lock().unwrap().push(progress));
        let count = RowCount::new(&job, "influence rows", 6, work, WorkLeft::Sweep { then: 7.0 });
        count.add(&batch(1, &[3, 0]));
        let done = count.done();
        assert_eq!((done.n_rows, told.lock().unwrap()[0].done), (2, 2));
        // Four rows of layer 0, and what follows.
        assert!((count.left_after(done, 1) - 47.0).abs() < 1e-6);
        let next = count.followed_by("rows", 3, WorkLeft::Known(30.0));
        next.add(&batch(0, &[9]));
        assert!((next.done().before - 10.0).abs() < 1e-6);
        assert!((next.left_after(next.done(), 0) - 20.0).abs() < 1e-6);
        let last = told.lock().unwrap()[1];
        assert_eq!((last.phase, last.done, last.total, last.left), ("rows", 1, 3, None));
    }
}
