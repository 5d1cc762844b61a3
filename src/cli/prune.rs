//! `circuitscope prune`: a raw graph to JSON.

use std::path::PathBuf;

use clap::Args;

use crate::circuits::{
    SummarySettings, is_worked_on, open_json, open_raw, prune_raw, save_pruned_json, summarize, summarize_with_raw,
};
use crate::export::{WireGraph, raw, write_wire};
use crate::input::is_stream;
use crate::prune::PruneSettings;
use crate::{Error, Result};

use super::graph_args::{NodeLimit, Thresholds, file_name, refuse_own_inputs, relabel_from, render};
use super::output_file::check_json_output;
use super::{Format, note, print_data};

#[derive(Debug, Args)]
pub struct PruneArgs {
    /// The raw graph, a .safetensors file that `trace` wrote; or a .json, of any size, to be pruned further; - reads JSON
    /// from standard input
    graph: PathBuf,
    #[command(flatten, next_help_heading = "Pruning")]
    thresholds: Thresholds,
    #[command(flatten, next_help_heading = "Pruning")]
    limit: NodeLimit,
    /// Where to write the pruned graph [default: beside a raw graph, as .json; needed for a .json]
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    output: Option<PathBuf>,
    /// Replace a graph with pinned nodes or supernodes by the raw graph's, which has none
    #[arg(long, help_heading = "Output")]
    force: bool,
    /// Name of the graph in the JSON [default: the file's name]
    #[arg(long, value_name = "NAME", value_parser = file_name, help_heading = "Output")]
    slug: Option<String>,
    /// A feature_labels.json to name features from
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    labels: Option<PathBuf>,
    /// How to print the summary
    #[arg(long, value_enum, default_value_t, help_heading = "Output")]
    format: Format,
}

/// Prunes, writes the JSON, prints the summary.
///
/// # Errors
/// Bad thresholds, a graph that cannot be read, an output that cannot be written.
pub(super) fn run(args: &PruneArgs) -> Result<()> {
    let settings = args.limit.of(args.thresholds.settings()?);
    let is_json = is_stream(&args.graph) || args.graph.extension().is_some_and(|e| e == "json");
    if is_json && !raw::looks_raw(&args.graph).unwrap_or(false) {
        return prune_json(args, &PruneSettings { max_nodes: args.limit.asked(), ..settings });
    }
    let output = args.output.clone().unwrap_or_else(|| args.graph.with_extension("json"));
    refuse_own_inputs(&output, [Some(&args.graph), args.labels.as_ref()])?;
    check_json_output(&output)?;
    if !args.force && is_worked_on(&output) {
        return Err(Error::WorkedOn { file: output });
    }
    let graph = open_raw(&args.graph)?;
    let mut circuit = prune_raw(&graph, &settings)?;
    relabel_from(&mut circuit, args.labels.as_ref())?;
    let file_stem = || output.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let slug = args.slug.clone().unwrap_or_else(file_stem);
    write_wire(&WireGraph::new(&circuit, &slug)?, &output)?;
    let summary = summarize_with_raw(&circuit, &graph, &SummarySettings::default())?;
    print_data(&render(&summary, args.format)?)?;
    note(&format!("wrote {}", output.display()));
    Ok(())
}

/// A JSON graph, pruned further without ever being held whole.
fn prune_json(args: &PruneArgs, settings: &PruneSettings) -> Result<()> {
    let Some(output) = &args.output else {
        return Err(Error::NeedsOutput { graph: args.graph.display().to_string() });
    };
    refuse_own_inputs(output, [Some(&args.graph), args.labels.as_ref()])?;
    check_json_output(output)?;
    let graph = open_json(&args.graph, Some(settings))?;
    let mut circuit = graph.circuit()?;
    circuit.meta.node_threshold = Some(settings.node_threshold);
    circuit.meta.edge_threshold = Some(settings.edge_threshold);
    relabel_from(&mut circuit, args.labels.as_ref())?;
    save_pruned_json(&graph, settings, args.slug.as_deref(), &circuit, output)?;
    print_data(&render(&summarize(&circuit, &SummarySettings::default())?, args.format)?)?;
    note(&format!("kept {} of {} links; wrote {}", graph.links.len(), graph.n_links_read, output.display()));
    Ok(())
}
