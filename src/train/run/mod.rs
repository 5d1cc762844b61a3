//! Training from end to end: begin, steps over one chunk of text after another, the end.

mod begin;
mod chunks;
mod finish;
mod from_set;
mod steps;

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::activations::{Activations, Points, token_bytes};
use super::checkpoint::{self, Request, State};
use super::layer::Layer;
use super::log::LogLine;
use super::measure::HeldOut;
use super::options::{SetSize, TrainOptions};
use super::plan::check_memory;
use super::step::{LayerBatch, LayerReport};
use crate::corpus::{Input, Part, Stream};
use crate::error::{Error, Result};
use crate::export::check_writable;
use crate::intervene::Random;
use crate::job::Job;
use crate::model::{Model, TextPass};
use crate::replacement::n_excluded;
use crate::transcoder::{InputHook, OutputHook, TranscoderSet};
use crate::weights::Tokenizer;

pub use from_set::options_of;

/// The phase of a [`Job`] that counts tokens, where all of the text is to be read.
pub const COUNTING_PHASE: &str = "counting tokens";

/// The phase in which the model runs: tokens of a chunk.
pub const ACTIVATIONS_PHASE: &str = "activations";

/// Held-out tokens that thresholds are set on, and as many that the result is measured on.
const HELD_OUT_TOKENS: usize = 8192;

/// With a time limit, reading a chunk takes at most this share of it.
const CHUNK_TIME_SHARE: f64 = 0.1;

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
