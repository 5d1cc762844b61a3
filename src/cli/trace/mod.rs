//! `circuitscope trace`: a prompt to a raw graph and a pruned one.

mod phases;
mod progress;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use clap::Args;
use serde::Serialize;

use crate::attribution::{AttributionOptions, TargetRequest};
use crate::circuits::{Summary, SummarySettings, summarize};
use crate::error::Doing;
use crate::export::{WireGraph, check_writable, write_wire};
use crate::job::Job;
use crate::text::{slug, terminal};
use crate::tracer::{Prompt, Tracer};
use crate::{Error, Result};

use super::graph_args::Thresholds;
use super::setup::SetupArgs;
use super::{Format, note, print_data, print_json, summary_text};
use phases::{Phase, Phases};
use progress::TraceProgress;

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
    /// At most this many features become nodes, the most influential ones; or `all`
    #[arg(long, value_name = "N", default_value = "7500", value_parser = parse_max_features)]
    max_features: MaxFeatures,
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

#[derive(Clone, Copy, Debug)]
struct MaxFeatures(Option<usize>);

fn parse_max_features(text: &str) -> Result<MaxFeatures, String> {
    match text {
        "all" => Ok(MaxFeatures(None)),
        _ => text.parse().map(|n| MaxFeatures(Some(n))).map_err(|_| "expected a number or `all`".into()),
    }
}

/// What `--format json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    summary: &'a Summary,
    phases: &'a [Phase],
    files: &'a [PathBuf],
}

/// Traces a prompt, prints the summary, writes the files.
///
/// # Errors
/// Options out of range, files that cannot be read or written, prompts and targets that do not fit the model.
pub(super) fn run(args: &TraceArgs) -> Result<()> {
    args.setup.start_threads();
    let phases = Arc::new(Mutex::new(Phases::new()));
    let end_phase = |name: &'static str, note: String| {
        phases.lock().unwrap_or_else(PoisonError::into_inner).end(name, note);
    };
    let settings = args.thresholds.settings()?;
    check_writable(&args.out_dir)?;

    let tracer = args.setup.open(args.labels.as_deref())?;
    let prompt = tracer.tokenize(prompt(args)?)?;
    let options = options(args, &tracer)?;
    options.check()?;
    end_phase("open", terminal(&format!("{} with {}", tracer.model_name(), tracer.transcoder_name())));

    let progress = TraceProgress::new(args.setup.quiet, phases.clone());
    let shown = progress.clone();
    let job = Job::default().with_progress(move |progress| shown.show(progress));
    let graph = tracer.trace_with(prompt, &options, &job)?;
    progress.finish();
    let (n_pos, n_active) = (graph.graph().input_tokens.len(), graph.graph().active_features.len());
    let work = graph.work().unwrap_or_default();
    let rows_per_sec = work.n_rows as f64 / work.rows_secs.max(1e-9);
    let short = if work.short_of_device_memory { "; too little GPU memory to choose features there" } else { "" };
    end_phase("attribute", format!("{} rows, {rows_per_sec:.0} rows/s{short}", work.n_rows));

    let circuit = graph.prune(&settings)?;
    end_phase("prune", String::new());

    let slug = args.slug.clone().unwrap_or_else(|| slug(graph.prompt()));
    let mut files = Vec::new();
    if !args.no_raw {
        files.push(args.out_dir.join(format!("{slug}.safetensors")));
        graph.save(&files[files.len() - 1])?;
    }
    if !args.no_json {
        files.push(args.out_dir.join(format!("{slug}.json")));
        write_wire(&WireGraph::new(&circuit, &slug)?, &files[files.len() - 1])?;
    }
    end_phase("write", String::new());

    let mut phases = phases.lock().unwrap_or_else(PoisonError::into_inner);
    phases.note("forward", format!("{n_pos} positions, {n_active} active features"));
    let summary = summarize(&circuit, &SummarySettings { top: args.top, paths: args.paths, node: None })?;
    match args.format {
        Format::Text => print_data(&summary_text(&summary))?,
        Format::Json => print_json(&Report { summary: &summary, phases: phases.all(), files: &files })?,
    }
    if !args.setup.quiet {
        eprint!("\n{}", phases.text());
        files.iter().for_each(|file| note(&format!("wrote {}", file.display())));
    }
    Ok(())
}

/// The prompt, as it was given.
fn prompt(args: &TraceArgs) -> Result<Prompt> {
    match (&args.tokens, &args.prompt, &args.prompt_file) {
        (Some(tokens), _, _) => Ok(Prompt::from(tokens.clone())),
        (None, Some(prompt), _) => Ok(Prompt::from(prompt)),
        (None, None, Some(path)) => Ok(Prompt::from(read_prompt(path)?)),
        (None, None, None) => Err(Error::EmptyPrompt),
    }
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

fn options(args: &TraceArgs, tracer: &Tracer) -> Result<AttributionOptions> {
    let token = |text: &String| tracer.token(text);
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
        max_features: args.max_features.0,
        batch_size: args.batch_size,
        keep_decoders: !(args.no_decoders || args.no_raw),
    })
}
