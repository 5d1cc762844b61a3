//! `circuitscope features collect`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::token_count;
use crate::Result;
use crate::cli::note;
use crate::cli::setup::SetupArgs;
use crate::features::{CollectOptions, Settings, Shard, Split, TOKENS_PHASE, TextFormat, collect, inputs};
use crate::job::{Job, Progress};

/// Time between two lines of progress where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
pub(super) struct CollectArgs {
    #[command(flatten)]
    setup: SetupArgs,
    /// Text: plain, JSON lines, compressed or not (.gz, .xz, .zst); folders; `-` for the standard input
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    text: Vec<PathBuf>,
    /// Folder to write
    #[arg(long, short, value_name = "FOLDER")]
    out: PathBuf,
    /// The field of JSON lines that holds the text
    #[arg(long, value_name = "NAME", default_value = "text")]
    field: String,
    /// What a document is in plain text: file, paragraphs or lines
    #[arg(long, value_name = "WHAT", default_value = "file")]
    split: Split,
    /// Tokens of a sequence; sequences do not reach over the end of a document
    #[arg(long, value_name = "N", default_value_t = Settings::default().context)]
    context: usize,
    /// Stop after so many tokens, such as 300k or 1.5M [default: all]
    #[arg(long, value_name = "N", value_parser = token_count)]
    tokens: Option<u64>,
    /// Strongest examples that are kept of each feature
    #[arg(long, value_name = "N", default_value_t = Settings::default().n_top)]
    examples: usize,
    /// Examples that are sampled from each of 5 intervals of the activation
    #[arg(long, value_name = "N", default_value_t = Settings::default().n_per_interval)]
    per_interval: usize,
    /// Activations of a feature that its tokens are counted on, chosen by hash where there are more
    #[arg(long, value_name = "N", default_value_t = Settings::default().n_sampled)]
    sampled: usize,
    /// Seed of what is sampled
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Only one part of the text, such as 2/4, to be merged with the others
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,
    /// Keep what `features merge` needs; parts have it anyway
    #[arg(long)]
    mergeable: bool,
    /// Begin anew, where features or unfinished work are in the folder
    #[arg(long)]
    restart: bool,
    /// Seconds after which unfinished work is kept; the same command goes on from there
    #[arg(long, value_name = "SECS", default_value_t = CollectOptions::default().keep_every_secs)]
    keep_every: f64,
}

/// Collects, and says what came of it.
///
/// # Errors
/// Those of [`collect`].
pub(super) fn run(args: &CollectArgs) -> Result<()> {
    args.setup.start_threads()?;
    let options = CollectOptions {
        settings: Settings {
            context: args.context,
            n_top: args.examples,
            n_per_interval: args.per_interval,
            n_sampled: args.sampled,
            seed: args.seed,
        },
        format: TextFormat { field: args.field.clone(), split: args.split },
        max_tokens: args.tokens,
        shard: args.shard,
        mergeable: args.mergeable,
        restart: args.restart,
        keep_every_secs: args.keep_every,
    };
    options.settings.check()?;
    let inputs = inputs(&args.text)?;
    let tracer = args.setup.open(None)?;
    let shown = Arc::new(Shown::new(args.setup.quiet));
    let show = shown.clone();
    let job = Job::default().with_progress(move |progress| show.show(progress));
    let collected = collect(tracer.replacement(), &inputs, &args.out, &options, &job);
    shown.finish();
    let collected = collected?;
    if !args.setup.quiet {
        if let Some(n_tokens) = collected.resumed_from {
            note(&format!("went on after {n_tokens} tokens"));
        }
        let text = &collected.manifest.text;
        let per_sec = collected.n_tokens as f64 / collected.secs.max(1e-9);
        note(&format!(
            "{} tokens of {} documents in {} sequences, {per_sec:.0} tokens/s",
            text.n_tokens, text.n_documents, text.n_sequences
        ));
        note(&format!("wrote {}", args.out.display()));
    }
    Ok(())
}

/// A bar in a terminal, a line now and then elsewhere.
struct Shown {
    quiet: bool,
    bar: Option<ProgressBar>,
    start: Instant,
    last_line: Mutex<Instant>,
}

impl Shown {
    fn new(quiet: bool) -> Self {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(ProgressBar::no_length);
        Self { quiet, bar, start: Instant::now(), last_line: Mutex::new(Instant::now()) }
    }

    fn show(&self, progress: Progress) {
        if self.quiet || progress.phase != TOKENS_PHASE {
            return;
        }
        if let Some(bar) = &self.bar {
            if bar.position() == 0 {
                let template = match progress.total {
                    0 => "{spinner} {pos} tokens {per_sec}",
                    _ => "tokens {bar:40} {pos}/{len} {per_sec} {eta} left",
                };
                if let Ok(style) = ProgressStyle::with_template(template) {
                    bar.set_style(style);
                }
                if progress.total > 0 {
                    bar.set_length(progress.total as u64);
                }
            }
            bar.set_position(progress.done as u64);
            return;
        }
        let mut last = self.last_line.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() >= LINE_EVERY {
            *last = Instant::now();
            let secs = self.start.elapsed().as_secs_f64();
            note(&format!("{} tokens, {:.0} s", progress.done, secs));
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
