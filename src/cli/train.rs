//! `circuitscope train`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::features::token_count;
use super::setup::SetupArgs;
use super::{note, signals};
use crate::corpus::{Input, Split, TextFormat, inputs};
use crate::error::{Error, Result};
use crate::export::replace_file;
use crate::job::{CancelToken, Job, Progress};
use crate::picture::training_svg;
use crate::train::{
    ACTIVATIONS_PHASE, Activation, COUNTING_PHASE, FolderFormat, InTheWay, Precision, SetSize, Subject, TrainOptions,
    TrainProgress, Trained, options_of, train,
};
use crate::transcoder::{self, TranscoderSet};
use crate::weights::{ATLAS, Folder, atlas_sentences, atlas_transcoders};

/// Time between two lines of progress where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(30);

/// The picture of the curves.
const CURVES_FILE: &str = "training.svg";

/// Make transcoders for a model from plain text.
#[derive(Debug, Args)]
pub struct TrainArgs {
    #[command(flatten)]
    setup: SetupArgs,
    /// Text: plain, JSON lines, compressed or not (.gz, .xz, .zst); folders; `-` for the standard input [default for
    /// `atlas`: its own sentences]
    #[arg(long, value_name = "FILE", num_args = 1..)]
    text: Vec<PathBuf>,
    /// Folder to write
    #[arg(long, short, value_name = "FOLDER")]
    out: PathBuf,
    /// Features of each layer; several, separated by commas, make several sets from the same passes of the model
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "2048")]
    features: Vec<usize>,
    /// Active features a token and layer; several make a set each
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "32")]
    l0: Vec<f64>,
    /// Tokens of the text to use, such as 500k or 5M [default: all, once]
    #[arg(long, value_name = "N", value_parser = token_count)]
    tokens: Option<u64>,
    /// Minutes to train for at most; a text that is too short for them is read again
    #[arg(long, value_name = "N")]
    minutes: Option<f64>,
    /// How features become active: jumprelu, topk or relu
    #[arg(long, value_name = "FUNCTION", default_value = "jumprelu")]
    activation: Activation,
    /// A linear path past the features: W_skip
    #[arg(long)]
    skip: bool,
    /// Features write to every layer from their own upwards: a cross-layer transcoder
    #[arg(long)]
    clt: bool,
    /// Begin with the weights of a set; its sizes and kind are kept, and so is what its features mean
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["clt", "skip", "features", "activation"])]
    from: Option<String>,
    /// Go on from training that was interrupted
    #[arg(long, conflicts_with = "restart")]
    resume: bool,
    /// Begin anew, where a set or unfinished training is in the folder
    #[arg(long)]
    restart: bool,
    /// The field of JSON lines that holds the text
    #[arg(long, value_name = "NAME", default_value = "text", requires = "text")]
    field: String,
    /// What a document is in plain text: file, paragraphs or lines [default: file]
    #[arg(long, value_name = "WHAT")]
    split: Option<Split>,
    /// Tokens of a sequence; sequences do not reach over the end of a document
    #[arg(long, value_name = "N", default_value_t = TrainOptions::default().context)]
    context: usize,
    /// Tokens of a step
    #[arg(long, value_name = "N", default_value_t = TrainOptions::default().batch)]
    batch: usize,
    /// How often each token's activations are used
    #[arg(long, value_name = "N", default_value_t = TrainOptions::default().replay)]
    replay: usize,
    /// Step size [default: 7e-4 for 2,048 features, less for more]
    #[arg(long, value_name = "X")]
    lr: Option<f64>,
    /// Memory for activations, such as 500MB or 8GB
    #[arg(long, value_name = "SIZE", value_parser = memory_size, default_value = "4GB")]
    memory: u64,
    /// Products in f32 also where the processor has faster ones in 16 bits
    #[arg(long)]
    exact: bool,
    /// Seed of what is random
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// How to write the sets: circuit-tracer (read by this program too) or sae-lens
    #[arg(long, value_name = "FORMAT", default_value = "circuit-tracer")]
    format: FolderFormat,
    /// Numbers of the weights: bf16 or f32
    #[arg(long, value_name = "TYPE", default_value = "bf16")]
    precision: Precision,
    /// Name of the set in viewers [default: the model's]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Seconds after which unfinished training is kept
    #[arg(long, value_name = "SECS", default_value_t = TrainOptions::default().keep_every_secs)]
    keep_every: f64,
}

/// Sizes such as `500MB` or `4GB`.
fn memory_size(text: &str) -> Result<u64, String> {
    let expected = || format!("{text:?} is no size such as 500MB or 4GB");
    let upper = text.to_ascii_uppercase();
    let upper = upper.strip_suffix('B').unwrap_or(&upper);
    let (digits, unit) = match upper.char_indices().last() {
        Some((at, 'K')) => (&upper[..at], 1u64 << 10),
        Some((at, 'M')) => (&upper[..at], 1 << 20),
        Some((at, 'G')) => (&upper[..at], 1 << 30),
        _ => (upper, 1),
    };
    let value = digits.trim().parse::<f64>().map_err(|_| expected())? * unit as f64;
    if (1.0..=1e15).contains(&value) { Ok(value as u64) } else { Err(expected()) }
}

/// Trains, and says what came of it.
///
/// # Errors
/// Those of [`train`].
pub(super) fn run(args: &TrainArgs) -> Result<()> {
    args.setup.start_threads()?;
    let options = TrainOptions {
        sets: sets(&args.features, &args.l0),
        activation: args.activation,
        skip: args.skip,
        cross_layer: args.clt,
        n_tokens: args.tokens,
        minutes: args.minutes,
        replay: args.replay,
        batch: args.batch,
        context: args.context,
        lr: args.lr,
        memory: args.memory,
        exact: args.exact,
        seed: args.seed,
        dead_window: TrainOptions::default().dead_window,
        keep_every_secs: args.keep_every,
        format: TextFormat { field: args.field.clone(), split: args.split.unwrap_or_default() },
        folder: args.format,
        precision: args.precision,
        name: args.name.clone().unwrap_or_default(),
    };
    options.check()?;
    if args.from.is_some() && args.l0.len() > 1 {
        return Err(Error::Contradiction {
            first: "--from",
            second: "several numbers of --l0: it goes on with one set",
        });
    }
    if let Some(transcoders) = args.setup.transcoders() {
        let problem = format!("--transcoders {transcoders} are there already; --from begins with their weights");
        return Err(Error::Train { problem });
    }
    let base = args.setup.open_model()?;
    let (inputs, format) = text(args, &base.source, &options)?;
    let from = args.from.as_ref().map(|name| open_set(name, &base)).transpose()?;
    let mut options = TrainOptions { format, ..options };
    if let Some(from) = &from {
        let name = args.name.clone().unwrap_or_else(|| from.scan.clone());
        options = options_of(from, args.l0.first().copied(), TrainOptions { name, ..options })?;
        options.check()?;
    }
    let subject = Subject {
        model: &base.model,
        tokenizer: &base.tokenizer,
        source: &base.source,
        from: from.as_ref(),
        from_source: args.from.as_deref().unwrap_or_default(),
    };
    let in_the_way = match (args.resume, args.restart) {
        (true, _) => InTheWay::Resume,
        (_, true) => InTheWay::Restart,
        _ => InTheWay::Refuse,
    };
    let cancel = CancelToken::default();
    signals::cancel_first(&cancel);
    let shown = std::sync::Arc::new(Shown::new(args.setup.quiet));
    let show = shown.clone();
    let job = Job::default().with_cancel(cancel).with_progress(move |progress| show.phase(progress));
    let mut tell = |progress: &TrainProgress| shown.step(progress);
    let trained = train(&subject, &inputs, &args.out, in_the_way, &options, &job, &mut tell);
    shown.finish();
    if matches!(trained, Err(Error::Cancelled)) {
        note("interrupted; what was reached is kept: the same command with --resume goes on");
    }
    let trained = trained?;
    let svg = training_svg(&format!("Transcoders of {}", base.source), &trained.log);
    replace_file(&args.out.join(CURVES_FILE), |writer| std::io::Write::write_all(writer, svg.as_bytes()))?;
    if !args.setup.quiet {
        report(&trained, options.activation);
    }
    Ok(())
}

/// Every number of features with every number of active ones.
fn sets(features: &[usize], l0: &[f64]) -> Vec<SetSize> {
    features.iter().flat_map(|&n_features| l0.iter().map(move |&l0| SetSize { n_features, l0 })).collect()
}

/// The text, and how it is read. The standard input is kept in the folder: training reads a text more than once.
fn text(args: &TrainArgs, model: &str, options: &TrainOptions) -> Result<(Vec<Input>, TextFormat)> {
    if args.text.is_empty() {
        if model != ATLAS {
            let problem = "no text is named: --text FILE, plain or JSON lines, compressed or not".to_owned();
            return Err(Error::Train { problem });
        }
        let format = TextFormat { split: args.split.unwrap_or(Split::Lines), ..options.format.clone() };
        return Ok((vec![Input::Embedded(ATLAS, atlas_sentences())], format));
    }
    let mut found = inputs(&args.text)?;
    for input in found.iter_mut().filter(|input| **input == Input::Stdin) {
        let path = args.out.join("training").join("text");
        if !(args.resume && path.is_file()) {
            replace_file(&path, |writer| std::io::copy(&mut std::io::stdin(), writer).map(|_| ()))?;
        }
        *input = Input::File(path);
    }
    Ok((found, options.format.clone()))
}

fn open_set(name: &str, base: &crate::tracer::BaseModel) -> Result<TranscoderSet> {
    let folder = if name == ATLAS { atlas_transcoders() } else { Folder::open(name)? };
    let config = &base.model.config;
    transcoder::open(&folder, config.n_layers, config.d_model, base.model.device())
}

fn report(trained: &Trained, activation: Activation) {
    if let Some(step) = trained.resumed_from {
        note(&format!("went on after step {step}"));
    }
    let minutes = trained.secs / 60.0;
    note(&format!("{} steps, {} tokens of the text, {minutes:.1} minutes", trained.n_steps, trained.n_tokens));
    for set in &trained.sets {
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
        note(&format!(
            "{} features a layer: {:.1} % of the variance unexplained at {:.1} active features (held-out text, mean of {} \
             layers); {:.1} % dead",
            set.size.n_features,
            100.0 * mean(&set.fvu),
            mean(&set.l0),
            set.fvu.len(),
            100.0 * set.dead
        ));
        for (layer, (fvu, l0)) in set.fvu.iter().zip(&set.l0).enumerate() {
            note(&format!("  layer {layer:>3}  unexplained {:>5.1} %  active {l0:>6.1}", 100.0 * fvu));
        }
        note(&format!("wrote {}", set.folder.display()));
    }
    if activation == Activation::Relu {
        note("relu sets no thresholds: the number of active features is what the loss led to");
    }
}

/// A line that is written over in a terminal, a line now and then elsewhere.
struct Shown {
    quiet: bool,
    bar: Option<ProgressBar>,
    last_line: Mutex<Option<Instant>>,
}

impl Shown {
    fn new(quiet: bool) -> Self {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::no_length();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
                bar.set_style(style);
            }
            bar
        });
        Self { quiet, bar, last_line: Mutex::new(None) }
    }

    fn say(&self, text: String) {
        if let Some(bar) = &self.bar {
            bar.set_message(text);
            bar.tick();
            return;
        }
        let mut last = self.last_line.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !self.quiet && last.is_none_or(|last| last.elapsed() >= LINE_EVERY) {
            *last = Some(Instant::now());
            note(&text);
        }
    }

    fn phase(&self, progress: Progress) {
        match progress.phase {
            COUNTING_PHASE => self.say(format!("reading the text: {} tokens", progress.done)),
            ACTIVATIONS_PHASE => self.say(format!("running the model: {} of {} tokens", progress.done, progress.total)),
            _ => {}
        }
    }

    fn step(&self, progress: &TrainProgress) {
        let line = progress.line;
        let sets =
            line.sets.iter().map(|set| format!("FVU {:.3} L0 {:.1} dead {:.1} %", set.fvu, set.l0, 100.0 * set.dead));
        self.say(format!(
            "{:>3.0} %  {:.0} tokens/s  {}  {} left",
            100.0 * line.done,
            progress.tokens_per_sec,
            sets.collect::<Vec<_>>().join("; "),
            duration(progress.secs_left)
        ));
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn duration(secs: f64) -> String {
    match secs {
        secs if secs >= 5400.0 => format!("{:.1} h", secs / 3600.0),
        secs if secs >= 90.0 => format!("{:.0} min", secs / 60.0),
        secs => format!("{secs:.0} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::memory_size;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let sizes = ["4GB", "500MB", "1.5g", "1000"].map(|text| memory_size(text).unwrap());
        assert_eq!(sizes, [4 << 30, 500 << 20, 3 << 29, 1000]);
        for text in ["", "GB", "-1MB", "4XB", "nan"] {
            assert!(memory_size(text).is_err(), "{text}");
        }
    }
}
