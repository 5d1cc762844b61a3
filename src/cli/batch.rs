//! `circuitscope batch`: many prompts to graphs, with a model that is opened once.

use std::path::PathBuf;

use clap::Args;

use crate::attribution::AttributionOptions;
use crate::batch::{Batch, BatchOptions, INDEX_FILE, PROMPTS_PHASE, Told, TraceSettings, run as run_batch};
use crate::export::check_writable;
use crate::features::Shard;
use crate::input::read_lines;
use crate::job::CancelToken;
use crate::{Error, Result};

use super::counted::Counted;
use super::graph_args::{NodeLimit, Thresholds};
use super::row_args::RowArgs;
use super::setup::SetupArgs;
use super::{note, signals};

#[derive(Debug, Args)]
pub struct BatchArgs {
    /// A JSON object a line: `prompt` or `tokens`; where wanted `slug`, `targets`, `position`, `max_logits`, `logit_prob`,
    /// `rows`, `theta`, `nodes`, `max_features`, `open_positions`, `batch_size`, `node_threshold`, `edge_threshold`,
    /// `max_nodes`, `heads`; `-` is stdin
    #[arg(value_name = "PROMPTS")]
    prompts: PathBuf,
    #[command(flatten, next_help_heading = "Model")]
    setup: SetupArgs,
    /// At most this many of the likeliest tokens are explained
    #[arg(long, value_name = "N", default_value_t = AttributionOptions::default().max_logits, help_heading = "What to explain")]
    max_logits: usize,
    /// No more tokens once their probabilities add up to this
    #[arg(long, value_name = "SHARE", default_value_t = AttributionOptions::default().logit_prob, help_heading = "What to explain")]
    logit_prob: f64,
    #[command(flatten, next_help_heading = "Features")]
    rows: RowArgs,
    /// With --max-features: a quarter of the features chosen between two looks at the influence
    #[arg(long, value_name = "N", default_value_t = AttributionOptions::default().batch_size, help_heading = "Features")]
    batch_size: usize,
    #[command(flatten, next_help_heading = "Pruning")]
    thresholds: Thresholds,
    #[command(flatten, next_help_heading = "Pruning")]
    limit: NodeLimit,
    /// Where the files go, and index.jsonl
    #[arg(long, value_name = "FOLDER", default_value = "graphs", help_heading = "Output")]
    out_dir: PathBuf,
    /// Only one part of the lines, such as 2/4; parts may be traced at the same time, into one folder
    #[arg(long, value_name = "I/N", help_heading = "Output")]
    shard: Option<Shard>,
    /// Replace files of a line's name also where they hold another prompt, other targets or settings, or pinned nodes
    #[arg(long, help_heading = "Output")]
    force: bool,
    /// Do not write the pruned graphs
    #[arg(long, conflicts_with = "no_raw", help_heading = "Output")]
    no_json: bool,
    /// Do not write the raw graphs
    #[arg(long, help_heading = "Output")]
    no_raw: bool,
    /// Find out through which heads every edge of the pruned graphs goes, and in how many hops; both files tell it
    #[arg(long, help_heading = "Output")]
    heads: bool,
    /// Leave the features' decoder directions out of the raw graphs; `inspect --auto-group` uses them
    #[arg(long, conflicts_with = "no_raw", help_heading = "Output")]
    no_decoders: bool,
    /// A feature_labels.json to name features from [default: the one beside the transcoders]
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    labels: Option<PathBuf>,
}

/// Traces the prompts, and says what came of it; whether none failed.
///
/// # Errors
/// Those of [`run_batch`].
pub(super) fn run(args: &BatchArgs) -> Result<bool> {
    args.setup.start_threads()?;
    let settings = TraceSettings {
        options: AttributionOptions {
            max_logits: args.max_logits,
            logit_prob: args.logit_prob,
            rows: args.rows.choice()?,
            open: args.rows.open(),
            batch_size: args.batch_size,
            keep_decoders: !(args.no_decoders || args.no_raw),
            ..AttributionOptions::default()
        },
        pruning: args.limit.of(args.thresholds.settings()?),
        heads: args.heads,
    };
    settings.options.check()?;
    check_writable(&args.out_dir)?;
    let text = read_lines(&args.prompts)?;
    let tracer = args.setup.open(args.labels.as_deref())?;
    let options = BatchOptions {
        folder: args.out_dir.clone(),
        shard: args.shard,
        replaces_others: args.force,
        raw: !args.no_raw,
        json: !args.no_json,
        settings,
        inputs: args.labels.iter().chain([&args.prompts]).cloned().collect(),
    };
    // From here on a signal ends the prompts that are being traced, and the index is written.
    let cancel = CancelToken::default();
    signals::cancel_first(&cancel);
    let shown = Counted::new(args.setup.quiet, &[(PROMPTS_PHASE, "prompts")]);
    let tell = |told: Told| match told {
        Told::Failed(failure) => shown.say(&format!("line {}: {}", failure.line, failure.error)),
    };
    let batch = run_batch(&tracer, &text, &options, &shown.job().with_cancel(cancel), &tell);
    shown.finish();
    if matches!(batch, Err(Error::Cancelled)) {
        note("interrupted; the graphs so far are whole and in the index: the same command goes on");
    }
    let batch = batch?;
    if !args.setup.quiet {
        report(&batch);
        note(&format!("wrote {}", args.out_dir.join(INDEX_FILE).display()));
    }
    Ok(batch.failures.is_empty())
}

fn report(batch: &Batch) {
    let Batch { n_lines, n_traced, n_there, n_same, failures, n_at_once, secs } = batch;
    let mut parts = vec![format!("{n_traced} traced")];
    for (n, what) in [(*n_there, "there already"), (*n_same, "the same as an earlier line"), (failures.len(), "failed")]
    {
        if n > 0 {
            parts.push(format!("{n} {what}"));
        }
    }
    let lines = if *n_lines == 1 { "line" } else { "lines" };
    note(&format!("{n_lines} {lines}: {}", parts.join(", ")));
    if *n_traced > 0 {
        let per_minute = *n_traced as f64 * 60.0 / secs.max(1e-9);
        note(&format!("{secs:.1} s with {n_at_once} at once, {per_minute:.0} prompts/min"));
    }
}
