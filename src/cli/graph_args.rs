//! Options of all commands that open graphs: thresholds, labels, and how a summary is printed.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use crate::Result;
use crate::circuits::{Opening, Summary, relabel};
use crate::export::{check_not_input, check_not_list};
use crate::graph::Circuit;
use crate::labels::Labels;
use crate::picture::Cells;
use crate::prune::PruneSettings;
use crate::text::check_file_name;

use super::summary::summary_text;
use super::{Format, json_text, terminal};

/// Who reads a table, as the value of `--cells`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum CellsFor {
    #[default]
    Spreadsheet,
    Exact,
}

impl From<CellsFor> for Cells {
    fn from(cells: CellsFor) -> Cells {
        match cells {
            CellsFor::Spreadsheet => Cells::Spreadsheet,
            CellsFor::Exact => Cells::Exact,
        }
    }
}

/// The value of `--slug`: the name of a file, not a path.
pub(super) fn file_name(name: &str) -> std::result::Result<String, String> {
    check_file_name(name)
        .and_then(|()| check_not_list(name))
        .map(|()| name.to_owned())
        .map_err(|problem| format!("the name {problem}"))
}

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

/// How large a JSON graph may become, as an option.
#[derive(Debug, Args)]
pub(super) struct NodeLimit {
    /// Keep at most so many nodes, those of most influence [default: 5000 of a raw graph, all of a JSON graph]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_nodes: Option<u64>,
}

impl NodeLimit {
    /// The settings with this limit, where one is given.
    pub(super) fn of(&self, settings: PruneSettings) -> PruneSettings {
        PruneSettings { max_nodes: self.asked().or(settings.max_nodes), ..settings }
    }

    /// The limit, where one is given.
    pub(super) fn asked(&self) -> Option<usize> {
        self.max_nodes.map(|most| usize::try_from(most).unwrap_or(usize::MAX))
    }
}

impl Thresholds {
    /// Whether options name any.
    pub(super) fn is_given(&self) -> bool {
        self.node_threshold.is_some() || self.edge_threshold.is_some()
    }

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

/// Refuses to write over what a command reads.
///
/// # Errors
/// [`Error::OwnInput`](crate::Error::OwnInput).
pub(super) fn refuse_own_inputs<'a>(
    output: &Path,
    inputs: impl IntoIterator<Item = Option<&'a PathBuf>>,
) -> Result<()> {
    let inputs: Vec<&Path> = inputs.into_iter().flatten().map(PathBuf::as_path).collect();
    check_not_input(output, &inputs)
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
