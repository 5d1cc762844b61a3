//! `circuitscope inspect`: what is in a graph.

use std::path::PathBuf;

use clap::Args;

use crate::Result;
use crate::export::{SummarySettings, summarize};

use super::graph_file::{Thresholds, open_circuit, relabel, render};
use super::{Format, print_data};

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// A raw graph (.safetensors, pruned on the way) or a pruned one (.json, also circuit-tracer's)
    graph: PathBuf,
    /// Show the inputs and outputs of this node, e.g. 3_41_7
    #[arg(long, value_name = "ID")]
    node: Option<String>,
    /// How many of the strongest token-to-target paths to show
    #[arg(long, value_name = "K", default_value_t = SummarySettings::default().paths)]
    paths: usize,
    /// How many nodes every list shows
    #[arg(long, value_name = "N", default_value_t = SummarySettings::default().top)]
    top: usize,
    #[command(flatten)]
    thresholds: Thresholds,
    /// A feature_labels.json to name features from
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Prints the summary of a graph.
///
/// # Errors
/// Bad thresholds, a graph that cannot be read, a node that is not in it.
pub(super) fn run(args: &InspectArgs) -> Result<()> {
    let mut circuit = open_circuit(&args.graph, &args.thresholds.settings()?)?;
    relabel(&mut circuit, args.labels.as_ref())?;
    let settings = SummarySettings { top: args.top, paths: args.paths, node: args.node.clone() };
    print_data(&render(&summarize(&circuit, &settings)?, args.format)?)
}
