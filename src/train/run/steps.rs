//! Steps, what is told of them, and checkpoints between them.

use std::time::Instant;

use rayon::prelude::*;

use super::super::activations::shuffled;
use super::super::checkpoint;
use super::super::init::place_anew;
use super::super::log::{self, LogLine, SetLog};
use super::super::options::{Activation, SetSize};
use super::super::schedule;
use super::super::select::{Choice, choose};
use super::super::step::{LayerBatch, StepSettings, error, step};
use super::{Run, TrainProgress, mixed};
use crate::error::{Error, Result};
use crate::intervene::Random;
use crate::job::Job;

/// A log line every so many steps.
const LOG_EVERY: u32 = 10;

/// A share of dead features above which they are placed anew, once.
const MANY_DEAD: f64 = 0.05;

/// Checkpoints take at most this share of the time.
const KEEPING_SHARE: f64 = 0.05;

impl Run<'_> {
    /// All steps that are left.
    pub(super) fn steps(&mut self, job: &Job, tell: &mut dyn FnMut(&TrainProgress)) -> Result<()> {
        while self.state.done < 1.0 {
            if self.next_cursor.is_none() {
                self.read_chunk(job)?;
            }
            let n = self.activations.n_tokens();
            let n_batch = self.options.batch.min(n).max(1);
            let in_epoch = (n / n_batch).max(1);
            let n_steps = in_epoch * self.options.replay;
            // The order of the epoch that is being trained on.
            let mut order = (usize::MAX, Vec::new());
            while self.state.chunk_step < n_steps && self.state.done < 1.0 {
                job.check()?;
                let (epoch, at) = (self.state.chunk_step / in_epoch, self.state.chunk_step % in_epoch);
                if order.0 != epoch {
                    let seed = mixed(self.options.seed, [2, self.state.n_chunks, epoch as u64]);
                    order = (epoch, shuffled(n, &mut Random(seed)));
                }
                self.state.chunk_step += 1;
                let in_chunk = n as u64 * self.state.chunk_step as u64 / n_steps as u64;
                self.step(&order.1[at * n_batch..(at + 1) * n_batch], self.state.n_used + in_chunk, tell)?;
                self.keep_if_due()?;
            }
            if self.state.chunk_step >= n_steps {
                self.state.n_used += n as u64;
                self.state.n_chunks += 1;
                self.state.chunk_step = 0;
                self.state.n_units = 0;
                if let Some(cursor) = self.next_cursor.take() {
                    self.state.cursor = cursor;
                }
            }
        }
        Ok(())
    }

    /// One step of all sets. `used`: tokens of the text behind it.
    pub(super) fn step(&mut self, tokens: &[u32], used: u64, tell: &mut dyn FnMut(&TrainProgress)) -> Result<()> {
        let before = self.state.done;
        self.state.step += 1;
        self.state.n_stepped += tokens.len() as i64;
        self.state.secs = self.secs_before + self.started.elapsed().as_secs_f64();
        let of_tokens = self.state.target.map_or(0.0, |target| used as f64 / target.max(1) as f64);
        let of_time = self.options.minutes.map_or(0.0, |minutes| self.state.secs / (60.0 * minutes));
        self.state.done = of_tokens.max(of_time).min(1.0);
        let n_layers = self.subject.model.config.n_layers;
        let mut batch = std::mem::take(&mut self.batch);
        batch.resize_with(n_layers, LayerBatch::default);
        for set in 0..self.sets.len() {
            let size = self.options.sets[set];
            let layers = &self.sets[set];
            let activations = &self.activations;
            batch.par_iter_mut().zip(layers).enumerate().for_each(|(layer, (batch, of))| {
                activations.batch(layer, tokens, (of.scale_in, of.scale_out), batch);
            });
            let settings = self.settings(&size, tokens.len());
            if schedule::resamples_between(before, self.state.done) && self.subject.from.is_none() {
                self.resample(set, &batch, &settings);
            }
            let reports = step(&mut self.sets[set], &batch, &settings);
            if let Some(layer) = reports.iter().position(|report| !report.error.is_finite()) {
                return Err(Error::ComputedNotFinite {
                    quantity: format!("the error of layer {layer} at step {}", self.state.step),
                    value: f32::NAN,
                });
            }
            self.reports[set].extend(reports);
        }
        self.batch = batch;
        let is_last = self.state.done >= 1.0;
        if self.state.step.is_multiple_of(LOG_EVERY) || is_last || self.state.step == 1 {
            self.note(used);
            if let Some(line) = self.state.log.last() {
                let elapsed = self.started.elapsed().as_secs_f64().max(1e-9);
                let left = self.state.secs * (1.0 - self.state.done) / self.state.done.max(1e-9);
                tell(&TrainProgress {
                    line,
                    tokens_per_sec: (self.state.n_stepped - self.n_stepped_before) as f64 / elapsed,
                    secs_left: left,
                });
            }
        }
        Ok(())
    }

    pub(super) fn settings(&self, size: &SetSize, n_tokens: usize) -> StepSettings {
        let done = self.state.done;
        // A set that training goes on from has had its many features: with as many again it would unlearn what it knows.
        let l0 = if self.subject.from.is_some() { size.l0 } else { schedule::wanted_l0(size.l0, done) };
        let l0 = l0.min(size.n_features as f64);
        StepSettings {
            step: self.state.step,
            lr: self.options.step_size(size.n_features) * schedule::step_size(self.state.step, done),
            choice: match self.options.activation {
                Activation::JumpRelu => Choice::OfBatch((l0 * n_tokens as f64) as usize),
                Activation::TopK => Choice::OfToken(l0 as usize),
                Activation::Relu => Choice::Positive,
            },
            l0,
            learns_thresholds: schedule::learns_thresholds(done),
            n_tokens: self.state.n_stepped,
            dead_window: i64::try_from(self.options.dead_window).unwrap_or(i64::MAX),
        }
    }

    /// Places the dead features of layers that have many anew.
    pub(super) fn resample(&mut self, set: usize, batch: &[LayerBatch], settings: &StepSettings) {
        let layers = &mut self.sets[set];
        let chosen: Vec<_> =
            layers.par_iter().zip(batch).map(|(layer, batch)| choose(layer, &batch.x, settings.choice).0).collect();
        let active: Vec<_> = chosen.iter().collect();
        let errors: Vec<Vec<f32>> =
            (0..layers.len()).into_par_iter().map(|layer| error(layers, &active, batch, layer)).collect();
        for ((layer, batch), error) in layers.iter_mut().zip(batch).zip(&errors) {
            let dead = layer.dead(settings.n_tokens, settings.dead_window);
            if dead.len() as f64 > MANY_DEAD * layer.n_features as f64 {
                place_anew(layer, batch, error, &dead, settings.n_tokens);
            }
        }
    }

    /// A line of the log, of the steps since the last.
    pub(super) fn note(&mut self, used: u64) {
        let n_layers = self.subject.model.config.n_layers;
        let sets = self.reports.iter().zip(&self.options.sets).map(|(reports, size)| {
            let n_steps = (reports.len() / n_layers).max(1);
            let of_layer = |layer: usize| {
                let steps = || reports.iter().skip(layer).step_by(n_layers);
                let variance: f64 = steps().map(|report| report.variance).sum();
                steps().map(|report| report.error).sum::<f64>() / variance.max(f64::MIN_POSITIVE)
            };
            let n_last = &reports[reports.len() - n_layers..];
            let n_tokens = (n_steps * self.options.batch.min(self.activations.n_tokens())) as f64;
            SetLog {
                n_features: size.n_features,
                fvu: (0..n_layers).map(of_layer).sum::<f64>() / n_layers as f64,
                l0: reports.iter().map(|report| report.n_active as f64).sum::<f64>() / (n_tokens * n_layers as f64),
                dead: n_last.iter().map(|report| report.n_dead as f64).sum::<f64>()
                    / (n_layers * size.n_features) as f64,
                lr: self.options.step_size(size.n_features) * schedule::step_size(self.state.step, self.state.done),
            }
        });
        let sets = sets.collect();
        let (step, tokens, done, secs) = (self.state.step, used, self.state.done, self.state.secs);
        self.state.log.push(LogLine { step, tokens, done, secs, sets });
        self.reports.iter_mut().for_each(Vec::clear);
    }

    pub(super) fn keep_if_due(&mut self) -> Result<()> {
        let due = self.options.keep_every_secs.max(self.keeping_secs / KEEPING_SHARE);
        // Between two log lines nothing is pending that a checkpoint lacks.
        if self.last_kept.elapsed().as_secs_f64() < due || !self.reports.iter().all(Vec::is_empty) {
            return Ok(());
        }
        self.keep()
    }

    pub(super) fn keep(&mut self) -> Result<()> {
        let start = Instant::now();
        self.generation += 1;
        checkpoint::write(self.out, self.generation, &self.sets, &self.state)?;
        log::write(self.out, &self.state.log)?;
        self.keeping_secs = start.elapsed().as_secs_f64();
        self.last_kept = Instant::now();
        Ok(())
    }
}
