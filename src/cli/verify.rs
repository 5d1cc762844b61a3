//! `circuitscope verify`: does a graph tell the truth about its model?

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::Result;
use crate::circuits::{open_raw, prune_raw};
use crate::export::raw_contents;
use crate::intervene::{ContentsCheck, CurvePoint, Difference, Faithfulness, Verification, VerifyOptions};
use crate::job::Job;
use crate::text::{quoted, terminal};
use crate::tracer::{InfluenceCheck, InfluenceCheckOptions};

use super::graph_args::Thresholds;
use super::setup::{GraphSource, SetupArgs};
use super::summary::{Align, write_table};
use super::{Format, print_json, print_text};

/// More features are in JSON.
const MAX_SHOWN: usize = 20;

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
    /// Compare the influence of N random features, and the scores, with exact ones, which takes the row of every active
    /// feature [default: 20 where N is left out]
    #[arg(long, value_name = "N", num_args = 0..=1, require_equals = true, default_missing_value = "20", help_heading = "What to measure")]
    influence: Option<usize>,
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
    args.setup.start_threads()?;
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
    let influence = match args.influence {
        Some(n_features) => {
            let options = InfluenceCheckOptions { n_features, seed: args.seed };
            Some(tracer.verify_influence(&graph, &options, &Job::default())?)
        }
        None => None,
    };
    let report = Report { verification: &found, influence: influence.as_ref() };
    match args.format {
        Format::Text => print_text(&report_text(&report))?,
        Format::Json => print_json(&report)?,
    }
    Ok(found.passed && influence.is_none_or(|check| check.passed != Some(false)))
}

/// What `--format json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    verification: &'a Verification,
    #[serde(skip_serializing_if = "Option::is_none")]
    influence: Option<&'a InfluenceCheck>,
}

fn report_text(report: &Report) -> String {
    let mut text = verification_text(report.verification);
    if let Some(check) = report.influence {
        write_influence(&mut text, check);
    }
    text
}

fn write_influence(text: &mut String, check: &InfluenceCheck) {
    let stated = match (check.n_visited, check.passed) {
        (Some(n_visited), _) => format!("estimated from {n_visited} rows"),
        (None, None) => "of the chosen rows only".to_owned(),
        (None, Some(_)) => "from all rows".to_owned(),
    };
    let verdict = match check.passed {
        Some(true) => "holds: ",
        Some(false) => "FAILS: ",
        None => "",
    };
    let _ = writeln!(text, "\ninfluence   {verdict}{stated}, and exact from all {}", check.n_rows);
    for (name, score) in [("replacement", check.replacement), ("completeness", check.completeness)] {
        let _ = writeln!(text, "  {name:<14}{:.4} ± {:.4}, exact {:.4}", score.stated, score.uncertainty, score.exact);
    }
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    let _ = writeln!(
        text,
        "  strongest {:<4}{} of them found, median error {}",
        check.n_top,
        percent(check.share_of_top_found),
        percent(check.median_error_of_top)
    );
    let _ = writeln!(
        text,
        "  {} random     {} within one ±, {} within two",
        check.features.len(),
        percent(check.share_within_one),
        percent(check.share_within_two)
    );
    let shown = check.features.iter().take(MAX_SHOWN);
    let rows = shown.map(|feature| {
        let share = |share: f64| format!("{:.4} %", share * 100.0);
        vec![feature.node.to_string(), share(feature.stated), share(feature.uncertainty), share(feature.exact)]
    });
    let header = ["feature", "share", "±", "exact"].map(str::to_owned).to_vec();
    write_table(text, &[Align::Left, Align::Right, Align::Right, Align::Right], header, rows);
    if check.features.len() > MAX_SHOWN {
        let _ = writeln!(text, "  and {} more", check.features.len() - MAX_SHOWN);
    }
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
        "{:<12}{}: {} edges from {} features, {} errors and {} tokens{} measured, {:.4} % within tolerance; largest error \
         {:.1e}, largest edge {:.3}",
        "edges",
        verdict(edges.passed),
        edges.n_edges,
        edges.n_features,
        edges.n_errors,
        edges.n_tokens,
        if edges.n_contexts > 0 { format!(", {} contexts", edges.n_contexts) } else { String::new() },
        edges.share_within * 100.0,
        edges.largest_error,
        edges.largest_edge
    );
    if !found.untested.is_empty() {
        let labels: Vec<String> = found.untested.iter().map(|label| quoted(label)).collect();
        let _ = writeln!(
            text,
            "{:<12}{}: the file does not tell their directions (trace them again to have them measured)",
            "untested",
            labels.join(", ")
        );
    }
    match &found.faithfulness {
        Some(faithfulness) => write_faithfulness(&mut text, faithfulness),
        None => text.push_str("\nno target can be measured, so that no prediction is tested\n"),
    }
    let circuit = &found.circuit;
    let n_pruned = circuit.n_pruned;
    write_curve(
        &mut text,
        &format!(
            "is the circuit sufficient? its {n_pruned} pruned-away features ablated, least\n\
             influential first; it is where KL (nats, from the unchanged prediction) stays\n\
             near 0, far below random features'"
        ),
        &circuit.sufficiency,
    );
    write_curve(
        &mut text,
        &format!(
            "is it necessary? its {} kept features ablated, most influential first; it is\n\
             where KL rises far above that of as many random features",
            circuit.n_kept
        ),
        &circuit.necessity,
    );
    text
}

fn write_contents(text: &mut String, contents: &ContentsCheck, verdict: &str) {
    let (n_tensors, n_keys) = (contents.tensors.len(), contents.metadata.len());
    let n_values: usize = contents.tensors.iter().map(|check| check.n_values).sum();
    let all = format!("{n_tensors} tensors ({n_values} values) and {n_keys} keys of metadata");
    let what = match contents.different().count() {
        0 => format!("{all} are what the model gives"),
        n => format!("of {all}, {n} {} not what the model gives", if n == 1 { "is" } else { "are" }),
    };
    let _ = writeln!(text, "{:<12}{verdict}: {what}", "contents");
    for check in contents.different() {
        let count = match (check.n_values, check.n_different) {
            (0 | 1, _) => "differs".to_owned(),
            (all, 1) => format!("1 of {all} differs"),
            (all, n) => format!("{n} of {all} differ"),
        };
        let _ = writeln!(text, "  {}: {count}", terminal(&check.name));
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
        "\nthe {} most influential features ablated one by one: change of {},\n\
         predicted and real, and of all together. Pearson 1 says that the graph tells\n\
         strong from weak as the model does. Graphs hold attention and norms: what they\n\
         add is the difference between the modes",
        faithfulness.n_ablated,
        target_text(&faithfulness.target)
    );
    let header = ["mode", "prediction", "Pearson", "Spearman", "all: predicted", "real"].map(str::to_owned).to_vec();
    let correlation = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"));
    let rows = faithfulness.modes.iter().map(|mode| {
        vec![
            mode.mode.replace("frozen attention and norms", "norms frozen too"),
            mode.prediction.to_owned(),
            correlation(mode.pearson),
            correlation(mode.spearman),
            format!("{:+.3}", mode.together.predicted),
            format!("{:+.3}", mode.together.real),
        ]
    });
    let aligns = [Align::Left, Align::Left, Align::Right, Align::Right, Align::Right, Align::Right];
    write_table(text, &aligns, header, rows);
    let Some(parts) = &faithfulness.error_parts else { return };
    let _ = writeln!(
        text,
        "\nwhere single predictions go wrong, attention frozen: mean |error| {:.4}, of a\nmean |change| of {:.4}",
        parts.total, parts.real
    );
    let rows = [
        (parts.from_features, "features that saturate or switch, what transcoders miss (norms held)"),
        (parts.from_norms, "norms, when they are free as well"),
        (parts.from_attention, "attention, when it is free too: not in the error above"),
    ];
    let rows = rows.into_iter().map(|(error, what)| vec![format!("{error:.4}"), what.to_owned()]);
    write_table(text, &[Align::Right, Align::Left], Vec::new(), rows);
    let _ = writeln!(
        text,
        "\nfirst-order predictors of the same; a small ablation, scaled up, is the\nmodel's own first order"
    );
    let header = ["predictor", "mean |error|", "Pearson"].map(str::to_owned).to_vec();
    let rows = parts.predictors.iter().map(|predictor| {
        vec![predictor.name.to_owned(), format!("{:.4}", predictor.error), correlation(predictor.pearson)]
    });
    write_table(text, &[Align::Left, Align::Right, Align::Right], header, rows);
}

/// A label of a target: a token in quotes; what is in quotes itself, or names a feature, as it is.
fn target_text(label: &str) -> String {
    let is_name = ["\"", "feature ", "attention "].iter().any(|start| label.starts_with(start));
    if is_name { terminal(label) } else { quoted(label) }
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
