//! `circuitscope prune`: a raw graph to JSON.

use std::path::PathBuf;

use clap::Args;

use crate::Result;
use crate::export::{SummarySettings, WireGraph, summarize, write_wire};

use super::graph_file::{Thresholds, open_raw, prune_raw, relabel, render};
use super::{Format, print_data};

#[derive(Debug, Args)]
pub struct PruneArgs {
    /// The raw graph, a .safetensors file that `trace` wrote
    graph: PathBuf,
    #[command(flatten)]
    thresholds: Thresholds,
    /// Where to write the pruned graph [default: beside the raw graph, as .json]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Name of the graph in the JSON [default: the file's name]
    #[arg(long, value_name = "NAME")]
    slug: Option<String>,
    /// A feature_labels.json to name features from
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// How to print the summary
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Prunes, writes the JSON, prints the summary.
///
/// # Errors
/// Bad thresholds, a graph that cannot be read, an output that cannot be written.
pub(super) fn run(args: &PruneArgs) -> Result<()> {
    let settings = args.thresholds.settings()?;
    let graph = open_raw(&args.graph)?;
    let mut circuit = prune_raw(&graph, &settings)?;
    relabel(&mut circuit, args.labels.as_ref())?;
    let output = args.output.clone().unwrap_or_else(|| args.graph.with_extension("json"));
    let file_stem = || output.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let slug = args.slug.clone().unwrap_or_else(file_stem);
    write_wire(&WireGraph::new(&circuit, &slug)?, &output)?;
    let summary = summarize(&circuit, &SummarySettings::default())?;
    print_data(&render(&summary, args.format)?)?;
    eprintln!("wrote {}", output.display());
    Ok(())
}
