//! A summary as text.

use std::fmt::Write;

use crate::circuits::{Neighbors, NodeSummary, Summary, SummaryNode, SummaryPath};
use crate::graph::{NodeKind, ShareEstimate};
use crate::text::{quoted, terminal};

/// Longer labels are cut in tables; JSON has them whole.
const MAX_LABEL_CHARS: usize = 48;

/// Uncertainties below this part of a value are not shown.
const NEGLIGIBLE_UNCERTAINTY: f64 = 0.05;

/// The summary as it is printed: short, columns aligned, tokens quoted so that leading spaces show.
pub fn summary_text(summary: &Summary) -> String {
    let mut text = String::new();
    write_head(&mut text, summary);
    if let Some(node) = &summary.node {
        write_node(&mut text, node);
        return text;
    }
    if !summary.strongest.is_empty() {
        text.push_str("\nstrongest nodes\n");
        let mut header = ["share", "node", "at", "activation", "label"].map(str::to_owned).to_vec();
        let mut aligns = vec![Align::Right, Align::Left, Align::Left, Align::Right, Align::Left];
        let is_sampled = summary.strongest.iter().any(|node| node.estimate.is_some());
        if is_sampled {
            header.insert(1, "of the whole".to_owned());
            aligns.insert(1, Align::Right);
        }
        let rows = summary.strongest.iter().map(|node| {
            let activation = node.activation.map(|a| format!("{a:.3}")).unwrap_or_default();
            let mut row = vec![percent(node.share), node.id.clone(), quoted(&node.text), activation, label(node)];
            if is_sampled {
                row.insert(1, node.estimate.as_ref().map(estimate_text).unwrap_or_default());
            }
            row
        });
        write_table(&mut text, &aligns, header, rows);
    }
    write_paths(&mut text, summary);
    text
}

fn write_head(text: &mut String, summary: &Summary) {
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<12}{value}");
    };
    line("prompt", quoted(&summary.prompt));
    let predictions: Vec<String> = summary
        .predictions
        .iter()
        .map(|p| match p.probability {
            Some(probability) => format!("{} {probability:.3}", quoted(&p.text)),
            None => quoted(&p.text),
        })
        .collect();
    line("prediction", predictions.join("  "));
    let scores = summary.scores;
    let number = |name: &str, value: Option<f64>, uncertainty: Option<f64>| {
        let uncertainty = uncertainty.map(|value| format!(" ± {value:.3}")).unwrap_or_default();
        value.map(|value| format!("{name} {value:.3}{uncertainty}"))
    };
    let sampling = scores.sampling;
    let mut parts: Vec<String> = [
        number("replacement", scores.replacement, sampling.map(|s| s.replacement_uncertainty)),
        number("completeness", scores.completeness, sampling.map(|s| s.completeness_uncertainty)),
    ]
    .into_iter()
    .flatten()
    .collect();
    parts.extend(scores.row_identity_error.map(|error| format!("rows add up to {error:.0e}")));
    if !parts.is_empty() {
        line("scores", parts.join("  "));
    }
    if let Some(sampling) = sampling {
        line(
            "influence",
            format!(
                "of the whole graph, estimated from {} (θ {:.2e})",
                plural(sampling.n_visited, "row"),
                sampling.theta
            ),
        );
    }
    let counts = summary.counts;
    let kinds =
        [(counts.features, "feature"), (counts.errors, "error"), (counts.tokens, "token"), (counts.targets, "target")];
    let kinds: Vec<String> = kinds.iter().map(|&(n, name)| plural(n, name)).collect();
    line(
        "graph",
        format!("{}: {}; {}", plural(counts.nodes(), "node"), kinds.join(", "), plural(counts.edges, "edge")),
    );
}

fn write_node(text: &mut String, summary: &NodeSummary) {
    let node = &summary.node;
    let mut facts = vec![format!("at {} (position {})", quoted(&node.text), node.pos)];
    facts.extend(node.layer.map(|layer| format!("layer {layer}")));
    facts.extend(node.activation.map(|activation| format!("activation {activation:.3}")));
    facts.push(format!("share {}", percent(node.share)));
    facts.extend(node.estimate.as_ref().map(|estimate| format!("of the whole graph {}", estimate_text(estimate))));
    let _ = writeln!(text, "\nnode {}  {}", node.id, label(node));
    let _ = writeln!(text, "  {}", facts.join(", "));
    write_neighbors(text, "inputs", &summary.inputs);
    write_neighbors(text, "outputs", &summary.outputs);
}

/// A share with its ±, where that is much of it.
fn estimate_text(estimate: &ShareEstimate) -> String {
    if estimate.uncertainty < NEGLIGIBLE_UNCERTAINTY * estimate.share {
        return percent(estimate.share);
    }
    format!("{} ± {}", percent(estimate.share), percent(estimate.uncertainty))
}

fn write_neighbors(text: &mut String, name: &str, neighbors: &Neighbors) {
    let signs = [
        ("positive", &neighbors.positive, neighbors.n_positive),
        ("negative", &neighbors.negative, neighbors.n_negative),
    ];
    for (sign, edges, n_edges) in signs {
        if n_edges == 0 {
            continue;
        }
        let shown = if edges.len() < n_edges { format!("{} of {n_edges}", edges.len()) } else { n_edges.to_string() };
        let _ = writeln!(text, "\n{sign} {name} ({shown})");
        let header = ["share", "weight", "node", "at", "label"].map(str::to_owned).to_vec();
        let rows = edges.iter().map(|edge| {
            vec![
                percent(edge.edge_share),
                format!("{:+.4}", edge.weight),
                edge.node.id.clone(),
                quoted(&edge.node.text),
                label(&edge.node),
            ]
        });
        write_table(text, &[Align::Right, Align::Right, Align::Left, Align::Left, Align::Left], header, rows);
    }
}

fn write_paths(text: &mut String, summary: &Summary) {
    let Some(target) = summary.paths.first().and_then(|path| path.nodes.last()) else { return };
    let shown: f64 = summary.paths.iter().map(|path| path.strength).sum();
    let _ = writeln!(
        text,
        "\nstrongest paths to {} ({} of the {} that tokens give)",
        quoted(&target.text),
        percent(shown),
        percent(summary.paths_total),
    );
    let rows = summary.paths.iter().map(|path| vec![percent(path.strength), path_text(path)]);
    write_table(text, &[Align::Right, Align::Left], Vec::new(), rows);
}

fn path_text(path: &SummaryPath) -> String {
    let step = |node: &SummaryNode| match node.kind {
        NodeKind::Token | NodeKind::Target => quoted(&node.text),
        _ => match &node.label {
            Some(label) => format!("{} [{}]", node.id, cut(label)),
            None => node.id.clone(),
        },
    };
    let sign = if path.is_negative { "-" } else { "+" };
    let steps: Vec<String> = path.nodes.iter().map(step).collect();
    format!("{sign} {}", steps.join(" > "))
}

fn label(node: &SummaryNode) -> String {
    match (&node.label, &node.kind) {
        (Some(label), _) => cut(label),
        (None, NodeKind::Feature) => String::new(),
        (None, NodeKind::Error) => "(error)".to_owned(),
        (None, NodeKind::Token) => "(token)".to_owned(),
        (None, NodeKind::Target) => "(target)".to_owned(),
    }
}

/// A label for a table, cut to its width.
pub(super) fn cut(label: &str) -> String {
    let label = terminal(label);
    if label.chars().count() <= MAX_LABEL_CHARS {
        return label;
    }
    label.chars().take(MAX_LABEL_CHARS - 1).chain(['…']).collect()
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn plural(count: usize, name: &str) -> String {
    if count == 1 { format!("1 {name}") } else { format!("{count} {name}s") }
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Align {
    Left,
    Right,
}

/// Writes rows indented by two, columns as wide as their widest cell, without trailing spaces.
pub(super) fn write_table(
    text: &mut String,
    aligns: &[Align],
    header: Vec<String>,
    rows: impl Iterator<Item = Vec<String>>,
) {
    let mut lines: Vec<Vec<String>> = rows.collect();
    if !header.is_empty() {
        lines.insert(0, header);
    }
    let width_of = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..aligns.len()).map(width_of).collect();
    for line in &lines {
        let mut out = String::new();
        for ((cell, &width), &align) in line.iter().zip(&widths).zip(aligns) {
            let padding = " ".repeat(width - cell.chars().count());
            out.push_str("  ");
            match align {
                Align::Left => out.extend([cell.as_str(), &padding]),
                Align::Right => out.extend([&padding, cell.as_str()]),
            }
        }
        let _ = writeln!(text, "{}", out.trim_end());
    }
}
