//! `circuitscope diff` and `circuitscope common`: graphs compared.

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;
use rayon::prelude::*;
use serde::Serialize;

use crate::circuits::{ChangedFeature, Common, Diff, common, diff, open_circuit, relabel};
use crate::graph::Circuit;
use crate::labels::Labels;
use crate::text::{quoted, terminal};
use crate::{Error, Result};

use super::collected::label_from_beside;
use super::graph_args::Thresholds;
use super::{Format, note, print_json, print_text};

#[derive(Debug, Args)]
pub struct DiffArgs {
    /// A raw or a pruned graph
    left: PathBuf,
    /// Another one
    right: PathBuf,
    /// How many features every list shows
    #[arg(long, value_name = "N", default_value_t = 10)]
    top: usize,
    #[command(flatten, next_help_heading = "Pruning")]
    thresholds: Thresholds,
    /// A feature_labels.json to name features from, over the names that the graphs carry
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, Args)]
pub struct CommonArgs {
    /// Raw or pruned graphs
    #[arg(required = true, num_args = 1..)]
    graphs: Vec<PathBuf>,
    /// How many of the graphs must have it [default: all]
    #[arg(long, value_name = "M")]
    at_least: Option<usize>,
    /// How many entries every list shows
    #[arg(long, value_name = "N", default_value_t = 20)]
    top: usize,
    #[command(flatten, next_help_heading = "Pruning")]
    thresholds: Thresholds,
    /// A feature_labels.json to name features from, over the names that the graphs carry
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Compares two graphs.
///
/// # Errors
/// A graph that cannot be read, bad thresholds.
pub(super) fn run_diff(args: &DiffArgs) -> Result<()> {
    let opening = args.thresholds.opening()?;
    let labels = args.labels.as_deref().map(Labels::read).transpose()?;
    let (left, right) = rayon::join(|| open_circuit(&args.left, &opening), || open_circuit(&args.right, &opening));
    let (mut left, mut right) = (left?, right?);
    for circuit in [&mut left, &mut right] {
        label_from_beside(circuit);
        labels.iter().for_each(|labels| relabel(circuit, labels));
    }
    let diff = diff(&left, &right);
    let warning = of_other_features(&[&left, &right], &[&args.left, &args.right]);
    if args.format == Format::Json {
        return print_json(&DiffReport { warning, diff });
    }
    let mut text = String::new();
    let _ = writeln!(text, "left        {}", quoted(&left.meta.prompt));
    let _ = writeln!(text, "right       {}", quoted(&right.meta.prompt));
    let (n_left, n_right) = (left.meta.prompt_tokens.len(), right.meta.prompt_tokens.len());
    let _ = writeln!(text, "tokens      {} of {n_left} and {n_right} aligned", diff.aligned.len());
    let _ = writeln!(
        text,
        "features    {} shared, {} only left, {} only right; similarity {:.3}, overlap {:.3}",
        diff.shared.len(),
        diff.only_left.len(),
        diff.only_right.len(),
        diff.similarity,
        diff.jaccard
    );
    let lists = [("shared", &diff.shared), ("only left", &diff.only_left), ("only right", &diff.only_right)];
    for (name, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
        let _ = writeln!(text, "\n{name} (left share, right share)");
        list.iter().take(args.top).for_each(|feature| write_changed(&mut text, feature));
    }
    print_text(&text)
}

/// What `diff` prints as JSON.
#[derive(Serialize)]
struct DiffReport {
    /// That the graphs are of different features.
    #[serde(skip_serializing_if = "Option::is_none")]
    warning: Option<String>,
    #[serde(flatten)]
    diff: Diff,
}

/// Says, on stderr too, that graphs are of different transcoders, where they are.
fn of_other_features(circuits: &[&Circuit], paths: &[&PathBuf]) -> Option<String> {
    // Graphs of other programs may not say.
    let mut said = circuits.iter().zip(paths).filter(|(circuit, _)| !circuit.meta.scan.is_empty());
    let first = said.next()?;
    let other = said.find(|(other, _)| other.meta.scan != first.0.meta.scan)?;
    let shown = |(circuit, path): (&&Circuit, &&PathBuf)| format!("`{}` of {:?}", path.display(), circuit.meta.scan);
    let warning = format!(
        "features of one number are not the same in {} and {}, which are different transcoders",
        shown(first),
        shown(other)
    );
    note(&format!("warning: {warning}"));
    Some(warning)
}

fn write_changed(text: &mut String, feature: &ChangedFeature) {
    let id = format!("{}_{}", feature.layer, feature.feature);
    let label = terminal(feature.label.as_deref().unwrap_or(""));
    let (left, right) = (feature.left_share * 100.0, feature.right_share * 100.0);
    let positions = |positions: &[u32]| positions.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let at = format!("@{} / @{}", positions(&feature.left_positions), positions(&feature.right_positions));
    let _ = writeln!(text, "{}", format!("  {left:5.1} %  {right:5.1} %  {id:<12} {at:<14} {label}").trim_end());
}

/// What several graphs have in common, as JSON.
#[derive(Serialize)]
struct CommonReport {
    /// That the graphs are of different features.
    #[serde(skip_serializing_if = "Option::is_none")]
    warning: Option<String>,
    graphs: Vec<String>,
    at_least: usize,
    features: Vec<Common>,
    edges: Vec<Common>,
}

/// Finds what at least `--at-least` of the graphs have.
///
/// # Errors
/// A graph that cannot be read, bad thresholds, a count outside the number of graphs.
pub(super) fn run_common(args: &CommonArgs) -> Result<()> {
    let opening = args.thresholds.opening()?;
    let at_least = args.at_least.unwrap_or(args.graphs.len());
    if !(1..=args.graphs.len()).contains(&at_least) {
        return Err(Error::Setting { name: "at-least", value: at_least as f64, range: "1 to the number of graphs" });
    }
    let labels = args.labels.as_deref().map(Labels::read).transpose()?;
    let mut circuits = args.graphs.par_iter().map(|path| open_circuit(path, &opening)).collect::<Result<Vec<_>>>()?;
    for circuit in &mut circuits {
        label_from_beside(circuit);
        labels.iter().for_each(|labels| relabel(circuit, labels));
    }
    let (features, edges) = common(&circuits, at_least);
    let graphs: Vec<String> = args.graphs.iter().map(|path| path.display().to_string()).collect();
    let warning = of_other_features(&circuits.iter().collect::<Vec<_>>(), &args.graphs.iter().collect::<Vec<_>>());
    if args.format == Format::Json {
        return print_json(&CommonReport { warning, graphs, at_least, features, edges });
    }
    let mut text = format!(
        "{} features and {} edges in at least {at_least} of {} graphs\n",
        features.len(),
        edges.len(),
        graphs.len()
    );
    for (name, list) in [("features", &features), ("edges", &edges)] {
        if !list.is_empty() {
            let _ = writeln!(text, "\n{name} (graphs, mean share)");
        }
        for found in list.iter().take(args.top) {
            let named = |(id, label): (&(u32, u32), &Option<String>)| match label {
                Some(label) => format!("{}_{} [{}]", id.0, id.1, terminal(label)),
                None => format!("{}_{}", id.0, id.1),
            };
            let names: Vec<String> = found.features.iter().zip(&found.labels).map(named).collect();
            let _ = writeln!(
                text,
                "  {:>3}  {:5.1} %  {}",
                found.graphs.len(),
                found.mean_share * 100.0,
                names.join(" > ")
            );
        }
    }
    print_text(&text)
}
