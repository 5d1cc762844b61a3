//! A summary as text.

use std::fmt::Write;

use super::dashboard_text::example_below;
use super::effects_text::write_effects;
use crate::circuits::{
    NamedNodes, Neighbors, NodeExample, NodeSummary, PathGroup, Prediction, Summary, SummaryNode, SummaryPath,
};
use crate::graph::{NodeKind, ShareEstimate};
use crate::text::{quoted, shortened, shortened_middle, terminal};

/// Longer labels are cut in tables; JSON has them whole.
const MAX_LABEL_CHARS: usize = 48;

/// Longer prompts are shown without their middle; JSON has them whole.
const MAX_PROMPT_CHARS: usize = 400;

/// The column that is left out where all entries are several nodes.
const ACTIVATION: usize = 4;

/// The column of the heads that edges go through, where they are known.
const HEADS: usize = 4;

/// Nodes of one name that are listed.
const MAX_MEMBERS: usize = 3;

/// Paths are summed by position where the listed ones carry less than this part of all.
const THIN_PATHS: f64 = 0.1;

/// Uncertainties below this part of a value are not shown.
const NEGLIGIBLE_UNCERTAINTY: f64 = 0.05;

/// The summary as it is printed: short, columns aligned, tokens quoted so that leading spaces show.
pub fn summary_text(summary: &Summary) -> String {
    let mut text = String::new();
    write_head(&mut text, summary);
    if !summary.nodes.is_empty() {
        summary.nodes.iter().for_each(|node| write_node(&mut text, node));
        return text;
    }
    write_effects(&mut text, summary);
    write_strongest(&mut text, summary);
    write_paths(&mut text, summary);
    text
}

fn write_strongest(text: &mut String, summary: &Summary) {
    if summary.strongest_by_name.is_empty() {
        return;
    }
    text.push_str("\nstrongest nodes, those of one name together\n");
    let mut header = ["share", "direct", "node", "at", "activation", "name"].map(str::to_owned).to_vec();
    let mut aligns = vec![Align::Right, Align::Right, Align::Left, Align::Left, Align::Right, Align::Left];
    let estimate_of = |named: &NamedNodes| match &named.nodes[..] {
        [node] => node.estimate,
        _ => None,
    };
    let has_activations =
        summary.strongest_by_name.iter().any(|named| named.n_nodes == 1 && named.nodes[0].activation.is_some());
    if !has_activations {
        header.remove(ACTIVATION);
        aligns.remove(ACTIVATION);
    }
    let is_sampled = summary.strongest_by_name.iter().any(|named| estimate_of(named).is_some());
    if is_sampled {
        header.insert(1, "of the whole".to_owned());
        aligns.insert(1, Align::Right);
    }
    let examples = summary.strongest_by_name.iter().map(|named| named.nodes.first().and_then(|n| n.example.as_ref()));
    let rows = summary.strongest_by_name.iter().map(|named| {
        let at = token_at(&named.nodes[0].text, named.pos);
        let (share, direct) = (percent(named.share), signed(named.direct));
        let mut row = match &named.nodes[..] {
            [node] if named.n_nodes == 1 => {
                let activation = node.activation.map(|a| format!("{a:.3}")).unwrap_or_default();
                vec![share, direct, node.id.clone(), at, activation, label(node)]
            }
            nodes => {
                let strongest =
                    nodes.iter().take(MAX_MEMBERS).map(|node| format!("{} {}", node.id, percent(node.share)));
                let more = if named.n_nodes > MAX_MEMBERS { ", …" } else { "" };
                let strongest = strongest.collect::<Vec<_>>().join(", ") + more;
                let name = if named.is_label { format!("{}: {strongest}", cut(&named.name)) } else { strongest };
                vec![share, direct, plural(named.n_nodes, named.kind.name()), at, String::new(), name]
            }
        };
        if !has_activations {
            row.remove(ACTIVATION);
        }
        if is_sampled {
            row.insert(1, estimate_of(named).as_ref().map(estimate_text).unwrap_or_default());
        }
        row
    });
    write_table_with(text, &aligns, header, rows, examples);
}

/// Of fewer rows, how far they scatter says little about how far off the estimate is.
const FEW_ROWS: usize = 50;

fn write_head(text: &mut String, summary: &Summary) {
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<12}{value}");
    };
    line("prompt", shortened_middle(&quoted(&summary.prompt), MAX_PROMPT_CHARS));
    let predictions: Vec<String> = summary
        .predictions
        .iter()
        .map(|p| match p.probability {
            Some(probability) if is_token(p) => format!("{} {probability:.3}", quoted(&p.text)),
            _ => target_name(summary, &p.id, &p.text),
        })
        .collect();
    let are_tokens = summary.predictions.iter().all(is_token);
    if !predictions.is_empty() {
        line(if are_tokens { "prediction" } else { "explained" }, predictions.join("  "));
    }
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
                "of the whole graph, estimated from {} (θ {:.2e}){}",
                plural(sampling.n_visited, "row"),
                sampling.theta,
                if sampling.theta > 0.0 && sampling.n_visited < FEW_ROWS {
                    ": too few for ± to be trusted"
                } else {
                    ""
                }
            ),
        );
    }
    let counts = summary.counts;
    let kinds = [
        (counts.features, "feature"),
        (counts.errors, "error"),
        (counts.tokens, "token"),
        (counts.contexts, "context"),
        (counts.targets, "target"),
    ];
    let is_shown = |&(n, name): &(usize, &str)| n > 0 || name != "context";
    let kinds: Vec<String> = kinds.into_iter().filter(is_shown).map(|(n, name)| plural(n, name)).collect();
    line(
        if summary.is_part { "part" } else { "graph" },
        format!("{}: {}; {}", plural(counts.nodes(), "node"), kinds.join(", "), plural(counts.edges, "edge")),
    );
    if summary.n_left_out > 0 {
        line("", format!("{} of less influence left out (--max-nodes)", plural(summary.n_left_out, "node")));
    }
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
        let mut header = ["share", "weight", "node", "at", "label"].map(str::to_owned).to_vec();
        let mut aligns = vec![Align::Right, Align::Right, Align::Left, Align::Left, Align::Left];
        let has_heads = edges.iter().any(|edge| edge.heads.is_some());
        if has_heads {
            header.insert(HEADS, "heads".to_owned());
            aligns.insert(HEADS, Align::Left);
        }
        let rows = edges.iter().map(|edge| {
            let mut row = vec![
                percent(edge.edge_share),
                format!("{:+.4}", edge.weight),
                edge.node.id.clone(),
                quoted(&edge.node.text),
                label(&edge.node),
            ];
            if has_heads {
                row.insert(HEADS, edge.heads.as_ref().map(|heads| heads.label.clone()).unwrap_or_default());
            }
            row
        });
        write_table_with(text, &aligns, header, rows, edges.iter().map(|edge| edge.node.example.as_ref()));
    }
}

fn write_paths(text: &mut String, summary: &Summary) {
    let Some(target) = summary.paths.first().and_then(|path| path.nodes.last()) else { return };
    let name = match target.kind {
        NodeKind::Target => target_name(summary, &target.id, &target.text),
        _ => format!("{} at {}", target.id, token_at(&target.text, target.pos)),
    };
    let shown: f64 = summary.paths.iter().map(|path| path.strength).sum();
    let of_groups: f64 = summary.path_groups.iter().map(|group| group.strength).sum();
    let total = summary.paths_total;
    if shown < THIN_PATHS * total && !summary.path_groups.is_empty() {
        let (of_groups, total) = (percent(of_groups), percent(total));
        let _ = writeln!(text, "\nstrongest paths to {name} by position ({of_groups} of the {total} that tokens give)");
        let header = ["share", "effect", "path"].map(str::to_owned).to_vec();
        let rows = summary.path_groups.iter().map(|group| {
            vec![percent(group.strength), group.effect.map(signed).unwrap_or_default(), group_text(group)]
        });
        write_table(text, &[Align::Right, Align::Right, Align::Left], header, rows);
        return;
    }
    let (shown, total) = (percent(shown), percent(total));
    let _ = writeln!(text, "\nstrongest paths to {name} ({shown} of the {total} that tokens give)");
    let rows = summary.paths.iter().map(|path| vec![percent(path.strength), path_text(summary, path)]);
    write_table(text, &[Align::Right, Align::Left], Vec::new(), rows);
}

/// A group of paths to the target that is named above it.
fn group_text(group: &PathGroup) -> String {
    let mut text = String::new();
    let mut before = None;
    for step in &group.steps[..group.steps.len().saturating_sub(1)] {
        let _ = match (step.kind, before) {
            (kind, _) if kind.is_beginning() => write!(text, "{}", token_at(&step.text, step.pos)),
            (_, Some(pos)) if pos == step.pos => write!(text, " > its features"),
            _ => write!(text, " > features at {}", token_at(&step.text, step.pos)),
        };
        before = Some(step.pos);
    }
    if group.steps.len() == 2 { text + " itself" } else { text }
}

/// A token with its position, as `--node` takes it.
pub(super) fn token_at(token: &str, pos: u32) -> String {
    format!("{}@{pos}", quoted(token))
}

/// An effect, with its sign.
pub(super) fn signed(effect: f64) -> String {
    if effect.abs() < 0.005 { ".".to_owned() } else { format!("{effect:+.2}") }
}

/// Whether a target is a token, and not a difference or a direction.
fn is_token(prediction: &Prediction) -> bool {
    prediction.token_id.is_none_or(|id| id >= 0)
}

/// What a target is called: a token in quotes, a difference as it is.
pub(super) fn target_name(summary: &Summary, id: &str, text: &str) -> String {
    let is_other = summary.predictions.iter().any(|prediction| prediction.id == id && !is_token(prediction));
    if is_other { terminal(text) } else { quoted(text) }
}

fn path_text(summary: &Summary, path: &SummaryPath) -> String {
    let step = |node: &SummaryNode| match node.kind {
        NodeKind::Token => quoted(&node.text),
        NodeKind::Context => format!("{} {}", node.id, quoted(&node.text)),
        NodeKind::Target => target_name(summary, &node.id, &node.text),
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
        (None, NodeKind::Context) => "(context)".to_owned(),
        (None, NodeKind::Target) => "(target)".to_owned(),
    }
}

/// A label for a table, cut to its width.
pub(super) fn cut(label: &str) -> String {
    shortened(&terminal(label), MAX_LABEL_CHARS)
}

pub(super) fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

pub(super) fn plural(count: usize, name: &str) -> String {
    if count == 1 { format!("1 {name}") } else { format!("{count} {name}s") }
}

/// As [`write_table`], of a table with a head, with an example below each row that has one.
fn write_table_with<'a>(
    text: &mut String,
    aligns: &[Align],
    header: Vec<String>,
    rows: impl Iterator<Item = Vec<String>>,
    examples: impl Iterator<Item = Option<&'a NodeExample>>,
) {
    let mut table = String::new();
    write_table(&mut table, aligns, header, rows);
    // The head has none.
    for (line, example) in table.split_inclusive('\n').zip(std::iter::once(None).chain(examples)) {
        text.push_str(line);
        text.extend(example.map(example_below));
    }
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
    let has_header = !header.is_empty();
    if has_header {
        lines.insert(0, header);
    }
    let width_of = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..aligns.len()).map(width_of).collect();
    // Lists without a head hold whole sentences, which are wrapped, not cut.
    let is_text: Vec<bool> = aligns.iter().map(|&align| align == Align::Left && has_header).collect();
    let widths = super::terminal::fitted(widths, &is_text);
    for line in &lines {
        let mut out = String::new();
        for ((cell, &width), &align) in line.iter().zip(&widths).zip(aligns) {
            let cell = if has_header { shortened(cell, width) } else { cell.clone() };
            let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
            out.push_str("  ");
            match align {
                Align::Left => out.extend([cell.as_str(), &padding]),
                Align::Right => out.extend([&padding, cell.as_str()]),
            }
        }
        let _ = writeln!(text, "{}", out.trim_end());
    }
}
