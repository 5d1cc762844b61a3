//! Changed runs and sweeps as text, and what a picture shows of them.

use std::collections::HashMap;
use std::fmt::Write;

use crate::Result;
use crate::circuits::collapse;
use crate::graph::NodeId;
use crate::intervene::{FeatureGroup, FollowedChange, GroupChange, Measure, TokenChange};
use crate::picture::{DiagramEdge, DiagramNode, SupernodeDiagram};
use crate::text::{quoted, terminal};
use crate::tracer::{Intervened, Swept};

use super::super::summary::{Align, cut, write_table};
use super::changes::Changes;
use super::names::NamedGraph;

/// Changes that are listed by name; more are counted.
const MAX_LISTED: usize = 8;

/// A changed run beside the original. `described` says what was changed.
pub fn comparison_text(report: &Intervened, described: &[String]) -> String {
    let mut text = head(&report.prompt, described, &report.mode);
    let comparison = &report.comparison;
    line(&mut text, "KL", &format!("{:.4} nats from the original distribution", comparison.kl_divergence));
    line(&mut text, "target", &token_text(&comparison.target));
    for followed in &comparison.followed {
        line(&mut text, "target", &followed_text(followed));
    }
    write_groups(&mut text, &comparison.groups);
    text.push_str("\nnext token\n");
    let header = ["token", "before", "after", "rank", "logit"].map(str::to_owned).to_vec();
    let rows = comparison.tokens.iter().map(|token| {
        vec![
            quoted(&token.text),
            format!("{:.3}", token.probability_before),
            format!("{:.3}", token.probability_after),
            format!("{} -> {}", token.rank_before, token.rank_after),
            format!("{:+.3}", token.logit_change),
        ]
    });
    write_table(&mut text, &[Align::Left, Align::Right, Align::Right, Align::Right, Align::Right], header, rows);

    if !comparison.features.is_empty() {
        let is_activation = comparison.measure == Measure::Activation;
        let measure = if is_activation { "activations" } else { "pre-activations" };
        let _ = writeln!(text, "\nlargest changes of features ({measure})");
        let shown = |value: f32| if is_activation { activation(value) } else { format!("{value:.3}") };
        let header = ["feature", "at", "before", "after", "change", "label"].map(str::to_owned).to_vec();
        let rows = comparison.features.iter().map(|change| {
            let id = change.id;
            vec![
                format!("{}_{}_{}", id.layer, id.feature, id.pos),
                report.prompt_tokens.get(id.pos as usize).map(|t| quoted(t)).unwrap_or_default(),
                shown(change.before),
                shown(change.after),
                format!("{:+.3}", change.after - change.before),
                change.label.as_deref().map(cut).unwrap_or_default(),
            ]
        });
        let aligns = [Align::Left, Align::Left, Align::Right, Align::Right, Align::Right, Align::Left];
        write_table(&mut text, &aligns, header, rows);
    }
    if let Some(continuation) = &report.continuation {
        let held = if continuation.is_held { ", generated tokens held too" } else { "" };
        let _ = writeln!(text, "\ncontinuation{held}");
        let _ = writeln!(text, "  original  {}", quoted(&continuation.original));
        let _ = writeln!(text, "  changed   {}", quoted(&continuation.changed));
    }
    text
}

fn token_text(token: &TokenChange) -> String {
    format!(
        "{} {:.3} -> {:.3}, rank {} -> {}, logit {:+.3}",
        quoted(&token.text),
        token.probability_before,
        token.probability_after,
        token.rank_before,
        token.rank_after,
        token.logit_change
    )
}

fn followed_text(followed: &FollowedChange) -> String {
    match &followed.token {
        Some(token) => token_text(token),
        None => format!(
            "{}: {:.3} -> {:.3} ({:+.3})",
            terminal(&followed.label),
            followed.before,
            followed.after,
            followed.after - followed.before
        ),
    }
}

/// An activation; a feature that is off has none.
fn activation(value: f32) -> String {
    if value == 0.0 { "off".to_owned() } else { format!("{value:.3}") }
}

/// How active supernodes are, in per cent of what they were.
fn write_groups(text: &mut String, groups: &[GroupChange]) {
    if groups.is_empty() {
        return;
    }
    text.push_str("\nsupernodes (activation, and in per cent of the original)\n");
    let header = ["supernode", "features", "before", "after", "of 100 %", ""].map(str::to_owned).to_vec();
    let rows = groups.iter().map(|group| {
        vec![
            cut(&group.name),
            group.n_features.to_string(),
            activation(group.before),
            activation(group.after),
            percents(group),
            if group.is_changed { "changed".to_owned() } else { String::new() },
        ]
    });
    let aligns = [Align::Left, Align::Right, Align::Right, Align::Right, Align::Right, Align::Left];
    write_table(text, &aligns, header, rows);
}

fn percents(group: &GroupChange) -> String {
    let percent = |value: f64| format!("{:.0} %", value + 0.0);
    match (group.percent_before, group.percent_after) {
        (Some(before), Some(after)) if (before - 100.0).abs() > 1e-3 => {
            format!("{} -> {}", percent(before), percent(after))
        }
        (_, Some(after)) => percent(after),
        _ => "-".to_owned(),
    }
}

/// Alternatives, one a row.
pub(super) fn sweep_text(report: &Swept, described: &[String]) -> String {
    let mut text = head(&report.prompt, described, &report.mode);
    let result = &report.result;
    line(
        &mut text,
        "target",
        &format!("{} {:.3} in the original run", quoted(&result.target), result.original_probability),
    );
    for (label, value) in &result.followed {
        line(&mut text, "target", &format!("{} {value:.3} in the original run", terminal(label)));
    }
    text.push('\n');
    let followed = result.followed.iter().map(|(label, _)| cut(label));
    let mut header: Vec<String> = ["alternative", "target p", "rank", "logit"].map(str::to_owned).to_vec();
    header.extend(followed);
    header.extend(["KL", "likeliest"].map(str::to_owned));
    let rows = result.points.iter().map(|point| {
        let mut row = vec![
            terminal(&point.name),
            format!("{:.3}", point.target_probability),
            point.target_rank.to_string(),
            format!("{:.3}", point.target_logit),
        ];
        row.extend(point.followed.iter().map(|value| format!("{value:.3}")));
        row.extend([
            format!("{:.4}", point.kl_divergence),
            format!("{} {:.3}", quoted(&point.top_token), point.top_probability),
        ]);
        row
    });
    let mut aligns = vec![Align::Right; header.len()];
    aligns[0] = Align::Left;
    aligns[header.len() - 1] = Align::Left;
    write_table(&mut text, &aligns, header, rows);
    text
}

fn head(prompt: &str, described: &[String], mode: &str) -> String {
    let mut text = String::new();
    line(&mut text, "prompt", &quoted(prompt));
    if !described.is_empty() {
        line(&mut text, "changed", &terminal(&shortened(described)));
    }
    line(&mut text, "mode", mode);
    text
}

/// The first of many changes; JSON has them all.
fn shortened(described: &[String]) -> String {
    if described.len() <= MAX_LISTED {
        return described.join(", ");
    }
    let first = &described[..MAX_LISTED - 2];
    format!("{}, and {} more", first.join(", "), described.len() - first.len())
}

fn line(text: &mut String, name: &str, value: &str) {
    let _ = writeln!(text, "{name:<12}{value}");
}

/// What the picture of a changed run shows: supernodes, the edges between them in the graph, the next token.
///
/// # Errors
/// Supernodes that cannot be.
pub(super) fn diagram(
    run: &Intervened,
    graph: Option<&NamedGraph>,
    changes: &Changes,
    groups: &[FeatureGroup],
) -> Result<SupernodeDiagram> {
    let mean = |values: &mut dyn Iterator<Item = u32>| {
        let values: Vec<f64> = values.map(f64::from).collect();
        values.iter().sum::<f64>() / values.len().max(1) as f64
    };
    let nodes = run.comparison.groups.iter().zip(groups).map(|(change, group)| DiagramNode {
        name: change.name.clone(),
        percent: change.percent_after,
        detail: format!("{} -> {}", activation(change.before), activation(change.after)),
        is_changed: change.is_changed,
        layer: mean(&mut group.members.iter().map(|(id, _)| id.layer)),
        pos: mean(&mut group.members.iter().map(|(id, _)| id.pos)),
    });
    let mut diagram = SupernodeDiagram {
        prompt: run.prompt.clone(),
        changed: shortened(&changes.described),
        nodes: nodes.collect(),
        edges: Vec::new(),
        tokens: run
            .comparison
            .tokens
            .iter()
            .map(|t| (t.text.clone(), t.probability_before, t.probability_after))
            .collect(),
    };
    let Some(graph) = graph else { return Ok(diagram) };
    let circuit = graph.circuit();
    let collapsed = collapse(circuit, &graph.groups()?)?;
    let places: HashMap<&str, usize> = groups.iter().enumerate().map(|(at, group)| (group.name.as_str(), at)).collect();
    // The first target is drawn; it is the node past all supernodes.
    let place = |at: usize| {
        let node = &collapsed.nodes[at];
        match (&node.name, circuit.node(node.members[0]).id) {
            (Some(name), _) => places.get(name.as_str()).copied(),
            (None, NodeId::Target { index: 0 }) => Some(groups.len()),
            _ => None,
        }
    };
    diagram.edges = collapsed
        .edges
        .iter()
        .filter_map(|edge| {
            Some(DiagramEdge {
                source: place(edge.source)?,
                target: place(edge.target)?,
                is_positive: edge.weight > 0.0,
                share: edge.share,
            })
        })
        .collect();
    Ok(diagram)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_plans_are_shortened_on_screen() {
        let changes: Vec<String> = (0..146).map(|i| format!("0_{i}_4=0")).collect();
        assert_eq!(shortened(&changes[..8]), changes[..8].join(", "));
        assert_eq!(shortened(&changes), format!("{}, and 140 more", changes[..6].join(", ")));
    }
}
