//! Options of all commands that open graphs: thresholds, labels, and how a summary is printed.

use std::path::PathBuf;

use clap::Args;

use crate::Result;
use crate::circuits::{Opening, Summary, relabel};
use crate::graph::Circuit;
use crate::labels::Labels;
use crate::prune::PruneSettings;

use super::summary::summary_text;
use super::{Format, json_text, terminal};

/// Thresholds, as options.
#[derive(Debug, Args)]
pub(super) struct Thresholds {
    /// Keep the nodes that carry this share of the influence [default: 0.8 for a raw graph, all of a JSON graph]
    #[arg(long, value_name = "SHARE")]
    node_threshold: Option<f64>,
    /// Keep the edges that carry this share of what is left [default: 0.98 for a raw graph, all of a JSON graph]
    #[arg(long, value_name = "SHARE")]
    edge_threshold: Option<f64>,
}

impl Thresholds {
    /// How graphs are pruned when they are opened.
    ///
    /// # Errors
    /// A threshold outside 0..=1.
    pub(super) fn opening(&self) -> Result<Opening> {
        Opening::new(self.node_threshold, self.edge_threshold)
    }

    /// How a raw graph is pruned.
    ///
    /// # Errors
    /// A threshold outside 0..=1.
    pub(super) fn settings(&self) -> Result<PruneSettings> {
        Ok(self.opening()?.raw)
    }
}

/// Labels from the file of `--labels`, over those that the graph carries.
pub(super) fn relabel_from(circuit: &mut Circuit, labels: Option<&PathBuf>) -> Result<()> {
    if let Some(path) = labels {
        relabel(circuit, &Labels::read(path)?);
    }
    Ok(())
}

/// A summary as it is printed.
pub(super) fn render(summary: &Summary, format: Format) -> Result<String> {
    match format {
        Format::Text => Ok(terminal::shown(&summary_text(summary))),
        Format::Json => json_text(summary),
    }
}
