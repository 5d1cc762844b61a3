//! `circuitscope trace`: a prompt to a raw graph and a pruned one.

use std::path::PathBuf;

use serde::Serialize;

use crate::Result;
use crate::attribution::attribute;
use crate::circuits::{Summary, SummarySettings, summarize};
use crate::export::{WireGraph, check_writable, write_raw, write_wire};
use crate::prune::prune;
use crate::text::{slug, terminal};

use super::graph_args::relabel_from;
use super::phases::{Phase, Phases};
use super::progress::{RowBar, spinner};
use super::trace_args::TraceArgs;
use super::{Format, note, print_data, print_json, summary_text};

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
    let mut phases = Phases::new();
    let settings = args.thresholds.settings()?;
    check_writable(&args.out_dir)?;

    let replacement = args.setup.open()?;
    let (tokens, prompt) = args.prompt.read(&replacement)?;
    let options = args.options(&replacement)?;
    phases.end("open", terminal(&format!("{} with {}", replacement.source, replacement.transcoders.scan)));

    let spinner = spinner(args.setup.quiet, "running the model");
    let linear = replacement.linearize(&tokens)?;
    spinner.finish_and_clear();
    let n_active = linear.features.len();
    phases.end("forward", format!("{} positions, {n_active} active features", tokens.len()));

    let bar = RowBar::new(args.setup.quiet);
    let found = attribute(&replacement, &linear, &prompt, &options, &|done, all| bar.set(done, all))?;
    bar.finish();
    drop(linear);
    let rows_per_sec = found.n_rows as f64 / found.elapsed_secs.rows.max(1e-9);
    phases.end("attribute", format!("{} rows, {rows_per_sec:.0} rows/s", found.n_rows));

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
