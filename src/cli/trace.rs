//! `circuitscope trace`: a prompt to a raw graph and a pruned one.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::attribution::{AttributionOptions, TargetRequest, attribute};
use crate::circuits::{Summary, SummarySettings, summarize};
use crate::error::Doing;
use crate::export::{WireGraph, check_writable, write_raw, write_wire};
use crate::job::Job;
use crate::prune::prune;
use crate::replacement::Replacement;
use crate::text::{slug, terminal};
use crate::{Error, Result};

use super::graph_args::{Thresholds, relabel_from};
use super::memory::MemorySampler;
use super::row_args::RowArgs;
use super::setup::SetupArgs;
use super::{Format, note, print_data, print_json, summary_text};

/// Work that takes less than this shows no progress bar.
const PROGRESS_AFTER: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub struct TraceArgs {
    /// The prompt; a leading BOS token is added
    #[arg(required_unless_present_any = ["tokens", "prompt_file"])]
    prompt: Option<String>,
    #[command(flatten)]
    setup: SetupArgs,
    /// The prompt as token ids, used as they are
    #[arg(long, value_name = "ID,ID,..", value_delimiter = ',', conflicts_with_all = ["prompt", "prompt_file"])]
    tokens: Option<Vec<u32>>,
    /// Read the prompt from a file
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    prompt_file: Option<PathBuf>,
    /// Explain the logit of this token (exact text, leading space included); repeatable [default: the likeliest tokens]
    #[arg(long, value_name = "TOKEN")]
    target: Vec<String>,
    /// As --target, by vocabulary id
    #[arg(long, value_name = "ID")]
    target_id: Vec<u32>,
    /// Explain the difference of two tokens' logits
    #[arg(long, num_args = 2, value_names = ["TOKEN", "TOKEN"])]
    target_diff: Vec<String>,
    /// Explain the pre-activation of a feature: layer_feature_position
    #[arg(long, value_name = "L_F_P")]
    target_feature: Vec<String>,
    /// Position of logit targets [default: the last]
    #[arg(long, value_name = "P")]
    position: Option<usize>,
    /// At most this many of the likeliest tokens are explained
    #[arg(long, value_name = "N", default_value_t = AttributionOptions::default().max_logits)]
    max_logits: usize,
    /// No more tokens once their probabilities add up to this
    #[arg(long, value_name = "SHARE", default_value_t = AttributionOptions::default().logit_prob)]
    logit_prob: f64,
    #[command(flatten)]
    rows: RowArgs,
    /// With --max-features: a quarter of the features chosen between two looks at the influence
    #[arg(long, value_name = "N", default_value_t = AttributionOptions::default().batch_size)]
    batch_size: usize,
    #[command(flatten)]
    thresholds: Thresholds,
    /// Where the files go
    #[arg(long, value_name = "FOLDER", default_value = "graphs")]
    out_dir: PathBuf,
    /// Name of the files and of the graph [default: from the prompt]
    #[arg(long, value_name = "NAME")]
    slug: Option<String>,
    /// Do not write the pruned graph
    #[arg(long)]
    no_json: bool,
    /// Do not write the raw graph
    #[arg(long)]
    no_raw: bool,
    /// Leave the features' decoder directions out of the raw graph; `inspect --auto-group` uses them
    #[arg(long)]
    no_decoders: bool,
    /// A feature_labels.json to name features from [default: the one beside the transcoders]
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// How many of the strongest paths to show
    #[arg(long, value_name = "K", default_value_t = SummarySettings::default().paths)]
    paths: usize,
    /// How many nodes to show
    #[arg(long, value_name = "N", default_value_t = SummarySettings::default().top)]
    top: usize,
    /// How to print the summary
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// What one phase took.
#[derive(Clone, Debug, Serialize)]
struct Phase {
    name: &'static str,
    elapsed_secs: f64,
    /// Peak anonymous memory, where the system tells.
    peak_bytes: Option<u64>,
    note: String,
}

/// What `--format json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    summary: &'a Summary,
    phases: &'a [Phase],
    files: &'a [PathBuf],
}

/// Times phases and their memory.
struct Phases {
    all: Vec<Phase>,
    start: Instant,
    memory: MemorySampler,
}

impl Phases {
    fn new() -> Self {
        Self { all: Vec::new(), start: Instant::now(), memory: MemorySampler::start() }
    }

    fn end(&mut self, name: &'static str, note: String) {
        let elapsed_secs = self.start.elapsed().as_secs_f64();
        self.all.push(Phase { name, elapsed_secs, peak_bytes: self.memory.take_peak_bytes(), note });
        self.start = Instant::now();
    }

    /// One line a phase.
    fn text(&self) -> String {
        let line = |phase: &Phase| {
            let memory = phase.peak_bytes.map_or(String::new(), |bytes| format!("{:>8.0} MB", bytes as f64 / 1e6));
            format!("{:<12}{:>8.2} s{memory}  {}\n", phase.name, phase.elapsed_secs, phase.note)
        };
        let total: f64 = self.all.iter().map(|p| p.elapsed_secs).sum();
        let peak_bytes = self.all.iter().filter_map(|p| p.peak_bytes).max();
        let total = Phase { name: "in all", elapsed_secs: total, peak_bytes, note: String::new() };
        self.all.iter().chain([&total]).map(line).collect()
    }
}

/// Traces a prompt, prints the summary, writes the files.
///
/// # Errors
/// Options out of range, files that cannot be read or written, prompts and targets that do not fit the model.
pub(super) fn run(args: &TraceArgs) -> Result<()> {
    args.setup.start_threads();
    let mut phases = Phases::new();
    let settings = args.thresholds.settings()?;
    check_writable(&args.out_dir)?;

    let replacement = args.setup.open()?;
    let (tokens, prompt) = prompt(args, &replacement)?;
    let options = options(args, &replacement)?;
    options.check()?;
    phases.end("open", terminal(&format!("{} with {}", replacement.source, replacement.transcoders.scan)));

    let spinner = spinner(args.setup.quiet, "running the model");
    let linear = replacement.linearize(&tokens, &Job::default())?;
    spinner.finish_and_clear();
    let n_active = linear.features.len();
    phases.end("forward", format!("{} positions, {n_active} active features", tokens.len()));

    let bar = Arc::new(RowBar::new(args.setup.quiet));
    let told = bar.clone();
    let job = Job::default().with_progress(move |progress| told.set(progress.done, progress.total));
    let found = attribute(&replacement, &linear, &prompt, &options, &job)?;
    bar.finish();
    drop(linear);
    let rows_per_sec = found.n_rows as f64 / found.elapsed_secs.rows.max(1e-9);
    let short = if found.short_of_device_memory { "; too little GPU memory to choose features there" } else { "" };
    phases.end("attribute", format!("{} rows, {rows_per_sec:.0} rows/s{short}", found.n_rows));

    let graph = found.graph;
    let mut circuit = prune(&graph, &found.influence, &settings)?.circuit(&graph)?;
    relabel_from(&mut circuit, args.labels.as_ref())?;
    phases.end("prune", String::new());

    let slug = args.slug.clone().unwrap_or_else(|| slug(&prompt));
    let mut files = Vec::new();
    if !args.no_raw {
        files.push(args.out_dir.join(format!("{slug}.safetensors")));
        write_raw(&graph, &files[files.len() - 1])?;
    }
    if !args.no_json {
        files.push(args.out_dir.join(format!("{slug}.json")));
        write_wire(&WireGraph::new(&circuit, &slug)?, &files[files.len() - 1])?;
    }
    phases.end("write", String::new());

    let summary = summarize(&circuit, &SummarySettings { top: args.top, paths: args.paths, node: None })?;
    match args.format {
        Format::Text => print_data(&summary_text(&summary))?,
        Format::Json => print_json(&Report { summary: &summary, phases: &phases.all, files: &files })?,
    }
    if !args.setup.quiet {
        eprint!("\n{}", phases.text());
        files.iter().for_each(|file| note(&format!("wrote {}", file.display())));
    }
    Ok(())
}

/// The prompt's tokens, and its text as it goes into the graph.
fn prompt(args: &TraceArgs, replacement: &Replacement) -> Result<(Vec<u32>, String)> {
    if let Some(tokens) = &args.tokens {
        replacement.model.check_tokens(tokens)?;
        return Ok((tokens.clone(), replacement.tokenizer.decode(tokens)));
    }
    let text = match (&args.prompt, &args.prompt_file) {
        (Some(prompt), _) => prompt.clone(),
        (None, Some(path)) => read_prompt(path)?,
        (None, None) => return Err(Error::EmptyPrompt),
    };
    let tokens = replacement.tokenizer.encode_prompt(&text)?;
    replacement.model.check_tokens(&tokens)?;
    Ok((tokens, text))
}

fn read_prompt(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Io {
        doing: "cannot read",
        path: path.to_owned(),
        source,
    })?;
    // Editors end files with a newline that is not meant.
    Ok(text.strip_suffix('\n').unwrap_or(&text).to_owned())
}

fn options(args: &TraceArgs, replacement: &Replacement) -> Result<AttributionOptions> {
    let token = |text: &String| replacement.tokenizer.single_token(text);
    let mut targets = Vec::new();
    for text in &args.target {
        targets.push(TargetRequest::Token(token(text).doing(|| format!("cannot use `--target {text:?}`"))?));
    }
    targets.extend(args.target_id.iter().map(|&id| TargetRequest::Token(id)));
    for pair in args.target_diff.chunks_exact(2) {
        let [first, second] = [&pair[0], &pair[1]]
            .map(|text| token(text).doing(|| format!("cannot use `--target-diff {:?} {:?}`", pair[0], pair[1])));
        targets.push(TargetRequest::TokenDiff(first?, second?));
    }
    for text in &args.target_feature {
        let numbers: Option<Vec<usize>> = text.split('_').map(|part| part.parse().ok()).collect();
        let Some(&[layer, feature, pos]) = numbers.as_deref() else {
            let expected = "layer_feature_position, such as 3_41_7";
            return Err(Error::Spec { text: text.clone(), expected })
                .doing(|| format!("cannot use `--target-feature {text}`"));
        };
        targets.push(TargetRequest::Feature { layer, feature, pos });
    }
    Ok(AttributionOptions {
        targets,
        position: args.position,
        max_logits: args.max_logits,
        logit_prob: args.logit_prob,
        rows: args.rows.choice(),
        batch_size: args.batch_size,
        keep_decoders: !(args.no_decoders || args.no_raw),
    })
}

fn spinner(quiet: bool, message: &'static str) -> ProgressBar {
    if quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let spinner = ProgressBar::new_spinner().with_message(message);
    spinner.enable_steady_tick(Duration::from_millis(200));
    spinner
}

/// A bar that appears once the rows have taken a while.
struct RowBar {
    quiet: bool,
    start: Instant,
    bar: OnceLock<ProgressBar>,
}

impl RowBar {
    fn new(quiet: bool) -> Self {
        Self { quiet: quiet || !std::io::stderr().is_terminal(), start: Instant::now(), bar: OnceLock::new() }
    }

    fn set(&self, done: usize, all: usize) {
        if self.quiet || self.start.elapsed() < PROGRESS_AFTER {
            return;
        }
        let bar = self.bar.get_or_init(|| {
            let bar = ProgressBar::new(all as u64);
            match ProgressStyle::with_template("rows {bar:40} {pos}/{len} {per_sec} {eta} left") {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            }
        });
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    }

    fn finish(&self) {
        if let Some(bar) = self.bar.get() {
            bar.finish_and_clear();
        }
    }
}
