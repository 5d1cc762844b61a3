//! Training from end to end.

use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::Tensor;
use rayon::prelude::*;

use super::activations::{Activations, Points, shuffled, token_bytes};
use super::checkpoint::{self, Request, State};
use super::fold::{Folded, SetHeader, calibrate, fold, write_header, write_layer};
use super::init::{begin, mlp_of, place_anew, scale_of};
use super::layer::Layer;
use super::log::{self, LogLine, SetLog};
use super::measure::{HeldOut, measure};
use super::options::{Activation, SetSize, TrainOptions};
use super::plan::check_memory;
use super::schedule;
use super::select::Choice;
use super::step::{LayerBatch, LayerReport, StepSettings, error, step};
use crate::corpus::{Input, Part, Stream};
use crate::error::{Error, ErrorContext, Result};
use crate::export::check_writable;
use crate::intervene::Random;
use crate::job::Job;
use crate::model::{Model, TextPass};
use crate::replacement::n_excluded;
use crate::transcoder::{ActivationFunction, InputHook, Kind, OutputHook, TranscoderSet};
use crate::weights::Tokenizer;

/// The phase of a [`Job`] that counts tokens, where all of the text is to be read.
pub const COUNTING_PHASE: &str = "counting tokens";

/// The phase in which the model runs: tokens of a chunk.
pub const ACTIVATIONS_PHASE: &str = "activations";

/// Tokens that scales and first weights are taken from.
const FIRST_TOKENS: usize = 8192;

/// Held-out tokens that thresholds are set on, and as many that the result is measured on.
const HELD_OUT_TOKENS: usize = 8192;

/// A log line every so many steps.
const LOG_EVERY: u32 = 10;

/// A share of dead features above which they are placed anew, once.
const MANY_DEAD: f64 = 0.05;

/// With a time limit, reading a chunk takes at most this share of it.
const CHUNK_TIME_SHARE: f64 = 0.1;

/// Checkpoints take at most this share of the time.
const KEEPING_SHARE: f64 = 0.05;

/// What is trained on what.
pub struct Subject<'a> {
    /// The base model.
    pub model: &'a Model,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Its name, which goes into the sets.
    pub source: &'a str,
    /// A set to begin from: sizes, hooks and weights are its.
    pub from: Option<&'a TranscoderSet>,
    /// The name of that set.
    pub from_source: &'a str,
}

/// How training is getting on.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainProgress<'a> {
    /// The newest line of the log.
    pub line: &'a LogLine,
    /// Tokens of steps a second, since this run began.
    pub tokens_per_sec: f64,
    /// Seconds left, as far as can be told.
    pub secs_left: f64,
}

/// A set that was trained.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainedSet {
    /// Where it is.
    pub folder: PathBuf,
    /// Its sizes.
    pub size: SetSize,
    /// Fraction of variance unexplained of every layer, on held-out tokens, of the weights as they are written.
    pub fvu: Vec<f64>,
    /// Active features a held-out token of every layer.
    pub l0: Vec<f64>,
    /// Share of dead features, of all layers.
    pub dead: f64,
}

/// What training came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Trained {
    /// In the order in which they were asked for.
    pub sets: Vec<TrainedSet>,
    /// Steps of all runs.
    pub n_steps: u32,
    /// Tokens of the text.
    pub n_tokens: u64,
    /// Seconds of all runs.
    pub secs: f64,
    /// Steps of an interrupted run that this one went on from.
    pub resumed_from: Option<u32>,
    /// How it went, over all runs.
    pub log: Vec<LogLine>,
}

/// What to do with a folder that holds training or a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InTheWay {
    /// It is an error.
    #[default]
    Refuse,
    /// Go on from unfinished training.
    Resume,
    /// Begin anew.
    Restart,
}

/// Trains transcoders for every layer of a model on a text, and writes them to `out`; of several sets each goes into a
/// folder of its own there.
///
/// The same text, options and tokens give the same bytes on any number of threads, interrupted or not; with a limit of
/// minutes the number of steps depends on the machine.
///
/// # Errors
/// [`Error::Train`] for options or a folder that do not fit; [`Error::Text`]; those of the model and of writing;
/// [`Error::Cancelled`], after what was reached has been kept.
pub fn train(
    subject: &Subject,
    inputs: &[Input],
    out: &Path,
    in_the_way: InTheWay,
    options: &TrainOptions,
    job: &Job,
    tell: &mut dyn FnMut(&TrainProgress),
) -> Result<Trained> {
    options.check()?;
    let config = &subject.model.config;
    if options.context > config.n_ctx {
        return Err(Error::PromptTooLong { n_pos: options.context, n_ctx: config.n_ctx });
    }
    check_writable(out)?;
    let unfinished = checkpoint::latest(out)?;
    let refuse = |problem: &str| Err(Error::Train { problem: format!("`{}` {problem}", out.display()) });
    match in_the_way {
        InTheWay::Refuse if unfinished.is_some() => {
            return refuse("holds unfinished training: go on with --resume, or begin anew with --restart");
        }
        InTheWay::Refuse if out.join("config.yaml").exists() => {
            return refuse("holds transcoders: name another folder, or write over them with --restart");
        }
        InTheWay::Resume if unfinished.is_none() => return refuse("holds no unfinished training"),
        InTheWay::Restart => checkpoint::forget(out)?,
        _ => {}
    }
    let unfinished = unfinished.filter(|_| in_the_way == InTheWay::Resume);
    let mut run = Run::new(subject, inputs, out, options, job)?;
    run.begin(unfinished, job)?;
    let result = run.steps(job, tell);
    if matches!(result, Err(Error::Cancelled)) && run.state.step > 0 {
        run.keep()?;
    }
    result?;
    run.finish(job)
}

struct Run<'a> {
    subject: &'a Subject<'a>,
    pass: TextPass<'a>,
    inputs: &'a [Input],
    out: &'a Path,
    options: &'a TrainOptions,
    points: Points,
    sets: Vec<Vec<Layer>>,
    state: State,
    activations: Activations,
    /// Where the text of the next chunk begins, once this one is read.
    next_cursor: Option<crate::corpus::Cursor>,
    held_out: HeldOut,
    capacity: usize,
    generation: u64,
    resumed_from: Option<u32>,
    started: Instant,
    secs_before: f64,
    n_stepped_before: i64,
    last_kept: Instant,
    keeping_secs: f64,
    reports: Vec<Vec<LayerReport>>,
    /// The memory of a step's batch, kept from one step to the next. `[n_layers]`
    batch: Vec<LayerBatch>,
}

impl<'a> Run<'a> {
    fn new(
        subject: &'a Subject,
        inputs: &'a [Input],
        out: &'a Path,
        options: &'a TrainOptions,
        job: &Job,
    ) -> Result<Self> {
        let config = &subject.model.config;
        let (n_layers, d_model) = (config.n_layers, config.d_model);
        let points = points_of(subject);
        let per_token = token_bytes(n_layers, d_model);
        let capacity = usize::try_from(options.memory / per_token).unwrap_or(usize::MAX).min(1 << 24);
        if capacity < options.batch {
            return Err(Error::Train {
                problem: format!(
                    "{} MB hold the activations of {capacity} tokens, and a batch has {}: give at least {} MB",
                    options.memory >> 20,
                    options.batch,
                    (per_token * options.batch as u64).div_ceil(1 << 20)
                ),
            });
        }
        let pass = TextPass::new(subject.model).keeping();
        let pass = if options.exact { pass } else { pass.rounding() };
        let n_tokens = (capacity as u64).min(text_bytes(inputs));
        let n_held_out = (2 * HELD_OUT_TOKENS as u64).min(text_bytes(inputs));
        check_memory(&pass, options, n_tokens, n_held_out)?;
        let n_written = |layer: usize| if options.cross_layer { n_layers - layer } else { 1 };
        let new_layer = |layer: usize, size: &SetSize| Layer {
            rounds: !options.exact,
            ..Layer::new(d_model, size.n_features, n_written(layer), options.skip)
        };
        let sets =
            options.sets.iter().map(|size| (0..n_layers).map(|layer| new_layer(layer, size)).collect()).collect();
        let files = inputs.iter().map(|input| (input.name(), input.size_bytes())).collect();
        let stream =
            |part, limit| Stream::new(inputs, &options.format, part, subject.tokenizer, options.context, limit);
        let state = State {
            request: Request::new(subject.source, subject.from_source, files, options),
            cursor: stream(Part::Learnt, u64::MAX).cursor().clone(),
            n_units: 0,
            chunk_step: 0,
            n_chunks: 0,
            n_used: 0,
            target: None,
            step: 0,
            n_stepped: 0,
            done: 0.0,
            secs: 0.0,
            log: Vec::new(),
        };
        // Read before hours of work: without it nothing could be finished.
        let mut held_out = Activations::new(n_layers, d_model);
        let mut text = stream(Part::HeldOut, 2 * HELD_OUT_TOKENS as u64);
        let excluded = |tokens: &[u32]| n_excluded(&[subject.source], tokens);
        while let Some(unit) = text.next_unit(job)? {
            held_out.add(&pass, points, &unit, &excluded, job)?;
        }
        let held_out = HeldOut::new(held_out, options.batch.min(256)).ok_or_else(|| Error::Text {
            file: inputs.iter().map(Input::name).collect::<Vec<_>>().join(", "),
            problem: format!(
                "of its documents one in twenty is held out to set thresholds on, and they have only {} tokens: give more \
                 documents, or say what a document is with --split lines or --split paragraphs",
                text.cursor().n_tokens()
            ),
        })?;
        let now = Instant::now();
        Ok(Self {
            subject,
            pass,
            inputs,
            out,
            options,
            points,
            sets,
            state,
            activations: Activations::new(n_layers, d_model),
            next_cursor: None,
            held_out,
            capacity,
            generation: 0,
            resumed_from: None,
            started: now,
            secs_before: 0.0,
            n_stepped_before: 0,
            last_kept: now,
            keeping_secs: 0.0,
            reports: vec![Vec::new(); options.sets.len()],
            batch: Vec::new(),
        })
    }

    /// Reads a checkpoint, or begins.
    fn begin(&mut self, unfinished: Option<(u64, PathBuf)>, job: &Job) -> Result<()> {
        if let Some((generation, folder)) = unfinished {
            let state = checkpoint::read(&folder, &self.state.request, &mut self.sets)
                .context(|| format!("cannot go on from `{}`", folder.display()))?;
            self.generation = generation;
            self.secs_before = state.secs;
            self.resumed_from = Some(state.step);
            self.n_stepped_before = state.n_stepped;
            self.state = state;
            return Ok(());
        }
        self.state.target = match (self.options.n_tokens, self.options.minutes) {
            (None, None) => Some(self.count(job)?),
            (n_tokens, _) => n_tokens,
        };
        self.read_chunk(job)?;
        let n_first = self.activations.n_tokens().min(FIRST_TOKENS);
        let tokens: Vec<u32> = (0..n_first as u32).collect();
        let (n_layers, d_model) = (self.subject.model.config.n_layers, self.subject.model.config.d_model);
        let mut by_layer: Vec<Vec<&mut Layer>> = (0..n_layers).map(|_| Vec::new()).collect();
        for layers in &mut self.sets {
            by_layer.iter_mut().zip(layers).for_each(|(of_layer, layer)| of_layer.push(layer));
        }
        let (activations, subject, points, options) = (&self.activations, self.subject, self.points, self.options);
        by_layer.into_par_iter().enumerate().try_for_each(|(layer, of_layer)| -> Result<()> {
            job.check()?;
            let mut raw = LayerBatch::default();
            activations.batch(layer, &tokens, (1.0, 1.0), &mut raw);
            let (scale_in, scale_out) = (scale_of(&raw.x, d_model), scale_of(&raw.y, d_model));
            raw.x.iter_mut().for_each(|value| *value *= scale_in);
            raw.y.iter_mut().for_each(|value| *value *= scale_out);
            let model_layer = subject.model.layer(layer)?;
            let gain = (points.input != InputHook::MlpIn).then(|| model_layer.mlp_norm.clone());
            let mlp = |x: &Tensor| -> Result<Tensor> {
                let x = x.to_device(subject.model.device())?;
                let x = match (&gain, points.input) {
                    (Some(norm), InputHook::Normalized) => norm.affine(&x)?,
                    (Some(norm), _) => norm.apply(&x, &norm.scale(&x)?)?,
                    (None, _) => x,
                };
                mlp_of(&model_layer, points.output, &x)
            };
            for (set, begun) in of_layer.into_iter().enumerate() {
                (begun.scale_in, begun.scale_out) = (scale_in, scale_out);
                let l0 = schedule::wanted_l0(options.sets[set].l0, 0.0);
                let mut random = Random(mixed(options.seed, [1, set as u64, layer as u64]));
                if subject.from.is_none() {
                    begin(begun, &raw, &mlp, l0, &mut random).context(|| format!("cannot begin layer {layer}"))?;
                }
            }
            Ok(())
        })?;
        if let Some(from) = self.subject.from {
            for layers in &mut self.sets {
                take_over(from, layers)?;
            }
        }
        self.started = Instant::now();
        Ok(())
    }

    /// Tokens of the text that is learnt from.
    fn count(&self, job: &Job) -> Result<u64> {
        let mut text = self.stream(None, job)?;
        let mut n_tokens = 0u64;
        while let Some(unit) = text.next_unit(job)? {
            n_tokens += unit.iter().map(|sequence| sequence.tokens.len() as u64).sum::<u64>();
            job.report(COUNTING_PHASE, n_tokens as usize, 0);
        }
        Ok(n_tokens)
    }

    fn stream(&self, cursor: Option<crate::corpus::Cursor>, job: &Job) -> Result<Stream<'a>> {
        let (inputs, format, tokenizer) = (self.inputs, &self.options.format, self.subject.tokenizer);
        match cursor {
            Some(cursor) => Stream::at(inputs, format, Part::Learnt, tokenizer, cursor, job),
            None => Ok(Stream::new(inputs, format, Part::Learnt, tokenizer, self.options.context, u64::MAX)),
        }
    }

    /// Computes the activations of the next chunk of text; at the text's end it begins again.
    fn read_chunk(&mut self, job: &Job) -> Result<()> {
        self.activations.clear();
        let wanted_units = (self.state.n_units > 0).then_some(self.state.n_units);
        let left = self.state.target.map_or(u64::MAX, |target| target.saturating_sub(self.state.n_used));
        let capacity = self.capacity.min(usize::try_from(left).unwrap_or(usize::MAX)).max(1);
        let start = Instant::now();
        let limit = self.options.minutes.map(|minutes| minutes * 60.0 * CHUNK_TIME_SHARE);
        let mut text = self.stream(Some(self.state.cursor.clone()), job)?;
        let excluded = |tokens: &[u32]| n_excluded(&[self.subject.source], tokens);
        let mut n_units = 0;
        loop {
            let n = self.activations.n_tokens();
            let is_enough = match wanted_units {
                Some(wanted) => n_units >= wanted,
                None => {
                    let is_late = limit.is_some_and(|limit| start.elapsed().as_secs_f64() > limit);
                    n >= capacity || (is_late && n >= self.options.batch)
                }
            };
            if is_enough {
                break;
            }
            let Some(unit) = text.next_unit(job)? else {
                if n_units > 0 {
                    break;
                }
                if text.cursor().n_documents() == 0 {
                    let names = self.inputs.iter().map(Input::name).collect::<Vec<_>>().join(", ");
                    let problem = "it holds no text but what is held out".to_owned();
                    return Err(Error::Text { file: names, problem });
                }
                // The text begins again.
                text = self.stream(None, job)?;
                continue;
            };
            self.activations.add(&self.pass, self.points, &unit, &excluded, job)?;
            n_units += 1;
            job.report(ACTIVATIONS_PHASE, self.activations.n_tokens().min(capacity), capacity);
        }
        self.state.n_units = n_units;
        self.next_cursor = Some(text.cursor().clone());
        Ok(())
    }

    /// All steps that are left.
    fn steps(&mut self, job: &Job, tell: &mut dyn FnMut(&TrainProgress)) -> Result<()> {
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
    fn step(&mut self, tokens: &[u32], used: u64, tell: &mut dyn FnMut(&TrainProgress)) -> Result<()> {
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

    fn settings(&self, size: &SetSize, n_tokens: usize) -> StepSettings {
        let done = self.state.done;
        let l0 = schedule::wanted_l0(size.l0, done).min(size.n_features as f64);
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
    fn resample(&mut self, set: usize, batch: &[LayerBatch], settings: &StepSettings) {
        let layers = &mut self.sets[set];
        let chosen: Vec<_> = layers
            .par_iter()
            .zip(batch)
            .map(|(layer, batch)| super::select::choose(layer, &batch.x, settings.choice).0)
            .collect();
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
    fn note(&mut self, used: u64) {
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

    fn keep_if_due(&mut self) -> Result<()> {
        let due = self.options.keep_every_secs.max(self.keeping_secs / KEEPING_SHARE);
        // Between two log lines nothing is pending that a checkpoint lacks.
        if self.last_kept.elapsed().as_secs_f64() < due || !self.reports.iter().all(Vec::is_empty) {
            return Ok(());
        }
        self.keep()
    }

    fn keep(&mut self) -> Result<()> {
        let start = Instant::now();
        self.generation += 1;
        checkpoint::write(self.out, self.generation, &self.sets, &self.state)?;
        log::write(self.out, &self.state.log)?;
        self.keeping_secs = start.elapsed().as_secs_f64();
        self.last_kept = Instant::now();
        Ok(())
    }

    /// Sets thresholds, measures, and writes the sets.
    fn finish(mut self, job: &Job) -> Result<Trained> {
        let n_layers = self.subject.model.config.n_layers;
        // What only steps need is given back before the weights are copied in the model's units.
        (self.activations, self.batch) = (Activations::new(n_layers, self.subject.model.config.d_model), Vec::new());
        self.sets.iter_mut().flatten().for_each(Layer::forget_moments);
        let several = self.sets.len() > 1;
        let mut trained = Vec::new();
        for (set, layers) in self.sets.iter().enumerate() {
            let size = self.options.sets[set];
            let folder = match several {
                true => self.out.join(format!("{}x{}", size.n_features, size.l0)),
                false => self.out.to_owned(),
            };
            let header = SetHeader {
                model: self.subject.source,
                name: if self.options.name.is_empty() { self.subject.source } else { &self.options.name },
                points: self.points,
                activation: self.options.activation,
                k: size.l0 as usize,
                cross_layer: self.options.cross_layer,
                precision: self.options.precision,
                folder: self.options.folder,
                context: self.options.context,
            };
            let folded: Vec<Folded> = (0..n_layers)
                .into_par_iter()
                .map(|layer| {
                    // What a set began with keeps its units: its features' activations mean what they meant.
                    let mut folded = fold(layers, layer, self.subject.from.is_none(), self.options.precision);
                    if self.options.activation == Activation::JumpRelu {
                        calibrate(&mut folded, &self.held_out.first_half(layer), size.l0);
                    }
                    folded
                })
                .collect();
            job.check()?;
            for (layer, folded) in folded.iter().enumerate() {
                write_layer(&folder, layer, folded, &header)?;
            }
            write_header(&folder, n_layers, &header)?;
            let (fvu, l0) = measure(folded, &self.held_out, self.options.activation, size.l0);
            let window = i64::try_from(self.options.dead_window).unwrap_or(i64::MAX);
            let n_dead: usize = layers.iter().map(|layer| layer.dead(self.state.n_stepped, window).len()).sum();
            trained.push(TrainedSet {
                folder,
                size,
                fvu,
                l0,
                dead: n_dead as f64 / (n_layers * size.n_features) as f64,
            });
        }
        log::write(self.out, &self.state.log)?;
        checkpoint::forget(self.out)?;
        self.reports.clear();
        Ok(Trained {
            sets: trained,
            n_steps: self.state.step,
            n_tokens: self.state.log.last().map_or(0, |line| line.tokens),
            secs: self.state.secs,
            resumed_from: self.resumed_from,
            log: self.state.log,
        })
    }
}

/// Where the transcoders of a model read and write: where the set does that training begins from, else around the MLP,
/// behind the norm after it where there is one.
fn points_of(subject: &Subject) -> Points {
    match subject.from {
        Some(from) => Points { input: from.input_hook, output: from.output_hook },
        None => {
            let output = if subject.model.config.post_norms { OutputHook::HookMlpOut } else { OutputHook::MlpOut };
            Points { input: InputHook::MlpIn, output }
        }
    }
}

/// A seed for one purpose.
fn mixed(seed: u64, purpose: [u64; 3]) -> u64 {
    purpose.iter().fold(seed, |seed, part| Random(seed ^ part.wrapping_mul(0x9E37_79B9_7F4A_7C15)).next())
}

/// Tokens that text of such files can have at most, in effect: a byte each, and compressed files a little more than they
/// are long.
fn text_bytes(inputs: &[Input]) -> u64 {
    let sizes: u64 = inputs.iter().map(Input::size_bytes).sum();
    if inputs.contains(&Input::Stdin) { u64::MAX } else { sizes.saturating_mul(8).max(1 << 20) }
}

/// Begins with the weights of a set, in scaled units.
fn take_over(from: &TranscoderSet, layers: &mut [Layer]) -> Result<()> {
    let scales: Vec<f32> = layers.iter().map(|layer| layer.scale_out).collect();
    for (index, (transcoder, layer)) in from.layers.iter().zip(layers).enumerate() {
        let (n, d) = (layer.n_features, layer.d_model);
        let values = |tensor: &Tensor| -> Result<Vec<f32>> {
            Ok(tensor.to_device(&candle_core::Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?)
        };
        let rows = (0..n).map(|feature| values(&transcoder.encoder_row(feature, &candle_core::Device::Cpu)?));
        layer.w_enc = rows.collect::<Result<Vec<_>>>()?.concat();
        layer.w_enc.iter_mut().for_each(|value| *value /= layer.scale_in);
        layer.b_enc = (0..n).map(|feature| transcoder.b_enc(feature)).collect();
        let all: Vec<usize> = (0..n).collect();
        layer.w_dec = values(&transcoder.decoder_vecs(&all, &candle_core::Device::Cpu)?)?;
        for rows in layer.w_dec.chunks_mut(layer.n_written * d) {
            for (written, row) in rows.chunks_mut(d).enumerate() {
                row.iter_mut().for_each(|value| *value *= scales[index + written]);
            }
        }
        layer.b_dec = values(transcoder.b_dec())?.into_iter().map(|value| value * layer.scale_out).collect();
        if let Some(w_skip) = transcoder.w_skip() {
            let factor = layer.scale_out / layer.scale_in;
            layer.w_skip = values(w_skip)?.into_iter().map(|value| value * factor).collect();
        }
        layer.measure_decoder();
    }
    Ok(())
}

/// The options that a set to begin from decides: its sizes, kind, activation and skip connection.
///
/// # Errors
/// [`Error::Train`] for layers of different sizes.
pub fn options_of(from: &TranscoderSet, l0: Option<f64>, options: TrainOptions) -> Result<TrainOptions> {
    let n_features = from.layers.first().map_or(0, |layer| layer.n_features());
    if let Some(other) = from.layers.iter().find(|layer| layer.n_features() != n_features) {
        let problem =
            format!("layers of {n_features} and of {} features cannot be trained together", other.n_features());
        return Err(Error::Train { problem });
    }
    let (activation, k) = match from.layers.first().map(|layer| layer.activation()) {
        Some(ActivationFunction::TopK { k }) => (Activation::TopK, Some(*k as f64)),
        Some(ActivationFunction::Relu) => (Activation::Relu, None),
        _ => (Activation::JumpRelu, None),
    };
    let l0 = l0.or(k).unwrap_or(options.sets.first().map_or(32.0, |set| set.l0));
    Ok(TrainOptions {
        sets: vec![SetSize { n_features, l0 }],
        activation,
        skip: from.layers.iter().any(|layer| layer.w_skip().is_some()),
        cross_layer: from.kind == Kind::CrossLayer,
        ..options
    })
}
