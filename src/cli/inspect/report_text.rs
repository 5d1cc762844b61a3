//! What is said about a part of a graph and its supernodes, as text.

use std::fmt::Write;

use crate::circuits::Report;
use crate::cli::summary::{percent, plural};
use crate::text::terminal;

/// What follows the summary.
pub(super) fn report_text(report: &Report) -> String {
    let mut text = String::new();
    if let Some(subgraph) = &report.subgraph {
        let over = if subgraph.over_all_edges { "all edges" } else { "the edges that pruning has left" };
        let _ = writeln!(
            text,
            "\ncarries     {} on paths from its tokens, of the {} that all tokens carry;\n            errors feed {} into it; {} \
             passes through its features and errors",
            percent(subgraph.carried_by_tokens),
            percent(subgraph.whole_by_tokens),
            percent(subgraph.carried_by_errors),
            percent(subgraph.passes_through),
        );
        let _ = writeln!(
            text,
            "pinned      {}; replacement {:.3}  completeness {:.3}\n            over {over}",
            plural(subgraph.n_pinned_features, "feature"),
            subgraph.replacement,
            subgraph.completeness
        );
    }
    if let Some(grouping) = &report.grouping {
        let _ = writeln!(
            text,
            "\nsupernodes  replacement {:.3} before, {:.3} collapsed; completeness {:.3} before, {:.3} collapsed",
            grouping.before.replacement,
            grouping.collapsed.replacement,
            grouping.before.completeness,
            grouping.collapsed.completeness
        );
        for group in &grouping.supernodes {
            let _ = writeln!(
                text,
                "  {:5.1} %  {}  ({}: {})",
                group.share * 100.0,
                terminal(&group.name),
                group.members.len(),
                group.members.join(", ")
            );
        }
    }
    text
}
