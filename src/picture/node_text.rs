//! Names of nodes, and text that is made to fit.

use super::{BoxKind, sans};
use crate::circuits::{CollapsedCircuit, CollapsedNode};
use crate::export::node_id_text;
use crate::graph::{Circuit, NodeId};

/// Size of the text in a box, in pixels.
pub(super) const FONT_SIZE: f64 = 10.0;
/// Size of the small print below it.
pub(super) const SMALL: f64 = 7.5;

/// `text` in at most `n_lines` lines of `max_width` pixels at this size of the font, broken at spaces where that works, cut
/// with an ellipsis.
pub(super) fn wrap(text: &str, max_width: f64, n_lines: usize, size: f64) -> Vec<String> {
    let width = |text: &str| sans::width(text, size);
    let mut lines = vec![String::new()];
    let mut words: std::collections::VecDeque<String> = text.split_whitespace().map(str::to_owned).collect();
    while let Some(word) = words.pop_front() {
        let is_last = lines.len() == n_lines;
        let Some(line) = lines.last_mut() else { break };
        let joined = if line.is_empty() { word.clone() } else { format!("{line} {word}") };
        // The last line also needs room for the ellipsis, where something follows.
        if width(&joined) <= max_width && (!is_last || words.is_empty() || width(&joined) + width("…") <= max_width) {
            *line = joined;
        } else if line.is_empty() || is_last {
            // A word that is too long for a line, or no line left: what fits, and the rest on the next line if there is one.
            let ending = if is_last { "…" } else { "" };
            let (head, tail) = split_at_width(&joined, max_width - width(ending), size);
            *line = format!("{}{ending}", head.trim_end());
            if is_last {
                break;
            }
            words.push_front(tail.to_owned());
            lines.push(String::new());
        } else {
            words.push_front(word);
            lines.push(String::new());
        }
    }
    lines.retain(|line| !line.is_empty());
    lines
}

/// As much of `text` as fits, at least a character, and the rest.
fn split_at_width(text: &str, max_width: f64, size: f64) -> (&str, &str) {
    let mut taken = 0.0;
    let mut buffer = [0; 4];
    for (at, c) in text.char_indices() {
        taken += sans::width(c.encode_utf8(&mut buffer), size);
        if taken > max_width && at > 0 {
            return text.split_at(at);
        }
    }
    (text, "")
}

/// `text` on one line of at most `max_width` pixels, cut with an ellipsis.
pub(super) fn cut(text: &str, max_width: f64, size: f64) -> String {
    if sans::width(text, size) <= max_width {
        return text.to_owned();
    }
    let (head, _) = split_at_width(text, max_width - sans::width("…", size), size);
    format!("{}…", head.trim_end())
}

/// A share as it is shown: `26 %`, `3.5 %`, `<0.1 %`.
pub(super) fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    match percent {
        _ if percent >= 9.95 => format!("{percent:.0} %"),
        _ if percent >= 0.05 => format!("{percent:.1} %"),
        _ if percent > 0.0 => "<0.1 %".to_owned(),
        _ => "0 %".to_owned(),
    }
}

/// What is written into a box.
pub(super) struct BoxText {
    /// What it says, large.
    pub label: String,
    /// Where to find it and how much it matters, small.
    pub small_print: String,
}

/// The text of a box of nodes of a collapsed circuit, the strongest first, with their part of all influence.
pub(super) fn of_box(
    circuit: &Circuit,
    collapsed: &CollapsedCircuit,
    kind: BoxKind,
    members: &[usize],
    share: Option<f64>,
) -> BoxText {
    let strongest = &collapsed.nodes[members[0]];
    let n = members.len();
    let inner = |member: usize| circuit.node(collapsed.nodes[member].members[0]);
    let is_token = inner(members[0]).token_id.is_some_and(|id| id >= 0);
    let share = share.map(percent);
    let with_share = |text: String| match &share {
        Some(share) if text.is_empty() => share.clone(),
        Some(share) => format!("{text} · {share}"),
        None => text,
    };
    match kind {
        BoxKind::Token => {
            let text: String = members.iter().map(|&member| inner(member).text.as_str()).collect();
            BoxText {
                label: token(&text),
                small_print: with_share(if n > 1 { format!("{n} tokens") } else { String::new() }),
            }
        }
        BoxKind::Error => {
            let label = if n > 1 { format!("{n} errors") } else { "error".to_owned() };
            BoxText { label, small_print: with_share(String::new()) }
        }
        BoxKind::Target => BoxText {
            label: token(&inner(members[0]).text),
            // A difference of logits, or another direction, has a weight that is no probability.
            small_print: inner(members[0]).probability.filter(|_| is_token).map_or_else(String::new, |p| match p {
                p if p >= 0.005 => format!("p = {p:.2}"),
                p => format!("p = {p:.0e}"),
            }),
        },
        BoxKind::Supernode => {
            let id = node_id_text(circuit.meta.n_layers, circuit.node(strongest.members[0]));
            BoxText { label: label(circuit, strongest), small_print: with_share(id + "…") }
        }
        BoxKind::Feature => {
            let own = id(circuit, strongest);
            match &inner(members[0]).label {
                // The number first: the end is what is cut.
                Some(label) if n > 1 => {
                    BoxText { label: format!("{n}× {label}"), small_print: with_share(own + "…") }
                }
                Some(label) => BoxText { label: label.clone(), small_print: with_share(own) },
                None if n > 1 => BoxText { label: format!("{n} features"), small_print: with_share(own + "…") },
                None => BoxText { label: own, small_print: with_share(String::new()) },
            }
        }
    }
}

/// A token as it is shown: without the space that it begins with, white space made visible.
pub(super) fn token(text: &str) -> String {
    let trimmed = text.trim_matches(' ');
    let shown = if trimmed.is_empty() { text.replace(' ', "␣") } else { trimmed.to_owned() };
    shown.replace('\n', "↵").replace('\t', "→").chars().map(|c| if c.is_control() { '\u{FFFD}' } else { c }).collect()
}

/// The id of a node of a collapsed circuit: that of its node, or the supernode's name.
pub(super) fn id(circuit: &Circuit, node: &CollapsedNode) -> String {
    let own = || node_id_text(circuit.meta.n_layers, circuit.node(node.members[0]));
    node.name.clone().unwrap_or_else(own)
}

/// What is written into the box of a node.
pub(super) fn label(circuit: &Circuit, node: &CollapsedNode) -> String {
    if let Some(name) = &node.name {
        // The number first: the end is what is cut.
        return format!("{}× {name}", node.members.len());
    }
    let inner = circuit.node(node.members[0]);
    match (inner.id, &inner.label) {
        (NodeId::Feature { .. }, Some(label)) => label.clone(),
        (NodeId::Feature { layer, feature, .. }, None) => format!("{layer}/{feature}"),
        (NodeId::Error { .. }, _) => "error".to_owned(),
        (NodeId::Token { .. } | NodeId::Context { .. }, _) => token(&inner.text),
        (NodeId::Target { .. }, _) => match inner.probability {
            Some(p) => format!("{} {p:.2}", token(&inner.text)),
            None => token(&inner.text),
        },
    }
}

/// What a node is called in tables.
pub(super) fn kind(circuit: &Circuit, node: &CollapsedNode) -> &'static str {
    if node.name.is_some() {
        return "supernode";
    }
    match circuit.node(node.members[0]).id {
        NodeId::Feature { .. } => "feature",
        NodeId::Error { .. } => "error",
        NodeId::Token { .. } => "token",
        NodeId::Context { .. } => "context",
        NodeId::Target { .. } => "target",
    }
}
