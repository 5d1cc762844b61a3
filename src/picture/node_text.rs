//! Names of nodes, and how much room text takes.

use crate::circuits::CollapsedNode;
use crate::export::node_id_text;
use crate::graph::{Circuit, NodeId};

/// Size of the text in a box, in pixels.
pub(super) const FONT_SIZE: f64 = 10.0;

/// Advance of a character in the picture's font as a part of the font's size; rounded up, so that text fits.
fn advance(c: char) -> f64 {
    match c {
        'i' | 'l' | 'j' | '\'' | '|' | '!' | '.' | ',' | ':' | ';' | ' ' | 'I' => 0.34,
        'f' | 't' | 'r' | '(' | ')' | '[' | ']' | '/' | '-' | '"' => 0.46,
        'm' | 'w' | 'M' | 'W' | '%' | '@' | '…' => 0.99,
        c if c.is_ascii_uppercase() => 0.72,
        c if c.is_ascii() => 0.64,
        // Wide scripts take the whole square.
        c if ('\u{1100}'..).contains(&c) && !('\u{2000}'..'\u{2E80}').contains(&c) => 1.05,
        _ => 0.75,
    }
}

/// Width of `text` in pixels.
pub(super) fn width(text: &str) -> f64 {
    text.chars().map(advance).sum::<f64>() * FONT_SIZE
}

/// `text` in at most `n_lines` lines of `max_width` pixels, broken at spaces where that works, cut with an ellipsis.
pub(super) fn wrap(text: &str, max_width: f64, n_lines: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut words: std::collections::VecDeque<String> = text.split_whitespace().map(str::to_owned).collect();
    while let Some(word) = words.pop_front() {
        let is_last = lines.len() == n_lines;
        let Some(line) = lines.last_mut() else { break };
        let joined = if line.is_empty() { word.clone() } else { format!("{line} {word}") };
        if width(&joined) <= max_width {
            *line = joined;
        } else if line.is_empty() || is_last {
            // A word that is too long for a line, or no line left: what fits, and the rest on the next line if there is one.
            let ending = if is_last { "…" } else { "" };
            let mut head = String::new();
            let mut tail = String::new();
            for c in joined.chars() {
                if tail.is_empty() && width(&format!("{head}{c}{ending}")) <= max_width {
                    head.push(c);
                } else {
                    tail.push(c);
                }
            }
            *line = format!("{}{ending}", head.trim_end());
            if is_last {
                break;
            }
            words.push_front(tail);
            lines.push(String::new());
        } else {
            words.push_front(word);
            lines.push(String::new());
        }
    }
    lines.retain(|line| !line.is_empty());
    lines
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
        (NodeId::Token { .. }, _) => token(&inner.text),
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
        NodeId::Target { .. } => "target",
    }
}
