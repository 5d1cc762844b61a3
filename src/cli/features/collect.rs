//! `circuitscope features collect`.

use std::path::PathBuf;

use clap::Args;

use super::token_count;
use crate::Result;
use crate::cli::counted::Counted;
use crate::cli::note;
use crate::cli::setup::SetupArgs;
use crate::features::{CollectOptions, Settings, Shard, Split, TOKENS_PHASE, TextFormat, collect, inputs};

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
    let shown = Counted::new(args.setup.quiet, &[(TOKENS_PHASE, "tokens")]);
    let collected = collect(tracer.replacement(), &inputs, &args.out, &options, &shown.job());
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
