//! `circuitscope verify`: does a graph tell the truth about its model?

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;

use crate::Result;
use crate::circuits::{open_raw, prune_raw};
use crate::export::raw_contents;
use crate::intervene::{ContentsCheck, CurvePoint, Difference, Faithfulness, Verification, VerifyOptions};
use crate::job::Job;
use crate::text::{quoted, terminal};

use super::graph_args::Thresholds;
use super::setup::{GraphSource, SetupArgs};
use super::summary::{Align, write_table};
use super::{Format, print_json, print_text};

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The raw graph, a .safetensors file that `trace` wrote
    graph: PathBuf,
    #[command(flatten, next_help_heading = "Model")]
    setup: SetupArgs,
    /// Features, errors and tokens whose edges are measured, at most so many of each
    #[arg(long, value_name = "N", default_value_t = 32, help_heading = "What to measure")]
    samples: usize,
    /// Ablate the K most influential features, one by one and together
    #[arg(long, value_name = "K", default_value_t = 20, help_heading = "What to measure")]
    ablate: usize,
    /// Seed of the random features that the circuit is compared with
    #[arg(long, value_name = "S", default_value_t = 0, help_heading = "What to measure")]
    seed: u64,
    #[command(flatten, next_help_heading = "Pruning")]
    thresholds: Thresholds,
    /// The feature_labels.json that the graph was traced with [default: the one beside the transcoders]
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// How to print
    #[arg(long, value_enum, default_value_t, help_heading = "Output")]
    format: Format,
}

/// Checks a graph and prints what was found; whether it passed.
///
/// # Errors
/// Bad thresholds, a graph that cannot be read or is of another model.
pub(super) fn run(args: &VerifyArgs) -> Result<bool> {
    args.setup.start_threads();
    let settings = args.thresholds.settings()?;
    let graph = open_raw(&args.graph)?;
    let circuit = prune_raw(&graph, &settings)?;
    let kept = circuit.order().iter().filter_map(|&index| circuit.node(index).id.feature()).collect();
    let source = GraphSource::of_raw(&args.graph, &graph.meta);
    let tracer = args.setup.open_with(args.labels.as_deref(), Some(&source))?;
    let options = VerifyOptions { n_samples: args.samples, n_ablated: args.ablate, seed: args.seed, kept };
    let mut found = tracer.verify(&graph, &options, &Job::default())?;
    let (tensors, keys) = raw_contents(&args.graph)?;
    found.contents.require(&tensors, &keys);
    found.passed &= found.contents.passed;
    match args.format {
        Format::Text => print_text(&verification_text(&found))?,
        Format::Json => print_json(&found)?,
    }
    Ok(found.passed)
}

fn verification_text(found: &Verification) -> String {
    let mut text = String::new();
    let verdict = |passed: bool| if passed { "holds" } else { "FAILS" };
    let _ = writeln!(text, "{:<12}{}", "prompt", quoted(&found.prompt));
    write_contents(&mut text, &found.contents, verdict(found.contents.passed));
    let identity = &found.identity;
    let _ = writeln!(
        text,
        "{:<12}{}: {} rows add up to {:.1e} at worst (allowed {:.0e})",
        "identity",
        verdict(identity.passed),
        identity.n_rows,
        identity.largest_relative_error,
        identity.tolerance
    );
    let edges = &found.edges;
    let _ = writeln!(
        text,
        "{:<12}{}: {} edges from {} features, {} errors and {} tokens measured, {:.4} % within tolerance; largest error \
         {:.1e}, largest edge {:.3}",
        "edges",
        verdict(edges.passed),
        edges.n_edges,
        edges.n_features,
        edges.n_errors,
        edges.n_tokens,
        edges.share_within * 100.0,
        edges.largest_error,
        edges.largest_edge
    );
    if let Some(faithfulness) = &found.faithfulness {
        write_faithfulness(&mut text, faithfulness);
    }
    let circuit = &found.circuit;
    let n_pruned = circuit.n_pruned;
    write_curve(
        &mut text,
        &format!("is the circuit sufficient? its {n_pruned} pruned-away features ablated, least influential first"),
        &circuit.sufficiency,
    );
    write_curve(
        &mut text,
        &format!("is it necessary? its {} kept features ablated, most influential first", circuit.n_kept),
        &circuit.necessity,
    );
    text
}

fn write_contents(text: &mut String, contents: &ContentsCheck, verdict: &str) {
    let (n_tensors, n_keys) = (contents.tensors.len(), contents.metadata.len());
    let n_values: usize = contents.tensors.iter().map(|check| check.n_values).sum();
    let n_different = contents.different().count();
    let result = if n_different == 0 { "are the model's".to_owned() } else { format!("and {n_different} differ") };
    let what = format!("{n_tensors} tensors ({n_values} values) and {n_keys} keys computed again {result}");
    let _ = writeln!(text, "{:<12}{verdict}: {what}", "contents");
    for check in contents.different() {
        let of = if check.n_values > 1 { format!(" of {}", check.n_values) } else { String::new() };
        let _ = writeln!(text, "  {}: {}{of} differ", terminal(&check.name), check.n_different);
        let Some(Difference { at, in_graph, here }) = &check.difference else { continue };
        if !at.is_empty() {
            let _ = writeln!(text, "    at {}", terminal(at));
        }
        let _ = writeln!(text, "    graph  {}\n    here   {}", terminal(in_graph), terminal(here));
    }
}

fn write_faithfulness(text: &mut String, faithfulness: &Faithfulness) {
    let _ = writeln!(
        text,
        "\nthe {} most influential features ablated one by one: logit of {}, predicted and real",
        faithfulness.n_ablated,
        quoted(&faithfulness.target)
    );
    let header =
        ["mode", "prediction", "Pearson", "Spearman", "together: predicted", "real"].map(str::to_owned).to_vec();
    let correlation = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"));
    let rows = faithfulness.modes.iter().map(|mode| {
        vec![
            mode.mode.clone(),
            mode.prediction.to_owned(),
            correlation(mode.pearson),
            correlation(mode.spearman),
            format!("{:+.3}", mode.together.predicted),
            format!("{:+.3}", mode.together.real),
        ]
    });
    let aligns = [Align::Left, Align::Left, Align::Right, Align::Right, Align::Right, Align::Right];
    write_table(text, &aligns, header, rows);
}

fn write_curve(text: &mut String, title: &str, points: &[CurvePoint]) {
    let _ = writeln!(text, "\n{title}");
    let header = ["share", "ablated", "KL", "KL of random features"].map(str::to_owned).to_vec();
    let rows = points.iter().map(|point| {
        vec![
            format!("{:.0} %", point.share * 100.0),
            point.n_ablated.to_string(),
            format!("{:.4}", point.kl_divergence),
            format!("{:.4}", point.kl_divergence_random),
        ]
    });
    write_table(text, &[Align::Right, Align::Right, Align::Right, Align::Right], header, rows);
}
