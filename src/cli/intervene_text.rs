//! Changed runs and sweeps as text.

use std::fmt::Write;

use crate::text::{quoted, terminal};

use super::summary::{Align, cut, write_table};
use crate::tracer::{Intervened, Swept};

/// A changed run beside the original.
pub(super) fn comparison_text(report: &Intervened) -> String {
    let mut text = head(&report.prompt, &report.interventions, &report.mode);
    let comparison = &report.comparison;
    let target = &comparison.target;
    line(&mut text, "KL", &format!("{:.4} nats from the original distribution", comparison.kl_divergence));
    line(
        &mut text,
        "target",
        &format!(
            "{} {:.3} -> {:.3}, rank {} -> {}, logit {:+.3}",
            quoted(&target.text),
            target.probability_before,
            target.probability_after,
            target.rank_before,
            target.rank_after,
            target.logit_change
        ),
    );
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
        text.push_str("\nlargest changes of features (pre-activations)\n");
        let header = ["feature", "at", "before", "after", "change", "label"].map(str::to_owned).to_vec();
        let rows = comparison.features.iter().map(|change| {
            let id = change.id;
            vec![
                format!("{}_{}_{}", id.layer, id.feature, id.pos),
                report.prompt_tokens.get(id.pos as usize).map(|t| quoted(t)).unwrap_or_default(),
                format!("{:.3}", change.before),
                format!("{:.3}", change.after),
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

/// Alternatives, one a row.
pub(super) fn sweep_text(report: &Swept) -> String {
    let mut text = head(&report.prompt, &report.interventions, &report.mode);
    let result = &report.result;
    line(
        &mut text,
        "target",
        &format!("{} {:.3} in the original run", quoted(&result.target), result.original_probability),
    );
    text.push('\n');
    let header = ["alternative", "target p", "rank", "logit", "KL", "likeliest"].map(str::to_owned).to_vec();
    let rows = result.points.iter().map(|point| {
        vec![
            terminal(&point.name),
            format!("{:.3}", point.target_probability),
            point.target_rank.to_string(),
            format!("{:.3}", point.target_logit),
            format!("{:.4}", point.kl_divergence),
            format!("{} {:.3}", quoted(&point.top_token), point.top_probability),
        ]
    });
    let aligns = [Align::Left, Align::Right, Align::Right, Align::Right, Align::Right, Align::Left];
    write_table(&mut text, &aligns, header, rows);
    text
}

fn head(prompt: &str, interventions: &[String], mode: &str) -> String {
    let mut text = String::new();
    line(&mut text, "prompt", &quoted(prompt));
    if !interventions.is_empty() {
        line(&mut text, "changed", &terminal(&interventions.join(", ")));
    }
    line(&mut text, "mode", mode);
    text
}

fn line(text: &mut String, name: &str, value: &str) {
    let _ = writeln!(text, "{name:<12}{value}");
}
